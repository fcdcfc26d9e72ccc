"""From recorded frames to the counts that phasing works on.

Nothing here needs to know the crystal: bad pixels, stray peaks and background are told from the
crystal's own pattern by what that pattern cannot do. It is smooth from pixel to pixel, it turns
through the detector with the sample, and it is nearly the same on both sides of the peak.

A voxel that is not usable keeps zero counts and False in ``mask``; zero counts with True are a
measurement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage, special

from spectromap._numerics import robust_std
from spectromap.schema import InputError

__all__ = [
    "Peak",
    "bin_scan",
    "correct",
    "find_bad_pixels",
    "find_peak",
    "find_strays",
    "prepare",
    "remove_background",
    "sum_scans",
]

Counts = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: A white field below this part of its median belongs to a pixel that hardly counts.
_WEAK_PIXEL = 0.3
#: A largest value that so many voxels share, and that is at least so large, is a full counter.
_FULL_VOXELS, _FULL_COUNTS = 5, 255
#: The peak is the connected region above this part of the largest (smoothed) value.
_PEAK_LEVEL = 0.1
#: Fewer photons are no Bragg peak.
_FEWEST_PHOTONS = 100
#: A stray peak outshines what lies opposite so many times, and stands out by so many sigma.
_STRAY_RATIO, _STRAY_SIGMA = 4.0, 6.0
#: Blurs under which it is looked for, in blocks of two voxels: faint and wide, small and bright.
_STRAY_WIDTHS = (1.5, 0.7)
#: It is cut off from the Bragg peak by a valley below one of these parts of its height.
_STRAY_VALLEYS = (0.05, 0.1, 0.2, 0.3)
#: Chance that a voxel of background alone is kept.
_KEPT_BY_CHANCE = 1e-3
#: A darkest fifth with more photons per voxel may be the crystal's, and is not taken away.
_CLEAR_BACKGROUND = 0.2
#: Edge of the box around the peak on which scans are compared.
_BOX = 64


@dataclass(frozen=True)
class Peak:
    """Where the Bragg peak lies.

    Parameters
    ----------
    centre : tuple of float
        Centre of mass (frame, row, column) of the brightest connected region, in voxels.
    first, last : tuple of int
        First and last voxel of that region along each axis.
    photons : float
        Counts in the region.
    """

    centre: tuple[float, float, float]
    first: tuple[int, int, int]
    last: tuple[int, int, int]
    photons: float

    @property
    def nearest(self) -> tuple[int, int, int]:
        """Voxel that holds the centre."""
        a, b, c = (round(value) for value in self.centre)
        return a, b, c


# --------------------------------------------------------------------------------------------
# The whole way


def prepare(
    scans: xr.Dataset | Sequence[xr.Dataset],
    *,
    saturation: float | None = None,
    threshold: float | None = None,
    binning: tuple[int, int, int] = (1, 1, 1),
    size: tuple[int, int, int] | None = None,
    least_correlation: float = 0.97,
) -> xr.Dataset:
    """Prepare a rocking scan, or the sum of several scans of one state, for phasing.

    Parameters
    ----------
    scans : Dataset or sequence of Dataset
        ``counts`` (frame, row, column), NaN where nothing was recorded; optionally ``mask`` of
        the same shape (True = usable), ``dark`` and ``white`` (row, column); coordinate
        ``angle`` in degrees.
    saturation : float, optional
        Counts from which a pixel is full. Default: a largest value that many voxels share.
    threshold : float, optional
        Counts below it become zero. Default: a photon is kept where its 27 neighbours exceed
        the background (see `remove_background`).
    binning : tuple of int
        Frames, rows and columns that are added up.
    size : tuple of int, optional
        Frames, rows and columns of the result; rounded up to sizes that the FFT likes. Default:
        everything that holds signal, so that no fringe is cut; what was not recorded is masked.
    least_correlation : float
        Scans of a state that agree less with the others are left out (see `sum_scans`).

    Returns
    -------
    Dataset
        ``counts`` float32 and ``mask`` (frame, row, column), the centre of the Bragg peak at
        n // 2 to the nearest voxel; attributes of the scan, ``centre`` (row, column) and
        ``centre_frame`` in recorded voxels (after binning), ``centre_offset`` (frame, row,
        column), how far from n // 2 the centre lies in voxels, ``scans`` and ``flags`` (JSON).

    Raises
    ------
    InputError
        No Bragg peak or one that the window cuts off, missing frames inside it, saturation of
        most of it, a dark or white field of another region; the message names the scan. Of
        several scans such a one is left out, named in ``flags``; scans that do not belong
        together are refused.
    """
    given = [scans] if isinstance(scans, xr.Dataset) else list(scans)
    if not given:
        raise InputError("no scans", where="prepare")
    clean: list[xr.Dataset] = []
    refused: list[InputError] = []
    for scan in given:
        try:
            clean.append(_cleaned(scan, saturation, threshold, binning))
        except InputError as error:
            refused.append(error)
    if not clean:
        raise refused[0]
    total = sum_scans(clean, least_correlation=least_correlation) if len(clean) > 1 else clean[0]
    said = [f"{error.where} left out: {error.what}" for error in refused]
    return _flagged(_windowed(total, size), *said)


def _cleaned(
    scan: xr.Dataset,
    saturation: float | None,
    threshold: float | None,
    binning: tuple[int, int, int],
) -> xr.Dataset:
    """One scan without what the crystal did not scatter."""
    scan = correct(scan, saturation=saturation)
    scan = bin_scan(_without_bad_pixels(scan), binning)
    peak = find_peak(scan)
    scan = _without_strays(scan, peak)
    return remove_background(scan, threshold=threshold)


def _where(scan: xr.Dataset) -> str:
    """Name of a scan for messages."""
    return str(scan.attrs.get("source_file", "scan"))


def _flagged(scan: xr.Dataset, *said: str) -> xr.Dataset:
    """Add remarks to the flags of a scan."""
    flags = [*json.loads(scan.attrs.get("flags", "[]")), *said]
    return scan.assign_attrs(flags=json.dumps(flags))


def _changed(scan: xr.Dataset, counts: Counts, mask: Mask) -> xr.Dataset:
    """Put new counts and mask in the place of the old."""
    counts = np.where(mask, counts, 0).astype(np.float32, copy=False)
    dims = ("frame", "row", "column")
    attrs = {"units": "count", "long_name": "photons"}
    return xr.Dataset(
        {"counts": (dims, counts, attrs), "mask": (dims, mask)},
        coords={"angle": scan.angle},
        attrs=scan.attrs,
    )


# --------------------------------------------------------------------------------------------
# Dark, white field, saturation


def correct(scan: xr.Dataset, *, saturation: float | None = None) -> xr.Dataset:
    """Subtract the dark, divide by the white field, and mask full, hot and weak pixels.

    Parameters
    ----------
    scan : Dataset
        See `prepare`.
    saturation : float, optional
        Counts from which a pixel is full. Default: a largest value that many voxels share.

    Returns
    -------
    Dataset
        ``counts`` and ``mask``.

    Raises
    ------
    InputError
        Not three-dimensional, negative counts, a field of another shape, or a white field whose
        pattern the frames do not show.
    """
    raw = np.asarray(scan.counts.values, dtype=np.float32)
    if raw.ndim != 3 or min(raw.shape) < 4:
        raise InputError(f"counts of shape {raw.shape}, not frames", where=_where(scan))
    mask = np.isfinite(raw) & (scan["mask"].values if "mask" in scan else True)
    raw = np.where(mask, raw, 0)
    if raw.min() < 0:
        raise InputError(
            "negative counts",
            where=_where(scan),
            remedy="Mask them, or give the frames before the dark was subtracted.",
        )
    lost = np.flatnonzero(~mask.any(axis=(1, 2)))
    full, said = _full(raw, saturation)
    mask &= ~full
    counts, pixels, more = _fields_applied(scan, raw)
    result = _changed(scan, counts, mask & pixels)
    if full.any():
        _check_full(result, counts, full)
    _check_lost(result, lost)
    return _flagged(result, *said, *more)


def _full(raw: Counts, saturation: float | None) -> tuple[Mask, list[str]]:
    """Voxels whose counter was full, and a remark about them."""
    level = float(raw.max()) if saturation is None else saturation
    full = raw >= level
    number = int(full.sum())
    if saturation is None and (number < _FULL_VOXELS or level < _FULL_COUNTS):
        return np.zeros(raw.shape, bool), []
    said = f"saturated: {number} voxels at {level:g} counts or more are masked"
    return full, [said] if number else []


def _check_full(scan: xr.Dataset, counts: Counts, full: Mask) -> None:
    """Refuse a scan whose Bragg peak is at least three times too bright.

    Of a Gaussian peak clipped at a third of its height, the clipped part fills half of the part
    above half the clipping level.
    """
    peak = find_peak(_changed(scan, counts, scan["mask"].values | full))
    region = tuple(slice(a, b + 1) for a, b in zip(peak.first, peak.last, strict=True))
    clipped = full[region]
    if not clipped.any():
        return
    bright = counts[region] > 0.5 * counts[region][clipped].min()
    share = float(clipped.sum() / bright.sum())
    if share > 0.5:
        raise InputError(
            f"the detector was saturated in {share:.0%} of the Bragg peak",
            where=_where(scan),
            remedy="Record it with an attenuator.",
        )


def _check_lost(scan: xr.Dataset, lost: NDArray[np.intp]) -> None:
    """Refuse a scan with a missing frame inside the Bragg peak."""
    if not lost.size:
        return
    peak = find_peak(scan)
    inside = [int(n) for n in lost if peak.first[0] - 2 <= n <= peak.last[0] + 2]
    if inside:
        raise InputError(
            f"missing frames within the Bragg peak: {', '.join(map(str, inside))}",
            where=_where(scan),
            remedy="Copy them again, or leave the scan out.",
        )


def _fields_applied(scan: xr.Dataset, raw: Counts) -> tuple[Counts, Mask, list[str]]:
    """Counts after dark and white field, pixels that are good in both, and remarks."""
    good = np.ones(raw.shape[1:], bool)
    said: list[str] = []
    for name in ("dark", "white"):
        if name in scan and scan[name].shape != good.shape:
            raise InputError(
                f"the {name} field has {scan[name].shape} pixels, the frames {good.shape}",
                where=_where(scan),
                remedy="Cut it to the region of the detector that the frames show.",
            )
    counts = raw
    if "dark" in scan:
        dark = np.asarray(scan.dark.values, np.float32)
        spread = max(robust_std(dark), 1.0)
        hot = ~np.isfinite(dark) | (dark > np.median(dark) + 5 * spread)
        good &= ~hot
        counts = np.maximum(raw - np.where(hot, 0, dark), 0)
        said += _doubted_dark(raw, hot)
    if "white" in scan:
        white = np.nan_to_num(np.asarray(scan.white.values, np.float32))
        usual = float(np.median(white[white > 0])) if np.any(white > 0) else 0.0
        good &= white > _WEAK_PIXEL * usual
        _check_pattern(counts, white, good, _where(scan))
        gain = np.where(good, white / max(usual, 1e-30), 1).astype(np.float32)
        counts = counts / gain
    return counts, good, said


def _local(image: NDArray[Any]) -> NDArray[np.float64]:
    """Median of the 24 pixels around each."""
    footprint = np.ones((5, 5), bool)
    footprint[2, 2] = False
    result: NDArray[np.float64] = ndimage.median_filter(
        image.astype(np.float64), footprint=footprint, mode="nearest"
    )
    return result


def _check_pattern(counts: Counts, white: Counts, good: Mask, where: str) -> None:
    """Refuse a white field whose pixel pattern the frames do not show.

    The frames, summed, are the pattern of the crystal times the sensitivity of the pixels: the
    deviations of neighbouring pixels regressed on those of the white field have slope 1.
    """
    total = counts.sum(axis=0, dtype=np.float64)
    around, usual = _local(total), _local(white)
    use = good & (around > 20) & (usual > 0)
    if use.sum() < 500:
        return
    seen = np.clip(total[use] / around[use] - 1, -1, 1)
    told = np.clip(white[use] / usual[use] - 1, -1, 1)
    spread = float(np.sqrt(max(told.var() - np.mean(1 / usual[use]), 1e-12)))
    slope = float(np.mean((seen - seen.mean()) * (told - told.mean()))) / spread**2
    error = float(seen.std()) / (spread * np.sqrt(use.sum()))
    if slope < 0.3 and error < 0.1:
        raise InputError(
            "the frames do not show the pattern of the white field (weight"
            f" {slope:.2f} +- {error:.2f}, expected 1)",
            where=where,
            remedy="It is of another region of the detector or turned; check the region.",
        )


def _doubted_dark(raw: Counts, hot: Mask) -> list[str]:
    """Remark about a dark whose hot pixels are cold while others are hot."""
    found, _ = find_bad_pixels(raw, np.ones(raw.shape, bool))
    if min(found.sum(), hot.sum()) < 5 or np.any(found & hot):
        return []
    return [
        f"none of the {int(hot.sum())} hot pixels of the dark is hot in the frames, but"
        f" {int(found.sum())} others are: the dark may be of another region"
    ]


# --------------------------------------------------------------------------------------------
# Bad pixels


def find_bad_pixels(counts: Counts, mask: Mask) -> tuple[Mask, Mask]:
    """Find hot and dead pixels by their neighbours.

    A hot pixel is brighter than four times its neighbours in most of the frames, which fringes
    that turn through the detector are not. A dead one counts less than a fiftieth of them.

    Parameters
    ----------
    counts : ndarray, shape (frames, rows, columns)
        Photons.
    mask : ndarray of bool
        True where usable.

    Returns
    -------
    hot, dead : ndarray of bool, shape (rows, columns)
    """
    frames = mask.any(axis=(1, 2))
    known = mask[frames].all(axis=0)
    total = np.where(mask, counts, 0).sum(axis=0, dtype=np.float64)
    around = _local(total)
    dead = known & (around >= 50) & (total < 0.02 * around)
    hot = known & (total > 2 * around + 6 * np.sqrt(around + 1))
    rows, columns = np.nonzero(hot)
    if rows.size:
        padded = np.pad(counts[frames], ((0, 0), (1, 1), (1, 1)), mode="reflect")
        near = [
            padded[:, rows + 1 + down, columns + 1 + right]
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if down or right
        ]
        above = counts[frames][:, rows, columns] > 4 * np.median(near, axis=0) + 0.5
        hot[rows, columns] = above.mean(axis=0) > 0.5
    return hot, dead


def _flashes(counts: Counts, mask: Mask) -> Mask:
    """Single voxels ten times brighter than all 26 neighbours: cosmic rays."""
    found = np.zeros(counts.shape, bool)
    places = np.nonzero(mask & (counts > 30))
    padded = np.pad(counts, 1)
    largest = np.zeros(places[0].size, np.float32)
    for step in np.ndindex(3, 3, 3):
        if step != (1, 1, 1):
            index = tuple(place + shift for place, shift in zip(places, step, strict=True))
            np.maximum(largest, padded[index], out=largest)
    found[places] = counts[places] > 10 * largest
    return found


def _without_bad_pixels(scan: xr.Dataset) -> xr.Dataset:
    """Mask hot and dead pixels and single flashes."""
    counts, mask = scan.counts.values, scan["mask"].values
    hot, dead = find_bad_pixels(counts, mask)
    mask = mask & ~(hot | dead)
    flashes = _flashes(counts, mask)
    said = [
        f"{int(found.sum())} {name} masked"
        for found, name in ((hot, "hot pixels"), (dead, "dead pixels"), (flashes, "flashes"))
        if found.any()
    ]
    return _flagged(_changed(scan, counts, mask & ~flashes), *said)


# --------------------------------------------------------------------------------------------
# The peak, and what is not the crystal's


def find_peak(scan: xr.Dataset) -> Peak:
    """Find the Bragg peak: the connected region with the most counts.

    Parameters
    ----------
    scan : Dataset
        ``counts`` and ``mask`` (frame, row, column).

    Returns
    -------
    Peak

    Raises
    ------
    InputError
        No peak, or one that an edge of the window cuts at half its height.
    """
    counts = scan.counts.values
    smooth = ndimage.gaussian_filter(counts, 1.0, mode="nearest", truncate=3.0)
    labels, number = ndimage.label(smooth > _PEAK_LEVEL * smooth.max())
    if not number or counts.sum() < _FEWEST_PHOTONS:
        raise InputError("no Bragg peak", where=_where(scan), remedy="Check the scan.")
    sums = ndimage.sum_labels(counts, labels, np.arange(1, number + 1))
    chosen = int(np.argmax(sums)) + 1
    box = ndimage.find_objects(labels)[chosen - 1]
    inside = labels[box] == chosen
    _check_inside(np.where(inside, smooth[box], 0), box, counts.shape, scan)
    weights = np.where(inside, counts[box], 0).astype(np.float64)
    if weights.sum() < _FEWEST_PHOTONS:
        raise InputError("no Bragg peak", where=_where(scan), remedy="Check the scan.")
    centre = ndimage.center_of_mass(weights)
    a, b, c = (float(part.start + value) for part, value in zip(box, centre, strict=True))
    return Peak(
        (a, b, c),
        (box[0].start, box[1].start, box[2].start),
        (box[0].stop - 1, box[1].stop - 1, box[2].stop - 1),
        float(weights.sum()),
    )


def _check_inside(
    region: Counts, box: tuple[slice, ...], shape: tuple[int, ...], scan: xr.Dataset
) -> None:
    """Refuse a peak that the window cuts at half its height or more."""
    for axis, (part, size, name) in enumerate(
        zip(box, shape, ("frame", "row", "column"), strict=True)
    ):
        heights = region.max(axis=tuple(other for other in range(3) if other != axis))
        for at_edge, height, end in (
            (part.start == 0, heights[0], "first"),
            (part.stop == size, heights[-1], "last"),
        ):
            if at_edge and height > 0.5 * region.max():
                raise InputError(
                    f"the Bragg peak is cut off by the {end} {name}",
                    where=_where(scan),
                    remedy="It moved out of the window; record the scan again around it.",
                )


def find_strays(scan: xr.Dataset, peak: Peak) -> tuple[Mask, list[str]]:
    """Find stray peaks (aliens): compact, bright, one-sided and cut off from the Bragg peak.

    The pattern of one crystal is nearly the same on both sides of its peak, so a compact
    brightness with nothing opposite that no bridge joins to the peak comes from another grain.

    Parameters
    ----------
    scan : Dataset
        ``counts`` and ``mask`` (frame, row, column).
    peak : Peak
        See `find_peak`.

    Returns
    -------
    mask : ndarray of bool, shape of the counts
        True in a stray peak.
    said : list of str
        One sentence about each.
    """
    counts, mask = scan.counts.values, scan["mask"].values
    small = _added(counts, (2, 2, 2))
    known = _added(mask.astype(np.float32), (2, 2, 2)) / np.float32(8)
    middle = [value / 2 - 0.25 for value in peak.centre]
    found = np.zeros(small.shape, bool)
    said: list[str] = []
    for width in _STRAY_WIDTHS:
        for place, region in _spots(small, known, middle, width):
            if not found[place]:
                frame, row, column = (2 * p for p in place)
                said.append(f"stray peak near frame {frame}, row {row}, column {column} masked")
            found |= region
    whole = np.zeros(counts.shape, bool)
    if said:
        wide = ndimage.binary_dilation(found, iterations=2)
        large = wide.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        whole[tuple(slice(size) for size in large.shape)] = large
    return whole, said


def _spots(
    small: Counts, known: Counts, middle: Sequence[float], width: float
) -> Iterator[tuple[tuple[int, ...], Mask]]:
    """Stray peaks that stand out after a blur: their brightest voxel and their region."""
    weight = np.maximum(ndimage.gaussian_filter(known, width), 1e-3)
    level = ndimage.gaussian_filter(small, width) / weight
    measured = known > 0.5
    base = float(np.percentile(level[measured], 20)) if measured.any() else 0.0
    # Photons of a Gaussian-weighted mean: the variance is the mean over the effective volume.
    spread = np.sqrt((base + 0.1) / (4 * np.pi * width**2) ** 1.5)
    other, seen = _opposite(ndimage.maximum_filter(level, 5), measured, middle)
    floor = base + _STRAY_SIGMA * spread
    lone = (level > floor) & seen & (level > _STRAY_RATIO * (other + spread))
    labels, _ = ndimage.label(lone)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box] == label
        top = np.unravel_index(np.argmax(np.where(part, level[box], 0)), part.shape)
        place = tuple(int(t + b.start) for t, b in zip(top, box, strict=True))
        region = _region(level, place, floor, middle)
        if region is not None:
            yield place, region


def _opposite(level: Counts, known: Mask, middle: Sequence[float]) -> tuple[Counts, Mask]:
    """Level at the mirrored place about a point, and where there is one."""
    other, seen = np.zeros_like(level), np.zeros(level.shape, bool)
    source, target = [], []
    for size, centre in zip(level.shape, middle, strict=True):
        total = round(2 * centre)
        first, last = max(0, total - size + 1), min(size - 1, total)
        target.append(slice(first, last + 1))
        source.append(slice(total - last, total - first + 1))
    turn = (slice(None, None, -1),) * 3
    other[tuple(target)] = level[tuple(source)][turn]
    seen[tuple(target)] = known[tuple(source)][turn]
    return other, seen


def _region(
    level: Counts, place: tuple[int, ...], floor: float, middle: Sequence[float]
) -> Mask | None:
    """Region of a stray peak; None if a bridge joins it to the Bragg peak, or it is no spot."""
    height = float(level[place])
    centre = tuple(min(max(round(m), 0), n - 1) for m, n in zip(middle, level.shape, strict=True))
    for valley in _STRAY_VALLEYS:  # as much of it as can be told from the Bragg peak
        labels, _ = ndimage.label(level > max(valley * height, floor))
        label = labels[place]
        if label == 0 or label == labels[centre]:
            continue
        region: Mask = labels == label
        box = ndimage.find_objects(labels)[label - 1]
        extent = [part.stop - part.start for part in box]
        compact = all(e <= max(n / 3, 6) for e, n in zip(extent, level.shape, strict=True))
        if compact and region.sum() >= 8:
            return region
    return None


def _without_strays(scan: xr.Dataset, peak: Peak) -> xr.Dataset:
    """Mask stray peaks."""
    found, said = find_strays(scan, peak)
    if not said:
        return scan
    return _flagged(_changed(scan, scan.counts.values, scan["mask"].values & ~found), *said)


def remove_background(scan: xr.Dataset, *, threshold: float | None = None) -> xr.Dataset:
    """Set to zero what is background.

    Parameters
    ----------
    scan : Dataset
        ``counts`` and ``mask`` (frame, row, column).
    threshold : float, optional
        Counts below it become zero. Default: voxels whose box of 3 x 3 x 3 holds no more
        photons than the background gives with a chance of 1e-3; the background is what the
        darkest fifth of the window shows, and where that is more than 0.2 photons a voxel it may
        be the crystal's, so nothing is removed.

    Returns
    -------
    Dataset
        Attribute ``background`` in photons per voxel.
    """
    counts, mask = scan.counts.values, scan["mask"].values
    base = _background(counts, mask)
    if threshold is not None:
        kept = counts >= threshold
    elif base < _CLEAR_BACKGROUND:
        share = ndimage.uniform_filter(mask.astype(np.float32), 3)
        near = ndimage.uniform_filter(counts, 3) / np.maximum(share, 1 / 27) * 27
        numbers = np.arange(200)
        least = int(np.argmax(special.pdtrc(numbers, max(27 * base, 1e-12)) < _KEPT_BY_CHANCE)) + 1
        kept = near > least - 0.5
    else:
        kept = np.ones(counts.shape, bool)
    result = _changed(scan, np.where(kept, counts, 0), mask)
    return result.assign_attrs(background=base)


def _background(counts: Counts, mask: Mask) -> float:
    """Photons per voxel in the darkest fifth of the window."""
    size = tuple(min(8, n) for n in counts.shape)
    block = (size[0], size[1], size[2])
    known = _added(mask.astype(np.float32), block)
    full = known > 0.5 * np.prod(block)
    if not full.any():
        return 0.0
    return float(np.percentile(_added(counts, block)[full] / known[full], 20))


# --------------------------------------------------------------------------------------------
# Binning, summing, the window


def _added(values: Counts, block: tuple[int, int, int]) -> Counts:
    """Sums over whole blocks."""
    shape = [n // b for n, b in zip(values.shape, block, strict=True)]
    part = values[tuple(slice(n * b) for n, b in zip(shape, block, strict=True))]
    split = [length for n, b in zip(shape, block, strict=True) for length in (n, b)]
    return np.asarray(part.reshape(split).sum(axis=(1, 3, 5)), np.float32)


def bin_scan(scan: xr.Dataset, binning: tuple[int, int, int]) -> xr.Dataset:
    """Add up neighbouring frames, rows and columns.

    Parameters
    ----------
    scan : Dataset
        ``counts`` and ``mask`` (frame, row, column).
    binning : tuple of int
        Frames, rows and columns of a block.

    Returns
    -------
    Dataset
        A block counts as usable where all of it is; the pixel and the angles follow.

    Raises
    ------
    InputError
        Blocks that are not whole, or larger than the scan.
    """
    if binning == (1, 1, 1):
        return scan
    if any(b < 1 or b != int(b) or b > n for b, n in zip(binning, scan.counts.shape, strict=True)):
        raise InputError(f"blocks of {binning}", where="binning", remedy="Give whole numbers.")
    counts = _added(scan.counts.values, binning)
    mask = _added(scan["mask"].values.astype(np.float32), binning) > np.prod(binning) - 0.5
    angle = scan.angle.values[: counts.shape[0] * binning[0]].reshape(-1, binning[0]).mean(axis=1)
    height, width = np.broadcast_to(np.asarray(scan.attrs["pixel_m"], dtype=float), 2)
    pixel = (float(height * binning[1]), float(width * binning[2]))
    moved = scan.drop_vars(("counts", "mask", "angle")).assign_coords(
        angle=("frame", angle, scan.angle.attrs)
    )
    return _changed(moved, counts, mask).assign_attrs(pixel_m=pixel)


def sum_scans(scans: Sequence[xr.Dataset], *, least_correlation: float = 0.97) -> xr.Dataset:
    """Align scans of one state by whole voxels and add them up.

    Each is moved by the peak of its phase correlation with the scan that agrees best with all
    others; those that agree with it less than `least_correlation` (of the smoothed amplitudes
    around the peak) are left out and named in ``flags``.

    Parameters
    ----------
    scans : sequence of Dataset
        ``counts`` and ``mask`` (frame, row, column) of one shape and one geometry.
    least_correlation : float
        From 0 to 1.

    Returns
    -------
    Dataset
        On the grid of the scan that the others were compared with. Where a voxel is usable in a
        part of the scans only, its counts are scaled to all of them.

    Raises
    ------
    InputError
        The scans differ in geometry or shape, or no two of them agree.
    """
    for scan in scans[1:]:
        _check_alike(scans[0], scan)
    peaks = [find_peak(scan).nearest for scan in scans]
    boxes = [_amplitudes(scan, place) for scan, place in zip(scans, peaks, strict=True)]
    pairs = np.eye(len(scans))
    for i in range(len(scans)):
        for j in range(i):
            pairs[i, j] = pairs[j, i] = _agreement(boxes[i], boxes[j])[0]
    best = int(np.argmax(np.median(pairs, axis=1)))
    used = [i for i in range(len(scans)) if pairs[i, best] >= least_correlation]
    if len(used) < 2:
        raise InputError(
            f"no two scans agree (best correlation {np.sort(pairs.ravel())[-len(scans) - 1]:.2f})",
            where=", ".join(_where(scan) for scan in scans),
            remedy="They show different states or crystals; prepare them one by one.",
        )
    total = np.zeros(scans[best].counts.shape, np.float32)
    number = np.zeros(total.shape, np.float32)
    for i in used:
        shift = _agreement(boxes[best], boxes[i])[1]
        move = [a - b + s for a, b, s in zip(peaks[best], peaks[i], shift, strict=True)]
        total += _moved(scans[i].counts.values, move)
        number += _moved(scans[i]["mask"].values.astype(np.float32), move)
    scale = np.float32(len(used)) / np.maximum(number, np.float32(1))
    total *= scale
    result = _changed(scans[best], total, number > 0)
    said = [
        f"{_where(scan)} left out: it agrees only to {pairs[i, best]:.2f}"
        for i, scan in enumerate(scans)
        if i not in used
    ]
    names = json.dumps([_where(scans[i]) for i in used])
    return _flagged(result, *said).assign_attrs(scans=names)


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Refuse scans of another geometry."""
    same = [first.counts.shape == other.counts.shape]
    for name in ("energy_eV", "distance_m", "pixel_m"):
        a, b = (np.asarray(scan.attrs.get(name, np.nan), float) for scan in (first, other))
        same.append(bool(np.allclose(a, b, rtol=1e-4, equal_nan=True)))
    motors = [json.loads(scan.attrs.get("angles", "{}")) for scan in (first, other)]
    scanned = first.attrs.get("scan_axis")
    same.append(scanned == other.attrs.get("scan_axis") and motors[0].keys() == motors[1].keys())
    same += [abs(motors[0][m] - motors[1].get(m, 1e9)) < 0.01 for m in motors[0] if m != scanned]
    steps = [np.diff(scan.angle.values).mean() for scan in (first, other)]
    same.append(bool(np.isclose(steps[0], steps[1], rtol=0.01)))
    if not all(same):
        raise InputError(
            f"its shape, energy, detector or angles differ from those of {_where(first)}",
            where=_where(other),
            remedy="Add up only scans of one reflection recorded alike.",
        )


def _amplitudes(scan: xr.Dataset, place: tuple[int, int, int]) -> Counts:
    """Smoothed amplitudes in a box around a place, zero outside the window."""
    counts = scan.counts.values
    window = tuple(min(_BOX, n) for n in counts.shape)
    part = _cut(counts, place, (window[0], window[1], window[2]))
    smooth: Counts = np.sqrt(ndimage.gaussian_filter(part, 1.0))
    return smooth


def _agreement(first: Counts, other: Counts) -> tuple[float, list[int]]:
    """Correlation of two boxes at their best shift, and that shift of the second."""
    a, b = (scipy.fft.rfftn(box - box.mean()) for box in (first, other))
    cross = a * np.conj(b)
    # Whitened, but not where there is only noise.
    cross /= np.abs(cross) + 1e-3 * np.abs(cross).max()
    peak = np.unravel_index(np.argmax(scipy.fft.irfftn(cross, first.shape)), first.shape)
    shift = [int(p) - (n if p > n // 2 else 0) for p, n in zip(peak, first.shape, strict=True)]
    moved = _moved(other, shift)
    return float(np.corrcoef(first.ravel(), moved.ravel())[0, 1]), shift


def _moved(values: Counts, shift: Sequence[int]) -> Counts:
    """Whole-voxel shift, zero where nothing comes in."""
    result = np.zeros_like(values)
    source, target = [], []
    for step, size in zip(shift, values.shape, strict=True):
        source.append(slice(max(0, -step), max(0, min(size, size - step))))
        target.append(slice(max(0, step), max(0, min(size, size + step))))
    result[tuple(target)] = values[tuple(source)]
    return result


def _cut(values: NDArray[Any], place: Sequence[int], shape: tuple[int, int, int]) -> NDArray[Any]:
    """Window with a place at n // 2; zero (False) outside the array."""
    result = np.zeros(shape, values.dtype)
    source, target = [], []
    for centre, size, window in zip(place, values.shape, shape, strict=True):
        first = centre - window // 2
        low, high = max(0, first), min(size, first + window)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    result[tuple(target)] = values[tuple(source)]
    return result


def _windowed(scan: xr.Dataset, size: tuple[int, int, int] | None) -> xr.Dataset:
    """Window around the peak of a size that the FFT likes."""
    peak = find_peak(scan)
    counts, mask, place = scan.counts.values, scan["mask"].values, peak.nearest
    first, last = _signal_box(counts, place)
    if size is None:
        reach = [max(p - f, e - p + 1) for p, f, e in zip(place, first, last, strict=True)]
        shape = _fast(tuple(max(2 * r, 16) for r in reach))
    else:
        shape = _fast(size)
    window = _cut(counts, place, shape)
    said = []
    share = 1 - float(window.sum()) / float(counts.sum())
    if share > 1e-3:
        said.append(f"the window of {shape} leaves out {share:.2%} of the photons")
    step = float(np.polyfit(np.arange(scan.angle.size), scan.angle.values, 1)[0])
    number = np.arange(shape[0]) - shape[0] // 2 + place[0]
    # Frames outside the scan, which are masked, continue its angles evenly.
    angle = np.interp(number, np.arange(scan.angle.size), scan.angle.values)
    angle += step * (number - np.clip(number, 0, scan.angle.size - 1))
    moved = scan.drop_vars(("counts", "mask", "angle")).assign_coords(
        angle=("frame", angle, scan.angle.attrs)
    )
    result = _changed(moved, window, _cut(mask, place, shape)).assign_attrs(
        technique="bcdi",
        centre=peak.centre[1:],
        centre_frame=peak.centre[0],
        centre_offset=tuple(c - p for c, p in zip(peak.centre, place, strict=True)),
        scans=scan.attrs.get("scans", json.dumps([_where(scan)])),
    )
    return _flagged(result, *said)


def _fast(size: tuple[int, ...]) -> tuple[int, int, int]:
    """The next even sizes whose transform is fast."""
    found = []
    for length in size:
        length = scipy.fft.next_fast_len(int(length))
        while length % 2:
            length = scipy.fft.next_fast_len(length + 1)
        found.append(length)
    return found[0], found[1], found[2]


def _signal_box(counts: Counts, place: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """First and last voxel of what hangs together with the peak, fringes and all."""
    block = tuple(min(4, n) for n in counts.shape)
    whole = np.pad(counts, [(0, -n % b) for n, b in zip(counts.shape, block, strict=True)])
    filled = _added(whole, (block[0], block[1], block[2])) >= 4
    labels, _ = ndimage.label(filled, np.ones((3, 3, 3)))
    at = tuple(p // b for p, b in zip(place, block, strict=True))
    part = ndimage.find_objects(labels)[max(int(labels[at]), 1) - 1]
    first = [p.start * b for p, b in zip(part, block, strict=True)]
    last = [min(p.stop * b, n) - 1 for p, b, n in zip(part, block, counts.shape, strict=True)]
    return first, last
