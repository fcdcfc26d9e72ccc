"""The answer beside the truth of a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._numerics import robust_std
from spectromap.figures._canvas import (
    FloatArray,
    component_label,
    fraction_of_maps,
    group_of,
    new_figure,
    styled,
)
from spectromap.figures.maps import (
    colour_bar,
    draw_map,
    extension,
    limits_of,
    map_size,
    reliable_pixels,
    round_step,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["truth_comparison"]


@styled
def truth_comparison(tree: xr.DataTree, truth: xr.DataTree) -> Figure | None:
    """Answer, truth and their difference, side by side, for fraction and thickness.

    Parameters
    ----------
    tree : DataTree
        A result of simulated data.
    truth : DataTree
        The simulated truth, with the same names; it is interpolated to the grid of the answer.
        Maps that it also holds as the optics see them (``<name>_blurred``) are taken.

    Returns
    -------
    Figure or None
        None where the two have no map in common.
    """
    maps, true = group_of(tree, "maps"), group_of(truth, "maps")
    if maps is None or true is None:
        return None
    fraction = fraction_of_maps(tree, maps)
    names = [n for n in (f"{fraction}_fraction", "thickness") if n in maps and n in true]
    if not names:
        return None
    blurred = {name: f"{name}_blurred" for name in names if f"{name}_blurred" in true}
    true = _on_grid(true[[blurred.get(name, name) for name in names]], maps)
    good = None if fraction + "_fraction" not in names else reliable_pixels(maps, fraction)
    wide, high = map_size(maps, 3)
    figure = new_figure(wide + 2.2, (high + 0.2) * len(names), layout="compressed")
    rows = figure.subplots(len(names), 3, squeeze=False)
    for panels, name in zip(rows, names, strict=True):
        _compare(panels, maps, name, true[blurred.get(name, name)], good)
    return figure


def _on_grid(true: xr.Dataset, maps: xr.Dataset) -> xr.Dataset:
    """The truth at the pixels of the answer."""
    same = all(
        true[dim].size == maps[dim].size and np.allclose(true[dim].values, maps[dim].values)
        for dim in ("y", "x")
    )
    return true if same else true.interp(y=maps["y"].values, x=maps["x"].values)


def _compare(
    panels: NDArray[Any],
    maps: xr.Dataset,
    name: str,
    truth: xr.DataArray,
    good: NDArray[np.bool_] | None,
) -> None:
    """One row: answer and truth on one colour scale, and the difference on its own."""
    answer = np.asarray(maps[name].values, dtype=np.float64)
    true = np.asarray(truth.values, dtype=np.float64)
    difference = answer - true if good is None else np.where(good, answer - true, np.nan)
    if name == "thickness":
        label, colours = "thickness [nm]", "cividis"
        step = round_step(float(np.nanmax(true, initial=0.0)))
        limits = (0.0, max(limits_of(true, step, step)[1], step))
    else:
        label, colours = f"{component_label(name.removesuffix('_fraction'))} fraction", "viridis"
        answer, true = answer + 0 * difference, true + 0 * difference
        limits = limits_of(true, 0.05, 0.1)
    titles = ("answer", "truth" if truth.name == name else "truth, as the optics see it")
    for axes, values, title in zip(panels[:2], (answer, true), titles, strict=True):
        image = draw_map(
            axes, maps, values, labels=False, cmap=colours, vmin=limits[0], vmax=limits[1]
        )
        axes.set_title(title)
    colour_bar(panels[1], image, label, extension(np.append(answer, true), limits))
    _draw_difference(panels[2], maps, difference)


def _draw_difference(axes: Axes, maps: xr.Dataset, difference: FloatArray) -> None:
    """Difference of answer and truth, its median and its scatter."""
    finite = difference[np.isfinite(difference)]
    most = (float(np.percentile(np.abs(finite), 98)) if finite.size else 1.0) or 1.0
    options: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    image = draw_map(axes, maps, difference, labels=False, bar=False, **options)
    middle = float(np.median(finite)) if finite.size else np.nan
    axes.set_title(f"median {middle:+.2g}, scatter {robust_std(difference):.2g}")
    colour_bar(axes, image, "answer - truth", extension(difference, (-most, most)))
