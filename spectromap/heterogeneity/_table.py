"""What the statistics take of a particle table: columns checked, numbers in arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import xarray as xr

from spectromap.heterogeneity._linear import Array, Index, Mask
from spectromap.schema import PLACES, InputError

OUTSIDE, EXTERIOR, INTERIOR = PLACES
LARGE, SMALL = "large", "small"


@dataclass(frozen=True)
class Table:
    """Columns of particles.

    Attributes
    ----------
    values, errors : ndarray, shape (n,)
        Fraction and its standard error, 0 where it is not known.
    thickness, thickness_errors : ndarray, shape (n,)
        In nm.
    agglomerate : ndarray of int, shape (n,)
        1 up, those of different fields told apart; 0 outside.
    place, size_class : ndarray of str, shape (n,)
    depth : ndarray, shape (n,)
        In nm; NaN where it is not known.
    row : ndarray of int, shape (n,)
        Row of the particle table.
    """

    values: Array
    errors: Array
    thickness: Array
    thickness_errors: Array
    agglomerate: Index
    place: np.ndarray
    size_class: np.ndarray
    depth: Array
    row: Index

    def take(self, chosen: Mask) -> Table:
        """Some of the particles."""
        return Table(*(getattr(self, field.name)[chosen] for field in fields(self)))


def check_share(name: str, value: float) -> None:
    """Refuse a number that is not between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise InputError(f"{value} is not between 0 and 1", where=name)


def check_count(name: str, value: int, least: int) -> None:
    """Refuse too small a number."""
    if value < least:
        raise InputError(f"{value} is too few (at least {least})", where=name)


def check_columns(particles: xr.Dataset, *names: str) -> None:
    """Refuse a table without the columns."""
    for name in names:
        if name not in particles:
            raise InputError(
                f"the column '{name}' is missing",
                where="particles",
                remedy="Make the table with spectromap.segment.particle_table.",
            )


def read_table(particles: xr.Dataset, fraction: str) -> Table:
    """The used particles that have a fraction and a thickness."""
    check_columns(particles, f"{fraction}_fraction", "thickness", "agglomerate", "place", "used")
    table = Table(
        _numbers(particles, f"{fraction}_fraction"),
        np.nan_to_num(_numbers(particles, f"{fraction}_fraction_errors", 0.0)),
        _numbers(particles, "thickness"),
        np.nan_to_num(_numbers(particles, "thickness_errors", 0.0)),
        agglomerates_of(particles),
        np.asarray(particles["place"].values).astype(str),
        _class_of_each(particles),
        _numbers(particles, "depth"),
        np.arange(particles.sizes["particle"]),
    )
    used = np.asarray(particles["used"].values).astype(bool)
    return table.take(used & np.isfinite(table.values) & np.isfinite(table.thickness))


def _numbers(particles: xr.Dataset, name: str, missing: float = np.nan) -> Array:
    """A column as floats; the same number everywhere if the table lacks it."""
    if name not in particles:
        return np.full(particles.sizes["particle"], missing)
    return np.asarray(particles[name].values, float)


def agglomerates_of(particles: xr.Dataset) -> Index:
    """Number of the agglomerate of every particle, those of different fields told apart."""
    number = np.asarray(particles["agglomerate"].values).astype(np.int64)
    if "field" not in particles:
        return number
    field = np.unique(np.asarray(particles["field"].values).astype(str), return_inverse=True)[1]
    return np.where(number > 0, number + field * (int(number.max(initial=0)) + 1), 0)


def classes(particles: xr.Dataset) -> tuple[Index, Array, Index, np.ndarray]:
    """Agglomerates: their numbers, diameters in nm, numbers of primaries and size classes.

    An agglomerate is large if its diameter is at least half the usual one: half of the area lies
    in agglomerates of that diameter and above. A plane cuts a sphere to less than half its
    diameter in 13 % of sections.
    """
    agglomerate = agglomerates_of(particles)
    area = np.nan_to_num(_numbers(particles, "area"))
    numbers, which, members = np.unique(
        agglomerate[agglomerate > 0], return_inverse=True, return_counts=True
    )
    total = np.bincount(which, area[agglomerate > 0], minlength=numbers.size)
    diameter = np.sqrt(4.0 * total / np.pi)
    if numbers.size == 0:
        return numbers, diameter, members, np.empty(0, dtype=object)
    falling = np.argsort(-diameter, kind="stable")
    share = np.cumsum(total[falling])
    usual = diameter[falling[np.searchsorted(share, 0.5 * share[-1])]]
    names = np.where(diameter >= 0.5 * usual, LARGE, SMALL).astype(object)
    return numbers, diameter, members, names if usual > 0 else np.full(numbers.size, "", object)


def _class_of_each(particles: xr.Dataset) -> np.ndarray:
    """Size class of the agglomerate of every particle, empty outside of agglomerates."""
    numbers, _, _, names = classes(particles)
    agglomerate = agglomerates_of(particles)
    result = np.full(agglomerate.size, "", dtype=object)
    for number, name in zip(numbers, names, strict=True):
        result[agglomerate == number] = name
    return result.astype(str)


def true_thickness(table: Table, group: Index) -> tuple[Array, float]:
    """Thickness expected from the measured one and its error, and how well it is known.

    A measured thickness far from the mean of its group is more likely an error than one close to
    it, and a slope on measured thickness is too flat. Drawing every value towards the mean of its
    group by the share that noise has in the spread gives slope and groups without bias:
    regression calibration, R. J. Carroll et al., Measurement Error in Nonlinear Models (2006),
    chapter 4.

    Parameters
    ----------
    table : Table
    group : ndarray of int, shape (n,)
        Which particles share a mean.

    Returns
    -------
    ndarray, shape (n,)
        In nm.
    float
        The smallest share of the spread within a group that is not noise.
    """
    result, least = table.thickness.copy(), 1.0
    for number in np.unique(group):
        here = group == number
        noise = table.thickness_errors[here] ** 2
        spread = float(np.var(result[here], ddof=1)) if here.sum() > 1 else 0.0
        if spread <= 0:
            continue
        true = max(spread - float(noise.mean()), 0.0)
        mean = result[here].mean()
        share = np.divide(true, true + noise, out=np.ones(noise.size), where=true + noise > 0)
        result[here] = mean + share * (result[here] - mean)
        least = min(least, true / spread)
    return result, least
