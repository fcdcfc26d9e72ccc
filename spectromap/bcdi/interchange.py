"""Detector stacks and reconstructions as other programs keep them.

Read: detector stacks in NeXus, CXI, plain HDF5 and ``.npy``; results of cohere (a folder with
``image.npy``), PyNX (CXI) and cdiutils (HDF5 or CXI). Write: VTK image data for ParaView, and CXI.

Objects come back in the conventions of spectromap: axes (frame, row, column) and the phase
``Q.u`` in the transform of numpy's forward FFT. PyNX uses the same transform; cohere the opposite
one and the axes (column, row, frame), so its objects are transposed and turned about their centre;
cdiutils has left the detector frame, in (z, y, x) of the laboratory.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import h5py
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from spectromap.schema import FileError, InputError

__all__ = ["read_cohere_settings", "read_result", "read_stack", "write_cxi", "write_vtk"]

PathName = str | os.PathLike[str]

_JOULE_EV = 1.602176634e-19
_DETECTOR_DIMS = ("frame", "row", "column")
_SPACE_DIMS = ("z", "y", "x")
#: Where CXI and NeXus files keep a stack of frames; after these, any three-dimensional numbers.
_STACKS = (
    "entry_1/data_1/data",
    "entry_1/instrument_1/detector_1/data",
    "entry/data/data",
    "entry/instrument/detector/data",
)
#: What h5py raises on a file whose bytes make no sense.
_H5PY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@contextmanager
def _opened(path: PathName) -> Iterator[Any]:
    """Open an HDF5 file to read; what HDF5 finds broken becomes a FileError."""
    if not Path(path).is_file() or not h5py.is_hdf5(path):
        raise FileError("no HDF5 file", where=path, remedy="Check the name, or copy it again.")
    try:
        import hdf5plugin  # noqa: F401  # registers the filters of beamlines

        with h5py.File(os.fspath(path), "r", locking=False) as file:
            yield file
    except (FileError, InputError):
        raise
    except _H5PY_ERRORS as error:
        message = " ".join(str(error).split())
        raise FileError(
            f"the HDF5 file is damaged ({message})", where=path, remedy="Copy it again."
        ) from error


@contextmanager
def _written(path: PathName) -> Iterator[Path]:
    """Write to ``<path>.part`` and rename at the end; on failure nothing remains."""
    final = Path(path)
    partial = final.with_name(final.name + ".part")
    try:
        yield partial
        os.replace(partial, final)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FileError(
            f"could not be written ({error.strerror or error})",
            where=final,
            remedy="Check the folder, its permissions and the free space.",
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _array(file: Any, name: str, path: PathName) -> NDArray[Any] | None:
    """Values of a dataset that lies in this very file; None where there is none."""
    try:
        node = file.get(name)
    except KeyError:  # a link that leads nowhere
        node = None
    if not isinstance(node, h5py.Dataset):
        return None
    if Path(node.file.filename).resolve() != Path(path).resolve() or node.external:
        raise FileError(
            f"'{name}' lies in another file", where=path, remedy="Repack both into one file."
        )
    return np.asarray(node[()])


def _text(values: NDArray[Any] | None) -> str:
    """Text of a dataset, empty without one."""
    if values is None or not values.size:
        return ""
    first = values.flat[0]
    return first.decode("latin-1") if isinstance(first, bytes) else str(first)


def _number(file: Any, names: Sequence[str], path: PathName) -> float | None:
    """First of several datasets that is one number."""
    for name in names:
        values = _array(file, name, path)
        if values is not None and values.size and values.dtype.kind in "iuf":
            return float(values.flat[0])
    return None


# --------------------------------------------------------------------------------------------
# Detector stacks


def read_stack(
    path: PathName,
    *,
    angle: ArrayLike,
    angles: Mapping[str, float],
    scan_axis: str,
    geometry: str,
    dataset: str | None = None,
    energy_eV: float | None = None,
    distance_m: float | None = None,
    pixel_m: float | tuple[float, float] | None = None,
) -> xr.Dataset:
    """Read a rocking scan from an array file: ``.npy``, NeXus, CXI or other HDF5.

    Parameters
    ----------
    path : path
        The file.
    angle : array_like, shape (frames,)
        Position of the scanned motor at each frame, in degrees.
    angles : mapping of str to float
        Positions of all motors that the geometry names, in degrees.
    scan_axis : str
        The scanned motor.
    geometry : str
        Name or file of the diffractometer.
    dataset : str, optional
        Path of the frames in an HDF5 file. Default: where CXI and NeXus keep them, else the only
        three-dimensional numbers.
    energy_eV, distance_m, pixel_m : float, optional
        Default: what a CXI or NeXus file says.

    Returns
    -------
    Dataset
        ``counts`` (frame, row, column) float32, and ``mask`` where the file holds one.

    Raises
    ------
    FileError
        The file is missing, damaged, or holds no such stack.
    InputError
        Energy, distance or pixel are not told, or the angles do not fit the frames.
    """
    if Path(path).suffix == ".npy":
        counts, mask, told = _npy(path), None, {}
    else:
        with _opened(path) as file:
            name = dataset or _stack_name(file, path)
            found = _array(file, name, path)
            if found is None:
                raise FileError(f"no dataset '{name}'", where=path)
            counts, mask, told = found, _stack_mask(file, name, path), _setup(file, path)
    if counts.ndim != 3 or counts.dtype.kind not in "iuf":
        raise FileError(f"{counts.dtype} of shape {counts.shape}, not frames", where=path)
    given = {"energy_eV": energy_eV, "distance_m": distance_m, "pixel_m": pixel_m}
    attrs = {key: told.get(key) if value is None else value for key, value in given.items()}
    missing = [key for key, value in attrs.items() if value is None]
    position = np.asarray(angle, dtype=float)
    if missing or position.shape != counts.shape[:1]:
        raise InputError(
            f"the file does not tell {', '.join(missing)}"
            if missing
            else f"{position.size} angles for {counts.shape[0]} frames",
            where=path,
            remedy="Give it.",
        )
    attrs |= {
        "technique": "bcdi",
        "pixel_m": tuple(np.broadcast_to(np.asarray(attrs["pixel_m"], float), 2).tolist()),
        "geometry": geometry,
        "angles": json.dumps(dict(angles)),
        "scan_axis": scan_axis,
        "source_file": os.fspath(path),
        "flags": "[]",
    }
    variables: dict[str, Any] = {
        "counts": (_DETECTOR_DIMS, counts.astype(np.float32), {"units": "count"})
    }
    if mask is not None:
        variables["mask"] = (_DETECTOR_DIMS, np.broadcast_to(mask, counts.shape).copy())
    coords = {"angle": ("frame", position, {"units": "degree"})}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def _npy(path: PathName) -> NDArray[Any]:
    """Array of a ``.npy`` file; pickled objects are not read."""
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"cannot be read as .npy ({error})", where=path) from error


def _stack_name(file: Any, path: PathName) -> str:
    """Path of the frames in an HDF5 file."""
    found: list[str] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim == 3 and node.dtype.kind in "iuf":
            found.append(name)

    file.visititems(visit)
    for name in _STACKS:
        node = file.get(name)
        if isinstance(node, h5py.Dataset) and node.ndim == 3:
            return name
    if len(found) != 1:
        raise FileError(
            f"{len(found)} three-dimensional datasets" + (f": {', '.join(found)}" if found else ""),
            where=path,
            remedy="Name the one that holds the frames.",
        )
    return found[0]


def _stack_mask(file: Any, name: str, path: PathName) -> NDArray[np.bool_] | None:
    """Usable pixels: CXI and NeXus mark bad ones by numbers other than 0."""
    folder = name.rpartition("/")[0]
    for other in (f"{folder}/mask", f"{folder}/pixel_mask", "entry_1/data_1/mask"):
        values = _array(file, other, path)
        if values is not None and values.ndim in (2, 3):
            return np.asarray(values == 0)
    return None


def _setup(file: Any, path: PathName) -> dict[str, Any]:
    """Energy in eV, distance and pixels in m, as far as CXI or NeXus tell them."""
    told: dict[str, Any] = {}
    beams = ("entry_1/instrument_1/source_1", "entry_1/image_1/instrument_1/source_1")
    joules = _number(file, [f"{beam}/energy" for beam in beams], path)
    # CXI states joules; eV in such a place are larger by nineteen orders.
    if joules is not None:
        told["energy_eV"] = joules / _JOULE_EV if joules < 1e-10 else joules
    detectors = ("entry_1/instrument_1/detector_1", "entry/instrument/detector")
    told["distance_m"] = _number(file, [f"{d}/distance" for d in detectors], path)
    rows = _number(file, [f"{d}/y_pixel_size" for d in detectors], path)
    columns = _number(file, [f"{d}/x_pixel_size" for d in detectors], path)
    if rows is not None and columns is not None:
        told["pixel_m"] = (rows, columns)
    return told


# --------------------------------------------------------------------------------------------
# Results of other programs


def read_result(path: PathName) -> xr.Dataset:
    """Read a reconstruction of cohere, PyNX, cdiutils or `write_cxi`.

    Parameters
    ----------
    path : path
        Folder with ``image.npy`` (cohere), or a CXI or HDF5 file.

    Returns
    -------
    Dataset
        ``object`` complex64 and, where stored, ``support`` bool. In the detector frame the dims
        are (frame, row, column), the centre at n // 2; in space (z, y, x) with coordinates in nm.
        Attributes ``program`` and ``frame`` (detector, laboratory or sample).

    Raises
    ------
    FileError
        Nothing there that these programs write.
    """
    file = Path(path)
    if file.is_dir() or file.suffix == ".npy":
        return _cohere(file if file.is_dir() else file.parent)
    with _opened(file) as opened:
        for amplitude, phase, support, voxel in (
            ("volumes/amplitude", "volumes/phase", "volumes/support", "scalars/voxel_size"),
            (
                "entry_1/amplitude/data",
                "entry_1/phase/data",
                "entry_1/support/data",
                "entry_1/result_1/voxel_size",
            ),
        ):
            if amplitude in opened and phase in opened:
                return _cdiutils(opened, (amplitude, phase, support, voxel), file)
        return _image(opened, file)


def _cohere(folder: Path) -> xr.Dataset:
    """A folder of cohere: ``image.npy`` and ``support.npy``, axes (column, row, frame)."""
    if not (folder / "image.npy").is_file():
        raise FileError("no image.npy in this folder", where=folder)
    found: dict[str, NDArray[Any]] = {}
    found["object"] = _turned(_npy(folder / "image.npy"), folder).astype(np.complex64)
    if (folder / "support.npy").is_file():
        found["support"] = _turned(_npy(folder / "support.npy"), folder) > 0
    return _result(found, folder, {"program": "cohere", "frame": "detector"})


def _turned(values: NDArray[Any], where: Path) -> NDArray[Any]:
    """Reverse the order of the axes, and each axis about its centre n // 2."""
    if values.ndim != 3:
        raise FileError(f"an array of shape {values.shape}, not a volume", where=where)
    values = values.transpose(2, 1, 0)[::-1, ::-1, ::-1]
    return np.roll(values, [1 - size % 2 for size in values.shape], axis=(0, 1, 2))


def _cdiutils(file: Any, names: tuple[str, str, str, str], path: Path) -> xr.Dataset:
    """Amplitude and phase Q.u on orthogonal voxels of the laboratory frame."""
    amplitude, phase, support, size = (_array(file, name, path) for name in names)
    if amplitude is None or phase is None or size is None or amplitude.ndim != 3:
        raise FileError("amplitude, phase or voxel size of cdiutils are missing", where=path)
    values = np.nan_to_num(amplitude) * np.exp(1j * np.nan_to_num(phase))
    found: dict[str, NDArray[Any]] = {"object": values.astype(np.complex64)}
    if support is not None:
        found["support"] = np.nan_to_num(support) > 0
    steps = np.broadcast_to(size.astype(float).ravel(), 3)
    return _result(found, path, {"program": "cdiutils", "frame": "laboratory"}, steps)


def _image(file: Any, path: Path) -> xr.Dataset:
    """CXI image of PyNX (the first mode, if there are several) or of `write_cxi`."""
    entry = "entry_last" if "entry_last" in file else "entry_1"
    values = _array(file, f"{entry}/image_1/data", path)
    if values is not None and values.ndim == 4:
        values = values[0]
    if values is None or values.ndim != 3 or values.dtype.kind != "c":
        raise FileError(
            "no result that is known: neither a complex volume at entry_1/image_1/data (PyNX, CXI)"
            " nor amplitude and phase of cdiutils",
            where=path,
        )
    support = _array(file, f"{entry}/image_1/support", path)
    support = _array(file, f"{entry}/image_1/mask", path) if support is None else support
    found: dict[str, NDArray[Any]] = {"object": values.astype(np.complex64)}
    if support is not None and support.shape == values.shape:
        found["support"] = support > 0
    attrs = {key: value for key, value in file[f"{entry}/image_1"].attrs.items() if key in _KEPT}
    program = _text(_array(file, f"{entry}/program_name", path)) or "CXI"
    attrs = {"program": program, "frame": "detector"} | attrs
    extent = _array(file, f"{entry}/image_1/image_size", path)
    if attrs["frame"] == "detector" or extent is None:
        return _result(found, path, attrs)
    steps = extent.astype(float).ravel() * 1e9 / np.array(values.shape)
    middle = _array(file, f"{entry}/image_1/image_center", path)
    return _result(found, path, attrs, steps, None if middle is None else middle * 1e9)


#: Attributes of an object that `write_cxi` keeps.
_KEPT = ("frame", "q_vector", "q_norm", "d_spacing_nm", "voxel_nm", "interpolation", "long_name")


def _result(
    found: dict[str, NDArray[Any]],
    path: Path,
    attrs: dict[str, Any],
    steps: NDArray[np.float64] | None = None,
    middle: NDArray[np.float64] | None = None,
) -> xr.Dataset:
    """Name what was found; with steps in nm, on coordinates around the middle."""
    shapes = {values.shape for values in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise FileError(f"object and support of shapes {sorted(shapes)}", where=path)
    dims = _DETECTOR_DIMS if steps is None else _SPACE_DIMS
    coords = {}
    if steps is not None:
        shape = next(iter(shapes))
        centre = np.zeros(3) if middle is None else middle
        coords = {
            dim: (dim, c + step * (np.arange(n) - n // 2), {"units": "nm"})
            for dim, n, step, c in zip(dims, shape, steps, centre, strict=True)
        }
    attrs = attrs | {"source_file": os.fspath(path)}
    return xr.Dataset(
        {name: (dims, values) for name, values in found.items()}, coords=coords, attrs=attrs
    )


def read_cohere_settings(path: PathName) -> dict[str, Any]:
    """Read a settings file of cohere, such as ``config_rec``.

    Parameters
    ----------
    path : path
        Lines ``key = value``; comments begin with ``//``.

    Returns
    -------
    dict
        Numbers, strings, booleans and nested tuples by key.

    Raises
    ------
    FileError
        The file is missing, or a line is not of this form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot be read ({error})", where=path) from error
    settings: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        line = re.sub(r'("[^"]*")|//.*', lambda match: match[1] or "", line).strip()
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        value = re.sub(r"^(true|false)$", lambda match: match[0].capitalize(), value)
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals or not key.isidentifier():
            raise FileError(f"line {number} is not 'key = value': {line}", where=path)
    return settings


# --------------------------------------------------------------------------------------------
# Writing


def write_vtk(volumes: xr.Dataset | xr.DataArray, path: PathName) -> Path:
    """Write volumes as VTK image data (``.vti``) that ParaView opens.

    Parameters
    ----------
    volumes : Dataset or DataArray, dims (z, y, x)
        Evenly spaced coordinates in nm. A complex volume becomes ``<name>_amplitude`` and
        ``<name>_phase``; booleans become 0 and 1.
    path : path
        The file.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        Other dims, uneven coordinates, or nothing to write.
    FileError
        The file cannot be written.
    """
    if isinstance(volumes, xr.DataArray):
        volumes = volumes.to_dataset(name=volumes.name or "volume")
    arrays = _scalars(volumes)
    steps = [_step(volumes, dim) for dim in _SPACE_DIMS]
    sizes = [volumes.sizes[dim] for dim in _SPACE_DIMS]
    # VTK lists x first and lets x run fastest, which is the memory order of (z, y, x).
    extent = " ".join(f"0 {size - 1}" for size in reversed(sizes))
    origin = " ".join(f"{float(volumes[dim][0]):.9g}" for dim in reversed(_SPACE_DIMS))
    spacing = " ".join(f"{step:.9g}" for step in reversed(steps))
    head = (
        '<?xml version="1.0"?>\n<VTKFile type="ImageData" version="1.0"'
        ' byte_order="LittleEndian" header_type="UInt64">\n'
        f'<ImageData WholeExtent="{extent}" Origin="{origin}" Spacing="{spacing}">\n'
        f'<Piece Extent="{extent}"><PointData Scalars={quoteattr(next(iter(arrays)))}>\n'
    )
    with _written(path) as partial, partial.open("w", encoding="ascii", newline="\n") as stream:
        stream.write(head)
        for name, values in arrays.items():
            kind = {"f": "Float32", "u": "UInt8"}[values.dtype.kind]
            stream.write(f'<DataArray type="{kind}" Name={quoteattr(name)} format="binary">')
            payload = np.uint64(values.nbytes).tobytes() + values.tobytes()
            stream.write(base64.b64encode(payload).decode("ascii") + "</DataArray>\n")
        stream.write("</PointData></Piece></ImageData></VTKFile>\n")
    return Path(path)


def _scalars(volumes: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Real volumes of a dataset, little-endian float32 or bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, volume in volumes.data_vars.items():
        if volume.dims != _SPACE_DIMS:
            continue
        values = volume.values
        if values.dtype.kind == "c":
            arrays[f"{name}_amplitude"] = np.abs(values).astype("<f4")
            arrays[f"{name}_phase"] = np.angle(values).astype("<f4")
        else:
            arrays[str(name)] = values.astype("u1" if values.dtype == bool else "<f4")
    if not arrays:
        raise InputError("no volume (z, y, x)", where="write_vtk")
    return arrays


def _step(volumes: xr.Dataset | xr.DataArray, dim: str) -> float:
    """Even step of a coordinate."""
    values = volumes[dim].values.astype(float) if dim in volumes.coords else np.empty(0)
    steps = np.diff(values)
    if not steps.size or not np.allclose(steps, steps.mean(), rtol=1e-3) or steps[0] <= 0:
        raise InputError(f"coordinate '{dim}' is missing or not evenly spaced", where="write")
    return float(steps.mean())


def write_cxi(
    obj: xr.DataArray,
    path: PathName,
    *,
    support: NDArray[np.bool_] | None = None,
    energy_eV: float | None = None,
) -> Path:
    """Write an object as CXI (``entry_1/image_1``).

    Parameters
    ----------
    obj : DataArray of complex, dims (z, y, x) or (frame, row, column)
        The object in the sample frame, with coordinates in nm, or in the detector frame.
    path : path
        The file.
    support : ndarray of bool, optional
        Support, of the shape of the object.
    energy_eV : float, optional
        Photon energy in eV.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        Not such an object, or a support of another shape.
    FileError
        The file cannot be written.
    """
    if obj.dims not in (_SPACE_DIMS, _DETECTOR_DIMS) or obj.dtype.kind != "c":
        raise InputError(f"{obj.dtype} with dims {obj.dims}, no object", where="write_cxi")
    if support is not None and support.shape != obj.shape:
        raise InputError(f"support of shape {support.shape}", where="write_cxi")
    in_space = obj.dims == _SPACE_DIMS
    steps = np.array([_step(obj, dim) for dim in _SPACE_DIMS]) if in_space else None
    with _written(path) as partial, h5py.File(partial, "w") as file:
        file["cxi_version"] = 160
        file.attrs["creator"] = "spectromap"
        file.attrs["default"] = "entry_1"
        entry = file.create_group("entry_1")
        entry.attrs.update(NX_class="NXentry", default="data_1")
        entry["program_name"] = "spectromap"
        image = entry.create_group("image_1")
        image.attrs.update(NX_class="NXdata", signal="data")
        image.attrs.update({key: obj.attrs[key] for key in _KEPT if key in obj.attrs})
        image.attrs["frame"] = obj.attrs.get("frame", "sample") if in_space else "detector"
        image.create_dataset("data", data=obj.values.astype(np.complex64), compression="gzip")
        image["data_space"] = "real"
        image["data_type"] = "electron density"
        if support is not None:
            image.create_dataset("support", data=support.astype(np.uint8), compression="gzip")
        if steps is not None:
            image["image_size"] = steps * np.array(obj.shape) * 1e-9
            middle = [float(obj[dim][obj.sizes[dim] // 2]) for dim in _SPACE_DIMS]
            image["image_center"] = np.array(middle) * 1e-9
        if energy_eV is not None:
            image["instrument_1/source_1/energy"] = energy_eV * _JOULE_EV
        data = entry.create_group("data_1")
        data.attrs.update(NX_class="NXdata", signal="data")
        data["data"] = h5py.SoftLink("/entry_1/image_1/data")
    return Path(path)
