"""`spectromap view` and the sample data: the same window by other doors."""

from __future__ import annotations

import os
import subprocess
import sys

import make_files
import numpy as np
import pytest
from make_results import only_maps
from napari_window import settle

import spectromap.plugin
from spectromap import open_stack
from spectromap.io.results import write_result
from spectromap.plugin._layers import content_of
from spectromap.plugin.state import State
from spectromap.schema import FileError

pytestmark = pytest.mark.viewer


#: In a process of its own, because it ends the application when the window is closed.
VIEW_AND_CLOSE = """
import sys, napari
from napari.qt import get_qapp
from qtpy.QtCore import QTimer
from spectromap.plugin import view

application = get_qapp()


def look_and_close():
    viewer = napari.current_viewer()
    if viewer is None or "scan" not in viewer.layers:
        return
    timer.stop()
    viewer.screenshot("view.png", canvas_only=False, flash=False)
    print(*(layer.name for layer in viewer.layers if layer.visible), sep=", ")
    print(viewer.title, *viewer.scene.camera.orientation)
    viewer.close()
    application.quit()


timer = QTimer()
timer.timeout.connect(look_and_close)
timer.start(200)
view(["result.h5", "scan.hdf5"])
print("closed")
"""


def test_view_opens_files_and_returns_when_the_window_is_closed(napari_with_plugin, tmp_path):
    make_files.pollux(tmp_path / "scan.hdf5")
    write_result(only_maps(), tmp_path / "result.h5")
    done = subprocess.run(
        [sys.executable, "-c", VIEW_AND_CLOSE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.splitlines() == [
        "thickness [nm], Mn³⁺ fraction, scan",
        "spectromap: result.h5, scan.hdf5 towards up right",
        "closed",
    ]
    assert (tmp_path / "view.png").stat().st_size > 10_000


def test_a_bad_file_is_told_before_a_window_appears(napari_with_plugin, tmp_path):
    before = len(napari_with_plugin.Viewer._instances)
    with pytest.raises(FileError, match="there is no such file"):
        spectromap.plugin.view(tmp_path / "missing.hdf5")
    assert len(napari_with_plugin.Viewer._instances) == before


VIEW = "import sys; from spectromap.plugin import view; {}; view('scan.hdf5')"


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("", "there is no screen"), ("sys.modules['napari'] = None", "pip install")],
    ids=["screen", "napari"],
)
def test_what_is_missing_is_named(tmp_path, missing, expected):
    make_files.pollux(tmp_path / "scan.hdf5")
    without = {k: v for k, v in os.environ.items() if "DISPLAY" not in k and k[:3] != "QT_"}
    done = subprocess.run(
        [sys.executable, "-c", VIEW.format(missing or "pass")],
        cwd=tmp_path,
        env=os.environ if missing else without,
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "InputError" in last
    assert expected in last


def test_without_napari_the_package_and_the_state_still_work(tmp_path):
    code = "import sys; sys.modules['napari'] = None; import spectromap.plugin.state"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_sample_is_the_field_of_the_demonstration(window, tmp_path):
    (layer,) = window.viewer.open_sample("spectromap", "lmr_field")
    settle()
    content = content_of(layer)
    assert layer.data.shape == (60, 190, 220)
    np.testing.assert_allclose(layer.scale, (1, 7, 7))
    folder = os.path.dirname(content.source)
    description = State.from_yaml(os.path.join(folder, "RUN.yaml"))
    assert description.value("stack") == content.source
    np.testing.assert_array_equal(np.asarray(layer.data[30]), open_stack(content.source)[30].values)
    window.viewer.dims.set_current_step(0, 30)
    window.picture(tmp_path / "sample.png")
