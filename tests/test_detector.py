"""Defects of the detector are found, named and left out."""

from __future__ import annotations

import numpy as np
from make_stacks import label, make

from spectromap import detector


def cleaned(stack):
    defects = detector.find_defects(stack)
    return defects, np.array(list(detector.clean_frames(stack, defects)))


def test_a_sound_stack_is_left_alone():
    made = make(seed=1, photons=300.0)
    defects, frames = cleaned(made.stack)
    assert not defects.dead.values.any()
    assert not defects.saturated.values.any()
    assert not defects.lost.values.any()
    assert np.array_equal(frames, made.stack.values)


def test_dead_pixels_rows_and_frames_are_found(caplog):
    made = make(seed=2, photons=300.0)
    stack = made.stack.copy()
    stack[:, 10, 20] = 0
    stack[:, 30, :] = 0
    stack[7] = 0
    defects, frames = cleaned(stack)
    assert defects.dead.values[10, 20]
    assert defects.dead.values[30].all()
    assert defects.dead.values.sum() == 1 + stack.sizes["x"]
    assert list(np.flatnonzero(defects.lost)) == [7]
    assert np.isnan(frames[:, 10, 20]).all()
    assert np.isnan(frames[7]).all()
    assert "dead pixels" in caplog.text
    assert "frames without beam" in caplog.text


def test_a_full_counter_is_saturation(caplog):
    made = make(seed=3, photons=3000.0)
    stack = made.stack.copy(data=np.minimum(made.stack.values, 3050.0))
    defects, frames = cleaned(stack)
    assert defects.attrs["ceiling"] == 3050.0
    assert defects.saturated.values.sum() > 100
    assert np.nanmax(frames) < 3050.0
    assert "saturated" in caplog.text


def test_the_brightest_pixel_of_a_sound_stack_is_no_ceiling():
    rng = np.random.default_rng(4)
    counts = rng.poisson(20.0, (40, 64, 64)).astype(np.float32)
    assert not np.isfinite(
        detector.find_defects(label(counts, np.arange(600.0, 640.0), 10.0)).attrs["ceiling"]
    )


def test_negative_counts_and_nan_become_missing(caplog):
    made = make(seed=5, n_energies=8)
    stack = made.stack.copy()
    stack[3, 4, 5] = -7
    stack[2, 8, 9] = np.nan
    _, frames = cleaned(stack)
    assert np.isnan(frames[3, 4, 5])
    assert np.isnan(frames[2, 8, 9])
    assert np.isnan(frames).sum() == 2
    assert "negative counts" in caplog.text


def test_a_cosmic_ray_is_removed_and_nothing_else():
    made = make(seed=6, photons=200.0, n_energies=8)
    stack = made.stack.copy()
    stack[3, 40, 50] = 5000
    _, frames = cleaned(stack)
    assert np.isnan(frames[3, 40, 50])
    assert np.isnan(frames).sum() == 1
