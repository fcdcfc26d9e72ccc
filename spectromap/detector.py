"""What is wrong with the counts: dead and hot pixels, spikes, saturation, beam lost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._compiled import F32, I32, compiled
from spectromap.schema import LOG, InputError, check_stack

__all__ = ["Inspection", "blank", "find_defects"]

Frame = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: A frame or row this much darker than it should be has lost the beam.
DUMP_FRACTION = 0.05
#: A frame in which more than this share of the rows has no beam is lost.
LOST_SHARE = 0.98
#: A row or frame is judged by its brightness only if so many photons are expected in it.
EXPECTED_PHOTONS = 50.0
#: A pixel that never counted is dead if so many photons are expected in it, else it is only dark.
EXPECTED_IN_PIXEL = 15.0
#: So many samples at exactly the largest value of the stack may mean that the counter was full.
CEILING_SAMPLES = 8
#: In images without noise hardly any frame seems to have some.
NOISY_SHARE = 0.1
#: A pixel this many photon-noise standard deviations above all its neighbours may be a spike.
SPIKE_SIGMA = 12.0
#: A point spread function of two pixels FWHM leaves half the peak in the next pixel, so that
#: nothing the optics can image is this many times brighter than all eight neighbours.
SPIKE_RATIO = 2.5
#: Where this share of the frame is as bright as its brightest 0.1 %, that is the open area ...
OPEN_SHARE, OPEN_RATIO, OPEN_PHOTONS = 0.05, 1.25, 10.0
#: ... and nothing is so many times brighter: single pixels, or tracks of a few.
OVER_BRIGHT_RATIO = 1.5
TRACK_PIXELS = 12
#: Fewer dark rows in a run than this must be darker still: structures are so thin, lost beam not.
SHORT_RUN, SHORT_RUN_FRACTION = 3, 0.005
#: A pixel with spikes in this share of the frames is hot.
HOT_SHARE = 0.2
#: A line is dead if its counts are so much below those two lines away, hot if they are so much
#: above both lines beside it, judged where its surroundings are not dark themselves, ...
DEAD_LINE, HOT_LINE, BRIGHT_SIDE = 0.1, 2.5, 0.2
#: ... in this share of its pixels.
LINE_SHARE = 0.95
#: Brightness and noise of a frame are taken from about so many of its samples.
SUBSAMPLE = 16384
#: Chance that a sound pixel repeats the same count in all frames, below which it counts as stuck.
STUCK_CHANCE = 1e-12
#: Shorter lines may hold one value by chance.
FEWEST_IN_LINE = 32
#: More than this share of constant pixels or lines is an image without noise, not a defect.
NOISE_FREE_SHARE = 0.1
MOST_CANDIDATES = 65536
LARGEST = F32(np.finfo(np.float32).max)


@compiled
def _modulus(values: NDArray[np.complex64], result: Frame) -> None:
    """Modulus of complex samples."""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            v = values[y, x]
            result[y, x] = math.sqrt(v.real * v.real + v.imag * v.imag)


@compiled
def _sum(values: Frame) -> float:
    """Sum in eight partial sums, which the processor adds side by side."""
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
def _discard(
    frame: Frame, counts: bool, sums: NDArray[np.float64], varies_y: Any, varies_x: Any
) -> tuple[int, int]:
    """Set samples that are not finite, or negative counts, to NaN in place.

    Adds up rows and notes which rows and columns hold more than one value.
    """
    ny, nx = frame.shape
    missing, negative = 0, 0
    kept = np.empty(nx, dtype=np.float32)
    first = np.zeros(nx, dtype=np.float32)
    for y in range(ny):
        row = frame[y]
        lost, below, usable = 0, 0, 0
        for x in range(nx):
            v = row[x]
            finite = abs(v) <= LARGEST
            under = counts and v < F32(0.0) and finite
            good = finite and not under
            row[x] = v if good else F32(np.nan)
            kept[x] = v if good else F32(0.0)
            lost += 0 if finite else 1
            below += 1 if under else 0
            usable += 1 if good else 0
        missing += lost
        negative += below
        sums[y] = _sum(kept)
        start = kept[0]
        differs = 0
        for x in range(nx):
            differs += 1 if kept[x] != start else 0
        varies_y[y] = 1 if differs > 0 or usable == 0 else 0
        if y == 0:
            first[:] = kept
        for x in range(nx):
            varies_x[x] |= 1 if kept[x] != first[x] else 0
    return missing, negative


@compiled
def _fill(row: Frame, padded: Frame) -> None:
    """A row between two zeros, its missing samples zero."""
    inside = padded[1 : 1 + row.size]
    for x in range(row.size):
        v = row[x]
        inside[x] = v if v == v else F32(0.0)


@compiled
def _good_neighbours(frame: Frame, y: int, x: int) -> int:
    """How many of the eight neighbours have a value."""
    found = 0
    for v in range(max(0, y - 1), min(frame.shape[0], y + 2)):
        for u in range(max(0, x - 1), min(frame.shape[1], x + 2)):
            if (v != y or u != x) and not np.isnan(frame[v, u]):
                found += 1
    return found


@compiled
def _outstanding(
    frame: Frame, gain: float, bright: float, track: float, found: Any, kinds: Any
) -> int:
    """List pixels that stand out of their eight neighbours (kind 1) or of the frame (kind 2).

    A pixel stands out if it is 12 standard deviations above the highest neighbour and 2.5 times
    as bright, or 1.5 times as bright and above `bright`; out of the frame above `track`.
    """
    ny, nx = frame.shape
    rows = np.zeros((3, nx + 2), dtype=np.float32)
    flags = np.zeros(nx, dtype=np.int32)
    g = F32(gain)
    significant = F32(SPIKE_SIGMA * SPIKE_SIGMA) * g
    bright32, track32 = F32(bright), F32(track)
    ratio, low_ratio = F32(SPIKE_RATIO), F32(OVER_BRIGHT_RATIO)
    _fill(frame[0], rows[0])
    count = 0
    for y in range(ny):
        above, here, below = rows[(y + 2) % 3], rows[y % 3], rows[(y + 1) % 3]
        if y + 1 < ny:
            _fill(frame[y + 1], below)
        else:
            below[:] = F32(0.0)
        a0, a1, a2 = above[:nx], above[1 : nx + 1], above[2 : nx + 2]
        b0, b1, b2 = below[:nx], below[1 : nx + 1], below[2 : nx + 2]
        h0, h1, h2 = here[:nx], here[1 : nx + 1], here[2 : nx + 2]
        any_flag = I32(0)
        for x in range(nx):
            m = max(max(max(a0[x], a1[x]), max(a2[x], h0[x])), max(h2[x], b0[x]))
            m = max(m, max(b1[x], b2[x]))
            v = h1[x]
            over = v - m
            alone = (over > F32(0.0)) and (over * over > significant * max(m, g))
            alone = alone and ((v > ratio * m) or ((v > bright32) and (v > low_ratio * m)))
            flag = I32(1 if alone else 0) | I32(2 if v > track32 else 0)
            flags[x] = flag
            any_flag |= flag
        if any_flag:
            for x in range(nx):
                if flags[x] and count < found.size and _good_neighbours(frame, y, x) >= 3:
                    found[count] = y * nx + x
                    kinds[count] = flags[x]
                    count += 1
    return count


@compiled
def _accumulate(frame: Frame, total: Frame, peak: Frame, highest: Frame) -> None:
    """Add a frame to the sum and the maximum of every pixel; highest sample of each row."""
    ny, nx = frame.shape
    for y in range(ny):
        row, sums, tops = frame[y], total[y], peak[y]
        bits = row.view(np.int32)
        top = I32(0)
        for x in range(nx):
            v = row[x]
            good = v == v
            sums[x] += v if good else F32(0.0)
            tops[x] = v if good and v > tops[x] else tops[x]
            # Positive floats are in the order of their bits, and integers reduce side by side.
            top = max(top, bits[x] if good else I32(0))
        highest[y] = np.array([top], dtype=np.int32).view(np.float32)[0]


@compiled
def _next_below(frame: Frame, highest: Frame, top: Any) -> Any:
    """Highest sample of a frame below `top`, given the highest of every row."""
    second = F32(0.0)
    for y in range(highest.size):
        if highest[y] < top:
            second = max(second, highest[y])
    for y in range(highest.size):
        if highest[y] == top:
            for x in range(frame.shape[1]):
                second = frame[y, x] if second < frame[y, x] < top else second
    return second


@compiled
def _two_highest(frame: Frame, highest: Frame, result: NDArray[np.float64]) -> None:
    """The highest value of a frame, how many samples have it, and the same of the second."""
    top = highest.max()
    second = _next_below(frame, highest, top)
    at_top, at_second = 0, 0
    for y in range(highest.size):
        if highest[y] >= second:
            for x in range(frame.shape[1]):
                at_top += 1 if frame[y, x] == top else 0
                at_second += 1 if frame[y, x] == second else 0
    result[0], result[1] = top, at_top
    result[2], result[3] = second, at_second


@compiled
def _dead_pixels(total: Frame, photon: float, everywhere: float, dead: Any) -> None:
    """Pixels that never counted where their surroundings did."""
    ny, nx = total.shape
    window = np.empty(49, dtype=np.float32)
    for y in range(ny):
        for x in range(nx):
            if total[y, x] != F32(0.0):
                continue
            n = 0
            for v in range(max(0, y - 3), min(ny, y + 4)):
                for u in range(max(0, x - 3), min(nx, x + 4)):
                    window[n] = total[v, u]
                    n += 1
            # The 35th percentile is still that of the darker side of an edge.
            expected = np.sort(window[:n])[int(0.35 * n)]
            dead[y, x] = max(expected, F32(everywhere)) > F32(EXPECTED_IN_PIXEL * photon)


@compiled
def _odd_columns(total: Frame, least: Any, low: Any, high: Any, judged: Any) -> None:
    """In how many rows a column is much darker or brighter than those around it.

    Rows count where the columns two away are brighter than `least`.
    """
    ny, nx = total.shape
    dark, bright, half = F32(DEAD_LINE), F32(HOT_LINE), F32(0.5)
    side = np.empty(nx, dtype=np.float32)
    beside = np.empty(nx, dtype=np.float32)
    for y in range(ny):
        row = total[y]
        side[:2] = row[2:4]
        side[nx - 2 :] = row[nx - 4 : nx - 2]
        beside[0], beside[nx - 1] = row[1], row[nx - 2]
        left, right, middle = row[: nx - 4], row[4:], side[2 : nx - 2]
        for x in range(nx - 4):
            middle[x] = half * (left[x] + right[x])
        left, right, middle = row[: nx - 2], row[2:], beside[1 : nx - 1]
        for x in range(nx - 2):
            middle[x] = max(left[x], right[x])
        for x in range(nx):
            enough = side[x] > least
            judged[x] += 1 if enough else 0
            low[x] += 1 if enough and row[x] < dark * side[x] else 0
            high[x] += 1 if enough and row[x] > bright * beside[x] else 0


@compiled
def _blank(
    frames: Frame, pixels: Any, lost: Any, bad_rows: Any, bad_columns: Any, ceiling: float
) -> None:
    """Set what is marked, and samples at the ceiling, to NaN."""
    full = F32(ceiling)
    nan = F32(np.nan)
    for k in range(frames.shape[0]):
        for y in range(frames.shape[1]):
            row, bad = frames[k, y], pixels[y]
            if lost[k] or bad_rows[k, y]:
                row[:] = nan
                continue
            columns = bad_columns[k]
            for x in range(row.size):
                v = row[x]
                row[x] = nan if bad[x] or columns[x] or v >= full else v


def _stride(size: int, columns: int) -> int:
    """Step through the samples of a frame that does not stay in the same columns."""
    step = max(1, size // SUBSAMPLE)
    while math.gcd(step, columns) > 1:
        step += 1
    return step


def _gain(frame: Frame, step: int) -> float:
    """Variance over mean of a frame from pixels next to each other; structure adds to it.

    NaN in a frame without data, 0 in one without noise.
    """
    flat = frame.ravel()
    first, second = flat[:-1:step], flat[1::step]
    good = np.isfinite(first) & np.isfinite(second)
    if not good.any():
        return float("nan")
    first, second = first[good].astype(float), second[good].astype(float)
    difference = np.abs(first - second)
    mean = float(np.mean(first + second)) / 2.0
    if mean <= 0:
        return float("nan")
    if np.median(difference) == 0 and mean > 1.0:
        return 0.0
    limit = 6.0 * max(1.4826 * float(np.median(difference)), 1e-12 * mean, 1.0)
    return float(np.mean(difference[difference <= limit] ** 2) / 2.0 / mean)


def _level(sample: Frame, share: float) -> float:
    """Value that this share of a sample does not exceed."""
    rank = int(share * (sample.size - 1))
    return float(np.partition(sample, rank)[rank])


def _open_level(sample: Frame, gain: float) -> float:
    """Level of the open area of a frame; infinite if no populated level is the brightest."""
    top, populated = _level(sample, 0.999), _level(sample, 1.0 - OPEN_SHARE)
    photon = gain if np.isfinite(gain) and gain > 0 else 1.0
    if populated < OPEN_PHOTONS * photon:
        return float("inf")  # so few photons spread more than open area and sample differ
    limit = OPEN_RATIO * populated + 4.0 * np.sqrt(photon * populated)
    return top if top <= limit else float("inf")


def _tracks(places: NDArray[np.int64], columns: int) -> list[int]:
    """Pixels of small clusters: groups of touching pixels that are no larger than a track."""
    left = set(places.tolist())
    found: list[int] = []
    while left:
        group, queue = [], [left.pop()]
        while queue:
            place = queue.pop()
            group.append(place)
            y, x = divmod(place, columns)
            for v in (y - 1, y, y + 1):
                for u in range(max(0, x - 1), min(columns, x + 2)):
                    if v * columns + u in left:
                        left.remove(v * columns + u)
                        queue.append(v * columns + u)
        if len(group) <= TRACK_PIXELS:
            found += group
    return found


class Inspection:
    """One pass over the frames of a stack: each is cleaned, and what is wrong is noted.

    Parameters
    ----------
    energy : array-like, shape (n_energy,)
        Photon energies in eV.
    shape : tuple of int
        Rows and columns of a frame.
    quantity : str
        What the samples are, see `spectromap.schema.QUANTITIES`.
    dark_counts : float
        Counts without light, per pixel and frame.
    name : str
        What the stack is called in messages.

    Notes
    -----
    Nothing is kept but the sum and the maximum of every pixel and sums of rows: 8 bytes a pixel.
    """

    def __init__(
        self,
        energy: Iterable[float],
        shape: tuple[int, int],
        quantity: str,
        *,
        dark_counts: float = 0.0,
        name: str = "stack",
    ) -> None:
        self.energy = np.asarray(energy, dtype=float)
        self.shape = (int(shape[0]), int(shape[1]))
        self.quantity, self.name = quantity, name
        self.dark = float(dark_counts) if quantity == "counts" else 0.0
        count, (ny, nx) = self.energy.size, self.shape
        self._total = np.zeros(self.shape, dtype=np.float32)
        self._peak = np.zeros(self.shape, dtype=np.float32)
        self._sums = np.zeros((count, ny))
        self._varies_y = np.ones((count, ny), dtype=np.int32)
        self._varies_x = np.ones((count, nx), dtype=np.int32)
        self._brightness = np.zeros(count)
        self._gains = np.full(count, np.nan)
        self._tops = np.zeros((count, 4))
        self._numbers = np.zeros((3, count), dtype=np.int64)
        self._places: list[NDArray[np.int64]] = []
        self._seen = np.zeros(count, dtype=bool)

    def add(self, index: int, frame: NDArray[Any]) -> Frame:
        """Clean a frame and take note of it.

        Parameters
        ----------
        index : int
            Which energy it belongs to.
        frame : ndarray, shape (ny, nx)
            Real or complex, of any type.

        Returns
        -------
        ndarray of float32, shape (ny, nx)
            A copy. NaN where a sample is not finite, a negative count or a spike; the modulus of
            complex samples. All other samples are as they were.

        Raises
        ------
        InputError
            The frame has another shape, or came before.
        """
        if frame.shape != self.shape:
            raise InputError(
                f"frame {index} has shape {frame.shape}, the others {self.shape}", where=self.name
            )
        if self._seen[index]:
            raise InputError(f"frame {index} was handed over twice", where=self.name)
        self._seen[index] = True
        result = _as_float32(frame)
        counts = self.quantity == "counts"
        varies_x = np.zeros(self.shape[1], dtype=np.int32)
        missing, negative = _discard(
            result, counts, self._sums[index], self._varies_y[index], varies_x
        )
        self._varies_x[index] = varies_x
        self._numbers[:2, index] = missing, negative
        step = _stride(result.size, self.shape[1])
        sample = result.ravel()[::step]
        sample = sample[np.isfinite(sample)]
        if sample.size:
            self._brightness[index] = _level(sample, 0.99)
            if counts:
                self._gains[index] = _gain(result, step)
                self._remove_spikes(index, result, _open_level(sample, self._gains[index]))
        highest = np.empty(self.shape[0], dtype=np.float32)
        _accumulate(result, self._total, self._peak, highest)
        if counts:
            _two_highest(result, highest, self._tops[index])
        return result

    def _remove_spikes(self, index: int, frame: Frame, bright: float) -> None:
        """Set spikes of a frame with this open-area level to NaN; remember where they were."""
        gain = self._gains[index]
        gain = gain if np.isfinite(gain) and gain > 0 else 1.0
        found = np.empty(MOST_CANDIDATES, dtype=np.int64)
        kinds = np.empty(MOST_CANDIDATES, dtype=np.int32)
        noise = SPIKE_SIGMA * np.sqrt(gain * max(bright, gain))
        track = OVER_BRIGHT_RATIO * bright + noise
        count = _outstanding(frame, gain, bright + noise, track, found, kinds)
        if count == 0 or count == MOST_CANDIDATES:
            return
        found, kinds = found[:count], kinds[:count]
        alone = found[(kinds & 1) > 0]
        tracks = found[(kinds & 2) > 0]
        places = np.union1d(alone, np.array(_tracks(tracks, self.shape[1]), dtype=np.int64))
        frame.ravel()[places] = np.nan
        self._numbers[2, index] = places.size
        self._places.append(places)

    def finish(self) -> xr.Dataset:
        """What only the whole stack tells.

        Returns
        -------
        Dataset
            (y, x): ``dead`` (never counted, or always the same), ``hot`` (always brighter than
            the optics can image), ``saturated`` (at the ceiling in some frame). (energy):
            ``lost`` (no beam or no data), ``brightness`` (99th percentile), numbers of ``spikes``,
            ``negative`` and ``missing`` samples. (energy, y) ``bad_rows``: rows without beam, or
            holding one value only; (energy, x) ``bad_columns``. Attributes: ``ceiling``, the count
            from which a sample is saturated (infinite if none is), ``gain`` as far as pixels next
            to each other tell, ``dead_rows``, ``dead_columns`` (lists of numbers), and totals.
        """
        counts = self.quantity == "counts"
        lost = self._lost()
        gains = self._gains[np.isfinite(self._gains) & ~lost]
        gain = float(np.median(gains)) if gains.size else 1.0
        photon = gain if gain > 0 else 1.0
        ceiling = self._ceiling() if counts else np.inf
        hot = self._hot(photon) if counts else np.zeros(self.shape, dtype=bool)
        dead = self._dead(lost, gain, photon) & ~hot
        bad_rows, bad_columns = self._bad_lines(lost, gain, photon)
        lines = self._odd_lines(photon, dead, hot) if counts else ([], [])
        result = xr.Dataset(coords={"energy": ("energy", self.energy, {"units": "eV"})})
        units = {"counts": "count"}.get(self.quantity, "1")
        for name, dims, values in (
            ("dead", ("y", "x"), dead),
            ("hot", ("y", "x"), hot),
            ("saturated", ("y", "x"), self._peak >= ceiling),
            ("lost", ("energy",), lost),
            ("bad_rows", ("energy", "y"), bad_rows),
            ("bad_columns", ("energy", "x"), bad_columns),
            ("missing", ("energy",), self._numbers[0]),
            ("negative", ("energy",), self._numbers[1]),
            ("spikes", ("energy",), self._numbers[2]),
        ):
            result[name] = (dims, values, {"units": "1"})
        result["brightness"] = ("energy", self._brightness, {"units": units})
        result.attrs = {
            "ceiling": float(ceiling),
            "gain": gain,
            "dead_rows": lines[0],
            "dead_columns": lines[1],
            "missing_samples": int(self._numbers[0].sum()),
            "negative_samples": int(self._numbers[1].sum()),
            "spikes": int(self._numbers[2].sum()),
        }
        _tell(result, self.name)
        return result

    def _lost(self) -> Mask:
        """Frames without beam or data; optical densities have no brightness to judge by."""
        level = self._brightness - self.dark
        empty = self._numbers[0] >= self.shape[0] * self.shape[1]
        if self.quantity != "counts":
            return np.asarray(empty | ((self._brightness == 0) & (self.quantity == "amplitude")))
        middle = np.median(level[level > 0]) if (level > 0).any() else 0.0
        means = self._sums.mean(axis=1) / self.shape[1] - self.dark
        # What is left are dark counts, whose brightest percent lie above their mean.
        noise = 3.0 * np.sqrt(np.nan_to_num(self._gains, nan=1.0) * self._brightness)
        dim = level <= DUMP_FRACTION * middle + noise
        dim &= means <= DUMP_FRACTION * np.median(means)
        return np.asarray(empty | (level <= DUMP_FRACTION * middle) | dim)

    def _ceiling(self) -> float:
        """Largest count of the stack if so many samples share it that it must be a limit."""
        top = float(self._tops[:, 0].max())
        at = self._tops[:, 0] == top
        samples = self._tops[at, 1].sum()
        below = np.where(at, self._tops[:, 2], self._tops[:, 0])
        second = float(below.max())
        beside = np.where(at, self._tops[:, 3], self._tops[:, 1])[below == second].sum()
        # Photon counts thin out towards the highest; a counter that is full piles them up there.
        many = samples > max(CEILING_SAMPLES, 1.0 + 2.0 * at.sum(), 2.0 * beside)
        # Frames that are clipped all over do not show their noise; those before the edge may.
        noisy = bool(np.mean(self._gains > 0) > NOISY_SHARE)
        return top if top > 0 and many and noisy else float("inf")

    def _dead(self, lost: Mask, gain: float, photon: float) -> Mask:
        """Pixels that never had a value or never changed it."""
        if self.quantity == "optical_density":
            return np.asarray((self._total == 0) & (self._peak == 0) & self._never())
        if self.quantity == "amplitude":
            return np.asarray(self._peak == 0)
        dead = np.zeros(self.shape, dtype=bool)
        everywhere = 0.01 * float(np.median(self._total[:: 1 + self.shape[0] // 128]))
        _dead_pixels(self._total, photon, everywhere, dead)
        kept = int((~lost).sum())
        constant = np.zeros(self.shape, dtype=bool)
        for frames in {kept, self._seen.size}:
            constant |= np.abs(self._total - frames * self._peak) <= 1e-5 * self._total
        constant &= self._peak > 0
        level = np.maximum(self._peak[constant] / photon, 1.0)
        repeats = (2.0 * np.sqrt(np.pi * level)) ** -(kept - 1.0)
        constant[constant] = repeats < STUCK_CHANCE
        if gain > 0 and constant.mean() < NOISE_FREE_SHARE:
            dead |= constant
        return dead

    def _never(self) -> Mask:
        """Pixels that could be without data: some are missing in every frame."""
        return np.full(self.shape, bool((self._numbers[0] > 0).all()))

    def _hot(self, photon: float) -> Mask:
        """Pixels that stand out of their neighbours in the sum or in many single frames."""
        hot = np.zeros(self.shape, dtype=bool)
        frames = self._seen.size
        if frames < 4:
            return hot
        found = np.empty(MOST_CANDIDATES, dtype=np.int64)
        kinds = np.empty(MOST_CANDIDATES, dtype=np.int32)
        sample = self._total.ravel()[:: _stride(self._total.size, self.shape[1])]
        bright = _open_level(sample, photon)
        bright += SPIKE_SIGMA * np.sqrt(photon * max(bright, photon))
        count = _outstanding(self._total, photon, bright, np.inf, found, kinds)
        if count < MOST_CANDIDATES:
            hot.ravel()[found[:count]] = True
        if self._places:
            places, times = np.unique(np.concatenate(self._places), return_counts=True)
            hot.ravel()[places[times >= max(3.0, HOT_SHARE * frames)]] = True
        return hot

    def _bad_lines(self, lost: Mask, gain: float, photon: float) -> tuple[Mask, Mask]:
        """Rows without beam, and rows and columns that hold one value; a frame may be `lost`."""
        rows = np.zeros(self._sums.shape, dtype=bool)
        columns = np.zeros(self._varies_x.shape, dtype=bool)
        kept = ~lost
        if self.quantity != "counts" or not kept.any():
            return rows, columns
        level = self._brightness - self.dark
        sums = self._sums - self.dark * self.shape[1]
        profile = np.median(sums[kept] / level[kept, None], axis=0)
        expected = profile * np.where(kept, level, 0.0)[:, None]
        if gain > 0 and min(self.shape) >= FEWEST_IN_LINE:
            single = (self._varies_y == 0) & (self._sums > 0)
            rows |= single & (single.mean(axis=1) < NOISE_FREE_SHARE)[:, None]
            # A column of zeros counts only if the column has counts in other frames.
            bright = self._total.sum(axis=0) > 20.0 * EXPECTED_PHOTONS * photon * kept.sum()
            single = (self._varies_x == 0) & bright
            columns |= single & (single.mean(axis=1) < NOISE_FREE_SHARE)[:, None]
        enough = expected > EXPECTED_PHOTONS * photon
        dark = enough & _runs(sums <= DUMP_FRACTION * expected, SHORT_RUN)
        dark |= enough & (sums <= SHORT_RUN_FRACTION * expected)
        # The beam goes and comes back somewhere along the rows beside the dark ones.
        for shift in (-1, 1):
            beside = np.roll(dark, shift, axis=1)
            beside[:, -1 if shift < 0 else 0] = False
            rows |= beside
        rows |= dark
        lost |= rows.mean(axis=1) > LOST_SHARE
        rows[lost] = columns[lost] = False
        return rows, columns

    def _odd_lines(self, photon: float, dead: Mask, hot: Mask) -> tuple[list[int], list[int]]:
        """Mark whole rows and columns that are dark or bright, and name them."""
        named: list[list[int]] = []
        bright = _level(self._total.ravel()[:: _stride(self._total.size, self.shape[1])], 0.9)
        least = F32(max(EXPECTED_IN_PIXEL * photon, BRIGHT_SIDE * bright))
        turned = np.ascontiguousarray(self._total.T), dead.T, hot.T
        for total, low, high in (turned, (self._total, dead, hot)):
            number = total.shape[1]
            if number < 8:
                named.append([])
                continue
            below, above, judged = (np.zeros(number, dtype=np.int32) for _ in range(3))
            _odd_columns(total, least, below, above, judged)
            enough = judged >= max(8, total.shape[0] // 4)
            most = LINE_SHARE * np.maximum(judged, 1)
            low[:, enough & (below >= most)] = True
            high[:, enough & (above >= most)] = True
            full = (low | high).mean(axis=0) > LINE_SHARE
            named.append(np.flatnonzero(full).tolist() if full.mean() < 0.5 else [])
        return named[0], named[1]


def _runs(marked: Mask, length: int) -> Mask:
    """Only runs of at least `length` marks along the last axis."""
    return np.asarray(ndimage.binary_opening(marked, np.ones((1, length), dtype=bool)))


def _as_float32(frame: NDArray[Any]) -> Frame:
    """A contiguous float32 copy; the modulus of complex samples."""
    if np.iscomplexobj(frame):
        result = np.empty(frame.shape, dtype=np.float32)
        _modulus(np.ascontiguousarray(frame, dtype=np.complex64), result)
        return result
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(frame, dtype=np.float32, order="C")


def find_defects(stack: xr.DataArray, dark_counts: float = 0.0) -> xr.Dataset:
    """Pixels, lines and frames that carry no usable counts; each frame is read once.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts, amplitudes or optical density.
    dark_counts : float
        Counts without light, per pixel and frame.

    Returns
    -------
    Dataset
        As `Inspection.finish` makes it, with the axes of the stack.
    """
    check_stack(stack)
    inspection = Inspection(
        stack.energy.values,
        (stack.sizes["y"], stack.sizes["x"]),
        stack.attrs["quantity"],
        dark_counts=dark_counts,
        name=str(stack.attrs.get("source_file", "stack")),
    )
    for index in range(stack.sizes["energy"]):
        inspection.add(index, np.asarray(stack[index].values))
    return inspection.finish().assign_coords(energy=stack.energy, y=stack.y, x=stack.x)


def blank(
    frames: Frame,
    defects: xr.Dataset,
    rows: slice = slice(None),
    energies: slice = slice(None),
) -> Frame:
    """Set to NaN, in place, what only the whole stack could tell.

    Parameters
    ----------
    frames : ndarray of float32, shape (n_energy, n_rows, nx)
        Frames as `Inspection.add` returned them, C-contiguous.
    defects : Dataset
        As `Inspection.finish` makes it.
    rows, energies : slice
        Which rows and frames of the stack these are; default all.

    Returns
    -------
    ndarray of float32, shape (n_energy, n_rows, nx)
        The same array.
    """
    pixels = defects["dead"].values[rows] | defects["hot"].values[rows]
    _blank(
        frames,
        pixels,
        defects["lost"].values[energies],
        np.ascontiguousarray(defects["bad_rows"].values[energies, rows]),
        np.ascontiguousarray(defects["bad_columns"].values[energies]),
        float(defects.attrs["ceiling"]),
    )
    return frames


def _tell(defects: xr.Dataset, name: str) -> None:
    """Say what was found."""
    energy, lost = defects["energy"].values, defects["lost"].values
    partial = defects["bad_rows"].values.any(axis=1)
    broken = defects["bad_columns"].values.any(axis=1)
    findings = [
        (lost.sum(), f"frames without beam, left out: {_energies(energy[lost])}"),
        (partial.sum(), f"frames with rows without beam: {_energies(energy[partial])}"),
        (broken.sum(), f"frames with columns of one value: {_energies(energy[broken])}"),
        (defects["dead"].values.sum(), "dead pixels"),
        (defects["hot"].values.sum(), "hot pixels"),
        (defects["saturated"].values.sum(), f"saturated pixels ({defects.attrs['ceiling']:g})"),
        (defects.attrs["negative_samples"], "negative counts, taken as missing"),
        (defects.attrs["missing_samples"], "samples without data"),
    ]
    for count, text in findings:
        if count:
            LOG.warning("%s: %d %s", name, int(count), text)
    if defects.attrs["spikes"]:
        LOG.info("%s: %d spikes removed", name, defects.attrs["spikes"])


def _energies(energy: NDArray[np.float64]) -> str:
    """Up to ten energies as text."""
    more = ", ..." if energy.size > 10 else ""
    return ", ".join(f"{e:.2f}" for e in energy[:10]) + f"{more} eV"
