"""The dock: the whole method from top to bottom, what each step needs, and what it has done."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QEvent, QSize, Qt, QTimer
from qtpy.QtGui import QKeySequence, QShortcut  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QApplication,
    QDockWidget,
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QMenu,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QTabWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from spectromap.batch import draw_figures
from spectromap.plugin._alive import is_alive, while_alive
from spectromap.plugin._layers import content_of
from spectromap.plugin._session import Session
from spectromap.plugin._shown import Shown
from spectromap.plugin.dock._forms import (
    MATTERS,
    WRONG,
    Fold,
    Form,
    ReferencesEditor,
    as_tip,
    ask_files,
    entries_of,
)
from spectromap.plugin.dock._pictures import Picture
from spectromap.plugin.panels._frames_panel import FramesPanel
from spectromap.plugin.panels._particles import ParticlePanel
from spectromap.plugin.panels._spectra import SpectrumPanel
from spectromap.plugin.state import STEPS, Status, Step
from spectromap.schema import pixel_size

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Dock"]

#: Readable on dark and on light; the word beside them says the same.
COLOURS = {
    Status.NEW: "#8a8f98",
    Status.RUNNING: "#3d9be0",
    Status.DONE: "#26a269",
    Status.STALE: "#d18f00",
    Status.FAILED: WRONG,
}
LEVELS = {"error": WRONG, "warning": "#d18f00", "info": "#3d9be0"}
#: Where the last step of the list saves and loads, there is nothing to run.
SAVE = STEPS[-1].name
LAST = STEPS[-2].name
WIDTH, LEAST_WIDTH, HEIGHT, PANELS_HEIGHT = 372, 300, 700, 230
MESSAGE_HEIGHT = 110
PANELS_NAME = "spectromap: data"
DESCRIPTIONS = "Run descriptions (*.yaml *.yml)"
RESULTS = "Results (*.h5);;All files (*)"
#: What a stack, a result or a run description may end with.
OPENED = (
    "Stacks, results, run descriptions (*.hdf5 *.h5 *.hdf *.he5 *.nxs *.nx5 *.nexus *.stxm *.cxi"
    " *.hdr *.xim *.ncb *.dat *.tif *.tiff *.yaml *.yml);;All files (*)"
)
#: The last line of what a step says.
TIME = re.compile(r"[\d.]+ s")
UNDO, REDO = "Ctrl+Alt+Z", "Ctrl+Alt+Shift+Z"
TIPS = {
    "data": "What was measured, of what, and with what.",
    "align": "Where every frame lies.",
    "i0": "The light without sample, and from it the optical density.",
    "energy": "The reference spectra, and the energy axis by them.",
    "composition": "How much of every reference is in every pixel.",
    "particles": "Which pixels are one particle, and which particles one agglomerate.",
    "models": "Composition from the edge inwards, and which model follows it.",
    "heterogeneity": "How particles differ, by place and by chance, and the oxygen lost.",
    "save": "The description is the state: it gives the same numbers on the command line.",
}


def button(text: str, tip: str, pressed: Callable[[], object]) -> QPushButton:
    """A button with a tool tip."""
    made = QPushButton(text)
    made.setToolTip(as_tip(tip))
    made.clicked.connect(lambda: pressed())
    return made


def emphasise(widget: QWidget) -> None:
    """Letters that stand out, as those of a title."""
    font = widget.font()
    font.setBold(True)
    widget.setFont(font)


def wrapped(colour: str = "") -> QLabel:
    """A text that is broken into lines and can be copied; hidden until it has something to say."""
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
    if colour:
        label.setStyleSheet(f"color: {colour};")
    label.setVisible(False)
    return label


def say(label: QLabel, text: str) -> None:
    """Show a text, or nothing where there is none."""
    label.setText(text)
    label.setVisible(bool(text))


# --- the head ----------------------------------------------------------------------------------


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
        if content is None or not content.source:
            self._session.told.emit(
                "error", "Select one layer of a stack or a result that was opened from a file."
            )
            return
        self.open([content.source])

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


# --- a step ------------------------------------------------------------------------------------


class Section(Fold):
    """One step: its options, how to run it, and what it has done.

    Parameters
    ----------
    session : Session
        Whose step it is.
    step : Step
        Which one.
    run : callable
        Told the name of the step that is to be done.
    """

    def __init__(self, session: Session, step: Step, run: Callable[[str], None]) -> None:
        super().__init__(f"{STEPS.index(step) + 1}  {step.title}", TIPS[step.name])
        self._session, self.step = session, step
        emphasise(self.head)
        self._failed = False
        self.badge = QLabel()
        self.badge.setToolTip(as_tip("How far this step has got."))
        self.top.addWidget(self.badge)
        self.problems = wrapped(WRONG)
        entries = entries_of(step.name)
        matter = sum(entry.path in MATTERS.get(step.name, {}) for entry in entries)
        self.form = Form(entries, matter, session.change)
        self.references = ReferencesEditor(session) if step.name == "energy" else None
        self.run_button = button(
            "Run to here", "Do every step up to this one that is not done yet.",
            lambda: run(step.name),
        )  # fmt: skip
        self.found = wrapped()
        self.warnings = Fold("", "What this step warned of.")
        self.warning_text = wrapped()
        self.warnings.content.addWidget(self.warning_text)
        self.warnings.setVisible(False)
        self.picture = Picture(session, step.name, step.title)
        editors = [self.references] if self.references is not None else []
        below = [self.run_button, self.found, self.warnings, self.picture]
        for widget in (self.problems, *editors, self.form, *below):
            self.content.addWidget(widget)

    def refresh(self, content: Mapping[str, Any], problems: Sequence[str]) -> None:
        """Show the options, what is wrong with them, and how far the step has got.

        Parameters
        ----------
        content : mapping
            The run description.
        problems : sequence of str
            What is wrong with what belongs to this step.
        """
        say(self.problems, "\n".join(problems))
        self.form.refresh(content, problems)
        if self.references is not None:
            self.references.refresh(problems)
        self.run_button.setEnabled(not self._session.busy)
        self._show_status(bool(problems))
        self.show_found()
        self.picture.set_stale(not self._session.holds(self.step.name))

    def _show_status(self, wrong: bool) -> None:
        """How far the step has got, in a colour and a word, and how long it took."""
        state, name = self._session.state, self.step.name
        status = state.status(name)
        word, (_, took) = status.value, timed(state.text(name))
        if status is Status.DONE and took:
            word += f" · {took}"
        if status is Status.NEW and wrong:
            word, status = "incomplete", Status.FAILED
        self.badge.setText(f"<span style='color:{COLOURS[status]}'>●</span> {word}")

    def show_found(self) -> None:
        """What the step found, and what it warned of."""
        name, state = self.step.name, self._session.state
        text, status = timed(state.text(name))[0], state.status(name)
        failed = status is Status.FAILED
        # What went wrong may be mended by what has changed since, and is said once.
        said = (self._failed and status is Status.STALE) or (
            failed and not self.problems.isHidden()
        )
        if failed and not self._failed:
            self.open()
        self._failed = failed or (self._failed and status is Status.STALE)
        say(self.found, "" if said else text)
        self.found.setStyleSheet(f"color: {WRONG};" if failed else "")
        warned = self._session.warnings(name)
        self.warnings.setVisible(bool(warned))
        self.warnings.head.setText(f"{len(warned)} warning{'s' if len(warned) > 1 else ''}")
        say(self.warning_text, "\n\n".join(warned))


def timed(text: str) -> tuple[str, str]:
    """What a step has found, and how long that took, which is its last line."""
    lines = text.splitlines()
    if lines and TIME.fullmatch(lines[-1]):
        return "\n".join(lines[:-1]), lines[-1]
    return text, ""


class Saving(Fold):
    """The last step: descriptions, results and figures.

    Parameters
    ----------
    session : Session
        What is saved.
    head : Head
        Where messages are.
    run : callable
        Told the name of the step that is to be done.
    """

    def __init__(self, session: Session, head: Head, run: Callable[[str], None]) -> None:
        super().__init__(f"{len(STEPS)}  {STEPS[-1].title}", TIPS[SAVE])
        emphasise(self.head)
        self._session, self._head, self._run = session, head, run
        self.save_description = button(
            "Save description…", "Write the run description; spectromap run takes it.",
            self._ask_save,
        )  # fmt: skip
        self.load_description = button(
            "Load description…", "Take over a run description from a file.", self._ask_load
        )
        self.save_result = button(
            "Save result…", "Write result, tables and report into a folder.", self._ask_result
        )
        self.replay_result = button(
            "Replay result…", "Open a result and do its run again.", self._ask_replay
        )
        self.export_figures = button(
            "Export figures…",
            "Save the result into a folder, and every figure as PDF, SVG, PNG and CSV.",
            self._ask_figures,
        )
        grid = QGridLayout()
        grid.setSpacing(4)
        buttons = [self.save_description, self.load_description, self.save_result]
        for number, one in enumerate([*buttons, self.replay_result, self.export_figures]):
            grid.addWidget(one, number // 2, number % 2)
        self.content.addLayout(grid)

    def refresh(self) -> None:
        """Only what is there can be saved."""
        found = self._session.analysis is not None and not self._session.busy
        for one in (self.save_result, self.export_figures):
            one.setEnabled(found)

    def _ask(self, title: str, done: Callable[[str], None], mode: Any, filters: str = "") -> Any:
        def chosen(paths: list[str]) -> None:
            self._head.message.dismiss()
            done(paths[0])

        folder = self._head.folder()
        return ask_files(self, title, chosen, mode=mode, filters=filters, folder=folder)

    def _ask_save(self) -> None:
        mode = QFileDialog.FileMode.AnyFile
        dialog = self._ask("Save description", self.write_description, mode, DESCRIPTIONS)
        dialog.setDefaultSuffix("yaml")

    def _ask_load(self) -> None:
        mode = QFileDialog.FileMode.ExistingFile
        self._ask("Load description", self._session.open, mode, DESCRIPTIONS)

    def _ask_result(self) -> None:
        mode = QFileDialog.FileMode.Directory
        self._ask("Folder of the result", self.write_result, mode)

    def _ask_replay(self) -> None:
        mode = QFileDialog.FileMode.ExistingFile
        self._ask("Replay a result", self.replay, mode, RESULTS)

    def _ask_figures(self) -> None:
        mode = QFileDialog.FileMode.Directory
        self._ask("Folder of the figures", self.write_figures, mode)

    # What is written takes its time, and what is wrong with it is told, so tasks do it.

    def write_description(self, path: str) -> None:
        """Write the run description."""
        self._write("description", self._session.save_description, path)

    def write_result(self, folder: str) -> None:
        """Write the result, with tables and report."""
        self._write("result", self._session.save_result, folder)

    def write_figures(self, folder: str) -> None:
        """Write the result, and its figures beside it."""
        self._write("figures", self._save_and_draw, folder)

    def _save_and_draw(self, folder: str) -> Path:
        result, out = self._session.save_result(folder), Path(folder) / "figures"
        draw_figures([result], out)
        return out

    def _write(self, what: str, function: Callable[[str], Path], path: str) -> None:
        self._session.told.emit("info", f"Saving: {what}…")
        self._session.task(what, function, path, done=while_alive(self._written))

    def _written(self, path: Path) -> None:
        self._session.told.emit("info", f"Saved: {path}")

    def replay(self, path: str) -> None:
        """Open a result and do its run again, if it can be repeated."""
        self._session.open(path, done=self._run_again)

    def _run_again(self) -> None:
        self._run(LAST)


# --- all of it ---------------------------------------------------------------------------------


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
        self.sections[step].show_found()
        self.sections[step].picture.refresh()

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
