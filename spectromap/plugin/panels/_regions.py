"""Regions of the field: the shapes and labels that somebody drew, as masks of a stack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.plugin._layers import axis_step
from spectromap.plugin._shown import ROLE

__all__ = [
    "box_of",
    "emitters",
    "is_box",
    "label_mask",
    "pixels",
    "polygon_mask",
    "selected",
    "shapes_mask",
]

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

#: An ellipse is a polygon of so many corners: its area is right to 0.03 %.
ELLIPSE_CORNERS = 180
#: Kinds of shapes that have an inside.
FILLED = ("rectangle", "ellipse", "polygon")


def polygon_mask(corners: Any, shape: tuple[int, int]) -> Mask:
    """Pixels whose centres lie in a polygon.

    Parameters
    ----------
    corners : array_like, shape (n, 2)
        y and x of the corners in pixels, pixel centres being at whole numbers. Where the sides
        cross, the inside is what has an odd number of sides around it.
    shape : tuple of int
        ``ny, nx`` of the mask.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        Of polygons that share a side, a centre on it belongs to one only.
    """
    points = np.asarray(corners, dtype=np.float64)
    flips = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    for (ya, xa), (yb, xb) in zip(points, np.roll(points, -1, axis=0), strict=True):
        rows = np.arange(max(np.ceil(min(ya, yb)), 0), min(np.ceil(max(ya, yb)), shape[0]))
        if not rows.size or ya == yb:
            continue
        crossings = xa + (rows - ya) * (xb - xa) / (yb - ya)
        columns = np.clip(np.ceil(crossings), 0, shape[1]).astype(np.intp)
        np.add.at(flips, (rows.astype(np.intp), columns), 1)
    return np.asarray(np.cumsum(flips, axis=1)[:, :-1] % 2 == 1)


def shapes_mask(layer: Any, numbers: Iterable[int], image: xr.DataArray) -> Mask:
    """Pixels of an image whose centres lie in shapes of a layer, wherever that layer lies.

    Parameters
    ----------
    layer : napari.layers.Shapes
        The drawn shapes; lines and paths have no inside.
    numbers : iterable of int
        Which shapes; together they are one region.
    image : DataArray, dims (..., y, x)
        The image, ``y`` and ``x`` in nm.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
    """
    shape = (image.sizes["y"], image.sizes["x"])
    inside = np.zeros(shape, dtype=bool)
    for number in numbers:
        kind = str(layer.shape_type[number])
        if kind not in FILLED:
            continue
        corners = layer.data[number]
        if kind == "ellipse":
            corners = _around(np.asarray(corners, dtype=np.float64))
        world = np.array([layer.data_to_world(corner)[-2:] for corner in corners])
        inside |= polygon_mask(pixels(world, image), shape)
    return inside


def _around(box: Values) -> Values:
    """Corners along an ellipse that is given by the corners of the box around it."""
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    middle = box.mean(axis=0)
    along, across = (box[1] - box[0]) / 2, (box[3] - box[0]) / 2
    return np.asarray(middle + np.cos(angle) * along + np.sin(angle) * across)


def pixels(world: Values, image: xr.DataArray) -> Values:
    """Places in nm as places in pixels of an image."""
    start = np.array([float(image[dim].values[0]) for dim in ("y", "x")])
    step = np.array([axis_step(image, dim) for dim in ("y", "x")])
    return np.asarray((world - start) / step)


def label_mask(layer: Any, label: int, image: xr.DataArray, point: Sequence[float] = ()) -> Mask:
    """Pixels of an image whose centres have a label in a layer, wherever that layer lies.

    Parameters
    ----------
    layer : napari.layers.Labels
        The painted labels.
    label : int
        Which of them.
    image : DataArray, dims (..., y, x)
        The image, ``y`` and ``x`` in nm.
    point : sequence of float
        Where the sliders are; of labels with an axis of energy this frame is taken.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
    """
    ny, nx = image.sizes["y"], image.sizes["x"]
    origin = [float(image[dim].values[0]) for dim in ("y", "x")]
    steps = [axis_step(image, dim) for dim in ("y", "x")]
    before = list(point)[: max(layer.ndim - 2, 0)]

    def place(y: float, x: float) -> Values:
        at = layer.world_to_data([*before, origin[0] + y * steps[0], origin[1] + x * steps[1]])
        return np.asarray(at, dtype=np.float64)

    start, down, right = place(0, 0), place(1, 0), place(0, 1)
    rows, columns = (
        np.rint(
            start[axis]
            + (down - start)[axis] * np.arange(ny)[:, None]
            + (right - start)[axis] * np.arange(nx)
        ).astype(np.intp)
        for axis in (-2, -1)
    )
    frame = np.asarray(layer.data[tuple(round(index) for index in start[:-2])])
    within = (rows >= 0) & (rows < frame.shape[0]) & (columns >= 0) & (columns < frame.shape[1])
    inside = np.zeros((ny, nx), dtype=bool)
    inside[within] = frame[rows[within], columns[within]] == label
    return inside


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """The smallest box around a mask that is not empty: y0, y1, x0, x1, half open."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def is_box(mask: Mask) -> bool:
    """Whether a mask is all of the box around it."""
    y0, y1, x0, x1 = box_of(mask)
    return int(mask.sum()) == (y1 - y0) * (x1 - x0)


def emitters(layer: Any) -> list[Any]:
    """What tells that a region of a layer has changed; nothing for layers without regions."""
    from napari.layers import Labels, Shapes

    names: tuple[str, ...] = ()
    if isinstance(layer, Shapes):
        names = ("data", "highlight")
    elif isinstance(layer, Labels):
        names = ("data", "paint", "labels_update", "selected_label")
    return [getattr(layer.events, name) for name in names]


def selected(layer: Any, stack: xr.DataArray, point: Sequence[float]) -> tuple[str, Mask]:
    """The shapes or the label that are selected in a layer; of shapes else the last one drawn."""
    from napari.layers import Labels

    if isinstance(layer, Labels):
        label = int(layer.selected_label)
        known = layer.metadata.get(ROLE) == "particles"
        name = f"particle {label}" if known else f"{layer.name} {label}"
        return name, label_mask(layer, label, stack, point)
    last = [layer.nshapes - 1] if layer.nshapes else []
    numbers = sorted(layer.selected_data) or last
    name = f"{layer.name} {', '.join(str(number + 1) for number in numbers)}"
    return name, shapes_mask(layer, numbers, stack)
