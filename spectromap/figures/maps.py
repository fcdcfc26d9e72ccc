"""Maps of a field: fraction, thickness, quality of the fit, particles."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.figures._canvas import (
    INK,
    PALE,
    WIDTH_IN,
    FloatArray,
    component_label,
    fraction_of_maps,
    group_of,
    new_figure,
    note_figure,
    overview_of,
    styled,
    units_of,
)
from spectromap.schema import FLAGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["chi2_map", "fraction_map", "label_map", "reliable_pixels", "thickness_map"]

#: From this extent of a field on its axes are in um.
MICROMETRES_FROM_NM = 3000.0
MAP_WIDTH_IN = 5.0
MOST_NUMBERED_PARTICLES = 80
MOST_VECTOR_LINES = 20_000


def map_size(maps: xr.Dataset, panels: int = 1) -> tuple[float, float]:
    """Figure size in inches that fits the shape of a field."""
    high, wide = (float(np.ptp(_edges(maps[dim].values))) for dim in ("y", "x"))
    aspect = float(np.clip(high / wide, 0.12, 4.0))
    width = MAP_WIDTH_IN if panels == 1 else WIDTH_IN
    panel = min((width - 1.5) / panels, 5.2 / aspect)
    return panel * panels + 1.5, max(panel * aspect + 0.75, 1.5)


def _edges(centres: Any) -> FloatArray:
    """First and last pixel edge of an axis of pixel centres."""
    centres = np.asarray(centres, dtype=np.float64)
    step = float(np.median(np.diff(centres))) if centres.size > 1 else 1.0
    return np.array([centres[0] - step / 2, centres[-1] + step / 2])


def length_scale(maps: xr.Dataset) -> tuple[float, str]:
    """Factor from nm to the unit of the axes, and that unit."""
    extent = max(float(np.ptp(_edges(maps[dim].values))) for dim in ("y", "x"))
    return (1e-3, "µm") if extent >= MICROMETRES_FROM_NM else (1.0, "nm")


def _nice_length(extent: float) -> float:
    """1, 2 or 5 times a power of ten, about a fifth of an extent."""
    target = extent / 5
    power = 10 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * 1.0001))


def draw_map(
    axes: Axes,
    maps: xr.Dataset,
    values: FloatArray,
    *,
    bar: bool = True,
    labels: bool = True,
    **options: Any,
) -> AxesImage:
    """A map with y upwards, its axes in nm or um and a scale bar; NaN is pale grey."""
    scale, unit = length_scale(maps)
    bottom, top = _edges(maps["y"].values) * scale
    left, right = _edges(maps["x"].values) * scale
    axes.set_facecolor(PALE)
    for spine in axes.spines.values():
        spine.set_visible(True)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        origin="lower",
        extent=(left, right, bottom, top),
        aspect="equal",
        **options,
    )
    if labels:
        axes.set_xlabel(f"x [{unit}]")
        axes.set_ylabel(f"y [{unit}]")
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.locator_params(nbins=6)
    if bar:
        _scale_bar(axes, right - left, unit, _emptiest_corner(maps))
    return image


def _emptiest_corner(maps: xr.Dataset) -> str:
    """Corner of a field where a scale bar hides least; the lower right one if all are alike."""
    if "particle_label" not in maps:
        return "lower right"
    inside = maps["particle_label"].values > 0
    rows, columns = (max(size // 5, 1) for size in inside.shape)
    shares = {
        "lower right": inside[:rows, -columns:].mean(),
        "lower left": inside[:rows, :columns].mean(),
        "upper right": inside[-rows:, -columns:].mean(),
        "upper left": inside[-rows:, :columns].mean(),
    }
    return min(shares, key=lambda corner: float(shares[corner]))


def _scale_bar(axes: Axes, extent: float, unit: str, corner: str) -> None:
    """A bar of a round length in a corner."""
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length = _nice_length(extent)
    text = f"{length:g} {unit}"
    if unit == "µm" and length < 1:
        text = f"{1000 * length:g} nm"
    bar = AnchoredSizeBar(
        axes.transData,
        length,
        text,
        corner,
        pad=0.35,
        borderpad=0.5,
        sep=3,
        color=INK,
        size_vertical=extent / 150,
        fontproperties=FontProperties(size=8),
    )
    bar.patch.set(facecolor="white", edgecolor="none", alpha=0.8)
    axes.add_artist(bar)


def colour_bar(
    axes: Axes, image: AxesImage, label: str, extend: str = "neither", where: str = "right"
) -> None:
    """A colour bar along the map."""
    figure = axes.get_figure()
    assert figure is not None
    options: dict[str, Any] = {"pad": 0.02, "fraction": 0.06, "aspect": 25, "location": where}
    figure.colorbar(image, ax=axes, label=label, extend=extend, **options)


def draw_outlines(axes: Axes, maps: xr.Dataset, labels: NDArray[Any], **options: Any) -> None:
    """Lines along the pixel edges where a label changes, so that neighbours stay apart."""
    from matplotlib.collections import LineCollection

    scale, _ = length_scale(maps)
    ny, nx = labels.shape
    (bottom, top), (left, right) = (_edges(maps[dim].values) * scale for dim in ("y", "x"))
    y = np.linspace(float(bottom), float(top), ny + 1)
    x = np.linspace(float(left), float(right), nx + 1)
    row, column = np.nonzero(labels[1:] != labels[:-1])
    level = [np.stack([x[column], y[row + 1], x[column + 1], y[row + 1]], axis=1)]
    row, column = np.nonzero(labels[:, 1:] != labels[:, :-1])
    level.append(np.stack([x[column + 1], y[row], x[column + 1], y[row + 1]], axis=1))
    lines = np.concatenate(level).reshape(-1, 2, 2)
    drawn = LineCollection(list(lines), capstyle="projecting", **options)
    # More short lines than that make a drawing of tens of megabytes.
    drawn.set_rasterized(len(lines) > MOST_VECTOR_LINES)
    axes.add_collection(drawn, autolim=False)


def line_scale(labels: NDArray[Any]) -> float:
    """Factor for the width of outlines: thin ones where particles are small on the page."""
    count = max(np.unique(labels).size - 1, 1)
    size = np.sqrt(np.count_nonzero(labels) / count)
    return float(np.clip(20 * size / max(labels.shape), 0.2, 1.0))


def limits_of(values: FloatArray, step: float, narrowest: float) -> tuple[float, float]:
    """Colour limits: the central 98 % of the values, rounded outwards to steps."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, narrowest
    low, high = np.percentile(values, (1, 99))
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step
    if high - low < narrowest:
        middle = (high + low) / 2
        low, high = middle - narrowest / 2, middle + narrowest / 2
    return float(low), float(high)


def extension(values: FloatArray, limits: tuple[float, float]) -> str:
    """Ends of the colour bar that values run over."""
    below = bool(np.any(values < limits[0]))
    above = bool(np.any(values > limits[1]))
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def round_step(high: float) -> float:
    """A round step about a tenth of a value, for colour limits."""
    return float(10 ** np.floor(np.log10(high / 2))) if high > 0 else 1.0


def reliable_pixels(
    maps: xr.Dataset,
    fraction: str,
    *,
    max_error: float = 0.2,
    min_thickness_share: float = 0.05,
    hide_rejected: bool = False,
) -> NDArray[np.bool_]:
    """Pixels whose fraction is worth drawing.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        The result's ``maps``.
    fraction : str
        The component.
    max_error : float
        Largest 1 sigma error of the fraction.
    min_thickness_share : float
        Least thickness, relative to the 99th percentile of the field; where the thickness has an
        error, three of these are asked for as well.
    hide_rejected : bool
        Leave out the pixels that the model does not describe (flag ``model_rejected``).

    Returns
    -------
    ndarray of bool, shape (ny, nx)
    """
    values = np.asarray(maps[f"{fraction}_fraction"].values)
    good: NDArray[np.bool_] = np.isfinite(values)
    if f"{fraction}_fraction_errors" in maps:
        errors = np.asarray(maps[f"{fraction}_fraction_errors"].values)
        good &= np.isfinite(errors) & (errors <= max_error)
    if "thickness" in maps:
        good &= _thick_enough(maps, min_thickness_share)
    if "flags" in maps:
        bits = FLAGS["no_data"] | FLAGS["dead"]
        bits |= FLAGS["model_rejected"] if hide_rejected else 0
        good &= (np.asarray(maps["flags"].values) & bits) == 0
    return good


def _thick_enough(maps: xr.Dataset, share: float) -> NDArray[np.bool_]:
    """Pixels thicker than a share of the thickest and than three of their errors."""
    thickness = np.nan_to_num(np.asarray(maps["thickness"].values), nan=-np.inf)
    finite = thickness[np.isfinite(thickness)]
    least = share * float(np.percentile(finite, 99)) if finite.size else np.inf
    thick: NDArray[np.bool_] = thickness > least
    if "thickness_errors" in maps:
        thick &= thickness > 3 * np.asarray(maps["thickness_errors"].values)
    return thick


@styled
def fraction_map(
    tree: xr.DataTree,
    *,
    group: str = "maps",
    max_error: float = 0.2,
    hide_rejected: bool = False,
    outlines: bool = True,
) -> Figure | None:
    """Map of the fraction (``mn3_fraction`` as a rule), masked where it says nothing.

    Parameters
    ----------
    tree : DataTree
        A result.
    group : str
        The group of maps.
    max_error : float
        Pixels with a larger 1 sigma error are left out, as are thin ones.
    hide_rejected : bool
        Also leave out the pixels that the model does not describe.
    outlines : bool
        Draw the outlines of the particles.

    Returns
    -------
    Figure or None
        None where the result has no fraction.
    """
    maps = overview_of(tree, group)
    fraction = fraction_of_maps(tree, maps)
    if maps is None or f"{fraction}_fraction" not in maps:
        return None
    good = reliable_pixels(maps, fraction, max_error=max_error, hide_rejected=hide_rejected)
    if not good.any():
        return note_figure("No pixel is thick enough for a fraction.")
    values = np.where(good, maps[f"{fraction}_fraction"].values, np.nan)
    limits = limits_of(values, 0.05, 0.1)
    figure = new_figure(*map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = draw_map(axes, maps, values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    if outlines and "particle_label" in maps:
        labels = maps["particle_label"].values
        width = line_scale(labels)
        draw_outlines(axes, maps, labels, colors="white", linewidths=1.4 * width)
        draw_outlines(axes, maps, labels, colors=INK, linewidths=0.5 * width)
    colour_bar(axes, image, f"{component_label(fraction)} fraction", extension(values, limits))
    return figure


@styled
def thickness_map(tree: xr.DataTree, *, group: str = "maps") -> Figure | None:
    """Map of the thickness, unconstrained; of the optical density where there is none.

    A stack without references gives no thickness but a mean optical density.

    Parameters
    ----------
    tree : DataTree
        A result.
    group : str
        The group of maps.

    Returns
    -------
    Figure or None
        None where the result has neither.
    """
    maps = overview_of(tree, group)
    if maps is None or not {"thickness", "mean_od"} & set(maps):
        return None
    shown = "thickness" if "thickness" in maps else "mean_od"
    values = np.asarray(maps[shown].values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    high = float(np.percentile(finite, 99.5)) if finite.size else 1.0
    step = round_step(high)
    limits = (0.0, max(float(np.ceil(high / step) * step), step))
    figure = new_figure(*map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = draw_map(axes, maps, values, cmap="cividis", vmin=limits[0], vmax=limits[1])
    name = "thickness" if shown == "thickness" else "mean optical density"
    label = f"{name}{units_of(maps[shown])}"
    colour_bar(axes, image, label, extension(values, (-np.inf, limits[1])))
    return figure


@styled
def chi2_map(tree: xr.DataTree, *, group: str = "maps") -> Figure | None:
    """Map of chi-squared per degree of freedom; outlined where the model is rejected.

    Parameters
    ----------
    tree : DataTree
        A result.
    group : str
        The group of maps.

    Returns
    -------
    Figure or None
        None where the result has no chi2.
    """
    maps = overview_of(tree, group)
    if maps is None or "chi2" not in maps:
        return None
    values = np.asarray(maps["chi2"].values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    high = float(np.percentile(finite, 99)) if finite.size else 2.0
    limits = (0.0, max(float(np.ceil(high * 2) / 2), 2.0))
    figure = new_figure(*map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = draw_map(axes, maps, values, cmap="magma", vmin=limits[0], vmax=limits[1])
    if "particle_label" in maps:
        labels = maps["particle_label"].values
        draw_outlines(axes, maps, labels, colors="white", linewidths=0.6 * line_scale(labels))
    colour_bar(axes, image, "χ² per degree of freedom", extension(values, limits))
    return figure


def _distinct_colours(count: int) -> list[tuple[float, float, float]]:
    """Colours for labels: neighbours in the list differ clearly in hue."""
    golden = 0.61803398875
    return [
        colorsys.hls_to_rgb((0.58 + golden * i) % 1.0, (0.62, 0.74, 0.55)[i % 3], 0.5)
        for i in range(count)
    ]


def _label_image(labels: NDArray[Any], unused: set[int]) -> FloatArray:
    """Labels as RGBA: a colour each, grey for what is not used, nothing for the background."""
    present = np.unique(labels)
    colours = np.zeros((present.size, 4))
    for index, (number, colour) in enumerate(
        zip(present, _distinct_colours(present.size), strict=True)
    ):
        if number > 0:
            colours[index] = (0.72, 0.72, 0.72, 1.0) if int(number) in unused else (*colour, 1.0)
    return np.asarray(colours[np.searchsorted(present, labels)])


@styled
def label_map(tree: xr.DataTree, *, group: str = "maps") -> Figure | None:
    """Particles with their numbers, and the outlines of the agglomerates they belong to.

    Parameters
    ----------
    tree : DataTree
        A result.
    group : str
        The group of maps.

    Returns
    -------
    Figure or None
        None where the result has no labels.
    """
    maps = overview_of(tree, group)
    if maps is None or "particle_label" not in maps:
        return None
    labels = np.asarray(maps["particle_label"].values)
    if not np.any(labels > 0):
        return note_figure("No particles were found.")
    particles = group_of(tree, "particles")
    unused: set[int] = set()
    if particles is not None and "used" in particles:
        unused = {int(n) for n in particles["particle"].values[~particles["used"].values]}
    figure = new_figure(*map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = _label_image(labels, unused)
    draw_map(axes, maps, np.where(image[..., 3:] > 0, image, 1.0))
    if "agglomerate_label" in maps:
        outer = maps["agglomerate_label"].values
        draw_outlines(axes, maps, outer, colors=INK, linewidths=line_scale(labels))
    _number_particles(axes, maps, labels)
    if unused:
        axes.set_title(f"{np.unique(labels[labels > 0]).size} particles; grey: left out")
    return figure


def _number_particles(axes: Axes, maps: xr.Dataset, labels: NDArray[Any]) -> None:
    """Numbers at the centroids, unless there are too many to read."""
    from matplotlib.patheffects import withStroke
    from scipy import ndimage

    present = np.unique(labels[labels > 0])
    if present.size > MOST_NUMBERED_PARTICLES:
        return
    scale, _ = length_scale(maps)
    centres = ndimage.center_of_mass(labels > 0, labels, present)
    y = np.interp([c[0] for c in centres], np.arange(labels.shape[0]), maps["y"].values) * scale
    x = np.interp([c[1] for c in centres], np.arange(labels.shape[1]), maps["x"].values) * scale
    size = 8.5 if present.size <= 30 else 6.5
    for number, row, column in zip(present, y, x, strict=True):
        text = axes.text(
            column, row, str(number), ha="center", va="center", fontsize=size, color=INK
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
