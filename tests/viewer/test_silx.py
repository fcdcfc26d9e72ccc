"""silx's own viewer draws the default plot and every group of a result.

Run under a screen of its own::

    xvfb-run -a -s "-screen 0 1600x1000x24" python -m pytest tests/viewer
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from make_results import make_tree

from spectromap.io.results import write_result
from spectromap.schema import RESULT_GROUPS

pytestmark = pytest.mark.viewer

if not os.environ.get("DISPLAY"):
    pytest.skip("needs a screen: run it under xvfb-run", allow_module_level=True)

from silx.gui import qt  # noqa: E402 (Qt must not be loaded without a screen)
from silx.gui.data.DataViewerFrame import DataViewerFrame  # noqa: E402
from silx.io import open as silx_open  # noqa: E402

#: How silx chooses to show each group: the name of the view it brings to the front.
VIEWS = {
    "shifts": "Curve",
    "spectra": "Curve",
    "maps": "Image",
    "particles": "Curve",
    "profiles": "Curve",
    "models": "Image",
    "pooled": "Raw",
    "heterogeneity": "Curve",
    "oxygen": "Curve",
    "process": "HDF5",
}


@pytest.fixture(scope="module")
def application():
    return qt.QApplication.instance() or qt.QApplication([])


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = write_result(make_tree(), tmp_path_factory.mktemp("viewer") / "result.h5")
    with silx_open(str(path)) as opened:
        yield opened


@pytest.fixture
def viewer(application):
    widget = DataViewerFrame()
    widget.resize(1000, 700)
    widget.show()
    yield widget
    widget.setData(None)
    widget.close()
    widget.deleteLater()
    settle(application)


def settle(application):
    """Let Qt draw what it has to draw."""
    for _ in range(10):
        application.processEvents()
        application.sendPostedEvents(None, 0)


def picture(widget, path):
    """Screenshot of a widget, saved, as an array of grey values."""
    settle(qt.QApplication.instance())
    shot = widget.grab()
    assert shot.save(str(path))
    image = shot.toImage().convertToFormat(qt.QImage.Format.Format_RGB32)
    bits = image.constBits()
    bits.setsize(image.sizeInBytes())
    shape = (image.height(), image.bytesPerLine() // 4, 4)
    return np.frombuffer(bits, np.uint8).reshape(shape)[:, : image.width(), :3].copy()


def coloured(image):
    """Number of pixels of the plot area that are not grey: curves and colour maps."""
    plot = image[80:-120, 60:-60].astype(int)
    return int(np.count_nonzero(np.ptp(plot, axis=2) > 40))


def test_default_plot(viewer, result, tmp_path):
    """Given the file alone, silx goes to the map of the fraction."""
    viewer.setData(result)
    shown = picture(viewer, tmp_path / "default.png")
    assert "Image" in viewer.displayedView().label()
    assert coloured(shown) > 50_000, "the map is blank"
    colours = np.unique(shown.reshape(-1, 3), axis=0)
    assert len(colours) > 100, "the map is of one colour"


@pytest.mark.parametrize("group", RESULT_GROUPS)
def test_every_group_is_drawn(viewer, result, tmp_path, group):
    viewer.setData(result["entry"][group])
    shown = picture(viewer, tmp_path / f"{group}.png")
    assert VIEWS[group] in viewer.displayedView().label()
    assert shown.std() > 5, "the screen is blank"
    if VIEWS[group] in ("Curve", "Image"):
        assert coloured(shown) > 300, "the plot is blank"
