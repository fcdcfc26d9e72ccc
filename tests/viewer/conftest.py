"""A real napari window, with settings of its own, and the plugin registered."""

from __future__ import annotations

import os

import pytest
from napari_window import MANIFEST, opened_window


@pytest.fixture(scope="session")
def napari_with_plugin(tmp_path_factory):
    """The napari module, with the settings of nobody and this plugin."""
    if not os.environ.get("DISPLAY"):
        pytest.skip("needs a screen: run it under xvfb-run")
    os.environ["NAPARI_CONFIG"] = str(tmp_path_factory.mktemp("napari") / "settings.yaml")
    import napari
    from npe2 import PluginManager, PluginManifest

    manager = PluginManager.instance()
    manager.discover()
    if "spectromap" not in manager:
        manager.register(PluginManifest.from_file(MANIFEST))
    return napari


@pytest.fixture
def window(napari_with_plugin):
    """A window that is closed in the end, whatever was done to it."""
    with opened_window(napari_with_plugin) as opened:
        yield opened
