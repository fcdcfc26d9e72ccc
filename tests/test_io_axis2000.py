"""aXis2000 ``.ncb`` and ``.dat``; no real file is at hand, so all are made to the rules."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_text_files import ncb
from numpy.typing import NDArray

from spectromap.io import axis2000
from spectromap.schema import FileError, InputError, check_stack

ENERGIES = [640.0, 642.5, 645.0]


@pytest.fixture
def frames() -> NDArray[np.float64]:
    """Three frames of 4 rows and 5 columns of counts."""
    return 200.0 + np.arange(3 * 4 * 5).reshape(3, 4, 5)


@pytest.mark.parametrize("scale", [-1.0, 1.0, 10.0])
@pytest.mark.parametrize("ending", [".ncb", ".dat"])
def test_columns_vary_fastest_and_scale_tells_the_type(tmp_path, frames, scale, ending):
    path = ncb(tmp_path, frames, ENERGIES, scale=scale, x=(0.0, 0.4), y=(1.0, 1.6))
    assert axis2000.refuse(path.with_suffix(ending)) is None
    stack = check_stack(axis2000.open(path.with_suffix(ending)))
    np.testing.assert_allclose(stack.values, frames, rtol=1e-6)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_allclose(stack.x, [0, 100, 200, 300, 400])
    np.testing.assert_allclose(stack.y, [1000, 1200, 1400, 1600])
    np.testing.assert_allclose(stack.dwell_time, 1.5e-3)
    assert stack.dtype == np.float32
    assert stack.attrs["quantity"] == "counts"
    assert stack.attrs["units"] == "count"
    assert stack.attrs["source_format"] == "axis2000"
    assert stack.attrs["source_file"] == str(path)


def test_a_reversed_range_means_flip(tmp_path, frames):
    path = ncb(tmp_path, frames, ENERGIES, scale=-1, x=(0.4, 0.0), y=(1.6, 1.0))
    stack = axis2000.open(path)
    np.testing.assert_allclose(stack.x, [0, 100, 200, 300, 400])
    np.testing.assert_allclose(stack.y, [1000, 1200, 1400, 1600])
    np.testing.assert_array_equal(stack.values, frames[:, ::-1, ::-1])


def test_falling_energies_are_sorted(tmp_path, frames):
    path = ncb(tmp_path, frames, ENERGIES[::-1], scale=-1, x=(0, 0.4), y=(1, 1.6), dwell=None)
    stack = axis2000.open(path)
    np.testing.assert_allclose(stack.energy, ENERGIES)
    np.testing.assert_array_equal(stack.values, frames[::-1])
    assert "dwell_time" not in stack.coords


def test_lines_of_names_with_spaces_and_lines_without_dwell(tmp_path, frames):
    path = ncb(tmp_path, frames, ENERGIES, scale=-1, x=(0, 0.4), y=(1, 1.6))
    description = path.with_suffix(".dat")
    told = description.read_text()
    description.write_text(told.replace("image", "an image "))
    np.testing.assert_allclose(axis2000.open(path).dwell_time, 1.5e-3)
    description.write_text(told.replace("1.500000", ""))
    assert "dwell_time" not in axis2000.open(path).coords


def test_optical_density_is_recognised_or_told(tmp_path, frames, caplog):
    density = frames / 150.0
    path = ncb(tmp_path, density, ENERGIES, scale=1000.0, x=(0, 0.4), y=(1, 1.6))
    stack = axis2000.open(path)
    np.testing.assert_allclose(stack.values, density, atol=5e-4)
    assert stack.attrs["quantity"] == "optical_density"
    assert stack.attrs["units"] == "1"
    assert "taken as optical density" in caplog.text
    assert axis2000.open(path, quantity="counts").attrs["quantity"] == "counts"
    with pytest.raises(InputError, match="'mass' is not one of"):
        axis2000.open(path, quantity="mass")


def test_frames_are_read_one_by_one_when_needed(tmp_path, frames):
    path = ncb(tmp_path, frames, ENERGIES, scale=-1, x=(0, 0.4), y=(1, 1.6))
    stack = axis2000.open(path)
    assert stack.chunks == ((1, 1, 1), (4,), (5,))
    copied = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(copied.values, frames)
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(stack[:2].values, frames[:2])
    with pytest.raises(FileError, match=r"stack\.ncb"):
        stack[2].compute()


@pytest.mark.parametrize("change", [-1, 1, -80, 80])
def test_a_file_of_another_size(tmp_path, frames, change):
    path = ncb(tmp_path, frames, ENERGIES, scale=-1, x=(0, 0.4), y=(1, 1.6))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(FileError, match=r"bytes where 3 frames of 4 x 5 take 240"):
        axis2000.open(path)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "5 4", "line 1 should hold 3 numbers"),
        (0, "5 4 0", "scale is 0"),
        (0, "5.5 4 1", r"5\.5 columns"),
        (1, "left right", "line 2 should hold 2 numbers"),
        (3, "0", "0 energies"),
        (3, "90", "line 8 should hold 1 number"),
        (5, "nan", "line 6 should hold 1 number"),
        (5, "0.64", "lie outside"),
    ],
)
def test_a_damaged_description(tmp_path, frames, line, text, message):
    path = ncb(tmp_path, frames, ENERGIES, scale=-1, x=(0, 0.4), y=(1, 1.6))
    description = path.with_suffix(".dat")
    lines = description.read_text().split("\n")
    lines[line] = text
    description.write_text("\n".join(lines))
    with pytest.raises(FileError, match=message):
        axis2000.open(path)


def test_other_files_are_refused_with_a_reason(tmp_path, frames):
    (tmp_path / "alone.ncb").write_bytes(b"\0" * 8)
    assert "no alone.dat" in str(axis2000.refuse(tmp_path / "alone.ncb"))
    path = ncb(tmp_path, frames, ENERGIES, scale=-1, x=(0, 0.4), y=(1, 1.6))
    path.with_suffix(".dat").write_text("energy od\n640 1\n")
    assert "line 1 should hold 3 numbers" in str(axis2000.refuse(path))
    path.with_suffix(".dat").write_bytes(b"\0\1")
    assert "binary" in str(axis2000.refuse(path))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5)),
    seed=st.integers(0, 2**32 - 1),
    reverse_x=st.booleans(),
    reverse_y=st.booleans(),
    floats=st.booleans(),
)
def test_any_stack(tmp_path_factory, shape, seed, reverse_x, reverse_y, floats):
    folder = tmp_path_factory.mktemp("ncb")
    values = np.random.default_rng(seed).integers(0, 3000, shape).astype(float)
    energies = [700.0 + index for index in range(shape[0])]
    x, y = (0.0, 0.1 * (shape[2] - 1)), (2.0, 2.0 + 0.3 * (shape[1] - 1))
    path = ncb(
        folder,
        values,
        energies,
        scale=-1.0 if floats else 10.0,
        x=x[::-1] if reverse_x else x,
        y=y[::-1] if reverse_y else y,
    )
    expected = values[:, :: -1 if reverse_y else 1, :: -1 if reverse_x else 1]
    stack = check_stack(axis2000.open(path))
    np.testing.assert_allclose(stack.values, expected, rtol=1e-6)
    np.testing.assert_allclose(stack.x, 100 * np.arange(shape[2]), atol=1e-3)
    np.testing.assert_allclose(stack.y, 2000 + 300 * np.arange(shape[1]), atol=1e-3)
