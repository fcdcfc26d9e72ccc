"""A real napari window as a test handles it."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from pathlib import Path

import numpy as np

MANIFEST = Path(__file__).resolve().parents[2] / "spectromap" / "plugin" / "napari.yaml"


class Window:
    """A viewer, what it told the user, and pictures of it."""

    def __init__(self, viewer, notifications):
        self.viewer = viewer
        self._notifications = notifications
        self._before = len(notifications.records)

    def open(self, path, **options):
        """Open a file as napari does when this plugin is chosen."""
        layers = self.viewer.open(path, plugin="spectromap", **options)
        settle()
        return layers

    @property
    def messages(self):
        """What was told since the window was opened, with its severity."""
        records = self._notifications.records[self._before :]
        return [(str(record.severity), record.message) for record in records]

    def picture(self, path):
        """Screenshot of the window, saved."""
        settle()
        self.viewer.screenshot(str(path), canvas_only=False, flash=False)
        assert path.stat().st_size > 10_000

    def colour_at(self, y, x):
        """Colour of the canvas at a place in nm, from its screenshot."""
        settle()
        shot = self.viewer.screenshot(canvas_only=True, flash=False)
        camera, size = self.viewer.scene.camera, np.array(shot.shape[:2])
        logical = np.array(self.viewer.canvas.size)
        offset = (np.array([y, x]) - np.array(camera.center[-2:])) * camera.zoom
        offset[0] *= -1  # y upwards, rows of a picture downwards
        row, column = np.round((logical / 2 + offset) * size / logical).astype(int)
        return shot[row, column, :3].astype(int)


def settle():
    """Let Qt draw what it has to draw."""
    from qtpy.QtCore import QEvent
    from qtpy.QtWidgets import QApplication

    for _ in range(10):
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, 0)
        # Outside an event loop nobody else carries out what was to be deleted later.
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


@contextmanager
def opened_window(napari):
    """A window of 1280 x 800."""
    from napari.utils.notifications import notification_manager

    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(1280, 800)
    settle()
    yield Window(viewer, notification_manager)
    if viewer in type(viewer)._instances:
        viewer.close()
    settle()
    gc.collect()
