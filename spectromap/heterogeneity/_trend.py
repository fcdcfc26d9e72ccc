"""How the fraction changes with depth below the surface of agglomerates."""

from __future__ import annotations

import numpy as np
import xarray as xr

from spectromap.heterogeneity._contrasts import Rules, find_units
from spectromap.heterogeneity._linear import Coefficient, coefficient
from spectromap.heterogeneity._table import Table, check_columns, read_table, true_thickness

_TRENDS = ("by depth", "by depth at equal thickness")


def depth_trend(
    particles: xr.Dataset,
    fraction: str,
    *,
    confidence: float = 0.95,
    min_count: int = 5,
    min_agglomerates: int = 3,
) -> xr.Dataset:
    """Slope of the fraction against depth below the surface of the agglomerate.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As for `contrasts`, with ``depth`` [nm].
    fraction : str
        Name of the mapped component.
    confidence, min_count, min_agglomerates
        As for `contrasts`; ten particles at least are needed for twice `min_count`.

    Returns
    -------
    Dataset, dims (trend,)
        ``trend`` is "by depth" and "by depth at equal thickness". ``depth_trend`` [1/nm], negative
        where the interior has less; its interval ``depth_trend_low`` to ``depth_trend_high``,
        ``depth_trend_p_value``, and without dims the particles, ``depth_trend_count``, and
        ``depth_trend_agglomerates``, in which these lie.

    Raises
    ------
    InputError
        A column is missing or an option is out of range.

    Notes
    -----
    Linear regression within agglomerates, each with a level of its own, so that agglomerates of
    different size and level make no trend. Intervals as in `contrasts`: slopes may differ from
    agglomerate to agglomerate.
    """
    rules = Rules(confidence, min_count, min_agglomerates)
    rules.check()
    check_columns(particles, "depth")
    table = read_table(particles, fraction)
    table = table.take((table.agglomerate > 0) & np.isfinite(table.depth))
    names = np.array(_TRENDS, dtype=object)
    slopes = [_slope(table, rules, adjusted) for adjusted in (False, True)]
    result = xr.Dataset(coords={"trend": names})
    ends = [slope.interval(confidence) for slope in slopes]
    for name, values, units, text in (
        ("", [s.value for s in slopes], "nm-1", "change of the fraction with depth"),
        ("_low", [low for low, _ in ends], "nm-1", "lower end of the interval"),
        ("_high", [high for _, high in ends], "nm-1", "upper end of the interval"),
        ("_p_value", [s.p_value for s in slopes], "1", "two-sided"),
    ):
        attrs = {"units": units, "long_name": text}
        result[f"depth_trend{name}"] = ("trend", np.array(values, float), attrs)
    for name, count, text in (
        ("count", table.values.size, "particles in agglomerates"),
        ("agglomerates", np.unique(table.agglomerate).size, "agglomerates of these"),
    ):
        attrs = {"units": "1", "long_name": text}
        result[f"depth_trend_{name}"] = ((), np.int32(count), attrs)
    return result


def _slope(table: Table, rules: Rules, adjusted: bool) -> Coefficient:
    """Slope of one regression; NaN for too few particles."""
    size = table.values.size
    if size < 2 * rules.min_count:
        return Coefficient()
    together = np.zeros(size, dtype=np.int64)
    telling = np.array(
        [
            number
            for number in np.unique(table.agglomerate)
            if np.ptp(table.depth[table.agglomerate == number]) > 0
        ],
        dtype=np.int64,
    )
    units = find_units(table.agglomerate, together, True, rules.min_agglomerates, telling)
    columns = [table.depth - table.depth.mean(), units.effects]
    if adjusted:
        thickness, _ = true_thickness(table, together)
        columns.append(thickness - thickness.mean())
    return coefficient(np.column_stack(columns), table.values, units.unit, units.block)
