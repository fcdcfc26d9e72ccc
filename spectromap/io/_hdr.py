"""The ``.hdr`` grammar of ALS-style microscopes: nested ``{key = value;}`` and ``(list)``.

A header is read as it comes: stray brackets, values without a key, missing semicolons and
misspelled keys are passed over, and only what a caller asks for has to be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectromap.schema import FileError

_TOKEN = re.compile(
    r"""
    "(?P<text>[^"]*)"
    | (?P<mark>[{}()=;,])
    | (?P<bare>[^\s{}()=;,"][^{}()=;,"\r\n]*)
    """,
    re.VERBOSE,
)
_WORDS = {"true": True, "false": False}
#: Real headers nest five deep; a file that goes on is not a header.
_DEEPEST = 40


def read_header(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a ``.hdr`` file into nested dicts and lists.

    Parameters
    ----------
    path : path
        The header.

    Returns
    -------
    dict
        Structures are dicts and lists are lists, whose first value is their count. Values are
        float, bool or str.

    Raises
    ------
    FileError
        The file cannot be read, or is no header of this kind.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # the micro sign of older writers
        text = raw.decode("latin-1")
    header = _Tokens(text, path).structure(outermost=True)
    if not isinstance(header.get("ScanDefinition"), dict):
        raise FileError("there is no ScanDefinition in it", where=path)
    return header


def listed(value: Any) -> list[dict[str, Any]]:
    """Structures of a list such as ``Regions = (2, {..}, {..})``."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(struct: dict[str, Any], key: str) -> float:
    """A finite number of a structure, or NaN where there is none."""
    value = struct.get(key)
    if isinstance(value, bool) or not isinstance(value, float) or not np.isfinite(value):
        return float("nan")
    return value


def axis_points(axis: Any, name: str, where: object) -> NDArray[np.float64]:
    """Points of an axis; in the file the first number is their count.

    Raises
    ------
    FileError
        No axis of that name, no points, or fewer than announced.
    """
    points = axis.get("Points") if isinstance(axis, dict) else None
    if not isinstance(points, list) or not points:
        raise FileError(f"{name} has no Points", where=where)
    if not all(isinstance(value, float) and np.isfinite(value) for value in points):
        raise FileError(f"{name} has Points that are not numbers", where=where)
    count, values = int(points[0]), np.array(points[1:], dtype=np.float64)
    if count != values.size or not count:
        raise FileError(
            f"{name} announces {count} Points and lists {values.size}",
            where=where,
            remedy="The header is cut short or was edited; fetch it again from the beamline.",
        )
    return values


class _Tokens:
    """The header's tokens, consumed by one method for each kind of bracket."""

    def __init__(self, text: str, where: object) -> None:
        self.where = where
        self._rest: Iterator[re.Match[str]] = _TOKEN.finditer(text)
        self._held: re.Match[str] | None = None
        self._depth = 0

    def _next(self) -> re.Match[str] | None:
        """The next token, or None at the end."""
        if self._held is not None:
            token, self._held = self._held, None
            return token
        return next(self._rest, None)

    def structure(self, outermost: bool = False) -> dict[str, Any]:
        """What stands between ``{`` and ``}``, or the whole file."""
        self._descend()
        found: dict[str, Any] = {}
        while (token := self._next()) is not None:
            if token["mark"] == "}" and not outermost:
                break
            if token["mark"]:
                continue
            follower = self._next()
            if follower is not None and follower["mark"] == "=":
                found.setdefault(_key(token), self._value())
            else:
                self._held = follower
        self._depth -= 1
        return found

    def _list(self) -> list[Any]:
        """What stands between ``(`` and ``)``."""
        self._descend()
        found: list[Any] = []
        while (token := self._next()) is not None and token["mark"] != ")":
            if token["mark"] == "{":
                found.append(self.structure())
            elif token["mark"] == "(":
                found.append(self._list())
            elif not token["mark"]:  # a stray } of one converter is among the marks passed over
                found.append(_scalar(token))
        self._depth -= 1
        return found

    def _value(self) -> Any:
        """What follows ``key =``."""
        token = self._next()
        if token is None:
            return ""
        if token["mark"] == "{":
            return self.structure()
        if token["mark"] == "(":
            return self._list()
        if token["mark"]:  # nothing between = and ;
            self._held = token
            return ""
        return _scalar(token)

    def _descend(self) -> None:
        """Count one level down."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise FileError(f"brackets nest deeper than {_DEEPEST}: no header", where=self.where)


def _key(token: re.Match[str]) -> str:
    """A token as a key."""
    return str(token["text"] if token["text"] is not None else token["bare"]).strip()


def _scalar(token: re.Match[str]) -> float | bool | str:
    """A token as a value: quoted text stays text."""
    if token["text"] is not None:
        return str(token["text"])
    word = token["bare"].strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return float(word)
    except ValueError:
        return str(word)
