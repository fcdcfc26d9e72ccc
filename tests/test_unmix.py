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
