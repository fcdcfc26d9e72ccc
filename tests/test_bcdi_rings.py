"""Multi-crystal rings: calibration, spots, tracks and populations against simulated grains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.optimize import linear_sum_assignment

from spectromap.bcdi.rings import (
    RingCalibration,
    calibrate_ring,
    find_spots,
    ring_populations,
    track_spots,
)
from spectromap.schema import InputError
from spectromap.synthetic import (
    RingDetector,
    RingPopulation,
    default_populations,
    simulate_ring,
)

pytestmark = pytest.mark.long


def calibrated(frames, spots, **options):
    a = frames.attrs
    names = ("energy_eV", "distance_m", "two_theta_deg")
    known = {n: a[n] for n in names} | {"pixel_m": a["pixel_m"][0], "centre": a["centre"]}
    return calibrate_ring(spots, **(known | options))


def with_found(truth, table):
    """Truth with the index of the spot found for every grain, -1 where none is within 2.5 px."""
    found = np.full(len(truth), -1)
    for frame in truth["frame"].unique():
        here, there = (np.flatnonzero(t["frame"] == frame) for t in (truth, table))
        places = (t[["row", "column"]].to_numpy() for t in (truth.iloc[here], table.iloc[there]))
        first, second = places
        away = np.linalg.norm(first[:, None] - second[None], axis=-1)
        i, j = linear_sum_assignment(np.minimum(away, 3.0))
        near = away[i, j] < 2.5
        found[here[i[near]]] = there[j[near]]
    return truth.assign(spot=found)


def alone(truth, away):
    """Grains further than `away` pixels from all others in their frame."""
    keep = []
    for _, frame in truth.groupby("frame"):
        places = frame[["row", "column"]].to_numpy()
        between = np.linalg.norm(places[:, None] - places[None], axis=-1)
        np.fill_diagonal(between, np.inf)
        keep.append(frame[between.min(axis=1) > away])
    return pd.concat(keep)


def identity(matched, table):
    """Share of the spots on the track of their grain, one track a grain and one grain a track."""
    seen = matched[matched["spot"] >= 0]
    track = table["track"].to_numpy()[seen["spot"]]
    pairs = pd.crosstab(seen["grain"], track).to_numpy()
    return pairs[linear_sum_assignment(pairs, maximize=True)].sum() / len(seen)


@pytest.fixture(scope="module")
def series():
    made = simulate_ring(seed=1)
    spots = find_spots(made.frames)
    calibration = calibrated(made.frames, spots[spots["frame"] == 0])
    return made, track_spots(spots, calibration), calibration


def test_three_populations_in_22_frames(series):
    """The bar: at least 95 % right identity, populations counted right."""
    made, tracks, _ = series
    assert made.frames.sizes["frame"] == 22
    matched = with_found(made.truth, tracks)
    # Grains closer than 1.5 widths make one spot; nothing is found that is not there.
    assert np.mean(matched["spot"] >= 0) > 0.92
    assert len(tracks) - np.sum(matched["spot"] >= 0) < 0.01 * len(tracks)
    assert identity(matched, tracks) >= 0.95

    table, summary = ring_populations(tracks, made.frames["voltage"].values)
    assert summary.attrs["populations"] == 3
    assert int(summary["bic"].values.argmin()) == 2
    seen = matched[matched["spot"] >= 0]
    own = table["population"].to_numpy()[seen["spot"]]
    assert np.mean(own == seen["population"]) > 0.98  # in the order D1, D2, D3 of appearance

    for number, population in enumerate(default_populations(), start=1):
        found = summary.sel(population=number)
        strength = np.asarray(population.strength)
        present = strength > 0
        assert np.all(found["spots"].values[~present] <= 1)
        off = found["d_nm"].values[present] / np.asarray(population.d_nm)[present] - 1
        assert np.nanmax(np.abs(off)) < 5e-4  # the spread of the grains over their number
        true = made.truth[made.truth["population"] == number].groupby("frame")["photons"].sum()
        measured = found["intensity"].values[true.index]
        share = measured / true.to_numpy()
        assert np.median(share) == pytest.approx(1.0, abs=0.04)
        assert np.abs(share - 1).max() < 0.12
    assert summary["voltage"].attrs["units"] == "V"


def test_places_and_intensities_are_as_good_as_their_errors(series):
    made, tracks, _ = series
    seen = with_found(alone(made.truth, 7.0), tracks)
    assert np.mean(seen["spot"] >= 0) > 0.99
    seen = seen[seen["spot"] >= 0]
    spots = tracks.iloc[seen["spot"]]
    for name, true in (("row", "row"), ("column", "column"), ("intensity", "photons")):
        pull = (spots[name].to_numpy() - seen[true].to_numpy()) / spots[f"{name}_errors"].to_numpy()
        middle = np.median(np.abs(pull)) * 1.4826
        assert 0.85 < middle < 1.3, name
    off = spots["q"].to_numpy() * seen["d_nm"].to_numpy() / (2 * np.pi) - 1
    assert abs(np.median(off)) < 1e-5
    assert np.median(np.abs(off)) < 1e-5


def test_one_population_is_one():
    one = default_populations()[0]
    made = simulate_ring([one], seed=3)
    spots = find_spots(made.frames)
    tracks = track_spots(spots, calibrated(made.frames, spots[spots["frame"] == 0]))
    assert ring_populations(tracks)[1].attrs["populations"] == 1


def test_whole_ring_gives_its_centre_and_radius():
    frames = 2
    d_nm, strength = (0.472,) * frames, (1.0,) * frames
    detector = RingDetector(two_theta_deg=0.0, distance_m=0.018, centre=(120.3, 135.7))
    made = simulate_ring([RingPopulation(30, d_nm, strength)], detector, (3.2, 3.3), seed=4)
    spots = find_spots(made.frames)
    rng = np.random.default_rng(0)
    stray = pd.DataFrame(rng.uniform(0, 256, (12, 2)), columns=["row", "column"])
    both = pd.concat([spots, stray], ignore_index=True)
    found = calibrated(made.frames, both, centre=None)
    # A spacing spread of 3e-4 is 0.03 px here; photon noise 0.1 px a spot.
    assert found.row == pytest.approx(120.3, abs=0.1)
    assert found.column == pytest.approx(135.7, abs=0.1)
    assert 2 * np.pi / found.q_norm == pytest.approx(0.472, rel=1e-3)
    sine = 1239.841984 / 9000.0 / (2 * 0.472)
    radius = np.tan(2 * np.arcsin(sine)) * 0.018 / 55e-6
    assert found.radius_px == pytest.approx(radius, abs=0.1)


def test_a_short_arc_takes_its_centre_from_the_geometry(series):
    made, tracks, calibration = series
    first = tracks[tracks["frame"] == 0]
    assert 2 * np.pi / calibration.q_norm == pytest.approx(0.472, rel=2e-4)
    # A detector thought 12 px aside is put right by the known spacing of the first state.
    row, column = made.frames.attrs["centre"]
    known = 2 * np.pi / 0.472
    moved = calibrated(made.frames, first, centre=(row, column - 12.0), q_norm=known)
    assert moved.q_norm == pytest.approx(known, rel=1e-9)
    assert moved.column == pytest.approx(column, abs=2.0)
    with pytest.raises(InputError, match="centre of the detector"):
        calibrated(made.frames, first, centre=None)
    flat = made.frames.assign_attrs(two_theta_deg=0.0)
    with pytest.raises(InputError, match="does not tell its centre"):
        calibrated(flat, first, centre=None)


def test_a_spot_that_is_missed_keeps_its_track():
    """Gaps of up to three frames are bridged while the ring moves; longer ones end a track."""
    calibration = RingCalibration(127.5, 127.5, 9000.0, 1.95, 55e-6, 16.62, q_norm=13.3)
    rows = []
    for frame in range(12):
        for grain in range(6):
            if grain == 2 and 4 <= frame <= 6:
                continue
            place = (40.0 + 5 * grain, 200.0 - 4 * frame + grain % 3)
            rows.append((frame, *place, 1000.0, grain))
    spots = pd.DataFrame(rows, columns=["frame", "row", "column", "intensity", "grain"])
    tracks = track_spots(spots, calibration)
    assert tracks.groupby("grain")["track"].nunique().max() == 1
    assert tracks["track"].nunique() == 6
    ended = track_spots(spots, calibration, most_missed=2)
    assert ended["track"].nunique() == 7


def test_what_cannot_be_used_is_refused(series):
    made, tracks, calibration = series
    with pytest.raises(InputError, match="dims"):
        find_spots(made.frames.rename(frame="time"))
    with pytest.raises(InputError, match="below zero"):
        find_spots(made.frames.assign(counts=made.frames["counts"] - 10))
    with pytest.raises(InputError, match="columns missing"):
        track_spots(tracks.drop(columns="row"), calibration)
    with pytest.raises(InputError, match="too few"):
        ring_populations(tracks[tracks["track"] < 2])
    with pytest.raises(InputError, match="do not fix a ring"):
        calibrated(made.frames, tracks[:2])
    with pytest.raises(InputError, match="22 frames"):
        simulate_ring([RingPopulation(3, (0.472,), (1.0,))])


def test_masked_pixels_and_empty_frames_hold_no_spots(series):
    made, _, _ = series
    frames = made.frames.isel(frame=[0, 1]).copy(deep=True)
    hot = frames["counts"].values
    hot[0, 100, 50] = 1e6
    frames["mask"][0, 100, 50] = False
    hot[1] = 0
    spots = find_spots(frames)
    assert set(spots["frame"]) == {0}
    assert not np.any(np.hypot(spots["row"] - 100, spots["column"] - 50) < 5)
    empty = xr.Dataset({"counts": (("frame", "row", "column"), np.zeros((2, 30, 30)))})
    assert len(find_spots(empty)) == 0
