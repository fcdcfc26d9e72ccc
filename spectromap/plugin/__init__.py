"""The napari plugin: files and results in a window, by the same functions as the command line.

Nothing here is imported by napari before it is used, and nothing here imports napari before a
window is wanted, so that `spectromap.plugin.state` works where napari is not installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectromap.config import load_run
from spectromap.schema import InputError

__all__ = ["view"]

PathLike = str | os.PathLike[str]


def view(paths: PathLike | Sequence[PathLike]) -> None:
    """Open stacks, results and run descriptions in napari, and wait until it is closed.

    Parameters
    ----------
    paths : path, glob or sequence of them
        Each is opened for itself: a stack in any format of `spectromap.open_stack`, a glob of the
        files of one series, a result file, or a run description. A description, or else a stack
        that is named first, is open in the dock too.

    Raises
    ------
    FileError
        A file that is missing, damaged or in no format that is known; no window appears.
    InputError
        napari, a Qt binding or a screen is missing.
    """
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    napari = _napari()
    from spectromap.plugin._companion import show
    from spectromap.plugin._session import DESCRIPTIONS
    from spectromap.plugin.dock._dock import Dock
    from spectromap.plugin.reader import is_result, read_layers

    described = [path for path in named if Path(path).suffix.lower() in DESCRIPTIONS]
    for path in described:
        load_run(path)
    layers = [layer for path in named if path not in described for layer in read_layers(path)]
    viewer = napari.Viewer(title=f"spectromap: {', '.join(map(str, named))}")
    show(viewer, layers)
    dock = Dock(viewer)
    viewer.window.add_dock_widget(dock, name="spectromap", area="right")
    first = (described or named)[0]
    if not is_result(Path(first)):
        dock.session.open(first)
    napari.run()


def _napari() -> Any:
    """The napari module, once it is certain that a window can be opened."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in screens):
        raise InputError(
            "there is no screen for a window",
            where="view",
            remedy="Log in with a desktop, or with ssh -X; pictures: spectromap figures.",
        )
    try:
        import napari
        import qtpy  # noqa: F401 (it is what complains where no Qt binding is installed)
    except ImportError as error:
        raise InputError(
            f"napari cannot be loaded ({error})",
            where="view",
            remedy="Install it with a Qt binding: pip install 'spectromap[napari]' PySide6",
        ) from error
    return napari
