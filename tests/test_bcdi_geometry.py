"""Scattering vectors by hand, and objects of known shape through the skew detector frame."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import xarray as xr

from spectromap.bcdi.geometry import (
    load_geometry,
    resolution,
    sample_frame,
    scattering_vectors,
    to_sample_frame,
)
from spectromap.schema import FileError, InputError
from spectromap.synthetic import RockingScan, simulate_crystal

ANGLES = {"theta": 0.22, "chi": 90.0, "phi": -5.0, "delta": 32.174, "gamma": 12.6346}
EXAMPLE = {
    "name": "two circles",
    "beam": "z+",
    "sample": [{"motor": "omega", "axis": "x-"}],
    "detector": [{"motor": "two_theta", "axis": [0, 0, -2]}],
    "pixels": {"row": "y-", "column": "x+"},
}


def scan_of(shape, step=0.02, angles=ANGLES, distance=0.5, pixel=110e-6):
    """A prepared scan without counts, its axis of rotation theta."""
    angle = angles["theta"] + step * (np.arange(shape[0]) - shape[0] // 2)
    return xr.Dataset(
        {"counts": (("frame", "row", "column"), np.zeros(shape, np.float32))},
        coords={"angle": ("frame", angle)},
        attrs={
            "energy_eV": 9000.0,
            "distance_m": distance,
            "pixel_m": (pixel, pixel),
            "angles": json.dumps(angles),
            "scan_axis": "theta",
            "geometry": "34idc",
        },
    )


def transformed(points, blobs):
    """Amplitude ``sum object(r) exp(i q.r)`` of Gaussian blobs, by their closed form."""
    total = np.zeros(points.shape[:-1], complex)
    for place, width, slope, weight in blobs:
        fall = np.exp(-(width**2) * np.sum((points + slope) ** 2, axis=-1) / 2)
        total += weight * (2 * np.pi) ** 1.5 * width**3 * np.exp(1j * points @ place) * fall
    return total


def painted(grid, blobs):
    """The same blobs in space; each carries a wave of its own, as a strained part does."""
    total = np.zeros(grid.shape[:-1], complex)
    for place, width, slope, weight in blobs:
        away = grid - place
        fall = np.exp(-np.sum(away**2, axis=-1) / (2 * width**2))
        total += weight * fall * np.exp(1j * away @ slope)
    return total


def measured(amplitude, frame):
    """Object of the detector frame whose transform is an amplitude."""
    obj = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(amplitude)))
    return (obj / abs(np.linalg.det(frame.voxels))).astype(np.complex64)


def indices(shape):
    return np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"), -1)


def difference(found, truth):
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)


def grid_of(found):
    return np.stack(np.meshgrid(found.z, found.y, found.x, indexing="ij"), -1)


BLOBS = [
    (np.array([0.0, 0.0, 0.0]), 28.0, np.array([0.0, 0.0, 0.0]), 1.0),
    (np.array([60.0, -20.0, 35.0]), 26.0, np.array([0.02, 0.01, -0.03]), 0.7),
    (np.array([-30.0, 50.0, 10.0]), 32.0, np.array([-0.01, 0.03, 0.02]), 0.5 + 0.3j),
]


def test_the_gold_angles_by_hand():
    """2 theta and d of a reflection are those of the two circles, whatever the sample does."""
    geometry = load_geometry("34idc")
    q = scattering_vectors(geometry, ANGLES, 9000.0)
    cosine = np.cos(np.deg2rad(32.174)) * np.cos(np.deg2rad(12.6346))
    wavelength = 1.239841984 / 9.0
    expected = wavelength / (2 * np.sin(np.arccos(cosine) / 2))
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(34.316, abs=1e-3)
    assert 2 * np.pi / np.linalg.norm(q) == pytest.approx(expected, rel=1e-8)
    assert expected == pytest.approx(0.2335, abs=5e-5)


def test_circles_turn_by_the_right_hand_rule():
    """With the sample at zero, delta points the ray to +x and gamma up."""
    geometry = load_geometry("34idc")
    still = dict.fromkeys(geometry.motors(), 0.0)
    k = 2 * np.pi * 9000.0 / 1239.841984332
    up = scattering_vectors(geometry, still | {"gamma": 90.0}, 9000.0)
    aside = scattering_vectors(geometry, still | {"delta": 90.0}, 9000.0)
    np.testing.assert_allclose(up, [-k, k, 0], atol=1e-12)
    np.testing.assert_allclose(aside, [-k, 0, k], atol=1e-12)
    # A sample turned by theta about y sees the vector turned back: +x goes to +z.
    seen = scattering_vectors(geometry, still | {"delta": 90.0, "theta": 90.0}, 9000.0)
    np.testing.assert_allclose(seen, [k, 0, k], atol=1e-12)
    # Rows grow downwards, columns to +x.
    small = 1e-4
    down = scattering_vectors(geometry, still, 9000.0, (small, 0.0), 1.0)
    right = scattering_vectors(geometry, still, 9000.0, (0.0, small), 1.0)
    np.testing.assert_allclose(down / (k * small), [0, -1, 0], atol=1e-4)
    np.testing.assert_allclose(right / (k * small), [0, 0, 1], atol=1e-4)


def test_voxels_are_those_of_each_direction_alone():
    """Edges along a pixel follow from wavelength, distance and window; the field from the step."""
    shape = (60, 64, 48)
    frame = sample_frame(scan_of(shape))
    wavelength = 1.239841984 / 9.0
    for axis in (1, 2):
        assert np.linalg.norm(frame.steps[:, axis]) == pytest.approx(
            2 * np.pi / wavelength * 110e-6 / 0.5, rel=1e-5
        )
    # Only the part of Q across the axis of rotation moves with theta.
    across = np.hypot(frame.q[0], frame.q[2])
    lab = scattering_vectors(load_geometry("34idc"), ANGLES | {"theta": 0, "phi": 0}, 9000.0)
    assert across <= np.linalg.norm(lab)
    q = scattering_vectors(load_geometry("34idc"), ANGLES, 9000.0)
    turned = scattering_vectors(load_geometry("34idc"), ANGLES | {"theta": 0.24}, 9000.0)
    np.testing.assert_allclose(turned - q, frame.steps[:, 0], rtol=1e-3)
    np.testing.assert_allclose(
        frame.steps.T @ frame.voxels, 2 * np.pi * np.diag(1 / np.array(shape)), atol=1e-12
    )
    told = resolution(frame)
    assert told["d_spacing"] == pytest.approx(0.2335, abs=5e-5)
    assert told["field_frame"] == pytest.approx(shape[0] * told["voxel_frame"])


def test_an_object_comes_back_as_itself():
    """Known blobs, sampled in the skew detector frame, return to their place in the sample."""
    frame = sample_frame(scan_of((56, 64, 60)))
    points = indices(frame.shape) @ frame.steps.T
    obj = measured(transformed(points, BLOBS), frame)
    found = to_sample_frame(obj, frame)
    truth = painted(grid_of(found), BLOBS)
    assert np.allclose(np.diff(found.z), found.attrs["voxel_nm"])
    assert difference(found.values, truth) < 2e-4
    # Voxels of another size, coarser than what the window holds, and finer.
    for voxel in (12.0, 6.0):
        other = to_sample_frame(obj, frame, voxel_nm=voxel)
        assert difference(other.values, painted(grid_of(other), BLOBS)) < 2e-4
    # A mirrored or transposed frame would not pass: the blobs have no symmetry.
    assert difference(found.values[::-1, ::-1, ::-1], truth) > 0.3


def test_the_true_curved_detector_is_near_the_skew_frame():
    """Rays to a flat detector lie on the Ewald sphere; the linear frame stays within 2 %."""
    scan = scan_of((56, 64, 60))
    frame, geometry = sample_frame(scan), load_geometry("34idc")
    number = indices(frame.shape)
    angles = ANGLES | {"theta": scan.angle.values[28] + 0.02 * number[..., 0]}
    offset = (110e-6 * number[..., 1], 110e-6 * number[..., 2])
    points = scattering_vectors(geometry, angles, 9000.0, offset, 0.5) - frame.q
    found = to_sample_frame(measured(transformed(points, BLOBS), frame), frame)
    assert difference(found.values, painted(grid_of(found), BLOBS)) < 0.02


def test_a_sphere_keeps_its_volume_and_its_strain():
    """A ball stretched along Q: the peak moves to smaller |Q|, and du/dx is the strain put in."""
    frame = sample_frame(scan_of((56, 64, 60)))
    radius, strain = 75.0, 4e-4
    along = frame.q / np.linalg.norm(frame.q)
    points = indices(frame.shape) @ frame.steps.T + strain * frame.q
    size = np.linalg.norm(points, axis=-1) * radius + 1e-9
    ball = 4 * np.pi * radius**3 * (np.sin(size) - size * np.cos(size)) / size**3
    found = to_sample_frame(measured(ball, frame), frame)
    middle = indices(frame.shape)[np.unravel_index(np.argmax(np.abs(ball)), ball.shape)]
    assert (middle @ frame.steps.T) @ along < 0
    amplitude = np.abs(found.values)
    volume = np.sum(amplitude > 0.5) * found.attrs["voxel_nm"] ** 3
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    inner = np.linalg.norm(grid_of(found), axis=-1) < 0.7 * radius
    assert amplitude[inner].mean() == pytest.approx(1.0, abs=0.02)
    # phi = Q.u, so u = strain * x along Q has the phase strain * Q.r.
    expected = np.exp(1j * strain * grid_of(found) @ frame.q)
    turned = found.values[inner] * np.conj(expected[inner])
    turned = turned * np.exp(-1j * np.angle(turned.sum()))
    assert np.sqrt(np.mean(np.angle(turned) ** 2)) < 0.02


def test_coarse_voxels_do_not_alias():
    """Waves finer than the new voxels vanish instead of turning into slow ones."""
    frame = sample_frame(scan_of((56, 64, 60)))
    wave = frame.steps[:, 2] / np.abs(frame.steps[:, 2]).max() * 1.3 * np.pi / 24.0
    blobs = [(np.zeros(3), 40.0, wave, 1.0)]
    obj = measured(transformed(indices(frame.shape) @ frame.steps.T, blobs), frame)
    kept = np.abs(to_sample_frame(obj, frame, voxel_nm=7.0).values).max()
    lost = np.abs(to_sample_frame(obj, frame, voxel_nm=24.0).values).max()
    assert kept > 0.95
    assert lost < 0.05 * kept


def test_a_geometry_of_ones_own(tmp_path):
    """Other diffractometers come from a file or a mapping; mistakes are named."""
    geometry = load_geometry(EXAMPLE)
    assert geometry.motors() == ("omega", "two_theta")
    q = scattering_vectors(geometry, {"omega": 15.0, "two_theta": 30.0}, 9000.0)
    # The bisecting setting: Q lies along y of the sample.
    np.testing.assert_allclose(q / np.linalg.norm(q), [0, 1, 0], atol=1e-12)
    file = tmp_path / "mine.yaml"
    file.write_text("name: a\nname: b\n")
    with pytest.raises(FileError, match="twice"):
        load_geometry(file)
    with pytest.raises(InputError, match="no geometry is called 'id01'"):
        load_geometry("id01")
    with pytest.raises(InputError, match="missing or unknown: beam"):
        load_geometry({key: value for key, value in EXAMPLE.items() if key != "beam"})
    with pytest.raises(InputError, match="is no direction"):
        load_geometry(EXAMPLE | {"beam": "w+"})
    with pytest.raises(InputError, match="no angle for two_theta"):
        scattering_vectors(geometry, {"omega": 0.0}, 9000.0)


def test_what_does_not_fit_is_refused():
    """A scan that tells too little, a motor that turns nothing, an object of another shape."""
    scan = scan_of((8, 8, 8))
    bare = scan.copy()
    del bare.attrs["distance_m"]
    with pytest.raises(InputError, match="distance_m"):
        sample_frame(bare)
    with pytest.raises(InputError, match="no circle of 34idc"):
        sample_frame(scan.assign_attrs(scan_axis="mu"))
    with pytest.raises(InputError, match="do not span"):
        sample_frame(scan_of((8, 8, 8), step=0.0))
    frame = sample_frame(scan)
    for wrong in (np.zeros((8, 8, 9)), np.zeros(frame.shape), np.full(frame.shape, np.nan)):
        with pytest.raises(InputError, match="object"):
            to_sample_frame(wrong.astype(complex), frame)
    with pytest.raises(InputError, match="voxel"):
        to_sample_frame(np.ones(frame.shape, complex), frame, voxel_nm=-1.0)


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=2)))
def test_pixels_may_run_either_way(signs):
    """Flipping what a pixel direction means flips the data, and the object stays."""
    content = {
        "name": "flipped",
        "beam": "z+",
        "sample": [{"motor": m, "axis": a} for m, a in (("theta", "y+"), ("chi", "z-"))],
        "detector": [{"motor": "delta", "axis": "y+"}, {"motor": "gamma", "axis": "x-"}],
        "pixels": {"row": "y" + "-+"[signs[0] < 0], "column": "x" + "+-"[signs[1] < 0]},
    }
    frame = sample_frame(scan_of((56, 63, 60)), load_geometry(content))
    points = indices(frame.shape) @ frame.steps.T
    found = to_sample_frame(measured(transformed(points, BLOBS), frame), frame)
    assert difference(found.values, painted(grid_of(found), BLOBS)) < 2e-4


@pytest.mark.parametrize("geometry", ["34idc", "orthogonal"])
def test_the_simulator_agrees(geometry):
    """A strained polyhedron whose detector frame another piece of code laid out."""
    made = simulate_crystal(scan=RockingScan(geometry=geometry), seed=3)
    frame = sample_frame(made.scan)
    np.testing.assert_allclose(-frame.voxels.T, made.lattice, rtol=1e-3, atol=1e-5)
    # The simulator's Q is that of the brightest pixel, the angles are those of the reflection.
    np.testing.assert_allclose(frame.q, made.q, atol=5e-3 * made.scan.attrs["q_norm"])
    truth = made.truth()
    found = to_sample_frame(made.detector_object, frame, voxel_nm=made.voxel_nm)
    found = found.reindex_like(truth, method="nearest", tolerance=1e-3, fill_value=0).values
    expected = truth["object"].values
    overlap = np.vdot(expected, found)
    assert abs(overlap) > 0.995 * np.linalg.norm(found) * np.linalg.norm(expected)
    inner = truth.density.values > 0.99
    turn = np.angle(found[inner] * np.conj(expected[inner] * overlap))
    assert turn.std() < 0.02
    level = np.abs(found) > 0.5 * np.median(np.abs(found[inner]))
    assert level.sum() == pytest.approx(truth.support.values.sum(), rel=0.02)
