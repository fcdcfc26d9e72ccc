"""Forms for the run description, made from its own models: a new option appears by itself."""

from __future__ import annotations

import html
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from qtpy.QtCore import Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QValidator
from qtpy.QtWidgets import (
    QAbstractItemView,
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from spectromap.config import PATH_KEYS, STAGES, Reference, Run
from spectromap.io._yaml import parse_yaml
from spectromap.pipeline import Plan
from spectromap.plugin.state import State, step_of
from spectromap.schema import Instrument, Sample, SpectromapError

__all__ = ["WRONG", "Fold", "Form", "ReferencesEditor", "ask_files", "entries_of", "value_of"]

KeyPath = tuple[str, ...]

#: Colour of what is wrong; readable on dark and on light.
WRONG = "#e0574f"
#: Options that a user of STXM sets, by step; the others are folded.
MATTERS: dict[str, dict[KeyPath, str]] = {
    "data": {
        ("stack",): "Stack",
        ("edge",): "Absorption edge",
        ("sample", "formula"): "Formula",
        ("sample", "density_g_cm3"): "Density [g/cm³]",
        ("sample", "geometry"): "Geometry",
        ("sample", "section_nm"): "Section thickness [nm]",
        ("sample", "delithiated_time_s"): "Time delithiated [s]",
        ("instrument", "resolution_nm"): "Resolution [nm]",
        ("instrument", "dark_counts"): "Dark counts",
    },
    "align": {
        ("align", "enabled"): "Measure the shifts",
        ("align", "max_shift_nm"): "Largest shift [nm]",
        ("shifts", "reference"): "Reference",
        ("align", "fast"): "Fast",
    },
    "i0": {
        ("i0", "region"): "Region [px]",
        ("i0", "mask"): "Mask",
        ("i0", "spectrum"): "Spectrum",
    },
    "energy": {
        ("energy", "enabled"): "Calibrate",
        ("energy", "max_shift_eV"): "Largest shift [eV]",
        ("energy", "shift_eV"): "Known shift [eV]",
    },
    "composition": {
        ("fit", "baseline"): "Baseline",
        ("fit", "max_od"): "Largest optical density",
        ("stray", "enabled"): "Estimate stray light",
    },
    "particles": {
        ("segment", "threshold_nm"): "Threshold [nm]",
        ("segment", "min_radius_nm"): "Least radius [nm]",
        ("segment", "split"): "Split touching ones",
        ("particles", "max_overlap"): "Largest overlap",
    },
    "models": {
        ("models", "models"): "Models",
        ("models", "shape"): "Shape",
        ("profiles", "bin_nm"): "Bin [nm]",
    },
    "heterogeneity": {
        ("heterogeneity", "confidence"): "Confidence",
        ("heterogeneity", "min_count"): "Least count",
    },
}
#: Keys that have editors of their own, or none.
ELSEWHERE = ("references", "fraction", "schema_version")
#: Endings of names that are units.
UNITS = {"_nm": "nm", "_eV": "eV", "_s": "s", "_g_cm3": "g/cm³", "_nm3": "nm³", "_px": "px"}
#: Whose text says what the options of a section mean.
DOCUMENTED: dict[str, Callable[..., Any]] = {**STAGES, "sample": Sample, "instrument": Instrument}
#: What the text of `Plan` calls a key that is not in a section of a stage.
PLANNED: dict[KeyPath, str] = {
    ("edge",): "edge",
    ("seed",): "seed",
    ("i0", "region"): "i0_region",
    ("i0", "mask"): "i0_mask",
    ("i0", "spectrum"): "i0_spectrum",
    ("shifts", "file"): "shifts",
    ("shifts", "corrections"): "shift_corrections",
    ("shifts", "mask"): "align_mask",
    ("shifts", "reference"): "align_reference",
    ("labels",): "labels",
    ("agglomerate_labels",): "agglomerates",
    ("exclude", "energies"): "exclude_energies",
    ("exclude", "mask"): "exclude_mask",
}
#: What no text of a function says.
EXPLAINED: dict[KeyPath, str] = {
    ("stack",): "File of the stack, a glob, or several files parted by ';'.",
    ("technique",): "How the stack was recorded; automatic takes what the file says.",
    ("scans",): "Further scans of the same field, as in a run description.",
    ("exclude", "energies"): "Energies in eV of frames that are left out.",
    ("exclude", "mask"): "Image of the pixels of the file that are left out.",
    ("references", "valence"): "Oxidation state of the reference.",
    ("references", "region"): "y0, y1, x0, x1 in pixels, if the file is a stack.",
    ("references", "scale"): "How the spectrum becomes optical density per nm.",
    ("references", "units"): "Units of the values, where the file does not say them.",
    ("references", "column"): "Column of the file, if it has several.",
    ("references", "fwhm_eV"): "Energy resolution at which it was recorded, FWHM in eV.",
    ("references", "relative_error"): "Relative standard error of its scale.",
    ("references", "thickness_nm"): "Thickness of what was measured, where it is known.",
    ("references", "thickness_error_nm"): "Standard error of that thickness.",
}
SEVERAL = "; "
LEAST_STEP = 0.1


# --- what there is to set ----------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One value of the run description and how it is shown."""

    path: KeyPath
    kind: Any
    default: Any
    title: str
    text: str

    @property
    def name(self) -> str:
        """The last key, by which the meaning of a value is known."""
        return self.path[-1]


@cache
def entries_of(step: str) -> tuple[Entry, ...]:
    """Every value that a step rests on and that a form can edit, those that matter first.

    Parameters
    ----------
    step : str
        Name of a step of `spectromap.plugin.state.STEPS`.

    Returns
    -------
    tuple of Entry
    """
    defaults, found = State(), {}
    for key, field in Run.model_fields.items():
        if step_of(key) != step or key in ELSEWHERE:
            continue
        for path, kind in _leaves(key, field.annotation):
            found[path] = Entry(path, kind, defaults.value(*path), _title(step, path), _help(path))
    first = [found.pop(path) for path in MATTERS.get(step, {}) if path in found]
    return (*first, *found.values())


def _leaves(key: str, kind: Any) -> list[tuple[KeyPath, Any]]:
    """A key itself, or the keys of the section that it is."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [((key, name), field.annotation) for name, field in kind.model_fields.items()]
    return [((key,), kind)]


def _title(step: str, path: KeyPath) -> str:
    """What an option is called in a form, with its units."""
    known = MATTERS.get(step, {}).get(path)
    return known or title_of(path[-1])


def title_of(name: str) -> str:
    """A name of the run description for the eye, such as ``Bin [nm]`` for ``bin_nm``."""
    units = ""
    for ending in sorted(UNITS, key=len, reverse=True):
        if name.endswith(ending):
            name, units = name.removesuffix(ending), f" [{UNITS[ending]}]"
            break
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:] + units


def _help(path: KeyPath) -> str:
    """What a value means: the text of the function that takes it."""
    if path in EXPLAINED:
        text = EXPLAINED[path]
    elif path in PLANNED:
        text = _parameters(Plan).get(PLANNED[path], "")
    else:
        text = _parameters(DOCUMENTED[path[0]]).get(path[-1], "") if path[0] in DOCUMENTED else ""
    return as_tip(text, ".".join(path))


def as_tip(text: str, key: str = "") -> str:
    """Text of a tool tip, which Qt breaks into lines only where it is marked up."""
    named = f"<br/><code>{html.escape(key)}</code>" if key else ""
    return f"<p>{html.escape(text)}{named}</p>"


@cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, str]:
    """Texts of the parameters of a function, from its numpydoc."""
    lines = (inspect.getdoc(function) or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if below.startswith("---"):
            inside, names = line.strip() == "Parameters", []
        elif not inside or not line.strip() or line.startswith("---"):
            continue
        elif not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
        else:
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
    return types.MappingProxyType(found)


def value_of(content: Mapping[str, Any], entry: Entry) -> Any:
    """What a description says, right or wrong, or the default where it says nothing.

    Parameters
    ----------
    content : mapping
        As `State.content` returns it.
    entry : Entry
        The value.

    Returns
    -------
    object
    """
    level: Any = content
    for key in entry.path:
        if not isinstance(level, Mapping) or key not in level:
            return entry.default
        level = level[key]
    return level


# --- editors of single values ------------------------------------------------------------------


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
        self.box = _Combo()
        self.choices = _choices(self.entry.kind)
        self.box.show_items(["automatic" if c is None else str(c) for c in self.choices])
        self.box.chosen.connect(lambda index: self.take(self.choices[index]))
        return self.box

    def write(self, value: Any) -> None:
        self.box.show_index(self.choices.index(value) if value in self.choices else -1)


class _Combo(QComboBox):
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


def ask_files(
    parent: QWidget,
    title: str,
    done: Callable[[list[str]], None],
    *,
    mode: QFileDialog.FileMode = QFileDialog.FileMode.ExistingFile,
    filters: str = "",
    folder: str = "",
) -> QFileDialog:
    """Ask for files without holding up the rest of the window.

    Parameters
    ----------
    parent : QWidget
        The dialog ends with it.
    title : str
        What it is about.
    done : callable
        Called with the paths, if any are chosen.
    mode : QFileDialog.FileMode
        What may be chosen; a file that need not exist is one to be written.
    filters : str
        As Qt takes them.
    folder : str
        Where to begin: a folder, or a file in it.

    Returns
    -------
    QFileDialog
    """
    start = Path(folder) if folder else Path()
    dialog = QFileDialog(parent, title, str(start if start.is_dir() else start.parent), filters)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.setFileMode(mode)
    if mode is QFileDialog.FileMode.AnyFile:
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    dialog.setModal(False)
    dialog.filesSelected.connect(done)
    dialog.show()
    return dialog


# --- several of them ---------------------------------------------------------------------------


class Fold(QWidget):
    """A part that can be folded away under its title.

    Parameters
    ----------
    title : str
        What it is called.
    tip : str
        Text of its tool tip.
    """

    def __init__(self, title: str, tip: str = "") -> None:
        super().__init__()
        self.head = QToolButton()
        self.head.setText(title)
        self.head.setToolTip(as_tip(tip or "Show or hide."))
        self.head.setCheckable(True)
        self.head.setAutoRaise(True)
        self.head.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.head.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.head.toggled.connect(self._turn)
        self.top = QHBoxLayout()
        self.top.addWidget(self.head, 1)
        self.body = QWidget()
        self.content = QVBoxLayout(self.body)
        self.content.setContentsMargins(8, 0, 0, 4)
        self.content.setSpacing(4)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(self.top)
        layout.addWidget(self.body)
        self._turn(False)

    def _turn(self, opened: bool) -> None:
        self.head.setArrowType(Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow)
        self.body.setVisible(opened)

    def open(self, opened: bool = True) -> None:
        """Unfold it, or fold it away."""
        self.head.setChecked(opened)


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


# --- references --------------------------------------------------------------------------------


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
        self.fraction = _Combo()
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
        Entry(path, field.annotation, field.default, title_of(name), _help(path))
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
