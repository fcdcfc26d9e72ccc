"""Forms for the run description, made from its own models: a new option appears by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from qtpy.QtWidgets import QFormLayout, QLabel, QVBoxLayout, QWidget

from spectromap.plugin.dock._editors import editor_for
from spectromap.plugin.dock._entries import Entry, KeyPath, title_of, value_of
from spectromap.plugin.dock._widgets import Fold

__all__ = ["Form"]


class Form(QWidget):
    """Editors of some values: those that matter, and the others folded away.

    Parameters
    ----------
    entries : sequence of Entry
        What there is to edit.
    matter : int
        How many of them, from the first, are not folded away.
    change : callable
        Told path and value of what the user puts in.
    """

    def __init__(
        self, entries: Sequence[Entry], matter: int, change: Callable[[KeyPath, Any], None]
    ) -> None:
        super().__init__()
        self.editors = {entry.path: editor_for(entry) for entry in entries}
        for path, editor in self.editors.items():
            editor.edited.connect(partial(change, path))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(self._rows(entries[:matter]))
        self.more = Fold("More options", "What seldom needs to be changed.")
        self.more.setVisible(len(entries) > matter)
        for heading, some in _by_section(entries[matter:]).items():
            label = QLabel(f"<b>{heading}</b>")
            self.more.content.addWidget(label)
            self.more.content.addLayout(self._rows(some))
        layout.addWidget(self.more)

    def _rows(self, entries: Iterable[Entry]) -> QFormLayout:
        rows = QFormLayout()
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setVerticalSpacing(3)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        rows.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        for entry in entries:
            label = QLabel(entry.title)
            label.setToolTip(entry.text)
            rows.addRow(label, self.editors[entry.path])
        return rows

    def refresh(self, content: Mapping[str, Any], problems: Sequence[str] = ()) -> None:
        """Show what a description says, and what is wrong with it.

        Parameters
        ----------
        content : mapping
            As `State.content` returns it.
        problems : sequence of str
            Each begins with the path of what it is about.
        """
        for path, editor in self.editors.items():
            editor.show_value(value_of(content, editor.entry))
            name = ".".join(path)
            own = [p for p in problems if p.startswith((f"{name}:", f"{name}."))]
            editor.mark("; ".join(own))


def _by_section(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Entries under the titles of their sections."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        heading = title_of(entry.path[0]) if len(entry.path) > 1 else "Other"
        found.setdefault(heading, []).append(entry)
    return found
