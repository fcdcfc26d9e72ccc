"""Small widgets of the dock: buttons, texts, parts that fold, and asking for files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from spectromap.plugin.dock._entries import as_tip

__all__ = ["WRONG", "Fold", "ask_files", "button", "emphasise", "say", "wrapped"]

#: Colour of what is wrong; readable on dark and on light.
WRONG = "#e0574f"


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
