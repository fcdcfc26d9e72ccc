"""Spectra of regions, and their differences."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from spectromap.explore._pixels import Array, Float32, Index, Mask, Pixels, Region, as_mask
from spectromap.schema import LOG, InputError

#: Counts that a logarithm is taken of: what is left of its bias is under 0.001.
ENOUGH_COUNTS = 25.0
MOST_THICKNESS_CLASSES = 64


def region_spectrum(
    absorption: xr.Dataset,
    region: Region,
    *,
    estimator: Literal["grouped", "mean_density", "mean_transmission"] = "grouped",
) -> xr.Dataset:
    """Mean optical density of a region, with its errors.

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it, in memory or lazy.
    region : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1)
        The pixels; a tuple is in pixels, half open.
    estimator : {"grouped", "mean_density", "mean_transmission"}
        See the notes.

    Returns
    -------
    Dataset
        ``optical_density`` (energy), NaN at frames without I0; ``optical_density_errors`` of the
        photons of the region; ``optical_density_systematic`` of I0, which every region of the
        stack shares; ``region`` (y, x), the pixels used. Attributes ``pixel_count``, ``estimator``
        and ``group_count``.

    Raises
    ------
    InputError
        No absorption data set, a region outside the field, or one without a pixel that was
        measured in every usable frame.

    Notes
    -----
    The logarithm of a noisy transmission is biased: ``<-ln T>`` is above the truth by var(OD)/2,
    0.1 at 5 counts. The logarithm of a mean transmission is biased where thickness varies: it is
    below the mean optical density by half the variance of the true optical density in the region.

    - ``mean_density``: the mean of -ln T, less var(OD)/2 pixel by pixel. Right from about 10 counts
      a pixel, whatever the thickness does. Pixels without positive transmission drop out.
    - ``mean_transmission``: -ln of the mean T. Right for any counts in a region of even thickness.
    - ``grouped``: pixels of like mean transmission are put into groups with at least 25 counts at
      the darkest energy; the logarithm is taken of each group's mean, corrected as above, and
      averaged. With many counts a group is one pixel, with few it is many of the same thickness,
      so it is right in both cases. What remains is the spread of thickness within a group and,
      where groups are formed by noise, the bias of single pixels divided by the number of energies.
    """
    pixels = Pixels.of(absorption)
    inside = as_mask(region, pixels.shape, "region")
    values, kept = _inside(pixels, inside, positive=estimator == "mean_density")
    edges = _groups(pixels, values, estimator)
    density, variance = _grouped_density(pixels, values, edges)
    if np.isnan(density).any():
        LOG.warning("region: no transmission above zero at some energies; they are left out")
    result = xr.Dataset(coords=pixels.coords())
    errors = pixels.along_energy(np.sqrt(variance * mean_noise_factor(pixels, kept)))
    add_spectra(result, (), pixels.along_energy(density), errors, pixels.i0_errors)
    result["region"] = (("y", "x"), kept)
    result.attrs = {
        "pixel_count": int(kept.sum()),
        "estimator": estimator,
        "group_count": int(edges.size),
    }
    return result


def add_spectra(
    result: xr.Dataset,
    dims: tuple[str, ...],
    density: Array,
    errors: Array,
    shared: Array,
    long_name: str = "mean optical density",
) -> None:
    """Add spectra with the error of the photons, and apart that of I0, which they share."""
    shared = np.broadcast_to(shared, density.shape).copy()
    for suffix, values in (("", density), ("_errors", errors), ("_systematic", shared)):
        result[f"optical_density{suffix}"] = ((*dims, "energy"), values, {"units": "1"})
    result["optical_density"].attrs["long_name"] = long_name


def mean_noise_factor(pixels: Pixels, mask: Mask) -> Array:
    """By how much the variance of a mean over a mask exceeds that of independent pixels.

    Interpolation took from a pixel's variance what it put into the covariance with its neighbours:
    in the mean over a compact region all of it is back, in the mean over scattered pixels none.
    """
    factor = pixels.absorption["variance_factor"].values[pixels.used]
    pairs = int((mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum())
    compact = min(1.0, pairs / (2.0 * max(1, int(mask.sum()))))
    return np.asarray(1.0 + compact * (1.0 / factor - 1.0))


def _inside(pixels: Pixels, inside: Mask, positive: bool) -> tuple[Float32, Mask]:
    """Transmission (used energy, pixel) of a region by rising mean, and the pixels that count."""
    index = np.flatnonzero(inside)
    values = pixels.spectra(index)
    good = (values > 0 if positive else np.isfinite(values)).all(axis=0)
    if not good.any():
        raise InputError(
            f"none of its {index.size} pixels was measured in every usable frame",
            where="region",
            remedy="Choose a region that the drift did not carry out of the field.",
        )
    kept = np.zeros_like(inside)
    kept.flat[index[good]] = True
    values = values.compress(good, axis=1)
    return values.take(np.argsort(values.mean(axis=0), kind="stable"), axis=1), kept


def _groups(pixels: Pixels, values: Float32, estimator: str) -> Index:
    """Index of the first pixel of each group of pixels sorted by transmission."""
    count = values.shape[1]
    if estimator == "mean_density":
        return np.arange(count)
    if estimator == "mean_transmission":
        return np.zeros(1, np.int64)
    if estimator != "grouped":
        raise InputError(
            f"{estimator!r} is not grouped, mean_density or mean_transmission", where="estimator"
        )
    photons = pixels.absorption["photons"].values[pixels.used, None]
    classes = max(1, min(MOST_THICKNESS_CLASSES, count // 16))
    while True:
        # Group sizes follow from classes of many pixels: stopping at a count reached by chance
        # would favour bright groups.
        first = np.linspace(0, count, classes, endpoint=False).astype(np.int64)
        size = np.diff(np.append(first, count))
        counts = (photons * np.add.reduceat(values, first, axis=1)).min(axis=0)
        if classes == 1 or (counts >= ENOUGH_COUNTS).all():
            break
        classes //= 2
    number = np.clip((counts / ENOUGH_COUNTS).astype(np.int64), 1, size)
    return np.concatenate(
        [
            a + np.linspace(0, s, n, endpoint=False).astype(np.int64)
            for a, s, n in zip(first, size, number, strict=True)
        ]
    )


def _grouped_density(pixels: Pixels, values: Float32, first: Index) -> tuple[Array, Array]:
    """Mean optical density from the logarithms of group means, and its variance."""
    size = np.diff(np.append(first, values.shape[1]))
    mean = np.add.reduceat(values.astype(float), first, axis=1) / size
    mean = np.where(mean > 0, mean, np.nan)
    factor, dark = pixels.noise_factor[:, None], pixels.dark[:, None]
    variance = factor * (mean + dark) / (size * mean**2)
    density = -np.log(mean) - 0.5 * variance
    share = size / values.shape[1]
    return (density * share).sum(axis=1), (variance * share**2).sum(axis=1)


def difference_spectrum(a: xr.Dataset, b: xr.Dataset, *, scale: float = 1.0) -> xr.Dataset:
    """Difference of two region spectra of one stack, ``a - scale * b``, with its errors.

    Parameters
    ----------
    a, b : Dataset
        As `region_spectrum` makes them, from the same stack.
    scale : float
        Factor of the second spectrum, such as the ratio of two thicknesses.

    Returns
    -------
    Dataset
        ``optical_density`` (energy) of the difference, ``optical_density_errors`` of the photons
        and ``optical_density_systematic`` of I0. The error of I0 is the same in both spectra, so
        that of it only ``|1 - scale|`` times remains: nothing with a scale of 1.

    Raises
    ------
    InputError
        The spectra have different energies or fields.

    Notes
    -----
    Pixels that belong to both regions make the errors correlated; their covariance is taken as
    ``shared / sqrt(n_a n_b)`` times the product of the errors, exact where pixels are alike.
    """
    for dim in ("energy", "y", "x"):
        if not np.array_equal(a[dim].values, b[dim].values):
            raise InputError(
                f"the spectra differ in '{dim}'",
                where="difference_spectrum",
                remedy="Take both regions from the same stack.",
            )
    n_a, n_b = a.attrs["pixel_count"], b.attrs["pixel_count"]
    both = int((a["region"].values & b["region"].values).sum())
    e_a = a["optical_density_errors"].values
    e_b = scale * b["optical_density_errors"].values
    variance = e_a**2 + e_b**2 - 2.0 * both / np.sqrt(n_a * n_b) * e_a * e_b
    result = xr.Dataset(coords={"energy": a["energy"]})
    add_spectra(
        result,
        (),
        a["optical_density"].values - scale * b["optical_density"].values,
        np.sqrt(np.maximum(variance, 0.0)),
        abs(1.0 - scale) * a["optical_density_systematic"].values,
        "difference of optical densities",
    )
    result.attrs = {"scale": float(scale), "shared_pixels": both}
    return result
