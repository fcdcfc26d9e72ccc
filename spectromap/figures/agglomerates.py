"""Maps of secondary particles: the whole field, and one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.figures._canvas import (
    INK,
    component_label,
    fraction_of_maps,
    group_of,
    new_figure,
    note_figure,
    overview_of,
    styled,
    texts_of,
)
from spectromap.figures.maps import (
    colour_bar,
    draw_map,
    draw_outlines,
    extension,
    length_scale,
    limits_of,
    line_scale,
    map_size,
    reliable_pixels,
)
from spectromap.figures.places import PLACE_COLOURS
from spectromap.schema import PLACES, pixel_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["agglomerates_figure", "one_agglomerate_figure"]

Labels = NDArray[np.integer[Any]]


@styled
def agglomerates_figure(tree: xr.DataTree) -> Figure | None:
    """Fraction of the whole field with every agglomerate outlined and numbered.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no fraction or no agglomerate. Large agglomerates (``size_class``
        of the result's heterogeneity) have thick outlines and bold numbers.
    """
    maps = _with_agglomerates(tree)
    if maps is None:
        return None
    figure = new_figure(*map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    if not _draw_fraction(axes, maps, fraction_of_maps(tree, maps)):
        return note_figure("No pixel is thick enough for a fraction.")
    bodies, small = filled_bodies(maps), _small_ones(tree)
    little = np.isin(bodies, list(small))
    for labels, width in ((np.where(little, bodies, 0), 0.5), (np.where(little, 0, bodies), 1.0)):
        draw_outlines(axes, maps, labels, colors=INK, linewidths=2.6 * width)
        draw_outlines(axes, maps, labels, colors="white", linewidths=1.4 * width)
    _number(axes, maps, bodies, small)
    return figure


@styled
def one_agglomerate_figure(tree: xr.DataTree, agglomerate: int | None = None) -> Figure | None:
    """One agglomerate on its own scale, the outlines of its primaries coloured by their place.

    Parameters
    ----------
    tree : DataTree
        A result.
    agglomerate : int, optional
        Its number; by default the largest of those that the field does not cut, or of all where
        it cuts all of them.

    Returns
    -------
    Figure or None
        None where the result has no fraction or not this agglomerate.
    """
    maps = group_of(tree, "maps")
    if maps is None or _with_agglomerates(tree) is None or "particle_label" not in maps:
        return None
    groups = np.asarray(maps["agglomerate_label"].values)
    number = _largest(groups) if agglomerate is None else agglomerate
    if not np.any(groups == number):
        return None
    shown = maps.isel(_window(groups == number))
    wide, high = map_size(shown)
    figure = new_figure(wide, high + 0.25, layout="compressed")
    axes = figure.add_subplot()
    if not _draw_fraction(axes, shown, fraction_of_maps(tree, maps)):
        return note_figure("No pixel is thick enough for a fraction.")
    _outline_places(axes, shown, group_of(tree, "particles"))
    axes.set_title(f"agglomerate {number}")
    return figure


def _with_agglomerates(tree: xr.DataTree) -> xr.Dataset | None:
    """The maps, if they have a fraction and an agglomerate."""
    maps = overview_of(tree, "maps")
    if maps is None or f"{fraction_of_maps(tree, maps)}_fraction" not in maps:
        return None
    if "agglomerate_label" not in maps or not np.any(maps["agglomerate_label"].values > 0):
        return None
    return maps


def _draw_fraction(axes: Axes, maps: xr.Dataset, fraction: str) -> bool:
    """The map of the fraction where it says something; whether it does anywhere."""
    good = reliable_pixels(maps, fraction)
    if not good.any():
        return False
    values = np.where(good, maps[f"{fraction}_fraction"].values, np.nan)
    limits = limits_of(values, 0.05, 0.1)
    image = draw_map(axes, maps, values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    colour_bar(axes, image, f"{component_label(fraction)} fraction", extension(values, limits))
    return True


def filled_bodies(maps: xr.Dataset) -> Labels:
    """Agglomerates with the gaps between their primaries closed, as their depth is measured.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        ``agglomerate_label`` and, if there, ``particle_label``.

    Returns
    -------
    ndarray of int, shape (ny, nx)
    """
    # Takes a second to import, which no other figure needs.
    from spectromap.segment.agglomerates import agglomerate_bodies

    groups = np.asarray(maps["agglomerate_label"].values)
    primaries = maps["particle_label"] if "particle_label" in maps else maps["agglomerate_label"]
    filled = np.zeros_like(groups)
    pixel = pixel_size(maps["agglomerate_label"])
    for body in agglomerate_bodies(np.asarray(primaries.values), groups, pixel, 0.0):
        rows, columns = np.nonzero(body.depth > 0)
        rows, columns = rows + body.start[0], columns + body.start[1]
        inside = (rows >= 0) & (rows < groups.shape[0])
        inside &= (columns >= 0) & (columns < groups.shape[1])
        filled[rows[inside], columns[inside]] = body.group
    # A primary belongs to its own agglomerate, however the closed gaps of two meet.
    return np.where(groups > 0, groups, filled)


def _small_ones(tree: xr.DataTree) -> set[int]:
    """Numbers of the agglomerates that are small."""
    found = group_of(tree, "heterogeneity")
    if found is None or "size_class" not in found:
        return set()
    classes = zip(found["agglomerate"].values, texts_of(found, "size_class"), strict=True)
    return {int(number) for number, name in classes if name == "small"}


def _number(axes: Axes, maps: xr.Dataset, bodies: Labels, small: set[int]) -> None:
    """Numbers in the middle of the agglomerates."""
    from matplotlib.patheffects import withStroke

    scale, _ = length_scale(maps)
    y, x = (maps[dim].values * scale for dim in ("y", "x"))
    for number in np.unique(bodies[bodies > 0]):
        rows, columns = np.nonzero(bodies == number)
        large = int(number) not in small
        text = axes.text(
            float(x[columns].mean()), float(y[rows].mean()), str(number), ha="center", va="center",
            color="white", fontsize=10 if large else 7, fontweight="bold" if large else "normal",
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2, foreground=INK)])


def _largest(groups: Labels) -> int:
    """The largest agglomerate that the border of the map does not cut, else the largest."""
    area = np.bincount(groups[groups > 0])
    border = np.concatenate([groups[0], groups[-1], groups[:, 0], groups[:, -1]])
    whole = area.copy()
    whole[np.unique(border[border > 0])] = 0
    return int(np.argmax(whole if whole.any() else area))


def _window(inside: NDArray[np.bool_]) -> dict[str, slice]:
    """Rows and columns about an agglomerate, with what lies around it."""
    window = {}
    places = np.nonzero(inside)
    margin = round(0.15 * max(float(np.ptp(place)) for place in places)) + 2
    for dim, place in zip(("y", "x"), places, strict=True):
        window[dim] = slice(max(int(place.min()) - margin, 0), int(place.max()) + margin + 1)
    return window


def _outline_places(axes: Axes, maps: xr.Dataset, particles: xr.Dataset | None) -> None:
    """Outlines of primaries in the colours of their places, and what these mean."""
    from matplotlib.lines import Line2D

    labels = np.asarray(maps["particle_label"].values)
    width = line_scale(labels)
    draw_outlines(axes, maps, labels, colors="white", linewidths=2.4 * width)
    places = dict.fromkeys(np.unique(labels[labels > 0]).tolist(), "")
    if particles is not None:
        known = zip(particles["particle"].values, texts_of(particles, "place"), strict=True)
        places |= {int(n): place for n, place in known if int(n) in places}
    handles = []
    for place in [p for p in (*PLACES, "") if p in places.values()]:
        own = [number for number, other in places.items() if other == place]
        colour = PLACE_COLOURS.get(place, INK)
        chosen = np.where(np.isin(labels, own), labels, 0)
        draw_outlines(axes, maps, chosen, colors=colour, linewidths=1.3 * width)
        handles.append(Line2D([], [], color=colour, label=place or "all"))
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
