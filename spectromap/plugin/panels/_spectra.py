"""The panel of live spectra: of the pixel under the cursor and of regions, with fit and numbers.

Before I0 is known they are counts; then optical densities with their error; once the energy is
calibrated also the fit by the references. All comes from `spectromap.pipeline.Analysis`.
"""

from __future__ import annotations

import functools
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QPushButton,
    QSplitter,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from spectromap.figures import component_label
from spectromap.plugin._alive import is_alive
from spectromap.plugin._companion import FROM_END
from spectromap.plugin._frames import kept_frames
from spectromap.plugin._layers import Content, content_of
from spectromap.plugin._shown import ROLE, layer_of
from spectromap.plugin.panels._curves import Counts, Curves, Row, Spectrum, write_spectra
from spectromap.plugin.panels._regions import box_of, emitters, is_box, label_mask, pixels, selected
from spectromap.schema import LOG, SpectromapError

__all__ = ["SpectrumPanel"]

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

#: A region is taken again so long after the last change of its layer.
REST_MS = 60
#: An answer that has not come after so long never will.
PATIENCE_S = 2.0
#: While frames are being read, the spectrum under the cursor is looked up so often.
POLL_MS = 200
#: Regions that are kept have the colours after those of cursor and region, then other lines.
FIRST_KEPT = 2
LINES = ("-", "--", ":")
PLOT_PX, LEAST_PLOT_PX, SIDE_PX, NAME_PX = 740, 220, 500, 130
#: A fraction that could be anything.
NOTHING = "?"
LINE_PX = 20
REMOVE, REMOVE_COLUMN = "✕", 5
FILTERS = ("Table (*.csv)", "Picture (*.png)", "Drawing (*.pdf)", "Drawing (*.svg)")
#: What was said of a component stays when its reference is taken from elsewhere.
KEPT_KEYS = ("valence", "scale", "fwhm_eV", "relative_error")


def _spectrum_of_pixel(analysis: Any, mask: Mask, fit: bool) -> Spectrum | None:
    """The spectrum of one pixel; of one that has none nothing, and no word: the mouse moves on."""
    with _unheard():
        try:
            return _spectrum_of_region(analysis, mask, fit)
        except SpectromapError:
            return None


def _spectrum_of_region(analysis: Any, mask: Mask, fit: bool) -> Spectrum:
    """The spectrum of a region, without its fit where the energy is not calibrated any more."""
    found = analysis.spectrum(mask)
    if not fit:
        names = [str(name) for name in found.data_vars]
        found = found[[name for name in names if name.startswith("optical_density")]]
    return Spectrum.of(found)


@contextmanager
def _unheard() -> Iterator[None]:
    """Nobody hears the warnings of this thread meanwhile."""
    here = get_ident()

    def others(record: Any) -> bool:
        return bool(record.thread != here)

    LOG.addFilter(others)
    try:
        yield
    finally:
        LOG.removeFilter(others)


def _while_alive(method: Callable[..., None]) -> Callable[..., None]:
    """A method that others call, and that does nothing once its widget is gone."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any) -> None:
        if is_alive(self):
            method(self, *args)

    return guarded


class SpectrumPanel(QWidget):
    """Spectrum of the pixel under the cursor, of a region, and of regions that are kept.

    Parameters
    ----------
    session : spectromap.plugin._session.Session
        What the viewer works on.

    Attributes
    ----------
    plot : Plot
        The plot; a click chooses the energy.
    table : QTableWidget
        The spectra with their numbers.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        self.plot = Curves()
        self._cursor = Row("spectrum of cursor", "cursor", 0)
        self._region: Row | None = None
        self._kept: list[Row] = []
        self._stack: xr.DataArray | None = None
        self._own: Content | None = None
        self._position: tuple[float, ...] = ()
        self._basis: tuple[Any, bool] = (None, False)
        self._generation = 0
        self._waiting = (0.0, False)
        self._numbers = itertools.count()
        self._followed: weakref.ref[Any] | None = None
        self._build()
        self._moving = self._timer(0, self._look)
        self._reading = self._timer(POLL_MS, self._look)
        self._resting = self._timer(REST_MS, self._take_region)
        self._connect()
        self._session_changed()
        self._follow_active()

    def _timer(self, milliseconds: int, method: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(milliseconds)
        timer.timeout.connect(method)
        return timer

    # --- widgets -------------------------------------------------------------------------------

    def _build(self) -> None:
        side = QWidget()
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        self.table = _table()
        self.table.itemSelectionChanged.connect(self._show)
        self.table.cellClicked.connect(self._clicked)
        column.addWidget(self.table, 1)
        column.addWidget(self._naming_row())
        column.addLayout(self._button_grid())
        parts = QSplitter(Qt.Orientation.Horizontal)
        parts.addWidget(self.plot)
        parts.addWidget(side)
        parts.setStretchFactor(0, 1)
        parts.setStretchFactor(1, 0)
        parts.setSizes([PLOT_PX, SIDE_PX])
        parts.setChildrenCollapsible(False)
        self.plot.setMinimumSize(LEAST_PLOT_PX, 120)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2, 2, 2, 2)
        layout.addWidget(parts)
        self.plot.picked.connect(self._pick_energy)
        self.plot.restyled.connect(self._show)

    def _button_grid(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setSpacing(3)
        self.buttons: dict[str, QPushButton] = {}
        for number, (name, text, tip, method) in enumerate(
            (
                ("pin", "Pin region", "Keep the spectrum of this region in the list.", self.pin),
                (
                    "save",
                    "Save spectra…",
                    "Save all spectra of the list as a table (CSV), or the plot (PNG, PDF, SVG).",
                    self._ask_file,
                ),
                (
                    "i0",
                    "Use region as I0",
                    "Take I0 from this region, which has to be free of sample: a rectangle as"
                    " i0.region, any other as i0.mask.",
                    self.use_as_i0,
                ),
                (
                    "reference",
                    "Use region as reference…",
                    "Take the spectrum of this region as the reference of a component. The box"
                    " around the region is used, so draw a rectangle.",
                    self._ask_name,
                ),
            )
        ):
            button = QPushButton(text)
            button.setToolTip(tip)
            button.clicked.connect(functools.partial(_call, weakref.WeakMethod(method)))
            grid.addWidget(button, number // 2, number % 2)
            self.buttons[name] = button
        return grid

    def _naming_row(self) -> QWidget:
        """Where the component of a reference is typed; hidden until it is needed."""
        self.naming = QWidget()
        row = QHBoxLayout(self.naming)
        row.setContentsMargins(0, 0, 0, 0)
        self.name_edit = QLineEdit()
        self.name_edit.setPlaceholderText("component, such as mn3")
        self.name_edit.setToolTip("Name of the component: letters, digits and _.")
        self.name_edit.returnPressed.connect(self._name_given)
        row.addWidget(self.name_edit, 1)
        for text, tip, method in (
            ("Set", "Use the region as the reference of this component.", self._name_given),
            ("Cancel", "Leave the references as they are.", self.naming.hide),
        ):
            button = QPushButton(text)
            button.setToolTip(tip)
            button.clicked.connect(method)
            row.addWidget(button)
        self.naming.hide()
        return self.naming

    # --- what happens elsewhere ----------------------------------------------------------------

    def _connect(self) -> None:
        self.session.changed.connect(self._session_changed)
        self.session.found.connect(self._found)
        self.session.particle_chosen.connect(self._take_particle)
        viewer = self.session.viewer
        if viewer is None:
            return
        # napari holds methods weakly, so none of these keeps the panel.
        viewer.cursor.events.position.connect(self._moved)
        viewer.events.mouse_over_canvas.connect(self._entered)
        viewer.dims.events.current_step.connect(self._slider_moved)
        viewer.layers.selection.events.active.connect(self._follow_active)
        viewer.layers.events.removed.connect(self._layer_removed)

    @_while_alive
    def _session_changed(self) -> None:
        """Another stack, or a step that has become stale or valid again."""
        stack = self.session.stack
        if stack is not self._stack:
            if stack is None or self._stack is None or stack.shape != self._stack.shape:
                self._region, self._kept = None, []
            self._stack, self._own = stack, None
            self._forget()
            self._resting.start()
        elif self._wanted_basis() != self._basis:
            self._forget()
        self._slider_moved()

    @_while_alive
    def _found(self, _: str) -> None:
        """A step has ended: all spectra may be others."""
        self._forget()

    def _forget(self) -> None:
        """Make all spectra anew."""
        self._basis = self._wanted_basis()
        self._generation += 1
        self._waiting = (0.0, False)
        for row in self._rows():
            row.counts = row.spectrum = None
            self._ask(row)
        self._show()

    def _wanted_basis(self) -> tuple[Any, bool]:
        """What makes optical densities, None without a valid I0, and whether they can be fitted."""
        analysis = self.session.analysis if self.session.holds("i0") else None
        return analysis, analysis is not None and self.session.holds("energy")

    # --- the cursor ----------------------------------------------------------------------------

    @_while_alive
    def _moved(self, event: Any) -> None:
        """The mouse has moved; of several moves only the last counts."""
        viewer = self.session.viewer
        if viewer is None or self._stack is None or not self.isVisible():
            return
        self._position = tuple(viewer.cursor.position)
        if not self._moving.isActive():
            self._moving.start()

    @_while_alive
    def _entered(self, event: Any) -> None:
        """The mouse has come into the canvas, or left it."""
        viewer = self.session.viewer
        if viewer is not None and not viewer.mouse_over_canvas:
            self._position = ()
            self._look()

    def _look(self) -> None:
        """Get the spectrum under the cursor."""
        pixel = self._pixel()
        if pixel is None:
            gone = self._cursor.mask is not None
            self._cursor.mask = self._cursor.spectrum = None
            self._cursor.name = "cursor"
            if gone:
                self._show()
            return
        assert self._stack is not None, "without a stack there is no pixel"
        mask = np.zeros(self._stack.shape[1:], dtype=bool)
        mask[pixel] = True
        self._cursor.mask = mask
        self._cursor.name = f"cursor ({pixel[1]}, {pixel[0]})"
        self._ask(self._cursor)

    def _pixel(self) -> tuple[int, int] | None:
        """Row and column under the cursor, None outside the field."""
        viewer = self.session.viewer
        if self._stack is None or viewer is None or viewer.dims.ndisplay != 2:
            return None
        if len(self._position) < 2:
            return None
        place = pixels(np.array(self._position[-2:], dtype=np.float64), self._stack)
        if not np.isfinite(place).all():
            return None
        y, x = (int(value) for value in np.rint(place))
        ny, nx = self._stack.shape[1:]
        return (y, x) if 0 <= y < ny and 0 <= x < nx else None

    # --- regions -------------------------------------------------------------------------------

    @_while_alive
    def _follow_active(self, event: Any = None) -> None:
        """Listen to the layer that is selected, if regions are drawn in it."""
        viewer = self.session.viewer
        active = None if viewer is None else viewer.layers.selection.active
        before = None if self._followed is None else self._followed()
        if active is before:
            return
        if before is not None:
            for emitter in emitters(before):
                emitter.disconnect(self._region_changed)
        self._followed = None
        if active is not None and emitters(active):
            self._followed = weakref.ref(active)
            for emitter in emitters(active):
                emitter.connect(self._region_changed)
            # Layers of a step that has ended select themselves; that is nobody's choice of region.
            if ROLE not in active.metadata:
                self._resting.start()

    @_while_alive
    def _region_changed(self, event: Any = None) -> None:
        """A shape or label has changed, or another one was selected."""
        layer = None if self._followed is None else self._followed()
        region = (
            None if self._region is None or self._region.layer is None else self._region.layer()
        )
        if layer is None:
            return
        made_anew = event is not None and event.type == "data" and ROLE in layer.metadata
        if layer is region or not made_anew:
            self._resting.start()

    @_while_alive
    def _layer_removed(self, event: Any) -> None:
        """Without its layer a region is gone, unless it is kept."""
        region = self._region
        if region is None or region.layer is None or region.layer() is not event.value:
            return
        self._region = None
        self.session.told.emit(
            "info", f"The layer of {region.name} was removed. Spectra that are pinned stay."
        )
        self._show()

    def _take_region(self) -> None:
        """Take the shape or label that is selected as the region."""
        layer = None if self._followed is None else self._followed()
        viewer = self.session.viewer
        if layer is None or viewer is None or self._stack is None or layer not in viewer.layers:
            return
        name, mask = selected(layer, self._stack, viewer.dims.point)
        self._set_region(name, mask, layer)

    @_while_alive
    def _take_particle(self, label: int) -> None:
        """Take a particle as the region."""
        layer = layer_of(self.session.viewer, "particles")
        if not label or self._stack is None or layer is None:
            return
        self._set_region(f"particle {label}", label_mask(layer, label, self._stack), layer)

    def _set_region(self, name: str, mask: Mask, layer: Any) -> None:
        before = self._region
        if not mask.any():
            self._region = None
        elif (
            before is None
            or before.name != name
            or before.mask is None
            or (not np.array_equal(before.mask, mask))
        ):
            self._region = Row("spectrum of region", name, 1, mask=mask, layer=weakref.ref(layer))
            self._ask(self._region)
        if self._region is not before:
            self.naming.hide()
            self._show()

    def pin(self) -> None:
        """Keep the spectrum of the region."""
        region = self._region
        if region is None:
            return
        number = next(self._numbers)
        others = [row for row in self._kept if row.name.partition(" (")[0] == region.name]
        name = f"{region.name} ({len(others) + 1})" if others else region.name
        colours = len(self.plot.colours) - FIRST_KEPT
        kept = Row(
            f"spectrum of kept {number}",
            name,
            FIRST_KEPT + len(self._kept) % colours,
            LINES[len(self._kept) // colours % len(LINES)],
            mask=region.mask,
        )
        self._kept.append(kept)
        self._ask(kept)
        self._show()

    # --- spectra -------------------------------------------------------------------------------

    def _rows(self) -> list[Row]:
        """What is in the list."""
        return [self._cursor, *([self._region] if self._region is not None else []), *self._kept]

    def _ask(self, row: Row) -> None:
        """Have the spectrum of a row made."""
        if row.mask is None or self._stack is None:
            return
        analysis, fit = self._basis
        if row is self._cursor:
            self._ask_cursor(analysis, fit)
        elif analysis is not None:
            self._later(row, _spectrum_of_region, analysis, row.mask, fit)
        else:
            counts = row.counts or Counts.none(self._stack.sizes["energy"])
            self._later(row, counts.more, self._content(), *np.nonzero(row.mask))

    def _ask_cursor(self, analysis: Any, fit: bool) -> None:
        """Have that of the cursor made, one at a time: the session drops what it need not finish.

        While the mouse moves, a newer position would come before any answer.
        """
        if analysis is None:
            self._look_up()
            return
        since = self._waiting[0]
        if time.monotonic() - since < PATIENCE_S:
            self._waiting = (since, True)
            return
        self._waiting = (time.monotonic(), False)
        self._later(self._cursor, _spectrum_of_pixel, analysis, self._cursor.mask, fit)

    def _later(self, row: Row, function: Callable[..., Any], *args: Any) -> None:
        """Do something for a row in the background; the panel and the row may go meanwhile."""
        itself, whose, generation = weakref.ref(self), weakref.ref(row), self._generation

        def done(answer: Any) -> None:
            panel, asked = itself(), whose()
            if panel is None or asked is None or not is_alive(panel):
                return
            if generation == panel._generation:
                panel._answered(asked, answer)

        self.session.task(row.key, function, *args, done=done)

    def _answered(self, row: Row, answer: Any) -> None:
        """Take what was found in the background."""
        if row is self._cursor:
            moved, self._waiting = self._waiting[1], (0.0, False)
            if row.mask is not None:
                row.spectrum = answer
                self._show_cursor()
            if moved:
                self._ask(row)
        elif any(row is other for other in self._rows()) and row.mask is not None:
            if isinstance(answer, Counts):
                row.counts = answer
                answer = self._of_counts(row.counts.values, int(row.mask.sum()))
                if not row.counts.read.all():
                    self._ask(row)
            row.spectrum = answer
            self._show()

    def _look_up(self) -> None:
        """Counts under the cursor, in the frames that are in memory."""
        pixel, content = self._pixel(), self._content()
        if pixel is None or content is None:
            return
        values = content.seen(*pixel)
        values = np.abs(values) if np.iscomplexobj(values) else values
        self._cursor.spectrum = self._of_counts(np.asarray(values, dtype=np.float64), 1)
        self._show_cursor()
        frames = content.frames
        if frames is not None and not frames.complete:
            self._reading.start()

    def _of_counts(self, values: Values, pixels: int) -> Spectrum:
        assert self._stack is not None, "counts come from a stack"
        energy = np.asarray(self._stack["energy"].values, dtype=np.float64)
        quantity = str(self._stack.attrs.get("quantity", "counts")).replace("_", " ")
        return Spectrum(energy, values, quantity, pixels)

    def _content(self) -> Content:
        """The stack with the frames of it that are in memory, those of the viewer if it has it."""
        assert self._stack is not None, "without a stack there is nothing to read"
        layer = layer_of(self.session.viewer, "stack")
        content = None if layer is None else content_of(layer)
        if content is not None and content.array.shape == self._stack.shape:
            return content
        if self._own is None:
            _, frames = kept_frames(self._stack, functools.partial(_tell, weakref.ref(self)))
            self._own = Content(self._stack, "", frames=frames)
        return self._own

    # --- the window ----------------------------------------------------------------------------

    @_while_alive
    def _slider_moved(self, event: Any = None) -> None:
        """Draw the line at the energy of the slider."""
        viewer = self.session.viewer
        if viewer is None or self._stack is None or viewer.dims.ndim < FROM_END:
            return
        energies = self._stack["energy"].values
        step = viewer.dims.current_step[viewer.dims.ndim - FROM_END]
        if 0 <= step < energies.size:
            self.plot.show_energy(float(energies[step]))

    def _pick_energy(self, energy: float) -> None:
        """Move the slider to the frame next to an energy."""
        viewer = self.session.viewer
        if viewer is None or self._stack is None or viewer.dims.ndim < FROM_END:
            return
        step = int(np.argmin(np.abs(self._stack["energy"].values - energy)))
        viewer.dims.set_current_step(viewer.dims.ndim - FROM_END, step)

    def _chosen(self) -> Row | None:
        """The region that is selected in the list, else that of the layer."""
        lines = {item.row() for item in self.table.selectedItems()}
        rows = self._rows()
        chosen = [rows[number] for number in lines if number < len(rows)]
        return next((row for row in chosen if row is not self._cursor), self._region)

    def _front(self) -> Row | None:
        """What is drawn with its fit: the cursor while it is over the field, else a region."""
        if self._cursor.spectrum is not None:
            return self._cursor
        row = self._chosen()
        return row if row is not None else next(iter(self._kept), None)

    def _show_cursor(self) -> None:
        """Show another spectrum of the cursor, and nothing else."""
        if self._cursor.spectrum is None or self.table.rowCount() != len(self._rows()):
            self._show()
            return
        self.plot.show_front(self._cursor)
        self._fill(0, self._cursor)
        self.buttons["save"].setEnabled(True)

    @_while_alive
    def _show(self) -> None:
        """Show everything."""
        rows = self._rows()
        self.plot.show_rows(rows, self._front())
        self.table.blockSignals(True)
        self.table.setRowCount(len(rows))
        self.table.setHorizontalHeaderLabels(self._headings())
        for number, row in enumerate(rows):
            self._fill(number, row)
        self.table.blockSignals(False)
        for name in ("pin", "i0", "reference"):
            self.buttons[name].setEnabled(self._chosen() is not None)
        self.buttons["pin"].setEnabled(self._region is not None)
        self.buttons["save"].setEnabled(any(row.spectrum is not None for row in rows))

    def _fraction(self) -> str:
        """The component whose fraction is told."""
        analysis, _ = self._basis
        return "" if analysis is None else str(analysis.plan.fraction)

    def _headings(self) -> list[str]:
        found = next((r.spectrum.found for r in self._rows() if r.spectrum is not None), None)
        relative = (
            found is not None
            and "thickness" in found
            and (found["thickness"].attrs.get("units") != "nm")
        )
        return [
            "spectrum",
            f"{component_label(self._fraction())} fraction".strip(),
            "thickness" if relative else "thickness [nm]",
            "chi²",
            "pixels",
            "",
        ]

    def _fill(self, number: int, row: Row) -> None:
        """Write one line of the list."""
        one, name = row.spectrum, f"{self._fraction()}_fraction"
        texts = [row.name, "", "", "", "", REMOVE if row in self._kept else ""]
        if one is not None:
            error = one.number(f"{name}_errors")
            texts[1] = _with_error(one.number(name), error) if not error >= 1 else NOTHING
            texts[2] = _with_error(one.number("thickness"), one.number("thickness_errors"))
            texts[3] = f"{one.number('chi2'):.2f}" if one.fitted else ""
            texts[4] = str(one.pixels)
        for column, text in enumerate(texts):
            self._cell(number, column).setText(text)
        first = self._cell(number, 0)
        first.setToolTip("Column and row of the pixel" if row is self._cursor else row.name)
        first.setData(Qt.ItemDataRole.DecorationRole, QColor(self.plot.colours[row.colour]))
        tip = "Remove this spectrum from the list." if texts[REMOVE_COLUMN] else ""
        self._cell(number, REMOVE_COLUMN).setToolTip(tip)

    def _cell(self, number: int, column: int) -> QTableWidgetItem:
        """A cell of the list, made if it is new."""
        item = self.table.item(number, column)
        if item is None:
            item = QTableWidgetItem()
            self.table.setItem(number, column, item)
        return item

    def _clicked(self, number: int, column: int) -> None:
        """A click on the cross removes a spectrum that is kept."""
        rows = self._rows()
        if column == REMOVE_COLUMN and number < len(rows) and rows[number] in self._kept:
            self.table.clearSelection()
            self._kept.remove(rows[number])
            self._show()

    # --- what regions are good for -------------------------------------------------------------

    def use_as_i0(self) -> None:
        """Take I0 from the region."""
        row = self._chosen()
        if row is None or row.mask is None:
            return
        try:
            if is_box(row.mask):
                value = {"region": self.session.region_in_file(*box_of(row.mask))}
            else:
                value = {"mask": self.session.keep_image("i0", row.mask, mask=True)}
        except (SpectromapError, OSError) as error:
            self.session.told.emit("error", str(error))
            return
        self.session.change(("i0",), value)
        self.session.told.emit("info", f"I0 is taken from {row.name}. Run the steps from I0 on.")

    def use_as_reference(self, component: str) -> None:
        """Take the region as the reference of a component.

        Parameters
        ----------
        component : str
            Its name, such as mn3.
        """
        row = self._chosen()
        if row is None or row.mask is None:
            return
        stack = self.session.state.value("stack")
        if not component.isidentifier():
            self.session.told.emit(
                "error", f"'{component}' cannot name a component: use letters, digits and _."
            )
            return
        if not isinstance(stack, str):
            self.session.told.emit(
                "error", "A reference has to be in one file, but this stack is made of several."
            )
            return
        before = self.session.state.value("references").get(component) or {}
        kept = {key: before[key] for key in KEPT_KEYS if before.get(key) is not None}
        region = self.session.region_in_file(*box_of(row.mask))
        self.session.change(("references", component), {**kept, "file": stack, "region": region})
        text = f"{component_label(component)} is taken from {row.name}."
        if not is_box(row.mask):
            text += " A reference needs a rectangle, so the box around the region is used."
        self.session.told.emit("info", text)

    def _ask_name(self) -> None:
        """Ask for the component, in the panel."""
        self.naming.show()
        self.name_edit.setFocus()
        self.name_edit.selectAll()

    def _name_given(self) -> None:
        self.naming.hide()
        self.use_as_reference(self.name_edit.text().strip())

    def _ask_file(self) -> None:
        """Ask for a file, and let everything go on meanwhile."""
        dialog = QFileDialog(self, "Save spectra", "spectra.csv", ";;".join(FILTERS))
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("csv")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self.save)
        dialog.open()

    def save(self, path: str | Path) -> None:
        """Save all spectra of the list.

        Parameters
        ----------
        path : path-like
            A table (.csv), or a picture of the plot (.png, .pdf, .svg).
        """
        shown = {row.name: row.spectrum for row in self._rows() if row.spectrum is not None}
        try:
            if Path(path).suffix.lower() == ".csv":
                write_spectra(path, shown)
            else:
                self.plot.save(path)
        except SpectromapError as error:
            self.session.told.emit("error", str(error))
        else:
            self.session.told.emit("info", f"saved: {path}")


def _table() -> QTableWidget:
    """An empty list of spectra."""
    table = QTableWidget(0, REMOVE_COLUMN + 1)
    table.setToolTip(
        "Spectra in the plot. Errors are those of the photons alone (68 %); chi² well above"
        " one says that the references fit less well than the noise allows. Select a spectrum to"
        " see its fit; the one under the cursor has its fit while the mouse is over the field."
    )
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setShowGrid(False)
    lines: Any = table.verticalHeader()
    lines.hide()
    lines.setDefaultSectionSize(LINE_PX)
    header: Any = table.horizontalHeader()
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
    header.resizeSection(0, NAME_PX)
    header.setStretchLastSection(True)
    return table


def _with_error(value: float, error: float) -> str:
    """A number with its standard error, to two digits of that; empty where there is none."""
    if not np.isfinite(value):
        return ""
    if not np.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _call(method: weakref.WeakMethod[Any], *_: Any) -> None:
    """Call a method whose button must not keep its panel."""
    found = method()
    if found is not None:
        found()


def _tell(panel: weakref.ref[SpectrumPanel], message: str) -> None:
    """Say what is wrong with a file."""
    found = panel()
    if found is not None and is_alive(found):
        found.session.told.emit("error", message)
