"""Diffusion from the surface into a body given by its height, on cubic voxels.

The body is symmetric about its mid-plane, so that only the upper half is solved. What is advanced
is what is left, ``w = (cs - c)/(cs - c0)``: one at the start, zero at the surface. Lengths are in
voxels; arrays are (z, y, x) with one layer of voxels around, which is always empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from spectromap._compiled import F32, compiled

Array = NDArray[np.floating[Any]]

#: A surface closer to a voxel centre than this part of a voxel would cost many steps: it is moved
#: out to this distance.
LEAST_GAP = 0.2
#: Fronts (the root of D t) thinner than this many voxels are not solved but taken from the
#: distance to the surface.
LEAST_FRONT = 1.6
#: The time grows by no more than this factor in one super step of second order.
LARGEST_GROWTH = 1.3
#: Parts of a voxel in which a table is looked up.
TABLE_PARTS = 4
#: Points of the tables that give what is left from the distance to the surface, ...
_TABLE = 400
#: ... which end at this many fronts: nothing has arrived there.
_TABLE_END = 7.0


@compiled
def find_surface(
    root: NDArray[Any], exponent: float, gaps: NDArray[Any], points: NDArray[Any]
) -> int:
    """Where the lines between voxel centres meet the surface.

    Parameters
    ----------
    root : ndarray, shape (ny, nx)
        The height above the mid-plane to the power ``1 / exponent``, which goes linearly through
        zero at the outline.
    exponent : float
    gaps : ndarray, shape (5, nz, ny, nx)
        Filled with the part of a voxel to the surface towards -y, +y, -x, +x and +z where the
        neighbour is outside, with -1 where it is inside, and with 0 outside of the body.
    points : ndarray, shape (n, 6)
        Filled with points (z, y, x) of the surface and the normals inwards there.

    Returns
    -------
    int
        Number of points.
    """
    _, nz, ny, nx = gaps.shape
    count = 0
    for y in range(1, ny - 1):
        for x in range(1, nx - 1):
            if root[y, x] <= 0:
                continue
            height = root[y, x] ** exponent
            top = min(int(np.ceil(height - 0.5)), nz)
            for z in range(top):
                level = (z + 0.5) ** (1.0 / exponent)
                gaps[4, z, y, x] = -1.0
                for side in range(4):
                    step = 2 * (side % 2) - 1
                    v = y + (step if side < 2 else 0)
                    u = x + (0 if side < 2 else step)
                    if root[v, u] > level:
                        gaps[side, z, y, x] = -1.0
                        continue
                    part = (root[y, x] - level) / (root[y, x] - root[v, u])
                    gaps[side, z, y, x] = max(part, 1e-3)
                    if count < points.shape[0]:
                        points[count, 0] = z + 0.5
                        points[count, 1] = y + part * (v - y)
                        points[count, 2] = x + part * (u - x)
                        _normal(root, exponent, y, x, v, u, part, level, points[count])
                        count += 1
            if top > 0:
                gaps[4, top - 1, y, x] = max(height - (top - 0.5), 1e-3)
            if count < points.shape[0]:
                points[count, 0], points[count, 1], points[count, 2] = height, y, x
                _normal(root, exponent, y, x, y, x, 0.0, root[y, x], points[count])
                count += 1
    return count


@compiled
def _normal(
    root: NDArray[Any],
    exponent: float,
    y: int,
    x: int,
    v: int,
    u: int,
    part: float,
    level: float,
    point: NDArray[Any],
) -> None:
    """Normal inwards where ``root(y, x) = z**(1 / exponent)``, between two columns."""
    ny, nx = root.shape
    slope_y = slope_x = 0.0
    for k in range(2):
        j, i = (y, x) if k == 0 else (v, u)
        weight = 1.0 - part if k == 0 else part
        down, up = max(j - 1, 0), min(j + 1, ny - 1)
        left, right = max(i - 1, 0), min(i + 1, nx - 1)
        slope_y += weight * (root[up, i] - root[down, i]) / (up - down)
        slope_x += weight * (root[j, right] - root[j, left]) / (right - left)
    n_y, n_x = exponent * slope_y, exponent * slope_x
    n_z = -(level ** (1.0 - exponent))
    length = np.sqrt(n_y * n_y + n_x * n_x + n_z * n_z) + 1e-12
    point[3], point[4], point[5] = n_z / length, n_y / length, n_x / length


@compiled
def find_depth(
    points: NDArray[Any], count: int, nearest: NDArray[Any], depth: NDArray[Any]
) -> None:
    """Distance from the surface, along the normal at the nearest of its known points.

    Parameters
    ----------
    points : ndarray, shape (n, 6)
        From `find_surface`, of which the first `count` are used.
    nearest : ndarray of int32, shape (nz, ny, nx)
        Scratch.
    depth : ndarray, shape (nz, ny, nx)
        Filled: voxels, positive inside.
    """
    nearest[:] = -1
    depth[:] = 1e9
    _seed(points, count, nearest, depth)
    for sweep in range(8):
        _sweep(points, sweep, nearest, depth)
    nz, ny, nx = depth.shape
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                p = nearest[k, j, i]
                if p >= 0:
                    depth[k, j, i] = (
                        (k + 0.5 - points[p, 0]) * points[p, 3]
                        + (j - points[p, 1]) * points[p, 4]
                        + (i - points[p, 2]) * points[p, 5]
                    )


@compiled
def _seed(points: NDArray[Any], count: int, nearest: NDArray[Any], square: NDArray[Any]) -> None:
    """Offer every point to the voxels around it."""
    nz, ny, nx = square.shape
    for p in range(count):
        z = min(max(int(points[p, 0]), 0), nz - 1)
        y, x = int(np.rint(points[p, 1])), int(np.rint(points[p, 2]))
        for k in range(max(z - 1, 0), min(z + 2, nz)):
            for j in range(max(y - 1, 0), min(y + 2, ny)):
                for i in range(max(x - 1, 0), min(x + 2, nx)):
                    _offer(points, p, k, j, i, nearest, square)


@compiled
def _sweep(points: NDArray[Any], sweep: int, nearest: NDArray[Any], square: NDArray[Any]) -> None:
    """Pass the nearest points on to their neighbours in one of eight directions.

    References
    ----------
    P.-E. Danielsson, Comput. Graph. Image Process. 14, 227 (1980).
    """
    nz, ny, nx = square.shape
    step_z, step_y, step_x = 1 - (sweep & 1) * 2, 1 - (sweep & 2), 1 - (sweep & 4) // 2
    for c in range(nz):
        k = c if step_z > 0 else nz - 1 - c
        for b in range(ny):
            j = b if step_y > 0 else ny - 1 - b
            for a in range(nx):
                i = a if step_x > 0 else nx - 1 - a
                if 0 <= k - step_z < nz:
                    _offer(points, nearest[k - step_z, j, i], k, j, i, nearest, square)
                if 0 <= j - step_y < ny:
                    _offer(points, nearest[k, j - step_y, i], k, j, i, nearest, square)
                if 0 <= i - step_x < nx:
                    _offer(points, nearest[k, j, i - step_x], k, j, i, nearest, square)


@compiled
def _offer(
    points: NDArray[Any],
    p: int,
    k: int,
    j: int,
    i: int,
    nearest: NDArray[Any],
    square: NDArray[Any],
) -> None:
    """Let a voxel take a point of the surface if it is nearer than what it has."""
    if p < 0:
        return
    dz, dy, dx = points[p, 0] - (k + 0.5), points[p, 1] - j, points[p, 2] - i
    new = dz * dz + dy * dy + dx * dx
    if new < square[k, j, i]:
        square[k, j, i] = new
        nearest[k, j, i] = p


@compiled
def _slope(
    state: NDArray[Any],
    mask: NDArray[Any],
    diagonal: NDArray[Any],
    width: int,
    layer: int,
    start: int,
    result: NDArray[Any],
) -> None:
    """Laplacian of a stretch of the flattened voxels."""
    n = result.size
    here = state[start : start + n]
    west, east = state[start - 1 : start - 1 + n], state[start + 1 : start + 1 + n]
    south, north = state[start - width : start - width + n], state[start + width :]
    below, above = state[start - layer : start - layer + n], state[start + layer :]
    for i in range(n):
        around = west[i] + east[i] + south[i] + north[i] + below[i] + above[i]
        result[i] = mask[start + i] * around - diagonal[start + i] * here[i]


@compiled
def super_step(
    state: NDArray[Any],
    work: NDArray[Any],
    mask: NDArray[Any],
    diagonal: NDArray[Any],
    layers: NDArray[Any],
    layer: int,
    width: int,
    step: float,
    stages: int,
) -> None:
    """Advance what is left by one explicit Runge-Kutta-Legendre step of second order.

    Parameters
    ----------
    state : ndarray of float32, shape (n,)
        Flattened voxels; changed in place.
    work : ndarray of float32, shape (4, n)
        Scratch, zero outside of the body.
    mask, diagonal : ndarray of float32, shape (n,)
        One inside; the rate at which a voxel loses to all its neighbours.
    layers : ndarray of int64, shape (nz, 2)
        First and last flat index of each layer that is worked on.
    layer : int
        Voxels in a layer.
    width : int
        Voxels in a row.
    step : float
        D times the time, in voxels squared.
    stages : int

    References
    ----------
    C. D. Meyer, D. S. Balsara and T. D. Aslam, J. Comput. Phys. 257, 594 (2014), scheme RKL2.
    """
    w = 4.0 / (stages * stages + stages - 2.0)
    slope, buffer = work[0], work[3]
    newer, older = work[1], work[2]
    for a in range(layers.shape[0]):
        start, stop = layers[a, 0], layers[a, 1]
        _slope(state, mask, diagonal, width, layer, start, slope[start:stop])
    first = F32(w / 3.0 * step)
    for a in range(layers.shape[0]):
        for i in range(layers[a, 0], layers[a, 1]):
            older[i] = state[i]
            newer[i] = state[i] + first * slope[i]
    b_older = b_newer = 1.0 / 3.0
    for j in range(2, stages + 1):
        b = (j * j + j - 2.0) / (2.0 * j * (j + 1.0))
        mu, nu = (2.0 * j - 1.0) / j * b / b_newer, -(j - 1.0) / j * b / b_older
        c_new, c_old, c_start = F32(mu), F32(nu), F32(1.0 - mu - nu)
        c_rate, c_slope = F32(mu * w * step), F32(-(1.0 - b_newer) * mu * w * step)
        for a in range(layers.shape[0]):
            start, stop = layers[a, 0], layers[a, 1]
            rate = buffer[start:stop]
            _slope(newer, mask, diagonal, width, layer, start, rate)
            old, new = older[start:stop], newer[start:stop]
            begin, initial = state[start:stop], slope[start:stop]
            for i in range(stop - start):
                old[i] = (
                    c_new * new[i]
                    + c_old * old[i]
                    + c_start * begin[i]
                    + c_rate * rate[i]
                    + c_slope * initial[i]
                )
        older, newer = newer, older
        b_older, b_newer = b_newer, b
    for a in range(layers.shape[0]):
        for i in range(layers[a, 0], layers[a, 1]):
            state[i] = newer[i]


@compiled
def integrate(
    values: NDArray[Any],
    surface: NDArray[Any],
    height: NDArray[Any],
    table: NDArray[Any],
    spacing: float,
    ends: NDArray[Any],
    result: NDArray[Any],
) -> None:
    """Integral of what is left from the mid-plane up each column, to two heights.

    Parameters
    ----------
    values : ndarray, shape (nz, ny, nx)
        What is left, or with a `table` the distance it follows from.
    surface : ndarray, shape (ny, nx)
        The same on the surface.
    height : ndarray, shape (ny, nx)
        Voxels.
    table : ndarray, shape (n,)
        What is left at distances of 0, `spacing`, ... voxels; empty where `values` are it.
    spacing : float
    ends : ndarray, shape (2,)
        Planes of the section in voxels from the mid-plane.
    result : ndarray, shape (ny, nx)
        Filled: integral between the planes in voxels.
    """
    _, ny, nx = values.shape
    for y in range(ny):
        for x in range(nx):
            result[y, x] = 0.0
            if height[y, x] <= 0.5:
                continue
            column, top = values[:, y, x], surface[y, x]
            for side in range(2):
                end = min(abs(ends[side]), height[y, x])
                total = _up_to(column, top, height[y, x], end, table, spacing)
                result[y, x] += total if (ends[side] > 0) == (side == 1) else -total


@compiled
def _up_to(
    column: NDArray[Any],
    surface: float,
    height: float,
    end: float,
    table: NDArray[Any],
    spacing: float,
) -> float:
    """Integral up one column, of values that change linearly between the voxel centres."""
    parts = 1 if table.size == 0 else TABLE_PARTS
    total, low, here = 0.0, 0.0, column[0]
    for z in range(column.size + 1):
        high, there = z + 0.5, surface
        if z == column.size or high >= height:
            high = height
        else:
            there = column[z]
        if high > low:
            piece = (min(high, end) - low) / parts
            slope = (there - here) / (high - low)
            for k in range(parts):
                total += piece * _looked_up(here + slope * piece * (k + 0.5), table, spacing)
        low, here = high, there
        if high >= end:
            break
    return total


@compiled
def _looked_up(value: float, table: NDArray[Any], spacing: float) -> float:
    """What a table holds for a value; the value itself if there is no table."""
    if table.size == 0:
        return value
    place = max(value, 0.0) / spacing
    i = min(int(place), table.size - 2)
    share = min(place - i, 1.0)
    return float(table[i] + share * (table[i + 1] - table[i]))


def left_near(depth: Array, front: float, exchange: float, bend: float) -> Array:
    """What is left at small depths below a gently bent surface, long before fronts meet.

    Parameters
    ----------
    depth : ndarray
        Distance from the surface.
    front : float
        Root of D t.
    exchange : float
        D over the rate of surface exchange; 0: the surface is held.
    bend : float
        Sum of both curvatures of the surface; two over the radius of a sphere.

    Returns
    -------
    ndarray
        1 where nothing has arrived.

    References
    ----------
    J. Crank, The Mathematics of Diffusion, 2nd ed. (Oxford, 1975), equations 3.13 and 3.35; with
    u r in place of u they hold for a sphere (section 6.1), to first order for any surface.
    """
    depth = np.maximum(depth, 0.0)
    x = depth / (2.0 * front)
    come = special.erfc(x)
    swell = 1.0 / (1.0 - np.minimum(0.5 * bend * depth, 0.5))
    if exchange > 0:
        rate = 1.0 / exchange - 0.5 * bend
        rate = rate if abs(rate) * front > 1e-4 else 1e-4 / front
        come -= np.exp(-(x**2)) * special.erfcx(x + front * rate)
        come /= exchange * rate
    return np.asarray(np.clip(1.0 - swell * come, 0.0, 1.0))


@dataclass(frozen=True)
class Voxels:
    """Upper half of a body; lengths in voxels.

    Attributes
    ----------
    height : ndarray, shape (ny, nx)
        Of the surface above the mid-plane; 0 outside of the outline.
    level : ndarray, shape (nz, ny, nx)
        Depth of the voxel centres below the surface, negative outside.
    gaps : ndarray, shape (5, nz, ny, nx)
        See `find_surface`.
    bend : float
        Mean of the sum of both curvatures of the surface.
    """

    height: Array
    level: Array
    gaps: Array
    bend: float

    @classmethod
    def of(cls, root: Array, exponent: float) -> Voxels:
        """Put a body on voxels.

        Parameters
        ----------
        root : ndarray, shape (ny, nx)
            Height in voxels to the power ``1 / exponent``, continued linearly to negative values
            outside of the outline, which it must not reach at its border.
        exponent : float
            0.5 for a round rim, 1 for a wedge.
        """
        root = np.ascontiguousarray(root, dtype=np.float64)
        height = np.maximum(root, 0.0) ** exponent
        shape = (int(np.ceil(height.max())) + 1, *root.shape)
        gaps = np.zeros((5, *shape), dtype=np.float32)
        points = np.empty((6 * root.size + 8 * shape[0] * sum(root.shape), 6))
        count = find_surface(root, exponent, gaps, points)
        level = np.empty(shape)
        find_depth(points, count, np.empty(shape, dtype=np.int32), level)
        radius = (1.5 * height.sum() / np.pi) ** (1 / 3)
        return cls(height, level, gaps, 2.0 / radius)


def _rates(voxels: Voxels, exchange: float) -> tuple[Array, Array]:
    """Which voxels are inside, and the rate at which each loses to all its neighbours.

    Where the surface is met at the fraction theta of a voxel the difference quotient is taken over
    that fraction; with surface exchange, over the fraction and D / k beyond, seen at the angle of
    the surface so that its area is right.

    References
    ----------
    F. Gibou et al., J. Comput. Phys. 176, 205 (2002).
    """
    inside = voxels.gaps[4] != 0
    normals: list[Any] = [1.0] * 3
    if exchange > 0:
        slopes = np.gradient(voxels.level)
        size = np.sqrt(sum(s**2 for s in slopes)) + 1e-6
        normals = [np.maximum(np.abs(s) / size, 0.02) for s in slopes]
    rate = np.zeros(inside.shape)
    for side, gap in enumerate(voxels.gaps):
        beyond = exchange / normals[(1, 1, 2, 2, 0)[side]]
        rate += np.where(gap > 0, 1.0 / (np.maximum(gap, LEAST_GAP) + beyond), 1.0)
    rate[1:] += 1.0  # below the lowest layer lies its mirror image, which takes nothing
    return inside, np.where(inside, rate, 0.0)


class Solver:
    """Diffusion into voxels, advanced from one time to the next."""

    def __init__(self, voxels: Voxels, exchange: float) -> None:
        self.voxels, self.exchange = voxels, exchange
        inside, rate = _rates(voxels, exchange)
        self._inside = inside
        self._shape = tuple(n + 2 for n in inside.shape)
        self._mask, self._diagonal = (
            np.pad(a.astype(np.float32), 1).ravel() for a in (inside, rate)
        )
        self._stiffest = float(rate.max() + 6.0) / 2.0 if inside.any() else 1.0
        _, ny, nx = self._shape
        tops = [np.flatnonzero(layer.any(axis=1)) for layer in inside]
        self._layers = np.array(
            [
                (((z + 1) * ny + t[0] + 1) * nx, ((z + 1) * ny + t[-1] + 2) * nx)
                for z, t in enumerate(tops)
                if t.size
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        self._work = np.zeros((4, self._mask.size), dtype=np.float32)
        self._state = np.zeros(self._mask.size, dtype=np.float32)
        self.time = 0.0

    def start(self, front: float) -> None:
        """Begin where fronts are thin."""
        left = left_near(self.voxels.level, front, self.exchange, self.voxels.bend)
        self._state = np.pad(np.where(self._inside, left, 0.0), 1).astype(np.float32).ravel()
        self.time = front**2

    def advance(self, front: float) -> Array:
        """What is left, shape (nz, ny, nx), when the root of D t is `front`."""
        growth = np.log(front**2 / self.time) / np.log(LARGEST_GROWTH)
        times = np.geomspace(self.time, front**2, max(int(np.ceil(growth - 1e-9)), 0) + 1)
        _, ny, nx = self._shape
        for step in np.diff(times):
            # Stable while step <= (s^2 + s - 2) / 4 times the limit 1 / stiffest of explicit Euler.
            stages = int(np.ceil((np.sqrt(9 + 16 * step * self._stiffest) - 1) / 2))
            super_step(
                self._state, self._work, self._mask, self._diagonal,
                self._layers, ny * nx, nx, float(step), max(stages | 1, 3),
            )  # fmt: skip
        self.time = front**2
        return self._state.reshape(self._shape)[1:-1, 1:-1, 1:-1]


def columns(
    voxels: Voxels, fronts: Array, exchange: float, slabs: list[tuple[float, float]]
) -> Array:
    """What is left of every column, in every section, at every time.

    Parameters
    ----------
    voxels : Voxels
    fronts : ndarray, shape (m,)
        Roots of D t in voxels.
    exchange : float
        D over the rate of surface exchange in voxels; 0: the surface is held.
    slabs : list of (lower, upper)
        Planes of sections in voxels from the mid-plane.

    Returns
    -------
    ndarray, shape (len(slabs), m, ny, nx)
        Integrals of ``(cs - c)/(cs - c0)`` in voxels; 0 where a column is less than a voxel.
    """
    shape = voxels.height.shape
    result = np.zeros((len(slabs), fronts.size, *shape), dtype=np.float32)
    ends = np.asarray(slabs, dtype=float).reshape(-1, 2)
    solver = Solver(voxels, exchange)
    top = np.clip(np.ceil(voxels.height - 0.5).astype(int) - 1, 0, None)
    rows, cols = np.indices(shape)
    level = np.maximum(voxels.level, 0.0)
    share = exchange / (exchange + level[top, rows, cols] + 1e-12)
    flat, nothing = np.zeros(shape), np.zeros(0)
    for k in np.argsort(fronts):
        front = float(fronts[k])
        if front < LEAST_FRONT:
            spacing = _TABLE_END * front / (_TABLE - 1)
            distances = spacing * np.arange(_TABLE)
            table = left_near(distances, front, exchange, voxels.bend)
            values, surface = level, flat
        else:
            if solver.time == 0:
                solver.start(LEAST_FRONT)
            values, spacing, table = solver.advance(front).astype(float), 1.0, nothing
            surface = values[top, rows, cols] * share
        for s in range(len(slabs)):
            integrate(values, surface, voxels.height, table, spacing, ends[s], result[s, k])
    return result


def deep_columns(voxels: Voxels, depths: Array, slabs: list[tuple[float, float]]) -> Array:
    """Length of every column, in every section, that lies deeper than each depth.

    Parameters
    ----------
    voxels : Voxels
    depths : ndarray, shape (m,)
        Voxels below the surface.
    slabs : list of (lower, upper)
        Planes of sections in voxels from the mid-plane.

    Returns
    -------
    ndarray, shape (len(slabs), m, ny, nx)
        Voxels.
    """
    result = np.zeros((len(slabs), depths.size, *voxels.height.shape), dtype=np.float32)
    level, flat = np.maximum(voxels.level, 0.0), np.zeros(voxels.height.shape)
    spacing = 0.05
    for k, depth in enumerate(depths):
        # The step from nothing to one is spread over a voxel so that columns change evenly.
        ramp = min(0.5, float(depth))
        place = spacing * np.arange(int((depth + ramp) / spacing) + 3)
        table = np.clip(0.5 + 0.5 * (place - depth) / ramp, 0.0, 1.0)
        for s, slab in enumerate(slabs):
            ends = np.asarray(slab, dtype=float)
            integrate(level, flat, voxels.height, table, spacing, ends, result[s, k])
    return result
