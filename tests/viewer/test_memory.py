"""Opening and closing leaves nothing behind, and what was seen once comes back at once."""

from __future__ import annotations

import ctypes
import gc
import time

import make_files
import numpy as np
import pytest
from napari_window import settle

from spectromap.plugin._frames import Blocks

pytestmark = pytest.mark.viewer

CYCLES = 20
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


def stacks_alive():
    return sum(isinstance(found, Blocks) for found in gc.get_objects())


def test_open_and_close(window, scan):
    sizes = []
    for _ in range(CYCLES):
        (layer,) = window.open(scan)
        for step in range(10):
            window.viewer.dims.set_current_step(0, step)
        settle()
        del layer
        window.viewer.layers.clear()
        settle()
        sizes.append(memory())
    assert stacks_alive() == 0
    # What remains is one texture of 4.2 MB for each layer that napari has ever drawn, whoever made
    # it: an image added as a NumPy array leaves as much behind.
    grown = sizes[-1] - sizes[1]  # the first ones load what napari loads only when it is needed
    print(f"{CYCLES} stacks of 42 MB opened and closed: {grown / 1e6:+.0f} MB")
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
