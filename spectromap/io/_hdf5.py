"""HDF5 as beamlines leave it: damaged files, odd strings, links, filters; frames read lazily."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from spectromap.io._common import refuse_outside_link
from spectromap.schema import FileError, SpectromapError

PathLike = str | os.PathLike[str]

#: What h5py raises on a file whose bytes make no sense.
H5PY_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
#: Filters that every HDF5 library has: deflate, shuffle, fletcher32, szip, nbit, scaleoffset.
BUILT_IN_FILTERS = frozenset(range(1, 7))
#: An axis, or another list that is read when a file is opened, is never longer than this.
LONGEST_LIST = 4_000_000
#: Where the file's own chunks are small, neighbours are read together up to this many bytes.
CHUNK_BYTES = 32 * 2**20
#: Frames of a file that is not chunked by energy are read together up to this many bytes.
BLOCK_BYTES = 128 * 2**20


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``entry2`` before ``entry10``."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def not_hdf5(path: PathLike) -> str | None:
    """Why a path cannot be an HDF5 file, judged by its first bytes; None if it may be one."""
    file = Path(path)
    if file.is_dir():
        return "a folder, not a file"
    if not file.is_file():
        return "there is no such file"
    if file.stat().st_size == 0:
        return "the file is empty"
    if not os.access(file, os.R_OK):
        return "the file may not be read (permission denied)"
    if not h5py.is_hdf5(file):
        return "not an HDF5 file (the signature is missing)"
    return None


@contextmanager
def opened(path: PathLike) -> Iterator[Any]:
    """Open an HDF5 file to read; whatever HDF5 finds broken inside becomes a FileError.

    Yields
    ------
    h5py.File
        Open without file locks, read only.
    """
    reason = not_hdf5(path)
    if reason:
        raise FileError(reason, where=path, remedy="Check the name, or copy the file again.")
    try:
        with h5py.File(os.fspath(path), "r", locking=False) as file:
            yield file
    except SpectromapError:
        raise
    except H5PY_ERRORS as error:
        raise damaged(path, error) from error


def damaged(path: PathLike, error: BaseException) -> FileError:
    """FileError that says what HDF5 complained about."""
    message = " ".join(str(error).split())
    if not os.access(path, os.R_OK):
        return FileError(
            "the file is gone, or may not be read any more",
            where=path,
            remedy="Put it back where it was when it was opened.",
        )
    sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", message)
    if sizes:
        return FileError(
            f"the HDF5 file is truncated: {sizes[1]} of {sizes[2]} bytes are there",
            where=path,
            remedy="Copy it again from where it was written.",
        )
    if "h5clear" in message or "already open for" in message:
        return FileError(
            "the HDF5 file was not closed by the program that wrote it",
            where=path,
            remedy="Wait until the scan ends; after a crash run 'h5clear -s FILE' on a copy.",
        )
    return FileError(
        f"the HDF5 file is damaged ({message or type(error).__name__})",
        where=path,
        remedy="Copy it again from where it was written.",
    )


# --------------------------------------------------------------------------------------------
# Strings and numbers


def text(value: Any) -> str:
    """A string from what HDF5 may hold for one: bytes of any encoding, shape (1,), Empty, None."""
    while isinstance(value, np.ndarray):
        value = value.flat[0] if value.size else None
    if value is None or isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, str):
        # h5py keeps bytes that are not UTF-8, such as a Latin-1 micro sign, as surrogates.
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            value = value.decode("latin-1")
    return str(value).strip(" \t\r\n\0")


def texts(value: Any) -> list[str]:
    """List of names from an array of strings or from one string such as ``energy:y:x``."""
    if isinstance(value, np.ndarray) and value.size > 1:
        return [text(item) for item in value.flat]
    return [part.strip() for part in re.split(r"[:,]", text(value).strip("[]")) if part.strip()]


def attribute(node: Any, name: str) -> Any:
    """Attribute of a group or dataset, or None where it is missing or unreadable."""
    try:
        return node.attrs.get(name)
    except H5PY_ERRORS:
        return None


def units_of(dataset: Any) -> str:
    """Units of a dataset, empty where the file gives none."""
    return text(attribute(dataset, "units")) or text(attribute(dataset, "unit"))


def read_text(group: Any, name: str, path: PathLike) -> str:
    """Text of a small dataset, empty where it is missing or no text."""
    try:
        node = member(group, name, path)
        if not isinstance(node, h5py.Dataset) or node.size is None or not 0 < node.size < 64:
            return ""
        return text(node[()])
    except (*H5PY_ERRORS, SpectromapError):
        return ""


def numbers(dataset: Any, path: PathLike) -> NDArray[np.float64]:
    """Read an axis or another short list of numbers as float64.

    Raises
    ------
    FileError
        Not numbers, empty, or too long for an axis.
    """
    if dataset.dtype.kind not in "iuf" or not dataset.size or dataset.size > LONGEST_LIST:
        raise FileError(
            f"'{dataset.name}' ({dataset.dtype}, shape {dataset.shape}) is not a list of numbers",
            where=path,
        )
    check_storage(dataset, path)
    return np.atleast_1d(np.asarray(dataset[()], dtype=np.float64))


# --------------------------------------------------------------------------------------------
# Links and storage


def member(group: Any, name: str, path: PathLike, depth: int = 0) -> Any:
    """Group or dataset below a group; None where it is missing.

    Every link on the way is looked at before HDF5 follows it, so that no file outside the
    folder of `path` is opened.

    Raises
    ------
    FileError
        An external link leaves the folder or leads nowhere, or links go in a circle.
    """
    if depth > 16:
        raise FileError(f"the links of '{name}' go in a circle", where=path)
    node = group
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(node, h5py.Group):
            return None
        node = _child(node, part, path, depth)
    return node


def has(group: Any, name: str) -> bool:
    """Tell whether a group has a member, without following links."""
    return bool(group.id.links.exists(name.encode("utf-8", "surrogateescape")))


def _child(group: Any, part: str, path: PathLike, depth: int) -> Any:
    """One step of `member`."""
    if not has(group, part):
        return None
    name = part.encode("utf-8", "surrogateescape")
    kind = group.id.links.get_info(name).type
    if kind == h5py.h5l.TYPE_SOFT:
        target = text(group.id.links.get_val(name))
        return member(group.file if target.startswith("/") else group, target, path, depth + 1)
    if kind == h5py.h5l.TYPE_EXTERNAL:
        return _external(group, part, path)
    return group[name]


def _external(group: Any, part: str, path: PathLike) -> Any:
    """Object behind an external link that stays in the folder of the file."""
    target = text(group.id.links.get_val(part.encode("utf-8", "surrogateescape"))[0])
    refuse_outside_link(target, path)
    _check_beside(target, path)
    node = group.get(part)
    if node is None:
        raise FileError(f"the link '{group.name}/{part}' leads nowhere in '{target}'", where=path)
    # The linked file may link on, so what was opened in the end is checked as well.
    refuse_outside_link(Path(node.file.filename).resolve(), path)
    return node


def _check_beside(target: str, path: PathLike) -> None:
    """Refuse a linked file that is not there."""
    if not (Path(path).resolve().parent / target).is_file():
        raise FileError(
            f"part of the data lies in '{target}', which is not there",
            where=path,
            remedy="Copy the linked file beside this one.",
        )


def check_storage(dataset: Any, path: PathLike) -> None:
    """Refuse data that lie elsewhere, or that no filter on this machine can decode.

    Raises
    ------
    FileError
        Unknown compression filter, data in a raw file, or virtual data in a file that is
        missing or outside the folder.
    """
    if dataset.external:
        raise FileError(
            f"'{dataset.name}' is stored outside HDF5, in '{dataset.external[0][0]}'",
            where=path,
            remedy="Repack the file into one with h5repack.",
        )
    if dataset.is_virtual:
        for source in {item.file_name for item in dataset.virtual_sources()} - {"."}:
            refuse_outside_link(source, path)
            if "%" not in source:
                _check_beside(source, path)
    for code, name in _filters(dataset):
        _check_filter(code, name, path)


def _filters(dataset: Any) -> list[tuple[int, str]]:
    """Number and name of the filters that a dataset went through."""
    plist = dataset.id.get_create_plist()
    found = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    return [(int(item[0]), text(item[3])) for item in found]


def _check_filter(code: int, name: str, path: PathLike) -> None:
    """Refuse a filter that neither HDF5 nor hdf5plugin has."""
    if code not in BUILT_IN_FILTERS:
        import hdf5plugin  # noqa: F401  # registers its filters with HDF5
    if not h5py.h5z.filter_avail(code):
        raise FileError(
            f"the data are compressed with HDF5 filter {code}"
            + (f" ({name})" if name else "")
            + ", which is not installed",
            where=path,
            remedy=f"Upgrade hdf5plugin (pip install -U hdf5plugin), or set HDF5_PLUGIN_PATH to"
            f" a plugin for filter {code}, or repack the file with h5repack -f GZIP=4.",
        )


# --------------------------------------------------------------------------------------------
# Lazy frames


@dataclass(frozen=True)
class Frames:
    """A dataset seen as (energy, y, x): opens the file for each read and pickles as its path."""

    path: str
    name: str
    #: Which axis of the dataset is energy, y and x; energy is None for a single image.
    order: tuple[int | None, int, int]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    ndim: ClassVar[int] = 3

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part; each axis is indexed on its own, as Dask does."""
        index = index if isinstance(index, tuple) else (index,)
        index = (*index, *(slice(None),) * (3 - len(index)))
        pairs = [_span(item, size) for item, size in zip(index, self.shape, strict=True)]
        try:
            with np.errstate(over="ignore"):  # garbage beyond float32 becomes infinite
                values = self._read(tuple(span for span, _ in pairs))
        except SpectromapError:
            raise
        except H5PY_ERRORS as error:
            raise damaged(self.path, error) from error
        # From the last axis, so that an integer does not renumber those still to come.
        for axis in (2, 1, 0):
            values = values[(slice(None),) * axis + (pairs[axis][1],)]
        return values

    def _read(self, spans: tuple[slice, ...]) -> NDArray[Any]:
        """Contiguous box of the stack, shape (energies, rows, columns)."""
        import hdf5plugin  # noqa: F401  # a worker has to register the filters itself

        size = tuple(span.stop - span.start for span in spans)
        if 0 in size:
            return np.empty(size, self.dtype)
        with h5py.File(self.path, "r", locking=False) as file:
            dataset = file[self.name]
            picked: list[slice] = [slice(None)] * dataset.ndim
            for axis, span in zip(self.order, spans, strict=True):
                if axis is not None:
                    picked[axis] = span
            values = dataset[tuple(picked)]
        axes = [axis for axis in self.order if axis is not None]
        return np.ascontiguousarray(values.transpose(axes).reshape(size), dtype=self.dtype)


def _span(index: Any, size: int) -> tuple[slice, Any]:
    """Contiguous part that holds an index, and the index within that part."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        count = len(range(start, stop, step))
        if count == 0:
            return slice(0, 0), slice(None)
        low, high = sorted((start, start + (count - 1) * step))
        return slice(low, high + 1), slice(None, None, step)
    if isinstance(index, (int, np.integer)):
        number = int(index) % size
        return slice(number, number + 1), 0
    chosen = np.asarray(index)
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen % size
    if chosen.size == 0:
        return slice(0, 0), np.empty(0, dtype=int)
    return slice(int(chosen.min()), int(chosen.max()) + 1), chosen - chosen.min()


def frames(dataset: Any, order: tuple[int | None, int, int]) -> Any:
    """Lazy array (energy, y, x) of a dataset, float32 or complex64.

    Parameters
    ----------
    dataset : h5py.Dataset
        Two- or three-dimensional; it is not needed any more when this function has returned.
    order : tuple of int or None
        Axis of the dataset that is energy (None for a single image), y and x.

    Returns
    -------
    dask.array.Array
        One frame a chunk; where a chunk of the file spans several energies, so does a chunk
        here.
    """
    import dask.array as da
    from dask.base import tokenize

    sizes = [1 if axis is None else int(dataset.shape[axis]) for axis in order]
    kind = np.complex64 if dataset.dtype.kind == "c" else np.float32
    path = os.path.abspath(dataset.file.filename)
    reader = Frames(
        path=path,
        name=str(dataset.name),
        order=order,
        shape=(sizes[0], sizes[1], sizes[2]),
        dtype=np.dtype(kind),
    )
    state = os.stat(path)
    name = f"frames-{tokenize(path, reader.name, order, state.st_mtime_ns, state.st_size)}"
    return da.from_array(  # type: ignore[no-untyped-call]
        reader,
        chunks=_chunks(dataset, order, reader.shape),
        name=name,
        lock=False,
        asarray=False,
        meta=np.empty((0, 0, 0), dtype=kind),
    )


def _chunks(
    dataset: Any, order: tuple[int | None, int, int], shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Chunks for Dask: whole frames, or whole chunks of the file where those hold several."""
    count, rows, columns = shape
    axis = order[0]
    frame_bytes = max(1, rows * columns * dataset.dtype.itemsize)
    if axis is None or (dataset.chunks is None and axis == 0):
        return 1, rows, columns
    if dataset.chunks is None:
        # Energy varies fastest: reading one frame passes over all of them anyway.
        return min(count, max(1, BLOCK_BYTES // frame_bytes)), rows, columns
    energies, high, wide = (int(dataset.chunks[i]) for i in order if i is not None)
    if energies == 1:
        return 1, rows, columns
    energies = min(energies, count)
    room = CHUNK_BYTES // (energies * dataset.dtype.itemsize)
    wide = min(columns, wide * max(1, room // (high * wide)))
    high = min(rows, high * max(1, room // (high * wide))) if wide == columns else min(rows, high)
    return energies, high, wide


def sampled_bytes(dataset: Any, axis: int) -> int:
    """Bytes that have to be decoded to read one row across `axis` of every frame."""
    chunks = dataset.chunks or (1,) * dataset.ndim
    touched = [
        math.ceil(size / chunk) if number != axis else 1
        for number, (size, chunk) in enumerate(zip(dataset.shape, chunks, strict=True))
    ]
    return int(math.prod(touched) * math.prod(chunks) * dataset.dtype.itemsize)
