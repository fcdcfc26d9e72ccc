"""SPEC and TIFF scans of 34-ID-C: small ones written here, and the real gold crystal."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tifffile

from spectromap.bcdi.geometry import load_geometry, resolution, sample_frame
from spectromap.bcdi.interchange import read_cohere_settings
from spectromap.bcdi.preprocess import correct, find_peak, prepare
from spectromap.io.spec34idc import read_rocking_scan, read_spec_scan
from spectromap.schema import FileError, InputError

HEADER = """#F test.spec
#E 1
#O0 Delta  Theta  Chi  Phi  Gamma
#O1 camdist  Energy  two words
#o0 del th chi phi gam
#o1 cam en two

"""


def spec_text(scan, maxima, roi="2 10 3 8 1"):
    """One scan with positions, a region and the largest value of each frame."""
    lines = [
        f"#S {scan}  ascan  th 0.1 0.{len(maxima)}  {len(maxima) - 1} 0.25",
        "#P0 32.1 0.2 90 -5 12.6",
        "#P1 500 9 1.5",
        "#UIMDET 34idcTIM2:",
        f"#UIMR5  {roi}",
        "#N 4",
        "#L Theta  pm detector  ImageTot  ImageMax",
    ]
    lines += [f"{0.1 + 0.01 * i:.3f} 3 100 {top}" for i, top in enumerate(maxima)]
    return "\n".join(lines) + "\n\n"


@pytest.fixture
def small(tmp_path):
    """Twelve frames of 8 x 10 pixels, cut from a detector of 20 x 20."""
    frames = np.random.default_rng(0).integers(0, 1000, (12, 8, 10)).astype(np.int32)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / "frames" / f"S_{number:05d}.tif", frame)
    text = HEADER + spec_text(6, [1, 2]) + spec_text(7, frames.max(axis=(1, 2)).tolist())
    (tmp_path / "a.spec").write_text(text)
    dark = np.arange(400).reshape(20, 20).astype(np.int32)
    tifffile.imwrite(tmp_path / "dark.tif", dark)
    return tmp_path, frames, dark


def test_a_small_scan(small):
    """Columns and names with spaces, the region of the detector, and the geometry."""
    folder, frames, dark = small
    told = read_spec_scan(folder / "a.spec", 7)
    assert told.motors["two words"] == 1.5
    assert told.columns["pm detector"].tolist() == [3.0] * 12
    assert told.scanned == "Theta"
    scan = read_rocking_scan(folder / "a.spec", 7, folder / "frames", dark=folder / "dark.tif")
    np.testing.assert_array_equal(scan.counts, frames)
    np.testing.assert_array_equal(scan.dark, dark[3:11, 2:12])
    np.testing.assert_allclose(scan.angle, 0.1 + 0.01 * np.arange(12))
    assert json.loads(scan.attrs["angles"])["gamma"] == 12.6
    assert scan.attrs["scan_axis"] == "theta"
    assert (scan.attrs["energy_eV"], scan.attrs["distance_m"]) == (9000.0, 0.5)
    assert json.loads(scan.attrs["flags"]) == []
    assert sample_frame(scan).d_spacing == pytest.approx(0.234, abs=1e-3)


def test_what_is_missing_or_foreign_is_named(small):
    """Missing frames, frames of another scan, other regions, damaged files."""
    folder, _, _ = small
    spec, frames = folder / "a.spec", folder / "frames"
    (frames / "S_00004.tif").rename(folder / "away.tif")
    scan = read_rocking_scan(spec, 7, frames)
    assert json.loads(scan.attrs["flags"]) == ["frame 4 is missing"]
    assert np.isnan(scan.counts[4]).all()
    (frames / "S_00005.tif").rename(folder / "gone.tif")
    with pytest.raises(FileError, match="missing: 4, 5"):
        read_rocking_scan(spec, 7, frames)
    (folder / "away.tif").rename(frames / "S_00004.tif")
    tifffile.imwrite(frames / "S_00005.tif", np.full((8, 10), 5000, np.int32))
    scan = read_rocking_scan(spec, 7, frames)
    assert "frames 5 have another largest value" in json.loads(scan.attrs["flags"])[0]
    for number in range(12):
        tifffile.imwrite(frames / f"S_{number:05d}.tif", np.full((8, 10), 5000, np.int32))
    with pytest.raises(FileError, match="not those of scan 7"):
        read_rocking_scan(spec, 7, frames)
    with pytest.raises(FileError, match="12 frames for the 2 points of scan 6"):
        read_rocking_scan(spec, 6, frames)
    with pytest.raises(FileError, match="no scan 9 among 2"):
        read_rocking_scan(spec, 9, frames)
    tifffile.imwrite(folder / "tiny.tif", np.zeros((9, 9), np.int32))
    shutil.rmtree(frames)
    frames.mkdir()
    for number in range(12):
        tifffile.imwrite(frames / f"S_{number:05d}.tif", np.full((8, 10), number, np.int32))
    (folder / "a.spec").write_text(HEADER + spec_text(7, range(12)))
    with pytest.raises(FileError, match="does not lie in this image"):
        read_rocking_scan(spec, 7, frames, dark=folder / "tiny.tif")
    (frames / "S_00003.tif").write_bytes(b"II*\0")
    with pytest.raises(FileError, match="cannot be read as TIFF"):
        read_rocking_scan(spec, 7, frames)
    (folder / "a.spec").write_text(HEADER + spec_text(7, range(12), roi="2 11 3 8 1"))
    with pytest.raises(FileError, match="the SPEC file says rows and columns"):
        read_rocking_scan(
            spec,
            7,
            sorted(frames.glob("S_0000[0-2].tif")) * 1
            + [frames / f"S_{n:05d}.tif" for n in range(4, 12)],
        )


# --------------------------------------------------------------------------------------------
# The gold crystal


@pytest.fixture(scope="module")
def gold(shared_data):
    """Files and raw scan."""
    folder = shared_data / "bcdi-34idc-cohere" / "example"
    if not folder.is_dir():
        pytest.skip("the gold scan is not on this machine")
    files = {"dark": folder / "dark.tif", "white": folder / "whitefield.tif"}
    frames = folder / "exp_data" / "Staff20-1a_S0054"
    scan = read_rocking_scan(folder / "example.spec", 54, frames, **files)
    return folder, scan


@pytest.fixture(scope="module")
def ready(gold):
    """The scan prepared for phasing."""
    return prepare(gold[1])


def test_gold_geometry(gold):
    """The angles of the scan give d = 2.335 A; the frames are those that SPEC counted."""
    _, scan = gold
    assert scan.counts.shape == (201, 256, 256)
    assert float(scan.counts.max()) == 165297
    assert json.loads(scan.attrs["flags"]) == []
    told = resolution(sample_frame(scan))
    assert told["d_spacing"] == pytest.approx(0.2335, abs=5e-5)
    assert told["voxel_row"] == pytest.approx(5.01, abs=0.02)
    assert told["voxel_frame"] == pytest.approx(15.1, abs=0.1)


def test_gold_prepared(gold, ready):
    """Two other grains and one flash are masked, nothing of the crystal is lost."""
    flags = json.loads(ready.attrs["flags"])
    assert len(flags) == 3
    assert any("frame 164, row 62, column 102" in flag for flag in flags)
    assert ready.counts.shape == (210, 264, 256)
    np.testing.assert_allclose(find_peak(ready).nearest, (105, 132, 128), atol=0)
    assert float(ready.counts.sum()) == pytest.approx(float(gold[1].counts.sum()), rel=0.05)
    assert sample_frame(ready).d_spacing == pytest.approx(0.2335, abs=5e-5)


def test_gold_white_field_of_another_region_is_refused(gold):
    """Any other quarter of the detector, and the right one turned, do not fit the frames."""
    folder, scan = gold
    whole = tifffile.imread(folder / "whitefield.tif").astype(np.float32)
    some = scan.isel(frame=slice(60, 140))
    correct(some)
    for part in (whole[256:, :256], whole[:256, 256:], whole[:256, :256].T):
        with pytest.raises(InputError, match="do not show the pattern of the white field"):
            correct(some.assign(white=(("row", "column"), part)))


def test_gold_facets_confirm_the_frame(ready):
    """Streaks of the flat faces make the angles of an fcc crystal with Q = 111.

    {111} faces lie at 70.5 degrees to one another, {100} at 54.7 to them and at 90 to one
    another. With a pixel or a circle turned the wrong way the angles are off by ten degrees.
    """
    frame = sample_frame(ready)
    assert _misfit(ready, frame) < 3.0
    geometry = load_geometry("34idc")
    theta = dataclasses.replace(geometry.sample[0], direction=(0.0, -1.0, 0.0))
    for wrong in (
        {"row": (0, 1, 0)},
        {"column": (0, 0, -1)},
        {"sample": (theta, *geometry.sample[1:])},
    ):
        assert _misfit(ready, sample_frame(ready, dataclasses.replace(geometry, **wrong))) > 6.0


def _misfit(scan, frame):
    """Root mean square distance in degrees of the streaks' angles from those of fcc."""
    counts = scan.counts.values
    place = np.argwhere(counts > 0)
    weight = np.minimum(counts[tuple(place.T)], 5)
    q = (place - np.array(counts.shape) // 2) @ frame.steps.T
    length = np.linalg.norm(q, axis=1)
    shell = np.flatnonzero((length > 0.1) & (length < 0.3))
    shell = np.random.default_rng(1).choice(shell, 20_000, replace=False)
    rays, weight = q[shell] / length[shell, np.newaxis], weight[shell]
    trial = np.random.default_rng(0).normal(size=(1500, 3))
    trial /= np.linalg.norm(trial, axis=1, keepdims=True)
    score = np.array([weight @ (np.abs(rays @ t) > np.cos(np.deg2rad(3))) for t in trial])
    found = []
    for t in trial[np.argsort(-score)]:
        if all(abs(t @ other) < np.cos(np.deg2rad(15)) for other in found):
            found.append(t)
    faces = np.array([_sharpened(t, rays, weight) for t in found[:6]])
    angles = np.rad2deg(np.arccos(np.clip(np.abs(faces @ faces.T), 0, 1)))
    between = angles[np.triu_indices(6, 1)]
    to_q = np.rad2deg(np.arccos(np.clip(np.abs(faces @ frame.q) / np.linalg.norm(frame.q), 0, 1)))
    off = [np.abs(to_q[:, np.newaxis] - [0, 54.74, 70.53]).min(axis=1)]
    off.append(np.abs(between[:, np.newaxis] - [54.74, 70.53, 90]).min(axis=1))
    return float(np.sqrt(np.mean(np.concatenate(off) ** 2)))


def _sharpened(direction, rays, weight):
    """Mean direction of the rays within five degrees of a line."""
    for _ in range(6):
        along = rays @ direction
        near = np.abs(along) > np.cos(np.deg2rad(5))
        direction = (weight[near] * np.sign(along[near])) @ rays[near]
        direction = direction / np.linalg.norm(direction)
    return direction


def test_gold_settings_of_its_authors(gold):
    """The settings that came with the scan are read."""
    conf = gold[0].parent / "workspace" / "scan_54" / "conf"
    assert read_cohere_settings(conf / "config_rec")["support_threshold"] == 0.1
    assert read_cohere_settings(conf / "config_data")["amp_threshold"] == 6
    assert read_cohere_settings(conf / "config_disp")["diffractometer"] == "34idc"
