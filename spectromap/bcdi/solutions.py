"""Many solutions made one: bad ones rejected, the rest laid on each other and combined.

Diffraction does not tell an object from its conjugate inversion (the twin), nor from itself
shifted or times a phase; starts that found the same object differ in just these. What differs
beyond them is the error of the retrieval, and is kept as such.

Literature: the transfer function of phase retrieval, H. N. Chapman et al., J. Opt. Soc. Am. A 23,
1179 (2006); coherent modes of several solutions, as in the orthogonalisation of Y. Chushkin et
al., J. Synchrotron Rad. 21, 594 (2014).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, ndimage

from spectromap.bcdi.phasing import (
    SEQUENCE,
    Block,
    Coherence,
    Measurement,
    Solution,
    measurement_of,
    run_starts,
)
from spectromap.schema import InputError

ComplexArray = NDArray[np.complex64]
DIMS = ("frame", "row", "column")

#: A start is bad whose last error is above that of the best by more than this share.
ERROR_TOLERANCE = 0.15
#: ... or whose object, laid on that of the best, correlates less.
LEAST_CORRELATION = 0.9
#: The edge of a crystal is where its amplitude is half that of the interior.
HALF = 0.5
#: Transfer function at which the resolution is read.
RESOLVED = float(np.exp(-1.0))
ALIGNMENT_PASSES = 3


@dataclass(frozen=True)
class Aligned:
    """A solution laid on a reference.

    Attributes
    ----------
    object : ndarray complex64
        Shifted, turned in phase, perhaps the twin; scaled to the norm of the reference.
    correlation : float
        ``|<object, reference>|`` over both norms.
    twin : bool
        Whether it is the twin of what was given.
    shift : tuple of float
        Voxels by which it was moved.
    """

    object: ComplexArray
    correlation: float
    twin: bool
    shift: tuple[float, float, float]


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Modulus of the complex correlation of two arrays, 0 to 1."""
    norms = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float(abs(np.vdot(first, second))) / norms if norms > 0 else 0.0


def align(values: ComplexArray, reference: ComplexArray, *, ramp: bool = False) -> Aligned:
    """Lay an object on another: twin, shift to a fraction of a voxel, phase offset, scale.

    Parameters
    ----------
    values, reference : ndarray complex64, shape (n0, n1, n2)
        Objects with some room around them: shifts are cyclic.
    ramp : bool
        Also take off a phase ramp, for objects of scans that were not centred alike. One scan
        leaves no ramp open.

    Returns
    -------
    Aligned

    Raises
    ------
    InputError
        Arrays of different shape, or one that is zero.
    """
    if values.shape != reference.shape:
        raise InputError(f"shapes {values.shape} and {reference.shape}", where="align")
    if not values.any() or not reference.any():
        raise InputError("an object that is zero everywhere", where="align")
    wanted = fft.fftn(reference)
    candidates = [
        _laid(each, reference, wanted, twin, ramp)
        for twin, each in ((False, values), (True, twin_of(values)))
    ]
    return max(candidates, key=lambda c: c.correlation)


def twin_of(values: ComplexArray) -> ComplexArray:
    """Conjugate inversion about index n // 2."""
    odd = [n % 2 == 0 for n in values.shape]
    flipped = np.conj(values[::-1, ::-1, ::-1])
    return np.asarray(np.roll(flipped, [int(o) for o in odd], axis=(0, 1, 2)))


def _laid(
    values: ComplexArray, reference: ComplexArray, wanted: ComplexArray, twin: bool, ramp: bool
) -> Aligned:
    spectrum = fft.fftn(values)
    if ramp:
        values, spectrum = _same_ramp(values, reference)
    product = wanted * np.conj(spectrum)
    peak = np.abs(fft.ifftn(product))
    whole = np.array(np.unravel_index(int(np.argmax(peak)), peak.shape), dtype=float)
    size = np.array(peak.shape)
    shift = np.where(whole > size // 2, whole - size, whole)
    for _ in range(ALIGNMENT_PASSES):
        shift = shift + _rest(product * _ramp(product.shape, -shift))
    moved = fft.ifftn(spectrum * _ramp(product.shape, shift))
    overlap = np.vdot(moved, reference)
    found = correlation(moved, reference)
    moved *= overlap / abs(overlap) * np.linalg.norm(reference) / np.linalg.norm(moved)
    return Aligned(
        moved.astype(np.complex64), found, twin, (float(shift[0]), float(shift[1]), float(shift[2]))
    )


def _same_ramp(values: ComplexArray, reference: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """Values whose diffraction lies where that of the reference does."""
    ours, theirs = np.abs(fft.fftn(values)) ** 2, np.abs(fft.fftn(reference)) ** 2
    product = fft.fftn(theirs) * np.conj(fft.fftn(ours))
    peak = fft.ifftn(product).real
    size = np.array(peak.shape)
    whole = np.array(np.unravel_index(int(np.argmax(peak)), peak.shape), dtype=float)
    shift = np.where(whole > size // 2, whole - size, whole)
    for _ in range(ALIGNMENT_PASSES):
        shift = shift + _rest(product * _ramp(product.shape, -shift))
    turned = (values * np.conj(_ramp(values.shape, shift, centred=True))).astype(np.complex64)
    return turned, fft.fftn(turned)


def _ramp(shape: Sequence[int], shift: NDArray[Any], *, centred: bool = False) -> ComplexArray:
    """Phase in reciprocal space that shifts by so many voxels."""
    result = np.ones((1, 1, 1), dtype=np.complex64)
    for axis, (size, step) in enumerate(zip(shape, shift, strict=True)):
        place = (np.arange(size) - size // 2) / size if centred else fft.fftfreq(size)
        turn = np.exp(-2j * np.pi * step * place).astype(np.complex64)
        result = result * turn.reshape([-1 if a == axis else 1 for a in range(3)])
    return result


def _rest(product: ComplexArray) -> NDArray[np.float64]:
    """Shift that is left, below a voxel: slope of the phase, weighted by the power."""
    turned = product * np.conj(product.sum() / max(abs(product.sum()), 1e-30))
    weight, phase = np.abs(turned).astype(np.float64), np.angle(turned).astype(np.float64)
    moments, values = np.zeros((4, 4)), np.zeros(4)
    axes: list[NDArray[Any] | float] = [1.0]
    for axis, size in enumerate(product.shape):
        axes.append(fft.fftfreq(size).reshape([-1 if a == axis else 1 for a in range(3)]))
    for i, first in enumerate(axes):
        scaled = weight * first
        values[i] = np.sum(scaled * phase)
        for j, second in enumerate(axes[: i + 1]):
            moments[i, j] = moments[j, i] = np.sum(scaled * second)
    slope = np.linalg.solve(moments + 1e-12 * np.trace(moments) * np.eye(4), values)[1:]
    return np.asarray(np.clip(-slope / (2 * np.pi), -0.5, 0.5))


def quality(solution: Solution) -> float:
    """Metric by which the best solution is chosen, the lower the better.

    The last error times the sharpness: of two objects that explain the counts alike, the one of
    more even density.
    """
    return solution.error * solution.sharpness


def judge(solutions: Sequence[Solution]) -> tuple[list[Aligned | None], list[str], int]:
    """Lay solutions on the best, and reject what did not arrive; the truth plays no part.

    Parameters
    ----------
    solutions : sequence of Solution
        Of one measurement.

    Returns
    -------
    aligned : list of Aligned or None
        None where rejected.
    reasons : list of str
        Why; empty where accepted.
    best : int
        Place of the best by `quality`.

    Raises
    ------
    InputError
        No solutions.
    """
    if not solutions:
        raise InputError("no solutions to combine", where="solutions")
    best = min(range(len(solutions)), key=lambda k: quality(solutions[k]))
    limit = (1.0 + ERROR_TOLERANCE) * min(s.error for s in solutions)
    aligned: list[Aligned | None] = []
    reasons = []
    for solution in solutions:
        laid = align(solution.object, solutions[best].object)
        reason = ""
        if solution.error > limit:
            reason = f"error {solution.error:.3f} above {limit:.3f}"
        elif laid.correlation < LEAST_CORRELATION:
            reason = f"correlation {laid.correlation:.2f} with the best"
        aligned.append(None if reason else laid)
        reasons.append(reason)
    return aligned, reasons, best


def combine(
    solutions: Sequence[Solution],
    measurement: Measurement,
    *,
    method: Literal["mean", "mode"] = "mode",
) -> xr.Dataset:
    """One object of many solutions, with its error and resolution.

    Parameters
    ----------
    solutions : sequence of Solution
        From `run_starts`.
    measurement : Measurement
        What they were retrieved from.
    method : {"mean", "mode"}
        Mean of the accepted solutions, or the strongest of their orthogonal modes.

    Returns
    -------
    Dataset
        Over (frame, row, column), the object lying in the middle, ``n // 2``: ``object``, with
        phase zero on average; ``support``, where the amplitude is above half that of the interior;
        ``phase_errors`` [rad] and ``amplitude_errors``, the standard deviation over the accepted
        starts (photon noise that all the starts share is not in it), NaN outside the support. Over
        ``start``: ``accepted``, ``reason``, ``correlation`` with the best, ``error``,
        ``sharpness``; over (start, iteration) ``errors``. Over ``shell``: ``transfer``, and the
        coordinate ``frequency`` [1/voxel]. Attributes: ``best`` start, ``mode_share`` of the power
        in the first mode, ``resolution_voxels`` (NaN if the transfer function never falls).

    Raises
    ------
    InputError
        No solutions.
    """
    aligned, reasons, best = judge(solutions)
    kept = [a for a in aligned if a is not None]
    stack = np.stack([a.object for a in kept])
    values, share = _strongest(stack)
    if method == "mean":
        values = stack.mean(axis=0)
    values, stack, loose = _centred(values, stack, solutions[best])
    support = support_of(values, loose)
    turn = np.conj(_mean_turn(values, support))
    values, stack = values * turn, stack * turn
    full = replace(solutions[best], object=values.astype(np.complex64)).full()
    frequency, transfer = transfer_function(full, measurement)
    result = _volumes(values, stack, support, solutions[best])
    result["object"] = (DIMS, full, {"units": "1", "long_name": "object in the detector frame"})
    result["transfer"] = ("shell", transfer, {"units": "1", "long_name": "transfer function"})
    result["accepted"] = ("start", np.array([not r for r in reasons]))
    result["reason"] = ("start", np.array(reasons, dtype=object))
    found = [align(s.object, solutions[best].object).correlation if a is None else a.correlation
             for s, a in zip(solutions, aligned, strict=True)]  # fmt: skip
    result["correlation"] = ("start", np.array(found), {"units": "1"})
    result["error"] = ("start", np.array([s.error for s in solutions]), {"units": "1"})
    result["sharpness"] = ("start", np.array([s.sharpness for s in solutions]), {"units": "1"})
    result["errors"] = (("start", "iteration"), np.stack([s.errors for s in solutions]))
    coords = {
        "start": ("start", [s.start for s in solutions]),
        "frequency": ("shell", frequency, {"units": "1/voxel"}),
    }
    attrs = {
        "best": solutions[best].start,
        "mode_share": share,
        "resolution_voxels": resolution(frequency, transfer),
    }
    return result.assign_coords(coords).assign_attrs(attrs)


def _strongest(stack: ComplexArray) -> tuple[ComplexArray, float]:
    """The first mode at the scale of the solutions, and its share of their power."""
    flat = stack.reshape(len(stack), -1)
    overlaps = flat.conj() @ flat.T
    powers, vectors = np.linalg.eigh(overlaps.astype(np.complex128))
    weights = vectors[:, -1].conj()
    weights *= np.exp(-1j * np.angle(weights.sum()))
    mode = np.tensordot((weights / len(weights) ** 0.5).astype(np.complex64), stack, axes=1)
    return np.asarray(mode), float(powers[-1] / max(powers.sum(), 1e-300))


def _centred(
    values: ComplexArray, stack: ComplexArray, solution: Solution
) -> tuple[ComplexArray, ComplexArray, NDArray[np.bool_]]:
    """The same in a box in whose volume the object lies about the middle, in whole voxels."""
    weight = np.abs(values) ** 2
    mass = ndimage.center_of_mass(weight)
    goal = [n // 2 - b.start for n, b in zip(solution.shape, solution.box, strict=True)]
    move = tuple(int(np.rint(g - m)) for g, m in zip(goal, mass, strict=True))
    loose = np.roll(solution.support, move, axis=(0, 1, 2))
    moved = np.roll(stack, move, axis=(1, 2, 3))
    return np.roll(values, move, axis=(0, 1, 2)), moved, loose


def support_of(values: ComplexArray, loose: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a crystal is: above half the median amplitude of its interior, in one piece.

    Parameters
    ----------
    values : ndarray complex64, shape (n0, n1, n2)
    loose : ndarray of bool, shape of `values`
        A support that is about right.

    Returns
    -------
    ndarray of bool
        The largest connected part.
    """
    amplitude = np.abs(values)
    interior = ndimage.binary_erosion(loose, iterations=2)
    if not interior.any():
        interior = loose
    labels, count = ndimage.label(amplitude > HALF * np.median(amplitude[interior]))
    if count == 0:
        return loose
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))


def _mean_turn(values: ComplexArray, support: NDArray[np.bool_]) -> complex:
    total = complex(np.sum(values[support]))
    return total / abs(total) if abs(total) > 0 else 1.0 + 0.0j


def _volumes(
    values: ComplexArray, stack: ComplexArray, support: NDArray[np.bool_], solution: Solution
) -> xr.Dataset:
    """Support and errors in the whole volume."""
    turned = stack * np.conj(values)
    phase = np.angle(turned)
    count = max(len(stack) - 1, 1)
    spread = np.sqrt(np.sum(phase.astype(np.float64) ** 2, axis=0) / count)
    amplitude = np.std(np.abs(stack), axis=0, ddof=min(1, len(stack) - 1))
    if len(stack) == 1:  # one start tells nothing of the spread
        spread, amplitude = np.full(support.shape, np.nan), np.full(support.shape, np.nan)

    def whole(part: NDArray[Any], outside: Any) -> NDArray[Any]:
        volume = np.full(solution.shape, outside, dtype=part.dtype)
        volume[solution.box] = part
        return volume

    errors = {
        "phase_errors": (np.where(support, spread, np.nan), "rad"),
        "amplitude_errors": (np.where(support, amplitude, np.nan), "1"),
    }
    result = xr.Dataset({"support": (DIMS, whole(support, False))})
    for name, (part, units) in errors.items():
        result[name] = (DIMS, whole(part.astype(np.float32), np.nan), {"units": units})
    return result


def transfer_function(
    values: ComplexArray, measurement: Measurement
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Modulus of the combined object over the measured one, by shells of spatial frequency.

    Parameters
    ----------
    values : ndarray complex64, shape (n0, n1, n2)
        Combined object: where starts disagree about phases its modulus is small.
    measurement : Measurement

    Returns
    -------
    frequency : ndarray, shape (shells)
        In 1/voxel, from 0 to 0.5.
    transfer : ndarray, shape (shells)
        Sum over the sum of what was measured, over the pixels with a photon or more; NaN without.
    """
    modulus = np.abs(fft.fftn(values))
    amplitude = measurement.amplitude
    used = amplitude >= 1
    squared = np.zeros((1, 1, 1))
    for axis, size in enumerate(values.shape):
        lag = fft.fftfreq(size) ** 2
        squared = squared + lag.reshape([-1 if a == axis else 1 for a in range(3)])
    shells = min(values.shape) // 2
    place = np.minimum((np.sqrt(squared) * 2 * shells).astype(int), shells)[used]
    found, wanted = (
        np.bincount(place, weights=part[used], minlength=shells + 1)[:shells]
        for part in (modulus, amplitude)
    )
    transfer = np.where(wanted > 0, found / np.where(wanted > 0, wanted, 1.0), np.nan)
    return (np.arange(shells) + 0.5) / (2 * shells), transfer


def resolution(frequency: NDArray[np.float64], transfer: NDArray[np.float64]) -> float:
    """Period in voxels at which the transfer function first falls to 1/e.

    Parameters
    ----------
    frequency, transfer : ndarray, shape (shells)
        From `transfer_function`.

    Returns
    -------
    float
        NaN if it never falls so far: the resolution is then that of the window, 2 voxels.
    """
    below = np.flatnonzero(transfer < RESOLVED)
    if below.size == 0:
        return float("nan")
    k = int(below[0])
    if k == 0:
        return float(1.0 / frequency[0])
    fraction = (transfer[k - 1] - RESOLVED) / (transfer[k - 1] - transfer[k])
    return float(1.0 / (frequency[k - 1] + fraction * (frequency[k] - frequency[k - 1])))


def reconstruct(
    scan: xr.Dataset,
    track: Callable[[Sequence[Block]], Iterable[Block]] = iter,
    watch: Callable[[int, NDArray[np.float32]], None] | None = None,
    *,
    starts: int = 20,
    seed: int = 0,
    sequence: str | Sequence[str | tuple[str, int]] = SEQUENCE,
    beta: float = 0.9,
    sigma: tuple[float, float] = (2.0, 1.0),
    threshold: tuple[float, float] = (0.15, 0.3),
    coherence: Coherence = "full",
    integrated: tuple[bool, bool, bool] = (False, True, True),
    method: Literal["mean", "mode"] = "mode",
    backend: str | None = None,
) -> xr.Dataset:
    """Retrieve the object of a prepared scan from several starts, and combine them.

    Parameters
    ----------
    scan : Dataset, dims (frame, row, column)
        See `measurement_of`.
    track : callable, optional
        Takes the list of blocks of iterations and yields them, to show progress.
    watch : callable, optional
        Called after every block with the number of the start and its errors so far.
    starts : int
        How many.
    seed : int
        The same seed gives the same result, bit for bit, on the same backend.
    sequence, beta, sigma, threshold, coherence, backend
        See `run_starts`.
    integrated : tuple of bool
        See `measurement_of`.
    method : {"mean", "mode"}
        See `combine`.

    Returns
    -------
    Dataset
        See `combine`.

    Raises
    ------
    InputError
        A scan or an option that cannot be used.
    """
    if starts < 1:
        raise InputError(f"is {starts}", where="starts", remedy="One start or more.")
    measurement = measurement_of(scan, integrated=integrated)
    solutions = run_starts(
        measurement,
        range(starts),
        track,
        watch,
        sequence=sequence,
        seed=seed,
        beta=beta,
        sigma=sigma,
        threshold=threshold,
        coherence=coherence,
        backend=backend,
    )
    return combine(solutions, measurement, method=method)
