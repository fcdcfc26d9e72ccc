"""The result file: one HDF5 file that is at once netCDF-4 and NeXus, and the tables beside it.

`write_result` and `read_result` are inverse to each other: what makes the file NeXus (classes,
signals, axes) is added on writing and taken off on reading.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from spectromap.io._common import written_whole
from spectromap.schema import LOG, SCHEMA_VERSION, FileError, InputError

__all__ = ["read_result", "result_lock", "write_result", "write_tables"]

READABLE_VERSIONS = (1,)
LOCK_NAME = ".spectromap.lock"

#: Attributes that only NeXus needs.
NEXUS_ATTRS = ("NX_class", "signal", "axes", "auxiliary_signals")
INTERPRETATION = "interpretation"

#: What each group shows first, the best first; ``{fraction}`` is the mapped component.
SIGNALS = {
    "shifts": ("shift_y", "shift_x"),
    "spectra": ("mean_od", "i0"),
    # The unconstrained fraction of nothing is any number: the map for the eye is the one to show.
    "maps": ("{fraction}_fraction_nonnegative", "{fraction}_fraction", "thickness", "mean_od"),
    "particles": ("{fraction}_fraction", "thickness", "radius"),
    "profiles": ("{fraction}_fraction", "thickness"),
    "models": ("D_cm2_s", "Dt_cm2", "shell_thickness"),
    "pooled": ("log10_D", "particles_used"),
    "heterogeneity": ("difference",),
    "oxygen": ("li_tm",),
    "repeats": ("change",),
    "series": ("released_fraction",),
}
#: What else is worth a look on the same axes.
AUXILIARY = {
    "shifts": ("shift_x",),
    "spectra": ("mean_fit",),
    "maps": ("{fraction}_fraction", "thickness", "chi2", "particle_label"),
}
#: Groups whose two-dimensional signal is a list of curves and not a picture.
CURVES = ("profiles",)

# Small arrays are not worth the time and the chunk index. The noise in large maps of floats does
# not compress, and trying costs more than the fit.
COMPRESS_FROM_BYTES = 2**16
COMPRESS_FLOATS_TO_BYTES = 2**22
COMPRESSION = {"zlib": True, "shuffle": True, "complevel": 1}
# What HDF5 needs beside the values: headers, attributes, chunk indices, names.
OVERHEAD_BYTES = 2**20


def write_result(tree: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a result as one file that is at once netCDF-4 and NeXus.

    The file appears whole or not at all: it is written beside its place as ``<path>.part``,
    synchronised to the disk and renamed; an older file is kept until then.

    Parameters
    ----------
    tree : DataTree
        ``/entry/<group>`` with the groups and names of `schema.RESULT_GROUPS`; ``/`` and
        ``/entry`` carry attributes only. Dask-backed variables are computed block by block.
    path : path-like
        The file to write; its folder is made where it is missing.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        The tree has no ``/entry``, data outside the groups, or attributes that are neither
        numbers nor strings.
    FileError
        Too little space, or the file cannot be written; nothing is left behind.

    References
    ----------
    NXdata, NXentry, NXprocess: https://manual.nexusformat.org/classes/base_classes/
    """
    final = Path(path)
    ready = _prepared(tree, final)
    _check_space(final, ready.nbytes)
    with written_whole(final) as partial, open(partial, "w+b", buffering=0) as stream:
        draft = _Draft(stream)
        try:
            ready.to_netcdf(draft, engine="h5netcdf", encoding=_encodings(ready))
        finally:
            if draft.failure is not None:
                raise draft.failure
    return final


def read_result(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a result file into memory and close it.

    Parameters
    ----------
    path : path-like
        A file of `write_result`.

    Returns
    -------
    DataTree
        The tree as it was given to `write_result`; strings are Python objects.

    Raises
    ------
    FileError
        The file is missing, damaged, no result, or of a version that this release cannot read.
    """
    file = Path(path)
    _check_version(file)
    try:
        with xr.open_datatree(
            file,
            engine="h5netcdf",
            decode_times=False,
            decode_timedelta=False,
            driver_kwds={"locking": False},
        ) as opened:
            tree = opened.load()
    except Exception as error:  # a damaged file can make the libraries below raise anything
        raise FileError(
            f"the result cannot be read ({error})",
            where=file,
            remedy="The file is damaged; run the analysis again.",
        ) from error
    return tree.map_over_datasets(_restored)


def write_tables(tree: xr.DataTree, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``particles.csv`` (a row per particle) and ``models.csv`` (per particle and model).

    Units are part of the column names: ``area_nm2``, ``D_low_cm2_s``; columns without one are
    pure numbers or text. Where a group is missing only the header of its table is written, so
    that no table of an earlier run stays beside a new result.

    Parameters
    ----------
    tree : DataTree
        A result.
    folder : path-like
        Where the tables go.

    Returns
    -------
    list of Path
        The two files.

    Raises
    ------
    FileError
        A table cannot be written.
    """
    tables: list[tuple[str, str, tuple[str, ...]]] = [
        ("particles.csv", "particles", ("particle",)),
        ("models.csv", "models", ("particle", "model")),
    ]
    written = []
    for name, group, dims in tables:
        file = Path(folder) / name
        with written_whole(file) as partial:
            partial.write_text(_table(tree, group, dims), encoding="utf-8", newline="\n")
        written.append(file)
    return written


@contextmanager
def result_lock(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Keep every other run out of an output folder for the length of a ``with`` block.

    The lock is a file that names the process and the computer. A lock left behind by a process
    of this computer that no longer exists is taken over, with a warning.

    Parameters
    ----------
    folder : path-like
        The output folder; made where it is missing.

    Yields
    ------
    Path
        The lock file.

    Raises
    ------
    FileError
        Another run holds the folder, or the lock cannot be written.
    """
    lock = Path(folder) / LOCK_NAME
    owner = _this_process()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _take(lock, owner)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"the output folder cannot be used ({error.strerror or error})",
            where=lock.parent,
            remedy="Choose another folder, or check its permissions and the free space.",
        ) from error
    try:
        yield lock
    finally:
        if _read_lock(lock) == owner:
            lock.unlink(missing_ok=True)


# --- writing -----------------------------------------------------------------------------------


def _prepared(tree: xr.DataTree, where: Path) -> xr.DataTree:
    """The tree as it goes to the disk: every group independent, with its NeXus attributes."""
    if "entry" not in tree.children:
        raise InputError("the result has no group 'entry'", where=where)
    datasets: dict[str, xr.Dataset] = {}
    fraction = _fraction_name(tree)
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=True).drop_encoding()
        if node.path in ("/", "/entry") and dataset.variables:
            names = ", ".join(str(name) for name in dataset.variables)
            raise InputError(f"'{node.path}' may carry attributes only, not {names}", where=where)
        dataset = _storable(dataset, f"{where}:{node.path}")
        dataset.attrs |= _nexus_attrs(node.path, dataset, fraction)
        datasets[node.path] = dataset
    return xr.DataTree.from_dict(datasets)


def _fraction_name(tree: xr.DataTree) -> str:
    """The mapped component, from the first group of maps that names one."""
    for name, node in tree["entry"].children.items():
        if name.startswith("maps") and node.attrs.get("fraction"):
            return str(node.attrs["fraction"])
    return ""


def _storable(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """A copy whose strings and attributes can be written; refuses what cannot."""
    copy = dataset.copy()
    copy.attrs = _checked_attrs(dataset.attrs, where)
    for name, variable in dataset.variables.items():
        place = f"{where}/{name}"
        if variable.dtype.kind in "OUT":
            copy[name] = (variable.dims, _texts(variable.values, place))
        elif variable.dtype.kind not in "biuf":
            raise InputError(f"values of type {variable.dtype} have no place here", where=place)
        copy[name].attrs = _checked_attrs(variable.attrs, place)
    return copy


def _texts(values: Any, where: str) -> np.ndarray[Any, Any]:
    """Text as a NumPy array of unicode; nothing (None, NaN) becomes the empty string."""
    flat = []
    for value in np.asarray(values, dtype=object).ravel():
        if value is None or (isinstance(value, float) and np.isnan(value)):
            value = ""
        if not isinstance(value, str):
            raise InputError(f"expected text, found {value!r}", where=where)
        flat.append(value)
    return np.array(flat, dtype=str).reshape(np.shape(values))


def _checked_attrs(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Attributes as they are written: numbers, strings, or arrays of numbers."""
    checked: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, bool | np.bool_):
            value = int(value)
        numbers = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuf"
        real = isinstance(value, Number) and not isinstance(value, complex)
        if not (isinstance(value, str) or real or numbers):
            shown = " ".join(repr(value).split())
            raise InputError(
                f"attribute '{name}' is {type(value).__name__}: {shown:.60}",
                where=where,
                remedy="Attributes are numbers or strings; write lists as JSON text.",
            )
        checked[str(name)] = value
    return checked


def _nexus_attrs(path: str, dataset: xr.Dataset, fraction: str) -> dict[str, Any]:
    """NeXus class of a group and, for data, what to draw; sets the signal's interpretation."""
    if path == "/":
        return {"NX_class": "NXroot", "default": "entry"}
    if path == "/entry":
        return {
            "NX_class": "NXentry",
            "default": dataset.attrs.get("default", "maps"),
            "schema_version": dataset.attrs.get("schema_version", SCHEMA_VERSION),
        }
    group = path.rsplit("/", 1)[-1]
    if group == "process":
        return {"NX_class": "NXprocess"}
    fraction = str(dataset.attrs.get("fraction", fraction))
    signal = _signal(group, dataset, fraction)
    if signal is None:
        return {"NX_class": "NXcollection"}
    array = dataset[signal]
    attrs: dict[str, Any] = {"NX_class": "NXdata", "signal": signal}
    if array.ndim:
        attrs["axes"] = [_axis(dataset, str(dim)) for dim in array.dims]
    beside = [name.format(fraction=fraction) for name in AUXILIARY.get(_kind(group), ())]
    beside = [n for n in beside if n != signal and n in dataset and dataset[n].dims == array.dims]
    if beside:
        attrs["auxiliary_signals"] = beside
    if _kind(group) in CURVES and array.ndim > 1:
        array.attrs[INTERPRETATION] = "spectrum"
    return attrs


def _kind(group: str) -> str:
    """Group of the contract that a group belongs to: ``maps_ni_l3`` is drawn like ``maps``."""
    for kind in ("maps", "spectra"):
        if group.startswith(f"{kind}_"):
            return kind
    return group


def _signal(group: str, dataset: xr.Dataset, fraction: str) -> str | None:
    """Variable that a group shows first; None where there is nothing to draw."""
    drawable = [
        str(name)
        for name, array in dataset.data_vars.items()
        if array.dtype.kind in "iuf" and array.size
    ]
    for name in SIGNALS.get(_kind(group), ()):
        name = name.format(fraction=fraction)
        if name in drawable:
            return name
    most = max((dataset[name].ndim for name in drawable), default=0)
    return next((name for name in drawable if dataset[name].ndim == most), None)


def _axis(dataset: xr.Dataset, dim: str) -> str:
    """Name of a plot axis; ``.`` where the coordinate is missing or text."""
    return dim if dim in dataset.coords and dataset[dim].dtype.kind in "iuf" else "."


def _encodings(tree: xr.DataTree) -> dict[str, dict[str, dict[str, Any]]]:
    """Compression of the large arrays of every group."""
    return {
        node.path: {
            str(name): dict(COMPRESSION)
            for name, variable in node.variables.items()
            if _worth_compressing(variable)
        }
        for node in tree.subtree
    }


def _worth_compressing(variable: xr.Variable) -> bool:
    """Whether compression saves enough for the time it takes."""
    if variable.dtype.kind == "f" and variable.nbytes > COMPRESS_FLOATS_TO_BYTES:
        return False
    return variable.dtype.kind != "U" and variable.nbytes >= COMPRESS_FROM_BYTES


def _check_space(path: Path, n_bytes: int) -> None:
    """Refuse to start on a disk that cannot hold the file uncompressed."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = n_bytes + OVERHEAD_BYTES
    if free < needed:
        raise FileError(
            f"the result needs {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left",
            where=path,
            remedy="Free some space, or choose another output folder.",
        )


class _Draft(io.RawIOBase):
    """The file as HDF5 sees it while it writes: nothing ever fails.

    HDF5 brings the process down when a file cannot be written to the end, as on a disk that fills.
    So the first failure is kept for the caller, and from then on what HDF5 may want to read again
    (its own small records) is remembered and the rest dropped, until HDF5 has closed the file.
    """

    LARGEST_RECORD = 2**16

    def __init__(self, stream: io.RawIOBase | io.FileIO) -> None:
        self.stream = stream
        self.position = 0
        self.failure: BaseException | None = None
        self.kept: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        """HDF5 reads its own records again."""
        return True

    def writable(self) -> bool:
        """What it is for."""
        return True

    def seekable(self) -> bool:
        """HDF5 writes where it likes."""
        return True

    def tell(self) -> int:
        """Where the next write goes."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; the end counts what could not be written too."""
        if whence == os.SEEK_CUR:
            offset += self.position
        elif whence == os.SEEK_END:
            ends = [start + len(data) for start, data in self.kept]
            offset += max([os.fstat(self.stream.fileno()).st_size, *ends])
        self.position = offset
        return offset

    def write(self, data: Any) -> int:
        """Write all of it, to the disk or, after a failure, to memory."""
        view = memoryview(data).cast("B")
        if self.failure is None:
            try:
                self.stream.seek(self.position)
                done = 0
                while done < len(view):
                    done += self.stream.write(view[done:]) or 0
            except BaseException as error:  # Ctrl-C inside HDF5 is as bad as a full disk
                self.failure = error
        if self.failure is not None and len(view) <= self.LARGEST_RECORD:
            self.kept.append((self.position, bytes(view)))
        self.position += len(view)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read what was written; zeros where there is nothing."""
        view = memoryview(buffer).cast("B")
        self.stream.seek(self.position)
        found = self.stream.readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        for start, data in self.kept:
            first = max(start, self.position)
            last = min(start + len(data), self.position + len(view))
            if first < last:
                here = slice(first - self.position, last - self.position)
                view[here] = data[first - start : last - start]
        self.position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, unless it is lost already."""
        size = self.position if size is None else size
        if self.failure is None:
            try:
                self.stream.truncate(size)
            except BaseException as error:
                self.failure = error
        return size


# --- reading -----------------------------------------------------------------------------------


def _check_version(path: Path) -> None:
    """Refuse what is no result file, or one that this release cannot read."""
    import h5py

    if not path.is_file():
        raise FileError("no such file", where=path, remedy="Name a result file of spectromap run.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            entry = file.get("entry")
            version = None if entry is None else entry.attrs.get("schema_version")
    except OSError as error:
        raise FileError(
            f"not a readable HDF5 file ({error})",
            where=path,
            remedy="It is damaged, or no result of spectromap.",
        ) from error
    if version is None:
        raise FileError(
            "not a result of spectromap: /entry has no schema_version",
            where=path,
            remedy="To look into a measured file use `spectromap info`.",
        )
    number = int(np.ravel(version)[0])
    if number not in READABLE_VERSIONS:
        known = ", ".join(str(v) for v in READABLE_VERSIONS)
        raise FileError(
            f"the result has schema_version {number}; this release reads {known}",
            where=path,
            remedy="Update spectromap." if number > max(READABLE_VERSIONS) else "Run it again.",
        )


def _restored(dataset: xr.Dataset) -> xr.Dataset:
    """A group as it was before it was written: no NeXus attributes, free strings."""
    dataset = dataset.drop_encoding()
    group_attrs = {name: _plain(v) for name, v in dataset.attrs.items() if name not in NEXUS_ATTRS}
    if dataset.attrs.get("NX_class") == "NXroot":
        group_attrs.pop("default", None)
    for name, variable in dataset.variables.items():
        attrs = {n: _plain(v) for n, v in variable.attrs.items() if n != INTERPRETATION}
        if variable.dtype.kind in "UT":
            dataset[name] = (variable.dims, variable.values.astype(object))
        dataset[name].attrs = attrs
    dataset.attrs = group_attrs
    return dataset


def _plain(value: Any) -> Any:
    """A number that HDF5 gave back, as a Python number."""
    return value.item() if isinstance(value, np.generic) else value


# --- tables ------------------------------------------------------------------------------------


def _table(tree: xr.DataTree, group: str, dims: tuple[str, ...]) -> str:
    """CSV text of the variables of a group that have the given dims, or the first of them."""
    node = tree.children["entry"].children.get(group) if "entry" in tree.children else None
    dataset = xr.Dataset() if node is None else node.to_dataset()
    if any(dim not in dataset.dims for dim in dims):
        return ",".join(dims) + "\n"
    rows = [name for name in dataset.variables if _is_column(dataset[name], dims)]
    frame = dataset[rows].to_dataframe(dim_order=list(dims)).reset_index()
    names = {name: _column_name(str(name), dataset[name].attrs.get("units", "")) for name in rows}
    text: str = frame.rename(columns=names).to_csv(index=False, lineterminator="\n")
    return text


def _is_column(array: xr.DataArray, dims: tuple[str, ...]) -> bool:
    """Whether a variable gives one value per row of the table."""
    return bool(array.dims) and set(array.dims) <= set(dims)


def _column_name(name: str, units: str) -> str:
    """Name with its unit: ``area`` in ``nm2`` is ``area_nm2``; pure numbers stay as they are."""
    positive: list[str] = []
    negative: list[str] = []
    for part in units.split():
        match = re.fullmatch(r"([A-Za-z]+)(-?)(\d*)", part)
        if match:
            symbol, minus, power = match.groups()
            (negative if minus else positive).append(symbol + ("" if power in "1" else power))
    suffix = "_".join(positive + negative if positive else ["per", *negative] if negative else [])
    return name if not suffix or name.endswith(f"_{suffix}") else f"{name}_{suffix}"


# --- one writer at a time ----------------------------------------------------------------------


def _this_process() -> dict[str, Any]:
    """Who holds the lock: enough to tell whether the process still runs."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": _start_mark(pid)}


def _start_mark(pid: int) -> str:
    """When a process of this computer started, so that a reused number is not taken for it.

    Empty where the system does not tell (no ``/proc``).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The name in parentheses may hold spaces; field 22 of stat(5) counts from after it.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        return ""


def _read_lock(lock: Path) -> dict[str, Any]:
    """Content of a lock file; empty where it is gone or half written."""
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_stale(owner: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a lock is known to have ended."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    if owner.get("started"):
        return bool(owner["started"] != _start_mark(owner["pid"]))
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _take(lock: Path, owner: Mapping[str, Any]) -> None:
    """Create the lock file, after removing one that a dead process left."""
    for _ in range(3):
        try:
            _create_whole(lock, json.dumps(owner))
        except FileExistsError:
            holder = _read_lock(lock)
            if not _is_stale(holder):
                break
            LOG.warning(
                "%s: a run that no longer exists (process %s) left its lock; it is taken over",
                lock.parent,
                holder.get("pid"),
            )
            _remove_stale(lock)
        else:
            return
    holder = _read_lock(lock)
    name = f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "unknown"
    raise FileError(
        f"another run is writing here ({name})",
        where=lock.parent,
        remedy=f"Wait for it, or choose another folder; if nothing runs, delete {lock.name} there.",
    )


def _create_whole(path: Path, content: str) -> None:
    """Create a file that is never seen without its content: a kill in between leaves no file.

    `FileExistsError` where the name is taken. Where the file system has no links, a kill between
    two system calls can still leave an empty file.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.write_text(content, encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except (OSError, AttributeError):
            with open(path, "x", encoding="utf-8") as stream:
                stream.write(content)
    finally:
        draft.unlink(missing_ok=True)


def _remove_stale(lock: Path) -> None:
    """Remove a stale lock, and only that: two runs may find it at the same time.

    Both open the stale file, one gets the system's lock on it and removes it. The other then sees
    that the name no longer means the file it holds, and leaves the new one alone.
    """
    try:
        stream = open(lock, "rb+")  # noqa: SIM115 (closed below, whatever happens)
    except FileNotFoundError:
        return
    with stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(stream.fileno()), os.stat(lock))
        except FileNotFoundError:
            return
        if same and _is_stale(_read_lock(lock)):
            lock.unlink()
