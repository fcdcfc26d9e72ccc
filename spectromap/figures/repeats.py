"""A second scan of the same field: the noise as it is, and what the beam has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import special

from spectromap.figures._canvas import (
    BLUE,
    DOUBLE_IN,
    GREY,
    INK,
    RED,
    SIGMA,
    component_label,
    draw_points,
    errors_of,
    fraction_name,
    group_of,
    new_figure,
    note_figure,
    numbers_of,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["repeats_figure"]


@styled
def repeats_figure(tree: xr.DataTree) -> Figure | None:
    """Change of the fraction of every particle between scans, against dose, and in its errors.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no repeats. Left: particles (1 sigma) and the mean change, or
        the change per dose where a dose is known. Right: the same changes in units of their
        errors; the curve is what noise alone would give.
    """
    found = group_of(tree, "repeats")
    if found is None or "change" not in found or not found.sizes.get("particle", 0):
        return None
    scans = [found.isel(scan=n) for n in range(found.sizes["scan"])] if "scan" in found.sizes else [
        found
    ]  # fmt: skip
    scans = [scan for scan in scans if np.isfinite(numbers_of(scan, "change")).any()]
    if not scans:
        return note_figure("No particle is seen in both scans.")
    figure = new_figure(DOUBLE_IN, 2.9 * len(scans))
    grid = figure.subplots(len(scans), 2, squeeze=False)
    for (left, right), scan in zip(grid, scans, strict=True):
        _draw_changes(left, scan, component_label(fraction_name(tree)))
        _draw_pulls(right, scan)
    return figure


def _number(scan: xr.Dataset, name: str) -> float:
    """A scalar, NaN where it is missing."""
    return float(scan[name]) if name in scan else np.nan


def _draw_changes(axes: Axes, scan: xr.Dataset, component: str) -> None:
    """Changes against the dose, or against the number of the particle without one."""
    change, errors = numbers_of(scan, "change"), errors_of(scan, "change")
    dose = numbers_of(scan, "dose") if "dose" in scan else np.full(change.size, np.nan)
    dosed = bool(np.isfinite(dose).any())
    x = dose if dosed else np.asarray(scan["particle"].values, dtype=np.float64)
    axes.axhline(0, color=GREY, linewidth=0.7)
    draw_points(axes, x, change, errors, color=BLUE, alpha=0.6, label="_particles")
    low, high = _number(scan, "mean_change_low"), _number(scan, "mean_change_high")
    mean = _number(scan, "mean_change")
    if np.isfinite(low) and np.isfinite(high):
        axes.axhspan(low, high, color=RED, alpha=0.2, linewidth=0)
    axes.axhline(mean, color=RED, linewidth=1.0)
    axes.set_xlabel("dose between the scans [MGy]" if dosed else "particle")
    axes.set_ylabel(f"change of {component} fraction (±1{SIGMA})")
    lines = [f"mean {mean:+.4f} ({low:+.4f} to {high:+.4f})"]
    rate, error = _number(scan, "change_per_MGy"), _number(scan, "change_per_MGy_errors")
    if np.isfinite(rate):
        lines.append(f"per MGy {rate:+.2g} ± {error:.1g}")
    name = str(scan["scan"].item()) + ": " if "scan" in scan.coords else ""
    axes.set_title(name + "\n".join(lines), fontsize=8)


def _draw_pulls(axes: Axes, scan: xr.Dataset) -> None:
    """Changes over their errors, sorted, beside those of normal noise."""
    change, errors = numbers_of(scan, "change"), errors_of(scan, "change")
    known = np.isfinite(change) & (errors > 0)
    pulls = np.sort(change[known] / errors[known])
    expected = special.ndtri((np.arange(pulls.size) + 0.5) / max(pulls.size, 1))
    axes.plot(expected, expected, color=GREY, linewidth=1.0, label="noise alone")
    axes.plot(expected, pulls, "o", color=INK, markersize=3, label="particles")
    axes.set_xlabel(f"expected of noise / {SIGMA}")
    axes.set_ylabel(f"change / {SIGMA}")
    parts = [("noise ratio", "noise_ratio", ".2f"), ("equal changes: p", "dichroism", ".2g")]
    said = [f"{text} = {_number(scan, name):{form}}" for text, name, form in parts
            if np.isfinite(_number(scan, name))]  # fmt: skip
    axes.set_title(", ".join(said), fontsize=8)
    axes.legend(loc="upper left")
