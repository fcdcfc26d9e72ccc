"""The table of reference spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from spectromap.config import Reference
from spectromap.plugin.dock._editors import Combo
from spectromap.plugin.dock._entries import Entry, KeyPath, as_tip, help_of, title_of
from spectromap.plugin.dock._forms import Form
from spectromap.plugin.dock._widgets import Fold, ask_files

__all__ = ["ReferencesEditor"]


class ReferencesEditor(QWidget):
    """The table of reference spectra, and which of them is mapped.

    Parameters
    ----------
    session : Session
        The references of its description are edited.
    """

    COLUMNS = ("Name", "File", "Valence")

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session, self._change = session, session.change
        self._shown: dict[str, Any] | None = None
        self._problems: Sequence[str] = ()
        self.table = self._make_table()
        self.add = QPushButton("Add…")
        self.add.setToolTip(as_tip("Choose files of reference spectra; a name can be changed."))
        self.add.clicked.connect(self._ask)
        self.remove = QPushButton("Remove")
        self.remove.setToolTip(as_tip("Remove the chosen reference."))
        self.remove.clicked.connect(self._remove)
        self.fraction = Combo()
        self.fraction.setToolTip(
            as_tip("Component that is mapped as a fraction; automatic is the most reduced.")
        )
        self.fraction.chosen.connect(self._choose_fraction)
        buttons, mapped = QHBoxLayout(), QHBoxLayout()
        for widget in (self.add, self.remove):
            buttons.addWidget(widget)
        mapped.addWidget(QLabel("Mapped fraction"))
        mapped.addWidget(self.fraction, 1)
        self.options = Fold("Options of the chosen reference", "How its spectrum is taken.")
        self.form = Form(_reference_entries(), len(_reference_entries()), self._change_option)
        self.options.content.addWidget(self.form)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.table)
        layout.addLayout(buttons)
        layout.addLayout(mapped)
        layout.addWidget(self.options)

    def _make_table(self) -> QTableWidget:
        table = QTableWidget(0, len(self.COLUMNS))
        table.setHorizontalHeaderLabels(self.COLUMNS)
        table.setToolTip(as_tip("Reference spectra: name, file and valence; double-click to edit."))
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setTextElideMode(Qt.TextElideMode.ElideLeft)
        table.setWordWrap(False)
        table.setFixedHeight(110)
        head, side = table.horizontalHeader(), table.verticalHeader()
        assert head is not None
        assert side is not None
        side.setVisible(False)
        side.setDefaultSectionSize(22)
        head.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        table.setColumnWidth(0, 80)
        table.setColumnWidth(2, 62)
        table.itemChanged.connect(self._edited)
        table.itemSelectionChanged.connect(self._show_options)
        return table

    @property
    def names(self) -> list[str]:
        """Names of the components, as shown."""
        return list(self._shown or {})

    def refresh(self, problems: Sequence[str] = ()) -> None:
        """Show what the description says.

        Parameters
        ----------
        problems : sequence of str
            What is wrong with the step that the references belong to.
        """
        content = self._session.state.content()
        given = content.get("references")
        references = given if isinstance(given, dict) else {}
        if references != self._shown:
            self._shown = references
            self._fill()
        self._show_fraction(content.get("fraction"))
        self._problems = problems
        self._show_options()

    def _fill(self) -> None:
        """Put the references into the table, which is not told as a change."""
        row = self.table.currentRow()
        self.table.blockSignals(True)
        self.table.setRowCount(len(self.names))
        for number, (name, one) in enumerate((self._shown or {}).items()):
            valence = one.get("valence") if isinstance(one, Mapping) else None
            file = one.get("file") if isinstance(one, Mapping) else one
            valence = f"{valence:g}" if isinstance(valence, (int, float)) else valence
            for column, text in enumerate((name, file, valence)):
                item = QTableWidgetItem("" if text is None else str(text))
                item.setToolTip(as_tip(item.text() or self.COLUMNS[column]))
                self.table.setItem(number, column, item)
        if self.names:
            self.table.setCurrentCell(min(max(row, 0), len(self.names) - 1), 0)
        self.table.blockSignals(False)

    def _show_fraction(self, fraction: Any) -> None:
        choices = ["automatic", *self.names]
        if choices != [self.fraction.itemText(i) for i in range(self.fraction.count())]:
            self.fraction.show_items(choices)
        known = "automatic" if fraction is None else str(fraction)
        self.fraction.show_index(choices.index(known) if known in choices else -1)

    def _show_options(self) -> None:
        """Show the other options of the chosen reference."""
        name = self._chosen()
        self.options.setEnabled(name is not None)
        self.remove.setEnabled(name is not None)
        if name is None:
            return
        prefix = f"references.{name}."
        own = [
            problem.replace(prefix, "references.", 1)
            for problem in self._problems
            if problem.startswith(prefix)
        ]
        self.form.refresh({"references": (self._shown or {}).get(name)}, own)

    def _chosen(self) -> str | None:
        """Name of the chosen reference."""
        row = self.table.currentRow()
        return self.names[row] if 0 <= row < len(self.names) else None

    # --- what the user does ----------------------------------------------------------------------

    def _ask(self) -> None:
        files = [one.get("file") for one in (self._shown or {}).values()]
        stack = self._session.state.content().get("stack")
        near = next((str(f) for f in (*files, stack) if isinstance(f, str)), "")
        mode = QFileDialog.FileMode.ExistingFiles
        ask_files(self, "Reference spectra", self.add_files, mode=mode, folder=near)

    def add_files(self, paths: Sequence[str]) -> None:
        """Add a reference for every file, named like it.

        Parameters
        ----------
        paths : sequence of str
            The files.
        """
        references = dict(self._shown or {})
        for path in paths:
            references[_free_name(Path(path).stem, references)] = {"file": str(path)}
        self._change(("references",), references)

    def _remove(self) -> None:
        name = self._chosen()
        self._change(("references",), {k: v for k, v in (self._shown or {}).items() if k != name})

    def _edited(self, item: QTableWidgetItem) -> None:
        """Take over what was typed into the table."""
        name, text = self.names[item.row()], item.text().strip()
        if item.column() == 0:
            self._rename(name, text)
        elif item.column() == 1:
            self._change(("references", name, "file"), text)
        else:
            self._change(("references", name, "valence"), _number(text))
        self.refresh()

    def _rename(self, old: str, new: str) -> None:
        """Give a component another name, also where it is the one that is mapped."""
        if not new or (new != old and new in self.names):
            self._fill()
            return
        content = self._session.state.content()
        references = {new if k == old else k: v for k, v in content["references"].items()}
        content["references"] = references
        if content.get("fraction") == old:
            content["fraction"] = new
        self._session.state.replace(content)

    def _choose_fraction(self, index: int) -> None:
        self._change(("fraction",), None if index == 0 else self.fraction.itemText(index))

    def _change_option(self, path: KeyPath, value: Any) -> None:
        name = self._chosen()
        if name is not None:
            self._change(("references", name, *path[1:]), value)


@cache
def _reference_entries() -> tuple[Entry, ...]:
    """What can be said of a reference beside what the table shows."""
    return tuple(
        Entry(path, field.annotation, field.default, title_of(name), help_of(path))
        for name, field in Reference.model_fields.items()
        if name not in ("file", "valence")
        for path in [("references", name)]
    )


def _free_name(stem: str, taken: Iterable[str]) -> str:
    """A name for a component, made from that of its file."""
    name = "".join(letter if letter.isalnum() else "_" for letter in stem).strip("_")
    name = name if name.isidentifier() else f"reference_{name}".rstrip("_")
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}_{number}"
    return free


def _number(text: str) -> Any:
    """A number that was typed; None for nothing, the text if it is no number."""
    try:
        return float(text.replace(",", ".")) if text else None
    except ValueError:
        return text
