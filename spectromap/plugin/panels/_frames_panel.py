"""Hands on the frames: correct shifts while two pictures flicker, leave frames and pixels out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from spectromap.plugin._alive import while_alive
from spectromap.plugin._companion import FROM_END
from spectromap.plugin._layers import axis_step
from spectromap.plugin._session import Session
from spectromap.plugin.panels._controls import button, column
from spectromap.plugin.panels._flicker import ARROWS, Compare
from spectromap.plugin.panels._left_out import LeftOut, described, left_out_energies
from spectromap.plugin.panels._shift_plot import (
    DIGITS,
    Corrections,
    ShiftPlot,
    Table,
    frame_at,
    read_table,
)
from spectromap.report import format_value

__all__ = ["FramesPanel"]

SMALL_STEP_PX = 0.1
FARTHEST_NM = 1e5
QT_ARROWS = {getattr(Qt.Key, f"Key_{name}"): way for name, way in ARROWS.items()}


class FramesPanel(QWidget):
    """Shifts of all frames; corrects them by eye, leaves frames and pixels out.

    Nothing here changes a result: corrections and what is left out go into the run description,
    and the steps that rest on them have to run again.

    Parameters
    ----------
    session : Session
        What is worked on.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._dirty = True
        self._frame = 0
        #: How far pictures were moved by hand since the last correction, y and x in nm, by frame.
        self._moves: dict[int, NDArray[np.float64]] = {}
        #: The file that the moves are for.
        self._source: str | None = None
        #: The corrections that are in the shifts that were found.
        self._made: Corrections = {}
        self._table = self._read_table()
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self._build()
        self._connect()
        self._refresh()

    # --- how it is laid out --------------------------------------------------------------------

    def _build(self) -> None:
        self.plot = ShiftPlot()
        self.plot.setMinimumWidth(190)
        self.plot.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.compare, self.left_out = Compare(self.session), LeftOut(self.session)
        columns = QHBoxLayout()
        columns.setSpacing(14)
        for part in (self.compare, self._build_move(), self.left_out):
            columns.addWidget(part)
        right = QVBoxLayout()
        right.setSpacing(4)
        right.addLayout(self._build_frame())
        right.addLayout(columns, 1)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(4, 2, 4, 2)
        layout.addWidget(self.plot, 1)
        layout.addLayout(right)

    def _build_frame(self) -> QHBoxLayout:
        """Which frame, and what is known of it."""
        row = QHBoxLayout()
        for arrow, step, tip in (
            (Qt.ArrowType.LeftArrow, -1, "Go to the frame before"),
            (Qt.ArrowType.RightArrow, 1, "Go to the next frame"),
        ):
            arrow_button = QToolButton()
            arrow_button.setArrowType(arrow)
            arrow_button.setToolTip(tip)
            arrow_button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            arrow_button.clicked.connect(lambda *_, step=step: self.choose(self._frame + step))
            row.addWidget(arrow_button)
        self.about = QLabel()
        self.about.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        row.addWidget(self.about, 1)
        return row

    def _build_move(self) -> QWidget:
        part = QWidget()
        grid = column(part)
        keys = "Arrow keys: 1 pixel, with Shift 0.1 pixel."
        self.move_by = []
        grid.addWidget(QLabel("<b>Move the frame</b>"), 0, 0, 1, 3)
        for row, text in enumerate(("Up", "Right"), start=1):
            spin = QDoubleSpinBox()
            spin.setRange(-FARTHEST_NM, FARTHEST_NM)
            spin.setDecimals(2)
            spin.setSuffix(" nm")
            spin.setMinimumWidth(80)
            spin.setKeyboardTracking(False)
            spin.setToolTip(f"How far the picture of the frame is moved. {keys}")
            spin.valueChanged.connect(self._typed)
            label = QLabel(text)
            label.setToolTip(spin.toolTip())
            grid.addWidget(label, row, 0)
            grid.addWidget(spin, row, 1, 1, 2)
            self.move_by.append(spin)
        self.apply = button("Apply", "Add the moves of all frames to the corrections of the run")
        self.reset = button("Reset", "Take back the move and the correction of this frame")
        self.reset_all = button("Reset all", "Take back all moves and corrections")
        self.run = button("Align again", "Run the step Align with the corrections")
        for row, buttons in ((3, (self.apply, self.run)), (4, (self.reset, self.reset_all))):
            beside = QHBoxLayout()
            for one in buttons:
                beside.addWidget(one)
            grid.addLayout(beside, row, 0, 1, 3)
        return part

    def _connect(self) -> None:
        session, viewer = self.session, self.session.viewer
        session.changed.connect(self._follow)
        session.found.connect(self._found)
        self.plot.clicked.connect(self._clicked)
        self.compare.flicker.pushed.connect(self.push)
        self.compare.start.clicked.connect(lambda: self.setFocus())  # for the arrow keys
        self.apply.clicked.connect(self.apply_moves)
        self.reset.clicked.connect(self._reset_frame)
        self.reset_all.clicked.connect(self._reset_all)
        self.run.clicked.connect(lambda: self.session.run("align"))
        viewer.dims.events.point.connect(while_alive(self._slid))

    # --- what is known -------------------------------------------------------------------------

    def _corrections(self) -> Corrections:
        """Corrections of the run description, by the energies as the stack has them."""
        stack = self.session.stack
        energies = np.zeros(0) if stack is None else stack["energy"].values
        corrections: Corrections = {}
        with suppress(AttributeError, TypeError, ValueError):  # somebody is still typing it
            for energy, (y, x) in described(self.session, "shifts", "corrections").items():
                k = frame_at(energies, float(energy))
                key = float(energy) if k is None else round(float(energies[k]), DIGITS)
                corrections[key] = float(y), float(x)
        return corrections

    def _read_table(self) -> Table:
        """What is known of the frames, with the corrections that are not in the shifts yet."""
        stack, shifts, now = self.session.stack, self.session.group("shifts"), self._corrections()
        energies = np.zeros(0) if stack is None else stack["energy"].values.astype(np.float64)
        if shifts is not None and self.session.holds("align"):
            self._made = now
        left_out = left_out_energies(self.session)
        return read_table(energies, shifts, made=self._made, now=now, left_out=left_out)

    def _follow(self) -> None:
        """After a change of the description or of the progress, once it is seen."""
        self._dirty = True
        if self.isVisible():
            self._refresh()

    def _found(self, step: str) -> None:
        analysis = self.session.analysis
        if step == "align" and analysis is not None:
            # The description may have changed while the step ran.
            self._made = dict(analysis.plan.shift_corrections)
        self._follow()

    def _refresh(self) -> None:
        """Show what is known now."""
        self._dirty = False
        stack = self.session.stack
        source = None if stack is None else str(stack.attrs.get("source_file", ""))
        if source != self._source:
            self._source = source
            self._moves.clear()
        before, self._table = (self._table, self._frame), self._read_table()
        self._frame = min(self._at_slider(), max(self._table.energies.size - 1, 0))
        # The progress of any step calls this too, which is no reason to draw everything.
        if self._frame != before[1] or not self._table.same_as(before[0]) or not self.plot.drawn:
            self.plot.show_table(self._table, self._frame)
        self._fill()

    def _fill(self) -> None:
        """Show what is known of the chosen frame, and what can be done."""
        table, k = self._table, self._frame
        move = self._moves.get(k, np.zeros(2))
        for spin, pixel, value in zip(self.move_by, self._pixel(), move, strict=True):
            spin.blockSignals(True)
            spin.setSingleStep(SMALL_STEP_PX * pixel)
            spin.setValue(value)
            spin.setEnabled(self._movable())
            spin.blockSignals(False)
        self.about.setText(self._about())
        self._fill_buttons()
        self.left_out.show_frame(table, k)
        shifts = table.shifts.copy()
        for number, moved in self._moves.items():
            shifts[number] -= moved
        self.compare.show_frame(table, k, shifts / self._pixel())

    def _movable(self) -> bool:
        """Whether it is known where the chosen frame is."""
        table, k = self._table, self._frame
        return k < table.energies.size and bool(np.isfinite(table.shifts[k]).all())

    def _fill_buttons(self) -> None:
        """Which buttons have something to do."""
        moved, corrected = len(self._moves), self._table.corrected
        self.apply.setText("Apply" if moved < 2 else f"Apply ({moved})")
        self.apply.setEnabled(bool(moved))
        self.reset.setEnabled(
            self._frame in self._moves or bool(self._movable() and corrected[self._frame])
        )
        self.reset_all.setEnabled(bool(moved) or bool(corrected.any()))
        self.run.setText("Align again" if self.session.group("shifts") is not None else "Align")
        self.run.setEnabled(not self.session.holds("align") and not self.session.busy)

    def _about(self) -> str:
        """The chosen frame in a line, or what has to be done first."""
        table, k = self._table, self._frame
        if not table.energies.size:
            return "Open a stack first."
        text = f"<b>{table.energies[k]:.2f} eV</b>"
        if table.excluded[k]:
            text += " · left out"
        if not np.isfinite(table.shifts).any():
            return f"{text} · Run the step Align: then frames can be compared and moved."
        if not np.isfinite(table.shifts[k]).all():
            return text
        shifts = table.shifts[k] - self._moves.get(k, 0.0)
        for name, value, error in zip("yx", shifts, table.errors[k], strict=True):
            text += f" · shift {name} {format_value(float(value), float(error))} nm"
        for name, true in (
            ("could not be aligned", table.flagged[k]),
            ("corrected", table.corrected[k]),
            ("moved", k in self._moves),
        ):
            text += f" · {name}" if true else ""
        return text

    def _pixel(self) -> tuple[float, float]:
        """Size of a pixel along y and x in nm."""
        stack = self.session.stack
        return (1.0, 1.0) if stack is None else (axis_step(stack, "y"), axis_step(stack, "x"))

    # --- which frame ---------------------------------------------------------------------------

    def choose(self, frame: int) -> None:
        """Go to a frame, with the slider.

        Parameters
        ----------
        frame : int
            Its number; the first or last one if it lies beyond.
        """
        viewer, count = self.session.viewer, self._table.energies.size
        if viewer is None or not count:
            return
        frame = min(max(frame, 0), count - 1)
        axis = viewer.dims.ndim - FROM_END
        if axis >= 0:
            viewer.dims.set_current_step(axis, frame)
        self._go(frame)

    def _clicked(self, energy: float) -> None:
        if self._table.energies.size:
            self.choose(int(np.argmin(np.abs(self._table.energies - energy))))

    def _at_slider(self) -> int:
        """Number of the frame that the slider is at; of the chosen one where there is none."""
        viewer = self.session.viewer
        axis = -1 if viewer is None else viewer.dims.ndim - FROM_END
        return int(viewer.dims.current_step[axis]) if axis >= 0 else self._frame

    def _slid(self, _: Any) -> None:
        """Follow the slider."""
        self._go(self._at_slider())

    def _go(self, frame: int) -> None:
        if frame == self._frame or frame >= self._table.energies.size:
            return
        self._frame = frame
        if self.isVisible():
            self.plot.point_at(frame)
            self._fill()
        else:
            self._dirty = True

    # --- moving --------------------------------------------------------------------------------

    def push(self, up: int, right: int, small: bool) -> None:
        """Move the picture of the chosen frame.

        Parameters
        ----------
        up, right : int
            Steps upwards and to the right.
        small : bool
            By 0.1 pixel instead of 1 pixel.
        """
        length = SMALL_STEP_PX if small else 1.0
        steps = length * np.array([up, right]) * self._pixel()
        self._move(self._moves.get(self._frame, np.zeros(2)) + steps)

    def _typed(self) -> None:
        self._move(np.array([spin.value() for spin in self.move_by]))

    def _move(self, move: NDArray[np.float64]) -> None:
        """Move the chosen frame, as far as it is known where it is."""
        if not self._movable():
            return
        self._moves[self._frame] = np.round(move, DIGITS)
        if not self._moves[self._frame].any():
            del self._moves[self._frame]
        self._fill()

    def keyPressEvent(self, event: Any) -> None:
        """Arrow keys move the frame that is compared."""
        way = QT_ARROWS.get(event.key())
        if way is None or not self.compare.start.isChecked():
            super().keyPressEvent(event)
            return
        self.push(*way, bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier))

    def apply_moves(self) -> None:
        """Write the moves of all frames into the corrections of the run description."""
        corrections = self._corrections()
        for k, move in self._moves.items():
            energy = round(float(self._table.energies[k]), DIGITS)
            # What is added to the shift of a frame takes its picture the other way.
            changed = np.round(np.array(corrections.get(energy, (0.0, 0.0))) - move, DIGITS) + 0.0
            corrections[energy] = (float(changed[0]), float(changed[1]))
        self._moves.clear()
        self._write(corrections)

    def _write(self, corrections: Corrections) -> None:
        kept = {energy: list(change) for energy, change in corrections.items() if any(change)}
        self.session.change(("shifts", "corrections"), kept)
        self._refresh()

    def _reset_frame(self) -> None:
        self._moves.pop(self._frame, None)
        energy = round(float(self._table.energies[self._frame]), DIGITS)
        self._write({e: change for e, change in self._corrections().items() if e != energy})

    def _reset_all(self) -> None:
        self._moves.clear()
        self._write({})

    def showEvent(self, event: Any) -> None:
        """Show what has changed meanwhile."""
        super().showEvent(event)
        if self._dirty:
            self._refresh()
