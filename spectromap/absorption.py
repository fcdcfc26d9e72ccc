"""From counts to transmission: open area, I0, dark counts, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._numerics import interpolation_variance, robust_std
from spectromap.schema import LOG, InputError, check_stack, component_names, pixel_size

__all__ = ["find_open_area", "i0_from_area", "i0_from_spectrum", "optical_density", "transmission"]

Mask = NDArray[np.bool_]
Array = NDArray[np.float64]

#: Fewer open pixels than this make an I0 whose own noise is felt in every pixel.
FEW_OPEN_PIXELS = 100
#: A median of so many pixels is known well enough to tell outliers.
ENOUGH_PIXELS = 50_000
#: A spread of the open area this many times the photon noise is structure, not noise.
GAIN_PLAUSIBLE = (0.7, 1.4)


def find_open_area(image: NDArray[Any], margin_px: float = 2.0) -> Mask:
    """Pixels where the beam meets no sample: the brightest mode of a mean image.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Mean over frames that were divided by their own brightness; NaN where not measured.
    margin_px : float
        How far to stay away from anything darker (resolution and drift), in pixels.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True in the open area; all False if no bright, flat region stands out.
    """
    finite = np.isfinite(image)
    if finite.sum() < FEW_OPEN_PIXELS:
        return np.zeros(image.shape, dtype=bool)
    level = np.log(np.maximum(np.where(finite, image, np.nanmedian(image)), 1e-12))
    smooth = ndimage.gaussian_filter(level, 1.5)
    low, high = np.percentile(smooth[finite], [0.5, 99.9])
    if not high - low > 1e-9:
        return np.asarray(finite)
    mode, width = _brightest_mode(smooth[finite], level[finite], float(low), float(high))
    near = finite & (np.abs(smooth - mode) < 3.0 * width)
    near = ndimage.binary_opening(near, iterations=1)
    near = ndimage.binary_erosion(near, iterations=max(1, round(margin_px)), border_value=1)
    labels, count = ndimage.label(near)
    if count == 0:
        return np.zeros(image.shape, dtype=bool)
    sizes = ndimage.sum_labels(near, labels, np.arange(1, count + 1))
    keep = 1 + np.flatnonzero(sizes >= max(20.0, 0.02 * sizes.max()))
    return np.asarray(np.isin(labels, keep) & finite)


def _brightest_mode(
    smooth: NDArray[Any], level: NDArray[Any], low: float, high: float
) -> tuple[float, float]:
    """Position and width of the brightest populated peak of the histogram of log brightness."""
    noise = robust_std(level - smooth) / 3.0  # what a Gaussian of 1.5 px leaves of pixel noise
    step = max((high - low) / 400.0, noise / 4.0)
    counts, edges = np.histogram(smooth, bins=np.arange(low - step, high + 2 * step, step))
    density = ndimage.gaussian_filter1d(counts.astype(float), max(1.0, noise / step))
    centres = 0.5 * (edges[1:] + edges[:-1])
    peaks = np.flatnonzero(
        (density >= np.roll(density, 1))
        & (density >= np.roll(density, -1))
        & (density > 0.05 * density.max())
    )
    mode = float(centres[peaks[-1]]) if peaks.size else high
    brighter = smooth[smooth > mode] - mode
    # Nothing but noise is brighter than the open area, so that side alone measures its width.
    width = float(np.sqrt(np.mean(np.minimum(brighter, high - mode) ** 2))) if brighter.size else 0
    return mode, max(width, noise, 1e-4)


@dataclass(frozen=True)
class Placement:
    """Where each frame's features lie, in whole and fractional pixels of the stack's axes."""

    shift_y: Array
    shift_x: Array

    @classmethod
    def from_shifts(cls, shifts: xr.Dataset | None, stack: xr.DataArray) -> Placement:
        """Shifts in pixels of a stack; zero where none are known."""
        if shifts is None:
            zero = np.zeros(stack.sizes["energy"])
            return cls(zero, zero)
        dy, dx = pixel_size(stack)
        return cls(
            np.nan_to_num(shifts["shift_y"].values) / dy,
            np.nan_to_num(shifts["shift_x"].values) / dx,
        )


def intensity(frame: NDArray[Any], quantity: str) -> NDArray[Any]:
    """What is proportional to transmitted intensity: counts, or |A|^2, or exp(-OD)."""
    if quantity == "amplitude":
        return np.asarray(np.abs(frame) ** 2)
    return np.exp(-frame) if quantity == "optical_density" else frame


def _moved(mask: Mask, dy: int, dx: int) -> Mask:
    """The mask of the common frame as it lies in a frame whose features moved by (dy, dx)."""
    result = np.zeros_like(mask)
    target, source = [], []
    for move, size in zip((dy, dx), mask.shape, strict=True):
        target.append(slice(max(0, move), min(size, size + move)))
        source.append(slice(max(0, -move), min(size, size - move)))
    result[tuple(target)] = mask[tuple(source)]
    return result


def i0_from_area(
    stack: xr.DataArray,
    area: Mask,
    shifts: xr.Dataset | None = None,
    dark_counts: float = 0.0,
) -> xr.Dataset:
    """I0 spectrum from an area without sample, followed through the drift.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts or amplitudes.
    area : ndarray of bool, shape (ny, nx)
        The open area in the common frame.
    shifts : Dataset, optional
        As `spectromap.align.register` makes it.
    dark_counts : float
        Counts without light, per pixel and frame.

    Returns
    -------
    Dataset, dims (energy,)
        ``i0`` with dark counts removed, ``i0_errors``, and ``noise``, the variance of a pixel over
        its mean: 1 for counts, the detector gain otherwise.

    Raises
    ------
    InputError
        The area is empty or of another shape than the frames.
    """
    check_stack(stack)
    if area.shape != stack.shape[1:]:
        raise InputError(
            f"the mask has shape {area.shape}, the frames {stack.shape[1:]}",
            where="i0.mask",
            remedy="Save the mask on the pixel grid of the file.",
        )
    if not area.any():
        raise InputError("no pixel is inside", where="i0", remedy="Choose another region or mask.")
    place = Placement.from_shifts(shifts, stack)
    rows = []
    for index in range(stack.sizes["energy"]):
        frame = intensity(np.asarray(stack[index].values), stack.attrs["quantity"])
        inside = _moved(area, round(place.shift_y[index]), round(place.shift_x[index]))
        rows.append(_area_statistics(frame, inside, dark_counts))
    i0, errors, noise = (np.array(column) for column in zip(*rows, strict=True))
    result = xr.Dataset(coords={"energy": stack.energy})
    units = stack.attrs["units"]
    result["i0"] = ("energy", i0, {"units": units, "long_name": "open-area intensity"})
    result["i0_errors"] = ("energy", errors, {"units": units})
    result["noise"] = ("energy", noise, {"units": "1"})
    if (i0 <= 0).any():
        bad = ", ".join(f"{e:.2f}" for e in stack.energy.values[i0 <= 0])
        LOG.warning("I0 is zero at %s eV: these frames are left out", bad)
    return result


def _area_statistics(frame: NDArray[Any], inside: Mask, dark: float) -> tuple[float, float, float]:
    """Mean, its error and variance over mean of an area, spikes and large structure removed."""
    values = frame[inside].astype(float)
    values = values[np.isfinite(values)]
    if values.size < 4:
        return float("nan"), float("nan"), float("nan")
    sample = values[:: 1 + values.size // ENOUGH_PIXELS]
    centre, spread = float(np.median(sample)), robust_std(sample)
    kept = values[np.abs(values - centre) <= max(5.0 * spread, 1e-12)]
    mean = float(kept.mean())
    variance = _pixel_variance(frame, inside, kept)
    noise = variance / mean if mean > 0 else float("nan")
    return mean - dark, float(np.sqrt(kept.var() / kept.size)), noise


def _pixel_variance(frame: NDArray[Any], inside: Mask, kept: NDArray[Any]) -> float:
    """Variance of one pixel from differences of neighbours, blind to slow gradients."""
    both = inside[:, 1:] & inside[:, :-1]
    difference = (frame[:, 1:] - frame[:, :-1])[both].astype(float)
    difference = difference[np.isfinite(difference)]
    if difference.size < 20:
        return float(kept.var())
    difference = difference[:: 1 + difference.size // ENOUGH_PIXELS]
    limit = 6.0 * max(robust_std(difference), 1e-12)
    return float(np.mean(difference[np.abs(difference) <= limit] ** 2) / 2.0)


def i0_from_spectrum(
    spectrum: xr.DataArray, stack: xr.DataArray, bright_level: Array, dark_counts: float = 0.0
) -> xr.Dataset:
    """I0 from a spectrum measured apart, brought to the counts of the stack.

    Parameters
    ----------
    spectrum : DataArray, dims (energy,)
        Counts per dwell, or per ms or s of it; which of them is told by `bright_level`.
    stack : DataArray, dims (energy, y, x)
        With the coordinate ``dwell_time`` in s where the file has it.
    bright_level : ndarray, shape (n_energy,)
        Brightest level of each frame, in counts.
    dark_counts : float
        Counts without light, per pixel and frame.

    Returns
    -------
    Dataset, dims (energy,)
        As `i0_from_area`; errors and noise are NaN, as the file holds none.

    Raises
    ------
    InputError
        The spectrum does not cover the energies.
    """
    energy = stack.energy.values
    own = spectrum.energy.values
    if energy[0] < own[0] - 0.5 or energy[-1] > own[-1] + 0.5:
        raise InputError(
            f"it covers {own[0]:.2f} to {own[-1]:.2f} eV, the stack {energy[0]:.2f} to"
            f" {energy[-1]:.2f} eV",
            where="i0.spectrum",
            remedy="Use an I0 measured over the whole range, or a region of the stack.",
        )
    values = np.interp(energy, own, spectrum.values)
    factors = {"count": np.ones(energy.size)}
    if "dwell_time" in stack.coords:
        dwell = stack["dwell_time"].values
        factors |= {"count/ms": dwell * 1e3, "count/s": dwell}
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = {
            unit: abs(float(np.nanmedian(np.log(values * f / (bright_level - dark_counts)))))
            for unit, f in factors.items()
        }
    unit = min(distance, key=lambda u: distance[u])
    if not distance[unit] < np.log(3.0):
        LOG.warning(
            "i0.spectrum: its level is %.2f times off the brightest pixels in the best reading"
            " (%s); check that it belongs to this stack", np.exp(distance[unit]), unit
        )  # fmt: skip
    LOG.info("i0.spectrum read as %s", unit)
    result = xr.Dataset(coords={"energy": stack.energy}, attrs={"spectrum_units": unit})
    i0 = values * factors[unit]
    nan = np.full(energy.size, np.nan)
    result["i0"] = ("energy", i0, {"units": "count", "long_name": "open-area intensity"})
    result["i0_errors"] = ("energy", nan, {"units": "count"})
    result["noise"] = ("energy", nan.copy(), {"units": "1"})
    return result


def sample_in_open_area(i0: xr.Dataset, references: xr.Dataset) -> float:
    """How strongly an I0 spectrum itself shows the edge of the sample.

    Parameters
    ----------
    i0 : Dataset
        As `i0_from_area` makes it.
    references : Dataset
        As `spectromap.references.reference_set` makes it.

    Returns
    -------
    float
        Height in optical density of the references' white line in ``-ln(I0)`` above a smooth
        source spectrum; zero where it is not significant. The beamline's own I0 does not know the
        sample's edge, so anything but zero is sample in the open area.
    """
    level = i0["i0"].values
    good = np.isfinite(level) & (level > 0)
    energy = references["energy"].values
    names = component_names(references)
    smooth = np.polynomial.chebyshev.chebvander(
        2 * (energy - energy[0]) / max(np.ptp(energy), 1e-9) - 1, 3
    )
    design = np.column_stack([*(references[n].values for n in names), smooth])[good]
    if good.sum() < design.shape[1] + 3:
        return 0.0
    parameters, *_ = np.linalg.lstsq(design, -np.log(level[good]), rcond=None)
    residual = -np.log(level[good]) - design @ parameters
    line = design[:, : len(names)] @ parameters[: len(names)]
    height = float(np.ptp(line))
    significant = height > 5.0 * residual.std() and parameters[: len(names)].sum() > 0
    return height if significant else 0.0


def effective_gain(i0: xr.Dataset, quantity: str) -> float:
    """Variance over mean of the open area: 1 for photon counts, else the gain.

    Parameters
    ----------
    i0 : Dataset
        As `i0_from_area` makes it.
    quantity : str
        What the stack holds, see `spectromap.schema.QUANTITIES`.

    Returns
    -------
    float
        Counts per photon. Where counts look like photons, exactly 1.
    """
    noise = i0["noise"].values
    noise = noise[np.isfinite(noise) & (noise > 0)]
    measured = float(np.median(noise)) if noise.size else float("nan")
    if quantity == "counts":
        if not np.isfinite(measured) or GAIN_PLAUSIBLE[0] < measured < GAIN_PLAUSIBLE[1]:
            return 1.0
        LOG.warning("the open area varies %.2f times as counts do; taken as the gain", measured)
    return measured if np.isfinite(measured) else 1.0


def transmission(
    stack: xr.DataArray,
    i0: xr.Dataset,
    shifts: xr.Dataset | None = None,
    dark_counts: float = 0.0,
    gain: float = 1.0,
) -> xr.Dataset:
    """Transmission of aligned frames and what its noise follows from.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Aligned: see `spectromap.align.apply_shifts`. Counts, amplitudes or optical density.
    i0 : Dataset
        As `i0_from_area` makes it.
    shifts : Dataset, optional
        The shifts that were applied: interpolation averaged that much noise away, and flagged
        frames are left out.
    dark_counts : float
        Counts without light, per pixel and frame.
    gain : float
        Counts per photon, see `effective_gain`.

    Returns
    -------
    Dataset
        ``transmission`` (energy, y, x), not clipped, NaN where not measured; along energy
        ``photons`` in an open pixel, ``dark`` counts over photons, ``variance_factor`` of the
        interpolation, ``i0_relative_errors``.

    Notes
    -----
    ``var(T) = variance_factor (T + dark) / photons``. A reconstructed amplitude has the same law
    with the effective number of photons that its open area shows, as |A|^2 of Poisson data does.
    """
    check_stack(stack)
    quantity = stack.attrs["quantity"]
    dark = dark_counts if quantity == "counts" else 0.0
    level = i0["i0"].values.astype(float)
    usable = np.isfinite(level) & (level > 0)
    if shifts is not None:
        usable &= ~shifts["flagged"].values.astype(bool)
    level = np.where(usable, level, np.nan)
    values = intensity(np.asarray(stack.values), quantity).astype(np.float32)
    scaled = (values - np.float32(dark)) / level[:, None, None].astype(np.float32)
    place = Placement.from_shifts(shifts, stack)
    factor = [
        interpolation_variance(y, x) for y, x in zip(place.shift_y, place.shift_x, strict=True)
    ]
    result = xr.Dataset(coords={"energy": stack.energy, "y": stack.y, "x": stack.x})
    result["transmission"] = (("energy", "y", "x"), scaled, {"units": "1"})
    result["photons"] = ("energy", level / gain, {"units": "count"})
    result["dark"] = ("energy", np.where(usable, dark / level, 0.0), {"units": "1"})
    result["variance_factor"] = ("energy", np.asarray(factor), {"units": "1"})
    relative = np.nan_to_num(i0["i0_errors"].values / level)
    result["i0_relative_errors"] = ("energy", relative, {"units": "1"})
    return result


def optical_density(absorption: xr.Dataset) -> xr.DataArray:
    """Optical density -ln(T), NaN where the transmission is not positive.

    Parameters
    ----------
    absorption : Dataset
        As `transmission` makes it. For a reconstructed amplitude A the transmission is
        |A/A0|^2, so this is -2 ln|A/A0|.

    Returns
    -------
    DataArray, dims (energy, y, x)
    """
    values = absorption["transmission"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        od = np.where(values > 0, -np.log(values), np.nan).astype(np.float32)
    result = absorption["transmission"].copy(data=od)
    result.name = "optical_density"
    result.attrs = {"units": "1", "quantity": "optical_density"}
    return result
