"""The dock in a real window: the whole method by typing and clicking, and all that can go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from dock_bench import RUN_STEPS, Bench
from make_runs import FORMULA, description, write_nxstxm, write_run
from make_stacks import make
from napari_window import opened_window, settle

from spectromap import config, open_stack
from spectromap.plugin._shown import layer_of
from spectromap.plugin.state import Status, step_of

pytestmark = pytest.mark.viewer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small scan with references and a description."""
    return write_run(tmp_path_factory.mktemp("run"), sample={}).parent


@pytest.fixture
def bench(window):
    """A dock with nothing in it."""
    return Bench(window)


@pytest.fixture(scope="module")
def empty(napari_with_plugin):
    """A dock with nothing in it, for tests that open something in the end."""
    with opened_window(napari_with_plugin) as window:
        yield Bench(window)


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
    bench.put("models", "models", "shape", text="sphere")
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
        **description(models={"shape": "sphere"}),
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
    looks = [("dark", name) for name in RUN_STEPS] + [("light", RUN_STEPS[-1])]
    for theme, name in looks:
        done.viewer.theme = theme
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
    done.window.picture(tmp_path / "last.png")


def test_the_panels_do_not_make_the_window_wider(done, tmp_path):
    window, panels = done.dock.window(), done.dock.panels
    for number in range(panels.count()):
        panels.setCurrentIndex(number)
        settle()
        done.window.picture(tmp_path / f"panel-{number}.png")
        assert window.width() == 1280
        assert panels.currentWidget().minimumSizeHint().width() <= 760, "the rest is for the dock"


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


def test_a_description_is_saved_and_loaded(done, tmp_path):
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


def test_the_preview_has_the_only_colour_bar_and_leaves_the_tool_in_hand(done):
    bench, viewer = done, done.viewer
    stack, fraction = layer_of(viewer, "stack"), layer_of(viewer, "fraction")
    viewer.layers.selection.active = stack
    box = bench.dock.preview
    bench.section("composition")
    bench.put("composition", "fit", "max_od", text="2.5")
    bench.wait(lambda: layer_of(viewer, "preview") is not None)
    assert layer_of(viewer, "preview").colorbar.visible
    assert not fraction.colorbar.visible
    assert set(viewer.layers.selection) == {stack}
    bench.click(box)
    assert layer_of(viewer, "preview") is None
    assert fraction.colorbar.visible
    bench.click(box)
    bench.wait(lambda: layer_of(viewer, "preview") is not None)
    bench.click(bench.dock.head.undo_button)
    bench.wait(lambda: layer_of(viewer, "preview") is None)
    assert fraction.colorbar.visible
    assert set(viewer.layers.selection) == {stack}


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


def test_what_cannot_be_opened_is_told_and_a_layer_can(empty, folder, tmp_path):
    bench = empty
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


def test_a_layer_of_several_files_is_used_with_all_of_them(empty, tmp_path):
    bench = empty
    bench.told.clear()
    whole = make(seed=1, shape=(80, 90), n_energies=6).stack
    files = [tmp_path / "low.hdf5", tmp_path / "high.hdf5"]
    for path, part in zip(files, (whole[:3], whole[3:]), strict=True):
        write_nxstxm(path, part)
    bench.viewer.open(list(map(str, files)), stack=True, plugin="spectromap")
    bench.click(bench.dock.head.layer_button)
    assert bench.state.value("stack") == list(map(str, files))
    assert "6 energies" in bench.dock.head.about.text()
    assert bench.told == []


def test_what_was_found_in_another_stack_is_not_shown(opened, folder):
    bench = opened
    bench.click(bench.section("i0").run_button)
    bench.wait(lambda: not bench.session.busy)
    other = folder / "other.hdf5"
    write_nxstxm(other, open_stack(folder / "scan.hdf5"))
    sections = [bench.section(name) for name in ("align", "i0")]
    bench.put("data", "stack", text=str(other))
    for section in sections:
        assert "new" in section.badge.text()
        assert section.found.text() == ""
        assert not section.picture.isVisible()
        assert section.warnings.isHidden()
    bench.click(bench.dock.head.undo_button)
    for section in sections:
        assert section.found.text() != ""
        bench.wait(section.picture.isVisible)
        bench.wait(lambda s=section: not s.picture.pixmap().isNull())


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
    from spectromap.plugin._alive import is_alive

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
    bench.wait(bench.dock.window().isActiveWindow)
    modifiers = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier
    QTest.keyClick(bench.dock, Qt.Key.Key_Z, modifiers)
    assert bench.state.content() == before
