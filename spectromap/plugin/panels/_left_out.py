"""Frames and pixels that are left out, and where registration looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QLabel, QWidget

from spectromap.io.masks import read_mask
from spectromap.pipeline import in_stack_order
from spectromap.plugin._layers import placement
from spectromap.plugin._session import Session
from spectromap.plugin._shown import ROLE, layer_of
from spectromap.plugin.panels._controls import button, column
from spectromap.plugin.panels._regions import selected
from spectromap.plugin.panels._shift_plot import DIGITS, Table, frame_at
from spectromap.schema import InputError, SpectromapError

__all__ = ["LeftOut", "described", "left_out_energies"]

Mask = NDArray[np.bool_]

LEFT_OUT = "left out"


def described(session: Session, section: str, key: str) -> Any:
    """A value of the run description; None where it is not set, whatever else is wrong."""
    with suppress(InputError):
        return session.state.value(section, key)
    return None


def left_out_energies(session: Session) -> list[float]:
    """Energies in eV of the frames that are left out."""
    with suppress(TypeError, ValueError):  # somebody is still typing them
        return [float(energy) for energy in described(session, "exclude", "energies") or ()]
    return []


class LeftOut(QWidget):
    """Controls that leave frames and pixels out, and that choose where registration looks."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._energies: NDArray[np.float64] = np.zeros(0)
        self._frame = 0
        #: The file whose pixels the layer of those left out shows.
        self._file: str | None = None
        self._build()
        self.leave_out.clicked.connect(self._leave_frame_out)
        self.paint.clicked.connect(self._paint)
        self.apply_mask.clicked.connect(self._apply_mask)
        self.clear_mask.clicked.connect(self._clear_mask)
        self.use_area.clicked.connect(self._use_area)
        self.clear_area.clicked.connect(self._clear_area)

    def _build(self) -> None:
        self.leave_out = QCheckBox("Leave this frame out")
        self.leave_out.setToolTip("The frame is used for nothing, from the step Data on")
        self.leave_out.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.paint = button("Paint", "Paint on a layer of pixels that are to be left out")
        self.apply_mask = button("Leave out", "Leave the painted pixels out of every frame")
        self.clear_mask = button("Clear", "Use all pixels again")
        self.use_area = button(
            "Use selection",
            "Let registration look only at the chosen shapes, or at what is painted on the"
            " chosen labels layer",
        )
        self.clear_area = button("Clear", "Let registration look at the whole frame again")
        self.out_title, self.area_title = QLabel(), QLabel()
        grid = column(self)
        grid.addWidget(self.out_title, 0, 0, 1, 3)
        grid.addWidget(self.leave_out, 1, 0, 1, 3)
        for number, one in enumerate((self.paint, self.apply_mask, self.clear_mask)):
            grid.addWidget(one, 2, number)
        grid.addWidget(self.area_title, 3, 0, 1, 3)
        grid.addWidget(self.use_area, 4, 0, 1, 2)
        grid.addWidget(self.clear_area, 4, 2)

    def show_frame(self, table: Table, frame: int) -> None:
        """Show what is left out, and whether the chosen frame is."""
        self._energies, self._frame = table.energies, frame
        any_frame = bool(table.energies.size)
        self.leave_out.setChecked(any_frame and bool(table.excluded[frame]))
        self._follow_mask()
        mask, area = (described(self.session, name, "mask") for name in ("exclude", "shifts"))
        for one in (self.leave_out, self.paint, self.apply_mask, self.use_area):
            one.setEnabled(any_frame)
        self.clear_mask.setEnabled(mask is not None or self._layer() is not None)
        self.clear_area.setEnabled(area is not None)
        self.out_title.setText("<b>Leave out</b>" + (" · a mask is in use" if mask else ""))
        self.area_title.setText(f"<b>Registration looks at</b> {'an area' if area else 'all'}")

    def _layer(self) -> Any:
        """The layer to paint on, None where there is none."""
        return layer_of(self.session.viewer, LEFT_OUT)

    def _leave_frame_out(self, out: bool) -> None:
        energies = left_out_energies(self.session)
        kept = [e for e in energies if frame_at(self._energies, e) != self._frame]
        own = [round(float(self._energies[self._frame]), DIGITS)] if out else []
        self.session.change(("exclude", "energies"), sorted(kept + own))

    def _paint(self) -> None:
        """Make the layer to paint on, or go to it."""
        viewer, stack = self.session.viewer, self.session.stack
        if viewer is None or stack is None:
            return
        with self._telling():
            layer = self._layer()
            if layer is None:
                path = described(self.session, "exclude", "mask")
                layer = viewer.add_labels(
                    _read_drawn(path, stack),
                    name="left out pixels",
                    metadata={ROLE: LEFT_OUT},
                    **placement(stack[0]),
                )
                self._file = path
            layer.visible = True
            layer.selected_label = 1
            layer.mode = "paint"
            viewer.layers.selection.active = layer
            self.clear_mask.setEnabled(True)

    def _follow_mask(self) -> None:
        """Let the painted layer show what the description says, such as after undo."""
        layer, path = self._layer(), described(self.session, "exclude", "mask")
        stack = self.session.stack
        if layer is None or path == self._file:
            return
        self._file = path
        if stack is None or layer.data.shape != stack.shape[1:]:
            self.session.viewer.layers.remove(layer)
            return
        with self._telling():
            layer.data = _read_drawn(path, stack)

    def _apply_mask(self) -> None:
        with self._telling():
            layer = self._layer()
            if layer is None or not np.any(layer.data):
                raise InputError(
                    "no pixels are painted", where="exclude.mask", remedy="Paint some first."
                )
            self._file = self.session.keep_image("exclude", layer.data > 0, mask=True)
            self.session.change(("exclude", "mask"), self._file)

    def _clear_mask(self) -> None:
        layer = self._layer()
        if layer is not None:
            self.session.viewer.layers.remove(layer)
        self.clear_mask.setEnabled(False)
        self.session.change(("exclude", "mask"), None)

    def _use_area(self) -> None:
        """Let registration look only at the chosen shapes or labels."""
        viewer, stack = self.session.viewer, self.session.stack
        if viewer is None or stack is None:
            return
        with self._telling():
            if described(self.session, "shifts", "file") is not None:
                raise InputError("the shifts come from a file", where="shifts.mask")
            path = self.session.keep_image("align", _drawn_area(viewer, stack), mask=True)
            self.session.change(("shifts", "mask"), path)

    def _clear_area(self) -> None:
        self.session.change(("shifts", "mask"), None)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the user of mistakes instead of raising them."""
        try:
            yield
        except SpectromapError as error:
            self.session.told.emit("error", str(error))


def _read_drawn(path: str | None, stack: xr.DataArray) -> NDArray[np.uint8]:
    """A mask of the description in the order of the stack; empty where there is none."""
    if path is None:
        return np.zeros(stack.shape[1:], dtype=np.uint8)
    return np.asarray(in_stack_order(read_mask(path), stack, str(path))).astype(np.uint8)


def _drawn_area(viewer: Any, stack: xr.DataArray) -> Mask:
    """Pixels of the stack in the selected shapes, or with the selected label, of the layer."""
    from napari.layers import Labels, Shapes

    layer = viewer.layers.selection.active
    if isinstance(layer, (Labels, Shapes)):
        _, area = selected(layer, stack[0], viewer.dims.point)
        if area.any():
            return area
    raise InputError(
        "nothing is selected",
        where="shifts.mask",
        remedy="Draw on a shapes or labels layer over the frame, and select that layer.",
    )
