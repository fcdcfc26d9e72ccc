"""Several states of a sample, such as numbers of cycles, and whether D t grows with the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from spectromap.radial.pooling import (
    SPREADS,
    Estimate,
    Likelihoods,
    estimate,
    log_likelihood,
    selected,
    with_common,
)
from spectromap.schema import InputError

__all__ = ["STATE_VERDICTS", "State", "fit_states"]

Array = NDArray[np.floating[Any]]

#: What several states can say about D.
STATE_VERDICTS = ("one D", "D t does not grow", "neither", "undecided")

#: Spreads between states that are tried, in units of the one that is expected.
_BETWEEN: Array = np.array([0.1, 0.5, 1.0, 1.6, 2.4, 3.2])
_SPREADS: Array = SPREADS[SPREADS < 1.0][::2]
_QUANTILES = {
    "low95": 0.025,
    "low68": 1.0 - float(special.ndtr(1.0)),
    "high68": float(special.ndtr(1.0)),
    "high95": 0.975,
}
#: An interval is open where the likelihood at the end of what is tried is above this share of the
#: highest.
_OPEN_SHARE = 0.02


@dataclass(frozen=True)
class State:
    """One state of a sample: what was fitted, and the time it spent delithiated.

    Parameters
    ----------
    cycles : float
        Number of cycles; a name for the state.
    models : Dataset, dims (particle, model)
        From `spectromap.radial.fit.fit_models`.
    particles : Dataset, dims (particle)
        Where ``used`` is false a particle is left out.
    delithiated_time_s : float
        Time spent delithiated in s.
    delithiated_time_rel_error : float
        Relative standard error of that time which the other states do not share.

    Raises
    ------
    InputError
        A time that is no positive number, or a negative error.
    """

    cycles: float
    models: xr.Dataset
    particles: xr.Dataset
    delithiated_time_s: float
    delithiated_time_rel_error: float = 0.1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.delithiated_time_s) and self.delithiated_time_s > 0):
            raise InputError(
                f"the time {self.delithiated_time_s!r} s is no positive number",
                where=f"state of {self.cycles:g} cycles",
                remedy="Give the time spent delithiated in seconds.",
            )
        _check_error(self.delithiated_time_rel_error, f"state of {self.cycles:g} cycles")


def _check_error(value: float, where: str) -> None:
    """Refuse an error that is none."""
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"the error {value!r} is no number from 0 up", where=where)


@dataclass(frozen=True)
class _Seen:
    """What one state says of the mean of log10 D t, on a grid of it, for every spread."""

    log_time: float
    time_error: float
    about: float
    error: float
    grid: Array
    likelihood: Array

    def at(self, means: Array, width: float) -> Array:
        """Likelihood (mean, spread), averaged over a normal deviation of the state."""
        between = 0.5 * (self.grid[1:] + self.grid[:-1])
        reached = special.ndtr((between - means[:, None]) / width)
        # The cells at the ends are endless: there the last value holds, as it must for a limit.
        shares = np.diff(reached, axis=1, prepend=0.0, append=1.0)
        return np.asarray(shares @ self.likelihood)


def _cells(points: Array) -> Array:
    """Weights of the trapezoidal rule."""
    steps = np.diff(points)
    return np.asarray(0.5 * (np.append(steps, 0.0) + np.append(0.0, steps)))


def _extent(pooled: Estimate) -> tuple[float, float, float, float]:
    """Where a state lies, about how well it is known, and the range of interest."""
    low, high = pooled.low95, pooled.high95
    if np.isnan(pooled.mean):
        end, sign = (high, -1.0) if np.isneginf(low) else (low, 1.0)
        near, far = end - sign * 1.5, end + sign * 4.0
        return end + sign * 0.5, 0.5, min(near, far), max(near, far)
    error = max(0.5 * (pooled.high68 - pooled.low68), 0.005)
    low, high = max(low, pooled.mean - 4.0), min(high, pooled.mean + 4.0)
    width = max(high - low, 0.05)
    return pooled.mean, error, low - width, high + width


def _seen(particles: Likelihoods, pooled: Estimate, state: State) -> _Seen:
    """Tabulate the likelihood of a state."""
    about, error, low, high = _extent(pooled)
    fine = about + error * np.linspace(-5.0, 5.0, 51)
    grid = np.unique(np.concatenate([fine, np.linspace(low, high, 40)]))
    log = np.stack([log_likelihood(particles, grid[:, None], s).sum(axis=1) for s in _SPREADS], 1)
    return _Seen(
        log_time=float(np.log10(state.delithiated_time_s)),
        time_error=state.delithiated_time_rel_error / np.log(10.0),
        about=about,
        error=error,
        grid=grid,
        likelihood=np.exp(log - log.max()),
    )


@dataclass(frozen=True)
class _Line:
    """All states about a line: log10 D t = level + slope (log10 t - centre)."""

    seen: Sequence[_Seen]
    state_spread: float
    centre: float
    level: float
    level_error: float
    slope: float
    slope_error: float

    @property
    def levels(self) -> Array:
        """Levels that are tried."""
        return np.asarray(self.level + self.level_error * np.linspace(-7.0, 7.0, 57))

    def likelihood(self, slope: float) -> Array:
        """Likelihood (level, spread between particles), averaged over the spread of states."""
        total = np.zeros((self.levels.size, _SPREADS.size))
        prior = np.exp(-0.5 * _BETWEEN**2) * _cells(_BETWEEN)
        for weight, between in zip(prior / prior.sum(), _BETWEEN * self.state_spread, strict=True):
            product = np.full(total.shape, weight)
            for one in self.seen:
                means = self.levels + slope * (one.log_time - self.centre)
                width = max(np.hypot(between, slope * one.time_error), 1e-3)
                product *= one.at(means, float(width))
            total += product
        return total * _cells(_SPREADS)


def _line(seen: Sequence[_Seen], state_spread: float) -> _Line:
    """The straight line by least squares, which says where to look."""
    x = np.array([one.log_time for one in seen])
    y = np.array([one.about for one in seen])
    variance = np.array([one.error**2 + one.time_error**2 for one in seen]) + state_spread**2
    weight = 1.0 / variance
    centre = float(np.sum(weight * x) / weight.sum())
    lever = float(np.sum(weight * (x - centre) ** 2))
    return _Line(
        seen=seen,
        state_spread=state_spread,
        centre=centre,
        level=float(np.sum(weight * y) / weight.sum()),
        level_error=float(weight.sum() ** -0.5),
        slope=float(np.sum(weight * (x - centre) * y) / lever),
        slope_error=lever**-0.5,
    )


def _quantiles(points: Array, density: Array) -> tuple[dict[str, float], Array]:
    """Median and limits of a density on points, infinite where it does not end; cumulated."""
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(points)
    cumulated = np.append(0.0, np.cumsum(steps))
    cumulated /= cumulated[-1]
    found = {n: float(np.interp(q, cumulated, points)) for n, q in _QUANTILES.items()}
    found["median"] = float(np.interp(0.5, cumulated, points))
    for end, side, sign in ((density[0], "low", -1.0), (density[-1], "high", 1.0)):
        if end > _OPEN_SHARE * density.max():
            found[f"{side}68"] = found[f"{side}95"] = sign * np.inf
    return found, cumulated


def _p_value(points: Array, cumulated: Array, value: float) -> float:
    """Two-sided tail beyond a value."""
    below = float(np.interp(value, points, cumulated))
    return 2.0 * min(below, 1.0 - below)


def _verdict(p_one: float, p_none: float, significance: float) -> str:
    """Which slopes the states allow."""
    if np.isnan(p_one):
        return "undecided"
    allowed = {(True, False): 0, (False, True): 1, (False, False): 2, (True, True): 3}
    return STATE_VERDICTS[allowed[(p_one > significance, p_none > significance)]]


def _joint(
    seen: Sequence[_Seen], state_spread: float, common: float, significance: float
) -> dict[str, Any]:
    """Slope, joint D and verdict; all unknown where there is no lever."""
    names = ("slope", "log10_D")
    result = {f"{n}{e}": np.nan for n in names for e in ("", *(f"_{q}" for q in _QUANTILES))}
    result |= {"p_value_one_D": np.nan, "p_value_no_growth": np.nan, "spread": np.nan}
    if len({one.log_time for one in seen}) >= 2:
        line = _line(seen, state_spread)
        slopes = line.slope + line.slope_error * np.linspace(-7.0, 7.0, 57)
        tables = np.stack([line.likelihood(float(slope)) for slope in slopes])
        found, cumulated = _quantiles(slopes, tables.sum(axis=(1, 2)))
        result |= _named("slope", found)
        result["p_value_one_D"] = _p_value(slopes, cumulated, 1.0)
        result["p_value_no_growth"] = _p_value(slopes, cumulated, 0.0)
        result["spread"] = float(np.sum(tables.sum(axis=(0, 1)) * _SPREADS) / tables.sum())
        one_d, _ = _quantiles(line.levels - line.centre, line.likelihood(1.0).sum(axis=1))
        ends = Estimate(mean=one_d.pop("median"), **one_d)
        ends = with_common(ends, common)
        one_d = {name: getattr(ends, name) for name in _QUANTILES}
        result |= _named("log10_D", one_d | {"median": ends.mean})
    verdict = _verdict(result["p_value_one_D"], result["p_value_no_growth"], significance)
    return result | {"verdict": verdict}


def _named(name: str, found: dict[str, float]) -> dict[str, float]:
    """Median and limits under the names of the result."""
    return {name if key == "median" else f"{name}_{key}": value for key, value in found.items()}


def _check(states: Sequence[State]) -> None:
    """Refuse what has no slope."""
    if len({state.delithiated_time_s for state in states}) < 2:
        raise InputError(
            f"{len(states)} states with {len({s.delithiated_time_s for s in states})} different"
            " times say nothing about growth with the time",
            where="states",
            remedy="Give at least two states that spent different times delithiated.",
        )


def fit_states(
    states: Sequence[State],
    *,
    state_spread: float = 0.1,
    common_time_rel_error: float = 0.0,
    significance: float = 0.05,
) -> xr.Dataset:
    """Ask several states whether D t grows with the time, as it does for one D.

    Parameters
    ----------
    states : sequence of State
        At least two, with different times.
    state_spread : float
        Standard deviation of log10 D t that is expected between states beside everything else
        (another electrode, another session at the instrument) [dex].
    common_time_rel_error : float
        Relative standard error of the time that all states share, such as the hours per cycle;
        it moves D and not the slope.
    significance : float
        Probability below which a slope is rejected.

    Returns
    -------
    Dataset, dims (state)
        Per state: ``cycles``, ``delithiated_time_s``, ``log10_Dt`` [log10 of cm2] with its 68 and
        95 % limits, ``spread`` between its particles, ``particles_used``. Scalars: ``slope`` of
        log10 D t against log10 t (1: one D for all states; 0: D t does not grow) with its limits;
        ``p_value_one_D`` and ``p_value_no_growth`` against slopes of 1 and 0; ``log10_D`` [log10
        of cm2/s] with its limits if the slope is 1; ``joint_spread`` between particles, the same
        in all states; ``verdict``, one of `STATE_VERDICTS`. NaN and "undecided" where fewer than
        two different times have particles.

    Raises
    ------
    InputError
        Fewer than two different times, a negative error, or no spread between states.

    Notes
    -----
    The mean of log10 D t in a state is ``a + b log10 t`` with normal deviations of the state
    (state_spread, and b times the error of its time), its particles scatter about it with one
    spread, and values and limits enter as in `spectromap.radial.pooling`. Limits are quantiles of
    the integrated likelihood of the slope (J. O. Berger, B. Liseo and R. L. Wolpert, Stat. Sci.
    14, 1 (1999)): flat in a, in b and in the spread between particles up to 1 dex. Two or three
    states cannot tell their own spread, so that it is half-normal with the expected scale (A.
    Gelman, Bayesian Anal. 1, 515 (2006)). The common error of the resolution is in the limits of
    D and of each state, and does not move the slope.
    """
    _check(states)
    _check_error(common_time_rel_error, "common_time_rel_error")
    if not state_spread > 0:
        raise InputError(
            f"the spread {state_spread!r} between states is not positive", where="state_spread"
        )
    seen, rows, shifts = [], [], []
    for state in states:
        sides, reasons, common = selected(state.models, state.particles)
        used = sides[reasons == ""]
        pooled = estimate(used)
        shift = float(np.median(common[reasons == ""])) if used.top.size else 0.0
        rows.append((with_common(pooled, shift), used.top.size))
        if used.top.size:
            seen.append(_seen(used, pooled, state))
            shifts.append(shift)
    resolution = float(np.median(shifts)) if shifts else 0.0
    common_error = float(np.hypot(resolution, common_time_rel_error / np.log(10.0)))
    joint = _joint(seen, state_spread, common_error, significance)

    log_dt = {"units": "1", "long_name": "log10 of D t in cm2"}
    log_d = {"units": "1", "long_name": "log10 of D in cm2 s-1"}
    one = {"units": "1"}
    data: dict[str, Any] = {
        "cycles": ("state", np.array([s.cycles for s in states], float), one),
        "delithiated_time_s": ("state", [s.delithiated_time_s for s in states], {"units": "s"}),
        "log10_Dt": ("state", [row.mean for row, _ in rows], log_dt),
    }
    for name in _QUANTILES:
        data[f"log10_Dt_{name}"] = ("state", [getattr(row, name) for row, _ in rows], log_dt)
    data["spread"] = ("state", [row.spread for row, _ in rows], one)
    data["particles_used"] = ("state", [count for _, count in rows], one)
    data["verdict"] = ((), np.array(joint.pop("verdict"), dtype=object))
    data["joint_spread"] = ((), joint.pop("spread"), one)
    for name, value in joint.items():
        data[name] = ((), value, log_d if name.startswith("log10_D") else one)
    return xr.Dataset(data, coords={"state": np.arange(1, len(states) + 1)})
