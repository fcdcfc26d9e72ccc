"""CXI files of ptychographic reconstructions: complex transmission, one or many energies.

A series over energy comes as one file per energy, as several ``entry_N`` or ``image_N`` of one
file, or as one three-dimensional image. CXI states energies in joules and lengths in metres.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.io._common import ENERGY_FACTORS, assemble, to_ev, to_nm, written_whole
from spectromap.io._hdf5 import (
    PathLike,
    attribute,
    check_storage,
    frames,
    member,
    natural,
    not_hdf5,
    numbers,
    opened,
    read_text,
    text,
    units_of,
)
from spectromap.schema import LOG, FileError, InputError, SpectromapError, check_stack

__all__ = ["NAME", "contents", "open", "refuse", "write"]

NAME = "CXI"

#: Photon energy times wavelength in J m, for energies that a file gives as a wavelength.
JOULE_METRES = 6.62607015e-34 * 299792458.0
#: The same in J nm with rounded constants (1239.84 eV nm, 6.24e18 eV/J). They give, to the last
#: digit, the pixel that xanespy states for a COSMIC file (6.0435606480754585 nm); the exact
#: constants give 0.024 % less, which is below what the detector distance is known to.
GEOMETRY_JOULE_NM = 1239.84 / 6.24e18
#: Pixel sizes of one series that differ by more than this are brought to one grid.
SAME_PIXEL = 1e-3


@dataclass(frozen=True)
class _Image:
    """A reconstructed image of one file: where it is, its energies and pixel, or why not."""

    path: str
    entry: str
    name: str
    reason: str = ""
    data: Any = None
    shape: tuple[int, ...] = ()
    energy: NDArray[np.float64] | None = None
    #: Step along y and x in nm, for each energy.
    pixel: NDArray[np.float64] | None = None
    centre: tuple[float, float] = (0.0, 0.0)


def refuse(path: PathLike) -> str | None:
    """Say why this is no CXI reconstruction, or nothing if it is one.

    Parameters
    ----------
    path : path
        Any file.

    Returns
    -------
    str or None
        The reason in a few words; None means that `open` takes the file.
    """
    reason = not_hdf5(path)
    if reason:
        return reason
    try:
        with opened(path) as file:
            entries = [name for name in file if name.startswith("entry_")]
            if not entries:
                return "HDF5 without a CXI entry (entry_1)"
            found = _images(file, path)
            if any(not item.reason for item in found):
                return None
            raw = _raw_shape(file, entries, path)
            if raw and not any(item.data is not None for item in found):
                return _raw_reason(raw)
            return _spoken(found[0]) if found else "CXI without a reconstruction (entry_1/image_1)"
    except SpectromapError as error:
        return error.what


def contents(path: PathLike) -> list[str]:
    """List every image of a file, and what it holds.

    Parameters
    ----------
    path : path
        A CXI file.

    Returns
    -------
    list of str
        One line for each image, such as ``entry_1/image_1: (285, 285) at 855.906 eV``.

    Raises
    ------
    FileError
        The file cannot be read.
    """
    with opened(path) as file:
        return [_described(item, file, path) for item in _images(file, path)]


def _described(item: _Image, file: Any, path: PathLike) -> str:
    """One line about an image."""
    name = f"{item.entry}/{item.name}"
    if item.reason:
        return f"{name}: not read, {item.reason}"
    try:
        energy = _complete(item, file, path).energy
    except SpectromapError as error:
        return f"{name}: not read, {error.what}"
    assert energy is not None
    return f"{name}: {item.shape} at {', '.join(f'{value:.3f}' for value in energy)} eV"


def open(
    path: PathLike | Sequence[PathLike], *, entry: str | None = None, detector: str | None = None
) -> xr.DataArray:
    """Open a ptychographic reconstruction, or a series of them, without reading the images.

    Parameters
    ----------
    path : path or list of paths
        One file, or one file per energy.
    entry : str, optional
        Take this entry only, such as ``entry_2``; default: every entry is one energy.
    detector : str, optional
        Take the image of this name only, such as ``image_2``; default: all that have an energy
        of their own.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Complex transmission on an arbitrary scale, complex64, lazy; ``energy`` in eV, ``y`` and
        ``x`` in nm around the middle of the image.

    Notes
    -----
    Rows stay in the order of the file, ``y`` counting upwards from the first. In reconstructions
    of ALS COSMIC the first row is the top of the sample as ``.hdr`` scans of the same microscope
    show it, so ``stack.assign_coords(y=-stack.y).sortby("y")`` makes the two comparable.

    Without a stated pixel the detector geometry gives it: ``lambda / (2 sin(atan(x / z)))`` with
    ``corner_position`` (x, y, z), the half-period that the largest recorded angle resolves.
    Pixel sizes that change with the energy by more than 0.1 % are brought to the grid of the
    finest by linear interpolation when a frame is computed, about the centre of the images, on
    the field that all of them cover.

    Raises
    ------
    FileError
        Damaged file, raw diffraction, real-valued image, images of different shape, no energy or
        no pixel size, links that leave the folder, an unknown compression filter.
    InputError
        `entry` or `detector` names nothing in the file.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise InputError("an empty list of files", where="cxi.open")
    planes: list[Any] = []
    found: list[_Image] = []
    attrs: dict[str, str | float] = {}
    for one in paths:
        with opened(one) as file:
            for item in _chosen(file, one, entry, detector):
                full = _complete(item, file, one)
                check_storage(item.data, one)
                planes.append(_lazy(full))
                found.append(replace(full, data=None))
            attrs = attrs or _attrs(file, found[0], one)
    where = os.fspath(paths[0]) if len(paths) == 1 else f"{os.fspath(paths[0])} and others"
    attrs["source_file"] = where
    return _series(planes, found, attrs, where)


# --------------------------------------------------------------------------------------------
# What is in the file


def _numbered(group: Any, stem: str) -> list[str]:
    """Members called ``<stem>_N``, in the order of N."""
    names = [
        name for name in group if name.startswith(f"{stem}_") and name[len(stem) + 1 :].isdigit()
    ]
    return sorted(names, key=natural)


def _images(file: Any, path: PathLike) -> list[_Image]:
    """Every image of every entry."""
    found: list[_Image] = []
    for entry in _numbered(file, "entry"):
        try:
            group = member(file, entry, path)
        except FileError as error:
            found.append(_Image(os.fspath(path), entry, "", error.what))
            continue
        if isinstance(group, h5py.Group):
            found += [_image(group, entry, name, path) for name in _numbered(group, "image")]
    return found


def _image(group: Any, entry: str, name: str, path: PathLike) -> _Image:
    """Judge one image."""
    empty = _Image(os.fspath(path), entry, name)
    try:
        data = member(group, f"{name}/data", path)
    except FileError as error:
        return replace(empty, reason=error.what)
    if not isinstance(data, h5py.Dataset):
        return replace(empty, reason="it has no data")
    item = replace(empty, data=data, shape=tuple(data.shape))
    if data.dtype.kind != "c":
        return replace(item, reason=f"real numbers ({data.dtype}), not a complex reconstruction")
    if data.ndim not in (2, 3) or not data.size:
        return replace(item, reason=f"data of shape {data.shape}, not images")
    return item


def _raw_shape(file: Any, entries: list[str], path: PathLike) -> tuple[int, ...] | None:
    """Shape of the diffraction frames of a raw file."""
    for entry in entries:
        for name in ("data_1/data", "instrument_1/detector_1/data"):
            try:
                node = member(file, f"{entry}/{name}", path)
            except FileError:
                continue
            if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "iuf":
                return tuple(node.shape)
    return None


def _raw_reason(shape: tuple[int, ...]) -> str:
    """Sentence about a raw file."""
    size = " x ".join(str(n) for n in shape)
    return f"raw diffraction, not a reconstruction (frames {size}); reconstruct it first"


def _spoken(item: _Image) -> str:
    """Name of an image with what is wrong with it."""
    return f"{item.entry}/{item.name}: {item.reason}" if item.name else item.reason


def _chosen(file: Any, path: PathLike, entry: str | None, image: str | None) -> list[_Image]:
    """Images to read: those asked for, or all that have an energy of their own."""
    found = _images(file, path)
    for what, wanted, names in (
        ("entry", entry, _numbered(file, "entry")),
        ("image", image, [item.name for item in found]),
    ):
        if wanted is not None and wanted not in names:
            listed = ", ".join(dict.fromkeys(names)) or "none"
            raise InputError(
                f"there is no {what} '{wanted}'", where=path, remedy=f"It has: {listed}."
            )
    found = [i for i in found if entry in (None, i.entry) and image in (None, i.name)]
    images = [item for item in found if not item.reason]
    if not images:
        reason = _spoken(found[0]) if found else refuse(path) or "no image"
        raise FileError(reason, where=path, remedy="Reconstruct the data, or choose another file.")
    if image is None:
        images = _with_own_energy(images, file, path)
    left_out = [_spoken(item) for item in found if item.reason]
    if left_out:
        LOG.warning("%s: not read: %s", path, "; ".join(left_out))
    return images


def _with_own_energy(images: list[_Image], file: Any, path: PathLike) -> list[_Image]:
    """Of the images of an entry that share its energy only the first: the others are no series."""
    kept: list[_Image] = []
    others: list[str] = []
    for item in images:
        first = item.entry not in [other.entry for other in kept]
        own = _first(member(file, item.entry, path), _own_sources(item.name), path) is not None
        if first or own:
            kept.append(item)
        else:
            others.append(f"{item.entry}/{item.name}")
    if others:
        LOG.warning("%s: no energy of their own, not read: %s", path, ", ".join(others))
    return kept


# --------------------------------------------------------------------------------------------
# Energy and pixel


def _first(group: Any, names: Sequence[str], path: PathLike) -> Any:
    """First dataset of numbers among several places."""
    for name in names:
        node = member(group, name, path)
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf" and node.size:
            return node
    return None


def _own_sources(name: str) -> list[str]:
    """Places of an energy that belongs to one image alone; instrument_1 serves a whole entry."""
    number = name.rpartition("_")[2]
    places = [f"{name}/source_1/energy", f"{name}/instrument_1/source_1/energy"]
    return places + [f"instrument_{number}/source_1/energy"] * (number != "1")


def _complete(item: _Image, file: Any, path: PathLike) -> _Image:
    """Image with its energies, pixel sizes and centre read from the file."""
    entry = member(file, item.entry, path)
    energy = _energies(entry, item, path)
    count = 1 if len(item.shape) == 2 else item.shape[0]
    if energy.size != count:
        raise FileError(
            f"{item.entry}/{item.name} has {count} planes for {energy.size} energies",
            where=path,
            remedy="Planes must be energies; modes or slices of one reconstruction are not.",
        )
    pixel = np.broadcast_to(_pixel(entry, item, energy, path), (count, 2))
    if not np.all(np.isfinite(pixel)) or np.any(pixel <= 0):
        raise FileError(f"{item.entry}/{item.name} has a pixel of {pixel[0]} nm", where=path)
    return replace(item, energy=energy, pixel=pixel, centre=_centre(entry, item, path))


def _energies(entry: Any, item: _Image, path: PathLike) -> NDArray[np.float64]:
    """Energies of an image in eV."""
    node = _first(entry, [*_own_sources(item.name), "instrument_1/source_1/energy"], path)
    if node is not None:
        values, units = numbers(node, path).ravel(), units_of(node)
        if not units:
            units = "J" if np.nanmax(np.abs(values)) < 1.0 else "eV"
            if units == "eV":
                LOG.warning("%s: energies are no joules, as CXI wants; taken for eV", path)
        return to_ev(values, units, path)
    node = _first(entry, ["instrument_1/source_1/wavelength"], path)
    if node is None:
        raise FileError(
            f"{item.entry} has no energy (instrument_1/source_1/energy)",
            where=path,
            remedy="Add the photon energy in J, or list the files in a format that tells it.",
        )
    return to_ev(JOULE_METRES / numbers(node, path).ravel(), "J", path)


def _pixel(
    entry: Any, item: _Image, energy: NDArray[np.float64], path: PathLike
) -> NDArray[np.float64]:
    """Pixel (y, x) in nm, for all energies or for each."""
    stated = _stated_pixel(entry, item, path)
    if stated is not None:
        return stated
    number = item.name.rpartition("_")[2]
    places = [
        f"{item.name}/detector_1",
        f"instrument_{number}/detector_1",
        "instrument_1/detector_1",
    ]
    corner = _first(entry, [f"{place}/corner_position" for place in places], path)
    if corner is None:
        raise FileError(
            f"{item.entry}/{item.name} has no pixel size",
            where=path,
            remedy="Add image_1/x_pixel_size and y_pixel_size in m, process_1/Param/pixnm in nm,"
            " or instrument_1/detector_1/corner_position.",
        )
    where = numbers(corner, path).ravel()
    if where.size != 3 or where[2] == 0:
        raise FileError(f"corner_position is {where}, not (x, y, z)", where=path)
    angles = np.arctan(np.abs(where[1::-1] / where[2]))
    wavelength = GEOMETRY_JOULE_NM / (energy / ENERGY_FACTORS["j"])
    with np.errstate(divide="ignore"):
        sizes: NDArray[np.float64] = wavelength[:, None] / (2 * np.sin(angles))[None, :]
    return sizes


def _stated_pixel(entry: Any, item: _Image, path: PathLike) -> NDArray[np.float64] | None:
    """Pixel (y, x) in nm that the file states, None if it does not."""
    places = (
        item.name,
        f"{item.name}/process_1/Param",
        "process_1/Param",
        f"{item.name}/process_1",
    )
    sizes = [
        _first(entry, [f"{place}/{axis}_pixel_size" for place in places], path) for axis in "yx"
    ]
    if sizes[0] is not None and sizes[1] is not None:
        values = [to_nm(numbers(s, path).ravel(), units_of(s) or "m", path) for s in sizes]
        return np.stack(values, axis=-1)
    node = _first(entry, [f"{place}/pixnm" for place in places], path)
    if node is not None:
        one = to_nm(numbers(node, path).ravel(), units_of(node) or "nm", path)
        return np.stack([one, one], axis=-1)
    node = _first(entry, [f"{item.name}/image_size"], path)
    if node is not None and node.size >= 2:
        extent = to_nm(numbers(node, path).ravel()[:2], units_of(node) or "m", path)
        return extent[::-1] / np.asarray(item.shape[-2:], dtype=np.float64)
    return None


def _centre(entry: Any, item: _Image, path: PathLike) -> tuple[float, float]:
    """Position (y, x) in nm of the middle of the image; 0 where the file does not tell."""
    node = _first(entry, [f"{item.name}/geometry_1/translation"], path)
    if node is None or node.size < 2:
        return 0.0, 0.0
    x, y = to_nm(numbers(node, path).ravel()[:2], units_of(node) or "m", path)
    return (float(y), float(x)) if np.isfinite(x) and np.isfinite(y) else (0.0, 0.0)


def _attrs(file: Any, item: _Image, path: PathLike) -> dict[str, str | float]:
    """Attributes of the stack; empty ones are left out."""
    attrs: dict[str, str | float] = {
        "quantity": "amplitude",
        "technique": "ptychography",
        "source_format": "cxi",
        "detector": item.name,
    }
    version = member(file, "cxi_version", path)
    if isinstance(version, h5py.Dataset) and version.size == 1:
        attrs["dialect"] = f"CXI {text(version[()])}"
    entry = member(file, item.entry, path)
    optional = {
        "title": read_text(entry, "title", path),
        "instrument": read_text(entry, "instrument_1/name", path)
        or text(attribute(entry, "instrument")),
        "sample": read_text(entry, "sample_1/name", path),
        "start_time": read_text(entry, "start_time", path),
    }
    return attrs | {key: value for key, value in optional.items() if value}


# --------------------------------------------------------------------------------------------
# Making one stack of many images


def _lazy(item: _Image) -> Any:
    """Lazy planes (energy, y, x) of one image."""
    return frames(item.data, (None, 0, 1) if len(item.shape) == 2 else (0, 1, 2))


def _series(
    planes: list[Any], found: list[_Image], attrs: dict[str, str | float], where: str
) -> xr.DataArray:
    """One stack of images on one grid."""
    energy = np.concatenate([_known(item.energy) for item in found])
    pixels = np.concatenate([_known(item.pixel) for item in found])
    centres = np.concatenate([[item.centre] * _known(item.energy).size for item in found])
    spread = pixels.max(axis=0) / pixels.min(axis=0) - 1
    if np.any(spread > SAME_PIXEL):
        return _resampled(planes, energy, pixels, centres, attrs, where)
    shapes = {item.shape[-2:] for item in found}
    if len(shapes) > 1:
        listed = "; ".join(f"{item.path} {item.entry}: {item.shape[-2:]}" for item in found[:4])
        raise FileError(
            f"the images of the series have different shapes ({listed})",
            where=where,
            remedy="Reconstruct all energies on one grid, or leave the odd one out.",
        )
    step = np.median(pixels, axis=0)
    if np.any(np.ptp(centres, axis=0) > 0.5 * step):
        LOG.warning("%s: the images are centred at different places; the first is used", where)
    rows, columns = shapes.pop()
    y = centres[0][0] + (np.arange(rows) - (rows - 1) / 2) * step[0]
    x = centres[0][1] + (np.arange(columns) - (columns - 1) / 2) * step[1]
    data = planes[0] if len(planes) == 1 else _joined(planes)
    return assemble(data, energy, y, x, where=where, attrs=attrs)


def _known(values: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Values that `_complete` has filled in."""
    if values is None:
        raise FileError("an image without energy or pixel")
    return values


def _joined(planes: list[Any]) -> Any:
    """Images one behind the other."""
    import dask.array as da

    return da.concatenate(planes, axis=0)  # type: ignore[no-untyped-call]


def _resampled(
    planes: list[Any],
    energy: NDArray[np.float64],
    pixels: NDArray[np.float64],
    centres: NDArray[np.float64],
    attrs: dict[str, str | float],
    where: str,
) -> xr.DataArray:
    """Stack on the grid of the finest pixel, on the field that every image covers."""
    import dask.array as da

    single = [plane[k : k + 1] for plane in planes for k in range(plane.shape[0])]
    shapes = np.array([plane.shape[1:] for plane in single])
    step = pixels.min(axis=0)
    LOG.warning(
        "%s: the pixel changes with energy from %.4g to %.4g nm; every frame is interpolated"
        " linearly onto the finest when it is read",
        where,
        step[1],
        pixels[:, 1].max(),
    )
    lows = centres - (shapes - 1) / 2 * pixels
    highs = centres + (shapes - 1) / 2 * pixels
    grid = [_common(lows[:, k], highs[:, k], pixels[:, k]) for k in (0, 1)]
    new: list[Any] = []
    for plane, low, pixel in zip(single, lows, pixels, strict=True):
        places = [(grid[k] - low[k]) / pixel[k] for k in (0, 1)]
        new.append(
            da.map_blocks(  # type: ignore[no-untyped-call]
                _interpolate,
                plane.rechunk((1, *plane.shape[1:])),
                rows=places[0],
                columns=places[1],
                dtype=np.complex64,
                chunks=((1,), (grid[0].size,), (grid[1].size,)),
                meta=np.empty((0, 0, 0), np.complex64),
            )
        )
    return assemble(_joined(new), energy, grid[0], grid[1], where=where, attrs=attrs)


def _common(
    lows: NDArray[np.float64], highs: NDArray[np.float64], pixels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Grid of the finest image along one axis, cut to what all images cover."""
    finest = int(np.argmin(pixels))
    step = pixels[finest]
    tolerance = 1e-6
    first = math.ceil((lows.max() - lows[finest]) / step - tolerance)
    last = math.floor((highs.min() - lows[finest]) / step + tolerance)
    if last <= first:
        raise FileError("the images of the series do not overlap")
    grid: NDArray[np.float64] = lows[finest] + np.arange(first, last + 1) * step
    return grid


def _interpolate(
    block: NDArray[np.complex64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """Frame (1, y, x) at fractional rows and columns, linear along each axis."""
    values = block
    for axis, places in ((1, rows), (2, columns)):
        below = np.clip(np.floor(places + 1e-6).astype(int), 0, max(values.shape[axis] - 2, 0))
        weight = np.clip(places - below, 0.0, 1.0).astype(np.float32)
        weight = np.where(weight < 1e-6, np.float32(0), weight)
        weight = weight.reshape(-1, 1) if axis == 1 else weight
        above = np.minimum(below + 1, values.shape[axis] - 1)
        values = values.take(below, axis) * (1 - weight) + values.take(above, axis) * weight
    return np.asarray(values, dtype=np.complex64)


# --------------------------------------------------------------------------------------------
# Writing


def write(stack: xr.DataArray, path: PathLike) -> Path:
    """Write a complex stack as CXI: one ``entry_N`` for each energy, in joules and metres.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Amplitudes; lazy stacks are written frame by frame. The steps of y and x must be even.
    path : path
        The file; it appears under this name only when it is complete.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        Not a stack of amplitudes, or positions that are not evenly spaced.
    FileError
        The file cannot be written.
    """
    check_stack(stack, ("amplitude",))
    steps = {name: _even_step(stack[name].values, name) for name in ("y", "x")}
    final = Path(path)
    with written_whole(final) as partial, h5py.File(partial, "w", locking=False) as file:
        file["cxi_version"] = 160
        file["number_of_entries"] = stack.sizes["energy"]
        for number in range(stack.sizes["energy"]):
            _write_entry(file.create_group(f"entry_{number + 1}"), stack[number], steps)
    return final


def _even_step(values: NDArray[np.float64], name: str) -> float:
    """Step of an axis in nm, which CXI cannot state unless it is the same everywhere."""
    if values.size < 2:
        return 1.0
    step = float(values[-1] - values[0]) / (values.size - 1)
    if np.any(np.abs(np.diff(values) - step) > 1e-3 * abs(step)):
        raise InputError(
            f"the steps of '{name}' are not even", where="cxi.write", remedy="Write NXstxm instead."
        )
    return step


def _write_entry(entry: Any, frame: xr.DataArray, steps: dict[str, float]) -> None:
    """One energy."""
    for name in ("title", "start_time"):
        if name in frame.attrs:
            entry[name] = str(frame.attrs[name])
    if "sample" in frame.attrs:
        entry["sample_1/name"] = str(frame.attrs["sample"])
    if "instrument" in frame.attrs:
        entry["instrument_1/name"] = str(frame.attrs["instrument"])
    energy = entry.create_dataset(
        "instrument_1/source_1/energy", data=float(frame.energy) / ENERGY_FACTORS["j"]
    )
    energy.attrs["units"] = "J"
    image = entry.create_group("image_1")
    image.create_dataset(
        "data",
        data=np.asarray(frame.data, dtype=np.complex64),
        chunks=frame.shape,
        compression="gzip",
        compression_opts=2,
        shuffle=True,
    )
    image["data_type"], image["data_space"] = "complex transmission", "real"
    middle = [float(frame[name][0] + frame[name][-1]) / 2 * 1e-9 for name in ("x", "y")]
    for name, value in (
        ("x_pixel_size", steps["x"] * 1e-9),
        ("y_pixel_size", steps["y"] * 1e-9),
        ("geometry_1/translation", [*middle, 0.0]),
    ):
        image.create_dataset(name, data=value).attrs["units"] = "m"
