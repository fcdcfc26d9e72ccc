"""TIFF stacks: where energies, pixel size and quantity come from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from make_text_files import tiff
from numpy.typing import NDArray

from spectromap.io import tiff as reader
from spectromap.schema import FileError, InputError, check_stack

ENERGIES = [640.0, 642.5, 645.0]


@pytest.fixture
def pages() -> NDArray[np.uint16]:
    """Three pages of 4 rows and 5 columns of counts."""
    return (500 + np.arange(3 * 4 * 5)).reshape(3, 4, 5).astype(np.uint16)


def simulated(values: NDArray[np.float64], quantity: str = "counts") -> xr.DataArray:
    """A stack with pixels that are not square and an origin that is not 0."""
    count, rows, columns = values.shape
    return xr.DataArray(
        values.astype(np.float32),
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", 640 + 0.25 * np.arange(count), {"units": "eV"}),
            "y": ("y", 300 + 20.5 * np.arange(rows), {"units": "nm"}),
            "x": ("x", -40 + 33.25 * np.arange(columns), {"units": "nm"}),
        },
        attrs={"quantity": quantity, "units": "count" if quantity == "counts" else "1"},
    )


@pytest.mark.parametrize("big_endian", [False, True])
def test_energies_and_pixel_from_the_caller(tmp_path, pages, big_endian):
    path = tiff(tmp_path / "stack.tif", pages, big_endian=big_endian)
    assert reader.refuse(path) is None
    stack = check_stack(reader.open(path, energies=ENERGIES, pixel_nm=(20.0, 25.0)))
    np.testing.assert_array_equal(stack.values, pages)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_allclose(stack.y, 20 * np.arange(4))
    np.testing.assert_allclose(stack.x, 25 * np.arange(5))
    assert stack.dtype == np.float32
    assert stack.attrs["quantity"] == "counts"
    assert stack.attrs["source_format"] == "tiff"


def test_falling_energies_are_sorted(tmp_path, pages):
    path = tiff(tmp_path / "stack.tif", pages)
    stack = reader.open(path, energies=ENERGIES[::-1], pixel_nm=25)
    np.testing.assert_array_equal(stack.values, pages[::-1])


@pytest.mark.parametrize("name", ["stack_energies.txt", "stack.txt", "stack.csv"])
@pytest.mark.parametrize(
    "text",
    [
        "640.0\n642.5\n645.0\n",
        "# pixel_nm: 25\nenergy_eV\n640.0\n642.5\n645.0\n",
        "energy (keV), dwell\n0.640, 1\n0.6425, 1\n0.645, 1\n",
    ],
)
def test_energies_from_text_beside_it(tmp_path, pages, name, text):
    path = tiff(tmp_path / "stack.tif", pages)
    (tmp_path / name).write_text(text)
    stack = reader.open(path, pixel_nm=None if "pixel" in text else 25)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_allclose(stack.x, 25 * np.arange(5))


def test_settings_beside_it(tmp_path, pages, caplog):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pages.astype(np.float32) / 1000, photometric="minisblack")
    text = "# quantity: counts\n# pixel_nm: 20, 25\n# origin_nm: 5, 7\n640\n642.5\n645\n"
    (tmp_path / "stack.txt").write_text(text)
    stack = reader.open(path)
    assert stack.attrs["quantity"] == "counts"
    np.testing.assert_allclose(stack.y, 5 + 20 * np.arange(4))
    np.testing.assert_allclose(stack.x, 7 + 25 * np.arange(5))
    assert not caplog.records
    (tmp_path / "stack.txt").write_text(text.replace("# quantity: counts\n", ""))
    assert reader.open(path).attrs["quantity"] == "optical_density"
    assert "taken as optical density" in caplog.text
    sidecar = tmp_path / "stack_energies.txt"
    sidecar.write_text(text.replace("counts", "mass"))
    with pytest.raises(FileError, match=r"stack_energies\.txt: quantity is 'mass'"):
        reader.open(path)
    sidecar.write_text(text.replace("20, 25", "wide"))
    with pytest.raises(FileError, match="setting is not a number"):
        reader.open(path)


def test_a_text_of_that_name_may_be_anything(tmp_path, pages, caplog):
    path = tiff(tmp_path / "stack.tif", pages)
    (tmp_path / "stack.txt").write_text("Notes of the beamtime, 3 pages long.\n")
    stack = reader.open(path, energies=ENERGIES, pixel_nm=25)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    assert "stack.txt" in caplog.text
    assert "not taken as a list of energies" in caplog.text


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m", "nm"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_energies_and_pixel_of_imagej(tmp_path, pages, unit, byteorder):
    path = tmp_path / "stack.tif"
    labels = [f"slice at {energy} eV" for energy in ENERGIES]
    scale = 1e-3 if unit == "nm" else 1.0
    tifffile.imwrite(
        path,
        pages,
        imagej=True,
        byteorder=byteorder,
        resolution=(40.0 * scale, 50.0 * scale),
        metadata={"axes": "ZYX", "Labels": labels, "unit": unit},
    )
    stack = reader.open(path)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_allclose(stack.x, 25 * np.arange(5), rtol=1e-4)
    np.testing.assert_allclose(stack.y, 20 * np.arange(4), rtol=1e-4)
    np.testing.assert_array_equal(stack.values, pages)


def test_energies_and_pixel_of_ome(tmp_path, pages):
    path = tmp_path / "stack.ome.tif"
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 0.025,
        "PhysicalSizeXUnit": "\xb5m",
        "PhysicalSizeY": 20.0,
        "PhysicalSizeYUnit": "nm",
        "Channel": {"Name": [f"{energy / 1000} keV" for energy in ENERGIES]},
    }
    tifffile.imwrite(path, pages, metadata=metadata)
    stack = reader.open(path)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_allclose(stack.x, 25 * np.arange(5))
    np.testing.assert_allclose(stack.y, 20 * np.arange(4))


def test_a_single_image_with_its_energy_in_its_name(tmp_path, pages):
    path = tiff(tmp_path / "sample_642.5eV_a.tif", pages[:1], per_centimetre=400_000)
    stack = reader.open(path)
    assert stack.energy.values.tolist() == [642.5]
    np.testing.assert_allclose(stack.x, 25 * np.arange(5))
    np.testing.assert_array_equal(stack.values, pages[:1])


def test_the_resolution_of_a_printer_is_no_pixel_size(tmp_path, pages):
    path = tiff(tmp_path / "stack.tif", pages, per_centimetre=118)
    with pytest.raises(FileError, match=r"no pixel size\. Write '# pixel_nm: 25' into stack_ener"):
        reader.open(path, energies=ENERGIES)


def test_what_to_provide_is_told(tmp_path, pages):
    path = tiff(tmp_path / "stack.tif", pages)
    with pytest.raises(FileError, match=r"no energies for its 3 pages.*stack_energies\.txt"):
        reader.open(path, pixel_nm=25)
    with pytest.raises(FileError, match="2 energies for 3 pages"):
        reader.open(path, energies=ENERGIES[:2], pixel_nm=25)
    with pytest.raises(FileError, match="lie outside"):
        reader.open(path, energies=[0.64, 0.6425, 0.645], pixel_nm=25)
    with pytest.raises(InputError, match="pixel_nm"):
        reader.open(path, energies=ENERGIES, pixel_nm=(1.0, 2.0, 3.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("compressed", [True, False])
def test_pages_are_read_one_by_one_when_needed(tmp_path, pages, compressed):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path, pages, photometric="minisblack", compression="zlib" if compressed else None
    )
    stack = reader.open(path, energies=ENERGIES, pixel_nm=25)
    assert stack.chunks == ((1, 1, 1), (4,), (5,))
    copied = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(copied.values, pages)
    np.testing.assert_array_equal(stack.sel(energy=642.5).values, pages[1])
    path.unlink()
    with pytest.raises(FileError, match=r"stack\.tif"):
        stack.compute()


def test_pages_of_different_shape(tmp_path, pages):
    path = tmp_path / "stack.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(pages[0])
        file.write(pages[1, :3])
    with pytest.raises(FileError, match="2 series"):
        reader.open(path, energies=ENERGIES[:2], pixel_nm=25)


def test_colour_and_damaged_files(tmp_path, pages):
    path = tmp_path / "colour.tif"
    tifffile.imwrite(path, np.zeros((4, 5, 3), dtype=np.uint8), photometric="rgb")
    with pytest.raises(FileError, match="colour"):
        reader.open(path, energies=[640.0], pixel_nm=25)
    content = tiff(tmp_path / "stack.tif", pages).read_bytes()
    for length in (6, 60, 200):
        (tmp_path / "cut.tif").write_bytes(content[:length])
        with pytest.raises(FileError, match=r"cut\.tif"):
            reader.open(tmp_path / "cut.tif", energies=ENERGIES, pixel_nm=25).compute()
    (tmp_path / "text.tif").write_text("no image")
    assert "does not begin" in str(reader.refuse(tmp_path / "text.tif"))
    assert "cannot be read" in str(reader.refuse(tmp_path / "nothing.tif"))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(2, 5)),
    seed=st.integers(0, 2**32 - 1),
    quantity=st.sampled_from(["counts", "optical_density"]),
    keep_text=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, shape, seed, quantity, keep_text):
    stack = simulated(np.random.default_rng(seed).normal(3, 5, shape), quantity)
    path = tmp_path_factory.mktemp("tiff") / "sim.tif"
    reader.write(stack, path)
    if not keep_text:
        (path.parent / "sim_energies.txt").unlink()
    found = reader.open(path)
    assert found.attrs["quantity"] == quantity
    np.testing.assert_array_equal(found.values, stack.values)
    for name in ("energy", "y", "x"):
        np.testing.assert_allclose(found[name], stack[name], rtol=1e-12, err_msg=name)
    assert not list(path.parent.glob("*.part"))


def test_written_stacks_open_in_imagej(tmp_path):
    stack = simulated(np.ones((3, 4, 5)))
    reader.write(stack.chunk({"energy": 1}), tmp_path / "sim.tif")
    with tifffile.TiffFile(tmp_path / "sim.tif") as file:
        assert file.is_imagej
        assert file.imagej_metadata["slices"] == 3
        assert file.imagej_metadata["Labels"][1] == "640.25 eV"
        assert file.imagej_metadata["unit"] == "um"
        across, down = (file.pages[0].tags[f"{axis}Resolution"].value for axis in "XY")
        assert across[0] / across[1] == pytest.approx(1 / 0.03325)
        assert down[0] / down[1] == pytest.approx(1 / 0.0205)
    with pytest.raises(InputError, match="quantity"):
        reader.write(stack.assign_attrs(quantity="amplitude"), tmp_path / "sim.tif")


def test_real_tiffs_without_energies(shared_data):
    volume = shared_data / "seg-nmc-ct-nrel" / "nmc-1-cal_generatedCBD_bridge.tif"
    with pytest.raises(FileError, match="no energies for its 251 pages"):
        reader.open(volume, pixel_nm=398)
    stack = reader.open(volume, energies=700 + 0.1 * np.arange(251), pixel_nm=398)
    assert stack.shape == (251, 301, 301)
    with tifffile.TiffFile(volume) as file:
        np.testing.assert_array_equal(stack[100].values, file.pages[100].asarray())
