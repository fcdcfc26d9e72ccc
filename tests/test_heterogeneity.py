"""Statistics of places: what they must see, what they must not, and how often they are right."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path

import make_results
import numpy as np
import pytest
import xarray as xr

from spectromap import heterogeneity
from spectromap.heterogeneity import _linear, compare_groups, contrasts
from spectromap.io.results import read_result, write_result
from spectromap.schema import InputError

pytestmark = pytest.mark.long


def _benchmark():
    """The simulator of tables, which the benchmark runs at length."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "heterogeneity.py"
    spec = importlib.util.spec_from_file_location("benchmark_heterogeneity", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


long_runs = _benchmark()
Tables, table = long_runs.Tables, long_runs.table

OUTSIDE, EXTERIOR, SIZES = "outside-inside", "exterior-interior", "large-small"
EQUAL, STRATA = " at equal thickness", " at equal thickness, stratified"
PLAIN = Tables("plain")


def of(result, name):
    index = list(result.contrast.values).index(name)
    return {k: v.values[index] for k, v in result.data_vars.items() if v.dims == ("contrast",)}


def columns_of(particles, first):
    """Design of a regression by hand."""
    return np.column_stack([first, np.ones(first.size), particles.thickness.values])


def test_differences_are_found_with_their_sign():
    result = contrasts(table(replace(PLAIN, within=0.03), 3), "mn3")
    names = [q + way for q in (OUTSIDE, EXTERIOR) for way in ("", EQUAL, STRATA)]
    assert list(result.contrast.values) == names
    for name in names:
        truth = 0.1 if name.startswith(OUTSIDE) else 0.05
        row = of(result, name)
        assert row["low"] < truth < row["high"]
        assert row["low"] < row["difference"] < row["high"]
        assert row["p_value"] <= row["p_value_holm"] < 0.05
        assert (row["resampled_by"], row["agglomerates"]) == ("agglomerate", 10)
        assert row["remark"] == ""
    assert of(result, OUTSIDE)["count_a"] == 30
    assert result.difference.attrs["units"] == "1"


def test_a_difference_in_thickness_alone_is_not_a_difference_at_equal_thickness():
    kind = Tables("alone", difference=0, rim=0, within=0.03, slope=0.004, thickness=(65, 90))
    result = contrasts(table(kind, 3), "mn3")
    assert of(result, OUTSIDE)["high"] < 0
    assert of(result, OUTSIDE)["p_value"] < 0.01
    for way in (EQUAL, STRATA):
        adjusted = of(result, OUTSIDE + way)
        assert adjusted["low"] < 0 < adjusted["high"]
        assert abs(adjusted["difference"]) < 0.03


def test_differences_are_those_of_least_squares():
    particles = table(replace(PLAIN, slope=0.003, thickness=(75, 85), rim_thinner=4.0), 4)
    y = particles.mn3_fraction.values
    outside, exterior = (
        (particles.place == p).values.astype(float) for p in ("outside", "exterior")
    )
    result = contrasts(particles, "mn3")
    means = y[outside == 1].mean() - y[outside == 0].mean()
    assert of(result, OUTSIDE)["difference"] == pytest.approx(means, rel=1e-9)
    # The slope is that within places; the composition of inside stays what it is.
    centred = np.where(outside == 1, 0.0, exterior - exterior.sum() / (1 - outside).sum())
    columns = np.column_stack([columns_of(particles, outside), centred])
    exact = np.linalg.lstsq(columns, y, rcond=None)[0][0]
    assert of(result, OUTSIDE + EQUAL)["difference"] == pytest.approx(exact, rel=1e-9)
    # Exterior and interior within agglomerates.
    inside = outside == 0
    levels = np.equal.outer(particles.agglomerate.values[inside], np.arange(1, 11))
    columns = np.column_stack([exterior[inside], levels, particles.thickness.values[inside]])
    exact = np.linalg.lstsq(columns, y[inside], rcond=None)[0][0]
    assert of(result, EXTERIOR + EQUAL)["difference"] == pytest.approx(exact, rel=1e-9)


def test_the_interval_of_independent_particles_is_the_textbook_one():
    particles = table(replace(PLAIN, agglomerates=1, members=(40, 41), outside=25), 5)
    row = of(contrasts(particles, "mn3"), OUTSIDE)
    groups = [particles.mn3_fraction.values[particles.place == "outside"],
              particles.mn3_fraction.values[particles.place != "outside"]]  # fmt: skip
    error = np.sqrt(sum(g.var(ddof=1) / g.size for g in groups))
    half = 0.5 * (row["high"] - row["low"])
    assert row["resampled_by"] == "primary"
    # Welch's error; degrees of freedom between the smaller group's and both groups'.
    assert 1.99 * error < half < 2.07 * error
    assert 24 < row["degrees_of_freedom"] < 64


def test_equal_agglomerates_are_as_good_as_their_means():
    """With equal sizes the interval of a trend within agglomerates is that of paired samples."""
    rng = np.random.default_rng(6)
    side = np.tile([1.0] * 6 + [0.0] * 6, 8)
    agglomerate = np.repeat(np.arange(1, 9), 12)
    values = rng.normal(size=8)[agglomerate - 1] + side * rng.normal(0.3, 0.3, 8)[agglomerate - 1]
    particles = xr.Dataset(
        {
            "mn3_fraction": ("particle", values + rng.normal(0, 0.1, 96)),
            "thickness": ("particle", rng.normal(80, 5, 96)),
            "agglomerate": ("particle", agglomerate),
            "place": ("particle", np.where(side > 0, "exterior", "interior").astype(object)),
            "used": ("particle", np.ones(96, bool)),
        }
    )
    row = of(contrasts(particles, "mn3"), EXTERIOR)
    means = particles.mn3_fraction.values.reshape(8, 2, 6).mean(axis=2)
    pairs = means[:, 0] - means[:, 1]
    assert row["difference"] == pytest.approx(pairs.mean(), rel=1e-9)
    half = 2.364624 * pairs.std(ddof=1) / np.sqrt(8)
    assert 0.5 * (row["high"] - row["low"]) == pytest.approx(half, rel=1e-6)
    assert row["degrees_of_freedom"] == pytest.approx(7.0, rel=1e-9)


def clustered(seed):
    """A design of four agglomerates of 3 to 30 primaries, and 12 primaries outside."""
    rng = np.random.default_rng(seed)
    block = np.concatenate([np.repeat(np.arange(4), (3, 5, 12, 30)), np.full(12, -1)])
    unit = np.where(block >= 0, block, 4 + np.arange(block.size) - 50)
    columns = np.column_stack([block < 0, np.ones(block.size), rng.normal(size=block.size)])
    return columns.astype(float), unit, block, rng


def test_residuals_are_stretched_to_what_they_have_lost():
    """For independent particles the sum of squares over units is the variance, exactly."""
    columns, unit, _, _ = clustered(1)
    design = _linear._design(columns)
    stretched = _linear._adjusted(design, unit, unit.max() + 1)
    left = np.eye(unit.size) - design.basis @ design.basis.T
    expected = sum(
        np.sum((left[:, unit == one] @ stretched[unit == one]) ** 2) for one in np.unique(unit)
    )
    assert expected == pytest.approx(float(design.weights @ design.weights), rel=1e-9)


def test_the_variance_is_right_for_agglomerates_of_unequal_size():
    columns, unit, block, rng = clustered(2)
    weights = np.linalg.pinv(columns)[0]
    shared = np.equal.outer(np.arange(4), block).astype(float)
    truth = 0.5**2 * weights @ weights + np.sum((shared @ weights) ** 2)
    found, parts = [], []
    for _ in range(600):
        level = np.append(rng.normal(0, 1.0, 4), 0.0)
        one = _linear.coefficient(
            columns, level[block] + rng.normal(0, 0.5, block.size), unit, block
        )
        found.append(one.variance)
        parts.append(one.shared / one.variance)
    assert np.mean(found) / truth == pytest.approx(1.0, abs=0.12)
    assert np.median(parts) > 0.9


def test_three_agglomerates_that_look_alike_are_not_taken_for_thirty_particles():
    block = np.repeat(np.arange(3), 12)
    values = np.tile(np.sin(np.arange(12.0)), 3)
    found = _linear.coefficient(np.ones((36, 1)), values, block, block)
    assert found.freedom == pytest.approx(2.0, abs=0.1)
    columns = np.column_stack([np.repeat([0.0, 1.0], (36, 12)), np.ones(48)])
    outside = np.append(block, np.full(12, -1))
    unit = np.append(block, 3 + np.arange(12))
    found = _linear.coefficient(columns, np.tile(values[:12], 4), unit, outside)
    assert found.freedom < 12  # 20 if they are believed to be alike


@pytest.mark.parametrize(
    "name",
    ["three agglomerates", "four agglomerates, unequal", "measurement errors", "thickness alone"],
)
def test_intervals_cover_and_differences_are_right_on_average(name):
    (kind,) = (k for k in long_runs.KINDS if k.name == name)
    lines = list(long_runs.contrast_lines(kind, 150, first=50_000))
    assert len(lines) == 6
    for line in lines:
        # 95 % nominal; 150 tables know it to 1.8 %.
        assert 0.89 <= line.coverage <= 0.995, line
        error = line.width / 2 / np.sqrt(150)
        assert abs(line.mean - line.truth) <= 0.05 * abs(line.truth) + 2.5 * error, line
        assert not line.false_positives > 0.11, line
    assert 0.92 <= np.mean([line.coverage for line in lines]) <= 0.985


def test_few_agglomerates_hold_for_themselves():
    """Two agglomerates: the interval is for what these two are, and covers that."""
    kind = Tables("two", agglomerates=2, members=(15, 25), between=0.1, gradient=0.0)
    inside, draws = 0, 200
    for seed in range(draws):
        particles = table(kind, seed)
        rng = np.random.default_rng([seed, 5])
        # The same agglomerates with primaries drawn anew around their means.
        truth = particles.mn3_fraction.groupby(particles.agglomerate).mean()
        values = truth.sel(agglomerate=particles.agglomerate).values
        particles["mn3_fraction"] = ("particle", values + rng.normal(0, 0.05, values.size))
        outside = particles.place.values == "outside"
        row = of(contrasts(particles, "mn3"), OUTSIDE)
        assert row["resampled_by"] == "primary"
        inside += row["low"] <= values[outside].mean() - values[~outside].mean() <= row["high"]
    assert 0.90 <= inside / draws <= 0.99


def test_more_particles_of_one_agglomerate_do_not_replace_agglomerates():
    few = table(Tables("f", members=(8, 8), between=0.06), 5)
    many = table(Tables("f", members=(200, 200), between=0.06, outside=400), 5)
    width = [float((r.high - r.low)[0]) for r in (contrasts(few, "mn3"), contrasts(many, "mn3"))]
    assert width[1] > 0.6 * width[0]


def test_large_and_small_agglomerates_are_told_apart():
    kind = Tables("sizes", agglomerates=12, small=10, size=-0.08)
    particles = table(kind, 7)
    sizes = heterogeneity.size_classes(particles)
    np.testing.assert_array_equal(sizes.size_class == "small", sizes.agglomerate > 12)
    assert int(sizes.agglomerate_primaries.sum()) == int((particles.agglomerate > 0).sum())
    area = float(particles.area[particles.agglomerate == 3].sum())
    diameter = float(sizes.agglomerate_diameter.sel(agglomerate=3))
    assert diameter == pytest.approx(2 * np.sqrt(area / np.pi))
    row = of(contrasts(particles, "mn3"), SIZES + EQUAL)
    assert row["low"] < -0.08 < row["high"] < 0
    assert row["resampled_by"] == "agglomerate"


def test_a_group_that_is_one_agglomerate_says_nothing_of_others():
    particles = table(Tables("one small", small=1, size=-0.08, members=(15, 20)), 8)
    row = of(contrasts(particles, "mn3"), SIZES)
    assert row["resampled_by"] == "primary"
    assert "holds for the agglomerates seen only" in row["remark"]


def test_few_agglomerates_are_said_to_be_few(caplog):
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        result = contrasts(table(Tables("two", agglomerates=2, members=(15, 20)), 6), "mn3")
    assert caplog.text.count("agglomerates seen only (2)") == 1
    assert set(result.resampled_by.values) == {"primary"}
    assert np.isfinite(result.p_value).all()
    three = contrasts(table(Tables("three", agglomerates=3, members=(15, 20)), 6), "mn3")
    assert "degrees of freedom" in of(three, EXTERIOR)["remark"]
    assert set(three.resampled_by.values) == {"agglomerate"}


def test_small_groups_give_nan_and_a_warning(caplog):
    particles = table(replace(PLAIN, outside=4), 6)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        result = contrasts(particles, "mn3")
    row = of(result, OUTSIDE)
    assert np.isnan([row[k] for k in ("difference", "low", "high", "p_value")]).all()
    assert row["count_a"] == 4
    assert row["remark"].startswith("4 and")
    assert "outside-inside: 4 and" in caplog.text
    assert np.isfinite(of(result, EXTERIOR)["low"])
    assert np.isfinite(contrasts(particles, "mn3", min_count=4).low).all()


def test_without_agglomerates_there_is_nothing_to_say(caplog):
    particles = table(replace(PLAIN, agglomerates=0), 6)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        for some in (particles, particles.isel(particle=slice(0, 0))):
            result = heterogeneity.statistics(some, "mn3")
            for name in ("difference", "depth_trend"):
                assert np.isnan(result[name]).all()
            assert np.isnan(result.variance[0])
    assert caplog.text == ""


def test_only_used_and_measured_particles_count():
    particles = table(PLAIN, 8)
    more = particles.copy(deep=True)
    more["mn3_fraction"].values[:] += 5.0
    more["used"].values[:] = False
    more["particle"] = more.particle + 1000
    for extra in (more, more.assign(used=~more.used, mn3_fraction=more.mn3_fraction * np.nan)):
        both = xr.concat([particles, extra], "particle")
        for ask in (contrasts, heterogeneity.depth_trend, heterogeneity.variance_components):
            xr.testing.assert_identical(ask(both, "mn3"), ask(particles, "mn3"))


def test_groups_that_share_no_thickness_are_named(caplog):
    particles = table(replace(PLAIN, thickness=(30.0, 200.0)), 8)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        result = contrasts(particles, "mn3")
    assert "no thickness in common" in caplog.text
    assert "no thickness in common" in of(result, OUTSIDE + EQUAL)["remark"]
    assert np.isnan(of(result, OUTSIDE + STRATA)["difference"])


def test_a_thickness_that_is_noise_is_named():
    particles = table(replace(PLAIN, thickness_error=25.0), 8)
    assert "noise" in of(contrasts(particles, "mn3"), OUTSIDE + EQUAL)["remark"]


def test_agglomerates_of_different_fields_are_different_ones():
    first, second = (table(Tables(n, agglomerates=4), 9) for n in ("a", "b"))
    same = xr.concat([first, second], "particle")
    apart = same.assign(
        field=("particle", np.repeat(["a", "b"], [first.particle.size, second.particle.size]))
    )
    assert of(contrasts(same, "mn3"), OUTSIDE)["agglomerates"] == 4
    assert of(contrasts(apart, "mn3"), OUTSIDE)["agglomerates"] == 8


def test_many_groups_are_compared_with_care():
    """Five states that are alike: some pair looks different far more often than Holm lets it."""
    plain, together = 0, 0
    for seed in range(80):
        rng = np.random.default_rng([seed, 11])
        particles = table(Tables("alike", agglomerates=0, outside=100), seed)
        particles["cycles"] = ("particle", rng.choice([0, 1, 25, 125, 500], 100))
        pairs = compare_groups(particles, "mn3", "cycles").isel(contrast=slice(0, None, 2))
        plain += bool((pairs.p_value < 0.05).any())
        together += bool((pairs.p_value_holm < 0.05).any())
    assert plain >= 12
    assert together <= 9
    names = [str(name) for name in pairs.contrast.values]
    assert names[:4] == ["0-1", "0-25", "0-125", "0-500"]
    assert np.all(pairs.p_value_holm >= pairs.p_value)


def test_holm_by_hand():
    found = heterogeneity._contrasts.holm(np.array([0.01, np.nan, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(found, [0.04, np.nan, 0.09, 0.09, 0.5])


def test_states_that_differ_are_seen():
    kinds = (Tables(name, difference=0.0, rim=0.0) for name in ("pristine", "cycled"))
    tables = [table(kind, 3) for kind in kinds]
    tables[1]["mn3_fraction"] = tables[1].mn3_fraction + 0.15
    both = xr.concat(tables, "particle")
    names = np.repeat(["pristine", "cycled"], [t.particle.size for t in tables]).astype(object)
    both = both.assign(field=("particle", names), state=("particle", names))
    row = of(compare_groups(both, "mn3", "state"), "cycled-pristine")
    assert row["low"] < 0.15 < row["high"]
    assert row["agglomerates"] == 20
    assert row["p_value_holm"] < 0.01


def test_the_trend_with_depth_is_found():
    lines = list(long_runs.trend_lines(60, first=60_000))
    assert len(lines) == 6
    for line in lines:
        assert line.coverage >= 0.86, line
        error = line.width / 2 / np.sqrt(60)
        assert abs(line.mean - line.truth) <= 0.05 * abs(line.truth) + 2.5 * error, line


def test_agglomerates_of_different_level_make_no_trend_with_depth():
    particles = table(Tables("levels", rim=0.0, gradient=0.0, within=0.02, between=0.0), 2)
    inside = particles.agglomerate.values > 0
    # Deep agglomerates are low ones: a trend between them, and none within.
    shift = np.where(inside, particles.agglomerate.values, 0)
    particles["depth"] = particles.depth + 400.0 * shift
    particles["mn3_fraction"] = particles.mn3_fraction - 0.05 * shift
    result = heterogeneity.depth_trend(particles, "mn3")
    assert np.all(result.depth_trend_low < 0)
    assert np.all(result.depth_trend_high > 0)
    assert np.all(np.abs(result.depth_trend) < 2e-5)  # between agglomerates it is -1.2e-4
    assert int(result.depth_trend_agglomerates) == 10
    assert result.depth_trend.attrs["units"] == "nm-1"


def test_the_variance_is_split_as_it_was_put_together():
    kind = Tables("split", agglomerates=60, members=(20, 30), rim=0.0, gradient=0.0,
                  errors=(0.02, 0.08))  # fmt: skip
    particles = table(kind, 1)
    result = heterogeneity.variance_components(particles, "mn3").set_index(component="component")
    between, primaries, noise = (
        float(result.variance.sel(component=name))
        for name in ("between agglomerates", "between primaries", "noise")
    )
    assert primaries == pytest.approx(0.06**2, rel=0.1)
    assert between == pytest.approx(0.03**2, rel=0.45)
    assert noise == pytest.approx(
        float((particles.mn3_fraction_errors**2)[particles.agglomerate > 0].mean())
    )
    assert np.nansum(result.variance_share) == pytest.approx(1.0)
    for line in long_runs.variance_lines(80, first=70_000):
        assert 0.87 <= line.coverage <= 1.0, line


def test_spread_within_primaries_is_that_beyond_noise():
    maps = long_runs.field(30.0, 10.0, (200, 200), 3)
    particles = xr.Dataset(
        {
            "mn3_fraction": ("particle", np.full(9, 0.3)),
            "thickness": ("particle", np.full(9, 100.0)),
            "agglomerate": ("particle", np.ones(9, int)),
            "place": ("particle", np.full(9, "interior", object)),
            "used": ("particle", np.ones(9, bool)),
        },
        coords={"particle": [n * 1000 + m + 1 for n in range(3) for m in range(3)]},
    )
    result = heterogeneity.variance_components(particles, "mn3", maps)
    # The scatter is 0.05 over lengths of 30 nm, particles 160 nm wide, noise 0.08.
    assert 0.035**2 < float(result.variance[2]) < 0.06**2
    assert np.isnan(result.variance_share[2])


def test_the_number_of_primaries_needed_gives_the_half_width():
    (line,) = long_runs.number_lines(60, first=80_000)
    assert abs(line.mean / line.truth - 1.0) < 0.2
    assert line.coverage >= 0.87


def test_the_curve_of_the_interval_against_number_seen():
    particles = table(Tables("curve", members=(12, 12), between=0.08, outside=0), 4)
    result = heterogeneity.primaries_needed(particles, "mn3", half_width_wanted=0.03)
    half = result.half_width.values
    assert np.all(np.diff(half) < 0)
    # A quarter of ten agglomerates also leaves fewer degrees of freedom.
    assert np.interp(30, result.number, half) > 1.3 * 2 * np.interp(120, result.number, half)
    at_wanted = np.interp(float(result.primaries_needed), result.number, half)
    assert at_wanted == pytest.approx(0.03, rel=0.05)
    assert float(result.agglomerates_needed) == np.ceil(float(result.primaries_needed) / 12)
    # More primaries of the same agglomerates do not help.
    same = result.half_width_same_agglomerates.values
    assert same[-1] > 0.8 * np.interp(120, result.number, half)
    # As the sample is seen, agglomerate after agglomerate, the mean settles.
    seen = (result.seen_high - result.seen_low).values
    known = result.number.values <= 120
    assert np.isfinite(seen[known]).all()
    assert np.isnan(seen[~known]).all()
    assert seen[known][-1] < 0.5 * seen[known][0]
    # One agglomerate of twelve tells less than twelve independent primaries would.
    twelve = np.interp(12, result.number.values[known], seen[known])
    assert twelve > 2 * 1.96 * particles.mn3_fraction.values.std() / np.sqrt(12) * 1.3
    again = heterogeneity.primaries_needed(particles, "mn3", half_width_wanted=0.03)
    xr.testing.assert_identical(result, again)
    other = heterogeneity.primaries_needed(particles, "mn3", half_width_wanted=0.03, seed=1)
    assert np.any(other.seen_low.values[known] != result.seen_low.values[known])
    np.testing.assert_array_equal(other.half_width, result.half_width)


@pytest.mark.parametrize("length", [150.0, 400.0])
def test_the_correlation_length_is_found(length):
    lengths, errors = [], []
    for seed in range(8):
        found = heterogeneity.correlation_length(
            long_runs.field(length, 20.0, (300, 320), seed), "mn3"
        )
        lengths.append(float(found.correlation_length))
        errors.append(float(found.correlation_length_errors))
    assert np.mean(lengths) == pytest.approx(length, rel=0.12)
    assert 0.5 < np.std(lengths) / np.mean(errors) < 1.6
    assert found.correlation_length.attrs["units"] == "nm"
    assert float(found.correlated_variance) == pytest.approx(0.05**2, rel=0.5)


def test_a_map_of_noise_has_no_correlation_length(caplog):
    maps = long_runs.field(200.0, 20.0, (200, 200), 1)
    rng = np.random.default_rng(2)
    maps["mn3_fraction"] = maps.mn3_fraction * 0 + 0.3 + rng.normal(0, 0.1, maps.mn3_fraction.shape)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        found = heterogeneity.correlation_length(maps, "mn3")
    assert abs(float(found.correlation_variance[0])) < 0.02 * 0.1**2
    assert np.isnan(found.correlation_length)
    assert np.isnan(found.correlation_length_errors)
    assert "less than half the resolution" in caplog.text


def test_a_map_that_is_alike_everywhere_says_so(caplog):
    maps = long_runs.field(200.0, 20.0, (200, 200), 1)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        maps["mn3_fraction"] = maps.mn3_fraction * 0 + 1e-4 * maps.x
        found = heterogeneity.correlation_length(maps, "mn3")
    assert np.isnan(found.correlation_length)
    assert "alike over more than" in caplog.text


def test_statistics_ask_everything_and_can_be_stored(tmp_path):
    particles = table(PLAIN, 1)
    maps = long_runs.field(200.0, 20.0, (150, 150), 1)
    result = heterogeneity.statistics(particles, "mn3", maps, 40.0)
    xr.testing.assert_identical(
        result[list(contrasts(particles, "mn3"))], contrasts(particles, "mn3")
    )
    for name in ("depth_trend", "variance", "half_width", "correlation_length", "size_class"):
        assert name in result
    for name, variable in result.variables.items():
        assert variable.dtype.kind == "O" or "units" in variable.attrs or name == "agglomerate", (
            name
        )
    tree = make_results.make_tree()
    tree["entry/heterogeneity"] = xr.DataTree(result)
    kept = read_result(write_result(tree, tmp_path / "r.h5"))["entry/heterogeneity"].to_dataset()
    xr.testing.assert_identical(kept, result)


def test_mistakes_are_named():
    particles = table(PLAIN, 8)
    with pytest.raises(InputError, match="mn4_fraction"):
        contrasts(particles, "mn4")
    with pytest.raises(InputError, match="confidence"):
        contrasts(particles, "mn3", confidence=95.0)
    with pytest.raises(InputError, match="min_agglomerates"):
        contrasts(particles, "mn3", min_agglomerates=1)
    with pytest.raises(InputError, match="depth"):
        heterogeneity.depth_trend(particles.drop_vars("depth"), "mn3")
    with pytest.raises(InputError, match="n_resamples"):
        heterogeneity.primaries_needed(particles, "mn3", n_resamples=10)
    with pytest.raises(InputError, match="'state'"):
        compare_groups(particles, "mn3", "state")
    with pytest.raises(InputError, match="fewer than two"):
        compare_groups(particles.isel(particle=particles.place == "outside"), "mn3", "place")
    maps = long_runs.field(200.0, 20.0, (50, 50), 1)
    with pytest.raises(InputError, match="thickness"):
        heterogeneity.correlation_length(maps.drop_vars("thickness"), "mn3")
    with pytest.raises(InputError, match="resolution_nm"):
        heterogeneity.correlation_length(maps, "mn3", 0.0)
