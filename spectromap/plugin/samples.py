"""Sample data for napari: simulated here, nothing is fetched."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import napari

from spectromap import synthetic
from spectromap.plugin._companion import prepared
from spectromap.plugin._layers import LayerData
from spectromap.plugin.reader import read_layers

__all__ = ["lmr_field", "lmr_field_description"]


@functools.cache
def lmr_field_description() -> Path:
    """Simulate the field of `spectromap demo` once and leave its files until the program ends.

    Returns
    -------
    Path
        The run description, ``RUN.yaml``; beside it the scan, the references and ``truth.h5``.
    """
    folder = Path(tempfile.mkdtemp(prefix="spectromap-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return synthetic.write(synthetic.demo_field(), folder)


def lmr_field() -> list[LayerData]:
    """A simulated scan of cycled LMR particles.

    Returns
    -------
    list of (values, arguments, kind)
        The scan; its metadata names the file, beside which lie references and run description.
    """
    layers = read_layers(lmr_field_description().with_name("stack.hdf5"))
    viewer = napari.current_viewer()
    return layers if viewer is None else prepared(viewer, layers)
