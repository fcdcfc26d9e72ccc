"""The command line."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from spectromap import __version__
from spectromap.schema import LOG, FileError, SpectromapError

EXIT_MISTAKE = 2  # something the user can mend
EXIT_INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="spectromap",
        description="Oxygen-loss maps from X-ray spectromicroscopy of battery cathodes.",
    )
    parser.add_argument("--version", action="version", version=f"spectromap {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--quiet", action="store_true", help="only errors on the terminal")
    shared.add_argument("--log", type=Path, metavar="FILE", help="write a log file as well")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", parents=[shared], help="the whole method on a simulated electrode, offline"
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="output folder (demo)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--field",
        choices=("small", "wide"),
        default="small",
        help="wide: 50 um with ten agglomerates, discharged and charged; about half an hour",
    )

    info = commands.add_parser("info", parents=[shared], help="what a file holds")
    info.add_argument("file", help="a stack, a glob, or a spectrum")

    check = commands.add_parser(
        "check", parents=[shared], help="every mistake of a run description at once"
    )
    check.add_argument("config", type=Path, metavar="RUN.yaml")
    check.add_argument("--memory", action="store_true", help="also estimate memory and disk")

    run = commands.add_parser("run", parents=[shared], help="from a stack to maps and a verdict")
    run.add_argument("target", nargs="?", metavar="FILE|DATASET", help="replaces 'stack:'")
    run.add_argument("--config", type=Path, metavar="RUN.yaml", help="the run description")
    run.add_argument("--replay", type=Path, metavar="RESULT", help="repeat the run of a result")
    run.add_argument("--out", type=Path, required=True, help="output folder")

    fetch = commands.add_parser("fetch", parents=[shared], help="bring a data set of the manifest")
    fetch.add_argument("dataset")
    fetch.add_argument("--manifest", type=Path, help="default: data_manifest.yaml")

    simulate = commands.add_parser(
        "simulate", parents=[shared], help="write a simulated scan with its truth"
    )
    simulate.add_argument("--out", type=Path, required=True, help="output folder")
    simulate.add_argument("--format", choices=("nxstxm", "als", "cxi"), default="nxstxm")
    simulate.add_argument("--field", choices=("demo", "electrode", "wide"), default="demo")
    simulate.add_argument(
        "--state", choices=("discharged", "charged"), default="discharged", help="of --field wide"
    )
    simulate.add_argument("--seed", type=int, default=0)

    figures = commands.add_parser(
        "figures", parents=[shared], help="figures for print, with the data behind each"
    )
    figures.add_argument("results", nargs="+", metavar="RESULT", help="result files or folders")
    figures.add_argument("--out", type=Path, required=True, help="output folder")
    figures.add_argument(
        "--formats", nargs="+", choices=("pdf", "svg", "png"), default=["pdf", "svg", "png"]
    )
    figures.add_argument("--dpi", type=int, default=300)

    view = commands.add_parser("view", parents=[shared], help="stacks and results in napari")
    view.add_argument(
        "files", nargs="+", metavar="RESULT|FILE", help="results, stacks, run descriptions"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit code: 0, or 2 for a mistake the user can mend.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.line = shlex.join(["spectromap", *given])
    handlers: list[logging.Handler] = []
    try:
        handlers += _start_log(options)
        return int(_COMMANDS[options.command](options) or 0)
    except SpectromapError as error:
        LOG.debug("stopped", exc_info=True)
        print(f"spectromap: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("spectromap: interrupted; nothing was kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()


def _start_log(options: argparse.Namespace) -> list[logging.Handler]:
    """Log to the terminal and, if wanted, to a file."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.ERROR if options.quiet else logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [terminal]
    if options.log is not None:
        try:
            file = logging.FileHandler(options.log, encoding="utf-8")
        except OSError as error:
            raise FileError(
                f"no log can be written ({error.strerror})", where=options.log
            ) from error
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    LOG.setLevel(logging.DEBUG)
    for handler in handlers:
        LOG.addHandler(handler)
    return handlers


def _demo(options: argparse.Namespace) -> None:
    """Simulate a field, write it as a beamline file, run the method on that file, compare."""
    from spectromap import demo

    run = {"small": demo.run_demo, "wide": demo.run_wide_demo}[options.field]
    print(run(options.out, seed=options.seed, progress=not options.quiet))


def _info(options: argparse.Namespace) -> None:
    from spectromap import io

    try:
        print(io.info(options.file))
    except FileError as no_stack:
        try:
            spectrum = io.read_spectrum(options.file)
        except SpectromapError:
            raise no_stack from None
        low, high = float(spectrum.energy[0]), float(spectrum.energy[-1])
        print(f"{options.file}: a spectrum of {spectrum.size} points, {low:g} to {high:g} eV,")
        print(f"values {float(spectrum.min()):.4g} to {float(spectrum.max()):.4g}", end=" ")
        print(f"in units of {spectrum.attrs['units']}")


def _check(options: argparse.Namespace) -> None:
    from spectromap import batch
    from spectromap.config import load_content

    description = batch.describe_run(None, load_content(options.config), options.config)
    stack = batch.check(description)
    if options.memory:
        print(batch.memory_report(stack))
    print(f"{options.config}: nothing wrong was found")


def _run(options: argparse.Namespace) -> None:
    from spectromap import batch
    from spectromap.config import load_content

    if options.replay is not None:
        description = batch.replay_description(options.replay)
    else:
        content = load_content(options.config) if options.config is not None else None
        description = batch.describe_run(
            options.target, content, options.config or options.target or "run"
        )
    result = batch.run(description, options.out, progress=not options.quiet, command=options.line)
    print(f"result: {result}\nreport: {result.with_name(batch.REPORT_NAME)}")


def _fetch(options: argparse.Namespace) -> None:
    from spectromap.io.manifest import fetch

    print(fetch(options.dataset, manifest=options.manifest))


def _simulate(options: argparse.Namespace) -> None:
    from spectromap import synthetic

    if options.field == "wide":
        scans = synthetic.wide_electrode(options.seed, state=options.state)
        print(synthetic.write_scans(scans, options.out, format=options.format))
        return
    field = {"demo": synthetic.demo_field, "electrode": synthetic.electrode_field}[options.field]
    print(synthetic.write(field(seed=options.seed), options.out, format=options.format))


def _figures(options: argparse.Namespace) -> None:
    from spectromap import batch

    written = batch.draw_figures(
        options.results,
        options.out,
        formats=options.formats,
        dpi=options.dpi,
        progress=not options.quiet,
    )
    print(f"{len(written)} files in {options.out}")


def _view(options: argparse.Namespace) -> None:
    from spectromap import plugin

    plugin.view(options.files)


_COMMANDS = {
    "figures": _figures,
    "view": _view,
    "demo": _demo,
    "info": _info,
    "check": _check,
    "run": _run,
    "fetch": _fetch,
    "simulate": _simulate,
}

if __name__ == "__main__":
    sys.exit(main())
