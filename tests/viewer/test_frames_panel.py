"""Shifts corrected by eye in a real window, frames and pixels left out."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest
from make_runs import write_nxstxm, write_run
from make_stacks import make
from napari_window import opened_window, settle

from spectromap.batch import load_plan
from spectromap.pipeline import STEPS, Analysis, in_stack_order

pytestmark = pytest.mark.viewer

PIXEL_NM = 10.0
DISPLACED, BY_PX = 4, (1.3, -1.2)
PATIENCE_S = 20.0


def until(condition):
    """Let the window live until something has happened."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < PATIENCE_S, "nothing happened"
        settle()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def made():
    return make(seed=1, shape=(90, 110), n_energies=12, photons=3000.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, made):
    """A scan whose y goes down in the file, with its true shifts, all but those of one frame."""
    folder = tmp_path_factory.mktemp("run")
    shifts = made.shifts_px.copy()
    shifts[DISPLACED] += BY_PX
    rows = zip(made.stack.energy.values, *(shifts.T * PIXEL_NM), strict=True)
    folder.joinpath("shifts.csv").write_text(
        "energy,shift_y,shift_x\n" + "".join(f"{e},{y},{x}\n" for e, y, x in rows)
    )
    path = write_run(folder, made, shifts={"file": "shifts.csv"})
    write_nxstxm(folder / "scan.hdf5", made.stack.isel(y=slice(None, None, -1)))
    return path


class Bench:
    """A window with a session and its panel for frames."""

    def __init__(self, window, run):
        from spectromap.plugin._session import Session
        from spectromap.plugin._shown import Shown
        from spectromap.plugin.panels._frames_panel import FramesPanel

        self.viewer = window.viewer
        self.session = Session(self.viewer, self.viewer.window._qt_window)
        self.told = []
        self.session.told.connect(lambda kind, text: self.told.append((kind, text)))
        self.shown = Shown(self.session)
        self.panel = FramesPanel(self.session)
        self.dock = self.viewer.window.add_dock_widget(self.panel, area="bottom", name="frames")
        self.run = run
        self.session.open(run)
        until(lambda: len(self.viewer.layers) == 1)

    def do(self, step):
        self.session.run(step)
        until(lambda: self.session.holds(step) or self.told)
        until(lambda: not self.session.busy)
        assert not self.told

    def value(self, *path):
        return self.session.state.value(*path)

    def layer(self):
        return self.panel.compare.flicker.layer()

    def compare(self, how, others="Both neighbours"):
        """Start a comparison, or change it; the pictures that are seen, in turn."""
        controls = self.panel.compare
        controls.others.setCurrentText(others)
        controls.how.setCurrentText(how)
        if not controls.start.isChecked():
            controls.start.click()
        return self.drawn()

    def drawn(self):
        """The picture as it is after all that was asked for."""
        done = []
        self.session.task("after the flicker", lambda: None, done=done.append)
        until(lambda: done)
        until(lambda: self.layer() is not None)
        return np.asarray(self.layer().data)

    def press(self, key, *, small=False, on_canvas=False):
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        canvas = self.viewer.window._qt_viewer.canvas.native
        modifier = Qt.KeyboardModifier.ShiftModifier if small else Qt.KeyboardModifier.NoModifier
        code = getattr(Qt.Key, f"Key_{key}")
        QTest.keyClick(canvas if on_canvas else self.panel, code, modifier)
        return self.drawn()

    def tidy(self):
        """As it was opened, but for what was found."""
        self.panel.compare.start.setChecked(False)
        self.panel.reset_all.click()
        self.session.open(self.run)
        for layer in [one for one in self.viewer.layers if one.ndim == 2 and one.visible]:
            self.viewer.layers.remove(layer)
        self.told.clear()
        settle()


@pytest.fixture(scope="module")
def whole_bench(napari_with_plugin, run):
    """One window for all, as at the beamline; a small one is drawn faster."""
    with opened_window(napari_with_plugin) as window:
        window.viewer.window.resize(1000, 500)
        bench = Bench(window, run)
        yield window, bench
        if vars(bench):
            bench.session.close()


@pytest.fixture
def bench(whole_bench):
    """What is in the window, put in order afterwards."""
    yield whole_bench[1]
    whole_bench[1].tidy()


def disagreement(picture):
    """How far a picture of differences is from white."""
    seen = picture[picture[..., 3] > 0][:, :3].astype(float)
    return np.mean((255 - seen) ** 2)


def align_by_eye(bench):
    """Go on with an arrow key as long as the frames agree better, with coarse and small steps."""
    best = disagreement(bench.drawn())
    for small in (False, True):
        for keys in (("Up", "Down"), ("Right", "Left")):
            before = best
            for key, back in (keys, keys[::-1]):
                while (seen := disagreement(bench.press(key, small=small, on_canvas=small))) < best:
                    best = seen
                bench.press(back, small=small, on_canvas=small)
                if best < before:
                    break


def test_before_the_frames_are_aligned_it_says_what_to_do(bench, made):
    """The first test, as the others have what it found."""
    panel = bench.panel
    panel.choose(2)
    assert "Run the step Align" in panel.about.text()
    assert not panel.compare.start.isEnabled()
    assert not panel.move_by[0].isEnabled()
    panel.left_out.leave_out.click()
    assert bench.value("exclude", "energies") == pytest.approx(
        [made.stack.energy.values[2]], abs=1e-3
    )
    panel.run.click()
    until(lambda: bench.session.group("shifts") is not None and not bench.session.busy)
    until(panel.compare.start.isEnabled)
    assert "left out" in panel.about.text()


def test_a_displaced_frame_is_brought_back_by_the_arrow_keys(bench, made):
    panel, truth = bench.panel, made.shifts_px[DISPLACED] * PIXEL_NM

    def found():
        shifts = bench.session.group("shifts").isel(energy=DISPLACED)
        return np.array([float(shifts["shift_y"]), float(shifts["shift_x"])])

    bench.do("align")
    panel.choose(DISPLACED)
    np.testing.assert_allclose(found() - truth, np.array(BY_PX) * PIXEL_NM, atol=1e-3)
    bench.compare("Difference")
    align_by_eye(bench)
    panel.apply.click()
    assert not panel.apply.isEnabled()
    assert not bench.session.holds("align")
    ((energy, correction),) = bench.value("shifts", "corrections").items()
    assert float(energy) == pytest.approx(made.stack.energy.values[DISPLACED], abs=1e-3)
    bench.do("align")
    np.testing.assert_allclose(found(), truth, atol=0.2 * PIXEL_NM)
    # Moved once more, by typing: it is added to what is there, and the picture goes upwards.
    panel.move_by[0].setValue(5.0)
    panel.apply.click()
    (added,) = bench.value("shifts", "corrections").values()
    np.testing.assert_allclose(np.subtract(added, correction), (-5.0, 0.0), atol=1e-6)
    bench.session.state.undo()
    assert bench.session.holds("align")
    bench.session.state.undo()
    assert bench.value("shifts", "corrections") == {}
    bench.session.state.redo()
    panel.reset.click()
    assert bench.value("shifts", "corrections") == {}
    assert not bench.told


def test_two_pictures_alternate_where_the_frames_are(bench, made):
    panel = bench.panel
    bench.do("align")
    panel.choose(6)
    panel.compare.speed.setValue(5)
    bench.compare("Flicker", "Frame before")
    seen = {}

    def keep():
        seen[panel.compare.side.text()] = np.asarray(bench.layer().data)
        return len(seen) == 2

    until(keep)
    energies = made.stack.energy.values
    assert set(seen) == {f"Seen: {energies[k]:.2f} eV" for k in (5, 6)}
    # Both lie where the particles are in the common frame, darker where there is more.
    thick = made.t4 + made.t3
    for picture in seen.values():
        inside = picture[..., 3] > 0
        assert np.corrcoef(thick[inside], picture[..., 0][inside])[0, 1] < -0.9
    first, second = seen.values()
    assert np.mean(np.any(first != second, axis=-1)) > 0.5
    np.testing.assert_allclose(bench.layer().scale, PIXEL_NM, rtol=1e-5)
    changes = []
    panel.compare.flicker.turned.connect(changes.append)
    until(lambda: len(changes) > 4)
    assert set(np.diff(changes)) <= {1, -1}
    overlay = bench.compare("Overlay", "All frames")
    assert not panel.compare.flicker.ticking
    coloured = np.abs(overlay[..., 0].astype(int) - overlay[..., 1])
    assert 0 < coloured.mean() < 40


def test_nothing_flickers_unseen_or_after_its_layer_has_gone(bench):
    compare = bench.panel.compare
    bench.do("align")
    bench.compare("Flicker")
    assert compare.flicker.ticking
    bench.dock.setVisible(False)
    settle()
    assert not compare.flicker.ticking
    assert not bench.layer().visible
    bench.dock.setVisible(True)
    until(lambda: compare.flicker.ticking)
    assert bench.layer().visible
    bench.viewer.layers.remove(bench.layer())
    assert not compare.flicker.ticking
    assert not compare.start.isChecked()
    assert not bench.told


def test_frames_and_pixels_are_left_out(bench, made):
    panel, out, session = bench.panel, bench.panel.left_out, bench.session
    energies = made.stack.energy.values
    bench.do("align")
    panel.choose(2)
    out.leave_out.click()
    assert not session.holds("data")
    out.apply_mask.click()
    assert bench.told.pop()[0] == "error"
    out.paint.click()
    layer = bench.viewer.layers.selection.active
    assert layer.mode == "paint"
    layer.brush_size = 8
    layer.paint((20, 30), 1)
    painted = np.asarray(layer.data) > 0
    out.apply_mask.click()
    plan = load_plan(session.state.description())
    assert plan.exclude_energies == pytest.approx([energies[2]], abs=1e-3)
    np.testing.assert_array_equal(in_stack_order(plan.exclude_mask, session.stack), painted)
    analysis = Analysis(session.stack, plan)
    for step in STEPS[: STEPS.index("composition") + 1]:
        analysis.run(step)
    tree = analysis.tree()
    np.testing.assert_array_equal(
        np.isnan(tree["/entry/spectra"]["mean_od"].values), np.arange(energies.size) == 2
    )
    thickness = tree["/entry/maps"]["thickness"].values
    assert np.isnan(thickness[20, 30])
    assert np.isfinite(thickness[thickness.shape[0] - 20, 30])
    # The layer follows what is undone; so does the box.
    session.state.undo()
    assert not np.any(layer.data)
    session.state.redo()
    np.testing.assert_array_equal(layer.data > 0, painted)
    out.clear_mask.click()
    assert bench.value("exclude", "mask") is None
    out.leave_out.click()
    assert bench.value("exclude", "energies") == []
    session.state.undo()
    assert out.leave_out.isChecked()


def test_registration_looks_at_a_drawn_area(bench):
    viewer, out, stack = bench.viewer, bench.panel.left_out, bench.session.stack
    out.use_area.click()
    assert "come from a file" in bench.told.pop()[1]
    bench.session.change(("shifts", "file"), None)
    out.use_area.click()
    assert "nothing is selected" in bench.told.pop()[1]
    corners = np.array([[20, 10], [20, 60], [50, 60], [50, 10]]) * PIXEL_NM - PIXEL_NM / 2
    viewer.add_shapes([corners], shape_type="polygon", units=("nm", "nm"))
    out.use_area.click()
    area = in_stack_order(load_plan(bench.session.state.description()).align_mask, stack)
    expected = np.zeros(stack.shape[1:], dtype=bool)
    expected[20:50, 10:60] = True
    np.testing.assert_array_equal(area, expected)
    assert "an area" in out.area_title.text()
    out.clear_area.click()
    assert bench.value("shifts", "mask") is None
    # What somebody is still typing is not for the panel to complain of.
    bench.session.change(("shifts", "corrections"), {"642": 3.0})
    bench.session.change(("exclude",), "a few")
    assert bench.panel.about.text()


def test_a_click_in_the_plot_moves_the_slider(bench):
    from matplotlib.backend_bases import MouseEvent

    panel, viewer = bench.panel, bench.viewer
    bench.do("align")
    canvas, axes = panel.plot.canvas, panel.plot.figure.axes[0]
    settle()
    energy = bench.session.stack.energy.values[9]
    x, y = axes.transData.transform((energy, 0.0))
    canvas.callbacks.process(
        "button_press_event", MouseEvent("button_press_event", canvas, x, y, 1)
    )
    assert viewer.dims.current_step[0] == 9
    viewer.dims.set_current_step(0, 3)
    assert f"{bench.session.stack.energy.values[3]:.2f} eV" in panel.about.text()


def test_a_frame_larger_than_the_screen_is_seen_in_part():
    """What is compared of a large frame lies where the same part of the whole one does."""
    from spectromap.plugin.panels._comparison import Box, seen

    frames = np.random.default_rng(0).random((1, 200, 240)).astype(np.float32)
    whole = seen(frames, 0, (3.4, -2.7), Box((0, 0), (200, 240), 1))
    part = seen(frames, 0, (3.4, -2.7), Box((60, 100), (50, 70), 1))
    np.testing.assert_allclose(part, whole[60:110, 100:170], atol=1e-5)
    yy, xx = np.mgrid[:200, :240].astype(np.float32)
    binned = seen((yy + 2 * xx)[None], 0, (3.0, -2.0), Box((60, 100), (12, 17), 4))
    expected = (60 + 3 + 1.5 + 4 * np.arange(12))[:, None] + 2 * (100 - 2 + 1.5 + 4 * np.arange(17))
    np.testing.assert_allclose(binned, 16 * expected, rtol=1e-4)
    outside = seen(frames, 0, (500.0, 0.0), Box((0, 0), (20, 20), 1))
    assert np.isnan(outside).all()


def test_pictures_of_it(bench, whole_bench, tmp_path):
    window, plot = whole_bench[0], bench.panel.plot
    bench.viewer.window.resize(1280, 800)
    bench.do("align")
    bench.panel.choose(DISPLACED)
    bench.compare("Overlay")
    papers = set()
    for theme in ("dark", "light"):
        bench.viewer.theme = theme
        window.picture(tmp_path / f"frames-{theme}.png")
        papers.add(plot.paper)
    assert len(papers) == 2
    least = bench.panel.minimumSizeHint()
    assert least.height() <= 200
    assert least.width() <= 1000


def test_a_closed_viewer_ends_it(whole_bench):
    """The last test: it closes the window of all."""
    from qtpy.compat import isalive

    window, bench = whole_bench
    bench.do("align")
    bench.compare("Flicker")
    bench.viewer.layers.clear()
    settle()
    bench.panel.push(1, 0, False)
    bench.compare("Flicker")
    bench.panel.compare.start.click()
    assert len(bench.viewer.layers) == 0
    bench.compare("Flicker")
    assert not bench.told
    panel = bench.panel
    flicker = panel.compare.flicker
    bench.viewer.close()
    bench.session.close()
    settle()
    assert not isalive(flicker) or not flicker.ticking
    known = weakref.ref(panel)
    vars(bench).clear()
    del bench, panel, flicker
    settle()
    gc.collect()
    assert known() is None
    assert not window.messages
