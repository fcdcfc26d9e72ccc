"""Phase of ptychographic stacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap.explore._pixels import Array, Float32, Mask, Region, as_mask
from spectromap.schema import LOG, InputError, check_stack, pixel_size

#: Phases that come this close to +-pi have probably wrapped.
WRAP_LIMIT = 2.8


def phase(stack: xr.DataArray, open_area: Region, shifts: xr.Dataset | None = None) -> xr.DataArray:
    """Phase of a reconstructed object relative to the open area.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Complex transmission, `attrs["quantity"]` is ``amplitude``; lazy or not.
    open_area : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1)
        Where there is no sample, in the common frame.
    shifts : Dataset, optional
        As `spectromap.align.register` makes it: the area follows the drift.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Phase in rad, float32, on the frames as they were recorded, with the sign that the
        reconstruction has. NaN where a frame has no data, and throughout a frame whose open area
        has none.

    Raises
    ------
    InputError
        Not a complex stack, or an area without pixels.

    Notes
    -----
    A reconstruction fixes the phase up to a constant and, as the probe may sit off its centre in
    the Fourier plane, a linear ramp. Both are taken from the open area: the ramp first from the
    phase steps between neighbouring pixels, which cannot wrap, then offset and ramp together by
    least squares. Where phases come near +-pi they are unwrapped (M. A. Herraez et al., Appl. Opt.
    41, 7437 (2002)). The ramp is extrapolated from the area, so one that surrounds the sample is
    worth more than a larger one beside it.
    """
    return phase_contrast(stack, open_area, shifts)["phase"]


def phase_contrast(
    stack: xr.DataArray, open_area: Region, shifts: xr.Dataset | None = None
) -> xr.Dataset:
    """Phase and optical density of a reconstructed object, side by side.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Complex transmission A, as for `phase`.
    open_area : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1)
        Where there is no sample, in the common frame.
    shifts : Dataset, optional
        As `spectromap.align.register` makes it: the area follows the drift.

    Returns
    -------
    Dataset
        ``phase`` (energy, y, x) in rad as `phase` gives it; ``optical_density`` (energy, y, x),
        ``-2 ln|A/A0|`` with the mean of ``|A0|^2`` from the open area; ``phase_errors`` (energy)
        in rad, the standard deviation of a pixel in the open area. Where the sample absorbs, the
        noise grows as ``|A0/A|``.

    Raises
    ------
    InputError
        Not a complex stack, or an area without pixels.
    """
    check_stack(stack, ("amplitude",))
    if not np.iscomplexobj(stack):
        raise InputError("it holds moduli only, no phase", where="stack")
    area = as_mask(open_area, stack.shape[1:], "open_area")
    if not area.any():
        raise InputError("no pixel is inside", where="open_area")
    angle = np.empty(stack.shape, np.float32)
    density = np.empty(stack.shape, np.float32)
    noise = np.empty(stack.sizes["energy"])
    for index in range(stack.sizes["energy"]):
        frame = np.asarray(stack[index].values)
        inside = _followed(area, stack, shifts, index) & np.isfinite(frame) & (frame != 0)
        if inside.sum() < 3:
            LOG.warning("the open area has no data at %.2f eV", float(stack.energy[index]))
            angle[index], density[index], noise[index] = np.nan, np.nan, np.nan
            continue
        angle[index] = _phase_of_frame(frame, inside)
        noise[index] = float(np.std(angle[index][inside], dtype=float))
        light = np.abs(frame) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            density[index] = -np.log(light / light[inside].mean(dtype=float))
    density[~np.isfinite(density)] = np.nan
    result = xr.Dataset(coords={name: stack[name] for name in ("energy", "y", "x")})
    dims = ("energy", "y", "x")
    result["phase"] = (dims, angle, {"units": "rad", "long_name": "phase"})
    result["phase_errors"] = ("energy", noise, {"units": "rad"})
    result["optical_density"] = (
        dims,
        density,
        {"units": "1", "quantity": "optical_density", "long_name": "optical density"},
    )
    return result


def _followed(area: Mask, stack: xr.DataArray, shifts: xr.Dataset | None, index: int) -> Mask:
    """The area of the common frame as it lies in one frame."""
    if shifts is None:
        return area
    steps = [
        round(float(np.nan_to_num(shifts[name].values[index])) / step)
        for name, step in zip(("shift_y", "shift_x"), pixel_size(stack), strict=True)
    ]
    moved = ndimage.shift(area.astype(np.uint8), steps, order=0, mode="constant", cval=0)
    return np.asarray(moved, dtype=bool)


def _phase_of_frame(frame: NDArray[Any], inside: Mask) -> Float32:
    """Phase of a frame without the offset and the ramp of its open area."""
    known = np.isfinite(frame)
    unit = np.where(known, frame, 0.0).astype(np.complex128)
    unit /= np.maximum(np.abs(unit), 1e-300)
    y, x = (np.arange(n, dtype=float) for n in frame.shape)
    steps_y = (unit[1:] * unit[:-1].conj())[inside[1:] & inside[:-1]].sum()
    steps_x = (unit[:, 1:] * unit[:, :-1].conj())[inside[:, 1:] & inside[:, :-1]].sum()
    ramp = np.angle(steps_y) * y[:, None] + np.angle(steps_x) * x
    for _ in range(2):
        flat = unit * np.exp(-1j * ramp)
        centre = np.angle(flat[inside].sum())
        ramp = ramp + centre + _plane(np.angle(flat * np.exp(-1j * centre)), inside)
    angle = np.angle(unit * np.exp(-1j * ramp))
    if np.abs(angle[known]).max() > WRAP_LIMIT:
        angle = _unwrapped(angle, known, inside)
    angle -= angle[inside].mean()
    return np.where(known, angle, np.nan).astype(np.float32)


def _plane(angle: Array, inside: Mask) -> Array:
    """Plane through the phases of an area, as an image."""
    y, x = np.nonzero(inside)
    design = np.column_stack([np.ones(y.size), y - y.mean(), x - x.mean()])
    (offset, by_y, by_x), *_ = np.linalg.lstsq(design, angle[inside], rcond=None)
    rows, columns = (np.arange(n, dtype=float) for n in angle.shape)
    return np.asarray(offset + by_y * (rows - y.mean())[:, None] + by_x * (columns - x.mean()))


def _unwrapped(angle: Array, known: Mask, inside: Mask) -> Array:
    """Phase without jumps of 2 pi, zero in the open area."""
    from skimage.restoration import unwrap_phase

    unwrap: Any = unwrap_phase
    smooth = np.ma.filled(unwrap(np.ma.array(angle, mask=~known), rng=0), np.nan)
    turns = np.round(np.median(smooth[inside]) / (2 * np.pi))
    return np.asarray(smooth - 2 * np.pi * turns)
