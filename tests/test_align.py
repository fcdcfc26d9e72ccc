"""Registration against known shifts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from make_stacks import Made, make
from scipy import ndimage

from spectromap import align
from spectromap.schema import InputError


def errors(made: Made, shifts) -> np.ndarray:
    """Distance of every kept frame from its true place, in px, common offset removed."""
    pixel = float(made.stack.x[1] - made.stack.x[0])
    found = np.stack([shifts.shift_y.values, shifts.shift_x.values], axis=1) / pixel
    kept = ~shifts.flagged.values
    difference = (found - made.shifts_px)[kept]
    return np.hypot(*(difference - np.median(difference, axis=0)).T)


@pytest.mark.long
@pytest.mark.parametrize(
    ("photons", "median", "high"), [(2000, 0.03, 0.10), (200, 0.06, 0.20), (50, 0.15, 0.45)]
)
def test_drift_is_found_to_hundredths_of_a_pixel(photons, median, high):
    made = make(seed=3, photons=photons, shape=(150, 160))
    shifts = align.register(made.stack)
    found = errors(made, shifts)
    assert np.median(found) <= median
    assert np.percentile(found, 95) <= high
    assert shifts.flagged.values.sum() <= 1


@pytest.mark.parametrize("diffuse", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_a_jump_of_twenty_pixels_survives_in_sharp_and_diffuse_samples(diffuse, fast):
    made = make(seed=5, photons=10000, jump_px=20.0, diffuse=diffuse, shape=(160, 176))
    shifts = align.register(made.stack, fast=fast)
    assert np.sqrt(np.mean(errors(made, shifts) ** 2)) <= 0.03
    assert not shifts.flagged.values.any()


def test_amplitudes_align_as_well_as_counts():
    made = make(seed=6, photons=10000, jump_px=20.0, shape=(160, 176))
    phase = np.exp(1j * np.random.default_rng(0).uniform(0, 6, (60, 1, 1)))
    amplitude = made.stack.copy(data=0.3 * np.sqrt(made.stack.values) * phase)
    amplitude.attrs["quantity"] = "amplitude"
    assert np.sqrt(np.mean(errors(made, align.register(amplitude)) ** 2)) <= 0.03


def test_optical_densities_align_too():
    made = make(seed=6, photons=10000)
    density = -np.log(np.maximum(made.stack, 1) / made.i0[:, None, None])
    density.attrs = {**made.stack.attrs, "quantity": "optical_density"}
    assert np.sqrt(np.mean(errors(made, align.register(density)) ** 2)) <= 0.03


@pytest.mark.parametrize("photons", [300, 5000])
def test_stated_errors_cover_the_real_ones(photons):
    inside = []
    for seed in range(4):
        made = make(seed=20 + seed, photons=photons)
        shifts = align.register(made.stack)
        for k, axis in enumerate("yx"):
            off = shifts[f"shift_{axis}"].values / 10.0 - made.shifts_px[:, k]
            sigma = shifts[f"shift_{axis}_errors"].values / 10.0
            inside.append(np.abs(off - off.mean()) < sigma)
    assert 0.6 < np.mean(inside) < 0.88


def test_an_empty_frame_is_flagged_and_the_rest_is_not_disturbed(caplog):
    made = make(seed=8)
    made.stack[17] = np.random.default_rng(0).poisson(3.0, made.stack.shape[1:])
    with caplog.at_level("WARNING", "spectromap"):
        shifts = align.register(made.stack)
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
    straight = align.register(made.stack)
    turned = made.stack.copy(data=made.stack.values[:, ::-1, ::-1].copy())
    flipped = align.register(turned)
    assert np.allclose(flipped.shift_y, -straight.shift_y, atol=0.4)
    assert np.allclose(flipped.shift_x, -straight.shift_x, atol=0.4)


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


def test_missing_pixels_do_not_move_the_shifts():
    made = make(seed=15, photons=5000, shape=(160, 176))
    rng = np.random.default_rng(3)
    # Dead pixels, a dead column, and a dead corner that would all look like fixed edges.
    gone = rng.random(made.stack.shape[1:]) < 0.004
    gone[:, 70] = True
    gone[:40, :50] = True
    values = made.stack.values.copy()
    values[:, gone] = np.nan
    values[20, 100:140] = np.nan
    found = align.register(made.stack.copy(data=values))
    assert np.median(errors(made, found)) <= 0.02
    assert np.percentile(errors(made, found), 95) <= 0.06
    assert not found.flagged.values.any()


@pytest.mark.parametrize("shape", [(96, 260), (300, 110)])
def test_frames_need_not_be_square(shape):
    made = make(seed=16, photons=2000, shape=shape)
    found = errors(made, align.register(made.stack))
    assert np.median(found) <= 0.03
    assert np.percentile(found, 95) <= 0.1


def two_halves():
    """A stack whose left and right halves move differently, as with a charging particle."""
    left, right = make(seed=17, photons=5000, shape=(128, 144)), make(seed=18, photons=5000)
    values = np.concatenate([left.stack.values, right.stack.values], axis=2)
    x = np.arange(values.shape[2]) * 10.0
    stack = xr.DataArray(
        values,
        dims=("energy", "y", "x"),
        coords={
            "energy": left.stack.energy,
            "y": left.stack.y,
            "x": ("x", x, {"units": "nm"}),
        },
        attrs=left.stack.attrs,
    )
    return stack, left, right


@pytest.mark.parametrize("fast", [False, True])
def test_only_the_region_counts(fast):
    stack, left, right = two_halves()
    for made, region in ((left, (0, 2000, 0, 1400)), (right, (0, 2000, 1480, 3000))):
        found = align.register(stack, region_nm=region, fast=fast)
        assert np.median(errors(made, found)) <= 0.03
        assert np.percentile(errors(made, found), 95) <= 0.1


@pytest.mark.parametrize("factor", [1, 2])
def test_only_the_mask_counts(factor):
    stack, _, right = two_halves()
    mask = xr.DataArray(
        np.zeros((128 // factor, 288 // factor), dtype=bool),
        dims=("y", "x"),
        coords={
            "y": ("y", (np.arange(128 // factor) + 0.5) * 10.0 * factor - 5, {"units": "nm"}),
            "x": ("x", (np.arange(288 // factor) + 0.5) * 10.0 * factor - 5, {"units": "nm"}),
        },
    )
    mask[:, 148 // factor :] = True
    found = align.register(stack, mask=mask)
    assert np.median(errors(right, found)) <= 0.03


def test_an_empty_region_is_refused():
    made = make(seed=13, n_energies=10)
    with pytest.raises(InputError, match="fewer than 64 pixels"):
        align.register(made.stack, region_nm=(5000, 6000, 0, 100))


def test_a_reference_stack_fixes_the_place():
    made = make(seed=19, photons=5000, shape=(160, 176))
    # The same field, another scan: other noise, no drift, 3.3 and -5.6 pixels away, and its
    # coordinates say so.
    other = make(seed=19, photons=3000, shape=(160, 176), drift_px=0.0).stack[::4, 5:150, 3:160]
    found = align.register(made.stack, reference=other)
    off = np.stack([found.shift_y.values, found.shift_x.values], axis=1) / 10.0 - made.shifts_px
    assert np.abs(np.median(off, axis=0)).max() <= 0.03
    moved = other.assign_coords(
        y=("y", other.y.values + 33.0, {"units": "nm"}),
        x=("x", other.x.values - 56.0, {"units": "nm"}),
    )
    again = align.register(made.stack, reference=moved)
    assert float((again.shift_y - found.shift_y).median()) == pytest.approx(-33.0, abs=0.5)
    assert float((again.shift_x - found.shift_x).median()) == pytest.approx(56.0, abs=0.5)
    assert found.attrs["common_frame"] == "reference"


def test_one_image_is_a_reference_too():
    made = make(seed=19, photons=5000, shape=(160, 176))
    other = (
        make(seed=19, photons=9000, shape=(160, 176), drift_px=0.0).stack[30].drop_vars("energy")
    )
    found = align.register(made.stack, reference=other)
    off = np.stack([found.shift_y.values, found.shift_x.values], axis=1) / 10.0 - made.shifts_px
    assert np.abs(np.median(off, axis=0)).max() <= 0.05


def test_a_reference_of_another_pixel_size_or_sample_is_refused():
    made = make(seed=19, n_energies=12)
    with pytest.raises(InputError, match="Resample the reference"):
        align.register(made.stack, reference=make(seed=19, n_energies=4, pixel=12.0).stack)
    noise = made.stack.copy(data=np.random.default_rng(0).poisson(100.0, made.stack.shape))
    with pytest.raises(InputError, match="cannot be aligned to the reference"):
        align.register(made.stack, reference=noise)


@pytest.mark.parametrize("order", [1, -1])
def test_given_shifts_find_their_frames(order):
    made = make(seed=4, n_energies=9)
    table = pd.DataFrame(
        {
            "energy": made.stack.energy.values[::order],
            "shift_y": np.arange(9.0)[::order],
            "shift_x": -np.arange(9.0)[::order],
        }
    )
    table.loc[table.shift_y == 3.0, "shift_x"] = np.nan
    found = align.given_shifts(made.stack, table)
    assert list(np.flatnonzero(found.flagged)) == [3]
    kept = ~found.flagged.values
    assert np.array_equal(found.shift_y.values[kept], np.arange(9.0)[kept])
    assert np.array_equal(found.shift_x.values[kept], -np.arange(9.0)[kept])
    again = align.given_shifts(made.stack, found)
    assert np.array_equal(again.shift_y, found.shift_y)
    with pytest.raises(InputError, match="no row for the frame"):
        align.given_shifts(made.stack, table[:5])
    with pytest.raises(InputError, match="no column 'shift_x'"):
        align.given_shifts(made.stack, table.drop(columns="shift_x"))


def test_a_frame_corrected_by_hand_is_kept():
    made = make(seed=8)
    made.stack[17] = np.random.default_rng(0).poisson(3.0, made.stack.shape[1:])
    found = align.register(made.stack)
    energy = float(made.stack.energy[17])
    after = align.correct_shifts(found, {energy: (40.0, -30.0), 3: (10.0, 0.0)})
    assert bool(found.flagged[17])
    assert not bool(after.flagged[17])
    assert float(after.confidence[17]) == 1.0
    change = after.shift_y - found.shift_y
    assert float(change[3] - change[4]) == pytest.approx(10.0)
    assert float(change[17] - change[4]) == pytest.approx(40.0)
    assert abs(float(np.median(after.shift_y))) < 1e-9
    placed = align.correct_shifts(found, {17: (5.0, 6.0)}, replace=True)
    assert float(placed.shift_x[17] - placed.shift_x[4]) == pytest.approx(
        6.0 - float(found.shift_x[4])
    )
    with pytest.raises(InputError, match="no frame 700"):
        align.correct_shifts(found, {700: (0.0, 0.0)})


def test_binned_frames_keep_the_sum_and_know_their_gaps():
    frame = np.arange(48.0).reshape(6, 8)
    frame[0, 0] = np.nan
    frame[2:4, 2:4] = np.nan
    found = align.bin_frame(frame, 2)
    whole = frame.reshape(3, 2, 4, 2)
    assert found.dtype == np.float32
    assert found[0, 0] == pytest.approx(np.nanmean(whole[0, :, 0]) * 4)
    assert np.isnan(found[1, 1])
    assert found[2, 3] == whole[2, :, 3].sum()
    assert align.binning_for((60, 1024, 1000)) == 1
    assert align.binning_for((60, 2048, 1000)) == 2
    assert align.binning_for((8192, 8192)) == 8


def test_a_binned_stack_gives_the_shifts_of_the_full_one():
    made = make(seed=22, photons=2000, shape=(192, 208))
    frames = np.stack([align.bin_frame(f, 2) for f in made.stack.values])
    y, x = (made.stack[a].values.reshape(-1, 2).mean(axis=1) for a in "yx")
    coords = {
        "energy": made.stack.energy,
        "y": ("y", y, {"units": "nm"}),
        "x": ("x", x, {"units": "nm"}),
    }
    binned = xr.DataArray(frames, dims=made.stack.dims, coords=coords, attrs=made.stack.attrs)
    found = errors(made, align.register(binned))
    # The pixel of the binned stack is twice as large: `errors` divides by that of the full one.
    assert np.median(found) <= 0.03


TONER = "als-toner-stxm-fe/Data/ALS_Toner/71214078_FigS4/Aligned/71214078.hdr"


@pytest.fixture(scope="module")
def toner(shared_data):
    from spectromap.io import open_stack

    return open_stack(shared_data / TONER).load()


def moved(stack: xr.DataArray, shifts: xr.Dataset) -> np.ndarray:
    steps = [float(np.median(np.diff(stack[a]))) for a in "yx"]
    return np.stack([shifts.shift_y.values, shifts.shift_x.values], axis=1) / steps


def test_a_real_stack_that_is_aligned_stays_where_it_is(toner):
    found = align.register(toner)
    assert np.sqrt(np.mean((moved(toner, found) ** 2).sum(axis=1))) < 0.1
    assert not found.flagged.values.any()


def test_a_real_stack_moved_by_known_amounts_comes_back(toner):
    rng = np.random.default_rng(0)
    true = np.cumsum(rng.normal(0, 0.4, (toner.sizes["energy"], 2)), axis=0)
    true -= np.median(true, axis=0)
    frames = [
        ndimage.shift(f, s, order=5, mode="mirror") for f, s in zip(toner.values, true, strict=True)
    ]
    inner = (slice(None), slice(8, -8), slice(8, -8))
    still = moved(toner, align.register(toner[inner]))
    shifted = toner.copy(data=np.array(frames, dtype=np.float32))[inner]
    off = moved(toner, align.register(shifted)) - still - true
    off -= np.median(off, axis=0)
    assert np.sqrt(np.mean((off**2).sum(axis=1))) < 0.05
