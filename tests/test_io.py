"""`open_stack` and `info`: choosing the reader, series of files, what the user is told."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import h5py
import make_files as make
import numpy as np
import pytest
import xarray as xr

from spectromap import io
from spectromap.io import cxi, nxstxm
from spectromap.schema import FileError, InputError, check_stack, pixel_size

FRAME = make.counts(3, 5)


def values(stack: xr.DataArray) -> np.ndarray:
    return stack.compute(scheduler="sync").values


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def image(path: Path, energy: float, **options) -> Path:
    """One NXstxm image at one energy."""
    options.setdefault("data", FRAME + energy)
    return make.pollux(
        path,
        energy=[energy],
        axes=("sample_y", "sample_x"),
        scan_type="sample image",
        **options,
    )


# --------------------------------------------------------------------------------------------
# Choosing the reader


def test_every_reader_has_the_same_face() -> None:
    assert [reader.NAME for reader in io.READERS] == [
        "NXstxm",
        "CXI",
        "als-hdr",
        "axis2000",
        "tiff",
    ]
    for reader in io.READERS:
        assert callable(reader.refuse)
        assert callable(reader.open)


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("nxstxm-pollux-stoner/Sample_Image_2017-10-15_100.hdf5", "nxstxm"),
        ("nxstxm-pollux-stoner/Pollux-STXM Image.hdf5", "nxstxm"),
        ("stxm-orange-spectroscopy/small_diamond_nxs.nxs", "nxstxm"),
        ("stxm-orange-spectroscopy/small_OK.hdf5", "nxstxm"),
        ("stxm-orange-spectroscopy/max_iv.hdr", "als-hdr"),
        ("cosmic-xanespy/stxm-scan.hdr", "als-hdr"),
        ("cosmic-xanespy/ptycho-scan-856eV.cxi", "cxi"),
    ],
)
def test_real_files_find_their_reader(shared_data: Path, name: str, reader: str) -> None:
    stack = io.open_stack(shared_data / name)
    check_stack(stack)
    assert stack.attrs["source_format"] == reader
    assert stack.attrs["source_file"].endswith(Path(name).name)


def test_content_decides_not_the_ending(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.tif")
    assert io.open_stack(path).attrs["source_format"] == "nxstxm"
    path = make.cosmic(tmp_path / "b.hdf5")
    assert io.open_stack(str(path)).attrs["source_format"] == "cxi"


def test_each_format_gives_its_own_reason(shared_data: Path) -> None:
    path = shared_data / "ptycho-cxi-cdtools" / "PETRAIII_P25_Near_Field_Ptycho.cxi"
    with pytest.raises(FileError, match="no reader takes this file") as caught:
        io.open_stack(path)
    message = str(caught.value)
    assert str(path) in message
    for reader in io.READERS:
        assert f"{reader.NAME}: {reader.refuse(path)}" in message
    assert "raw diffraction, not a reconstruction" in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.hdf5", b"", "the file is empty"),
        ("a.hdf5", b"energy counts\n640 3\n", "not an HDF5 file"),
    ],
)
def test_files_of_no_format(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=reason):
        io.open_stack(tmp_path / name)


def test_truncated_file_says_so(tmp_path: Path) -> None:
    cut = make.cut(make.pollux(tmp_path / "whole.hdf5"), tmp_path / "cut.hdf5", 0.6)
    with pytest.raises(FileError, match="truncated"):
        io.open_stack(cut)


def test_unknown_filter_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"filter 31999.*not installed") as caught:
        io.open_stack(make.unknown_filter(tmp_path / "a.hdf5"))
    assert "no reader" not in str(caught.value)


def test_missing_files_folders_and_globs(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        io.open_stack(tmp_path / "missing.hdf5")
    with pytest.raises(FileError, match=r"is a folder.*glob"):
        io.open_stack(tmp_path)
    with pytest.raises(FileError, match="no file matches"):
        io.open_stack(tmp_path / "*.hdf5")
    with pytest.raises(InputError, match="empty list"):
        io.open_stack([])


def test_brackets_in_a_name_are_no_glob(tmp_path: Path) -> None:
    assert io.open_stack(make.pollux(tmp_path / "scan[1].hdf5")).shape == (4, 3, 5)


def test_options_reach_the_reader(tmp_path: Path) -> None:
    path = make.cls(tmp_path / "a.hdf5")
    stack = io.open_stack(path, entry="entry2", detector="counter1")
    assert (stack.attrs["entry"], stack.attrs["detector"]) == ("entry2", "counter1")
    with pytest.raises(InputError, match="no detector 'diode'"):
        io.open_stack(path, detector="diode")


def test_option_that_means_nothing(tmp_path: Path) -> None:
    path = make.pollux(tmp_path / "a.hdf5")
    with pytest.raises(InputError, match="'energies' means nothing for NXstxm"):
        io.open_stack(path, energies=[1.0, 2.0])


# --------------------------------------------------------------------------------------------
# Several files, one stack


def test_glob_of_single_images(tmp_path: Path) -> None:
    for number, energy in ((10, 641.0), (9, 640.0), (11, 639.0)):
        image(tmp_path / f"scan_{number}.hdf5", energy)
    stack = io.open_stack(f"{tmp_path}/scan_*.hdf5")
    check_stack(stack, ("counts",))
    np.testing.assert_allclose(stack.energy, [639.0, 640.0, 641.0])
    np.testing.assert_array_equal(values(stack), [FRAME + e for e in (639.0, 640.0, 641.0)])
    assert stack.data.chunks == ((1, 1, 1), (3,), (5,))
    assert stack.attrs["source_file"] == f"{tmp_path}/scan_9.hdf5 and 2 others"
    np.testing.assert_allclose(stack.ring_current, 401.5)
    np.testing.assert_array_equal(values(pickle.loads(pickle.dumps(stack))), values(stack))


def test_list_of_stacks(tmp_path: Path) -> None:
    first = make.pollux(tmp_path / "a.hdf5")
    second = make.pollux(tmp_path / "b.hdf5", energy=make.ENERGIES + 10, monitor=np.nan)
    stack = io.open_stack([first, str(second)])
    assert stack.shape == (8, 3, 5)
    np.testing.assert_allclose(stack.ring_current, [401.5] * 4 + [np.nan] * 4)


def test_real_pair(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shared_data / "nxstxm-pollux-stoner"
    stack = io.open_stack(str(folder / "Sample_Image_2017-10-15_10?.hdf5"))
    assert stack.shape == (2, 100, 100)
    assert "781.5" in warnings_of(caplog)  # twice the same energy: an XMCD pair
    with pytest.raises(FileError, match=r"frames of \(80, 300\)|frames of \(100, 100\)"):
        io.open_stack(str(folder / "Sample_Image_*.hdf5"))


def test_series_of_cxi_goes_through_its_own_reader(tmp_path: Path) -> None:
    images = {e: make.complex_image(12, 10, e) for e in (640.0, 660.0)}
    for energy, data in images.items():
        make.cosmic(tmp_path / f"{energy:g}.cxi", energy, image=data)
    stack = io.open_stack(tmp_path / "*.cxi")
    assert stack.attrs["quantity"] == "amplitude"
    np.testing.assert_array_equal(values(stack)[1], images[660.0])


def test_frames_of_different_shape(tmp_path: Path) -> None:
    image(tmp_path / "a.hdf5", 640.0)
    image(tmp_path / "b.hdf5", 641.0, data=make.counts(3, 4), x=make.X_UM[:4])
    with pytest.raises(FileError, match=r"b\.hdf5: frames of \(3, 4\).*leave the odd one out"):
        io.open_stack(tmp_path / "*.hdf5")


@pytest.mark.parametrize("change", ["stretched", "moved"])
def test_frames_on_different_grids(tmp_path: Path, change: str) -> None:
    image(tmp_path / "a.hdf5", 640.0)
    x = make.X_UM * 1.01 if change == "stretched" else make.X_UM + 0.03
    image(tmp_path / "b.hdf5", 641.0, x=x)
    with pytest.raises(FileError, match=r"b\.hdf5: the grid along 'x' differs"):
        io.open_stack(tmp_path / "*.hdf5")


def test_small_shift_of_the_grid_is_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image(tmp_path / "a.hdf5", 640.0)
    image(tmp_path / "b.hdf5", 641.0, x=make.X_UM + 0.01)
    assert io.open_stack(tmp_path / "*.hdf5").shape == (2, 3, 5)
    assert "shifted by 0.2 pixels along x" in warnings_of(caplog)


def test_files_of_different_formats(tmp_path: Path) -> None:
    image(tmp_path / "a.h5", 640.0)
    make.cosmic(tmp_path / "b.h5", 641.0)
    with pytest.raises(FileError, match=r"b\.h5: not NXstxm as .*a\.h5 is"):
        io.open_stack(tmp_path / "*.h5")


def test_counts_and_optical_density_do_not_mix(tmp_path: Path) -> None:
    stack = io.open_stack(image(tmp_path / "a.hdf5", 640.0))
    nxstxm.write(stack.assign_attrs(quantity="optical_density"), tmp_path / "b.hdf5")
    with pytest.raises(FileError, match="quantity is optical_density, but counts"):
        io.open_stack(tmp_path / "*.hdf5")


def test_energies_for_files_that_tell_none(tmp_path: Path) -> None:
    import tifffile

    for number in range(2):
        tifffile.imwrite(tmp_path / f"{number}.tif", (FRAME + number).astype(np.float32))
        (tmp_path / f"{number}.txt").write_text(
            f"# pixel_nm: 20\n# quantity: counts\n{700 + number}\n"
        )
    stack = io.open_stack(tmp_path / "*.tif", energies=[641.0, 640.0])
    np.testing.assert_allclose(stack.energy, [640.0, 641.0])
    np.testing.assert_array_equal(values(stack)[0], FRAME + 1)
    listed = tmp_path / "energies.list"
    listed.write_text("641.0\n640.0\n")
    np.testing.assert_allclose(
        io.open_stack(tmp_path / "*.tif", energies=listed).energy, [640.0, 641.0]
    )
    with pytest.raises(InputError, match="3 energies for 2 files"):
        io.open_stack(tmp_path / "*.tif", energies=[1.0, 2.0, 3.0])


def test_parts_of_one_stack_are_opened_once(shared_data: Path) -> None:
    folder = shared_data / "cosmic-xanespy"
    stack = io.open_stack([folder / "stxm-scan.hdr", folder / "stxm-scan_a003.xim"])
    assert stack.shape == io.open_stack(folder / "stxm-scan.hdr").shape


# --------------------------------------------------------------------------------------------
# Text about a file


def test_info(tmp_path: Path) -> None:
    text = io.info(make.pystxmcontrol(tmp_path / "a.stxm"))
    lines = {line[:13].strip(): line[14:] for line in text.splitlines()}
    assert lines["format"] == "NXstxm (pystxmcontrol (ALS))"
    assert lines["size"] == "4 energies x 3 rows x 5 columns, 240 bytes"
    assert lines["energies"] == "638 to 644 eV in steps of 1.75 to 2.5 eV"
    assert lines["pixel"] == "50 x 50 nm (y, x)"
    assert lines["dwell"] == "2 ms"
    assert lines["detector"] == "default"
    assert "entry1/xrf: (4, 3, 5)" in text
    assert "default taken; other detectors: xrf" in text
    assert "CXI: HDF5 without a CXI entry" in text
    assert "als-hdr:" in text


def test_info_of_a_reconstruction(shared_data: Path) -> None:
    text = io.info(shared_data / "cosmic-xanespy" / "ptycho-scan-856eV.cxi")
    assert "amplitude, complex64, ptychography" in text
    assert "855.906 eV" in text
    assert "6.044 x 6.044 nm" in text


def test_info_of_several_files(tmp_path: Path) -> None:
    for energy in (640.0, 641.0):
        image(tmp_path / f"{energy:g}.hdf5", energy)
    text = io.info(tmp_path / "*.hdf5")
    assert "640.hdf5 and 1 more" in text
    assert "640 to 641 eV in steps of 1 eV" in text


def test_info_shows_its_warnings_only_in_the_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with h5py.File(make.diamond(tmp_path / "a.nxs")) as file:
        assert "units" not in file["entry1/Counter1/sample_x"].attrs
    assert "warning       positions have no units; their steps say mm" in io.info(
        tmp_path / "a.nxs"
    )
    assert not warnings_of(caplog)


def test_info_of_no_stack(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a line spectrum"):
        io.info(make.line_spectrum(tmp_path / "a.hdf5"))


# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [nxstxm, cxi])
def test_written_stacks_come_back(tmp_path: Path, module) -> None:
    amplitude = module is cxi
    stack = xr.DataArray(
        np.stack([make.complex_image(6, 7, s) for s in (1.0, 2.0)])
        if amplitude
        else make.counts(2, 6, 7).astype(np.float32),
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", [640.0, 641.0], {"units": "eV"}),
            "y": ("y", 10.0 * np.arange(6), {"units": "nm"}),
            "x": ("x", 10.0 * np.arange(7), {"units": "nm"}),
        },
        attrs={"quantity": "amplitude" if amplitude else "counts", "technique": "stxm"},
    )
    again = io.open_stack(module.write(stack, tmp_path / "a.h5"))
    np.testing.assert_array_equal(values(again), stack.values)
    assert pixel_size(again) == pytest.approx((10.0, 10.0))
