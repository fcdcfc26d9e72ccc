"""Reading stacks: `open_stack` for every format, `info` for what a file holds.

One module a format, each with ``NAME``, ``refuse(path)`` (a reason, or None if it takes the file,
judged by content) and ``open(path, ...)``; most also ``write(stack, path)``.
"""

from __future__ import annotations

import glob
import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.io import als, axis2000, cxi, nxstxm, tiff
from spectromap.io._common import assemble, to_ev
from spectromap.io._hdf5 import natural
from spectromap.io._text import read_table
from spectromap.io.spectra import read_spectrum, write_spectrum
from spectromap.schema import LOG, FileError, InputError, SpectromapError, pixel_size

__all__ = ["READERS", "info", "open_stack", "read_spectrum", "write_spectrum"]

#: In the order in which they are asked.
READERS: tuple[ModuleType, ...] = (nxstxm, cxi, als, axis2000, tiff)

#: Grids of one series may differ by this part of a pixel in step over the field, and in place.
SAME_STEP = 1e-3
SAME_PLACE = 0.5
NOTED_PLACE = 0.01

PathLike = str | os.PathLike[str]


def open_stack(
    path: PathLike | Sequence[PathLike],
    *,
    entry: str | None = None,
    detector: str | None = None,
    energies: PathLike | Sequence[float] | NDArray[np.float64] | None = None,
) -> xr.DataArray:
    """Open a stack of images over energy without reading the images.

    Parameters
    ----------
    path : path, glob or list of paths
        One file, or several that make a series, usually one per energy. The format is judged by
        content.
    entry : str, optional
        Which entry (HDF5) or region (``.hdr``, counted from 0), for files that hold several.
    detector : str, optional
        Which counter or image, for files that hold several.
    energies : path or sequence of float, optional
        Energies in eV, or a text file with one a line, for TIFF, which cannot tell them; for
        several files one for each.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Lazy; counts or optical density (float32) or amplitudes (complex64). ``energy`` in eV,
        ``y`` and ``x`` in nm, ascending; ``dwell_time`` in s and ``ring_current`` in mA along
        energy where the file tells them. ``attrs`` say what the values are and whence they come.

    Raises
    ------
    FileError
        No such file, no format takes it (the message lists each format with its own reason),
        it is damaged, or the files of a series do not fit each other.
    InputError
        An option that means nothing for this format, or names nothing in the file.
    """
    paths = _paths(path)
    options = {"entry": entry, "detector": detector, "energies": _numbers(energies)}
    reader = _reader(paths[0])
    if len(paths) == 1:
        opened: xr.DataArray = reader.open(paths[0], **_accepted(reader, options, paths[0]))
        return opened
    for other in paths[1:]:
        if _reader(other) is not reader:
            raise FileError(
                f"not {reader.NAME} as {paths[0]} is",
                where=other,
                remedy="Give a glob or list that holds the files of one series only.",
            )
    if reader is cxi:
        return cxi.open(paths, **_accepted(reader, options, paths[0]))
    return _series(reader, paths, options)


def info(path: PathLike | Sequence[PathLike]) -> str:
    """Text about a file: format, size, energies, pixel, choices, warnings, what it is not.

    Parameters
    ----------
    path : path, glob or list of paths
        As for `open_stack`.

    Returns
    -------
    str
        Several lines.

    Raises
    ------
    FileError
        No format takes the file, or it is damaged.
    """
    paths = _paths(path)
    with _warnings() as said:
        reader = _reader(paths[0])
        stack = open_stack(paths)
    lines = [("file", _list_of(paths)), ("format", _format(reader, stack)), *_about(stack)]
    contents = getattr(reader, "contents", None)
    if contents is not None:
        lines += [("holds", line) for line in contents(paths[0])]
    prefixes = [f"{one}: " for one in (*paths, stack.attrs.get("source_file", ""))]
    for message in said:
        prefix = next((p for p in prefixes if message.startswith(p)), "")
        lines.append(("warning", message[len(prefix) :]))
    for other in READERS:
        reason = None if other is reader else _reason(other, paths[0])
        if reason:
            lines.append(("not", f"{other.NAME}: {reason}"))
    return "\n".join(f"{name:<13} {value}".rstrip() for name, value in lines)


# --------------------------------------------------------------------------------------------
# Which files, which format


def _paths(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """Files that a path, a glob or a list means."""
    if not isinstance(path, (str, os.PathLike)):
        found = [one for item in path for one in _paths(item)]
        if not found:
            raise InputError("an empty list of files", where="path")
        return found
    one = Path(path).expanduser()
    if one.is_file():
        return [one]
    if one.is_dir():
        raise FileError(
            "is a folder", where=one, remedy="Give a file, or a glob such as 'folder/*.cxi'."
        )
    if glob.has_magic(str(one)):
        found = sorted((Path(name) for name in glob.glob(str(one))), key=lambda p: natural(str(p)))
        found = [item for item in found if item.is_file()]
        if not found:
            raise FileError("no file matches", where=one, remedy="Check the folder and the glob.")
        return found
    raise FileError("there is no such file", where=one, remedy="Check the name and the folder.")


def _reason(reader: ModuleType, path: Path) -> str | None:
    """Reason for which a reader refuses a file; a reader that stumbles refuses as well."""
    try:
        reason: str | None = reader.refuse(path)
    except SpectromapError as error:
        return error.what
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return reason


def _reader(path: Path) -> ModuleType:
    """Reader that takes a file."""
    reasons = []
    for reader in READERS:
        reason = _reason(reader, path)
        if reason is None:
            return reader
        reasons.append(f"\n  {reader.NAME}: {reason}")
    raise FileError(
        "no reader takes this file:" + "".join(reasons),
        where=path,
        remedy="\nConvert it to one of these formats, or mend what the reason names.",
    )


def _accepted(reader: ModuleType, options: dict[str, Any], path: Path) -> dict[str, Any]:
    """Options that were given, under the names that the reader has for them."""
    known = inspect.signature(reader.open).parameters
    given = {name: value for name, value in options.items() if value is not None}
    entry = given.get("entry")
    if entry is not None and "entry" not in known and "region" in known and str(entry).isdigit():
        given["region"] = int(given.pop("entry"))
    for name in given:
        if name not in known:
            raise InputError(
                f"option '{name}' means nothing for {reader.NAME}",
                where=path,
                remedy="Leave it out.",
            )
    return given


# --------------------------------------------------------------------------------------------
# Several files, one stack


def _series(reader: ModuleType, paths: list[Path], options: dict[str, Any]) -> xr.DataArray:
    """One stack of several files on one grid."""
    energies = options["energies"]
    stacks: list[xr.DataArray] = []
    for number, path in enumerate(paths):
        own = dict(options)
        if energies is not None:
            own["energies"] = _own_energies(energies, number, len(paths), path)
        stack = reader.open(path, **_accepted(reader, own, path))
        # Several files may be parts of one stack: .hdr and .xim, .dat and .ncb.
        if all(stack.attrs["source_file"] != other.attrs["source_file"] for other in stacks):
            stacks.append(stack)
    if len(stacks) == 1:
        return stacks[0]
    for stack in stacks[1:]:
        _check_fits(stacks[0], stack)
    return _joined(stacks)


def _numbers(
    energies: PathLike | Sequence[float] | NDArray[np.float64] | None,
) -> NDArray[np.float64] | None:
    """Energies in eV, from a text file if its name is given."""
    if energies is None:
        return None
    if isinstance(energies, (str, os.PathLike)):
        table = read_table(Path(energies), least_columns=1)
        return to_ev(table.column(0), "keV" if "kev" in table.names[0].lower() else "eV", energies)
    return np.atleast_1d(np.asarray(energies, dtype=np.float64))


def _own_energies(
    energies: NDArray[np.float64], number: int, count: int, path: Path
) -> NDArray[np.float64]:
    """Energy of one file of a series."""
    if energies.size != count:
        raise InputError(
            f"{energies.size} energies for {count} files", where=path, remedy="Give one for each."
        )
    return energies[number : number + 1]


def _check_fits(first: xr.DataArray, other: xr.DataArray) -> None:
    """Refuse a file whose values or grid differ from those of the first."""
    where = other.attrs["source_file"]
    for name in ("quantity", "technique"):
        if first.attrs[name] != other.attrs[name]:
            raise FileError(
                f"{name} is {other.attrs[name]}, but {first.attrs[name]} in"
                f" {first.attrs['source_file']}",
                where=where,
                remedy="Give a glob or list that holds the files of one series only.",
            )
    if first.shape[1:] != other.shape[1:]:
        raise FileError(
            f"frames of {other.shape[1:]} (y, x), but {first.shape[1:]} in"
            f" {first.attrs['source_file']}",
            where=where,
            remedy="All frames of a series need one shape; leave the odd one out.",
        )
    for name, step in zip(("y", "x"), pixel_size(first), strict=True):
        offset = other[name].values - first[name].values
        size = max(1, offset.size)
        stretch = abs(offset[-1] - offset[0]) / (step * size) if size > 1 else 0.0
        shift = abs(float(np.mean(offset))) / step if size > 1 else 0.0
        if stretch > SAME_STEP or shift > SAME_PLACE:
            raise FileError(
                f"the grid along '{name}' differs from that of {first.attrs['source_file']}"
                f" (shifted by {shift:.3g} pixels, stretched by {stretch:.2%})",
                where=where,
                remedy="All frames of a series need one grid; leave the odd one out.",
            )
        if shift > NOTED_PLACE:
            LOG.warning("%s: its grid is shifted by %.2g pixels along %s", where, shift, name)


def _joined(stacks: list[xr.DataArray]) -> xr.DataArray:
    """Stacks behind one another, sorted by energy."""
    import dask.array as da

    first = stacks[0]
    names = dict.fromkeys(name for stack in stacks for name in _along_energy(stack))
    along = {str(name): _gathered(stacks, str(name)) for name in names}
    attrs = {
        key: value
        for key, value in first.attrs.items()
        if all(stack.attrs.get(key) == value for stack in stacks)
    }
    where = f"{first.attrs['source_file']} and {len(stacks) - 1} others"
    attrs["source_file"] = where
    return assemble(
        da.concatenate([stack.data for stack in stacks], axis=0),  # type: ignore[no-untyped-call]
        np.concatenate([stack.energy.values for stack in stacks]),
        first.y.values,
        first.x.values,
        where=where,
        attrs=attrs,
        along_energy=along,
    )


def _along_energy(stack: xr.DataArray) -> list[str]:
    """Coordinates along energy beside the energy itself."""
    return [str(n) for n, c in stack.coords.items() if c.dims == ("energy",) and n != "energy"]


def _gathered(stacks: list[xr.DataArray], name: str) -> tuple[NDArray[np.float64], str]:
    """Coordinate of all stacks, NaN for those without it, and its units."""
    values = [
        stack[name].values if name in stack.coords else np.full(stack.sizes["energy"], np.nan)
        for stack in stacks
    ]
    units = next(str(s[name].attrs.get("units", "1")) for s in stacks if name in s.coords)
    return np.concatenate(values), units


# --------------------------------------------------------------------------------------------
# Text about a file


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what is logged meanwhile, instead of showing it."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, propagated = Collect(logging.WARNING), LOG.propagate
    LOG.addHandler(handler)
    LOG.propagate = False
    try:
        yield said
    finally:
        LOG.removeHandler(handler)
        LOG.propagate = propagated


def _list_of(paths: list[Path]) -> str:
    """Name of a file, or of the first and how many follow."""
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _format(reader: ModuleType, stack: xr.DataArray) -> str:
    """Format with its dialect."""
    dialect = stack.attrs.get("dialect")
    return f"{reader.NAME} ({dialect})" if dialect and dialect != reader.NAME else str(reader.NAME)


def _about(stack: xr.DataArray) -> list[tuple[str, str]]:
    """Lines about a stack."""
    energy, (dy, dx) = stack.energy.values, pixel_size(stack)
    count, rows, columns = stack.shape
    steps = np.diff(energy)
    span = f"{energy[0]:g} eV"
    if count > 1:
        span = f"{energy[0]:g} to {energy[-1]:g} eV in steps of {_range(steps)} eV"
    lines = [
        ("size", f"{count} energies x {rows} rows x {columns} columns, {_bytes(stack.nbytes)}"),
        ("values", f"{stack.attrs['quantity']}, {stack.dtype}, {stack.attrs['technique']}"),
        ("energies", span),
        ("pixel", f"{dy:.4g} x {dx:.4g} nm (y, x)"),
        ("field", f"{rows * dy / 1e3:.4g} x {columns * dx / 1e3:.4g} um"),
    ]
    if "dwell_time" in stack.coords:
        lines.append(("dwell", f"{_range(stack.dwell_time.values * 1e3)} ms"))
    if "ring_current" in stack.coords:
        lines.append(("ring current", f"{_range(stack.ring_current.values)} mA"))
    for name in ("entry", "detector", "sample", "title", "instrument", "start_time"):
        if name in stack.attrs:
            lines.append((name.replace("_", " "), str(stack.attrs[name])))
    return lines


def _range(values: NDArray[np.float64]) -> str:
    """Smallest and largest number, once if they agree."""
    good = values[np.isfinite(values)]
    if not good.size:
        return "unknown"
    low, high = f"{good.min():.4g}", f"{good.max():.4g}"
    return low if low == high else f"{low} to {high}"


def _bytes(count: int) -> str:
    """Size in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
