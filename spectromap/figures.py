"""From a result tree to matplotlib figures: the same for report, command line and notebooks.

Every function takes the tree of a run and returns a new `matplotlib.figure.Figure`, or None where
the tree has not got what it would draw. A group that is there but empty, such as the particles of
a field without any, gives a figure that says so. Nothing here touches pyplot or any other global
state. Maps are drawn with y upwards; error bars are 1 sigma unless the axis says otherwise.
"""

from __future__ import annotations

import colorsys
import functools
import io
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._numerics import robust_std
from spectromap.schema import FLAGS, PLACES, FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = [
    "FIGURES",
    "D_figure",
    "chi2_map",
    "component_label",
    "fraction_map",
    "fraction_name",
    "heterogeneity_figure",
    "i0_figure",
    "label_map",
    "mean_spectrum",
    "particle_fits",
    "profiles_figure",
    "reliable_pixels",
    "save_figure",
    "shifts_figure",
    "thickness_map",
    "to_png",
    "truth_comparison",
]

FloatArray = NDArray[np.floating[Any]]
Options = ParamSpec("Options")

STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "errorbar.capsize": 0.0,
    "figure.facecolor": "white",
    "image.interpolation": "nearest",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}
# Colours that readers with any colour vision tell apart (Okabe and Ito, 2008).
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
INK, GREY, PALE = "#222222", "#808080", "#ececec"
MODEL_LINES: dict[str, tuple[str, str]] = {"diffusion": (RED, "-"), "core-shell": (BLUE, "--")}
VERDICT_COLOURS = {"diffusion": RED, "core-shell": BLUE, "undecided": GREY, "no gradient": GREEN}
PLACE_COLOURS = dict(zip(PLACES, (RED, ORANGE, BLUE), strict=True))
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

#: The gid of a figure that only says why there is nothing to see.
NOTE = "note"
#: From this extent of a field on its axes are in um.
MICROMETRES_FROM_NM = 3000.0
WIDTH_IN = 6.6
MAP_WIDTH_IN = 5.0
DPI = 200
MOST_NUMBERED_PARTICLES = 80
#: Maps are drawn with at most so many pixels a side: a page shows no more.
MOST_DRAWN_PIXELS = 1200
MOST_PROFILES = 8


# --- what every figure needs -------------------------------------------------------------------


def _styled(
    draw: Callable[Concatenate[xr.DataTree, Options], Figure | None],
) -> Callable[Concatenate[xr.DataTree, Options], Figure | None]:
    """Draw in the style of this module, whatever the user's own settings are."""

    @functools.wraps(draw)
    def drawn(
        tree: xr.DataTree, /, *args: Options.args, **options: Options.kwargs
    ) -> Figure | None:
        import matplotlib.style

        with matplotlib.style.context(["default", STYLE]):
            return draw(tree, *args, **options)

    return drawn


def _new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """An empty figure with its own canvas; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine(layout)
    FigureCanvasAgg(figure)
    return figure


def _note(text: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure = _new_figure(WIDTH_IN, 1.1)
    figure.set_gid(NOTE)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=11)
    return figure


def _group(tree: xr.DataTree, name: str) -> xr.Dataset | None:
    """A group of the result, or None where it is missing or has no variables."""
    entry = tree.children.get("entry")
    node = None if entry is None else entry.children.get(name)
    if node is None or not node.data_vars:
        return None
    return node.to_dataset()


def _overview(tree: xr.DataTree, name: str) -> xr.Dataset | None:
    """A group of maps with no more pixels than a figure can show: every n-th of large ones."""
    maps = _group(tree, name)
    if maps is None:
        return None
    step = max(1, *(-(-size // MOST_DRAWN_PIXELS) for size in maps.sizes.values()))
    first = slice(step // 2, None, step)
    return maps.isel(y=first, x=first) if step > 1 else maps


def _numbers(dataset: xr.Dataset, name: str) -> FloatArray:
    """Values as float64, NaN throughout where the variable is missing along its usual dims."""
    if name not in dataset:
        first = next(iter(dataset.sizes.values()), 0)
        return np.full(first, np.nan)
    return np.asarray(dataset[name].values, dtype=np.float64)


def _errors(dataset: xr.Dataset, name: str) -> FloatArray:
    """1 sigma errors of a variable, NaN where it has none."""
    if f"{name}_errors" in dataset:
        return _numbers(dataset, f"{name}_errors")
    return np.full_like(_numbers(dataset, name), np.nan)


def _texts(dataset: xr.Dataset, name: str) -> list[str]:
    """Values of a text variable along its only dim; empty strings where it is missing."""
    if name not in dataset:
        return [""] * next(iter(dataset.sizes.values()), 0)
    return [str(value) for value in np.atleast_1d(dataset[name].values)]


def _units(array: xr.DataArray) -> str:
    """Units in brackets for a label; nothing for a pure number."""
    units = str(array.attrs.get("units", ""))
    if units in ("", "1"):
        return ""
    pretty = re.sub(r"(?<=[a-zA-Z])-(\d)", lambda m: "⁻" + m[1].translate(SUPERSCRIPTS), units)
    pretty = re.sub(r"(?<=[a-zA-Z])(\d)", lambda m: m[1].translate(SUPERSCRIPTS), pretty)
    return f" [{pretty}]"


def component_label(name: str) -> str:
    """How a component is written for the eye.

    Parameters
    ----------
    name : str
        Name in the run description, such as ``mn3``.

    Returns
    -------
    str
        ``Mn³⁺`` for a transition metal and its valence; any other name as it is.
    """
    match = re.fullmatch(r"(ti|v|cr|mn|fe|co|ni|cu)([1-7])", name.lower())
    if match is None:
        return name
    return match[1].capitalize() + match[2].translate(SUPERSCRIPTS) + "⁺"


def fraction_name(tree: xr.DataTree) -> str:
    """Name of the component whose fraction a result maps.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    str
        Such as ``mn3``; empty where the result has no fraction.
    """
    groups = [_group(tree, name) for name in ("maps", "profiles", "particles")]
    for dataset in filter(None, groups):
        if dataset.attrs.get("fraction"):
            return str(dataset.attrs["fraction"])
        for name in dataset.data_vars:
            if str(name).endswith("_fraction"):
                return str(name).removesuffix("_fraction")
    return ""


def _map_fraction(tree: xr.DataTree, maps: xr.Dataset | None) -> str:
    """The component of one group of maps; each edge has its own."""
    named = "" if maps is None else str(maps.attrs.get("fraction", ""))
    return named or fraction_name(tree)


def to_png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as the bytes of a PNG file.

    Parameters
    ----------
    figure : Figure
        Any figure of this module.
    dpi : int
        Pixels per inch.

    Returns
    -------
    bytes
        The file.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = DPI) -> Path:
    """Write a figure; the ending of the name tells the format (png, svg, pdf).

    Parameters
    ----------
    figure : Figure
        Any figure of this module.
    path : path-like
        The file.
    dpi : int
        Pixels per inch of a PNG.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileError
        An ending that is no figure format, or a file that cannot be written.
    """
    file = Path(path)
    known = sorted(figure.canvas.get_supported_filetypes())
    if file.suffix.lstrip(".").lower() not in known:
        raise FileError(
            f"'{file.suffix}' is no figure format", where=file, remedy=f"Use {', '.join(known)}."
        )
    try:
        figure.savefig(file, dpi=dpi, bbox_inches="tight", pad_inches=0.06)
    except OSError as error:
        raise FileError(f"the figure could not be written ({error})", where=file) from error
    return file


# --- maps --------------------------------------------------------------------------------------


def _map_size(maps: xr.Dataset, panels: int = 1) -> tuple[float, float]:
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


def _length_scale(maps: xr.Dataset) -> tuple[float, str]:
    """Factor from nm to the unit of the axes, and that unit."""
    extent = max(float(np.ptp(_edges(maps[dim].values))) for dim in ("y", "x"))
    return (1e-3, "µm") if extent >= MICROMETRES_FROM_NM else (1.0, "nm")


def _nice_length(extent: float) -> float:
    """1, 2 or 5 times a power of ten, about a fifth of an extent."""
    target = extent / 5
    power = 10 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * 1.0001))


def _draw_map(
    axes: Axes,
    maps: xr.Dataset,
    values: FloatArray,
    *,
    bar: bool = True,
    labels: bool = True,
    **options: Any,
) -> AxesImage:
    """A map with y upwards, its axes in nm or um and a scale bar; NaN is pale grey."""
    scale, unit = _length_scale(maps)
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


def _colour_bar(
    axes: Axes, image: AxesImage, label: str, extend: str = "neither", where: str = "right"
) -> None:
    """A colour bar along the map."""
    figure = axes.get_figure()
    assert figure is not None
    options: dict[str, Any] = {"pad": 0.02, "fraction": 0.06, "aspect": 25, "location": where}
    figure.colorbar(image, ax=axes, label=label, extend=extend, **options)


def _outlines(axes: Axes, maps: xr.Dataset, labels: NDArray[Any], **options: Any) -> None:
    """Lines along the pixel edges where a label changes, so that neighbours stay apart."""
    from matplotlib.collections import LineCollection

    scale, _ = _length_scale(maps)
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
    axes.add_collection(drawn, autolim=False)


def _line_scale(labels: NDArray[Any]) -> float:
    """Factor for the width of outlines: thin ones where particles are small on the page."""
    count = max(np.unique(labels).size - 1, 1)
    size = np.sqrt(np.count_nonzero(labels) / count)
    return float(np.clip(20 * size / max(labels.shape), 0.2, 1.0))


def _limits(values: FloatArray, step: float, narrowest: float) -> tuple[float, float]:
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


def _extension(values: FloatArray, limits: tuple[float, float]) -> str:
    """Ends of the colour bar that values run over."""
    below = bool(np.any(values < limits[0]))
    above = bool(np.any(values > limits[1]))
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def _round_step(high: float) -> float:
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


@_styled
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
    maps = _overview(tree, group)
    fraction = _map_fraction(tree, maps)
    if maps is None or f"{fraction}_fraction" not in maps:
        return None
    good = reliable_pixels(maps, fraction, max_error=max_error, hide_rejected=hide_rejected)
    if not good.any():
        return _note("No pixel is thick enough for a fraction.")
    values = np.where(good, maps[f"{fraction}_fraction"].values, np.nan)
    limits = _limits(values, 0.05, 0.1)
    figure = _new_figure(*_map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = _draw_map(axes, maps, values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    if outlines and "particle_label" in maps:
        labels = maps["particle_label"].values
        width = _line_scale(labels)
        _outlines(axes, maps, labels, colors="white", linewidths=1.4 * width)
        _outlines(axes, maps, labels, colors=INK, linewidths=0.5 * width)
    _colour_bar(axes, image, f"{component_label(fraction)} fraction", _extension(values, limits))
    return figure


@_styled
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
    maps = _overview(tree, group)
    if maps is None or not {"thickness", "mean_od"} & set(maps):
        return None
    shown = "thickness" if "thickness" in maps else "mean_od"
    values = np.asarray(maps[shown].values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    high = float(np.percentile(finite, 99.5)) if finite.size else 1.0
    step = _round_step(high)
    limits = (0.0, max(float(np.ceil(high / step) * step), step))
    figure = _new_figure(*_map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = _draw_map(axes, maps, values, cmap="cividis", vmin=limits[0], vmax=limits[1])
    name = "thickness" if shown == "thickness" else "mean optical density"
    label = f"{name}{_units(maps[shown])}"
    _colour_bar(axes, image, label, _extension(values, (-np.inf, limits[1])))
    return figure


@_styled
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
    maps = _overview(tree, group)
    if maps is None or "chi2" not in maps:
        return None
    values = np.asarray(maps["chi2"].values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    high = float(np.percentile(finite, 99)) if finite.size else 2.0
    limits = (0.0, max(float(np.ceil(high * 2) / 2), 2.0))
    figure = _new_figure(*_map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = _draw_map(axes, maps, values, cmap="magma", vmin=limits[0], vmax=limits[1])
    if "particle_label" in maps:
        labels = maps["particle_label"].values
        _outlines(axes, maps, labels, colors="white", linewidths=0.6 * _line_scale(labels))
    _colour_bar(axes, image, "χ² per degree of freedom", _extension(values, limits))
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


@_styled
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
    maps = _overview(tree, group)
    if maps is None or "particle_label" not in maps:
        return None
    labels = np.asarray(maps["particle_label"].values)
    if not np.any(labels > 0):
        return _note("No particles were found.")
    particles = _group(tree, "particles")
    unused: set[int] = set()
    if particles is not None and "used" in particles:
        unused = {int(n) for n in particles["particle"].values[~particles["used"].values]}
    figure = _new_figure(*_map_size(maps), layout="compressed")
    axes = figure.add_subplot()
    image = _label_image(labels, unused)
    _draw_map(axes, maps, np.where(image[..., 3:] > 0, image, 1.0))
    if "agglomerate_label" in maps:
        outer = maps["agglomerate_label"].values
        _outlines(axes, maps, outer, colors=INK, linewidths=_line_scale(labels))
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
    scale, _ = _length_scale(maps)
    centres = ndimage.center_of_mass(labels > 0, labels, present)
    y = np.interp([c[0] for c in centres], np.arange(labels.shape[0]), maps["y"].values) * scale
    x = np.interp([c[1] for c in centres], np.arange(labels.shape[1]), maps["x"].values) * scale
    size = 8.5 if present.size <= 30 else 6.5
    for number, row, column in zip(present, y, x, strict=True):
        text = axes.text(
            column, row, str(number), ha="center", va="center", fontsize=size, color=INK
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


# --- spectra -----------------------------------------------------------------------------------


@_styled
def mean_spectrum(tree: xr.DataTree) -> Figure | None:
    """Mean optical density of the particles with its fit, the residual, and the references.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no mean spectrum.
    """
    spectra = _group(tree, "spectra")
    if spectra is None or "mean_od" not in spectra:
        return None
    references = [str(n) for n in spectra.data_vars if str(n).startswith("reference_")]
    heights = [3.0, 1.1, 2.0] if references else [3.0, 1.1]
    figure = _new_figure(WIDTH_IN, 1.1 * sum(heights) * 0.82)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    axes = panels[:, 0]
    energy = spectra["energy"].values
    mean, errors = _numbers(spectra, "mean_od"), _errors(spectra, "mean_od")
    _points(axes[0], energy, mean, errors, label=f"mean of absorbing pixels (±1{SIGMA})")
    if "mean_fit" in spectra:
        fit = _numbers(spectra, "mean_fit")
        axes[0].plot(energy, fit, color=RED, label="fit", zorder=3)
        _points(axes[1], energy, mean - fit, errors)
    axes[0].set_ylabel("optical density")
    axes[0].legend(loc="best")
    axes[1].axhline(0, color=RED, linewidth=0.8)
    axes[1].set_ylabel("residual")
    if references:
        _draw_references(axes[2], spectra, references)
    axes[-1].set_xlabel("photon energy [eV]")
    figure.align_ylabels(list(axes))
    return figure


def _points(axes: Axes, x: Any, y: FloatArray, errors: FloatArray, **options: Any) -> None:
    """Points with error bars where there are errors."""
    bars = np.where(np.isfinite(errors), errors, 0.0)
    defaults: dict[str, Any] = {"color": INK, "markersize": 3.2, "elinewidth": 0.8}
    axes.errorbar(x, y, yerr=bars, marker="o", linestyle="none", **defaults | options)


def _draw_references(axes: Axes, spectra: xr.Dataset, names: Sequence[str]) -> None:
    """The reference spectra as the fit used them."""
    lines = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":")]
    for index, name in enumerate(names):
        colour, line = lines[index % len(lines)]
        label = component_label(name.removeprefix("reference_"))
        axes.plot(spectra["energy"], spectra[name], color=colour, linestyle=line, label=label)
    axes.set_ylabel(f"reference{_units(spectra[names[0]])}")
    axes.legend(loc="best", ncols=2 if len(names) > 2 else 1)


@_styled
def i0_figure(tree: xr.DataTree) -> Figure | None:
    """Incident intensity against energy with its 1 sigma error.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no I0.
    """
    spectra = _group(tree, "spectra")
    if spectra is None or "i0" not in spectra:
        return None
    figure = _new_figure(WIDTH_IN, 2.6)
    axes = figure.add_subplot()
    energy, i0 = spectra["energy"].values, _numbers(spectra, "i0")
    errors = np.nan_to_num(_errors(spectra, "i0"))
    axes.fill_between(energy, i0 - errors, i0 + errors, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(energy, i0, color=BLUE, marker="o", markersize=2.5, linewidth=1.0)
    axes.set_xlabel("photon energy [eV]")
    axes.set_ylabel(f"I0{_units(spectra['i0'])}")
    return figure


@_styled
def shifts_figure(tree: xr.DataTree) -> Figure | None:
    """Shift of every frame in y and x with its error, and the confidence of the registration.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no shifts.
    """
    shifts = _group(tree, "shifts")
    if shifts is None or "shift_y" not in shifts:
        return None
    figure = _new_figure(WIDTH_IN, 3.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    energy = shifts["energy"].values
    flagged = np.nan_to_num(_numbers(shifts, "flagged")) > 0
    for name, colour in (("y", BLUE), ("x", ORANGE)):
        values, errors = _numbers(shifts, f"shift_{name}"), _numbers(shifts, f"shift_{name}_errors")
        _points(
            upper, energy[~flagged], values[~flagged], errors[~flagged], color=colour, label=name
        )
        upper.plot(energy[flagged], values[flagged], "x", color=colour, markersize=6)
    for axes in (upper, lower):
        for position in energy[flagged]:
            axes.axvline(position, color=RED, alpha=0.25, linewidth=3, zorder=0)
    upper.axhline(0, color=GREY, linewidth=0.6)
    _limit_shifts(upper, shifts, flagged)
    upper.set_ylabel(f"shift [nm] (±1{SIGMA})")
    title = f"{flagged.sum()} of {energy.size} frames flagged (red)" if flagged.any() else ""
    upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="along")
    upper.set_title(title)
    lower.plot(energy, _numbers(shifts, "confidence"), color=INK, linewidth=1.0)
    lower.set_ylim(0, 1.05)
    lower.set_ylabel("confidence")
    lower.set_xlabel("photon energy [eV]")
    figure.align_ylabels([upper, lower])
    return figure


def _limit_shifts(axes: Axes, shifts: xr.Dataset, flagged: NDArray[np.bool_]) -> None:
    """Limits from the frames that are kept: a failed frame may lie anywhere."""
    kept = np.concatenate([_numbers(shifts, n)[~flagged] for n in ("shift_y", "shift_x")])
    kept = kept[np.isfinite(kept)]
    if kept.size:
        margin = 0.12 * float(np.ptp(kept)) or 1.0
        axes.set_ylim(float(kept.min()) - margin, float(kept.max()) + margin)


# --- profiles and models -----------------------------------------------------------------------


def _profile_order(profiles: xr.Dataset, particles: xr.Dataset | None, name: str) -> list[int]:
    """Positions of the particles that tell most: used ones first, then by the error of a bin."""
    values, errors = _numbers(profiles, name), _errors(profiles, name)
    good = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    information = np.where(good, 1 / np.where(good, errors, 1.0) ** 2, 0.0).sum(axis=1)
    information *= good.sum(axis=1) > 1
    used = _used(profiles, particles)
    order = sorted(range(information.size), key=lambda i: (not used[i], -information[i]))
    return [i for i in order if information[i] > 0]


def _used(profiles: xr.Dataset, particles: xr.Dataset | None) -> NDArray[np.bool_]:
    """Which of the particles with a profile count; all of them where the table does not tell."""
    numbers = profiles["particle"].values
    if particles is None or "used" not in particles:
        return np.ones(numbers.size, dtype=bool)
    flags = dict(zip(particles["particle"].values, particles["used"].values, strict=True))
    return np.array([bool(flags.get(number, False)) for number in numbers])


def _draw_profile(
    axes: Axes, profiles: xr.Dataset, models: xr.Dataset | None, index: int, name: str
) -> None:
    """One measured profile with the fit of every model."""
    distance = profiles["distance"].values
    one = profiles.isel(particle=index)
    _points(axes, distance, _numbers(one, name), _errors(one, name), label="measured")
    number = one["particle"].item()
    if models is None or "fit" not in models or number not in models["particle"].values:
        return
    fits = models.sel(particle=number)
    where = models["distance"].values if "distance" in models.coords else distance
    for model in fits["model"].values:
        colour, line = MODEL_LINES.get(str(model), (GREEN, "-."))
        fit = np.asarray(fits["fit"].sel(model=model).values, dtype=np.float64)
        if np.isfinite(fit).any():
            axes.plot(where, fit, color=colour, linestyle=line, label=str(model), zorder=3)


def _verdict(models: xr.Dataset | None, number: int) -> str:
    """Verdict on a particle; empty where there is none."""
    if models is None or "verdict" not in models or number not in models["particle"].values:
        return ""
    return str(models["verdict"].sel(particle=number).item())


def _profile_limits(profiles: xr.Dataset, name: str, chosen: Sequence[int]) -> tuple[float, float]:
    """Common limits of the profiles, from the bins that say something."""
    values = _numbers(profiles, name)[list(chosen)]
    errors = np.nan_to_num(_errors(profiles, name)[list(chosen)])
    sure = np.isfinite(values) & (errors <= 3 * np.median(errors[np.isfinite(values)]))
    low, high = float((values - errors)[sure].min()), float((values + errors)[sure].max())
    margin = 0.08 * (high - low) or 0.05
    return low - margin, high + margin


@_styled
def profiles_figure(tree: xr.DataTree, *, most: int = MOST_PROFILES) -> Figure | None:
    """Fraction against the distance from the edge: some particles with both fits, and their mean.

    Parameters
    ----------
    tree : DataTree
        A result.
    most : int
        How many particles to draw: those whose profiles are best determined.

    Returns
    -------
    Figure or None
        None where the result has no profiles. Error bars of the particles are 1 sigma; those of
        the mean are the standard error from the scatter between the used particles.
    """
    profiles, particles = _group(tree, "profiles"), _group(tree, "particles")
    fraction = fraction_name(tree)
    name = f"{fraction}_fraction"
    if profiles is None or name not in profiles:
        return None
    order = _profile_order(profiles, particles, name)[:most]
    if not order:
        return _note("No particle is large enough for a profile.")
    models = _group(tree, "models")
    order = sorted(order)
    mean = _mean_profile(profiles, _used(profiles, particles), name)
    panels = len(order) + (mean is not None)
    columns = min(3, panels)
    rows = -(-panels // columns)
    figure = _new_figure(max(2.3 * columns, 4.6), 1.9 * rows + 0.7)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    used = _used(profiles, particles)
    for axes, index in zip(grid, order, strict=False):
        _draw_profile(axes, profiles, models, index, name)
        number = int(profiles["particle"].values[index])
        about = _verdict(models, number) if used[index] else "left out"
        axes.set_title(f"{number}: {about}" if about else f"{number}")
    grid[0].set_ylim(_profile_limits(profiles, name, order))
    grid[0].set_xlim(0, None)
    if mean is not None:
        _draw_mean_profile(grid[len(order)], profiles, mean)
    _finish_grid(figure, grid, panels, columns, component_label(fraction))
    return figure


def _mean_profile(
    profiles: xr.Dataset, used: NDArray[np.bool_], name: str
) -> tuple[FloatArray, FloatArray, int] | None:
    """Mean over the used particles, its standard error, their number; None for less than two."""
    values = _numbers(profiles, name)[used]
    values = values[np.isfinite(values).any(axis=1)]
    count = np.isfinite(values).sum(axis=0)
    if values.shape[0] < 2 or not np.any(count >= 2):
        return None
    filled = np.where(np.isfinite(values), values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(np.isfinite(values), (values - mean) ** 2, 0.0).sum(axis=0)
    errors = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
    enough = count >= 2
    return np.where(enough, mean, np.nan), np.where(enough, errors, np.nan), values.shape[0]


def _draw_mean_profile(
    axes: Axes, profiles: xr.Dataset, mean: tuple[FloatArray, FloatArray, int]
) -> None:
    """The mean profile in its own panel."""
    values, errors, count = mean
    axes.set_facecolor("#f7f7f2")
    _points(axes, profiles["distance"].values, values, errors, color=PURPLE, markersize=4)
    axes.set_title(f"mean of {count} used (± s.e.)")


def _finish_grid(
    figure: Figure, grid: NDArray[Any], panels: int, columns: int, component: str
) -> None:
    """Labels on the outside, the legend above, no empty panels."""
    for axes in grid[panels:]:
        axes.remove()
    for position in range(panels):
        axes = grid[position]
        # The last panel of a column carries the labels, also where the row below is not full.
        if position + columns >= panels:
            axes.tick_params(labelbottom=True)
    figure.supxlabel("distance from the edge [nm]", fontsize=9)
    figure.supylabel(f"{component} fraction (±1{SIGMA})", fontsize=9)
    _common_legend(figure, list(grid[:panels]))


def _common_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above all panels."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4)


@_styled
def particle_fits(tree: xr.DataTree, particle: int | None = None) -> Figure | None:
    """One particle in full: its map, its profile with both fits, the residuals in sigma.

    Parameters
    ----------
    tree : DataTree
        A result.
    particle : int, optional
        Its number; the best determined one by default.

    Returns
    -------
    Figure or None
        None where the result has no profiles, or not of this particle.
    """
    profiles, maps = _group(tree, "profiles"), _group(tree, "maps")
    fraction = fraction_name(tree)
    name = f"{fraction}_fraction"
    if profiles is None or maps is None or name not in profiles or name not in maps:
        return None
    order = _profile_order(profiles, _group(tree, "particles"), name)
    if particle is not None:
        order = [i for i in order if int(profiles["particle"].values[i]) == particle]
    if not order:
        return None if particle is not None else _note("No particle is large enough for a profile.")
    number = int(profiles["particle"].values[order[0]])
    models = _group(tree, "models")
    figure = _new_figure(WIDTH_IN + 0.6, 3.6)
    parts = figure.subfigures(1, 2, width_ratios=[1, 1.15], squeeze=False)
    left, right = parts[0]
    _draw_particle(left.add_subplot(), maps, number, fraction)
    upper, lower = right.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_profile(upper, profiles, models, order[0], name)
    upper.set_ylim(_profile_limits(profiles, name, order[:1]))
    upper.set_ylabel(f"{component_label(fraction)} fraction (±1{SIGMA})")
    upper.set_title(": ".join(filter(None, [f"particle {number}", _verdict(models, number)])))
    upper.legend(loc="best")
    _draw_residuals(lower, profiles, models, order[0], name)
    right.align_ylabels([upper, lower])
    return figure


def _draw_particle(axes: Axes, maps: xr.Dataset, number: int, fraction: str) -> None:
    """The map around one particle."""
    labels = np.asarray(maps["particle_label"].values) if "particle_label" in maps else None
    shown = maps
    if labels is not None and np.any(labels == number):
        shown = maps.isel(_square_around(labels == number))
    good = reliable_pixels(shown, fraction, min_thickness_share=0.02)
    values = np.where(good, shown[f"{fraction}_fraction"].values, np.nan)
    limits = _limits(values, 0.05, 0.1)
    image = _draw_map(axes, shown, values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    if labels is not None:
        outline = (shown["particle_label"].values == number).astype(int)
        _outlines(axes, shown, outline, colors="white", linewidths=1.6)
        _outlines(axes, shown, outline, colors=INK, linewidths=0.6)
    label = f"{component_label(fraction)} fraction"
    _colour_bar(axes, image, label, _extension(values, limits), "top")


def _square_around(inside: NDArray[np.bool_]) -> dict[str, slice]:
    """Rows and columns of a square about a particle, as far as the field goes."""
    places = np.nonzero(inside)
    half = 2 + 0.6 * max(float(np.ptp(place)) for place in places)
    window = {}
    for dim, place in zip(("y", "x"), places, strict=True):
        middle = (float(place.min()) + float(place.max())) / 2
        window[dim] = slice(max(round(middle - half), 0), round(middle + half) + 1)
    return window


def _draw_residuals(
    axes: Axes, profiles: xr.Dataset, models: xr.Dataset | None, index: int, name: str
) -> None:
    """Measured minus fitted in units of sigma, for each model."""
    axes.axhspan(-1, 1, color=PALE, zorder=0)
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_ylabel(f"residual / {SIGMA}")
    axes.set_xlabel("distance from the edge [nm]")
    axes.set_xlim(0, None)
    one = profiles.isel(particle=index)
    number = one["particle"].item()
    if models is None or "fit" not in models or number not in models["particle"].values:
        return
    measured, errors = _numbers(one, name), _errors(one, name)
    for model in models["model"].values:
        fit = np.asarray(models["fit"].sel(particle=number, model=model).values, dtype=float)
        if fit.shape == measured.shape:
            colour, line = MODEL_LINES.get(str(model), (GREEN, "-."))
            pull = (measured - fit) / np.where(errors > 0, errors, np.nan)
            axes.plot(profiles["distance"], pull, color=colour, linestyle=line, marker="o", ms=2.5)


@_styled
def D_figure(tree: xr.DataTree) -> Figure | None:
    """Diffusion coefficient of every particle with its 68 % interval, and the pooled one.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where no diffusion was fitted. Arrows are one-sided limits.
    """
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    models = _group(tree, "models")
    if models is None or "D_cm2_s" not in models:
        return None
    names = [str(m) for m in models["model"].values]
    if "diffusion" not in names:
        return None
    rows = _diffusion_rows(models.isel(model=names.index("diffusion")))
    if not rows:
        return _note("No particle limits the diffusion coefficient.")
    figure = _new_figure(WIDTH_IN, float(np.clip(1.3 + 0.24 * len(rows), 2.4, 9.0)))
    axes = figure.add_subplot()
    low, high = _D_limits(rows, _group(tree, "pooled"))
    axes.set_xlim(low, high)
    axes.set_xscale("log")
    if high / low < 300:  # too few powers of ten to read a value from
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    axes.set_ylim(-0.7, len(rows) - 0.3)
    _draw_pooled(axes, _group(tree, "pooled"))
    for position, row in enumerate(rows):
        _draw_interval(axes, position, row)
    axes.set_xlabel("D [cm² s⁻¹] (68 % intervals)")
    axes.set_ylabel("particle")
    if len(rows) <= 45:
        axes.set_yticks(range(len(rows)), [str(row["particle"]) for row in rows])
    else:
        axes.set_yticks([])
    _D_legend(figure, axes, rows)
    return figure


def _diffusion_rows(diffusion: xr.Dataset) -> list[dict[str, Any]]:
    """Particles whose D is known or limited, in order of D."""
    value, low, high = (_numbers(diffusion, n) for n in ("D_cm2_s", "D_low", "D_high"))
    verdicts = _texts(diffusion, "verdict")
    rows = []
    for index, number in enumerate(diffusion["particle"].values):
        row = _diffusion_row(float(value[index]), float(low[index]), float(high[index]))
        if row:
            rows.append(row | {"particle": int(number), "verdict": verdicts[index]})
    return sorted(rows, key=lambda row: float(row["at"]))


def _diffusion_row(value: float, low: float, high: float) -> dict[str, Any]:
    """Where a value lies and what is known of it; nothing where nothing is known."""
    below, above = (np.isfinite(end) and end > 0 for end in (low, high))
    if below != above:
        at, kind = (high, "upper") if above else (low, "lower")
        return {"kind": kind, "at": at, "low": low, "high": high}
    if not (np.isfinite(value) and value > 0):
        return {}
    if np.isnan(low) and np.isnan(high):
        low = high = value
    return {"kind": "interval", "at": value, "low": low, "high": high} if low > 0 else {}


def _draw_interval(axes: Axes, position: int, row: Mapping[str, Any]) -> None:
    """One particle: a point with its interval, or an arrow away from a limit."""
    colour = VERDICT_COLOURS.get(row["verdict"], GREY)
    if row["kind"] == "interval":
        axes.plot([row["low"], row["high"]], [position] * 2, color=colour, linewidth=1.6)
        face = colour if row["verdict"] == "diffusion" else "white"
        axes.plot(row["at"], position, "o", color=colour, markerfacecolor=face, markersize=5)
        return
    end = row["at"] * (10**-0.35 if row["kind"] == "upper" else 10**0.35)
    axes.plot(row["at"], position, "|", color=colour, markersize=8, markeredgewidth=1.6)
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(end, position), xytext=(row["at"], position), arrowprops=arrow)


def _pooled_interval(pooled: xr.Dataset | None, level: str) -> tuple[float, float] | None:
    """Pooled interval of D in cm2/s; None where there is none."""
    names = [f"log10_D_{side}{level}" for side in ("low", "high")]
    if pooled is None or any(name not in pooled for name in names):
        return None
    low, high = (float(pooled[name]) for name in names)
    return (10**low, 10**high) if np.isfinite(low) and np.isfinite(high) else None


def _draw_pooled(axes: Axes, pooled: xr.Dataset | None) -> None:
    """Bands of the pooled D."""
    for level, shade in (("95", 0.12), ("68", 0.22)):
        interval = _pooled_interval(pooled, level)
        if interval is not None:
            label = f"pooled, {level} %"
            axes.axvspan(*interval, color=RED, alpha=shade, linewidth=0, label=label)
    if pooled is not None and "log10_D" in pooled and np.isfinite(float(pooled["log10_D"])):
        axes.axvline(10 ** float(pooled["log10_D"]), color=RED, linewidth=1.0)


def _D_limits(rows: Sequence[Mapping[str, Any]], pooled: xr.Dataset | None) -> tuple[float, float]:
    """Limits of the D axis; a hopeless particle may run out of the picture."""
    ends = [row[side] for row in rows for side in ("low", "high", "at")]
    ends += list(_pooled_interval(pooled, "95") or ())
    logs = np.log10([end for end in ends if np.isfinite(end) and end > 0])
    middle = float(np.median(np.log10([row["at"] for row in rows])))
    low, high = max(float(logs.min()), middle - 3), min(float(logs.max()), middle + 3)
    return 10 ** (low - 0.5), 10 ** (high + 0.5)


def _D_legend(figure: Figure, axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Colours of the verdicts that occur, and the pooled bands."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    for verdict, colour in VERDICT_COLOURS.items():
        if any(row["verdict"] == verdict for row in rows):
            face = colour if verdict == "diffusion" else "white"
            handles.append(
                Line2D([], [], color=colour, marker="o", markerfacecolor=face, markersize=5)
            )
            labels.append(verdict)
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


# --- heterogeneity -----------------------------------------------------------------------------


@_styled
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
    contrasts, particles = _group(tree, "heterogeneity"), _group(tree, "particles")
    if contrasts is None or "difference" not in contrasts:
        return None
    fraction = fraction_name(tree)
    known = np.isfinite(_numbers(contrasts, "difference"))
    count = 0 if particles is None else particles.sizes.get("particle", 0)
    if not known.any() and count == 0:
        return _note("No particles, so nothing to compare.")
    figure = _new_figure(WIDTH_IN + 1.6, 3.2)
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
    places = np.array(_texts(particles, "place"))
    thickness, values = _numbers(particles, "thickness"), _numbers(particles, name)
    errors = _errors(particles, name)
    for place in sorted(set(places), key=lambda p: PLACES.index(p) if p in PLACES else 9):
        here = places == place
        options = {"color": PLACE_COLOURS.get(place, GREY), "label": place or "all"}
        _points(axes, thickness[here], values[here], errors[here], **options, markersize=4.5)
    axes.margins(0.1)
    axes.legend(loc="best")


def _draw_contrasts(
    axes: Axes, contrasts: xr.Dataset, known: NDArray[np.bool_], fraction: str
) -> None:
    """Differences with intervals, one row each, the first on top."""
    difference, low, high, p = (
        _numbers(contrasts, name) for name in ("difference", "low", "high", "p_value")
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


# --- answer and truth --------------------------------------------------------------------------


@_styled
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
    maps, true = _group(tree, "maps"), _group(truth, "maps")
    if maps is None or true is None:
        return None
    fraction = _map_fraction(tree, maps)
    names = [n for n in (f"{fraction}_fraction", "thickness") if n in maps and n in true]
    if not names:
        return None
    blurred = {name: f"{name}_blurred" for name in names if f"{name}_blurred" in true}
    true = _on_grid(true[[blurred.get(name, name) for name in names]], maps)
    good = None if fraction + "_fraction" not in names else reliable_pixels(maps, fraction)
    wide, high = _map_size(maps, 3)
    figure = _new_figure(wide + 2.2, (high + 0.2) * len(names), layout="compressed")
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
        step = _round_step(float(np.nanmax(true, initial=0.0)))
        limits = (0.0, max(_limits(true, step, step)[1], step))
    else:
        label, colours = f"{component_label(name.removesuffix('_fraction'))} fraction", "viridis"
        answer, true = answer + 0 * difference, true + 0 * difference
        limits = _limits(true, 0.05, 0.1)
    titles = ("answer", "truth" if truth.name == name else "truth, as the optics see it")
    for axes, values, title in zip(panels[:2], (answer, true), titles, strict=True):
        image = _draw_map(
            axes, maps, values, labels=False, cmap=colours, vmin=limits[0], vmax=limits[1]
        )
        axes.set_title(title)
    _colour_bar(panels[1], image, label, _extension(np.append(answer, true), limits))
    _draw_difference(panels[2], maps, difference)


def _draw_difference(axes: Axes, maps: xr.Dataset, difference: FloatArray) -> None:
    """Difference of answer and truth, its median and its scatter."""
    finite = difference[np.isfinite(difference)]
    most = (float(np.percentile(np.abs(finite), 98)) if finite.size else 1.0) or 1.0
    options: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    image = _draw_map(axes, maps, difference, labels=False, bar=False, **options)
    middle = float(np.median(finite)) if finite.size else np.nan
    axes.set_title(f"median {middle:+.2g}, scatter {robust_std(difference):.2g}")
    _colour_bar(axes, image, "answer - truth", _extension(difference, (-most, most)))


#: The figures of a report, in its order; each takes the tree of a result.
FIGURES: dict[str, Callable[[xr.DataTree], Figure | None]] = {
    "fraction_map": fraction_map,
    "thickness_map": thickness_map,
    "chi2_map": chi2_map,
    "label_map": label_map,
    "mean_spectrum": mean_spectrum,
    "profiles": profiles_figure,
    "particle_fits": particle_fits,
    "D": D_figure,
    "heterogeneity": heterogeneity_figure,
    "shifts": shifts_figure,
    "i0": i0_figure,
}
