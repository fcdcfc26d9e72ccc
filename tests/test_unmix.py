"""The pixel fit against known composition, and its numerical promises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from make_stacks import label, make, reference_set, spectra
from scipy.optimize import nnls

from spectromap import absorption, align, unmix
from spectromap.schema import FLAGS, InputError


def absorbed(made, dark=0.0):
    """Transmission of a stack whose shifts and I0 are known exactly."""
    shifts = align.zero_shifts(made.stack)
    shifts.shift_y.values[:], shifts.shift_x.values[:] = made.shifts_px.T * 10.0
    aligned = align.apply_shifts(made.stack, shifts)
    i0 = known_i0(made.stack.energy, made.i0)
    return absorption.transmission(aligned, i0, shifts, dark)


def known_i0(energy, values):
    data = {
        "i0": ("energy", np.asarray(values, float)),
        "i0_errors": ("energy", np.zeros(len(values))),
        "noise": ("energy", np.ones(len(values))),
    }
    return xr.Dataset(data, coords={"energy": energy})


def flat(t4, t3, photons, n=64, seed=0, dark=0.0, stray=0.0, offset=0.0, energies=50):
    """A uniform sample: every pixel a fresh draw of the same truth."""
    rng = np.random.default_rng(seed)
    energy = np.linspace(635, 655, energies)
    mu = spectra(energy)
    light = np.exp(-t4 * mu["mn4"] - t3 * mu["mn3"] - offset) * (1 - stray) + stray
    counts = rng.poisson((light * photons + dark)[:, None, None] * np.ones((1, n, n)))
    stack = label(counts.astype(np.float32), energy, 10.0)
    made = absorption.transmission(stack, known_i0(stack.energy, [photons] * energies), None, dark)
    return made, reference_set(energy)


@pytest.mark.long
@pytest.mark.parametrize("photons", [50, 300, 3000])
@pytest.mark.parametrize(("t4", "t3"), [(30.0, 10.0), (150.0, 60.0), (0.0, 80.0)])
def test_errors_cover_and_nothing_is_biased(photons, t4, t3):
    made, references = flat(t4, t3, photons, dark=5.0)
    maps = unmix.fit_components(made, references)
    for name, truth in (("mn4", t4), ("mn3", t3)):
        values = maps[f"{name}_thickness"].values.ravel()
        sigma = np.sqrt(maps[f"{name}_{name}_covariance"].values.ravel())
        pull = (values - truth) / sigma
        assert abs(pull.mean()) < 0.12  # 64 x 64 draws: the mean itself is known to 0.016
        assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74
    assert 0.9 < float(maps.chi2.median()) < 1.1
    pull = (maps.thickness.values - t4 - t3) / maps.thickness_errors.values
    assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74


def test_fraction_error_covers_too():
    made, references = flat(100.0, 40.0, 500)
    maps = unmix.fit_components(made, references)
    pull = (maps.mn3_fraction.values - 40 / 140) / maps.mn3_fraction_errors.values
    assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74


def test_thick_particles_are_not_lost_where_counts_run_out():
    made, references = flat(220.0, 60.0, 400)  # 5 optical densities at the peak: three counts
    maps = unmix.fit_components(made, references)
    assert abs(float(maps.thickness.mean()) - 280) < 2.0
    assert abs(float(maps.mn3_fraction.mean()) - 60 / 280) < 0.005


def test_stray_light_is_taken_out_when_it_is_known():
    made, references = flat(120.0, 40.0, 2000, stray=0.02)
    blind = unmix.fit_components(made, references)
    told = unmix.fit_components(made, references, 0.0, 0.02)
    assert abs(float(told.thickness.mean()) - 160) < 0.5
    assert float(blind.thickness.mean()) < 155
    assert float(blind.chi2.median()) > 1.1 > float(told.chi2.median())


@pytest.mark.parametrize("stray", [0.0, 0.01, 0.03])
def test_stray_light_is_found_where_the_sample_is_thick(stray):
    made, references = flat(140.0, 60.0, 3000, n=40, stray=stray, dark=5.0)
    found, error = unmix.estimate_stray(made, references)
    assert found == pytest.approx(stray, abs=0.001)
    if stray:
        assert 0 < error < 0.001
    assert unmix.estimate_stray(made, references, enabled=False)[0] == 0.0
    assert unmix.estimate_stray(made, references, stray)[0] == pytest.approx(stray, abs=0.001)


def test_stray_light_is_not_invented_in_a_thin_sample():
    made, references = flat(10.0, 5.0, 1000, n=40)
    assert unmix.estimate_stray(made, references)[0] == 0.0


def test_an_offset_is_not_taken_for_sample():
    made, references = flat(60.0, 20.0, 3000, offset=0.2)
    maps = unmix.fit_components(made, references)
    assert abs(float(maps.offset.mean()) - 0.2) < 0.005
    assert abs(float(maps.thickness.mean()) - 80) < 0.5
    bent = unmix.fit_components(made, references, baseline="none")
    assert float(bent.thickness.mean()) > 90


def test_moving_stack_gives_the_truth_through_the_interpolation():
    made = make(seed=2, photons=3000.0, shape=(96, 100), blur_px=3.0)
    maps = unmix.fit_components(absorbed(made), made.references)
    total = made.t4 + made.t3
    thick = (total > 120) & np.isfinite(maps.thickness.values)
    fraction = made.t3 / np.maximum(total, 1e-9)
    difference = (maps.mn3_fraction.values - fraction)[thick]
    assert thick.sum() > 300
    assert abs(difference.mean()) < 0.01
    empty = (total < 1e-6) & np.isfinite(maps.chi2.values)
    assert 0.9 < np.median(maps.chi2.values[empty]) < 1.1


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(1, 23), max_size=4), st.integers(0, 100))
def test_any_chunking_gives_the_same_bits(cuts, seed):
    rng = np.random.default_rng(seed)
    energy = np.linspace(635, 655, 20)
    counts = rng.poisson(200.0, (20, 24, 37)).astype(np.float32)
    counts[rng.random(counts.shape) < 0.02] = np.nan
    stack = label(counts, energy, 10.0)
    i0 = known_i0(stack.energy, np.full(20, 400.0))
    references = reference_set(energy)

    def fitted(part):
        return unmix.fit_components(absorption.transmission(part, i0), references)

    whole = fitted(stack)
    edges = [0, *sorted(set(cuts)), 24]
    pieces = [fitted(stack.isel(y=slice(a, b))) for a, b in pairwise(edges)]
    joined = xr.concat(pieces, dim="y")
    for name in whole.data_vars:
        assert np.array_equal(whole[name].values, joined[name].values, equal_nan=True), name


ENERGY = np.linspace(635.0, 655.0, 60)
LINES = {
    "a": ((0.009, 641.0, 0.6), (0.018, 643.3, 0.8)),
    "b": ((0.016, 642.0, 1.0), (0.004, 640.4, 0.6)),
    "c": ((0.020, 640.0, 0.7), (0.004, 642.8, 0.8)),
    "d": ((0.012, 644.6, 0.9), (0.004, 639.0, 0.8)),
}


def several(count, units="nm-1", scale=1.0, shift=0.0):
    """Up to four made-up references, with their slopes by formula."""
    energy = ENERGY + shift
    step = 0.002 + 0.004 / (1 + np.exp(-(energy - 644.0) / 0.8))
    rise = 0.005 * np.exp(-(energy - 644.0) / 0.8) / (1 + np.exp(-(energy - 644.0) / 0.8)) ** 2
    data = {}
    for name in list(LINES)[:count]:
        values, slope = step.copy(), rise.copy()
        for height, centre, width in LINES[name]:
            line = height * np.exp(-0.5 * ((energy - centre) / width) ** 2)
            values += line
            slope -= line * (energy - centre) / width**2
        data[name] = ("energy", scale * values)
        data[f"{name}_slope"] = ("energy", scale * slope)
    coords = {"energy": ("energy", ENERGY, {"units": "eV"})}
    return xr.Dataset(data, coords=coords, attrs={"units": units})


def measured(amounts, references, photons, n=48, seed=0, dark=0.0, frames=1, offset=0.0):
    """Pixels of one composition; `frames` exposures averaged leave 1/frames of the variance."""
    rng = np.random.default_rng(seed)
    names = [name for name in references.data_vars if not name.endswith("_slope")]
    od = sum(a * references[name].values for a, name in zip(amounts, names, strict=True)) + offset
    light = np.exp(-od)[:, None, None] * np.ones((1, n, n))
    counts = rng.poisson(light * photons + dark, (frames, *light.shape)).mean(axis=0) - dark
    return absorbing(counts / photons, photons, dark / photons, 1.0 / frames)


def absorbing(values, photons, dark=0.0, factor=1.0):
    """What `absorption.transmission` would make of these values."""
    stack = label(np.asarray(values, np.float32), ENERGY, 10.0)
    ones = np.ones(ENERGY.size)
    made = xr.Dataset({"transmission": stack})
    columns = {
        "photons": photons, "dark": dark, "variance_factor": factor, "i0_relative_errors": 0.0,
    }  # fmt: skip
    for name, value in columns.items():
        made[name] = ("energy", value * ones)
    return made


@pytest.mark.parametrize("photons", [50, 500, 10_000])
@pytest.mark.parametrize("total", [15.0, 90.0, 240.0])
@pytest.mark.parametrize("fraction", [0.0, 0.35, 1.0])
def test_errors_cover_at_every_thickness_and_fraction(photons, total, fraction):
    references = several(2)
    amounts = [total * (1 - fraction), total * fraction]
    made = measured(amounts, references, photons, seed=photons, dark=3.0, frames=2, offset=0.05)
    maps = unmix.fit_components(made, references)
    for name, truth in zip("ab", amounts, strict=True):
        sigma = np.sqrt(maps[f"{name}_{name}_covariance"].values)
        pull = (maps[f"{name}_thickness"].values - truth) / sigma
        assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74
        assert abs(pull.mean()) < 0.12
    pull = (maps.thickness.values - total) / maps.thickness_errors.values
    assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74
    known = maps.thickness_errors.values < 0.15 * total  # else a ratio has no normal error
    if known.all():
        pull = (maps.b_fraction.values - fraction) / maps.b_fraction_errors.values
        assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74
    assert 0.9 < float(maps.chi2.median()) < 1.1


@pytest.mark.parametrize("baseline", ["none", "constant", "linear"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_references_with_any_baseline_gives_the_truth(count, baseline):
    references, amounts = several(count), [40.0, 25.0, 30.0, 15.0][:count]
    offset = {"none": 0.0, "constant": 0.1, "linear": 0.1 + 0.005 * (ENERGY - ENERGY.mean())}
    made = measured(amounts, references, 2000, offset=offset[baseline])
    maps = unmix.fit_components(made, references, baseline=baseline)
    for name, truth in zip("abcd", amounts, strict=False):
        sigma = np.sqrt(maps[f"{name}_{name}_covariance"].values)
        pull = (maps[f"{name}_thickness"].values - truth) / sigma
        assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74
        assert abs(pull.mean()) < 0.12
    assert 0.9 < float(maps.chi2.median()) < 1.1
    if baseline != "none":
        assert float(maps.offset.mean()) == pytest.approx(0.1, abs=0.003)


def working(maps, made, references, pixel, photons, constant=False):
    """Weighted linear problem at the fitted unconstrained solution of one pixel."""
    names = [name for name in references.data_vars if not name.endswith("_slope")]
    design = np.column_stack([references[name].values for name in names])
    od = design @ np.array([maps[f"{name}_thickness"].values.ravel()[pixel] for name in names])
    if constant:
        design = np.column_stack([design, np.ones(len(design))])
        od = od + maps.offset.values.ravel()[pixel]
    model = np.exp(-od)
    data = made["transmission"].values.reshape(len(od), -1)[:, pixel]
    return design, od + (model - data) / model, np.sqrt(model * photons)


@pytest.mark.parametrize("count", [3, 4])
def test_nonnegative_amounts_of_more_references_are_exact(count):
    references = several(count)
    made = measured([3.0, 1.0, 0.0, 1.0][:count], references, 1500, n=24)
    maps = unmix.fit_components(made, references, baseline="none")
    patterns = set()
    for pixel in range(0, 576, 5):
        design, od, root = working(maps, made, references, pixel, 1500)
        expected, _ = nnls(design * root[:, None], od * root)
        total = maps.thickness_nonnegative.values.ravel()[pixel]
        assert total == pytest.approx(expected.sum(), rel=2e-3, abs=5e-3)
        for k, name in enumerate("abcd"[:count]):
            shown = maps[f"{name}_fraction_nonnegative"].values.ravel()[pixel]
            if np.isfinite(shown):
                assert shown == pytest.approx(expected[k] / expected.sum(), abs=3e-3)
        patterns.add(tuple(expected > 0))
    assert len(patterns) >= 4  # many different sets of components were zero


def test_amounts_that_sum_to_one_are_those_of_lagrange():
    references = several(3, units="1", scale=80.0)
    made = measured([0.7, 0.3, 0.0], references, 1500, n=32, offset=0.04)
    maps = unmix.fit_components(made, references, sum_to_one=True)
    fractions = np.stack([maps[f"{name}_thickness"].values.ravel() for name in "abc"])
    assert np.allclose(fractions.sum(axis=0), 1.0, atol=1e-5)
    assert np.allclose(maps.thickness_errors, 0.0, atol=1e-4)
    for pixel in range(0, 1024, 41):
        design, od, root = working(maps, made, references, pixel, 1500, constant=True)
        normal = (design * root[:, None] ** 2).T @ design
        border = np.array([1.0, 1.0, 1.0, 0.0])
        matrix = np.block([[normal, border[:, None]], [border[None], np.zeros((1, 1))]])
        right = np.append((design * root[:, None] ** 2).T @ od, 1.0)
        inverse = np.linalg.inv(matrix)
        assert fractions[:, pixel] == pytest.approx((inverse @ right)[:3], abs=2e-3)
        errors = [maps[f"{name}_fraction_errors"].values.ravel()[pixel] for name in "abc"]
        assert errors == pytest.approx(np.sqrt(np.diag(inverse)[:3]), rel=0.02)
    for k, truth in enumerate([0.7, 0.3, 0.0]):
        sigma = maps[f"{'abc'[k]}_fraction_errors"].values.ravel()
        assert 0.62 < np.mean(np.abs(fractions[k] - truth) < sigma) < 0.74
    shown = np.stack([maps[f"{name}_fraction_nonnegative"].values for name in "abc"])
    assert (shown >= 0).all()
    assert np.allclose(shown.sum(axis=0), 1.0, atol=1e-5)
    assert (shown[2] == 0).mean() > 0.3


def test_sum_to_one_is_refused_for_references_per_nm():
    references = several(2)
    made = measured([30.0, 10.0], references, 500, n=8)
    with pytest.raises(InputError, match="sum_to_one"):
        unmix.fit_components(made, references, sum_to_one=True)


SYSTEMATIC = ["i0", "shifts", "energy", "references", "all"]


@pytest.mark.parametrize("sum_to_one", [False, True])
@pytest.mark.parametrize("part", SYSTEMATIC)
def test_systematic_errors_are_the_spread_that_perturbations_make(part, sum_to_one):
    scale, amounts = (80.0, [0.6, 0.3, 0.1]) if sum_to_one else (1.0, [50.0, 25.0, 10.0])
    references = several(3, units="1", scale=scale)
    rng = np.random.default_rng(7)
    draws, photons, gradient = 900, 1e5, np.array([0.004, -0.002])
    i0, shift_errors = 0.004 * (1 + 0.5 * np.sin(ENERGY)), rng.uniform(0.5, 2.0, (60, 2))
    relative, energy_error = {"a": 0.03, "b": 0.02, "c": 0.0}, 0.02
    wanted = SYSTEMATIC[:4] if part == "all" else [part]
    spectra = np.stack([references[name].values for name in "abc"])
    slopes = np.stack([references[f"{name}_slope"].values for name in "abc"])
    od = np.repeat((np.array(amounts) @ spectra)[:, None], draws, axis=1)
    clean = od.copy()
    if "i0" in wanted:
        od += i0[:, None] * rng.normal(size=od.shape)
    if "shifts" in wanted:
        od += clean * np.einsum(
            "ka,kad->kd", shift_errors * gradient, rng.normal(size=(60, 2, draws))
        )
    if "energy" in wanted:
        od += energy_error * np.outer(np.array(amounts) @ slopes, rng.normal(size=draws))
    if "references" in wanted:
        for k, name in enumerate("abc"):
            od += relative[name] * amounts[k] * np.outer(spectra[k], rng.normal(size=draws))
    made = absorbing(np.exp(-od).reshape(60, 30, 30), photons)
    if "i0" in wanted:
        made["i0_relative_errors"][:] = i0
    if "references" in wanted:
        for name in "abc":
            references[name].attrs["relative_error"] = relative[name]
    moving = (
        (shift_errors, np.broadcast_to(gradient[:, None, None], (2, 30, 30)))
        if "shifts" in wanted
        else (None, None)
    )
    energy = energy_error if "energy" in wanted else 0.0
    maps = unmix.fit_components(made, references, energy, 0.0, *moving, sum_to_one=sum_to_one)
    for name in "abc":
        spread = float(maps[f"{name}_fraction"].std())
        stated = float(maps[f"{name}_fraction_systematic"].median())
        assert stated == pytest.approx(spread, rel=0.12, abs=1e-5)
    spread = float(maps.thickness.std())
    assert float(maps.thickness_systematic.median()) == pytest.approx(spread, rel=0.12, abs=1e-4)


def test_references_that_are_nearly_the_same_give_large_errors_not_nonsense():
    references = several(4)
    for name in ("c", "d"):  # b, c and d differ by a part in a thousand
        tiny = 1e-3 * references[name] * (1 if name == "c" else -1)
        references[name] = (references["b"] + tiny).assign_attrs(references["b"].attrs)
    made = measured([40.0, 20.0, 10.0, 10.0], references, 2000, n=24)
    maps = unmix.fit_components(made, references)
    sigma = np.sqrt(maps.c_c_covariance.values)
    known = np.isfinite(maps.c_thickness.values)
    assert (sigma[known] > 300).all()
    pull = ((maps.c_thickness.values - 10.0) / sigma)[known]
    assert known.mean() == 0.0 or 0.6 < np.mean(np.abs(pull) < 1) < 0.76
    references["c"] = references["b"]
    with pytest.raises(InputError, match="cannot be told apart"):
        unmix.fit_components(made, references)


def test_more_than_four_references_are_refused():
    references = several(4)
    made = measured([40.0, 20.0, 10.0, 10.0], references, 200, n=8)
    references["e"], references["e_slope"] = references["a"], references["a_slope"]
    with pytest.raises(InputError, match="up to 4"):
        unmix.fit_components(made, references)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 2500), st.floats(4.0, 2000.0))
def test_a_pixel_does_not_depend_on_its_neighbours(seed, pixels, photons):
    rng = np.random.default_rng(seed)
    references = several(3)
    amounts = rng.uniform(-5, 150, (3, 1, pixels))
    spectra = np.stack([references[name].values for name in "abc"])
    light = np.exp(-np.einsum("ke,kyx->eyx", spectra, amounts))
    values = (rng.poisson(light * photons + 2) - 2) / photons
    values[rng.random(values.shape) < 0.01] = np.nan
    gradient = rng.normal(0, 0.01, (2, 1, pixels))

    def fitted(order):
        made = absorbing(values[:, :, order], photons, 2 / photons)
        made["i0_relative_errors"][:] = 0.003
        return unmix.fit_components(
            made, references, 0.05, 0.01, np.full((60, 2), 0.3), gradient[:, :, order], max_od=3.0
        )

    order = rng.permutation(pixels)
    whole, mixed = fitted(np.arange(pixels)), fitted(order)
    for name in whole.data_vars:
        there = whole[name].values[:, order]
        assert np.array_equal(there, mixed[name].values, equal_nan=True), name


def test_the_residual_is_the_weighted_root_mean_square():
    references = several(2)
    made = measured([60.0, 30.0], references, 3000, n=8)
    maps = unmix.fit_components(made, references)
    design, od, root = working(maps, made, references, 11, 3000, constant=True)
    amounts = [maps[f"{name}_thickness"].values.ravel()[11] for name in "ab"]
    misfit = od - design @ np.array([*amounts, maps.offset.values.ravel()[11]])
    expected = np.sqrt(np.sum((root * misfit) ** 2) / np.sum(root**2))
    assert maps.residual.values.ravel()[11] == pytest.approx(expected, rel=0.01)


def test_nonnegative_amounts_are_the_least_squares_ones_of_lawson_and_hanson():
    made, references = flat(4.0, 3.0, 1500, n=24)
    maps = unmix.fit_components(made, references, baseline="none")
    design = np.column_stack([references.mn4.values, references.mn3.values])
    transmission = made["transmission"].values.reshape(50, -1)
    amounts = np.stack([maps.mn4_thickness.values, maps.mn3_thickness.values]).reshape(2, -1)
    assert (amounts < 0).any()
    for pixel in range(0, transmission.shape[1], 5):
        model = np.exp(-design @ amounts[:, pixel])
        weight = np.sqrt(model * 1500)
        working = -np.log(model) + (model - transmission[:, pixel]) / model
        expected, _ = nnls(design * weight[:, None], working * weight)
        shown = maps.mn3_fraction_nonnegative.values.ravel()[pixel]
        total = maps.thickness_nonnegative.values.ravel()[pixel]
        assert total == pytest.approx(expected.sum(), rel=2e-3, abs=1e-3)
        known = maps.mn3_fraction_errors.values.ravel()[pixel] < 0.5
        assert np.isfinite(shown) == (known and expected.sum() > 0)
        if known:
            assert shown == pytest.approx(expected[1] / expected.sum(), abs=2e-3)


@pytest.mark.parametrize("misfit", [0.0, 0.15, 0.6])
def test_the_fit_ends_at_the_root_of_the_score_whatever_the_misfit(misfit):
    references, rng = several(3), np.random.default_rng(4)
    bump = misfit * np.exp(-0.5 * ((ENERGY - 641.5) / 0.5) ** 2)
    made = measured([60.0, 30.0, 10.0], references, 3000, n=8, offset=bump)
    made["transmission"].values[:] *= rng.normal(1.0, 0.05 * misfit, (ENERGY.size, 8, 8))
    maps = unmix.fit_components(made, references)
    design = np.column_stack([*(references[name].values for name in "abc"), np.ones(ENERGY.size)])
    data = made["transmission"].values.reshape(ENERGY.size, -1)
    for pixel in range(0, 64, 7):
        theta = [maps[f"{name}_thickness"].values.ravel()[pixel] for name in "abc"]
        theta = np.array([*theta, maps.offset.values.ravel()[pixel]], dtype=float)
        model = np.exp(-design @ theta)
        covariance = np.linalg.inv((design * (3000 * model)[:, None]).T @ design)
        step = covariance @ (design.T @ (3000 * (model - data[:, pixel])))
        chi2 = max(float(maps.chi2.values.ravel()[pixel]), 1.0)
        assert (np.abs(step) < 0.05 * np.sqrt(chi2 * np.diag(covariance))).all()
    assert (float(maps.chi2.median()) > 5) == (misfit > 0.5)


def test_missing_samples_are_left_out_pixel_by_pixel():
    made, references = flat(80.0, 20.0, 5000, n=16)
    made["transmission"][5:12, 3, 4] = np.nan
    made["transmission"][:, 0, 0] = np.nan
    maps = unmix.fit_components(made, references)
    assert abs(float(maps.thickness[3, 4]) - 100) < 5 * float(maps.thickness_errors[3, 4])
    assert int(maps.flags[3, 4]) & FLAGS["energies_left_out"]
    assert int(maps.flags[0, 0]) & FLAGS["no_data"]
    assert np.isnan(maps.thickness[0, 0])
    assert int(maps.flags[8, 8]) == 0


def test_a_spectrum_the_model_cannot_describe_is_flagged():
    made, references = flat(80.0, 20.0, 5000, n=16)
    made["transmission"][20:24, 2:5, 2:5] *= 0.5
    maps = unmix.fit_components(made, references)
    rejected = (maps.flags.values & FLAGS["model_rejected"]) > 0
    assert rejected[2:5, 2:5].all()
    assert not rejected[8:, 8:].any()


def test_i0_noise_is_a_systematic_error_not_a_random_one():
    made, references = flat(80.0, 20.0, 5000, n=16)
    made["i0_relative_errors"][:] = 0.01
    with_error = unmix.fit_components(made, references)
    made["i0_relative_errors"][:] = 0.0
    without = unmix.fit_components(made, references)
    assert float(with_error.mn3_fraction_systematic.mean()) > 0.003
    assert float(without.mn3_fraction_systematic.mean()) == 0.0
    assert np.array_equal(with_error.mn3_fraction_errors, without.mn3_fraction_errors)


def test_systematic_error_of_the_energy_is_the_change_a_shift_makes():
    made, references = flat(80.0, 20.0, 1e6, n=8)
    shifted = reference_set(references.energy.values, shift=0.05)
    moved = unmix.fit_components(made, shifted).mn3_fraction.mean()
    maps = unmix.fit_components(made, references, 0.05)
    change = abs(float(moved - maps.mn3_fraction.mean()))
    assert float(maps.mn3_fraction_systematic.mean()) == pytest.approx(change, rel=0.2)


def test_fewer_energies_than_unknowns_is_refused():
    made, references = flat(80.0, 20.0, 100, n=8, energies=50)
    with pytest.raises(InputError, match="2 energies cannot fix 3 unknowns"):
        unmix.fit_components(made.isel(energy=[5, 30]), references.isel(energy=[5, 30]))


def test_samples_past_the_ceiling_are_left_out_not_pixels():
    made, references = flat(150.0, 50.0, 2000, n=12)
    maps = unmix.fit_components(made, references, max_od=2.0)
    assert (maps.samples_used.values < 50).all()
    assert abs(float(maps.thickness.mean()) - 200) < 2
