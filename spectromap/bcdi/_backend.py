"""Where arrays live and who transforms them: scipy, pyFFTW, CuPy or PyTorch.

Phasing is written once, on the operations of `Backend`. On the processor the two passes over the
measured grid are compiled loops; elsewhere they are the same formulas in the array API.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft as scipy_fft

from spectromap._compiled import compiled
from spectromap.schema import InputError

#: Planes worked on together on the processor: what stays in the second-level cache.
CACHE_BYTES = 1 << 19
TINY = np.float32(1e-18)

#: Names that `get_backend` knows, the first that works being the default on a machine without GPU.
BACKENDS = ("pyfftw", "scipy", "cupy", "torch")


@dataclass(frozen=True)
class Backend:
    """Operations that phasing is made of.

    Attributes
    ----------
    name : str
        One of `BACKENDS`.
    xp : module
        Array namespace.
    fft, ifft : callable
        ``(array, axis)``, complex64 in and out, without factor forward and with 1/n backward; what
        is given may be overwritten.
    rfftn, irfftn : callable
        Of a whole real volume; back, ``(spectrum, shape)``.
    intensity : callable
        ``(field, out)``: squared modulus.
    project : callable
        ``(field, intensity, amplitude, factors, other) -> residual``; see `project`.
    load, fetch : callable
        From numpy and back to it.
    block_bytes : int
        Bytes of a field that are worked on together.
    """

    name: str
    xp: Any
    fft: Callable[[Any, int], Any]
    ifft: Callable[[Any, int], Any]
    rfftn: Callable[[Any], Any]
    irfftn: Callable[[Any, tuple[int, ...]], Any]
    intensity: Callable[[Any, Any], None]
    project: Callable[[Any, Any, Any, tuple[float, ...], Any], Any]
    load: Callable[[NDArray[Any]], Any]
    fetch: Callable[[Any], NDArray[Any]]
    block_bytes: int = CACHE_BYTES


def get_backend(name: str | None = None) -> Backend:
    """Choose where to phase.

    Parameters
    ----------
    name : {"scipy", "pyfftw", "cupy", "torch"}, optional
        Default: a GPU if CuPy or PyTorch finds one, else pyFFTW if installed, else scipy.

    Returns
    -------
    Backend

    Raises
    ------
    InputError
        No such backend, or not installed.
    """
    if name is None:
        return _default()
    makers = {"scipy": _scipy, "pyfftw": _pyfftw, "cupy": _cupy, "torch": _torch}
    if name not in makers:
        raise InputError(
            f"there is no backend {name!r}", where="backend", remedy=f"Known: {', '.join(makers)}."
        )
    if find_spec(name) is None:
        raise InputError(
            f"{name} is not installed", where="backend", remedy="Install it, or take scipy."
        )
    return makers[name]()


def _default() -> Backend:
    if find_spec("cupy") is not None and import_module("cupy").cuda.is_available():
        return _cupy()
    if find_spec("torch") is not None and import_module("torch").cuda.is_available():
        return _torch()
    return _pyfftw() if find_spec("pyfftw") is not None else _scipy()


def _on_processor(name: str, module: Any) -> Backend:
    return Backend(
        name=name,
        xp=np,
        fft=lambda values, axis: module.fft(values, axis=axis, overwrite_x=True, workers=1),
        ifft=lambda values, axis: module.ifft(values, axis=axis, overwrite_x=True, workers=1),
        rfftn=lambda values: module.rfftn(values, workers=1),
        irfftn=lambda values, shape: module.irfftn(values, shape, workers=1),
        intensity=_intensity_compiled,
        project=_project_compiled,
        load=np.asarray,
        fetch=np.asarray,
    )


def _scipy() -> Backend:
    return _on_processor("scipy", scipy_fft)


def _pyfftw() -> Backend:
    module = import_module("pyfftw.interfaces.scipy_fft")
    import_module("pyfftw.interfaces.cache").enable()
    return _on_processor("pyfftw", module)


def _cupy() -> Backend:
    xp = import_module("cupy")
    return in_array_api("cupy", xp, load=xp.asarray, fetch=xp.asnumpy)


def _torch() -> Backend:
    xp = import_module("torch")
    device = "cuda" if xp.cuda.is_available() else "cpu"
    return in_array_api(
        "torch",
        xp,
        load=lambda values: xp.asarray(values, device=device),
        fetch=lambda values: np.asarray(values.cpu().numpy()),
    )


def in_array_api(
    name: str,
    xp: Any,
    load: Callable[[NDArray[Any]], Any] = np.asarray,
    fetch: Callable[[Any], NDArray[Any]] = np.asarray,
) -> Backend:
    """Backend of any array namespace, in the formulas of the array API.

    Parameters
    ----------
    name : str
        What it is called.
    xp : module
        Array namespace with ``fft``.
    load, fetch : callable
        From numpy and back to it.

    Returns
    -------
    Backend
        The whole volume is worked on at once.
    """
    return Backend(
        name=name,
        xp=xp,
        fft=lambda values, axis: xp.fft.fftn(values, None, (axis,)),
        ifft=lambda values, axis: xp.fft.ifftn(values, None, (axis,)),
        rfftn=xp.fft.rfftn,
        irfftn=lambda values, shape: xp.fft.irfftn(values, shape, (0, 1, 2)),
        intensity=_intensity,
        project=partial(project, xp),
        load=load,
        fetch=fetch,
        block_bytes=1 << 62,
    )


def _intensity(field: Any, out: Any) -> None:
    out[...] = field.real**2 + field.imag**2


def project(
    xp: Any, field: Any, intensity: Any, amplitude: Any, factors: tuple[float, ...], other: Any
) -> Any:
    """Set the modulus of a field, and combine what was and what becomes of it in two ways.

    With P the field of the measured modulus, ``other = factors[2] field + factors[3] P``, and then
    ``field = factors[0] field + factors[1] P``, in place.

    Parameters
    ----------
    xp : module
        Array namespace.
    field : array of complex64
        Overwritten.
    intensity : array of float32
        What the detector would have seen of this field.
    amplitude : array of float32
        Square root of the counts; negative where nothing was measured: there P is the field.
    factors : tuple of 4 float
        As above.
    other : array of complex64
        Overwritten.

    Returns
    -------
    float
        Sum of the squared differences of modulus over what was measured.
    """
    modulus = xp.sqrt(intensity)
    measured = amplitude >= 0
    ratio = xp.where(
        measured, amplitude / xp.clip(modulus, float(TINY), None), xp.ones_like(modulus)
    )
    difference = xp.where(measured, modulus - amplitude, xp.zeros_like(modulus))
    other[...] = field * (factors[2] + factors[3] * ratio)
    field *= factors[0] + factors[1] * ratio
    return xp.sum(difference * difference)


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    """Rows of float32; the two parts of a complex number lie side by side."""
    return values.view(np.float32).reshape(-1, values.shape[-1] * values.itemsize // 4)


def _intensity_compiled(field: NDArray[Any], out: NDArray[Any]) -> None:
    _intensity_loop(_rows(field), _rows(out))


def _project_compiled(
    field: NDArray[Any],
    intensity: NDArray[Any],
    amplitude: NDArray[Any],
    factors: tuple[float, ...],
    other: NDArray[Any],
) -> float:
    sums = np.zeros(field.shape[-1], dtype=np.float32)
    four = np.asarray(factors, dtype=np.float32)
    _project_loop(_rows(field), _rows(intensity), _rows(amplitude), four, _rows(other), sums)
    return float(np.sum(sums, dtype=np.float64))


@compiled
def _intensity_loop(field: NDArray[Any], out: NDArray[Any]) -> None:
    for row in range(out.shape[0]):
        values, result = field[row], out[row]
        for x in range(result.size):
            re, im = values[2 * x], values[2 * x + 1]
            result[x] = re * re + im * im


@compiled
def _project_loop(
    field: NDArray[Any],
    intensity: NDArray[Any],
    amplitude: NDArray[Any],
    factors: NDArray[Any],
    other: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    """`project` row by row; every column has its own sum, so that columns go side by side."""
    keep, take, keep_other, take_other = factors[0], factors[1], factors[2], factors[3]
    for row in range(intensity.shape[0]):
        values, seen, wanted, second = field[row], intensity[row], amplitude[row], other[row]
        for x in range(seen.size):
            modulus = np.sqrt(seen[x])
            target = wanted[x] if wanted[x] >= np.float32(0.0) else modulus
            ratio = np.float32(1.0)
            if wanted[x] >= np.float32(0.0):
                ratio = target / max(modulus, TINY)
            sums[x] += (modulus - target) * (modulus - target)
            first = keep + take * ratio
            then = keep_other + take_other * ratio
            re, im = values[2 * x], values[2 * x + 1]
            second[2 * x] = re * then
            second[2 * x + 1] = im * then
            values[2 * x] = re * first
            values[2 * x + 1] = im * first
