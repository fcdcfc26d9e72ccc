"""Simulated scans with known faults: each is found, named, and nothing else is touched."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from spectromap.bcdi.interchange import (
    read_cohere_settings,
    read_result,
    read_stack,
    write_cxi,
    write_vtk,
)
from spectromap.bcdi.preprocess import (
    bin_scan,
    correct,
    find_bad_pixels,
    find_peak,
    find_strays,
    prepare,
    remove_background,
    sum_scans,
)
from spectromap.schema import FileError, InputError
from spectromap.synthetic import (
    CoreShell,
    Dislocation,
    RadialGradient,
    Recording,
    RockingScan,
    simulate_crystal,
)

SHAPE, PEAK = (60, 72, 80), (31, 33, 45)
ANGLES = {"theta": 0.2, "chi": 90.0, "phi": -5.0, "delta": 32.0, "gamma": 12.0}


def pattern(strain=1.0, tilt=0.0):
    """Intensity of a cut ellipsoid with a bent phase, its peak at `PEAK`, largest value 1."""
    n = [np.arange(size) - size // 2 for size in SHAPE]
    z, y, x = np.meshgrid(*n, indexing="ij")
    body = (z / 8) ** 2 + (y / 11) ** 2 + (x / 10) ** 2 < 1
    body &= (z + 0.6 * y - 0.4 * x < 9) & (x + tilt * y < 7)
    phase = strain * ((y / 11) ** 2 - 0.5 * (x / 10) ** 2 + 0.7 * z * y / 88)
    wave = np.fft.fftn(np.fft.ifftshift(body * np.exp(1j * phase)))
    wave = np.abs(np.fft.fftshift(wave)) ** 2
    top = np.unravel_index(np.argmax(wave), SHAPE)
    return np.roll(wave / wave.max(), [p - t for p, t in zip(PEAK, top, strict=True)], (0, 1, 2))


INTENSITY = pattern()
GRID = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")


def scan_of(counts, name="scan 1", **variables):
    angle = 0.2 + 0.005 * (np.arange(counts.shape[0]) - 31)
    return xr.Dataset(
        {"counts": (("frame", "row", "column"), counts.astype(np.float32))}
        | {key: (("row", "column"), value) for key, value in variables.items()},
        coords={"angle": ("frame", angle)},
        attrs={
            "energy_eV": 9000.0,
            "distance_m": 0.5,
            "pixel_m": (55e-6, 55e-6),
            "angles": json.dumps(ANGLES),
            "scan_axis": "theta",
            "geometry": "34idc",
            "source_file": name,
        },
    )


def recorded(seed, photons=1e5, background=0.02, intensity=INTENSITY):
    return np.random.default_rng(seed).poisson(photons * intensity + background)


def flags_of(scan):
    return json.loads(scan.attrs["flags"])


def test_a_clean_scan_keeps_every_voxel():
    """Nothing is masked that was recorded; the peak sits at the centre; sizes are fast."""
    counts = recorded(0)
    ready = prepare(scan_of(counts), threshold=0)
    assert flags_of(ready) == []
    assert all(
        new >= old and new % 2 == 0 for new, old in zip(ready.counts.shape, SHAPE, strict=True)
    )
    inside = ready["mask"].values
    assert ready.counts.values.sum() == pytest.approx(counts.sum(), rel=1e-3)
    assert inside.sum() == pytest.approx(counts.size, rel=0.05)
    assert not ready.counts.values[~inside].any()
    peak = find_peak(ready)
    offset = np.array(ready.attrs["centre_offset"])
    assert np.all(np.abs(offset) <= 0.5)
    np.testing.assert_allclose(
        np.array(peak.centre) - np.array(ready.counts.shape) // 2, offset, atol=1e-6
    )
    np.testing.assert_allclose((ready.attrs["centre_frame"], *ready.attrs["centre"]), PEAK, atol=1)
    assert np.allclose(np.diff(ready.angle), 0.005)
    frame = round(ready.attrs["centre_frame"])
    assert float(ready.angle[ready.angle.size // 2]) == pytest.approx(0.2 + 0.005 * (frame - 31))


def test_background_goes_and_fringes_stay():
    """Lone photons of the background vanish; of the crystal's photons, hardly any."""
    fading = INTENSITY * np.exp(
        -sum(((g - p) / 12) ** 2 / 2 for g, p in zip(GRID, PEAK, strict=True))
    )
    bare = np.random.default_rng(1).poisson(1e5 * fading)
    counts = bare + np.random.default_rng(2).poisson(0.03, SHAPE)
    left = remove_background(correct(scan_of(counts)))
    assert left.attrs["background"] == pytest.approx(0.03, abs=0.02)
    far = fading * 1e5 < 0.005
    assert left.counts.values[far].sum() < 0.1 * counts[far].sum()
    assert left.counts.values.sum() == pytest.approx(bare.sum(), rel=3e-3)
    cut = remove_background(correct(scan_of(counts)), threshold=3)
    assert cut.counts.values[cut.counts.values > 0].min() == 3


def test_bad_pixels_are_found_and_only_they():
    """Hot, weakly hot, dead and flashing pixels."""
    counts = recorded(2)
    clean = find_bad_pixels(counts.astype(np.float32), np.ones(SHAPE, bool))
    assert not clean[0].any()
    assert not clean[1].any()
    hot, weak, dead, flash = (10, 70), (60, 12), (34, 47), (50, 8, 66)
    counts[:, *hot] += 4000
    counts[:, *weak] += np.random.default_rng(3).poisson(3, SHAPE[0])
    counts[:, *dead] = 0
    counts[flash] = 900
    scan = correct(scan_of(counts))
    found_hot, found_dead = find_bad_pixels(scan.counts.values, scan["mask"].values)
    assert sorted(map(tuple, np.argwhere(found_hot))) == [hot, weak]
    assert sorted(map(tuple, np.argwhere(found_dead))) == [dead]
    ready = prepare(scan_of(counts))
    assert flags_of(ready)[:3] == [
        "2 hot pixels masked",
        "1 dead pixels masked",
        "1 flashes masked",
    ]
    assert ready.counts.values.max() < 1.2e5


def test_a_stray_peak_is_masked_and_fringes_are_not():
    """A second grain far from the peak, as bright as a fringe; the crystal is bent."""
    none, said = find_strays(
        correct(scan_of(recorded(4))), find_peak(correct(scan_of(recorded(4))))
    )
    assert not none.any()
    assert said == []
    place = (48, 12, 18)
    away = sum((g - p) ** 2 / w**2 for g, p, w in zip(GRID, place, (3.5, 2.5, 2.5), strict=True))
    stray = 60 * np.exp(-away / 2)
    scan = correct(scan_of(recorded(4) + np.random.default_rng(5).poisson(stray)))
    found, said = find_strays(scan, find_peak(scan))
    assert len(said) == 1
    assert found[place]
    assert stray[found].sum() > 0.97 * stray.sum()
    crystal = 1e5 * INTENSITY
    assert crystal[found].sum() < 1e-3 * crystal.sum()
    assert found.sum() < 0.03 * found.size
    assert "stray peak near frame 4" in flags_of(prepare(scan))[0]


@pytest.mark.parametrize(
    "fields", [(RadialGradient(strain=3e-3),), (CoreShell(misfit=4e-3),), (Dislocation(),)]
)
def test_strained_crystals_have_no_stray_peaks_but_those_put_in(fields):
    """Strong strain and dislocations are spared; spots seven times above the fringes are not."""
    shape = RockingScan(geometry="34idc", shape=(64, 72, 72))
    for seed, photons in ((0, 1e6), (1, 1e4)):
        clean = simulate_crystal(
            fields=fields, scan=shape, recording=Recording(peak_photons=photons), seed=seed
        ).scan
        spotted = simulate_crystal(
            fields=fields, scan=shape, recording=Recording(photons, aliens=3), seed=seed
        )
        assert find_strays(clean, find_peak(clean))[1] == []
        found, _ = find_strays(spotted.scan, find_peak(spotted.scan))
        counts, fringes = spotted.scan.counts.values, clean.counts.values
        labels, number = ndimage.label(spotted.flaws)
        for spot in range(1, number + 1):
            inside = labels == spot
            around = ndimage.maximum_filter(np.where(inside, fringes, 0), 3).max()
            if inside.sum() > 50 and counts[inside].max() > 10 * max(around, 10):
                assert (counts * (inside & found)).sum() > 0.95 * counts[inside].sum()


def test_dark_and_white_field():
    """Both undone; their bad pixels masked; a white field of another region refused."""
    rng = np.random.default_rng(6)
    gain = rng.normal(1, 0.15, SHAPE[1:]).clip(0.5, 1.5)
    dark = np.full(SHAPE[1:], 20.0)
    dark[5, 6] = 900.0
    gain[40, 41] = 0.05
    white = rng.poisson(1e4 * gain).astype(float)
    counts = rng.poisson(1e5 * INTENSITY * gain + dark)
    fields = {"dark": dark, "white": white}
    scan = correct(scan_of(counts, **fields))
    good = scan["mask"].values
    assert np.argwhere(~good.all(axis=0)).tolist() == [[5, 6], [40, 41]]
    bright = good & (INTENSITY * 1e5 > 1000)
    ratio = scan.counts.values[bright] / (1e5 * INTENSITY[bright])
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.04
    turned = fields | {"white": np.roll(white, 7, axis=1)}
    with pytest.raises(InputError, match="do not show the pattern of the white field"):
        correct(scan_of(counts, **turned))
    with pytest.raises(InputError, match="the dark field has"):
        correct(scan_of(counts).assign(dark=(("r", "c"), np.zeros((144, 160)))))


def test_a_dark_of_another_region_is_doubted():
    counts, dark = recorded(7), np.zeros(SHAPE[1:])
    for k in range(6):
        counts[:, 5 + 10 * k, 70] += 500
        dark[5 + 10 * k, 10] = 100
    assert "dark may be of another region" in flags_of(correct(scan_of(counts, dark=dark)))[0]
    dark[5, 70] = 100
    assert flags_of(correct(scan_of(counts, dark=dark))) == []


def test_saturation_is_masked_or_refused():
    counts = recorded(8)
    full = int(np.sum(counts >= 60_000))
    some = prepare(scan_of(np.minimum(counts, 60_000)))
    assert flags_of(some)[0].startswith(f"saturated: {full} voxels")
    with pytest.raises(InputError, match=r"scan 1: the detector was saturated in \d+% of"):
        prepare(scan_of(np.minimum(counts, 4000)))
    with pytest.raises(InputError, match="saturated"):
        prepare(scan_of(counts), saturation=3000)


def test_scans_that_cannot_be_used_are_refused_by_name():
    counts = recorded(9).astype(float)
    for axis, name in enumerate(("frame", "row", "column")):
        moved = np.roll(counts, -PEAK[axis], axis=axis)
        with pytest.raises(
            InputError, match=f"scan 7: the Bragg peak is cut off by the first {name}"
        ):
            prepare(scan_of(moved, "scan 7"))
    with pytest.raises(InputError, match="no Bragg peak"):
        prepare(scan_of(np.random.default_rng(0).poisson(1e-4, SHAPE)))
    lost = counts.copy()
    lost[31] = np.nan
    with pytest.raises(InputError, match="missing frames within the Bragg peak: 31"):
        prepare(scan_of(lost))
    lost = counts.copy()
    lost[5] = np.nan
    ready = prepare(scan_of(lost), threshold=0)
    at = 5 + ready.angle.size // 2 - round(ready.attrs["centre_frame"])
    assert not ready["mask"].values[at].any()
    assert ready["mask"].values[at + 1].any()
    with pytest.raises(InputError, match="negative"):
        prepare(scan_of(counts - 1))
    with pytest.raises(InputError, match="no scans"):
        prepare([])


def test_scans_of_one_state_are_aligned_and_summed():
    """Shifted repeats find each other; another crystal is left out by name."""
    moves = [(0, 0, 0), (2, -3, 1), (-1, 2, 4)]
    counts = [
        np.roll(recorded(20 + k, photons=2e4), move, (0, 1, 2)) for k, move in enumerate(moves)
    ]
    other = pattern(strain=4.0, tilt=0.8)
    scans = [scan_of(c, f"scan {k}") for k, c in enumerate(counts)]
    scans.insert(1, scan_of(recorded(30, 2e4, intensity=other), "the other"))
    total = prepare(scans, threshold=0)
    assert json.loads(total.attrs["scans"]) == ["scan 0", "scan 1", "scan 2"]
    assert "the other left out" in flags_of(total)[-1]
    single = prepare(scan_of(6e4 * INTENSITY), threshold=0, size=total.counts.shape)
    a, b = total.counts.values, single.counts.values
    assert a.sum() == pytest.approx(b.sum(), rel=0.01)
    assert np.corrcoef(np.sqrt(a).ravel(), np.sqrt(b).ravel())[0, 1] > 0.98
    moved = scan_of(np.roll(counts[0], -PEAK[0], axis=0), "scan 9")
    fewer = prepare([scans[0], moved, scans[2]])
    assert flags_of(fewer) == ["scan 9 left out: the Bragg peak is cut off by the first frame"]
    with pytest.raises(InputError, match="no two scans agree"):
        sum_scans([correct(scan) for scan in scans[:2]])
    apart = scans[0].assign_attrs(angles=json.dumps(ANGLES | {"delta": 33.0}))
    with pytest.raises(InputError, match="angles differ"):
        prepare([apart, scans[2]])


def test_binning_adds_photons_and_scales_pixels():
    scan = correct(scan_of(recorded(40)))
    small = bin_scan(scan, (2, 4, 2))
    assert small.counts.shape == (30, 18, 40)
    assert small.counts.values.sum() == scan.counts.values.sum()
    assert small.attrs["pixel_m"] == pytest.approx((220e-6, 110e-6))
    assert float(small.angle[0]) == pytest.approx(float(scan.angle[:2].mean()))
    with pytest.raises(InputError, match="blocks"):
        bin_scan(scan, (0, 1, 1))


def test_a_window_of_ones_own_says_what_it_cuts():
    ready = prepare(scan_of(recorded(41)), size=(31, 30, 33))
    assert ready.counts.shape == (32, 30, 36)
    assert "leaves out" in flags_of(ready)[-1]


# --------------------------------------------------------------------------------------------
# Files of other programs


def setup():
    return {
        "angle": np.linspace(0, 1, 6),
        "angles": ANGLES,
        "scan_axis": "theta",
        "geometry": "34idc",
    }


def test_stacks_of_other_formats(tmp_path):
    counts = np.arange(6 * 4 * 5).reshape(6, 4, 5).astype(np.uint16)
    np.save(tmp_path / "a.npy", counts)
    told = {"energy_eV": 9000.0, "distance_m": 0.5, "pixel_m": 55e-6}
    plain = read_stack(tmp_path / "a.npy", **setup(), **told)
    assert plain.counts.dims == ("frame", "row", "column")
    np.testing.assert_array_equal(plain.counts, counts)
    assert plain.attrs["pixel_m"] == (55e-6, 55e-6)
    with h5py.File(tmp_path / "b.cxi", "w") as file:
        file["entry_1/instrument_1/detector_1/data"] = counts
        file["entry_1/instrument_1/detector_1/mask"] = np.eye(4, 5)
        file["entry_1/instrument_1/detector_1/distance"] = 0.7
        file["entry_1/instrument_1/detector_1/x_pixel_size"] = 50e-6
        file["entry_1/instrument_1/detector_1/y_pixel_size"] = 75e-6
        file["entry_1/instrument_1/source_1/energy"] = 9000.0 * 1.602176634e-19
    cxi = read_stack(tmp_path / "b.cxi", **setup())
    np.testing.assert_array_equal(cxi.counts, counts)
    assert cxi["mask"].values.sum() == 6 * (20 - 4)
    assert cxi.attrs["energy_eV"] == pytest.approx(9000.0)
    assert cxi.attrs["pixel_m"] == (75e-6, 50e-6)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["somewhere/stack"], file["other"] = counts, counts
    with pytest.raises(FileError, match="2 three-dimensional datasets"):
        read_stack(tmp_path / "c.h5", **setup(), **told)
    named = read_stack(tmp_path / "c.h5", **setup(), **told, dataset="somewhere/stack")
    np.testing.assert_array_equal(named.counts, counts)
    with pytest.raises(InputError, match="does not tell distance_m"):
        read_stack(tmp_path / "a.npy", **setup(), **(told | {"distance_m": None}))
    with pytest.raises(InputError, match="3 angles for 6 frames"):
        read_stack(tmp_path / "a.npy", **(setup() | {"angle": [0, 1, 2]}), **told)
    (tmp_path / "d.h5").write_bytes((tmp_path / "c.h5").read_bytes()[:600])
    with pytest.raises(FileError):
        read_stack(tmp_path / "d.h5", **setup(), **told)


def volume(seed=0, shape=(6, 7, 8)):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def test_results_of_other_programs(tmp_path):
    """Each object, transformed by numpy's forward FFT, gives the data its program fitted."""
    obj = volume()
    # cohere: axes (column, row, frame), data = |ifft(image)|^2.
    image = np.fft.ifftshift(volume(1, (8, 7, 6)))
    data = np.abs(np.fft.fftshift(np.fft.ifftn(image)))
    np.save(tmp_path / "image.npy", np.fft.fftshift(image))
    np.save(tmp_path / "support.npy", np.ones((8, 7, 6)))
    cohere = read_result(tmp_path)
    assert cohere["object"].dims == ("frame", "row", "column")
    again = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(cohere["object"].values))))
    np.testing.assert_allclose(again / again.max(), data.transpose(2, 1, 0) / data.max(), atol=1e-5)
    # PyNX: forward transform, axes of the data; modes come as a fourth axis.
    with h5py.File(tmp_path / "pynx.cxi", "w") as file:
        file["entry_1/image_1/data"] = obj[np.newaxis]
        file["entry_1/image_1/mask"] = np.ones(obj.shape, np.uint8)
        file["entry_1/program_name"] = "PyNX 2024.1"
        file["entry_last"] = h5py.SoftLink("/entry_1")
    pynx = read_result(tmp_path / "pynx.cxi")
    np.testing.assert_array_equal(pynx["object"], obj)
    assert pynx.attrs["program"] == "PyNX 2024.1"
    assert pynx["support"].values.all()
    # cdiutils: amplitude and phase on voxels of the laboratory.
    with h5py.File(tmp_path / "cdi.h5", "w") as file:
        file["volumes/amplitude"], file["volumes/phase"] = np.abs(obj), np.angle(obj)
        file["volumes/support"], file["scalars/voxel_size"] = np.ones(obj.shape), (4.0, 5.0, 6.0)
    cdi = read_result(tmp_path / "cdi.h5")
    np.testing.assert_allclose(cdi["object"], obj, atol=1e-6)
    assert np.diff(cdi.y)[0] == 5.0
    assert cdi.attrs["frame"] == "laboratory"
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(FileError, match="no result that is known"):
        read_result(tmp_path / "none.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"no image\.npy"):
        read_result(tmp_path / "empty")


def sample_object():
    coords = {
        dim: (dim, 4.5 * (np.arange(n) - n // 2 + shift), {"units": "nm"})
        for dim, n, shift in zip("zyx", (6, 7, 8), (0, 3, -2), strict=True)
    }
    return xr.DataArray(
        volume(),
        dims=("z", "y", "x"),
        coords=coords,
        name="object",
        attrs={"q_vector": [1.0, 2, 3]},
    )


def test_cxi_keeps_an_object(tmp_path):
    obj = sample_object()
    write_cxi(obj, tmp_path / "o.cxi", support=np.abs(obj.values) > 1, energy_eV=9000.0)
    back = read_result(tmp_path / "o.cxi")
    np.testing.assert_array_equal(back["object"], obj)
    np.testing.assert_array_equal(back["support"], np.abs(obj.values) > 1)
    for dim in "zyx":
        np.testing.assert_allclose(back[dim], obj[dim], atol=1e-9)
    np.testing.assert_array_equal(back.attrs["q_vector"], [1, 2, 3])
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(InputError, match="no object"):
        write_cxi(abs(obj), tmp_path / "p.cxi")
    with pytest.raises(FileError, match="could not be written"):
        write_cxi(obj, tmp_path / "nowhere" / "p.cxi")


def test_vtk_is_what_the_format_says(tmp_path):
    """Read back by the rules of the format: x first and fastest, a length before the values."""
    import base64
    import xml.etree.ElementTree as ElementTree

    obj = sample_object()
    strain = xr.DataArray(np.arange(336.0).reshape(obj.shape), dims=obj.dims, coords=obj.coords)
    write_vtk(xr.Dataset({"object": obj, "strain": strain}), tmp_path / "o.vti")
    root = ElementTree.parse(tmp_path / "o.vti").getroot()
    image = root.find("ImageData")
    assert image.get("WholeExtent") == "0 7 0 6 0 5"
    assert [float(v) for v in image.get("Spacing").split()] == [4.5] * 3
    assert [float(v) for v in image.get("Origin").split()] == [float(obj[dim][0]) for dim in "xyz"]
    found = {}
    for array in root.iter("DataArray"):
        payload = base64.b64decode(array.text)
        assert int.from_bytes(payload[:8], "little") == len(payload) - 8
        found[array.get("Name")] = np.frombuffer(payload[8:], "<f4").reshape(obj.shape)
    assert set(found) == {"object_amplitude", "object_phase", "strain"}
    np.testing.assert_array_equal(found["strain"], strain)
    np.testing.assert_allclose(found["object_phase"], np.angle(obj), atol=1e-6)
    with pytest.raises(InputError, match="no volume"):
        write_vtk(xr.Dataset({"a": ("b", [1.0])}), tmp_path / "p.vti")


def test_settings_of_cohere(tmp_path):
    file = tmp_path / "config_rec"
    file.write_text(
        '// comment\nalgorithm_sequence = ((3,("ER",20),("HIO",180)),(1,("ER",20)))\n'
        'support_sigma = 1.0 // trailing\n\nurl = "a//b"\npc = true\n'
    )
    found = read_cohere_settings(file)
    assert found["algorithm_sequence"][0] == (3, ("ER", 20), ("HIO", 180))
    assert found["support_sigma"] == 1.0
    assert found["url"] == "a//b"
    assert found["pc"] is True
    file.write_text("just words\n")
    with pytest.raises(FileError, match="line 1"):
        read_cohere_settings(file)
