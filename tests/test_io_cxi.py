"""CXI reconstructions: energies, pixels, series in one file or many, and bad input."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import h5py
import make_files as make
import numpy as np
import pytest
import xarray as xr

from spectromap.io import cxi
from spectromap.schema import FileError, InputError, check_stack, pixel_size

ENERGIES = [640.0, 642.5, 645.0]
IMAGES = np.stack([make.complex_image(12, 10, scale) for scale in (20.0, 19.0, 18.0)])


def values(stack: xr.DataArray) -> np.ndarray:
    return stack.compute(scheduler="sync").values


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def check_series(stack: xr.DataArray) -> None:
    check_stack(stack, ("amplitude",))
    assert stack.dtype == np.complex64
    assert stack.attrs["technique"] == "ptychography"
    assert stack.attrs["units"] == "1"
    assert stack.data.chunks == ((1, 1, 1), (12,), (10,))
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_array_equal(values(stack), IMAGES)
    assert pixel_size(stack) == pytest.approx((5.0, 5.0))


# --------------------------------------------------------------------------------------------
# Real files


def test_real_cosmic(shared_data: Path) -> None:
    path = shared_data / "cosmic-xanespy" / "ptycho-scan-856eV.cxi"
    assert cxi.refuse(path) is None
    stack = cxi.open(path)
    check_stack(stack, ("amplitude",))
    assert stack.shape == (1, 285, 285)
    assert float(stack.energy[0]) == pytest.approx(855.9056, abs=5e-5)
    np.testing.assert_allclose(pixel_size(stack), 6.0435606480754585, rtol=1e-12)
    amplitude = np.abs(values(stack))
    assert (amplitude.min(), amplitude.max()) == pytest.approx((1.645, 22.835), abs=1e-3)
    # The scale is arbitrary: the open area is near 22, not 1.
    assert np.median(amplitude) == pytest.approx(22.16, abs=0.01)


def test_real_raw_ptychography_is_refused(shared_data: Path) -> None:
    path = shared_data / "ptycho-cxi-cdtools" / "PETRAIII_P25_Near_Field_Ptycho.cxi"
    assert "raw diffraction, not a reconstruction (frames 200 x 100 x 100)" in cxi.refuse(path)
    with pytest.raises(FileError, match="raw diffraction, not a reconstruction"):
        cxi.open(path)


@pytest.mark.parametrize(
    "name",
    [
        "cosmic-xanespy/testdata.h5",
        "cosmic-xanespy/stxm-scan.hdr",
        "stxm-orange-spectroscopy/small_diamond_nxs.nxs",
        "nxstxm-pollux-stoner/Sample_Image_2017-10-15_100.hdf5",
    ],
)
def test_real_files_of_other_formats_are_refused(shared_data: Path, name: str) -> None:
    assert cxi.refuse(shared_data / name)


# --------------------------------------------------------------------------------------------
# Energy and pixel


def test_joules_and_corner_position(tmp_path: Path) -> None:
    stack = cxi.open(make.cosmic(tmp_path / "a.cxi", 640.0, corner=(0.01, 0.02, 0.1)))
    np.testing.assert_allclose(stack.energy, [640.0])
    dy, dx = pixel_size(stack)
    wavelength = 1239.84198 / 640.0
    # The constants for the geometry are rounded: 2.4e-4 above the exact ones.
    assert dx == pytest.approx(wavelength / (2 * np.sin(np.arctan(0.1))), rel=3e-4)
    assert dy == pytest.approx(wavelength / (2 * np.sin(np.arctan(0.2))), rel=3e-4)


def test_positions_are_around_the_middle(tmp_path: Path) -> None:
    stack = cxi.open(make.cosmic(tmp_path / "a.cxi", pixnm=4.0))
    np.testing.assert_allclose(stack.x, 4.0 * (np.arange(10) - 4.5))
    np.testing.assert_allclose(stack.y, 4.0 * (np.arange(12) - 5.5))


def test_stated_pixel_goes_before_the_geometry(tmp_path: Path) -> None:
    assert pixel_size(cxi.open(make.cosmic(tmp_path / "a.cxi", pixnm=4.5))) == pytest.approx(
        (4.5, 4.5)
    )
    path = make.cosmic(tmp_path / "b.cxi", pixnm=4.5, x_pixel_size=6e-9, y_pixel_size=7e-9)
    assert pixel_size(cxi.open(path)) == pytest.approx((7.0, 6.0))
    path = make.cosmic(tmp_path / "c.cxi", corner=None, image_size=np.array([60e-9, 48e-9, 0.0]))
    assert pixel_size(cxi.open(path)) == pytest.approx((4.0, 6.0))


def test_no_pixel_size(tmp_path: Path) -> None:
    path = make.cosmic(tmp_path / "a.cxi", corner=None)
    with pytest.raises(FileError, match=r"has no pixel size.*x_pixel_size"):
        cxi.open(path)
    with pytest.raises(FileError, match="pixel of"):
        cxi.open(make.cosmic(tmp_path / "b.cxi", corner=(0.0, 0.0, 0.1)))
    with pytest.raises(FileError, match="corner_position"):
        cxi.open(make.cosmic(tmp_path / "c.cxi", corner=(0.01, 0.01, 0.0)))


def test_wavelength_instead_of_energy(tmp_path: Path) -> None:
    path = make.cosmic(tmp_path / "a.cxi", pixnm=4.0)
    with h5py.File(path, "r+") as file:
        source = file["entry_1/instrument_1/source_1"]
        del source["energy"]
        source["wavelength"] = 2e-9
    np.testing.assert_allclose(cxi.open(path).energy, [619.92099], rtol=1e-7)
    with h5py.File(path, "r+") as file:
        del file["entry_1/instrument_1/source_1/wavelength"]
    with pytest.raises(FileError, match="has no energy"):
        cxi.open(path)


def test_energy_that_is_no_joules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make.cosmic(tmp_path / "a.cxi", 640.0 / make.JOULE_PER_EV, pixnm=4.0)
    np.testing.assert_allclose(cxi.open(path).energy, [640.0])
    assert "no joules" in warnings_of(caplog)
    path = make.cosmic(tmp_path / "b.cxi", 0.64 * 6.241509e18, pixnm=4.0)  # 0.64 as joules
    with pytest.raises(FileError, match="outside 50 to 100000 eV"):
        cxi.open(path)


# --------------------------------------------------------------------------------------------
# Series


def test_one_file_per_energy(tmp_path: Path) -> None:
    order = (2, 0, 1)
    paths = [
        make.cosmic(tmp_path / f"{k}.cxi", ENERGIES[k], image=IMAGES[k], pixnm=5.0) for k in order
    ]
    check_series(cxi.open(paths))


def test_one_entry_per_energy(tmp_path: Path) -> None:
    check_series(cxi.open(make.cxi_entries(tmp_path / "a.cxi", ENERGIES, IMAGES)))


def test_more_than_nine_entries_keep_their_order(tmp_path: Path) -> None:
    energies = 640.0 + np.arange(12.0)
    images = np.stack([make.complex_image(4, 5, 1.0 + k) for k in range(12)])
    stack = cxi.open(make.cxi_entries(tmp_path / "a.cxi", energies, images))
    np.testing.assert_array_equal(values(stack), images)
    np.testing.assert_allclose(stack.energy, energies)


@pytest.mark.parametrize(
    "where", ["image_{number}/source_1/energy", "instrument_{number}/source_1/energy"]
)
def test_one_image_per_energy(tmp_path: Path, where: str) -> None:
    check_series(cxi.open(make.cxi_images(tmp_path / "a.cxi", ENERGIES, IMAGES, where)))


def test_volume_over_energy(tmp_path: Path) -> None:
    check_series(cxi.open(make.cxi_volume(tmp_path / "a.cxi", ENERGIES, IMAGES)))


def test_volume_that_is_no_series(tmp_path: Path) -> None:
    path = make.cxi_volume(tmp_path / "a.cxi", ENERGIES[:1], IMAGES)
    with pytest.raises(FileError, match="3 planes for 1 energies"):
        cxi.open(path)


def test_image_without_energy_of_its_own_is_no_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make.cosmic(tmp_path / "a.cxi", pixnm=5.0)
    with h5py.File(path, "r+") as file:
        file["entry_1/image_2/data"] = np.ones((8, 8), np.complex64)  # the probe
    assert cxi.open(path).shape == (1, 12, 10)
    assert "entry_1/image_2" in warnings_of(caplog)
    assert cxi.open(path, detector="image_2").shape == (1, 8, 8)
    with pytest.raises(InputError, match=r"no image 'image_3'.*image_1, image_2"):
        cxi.open(path, detector="image_3")


def test_one_entry_of_several(tmp_path: Path) -> None:
    path = make.cxi_entries(tmp_path / "a.cxi", ENERGIES, IMAGES)
    stack = cxi.open(path, entry="entry_2")
    np.testing.assert_allclose(stack.energy, [642.5])
    np.testing.assert_array_equal(values(stack)[0], IMAGES[1])
    with pytest.raises(InputError, match=r"no entry 'entry_9'.*entry_1, entry_2, entry_3"):
        cxi.open(path, entry="entry_9")
    assert cxi.contents(path)[1] == "entry_2/image_1: (12, 10) at 642.500 eV"


def test_planes_of_different_shape(tmp_path: Path) -> None:
    images = [IMAGES[0], IMAGES[1][:11], IMAGES[2]]
    path = make.cxi_entries(tmp_path / "a.cxi", ENERGIES, images)
    with pytest.raises(FileError, match=r"different shapes \(.*entry_2: \(11, 10\)"):
        cxi.open(path)


# --------------------------------------------------------------------------------------------
# Pixels that change with the energy


def blob(rows: int, columns: int, pixel: float) -> np.ndarray:
    """Gaussian of 60 nm at (20, -30) nm from the middle, sampled with a pixel in nm."""
    y = (np.arange(rows) - (rows - 1) / 2) * pixel
    x = (np.arange(columns) - (columns - 1) / 2) * pixel
    square = (y[:, None] - 20.0) ** 2 + (x[None, :] + 30.0) ** 2
    return (np.exp(-square / 2 / 60.0**2) * (1 + 0.5j) + 2).astype(np.complex64)


def varying(tmp_path: Path, shapes: list[tuple[int, int]]) -> list[Path]:
    pixels = [5.2, 5.1, 5.0]  # the pixel falls as the energy rises
    return [
        make.cosmic(tmp_path / f"{k}.cxi", energy, image=blob(*shape, pixel), pixnm=pixel)
        for k, (energy, shape, pixel) in enumerate(zip(ENERGIES, shapes, pixels, strict=True))
    ]


def test_pixels_that_change_are_brought_to_one_grid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = cxi.open(varying(tmp_path, [(80, 90)] * 3))
    assert "changes with energy from 5 to 5.2 nm" in warnings_of(caplog)
    assert stack.shape == (3, 80, 90)
    assert pixel_size(stack) == pytest.approx((5.0, 5.0))
    found, expected = values(stack), blob(80, 90, 5.0)
    np.testing.assert_array_equal(found[2], expected)  # the finest is left as it is
    # Linear interpolation is off by at most h^2/8 of the second derivative: 5.2^2 / 8 / 60^2.
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=2.3e-3)
    assert stack.data.chunks == ((1, 1, 1), (80,), (90,))
    again = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(values(again), found)


def test_only_the_common_field_is_kept(tmp_path: Path) -> None:
    stack = cxi.open(varying(tmp_path, [(70, 88), (75, 91), (80, 90)]))
    # 69 * 5.2 nm hold 71 steps of 5 nm, from the grid of the finest: rows 4 to 75.
    assert stack.shape == (3, 72, 90)
    np.testing.assert_allclose(stack.y, 5.0 * (np.arange(80) - 39.5)[4:76])
    np.testing.assert_array_equal(values(stack)[2], blob(80, 90, 5.0)[4:76])
    assert np.all(np.isfinite(values(stack)))


def test_pixel_from_the_geometry_changes_with_the_energy(tmp_path: Path) -> None:
    paths = [make.cosmic(tmp_path / f"{e:g}.cxi", e, image=IMAGES[0]) for e in (640.0, 660.0)]
    stack = cxi.open(paths)
    finest = cxi.open(paths[1])
    np.testing.assert_allclose(stack.x, finest.x)
    np.testing.assert_array_equal(values(stack)[1], values(finest)[0])


def test_pixels_that_agree_to_a_thousandth_are_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [
        make.cosmic(tmp_path / f"{k}.cxi", ENERGIES[k], image=IMAGES[k], pixnm=5.0 + 0.002 * k)
        for k in range(3)
    ]
    np.testing.assert_array_equal(values(cxi.open(paths)), IMAGES)
    assert not warnings_of(caplog)


# --------------------------------------------------------------------------------------------
# Lazy reading, bad input


def test_lazy_array_can_be_pickled(tmp_path: Path) -> None:
    stack = cxi.open(make.cxi_entries(tmp_path / "a.cxi", ENERGIES, IMAGES))
    np.testing.assert_array_equal(values(pickle.loads(pickle.dumps(stack))), IMAGES)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """Images of 29 GB each open: they were never written, let alone read."""
    path = make.cosmic(tmp_path / "a.cxi")
    with h5py.File(path, "r+") as file:
        del file["entry_1/image_1/data"]
        file.create_dataset("entry_1/image_1/data", (60_000, 60_000), "c8", chunks=(100, 100))
    stack = cxi.open(path)
    assert values(stack[0, 5:8, 7:9]).shape == (3, 2)


def test_raw_data(tmp_path: Path) -> None:
    path = make.raw_cxi(tmp_path / "a.cxi")
    assert "raw diffraction, not a reconstruction (frames 6 x 8 x 8)" in cxi.refuse(path)
    with pytest.raises(FileError, match=r"a\.cxi: raw diffraction"):
        cxi.open(path)


def test_reconstruction_with_its_raw_data_is_taken(tmp_path: Path) -> None:
    path = make.raw_cxi(tmp_path / "a.cxi")
    with h5py.File(path, "r+") as file:
        file["entry_1/image_1/data"] = IMAGES[0]
        file["entry_1/process_1/Param/pixnm"] = 5.0
    assert cxi.open(path).shape == (1, 12, 10)


def test_shortcut_to_the_image_is_no_raw_data(tmp_path: Path) -> None:
    path = make.cosmic(tmp_path / "a.cxi")
    with h5py.File(path, "r+") as file:
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/image_1/data")
    assert cxi.open(path).shape == (1, 12, 10)


def test_image_behind_a_soft_link(tmp_path: Path) -> None:
    path = make.cosmic(tmp_path / "a.cxi")
    with h5py.File(path, "r+") as file:
        file.move("entry_1/image_1/data", "entry_1/object")
        file["entry_1/image_1/data"] = h5py.SoftLink("/entry_1/object")
    np.testing.assert_array_equal(values(cxi.open(path))[0], make.complex_image(12, 10))


def test_images_outside_the_folder(tmp_path: Path) -> None:
    make.cosmic(tmp_path / "secret.cxi")
    folder = tmp_path / "data"
    folder.mkdir()
    path = make.cosmic(folder / "a.cxi")
    with h5py.File(path, "r+") as file:
        del file["entry_1/image_1/data"]
        file["entry_1/image_1/data"] = h5py.ExternalLink("../secret.cxi", "/entry_1/image_1/data")
    assert "outside the folder" in cxi.refuse(path)
    with pytest.raises(FileError, match="outside the folder"):
        cxi.open(path)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.ones((4, 5)), "real numbers"),
        (np.ones((2, 2, 4, 5), complex), "shape"),
        (np.ones((0, 5), complex), "shape"),
    ],
)
def test_images_that_are_no_reconstruction(tmp_path: Path, image: np.ndarray, reason: str) -> None:
    path = make.cosmic(tmp_path / "a.cxi", image=image)
    assert reason in cxi.refuse(path)
    with pytest.raises(FileError, match=reason):
        cxi.open(path)


def test_truncated_empty_and_other_files(tmp_path: Path) -> None:
    whole = make.cosmic(tmp_path / "a.cxi")
    assert "truncated" in cxi.refuse(make.cut(whole, tmp_path / "b.cxi", 0.8))
    assert "not an HDF5 file" in cxi.refuse(make.cut(whole, tmp_path / "d.cxi", 0.0005))
    (tmp_path / "c.cxi").write_bytes(b"")
    assert "empty" in cxi.refuse(tmp_path / "c.cxi")
    with h5py.File(tmp_path / "e.cxi", "w") as file:
        file["entry_1/title"] = "nothing else"
    assert "without a reconstruction" in cxi.refuse(tmp_path / "e.cxi")
    with pytest.raises(FileError, match="without a reconstruction"):
        cxi.open(tmp_path / "e.cxi")
    with pytest.raises(InputError, match="empty list"):
        cxi.open([])


# --------------------------------------------------------------------------------------------
# Writing


def make_stack() -> xr.DataArray:
    return xr.DataArray(
        IMAGES,
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", ENERGIES, {"units": "eV"}),
            "y": ("y", 5.0 * np.arange(12), {"units": "nm"}),
            "x": ("x", 300.0 + 6.0 * np.arange(10), {"units": "nm"}),
        },
        attrs={"quantity": "amplitude", "units": "1", "technique": "ptychography", "sample": "LMR"},
    )


@pytest.mark.parametrize("lazy", [True, False])
def test_round_trip(tmp_path: Path, lazy: bool) -> None:
    stack = make_stack()
    path = cxi.write(stack.chunk({"energy": 1}) if lazy else stack, tmp_path / "a.cxi")
    again = cxi.open(path)
    np.testing.assert_array_equal(values(again), IMAGES)
    for name in ("energy", "y", "x"):
        np.testing.assert_allclose(again[name], stack[name], rtol=1e-12, atol=1e-9)
    for name in ("quantity", "technique", "units", "sample"):
        assert again.attrs[name] == stack.attrs[name]
    assert [item.name for item in tmp_path.iterdir()] == ["a.cxi"]


def test_written_file_is_cxi_as_others_read_it(tmp_path: Path) -> None:
    path = cxi.write(make_stack(), tmp_path / "a.cxi")
    with h5py.File(path) as file:
        assert file["cxi_version"][()] == 160
        assert file["number_of_entries"][()] == 3
        energy = file["entry_2/instrument_1/source_1/energy"][()]
        assert energy == pytest.approx(642.5 * make.JOULE_PER_EV)
        image = file["entry_2/image_1"]
        np.testing.assert_array_equal(image["data"][()], IMAGES[1])
        assert image["data"].dtype == np.complex64
        assert (image["y_pixel_size"][()], image["x_pixel_size"][()]) == pytest.approx((5e-9, 6e-9))


def test_writing_refuses_what_cxi_cannot_say(tmp_path: Path) -> None:
    stack = make_stack()
    with pytest.raises(InputError, match="quantity"):
        cxi.write(stack.assign_attrs(quantity="counts"), tmp_path / "a.cxi")
    uneven = stack.assign_coords(y=("y", np.arange(12.0) ** 1.5, {"units": "nm"}))
    with pytest.raises(InputError, match="steps of 'y' are not even"):
        cxi.write(uneven, tmp_path / "a.cxi")
    assert not list(tmp_path.iterdir())
