"""From angles to scattering vectors, and from the skew detector frame to the sample frame.

**One convention.** An atom moved by u scatters with the phase of ``exp(i Q.u)``, so the object of
a Bragg peak carries ``phi = Q.u`` and its amplitude at ``Q + q`` is ``sum object(r) exp(i q.r)``.
Phasing uses numpy's forward transform, whose exponent has the other sign: voxel n of the detector
frame, counted from the centre, therefore lies at ``r = -T n``, where the columns of T satisfy
``A' T = 2 pi diag(1 / N)`` and the columns of A are the steps of the scattering vector along
frame, row and column. The object needs no conjugation, and a lattice that is stretched along Q
(du/dx > 0) moves the peak towards smaller abs(Q), as it must.

Vectors are (z, y, x) everywhere, in 1/nm with the factor 2 pi, or in nm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import xarray as xr
import yaml
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from spectromap.schema import FileError, InputError

__all__ = [
    "Axis",
    "Frame",
    "Geometry",
    "load_geometry",
    "resolution",
    "sample_frame",
    "scattering_vectors",
    "to_sample_frame",
]

Floats = NDArray[np.float64]

#: Planck constant times speed of light, in eV nm (CODATA 2018, exact).
HC_EV_NM = 1239.841984332

_UNIT = {"z": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "x": (0.0, 0.0, 1.0)}
#: Part of the Nyquist frequency of the new voxels from which spatial frequencies fade out.
_TAPER_FROM = 0.9
#: Below this part of its largest amplitude the object counts as empty.
_EMPTY = 1e-3
#: Voxels of the detector frame kept around the object.
_MARGIN = 4


@dataclass(frozen=True)
class Axis:
    """A circle of a diffractometer: the motor and the direction it turns about, (z, y, x)."""

    motor: str
    direction: tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """A diffractometer at all angles zero; circles from the outermost inwards.

    Parameters
    ----------
    name : str
        Name of the diffractometer.
    beam : tuple of float
        Direction of the incident beam (z, y, x).
    sample, detector : tuple of Axis
        Circles that carry the sample and the detector.
    row, column : tuple of float
        Direction in which the row and the column of a pixel grow.
    """

    name: str
    beam: tuple[float, float, float]
    sample: tuple[Axis, ...]
    detector: tuple[Axis, ...]
    row: tuple[float, float, float]
    column: tuple[float, float, float]

    def motors(self) -> tuple[str, ...]:
        """Names of all angles that the geometry needs."""
        return tuple(axis.motor for axis in (*self.sample, *self.detector))


@dataclass(frozen=True)
class Frame:
    """How the voxels of a prepared scan lie in the frame of the sample.

    Parameters
    ----------
    q : ndarray, shape (3,)
        Scattering vector (z, y, x) at the centre of the scan in 1/nm.
    steps : ndarray, shape (3, 3)
        Column j is the change of the scattering vector for one step along frame, row or column,
        in 1/nm.
    shape : tuple of int
        Frames, rows and columns.
    """

    q: Floats
    steps: Floats
    shape: tuple[int, int, int]

    @property
    def voxels(self) -> Floats:
        """Columns are the steps T in nm of the voxels of the object; voxel n lies at -T n."""
        inverse: Floats = 2 * np.pi * np.linalg.inv(self.steps).T / np.array(self.shape)
        return inverse

    @property
    def d_spacing(self) -> float:
        """Distance of the lattice planes 2 pi / |Q| in nm."""
        return float(2 * np.pi / np.linalg.norm(self.q))


# --------------------------------------------------------------------------------------------
# Description of a diffractometer


def load_geometry(source: str | os.PathLike[str] | Mapping[str, Any]) -> Geometry:
    """Read the description of a diffractometer.

    Parameters
    ----------
    source : str, path or mapping
        Name of one that comes with spectromap (``34idc``), a YAML file written like it, or the
        content of such a file.

    Returns
    -------
    Geometry

    Raises
    ------
    FileError
        No such file, or no YAML.
    InputError
        Keys missing or unknown, or a direction that is none.
    """
    if isinstance(source, Mapping):
        return _geometry(source, "geometry")
    file = Path(source)
    if file.suffix in (".yaml", ".yml"):
        return _geometry(_parsed(file), file)
    known = resources.files("spectromap.bcdi") / "geometries"
    names = sorted(item.name.removesuffix(".yaml") for item in known.iterdir())
    if str(source) not in names:
        raise InputError(
            f"no geometry is called '{source}'",
            where="geometry",
            remedy=f"Known are {', '.join(names)}; or give a YAML file written like them.",
        )
    with resources.as_file(known / f"{source}.yaml") as packaged:
        return _geometry(_parsed(packaged), source)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses to lose one of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping after looking for repeated keys."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' occurs twice")
        return super().construct_mapping(node, deep)


def _parsed(file: Path) -> Mapping[str, Any]:
    """Content of a YAML file of keys and values."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot be read ({error})", where=file) from error
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise FileError(f"not a valid YAML file: {message}", where=file) from error
    if not isinstance(content, Mapping):
        raise FileError("holds no keys", where=file)
    return content


def _geometry(content: Mapping[str, Any], where: object) -> Geometry:
    """Check the keys of a description."""
    _check_keys(content, {"name", "beam", "sample", "detector", "pixels"}, where)
    pixels = content["pixels"]
    _check_keys(pixels, {"row", "column"}, f"{where}: pixels")
    return Geometry(
        name=str(content["name"]),
        beam=_direction(content["beam"], f"{where}: beam"),
        sample=_axes(content["sample"], f"{where}: sample"),
        detector=_axes(content["detector"], f"{where}: detector"),
        row=_direction(pixels["row"], f"{where}: pixels.row"),
        column=_direction(pixels["column"], f"{where}: pixels.column"),
    )


def _check_keys(content: Any, wanted: set[str], where: object) -> None:
    """Refuse a mapping with other keys than those wanted."""
    found = set(content) if isinstance(content, Mapping) else set()
    if found != wanted:
        wrong = sorted(str(key) for key in found ^ wanted)
        raise InputError(
            f"missing or unknown: {', '.join(wrong)}",
            where=where,
            remedy=f"Give exactly {', '.join(sorted(wanted))}.",
        )


def _axes(content: Any, where: str) -> tuple[Axis, ...]:
    """Circles of a list."""
    if not isinstance(content, list):
        raise InputError("not a list of circles", where=where)
    axes = []
    for number, item in enumerate(content):
        _check_keys(item, {"motor", "axis"}, f"{where}[{number}]")
        direction = _direction(item["axis"], f"{where}[{number}].axis")
        axes.append(Axis(str(item["motor"]), direction))
    return tuple(axes)


def _direction(value: Any, where: str) -> tuple[float, float, float]:
    """Unit vector (z, y, x) from ``y+`` or from three numbers (z, y, x)."""
    if isinstance(value, str) and len(value) == 2 and value[0] in _UNIT and value[1] in "+-":
        sign = 1.0 if value[1] == "+" else -1.0
        z, y, x = (sign * part for part in _UNIT[value[0]])
        return z, y, x
    try:
        vector = np.asarray(value, dtype=float)
        length = float(np.linalg.norm(vector))
    except (TypeError, ValueError):
        length = 0.0
    if not (0 < length < np.inf) or vector.shape != (3,):
        raise InputError(
            f"'{value}' is no direction", where=where, remedy="Write y+ or z-, or [z, y, x]."
        )
    z, y, x = (vector / length).tolist()
    return z, y, x


# --------------------------------------------------------------------------------------------
# Scattering vectors


def scattering_vectors(
    geometry: Geometry,
    angles: Mapping[str, ArrayLike],
    energy_eV: float,
    offset: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
    distance_m: float = 1.0,
) -> Floats:
    """Scattering vectors in the frame of the sample.

    Parameters
    ----------
    geometry : Geometry
        The diffractometer.
    angles : mapping of str to float or array
        Motor positions in degrees; arrays of one shape where they differ.
    energy_eV : float
        Photon energy in eV.
    offset : tuple of float or array
        Distance on the detector from the point that the angles refer to, along rows and along
        columns, in m.
    distance_m : float
        Distance from the sample to the detector in m.

    Returns
    -------
    ndarray, shape (..., 3)
        ``R_sample^-1 (k_out - k_in)`` as (z, y, x) in 1/nm, with abs(k) = 2 pi / wavelength.

    Raises
    ------
    InputError
        An angle is missing.

    References
    ----------
    W. R. Busing and H. A. Levy, Acta Cryst. 22, 457 (1967).
    """
    missing = [motor for motor in geometry.motors() if motor not in angles]
    if missing:
        raise InputError(
            f"no angle for {', '.join(missing)}",
            where=f"geometry {geometry.name}",
            remedy="Give every circle that the geometry names, in degrees.",
        )
    down, right = (np.asarray(part, dtype=float)[..., np.newaxis] for part in offset)
    beam = np.asarray(geometry.beam)
    ray = distance_m * beam + down * np.asarray(geometry.row) + right * np.asarray(geometry.column)
    out = _turned(ray, geometry.detector, angles)
    out = out / np.linalg.norm(out, axis=-1, keepdims=True)
    wave_number = 2 * np.pi * energy_eV / HC_EV_NM
    return _turned(wave_number * (out - beam), geometry.sample, angles, inverse=True)


def _turned(
    vectors: Floats,
    axes: tuple[Axis, ...],
    angles: Mapping[str, ArrayLike],
    inverse: bool = False,
) -> Floats:
    """Vectors carried by circles, or seen from what the circles carry."""
    for axis in axes if inverse else reversed(axes):
        angle = np.deg2rad(np.asarray(angles[axis.motor], dtype=float))
        vectors = _rotated(vectors, axis.direction, -angle if inverse else angle)
    return vectors


def _rotated(vectors: Floats, direction: tuple[float, float, float], angle: Floats) -> Floats:
    """Rotation by the right-hand rule (Rodrigues' formula)."""
    axis = np.asarray(direction)
    cosine, sine = np.cos(angle)[..., np.newaxis], np.sin(angle)[..., np.newaxis]
    # Components are (z, y, x): reversing the order of both factors and of the result turns the
    # cross product of (x, y, z) into the same sequence with the other sign.
    crossed = -np.cross(np.broadcast_to(axis, vectors.shape), vectors)
    along = (vectors @ axis)[..., np.newaxis] * axis
    return np.asarray(vectors * cosine + crossed * sine + along * (1 - cosine))


def sample_frame(scan: xr.Dataset, geometry: Geometry | None = None) -> Frame:
    """How the voxels of a prepared scan lie in the frame of the sample.

    The steps are those at the centre of the scan, where the Bragg peak lies and to which the
    angles of the detector refer. The geometry ``orthogonal`` is that of a scan already on
    orthogonal axes: frames, rows and columns step along z, y and x, across Q = ``q_vector``.

    Parameters
    ----------
    scan : Dataset
        Prepared scan: ``counts`` (frame, row, column), ``angle`` in degrees; attributes
        ``angles``, ``scan_axis``, ``energy_eV``, ``distance_m``, ``pixel_m``, ``geometry``.
    geometry : Geometry, optional
        Default: that of the scan.

    Returns
    -------
    Frame

    Raises
    ------
    InputError
        An attribute is missing, or the steps do not span the three directions.
    """
    shape = scan.counts.shape
    if geometry is None and scan.attrs.get("geometry") == "orthogonal":
        return _orthogonal(scan)
    description = _described(scan, geometry)
    steps = np.empty((3, 3))
    for axis in range(3):
        index = np.zeros((2, 3))
        index[:, axis] = (-0.5, 0.5)
        low, high = _at(scan, description, index)
        steps[:, axis] = high - low
    lengths = np.linalg.norm(steps, axis=0)
    if not np.all(lengths > 0) or abs(np.linalg.det(steps / lengths)) < 1e-3:
        raise InputError(
            "frames, rows and columns do not span three directions of reciprocal space",
            where=scan.attrs.get("source_file", "scan"),
            remedy="Check the scanned motor, the step, the distance and the pixel size.",
        )
    q = _at(scan, description, np.zeros((1, 3)))[0]
    return Frame(q, steps, (int(shape[0]), int(shape[1]), int(shape[2])))


def _orthogonal(scan: xr.Dataset) -> Frame:
    """Frame of a scan that is already on orthogonal axes."""
    needed = ("q_vector", "energy_eV", "distance_m", "pixel_m")
    missing = [name for name in needed if name not in scan.attrs]
    if missing:
        raise InputError(
            f"the scan does not tell {', '.join(missing)}",
            where=scan.attrs.get("source_file", "scan"),
        )
    q = np.asarray(scan.attrs["q_vector"], dtype=float)
    pixel = np.broadcast_to(np.asarray(scan.attrs["pixel_m"], dtype=float), 2)
    wave = 2 * np.pi * float(scan.attrs["energy_eV"]) / HC_EV_NM
    turn = np.deg2rad(np.diff(scan.angle.values).mean()) * np.linalg.norm(q)
    steps = np.diag([turn, *(wave * pixel / float(scan.attrs["distance_m"]))])
    frames, rows, columns = scan.counts.shape
    return Frame(q, steps, (frames, rows, columns))


def _described(scan: xr.Dataset, geometry: Geometry | None) -> Geometry:
    """Geometry of a scan whose attributes are complete."""
    needed = ("angles", "scan_axis", "energy_eV", "distance_m", "pixel_m")
    missing = [name for name in needed if name not in scan.attrs]
    if missing or "angle" not in scan.coords or (geometry is None and "geometry" not in scan.attrs):
        raise InputError(
            f"the scan does not tell {', '.join(missing) or 'its angles or geometry'}",
            where=scan.attrs.get("source_file", "scan"),
            remedy="Set the attribute; angles is JSON of motor names and degrees.",
        )
    geometry = geometry or load_geometry(scan.attrs["geometry"])
    if scan.attrs["scan_axis"] not in geometry.motors():
        raise InputError(
            f"the scanned motor '{scan.attrs['scan_axis']}' is no circle of {geometry.name}",
            where=scan.attrs.get("source_file", "scan"),
            remedy=f"Circles are {', '.join(geometry.motors())}.",
        )
    return geometry


def _at(scan: xr.Dataset, geometry: Geometry, index: Floats) -> Floats:
    """Scattering vectors at (frame, row, column) counted from the centre."""
    angle = scan.angle.values
    middle = angle.size // 2
    step = float(np.polyfit(np.arange(angle.size), angle, 1)[0]) if angle.size > 1 else 0.0
    angles: dict[str, ArrayLike] = dict(json.loads(scan.attrs["angles"]))
    angles[scan.attrs["scan_axis"]] = angle[middle] + step * index[..., 0]
    height, width = np.broadcast_to(np.asarray(scan.attrs["pixel_m"], dtype=float), 2)
    return scattering_vectors(
        geometry,
        angles,
        float(scan.attrs["energy_eV"]),
        (index[..., 1] * height, index[..., 2] * width),
        float(scan.attrs["distance_m"]),
    )


def resolution(frame: Frame) -> dict[str, float]:
    """Voxels and sampling of a scan, in nm.

    Parameters
    ----------
    frame : Frame
        See `sample_frame`.

    Returns
    -------
    dict of str to float
        ``voxel_frame``, ``voxel_row``, ``voxel_column``: edges of a voxel of the skew detector
        frame; ``field_frame`` ...: how far a crystal may reach along them before it meets its
        periodic images; ``limit_z``, ``limit_y``, ``limit_x``: half-period of the finest wave
        that the window holds along each axis of the sample; ``d_spacing``.
    """
    voxels = np.linalg.norm(frame.voxels, axis=0)
    reach = np.abs(frame.steps) @ np.array(frame.shape)
    told: dict[str, float] = {}
    for number, name in enumerate(("frame", "row", "column")):
        told[f"voxel_{name}"] = float(voxels[number])
        told[f"field_{name}"] = float(voxels[number] * frame.shape[number])
    for number, name in enumerate("zyx"):
        told[f"limit_{name}"] = float(2 * np.pi / reach[number])
    told["d_spacing"] = frame.d_spacing
    return told


# --------------------------------------------------------------------------------------------
# The object in the frame of the sample


def to_sample_frame(
    obj: NDArray[np.complexfloating[Any, Any]],
    frame: Frame,
    *,
    voxel_nm: float | None = None,
) -> xr.DataArray:
    """Bring an object from the detector frame to orthogonal, equal voxels of the sample frame.

    The part that holds the object is cut out and refined twofold by its Fourier transform; waves
    finer than the new voxels can carry fade out there (a cosine from 0.9 of the Nyquist
    frequency on, along each new axis); then cubic splines interpolate. Values are densities: they
    keep their scale.

    Parameters
    ----------
    obj : ndarray of complex, shape `frame.shape`
        Object in the detector frame, its centre at n // 2, phase ``Q.u``.
    frame : Frame
        See `sample_frame`.
    voxel_nm : float, optional
        Edge of the new voxels. Default: the shortest edge of a voxel of the detector frame.

    Returns
    -------
    DataArray, complex64, dims (z, y, x)
        Coordinates in nm around the centre of the detector frame; attributes ``q_vector``
        (z, y, x) in 1/nm, ``q_norm``, ``voxel_nm``, ``d_spacing_nm``, ``interpolation``.

    Raises
    ------
    InputError
        Another shape, not finite, empty, or a voxel size that is not positive.
    """
    _check_object(obj, frame)
    voxels = -frame.voxels
    voxel = float(np.linalg.norm(voxels, axis=0).min()) if voxel_nm is None else float(voxel_nm)
    if not 0 < voxel < np.inf:
        raise InputError(f"a voxel of {voxel_nm} nm", where="voxel_nm")
    box = _box(np.abs(obj))
    fine = _refined(obj[box], voxels, voxel)
    first = np.array([part.start - size // 2 for part, size in zip(box, frame.shape, strict=True)])
    axes = _grid(voxels, first, obj[box].shape, voxel)
    values = _interpolated(fine, np.asarray(np.linalg.inv(voxels), np.float64), first, axes)
    return _labelled(values, axes, frame, voxel)


def _check_object(obj: NDArray[Any], frame: Frame) -> None:
    """Refuse an object that does not fit the frame."""
    if obj.shape != frame.shape:
        raise InputError(
            f"the object has shape {obj.shape}, the scan {frame.shape}", where="to_sample_frame"
        )
    if not np.all(np.isfinite(obj)) or not np.any(obj):
        raise InputError("the object is empty or not finite", where="to_sample_frame")


def _box(amplitude: Floats) -> tuple[slice, slice, slice]:
    """Smallest box that holds the object, with a margin."""
    filled = amplitude > _EMPTY * amplitude.max()
    parts = []
    for axis, size in enumerate(amplitude.shape):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(filled.any(axis=others))
        start = max(0, int(where[0]) - _MARGIN)
        parts.append(slice(start, min(size, int(where[-1]) + 1 + _MARGIN)))
    return parts[0], parts[1], parts[2]


def _refined(part: NDArray[Any], voxels: Floats, voxel: float) -> NDArray[np.complex64]:
    """Sample twice as finely, without waves that voxels of the new size cannot carry."""
    shape = part.shape
    spectrum = scipy.fft.fftn(part.astype(np.complex64))
    waves = [2 * np.pi * scipy.fft.fftfreq(size) for size in shape]
    # A wave that turns by w_j from voxel to voxel along axis j has the wave vector inv(T)' w.
    back = np.linalg.inv(voxels).T * voxel / np.pi
    for row in back:
        along = sum(
            (row[axis] * _along(waves[axis], axis) for axis in range(3)), np.zeros((1, 1, 1))
        )
        late = np.clip((np.abs(along) - _TAPER_FROM) / (1 - _TAPER_FROM), 0, 1)
        spectrum *= np.cos(np.pi / 2 * late).astype(np.float32) ** 2
    padded = np.zeros([2 * size for size in shape], np.complex64)
    for corner in product((0, 1), repeat=3):
        source, target = [], []
        for late_half, size in zip(corner, shape, strict=True):
            half = (size + 1) // 2
            source.append(slice(half, None) if late_half else slice(half))
            target.append(slice(half - size, None) if late_half else slice(half))
        padded[tuple(target)] = spectrum[tuple(source)]
    return np.asarray(scipy.fft.ifftn(padded, overwrite_x=True) * 8, dtype=np.complex64)


def _along(values: Floats, axis: int) -> Floats:
    """A list as an array that varies along one of three axes."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.reshape(shape)


def _grid(voxels: Floats, first: Floats, shape: tuple[int, ...], voxel: float) -> list[Floats]:
    """Coordinates that hold the transformed box, whole multiples of the voxel."""
    ends = [(start, start + size - 1) for start, size in zip(first, shape, strict=True)]
    corners = np.array(list(product(*ends))) @ voxels.T
    low = np.ceil(corners.min(axis=0) / voxel)
    high = np.floor(corners.max(axis=0) / voxel)
    return [voxel * np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]


def _interpolated(
    fine: NDArray[np.complex64], inverse: Floats, first: Floats, axes: list[Floats]
) -> NDArray[np.complex64]:
    """Cubic splines through the refined object at the points of a grid, zero outside."""
    parts = [
        ndimage.spline_filter(part, order=3, output=np.float32, mode="constant")
        for part in (fine.real, fine.imag)
    ]
    result = np.empty([axis.size for axis in axes], np.complex64)
    plane = np.stack(np.meshgrid(axes[1], axes[2], indexing="ij"))
    across = np.tensordot(inverse[:, 1:], plane, axes=1)
    for number, z in enumerate(axes[0]):  # a plane at a time: the coordinates stay small
        place = across + (inverse[:, 0] * z - first)[:, np.newaxis, np.newaxis]
        real, imaginary = (
            ndimage.map_coordinates(
                part, 2 * place, output=np.float32, prefilter=False, mode="constant"
            )
            for part in parts
        )
        result[number] = real + 1j * imaginary
    return result


def _labelled(
    values: NDArray[np.complex64], axes: list[Floats], frame: Frame, voxel: float
) -> xr.DataArray:
    """Name the object, its axes and what is known about it."""
    coords = {
        name: xr.DataArray(axis, dims=name, attrs={"units": "nm"})
        for name, axis in zip("zyx", axes, strict=True)
    }
    return xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords=coords,
        name="object",
        attrs={
            "units": "1",
            "long_name": "Bragg electron density with phase Q.u",
            "q_vector": frame.q.tolist(),
            "q_norm": float(np.linalg.norm(frame.q)),
            "d_spacing_nm": frame.d_spacing,
            "voxel_nm": voxel,
            "frame": "sample",
            "interpolation": "cubic spline after twofold Fourier refinement, low-passed",
        },
    )
