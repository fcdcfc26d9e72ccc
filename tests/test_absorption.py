"""Open area, I0, transmission and the noise that follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from make_stacks import label, make, reference_set, spectra
from scipy import ndimage

from spectromap import absorption, align, unmix
from spectromap._numerics import sample_shifted
from spectromap.schema import InputError

ENERGY = np.linspace(635.0, 655.0, 30)
SIZE = 144


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


def covered(rng, cover):
    """Thickness of Mn4+ and Mn3+ of overlapping spheres that cover a share of the field."""
    y, x = np.mgrid[:SIZE, :SIZE]
    t4, t3 = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    while (t4 > 0).mean() < cover:
        radius, cy, cx = rng.uniform(6, 20), *rng.uniform(0, SIZE, 2)
        half = np.sqrt(np.maximum(radius**2 - (y - cy) ** 2 - (x - cx) ** 2, 0.0))
        fraction = 0.15 + 0.45 * (1 - half / radius)
        t4 = np.maximum(t4, 2 * half * (1 - fraction) * 7)
        t3 = np.maximum(t3, 2 * half * fraction * 7)
    return t4, t3


def section(rng, cover):
    """A lamella of uneven thickness that covers one side of the field."""
    uneven = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 5) * 15
    thickness = np.where(np.arange(SIZE) > SIZE * (1 - cover), 80.0 * (1 + 0.1 * uneven), 0.0)
    return 0.7 * thickness, 0.3 * thickness


def field(t4, t3, rng, photons=2000.0, film=0.0, hole=0.0, gradient=0.0, rim=0.0):
    """Stack, and where the hole is: film of OD `film` under the sample but for a torn hole."""
    torn = np.zeros((SIZE, SIZE), dtype=bool)
    torn[3 : 3 + round(SIZE * hole**0.5), 3 : 3 + round(SIZE * hole**0.5)] = True
    t4[torn] = t3[torn] = 0.0
    across = np.linspace(-1, 1, SIZE)
    light = 1.0 + gradient * (0.6 * across[:, None] + 0.5 * across)
    bright = ndimage.binary_dilation(t4 > 0, iterations=3) & ~(t4 > 0)
    frames = np.empty((ENERGY.size, SIZE, SIZE), dtype=np.float32)
    for k, energy in enumerate(ENERGY):
        od = t4 * spectra(ENERGY)["mn4"][k] + t3 * spectra(ENERGY)["mn3"][k]
        od = od + np.where(torn, 0.0, film * (645.0 / energy) ** 3) - rim * bright
        seen = ndimage.gaussian_filter(np.exp(-od), 2.0 / 2.3548)
        frames[k] = rng.poisson(seen * light * photons * (1 + 0.1 * np.sin(k / 9)))
    return label(frames, ENERGY, 10.0), torn


def area_in(stack, frames=True):
    image = stack.values / np.percentile(stack.values, 95, axis=(1, 2))[:, None, None]
    return absorption.find_open_area(image.mean(axis=0), 2.0, stack.values if frames else None)


@pytest.mark.parametrize(
    ("options", "cover", "recall"),
    [
        ({}, 0.5, 0.5),
        ({"photons": 50.0}, 0.5, 0.5),
        ({"gradient": 0.05}, 0.5, 0.5),
        ({}, 0.9, 0.1),
        ({"film": 0.2, "hole": 0.02}, 0.5, 0.5),
        ({"film": 0.2, "hole": 0.1}, 0.5, 0.5),
        ({"film": 0.05, "hole": 0.1}, 0.5, 0.5),
        ({"film": 0.2, "hole": 0.05}, 0.8, 0.2),
    ],
)
def test_open_area_is_the_film_without_sample(options, cover, recall):
    rng = np.random.default_rng(1)
    t4, t3 = covered(rng, cover)
    stack, torn = field(t4, t3, rng, **options)
    area = area_in(stack)
    assert not area[t4 > 0].any()
    assert not area[torn].any()
    assert area[(t4 == 0) & ~torn].mean() > recall


@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize(
    ("rim", "cover", "hole"), [(0.1, 0.5, 0), (0.3, 0.8, 0.01), (0.1, 0.9, 0), (0.1, 0.95, 0)]
)
def test_open_area_survives_the_bright_edge_of_a_lamella(rim, cover, hole, frames):
    rng = np.random.default_rng(2)
    t4, t3 = section(rng, cover)
    stack, torn = field(t4, t3, rng, rim=rim, film=0.2, hole=hole)
    area = area_in(stack, frames)
    bright = ndimage.binary_dilation(t4 > 0, iterations=3)
    assert area.any()
    assert not area[bright | torn].any()


def test_a_small_open_corner_beats_the_sample_that_fills_the_field():
    rng = np.random.default_rng(3)
    uneven = 150.0 * np.exp(ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 8) * 8)
    stack, torn = field(0.7 * uneven, 0.3 * uneven, rng, hole=0.03)
    area = area_in(stack)
    assert area.any()
    assert not area[~torn].any()


def test_without_open_area_the_brightest_pixels_serve_with_an_honest_error(caplog):
    rng = np.random.default_rng(4)
    uneven = 150.0 * np.exp(ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 8) * 8)
    stack, _ = field(0.7 * uneven, 0.3 * uneven, rng)
    assert not area_in(stack).any()
    image = (stack.values / np.percentile(stack.values, 95, axis=(1, 2))[:, None, None]).mean(0)
    area, error = absorption.brightest_area(image)
    assert area.mean() == pytest.approx(0.01, rel=0.05)
    i0 = absorption.i0_from_area(stack, area, relative_error=error)
    true = 2000.0 * (1 + 0.1 * np.sin(np.arange(ENERGY.size) / 9))
    assert np.all(i0.i0.values < true)
    assert np.median((true - i0.i0.values) / i0.i0_errors.values) < 2.5
    assert i0.attrs["relative_error"] == error
    assert "may hold sample" in i0.attrs["open_area"]
    assert "no open area was found" in caplog.text


def test_a_field_without_data_has_no_brightest_pixels():
    area, error = absorption.brightest_area(np.full((40, 40), np.nan))
    assert not area.any()
    assert np.isnan(error)
    assert not absorption.find_open_area(np.full((40, 40), np.nan)).any()


@pytest.mark.long
def test_i0_of_the_film_and_of_a_hole_give_the_same_composition():
    """The choice between them: neither biases Mn3+ where the baseline is fitted."""
    rng = np.random.default_rng(5)
    t4, t3 = covered(rng, 0.5)
    stack, torn = field(t4, t3, rng, film=0.25, hole=0.1)
    film = ndimage.binary_erosion((t4 == 0) & ~torn, iterations=4)
    thick = ndimage.binary_erosion(t4 + t3 > 60, iterations=3)
    true = (t3 / np.maximum(t3 + t4, 1e-9))[thick]
    bias = {}
    for name, area in {"film": film, "hole": ndimage.binary_erosion(torn, iterations=4)}.items():
        made = absorption.transmission(stack, absorption.i0_from_area(stack, area))
        for baseline in ("none", "constant", "linear"):
            maps = unmix.fit_components(made, reference_set(ENERGY), baseline=baseline)
            found = maps["mn3_fraction"].values[thick]
            bias[name, baseline] = float(np.nanmedian(found - true))
    assert max(abs(bias["film", b]) for b in ("none", "constant", "linear")) < 0.008
    assert abs(bias["hole", "constant"]) < 0.01
    assert abs(bias["hole", "linear"]) < 0.008
    assert bias["hole", "none"] > 0.015


def test_i0_follows_the_drift_and_states_its_error():
    made = make(seed=2, photons=500.0, dark=20.0)
    shifts = align.zero_shifts(made.stack)
    shifts["shift_y"][:], shifts["shift_x"][:] = made.shifts_px.T * 10.0
    # The optics blur the rims into the open area: stay away from them.
    area = ndimage.binary_erosion((made.t4 + made.t3) < 1e-6, iterations=5)
    i0 = absorption.i0_from_area(made.stack, area, shifts, 20.0)
    pull = (i0.i0.values - made.i0) / i0.i0_errors.values
    assert abs(np.mean(i0.i0.values / made.i0) - 1) < 0.01
    assert np.mean(i0.i0_errors.values / made.i0) < 0.002
    assert np.median(np.abs(pull)) < 3
    assert absorption.effective_gain(i0, "counts") == 1.0


@pytest.mark.parametrize("photons", [0.5, 3.0, 400.0])
@pytest.mark.parametrize("gain", [0.02, 0.3, 1.0, 7.0, 50.0])
def test_a_detector_gain_is_measured(gain, photons):
    rng = np.random.default_rng(3)
    slope = 1.0 + 0.03 * np.linspace(-1, 1, 100)
    counts = rng.poisson(photons * slope, (9, 100, 100)) * gain
    stack = label(counts.astype(np.float32), np.linspace(640, 645, 9), 10.0)
    i0 = absorption.i0_from_area(stack, np.ones((100, 100), bool))
    assert absorption.effective_gain(i0, "counts") == pytest.approx(gain, rel=0.05)
    assert np.allclose(i0.i0, photons * gain, rtol=5 / np.sqrt(photons * 1e4))


@pytest.mark.parametrize("gain", [0.02, 7.0, 50.0])
def test_the_gain_of_frames_that_were_interpolated_is_that_of_their_pixels(gain):
    rng = np.random.default_rng(4)
    counts = (rng.poisson(400.0, (9, 120, 120)) * gain).astype(np.float32)
    for k in range(9):
        counts[k] = sample_shifted(counts[k], 0.5, 0.5)
    stack = label(counts, np.linspace(640, 645, 9), 10.0)
    i0 = absorption.i0_from_area(stack, np.ones((120, 120), bool))
    variance = np.nanvar(counts, axis=(1, 2)) / np.nanmean(counts, axis=(1, 2))
    assert variance.mean() < 0.9 * gain
    assert absorption.effective_gain(i0, "amplitude") == pytest.approx(variance.mean(), rel=0.05)


@pytest.mark.parametrize("interpolated", [False, True])
@pytest.mark.parametrize("photons", [0.5, 5.0, 500.0, 1e4])
def test_errors_of_i0_cover_the_truth(photons, interpolated):
    rng = np.random.default_rng(5)
    area = np.ones((96, 96), bool)
    area[20:50, 10:70] = False
    pulls = []
    for _ in range(300):
        frame = rng.poisson(photons, area.shape).astype(np.float32)
        if interpolated:
            frame = ndimage.uniform_filter(frame, 2)
        found = absorption.i0_of_frame(frame, area)
        pulls.append((found.i0 - photons) / found.error)
    assert 0.58 < np.mean(np.abs(pulls) < 1) < 0.80
    assert abs(np.mean(pulls)) < 0.25


def test_spikes_do_not_count_for_i0():
    rng = np.random.default_rng(6)
    frame = rng.poisson(100.0, (80, 80)).astype(np.float32)
    frame[10:12, 10:30] = 1e6
    frame[40, 40] = np.nan
    found = absorption.i0_of_frame(frame, np.ones((80, 80), bool))
    assert found.i0 == pytest.approx(100.0, abs=0.5)
    assert found.noise == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("quantity", ["counts", "amplitude", "optical_density"])
def test_the_area_moves_with_the_features(quantity):
    frame = np.full((50, 60), 2.0, dtype=np.float32)
    area = np.zeros((50, 60), bool)
    area[5:20, 40:55] = True
    frame[5 + 7 : 20 + 7, 40 - 9 : 55 - 9] = 3.0
    wanted = {"counts": 3.0, "amplitude": 9.0, "optical_density": np.exp(-3.0)}[quantity]
    found = absorption.i0_of_frame(frame, area, (7, -9), quantity)
    assert found.i0 == pytest.approx(wanted, rel=1e-6)
    assert found.rows[0].sum() == area.sum()
    out = absorption.i0_of_frame(frame, area, (45, 0), quantity)
    assert np.isnan(out.i0)
    cut = absorption.i0_of_frame(frame, area, (0, 10), quantity)
    assert cut.rows[0].sum() == 15 * 10


def illuminated(seed, photons, step, jump_px=0.0, dark=0.0):
    """A drifting stack under uneven light whose beam steps inside every third frame."""
    made = make(seed=seed, photons=photons * 1.1, n_energies=30, jump_px=jump_px, shape=(128, 144))
    rng = np.random.default_rng(seed)
    y, x = np.linspace(-1, 1, 128)[:, None], np.linspace(-1, 1, 144)
    light = np.tile(1.0 + 0.03 * (0.6 * y + 0.5 * x - 0.4 * (x**2 + y**2)), (30, 1, 1))
    truth = np.full(30, -1)
    if step:
        truth[::3] = rng.integers(25, 103, 10)
        for k in range(0, 30, 3):
            light[k, truth[k] :] *= 1.0 + step
    share = light / light.max()
    seen = rng.binomial(made.stack.values.astype(int), share) + rng.poisson(dark, share.shape)
    area = ndimage.binary_erosion((made.t4 + made.t3) < 1e-6, iterations=5)
    shifts = xr.Dataset(coords={"energy": made.stack.energy})
    shifts["shift_y"] = ("energy", made.shifts_px[:, 0] * 10.0)
    shifts["shift_x"] = ("energy", made.shifts_px[:, 1] * 10.0)
    stack = made.stack.copy(data=seen.astype(np.float32))
    return absorption.i0_from_area(stack, area, shifts, dark), truth, made.i0 / light.max(), stack


@pytest.mark.parametrize("jump_px", [0.0, 20.0])
@pytest.mark.parametrize("photons", [50.0, 500.0, 1e4])
def test_a_steady_beam_has_no_steps(photons, jump_px):
    for seed in range(4):
        i0 = illuminated(seed, photons, 0.0, jump_px)[0]
        assert not (i0.step_row >= 0).any()
        assert not i0.step_rows.values.any()


@pytest.mark.parametrize(
    ("photons", "step", "dark"), [(500.0, 0.05, 0.0), (5000.0, -0.02, 0.0), (1e4, 0.01, 300.0)]
)
def test_steps_of_the_beam_are_found_measured_and_masked(photons, step, dark, caplog):
    i0, truth, steady, _ = illuminated(9, photons, step, 0.0, dark)
    stepped = truth >= 0
    assert np.array_equal(i0.step_row.values >= 0, stepped)
    assert np.all(np.abs(i0.step_row.values - truth)[stepped] <= 3)
    before = ~i0.step_rows.values[:, 0]
    size = np.where(before, 1 + step, 1 / (1 + step))[stepped]
    pull = (i0.step_ratio.values[stepped] - size) / i0.step_ratio_errors.values[stepped]
    assert np.abs(pull).max() < 4.5
    level = np.where(stepped & ~before, 1 + step, 1.0) * steady
    ratio = i0.i0.values / level
    assert np.ptp(ratio) < 0.6 * abs(step) + 8 * np.median(i0.i0_errors / i0.i0)
    assert "I0 steps part way down" in caplog.text
    below = np.arange(i0.sizes["y"]) < i0.step_row.values[:, None]
    marked = np.where(before[:, None], ~below, below) & stepped[:, None]
    assert np.array_equal(i0.step_rows.values, marked)


def test_a_step_in_the_illumination_is_not_taken_for_the_beam():
    rng = np.random.default_rng(7)
    light = np.where(np.arange(100) < 40, 1.0, 1.03)[:, None] * np.ones((20, 1, 100))
    stack = label(rng.poisson(3000 * light).astype(np.float32), np.arange(640.0, 660.0), 10.0)
    i0 = absorption.i0_from_area(stack, np.ones((100, 100), bool))
    assert not (i0.step_row >= 0).any()


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
