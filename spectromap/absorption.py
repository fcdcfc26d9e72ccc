"""From counts to transmission: open area, I0, dark counts, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._compiled import F32, compiled, exp32, log32
from spectromap._numerics import interpolation_variance, robust_std
from spectromap.schema import LOG, InputError, check_stack, component_names, pixel_size

__all__ = [
    "FrameI0",
    "brightest_area",
    "find_open_area",
    "i0_dataset",
    "i0_from_area",
    "i0_from_spectrum",
    "i0_of_frame",
    "mean_transmission",
    "optical_density",
    "transmission",
]

Mask = NDArray[np.bool_]
Array = NDArray[np.float64]
Frame = NDArray[np.float32]

#: Fewer open pixels than this make an I0 whose own noise is felt in every pixel.
FEW_OPEN_PIXELS = 100
#: A region of fewer pixels is too small to be taken for the open area.
LEAST_OPEN_PIXELS = 30
#: A median of so many pixels is known well enough to tell outliers.
ENOUGH_PIXELS = 20_000
#: A spread of the open area this many times the photon noise is structure, not noise.
GAIN_PLAUSIBLE = (0.7, 1.4)
#: So little noise is none that errors could follow from.
NOISE_FREE = 1e-4
#: Pixels of the open area that differ by more than this are not all open, in units of ln(I).
OPEN_SPREAD = 0.03
#: Of the pixels within three widths of a level, this share lies within half of that if the level
#: is a peak of the histogram, as open area makes one (a Gaussian has 0.87); the thin parts of a
#: sample make a tail, which has 0.5.
PEAK_CORE = 0.65
#: Levels of ln(I) so close may be one open area.
SAME_LEVEL = 0.03
#: A support film may absorb this much, and so little of it as a function of energy beside a slope.
FILM_MAX_OD, FILM_CONTRAST = 1.0, 0.01
#: The illumination is taken to vary by no more than this across the field.
MAX_GRADIENT = 0.2
GRADIENT_PASSES = 4
#: Standard error of I0, relative to the mean OD of the field, where there is no open area.
UNKNOWN_I0, LEAST_UNKNOWN_I0 = 0.5, 0.1
#: Sides of the tiles whose scatter gives the error of I0: noise is correlated over a few pixels.
TILE = 16
#: Pixels so far apart share no noise after interpolation.
INDEPENDENT_PX = 8
#: A step of I0 inside a frame must lower chi2 by so much, and so much more than a smooth change.
STEP_CHI2, STEP_OVER_SMOOTH = 36.0, 20.0
#: Steps at one row in more than this share of the frames do not come from the beam current.
STATIC_SHARE = 0.3
#: Rows that are needed on both sides of a step.
STEP_ROWS = 4
COUNTS, AMPLITUDE, OPTICAL_DENSITY = 0, 1, 2
CODES = {"counts": COUNTS, "amplitude": AMPLITUDE, "optical_density": OPTICAL_DENSITY}
LARGEST, SMALLEST = F32(np.finfo(np.float32).max), F32(np.finfo(np.float32).tiny)


def find_open_area(
    image: NDArray[Any], margin_px: float = 2.0, frames: NDArray[Any] | None = None
) -> Mask:
    """Pixels where the beam meets no sample: the brightest populated level of a mean image.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Mean over frames that were divided by their own brightness; NaN where not measured.
    margin_px : float
        How far to stay away from anything darker (resolution and drift), in pixels.
    frames : ndarray, shape (n_energy, ny, nx), optional
        The aligned frames, in the order of energy. They tell a support film, whose absorption is
        smooth in energy, from the sample, and a small open area from a hole in the film.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True in the open area; all False if no bright, flat region stands out.

    Notes
    -----
    Where a film carries the sample, the film and not a hole in it is what I0 belongs to: it is
    under every particle. The largest region that absorbs like the brightest one, but for a slope
    in energy, is taken. A hole may win without harm if it is larger, or without `frames`: then
    the film's absorption is in the baseline of the fit.
    """
    empty = np.zeros(image.shape, dtype=bool)
    finite = np.isfinite(image)
    if finite.sum() < FEW_OPEN_PIXELS:
        return empty
    level = np.log(np.maximum(np.where(finite, image, np.nanmedian(image)), 1e-12))
    flat = level
    chosen = empty
    for left in reversed(range(GRADIENT_PASSES)):
        regions = _bright_regions(flat, finite, margin_px, frames is not None)
        if not regions:
            return empty
        alike = _like_the_brightest(regions, frames)
        # Uneven light flattens the peak, so its shape is asked for when the light is even.
        alike = [region for region in alike if region.peaked or left > 0]
        if not alike:
            return empty
        chosen = alike[0].mask
        if frames is not None:
            chosen = max((region.mask for region in alike), key=np.count_nonzero)
        flat = level - _gradient(level, chosen)
    return chosen


class _Region(NamedTuple):
    """A flat region, the level of ln(I) it is at, and whether that is a peak of the histogram."""

    mask: Mask
    level: float
    peaked: bool


def _bright_regions(level: Array, finite: Mask, margin_px: float, small: bool) -> list[_Region]:
    """Flat regions of an image of ln(I), the brightest first; `small` ones too if wanted."""
    smooth = ndimage.gaussian_filter(level, 1.5)
    low, high = np.percentile(smooth[finite], [0.5, 99.95])
    if not high - low > 1e-9:
        return [_Region(np.asarray(finite), float(high), True)]
    noise = robust_std(level - smooth) / 3.0  # what a Gaussian of 1.5 px leaves of pixel noise
    regions = []
    for mode, width in _modes(smooth[finite], noise, float(low), float(high), small):
        if width > max(4.0 * noise, OPEN_SPREAD):
            continue
        region = _around(smooth, finite, mode, width, margin_px)
        if region.sum() >= LEAST_OPEN_PIXELS:
            distance = np.abs(smooth[finite] - mode) / width
            peaked = (distance < 1.5).sum() > PEAK_CORE * (distance < 3.0).sum()
            regions.append(_Region(region, mode, bool(peaked)))
    return regions


def _around(smooth: Array, finite: Mask, mode: float, width: float, margin_px: float) -> Mask:
    """Pixels near a level and away from all others, without specks."""
    near = finite & (np.abs(smooth - mode) < 3.0 * width)
    near = ndimage.binary_opening(near, iterations=1)
    near = ndimage.binary_erosion(near, iterations=max(1, round(margin_px)), border_value=1)
    labels, count = ndimage.label(near)
    if count == 0:
        return np.zeros(smooth.shape, dtype=bool)
    sizes = ndimage.sum_labels(near, labels, np.arange(1, count + 1))
    keep = 1 + np.flatnonzero(sizes >= max(20.0, 0.02 * sizes.max()))
    return np.asarray(np.isin(labels, keep) & finite)


def _modes(
    smooth: Array, noise: float, low: float, high: float, small: bool
) -> list[tuple[float, float]]:
    """Position and width of populated peaks of the histogram of ln(I), the brightest first."""
    step = max((high - low) / 400.0, noise / 4.0, 1e-6)
    counts, edges = np.histogram(smooth, bins=np.arange(low - 5 * step, high + 6 * step, step))
    density = ndimage.gaussian_filter1d(counts.astype(float), max(1.0, noise / step))
    centres = 0.5 * (edges[1:] + edges[:-1])
    least = (0.002 if small else 0.05) * density.max()
    peaks = np.flatnonzero(
        (density >= np.roll(density, 1)) & (density > np.roll(density, -1)) & (density > least)
    )
    found = []
    for peak in peaks[::-1]:
        # Darker pixels are mixed with sample: the bright side alone measures the width.
        below = np.flatnonzero(density[peak:] < 0.5 * density[peak])
        half = below[0] * step if below.size else high - centres[peak]
        found.append((float(centres[peak]), max(float(half) / 1.177, noise, 1e-4)))
    return found


def _like_the_brightest(regions: list[_Region], frames: NDArray[Any] | None) -> list[_Region]:
    """The regions that differ from the brightest by no more than a support film does.

    Without `frames` nothing tells film from sample, so only those as bright as the brightest.
    """
    if frames is None:
        return [r for r in regions if regions[0].level - r.level < SAME_LEVEL]
    near = [r for r in regions if regions[0].level - r.level < FILM_MAX_OD]
    spectra = [_region_spectrum(frames, region.mask) for region in near]
    brightest, errors = spectra[0]
    alike = near[:1]
    place = np.linspace(-1.0, 1.0, brightest.size)
    for region, (spectrum, own_errors) in zip(near[1:], spectra[1:], strict=True):
        od = brightest - spectrum
        good = np.isfinite(od)
        if good.sum() < 4:
            continue
        left = od[good] - np.polyval(np.polyfit(place[good], od[good], 1), place[good])
        noise = float(np.mean(errors[good] ** 2 + own_errors[good] ** 2))
        excess = float(np.mean(left**2)) - noise
        if excess < FILM_CONTRAST**2 + 2.0 * noise * np.sqrt(2.0 / good.sum()):
            alike.append(region)
    return alike


def _region_spectrum(frames: NDArray[Any], region: Mask) -> tuple[Array, Array]:
    """Logarithm of the mean intensity of a region at every energy, and its standard error."""
    logs, errors = np.full(len(frames), np.nan), np.full(len(frames), np.nan)
    for index, frame in enumerate(frames):
        values = np.asarray(frame)[region].astype(float)
        values = values[np.isfinite(values)]
        mean = values.mean() if values.size > 4 else 0.0
        if mean > 0:
            logs[index] = np.log(mean)
            errors[index] = values.std() / mean / np.sqrt(values.size)
    return logs, errors


def _gradient(level: Array, area: Mask) -> Array:
    """Plane through ln(I) of the open area, for illumination that is not even."""
    ny, nx = area.shape
    y, x = (coordinate[area] for coordinate in np.mgrid[:ny, :nx])
    if y.size < FEW_OPEN_PIXELS or min(np.ptp(y) / ny, np.ptp(x) / nx) < 0.3:
        return np.zeros(area.shape)
    design = np.column_stack([np.ones(y.size), y / ny - 0.5, x / nx - 0.5])
    values = level[area]
    near = np.abs(values - np.median(values)) < 4.0 * robust_std(values) + 1e-12
    plane, *_ = np.linalg.lstsq(design[near], values[near], rcond=None)
    if np.abs(plane[1:]).sum() > MAX_GRADIENT:
        return np.zeros(area.shape)
    rows, columns = np.arange(ny)[:, None] / ny - 0.5, np.arange(nx)[None] / nx - 0.5
    return np.asarray(plane[1] * rows + plane[2] * columns)


def brightest_area(image: NDArray[Any], share: float = 0.01) -> tuple[Mask, float]:
    """What there is for I0 where the field has no open area: its brightest pixels.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        As for `find_open_area`.
    share : float
        Share of the pixels to take.

    Returns
    -------
    mask : ndarray of bool, shape (ny, nx)
        All False if fewer than a handful of pixels are measured.
    relative_error : float
        Relative standard error of an I0 from there, shared by all energies: half the optical
        density that a typical pixel has against it, and at least 0.1, as nothing tells how much
        the brightest pixels absorb themselves.
    """
    finite = np.isfinite(image) & (image > 0)
    if finite.sum() < LEAST_OPEN_PIXELS:
        return np.zeros(image.shape, dtype=bool), float("nan")
    smooth = ndimage.gaussian_filter(np.where(finite, image, 0.0), 1.0)
    weight = ndimage.gaussian_filter(finite.astype(float), 1.0)
    smooth = np.where(finite, smooth / np.maximum(weight, 1e-6), np.nan)
    mask = finite & (smooth >= np.nanpercentile(smooth, 100.0 * (1.0 - share)))
    typical = float(np.log(smooth[mask].mean() / np.nanmedian(smooth)))
    LOG.warning(
        "no open area was found: I0 is taken from the brightest %g %% of the pixels, which may hold"
        " sample; thickness is then too small. Give i0 as a spectrum or a mask", 100 * share
    )  # fmt: skip
    return mask, max(UNKNOWN_I0 * typical, LEAST_UNKNOWN_I0)


@dataclass(frozen=True)
class Placement:
    """Where each frame's features lie, in whole and fractional pixels of the stack's axes."""

    shift_y: Array
    shift_x: Array

    @classmethod
    def from_shifts(cls, shifts: xr.Dataset | None, stack: xr.DataArray) -> Placement:
        """Shifts in pixels of a stack; zero where none are known."""
        if shifts is None:
            zero = np.zeros(stack.sizes["energy"])
            return cls(zero, zero)
        dy, dx = pixel_size(stack)
        return cls(
            np.nan_to_num(shifts["shift_y"].values) / dy,
            np.nan_to_num(shifts["shift_x"].values) / dx,
        )


def intensity(frame: NDArray[Any], quantity: str) -> NDArray[Any]:
    """What is proportional to transmitted intensity: counts, or |A|^2, or exp(-OD)."""
    if quantity == "amplitude":
        return np.asarray(np.abs(frame) ** 2)
    return np.exp(-frame) if quantity == "optical_density" else frame


@compiled
def _sum(values: Frame) -> float:
    """Sum in four partial sums, which the processor adds side by side."""
    s0 = s1 = s2 = s3 = 0.0
    n = values.size // 4
    for k in range(n):
        s0 += values[4 * k]
        s1 += values[4 * k + 1]
        s2 += values[4 * k + 2]
        s3 += values[4 * k + 3]
    for k in range(4 * n, values.size):
        s0 += values[k]
    return (s0 + s1) + (s2 + s3)


@compiled
def _intensity_row(values: Frame, code: int, result: Frame) -> None:
    """`intensity` of a row of real samples."""
    if code == AMPLITUDE:
        for x in range(values.size):
            result[x] = values[x] * values[x]
    elif code == OPTICAL_DENSITY:
        for x in range(values.size):
            v = values[x]
            result[x] = exp32(-v) if v == v else v
    else:
        for x in range(values.size):
            result[x] = values[x]


@compiled
def _area_sums(
    frame: Frame,
    area: Any,
    occupied: Any,
    dy: int,
    dx: int,
    code: int,
    low: float,
    high: float,
    lag: int,
    every: int,
    rows: NDArray[np.float64],
    tiles: NDArray[np.float64],
) -> tuple[float, float]:
    """Sums of the samples of an area that lie between two values.

    `area` is that of the common frame, (dy, dx) where it lies in this one. Rows of `rows` are
    number, sum, and sums of the column and of its square (to half a tile, across the frame from
    -0.5 to 0.5); of `tiles` number and sum of each tile.
    Returned are the sum of squares of second differences between samples `lag` apart in every
    so-many-th row, and their number. Rows without `occupied` hold nothing of the area.
    """
    ny, nx = frame.shape
    first, last = max(0, dx), min(nx, nx + dx)
    least, most = F32(low), F32(high)
    width = max(0, last - first)
    values = np.empty(nx, dtype=np.float32)
    kept = np.zeros(nx, dtype=np.float32)
    ones = np.zeros(nx, dtype=np.float32)
    squares = np.zeros(nx, dtype=np.float32)
    along, number = 0.0, 0.0
    for y in range(max(0, dy), min(ny, ny + dy)):
        if not occupied[y - dy]:
            continue
        _intensity_row(frame[y], code, values)
        mask = area[y - dy, first - dx : last - dx]
        inside, k, one = values[first:last], kept[first:last], ones[first:last]
        for x in range(width):
            v = inside[x]
            good = (mask[x] != 0) and (v >= least) and (v <= most)
            k[x] = v if good else F32(0.0)
            one[x] = F32(1.0) if good else F32(0.0)
        for t in range(tiles.shape[2]):
            n, part = _sum(ones[TILE * t : TILE * (t + 1)]), _sum(kept[TILE * t : TILE * (t + 1)])
            tiles[0, y // TILE, t] += n
            tiles[1, y // TILE, t] += part
            rows[0, y] += n
            rows[1, y] += part
            column = (TILE * t + 0.5 * (TILE - 1)) / nx - 0.5
            rows[2, y] += n * column
            rows[3, y] += n * column * column
        if y % every or nx <= 2 * lag:
            continue
        k0, k1, k2 = kept[: nx - 2 * lag], kept[lag : nx - lag], kept[2 * lag :]
        o0, o1, o2 = ones[: nx - 2 * lag], ones[lag : nx - lag], ones[2 * lag :]
        for x in range(nx - 2 * lag):
            difference = k0[x] - F32(2.0) * k1[x] + k2[x]
            weight = o0[x] * o1[x] * o2[x]
            squares[x] = weight * difference * difference
            values[x] = weight
        along += _sum(squares[: nx - 2 * lag])
        number += _sum(values[: nx - 2 * lag])
    return along, number


class FrameI0(NamedTuple):
    """I0 of one frame, and what it was made of.

    Parameters
    ----------
    i0, error : float
        Mean intensity of the open area with dark counts removed, and its standard error.
    noise : float
        Variance of a pixel over its mean.
    rows : ndarray, shape (4, ny)
        Of the samples of each row of the frame: number, sum, and sums of their place along the row
        (-0.5 to 0.5) and of its square.
    """

    i0: float
    error: float
    noise: float
    rows: Array


def i0_of_frame(
    frame: NDArray[Any],
    area: Mask,
    shift: tuple[int, int] = (0, 0),
    quantity: str = "counts",
    dark_counts: float = 0.0,
) -> FrameI0:
    """I0 of one frame from the open area, spikes left out.

    Parameters
    ----------
    frame : ndarray, shape (ny, nx)
        As measured, not aligned; NaN where not measured.
    area : ndarray of bool, shape (ny, nx)
        The open area in the common frame.
    shift : tuple of int
        By how many whole pixels (y, x) the features of this frame lie off the common frame.
    quantity : str
        See `spectromap.schema.QUANTITIES`.
    dark_counts : float
        Counts without light, per pixel.

    Returns
    -------
    FrameI0
        NaN where fewer than four pixels are left.

    Notes
    -----
    The error is the larger of the pixel noise over the root of their number and of the scatter of
    the means of tiles of 16 pixels, which knows of noise that interpolation has correlated, of
    uneven illumination and of sample at the rims. The noise is that of second differences over
    8 pixels, to which neither correlated noise nor a slope adds.
    """
    values = np.abs(frame) if np.iscomplexobj(frame) else frame
    values = np.ascontiguousarray(values, dtype=np.float32)
    ny, nx = values.shape
    rows = np.zeros((4, ny))
    dy, dx = int(shift[0]), int(shift[1])
    sample = _sample(values, area, dy, dx, quantity)
    if sample.size < 4:
        return FrameI0(float("nan"), float("nan"), float("nan"), rows)
    centre, spread = float(np.median(sample)), robust_std(sample)
    spread = spread if spread > 0 else float(sample.std())
    # Poisson counts are skew when there are few: ten photons more are allowed for that.
    limit = 5.0 * spread + 10.0 * spread**2 / max(abs(centre), spread, 1e-30)
    limit = max(limit, 1e-6 * abs(centre))
    tiles = np.zeros((2, 1 + ny // TILE, 1 + nx // TILE))
    occupied = area.any(axis=1)
    every = max(1, int(area.size / ENOUGH_PIXELS * occupied.mean() / 8.0))
    bounds = centre - limit, centre + limit
    found = _area_sums(
        values, area, occupied, dy, dx, CODES[quantity], *bounds, INDEPENDENT_PX, every, rows, tiles
    )
    number = rows[0].sum()
    if number < 4:
        return FrameI0(float("nan"), float("nan"), float("nan"), rows)
    mean = float(rows[1].sum() / number)
    near = sample[np.abs(sample - centre) <= limit]
    variance = found[0] / found[1] / 6.0 if found[1] > 100 else float(near.var())
    error = max(np.sqrt(variance / number), _tile_error(tiles, mean))
    return FrameI0(mean - dark_counts, float(error), variance / mean if mean > 0 else np.nan, rows)


def _sample(values: Frame, area: Mask, dy: int, dx: int, quantity: str) -> Array:
    """Enough samples of the area for a median."""
    ny, nx = values.shape
    y0, y1, x0, x1 = max(0, dy), min(ny, ny + dy), max(0, dx), min(nx, nx + dx)
    if y1 <= y0 or x1 <= x0:
        return np.zeros(0)
    mask = area[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    step = max(1, int(np.sqrt(np.count_nonzero(mask) / ENOUGH_PIXELS)))
    sample = values[y0:y1:step, x0:x1:step][mask[::step, ::step]]
    sample = intensity(sample[np.isfinite(sample)].astype(float), quantity)
    return np.asarray(sample)


def _tile_error(tiles: Array, mean: float) -> float:
    """Standard error of a mean from the scatter of the means of tiles; 0 for few tiles."""
    number, total = tiles[0].ravel(), tiles[1].ravel()
    used = number > 0
    count = int(used.sum())
    if count < 8:
        return 0.0
    left = total[used] - number[used] * mean
    return float(np.sqrt(np.sum(left**2) * count / (count - 1)) / number.sum())


def i0_dataset(
    found: Sequence[FrameI0],
    energy: xr.DataArray,
    units: str,
    *,
    dark_counts: float = 0.0,
    relative_error: float = 0.0,
) -> xr.Dataset:
    """I0 of all frames, with steps of the beam current inside a frame found and left out.

    Parameters
    ----------
    found : sequence of FrameI0
        As `i0_of_frame` makes them, in the order of energy.
    energy : DataArray, dims (energy,)
        Photon energies.
    units : str
        Of the intensity.
    dark_counts : float
        As given to `i0_of_frame`.
    relative_error : float
        Relative error shared by all energies, as `brightest_area` states it; 0 for an open area.

    Returns
    -------
    Dataset
        (energy): ``i0`` with dark counts removed, ``i0_errors``, and ``noise``, the variance of a
        pixel over its mean: 1 for counts, the detector gain otherwise. Where I0 steps part way
        down a frame, I0 is that of the longer side; ``step_row`` is the first row after it, -1
        without a step, ``step_ratio`` I0 of the shorter side over that of the longer,
        ``step_ratio_errors``, and ``step_rows`` (energy, y) the rows of the shorter side,
        which are to be left out. Attributes: ``open_area``, ``relative_error``.
    """
    i0, errors, noise = (np.array([f[k] for f in found]) for k in range(3))
    rows = np.array([f.rows for f in found])
    place, ratio, ratio_error, marked = _steps(rows, i0 + dark_counts, noise, dark_counts)
    for index in np.flatnonzero(place >= 0):
        kept = ~marked[index]
        number, total = rows[index, 0, kept].sum(), rows[index, 1, kept].sum()
        i0[index] = total / number - dark_counts
        # The scatter of tiles held the step; what is left of it is pixel noise.
        errors[index] = np.sqrt(noise[index] * total / number / number)
    i0_errors = np.hypot(errors, relative_error * i0)
    result = xr.Dataset(coords={"energy": energy})
    result["i0"] = ("energy", i0, {"units": units, "long_name": "open-area intensity"})
    result["i0_errors"] = ("energy", i0_errors, {"units": units})
    result["noise"] = ("energy", noise, {"units": "1"})
    result["step_row"] = ("energy", place, {"units": "1"})
    result["step_ratio"] = ("energy", ratio, {"units": "1"})
    result["step_ratio_errors"] = ("energy", ratio_error, {"units": "1"})
    result["step_rows"] = (("energy", "y"), marked, {"units": "1"})
    how = "brightest pixels, which may hold sample" if relative_error else "no sample"
    result.attrs = {"open_area": how, "relative_error": float(relative_error)}
    _tell(result)
    return result


def _tell(i0: xr.Dataset) -> None:
    """Say which frames have no I0 or more than one."""
    energy, level = i0.energy.values, i0["i0"].values
    if (level <= 0).any():
        bad = ", ".join(f"{e:.2f}" for e in energy[level <= 0])
        LOG.warning("I0 is zero at %s eV: these frames are left out", bad)
    stepped = i0["step_row"].values >= 0
    if stepped.any():
        listed = ", ".join(
            f"{e:.2f} eV ({100 * (r - 1):+.1f} %)"
            for e, r in zip(energy[stepped], i0["step_ratio"].values[stepped], strict=True)
        )
        LOG.warning("I0 steps part way down the frame at %s", listed)


def _steps(
    rows: Array, level: Array, noise: Array, dark: float
) -> tuple[NDArray[np.int64], Array, Array, Mask]:
    """Row, ratio and its error of a step of I0 inside each frame, and the rows of one side."""
    count, _, ny = rows.shape
    place = np.full(count, -1, dtype=np.int64)
    ratio, errors = np.zeros(count), np.zeros(count)
    marked = np.zeros((count, ny), dtype=bool)
    number = rows[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = rows[:, 1] / number / level[:, None] - 1.0
        along = rows[:, 2:] / number[:, None]
        variance = noise[:, None] / level[:, None] / number
    usable = (number >= 3) & np.isfinite(profile) & (variance > 0)
    for index in range(count):
        used = np.flatnonzero(usable[index])
        if used.size < 4 * STEP_ROWS:
            continue
        found = _change_point(
            profile[index, used], variance[index, used], along[index][:, used], used
        )
        if found is None:
            continue
        place[index] = found[0]
        ratio[index], errors[index] = found[1:]
    _forget_static(place, ratio)
    for index in np.flatnonzero(place >= 0).tolist():
        step, height = int(place[index]), ratio[index] / (1.0 - dark / level[index])
        before = number[index, :step].sum() >= number[index, step:].sum()
        shorter = slice(step, None) if before else slice(0, step)
        share = number[index, shorter].sum() / number[index].sum()
        # The profile is relative to the mean of both sides.
        change = height if before else -height
        longer = 1.0 - change * share
        marked[index, shorter] = True
        ratio[index] = (longer + change) / longer
        errors[index] /= 1.0 - dark / level[index]
    ratio[place < 0], errors[place < 0] = 1.0, 0.0
    return place, ratio, errors, marked


def _forget_static(place: NDArray[np.int64], height: Array) -> None:
    """Steps that many frames have at one row belong to the illumination: the beam has no memory."""
    for first, sign in {(p, s) for p, s in zip(place, np.sign(height), strict=True) if p >= 0}:
        same = (np.abs(place - first) <= STEP_ROWS) & (np.sign(height) == sign) & (place >= 0)
        if same.sum() > max(2.0, STATIC_SHARE * place.size):
            place[same] = -1


def _change_point(
    profile: Array, variance: Array, along: Array, row: NDArray[np.int64]
) -> tuple[int, float, float] | None:
    """First row after a step, its height and error; None if there is no step.

    An illumination of second order in both coordinates is fitted beside it, as the mean over the
    samples of each row. A smooth change of up to fourth order must explain less.
    """
    difference = np.diff(profile) / np.sqrt(variance[1:] + variance[:-1])
    weight = 1.0 / (variance * max(1.0, robust_std(difference)) ** 2)
    y = 2.0 * (row - row[0]) / (row[-1] - row[0]) - 1.0
    base = np.column_stack([np.ones(y.size), y, y**2, *along, y * along[0]])
    inverse = np.linalg.pinv(base.T @ (weight[:, None] * base), rcond=1e-10, hermitian=True)
    left = profile - base @ (inverse @ (base.T @ (weight * profile)))
    after = np.cumsum((weight * left)[::-1])[::-1]
    overlap = np.cumsum((weight[:, None] * base)[::-1], axis=0)[::-1]
    free = np.cumsum(weight[::-1])[::-1] - np.sum((overlap @ inverse) * overlap, axis=1)
    inner = slice(STEP_ROWS, y.size - STEP_ROWS + 1)
    gain = after[inner] ** 2 / np.maximum(free[inner], 1e-9 * weight.sum())
    best = int(np.argmax(gain)) + STEP_ROWS
    chi2 = float(gain.max())
    if chi2 < STEP_CHI2:
        return None
    smooth = np.column_stack([base, y**3, y**4])
    root = np.sqrt(weight)
    parameters, *_ = np.linalg.lstsq(root[:, None] * smooth, root * left, rcond=None)
    explained = float(np.sum(weight * left**2) - np.sum(weight * (left - smooth @ parameters) ** 2))
    if chi2 < explained + STEP_OVER_SMOOTH:
        return None
    return int(row[best]), float(after[best] / free[best]), float(1.0 / np.sqrt(free[best]))


def i0_from_area(
    stack: xr.DataArray,
    area: Mask,
    shifts: xr.Dataset | None = None,
    dark_counts: float = 0.0,
    relative_error: float = 0.0,
) -> xr.Dataset:
    """I0 spectrum from an area without sample, followed through the drift.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts or amplitudes.
    area : ndarray of bool, shape (ny, nx)
        The open area in the common frame.
    shifts : Dataset, optional
        As `spectromap.align.register` makes it.
    dark_counts : float
        Counts without light, per pixel and frame.
    relative_error : float
        Relative error shared by all energies, as `brightest_area` states it; 0 for an open area.

    Returns
    -------
    Dataset
        As `i0_dataset` makes it.

    Raises
    ------
    InputError
        The area is empty or of another shape than the frames.
    """
    check_stack(stack)
    if area.shape != stack.shape[1:]:
        raise InputError(
            f"the mask has shape {area.shape}, the frames {stack.shape[1:]}",
            where="i0.mask",
            remedy="Save the mask on the pixel grid of the file.",
        )
    if not area.any():
        raise InputError("no pixel is inside", where="i0", remedy="Choose another region or mask.")
    place = Placement.from_shifts(shifts, stack)
    found = []
    for index in range(stack.sizes["energy"]):
        shift = round(place.shift_y[index]), round(place.shift_x[index])
        frame = np.asarray(stack[index].values)
        found.append(i0_of_frame(frame, area, shift, stack.attrs["quantity"], dark_counts))
    return i0_dataset(
        found,
        stack.energy,
        stack.attrs["units"],
        dark_counts=dark_counts,
        relative_error=relative_error,
    )


def i0_from_spectrum(
    spectrum: xr.DataArray, stack: xr.DataArray, bright_level: Array, dark_counts: float = 0.0
) -> xr.Dataset:
    """I0 from a spectrum measured apart, brought to the counts of the stack.

    Parameters
    ----------
    spectrum : DataArray, dims (energy,)
        Counts per dwell, or per ms or s of it; which of them is told by `bright_level`.
    stack : DataArray, dims (energy, y, x)
        With the coordinate ``dwell_time`` in s where the file has it.
    bright_level : ndarray, shape (n_energy,)
        Brightest level of each frame, in counts.
    dark_counts : float
        Counts without light, per pixel and frame.

    Returns
    -------
    Dataset, dims (energy,)
        As `i0_from_area`; errors and noise are NaN, as the file holds none.

    Raises
    ------
    InputError
        The spectrum does not cover the energies.
    """
    energy = stack.energy.values
    own = spectrum.energy.values
    if energy[0] < own[0] - 0.5 or energy[-1] > own[-1] + 0.5:
        raise InputError(
            f"it covers {own[0]:.2f} to {own[-1]:.2f} eV, the stack {energy[0]:.2f} to"
            f" {energy[-1]:.2f} eV",
            where="i0.spectrum",
            remedy="Use an I0 measured over the whole range, or a region of the stack.",
        )
    values = np.interp(energy, own, spectrum.values)
    factors = {"count": np.ones(energy.size)}
    if "dwell_time" in stack.coords:
        dwell = stack["dwell_time"].values
        factors |= {"count/ms": dwell * 1e3, "count/s": dwell}
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = {
            unit: abs(float(np.nanmedian(np.log(values * f / (bright_level - dark_counts)))))
            for unit, f in factors.items()
        }
    unit = min(distance, key=lambda u: distance[u])
    if not distance[unit] < np.log(3.0):
        LOG.warning(
            "i0.spectrum: its level is %.2f times off the brightest pixels in the best reading"
            " (%s); check that it belongs to this stack", np.exp(distance[unit]), unit
        )  # fmt: skip
    LOG.info("i0.spectrum read as %s", unit)
    result = xr.Dataset(coords={"energy": stack.energy}, attrs={"spectrum_units": unit})
    i0 = values * factors[unit]
    nan = np.full(energy.size, np.nan)
    result["i0"] = ("energy", i0, {"units": "count", "long_name": "open-area intensity"})
    result["i0_errors"] = ("energy", nan, {"units": "count"})
    result["noise"] = ("energy", nan.copy(), {"units": "1"})
    return result


def sample_in_open_area(i0: xr.Dataset, references: xr.Dataset) -> float:
    """How strongly an I0 spectrum itself shows the edge of the sample.

    Parameters
    ----------
    i0 : Dataset
        As `i0_from_area` makes it.
    references : Dataset
        As `spectromap.references.reference_set` makes it.

    Returns
    -------
    float
        Height in optical density of the references' white line in ``-ln(I0)`` above a smooth
        source spectrum; zero where it is not significant. The beamline's own I0 does not know the
        sample's edge, so anything but zero is sample in the open area.
    """
    level = i0["i0"].values
    good = np.isfinite(level) & (level > 0)
    energy = references["energy"].values
    names = component_names(references)
    smooth = np.polynomial.chebyshev.chebvander(
        2 * (energy - energy[0]) / max(np.ptp(energy), 1e-9) - 1, 3
    )
    design = np.column_stack([*(references[n].values for n in names), smooth])[good]
    if good.sum() < design.shape[1] + 3:
        return 0.0
    parameters, *_ = np.linalg.lstsq(design, -np.log(level[good]), rcond=None)
    residual = -np.log(level[good]) - design @ parameters
    line = design[:, : len(names)] @ parameters[: len(names)]
    height = float(np.ptp(line))
    significant = height > 5.0 * residual.std() and parameters[: len(names)].sum() > 0
    return height if significant else 0.0


def effective_gain(i0: xr.Dataset, quantity: str) -> float:
    """Variance over mean of the open area: 1 for photon counts, else the gain.

    Parameters
    ----------
    i0 : Dataset
        As `i0_from_area` makes it.
    quantity : str
        What the stack holds, see `spectromap.schema.QUANTITIES`.

    Returns
    -------
    float
        Counts per photon. Where counts look like photons, exactly 1.
    """
    noise = i0["noise"].values
    noise = noise[np.isfinite(noise) & (noise > 0)]
    measured = float(np.median(noise)) if noise.size else float("nan")
    if quantity == "counts":
        if not np.isfinite(measured) or GAIN_PLAUSIBLE[0] < measured < GAIN_PLAUSIBLE[1]:
            return 1.0
        if measured < NOISE_FREE:
            LOG.warning(
                "the open area does not vary as counts do (clipped, averaged or simulated without"
                " noise?); the errors are those of Poisson counts"
            )
            return 1.0
        LOG.warning("the open area varies %.2f times as counts do; taken as the gain", measured)
    return measured if np.isfinite(measured) else 1.0


@compiled
def _transmit(frames: Frame, dark: Any, inverse: Frame, code: int, result: Frame) -> None:
    """(intensity - dark) times 1/I0 of each frame."""
    for k in range(frames.shape[0]):
        scale = inverse[k]
        for y in range(frames.shape[1]):
            row, made = frames[k, y], result[k, y]
            if code == COUNTS:
                for x in range(row.size):
                    made[x] = (row[x] - dark) * scale
            else:
                _intensity_row(row, code, made)
                for x in range(row.size):
                    made[x] *= scale


@compiled
def _density(transmission: Frame, result: Frame) -> None:
    """Minus the logarithm; NaN of what is not positive or not finite."""
    for k in range(transmission.shape[0]):
        for y in range(transmission.shape[1]):
            row, made = transmission[k, y], result[k, y]
            for x in range(row.size):
                v = row[x]
                good = (v >= SMALLEST) and (v <= LARGEST)
                made[x] = -log32(v) if good else F32(np.nan)


def transmission(
    stack: xr.DataArray,
    i0: xr.Dataset,
    shifts: xr.Dataset | None = None,
    dark_counts: float = 0.0,
    gain: float | Array = 1.0,
) -> xr.Dataset:
    """Transmission of aligned frames and what its noise follows from.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Aligned: see `spectromap.align.apply_shifts`. Counts, amplitudes or optical density.
    i0 : Dataset
        As `i0_from_area` makes it.
    shifts : Dataset, optional
        The shifts that were applied: interpolation averaged that much noise away, and flagged
        frames are left out.
    dark_counts : float
        Counts without light, per pixel and frame.
    gain : float or ndarray, shape (n_energy,)
        Counts per photon, see `effective_gain`.

    Returns
    -------
    Dataset
        ``transmission`` (energy, y, x), not clipped, NaN where not measured; along energy
        ``photons`` in an open pixel, ``dark`` counts over photons, ``variance_factor`` of the
        interpolation, ``i0_relative_errors``.

    Notes
    -----
    ``var(T) = variance_factor (T + dark) / photons``. A reconstructed amplitude has the same law
    with the effective number of photons that its open area shows, as |A|^2 of Poisson data does.
    """
    check_stack(stack)
    quantity = stack.attrs["quantity"]
    dark = dark_counts if quantity == "counts" else 0.0
    level = i0["i0"].values.astype(float)
    usable = np.isfinite(level) & (level > 0)
    if shifts is not None:
        usable &= ~shifts["flagged"].values.astype(bool)
    level = np.where(usable, level, np.nan)
    values = np.asarray(stack.values)
    values = np.abs(values) if np.iscomplexobj(values) else values
    scaled = np.empty(values.shape, dtype=np.float32)
    _transmit(
        np.ascontiguousarray(values, dtype=np.float32),
        F32(dark),
        (1.0 / level).astype(np.float32),
        CODES[quantity],
        scaled,
    )
    factor = np.ones(level.size)
    if shifts is not None:
        place = Placement.from_shifts(shifts, stack)
        pairs = zip(place.shift_y, place.shift_x, strict=True)
        factor = np.array([interpolation_variance(y, x) for y, x in pairs])
    relative = np.nan_to_num(i0["i0_errors"].values / level)
    return xr.Dataset(
        {
            "transmission": (("energy", "y", "x"), scaled, {"units": "1"}),
            "photons": ("energy", level / gain, {"units": "count"}),
            "dark": ("energy", np.where(usable, dark / level, 0.0), {"units": "1"}),
            "variance_factor": ("energy", factor, {"units": "1"}),
            "i0_relative_errors": ("energy", relative, {"units": "1"}),
        },
        coords={"energy": stack.energy, "y": stack.y, "x": stack.x},
    )


def mean_transmission(absorption: xr.Dataset, technique: str) -> xr.Dataset:
    """Mean over all energies of what the optics blur: the sharpest picture without a model.

    Parameters
    ----------
    absorption : Dataset
        From `transmission`.
    technique : str
        "stxm": of the transmission; "ptychography": of its modulus.

    Returns
    -------
    Dataset, dims (y, x)
        ``mean_transmission`` with ``mean_transmission_errors``; NaN where nothing was measured.
    """
    values = np.asarray(absorption["transmission"].values)
    factor, photons, dark = (
        absorption[n].values[:, None, None].astype(np.float32)
        for n in ("variance_factor", "photons", "dark")
    )
    seen = np.isfinite(values) & np.isfinite(photons)
    count = np.maximum(seen.sum(axis=0), 1)
    values = np.where(seen, np.maximum(values, 0.0), 0.0)
    with np.errstate(invalid="ignore"):
        variance = factor * (values + dark) / photons
        if technique == "ptychography":
            # Of the root of T it is var(T) / 4 T, and there are no dark counts.
            values, variance = (
                np.sqrt(values),
                np.broadcast_to(factor / (4.0 * photons), seen.shape),
            )
    mean = np.where(seen.any(axis=0), values.sum(axis=0) / count, np.nan)
    errors = np.sqrt(np.where(seen, variance, 0.0).sum(axis=0)) / count
    maps = {"mean_transmission": mean, "mean_transmission_errors": errors}
    return xr.Dataset(
        {n: (("y", "x"), m.astype(np.float32), {"units": "1"}) for n, m in maps.items()},
        coords={"y": absorption.y, "x": absorption.x},
    )


def optical_density(absorption: xr.Dataset) -> xr.DataArray:
    """Optical density -ln(T), NaN where the transmission is not positive.

    Parameters
    ----------
    absorption : Dataset
        As `transmission` makes it. For a reconstructed amplitude A the transmission is
        |A/A0|^2, so this is -2 ln|A/A0|.

    Returns
    -------
    DataArray, dims (energy, y, x)
    """
    values = np.ascontiguousarray(absorption["transmission"].values, dtype=np.float32)
    od = np.empty_like(values)
    _density(values, od)
    result = absorption["transmission"].copy(data=od)
    result.name = "optical_density"
    result.attrs = {"units": "1", "quantity": "optical_density"}
    return result
