"""Particles chosen, corrected and exported in a real window, on the simulated field."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from napari_window import opened_window, settle

from spectromap.io import results
from spectromap.io.masks import read_labels
from spectromap.plugin._session import Session
from spectromap.plugin._shown import Shown, layer_of
from spectromap.plugin.panels._particle_table import ParticleTable, particle_columns
from spectromap.plugin.panels._particles import DRAWING, RING_ROLE, ParticlePanel
from spectromap.plugin.samples import lmr_field_description
from spectromap.profiles import radial_profiles

pytestmark = pytest.mark.viewer

WAIT_S = 90.0


class Work:
    """A session on the field, with the panel in a window, and the hands of a user."""

    def __init__(self, window, path):
        from qtpy.QtWidgets import QTabWidget, QWidget

        self.window, self.viewer = window, window.viewer
        self.session = Session(self.viewer)
        self.told = []
        self.session.told.connect(lambda kind, text: self.told.append((kind, text)))
        self.shown = Shown(self.session)
        self.panel = ParticlePanel(self.session)
        self.table, self.fit, self.cloud = self.panel.table, self.panel.fit, self.panel.cloud
        tabs, right = QTabWidget(), QWidget()
        tabs.addTab(self.panel, "Particles")
        right.setMinimumWidth(340)
        self.viewer.window.add_dock_widget(tabs, area="bottom", name="spectromap: data")
        self.viewer.window.add_dock_widget(right, area="right", name="spectromap")
        self.session.open(path)
        # The largest particles, and spheres, so that fitting does not take the time of the tests.
        self.session.change(("segment", "min_radius_nm"), 105.0)
        self.session.change(("models", "shape"), "sphere")

    def wait_for(self, condition):
        """Let the window work until something is so."""
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, f"in vain; told: {self.told}"
            settle()
            time.sleep(0.01)

    def rest(self):
        """Wait until nothing runs and nothing is on its way into the window."""
        self.wait_for(lambda: not self.session.busy and not self.panel.editor._rest.isActive())
        ended = []
        self.session.task("test", lambda: None, done=ended.append)
        self.wait_for(lambda: ended)
        settle()

    def run(self, step):
        """Run to a step, and wait until what it found is shown."""
        self.session.run(step)
        self.rest()
        assert self.session.holds(step), self.told

    @property
    def layer(self):
        return layer_of(self.viewer, "particles")

    @property
    def labels(self):
        """The particles of the newest result."""
        return self.session.group("maps")["particle_label"].values

    def row(self, label):
        return self.table.rows.table.sel(particle=label)

    def on_canvas(self, y, x):
        """The widget of the canvas and a place in nm as one in it."""
        from qtpy.QtCore import QPoint

        camera, size = self.viewer.scene.camera, np.array(self.viewer.canvas.size)
        offset = (np.array([y, x]) - np.array(camera.center[-2:])) * camera.zoom * (-1, 1)
        row, column = np.round(size / 2 + offset).astype(int)
        return self.viewer.window._qt_viewer.canvas.native, QPoint(column, row)

    def click(self, widget, place):
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        settle()
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton, pos=place)
        settle()

    def click_particle(self, label):
        self.click(*self.on_canvas(float(self.row(label)["y"]), float(self.row(label)["x"])))

    def drag(self, *places):
        """Press in the canvas at the first place in nm, and let go at the last."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        settle()
        points = [self.on_canvas(*place) for place in places]
        QTest.mousePress(points[0][0], Qt.MouseButton.LeftButton, pos=points[0][1])
        for widget, point in points[1:]:
            QTest.mouseMove(widget, point)
            settle()
        QTest.mouseRelease(points[-1][0], Qt.MouseButton.LeftButton, pos=points[-1][1])
        settle()

    def press(self, name):
        """Press a button of the tools."""
        self.panel.actions_by_name[name].trigger()
        settle()


@pytest.fixture(scope="module")
def opened(napari_with_plugin):
    with opened_window(napari_with_plugin) as window:
        work = Work(window, lmr_field_description())
        work.run("particles")
        work.first = work.session.state.content()
        yield work
        work.session.close()


@pytest.fixture
def work(opened):
    """Particles as they were found, whatever was done to them before."""
    opened.session.state.replace(opened.first)
    opened.rest()
    opened.run("particles")
    opened.viewer.layers.selection.active = layer_of(opened.viewer, "stack")
    opened.session.choose(0)
    opened.viewer.fit_to_view()
    opened.told.clear()
    yield opened
    assert not [text for kind, text in opened.told if "mistake in spectromap" in text]


def test_a_particle_chosen_in_one_place_is_shown_in_the_others(work):
    labels, layer = work.table.labels(), work.layer
    assert labels == sorted(np.unique(work.labels[work.labels > 0]).tolist())
    assert len(labels) == 6

    def shown(label):
        ring = layer_of(work.viewer, RING_ROLE)
        place = [float(work.row(label)[axis]) for axis in "yx"]
        assert work.session.particle == label
        assert work.table.chosen() == [label]
        assert layer.selected_label == label
        assert work.fit.title().startswith(f"{label}, ")
        np.testing.assert_allclose(ring.data, [place])
        columns = work.cloud.across.currentData(), work.cloud.up.currentData()
        drawn = [value[0] for value in work.cloud._ring.get_data()]
        assert drawn == [float(work.row(label)[name]) for name in columns]

    work.click_particle(labels[3])
    shown(labels[3])
    work.table.sortByColumn(2, work.table.sorted.sortOrder())
    cell = work.table.sorted.index(work.table.labels().index(labels[1]), 1)
    work.click(work.table.viewport(), work.table.visualRect(cell).center())
    shown(labels[1])
    assert work.viewer.layers.selection.active is layer_of(work.viewer, "stack")
    x, y = work.cloud._axes.transData.transform(work.cloud._points[labels.index(labels[4])])
    from qtpy.QtCore import QPoint

    canvas = work.cloud.plot.canvas
    work.click(canvas, QPoint(round(x), round(canvas.height() - y)))
    shown(labels[4])
    # napari's own tool for picking.
    work.viewer.layers.selection.active = layer
    layer.mode = "pick"
    work.click_particle(labels[0])
    layer.mode = "pan_zoom"
    shown(labels[0])
    # A drag moves the field, and chooses nothing.
    middle = [float(work.row(labels[3])[axis]) for axis in "yx"]
    work.drag(middle, (middle[0] + 100, middle[1]), (middle[0] + 200, middle[1] + 50))
    shown(labels[0])
    work.table.sortByColumn(0, work.table.sorted.sortOrder())


def test_the_field_moves_only_to_what_is_out_of_view(work):
    camera, labels = work.viewer.scene.camera, work.table.labels()
    first, last = labels[0], labels[-1]
    camera.zoom *= 3
    camera.center = (0, float(work.row(first)["y"]) + 20, float(work.row(first)["x"]))
    settle()
    before = tuple(camera.center)
    work.session.choose(first)
    assert tuple(camera.center) == before
    work.session.choose(last)
    np.testing.assert_allclose(camera.center[-2:], [work.row(last)["y"], work.row(last)["x"]])


def test_the_plot_is_the_profile_with_both_models_and_what_they_leave(work, tmp_path):
    label = work.table.labels()[2]
    work.session.choose(label)
    assert len(work.fit.figure.axes) == 2  # the profile is there before the models are
    assert "not fitted" in work.fit.title()
    work.run("models")
    upper, lower = work.fit.figure.axes
    profile = work.session.group("profiles").sel(particle=label)
    models = work.session.group("models").sel(particle=label)
    values, errors = profile["mn3_fraction"].values, profile["mn3_fraction_errors"].values
    drawn = [np.asarray(line.get_ydata(), float) for line in upper.lines]
    for expected in (values, *models["fit"].values):
        assert any(np.array_equal(line, expected, equal_nan=True) for line in drawn)
    pulls = [np.asarray(line.get_ydata(), float) for line in lower.lines]
    for curve in models["fit"].values:
        expected = (values - curve) / errors
        assert any(np.array_equal(line, expected, equal_nan=True) for line in pulls)
    assert str(models["verdict"].item()) in work.fit.title()
    D = float(models["D_cm2_s"].sel(model="diffusion"))
    mantissa, power = f"{D:.2e}".split("e")
    assert f"D = {float(mantissa):g} (" in work.fit.title()
    assert (
        str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")) in work.fit.title()
    )
    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        path = tmp_path / f"particle.{ending}"
        work.panel.save_figure(path)
        work.rest()
        assert path.read_bytes().startswith(start)
    work.panel.save_figure(tmp_path / "particle.doc")
    work.rest()
    assert "no figure format" in work.told[-1][1]


def test_numbers_sort_as_numbers_and_what_is_not_known_comes_last(napari_with_plugin, tmp_path):
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QApplication

    QApplication.instance() or QApplication([])
    particles = xr.Dataset(
        {
            "radius": ("particle", [90.0, np.nan, 1e3, 110.0, 20.5], {"units": "nm"}),
            "mn3_fraction": ("particle", [0.1, 0.3, 0.2, np.nan, 0.4], {"units": "1"}),
            "mn3_fraction_errors": ("particle", np.full(5, 0.01), {"units": "1"}),
            "agglomerate": ("particle", [0, 10, 9, 0, 1]),
            "used": ("particle", [True, True, False, True, True]),
        },
        {"particle": [1, 2, 5, 11, 20]},
        {"fraction": "mn3"},
    )
    models = xr.Dataset(
        {
            "D_cm2_s": (("particle", "model"), [[1e-17, np.nan], [np.nan, np.nan], [9e-18, 0.0]],
                        {"units": "cm2 s-1"}),
            "goodness": (("particle", "model"), np.full((3, 2), 0.5)),
            "verdict": ("particle", np.array(["diffusion", "undecided", "core-shell"], object)),
        },
        {"particle": [20, 2, 1], "model": np.array(["diffusion", "core-shell"], object)},
    )  # fmt: skip
    shown = particle_columns(particles, None, models)
    table = ParticleTable()
    table.show_table(shown)

    def order(name, direction):
        table.sortByColumn(table.rows.names.index(name), direction)
        return table.labels()

    up, down = Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder
    assert order("radius", up) == [20, 1, 11, 5, 2]
    assert order("radius", down) == [5, 11, 1, 20, 2]
    assert order("D_cm2_s", up)[:2] == [1, 20]
    assert order("D_cm2_s", down)[:2] == [20, 1]
    assert order("agglomerate", down)[:3] == [2, 5, 20]
    assert order("particle", down) == [20, 11, 5, 2, 1]
    assert order("verdict", up)[-3:] == [1, 20, 2]
    titles = dict(zip(table.rows.names, table.rows.titles, strict=True))
    assert titles["radius"] == "radius [nm]"
    assert titles["mn3_fraction"] == "Mn³⁺ fraction"
    assert titles["D_cm2_s"] == "D [cm² s⁻¹]"
    # What is written is what is shown, and reads back as the numbers that they are.
    written = pd.read_csv(table.save(tmp_path / "shown.csv"), keep_default_na=False, na_values=[""])
    assert written["particle"].tolist() == table.labels()
    by_label = written.set_index("particle").loc[[1, 2, 5, 11, 20]]
    np.testing.assert_array_equal(by_label["radius_nm"], particles["radius"])
    np.testing.assert_array_equal(by_label["D_cm2_s"], [9e-18, np.nan, np.nan, np.nan, 1e-17])
    assert by_label["verdict"].fillna("").tolist() == [
        "core-shell",
        "undecided",
        "",
        "",
        "diffusion",
    ]
    results.write_tables(xr.DataTree.from_dict({"/entry/particles": particles}), tmp_path)
    assert set(pd.read_csv(tmp_path / "particles.csv").columns) <= set(written.columns)
    table.choose([5, 11])
    table.copy()
    copied = QApplication.clipboard().text().splitlines()
    assert len(copied) == 3
    assert copied[0].split("\t") == table.rows.titles
    assert {line.split("\t")[0] for line in copied[1:]} == {"5", "11"}


def bit_for_bit(work):
    """The profile that is shown against one computed from the labels in the layer."""
    maps, plan = work.session.group("maps"), work.session.analysis.plan
    np.testing.assert_array_equal(maps["particle_label"].values, work.layer.data)
    resolution = float(work.session.group("spectra")["resolution"])
    expected = radial_profiles(maps, plan.fraction, resolution, **plan.of("profiles"))
    xr.testing.assert_identical(work.panel._known.profiles, expected)
    assert work.table.labels() == sorted(np.unique(maps["particle_label"].values)[1:].tolist())


def test_a_particle_is_split_by_a_line_and_merged_again(work, tmp_path):
    work.run("models")
    before, label = work.labels.copy(), work.table.labels()[2]
    y, x = (float(work.row(label)[axis]) for axis in "yx")
    work.click_particle(label)
    work.press("Split by line")
    assert work.panel.actions_by_name["Split by line"].isChecked()
    assert work.panel.note.text() == f"Draw a line across particle {label}."
    work.window.picture(tmp_path / "line.png")
    work.drag((y - 180, x), (y, x), (y + 180, x))
    assert layer_of(work.viewer, DRAWING) is None
    work.rest()
    after = work.labels
    new = int(before.max()) + 1
    np.testing.assert_array_equal(np.isin(after, [label, new]), before == label)
    assert abs(np.count_nonzero(after == new) / np.count_nonzero(before == label) - 0.5) < 0.1
    np.testing.assert_array_equal(
        np.where(before == label, 0, after), np.where(before == label, 0, before)
    )
    bit_for_bit(work)
    assert not work.session.holds("models")
    assert "not fitted" in work.fit.title()
    assert "models wait" in work.panel.note.text()
    others = [one for one in work.table.labels() if one not in (label, new)]
    assert all(work.row(one)["verdict"] for one in others)  # they are what was fitted
    work.window.picture(tmp_path / "split.png")
    # Merged by clicking one, and then the other.
    work.click_particle(label)
    work.press("Merge")
    work.click_particle(new)
    work.rest()
    np.testing.assert_array_equal(work.labels, before)
    bit_for_bit(work)
    # Undo brings the halves back into the layer, redo makes them one again.
    work.session.state.undo()
    work.rest()
    np.testing.assert_array_equal(work.layer.data, after)
    bit_for_bit(work)
    work.session.state.redo()
    work.rest()
    np.testing.assert_array_equal(work.layer.data, before)
    assert work.told == []


def test_strokes_are_taken_over_once_the_brush_rests(work):
    before, label = work.labels.copy(), work.table.labels()[0]
    area = float(work.row(label)["area"])
    rows, columns = np.nonzero(before == label)
    middle, right = int(rows.mean()), int(columns.max())
    work.viewer.layers.selection.active = work.layer
    work.layer.selected_label, work.layer.brush_size = label, 9
    work.layer.paint((middle, right + 2), label)
    assert work.session.state.value("labels") is None  # not at once
    work.wait_for(lambda: work.session.state.value("labels") is not None)
    work.rest()
    painted = work.labels
    assert np.count_nonzero(painted == label) > np.count_nonzero(before == label)
    np.testing.assert_array_equal(read_labels(work.session.state.value("labels")), painted)
    assert float(work.row(label)["area"]) > area
    bit_for_bit(work)
    # An eraser through the middle leaves two particles.
    work.layer.brush_size = 4
    for row in range(rows.min() - 2, rows.max() + 3):
        work.layer.paint((row, int(columns.mean())), 0)
    work.rest()
    assert work.table.labels() == [*work_labels(before), int(before.max()) + 1]
    bit_for_bit(work)
    for _ in range(2):
        work.session.state.undo()
        work.rest()
    np.testing.assert_array_equal(work.layer.data, before)


def work_labels(labels):
    return np.unique(labels[labels > 0]).tolist()


def test_a_stroke_outlives_a_step_that_ends_meanwhile(work):
    before, label = work.labels.copy(), work.table.labels()[0]
    rows, columns = np.nonzero(before == label)
    work.layer.paint((int(rows.mean()), int(columns.max()) + 3), label)
    stroke = work.layer.data.copy()
    work.layer.data = before  # as a step does that has run since before the stroke
    work.wait_for(lambda: work.session.state.value("labels") is not None)
    work.rest()
    np.testing.assert_array_equal(work.labels, stroke)


def test_particles_are_drawn_deleted_and_put_into_agglomerates(work):
    before = work.labels.copy()
    small = work.session.group("maps")["thickness"].values
    small = np.where(before == 0, np.nan_to_num(small), 0)  # a particle too small to be found
    row, column = np.unravel_index(np.argmax(small), small.shape)
    axes = work.session.group("maps")
    y, x = float(axes["y"][row]), float(axes["x"][column])
    work.press("New")
    work.drag((y - 50, x - 50), (y - 50, x + 50), (y + 50, x + 50), (y + 50, x - 50), (y, x - 60))
    work.rest()
    new = int(before.max()) + 1
    assert work.session.particle == new
    assert work.labels[row, column] == new
    np.testing.assert_array_equal(np.where(work.labels == new, 0, work.labels), before)
    bit_for_bit(work)
    chosen = work.table.labels()[1:4]
    work.table.choose(chosen)
    work.panel.agglomerates.aboutToShow.emit()
    actions = {action.text(): action for action in work.panel.agglomerates.actions()}
    assert list(actions) == ["New agglomerate 1", "None"]
    actions["New agglomerate 1"].trigger()
    work.rest()
    groups = work.table.rows.table["agglomerate"]
    assert sorted(groups["particle"][groups == 1].values) == chosen
    work.table.choose(chosen[:1])
    work.panel.assign(0)
    work.rest()
    groups = work.table.rows.table["agglomerate"]
    assert sorted(groups["particle"][groups == 1].values) == chosen[1:]
    work.table.choose([new, chosen[0]])
    work.press("Delete")
    work.rest()
    assert work.table.labels() == [n for n in work_labels(before) if n != chosen[0]]
    assert work.told == []


def test_what_cannot_be_done_is_said_and_does_nothing(work):
    before = work.labels.copy()
    work.press("Split")
    assert "no particle is chosen" in work.told[-1][1]
    labels = work.table.labels()
    work.table.choose(labels[:2])
    work.press("Merge")
    assert "do not touch" in work.told[-1][1]
    work.session.choose(labels[0])
    work.press("Split")
    assert "no waist" in work.told[-1][1]
    # A line was asked for; its layer is deleted: nobody waits any more.
    work.press("Split by line")
    work.viewer.layers.remove(layer_of(work.viewer, DRAWING))
    settle()
    assert not work.panel.actions_by_name["Split by line"].isChecked()
    # The particles are deleted from the list of layers.
    work.layer.paint((5, 5), 77)
    work.viewer.layers.remove(work.layer)
    settle()
    for name in ("Split", "Split by line", "Merge", "Delete", "New"):
        count = len(work.told)
        work.press(name)
        assert "no layer with the particles" in work.told[count][1]
    work.session.choose(labels[1])
    assert work.table.chosen() == [labels[1]]
    work.rest()
    assert work.session.state.value("labels") is None
    work.session.change(("segment", "min_radius_nm"), 104.0)
    work.run("particles")
    np.testing.assert_array_equal(work.layer.data, before)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_nothing_is_cut_off(work, tmp_path, theme):
    before, work.viewer.theme = work.viewer.theme, theme
    try:
        work.session.choose(work.table.labels()[1])
        work.window.picture(tmp_path / f"particles_{theme}.png")
        for plot in (work.fit, work.cloud.plot):
            figure = plot.figure
            drawn = figure.get_tightbbox(plot.canvas.get_renderer())
            inside = figure.bbox_inches.padded(1 / figure.dpi)
            assert inside.containsx(drawn.x0), plot
            assert inside.containsx(drawn.x1), plot
            assert inside.containsy(drawn.y0), plot
            assert inside.containsy(drawn.y1), plot
        head = work.fit.head
        assert head.heightForWidth(head.width()) <= head.height()
        assert work.panel.height() <= 260
        assert work.viewer.window._qt_window.width() == 1280
    finally:
        work.viewer.theme = before


def test_a_window_that_closes_leaves_nothing_behind(window, tmp_path):
    session = Session(window.viewer)
    panel = ParticlePanel(session)
    window.viewer.window.add_dock_widget(panel, area="bottom")
    settle()
    window.viewer.close()
    settle()
    session.choose(3)
    session.changed.emit()
    session.found.emit("particles")
    settle()
    assert window.messages == []
    session.close()
