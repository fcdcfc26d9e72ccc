"""Rocking scans of APS beamline 34-ID-C: a SPEC file, and one TIFF for every frame.

The SPEC file tells the motors (``#P``), the region of the detector that was read (``#UIMR5``) and,
for every frame, the sum and the largest value of the image, by which each TIFF is checked against
its line. Dark and white field are images of the whole detector and are cut to that region.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import FileError, InputError

__all__ = ["SpecScan", "read_rocking_scan", "read_spec_scan"]

PathName = str | PathLike[str]

#: Circles of the diffractometer as SPEC calls them.
_CIRCLES = ("Delta", "Gamma", "Theta", "Chi", "Phi", "Mu")
#: Pixels of the Timepix detectors of the beamline.
_PIXEL_M = 55e-6
_DETECTORS = ("34idcTIM1", "34idcTIM2")
#: The number of a frame at the end of its name.
_FRAME_NUMBER = re.compile(r"(\d+)\.tiff?$", re.IGNORECASE)
#: More missing frames than this part of the scan, and it is no scan any more.
_MOST_MISSING = 0.1


@dataclass(frozen=True)
class SpecScan:
    """What a SPEC file tells about one scan.

    Parameters
    ----------
    number : int
        Number of the scan.
    command : str
        The command that started it, such as ``ascan th -0.28 0.72 200 0.25``.
    motors : dict of str to float
        Position of every motor when the scan began, by its long name.
    short_names : dict of str to str
        Long name of every motor by its mnemonic.
    columns : dict of str to ndarray
        What was counted, one value for each frame.
    roi : tuple of int, optional
        First column, columns, first row and rows of the detector that were read.
    detector : str
        Name of the detector.
    energy_keV : float
        Photon energy in keV.
    """

    number: int
    command: str
    motors: dict[str, float]
    short_names: dict[str, str]
    columns: dict[str, NDArray[np.float64]]
    roi: tuple[int, int, int, int] | None
    detector: str
    energy_keV: float

    @property
    def scanned(self) -> str:
        """Long name of the motor that was scanned."""
        mnemonic = self.command.split()[1] if len(self.command.split()) > 1 else ""
        return self.short_names.get(mnemonic, mnemonic)


@dataclass
class _Header:
    """Names of motors, which a SPEC file states once for all its scans."""

    names: list[list[str]] = field(default_factory=list)
    mnemonics: list[list[str]] = field(default_factory=list)


def read_spec_scan(path: PathName, number: int) -> SpecScan:
    """Read one scan of a SPEC file.

    Parameters
    ----------
    path : path
        The SPEC file.
    number : int
        Number of the scan; where it occurs more than once, the last counts.

    Returns
    -------
    SpecScan

    Raises
    ------
    FileError
        No such file, no SPEC file, no such scan, or a damaged scan.
    """
    try:
        lines = Path(path).read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path) from error
    starts = [index for index, line in enumerate(lines) if line.startswith("#S ")]
    chosen = [index for index in starts if lines[index].split()[1] == str(number)]
    if not chosen:
        raise FileError(
            f"no scan {number} among {len(starts)} scans",
            where=path,
            remedy="Check the number, and that this is the SPEC file of the experiment.",
        )
    start = chosen[-1]
    end = next((index for index in starts if index > start), len(lines))
    # A file may state new names of motors after a restart: those before the scan count.
    return _scan(lines[start:end], _header(lines[:start]), number, f"{path}, scan {number}")


def _header(lines: list[str]) -> _Header:
    """Names of motors from the last header among some lines."""
    header = _Header()
    for line in lines:
        if line.startswith("#O0"):
            header.names = []
        if line.startswith("#o0"):
            header.mnemonics = []
        if re.match(r"#O\d", line):
            header.names.append(_split(line))
        if re.match(r"#o\d", line):
            header.mnemonics.append(line.split()[1:])
    return header


def _split(line: str) -> list[str]:
    """Names of a line; they may hold single spaces, so two part them."""
    _, _, rest = line.partition(" ")
    return [name for name in re.split(r"\s{2,}", rest.strip()) if name]


def _scan(lines: list[str], header: _Header, number: int, where: str) -> SpecScan:
    """Make sense of the lines of one scan."""
    motors: dict[str, float] = {}
    short: dict[str, str] = {}
    for index, line in enumerate(item for item in lines if re.match(r"#P\d", item)):
        values = _numbers(line.split()[1:], where)
        names = header.names[index] if index < len(header.names) else []
        if len(names) != len(values):
            raise FileError(f"{len(values)} positions for {len(names)} motors", where=where)
        motors.update(zip(names, values, strict=True))
        if index < len(header.mnemonics) and len(header.mnemonics[index]) == len(names):
            short.update(zip(header.mnemonics[index], names, strict=True))
    return SpecScan(
        number=number,
        command=" ".join(lines[0].split()[2:]),
        motors=motors,
        short_names=short,
        columns=_columns(lines, where),
        roi=_roi(lines, where),
        detector=_said(lines, "#UIMDET ").rstrip(":"),
        energy_keV=motors.get("Energy", float("nan")),
    )


def _said(lines: list[str], key: str) -> str:
    """Rest of the first line with a key, empty without one."""
    return next((line[len(key) :].strip() for line in lines if line.startswith(key)), "")


def _numbers(words: Sequence[str], where: str) -> list[float]:
    """Numbers of a line."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise FileError(
            f"a line holds something else than numbers ({error})", where=where
        ) from None


def _roi(lines: list[str], where: str) -> tuple[int, int, int, int] | None:
    """Region of the detector that was read."""
    words = _said(lines, "#UIMR5 ").split()
    if len(words) < 4:
        return None
    column, columns, row, rows = (int(value) for value in _numbers(words[:4], where))
    return column, columns, row, rows


def _columns(lines: list[str], where: str) -> dict[str, NDArray[np.float64]]:
    """What was counted at each point."""
    names = next((_split(line) for line in lines if line.startswith("#L ")), [])
    rows = [
        _numbers(line.split(), where) for line in lines if line.strip() and not line.startswith("#")
    ]
    whole = [row for row in rows if len(row) == len(names)]
    if not names or not whole or len(whole) != len(rows):
        raise FileError(
            "its points do not fit the names of their columns, or there are none",
            where=where,
            remedy="The scan was stopped before its first point, or the file is cut off.",
        )
    table = np.array(whole)
    return {name: table[:, index] for index, name in enumerate(names)}


# --------------------------------------------------------------------------------------------
# Frames


def read_rocking_scan(
    spec: PathName,
    number: int,
    frames: PathName | Sequence[PathName],
    *,
    dark: PathName | None = None,
    white: PathName | None = None,
) -> xr.Dataset:
    """Read a rocking scan with its geometry, dark and white field.

    Parameters
    ----------
    spec : path
        The SPEC file.
    number : int
        Number of the scan.
    frames : path or list of paths
        Folder of the TIFFs, or the TIFFs themselves; the number at the end of their names puts
        them in order.
    dark, white : path, optional
        Images of the whole detector, or of the region that was read.

    Returns
    -------
    Dataset
        ``counts`` (frame, row, column) float32 as recorded, NaN where a frame is missing; ``dark``
        and ``white`` (row, column) where given; coordinate ``angle`` (frame) in degrees; the
        attributes that `spectromap.bcdi.preprocess.prepare` carries on, and ``flags``, JSON of
        what was odd.

    Raises
    ------
    FileError
        A file is missing or damaged, frames do not fit the lines of the SPEC file, more than a
        tenth of them is missing, or the region lies outside the dark or white field.
    InputError
        No frames at all.
    """
    scan = read_spec_scan(spec, number)
    angle = scan.columns.get(scan.scanned)
    if angle is None:
        raise FileError(
            f"the scanned motor '{scan.scanned}' has no column", where=f"{spec}, scan {number}"
        )
    files = _numbered_files(frames)
    counts, missing = _frames(files, angle.size, scan)
    flags = [f"frame {index} is missing" for index in missing]
    flags += _check_totals(counts, scan, missing, files)
    return xr.Dataset(
        {
            "counts": (("frame", "row", "column"), counts, {"units": "count"}),
            **_fields({"dark": dark, "white": white}, counts.shape[1:], scan.roi),
        },
        coords={"angle": ("frame", angle, {"units": "degree"})},
        attrs=_attrs(scan, spec, flags),
    )


def _numbered_files(frames: PathName | Sequence[PathName]) -> dict[int, Path]:
    """TIFFs by the number at the end of their names."""
    if isinstance(frames, (str, PathLike)):
        folder = Path(frames)
        if not folder.is_dir():
            raise FileError("there is no such folder of frames", where=folder)
        paths = [item for item in folder.iterdir() if _FRAME_NUMBER.search(item.name)]
    else:
        paths = [Path(item) for item in frames]
    if not paths:
        raise InputError("no frames", where=frames, remedy="Give the folder of the TIFFs.")
    files: dict[int, Path] = {}
    for path in sorted(paths):
        found = _FRAME_NUMBER.search(path.name)
        if found is None:
            raise FileError("its name does not end with a number", where=path)
        if int(found[1]) in files:
            raise FileError(f"a second frame {int(found[1])}", where=path)
        files[int(found[1])] = path
    return files


def _frames(
    files: dict[int, Path], count: int, scan: SpecScan
) -> tuple[NDArray[np.float32], list[int]]:
    """All frames, NaN for those that are missing, and which are."""
    folder = next(iter(files.values())).parent
    # Frames are numbered from 0; an older writer began with 1.
    first = 0 if max(files) < count else 1
    missing = [index for index in range(count) if index + first not in files]
    extra = [index for index in files if not 0 <= index - first < count]
    if extra or len(missing) > _MOST_MISSING * count:
        raise FileError(
            f"{len(files)} frames for the {count} points of scan {scan.number}"
            + (f"; missing: {_listed(missing)}" if missing else ""),
            where=folder,
            remedy="Check the number of the scan, and copy the missing frames.",
        )
    images = {index: read_image(path) for index, path in files.items()}
    shape = next(iter(images.values())).shape
    if scan.roi and shape != (scan.roi[3], scan.roi[1]):
        raise FileError(
            f"frames of {shape} pixels, but the SPEC file says rows and columns"
            f" {(scan.roi[3], scan.roi[1])}",
            where=folder,
            remedy="Check that the folder belongs to this scan.",
        )
    counts = np.full((count, *shape), np.nan, np.float32)
    for index, image in images.items():
        if image.shape != shape:
            raise FileError(f"{image.shape} pixels, the other frames {shape}", where=files[index])
        counts[index - first] = image
    return counts, missing


def read_image(path: PathName) -> NDArray[np.float32]:
    """Read a TIFF of one grey image.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    ndarray of float32, shape (rows, columns)

    Raises
    ------
    FileError
        Missing, damaged or no grey image.
    """
    import tifffile

    try:
        image = np.asarray(tifffile.imread(path))
    except Exception as error:  # the decoder raises its own, ValueError, struct.error, zlib.error
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"cannot be read as TIFF ({reason})", where=path, remedy="Copy it again."
        ) from error
    if image.ndim != 2 or image.dtype.kind not in "iuf":
        raise FileError(f"not one grey image ({image.dtype}, shape {image.shape})", where=path)
    return image.astype(np.float32)


def _listed(numbers: Sequence[int]) -> str:
    """The first numbers of a list."""
    more = ", ..." if len(numbers) > 8 else ""
    return ", ".join(str(number) for number in numbers[:8]) + more


def _check_totals(
    counts: NDArray[np.float32], scan: SpecScan, missing: list[int], files: dict[int, Path]
) -> list[str]:
    """Compare each frame with the largest value that SPEC noted for it.

    The largest value is exact in both; the sum may pass through float32 or a rounded PV.
    """
    noted = scan.columns.get("ImageMax")
    if noted is None or not np.any(noted):
        return []
    found = np.nanmax(np.where(np.isnan(counts), -1, counts), axis=(1, 2))
    wrong = [
        int(index)
        for index in np.flatnonzero(np.abs(found - noted) > 0.5 + 1e-6 * noted)
        if index not in missing
    ]
    if len(wrong) > 0.5 * (noted.size - len(missing)):
        raise FileError(
            f"the frames are not those of scan {scan.number}: {len(wrong)} of {noted.size} have"
            " another largest value than the SPEC file noted",
            where=next(iter(files.values())).parent,
            remedy="Check that the folder belongs to this scan.",
        )
    if not wrong:
        return []
    return [f"frames {_listed(wrong)} have another largest value than the SPEC file noted"]


def _fields(
    files: dict[str, PathName | None],
    shape: tuple[int, ...],
    roi: tuple[int, int, int, int] | None,
) -> dict[str, tuple[tuple[str, str], NDArray[np.float32]]]:
    """Dark and white field, cut to the region that was read."""
    fields: dict[str, tuple[tuple[str, str], NDArray[np.float32]]] = {}
    for name, path in files.items():
        if path is not None:
            fields[name] = (("row", "column"), _cut(read_image(path), shape, roi, path))
    return fields


def _cut(
    image: NDArray[np.float32],
    shape: tuple[int, ...],
    roi: tuple[int, int, int, int] | None,
    path: PathName,
) -> NDArray[np.float32]:
    """Part of an image of the whole detector that the frames show."""
    if image.shape == shape:
        return image
    if roi is None:
        raise FileError(
            f"{image.shape} pixels, the frames {shape}, and the SPEC file tells no region (#UIMR5)",
            where=path,
        )
    column, columns, row, rows = roi
    part = image[row : row + rows, column : column + columns]
    if min(row, column) < 0 or part.shape != shape:
        raise FileError(
            f"the region of the frames (rows {row} to {row + rows}, columns {column} to"
            f" {column + columns}) does not lie in this image of {image.shape} pixels",
            where=path,
            remedy="Give the field of the whole detector, or one of the shape of the frames.",
        )
    return part


def _attrs(scan: SpecScan, spec: PathName, flags: list[str]) -> dict[str, object]:
    """What later steps need to know."""
    motors = scan.motors
    if not np.isfinite(scan.energy_keV) or "camdist" not in motors:
        raise FileError("tells no energy or no camera distance (camdist)", where=spec)
    attrs: dict[str, object] = {
        "technique": "bcdi",
        "geometry": "34idc",
        "energy_eV": scan.energy_keV * 1e3,
        "distance_m": motors["camdist"] * 1e-3,
        "angles": json.dumps({n.lower(): motors[n] for n in _CIRCLES if n in motors}),
        "scan_axis": scan.scanned.lower(),
        "scan": scan.number,
        "detector": scan.detector,
        "source_file": f"{spec}, scan {scan.number}",
        "flags": json.dumps(flags),
    }
    if scan.detector not in _DETECTORS:
        flags.append(f"detector '{scan.detector}' is unknown; pixels of 55 um are assumed")
        attrs["flags"] = json.dumps(flags)
    attrs["pixel_m"] = (_PIXEL_M, _PIXEL_M)
    return attrs
