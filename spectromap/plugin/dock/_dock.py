"""The dock: the whole method from top to bottom, what each step needs, and what it has done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QSize, Qt, QTimer
from qtpy.QtGui import QKeySequence, QShortcut  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QDockWidget,
    QFrame,
    QMainWindow,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from spectromap.plugin._alive import is_alive
from spectromap.plugin._session import Session
from spectromap.plugin._shown import Shown
from spectromap.plugin.dock._entries import LAST, SAVE, as_tip
from spectromap.plugin.dock._head import REDO, UNDO, Head
from spectromap.plugin.dock._saving import Saving
from spectromap.plugin.dock._section import Section
from spectromap.plugin.panels._frames_panel import FramesPanel
from spectromap.plugin.panels._particles import ParticlePanel
from spectromap.plugin.panels._spectra import SpectrumPanel
from spectromap.plugin.state import STEPS, Status

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Dock"]

WIDTH, LEAST_WIDTH, HEIGHT, PANELS_HEIGHT = 372, 300, 700, 230
PANELS_NAME = "spectromap: data"


class Dock(QWidget):
    """The method from top to bottom, for one viewer.

    Parameters
    ----------
    viewer : napari.Viewer
        Its window; what is found is shown there.

    Attributes
    ----------
    session : Session
        What is worked on.
    sections : dict of str to Section
        The steps by their names.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.session = Session(viewer)
        self.shown = Shown(self.session)
        self._docked = self._arranged = self._ended = False
        self.head = Head(self.session, self.run, self.show_panels)
        self.sections = {
            step.name: Section(self.session, step, self.run) for step in STEPS if step.name != SAVE
        }
        self.preview = QCheckBox("Preview")
        self.preview.setToolTip(
            as_tip("Show the fraction in the visible part of the picture before it is mapped.")
        )
        self.preview.setChecked(True)
        self.preview.clicked.connect(self.shown.preview)
        self.sections["composition"].add_control(self.preview)
        self.saving = Saving(self.session, self.head, self.run)
        self._lay_out()
        self._make_panels()
        for keys, pressed in ((UNDO, self.head.undo), (REDO, self.head.redo)):
            QShortcut(QKeySequence(keys), self).activated.connect(pressed)
        # Several changes that follow each other are shown once.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self.refresh)
        self.session.changed.connect(self._soon.start)
        self.session.found.connect(self._found)
        self.session.progressed.connect(self.head.progress)
        self.session.told.connect(self.head.message.tell)
        self.destroyed.connect(self.session.close)
        self.refresh()
        self.unfold_current()

    def _lay_out(self) -> None:
        column = QWidget()
        layout = QVBoxLayout(column)
        layout.setContentsMargins(6, 2, 6, 6)
        layout.setSpacing(4)
        for section in self.sections.values():
            layout.addWidget(section)
        layout.addWidget(self.saving)
        layout.addStretch(1)
        self.area = QScrollArea()
        self.area.setWidgetResizable(True)
        self.area.setFrameShape(QFrame.Shape.NoFrame)
        self.area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.area.setWidget(column)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addWidget(self.head)
        whole.addWidget(self.area, 1)

    def _make_panels(self) -> None:
        """Put spectra, frames and particles into tabs below the picture."""
        self.panels = QTabWidget()
        self.spectra = SpectrumPanel(self.session)
        self.frames = FramesPanel(self.session)
        self.particles = ParticlePanel(self.session)
        for panel, title in (
            (self.spectra, "Spectra"),
            (self.frames, "Frames"),
            (self.particles, "Particles"),
        ):
            self.panels.addTab(panel, title)
        self.show_panels()

    def show_panels(self) -> None:
        """Show the tabs below the picture, also after they were closed."""
        viewer = self.session.viewer
        if viewer is None:
            return
        if self.panels.parent() is None:
            viewer.window.add_dock_widget(self.panels, area="bottom", name=PANELS_NAME)
            self.panels.show()
        around: Any = self.panels.parent()
        around.show()
        around.raise_()

    def showEvent(self, event: Any) -> None:
        """Take the whole height of the window, which the tabs below the picture would share."""
        super().showEvent(event)
        if not self._arranged:
            self._arranged = True
            QTimer.singleShot(0, self._arrange)

    def _arrange(self) -> None:
        window, around = self.window(), self.parent()
        if not isinstance(window, QMainWindow) or not isinstance(around, QDockWidget):
            return
        window.setCorner(Qt.Corner.BottomRightCorner, Qt.DockWidgetArea.RightDockWidgetArea)
        around.setMinimumWidth(LEAST_WIDTH)  # without it Qt keeps to what it was before its style
        window.resizeDocks([around], [WIDTH], Qt.Orientation.Horizontal)
        below = self.panels.parent()
        if isinstance(below, QDockWidget):
            window.resizeDocks([below], [PANELS_HEIGHT], Qt.Orientation.Vertical)

    def sizeHint(self) -> QSize:
        """As wide as the forms need."""
        return QSize(WIDTH, HEIGHT)

    # --- what it shows -------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show the state of the session."""
        state = self.session.state
        content, problems = state.content(), state.problems()
        self.head.refresh()
        for name, section in self.sections.items():
            section.refresh(content, problems.get(name, ()))
        self.saving.refresh()

    def _found(self, step: str) -> None:
        self.sections[step].take_found()

    def unfold_current(self) -> None:
        """Unfold the first step that is not done, and only that."""
        done = self.session.state.status
        current = next((n for n in self.sections if done(n) is not Status.DONE), LAST)
        for name, section in self.sections.items():
            section.open(name == current)

    # --- what the user does --------------------------------------------------------------------

    def run(self, step: str) -> None:
        """Do every step up to one, by what the editors say now.

        Parameters
        ----------
        step : str
            Its name.
        """
        focused = QApplication.focusWidget()
        if focused is not None and self.isAncestorOf(focused):
            focused.clearFocus()  # what is being typed counts
        self.head.message.dismiss()
        self.session.run(step)

    # --- its end -------------------------------------------------------------------------------

    def event(self, event: Any) -> bool:
        """End with the dock widget that napari takes it out of when it is closed."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is None and self._docked:
                self.end()
            self._docked = True
        return bool(super().event(event))

    def end(self) -> None:
        """Close the session, and what belongs to it below the picture."""
        if self._ended:
            return
        self._ended = True
        viewer = self.session.viewer
        self.session.close()
        if viewer is not None and is_alive(self.panels) and self.panels.parent() is not None:
            viewer.window.remove_dock_widget(self.panels)
        for widget in (self.panels, self):
            if is_alive(widget):
                widget.deleteLater()
