"""One step in the dock: its options, how to run it, and what it has done."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QWidget

from spectromap.plugin._session import Session
from spectromap.plugin._shown import source_of
from spectromap.plugin.dock._entries import MATTERS, TIPS, as_tip, entries_of
from spectromap.plugin.dock._forms import Form
from spectromap.plugin.dock._pictures import Picture
from spectromap.plugin.dock._references import ReferencesEditor
from spectromap.plugin.dock._widgets import WRONG, Fold, button, emphasise, say, wrapped
from spectromap.plugin.state import STEPS, Status, Step

__all__ = ["Section", "timed"]

#: Readable on dark and on light; the word beside them says the same.
COLOURS = {
    Status.NEW: "#8a8f98",
    Status.RUNNING: "#3d9be0",
    Status.DONE: "#26a269",
    Status.STALE: "#d18f00",
    Status.FAILED: WRONG,
}
#: The last line of what a step says.
TIME = re.compile(r"[\d.]+ s")


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
        #: File of the stack that what is shown was found in.
        self._source = ""
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

    def add_control(self, widget: QWidget) -> None:
        """Put a control that is no option above the button that runs the step."""
        place = self.content.indexOf(self.run_button)
        self.content.insertWidget(place, widget, 0, Qt.AlignmentFlag.AlignLeft)

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
        if self._of_another_stack():
            self.picture.forget()

    def take_found(self) -> None:
        """The step has found something: say and draw it."""
        session = self._session
        # An older description may just have ended its work.
        if session.holds(self.step.name) or session.analysis is None:
            stack = session.stack
        else:
            stack = session.analysis.stack
        self._source = source_of(stack)
        self.show_found()
        self.picture.refresh()

    def _of_another_stack(self) -> bool:
        """Whether what the step found was in a stack that is not open any more."""
        stale = self._session.state.status(self.step.name) is Status.STALE
        return stale and self._source != source_of(self._session.stack)

    def _show_status(self, wrong: bool) -> None:
        """How far the step has got, in a colour and a word, and how long it took."""
        state, name = self._session.state, self.step.name
        status = state.status(name)
        word, (_, took) = status.value, timed(state.text(name))
        if status is Status.DONE and took:
            word += f" · {took}"
        if self._of_another_stack():
            word, status = Status.NEW.value, Status.NEW
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
        other = self._of_another_stack()
        say(self.found, "" if said or other else text)
        self.found.setStyleSheet(f"color: {WRONG};" if failed else "")
        warned = [] if other else self._session.warnings(name)
        self.warnings.setVisible(bool(warned))
        self.warnings.head.setText(f"{len(warned)} warning{'s' if len(warned) > 1 else ''}")
        say(self.warning_text, "\n\n".join(warned))


def timed(text: str) -> tuple[str, str]:
    """What a step has found, and how long that took, which is its last line."""
    lines = text.splitlines()
    if lines and TIME.fullmatch(lines[-1]):
        return "\n".join(lines[:-1]), lines[-1]
    return text, ""
