"""What every figure is drawn on and with: the style, groups of a tree, labels, files."""

from __future__ import annotations

import functools
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__: list[str] = []

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
#: Models, and the verdicts that are no model.
MODEL_COLOURS = {
    "diffusion": RED,
    "core-shell": BLUE,
    "surface-exchange": PURPLE,
    "diffusion-skin": ORANGE,
    "no gradient": GREEN,
    "undecided": GREY,
}
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

#: The label of what joins or fills data that are drawn by themselves.
DECORATION = "_decoration"
#: The gid of a figure that only says why there is nothing to see.
NOTE = "note"
WIDTH_IN = 6.6
#: One and two columns of a journal, 89 and 183 mm.
SINGLE_IN, DOUBLE_IN = 89 / 25.4, 183 / 25.4
#: Text stays text in files of drawings, and the same figure is the same file.
FILE_STYLE: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "spectromap"}
UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
DPI = 200
#: Maps are drawn with at most so many pixels a side: a page shows no more.
MOST_DRAWN_PIXELS = 1600


#: The style is one for the whole program, so figures are drawn one after another.
_STYLING = threading.RLock()


def styled(
    draw: Callable[Concatenate[xr.DataTree, Options], Figure | None],
) -> Callable[Concatenate[xr.DataTree, Options], Figure | None]:
    """Draw in the style of this module, whatever the user's own settings are."""

    @functools.wraps(draw)
    def drawn(
        tree: xr.DataTree, /, *args: Options.args, **options: Options.kwargs
    ) -> Figure | None:
        import matplotlib.style

        with _STYLING, matplotlib.style.context(["default", STYLE]):
            return draw(tree, *args, **options)

    return drawn


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """An empty figure with its own canvas; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine(layout)
    FigureCanvasAgg(figure)
    return figure


def note_figure(text: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure = new_figure(WIDTH_IN, 1.1)
    figure.set_gid(NOTE)
    figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=11)
    return figure


def group_of(tree: xr.DataTree, name: str) -> xr.Dataset | None:
    """A group of the result, or None where it is missing or has no variables."""
    entry = tree.children.get("entry")
    node = None if entry is None else entry.children.get(name)
    if node is None or not node.data_vars:
        return None
    return node.to_dataset()


def overview_of(tree: xr.DataTree, name: str) -> xr.Dataset | None:
    """A group of maps with no more pixels than a figure can show: every n-th of large ones."""
    maps = group_of(tree, name)
    if maps is None:
        return None
    step = max(1, *(-(-size // MOST_DRAWN_PIXELS) for size in maps.sizes.values()))
    first = slice(step // 2, None, step)
    return maps.isel(y=first, x=first) if step > 1 else maps


def numbers_of(dataset: xr.Dataset, name: str) -> FloatArray:
    """Values as float64, NaN throughout where the variable is missing along its usual dims."""
    if name not in dataset:
        first = next(iter(dataset.sizes.values()), 0)
        return np.full(first, np.nan)
    return np.asarray(dataset[name].values, dtype=np.float64)


def errors_of(dataset: xr.Dataset, name: str) -> FloatArray:
    """1 sigma errors of a variable, NaN where it has none."""
    if f"{name}_errors" in dataset:
        return numbers_of(dataset, f"{name}_errors")
    return np.full_like(numbers_of(dataset, name), np.nan)


def texts_of(dataset: xr.Dataset, name: str) -> list[str]:
    """Values of a text variable along its only dim; empty strings where it is missing."""
    if name not in dataset:
        return [""] * next(iter(dataset.sizes.values()), 0)
    return [str(value) for value in np.atleast_1d(dataset[name].values)]


def units_of(array: xr.DataArray) -> str:
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
    groups = [group_of(tree, name) for name in ("maps", "profiles", "particles")]
    for dataset in filter(None, groups):
        if dataset.attrs.get("fraction"):
            return str(dataset.attrs["fraction"])
        for name in dataset.data_vars:
            if str(name).endswith("_fraction"):
                return str(name).removesuffix("_fraction")
    return ""


def fraction_of_maps(tree: xr.DataTree, maps: xr.Dataset | None) -> str:
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
        save_as(figure, file, file.suffix.lstrip(".").lower(), dpi, tight=True)
    except OSError as error:
        raise FileError(f"the figure could not be written ({error})", where=file) from error
    return file


def save_as(figure: Figure, file: Path, form: str, dpi: int, *, tight: bool = False) -> None:
    """Write a figure in a format; `tight` cuts its white margins, and with them its width."""
    import matplotlib as mpl

    options: dict[str, Any] = {"metadata": UNDATED[form]} if form in UNDATED else {}
    if tight:
        options |= {"bbox_inches": "tight", "pad_inches": 0.06}
    with mpl.rc_context(FILE_STYLE):
        figure.savefig(file, format=form, dpi=dpi, **options)


def other_maps(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Groups of maps of other edges, reduced as by `overview_of`, by their names in the run."""
    entry = tree.children.get("entry")
    found: dict[str, xr.Dataset] = {}
    mapped = fraction_name(tree)
    for name in [] if entry is None else entry.children:
        maps = overview_of(tree, name) if name.startswith("maps_") else None
        fraction = "" if maps is None else str(maps.attrs.get("fraction", ""))
        if maps is not None and f"{fraction}_fraction" in maps and fraction != mapped:
            found[name.removeprefix("maps_")] = maps
    return found


def draw_cloud(
    axes: Axes, x: FloatArray, y: FloatArray, errors: FloatArray, *, most: int, **options: Any
) -> None:
    """Particles as points with error bars: fainter and smaller where there are hundreds.

    `most` is how many the axes hold in all.
    """
    look: dict[str, Any] = {"alpha": 0.85, "markersize": 4.0}
    if most >= 60:
        look = {"alpha": 0.5, "markersize": 3.0, "markeredgewidth": 0}
    if most >= 200:
        look = {"alpha": 0.28, "markersize": 2.2, "markeredgewidth": 0}
    draw_points(axes, x, y, errors, **look | options)


def draw_points(axes: Axes, x: Any, y: FloatArray, errors: FloatArray, **options: Any) -> None:
    """Points with error bars where there are errors."""
    bars = np.where(np.isfinite(errors), errors, 0.0)
    defaults: dict[str, Any] = {"color": INK, "markersize": 3.2, "elinewidth": 0.8}
    defaults |= {"marker": "o", "linestyle": "none"}
    axes.errorbar(x, y, yerr=bars, **defaults | options)
