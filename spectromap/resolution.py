"""The width of the point spread function, from the power spectrum of the picture itself.

Particles end at rims, so that the spectrum of an unblurred picture falls as a power of the spatial
frequency k: k^-3 for upright faces, k^-4 for the root of a rounded rim, k^-5 for a wedge. A
Gaussian psf multiplies it by ``exp(-(2 pi sigma k)^2)`` and pixels by their sinc, sampling folds
back what lies beyond, and white noise is added. All of that is fitted, with the power free within
what the rims of convex bodies do. Where the particles are does not enter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage, optimize

from spectromap._numerics import FWHM_PER_SIGMA
from spectromap.schema import InputError, check_map, pixel_size

__all__ = ["Resolution", "estimate_resolution", "fourier_ring_correlation"]

Array = NDArray[np.floating[Any]]
Pair = tuple[float, float]

#: Power with which the spectrum of the absorbed share falls, and how far fields differ in it.
POWER, POWER_SPREAD = 3.8, 0.5
#: Upright faces and wedges bound it.
POWER_RANGE = (3.0, 5.0)
#: Where a spectrum of thin lines beside that of rims lowers the deviance by this much, there are
#: gaps as narrow as the psf, and how sharp the picture is cannot be told from how narrow they are.
LINES_DEVIANCE = 9.0
#: Flat faces and single particles leave spikes that run through so many rings.
SPIKE_RINGS = 2.0
#: Relative uncertainty of the noise variance that the errors of the map state.
NOISE_SPREAD = 0.3
#: What fields of the same statistical error scatter by beyond it, because no spectrum of rims is a
#: pure power.
SHAPE_ERROR = 0.01
#: Share of each side that the taper at either end takes.
TAPER = 0.2
#: Relative width of the rings of spatial frequency, and sectors of a quarter turn.
RING_WIDTH, SECTORS = 0.04, 6
#: Modes of fewer periods across the field along either axis hold background, stripes and the
#: taper; of more than this share of the Nyquist frequency, what interpolation between pixels left.
LEAST_PERIODS, NYQUIST_SHARE = 3.0, 0.8
LEAST_PIXELS = 32
#: Beyond this relative error, and below one pixel, there is only a limit. ...
LARGEST_ERROR = 0.25
#: ... It is where the deviance is larger by this much: one-sided, 95 %.
LIMIT_DEVIANCE = 2.71
#: A picture says something if its lowest frequencies exceed the noise by this factor.
LEAST_CONTRAST = 10.0
#: Largest FWHM that is looked for, as share of the shorter side.
LARGEST_SHARE = 0.25
#: Rings whose mean says where two pictures cease to agree: single ones scatter.
AVERAGED_RINGS = 3


@dataclass(frozen=True)
class Resolution:
    """Width of the point spread function, as a picture shows it.

    Attributes
    ----------
    fwhm_nm : float
        Full width at half maximum in nm of the Gaussian that blurs like the optics do, without
        the pixels; with `limit` its upper limit (95 %), NaN if nothing can be said.
    error_nm : float
        Standard error in nm; NaN for a limit.
    limit : bool
        Whether only an upper limit can be given.
    reason : str
        Why it is a limit, or nothing at all; else empty.
    """

    fwhm_nm: float
    error_nm: float
    limit: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Spectrum:
    """Power in cells of spatial frequency, sign of the frequencies dropped.

    `fy`, `fx` [1/nm], `power` and the number of independent modes are those of the cells; `noise`
    is the power that the errors state, `pixel` (dy, dx) in nm.
    """

    fy: Array
    fx: Array
    power: Array
    modes: Array
    noise: float
    pixel: Pair
    side: float


@dataclass(frozen=True)
class _Fit:
    """Best parameters (see `_model`), their covariance, and the deviance over the scatter."""

    best: Array
    covariance: Array
    deviance: float


def estimate_resolution(transmission: xr.DataArray, errors: xr.DataArray) -> Resolution:
    """Estimate the width of the point spread function from a mean transmission image.

    The spectrum of what was in front of the optics is taken as ``A (1 + (k / k0)^2)^(-p / 2)``,
    flat above the size of what is there and a power below it.

    Parameters
    ----------
    transmission : DataArray, dims (y, x)
        Mean over the aligned energies of what the optics blur, 1 where nothing is: the
        transmitted intensity in STXM, the modulus of the transmission in ptychography. It is
        blurred exactly, as a thickness is not. NaN where nothing was measured.
    errors : DataArray, dims (y, x)
        Its random error (1 sigma).

    Returns
    -------
    Resolution
        The pixels are taken to average over their area; that is not part of the width.

    Raises
    ------
    InputError
        Not a map without units, or errors on another grid.

    References
    ----------
    P. Whittle, Ark. Mat. 2, 423 (1953), for the likelihood of a spectrum.
    """
    check_map(transmission, "1", name="transmission")
    check_map(errors, "1", name="errors")
    if transmission.shape != errors.shape:
        raise InputError(
            f"the errors have shape {errors.shape}, the image {transmission.shape}", where="errors"
        )
    return _kernel(
        np.asarray(transmission.values, float),
        np.asarray(errors.values, float),
        pixel_size(transmission),
    )


def _kernel(transmission: Array, errors: Array, pixel: Pair) -> Resolution:
    """What `estimate_resolution` gives, from arrays."""
    values, errors = _complete(transmission, errors)
    if min(values.shape) < LEAST_PIXELS:
        return _nothing(f"fewer than {LEAST_PIXELS} pixels along a side were measured")
    if not (np.isfinite(errors).any() and np.ptp(values) > 0):
        return _nothing("the image is even, or has no errors")
    spectrum = _spectrum(values, errors, pixel)
    k = np.hypot(spectrum.fy, spectrum.fx)
    lowest = spectrum.power[k < 2.0 * k.min()]
    if np.median(lowest) < LEAST_CONTRAST * spectrum.noise:
        return _nothing("nothing stands out of the noise")
    return _judged(spectrum)


def _nothing(reason: str) -> Resolution:
    return Resolution(float("nan"), float("nan"), True, reason)


def _complete(values: Array, errors: Array) -> tuple[Array, Array]:
    """Rows and columns that were mostly measured, gaps filled by their nearest neighbours."""
    valid = np.isfinite(values)
    rows, columns = (np.flatnonzero(valid.mean(axis=axis) > 0.5) for axis in (1, 0))
    if rows.size == 0 or columns.size == 0:
        return np.zeros((0, 0)), np.zeros((0, 0))
    crop = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    values, errors, valid = values[crop], errors[crop], valid[crop]
    if not valid.all():
        near = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
        values = values[tuple(near)]
    return values, errors


# ---------------------------------------------------------------- the spectrum


def _taper(size: int) -> Array:
    """Weights that rise from zero at both ends (Tukey's window)."""
    place = np.arange(size) + 0.5
    return np.asarray(
        np.sin(0.5 * np.pi * np.minimum(np.minimum(place, size - place) / (TAPER * size), 1)) ** 2
    )


def _spectrum(image: Array, errors: Array, pixel: Pair) -> _Spectrum:
    """Power spectrum in cells a few percent wide, far enough from its axes."""
    window = np.outer(_taper(image.shape[0]), _taper(image.shape[1]))
    square = np.sum(window**2)
    flat = image - np.average(image, weights=window)
    power = np.abs(np.fft.rfft2(flat * window)) ** 2 / square
    frequency = np.meshgrid(
        np.fft.fftfreq(image.shape[0], pixel[0]),
        np.fft.rfftfreq(image.shape[1], pixel[1]),
        indexing="ij",
    )
    use = np.ones(power.shape, bool)
    for f, n, step in zip(frequency, image.shape, pixel, strict=True):
        np.abs(f, out=f)
        use &= (f > LEAST_PERIODS / (n * step)) & (f < 0.5 * NYQUIST_SHARE / step)
    fy, fx, power = frequency[0][use], frequency[1][use], power[use]
    ring = np.floor(np.log(np.hypot(fy, fx) * max(pixel)) / RING_WIDTH).astype(int)
    sector = np.floor(np.arctan2(fy, fx) * (SECTORS / (0.5 * np.pi))).astype(int)
    _, cell = np.unique(ring * SECTORS + sector, return_inverse=True)
    count = np.bincount(cell)
    fy, fx, power = (np.bincount(cell, values) / count for values in (fy, fx, power))
    known = np.isfinite(errors)
    noise = np.average(errors[known] ** 2, weights=window[known] ** 2)
    # The taper makes neighbouring modes alike, so that fewer are independent.
    modes = count * square**2 / (window.size * np.sum(window**4))
    side = min(n * step for n, step in zip(image.shape, pixel, strict=True))
    return _Spectrum(fy, fx, power, modes, max(float(noise), 1e-30), pixel, side)


def _model(spectrum: _Spectrum, parameters: Array) -> Array:
    """Power of every cell.

    Parameters: logs of amplitude, knee [1/nm], sigma [nm] and noise; the power stands third. Lines,
    if there are any, add the logs of their amplitude and of their knee: k^-1 below it.
    """
    amplitude, knee, power, sigma, noise = parameters[:5]
    total = np.full_like(spectrum.fy, np.exp(noise))
    for fold_y, fold_x in product((-1, 0, 1), repeat=2):
        fy, fx = spectrum.fy * spectrum.pixel[0] + fold_y, spectrum.fx * spectrum.pixel[1] + fold_x
        square = (fy / spectrum.pixel[0]) ** 2 + (fx / spectrum.pixel[1]) ** 2
        unblurred = np.exp(amplitude - 0.5 * power * np.log1p(square * np.exp(-2.0 * knee)))
        if parameters.size > 5:
            line, width = parameters[5:]
            fall = np.log1p(square * np.exp(-2.0 * width))
            unblurred += np.exp(line - 0.5 * np.log(square) - 0.5 * (power - 1.0) * fall)
        blur = np.exp(-((2.0 * np.pi * np.exp(sigma)) ** 2) * square)
        total += unblurred * blur * (np.sinc(fy) * np.sinc(fx)) ** 2
    return total


def _deviances(spectrum: _Spectrum, parameters: Array) -> Array:
    """Signed roots of each cell's part of -2 ln L, for exponentially distributed power."""
    ratio = spectrum.power / _model(spectrum, parameters)
    part = np.maximum(ratio - 1.0 - np.log(ratio), 0.0)
    return np.asarray(np.sign(ratio - 1.0) * np.sqrt(2.0 * spectrum.modes * part))


def _misfit(spectrum: _Spectrum, scatter: float) -> Callable[[Array], Array]:
    """Residuals of a fit: those of the spectrum, and of what is known beforehand."""

    def misfit(parameters: Array) -> Array:
        known = [
            (parameters[2] - POWER) / POWER_SPREAD,
            (parameters[4] - np.log(spectrum.noise)) / NOISE_SPREAD,
        ]
        return np.concatenate([_deviances(spectrum, parameters) / np.sqrt(scatter), known])

    return misfit


# ---------------------------------------------------------------- the fit


def _sigma_range(spectrum: _Spectrum) -> Pair:
    """Logs of the least and the largest standard deviation [nm] that are looked for."""
    widths = np.array([0.1 * max(spectrum.pixel), LARGEST_SHARE * spectrum.side])
    low, high = np.log(widths / FWHM_PER_SIGMA)
    return float(low), float(high)


def _starts(spectrum: _Spectrum) -> list[Array]:
    """Where fits begin: a narrow, a usual and a wide psf."""
    k = np.hypot(spectrum.fy, spectrum.fx)
    amplitude = float(np.log(np.mean(spectrum.power[k < 2.0 * k.min()])))
    low, high = _sigma_range(spectrum)
    widths = np.log(np.array([0.7, 2.0, 5.0]) * max(spectrum.pixel) / FWHM_PER_SIGMA)
    return [
        np.array([amplitude, np.log(k.min()), POWER, s, np.log(spectrum.noise)])
        for s in np.clip(widths, low + 0.01, high - 0.01)
    ]


def _bounds(spectrum: _Spectrum, size: int) -> tuple[Array, Array]:
    """Least and largest parameters; amplitudes only keep exponentials finite."""
    knee = np.log([0.1 / spectrum.side, 1.0 / min(spectrum.pixel)])
    pairs = [(-100.0, 100.0), knee, POWER_RANGE, _sigma_range(spectrum), (-100.0, 100.0)]
    pairs += [(-100.0, 100.0), (np.log(3.0 / spectrum.side), knee[1])]
    low, high = np.array(pairs[:size], float).T
    return low, high


def _best(spectrum: _Spectrum, scatter: float, starts: list[Array]) -> _Fit:
    """The best of the fits from several starts."""
    bounds = _bounds(spectrum, starts[0].size)
    misfit = _misfit(spectrum, scatter)
    found = [
        optimize.least_squares(misfit, np.clip(start, *bounds), bounds=bounds, max_nfev=100)
        for start in starts
    ]
    best = min(found, key=lambda fit: float(fit.cost))
    # A parameter that nothing depends on has an enormous variance, not none.
    covariance = np.linalg.inv(best.jac.T @ best.jac + 1e-6 * np.eye(best.x.size))
    return _Fit(best.x, covariance, 2.0 * float(best.cost))


def _fitted(spectrum: _Spectrum) -> tuple[_Fit, float]:
    """Best fit, and the scatter of the power beyond that of independent modes (1 or more)."""
    starts, scatter = _starts(spectrum), 1.0
    for _ in range(3):
        fit = _best(spectrum, scatter, starts)
        starts = [fit.best]
        scatter = max(1.0, float(np.mean(_deviances(spectrum, fit.best) ** 2)))
    return fit, scatter


def _with_lines(spectrum: _Spectrum, fit: _Fit, scatter: float) -> _Fit:
    """Best fit with thin lines beside the rims."""
    amplitude = fit.best[0] + POWER_RANGE[0] * fit.best[1] - np.log(max(spectrum.pixel))
    starts = [
        np.append(fit.best, [amplitude + 2.0 * np.log(px), -np.log(px * max(spectrum.pixel))])
        for px in (5.0, 10.0, 20.0)
    ]
    return _best(spectrum, scatter, starts)


def _upper_limit(spectrum: _Spectrum, fit: _Fit, scatter: float) -> float:
    """FWHM [nm] from which on the psf is too wide for the spectrum; NaN if none is."""
    misfit, others = _misfit(spectrum, scatter), np.delete(fit.best, 3)
    low, high = _bounds(spectrum, fit.best.size)
    bounds = np.delete(low, 3), np.delete(high, 3)
    for sigma in np.arange(fit.best[3], _sigma_range(spectrum)[1], 0.05):

        def of_others(values: Array, sigma: float = sigma) -> Array:
            return misfit(np.insert(values, 3, sigma))

        found = optimize.least_squares(of_others, others, bounds=bounds, max_nfev=50)
        others = found.x
        if 2.0 * found.cost > fit.deviance + LIMIT_DEVIANCE:
            return float(np.exp(sigma) * FWHM_PER_SIGMA)
    return float("nan")


def _judged(spectrum: _Spectrum) -> Resolution:
    """A width with its error, or a limit, or nothing."""
    fit, scatter = _fitted(spectrum)
    lines = _with_lines(spectrum, fit, scatter)
    gaps = lines.deviance < fit.deviance - LINES_DEVIANCE
    variance = fit.covariance[3, 3] * (1.0 + (scatter - 1.0) * SPIKE_RINGS) / scatter
    relative = float(np.sqrt(variance + SHAPE_ERROR**2))
    fwhm = float(np.exp(fit.best[3]) * FWHM_PER_SIGMA)
    if relative <= LARGEST_ERROR and fwhm > max(spectrum.pixel) and not gaps:
        return Resolution(fwhm, relative * fwhm)
    limit = _upper_limit(spectrum, lines if gaps else fit, scatter)
    if not np.isfinite(limit):
        return _nothing("the spectrum falls below the noise before it shows the psf")
    reason = "gaps as narrow as the psf" if gaps else "the psf is too narrow beside the pixels"
    return Resolution(max(limit, *spectrum.pixel), float("nan"), True, reason)


# ---------------------------------------------------------------- two pictures


def fourier_ring_correlation(first: xr.DataArray, second: xr.DataArray) -> xr.Dataset:
    """Correlation of two pictures of the same field, by spatial frequency.

    Parameters
    ----------
    first, second : DataArray, dims (y, x)
        The same quantity on the same grid, from two scans: their noise is independent. NaN where
        nothing was measured.

    Returns
    -------
    Dataset, dims (frequency,)
        ``ring_correlation`` in rings of spatial ``frequency`` [nm-1] up to that of two pixels;
        ``half_bit``, the threshold; ``ring_modes``, the number of independent modes of a ring;
        and without dims ``ring_resolution`` [nm], the inverse of the frequency at which
        the mean of three rings falls below the threshold, and ``ring_resolution_limit``, whether it
        does not up to two pixels, which are then stated. NaN where nothing agrees. What the
        detail is good for depends on noise as much as on optics: this is no width of a psf.

    Raises
    ------
    InputError
        No maps, or not on the same grid.

    Notes
    -----
    Threshold of half a bit of information a pixel: ``(0.2071 + 1.9102 / sqrt(n)) / (1.2071 +
    0.9102 / sqrt(n))``, n independent modes.

    References
    ----------
    M. van Heel and M. Schatz, J. Struct. Biol. 151, 250 (2005).
    """
    for name, picture in (("first", first), ("second", second)):
        check_map(picture, name=name)
    if first.shape != second.shape or any(
        not np.allclose(first[axis], second[axis]) for axis in ("y", "x")
    ):
        raise InputError(
            "the pictures lie on different grids",
            where="second",
            remedy="Resample one onto the other with spectromap.scans.on_grid.",
        )
    pixel = pixel_size(first)
    frequency, curve, modes = _rings(
        *_common(np.asarray(first.values, float), np.asarray(second.values, float)), pixel
    )
    root = np.sqrt(np.maximum(modes, 1.0))
    threshold = (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
    length, limit = _crossing(frequency, curve, threshold, 2.0 * max(pixel))
    result = xr.Dataset(
        coords={"frequency": ("frequency", frequency, {"units": "nm-1"})},
    )
    for name, values, text in (
        ("ring_correlation", curve, "correlation of two scans"),
        ("half_bit", threshold, "threshold of half a bit"),
        ("ring_modes", modes, "independent modes of a ring"),
    ):
        result[name] = ("frequency", values, {"units": "1", "long_name": text})
    text = "down to which two scans agree"
    result["ring_resolution"] = ((), length, {"units": "nm", "long_name": text})
    result["ring_resolution_limit"] = ((), limit, {"units": "1"})
    return result


def _common(first: Array, second: Array) -> tuple[Array, Array]:
    """The part of two pictures that both have, gaps filled by their nearest neighbours."""
    gaps = ~(np.isfinite(first) & np.isfinite(second))
    # The same gaps in both would agree; what fills them is each picture's own.
    parts = [np.where(gaps, np.nan, picture) for picture in (first, second)]
    filled = [_complete(part, part)[0] for part in parts]
    return filled[0], filled[1]


def _rings(first: Array, second: Array, pixel: Pair) -> tuple[Array, Array, Array]:
    """Frequencies, correlation and independent modes of rings."""
    if min(first.shape) < LEAST_PIXELS:
        return np.empty(0), np.empty(0), np.empty(0)
    window = np.outer(_taper(first.shape[0]), _taper(first.shape[1]))
    spectra = [
        np.fft.fft2((image - np.average(image, weights=window)) * window)
        for image in (first, second)
    ]
    fy, fx = (np.fft.fftfreq(n, step) for n, step in zip(first.shape, pixel, strict=True))
    k = np.hypot(fy[:, None], fx)
    width = 1.0 / min(n * step for n, step in zip(first.shape, pixel, strict=True))
    # The taper leaves nothing of the first ring and makes neighbours alike.
    use = (k >= 1.5 * width) & (k < 0.5 / max(pixel))
    ring = np.rint(k[use] / width).astype(int) - 2
    cross, one, two, number, far = (
        np.bincount(ring, values[use])
        for values in (
            (spectra[0] * np.conj(spectra[1])).real,
            np.abs(spectra[0]) ** 2,
            np.abs(spectra[1]) ** 2,
            np.ones_like(k),
            k,
        )
    )
    curve = cross / np.maximum(np.sqrt(one * two), 1e-300)
    # Half of the modes repeat the other half.
    modes = 0.5 * number * np.sum(window**2) ** 2 / (window.size * np.sum(window**4))
    return far / number, curve, modes


def _crossing(
    frequency: Array, curve: Array, threshold: Array, finest: float
) -> tuple[float, bool]:
    """Length [nm] at which a curve falls below its threshold, and whether it never does."""
    excess = curve - threshold
    if excess.size < AVERAGED_RINGS:
        return float("nan"), False
    mean = np.convolve(excess, np.ones(AVERAGED_RINGS) / AVERAGED_RINGS, mode="valid")
    place = np.convolve(frequency, np.ones(AVERAGED_RINGS) / AVERAGED_RINGS, mode="valid")
    below = np.flatnonzero(mean < 0.0)
    if below.size == 0:
        return finest, True
    i = int(below[0])
    if i == 0:
        return float("nan"), False
    share = mean[i - 1] / (mean[i - 1] - mean[i])
    return float(1.0 / (place[i - 1] + share * (place[i] - place[i - 1]))), False
