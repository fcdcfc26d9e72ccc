"""Masks and label images, as drawn in other programs."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectromap.schema import FileError

_MARKED, _UNMARKED = "O", " "
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_mask(path: str | PathLike[str]) -> NDArray[np.bool_]:
    """Read a mask from ``.msk`` text, ``.npy`` or TIFF; the content decides which.

    In ``.msk`` text 'O' marks a pixel and a space does not. In the others whatever is not zero
    does.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        In the row order of the file, which for ``.msk`` is that of its ``.xim``.

    Raises
    ------
    FileError
        Not a mask, or not one image of two dimensions.
    """
    raw = _bytes_of(path)
    image = _image(raw, path)
    if image is None:
        return _drawn(raw, path)
    if image.dtype.kind == "f" and not np.all(np.isfinite(image)):
        raise FileError("the mask holds NaN", where=path, remedy="Write 0 and 1.")
    return np.asarray(image != 0, dtype=np.bool_)


def read_labels(path: str | PathLike[str]) -> NDArray[np.int32]:
    """Read a label image from ``.npy`` or TIFF: 0 is background, each particle a whole number.

    The content decides which of the two it is.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    ndarray of int32, shape (ny, nx)
        In the row order of the file.

    Raises
    ------
    FileError
        Not such an image, or values that are no labels.
    """
    image = _image(_bytes_of(path), path)
    if image is None:
        raise FileError(
            "is neither .npy nor TIFF nor an earlier result",
            where=path,
            remedy="Save the labels as TIFF.",
        )
    values = np.asarray(image, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values != np.rint(values)):
        raise FileError("labels must be whole numbers", where=path)
    if np.any(values < 0) or np.any(values > np.iinfo(np.int32).max):
        raise FileError(
            f"labels run from {values.min():g} to {values.max():g}",
            where=path,
            remedy="Use 0 for background and positive numbers for particles.",
        )
    return values.astype(np.int32)


def _bytes_of(path: str | PathLike[str]) -> bytes:
    """Content of a file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path) from error


def _image(raw: bytes, path: str | PathLike[str]) -> NDArray[Any] | None:
    """The image of a ``.npy`` or TIFF file, or None where it is neither."""
    try:
        if raw.startswith(b"\x93NUMPY"):
            image = np.load(io.BytesIO(raw), allow_pickle=False)
        elif raw[:4] in _TIFF_HEADS:
            import tifffile

            image = np.asarray(tifffile.imread(io.BytesIO(raw)))
        else:
            return None
    except Exception as error:  # damaged files raise whatever the decoder met first
        raise FileError(f"cannot be decoded ({error})", where=path) from error
    if image.ndim != 2 or image.dtype.kind not in "buif" or not image.size:
        raise FileError(
            f"holds {image.dtype} of shape {image.shape}, not one image (rows, columns)",
            where=path,
        )
    return np.asarray(image)


def _drawn(raw: bytes, path: str | PathLike[str]) -> NDArray[np.bool_]:
    """A mask drawn in letters; lines whose trailing spaces were stripped are filled up."""
    lines = raw.decode("latin-1").replace("\r", "").rstrip("\n").split("\n")
    strange = {letter for line in lines for letter in line} - {_MARKED, _UNMARKED}
    width = max(len(line) for line in lines)
    if strange or not width:
        found = f"'{min(strange)}'".encode("unicode_escape").decode() if strange else "nothing"
        raise FileError(
            f"is no mask: {found} where 'O' or a space should be",
            where=path,
            remedy="Give a .msk drawn with 'O', a .npy or a TIFF.",
        )
    return np.array([[letter == _MARKED for letter in line.ljust(width)] for line in lines])
