"""Loops over pixels that numpy cannot do in one pass, compiled; and what they are made of.

Everything compiled here is written so that the compiler works on many pixels at once: the inner
loop runs over pixels, and exponentials and logarithms are plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

F32 = np.float32
I32 = np.int32
ROUNDER, ROUNDER_BITS = F32(12582912.0), I32(0x4B400000)
LN2_HIGH, LN2_LOW = F32(0.693359375), F32(-2.12194440e-4)


def compiled(function: Function) -> Function:
    """Compile a loop; products and sums may fuse, nothing else is reordered.

    The machine code is kept on the disk beside the source, or in the user's cache folder.
    """
    make = njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
    dispatcher: Any = make(function)
    _forgive(dispatcher._cache)
    return cast(Function, dispatcher)


def _forgive(cache: Any) -> None:
    """Let no run fail for want of machine code on the disk: it can be made again."""
    save, load = cache.save_overload, cache.load_overload

    def save_if_possible(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except Exception:  # a full disk, a folder that may not be written, a damaged index
            with suppress(OSError):
                cache.flush()  # half of it may be there

    def load_if_possible(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception:  # damaged, or written by another version: there is no telling how
            return None

    cache.save_overload, cache.load_overload = save_if_possible, load_if_possible


def inlined(function: Function) -> Function:
    """Compile a piece of a loop into the loops that use it."""
    make = njit(inline="always", fastmath={"contract"}, error_model="numpy")
    return cast(Function, make(function))


def _float_from_bits(context: Any, bits: Any) -> Any:
    """The float whose bits an int32 holds."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _bits_from_float(context: Any, value: Any) -> Any:
    """The bits of a float as an int32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


_bits_as_float: Any = intrinsic(_float_from_bits)
_float_as_bits: Any = intrinsic(_bits_from_float)


@inlined
def exp32(x: Any) -> Any:
    """Exponential of a float32 to one part in 10 million, for |x| < 87.

    Coefficients: S. L. Moshier, Cephes mathematical library (1992), expf.
    """
    x = min(max(x, F32(-87.0)), F32(87.0))
    # Adding and taking off 1.5 * 2**23 rounds to the next whole number, many pixels at a time.
    rounded = x * F32(1.44269504) + ROUNDER
    k = rounded - ROUNDER
    r = x - k * LN2_HIGH - k * LN2_LOW
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    p = p * r * r + r + F32(1.0)
    exponent = _float_as_bits(rounded) - ROUNDER_BITS + I32(127)
    return p * _bits_as_float(exponent << I32(23))


@inlined
def log32(x: Any) -> Any:
    """Natural logarithm of a positive, normal float32 to 5e-7; anything else gives nonsense.

    Coefficients: S. L. Moshier, Cephes mathematical library (1992), logf.
    """
    bits = _float_as_bits(x)
    exponent = F32((bits >> I32(23)) - I32(126))
    mantissa = _bits_as_float((bits & I32(0x007FFFFF)) | I32(0x3F000000))
    small = mantissa < F32(0.70710678)
    exponent = exponent - (F32(1.0) if small else F32(0.0))
    m = mantissa + (mantissa if small else F32(0.0)) - F32(1.0)
    z = m * m
    p = F32(7.0376836292e-2)
    p = p * m + F32(-1.1514610310e-1)
    p = p * m + F32(1.1676998740e-1)
    p = p * m + F32(-1.2420140846e-1)
    p = p * m + F32(1.4249322787e-1)
    p = p * m + F32(-1.6668057665e-1)
    p = p * m + F32(2.0000714765e-1)
    p = p * m + F32(-2.4999993993e-1)
    p = p * m + F32(3.3333331174e-1)
    return m + (p * m * z + exponent * LN2_LOW - F32(0.5) * z) + exponent * LN2_HIGH


@inlined
def _weigh(values: Any, weight: Any, result: Any) -> None:
    for x in range(result.size):
        result[x] = weight * values[x]


@inlined
def _add_weighed(values: Any, weight: Any, result: Any) -> None:
    for x in range(result.size):
        result[x] += weight * values[x]


@compiled
def shift_rows(
    frame: NDArray[Any],
    first_row: int,
    whole_y: int,
    taps_y: NDArray[Any],
    whole_x: int,
    taps_x: NDArray[Any],
    result: NDArray[Any],
) -> None:
    """Separable interpolation of rows of a frame into `result`; NaN where a tap has no sample.

    Row r of `result` is made of the rows ``first_row + r + whole_y + k`` of the frame, k = 0 ...
    ``taps_y.size - 1``, and likewise along x, with columns of `result` being those of the frame.
    """
    ny, nx = frame.shape
    start = max(0, -whole_x)
    stop = min(nx, nx - (whole_x + taps_x.size - 1))
    row = np.empty(nx, dtype=frame.dtype)
    for r in range(result.shape[0]):
        top = first_row + r + whole_y
        if top < 0 or top + taps_y.size > ny or stop <= start:
            result[r, :] = np.nan
            continue
        _weigh(frame[top], taps_y[0], row)
        for k in range(1, taps_y.size):
            _add_weighed(frame[top + k], taps_y[k], row)
        result[r, :start] = np.nan
        result[r, stop:] = np.nan
        inside = result[r, start:stop]
        _weigh(row[start + whole_x :], taps_x[0], inside)
        for k in range(1, taps_x.size):
            _add_weighed(row[start + whole_x + k :], taps_x[k], inside)


@compiled
def gather(
    frame: NDArray[Any],
    top: NDArray[Any],
    left: NDArray[Any],
    taps_y: NDArray[Any],
    taps_x: NDArray[Any],
    result: NDArray[Any],
) -> None:
    """Separable interpolation at points whose first taps lie at (top, left)."""
    ny, nx = frame.shape
    for point in range(result.size):
        y, x = top[point], left[point]
        if y < 0 or x < 0 or y + taps_y.size > ny or x + taps_x.size > nx:
            result[point] = np.nan
            continue
        total = taps_y[0] * F32(0.0)
        for k in range(taps_y.size):
            row = taps_x[0] * frame[y + k, x]
            for j in range(1, taps_x.size):
                row += taps_x[j] * frame[y + k, x + j]
            total += taps_y[k] * row
        result[point] = total
