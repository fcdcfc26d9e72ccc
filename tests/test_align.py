"""Registration against known shifts."""

from __future__ import annotations

import numpy as np
import pytest
from make_stacks import Made, make

from spectromap import align
from spectromap.schema import InputError


def errors(made: Made, shifts) -> np.ndarray:
    """Distance of every kept frame from its true place, in px, common offset removed."""
    pixel = float(made.stack.x[1] - made.stack.x[0])
    found = np.stack([shifts.shift_y.values, shifts.shift_x.values], axis=1) / pixel
    kept = ~shifts.flagged.values
    difference = (found - made.shifts_px)[kept]
    return np.hypot(*(difference - np.median(difference, axis=0)).T)


@pytest.mark.parametrize(
    ("photons", "median", "high"), [(2000, 0.03, 0.10), (200, 0.06, 0.20), (50, 0.15, 0.45)]
)
@pytest.mark.parametrize("known", [True, False])
def test_drift_is_found_to_hundredths_of_a_pixel(photons, median, high, known):
    made = make(seed=3, photons=photons, shape=(150, 160))
    shifts = align.register(made.stack, made.references if known else None)
    found = errors(made, shifts)
    assert np.median(found) <= median
    assert np.percentile(found, 95) <= high
    assert shifts.flagged.values.sum() <= 1


def test_a_jump_of_twenty_pixels_survives():
    made = make(seed=5, photons=10000, jump_px=20.0)
    shifts = align.register(made.stack, made.references)
    assert np.sqrt(np.mean(errors(made, shifts) ** 2)) < 0.05
    assert not shifts.flagged.values.any()


def test_diffuse_samples_align_as_well():
    made = make(seed=6, photons=10000, diffuse=True)
    assert np.sqrt(np.mean(errors(made, align.register(made.stack, made.references)) ** 2)) < 0.08


def test_stated_errors_have_the_size_of_the_real_ones():
    made = make(seed=7, photons=300)
    shifts = align.register(made.stack, made.references)
    pixel = 10.0
    real = shifts.shift_y.values / pixel - made.shifts_px[:, 0]
    real -= np.median(real)
    normal = np.abs(real) / (shifts.shift_y_errors.values / pixel)
    assert 0.45 < np.mean(normal < 1) < 0.9


def test_an_empty_frame_is_flagged_and_the_rest_is_not_disturbed(caplog):
    made = make(seed=8)
    made.stack[17] = np.random.default_rng(0).poisson(3.0, made.stack.shape[1:])
    with caplog.at_level("WARNING", "spectromap"):
        shifts = align.register(made.stack, made.references)
    assert list(np.flatnonzero(shifts.flagged)) == [17]
    assert "could not be aligned" in caplog.text
    assert np.median(errors(made, shifts)) < 0.03


def test_the_zero_of_the_shifts_is_the_median_frame():
    shifts = align.register(make(seed=9).stack)
    assert abs(np.median(shifts.shift_y)) < 1e-9
    assert abs(np.median(shifts.shift_x)) < 1e-9


def test_shifts_are_undone_by_apply_shifts():
    made = make(seed=10, photons=1e7, n_energies=12)
    shifts = align.zero_shifts(made.stack)
    shifts.shift_y.values[:], shifts.shift_x.values[:] = made.shifts_px.T * 10.0
    aligned = align.apply_shifts(made.stack, shifts).values / made.i0[:, None, None]
    still = make(seed=10, photons=1e7, n_energies=12, drift_px=0.0)
    expected = still.stack.values / still.i0[:, None, None]
    inside = np.isfinite(aligned).all(axis=0)
    assert inside.mean() > 0.7
    assert np.abs(aligned - expected)[:, inside].max() < 0.01


def test_flipping_the_axes_flips_the_shifts():
    made = make(seed=11)
    straight = align.register(made.stack, made.references)
    turned = made.stack.copy(data=made.stack.values[:, ::-1, ::-1].copy())
    flipped = align.register(turned, made.references)
    assert np.allclose(flipped.shift_y, -straight.shift_y, atol=0.2)
    assert np.allclose(flipped.shift_x, -straight.shift_x, atol=0.2)


def test_two_frames_are_registered_to_each_other():
    made = make(seed=12, n_energies=60)
    pair = made.stack[[20, 50]]
    shifts = align.register(pair)
    moved = np.diff([shifts.shift_y.values, shifts.shift_x.values], axis=1)[:, 0] / 10.0
    assert np.allclose(moved, made.shifts_px[50] - made.shifts_px[20], atol=0.3)


def test_disabled_means_untouched():
    made = make(seed=13, n_energies=10)
    shifts = align.register(made.stack, enabled=False)
    assert not shifts.shift_y.any()
    aligned = align.apply_shifts(made.stack, shifts)
    assert np.array_equal(aligned.values, made.stack.values)


def test_noise_alone_cannot_be_aligned():
    made = make(seed=14, n_energies=10)
    noise = np.random.default_rng(1).poisson(100.0, made.stack.shape).astype(np.float32)
    with pytest.raises(InputError, match="no frame could be aligned"):
        align.register(made.stack.copy(data=noise))


def test_real_pair_of_frames_at_the_ni_edge(shared_data):
    from spectromap.io import open_stack

    stack = open_stack(shared_data / "cosmic-xanespy" / "stxm-scan.hdr")
    shifts = align.register(stack)
    step = float(np.median(np.diff(stack.x)))
    moved = np.diff([shifts.shift_y.values, shifts.shift_x.values], axis=1)[:, 0] / step
    assert np.allclose(np.abs(moved), [24, 15], atol=0.5)
