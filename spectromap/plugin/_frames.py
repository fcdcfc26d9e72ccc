"""Frames and maps of files as a viewer wants them: read once, kept while they are open.

napari's own cache for Dask arrays belongs to the process: it takes a quarter of the memory and
keeps the frames of files that were closed long ago. This one belongs to the array and goes with it.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import SpectromapError

#: A stack keeps at most so many bytes of frames: 60 frames of 2048 x 2048 float32.
KEPT_BYTES = 2**30


class Blocks:
    """Blocks of a lazy array along its first axis, the last ones used kept.

    Whoever wants the spectrum of a pixel while the mouse moves asks `seen`, by way of
    ``content_of(layer).seen(y, x)``: it never reads the file, and answers within microseconds.

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
        self.stopped = Event()
        self.stopped.set()

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

    @property
    def complete(self) -> bool:
        """Whether every frame is in memory."""
        with self.lock:
            return len(self.kept) == len(self.edges) - 1

    def seen(self, y: Any, x: Any) -> NDArray[Any]:
        """Values of pixels in the frames that are in memory.

        Parameters
        ----------
        y, x : int or ndarray of int
            Row and column, or those of several pixels.

        Returns
        -------
        ndarray, shape (n_energy, ...)
            NaN where a frame has not been read, or not kept.
        """
        shape = (int(self.edges[-1]), *np.broadcast(y, x).shape)
        found = np.full(shape, np.nan, dtype=np.result_type(self.source.dtype, np.float32))
        with self.lock:
            kept = list(self.kept.items())
        for number, block in kept:
            found[self.edges[number] : self.edges[number + 1]] = block[:, y, x]
        return found

    def read_ahead(self) -> None:
        """Read all frames in the background, if they can be kept; nothing if that is being done."""
        if self.source.nbytes > KEPT_BYTES or not self.stopped.is_set():
            return
        self.stopped = Event()
        count = len(self.edges) - 1
        # Those next to the middle one, which is shown, come first.
        order = sorted(range(count), key=lambda number: abs(number - count // 2))
        # Frames that nobody looks at any more are not worth reading: the thread holds none.
        arguments = (weakref.ref(self), order, self.stopped)
        Thread(target=_read_ahead, args=arguments, daemon=True).start()

    def stop(self) -> None:
        """Read no more frames ahead; the one that is being read is the last."""
        self.stopped.set()

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


def _read_ahead(itself: weakref.ref[Blocks], order: list[int], stopped: Event) -> None:
    """Read one block after the other."""
    for number in order:
        blocks = itself()
        if blocks is None or stopped.is_set():
            break
        blocks.read(number)
        del blocks
    stopped.set()


def kept_frames(stack: xr.DataArray, complain: Callable[[str], None]) -> tuple[Any, Blocks | None]:
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
    Blocks or None
        What the lazy array reads from.
    """
    import dask.array as da

    source = stack.data
    if not hasattr(source, "dask"):
        return source, None
    blocks = Blocks(source, complain)
    map_blocks: Any = da.map_blocks  # Dask has no types of its own
    values = map_blocks(
        _block,
        da.arange(len(source.chunks[0]), chunks=1),
        blocks=blocks,
        new_axis=[1, 2],
        chunks=(source.chunks[0], (source.shape[1],), (source.shape[2],)),
        dtype=source.dtype,
        meta=np.empty((0, 0, 0), source.dtype),
    )
    return values, blocks


class InFile:
    """An array of an HDF5 file that is read when it is wanted, and kept from then on.

    The file is not held open, so that another run may replace it.

    Parameters
    ----------
    path : path-like
        The file.
    name : str
        The dataset in it.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self.path, self.name = path, name
        with h5py.File(path, "r", locking=False) as file:
            self.shape, self.dtype = file[name].shape, file[name].dtype
        self.ndim = len(self.shape)
        self.kept: NDArray[Any] | None = None
        self.lock = Lock()

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Some of the values."""
        with self.lock:
            if self.kept is None:
                with h5py.File(self.path, "r", locking=False) as file:
                    self.kept = np.asarray(file[self.name][()])
            return np.asarray(self.kept[key])

    def lazy(self) -> Any:
        """It as a Dask array.

        Returns
        -------
        dask.array.Array
        """
        import dask.array as da

        from_array: Any = da.from_array  # Dask has no types of its own
        return from_array(self, chunks=-1, name=uuid.uuid4().hex, meta=np.empty(0, self.dtype))


def _block(index: NDArray[np.int64], blocks: Blocks) -> NDArray[Any]:
    """One block of the array."""
    return blocks.read(int(index[0]))
