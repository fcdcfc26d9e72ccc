"""Multi-page TIFF stacks with a list of energies.

TIFF itself knows neither energies nor what the values are. The energies come from the caller, from
a text file beside the image, from the metadata of ImageJ or OME, or, for a single image, from its
name; in that order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from spectromap.io._common import LENGTH_FACTORS, assemble, to_ev, written_whole
from spectromap.io._frames import guess_quantity, lazy_frames
from spectromap.io._text import read_table
from spectromap.schema import LOG, QUANTITIES, FileError, InputError, check_stack, pixel_size

NAME = "tiff"

_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ENERGY_IN_TEXT = re.compile(r"(\d+(?:\.\d+)?)[\s_]*(ev|kev)(?![a-z])", re.IGNORECASE)
_SETTING = re.compile(r"(pixel_nm|origin_nm|quantity)\s*[:=]\s*(.*\S)", re.IGNORECASE)
#: Pixels larger than this come from a printer's resolution (72 to 2400 dpi), not from a scan.
_LARGEST_PIXEL_NM = 10_000.0
#: Bytes an ImageJ file can hold, with room for its metadata.
_IMAGEJ_LIMIT = 2**32 - 2**25
_CENTIMETRE, _INCH = 3, 2


@dataclass(frozen=True)
class _Frame:
    """What a worker needs to read one page."""

    file: str
    index: int
    shape: tuple[int, int]
    dtype: str
    #: Where the first page begins if all lie one after another uncompressed, else None.
    offset: int | None


@dataclass(frozen=True)
class _Told:
    """What a file or the text beside it tells, empty where it does not."""

    energies: NDArray[np.float64] | None = None
    pixel: tuple[float, float] | None = None
    origin: tuple[float, float] = (0.0, 0.0)
    quantity: str = ""


def refuse(path: str | PathLike[str]) -> str | None:
    """Why this is not a TIFF file, or None if it is one.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    str or None
        The reason.
    """
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if head in _HEADS else "it does not begin as a TIFF file does"


def open(
    path: str | PathLike[str],
    *,
    energies: ArrayLike | None = None,
    pixel_nm: float | tuple[float, float] | None = None,
) -> xr.DataArray:
    """Open a TIFF stack, one page per energy.

    A text file ``<name>_energies.txt``, ``<name>.txt`` or ``<name>.csv`` beside it may hold the
    energies, one a line, and in comments ``# pixel_nm: 25`` and ``# quantity: counts``.

    Parameters
    ----------
    path : path
        The file.
    energies : array_like, optional
        Energy of every page in eV.
    pixel_nm : float or (float, float), optional
        Size of a pixel, or of its sides (y, x), in nm.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Lazy, one chunk per page.

    Raises
    ------
    FileError
        Not readable, colour or of another dimension, no energies or as many as pages, no pixel
        size; the message tells what to provide.
    """
    shape, dtype, offset, inside = _inspect(path)
    beside = _beside(path)
    found = energies if energies is not None else _first(beside.energies, inside.energies)
    axis = to_ev(_checked(_first(found, _in_name(path)), shape[0], path), "eV", path)
    pixel = _both(pixel_nm) or beside.pixel or inside.pixel
    if pixel is None or min(pixel) <= 0:
        raise FileError(
            "has no pixel size",
            where=path,
            remedy=f"Write '# pixel_nm: 25' into {_sidecar(path).name} beside it, or pass"
            " pixel_nm.",
        )
    origin = beside.origin if beside.pixel else inside.origin
    frames = [
        _Frame(str(path), index, (shape[1], shape[2]), dtype, offset) for index in range(shape[0])
    ]
    quantity = beside.quantity or inside.quantity
    if not quantity:
        quantity = guess_quantity([_read_frame(frames[len(frames) // 2])], path)
    return assemble(
        lazy_frames(_read_frame, frames, (shape[1], shape[2])),
        axis,
        _positions(origin[0], pixel[0], shape[1]),
        _positions(origin[1], pixel[1], shape[2]),
        where=path,
        attrs={"quantity": quantity, "technique": "stxm", "source_format": NAME},
    )


def write(stack: xr.DataArray, path: str | PathLike[str]) -> None:
    """Write a stack as a float32 TIFF that ImageJ opens, and its energies as text beside it.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts or optical density.
    path : path
        The TIFF. The energies go to ``<name>_energies.txt``, written first.

    Raises
    ------
    InputError
        Not such a stack.
    FileError
        The files cannot be written.
    """
    import tifffile

    check_stack(stack, ("counts", "optical_density"))
    pixel = pixel_size(stack)
    labels = [f"{value:.10g} eV" for value in stack.energy.values.tolist()]
    told = {
        "pixel_nm": ", ".join(map(repr, pixel)),
        "origin_nm": ", ".join(repr(float(stack[dim].values[0])) for dim in ("y", "x")),
        "quantity": str(stack.attrs["quantity"]),
    }
    with written_whole(_sidecar(path)) as partial:
        partial.write_text(_sidecar_text(told, stack.energy.values.tolist()), encoding="utf-8")
    imagej = stack.size * 4 < _IMAGEJ_LIMIT
    info = json.dumps({**told, "energies_eV": stack.energy.values.tolist()})
    metadata = {"axes": "ZYX", "unit": "um", "Labels": labels, "Info": info}
    frames = (np.asarray(frame.values, dtype=np.float32) for frame in stack)
    with written_whole(path) as partial:
        tifffile.imwrite(
            partial,
            frames,
            shape=stack.shape,
            dtype=np.float32,
            photometric="minisblack",
            imagej=imagej,
            bigtiff=not imagej,
            resolution=(1e3 / pixel[1], 1e3 / pixel[0]),
            metadata=metadata if imagej else {"axes": "ZYX"},
        )


def _sidecar(path: str | PathLike[str]) -> Path:
    """The text file beside a TIFF."""
    path = Path(path)
    return path.with_name(f"{path.stem}_energies.txt")


def _sidecar_text(told: dict[str, str], energies: Sequence[float]) -> str:
    """Settings as comments, then a heading and the energies."""
    lines = [f"# {key}: {value}" for key, value in told.items()]
    return "\n".join([*lines, "energy_eV", *map(repr, energies)]) + "\n"


def _beside(path: str | PathLike[str]) -> _Told:
    """What the text file beside a TIFF tells; the first of those that are there."""
    path = Path(path)
    if _sidecar(path).is_file():
        return _from_text(_sidecar(path))
    for file in (path.with_suffix(".txt"), path.with_suffix(".csv")):
        if file.is_file():
            try:
                return _from_text(file)
            except FileError as error:  # any text may have that name
                LOG.warning("%s: %s; it is not taken as a list of energies", file, error.what)
    return _Told()


def _from_text(file: Path) -> _Told:
    """Energies and settings in a text file."""
    table = read_table(file, least_columns=1)
    unit = "keV" if "kev" in table.names[0].lower() else "eV"
    energies = to_ev(table.column(0), unit, file)
    matches = [m for line in table.comments if (m := _SETTING.match(line))]
    return _from_settings({m[1].lower(): m[2] for m in matches}, energies, file)


def _from_settings(
    settings: dict[str, str], energies: NDArray[np.float64] | None, where: object
) -> _Told:
    """Settings as text to numbers."""
    quantity = settings.get("quantity", "").strip()
    if quantity and quantity not in QUANTITIES:
        raise FileError(
            f"quantity is '{quantity}'", where=where, remedy=f"Use {' or '.join(QUANTITIES[::2])}."
        )
    try:
        pixel, origin = (
            _both(tuple(float(word) for word in re.split(r"[,\s]+", settings[key].strip())))
            if key in settings
            else None
            for key in ("pixel_nm", "origin_nm")
        )
    except ValueError as error:
        raise FileError(f"a setting is not a number ({error})", where=where) from error
    return _Told(energies, pixel, origin or (0.0, 0.0), quantity)


def _inspect(
    path: str | PathLike[str],
) -> tuple[tuple[int, int, int], str, int | None, _Told]:
    """Shape, type and place of the pages, and what the metadata tell."""
    import tifffile

    with _readable(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        if "S" in series.axes and series.shape[series.axes.index("S")] > 1:
            raise FileError("is a colour image, not counts", where=path)
        shape = tuple(int(size) for size in series.shape if size > 1)
        if len(series.axes) < 2 or len(shape) > 3 or len(file.series) > 1:
            raise FileError(
                f"holds {len(file.series)} series, the first of shape {series.shape}, not pages"
                " (energy, y, x)",
                where=path,
            )
        rows, columns = (int(series.shape[series.axes.index(axis)]) for axis in ("Y", "X"))
        frames = int(np.prod(series.shape)) // (rows * columns)
        if series.dtype.kind not in "uif":
            raise FileError(f"holds values of type {series.dtype}", where=path)
        dtype = series.dtype.newbyteorder(file.byteorder).str
        return (frames, rows, columns), dtype, series.dataoffset, _inside(file, frames)


@contextmanager
def _readable(path: str | PathLike[str]) -> Iterator[None]:
    """Turn whatever a damaged file makes the decoder raise into one error."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:  # the decoder raises its own, ValueError, struct.error, zlib.error
        raise FileError(f"cannot be decoded ({error})", where=path) from error


def _inside(file: Any, frames: int) -> _Told:
    """What the metadata of ImageJ, OME or the resolution tags tell."""
    if file.is_ome and file.ome_metadata:
        return _Told(*_from_ome(file.ome_metadata))
    imagej = file.imagej_metadata or {}
    told = _own_settings(imagej.get("Info"))
    labels = imagej.get("Labels") or []
    energies = told.energies
    if energies is None and len(labels) == frames:
        energies = _in_texts(labels)
    return _Told(
        energies, told.pixel or _from_tags(file.pages[0], imagej), told.origin, told.quantity
    )


def _own_settings(info: object) -> _Told:
    """What `write` put into the metadata, if that is whose they are."""
    try:
        settings = json.loads(str(info))
    except ValueError:
        return _Told()
    if not isinstance(settings, dict) or "energies_eV" not in settings:
        return _Told()
    energies = np.array(settings.pop("energies_eV"), dtype=np.float64)
    return _from_settings({key: str(value) for key, value in settings.items()}, energies, "Info")


def _from_tags(page: Any, imagej: dict[str, Any]) -> tuple[float, float] | None:
    """Pixel (y, x) in nm from the resolution tags, unless it is a printer's."""
    unit = str(imagej.get("unit", "")).encode().decode("unicode_escape", "ignore").strip()
    code = page.tags.get("ResolutionUnit")
    factor = {_INCH: 2.54e7, _CENTIMETRE: 1e7}.get(code.value if code else 0)
    if unit:
        factor = LENGTH_FACTORS.get(unit.lower())
    sides = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        value = tag.value if tag is not None else (0, 1)
        ratio = value[0] / value[1] if isinstance(value, tuple) and value[1] else 0.0
        sides.append(factor / ratio if factor and ratio > 0 else 0.0)
    if min(sides) <= 0 or max(sides) > _LARGEST_PIXEL_NM:
        return None
    return sides[0], sides[1]


def _from_ome(
    text: str,
) -> tuple[NDArray[np.float64] | None, tuple[float, float] | None]:
    """Energies from the names of OME channels, and the pixel (y, x) in nm."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(text)
    pixels = next((node for node in root.iter() if node.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None, None
    sides = []
    for axis in ("Y", "X"):
        unit = pixels.get(f"PhysicalSize{axis}Unit", "um").lower()
        size = float(pixels.get(f"PhysicalSize{axis}", "0"))
        sides.append(size * LENGTH_FACTORS.get(unit, 0.0))
    names = [node.get("Name", "") for node in pixels.iter() if node.tag.endswith("}Channel")]
    pixel = (sides[0], sides[1]) if min(sides) > 0 else None
    return _in_texts(names), pixel


def _in_texts(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """Energies written as '640.5 eV', if every text holds one."""
    matches = [_ENERGY_IN_TEXT.search(text) for text in texts]
    if not texts or not all(matches):
        return None
    return np.array([float(m[1]) * (1e3 if m[2].lower() == "kev" else 1) for m in matches if m])


def _in_name(path: str | PathLike[str]) -> NDArray[np.float64] | None:
    """Energy in the name of a single image."""
    return _in_texts([Path(path).stem])


def _first(*candidates: Any) -> Any:
    """The first that is not None."""
    return next((candidate for candidate in candidates if candidate is not None), None)


def _both(size: float | tuple[float, ...] | None) -> tuple[float, float] | None:
    """One size, or two, as (y, x)."""
    if size is None:
        return None
    sides = np.atleast_1d(np.asarray(size, dtype=np.float64)).tolist()
    if len(sides) > 2 or not np.all(np.isfinite(sides)):
        raise InputError(f"{size} is not one size or two (y, x)", where="pixel_nm")
    return sides[0], sides[-1]


def _positions(first: float, step: float, count: int) -> NDArray[np.float64]:
    """Centres of a row of pixels."""
    return np.asarray(first + step * np.arange(count), dtype=np.float64)


def _checked(energies: Any, frames: int, path: str | PathLike[str]) -> NDArray[np.float64]:
    """One energy for each page."""
    if energies is None:
        raise FileError(
            f"no energies for its {frames} pages",
            where=path,
            remedy=f"Write them one a line, in eV, into {_sidecar(path).name} beside it, or pass"
            " energies.",
        )
    values = np.atleast_1d(np.asarray(energies, dtype=np.float64))
    if values.shape != (frames,):
        raise FileError(
            f"{values.size} energies for {frames} pages",
            where=path,
            remedy="Give one energy for each page.",
        )
    return values


def _read_frame(frame: _Frame) -> NDArray[np.float32]:
    """One page."""
    import tifffile

    with _readable(frame.file):
        if frame.offset is not None:
            dtype = np.dtype(frame.dtype)
            start = frame.offset + frame.index * frame.shape[0] * frame.shape[1] * dtype.itemsize
            stored = np.memmap(frame.file, dtype, mode="r", offset=start, shape=frame.shape)
            return np.array(stored, dtype=np.float32)
        with tifffile.TiffFile(frame.file) as file:
            page: Any = file.series[0].pages[frame.index]
            values = page.asarray()
        return np.asarray(np.reshape(values, frame.shape), dtype=np.float32)
