"""Editors of single values, each chosen by the type of the value."""

from __future__ import annotations

import html
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import yaml
from qtpy.QtCore import Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QValidator
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QLineEdit,
    QToolButton,
    QWidget,
)

from spectromap.config import PATH_KEYS
from spectromap.io._yaml import parse_yaml
from spectromap.plugin.dock._entries import Entry, as_tip
from spectromap.plugin.dock._widgets import WRONG, ask_files
from spectromap.schema import SpectromapError

__all__ = ["Combo", "Editor", "editor_for"]

SEVERAL = "; "
LEAST_STEP = 0.1


class Editor(QWidget):
    """Edits one value; what it shows changes without being told to others."""

    edited = Signal(object)

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.setSpacing(2)
        self._last: Any = self
        self._problem = ""
        self.field = self.make()
        self.field.setObjectName(".".join(entry.path))
        self.field.setToolTip(entry.text)
        self._row.addWidget(self.field, 1)

    def make(self) -> QWidget:
        """The widget that is edited."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Put a value into the widget."""
        raise NotImplementedError

    def show_value(self, value: Any) -> None:
        """Show a value, unless it is the one that is shown: somebody may be typing."""
        if value != self._last or type(value) is not type(self._last):
            self._last = value
            self.write(value)

    def take(self, value: Any) -> None:
        """Tell that the user has put in a value."""
        if value != self._last or type(value) is not type(self._last):
            self._last = value
            self.edited.emit(value)

    def mark(self, problem: str) -> None:
        """Show what is wrong with the value; nothing if the text is empty."""
        if problem == self._problem:
            return  # a style sheet takes milliseconds, even if it is the same
        self._problem = problem
        frame = f"{type(self.field).__name__} {{ border: 1px solid {WRONG}; }}"
        self.field.setStyleSheet(frame if problem else "")
        tip = f"<p style='color:{WRONG}'>{html.escape(problem)}</p>" if problem else ""
        self.field.setToolTip(tip + self.entry.text)


class _Choice(Editor):
    """One of a few words."""

    def make(self) -> QWidget:
        self.box = Combo()
        self.choices = _choices(self.entry.kind)
        self.box.show_items(["automatic" if c is None else str(c) for c in self.choices])
        self.box.chosen.connect(lambda index: self.take(self.choices[index]))
        return self.box

    def write(self, value: Any) -> None:
        self.box.show_index(self.choices.index(value) if value in self.choices else -1)


class Combo(QComboBox):
    """A choice that the wheel, meant for the dock, does not change."""

    #: The user has chosen, by mouse or keyboard; Qt's own signal tells of the mouse only.
    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.currentIndexChanged.connect(self.chosen)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(6)

    def show_index(self, index: int) -> None:
        """Show a choice that somebody else has made."""
        self.blockSignals(True)
        self.setCurrentIndex(index)
        self.blockSignals(False)

    def show_items(self, items: Sequence[str]) -> None:
        """Offer other choices, none of them chosen yet."""
        self.blockSignals(True)
        self.clear()
        self.addItems(items)
        self.blockSignals(False)

    def wheelEvent(self, event: Any) -> None:
        event.ignore()


class _Check(Editor):
    """Yes or no."""

    def make(self) -> QWidget:
        self.box = QCheckBox()
        self.box.clicked.connect(self.take)
        return self.box

    def write(self, value: Any) -> None:
        self.box.setChecked(bool(value))


class _Spin(QAbstractSpinBox):
    """A number of any size, or nothing; arrows change its second digit."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def validate(self, text: str | None, position: int) -> tuple[QValidator.State, str, int]:
        return QValidator.State.Acceptable, text or "", position

    def stepEnabled(self) -> QAbstractSpinBox.StepEnabledFlag:
        flags = QAbstractSpinBox.StepEnabledFlag
        return flags.StepUpEnabled | flags.StepDownEnabled

    def stepBy(self, steps: int) -> None:
        value = self.value()
        value = value if isinstance(value, (int, float)) else 0.0
        step = 10 ** (math.floor(math.log10(abs(value))) - 1) if value else LEAST_STEP
        step = max(1, round(step)) if self.whole else step
        self.put(round(value + steps * step, 12))
        self.editingFinished.emit()

    def value(self) -> Any:
        """The number; None where there is none, the text where it is no number."""
        text = self.text().strip().replace(",", ".")
        try:
            return None if not text else int(text) if self.whole else float(text)
        except ValueError:
            return text

    def put(self, value: Any) -> None:
        """Show a number, shortly, or a text that is none, or nothing."""
        line = self.lineEdit()
        assert line is not None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        line.setText("" if value is None else f"{value:.10g}" if number else str(value))

    def wheelEvent(self, event: Any) -> None:
        event.ignore()


class _Number(Editor):
    """A number, or nothing where that means something."""

    def make(self) -> QWidget:
        self.spin = _Spin(float not in _kinds(self.entry.kind))
        line = self.spin.lineEdit()
        assert line is not None
        line.setPlaceholderText(_nothing(self.entry))
        self.spin.editingFinished.connect(lambda: self.take(self.spin.value()))
        return self.spin

    def take(self, value: Any) -> None:
        """A number that is only written in another way is no change, and none is the default."""
        if value is None and type(None) not in _kinds(self.entry.kind):
            value = self.entry.default
            self.spin.put(value)
        if value != self._last:
            super().take(value)

    def write(self, value: Any) -> None:
        self.spin.put(value)


class _Text(Editor):
    """A line of text, or nothing."""

    def make(self) -> QWidget:
        self.line = QLineEdit()
        self.line.setPlaceholderText(_nothing(self.entry))
        self.line.editingFinished.connect(lambda: self.take(self.read(self.line.text().strip())))
        return self.line

    def read(self, text: str) -> Any:
        """The value that a text stands for."""
        return text or None

    def text_of(self, value: Any) -> str:
        """The text that stands for a value."""
        return "" if value is None else str(value)

    def write(self, value: Any) -> None:
        self.line.setText(self.text_of(value))
        self.line.setCursorPosition(0)


class _Yaml(_Text):
    """Anything else, as in a run description file."""

    def read(self, text: str) -> Any:
        try:
            return parse_yaml(f"value: {text}", "")["value"] if text else None
        except SpectromapError:
            return text

    def text_of(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        plain = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        return str(plain.strip().removesuffix("...").strip())


class _File(_Text):
    """A path, typed or looked for."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        button = QToolButton()
        button.setText("…")
        button.setToolTip(as_tip("Look for the file."))
        button.clicked.connect(self._look)
        self._row.addWidget(button)

    def read(self, text: str) -> Any:
        """Several paths are a list where the value may be one."""
        several = [part for part in text.split(SEVERAL.strip()) if part.strip()]
        if len(several) > 1 and list[str] in _kinds(self.entry.kind):
            return [part.strip() for part in several]
        return text or None

    def text_of(self, value: Any) -> str:
        return SEVERAL.join(map(str, value)) if isinstance(value, list) else super().text_of(value)

    def write(self, value: Any) -> None:
        """The end of a path says more than its beginning."""
        super().write(value)
        self.line.end(False)

    def _look(self) -> None:
        ask_files(self, self.entry.title, self._chosen, folder=self.line.text())

    def _chosen(self, paths: list[str]) -> None:
        self.take(paths[0])
        self.write(paths[0])


def _kinds(kind: Any) -> set[Any]:
    """The types that a value may have."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return {one for part in typing.get_args(kind) for one in _kinds(part)}
    return {kind}


def _choices(kind: Any) -> list[Any]:
    """The words that a value may be, None first if it may be nothing."""
    words = [w for k in _kinds(kind) if typing.get_origin(k) is Literal for w in typing.get_args(k)]
    return [None, *words] if type(None) in _kinds(kind) else words


def _nothing(entry: Entry) -> str:
    """What an empty field means."""
    if entry.path[0] in ("sample", "references") or entry.name in PATH_KEYS:
        return "not given"
    return "automatic" if type(None) in _kinds(entry.kind) else ""


def editor_for(entry: Entry) -> Editor:
    """The editor that fits the type of a value."""
    kinds = _kinds(entry.kind) - {type(None)}
    if _choices(entry.kind) not in ([], [None]):
        return _Choice(entry)
    if kinds == {bool}:
        return _Check(entry)
    if kinds <= {int, float}:
        return _Number(entry)
    if entry.name in PATH_KEYS and str in kinds:
        return _File(entry)
    return _Text(entry) if kinds == {str} else _Yaml(entry)
