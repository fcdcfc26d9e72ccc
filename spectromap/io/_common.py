"""What every reader and writer needs: units, axis order, links, atomic files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import ENERGY_RANGE_EV, LOG, FileError

ENERGY_FACTORS = {"ev": 1.0, "kev": 1e3, "j": 1.0 / 1.602176634e-19}
LENGTH_FACTORS = {
    "m": 1e9,
    "mm": 1e6,
    "um": 1e3,
    "\xb5m": 1e3,
    "\u03bcm": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "nm": 1.0,
    "a": 0.1,
    "angstrom": 0.1,
}
ENERGY_NAMES = {"electronvolt": "ev", "electronvolts": "ev", "joule": "j", "joules": "j"}


def to_ev(values: Any, units: str, where: object) -> NDArray[np.float64]:
    """Energies in eV; empty units mean eV, and values that cannot be eV are refused.

    Raises
    ------
    FileError
        Unknown units, or energies outside any soft or hard X-ray range (keV written as eV).
    """
    key = units.strip().lower()
    key = ENERGY_NAMES.get(key, key) or "ev"
    if key not in ENERGY_FACTORS:
        raise FileError(
            f"energy is in '{units}', which is not a unit of energy known here",
            where=where,
            remedy="Use eV, keV or J; a stack over angle or field is not an energy stack.",
        )
    energies = np.atleast_1d(np.asarray(values, dtype=np.float64)) * ENERGY_FACTORS[key]
    low, high = ENERGY_RANGE_EV
    if not np.all(np.isfinite(energies)) or np.any(energies < low) or np.any(energies > high):
        raise FileError(
            f"energies from {np.nanmin(energies):g} to {np.nanmax(energies):g} eV"
            f" (units in the file: '{units or 'none'}') lie outside {low:g} to {high:g} eV",
            where=where,
            remedy="If they are keV, write the unit keV in the file.",
        )
    return energies


def to_nm(values: Any, units: str, where: object) -> NDArray[np.float64]:
    """Positions in nm.

    Raises
    ------
    FileError
        The units are not a length.
    """
    factor = LENGTH_FACTORS.get(units.strip().lower())
    if factor is None:
        raise FileError(
            f"position is in '{units}', which is not a length known here",
            where=where,
            remedy=f"Use one of {', '.join(sorted(LENGTH_FACTORS))}.",
        )
    return np.atleast_1d(np.asarray(values, dtype=np.float64)) * factor


def assemble(
    data: Any,
    energy: NDArray[np.float64],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    *,
    where: object,
    attrs: Mapping[str, str | float],
    along_energy: Mapping[str, tuple[NDArray[np.float64], str]] | None = None,
) -> xr.DataArray:
    """Put an array (energy, y, x) and its axes together as a stack, every axis ascending.

    Parameters
    ----------
    data : array, shape (n_energy, ny, nx)
        Lazy or not, in the order of the file.
    energy, y, x : ndarray
        Axes in eV and nm, in the order of the file; descending axes are turned round.
    where : object
        The file, for messages.
    attrs : mapping
        ``quantity``, ``technique``, ``source_format`` and what else the file tells.
    along_energy : mapping of name to (values, units), optional
        Further coordinates along energy, such as ``dwell_time`` in s.

    Raises
    ------
    FileError
        Axes that do not fit the data, or that go up and down.
    """
    for name, axis, size in zip(("energy", "y", "x"), (energy, y, x), data.shape, strict=True):
        if axis.shape != (size,):
            raise FileError(
                f"axis '{name}' has {axis.size} points for {size} in the data", where=where
            )
    coords: dict[str, Any] = {
        "energy": ("energy", energy, {"units": "eV", "long_name": "photon energy"}),
        "y": ("y", y, {"units": "nm", "long_name": "y"}),
        "x": ("x", x, {"units": "nm", "long_name": "x"}),
    }
    for name, (values, units) in (along_energy or {}).items():
        coords[name] = ("energy", np.asarray(values, dtype=np.float64), {"units": units})
    stack = xr.DataArray(data, dims=("energy", "y", "x"), coords=coords, attrs=dict(attrs))
    stack.name = "intensity"
    stack.attrs.setdefault("units", "count" if attrs["quantity"] == "counts" else "1")
    stack.attrs.setdefault("source_file", str(where))
    for name in ("y", "x"):
        steps = np.diff(stack[name].values)
        if np.all(steps < 0) and steps.size:
            stack = stack.isel({name: slice(None, None, -1)})
            stack.attrs[f"{name}_reversed"] = 1  # regions are given in pixels of the file
        elif np.any(steps <= 0):
            raise FileError(f"axis '{name}' does not go one way", where=where)
    return _sort_energies(stack, where)


def _sort_energies(stack: xr.DataArray, where: object) -> xr.DataArray:
    """Frames in ascending energy, telling the user what was found out of order or twice."""
    energy = stack.energy.values
    steps = np.diff(energy)
    if np.any(steps < 0):
        order = np.argsort(energy, kind="stable")
        if not np.all(steps <= 0):
            LOG.warning("%s: energies are not in order; the frames were sorted", where)
        stack = stack.isel(energy=order)
        steps = np.diff(stack.energy.values)
    if np.any(steps == 0):
        repeated = ", ".join(f"{e:g}" for e in np.unique(stack.energy.values[1:][steps == 0]))
        LOG.warning("%s: energies recorded more than once, all kept: %s eV", where, repeated)
    return stack


def refuse_outside_link(target: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Refuse an external HDF5 link that leaves the folder of the file that holds it.

    Raises
    ------
    FileError
        The target lies outside the folder.
    """
    folder = Path(path).resolve().parent
    resolved = (folder / target).resolve()
    if not resolved.is_relative_to(folder):
        raise FileError(
            f"an external link points to '{target}', outside the folder of the data",
            where=path,
            remedy="Copy the linked file beside this one, or repack both into one file.",
        )


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to ``<path>.part`` and rename at the end; on failure nothing remains.

    Yields
    ------
    Path
        The file to write; it must be closed before the block ends.
    """
    final = Path(path)
    partial = final.with_name(final.name + ".part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"its folder cannot be made ({error.strerror or error})", where=final
        ) from error
    try:
        yield partial
        with open(partial, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, final)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"could not be written ({error.strerror or error})",
            where=final,
            remedy="Check the free space and the permissions of the folder; nothing was kept.",
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
