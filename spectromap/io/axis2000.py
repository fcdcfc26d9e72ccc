"""Stacks of aXis2000: raw numbers in ``.ncb`` and their description in ``.dat``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.io._common import assemble, to_ev, to_nm
from spectromap.io._frames import guess_quantity, lazy_frames
from spectromap.io._text import read_text
from spectromap.schema import QUANTITIES, FileError, InputError

NAME = "axis2000"


@dataclass(frozen=True)
class _Description:
    """What the ``.dat`` says; ranges in um, energies in eV, dwell in ms."""

    columns: int
    rows: int
    scale: float
    x: tuple[float, float]
    y: tuple[float, float]
    energies: list[float]
    dwell: list[float]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers: a negative scale says that they are floats."""
        return np.dtype("<f4" if self.scale < 0 else "<i2")

    @property
    def size(self) -> int:
        """Bytes that the ``.ncb`` must hold."""
        return self.columns * self.rows * len(self.energies) * self.dtype.itemsize


@dataclass(frozen=True)
class _Frame:
    """What a worker needs to read one frame."""

    file: str
    index: int
    shape: tuple[int, int]
    scale: float


def refuse(path: str | PathLike[str]) -> str | None:
    """Why this is not an aXis2000 stack, or None if it is one.

    Parameters
    ----------
    path : path
        The ``.ncb`` or the ``.dat``.

    Returns
    -------
    str or None
        The reason.
    """
    numbers, description = _pair(path)
    if not description.is_file() or not numbers.is_file():
        missing = numbers if description.is_file() else description
        return f"there is no {missing.name} beside it"
    try:
        _parse(description)
    except FileError as error:
        return f"{description.name}: {error.what}"
    return None


def open(path: str | PathLike[str], *, quantity: str | None = None) -> xr.DataArray:
    """Open a stack.

    Parameters
    ----------
    path : path
        The ``.ncb`` or the ``.dat`` beside it.
    quantity : str, optional
        What the values are, which the format does not say: ``counts`` or ``optical_density``.
        Default: fractions up to 20 are taken as optical density, with a warning; whole or
        larger numbers as counts.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Lazy, one chunk per energy.

    Raises
    ------
    FileError
        The description cannot be understood, or the ``.ncb`` is not of the size it announces.
    InputError
        `quantity` is not one of those.
    """
    if quantity is not None and quantity not in QUANTITIES:
        raise InputError(f"'{quantity}' is not one of {', '.join(QUANTITIES)}", where="quantity")
    numbers, description_file = _pair(path)
    description = _parse(description_file)
    _check_size(numbers, description)
    shape = (description.rows, description.columns)
    frames = [
        _Frame(str(numbers), index, shape, description.scale)
        for index in range(len(description.energies))
    ]
    kind = quantity or guess_quantity([_read_frame(frames[len(frames) // 2])], numbers)
    along = {}
    if description.dwell and min(description.dwell) > 0:
        along["dwell_time"] = np.array(description.dwell) * 1e-3, "s"
    return assemble(
        lazy_frames(_read_frame, frames, shape),
        to_ev(description.energies, "eV", description_file),
        # A reversed range makes a descending axis, which `assemble` turns round with the data.
        to_nm(np.linspace(*description.y, description.rows), "um", description_file),
        to_nm(np.linspace(*description.x, description.columns), "um", description_file),
        where=numbers,
        attrs={"quantity": kind, "technique": "stxm", "source_format": NAME},
        along_energy=along,
    )


def _pair(path: str | PathLike[str]) -> tuple[Path, Path]:
    """Numbers and description, of which one is given."""
    path = Path(path)
    endings = (".NCB", ".DAT") if path.suffix.isupper() else (".ncb", ".dat")
    numbers, description = (path.with_suffix(ending) for ending in endings)
    return numbers, description


def _parse(path: Path) -> _Description:
    """Read the ``.dat``: size and scale, ranges, energies, then a line for each image.

    Raises
    ------
    FileError
        A line does not hold what it should.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    columns, rows, scale = _line(lines, 0, 3, path)
    x, y = _line(lines, 1, 2, path), _line(lines, 2, 2, path)
    (count,) = _line(lines, 3, 1, path)
    for label, value in (("columns", columns), ("rows", rows), ("energies", count)):
        if value < 1 or value != int(value):
            raise FileError(f"{value:g} {label} are announced", where=path)
    if scale == 0:
        raise FileError("the scale is 0", where=path)
    energies = [_line(lines, 4 + index, 1, path)[0] for index in range(int(count))]
    dwell = _dwell(lines[4 + int(count) :], int(count))
    return _Description(int(columns), int(rows), scale, (x[0], x[1]), (y[0], y[1]), energies, dwell)


def _line(lines: list[str], index: int, count: int, path: Path) -> list[float]:
    """Numbers of one line."""
    text = lines[index] if index < len(lines) else ""
    words = re.split(r"[\s,]+", text) if text else []
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not np.all(np.isfinite(values)):
        raise FileError(
            f"line {index + 1} should hold {count} number{'s' * (count > 1)}, not '{text[:40]}'",
            where=path,
        )
    return values


def _dwell(lines: list[str], count: int) -> list[float]:
    """Dwell in ms, the last of name, energy and dwell on each image's line; or nothing."""
    found = []
    for line in [line for line in lines if line][:count]:
        words = line.split()
        try:
            found.append(float(words[-1]))
        except ValueError:
            return []
        if len(words) < 3:
            return []
    return found if len(found) == count else []


def _check_size(numbers: Path, description: _Description) -> None:
    """Refuse a file that does not hold the announced numbers."""
    try:
        size = numbers.stat().st_size
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=numbers) from error
    if size != description.size:
        raise FileError(
            f"holds {size} bytes where {len(description.energies)} frames of"
            f" {description.rows} x {description.columns} take {description.size}",
            where=numbers,
            remedy="The file is cut short, or the .dat beside it belongs to another stack.",
        )


def _read_frame(frame: _Frame) -> NDArray[np.float32]:
    """One frame; columns vary fastest in the file."""
    dtype = np.dtype("<f4" if frame.scale < 0 else "<i2")
    offset = frame.index * frame.shape[0] * frame.shape[1] * dtype.itemsize
    try:
        stored = np.memmap(frame.file, dtype, mode="r", offset=offset, shape=frame.shape)
        values = np.array(stored, dtype=np.float32)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read ({error})", where=frame.file) from error
    return values if frame.scale < 0 else values / np.float32(frame.scale)
