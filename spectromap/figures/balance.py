"""Oxygen book-keeping: what was lost, and the structures this can leave behind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from spectromap.figures._canvas import (
    BLUE,
    DOUBLE_IN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    SIGMA,
    FloatArray,
    group_of,
    new_figure,
    numbers_of,
    styled,
    texts_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["oxygen_figure"]

#: Values, random errors, and errors of both kinds together.
Numbers = tuple[FloatArray, FloatArray, FloatArray]

STRUCTURES = {"vacancy": (BLUE, "o"), "densified": (ORANGE, "s"), "measured": (RED, "D")}


def _with_errors(found: xr.Dataset, name: str) -> Numbers:
    """Values, random errors, and errors of both kinds together."""
    value = np.atleast_1d(numbers_of(found, name))
    kinds = []
    for kind in ("errors", "systematic"):
        known = f"{name}_{kind}" in found
        kinds.append(np.atleast_1d(numbers_of(found, f"{name}_{kind}")) if known else 0 * value)
    return value, kinds[0], np.hypot(*kinds)


def _times(factor: float, numbers: Numbers) -> Numbers:
    """Values and errors in other units."""
    value, random, whole = numbers
    return factor * value, abs(factor) * random, abs(factor) * whole


def _only(index: int, numbers: Numbers) -> Numbers:
    """One of the values."""
    value, random, whole = (part[index : index + 1] for part in numbers)
    return value, random, whole


def _draw_values(
    axes: Axes,
    rows: FloatArray,
    numbers: Numbers,
    name: str,
    look: tuple[str, str],
) -> None:
    """Points with the random error as a thick bar and the whole one as a thin one."""
    value, random, whole = numbers
    colour, marker = look
    options: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "linestyle": "none",
        "markersize": 5.5,
    }
    axes.errorbar(value, rows, xerr=whole, elinewidth=1.0, label=f"_{name}, both errors", **options)
    axes.errorbar(value, rows, xerr=random, elinewidth=3.0, label=f"_{name}, random", **options)


@styled
def oxygen_figure(tree: xr.DataTree) -> Figure | None:
    """Released oxygen, and Li:TM and density of both structures beside what was measured.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no oxygen balance. Thick bars: random error (1 sigma), thin
        ones: with the systematic one.
    """
    found = group_of(tree, "oxygen")
    if found is None or "released_fraction" not in found:
        return None
    quantities = [
        (name, label)
        for name, label in (("li_tm", "Li:TM"), ("density", "density [g cm⁻³]"))
        if name in found and "model" in found[name].dims
    ]
    figure = new_figure(DOUBLE_IN, 2.9)
    panels = figure.subplots(
        1, 1 + len(quantities), squeeze=False, width_ratios=[1.25] + [1.0] * len(quantities)
    )[0]
    _draw_released(panels[0], found)
    for axes, (name, label) in zip(panels[1:], quantities, strict=True):
        _draw_structures(axes, found, name)
        axes.set_xlabel(f"{label} (±1{SIGMA})")
    for axes in panels[2:]:
        axes.tick_params(labelleft=False)
    figure.suptitle(_formulae(found), fontsize=8.5, x=0.01, ha="left")
    return figure


def _draw_released(axes: Axes, found: xr.Dataset) -> None:
    """Released oxygen in all, and by the element whose state has changed."""
    rows = [("released", _times(100, _with_errors(found, "released_fraction")), RED)]
    delta = float(found["delta_relative"]) if "delta_relative" in found else np.nan
    released = float(found["released_fraction"])
    if "delta_by_element" in found and delta * released != 0:
        # Released over lost oxygen per formula unit: one over the oxygen of the formula.
        share = 100 * released / delta
        parts = _times(share, _with_errors(found, "delta_by_element"))
        names = [str(n) for n in found["element"].values]
        for index, element in enumerate(names[: parts[0].size]):
            if parts[0][index] != 0 or parts[2][index] != 0:
                one = _only(index, parts)
                rows.append((f"by {element}", one, GREY))
    axes.axvline(0, color=GREY, linewidth=0.7)
    where = np.arange(len(rows))[::-1]
    for row, (name, numbers, colour) in zip(where, rows, strict=True):
        _draw_values(axes, np.array([row], float), numbers, name, (colour, "o"))
    axes.set_yticks(where, [name for name, _, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"oxygen released [at% of O] (±1{SIGMA})")


def _measured(found: xr.Dataset, name: str) -> Numbers | None:
    """What was measured: the models and the differences from them hold it."""
    if f"{name}_difference" not in found:
        return None
    model, difference = _with_errors(found, name), _with_errors(found, f"{name}_difference")
    value = model[0][:1] + difference[0][:1]
    # The measured value shares no error with the models: variances of differences are sums.
    left = [np.sqrt(np.maximum(d[:1] ** 2 - m[:1] ** 2, 0.0)) for m, d in zip(
        model[1:], difference[1:], strict=True)]  # fmt: skip
    return value, left[0], left[1]


def _draw_structures(axes: Axes, found: xr.Dataset, name: str) -> None:
    """One quantity of both structures, and what was measured across them."""
    numbers = _with_errors(found, name)
    models = [str(model) for model in found["model"].values]
    measured = _measured(found, name)
    names = models if measured is None else [*models, "measured"]
    rows = np.arange(len(names))[::-1]
    for index, model in enumerate(models):
        look = STRUCTURES.get(model, (GREEN, "^"))
        _draw_values(
            axes, rows[index : index + 1].astype(float), _only(index, numbers), model, look
        )
    if measured is not None:
        low, high = (float((measured[0] + sign * measured[2])[0]) for sign in (-1, 1))
        axes.axvspan(low, high, color=RED, alpha=0.12, linewidth=0)
        _draw_values(axes, rows[-1:].astype(float), measured, "measured", STRUCTURES["measured"])
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="y", colors=INK)


def _formulae(found: xr.Dataset) -> str:
    """Composition of both structures and what was found about them."""
    lines = []
    if "formula" in found and "model" in found.coords:
        p_values = numbers_of(found, "p_value") if "p_value" in found else np.array([np.nan] * 9)
        for model, formula, p in zip(
            found["model"].values, texts_of(found, "formula"), p_values, strict=False
        ):
            pretty = re.sub(r"[\d.]+", lambda m: f"$_{{{m[0]}}}$", formula)
            said = f", p = {p:.2g}" if np.isfinite(p) else ""
            lines.append(f"{model}: {pretty}{said}")
    finding = str(found["finding"].item()) if "finding" in found else ""
    if finding and finding != "not compared":
        lines.append(f"finding: {finding}")
    return "\n".join(lines)
