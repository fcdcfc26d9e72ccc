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
from spectromap.pipeline import in_stack_order

pytestmark = pytest.mark.viewer

PIXEL_NM = 10.0
DISPLACED, BY_PX = 4, (2.3, -1.2)
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
        from spectromap.plugin._frames_panel import FramesPanel
        from spectromap.plugin._session import Session
        from spectromap.plugin._shown import Shown

        self.viewer = window.viewer
        self.session = Session(self.viewer, self.viewer.window._qt_window)
        self.told = []
        self.session.told.connect(lambda kind, text: self.told.append((kind, text)))
        self.shown = Shown(self.session)
        self.panel = FramesPanel(self.session)
        self.dock = self.viewer.window.add_dock_widget(self.panel, area="bottom", name="frames")
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
        return self.panel.flicker.layer()

    def compare(self, how, others="Both neighbours"):
        """Start a comparison, or change it; the pictures that are seen, in turn."""
        self.panel.others.setCurrentText(others)
        self.panel.how.setCurrentText(how)
        if not self.panel.start.isChecked():
            self.panel.start.click()
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

    def close(self):
        self.session.close()
        self.viewer.window.remove_dock_widget(self.dock)
        self.viewer.layers.clear()
        settle()


@pytest.fixture(scope="module")
def one_window(napari_with_plugin):
    with opened_window(napari_with_plugin) as opened:
        yield opened


@pytest.fixture
def bench(one_window, run):
    """One window for all, as at the beamline; what is in it is new."""
    opened = Bench(one_window, run)
    yield opened
    opened.close()


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


def test_a_displaced_frame_is_brought_back_by_the_arrow_keys(bench, made, tmp_path):
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
    print(f"left by eye: {(found() - truth) / PIXEL_NM} pixels")
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
    panel.speed.setValue(5)
    bench.compare("Flicker", "Frame before")
    seen = {}

    def keep():
        seen[panel.side.text()] = np.asarray(bench.layer().data)
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
    panel.flicker.turned.connect(changes.append)
    until(lambda: len(changes) > 4)
    assert set(np.diff(changes)) <= {1, -1}
    overlay = bench.compare("Overlay", "All frames")
    assert not panel.flicker.ticking
    coloured = np.abs(overlay[..., 0].astype(int) - overlay[..., 1])
    assert 0 < coloured.mean() < 40


def test_nothing_flickers_unseen_or_after_its_layer_has_gone(bench):
    panel, flicker = bench.panel, bench.panel.flicker
    bench.do("align")
    bench.compare("Flicker")
    assert flicker.ticking
    bench.dock.setVisible(False)
    settle()
    assert not flicker.ticking
    assert not bench.layer().visible
    bench.dock.setVisible(True)
    until(lambda: flicker.ticking)
    assert bench.layer().visible
    bench.viewer.layers.remove(bench.layer())
    assert not flicker.ticking
    assert not panel.start.isChecked()
    bench.compare("Flicker")
    bench.viewer.layers.clear()
    settle()
    panel.push(1, 0, False)
    bench.compare("Flicker")
    panel.start.click()
    assert len(bench.viewer.layers) == 0
    assert not bench.told


def test_a_closed_viewer_ends_it(napari_with_plugin, run):
    from qtpy.compat import isalive

    with opened_window(napari_with_plugin) as window:
        bench = Bench(window, run)
        bench.do("align")
        bench.compare("Flicker")
        panel = bench.panel
        panel.push(1, 0, False)
        window.viewer.close()
        bench.session.close()
        settle()
        assert not isalive(panel) or not panel.flicker.ticking
        known = weakref.ref(panel)
        del bench, panel
        settle()
        gc.collect()
        assert known() is None
    assert not window.messages


def test_frames_and_pixels_are_left_out(bench, made, tmp_path):
    panel, session = bench.panel, bench.session
    energies = made.stack.energy.values
    # Before the frames are aligned they can be left out, and it says what is missing.
    panel.choose(2)
    assert "Run the step Align" in panel.about.text()
    assert not panel.start.isEnabled()
    panel.leave_out.click()
    panel.apply_mask.click()
    assert bench.told.pop()[0] == "error"
    panel.paint.click()
    layer = bench.viewer.layers.selection.active
    assert layer.mode == "paint"
    layer.brush_size = 8
    layer.paint((20, 30), 1)
    painted = np.asarray(layer.data) > 0
    panel.apply_mask.click()
    plan = load_plan(session.state.description())
    assert plan.exclude_energies == pytest.approx([energies[2]], abs=1e-3)
    np.testing.assert_array_equal(in_stack_order(plan.exclude_mask, session.stack), painted)
    bench.do("composition")
    tree = session.tree()
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
    panel.clear_mask.click()
    assert bench.value("exclude", "mask") is None
    panel.leave_out.click()
    assert bench.value("exclude", "energies") == []
    session.state.undo()
    assert panel.leave_out.isChecked()


def test_registration_looks_at_a_drawn_area(bench):
    viewer, panel, stack = bench.viewer, bench.panel, bench.session.stack
    panel.use_area.click()
    assert "come from a file" in bench.told.pop()[1]
    bench.session.change(("shifts", "file"), None)
    panel.use_area.click()
    assert "nothing is selected" in bench.told.pop()[1]
    corners = np.array([[20, 10], [20, 60], [50, 60], [50, 10]]) * PIXEL_NM - PIXEL_NM / 2
    viewer.add_shapes([corners], shape_type="polygon")
    panel.use_area.click()
    area = in_stack_order(load_plan(bench.session.state.description()).align_mask, stack)
    expected = np.zeros(stack.shape[1:], dtype=bool)
    expected[20:50, 10:60] = True
    np.testing.assert_array_equal(area, expected)
    assert "an area" in panel.area_title.text()
    panel.clear_area.click()
    assert bench.value("shifts", "mask") is None
    # What somebody is still typing is not for the panel to complain of.
    bench.session.change(("shifts", "corrections"), {"642": 3.0})
    bench.session.change(("exclude",), "a few")
    assert panel.about.text()


def test_a_click_in_the_plot_moves_the_slider(bench, tmp_path):
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
    from spectromap.plugin._frames_panel import _Box, _seen

    frames = np.random.default_rng(0).random((1, 200, 240)).astype(np.float32)
    whole = _seen(frames, 0, (3.4, -2.7), _Box((0, 0), (200, 240), 1))
    part = _seen(frames, 0, (3.4, -2.7), _Box((60, 100), (50, 70), 1))
    np.testing.assert_allclose(part, whole[60:110, 100:170], atol=1e-5)
    yy, xx = np.mgrid[:200, :240].astype(np.float32)
    binned = _seen((yy + 2 * xx)[None], 0, (3.0, -2.0), _Box((60, 100), (12, 17), 4))
    expected = (60 + 3 + 1.5 + 4 * np.arange(12))[:, None] + 2 * (100 - 2 + 1.5 + 4 * np.arange(17))
    np.testing.assert_allclose(binned, 16 * expected, rtol=1e-4)
    outside = _seen(frames, 0, (500.0, 0.0), _Box((0, 0), (20, 20), 1))
    assert np.isnan(outside).all()


def test_pictures_of_it(bench, one_window, tmp_path):
    bench.do("align")
    bench.panel.choose(DISPLACED)
    bench.compare("Overlay")
    for theme in ("light", "dark"):
        bench.viewer.theme = theme
        settle()
        one_window.picture(tmp_path / f"frames-{theme}.png")
    least = bench.panel.minimumSizeHint()
    assert least.height() <= 200
    assert least.width() <= 1000
