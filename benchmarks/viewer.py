"""How fast the napari plugin answers, in a real window, on a stack of 60 x 1024 x 1024.

The window of 1280 x 800 holds the dock with all its panels. A timer of 5 ms in the event loop finds
the longest time for which the window was frozen, in every step of the method. Times are those of
the wall, so that other work on the machine counts: medians are given, and 95 % in brackets.
Without a screen it runs under ``xvfb-run``.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from memory import write_scan

STEPS = ("data", "align", "i0", "energy", "composition", "particles", "models", "heterogeneity")
TICK_MS, LONGEST_S = 5, 1800.0
REPEATS, CYCLES, FIRST_CYCLES = 40, 50, 3
#: Bars of the issue, s and bytes.
FROZEN_S, CURSOR_S, SLIDER_S, PREVIEW_S, OPEN_S, GROWTH = 0.1, 0.05, 0.05, 0.5, 2.0, 100e6
MANIFEST = Path(__file__).resolve().parents[1] / "spectromap" / "plugin" / "napari.yaml"

Row = tuple[str, str, str, float, bool]


class Watchdog:
    """A timer in the event loop; late ticks tell how long the window was frozen."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.setInterval(TICK_MS)
        self.timer.timeout.connect(self._tick)
        self.last = time.perf_counter()
        self.longest = 0.0
        self.condition: Callable[[], bool] | None = None
        self.quit: Callable[[], None] | None = None

    def _tick(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self.last - TICK_MS / 1e3)
        self.last = now
        if self.condition is not None and self.quit is not None and self.condition():
            self.quit()

    def wait_for(self, condition: Callable[[], bool]) -> float:
        """Run the event loop until something is so; the time it took, in s."""
        from qtpy.QtCore import QEventLoop

        started = self.last = time.perf_counter()
        loop = QEventLoop()
        late = started + LONGEST_S
        self.condition = lambda: condition() or time.perf_counter() > late
        self.quit = loop.quit
        self.timer.start()
        loop.exec()
        self.timer.stop()
        self.condition = self.quit = None
        if time.perf_counter() > late:
            raise TimeoutError("what was waited for did not happen")
        return time.perf_counter() - started

    def rest(self, seconds: float) -> None:
        """Run the event loop for a while."""
        end = time.perf_counter() + seconds
        self.wait_for(lambda: time.perf_counter() > end)

    def frozen(self) -> float:
        """The longest time for which the window was frozen since this was asked last, in s."""
        longest, self.longest = self.longest, 0.0
        return longest


@contextmanager
def window(title: str) -> Iterator[Any]:
    """A window of 1280 x 800."""
    import napari

    viewer = napari.Viewer(title=title, show_welcome_screen=False)
    viewer.window.resize(1280, 800)
    yield viewer
    viewer.close()


def row(task: str, values: list[float], bar: float, unit: str = "s") -> Row:
    """One line of the table, printed."""
    middle, worst = float(np.median(values)), float(np.percentile(values, 95))
    met = middle <= bar
    text = f"{middle:.3g}" + (f" ({worst:.3g})" if len(values) > 1 else "")
    print(f"{task:44} {text:>18} {unit:3} bar {bar:<5g} {'' if met else 'MISSED'}", flush=True)
    return task, text, unit, bar, met


def drawn() -> None:
    """Let the window draw what has changed."""
    from qtpy.QtWidgets import QApplication

    for _ in range(3):
        QApplication.processEvents()


def spent(function: Callable[..., object], *args: object) -> float:
    """How long something takes until it is drawn, in s."""
    started = time.perf_counter()
    function(*args)
    drawn()
    return time.perf_counter() - started


def method_rows(folder: Path, last: str) -> list[Row]:
    """The method step by step, and what the user does meanwhile."""
    from spectromap.plugin.dock._dock import Dock

    description = write_scan(folder, 60, 1024)
    dog, rng = Watchdog(), np.random.default_rng(0)
    with window("method") as viewer:
        dock = Dock(viewer)
        viewer.window.add_dock_widget(dock, area="right", name="spectromap")
        dog.rest(1.0)
        rows = open_rows(dock, dog, description)
        rows += slider_rows(viewer, rng)
        for step in STEPS[: STEPS.index(last) + 1]:
            rows += step_rows(dock, dog, step)
            if step in ("data", "energy"):
                rows += cursor_rows(dock, dog, rng, step)
            if step == "energy":
                rows += preview_rows(dock, dog)
        dock.session.close()
    return rows


def open_rows(dock: Any, dog: Watchdog, description: Path) -> list[Row]:
    """Opening the description, and reading all frames in the background."""
    from spectromap.plugin._layers import content_of
    from spectromap.plugin._shown import layer_of

    viewer = dock.session.viewer
    dog.frozen()
    started = time.perf_counter()
    dock.session.open(description)
    dog.wait_for(lambda: layer_of(viewer, "stack") is not None)
    took = time.perf_counter() - started
    frames = content_of(layer_of(viewer, "stack")).frames
    read = dog.wait_for(lambda: frames.complete)
    print(f"all frames read ahead after {read:.1f} s")
    return [row("open", [took], OPEN_S), row("open: frozen", [dog.frozen()], FROZEN_S)]


def slider_rows(viewer: Any, rng: np.random.Generator) -> list[Row]:
    """Moving the slider to frames that were seen."""
    times = [spent(viewer.dims.set_current_step, 0, k) for k in rng.permutation(60)]
    return [row("energy slider", times[:REPEATS], SLIDER_S)]


def step_rows(dock: Any, dog: Watchdog, step: str) -> list[Row]:
    """Running a step, until what it found is shown."""
    session = dock.session
    dog.frozen()
    shown: list[object] = []
    session.run(step)
    took = dog.wait_for(lambda: not session.busy)
    if not session.holds(step):
        raise RuntimeError(f"{step}: {session.state.text(step)}")
    session.task("benchmark", lambda: None, done=shown.append)
    took += dog.wait_for(lambda: bool(shown))
    print(f"{step} took {took:.1f} s")
    return [row(f"{step}: frozen", [dog.frozen()], FROZEN_S)]


def cursor_rows(dock: Any, dog: Watchdog, rng: np.random.Generator, step: str) -> list[Row]:
    """The spectrum under the cursor, from the move of the mouse until it is drawn."""
    from spectromap.plugin.panels._spectra import SpectrumPanel

    panel = dock.window().findChild(SpectrumPanel)
    viewer, stack = dock.session.viewer, dock.session.stack
    panel.parentWidget().parentWidget().setCurrentWidget(panel)
    times = []
    for y, x in rng.integers(200, 800, (REPEATS, 2)):
        name = f"cursor ({x}, {y})"
        started = time.perf_counter()
        viewer.cursor.position = (0.0, float(stack.y[y]), float(stack.x[x]))
        dog.wait_for(lambda name=name: panel.table.item(0, 0).text() == name)
        drawn()
        times.append(time.perf_counter() - started)
    return [row(f"cursor spectrum after {step}", times, CURSOR_S)]


def preview_rows(dock: Any, dog: Watchdog) -> list[Row]:
    """The preview of what is seen, from the move of the camera until it is shown."""
    from spectromap.plugin._shown import layer_of

    viewer, times = dock.session.viewer, []
    dog.wait_for(lambda: layer_of(viewer, "preview") is not None)
    dog.frozen()
    for zoom in (2.0, 1.2, 1.2, 0.6, 0.7, 1.1):
        before = layer_of(viewer, "preview").data
        viewer.scene.camera.zoom *= zoom
        changed = lambda before=before: layer_of(viewer, "preview").data is not before  # noqa: E731
        times.append(dog.wait_for(changed))
    return [
        row("preview of the visible region", times, PREVIEW_S),
        row("preview: frozen", [dog.frozen()], FROZEN_S),
    ]


def large_rows(folder: Path) -> list[Row]:
    """A stack of 16 GB, of which only what is seen is read."""
    path = folder / "large.hdf5"
    shape = (60, 8192, 8192)
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry1")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXstxm"
        data = entry.create_group("counter0")
        data.attrs["NX_class"], data.attrs["signal"] = "NXdata", "data"
        data.attrs["axes"] = ["energy", "sample_y", "sample_x"]
        # Chunks that were never written read as the fill value and take no place on the disk.
        data.create_dataset(
            "data", shape, "f4", chunks=(1, *shape[1:]), fillvalue=1000.0, compression="gzip"
        )
        data["energy"] = 638.0 + 0.25 * np.arange(shape[0])
        data["sample_y"], data["sample_x"] = (0.01 * np.arange(n) for n in shape[1:])
    with window("large") as viewer:
        drawn()
        took = spent(lambda: viewer.open(path, plugin="spectromap"))
        moved = [spent(viewer.dims.set_current_step, 0, k) for k in (40, 41, 20)]
        print(f"another frame of it after {np.median(moved):.2f} s")
    return [row("open 16 GB", [took], OPEN_S)]


def memory_rows(folder: Path) -> list[Row]:
    """How much the process grows when stacks are opened and closed."""
    dog, sizes = Watchdog(), []
    with window("memory") as viewer:
        for _ in range(FIRST_CYCLES + CYCLES):
            (layer,) = viewer.open(folder / "scan.hdf5", plugin="spectromap")
            for step in (10, 50, 30):
                viewer.dims.set_current_step(0, step)
            dog.rest(0.1)
            del layer
            viewer.layers.clear()
            dog.rest(0.1)
            sizes.append(resident())
    grown = sizes[-1] - sizes[FIRST_CYCLES - 1]
    return [row(f"growth, {CYCLES} stacks opened and closed", [grown / 1e6], GROWTH / 1e6, "MB")]


def resident() -> float:
    """What the process holds, without what the C library only has not given back yet."""
    import psutil

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return float(psutil.Process().memory_info().rss)


def register() -> None:
    """Let napari know the plugin, and nothing of the settings of whoever runs this."""
    from npe2 import PluginManager, PluginManifest

    manager = PluginManager.instance()
    manager.discover()
    if "spectromap" not in manager:
        manager.register(PluginManifest.from_file(MANIFEST))


def main() -> int:
    """Measure, print and, if asked, write; the exit code says whether all bars were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--last", default=STEPS[-1], choices=STEPS, help="last step to run")
    parser.add_argument("--only", default="method,large,memory", help="which parts")
    parser.add_argument("--out", type=Path, help="CSV file for the figures")
    options = parser.parse_args()
    if not os.environ.get("DISPLAY") and shutil.which("xvfb-run"):
        screen = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24"]
        os.execvp(screen[0], [*screen, sys.executable, *sys.argv])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="spectromap-") as name:
        folder = Path(name)
        os.environ["NAPARI_CONFIG"] = str(folder / "settings.yaml")
        register()
        if "method" in options.only:
            rows += method_rows(folder, options.last)
        if "large" in options.only:
            rows += large_rows(folder)
        if "memory" in options.only:
            if not (folder / "scan.hdf5").exists():
                write_scan(folder, 60, 1024)
            rows += memory_rows(folder)
    if options.out:
        with open(options.out, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("task", "value", "unit", "bar", "met"))
            writer.writerows(rows)
    return int(not all(met for *_, met in rows))


if __name__ == "__main__":
    sys.exit(main())
