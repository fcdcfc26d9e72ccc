"""What is wrong with the counts: dead and saturated pixels, spikes, frames without beam."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap.schema import LOG, check_stack

__all__ = ["clean_frames", "find_defects"]

#: A frame this much darker than the median frame has lost the beam.
DUMP_FRACTION = 0.05
#: So many pixels at exactly the largest value of the stack mean that the counter was full.
CEILING_PIXELS = 8
#: A pixel this many photon-noise standard deviations above all its neighbours is a spike.
SPIKE_SIGMA = 12.0


def find_defects(stack: xr.DataArray) -> xr.Dataset:
    """Pixels and frames that carry no usable counts; each frame is read once.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts, amplitudes or optical density.

    Returns
    -------
    Dataset
        ``dead`` and ``saturated`` (y, x), ``lost`` (energy): frames without beam or data,
        ``brightness`` (energy): 99th percentile of each frame; the attribute ``ceiling`` is the
        count from which a sample is saturated (infinite if none is), ``negative_samples`` and
        ``missing_samples`` count what was found.
    """
    check_stack(stack)
    shape = stack.shape[1:]
    counts = stack.attrs["quantity"] == "counts"
    dark = np.zeros(shape, dtype=np.int32)
    missing = np.zeros(shape, dtype=np.int32)
    brightness = np.zeros(stack.sizes["energy"])
    tops: list[tuple[float, int]] = []
    negative = 0
    for index in range(stack.sizes["energy"]):
        frame = np.asarray(stack[index].values)
        frame = np.abs(frame) if np.iscomplexobj(frame) else frame
        finite = np.isfinite(frame)
        missing += ~finite
        if not finite.any():
            tops.append((np.nan, 0))
            continue
        brightness[index] = np.percentile(frame[finite], 99)
        top = float(frame[finite].max())
        tops.append((top, int((frame == top).sum())))
        if counts:
            negative += int((frame[finite] < 0).sum())
            dark += finite & (frame <= 0)
    lost = _lost_frames(brightness, counts)
    kept = max(int((~lost).sum()), 1)
    dead = (missing >= stack.sizes["energy"]) | (dark - int(lost.sum()) >= kept)
    ceiling = _ceiling(tops) if counts else np.inf
    saturated = np.zeros(shape, dtype=bool)
    if np.isfinite(ceiling):
        for index in range(stack.sizes["energy"]):
            saturated |= np.asarray(stack[index].values) >= ceiling
    result = xr.Dataset(coords={"energy": stack.energy, "y": stack.y, "x": stack.x})
    result["dead"] = (("y", "x"), dead, {"units": "1"})
    result["saturated"] = (("y", "x"), saturated, {"units": "1"})
    result["lost"] = ("energy", lost, {"units": "1"})
    result["brightness"] = ("energy", brightness, {"units": stack.attrs["units"]})
    result.attrs |= {
        "ceiling": float(ceiling),
        "negative_samples": negative,
        "missing_samples": int(missing.sum()),
    }
    _tell(result, stack)
    return result


def _lost_frames(brightness: NDArray[np.float64], counts: bool) -> NDArray[np.bool_]:
    """Frames without beam; optical densities have no brightness to judge by."""
    if not counts:
        return np.asarray(brightness == 0)
    level = np.median(brightness[brightness > 0]) if (brightness > 0).any() else 0.0
    return np.asarray((brightness <= DUMP_FRACTION * level) | (brightness <= 0))


def _ceiling(tops: list[tuple[float, int]]) -> float:
    """Largest count of the stack if so many samples share it that it must be a limit."""
    values = np.array([top for top, _ in tops])
    if not np.isfinite(values).any():
        return float("inf")
    highest = float(np.nanmax(values))
    pixels = sum(count for top, count in tops if top == highest)
    # Photon counts spread; a value that many of the brightest share is where counting ended.
    expected = 1.0 + 2.0 * (values == highest).sum()
    return highest if highest > 0 and pixels > max(CEILING_PIXELS, expected) else float("inf")


def _tell(defects: xr.Dataset, stack: xr.DataArray) -> None:
    """Say what was found."""
    where = stack.attrs.get("source_file", "stack")
    lost = defects["lost"].values
    findings = [
        (lost.sum(), "frames without beam, left out: " + _energies(stack, lost)),
        (defects["dead"].values.sum(), "dead pixels"),
        (defects["saturated"].values.sum(), f"saturated pixels ({defects.attrs['ceiling']:g})"),
        (defects.attrs["negative_samples"], "negative counts, taken as missing"),
        (defects.attrs["missing_samples"], "samples without data"),
    ]
    for count, text in findings:
        if count:
            LOG.warning("%s: %d %s", where, int(count), text)


def _energies(stack: xr.DataArray, chosen: NDArray[np.bool_]) -> str:
    listed = ", ".join(f"{e:.2f}" for e in stack.energy.values[chosen][:10])
    return f"{listed} eV"


def clean_frames(stack: xr.DataArray, defects: xr.Dataset) -> Iterator[NDArray[np.generic]]:
    """Frames one by one with unusable samples set to NaN.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        The stack that `find_defects` saw.
    defects : Dataset
        What it found.

    Yields
    ------
    ndarray, shape (ny, nx)
        float32 or complex64.
    """
    dead, lost = defects["dead"].values, defects["lost"].values
    ceiling = float(defects.attrs["ceiling"])
    counts = stack.attrs["quantity"] == "counts"
    for index in range(stack.sizes["energy"]):
        frame = np.array(stack[index].values)
        if lost[index]:
            frame[:] = np.nan
        frame[dead] = np.nan
        if counts:
            with np.errstate(invalid="ignore"):
                frame[(frame < 0) | (frame >= ceiling)] = np.nan
            frame[_spikes(frame)] = np.nan
        yield frame


def _spikes(frame: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Single pixels far above everything around them: cosmic rays, electronic spikes."""
    values = np.nan_to_num(np.asarray(frame, dtype=np.float32))
    footprint = np.ones((3, 3), dtype=bool)
    footprint[1, 1] = False
    highest = ndimage.maximum_filter(values, footprint=footprint, mode="nearest")
    limit = highest + SPIKE_SIGMA * np.sqrt(np.maximum(highest, 1.0))
    return np.asarray(values > np.maximum(limit, 1.5 * highest))
