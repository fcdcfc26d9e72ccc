"""Scratch arrays give back what was put in, however they are read; slabs give what frames give."""

import gc
import os
import resource
import shlex
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from make_stacks import make

from spectromap import _streaming, align
from spectromap.io._scratch import ScratchArray, check_space, lazily
from spectromap.schema import FileError

SHAPE = (5, 7, 6)
VALUES = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    array = ScratchArray(tmp_path_factory.mktemp("scratch"), SHAPE, np.float32)
    array.write((slice(0, 2),), VALUES[:2])
    array.write((2,), VALUES[2])
    array.write((slice(3, 5), slice(0, 4)), VALUES[3:, :4])
    array.write((slice(3, 5), slice(4, 7)), VALUES[3:, 4:])
    return xr.DataArray(lazily(array, ("energy", "y", "x")))


def keys(size):
    steps = st.integers(-3, 3).filter(bool)
    ends = st.none() | st.integers(-size - 1, size + 1)
    # xarray itself cannot take an empty slice that goes backwards.
    slices = st.builds(slice, ends, ends, steps).filter(lambda s: s.step > 0 or range(size)[s])
    return slices | st.integers(-size, size - 1) | st.lists(st.integers(0, size - 1), min_size=1)


@settings(deadline=None)
@given(key=st.tuples(*map(keys, SHAPE)))
def test_any_index_reads_what_numpy_would(stored, key):
    expected = xr.DataArray(VALUES, dims=stored.dims)[key]
    assert np.array_equal(stored[key].values, expected.values)


def test_reading_leaves_nothing_in_memory(stored):
    before = type(stored.variable._data)
    assert float(stored.sum()) == float(VALUES.sum(dtype=np.float64))
    assert type(stored.variable._data) is before


def test_nothing_is_left_in_the_folder(tmp_path):
    array = ScratchArray(tmp_path, (4, 4), np.float32)
    array.write((slice(0, 4),), np.ones((4, 4)))
    if os.name == "posix":
        assert not list(tmp_path.iterdir())
    del array
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_is_an_error_that_says_so(tmp_path):
    array = ScratchArray(tmp_path, (64, 64), np.float64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(FileError, match="scratch data could not be kept") as caught:
            array.write((slice(0, 64),), np.ones((64, 64)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileError, match="scratch space are needed"):
        check_space(tmp_path, 10**18)
    with pytest.raises(FileError, match="could not be kept"):
        ScratchArray(tmp_path / "missing", (4,), np.float32)


@pytest.mark.parametrize("on_disk", [False, True])
def test_slabs_are_cut_from_what_apply_shifts_makes(tmp_path, monkeypatch, on_disk):
    made = make(seed=3, shape=(40, 44), n_energies=10, photons=500.0)
    if on_disk:
        monkeypatch.setattr(_streaming, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(_streaming, "SLAB_BYTES", 4 * 10 * 44 * 7)
    frames = _streaming.Frames.read(made.stack, 0.0, tmp_path, False)
    shifts = align.zero_shifts(made.stack)
    dy = float(made.stack.y[1] - made.stack.y[0])
    rng = np.random.default_rng(0)
    shifts["shift_y"][:] = dy * rng.uniform(-9, 9, 10)
    shifts["shift_x"][:] = dy * rng.uniform(-9, 9, 10)
    shifts["shift_y"][4] = 60 * dy  # further than the frame is high
    shifts["flagged"][7] = True
    whole = align.apply_shifts(frames.stack, shifts).values
    slabs = frames.slabs()
    assert [r for slab in slabs for r in slab] == list(range(40))
    assert len(slabs) > 3
    for rows in slabs:
        part = frames.aligned(shifts, rows).values
        assert np.array_equal(part, whole[:, rows.start : rows.stop], equal_nan=True)
    for pixels in (rng.integers(0, 40 * 44, 200), rng.integers(20 * 44, 23 * 44, 5)):
        for index, points in frames.points(pixels, shifts, (0, 4, 9)):
            expected = whole[index].ravel()[pixels]
            assert np.array_equal(np.isnan(points), np.isnan(expected))
            assert np.allclose(points, expected, rtol=2e-6, equal_nan=True)


def test_binned_frames_keep_counts_and_places():
    stack = make(seed=3, shape=(41, 46), n_energies=3, photons=500.0).stack
    small = _streaming.binned(stack, 4, False)
    assert small.shape == (3, 10, 11)
    inside = stack.values[:, :40, :44]
    assert np.allclose(small.values.sum(axis=(1, 2)), inside.sum(axis=(1, 2)), rtol=1e-6)
    assert np.allclose(small.y.values, stack.y.values[:40].reshape(10, 4).mean(axis=1))


@pytest.mark.parametrize("on_disk", [False, True])
def test_maps_grow_by_slabs(tmp_path, monkeypatch, on_disk):
    if on_disk:
        monkeypatch.setattr(_streaming, "IN_MEMORY_BYTES", 0)
    stack = make(seed=3, shape=(40, 44), n_energies=3).stack[:, :12, :9]
    store = _streaming.MapStore(stack, tmp_path)
    whole = xr.Dataset(
        {
            "thickness": (("y", "x"), np.random.default_rng(0).random((12, 9), dtype=np.float32)),
            "flags": (("y", "x"), np.arange(108, dtype=np.int32).reshape(12, 9)),
        },
        attrs={"fraction": "mn3"},
    )
    whole["thickness"].attrs["units"] = "nm"
    for rows in (range(0, 5), range(5, 6), range(6, 12)):
        store.put(rows, whole.isel(y=slice(rows.start, rows.stop)))
    maps = store.dataset()
    assert maps.attrs == whole.attrs
    assert maps["thickness"].attrs["units"] == "nm"
    for name in whole:
        assert maps[name].dtype == whole[name].dtype
        assert np.array_equal(maps[name].values, whole[name].values)


def test_machine_code_that_cannot_be_kept_does_not_stop_a_run(tmp_path):
    code = (
        "import numpy as np; from spectromap._numerics import sample_shifted;"
        "print(sample_shifted(np.ones((9, 9)), 0.5, 0.5)[4, 4])"
    )
    run = f"ulimit -f 2; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):  # the second time there may be half of it
        done = subprocess.run(
            ["bash", "-c", run], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(1.0)
    for kept in tmp_path.rglob("*.nb*"):
        kept.write_bytes(b"nonsense")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
