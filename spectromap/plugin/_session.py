"""What one viewer works on: the run description, what its steps found, and who computes."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal  # type: ignore[attr-defined]

from spectromap import batch
from spectromap.config import parse_run
from spectromap.io import open_stack
from spectromap.pipeline import STEPS, Analysis, in_stack_order
from spectromap.plugin._findings import finding
from spectromap.plugin.reader import is_result
from spectromap.plugin.state import State, Status, step_of
from spectromap.schema import LOG, InputError, SpectromapError

__all__ = ["Session"]

DESCRIPTIONS = (".yaml", ".yml")
#: Progress is told at most so often, in s: more would only keep the window busy.
PROGRESS_INTERVAL = 0.1
UNKNOWN_SHARE = -1.0
COMMAND = "napari"


class _Stopped(Exception):
    """Work that was broken off on demand."""


class _Heard(logging.Handler):
    """Warnings of one thread, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread = threading.get_ident()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        text = record.getMessage()
        if record.thread == self.thread and text not in self.messages:
            self.messages.append(text)


class Session(QObject):
    """What one viewer works on.

    Steps run one after another in one thread, short work in another; what they find is told by
    signals in the thread of the window.

    Parameters
    ----------
    viewer : napari.Viewer
        The window; it is not kept alive.
    parent : QObject, optional
        Dies with it.

    Attributes
    ----------
    state : State
        The run description, its history, and how far its steps have got.
    """

    changed = Signal()
    found = Signal(str)
    progressed = Signal(str, str, float)
    told = Signal(str, str)
    particle_chosen = Signal(int)
    _delivered = Signal(object)

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._viewer = weakref.ref(viewer)
        self.state = State()
        self.folder = Path(tempfile.mkdtemp(prefix="spectromap-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, True)
        self._worker = ThreadPoolExecutor(1, "spectromap-steps")
        self._helper = ThreadPoolExecutor(1, "spectromap-tasks")
        self._stop = threading.Event()
        self._closed = False
        self._busy = ""
        self._tasks: dict[str, int] = {}
        self._stacks: dict[str, xr.DataArray | None] = {}
        self._analysis: Analysis | None = None
        self._groups: dict[str, xr.Dataset] = {}
        self._warnings: dict[str, list[str]] = {}
        self._held: set[str] = set()
        self._particle = 0
        self._started = batch.now()
        self._images = 0
        self._last_told = 0.0
        self._end_listening = self.state.listen(self._on_state)
        # Whoever emits is another thread, so this is called in the thread of the window.
        self._delivered.connect(self._call)

    # --- what there is -------------------------------------------------------------------------

    @property
    def viewer(self) -> Any:
        """The viewer, or None once it is closed."""
        return None if self._closed else self._viewer()

    @property
    def stack(self) -> xr.DataArray | None:
        """The lazy stack of the description; None without one that can be opened."""
        named = self.state.value("stack")
        key = repr((named, self.state.value("technique")))
        if named is None:
            return None
        if key not in self._stacks:
            self._stacks = {key: self._opened(named)}
        return self._stacks[key]

    def _opened(self, named: Any) -> xr.DataArray | None:
        try:
            return open_stack(named)
        except SpectromapError as error:
            self.told.emit("error", str(error))
            return None

    @property
    def analysis(self) -> Analysis | None:
        """The steps that are done, with what they found."""
        return self._analysis

    @property
    def busy(self) -> bool:
        """Whether a step runs."""
        return bool(self._busy)

    @property
    def particle(self) -> int:
        """Label of the chosen particle, 0 for none."""
        return self._particle

    def choose(self, label: int) -> None:
        """Choose a particle everywhere.

        Parameters
        ----------
        label : int
            Its label, 0 for none.
        """
        if label != self._particle:
            self._particle = int(label)
            self.particle_chosen.emit(self._particle)

    def group(self, name: str) -> xr.Dataset | None:
        """What was found under a name, the newest, also if it is stale.

        Parameters
        ----------
        name : str
            As in `spectromap.pipeline.Analysis.groups`.

        Returns
        -------
        Dataset or None
        """
        return self._groups.get(name)

    def holds(self, step: str) -> bool:
        """Whether a step is done and nothing that it rests on has changed."""
        return self.state.status(step) is Status.DONE

    def warnings(self, step: str) -> list[str]:
        """What was warned of when a step ran last."""
        return list(self._warnings.get(step, []))

    # --- the description -----------------------------------------------------------------------

    def open(self, path: str | os.PathLike[str], done: Callable[[], None] | None = None) -> None:
        """Take a stack, a run description, or the description of a result; what is wrong is told.

        Parameters
        ----------
        path : path
            The file.
        done : callable
            Is called once the description is there; of a result that is later, because its input
            files are compared with their checksums first.
        """
        path = Path(path)

        def take(content: dict[str, Any]) -> None:
            self.state.replace(content)
            if done is not None:
                done()

        try:
            if path.suffix.lower() in DESCRIPTIONS:
                take(State.from_yaml(path).content())
            elif path.is_file() and is_result(path):
                self.told.emit("info", "Comparing the input files with their checksums.")
                self.task("open", _content_of_result, path, done=take)
            else:
                open_stack(path)
                named = str(path.resolve() if path.exists() else path)
                take({**self.state.content(), "stack": named})
        except SpectromapError as error:
            self.told.emit("error", str(error))

    def change(self, path: Sequence[str], value: Any) -> None:
        """Change one value of the description; a mistake is told and not raised.

        Parameters
        ----------
        path : sequence of str
            Keys from the top.
        value : object
            What YAML could hold.
        """
        try:
            self.state.set(path, value)
        except SpectromapError as error:
            self.told.emit("error", str(error))

    def keep_image(self, name: str, image: NDArray[Any], *, mask: bool = False) -> str:
        """Write a drawn image to a new file, so that the description can name it.

        Parameters
        ----------
        name : str
            Beginning of the name of the file.
        image : ndarray, shape (ny, nx)
            Labels or a mask on the pixels of the stack.
        mask : bool
            Masks are kept in the order of the file of the stack, labels in that of the result.

        Returns
        -------
        str
            The path.

        Raises
        ------
        InputError
            There is no stack, or the image is not on its pixels.
        """
        stack = self._must_have_stack()
        if mask:
            image = in_stack_order(np.asarray(image, dtype=bool), stack, name)
        self._images += 1
        path = self.folder / f"{name}-{self._images:03d}.tif"
        kind = np.uint8 if mask else np.int32
        tifffile.imwrite(path, np.ascontiguousarray(image, dtype=kind), compression="zlib")
        return str(path)

    def region_in_file(self, y0: int, y1: int, x0: int, x1: int) -> list[int]:
        """A box in pixels of the stack, half open, in pixels of its file."""
        stack = self._must_have_stack()
        rows, columns = stack.shape[1:]
        if stack.attrs.get("y_reversed"):
            y0, y1 = rows - y1, rows - y0
        if stack.attrs.get("x_reversed"):
            x0, x1 = columns - x1, columns - x0
        return [int(edge) for edge in (y0, y1, x0, x1)]

    def _must_have_stack(self) -> xr.DataArray:
        stack = self.stack
        if stack is None:
            raise InputError("there is no stack", where="stack", remedy="Open one first.")
        return stack

    def _on_state(self) -> None:
        """Tell of changes, and of steps whose results hold again because a change was undone."""
        if self._closed:
            return
        held = {step for step in STEPS if self.holds(step)}
        again, self._held = held - self._held, held
        self.changed.emit()
        for step in (step for step in STEPS if step in again):
            self.found.emit(step)

    # --- running -------------------------------------------------------------------------------

    def run(self, step: str = STEPS[-1]) -> None:
        """Do everything that is missing for a step, in the background.

        Parameters
        ----------
        step : str
            One of `spectromap.pipeline.STEPS`.
        """
        if self._closed:
            return
        if self._busy:
            self.told.emit("warning", "Something runs already; cancel it, or wait for it.")
            return
        wanted = STEPS[: STEPS.index(step) + 1]
        problems = self.state.problems()
        for name in wanted:
            if name in problems:
                text = "; ".join(problems[name])
                self.state.fail(name, self.state.mark(name), text)
                self.told.emit("error", f"{name}: {text}")
                return
        done = () if self._analysis is None else self._analysis.done
        missing = [s for s in wanted if not self.holds(s) or s not in done]
        if missing:
            self._begin(wanted[wanted.index(missing[0]) :])

    def _begin(self, steps: Sequence[str]) -> None:
        """Hand steps that follow each other to the worker."""
        content = self.state.content()
        self._stop.clear()
        self._busy = steps[0]
        self.state.begin(steps[0])
        # What is changed while they run is not what they rest on.
        frozen = State(content)
        marks = {step: frozen.mark(step) for step in steps}
        self._worker.submit(self._work, content, marks)

    def _work(self, content: dict[str, Any], marks: Mapping[str, str]) -> None:
        """Do steps, in the worker; the window is told of each."""
        heard = _Heard()
        LOG.addHandler(heard)
        steps = list(marks)
        step = steps[0]
        try:
            self._prepare(content, step, steps[-1])
            for step in steps:
                if self._stop.is_set():
                    raise _Stopped
                self._ask(self._step_begins, step)
                heard.messages.clear()
                began = time.perf_counter()
                assert self._analysis is not None
                self._analysis.run(step)
                groups = self._analysis.groups(step)
                text = finding(step, self._analysis.stack, groups, self._analysis.plan.fraction)
                text = f"{text}\n{time.perf_counter() - began:.1f} s".strip()
                self._tell(self._step_ends, step, marks[step], groups, text, list(heard.messages))
        except _Stopped:
            self._tell(self._step_stops, step)
        except SpectromapError as error:
            self._tell(self._step_fails, step, marks[step], str(error))
        except Exception as error:  # a mistake of ours must not end the worker in silence
            LOG.debug("step '%s' failed", step, exc_info=True)
            text = f"{type(error).__name__}: {error} (this is a mistake in spectromap)"
            self._tell(self._step_fails, step, marks[step], text)
        finally:
            LOG.removeHandler(heard)
            self._tell(self._ends)

    def _prepare(self, content: dict[str, Any], first: str, last: str) -> None:
        """Read what the description names; mistakes in what only later steps need do not matter."""
        wanted = STEPS[: STEPS.index(last) + 1]
        needed = {key: value for key, value in content.items() if step_of(key) in wanted}
        try:
            loaded = batch.load_all(parse_run(content, "the description"))
        except SpectromapError:
            if needed == content:
                raise
            loaded = batch.load_all(parse_run(needed, "the description"))
        stack, plan, scans = loaded
        if self._analysis is None or first == STEPS[0]:
            self._analysis = Analysis(
                stack, plan, scans=scans, scratch=self.folder, progress=self._track
            )
        else:
            self._analysis.change(plan, scans, since=first)

    def _track(self, items: list[Any], text: str) -> Iterable[Any]:
        """Items one by one; tells how far they have come, and breaks off on demand."""
        for number, item in enumerate(items):
            if self._stop.is_set():
                raise _Stopped
            now = time.perf_counter()
            if now - self._last_told > PROGRESS_INTERVAL:
                self._last_told = now
                self._tell(self._progress, text, number / len(items))
            yield item

    def _progress(self, text: str, share: float) -> None:
        self.progressed.emit(self._busy, text, share)

    def _step_begins(self, step: str) -> None:
        self._busy = step
        for later in STEPS[STEPS.index(step) :]:
            self.state.outdate(later)
        self.state.begin(step)
        self.progressed.emit(step, "", UNKNOWN_SHARE)

    def _step_ends(
        self,
        step: str,
        mark: str,
        groups: Mapping[str, xr.Dataset],
        text: str,
        warnings: list[str],
    ) -> None:
        self._groups |= groups
        self._warnings[step] = warnings
        self._held.add(step)  # told below, and not once more by the change of the state
        self.state.finish(step, mark, text)
        self.found.emit(step)

    def _step_stops(self, step: str) -> None:
        self.state.cancel(step)
        self.told.emit("info", f"{step}: cancelled")

    def _step_fails(self, step: str, mark: str, text: str) -> None:
        self.state.fail(step, mark, text)
        self.told.emit("error", f"{step}: {text}")

    def _ends(self) -> None:
        step, self._busy = self._busy, ""
        self.progressed.emit(step, "", 1.0)
        self.changed.emit()

    def cancel(self) -> None:
        """Break off what runs, as soon as it can be; what was found before stands."""
        self._stop.set()

    # --- between the threads -------------------------------------------------------------------

    def _call(self, function: Callable[[], None]) -> None:
        """What another thread wants to be done in this one."""
        function()

    def _tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in the thread of the window, soon; nothing once that is closed."""
        if not self._closed:
            try:
                self._delivered.emit(lambda: None if self._closed else function(*args))
            except RuntimeError:  # the window went meanwhile
                self._closed = True

    def _ask(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the thread of the window and wait until it has returned."""
        ready = threading.Event()

        def call() -> None:
            function(*args)
            ready.set()

        self._tell(call)
        while not ready.wait(0.05):
            if self._closed or self._stop.is_set():
                raise _Stopped

    def task(
        self,
        key: str,
        function: Callable[..., Any],
        *args: Any,
        done: Callable[[Any], None] | None = None,
    ) -> None:
        """Do something short in the background; an older one of the same key that waits is dropped.

        Parameters
        ----------
        key : str
            What it is for.
        function, *args
            What is called in another thread; mistakes of the user are told.
        done : callable, optional
            Gets the result, in the thread of the window, unless a newer one is wanted by then.
        """
        if self._closed:
            return
        self._tasks[key] = number = self._tasks.get(key, 0) + 1
        self._helper.submit(self._do_task, key, number, function, args, done)

    def _do_task(
        self,
        key: str,
        number: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        done: Callable[[Any], None] | None,
    ) -> None:
        if self._closed or self._tasks[key] != number:
            return
        try:
            result = function(*args)
        except SpectromapError as error:
            self._tell(self.told.emit, "error", str(error))
        except Exception as error:  # as in `_work`
            LOG.debug("task '%s' failed", key, exc_info=True)
            text = f"{key}: {type(error).__name__}: {error} (this is a mistake in spectromap)"
            self._tell(self.told.emit, "error", text)
        else:
            self._tell(self._task_ends, key, number, result, done)

    def _task_ends(
        self, key: str, number: int, result: Any, done: Callable[[Any], None] | None
    ) -> None:
        if done is not None and self._tasks[key] == number:
            done(result)

    # --- keeping -------------------------------------------------------------------------------

    def tree(self) -> xr.DataTree:
        """The result as far as it has come.

        Raises
        ------
        InputError
            No step was done.
        """
        if self._analysis is None or not self._analysis.done:
            raise InputError("there is no result yet", where="result", remedy="Run a step first.")
        return self._analysis.tree()

    def save_result(self, folder: str | Path) -> Path:
        """Write the result, its tables and its report, as a run would have done.

        Parameters
        ----------
        folder : path
            Folder of the results. The images drawn here are kept there too, so that the result
            can be replayed.

        Returns
        -------
        Path
            The result file.

        Raises
        ------
        InputError
            A step has not been done, or its result is stale.
        FileError
            The folder cannot be written.
        """
        stale = [step for step in STEPS if not self.holds(step)]
        if stale:
            raise InputError(
                f"not done, or stale: {', '.join(stale)}", where="result", remedy="Run all first."
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        described = parse_run(self._with_images_in(Path(folder)), "the description")
        warnings = [text for step in STEPS for text in self.warnings(step)]
        return batch.save(
            self.tree(), described, folder, started=self._started, warnings=warnings,
            command=COMMAND,
        )  # fmt: skip

    def save_description(self, path: str | Path) -> Path:
        """Write the run description, the images drawn here beside it.

        Parameters
        ----------
        path : path
            The YAML file; ``spectromap run --config`` takes it.

        Returns
        -------
        Path

        Raises
        ------
        InputError
            Something in it is missing or wrong.
        FileError
            The file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in DESCRIPTIONS:
            path = path.with_suffix(".yaml")
        return State(self._with_images_in(path.parent)).save(path)

    def _with_images_in(self, folder: Path) -> dict[str, Any]:
        """The description, what was drawn in this session copied to a folder that stays."""

        def kept(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: kept(one) for key, one in value.items()}
            if isinstance(value, str) and Path(value).parent == self.folder:
                return str(_copied(Path(value), folder))
            return value

        return {key: kept(value) for key, value in self.state.content().items()}

    def close(self) -> None:
        """End everything; a step that runs breaks off as soon as it can."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._end_listening()
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._helper.shutdown(wait=False, cancel_futures=True)
        self._analysis = None
        self._groups.clear()
        self._stacks.clear()


def _content_of_result(path: Path) -> dict[str, Any]:
    """What a result says it was made by, if its input files are still the same."""
    content = batch.replay_description(path).model_dump(mode="json", exclude_unset=True)
    return dict(content)


def _copied(image: Path, folder: Path) -> Path:
    """A copy of an image under a name that nothing else has there."""
    target = folder / image.name
    number = 1
    while target.exists() and target.read_bytes() != image.read_bytes():
        target = folder / f"{image.stem}-{number}{image.suffix}"
        number += 1
    if not target.exists():
        shutil.copyfile(image, target)
    return target.resolve()
