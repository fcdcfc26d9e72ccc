"""What a viewer shows of a session: a layer for every step, which follows what is done to it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from make_runs import write_run
from napari_window import settle

from spectromap.align import apply_shifts
from spectromap.plugin._layers import content_of
from spectromap.plugin._session import Session
from spectromap.plugin._shown import Shown, layer_of, visible_box

pytestmark = pytest.mark.viewer

WAIT_S = 60.0


class Work:
    """A session on a small run, and the window that shows it."""

    def __init__(self, window, path):
        self.window, self.viewer = window, window.viewer
        self.session = Session(window.viewer)
        self.told = []
        self.session.told.connect(lambda kind, text: self.told.append((kind, text)))
        self.shown = Shown(self.session)
        self.session.open(path)
        self.wait_for(lambda: self.layer("stack") is not None)

    def layer(self, role):
        return layer_of(self.viewer, role)

    def wait_for(self, condition):
        """Let the window work until something is so."""
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, f"in vain; told: {self.told}"
            settle()
            time.sleep(0.01)

    def run(self, step):
        """Run to a step, and wait until what it found is shown."""
        self.session.run(step)
        self.wait_for(lambda: not self.session.busy)
        assert self.session.holds(step), self.told
        self.rest()

    def rest(self):
        """Wait until nothing is on its way into the window."""
        ended = []
        self.session.task("test", lambda: None, done=ended.append)
        self.wait_for(lambda: ended and self.shown.settled)


@pytest.fixture
def work(window, tmp_path):
    made = Work(window, write_run(tmp_path / "run"))
    yield made
    made.session.close()
    made.session.deleteLater()


def test_every_step_shows_what_it_found(work, tmp_path):
    stack = work.layer("stack")
    assert [layer for layer in work.viewer.layers if layer.visible] == [stack]
    work.run("align")
    assert not work.layer("mean").visible
    aligned = apply_shifts(work.session.stack, work.session.group("shifts")).values
    often = np.isfinite(aligned).sum(axis=0) > 12
    mean = work.layer("mean").data
    np.testing.assert_array_equal(np.isfinite(mean), often)
    np.testing.assert_allclose(mean[often], np.nanmean(aligned[:, often], axis=0), rtol=1e-4)

    work.run("i0")
    area = work.layer("open area")
    np.testing.assert_array_equal(area.data > 0, work.session.group("i0")["open_area"])
    assert area.contour == 1
    work.run("models")
    work.window.picture(tmp_path / "shown.png")
    maps = work.session.group("maps")
    np.testing.assert_array_equal(work.layer("thickness").data, maps["thickness"])
    drawn = np.isfinite(work.layer("fraction").data)
    assert drawn.any()
    np.testing.assert_array_equal(
        work.layer("fraction").data[drawn], maps["mn3_fraction"].values[drawn]
    )
    particles = work.layer("particles")
    np.testing.assert_array_equal(particles.data, maps["particle_label"])
    models = work.session.group("models")
    assert list(particles.features["index"]) == list(models["particle"].values)
    assert list(particles.features["verdict"]) == list(models["verdict"].values)
    assert not work.layer("agglomerates").visible
    for layer in work.viewer.layers:
        assert [str(unit) for unit in layer.units][-2:] == ["nanometer"] * 2
        np.testing.assert_allclose(layer.extent.world[:, -2:], stack.extent.world[:, -2:])
        assert "stale" not in layer.name
    roles = [layer.metadata["spectromap: role"] for layer in work.viewer.layers]
    order = ["stack", "mean", "open area", "thickness", "fraction", "agglomerates", "particles"]
    assert roles == order


def test_layers_follow_changes_and_keep_what_the_user_set(work):
    work.run("composition")
    fraction, thickness = work.layer("fraction"), work.layer("thickness")
    before = fraction.data.copy()
    fraction.contrast_limits = (0.1, 0.3)
    thickness.visible = False
    work.viewer.layers.remove(work.layer("mean"))

    work.session.change(("fit", "baseline"), "none")
    assert fraction.name == "Mn³⁺ fraction (stale)"
    work.run("composition")
    assert work.layer("fraction") is fraction
    assert fraction.name == "Mn³⁺ fraction"
    assert not np.array_equal(fraction.data, before, equal_nan=True)
    assert tuple(fraction.contrast_limits) == (0.1, 0.3)
    assert not thickness.visible
    assert work.layer("mean") is None, "deleted, and its step did not run again"

    work.session.state.undo()
    work.run("composition")
    np.testing.assert_array_equal(fraction.data, before)
    work.viewer.layers.remove(fraction)
    work.session.change(("align", "refine"), False)
    work.run("composition")
    assert work.layer("fraction") is not None
    assert work.layer("mean") is not None
    assert not [text for kind, text in work.told if kind == "error"]


def test_what_users_paint_is_not_what_was_found(work):
    work.run("particles")
    found = work.session.group("maps")["particle_label"].copy(deep=True)
    work.layer("particles").data[:] = 9
    np.testing.assert_array_equal(work.session.group("maps")["particle_label"], found)


def test_the_stack_that_is_open_already_is_taken(window, tmp_path):
    path = write_run(tmp_path / "run")
    (opened,) = window.open(path.with_name("scan.hdf5"))
    work = Work(window, path)
    assert work.layer("stack") is opened
    assert len(window.viewer.layers) == 1

    work.run("i0")
    other = write_run(tmp_path / "other")
    work.session.open(other)
    work.wait_for(lambda: work.layer("stack") not in (None, opened))
    assert opened in window.viewer.layers, "what users have opened is theirs to close"
    assert work.layer("mean") is None
    assert work.layer("open area") is None
    assert content_of(work.layer("stack")).source == str(other.with_name("scan.hdf5"))
    work.session.close()
    work.session.deleteLater()


def test_the_preview_shows_the_visible_region_until_there_is_a_map(work, tmp_path):
    work.run("energy")
    work.wait_for(lambda: work.layer("preview") is not None)
    whole = work.layer("preview").extent.world
    camera = work.viewer.scene.camera
    camera.zoom *= 3
    work.wait_for(lambda: np.ptp(work.layer("preview").extent.world, axis=0)[0] < 0.9 * whole[1, 0])
    work.window.picture(tmp_path / "preview.png")
    rows, columns = visible_box(work.viewer, work.session.stack)
    stack = work.session.stack
    seen = work.layer("preview").extent.world
    step = float(stack.y[1] - stack.y[0])
    for axis, box in (("y", rows), ("x", columns)):
        ends = stack[axis].values[[box.start, box.stop - 1]]
        np.testing.assert_allclose(seen[:, "yx".index(axis)], ends, atol=3 * step)

    preview = np.asarray(work.layer("preview").data)
    work.run("composition")
    assert work.layer("preview") is None
    finite = np.isfinite(preview)
    fraction = work.session.group("maps")["mn3_fraction"][rows, columns].values
    assert abs(np.median(preview[finite]) - np.median(fraction[np.isfinite(fraction)])) < 0.1

    work.session.change(("fit", "baseline"), "none")
    work.wait_for(lambda: work.layer("preview") is not None)
    work.viewer.layers.remove(work.layer("preview"))
    camera.zoom /= 2
    time.sleep(0.3)
    settle()
    work.rest()
    assert work.layer("preview") is None, "deleted, and the energy was not calibrated again"


def test_a_window_closed_at_work_is_left_alone(work):
    begun = []
    work.session.progressed.connect(lambda step, *_: begun.append(step))
    work.session.run("heterogeneity")
    work.wait_for(lambda: "composition" in begun)
    work.viewer.close()
    work.session.close()
    settle()
    time.sleep(0.3)
    settle()
    assert work.session.viewer is None
    assert work.shown.preview(True) is None
