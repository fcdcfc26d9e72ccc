"""Over what distance a map of the fraction is alike."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import fft, optimize

from spectromap.heterogeneity._linear import Array, Index
from spectromap.schema import LOG, InputError, check_map, pixel_size

#: A finer grid costs time and tells nothing of lengths above its cells.
_MOST_CELLS = 256
_TILES = 4
_TRIED_LENGTHS = 40
#: The mean of a map hides what changes over more than this share of it.
_LARGEST_SHARE = 0.2


def correlation_length(
    maps: xr.Dataset, fraction: str, resolution_nm: float | None = None
) -> xr.Dataset:
    """Distance over which the fraction in particles is alike.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        ``particle_label``, ``thickness`` [nm] and ``<fraction>_fraction``.
    fraction : str
        Name of the mapped component.
    resolution_nm : float, optional
        Full width at half maximum of the point spread function [nm]; default two pixels. Noise of
        neighbours is alike for that reason alone, so that smaller distances are left out.

    Returns
    -------
    Dataset, dims (lag,)
        ``correlation_variance``, the mean product of deviations from the mean fraction at that
        distance ``lag`` [nm], and without dims ``correlation_length`` [nm], at which it has
        fallen to 1/e, with ``correlation_length_errors`` (1 sigma, NaN: not known), and
        ``correlated_variance``, to which it rises at distance zero without noise. NaN where the
        map is alike over less than half the resolution, or over more than a fifth of its size:
        the log says which.

    Raises
    ------
    InputError
        A variable is missing or the resolution is not positive.

    Notes
    -----
    An exponential of the distance is fitted to the radial mean of the autocovariance of the pixels
    of particles, weighted by thickness (N. Cressie, Statistics for Spatial Data (1993), chapter
    2), from the resolution to where it has fallen to a tenth. The error is that of the jackknife
    over tiles of the map: pixels are not independent of each other.
    """
    for name in ("particle_label", "thickness", f"{fraction}_fraction"):
        if name not in maps:
            raise InputError(f"the variable '{name}' is missing", where="maps")
        check_map(maps[name], name=name)
    pixel = pixel_size(maps["thickness"])
    least = 2.0 * max(pixel) if resolution_nm is None else resolution_nm
    if not least > 0:
        raise InputError(f"{least} nm is not a positive length", where="resolution_nm")
    values, weights, step = _cells(maps, fraction, pixel, least)
    extent = max(n * s for n, s in zip(values.shape, step, strict=True))
    covariance = _Covariance(values.shape, step, least)
    lag, curve = covariance.of(values, weights)
    length, top = _fitted(lag, curve)
    if length > _LARGEST_SHARE * extent:
        LOG.warning("heterogeneity: the map is alike over more than a fifth of its size")
        length = top = float("nan")
    elif length < 0.5 * least:
        LOG.warning("heterogeneity: the map is alike over less than half the resolution")
        length = top = float("nan")
    error = float("nan")
    if np.isfinite(length):
        error = _jackknife(covariance, values, weights)
    result = xr.Dataset(coords={"lag": ("lag", lag, {"units": "nm", "long_name": "distance"})})
    text = "mean product of deviations from the mean"
    result["correlation_variance"] = ("lag", curve, {"units": "1", "long_name": text})
    for name, value, units, text in (
        ("correlation_length", length, "nm", "distance at which the covariance is 1/e"),
        ("correlation_length_errors", error, "nm", "standard error"),
        ("correlated_variance", top, "1", "variance that neighbours share"),
    ):
        result[name] = ((), value, {"units": units, "long_name": text})
    return result


def _cells(
    maps: xr.Dataset, fraction: str, pixel: tuple[float, float], least: float
) -> tuple[Array, Array, tuple[float, float]]:
    """Mean fraction and thickness in cells of several pixels, and the size of a cell in nm."""
    values = np.asarray(maps[f"{fraction}_fraction"].values, float)
    weights = np.nan_to_num(np.asarray(maps["thickness"].values, float))
    weights = np.where(np.asarray(maps["particle_label"].values) > 0, np.maximum(weights, 0.0), 0.0)
    weights = np.where(np.isfinite(values), weights, 0.0)
    values = np.where(weights > 0, values, 0.0)
    fold = max(-(-max(values.shape) // _MOST_CELLS), int(least // (2.0 * max(pixel))), 1)
    shape = tuple(-(-n // fold) for n in values.shape)
    padded = [(0, m * fold - n) for n, m in zip(values.shape, shape, strict=True)]
    folded = [
        np.pad(array, padded).reshape(shape[0], fold, shape[1], fold).sum(axis=(1, 3))
        for array in (weights * values, weights)
    ]
    means = np.divide(folded[0], folded[1], out=np.zeros(shape), where=folded[1] > 0)
    return means, folded[1], (pixel[0] * fold, pixel[1] * fold)


class _Covariance:
    """Radial mean of the autocovariance of weighted cells."""

    def __init__(self, shape: tuple[int, ...], step: tuple[float, float], least: float) -> None:
        self.size = [fft.next_fast_len(2 * n, real=True) for n in shape]
        offsets = [fft.fftfreq(n, 1.0 / (n * s)) for n, s in zip(self.size, step, strict=True)]
        distance = np.hypot(offsets[0][:, None], offsets[1][None, : self.size[1] // 2 + 1])
        width = max(step)
        extent = max(n * s for n, s in zip(shape, step, strict=True))
        self.ring: Index = np.floor((distance - least) / width).astype(np.int64)
        self.count = max(int((0.5 * extent - least) / width), 0)
        self.chosen = (distance >= least) & (self.ring < self.count)
        self.distance = distance

    def _product(self, a: Array) -> Array:
        """Sums of products of an array with itself, by offset."""
        spectrum = fft.rfft2(a, s=self.size)
        whole = fft.irfft2(np.abs(spectrum) ** 2, s=self.size)
        return np.asarray(whole[:, : self.size[1] // 2 + 1])

    def of(self, values: Array, weights: Array) -> tuple[Array, Array]:
        """Distances in nm and the covariance there, both empty if there is nothing."""
        total = weights.sum()
        if total <= 0 or self.count < 1:
            return np.empty(0), np.empty(0)
        deviation = weights * (values - (weights * values).sum() / total)
        ring = self.ring[self.chosen]
        pairs = np.maximum(self._product(weights)[self.chosen], 0.0)
        sums = np.bincount(ring, self._product(deviation)[self.chosen], minlength=self.count)
        far = np.bincount(ring, pairs * self.distance[self.chosen], minlength=self.count)
        number = np.bincount(ring, pairs, minlength=self.count)
        known = number > 1e-9 * total * weights.max()
        return far[known] / number[known], sums[known] / number[known]


def _fitted(lag: Array, curve: Array) -> tuple[float, float]:
    """Length and height of an exponential fitted to the first fall of a curve."""
    if curve.size < 3:
        return float("nan"), float("nan")
    if curve[0] <= 0:
        return 0.0, 0.0
    low = np.flatnonzero(curve < 0.1 * curve[0])
    stop = max(int(low[0]) + 1 if low.size else curve.size, 3)
    x, y = lag[:stop], curve[:stop]

    def misfit(log_length: float) -> tuple[float, float]:
        shape = np.exp(-x / np.exp(log_length))
        top = max(float(shape @ y / (shape @ shape)), 0.0)
        return float(np.sum((y - top * shape) ** 2)), top

    tried = np.linspace(np.log(0.2 * x[0]), np.log(10.0 * lag[-1]), _TRIED_LENGTHS)
    best = int(np.argmin([misfit(value)[0] for value in tried]))
    ends = (tried[max(best - 1, 0)], tried[min(best + 1, tried.size - 1)])
    found = optimize.minimize_scalar(lambda v: misfit(v)[0], bounds=ends, method="bounded")
    return float(np.exp(found.x)), misfit(found.x)[1]


def _jackknife(covariance: _Covariance, values: Array, weights: Array) -> float:
    """Standard error of the length from leaving out tiles of the map."""
    lengths = []
    rows, columns = (np.linspace(0, n, _TILES + 1).astype(int) for n in values.shape)
    for row in range(_TILES):
        for column in range(_TILES):
            rest = weights.copy()
            rest[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = 0.0
            if rest.sum() < weights.sum():
                lengths.append(_fitted(*covariance.of(values, rest))[0])
    found = np.array(lengths)
    if found.size < 2 or not (found > 0).all():
        return float("nan")
    logs = np.log(found)
    whole = _fitted(*covariance.of(values, weights))[0]
    spread = np.sum((logs - logs.mean()) ** 2) * (logs.size - 1) / logs.size
    return float(whole * np.sqrt(spread))
