"""Fraction against the thickness of particles: by place, and at other edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from spectromap.figures._canvas import (
    BLUE,
    DECORATION,
    DOUBLE_IN,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SINGLE_IN,
    FloatArray,
    component_label,
    draw_cloud,
    draw_points,
    errors_of,
    fraction_name,
    group_of,
    new_figure,
    note_figure,
    numbers_of,
    other_maps,
    overview_of,
    styled,
    texts_of,
)
from spectromap.figures.agglomerates import filled_bodies
from spectromap.figures.maps import (
    colour_bar,
    draw_map,
    draw_outlines,
    extension,
    limits_of,
    line_scale,
    map_size,
    reliable_pixels,
)
from spectromap.figures.places import EQUAL, PLACE_COLOURS, contrast_text
from spectromap.schema import PLACES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["charged_maps_figure", "charged_thickness_figure", "thickness_figure"]

Mask = NDArray[np.bool_]
OUTSIDE, EXTERIOR, INTERIOR = PLACES
#: Particles of a bin, and bins at most: fewer of the one and more of the other show only noise.
BIN_PARTICLES, MOST_BINS = 6, 8
MOST_MAPS_IN_A_ROW = 2
#: Thinner outlines than this hide what they surround.
LEAST_LINE = 0.4
#: Share of a normal distribution below one standard deviation.
ONE_SIGMA = 0.8413447


@dataclass(frozen=True)
class _Group:
    """Some particles: how they are called and drawn, and their columns."""

    name: str
    colour: str
    marker: str
    thickness: FloatArray
    values: FloatArray
    errors: FloatArray
    unit: NDArray[np.integer[Any]]


def _units(particles: xr.Dataset) -> NDArray[np.integer[Any]]:
    """What is independent of each other: agglomerates, and primaries outside of them."""
    count = particles.sizes["particle"]
    own = -1 - np.arange(count)
    if "agglomerate" not in particles:
        return own
    agglomerate = np.asarray(particles["agglomerate"].values).astype(np.int64)
    return np.where(agglomerate > 0, agglomerate, own)


def _group(particles: xr.Dataset, name: str, chosen: Mask, style: tuple[str, str, str]) -> _Group:
    """Particles that have both a fraction and a thickness."""
    thickness, values = numbers_of(particles, "thickness"), numbers_of(particles, name)
    keep = chosen & np.isfinite(thickness) & np.isfinite(values)
    errors, unit = errors_of(particles, name), _units(particles)
    return _Group(*style, thickness[keep], values[keep], errors[keep], unit[keep])


def _used(particles: xr.Dataset) -> Mask:
    """Particles that count; all where the table does not tell."""
    if "used" not in particles:
        return np.ones(particles.sizes["particle"], dtype=bool)
    return np.asarray(particles["used"].values, dtype=bool)


def bin_means(
    thickness: FloatArray, values: FloatArray, unit: NDArray[np.integer[Any]], edges: FloatArray
) -> FloatArray:
    """Mean thickness and mean value in bins, with the error that the scatter between units gives.

    Parameters
    ----------
    thickness, values : ndarray, shape (n,)
        Of particles, each of which counts once.
    unit : ndarray of int, shape (n,)
        What is independent of each other.
    edges : ndarray, shape (bins + 1,)

    Returns
    -------
    ndarray, shape (bins with two particles or more, 3)
        Mean thickness, mean value, and half of its 68 % interval: the scatter between units, or
        between particles where that is larger, times Student's factor for as many units.
    """
    place = np.clip(np.searchsorted(edges, thickness, side="right") - 1, 0, edges.size - 2)
    rows = []
    for number in range(edges.size - 1):
        here = place == number
        count = int(here.sum())
        if count < 2:
            continue
        mean = values[here].mean()
        away = values[here] - mean
        _, which = np.unique(unit[here], return_inverse=True)
        sums = np.bincount(which, away)
        own = np.sqrt(np.sum(away**2) / (count * (count - 1)))
        if sums.size > 1:
            between = np.sqrt(sums.size / (sums.size - 1) * np.sum(sums**2)) / count
            own = max(own, between)
        freedom = (sums.size if sums.size > 1 else count) - 1
        rows.append(
            (thickness[here].mean(), mean, own * float(special.stdtrit(freedom, ONE_SIGMA)))
        )
    return np.array(rows).reshape(-1, 3)


def _edges(groups: Sequence[_Group]) -> FloatArray:
    """Edges of bins with equal numbers of particles, the same for all groups."""
    thickness = np.concatenate([group.thickness for group in groups])
    smallest = min((group.thickness.size for group in groups if group.thickness.size), default=0)
    bins = int(np.clip(smallest // BIN_PARTICLES, 1, MOST_BINS))
    return np.asarray(np.quantile(thickness, np.linspace(0, 1, bins + 1)))


def _draw_groups(axes: Axes, groups: Sequence[_Group]) -> None:
    """Particles as faint points with their errors, means of bins as strong ones."""
    groups = [group for group in groups if group.thickness.size]
    if not groups:
        return
    edges = _edges(groups)
    most = sum(group.thickness.size for group in groups)
    for group in groups:
        options = {"color": group.colour, "marker": group.marker, "label": f"_{group.name}"}
        draw_cloud(
            axes, group.thickness, group.values, group.errors, most=max(most, 60), zorder=1,
            **options,
        )  # fmt: skip
    for group in groups:
        means = bin_means(group.thickness, group.values, group.unit, edges)
        label = f"{group.name} ({group.thickness.size})"
        draw_points(
            axes, means[:, 0], means[:, 1], means[:, 2], color=group.colour, marker=group.marker,
            markersize=6, elinewidth=1.6, markeredgecolor="white", zorder=4, label=label,
        )  # fmt: skip
        axes.plot(means[:, 0], means[:, 1], color=group.colour, linewidth=0.8, label=DECORATION)
    _limit(axes, groups)
    axes.legend(loc="best", markerscale=0.9, handletextpad=0.3)


def _limit(axes: Axes, groups: Sequence[_Group]) -> None:
    """Limits from the values: the error bars of a few thin particles must not squeeze them."""
    values = np.concatenate([group.values for group in groups])
    errors = np.nan_to_num(np.concatenate([group.errors for group in groups]))
    usual = float(np.median(errors))
    low, high = float(values.min()) - usual, float(values.max()) + usual
    margin = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin)
    axes.margins(x=0.04)


@styled
def thickness_figure(tree: xr.DataTree) -> Figure | None:
    """Fraction against thickness, inside against outside and exterior against interior.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no places. Faint points are particles (1 sigma), strong ones the
        means of bins, with the 68 % interval that the scatter between agglomerates, and between
        primaries outside of them, gives; above, the difference at equal thickness of the result's
        ``heterogeneity`` with its interval.
    """
    particles, fraction = group_of(tree, "particles"), fraction_name(tree)
    name = f"{fraction}_fraction"
    needed = {name, "thickness", "place"}
    if particles is None or not needed <= set(particles) or not particles.sizes.get("particle", 0):
        return None
    places, used = np.array(texts_of(particles, "place")), _used(particles)
    if not np.isin(places[used], (EXTERIOR, INTERIOR)).any():
        return None
    inside = np.isin(places, (EXTERIOR, INTERIOR))
    pairs = {
        "outside-inside": [
            (places == OUTSIDE, ("outside", PLACE_COLOURS[OUTSIDE], "o")),
            (inside, ("inside", GREEN, "s")),
        ],
        "exterior-interior": [
            (places == EXTERIOR, ("exterior", PLACE_COLOURS[EXTERIOR], "o")),
            (places == INTERIOR, ("interior", PLACE_COLOURS[INTERIOR], "s")),
        ],
    }
    figure = new_figure(DOUBLE_IN, 3.3)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    contrasts = group_of(tree, "heterogeneity")
    for axes, (question, sides) in zip(panels, pairs.items(), strict=True):
        _draw_groups(axes, [_group(particles, name, here & used, how) for here, how in sides])
        text = contrast_text(contrasts, question + EQUAL)
        first, second = question.split("-")
        title = f"{first} less {second} at equal thickness:\n{text}" if text else ""
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("mean thickness of a particle [nm]")
    panels[0].set_ylabel(f"{component_label(fraction)} fraction")
    everything = [_group(particles, name, used, ("", "", ""))]
    _limit(panels[0], everything)
    return figure


@styled
def charged_maps_figure(tree: xr.DataTree) -> Figure | None:
    """Maps of the fraction at every other edge, beside each other, with the outlines.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no other edge. White: agglomerates; thin: particles.
    """
    found, own = other_maps(tree), overview_of(tree, "maps")
    if not found:
        return None
    columns = min(len(found), MOST_MAPS_IN_A_ROW)
    rows = -(-len(found) // columns)
    wide, high = map_size(next(iter(found.values())), columns)
    figure = new_figure(wide, (high + 0.6) * rows, layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, maps) in zip(grid, found.items(), strict=False):
        _draw_edge(axes, name, maps, own)
    for axes in grid[len(found) :]:
        axes.remove()
    return figure


def _edge_name(name: str, maps: xr.Dataset) -> str:
    """The edge as it is written, or the name of the scan."""
    return str(maps.attrs.get("edge", "") or name)


def _draw_edge(axes: Axes, name: str, maps: xr.Dataset, own: xr.Dataset | None) -> None:
    """One map with the outlines of the main one, which is on the same grid."""
    fraction = str(maps.attrs["fraction"])
    good = reliable_pixels(maps, fraction)
    values = np.where(good, maps[f"{fraction}_fraction"].values, np.nan)
    limits = limits_of(values, 0.05, 0.1)
    if own is not None and own.sizes != maps.sizes:
        own = None
    # The main maps know where particles leave room for a scale bar.
    place = maps if own is None else own
    image = draw_map(axes, place, values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    if own is not None:
        _draw_main_outlines(axes, own)
    label = f"{_edge_name(name, maps)}: {component_label(fraction)} fraction"
    colour_bar(axes, image, label, extension(values, limits), "top")


def _draw_main_outlines(axes: Axes, own: xr.Dataset) -> None:
    """Outlines of agglomerates, and of particles where these are large enough to be told apart."""
    labels = np.asarray(own["particle_label"].values) if "particle_label" in own else None
    width = 0.0 if labels is None else line_scale(labels)
    if labels is not None and width > LEAST_LINE:
        draw_outlines(axes, own, labels, colors="white", linewidths=1.2 * width)
        draw_outlines(axes, own, labels, colors=INK, linewidths=0.5 * width)
    if "agglomerate_label" in own:
        bodies = filled_bodies(own)
        draw_outlines(axes, own, bodies, colors=INK, linewidths=2.2)
        draw_outlines(axes, own, bodies, colors="white", linewidths=1.1)


@styled
def charged_thickness_figure(tree: xr.DataTree) -> Figure | None:
    """Fraction at every other edge against the thickness of particles.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no other edge or no fraction of it per particle. Points and bars
        as in `thickness_figure`.
    """
    found, particles = other_maps(tree), group_of(tree, "particles")
    if not found or particles is None or "thickness" not in particles:
        return None
    styles = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (RED, "v"), (INK, "P")]
    groups = []
    for (name, maps), look in zip(found.items(), styles, strict=False):
        fraction = str(maps.attrs["fraction"])
        if f"{fraction}_fraction" in particles:
            title = f"{_edge_name(name, maps)}, {component_label(fraction)}"
            groups.append(
                _group(particles, f"{fraction}_fraction", _used(particles), (title, *look))
            )
    if not groups:
        return None
    if not any(group.thickness.size for group in groups):
        return note_figure("No particle is seen at the other edges.")
    figure = new_figure(SINGLE_IN, 3.0)
    axes = figure.add_subplot()
    _draw_groups(axes, groups)
    axes.set_xlabel("mean thickness of a particle [nm]")
    axes.set_ylabel("fraction of the reduced form")
    return figure
