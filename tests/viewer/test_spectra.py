"""Live spectra in a real window: of the cursor, of regions, and what regions are good for."""

from __future__ import annotations

import csv
import functools
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tifffile
import xarray as xr
import yaml
from napari_window import settle

from spectromap import open_stack, read_result, synthetic
from spectromap.batch import load_all
from spectromap.config import load_content, parse_run
from spectromap.pipeline import Analysis

pytestmark = pytest.mark.viewer

PIXEL_NM = 7.0
#: The margin of the demo field that no particle reaches, in pixels: y0, y1, x0, x1.
OPEN = (20, 170, 2, 24)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """The demo field on the disk, without a word on I0, and its truth."""
    folder = tmp_path_factory.mktemp("field")
    path = synthetic.write(synthetic.demo_field(), folder)
    content = yaml.safe_load(path.read_text())
    del content["i0"]
    path.write_text(yaml.safe_dump(content))
    truth = read_result(folder / "truth.h5")["entry/maps"].to_dataset()
    return SimpleNamespace(path=path, stack=open_stack(folder / "stack.hdf5").load(), truth=truth)


@functools.cache
def headless(path, step, i0):
    """What the same steps find without a window, from a description as it would be saved."""
    run = parse_run({**load_content(path), "i0": {"region": list(i0)}})
    stack, plan, scans = load_all(run)
    analysis = Analysis(stack, plan, scans=scans)
    for name in ("data", "align", "i0", "energy"):
        analysis.run(name)
        if name == step:
            break
    return analysis


class Bench:
    """The panel in a window, and what was told."""

    def __init__(self, window, path):
        from qtpy.QtCore import Qt

        from spectromap.plugin._session import Session
        from spectromap.plugin._shown import Shown
        from spectromap.plugin.panels._spectra import SpectrumPanel

        self.window, self.viewer = window, window.viewer
        self.session = Session(window.viewer)
        self.told = []
        self.session.told.connect(lambda kind, text: self.told.append((kind, text)))
        self.shown = Shown(self.session)
        self.panel = SpectrumPanel(self.session)
        dock = window.viewer.window.add_dock_widget(self.panel, area="bottom", name="spectra")
        main = window.viewer.window._qt_window
        main.resizeDocks([dock], [230], Qt.Orientation.Vertical)
        self.session.open(path)
        self.until(lambda: len(self.viewer.layers) > 0 and self.viewer.dims.ndim == 3)

    def until(self, condition, seconds=90):
        from qtpy.QtWidgets import QApplication

        end = time.monotonic() + seconds
        while not condition():
            QApplication.processEvents()
            time.sleep(0.002)
            assert time.monotonic() < end, f"waited in vain; told: {self.told}"
        settle()

    def hover(self, y, x):
        """Move the mouse over a place in nm."""
        from qtpy.QtCore import QPoint
        from qtpy.QtTest import QTest

        settle()
        camera, size = self.viewer.scene.camera, np.array(self.viewer.canvas.size)
        offset = (np.array([y, x]) - np.array(camera.center[-2:])) * camera.zoom
        offset[0] *= -1
        row, column = (round(value) for value in size / 2 + offset)
        native = self.viewer.window._qt_viewer.canvas.native
        QTest.mouseMove(native, QPoint(column + 5, row))
        QTest.mouseMove(native, QPoint(column, row))

    def leave(self):
        """Move the mouse out of the canvas."""
        self.viewer.mouse_over_canvas = False
        settle()

    def run(self, step):
        self.session.run(step)
        self.until(lambda: self.session.holds(step) and not self.session.busy)

    def rectangle(self, y0, y1, x0, x1, kind="rectangle"):
        """Draw a shape around pixels, and wait for its spectrum."""
        edges = [((y - 0.5) * PIXEL_NM, (x - 0.5) * PIXEL_NM) for y in (y0, y1) for x in (x0, x1)]
        start = self.session.stack.y.values[0], self.session.stack.x.values[0]
        corners = np.array([edges[0], edges[1], edges[3], edges[2]]) + start
        layer = self.viewer.add_shapes(
            [corners], shape_type=kind, name=kind, units=("nm", "nm"), edge_width=0
        )
        self.until(lambda: self.row(kind) is not None)
        return layer

    def row(self, name):
        """Texts of a line of the list, once its spectrum is there."""
        table = self.panel.table
        for number in range(table.rowCount()):
            texts = [table.item(number, column).text() for column in range(table.columnCount())]
            if texts[0].startswith(name) and texts[4]:
                return texts
        return None

    def click(self, name):
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        QTest.mouseClick(self.panel.buttons[name], Qt.MouseButton.LeftButton)
        settle()

    def saved(self, path):
        """Spectra of the list as they are saved, by name."""
        self.panel.save(path)
        found = {}
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                found.setdefault(line["spectrum"], []).append(line)
        return {
            name: {key: np.array([float(line[key] or "nan") for line in lines])
                   for key in lines[0] if key not in ("spectrum", "quantity")}
            for name, lines in found.items()
        }  # fmt: skip


@pytest.fixture
def bench(window, field):
    made = Bench(window, field.path)
    yield made
    made.session.close()


def interior(truth, label):
    """Pixels of a particle that no blur and no shift of a pixel mixes with others."""
    from scipy import ndimage

    return ndimage.binary_erosion(truth["particle_label"].values == label, iterations=3)


# --- masks -------------------------------------------------------------------------------------


@pytest.fixture
def image():
    """An image whose pixels are no squares and do not begin at zero."""
    y, x = 100.0 + 4.0 * np.arange(60), -50.0 + 5.0 * np.arange(70)
    return xr.DataArray(np.zeros((60, 70)), coords={"y": y, "x": x}, dims=("y", "x"))


def test_shapes_cover_the_pixels_whose_centres_lie_in_them(napari_with_plugin, image):
    from napari.layers import Shapes

    from spectromap.plugin.panels._regions import shapes_mask

    y, x = np.meshgrid(image.y, image.x, indexing="ij")
    turned = np.deg2rad(25)
    middle, half = np.array([210.0, 120.0]), (61.3, 97.1)
    along = np.array([np.cos(turned), np.sin(turned)])
    across = np.array([-np.sin(turned), np.cos(turned)])
    corners = [middle + a * half[0] * along + b * half[1] * across
               for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]  # fmt: skip
    u = ((y - middle[0]) * along[0] + (x - middle[1]) * along[1]) / half[0]
    v = ((y - middle[0]) * across[0] + (x - middle[1]) * across[1]) / half[1]
    inside = {
        "rectangle": (abs(u) < 1) & (abs(v) < 1),
        "polygon": (abs(u) < 1) & (abs(v) < 1),
        "ellipse": u**2 + v**2 < 1,
    }
    scale, translate = np.array([2.0, 3.0]), np.array([30.0, -7.0])
    for kind, expected in inside.items():
        data = (np.array(corners) - translate) / scale
        layer = Shapes([data], shape_type=kind, scale=scale, translate=translate)
        found = shapes_mask(layer, [0], image)
        # What is nearer to an edge than the chords of the polygon are may fall on either side.
        unsure = abs(np.hypot(u, v) - 1) < 1e-3 if kind == "ellipse" else np.zeros_like(expected)
        np.testing.assert_array_equal(found[~unsure], expected[~unsure])
    # A shape drawn in one frame of a stack lies there in every frame; a line has no inside.
    framed = Shapes([np.insert(np.array(corners), 0, 3, axis=1)], shape_type="polygon")
    np.testing.assert_array_equal(shapes_mask(framed, [0], image), inside["polygon"])
    line = Shapes([np.array(corners[:2])], shape_type="line")
    assert not shapes_mask(line, [0], image).any()


def test_neighbours_share_no_pixel_and_leave_none_out():
    from spectromap.plugin.panels._regions import polygon_mask

    generator = np.random.default_rng(1)
    centre, angles = np.array([10.0, 12.0]), np.linspace(0, 2 * np.pi, 9, endpoint=False)
    rim = centre + 9 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    rim = np.round(rim + generator.normal(size=rim.shape))  # corners and sides hit centres
    parts = [
        polygon_mask([centre, rim[k], rim[(k + 1) % 9]], (22, 25)).astype(int) for k in range(9)
    ]
    np.testing.assert_array_equal(np.sum(parts, axis=0), polygon_mask(rim, (22, 25)).astype(int))
    assert not polygon_mask([(-9, -9), (-9, -2), (-2, -2)], (22, 25)).any()
    assert polygon_mask([(-9, -9), (-9, 99), (99, 99), (99, -9)], (22, 25)).all()


def test_labels_on_another_grid(napari_with_plugin, image):
    from napari.layers import Labels

    from spectromap.plugin.panels._regions import label_mask

    fine = np.zeros((2, 300, 400), dtype=int)
    fine[1, 50:150, 60:200] = 3  # 1.5 nm pixels from (90, -60) on
    layer = Labels(fine, scale=(1, 1.5, 1.5), translate=(0, 90, -60))
    y, x = np.meshgrid(image.y, image.x, indexing="ij")
    row, column = np.rint((y - 90) / 1.5), np.rint((x + 60) / 1.5)
    expected = (row >= 50) & (row < 150) & (column >= 60) & (column < 200)
    np.testing.assert_array_equal(label_mask(layer, 3, image, (1.0, 0, 0)), expected)
    assert not label_mask(layer, 3, image, (0.0, 0, 0)).any()


# --- the panel ---------------------------------------------------------------------------------


def test_counts_then_i0_in_one_click_then_the_composition(bench, field, tmp_path):
    from spectromap.plugin._shown import ROLE

    # Counts of a pixel and of a region, from the file.
    pixel = (114, 92)
    bench.hover(field.stack.y.values[pixel[0]], field.stack.x.values[pixel[1]])
    bench.until(lambda: bench.row("cursor (92, 114)") is not None)
    bench.rectangle(*OPEN)
    region = field.stack.values[:, OPEN[0] : OPEN[1], OPEN[2] : OPEN[3]]

    def read():
        got = bench.saved(tmp_path / "counts.csv")
        return all(np.isfinite(one["value"]).all() for one in got.values()) and got

    bench.until(read)
    counts = read()
    np.testing.assert_allclose(
        counts["cursor (92, 114)"]["value"], field.stack.values[:, *pixel], rtol=1e-7
    )
    mean = region.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(counts["rectangle 1"]["value"], mean, rtol=1e-7)
    bench.window.picture(tmp_path / "counts.png")

    # The same I0 as a run with this region, bit for bit.
    bench.click("i0")
    assert bench.session.state.value("i0", "region") == list(OPEN)
    bench.run("energy")
    expected = headless(field.path, "energy", OPEN)
    for name in ("i0", "i0_errors"):
        found = bench.session.group("i0")[name].values
        np.testing.assert_array_equal(found, expected.groups()["i0"][name].values)

    # A particle: the numbers of the list against the truth, the fit against the same step.
    inside = interior(field.truth, 1)
    labels = bench.viewer.add_labels(
        np.where(inside, 5, 0), scale=(PIXEL_NM,) * 2, units=("nm", "nm"), name="mine",
        translate=(field.truth.y.values[0], field.truth.x.values[0]),
    )  # fmt: skip
    labels.selected_label = 5
    bench.leave()
    bench.until(lambda: bench.row("mine 5") is not None)
    row = bench.row("mine 5")
    thickness = field.truth["thickness"].values[inside]
    fraction = np.average(field.truth["mn3_fraction"].values[inside], weights=thickness)
    assert int(row[4]) == inside.sum()
    assert float(row[1].split()[0]) == pytest.approx(fraction, abs=0.015)
    # The references that the analysis is given are wrong by some percent, as real ones are.
    assert float(row[2].split()[0]) == pytest.approx(thickness.mean(), rel=0.05)
    saved, same = bench.saved(tmp_path / "od.csv")["mine 5"], expected.spectrum(inside)
    np.testing.assert_allclose(saved["value"], same["optical_density"].values, rtol=1e-8)
    np.testing.assert_allclose(saved["fit"], same["fit"].values, rtol=1e-8)
    parts = saved["reference_mn3"] + saved["reference_mn4"] + same["baseline"].values
    np.testing.assert_allclose(parts, saved["fit"], atol=1e-6)

    # What is drawn is that: data, fit, residual.
    drawn = [line.get_ydata() for line in bench.panel.plot.above.lines]
    for name in ("optical_density", "fit"):
        assert any(np.array_equal(one, same[name].values, equal_nan=True) for one in drawn)
    for theme in ("dark", "light"):
        bench.viewer.theme = theme
        bench.window.picture(tmp_path / f"spectra-{theme}.png")

    # A particle that is chosen anywhere is a region too.
    labels.metadata[ROLE] = "particles"
    bench.session.choose(5)
    bench.until(lambda: bench.row("particle 5") is not None)
    assert bench.row("particle 5")[1:] == row[1:]

    # On paper it is white, with what moves in the window; the window stays as it was.
    paper = bench.panel.plot.paper
    bench.panel.save(tmp_path / "plot.png")
    printed = plt.imread(tmp_path / "plot.png")[..., :3]
    assert (printed[0, 0] == 1).all()
    orange = np.abs(printed - np.array([0xE6, 0x9F, 0]) / 255).max(axis=2) < 0.02
    assert orange.sum() > 200
    assert bench.panel.plot.paper == paper != "#ffffff"


def test_slider_pins_and_a_deleted_layer(bench, field, tmp_path):
    energies = field.stack.energy.values
    plot = bench.panel.plot
    bench.viewer.dims.set_current_step(0, 12)
    assert plot._markers[0].get_xdata()[0] == energies[12]
    layer = bench.rectangle(*OPEN)
    assert plot._markers[0].get_xdata()[0] == energies[12]
    # Between two frames, nearer to the right one.
    place = plot.above.transData.transform((0.4 * energies[33] + 0.6 * energies[34], 0))
    click_in(plot, place[0])
    assert bench.viewer.dims.current_step[0] == 34
    assert plot._markers[0].get_xdata()[0] == energies[34]

    bench.click("pin")
    table = bench.panel.table
    bench.until(lambda: table.rowCount() == 3 and table.item(2, 4).text() == str(150 * 22))
    bench.viewer.layers.remove(layer)
    settle()
    assert bench.told[-1][0] == "info"
    assert "removed" in bench.told[-1][1]
    assert [table.item(n, 0).text() for n in range(table.rowCount())][1:] == ["rectangle 1"]
    assert not bench.panel.buttons["pin"].isEnabled()
    bench.hover(700, 640)
    bench.until(lambda: bench.row("cursor") is not None)
    table.cellClicked.emit(1, 5)
    assert table.rowCount() == 1
    bench.panel.save(tmp_path / "spectra.xyz")
    assert bench.told[-1][0] == "error"


def click_in(plot, column):
    """Click into the plot at a column of the figure, in the middle of the upper axes."""
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    box = plot.above.get_window_extent()
    ratio = plot.canvas.device_pixel_ratio
    row = plot.canvas.height() - (box.y0 + box.y1) / 2 / ratio
    place = QPoint(round(column / ratio), round(row))
    QTest.mouseClick(plot.canvas, Qt.MouseButton.LeftButton, pos=place)
    settle()


def test_an_ellipse_is_a_mask_as_i0_and_its_box_is_a_reference(bench, field):
    from spectromap.plugin.panels._regions import shapes_mask

    layer = bench.rectangle(100, 120, 85, 99, kind="ellipse")
    bench.click("i0")
    expected = shapes_mask(layer, [0], bench.session.stack)
    kept = tifffile.imread(bench.session.state.value("i0", "mask"))
    np.testing.assert_array_equal(kept, expected)
    assert 0.7 < expected.sum() / (20 * 14) < 0.85
    bench.click("reference")
    assert bench.panel.naming.isVisible()
    bench.panel.name_edit.setText("mn 3")
    bench.panel.name_edit.returnPressed.emit()
    assert bench.told[-1][0] == "error"
    bench.click("reference")
    bench.panel.name_edit.setText("mn3")
    bench.panel.name_edit.returnPressed.emit()
    assert "box" in bench.told[-1][1]
    reference = bench.session.state.value("references", "mn3")
    assert reference["file"] == str(field.path.with_name("stack.hdf5"))
    assert reference["region"] == [100, 120, 85, 99]
    assert reference["valence"] == 3
    assert bench.session.state.problems() == {}


def test_a_closed_viewer_ends_quietly(bench):
    bench.rectangle(*OPEN)
    bench.hover(700, 640)
    bench.session.run("i0")
    bench.viewer.close()
    settle()
    time.sleep(0.3)
    settle()
    assert [text for kind, text in bench.told if kind == "error"] == []
    assert [m for m in bench.window.messages if m[0] == "error"] == []
