"""What several stages need: blur, sub-pixel interpolation, distances, resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._compiled import gather, shift_rows

FloatArray = NDArray[np.floating[Any]]

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
#: Half width in pixels of the interpolation kernel, and so the halo that a shifted row needs.
KERNEL_HALF_WIDTH = 4


def fwhm_to_sigma(fwhm: float) -> float:
    """Standard deviation of a Gaussian of the given full width at half maximum."""
    return float(fwhm) / float(FWHM_PER_SIGMA)


def gaussian_blur(image: FloatArray, fwhm: float | tuple[float, float]) -> FloatArray:
    """Blur the last two axes by a Gaussian; `fwhm` in pixels, one number or (y, x)."""
    widths: tuple[float, float] = (fwhm, fwhm) if isinstance(fwhm, (int, float)) else fwhm
    sigma = [0.0] * (image.ndim - 2) + [fwhm_to_sigma(w) for w in widths]
    blurred: FloatArray = ndimage.gaussian_filter(image, sigma, mode="nearest")
    return blurred


def lanczos_weights(fraction: float, half_width: int = KERNEL_HALF_WIDTH) -> FloatArray:
    """Weights of a Lanczos interpolation at `fraction` (0 <= fraction < 1) past a sample.

    The 2 * half_width weights belong to the samples ``1 - half_width ... half_width`` and sum to
    one, so that a constant stays what it is.

    References
    ----------
    C. E. Duchon, J. Appl. Meteorol. 18, 1016 (1979).
    """
    offsets = np.arange(1 - half_width, half_width + 1) - fraction
    weights = np.sinc(offsets) * np.sinc(offsets / half_width)
    return np.asarray(weights / weights.sum())


def _taps(shift: float, dtype: Any) -> tuple[int, FloatArray]:
    """Offset of the first sample and the weights that interpolate at a shift."""
    whole = int(np.floor(shift))
    fraction = shift - whole
    if fraction < 1e-9:
        return whole, np.ones(1, dtype=dtype)
    return whole + 1 - KERNEL_HALF_WIDTH, lanczos_weights(fraction).astype(dtype)


def sample_shifted(
    frame: FloatArray, shift_y: float, shift_x: float, rows: range | None = None
) -> FloatArray:
    """Interpolate a frame once: ``result[y, x] = frame[y + shift_y, x + shift_x]``.

    Parameters
    ----------
    frame : ndarray, shape (ny, nx)
        NaN marks pixels without data; every result that would use one is NaN.
    shift_y, shift_x : float
        In pixels.
    rows : range, optional
        Which y are wanted; they may lie outside the frame. Default all of the frame.

    Returns
    -------
    ndarray, shape (len(rows), nx)
        NaN where the kernel reaches outside the frame.
    """
    rows = range(frame.shape[0]) if rows is None else rows
    result = np.empty((len(rows), frame.shape[1]), dtype=frame.dtype)
    whole_y, taps_y = _taps(shift_y, frame.dtype)
    whole_x, taps_x = _taps(shift_x, frame.dtype)
    shift_rows(np.ascontiguousarray(frame), rows.start, whole_y, taps_y, whole_x, taps_x, result)
    return result


def rows_needed(rows: range, shift_y: float, size: int) -> range:
    """Rows of a frame of `size` rows that `sample_shifted` uses for the rows wanted."""
    whole, taps = _taps(shift_y, np.float64)
    first = min(max(rows.start + whole, 0), size)
    return range(first, max(first, min(rows.stop + whole + taps.size - 1, size)))


def sample_points(
    frame: FloatArray,
    y: NDArray[np.integer[Any]],
    x: NDArray[np.integer[Any]],
    shift_y: float,
    shift_x: float,
) -> FloatArray:
    """What `sample_shifted` gives at single pixels.

    Parameters
    ----------
    frame : ndarray, shape (ny, nx)
        NaN marks pixels without data.
    y, x : ndarray of int, shape (n,)
        Row and column of each pixel.
    shift_y, shift_x : float
        In pixels.

    Returns
    -------
    ndarray, shape (n,)
    """
    result = np.empty(y.size, dtype=frame.dtype)
    whole_y, taps_y = _taps(shift_y, frame.dtype)
    whole_x, taps_x = _taps(shift_x, frame.dtype)
    gather(frame, y + whole_y, x + whole_x, taps_y, taps_x, result)
    return result


def interpolation_variance(shift_y: float, shift_x: float) -> float:
    """Factor by which `sample_shifted` multiplies the variance of independent pixels."""
    factor = 1.0
    for shift in (shift_y, shift_x):
        fraction = shift - np.floor(shift)
        if fraction >= 1e-9:
            factor *= float(np.sum(lanczos_weights(fraction) ** 2))
    return factor


def vertex(x: FloatArray, y: FloatArray) -> float:
    """Place of the minimum of y by a parabola through the lowest point and its neighbours.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Ascending places and the values there.

    Returns
    -------
    float
        An end of `x` if the lowest point is there.
    """
    i = int(np.argmin(y))
    if i in (0, y.size - 1):
        return float(x[i])
    left, right = y[i - 1] - y[i], y[i + 1] - y[i]
    return float(x[i] + 0.25 * (x[i + 1] - x[i - 1]) * (left - right) / max(left + right, 1e-300))


def robust_std(values: FloatArray) -> float:
    """Standard deviation from the median absolute deviation, for values with outliers."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return float("nan")
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random generator for one particle or field: the same whatever else is drawn."""
    return np.random.default_rng([seed, *key])
