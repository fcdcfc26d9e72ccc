"""What the dock knows, without a window: a run description, and how far its steps have got.

The description is the state. A step is done while the part of the description that it rests on,
its own and that of the steps before, is what it was when the step ran; otherwise it is stale. So
undoing a change makes the steps after it valid again without running them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spectromap.config import Run, load_content, parse_run, to_yaml
from spectromap.io._common import written_whole
from spectromap.io._yaml import mistakes
from spectromap.schema import InputError

__all__ = ["STEPS", "State", "Status", "Step", "step_of"]


@dataclass(frozen=True)
class Step:
    """One step of the method.

    Parameters
    ----------
    name, title : str
        For the program and for the eye.
    keys : tuple of str
        Keys of the run description that belong to it. Keys that no step names belong to the
        first one: then every step is done again after a change, which is never wrong.
    """

    name: str
    title: str
    keys: tuple[str, ...] = ()


STEPS = (
    Step("data", "Data", ("technique", "stack", "exclude", "edge", "sample", "instrument", "seed")),
    Step("align", "Align", ("align", "shifts")),
    Step("i0", "I0 and OD", ("i0",)),
    Step("energy", "Energy", ("references", "energy")),
    Step("composition", "Composition", ("fraction", "stray", "fit", "scans")),
    Step(
        "particles",
        "Particles",
        ("segment", "labels", "agglomerates", "agglomerate_labels", "particles"),
    ),
    Step("models", "Profiles and models", ("profiles", "models", "pooled")),
    Step("heterogeneity", "Heterogeneity", ("heterogeneity", "oxygen")),
    Step("save", "Save and replay"),
)
_NAMES = [step.name for step in STEPS]
_OWNERS = {key: step.name for step in STEPS for key in step.keys}


class Status(Enum):
    """How far a step has got."""

    NEW = "new"
    RUNNING = "running"
    DONE = "done"
    STALE = "stale"
    FAILED = "failed"


@dataclass(frozen=True)
class _Outcome:
    """How a step ended, and the state of the description that it rests on."""

    mark: str
    status: Status
    text: str


def step_of(key: str) -> str:
    """Name of the step to which a top-level key of the run description belongs."""
    return _OWNERS.get(key, _NAMES[0])


class State:
    """A run description that is being made, with its history and the progress of its steps.

    It need not be complete or free of mistakes until it is run; `problems` tells what is missing.

    Parameters
    ----------
    content : mapping, optional
        Keys and values of a run description, paths absolute.
    """

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        self._content: dict[str, Any] = copy.deepcopy(dict(content or {}))
        self._before: list[dict[str, Any]] = []
        self._after: list[dict[str, Any]] = []
        self._outcomes: dict[str, _Outcome] = {}
        self._running: set[str] = set()
        self._listeners: list[Callable[[], None]] = []

    # --- the description -----------------------------------------------------------------------

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> State:
        """A state from a run description file, whose paths become absolute.

        Raises
        ------
        FileError, InputError
            The file cannot be read, or holds mistakes; all are named at once.
        """
        content = load_content(path)
        parse_run(content, path)
        return cls(content)

    def to_yaml(self) -> str:
        """The whole run description, defaults included, as YAML text.

        Raises
        ------
        InputError
            Something is missing or wrong.
        """
        return to_yaml(self.description())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the run description; ``spectromap run --config`` takes it.

        Raises
        ------
        InputError
            Something in it is missing or wrong.
        FileError
            The file cannot be written.
        """
        text = self.to_yaml()
        with written_whole(Path(path)) as partial:
            partial.write_text(text, encoding="utf-8")
        return Path(path)

    def description(self) -> Any:
        """The run description, frozen and validated.

        Raises
        ------
        InputError
            Something is missing or wrong; every mistake is named.
        """
        return parse_run(self._content, "the description")

    def content(self) -> dict[str, Any]:
        """A copy of what was set so far."""
        return copy.deepcopy(self._content)

    def value(self, *path: str) -> Any:
        """A value of the description, its default where it was not set.

        Parameters
        ----------
        *path : str
            Keys from the top, such as ``"segment", "threshold_nm"``.

        Raises
        ------
        InputError
            No such key.
        """
        found = _normal(path[0], self._content.get(path[0], _UNSET))
        for key in path[1:]:
            if not isinstance(found, Mapping) or key not in found:
                raise InputError("there is no such key", where=".".join(path))
            found = found[key]
        return copy.deepcopy(found)

    def set(self, path: Sequence[str], value: Any) -> None:
        """Change one value; steps that rest on it become stale, and the change can be undone.

        Parameters
        ----------
        path : sequence of str
            Keys from the top.
        value : object
            What YAML could hold; mistakes are told by `problems` and not here, because a
            description is incomplete while it is typed.

        Raises
        ------
        InputError
            The run description has no such key at its top.
        """
        if path[0] not in Run.model_fields:
            raise InputError("there is no such key", where=path[0])
        changed = self.content()
        level = changed
        for key in path[:-1]:
            below = level.get(key)
            level[key] = dict(below) if isinstance(below, Mapping) else {}
            level = level[key]
        level[path[-1]] = copy.deepcopy(value)
        self._change(changed)

    def replace(self, content: Mapping[str, Any]) -> None:
        """Put another description in place of this one, as one change that can be undone."""
        self._change(copy.deepcopy(dict(content)))

    def problems(self) -> dict[str, list[str]]:
        """What is missing or wrong, by the name of the step to which it belongs."""
        found: dict[str, list[str]] = {}
        try:
            Run.model_validate(self._content)
        except ValidationError as error:
            for one in error.errors():
                text = mistakes([one]).strip().removeprefix("- ")
                # What concerns several keys has no place but begins with the first of them.
                key = str(one["loc"][0]) if one["loc"] else text.partition(":")[0]
                found.setdefault(step_of(key), []).append(text)
        return found

    # --- history -------------------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        """Whether there is a change to make again."""
        return bool(self._after)

    def undo(self) -> None:
        """Take the last change back; nothing happens where there is none."""
        self._move(self._before, self._after)

    def redo(self) -> None:
        """Make the change again that was taken back last."""
        self._move(self._after, self._before)

    def _move(self, source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
        if source:
            target.append(self._content)
            self._content = source.pop()
            self._tell()

    def _change(self, content: dict[str, Any]) -> None:
        if content == self._content:
            return
        self._before.append(self._content)
        self._after.clear()
        self._content = content
        self._tell()

    # --- progress ------------------------------------------------------------------------------

    def mark(self, step: str) -> str:
        """Fingerprint of everything that a step rests on, its own keys and those before.

        Results may be kept under it: two descriptions of the same mark give the same numbers.
        """
        names = _NAMES[: _NAMES.index(step) + 1]
        keys = sorted(key for key in Run.model_fields if step_of(key) in names)
        values = {key: _normal(key, self._content.get(key, _UNSET)) for key in keys}
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def begin(self, step: str) -> str:
        """Say that a step runs now.

        Returns
        -------
        str
            Its mark, to be given to `finish` or `fail`: what changes meanwhile makes the step
            stale from the beginning.
        """
        self._running.add(step)
        self._tell()
        return self.mark(step)

    def finish(self, step: str, mark: str, text: str = "") -> None:
        """Say that a step has ended well, and what it found in a line or two."""
        self._end(step, _Outcome(mark, Status.DONE, text))

    def fail(self, step: str, mark: str, text: str) -> None:
        """Say that a step has failed, and why."""
        self._end(step, _Outcome(mark, Status.FAILED, text))

    def outdate(self, step: str) -> None:
        """Say that what a step found is gone, whatever the description says."""
        outcome = self._outcomes.get(step)
        if outcome is not None:
            self._outcomes[step] = dataclasses.replace(outcome, mark="")

    def cancel(self, step: str) -> None:
        """Say that a step was broken off; what it had found before still stands."""
        self._end(step, None)

    def _end(self, step: str, outcome: _Outcome | None) -> None:
        self._running.discard(step)
        if outcome is not None:
            self._outcomes[step] = outcome
        self._tell()

    def status(self, step: str) -> Status:
        """How far a step has got."""
        if step in self._running:
            return Status.RUNNING
        outcome = self._outcomes.get(step)
        if outcome is None:
            return Status.NEW
        return outcome.status if outcome.mark == self.mark(step) else Status.STALE

    def text(self, step: str) -> str:
        """What a step said when it ended; empty before."""
        outcome = self._outcomes.get(step)
        return "" if outcome is None else outcome.text

    def pending(self, step: str) -> list[str]:
        """Names of the steps to run, in order, for this one to be done."""
        names = _NAMES[: _NAMES.index(step) + 1]
        return [name for name in names if self.status(name) is not Status.DONE]

    # --- who wants to know ---------------------------------------------------------------------

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call a function after every change of the description or of a step's progress.

        Returns
        -------
        callable
            Ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


_UNSET = object()


def _normal(key: str, value: Any) -> Any:
    """A value as the run description holds it, defaults filled in; as it is if it is wrong."""
    field = Run.model_fields.get(key)
    if field is None:
        return None if value is _UNSET else value
    if value is _UNSET:
        value = (
            None
            if field.is_required()
            else field.get_default(call_default_factory=True, validated_data={})
        )
        return _plain(key, value)
    try:
        return _plain(key, _adapter(key).validate_python(value))
    except ValidationError:
        return value


def _plain(key: str, value: Any) -> Any:
    return None if value is None else _adapter(key).dump_python(value, mode="json")


@functools.cache
def _adapter(key: str) -> TypeAdapter[Any]:
    """Checks and writes the value of one top-level key."""
    field = Run.model_fields[key]
    return TypeAdapter(field.rebuild_annotation())
