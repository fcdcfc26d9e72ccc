"""A thickness map made ready for cutting: filled, flattened, smoothed.

Rims are judged on the *absorbed share* ``(1 - exp(-mu T)) / mu`` and not on the thickness itself:
the optics blur intensity, so that a sharp edge keeps its place at half height only there. With
thickness, the half height of a sharp 80 nm rim lies a fifth of the resolution too far inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import ndimage

from spectromap._numerics import fwhm_to_sigma, robust_std
from spectromap.schema import pixel_size
from spectromap.segment._grid import (
    NOISE_SHARE,
    Array,
    Mask,
    Pair,
    after_smoothing,
    filled,
    sigma_px,
    skimage,
    white_noise,
)

#: Attenuation per nm that a thickness map answers to at a blurred rim: 0.0175 to 0.019
#: for 40 to 150 nm at Mn L3 where the fit has an offset, 0.011 where it has none. A change by half
#: moves rims by less than a tenth of the resolution.
ATTENUATION_PER_NM = 0.018
#: Terms of the background: degrees along y and x of products of Legendre polynomials, by their sum.
DEGREE = 6
_TERMS = [(m, d - m) for d in range(DEGREE + 1) for m in range(d + 1)]
#: How much each term bends: those above a quadratic are held back where no background is seen.
_BENDING: Array = np.array([float((m + n) ** 2) * (m + n > 2) for m, n in _TERMS])
STIFFNESS = 1e-5
#: Rounds of the fit of the background: number of terms, share of the map that must be seen, and
#: how many times the scatter a pixel may lie above it to count in the next round. The last start
#: wide, so that corners which no quadratic followed can come back.
_STAGES = [
    (1, 0.02, 2.5),
    *[(3, 0.05, 2.5)] * 3,
    *[(6, 0.2, 2.5)] * 4,
    *((len(_TERMS), 0.3, width) for width in (4.0, 4.0, 3.0, 3.0, 2.5, 2.5)),
]
#: An error of so many typical ones, and a value of less than so many errors, is no measurement.
POOR_ERRORS, POOR_SIGNAL = 10.0, 3.0
#: A pixel is above the background from this many standard deviations of the noise.
NOISE_LEVELS = 5.0


@dataclass
class Field:
    """A thickness map without gaps and background, ready for cutting.

    `absorbed` [nm] is the smoothed absorbed share, `noise` its standard deviation where nothing
    lies, `height` what a typical particle absorbs, `sigma` the blur in it [nm], `pixel` (dy, dx).
    """

    absorbed: Array
    valid: Mask
    noise: float
    height: float
    sigma: float
    resolution: float
    pixel: Pair


def absorbed_share(thickness: Array) -> Array:
    """Absorbed share [nm] of a thickness; a straight line below zero, so that noise stays even."""
    curved = -np.expm1(-ATTENUATION_PER_NM * np.maximum(thickness, 0.0)) / ATTENUATION_PER_NM
    return np.asarray(np.where(thickness > 0, curved, thickness))


def thickness_of(absorbed: Array) -> Array:
    """Thickness [nm] of an absorbed share, capped where nothing comes through."""
    share = np.minimum(ATTENUATION_PER_NM * absorbed, 0.98)
    return np.asarray(np.where(share > 0, -np.log1p(-share) / ATTENUATION_PER_NM, absorbed))


def _noise_of(values: Array, errors: Array | None) -> float:
    """Noise of single pixels [nm]: what the map shows, or what its errors say if that is more."""
    shown = white_noise(values)
    finite = errors[np.isfinite(errors)] if errors is not None else np.zeros(0)
    return max(shown, float(np.median(finite)) if finite.size else 0.0, 1e-6)


def _legendre(size: int) -> Array:
    """Legendre polynomials over an axis, shape (size, DEGREE + 1)."""
    return np.asarray(np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, size), DEGREE))


def _below(values: Array) -> Mask:
    """The lower of the two classes that values fall into."""
    if np.ptp(values) == 0:
        return np.ones(values.shape, bool)
    return np.asarray(values <= skimage("filters").threshold_otsu(values))


def _background(smooth: Array, noise: float) -> tuple[Array, float]:
    """Uneven background [nm] and the scatter of the pixels about it.

    A surface, from constant to quadratic and then up to the sixth degree, is fitted
    to the pixels that are not above it, again and again; it keeps to the lowest mode of the
    histogram. The less of the map is background, the stiffer it stays; where that is a twentieth
    or less there is nothing to fit and the thickness is taken as it is.
    """
    step = max(1, int(np.sqrt(smooth.size / 20_000)))
    values = smooth[::step, ::step]
    along = [_legendre(n) for n in values.shape]
    columns = np.stack(
        [np.outer(along[0][:, i], along[1][:, j]).ravel() for i, j in _TERMS], axis=-1
    )
    flat = values.ravel()
    chosen = _below(flat)
    coefficients: Array = np.zeros(1)
    rest, scatter = flat, noise
    for count, least, width in _STAGES:
        if chosen.mean() < least:
            break
        if count > 6 and coefficients.size == 6:  # what no quadratic follows may be background
            chosen = _below(rest)
        seen = columns[chosen, :count]
        stiff = np.diag(STIFFNESS * len(seen) * _BENDING[:count] ** 2)
        coefficients = np.linalg.lstsq(seen.T @ seen + stiff, seen.T @ flat[chosen], rcond=None)[0]
        rest = flat - columns[:, :count] @ coefficients
        scatter = max(robust_std(rest[chosen]), noise)
        chosen = rest < np.median(rest[chosen]) + width * scatter
    if chosen.mean() < 0.05 and coefficients.size == 1:
        return np.zeros_like(smooth), noise
    rows, columns_of = (_legendre(n) for n in smooth.shape)
    weights = np.zeros((rows.shape[1], columns_of.shape[1]))
    for (i, j), value in zip(_TERMS, coefficients, strict=False):
        weights[i, j] = value
    return np.asarray(rows @ weights @ columns_of.T), scatter


def measured(values: Array, errors: Array | None) -> Array:
    """A map without pixels that are nothing but noise, such as those that few frames have seen."""
    if errors is None or not np.isfinite(errors).any():
        return values
    poor = errors > POOR_ERRORS * float(np.median(errors[np.isfinite(errors)]))
    return np.where(poor & ~(np.abs(values) > POOR_SIGNAL * errors), np.nan, values)


def prepare(thickness: xr.DataArray, errors: Array | None, resolution: float) -> Field | None:
    """Fill, flatten and smooth a map; None where nothing stands out of the noise."""
    values, valid = filled(measured(np.asarray(thickness.values, float), errors))
    if not valid.any():
        return None
    pixel = pixel_size(thickness)
    optics = fwhm_to_sigma(resolution)
    noise = _noise_of(values, errors)

    coarse = sigma_px(optics, pixel, 0.7)
    smooth = ndimage.gaussian_filter(values, coarse, mode="nearest")
    base, scatter = _background(smooth, after_smoothing(noise, coarse))
    flat = values - base
    seen = absorbed_share(smooth - base)
    above = seen[valid & (seen > NOISE_LEVELS * scatter)]
    if above.size == 0:
        return None
    height = float(np.percentile(above, 95))

    # As little smoothing as leaves the noise small beside a particle; rims must stay sharp.
    needed = noise / (NOISE_SHARE * height * 2.0 * np.sqrt(np.pi))
    mean_pixel = float(np.sqrt(pixel[0] * pixel[1]))
    width = float(np.clip(needed * mean_pixel, 0.3 * optics, max(1.2 * optics, 0.8 * mean_pixel)))
    sigma = sigma_px(width, pixel)
    absorbed = ndimage.gaussian_filter(absorbed_share(flat), sigma, mode="nearest")
    left = max(after_smoothing(noise, sigma), scatter)
    total = float(np.sqrt(optics**2 + width**2 + mean_pixel**2 / 12.0))
    return Field(absorbed, valid, left, height, total, resolution, pixel)
