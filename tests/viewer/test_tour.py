"""The whole method on the demo field in the real window, with a picture of every step.

The pictures are those of docs/viewer.md: `make screenshots` writes them there.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from dock_bench import RUN_STEPS, Bench
from napari_window import opened_window, settle
from PIL import Image

from spectromap import batch, config
from spectromap.io.results import read_result
from spectromap.plugin._shown import layer_of
from spectromap.plugin.samples import lmr_field_description
from spectromap.plugin.state import Status

pytestmark = pytest.mark.viewer

#: Where the pictures go; the folder of the documentation, if somebody wants them there.
FOLDER = "SPECTROMAP_SCREENSHOTS"
WIDTH, HEIGHT = 1280, 800
#: So many colours of a picture stay what they are, the most frequent ones.
EXACT = 96
#: The margin of the demo field that no particle reaches, in pixels: y0, y1, x0, x1.
OPEN_AREA = (10, 180, 3, 24)


class Tour(Bench):
    """A dock in a window, hands that also reach the canvas, and a camera."""

    def __init__(self, window, folder):
        super().__init__(window)
        self.folder = folder

    # --- the canvas ----------------------------------------------------------------------------

    def on_canvas(self, y, x):
        """The widget of the canvas, and a place in nm as one in it."""
        from qtpy.QtCore import QPoint

        camera, size = self.viewer.scene.camera, np.array(self.viewer.canvas.size)
        offset = (np.array([y, x]) - np.array(camera.center[-2:])) * camera.zoom * (-1, 1)
        row, column = np.round(size / 2 + offset).astype(int)
        return self.viewer.window._qt_viewer.canvas.native, QPoint(column, row)

    def point(self, y, x):
        """Move the mouse to a place in nm, until the spectrum there is seen."""
        from qtpy.QtCore import QPoint
        from qtpy.QtTest import QTest

        stack, table = self.session.stack, self.dock.spectra.table
        row, column = (
            int(abs(stack[axis].values - at).argmin())
            for axis, at in zip("yx", (y, x), strict=True)
        )
        canvas, place = self.on_canvas(y, x)

        def seen():
            for away in (3, 0):  # the screen tells of moves, and when it does is its affair
                QTest.mouseMove(canvas, place + QPoint(away, 0))
                settle()
            return (
                table.item(0, 0).text() == f"cursor ({column}, {row})" and table.item(0, 1).text()
            )

        settle()
        self.wait(seen, 30)

    def leave(self):
        """Move the mouse out of the canvas."""
        self.viewer.mouse_over_canvas = False
        settle()

    def click_on(self, y, x):
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        settle()
        canvas, place = self.on_canvas(y, x)
        QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=place)
        settle()

    def draw_rectangle(self, y0, y1, x0, x1):
        """Draw a rectangle round pixels, as one does with napari's own tool."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        stack = self.session.stack
        layer = self.viewer.add_shapes(ndim=2, name="no sample", units=("nm", "nm"))
        layer.mode = "add_rectangle"
        settle()
        first, last = (
            self.on_canvas(float(stack.y[y]), float(stack.x[x]))
            for y, x in ((y0, x0), (y1 - 1, x1 - 1))
        )
        QTest.mousePress(first[0], Qt.MouseButton.LeftButton, pos=first[1])
        for share in (0.5, 1.0):
            place = first[1] + (last[1] - first[1]) * share
            QTest.mouseMove(first[0], place)
            settle()
        QTest.mouseRelease(last[0], Qt.MouseButton.LeftButton, pos=last[1])
        layer.mode = "select"
        settle()
        return layer

    # --- the dock ------------------------------------------------------------------------------

    def tab(self, title):
        """Turn to a panel below the canvas."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        bar = self.dock.panels.tabBar()
        (number,) = (k for k in range(bar.count()) if bar.tabText(k) == title)
        where = bar.tabRect(number).center()
        QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=where)
        settle()

    def look_at(self, section):
        """Fold all other sections away, and scroll to this one."""
        for other in (*self.dock.sections.values(), self.dock.saving):
            other.open(other is section)
        settle()
        # Of a step that is too long for the window, what it has found is looked at.
        beyond = section.height() - self.dock.area.viewport().height()
        self.dock.area.verticalScrollBar().setValue(section.y() + max(beyond, 0))
        settle()

    def rest(self):
        """Wait until nothing runs and nothing is on its way into the window."""
        self.wait(lambda: not self.session.busy)
        for _ in range(2):  # what is found asks for pictures, and those for others
            ended = []
            self.session.task("test", lambda: None, done=ended.append)
            self.wait(lambda e=ended: e and self.dock.shown.settled)

    def run_to(self, step):
        """Do a step with its own button; only those before it may be done with it."""
        self.look_at(self.dock.sections[step])
        self.click(self.dock.sections[step].run_button)
        self.rest()
        done = [name for name in RUN_STEPS if self.session.holds(name)]
        assert done == RUN_STEPS[: RUN_STEPS.index(step) + 1], self.told
        assert self.shown(step)

    # --- the camera ----------------------------------------------------------------------------

    def picture(self, name):
        """Take a picture of the window, which has to keep its size."""
        self.rest()
        shot = self.viewer.screenshot(canvas_only=False, flash=False)
        assert shot.shape[:2] == (HEIGHT, WIDTH), name
        picture, path = Image.fromarray(shot[..., :3]), self.folder / f"{name}.png"
        if FOLDER in os.environ:  # in few colours, as small as the documentation has it
            picture = in_few_colours(picture)
        picture.save(path, optimize=FOLDER in os.environ)
        assert path.stat().st_size > 10_000, name

    @contextmanager
    def light(self):
        """The light theme, as a user chooses it in the settings, for a while."""
        from napari.settings import get_settings

        appearance = get_settings().appearance
        appearance.theme = "light"
        settle()
        yield
        appearance.theme = "dark"
        settle()


def in_few_colours(picture):
    """A picture with a palette: the colours of areas as they are, of all others some."""
    shot = np.asarray(picture)
    codes = shot.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    colours, counts = np.unique(codes, return_counts=True)
    common = colours[np.argsort(counts)[-EXACT:]]
    rest = shot[~np.isin(codes, common)][None]
    # What is small and has a colour of its own, as the status of a step, keeps it.
    others = Image.fromarray(rest).quantize(256 - EXACT, Image.Quantize.MAXCOVERAGE)
    exact = [int(part) for code in common for part in divide(code)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(exact + others.getpalette()[: 3 * (256 - EXACT)])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def divide(code):
    """Red, green and blue of a colour in one number."""
    return code >> 16, code >> 8 & 255, code & 255


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """The folder of the pictures."""
    named = os.environ.get(FOLDER)
    folder = Path(named).resolve() if named else tmp_path_factory.mktemp("album")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def field():
    """The demo field on the disk: a stack, references, and what is to be typed."""
    described = lmr_field_description()
    return SimpleNamespace(
        folder=described.parent, content=yaml.safe_load(described.read_text(encoding="utf-8"))
    )


def say_what_it_is(tour, field):
    """Open the stack and type what is known of it."""
    tour.click(tour.dock.head.open_button)
    tour.answer(field.folder / "stack.hdf5")
    tour.wait(lambda: layer_of(tour.viewer, "stack") is not None)
    for section in ("sample", "instrument"):
        for key, value in field.content[section].items():
            if value is not None and value != tour.state.value(section, key):
                text = value if isinstance(value, str) else f"{value:g}"
                tour.put("data", section, key, text=text)
    tour.put("data", "edge", text=field.content["edge"])
    tour.dock.sections["data"].form.more.open(False)


def take_i0(tour):
    """Draw round the open area, and make it I0 by a click."""
    tour.tab("Spectra")
    layer = tour.draw_rectangle(*OPEN_AREA)
    buttons = tour.dock.spectra.buttons
    tour.wait(lambda: buttons["i0"].isEnabled())
    tour.rest()
    tour.look_at(tour.dock.sections["i0"])
    tour.picture("region")
    tour.click(buttons["i0"])
    found = np.array(tour.state.value("i0", "region"))
    assert abs(found - OPEN_AREA).max() <= 1
    tour.viewer.layers.remove(layer)


def add_references(tour, field):
    """Add both references in one dialog, and type their valences."""
    references = tour.section("energy").references
    tour.click(references.add)
    tour.answer(*(field.folder / f"{name}.csv" for name in ("mn3", "mn4")))
    for row, name in enumerate(references.names):
        tour.type_into_cell(row, 2, name[-1])
    tour.type(references.fraction, "mn3")


@pytest.fixture(scope="module")
def tour(napari_with_plugin, field, album):
    """The whole method, each step by its own button, with a picture of it."""
    with opened_window(napari_with_plugin) as window:
        tour = Tour(window, album)
        tour.picture("start")
        say_what_it_is(tour, field)
        before = {"i0": take_i0, "energy": lambda t: add_references(t, field)}
        before["models"] = lambda t: t.put("models", "models", "shape", text="sphere")
        for step in RUN_STEPS:
            before.get(step, lambda t: None)(tour)
            tour.run_to(step)
            if step == "particles":
                tour.tab("Particles")
            tour.look_at(tour.dock.sections[step])
            tour.picture(step)
        yield tour


def test_what_was_typed_is_what_the_field_is(tour, field):
    described = config.parse_run(tour.state.content())
    paths = {name: {**one, "file": str(field.folder / one["file"])}
             for name, one in field.content["references"].items()}  # fmt: skip
    expected = {
        **field.content,
        "technique": None,
        "stack": str(field.folder / "stack.hdf5"),
        "references": paths,
        "i0": {"region": tour.state.value("i0", "region")},
        "models": {"shape": "sphere"},
    }
    assert described == config.parse_run(expected)
    assert not [text for level, text in tour.told if level == "error"]
    assert not tour.window.messages


def test_spectra_frames_and_particles_at_hand(tour):
    layer = layer_of(tour.viewer, "particles")
    table = tour.session.group("particles")
    assert table.sizes["particle"] == 14
    tour.tab("Particles")
    chosen = table.isel(particle=int(np.argmax(table["radius"].values)))
    label, (y, x) = int(chosen["particle"]), (float(chosen["y"]), float(chosen["x"]))
    tour.viewer.layers.selection.active = layer_of(tour.viewer, "stack")
    tour.click_on(y, x)
    assert tour.session.particle == label
    assert tour.dock.particles.table.chosen() == [label]
    assert tour.dock.particles.fit.title().startswith(f"{label}, ")
    assert layer.selected_label == label
    tour.look_at(tour.dock.sections["particles"])
    tour.picture("particle")

    tour.tab("Spectra")
    tour.point(y, x)
    shown = tour.dock.spectra.table
    tour.wait(lambda: shown.rowCount() == 2 and shown.item(1, 1).text())
    assert shown.item(1, 0).text() == f"particle {label}"
    inside = layer.data == label
    expected = tour.session.analysis.spectrum(inside)
    fraction, _, error = shown.item(1, 1).text().partition(" ± ")
    assert abs(float(fraction) - float(expected["mn3_fraction"])) <= float(error)
    tour.look_at(tour.dock.sections["composition"])
    tour.picture("spectra")
    tour.leave()

    tour.tab("Frames")
    compare = tour.dock.frames.compare
    tour.dock.frames.choose(30)
    tour.click(compare.start)
    tour.wait(lambda: layer_of(tour.viewer, "flicker") is not None)
    seen = [layer_of(tour.viewer, "flicker").data]
    tour.wait(lambda: layer_of(tour.viewer, "flicker").data is not seen[0], 10)
    assert not np.array_equal(seen[0], layer_of(tour.viewer, "flicker").data)
    tour.look_at(tour.dock.sections["align"])
    tour.picture("frames")
    tour.click(compare.start)
    assert layer_of(tour.viewer, "flicker") is None


def test_the_light_theme_reads_as_well(tour):
    tour.tab("Particles")
    with tour.light():
        for name in ("energy", "models"):
            tour.look_at(tour.dock.sections[name])
            tour.rest()
            drawn = tour.dock.sections[name].picture
            paper = drawn.pixmap().toImage().pixelColor(1, 1)
            assert paper == drawn.palette().window().color()
            assert paper.lightness() > 180
            tour.picture(f"{name}-light")
        tour.look_at(tour.dock.saving)
        tour.picture("save-light")


def same(one, other):
    """Assert that all groups of two results agree to the last bit; how they were made may not."""
    names = [{node.path for node in tree.subtree} - {"/entry/process"} for tree in (one, other)]
    assert names[0] == names[1]
    assert {"/entry/maps", "/entry/models", "/entry/heterogeneity", "/entry/oxygen"} <= names[0]
    for name in names[0]:
        assert (
            one[name].to_dataset(inherit=False).identical(other[name].to_dataset(inherit=False))
        ), name


def test_the_numbers_are_those_of_the_command_line_and_of_the_replay(
    tour, napari_with_plugin, tmp_path
):
    saving = tour.dock.saving
    tour.look_at(saving)
    described, out, headless = tmp_path / "mine.yaml", tmp_path / "out", tmp_path / "headless"
    out.mkdir()
    tour.click(saving.save_description)
    tour.answer(described)
    tour.wait(described.exists)
    tour.click(saving.save_result)
    tour.answer(out)
    tour.wait(lambda: any("Saved" in text and "result.h5" in text for _, text in tour.told))
    saved = read_result(out / "result.h5")
    same(saved, read_result(batch.run(config.load_run(described), headless)))
    for name in ("particles.csv", "models.csv"):
        assert (out / name).read_bytes() == (headless / name).read_bytes()

    with opened_window(napari_with_plugin) as window:
        again = Tour(window, tmp_path)
        again.look_at(again.dock.saving)
        again.click(again.dock.saving.replay_result)
        again.answer(out / "result.h5")
        again.wait(lambda: again.session.holds("heterogeneity") and not again.session.busy)
        assert set(again.statuses().values()) == {Status.DONE}
        same(saved, again.session.tree())
        assert layer_of(again.viewer, "particles").data.max() == 14


def test_what_is_wrong_with_the_open_area_is_said_and_mended(tour):
    section, message = tour.dock.sections["i0"], tour.dock.head.message
    tour.told.clear()
    tour.put("i0", "i0", "region", text="[0, 190, 230, 240]")
    tour.look_at(section)
    tour.click(section.run_button)
    tour.rest()
    assert message.level == "error"
    assert "reaches outside the frames of (190, 220) pixels" in message.text
    assert tour.statuses()["i0"] is Status.FAILED
    assert tour.statuses()["energy"] is Status.STALE
    assert "reaches outside" in tour.shown("i0")
    tour.picture("wrong")
    # The middle of a particle is no open area: that is used, with a word of warning.
    tour.put("i0", "i0", "region", text="[25, 40, 48, 60]")
    tour.click(tour.section("energy").run_button)
    tour.rest()
    assert message.text == ""
    assert tour.session.holds("energy")
    section.warnings.open()
    assert "may have no open area" in section.warning_text.text()
    assert section.warning_text.isVisible()
    for _ in range(2):
        tour.click(tour.dock.head.undo_button)
    tour.click(section.run_button)
    tour.rest()
    assert tour.session.holds("i0")
    assert not section.warnings.isVisible()
    assert [level for level, _ in tour.told] == ["error"], tour.told


def test_deleted_layers_in_use_leave_all_usable(tour):
    tour.tab("Particles")
    tour.session.choose(3)
    tour.tab("Frames")
    tour.click(tour.dock.frames.compare.start)
    tour.wait(lambda: layer_of(tour.viewer, "flicker") is not None)
    tour.click(tour.dock.frames.left_out.paint)
    tour.told.clear()
    while tour.viewer.layers:
        tour.viewer.layers.remove(tour.viewer.layers[-1])
        settle()
    assert not tour.dock.frames.compare.start.isChecked()
    for title in ("Spectra", "Frames", "Particles"):
        tour.tab(title)
    tour.session.choose(4)
    tour.dock.particles.actions_by_name["Split"].trigger()
    assert [level for level, _ in tour.told] == ["info", "error"], tour.told
    assert "layer of particle 3 was removed" in tour.told[0][1]
    assert "Run the step Particles" in tour.dock.head.message.text
    tour.put("particles", "segment", "min_radius_nm", text="80")
    tour.click(tour.section("particles").run_button)
    tour.rest()
    assert tour.session.holds("particles")
    assert layer_of(tour.viewer, "particles") is not None
    tour.dock.head.undo()
    tour.rest()
    assert len(tour.told) == 2, tour.told
