"""Where the variance of a fraction lies, and how many particles a wanted error asks for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from scipy import optimize, special

from spectromap._numerics import generator
from spectromap.heterogeneity._contrasts import find_units
from spectromap.heterogeneity._linear import Array, Coefficient, Index, coefficient, half_width
from spectromap.heterogeneity._table import Table, check_count, check_share, read_table
from spectromap.schema import InputError, check_map

COMPONENTS = ("between agglomerates", "between primaries", "within primaries", "noise")

_MOST_PRIMARIES = 10_000_000
_CURVE_POINTS = 24


def variance_components(
    particles: xr.Dataset,
    fraction: str,
    maps: xr.Dataset | None = None,
    *,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Split the variance of the fraction between agglomerates, primaries and noise.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As for `contrasts`, with ``<fraction>_fraction_errors`` (else there is no noise).
    fraction : str
        Name of the mapped component.
    maps : Dataset, dims (y, x), optional
        ``particle_label``, ``<fraction>_fraction`` and its errors, for the spread within primaries.
    confidence : float
        Coverage of the intervals.

    Returns
    -------
    Dataset, dims (component,)
        ``component`` is "between agglomerates", "between primaries" (of one agglomerate), "within
        primaries" (of the pixels of one, noise taken off) and "noise" (of the mean of a primary).
        ``variance``, its interval ``variance_low`` to ``variance_high``, and ``variance_share``
        of the variance of the means of primaries, to which the pixels within them do not add.
        Primaries of agglomerates are meant; where there are no agglomerates, all.

    Raises
    ------
    InputError
        A column is missing or the confidence is out of range.

    Notes
    -----
    Both variances make their weighted sum of squares what it is on average, and the ends of the
    intervals make it a quantile of chi-squared: R. C. Paule and J. Mandel, J. Res. NBS 87, 377
    (1982); W. Viechtbauer, Stat. Med. 26, 37 (2007). Intervals are right for normal scatter. With
    few agglomerates they are wide: of three, the upper end is some forty times the estimate.
    """
    check_share("confidence", confidence)
    table = read_table(particles, fraction)
    if (table.agglomerate > 0).any():
        table = table.take(table.agglomerate > 0)
    block = np.unique(table.agglomerate, return_inverse=True)[1]
    tail = 0.5 * (1.0 - confidence)
    rows = np.full((len(COMPONENTS), 3), np.nan)
    if table.values.size:
        rows[1] = _primaries(table, block, tail)
        rows[0] = _agglomerates(table, block, float(rows[1, 0]), tail)
        rows[3, 0] = float(np.mean(table.errors**2))
    if maps is not None:
        rows[2, 0] = _within(maps, fraction, np.asarray(particles["particle"].values)[table.row])
    of_means = np.where(np.arange(len(COMPONENTS)) == 2, np.nan, rows[:, 0])
    total = float(np.nansum(of_means))
    share = of_means / (total if total > 0 else np.nan)
    result = xr.Dataset(coords={"component": np.array(COMPONENTS, dtype=object)})
    for name, values, text in (
        ("variance", rows[:, 0], "variance of the fraction"),
        ("variance_low", rows[:, 1], "lower end of the interval"),
        ("variance_high", rows[:, 2], "upper end of the interval"),
        ("variance_share", share, "share of the variance of the means of primaries"),
    ):
        result[name] = ("component", values, {"units": "1", "long_name": text})
    return result


def _solved(square: Callable[[float], float], freedom: int, tail: float) -> Array:
    """Variance at which a falling sum of squares is its mean, and the ends of its interval."""
    if freedom < 1:
        return np.full(3, np.nan)
    targets = [freedom, special.chdtri(freedom, tail), special.chdtri(freedom, 1.0 - tail)]
    top = 1e-8
    while square(top) > targets[2] and top < 1e8:
        top *= 4.0

    def crossing(target: float) -> float:
        if square(0.0) <= target:
            return 0.0
        return float(optimize.brentq(lambda variance: square(variance) - target, 0.0, top))

    return np.array([crossing(target) for target in targets])


def _means(table: Table, block: Index, variance: float) -> tuple[Array, Array, Array]:
    """Weights of the particles, and weighted mean and total weight of every block."""
    weights: Array = 1.0 / np.maximum(variance + table.errors**2, 1e-30)
    total = np.bincount(block, weights)
    means = np.bincount(block, weights * table.values) / total
    return weights, means, np.asarray(total)


def _primaries(table: Table, block: Index, tail: float) -> Array:
    """Variance between the primaries of one block."""

    def square(variance: float) -> float:
        weights, means, _ = _means(table, block, variance)
        return float(weights @ (table.values - means[block]) ** 2)

    return _solved(square, table.values.size - int(block.max()) - 1, tail)


def _agglomerates(table: Table, block: Index, primaries: float, tail: float) -> Array:
    """Variance between blocks, given that between the primaries of one."""
    if not np.isfinite(primaries):
        return np.full(3, np.nan)
    _, means, total = _means(table, block, primaries)

    def square(variance: float) -> float:
        weights = 1.0 / (variance + 1.0 / total)
        return float(weights @ (means - weights @ means / weights.sum()) ** 2)

    return _solved(square, means.size - 1, tail)


def _within(maps: xr.Dataset, fraction: str, numbers: Index) -> float:
    """Median over primaries of the variance of their pixels, less that of noise.

    Pixels count by the inverse of their noise, as the thin rim of a particle says little.
    """
    for name in ("particle_label", f"{fraction}_fraction", f"{fraction}_fraction_errors"):
        if name not in maps:
            raise InputError(f"the variable '{name}' is missing", where="maps")
        check_map(maps[name], name=name)
    label = np.asarray(maps["particle_label"].values).ravel()
    values = np.asarray(maps[f"{fraction}_fraction"].values, float).ravel()
    noise = np.asarray(maps[f"{fraction}_fraction_errors"].values, float).ravel() ** 2
    chosen = np.isin(label, numbers) & np.isfinite(values) & np.isfinite(noise) & (noise > 0)
    if not chosen.any():
        return float("nan")
    which = np.unique(label[chosen], return_inverse=True)[1]
    values, noise = values[chosen], noise[chosen]
    weights = 1.0 / noise
    total = np.bincount(which, weights)
    means = np.bincount(which, weights * values) / total
    square = np.bincount(which, weights * ((values - means[which]) ** 2 - noise)) / total
    pixels = np.bincount(which)
    return float(max(np.median(square[pixels > 1]), 0.0)) if (pixels > 1).any() else float("nan")


def primaries_needed(
    particles: xr.Dataset,
    fraction: str,
    *,
    half_width_wanted: float = 0.02,
    confidence: float = 0.95,
    min_agglomerates: int = 3,
    n_resamples: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """How many primaries must be seen to know their mean fraction well enough.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As for `contrasts`; all used particles, wherever they lie.
    fraction : str
        Name of the mapped component.
    half_width_wanted : float
        Half width of the interval of the mean that is wanted.
    confidence : float
        Coverage of the interval.
    min_agglomerates : int
        As for `contrasts`.
    n_resamples : int
        How often seeing the sample anew is tried.
    seed : int
        Another seed is another set of draws.

    Returns
    -------
    Dataset, dims (number,)
        ``number`` of primaries seen. ``half_width`` of the interval of the mean if further
        agglomerates come with further primaries as in this sample, and
        ``half_width_same_agglomerates`` if no agglomerate is added: it ends at what the
        agglomerates have of their own. ``seen_low`` to ``seen_high``: where the mean lies after
        so many primaries in that share of repeats, when the sample is seen agglomerate after
        agglomerate in random order. Without dims: ``mean_fraction``, ``primaries_seen``,
        ``half_width_wanted``, ``primaries_needed`` and, with the share of primaries per
        agglomerate kept, ``agglomerates_needed``; NaN where the sample cannot tell.

    Raises
    ------
    InputError
        A column is missing or an option is out of range.

    Notes
    -----
    The variance of the mean is that of `contrasts`, with agglomerates as what is independent, and
    falls as one over the number of primaries; degrees of freedom grow with it.
    """
    check_share("confidence", confidence)
    check_share("half_width_wanted", half_width_wanted)
    check_count("n_resamples", n_resamples, 100)
    table = read_table(particles, fraction)
    seen = table.values.size
    mean, unit = _mean(table, min_agglomerates)
    needed = _needed(mean, seen, half_width_wanted, confidence)
    last = max(seen, 2.0 * needed if np.isfinite(needed) else 0.0, 10.0)
    number = np.unique(np.geomspace(2, min(last, _MOST_PRIMARIES), _CURVE_POINTS).astype(np.int64))
    low, high = _seen_again(table.values, unit, number, (confidence, n_resamples, seed))
    curves = {
        "half_width": ([_wide(mean, seen, n, confidence) for n in number], "agglomerates added"),
        "half_width_same_agglomerates": (
            [_narrow(mean, seen, n, confidence) for n in number],
            "no agglomerate added",
        ),
        "seen_low": (low, "lower end of where the mean lies after so many primaries"),
        "seen_high": (high, "upper end of where the mean lies after so many primaries"),
    }
    result = xr.Dataset(coords={"number": ("number", number, {"units": "1"})})
    for name, (values, text) in curves.items():
        attrs = {"units": "1", "long_name": text}
        result[name] = ("number", np.asarray(values, float), attrs)
    groups = np.unique(table.agglomerate[table.agglomerate > 0]).size
    for name, value, text in (
        ("mean_fraction", mean.value, "mean over primaries"),
        ("primaries_seen", seen, "primaries of the sample"),
        ("half_width_wanted", half_width_wanted, "half width of the interval that is wanted"),
        ("primaries_needed", needed, "primaries needed for it"),
        ("agglomerates_needed", np.ceil(needed * groups / max(seen, 1)), "agglomerates of these"),
    ):
        result[name] = ((), float(value), {"units": "1", "long_name": text})
    return result


def _mean(table: Table, min_agglomerates: int) -> tuple[Coefficient, Index]:
    """Mean over primaries with its variance, and the unit of every primary."""
    size = table.values.size
    together = np.zeros(size, dtype=np.int64)
    telling = np.unique(table.agglomerate[table.agglomerate > 0])
    units = find_units(table.agglomerate, together, False, min_agglomerates, telling)
    if size < 2:
        return Coefficient(), units.unit
    columns = np.column_stack([np.ones(size), units.effects])
    return coefficient(columns, table.values, units.unit, units.block), units.unit


def _wide(mean: Coefficient, seen: int, number: float, confidence: float) -> float:
    """Half width after a number of primaries, agglomerates added."""
    if not mean.known:
        return float("nan")
    ratio = number / seen
    freedom = max((mean.freedom + 1.0) * ratio - 1.0, 1.0)
    return half_width(mean.variance / ratio, freedom, confidence)


def _narrow(mean: Coefficient, seen: int, number: float, confidence: float) -> float:
    """Half width after a number of primaries of the same agglomerates."""
    if not mean.known:
        return float("nan")
    own = mean.variance - mean.shared
    return half_width(mean.shared + own * seen / number, mean.freedom, confidence)


def _needed(mean: Coefficient, seen: int, wanted: float, confidence: float) -> float:
    """Smallest number of primaries whose half width is not above the wanted one."""
    if not mean.known or _wide(mean, seen, _MOST_PRIMARIES, confidence) > wanted:
        return float("nan")
    low, high = 1, _MOST_PRIMARIES
    while high - low > 1:
        middle = (low + high) // 2
        if _wide(mean, seen, middle, confidence) <= wanted:
            high = middle
        else:
            low = middle
    return float(high)


def _seen_again(
    values: Array, unit: Index, number: Index, how: tuple[float, int, int]
) -> tuple[Array, Array]:
    """Range of the mean after so many primaries, unit after unit in random order.

    Units are drawn with replacement, until the size of the sample is reached.
    """
    confidence, count, seed = how
    means = np.full((count, number.size), np.nan)
    within = number <= values.size
    units = [np.flatnonzero(unit == n) for n in range(int(unit.max(initial=-1)) + 1)]
    if len(units) < 2:
        return means[0], means[0]
    rng = generator(seed, 1)
    for draw in range(count):
        order: list[Index] = []
        total = 0
        while total < values.size:
            order.append(rng.permutation(units[rng.integers(len(units))]))
            total += order[-1].size
        sums = np.cumsum(values[np.concatenate(order)])
        means[draw, within] = sums[number[within] - 1] / number[within]
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return low, high
