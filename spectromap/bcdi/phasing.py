"""From diffraction to a complex object: iterative phase retrieval, start by start.

The iterates live in reciprocal space. Each update of error reduction, hybrid input-output and
relaxed averaged alternating reflections is, with F the iterate, P the iterate with the measured
modulus and S the support,

    F  <-  a F + b P + fft(S ifft(c F + d P)),

so that the object is needed inside the support alone: transforms are pruned to the box around it,
and one sweep over the planes of the measured grid, each still in the cache, is one iteration.

Literature: J. R. Fienup, Appl. Opt. 21, 2758 (1982): error reduction and hybrid input-output.
D. R. Luke, Inverse Problems 21, 37 (2005): relaxed averaged alternating reflections.
S. Marchesini et al., Phys. Rev. B 68, 140101 (2003): shrink-wrap.
J. N. Clark et al., Nat. Commun. 3, 993 (2012): partial coherence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, ndimage

from spectromap.bcdi._backend import Backend, get_backend
from spectromap.schema import InputError

Box = tuple[slice, slice, slice]
Factors = tuple[float, float, float, float]
Coherence = Literal["full", "gaussian"]
COHERENCE = ("full", "gaussian")

#: The four factors (a, b, c, d) of an update from beta; a new algorithm is one line.
ALGORITHMS: dict[str, Callable[[float], Factors]] = {
    "ER": lambda beta: (0.0, 0.0, 0.0, 1.0),
    "HIO": lambda beta: (1.0, -beta, -1.0, 1.0 + beta),
    "RAAR": lambda beta: (beta, 1.0 - 2.0 * beta, -beta, 2.0 * beta),
}
#: Leaves the iterate as it is and hands over the field of the measured modulus.
LOOK = (1.0, 0.0, 0.0, 1.0)
SEQUENCE = "180*HIO + 20*ER + 2*(180*RAAR + 20*ER) + 60*ER"

#: Iterations from one change of the support to the next.
INTERVAL = 20
#: Share of the iterations after which blur and threshold of the support stay as they are.
SETTLED = 0.7
#: The interior of a crystal is about as bright as this percentile of what is in the support.
INTERIOR_PERCENTILE = 95.0
#: Volume of a convex body over that of its autocorrelation: at most 1/8, almost reached by bodies
#: like their mirror image (Brunn and Minkowski), at least 1/20, that of a tetrahedron
#: (C. A. Rogers, G. C. Shephard, Arch. Math. 8, 220 (1957)). The support begins near the first,
#: lest it collapse to the brightest part of a strained crystal, and ends with an allowance on both.
LEAST_SHARES, LARGEST_SHARE = (1.0 / 10.0, 1.0 / 24.0), 1.6 / 8.0
#: The autocorrelation is what stands above this share of its peak and this many times the noise.
AUTOCORRELATION_SHARE, AUTOCORRELATION_SIGMAS = 0.004, 6.0
#: Growth of the half-scale autocorrelation, in which a body that is no mirror image of itself fits.
REGION_GROWTH = 1.3
MARGIN = 3
#: A blur is fitted from this share of the way to the settled support on: of an object that is not
#: yet known, everything looks like blur.
COHERENCE_FROM = 0.4
#: Mean over a pixel to value at its middle: series of arcsin(s)/s, s**2 a quarter of the second
#: difference.
SHARPENING = (1.0, 1.0 / 24.0, 3.0 / 640.0, 5.0 / 7168.0)


class Step(NamedTuple):
    """Iterations of one algorithm."""

    algorithm: str
    iterations: int


class Block(NamedTuple):
    """Iterations of a start between two changes of the support, the last not included."""

    start: int
    first: int
    last: int


@dataclass(frozen=True)
class Measurement:
    """What the starts share.

    Attributes
    ----------
    amplitude : ndarray float32, shape (n0, n1, n2)
        Square root of the counts with index 0 the direct term; -1 where nothing was measured.
    region : ndarray bool, shape (n0, n1, n2)
        Where the object may be.
    volume : float
        Of the autocorrelation of the object, in voxels.
    """

    amplitude: NDArray[np.float32]
    region: NDArray[np.bool_]
    volume: float

    @property
    def box(self) -> Box:
        """Box around the region, with a margin."""
        return bounding_box(self.region, MARGIN)


@dataclass(frozen=True)
class Options:
    """How a start runs; see `run_starts`."""

    steps: tuple[Step, ...]
    beta: float
    sigma: tuple[float, float]
    threshold: tuple[float, float]
    coherence: Coherence
    backend: Backend = field(repr=False)

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return sum(step.iterations for step in self.steps)


@dataclass(frozen=True)
class Solution:
    """What one start came to.

    Attributes
    ----------
    start : int
        Its number.
    object : ndarray complex64
        In the box `box` of the volume; zero outside a loose support.
    support : ndarray bool, shape of `object`
        The last support of the iteration, a little larger than the object.
    errors : ndarray float32, shape (iterations)
        ``sqrt(sum (|F| - A)**2 / sum A**2)`` over what was measured, before each update.
    box : tuple of slice
        Where in the volume, the middle of which is ``n // 2``.
    shape : tuple of int
        Of the volume.
    coherence_widths : tuple of float
        Blur of the intensity, one sigma in pixels along each axis, if it was fitted.
    """

    start: int
    object: NDArray[np.complex64]
    support: NDArray[np.bool_]
    errors: NDArray[np.float32]
    box: Box
    shape: tuple[int, int, int]
    coherence_widths: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """The last of `errors`."""
        return float(self.errors[-1])

    @property
    def sharpness(self) -> float:
        """Mean fourth power of the amplitude over its squared mean square, in the support.

        One for a crystal of equal density, larger the more uneven it is.
        """
        power = np.abs(self.object[self.support]).astype(np.float64) ** 2
        return float(np.mean(power**2) / np.mean(power) ** 2)

    def full(self) -> NDArray[np.complex64]:
        """The object in the whole volume."""
        volume = np.zeros(self.shape, dtype=np.complex64)
        volume[self.box] = self.object
        return volume


def bounding_box(support: NDArray[np.bool_], margin: int = 0) -> Box:
    """Smallest box around what is true, grown by a margin but not beyond the array."""
    slices = []
    for axis, size in enumerate(support.shape):
        others = tuple(a for a in range(3) if a != axis)
        places = np.flatnonzero(support.any(axis=others))
        first, last = max(0, int(places[0]) - margin), min(size, int(places[-1]) + 1 + margin)
        slices.append(slice(first, last))
    return slices[0], slices[1], slices[2]


_TOKEN = re.compile(r"\s*(\d+|[A-Za-z]+|[*+()])")


def parse_sequence(sequence: str | Sequence[str | tuple[str, int]]) -> tuple[Step, ...]:
    """Read what is to be iterated.

    Parameters
    ----------
    sequence : str or sequence
        Such as ``"50*HIO + 20*ER"`` or ``"3*(180*HIO + 20*ER) + 60*ER"``; or a list of such
        pieces, or of pairs ``("HIO", 50)``. The algorithms are those of `ALGORITHMS`.

    Returns
    -------
    tuple of Step

    Raises
    ------
    InputError
        Something that cannot be read, with its place in the text.
    """
    if isinstance(sequence, str):
        return _Reader(sequence).read()
    steps: list[Step] = []
    for piece in sequence:
        text = piece if isinstance(piece, str) else "{1}*{0}".format(*piece)
        steps += _Reader(text).read()
    if not steps:
        raise InputError("is empty", where="sequence", remedy=f"Write, say, {SEQUENCE!r}.")
    return tuple(steps)


class _Reader:
    """Recursive descent: sum = product {+ product}; product = [n *] (algorithm | ( sum ))."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def read(self) -> tuple[Step, ...]:
        steps = self._sum()
        if self._next():
            raise self._wrong("'+' or the end")
        return tuple(steps)

    def _next(self) -> str:
        found = _TOKEN.match(self.text, self.place)
        if found:
            return found.group(1)
        rest = self.text[self.place :].lstrip()
        if rest:
            self.place = len(self.text) - len(rest)
            raise self._wrong("a number, an algorithm, '*', '+' or a bracket")
        return ""

    def _take(self) -> str:
        token = self._next()
        found = _TOKEN.match(self.text, self.place)
        self.place = found.end() if found else len(self.text)
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise self._wrong(f"'{token}'")
        self._take()

    def _sum(self) -> list[Step]:
        steps = self._product()
        while self._next() == "+":
            self._take()
            steps += self._product()
        return steps

    def _product(self) -> list[Step]:
        count = 1
        if self._next().isdigit():
            count = int(self._next())
            if count == 0:
                raise self._wrong("a number above zero")
            self._take()
            self._expect("*")
        if self._next() == "(":
            self._take()
            inner = self._sum()
            self._expect(")")
            return inner * count
        if self._next().upper() not in ALGORITHMS:
            raise self._wrong(f"one of {', '.join(ALGORITHMS)}")
        return [Step(self._take().upper(), count)]

    def _wrong(self, expected: str) -> InputError:
        rest = self.text[self.place :].strip()
        found = f"'{rest[:12]}'" if rest else "the end"
        column = len(self.text) - len(self.text[self.place :].lstrip()) + 1
        return InputError(
            f"expected {expected}, found {found} at character {column} of {self.text!r}",
            where="sequence",
            remedy=f"Write, say, {SEQUENCE!r}.",
        )


def measurement_of(
    scan: xr.Dataset, *, integrated: tuple[bool, bool, bool] = (False, True, True)
) -> Measurement:
    """Make ready what all the starts share.

    Where a pixel integrates over its width, fringes lose contrast, most those of the far ends of
    the crystal: that is undone on the counts, to within 6 % for a crystal that is 0.4 of the
    window.

    Parameters
    ----------
    scan : Dataset, dims (frame, row, column)
        ``counts`` [photons] and ``mask``, true where usable; the peak in the middle, ``n // 2``.
    integrated : tuple of bool
        Axes along which a sample is the mean over the step, not the value at a point: a scan in
        steps integrates over rows and columns, one on the fly over frames as well.

    Returns
    -------
    Measurement

    Raises
    ------
    InputError
        Missing variables, negative or non-finite counts, nothing measured, or a crystal too large
        for the window.
    """
    counts, mask = _checked(scan)
    known = counts if mask.all() else _filled(counts, mask)
    region, volume = _region(known)
    sharp = _sharpened(known, integrated)
    amplitude = np.where(mask, np.sqrt(sharp), np.float32(-1.0)).astype(np.float32)
    return Measurement(
        amplitude=np.ascontiguousarray(fft.ifftshift(amplitude)),
        region=region,
        volume=volume,
    )


def _checked(scan: xr.Dataset) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    if "counts" not in scan or "mask" not in scan or scan["counts"].ndim != 3:
        raise InputError(
            "expected counts and mask with dims (frame, row, column)",
            where="scan",
            remedy="Prepare the scan first.",
        )
    counts = np.asarray(scan["counts"].values, dtype=np.float32)
    mask = np.asarray(scan["mask"].values, dtype=bool)
    usable = counts[mask]
    if usable.size == 0 or not usable.any():
        raise InputError("no photons where the mask is true", where="scan")
    if not np.all(np.isfinite(usable)) or usable.min() < 0:
        raise InputError(
            "counts that are negative or not finite", where="scan", remedy="Mask those pixels."
        )
    return np.where(mask, counts, np.float32(0.0)), mask


def _filled(counts: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Counts, with the mean of what lies around in unmeasured pixels."""
    result = counts.copy()
    missing = ~mask
    for width in (0.7, 1.5, 3.0, 6.0):
        weight = ndimage.gaussian_filter(mask.astype(np.float32), width)
        near = missing & (weight > 0.02)
        blurred = ndimage.gaussian_filter(counts, width)
        result[near] = blurred[near] / weight[near]
        missing &= ~near
    return result


def _sharpened(
    counts: NDArray[np.float32], integrated: tuple[bool, bool, bool]
) -> NDArray[np.float32]:
    """Counts at the middle of pixels from means over them."""
    taps, power = np.zeros(2 * len(SHARPENING) - 1), np.ones(1)
    for order, factor in enumerate(SHARPENING):
        middle = len(SHARPENING) - 1
        taps[middle - order : middle + order + 1] += factor * power
        power = np.convolve(power, (-1.0, 2.0, -1.0))
    for axis, wanted in enumerate(integrated):
        if wanted:
            counts = ndimage.correlate1d(counts, taps, axis=axis, mode="nearest")
    return np.maximum(counts, np.float32(0.0))


def _region(counts: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float]:
    """Where the object can be, and the volume of its autocorrelation in voxels."""
    spectrum = np.abs(fft.rfftn(counts))
    total = float(spectrum[0, 0, 0])
    floor = max(AUTOCORRELATION_SHARE, AUTOCORRELATION_SIGMAS / np.sqrt(total)) * total
    above = _symmetric(spectrum > floor, counts.shape[2])
    labels, _ = ndimage.label(above)
    middle = tuple(n // 2 for n in counts.shape)
    above = labels == labels[middle]
    size = np.array(counts.shape)
    # A point p is in the region if 2 p / growth is in the autocorrelation.
    places = [
        np.rint((np.arange(n) - n // 2) * 2.0 / REGION_GROWTH).astype(int) + n // 2 for n in size
    ]
    inside = [(p >= 0) & (p < n) for p, n in zip(places, size, strict=True)]
    places = [np.clip(p, 0, n - 1) for p, n in zip(places, size, strict=True)]
    region = above[np.ix_(*places)] & np.logical_and.outer(
        np.logical_and.outer(inside[0], inside[1]), inside[2]
    )
    if above.mean() > 0.9:
        raise InputError(
            "the crystal is larger than half the window",
            where="scan",
            remedy="Finer steps or a longer distance are needed: fringes are not resolved.",
        )
    return region, float(above.sum())


def _symmetric(half: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Whole of an array from the half that a real transform gives, middle at n // 2."""
    flipped = half[np.ix_(*[-np.arange(n) % n for n in half.shape[:2]])]
    rest = flipped[:, :, 1 : size - half.shape[2] + 1][:, :, ::-1]
    return np.asarray(fft.fftshift(np.concatenate([half, rest], axis=2)))


class _Planes:
    """The iterate on the measured grid, and one sweep over it."""

    def __init__(self, measurement: Measurement, backend: Backend) -> None:
        amplitude = measurement.amplitude
        self.backend, self.shape = backend, amplitude.shape
        self.amplitude = backend.load(amplitude)
        known = amplitude[amplitude > 0].astype(np.float64)
        self.norm = float(np.sum(known**2))
        self.field = backend.load(np.zeros(self.shape, dtype=np.complex64))
        planes = backend.block_bytes // max(1, self.shape[1] * self.shape[2] * 8)
        self.planes = min(self.shape[0], max(1, planes))
        edges = [*range(0, self.shape[0], self.planes), self.shape[0]]
        self.blocks = list(pairwise(edges))
        self.buffer = backend.load(np.zeros((self.planes, *self.shape[1:]), dtype=np.complex64))
        self.seen = backend.load(np.zeros((self.planes, *self.shape[1:]), dtype=np.float32))
        self.columns: Any = None
        self.spread: Any = None
        #: Transfer function of the blur of the intensity, or None; then `intensity` is whole.
        self.transfer: Any = None
        self.intensity: Any = None
        self.pending = False

    def put(self, values: Any) -> None:
        """Object in the box that the next sweep adds to the iterate; may be what it returned."""
        inner = self.box[0]
        self.columns[: inner.start] = 0
        self.columns[inner.stop :] = 0
        self.columns[inner] = values
        self.columns = self.backend.fft(self.columns, 0)
        self.pending = True

    def open(self, box: Box) -> None:
        """Take an object in another box from now on."""
        self.box, self.pending = box, False
        rows, columns = box[1].stop - box[1].start, box[2].stop - box[2].start
        make = self.backend.load
        self.columns = make(np.zeros((self.shape[0], rows, columns), dtype=np.complex64))
        self.spread = make(np.zeros((self.planes, self.shape[1], columns), dtype=np.complex64))

    def sweep(self, factors: Factors) -> tuple[float, Any]:
        """One update up to the support: squared error, and the object in the box."""
        total = 0.0
        if self.transfer is None:
            for first, last in self.blocks:
                self._add(first, last, self.seen[: last - first])
                total += self._project(first, last, self.seen[: last - first], factors)
        else:
            for first, last in self.blocks:
                self._add(first, last, self.intensity[first:last])
            blurred = self._blurred()
            for first, last in self.blocks:
                total += self._project(first, last, blurred[first:last], factors)
        self.pending = False
        self.columns = self.backend.ifft(self.columns, 0)
        return total, self.columns[self.box[0]]

    def settle(self) -> None:
        """Add what is pending."""
        for first, last in self.blocks:
            self._add(first, last, self.seen[: last - first])
        self.pending = False

    def blur(self, transfer: NDArray[np.float32]) -> None:
        """Let the detector see a blurred intensity from now on."""
        kernel = fft.irfftn(transfer.astype(np.complex64), self.shape)
        #: A blur leaves at least this share of the intensity where it was.
        self.least = float(np.clip(kernel[0, 0, 0], 0.0, 1.0))
        self.transfer = self.backend.load(transfer)

    def _blurred(self) -> Any:
        """What the detector would see of the iterate."""
        spectrum = self.backend.rfftn(self.intensity)
        spectrum *= self.transfer
        blurred = self.backend.irfftn(spectrum, self.shape)
        return self.backend.xp.maximum(blurred, self.least * self.intensity)

    def _add(self, first: int, last: int, intensity: Any) -> None:
        planes = self.field[first:last]
        if self.pending:
            spread, buffer = self.spread[: last - first], self.buffer[: last - first]
            spread[...] = 0
            spread[:, self.box[1]] = self.columns[first:last]
            buffer[...] = 0
            buffer[:, :, self.box[2]] = self.backend.fft(spread, 1)
            planes += self.backend.fft(buffer, 2)
        self.backend.intensity(planes, intensity)

    def _project(self, first: int, last: int, intensity: Any, factors: Factors) -> float:
        buffer = self.buffer[: last - first]
        residual = self.backend.project(
            self.field[first:last], intensity, self.amplitude[first:last], factors, buffer
        )
        cut = self.backend.ifft(buffer, 2)[:, :, self.box[2]]
        self.columns[first:last] = self.backend.ifft(cut, 1)[:, self.box[1]]
        return float(residual)


class _Run:
    """One start on its way."""

    def __init__(self, measurement: Measurement, start: int, seed: int, options: Options) -> None:
        self.measurement, self.start, self.options = measurement, start, options
        self.algorithms = [s.algorithm for s in options.steps for _ in range(s.iterations)]
        self.planes = _Planes(measurement, options.backend)
        self.errors: list[float] = []
        self.widths: tuple[float, ...] = ()
        self._set_support(measurement.region)
        # A start has its own stream whatever else is drawn, so it is the same on any worker.
        stream = np.random.SeedSequence(seed, spawn_key=(start,))
        rng = np.random.Generator(np.random.PCG64(stream))
        inside = self.support[self.planes.box]
        modulus, turn = rng.random(inside.shape), rng.random(inside.shape)
        values = (modulus * np.exp(2j * np.pi * turn) * inside).astype(np.complex64)
        self.planes.put(options.backend.load(values))

    def advance(self, block: Block) -> None:
        """Iterate; then change the support, unless this was the end."""
        planes = self.planes
        for k in range(block.first, block.last):
            squared, values = planes.sweep(ALGORITHMS[self.algorithms[k]](self.options.beta))
            self.errors.append(float(np.sqrt(squared / planes.norm)))
            values *= self.inside
            planes.put(values)
        if block.last < len(self.algorithms):
            self._shrink(block.last / (SETTLED * len(self.algorithms)))

    def finish(self) -> Solution:
        """The object with the measured modulus, cut to the support and one voxel around it."""
        box = self.measurement.box
        values = self._look(box)
        support = self.support[box]
        loose = ndimage.binary_dilation(support)
        return Solution(
            start=self.start,
            object=(values * loose).astype(np.complex64),
            support=support,
            errors=np.asarray(self.errors, dtype=np.float32),
            box=box,
            shape=self.planes.shape,
            coherence_widths=self.widths,
        )

    def _set_support(self, support: NDArray[np.bool_]) -> None:
        self.support = support
        self.planes.open(bounding_box(support))
        inside = support[self.planes.box].astype(np.float32)
        self.inside = self.options.backend.load(inside)

    def _look(self, box: Box) -> NDArray[np.complex64]:
        """Object in a box by the measured modulus and the phases as they are."""
        self.planes.settle()
        self.planes.open(box)
        _, values = self.planes.sweep(LOOK)
        return self.options.backend.fetch(values).copy()

    def _shrink(self, progress: float) -> None:
        """Blur, threshold; blur and threshold go from first to last with progress."""
        progress = min(progress, 1.0)
        sigma, threshold, least_share = (
            a + (b - a) * progress
            for a, b in (self.options.sigma, self.options.threshold, LEAST_SHARES)
        )
        box = self.measurement.box
        amplitude = _smooth(np.abs(self._look(box)), sigma)
        if self.options.coherence != "full" and progress >= COHERENCE_FROM:
            self._fit_coherence()
        level = float(np.percentile(amplitude[self.support[box]], INTERIOR_PERCENTILE))
        allowed = self.measurement.region[box]
        candidates = np.sort(amplitude[allowed])
        least, most = (
            candidates[-min(max(int(share * self.measurement.volume), 1), candidates.size)]
            for share in (LARGEST_SHARE, least_share)
        )
        limit = float(np.clip(threshold * level, least, most))
        support = np.zeros_like(self.support)
        support[box] = allowed & (amplitude >= limit)
        self._set_support(support)

    def _fit_coherence(self) -> None:
        planes, backend = self.planes, self.options.backend
        if planes.intensity is None:
            planes.intensity = backend.load(np.zeros(planes.shape, dtype=np.float32))
            backend.intensity(planes.field, planes.intensity)
        pure = backend.fetch(planes.intensity)
        seen = self.measurement.amplitude
        counts = np.where(seen >= 0, seen * seen, pure)
        self.widths = _coherence_widths(counts, pure)
        planes.blur(_gaussian_transfer(planes.shape, self.widths))


def _smooth(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(values, sigma, mode="constant", truncate=3.0))


def _gaussian_transfer(shape: Sequence[int], widths: Sequence[float]) -> NDArray[np.float32]:
    """What a Gaussian blur of the intensity does to its real transform."""
    result = np.ones((1, 1, 1))
    for axis, (size, width) in enumerate(zip(shape, widths, strict=True)):
        lag = fft.rfftfreq(size) if axis == 2 else fft.fftfreq(size)
        factor = np.exp(-2.0 * (np.pi * width * lag) ** 2)
        result = result * factor.reshape([-1 if a == axis else 1 for a in range(3)])
    return result.astype(np.float32)


def _coherence_widths(
    counts: NDArray[np.float32], pure: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Gaussian blur in pixels that turns the intensity of full coherence into the counts.

    Least squares of the logarithm of the ratio of the autocorrelations, weighted by their power.
    """
    ours, theirs = np.abs(fft.rfftn(pure)), np.abs(fft.rfftn(counts))
    used = (ours > 0.02 * ours[0, 0, 0]) & (theirs > 0.005 * theirs[0, 0, 0])
    places = np.nonzero(used)
    columns = [np.ones(places[0].size)]
    for axis, size in enumerate(counts.shape):
        lag = fft.rfftfreq(size) if axis == 2 else fft.fftfreq(size)
        columns.append(-2.0 * (np.pi * lag[places[axis]]) ** 2)
    weight = ours[used].astype(np.float64)
    matrix = np.stack(columns, axis=1) * weight[:, None]
    value = np.log(theirs[used] / ours[used]) * weight
    solution = np.linalg.lstsq(matrix, value, rcond=None)[0]
    width = np.sqrt(np.maximum(solution[1:], 0.0))
    return float(width[0]), float(width[1]), float(width[2])


def blocks_of(starts: Iterable[int], iterations: int) -> list[Block]:
    """Pieces of work, start after start."""
    edges = [*range(0, iterations, INTERVAL), iterations]
    pairs = list(pairwise(edges))
    return [Block(start, first, last) for start in starts for first, last in pairs]


def run_starts(
    measurement: Measurement,
    starts: Sequence[int],
    track: Callable[[Sequence[Block]], Iterable[Block]] = iter,
    watch: Callable[[int, NDArray[np.float32]], None] | None = None,
    *,
    sequence: str | Sequence[str | tuple[str, int]] = SEQUENCE,
    seed: int = 0,
    beta: float = 0.9,
    sigma: tuple[float, float] = (2.0, 1.0),
    threshold: tuple[float, float] = (0.15, 0.3),
    coherence: Coherence = "full",
    backend: str | None = None,
) -> list[Solution]:
    """Retrieve phases from several random starts.

    Parameters
    ----------
    measurement : Measurement
        From `measurement_of`.
    starts : sequence of int
        Their numbers: a start is the same whichever others are run, and where.
    track : callable, optional
        Takes the list of blocks of iterations and yields them, to show progress.
    watch : callable, optional
        Called after every block with the number of the start and its errors so far.
    sequence : str or sequence
        See `parse_sequence`.
    seed : int
    beta : float
        Feedback of HIO and relaxation of RAAR.
    sigma : (float, float)
        Blur of the amplitude before the support is cut, in voxels, at the beginning and from 0.7
        of the iterations on.
    threshold : (float, float)
        Where the support is cut, as a share of the blurred amplitude in the interior, likewise.
        Bounds on the volume of a convex body by that of its autocorrelation adapt it.
    coherence : {"full", "gaussian"}
        Whether a Gaussian blur of the intensity is fitted, by the ratio of the autocorrelations of
        the counts and of the iterate. Takes two more transforms an iteration.
    backend : str, optional
        See `get_backend` of `spectromap.bcdi._backend`.

    Returns
    -------
    list of Solution
        In the order of `starts`.

    Raises
    ------
    InputError
        An option that cannot be.
    """
    steps = parse_sequence(sequence)
    _check_options(beta, sigma, threshold, coherence)
    options = Options(steps, beta, sigma, threshold, coherence, get_backend(backend))
    solutions: list[Solution] = []
    run: _Run | None = None
    for block in track(blocks_of(starts, options.iterations)):
        if run is None:
            run = _Run(measurement, block.start, seed, options)
        run.advance(block)
        if watch is not None:
            watch(block.start, np.asarray(run.errors, dtype=np.float32))
        if block.last == options.iterations:
            solutions.append(run.finish())
            run = None
    return solutions


def _check_options(
    beta: float, sigma: tuple[float, float], threshold: tuple[float, float], coherence: str
) -> None:
    if not 0 < beta <= 1:
        raise InputError(f"is {beta:g}", where="beta", remedy="It lies between 0 and 1.")
    if min(sigma) <= 0:
        raise InputError(f"is {sigma}", where="sigma", remedy="Widths are above zero.")
    if not (min(threshold) > 0 and max(threshold) < 1):
        raise InputError(f"is {threshold}", where="threshold", remedy="Between 0 and 1.")
    if coherence not in COHERENCE:
        raise InputError(
            f"is {coherence!r}", where="coherence", remedy=f"One of {', '.join(COHERENCE)}."
        )
