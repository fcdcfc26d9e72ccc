"""NXstxm: NeXus HDF5 of scanning transmission X-ray microscopes, in the dialects in use.

PolLux 1.1 and 1.3, Diamond I08, SOLEIL HERMES, pystxmcontrol (ALS) and CLS pyStxm differ in the
names of the energy axis and of the detectors, in what tells the order of the axes (`axes`,
integer `axis` attributes, nothing at all) and in units (often none). A file is taken for what is
in it, whatever its ending.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.io._common import assemble, to_ev, to_nm, written_whole
from spectromap.io._hdf5 import (
    PathLike,
    attribute,
    check_storage,
    frames,
    has,
    member,
    natural,
    not_hdf5,
    numbers,
    opened,
    read_text,
    sampled_bytes,
    text,
    texts,
    units_of,
)
from spectromap.schema import LOG, FileError, InputError, SpectromapError, check_stack

__all__ = ["NAME", "contents", "open", "refuse", "write"]

NAME = "NXstxm"

#: Words of a scan type that say it is no stack of images, and how the message calls it.
NOT_IMAGES = (
    ("osa", "a scan of the order-sorting aperture, not of the sample"),
    ("detector", "a scan of the detector, not of the sample"),
    ("focus", "a focus scan, not images"),
    ("line", "a line spectrum, not images"),
    ("point", "a point spectrum, not images"),
    ("motor", "a motor scan, not images of the sample"),
)
#: Positions without units are in the first of these in which a step is 1 nm or more.
GUESSED_UNITS = (("um", 1e3), ("mm", 1e6), ("m", 1e9))
SMALLEST_STEP_NM = 1.0
#: A storage ring holds no more than this; 0 and garbage mean that the current is unknown.
LARGEST_CURRENT_MA = 2000.0
#: The ring current is read for each energy only if that costs no more than this.
MONITOR_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Candidate:
    """An NXdata group of an entry; `reason` says why it holds no images, empty if it does."""

    entry: str
    detector: str
    group: Any
    reason: str
    layout: _Layout | None


@dataclass(frozen=True)
class _Layout:
    """Which axis of the signal is what, and the datasets that hold the axes."""

    signal: Any
    order: tuple[int | None, int, int]
    energy: Any
    y: Any
    x: Any


def refuse(path: PathLike) -> str | None:
    """Say why this is no NXstxm file with images, or nothing if it is one.

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
            found = _candidates(file, path)
    except SpectromapError as error:
        return error.what
    if any(not item.reason for item in found):
        return None
    if found:
        return _spoken(found[0])
    return "HDF5 without an NXstxm entry (NXdata with counts, energy, sample_x and sample_y)"


def contents(path: PathLike) -> list[str]:
    """List every entry and detector of a file, and what each holds.

    Parameters
    ----------
    path : path
        An NXstxm file.

    Returns
    -------
    list of str
        One line for each NXdata group, such as ``entry1/counter0: (60, 80, 300)``.

    Raises
    ------
    FileError
        The file cannot be read.
    """
    with opened(path) as file:
        return [
            f"{item.entry}/{item.detector}: "
            + (str(item.layout.signal.shape) if item.layout else f"not read, {item.reason}")
            for item in _candidates(file, path)
        ]


def open(path: PathLike, *, entry: str | None = None, detector: str | None = None) -> xr.DataArray:
    """Open an NXstxm stack or single image without reading its frames.

    Parameters
    ----------
    path : path
        The file.
    entry : str, optional
        The entry to take, for files with one entry a region; default: the entry that the file
        calls its default, else the first one with images.
    detector : str, optional
        The counter to take; default: the one that the file calls its default, else ``default``,
        else the first whose name starts with "counter", else the first.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Counts, float32, lazy; ``energy`` in eV, ``y`` and ``x`` in nm, ``dwell_time`` in s and
        ``ring_current`` in mA where the file tells them.

    Raises
    ------
    FileError
        Damaged file, a scan that is no stack of images, axes that do not fit the data, energies
        that are no eV, links that leave the folder, an unknown compression filter.
    InputError
        `entry` or `detector` names nothing in this file.
    """
    with opened(path) as file:
        chosen = _choose(_candidates(file, path), file, path, entry, detector)
        layout = chosen.layout
        if layout is None:
            raise FileError(
                _spoken(chosen),
                where=path,
                remedy="Only images over energy can be mapped; choose another entry or detector.",
            )
        return _stack(member(file, chosen.entry, path), chosen, layout, path)


def _spoken(item: _Candidate) -> str:
    """Name of an entry and detector with what is wrong with it."""
    return f"{item.entry}/{item.detector}: {item.reason}" if item.detector else item.reason


def _stack(entry: Any, chosen: _Candidate, layout: _Layout, path: PathLike) -> xr.DataArray:
    """Stack of one detector."""
    check_storage(layout.signal, path)
    dialect = _dialect(entry, chosen, layout, path)
    energy = to_ev(_axis(layout.energy, path), units_of(layout.energy), path)
    if layout.order[0] is None:
        energy = energy[:1]
    y, x = _positions(layout, path)
    along: dict[str, tuple[NDArray[np.float64], str]] = {}
    dwell = _dwell(chosen.group, energy.size, dialect, path)
    if dwell is not None:
        along["dwell_time"] = (dwell, "s")
    current = _ring_current(entry, layout, energy.size, path)
    if current is not None:
        along["ring_current"] = (current, "mA")
    attrs = _attrs(entry, chosen, dialect, path)
    if "ptychography" in _scan_type(chosen.group, entry, path).lower():
        LOG.warning(
            "%s: the coarse scan of a ptychography measurement; its reconstruction is elsewhere",
            path,
        )
    return assemble(
        frames(layout.signal, layout.order),
        energy,
        y,
        x,
        where=path,
        attrs=attrs,
        along_energy=along,
    )


# --------------------------------------------------------------------------------------------
# Finding entries and detectors


def _candidates(file: Any, path: PathLike) -> list[_Candidate]:
    """Every NXdata group of every entry, in natural order."""
    return [item for name in sorted(file, key=natural) for item in _of_entry(file, name, path)]


def _of_entry(file: Any, name: str, path: PathLike) -> Iterator[_Candidate]:
    """Candidates of one group of the root, none if it is no entry."""
    try:
        entry = member(file, name, path)
    except FileError as error:
        if name.lower().startswith("entry"):
            yield _Candidate(name, "", None, error.what, None)
        return
    if not isinstance(entry, h5py.Group):
        return
    kind = text(attribute(entry, "NX_class"))
    if kind != "NXentry" and (kind or not name.lower().startswith("entry")):
        return
    for child in sorted(entry, key=natural):
        found = _candidate(entry, name, child, path)
        if found is not None:
            yield found


def _candidate(entry: Any, name: str, child: str, path: PathLike) -> _Candidate | None:
    """Judge one child of an entry; None if it is no detector at all."""
    try:
        group = member(entry, child, path)
        if not _is_data(group, child):
            return None
        return _Candidate(name, child, group, "", _layout(group, entry, path))
    except FileError as error:
        return _Candidate(name, child, None, error.what, None)


def _is_data(group: Any, name: str) -> bool:
    """Tell an NXdata group, also one without NX_class, from monitors and the rest."""
    if not isinstance(group, h5py.Group):
        return False
    kind = text(attribute(group, "NX_class"))
    if kind:
        return kind == "NXdata"
    return has(group, "data") and name != "control"


def _choose(
    found: list[_Candidate],
    file: Any,
    path: PathLike,
    entry: str | None,
    detector: str | None,
) -> _Candidate:
    """Entry and detector asked for, or sensible ones, naming the others in a warning."""
    if not found:
        raise FileError(refuse(path) or "nothing to read", where=path)
    entries = _unique(item.entry for item in found)
    if entry is not None and entry not in entries:
        raise InputError(
            f"there is no entry '{entry}'", where=path, remedy=f"It has {', '.join(entries)}."
        )
    images = [item for item in found if not item.reason] or found
    if entry is None:
        matching = [i for i in images if detector is None or i.detector == detector] or images
        entry = _prefer(_unique(item.entry for item in matching), text(attribute(file, "default")))
    _warn_of_others("entries", entry, _unique(item.entry for item in images), path)
    inside = [item for item in found if item.entry == entry]
    names = [item.detector for item in inside]
    if detector is not None:
        if detector not in names:
            raise InputError(
                f"entry '{entry}' has no detector '{detector}'",
                where=path,
                remedy=f"It has {', '.join(names)}.",
            )
        return inside[names.index(detector)]
    readable = [item.detector for item in inside if not item.reason] or names
    named = text(attribute(member(file, entry, path), "default"))
    detector = _prefer(readable, named, "default", *(n for n in readable if _is_counter(n)))
    _warn_of_others("detectors", detector, readable, path)
    return inside[names.index(detector)]


def _is_counter(name: str) -> bool:
    """Tell a photon counter from an analogue input by its name."""
    return name.lower().startswith("counter")


def _unique(names: Iterator[str] | list[str]) -> list[str]:
    """Names in their order, each once."""
    return list(dict.fromkeys(names))


def _prefer(names: list[str], *wanted: str) -> str:
    """Return the first wanted name that exists, else the first of all."""
    return next((name for name in wanted if name in names), names[0])


def _warn_of_others(what: str, chosen: str, names: list[str], path: PathLike) -> None:
    """Name what was not taken."""
    others = [name for name in names if name != chosen]
    if others:
        LOG.warning("%s: %s taken; other %s: %s", path, chosen, what, ", ".join(others))


# --------------------------------------------------------------------------------------------
# The order of the axes


def _layout(group: Any, entry: Any, path: PathLike) -> _Layout:
    """Find the signal and its axes; FileError says what the scan is if it is no image."""
    scan_type = _scan_type(group, entry, path)
    words = re.findall(r"[a-z]+", scan_type.lower())
    for word, reason in NOT_IMAGES:
        if word in words:
            raise FileError(f"{reason} (scan type '{scan_type}')", where=path)
    signal = _signal(group, path)
    names = _named_axes(group, signal, path)
    roles = {axis: _role(name) for axis, name in names.items()}
    if signal.ndim == 2 and "energy" in roles.values():
        raise FileError("a line spectrum (energy, line position), not images", where=path)
    strangers = [names[axis] for axis, role in roles.items() if role is None]
    if strangers:
        raise FileError(f"a scan over {', '.join(strangers)}, not images over energy", where=path)
    axes = {role: _axis_dataset(group, role, names, path) for role in ("energy", "y", "x")}
    order = _order(signal, roles, axes, path)
    return _Layout(signal, order, axes["energy"], axes["y"], axes["x"])


def _scan_type(group: Any, entry: Any, path: PathLike) -> str:
    """Scan type as the file calls it, or nothing."""
    for parent in (group, entry):
        for name in ("stxm_scan_type", "scan_type"):
            found = read_text(parent, name, path)
            if found:
                return found
    return ""


def _signal(group: Any, path: PathLike) -> Any:
    """Dataset with the counts: two or three axes, real numbers."""
    name = text(attribute(group, "signal")) or "data"
    signal = member(group, name, path)
    if signal is None:
        signal = member(group, "data", path)
    if not isinstance(signal, h5py.Dataset) or signal.dtype.kind not in "iufc":
        raise FileError(f"no data set '{name}' of numbers", where=path)
    if signal.dtype.kind == "c":
        raise FileError("complex numbers, not counts", where=path)
    if signal.ndim == 1:
        raise FileError("a point spectrum or a list, not images", where=path)
    if signal.ndim not in (2, 3) or not signal.size:
        raise FileError(f"data of shape {signal.shape}, not images over energy", where=path)
    return signal


def _named_axes(group: Any, signal: Any, path: PathLike) -> dict[int, str]:
    """Name of each axis of the signal as far as attributes tell: `axes` first, then `axis`."""
    for holder in (group, signal):
        names = texts(attribute(holder, "axes"))
        if len(names) == signal.ndim:
            return {axis: name for axis, name in enumerate(names) if name != "."}
        placed = {_index(group, name): name for name in names}
        if names and None not in placed and len(placed) == len(names):
            return {axis: name for axis, name in placed.items() if axis is not None}
    found: dict[int, str] = {}
    for name in sorted(group, key=natural):
        node = _own(group, name, path)
        number = text(attribute(node, "axis")) if isinstance(node, h5py.Dataset) else ""
        if number.isdigit() and 1 <= int(number) <= signal.ndim:
            found.setdefault(int(number) - 1, name)
    return found


def _own(group: Any, name: str, path: PathLike) -> Any:
    """Member of a group; None if it is missing or its link is refused."""
    try:
        return member(group, name, path)
    except FileError:
        return None


def _index(group: Any, name: str) -> int | None:
    """Axis that NeXus' attribute ``<name>_indices`` gives, if it gives one."""
    found = text(attribute(group, f"{name}_indices"))
    return int(found) if found.isdigit() else None


def _role(name: str) -> str | None:
    """Whether an axis is energy, y or x of the sample by its name; None for anything else."""
    plain = name.lower()
    if "energy" in plain or "energies" in plain:
        return "energy"
    if re.search(r"osa|det|zone|zp|line|girder|slit|motor", plain):
        return None
    found = re.search(r"(?:^|_|sample|fine|coarse|stage|goni)([xy])$", plain)
    return found[1] if found else None


def _axis_dataset(group: Any, role: str, names: dict[int, str], path: PathLike) -> Any:
    """Dataset of an axis: the one that attributes name, else by its usual names."""
    usual = {
        "energy": ("energy", "photon_energy"),
        "y": ("sample_y", "y"),
        "x": ("sample_x", "x"),
    }[role]
    named = [name for name in names.values() if _role(name) == role]
    others = [name for name in sorted(group, key=natural) if _role(name) == role]
    for name in (*named, *usual, *others):
        node = member(group, name, path)
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf":
            return node
    raise FileError(f"data without an axis '{usual[0]}'", where=path)


def _order(
    signal: Any,
    roles: dict[int, str | None],
    axes: dict[str, Any],
    path: PathLike,
) -> tuple[int | None, int, int]:
    """Axis of the signal that is energy, y and x.

    Attributes decide; what they leave open is decided by the lengths. Where several orders fit,
    (energy, y, x) is taken, then y before x if only those could be exchanged.
    """
    lengths = {role: int(axes[role].size) for role in axes}
    wanted = ("energy", "y", "x") if signal.ndim == 3 else ("y", "x")
    if signal.ndim == 2 and lengths["energy"] != 1:
        if lengths["energy"] in signal.shape:
            raise FileError("a line spectrum (energy, line position), not images", where=path)
        raise FileError(
            f"one image of shape {signal.shape} with {lengths['energy']} energies", where=path
        )
    fitting = [
        dict(zip(wanted, order, strict=True))
        for order in itertools.permutations(range(signal.ndim))
        if all(roles.get(axis, role) == role for role, axis in zip(wanted, order, strict=True))
        and all(signal.shape[axis] == lengths[r] for r, axis in zip(wanted, order, strict=True))
    ]
    if not fitting:
        raise FileError(_mismatch(signal, roles, lengths), where=path)
    best = _unambiguous(fitting)
    if best is None:
        raise FileError(
            f"data of shape {signal.shape} whose axes cannot be told apart by their lengths",
            where=path,
            remedy="Give the NXdata group an attribute axes, such as [energy, sample_y, sample_x].",
        )
    if len(roles) < signal.ndim and list(best.values()) != sorted(best.values()):
        LOG.warning("%s: axes found by their lengths: %s", path, _spelled(best))
    return best.get("energy"), best["y"], best["x"]


def _unambiguous(fitting: list[dict[str, int]]) -> dict[str, int] | None:
    """Pick the order to use among those that fit, None if it is a guess."""
    usual = min(fitting, key=lambda order: tuple(order.values()))
    if tuple(usual.values()) == tuple(range(len(usual))) or len(fitting) == 1:
        return usual
    # Where only y and x could be exchanged, rows come before columns.
    if len({order.get("energy") for order in fitting}) > 1:
        return None
    return next(order for order in fitting if order["y"] < order["x"])


def _spelled(order: dict[str, int]) -> str:
    """Order of axes as text."""
    return ", ".join(sorted(order, key=lambda role: order[role]))


def _mismatch(signal: Any, roles: dict[int, str | None], lengths: dict[str, int]) -> str:
    """Sentence about lengths that do not fit."""
    for axis, role in roles.items():
        if role is not None and lengths[role] != signal.shape[axis]:
            return f"data of {signal.shape[axis]} along '{role}', but {lengths[role]} points there"
    points = ", ".join(f"{role} {count}" for role, count in lengths.items())
    return f"data of shape {signal.shape} that do not fit their axes ({points} points)"


# --------------------------------------------------------------------------------------------
# Values of the axes


def _axis(dataset: Any, path: PathLike) -> NDArray[np.float64]:
    """Values of an axis, flat and finite."""
    values = numbers(dataset, path).ravel()
    if not np.all(np.isfinite(values)):
        raise FileError(f"axis '{dataset.name}' holds NaN", where=path)
    return values


def _positions(layout: _Layout, path: PathLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions y and x in nm; without units the steps tell."""
    y, x = _axis(layout.y, path), _axis(layout.x, path)
    units = [units_of(layout.y), units_of(layout.x)]
    known = units[0] or units[1]
    if not known:
        known = _guessed_unit(y, x)
        message = "%s: positions have no units; their steps say %s"
        (LOG.info if known == "um" else LOG.warning)(message, path, known)
    return to_nm(y, units[0] or known, path), to_nm(x, units[1] or known, path)


def _guessed_unit(*axes: NDArray[np.float64]) -> str:
    """Unit of positions that carry none: um, but mm or m where um would mean steps below 1 nm.

    No such microscope steps by less than 1 nm (0.001 um), nor in images as wide as 1 um
    (0.001 mm) a step, so the smaller of the two median steps separates um from mm, as Diamond
    I08 writes, and mm from m.
    """
    steps = [float(np.median(np.abs(np.diff(axis)))) for axis in axes if axis.size > 1]
    steps = [step for step in steps if step > 0]
    if not steps:
        return "um"
    for unit, factor in GUESSED_UNITS:
        if min(steps) * factor >= SMALLEST_STEP_NM * (1 - 1e-6):
            return unit
    return "m"


def _dwell(group: Any, count: int, dialect: str, path: PathLike) -> NDArray[np.float64] | None:
    """Dwell time per energy in s, NaN where the file holds no sane number."""
    try:
        node = member(group, "count_time", path)
        if not isinstance(node, h5py.Dataset):
            return None
        values, units = numbers(node, path).ravel(), units_of(node).lower()
    except SpectromapError:
        return None
    # pystxmcontrol writes the milliseconds of its scan definition, without a unit.
    default = "ms" if dialect.startswith("pystxmcontrol") else "s"
    factor = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "\xb5s": 1e-6}.get(units or default, 1.0)
    values = np.where(np.isfinite(values) & (values > 0), values * factor, np.nan)
    if values.size not in (1, count) or np.all(np.isnan(values)):
        return None
    return np.broadcast_to(values, (count,)).copy()


def _ring_current(
    entry: Any, layout: _Layout, count: int, path: PathLike
) -> NDArray[np.float64] | None:
    """Ring current per energy in mA from the NXmonitor, else from the source; None if unknown."""
    for name in sorted(entry, key=natural):
        values = _monitor(entry, name, layout, path)
        if values is not None:
            found = _sane_current(values, count)
            if found is not None:
                return found
    try:
        node = member(entry, "instrument/source/current", path)
        if not isinstance(node, h5py.Dataset):
            return None
        factor = 1e3 if units_of(node) == "A" else 1.0
        return _sane_current(numbers(node, path).reshape(-1, 1)[:1] * factor, count)
    except SpectromapError:
        return None


def _monitor(entry: Any, name: str, layout: _Layout, path: PathLike) -> NDArray[np.float64] | None:
    """Values (energy, some pixels) in mA of a monitor of the ring current; None if it is none."""
    try:
        group = member(entry, name, path)
        kind = text(attribute(group, "NX_class")) if isinstance(group, h5py.Group) else "-"
        if kind != "NXmonitor" and not (kind == "" and name == "control"):
            return None
        node = member(group, "data", path)
        units = units_of(node) if isinstance(node, h5py.Dataset) else "-"
        if units not in ("", "mA", "A"):
            return None
        return _middle_rows(node, layout, path) * (1e3 if units == "A" else 1.0)
    except SpectromapError:
        return None


def _middle_rows(node: Any, layout: _Layout, path: PathLike) -> NDArray[np.float64]:
    """Read the middle row of each frame of a monitor, shape (energy, x), or all if it is a list."""
    if node.shape != layout.signal.shape:
        return numbers(node, path).reshape(-1, 1)
    energy, y, x = layout.order
    if sampled_bytes(node, y) > MONITOR_BYTES:
        raise FileError("the monitor is too large to be read beforehand", where=path)
    check_storage(node, path)
    picked: list[Any] = [slice(None)] * node.ndim
    picked[y] = node.shape[y] // 2
    values = np.asarray(node[tuple(picked)], dtype=np.float64)
    if energy is None:
        return values.reshape(1, -1)
    return values if energy < x else values.T


def _sane_current(values: NDArray[np.float64], count: int) -> NDArray[np.float64] | None:
    """Median current of each energy, NaN where unknown; None if it is unknown everywhere."""
    if len(values) not in (1, count):
        return None
    good = np.isfinite(values) & (values > 0) & (values <= LARGEST_CURRENT_MA)
    medians = [
        float(np.median(v[g])) if g.any() else np.nan for v, g in zip(values, good, strict=True)
    ]
    current = np.broadcast_to(np.asarray(medians), (count,)).copy()
    return None if np.all(np.isnan(current)) else current


# --------------------------------------------------------------------------------------------
# What the file says about itself


def _dialect(entry: Any, chosen: _Candidate, layout: _Layout, path: PathLike) -> str:
    """Name of the writer, as far as the content shows it."""
    group = chosen.group
    if has(group, "motor_name_x") or "motors" in _member_names(entry, "instrument", path):
        return "pystxmcontrol (ALS)"
    if str(layout.energy.name).endswith("photon_energy"):
        return "Diamond I08"
    if has(group, "epu_polarization") or "canadian" in _source(entry, path).lower():
        return "CLS pyStxm"
    definition = member(entry, "definition", path)
    if definition is None:
        beamline = read_text(entry, "collection/beamline", path)
        return "SOLEIL HERMES" if beamline.lower() == "hermes" else "NXstxm without definition"
    version = text(attribute(definition, "version"))
    pollux = "pollux" in read_text(entry, "collection/beamline", path).lower()
    return f"{'PolLux ' if pollux else ''}NXstxm {version}".strip()


def _member_names(entry: Any, name: str, path: PathLike) -> list[str]:
    """Names of the children of a group, none if it is missing."""
    try:
        group = member(entry, name, path)
    except SpectromapError:
        return []
    return list(group) if isinstance(group, h5py.Group) else []


def _source(entry: Any, path: PathLike) -> str:
    """Name of the light source."""
    return read_text(entry, "instrument/source/name", path)


def _attrs(entry: Any, chosen: _Candidate, dialect: str, path: PathLike) -> dict[str, str | float]:
    """Attributes of the stack; empty ones are left out."""
    quantity = text(attribute(chosen.group, "quantity"))
    attrs: dict[str, str | float] = {
        "quantity": "optical_density" if quantity == "optical_density" else "counts",
        "technique": "stxm",
        "source_format": "nxstxm",
        "source_file": os.fspath(path),
        "dialect": dialect,
        "entry": chosen.entry,
        "detector": chosen.detector,
    }
    optional = {
        "title": read_text(entry, "title", path),
        "instrument": read_text(entry, "collection/beamline", path) or _source(entry, path),
        "sample": read_text(entry, "sample/name", path)
        or read_text(entry, "sample/description", path),
        "start_time": read_text(entry, "start_time", path),
    }
    return attrs | {key: value for key, value in optional.items() if value}


# --------------------------------------------------------------------------------------------
# Writing


def write(stack: xr.DataArray, path: PathLike) -> Path:
    """Write a stack as NXstxm 1.3: gzip, one chunk a frame, energies in eV, positions in um.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts or optical density; lazy stacks are written frame by frame.
    path : path
        The file; it appears under this name only when it is complete.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        Not a stack of counts or optical density.
    FileError
        The file cannot be written.
    """
    check_stack(stack, ("counts", "optical_density"))
    final = Path(path)
    with written_whole(final) as partial, h5py.File(partial, "w", locking=False) as file:
        _write_root(file, final.name)
        entry = _group(file, "entry1", "NXentry", default="counter0")
        _write_header(entry, stack)
        data = _write_data(entry, stack)
        _write_instrument(entry, stack, data)
    return final


def _group(parent: Any, name: str, kind: str, **attrs: str) -> Any:
    """Make a NeXus group."""
    group = parent.create_group(name)
    group.attrs["NX_class"] = np.bytes_(kind)
    for key, value in attrs.items():
        group.attrs[key] = np.bytes_(value)
    return group


def _text(group: Any, name: str, value: str) -> Any:
    """String of shape (1,), as the beamlines write it."""
    return group.create_dataset(name, data=np.array([value.encode("utf-8") or b" "]))


def _values(group: Any, name: str, values: Any, units: str) -> Any:
    """Numbers with units."""
    dataset = group.create_dataset(name, data=np.atleast_1d(np.asarray(values, dtype=np.float64)))
    dataset.attrs["units"] = np.bytes_(units)
    return dataset


def _write_root(file: Any, name: str) -> None:
    """Attributes of the root."""
    file.attrs["NX_class"] = np.bytes_("NXroot")
    file.attrs["default"] = np.bytes_("entry1")
    file.attrs["file_name"] = np.bytes_(name.encode("utf-8"))
    file.attrs["file_time"] = np.bytes_(datetime.now(UTC).isoformat(timespec="seconds"))
    file.attrs["HDF5_Version"] = np.bytes_(h5py.version.hdf5_version)


def _write_header(entry: Any, stack: xr.DataArray) -> None:
    """Definition, title, times, sample."""
    definition = _text(entry, "definition", "NXstxm")
    definition.attrs["version"] = np.bytes_("1.3")
    _text(entry, "title", str(stack.attrs.get("title", "stack")))
    start = str(stack.attrs.get("start_time", ""))
    for name in ("start_time", "end_time"):
        _text(entry, name, start or datetime.now(UTC).isoformat(timespec="seconds"))
    sample = _group(entry, "sample", "NXsample")
    _values(sample, "rotation_angle", 0.0, "deg")
    if "sample" in stack.attrs:
        _text(sample, "name", str(stack.attrs["sample"]))
    if "instrument" in stack.attrs:
        collection = _group(entry, "collection", "NXcollection")
        _text(collection, "beamline", str(stack.attrs["instrument"]))


def _write_data(entry: Any, stack: xr.DataArray) -> Any:
    """Group with the counts and their axes."""
    group = _group(entry, "counter0", "NXdata", signal="data")
    group.attrs["axes"] = np.array([b"energy", b"sample_y", b"sample_x"])
    for number, name in enumerate(("energy", "sample_y", "sample_x")):
        group.attrs[f"{name}_indices"] = np.array([number], dtype=np.uint32)
    group.attrs["quantity"] = np.bytes_(stack.attrs["quantity"])
    kind = stack.dtype if stack.dtype.kind in "iuf" else np.dtype(np.float32)
    data = group.create_dataset(
        "data",
        shape=stack.shape,
        dtype=kind,
        chunks=(1, *stack.shape[1:]),
        compression="gzip",
        compression_opts=2,
        shuffle=True,
    )
    data.attrs["units"] = np.bytes_("counts" if stack.attrs["quantity"] == "counts" else "1")
    for number in range(stack.sizes["energy"]):
        data[number] = np.asarray(stack[number].data)
    _values(group, "energy", stack.energy.values, "eV")
    _values(group, "sample_y", stack.y.values / 1e3, "um")
    _values(group, "sample_x", stack.x.values / 1e3, "um")
    if "dwell_time" in stack.coords:
        _values(group, "count_time", stack.dwell_time.values, "s")
    _text(group, "stxm_scan_type", "sample image stack")
    return group


def _write_instrument(entry: Any, stack: xr.DataArray, data: Any) -> None:
    """Instrument and monitor; arrays that are already there are linked, not copied."""
    instrument = _group(entry, "instrument", "NXinstrument")
    source = _group(instrument, "source", "NXsource")
    _text(source, "type", "Synchrotron X-ray Source")
    _text(source, "name", str(stack.attrs.get("instrument", "unknown")))
    _text(source, "probe", "x-ray")
    _group(instrument, "monochromator", "NXmonochromator")["energy"] = data["energy"]
    for name, dataset in (("counter0", "data"), ("sample_x", "sample_x"), ("sample_y", "sample_y")):
        _group(instrument, name, "NXdetector")["data"] = data[dataset]
    if "ring_current" in stack.coords:
        control = _group(entry, "control", "NXmonitor", signal="data")
        control.attrs["axes"] = np.array([b"energy"])
        _values(control, "data", stack.ring_current.values, "mA")
        control["energy"] = data["energy"]
