"""Compiled loops of the composition fit: many pixels side by side, a few numbers each.

The loops work on groups of `LANES` pixels. What happens in a lane depends on its own pixel alone,
so the maps are the same bit for bit however a stack is cut up. Everything is in single precision:
the columns of the design are made orthonormal before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectromap._compiled import (
    F32,
    I32,
    _bits_as_float,
    _float_as_bits,
    compiled,
    inlined,
    log32,
)

Samples = NDArray[np.float32]

#: Pixels that are worked on side by side: not a power of two, or rows would share cache lines.
LANES = 144
#: Pixels that are fetched from the stack at once, so that reading runs along its rows.
TILE = 5 * LANES
#: Energies that are added to the sums at once.
ENERGIES = 4
MAX_COMPONENTS, MAX_BASELINE = 4, 2
MAX_PARAMETERS = MAX_COMPONENTS + MAX_BASELINE
MIN_TRANSMISSION = F32(1e-4)
ROUNDS = 30
#: Once a step of Fisher scoring is this small, what it leaves over is below 0.01 sigma: scoring
#: converges quadratically, and the constant follows from the change of optical density.
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
#: Flags that the fit raises, in the order in which the loops know them.
RAISED = ("no_data", "energies_left_out", "model_rejected", "negative_component")

# Rows of `Scratch.sums`: parameters are four components, then two of the baseline; what is not
# there is independent and zero. Symmetric matrices are kept as lower triangles, row by row.
NORMAL, RIGHT, SHARED, PATTERN, KNOWN, UNUSED, SUM_ROWS = 0, 21, 27, 48, 54, 60, 61
# Rows of `Scratch.small`.
INVERSE, RATIO, GAIN, AMOUNT, RANDOM, SYSTEMATIC, POSITIVE, SMALL_ROWS = (
    0,
    10,
    18,
    34,
    38,
    48,
    58,
    62,
)
# Rows of `Scratch.totals`.
CHI2, WEIGHT, USED, LENGTH, DAMPING, OFFSET, TOTAL_ROWS = 0, 1, 2, 3, 4, 5, 6
# Rows of `Scratch.block`, for four energies or classes.
SCORES, WEIGHTS, VARIANCE, CHANGE, BLOCK_ROWS = 0, 4, 8, 12, 16
# Columns of `Shared.energies`.
KNOWN_OD, SCALE, DARK, I0, BASIS, SLOPES, SHIFTS, ENERGY_COLUMNS = 0, 1, 2, 3, 4, 10, 14, 16
# Rows of `Scratch.result`: four components, then the total or the mean over them.
FRACTION, ERROR, COMMON, SHOWN, THICKNESS, COVARIANCE, QUALITY = 0, 4, 9, 14, 19, 24, 34
RESULT_ROWS = QUALITY + 5


class Shared(NamedTuple):
    """Everything about the fit that all pixels share.

    Energies are sorted by class: in a class all references are nearly the same, so that sums of
    squares need only one factor a class. Components come before the baseline.
    """

    order: NDArray[np.intp]  # (energy,) where the sorted energies are in the stack
    ends: NDArray[np.intp]  # (class,) end of each class among the sorted energies
    energies: Samples  # (energy, 16): optical density that is not fitted; photons over what
    # interpolation left of the variance; dark counts over photons; relative variance of I0;
    # basis of the references and the baseline (6); change of the references by the energy error
    # (4); variances of the shift along y and x in nm2
    columns: Samples  # (parameter, padded energy): the basis once more
    classes: Samples  # (class, 4): known, scale, dark; transmission that is too small to tell
    products: Samples  # (pair, padded class): products of columns, then columns times known
    class_columns: Samples  # (parameter, padded class)
    product_rows: NDArray[np.intp]  # (even,) rows of the sums that the products belong to
    pair_rows: NDArray[np.intp]  # (even,) the same for the shared errors
    right_rows: NDArray[np.intp]
    pattern_rows: NDArray[np.intp]
    amounts: Samples  # (4, 4): amounts are constant + amounts @ parameters
    constant: Samples  # (4,)
    rescaled: Samples  # (4, 4): what the scale of a reference does to the amounts
    scale_errors: Samples  # (4,) relative standard errors of the references
    unused: Samples  # (4,) one for components that are not there
    offset: Samples  # (7,): the constant of the baseline is offset[:6] @ parameters + offset[6]
    rows: NDArray[np.intp]  # (map,) rows of the result that are wanted
    size: np.float32  # number of parameters
    stray: np.float32
    ceiling: np.float32
    frames: np.float32
    rejected: np.float32
    constrained: bool
    moving: bool
    bits: NDArray[np.int32]


class Scratch(NamedTuple):
    """Working memory of one group; every array is a pile of rows of `LANES` values."""

    parameters: Samples  # six parameters, then four amounts
    motion: Samples  # squared relative slopes of the optical density along y and x, in nm-2
    block: Samples  # of four energies or classes, what is summed over energy
    raw_products: Samples  # sums without gaps, an even number each
    raw_shared: Samples
    raw_right: Samples
    raw_pattern: Samples
    sums: Samples
    small: Samples
    step: Samples
    totals: Samples
    result: Samples
    tile: Samples  # (energy, pixel)
    means: Samples  # (class, pixel)
    spare: Samples  # (energy, lane)
    lowest: Samples  # (pixel,)


def make_scratch(energies: int, classes: int) -> Scratch:
    """Working memory for any number of components."""
    rows = {
        "parameters": MAX_PARAMETERS + MAX_COMPONENTS, "motion": 2, "block": BLOCK_ROWS,
        "raw_products": 28,
        "raw_shared": 22,
        "raw_right": MAX_PARAMETERS,
        "raw_pattern": MAX_PARAMETERS,
        "sums": SUM_ROWS, "small": SMALL_ROWS, "step": MAX_PARAMETERS, "totals": TOTAL_ROWS,
        "result": RESULT_ROWS,
    }  # fmt: skip
    arrays = {name: np.zeros(count * LANES, dtype=np.float32) for name, count in rows.items()}
    sums = arrays["sums"].reshape(SUM_ROWS, LANES)
    for i in range(MAX_PARAMETERS):
        sums[NORMAL + i * (i + 1) // 2 + i] = 1.0
    return Scratch(
        **arrays,
        tile=np.full((energies, TILE), EMPTY),
        means=np.full((classes, TILE), EMPTY),
        spare=np.full((energies, LANES), EMPTY),
        lowest=np.zeros(TILE, dtype=np.float32),
    )


@inlined
def _power_of_two(x: Any) -> Any:
    """Two to the power of a float32 between -100 and 100, to 2e-7.

    The bits of x plus 1.5 * 2**23 hold the nearest integer, which goes straight to the exponent.
    Coefficients: Chebyshev interpolation of degree 5 on -0.5 to 0.5.
    """
    shifted = x + F32(12582912.0)
    r = x - (shifted - F32(12582912.0))
    p = F32(1.339086337e-3) * r + F32(9.676031918e-3)
    p = p * r + F32(5.550357114e-2)
    p = p * r + F32(2.402210749e-1)
    p = p * r + F32(6.931471880e-1)
    p = p * r + F32(1.000000075)
    return _bits_as_float(_float_as_bits(p) + (_float_as_bits(shifted) << I32(23)))


@inlined
def _rough_log2(x: Any) -> Any:
    """Binary logarithm of a positive float32 to 5e-5, good enough to start from."""
    bits = _float_as_bits(x)
    f = _bits_as_float((bits & I32(0x007FFFFF)) | I32(0x3F800000)) - ONE
    linear = F32(bits - I32(0x3F800000)) * F32(2.0**-23)
    p = F32(-0.044874) * f + F32(0.150533)
    p = p * f + F32(-0.269578)
    p = p * f + F32(0.442419)
    return linear + (f - f * f) * p


@inlined
def _row(rows: Any, index: Any) -> Any:
    """One value a lane."""
    return rows[index * LANES : (index + 1) * LANES]


@compiled
def _accumulate(w: Any, factors: Any, k: int, count: int, raw: Any) -> None:
    """Add four energies to sums over energy: ``raw += factors @ w``, two sums at once.

    Two sums share what is read of the samples: this is as fast as a matrix product.
    """
    for p in range(0, count, 2):
        total = raw[p * LANES : (p + 2) * LANES]
        a0, a1, a2, a3 = factors[p, k], factors[p, k + 1], factors[p, k + 2], factors[p, k + 3]
        q = p + 1
        b0, b1, b2, b3 = factors[q, k], factors[q, k + 1], factors[q, k + 2], factors[q, k + 3]
        for lane in range(LANES):
            w0, w1 = w[lane], w[lane + LANES]
            w2, w3 = w[lane + 2 * LANES], w[lane + 3 * LANES]
            x, y = total[lane], total[lane + LANES]
            total[lane] = x + a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            total[lane + LANES] = y + b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3


@compiled
def _fetch(
    stack: Any,
    first: int,
    count: int,
    order: Any,
    ends: Any,
    stray: Any,
    tile: Any,
    means: Any,
    lowest: Any,
) -> None:
    """Copy pixels, sorted by energy class, with the mean of every class and the lowest sample.

    Pixels up to a full group are filled with empty ones.
    """  # fmt: skip
    lowest[:] = ENDLESS
    start = 0
    for c in range(len(ends)):
        mean = means[c]
        mean[:] = ZERO
        share = ONE / F32(ends[c] - start)
        for k in range(start, ends[c]):
            source, target = stack[order[k]][first : first + count], tile[k]
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
        weight = slope * slope * scale / (slope + dark)
        weight = weight if good else ZERO
        od = _rough_log2(slope * inverse) * F32(-0.69314718)
        weights[lane] = weight
        scores[lane] = weight * (od - known)


@compiled
def _copy(source: Any, target: Any) -> None:
    for i in range(target.size):
        target[i] = source[i]


@compiled
def _spread(raw: Any, rows: Any, sums: Any) -> None:
    """Copy sums to the rows that belong to them."""
    for p in range(len(rows)):
        _copy(raw[p * LANES :], _row(sums, rows[p]))


@compiled
def _start(first: int, shared: Any, scratch: Any) -> None:
    """Sums over energy for a fit to the logarithm of the data, weighted by the data."""
    block, means, raw_pairs, raw_right = (
        scratch.block,
        scratch.means,
        scratch.raw_products,
        scratch.raw_right,
    )
    raw_pairs[:] = ZERO
    raw_right[:] = ZERO
    classes, stray, table = len(shared.ends), shared.stray, shared.classes
    pairs, size = len(shared.pair_rows), len(shared.right_rows)
    products, columns = shared.products, shared.class_columns
    for c in range(classes):
        j, values = c % ENERGIES, means[c][first : first + LANES]
        scores, weights = _row(block, SCORES + j), _row(block, WEIGHTS + j)
        _start_class(values, table[c], stray, scores, weights)
        if j == ENERGIES - 1 or c == classes - 1:
            _accumulate(block[WEIGHTS * LANES :], products, c - j, pairs, raw_pairs)
            _accumulate(block[SCORES * LANES :], columns, c - j, size, raw_right)
    _spread(raw_pairs, shared.product_rows[:pairs], scratch.sums)
    _spread(raw_right, shared.right_rows, scratch.sums)


@inlined
def _weigh(
    values: Any,
    e: Any,
    stray: Any,
    ceiling: Any,
    keep: Any,
    theta: Any,
    scores: Any,
    sums: Any,
    totals: Any,
) -> None:
    """Model of one energy at the present parameters, and what is summed over energy.

    `keep` is zero for the first energy of a class. Rows of `sums` are as in `Scratch.block`.
    """  # fmt: skip
    known, scale, dark, i0 = e[KNOWN_OD], e[SCALE], e[DARK], e[I0]
    b0, b1, b2, b3, b4, b5 = e[4], e[5], e[6], e[7], e[8], e[9]
    s0, s1, s2, s3 = e[10], e[11], e[12], e[13]
    rest = ONE - stray
    for lane in range(LANES):
        od = known + b0 * theta[lane] + b1 * theta[lane + LANES]
        od = od + b2 * theta[lane + 2 * LANES] + b3 * theta[lane + 3 * LANES]
        od = od + b4 * theta[lane + 4 * LANES] + b5 * theta[lane + 5 * LANES]
        change = s0 * theta[lane + 6 * LANES] + s1 * theta[lane + 7 * LANES]
        change = change + s2 * theta[lane + 8 * LANES] + s3 * theta[lane + 9 * LANES]
        value = values[lane]
        good = value == value and od <= ceiling
        slope = rest * _power_of_two(min(max(od * F32(-1.44269504), F32(-36.0)), F32(6.0)))
        model = slope + stray
        precision = scale / (max(model, MIN_TRANSMISSION) + dark)
        precision = precision if good else ZERO
        misfit = model - value if good else ZERO
        scored = slope * precision
        weight = slope * scored
        scores[lane] = scored * misfit
        sums[lane] = keep * sums[lane] + weight
        sums[lane + 4 * LANES] = keep * sums[lane + 4 * LANES] + weight * weight * i0
        sums[lane + 8 * LANES] = keep * sums[lane + 8 * LANES] + weight * change
        totals[lane] += misfit * misfit * precision
        totals[lane + LANES] += weight
        totals[lane + 2 * LANES] += ONE if good else ZERO


@compiled
def _add_motion(
    values: Any, e: Any, stray: Any, ceiling: Any, theta: Any, motion: Any, sums: Any
) -> None:
    """Variance that errors of the shifts make, where the optical density has a slope."""
    known, scale, dark, along_y, along_x = e[KNOWN_OD], e[SCALE], e[DARK], e[SHIFTS], e[SHIFTS + 1]
    b0, b1, b2, b3, b4, b5 = e[4], e[5], e[6], e[7], e[8], e[9]
    rest = ONE - stray
    for lane in range(LANES):
        od = known + b0 * theta[lane] + b1 * theta[lane + LANES]
        od = od + b2 * theta[lane + 2 * LANES] + b3 * theta[lane + 3 * LANES]
        od = od + b4 * theta[lane + 4 * LANES] + b5 * theta[lane + 5 * LANES]
        good = values[lane] == values[lane] and od <= ceiling
        slope = rest * _power_of_two(min(max(od * F32(-1.44269504), F32(-36.0)), F32(6.0)))
        moved = od * slope * slope * scale / (max(slope + stray, MIN_TRANSMISSION) + dark)
        moved = moved if good else ZERO
        spread = along_y * motion[lane] + along_x * motion[lane + LANES]
        sums[lane + 4 * LANES] += moved * moved * spread


@compiled
def _score(tile: Any, first: int, shared: Any, scratch: Any) -> None:
    """Sums over energy of one step of Fisher scoring, with those for the shared errors."""
    block, theta, totals, motion = (
        scratch.block,
        scratch.parameters,
        scratch.totals,
        scratch.motion,
    )
    raw, raw_shared = scratch.raw_products, scratch.raw_shared
    raw_right, raw_pattern = scratch.raw_right, scratch.raw_pattern
    raw[:], raw_shared[:], raw_right[:], raw_pattern[:] = ZERO, ZERO, ZERO, ZERO
    totals[: 3 * LANES] = ZERO
    stray, ceiling, table, moving = shared.stray, shared.ceiling, shared.energies, shared.moving
    columns, products, class_columns = shared.columns, shared.products, shared.class_columns
    n_sums, pairs, size = len(shared.product_rows), len(shared.pair_rows), len(shared.right_rows)
    ends, energies, classes, k = shared.ends, len(table), len(shared.ends), 0
    for c in range(classes):
        keep, row = ZERO, c % ENERGIES
        own = block[(WEIGHTS + row) * LANES : (WEIGHTS + row + 9) * LANES]
        while k < ends[c]:
            values, j = tile[k][first : first + LANES], k % ENERGIES
            _weigh(values, table[k], stray, ceiling, keep, theta, _row(block, j), own, totals)
            if moving:
                _add_motion(values, table[k], stray, ceiling, theta, motion, own)
            keep = ONE
            k += 1
            if j == ENERGIES - 1 or k == energies:
                _accumulate(block[: WEIGHTS * LANES], columns, k - 1 - j, size, raw_right)
        if row == ENERGIES - 1 or c == classes - 1:
            _accumulate(block[WEIGHTS * LANES :], products, c - row, n_sums, raw)
            _accumulate(block[VARIANCE * LANES :], products, c - row, pairs, raw_shared)
            _accumulate(block[CHANGE * LANES :], class_columns, c - row, size, raw_pattern)
    _spread(raw, shared.product_rows, scratch.sums)
    _spread(raw_shared, shared.pair_rows, scratch.sums)
    _spread(raw_right, shared.right_rows, scratch.sums)
    _spread(raw_pattern, shared.pattern_rows, scratch.sums)


@inlined
def _four(rows: Any, at: Any) -> Any:
    """Values of four successive rows in one lane."""
    return rows[at], rows[at + LANES], rows[at + 2 * LANES], rows[at + 3 * LANES]


@inlined
def _ten(rows: Any, at: Any) -> Any:
    """Values of ten successive rows in one lane: a symmetric or triangular matrix."""
    return (
        rows[at], rows[at + LANES], rows[at + 2 * LANES], rows[at + 3 * LANES],
        rows[at + 4 * LANES], rows[at + 5 * LANES], rows[at + 6 * LANES], rows[at + 7 * LANES],
        rows[at + 8 * LANES], rows[at + 9 * LANES],
    )  # fmt: skip


@inlined
def _put(rows: Any, at: Any, a: Any) -> None:
    """Store four values in successive rows."""
    rows[at] = a[0]
    rows[at + LANES] = a[1]
    rows[at + 2 * LANES] = a[2]
    rows[at + 3 * LANES] = a[3]


@inlined
def _put_ten(rows: Any, at: Any, m: Any) -> None:
    """Store a symmetric or triangular matrix in successive rows."""
    rows[at] = m[0]
    rows[at + LANES] = m[1]
    rows[at + 2 * LANES] = m[2]
    rows[at + 3 * LANES] = m[3]
    rows[at + 4 * LANES] = m[4]
    rows[at + 5 * LANES] = m[5]
    rows[at + 6 * LANES] = m[6]
    rows[at + 7 * LANES] = m[7]
    rows[at + 8 * LANES] = m[8]
    rows[at + 9 * LANES] = m[9]


@inlined
def _put_products(rows: Any, at: Any, a: Any, b: Any, c: Any, d: Any, t: Any) -> None:
    """Store products of all pairs of four row vectors with the vectors in `t`."""
    rows[at] = _dot(a, t[0])
    rows[at + LANES] = _dot(b, t[0])
    rows[at + 2 * LANES] = _dot(b, t[1])
    rows[at + 3 * LANES] = _dot(c, t[0])
    rows[at + 4 * LANES] = _dot(c, t[1])
    rows[at + 5 * LANES] = _dot(c, t[2])
    rows[at + 6 * LANES] = _dot(d, t[0])
    rows[at + 7 * LANES] = _dot(d, t[1])
    rows[at + 8 * LANES] = _dot(d, t[2])
    rows[at + 9 * LANES] = _dot(d, t[3])


@inlined
def _dot(a: Any, b: Any) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]


@inlined
def _by_lower(a: Any, v: Any) -> Any:
    """Row vector times the transpose of a lower triangular matrix."""
    return (
        a[0] * v[0],
        a[0] * v[1] + a[1] * v[2],
        a[0] * v[3] + a[1] * v[4] + a[2] * v[5],
        a[0] * v[6] + a[1] * v[7] + a[2] * v[8] + a[3] * v[9],
    )


@inlined
def _by_upper(h: Any, v: Any) -> Any:
    """Row vector times a lower triangular matrix."""
    return (
        h[0] * v[0] + h[1] * v[1] + h[2] * v[3] + h[3] * v[6],
        h[1] * v[2] + h[2] * v[4] + h[3] * v[7],
        h[2] * v[5] + h[3] * v[8],
        h[3] * v[9],
    )


@inlined
def _by_symmetric(a: Any, m: Any) -> Any:
    """Row vector times a symmetric matrix."""
    return (
        a[0] * m[0] + a[1] * m[1] + a[2] * m[3] + a[3] * m[6],
        a[0] * m[1] + a[1] * m[2] + a[2] * m[4] + a[3] * m[7],
        a[0] * m[3] + a[1] * m[4] + a[2] * m[5] + a[3] * m[8],
        a[0] * m[6] + a[1] * m[7] + a[2] * m[8] + a[3] * m[9],
    )


@inlined
def _root(pivot: Any, diagonal: Any) -> Any:
    """One over the square root of a pivot; NaN where the matrix is singular."""
    return ONE / np.sqrt(pivot if pivot > SINGULAR * diagonal else EMPTY)


@inlined
def _invert_factor(n: Any, d: Any) -> Any:
    """Inverse of the Cholesky factor of a symmetric matrix, compared with a diagonal."""
    i00 = _root(n[0], d[0])
    l10, l20, l30 = n[1] * i00, n[3] * i00, n[6] * i00
    i11 = _root(n[2] - l10 * l10, d[1])
    l21, l31 = (n[4] - l20 * l10) * i11, (n[7] - l30 * l10) * i11
    i22 = _root(n[5] - l20 * l20 - l21 * l21, d[2])
    l32 = (n[8] - l30 * l20 - l31 * l21) * i22
    i33 = _root(n[9] - l30 * l30 - l31 * l31 - l32 * l32, d[3])
    i10 = -i11 * l10 * i00
    i21 = -i22 * l21 * i11
    i20 = -i22 * (l20 * i00 + l21 * i10)
    i32 = -i33 * l32 * i22
    i31 = -i33 * (l31 * i11 + l32 * i21)
    i30 = -i33 * (l30 * i00 + l31 * i10 + l32 * i20)
    return i00, i10, i11, i20, i21, i22, i30, i31, i32, i33


@inlined
def _without(n: Any, g: Any, h: Any, a: Any, b: Any) -> Any:
    """Symmetric matrix less what the two parameters of the baseline explain."""
    return (
        n[0] - g[0] * a[0] - h[0] * b[0],
        n[1] - g[1] * a[0] - h[1] * b[0], n[2] - g[1] * a[1] - h[1] * b[1],
        n[3] - g[2] * a[0] - h[2] * b[0], n[4] - g[2] * a[1] - h[2] * b[1],
        n[5] - g[2] * a[2] - h[2] * b[2],
        n[6] - g[3] * a[0] - h[3] * b[0], n[7] - g[3] * a[1] - h[3] * b[1],
        n[8] - g[3] * a[2] - h[3] * b[2], n[9] - g[3] * a[3] - h[3] * b[3],
    )  # fmt: skip


@inlined
def _mixed(x: Any, a: Any, y: Any, b: Any) -> Any:
    """Two vectors, weighed and added."""
    return (
        x * a[0] + y * b[0], x * a[1] + y * b[1], x * a[2] + y * b[2], x * a[3] + y * b[3],
    )  # fmt: skip


@inlined
def _less(t: Any, x: Any, g: Any, y: Any, h: Any) -> Any:
    """A vector less two others, weighed."""
    return (
        t[0] - x * g[0] - y * h[0], t[1] - x * g[1] - y * h[1],
        t[2] - x * g[2] - y * h[2], t[3] - x * g[3] - y * h[3],
    )  # fmt: skip


@compiled
def _solve(sums: Any, small: Any, step: Any, totals: Any) -> None:
    """Solve the normal equations of every lane, the baseline being taken out first.

    Leaves the inverse Cholesky factor of what is left, the share of the baseline in the
    components, the solution, and its squared length in standard deviations.
    """
    for lane in range(LANES):
        n, r = _ten(sums, NORMAL * LANES + lane), _four(sums, RIGHT * LANES + lane)
        a, b = _four(sums, 10 * LANES + lane), _four(sums, 15 * LANES + lane)
        aa, ab, bb = sums[lane + 14 * LANES], sums[lane + 19 * LANES], sums[lane + 20 * LANES]
        ra, rb = sums[lane + (RIGHT + 4) * LANES], sums[lane + (RIGHT + 5) * LANES]
        determinant = aa * bb - ab * ab
        scale = ONE / (determinant if determinant > SINGULAR * aa * bb else EMPTY)
        paa, pab, pbb = bb * scale, -ab * scale, aa * scale
        g, h = _mixed(paa, a, pab, b), _mixed(pab, a, pbb, b)
        left = _without(n, g, h, a, b)
        v = _invert_factor(left, (n[0], n[2], n[5], n[9]))
        z = _by_lower(_less(r, ra, g, rb, h), v)
        x = _by_upper(z, v)
        qa, qb = paa * ra + pab * rb, pab * ra + pbb * rb
        _put(step, lane, x)
        step[lane + 4 * LANES] = qa - _dot(g, x)
        step[lane + 5 * LANES] = qb - _dot(h, x)
        totals[lane + LENGTH * LANES] = _dot(z, z) + qa * ra + qb * rb
        _put_ten(small, INVERSE * LANES + lane, v)
        _put(small, RATIO * LANES + lane, g)
        _put(small, (RATIO + 4) * LANES + lane, h)


@compiled
def _set_parameters(values: Any, amounts: Any, constant: Any, theta: Any) -> None:
    """Parameters to evaluate the model at, zero where there are none, and their amounts."""
    for i in range(MAX_PARAMETERS * LANES):
        theta[i] = values[i] if values[i] == values[i] else ZERO
    for c in range(MAX_COMPONENTS):
        target = _row(theta, MAX_PARAMETERS + c)
        k, a0, a1, a2, a3 = constant[c], amounts[c, 0], amounts[c, 1], amounts[c, 2], amounts[c, 3]
        for lane in range(LANES):
            target[lane] = k + _dot((a0, a1, a2, a3), _four(theta, lane))


@compiled
def _advance(last: bool, offset: Any, theta: Any, step: Any, totals: Any, settled: Any) -> None:
    """Take the step, not too far at once, and tell which lanes rest."""
    limits = np.empty(LANES, dtype=np.float32)
    for lane in range(LANES):
        length, weight = totals[lane + LENGTH * LANES], totals[lane + WEIGHT * LANES]
        limits[lane] = min(STEP_PER_PHOTON * np.sqrt(weight), MAX_STEP)
        moves = length > limits[lane]
        spread = length / weight  # mean squared change of the optical density
        factor = ONE / np.sqrt(max(spread, ONE))
        totals[lane + DAMPING * LANES] = EMPTY if last and moves else factor
        totals[lane + CHI2 * LANES] -= ZERO if moves else length
    for lane in range(LANES):
        settled[lane] = last or not totals[lane + LENGTH * LANES] > limits[lane]
    o0, o1, o2, o3, o4, o5, o6 = (
        offset[0], offset[1], offset[2], offset[3], offset[4], offset[5], offset[6],
    )  # fmt: skip
    for lane in range(LANES):
        damping = totals[lane + DAMPING * LANES]
        x = _mixed(damping, _four(step, lane), ONE, _four(theta, lane))
        y = damping * step[lane + 4 * LANES] + theta[lane + 4 * LANES]
        z = damping * step[lane + 5 * LANES] + theta[lane + 5 * LANES]
        _put(step, lane, x)
        step[lane + 4 * LANES], step[lane + 5 * LANES] = y, z
        totals[lane + OFFSET * LANES] = _dot((o0, o1, o2, o3), x) + o4 * y + o5 * z + o6


@inlined
def _table_row(t: Any, i: Any) -> Any:
    return t[i, 0], t[i, 1], t[i, 2], t[i, 3]


@compiled
def _find_amounts(t: Any, k: Any, parameters: Any, small: Any) -> None:
    """Amounts, their covariance, and what turns sums over energy into amounts."""
    a, b, c, d = _table_row(t, 0), _table_row(t, 1), _table_row(t, 2), _table_row(t, 3)
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    for lane in range(LANES):
        x, v = _four(parameters, lane), _ten(small, INVERSE * LANES + lane)
        found = (_dot(a, x) + k0, _dot(b, x) + k1, _dot(c, x) + k2, _dot(d, x) + k3)
        _put(small, AMOUNT * LANES + lane, found)
        h = (_by_lower(a, v), _by_lower(b, v), _by_lower(c, v), _by_lower(d, v))
        _put_products(small, RANDOM * LANES + lane, h[0], h[1], h[2], h[3], h)
        _put(small, GAIN * LANES + lane, _by_upper(h[0], v))
        _put(small, (GAIN + 4) * LANES + lane, _by_upper(h[1], v))
        _put(small, (GAIN + 8) * LANES + lane, _by_upper(h[2], v))
        _put(small, (GAIN + 12) * LANES + lane, _by_upper(h[3], v))


@inlined
def _outer(e: Any) -> Any:
    """Products of all pairs of elements of a vector."""
    a, b, c, d = e[0], e[1], e[2], e[3]
    return a * a, b * a, b * b, c * a, c * b, c * c, d * a, d * b, d * c, d * d


@inlined
def _add_ten(rows: Any, at: Any, m: Any) -> None:
    n = _ten(rows, at)
    _put_ten(
        rows, at,
        (
            n[0] + m[0], n[1] + m[1], n[2] + m[2], n[3] + m[3], n[4] + m[4],
            n[5] + m[5], n[6] + m[6], n[7] + m[7], n[8] + m[8], n[9] + m[9],
        ),
    )  # fmt: skip


@compiled
def _find_systematic(sums: Any, small: Any) -> None:
    """Covariance of the amounts by what pixels share: I0, shifts and energies."""
    for lane in range(LANES):
        m, p = _ten(sums, SHARED * LANES + lane), _four(sums, PATTERN * LANES + lane)
        ta, tb = (
            _four(sums, (SHARED + 10) * LANES + lane), _four(sums, (SHARED + 15) * LANES + lane)
        )  # fmt: skip
        aa, ab = sums[lane + (SHARED + 14) * LANES], sums[lane + (SHARED + 19) * LANES]
        bb = sums[lane + (SHARED + 20) * LANES]
        pa, pb = sums[lane + (PATTERN + 4) * LANES], sums[lane + (PATTERN + 5) * LANES]
        g, h = _four(small, RATIO * LANES + lane), _four(small, (RATIO + 4) * LANES + lane)
        ua = _less(ta, aa, g, ab, h)
        ub = _less(tb, ab, g, bb, h)
        m = _without(_without(m, g, h, ua, ub), ta, tb, g, h)
        p = _less(p, pa, g, pb, h)
        a, b = _four(small, GAIN * LANES + lane), _four(small, (GAIN + 4) * LANES + lane)
        c = _four(small, (GAIN + 8) * LANES + lane)
        d = _four(small, (GAIN + 12) * LANES + lane)
        t = (_by_symmetric(a, m), _by_symmetric(b, m), _by_symmetric(c, m), _by_symmetric(d, m))
        _put_products(small, SYSTEMATIC * LANES + lane, a, b, c, d, t)
        moved = _outer((_dot(a, p), _dot(b, p), _dot(c, p), _dot(d, p)))
        _add_ten(small, SYSTEMATIC * LANES + lane, moved)


@inlined
def _scaled(size: Any, r: Any, y: Any) -> Any:
    """Change of the amounts by a change of the scale of one reference."""
    return (
        size * (r[0] + y[0]),
        size * (r[1] + y[1]),
        size * (r[2] + y[2]),
        size * (r[3] + y[3]),
    )


@compiled
def _add_scale_errors(rescaled: Any, errors: Any, sums: Any, small: Any) -> None:
    """Add what errors of the scales of the references do to the amounts."""
    e0, e1, e2, e3 = errors[0], errors[1], errors[2], errors[3]
    r0, r1 = _table_row(rescaled, 0), _table_row(rescaled, 1)
    r2, r3 = _table_row(rescaled, 2), _table_row(rescaled, 3)
    for lane in range(LANES):
        y, t = _four(sums, KNOWN * LANES + lane), _four(small, AMOUNT * LANES + lane)
        ya, yb = sums[lane + (KNOWN + 4) * LANES], sums[lane + (KNOWN + 5) * LANES]
        g, h = _four(small, RATIO * LANES + lane), _four(small, (RATIO + 4) * LANES + lane)
        y = _less(y, ya, g, yb, h)
        a, b = _four(small, GAIN * LANES + lane), _four(small, (GAIN + 4) * LANES + lane)
        c = _four(small, (GAIN + 8) * LANES + lane)
        d = _four(small, (GAIN + 12) * LANES + lane)
        y = (_dot(a, y), _dot(b, y), _dot(c, y), _dot(d, y))
        at = SYSTEMATIC * LANES + lane
        _add_ten(small, at, _outer(_scaled(t[0] * e0, r0, y)))
        _add_ten(small, at, _outer(_scaled(t[1] * e1, r1, y)))
        _add_ten(small, at, _outer(_scaled(t[2] * e2, r2, y)))
        _add_ten(small, at, _outer(_scaled(t[3] * e3, r3, y)))


# Non-negative amounts. A state is a cost, amounts and their covariance (lower triangle); ruling
# out the first component conditions the others on its being zero, which for a Gaussian is the
# same as minimising the quadratic form under that constraint.


@inlined
def _rule_out_of_4(cost: Any, t: Any, c: Any) -> Any:
    g = ONE / c[0]
    g1, g2, g3 = g * c[1], g * c[3], g * c[6]
    return (
        cost + g * t[0] * t[0],
        (t[1] - g1 * t[0], t[2] - g2 * t[0], t[3] - g3 * t[0]),
        (
            c[2] - g1 * c[1],
            c[4] - g2 * c[1], c[5] - g2 * c[3],
            c[7] - g3 * c[1], c[8] - g3 * c[3], c[9] - g3 * c[6],
        ),
    )  # fmt: skip


@inlined
def _rule_out_of_3(cost: Any, t: Any, c: Any) -> Any:
    g = ONE / c[0]
    g1, g2 = g * c[1], g * c[3]
    return (
        cost + g * t[0] * t[0],
        (t[1] - g1 * t[0], t[2] - g2 * t[0]),
        (c[2] - g1 * c[1], c[4] - g2 * c[1], c[5] - g2 * c[3]),
    )


@inlined
def _rule_out_of_2(cost: Any, t: Any, c: Any) -> Any:
    g = ONE / c[0]
    g1 = g * c[1]
    return cost + g * t[0] * t[0], t[1] - g1 * t[0], c[2] - g1 * c[1]


@inlined
def _turn_4(c: Any) -> Any:
    """Covariance with the first component moved to the end."""
    return c[2], c[4], c[5], c[7], c[8], c[9], c[1], c[3], c[6], c[0]


@inlined
def _turn_3(c: Any) -> Any:
    return c[2], c[4], c[5], c[1], c[3], c[0]


@inlined
def _better(best: Any, cost: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The cheaper of two solutions, if the second satisfies the constraint.

    The last element of a solution is what its amounts must exceed together.
    """
    feasible = cost < best[0] and min(min(a, b), min(c, d)) >= ZERO and a + b + c + d > best[5]
    return (
        cost if feasible else best[0],
        a if feasible else best[1],
        b if feasible else best[2],
        c if feasible else best[3],
        d if feasible else best[4],
        best[5],
    )


@compiled
def _find_nonnegative(unused: Any, constrained: bool, small: Any) -> None:
    """Exact non-negative amounts: the best of all subsets that satisfies the constraint.

    Four components have sixteen subsets, so trying all is exact; unused components cost nothing.
    """
    u0, u1, u2, u3 = unused[0], unused[1], unused[2], unused[3]
    least = F32(0.5) if constrained else -ENDLESS  # not all may be zero if they add up to one
    for lane in range(LANES):
        t = _four(small, AMOUNT * LANES + lane)
        v = _ten(small, RANDOM * LANES + lane)
        c = (v[0] + u0, v[1], v[2] + u1, v[3], v[4], v[5] + u2, v[6], v[7], v[8], v[9] + u3)
        best = _better((ENDLESS, t[0], t[1], t[2], t[3], least), ZERO, t[0], t[1], t[2], t[3])
        # 0 is zero
        s0 = _rule_out_of_4(ZERO, t, c)
        best = _better(best, s0[0], ZERO, s0[1][0], s0[1][1], s0[1][2])
        s01 = _rule_out_of_3(s0[0], s0[1], s0[2])
        best = _better(best, s01[0], ZERO, ZERO, s01[1][0], s01[1][1])
        s012 = _rule_out_of_2(s01[0], s01[1], s01[2])
        best = _better(best, s012[0], ZERO, ZERO, ZERO, s012[1])
        all_zero = s012[0] + s012[1] * s012[1] / s012[2]
        best = _better(best, all_zero, ZERO, ZERO, ZERO, ZERO)
        w01 = s01[2]
        s013 = _rule_out_of_2(s01[0], (s01[1][1], s01[1][0]), (w01[2], w01[1], w01[0]))
        best = _better(best, s013[0], ZERO, ZERO, s013[1], ZERO)
        t0, c0 = (s0[1][1], s0[1][2], s0[1][0]), _turn_3(s0[2])
        s02 = _rule_out_of_3(s0[0], t0, c0)  # left: 3, 1
        best = _better(best, s02[0], ZERO, s02[1][1], ZERO, s02[1][0])
        s023 = _rule_out_of_2(s02[0], s02[1], s02[2])
        best = _better(best, s023[0], ZERO, s023[1], ZERO, ZERO)
        s03 = _rule_out_of_3(s0[0], (t0[1], t0[2], t0[0]), _turn_3(c0))  # left: 1, 2
        best = _better(best, s03[0], ZERO, s03[1][0], s03[1][1], ZERO)
        # 1 is zero, 0 is not
        ct = _turn_4(c)
        s1 = _rule_out_of_4(ZERO, (t[1], t[2], t[3], t[0]), ct)  # left: 2, 3, 0
        best = _better(best, s1[0], s1[1][2], ZERO, s1[1][0], s1[1][1])
        s12 = _rule_out_of_3(s1[0], s1[1], s1[2])  # left: 3, 0
        best = _better(best, s12[0], s12[1][1], ZERO, ZERO, s12[1][0])
        s123 = _rule_out_of_2(s12[0], s12[1], s12[2])
        best = _better(best, s123[0], s123[1], ZERO, ZERO, ZERO)
        t1 = (s1[1][1], s1[1][2], s1[1][0])
        s13 = _rule_out_of_3(s1[0], t1, _turn_3(s1[2]))  # left: 0, 2
        best = _better(best, s13[0], s13[1][0], ZERO, s13[1][1], ZERO)
        # 2 is zero, 0 and 1 are not
        ct = _turn_4(ct)
        s2 = _rule_out_of_4(ZERO, (t[2], t[3], t[0], t[1]), ct)  # left: 3, 0, 1
        best = _better(best, s2[0], s2[1][1], s2[1][2], ZERO, s2[1][0])
        s23 = _rule_out_of_3(s2[0], s2[1], s2[2])  # left: 0, 1
        best = _better(best, s23[0], s23[1][0], s23[1][1], ZERO, ZERO)
        # only 3 is zero
        s3 = _rule_out_of_4(ZERO, (t[3], t[0], t[1], t[2]), _turn_4(ct))  # left: 0, 1, 2
        best = _better(best, s3[0], s3[1][0], s3[1][1], s3[1][2], ZERO)
        _put(small, POSITIVE * LANES + lane, (best[1], best[2], best[3], best[4]))


@inlined
def _error(variance: Any) -> Any:
    return np.sqrt(variance if variance > ZERO else ZERO * variance)


@inlined
def _put_errors(result: Any, at: Any, f: Any, total: Any, c: Any) -> None:
    """Standard errors of fractions and total by linear propagation of the full covariance.

    ``var(f_k) t^2 = C_kk - 2 f_k sum_j C_kj + f_k^2 sum_ij C_ij``.
    """
    s0, s1 = c[0] + c[1] + c[3] + c[6], c[1] + c[2] + c[4] + c[7]
    s2, s3 = c[3] + c[4] + c[5] + c[8], c[6] + c[7] + c[8] + c[9]
    whole = s0 + s1 + s2 + s3
    over = ONE / total if total > ZERO else EMPTY
    result[at] = _error(c[0] - F32(2.0) * f[0] * s0 + f[0] * f[0] * whole) * over
    result[at + LANES] = _error(c[2] - F32(2.0) * f[1] * s1 + f[1] * f[1] * whole) * over
    result[at + 2 * LANES] = _error(c[5] - F32(2.0) * f[2] * s2 + f[2] * f[2] * whole) * over
    result[at + 3 * LANES] = _error(c[9] - F32(2.0) * f[3] * s3 + f[3] * f[3] * whole) * over
    result[at + 4 * LANES] = _error(whole)


@compiled
def _write_composition(small: Any, result: Any) -> None:
    """Fractions, amounts and their errors."""
    for lane in range(LANES):
        t, c = _four(small, AMOUNT * LANES + lane), _ten(small, RANDOM * LANES + lane)
        total = t[0] + t[1] + t[2] + t[3]
        over = ONE / total if total > ZERO else EMPTY
        f = (t[0] * over, t[1] * over, t[2] * over, t[3] * over)
        _put(result, FRACTION * LANES + lane, f)
        _put_errors(result, ERROR * LANES + lane, f, total, c)
        _put(result, THICKNESS * LANES + lane, t)
        result[(THICKNESS + 4) * LANES + lane] = total
    for lane in range(LANES):
        f, c = _four(result, FRACTION * LANES + lane), _ten(small, SYSTEMATIC * LANES + lane)
        _put_errors(result, COMMON * LANES + lane, f, result[(THICKNESS + 4) * LANES + lane], c)
    _copy(small[RANDOM * LANES :], result[COVARIANCE * LANES : (COVARIANCE + 10) * LANES])


@inlined
def _shown(part: Any, error: Any) -> Any:
    return part if error < SHOWN_ERROR else EMPTY


@compiled
def _write_nonnegative(small: Any, result: Any) -> None:
    """Fractions for the eye, empty where next to nothing is known."""
    for lane in range(LANES):
        p, e = _four(small, POSITIVE * LANES + lane), _four(result, ERROR * LANES + lane)
        total = p[0] + p[1] + p[2] + p[3]
        over = ONE / total if total > ZERO else EMPTY
        shown = (
            _shown(p[0] * over, e[0]), _shown(p[1] * over, e[1]),
            _shown(p[2] * over, e[2]), _shown(p[3] * over, e[3]),
        )  # fmt: skip
        _put(result, SHOWN * LANES + lane, shown)
        result[(SHOWN + 4) * LANES + lane] = total


@compiled
def _write_quality(size: Any, rest: Any, lowest: Any, totals: Any, result: Any) -> None:
    """Offset, chi-squared, residual, number of samples and the largest OD of the data."""
    q, inverse = QUALITY * LANES, ONE / rest
    for lane in range(LANES):
        square = max(totals[lane + CHI2 * LANES], ZERO)
        used, weight = totals[lane + USED * LANES], totals[lane + WEIGHT * LANES]
        degrees = used - size
        low = min(lowest[lane] * inverse, F32(1e30))
        result[q + lane] = totals[lane + OFFSET * LANES]
        result[q + lane + LANES] = square / degrees if degrees > ZERO else EMPTY
        result[q + lane + 2 * LANES] = np.sqrt(square / weight) if weight > ZERO else EMPTY
        result[q + lane + 3 * LANES] = used
        result[q + lane + 4 * LANES] = -log32(low) if low < F32(1e30) else EMPTY


@compiled
def _write_flags(
    fewest: Any, frames: Any, largest: Any, bits_of: Any, small: Any, result: Any, flags: Any
) -> None:
    """Flags of a group, and where nothing is known, nothing is written."""
    no_data, left_out, rejected, below = bits_of[0], bits_of[1], bits_of[2], bits_of[3]
    for lane in range(LANES):
        t, c = _four(small, AMOUNT * LANES + lane), _ten(small, RANDOM * LANES + lane)
        known = t[0] + t[1] + t[2] + t[3] + c[0] + c[2] + c[5] + c[9]
        limit = min(
            min(t[0] + NEGATIVE_SIGMA * _error(c[0]), t[1] + NEGATIVE_SIGMA * _error(c[2])),
            min(t[2] + NEGATIVE_SIGMA * _error(c[5]), t[3] + NEGATIVE_SIGMA * _error(c[9])),
        )
        chi2, used = result[(QUALITY + 1) * LANES + lane], result[(QUALITY + 3) * LANES + lane]
        usable = used >= fewest and known - known == ZERO
        bits = I32(0) if usable else no_data
        bits = bits | (left_out if used < frames else I32(0))
        bits = bits | (rejected if usable and chi2 > largest else I32(0))
        bits = bits | (below if usable and limit < ZERO else I32(0))
        flags[lane] = bits
    for row in range(QUALITY + 3):
        values = _row(result, row)
        for lane in range(LANES):
            values[lane] = EMPTY if flags[lane] & no_data else values[lane]


@compiled
def _finish(lowest: Any, shared: Any, scratch: Any, flags: Any) -> None:
    """All maps of a group whose sums over energy and last step are known."""
    small, result, sums, totals = scratch.small, scratch.result, scratch.sums, scratch.totals
    _find_amounts(shared.amounts, shared.constant, scratch.step, small)
    _find_systematic(sums, small)
    if shared.scale_errors.any():
        _add_scale_errors(shared.rescaled, shared.scale_errors, sums, small)
    _find_nonnegative(shared.unused, shared.constrained, small)
    _write_composition(small, result)
    _write_nonnegative(small, result)
    _write_quality(shared.size, ONE - shared.stray, lowest, totals, result)
    fewest = max(shared.size, MIN_SHARE * shared.frames)
    _write_flags(fewest, shared.frames, shared.rejected, shared.bits, small, result, flags)


@compiled
def _fit_group(
    tile: Any,
    first: int,
    lowest: Any,
    last: bool,
    shared: Any,
    scratch: Any,
    settled: Any,
    bits: Any,
) -> None:
    """One step of Fisher scoring from the parameters in `step`, and the maps of the result."""
    _set_parameters(scratch.step, shared.amounts, shared.constant, scratch.parameters)
    _score(tile, first, shared, scratch)
    _solve(scratch.sums, scratch.small, scratch.step, scratch.totals)
    _advance(last, shared.offset, scratch.parameters, scratch.step, scratch.totals, settled)
    _finish(lowest, shared, scratch, bits)


@compiled
def _gather(
    start: int, chosen: Any, parameters: Any, motion: Any, tile: Any, spare: Any, scratch: Any
) -> None:
    """Bring chosen pixels of a tile together in one group."""
    for k in range(len(tile)):
        spare[k, :] = EMPTY
        for lane, pixel in enumerate(chosen):
            spare[k, lane] = tile[k, pixel]
    for i in range(MAX_PARAMETERS):
        for lane, pixel in enumerate(chosen):
            scratch.step[i * LANES + lane] = parameters[i, pixel]
    for axis in range(2 if motion.shape[1] > 0 else 0):
        for lane, pixel in enumerate(chosen):
            value = motion[axis, start + pixel]
            known = value - value == ZERO
            scratch.motion[axis * LANES + lane] = value * value if known else ZERO


@compiled
def _first_round(
    start: int,
    first: int,
    count: int,
    motion: Any,
    shared: Any,
    scratch: Any,
    maps: Any,
    flags: Any,
    parameters: Any,
    settled: Any,
    bits: Any,
) -> None:
    """Fit one group from the data up to its first step, and write its maps."""  # fmt: skip
    _start(first, shared, scratch)
    _solve(scratch.sums, scratch.small, scratch.step, scratch.totals)
    place = start + first
    for axis in range(2 if motion.shape[1] > 0 else 0):
        for lane in range(count):
            value = motion[axis, place + lane]
            known = value - value == ZERO
            scratch.motion[axis * LANES + lane] = value * value if known else ZERO
    lowest = scratch.lowest[first : first + LANES]
    _fit_group(
        scratch.tile, first, lowest, False, shared, scratch, settled[first : first + LANES], bits
    )
    result, step = scratch.result, scratch.step
    for row in range(len(maps)):
        _copy(_row(result, shared.rows[row]), maps[row][place : place + count])
    _copy(bits, flags[place : place + count])
    for i in range(MAX_PARAMETERS):
        _copy(_row(step, i), parameters[i][first : first + LANES])


@compiled
def _later_round(
    start: int,
    chosen: Any,
    last: bool,
    motion: Any,
    shared: Any,
    scratch: Any,
    maps: Any,
    flags: Any,
    parameters: Any,
    settled: Any,
    bits: Any,
) -> None:
    """One more step for chosen pixels of a tile, gathered into one group."""  # fmt: skip
    rest = np.empty(LANES, dtype=np.bool_)
    _gather(start, chosen, parameters, motion, scratch.tile, scratch.spare, scratch)
    _fit_group(scratch.spare, 0, scratch.lowest, last, shared, scratch, rest, bits)
    result, step = scratch.result, scratch.step
    for lane, pixel in enumerate(chosen):
        for row in range(len(maps) - 1):  # the largest OD of the data is there already
            maps[row, start + pixel] = result[shared.rows[row] * LANES + lane]
        for i in range(MAX_PARAMETERS):
            parameters[i, pixel] = step[i * LANES + lane]
        flags[start + pixel] = bits[lane]
        settled[pixel] = rest[lane]


@compiled
def fit_pixels(
    stack: Any, motion: Any, shared: Shared, scratch: Scratch, maps: Any, flags: Any
) -> None:
    """Fit all pixels of a stack (energy, pixel) and write maps (map, pixel) and flags (pixel,).

    Pixels that have not settled after the first step are gathered into groups of their own, round
    by round, so that a few slow ones do not hold up the others.
    """
    pixels = stack.shape[1]
    parameters = np.zeros((MAX_PARAMETERS, TILE), dtype=np.float32)
    bits = np.zeros(LANES, dtype=np.int32)
    settled = np.zeros(TILE, dtype=np.bool_)
    for start in range(0, pixels, TILE):
        count = min(TILE, pixels - start)
        _fetch(
            stack, start, count, shared.order, shared.ends, shared.stray, scratch.tile,
            scratch.means, scratch.lowest,
        )  # fmt: skip
        for first in range(0, count, LANES):
            _first_round(
                start, first, min(LANES, count - first), motion, shared, scratch, maps, flags,
                parameters, settled, bits,
            )  # fmt: skip
        for step in range(1, ROUNDS + 1):
            waiting = np.flatnonzero(~settled[:count])
            for first in range(0, len(waiting), LANES):
                _later_round(
                    start, waiting[first : first + LANES], step == ROUNDS, motion, shared,
                    scratch, maps, flags, parameters, settled, bits,
                )  # fmt: skip
            if len(waiting) == 0:
                break
