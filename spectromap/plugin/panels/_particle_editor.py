"""What is painted becomes the particles of the run description, and those of it are shown."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtWidgets import QApplication

from spectromap.io.masks import read_labels
from spectromap.plugin._alive import is_alive
from spectromap.plugin.panels import _labelling
from spectromap.schema import InputError
from spectromap.segment._grid import Labels

__all__ = ["Editor", "is_alive"]

#: Drawn particles are taken over so long after the last stroke.
REST_MS = 500


class Editor(QObject):
    """Takes drawn particles over into the description, and brings those of it into the layer.

    What is painted into the layer of the particles is taken over once the mouse has rested.
    """

    def __init__(self, session: Any, parent: QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._layer: Callable[[], Any] = lambda: None
        self._array: Labels | None = None
        self._base: Labels | None = None
        self._paths = self._described()
        self._due = False
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self._take_over)
        session.changed.connect(self._follow)

    # --- the layer -----------------------------------------------------------------------------

    def watch(self, layer: Any) -> None:
        """Look at another layer from now on; None where there is none any more."""
        old = self._layer()
        if layer is old:
            return
        self._rest.stop()
        if old is not None:
            for name in ("paint", "set_data"):
                getattr(old.events, name).disconnect(self._drawn)
        self._layer = weakref.ref(layer) if layer is not None else lambda: None
        self._remember(layer)
        if layer is not None:
            for name in ("paint", "set_data"):
                getattr(layer.events, name).connect(self._drawn)

    def labels(self) -> Labels:
        """The particles as they are drawn now."""
        layer = self._layer()
        if layer is None:
            raise InputError(
                "there is no layer with the particles",
                where="particles",
                remedy="Run the step Particles; it comes back if it was deleted.",
            )
        return np.asarray(layer.data)

    def _remember(self, layer: Any) -> None:
        """What the layer holds is what is described; strokes are looked for against it."""
        self._array = None if layer is None else layer.data
        self._base = None if layer is None else np.array(layer.data)

    def _drawn(self, event: Any = None) -> None:
        """Somebody has drawn, or put other labels into the layer."""
        layer = self._layer()
        if not is_alive(self) or layer is None:
            return
        if layer.data is self._array:
            self._rest.start()
            return
        strokes = self._strokes() if self._rest.isActive() else None
        self._rest.stop()
        self._remember(layer)
        if strokes is not None and strokes[0].shape == layer.data.shape:
            # A step has ended between a stroke and its taking over: the stroke is not lost.
            layer.data[strokes[0]] = strokes[1]
            layer.refresh()

    def _strokes(self) -> tuple[NDArray[np.bool_], Labels] | None:
        """Where the layer was drawn on, and what."""
        if self._array is None or self._base is None:
            return None
        changed = self._array != self._base
        return (changed, self._array[changed]) if changed.any() else None

    def _take_over(self) -> None:
        """Use what was drawn, unless a stroke is not finished yet."""
        if QApplication.mouseButtons() != Qt.MouseButton.NoButton:
            self._rest.start()
            return
        layer = self._layer()
        if layer is None or self._array is None or self._base is None:
            return
        changed = _labelling.touched(self._base, self._array)
        if changed:
            self.use(_labelling.in_one_piece(self._array, changed))

    # --- the description -----------------------------------------------------------------------

    def use(self, labels: Labels) -> None:
        """Make labels the particles of the description, and find out about them at once."""
        layer = self._layer()
        if layer is not None:
            if not np.array_equal(labels, layer.data):
                self._rest.stop()
                layer.data = labels
            self._remember(layer)
        self._describe("labels", labels)

    def use_agglomerates(self, agglomerates: Labels) -> None:
        """Make labels the agglomerates of the description."""
        self._describe("agglomerate_labels", agglomerates)

    def _describe(self, key: str, image: Labels) -> None:
        path = self._session.keep_image(key, image.astype(np.int32))
        self._paths = {**self._paths, key: path}
        self._due = True
        self._session.change((key,), path)
        self._update()

    def _described(self) -> dict[str, str | None]:
        state = self._session.state
        return {key: state.value(key) for key in ("labels", "agglomerate_labels")}

    def _follow(self) -> None:
        """After any change: other labels in the description, as after undo; a step that is due."""
        paths = self._described()
        if paths != self._paths:
            path, old = paths["labels"], self._paths["labels"]
            self._paths, self._due = paths, True
            if path is not None and path != old:
                self._session.task("drawn labels", read_labels, path, done=self._put(path))
        self._update()

    def _put(self, path: str) -> Callable[[Labels], None]:
        """What puts labels of a file into the layer, if they are still wanted."""

        def put(labels: Labels) -> None:
            layer = self._layer() if is_alive(self) else None
            if layer is None or self._paths["labels"] != path or labels.shape != layer.data.shape:
                return
            layer.data = labels
            self._remember(layer)

        return put

    def _update(self) -> None:
        """Find out about other labels at once, if that rests on maps that are there."""
        session = self._session
        if not self._due or session.busy:
            return
        self._due = False
        if session.holds("composition") and session.group("particles") is not None:
            session.run("particles")
