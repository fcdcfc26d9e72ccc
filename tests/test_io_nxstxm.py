"""NXstxm: every fact of the format, on real files where there are some, and bad input."""

from __future__ import annotations

import logging
import pickle
import random
from pathlib import Path

import dask
import h5py
import make_files as make
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectromap.io import nxstxm
from spectromap.schema import FileError, InputError, SpectromapError, check_stack, pixel_size

COUNTS = make.counts(4, 3, 5)


def values(stack: xr.DataArray) -> np.ndarray:
    return stack.compute(scheduler="sync").values


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def check_common(stack: xr.DataArray) -> None:
    """What the fixtures of every dialect have in common."""
    check_stack(stack, ("counts",))
    assert stack.dtype == np.float32
    assert stack.data.chunks == ((1, 1, 1, 1), (3,), (5,))
    assert stack.attrs["units"] == "count"
    np.testing.assert_array_equal(values(stack), COUNTS.astype(np.float32))
    np.testing.assert_allclose(stack.energy, make.ENERGIES)
    np.testing.assert_allclose(stack.y, make.Y_UM * 1e3)
    np.testing.assert_allclose(stack.x, make.X_UM * 1e3)


# --------------------------------------------------------------------------------------------
# PolLux


def test_pollux_stack(tmp_path: Path) -> None:
    stack = nxstxm.open(make.pollux(tmp_path / "a.hdf5"))
    check_common(stack)
    np.testing.assert_allclose(stack.dwell_time, 0.005)
    np.testing.assert_allclose(stack.ring_current, 401.5)
    assert stack.attrs["dialect"] == "PolLux NXstxm 1.3"
    assert stack.attrs["detector"] == "counter0"
    assert stack.attrs["title"] == "Sample"
    assert stack.attrs["instrument"] == "SLS PolLux X07DA"
    assert stack.attrs["start_time"] == "2017-10-15T06:11:28+02:00"


def test_version_1_1_has_no_units(tmp_path: Path) -> None:
    stack = nxstxm.open(make.pollux(tmp_path / "a.hdf5", version="1.1"))
    check_common(stack)
    assert stack.attrs["dialect"] == "PolLux NXstxm 1.1"


def test_detector_is_found_by_class_and_signal(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5", detectors=("PMT",), signal="photons")
    stack = nxstxm.open(path)
    check_common(stack)
    assert stack.attrs["detector"] == "PMT"


def test_monitor_is_no_detector(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5")
    assert nxstxm.contents(path) == ["entry1/counter0: (4, 3, 5)"]
    with pytest.raises(InputError, match=r"no detector 'control'.*counter0"):
        nxstxm.open(path, detector="control")


def test_single_image_becomes_one_energy(tmp_path: Path) -> None:
    path = make.pollux(
        tmp_path / "a.hdf5",
        data=make.counts(3, 5),
        energy=[781.5],
        axes=("sample_y", "sample_x"),
        scan_type="sample image",
    )
    stack = nxstxm.open(path)
    assert stack.dims == ("energy", "y", "x")
    np.testing.assert_allclose(stack.energy, [781.5])
    np.testing.assert_array_equal(values(stack)[0], make.counts(3, 5).astype(np.float32))
    np.testing.assert_allclose(stack.ring_current, [401.5])


@pytest.mark.parametrize(
    ("maker", "reason"),
    [(make.line_spectrum, "a line spectrum"), (make.focus_scan, "a focus scan")],
)
@pytest.mark.parametrize("named", [True, False])
def test_other_scans_are_refused(tmp_path: Path, maker, reason: str, named: bool) -> None:
    path = maker(tmp_path / "a.hdf5")
    if not named:
        with h5py.File(path, "r+") as file:
            del file["entry1/counter0/stxm_scan_type"]
        reason = reason if "line" in reason else "a scan over zone_plate"
    assert reason in nxstxm.refuse(path)
    with pytest.raises(FileError, match=reason) as caught:
        nxstxm.open(path)
    assert str(path) in str(caught.value)


def test_line_spectrum_without_any_attribute(tmp_path: Path) -> None:
    path = make.hermes(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        group = file["entry1/Counter0"]
        del group["data"], group["sample_x"], group["sample_y"]
        group["data"], group["sample_x"], group["sample_y"] = (
            make.counts(4, 6),
            np.arange(6.0),
            np.arange(6.0),
        )
    assert "a line spectrum" in nxstxm.refuse(path)


@pytest.mark.parametrize("kind", ["osa image", "detector image", "sample point spectra"])
def test_scans_of_other_things_are_refused(tmp_path: Path, kind: str) -> None:
    assert kind in nxstxm.refuse(make.pollux(tmp_path / "a.hdf5", scan_type=kind))


def test_positions_are_nominal_not_measured(tmp_path: Path) -> None:
    # The measured list in instrument/sample_x is 1 um off in the fixture, as in fly scans.
    stack = nxstxm.open(make.pollux(tmp_path / "a.hdf5"))
    assert float(stack.x[0]) == pytest.approx(make.X_UM[0] * 1e3)


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        (b"\xb5m", 1e3),
        (b"\xc2\xb5m", 1e3),
        (b"\xce\xbcm", 1e3),
        ("um", 1e3),
        (b"nm", 1.0),
        (b"mm", 1e6),
        (b"m", 1e9),
        (np.array([b"um"]), 1e3),
    ],
)
def test_length_units(tmp_path: Path, units, factor: float) -> None:
    stack = nxstxm.open(make.pollux(tmp_path / "a.hdf5", length_units=units))
    np.testing.assert_allclose(stack.x, make.X_UM * factor)
    np.testing.assert_allclose(stack.y, make.Y_UM * factor)


def test_latin_1_units_in_variable_length_text(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5", version="1.1")
    with h5py.File(path, "r+") as file:
        kind = h5py.string_dtype("utf-8")
        for name in ("sample_x", "sample_y"):
            node = file["entry1/counter0"][name]
            node.attrs.create("units", b"\xb5m", dtype=kind)
    np.testing.assert_allclose(nxstxm.open(path).x, make.X_UM * 1e3)


@pytest.mark.parametrize(
    ("units", "factor"), [(b"eV", 1.0), (b"keV", 1e-3), (b"J", make.JOULE_PER_EV), (b" ", 1.0)]
)
def test_energy_units(tmp_path: Path, units: bytes, factor: float) -> None:
    path = make.pollux(tmp_path / "a.hdf5", energy=make.ENERGIES * factor, energy_units=units)
    np.testing.assert_allclose(nxstxm.open(path).energy, make.ENERGIES)


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1.0])
def test_lengths_without_units_are_judged_by_their_steps(
    tmp_path: Path, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    """50 nm steps: 0.05 (um), 5e-5 (mm) or 5e-8 (m) can only mean one thing."""
    path = make.pollux(tmp_path / "a.hdf5", version="1.1", y=make.Y_UM * scale, x=make.X_UM * scale)
    stack = nxstxm.open(path)
    assert pixel_size(stack) == pytest.approx((50.0, 50.0))
    assert ("no units" in warnings_of(caplog)) == (scale != 1.0)


def test_smallest_step_that_is_um(tmp_path: Path) -> None:
    for step, pixel in ((1e-3, 1.0), (0.9e-3, 900.0), (1.0, 1000.0)):
        x = step * np.arange(5)
        path = make.pollux(tmp_path / "a.hdf5", version="1.1", y=x[:3], x=x)
        assert pixel_size(nxstxm.open(path)) == pytest.approx((pixel, pixel))


def test_dwell_differs_by_energy_and_may_be_garbage(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5", count_time=np.array([0.001, 0.002, np.nan, 0.0]))
    np.testing.assert_allclose(nxstxm.open(path).dwell_time, [0.001, 0.002, np.nan, np.nan])
    path = make.pollux(tmp_path / "b.hdf5", count_time=np.full(4, np.nan))
    assert "dwell_time" not in nxstxm.open(path).coords


def test_ring_current(tmp_path: Path) -> None:
    current = np.full((4, 3, 5), 400.0)
    current[1], current[2], current[3] = np.nan, 0.0, 402.0
    path = make.pollux(tmp_path / "a.hdf5", monitor=current)
    np.testing.assert_allclose(nxstxm.open(path).ring_current, [400.0, np.nan, np.nan, 402.0])


@pytest.mark.parametrize("useless", [0.0, np.nan, 1e66, -5.0])
def test_ring_current_unknown(tmp_path: Path, useless: float) -> None:
    path = make.pollux(tmp_path / "a.hdf5", monitor=useless)
    assert "ring_current" not in nxstxm.open(path).coords


def test_nan_in_the_data_is_kept(tmp_path: Path) -> None:
    data = COUNTS.copy()
    data[2, 1, 3] = np.nan
    found = values(nxstxm.open(make.pollux(tmp_path / "a.hdf5", data=data)))
    assert np.isnan(found[2, 1, 3])
    assert np.isnan(found).sum() == 1


def test_descending_and_repeated_energies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    energy = np.array([644.0, 642.25, 642.25, 638.0])
    stack = nxstxm.open(make.pollux(tmp_path / "a.hdf5", energy=energy, x=make.X_UM[::-1]))
    np.testing.assert_allclose(stack.energy, energy[::-1])
    np.testing.assert_array_equal(values(stack)[0], COUNTS[3, :, ::-1].astype(np.float32))
    assert "642.25" in warnings_of(caplog)


# --------------------------------------------------------------------------------------------
# The other dialects


def test_diamond(tmp_path: Path) -> None:
    stack = nxstxm.open(make.diamond(tmp_path / "a.nxs"))
    check_common(stack)
    np.testing.assert_allclose(stack.dwell_time, 0.01)
    assert (stack.attrs["dialect"], stack.attrs["detector"]) == ("Diamond I08", "Counter1")


def test_hermes(tmp_path: Path) -> None:
    stack = nxstxm.open(make.hermes(tmp_path / "a.hdf5"))
    check_common(stack)
    assert stack.attrs["dialect"] == "SOLEIL HERMES"
    assert stack.attrs["instrument"] == "Hermes"


def test_pystxmcontrol(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make.pystxmcontrol(tmp_path / "a.stxm")
    stack = nxstxm.open(path)
    check_common(stack)
    assert stack.attrs["dialect"] == "pystxmcontrol (ALS)"
    assert (stack.attrs["entry"], stack.attrs["detector"]) == ("entry0", "default")
    assert stack.attrs["sample"] == "NMC on Si3N4"
    np.testing.assert_allclose(stack.dwell_time, 2e-3)
    said = warnings_of(caplog)
    assert "entry0 taken; other entries: entry1" in said
    assert "default taken; other detectors: xrf" in said


def test_pystxmcontrol_choices(tmp_path: Path) -> None:
    path = make.pystxmcontrol(tmp_path / "a.stxm")
    stack = nxstxm.open(path, entry="entry1", detector="xrf")
    np.testing.assert_allclose(values(stack), COUNTS + 11000)
    np.testing.assert_allclose(stack.y, (make.Y_UM + 1) * 1e3)
    assert nxstxm.contents(path)[-1] == "entry1/xrf: (4, 3, 5)"
    with pytest.raises(InputError, match=r"no entry 'entry7'.*entry0, entry1"):
        nxstxm.open(path, entry="entry7")
    with pytest.raises(InputError, match=r"no detector 'diode'.*default, xrf"):
        nxstxm.open(path, detector="diode")


def test_frames_of_ptychography_beside_the_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make.pystxmcontrol(tmp_path / "a.stxm", regions=1, scan_type="Ptychography Image")
    check_common(nxstxm.open(path))
    assert "coarse scan of a ptychography" in warnings_of(caplog)


@pytest.mark.parametrize("kind", ["Line Focus", "Line Spectrum", "Single Motor"])
def test_pystxmcontrol_other_scans(tmp_path: Path, kind: str) -> None:
    assert kind in nxstxm.refuse(make.pystxmcontrol(tmp_path / "a.stxm", scan_type=kind))


def test_cls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make.cls(tmp_path / "a.hdf5")
    stack = nxstxm.open(path, entry="entry2", detector="counter1")
    np.testing.assert_allclose(values(stack), COUNTS + 12000)
    np.testing.assert_allclose(stack.dwell_time, 0.002)
    np.testing.assert_allclose(stack.x, make.X_UM * 1e3, rtol=1e-6)
    assert stack.attrs["dialect"] == "CLS pyStxm"
    default = nxstxm.open(path)
    assert (default.attrs["entry"], default.attrs["detector"]) == ("entry1", "counter0")
    assert "other entries: entry2" in warnings_of(caplog)
    assert "other detectors: counter1" in warnings_of(caplog)


def test_entry_that_is_no_image_is_passed_over(tmp_path: Path) -> None:
    path = make.line_spectrum(tmp_path / "a.hdf5")
    make.pollux(path, entry="entry2", mode="r+")
    assert nxstxm.open(path).attrs["entry"] == "entry2"
    with pytest.raises(FileError, match="entry1/counter0: a line spectrum"):
        nxstxm.open(path, entry="entry1")


def test_default_attribute_decides(tmp_path: Path) -> None:
    path = make.cls(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file.attrs["default"] = "entry2"
        file["entry2"].attrs["default"] = "counter1"
    stack = nxstxm.open(path)
    assert (stack.attrs["entry"], stack.attrs["detector"]) == ("entry2", "counter1")


# --------------------------------------------------------------------------------------------
# Real files


def test_real_pollux(shared_data: Path) -> None:
    folder = shared_data / "nxstxm-pollux-stoner"
    first = nxstxm.open(folder / "Sample_Image_2017-10-15_100.hdf5")
    assert first.shape == (1, 100, 100)
    assert float(first.energy[0]) == 781.5
    assert pixel_size(first) == pytest.approx((15.0, 15.0), abs=1e-6)
    assert float(first.ring_current[0]) == pytest.approx(400.5, abs=0.1)
    with h5py.File(first.attrs["source_file"]) as file:
        flat = file["entry1/instrument/counter0/data"][()]
    np.testing.assert_array_equal(values(first).ravel(), flat.astype(np.float32))
    wide = nxstxm.open(folder / "Sample_Image_2017-06-03_035.hdf5")
    assert wide.shape == (1, 80, 300)
    assert float(wide.energy[0]) == 781.1
    assert pixel_size(wide) == pytest.approx((25.0, 25.0), abs=1e-6)
    np.testing.assert_array_equal(values(wide)[0, 0, :3], [24826.0, 24753.0, 24517.0])


def test_real_pollux_1_1_with_nan_beside_the_data(shared_data: Path) -> None:
    stack = nxstxm.open(shared_data / "nxstxm-pollux-stoner" / "Pollux-STXM Image.hdf5")
    np.testing.assert_array_equal(values(stack)[0], [[6057.0, 8054.0], [5938.0, 6613.0]])
    assert pixel_size(stack) == pytest.approx((750.0, 750.0))
    np.testing.assert_allclose(stack.y, [-124240.0, -123490.0])
    assert float(stack.ring_current[0]) == pytest.approx(402.147, abs=1e-3)
    assert float(stack.dwell_time[0]) == 0.005


def test_real_diamond(shared_data: Path) -> None:
    stack = nxstxm.open(shared_data / "stxm-orange-spectroscopy" / "small_diamond_nxs.nxs")
    assert stack.shape == (8, 7, 6)
    assert pixel_size(stack) == pytest.approx((66.667, 66.667), abs=2e-3)
    np.testing.assert_allclose(stack.energy[[0, -1]], [278.0, 282.2])
    np.testing.assert_array_equal(values(stack)[0, 0, :3], [1329.0, 1332.0, 1336.0])


def test_real_hermes(shared_data: Path) -> None:
    path = shared_data / "stxm-orange-spectroscopy" / "small_OK.hdf5"
    stack = nxstxm.open(path)
    np.testing.assert_allclose(stack.energy, [100.1, 101.1])
    np.testing.assert_allclose(stack.y, [11100.0, 22100.0])
    with h5py.File(path) as file:
        stored = file["entry1/Counter0/data"][()]
    np.testing.assert_allclose(values(stack), stored, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "cosmic-xanespy/ptycho-scan-856eV.cxi",
        "cosmic-xanespy/testdata.h5",
        "cosmic-xanespy/stxm-scan.hdr",
        "ptycho-cxi-cdtools/PETRAIII_P25_Near_Field_Ptycho.cxi",
    ],
)
def test_real_files_of_other_formats_are_refused(shared_data: Path, name: str) -> None:
    assert nxstxm.refuse(shared_data / name)


# --------------------------------------------------------------------------------------------
# The order of the axes


@given(
    order=st.permutations(range(3)),
    how=st.sampled_from(["axes", "text", "axis", "indices", "lengths"]),
    shape=st.permutations([2, 3, 4]),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_order_of_the_axes(tmp_path: Path, order, how: str, shape) -> None:
    data = make.counts(*shape)
    stack = nxstxm.open(make.any_order(tmp_path / "a.hdf5", tuple(order), how, data))
    np.testing.assert_array_equal(values(stack), data.astype(np.float32))


def test_attributes_decide_where_lengths_agree(tmp_path: Path) -> None:
    data = make.counts(3, 3, 3)
    for how in ("axes", "axis"):
        path = make.any_order(tmp_path / "a.hdf5", (2, 0, 1), how, data)
        np.testing.assert_array_equal(values(nxstxm.open(path)), data.astype(np.float32))


def test_lengths_that_could_mean_several_orders(tmp_path: Path) -> None:
    data = make.counts(4, 4, 5)
    usual = make.any_order(tmp_path / "a.hdf5", (0, 1, 2), "lengths", data)
    np.testing.assert_array_equal(values(nxstxm.open(usual)), data.astype(np.float32))
    turned = make.any_order(tmp_path / "b.hdf5", (0, 2, 1), "lengths", data)
    assert "cannot be told apart" in nxstxm.refuse(turned)
    square = make.any_order(tmp_path / "c.hdf5", (1, 2, 0), "lengths", make.counts(3, 5, 5))
    np.testing.assert_array_equal(values(nxstxm.open(square)), make.counts(3, 5, 5))


@pytest.mark.parametrize("attributes", [True, False])
def test_axis_lengths_that_do_not_match(tmp_path: Path, attributes: bool) -> None:
    path = (make.pollux if attributes else make.hermes)(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        group = file["entry1"]["counter0" if attributes else "Counter0"]
        del group["sample_y"]
        group["sample_y"] = np.arange(7.0)
    with pytest.raises(FileError, match=r"along 'y', but 7|do not fit their axes"):
        nxstxm.open(path)
    assert nxstxm.refuse(path)


# --------------------------------------------------------------------------------------------
# Lazy reading


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """A stack of 1.4 TB opens: its frames were never written, let alone read."""
    path = make.hermes(tmp_path / "a.hdf5")
    size = 60_000
    with h5py.File(path, "r+") as file:
        group = file["entry1/Counter0"]
        del group["data"], group["sample_y"], group["sample_x"]
        group.create_dataset("data", (4, size, size), "f4", chunks=(1, 100, 100))
        group["sample_y"] = group["sample_x"] = 0.05 * np.arange(size)
    stack = nxstxm.open(path)
    assert stack.nbytes == 4 * 4 * size**2
    assert values(stack[2, 5:8, 7:9]).shape == (3, 2)


def test_lazy_array_can_be_pickled(tmp_path: Path) -> None:
    stack = nxstxm.open(make.pollux(tmp_path / "a.hdf5"))
    copy = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(values(copy), COUNTS.astype(np.float32))


def test_same_file_same_name_of_the_graph(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5")
    assert nxstxm.open(path).data.name == nxstxm.open(path).data.name


@pytest.mark.parametrize("filters", ["gzip", "shuffle", "fletcher", "lzf", "none"])
@pytest.mark.parametrize("kind", ["<f8", "<f4", ">f4", "<i4", "<u2"])
def test_frames_as_they_are_packed(tmp_path: Path, filters: str, kind: str) -> None:
    data = make.counts(3, 4, 6).astype(kind)
    stack = nxstxm.open(make.packed_frames(tmp_path / "a.hdf5", data, filters))
    assert stack.dtype == np.float32
    np.testing.assert_array_equal(values(stack), data.astype(np.float32))
    np.testing.assert_array_equal(values(stack[1:, ::-2, 2]), data[1:, ::-2, 2].astype(np.float32))


def test_chunks_of_the_file_that_span_energies(tmp_path: Path) -> None:
    data = make.counts(8, 6, 10)
    path = make.packed_frames(tmp_path / "a.hdf5", data, "none")
    with h5py.File(path, "r+") as file:
        group = file["entry1/counter0"]
        del group["data"]
        group.create_dataset("data", data=data, chunks=(4, 3, 5), compression="gzip")
    stack = nxstxm.open(path)
    assert stack.data.chunks == ((4, 4), (6,), (10,))
    np.testing.assert_array_equal(values(stack), data.astype(np.float32))


index = st.one_of(
    st.integers(-4, 3),
    st.slices(4),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
)


@given(picks=st.tuples(index, index, index), packed=st.sampled_from(["gzip", "lzf"]))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_part_equals_numpy(tmp_path: Path, picks, packed: str) -> None:
    path = tmp_path / f"{packed}.hdf5"
    data = make.counts(4, 4, 4)
    if not path.exists():
        make.packed_frames(path, data, packed)
    lazy, expected = nxstxm.open(path).data, data.astype(np.float32)
    for axis in (2, 1, 0):
        part = (slice(None),) * axis + (picks[axis],)
        lazy, expected = lazy[part], expected[part]
    with dask.config.set(scheduler="sync"):
        np.testing.assert_array_equal(lazy.compute(), expected)


# --------------------------------------------------------------------------------------------
# Bad input


def test_not_hdf5(tmp_path: Path) -> None:
    text = tmp_path / "a.hdf5"
    text.write_text("energy, counts\n")
    assert "not an HDF5 file" in nxstxm.refuse(text)
    text.write_bytes(b"")
    assert "empty" in nxstxm.refuse(text)
    assert "no such file" in nxstxm.refuse(tmp_path / "missing.hdf5")
    assert "folder" in nxstxm.refuse(tmp_path)
    with pytest.raises(FileError, match=r"a\.hdf5: the file is empty\. "):
        nxstxm.open(text)


def test_hdf5_without_a_scan(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"] = np.arange(3)
    assert "without an NXstxm entry" in nxstxm.refuse(tmp_path / "a.h5")
    with pytest.raises(FileError, match="without an NXstxm entry"):
        nxstxm.open(tmp_path / "a.h5")


@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, part: float) -> None:
    path = make.cut(make.pollux(tmp_path / "whole.hdf5"), tmp_path / "cut.hdf5", part)
    assert "truncated" in nxstxm.refuse(path)
    with pytest.raises(FileError, match=r"truncated: .* bytes are there. Copy it again"):
        nxstxm.open(path)


def test_damaged_frame(tmp_path: Path) -> None:
    path = make.packed_frames(tmp_path / "a.hdf5", make.counts(3, 20, 30), "gzip")
    with h5py.File(path) as file:
        place = file["entry1/counter0/data"].id.get_chunk_info(1)
    with path.open("r+b") as stream:
        stream.seek(place.byte_offset + place.size // 2)
        stream.write(b"\xff" * 40)
    stack = nxstxm.open(path)
    np.testing.assert_array_equal(values(stack[0]), make.counts(3, 20, 30)[0])
    with pytest.raises(FileError, match=r"a\.hdf5: the HDF5 file is damaged"):
        values(stack[1])


def outcome_of(path: Path) -> str:
    """Message of the error that reading a file gives, empty if it gives numbers."""
    try:
        values(nxstxm.open(path))
    except SpectromapError as error:
        return str(error)
    return ""


def test_any_damage_gives_a_file_error_or_numbers(tmp_path: Path) -> None:
    whole = make.pollux(tmp_path / "whole.hdf5").read_bytes()
    path, chance = tmp_path / "a.hdf5", random.Random(5)
    outcomes = []
    for _ in range(120):
        mutant = bytearray(whole)
        for _ in range(chance.choice([1, 4, 16])):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        path.write_bytes(mutant)
        outcomes.append(outcome_of(path))
    assert {message.startswith(str(path)) for message in outcomes if message} == {True}
    assert 10 < outcomes.count("") < 110


def test_unknown_compression_filter(tmp_path: Path) -> None:
    path = make.unknown_filter(tmp_path / "a.hdf5")
    assert nxstxm.refuse(path) is None
    with pytest.raises(FileError, match=r"filter 31999.*hdf5plugin.*h5repack"):
        nxstxm.open(path)


def test_plugin_filter_is_read(tmp_path: Path) -> None:
    import hdf5plugin

    path = make.pollux(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        group = file["entry1/counter0"]
        del group["data"]
        group.create_dataset(
            "data", data=COUNTS, chunks=(1, 3, 5), compression=hdf5plugin.Bitshuffle()
        )
    check_common(nxstxm.open(path))


def test_external_link_inside_the_folder(tmp_path: Path) -> None:
    make.pollux(tmp_path / "counts.hdf5")
    check_common(nxstxm.open(make.linked(tmp_path / "a.hdf5", "counts.hdf5")))


def test_external_link_outside_the_folder(tmp_path: Path) -> None:
    make.pollux(tmp_path / "secret.hdf5")
    folder = tmp_path / "data"
    folder.mkdir()
    for target in ("../secret.hdf5", tmp_path / "secret.hdf5"):
        path = make.linked(folder / "a.hdf5", target)
        assert "outside the folder" in nxstxm.refuse(path)
        with pytest.raises(FileError, match="outside the folder"):
            nxstxm.open(path)


def test_link_that_leaves_the_folder_by_detours(tmp_path: Path) -> None:
    """A soft link to an external one, a linked file that links on, a link on the file system."""
    make.pollux(tmp_path / "secret.hdf5")
    folder = tmp_path / "data"
    folder.mkdir()
    path = make.linked(folder / "a.hdf5", "../secret.hdf5")
    with h5py.File(path, "r+") as file:
        file.move("entry1/counter0/data", "elsewhere")
        file["entry1/counter0/data"] = h5py.SoftLink("/elsewhere")
    assert "outside the folder" in nxstxm.refuse(path)
    with h5py.File(folder / "between.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink("../secret.hdf5", "/entry1/counter0/data")
    path = make.linked(folder / "b.hdf5", "between.hdf5", "/data")
    assert "outside the folder" in nxstxm.refuse(path)
    (folder / "alias.hdf5").symlink_to(tmp_path / "secret.hdf5")
    path = make.linked(folder / "c.hdf5", "alias.hdf5")
    assert "outside the folder" in nxstxm.refuse(path)


def test_link_elsewhere_that_is_not_needed(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["entry1/ccd"] = h5py.ExternalLink("/raw/frames.h5", "/entry/data")
        file["entry1/counter0/frames"] = h5py.ExternalLink("/raw/frames.h5", "/entry/data")
    check_common(nxstxm.open(path))


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    path = make.linked(tmp_path / "a.hdf5", "gone.hdf5")
    assert "'gone.hdf5', which is not there" in nxstxm.refuse(path)
    path = make.pollux(tmp_path / "b.hdf5")
    with h5py.File(path, "r+") as file:
        del file["entry1/counter0/data"]
        file["entry1/counter0/data"] = h5py.SoftLink("/entry1/counter0/data")
    assert "circle" in nxstxm.refuse(path)


def test_virtual_and_raw_data_outside(tmp_path: Path) -> None:
    make.pollux(tmp_path / "secret.hdf5")
    folder = tmp_path / "data"
    folder.mkdir()
    layout = h5py.VirtualLayout((4, 3, 5), "f8")
    layout[:] = h5py.VirtualSource("../secret.hdf5", "entry1/counter0/data", (4, 3, 5))
    path = make.pollux(folder / "a.hdf5")
    with h5py.File(path, "r+") as file:
        del file["entry1/counter0/data"]
        file["entry1/counter0"].create_virtual_dataset("data", layout)
    with pytest.raises(FileError, match="outside the folder"):
        nxstxm.open(path)
    raw = folder / "raw.bin"
    raw.write_bytes(bytes(480))
    path = make.pollux(folder / "b.hdf5")
    with h5py.File(path, "r+") as file:
        del file["entry1/counter0/data"]
        file.create_dataset("entry1/counter0/data", (4, 3, 5), "f8", external=[(str(raw), 0, 480)])
    with pytest.raises(FileError, match="stored outside HDF5"):
        nxstxm.open(path)


def test_virtual_data_inside_the_folder(tmp_path: Path) -> None:
    make.pollux(tmp_path / "part.hdf5")
    layout = h5py.VirtualLayout((4, 3, 5), "f8")
    layout[:] = h5py.VirtualSource("part.hdf5", "entry1/counter0/data", (4, 3, 5))
    path = make.pollux(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        del file["entry1/counter0/data"]
        file["entry1/counter0"].create_virtual_dataset("data", layout)
    check_common(nxstxm.open(path))
    (tmp_path / "part.hdf5").unlink()
    with pytest.raises(FileError, match=r"'part\.hdf5', which is not there"):
        nxstxm.open(path)


def test_kev_given_as_ev(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5", energy=make.ENERGIES / 1e3)
    with pytest.raises(FileError, match=r"0\.638 to 0\.644 eV.*write the unit keV"):
        nxstxm.open(path)


@pytest.mark.parametrize("axis", ["energy", "sample_x"])
def test_nan_in_an_axis(tmp_path: Path, axis: str) -> None:
    path = make.pollux(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["entry1/counter0"][axis][1] = np.nan
    with pytest.raises(FileError, match=f"{axis}' holds NaN"):
        nxstxm.open(path)


def test_unknown_units(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="'furlong', which is not a length"):
        nxstxm.open(make.pollux(tmp_path / "a.hdf5", length_units=b"furlong"))
    with pytest.raises(FileError, match="'mT', which is not a unit of energy"):
        nxstxm.open(make.pollux(tmp_path / "b.hdf5", energy_units=b"mT"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((4, 3, 5), complex), "complex"),
        (np.zeros((0, 3, 5)), "shape"),
        (np.zeros((2, 4, 3, 5)), "shape"),
        (np.zeros(4), "point spectrum"),
        (np.zeros((3, 5)), "one image of shape"),
        (np.full((4, 3, 5), b"a"), "no data set"),
    ],
)
def test_data_that_are_no_images(tmp_path: Path, data: np.ndarray, reason: str) -> None:
    path = make.hermes(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        del file["entry1/Counter0/data"]
        file["entry1/Counter0/data"] = data
    assert reason in nxstxm.refuse(path)


# --------------------------------------------------------------------------------------------
# Writing


def make_stack(dtype: str = "float32", quantity: str = "counts") -> xr.DataArray:
    energy = np.array([638.0, 640.1, 640.1, 643.7])
    return xr.DataArray(
        COUNTS.astype(dtype),
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", energy, {"units": "eV"}),
            "y": ("y", 12.5 * np.arange(3), {"units": "nm"}),
            "x": ("x", 1e5 + 12.5 * np.arange(5), {"units": "nm"}),
            "dwell_time": ("energy", [1e-3, 1e-3, 2e-3, 1e-3], {"units": "s"}),
            "ring_current": ("energy", [400.0, 401.0, np.nan, 402.0], {"units": "mA"}),
        },
        attrs={
            "quantity": quantity,
            "units": "count",
            "technique": "stxm",
            "title": "simulé",
            "sample": "LMR",
            "start_time": "2026-01-01T00:00:00",
        },
    )


@pytest.mark.parametrize("quantity", ["counts", "optical_density"])
@pytest.mark.parametrize("lazy", [True, False])
def test_round_trip(tmp_path: Path, quantity: str, lazy: bool) -> None:
    stack = make_stack(quantity=quantity)
    path = nxstxm.write(stack.chunk({"energy": 1}) if lazy else stack, tmp_path / "sub" / "a.hdf5")
    again = nxstxm.open(path)
    np.testing.assert_array_equal(values(again), stack.values)
    for name in ("energy", "y", "x", "dwell_time", "ring_current"):
        np.testing.assert_allclose(again[name], stack[name], rtol=1e-12, atol=1e-9)
    for name in ("quantity", "technique", "title", "sample", "start_time"):
        assert again.attrs[name] == stack.attrs[name]
    assert [item.name for item in path.parent.iterdir()] == ["a.hdf5"]


def test_written_file_is_nxstxm_as_others_read_it(tmp_path: Path) -> None:
    path = nxstxm.write(make_stack(), tmp_path / "a.hdf5")
    with h5py.File(path) as file:
        entry = file["entry1"]
        assert entry["definition"][0] == b"NXstxm"
        assert entry["definition"].attrs["version"] == b"1.3"
        group = entry["counter0"]
        assert group.attrs["NX_class"] == b"NXdata"
        assert list(group.attrs["axes"]) == [b"energy", b"sample_y", b"sample_x"]
        assert group.attrs["signal"] == b"data"
        assert group["data"].chunks == (1, 3, 5)
        assert group["data"].compression == "gzip"
        assert group["energy"].attrs["units"] == b"eV"
        assert group["sample_x"].attrs["units"] == b"um"
        np.testing.assert_allclose(group["sample_x"][()], 100.0 + 0.0125 * np.arange(5))
        assert group["count_time"].attrs["units"] == b"s"
        assert group["stxm_scan_type"][0] == b"sample image stack"
        assert entry["control"].attrs["NX_class"] == b"NXmonitor"
        for name in ("instrument/source/name", "instrument/monochromator/energy"):
            assert name in entry
        assert entry["instrument/counter0/data"] == group["data"]


def test_written_file_draws_its_default_plot_in_silx(tmp_path: Path) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    path = nxstxm.write(make_stack(), tmp_path / "a.hdf5")
    with h5py.File(path) as file:
        plot = nxdata.get_default(file)
        assert plot is not None
        assert plot.is_valid
        assert plot.axes_dataset_names == ["energy", "sample_y", "sample_x"]


def test_writing_refuses_amplitudes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="amplitude"):
        nxstxm.write(make_stack(quantity="amplitude"), tmp_path / "a.hdf5")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = nxstxm.write(make_stack(), tmp_path / "a.hdf5")
    before = path.read_bytes()
    broken = nxstxm.open(make.packed_frames(tmp_path / "b.hdf5", COUNTS, "gzip"))
    (tmp_path / "b.hdf5").unlink()
    with pytest.raises(FileError, match=r"b\.hdf5: the file is gone"):
        nxstxm.write(broken, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.hdf5"]
