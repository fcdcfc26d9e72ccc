"""Differences between groups of particles, as they are and at equal thickness."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from spectromap.heterogeneity._linear import Array, Coefficient, Index, Mask, coefficient
from spectromap.heterogeneity._table import (
    EXTERIOR,
    INTERIOR,
    LARGE,
    OUTSIDE,
    SMALL,
    Table,
    check_count,
    check_share,
    read_table,
    true_thickness,
)
from spectromap.schema import LOG, InputError

#: Ways to answer a question, as they end the name of its contrast.
_RAW, _REGRESSION, _STRATA = "", "at equal thickness", "at equal thickness, stratified"
#: Five strata take out nine tenths of a bias: W. G. Cochran, Biometrics 24, 295 (1968).
_MOST_STRATA = 5
#: An interval on fewer degrees of freedom is so wide that it should be said.
_FEW = 4.0
_NO_COMMON = "the groups have no thickness in common"


@dataclass(frozen=True)
class Rules:
    """From how many particles and agglomerates on something is said."""

    confidence: float
    min_count: int
    min_agglomerates: int

    def check(self) -> None:
        """Refuse options out of range."""
        check_share("confidence", self.confidence)
        check_count("min_count", self.min_count, 2)
        check_count("min_agglomerates", self.min_agglomerates, 3)


@dataclass(frozen=True)
class Question:
    """Two groups of particles; `within`: compared within agglomerates."""

    name: str
    first: Mask
    second: Mask
    within: bool = False


@dataclass(frozen=True)
class Units:
    """What is independent of each other; `effects` are columns that this asks for."""

    unit: Index
    block: Index
    effects: Array
    drawn: str
    agglomerates: int


def find_units(
    agglomerate: Index, group: Index, within: bool, least: int, informative: Index
) -> Units:
    """Agglomerates as units where there are enough of them, else primaries.

    Parameters
    ----------
    agglomerate : ndarray of int, shape (n,)
        0 outside, where every primary is a unit of its own.
    group : ndarray of int, shape (n,)
        Groups that are compared.
    within : bool
        Every agglomerate has an effect of its own, that is taken out.
    least : int
        Agglomerates that are needed.
    informative : ndarray of int
        Numbers of the agglomerates that tell something about what is asked.

    Returns
    -------
    Units
        Where primaries are units, the means of the agglomerates are taken as they are, so that
        what is said holds for these.
    """
    inside = agglomerate > 0
    numbers, which = np.unique(agglomerate[inside], return_inverse=True)
    block = np.full(agglomerate.size, -1)
    block[inside] = which
    alone = np.arange(agglomerate.size)
    effects: Array = np.zeros((agglomerate.size, 0))
    if within:
        effects = np.equal.outer(block, np.arange(numbers.size)).astype(float)
    if informative.size >= least and _spread_out(block, group):
        unit = np.unique(np.where(inside, block, numbers.size + alone), return_inverse=True)[1]
        return Units(unit, block, effects, "agglomerate", int(informative.size))
    if not within:
        effects = _centred_cells(block, group)
    return Units(alone, np.full(block.size, -1), effects, "primary", int(informative.size))


def _spread_out(block: Index, group: Index) -> bool:
    """Whether no group lies in a single agglomerate, whose scatter nothing would tell."""
    lone = [set(np.unique(block[group == number])) for number in np.unique(group)]
    return all(blocks == {-1} or len(blocks) > 1 for blocks in lone)


def _centred_cells(block: Index, group: Index) -> Array:
    """Effects of agglomerates, or places, that leave the mean of every group what it is."""
    columns = []
    for number in np.unique(group):
        here = group == number
        for name in np.unique(block[here & (block >= 0)]):
            own = here & (block == name)
            columns.append(own - here * (own.sum() / here.sum()))
    return np.column_stack(columns) if columns else np.zeros((block.size, 0))


def _strata(thickness: Array, first: Mask) -> Array:
    """Columns of strata of thickness, and of what is left of it within them."""
    smaller = min(int(first.sum()), int((~first).sum()))
    count = int(np.clip(smaller // 5, 2, _MOST_STRATA))
    edges = np.quantile(thickness, np.arange(1, count) / count)
    stratum = np.searchsorted(edges, thickness, side="right")
    columns = np.equal.outer(stratum, np.unique(stratum)).astype(float)
    means = columns @ ((columns.T @ thickness) / columns.sum(axis=0))
    return np.column_stack([columns, thickness - means])


def _answer(table: Table, question: Question, adjustment: str, rules: Rules) -> dict[str, Any]:
    """One row: the difference, its interval, and in words what is weak about it."""
    sample = table.take(question.first | question.second)
    first = question.first[question.first | question.second]
    counts = (int(first.sum()), int((~first).sum()))
    row: dict[str, Any] = {"count_a": counts[0], "count_b": counts[1]}
    if min(counts) < rules.min_count:
        text = f"{counts[0]} and {counts[1]} particles, but at least {rules.min_count} of each"
        return row | {"remark": f"{text} are needed"}
    if adjustment and np.ptp(sample.thickness) <= 0:
        return row | {"remark": "all particles have the same thickness"}
    if adjustment == _STRATA and _apart(sample.thickness, first):
        return row | {"remark": _NO_COMMON}
    informative = _informative(sample.agglomerate, first, question.within)
    units = find_units(
        sample.agglomerate, first.astype(int), question.within, rules.min_agglomerates, informative
    )
    thickness, share = true_thickness(sample, first.astype(int))
    columns = [first.astype(float), np.ones(first.size), units.effects]
    if adjustment == _REGRESSION:
        columns.append(thickness - thickness.mean())
    elif adjustment == _STRATA:
        columns.append(_strata(thickness, first))
    if adjustment and not question.within:
        place = np.unique(sample.place, return_inverse=True)[1]
        columns.append(_centred_cells(place, first.astype(int)))
    found = coefficient(np.column_stack(columns), sample.values, units.unit, units.block)
    remarks = [_weakness(found, units)]
    if adjustment:
        remarks.append(_reach(sample.thickness, first, share))
    return row | _numbers(found, rules.confidence) | {
        "resampled_by": units.drawn,
        "agglomerates": units.agglomerates,
        "remark": "; ".join(remark for remark in remarks if remark),
    }  # fmt: skip


def _informative(agglomerate: Index, first: Mask, within: bool) -> Index:
    """Agglomerates that tell something: within them, only those with both groups."""
    if not within:
        return np.unique(agglomerate[agglomerate > 0])
    return np.intersect1d(agglomerate[first], agglomerate[~first])


def _numbers(found: Coefficient, confidence: float) -> dict[str, float]:
    """Columns of a coefficient."""
    low, high = found.interval(confidence)
    return {
        "difference": found.value,
        "low": low,
        "high": high,
        "p_value": found.p_value,
        "degrees_of_freedom": found.freedom,
    }


def _weakness(found: Coefficient, units: Units) -> str:
    """Say where few agglomerates or few particles carry the answer."""
    if not np.isfinite(found.value):
        return "the groups have nothing in common at which to compare them"
    if units.drawn == "primary" and units.agglomerates:
        return f"holds for the agglomerates seen only ({units.agglomerates})"
    if found.freedom < _FEW:
        return f"few independent groups of particles ({found.freedom:.1f} degrees of freedom)"
    return ""


def _apart(thickness: Array, first: Mask) -> bool:
    """Whether one group is thicker than the other throughout."""
    a, b = thickness[first], thickness[~first]
    return bool(a.min() > b.max() or b.min() > a.max())


def _reach(thickness: Array, first: Mask, share: float) -> str:
    """Say where an adjustment reaches beyond the data, or rests on noise."""
    if _apart(thickness, first):
        return _NO_COMMON
    if share < 0.5:
        return "more than half of the spread in thickness is noise"
    return ""


def holm(p_values: Array) -> Array:
    """P-values that hold for all of them together; NaN is not counted.

    S. Holm, Scand. J. Stat. 6, 65 (1979).
    """
    result = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    raised = p_values[order] * np.arange(order.size, 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return result


def contrasts(
    particles: xr.Dataset,
    fraction: str,
    *,
    confidence: float = 0.95,
    min_count: int = 5,
    min_agglomerates: int = 3,
) -> xr.Dataset:
    """Compare the fraction of particles by where they lie.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As `spectromap.segment.particle_table` makes it; only ``used`` particles count. With a
        column ``field``, agglomerates of different fields are different ones.
    fraction : str
        Name of the mapped component, such as "mn3".
    confidence : float
        Coverage of the interval.
    min_count : int
        A contrast with fewer particles than this in one of its groups is NaN: the scatter within
        five is known to a factor of two at best.
    min_agglomerates : int
        From this many on, agglomerates are what is independent, so that the interval holds for
        agglomerates like these. With fewer, primaries are, within their agglomerates, and the
        interval holds for these agglomerates only, which is said. At least 3.

    Returns
    -------
    Dataset, dims (contrast,)
        ``contrast`` is "outside-inside" (inside is exterior and interior together),
        "exterior-interior" and "large-small" (agglomerates, see `size_classes`), each also "at
        equal thickness" and "at equal thickness, stratified"; "large-small" only where there are
        both. ``difference`` of the first group
        less the second, its interval ``low`` to ``high``, the two-sided ``p_value``,
        ``p_value_holm`` for the three questions together, ``degrees_of_freedom``, the particles
        ``count_a`` and ``count_b`` in both groups, ``agglomerates`` that tell something,
        what was taken as independent, ``resampled_by``: agglomerate or primary, and a ``remark``
        where the answer is weak or missing.

    Raises
    ------
    InputError
        A column is missing or an option is out of range.

    Notes
    -----
    Every primary counts once, whatever its size. The difference is the coefficient of the group
    in a linear regression: on the group alone; with one slope on mean thickness; or with up to
    five strata of equal numbers of particles, and one slope for what is left of thickness within
    them, which follows any curve. Slopes are those within places: were primaries thinner at the
    exterior of agglomerates, what the exterior is would pass for an effect of thickness. Exterior
    and interior are compared within agglomerates, each with an effect of its own. Measured
    thickness is freed of its noise, which would leave a part of its effect (`true_thickness`).
    The three ways to answer a question are not three questions, so that Holm's p-values are made
    for each way.

    Intervals treat agglomerates, and primaries outside of them, as what could have come out
    otherwise; pixels never. They are Student's, with the error that resampling whole agglomerates
    without end would give, corrected for small numbers, and degrees of freedom to match (see
    `spectromap.heterogeneity._linear.coefficient`). Percentiles of a bootstrap are too narrow:
    with ten agglomerates, 95 % intervals cover 89 %.
    """
    rules = Rules(confidence, min_count, min_agglomerates)
    rules.check()
    table = read_table(particles, fraction)
    inside = np.isin(table.place, (EXTERIOR, INTERIOR))
    questions = [
        Question("outside-inside", table.place == OUTSIDE, inside),
        Question("exterior-interior", table.place == EXTERIOR, table.place == INTERIOR, True),
        Question("large-small", table.size_class == LARGE, table.size_class == SMALL),
    ]
    if not (questions[2].first.any() and questions[2].second.any()):
        del questions[2]
    asked = bool((np.asarray(particles["agglomerate"].values) > 0).any())
    return _dataset(table, questions, (_RAW, _REGRESSION, _STRATA), rules, fraction, asked)


def compare_groups(
    particles: xr.Dataset,
    fraction: str,
    by: str,
    *,
    confidence: float = 0.95,
    min_count: int = 5,
    min_agglomerates: int = 3,
) -> xr.Dataset:
    """Compare every two groups of particles, with p-values that hold for all pairs together.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As for `contrasts`, with the column named by `by`. Tables of several states or fields are
        joined with a column ``field``, so that their agglomerates are told apart.
    fraction : str
        Name of the mapped component.
    by : str
        Column whose values are the groups, such as "place", "agglomerate" or a state; an
        agglomerate of 0 and an empty name are no group.
    confidence, min_count, min_agglomerates
        As for `contrasts`. Intervals are those of each pair alone.

    Returns
    -------
    Dataset, dims (contrast,)
        Columns of `contrasts`, for every pair "a-b" in the order of the names, and "a-b at equal
        thickness".

    Raises
    ------
    InputError
        A column is missing, there are fewer than two groups, or an option is out of range.
    """
    rules = Rules(confidence, min_count, min_agglomerates)
    rules.check()
    table = read_table(particles, fraction)
    if by not in particles:
        raise InputError(f"the column '{by}' is missing", where="particles")
    of_each = np.asarray(particles[by].values)[table.row].astype(str)
    nothing = ("", "0") if by == "agglomerate" else ("",)
    names = [name for name in _natural_order(of_each) if name not in nothing]
    if len(names) < 2:
        raise InputError(f"fewer than two groups in '{by}'", where="by")
    questions = [
        Question(f"{a}-{b}", of_each == a, of_each == b) for a, b in combinations(names, 2)
    ]
    return _dataset(table, questions, (_RAW, _REGRESSION), rules, fraction, True)


def _natural_order(names: np.ndarray) -> list[str]:
    """Different names, numbers by their size."""

    def key(name: str) -> tuple[float, str]:
        try:
            return float(name), name
        except ValueError:
            return float("inf"), name

    return sorted({str(name) for name in names}, key=key)


def _dataset(
    table: Table,
    questions: list[Question],
    ways: tuple[str, ...],
    rules: Rules,
    fraction: str,
    heard: bool,
) -> xr.Dataset:
    """Every question answered in every way; if heard, weaknesses go to the log."""
    rows, names = [], []
    for question in questions:
        for adjustment in ways:
            rows.append(_answer(table, question, adjustment, rules))
            names.append(f"{question.name} {adjustment}".rstrip())
    columns: dict[str, tuple[Any, str]] = {
        name: (np.array([row.get(name, np.nan) for row in rows], float), text)
        for name, text in _NUMBERS.items()
    }
    together = np.full(len(rows), np.nan)
    for way in range(len(ways)):
        together[way :: len(ways)] = holm(columns["p_value"][0][way :: len(ways)])
    columns["p_value_holm"] = (together, "two-sided, for all groups compared together (Holm)")
    for name, text in _COUNTS.items():
        columns[name] = (np.array([row.get(name, 0) for row in rows], np.int32), text)
    for name, text in _TEXTS.items():
        columns[name] = (np.array([row.get(name, "") for row in rows], dtype=object), text)
    result = xr.Dataset(
        {
            name: ("contrast", values, {"long_name": text} | _units(values))
            for name, (values, text) in columns.items()
        },
        coords={"contrast": np.array(names, dtype=object)},
        attrs={"fraction": fraction, "confidence": float(rules.confidence)},
    )
    if heard:
        _warn(result)
    return result


_NUMBERS = {
    "difference": "first group less the second",
    "low": "lower end of the interval",
    "high": "upper end of the interval",
    "p_value": "two-sided",
    "degrees_of_freedom": "of the interval and the p-value",
}
_COUNTS = {
    "count_a": "particles in the first group",
    "count_b": "particles in the second group",
    "agglomerates": "agglomerates that tell something about the contrast",
}
_TEXTS = {"resampled_by": "what is independent", "remark": "what is weak, or why it is missing"}


def _units(values: Any) -> dict[str, str]:
    """Numbers are pure ones; text has no units."""
    return {} if values.dtype == object else {"units": "1"}


def _warn(result: xr.Dataset) -> None:
    """Put every weakness into the log once, with the first contrast that has it."""
    said = set()
    for name, remark in zip(result["contrast"].values, result["remark"].values, strict=True):
        if remark and remark not in said:
            LOG.warning("heterogeneity: %s: %s", name, remark)
            said.add(remark)
