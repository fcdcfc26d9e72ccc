"""Registration by maximum likelihood: the shifts of all frames and the image, all at once.

Each frame is the same image of amounts, seen at the optical density of its energy and at its own
place; amounts, optical densities, brightness and places are all free. The image can take a shift
of some frames against others for a change of itself, so the shifts are solved for together, with
what the image can absorb projected out (variable projection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectromap._compiled import compiled, exp32, inlined, log32

Array = NDArray[np.float64]
Frames = NDArray[np.float32]
Runs = NDArray[np.int64]
F32 = np.float32

#: Pixels are worked on in runs of this many along x.
LANES = 128
#: A pixel counts where at least this share of the frames saw it.
SEEN_SHARE = 0.7
#: Transmission below which nothing is learnt.
LEAST_TRANSMISSION = 1e-3
DEPTH_LIMIT = 12.0
MANY_FRAMES = 24
#: Runs that are summed in single precision.
FLUSH = 16
#: Steps of less than this many pixels (rms) end a level, the next being ten times smaller:
#: for frames so many pixels wide; wider ones can be placed better.
SMALL_STEP_PX, SMALL_STEP_SIDE = 0.02, 128
#: How far beforehand a shift is known, in pixels: hardly.
PRIOR_PX = 5.0


def spline_taps(shifts: Array) -> tuple[NDArray[np.int64], Frames]:
    """First sample and weights of a cubic B-spline at shifts.

    The spline does not interpolate: it blurs by 0.58 pixels (standard deviation) whatever the
    fraction of the shift is, so that shifted frames stay alike, and it suppresses aliases.

    Parameters
    ----------
    shifts : ndarray, shape (frame, 2)

    Returns
    -------
    whole : ndarray of int, shape (frame, 2)
    taps : ndarray, shape (frame, 2, 4)

    References
    ----------
    M. Unser, IEEE Signal Process. Mag. 16(6), 22 (1999).
    """
    whole = np.floor(shifts)
    f = shifts - whole
    taps = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    return whole.astype(np.int64) - 1, (np.stack(taps, axis=-1) / 6.0).astype(np.float32)


@inlined
def _sample(frame: Any, top: Any, left: Any, taps: Any, column: Any, values: Any) -> None:
    """Values of a frame at a run of shifted pixels, NaN outside the frame."""
    ny, nx = frame.shape
    start, stop = max(0, -left), min(LANES, nx - 3 - left)
    if top < 0 or top + 4 > ny or stop <= start:
        values[:] = np.nan
        return
    if stop - start < LANES:
        values[:] = np.nan
    first, count = left + start, stop - start
    row0, row1 = frame[top, first:], frame[top + 1, first:]
    row2, row3 = frame[top + 2, first:], frame[top + 3, first:]
    t0, t1, t2, t3 = taps[0, 0], taps[0, 1], taps[0, 2], taps[0, 3]
    for i in range(min(LANES + 8, row0.size)):
        column[i] = t0 * row0[i] + t1 * row1[i] + t2 * row2[i] + t3 * row3[i]
    one, two, three, inside = column[1:], column[2:], column[3:], values[start:]
    s0, s1, s2, s3 = taps[1, 0], taps[1, 1], taps[1, 2], taps[1, 3]
    for i in range(count):
        inside[i] = s0 * column[i] + s1 * one[i] + s2 * two[i] + s3 * three[i]


@compiled
def start_image(
    frames: NDArray[Any],
    place: NDArray[Any],
    taps: NDArray[Any],
    usable: NDArray[Any],
    level: NDArray[Any],
    spectrum: NDArray[Any],
    runs: NDArray[Any],
    image: NDArray[Any],
) -> None:
    """Amount at every pixel of some runs, from the logarithms of the counts."""
    count = spectrum.size
    nx = frames.shape[2]
    column = np.empty(LANES + 8, dtype=np.float32)
    v = np.empty(LANES, dtype=np.float32)
    seen = np.empty(LANES, dtype=np.float32)
    normal = np.empty(LANES, dtype=np.float32)
    right = np.empty(LANES, dtype=np.float32)
    total = usable.sum()
    least = F32(LEAST_TRANSMISSION)
    for run in range(runs.shape[0]):
        y, x = runs[run, 0], runs[run, 1]
        seen[:] = F32(0.0)
        normal[:] = F32(0.0)
        right[:] = F32(0.0)
        for k in range(count):
            if usable[k] == F32(0.0):
                continue
            _sample(frames[k], y + place[k, 0], x + place[k, 1], taps[k], column, v)
            b, scale = spectrum[k], F32(1.0) / level[k]
            bl, bbl = b * level[k], b * b * level[k]
            floor = max(least, F32(0.5) * scale)
            for i in range(LANES):
                known = v[i] == v[i]
                t = max(v[i] * scale, floor)
                t = t if known else floor
                w = t if known else F32(0.0)
                seen[i] += F32(1.0) if known else F32(0.0)
                normal[i] += bbl * w
                right[i] -= bl * w * log32(t)
        for i in range(min(LANES, nx - x)):
            known = seen[i] >= F32(SEEN_SHARE) * total
            image[y, x + i] = right[i] / (normal[i] + F32(1e-20)) if known else np.nan


@inlined
def _expect(
    values: Any, amount: Any, inside: Any, b: Any, bright: Any, dark: Any, p: Any, r: Any
) -> None:
    """Expected counts of a run and what was measured beyond them; zero where unknown."""
    for i in range(LANES):
        depth = min(max(b * amount[i], F32(-0.7)), F32(DEPTH_LIMIT))
        e = bright * exp32(-depth)
        known = values[i] == values[i]
        mask = inside[i] if known else F32(0.0)
        difference = values[i] - e if known else F32(0.0)
        p[i] = e * mask
        r[i] = difference * mask
    if dark > F32(0.0):
        for i in range(LANES):
            share = p[i] / (p[i] + dark)
            p[i] *= share
            r[i] *= share


@inlined
def _improve(normal: Any, right: Any, amount: Any, step: Any) -> None:
    """Step of Fisher scoring of the amount at each pixel of a run, kept within bounds."""
    for i in range(LANES):
        bound = F32(0.5) * abs(amount[i]) + F32(0.3)
        step[i] = min(max(right[i] / (normal[i] + F32(1e-20)), -bound), bound)
        amount[i] += step[i]


@inlined
def _correlate(
    b: Any, p: Any, r: Any, step: Any, amount: Any, slope_y: Any, slope_x: Any, part: Any
) -> None:
    """Residuals after the step, and their sums with slopes, amount and one, lane by lane."""
    s0, s1, s2, s3 = part[0], part[1], part[2], part[3]
    for i in range(LANES):
        rest = r[i] + b * p[i] * step[i]
        r[i] = rest
        s0[i] += slope_y[i] * rest
        s1[i] += slope_x[i] * rest
        s2[i] += amount[i] * rest
        s3[i] += rest


@inlined
def _flush(part: Any, sums: Any) -> None:
    """Add what has gathered in the lanes to the sums, in double precision."""
    for k in range(part.shape[0]):
        for j in range(part.shape[1]):
            for i in range(LANES):
                sums[k, j] += part[k, j, i]
    part[:] = F32(0.0)


@inlined
def _fetch(image: Any, slopes: Any, y: Any, x: Any, inside: Any, fetched: Any) -> None:
    """Amount and slopes at a run, zero where they are not known."""
    inside[:] = F32(0.0)
    fetched[:] = F32(0.0)
    for i in range(min(LANES, image.shape[1] - x)):
        here = image[y, x + i]
        known = here == here
        inside[i] = F32(1.0) if known else F32(0.0)
        fetched[0, i] = here if known else F32(0.0)
        fetched[1, i] = slopes[0, y, x + i]
        fetched[2, i] = slopes[1, y, x + i]


@compiled
def likelihood_pass(
    frames: NDArray[Any],
    place: NDArray[Any],
    taps: NDArray[Any],
    usable: NDArray[Any],
    level: NDArray[Any],
    dark: Any,
    spectrum: NDArray[Any],
    runs: NDArray[Any],
    samples: NDArray[Any],
    slopes: NDArray[Any],
    image: NDArray[Any],
    weights: NDArray[Any],
    residuals: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    """Improve the amount at every pixel of some runs; correlate what is left with images.

    One step of Fisher scoring a pixel. `sums` (frame, 4) becomes the sum over the pixels of the
    residual times the slopes along y and x, the amount, and one; `weights` and `residuals`
    (sample, frame, lane) are kept of the runs that `samples` numbers.
    """
    count = spectrum.size
    nx = frames.shape[2]
    column = np.empty(LANES + 8, dtype=np.float32)
    v = np.empty(LANES, dtype=np.float32)
    pred = np.empty((count, LANES), dtype=np.float32)
    resid = np.empty((count, LANES), dtype=np.float32)
    normal = np.empty(LANES, dtype=np.float32)
    right = np.empty(LANES, dtype=np.float32)
    step = np.empty(LANES, dtype=np.float32)
    inside = np.empty(LANES, dtype=np.float32)
    fetched = np.empty((3, LANES), dtype=np.float32)
    part = np.zeros((count, 4, LANES), dtype=np.float32)
    for run in range(runs.shape[0]):
        y, x = runs[run, 0], runs[run, 1]
        _fetch(image, slopes, y, x, inside, fetched)
        amount, slope_y, slope_x = fetched[0], fetched[1], fetched[2]
        normal[:] = F32(0.0)
        right[:] = F32(0.0)
        for k in range(count):
            p, r = pred[k], resid[k]
            _sample(frames[k], y + place[k, 0], x + place[k, 1], taps[k], column, v)
            _expect(v, amount, inside, spectrum[k], level[k], dark, p, r)
            b = spectrum[k] * usable[k]
            bb = b * b
            for i in range(LANES):
                normal[i] += bb * p[i]
                right[i] -= b * r[i]
        _improve(normal, right, amount, step)
        for i in range(min(LANES, nx - x)):
            image[y, x + i] = amount[i] if inside[i] > F32(0.0) else np.nan
        for k in range(count):
            _correlate(spectrum[k], pred[k], resid[k], step, amount, slope_y, slope_x, part[k])
        if samples[run] >= 0:
            weights[samples[run]] = pred
            residuals[samples[run]] = resid
        if run + 1 == runs.shape[0] or run % FLUSH == FLUSH - 1:
            _flush(part, sums)


@dataclass
class Model:
    """What the stack is made of, and where its frames lie, on one level of binning.

    Attributes
    ----------
    frames : ndarray, shape (frame, y, x)
        Intensities; NaN where there is no data.
    shifts : ndarray, shape (frame, 2)
        In pixels of this level.
    spectrum : ndarray, shape (frame,)
        Optical density of a unit amount.
    level : ndarray, shape (frame,)
        Intensity where nothing absorbs.
    dark : float
        Variance of an intensity besides its own size.
    usable : ndarray of bool, shape (frame,)
        Frames from which the image is made.
    allowed : ndarray of bool, shape (y, x), optional
        Pixels of the common frame to look at; default all.
    """

    frames: Frames
    shifts: Array
    spectrum: Array
    level: Array
    dark: float
    usable: NDArray[np.bool_]
    allowed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        self.image = np.full(self.frames.shape[1:], np.nan, dtype=np.float32)
        self.slopes = np.zeros((2, *self.image.shape), dtype=np.float32)

    def _arguments(self) -> tuple[Any, ...]:
        """What both loops over the pixels start with."""
        whole, taps = spline_taps(self.shifts)
        usable, level = self.usable.astype(np.float32), self.level.astype(np.float32)
        return self.frames, whole, taps, usable, level

    def begin(self, runs: Runs) -> None:
        """Image at some runs of pixels from the logarithms of the intensities."""
        # Every second frame will do: the passes that follow use all.
        usable = self.usable.copy()
        if usable.sum() >= MANY_FRAMES:
            usable[np.flatnonzero(usable)[1::2]] = False
        frames, whole, taps, _, level = self._arguments()
        start_image(
            frames, whole, taps, usable.astype(np.float32), level,
            self.spectrum.astype(np.float32), runs, self.image,
        )  # fmt: skip
        if self.allowed is not None:
            self.image[~self.allowed] = np.nan

    def differentiate(self) -> None:
        """Slopes of the image, zero where they are not known."""
        image = self.image
        for slope, ahead, behind, inner in (
            (self.slopes[0], image[2:], image[:-2], (slice(1, -1), slice(None))),
            (self.slopes[1], image[:, 2:], image[:, :-2], (slice(None), slice(1, -1))),
        ):
            np.subtract(ahead, behind, out=slope[inner])
            slope *= F32(0.5)
            np.nan_to_num(slope, copy=False)

    def information(self) -> Frames:
        """How much each pixel says about shifts, (y, x), on no particular scale."""
        depths = np.linspace(0.0, 4.0, 33)
        usable = self.usable & (self.level > 0)
        spectrum, level = self.spectrum[usable, None], self.level[usable, None]
        table = (level * spectrum**2 * np.exp(-np.clip(spectrum * depths, -1, 12))).sum(axis=0)
        gain = np.interp(np.nan_to_num(self.image), depths, table)
        return np.asarray(gain * (self.slopes**2).sum(axis=0), dtype=np.float32)

    def score(self, runs: Runs, chosen: NDArray[np.int64]) -> tuple[Array, Frames, Frames]:
        """One pass over the pixels; weights and residuals of the chosen runs are kept."""
        count = len(self.frames)
        samples = np.full(len(runs), -1)
        samples[chosen] = np.arange(len(chosen))
        sums = np.zeros((count, 4))
        weights = np.empty((len(chosen), count, LANES), dtype=np.float32)
        residuals = np.empty_like(weights)
        frames, whole, taps, usable, level = self._arguments()
        likelihood_pass(
            frames, whole, taps, usable, level, F32(self.dark), self.spectrum.astype(np.float32),
            runs, samples, self.slopes, self.image, weights, residuals, sums,
        )  # fmt: skip
        return sums, weights, residuals


def all_runs(shape: tuple[int, ...]) -> Runs:
    """Runs that cover all pixels."""
    return np.array([(y, x) for y in range(shape[0]) for x in range(0, shape[1], LANES)])


def over_runs(values: Frames, runs: Runs) -> Array:
    """Sum of the values in each run."""
    wide = -(-values.shape[1] // LANES) * LANES
    padded = np.pad(values, ((0, 0), (0, wide - values.shape[1])))
    total = padded.reshape(len(values), -1, LANES).sum(axis=2)
    return np.asarray(total[runs[:, 0], runs[:, 1] // LANES], dtype=np.float64)


def telling_runs(information: Frames, share: float) -> Runs:
    """The runs that hold a share of the information, in order."""
    runs = all_runs(information.shape)
    held = over_runs(information, runs)
    order = np.argsort(-held)
    last = int(np.searchsorted(np.cumsum(held[order]), share * held.sum())) + 1
    return runs[np.sort(order[:last])]


def with_neighbours(runs: Runs, rows: int) -> Runs:
    """Runs and those above and below."""
    both = np.concatenate([runs + np.array([d, 0]) for d in (-1, 0, 1)])
    return np.unique(both[(both[:, 0] >= 0) & (both[:, 0] < rows)], axis=0)


def draw_runs(information: Frames, runs: Runs, count: int) -> tuple[NDArray[np.int64], Array]:
    """Runs for the curvature, often where there is information, and how many each stands for."""
    held = over_runs(information, runs)
    held = held + 0.1 * held.mean() + 1e-30
    ends = np.cumsum(held) / held.sum()
    hits = np.searchsorted(ends, (np.arange(count) + 0.5) / count)
    chosen, times = np.unique(np.minimum(hits, len(runs) - 1), return_counts=True)
    return chosen, times * held.sum() / (count * held[chosen])


class Curvature:
    """Second derivatives of the likelihood by all shifts, the image eliminated.

    Variable projection: G. H. Golub and V. Pereyra, SIAM J. Numer. Anal. 10, 413 (1973), in the
    approximation of L. Kaufman, BIT 15, 49 (1975). Spectrum and brightness of each frame are
    eliminated frame by frame.

    Parameters
    ----------
    model : Model
    runs : ndarray, shape (run, 2)
        Where `weights` are from.
    weights : ndarray, shape (run, frame, lane)
        Expected counts.
    times : ndarray, shape (run,)
        How many runs each stands for.
    prior : float
        Inverse variance in px^-2 with which all shifts are known beforehand.
    """

    def __init__(
        self, model: Model, runs: Runs, weights: Frames, times: Array, prior: float
    ) -> None:
        count = len(model.frames)
        known = np.nan_to_num(_at(model.image[None], runs))[0]
        slopes = _at(model.slopes, runs)
        images = np.stack([*slopes, known, np.ones_like(known)])
        weight = np.ascontiguousarray(weights.transpose(1, 0, 2)).reshape(count, -1)
        scaled = weight * np.repeat(times.astype(np.float32), LANES)
        rows, columns = np.triu_indices(4)
        inner = np.empty((count, 4, 4))
        inner[:, rows, columns] = inner[:, columns, rows] = (
            scaled @ (images[rows] * images[columns]).T
        )
        self.nuisance = (
            inner[:, 2:, 2:]
            + 1e-6 * np.trace(inner[:, 2:, 2:], axis1=1, axis2=2)[:, None, None] * np.eye(2)
            + 1e-12 * np.eye(2)
        )
        #: Slopes minus this much of amount and one do not see spectrum and brightness.
        self.removed = np.linalg.solve(self.nuisance, inner[:, 2:, :2])
        self.spectrum, self.usable = model.spectrum.copy(), model.usable
        own = inner[:, :2, :2] - np.einsum("kji,kjd->kid", self.removed, inner[:, 2:, :2])
        own *= (model.spectrum**2)[:, None, None]
        used = model.spectrum.astype(np.float32)[:, None] * model.usable[:, None]
        normal = (used**2).T @ weight + 1e-12
        share = weight * used * np.sqrt(np.repeat(times.astype(np.float32), LANES) / normal)
        shared = np.empty((2, *share.shape), dtype=np.float32)
        basis = np.concatenate(
            [np.broadcast_to(np.eye(2), (count, 2, 2)), -self.removed], axis=1
        ).astype(np.float32)
        for d in range(2):
            shared[d] = (basis[:, :, d] * model.spectrum.astype(np.float32)[:, None]) @ images
            shared[d] *= share
        flat = shared.reshape(2 * count, -1)
        total = np.asarray(-(flat @ flat.T), dtype=np.float64)
        index = np.arange(count)
        for d in range(2):
            for e in range(2):
                total[d * count + index, e * count + index] += own[:, d, e]
        total[np.diag_indices(2 * count)] += prior
        self.covariance = np.linalg.inv(total)

    def step(self, model: Model, sums: Array) -> Array:
        """Change of all shifts in pixels; spectrum and brightness of the model are improved."""
        right = sums[:, :2] - np.einsum("kji,kj->ki", self.removed, sums[:, 2:])
        right *= self.spectrum[:, None]
        step = (self.covariance @ right.T.ravel()).reshape(2, -1).T
        change = np.linalg.solve(self.nuisance, sums[:, 2:, None])[:, :, 0]
        model.spectrum = model.spectrum - change[:, 0]
        model.level = model.level * np.exp(np.clip(change[:, 1], -0.2, 0.2))
        # The place of the common frame is free.
        step[model.usable] -= step[model.usable].mean(axis=0)
        return np.asarray(step)

    def errors(self) -> Array:
        """Standard errors (frame, 2) in pixels from photon noise, against the mean frame."""
        count = len(self.spectrum)
        centre = np.eye(count) - np.outer(self.usable, self.usable) / max(self.usable.sum(), 1)
        blocks = (self.covariance[:count, :count], self.covariance[count:, count:])
        return np.asarray(np.sqrt(np.stack([np.diag(centre @ c @ centre) for c in blocks], axis=1)))


def _at(images: Frames, runs: Runs) -> Frames:
    """Values of images at runs of pixels, (image, pixel)."""
    nx = images.shape[2]
    columns = runs[:, 1, None] + np.arange(LANES)
    values = images[:, runs[:, 0, None], np.minimum(columns, nx - 1)]
    return np.where(columns < nx, values, F32(0)).reshape(len(images), -1)


def first_guess(frames: Frames) -> tuple[Array, Array]:
    """Brightness and mean optical density of each frame, from a sample of its pixels."""
    pixels = frames.reshape(len(frames), -1)
    pixels = pixels[:, :: max(1, pixels.shape[1] // 1000)]
    seen = np.isfinite(pixels).any(axis=1)
    level, spectrum = np.zeros((2, len(frames)))
    level[seen] = np.maximum(np.nanpercentile(pixels[seen], 90, axis=1), 0.0)
    share = np.maximum(pixels[seen] / np.maximum(level[seen], 1e-30)[:, None], 0.01)
    spectrum[seen] = np.nanmean(-np.log(share), axis=1)
    scale = max(float(np.median(spectrum)), 0.02)
    return level, np.maximum(spectrum / scale, 0.02)


@dataclass
class Fit:
    """Shifts (frame, 2) and errors in pixels, and how well each frame is described, 0 to 1."""

    shifts: Array
    errors: Array
    agreement: Array


def climb(model: Model, runs: Runs, most: int, sampled: int) -> Climb:
    """Improve the shifts of a model until they rest, in at most some passes over the pixels.

    Curvature and noise come from `sampled` runs.
    """
    model.differentiate()
    chosen, times = draw_runs(model.information(), runs, sampled)
    curvature: Curvature | None = None
    small = SMALL_STEP_PX * min(1.0, SMALL_STEP_SIDE / max(model.image.shape))
    for _ in range(most):
        sums, weights, residuals = model.score(runs, chosen)
        if curvature is None:
            curvature = Curvature(model, runs[chosen], weights, times, PRIOR_PX**-2)
        step = np.clip(curvature.step(model, sums), -1.0, 1.0)
        model.shifts = model.shifts + step
        if float(np.sqrt(np.mean(step[model.usable] ** 2))) < small:
            break
        model.differentiate()
    assert curvature is not None
    return Climb(model, curvature, weights, residuals)


@dataclass
class Climb:
    """Where a model has come to, and what its last pass left."""

    model: Model
    curvature: Curvature
    weights: Frames
    residuals: Frames

    def fit(self) -> Fit:
        """Shifts with their errors, and how well each frame is described."""
        noise, agreement = _quality(self.model, self.weights, self.residuals)
        errors = self.curvature.errors() * noise[:, None]
        return Fit(self.model.shifts, errors, agreement)


def _quality(model: Model, weights: Frames, residuals: Frames) -> tuple[Array, Array]:
    """Noise of each frame over that of photons, and its agreement with the model."""

    def mean(values: NDArray[Any]) -> Array:
        return np.asarray(values.sum(axis=2).sum(axis=0) / pixels, dtype=np.float64)

    known = (weights > 0).astype(np.float32)
    pixels = np.maximum(known.sum(axis=2).sum(axis=0), 1.0)
    square = residuals**2
    # Interpolation averages noise.
    kernel = (spline_taps(model.shifts)[1].astype(np.float64) ** 2).sum(axis=2).prod(axis=1)
    noise = np.sqrt(mean(square * known / np.maximum(weights, F32(1e-9))) / kernel)
    middle = mean(weights)
    signal = np.maximum(mean(weights**2) - middle**2, 0.0)
    excess = np.maximum(mean(square) - kernel * middle * np.median(noise) ** 2, 0.0)
    return noise, signal / np.maximum(signal + excess, 1e-30)
