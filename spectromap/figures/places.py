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
    RED,
    SIGMA,
    WIDTH_IN,
    component_label,
    draw_points,
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
    figure = new_figure(WIDTH_IN + 1.6, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    _draw_places(left, particles, fraction)
    _draw_contrasts(right, contrasts, known, fraction)
    return figure


def _draw_places(axes: Axes, particles: xr.Dataset | None, fraction: str) -> None:
    """Fraction of every particle against its thickness."""
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
        draw_points(axes, thickness[here], values[here], errors[here], **options, markersize=4.5)
    axes.margins(0.1)
    axes.legend(loc="best")


def _draw_contrasts(
    axes: Axes, contrasts: xr.Dataset, known: NDArray[np.bool_], fraction: str
) -> None:
    """Differences with intervals, one row each, the first on top."""
    difference, low, high, p = (
        numbers_of(contrasts, name) for name in ("difference", "low", "high", "p_value")
    )
    names = [textwrap.fill(str(n), 20) for n in contrasts["contrast"].values]
    rows = np.arange(len(names))[::-1]
    axes.axvline(0, color=GREY, linewidth=0.8)
    for row, index in zip(rows, range(len(names)), strict=True):
        if not known[index]:
            _draw_untestable(axes, int(row))
            continue
        axes.plot([low[index], high[index]], [row, row], color=INK, linewidth=1.6)
        axes.plot(difference[index], row, "o", color=INK, markersize=5)
        text = f"p = {p[index]:.2g}" if p[index] >= 0.001 else "p < 0.001"
        if np.isfinite(p[index]):
            axes.annotate(text, (difference[index], row), xytext=(0, 6), fontsize=8,
                          textcoords="offset points", ha="center")  # fmt: skip
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.15)
    axes.set_xlabel(f"difference in {component_label(fraction)} fraction (95 %)")


def _draw_untestable(axes: Axes, row: int) -> None:
    """Say that a contrast has too few particles."""
    options: dict[str, Any] = {"color": GREY, "fontsize": 8, "ha": "center", "va": "center"}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    where = axes.get_yaxis_transform()
    axes.text(0.5, row, "not testable", transform=where, bbox=behind, **options)
