"""The body of a particle from its thickness or its outline, and what diffuses into it.

A body is symmetric about its mid-plane and has one height above every point of it. Its *root*,
the height to the power ``1 / exponent``, goes linearly through zero at the outline whatever the
rim is like: round (1/2), a wedge (1) or an upright face (towards 0); so that rims are met between
voxels and not at their stairs. Diffusion is solved once per body, in D t, and then projected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from spectromap._numerics import gaussian_blur, vertex
from spectromap.radial._solve import Voxels, columns, deep_columns
from spectromap.schema import InputError

__all__ = ["Solid", "outward_shift", "progress", "section_bodies", "shell", "whole_body"]

Array = NDArray[np.floating[Any]]
Slab = tuple[float, float]

#: A body is at least this high [nm], whatever the thickness map says.
LEAST_HEIGHT = 0.1
#: Attenuation per nm that a thickness map answers to at a blurred rim: what an L3 stack of a
#: transition-metal oxide gives, within 10 % for 40 to 250 nm.
ATTENUATION_PER_NM = 0.015
#: Voxels in the radius of a body. Sphere: projected amounts are then good to 0.2 % of the
#: thickness (0.4 % where the front is as thin as 1.5 voxels).
VOXELS_PER_RADIUS = 28
SECTION_VOXELS_PER_RADIUS = 24
#: Depth in voxels over which what is left rises from the outline; a matter of interpolation only.
RIM_VOXELS = 3.0
#: Points per radius of the outline at which its rounded form is worked out.
FORM_POINTS = 20
#: Rims that are tried: exponent of the height in the distance from the edge.
EXPONENTS = (0.35, 0.42, 0.5, 0.6, 0.72, 0.86, 1.0)
#: The thickness is followed in detail until its noise is this share of it, ...
NOISE_SHARE = 0.02
#: ... never finer than this part of the FWHM of the optics, in so many rounds.
FINEST_DETAIL = 0.4
ROUNDS = 4
#: Outlines are moved by up to so many of their standard errors, ...
MOST_STEPS = 5
#: ... judged by the thickness as far outside as the blur reaches, in its FWHM.
BLUR_REACH = 1.3
#: Cut heights that are tried for a section.
CUTS = 8
#: Rims that are tried where the equator is in the section.
CUT_EXPONENTS = (0.4, 0.5, 0.65)
#: Scatter of the logarithm of the height about that of the rounded form of the outline.
SHAPE_SPREAD = 0.2
#: What the shape of a section leaves unexplained of its thickness [nm].
MODEL_ERROR = 2.0


@dataclass(frozen=True, eq=False)
class _Uncut:
    """A body on voxels, and the sections of it that are wanted."""

    voxels: Voxels
    voxel: float
    corner: tuple[float, float]  # centre of voxel column (0, 0) in nm from the corner of the crop
    slabs: list[Slab] = field(default_factory=list)
    #: Columns for the last depths asked for, so that sections of one body cost one solution.
    known: dict[tuple[bytes, float], Array] = field(default_factory=dict)

    def left(self, depths: Array, exchange_nm: float) -> Array:
        """What is left of every column [nm] of every section, shape (sections, m, ny, nx)."""
        key = (depths.tobytes(), exchange_nm)
        if key not in self.known:
            planes = [(a / self.voxel, b / self.voxel) for a, b in self.slabs]
            fronts, exchange = depths / self.voxel, exchange_nm / self.voxel
            self.known.clear()
            self.known[key] = columns(self.voxels, fronts, exchange, planes) * self.voxel
        return self.known[key]

    def core(self, depths: Array) -> Array:
        """Path deeper than each depth in every column [nm] of every section, likewise."""
        planes = [(a / self.voxel, b / self.voxel) for a, b in self.slabs]
        return deep_columns(self.voxels, depths / self.voxel, planes) * self.voxel


@dataclass(frozen=True, eq=False)
class Solid:
    """The body of one particle, whole or cut, and the grid of its projection.

    Attributes
    ----------
    cell : float
        Edge of a cell of the projected maps [nm]; the centre of cell (0, 0) lies half a cell from
        the corner of the crop.
    shape : tuple of int
        Cells of the projected maps.
    slab : (lower, upper) or None
        Planes of the section [nm] from the mid-plane of the uncut body; None is the whole body.
    radius : float
        Radius of the sphere with the volume of the uncut body [nm].
    height : ndarray, shape (ny, nx)
        Of the uncut surface above its mid-plane on the cells [nm].
    distance : ndarray, shape (ny, nx)
        From the outline of what is projected [nm], on the cells, positive inside.
    """

    cell: float
    shape: tuple[int, int]
    slab: Slab | None
    radius: float
    height: Array
    distance: Array
    _uncut: _Uncut
    #: Minus twice the logarithm of how likely its shape is, to be added to a chi square.
    penalty: float = 0.0

    @property
    def voxel(self) -> float:
        """Edge of a voxel [nm]."""
        return self._uncut.voxel

    @property
    def level(self) -> Array:
        """Depth below the surface of the uncut body [nm], shape (ny, nx, nz), negative outside."""
        upper = self._uncut.voxels.level.transpose(1, 2, 0) * self.voxel
        return np.concatenate([upper[..., ::-1], upper], axis=-1)

    @property
    def thickness(self) -> Array:
        """Projected thickness of what is between the planes [nm], on the cells, not blurred."""
        return _path(self.height, self.slab)


def _path(height: Array, slab: Slab | None) -> Array:
    """Length of the path between the planes through a body of the given height."""
    if slab is None:
        return np.asarray(2.0 * height)
    return np.asarray(np.clip(height, *slab) - np.clip(-height, *slab))


# ---------------------------------------------------------------- projection


def _cubic(position: Array, count: int) -> tuple[NDArray[np.intp], Array]:
    """Four neighbours on a line and their weights.

    References
    ----------
    R. G. Keys, IEEE Trans. Acoust. Speech Signal Process. 29, 1153 (1981).
    """
    first = np.floor(position).astype(np.intp)
    t = (position - first)[..., None]
    weights = np.concatenate(
        [
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t**2 + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t**2,
        ],
        axis=-1,
    )
    return np.clip(first[..., None] + np.arange(-1, 3), 0, count - 1), weights


def _rise(solid: Solid, distance: Array, exchange_nm: float) -> Array:
    """How what is left rises from the outline inwards, up to a factor that changes little.

    It vanishes there, or with surface exchange at ``D / k`` outside.
    """
    reach = RIM_VOXELS * solid.voxel
    return np.asarray(-np.expm1(-(np.maximum(distance, 0.0) + exchange_nm) / reach))


def _to_cells(solid: Solid, shares: Array, path: Array) -> Array:
    """Interpolate maps on voxel columns at the cells with a path, shape (m, n)."""
    uncut = solid._uncut
    inside = np.argwhere(path > 0)
    place = (inside + 0.5) * solid.cell
    rows, cols = ((place[:, a] - uncut.corner[a]) / solid.voxel for a in range(2))
    ny, nx = shares.shape[1:]
    (i, w_i), (j, w_j) = _cubic(rows, ny), _cubic(cols, nx)
    index = (i[:, :, None] * nx + j[:, None, :]).reshape(len(inside), 16)
    weight = (w_i[:, :, None] * w_j[:, None, :]).reshape(len(inside), 16)
    start = np.arange(0, 16 * len(inside) + 1, 16)
    matrix = sparse.csr_array((weight.ravel(), index.ravel(), start), shape=(len(inside), ny * nx))
    return np.asarray((matrix @ shares.reshape(len(shares), -1).T).T)


def _come(solid: Solid, left: Array, exchange_nm: float = 0.0) -> Array:
    """From what is left of voxel columns [nm] to what has come into cells [nm].

    Over the path and the way it rises from the outline, what is left can be continued past the
    outline and so interpolated up to it.
    """
    uncut, path = solid._uncut, solid.thickness
    length = _path(uncut.voxels.height * solid.voxel, solid.slab)
    ny, nx = length.shape
    rows, cols = (
        (corner + np.arange(n) * solid.voxel) / solid.cell - 0.5
        for n, corner in zip((ny, nx), uncut.corner, strict=True)
    )
    places = np.meshgrid(rows, cols, indexing="ij")
    distance = ndimage.map_coordinates(solid.distance, places, order=1, mode="nearest")
    good = (length > solid.voxel) & (left.max(axis=0) > 0) & (distance > 0.4 * solid.voxel)
    result = np.zeros((len(left), *solid.shape), dtype=np.float32)
    if not good.any():
        result[:] = path
        return result
    shares = left / np.where(good, length * _rise(solid, distance, exchange_nm), 1.0)
    nearest = ndimage.distance_transform_edt(~good, return_distances=False, return_indices=True)
    share = _to_cells(solid, shares[:, nearest[0], nearest[1]], path)
    share *= _rise(solid, solid.distance[path > 0], exchange_nm)
    result[:, path > 0] = path[path > 0] * (1.0 - np.clip(share, 0.0, 1.0))
    return result


def _check_depths(depths: Array) -> Array:
    """Depths as an array of floats."""
    depths = np.ascontiguousarray(np.atleast_1d(depths), dtype=np.float64)
    if depths.ndim != 1 or not np.all(np.isfinite(depths) & (depths > 0)):
        raise InputError("depths must be a list of lengths above zero", where="depths")
    return depths


def progress(solid: Solid, depths: Array, *, exchange_nm: float = 0.0) -> Array:
    """What has diffused into a body, seen along the beam.

    Parameters
    ----------
    solid : Solid
    depths : ndarray, shape (m,)
        ``sqrt(D t)`` [nm], in any order; all are found in one pass.
    exchange_nm : float
        D over the rate k of surface exchange, ``D dc/dn = k (cs - c)`` [nm]; 0: the surface is
        held at cs.

    Returns
    -------
    ndarray of float32, shape (m, ny, nx)
        Integral of ``(c - c0)/(cs - c0)`` between the planes [nm] on the cells of the solid.

    Raises
    ------
    InputError
        Depths that are not above zero, or a negative `exchange_nm`.
    """
    depths = _check_depths(depths)
    if not exchange_nm >= 0:
        raise InputError("the exchange length must be zero or more", where="exchange_nm")
    uncut = solid._uncut
    number = uncut.slabs.index(_planes(solid.slab))
    left = uncut.left(depths, float(exchange_nm))[number]
    return _come(solid, left, float(exchange_nm))


def shell(solid: Solid, depths: Array) -> Array:
    """Path through the outer layer of a body, as that of a core-shell particle.

    Parameters
    ----------
    solid : Solid
    depths : ndarray, shape (m,)
        Thickness of the layer below the uncut surface [nm].

    Returns
    -------
    ndarray of float32, shape (m, ny, nx)
        Length between the planes [nm] on the cells of the solid.

    Raises
    ------
    InputError
        Depths that are not above zero.
    """
    depths = _check_depths(depths)
    uncut = solid._uncut
    core = uncut.core(depths)[uncut.slabs.index(_planes(solid.slab))]
    path = solid.thickness
    result = np.tile(path, (len(depths), 1, 1))
    # The square of the path through the core goes nearly linearly through zero at its outline.
    square = np.maximum(_to_cells(solid, core**2, path), 0.0)
    result[:, path > 0] -= np.minimum(np.sqrt(square), path[path > 0])
    return result.astype(np.float32)


def _planes(slab: Slab | None) -> Slab:
    """Planes that bound what is projected."""
    return (-np.inf, np.inf) if slab is None else slab


# ---------------------------------------------------------------- measured maps


@dataclass(frozen=True)
class _Crop:
    """The measured crop on square pixels."""

    thickness: Array
    errors: Array
    distance: Array
    pixel: float
    cells: int
    resolution: float

    @property
    def cell(self) -> float:
        """Edge of a cell [nm]."""
        return self.pixel / self.cells

    @property
    def shape(self) -> tuple[int, int]:
        """Cells of the crop."""
        ny, nx = self.thickness.shape
        return ny * self.cells, nx * self.cells

    def at(self, values: Array, y: Array, x: Array) -> Array:
        """Interpolate a map of pixels at places [nm] from the corner, on the grid they span."""
        places = np.meshgrid(y / self.pixel - 0.5, x / self.pixel - 0.5, indexing="ij")
        return np.asarray(ndimage.map_coordinates(values, places, order=1, mode="nearest"))

    def centres(self) -> tuple[Array, Array]:
        """Centres of the cells [nm] along y and x."""
        ny, nx = self.shape
        return (np.arange(ny) + 0.5) * self.cell, (np.arange(nx) + 0.5) * self.cell

    def binned(self, values: Array) -> Array:
        """Mean of the cells of every pixel."""
        ny, nx = self.thickness.shape
        return np.asarray(values.reshape(ny, self.cells, nx, self.cells).mean(axis=(1, 3)))

    def seen(self, thickness: Array) -> Array:
        """What blurred optics make of a thickness on the cells, on the pixels."""
        absorbed = gaussian_blur(
            -np.expm1(-ATTENUATION_PER_NM * thickness), self.resolution / self.cell
        )
        share = self.binned(absorbed)
        return np.asarray(-np.log1p(-np.minimum(share, 1.0 - 1e-6)) / ATTENUATION_PER_NM)


def _on_square_pixels(values: Array, pixel: tuple[float, float], step: float) -> Array:
    """Interpolate a map on pixels that are as high as wide."""
    if max(pixel) < 1.001 * step:
        return values
    sides = [
        (np.arange(round(n * p / step)) + 0.5) * step / p - 0.5
        for n, p in zip(values.shape, pixel, strict=True)
    ]
    places = np.meshgrid(*sides, indexing="ij")
    return np.asarray(ndimage.map_coordinates(values, places, order=1, mode="nearest"))


def _signed_distance(edge: Array, pixel: tuple[float, float]) -> Array:
    """Distance from the outline at every pixel: what is given in and next to the particle."""
    given = np.where(np.isfinite(edge), edge, -1.0)
    parts, count = ndimage.label(given > 0)
    if count == 0:
        raise InputError(
            "no pixel lies inside of the outline",
            where="edge_distance",
            remedy="Distances must be in nm, positive inside.",
        )
    sizes = np.bincount(parts.ravel())[1:]
    inside = parts == 1 + int(np.argmax(sizes))
    ring = ndimage.binary_dilation(inside, np.ones((3, 3)))
    known = inside | (ring & np.isfinite(edge) & (edge <= 0))
    away, nearest = ndimage.distance_transform_edt(~known, sampling=pixel, return_indices=True)
    return np.asarray(np.where(known, given, given[tuple(nearest)] - away))


def _crop(
    thickness: Array,
    errors: Array,
    edge_distance: Array,
    pixel: tuple[float, float],
    resolution_nm: float,
    cells: int,
    outward_nm: float = 0.0,
) -> _Crop:
    """Check what was measured, and bring it to square pixels without gaps."""
    maps = [np.asarray(m, dtype=float) for m in (thickness, errors, edge_distance)]
    if maps[0].ndim != 2 or any(m.shape != maps[0].shape for m in maps):
        raise InputError("thickness, errors and edge_distance must be maps of one shape")
    if not (min(pixel) > 0 and resolution_nm >= 0 and cells >= 1):
        raise InputError(
            "pixels and cells must be above zero, the resolution not below", where="pixel"
        )
    distance = _signed_distance(maps[2], pixel) + outward_nm
    usable = np.isfinite(maps[0]) & np.isfinite(maps[1])
    weight = np.where(usable, 1.0, 0.0)
    thick, error = (np.where(usable, m, 0.0) for m in maps[:2])
    step = float(min(pixel))
    weight, thick, error, distance = (
        _on_square_pixels(m, pixel, step) for m in (weight, thick, error, distance)
    )
    error = np.where(weight > 0.999, np.maximum(error, 1e-3 * max(thick.max(), 1.0)), np.inf)
    return _Crop(thick, error, distance, step, cells, float(resolution_nm))


# ---------------------------------------------------------------- rounded form of an outline


@dataclass(frozen=True)
class _Form:
    """A smooth function that goes linearly through zero at an outline.

    It solves ``laplacian(f) = -4`` with f = 0 there: ``R^2 - r^2`` for a disc, so that its root is
    the height of a sphere; that of an ellipsoid for an ellipse.
    """

    values: Array  # at points `step` apart, continued past the outline
    slope: Array  # against the distance from the outline, that of the nearest point inside
    step: float
    corner: float  # of point (0, 0) in nm from the corner of the crop, along both axes

    def at(self, values: Array, y: Array, x: Array) -> Array:
        """Interpolate at places [nm], on the grid they span."""
        places = np.meshgrid(*((c - self.corner) / self.step for c in (y, x)), indexing="ij")
        return np.asarray(ndimage.map_coordinates(values, places, order=3, mode="nearest"))


def _poisson(distance: Array, step: float) -> Array:
    """Solve ``laplacian(f) = -4`` inside of an outline on which f is zero.

    References
    ----------
    G. H. Shortley and R. Weller, J. Appl. Phys. 9, 334 (1938).
    """
    flat, (_, nx) = distance.ravel(), distance.shape
    inside = np.flatnonzero(flat > 0)
    number = np.full(flat.size, -1)
    number[inside] = np.arange(inside.size)
    diagonal = np.zeros(inside.size)
    rows, cols, values = [], [], []
    for stride in (nx, 1):
        gaps = []
        for side in (-stride, stride):
            beyond = flat[inside + side]
            gap = flat[inside] / np.where(beyond > 0, 1.0, flat[inside] - beyond)
            gaps.append(np.where(beyond > 0, 1.0, np.maximum(gap, 1e-3)))
        for side, gap in zip((-stride, stride), gaps, strict=True):
            weight = 2.0 / (gap * (gaps[0] + gaps[1]))
            diagonal -= weight
            near = number[inside + side] >= 0
            rows.append(np.flatnonzero(near))
            cols.append(number[inside + side][near])
            values.append(weight[near])
    own = np.arange(inside.size)
    entries = np.concatenate([diagonal, *values])
    where = (np.concatenate([own, *rows]), np.concatenate([own, *cols]))
    matrix = sparse.csc_array((entries, where), shape=(inside.size, inside.size))
    result = np.zeros(flat.size)
    result[inside] = spsolve(matrix, np.full(inside.size, -4.0 * step**2))
    return result.reshape(distance.shape)


def _form(crop: _Crop, margin: float) -> _Form:
    """Rounded form of the outline of a crop, to a margin [nm] around it."""
    area = float(np.count_nonzero(crop.distance > 0)) * crop.pixel**2
    step = max(crop.cell, float(np.sqrt(area / np.pi)) / FORM_POINTS)
    around = int(np.ceil(margin / crop.pixel)) + 2
    padded = np.pad(crop.distance > -1.5 * crop.pixel, around)
    given = np.pad(crop.distance, around)
    away, nearest = ndimage.distance_transform_edt(~padded, return_indices=True)
    distance = np.where(padded, given, given[tuple(nearest)] - away * crop.pixel)
    corner = -around * crop.pixel + 0.5 * step
    sides = [np.arange(int(n * crop.pixel / step)) * step + corner for n in distance.shape]
    places = np.meshgrid(*(s / crop.pixel - 0.5 + around for s in sides), indexing="ij")
    distance = ndimage.map_coordinates(distance, places, order=1, mode="nearest")
    values = _poisson(distance, step)
    # Points on the outline itself say nothing about the slope there.
    sure = distance > 0.3 * step
    nearest = ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True)
    slope = (values / np.where(sure, distance, 1.0))[tuple(nearest)]
    values = np.where(distance > 0, values, slope * distance)
    return _Form(values, slope, step, corner)


# ---------------------------------------------------------------- whole bodies


def _correction(crop: _Crop, model: Array, width: float) -> Array:
    """By what share a model of the thickness falls short, smoothed, on the pixels."""
    model = np.maximum(model, 1e-6 * crop.thickness.max())
    weight = np.where(crop.distance > 0, (model / crop.errors) ** 2, 0.0)
    short = np.clip(crop.thickness / model - 1.0, -0.5, 1.0)
    spread: Callable[[Array], Array] = lambda a: ndimage.gaussian_filter(  # noqa: E731
        a, width / crop.pixel, mode="constant", truncate=6.0
    )
    total = spread(weight)
    return np.asarray(spread(weight * short) / np.maximum(total, 1e-12 * total.max()))


def _misfit(crop: _Crop, model: Array) -> tuple[float, float]:
    """Factor by which a model of the thickness falls short, and its chi square after it."""
    weight = np.where(crop.distance > -crop.pixel, crop.errors**-2.0, 0.0)
    factor = float(np.sum(weight * model * crop.thickness) / np.sum(weight * model**2))
    return factor, float(np.sum(weight * (crop.thickness - factor * model) ** 2))


def _detail(crop: _Crop) -> float:
    """Width to which the thickness is followed [nm]."""
    inside = crop.distance > 0
    height = max(float(np.median(crop.thickness[inside])), 1e-6)
    noise = float(np.median(crop.errors[inside])) / height
    return max(
        noise * crop.pixel / (2.0 * float(np.sqrt(np.pi)) * NOISE_SHARE),
        FINEST_DETAIL * crop.resolution,
        0.6 * crop.pixel,
    )


def _fitted(crop: _Crop, form: Array, exponent: float, width: float) -> tuple[Array, Array]:
    """Logarithm of thickness over the power of the form, and the blurred model, on the pixels."""
    y, x = crop.centres()
    base = np.maximum(form, 0.0) ** exponent
    highest = max(float(crop.thickness.max()), LEAST_HEIGHT)
    factor, _ = _misfit(crop, crop.seen(base * (highest / base.max())))
    # Noise that was taken for a particle may have less than nothing on the whole.
    level = np.log(max(factor * highest, LEAST_HEIGHT) / base.max())
    log = np.full(crop.thickness.shape, level)
    for _ in range(ROUNDS):
        model = crop.seen(base * np.exp(crop.at(log, y, x)))
        log = log + np.log1p(_correction(crop, model, width))
    return log, crop.seen(base * np.exp(crop.at(log, y, x)))


def outward_shift(
    thickness: Array,
    errors: Array,
    edge_distance: Array,
    pixel: tuple[float, float],
    resolution_nm: float,
    *,
    cells: int,
    error_nm: float,
) -> float:
    """How far outside of its outline a particle ends, by its thickness.

    Parameters
    ----------
    thickness, errors, edge_distance, pixel, resolution_nm, cells
        As for `whole_body`.
    error_nm : float
        Standard error of where the outline lies [nm], which holds the edge where the thickness
        says little.

    Returns
    -------
    float
        Length [nm], negative for a particle that ends inside of its outline.

    Raises
    ------
    InputError
        Maps of different shape, or no pixel inside of the outline.

    Notes
    -----
    The most probable place: the chi square of the thickness of the best body with the moved
    outline, counted once per resolution element because misfits are alike within one, and that of
    the outline itself.
    """
    crop = _crop(thickness, errors, edge_distance, pixel, resolution_nm, cells)
    width = _detail(crop)
    near = crop.distance > -BLUR_REACH * crop.resolution
    element = np.pi / (4.0 * np.log(2.0)) * (crop.resolution / crop.pixel) ** 2
    variance = (crop.errors**2 + MODEL_ERROR**2) * max(element, 1.0)
    y, x = crop.centres()

    def chi2(step: int) -> float:
        moved = replace(crop, distance=crop.distance + step * error_nm)
        form = _form(moved, 0.0)
        on_cells = form.at(form.values, y, x)
        models = (_fitted(moved, on_cells, e, width)[1] for e in EXPONENTS)
        rest = (np.sum(((crop.thickness - m) ** 2 / variance)[near]) for m in models)
        return float(min(rest)) + step**2

    inwards = min(MOST_STEPS, int(crop.distance.max() / error_nm) - 1)
    if inwards < 1:  # so small that hardly a pixel lies inside
        return 0.0
    steps = [-1, 0, 1]
    found = [chi2(step) for step in steps]
    while found[-1] == min(found) and steps[-1] < MOST_STEPS:
        steps.append(steps[-1] + 1)
        found.append(chi2(steps[-1]))
    while found[0] == min(found) and steps[0] > -inwards:
        steps.insert(0, steps[0] - 1)
        found.insert(0, chi2(steps[0]))
    return float(error_nm * vertex(np.array(steps, dtype=float), np.array(found)))


def whole_body(
    thickness: Array,
    errors: Array,
    edge_distance: Array,
    pixel: tuple[float, float],
    resolution_nm: float,
    *,
    cells: int,
    outward_nm: float = 0.0,
) -> Solid:
    """Body of a whole particle from its measured thickness.

    Parameters
    ----------
    thickness, errors : ndarray, shape (ny, nx)
        Measured thickness of one particle and its surroundings, and 1 sigma of it [nm].
    edge_distance : ndarray, shape (ny, nx)
        Distance inwards from the true outline [nm]; negative or NaN outside and on neighbours.
    pixel : (dy, dx)
        Edges of a pixel [nm].
    resolution_nm : float
        Full width at half maximum of the blur of the transmitted light [nm].
    cells : int
        Cells of the projected maps along the shorter edge of a pixel.
    outward_nm : float
        How far outside of the given outline the particle ends [nm], see `outward_shift`.

    Returns
    -------
    Solid
        Symmetric about its mid-plane; its thickness, blurred, is the measured one.

    Raises
    ------
    InputError
        Maps of different shape, or no pixel inside of the outline.
    """
    crop = _crop(thickness, errors, edge_distance, pixel, resolution_nm, cells, outward_nm)
    form = _form(crop, 0.0)
    y, x = crop.centres()
    on_cells = form.at(form.values, y, x)
    width = _detail(crop)
    fits = [(e, *_fitted(crop, on_cells, e, width)) for e in EXPONENTS]
    exponent, log, _ = min(fits, key=lambda fit: _misfit(crop, fit[2])[1])

    def root(y: Array, x: Array) -> Array:
        swell = np.exp(crop.at(log, y, x) - np.log(2.0))
        return np.asarray(form.at(form.values, y, x) * swell ** (1.0 / exponent))

    distance = crop.at(crop.distance, y, x)
    uncut, radius = _uncut(root, exponent, crop, 0, VOXELS_PER_RADIUS)
    uncut.slabs.append(_planes(None))
    surface = np.maximum(root(y, x), 0.0) ** exponent
    return Solid(crop.cell, crop.shape, None, radius, surface, distance, uncut)


def _uncut(
    root: Callable[[Array, Array], Array],
    exponent: float,
    crop: _Crop,
    around: int,
    per_radius: int,
) -> tuple[_Uncut, float]:
    """Put a body on voxels: its root is a function of places [nm], to some cells around."""
    cell = crop.cell
    y, x = ((np.arange(-around, n + around) + 0.5) * cell for n in crop.shape)
    height = np.maximum(root(y, x), 0.0) ** exponent
    radius = float((1.5 * height.sum() * cell**2 / np.pi) ** (1 / 3))
    voxel = radius / per_radius
    held = np.argwhere(height > 0)
    low = (held.min(axis=0) - around - 1) * cell - 1.5 * voxel
    high = (held.max(axis=0) - around + 2) * cell + 1.5 * voxel
    count = np.ceil((high - low) / voxel).astype(int) + 1
    sides = [a + voxel * np.arange(n) for a, n in zip(low, count, strict=True)]
    columns_root = root(*sides) / voxel ** (1.0 / exponent)
    corner = (float(low[0]), float(low[1]))
    return _Uncut(Voxels.of(columns_root, exponent), voxel, corner), radius


# ---------------------------------------------------------------- sections


def section_bodies(
    thickness: Array,
    errors: Array,
    edge_distance: Array,
    pixel: tuple[float, float],
    resolution_nm: float,
    section_nm: float,
    *,
    cells: int,
    outward_nm: float = 0.0,
) -> list[Solid]:
    """Uncut bodies of a cut particle, one for each of several heights of the cut.

    The outline is that of the equator where the section holds it, and else that of the face next
    to it. The uncut body is rounded: a sphere for a disc. Cuts above and below the equator look
    the same, so that only one side is listed.

    Parameters
    ----------
    thickness, errors, edge_distance, pixel, resolution_nm, cells, outward_nm
        As for `whole_body`.
    section_nm : float
        Thickness of the section [nm].

    Returns
    -------
    list of Solid
        By height of the middle of the section above the equator: evenly from 0 to where the
        surface leaves the face at 45 degrees. Bodies are shared where they are the same.

    Raises
    ------
    InputError
        Maps of different shape, no pixel inside of the outline, or no section thickness.
    """
    if not section_nm > 0:
        raise InputError("a section must be thicker than nothing", where="section_nm")
    crop = _crop(thickness, errors, edge_distance, pixel, resolution_nm, cells, outward_nm)
    size = float(np.sqrt(np.count_nonzero(crop.distance > 0) * crop.pixel**2 / np.pi))
    margin = 0.5 * size + 2.0 * crop.pixel
    form = _form(crop, margin)
    y, x = crop.centres()
    distance = crop.at(crop.distance, y, x)
    top = float(np.percentile(crop.thickness[crop.distance > 0], 75))
    half = 0.5 * max(section_nm, top)
    solids: list[Solid] = []
    around = int(np.ceil(margin / crop.cell))
    for middle in np.linspace(0.0, half + size, CUTS):
        slab = (float(middle) - half, float(middle) + half)
        cut = _Cut(crop, form, size, slab)
        log, exponent, penalty = cut.fit()
        root = cut.root(log, exponent)
        uncut, radius = _uncut(root, exponent, crop, around, SECTION_VOXELS_PER_RADIUS)
        uncut.slabs.append(slab)
        height = np.maximum(root(y, x), 0.0) ** exponent
        solids.append(Solid(crop.cell, crop.shape, slab, radius, height, distance, uncut, penalty))
    return solids


@dataclass(frozen=True)
class _Cut:
    """A body with a given outline at the face of a section, to be shaped after its thickness."""

    crop: _Crop
    form: _Form
    size: float  # radius of the disc with the area of the outline
    slab: Slab

    @property
    def face(self) -> float:
        """Height of the face whose outline is seen: 0 where the equator is in the section."""
        return max(self.slab[0], 0.0)

    def raised(self, y: Array, x: Array) -> Array:
        """Form of the outline at places [nm], continued as a parallel curve of the rounded body."""
        inner = self.form.at(self.form.values, y, x)
        slope = np.maximum(self.form.at(self.form.slope, y, x), 0.7 * self.size)
        away = np.minimum(inner, 0.0) / slope
        return np.asarray(np.maximum(inner, 0.0) + away * (slope - away))

    def root(self, log: Array, exponent: float) -> Callable[[Array, Array], Array]:
        """Height to the power ``1 / exponent`` as a function of places."""
        scale = self.size ** (2.0 - 1.0 / exponent)

        def root(y: Array, x: Array) -> Array:
            swell = np.exp(self.crop.at(log, y, x) / exponent)
            return np.asarray((self.face**2 + self.raised(y, x) * swell) / scale)

        return root

    def fit(self) -> tuple[Array, float, float]:
        """Shape it: correction on the pixels, exponent of the rim, and how unlikely it is."""
        y, x = self.crop.centres()
        form = self.raised(y, x)
        exponents = CUT_EXPONENTS if self.face == 0 else (0.5,)
        fits = [(*self._shaped(form, e), e) for e in exponents]
        _, penalty, log, exponent = min(fits, key=lambda fit: fit[0] + fit[1])
        return log, exponent, penalty

    def _shaped(self, form: Array, exponent: float) -> tuple[float, float, Array]:
        """Chi square, unlikeliness and the correction for one rim."""
        crop = self.crop
        y, x = crop.centres()
        log = np.zeros(crop.thickness.shape)
        inside = crop.distance > 0
        weight = np.where(crop.distance > -crop.pixel, 1.0 / (crop.errors**2 + MODEL_ERROR**2), 0.0)
        fine = max(FINEST_DETAIL * crop.resolution, 0.6 * crop.pixel)
        widths = (0.45 * self.size,) * 3 + (2.0 * fine,) * 3
        scale = self.size ** (2.0 - 1.0 / exponent)
        for width in (*widths, 0.0):
            part = form * np.exp(crop.at(log, y, x) / exponent)
            height = np.maximum((self.face**2 + part) / scale, 0.0) ** exponent
            short = crop.thickness - crop.seen(_path(height, self.slab))
            if width == 0:
                break
            free = (height < self.slab[1]).astype(float) + (height < -self.slab[0])
            gain = np.maximum(part, 0.0) * height / np.maximum(self.face**2 + part, 1e-9) * free
            slope = crop.binned(gain)
            count = max(4.0 * np.pi * (width / crop.pixel) ** 2, 1.0)
            spread = ndimage.gaussian_filter(
                np.stack([weight * slope * short, weight * slope**2]),
                (0, width / crop.pixel, width / crop.pixel),
                mode="constant",
            )
            step = spread[0] / (spread[1] + 1.0 / (SHAPE_SPREAD**2 * count))
            log = np.clip(log + np.clip(step, -0.5, 0.5), -1.0, 1.0)
        patches = np.count_nonzero(inside) * crop.pixel**2 / (0.2 * 4 * np.pi * self.size**2)
        penalty = float(np.mean(log[inside] ** 2) / SHAPE_SPREAD**2 * patches)
        return float(np.sum(weight * short**2)), penalty, log
