"""Joint fit of several states, against states drawn with a known growth of D t."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr
from test_radial_pooling import TRUTH, measured, table

from spectromap.radial.states import STATE_VERDICTS, State, fit_states
from spectromap.schema import InputError

TIMES = (1e5, 5e5, 2.5e6)
TIME_ERROR = 0.1


def simulated(
    slope: float,
    rng: np.random.Generator,
    *,
    times: Sequence[float] = TIMES,
    count: int = 10,
    between: float = 0.1,
    limits: float = 0.0,
) -> list[State]:
    """States whose D t is `TRUTH` at the first time and grows with a power of the true time.

    The times that are told are off by `TIME_ERROR`; each state is off by `between`, and particles
    scatter by 0.2.
    """
    states = []
    for seconds in times:
        errors = rng.uniform(0.05, 0.15, count)
        errors[: round(limits * count)] = rng.uniform(1.3, 3.5, round(limits * count))
        fits = measured(rng.normal(TRUTH, 0.2, count), errors, rng)
        shift = slope * np.log10(seconds / times[0]) + rng.normal(0.0, between)
        told = seconds * 10.0 ** rng.normal(0.0, TIME_ERROR / np.log(10.0))
        models, particles = table(tuple(10.0**shift * f for f in fits), seconds=told)  # type: ignore[arg-type]
        states.append(State(seconds / 1e5, models, particles, told, TIME_ERROR))
    return states


def covers(found: xr.Dataset, name: str, truth: float, level: str) -> bool:
    """Whether an interval holds the truth."""
    return bool(found[f"{name}_low{level}"] < truth < found[f"{name}_high{level}"])


@pytest.mark.parametrize(("slope", "verdict"), [(1.0, "one D"), (0.0, "D t does not grow")])
def test_growth_is_recovered_with_intervals_that_cover(slope: float, verdict: str) -> None:
    rng = np.random.default_rng(1)
    found = [fit_states(simulated(slope, rng)) for _ in range(30)]
    slopes = np.array([float(f["slope"]) for f in found])
    # A straight line through the same states is 0.07 too steep: that much is in the draw.
    assert slopes.mean() == pytest.approx(slope, abs=0.1)
    assert slopes.std() < 0.2
    half = np.median([float(f["slope_high68"] - f["slope_low68"]) / 2 for f in found])
    assert 0.7 < half / slopes.std() < 1.6
    assert 0.5 < np.mean([covers(f, "slope", slope, "68") for f in found]) < 0.9
    assert np.mean([covers(f, "slope", slope, "95") for f in found]) >= 0.9
    assert np.mean([str(f["verdict"].item()) == verdict for f in found]) >= 0.9
    assert np.median([float(f["joint_spread"]) for f in found]) == pytest.approx(0.2, abs=0.05)
    if slope == 1.0:
        truth = TRUTH - np.log10(TIMES[0])
        assert 0.5 < np.mean([covers(f, "log10_D", truth, "68") for f in found]) < 0.95
        assert np.mean([covers(f, "log10_D", truth, "95") for f in found]) >= 0.9


def test_half_the_growth_is_neither() -> None:
    rng = np.random.default_rng(2)
    times = (1e5, 1e6, 1e7)
    found = [fit_states(simulated(0.5, rng, times=times)) for _ in range(12)]
    assert np.mean([str(f["verdict"].item()) == "neither" for f in found]) > 0.7


def test_limits_enter_and_slopes_stay_right() -> None:
    rng = np.random.default_rng(3)
    found = [fit_states(simulated(1.0, rng, count=12, limits=0.4)) for _ in range(12)]
    assert np.mean([float(f["slope"]) for f in found]) == pytest.approx(1.0, abs=0.1)
    assert np.mean([covers(f, "slope", 1.0, "95") for f in found]) >= 0.85


def test_a_short_lever_decides_nothing() -> None:
    found = fit_states(simulated(1.0, np.random.default_rng(4), times=(1e5, 1.5e5)))
    assert found["verdict"] == "undecided"
    assert found["slope_low95"] < 0.0
    assert found["slope_high95"] > 1.0


def test_a_state_with_only_upper_limits_still_bounds_the_growth() -> None:
    """Nothing before, deep after: D t grows, by at least so much."""
    rng = np.random.default_rng(5)
    early, late = simulated(1.0, rng, times=(1e5, 1e7), between=0.0)
    row = {"model": "diffusion"}
    for name, value in (("Dt_cm2", 1e-16), ("Dt_low", 0.0), ("Dt_high", 10.0 ** (TRUTH + 0.8))):
        early.models[name].loc[row] = value
    found = fit_states([early, late])
    assert np.isnan(found["log10_Dt"][0])
    assert found["log10_Dt_low95"][0] == -np.inf
    assert found["slope_high95"] == np.inf
    assert 0.3 < found["slope_low95"] < 1.0
    assert found["p_value_no_growth"] < 0.05
    assert found["verdict"] == "one D"


def test_common_errors_move_d_and_not_the_slope() -> None:
    states = simulated(1.0, np.random.default_rng(6))
    free = fit_states(states)
    tied = fit_states(states, common_time_rel_error=0.5)
    assert tied["slope_low95"] == free["slope_low95"]
    half_free, half_tied = (
        float(f["log10_D_high68"] - f["log10_D_low68"]) / 2 for f in (free, tied)
    )
    assert half_tied == pytest.approx(np.hypot(half_free, 0.5 / np.log(10)), rel=0.05)


def test_the_error_of_the_time_widens_the_slope() -> None:
    states = simulated(1.0, np.random.default_rng(7), between=0.0)

    def width(error: float) -> float:
        told = [State(s.cycles, s.models, s.particles, s.delithiated_time_s, error) for s in states]
        found = fit_states(told, state_spread=0.02)
        return float(found["slope_high68"] - found["slope_low68"]) / 2

    lever = np.sqrt(np.sum((np.log10(TIMES) - np.log10(TIMES).mean()) ** 2))
    added = np.sqrt(width(0.5) ** 2 - width(0.0) ** 2)
    assert added == pytest.approx(0.5 / np.log(10) / lever, rel=0.25)


def test_states_are_reported_and_empty_ones_left_out() -> None:
    states = simulated(1.0, np.random.default_rng(8))
    found = fit_states(states)
    assert found["cycles"].values.tolist() == [1.0, 5.0, 25.0]
    assert found["particles_used"].values.tolist() == [10, 10, 10]
    growth = np.log10(TIMES) - np.log10(TIMES[0])
    assert found["log10_Dt"].values == pytest.approx(TRUTH + growth, abs=0.5)
    assert np.all(found["log10_Dt_low95"] < found["log10_Dt"])
    assert str(found["verdict"].item()) in STATE_VERDICTS

    states[1].models["verdict"][:] = "no gradient"
    fewer = fit_states(states)
    assert fewer["particles_used"].values.tolist() == [10, 0, 10]
    assert np.isnan(fewer["log10_Dt"][1])
    assert np.isfinite(fewer["slope"])
    states[0].models["verdict"][:] = "no gradient"
    none = fit_states(states)
    assert np.isnan(none["slope"])
    assert none["verdict"] == "undecided"


def test_impossible_states_are_refused() -> None:
    states = simulated(1.0, np.random.default_rng(9))
    with pytest.raises(InputError, match="different times"):
        fit_states(states[:1])
    with pytest.raises(InputError, match="different times"):
        fit_states([states[0], states[0]])
    with pytest.raises(InputError, match="not positive"):
        fit_states(states, state_spread=0.0)
    with pytest.raises(InputError, match="from 0 up"):
        fit_states(states, common_time_rel_error=-1.0)
    with pytest.raises(InputError, match="positive number"):
        State(1, states[0].models, states[0].particles, 0.0)
    with pytest.raises(InputError, match="from 0 up"):
        State(1, states[0].models, states[0].particles, 1.0, np.nan)
