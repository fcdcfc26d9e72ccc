"""Spectra as columns of text: references, I0, point scans."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.io import _hdr
from spectromap.io._common import to_ev, written_whole
from spectromap.io._text import ENERGY_NAME, Table, read_table, to_number
from spectromap.schema import LOG, FileError, InputError

#: What a unit, written in any of the usual ways, is called here, and the factor to get there.
#: Spaces, underscores and carets are left out before looking up; "per" is a slash.
UNITS: dict[str, tuple[str, float]] = {
    "od": ("1", 1.0),
    "opticaldensity": ("1", 1.0),
    "absorbance": ("1", 1.0),
    "nm-1": ("nm-1", 1.0),
    "1/nm": ("nm-1", 1.0),
    "/nm": ("nm-1", 1.0),
    "od/nm": ("nm-1", 1.0),
    "mu/nm": ("nm-1", 1.0),
    "um-1": ("nm-1", 1e-3),
    "1/um": ("nm-1", 1e-3),
    "/um": ("nm-1", 1e-3),
    "od/um": ("nm-1", 1e-3),
    "mu/um": ("nm-1", 1e-3),
    "cm-1": ("nm-1", 1e-7),
    "1/cm": ("nm-1", 1e-7),
    "/cm": ("nm-1", 1e-7),
    "mu/cm": ("nm-1", 1e-7),
    "cm2g-1": ("cm2 g-1", 1.0),
    "cm2/g": ("cm2 g-1", 1.0),
    "m2/kg": ("cm2 g-1", 10.0),
    "massabsorption": ("cm2 g-1", 1.0),
    "massattenuation": ("cm2 g-1", 1.0),
    "massabsorptioncoefficient": ("cm2 g-1", 1.0),
    "massattenuationcoefficient": ("cm2 g-1", 1.0),
    "cm2": ("cm2", 1.0),
    "cm2/atom": ("cm2", 1.0),
    "/atom": ("cm2", 1.0),
    "barn": ("cm2", 1e-24),
    "barns": ("cm2", 1e-24),
    "barn/atom": ("cm2", 1e-24),
    "barns/atom": ("cm2", 1e-24),
    "count": ("count", 1.0),
    "counts": ("count", 1.0),
    "counts-1": ("count s-1", 1.0),
    "count/s": ("count s-1", 1.0),
    "counts/s": ("count s-1", 1.0),
    "cps": ("count s-1", 1.0),
    "hz": ("count s-1", 1.0),
    "count/ms": ("count s-1", 1e3),
    "counts/ms": ("count s-1", 1e3),
}
#: How `write_spectrum` names the columns.
SUFFIXES = {
    "1": "od",
    "nm-1": "per_nm",
    "cm2 g-1": "cm2_per_g",
    "cm2": "cm2_per_atom",
    "count": "counts",
    "count s-1": "counts_per_s",
}
_ENERGY_UNITS = ("ev", "kev", "j")
_UNCERTAINTY = re.compile(r"(^|[_\s])(err|error|errors|sigma|std|stdev|uncertainty)$", re.I)
_MU_NAMES = ("mutrans", "mu", "xmu", "mufluor", "normtrans", "normfluor", "norm")


def read_spectrum(
    path: str | PathLike[str], *, column: str | int | None = None, units: str | None = None
) -> xr.DataArray:
    """Read a spectrum from a text file of two or more columns.

    Takes CSV, XDI, ``.xsp``, ``.r``, ``.t``, plain text, and the ``.hdr`` of a point scan whose
    ``.xsp`` lies beside it. Energies that are not increasing are sorted, and values at one energy
    averaged, both with a warning. XDI files that hold only the raw ``i0`` and ``itrans`` give
    ``ln(i0/itrans)``, which may be negative where the detectors' gains differ.

    Parameters
    ----------
    path : path
        The file.
    column : str or int, optional
        Which column holds the values: its name, with or without the unit, or its number counted
        from 1. Default: the first that is neither energy nor an uncertainty.
    units : str, optional
        What the values are, where the column's name does not tell or tells wrongly: ``od``,
        ``per_nm``, ``cm2_per_g``, ``cm2_per_atom``, ``barn/atom``, ``counts`` and the like.

    Returns
    -------
    DataArray, dims (energy,)
        ``energy`` in eV, increasing. ``attrs["units"]`` is one of "1" (optical density), "nm-1",
        "cm2 g-1", "cm2" (per atom), "count", "count s-1"; ``attrs["units_assumed"]`` is 1 where
        nothing told them and "1" was taken.

    Raises
    ------
    FileError
        Not a text file of numbers, text or NaN among them (with the line), fewer than two
        energies, energies that cannot be eV, no such column.
    InputError
        `units` that are not known here.
    """
    wanted = None if units is None else parse_units(units)
    header = _point_scan_header(path)
    table = read_table(path if header is None else _point_scan_file(path, header))
    if header is not None and not any(table.names):
        table.names[:] = _point_scan_names(header, len(table.names))
    energy_index, energy_unit = _energy_column(table)
    energy = to_ev(table.column(energy_index), energy_unit, path)
    name, values, found = _values(table, energy_index, column)
    kind, factor = wanted or found or ("1", 1.0)
    energy, values = _in_order(energy, values * factor, path)
    spectrum = xr.DataArray(
        values,
        dims=("energy",),
        coords={"energy": ("energy", energy, {"units": "eV", "long_name": "photon energy"})},
        name=name or Path(path).stem,
        attrs={"units": kind, "source_file": str(path), **_description(table, header)},
    )
    if wanted is None and found is None:
        spectrum.attrs["units_assumed"] = 1
    return spectrum


def write_spectrum(path: str | PathLike[str], spectra: xr.Dataset | xr.DataArray) -> None:
    """Write spectra as CSV: ``energy_eV`` and one column each, such as ``mn4_per_nm``.

    Parameters
    ----------
    path : path
        The file; it is written whole or not at all.
    spectra : Dataset or DataArray, dims (energy,)
        On one ``energy`` in eV; the units of each become the ending of its column's name.

    Raises
    ------
    InputError
        Other dimensions, energies not in eV, NaN, or units without a known ending.
    FileError
        The file cannot be written.
    """
    if isinstance(spectra, xr.DataArray):
        spectra = spectra.to_dataset(name=str(spectra.name or "spectrum"))
    _check_writable(spectra)
    names = {str(key): _column_name(str(key), value) for key, value in spectra.data_vars.items()}
    columns = [np.asarray(spectra.energy.values, dtype=np.float64)]
    columns += [np.asarray(spectra[key].values, dtype=np.float64) for key in names]
    text = io.StringIO()
    text.write(",".join(["energy_eV", *names.values()]) + "\n")
    for row in zip(*(values.tolist() for values in columns), strict=True):
        text.write(",".join(map(repr, row)) + "\n")
    with written_whole(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="\n")


def parse_units(text: str) -> tuple[str, float]:
    """Name used here for a unit, and the factor that converts to it.

    Raises
    ------
    InputError
        Not a unit of a spectrum.
    """
    if text.strip() == "1":
        return "1", 1.0
    found = UNITS.get(_plain(text))
    if found is None:
        raise InputError(
            f"'{text}' is not a unit of a spectrum known here",
            where="units",
            remedy=f"Use one of od, {', '.join(sorted(set(SUFFIXES.values()) - {'od'}))}.",
        )
    return found


def _plain(text: str) -> str:
    """A unit's text without what people write differently."""
    text = text.strip().lower().replace("\u207b\xb9", "-1").replace("\xb2", "2")
    text = text.replace("\xb5", "u").replace("\u03bc", "u").replace("**", "").replace("^", "")
    text = re.sub(r"(^|[\s_])per([\s_]|$)", "/", text)
    return re.sub(r"[\s_.]", "", text)


def _split_unit(name: str) -> tuple[str, str]:
    """Name of a column, and what of it may be a unit: ``mn4 (1/nm)`` or ``mn4_per_nm``."""
    bracketed = re.fullmatch(r"(.*?)\s*[(\[]([^)\]]*)[)\]]\s*", name)
    if bracketed:
        return bracketed[1].strip(), bracketed[2].strip()
    parts = re.split(r"[\s_]+", name.strip())
    for first in range(len(parts)):
        ending = "_".join(parts[first:])
        if _plain(ending) in UNITS or ending.lower() in _ENERGY_UNITS:
            return "_".join(parts[:first]), ending
    return name.strip(), ""


def _energy_column(table: Table) -> tuple[int, str]:
    """Index of the energies, and their unit as the file writes it."""
    for index, name in enumerate(table.names):
        base, unit = _split_unit(name)
        if ENERGY_NAME.search(base or unit):
            return index, unit or ("keV" if base.lower() == "kev" else "")
    if _is_xdi(table):
        raise FileError(
            f"no column is an energy: {', '.join(table.names)}",
            where=table.where,
            remedy="Convert the monochromator's angle to an energy in eV.",
        )
    return 0, ""


def _values(
    table: Table, energy_index: int, column: str | int | None
) -> tuple[str, NDArray[np.float64], tuple[str, float] | None]:
    """Name, numbers and unit of the values asked for."""
    if column is None and (raw := _raw_transmission(table)):
        i0, itrans = (table.column(index) for index in raw)
        return "mu", _log_ratio(i0, itrans, table), ("1", 1.0)
    index = _value_column(table, energy_index, column)
    base, unit = _split_unit(table.names[index])
    known = UNITS.get(_plain(unit)) if unit else None
    # A bracket that is no unit belongs to the name: "mu(E)".
    return (base if known or not unit else table.names[index]), table.column(index), known


def _value_column(table: Table, energy_index: int, column: str | int | None) -> int:
    """Index of the column of values."""
    others = [index for index in range(len(table.names)) if index != energy_index]
    if column is not None:
        return _named_column(table, column)
    names = [table.names[index].lower() for index in others]
    if _is_xdi(table):
        for wanted in _MU_NAMES:
            if wanted in names:
                return others[names.index(wanted)]
    numeric = [index for index in others if _is_numeric(table, index)] or others
    values = [i for i in numeric if not _UNCERTAINTY.search(table.names[i])] or numeric
    if not values:
        raise FileError("holds only energies", where=table.where)
    if len(values) > 1:
        LOG.warning(
            "%s: several columns; %s is read, not %s",
            table.where,
            _label(table, values[0]),
            ", ".join(_label(table, index) for index in values[1:]),
        )
    return values[0]


def _named_column(table: Table, column: str | int) -> int:
    """Index of the column that the caller names or numbers from 1."""
    if isinstance(column, int):
        if 1 <= column <= len(table.names):
            return column - 1
    else:
        for form in (str.strip, lambda name: _split_unit(name)[0]):
            for index, name in enumerate(table.names):
                if form(name).lower() == column.strip().lower():
                    return index
    raise FileError(
        f"no column '{column}'",
        where=table.where,
        remedy=f"It has {', '.join(_label(table, i) for i in range(len(table.names)))}.",
    )


def _is_numeric(table: Table, index: int) -> bool:
    """Whether a column begins with a number; names of samples do not."""
    first = table.rows[0][1]
    return index >= len(first) or to_number(first[index], table.comma_decimal) is not None


def _label(table: Table, index: int) -> str:
    """What to call a column in a message."""
    return f"'{table.names[index]}'" if table.names[index] else f"column {index + 1}"


def _is_xdi(table: Table) -> bool:
    """Whether the file says that it is XDI."""
    return bool(table.comments) and table.comments[0].upper().startswith("XDI/")


def _raw_transmission(table: Table) -> tuple[int, int] | None:
    """Indices of i0 and itrans in an XDI file without an absorption of its own."""
    names = [name.split()[0].lower() if name else "" for name in table.names]
    if not _is_xdi(table) or any(name in names for name in _MU_NAMES):
        return None
    return (names.index("i0"), names.index("itrans")) if {"i0", "itrans"} <= {*names} else None


def _log_ratio(
    i0: NDArray[np.float64], itrans: NDArray[np.float64], table: Table
) -> NDArray[np.float64]:
    """Absorption ``ln(i0/itrans)``; its sign is kept."""
    for (line, _), ahead, behind in zip(table.rows, i0, itrans, strict=True):
        if ahead <= 0 or behind <= 0:
            raise FileError(f"line {line}: an intensity is not positive", where=table.where)
    result: NDArray[np.float64] = np.log(i0 / itrans)
    return result


def _in_order(
    energy: NDArray[np.float64], values: NDArray[np.float64], where: object
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Increasing energies, each once; a warning says what was done to get there."""
    unique, inverse = np.unique(energy, return_inverse=True)
    if unique.size < 2:
        raise FileError(
            f"holds {unique.size} energy, and a spectrum needs two or more", where=where
        )
    done = []
    if np.any(np.diff(energy) < 0):
        done.append("energies were not increasing and have been sorted")
    if unique.size < energy.size:
        done.append(f"{energy.size - unique.size} repeated energies have been averaged")
    if not done:
        return energy, values
    LOG.warning("%s: %s", where, "; ".join(done))
    return unique, np.bincount(inverse, weights=values) / np.bincount(inverse)


def _description(table: Table, header: dict[str, Any] | None) -> dict[str, str | float]:
    """Attributes the file gives about itself."""
    found: dict[str, str | float] = {"source_format": "xdi" if _is_xdi(table) else "text"}
    for line in table.comments if _is_xdi(table) else ():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("sample.name", "element.symbol", "element.edge") and value:
            found[key.strip().lower().replace(".", "_")] = value.strip()
    if header is not None:
        found["source_format"] = "als-hdr"
        dwell = _hdr.number(header["ScanDefinition"], "Dwell")
        if dwell > 0:
            found["dwell_time_s"] = dwell * 1e-3
    return found


def _point_scan_header(path: str | PathLike[str]) -> dict[str, Any] | None:
    """Header of a point scan, or None where the file is not a header."""
    try:
        with Path(path).open("rb") as stream:
            if b"ScanDefinition" not in stream.read(4096):
                return None
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path) from error
    header = _hdr.read_header(path)
    scan = header["ScanDefinition"]
    kind = f"{scan.get('Type', '')} {scan.get('Flags', '')} {scan.get('ScanType', '')}"
    if "Point" not in kind and "Spectra" not in kind:
        raise FileError(
            f"is a scan of images ({scan.get('Type', 'no type')}), not a spectrum",
            where=path,
            remedy="Open it with open_stack.",
        )
    return header


def _point_scan_file(path: str | PathLike[str], header: dict[str, Any]) -> Path:
    """The first region's ``.xsp``; a warning names the others."""
    scan = header["ScanDefinition"]
    regions = max(1, len(_hdr.listed(scan.get("Regions"))))
    stem = Path(path).with_suffix("").name
    files = [Path(path).with_name(f"{stem}_{region}.xsp") for region in range(regions)]
    if not files[0].exists():
        raise FileError(
            f"'{files[0].name}', which holds its numbers, is missing",
            where=path,
            remedy=f"Put it into {files[0].parent}.",
        )
    if regions > 1:
        others = ", ".join(file.name for file in files[1:])
        LOG.warning("%s: several points; %s is read, not %s", path, files[0].name, others)
    return files[0]


def _point_scan_names(header: dict[str, Any], width: int) -> list[str]:
    """Names of the columns of an ``.xsp``: energy, then the channels."""
    scan = header["ScanDefinition"]
    channels = [str(channel.get("Name", "")) for channel in _hdr.listed(scan.get("Channels"))]
    regions = _hdr.listed(scan.get("Regions"))
    axis = regions[0].get("PAxis", {}) if regions else {}
    unit = f" ({axis['Unit']})" if isinstance(axis, dict) and axis.get("Unit") else ""
    names = [f"energy{unit}", *channels]
    return (names + [""] * width)[:width]


def _check_writable(spectra: xr.Dataset) -> None:
    """Refuse what a CSV of spectra cannot hold."""
    if "energy" not in spectra.coords or spectra.energy.attrs.get("units") != "eV":
        raise InputError("spectra need an energy coordinate in eV", where="spectra")
    if not spectra.data_vars:
        raise InputError("there is no spectrum in it", where="spectra")
    for key, values in spectra.data_vars.items():
        if values.dims != ("energy",):
            raise InputError(f"'{key}' has dims {values.dims}, not ('energy',)", where="spectra")
        if not np.all(np.isfinite(values.values)):
            raise InputError(f"'{key}' holds NaN", where="spectra")


def _column_name(name: str, values: xr.DataArray) -> str:
    """Name of a column with the ending that tells its unit."""
    units = str(values.attrs.get("units", "1"))
    if units not in SUFFIXES:
        raise InputError(
            f"'{name}' is in '{units}'", where="spectra", remedy=f"Use one of {_known()}."
        )
    if re.search(r'[,"\r\n#]', name):
        raise InputError(f"'{name}' cannot be the name of a column", where="spectra")
    unit = _split_unit(name)[1]
    if "units_assumed" in values.attrs or (unit and UNITS.get(_plain(unit)) == (units, 1.0)):
        return name
    return f"{name}_{SUFFIXES[units]}"


def _known() -> str:
    """Units that have an ending, for a message."""
    listed: Sequence[str] = sorted(SUFFIXES)
    return ", ".join(f"'{unit}'" for unit in listed)
