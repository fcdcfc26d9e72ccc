"""Registration: where the sample lay in each frame, found from all frames together.

Contrast turns over across an absorption edge, so no single frame can serve all others as the
reference. Shifts are first measured between many pairs of frames a few energies apart, on images
of their edges, and solved for together by robust least squares; jumps of tens of pixels survive
this. Then shifts, spectrum and image of the whole stack are fitted to its counts by maximum
likelihood, all at once, which is nearly as good as the photons allow and needs no references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap import _align_model as likelihood
from spectromap import _align_pairs as pairs
from spectromap._compiled import compiled
from spectromap._numerics import sample_shifted
from spectromap.schema import LOG, InputError, check_map, check_stack, pixel_size

__all__ = [
    "apply_shifts",
    "bin_frame",
    "binning_for",
    "correct_shifts",
    "given_shifts",
    "register",
    "zero_shifts",
]

Array = NDArray[np.float64]
Frames = NDArray[np.float32]
F32 = np.float32

#: Frames are binned until no side is longer than this: more pixels add nothing but time.
REGISTRATION_SIZE = 1024
#: The pairs are compared on frames binned to at most a quarter of their side, within these limits,
PAIR_SIZES = (96, 128)
#: or to at most this side where they have the last word.
LAST_SIZE = 512
#: and the likelihood is climbed first on frames binned to at most this one.
MIDDLE_SIZE = 256
#: Frames narrower than this are not binned.
LEAST_BINNED = 96
LEAST_SIZE = 8
#: A standard error of this many pixels halves the confidence in a frame.
POOR_ERROR_PX = 0.5
#: The likelihood needs this many frames; fewer are registered by pairs alone.
LEAST_FRAMES = 6
NOMINAL_COUNTS = 1e4
#: What interpolation and an imperfect model leave, whatever the photons; in pixels.
MODEL_ERROR_PX = 0.005
#: Share of the information on shifts that the finest level uses.
INFORMATION_SHARE = 0.97
#: Passes over the pixels at most, on the middle level and on the finest.
MIDDLE_PASSES, FINEST_PASSES = 5, 3
#: Runs of pixels from which curvature and noise are taken, on the finest level and before.
SAMPLED_RUNS = 20
FAST_LAGS = (1, 3, 8)
#: Frames of a reference stack that are used, and frames compared with each of them.
REFERENCE_FRAMES, REFERENCE_PAIRS = 8, 5


def zero_shifts(stack: xr.DataArray) -> xr.Dataset:
    """Shifts of a stack that is aligned already: zero, certain, nothing flagged.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        The stack.

    Returns
    -------
    Dataset, dims (energy,)
        As `register` returns it.
    """
    count = stack.sizes["energy"]
    return _dataset(stack.energy, np.zeros((count, 2)), np.zeros((count, 2)), np.ones(count))


def register(
    stack: xr.DataArray,
    dark_counts: float = 0.0,
    mask: xr.DataArray | None = None,
    reference: xr.DataArray | None = None,
    *,
    enabled: bool = True,
    max_shift_nm: float | None = None,
    lags: tuple[int, ...] = (1, 2, 4, 8, 16),
    refine: bool = True,
    min_confidence: float = 0.3,
    region_nm: tuple[float, float, float, float] | None = None,
    fast: bool = False,
) -> xr.Dataset:
    """Measure the shift of every frame of a stack.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts, amplitudes or optical density; each frame is read once. NaN: no data.
    dark_counts : float
        Counts without light, per pixel and frame.
    mask : DataArray of bool, dims (y, x), optional
        Pixels to look at; on any grid in nm.
    reference : DataArray, dims (energy, y, x) or (y, x), optional
        A stack or an image of the same field whose place is kept: features are shifted to where
        they are in it. Frames of a stack must be aligned among themselves.
    enabled : bool
        False for a stack that is aligned already.
    max_shift_nm : float, optional
        Largest shift between two frames that is looked for; default a third of the field.
    lags : tuple of int
        Distances, in frames, of the pairs that are compared.
    refine : bool
        Fit the whole stack by maximum likelihood after the pairwise solution.
    min_confidence : float
        Frames of less confidence are flagged and left out of the fit.
    region_nm : tuple of float, optional
        y0, y1, x0, x1 in nm, on the axes of the stack: look only there.
    fast : bool
        Fewer pairs, and frames binned once more: half to a quarter of the time.

    Returns
    -------
    Dataset, dims (energy,)
        ``shift_y``, ``shift_x`` in nm: where the features of that frame lie relative to the common
        frame, median zero over the frames kept (with `reference`: relative to it);
        ``shift_y_errors``, ``shift_x_errors`` in nm; ``confidence`` from 0 to 1; ``flagged``.

    Raises
    ------
    InputError
        Not a stack; no frame can be aligned; an empty region or mask; a reference of another
        pixel size.

    References
    ----------
    Robust joint solution: P. J. Huber, Robust Statistics (1981), section 7.8 (iterated weights).
    Likelihood: B. D. Lucas and T. Kanade, Proc. IJCAI 674 (1981), here with Poisson weights and
    for all frames together; see `spectromap._align_model`.
    """
    check_stack(stack)
    if not enabled or (stack.sizes["energy"] == 1 and reference is None):
        return zero_shifts(stack)
    if min(stack.shape[1:]) < LEAST_SIZE:
        LOG.warning("frames of %s pixels are too small to be registered", stack.shape[1:])
        return zero_shifts(stack)
    binning = binning_for(stack.shape)
    if fast and min(stack.shape[1:]) >= binning * LEAST_BINNED:
        binning *= 2
    frames, dark = _load(stack, dark_counts, binning)
    anchor = _Anchor.place(reference, stack, binning)
    allowed = _allowed(stack, mask, region_nm, frames.shape, binning)
    step = np.array(pixel_size(stack)) * binning
    limit = np.array(frames.shape[1:]) / 3.0 if max_shift_nm is None else max_shift_nm / step
    index = pairs.lagged_pairs(len(frames), FAST_LAGS if fast else lags)
    if anchor is not None:
        index = np.concatenate([index, anchor.pairs(stack.energy.values)])
        frames = np.concatenate([frames, anchor.frames])
    job = _Job(frames, dark, allowed, limit, index, min_confidence, fast, anchor)
    shifts, errors, confidence = job.run(refine)
    return _finish(stack, shifts * step, errors * step, confidence, min_confidence, anchor, step)


def _finish(
    stack: xr.DataArray,
    shifts: Array,
    errors: Array,
    confidence: Array,
    least: float,
    anchor: _Anchor | None,
    step: Array,
) -> xr.Dataset:
    """The result, in nm, with a warning about frames that failed."""
    count = stack.sizes["energy"]
    if anchor is not None:
        anchored = confidence[count:] >= least
        if not anchored.any():
            raise InputError(
                "the stack cannot be aligned to the reference",
                where="align.reference",
                remedy="Take a scan of the same field at similar energies, or leave it out.",
            )
        shifts = shifts - np.median(shifts[count:][anchored], axis=0) - anchor.offset * step
    flagged = ~(confidence[:count] >= least)
    result = _dataset(
        stack.energy, shifts[:count], errors[:count], confidence[:count], flagged, anchor is None
    )
    if flagged.any():
        listed = ", ".join(f"{e:.2f}" for e in stack.energy.values[flagged])
        LOG.warning("frames that could not be aligned, left out of the fit: %s eV", listed)
    if flagged.all():
        raise InputError(
            "no frame could be aligned",
            where="align",
            remedy="Check the stack; if it is aligned already, set align: {enabled: false}.",
        )
    return result


def _dataset(
    energy: xr.DataArray,
    shifts: Array,
    errors: Array,
    confidence: Array,
    flagged: NDArray[np.bool_] | None = None,
    centred: bool = True,
) -> xr.Dataset:
    """Shifts in nm as the result holds them, median zero over the frames that are kept."""
    flagged = np.zeros(len(shifts), dtype=bool) if flagged is None else flagged
    if centred and not flagged.all():
        shifts = shifts - np.median(shifts[~flagged], axis=0)
    data: dict[str, Any] = {}
    for k, axis in enumerate("yx"):
        name = f"shift_{axis}"
        text = f"where the features of the frame lie, {axis}"
        data[name] = ("energy", shifts[:, k], {"units": "nm", "long_name": text})
        data[f"{name}_errors"] = ("energy", errors[:, k], {"units": "nm"})
    data["confidence"] = ("energy", np.clip(confidence, 0.0, 1.0), {"units": "1"})
    data["flagged"] = ("energy", flagged, {"units": "1"})
    result = xr.Dataset(data, coords={"energy": energy})
    result.attrs["common_frame"] = "median" if centred else "reference"
    return result


def given_shifts(
    stack: xr.DataArray, table: xr.Dataset | pd.DataFrame | Mapping[str, Any]
) -> xr.Dataset:
    """Shifts measured elsewhere, in the form in which `register` returns its own.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        The stack they are for.
    table : Dataset, DataFrame or mapping of arrays
        ``shift_y``, ``shift_x`` in nm; ``energy`` in eV to find the frames by, else one row a
        frame in order; optionally ``shift_y_errors``, ``shift_x_errors`` in nm.

    Returns
    -------
    Dataset, dims (energy,)
        The given shifts as they are (their zero is kept); confidence one where they are numbers,
        flagged elsewhere.

    Raises
    ------
    InputError
        A column is missing, or a frame of the stack is.
    """
    check_stack(stack)
    columns = {str(name): np.asarray(table[str(name)], dtype=float) for name in table}
    if "energy" not in columns and isinstance(table, xr.Dataset) and "energy" in table.coords:
        columns["energy"] = np.asarray(table["energy"].values, dtype=float)
    missing = [name for name in ("shift_y", "shift_x") if name not in columns]
    if missing:
        raise InputError(
            f"the table has no column {missing[0]!r}",
            where="given shifts",
            remedy="Columns: energy [eV], shift_y [nm], shift_x [nm].",
        )
    rows = _rows_of(stack.energy.values.astype(float), columns)
    shifts = np.stack([columns[f"shift_{a}"][rows] for a in "yx"], axis=1)
    zero = np.zeros(len(columns["shift_y"]))
    errors = np.stack([columns.get(f"shift_{a}_errors", zero)[rows] for a in "yx"], axis=1)
    known = np.isfinite(shifts).all(axis=1)
    shifts[~known] = 0.0
    return _dataset(stack.energy, shifts, errors, known.astype(float), ~known, centred=False)


def _rows_of(energies: Array, columns: dict[str, Array]) -> NDArray[np.intp]:
    """Row of the table for each frame."""
    count = len(columns["shift_y"])
    if "energy" not in columns or (
        count == len(energies) and np.allclose(columns["energy"], energies, atol=0.02)
    ):
        if count != len(energies):
            raise InputError(
                f"the table has {count} rows, the stack {len(energies)} frames",
                where="given shifts",
                remedy="Give one row a frame, or a column 'energy' in eV.",
            )
        return np.arange(count)
    distance = np.abs(columns["energy"][None] - energies[:, None])
    rows = np.argmin(distance, axis=1)
    far = distance[np.arange(len(energies)), rows] > 0.02
    if far.any():
        raise InputError(
            f"the table has no row for the frame at {energies[far][0]:.2f} eV",
            where="given shifts",
            remedy="Give a row for every frame, on the energies of the stack.",
        )
    return np.asarray(rows)


def correct_shifts(
    shifts: xr.Dataset,
    corrections: Mapping[int | float, tuple[float, float]],
    *,
    replace: bool = False,
) -> xr.Dataset:
    """Correct the shifts of single frames by hand.

    Parameters
    ----------
    shifts : Dataset
        As `register` makes it; it is not changed.
    corrections : mapping
        From the frame, its number (int) or its energy in eV (float), to (y, x) in nm, which are
        added to what was measured.
    replace : bool
        Take the numbers instead of what was measured.

    Returns
    -------
    Dataset
        The corrected frames have confidence one and are not flagged any more. If the zero was the
        median frame it is so again.

    Raises
    ------
    InputError
        There is no such frame.
    """
    found = np.stack([shifts["shift_y"].values, shifts["shift_x"].values], axis=1)
    errors = np.stack([shifts[f"shift_{a}_errors"].values for a in "yx"], axis=1)
    confidence, flagged = shifts["confidence"].values.copy(), shifts["flagged"].values.copy()
    for key, change in corrections.items():
        k = frame_number(shifts["energy"].values, key)
        found[k] = np.asarray(change, dtype=float) + (0.0 if replace else found[k])
        errors[k] = np.where(np.isfinite(errors[k]), errors[k], 0.0)
        confidence[k], flagged[k] = 1.0, False
    centred = shifts.attrs.get("common_frame", "median") == "median"
    return _dataset(shifts["energy"], found, errors, confidence, flagged.astype(bool), centred)


def frame_number(energies: Array, key: int | float) -> int:
    """Number of a frame from its number or its energy in eV.

    Parameters
    ----------
    energies : ndarray, shape (n_energy,)
        Energies in eV.
    key : int or float
        A number, or an energy to 0.05 eV.

    Returns
    -------
    int

    Raises
    ------
    InputError
        There is no such frame.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if -len(energies) <= key < len(energies):
            return int(key) % len(energies)
    else:
        k = int(np.argmin(np.abs(energies - key)))
        if abs(energies[k] - key) <= 0.05:
            return k
    raise InputError(
        f"there is no frame {key}",
        where="correct_shifts",
        remedy="Name a frame by its number (int) or its energy in eV (float).",
    )


def apply_shifts(stack: xr.DataArray, shifts: xr.Dataset) -> xr.DataArray:
    """Bring the frames to the common frame, interpolating once.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts, amplitudes or optical density; NaN marks pixels without data.
    shifts : Dataset
        As `register` makes it.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Float; amplitudes come back as their modulus. NaN where a frame has no data; all NaN for
        flagged frames.
    """
    check_stack(stack)
    dy, dx = pixel_size(stack)
    aligned = np.empty(stack.shape, dtype=np.float32)
    for index in range(stack.sizes["energy"]):
        if bool(shifts["flagged"].values[index]):
            aligned[index] = np.nan
            continue
        frame = np.asarray(stack[index].values)
        # The phase of a reconstruction is free from frame to frame: only its modulus is aligned.
        frame = np.abs(frame) if np.iscomplexobj(frame) else frame
        aligned[index] = sample_shifted(
            frame.astype(np.float32, copy=False),
            float(shifts["shift_y"].values[index]) / dy,
            float(shifts["shift_x"].values[index]) / dx,
        )
    return stack.copy(data=aligned)


# ---------------------------------------------------------------- frames


def binning_for(shape: tuple[int, ...]) -> int:
    """Pixels along each side that are joined into one before frames are registered.

    Parameters
    ----------
    shape : tuple of int
        Of a frame or a stack; the last two count.

    Returns
    -------
    int
        A power of two.
    """
    binning = 1
    while max(shape[-2:]) // binning > REGISTRATION_SIZE and min(shape[-2:]) // binning > 16:
        binning *= 2
    return binning


def bin_frame(frame: NDArray[Any], binning: int) -> Frames:
    """Join blocks of pixels of a frame.

    Parameters
    ----------
    frame : ndarray, shape (ny, nx)
        Counts or another intensity; NaN where there is no data.
    binning : int
        Pixels along each side of a block; rows and columns that do not fill one are dropped.

    Returns
    -------
    ndarray of float32, shape (ny // binning, nx // binning)
        Mean of the finite pixels of each block times their number if all were finite; NaN where
        none is.
    """
    values = np.asarray(frame)
    if values.dtype != np.float32:
        values = values.astype(np.float32)
    if binning == 1:
        return values
    result = np.empty((values.shape[0] // binning, values.shape[1] // binning), np.float32)
    _bin(values, binning, result)
    return result


@compiled
def _bin_gaps(rows: NDArray[Any], line: NDArray[Any]) -> None:
    """The same for one row of blocks in which pixels are missing."""
    binning = rows.shape[0]
    for x in range(line.size):
        total, known = F32(0.0), 0
        for dy in range(binning):
            for dx in range(binning):
                value = rows[dy, x * binning + dx]
                if value - value == F32(0.0):
                    total += value
                    known += 1
        line[x] = total * F32(binning * binning / known) if known else np.nan


@compiled
def _join(values: NDArray[Any], binning: int, line: NDArray[Any]) -> None:
    """Sums of neighbouring values."""
    nx = line.size
    if binning == 2:
        for x in range(nx):
            line[x] = values[2 * x] + values[2 * x + 1]
        return
    line[:] = F32(0.0)
    for dx in range(binning):
        for x in range(nx):
            line[x] += values[x * binning + dx]


@compiled
def _bin(frame: NDArray[Any], binning: int, result: NDArray[Any]) -> None:
    """Sums of the finite pixels of blocks, scaled up for those that are missing."""
    ny, nx = result.shape
    total = np.empty(nx * binning, dtype=np.float32)
    for y in range(ny):
        row = frame[y * binning]
        for x in range(total.size):
            total[x] = row[x]
        for dy in range(1, binning):
            row = frame[y * binning + dy]
            for x in range(total.size):
                total[x] += row[x]
        line, gaps = result[y], F32(0.0)
        _join(total, binning, line)
        for x in range(nx):
            gaps += line[x]
        if gaps - gaps != F32(0.0):
            _bin_gaps(frame[y * binning : (y + 1) * binning], line)


@compiled
def _bin_all(frames: NDArray[Any], binning: int, result: NDArray[Any]) -> None:
    """Bin every frame."""
    for k in range(frames.shape[0]):
        _bin(frames[k], binning, result[k])


def _load(stack: xr.DataArray, dark: float, binning: int) -> tuple[Frames, float]:
    """All frames as intensities, binned, without dark counts; and those of a binned pixel."""
    quantity = stack.attrs["quantity"]
    source = stack.data if isinstance(stack.data, np.ndarray) else None
    dark *= binning**2
    if source is not None and binning == 1 and quantity == "counts" and not dark:
        return np.ascontiguousarray(source, dtype=np.float32), 0.0
    count, ny, nx = stack.shape
    frames = np.empty((count, ny // binning, nx // binning), dtype=np.float32)
    if source is not None and source.dtype == np.float32 and quantity == "counts":
        _bin_all(source, binning, frames)
        frames -= F32(dark)
        return frames, dark
    for index in range(count):
        frame = np.asarray(stack[index].values) if source is None else source[index]
        if quantity == "amplitude":
            frame = frame.real**2 + frame.imag**2 if np.iscomplexobj(frame) else frame**2
        elif quantity == "optical_density":
            frame = np.exp(-frame)
        frames[index] = bin_frame(frame, binning)
        if dark:
            frames[index] -= F32(dark)
    if quantity == "counts":
        return frames, dark
    # Not counts: put them on a scale on which the square root of a value is a small error.
    bright = float(np.nanpercentile(frames[:: max(count // 8, 1), ::4, ::4], 90))
    frames *= F32(NOMINAL_COUNTS / max(bright, 1e-30))
    return frames, 0.0


def _halved(frames: Frames) -> Frames:
    """Frames with blocks of 2 x 2 pixels joined."""
    count, ny, nx = frames.shape
    result = np.empty((count, ny // 2, nx // 2), dtype=np.float32)
    _bin_all(frames, 2, result)
    return result


def _allowed(
    stack: xr.DataArray,
    mask: xr.DataArray | None,
    region: tuple[float, float, float, float] | None,
    shape: tuple[int, ...],
    binning: int,
) -> NDArray[np.bool_] | None:
    """Pixels of the binned frames that may be looked at; None for all."""
    if mask is None and region is None:
        return None
    centres = []
    for axis, count in zip("yx", shape[1:], strict=True):
        values = np.asarray(stack[axis].values, dtype=float)[: count * binning]
        centres.append(values.reshape(count, binning).mean(axis=1))
    y, x = centres
    allowed = np.ones((len(y), len(x)), dtype=bool)
    if region is not None:
        y0, y1, x0, x1 = region
        allowed &= ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None]
    if mask is not None:
        check_map(mask, name="align.mask")
        near = mask.astype(float).interp(y=y, x=x, method="nearest")
        allowed &= near.fillna(0.0).values > 0.5
    if allowed.sum() < LEAST_SIZE**2:
        raise InputError(
            "region and mask leave fewer than 64 pixels",
            where="align.region_nm",
            remedy=f"The stack covers y {y[0]:.0f} to {y[-1]:.0f}, x {x[0]:.0f} to {x[-1]:.0f} nm.",
        )
    return allowed


# ---------------------------------------------------------------- a reference of the same field


@dataclass
class _Anchor:
    """Frames of a reference on the pixels of the stack.

    Attributes
    ----------
    frames : ndarray, shape (frame, y, x)
    energies : ndarray, shape (frame,)
        NaN if not known.
    offset : ndarray, shape (2,)
        What the pixels of the reference are off those of the stack, below half a pixel.
    """

    frames: Frames
    energies: Array
    offset: Array

    @classmethod
    def place(
        cls, reference: xr.DataArray | None, stack: xr.DataArray, binning: int
    ) -> _Anchor | None:
        """Put a reference stack or image on the grid of the stack, by its coordinates."""
        if reference is None:
            return None
        energies = np.array([np.nan])
        attrs = {"quantity": stack.attrs["quantity"], **reference.attrs}
        if reference.ndim == 2:
            check_map(reference, name="align.reference")
            reference = reference.expand_dims(energy=[0.0])
            reference["energy"].attrs["units"] = "eV"
        else:
            last = reference.sizes["energy"] - 1
            chosen = np.unique(np.linspace(0, last, REFERENCE_FRAMES).round().astype(int))
            reference = reference[chosen]
            energies = reference.energy.values.astype(float)
        reference = reference.assign_attrs(attrs)
        check_stack(reference, name="align.reference")
        step, own = np.array(pixel_size(stack)), np.array(pixel_size(reference))
        if not np.allclose(own, step, rtol=2e-3):
            raise InputError(
                f"pixels of {own[0]:g} x {own[1]:g} nm, the stack's {step[0]:g} x {step[1]:g}",
                where="align.reference",
                remedy="Resample the reference to the pixels of the stack.",
            )
        origin = [float(reference[a].values[0] - stack[a].values[0]) for a in "yx"]
        first = np.round(np.array(origin) / step).astype(int)
        whole = np.full((reference.shape[0], *stack.shape[1:]), np.nan, dtype=np.float32)
        frames, _ = _load(reference, 0.0, 1)
        here, there = [], []
        for start, size, room in zip(first, frames.shape[1:], whole.shape[1:], strict=True):
            here.append(slice(max(start, 0), max(min(start + size, room), 0)))
            there.append(slice(max(-start, 0), max(min(size, room - start), 0)))
        whole[:, here[0], here[1]] = frames[:, there[0], there[1]]
        binned = np.stack([bin_frame(frame, binning) for frame in whole])
        return cls(binned, energies, (np.array(origin) / step - first) / binning)

    def pairs(self, energies: Array) -> NDArray[np.intp]:
        """Each reference frame with the frames of the stack that are nearest in energy."""
        count, found = len(energies), []
        number = min(count, REFERENCE_PAIRS if len(self.frames) > 1 else 4 * REFERENCE_PAIRS)
        for k, energy in enumerate(self.energies):
            near = (
                np.argsort(np.abs(energies - energy))[:number]
                if np.isfinite(energy)
                else np.unique(np.linspace(0, count - 1, number).astype(int))
            )
            found += [(i, count + k) for i in near]
        found += [(count + k, count + k + 1) for k in range(len(self.frames) - 1)]
        return np.array(found)


# ---------------------------------------------------------------- the measurement


@dataclass
class _Job:
    """One registration: pairs on coarse frames, then the likelihood on finer and finer ones."""

    frames: Frames
    dark: float
    allowed: NDArray[np.bool_] | None
    limit: Array
    index: NDArray[np.intp]
    min_confidence: float
    fast: bool
    anchor: _Anchor | None

    def run(self, refine: bool) -> tuple[Array, Array, Array]:
        """Shifts and errors (frame, 2) in pixels of the frames, confidence (frame,)."""
        refine &= len(self.frames) >= LEAST_FRAMES
        levels = self._levels(PAIR_SIZES if refine else (LAST_SIZE, LAST_SIZE))
        coarse = 2.0 ** (len(levels) - 1)
        shifts, errors, confidence = self._pairs(levels[-1], coarse)
        usable = confidence > self.min_confidence
        if refine and usable.sum() >= LEAST_FRAMES:
            refined = self._likeliest(levels, shifts, usable)
            # A frame that leaves the place where the pairs saw it follows something else.
            far = np.hypot(*(refined.shifts - shifts).T) > max(3.0, 1.5 * coarse)
            lost = far | ~np.isfinite(refined.errors).all(axis=1)
            shifts = np.where(lost[:, None], shifts, refined.shifts)
            errors = np.where(lost[:, None], np.inf, refined.errors)
            confidence = np.minimum(confidence, np.where(lost, 0.0, refined.agreement))
        return shifts, errors, confidence / (1.0 + (errors.max(axis=1) / POOR_ERROR_PX) ** 2)

    def _levels(self, limits: tuple[int, int]) -> list[Frames]:
        """The frames, and binned once, twice ... until they are small enough for the pairs."""
        levels = [self.frames]
        small = min(max(max(self.frames.shape[1:]) // 4, limits[0]), limits[1])
        while min(levels[-1].shape[1:]) >= LEAST_BINNED and (
            (len(levels) == 1 and limits == PAIR_SIZES) or max(levels[-1].shape[1:]) > small
        ):
            levels.append(_halved(levels[-1]))
        return levels

    def _pairs(self, frames: Frames, coarse: float) -> tuple[Array, Array, Array]:
        """Shifts, errors and consistency from pairs, in pixels of the finest level."""
        weight = None
        if self.allowed is not None:
            blurred = ndimage.gaussian_filter(_coarsened(self.allowed, frames.shape), 1.5)
            weight = blurred.astype(np.float32)
        limit = self.limit / coarse
        correlator = pairs.Correlator(frames.shape[1:], (limit[0], limit[1]), weight)
        smoothings = pairs.clearest(frames, correlator)
        shifts, errors, consistency = pairs.pairwise(frames, self.index, correlator, smoothings)
        return shifts * coarse, errors * coarse, consistency

    def _likeliest(
        self, levels: list[Frames], shifts: Array, usable: NDArray[np.bool_]
    ) -> likelihood.Fit:
        """Shifts from the likelihood, on a middle level and then on the finest."""
        level, spectrum = likelihood.first_guess(levels[-1])
        usable = usable & (level > 0)
        last = len(levels) - 1
        middle = 0 if self.fast else min(last, 1)
        while middle < last and max(levels[middle].shape[1:]) > MIDDLE_SIZE:
            middle += 1
        model = self._model(levels[middle], shifts / 2**middle, spectrum, usable)
        model.level = level / 4.0 ** (last - middle)
        runs = likelihood.all_runs(model.image.shape)
        model.begin(runs)
        climbed = likelihood.climb(model, runs, MIDDLE_PASSES, SAMPLED_RUNS // 2)
        if middle:
            information = _spread(model.information(), 2**middle, self.frames.shape)
            runs = likelihood.telling_runs(information, INFORMATION_SHARE)
            finest = self._model(self.frames, model.shifts * 2**middle, model.spectrum, usable)
            finest.level = model.level / 4.0**middle
            finest.begin(likelihood.with_neighbours(runs, self.frames.shape[1]))
            sampled = SAMPLED_RUNS * max(1, max(self.frames.shape[1:]) // MIDDLE_SIZE)
            climbed = likelihood.climb(finest, runs, FINEST_PASSES, sampled)
        fit = climbed.fit()
        fit.errors = np.hypot(fit.errors, MODEL_ERROR_PX)
        fit.shifts += np.median((shifts - fit.shifts)[usable], axis=0)
        return fit

    def _model(
        self, frames: Frames, shifts: Array, spectrum: Array, usable: NDArray[np.bool_]
    ) -> likelihood.Model:
        """Model of one level."""
        allowed = None if self.allowed is None else _coarsened(self.allowed, frames.shape) > 0.5
        dark = self.dark * (self.frames.shape[1] // frames.shape[1]) ** 2
        level = np.ones(len(frames))
        return likelihood.Model(frames, shifts, spectrum, level, dark, usable, allowed)


def _coarsened(values: NDArray[np.bool_], shape: tuple[int, ...]) -> Frames:
    """Share of true pixels in the blocks of a coarser level."""
    factor = values.shape[0] // shape[1]
    return bin_frame(values.astype(np.float32), factor) / F32(factor**2)


def _spread(values: Frames, factor: int, shape: tuple[int, ...]) -> Frames:
    """Values of a coarser level on the pixels of a finer one, zero where it has none."""
    result = np.zeros(shape[1:], dtype=np.float32)
    fine = values.repeat(factor, axis=0).repeat(factor, axis=1)
    result[: fine.shape[0], : fine.shape[1]] = fine
    return result
