"""Opening and closing leaves nothing behind, and what was seen once comes back at once."""

from __future__ import annotations

import ctypes
import gc
import time

import dask.array as da
import make_files
import numpy as np
import pytest
import xarray as xr
from napari_window import settle
from qtpy.QtCore import QEventLoop, QTimer

from spectromap.plugin._companion import show
from spectromap.plugin._frames import Blocks
from spectromap.plugin._layers import content_of, stack_layers

pytestmark = pytest.mark.viewer

#: The first cycles load what napari loads only when it is needed.
FIRST, CYCLES = 3, 8
SHIFT_CYCLES = 50
LARGEST_GROWTH = 100e6
SEEN_FRAME_S = 0.05


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Ten frames of 1024 x 1024: 42 MB in memory."""
    frame = np.random.default_rng(0).poisson(1000, (1024, 1024)).astype(np.float32)
    data = frame + np.arange(10, dtype=np.float32)[:, None, None]
    return make_files.packed_frames(tmp_path_factory.mktemp("scan") / "scan.hdf5", data, "none")


def memory():
    """What the process holds, without what the C library only has not given back yet."""
    import psutil  # comes with napari, and there is none where these tests are only collected

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def live(milliseconds=30):
    """Run the event loop for a while.

    What napari deletes later, the controls of a layer above all, it deletes in a running loop only:
    4 MB for every layer that was closed.
    """
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def stacks_alive():
    return sum(isinstance(found, Blocks) for found in gc.get_objects())


def test_open_and_close(window, scan):
    sizes = []
    for _ in range(FIRST + CYCLES):
        (layer,) = window.open(scan)
        for step in range(0, 10, 3):
            window.viewer.dims.set_current_step(0, step)
        live()
        del layer
        window.viewer.layers.clear()
        live()
        sizes.append(memory())
    live(500)  # a frame may be on its way from the disk
    memory()
    assert stacks_alive() == 0
    grown = (sizes[-1] - sizes[FIRST - 1]) * SHIFT_CYCLES / CYCLES
    print(f"{SHIFT_CYCLES} stacks of 42 MB opened and closed: {grown / 1e6:+.0f} MB")
    assert grown < LARGEST_GROWTH


def test_a_frame_once_seen_comes_back_at_once(window, scan):
    window.open(scan)
    for step in range(10):
        window.viewer.dims.set_current_step(0, step)
    settle()
    took = []
    for step in (3, 7, 1, 8, 2, 6):
        started = time.perf_counter()
        window.viewer.dims.set_current_step(0, step)
        took.append(time.perf_counter() - started)
        settle()
    print(f"a frame of 1024 x 1024 seen before: {1e3 * np.median(took):.1f} ms")
    assert np.median(took) < SEEN_FRAME_S


def test_all_frames_are_read_ahead_and_seen_without_the_file(window, scan):
    (layer,) = window.open(scan)
    content = content_of(layer)
    end = time.monotonic() + 20
    while not content.frames.complete:
        assert time.monotonic() < end, "frames are read ahead as long as they fit into memory"
        live(20)
    y, x = np.array([3, 700]), np.array([1000, 20])
    np.testing.assert_array_equal(content.seen(y, x), np.asarray(layer.data)[:, y, x])
    started = time.perf_counter()
    spectrum = content.seen(512, 512)
    print(f"a spectrum of a pixel: {1e6 * (time.perf_counter() - started):.0f} us")
    assert spectrum.shape == (10,)
    assert np.isfinite(spectrum).all()


def slow_stack(frames=60):
    """A stack on a disk that takes 50 ms for a frame."""

    def frame(block_info):
        time.sleep(0.05)
        return np.full((1, 8, 8), block_info[None]["chunk-location"][0], dtype=np.float32)

    values = da.map_blocks(frame, chunks=((1,) * frames, (8,), (8,)), dtype=np.float32)
    axes = {"energy": 640.0 + np.arange(frames), "y": np.arange(8.0), "x": np.arange(8.0)}
    return xr.DataArray(values, coords=axes, dims=("energy", "y", "x"))


def test_reading_ahead_ends_with_the_layer(window):
    (layer,) = show(window.viewer, stack_layers(slow_stack()))
    frames = content_of(layer).frames
    live(300)
    window.viewer.layers.remove(layer)
    read = len(frames.kept)
    assert 2 < read < 30
    live(300)
    assert len(frames.kept) <= read + 1
    found = frames.seen(0, 0)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found)), sorted(frames.kept))
    assert found[30] == 30, "from the middle outwards"
    window.viewer.add_layer(layer)
    live(300)
    assert len(frames.kept) > read + 1, "a layer that comes back goes on reading"
