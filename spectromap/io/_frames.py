"""Stacks whose frames are decoded one at a time, by workers, when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spectromap.schema import LOG

Item = TypeVar("Item")

#: An optical density beyond this is never measured, and fewer counts are never a stack.
LARGEST_OPTICAL_DENSITY = 20.0


def lazy_frames(
    read: Callable[[Item], NDArray[Any]],
    items: Sequence[Item],
    shape: tuple[int, int],
    dtype: DTypeLike = np.float32,
) -> Any:
    """Dask array (frame, y, x) with one chunk per frame.

    Parameters
    ----------
    read : callable
        Turns one item into an array of `shape`. It must be picklable and open its file itself.
    items : sequence
        What `read` needs for each frame, such as a file name.
    shape : tuple of int
        Rows and columns of a frame.
    dtype : dtype
        Type of the values.

    Returns
    -------
    dask.array.Array, shape (len(items), ny, nx)
        Nothing is read before it is computed.
    """
    import dask.array as da

    map_blocks: Any = da.map_blocks  # Dask has no types of its own
    return map_blocks(
        _read_block,
        da.arange(len(items), chunks=1),
        read=read,
        items=tuple(items),
        new_axis=[1, 2],
        chunks=((1,) * len(items), (shape[0],), (shape[1],)),
        dtype=np.dtype(dtype),
        meta=np.empty((0, 0, 0), dtype),
    )


def _read_block(
    index: NDArray[np.int64], read: Callable[[Any], NDArray[Any]], items: tuple[Any, ...]
) -> NDArray[Any]:
    """One frame, with the leading axis of the stack."""
    return read(items[int(index[0])])[np.newaxis]


def guess_quantity(frames: Sequence[NDArray[Any]], where: object) -> str:
    """What the values are, for a format that does not say.

    Counts are whole numbers or large; an optical density is neither.

    Parameters
    ----------
    frames : sequence of ndarray
        One frame or a few.
    where : object
        The file, for the warning given when the answer is optical density.

    Returns
    -------
    str
        ``counts`` or ``optical_density``.
    """
    values = np.concatenate([np.asarray(frame, dtype=np.float64).ravel() for frame in frames])
    values = values[np.isfinite(values)]
    whole = bool(np.all(values == np.rint(values)))
    if whole or values.size == 0 or float(values.max()) > LARGEST_OPTICAL_DENSITY:
        return "counts"
    LOG.warning(
        "%s: the file does not say what its values are; fractions up to %.3g are taken as optical"
        " density, to which no I0 is applied",
        where,
        float(values.max()),
    )
    return "optical_density"
