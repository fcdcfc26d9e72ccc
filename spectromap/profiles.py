"""Profiles of composition and thickness against the distance from a particle's edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from spectromap._numerics import fwhm_to_sigma
from spectromap.schema import FLAGS, InputError, check_map, pixel_size

__all__ = ["group_profiles", "map_profiles", "radial_profiles"]

Array = NDArray[np.floating[Any]]
Index = NDArray[np.integer[Any]]

#: Pixels with one of these flags carry no measurement.
_UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]
#: Halvings of the bracket around the variance between particles.
_HALVINGS = 60


class _Pixels:
    """The usable pixels of all particles, each with the cell (particle, bin) it falls in.

    `names` are the maps of which every pixel must have a value and an error above zero.
    """

    def __init__(
        self, maps: xr.Dataset, names: tuple[str, ...], bin_nm: float, reach: float
    ) -> None:
        labels = np.asarray(maps["particle_label"].values).astype(int)
        distance = np.asarray(maps["edge_distance"].values, float)
        keep = (labels > 0) & (distance >= 0) & (distance < reach)
        for name in names:
            error = np.asarray(maps[f"{name}_errors"].values, float)
            keep &= np.isfinite(maps[name].values) & np.isfinite(error) & (error > 0)
        if "flags" in maps:
            keep &= (np.asarray(maps["flags"].values).astype(int) & _UNUSABLE) == 0
        self.keep = keep
        self.bin_nm = bin_nm
        self.particles: Index = np.unique(labels[labels > 0])
        self.distance: Array = distance[keep]
        self.bins = max(1, int(np.floor(self.distance.max(initial=0.0) / bin_nm)) + 1)
        self.bin: Index = np.minimum((self.distance / bin_nm).astype(int), self.bins - 1)
        self.row: Index = np.searchsorted(self.particles, labels[keep])

    def of(self, variable: xr.DataArray) -> Array:
        """Values of a map at the pixels."""
        return np.asarray(variable.values, float)[self.keep]

    def total(self, values: Array | None = None) -> Array:
        """Sum over the pixels of every cell, shape (particle, bin); None counts them."""
        size = self.particles.size * self.bins
        cell = self.row * self.bins + self.bin
        summed = np.bincount(cell, weights=values, minlength=size)
        return np.asarray(summed, float).reshape(self.particles.size, self.bins)

    def between_bins(self, table: Array) -> Array:
        """Linear interpolation of a (particle, bin) table at every pixel's own distance."""
        place = self.distance / self.bin_nm - 0.5
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


def _weighted_mean(
    pixels: _Pixels, values: Array, errors: Array, independent: Array
) -> tuple[Array, Array]:
    """Mean of every cell weighted by ``1 / errors**2``, and its standard error."""
    weight = 1.0 / errors**2
    weight_sum = pixels.total(weight)
    mean = _ratio(pixels.total(weight * values), weight_sum)
    deviation = (values - pixels.between_bins(mean)) ** 2
    standard_error = _standard_error(
        _ratio(np.sqrt(weight_sum), weight_sum),
        _ratio(pixels.total(weight * deviation), weight_sum),
        _ratio(pixels.total(), weight_sum),
        independent,
    )
    return mean, standard_error


def _fraction_of_sums(
    pixels: _Pixels,
    fraction: Array,
    fraction_errors: Array,
    thickness: Array,
    weight: Array,
    independent: Array,
) -> tuple[Array, Array]:
    """Fraction of every cell as a quotient of sums, and its standard error."""
    amount = fraction * thickness
    weight_sum = pixels.total(weight)
    thickness_sum = pixels.total(weight * thickness)
    ratio = _ratio(pixels.total(weight * amount), thickness_sum)
    # The error of t_f - f t is sigma_f t. Where noise takes a single t to nearly zero its f, and
    # with it that product, runs away; sigma_f t**2 over the mean t of the bin does not.
    typical = _ratio(thickness_sum, weight_sum)[pixels.row, pixels.bin]
    shrink = np.minimum(1.0, np.abs(thickness / typical))
    noise = (fraction_errors * thickness * shrink) ** 2
    scatter = (amount - pixels.between_bins(ratio) * thickness) ** 2
    standard_error = _ratio(
        _standard_error(
            np.sqrt(pixels.total(weight**2 * noise)),
            pixels.total(weight * scatter) * weight_sum,
            pixels.total(weight * noise) * weight_sum,
            independent,
        ),
        np.abs(thickness_sum),
    )
    return ratio, standard_error


def _check(maps: xr.Dataset, name: str, resolution_nm: float, bin_nm: float | None) -> None:
    """Refuse maps without the needed variables and lengths that are not positive."""
    needed = (name, f"{name}_errors", "thickness", "thickness_errors", "particle_label")
    for variable in (*needed, "edge_distance"):
        if variable not in maps:
            raise InputError(
                f"the variable '{variable}' is missing",
                where="maps",
                remedy="Unmix the stack and find the particles first.",
            )
    check_map(maps[name], name=name)
    check_map(maps["thickness"], "nm", name="thickness")
    check_map(maps["edge_distance"], "nm", name="edge_distance")
    for argument, length in (("resolution_nm", resolution_nm), ("bin_nm", bin_nm)):
        if length is not None and not length > 0:
            raise InputError(f"{length} is not a positive length in nm", where=argument)


def _prepared(
    maps: xr.Dataset,
    name: str,
    resolution_nm: float,
    bin_nm: float | None,
    max_distance_nm: float | None,
) -> tuple[_Pixels, Array]:
    """The pixels that have a value and a thickness, and the independent elements per cell."""
    _check(maps, name, resolution_nm, bin_nm)
    dy, dx = pixel_size(maps["thickness"])
    width = bin_nm if bin_nm is not None else max(dy, dx, 0.5 * resolution_nm)
    reach = np.inf if max_distance_nm is None else max_distance_nm
    pixels = _Pixels(maps, (name, "thickness"), width, reach)
    count = pixels.total()
    correlation_area = 4.0 * np.pi * fwhm_to_sigma(resolution_nm) ** 2
    return pixels, np.minimum(count, count * dy * dx / correlation_area)


def _table(
    pixels: _Pixels,
    measured: dict[str, tuple[Array, Array, str]],
    mean_distance: Array,
    independent: Array,
) -> xr.Dataset:
    """The result for quantities ``name: (mean, error, units)``."""
    dims, nm = ("particle", "distance"), {"units": "nm"}
    variables: dict[str, Any] = {}
    for name, (mean, error, units) in measured.items():
        variables[name] = (dims, mean, {"units": units})
        variables[f"{name}_errors"] = (dims, error, {"units": units})
    variables |= {
        "mean_distance": (dims, mean_distance, nm),
        "pixel_count": (dims, pixels.total().astype(np.int32), {"units": "1"}),
        "independent_count": (dims, independent, {"units": "1"}),
    }
    return xr.Dataset(
        variables,
        coords={
            "particle": pixels.particles.astype(np.int32),
            "distance": ("distance", (np.arange(pixels.bins) + 0.5) * pixels.bin_nm, nm),
        },
        attrs={"bin_nm": float(pixels.bin_nm)},
    )


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
    name = f"{fraction}_fraction"
    pixels, independent = _prepared(maps, name, resolution_nm, bin_nm, max_distance_nm)
    thickness, thickness_errors = (
        pixels.of(maps[variable]) for variable in ("thickness", "thickness_errors")
    )
    weight = 1.0 / thickness_errors**2
    ratio, ratio_errors = _fraction_of_sums(
        pixels,
        pixels.of(maps[name]),
        pixels.of(maps[f"{name}_errors"]),
        thickness,
        weight,
        independent,
    )
    mean, mean_errors = _weighted_mean(pixels, thickness, thickness_errors, independent)
    where = pixels.total(weight * thickness * pixels.distance)
    result = _table(
        pixels,
        {name: (ratio, ratio_errors, "1"), "thickness": (mean, mean_errors, "nm")},
        _ratio(where, pixels.total(weight * thickness)),
        independent,
    )
    result.attrs["fraction"] = fraction
    return result


def map_profiles(
    maps: xr.Dataset,
    name: str,
    resolution_nm: float,
    *,
    bin_nm: float | None = None,
    max_distance_nm: float | None = None,
) -> xr.Dataset:
    """Mean of any map, and the thickness, in bins of distance from the edge of every particle.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        The map `name` with ``<name>_errors`` (1 sigma, random), and as for `radial_profiles`
        ``thickness`` [nm] with errors, ``particle_label``, ``edge_distance`` [nm] and, if there,
        ``flags``.
    name : str
        Name of the map, such as "phase".
    resolution_nm : float
        Full width at half maximum of the point spread function [nm].
    bin_nm : float, optional
        Width of a bin [nm]; default the larger of a pixel and half the resolution.
    max_distance_nm : float, optional
        Pixels further inside are left out; default none.

    Returns
    -------
    Dataset, dims (particle, distance)
        ``<name>`` in its own units and ``thickness`` [nm], both with ``_errors`` (1 sigma),
        ``pixel_count``, ``independent_count`` and ``mean_distance`` [nm] as `radial_profiles`
        gives them. Bins without pixels are NaN.

    Raises
    ------
    InputError
        A variable is missing, units are wrong, or a length is not positive.

    Notes
    -----
    The mean is weighted with ``1 / <name>_errors**2``, so that the errors must not depend on the
    noise of the value itself. Those of a fraction do, which is why `radial_profiles` averages
    fractions otherwise. Standard errors are made as there: photon error and unexplained scatter
    over the independent elements.
    """
    pixels, independent = _prepared(maps, name, resolution_nm, bin_nm, max_distance_nm)
    measured = {}
    for variable in dict.fromkeys((name, "thickness")):
        values, errors = pixels.of(maps[variable]), pixels.of(maps[f"{variable}_errors"])
        mean, error = _weighted_mean(pixels, values, errors, independent)
        measured[variable] = (mean, error, str(maps[variable].attrs.get("units", "1")))
    weight = pixels.of(maps[f"{name}_errors"]) ** -2
    mean_distance = _ratio(pixels.total(weight * pixels.distance), pixels.total(weight))
    result = _table(pixels, measured, mean_distance, independent)
    result.attrs["map"] = name
    return result


# ------------------------------------------------------------------------------------- groups


def _between(values: Array, variances: Array) -> Array:
    """Variance between particles in every bin, for tables (particle, bin) with NaN for missing.

    The variance at which the weighted scatter equals its expectation (Paule and Mandel); NaN
    where there are less than two particles.
    """
    count = np.isfinite(values).sum(axis=0)

    def excess(between: Array) -> Array:
        weight = 1.0 / (variances + between)
        total = np.maximum(np.nansum(weight, axis=0), 1e-300)
        mean = np.nansum(weight * values, axis=0) / total
        return np.asarray(np.nansum(weight * (values - mean) ** 2, axis=0) - (count - 1))

    low = np.zeros(values.shape[1])
    # The scatter falls as 1 / between, so that it is too small at the sum of squares.
    filled = np.where(np.isfinite(values), values, 0.0)
    centre = filled.sum(axis=0) / np.maximum(count, 1)
    high = np.nansum((values - centre) ** 2, axis=0)
    none = excess(low) <= 0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(count > 1, np.where(none, 0.0, high), np.nan)


def _group_mean(values: Array, errors: Array) -> tuple[Array, Array, Array]:
    """Random-effects mean over particles, half its 68 % interval, and the spread, per bin."""
    known = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    values, variances = np.where(known, values, np.nan), np.where(known, errors**2, np.nan)
    count = known.sum(axis=0)
    between = _between(values, variances)
    # A single particle does not show how much particles differ; other distances of its group do.
    usual = float(np.mean(between[count > 1])) if np.any(count > 1) else 0.0
    weight = 1.0 / (variances + np.where(count > 1, between, usual))
    total = np.nansum(weight, axis=0)
    mean = _ratio(np.nansum(weight * values, axis=0), total)
    degrees = np.maximum(count - 1, 1)
    factor = np.where(count > 1, special.stdtrit(degrees, special.ndtr(1.0)), 1.0)
    return mean, factor * _ratio(np.sqrt(total), total), np.sqrt(between)


def _members(profiles: xr.Dataset, groups: xr.DataArray) -> tuple[list[Any], list[Index]]:
    """Labels of the groups, sorted, and the rows of the profiles that belong to each."""
    if groups.dims != ("particle",) or "particle" not in groups.coords:
        raise InputError(
            f"expected labels with the one dimension 'particle', got {groups.dims}",
            where="groups",
            remedy="Take a variable of the table of particles, such as particles['place'].",
        )
    label = dict(zip(groups["particle"].values.tolist(), groups.values.tolist(), strict=True))
    rows: dict[Any, list[int]] = {}
    for row, particle in enumerate(profiles["particle"].values.tolist()):
        own = label.get(particle)
        if not (own == "" or pd.isna(own)):
            rows.setdefault(own, []).append(row)
    if not rows:
        raise InputError("no particle with a profile has a group", where="groups")
    names = sorted(rows)
    return names, [np.array(rows[name]) for name in names]


def group_profiles(profiles: xr.Dataset, groups: xr.DataArray) -> xr.Dataset:
    """Mean profiles over the particles of each group.

    Parameters
    ----------
    profiles : Dataset, dims (particle, distance)
        From `radial_profiles` or `map_profiles`.
    groups : DataArray, dims (particle)
        The group of every particle, such as ``particles["place"]`` or
        ``particles["agglomerate"]``. Particles that do not occur in it, or whose label is empty
        or NaN, are left out: ``particles["place"][particles["used"]]`` is the particles that
        count.

    Returns
    -------
    Dataset, dims (group, distance)
        For every quantity with errors in `profiles` (the composition or map, and the thickness)
        the mean ``<name>``, ``<name>_errors`` (half of the 68 % interval) and ``<name>_spread``,
        the standard deviation between particles (NaN for a single one); ``mean_distance`` [nm];
        and ``particle_count``, ``pixel_count`` and ``independent_count``. Bins that no particle
        reaches are NaN.

    Raises
    ------
    InputError
        Labels that are not one per particle, or no particle with a label.

    Notes
    -----
    Particles differ by more than the errors of their profiles, so that a mean is weighted with
    ``1 / (error**2 + spread**2)``, with the spread after R. C. Paule and J. Mandel, J. Res. Natl.
    Bur. Stand. 87, 377 (1982), in every bin. Its error is the root of the inverse of the summed
    weights times the 68 % quantile of Student's t with as many degrees of freedom as particles
    but one (G. Knapp and J. Hartung, Stat. Med. 22, 2693 (2003); for this spread their factor is
    one). Where only one particle reaches as deep, the spread is that of the other distances of
    its group. Particles of a group count as independent of each other. Deep bins hold large
    particles only, which is not corrected.
    """
    names, members = _members(profiles, groups)
    quantities = [str(n) for n in profiles.data_vars if f"{n}_errors" in profiles]
    if not quantities:
        raise InputError("there is no quantity with errors", where="profiles")
    dims = ("group", "distance")
    result = xr.Dataset(
        coords={
            "group": np.array(names, dtype=object if isinstance(names[0], str) else None),
            "distance": profiles["distance"],
        },
        attrs=profiles.attrs,
    )
    for name in quantities:
        values, errors = (np.asarray(profiles[n].values, float) for n in (name, f"{name}_errors"))
        means = np.stack([np.stack(_group_mean(values[m], errors[m])) for m in members])
        attrs = {"units": profiles[name].attrs.get("units", "1")}
        for column, suffix in enumerate(("", "_errors", "_spread")):
            result[f"{name}{suffix}"] = (dims, means[:, column], attrs)
    return result.assign(_counts(profiles, members))


def _counts(profiles: xr.Dataset, members: list[Index]) -> dict[str, Any]:
    """What is in every bin of every group, and where it was measured on average."""
    dims = ("group", "distance")
    pixels, elements, place = (
        np.asarray(profiles[n].values, float)
        for n in ("pixel_count", "independent_count", "mean_distance")
    )
    summed = np.stack([pixels[m].sum(axis=0) for m in members])
    moment = np.stack([np.nansum(pixels[m] * place[m], axis=0) for m in members])
    reached = np.stack([(pixels[m] > 0).sum(axis=0) for m in members])
    independent = np.stack([elements[m].sum(axis=0) for m in members])
    return {
        "mean_distance": (dims, _ratio(moment, summed), {"units": "nm"}),
        "particle_count": (dims, reached.astype(np.int32), {"units": "1"}),
        "pixel_count": (dims, summed.astype(np.int32), {"units": "1"}),
        "independent_count": (dims, independent, {"units": "1"}),
    }
