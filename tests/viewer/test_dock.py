"""The dock in a real window: the whole method by typing and clicking, and all that can go wrong."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from make_runs import FORMULA, description, write_run
from napari_window import opened_window, settle

from spectromap import config, open_stack
from spectromap.io.results import read_result
from spectromap.plugin.state import STEPS, Status, step_of

pytestmark = pytest.mark.viewer

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small scan with references and a description."""
    return write_run(tmp_path_factory.mktemp("run"), sample={}).parent


@pytest.fixture
def bench(window):
    """A dock with nothing in it."""
    return Bench(window)


@pytest.fixture(scope="module")
def shared(napari_with_plugin, folder):
    """A dock for tests that leave it as usable as they found it, and its description."""
    with opened_window(napari_with_plugin) as window:
        bench = Bench(window)
        bench.dock.head.open([str(folder / "run.yaml")])
        settle()
        yield bench, bench.state.content()


@pytest.fixture
def opened(shared):
    """A dock with a complete description."""
    bench, content = shared
    bench.state.replace(content)
    bench.told.clear()
    bench.dock.head.message.dismiss()
    settle()
    return bench


def build(bench, folder):
    """Open the stack and type the rest, as somebody would who has no description."""
    bench.click(bench.dock.head.open_button)
    bench.answer(folder / "scan.hdf5")
    for path, text in (
        (("edge",), "Mn L3"),
        (("sample", "formula"), FORMULA),
        (("sample", "density_g_cm3"), "4,25"),
        (("sample", "delithiated_time_s"), "4e5"),
        (("instrument", "resolution_nm"), "25"),
        (("technique",), "stxm"),
    ):
        bench.put("data", *path, text=text)
    references = bench.section("energy").references
    bench.click(references.add)
    bench.answer(folder / "mn3.csv", folder / "mn4.csv")
    for row, name in enumerate(references.names):
        bench.type_into_cell(row, 2, name[-1])
    bench.type(references.fraction, "mn3")


@pytest.fixture(scope="module")
def done(napari_with_plugin, folder):
    """The whole method, done by hand."""
    with opened_window(napari_with_plugin) as window:
        bench = Bench(window)
        build(bench, folder)
        bench.built = bench.state.content()
        bench.run()
        yield bench


def test_what_is_typed_and_clicked_is_the_description(done, folder):
    expected = {
        **description(),
        "stack": str(folder / "scan.hdf5"),
        "references": {
            name: {"file": str(folder / f"{name}.csv"), "valence": int(name[-1])}
            for name in ("mn3", "mn4")
        },
    }
    assert config.parse_run(done.built) == config.parse_run(expected)


def test_every_step_says_what_it_did_and_shows_it(done, tmp_path):
    assert set(done.statuses().values()) == {Status.DONE}
    assert all("done" in badge and badge.endswith(" s") for badge in done.badges().values())
    for theme in ("dark", "light"):
        done.viewer.theme = theme
        for name in RUN_STEPS:
            for other, section in done.dock.sections.items():
                section.open(other == name)
            section = done.dock.sections[name]
            settle()
            assert section.found.text() == section.found.text().strip() != ""
            assert section.minimumSizeHint().width() <= done.dock.area.viewport().width()
            if name != "data":
                look = section.picture.palette().window().color().name()
                done.wait(lambda s=section, c=look: paper(s.picture) == c, 20)
            done.dock.area.verticalScrollBar().setValue(10_000)
            done.window.picture(tmp_path / f"{theme}-{name}.png")


def paper(picture):
    """Colour of the corner of a picture."""
    pixmap = picture.pixmap()
    return "" if pixmap.isNull() else pixmap.toImage().pixelColor(1, 1).name()


def test_a_picture_is_shown_in_full_by_a_click(done):
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    picture = done.section("composition").picture
    QTest.mouseClick(picture, Qt.MouseButton.LeftButton)
    done.wait(lambda: picture._large is not None and picture._large.isVisible(), 30)
    large = picture._large
    assert large.isWindow()
    assert not large.isModal()
    assert large.label.pixmap().width() > 1.5 * picture.pixmap().width()
    large.close()
    settle()


def test_a_change_makes_later_steps_stale_and_undo_valid_again(done):
    bench = done
    bench.type(bench.editor("composition", "fit", "baseline").field, "linear")
    first = RUN_STEPS.index("composition")
    expected = [Status.DONE] * first + [Status.STALE] * (len(RUN_STEPS) - first)
    assert list(bench.statuses().values()) == expected
    assert ["stale" in badge for badge in bench.badges().values()] == [
        status is Status.STALE for status in expected
    ]
    bench.click(bench.dock.head.undo_button)
    assert set(bench.statuses().values()) == {Status.DONE}
    assert bench.editor("composition", "fit", "baseline").field.currentText() == "constant"
    bench.click(bench.dock.head.redo_button)
    assert list(bench.statuses().values()) == expected
    bench.click(bench.dock.head.undo_button)


def numbers(content):
    """A description with all its defaults, as a file would hold it."""
    return config.parse_run(content).model_dump(mode="json")


def test_saved_loaded_replayed_and_drawn(done, tmp_path):
    bench, saving = done, done.dock.saving
    saving.open()
    before = numbers(bench.state.content())
    bench.click(saving.save_description)
    bench.answer(tmp_path / "mine.yaml")
    bench.wait(lambda: (tmp_path / "mine.yaml").exists())
    assert numbers(config.load_content(tmp_path / "mine.yaml")) == before
    bench.put("align", "align", "max_shift_nm", text="77")
    bench.click(saving.load_description)
    bench.answer(tmp_path / "mine.yaml")
    assert numbers(bench.state.content()) == before
    assert set(bench.statuses().values()) == {Status.DONE}

    out = tmp_path / "out"
    out.mkdir()
    bench.click(saving.export_figures)
    bench.answer(out)
    bench.wait(lambda: any("Saved" in text for _, text in bench.told[-1:]))
    assert len(list((out / "figures").rglob("*.pdf"))) >= 5
    first = read_result(out / "result.h5")

    bench.click(saving.replay_result)
    bench.answer(out / "result.h5")
    bench.wait(lambda: not bench.session.busy)
    assert set(bench.statuses().values()) == {Status.DONE}
    again = bench.session.tree()
    for name in ("thickness", "mn3_fraction"):
        values = first["/entry/maps"][name].values
        np.testing.assert_array_equal(again["/entry/maps"][name].values, values)


def test_editors_follow_and_tell_nothing_themselves(opened, folder):
    bench = opened
    loaded = bench.state.content()
    assert bench.editor("data", "sample", "density_g_cm3").field.text() == ""
    bench.put("data", "sample", "density_g_cm3", text="4.25")
    changed = bench.state.content()
    assert changed["sample"] == {"density_g_cm3": 4.25}
    for _ in range(3):
        bench.click(bench.dock.head.undo_button)
        assert bench.state.content() == loaded
        assert bench.editor("data", "sample", "density_g_cm3").field.text() == ""
        bench.click(bench.dock.head.redo_button)
        assert bench.state.content() == changed
        assert bench.editor("data", "sample", "density_g_cm3").field.text() == "4.25"
    assert not bench.dock.head.redo_button.isEnabled()


def test_every_option_has_an_editor_that_shows_it_and_explains_it(opened):
    run = config.parse_run(opened.state.content()).model_dump(mode="json")
    seen = set()
    for name, section in opened.dock.sections.items():
        for path, editor in section.form.editors.items():
            assert step_of(path[0]) == name
            value = run[path[0]] if len(path) == 1 else run[path[0]][path[1]]
            field = editor.field
            shown = field.isChecked() if hasattr(field, "isChecked") else text_of(field)
            assert shown == as_shown(value), path
            assert len(field.toolTip()) > 30, path
            seen.add(path[0])
    assert seen | {"references", "fraction", "schema_version"} == set(config.Run.model_fields)


def text_of(field):
    return field.currentText() if hasattr(field, "currentText") else field.text()


def as_shown(value):
    """A value of the description as its editor shows it."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return f"{value:.10g}"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()


def test_references_are_named_removed_and_said_more_of(opened):
    bench = opened
    references = bench.section("energy").references
    assert references.names == ["mn3", "mn4"]
    bench.type_into_cell(0, 0, "reduced")
    content = bench.state.content()
    assert list(content["references"]) == ["reduced", "mn4"]
    assert content["fraction"] == "reduced"
    references.options.open()
    bench.type(references.form.editors["references", "fwhm_eV"].field, "0.2")
    assert bench.state.value("references", "reduced", "fwhm_eV") == 0.2
    bench.type_into_cell(0, 2, "three")
    assert "valence" in bench.shown("energy")
    bench.click(references.remove)
    assert references.names == ["mn4"]
    assert "two to four" in bench.shown("energy")
    for _ in range(4):
        bench.click(bench.dock.head.undo_button)
    assert references.names == ["mn3", "mn4"]
    assert bench.shown("energy") == ""


def test_a_wrong_value_is_marked_where_it_is(opened):
    bench, message = opened, opened.dock.head.message
    bench.put("align", "align", "max_shift_nm", text="far")
    editor = bench.editor("align", "align", "max_shift_nm")
    assert "border" in editor.field.styleSheet()
    assert "max_shift_nm" in bench.shown("align")
    assert "incomplete" in bench.badges()["align"]
    bench.click(bench.dock.head.run_button)
    assert message.level == "error"
    assert "max_shift_nm" in message.text
    bench.put("align", "align", "max_shift_nm", text="")
    assert editor.field.styleSheet() == ""
    assert bench.shown("align") == ""
    bench.click(message.close_button)
    assert not message.isVisible()


def test_a_missing_reference_is_named_and_the_dock_stays_usable(opened, folder):
    bench = opened
    bench.type_into_cell(1, 1, str(folder / "nowhere.csv"))
    bench.click(bench.section("energy").run_button)
    bench.wait(lambda: not bench.session.busy)
    assert bench.dock.head.message.level == "error"
    assert "nowhere.csv" in bench.dock.head.message.text
    bench.click(bench.dock.head.undo_button)
    bench.click(bench.section("i0").run_button)
    bench.wait(lambda: not bench.session.busy)
    assert bench.dock.head.message.text == ""
    assert bench.statuses()["i0"] is Status.DONE


def test_what_cannot_be_opened_is_told_and_a_layer_can(bench, folder, tmp_path):
    message = bench.dock.head.message
    bench.click(bench.dock.head.run_button)
    assert "stack" in message.text
    bench.click(bench.dock.head.layer_button)
    assert "Select one layer" in message.text
    (tmp_path / "wrong.hdf5").write_text("this is no stack")
    bench.dock.head.open([str(tmp_path / "wrong.hdf5")])
    assert message.level == "error"
    assert "wrong.hdf5" in message.text
    bench.viewer.add_image(np.zeros((4, 4)))
    bench.click(bench.dock.head.layer_button)
    assert "Select one layer" in message.text
    bench.window.open(folder / "scan.hdf5")
    bench.click(bench.dock.head.layer_button)
    assert Path(bench.state.value("stack")) == folder / "scan.hdf5"
    stack = open_stack(folder / "scan.hdf5")
    assert f"{stack.sizes['energy']} energies" in bench.dock.head.about.text()
    assert "scan.hdf5" in bench.dock.head.file.text()


def test_work_can_be_cancelled_and_done_again(opened):
    bench, head = opened, opened.dock.head
    bench.put("data", "seed", text="1")  # nothing that was done before holds
    seen = []

    def cancel():
        seen.append(head.bar.isVisible())
        head.cancel_button.click()

    bench.when("align", cancel)
    bench.wait(lambda: not bench.session.busy)
    assert seen == [True]
    assert not head.bar.isVisible()
    assert Status.RUNNING not in bench.statuses().values()
    assert bench.statuses()["data"] is Status.DONE
    assert bench.statuses()["energy"] is not Status.DONE
    bench.click(bench.section("i0").run_button)
    bench.wait(lambda: not bench.session.busy)
    assert bench.statuses()["i0"] is Status.DONE


@pytest.mark.parametrize("closed", ["viewer", "dock"])
def test_what_is_closed_during_work_ends_it(bench, folder, closed):
    from spectromap.plugin.dock._pictures import is_alive

    session, dock, panels = bench.session, bench.dock, bench.dock.panels
    dock.head.open([str(folder / "run.yaml")])
    bench.when("align", lambda: None)
    if closed == "viewer":
        bench.viewer.close()
    else:
        bench.viewer.window.remove_dock_widget(dock)
    bench.wait(lambda: not is_alive(dock) and not is_alive(panels))
    assert session.viewer is None
    session._worker.shutdown(wait=True)  # what runs comes to its end and tells nobody
    settle()
    assert not [text for level, text in bench.told if level == "error"]


def test_panels_that_were_closed_come_back(opened):
    bench = opened
    panels = bench.dock.panels
    assert panels.isVisible()
    bench.viewer.window.remove_dock_widget(panels)
    settle()
    assert not panels.isVisible()
    bench.click(bench.dock.head.panels_button)
    assert panels.isVisible()


def test_undo_by_the_keyboard_is_not_that_of_napari(opened):
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    bench = opened
    before = bench.state.content()
    bench.put("data", "instrument", "dark_counts", text="3")
    bench.dock.window().activateWindow()
    settle()
    modifiers = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier
    QTest.keyClick(bench.dock, Qt.Key.Key_Z, modifiers)
    assert bench.state.content() == before
