"""ALS-style ``.hdr`` and ``.xim``: every fact of the format, on made and on real files."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_text_files import als_header, als_image, als_line, als_stack, mask_text
from numpy.typing import NDArray

from spectromap.io import als, masks
from spectromap.io._hdr import read_header
from spectromap.schema import FileError, InputError, check_stack, pixel_size

ENERGIES = [853.0, 857.75, 860.5]


@pytest.fixture
def frames() -> NDArray[np.int64]:
    """Three frames of 4 rows and 6 columns, every value its own."""
    return np.arange(3 * 4 * 6).reshape(3, 4, 6) + 1000


def toner(shared_data: Path) -> Path:
    """Folder of the real stack of 123 planes."""
    return shared_data / "als-toner-stxm-fe" / "Data" / "ALS_Toner" / "71214078_FigS4" / "Aligned"


# 1 and 2: points, regions, axes


def test_the_first_point_is_a_count_and_p_is_x(tmp_path, frames):
    stack = check_stack(als.open(als_stack(tmp_path, frames, ENERGIES)))
    assert stack.sizes == {"energy": 3, "y": 4, "x": 6}
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_allclose(stack.x, -5000 + 50 * np.arange(6))
    np.testing.assert_allclose(stack.y, 7000 + 40 * np.arange(4))
    np.testing.assert_array_equal(stack.values, frames)
    assert stack.dtype == np.float32
    assert stack.attrs["quantity"] == "counts"
    assert stack.attrs["source_format"] == "als-hdr"
    assert stack.attrs["detector"] == "PMT"
    assert stack.attrs["start_time"] == "2018 November 10 23:57:34"


@pytest.mark.parametrize("head", ["", "\n", "\n\n  \n"])
def test_an_empty_first_line_is_legal(tmp_path, frames, head):
    assert als.refuse(als_stack(tmp_path, frames, ENERGIES, head=head)) is None


def test_text_row_k_is_q_k_whichever_way_q_runs(tmp_path, frames):
    down = als_stack(tmp_path, frames, ENERGIES, step=(0.05, -0.04))
    stack = als.open(down)
    np.testing.assert_allclose(stack.y, 7000 + 40 * np.arange(-3, 1))
    np.testing.assert_array_equal(stack.values, frames[:, ::-1])


def test_fewer_points_than_announced_is_a_damaged_header(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES)
    path.write_text(path.read_text().replace("Points = (6,", "Points = (7,"))
    with pytest.raises(FileError, match=r"PAxis of region 0 announces 7 Points and lists 6"):
        als.open(path)


def test_a_stack_axis_of_one_point(tmp_path, frames):
    path = als_stack(tmp_path, frames[:1], ENERGIES[:1], kind="Image Scan", flags="Image")
    (tmp_path / "scan_a000.xim").rename(tmp_path / "scan_a.xim")
    stack = als.open(path)
    assert stack.energy.values.tolist() == [853.0]
    np.testing.assert_array_equal(stack.values, frames[:1])
    (tmp_path / "scan_a.xim").unlink()
    with pytest.raises(FileError, match=r"'scan_a\.xim' is missing"):
        als.open(path)


@pytest.mark.parametrize("listed", ["falling", "rising"])
def test_a_stack_axis_that_runs_down(tmp_path, frames, listed):
    """Images are numbered as they were taken; the lines tell where the axis does not."""
    taken = ENERGIES[::-1]
    lines = "".join(als_line(index, energy) for index, energy in enumerate(taken))
    axis = taken if listed == "falling" else ENERGIES
    path = als_stack(tmp_path, frames, taken, axis=axis, direction=-1, lines=lines)
    stack = als.open(path)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_array_equal(stack.values, frames[::-1])


def test_a_coarsely_printed_grid_keeps_its_true_step(tmp_path):
    frames = np.ones((1, 4, 91), dtype=int)
    path = als_stack(tmp_path, frames, [700.0], step=(1 / 30, 0.04))
    text = path.read_text()
    for index in range(91):
        point = -5.0 + index / 30
        text = text.replace(f" {point:.4f}", f" {point:.3f}")
    path.write_text(text)
    assert pixel_size(als.open(path)) == pytest.approx((40.0, 33.3333), abs=0.01)


# 3: names of the files


def two_regions(folder: Path, frames: NDArray[np.int64], *, stack: bool) -> Path:
    """A scan of two regions of different shape; the second is doubled."""
    y = [0.0, 0.1, 0.2, 0.3]
    regions = [([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], y), ([9.0, 9.2, 9.4, 9.6, 9.8], y)]
    count = 3 if stack else 1
    kinds = (
        ("NEXAFS Image Scan", "Multi-Region Image Stack")
        if stack
        else ("Image Scan", "Multi-Region Image")
    )
    lines = "".join(
        als_line(index, ENERGIES[index], 300 + index + 10 * region, region)
        for index in range(count)
        for region in range(2)
    )
    text = als_header(
        regions, ENERGIES[:count], kind=kinds[0], flags=kinds[1], multiple="true", lines=lines
    )
    path = folder / "multi.hdr"
    path.write_text(text)
    for index in range(count):
        for region, frame in enumerate((frames[index], 2 * frames[index, :, :5])):
            number = f"{index:03d}" if stack else ""
            (folder / f"multi_a{number}{region}.xim").write_bytes(als_image(frame))
    return path


@pytest.mark.parametrize("stack", [True, False])
def test_several_regions_are_told_apart(tmp_path, frames, caplog, stack):
    path = two_regions(tmp_path, frames, stack=stack)
    first = als.open(path)
    assert "region 0 is read, not 1" in caplog.text
    assert als.contents(path) == [
        "region 0: 4 rows x 6 columns",
        "region 1: 4 rows x 5 columns",
        "detector a: PMT",
    ]
    second = als.open(path, region=1)
    assert (first.attrs["entry"], second.attrs["entry"]) == ("0", "1")
    count = 3 if stack else 1
    np.testing.assert_array_equal(first.values, frames[:count])
    np.testing.assert_array_equal(second.values, 2 * frames[:count, :, :5])
    np.testing.assert_allclose(second.x, [9000, 9200, 9400, 9600, 9800])
    np.testing.assert_allclose(first.ring_current, 300 + np.arange(count))
    np.testing.assert_allclose(second.ring_current, 310 + np.arange(count))


def test_a_region_that_is_not_there(tmp_path, frames):
    path = two_regions(tmp_path, frames, stack=True)
    with pytest.raises(FileError, match="no region 2"):
        als.open(path, region=2)
    (tmp_path / "multi_a0011.xim").unlink()
    with pytest.raises(FileError, match=r"'multi_a0011\.xim' is missing"):
        als.open(path, region=1)


def test_multiple_regions_true_with_one_region(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES, multiple="true")
    np.testing.assert_array_equal(als.open(path).values, frames)
    for index in range(3):
        (tmp_path / f"scan_a{index:03d}.xim").rename(tmp_path / f"scan_a{index:03d}0.xim")
    np.testing.assert_array_equal(als.open(path).values, frames)


def test_the_letter_is_the_channel(tmp_path, frames, caplog):
    path = als_stack(tmp_path, frames, ENERGIES, channels=("PMT", "OSA_Current"))
    for index, frame in enumerate(frames):
        (tmp_path / f"scan_b{index:03d}.xim").write_bytes(als_image(frame + 5))
    np.testing.assert_array_equal(als.open(path).values, frames)
    assert "'PMT' is read, not 'OSA_Current'" in caplog.text
    for detector in ("OSA_Current", "b"):
        stack = als.open(path, detector=detector)
        assert stack.attrs["detector"] == "OSA_Current"
        np.testing.assert_array_equal(stack.values, frames + 5)
    with pytest.raises(FileError, match="It has PMT, OSA_Current"):
        als.open(path, detector="APD")


def test_an_image_leads_to_its_header(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES)
    assert als.refuse(tmp_path / "scan_a002.xim") is None
    xr.testing.assert_identical(als.open(tmp_path / "scan_a002.xim"), als.open(path))
    path.unlink()
    assert "scan.hdr is not there" in str(als.refuse(tmp_path / "scan_a002.xim"))


def test_more_than_a_thousand_images(tmp_path):
    frames = np.arange(1002 * 2).reshape(1002, 1, 2)
    energies = 700 + 0.01 * np.arange(1002)
    stack = als.open(als_stack(tmp_path, frames, energies.tolist()))
    assert stack.sizes["energy"] == 1002
    np.testing.assert_array_equal(stack[-2:].values, frames[-2:])


# 4: text of the images


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("raw", [True, False])
def test_raw_and_aligned_images(tmp_path, frames, newline, raw):
    values = frames if raw else frames + 0.25
    stack = als.open(als_stack(tmp_path, values, ENERGIES, newline=newline, raw=raw))
    np.testing.assert_array_equal(stack.values, values)


def test_negative_counts_and_nan_are_kept(tmp_path, frames):
    """They are flagged by a later stage, so they must arrive there."""
    path = als_stack(tmp_path, frames, ENERGIES)
    (tmp_path / "scan_a001.xim").write_text("-1\tnan\t3\t4\t5\t1e66\t\n" + "1\t2\t3\t4\t5\t6\n" * 3)
    values = als.open(path).values
    assert values[1, 0, 0] == -1
    assert np.isnan(values[1, 0, 1])
    assert np.isinf(values[1, 0, 5])
    assert np.isfinite(values[[0, 2]]).all()


# 5 and 6: image lines, numbers, energies


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "".join(f"Image{i} = {{StorageRingCurrent = 333.0;}};\n" for i in range(3)),
        "".join(f"Image{i} = {{StorageRingCurrent = 333.0;}};\n" for i in (2, 3)),
        "".join(als_line(i, energy) for i, energy in enumerate(ENERGIES)),
        "".join(als_line(i, energy) for i, energy in enumerate(ENERGIES[:2])),
        "".join(als_line(i) for i in range(3)),
        "Image114 = {};\n",
    ],
)
def test_planes_are_not_counted_by_lines(tmp_path, frames, lines):
    stack = als.open(als_stack(tmp_path, frames, ENERGIES, lines=lines))
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_array_equal(stack.values, frames)


@pytest.mark.parametrize("with_lines", [True, False])
def test_a_trimmed_stack_skips_numbers(tmp_path, frames, with_lines):
    lines = als_line(3, 853.0, 401) + als_line(19, 857.75, 402) + als_line(20, 860.5, 403)
    path = als_stack(
        tmp_path, frames, ENERGIES, numbers=[3, 19, 20], lines=lines if with_lines else ""
    )
    stack = als.open(path)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_array_equal(stack.values, frames)
    if with_lines:
        np.testing.assert_allclose(stack.ring_current, [401, 402, 403])


def test_trimmed_images_under_the_whole_axis(tmp_path, frames, caplog):
    """Numbers are places on the axis, and the lines say that nothing else was kept."""
    axis = [700.0 + index for index in range(9)]
    lines = als_line(1, 701) + als_line(4, 704) + als_line(7, 707)
    path = als_stack(tmp_path, frames, ENERGIES, numbers=[1, 4, 7], axis=axis, lines=lines)
    np.testing.assert_allclose(als.open(path).energy, [701, 704, 707])
    assert "9 energies were planned and 3 images are stored" in caplog.text


@pytest.mark.parametrize(("told", "warned"), [(718.0, True), (860.53, True), (860.5, False)])
def test_the_axis_wins_over_a_line(tmp_path, frames, caplog, told, warned):
    lines = als_line(0, 853.0) + als_line(1, 857.75) + als_line(2, told)
    stack = als.open(als_stack(tmp_path, frames, ENERGIES, lines=lines))
    np.testing.assert_allclose(stack.energy, ENERGIES)
    message = f"line of image 2 says {told:g} eV where StackAxis says 860.5 eV"
    assert (message in caplog.text) == warned


def test_numbers_that_fit_nothing(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES, numbers=[3, 19, 40], axis=[700, 701, 702, 703])
    with pytest.raises(FileError, match="3 images, numbered 3 to 40, do not fit the 4 energies"):
        als.open(path)


def test_without_a_stack_axis_the_line_tells(tmp_path, frames, caplog):
    path = als_stack(tmp_path, frames[:1], ENERGIES[:1], lines=als_line(0, 640.5))
    text = path.read_text().replace("StackAxis", "Unused")
    path.write_text(text)
    assert als.open(path).energy.values.tolist() == [640.5]
    assert "no StackAxis" in caplog.text


# 7: other axes


def test_a_magnetic_field_called_energy_is_refused(tmp_path, frames):
    path = als_stack(tmp_path, frames[:2], [-2.0, -1.0], stack_unit="")
    with pytest.raises(FileError, match=r"has no unit and runs from -2 to -1.*not an energy"):
        als.open(path)


def test_another_stack_axis_is_refused(tmp_path, frames):
    path = als_stack(tmp_path, frames[:2], [0.0, 90.0], stack_name="Polarisation", stack_unit="deg")
    with pytest.raises(FileError, match=r"runs over 'Polarisation' \(deg\)"):
        als.open(path)


@pytest.mark.parametrize(
    ("unit", "factor"), [("eV", 1.0), ("keV", 1e-3), ("", 1.0)], ids=["eV", "keV", "none"]
)
def test_energy_units(tmp_path, frames, unit, factor):
    axis = [700.0 * factor, 701.0 * factor, 702.0 * factor]
    path = als_stack(tmp_path, frames, ENERGIES, axis=axis, stack_unit=unit)
    np.testing.assert_allclose(als.open(path).energy, [700, 701, 702])


def test_kev_called_ev_is_refused(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES, axis=[0.7, 0.701, 0.702])
    with pytest.raises(FileError, match="lie outside"):
        als.open(path)


@pytest.mark.parametrize(
    "kind", ["NEXAFS Line Scan", "Focus Scan", "OSA Scan", "NEXAFS Point Scan"]
)
def test_other_scans_are_refused_by_name(tmp_path, frames, kind):
    with pytest.raises(FileError, match=f"is a '{kind}'"):
        als.open(als_stack(tmp_path, frames, ENERGIES, kind=kind))


# 8: what must be tolerated


def test_what_real_headers_hold_is_tolerated(tmp_path, frames, caplog):
    extra = (
        'ExitHSlit = { Name = "XS\xb5 Vert"; LastPosition = -0; ControllerIhD = 62; Vel = 200;};\n'
        'AUX9 = { Name = ""; LastPosition = -9999.9; Empty = ; };\n'
        '"words without a key"; Stray = (1, 2, 3});\n'
        " StorageRingCurrent = 0; Polarization = -99.99;\n"
    )
    path = als_stack(
        tmp_path,
        frames,
        ENERGIES,
        label="NS_181110203.hdr",
        dwell="Dwell = 4; Dwell2 = -6.2774386e+066;",
        extra=extra,
        plan=[(4, 4), (25, 4), (5, 4)],
        lines="".join(als_line(index, energy, 0.0) for index, energy in enumerate(ENERGIES)),
    )
    stack = als.open(path)
    np.testing.assert_array_equal(stack.values, frames)
    assert "ring_current" not in stack.coords
    assert "34 energies were planned and 3 images are stored" in caplog.text
    header = read_header(path)
    assert header["ExitHSlit"]["Name"] == "XS\xb5 Vert"
    assert header["ScanDefinition"]["Dwell2"] == -6.2774386e66
    assert header["Stray"] == [1.0, 2.0, 3.0]
    assert header["AUX9"]["Empty"] == ""


def test_a_stopped_scan_gives_what_was_stored(tmp_path, frames, caplog):
    axis = [*ENERGIES, 861.0, 862.0]
    stack = als.open(als_stack(tmp_path, frames, ENERGIES, axis=axis))
    np.testing.assert_allclose(stack.energy, ENERGIES)
    assert "5 energies were planned and 3 images are stored" in caplog.text


def test_ring_current_of_some_images(tmp_path, frames):
    lines = als_line(0, 853.0, 0.0) + als_line(2, 860.5, 298.21)
    stack = als.open(als_stack(tmp_path, frames, ENERGIES, lines=lines))
    np.testing.assert_array_equal(stack.ring_current, [np.nan, np.nan, 298.21])
    assert stack.ring_current.attrs["units"] == "mA"


def test_brackets_without_end_are_an_error(tmp_path):
    path = tmp_path / "deep.hdr"
    path.write_text("ScanDefinition = " + "{ a = (" * 5000)
    with pytest.raises(FileError, match="nest deeper"):
        als.open(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 1500), junk=st.text(alphabet='{}()=;,"\n aP1', max_size=12))
def test_a_damaged_header_never_gives_a_bare_traceback(tmp_path, cut, junk):
    path = als_stack(tmp_path, np.ones((3, 4, 6), dtype=int), ENERGIES)
    text = path.read_text()
    path.write_text(text[: cut % len(text)] + junk + text[cut % len(text) + len(junk) :])
    raised = None
    try:
        check_stack(als.open(path))
    except FileError as error:
        raised = error
    assert raised is None or str(tmp_path) in str(raised)


# 9: units, dwell


@pytest.mark.parametrize("unit", ["counts", "Hz"])
def test_values_are_counts_whatever_the_file_calls_them(tmp_path, frames, unit):
    stack = als.open(als_stack(tmp_path, frames, ENERGIES, channel_unit=unit))
    assert stack.attrs["units"] == "count"


def test_dwell_is_in_milliseconds(tmp_path, frames):
    stack = als.open(als_stack(tmp_path, frames, ENERGIES))
    np.testing.assert_allclose(stack.dwell_time, 0.002)
    assert stack.dwell_time.attrs["units"] == "s"
    longer = als.open(als_stack(tmp_path, frames, ENERGIES, plan=[(1, 2.0), (2, 8.0)]))
    np.testing.assert_allclose(longer.dwell_time, [0.002, 0.008, 0.008])
    unknown = als.open(als_stack(tmp_path, frames, ENERGIES, dwell=""))
    assert "dwell_time" not in unknown.coords


# Bad input


def test_a_missing_image_is_named(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES)
    (tmp_path / "scan_a001.xim").unlink()
    with pytest.raises(FileError, match=r"scan\.hdr: the image 'scan_a001\.xim' is missing"):
        als.open(path)


def test_a_missing_last_image_is_named_when_its_line_is_there(tmp_path, frames):
    lines = "".join(als_line(index, energy) for index, energy in enumerate(ENERGIES))
    path = als_stack(tmp_path, frames, ENERGIES, lines=lines)
    (tmp_path / "scan_a002.xim").unlink()
    with pytest.raises(FileError, match=r"'scan_a002\.xim' is missing"):
        als.open(path)


def test_no_image_at_all(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES)
    for image in tmp_path.glob("*.xim"):
        image.unlink()
    with pytest.raises(FileError, match=r"'scan_a000\.xim' is missing"):
        als.open(path)


@pytest.mark.parametrize("cut", [np.s_[:3, :], np.s_[:, :5], np.s_[:0, :]])
def test_an_image_of_another_shape_is_named(tmp_path, frames, cut):
    path = als_stack(tmp_path, frames, ENERGIES)
    (tmp_path / "scan_a001.xim").write_bytes(als_image(frames[1][cut]))
    with pytest.raises(FileError, match=r"scan_a001\.xim: holds .* where the header says 4 x 6"):
        als.open(path)


@pytest.mark.parametrize(
    "row", ["1\t2\tx\t4\t5\t6\t", "1\t2\t\t4\t5\t6\t", "1\t2\t3\t4\t5\t", "1\t2\t3\t4\t5\t6\t7\t"]
)
def test_a_damaged_row_is_found_when_it_is_read(tmp_path, frames, row):
    path = als_stack(tmp_path, frames, ENERGIES)
    image = tmp_path / "scan_a001.xim"
    lines = image.read_text().split("\n")
    lines[2] = row
    image.write_text("\n".join(lines))
    stack = als.open(path)
    np.testing.assert_array_equal(stack[0].values, frames[0])
    with pytest.raises(FileError, match=r"scan_a001\.xim"):
        stack[1].compute()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ENVI\nsamples = 5\n", "no ScanDefinition"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", "binary"),
        (b"", "no ScanDefinition"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, content, reason):
    path = tmp_path / "other.hdr"
    path.write_bytes(content)
    assert reason in str(als.refuse(path))
    assert "not there" in str(als.refuse(tmp_path / "nothing.hdr"))


# Laziness


def test_one_chunk_per_image_and_nothing_read_before(tmp_path, frames):
    path = als_stack(tmp_path, frames, ENERGIES)
    stack = als.open(path)
    assert stack.chunks == ((1, 1, 1), (4,), (6,))
    (tmp_path / "scan_a001.xim").unlink()
    np.testing.assert_array_equal(stack.sel(energy=860.5).values, frames[2])
    with pytest.raises(FileError, match=r"scan_a001\.xim"):
        stack.compute()


def test_a_stack_can_be_pickled(tmp_path, frames):
    stack = als.open(als_stack(tmp_path, frames, ENERGIES))
    copied = pickle.loads(pickle.dumps(stack))
    assert copied.chunks == stack.chunks
    np.testing.assert_array_equal(copied.values, frames)


# The writer


def simulated(values: NDArray[np.float64], energies: list[float], step: float) -> xr.DataArray:
    """A stack as the simulator makes it."""
    count, rows, columns = values.shape
    return xr.DataArray(
        values.astype(np.float32),
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", np.array(energies), {"units": "eV"}),
            "y": ("y", step * np.arange(rows), {"units": "nm"}),
            "x": ("x", 100 + step * np.arange(columns), {"units": "nm"}),
            "dwell_time": ("energy", np.where(np.arange(count) < 2, 0.002, 0.0035), {"units": "s"}),
            "ring_current": ("energy", np.full(count, 499.5), {"units": "mA"}),
        },
        attrs={"quantity": "counts", "units": "count", "technique": "stxm", "detector": "APD"},
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory, data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
    whole = data.draw(st.booleans())
    seed = data.draw(st.integers(0, 2**32 - 1))
    step = data.draw(st.sampled_from([5.0, 27.2, 33.3333, 100.0]))
    steps = data.draw(st.lists(st.integers(1, 30000), min_size=shape[0], max_size=shape[0]))
    energies = (600 + np.cumsum(steps) * 1e-4).round(4).tolist()
    values = np.random.default_rng(seed).normal(3e4, 2e4, shape)
    stack = simulated(np.rint(values) if whole else values, energies, step)
    path = tmp_path_factory.mktemp("written") / "sim.hdr"
    als.write(stack, path)
    found = als.open(path)
    np.testing.assert_array_equal(found.values, stack.values)
    for name in ("energy", "y", "x", "dwell_time", "ring_current"):
        np.testing.assert_allclose(found[name], stack[name], rtol=1e-9, atol=2e-4, err_msg=name)
        assert found[name].attrs["units"] == stack[name].attrs["units"]
    assert found.attrs["detector"] == "APD"


def test_written_files_look_like_raw_ones(tmp_path, frames):
    als.write(simulated(frames.astype(float), ENERGIES, 5.0), tmp_path / "sim.hdr")
    image = (tmp_path / "sim_a000.xim").read_bytes()
    assert image == als_image(frames[0])
    header = (tmp_path / "sim.hdr").read_bytes()
    assert header.startswith(b"\r\nScanDefinition = {")
    assert header.count(b"\n") == header.count(b"\r\n")
    assert not list(tmp_path.glob("*.part"))
    assert b"Points = (3, 853.0000, 857.7500, 860.5000);" in header


def test_nan_survives_writing(tmp_path, frames):
    values = frames.astype(float)
    values[1, 2, 3] = np.nan
    als.write(simulated(values, ENERGIES, 5.0), tmp_path / "sim.hdr")
    np.testing.assert_array_equal(als.open(tmp_path / "sim.hdr").values, values)


def test_what_cannot_be_written(tmp_path, frames):
    stack = simulated(frames.astype(float), ENERGIES, 5.0)
    with pytest.raises(InputError, match=r"must end in \.hdr"):
        als.write(stack, tmp_path / "sim.txt")
    with pytest.raises(InputError, match="quantity"):
        als.write(stack.assign_attrs(quantity="optical_density"), tmp_path / "sim.hdr")
    (tmp_path / "sim_a007.xim").write_text("1\t\r\n")
    with pytest.raises(FileError, match=r"sim_a007\.xim"):
        als.write(stack, tmp_path / "sim.hdr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sim_a007.xim"]


# 10: masks


def test_mask_and_image_have_the_same_rows(tmp_path):
    mask = np.zeros((3, 5), dtype=bool)
    mask[0, 1], mask[2, 3] = True, True
    path = tmp_path / "particles.msk"
    path.write_text(mask_text(mask))
    np.testing.assert_array_equal(masks.read_mask(path), mask)
    path.write_text("\r\n".join(line.rstrip() for line in mask_text(mask).split("\n")))
    np.testing.assert_array_equal(masks.read_mask(path), mask[:, :4])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"OO X\n", b"\x00\x01\x02"])
def test_what_is_no_mask(tmp_path, content):
    (tmp_path / "bad.msk").write_bytes(content)
    with pytest.raises(FileError, match=r"bad\.msk"):
        masks.read_mask(tmp_path / "bad.msk")


def test_masks_and_labels_from_arrays_and_tiff(tmp_path):
    import tifffile

    labels = np.array([[0, 1, 1], [2, 0, 300]], dtype=np.uint16)
    np.save(tmp_path / "labels.npy", labels)
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    np.save(tmp_path / "float.npy", labels.astype(float))
    for name in ("labels.npy", "labels.tif", "float.npy"):
        found = masks.read_labels(tmp_path / name)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, labels)
        np.testing.assert_array_equal(masks.read_mask(tmp_path / name), labels > 0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, 1.0]]), "whole numbers"),
        (np.array([[np.nan, 1.0]]), "whole numbers"),
        (np.array([[-1, 1]]), "labels run from -1"),
        (np.zeros((2, 2, 2), dtype=int), "not one image"),
        (np.array([[1j]]), "not one image"),
        (np.array([["a"]]), "not one image"),
    ],
)
def test_what_are_no_labels(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(FileError, match=message):
        masks.read_labels(tmp_path / "bad.npy")


def test_labels_are_never_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match="cannot be decoded"):
        masks.read_labels(tmp_path / "objects.npy")
    (tmp_path / "drawn.msk").write_text("O\n")
    with pytest.raises(FileError, match=r"neither \.npy nor TIFF"):
        masks.read_labels(tmp_path / "drawn.msk")


# Real files


def test_real_iron_stack(shared_data):
    folder = toner(shared_data)
    stack = check_stack(als.open(folder / "71214078.hdr"))
    energies = np.loadtxt(folder.parents[1] / "Energy.txt")
    assert stack.shape == (123, 125, 125)
    np.testing.assert_array_equal(stack.energy, energies)
    assert pixel_size(stack) == pytest.approx((80.0, 80.0), abs=1e-6)
    np.testing.assert_allclose(stack.dwell_time, 0.433e-3)
    assert np.isnan(stack.ring_current[0])
    np.testing.assert_allclose(stack.ring_current[[1, 122]], [333.08, 306.38])
    for index in (0, 61, 122):
        image = np.loadtxt(folder / f"71214078_a{index:03d}.xim")
        np.testing.assert_array_equal(stack[index].values, image.astype(np.float32))


def test_real_i0_is_per_millisecond_of_dwell(shared_data):
    from spectromap.io.spectra import read_spectrum

    folder = toner(shared_data)
    stack = als.open(folder / "71214078.hdr").compute()
    i0 = read_spectrum(folder / "i0.xsp")
    np.testing.assert_array_equal(i0.energy, stack.energy)
    bright = np.percentile(stack.values[:, 10:-10, 10:-10], 97, axis=(1, 2))
    ratio = np.median(bright / i0.values)
    assert ratio == pytest.approx(float(stack.dwell_time[0]) * 1e3, rel=0.03)


def test_real_mask(shared_data):
    folder = toner(shared_data)
    mask = masks.read_mask(folder / "mask_file.msk")
    assert mask.shape == (125, 125)
    mean = als.open(folder / "71214078.hdr").mean("energy").values
    assert np.corrcoef(mask.ravel(), mean.ravel())[0, 1] == pytest.approx(-0.75, abs=0.02)


def test_real_lost_plane(shared_data, tmp_path):
    folder = toner(shared_data)
    for file in folder.iterdir():
        if "_a057" not in file.name:
            shutil.copy(file, tmp_path)
    with pytest.raises(FileError, match=r"'71214078_a057\.xim' is missing"):
        als.open(tmp_path / "71214078.hdr")


def test_real_nickel_stack(shared_data, caplog):
    folder = shared_data / "cosmic-xanespy"
    stack = check_stack(als.open(folder / "stxm-scan.hdr"))
    assert stack.shape == (2, 120, 120)
    assert stack.energy.values.tolist() == [853.0, 857.75]
    assert pixel_size(stack) == pytest.approx((27.2, 27.2), abs=0.05)
    np.testing.assert_allclose(stack.dwell_time, 4e-3)
    assert "ring_current" not in stack.coords
    assert "34 energies were planned and 2 images" in caplog.text
    image = np.loadtxt(folder / "stxm-scan_a019.xim")
    np.testing.assert_array_equal(stack.sel(energy=857.75).values, image)


def test_real_header_without_images(shared_data):
    path = shared_data / "cosmic-xanespy" / "NS_181111148.hdr"
    energy, y, x = als.read_axes(path)
    assert (energy.size, energy[0], energy[-1]) == (46, 2519.0, 2540.0)
    assert (y.size, x.size) == (60, 60)
    assert np.median(np.diff(x)) == pytest.approx(66.7, abs=0.05)
    assert x[0] == pytest.approx(-11364.0)
    assert als.refuse(path) is None
    with pytest.raises(FileError, match=r"'NS_181111148_a000\.xim' is missing"):
        als.open(path)


def test_real_cropped_stack_whose_line_disagrees(shared_data, caplog):
    folder = shared_data / "stxm-orange-spectroscopy"
    stack = check_stack(als.open(folder / "max_iv.hdr"))
    assert stack.energy.values.tolist() == [698.0, 700.0]
    assert "line of image 1 says 718 eV where StackAxis says 700 eV" in caplog.text
    assert pixel_size(stack) == pytest.approx((50.0, 50.0), abs=1e-6)
    np.testing.assert_allclose(stack.ring_current, 248.32)
    assert stack.attrs["units"] == "count"
    np.testing.assert_array_equal(stack[0, 0, :3], [1251, 1281, 1275])
