"""Particles inside and outside of agglomerates."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.figures._canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    SIGMA,
    WIDTH_IN,
    component_label,
    draw_cloud,
    errors_of,
    fraction_name,
    group_of,
    new_figure,
    note_figure,
    numbers_of,
    styled,
    texts_of,
)
from spectromap.schema import PLACES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heterogeneity_figure"]

#: How the names of contrasts at equal thickness end.
EQUAL = " at equal thickness"
MINUS = "\N{MINUS SIGN}"
PLACE_COLOURS = dict(zip(PLACES, (RED, ORANGE, BLUE), strict=True))


@styled
def heterogeneity_figure(tree: xr.DataTree) -> Figure | None:
    """Fraction against thickness by place, and the contrasts with their 95 % intervals.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no contrasts.
    """
    contrasts, particles = group_of(tree, "heterogeneity"), group_of(tree, "particles")
    if contrasts is None or "difference" not in contrasts:
        return None
    fraction = fraction_name(tree)
    known = np.isfinite(numbers_of(contrasts, "difference"))
    count = 0 if particles is None else particles.sizes.get("particle", 0)
    if not known.any() and count == 0:
        return note_figure("No particles, so nothing to compare.")
    rows = contrasts.sizes["contrast"]
    figure = new_figure(WIDTH_IN + 1.6, float(np.clip(0.9 + 0.45 * rows, 3.2, 9.0)))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    _draw_places(left, particles, fraction)
    _draw_contrasts(right, contrasts, known, fraction)
    return figure


def _draw_places(axes: Axes, particles: xr.Dataset | None, fraction: str) -> None:
    """Fraction of every particle against its thickness."""
    from matplotlib.lines import Line2D

    axes.set_xlabel("mean thickness of a particle [nm]")
    axes.set_ylabel(f"{component_label(fraction)} fraction (±1{SIGMA})")
    name = f"{fraction}_fraction"
    if particles is None or name not in particles or not particles.sizes.get("particle", 0):
        return
    places = np.array(texts_of(particles, "place"))
    thickness, values = numbers_of(particles, "thickness"), numbers_of(particles, name)
    errors = errors_of(particles, name)
    for place in sorted(set(places), key=lambda p: PLACES.index(p) if p in PLACES else 9):
        here = places == place
        options = {"color": PLACE_COLOURS.get(place, GREY), "label": place or "all"}
        draw_cloud(axes, thickness[here], values[here], errors[here], most=places.size, **options)
    axes.margins(0.1)
    handles = [
        Line2D([], [], color=PLACE_COLOURS.get(name, GREY), marker="o", linestyle="none",
               markersize=5, label=name)
        for name in axes.get_legend_handles_labels()[1]
    ]  # fmt: skip
    axes.legend(handles=handles, loc="best")


def _draw_contrasts(
    axes: Axes, contrasts: xr.Dataset, known: NDArray[np.bool_], fraction: str
) -> None:
    """Differences with intervals, one row each, the first on top, questions apart."""
    difference, low, high, p = (
        numbers_of(contrasts, name) for name in ("difference", "low", "high", "p_value")
    )
    full = [str(n) for n in contrasts["contrast"].values]
    names = [textwrap.fill(name.replace(", ", ",\n", 1), 22) for name in full]
    rows = np.arange(len(names))[::-1]
    axes.axvline(0, color=GREY, linewidth=0.8)
    for row, index in zip(rows, range(len(names)), strict=True):
        if index and full[index].split(EQUAL)[0] != full[index - 1].split(EQUAL)[0]:
            axes.axhline(row + 0.5, color=PALE, linewidth=0.8)
        if not known[index]:
            _draw_untestable(axes, int(row))
            continue
        ends = np.array([[difference[index] - low[index]], [high[index] - difference[index]]])
        axes.errorbar(
            [difference[index]], [row], xerr=ends, fmt="o", color=INK, elinewidth=1.6,
            markersize=5, label="_difference",
        )  # fmt: skip
        if np.isfinite(p[index]):
            axes.annotate(_p_text(p[index]), (difference[index], row), xytext=(0, 5), fontsize=8,
                          textcoords="offset points", ha="center", va="bottom")  # fmt: skip
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.3)
    axes.margins(x=0.15)
    percent = round(100 * float(contrasts.attrs.get("confidence", 0.95)))
    axes.set_xlabel(f"difference in {component_label(fraction)} fraction ({percent} %)")


def _p_text(p: float) -> str:
    """A p-value for the eye."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def contrast_text(contrasts: xr.Dataset | None, name: str) -> str:
    """A difference and its interval in words; empty where there is no such contrast."""
    needed = {"contrast", "difference", "low", "high"}
    if contrasts is None or not needed <= set(contrasts.variables):
        return ""
    if name not in contrasts["contrast"].values:
        return ""
    one = contrasts.sel(contrast=name)
    value, low, high = (float(one[n]) for n in ("difference", "low", "high"))
    if not np.isfinite(value):
        return "not testable"
    percent = round(100 * float(contrasts.attrs.get("confidence", 0.95)))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f}, {percent} %)".replace("-", MINUS)


def _draw_untestable(axes: Axes, row: int) -> None:
    """Say that a contrast has too few particles."""
    options: dict[str, Any] = {"color": GREY, "fontsize": 8, "ha": "center", "va": "center"}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    where = axes.get_yaxis_transform()
    axes.text(0.5, row, "not testable", transform=where, bbox=behind, **options)
