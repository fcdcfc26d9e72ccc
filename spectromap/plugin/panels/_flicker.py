"""Comparing a frame with others in the canvas: the layer that flickers, and what controls it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import QComboBox, QLabel, QSpinBox, QWidget

from spectromap.plugin._alive import while_alive
from spectromap.plugin._layers import placement
from spectromap.plugin._session import Session
from spectromap.plugin._shown import ROLE, layer_of, visible_box
from spectromap.plugin.panels._comparison import (
    ALTERNATE,
    DIFFERENCE,
    OVERLAY,
    Box,
    Partner,
    Picture,
    Wanted,
    pictures,
)
from spectromap.plugin.panels._controls import button, column
from spectromap.plugin.panels._shift_plot import Table

__all__ = ["ARROWS", "Compare", "Flicker"]

FLICKER = "flicker"
BESIDE, BEFORE, AFTER, MEAN = "Both neighbours", "Frame before", "Frame after", "All frames"
#: Arrow keys and which way the picture goes, y upwards.
ARROWS = {"Up": (1, 0), "Down": (-1, 0), "Left": (0, -1), "Right": (0, 1)}
#: Frames of at most so many pixels along a side are compared whole, wherever one looks.
WHOLE_PX = 1024
#: The mean of all frames is one of at most so many of them.
MEAN_FRAMES = 24
REST_MS = 150


class Flicker(QObject):
    """A layer that alternates between pictures, while it is there and somebody looks."""

    #: Number of the picture that is seen now.
    turned = Signal(int)
    #: The layer has gone, whoever removed it.
    ended = Signal()
    #: An arrow key was pressed on the layer: which way (y, x), and whether by a small step.
    pushed = Signal(int, int, bool)

    def __init__(self, session: Session, parent: QObject) -> None:
        super().__init__(parent)
        self._session = session
        self._pictures: list[Picture] = []
        self._turn = 0
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._turn_over)
        session.viewer.layers.events.removed.connect(while_alive(self._removed))

    @property
    def ticking(self) -> bool:
        """Whether pictures alternate."""
        return bool(self._timer.isActive())

    def layer(self) -> Any:
        """The layer, None where there is none."""
        return layer_of(self._session.viewer, FLICKER)

    def set_speed(self, per_second: int) -> None:
        """Choose how often the picture changes."""
        self._timer.setInterval(round(1000 / per_second))

    def set_visible(self, visible: bool) -> None:
        """Show or hide the layer, if it is there."""
        layer = self.layer()
        if layer is not None:
            layer.visible = visible

    def show(self, box: Box, pictures: list[Picture]) -> None:
        """Put pictures into the layer, which is made if it is not there."""
        viewer, stack = self._session.viewer, self._session.stack
        if viewer is None or stack is None:
            self.pause()
            return
        self._pictures = pictures
        self._turn %= len(pictures)
        place, layer = _placed(stack, box), self.layer()
        if layer is None:
            self._add(viewer, pictures[self._turn], place)
        else:
            layer.data = pictures[self._turn]
            layer.scale, layer.translate = place["scale"], place["translate"]
            layer.visible = True
        self.resume()

    def _add(self, viewer: Any, picture: Picture, place: dict[str, Any]) -> None:
        layer = viewer.add_image(
            picture, rgb=True, name="flicker", metadata={ROLE: FLICKER}, cache=False, **place
        )
        push = while_alive(self._push)
        for name, way in ARROWS.items():
            for key, small in ((name, False), (f"Shift-{name}", True)):
                layer.bind_key(key, lambda _, step=(*way, small): push(step), overwrite=True)

    def _push(self, step: tuple[int, int, bool]) -> None:
        self.pushed.emit(*step)

    def _removed(self, _: Any) -> None:
        if self.layer() is None and self._pictures:
            self._forget()
            self.ended.emit()

    def _turn_over(self) -> None:
        layer = self.layer()
        if layer is None or len(self._pictures) < 2:
            self.pause()
            return
        self._turn = (self._turn + 1) % len(self._pictures)
        # Two layers that take turns are slower: a software OpenGL then draws both every time.
        layer.data = self._pictures[self._turn]
        self.turned.emit(self._turn)

    def resume(self) -> None:
        """Go on after `pause`, if there are two pictures."""
        if len(self._pictures) < 2:
            self.pause()
        elif not self.ticking:
            self._timer.start()
        self.turned.emit(self._turn)

    def pause(self) -> None:
        """Stand still."""
        self._timer.stop()

    def end(self) -> None:
        """Remove the layer."""
        layer = self.layer()
        self._forget()
        if layer is not None:
            self._session.viewer.layers.remove(layer)

    def _forget(self) -> None:
        self.pause()
        self._pictures = []


def _placed(stack: xr.DataArray, box: Box) -> dict[str, Any]:
    """Where a picture of a part of the common frame lies."""
    place = placement(stack[0])
    first, size = np.array(box.first), np.array(place["scale"])
    place["translate"] = tuple(place["translate"] + (first + (box.step - 1) / 2) * size)
    place["scale"] = tuple(size * box.step)
    return place


class Compare(QWidget):
    """What the chosen frame is compared with, and how."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.flicker = Flicker(session, self)
        self._partner = Partner()
        self._names = ("", "")
        self._table: Table | None = None
        self._frame = 0
        self._shifts: list[tuple[float, float]] = []
        #: The frames and what of them was asked for last.
        self._asked: tuple[Any, Wanted] | None = None
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self._compare)
        self._build()
        self._connect()

    def _build(self) -> None:
        self.others = QComboBox()
        self.others.addItems([BESIDE, BEFORE, AFTER, MEAN])
        self.others.setToolTip("What the chosen frame is compared with")
        self.how = QComboBox()
        self.how.addItems([ALTERNATE, DIFFERENCE, OVERLAY])
        self.how.setToolTip(
            "Flicker: one after the other. Difference: the frame minus the others, white where"
            " they agree. Overlay: the frame magenta, the others green, grey where they agree."
        )
        for box in (self.others, self.how):
            box.setMinimumWidth(70)  # else they keep the window from being narrow
        self.speed = QSpinBox()
        self.speed.setRange(1, 5)
        self.speed.setValue(3)
        self.speed.setSuffix(" / s")
        self.speed.setToolTip("Changes of picture per second")
        self.start = button("Compare", "Show the comparison in the canvas", checkable=True)
        self.side = QLabel()
        grid = column(self)
        grid.addWidget(QLabel("<b>Compare with</b>"), 0, 0, 1, 2)
        grid.addWidget(self.others, 1, 0, 1, 2)
        grid.addWidget(self.how, 2, 0)
        grid.addWidget(self.speed, 2, 1)
        grid.addWidget(self.start, 3, 0, 1, 2)
        grid.addWidget(self.side, 4, 0, 1, 2)

    def _connect(self) -> None:
        self.flicker.turned.connect(self._say_side)
        self.flicker.ended.connect(self._stopped)
        self.flicker.set_speed(self.speed.value())
        self.speed.valueChanged.connect(self.flicker.set_speed)
        self.others.currentIndexChanged.connect(self._compare)
        self.how.currentIndexChanged.connect(self._compare)
        self.start.toggled.connect(self._toggled)
        camera = self.session.viewer.scene.camera.events
        for event in (camera.center, camera.zoom):
            event.connect(while_alive(self._looked_elsewhere))

    def show_frame(self, table: Table, frame: int, shifts: NDArray[np.float64]) -> None:
        """Compare a frame if somebody wants to see it; `shifts` in pixels, of all frames."""
        self._table, self._frame = table, frame
        self._shifts = [(float(y), float(x)) for y, x in np.nan_to_num(shifts)]
        aligned = bool(np.isfinite(table.shifts).any())
        self.setEnabled(aligned)
        if not aligned:
            self.start.setChecked(False)
        self._compare()

    def _toggled(self, on: bool) -> None:
        self.start.setText("Stop" if on else "Compare")
        if on:
            self._compare()
        else:
            self.flicker.end()
            self._stopped()

    def _stopped(self) -> None:
        """The layer has gone: the button says so."""
        self._partner, self._asked = Partner(), None
        self.start.setChecked(False)
        self.side.setText("")

    def _looked_elsewhere(self, _: Any) -> None:
        stack = self.session.stack
        if self.start.isChecked() and stack is not None and max(stack.shape[1:]) > WHOLE_PX:
            self._rest.start()

    @property
    def _seen(self) -> bool:
        return bool(self.start.isChecked() and self.isVisible())

    def _compare(self) -> None:
        """Make the pictures of the chosen frame and of the others, in the background."""
        viewer, stack, table = self.session.viewer, self.session.stack, self._table
        if viewer is None or stack is None or table is None or not self._seen:
            return
        others, frame = self._partners(table), self._frame
        if not others or not np.isfinite(table.shifts[frame]).all():
            self._asked = None
            self.flicker.pause()
            self.side.setText("No frame to compare with")
            return
        other_shifts = tuple(self._shifts[k] for k in others)
        how, box = self.how.currentText(), _box(viewer, stack)
        wanted = Wanted(frame, others, self._shifts[frame], other_shifts, box, how)
        single = f"{table.energies[others[0]]:.2f} eV"
        mean = single if len(others) == 1 else f"mean of {len(others)} frames"
        self._names = f"{table.energies[frame]:.2f} eV", mean
        values = _values(viewer, stack)
        if self._asked is not None and self._asked[0] is values and self._asked[1] == wanted:
            self.flicker.resume()
            return
        self._asked = values, wanted
        done = while_alive(self._show)
        self.session.task("flicker", pictures, values, wanted, self._partner, done=done)

    def _partners(self, table: Table) -> tuple[int, ...]:
        """Numbers of the frames to compare the chosen one with."""
        usable = np.flatnonzero(table.usable)
        before, after = usable[usable < self._frame], usable[usable > self._frame]
        rest = np.concatenate([before, after])
        every = max(1, -(-rest.size // MEAN_FRAMES))
        chosen: dict[str, list[int]] = {
            BESIDE: [*before[-1:], *after[:1]],
            BEFORE: [*before[-1:]],
            AFTER: [*after[:1]],
            MEAN: [*rest[::every]],
        }
        return tuple(int(k) for k in chosen[self.others.currentText()])

    def _show(self, made: tuple[Box, list[Picture]]) -> None:
        if self._seen:
            self.flicker.show(*made)

    def _say_side(self, turn: int) -> None:
        """Which of the two pictures is seen."""
        how = self.how.currentText()
        if how == ALTERNATE:
            self.side.setText(f"Seen: {self._names[turn]}")
        else:
            self.side.setText((" minus " if how == DIFFERENCE else " / ").join(self._names))

    def showEvent(self, event: Any) -> None:
        """Go on where it was left."""
        super().showEvent(event)
        if self.start.isChecked():
            self.flicker.set_visible(True)
            self._compare()

    def hideEvent(self, event: Any) -> None:
        """Nothing flickers while the panel is not seen."""
        super().hideEvent(event)
        self.flicker.pause()
        self.flicker.set_visible(False)


def _box(viewer: Any, stack: xr.DataArray) -> Box:
    """What one sees of the common frame; all of a small one, wherever one looks."""
    ny, nx = stack.shape[1:]
    seen = visible_box(viewer, stack) if max(ny, nx) > WHOLE_PX else None
    if seen is None:
        return Box.of(slice(0, ny), slice(0, nx))
    return Box.of(*seen, screen=viewer.canvas.size)


def _values(viewer: Any, stack: xr.DataArray) -> Any:
    """Frames of the stack, those of its layer where it is open: they are kept once read."""
    layer = layer_of(viewer, "stack")
    if layer is None:
        return stack.data
    values = layer.data[0] if layer.multiscale else layer.data
    return values if values.shape == stack.shape else stack.data
