"""Contrasts between places: what they must see, what they must not, and their coverage."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import xarray as xr

from spectromap.heterogeneity import contrasts
from spectromap.schema import InputError

OUTSIDE, EQUAL, EXTERIOR = (
    "outside-inside",
    "outside-inside at equal thickness",
    "exterior-interior",
)


def table(
    rng,
    agglomerates=10,
    members=(8, 20),
    outside=30,
    difference=0.1,
    inner=0.05,
    between=0.03,
    within=0.06,
    slope=0.0,
    thickness=(80.0, 80.0),
):
    """Particles with known differences; thickness = (outside, inside)."""
    rows = []
    for number in range(1, agglomerates + 1):
        own, gradient = rng.normal(0, between), rng.normal(0, 0.5 * between)
        for _ in range(rng.integers(*members)):
            side = 0.5 if rng.random() < 0.5 else -0.5
            place = "exterior" if side > 0 else "interior"
            rows.append((number, place, own + side * (inner + gradient), thickness[1]))
    rows += [(0, "outside", difference, thickness[0])] * outside
    count = len(rows)
    thick = np.array([row[3] for row in rows]) + rng.normal(0, 12, count)
    fraction = np.array([row[2] for row in rows]) + 0.3 + slope * (thick - 80.0)
    return xr.Dataset(
        {
            "mn3_fraction": ("particle", fraction + rng.normal(0, within, count)),
            "thickness": ("particle", thick),
            "agglomerate": ("particle", np.array([row[0] for row in rows])),
            "place": ("particle", np.array([row[1] for row in rows], dtype=object)),
            "used": ("particle", np.ones(count, bool)),
        },
        coords={"particle": np.arange(1, count + 1)},
    )


def of(result, name):
    return {k: v.item() for k, v in result.sel(contrast=name).data_vars.items()}


def test_differences_are_found_with_their_sign():
    result = contrasts(table(np.random.default_rng(2)), "mn3")
    assert list(result.contrast.values) == [OUTSIDE, EQUAL, EXTERIOR]
    for name, truth in ((OUTSIDE, 0.1), (EQUAL, 0.1), (EXTERIOR, 0.05)):
        row = of(result, name)
        assert row["low"] < truth < row["high"]
        assert row["low"] < row["difference"] < row["high"]
        assert row["p_value"] < 0.05
        assert row["resampled_by"] == "agglomerate"
    assert of(result, OUTSIDE)["count_a"] == 30
    assert result.difference.attrs["units"] == "1"


def test_a_difference_in_thickness_alone_is_not_a_difference_at_equal_thickness():
    particles = table(
        np.random.default_rng(3), difference=0.0, slope=0.004, thickness=(65.0, 90.0), within=0.03
    )
    result = contrasts(particles, "mn3")
    assert of(result, OUTSIDE)["high"] < 0.0
    assert of(result, OUTSIDE)["p_value"] < 0.01
    adjusted = of(result, EQUAL)
    assert adjusted["low"] < 0.0 < adjusted["high"]
    assert abs(adjusted["difference"]) < 0.03


def test_the_adjusted_difference_is_that_of_least_squares():
    particles = table(np.random.default_rng(4), slope=0.003, thickness=(75.0, 85.0))
    outside = (particles.place == "outside").values
    columns = np.column_stack([outside, np.ones(outside.size), particles.thickness.values])
    exact = np.linalg.lstsq(columns, particles.mn3_fraction.values, rcond=None)[0][0]
    assert of(contrasts(particles, "mn3"), EQUAL)["difference"] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"agglomerates": 5},
        {"members": (3, 40)},
        {"between": 0.08},
        {"slope": 0.002, "thickness": (72.0, 88.0)},
    ],
)
def test_intervals_cover(case):
    truth = {OUTSIDE: 0.1, EQUAL: 0.1, EXTERIOR: 0.05}
    low, high = case.get("thickness", (80.0, 80.0))
    truth[OUTSIDE] += case.get("slope", 0.0) * (low - high)
    inside = dict.fromkeys(truth, 0)
    draws = 150
    for seed in range(draws):
        particles = table(np.random.default_rng([seed, 7]), **case)
        result = contrasts(particles, "mn3", n_resamples=200, seed=seed)
        for name, value in truth.items():
            row = of(result, name)
            inside[name] += row["low"] <= value <= row["high"]
    # 95 % nominal; 150 draws know it to 1.8 %.
    for covered in inside.values():
        assert 0.89 <= covered / draws <= 1.0
    assert 0.91 <= np.mean(list(inside.values())) / draws <= 0.99


def test_p_values_of_nothing_are_spread_evenly():
    p_values = []
    for seed in range(150):
        particles = table(np.random.default_rng([seed, 9]), difference=0.0, inner=0.0)
        p_values.append(contrasts(particles, "mn3", n_resamples=200, seed=seed).p_value.values)
    small = np.mean(np.array(p_values) < 0.1, axis=0)
    assert np.all(small < 0.19)
    assert np.all(np.abs(np.median(p_values, axis=0) - 0.5) < 0.14)


def test_more_particles_of_one_agglomerate_do_not_replace_agglomerates():
    few = table(np.random.default_rng(5), members=(8, 9), between=0.06)
    many = table(np.random.default_rng(5), members=(200, 201), between=0.06, outside=400)
    width = [float((r.high - r.low)[0]) for r in (contrasts(few, "mn3"), contrasts(many, "mn3"))]
    assert width[1] > 0.6 * width[0]


def test_few_agglomerates_are_said_to_be_few(caplog):
    particles = table(np.random.default_rng(6), agglomerates=2, members=(15, 20))
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        result = contrasts(particles, "mn3")
    assert "agglomerates seen (2)" in caplog.text
    assert set(result.resampled_by.values) == {"primary"}
    assert np.isfinite(result.p_value).all()


def test_small_groups_give_nan_and_a_warning(caplog):
    particles = table(np.random.default_rng(6), outside=4)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        result = contrasts(particles, "mn3")
    row = of(result, OUTSIDE)
    assert np.isnan([row[k] for k in ("difference", "low", "high", "p_value")]).all()
    assert row["count_a"] == 4
    assert "outside-inside: 4 and" in caplog.text
    assert np.isfinite(of(result, EXTERIOR)["low"])
    assert np.isfinite(contrasts(particles, "mn3", min_count=4).low).all()


def test_without_agglomerates_there_is_nothing_to_say(caplog):
    particles = table(np.random.default_rng(6), agglomerates=0)
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        result = contrasts(particles, "mn3")
    assert np.isnan(result.difference).all()
    assert caplog.text == ""
    empty = contrasts(particles.isel(particle=slice(0, 0)), "mn3")
    assert np.isnan(empty.difference).all()


def test_only_used_and_measured_particles_count():
    particles = table(np.random.default_rng(8))
    more = particles.copy(deep=True)
    more["mn3_fraction"].values[:] += 5.0
    more["used"].values[:] = False
    more["particle"] = more.particle + 1000
    both = xr.concat([particles, more], "particle")
    xr.testing.assert_identical(contrasts(both, "mn3"), contrasts(particles, "mn3"))
    holes = xr.concat([particles, more.assign(used=~more.used, mn3_fraction=np.nan)], "particle")
    xr.testing.assert_identical(contrasts(holes, "mn3"), contrasts(particles, "mn3"))


def test_the_seed_decides_the_draws():
    particles = table(np.random.default_rng(8))
    first = contrasts(particles, "mn3", seed=1)
    xr.testing.assert_identical(first, contrasts(particles, "mn3", seed=1))
    other = contrasts(particles, "mn3", seed=2)
    assert np.all(first.low.values != other.low.values)
    np.testing.assert_allclose(first.low, other.low, atol=0.01)
    np.testing.assert_array_equal(first.difference, other.difference)


def test_groups_that_share_no_thickness_are_named(caplog):
    particles = table(np.random.default_rng(8), thickness=(20.0, 200.0))
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        contrasts(particles, "mn3")
    assert "no thickness in common" in caplog.text


def test_mistakes_are_named():
    particles = table(np.random.default_rng(8))
    with pytest.raises(InputError, match="mn4_fraction"):
        contrasts(particles, "mn4")
    with pytest.raises(InputError, match="confidence"):
        contrasts(particles, "mn3", confidence=95.0)
    with pytest.raises(InputError, match="n_resamples"):
        contrasts(particles, "mn3", n_resamples=10)
