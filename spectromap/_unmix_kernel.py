"""Compiled loops of the composition fit: many pixels side by side, a few numbers each.

The loops work on groups of `LANES` pixels. What happens in a lane depends on its own pixel alone,
so the maps are the same bit for bit however a stack is cut up. Everything is in single precision:
the columns of the design are made orthonormal before. A number of every pixel is a row of `LANES`
values; symmetric and triangular matrices are kept as lower triangles, element by element.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectromap._compiled import (
    F32,
    I32,
    ROUNDER,
    _bits_as_float,
    _float_as_bits,
    compiled,
    inlined,
    log32,
)

Samples = NDArray[np.float32]

#: Pixels that are worked on side by side: many, or starting a loop costs more than the loop.
LANES = 400
#: Pixels that are fetched from the stack at once, so that reading runs along its rows.
TILE = 3 * LANES
#: Energies that are added to the sums at once.
ENERGIES = 4
MAX_COMPONENTS, MAX_BASELINE = 4, 2
MAX_PARAMETERS = MAX_COMPONENTS + MAX_BASELINE
MIN_TRANSMISSION = F32(1e-4)
ROUNDS = 30
#: Once the squared length of a step of Fisher scoring is this small, what it leaves over is below
#: 0.01 sigma: scoring converges quadratically, and the constant follows from the change of optical
#: density. Where the model does not describe the data, sigma is scaled by chi-squared: below 0.03.
STEP_PER_PHOTON, MAX_STEP = F32(0.02), F32(0.5)
#: A pixel seen in a smaller share of the frames (the border of a drifting field) is not measured:
#: the part of the spectrum that is left seldom tells the components apart.
MIN_SHARE = F32(0.5)
#: A fraction less certain than this is not worth a colour in the map for the eye.
SHOWN_ERROR = F32(0.5)
#: Amounts this many standard deviations below zero are not noise.
NEGATIVE_SIGMA = F32(3.0)
#: A pivot this much smaller than its diagonal element means that the unknowns cannot be told apart.
SINGULAR = F32(1e-5)
ZERO, ONE, EMPTY, ENDLESS = F32(0.0), F32(1.0), F32(np.nan), F32(np.inf)
LN2 = F32(np.log(2.0))
#: Flags that the fit raises, in the order in which the loops know them.
RAISED = ("no_data", "energies_left_out", "model_rejected", "negative_component")

# Columns of `Shared.energies`.
KNOWN_LOG, SCALE, DARK, I0, SHIFT_Y, SHIFT_X, BASIS = 0, 1, 2, 3, 4, 5, 6
ENERGY_COLUMNS = BASIS + MAX_PARAMETERS
# Rows of `Scratch.theta`: parameters, zero where there are none, then the squared relative slopes
# of the optical density along y and x in nm-2.
MOTION, THETA_ROWS = 6, 8
# Rows of `Scratch.totals`.
CHI2, USED, WEIGHT, LENGTH, INVERSE_TOTAL, TOTAL_ROWS = 0, 1, 2, 3, 4, 5
# Rows of `Scratch.block`, for four energies or classes, what is summed over energy.
SCORES, WEIGHTS, VARIANCES, BLOCK_ROWS = 0, 4, 8, 12
#: Maps that are no component's: offset, chi-squared, residual, number of samples, largest OD.
QUALITIES = 5


class Shared(NamedTuple):
    """Everything about the fit that all pixels share.

    Energies are sorted by class: in a class all references are nearly the same, so that sums of
    products need only one factor a class. Components come before the baseline.
    """

    order: NDArray[np.intp]  # (energy,) where the sorted energies are in the stack
    ends: NDArray[np.intp]  # (class,) end of each class among the sorted energies
    energies: Samples  # (energy, 12): minus the binary logarithm of the transmission that is not
    # fitted; photons over what interpolation left of the variance; dark counts over photons;
    # relative variance of I0; variances of the shift along y and x in nm2, for OD in binary
    # logarithms; basis of the references and the baseline (6), likewise
    columns: Samples  # (parameter, padded energy): the basis once more
    classes: Samples  # (class, 4): known, scale, dark; transmission that is too small to tell
    class_columns: Samples  # (parameter, padded class)
    products: Samples  # (sum, padded class): products of columns; then columns times known, or
    # times the change of each component's reference by the energy error
    known: int  # first row of columns times known, 0: there are none
    slopes: int  # first row of columns times changes, 0: there are none
    amounts: Samples  # (component, parameter): amounts are constant + amounts @ parameters
    constant: Samples  # (component,)
    rescaled: Samples  # (component, component): what the scale of a reference does to the amounts
    scale_errors: Samples  # (component,) relative standard errors of the references
    offset: Samples  # (parameter,): the constant of the baseline is offset @ parameters
    stray: np.float32
    lowest: np.float32  # binary logarithm of the smallest model transmission that is used
    frames: np.float32
    rejected: np.float32
    least: np.float32  # what the non-negative amounts must exceed together
    moving: bool
    bits: NDArray[np.int32]


class Scratch(NamedTuple):
    """Working memory: rows of a group of pixels, what is kept of a tile, and pixels that wait."""

    theta: Samples
    block: Samples
    sums: Samples  # weighted sums of products
    shared_sums: Samples  # (pair, lane) the same with the variance that pixels share
    right: Samples  # (parameter, lane)
    factor: Samples  # (pair, lane) Cholesky factor of the normal equations
    inverse: Samples  # (pair, lane) and its inverse
    step: Samples  # (parameter, lane)
    totals: Samples
    half: Samples  # (component * parameter, lane)
    gain: Samples  # (component * parameter, lane) change of the amounts with the right-hand side
    systematic: Samples  # (component pair, lane) covariance
    states: Samples  # see `_find_nonnegative`
    best: Samples  # (1 + component, lane) cost and amounts
    work: Samples
    result: Samples  # (map, lane)
    bits: NDArray[np.int32]  # (lane,)
    settled: NDArray[np.bool_]  # (lane,)
    before: NDArray[np.int32]  # (lane,) steps that were taken before
    tile: Samples  # (energy, pixel)
    means: Samples  # (class, pixel)
    lowest: Samples  # (pixel,)
    queue: Samples  # (energy, waiting pixel)
    reached: Samples  # (parameter, waiting pixel)
    places: NDArray[np.intp]  # (waiting pixel,)
    rounds: NDArray[np.int32]  # (waiting pixel,)


def _triangle(n: int) -> int:
    """Number of elements of a triangular matrix."""
    return n * (n + 1) // 2


def _aligned(*shape: int) -> Samples:
    """Zeros whose rows start with cache lines, if they are multiples of 16 long."""
    size = math.prod(shape)
    room = np.zeros(size + 16, dtype=np.float32)
    first = -(room.ctypes.data // 4) % 16
    return room[first : first + size].reshape(shape)


def make_scratch(shared: Shared, maps: int) -> Scratch:
    """Working memory."""
    m, p = shared.amounts.shape
    n, energies = _triangle(p), len(shared.order)
    rows = {
        "theta": THETA_ROWS, "block": BLOCK_ROWS, "sums": len(shared.products),
        "shared_sums": n + n % 2, "right": p + p % 2, "factor": n, "inverse": n, "step": p,
        "totals": TOTAL_ROWS, "half": m * p, "gain": m * p, "systematic": _triangle(m),
        "states": (m + 1) * (1 + m + _triangle(m)), "best": 1 + m, "work": MAX_PARAMETERS,
        "result": maps,
    }  # fmt: skip
    return Scratch(
        **{name: _aligned(count, LANES) for name, count in rows.items()},
        bits=np.zeros(LANES, dtype=np.int32),
        settled=np.zeros(LANES, dtype=np.bool_),
        before=np.zeros(LANES, dtype=np.int32),
        tile=_aligned(energies, TILE),
        means=_aligned(len(shared.ends), TILE),
        lowest=_aligned(TILE),
        queue=_aligned(energies, 2 * LANES),
        reached=_aligned(p, 2 * LANES),
        places=np.zeros(2 * LANES, dtype=np.intp),
        rounds=np.zeros(2 * LANES, dtype=np.int32),
    )


@inlined
def _power_of_two(x: Any) -> Any:
    """Two to the power of a float32 to 4e-6, for |x| < 60.

    The last bits of x plus 1.5 * 2**23 are the nearest integer, which goes to the exponent.
    Coefficients: Chebyshev interpolation of degree 4 on -0.5 to 0.5.
    """
    x = min(max(x, F32(-60.0)), F32(60.0))
    shifted = x + ROUNDER
    r = x - (shifted - ROUNDER)
    p = F32(9.666368515e-03) * r + F32(5.592197584e-02)
    p = p * r + F32(2.402234904e-01)
    p = p * r + F32(6.931210452e-01)
    p = p * r + F32(1.000000000e00)
    return _bits_as_float(_float_as_bits(p) + (_float_as_bits(shifted) << I32(23)))


@inlined
def _rough_log(x: Any) -> Any:
    """Natural logarithm of a positive float32 to 4e-5, good enough to start from."""
    bits = _float_as_bits(x)
    f = _bits_as_float((bits & I32(0x007FFFFF)) | I32(0x3F800000)) - ONE
    p = F32(-0.044874) * f + F32(0.150533)
    p = p * f + F32(-0.269578)
    p = p * f + F32(0.442419)
    return LN2 * (F32(bits - I32(0x3F800000)) * F32(2.0**-23) + (f - f * f) * p)


@inlined
def _at(i: Any, j: Any) -> Any:
    """Where an element of a triangular matrix is, i not less than j."""
    return i * (i + 1) // 2 + j


@inlined
def _copy(x: Any, result: Any) -> None:
    for lane in range(result.size):
        result[lane] = x[lane]


@inlined
def _add_products(x: Any, y: Any, result: Any) -> None:
    for lane in range(LANES):
        result[lane] += x[lane] * y[lane]


@inlined
def _subtract_products(x: Any, y: Any, result: Any) -> None:
    for lane in range(LANES):
        result[lane] -= x[lane] * y[lane]


@inlined
def _scale(x: Any, result: Any) -> None:
    for lane in range(LANES):
        result[lane] *= x[lane]


@inlined
def _add_scaled(factor: Any, x: Any, result: Any) -> None:
    for lane in range(LANES):
        result[lane] += factor * x[lane]


@compiled
def _accumulate(w: Any, factors: Any, k: int, sums: Any) -> None:
    """Add four energies to sums over energy: ``sums += factors @ w``, two sums at once.

    Two sums share what is read of the samples: this is as fast as a matrix product.
    """
    for p in range(0, len(factors), 2):
        total, q = sums[p * LANES : (p + 2) * LANES], p + 1
        a0, a1, a2, a3 = factors[p, k], factors[p, k + 1], factors[p, k + 2], factors[p, k + 3]
        b0, b1, b2, b3 = factors[q, k], factors[q, k + 1], factors[q, k + 2], factors[q, k + 3]
        for lane in range(LANES):
            w0, w1 = w[lane], w[lane + LANES]
            w2, w3 = w[lane + 2 * LANES], w[lane + 3 * LANES]
            total[lane] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            total[lane + LANES] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3


@compiled
def _fetch(stack: Any, first: int, count: int, shared: Any, scratch: Any) -> None:
    """Copy pixels, sorted by energy class, with the mean of every class and the lowest sample.

    Pixels up to a full group are filled with empty ones.
    """
    order, ends, stray, lowest = shared.order, shared.ends, shared.stray, scratch.lowest
    lowest[:] = ENDLESS
    start = 0
    for c in range(len(ends)):
        mean = scratch.means[c]
        mean[:] = ZERO
        share = ONE / F32(ends[c] - start)
        for k in range(start, ends[c]):
            source, target = stack[order[k]][first : first + count], scratch.tile[k]
            for pixel in range(count):
                value = source[pixel]
                good = value - value == ZERO
                passed = value - stray
                target[pixel] = value if good else EMPTY
                mean[pixel] += share * passed
                low = passed if good and passed > ZERO else ENDLESS
                lowest[pixel] = min(lowest[pixel], low)
            target[count:] = EMPTY
        mean[count:] = EMPTY
        start = ends[c]


@compiled
def _start_class(values: Any, row: Any, stray: Any, scores: Any, weights: Any) -> None:
    """Logarithm of the mean of one energy class, weighted by itself."""
    known, scale, dark, floor = row[0], row[1], row[2] + stray, row[3]
    inverse = ONE / (ONE - stray)
    for lane in range(LANES):
        good = values[lane] - values[lane] == ZERO
        slope = max(values[lane], floor) if good else ONE
        weight = slope * slope * scale / (slope + dark) if good else ZERO
        weights[lane] = weight
        scores[lane] = weight * (-_rough_log(slope * inverse) - known)


@compiled
def _start(first: int, shared: Any, scratch: Any) -> None:
    """Sums over energy for a fit to the logarithm of the data, weighted by the data."""
    block, classes, pairs = scratch.block, len(shared.ends), len(scratch.shared_sums)
    products, columns = shared.products[:pairs], shared.class_columns
    sums, right, rows = scratch.sums.ravel(), scratch.right.ravel(), block.ravel()
    sums[: pairs * LANES], right[:] = ZERO, ZERO
    for c in range(classes):
        j, values = c % ENERGIES, scratch.means[c][first : first + LANES]
        _start_class(values, shared.classes[c], shared.stray, block[SCORES + j], block[WEIGHTS + j])
        if j == ENERGIES - 1 or c == classes - 1:
            _accumulate(rows[WEIGHTS * LANES :], products, c - j, sums)
            _accumulate(rows, columns, c - j, right)


@inlined
def _sample(value: Any, e: Any, limits: Any, theta: Any, lane: int) -> Any:
    """Model of one sample: binary logarithm, derivative, misfit, precision; is it used."""
    log = e[KNOWN_LOG] + e[BASIS] * theta[lane] + e[BASIS + 1] * theta[lane + LANES]
    log = log + e[BASIS + 2] * theta[lane + 2 * LANES] + e[BASIS + 3] * theta[lane + 3 * LANES]
    log = log + e[BASIS + 4] * theta[lane + 4 * LANES] + e[BASIS + 5] * theta[lane + 5 * LANES]
    stray, rest, lowest = limits
    good = value == value and log >= lowest
    slope = rest * _power_of_two(log)
    model = slope + stray
    precision = e[SCALE] / (max(model, MIN_TRANSMISSION) + e[DARK])
    return log, slope, model - value if good else ZERO, precision if good else ZERO, good


@compiled
def _weigh(
    values: Any, row: Any, limits: Any, theta: Any, scores: Any, own: Any, totals: Any
) -> None:
    """Model of one energy at the present parameters, and what is summed over energy.

    `own` holds weights of the class and, four rows on, the variances that pixels share.
    """
    e = (
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10],
        row[11],
    )  # fmt: skip
    for lane in range(LANES):
        log, slope, misfit, precision, good = _sample(values[lane], e, limits, theta, lane)
        scored = slope * precision
        weight = slope * scored
        spread = e[SHIFT_Y] * theta[lane + 6 * LANES] + e[SHIFT_X] * theta[lane + 7 * LANES]
        scores[lane] = scored * misfit
        own[lane] += weight
        own[lane + 4 * LANES] += weight * ((e[I0] + log * log * spread) * weight)
        totals[lane] += misfit * precision * misfit
        totals[lane + LANES] += ONE if good else ZERO


@compiled
def _score(tile: Any, first: int, shared: Any, scratch: Any) -> None:
    """Sums over energy of one step of Fisher scoring, with those for the shared errors."""
    block, theta, totals = scratch.block.ravel(), scratch.theta.ravel(), scratch.totals.ravel()
    right, sums, more = scratch.right.ravel(), scratch.sums.ravel(), scratch.shared_sums.ravel()
    right[:], sums[:], more[:], totals[:] = ZERO, ZERO, ZERO, ZERO
    table, ends, k = shared.energies, shared.ends, 0
    limits = shared.stray, ONE - shared.stray, shared.lowest
    products, pairs = shared.products, shared.products[: len(scratch.shared_sums)]
    energies, classes, columns = len(table), len(ends), shared.columns
    for c in range(classes):
        row = c % ENERGIES
        own = block[(WEIGHTS + row) * LANES : (WEIGHTS + row + 5) * LANES]
        own[:LANES], own[4 * LANES :] = ZERO, ZERO
        while k < ends[c]:
            values, j = tile[k][first : first + LANES], k % ENERGIES
            scores = block[j * LANES : (j + 1) * LANES]
            _weigh(values, table[k], limits, theta, scores, own, totals)
            k += 1
            if j == ENERGIES - 1 or k == energies:
                _accumulate(block, columns, k - 1 - j, right)
        _add_scaled(ONE, scratch.block[WEIGHTS + row], scratch.totals[WEIGHT])
        if row == ENERGIES - 1 or c == classes - 1:
            _accumulate(block[WEIGHTS * LANES :], products, c - row, sums)
            _accumulate(block[VARIANCES * LANES :], pairs, c - row, more)


@compiled
def _factorise(normal: Any, p: int, factor: Any) -> None:
    """Cholesky factor of symmetric matrices, NaN where they are singular.

    The diagonal holds one over the diagonal of the factor.
    """
    for i in range(p):
        for j in range(i + 1):
            row = factor[_at(i, j)]
            _copy(normal[_at(i, j)], row)
            for k in range(j):
                _subtract_products(factor[_at(i, k)], factor[_at(j, k)], row)
            if j < i:
                _scale(factor[_at(j, j)], row)
        row, diagonal = factor[_at(i, i)], normal[_at(i, i)]
        for lane in range(LANES):
            pivot = row[lane]
            row[lane] = ONE / np.sqrt(pivot if pivot > SINGULAR * diagonal[lane] else EMPTY)


@compiled
def _solve(scratch: Any) -> None:
    """Solve the normal equations; also the squared length of the solution in sigma."""
    factor, step, totals = scratch.factor, scratch.step, scratch.totals
    p = len(step)
    _factorise(scratch.sums, p, factor)
    totals[LENGTH, :] = ZERO
    for i in range(p):
        _copy(scratch.right[i], step[i])
        for j in range(i):
            _subtract_products(factor[_at(i, j)], step[j], step[i])
        _scale(factor[_at(i, i)], step[i])
        _add_products(step[i], step[i], totals[LENGTH])
    for i in range(p - 1, -1, -1):
        for j in range(i + 1, p):
            _subtract_products(factor[_at(j, i)], step[j], step[i])
        _scale(factor[_at(i, i)], step[i])


@compiled
def _invert(p: int, factor: Any, inverse: Any) -> None:
    """Inverse of the Cholesky factor."""
    for i in range(p):
        last = factor[_at(i, i)]
        _copy(last, inverse[_at(i, i)])
        for j in range(i):
            row = inverse[_at(i, j)]
            row[:] = ZERO
            for k in range(j, i):
                _subtract_products(factor[_at(i, k)], inverse[_at(k, j)], row)
            _scale(last, row)


@compiled
def _set_parameters(step: Any, theta: Any) -> None:
    """Parameters at which the model is evaluated, zero where there are none."""
    for i in range(len(step)):
        for lane in range(LANES):
            theta[i, lane] = step[i, lane] if step[i, lane] == step[i, lane] else ZERO


@compiled
def _advance(shared: Any, scratch: Any) -> None:
    """Take the step, not too far at once, and tell which lanes rest; nothing without data."""
    totals, step, theta, before = scratch.totals, scratch.step, scratch.theta, scratch.before
    damping, size = scratch.work[0], F32(len(step))
    fewest = max(size, MIN_SHARE * shared.frames)
    for lane in range(LANES):
        length, weight, used = totals[LENGTH, lane], totals[WEIGHT, lane], totals[USED, lane]
        excess = max(totals[CHI2, lane] / max(used - size, ONE), ONE)
        limit = min(STEP_PER_PHOTON * np.sqrt(weight), MAX_STEP) * excess
        last, moves = before[lane] >= ROUNDS, length > limit
        spread = length / weight  # mean squared change of the optical density
        lost = (last and moves) or used < fewest
        damping[lane] = EMPTY if lost else ONE / np.sqrt(max(spread, ONE))
        totals[CHI2, lane] -= ZERO if moves else length
        totals[LENGTH, lane] = ONE if moves and not last else ZERO
    for lane in range(LANES):
        scratch.settled[lane] = totals[LENGTH, lane] == ZERO
    for i in range(len(step)):
        _scale(damping, step[i])
        _add_scaled(ONE, theta[i], step[i])
    for i in range(len(step)):  # all errors of lost pixels are unknown
        _add_scaled(ZERO, damping, scratch.factor[_at(i, i)])


@compiled
def _find_amounts(shared: Any, scratch: Any) -> None:
    """Amounts, their covariance, and what turns sums over energy into amounts."""
    turn, inverse, half, gain = shared.amounts, scratch.inverse, scratch.half, scratch.gain
    result, (m, p) = scratch.result, shared.amounts.shape
    thickness, covariance = 4 * m + 3, 5 * m + 4
    result[thickness:], half[:], gain[:] = ZERO, ZERO, ZERO
    for c in range(m):
        result[thickness + c, :] = shared.constant[c]
        for i in range(p):
            if turn[c, i] != ZERO:
                _add_scaled(turn[c, i], scratch.step[i], result[thickness + c])
                for k in range(i, p):
                    _add_scaled(turn[c, i], inverse[_at(k, i)], half[c * p + k])
        _add_scaled(ONE, result[thickness + c], result[thickness + m])
        for k in range(p):
            for i in range(k + 1):
                _add_products(half[c * p + k], inverse[_at(k, i)], gain[c * p + i])
            for b in range(c + 1):
                at = covariance + _at(c, b)
                _add_products(half[c * p + k], half[b * p + k], result[at])


@compiled
def _add_pattern(scratch: Any) -> None:
    """Add what one error that all energies share does, the change of the amounts in `work`."""
    change = scratch.work
    for c in range(len(scratch.best) - 1):
        for b in range(c + 1):
            _add_products(change[c], change[b], scratch.systematic[_at(c, b)])


@compiled
def _find_systematic(shared: Any, scratch: Any) -> None:
    """Covariance of the amounts by errors of I0 and the shifts, independent at every energy."""
    gain, middle, m, p = scratch.gain, scratch.half, len(shared.amounts), len(scratch.step)
    middle[:], scratch.systematic[:] = ZERO, ZERO
    for c in range(m):
        for i in range(p):
            for j in range(p):
                at = _at(max(i, j), min(i, j))
                _add_products(gain[c * p + i], scratch.shared_sums[at], middle[c * p + j])
        for b in range(c + 1):
            for j in range(p):
                _add_products(middle[c * p + j], gain[b * p + j], scratch.systematic[_at(c, b)])


@compiled
def _add_energy_error(shared: Any, scratch: Any) -> None:
    """Add what the error of the energies does, which all energies share."""
    pattern, change, m, p = scratch.half, scratch.work, len(shared.amounts), len(scratch.step)
    amounts = scratch.result[4 * m + 3 :]
    change[:] = ZERO
    for i in range(p):
        pattern[0, :] = ZERO
        for c in range(m):
            _add_products(amounts[c], scratch.sums[shared.slopes + c * p + i], pattern[0])
        for c in range(m):
            _add_products(scratch.gain[c * p + i], pattern[0], change[c])
    _add_pattern(scratch)


@compiled
def _add_scale_error(b: int, shared: Any, scratch: Any) -> None:
    """Add what the error of the scale of one reference does."""
    m, p, change = len(shared.amounts), len(scratch.step), scratch.work
    amount = scratch.result[4 * m + 3 + b]
    for c in range(m):
        change[c, :] = shared.rescaled[c, b]
        for i in range(p if shared.known > 0 else 0):
            _add_products(scratch.gain[c * p + i], scratch.sums[shared.known + i], change[c])
        for lane in range(LANES):
            change[c, lane] *= shared.scale_errors[b] * amount[lane]
    _add_pattern(scratch)


@inlined
def _error(variance: Any) -> Any:
    return np.sqrt(variance if variance > ZERO else ZERO * variance)


@compiled
def _write_errors(covariance: Any, first: int, scratch: Any, at: int) -> None:
    """Standard errors of fractions and total by linear propagation of the full covariance.

    ``var(f_k) t^2 = C_kk - 2 f_k sum_j C_kj + f_k^2 sum_ij C_ij``.
    """
    result, over, m = scratch.result, scratch.totals[INVERSE_TOTAL], len(scratch.best) - 1
    row, whole = scratch.work, scratch.work[m]
    row[: m + 1] = ZERO
    for c in range(m):
        for b in range(m):
            _add_scaled(ONE, covariance[first + _at(max(b, c), min(b, c))], row[c])
        _add_scaled(ONE, row[c], row[m])
    for c in range(m):
        for lane in range(LANES):
            f, own = result[c, lane], covariance[first + _at(c, c), lane]
            variance = own - F32(2.0) * f * row[c, lane] + f * f * whole[lane]
            result[at + c, lane] = _error(variance) * over[lane]
    for lane in range(LANES):
        result[at + m, lane] = _error(whole[lane])


@compiled
def _keep_better(at: int, left: int, least: Any, states: Any, best: Any, work: Any) -> None:
    """Take a solution where it is cheaper than the best and satisfies the constraint."""
    lowest, total, cost, cheapest, found = work[0], work[1], states[at], best[0], I32(0)
    for lane in range(LANES):
        new, old = cost[lane], cheapest[lane]
        better = (lowest[lane] >= ZERO) & (total[lane] > least) & (new < old)
        cheapest[lane] = new if better else old
        lowest[lane] = ONE if better else ZERO
        found += I32(1) if better else I32(0)
    for i in range(len(best) - 1 if found > 0 else 0):
        amount, chosen = states[at + 1 + i], best[1 + i]
        share = left & (1 << i) != 0
        for lane in range(LANES):
            new, old = amount[lane] if share else ZERO, chosen[lane]
            chosen[lane] = new if lowest[lane] > ZERO else old


@compiled
def _rule_out(j: int, left: int, m: int, parent: int, child: int, states: Any, work: Any) -> None:
    """Condition the components that are left on component j being zero.

    For a Gaussian this is the same as minimising the quadratic form under that constraint. A
    state is its cost, amounts and their covariance. Components above j stay from here on. The
    lowest amount and their total go to `work`.
    """
    lowest, total, inverse, moved, scaled = work[0], work[1], work[2], work[3], work[4]
    c, amount = parent + 1 + m, states[parent + 1 + j]
    for lane in range(LANES):
        inverse[lane] = ONE / states[c + _at(j, j), lane]
    _copy(amount, moved)
    _scale(inverse, moved)
    _copy(states[parent], states[child])
    _add_products(amount, moved, states[child])
    lowest[:], total[:] = ZERO, ZERO
    for i in range(m):
        if left & (1 << i) == 0:
            continue
        row, new = states[c + _at(max(i, j), min(i, j))], states[child + 1 + i]
        _copy(states[parent + 1 + i], new)
        _subtract_products(row, moved, new)
        _add_amount(new, lowest, total)
        _copy(row, scaled)
        _scale(inverse, scaled)
        for k in range(min(i + 1, j)):
            if left & (1 << k):
                new = states[child + 1 + m + _at(i, k)]
                _copy(states[c + _at(i, k)], new)
                _subtract_products(scaled, states[c + _at(j, k)], new)


@inlined
def _add_amount(amount: Any, lowest: Any, total: Any) -> None:
    for lane in range(LANES):
        lowest[lane] = min(lowest[lane], amount[lane])
        total[lane] += amount[lane]


@compiled
def _find_nonnegative(least: Any, scratch: Any) -> None:
    """Exact non-negative amounts: the best of all subsets that satisfies the constraint.

    Four components have sixteen subsets, so trying all is exact. The states are kept by the
    number of components that are zero; of those the lowest was ruled out last.
    """
    best, states, work, m = scratch.best, scratch.states, scratch.work, len(scratch.best) - 1
    thickness, width = 4 * m + 3, len(scratch.states) // (m + 1)
    states[0, :], best[0, :], work[:2] = ZERO, ENDLESS, ZERO
    for i in range(m):
        amount = scratch.result[thickness + i]
        _copy(amount, best[1 + i])
        _copy(amount, states[1 + i])
        _add_amount(amount, work[0], work[1])
    for i in range(width - 1 - m):
        _copy(scratch.result[thickness + m + 1 + i], states[1 + m + i])
    everything = (1 << m) - 1
    _keep_better(0, everything, least, states, best, work)
    for zero in range(1, 1 << m):
        depth, j, rest = 0, 0, zero
        while rest:
            depth, rest = depth + 1, rest & (rest - 1)
        while not zero & (1 << j):
            j += 1
        left = everything & ~zero
        _rule_out(j, left, m, (depth - 1) * width, depth * width, states, work)
        _keep_better(depth * width, left, least, states, best, work)


@compiled
def _write_composition(scratch: Any) -> None:
    """Fractions and their errors; for the eye empty where next to nothing is known."""
    result, best, over = scratch.result, scratch.best, scratch.totals[INVERSE_TOTAL]
    m = len(best) - 1
    error, common, shown, thickness = m, 2 * m + 1, 3 * m + 2, 4 * m + 3
    for lane in range(LANES):
        total = result[thickness + m, lane]
        over[lane] = ONE / total if total > ZERO else EMPTY
    for c in range(m):
        for lane in range(LANES):
            result[c, lane] = result[thickness + c, lane] * over[lane]
    _write_errors(scratch.systematic, 0, scratch, common)
    _write_errors(result, thickness + m + 1, scratch, error)
    result[shown + m, :] = ZERO
    for c in range(m):
        _add_scaled(ONE, best[1 + c], result[shown + m])
    for lane in range(LANES):
        total = result[shown + m, lane]
        over[lane] = ONE / total if total > ZERO else EMPTY
    for c in range(m):
        for lane in range(LANES):
            known = result[error + c, lane] < SHOWN_ERROR
            result[shown + c, lane] = best[1 + c, lane] * over[lane] if known else EMPTY


@compiled
def _write_quality(lowest: Any, shared: Any, scratch: Any) -> None:
    """Offset, chi-squared, residual, number of samples and the largest OD of the data."""
    totals, result = scratch.totals, scratch.result
    q, size, inverse = len(result) - QUALITIES, F32(len(scratch.step)), ONE / (ONE - shared.stray)
    result[q, :] = ZERO
    for i in range(len(scratch.step)):
        _add_scaled(shared.offset[i], scratch.step[i], result[q])
    for lane in range(LANES):
        square = max(totals[CHI2, lane], ZERO)
        used, weight = totals[USED, lane], totals[WEIGHT, lane]
        low, degrees = min(lowest[lane] * inverse, F32(1e30)), used - size
        known = result[q, lane] - result[q, lane] == ZERO
        result[q + 1, lane] = square / degrees if known and degrees > ZERO else EMPTY
        result[q + 2, lane] = np.sqrt(square / weight) if known and weight > ZERO else EMPTY
        result[q + 3, lane] = used
        result[q + 4, lane] = -log32(low) if low < F32(1e30) else EMPTY


@compiled
def _write_flags(shared: Any, scratch: Any) -> None:
    """Flags of a group."""
    no_data, left_out, rejected, below = (
        shared.bits[0], shared.bits[1], shared.bits[2], shared.bits[3],
    )  # fmt: skip
    result, bits, limit = scratch.result, scratch.bits, scratch.work[0]
    m, q = len(shared.amounts), len(result) - QUALITIES
    limit[:] = ENDLESS
    for c in range(m):
        t, variance = result[4 * m + 3 + c], result[5 * m + 4 + _at(c, c)]
        for lane in range(LANES):
            limit[lane] = min(limit[lane], t[lane] + NEGATIVE_SIGMA * _error(variance[lane]))
    largest, frames = shared.rejected, shared.frames
    total = result[5 * m + 3]
    for lane in range(LANES):
        usable = total[lane] - total[lane] == ZERO
        bit = I32(0) if usable else no_data
        bit = bit | (left_out if result[q + 3, lane] < frames else I32(0))
        bit = bit | (rejected if usable and result[q + 1, lane] > largest else I32(0))
        bits[lane] = bit | (below if usable and limit[lane] < ZERO else I32(0))


@compiled
def _fit_group(tile: Any, first: int, lowest: Any, shared: Any, scratch: Any) -> None:
    """One step of Fisher scoring from the parameters in `step`, and the maps of the result."""
    _set_parameters(scratch.step, scratch.theta)
    _score(tile, first, shared, scratch)
    _solve(scratch)
    _advance(shared, scratch)
    _invert(len(scratch.step), scratch.factor, scratch.inverse)
    _find_amounts(shared, scratch)
    _find_systematic(shared, scratch)
    if shared.slopes > 0:
        _add_energy_error(shared, scratch)
    for c in range(len(shared.amounts)):
        if shared.scale_errors[c] > ZERO:
            _add_scale_error(c, shared, scratch)
    _find_nonnegative(shared.least, scratch)
    _write_composition(scratch)
    _write_quality(lowest, shared, scratch)
    _write_flags(shared, scratch)


@inlined
def _squared(value: Any) -> Any:
    return value * value if value - value == ZERO else ZERO


@compiled
def _first_round(
    start: int, first: int, count: int, motion: Any, shared: Any, scratch: Any, maps: Any,
    flags: Any,
) -> None:  # fmt: skip
    """Fit one group from the data up to its first step, and write its maps."""
    place, lowest = start + first, scratch.lowest[first : first + LANES]
    for axis in range(2 if shared.moving else 0):
        along = scratch.theta[MOTION + axis]
        for lane in range(count):
            along[lane] = _squared(motion[axis, place + lane])
    _start(first, shared, scratch)
    _solve(scratch)
    _fit_group(scratch.tile, first, lowest, shared, scratch)
    for row in range(len(maps)):
        _copy(scratch.result[row], maps[row][place : place + count])
    _copy(scratch.bits, flags[place : place + count])


@compiled
def _queue(start: int, first: int, count: int, waiting: int, scratch: Any) -> int:
    """Put pixels of a group that have not settled in the queue; returns its length."""
    moving = np.flatnonzero(~scratch.settled[:count])
    end = waiting + len(moving)
    for k in range(len(scratch.tile)):
        for n in range(len(moving)):
            scratch.queue[k, waiting + n] = scratch.tile[k, first + moving[n]]
    for n in range(len(moving)):
        scratch.places[waiting + n] = start + first + moving[n]
        scratch.rounds[waiting + n] = 1
        for i in range(len(scratch.step)):
            scratch.reached[i, waiting + n] = scratch.step[i, moving[n]]
    return end


@compiled
def _later_round(
    waiting: int, motion: Any, shared: Any, scratch: Any, maps: Any, flags: Any
) -> int:
    """One more step for the first group of the queue; returns what is left in it."""
    places, rounds, reached = scratch.places, scratch.rounds, scratch.reached
    scratch.step[:], scratch.before[:] = reached[:, :LANES], rounds[:LANES]
    for axis in range(2 if shared.moving else 0):
        along = scratch.theta[MOTION + axis]
        for lane in range(min(LANES, waiting)):
            along[lane] = _squared(motion[axis, places[lane]])
    _fit_group(scratch.queue, 0, scratch.lowest, shared, scratch)
    scratch.before[:] = 0
    stay = 0
    for lane in range(waiting):
        if lane < LANES and scratch.settled[lane]:
            for row in range(len(maps) - 1):  # the largest OD of the data is there already
                maps[row, places[lane]] = scratch.result[row, lane]
            flags[places[lane]] = scratch.bits[lane]
            continue
        for i in range(len(reached)):
            reached[i, stay] = scratch.step[i, lane] if lane < LANES else reached[i, lane]
        places[stay], rounds[stay] = places[lane], rounds[lane] + (1 if lane < LANES else 0)
        for k in range(len(scratch.queue)):
            scratch.queue[k, stay] = scratch.queue[k, lane]
        stay += 1
    return stay


@compiled
def fit_pixels(
    stack: Any, motion: Any, shared: Shared, scratch: Scratch, maps: Any, flags: Any
) -> None:
    """Fit all pixels of a stack (energy, pixel) and write maps (map, pixel) and flags (pixel,).

    Pixels that have not settled after the first step wait until there is a group of them, so that
    a few slow ones do not hold up the others.
    """
    pixels, waiting = stack.shape[1], 0
    for start in range(0, pixels, TILE):
        count = min(TILE, pixels - start)
        _fetch(stack, start, count, shared, scratch)
        for first in range(0, count, LANES):
            size = min(LANES, count - first)
            _first_round(start, first, size, motion, shared, scratch, maps, flags)
            waiting = _queue(start, first, size, waiting, scratch)
            while waiting >= LANES:
                waiting = _later_round(waiting, motion, shared, scratch, maps, flags)
    while waiting > 0:
        waiting = _later_round(waiting, motion, shared, scratch, maps, flags)
