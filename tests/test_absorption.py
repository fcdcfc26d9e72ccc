"""Open area, I0, transmission and the noise that follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from make_stacks import label, make
from scipy import ndimage

from spectromap import absorption, align
from spectromap.schema import InputError


def found_area(made):
    image = made.stack.values / np.percentile(made.stack.values, 95, axis=(1, 2))[:, None, None]
    return absorption.find_open_area(image.mean(axis=0))


@pytest.mark.parametrize("photons", [100.0, 3000.0])
def test_open_area_holds_no_sample_and_most_of_the_rest(photons):
    made = make(seed=1, photons=photons, drift_px=0.0)
    area = found_area(made)
    sample = made.t4 + made.t3
    assert sample[area].max() < 3.0
    assert area[sample < 1e-6].mean() > 0.5


def test_open_area_is_the_hole_in_a_film_not_the_film():
    rng = np.random.default_rng(0)
    image = np.full((100, 100), 0.8)
    image[:, :25] = 1.0
    image[40:60, 50:70] = 0.3
    area = absorption.find_open_area(rng.poisson(image * 4000) / 4000)
    assert area[:, :20].mean() > 0.8
    assert not area[:, 27:].any()


def test_i0_follows_the_drift_and_states_its_error():
    made = make(seed=2, photons=500.0, dark=20.0)
    shifts = align.register(made.stack, made.references, 20.0)
    # The optics blur the rims into the open area: stay away from them.
    area = ndimage.binary_erosion((made.t4 + made.t3) < 1e-6, iterations=5)
    i0 = absorption.i0_from_area(made.stack, area, shifts, 20.0)
    pull = (i0.i0.values - made.i0) / i0.i0_errors.values
    assert abs(np.mean(i0.i0.values / made.i0) - 1) < 0.01
    assert np.mean(i0.i0_errors.values / made.i0) < 0.002
    assert np.median(np.abs(pull)) < 3
    assert absorption.effective_gain(i0, "counts") == 1.0


def test_a_detector_gain_is_measured():
    rng = np.random.default_rng(3)
    counts = rng.poisson(400.0, (5, 60, 60)).astype(np.float32) * 7.0
    stack = label(counts, np.linspace(640, 645, 5), 10.0)
    i0 = absorption.i0_from_area(stack, np.ones((60, 60), bool))
    assert absorption.effective_gain(i0, "counts") == pytest.approx(7.0, rel=0.05)


def test_stated_variance_of_the_transmission_is_the_real_one():
    rng = np.random.default_rng(4)
    counts = rng.poisson(0.3 * 800 + 15.0, (6, 120, 120)).astype(np.float32)
    stack = label(counts, np.linspace(640, 645, 6), 10.0)
    shifts = align.zero_shifts(stack)
    shifts["shift_y"][:] = [0, 2.5, 5, -3.1, 10, 4.4]
    i0 = xr.Dataset(
        {"i0": ("energy", np.full(6, 800.0)), "i0_errors": ("energy", np.zeros(6))},
        coords={"energy": stack.energy},
    )
    made = absorption.transmission(align.apply_shifts(stack, shifts), i0, shifts, 15.0)
    variance = np.nanvar(made.transmission.values, axis=(1, 2))
    stated = made.variance_factor.values * (0.3 + made.dark.values) / made.photons.values
    assert np.allclose(variance, stated, rtol=0.05)
    assert made.variance_factor.values[0] == 1.0
    assert np.allclose(np.nanmean(made.transmission.values), 0.3, atol=0.002)


def test_amplitudes_give_twice_the_logarithm():
    amplitude = np.full((2, 20, 20), 20.0, dtype=np.float32)
    amplitude[:, 10:, :] = 20.0 * np.exp(-0.5)
    stack = label(amplitude, np.array([640.0, 641.0]), 5.0, quantity="amplitude", units="1")
    area = np.zeros((20, 20), bool)
    area[:8] = True
    made = absorption.transmission(stack, absorption.i0_from_area(stack, area))
    od = absorption.optical_density(made).values
    assert np.allclose(od[:, 12:], 1.0, atol=1e-5)
    assert np.allclose(od[:, :8], 0.0, atol=1e-5)


def test_od_is_unchanged_when_counts_and_i0_scale_together():
    made = make(seed=5, n_energies=4, drift_px=0.0)
    area = (made.t4 + made.t3) < 1e-6
    scaled = made.stack.copy(data=made.stack.values * 3.0)
    first, second = (
        absorption.transmission(s, absorption.i0_from_area(s, area)).transmission.values
        for s in (made.stack, scaled)
    )
    assert np.allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.433, 0.433e-3])
def test_an_i0_spectrum_per_dwell_is_brought_to_counts(factor):
    made = make(seed=6, n_energies=10, drift_px=0.0)
    stack = made.stack.assign_coords(dwell_time=("energy", np.full(10, 0.433e-3)))
    energy = made.stack.energy.values
    spectrum = xr.DataArray(made.i0 / factor, dims="energy", coords={"energy": energy})
    i0 = absorption.i0_from_spectrum(spectrum, stack, made.i0)
    assert np.allclose(i0.i0.values, made.i0)


def test_an_i0_spectrum_that_ends_early_is_refused():
    made = make(seed=6, n_energies=10)
    short = xr.DataArray([1.0, 1.0], dims="energy", coords={"energy": [636.0, 650.0]})
    with pytest.raises(InputError, match=r"covers 636.00 to 650.00 eV.*Use an I0"):
        absorption.i0_from_spectrum(short, made.stack, made.i0)


def test_a_mask_of_another_shape_names_both_shapes():
    made = make(seed=6, n_energies=4)
    with pytest.raises(InputError, match=r"\(5, 5\).*\(128, 144\)"):
        absorption.i0_from_area(made.stack, np.ones((5, 5), bool))


def test_zero_i0_leaves_the_frame_out_with_a_warning(caplog):
    made = make(seed=7, n_energies=6, drift_px=0.0)
    made.stack[2] = 0.0
    i0 = absorption.i0_from_area(made.stack, np.ones(made.stack.shape[1:], bool))
    assert "I0 is zero at" in caplog.text
    result = absorption.transmission(made.stack, i0)
    assert np.isnan(result.transmission.values[2]).all()
    assert np.isnan(result.photons.values[2])
