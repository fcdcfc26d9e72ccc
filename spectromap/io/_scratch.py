"""Arrays too large for memory, in a nameless file that vanishes with them."""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from spectromap.schema import FileError

#: Called with what was read and where it was read from; returns what the reader is to see.
Filter = Callable[[NDArray[Any], tuple[slice, ...]], NDArray[Any]]

SPARE_BYTES = 64 * 2**20


class ScratchArray(BackendArray):
    """An array on the disk, written and read by blocks.

    It is a plain file without a name (where the system allows that), so that nothing stays behind
    however the program ends, and a disk that fills is an error like any other.

    Parameters
    ----------
    folder : path
        On which disk.
    shape : tuple of int
        Shape; blocks that are whole along the last axes are the fastest.
    dtype : dtype
        Type of the elements.
    """

    def __init__(self, folder: str | os.PathLike[str], shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        self.filter: Filter | None = None
        self._source: ScratchArray | None = None
        self._lock = threading.Lock()
        self._where = Path(folder)
        try:
            self._file: Any = tempfile.TemporaryFile(  # noqa: SIM115 - lives as long as the array
                dir=folder, prefix="scratch-", buffering=0
            )
        except OSError as error:
            raise self._failed(error) from error
        weakref.finalize(self, self._file.close)

    def filtered(self, filter: Filter) -> ScratchArray:
        """The same data as another filter lets them be seen."""
        other = copy.copy(self)
        # The file is closed when the array that made it goes.
        other.filter, other._source = filter, self
        return other

    def _failed(self, error: OSError) -> FileError:
        return FileError(
            f"scratch data could not be kept ({error.strerror or error})",
            where=self._where,
            remedy="Choose an output folder on a disk with more free space.",
        )

    def write(self, key: tuple[slice | int, ...], values: NDArray[Any]) -> None:
        """Set a block that is whole along all axes but the first two.

        Parameters
        ----------
        key : tuple of slice or int
            Indices along the first one or two axes.
        values : ndarray
            What to write; brought to the array's type.
        """
        values = np.ascontiguousarray(values, dtype=self.dtype)
        if values.size == 0:
            return
        first, rest = key[0], key[1:]
        if not rest:
            start = first if isinstance(first, int) else first.indices(self.shape[0])[0]
            self._write_at(start * self._stride(0), values)
            return
        for index, block in zip(self._indices(first), values, strict=True):
            row = rest[0] if isinstance(rest[0], int) else rest[0].indices(self.shape[1])[0]
            self._write_at(index * self._stride(0) + row * self._stride(1), block)

    def _indices(self, key: slice | int) -> range:
        return range(key, key + 1) if isinstance(key, int) else range(*key.indices(self.shape[0]))

    def _stride(self, axis: int) -> int:
        """Bytes between neighbours along an axis."""
        return math.prod(self.shape[axis + 1 :]) * int(self.dtype.itemsize)

    def _write_at(self, offset: int, values: NDArray[Any]) -> None:
        view = values.data.cast("B")
        try:
            with self._lock:
                self._file.seek(offset)
                done = 0
                while done < len(view):
                    done += self._file.write(view[done:]) or 0
        except OSError as error:
            raise self._failed(error) from error

    def _read_at(self, offset: int, result: NDArray[Any]) -> None:
        view = result.data.cast("B")
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:  # never written: a file with holes ends early
                    view[done:] = bytes(len(view) - done)
                    return
                done += count

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Read whole rows of the first two axes, then take what was asked for from them."""
        key = (*key, *[slice(None)] * (len(self.shape) - len(key)))
        bounds = [_bounds(k, n) for k, n in zip(key, self.shape, strict=True)]
        split = min(2, len(self.shape) - 1)
        box = tuple(bounds[:split]) + tuple(slice(0, n) for n in self.shape[split:])
        result = np.empty([b.stop - b.start for b in box], dtype=self.dtype)
        if result.size == 0:
            pass
        elif split == 2:
            for block, index in zip(result, range(box[0].start, box[0].stop), strict=True):
                self._read_at(index * self._stride(0) + box[1].start * self._stride(1), block)
        else:
            self._read_at(box[0].start * self._stride(0), result)
        if self.filter is not None:
            result = self.filter(result, box)
        return np.asarray(
            result[tuple(_within(k, b, n) for k, b, n in zip(key, box, self.shape, strict=True))]
        )


def _bounds(key: slice | int, size: int) -> slice:
    """The smallest plain slice that holds what a key asks for."""
    chosen = range(size)[key] if isinstance(key, slice) else range(size)[key : key + 1 or None]
    if len(chosen) == 0:
        return slice(0, 0)
    return slice(min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1)


def _within(key: slice | int, box: slice, size: int) -> slice | int:
    """A key counted from the start of the box that was read for it."""
    if not isinstance(key, slice):
        place: int = range(size)[key] - box.start
        return place
    chosen = range(size)[key]
    if len(chosen) == 0:
        return slice(0, 0)
    first, last = int(chosen[0]) - box.start, int(chosen[-1]) - box.start
    if chosen.step > 0:
        return slice(first, last + 1, int(chosen.step))
    return slice(first, last - 1 if last > 0 else None, int(chosen.step))


def check_space(folder: str | os.PathLike[str], n_bytes: int) -> None:
    """Refuse to start on a disk that cannot hold the scratch data.

    Raises
    ------
    FileError
        Too little free space.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SPARE_BYTES:
        raise FileError(
            f"{n_bytes / 2**30:.1f} GiB of scratch space are needed, {free / 2**30:.1f} are free",
            where=folder,
            remedy="Choose an output folder on a larger disk.",
        )


def lazily(array: ScratchArray, dims: tuple[str, ...]) -> xr.Variable:
    """A scratch array as a variable that is read when it is used, each time anew."""
    return xr.Variable(dims, indexing.LazilyIndexedArray(array))
