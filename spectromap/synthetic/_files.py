"""What the analysis is given: references with their faults, a run description, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import yaml
from scipy import ndimage

from spectromap._numerics import generator
from spectromap.schema import SCHEMA_VERSION, InputError
from spectromap.synthetic._options import Draw, Setup, Simulation
from spectromap.synthetic._spectra import absorption, span, spectral_nodes

#: Thickness in nm of the film behind a reference given as optical density.
REFERENCE_FILM_NM = 100.0
_STACK_FILES = {"nxstxm": "stack.hdf5", "als": "stack.hdr", "cxi": "stack.cxi"}
_REFERENCE_UNITS = {"per_nm": "nm-1", "od": "1", "cm2_per_g": "cm2 g-1", "per_atom": "cm2"}


def _reference_factor(units: str, element: str, formula: str, density: float) -> float:
    """What nm-1 is multiplied by to have the given units."""
    import xraydb
    from scipy.constants import Avogadro

    if units == "od":
        return REFERENCE_FILM_NM
    if units == "cm2_per_g":
        return 1e7 / density
    if units == "per_atom":
        atoms = xraydb.chemparse(formula)
        mass = sum(n * xraydb.atomic_mass(symbol) for symbol, n in atoms.items())
        return float(1e7 * mass / (density * Avogadro * atoms[element]))
    return 1.0


def given_references(setup: Setup) -> xr.Dataset:
    """All the spectra that the analysis is told, each with its units."""
    told = list(setup.model.lines)[: setup.references.components]
    return xr.Dataset({name: _given(name, k, setup) for k, name in enumerate(told)})


def _given(component: str, number: int, setup: Setup) -> xr.DataArray:
    """Spectrum of one component as the analysis is told it."""
    model, options, sample = setup.model, setup.references, setup.sample
    fwhm = setup.instrument.spectral_fwhm_eV if options.fwhm_eV is None else options.fwhm_eV
    recorded = span(model)
    formula, density, units = sample.formula, sample.density_g_cm3, str(options.units)
    if options.compound and component == model.reduced:
        (formula, density), units = model.reduced_compound, "od"
    smooth, lines = np.zeros_like(recorded), np.zeros_like(recorded)
    for offset, weight in zip(*spectral_nodes(fwhm), strict=True):
        at = recorded - options.energy_offset_eV + offset
        before, step, peaks = absorption(setup.scan.edge, component, formula, density, at)
        smooth += weight * (before + step)
        lines += weight * peaks
    rng = generator(setup.seed, Draw.REFERENCE, number)
    ripple = ndimage.gaussian_filter1d(rng.normal(size=recorded.size), 10.0, mode="wrap")
    lines *= 1 + options.shape_error * ripple / ripple.std()
    values = (smooth + lines) * (1 + options.amplitude_error * rng.normal())
    values *= 1 + options.noise * rng.normal(size=recorded.size)
    values *= _reference_factor(units, model.element, formula, density)
    return xr.DataArray(
        values,
        dims="energy",
        coords={"energy": ("energy", recorded, {"units": "eV"})},
        attrs={"units": _REFERENCE_UNITS[units], "long_name": f"reference {component}"},
    )


def description(setup: Setup, given: xr.Dataset) -> dict[str, Any]:
    """Run description for the files that `write` leaves."""
    model, sample, instrument = setup.model, setup.sample, setup.instrument
    region = {"region": [0, setup.scan.shape_px[0], 0, setup.open_columns]}
    references: dict[str, dict[str, Any]] = {}
    for name, spectrum in given.data_vars.items():
        references[str(name)] = {"file": f"{name}.csv", "valence": model.valences[str(name)]}
        if spectrum.attrs["units"] == "1":
            references[str(name)]["scale"] = "edge_jump"
    return {
        "schema_version": SCHEMA_VERSION,
        "technique": instrument.technique,
        "stack": _STACK_FILES["cxi" if setup.coherent else "nxstxm"],
        "edge": setup.scan.edge,
        "sample": {
            "geometry": sample.geometry,
            "section_nm": sample.section_nm if sample.geometry == "lamella" else None,
            "formula": sample.formula,
            "density_g_cm3": sample.density_g_cm3,
            "delithiated_time_s": sample.delithiated_time_s,
            "delithiated_time_rel_error": 0.1,
        },
        "instrument": {
            "resolution_nm": instrument.resolution_nm,
            "dark_counts": 0.0 if setup.coherent else instrument.dark_counts,
            "spectral_fwhm_eV": instrument.spectral_fwhm_eV,
            "stray_fraction": 0.0 if setup.coherent else instrument.stray_fraction,
        },
        "i0": region if setup.open_columns else "auto",
        "references": references,
        "fraction": model.reduced,
        "seed": setup.seed,
    }


def write(
    simulation: Simulation,
    folder: str | Path,
    format: Literal["nxstxm", "als", "cxi"] | None = None,
) -> Path:
    """Write a simulation as a beamline would leave it, with a run description and the truth.

    Parameters
    ----------
    simulation : Simulation
        From `simulate`.
    folder : path
        Made if it does not exist. Receives the stack, one CSV a reference, ``truth.h5`` and
        ``RUN.yaml``.
    format : {"nxstxm", "als", "cxi"}, optional
        Counts are written as nxstxm (the default) or als, amplitudes as cxi.

    Returns
    -------
    Path
        The run description.

    Raises
    ------
    InputError
        The format cannot hold this quantity.
    FileError
        A file cannot be written.
    """
    from spectromap.io import als, cxi, nxstxm, results, spectra
    from spectromap.io._common import written_whole

    counts = simulation.stack.attrs["quantity"] == "counts"
    possible = ("nxstxm", "als") if counts else ("cxi",)
    chosen = format or possible[0]
    if chosen not in possible:
        raise InputError(
            f"a stack of {simulation.stack.attrs['quantity']} cannot be written as '{chosen}'",
            where="format",
            remedy=f"Use {' or '.join(possible)}.",
        )
    target = Path(folder)
    writers = {"nxstxm": nxstxm.write, "als": als.write, "cxi": cxi.write}
    writers[chosen](simulation.stack, target / _STACK_FILES[chosen])
    for name, spectrum in simulation.given_references.data_vars.items():
        spectra.write_spectrum(target / f"{name}.csv", spectrum)
    results.write_result(simulation.truth, target / "truth.h5")
    description = {**simulation.run, "stack": _STACK_FILES[chosen]}
    with written_whole(target / "RUN.yaml") as partial:
        partial.write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    return target / "RUN.yaml"
