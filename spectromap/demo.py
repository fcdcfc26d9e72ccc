"""The demonstration: a simulated electrode, the whole method on its file, truth and answer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import batch, config, figures, synthetic
from spectromap.io.results import read_result
from spectromap.schema import LOG, pixel_size

__all__ = ["Row", "compare", "run_demo", "run_wide_demo"]

#: Fractions are compared where the sample is at least this thick.
THICK_NM = 40.0


@dataclass(frozen=True)
class Row:
    """One quantity of the comparison, as text."""

    quantity: str
    truth: str
    answer: str
    remark: str = ""


def run_demo(out: str | os.PathLike[str], *, seed: int = 0, progress: bool = False) -> str:
    """Simulate a field, write it as a beamline file, analyse that file, compare with the truth.

    Parameters
    ----------
    out : path
        Output folder; the simulated scan and its truth go to ``simulated`` inside it.
    seed : int
        Seed of the simulation.
    progress : bool
        Show progress bars.

    Returns
    -------
    str
        The table of truth against answer, which is also written to ``truth.txt``.
    """
    folder = Path(out)
    LOG.info("simulating an LMR electrode")
    scan = synthetic.write(synthetic.demo_field(seed=seed), folder / "simulated")
    result_path = batch.run(
        config.load_run(scan), folder, progress=progress, command="spectromap demo"
    )
    truth = read_result(folder / "simulated" / "truth.h5")
    result = read_result(result_path)
    comparison = figures.truth_comparison(result, truth)
    if comparison is not None:
        figures.save_figure(comparison, folder / "truth.png")
    table = format_rows(compare(truth, result))
    (folder / "truth.txt").write_text(table + "\n", encoding="utf-8")
    return f"{table}\n\nreport: {folder / batch.REPORT_NAME}\nresult: {result_path}"


def run_wide_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    progress: bool = False,
    extent: synthetic.Extent | None = None,
) -> str:
    """Simulate a wide electrode with ten agglomerates, discharged and charged, and analyse it.

    The charged state is seen at three edges. Every figure of both states, and of both together, is
    drawn from the results.

    Parameters
    ----------
    out : path
        Output folder: ``discharged`` and ``charged`` with a result each, ``figures``.
    seed : int
        Seed of the simulation.
    progress : bool
        Show progress bars.
    extent : Extent, optional
        A smaller field; by default 50 um wide.

    Returns
    -------
    str
        Tables of truth against answer, also written to ``truth.txt`` of each state.
    """
    folder = Path(out)
    told, results = [], []
    for state in ("discharged", "charged"):
        LOG.info("simulating a %s electrode", state)
        scans = synthetic.wide_electrode(seed, state=state, extent=extent)
        described = synthetic.write_scans(scans, folder / state / "simulated")
        truth = next(iter(scans.values())).truth
        del scans
        results.append(
            batch.run(
                config.load_run(described),
                folder / state,
                progress=progress,
                command="spectromap demo --field wide",
            )
        )
        table = format_rows(compare(truth, read_result(results[-1])))
        (folder / state / "truth.txt").write_text(table + "\n", encoding="utf-8")
        told.append(f"{state}\n{table}")
    written = batch.draw_figures(results, folder / "figures", progress=progress)
    return "\n\n".join(told) + f"\n\n{len(written)} files in {folder / 'figures'}"


def format_rows(rows: list[Row]) -> str:
    """Rows as an aligned text table."""
    head = Row("quantity", "truth", "answer", "")
    widths = [
        max(len(getattr(row, name)) for row in [head, *rows])
        for name in ("quantity", "truth", "answer")
    ]
    lines = []
    for row in [head, *rows]:
        cells = zip((row.quantity, row.truth, row.answer), widths, strict=True)
        lines.append("  ".join(text.ljust(width) for text, width in cells) + "  " + row.remark)
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(line.rstrip() for line in lines)


def compare(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    """Truth against answer, quantity by quantity.

    Parameters
    ----------
    truth, result : DataTree
        As `spectromap.synthetic` and `spectromap.pipeline.analyze` make them.

    Returns
    -------
    list of Row
    """
    rows = [*_shift_rows(truth, result), *_map_rows(truth, result)]
    rows += _particle_rows(truth, result) + _model_rows(truth, result)
    return rows + _scan_rows(truth, result) + _place_rows(truth, result)


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """One group of a result or a truth tree."""
    node = tree[f"/entry/{name}"]
    assert isinstance(node, xr.DataTree)
    return node.to_dataset()


def shift_errors(truth: xr.DataTree, result: xr.DataTree) -> NDArray[np.float64]:
    """Distance in pixels between true and found shift of every frame kept, offset removed."""
    found, real = _group(result, "shifts"), _group(truth, "shifts")
    kept = ~found["flagged"].values.astype(bool)
    step = pixel_size(_group(truth, "maps")["thickness"])
    parts = []
    for axis, pixel in zip("yx", step, strict=True):
        difference = (found[f"shift_{axis}"].values - real[f"shift_{axis}"].values)[kept] / pixel
        parts.append(difference - np.median(difference))
    return np.asarray(np.hypot(*parts))


def _shift_rows(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    error = shift_errors(truth, result)
    flagged = int(_group(result, "shifts")["flagged"].values.sum())
    median, high = np.median(error), np.percentile(error, 95)
    spectra, real = _group(result, "spectra"), _group(truth, "spectra")
    return [
        Row(
            "shift error [px]",
            "0",
            f"{median:.3f} median, {high:.3f} at 95 %",
            f"{flagged} frames flagged",
        ),
        Row(
            "energy shift [eV]",
            f"{float(real['energy_shift']):.3f}",
            f"{float(spectra['energy_shift']):.3f} +- {float(spectra['energy_shift_errors']):.3f}",
        ),
    ]


def _map_rows(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    maps, real = _group(result, "maps"), _group(truth, "maps")
    name = f"{maps.attrs['fraction']}_fraction"
    blurred = f"{name}_blurred" if f"{name}_blurred" in real else name
    thickness = "thickness_blurred" if "thickness_blurred" in real else "thickness"
    thick = real[thickness].values > THICK_NM
    difference = (maps[name].values - real[blurred].values)[thick]
    difference = difference[np.isfinite(difference)]
    expected = float(np.nanmedian(maps[f"{name}_errors"].values[thick]))
    true_thickness, found_thickness = real[thickness].values, maps["thickness"].values
    both = thick & np.isfinite(found_thickness)
    slope = float(
        np.sum(true_thickness[both] * found_thickness[both]) / np.sum(true_thickness[both] ** 2)
    )
    return [
        Row(
            "Mn3+ fraction, mean",
            f"{np.nanmean(real[blurred].values[thick]):.3f}",
            f"{np.nanmean(maps[name].values[thick]):.3f}",
            f"pixels: bias {difference.mean():+.3f}, rms {difference.std():.3f}"
            f" (photon noise {expected:.3f})",
        ),
        Row("thickness, slope", "1", f"{slope:.3f}", f"where thicker than {THICK_NM:g} nm"),
    ]


def overlaps(true_labels: NDArray[Any], found_labels: NDArray[Any]) -> dict[int, tuple[int, float]]:
    """For every true label the found one that overlaps it most, and their IoU."""
    result: dict[int, tuple[int, float]] = {}
    for label in np.unique(true_labels[true_labels > 0]):
        inside = true_labels == label
        candidates = found_labels[inside]
        candidates = candidates[candidates > 0]
        if candidates.size == 0:
            continue
        best = int(np.bincount(candidates).argmax())
        other = found_labels == best
        result[int(label)] = (best, float((inside & other).sum() / (inside | other).sum()))
    return result


def _particle_rows(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    real = _group(truth, "maps")["particle_label"].values
    found = _group(result, "maps")["particle_label"].values
    matched = overlaps(real, found)
    mean = np.mean([iou for _, iou in matched.values()]) if matched else 0.0
    return [
        Row(
            "particles",
            str(len(np.unique(real[real > 0]))),
            str(len(np.unique(found[found > 0]))),
            f"mean overlap (IoU) {mean:.2f}",
        )
    ]


def _model_rows(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    pooled, real = _group(result, "pooled"), _group(truth, "pooled")
    low, high = float(pooled["log10_D_low68"]), float(pooled["log10_D_high68"])
    return [
        Row(
            "log10 D [cm2/s]",
            f"{float(real['log10_D']):.2f}",
            f"{float(pooled['log10_D']):.2f} ({low:.2f} to {high:.2f}, 68 %)",
            f"{int(pooled['particles_used'])} particles,"
            f" spread {float(pooled['spread']):.2f} between them",
        ),
        Row("verdict", str(real["verdict"].item()), str(pooled["verdict"].item())),
    ]


def _scan_rows(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    """Where further scans lie, and what they say of the particles."""
    rows = []
    for group in truth["entry"].children:
        if not group.startswith("maps_") or group not in result["entry"].children:
            continue
        real, found = _group(truth, group).attrs, _group(result, group).attrs
        offsets = [
            (
                f"{real[f'offset_{axis}_nm']:.1f}",
                f"{found[f'offset_{axis}_nm']:.1f} +- {found[f'offset_{axis}_nm_errors']:.1f}",
            )
            for axis in "yx"
        ]
        name = group.removeprefix("maps_")
        rows.append(
            Row(f"offset of {name} [nm]", *(", ".join(p) for p in zip(*offsets, strict=True)))
        )
    return rows


def _place_rows(truth: xr.DataTree, result: xr.DataTree) -> list[Row]:
    """Differences between places, where there are agglomerates."""
    real, found = _group(truth, "heterogeneity"), _group(result, "heterogeneity")
    rows = []
    for contrast in found["contrast"].values:
        one = found.sel(contrast=contrast)
        known = contrast in real["contrast"].values
        true = float(real["difference"].sel(contrast=contrast)) if known else np.nan
        if not (np.isfinite(true) and np.isfinite(one["difference"])):
            continue
        low, high = float(one["low"]), float(one["high"])
        answer = f"{float(one['difference']):+.3f} ({low:+.3f} to {high:+.3f}, 95 %)"
        rows.append(Row(str(contrast), f"{true:+.3f}", answer))
    return rows
