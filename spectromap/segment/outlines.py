"""Sub-pixel outlines of labelled particles, and the distance from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import ndimage, spatial

from spectromap.schema import check_map, pixel_size, with_units
from spectromap.segment._grid import (
    NOISE_SHARE,
    Array,
    Crop,
    Labels,
    Mask,
    Pair,
    check_label_map,
    check_length,
    crops,
    filled,
    skimage,
    surface,
    white_noise,
)


@dataclass
class _Ground:
    """What outlines are drawn on: a smooth map and, for every pixel, the nearest particle."""

    labels: Labels
    values: Array
    owner: Labels
    away: Array
    pixel: Pair
    level: float | None


def _ground(labels: Labels, thickness: xr.DataArray, threshold: float | None) -> _Ground:
    """Smooth the thickness for contours at the particles' edges."""
    values, _ = filled(np.asarray(thickness.values, float))
    pixel = pixel_size(thickness)
    noise = white_noise(values)
    if threshold is not None and labels.any():
        far = ndimage.distance_transform_edt(labels == 0) > 3
        values = values - surface(values, far)
    inside = values[labels > 0]
    height = max(float(np.percentile(inside, 85)), 1e-6) if inside.size else 1.0
    width = np.clip(noise / (NOISE_SHARE * height * 2.0 * np.sqrt(np.pi)), 0.9, 1.2)
    smooth = ndimage.gaussian_filter(values, float(width), mode="nearest")
    away, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return _Ground(labels, smooth, labels[tuple(nearest)], away, pixel, threshold)


def _edge_level(values: Array, mine: Mask, empty: Mask) -> tuple[float, float] | None:
    """Level at which a label ends on the background, and the slope there per pixel.

    The level is the median of the values half way between the pixels on the two sides of the free
    edge. None where no edge is free.
    """
    ahead, back, every = slice(1, None), slice(None, -1), slice(None)
    inner, outer = [], []
    for one, other in (((ahead, every), (back, every)), ((every, ahead), (every, back))):
        for here, there in ((one, other), (other, one)):
            face = mine[here] & empty[there]
            inner.append(values[here][face])
            outer.append(values[there][face])
    inside, outside = np.concatenate(inner), np.concatenate(outer)
    if inside.size == 0:
        return None
    slope = max(float(np.median(inside - outside)), 1e-9)
    return float(np.median(0.5 * (inside + outside))), slope


def _edge_field(ground: _Ground, label: int, crop: Crop) -> Array:
    """Signed field that is zero along a particle's edge, in pixels near it.

    Free edges follow the level of the map at which the label ends; where a neighbour touches, and
    where the label does not follow the map (a hand-drawn one), the outline of the label counts.
    """
    mine = ground.labels[crop] == label
    owned = ground.owner[crop] == label
    drawn = ndimage.gaussian_filter(owned.astype(float), 0.7, mode="nearest")
    field = (drawn - 0.5) * 0.7 * np.sqrt(2.0 * np.pi)
    values = ground.values[crop]
    edge = _edge_level(values, mine, owned & (ground.labels[crop] == 0))
    if edge is not None:
        level, slope = edge if ground.level is None else (ground.level, edge[1])
        above = owned & (values > level) & (ground.away[crop] < 3)
        follows = (above & mine).sum() > 0.75 * (above | mine).sum()
        if ground.level is not None or follows:
            free = (values - level) / slope
        else:
            shape = ndimage.gaussian_filter(mine.astype(float), 0.7, mode="nearest")
            free = (shape - 0.5) * 0.7 * np.sqrt(2.0 * np.pi)
        field = np.minimum(field, free)
    return np.asarray(np.minimum(field, 2.5 - ground.away[crop]))


def closed_contour(field: Array, around: Mask) -> Array | None:
    """Closed zero contour (n, 2) of a field, in pixels, that holds most of the given pixels."""
    # Beyond the frame the field changes sign, so that contours close half a pixel outside.
    padded = np.pad(field, 1, mode="edge")
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        padded[edge] = -np.abs(padded[edge]) - 1e-9
    best, most = None, 0.0
    for contour in skimage("measure").find_contours(padded, 0.0):
        if len(contour) < 4 or outline_area(contour) <= most:
            continue
        held = skimage("measure").grid_points_in_poly(padded.shape, contour)[1:-1, 1:-1] & around
        if held.any():
            best, most = contour - 1.0, outline_area(contour)
    return best


def outline_area(outline: Array) -> float:
    """Area inside a closed outline by the shoelace formula, in the square of its units.

    Parameters
    ----------
    outline : ndarray, shape (n, 2)
        Corners (y, x) in order; the last may repeat the first.

    Returns
    -------
    float
        Never negative.
    """
    y, x = outline[:, 0], outline[:, 1]
    return float(0.5 * abs(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1))))


def centroid(outline: Array) -> tuple[float, float]:
    """Centre of the area inside a closed outline, as (y, x)."""
    origin = outline.mean(axis=0)
    y, x = (outline - origin).T
    cross = y * np.roll(x, -1) - x * np.roll(y, -1)
    twice = cross.sum()
    if abs(twice) < 1e-12:
        return float(origin[0]), float(origin[1])
    cy = ((y + np.roll(y, -1)) * cross).sum() / (3.0 * twice)
    cx = ((x + np.roll(x, -1)) * cross).sum() / (3.0 * twice)
    return float(origin[0] + cy), float(origin[1] + cx)


def to_nm(outline: Array, like: xr.DataArray) -> Array:
    """Pixel indices as coordinates (y, x) in nm."""
    dy, dx = pixel_size(like)
    start = np.array([float(like["y"][0]), float(like["x"][0])])
    return np.asarray(start + outline * np.array([dy, dx]))


def outlines(
    labels: xr.DataArray, thickness: xr.DataArray, *, threshold_nm: float | None = None
) -> dict[int, Array]:
    """Sub-pixel outline of every particle.

    Parameters
    ----------
    labels : DataArray, dims (y, x), int
        Particles; 0 is background.
    thickness : DataArray, dims (y, x)
        Thickness [nm].
    threshold_nm : float, optional
        Thickness above the background [nm] at which particles end. Default: for each particle the
        level of the map along its label.

    Returns
    -------
    dict of int to ndarray, shape (n, 2)
        Label to closed polygon of (y, x) in nm. Where two particles touch, it runs between their
        labels; at the border of the map, half a pixel outside of the last row.

    Raises
    ------
    InputError
        Maps in the wrong shape or units.

    Notes
    -----
    Marching squares (W. E. Lorensen and H. E. Cline, Comput. Graph. 21, 163 (1987)) on the lightly
    smoothed thickness.
    """
    check_map(thickness, "nm", name="thickness")
    values = check_label_map(labels, thickness)
    check_length("threshold_nm", threshold_nm)
    ground = _ground(values, thickness, threshold_nm)
    found = {label: polygon for label, _, polygon in _polygons(ground)}
    return {label: to_nm(polygon, thickness) for label, polygon in found.items()}


def _polygons(ground: _Ground) -> Iterator[tuple[int, Crop, Array]]:
    """Every particle's label, crop and outline in pixels of the whole map."""
    for label, crop in crops(ground.labels, 4):
        corner = np.array([crop[0].start, crop[1].start], float)
        mine = ground.labels[crop] == label
        polygon = closed_contour(_edge_field(ground, label, crop), mine)
        if polygon is not None:
            yield label, crop, polygon + corner


def _distance_to(start: Array, end: Array, points: Array) -> Array:
    """Distance of points (n, 2) to the nearest of many short line segments."""
    along = end - start
    square = np.maximum((along**2).sum(axis=1), 1e-30)
    near = min(6, len(start))
    _, sides = spatial.cKDTree(0.5 * (start + end)).query(points, k=near)
    sides = np.asarray(sides).reshape(len(points), near)
    offset = points[:, None] - start[sides]
    part = np.clip((offset * along[sides]).sum(axis=-1) / square[sides], 0.0, 1.0)
    rest = offset - part[..., None] * along[sides]
    return np.asarray(np.sqrt((rest**2).sum(axis=-1)).min(axis=1))


def edge_distance(
    labels: xr.DataArray,
    thickness: xr.DataArray,
    resolution_nm: float | None = None,
    *,
    threshold_nm: float | None = None,
) -> xr.DataArray:
    """Distance of every pixel from the sub-pixel outline of its particle.

    Parameters
    ----------
    labels : DataArray, dims (y, x), int
        Particles; 0 is background.
    thickness : DataArray, dims (y, x)
        Thickness [nm].
    resolution_nm : float, optional
        Full width at half maximum of the point spread function [nm]. Outside, distances are given
        up to three times it, or up to 5 pixels.
    threshold_nm : float, optional
        See `outlines`.

    Returns
    -------
    DataArray, dims (y, x), float32
        ``edge_distance`` [nm], positive inside, NaN far from any particle. The line between two
        that touch is an edge of both; the border of the map is none.

    Raises
    ------
    InputError
        Maps in the wrong shape or units, or a length that is not positive.
    """
    check_map(thickness, "nm", name="thickness")
    values = check_label_map(labels, thickness)
    check_length("threshold_nm", threshold_nm)
    check_length("resolution_nm", resolution_nm)
    pixel = pixel_size(thickness)
    reach = 5.0 * max(pixel) if resolution_nm is None else 3.0 * resolution_nm
    ground = _ground(values, thickness, threshold_nm)
    distance = np.full(values.shape, np.nan)
    for label, _, polygon in _polygons(ground):
        _draw_distance(distance, ground, label, polygon, reach)
    coords = {dim: thickness[dim] for dim in ("y", "x")}
    result = xr.DataArray(distance.astype(np.float32), dims=("y", "x"), coords=coords)
    return with_units(result, "edge_distance", "nm", "distance inwards from the outline")


def _draw_distance(
    distance: Array, ground: _Ground, label: int, polygon: Array, reach: float
) -> None:
    """Enter the distances of the pixels in and around one particle."""
    start, end = polygon[:-1], polygon[1:]
    middle = 0.5 * (start + end)
    real = ((middle >= 0) & (middle <= np.array(distance.shape) - 1.0)).all(axis=1)
    if not real.any():  # the particle fills the whole map
        return
    margin = np.ceil(reach / np.array(ground.pixel)).astype(int) + 2
    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + margin + 1, distance.shape)
    crop = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    inside = skimage("measure").grid_points_in_poly(
        (int(high[0] - low[0]), int(high[1] - low[1])), polygon - low
    )
    inside &= ground.owner[crop] == label
    before = distance[crop]
    wanted = inside | ~(before > 0)
    nm = np.array(ground.pixel)
    found = _distance_to(start[real] * nm, end[real] * nm, (np.argwhere(wanted) + low) * nm)
    outside = np.fmax(before[wanted], np.where(found <= reach, -found, np.nan))
    before[wanted] = np.where(inside[wanted], found, outside)
