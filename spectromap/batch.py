"""Runs: a description in, a result file, tables and a report out."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import __version__
from spectromap._streaming import IN_MEMORY_BYTES, SLAB_BYTES, progress_bar
from spectromap.config import STAGES, describe_scan, parse_run, resolve_paths, to_yaml
from spectromap.figures import write_figures
from spectromap.io import open_stack, read_spectrum
from spectromap.io._yaml import parse_yaml
from spectromap.io.manifest import dataset_run, fetch
from spectromap.io.masks import read_labels, read_mask
from spectromap.io.results import read_result, result_lock, write_result, write_tables
from spectromap.io.shifts import read_shifts
from spectromap.pipeline import Plan, Scans, analyze, misfits, reference_of_region
from spectromap.report import write_report
from spectromap.schema import LOG, FileError, InputError, Instrument, Sample, SpectromapError
from spectromap.series import compare_states, name_states

__all__ = ["describe_run", "draw_figures", "load_plan", "replay_description", "run"]

RESULT_NAME = "result.h5"
REPORT_NAME = "report.html"
#: Folder and file of the comparison of several states.
STATES_NAME = "states"
#: Peak memory of a run: the program itself, working copies of a slab, bytes a pixel of all maps.
BASE_BYTES = 350 * 2**20
SLAB_COPIES = 8
MAP_BYTES = 160
#: Labels of an earlier result may lie this far from the pixels of the stack.
MOST_DISPLACED_PX = 0.1
VERSIONED = ("numpy", "scipy", "scikit-image", "h5py", "xarray", "dask", "xraydb")


def run(
    description: Any, out: str | os.PathLike[str], *, progress: bool = False, command: str = ""
) -> Path:
    """Do one run and write its result, tables and report.

    Parameters
    ----------
    description : Run
        As `spectromap.config.load_run` returns it, with absolute paths.
    out : path
        Folder of the results; it is made if it is missing.
    progress : bool
        Show progress bars.
    command : str
        The command line, kept in the result.

    Returns
    -------
    Path
        The result file, ``result.h5``; beside it ``particles.csv``, ``models.csv`` and
        ``report.html``.

    Raises
    ------
    FileError, InputError
        Something the user can mend; no partial result remains.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot be made ({error.strerror})", where=folder) from error
    started = now()
    with result_lock(folder), _heard() as warnings:
        stack, plan, scans = load_all(description)
        tree = analyze(stack, plan, scans=scans, scratch=folder, progress=progress)
        return _write(tree, description, folder, started, warnings, command)


def save(
    tree: xr.DataTree,
    description: Any,
    out: str | os.PathLike[str],
    *,
    started: str,
    warnings: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Write what `run` writes, of an analysis that was done elsewhere, step by step.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.pipeline.Analysis.tree` gives it.
    description : Run
        What it was made by.
    out : path
        Folder of the results; it is made if it is missing.
    started : str
        When the analysis began, in ISO 8601.
    warnings : sequence of str
        What was warned of meanwhile.
    command : str
        What asked for it, kept in the result.

    Returns
    -------
    Path
        The result file.

    Raises
    ------
    FileError
        The folder cannot be written, or another run is writing there.
    """
    with result_lock(out):
        return _write(tree, description, Path(out), started, warnings, command)


def _write(
    tree: xr.DataTree,
    description: Any,
    folder: Path,
    started: str,
    warnings: Sequence[str],
    command: str,
) -> Path:
    """Write the result, its tables and its report."""
    process = _provenance(description, command, started, warnings)
    tree["/entry/process"] = xr.DataTree(xr.Dataset(attrs=process))
    result = folder / RESULT_NAME
    write_result(tree, result)
    write_tables(tree, folder)
    write_report(tree, folder / REPORT_NAME)
    return result


def load_all(description: Any) -> tuple[xr.DataArray, Plan, Scans]:
    """Everything that `spectromap.pipeline.analyze` takes.

    Returns
    -------
    stack : DataArray
        Lazy.
    plan : Plan
    scans : mapping of name to (DataArray, Plan)

    Raises
    ------
    FileError, InputError
        A file named in the description is missing or unusable.
    """
    stack, plan = load_stack(description), load_plan(description)
    _check_places(plan, stack)
    scans = {name: (load_stack(d), load_plan(d)) for name, d in _scans(description).items()}
    return stack, plan, scans


def _scans(description: Any) -> dict[str, Any]:
    """Run descriptions of the further scans, by name."""
    return {name: describe_scan(description, name) for name in description.scans}


def load_stack(description: Any) -> xr.DataArray:
    """Open the stack of a run description, with the technique that it states."""
    stack = open_stack(description.stack)
    if description.technique is not None:
        stack.attrs["technique"] = description.technique
    return stack


def load_plan(description: Any) -> Plan:
    """Everything of a run description that `spectromap.pipeline.analyze` takes, files read.

    Raises
    ------
    FileError, InputError
        A file named in the description is missing or unusable.
    """
    i0, shifts, exclude = description.i0, description.shifts, description.exclude
    for section, key in (
        *((i0, "mask"), (i0, "spectrum"), (exclude, "mask")),
        *((shifts, "file"), (shifts, "mask")),
    ):
        if getattr(section, key) is not None:
            _must_exist(getattr(section, key), f"{type(section).__name__.lower()}.{key}")
    plan = Plan(
        spectra={},
        fraction=_fraction(description),
        edge=description.edge,
        sample=Sample(**description.sample.model_dump()),
        instrument=Instrument(**description.instrument.model_dump()),
        i0_region=i0.region,
        i0_mask=_mask(i0.mask),
        i0_spectrum=None if i0.spectrum is None else read_spectrum(i0.spectrum),
        shifts=None if shifts.file is None else read_shifts(shifts.file),
        shift_corrections=dict(shifts.corrections),
        exclude_energies=tuple(exclude.energies),
        exclude_mask=_mask(exclude.mask),
        align_mask=_mask(shifts.mask),
        align_reference=None if shifts.reference is None else open_stack(shifts.reference),
        scales={name: r.scale for name, r in description.references.items()},
        fwhm_eV={n: r.fwhm_eV for n, r in description.references.items() if r.fwhm_eV is not None},
        labels=_labels(description.labels, "labels"),
        agglomerates=_labels(description.agglomerate_labels, "agglomerate_labels"),
        options={name: dict(getattr(description, name)) for name in STAGES},
        seed=description.seed,
    )
    spectra = {n: _reference(n, r, plan) for n, r in description.references.items()}
    return replace(plan, spectra=spectra)


def _mask(path: str | None) -> NDArray[np.bool_] | None:
    """A mask, if there is one."""
    return None if path is None else np.asarray(read_mask(path), dtype=bool)


def _reference(name: str, reference: Any, plan: Plan) -> xr.DataArray:
    """One reference spectrum with what the description says about it."""
    _must_exist(reference.file, f"references.{name}.file")
    if reference.region is None:
        spectrum = _reference_spectrum(name, reference)
    else:
        # What the plan says of I0, shifts and labels is about another stack.
        alone = Plan(
            {}, "", plan.edge, plan.sample, plan.instrument, options=plan.options, seed=plan.seed
        )
        spectrum = reference_of_region(
            open_stack(reference.file),
            reference.region,
            alone,
            name=name,
            thickness_nm=reference.thickness_nm,
            thickness_error_nm=reference.thickness_error_nm or 0.0,
            scale=reference.scale,
        )
    for key in ("valence", "relative_error", "thickness_nm", "thickness_error_nm"):
        if getattr(reference, key) is not None:
            spectrum.attrs[key] = getattr(reference, key)
    return spectrum


def _reference_spectrum(name: str, reference: Any) -> xr.DataArray:
    """One reference; of a file with several columns, the one named like the component."""
    if reference.column is None:
        try:
            return read_spectrum(reference.file, column=name, units=reference.units)
        except SpectromapError:
            LOG.debug("%s has no column '%s'", reference.file, name)
    return read_spectrum(reference.file, column=reference.column, units=reference.units)


def draw_figures(
    results: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("pdf", "svg", "png"),
    dpi: int = 300,
    progress: bool = False,
) -> list[Path]:
    """Write every figure that results can give, and of several states what they say together.

    Parameters
    ----------
    results : sequence of path
        Result files, or folders with a ``result.h5``.
    out : path
        Folder of the figures; those of several results each go to a folder of their own, and
        the comparison of the states to ``states``, with its numbers in ``states/states.h5``.
    formats : sequence of {"pdf", "svg", "png"}
        Formats of the figures; the data behind each is written as CSV.
    dpi : int
        Pixels per inch.
    progress : bool
        Show progress bars.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    FileError, InputError
        A result that cannot be read, or two of the same name. Results whose states cannot be
        told apart are a warning.
    """
    files = [Path(p) / RESULT_NAME if Path(p).is_dir() else Path(p) for p in results]
    trees = {_result_name(file, files): read_result(file) for file in files}
    written: list[Path] = []
    if len(trees) > 1:
        try:
            compared = compare_states(name_states(trees.values()))
        except InputError as error:  # each result has its own figures still
            LOG.warning("no comparison of states: %s", error)
        else:
            trees[STATES_NAME] = compared
            written.append(write_result(compared, Path(out) / STATES_NAME / f"{STATES_NAME}.h5"))
    track = partial(progress_bar, text="figures", show=progress)
    return written + write_figures(trees, out, formats=formats, dpi=dpi, track=track)


def _result_name(file: Path, files: Sequence[Path]) -> str:
    """What the folder of a result's figures is called: like its own folder, or like the file."""
    parents = [f.resolve().parent.name for f in files]
    own = file.resolve().parent.name
    return own if file.name == RESULT_NAME and parents.count(own) == 1 else file.stem


def check(description: Any) -> xr.DataArray:
    """Look at everything a run would read, without running it.

    Returns
    -------
    DataArray
        The lazy stack.

    Raises
    ------
    FileError, InputError
        With every mistake found, each on a line.
    """
    stack, problems = _examine(description)
    for name, scan in _scans(description).items():
        problems += [f"scans.{name}: {problem}" for problem in _examine(scan)[1]]
    if problems or stack is None:
        raise InputError("".join(f"\n  - {p}" for p in problems), where="this run cannot work")
    return stack


def _examine(description: Any) -> tuple[xr.DataArray | None, list[str]]:
    """The lazy stack of a description, if it opens, and all that is wrong."""
    problems: list[str] = []
    stack: xr.DataArray | None = None
    plan: Plan | None = None
    try:
        stack = load_stack(description)
    except SpectromapError as error:
        problems.append(str(error))
    try:
        plan = load_plan(description)
    except SpectromapError as error:
        problems.append(str(error))
    if stack is not None and plan is not None:
        problems += misfits(stack, plan)
        try:
            _check_places(plan, stack)
        except InputError as error:
            problems.append(str(error))
    return stack, problems


def memory_report(stack: xr.DataArray) -> str:
    """What a run on a stack needs of memory and disk, as text."""
    size = 4 * int(np.prod(stack.shape))
    pixels = int(np.prod(stack.shape[1:]))
    held = size if size <= IN_MEMORY_BYTES else 0
    memory = BASE_BYTES + held + SLAB_COPIES * min(SLAB_BYTES, size) + MAP_BYTES * pixels
    scratch = 0 if held else size
    return (
        f"stack {' x '.join(map(str, stack.shape))}: about {memory / 2**30:.1f} GiB of memory,"
        f" {scratch / 2**30:.1f} GiB of scratch disk"
    )


def _must_exist(path: str, key: str) -> None:
    if not Path(path).is_file():
        raise FileError(
            f"no such file: {path}",
            where=key,
            remedy="Paths in a run description are relative to the description's own folder.",
        )


def _fraction(description: Any) -> str:
    """The mapped component: as stated, else the most reduced one, else the last."""
    if description.fraction is not None:
        return str(description.fraction)
    names = list(description.references)
    valences = {n: r.valence for n, r in description.references.items() if r.valence is not None}
    if len(valences) == len(names) and names:
        return str(min(names, key=lambda name: valences[name]))
    return str(names[-1]) if names else ""


def _labels(path: str | None, key: Literal["labels", "agglomerate_labels"]) -> Any:
    """Particles or agglomerates from an image or, with their axes, from an earlier result."""
    if path is None:
        return None
    _must_exist(path, key)
    if not h5py.is_hdf5(path):
        return read_labels(path)
    name = {"labels": "particle_label", "agglomerate_labels": "agglomerate_label"}[key]
    try:
        return read_result(path)[f"/entry/maps/{name}"]
    except KeyError as error:
        raise InputError(f"the result holds no {name}", where=path) from error


def _check_places(plan: Plan, stack: xr.DataArray) -> None:
    """Refuse labels that an earlier result drew elsewhere than where the frames lie."""
    _check_place(plan.labels, stack, "labels")
    _check_place(plan.agglomerates, stack, "agglomerate_labels")


def _check_place(labels: Any, stack: xr.DataArray, key: str) -> None:
    if not isinstance(labels, xr.DataArray) or labels.shape != stack.shape[1:]:
        return  # images carry no place, and another shape is refused where labels are used
    for axis in ("y", "x"):
        drawn, here = (np.asarray(a[axis].values, dtype=float) for a in (labels, stack))
        pixel = float(np.ptp(here)) / max(here.size - 1, 1)
        if np.abs(drawn - here).max() > MOST_DISPLACED_PX * pixel:
            raise InputError(
                f"they lie at {axis} from {drawn[0]:.6g} to {drawn[-1]:.6g} nm, the frames of the"
                f" stack from {here[0]:.6g} to {here[-1]:.6g} nm",
                where=key,
                remedy="Use the result of the same field; labels from a TIFF are taken pixel by"
                " pixel, wherever they were drawn.",
            )


def describe_run(target: str | None, config: Mapping[str, Any] | None, where: object) -> Any:
    """The run description of a file, a data set, a description, or a mixture.

    Parameters
    ----------
    target : str, optional
        A file, a glob, or the name of a data set in the manifest; replaces ``stack``.
    config : mapping, optional
        A run description with absolute paths.
    where : object
        The description's file, for messages.

    Returns
    -------
    Run
    """
    content: dict[str, Any] = dict(config or {})
    if config is not None:
        parse_run({"stack": target, **content} if target is not None else content, where)
    named = target if target is not None else content.get("stack")
    if isinstance(named, str) and not _is_file(named):
        folder = fetch(named)
        known = resolve_paths(dataset_run(named), folder)
        known |= {key: value for key, value in content.items() if key != "stack"}
        content = known
    elif target is not None:
        content["stack"] = str(Path(target).resolve()) if Path(target).exists() else target
    return parse_run(content, where)


def _is_file(name: str) -> bool:
    """Whether a stack is meant as files rather than as the name of a data set."""
    looks = any(mark in name for mark in "*?[/\\") or "." in Path(name).name
    return Path(name).exists() or looks


def replay_description(result: str | os.PathLike[str]) -> Any:
    """The run description that a result file carries, checked against its input files.

    Raises
    ------
    FileError, InputError
        No result file, or an input file that is gone or no longer the same.
    """
    process = read_result(result)["entry"].children["process"].attrs
    description = parse_run(parse_yaml(str(process["configuration"]), result), result)
    for key in ("input_sha256", "reference_sha256"):
        for path, expected in json.loads(str(process[key])).items():
            if not Path(path).is_file():
                raise FileError(
                    "the file this result was made from is gone",
                    where=path,
                    remedy="Put it back, or run again with --config.",
                )
            if _sha256(Path(path)) != expected:
                raise FileError(
                    "the file has changed since this result was made, so a replay would not"
                    " repeat it",
                    where=path,
                    remedy="Restore the file, or run again with --config.",
                )
    return description


def _provenance(
    description: Any, command: str, started: str, warnings: Sequence[str]
) -> dict[str, str | int]:
    """Attributes of the ``process`` group: enough to replay the run."""
    parts = [description, *_scans(description).values()]
    files = [path for part in parts for path in _files_beside(part)]
    stacks = [path for part in parts for path in _stack_files(part.stack)]
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {
        "program": "spectromap",
        "version": __version__,
        "configuration": to_yaml(description),
        "input_sha256": json.dumps({str(p): _sha256(p) for p in stacks}),
        "reference_sha256": json.dumps({path: _sha256(Path(path)) for path in files}),
        "seed": int(description.seed),
        "warnings": json.dumps(list(warnings)),
        "start_time": started,
        "end_time": now(),
        "python": platform.python_version(),
        "packages": json.dumps(versions),
        "command": command,
    }


def _files_beside(description: Any) -> list[str]:
    """Every file that a description names beside the stack."""
    i0, shifts = description.i0, description.shifts
    files = [i0.mask, i0.spectrum, shifts.file, shifts.mask, shifts.reference]
    files += [description.exclude.mask]
    files += [description.labels, description.agglomerate_labels]
    files += [reference.file for reference in description.references.values()]
    return [path for path in files if path is not None]


def _stack_files(stack: str | list[str]) -> list[Path]:
    """Every file that a stack consists of."""
    import glob

    names = [stack] if isinstance(stack, str) else stack
    found: list[Path] = []
    for name in names:
        paths = [Path(name)] if Path(name).exists() else sorted(map(Path, glob.glob(name)))
        for path in paths:
            found.append(path)
            if path.suffix.lower() == ".hdr":
                found += sorted(path.parent.glob(f"{glob.escape(path.stem)}_*.xim"))
            if path.suffix.lower() in (".ncb", ".dat"):
                partner = path.with_suffix(".dat" if path.suffix.lower() == ".ncb" else ".ncb")
                found += [partner] if partner.exists() else []
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def now() -> str:
    """The time as results carry it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class _Collector(logging.Handler):
    """Keeps the text of every warning once."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        text = record.getMessage()
        if text not in self.messages:
            self.messages.append(text)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect warnings of this package and of others while a run lasts."""
    collector = _Collector()
    third_party = logging.getLogger("py.warnings")
    logging.captureWarnings(True)
    LOG.addHandler(collector)
    third_party.addHandler(collector)
    try:
        yield collector.messages
    finally:
        LOG.removeHandler(collector)
        third_party.removeHandler(collector)
        logging.captureWarnings(False)
