"""A dock in a real window as a test handles it."""

from __future__ import annotations

import time

from napari_window import settle

from spectromap.plugin.state import STEPS

RUN_STEPS = [step.name for step in STEPS if step.name != "save"]
LONGEST_S = 120


class Bench:
    """A dock in a window, and hands."""

    def __init__(self, window):
        from spectromap.plugin.dock._dock import Dock

        self.window, self.viewer = window, window.viewer
        self.dock = Dock(self.viewer)
        self.viewer.window.add_dock_widget(self.dock, name="spectromap", area="right")
        self.session, self.state = self.dock.session, self.dock.session.state
        self.told = []
        self.session.told.connect(lambda level, text: self.told.append((level, text)))
        settle()

    def wait(self, true, longest=LONGEST_S):
        """Let the window live until something is true."""
        from qtpy.QtWidgets import QApplication

        end = time.monotonic() + longest
        while not true():
            assert time.monotonic() < end, f"waited {longest} s; told: {self.told}"
            QApplication.processEvents()
            time.sleep(0.005)
        settle()

    def section(self, name):
        section = self.dock.sections[name]
        section.open()
        return section

    def click(self, button):
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        assert button.isEnabled()
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        settle()

    def type(self, widget, text):
        """Put a text in place of what a widget shows, by the keyboard."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest
        from qtpy.QtWidgets import QComboBox

        widget.setFocus()
        if not isinstance(widget, QComboBox):
            QTest.keyClick(widget, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
        QTest.keyClicks(widget, text) if text else QTest.keyClick(widget, Qt.Key.Key_Delete)
        QTest.keyClick(widget, Qt.Key.Key_Return)
        settle()

    def editor(self, step, *path):
        """The editor of an option, unfolded so that it can be reached."""
        section = self.section(step)
        editor = section.form.editors[path]
        if not editor.isVisible():
            section.form.more.open()
        return editor

    def put(self, step, *path, text):
        self.type(self.editor(step, *path).field, text)

    def answer(self, *paths):
        """Put file names into the dialog that has just opened; it closes."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest
        from qtpy.QtWidgets import QFileDialog, QLineEdit

        (dialog,) = [d for d in self.dock.findChildren(QFileDialog) if d.isVisible()]
        line = dialog.findChild(QLineEdit, "fileNameEdit")
        named = [str(path) for path in paths]
        line.setText(named[0] if len(named) == 1 else " ".join(f'"{name}"' for name in named))
        QTest.keyClick(line, Qt.Key.Key_Return)
        settle()

    def type_into_cell(self, row, column, text):
        from qtpy.QtWidgets import QLineEdit

        table = self.section("energy").references.table
        table.setCurrentCell(row, column)
        table.editItem(table.item(row, column))
        self.type(table.findChild(QLineEdit), text)

    def run(self):
        self.click(self.dock.head.run_button)
        self.wait(lambda: not self.session.busy)

    def when(self, step, act):
        """Do something as soon as a step has begun, and wait until nothing runs any more."""
        begun = []

        def look(name, text, share):
            if name == step and not begun:
                begun.append(name)
                act()

        self.session.progressed.connect(look)
        self.click(self.dock.head.run_button)
        self.wait(lambda: begun)

    def statuses(self):
        return {name: self.state.status(name) for name in RUN_STEPS}

    def badges(self):
        return {name: section.badge.text() for name, section in self.dock.sections.items()}

    def shown(self, step):
        """What the dock says of a step."""
        section = self.dock.sections[step]
        labels = (section.problems, section.found)
        return " ".join(label.text() for label in labels if not label.isHidden())
