"""Pooling of values and limits, against tables drawn with a known mean and spread."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from spectromap.radial.pooling import ONE_SIDED_95, pool
from spectromap.schema import VERDICTS

pytestmark = pytest.mark.long

SECONDS = 4e5
LIMITS = ("cm2", "low", "high")
TRUTH = -12.0
LOG_D = TRUTH - np.log10(SECONDS)
#: Best value and limits of D t [cm2] of each particle.
Fits = tuple[np.ndarray, np.ndarray, np.ndarray]


def table(
    fits: Fits,
    verdict: str | list[str] = "diffusion",
    *,
    difference: float | np.ndarray = 0.0,
    shell: Fits | None = None,
    systematic: float = 0.0,
    seconds: float | None = SECONDS,
    time_rel_error: float = 0.0,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Models as if so fitted, and their particles, numbered from 11."""
    count = fits[0].size
    dims = ("particle", "model")

    def columns(diffusion: object, other: object) -> tuple[tuple[str, str], np.ndarray]:
        both = [np.broadcast_to(np.asarray(v, float), count) for v in (diffusion, other)]
        return dims, np.stack(both, axis=1)

    verdicts = [verdict] * count if isinstance(verdict, str) else verdict
    shells = shell or (np.full(count, np.nan),) * 3
    models = xr.Dataset(
        {
            **{f"Dt_{n}": columns(v, np.nan) for n, v in zip(LIMITS, fits, strict=True)},
            "D_cm2_s": columns(fits[0] / (seconds or np.nan), np.nan),
            **{
                f"shell_{n}": columns(np.nan, v)
                for n, v in zip(("thickness", "low", "high"), shells, strict=True)
            },
            "log10_D_systematic": columns(systematic, np.nan),
            "aicc": columns(0.0, difference),
            "bic": columns(0.0, difference),
            "chi2": columns(1.0, 1.0),
            "verdict": ("particle", np.array(verdicts, dtype=object)),
        },
        coords={
            "particle": np.arange(11, 11 + count),
            "model": np.array(["diffusion", "core-shell"], dtype=object),
        },
        attrs={"delithiated_time_rel_error": time_rel_error},
    )
    return models, xr.Dataset(coords={"particle": models["particle"]})


def values(log_dt: np.ndarray, errors: np.ndarray | float) -> Fits:
    """Normal errors of the logarithm."""
    return tuple(10.0 ** (log_dt + k * errors) for k in (0, -1, 1))  # type: ignore[return-value]


def measured(log_dt: np.ndarray, errors: np.ndarray, rng: np.random.Generator) -> Fits:
    """What a fit says whose chi2 is a parabola in the depth, which cannot be negative.

    `errors` are those of log10 D t for a particle with the depth of `TRUTH`; from about 0.9 up
    most particles have only an upper limit, which is that of 95 %; otherwise limits are where chi2
    has risen by one.
    """
    width = errors * np.log(10.0) / 2.0
    depth = 10.0 ** (0.5 * (log_dt - TRUTH))
    found = depth + width * rng.standard_normal(depth.size)
    best = np.maximum(found, 0.003)
    limit = found < ONE_SIDED_95 * width  # a depth of zero is not excluded
    off = width * np.where(limit, ONE_SIDED_95, 1.0)
    low = np.where(limit, 0.0, found - width)
    high = np.where(found > 0, found + off, found + np.hypot(found, off))
    return tuple(10.0**TRUTH * d**2 for d in (best, low, high))  # type: ignore[return-value]


def field(
    count: int, spread: float, limits: float, rng: np.random.Generator
) -> tuple[xr.Dataset, xr.Dataset]:
    """A field of particles of which a share is so noisy that it mostly gives limits."""
    errors = rng.uniform(0.05, 0.15, count)
    noisy = round(limits * count)
    errors[:noisy] = rng.uniform(1.3, 3.5, noisy)
    return table(measured(rng.normal(TRUTH, spread, count), errors, rng))


def covers(pooled: xr.Dataset, level: str, truth: float = LOG_D) -> bool:
    """Whether the interval holds the truth."""
    return bool(pooled[f"log10_D_low{level}"] < truth < pooled[f"log10_D_high{level}"])


# ----------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(
    ("count", "spread", "limits", "fields"),
    [(3, 0.2, 0.0, 150), (6, 0.4, 0.0, 150), (12, 0.2, 0.3, 150), (30, 0.2, 0.6, 150)],
)
def test_intervals_cover_with_values_and_limits(
    count: int, spread: float, limits: float, fields: int
) -> None:
    rng = np.random.default_rng(count)
    found = [pool(*field(count, spread, limits, rng)) for _ in range(fields)]
    bias = np.mean([float(p["log10_D"]) for p in found]) - LOG_D
    assert abs(bias) < 0.05
    assert 0.58 < np.mean([covers(p, "68") for p in found]) < 0.8
    assert np.mean([covers(p, "95") for p in found]) > 0.91
    assert np.median([float(p["spread"]) for p in found]) == pytest.approx(spread, abs=0.08)
    if limits:
        assert np.mean([int(p["count_limits"]) for p in found]) > 0.6 * limits * count


def test_intervals_are_not_too_wide_without_a_spread() -> None:
    """Errors alone: no narrower than they demand, and no more than Student's allowance wider."""
    rng = np.random.default_rng(4)
    found = [pool(*field(30, 0.0, 0.3, rng)) for _ in range(60)]
    scatter = np.std([float(p["log10_D"]) for p in found])
    half = np.median([float(p["log10_D_high68"] - p["log10_D_low68"]) / 2 for p in found])
    assert 0.8 < half / scatter < 1.4
    assert np.median([float(p["spread"]) for p in found]) < 0.03


def test_limits_take_the_bias_away() -> None:
    """Where only the larger D are values, their mean alone is too large."""
    rng = np.random.default_rng(5)
    with_limits, without = [], []
    for _ in range(40):
        log_dt = rng.normal(TRUTH, 0.4, 40)
        models, particles = table(measured(log_dt, np.full(40, 0.8), rng))
        with_limits.append(pool(models, particles))
        row = models.sel(model="diffusion")
        known = (row["Dt_low"] > 0).values
        without.append(pool(models.isel(particle=known), particles))
    bias = np.mean([float(p["log10_D"]) for p in with_limits]) - LOG_D
    naive = np.mean([float(p["log10_D"]) for p in without]) - LOG_D
    assert naive > 0.1
    assert abs(bias) < 0.5 * naive


def test_fields_of_little_but_limits_are_bounded_rightly() -> None:
    rng = np.random.default_rng(6)
    right, open_fields = [], 0
    for _ in range(100):
        got = pool(*table(measured(rng.normal(TRUTH, 0.1, 8), np.full(8, 2.5), rng)))
        right.append(float(got["log10_D_high95"]) > LOG_D)
        if np.isnan(got["log10_D"]):
            open_fields += 1
            assert np.isnan(got["spread"])
            assert got["log10_D_low95"] == got["log10_D_low68"] == -np.inf
            assert got["log10_D_high68"] < got["log10_D_high95"]
            assert got["particles_used"] == got["count_limits"] == 8
    assert np.mean(right) >= 0.95
    assert open_fields > 10


def test_one_limit_says_what_it_says() -> None:
    """A single limit holds in 95 %: it lies between the ends of the 68 and the 95 % interval."""
    fits = tuple(np.array([v]) for v in (1e-14, 0.0, 1e-12))
    got = pool(*table(fits))  # type: ignore[arg-type]
    assert LOG_D - 0.5 < got["log10_D_high68"] < LOG_D
    assert LOG_D < got["log10_D_high95"] < LOG_D + 0.3


def test_lower_limits_mirror_upper_limits() -> None:
    rng = np.random.default_rng(7)
    fits = measured(rng.normal(TRUTH, 0.2, 9), np.array([0.1] * 5 + [2.5] * 4), rng)
    with np.errstate(divide="ignore"):
        mirror = tuple(10.0 ** (2 * TRUTH) / fits[i] for i in (0, 2, 1))
    up, down = pool(*table(fits)), pool(*table(mirror))  # type: ignore[arg-type]
    assert up["count_limits"] > 0
    assert up["log10_D"] - LOG_D == pytest.approx(LOG_D - float(down["log10_D"]), abs=1e-5)
    half = float(up["log10_D_high95"]) - LOG_D
    assert half == pytest.approx(LOG_D - float(down["log10_D_low95"]), abs=1e-3)
    only = pool(*table((fits[0], fits[1] * 0 + fits[0] / 3, np.full(9, np.inf))))
    assert only["log10_D_high68"] == np.inf
    assert np.isfinite(only["log10_D_low95"])


# ------------------------------------------------------------------------------ against textbooks


def test_equal_errors_give_the_textbook_interval() -> None:
    """Then the random-effects interval is Student's, and the spread the excess variance."""
    x = np.array([-12.3, -11.9, -12.0, -12.6, -11.7])
    got = pool(*table(values(x, 0.1), "undecided"))
    assert got["log10_D"] == pytest.approx(x.mean() - np.log10(SECONDS), abs=1e-6)
    assert got["spread"] == pytest.approx(np.sqrt(x.var(ddof=1) - 0.01), rel=0.01)
    half = 2.776445105 * x.std(ddof=1) / np.sqrt(5)
    assert got["log10_D_high95"] - got["log10_D"] == pytest.approx(half, rel=0.005)
    assert got["log10_D"] - got["log10_D_low95"] == pytest.approx(half, rel=0.005)
    assert got["log10_D_errors"] == pytest.approx(x.std(ddof=1) / np.sqrt(5), rel=0.01)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_few_particles_have_at_least_the_interval_of_knapp_and_hartung(count: int) -> None:
    """With unequal errors, weighted with the spread that was found."""
    rng = np.random.default_rng(count)
    ratios = []
    for _ in range(30):
        errors = rng.uniform(0.05, 0.25, count)
        x = rng.normal(TRUTH, np.hypot(errors, 0.2))
        got = pool(*table(values(x, errors)))
        weight = 1 / (errors**2 + float(got["spread"]) ** 2)
        mean = np.sum(weight * x) / weight.sum()
        variance = np.sum(weight * (x - mean) ** 2) / (count - 1) / weight.sum()
        half = stats.t.ppf(0.975, count - 1) * np.sqrt(variance)
        ratios.append(float(got["log10_D_high95"] - got["log10_D_low95"]) / 2 / half)
        assert got["log10_D"] == pytest.approx(mean - np.log10(SECONDS), abs=1e-4)
    assert np.min(ratios) > 0.9
    assert np.median(ratios) > 0.99


def test_one_particle_has_its_own_interval() -> None:
    got = pool(*table(values(np.array([TRUTH]), 0.1)))
    assert got["particles_used"] == 1
    assert np.isnan(got["spread"])
    assert got["log10_D_errors"] == pytest.approx(0.1, rel=1e-3)
    assert got["log10_D_high68"] - got["log10_D"] == pytest.approx(0.1, rel=1e-2)
    assert got["log10_D_high95"] - got["log10_D"] == pytest.approx(0.196, rel=1e-2)


def test_errors_that_differ_to_either_side_stay_so() -> None:
    """A value with its range: 0.3 down and 0.05 up."""
    fits = tuple(np.array([10.0 ** (TRUTH + k)]) for k in (0.0, -0.3, 0.05))
    got = pool(*table(fits))  # type: ignore[arg-type]
    assert got["log10_D_high68"] - LOG_D == pytest.approx(0.05, abs=1e-3)
    assert LOG_D - got["log10_D_low68"] == pytest.approx(0.3, abs=1e-3)


# --------------------------------------------------------------------------- errors that are shared


def test_shared_errors_do_not_average_away() -> None:
    log_dt = np.full(400, TRUTH)
    free = pool(*table(values(log_dt, 0.1)))
    timed = pool(*table(values(log_dt, 0.1), time_rel_error=0.23))
    blurred = pool(*table(values(log_dt, np.hypot(0.1, 0.05)), systematic=0.05))
    assert free["log10_D_errors"] == pytest.approx(0.005, rel=0.01)
    assert timed["log10_D_errors"] == pytest.approx(np.hypot(0.005, 0.1), rel=0.01)
    assert timed["log10_Dt_errors"] == pytest.approx(0.005, rel=0.01)
    half = float(timed["log10_D_high95"] - timed["log10_D_low95"]) / 2
    assert half == pytest.approx(1.96 * np.hypot(0.005, 0.1), rel=0.01)
    assert blurred["log10_Dt_errors"] == pytest.approx(np.hypot(0.005, 0.05), rel=0.01)


def test_without_a_time_only_the_product_is_known() -> None:
    got = pool(*table(values(np.full(5, TRUTH), 0.1), seconds=None))
    assert np.isnan(got["log10_D"])
    assert np.isnan(got["log10_D_errors"])
    assert np.isnan(got["log10_D_high95"])
    assert got["log10_Dt"] == pytest.approx(TRUTH, abs=1e-5)
    assert got["spread"] == pytest.approx(0.0, abs=1e-6)


# -------------------------------------------------------------------------- who is left out and why


def test_who_is_left_out_and_how_the_mean_moves() -> None:
    log_dt = np.array([-12.0, -12.1, -11.9, -11.0, -11.2, -12.0, -12.0, -12.0])
    fits = values(log_dt, 0.1)
    fits[1][5], fits[2][5] = 0.0, np.inf
    verdicts = ["diffusion", "diffusion", "undecided", "core-shell", "no gradient"]
    models, particles = table(fits, verdicts + ["undecided"] * 3)
    for name in ("chi2", "Dt_cm2", "Dt_low", "Dt_high"):
        models[name][6] = np.nan
    particles["used"] = ("particle", np.arange(8) != 7)
    particles["reason"] = ("particle", np.array([""] * 7 + ["at the border"], dtype=object))
    got = pool(models, particles)
    assert got["left_out"].values.tolist() == [
        *("", "", ""),
        "the verdict is core-shell",
        "the verdict is no gradient",
        "no limit to either side",
        "not fitted",
        "at the border",
    ]
    assert got["particles_used"] == 3
    assert got["count_left_out"] == 5
    assert got["log10_D"] == pytest.approx(LOG_D, abs=1e-3)
    # Everything that says anything: three used, two of other verdicts, one at the border.
    everything = np.array([-12.0, -12.1, -11.9, -11.0, -11.2, -12.0])
    assert got["log10_D_all"] == pytest.approx(everything.mean() - np.log10(SECONDS), abs=1e-3)
    assert got["log10_D_shift"] == pytest.approx(everything.mean() - TRUTH, abs=1e-3)
    assert np.all(got["weight"].values[3:] == 0)
    assert got["weight"].sum() == pytest.approx(1.0)


def test_weights_and_influence() -> None:
    log_dt = np.array([-12.0, -12.05, -11.95, -12.02, -11.2])
    errors = np.array([0.1, 0.1, 0.1, 0.3, 0.1])
    models, particles = table(values(log_dt, errors))
    got = pool(models, particles)
    expected = 1 / (errors**2 + float(got["spread"]) ** 2)
    assert got["weight"].values == pytest.approx(expected / expected.sum(), rel=1e-3)
    rest = np.delete(np.arange(5), 4)
    without = np.sum(expected[rest] * log_dt[rest]) / expected[rest].sum()
    mean = np.sum(expected * log_dt) / expected.sum()
    assert got["influence"][4] == pytest.approx(without - mean, abs=1e-4)
    assert got["most_influential"] == 15
    assert got["largest_influence"] == got["influence"][4]
    one = pool(models.isel(particle=[0]), particles)
    assert np.isnan(one["influence"][0])
    assert one["most_influential"] == 0


def test_a_field_that_says_nothing() -> None:
    models, particles = table(values(np.full(3, TRUTH), 0.1))
    for one in (models.isel(particle=[]), models.where(models["particle"] < 0)):
        one = one.assign(verdict=models["verdict"].sel(particle=one["particle"]))
        got = pool(one, particles)
        assert got["particles_used"] == 0
        for name in ("log10_D", "log10_D_low68", "log10_D_all", "spread", "shell_thickness"):
            assert np.isnan(got[name])
        assert got["verdict"] == "undecided"
    open_on_both = (np.full(3, 1e-12), np.zeros(3), np.full(3, np.inf))
    got = pool(*table(open_on_both))
    assert got["particles_used"] == 0
    assert set(got["left_out"].values) == {"no limit to either side"}


# ------------------------------------------------------------------------------ verdict and shell


@pytest.mark.parametrize(
    ("difference", "verdict", "expected"),
    [
        (np.full(10, 4.0), "undecided", "diffusion"),
        (np.full(10, -4.0), "undecided", "core-shell"),
        (np.full(3, 2.0), "undecided", "undecided"),
        # One particle, however sure, does not decide for a field, nor do two halves that differ.
        (np.array([-500.0] + [3.0] * 20), "undecided", "diffusion"),
        (np.array([-30.0] * 9 + [30.0] * 11), "undecided", "undecided"),
        (np.full(10, 4.0), "no gradient", "no gradient"),
    ],
)
def test_pooled_verdict(difference: np.ndarray, verdict: str, expected: str) -> None:
    size = difference.size
    shell = tuple(np.full(size, 20.0 + k) for k in (0, -2, 2))
    got = pool(
        *table(values(np.full(size, TRUTH), 0.1), verdict, difference=difference, shell=shell)  # type: ignore[arg-type]
    )
    assert got["verdict"] == expected
    assert expected in VERDICTS
    assert got["count_" + verdict.replace(" ", "_")] == size
    if verdict == "undecided":
        assert got["shell_thickness"] == pytest.approx(20.0, rel=0.01)
        assert got["shell_thickness_errors"] == pytest.approx(2.0 / np.sqrt(size), rel=0.05)
    else:
        assert np.isnan(got["shell_thickness"])
