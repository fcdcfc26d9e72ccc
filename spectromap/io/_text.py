"""Columns of numbers in text files, whatever separates them, with line numbers for messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectromap.schema import FileError

ENERGY_NAME = re.compile(r"energy|^(e|ev|kev|h\u03bd|hv)\b", re.IGNORECASE)
_COMMENT_MARKS = "#%!*"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_XDI_COLUMN = re.compile(r"Column\.(\d+)\s*:\s*(.*\S)", re.IGNORECASE)
#: In this order where several would do; None is any run of spaces.
_SEPARATORS = (";", "\t", ",", None)


@dataclass(frozen=True)
class Table:
    """Rows of a text file, still as text.

    Parameters
    ----------
    where : path
        The file, for messages.
    names : list of str
        One for each column, empty where the file gives none.
    rows : list of (int, list of str)
        Line number, counted from 1, and fields.
    comments : list of str
        Comment lines without their mark.
    comma_decimal : bool
        Whether a comma inside a field is a decimal sign.
    """

    where: Path
    names: list[str]
    rows: list[tuple[int, list[str]]]
    comments: list[str] = field(default_factory=list)
    comma_decimal: bool = False

    def column(self, index: int) -> NDArray[np.float64]:
        """Numbers of one column, counted from 0.

        Raises
        ------
        FileError
            A field is missing, no number, or not finite; the message names the line.
        """
        return np.array([self._value(line, fields, index) for line, fields in self.rows])

    def _value(self, line: int, fields: Sequence[str], index: int) -> float:
        """One number, or an error that names its line and column."""
        name = self.names[index] if index < len(self.names) else ""
        label = f"'{name}'" if name else str(index + 1)
        remedy = "Correct or remove the line."
        if index >= len(fields):
            raise FileError(
                f"line {line} has {len(fields)} columns, and column {label} is wanted",
                where=self.where,
                remedy=remedy,
            )
        value = to_number(fields[index], self.comma_decimal)
        if value is None or not np.isfinite(value):
            raise FileError(
                f"line {line}: column {label} holds '{fields[index]}', which is not a number",
                where=self.where,
                remedy=remedy,
            )
        return value


def to_number(text: str, comma_decimal: bool = False) -> float | None:
    """The number a field holds, NaN for the usual words for it, or None."""
    text = text.strip()
    if comma_decimal:
        text = text.replace(",", ".")
    if _NUMBER.fullmatch(text):
        return float(text)
    return float("nan") if text.lower() in ("nan", "inf", "-inf", "+inf") else None


def read_text(path: str | PathLike[str]) -> str:
    """Text of a file in UTF-8, with or without a byte order mark, or Latin-1.

    Raises
    ------
    FileError
        The file cannot be read or is not text.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path) from error
    if b"\0" in raw:
        raise FileError("is a binary file, not text", where=path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_table(path: str | PathLike[str], least_columns: int = 2) -> Table:
    """Read a text file of columns.

    Commas, semicolons, tabs and spaces separate; lines that begin with ``#``, ``%``, ``!`` or
    ``*`` are comments; lines of words before the numbers are headings, of which the last names the
    columns. Without a heading the names come from XDI's ``Column.N`` lines or from the last
    comment.

    Parameters
    ----------
    path : path
        The file.
    least_columns : int
        How many columns a row of numbers must have.

    Returns
    -------
    Table
        Nothing is converted yet: a column that nobody asks for may hold anything.

    Raises
    ------
    FileError
        No rows of numbers.
    """
    comments, body = _split_lines(read_text(path))
    if not body:
        raise FileError("holds no rows of numbers", where=path)
    separator, comma_decimal = _separator([line for _, line in body])
    rows = [(number, _fields(line, separator)) for number, line in body]
    headings, rows = _split_headings(rows, comma_decimal)
    if not rows or max(len(fields) for _, fields in rows) < least_columns:
        raise FileError(
            f"holds no rows of {least_columns} or more numbers",
            where=path,
            remedy="Give energy and value in columns, separated by commas, tabs or spaces.",
        )
    width = len(rows[0][1])
    names = _names(headings, comments, separator, width)
    return Table(Path(path), names, rows, comments, comma_decimal)


def _split_lines(text: str) -> tuple[list[str], list[tuple[int, str]]]:
    """Comments without their mark, and the other lines with their numbers."""
    comments, body = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped[:1] and stripped[0] in _COMMENT_MARKS:
            comments.append(stripped.lstrip(_COMMENT_MARKS).strip())
        elif stripped:
            body.append((number, line.strip("\r\n ")))
    return comments, body


def _fields(line: str, separator: str | None) -> list[str]:
    """Fields of a line, without the empty one after a trailing separator."""
    if separator is None:  # "Energy (eV)" is one heading
        line = re.sub(r"\s+(?=[(\[])", "", line)
    fields = [part.strip().strip('"').strip() for part in line.split(separator)]
    while len(fields) > 1 and not fields[-1]:
        fields.pop()
    return fields


def _separator(lines: Sequence[str]) -> tuple[str | None, bool]:
    """What separates the columns, judged by a line in the middle; and if commas are decimal."""
    line = lines[len(lines) // 2]
    best: tuple[tuple[bool, int], str | None, bool] | None = None
    for separator in _SEPARATORS:
        comma_decimal = separator != "," and "," in line
        fields = _fields(line, separator)
        count = sum(to_number(part, comma_decimal) is not None for part in fields)
        score = (count == len(fields) and count > 0, count)
        if best is None or score > best[0]:
            best = score, separator, comma_decimal
    assert best is not None
    return best[1], best[2]


def _split_headings(
    rows: list[tuple[int, list[str]]], comma_decimal: bool
) -> tuple[list[list[str]], list[tuple[int, list[str]]]]:
    """Leading rows that name things, and the rows that hold numbers."""

    def numeric(fields: Sequence[str]) -> list[bool]:
        return [to_number(part, comma_decimal) is not None for part in fields]

    first = 0
    for first, (_, fields) in enumerate(rows):
        kinds = numeric(fields)
        # Names such as "energy, 1, 2" hold numbers; the row below them then begins with one.
        below = numeric(rows[first + 1][1]) if first + 1 < len(rows) else [False]
        if any(kinds) and (kinds[0] or not below[0]):
            break
    else:
        return [fields for _, fields in rows], []
    return [fields for _, fields in rows[:first]], rows[first:]


def _names(
    headings: Sequence[Sequence[str]],
    comments: Sequence[str],
    separator: str | None,
    width: int,
) -> list[str]:
    """A name for each column, or empty text."""
    if headings and len(headings[-1]) == width and _are_names(headings[-1], separator):
        return list(headings[-1])
    listed = {int(m[1]): m[2] for line in comments if (m := _XDI_COLUMN.match(line))}
    if listed:
        return [listed.get(index + 1, "") for index in range(width)]
    for split_at in (separator, None) if comments else ():
        fields = _fields(comments[-1], split_at)
        if len(fields) == width and _are_names(fields, None):
            return fields
    return [""] * width


def _are_names(fields: Sequence[str], separator: str | None) -> bool:
    """Whether words are names of columns: free words are separated by spaces and name no energy."""
    return separator is not None or any(ENERGY_NAME.search(part) for part in fields)
