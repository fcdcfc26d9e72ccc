"""Defects of the detector are found, named and left out, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from make_stacks import label, make
from scipy import ndimage

from spectromap import detector
from spectromap.schema import InputError

ENERGIES = 30
SIZE = 128


def cleaned(stack, **options):
    """What was found, and the frames after both steps of cleaning, each handed over once."""
    shape = stack.shape[1:]
    inspection = detector.Inspection(stack.energy.values, shape, stack.quantity, **options)
    frames = np.array([inspection.add(k, frame) for k, frame in enumerate(stack.values)])
    defects = inspection.finish()
    return defects, detector.blank(frames, defects)


def structures(rng, kind):
    """Optical density of things that a detector defect must not be confused with."""
    od = np.zeros((SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE]
    if kind == "particles":
        for _ in range(25):
            radius, cy, cx = rng.uniform(3, 20), *rng.uniform(0, SIZE, 2)
            od = np.maximum(
                od, 0.2 * np.sqrt(np.maximum(radius**2 - (y - cy) ** 2 - (x - cx) ** 2, 0))
            )
    if kind == "lines":
        od[:, 40] = od[70] = od[10, 20:60] = 2.0
        od[np.arange(SIZE), np.arange(SIZE)] = 2.0
    if kind == "slits":
        od += 1.5
        od[:, 40] = od[70] = od[10, 20:60] = 0.0
    if kind == "dots":
        od[5::20, 7::20] = 3.0
        for shift in np.ndindex(3, 3):
            od[15 + shift[0] :: 20, 17 + shift[1] :: 20] = 3.0
    if kind == "holes":
        od += 1.0
        for shift in np.ndindex(3, 3):
            od[15 + shift[0] :: 20, 17 + shift[1] :: 20] = 0.0
    return od


def exposed(rng, od, photons, gain=1.0, dark=0.0, drift=0.1, quantity="counts"):
    """A stack across a resonance, blurred to two pixels FWHM, drifting."""
    frames = np.empty((ENERGIES, *od.shape), dtype=np.float32)
    for k in range(ENERGIES):
        light = np.exp(-od * (1.0 + np.exp(-0.5 * ((k - 15) / 4) ** 2)))
        light = ndimage.gaussian_filter(light, 2.0 / 2.3548)
        light = ndimage.shift(light, (drift * k, -0.7 * drift * k), order=1, mode="nearest")
        frames[k] = rng.poisson(light * photons * (1 + 0.1 * np.sin(k / 5)) + dark) * gain
    if quantity == "amplitude":
        frames = np.sqrt(frames)
    return label(frames, np.linspace(635.0, 655.0, ENERGIES), 10.0, quantity=quantity)


def plain(seed, photons=500.0, **options):
    rng = np.random.default_rng(seed)
    return exposed(rng, structures(rng, "particles"), photons, **options), rng


@pytest.mark.parametrize("photons", [1.0, 300.0, 1e5])
@pytest.mark.parametrize("kind", ["nothing", "particles", "lines", "slits", "dots", "holes"])
@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_a_sound_stack_is_left_alone(photons, kind, drift):
    rng = np.random.default_rng(int(photons))
    stack = exposed(rng, structures(rng, kind), photons, drift=drift)
    defects, frames = cleaned(stack)
    assert np.isnan(frames).mean() < 1e-5
    same = np.isfinite(frames)
    assert np.array_equal(frames[same], stack.values[same])
    for name in ("dead", "hot", "saturated", "lost", "bad_rows", "bad_columns"):
        assert not defects[name].values.any(), name


@pytest.mark.parametrize("gain", [0.02, 0.3, 7.0, 50.0])
def test_counts_that_are_not_photons_are_left_alone(gain):
    stack, _ = plain(1, 40.0, gain=gain)
    defects, frames = cleaned(stack)
    assert np.isfinite(frames).all()
    assert defects.attrs["gain"] == pytest.approx(gain, rel=0.35)


def test_amplitudes_are_left_alone_and_complex_ones_lose_their_phase():
    stack, rng = plain(2, 2000.0, quantity="amplitude")
    phase = rng.uniform(-np.pi, np.pi, stack.shape)
    turned = stack.copy(data=(stack.values * np.exp(1j * phase)).astype(np.complex64))
    defects, frames = cleaned(turned)
    assert frames.dtype == np.float32
    assert np.allclose(frames, stack.values, rtol=1e-5)
    assert not defects.dead.values.any()
    assert not defects.lost.values.any()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float64, ">i4"])
def test_every_type_of_number_gives_the_same(kind):
    stack, _ = plain(3)
    stack[4, 5, 6] = 40_000
    first, frames = cleaned(stack)
    second, others = cleaned(stack.astype(kind))
    assert np.array_equal(frames, others, equal_nan=True)
    assert first.equals(second)


@pytest.mark.parametrize("photons", [10.0, 500.0, 2e4])
def test_dead_and_stuck_pixels_lines_and_frames_are_found(photons, caplog):
    stack, _ = plain(4, photons)
    stack[:, 10, 20] = 0
    stack[:, 60:62, 20:22] = 0
    stack[:, 30, :] = 0
    stack[:, :, 77:79] = 0
    stack[:, 50, 50] = round(0.7 * photons)
    stack[7] = 0
    wanted = np.zeros((SIZE, SIZE), dtype=bool)
    wanted[10, 20] = wanted[50, 50] = True
    wanted[60:62, 20:22] = wanted[30] = wanted[:, 77:79] = True
    defects, frames = cleaned(stack)
    # The stuck pixel lies behind a particle: it is too bright as well as constant.
    assert np.array_equal(defects.dead.values | defects.hot.values, wanted)
    assert defects.hot.values.sum() <= 1
    assert list(np.flatnonzero(defects.lost)) == [7]
    assert defects.attrs["dead_rows"] == [30]
    assert defects.attrs["dead_columns"] == [77, 78]
    assert np.isnan(frames[:, 10, 20]).all()
    assert np.isnan(frames[7]).all()
    assert "dead pixels" in caplog.text
    assert "frames without beam" in caplog.text


def test_a_column_that_only_counts_noise_is_dead():
    stack, rng = plain(5, 1000.0)
    stack[:, :, 40] = rng.poisson(3.0, (ENERGIES, SIZE))
    defects, _ = cleaned(stack)
    assert defects.dead.values[:, 40].all()
    assert defects.dead.values.sum() == SIZE


def test_a_column_that_repeats_one_value_in_each_frame_is_bad():
    stack, _ = plain(6, 1000.0)
    stack[:, :, 33] = np.arange(ENERGIES)[:, None] * 10.0 + 400.0
    stack[3, 90, :] = 512.0
    defects, frames = cleaned(stack)
    others = np.arange(ENERGIES) != 3  # where the row crosses it the column is not constant
    assert np.array_equal(defects.bad_columns.values[:, 33], others)
    assert defects.bad_columns.values.sum() == ENERGIES - 1
    assert list(zip(*np.nonzero(defects.bad_rows.values), strict=True)) == [(3, 90)]
    assert np.isnan(frames).sum() == ENERGIES * SIZE


@pytest.mark.parametrize("photons", [50.0, 2000.0])
def test_hot_pixels_are_found(photons, caplog):
    stack, rng = plain(7, photons)
    wanted = np.zeros((SIZE, SIZE), dtype=bool)
    wanted[tuple(rng.integers(0, SIZE, (2, 12)))] = True
    stack.values[:, wanted] += rng.poisson(4 * photons, (ENERGIES, wanted.sum()))
    defects, _ = cleaned(stack)
    assert np.array_equal(defects.hot.values, wanted)
    assert "hot pixels" in caplog.text


@pytest.mark.parametrize("dark", [0.0, 20.0])
@pytest.mark.parametrize("photons", [50.0, 5000.0])
def test_rows_after_a_beam_dump_are_found(dark, photons, caplog):
    stack, rng = plain(8, photons, dark=dark)
    first = {4: 37, 12: 100, 25: 10}
    wanted = np.zeros((ENERGIES, SIZE), dtype=bool)
    for frame, row in first.items():
        stack[frame, row:] = rng.poisson(dark, (SIZE - row, SIZE))
        stack[frame, row - 1, 60:] = rng.poisson(dark, SIZE - 60)
        wanted[frame, row - 1 :] = True
    stack[20, 50:70] = rng.poisson(dark, (20, SIZE))
    wanted[20, 49:71] = True
    defects, frames = cleaned(stack, dark_counts=dark)
    assert not defects.lost.values.any()
    assert np.array_equal(defects.bad_rows.values, wanted)
    assert np.isnan(frames[4, 36:]).all()
    assert np.isfinite(frames[4, :36]).all()
    assert "rows without beam" in caplog.text


def test_a_dump_is_told_from_dark_counts():
    stack, rng = plain(9, 200.0, dark=60.0)
    stack[5] = rng.poisson(60.0, (SIZE, SIZE))
    assert not cleaned(stack)[0].lost.values.any()
    assert list(np.flatnonzero(cleaned(stack, dark_counts=60.0)[0].lost)) == [5]


def test_a_full_counter_is_saturation(caplog):
    made = make(seed=3, photons=3000.0)
    stack = made.stack.copy(data=np.minimum(made.stack.values, 3050.0))
    defects, frames = cleaned(stack)
    assert defects.attrs["ceiling"] == 3050.0
    assert np.array_equal(defects.saturated.values, (stack.values == 3050.0).any(axis=0))
    assert np.isnan(frames).sum() == (stack.values == 3050.0).sum()
    assert "saturated" in caplog.text


@pytest.mark.parametrize("photons", [0.5, 1.0, 20.0, 1000.0])
def test_the_brightest_pixel_of_a_sound_stack_is_no_ceiling(photons):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(photons, (40, 64, 64)).astype(np.float32)
        defects = detector.find_defects(label(counts, np.arange(600.0, 640.0), 10.0))
        assert not np.isfinite(defects.attrs["ceiling"])


def test_negative_counts_and_nan_become_missing(caplog):
    made = make(seed=5, n_energies=8)
    stack = made.stack.copy()
    stack[3, 4, 5] = -7
    stack[2, 8, 9] = np.nan
    stack[2, 8, 10] = np.inf
    defects, frames = cleaned(stack)
    assert np.isnan(frames[3, 4, 5])
    assert np.isnan(frames[2, 8, 9:11]).all()
    assert np.isnan(frames).sum() == 3
    assert list(defects.negative.values) == [0, 0, 0, 1, 0, 0, 0, 0]
    assert list(defects.missing.values) == [0, 0, 2, 0, 0, 0, 0, 0]
    assert "negative counts" in caplog.text


@pytest.mark.parametrize("photons", [20.0, 200.0, 5000.0])
def test_cosmic_rays_are_removed_and_nothing_else(photons):
    stack, rng = plain(10, photons)
    wanted = np.zeros(stack.shape, dtype=bool)
    for _ in range(60):
        frame, y, x = rng.integers(0, ENERGIES), *rng.integers(0, SIZE - 4, 2)
        for step in range(rng.integers(1, 4)):
            wanted[frame, y + step, x + step // 2] = True
    stack.values[wanted] += rng.uniform(8, 30, wanted.sum()) * photons + 200.0
    defects, frames = cleaned(stack)
    assert np.array_equal(np.isnan(frames), wanted)
    assert np.array_equal(defects.spikes.values, wanted.sum(axis=(1, 2)))


def test_a_stack_without_noise_is_not_broken():
    rng = np.random.default_rng(11)
    od = structures(rng, "particles")
    od[:40] = 0.0
    frames = 1000.0 * np.exp(-od * np.linspace(0.5, 1.5, ENERGIES)[:, None, None])
    _, frames = cleaned(label(frames, np.linspace(635.0, 655.0, ENERGIES), 10.0))
    assert np.isfinite(frames).all()


def test_optical_density_is_only_dead_where_it_is_missing():
    rng = np.random.default_rng(12)
    od = rng.normal(0.0, 0.1, (ENERGIES, SIZE, SIZE))
    od[:, 5, 6] = np.nan
    stack = label(od, np.linspace(635.0, 655.0, ENERGIES), 10.0, quantity="optical_density")
    defects, frames = cleaned(stack)
    assert list(zip(*np.nonzero(defects.dead.values), strict=True)) == [(5, 6)]
    assert np.array_equal(frames, od.astype(np.float32), equal_nan=True)


def test_slabs_are_blanked_like_the_whole():
    stack, _ = plain(13)
    stack[4, 37:] = 0
    stack[:, 10, 20] = 0
    stack[:, :, 50] = np.arange(ENERGIES)[:, None] + 300.0
    defects, frames = cleaned(stack)
    raw = stack.values.copy()
    slab = detector.blank(raw[2:9, 30:60].copy(), defects, slice(30, 60), slice(2, 9))
    assert np.array_equal(slab, frames[2:9, 30:60], equal_nan=True)


def test_find_defects_is_the_same_pass():
    stack, _ = plain(14)
    stack[4, 37:] = 0
    found = detector.find_defects(stack)
    assert found.drop_vars(["y", "x", "energy"]).equals(cleaned(stack)[0].drop_vars("energy"))
    assert found.y.equals(stack.y)


def test_frames_that_do_not_belong_are_refused():
    inspection = detector.Inspection([1.0, 2.0], (4, 5), "counts")
    inspection.add(0, np.ones((4, 5)))
    with pytest.raises(InputError, match=r"frame 1 has shape \(5, 4\)"):
        inspection.add(1, np.ones((5, 4)))
    with pytest.raises(InputError, match="frame 0 was handed over twice"):
        inspection.add(0, np.ones((4, 5)))
