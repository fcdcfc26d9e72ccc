"""Profiles of composition and thickness against the distance from a particle's edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._numerics import fwhm_to_sigma
from spectromap.schema import FLAGS, InputError, check_map, pixel_size

__all__ = ["radial_profiles"]

Array = NDArray[np.floating[Any]]
Index = NDArray[np.integer[Any]]

#: Pixels with one of these flags carry no measurement.
_UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]


class _Pixels:
    """The usable pixels of all particles, each with the cell (particle, bin) it falls in."""

    def __init__(self, maps: xr.Dataset, fraction: str, bin_nm: float, reach: float) -> None:
        labels = np.asarray(maps["particle_label"].values).astype(int)
        distance = np.asarray(maps["edge_distance"].values, float)
        values = {
            name: np.asarray(maps[name].values, float)
            for name in (
                f"{fraction}_fraction",
                f"{fraction}_fraction_errors",
                "thickness",
                "thickness_errors",
            )
        }
        inside = (labels > 0) & (distance >= 0) & (distance < reach)
        keep = inside & np.all([np.isfinite(v) for v in values.values()], axis=0)
        keep &= (values["thickness_errors"] > 0) & (values[f"{fraction}_fraction_errors"] > 0)
        if "flags" in maps:
            keep &= (np.asarray(maps["flags"].values).astype(int) & _UNUSABLE) == 0
        self.particles: Index = np.unique(labels[labels > 0])
        self.distance: Array = distance[keep]
        self.bins = max(1, int(np.floor(self.distance.max(initial=0.0) / bin_nm)) + 1)
        self.bin: Index = np.minimum((self.distance / bin_nm).astype(int), self.bins - 1)
        self.row: Index = np.searchsorted(self.particles, labels[keep])
        self.thickness: Array = values["thickness"][keep]
        self.thickness_errors: Array = values["thickness_errors"][keep]
        self.amount: Array = values[f"{fraction}_fraction"][keep] * self.thickness
        self.fraction_errors: Array = values[f"{fraction}_fraction_errors"][keep]

    def total(self, values: Array | None = None) -> Array:
        """Sum over the pixels of every cell, shape (particle, bin); None counts them."""
        size = self.particles.size * self.bins
        cell = self.row * self.bins + self.bin
        summed = np.bincount(cell, weights=values, minlength=size)
        return np.asarray(summed, float).reshape(self.particles.size, self.bins)

    def between_bins(self, table: Array, bin_nm: float) -> Array:
        """Linear interpolation of a (particle, bin) table at every pixel's own distance."""
        place = self.distance / bin_nm - 0.5
        low = np.clip(np.floor(place).astype(int), 0, self.bins - 1)
        high = np.minimum(low + 1, self.bins - 1)
        own = table[self.row, self.bin]
        first, second = table[self.row, low], table[self.row, high]
        share = np.clip(place - low, 0.0, 1.0)
        mixed = (1.0 - share) * first + share * second
        return np.asarray(np.where(np.isfinite(mixed), mixed, own))


def _standard_error(photon: Array, scatter: Array, expected: Array, independent: Array) -> Array:
    """Photon error of a mean with the part of the scatter that photons do not explain.

    `scatter` is the variance of single pixels about the profile and `expected` what photon noise
    makes of it. The rest (shape, structure) is alike within one resolution element, so that only
    the independent elements average it down; their number less one corrects for the mean having
    been taken from the same pixels. The result is never below the photon error.
    """
    excess = np.maximum(scatter - expected, 0.0)
    return np.asarray(np.sqrt(photon**2 + excess / np.maximum(independent - 1.0, 1.0)))


def _ratio(top: Array, bottom: Array) -> Array:
    """Quotient, NaN where there is nothing to divide by."""
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))


def _check(maps: xr.Dataset, fraction: str, resolution_nm: float, bin_nm: float | None) -> None:
    """Refuse maps without the needed variables and lengths that are not positive."""
    for name in (
        f"{fraction}_fraction",
        f"{fraction}_fraction_errors",
        "thickness",
        "thickness_errors",
        "particle_label",
        "edge_distance",
    ):
        if name not in maps:
            raise InputError(
                f"the variable '{name}' is missing",
                where="maps",
                remedy="Unmix the stack and find the particles first.",
            )
    check_map(maps["thickness"], "nm", name="thickness")
    check_map(maps["edge_distance"], "nm", name="edge_distance")
    for name, length in (("resolution_nm", resolution_nm), ("bin_nm", bin_nm)):
        if length is not None and not length > 0:
            raise InputError(f"{length} is not a positive length in nm", where=name)


def radial_profiles(
    maps: xr.Dataset,
    fraction: str,
    resolution_nm: float,
    *,
    bin_nm: float | None = None,
    max_distance_nm: float | None = None,
) -> xr.Dataset:
    """Mean composition and thickness of every particle in bins of distance from its edge.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        ``<fraction>_fraction`` and ``thickness`` [nm], unconstrained, with their ``_errors``
        (1 sigma, random), ``particle_label`` and ``edge_distance`` [nm, positive inside]; pixels
        that ``flags`` calls dead or without data are left out.
    fraction : str
        Name of the mapped component, such as "mn3".
    resolution_nm : float
        Full width at half maximum of the point spread function [nm].
    bin_nm : float, optional
        Width of a bin [nm]; default the larger of a pixel and half the resolution.
    max_distance_nm : float, optional
        Pixels further inside are left out; default none.

    Returns
    -------
    Dataset, dims (particle, distance)
        ``<fraction>_fraction``, ``thickness`` [nm], both with ``_errors`` (1 sigma), the number of
        pixels ``pixel_count`` and of independent resolution elements ``independent_count``, and
        ``mean_distance`` [nm], the distance at which the fraction was in effect measured.
        ``distance`` [nm] are the bin centres; bins without pixels are NaN.

    Raises
    ------
    InputError
        A variable is missing, units are wrong, or a length is not positive.

    Notes
    -----
    With t_f the thickness of the mapped component and t the whole thickness, the fraction of a bin
    is ``sum(w t_f) / sum(w t)``, ``w = 1 / thickness_errors**2``. Both sums are linear in the
    measured optical density and hence unbiased; the mean of single ratios ``t_f / t`` with weights
    ``1 / sigma_f**2`` is not where particles are thin, because such a weight grows with the noise
    of t. The standard error of a bin adds in quadrature the propagated photon error and the
    scatter that photons do not explain, over the number of independent elements: the area of the
    bin's pixels over ``4 pi sigma**2``, the correlation area of a Gaussian point spread function
    (the integral of its autocorrelation; compare J. W. Goodman, Statistical Optics, 2nd ed.,
    section 6.1), and never more than the pixels. A slope within the bin does not count as scatter.
    """
    _check(maps, fraction, resolution_nm, bin_nm)
    dy, dx = pixel_size(maps["thickness"])
    width = bin_nm if bin_nm is not None else max(dy, dx, 0.5 * resolution_nm)
    reach = np.inf if max_distance_nm is None else max_distance_nm
    pixels = _Pixels(maps, fraction, width, reach)
    count = pixels.total()
    correlation_area = 4.0 * np.pi * fwhm_to_sigma(resolution_nm) ** 2
    independent = np.minimum(count, count * dy * dx / correlation_area)

    weight = 1.0 / pixels.thickness_errors**2
    weight_sum = pixels.total(weight)
    thickness_sum = pixels.total(weight * pixels.thickness)
    mean = _ratio(thickness_sum, weight_sum)
    ratio = _ratio(pixels.total(weight * pixels.amount), thickness_sum)

    mean_distance = _ratio(pixels.total(weight * pixels.thickness * pixels.distance), thickness_sum)

    # The error of t_f - f t is sigma_f t. Where noise takes a single t to nearly zero its f, and
    # with it that product, runs away; sigma_f t**2 over the mean t of the bin does not.
    typical = mean[pixels.row, pixels.bin]
    shrink = np.minimum(1.0, np.abs(pixels.thickness / typical))
    noise = (pixels.fraction_errors * pixels.thickness * shrink) ** 2
    scatter = (pixels.amount - pixels.between_bins(ratio, width) * pixels.thickness) ** 2
    fraction_errors = _ratio(
        _standard_error(
            np.sqrt(pixels.total(weight**2 * noise)),
            pixels.total(weight * scatter) * weight_sum,
            pixels.total(weight * noise) * weight_sum,
            independent,
        ),
        np.abs(thickness_sum),
    )
    deviation = (pixels.thickness - pixels.between_bins(mean, width)) ** 2
    thickness_errors = _standard_error(
        _ratio(np.sqrt(weight_sum), weight_sum),
        _ratio(pixels.total(weight * deviation), weight_sum),
        _ratio(count, weight_sum),
        independent,
    )
    dims = ("particle", "distance")
    nm = {"units": "nm"}
    return xr.Dataset(
        {
            f"{fraction}_fraction": (dims, ratio, {"units": "1"}),
            f"{fraction}_fraction_errors": (dims, fraction_errors, {"units": "1"}),
            "thickness": (dims, mean, nm),
            "thickness_errors": (dims, thickness_errors, nm),
            "mean_distance": (dims, mean_distance, nm),
            "pixel_count": (dims, count.astype(np.int32), {"units": "1"}),
            "independent_count": (dims, independent, {"units": "1"}),
        },
        coords={
            "particle": pixels.particles.astype(np.int32),
            "distance": ("distance", (np.arange(pixels.bins) + 0.5) * width, nm),
        },
        attrs={"fraction": fraction, "bin_nm": float(width)},
    )
