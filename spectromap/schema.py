"""Names, dimensions and units that every part of spectromap agrees on.

Read this first: a *stack* is a labelled array ``(energy, y, x)``, a *map* is ``(y, x)``, and the
result of a run is one tree whose groups are listed in `RESULT_GROUPS`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

__all__ = [
    "FLAGS",
    "QUANTITIES",
    "RESULT_GROUPS",
    "SCHEMA_VERSION",
    "VERDICTS",
    "FileError",
    "InputError",
    "Instrument",
    "Sample",
    "SpectromapError",
    "check_map",
    "check_stack",
    "with_units",
]

#: The one logger. A warning logged here during a run ends up in the result's ``process`` group.
LOG = logging.getLogger("spectromap")

SCHEMA_VERSION = 1

#: What the values of a stack are; ``stack.attrs["quantity"]`` is one of these.
#: ``counts``: detector counts, still with dark counts; ``amplitude``: complex transmission of a
#: ptychographic object on an arbitrary scale; ``optical_density``: -ln(I/I0) made elsewhere.
QUANTITIES = ("counts", "amplitude", "optical_density")

TECHNIQUES = ("stxm", "ptychography")

#: Groups of the result below ``/entry``, in the order they are written.
RESULT_GROUPS = (
    "shifts",
    "spectra",
    "maps",
    "particles",
    "profiles",
    "models",
    "pooled",
    "heterogeneity",
    "oxygen",
    "process",
)

#: Bits of ``maps/flags``. Zero means that nothing is wrong with the pixel.
FLAGS = {
    "no_data": 1,
    "energies_left_out": 2,
    "saturated": 4,
    "dead": 8,
    "negative_component": 16,
    "model_rejected": 32,
}

VERDICTS = ("diffusion", "core-shell", "undecided", "no gradient")

PLACES = ("outside", "exterior", "interior")

STACK_DIMS = ("energy", "y", "x")
MAP_DIMS = ("y", "x")
LENGTH_UNITS = "nm"
ENERGY_UNITS = "eV"
#: From these up an energy axis cannot be meant in eV, or in keV, for a soft X-ray edge.
ENERGY_RANGE_EV = (50.0, 100_000.0)


@dataclass(frozen=True)
class Sample:
    """What the sample is.

    Parameters
    ----------
    geometry : {"dispersed", "lamella"}
        Whole particles on a support, or a microtomed section.
    section_nm : float, optional
        Nominal thickness of a lamella in nm.
    formula : str, optional
        Composition, such as Li1.18Ni0.21Mn0.53Co0.08O2.
    density_g_cm3 : float, optional
        Density in g/cm3.
    delithiated_time_s : float, optional
        Time spent delithiated in s; turns the measured D t into D.
    delithiated_time_rel_error : float
        Relative standard error of that time.
    state : {"discharged", "charged"}
        State of charge; reduced metal counts lost oxygen in a discharged sample only.
    cycles : float, optional
        Number of cycles; 0 is the pristine material.
    """

    geometry: Literal["dispersed", "lamella"] = "dispersed"
    section_nm: float | None = None
    formula: str | None = None
    density_g_cm3: float | None = None
    delithiated_time_s: float | None = None
    delithiated_time_rel_error: float = 0.0
    state: Literal["discharged", "charged"] = "discharged"
    cycles: float | None = None


@dataclass(frozen=True)
class Instrument:
    """What the instrument does to the picture.

    Parameters
    ----------
    resolution_nm : float, optional
        Full width at half maximum of the point spread function in nm; estimated if not given.
    dark_counts : float
        Counts without light, per pixel and frame.
    spectral_fwhm_eV : float, optional
        Energy resolution at which the stack was recorded, FWHM in eV.
    stray_fraction : float
        Fraction of the open-area light that the sample cannot absorb.
    detector_efficiency : float
        Share of the photons behind the sample that are counted; with 1 the dose is a lower bound.
    """

    resolution_nm: float | None = None
    dark_counts: float = 0.0
    spectral_fwhm_eV: float | None = None
    stray_fraction: float = 0.0
    detector_efficiency: float = 1.0


class SpectromapError(Exception):
    """Something the user can mend: the message says what, where, and what to do.

    Parameters
    ----------
    what : str
        What is wrong, without a final full stop.
    where : object, optional
        The file, key or argument at fault; printed first.
    remedy : str, optional
        What to do about it, a sentence.
    """

    def __init__(self, what: str, *, where: object = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, str(where), remedy
        place = f"{where}: " if str(where) else ""
        advice = f". {remedy}" if remedy else ""
        super().__init__(f"{place}{what}{advice}")


class InputError(SpectromapError, ValueError):
    """A value, option or array that cannot be used as it is."""


class FileError(SpectromapError, OSError):
    """A file that is missing, unreadable, damaged or not what it should be."""

    def __str__(self) -> str:  # OSError's own __str__ would drop the message
        return str(self.args[0])


def with_units(values: xr.DataArray, name: str, units: str, long_name: str = "") -> xr.DataArray:
    """Name an array and set its units and, if given, its long name."""
    values = values.rename(name)
    values.attrs["units"] = units
    if long_name:
        values.attrs["long_name"] = long_name
    return values


def _check_axis(array: xr.DataArray, dim: str, units: str, where: str) -> None:
    if dim not in array.coords:
        raise InputError(
            f"coordinate '{dim}' is missing", where=where, remedy=f"Assign '{dim}' in {units}."
        )
    values = np.asarray(array[dim].values, dtype=float)
    if not np.all(np.isfinite(values)):
        raise InputError(f"coordinate '{dim}' holds NaN", where=where)
    # Two frames at one energy are a legitimate repeat; two rows at one place are not.
    steps = np.diff(values)
    if np.any(steps < 0) or (dim != "energy" and np.any(steps == 0)):
        raise InputError(
            f"coordinate '{dim}' is not ascending",
            where=where,
            remedy=f"Sort it: stack.sortby('{dim}').",
        )
    found = array[dim].attrs.get("units")
    if found != units:
        raise InputError(
            f"coordinate '{dim}' is in '{found}'",
            where=where,
            remedy=f"Convert it to {units} and set attrs['units'] = '{units}'.",
        )


def check_stack(
    stack: xr.DataArray, quantities: Iterable[str] = QUANTITIES, *, name: str = "stack"
) -> xr.DataArray:
    """Check that an array is a stack as the stages expect it.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Coordinates ``energy`` in eV and ``y``, ``x`` in nm, ascending (an energy may be repeated).
    quantities : iterable of str
        Which of `QUANTITIES` are acceptable here.
    name : str
        How the message calls the array.

    Returns
    -------
    DataArray
        The same object.

    Raises
    ------
    InputError
        Wrong dimensions, a missing or unsorted coordinate, wrong units or quantity.
    """
    if not isinstance(stack, xr.DataArray) or stack.dims != STACK_DIMS:
        got = getattr(stack, "dims", type(stack).__name__)
        raise InputError(
            f"expected a DataArray with dims {STACK_DIMS}, got {got}",
            where=name,
            remedy="Open files with spectromap.open_stack, or transpose the array.",
        )
    for dim, units in zip(STACK_DIMS, (ENERGY_UNITS, LENGTH_UNITS, LENGTH_UNITS), strict=True):
        _check_axis(stack, dim, units, name)
    allowed = tuple(quantities)
    if stack.attrs.get("quantity") not in allowed:
        raise InputError(
            f"attrs['quantity'] is {stack.attrs.get('quantity')!r}",
            where=name,
            remedy=f"It must be one of {', '.join(allowed)}.",
        )
    return stack


def check_map(values: xr.DataArray, units: str | None = None, *, name: str = "map") -> xr.DataArray:
    """Check that an array is a map ``(y, x)`` in nm, and in `units` if they are given.

    Parameters
    ----------
    values : DataArray, dims (y, x)
        The map.
    units : str, optional
        The units that ``attrs["units"]`` must name.
    name : str
        How the message calls the array.

    Returns
    -------
    DataArray
        The same object.

    Raises
    ------
    InputError
        Wrong dimensions, a missing or unsorted coordinate, wrong units.
    """
    if not isinstance(values, xr.DataArray) or values.dims != MAP_DIMS:
        got = getattr(values, "dims", type(values).__name__)
        raise InputError(f"expected a DataArray with dims {MAP_DIMS}, got {got}", where=name)
    for dim in MAP_DIMS:
        _check_axis(values, dim, LENGTH_UNITS, name)
    if units is not None and values.attrs.get("units") != units:
        raise InputError(
            f"units are {values.attrs.get('units')!r}, not '{units}'",
            where=name,
            remedy=f"Convert the values and set attrs['units'] = '{units}'.",
        )
    return values


def pixel_size(array: xr.DataArray) -> tuple[float, float]:
    """Step of the y and x axes in nm (the median step; 1.0 for an axis of one point)."""
    steps = []
    for dim in MAP_DIMS:
        values = np.asarray(array[dim].values, dtype=float)
        steps.append(float(np.median(np.diff(values))) if values.size > 1 else 1.0)
    return steps[0], steps[1]


def component_names(references: xr.Dataset) -> list[str]:
    """Names of the components in a set of reference spectra, in order.

    Parameters
    ----------
    references : Dataset, dims (energy,)
        One variable a component and ``<component>_slope``, its derivative by energy.
    """
    return [str(name) for name in references.data_vars if not str(name).endswith("_slope")]
