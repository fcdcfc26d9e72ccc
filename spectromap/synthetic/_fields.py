"""What happens inside a body: diffusion from its surface, and depth below it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import erfc

from spectromap._compiled import compiled
from spectromap._numerics import FloatArray

#: A surface closer to a voxel centre than this part of a voxel would cost many steps: it is moved
#: out to this distance, or to the centre itself, whichever is nearer.
LEAST_THETA = 0.1


def crank_sphere(r: FloatArray, radius: float, dt: float) -> FloatArray:
    """Progress of diffusion into a sphere: 0 where nothing has arrived, 1 at the surface.

    Parameters
    ----------
    r : ndarray
        Distance from the centre, 0 to `radius`, in nm.
    radius : float
        Radius of the sphere in nm.
    dt : float
        Diffusion coefficient times time in nm2.

    Returns
    -------
    ndarray
        ``(c - c0) / (cs - c0)``, same shape as `r`.

    References
    ----------
    J. Crank, The Mathematics of Diffusion, 2nd ed. (Oxford, 1975), section 6.3.
    """
    r = np.asarray(r, dtype=float)
    if dt <= 0:
        return np.asarray(r >= radius, dtype=float)
    tau = dt / radius**2
    rho = np.maximum(r / radius, 1e-12)
    if tau < 0.1:  # both series are converged to better than 1e-15 on their side
        total = np.zeros_like(rho)
        width = 2 * np.sqrt(tau)
        for n in range(7):
            odd = 2 * n + 1
            wide = (erfc((odd - rho) / width) - erfc((odd + rho) / width)) / rho
            centre = 4 / (np.sqrt(np.pi) * width) * np.exp(-((odd / width) ** 2))
            total += np.where(rho < 1e-5, centre, wide)
        return np.asarray(total)
    terms = int(np.ceil(np.sqrt(40 / tau) / np.pi)) + 1
    total = np.ones_like(rho)
    for n in range(1, terms + 1):
        total += 2 * (-1) ** n * np.sinc(n * rho) * np.exp(-((n * np.pi) ** 2) * tau)
    return np.asarray(total)


def _to_surface(flat: FloatArray, inside: NDArray[np.intp], stride: int) -> FloatArray:
    """Part of a voxel to the surface in one direction, 1 where the neighbour is inside as well."""
    depth, beyond = flat[inside], flat[inside + stride]
    return np.asarray(depth / np.where(beyond > 0, depth, depth - beyond))


@dataclass(frozen=True)
class _Laplacian:
    """Sum over the neighbours less what flows back, on the voxels inside a body.

    Attributes
    ----------
    index : ndarray of int, shape (n,)
        Voxels inside, as flat index into the array of the body.
    neighbours : ndarray of int32, shape (n, 6)
        Number of each neighbour among these, in ascending order; n where it is outside.
    diagonal : ndarray, shape (n,)
        What flows back, negative.
    """

    index: NDArray[np.intp]
    neighbours: NDArray[np.int32]
    diagonal: FloatArray

    def __matmul__(self, state: FloatArray) -> FloatArray:
        """Apply to a state (n,)."""
        padded = np.append(state, np.float32(0))
        return _with_neighbours(padded, self.diagonal * state, self.neighbours)


@compiled
def _with_neighbours(
    state: FloatArray, own: FloatArray, neighbours: NDArray[np.int32]
) -> FloatArray:
    """Sum of six neighbours and what is given of each voxel itself."""
    result = np.empty_like(own)
    for i in range(own.size):
        before = state[neighbours[i, 0]] + state[neighbours[i, 1]] + state[neighbours[i, 2]]
        at = before + own[i] + state[neighbours[i, 3]]
        result[i] = at + state[neighbours[i, 4]] + state[neighbours[i, 5]]
    return result


def _laplacian(level: FloatArray) -> _Laplacian:
    """Laplacian on the voxels inside a body, in units of the voxel.

    Where a neighbour lies outside, the surface is met at the fraction theta of a voxel; the
    difference quotient is taken over that fraction.
    """
    padded = np.pad(level, 1, constant_values=float(min(level.min(), -1.0)))
    flat = padded.ravel()
    ahead = (1, padded.shape[2], padded.shape[1] * padded.shape[2])
    strides = [-stride for stride in ahead[::-1]] + list(ahead)
    inside = np.flatnonzero(flat > 0)
    nearest = np.min([_to_surface(flat, inside, stride) for stride in strides], axis=0)
    on_surface = inside[nearest < LEAST_THETA / 2]
    flat[on_surface] = -1e-6
    inside = np.flatnonzero(flat > 0)
    number = np.full(flat.size, inside.size, dtype=np.int32)
    number[inside] = np.arange(inside.size, dtype=np.int32)
    diagonal = np.zeros(inside.size)
    neighbours = np.empty((inside.size, 6), dtype=np.int32)
    for k, stride in enumerate(strides):
        diagonal -= 1 / np.maximum(_to_surface(flat, inside, stride), LEAST_THETA)
        neighbours[:, k] = number[inside + stride]
    index = np.ravel_multi_index(
        tuple(i - 1 for i in np.unravel_index(inside, padded.shape)), level.shape
    )
    return _Laplacian(np.asarray(index), neighbours, diagonal.astype(np.float32))


def _super_step(laplacian: _Laplacian, state: FloatArray, step: float, stages: int) -> FloatArray:
    """Advance ``u' = M u`` by one explicit Runge-Kutta-Legendre step of second order."""
    j = np.arange(stages + 1, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        b = np.where(j < 2, 1 / 3, (j**2 + j - 2) / (2 * j * (j + 1)))
    w = 4 / (stages**2 + stages - 2)
    f = np.float32
    start, slope = state, f(step) * (laplacian @ state)
    older, newer = start, start + f(b[1] * w) * slope
    for k in range(2, stages + 1):
        mu = (2 * k - 1) / k * b[k] / b[k - 1]
        nu = -(k - 1) / k * b[k] / b[k - 2]
        mu_w = mu * w
        nxt = f(mu) * newer + f(nu) * older + f(1 - mu - nu) * start
        nxt += f(mu_w * step) * (laplacian @ newer) - f((1 - b[k - 1]) * mu_w) * slope
        older, newer = newer, nxt
    return np.asarray(newer)


def diffuse(level: FloatArray, voxel: float, dt: float, *, steps: int = 20) -> FloatArray:
    """Progress of diffusion into a body of any shape whose surface is held at 1.

    Explicit finite differences on cubic voxels; a surface that cuts between two voxel centres is
    met where it lies. Super time steps grow geometrically, as the solution smooths out.

    Parameters
    ----------
    level : ndarray, shape (ny, nx, nz)
        Depth below the surface in nm, negative outside; only its size near the surface matters.
    voxel : float
        Edge of a voxel in nm.
    dt : float
        Diffusion coefficient times time in nm2.
    steps : int
        Number of super time steps.

    Returns
    -------
    ndarray, shape (ny, nx, nz)
        0 where nothing has arrived, 1 at the surface and outside.

    References
    ----------
    C. D. Meyer, D. S. Balsara and T. D. Aslam, J. Comput. Phys. 257, 594 (2014), scheme RKL2;
    F. Gibou et al., J. Comput. Phys. 176, 205 (2002), for the surface.
    """
    progress = np.asarray(level <= 0, dtype=np.float32)
    if dt <= 0 or progress.all():
        return progress
    laplacian = _laplacian(level)
    stiffest = -float(laplacian.diagonal.min())
    left = np.ones(laplacian.index.size, dtype=np.float32)
    growth = 1.3 ** np.arange(steps)
    for part in dt / voxel**2 * growth / growth.sum():
        # Stable while step <= (s^2 + s - 2) / 4 times the explicit Euler limit 1 / stiffest.
        stages = int(np.ceil((np.sqrt(9 + 16 * part * stiffest) - 1) / 2)) + 1
        left = _super_step(laplacian, left, part, max(stages | 1, 3))
    progress[level > 0] = 1
    progress.reshape(-1)[laplacian.index] = 1 - left
    return progress


def surface_distance(level: FloatArray, cell: float, reach: float = np.inf) -> FloatArray:
    """Euclidean distance from the smooth convex surface where a level function changes sign.

    The surface is known where it crosses the lines of the grid, with its normal there; the
    distance is that from the tangent plane at the nearest of these points.

    Parameters
    ----------
    level : ndarray, any dimension
        Positive inside, negative outside, roughly linear across the surface.
    cell : float
        Spacing of the grid in nm.
    reach : float
        Where the surface is further than this the distance is left infinite, in nm.

    Returns
    -------
    ndarray
        Distance in nm, positive inside and negative outside; infinite where out of reach.
    """
    slopes = np.stack(list(np.gradient(level)), axis=-1)
    found = [_crossings(level, slopes, axis) for axis in range(level.ndim)]
    points, normals = (np.concatenate(part) for part in zip(*found, strict=True))
    cells = np.indices(level.shape).reshape(level.ndim, -1).T
    _, nearest = cKDTree(points).query(cells, distance_upper_bound=reach / cell)
    distance = np.where(level > 0, np.inf, -np.inf).ravel()
    near = nearest < len(points)
    nearest = nearest[near]
    distance[near] = np.sum((points[nearest] - cells[near]) * normals[nearest], axis=1) * cell
    return distance.reshape(level.shape).astype(np.float32)


def _crossings(level: FloatArray, slopes: FloatArray, axis: int) -> tuple[FloatArray, FloatArray]:
    """Where the surface crosses the grid lines along an axis, and its outward normals there."""
    ahead, behind = ([slice(None)] * level.ndim for _ in range(2))
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    first, second = level[tuple(behind)], level[tuple(ahead)]
    where = np.nonzero((first > 0) != (second > 0))
    part = (first[where] / (first[where] - second[where]))[:, None]
    slope = (1 - part) * slopes[tuple(behind)][where] + part * slopes[tuple(ahead)][where]
    points = np.array(where, dtype=float).T
    points[:, axis] += part[:, 0]
    return points, -slope / np.linalg.norm(slope, axis=1, keepdims=True)
