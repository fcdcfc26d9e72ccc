"""The head of the dock: what is open, what is being done, and what was told."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QMenu,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from spectromap.plugin._alive import while_alive
from spectromap.plugin._layers import content_of
from spectromap.plugin._session import Session
from spectromap.plugin.dock._entries import LAST, as_tip
from spectromap.plugin.dock._widgets import WRONG, ask_files, button, say, wrapped
from spectromap.plugin.reader import FILES
from spectromap.plugin.state import STEPS
from spectromap.schema import pixel_size

__all__ = ["REDO", "UNDO", "Head", "Message"]

LEVELS = {"error": WRONG, "warning": "#d18f00", "info": "#3d9be0"}
MESSAGE_HEIGHT = 110
#: What a stack, a result or a run description may end with.
OPENED = (
    "Stacks, results, run descriptions (*.hdf5 *.h5 *.hdf *.he5 *.nxs *.nx5 *.nexus *.stxm *.cxi"
    " *.hdr *.xim *.ncb *.dat *.tif *.tiff *.yaml *.yml);;All files (*)"
)
UNDO, REDO = "Ctrl+Alt+Z", "Ctrl+Alt+Shift+Z"


class Message(QFrame):
    """The newest thing that was told, until it is dismissed."""

    def __init__(self) -> None:
        super().__init__()
        self.level = ""
        self.label = wrapped()
        self.label.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.label.setVisible(True)
        self._area = QScrollArea()
        self._area.setWidgetResizable(True)
        self._area.setFrameShape(QFrame.Shape.NoFrame)
        self._area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._area.setWidget(self.label)
        self.close_button = QToolButton()
        self.close_button.setText("✕")
        self.close_button.setAutoRaise(True)
        self.close_button.setToolTip(as_tip("Dismiss this message."))
        self.close_button.clicked.connect(self.dismiss)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(8, 2, 2, 2)
        layout.addWidget(self._area, 1)
        layout.addWidget(self.close_button, 0, Qt.AlignmentFlag.AlignTop)
        self.setObjectName("message")
        self.setVisible(False)

    @property
    def text(self) -> str:
        """What is shown; empty after it was dismissed."""
        return self.label.text() if self.level else ""

    def tell(self, level: str, text: str) -> None:
        """Show a text; what went wrong is not covered by what merely happened."""
        if level == "info" and self.level in ("error", "warning"):
            return
        self.level = level
        self.label.setText(text)
        colour = LEVELS.get(level, LEVELS["info"])
        self.setStyleSheet(f"#message {{ border-left: 4px solid {colour}; }}")
        self.setVisible(True)
        self._fit()

    def dismiss(self) -> None:
        """Say nothing any more."""
        self.level = ""
        self.setVisible(False)

    def resizeEvent(self, event: Any) -> None:
        """The height follows the text."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        wide = max(self._area.viewport().width(), 100)  # type: ignore[union-attr]
        self._area.setFixedHeight(min(self.label.heightForWidth(wide) + 4, MESSAGE_HEIGHT))


class Head(QWidget):
    """What is open, how to open something else, and what is being done.

    Parameters
    ----------
    session : Session
        Whose head it is.
    run : callable
        Told the name of the step that is to be done.
    show_panels : callable
        Shows the tabs below the picture.
    """

    def __init__(
        self, session: Session, run: Callable[[str], None], show_panels: Callable[[], None]
    ) -> None:
        super().__init__()
        self._session = session
        self._described: object = None
        self._folder = ""
        self.file, self.about = wrapped(), wrapped()
        self.message = Message()
        self.bar = QProgressBar()
        self.bar.setToolTip(as_tip("What is being done, and how far it is."))
        self.bar.setFormat("")
        policy = self.bar.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.bar.setSizePolicy(policy)
        self.bar.setVisible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 2)
        layout.setSpacing(4)
        layout.addLayout(self._opening())
        for widget in (self.file, self.about):
            layout.addWidget(widget)
        layout.addLayout(self._running(run, show_panels))
        layout.addWidget(self.bar)
        layout.addWidget(self.message)

    def _opening(self) -> QHBoxLayout:
        self.open_button = button(
            "Open…", "Open a stack, a result or a run description.", self.ask_open
        )
        self.layer_button = button(
            "Use layer", "Work on the file of the selected layer.", self.use_layer
        )
        self.sample_button = QPushButton("Sample data")
        self.sample_button.setToolTip(as_tip("Simulate a field to try the method on."))
        menu = QMenu(self.sample_button)
        self.sample_action: Any = menu.addAction("Simulated LMR field", self.use_sample)
        self.sample_button.setMenu(menu)
        row = QHBoxLayout()
        for widget in (self.open_button, self.layer_button, self.sample_button):
            row.addWidget(widget)
        return row

    def _running(self, run: Callable[[str], None], show_panels: Callable[[], None]) -> QHBoxLayout:
        self.run_button = button(
            "Run all", "Do every step that is not done yet.", lambda: run(LAST)
        )
        self.cancel_button = button(
            "Cancel", "Break off what is being done; what is done already stays.", self.cancel
        )
        self.panels_button = button(
            "Panels", "Show spectra, frames and particles below the picture.", show_panels
        )
        self.undo_button = button("Undo", f"Take the last change back ({UNDO}).", self.undo)
        self.redo_button = button("Redo", f"Make it again ({REDO}).", self.redo)
        row = QHBoxLayout()
        row.setSpacing(4)
        for widget in (self.run_button, self.cancel_button):
            row.addWidget(widget)
        row.addStretch(1)
        for widget in (self.panels_button, self.undo_button, self.redo_button):
            row.addWidget(widget)
        return row

    # --- what it shows -------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show what is open and what can be done."""
        state, busy = self._session.state, self._session.busy
        self.undo_button.setEnabled(state.can_undo)
        self.redo_button.setEnabled(state.can_redo)
        self.cancel_button.setEnabled(busy)
        self.run_button.setEnabled(not busy)
        if not busy:
            self.bar.setVisible(False)
        described = (state.content().get("stack"), state.content().get("technique"))
        if described != self._described or self._session.stack is None:
            self._described = described
            self._describe(described[0])

    def _describe(self, named: Any) -> None:
        """Say what is open."""
        stack = self._session.stack
        paths = [named] if isinstance(named, str) else list(named or [])
        if not paths:
            say(self.file, "Nothing is open.")
            say(self.about, "")
            return
        name = html.escape(Path(str(paths[0])).name)
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        say(self.file, f"<b>{name}</b>{more}{_size_text(paths)}")
        self.file.setToolTip(as_tip("; ".join(map(str, paths))))
        say(self.about, "" if stack is None else _stack_text(stack))

    def progress(self, step: str, text: str, share: float) -> None:
        """Show what is being done."""
        title = next((s.title for s in STEPS if s.name == step), step)
        self.bar.setRange(0, 0 if share < 0 else 100)
        if share >= 0:
            self.bar.setValue(round(100 * share))
        self.bar.setFormat(f"{title}: {text}" if text else title)
        self.bar.setVisible(True)

    # --- what the user does --------------------------------------------------------------------

    def folder(self) -> str:
        """Where files were chosen last, or where the stack is."""
        stack = self._session.state.content().get("stack")
        return self._folder or (stack if isinstance(stack, str) else "")

    def ask_open(self) -> None:
        """Ask what to open."""
        mode = QFileDialog.FileMode.ExistingFiles
        ask_files(self, "Open", self.open, mode=mode, filters=OPENED, folder=self.folder())

    def open(self, paths: Sequence[str]) -> None:
        """Open a file, or several that are one series."""
        self._folder = str(Path(paths[0]).parent)
        self.message.dismiss()
        if len(paths) == 1:
            self._session.open(paths[0])
        else:
            self._session.change(("stack",), list(paths))

    def use_layer(self) -> None:
        """Work on the file of the selected layer."""
        viewer = self._session.viewer
        layer = None if viewer is None else viewer.layers.selection.active
        content = None if layer is None else content_of(layer)
        if layer is None or content is None or not content.source:
            self._session.told.emit(
                "error", "Select one layer of a stack or a result that was opened from a file."
            )
            return
        # The source of a series names one of its files only.
        self.open(layer.metadata.get(FILES, [content.source]))

    def use_sample(self) -> None:
        """Simulate a field, then open it."""
        from spectromap.plugin.samples import lmr_field_description

        self._session.told.emit("info", "Simulating a field; this takes about ten seconds.")
        self._session.task("sample", lmr_field_description, done=while_alive(self._open_sample))

    def _open_sample(self, path: Path) -> None:
        self.message.dismiss()
        self._session.open(path)

    def cancel(self) -> None:
        """Break off what is being done."""
        self._session.cancel()

    def undo(self) -> None:
        """Take the last change back."""
        self._session.state.undo()

    def redo(self) -> None:
        """Make the change again that was taken back."""
        self._session.state.redo()


def _size_text(paths: Sequence[Any]) -> str:
    """How large files are; nothing where that is not known."""
    try:
        size = sum(Path(str(path)).stat().st_size for path in paths)
    except OSError:
        return ""
    return f" · {size / 1e9:.2f} GB" if size >= 1e9 else f" · {size / 1e6:.1f} MB"


def _stack_text(stack: Any) -> str:
    """Energies and pixels of a stack."""
    energy = stack["energy"].values
    count = f"{energy.size} energies" if energy.size != 1 else "1 energy"
    (dy, dx), (_, ny, nx) = pixel_size(stack), stack.shape
    pixel = f"{dx:.4g} nm" if np.isclose(dy, dx, rtol=1e-3) else f"{dy:.4g} x {dx:.4g} nm"
    return (
        f"{count}, {energy[0]:.2f} to {energy[-1]:.2f} eV<br/>{ny} x {nx} pixels (y x x) of {pixel}"
    )
