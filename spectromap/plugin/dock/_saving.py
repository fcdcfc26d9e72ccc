"""The last step in the dock: descriptions, results and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog, QGridLayout

from spectromap.batch import draw_figures
from spectromap.plugin._alive import while_alive
from spectromap.plugin._session import Session
from spectromap.plugin.dock._entries import LAST, SAVE, TIPS
from spectromap.plugin.dock._head import Head
from spectromap.plugin.dock._widgets import Fold, ask_files, button, emphasise
from spectromap.plugin.state import STEPS

__all__ = ["Saving"]

DESCRIPTIONS = "Run descriptions (*.yaml *.yml)"
RESULTS = "Results (*.h5);;All files (*)"


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
