"""Two scans of one field at one edge: noise as it is, and what the beam did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, optimize, special

from spectromap._numerics import robust_std
from spectromap.scans._maps import Array, Mask, Pair, components, usable, variance_of
from spectromap.schema import InputError, pixel_size

#: Noise is correlated no further than this many resolutions, or pixels.
NOISE_RESOLUTIONS, NOISE_PIXELS = 1.5, 2.9
#: A particle changed if its change exceeds this many standard errors.
CHANGED_SIGMA = 2.0
#: A pixel further out than this many standard deviations counts no more than one there.
FARTHEST = 5.0
DICHROISM_REMARK = (
    "a small p-value means that particles changed by more or less than each other beyond their"
    " errors; oriented crystallites do so by linear dichroism where sample or polarisation was"
    " turned between the scans, and so does uneven beam damage: one scan cannot tell, and the"
    " fractions of single particles are then only known to this spread"
)


def compare_repeats(
    first: xr.Dataset,
    second: xr.Dataset,
    fraction: str,
    resolution_nm: float,
    dose_MGy: tuple[xr.DataArray | None, xr.DataArray | None] = (None, None),
) -> xr.Dataset:
    """Compare two scans of one field: noise as it is, and what happened between them.

    Parameters
    ----------
    first, second : Dataset, dims (y, x)
        Maps on one grid (see `on_grid`): amounts and covariances of the components, ``flags``;
        ``particle_label`` of the first. ``attrs`` ``offset_y_nm_errors``, ``offset_x_nm_errors``
        of the second go into the errors.
    fraction : str
        Name of the mapped component.
    resolution_nm : float
        Full width at half maximum of the point spread function [nm]: no noise is correlated
        further.
    dose_MGy : tuple of DataArray or None
        Dose of each scan as `dose_map` makes it, on the same grid. One that is not known is taken
        to be like the other.

    Returns
    -------
    Dataset
        (particle): ``change`` of the fraction, second minus first, with ``change_errors`` (1
        sigma), and ``dose`` [MGy] between the scans. No dims: ``mean_change`` over particles
        with ``mean_change_errors``, 95 % interval ``mean_change_low``, ``mean_change_high``, and
        ``mean_change_systematic``, what the pixels of a scan share (an upper bound: the error
        of the references' scales is common to both scans); ``change_spread``, the standard
        deviation of true changes between particles; ``change_per_MGy`` and its errors, NaN
        without dose; ``noise_ratio``, scatter of the pixels over their stated errors, 1 if these
        are right; ``noise_pixels``, how many pixels share one value of the noise;
        ``changed_share`` of the particles whose change exceeds two standard errors (0.046 by
        chance); ``dichroism``, the p-value of equal changes in all particles, and what it means
        in ``attrs["remark"]``; ``particles_compared``.

    Raises
    ------
    InputError
        Different grids, no particles, or a map is missing.

    Notes
    -----
    With ``g = t_c - F t`` of each scan, F the fraction of the particle, the change of F is the
    sum of the difference of g over the thickness, and ``var(g)`` is known from the covariances.
    Noise of neighbouring pixels is correlated after interpolation: how much is measured on the
    difference itself inside the particles, as is its size. The mean is that of random effects (R.
    C. Paule and J. Mandel, J. Res. Natl. Bur. Stand. 87, 377 (1982)), so that the scatter
    between particles counts, its interval that of J. Hartung and G. Knapp, Stat. Med. 20, 1771
    (2001). Each scan sees the sample as it is in the middle of its own dose, so that half of
    both doses lies between them.
    """
    names = components(first)
    if fraction not in names or components(second) != names:
        raise InputError(f"not both scans hold the component '{fraction}'", where="fraction")
    if "particle_label" not in first or not (first["particle_label"].values > 0).any():
        raise InputError("no particles are marked", where="first.particle_label")
    for axis in "yx":
        if not np.array_equal(first[axis].values, second[axis].values):
            raise InputError(
                "the scans lie on different grids",
                where="second",
                remedy="Bring the second scan onto the grid of the first with on_grid.",
            )
    pair = _Repeats.of(first, second, names, fraction)
    labels, noise = pair.numbers, pair.noise(resolution_nm)
    error = np.sqrt(noise.correlated * pair.summed(pair.variance)) / pair.amount
    error = np.hypot(error, pair.moved(second))
    result = xr.Dataset(coords={"particle": ("particle", labels, {"units": "1"})})
    text = "change of the fraction from the first scan to the second"
    result["change"] = ("particle", pair.change, {"units": "1", "long_name": text})
    result["change_errors"] = ("particle", error, {"units": "1"})
    dose = pair.dose(dose_MGy)
    text = "dose between the scans"
    result["dose"] = ("particle", dose, {"units": "MGy", "long_name": text})
    mean = _random_effects(pair.change, error)
    rate = _random_effects(pair.change / dose, error / dose)
    share = np.mean(np.abs(pair.change) > CHANGED_SIGMA * error)
    for name, value, units, text in (
        ("mean_change", mean.value, "1", "mean change of the fraction"),
        ("mean_change_errors", mean.error, "1", ""),
        ("mean_change_low", mean.low, "1", "of the 95 % interval"),
        ("mean_change_high", mean.high, "1", "of the 95 % interval"),
        ("mean_change_systematic", pair.systematic(), "1", "what pixels share, at most"),
        ("change_spread", mean.spread, "1", "between particles, beyond their errors"),
        ("change_per_MGy", rate.value, "MGy-1", "change of the fraction per dose"),
        ("change_per_MGy_errors", rate.error, "MGy-1", ""),
        ("noise_ratio", noise.ratio, "1", "scatter of pixels over their stated errors"),
        ("noise_pixels", noise.correlated / noise.ratio**2, "1", "that share one value of noise"),
        ("changed_share", share, "1", "of particles that changed by more than two errors"),
        ("dichroism", mean.p_equal, "1", "p-value of equal changes in all particles"),
        ("particles_compared", labels.size, "1", ""),
    ):
        result[name] = ((), value, {"units": units} | ({"long_name": text} if text else {}))
    result["dichroism"].attrs["remark"] = DICHROISM_REMARK
    return result


@dataclass(frozen=True)
class _Noise:
    """Scatter over the stated errors, and the variance of a sum over that of independent pixels."""

    ratio: float
    correlated: float


@dataclass(frozen=True)
class _Repeats:
    """Two scans on one grid, pixel by pixel, and their particles.

    `row` (y, x) is the particle's place in `numbers`, -1 where there is none; `difference` that of
    ``t_c - F t`` and `variance` its stated variance; `amount` the thickness summed, by particle.
    """

    row: NDArray[np.intp]
    numbers: NDArray[np.int32]
    difference: Array
    variance: Array
    amount: Array
    change: Array
    relative: tuple[Array, Array]
    shared: Array
    step: Pair

    @classmethod
    def of(cls, first: xr.Dataset, second: xr.Dataset, names: list[str], fraction: str) -> _Repeats:
        """Take the maps apart."""
        good = np.all(
            [
                np.isfinite(scan["thickness"].values)
                & np.isfinite(scan[f"{fraction}_{fraction}_covariance"].values)
                & usable(scan)
                for scan in (first, second)
            ],
            axis=0,
        )
        labels = np.where(good, first["particle_label"].values, 0).astype(np.int32)
        numbers, row = np.unique(labels, return_inverse=True)
        row = row.reshape(labels.shape) - int(numbers[0] == 0)
        numbers = numbers[numbers > 0]
        inside = row >= 0
        totals = [
            np.bincount(row[inside], scan["thickness"].values[inside].astype(float))
            for scan in (first, second)
        ]
        kept = (totals[0] > 0) & (totals[1] > 0)
        if not kept.any():
            raise InputError("no particle was seen by both scans", where="second")
        renamed = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
        row, numbers = renamed[row], numbers[kept]
        inside = row >= 0
        parts = [_shares(scan, names, fraction, row, inside) for scan in (first, second)]
        shared = np.sum([part[3] ** 2 for part in parts], axis=0)
        return cls(
            row=row,
            numbers=numbers,
            difference=parts[1][1] - parts[0][1],
            variance=parts[0][2] + parts[1][2],
            amount=np.sqrt(totals[0] * totals[1])[kept],
            change=parts[1][0] - parts[0][0],
            relative=(parts[0][1], parts[1][1]),
            shared=shared,
            step=pixel_size(first["thickness"]),
        )

    def summed(self, values: Array) -> Array:
        """Sum over the pixels of each particle."""
        inside = self.row >= 0
        return np.bincount(self.row[inside], values[inside], self.numbers.size).astype(float)

    def noise(self, resolution: float) -> _Noise:
        """Size and correlation of the noise of the difference inside the particles."""
        inside = (self.row >= 0) & (self.variance > 0)
        z = np.where(inside, self.difference / np.sqrt(np.where(inside, self.variance, 1.0)), 0.0)
        ratio = robust_std(z[inside])
        z = np.clip(z, -FARTHEST * ratio, FARTHEST * ratio)
        far = max(NOISE_RESOLUTIONS * resolution, NOISE_PIXELS * max(self.step))
        reach = [int(np.ceil(far / s)) for s in self.step]
        shape = [
            int(fft.next_fast_len(n + 2 * r, real=True))
            for n, r in zip(z.shape, reach, strict=True)
        ]
        product, pairs = (
            fft.irfft2(np.abs(fft.rfft2(part.astype(float), shape)) ** 2, shape)
            for part in (z, inside)
        )
        rows, columns = (np.r_[0 : r + 1, -r:0] for r in reach)
        lags = np.ix_(rows, columns)
        near = np.hypot(rows[:, None] * self.step[0], columns * self.step[1]) <= far
        covariance = product[lags] / np.maximum(pairs[lags], 1.0)
        # The mean of each particle was taken off, and with it a share of every lag.
        pixels = self.summed(np.ones(self.row.shape))
        typical = float((pixels**2).sum() / pixels.sum())
        lost = min(float(near.sum()) / typical, 0.5)
        total = float(covariance[near].sum()) / (1.0 - lost)
        return _Noise(ratio, max(total, ratio**2))

    def moved(self, second: xr.Dataset) -> Array:
        """What the error of the registration does to each particle's change."""
        total = np.zeros(self.numbers.size)
        slopes = np.gradient(self.relative[0], *self.step)
        for axis, slope in zip("yx", slopes, strict=True):
            error = float(second.attrs.get(f"offset_{axis}_nm_errors", 0.0))
            total += (self.summed(slope) * error / self.amount) ** 2
        return np.sqrt(total)

    def dose(self, doses: tuple[xr.DataArray | None, xr.DataArray | None]) -> Array:
        """Dose between the middles of both scans, by particle."""
        found = []
        for dose in doses:
            if dose is None:
                continue
            if dose.attrs.get("units") != "MGy" or dose.shape != self.row.shape:
                raise InputError("a dose is in MGy on the grid of the maps", where="dose_MGy")
            known = np.isfinite(dose.values)
            total = self.summed(np.where(known, dose.values, 0.0))
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(total / self.summed(known.astype(float)))
        return np.mean(found, axis=0) if found else np.full(self.numbers.size, np.nan)

    def systematic(self) -> float:
        """Error of the mean change that all pixels of a scan share."""
        return float(np.average(np.sqrt(self.shared), weights=self.amount))


def _shares(
    scan: xr.Dataset, names: list[str], fraction: str, row: NDArray[np.intp], inside: Mask
) -> tuple[Array, Array, Array, Array]:
    """Fraction of each particle; ``t_c - F t`` of its pixels and their variance; the shared error.

    The shared error of the fraction is that of each particle.
    """
    total = np.where(inside, scan["thickness"].values, 0.0).astype(float)
    part = np.where(inside, scan[f"{fraction}_thickness"].values, 0.0).astype(float)
    weight = np.bincount(row[inside], total[inside])
    found = np.bincount(row[inside], part[inside]) / weight
    share = np.where(inside, found[row], 0.0)
    covariances = {
        str(n): np.where(inside, scan[n].values, 0.0).astype(float)
        for n in scan.data_vars
        if str(n).endswith("_covariance")
    }
    variance = np.where(inside, variance_of(covariances, names, fraction, share), 0.0)
    systematic = np.zeros(weight.size)
    if f"{fraction}_fraction_systematic" in scan:
        values = np.nan_to_num(scan[f"{fraction}_fraction_systematic"].values[inside].astype(float))
        amounts = np.abs(total[inside])
        systematic = np.bincount(row[inside], values * amounts) / np.bincount(row[inside], amounts)
    return found, part - share * total, variance, systematic


@dataclass(frozen=True)
class _Mean:
    """Mean over particles, its standard error and 95 % interval; spread; p-value of no spread."""

    value: float
    error: float
    low: float
    high: float
    spread: float
    p_equal: float


def _random_effects(values: Array, errors: Array) -> _Mean:
    """Random-effects mean of values with errors (Paule and Mandel; Hartung and Knapp)."""
    good = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    values, errors = values[good], errors[good]
    count = values.size
    if count == 0:
        return _Mean(*(float("nan"),) * 6)

    def mean(variance: float) -> tuple[float, float, Array]:
        """Weighted mean, Cochran's Q and weights at a variance between particles."""
        weights = 1.0 / (errors**2 + variance)
        middle = float(weights @ values / weights.sum())
        return middle, float(weights @ (values - middle) ** 2), weights

    middle, q, weights = mean(0.0)
    p_equal = float(special.chdtrc(count - 1, q)) if count > 1 else float("nan")
    spread = 0.0
    if q > count - 1 > 0:
        largest = float(np.var(values, ddof=1)) * count + float(np.max(errors)) ** 2
        spread = float(optimize.brentq(lambda v: mean(v)[1] - (count - 1), 0.0, largest, rtol=1e-6))
        middle, q, weights = mean(spread)
    factor = max(q / (count - 1), 1.0) if count > 1 else 1.0
    error = float(np.sqrt(factor / weights.sum()))
    half = error * float(special.stdtrit(count - 1, 0.975)) if count > 1 else 1.96 * error
    return _Mean(middle, error, middle - half, middle + half, float(np.sqrt(spread)), p_equal)
