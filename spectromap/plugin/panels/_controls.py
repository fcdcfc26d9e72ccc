"""Buttons and columns of them, as panels below the canvas have them."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QPushButton, QWidget

__all__ = ["button", "column"]


def button(text: str, tip: str, *, checkable: bool = False) -> QPushButton:
    """A button that leaves the keys to the canvas or the panel."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setCheckable(checkable)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made


def column(widget: QWidget | None = None) -> QGridLayout:
    """A narrow column of controls."""
    grid = QGridLayout(widget)
    grid.setContentsMargins(0, 0, 0, 0)
    grid.setSpacing(4)
    grid.setRowStretch(9, 1)
    return grid
