"""Shifts between pairs of frames from images of their edges, solved for together.

Contrast turns over across an absorption edge; where the edges of the sample are does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal.windows import tukey

from spectromap._compiled import compiled

Array = NDArray[np.float64]
Frames = NDArray[np.float32]
F32 = np.float32

#: Numbers of [1 2 1] / 4 smoothings from which the one with the clearest peaks is taken.
SMOOTHINGS = (1, 4, 12)
#: From so many counts a pixel on, the least smoothing is the best.
MANY_COUNTS = 2000.0
#: Standard deviations by which a peak must surpass what chance is expected to make.
CHANCE_MARGIN = 1.3
#: Pairs whose peak surpasses chance by less count as if it were this much.
LEAST_EXCESS = 0.3
#: Pairs that disagree with the joint solution by more than this many pixels count against it.
INCONSISTENT_PX = 1.0
#: Residuals in pixels at which a pair loses half its weight, from the first solution to the last.
ROBUST_SCALES = (30.0, 10.0, 3.0, 1.0, 0.5, 0.3, 0.3)
#: Values of a correlation of which the spread is taken.
SPREAD_SAMPLE = 150


@compiled
def _smooth(values: NDArray[Any], work: NDArray[Any]) -> None:
    """Smooth an image by [1 2 1] / 4 along both axes, in place."""
    ny, nx = values.shape
    quarter, half = F32(0.25), F32(0.5)
    for y in range(ny):
        above, here, below = values[max(y - 1, 0)], values[y], values[min(y + 1, ny - 1)]
        line = work[y]
        for x in range(nx):
            line[x] = quarter * (above[x] + below[x]) + half * here[x]
    for y in range(ny):
        line, result = work[y], values[y]
        left, right, inner = line[: nx - 2], line[2:], line[1:]
        target = result[1:]
        for x in range(nx - 2):
            target[x] = quarter * (left[x] + right[x]) + half * inner[x]
        result[0] = half * (line[0] + line[1])
        result[nx - 1] = half * (line[nx - 2] + line[nx - 1])


@compiled
def _roots(frame: NDArray[Any], result: NDArray[Any]) -> None:
    """Square roots of counts, whose noise has one size; their mean where there is no data."""
    ny, nx = frame.shape
    total, known = F32(0.0), 0
    for y in range(ny):
        for x in range(nx):
            root = np.sqrt(max(frame[y, x], F32(0.0)))
            result[y, x] = root
            if root == root:
                total += root
                known += 1
    middle = total / F32(max(known, 1))
    if known < frame.size:
        for y in range(ny):
            for x in range(nx):
                root = result[y, x]
                result[y, x] = root if root == root else middle


@compiled
def _slopes(values: NDArray[Any], result: NDArray[Any]) -> None:
    """Twice the magnitude of the gradient."""
    ny, nx = values.shape
    for y in range(ny):
        above, here, below = values[max(y - 1, 0)], values[y], values[min(y + 1, ny - 1)]
        for x in range(nx):
            slope_y = below[x] - above[x]
            slope_x = here[min(x + 1, nx - 1)] - here[max(x - 1, 0)]
            result[y, x] = np.sqrt(slope_y * slope_y + slope_x * slope_x)


@compiled
def edge_image(
    frame: NDArray[Any], smoothings: int, window: NDArray[Any], result: NDArray[Any]
) -> None:
    """Gradient magnitude of the square root of counts, mean zero and norm one in the window."""
    root, work = np.empty_like(result), np.empty_like(result)
    _roots(frame, root)
    for _ in range(smoothings):
        _smooth(root, work)
    _slopes(root, result)
    ny, nx = result.shape
    weight, mean = F32(0.0), F32(0.0)
    for y in range(ny):
        for x in range(nx):
            weight += window[y, x]
            mean += window[y, x] * result[y, x]
    mean /= max(weight, F32(1e-20))
    power = F32(0.0)
    for y in range(ny):
        for x in range(nx):
            edge = (result[y, x] - mean) * window[y, x]
            result[y, x] = edge
            power += edge * edge
    if power > F32(0.0):
        result /= np.sqrt(power)


@compiled
def _vertex(before: Any, here: Any, after: Any) -> Any:
    """Offset of the vertex of the parabola through three values, within half a pixel."""
    curvature = before - 2.0 * here + after
    if curvature >= 0.0:
        return 0.0
    return min(max(0.5 * (before - after) / curvature, -0.5), 0.5)


@compiled
def find_peaks(correlations: NDArray[Any], reach_y: int, reach_x: int, found: NDArray[Any]) -> None:
    """Place of the highest value in each cyclic correlation, and how far it stands out."""
    count, ny, nx = correlations.shape
    for n in range(count):
        values = correlations[n]
        best, best_y, best_x = values[0, 0], 0, 0
        for y in range(-reach_y, reach_y + 1):
            row = values[y % ny]
            for first, last in ((0, reach_x + 1), (nx - reach_x, nx)):
                for x in range(first, last):
                    if row[x] > best:
                        best, best_y, best_x = row[x], y, x
        sample = np.empty(SPREAD_SAMPLE, dtype=np.float32)
        high, wide = 2 * reach_y + 1, 2 * reach_x + 1
        for i in range(SPREAD_SAMPLE):
            # Steps of the golden section of the area reach all of it evenly.
            place = int(high * wide * ((i * 0.6180339887) % 1.0))
            sample[i] = values[(place // wide - reach_y) % ny, (place % wide - reach_x) % nx]
        middle = np.median(sample)
        spread = 1.4826 * np.median(np.abs(sample - middle))
        line = values[best_y % ny]
        x = best_x if best_x <= reach_x else best_x - nx
        found[n, 0] = best_y + _vertex(
            values[(best_y - 1) % ny, best_x], best, values[(best_y + 1) % ny, best_x]
        )
        found[n, 1] = x + _vertex(line[(best_x - 1) % nx], best, line[(best_x + 1) % nx])
        found[n, 2] = (best - middle) / spread if spread > 0.0 else 0.0


class Correlator:
    """Peaks of the correlations between edge images of frames.

    Parameters
    ----------
    shape : tuple of int
        Of a frame.
    limit : tuple of float
        Largest shift along y and x in pixels.
    allowed : ndarray of float, shape (y, x), optional
        Weight of each pixel from 0 to 1.
    """

    def __init__(
        self, shape: tuple[int, ...], limit: tuple[float, float], allowed: Frames | None = None
    ) -> None:
        window = np.outer(tukey(shape[0], 0.2), tukey(shape[1], 0.2)).astype(np.float32)
        self.window = window if allowed is None else (window * allowed).astype(np.float32)
        # The window has dark borders, so half of the reach is room enough.
        self.shape = tuple(
            int(fft.next_fast_len(int(n + 0.5 * r), real=True))
            for n, r in zip(shape, limit, strict=True)
        )
        self.reach = [
            min(int(np.ceil(r)), n // 2 - 2) for r, n in zip(limit, self.shape, strict=True)
        ]

    def spectra(self, frames: Frames, smoothings: int) -> NDArray[np.complex64]:
        """Fourier transforms of the edge images, padded with zeros."""
        edges = np.empty(frames.shape, dtype=np.float32)
        for frame, result in zip(frames, edges, strict=True):
            edge_image(frame, smoothings, self.window, result)
        return np.asarray(fft.rfft2(edges, self.shape), dtype=np.complex64)

    def peaks(self, spectra: NDArray[np.complex64], index: NDArray[np.intp]) -> Array:
        """Shift of the second frame of each pair against the first (y, x), height of the peak."""
        found = np.empty((len(index), 3))
        for k in range(0, len(index), 16):
            part = slice(k, k + 16)
            product = spectra[index[part, 1]] * np.conj(spectra[index[part, 0]])
            correlations = fft.irfft2(product, self.shape, overwrite_x=True)
            find_peaks(correlations, self.reach[0], self.reach[1], found[part])
        return found

    def chance(self, spectra: NDArray[np.complex64]) -> float:
        """Height in standard deviations of the highest peak that chance makes.

        The maximum of N independent normal numbers; N is the number of independent places within
        reach, from the power spectrum: few if the images are smooth.
        """
        power = np.mean(spectra.real**2 + spectra.imag**2, axis=0, dtype=np.float64)
        if not power.any():
            return CHANCE_MARGIN
        waves = power.sum() ** 2 / (power**2).sum() * 2.0
        area = np.prod([2 * r + 1 for r in self.reach]) / np.prod(self.shape)
        return float(np.sqrt(2.0 * np.log(max(waves * area, 2.0))) + CHANCE_MARGIN)


def lagged_pairs(count: int, lags: tuple[int, ...]) -> NDArray[np.intp]:
    """Pairs of frames that are some numbers of frames apart."""
    kept = [lag for lag in lags if 0 < lag < count] or [1]
    return np.concatenate(
        [np.stack([np.arange(count - lag), np.arange(lag, count)], axis=1) for lag in kept]
    )


def clearest(frames: Frames, correlator: Correlator) -> int:
    """The smoothing with which neighbouring frames agree most clearly: more if noisy."""
    if float(np.nanmedian(frames[:, ::4, ::4])) > MANY_COUNTS:
        return SMOOTHINGS[0]
    last = len(frames) - 2
    sample = np.unique(np.linspace(0, last, min(6, last + 1)).astype(int))
    index = np.stack([np.arange(len(sample)), np.arange(len(sample)) + len(sample)], axis=1)
    both = np.concatenate([frames[sample], frames[sample + 1]])
    heights = []
    for smoothings in SMOOTHINGS:
        spectra = correlator.spectra(both, smoothings)
        excess = correlator.peaks(spectra, index)[:, 2] - correlator.chance(spectra)
        heights.append(float(np.median(excess)))
    return SMOOTHINGS[int(np.argmax(heights))]


def pairwise(
    frames: Frames, index: NDArray[np.intp], correlator: Correlator, smoothings: int
) -> tuple[Array, Array, Array]:
    """Shifts (frame, 2) in pixels from pairs, their errors, and each frame's consistency."""
    count = len(frames)
    spectra = correlator.spectra(frames, smoothings)
    measured = correlator.peaks(spectra, index)
    chance = correlator.chance(spectra)
    weights = np.maximum(measured[:, 2] - chance, LEAST_EXCESS) ** 2
    shifts, residual, robust = _solve_pairs(index, measured[:, :2], weights, count)
    good = (np.hypot(*residual.T) < INCONSISTENT_PX) & (measured[:, 2] > chance)

    def per_frame(values: Array) -> Array:
        return np.bincount(index.ravel(), np.repeat(values, 2), count).astype(np.float64)

    consistency = per_frame(weights * good) / np.maximum(per_frame(weights), 1e-30)
    strength, pairs = per_frame(robust * good), per_frame(1.0 * good)
    spread = np.stack([per_frame(robust * good * r**2) for r in residual.T], axis=1)
    errors = np.full((count, 2), np.inf)
    kept = (pairs > 0) & (strength > 0)
    errors[kept] = np.sqrt(spread[kept] / (strength * pairs)[kept, None]) + 1e-3
    return shifts, errors, consistency


def _solve_pairs(
    index: NDArray[np.intp], measured: Array, weights: Array, count: int
) -> tuple[Array, Array, Array]:
    """Frame shifts from pair shifts; weights fall with the residual until the solution rests.

    P. J. Huber, Robust Statistics (1981), section 7.8.
    """
    rows = np.arange(len(index))
    design = np.zeros((len(index), count))
    design[rows, index[:, 1]] = 1.0
    design[rows, index[:, 0]] = -1.0
    robust = weights.copy()
    shifts = np.zeros((count, 2))
    for scale in ROBUST_SCALES:
        weighted = design * robust[:, None]
        normal = design.T @ weighted + 1e-9 * np.eye(count)
        shifts[:] = np.linalg.solve(normal, weighted.T @ measured)
        residual = measured - design @ shifts
        robust = weights / (1.0 + (residual**2).sum(axis=1) / scale**2)
    return shifts - np.median(shifts, axis=0), measured - design @ shifts, robust
