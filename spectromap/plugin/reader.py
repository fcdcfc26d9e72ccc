"""Files for napari: every format of `spectromap.io`, and results."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import xarray as xr

from spectromap.io import READERS, open_stack
from spectromap.io.results import _check_version, _restored
from spectromap.plugin._frames import InFile
from spectromap.plugin._layers import LayerData, result_layers, stack_layers
from spectromap.schema import LOG, FileError, SpectromapError

__all__ = ["ENDINGS", "FILES", "get_reader", "read_layers"]

#: Where the metadata of a layer names all the files that its stack is from.
FILES = "spectromap: files"

PathLike = str | os.PathLike[str]

#: Endings that are asked at all; napari.yaml names the same.
ENDINGS = (
    *(".hdf5", ".h5", ".hdf", ".he5", ".nxs", ".nx5", ".nexus", ".stxm", ".cxi"),
    *(".hdr", ".xim", ".ncb", ".dat", ".tif", ".tiff"),
)
#: Endings of pictures that napari itself reads: what is refused here is left to it.
PICTURES = (".tif", ".tiff")
#: Maps of more bytes than this are read when they are shown.
LARGE_BYTES = 2**24
#: What napari takes for "read, and there is nothing to show".
NOTHING: list[Any] = [(None,)]


def get_reader(path: PathLike | Sequence[PathLike]) -> Callable[[Any], list[Any]] | None:
    """A function that reads a file or a series of files, or None if it is none of ours.

    Parameters
    ----------
    path : path or list of paths
        Several are one series, as napari's "Open Files as Stack" gives them.

    Returns
    -------
    callable or None
        From a path to layers. A file that has an ending of ours and cannot be read is still
        taken, to say why, because nobody else can read it either; only pictures are left to
        napari.
    """
    paths = _listed(path)
    if not paths or any(one.suffix.lower() not in ENDINGS for one in paths):
        return None
    if not all(one.is_file() for one in paths):
        return None
    if paths[0].suffix.lower() in PICTURES and not _taken(paths[0]):
        return None
    return _read


def _listed(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """One path or several as a list."""
    return [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(one) for one in path]


def _taken(path: Path) -> bool:
    """Whether a reader of stacks takes a file."""
    return any(reader.refuse(path) is None for reader in READERS)


def _read(path: PathLike | Sequence[PathLike]) -> list[Any]:
    """Layers of a file for napari; what is wrong with it is told in the window."""
    import napari
    from napari.utils.notifications import show_error, show_warning

    from spectromap.plugin._companion import prepared

    try:
        with _warnings() as said:
            layers = read_layers(path)
    except SpectromapError as error:
        show_error(str(error))
        return NOTHING
    if said:
        show_warning("\n".join(said))
    viewer = napari.current_viewer()
    if viewer is None:
        return layers
    return prepared(viewer, layers)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what this package warns of meanwhile."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Collect(logging.WARNING)
    LOG.addHandler(handler)
    try:
        yield said
    finally:
        LOG.removeHandler(handler)


def read_layers(path: PathLike | Sequence[PathLike]) -> list[LayerData]:
    """Layers of a stack or a result.

    Parameters
    ----------
    path : path, glob or list of paths
        As for `spectromap.open_stack`, or a result file.

    Returns
    -------
    list of (values, arguments, kind)
        Layer data; the last is to lie on top.

    Raises
    ------
    FileError
        No such file, a damaged one, or one in no format that is known.
    """
    single = Path(path) if isinstance(path, (str, os.PathLike)) else None
    if single is not None and is_result(single):
        layers = result_layers(open_result(single), str(single))
        if not layers:
            raise FileError("the result holds no maps", where=single)
        return layers
    layers = stack_layers(open_stack(path), complain=_complain)
    for _, options, _ in layers:
        options["metadata"][FILES] = [str(one) for one in _listed(path)]
    return layers


def open_result(path: Path) -> xr.DataTree:
    """A result whose large maps are read when they are wanted.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    DataTree
        As `spectromap.read_result` returns it.

    Raises
    ------
    FileError
        As `spectromap.read_result`.
    """
    _check_version(path)
    try:
        with xr.open_datatree(
            path, engine="h5netcdf", decode_times=False, decode_timedelta=False,
            driver_kwds={"locking": False},
        ) as opened:  # fmt: skip
            groups = {node.path: _read_in_part(node, path) for node in opened.subtree}
    except Exception as error:  # a damaged file can make the libraries below raise anything
        raise FileError(
            f"the result cannot be read ({error})",
            where=path,
            remedy="The file is damaged; run the analysis again.",
        ) from error
    return xr.DataTree.from_dict(groups).map_over_datasets(_restored)


def _read_in_part(node: xr.DataTree, path: Path) -> xr.Dataset:
    """A group, with what is large left in the file."""
    dataset = node.to_dataset(inherit=False)
    large: dict[str, Any] = {}
    for name, array in dataset.data_vars.items():
        if array.nbytes > LARGE_BYTES:
            values = InFile(path, f"{node.path}/{name}")
            if values.dtype == array.dtype:  # nothing to decode
                large[str(name)] = (array.dims, values.lazy(), array.attrs)
    names = list(dataset.data_vars)
    return dataset.drop_vars(large).load().assign(large)[names]


def is_result(path: Path) -> bool:
    """Whether a file is a result of a run, of whatever version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "schema_version" in file["entry"].attrs
    except (OSError, KeyError):
        return False


def _complain(message: str) -> None:
    """Say in the window what is wrong with a file that was open already."""
    from napari.utils.notifications import show_error

    show_error(message)
