"""The numbers behind a figure, read from what is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spectromap.figures._canvas import DECORATION, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "figure_images", "figure_rows"]

COLUMNS = (
    "panel",
    "title",
    "series",
    "x_name",
    "x",
    "x_low",
    "x_high",
    "y_name",
    "y",
    "y_low",
    "y_high",
)
Row = dict[str, Any]
#: x, y and the ends of their intervals; NaN where there is none.
_Points = tuple[Any, Any, Any, Any, Any, Any]


def figure_rows(figure: Figure) -> list[Row]:
    """Every point, curve, band and interval of a figure as one row a point.

    Parameters
    ----------
    figure : Figure
        Any figure of this package.

    Returns
    -------
    list of dict
        With the keys `COLUMNS`. ``panel`` counts from 1; ``x_name`` and ``y_name`` are the labels
        of the axes with their units; ``low`` and ``high`` are the ends of the error bar or band,
        empty where there is none. On an axis of names, such as those of contrasts, a value is the
        name. Reference lines, outlines and images are left out (see `figure_images`).
    """
    rows: list[Row] = []
    for number, axes in enumerate(_panels(figure), start=1):
        names = {axis: _axis_name(axes, axis) for axis in "xy"}
        named = {axis: _named(axes, axis) for axis in "xy"}
        title = _one_line(axes.get_title(loc="left") or axes.get_title())
        for series, points in _series(axes):
            for x, y, x_low, x_high, y_low, y_high in zip(*points, strict=True):
                if not (_is_number(x) or _is_number(y)):
                    continue
                rows.append({
                    "panel": number, "title": title, "series": series,
                    "x_name": names["x"], "x": named["x"](x),
                    "x_low": x_low, "x_high": x_high,
                    "y_name": names["y"], "y": named["y"](y),
                    "y_low": y_low, "y_high": y_high,
                })  # fmt: skip
    return rows


def figure_images(figure: Figure) -> dict[int, NDArray[Any]]:
    """Every map of a figure as a table with its axes.

    Parameters
    ----------
    figure : Figure
        Any figure of this package.

    Returns
    -------
    dict of int to ndarray, shape (1 + ny, 1 + nx)
        By panel: x of the pixel centres in the first row, y in the first column, both in the
        units of the axes; NaN where nothing is drawn. Pictures in colours (labels) are left out.
    """
    found = {}
    for number, axes in enumerate(_panels(figure), start=1):
        for image in axes.images:
            values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=np.float64), np.nan)
            if values.ndim != 2:
                continue
            left, right, bottom, top = image.get_extent()
            table = np.full((values.shape[0] + 1, values.shape[1] + 1), np.nan)
            table[0, 1:] = _centres(left, right, values.shape[1])
            table[1:, 0] = _centres(bottom, top, values.shape[0])
            table[1:, 1:] = values
            found[number] = table
    return found


def _centres(first: float, last: float, count: int) -> FloatArray:
    """Centres of so many pixels between two edges."""
    return np.asarray(first + (last - first) * (np.arange(count) + 0.5) / count)


def _panels(figure: Figure) -> list[Axes]:
    """Axes of a figure that are no colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_number(value: Any) -> bool:
    return bool(np.isfinite(value))


def _axis_name(axes: Axes, axis: str) -> str:
    """Label of an axis, its own, that of axes it is shared with, or that of the figure."""
    shared = axes.get_shared_x_axes() if axis == "x" else axes.get_shared_y_axes()
    for one in (axes, *shared.get_siblings(axes)):
        if label := getattr(one, f"get_{axis}label")():
            return _one_line(label)
    figure = axes.get_figure(root=False)
    assert figure is not None
    return _one_line(figure.get_supxlabel() if axis == "x" else figure.get_supylabel())


def _named(axes: Axes, axis: str) -> Callable[[Any], Any]:
    """What stands for a place along an axis: the name of the tick beside it, or the number."""
    from matplotlib.ticker import FixedLocator

    which = axes.xaxis if axis == "x" else axes.yaxis
    locator, formatter = which.get_major_locator(), which.get_major_formatter()
    places = np.asarray(locator() if isinstance(locator, FixedLocator) else [], dtype=np.float64)
    names = [_one_line(formatter(place, number)) for number, place in enumerate(places)]
    if all(name == f"{place:g}" for name, place in zip(names, places, strict=True)):
        return lambda value: value
    return lambda value: names[int(np.argmin(np.abs(places - value)))]


def _name(label: object, kind: str, number: int) -> str:
    """Name of a series: its label, without the underscore that keeps it out of the legend."""
    text = str(label)
    if not text or re.fullmatch(r"_child\d+|_nolegend_", text):
        return f"{kind} {number}"
    return _one_line(text.removeprefix("_"))


def _series(axes: Axes) -> Iterator[tuple[str, _Points]]:
    """Name and points of everything on some axes that carries data."""
    from matplotlib.container import ErrorbarContainer

    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    for number, bar in enumerate(bars, start=1):
        yield _name(bar.get_label(), "points", number), _errorbar(bar)
    parts = {id(bar.lines[0]) for bar in bars}
    lines = [
        line
        for line in axes.lines
        if id(line) not in parts
        and line.get_transform() is axes.transData
        and line.get_label() != DECORATION
    ]
    for number, line in enumerate(lines, start=1):
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data(orig=False))
        none = np.full(x.shape, np.nan)
        yield _name(line.get_label(), "line", number), (x, y, none, none, none, none)
    yield from _bands(axes)


def _errorbar(bar: Any) -> _Points:
    """Points of an error bar and the ends of its bars, in the order of the data."""
    line, _, drawn = bar.lines
    x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data(orig=False))
    none = np.full(x.shape, np.nan)
    ends = {"x": (none, none), "y": (none, none)}
    kinds = [axis for axis, has in (("x", bar.has_xerr), ("y", bar.has_yerr)) if has]
    for axis, collection in zip(kinds, drawn, strict=True):
        segments = np.array(
            [s if len(s) else np.full((2, 2), np.nan) for s in collection.get_segments()]
        ).reshape(-1, 2, 2)
        if len(segments) == x.size:
            low, high = segments[:, 0, "xy".index(axis)], segments[:, 1, "xy".index(axis)]
            known = high > low
            ends[axis] = (np.where(known, low, np.nan), np.where(known, high, np.nan))
    return (x, y, *ends["x"], *ends["y"])


def _bands(axes: Axes) -> Iterator[tuple[str, _Points]]:
    """Filled bands between two curves, and spans with a name."""
    from matplotlib.collections import FillBetweenPolyCollection
    from matplotlib.patches import Rectangle

    filled = [
        c
        for c in axes.collections
        if isinstance(c, FillBetweenPolyCollection) and c.get_label() != DECORATION
    ]
    for number, band in enumerate(filled, start=1):
        for path in band.get_paths():
            vertices: NDArray[Any] = np.asarray(path.vertices, dtype=np.float64)
            count = (len(vertices) - 3) // 2
            # Start, one curve, end, the other curve backwards, start.
            one, other = vertices[1 : 1 + count], vertices[2 + count : 2 + 2 * count][::-1]
            none = np.full(count, np.nan)
            low, high = np.minimum(one[:, 1], other[:, 1]), np.maximum(one[:, 1], other[:, 1])
            name = _name(band.get_label(), "band", number)
            yield name, (one[:, 0], none, none, none, low, high)
    for patch in axes.patches:
        if isinstance(patch, Rectangle) and patch.get_label() not in ("", "_nolegend_"):
            low, wide = patch.get_x(), patch.get_width()
            none = np.full(1, np.nan)
            middle = np.array([low + wide / 2])
            ends = np.array([low]), np.array([low + wide])
            yield _name(patch.get_label(), "span", 0), (middle, none, *ends, none, none)
