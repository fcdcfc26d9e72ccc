"""ALS-style STXM stacks: a ``.hdr`` header and one text image ``.xim`` per energy.

Written by the ALS, MAXYMUS, SoftiMAX and PolLux microscopes. What the header says about which
image has which energy is not always true of the files beside it: stacks are trimmed, stopped and
edited, so the files found, their numbers and the image lines of the header are weighed together.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from spectromap.io._common import assemble, to_ev, to_nm, written_whole
from spectromap.io._frames import lazy_frames
from spectromap.io._hdr import axis_points, listed, number, read_header
from spectromap.schema import LOG, FileError, InputError, check_stack

NAME = "als-hdr"

_XIM_NAME = re.compile(r"(.+)_[a-z]\d*\.xim", re.IGNORECASE)
_IMAGE_LINE = re.compile(r"Image(\d+)(?:_(\d+))?")
_NUMBER = r"(\d{3}|[1-9]\d{3,})?"
#: Image lines give energies to 0.01 eV.
_ENERGY_ROUNDING = 0.0051
#: A grid printed more coarsely than this part of its step is put back on a straight line.
_COARSE = 0.01
_NO_STACKS = ("Point", "Line", "Focus", "OSA", "Detector")


@dataclass(frozen=True)
class _Frame:
    """Where one image lies and how large it must be; what a worker needs to read it."""

    file: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Lines:
    """Image lines of the header, by the number of the image file they speak of."""

    found: Mapping[int, dict[str, Any]]
    carry_indices: bool

    def values(self, key: str, numbers: Iterable[int]) -> NDArray[np.float64]:
        """One value per image, NaN where the line or the key is missing."""
        return np.array([number(self.found.get(index, {}), key) for index in numbers])


def refuse(path: str | PathLike[str]) -> str | None:
    """Why this is not an ALS-style header or image, or None if it is one.

    Parameters
    ----------
    path : path
        A ``.hdr`` file or one of its ``.xim`` images.

    Returns
    -------
    str or None
        The reason.
    """
    header = _header_of(path)
    if not header.is_file():
        missing = header.name if header != Path(path) else "the file"
        return f"{missing} is not there"
    try:
        with header.open("rb") as stream:
            head = stream.read(65536)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if b"\0" in head:
        return "it is binary, not a text header"
    return None if b"ScanDefinition" in head else "there is no ScanDefinition in it"


def read_axes(
    path: str | PathLike[str], region: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Axes that a header announces; its images need not be there.

    Parameters
    ----------
    path : path
        The ``.hdr`` or one of its ``.xim``.
    region : int
        Which region of a scan of several.

    Returns
    -------
    energy : ndarray
        In eV, in the order of the header.
    y, x : ndarray
        In nm, in the order of the rows and columns of an image.

    Raises
    ------
    FileError
        No scan of images over energy.
    """
    path = _header_of(path)
    header = read_header(path)
    scan = header["ScanDefinition"]
    y, x = _grid(scan, region, path)
    return _energies(scan, header, path), y, x


def contents(path: str | PathLike[str]) -> list[str]:
    """What a header offers to choose from.

    Parameters
    ----------
    path : path
        The ``.hdr`` or one of its ``.xim``.

    Returns
    -------
    list of str
        A line for each region, then one for each detector.

    Raises
    ------
    FileError
        No header of this kind.
    """
    path = _header_of(path)
    scan = read_header(path)["ScanDefinition"]
    lines = []
    for region in range(len(listed(scan.get("Regions")))):
        y, x = _grid(scan, region, path)
        lines.append(f"region {region}: {y.size} rows x {x.size} columns")
    for index, channel in enumerate(listed(scan.get("Channels"))):
        lines.append(f"detector {chr(ord('a') + index)}: {channel.get('Name', '')}")
    return lines


def open(
    path: str | PathLike[str], *, region: int = 0, detector: str | None = None
) -> xr.DataArray:
    """Open a stack of counts.

    Parameters
    ----------
    path : path
        The ``.hdr`` or one of its ``.xim``.
    region : int
        Which region of a scan of several, counted from 0.
    detector : str, optional
        Name of a channel, or its letter in the names of the images; default the first.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Lazy, one chunk per image; ``dwell_time`` in s and, where the ring current was recorded,
        ``ring_current`` in mA along energy.

    Raises
    ------
    FileError
        Not a scan of images over energy, an image that is missing or of another shape, images
        that cannot be assigned to energies.
    """
    path = _header_of(path)
    header = read_header(path)
    scan = header["ScanDefinition"]
    regions = len(listed(scan.get("Regions")))
    y, x = _grid(scan, region, path)
    axis = _energies(scan, header, path)
    letter, channel = _channel(scan, detector, path)
    files = _stored(path, letter, region, regions, axis.size)
    numbers = sorted(files)
    lines = _image_lines(header, region, numbers, axis.size)
    _warn_of_others(path, region, regions)
    order = _assign(path, numbers, axis, lines)
    ending = str(region) if regions > 1 else ""
    lost = _lost(numbers, axis.size, lines)
    if lost is not None:
        raise _missing(path, _file_name(path, letter, lost, ending))
    _warn_of_plan(path, len(numbers), max(axis.size, _planned(header)))
    frames = [_Frame(str(files[index]), (y.size, x.size)) for index in numbers]
    for frame in frames:
        _check_shape(frame)
    attrs = {
        "quantity": "counts",
        "technique": "stxm",
        "source_format": NAME,
        "detector": channel,
        "entry": str(region) if regions > 1 else "",
        "start_time": str(header.get("Time", "")),
    }
    return assemble(
        lazy_frames(_read_frame, frames, (y.size, x.size)),
        axis[order],
        y,
        x,
        where=path,
        attrs={key: value for key, value in attrs.items() if value},
        along_energy=_along_energy(header, axis, order, lines, numbers),
    )


def write(stack: xr.DataArray, path: str | PathLike[str]) -> None:
    """Write a stack of counts as the microscope would: a ``.hdr`` and one ``.xim`` per energy.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts. ``dwell_time`` and ``ring_current`` along energy are kept where they are.
    path : path
        The ``.hdr``; the images go beside it. The header is written last, each file whole.

    Raises
    ------
    InputError
        Not a stack of counts, or a name that does not end in ``.hdr``.
    FileError
        The folder holds further images of that name, or cannot be written.
    """
    check_stack(stack, ("counts",))
    path = Path(path)
    if path.suffix.lower() != ".hdr":
        raise InputError("the name must end in .hdr", where=path)
    names = _names_to_write(path, stack.sizes["energy"])
    path.parent.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        frame = np.asarray(stack[index].values)
        with written_whole(path.with_name(name)) as partial:
            partial.write_bytes(_image_text(frame))
    with written_whole(path) as partial:
        partial.write_bytes(_header_text(stack, path.name).encode())


# Reading


def _header_of(path: str | PathLike[str]) -> Path:
    """The header that a file belongs to, or the file itself."""
    path = Path(path)
    match = _XIM_NAME.fullmatch(path.name)
    return path.with_name(f"{match[1]}.hdr") if match else path


def _grid(
    scan: Mapping[str, Any], region: int, path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions of rows and columns in nm."""
    kind = str(scan.get("Type", ""))
    if any(word in kind for word in _NO_STACKS):
        raise FileError(
            f"is a '{kind}', not a stack of images",
            where=path,
            remedy="A point scan can be read with read_spectrum." if "Point" in kind else "",
        )
    regions = listed(scan.get("Regions"))
    if not 0 <= region < len(regions):
        raise FileError(
            f"there is no region {region}",
            where=path,
            remedy=f"The header lists {len(regions)}, counted from 0.",
        )
    positions = []
    for key in ("QAxis", "PAxis"):
        axis = regions[region].get(key)
        points = _straightened(axis_points(axis, f"{key} of region {region}", path))
        units = str(axis.get("Unit") or "um") if isinstance(axis, dict) else "um"
        positions.append(to_nm(points, units, path))
    return positions[0], positions[1]


def _straightened(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions of an even grid, without the rounding of a coarse print.

    A step of 33.3 nm printed to 1 nm makes steps of 33 and 34 nm, and whoever takes their median
    for the pixel size is 1 % off.
    """
    if points.size < 3:
        return points
    line = np.linspace(points[0], points[-1], points.size)
    printed = next(
        (10.0**-d for d in range(8) if np.all(np.abs(points * 10**d % 1 - 0.5) > 0.499)), None
    )
    if printed is None:
        return points
    coarse = printed > _COARSE * abs(line[1] - line[0])
    return line if coarse and np.max(np.abs(points - line)) <= 1.01 * printed else points


def _energies(
    scan: Mapping[str, Any], header: Mapping[str, Any], path: Path
) -> NDArray[np.float64]:
    """Energies of the stack axis in eV, in the order of the header."""
    axis = scan.get("StackAxis")
    if not isinstance(axis, dict):
        return _only_energy(header, path)
    name, unit = str(axis.get("Name", "")), str(axis.get("Unit", "")).strip()
    points = axis_points(axis, "StackAxis", path)
    if "energy" not in name.lower() and unit.lower() not in ("ev", "kev"):
        raise FileError(f"the stack runs over '{name}' ({unit}), not over energy", where=path)
    if not unit and np.min(points) <= 0:
        raise FileError(
            f"StackAxis is called '{name}' but has no unit and runs from {points[0]:g} to"
            f" {points[-1]:g}, which is another quantity (a magnetic field?), not an energy",
            where=path,
        )
    return to_ev(points, unit, path)


def _only_energy(header: Mapping[str, Any], path: Path) -> NDArray[np.float64]:
    """Energy of a single image without a stack axis: its image line's or the monochromator's."""
    candidates = [
        number(value, "Energy")
        for key, value in header.items()
        if _IMAGE_LINE.fullmatch(key) and isinstance(value, dict)
    ]
    monochromator = header.get("Monochromator")
    if isinstance(monochromator, dict):
        candidates.append(number(monochromator, "LastPosition"))
    known = [value for value in candidates if np.isfinite(value)]
    if not known:
        raise FileError("there is neither a StackAxis nor an energy in it", where=path)
    LOG.warning("%s: there is no StackAxis; the energy is taken as %g eV", path, known[0])
    return to_ev(known[:1], "eV", path)


def _channel(scan: Mapping[str, Any], detector: str | None, path: Path) -> tuple[str, str]:
    """Letter and name of a channel."""
    names = [str(channel.get("Name", "")) for channel in listed(scan.get("Channels"))] or [""]
    letters = [chr(ord("a") + index) for index in range(len(names))]
    if detector is None:
        if len(names) > 1:
            LOG.warning(
                "%s: several detectors; '%s' is read, not %s",
                path,
                names[0],
                ", ".join(f"'{name}'" for name in names[1:]),
            )
        return letters[0], names[0]
    for letter, name in zip(letters, names, strict=True):
        if detector in (letter, name):
            return letter, name
    raise FileError(
        f"there is no detector '{detector}'",
        where=path,
        remedy=f"It has {', '.join(names)}.",
    )


def _stored(path: Path, letter: str, region: int, regions: int, planned: int) -> dict[int, Path]:
    """Images on the disk, by number; the one image of a single scan has number 0.

    Raises
    ------
    FileError
        There is none; the message names the first.
    """
    # One region, yet written by software set to several: its images still carry a region.
    for ending in ("", "0") if regions == 1 else (str(region),):
        pattern = re.compile(
            f"{re.escape(path.stem)}_{letter}{_NUMBER}{ending}\\.xim", re.IGNORECASE
        )
        numbered: dict[int, Path] = {}
        single: dict[int, Path] = {}
        with os.scandir(path.parent) as entries:
            for entry in entries:
                if match := pattern.fullmatch(entry.name):
                    target = single if match[1] is None else numbered
                    target[int(match[1] or 0)] = Path(entry.path)
        if numbered or single:
            return numbered or single
    ending = str(region) if regions > 1 else ""
    first = _file_name(path, letter, 0, ending)
    raise _missing(path, first if planned > 1 else f"{path.stem}_{letter}{ending}.xim")


def _file_name(path: Path, letter: str, index: int, ending: str) -> str:
    """Name of an image of a stack."""
    return f"{path.stem}_{letter}{index:03d}{ending}.xim"


def _missing(path: Path, name: str) -> FileError:
    """The error for an image that should be there."""
    return FileError(
        f"the image '{name}' is missing",
        where=path,
        remedy=f"Copy the .xim files beside the header, into {path.parent}.",
    )


def _image_lines(
    header: Mapping[str, Any], region: int, numbers: Sequence[int], planned: int
) -> _Lines:
    """Image lines of a region: ``Image003_0`` carries the index 3, ``Image4`` only counts."""
    matched = [
        (match, value)
        for key, value in header.items()
        if (match := _IMAGE_LINE.fullmatch(key)) and isinstance(value, dict)
    ]
    indexed = {int(m[1]): value for m, value in matched if m[2] and int(m[2]) == region}
    if indexed:
        return _Lines(indexed, carry_indices=True)
    counted = {int(m[1]): value for m, value in matched if m[2] is None}
    if not counted:
        return _Lines({}, carry_indices=False)
    # Some writers count images from 1, and leave out the first.
    offset = 1 if 0 not in counted and max(counted) in (len(numbers), planned) else 0
    found = {index - offset: value for index, value in counted.items()}
    return _Lines(found, carry_indices=max(found) == planned - 1)


def _assign(
    path: Path, numbers: Sequence[int], axis: NDArray[np.float64], lines: _Lines
) -> NDArray[np.int64]:
    """Index on the stack axis of every image, judged by its number and by its line's energy."""
    told = lines.values("Energy", numbers)
    candidates = []
    if numbers[-1] < axis.size:
        candidates.append(np.asarray(numbers))
    if len(numbers) == axis.size:
        candidates.append(np.arange(axis.size))
    nearest = _nearest(told, axis)
    if nearest is not None:
        candidates.append(nearest)
    if not candidates:
        raise FileError(
            f"{len(numbers)} images, numbered {numbers[0]} to {numbers[-1]}, do not fit the"
            f" {axis.size} energies of StackAxis",
            where=path,
            remedy="Move images that do not belong to the stack away, or mend the header.",
        )
    misfits = [_misfit(axis[order], told) for order in candidates]
    best = next((i for i, m in enumerate(misfits) if m <= _ENERGY_ROUNDING), 0)
    if misfits[best] > _ENERGY_ROUNDING:
        worst = int(np.nanargmax(np.abs(axis[candidates[best]] - told)))
        LOG.warning(
            "%s: the line of image %d says %g eV where StackAxis says %g eV; StackAxis is used",
            path,
            numbers[worst],
            told[worst],
            axis[candidates[best]][worst],
        )
    return np.asarray(candidates[best], dtype=np.int64)


def _nearest(told: NDArray[np.float64], axis: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The points of the axis that lines name, if every line names one of its own."""
    if not np.all(np.isfinite(told)):
        return None
    distance = np.abs(told[:, np.newaxis] - axis)
    nearest = np.argmin(distance, axis=1)
    alone = np.unique(nearest).size == nearest.size
    return nearest if alone and np.max(np.min(distance, axis=1)) <= _ENERGY_ROUNDING else None


def _misfit(energy: NDArray[np.float64], told: NDArray[np.float64]) -> float:
    """Largest disagreement of energies with the image lines; 0 where no line tells."""
    known = np.isfinite(told)
    return float(np.max(np.abs(energy - told)[known])) if np.any(known) else 0.0


def _lost(numbers: Sequence[int], planned: int, lines: _Lines) -> int | None:
    """Number of an image that was stored once and is not there now."""
    if len(numbers) >= planned:
        return None
    # Images that have a line were stored. Without such lines a gap is a loss, while the end of
    # the plan may never have been reached.
    ought = lines.found if lines.carry_indices else range(numbers[-1])
    return min(set(ought) - set(numbers), default=None)


def _warn_of_plan(path: Path, stored: int, planned: int) -> None:
    """Tell that a scan was stopped or trimmed."""
    if stored < planned:
        LOG.warning(
            "%s: %d energies were planned and %d images are stored; those are read",
            path,
            planned,
            stored,
        )


def _planned(header: Mapping[str, Any]) -> int:
    """Energies that the scan was set up for, as far as the header tells."""
    return sum(int(count) for _, count in _energy_regions(header))


def _energy_regions(header: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Dwell in ms and number of energies of each region of the energy plan."""
    image_scan = header.get("ImageScan")
    regions = listed(image_scan.get("EnergyRegions")) if isinstance(image_scan, dict) else []
    found = [(number(region, "DwellTime"), number(region, "Points")) for region in regions]
    return [(dwell, count) for dwell, count in found if count >= 1]


def _along_energy(
    header: Mapping[str, Any],
    axis: NDArray[np.float64],
    order: NDArray[np.int64],
    lines: _Lines,
    numbers: Sequence[int],
) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Dwell and ring current of every image, as far as they were recorded."""
    found = {}
    dwell = np.full(axis.size, number(header["ScanDefinition"], "Dwell"))
    regions = _energy_regions(header)
    counts = [int(count) for _, count in regions]
    if sum(counts) == axis.size:
        planned = np.repeat([value for value, _ in regions], counts)
        dwell = np.where(planned > 0, planned, dwell)
    if np.all(dwell > 0):
        found["dwell_time"] = dwell[order] * 1e-3, "s"
    current = lines.values("StorageRingCurrent", numbers)
    current[~(current > 0)] = np.nan  # 0 stands for unknown
    if np.any(np.isfinite(current)):
        found["ring_current"] = current, "mA"
    return found


def _warn_of_others(path: Path, region: int, regions: int) -> None:
    """Tell which regions of the scan are left out."""
    if regions > 1:
        others = ", ".join(str(index) for index in range(regions) if index != region)
        LOG.warning("%s: several regions; region %d is read, not %s", path, region, others)


def _check_shape(frame: _Frame) -> None:
    """Count rows and columns without converting a number.

    Raises
    ------
    FileError
        They are not what the header says.
    """
    text = _content(frame.file).rstrip()
    rows = text.count(b"\n") + 1 if text else 0
    columns = len(text.split(b"\n", 1)[0].split())
    if (rows, columns) != frame.shape:
        raise FileError(
            f"holds {rows} x {columns} values where the header says"
            f" {frame.shape[0]} x {frame.shape[1]}",
            where=frame.file,
            remedy="If the scan was stopped in this image, move it away: the others are read.",
        )


def _content(file: str) -> bytes:
    """Content of an image file."""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=file) from error


def _read_frame(frame: _Frame) -> NDArray[np.float32]:
    """Numbers of one image, text row k being row k."""
    content = _content(frame.file)
    columns = frame.shape[1]
    try:
        values = _numbers(content, columns)
    except ValueError as error:
        raise FileError(f"is not a table of numbers ({error})", where=frame.file) from error
    if values.shape != frame.shape:
        raise FileError(f"holds {values.shape} values, not {frame.shape}", where=frame.file)
    return np.ascontiguousarray(values, dtype=np.float32)


def _numbers(content: bytes, columns: int) -> NDArray[Any]:
    """Text to numbers: pandas is three times faster than NumPy, but takes no NaN without cost."""
    separator = "\t" if b"\t" in content[:4096] else r"\s+"
    with np.errstate(over="ignore"):  # a garbage 1e66 becomes infinite
        try:
            table = pd.read_csv(
                io.BytesIO(content),
                sep=separator,
                header=None,
                dtype={index: np.float32 for index in range(columns)},
                na_filter=False,
                low_memory=False,
            )
            return table.iloc[:, :columns].to_numpy(dtype=np.float32)
        except ValueError:
            return np.loadtxt(io.BytesIO(content), ndmin=2).astype(np.float32)


# Writing


def _names_to_write(path: Path, count: int) -> list[str]:
    """Names of the images; images of a longer stack of that name would be read with them."""
    if count == 1:
        return [f"{path.stem}_a.xim"]
    names = [_file_name(path, "a", index, "") for index in range(count)]
    pattern = re.compile(f"{re.escape(path.stem)}_a\\d+\\.xim", re.IGNORECASE)
    present = sorted(p.name for p in path.parent.glob("*.xim")) if path.parent.is_dir() else []
    strange = [name for name in present if pattern.fullmatch(name) and name not in names]
    if strange:
        raise FileError(
            f"the folder holds '{strange[0]}' of another stack of this name",
            where=path,
            remedy="Write under another name or into an empty folder.",
        )
    return names


def _image_text(frame: NDArray[Any]) -> bytes:
    """One image: tabs, one more at the end of a row, CRLF; whole numbers without a point."""
    if np.all(np.isfinite(frame)) and np.all(frame == np.rint(frame)):
        rows = ("\t".join(map(str, row)) for row in frame.astype(np.int64).tolist())
    else:
        rows = ("\t".join(f"{value:.9g}" for value in row) for row in frame.tolist())
    return "".join(f"{row}\t\r\n" for row in rows).encode("ascii")


def _decimals(value: float) -> str:
    """Four decimals as the microscopes print, or as many as it takes (to 1e-7)."""
    short = f"{value:.4f}"
    return short if abs(float(short) - value) < 5e-8 else f"{value:.7f}".rstrip("0")


def _axis_text(name: str, unit: str, points: NDArray[np.float64]) -> str:
    """An axis; the first of its Points is their count."""
    listed_points = ", ".join([str(points.size), *map(_decimals, points)])
    return (
        f'{{ Name = "{name}"; Unit = "{unit}"; Min = {_decimals(points.min())};'
        f" Max = {_decimals(points.max())}; Dir = 1;\r\n\t\t\t\tPoints = ({listed_points});\r\n}};"
    )


def _header_text(stack: xr.DataArray, name: str) -> str:
    """The header, in the order in which microscopes write it."""
    energy = np.asarray(stack.energy.values, dtype=np.float64)
    dwell = _coordinate(stack, "dwell_time") * 1e3
    current = _coordinate(stack, "ring_current")
    known = np.all(np.isfinite(dwell))
    kind = '"NEXAFS Image Scan"; Flags = "Image Stack"'
    if energy.size == 1:
        kind = '"Image Scan"; Flags = "Image"'
    channel = str(stack.attrs.get("detector", "counter0")).replace('"', "'")
    time = str(stack.attrs.get("start_time", "")).replace('"', "'")
    parts = [
        "",
        f'ScanDefinition = {{ Label = "{name}"; Type = {kind};'
        + (f" Dwell = {dwell[0]:.9g};" if known else ""),
        "\tRegions = (1,",
        "{",
        "\t\t\tPAxis = " + _axis_text("Sample X", "um", stack.x.values * 1e-3),
        "",
        "\t\t\tQAxis = " + _axis_text("Sample Y", "um", stack.y.values * 1e-3),
        "});",
        "",
        "\tStackAxis = " + _axis_text("Energy", "eV", energy),
        "",
        "\tChannels = (1,",
        f'{{ Name = "{channel}"; Unit = "counts";}});',
        "};",
        f' Time = "{time}";',
        'ImageScan = { ScanType = "Image (Line - unidirection)";'
        + f" SingleEnergy = {str(energy.size == 1).lower()};"
        + (_plan_text(energy, dwell) if known else "")
        + " MultipleRegions = false;",
        "};",
    ]
    for index, value in enumerate(np.nan_to_num(current)):
        parts.append(
            f"Image{index:03d}_0 = {{StorageRingCurrent = {value:.9g};"
            f" Energy = {energy[index]:.2f};}};"
        )
    return "\r\n".join(parts) + "\r\n"


def _plan_text(energy: NDArray[np.float64], dwell: NDArray[np.float64]) -> str:
    """Energy regions, one for every run of images with one dwell."""
    starts = np.flatnonzero(np.diff(dwell, prepend=np.nan) != 0)
    runs = np.split(np.arange(energy.size), starts[1:])
    texts = []
    for run in runs:
        first, last = energy[run[0]], energy[run[-1]]
        step = (last - first) / max(1, run.size - 1)
        texts.append(
            f"{{ StartEnergy = {_decimals(first)}; EndEnergy = {_decimals(last)};"
            f" Range = {_decimals(last - first)}; Step = {_decimals(step)};"
            f" Points = {run.size}; DwellTime = {dwell[run[0]]:.9g};}}"
        )
    return f"\r\n\tEnergyRegions = ({len(runs)},\r\n" + ",\r\n".join(texts) + ");\r\n"


def _coordinate(stack: xr.DataArray, name: str) -> NDArray[np.float64]:
    """A coordinate along energy, NaN where the stack has none."""
    if name not in stack.coords:
        return np.full(stack.sizes["energy"], np.nan)
    return np.broadcast_to(
        np.asarray(stack[name].values, dtype=np.float64), (stack.sizes["energy"],)
    )
