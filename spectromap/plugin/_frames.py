"""Frames of a lazy stack as a viewer wants them: read once, kept while the stack is open.

napari's own cache for Dask arrays belongs to the process: it takes a quarter of the memory and
keeps the frames of files that were closed long ago. This one belongs to the array and goes with it.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import SpectromapError

#: A stack keeps at most so many bytes of frames: 60 frames of 2048 x 2048 float32.
KEPT_BYTES = 2**30


class Blocks:
    """Blocks of a lazy array along its first axis, the last ones used kept.

    Parameters
    ----------
    source : dask.array.Array, shape (n_energy, ny, nx)
        What to read.
    complain : callable
        Gets the message, once, when a block cannot be read; the block is NaN then.
    """

    def __init__(self, source: Any, complain: Callable[[str], None]) -> None:
        self.source = source
        self.edges = np.cumsum([0, *source.chunks[0]])
        self.complain = complain
        self.kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self.lock = Lock()
        self.complained = False

    def __dask_tokenize__(self) -> str:
        """No two are the same, even of one file: it may have been replaced meanwhile."""
        return uuid.uuid4().hex

    def read(self, number: int) -> NDArray[Any]:
        """One block, from the disk or from memory."""
        with self.lock:
            if number in self.kept:
                self.kept.move_to_end(number)
                return self.kept[number]
        block = self._decoded(number)
        with self.lock:
            self.kept[number] = block
            while len(self.kept) > 1 and sum(b.nbytes for b in self.kept.values()) > KEPT_BYTES:
                self.kept.popitem(last=False)
        return block

    def _decoded(self, number: int) -> NDArray[Any]:
        """One block from the disk; NaN where the file fails."""
        part = self.source[self.edges[number] : self.edges[number + 1]]
        try:
            # A worker of Dask calls this, and must not wait for others of its kind.
            return np.asarray(part.compute(scheduler="synchronous"))
        except (SpectromapError, OSError) as error:
            with self.lock:
                first, self.complained = not self.complained, True
            if first:
                self.complain(str(error))
            return np.full(part.shape, np.nan, dtype=part.dtype)


def kept_frames(stack: xr.DataArray, complain: Callable[[str], None]) -> Any:
    """The values of a stack for a viewer.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Lazy or not.
    complain : callable
        Told once what is wrong with the file when frames cannot be read.

    Returns
    -------
    dask.array.Array or ndarray, shape (n_energy, ny, nx)
        Of a lazy stack a lazy array in the same blocks along energy, of one in memory its values.
    """
    import dask.array as da

    source = stack.data
    if not hasattr(source, "dask"):
        return source
    map_blocks: Any = da.map_blocks  # Dask has no types of its own
    return map_blocks(
        _block,
        da.arange(len(source.chunks[0]), chunks=1),
        blocks=Blocks(source, complain),
        new_axis=[1, 2],
        chunks=(source.chunks[0], (source.shape[1],), (source.shape[2],)),
        dtype=source.dtype,
        meta=np.empty((0, 0, 0), source.dtype),
    )


def _block(index: NDArray[np.int64], blocks: Blocks) -> NDArray[Any]:
    """One block of the array."""
    return blocks.read(int(index[0]))
