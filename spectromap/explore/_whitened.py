"""The optical density in units of its photon noise: covariance, projections, significance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spectromap._compiled import F32, compiled, log32
from spectromap.explore._pixels import BLOCK_WIDTH, Array, Float32, Index, Mask, Pixels
from spectromap.schema import InputError

#: 99 % point of the Tracy-Widom law of order one.
TRACY_WIDOM_99 = 2.0234
#: How far the noise model itself may be off, relative, before a component is believed.
NOISE_MODEL_TOLERANCE = 0.03
#: From so many energies on, most eigenvalues are noise and their median tells its level.
ENOUGH_ENERGIES = 12


@dataclass(frozen=True)
class Whitened:
    """Mean and noise of each used energy, and the covariance in units of that noise."""

    pixels: Pixels
    count: int
    known: Mask
    """Pixels that took part, flat."""
    mean: Array
    noise: Array
    covariance: Array
    effective_count: float

    @classmethod
    def of(cls, pixels: Pixels) -> Whitened:
        """Covariance of the optical density over pixels, in one pass."""
        density, variance = pixels.densities(pixels.sample())
        mean_variance = variance.mean(axis=1).astype(float)
        noise = np.sqrt(mean_variance)
        centre = density.mean(axis=1).astype(float)
        size = pixels.used.size
        products: Array = np.zeros(())
        known = np.empty(pixels.mask.size, bool)
        for where, block in _blocks(pixels, centre, noise):
            products = products + block @ block.T
            np.greater(block[size], 0.0, out=known[where])
        count = round(products[size, size])
        if count < 2:
            raise InputError(
                "fewer than two pixels were measured in every frame", where="absorption"
            )
        shift = products[size, :size] / count
        covariance = (products[:size, :size] - count * np.outer(shift, shift)) / (count - 1)
        # Noisier pixels count for less, and interpolated ones are not independent.
        squares = np.einsum("ep,ep->e", variance, variance) / variance.shape[1]
        evenness = float(np.mean(mean_variance**2 / squares))
        smoothing = float(np.mean(pixels.absorption["variance_factor"].values[pixels.used]))
        effective = max(2.0, count * evenness * min(1.0, smoothing))
        return cls(pixels, count, known, centre + shift * noise, noise, covariance, effective)

    def noise_level_and_edge(self, eigenvalues: Array) -> tuple[float, float]:
        """Level of the noise over the level stated, and the eigenvalue that noise can reach."""
        level = 1.0
        if eigenvalues.size >= ENOUGH_ENERGIES:
            ratio = min(1.0, eigenvalues.size / self.effective_count)
            level = float(np.median(eigenvalues) / (1.0 - ratio / 3.0))
        edge = _noise_edge(eigenvalues.size, self.effective_count)
        return level, level * edge * (1.0 + NOISE_MODEL_TOLERANCE)

    def project(self, axes: Array, centre: Array) -> Float32:
        """Scores (axis, pixel) of deviations from a centre along axes (energy, axis); or NaN."""
        pixels = self.pixels
        pad = -pixels.used.size % 4
        frames = np.append(pixels.used, np.repeat(pixels.used[:1], pad))
        scaled = (axes / self.noise[:, None]).T
        padded = np.pad(scaled, ((0, 0), (0, pad))).astype(np.float32)
        constant = (-scaled @ centre).astype(np.float32)
        result = np.empty((axes.shape[1], pixels.mask.size), np.float32)
        logarithm = np.empty((4, BLOCK_WIDTH), np.float32)
        for slab, start, where in pixels.blocks():
            n = where.stop - where.start
            _projections(slab, frames, padded, constant, start, logarithm, result, where.start, n)
        if self.count < pixels.mask.size:
            result[:, ~self.known] = np.nan
        return result


def _noise_edge(energies: int, pixels: float) -> float:
    """Largest eigenvalue that noise of unit variance reaches in 99 of 100 cases.

    Upper edge of the Marchenko-Pastur law for an (effective) number of pixels, with the spread of
    the largest eigenvalue about it: I. M. Johnstone, Ann. Statist. 29, 295 (2001), theorem 1.1.
    """
    n, p = np.sqrt(max(pixels - 1.0, 1.0)), np.sqrt(energies)
    spread = (n + p) * (1.0 / n + 1.0 / p) ** (1.0 / 3.0)
    return float(((n + p) ** 2 + TRACY_WIDOM_99 * spread) / pixels)


def eigen(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors (in columns) of a symmetric matrix, largest first."""
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]


def _blocks(pixels: Pixels, centre: Array, noise: Array) -> Iterator[tuple[slice, Float32]]:
    """Pixels, and their deviations in units of noise with two kinds of rows below.

    Below the used energies are one row of ones (zero in pixels left out), which makes sums of a
    matrix product, and rows of zeros up to a multiple of eight, at which products are faster.
    """
    size = pixels.used.size
    buffer = np.zeros((size + 1 + -(size + 1) % 8, BLOCK_WIDTH), np.float32)
    middle, weight = centre.astype(np.float32), (1.0 / noise).astype(np.float32)
    for slab, start, where in pixels.blocks():
        inside = pixels.mask[where]
        _deviations(slab, pixels.used, start, inside, middle, weight, buffer)
        yield where, buffer[:, : inside.size]


@compiled
def _deviations(
    transmission: Float32,
    used: Index,
    start: int,
    inside: Mask,
    centre: Float32,
    weight: Float32,
    result: Float32,
) -> None:
    """Weighted optical density minus its centre, then 1 where all are known; else 0 in both."""
    n = inside.size
    good = np.empty(n, np.float32)
    for p in range(n):
        good[p] = F32(1.0) if inside[p] else F32(0.0)
    for k in range(used.size):
        row = transmission[used[k], start : start + n]
        out = result[k, :n]
        c, w = centre[k], weight[k]
        for p in range(n):
            t = row[p]
            # The logarithm of NaN or of a negative number is a finite number here, times 0 below.
            good[p] = min(good[p], F32(1.0) if t > F32(0.0) else F32(0.0))
            out[p] = (-log32(max(t, F32(1e-30))) - c) * w
    result[used.size, :n] = good
    if good.min() > F32(0.0):
        return
    for k in range(used.size):
        out = result[k, :n]
        for p in range(n):
            out[p] *= good[p]


@compiled
def _projections(
    transmission: Float32,
    frames: Index,
    axes: Float32,
    constant: Float32,
    start: int,
    logarithm: Float32,
    result: Float32,
    first: int,
    n: int,
) -> None:
    """Projections (axis, pixel) of optical densities on axes (axis, frame), plus constants.

    Frames come in fours, the last padded with axes of zero: each result is read and written once
    for four of them.
    """
    for j in range(result.shape[0]):
        result[j, first : first + n] = constant[j]
    a, b, c, d = logarithm[0, :n], logarithm[1, :n], logarithm[2, :n], logarithm[3, :n]
    for k in range(0, frames.size, 4):
        for i in range(4):
            row, values = transmission[frames[k + i], start : start + n], logarithm[i, :n]
            for p in range(n):
                values[p] = log32(max(row[p], F32(1e-30)))
        for j in range(result.shape[0]):
            out = result[j, first : first + n]
            u, v, w, x = axes[j, k], axes[j, k + 1], axes[j, k + 2], axes[j, k + 3]
            for p in range(n):
                out[p] -= u * a[p] + v * b[p] + w * c[p] + x * d[p]
