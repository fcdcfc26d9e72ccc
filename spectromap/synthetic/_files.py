"""What the analysis is given: references with their faults, a run description, files."""

from __future__ import annotations

from collections.abc import Mapping
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
Format = Literal["nxstxm", "als", "cxi"]
_SUFFIXES: dict[Format, str] = {"nxstxm": ".hdf5", "als": ".hdr", "cxi": ".cxi"}
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
    stream = [setup.reference_stream] if setup.reference_stream else []
    rng = generator(setup.seed, Draw.REFERENCE, number, *stream)
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


def _if_given(**values: Any) -> dict[str, Any]:
    """What is not None."""
    return {name: value for name, value in values.items() if value is not None}


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
        "stack": _file_name("stack", "cxi" if setup.coherent else "nxstxm"),
        "edge": setup.scan.edge,
        "sample": {
            "geometry": sample.geometry,
            "section_nm": sample.section_nm if sample.geometry == "lamella" else None,
            "formula": sample.formula,
            "density_g_cm3": sample.density_g_cm3,
            "delithiated_time_s": sample.delithiated_time_s,
            "delithiated_time_rel_error": 0.1,
            **_if_given(state=sample.state, cycles=sample.cycles),
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
    format: Format | None = None,
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
    from spectromap.io import results

    target = Path(folder)
    stack = _write_data(simulation, target, "stack", _format(simulation, format))
    results.write_result(simulation.truth, target / "truth.h5")
    return _write_run({**simulation.run, "stack": stack}, target)


def write_scans(
    simulations: Mapping[str, Simulation],
    folder: str | Path,
    format: Format | None = None,
) -> Path:
    """Write several scans of one sample as a beamline would leave them, with one run description.

    Parameters
    ----------
    simulations : mapping of str to Simulation
        From `simulate_scans`; the first is the main scan.
    folder : path
        Made if it does not exist. Receives the main scan as for `write`, one file a further scan
        under its name, one CSV a reference of every edge, ``truth.h5`` of the main scan, which
        holds the maps of the others as well, and ``RUN.yaml``, whose ``scans`` names them.
    format : {"nxstxm", "als", "cxi"}, optional
        As for `write`.

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
    target = Path(folder)
    main, *others = simulations
    formats = {name: _format(simulation, format) for name, simulation in simulations.items()}
    path = write(simulations[main], target, formats[main])
    run = {**simulations[main].run, "stack": _file_name("stack", formats[main])}
    scans = {}
    for name in others:
        stack = _write_data(simulations[name], target, name, formats[name])
        scans[name] = _scan_entry(simulations[name].run, run, stack)
    return _write_run({**run, "scans": scans}, target) if scans else path


def _scan_entry(own: dict[str, Any], main: dict[str, Any], stack: str) -> dict[str, Any]:
    """What the run description of a further scan says; a repeat shares the rest with the main."""
    entry = {"stack": stack, "i0": own["i0"]}
    if own["edge"] != main["edge"]:
        entry |= {key: own[key] for key in ("edge", "references", "fraction")}
    if own["instrument"] != main["instrument"]:
        entry["instrument"] = own["instrument"]
    return entry


def _format(simulation: Simulation, format: Format | None) -> Format:
    """Format of the stack, checked."""
    counts = simulation.stack.attrs["quantity"] == "counts"
    possible: tuple[Format, ...] = ("nxstxm", "als") if counts else ("cxi",)
    chosen = format or possible[0]
    if chosen not in possible:
        raise InputError(
            f"a stack of {simulation.stack.attrs['quantity']} cannot be written as '{chosen}'",
            where="format",
            remedy=f"Use {' or '.join(possible)}.",
        )
    return chosen


def _file_name(name: str, format: Format) -> str:
    """Name of the file of a stack."""
    return name + _SUFFIXES[format]


def _write_data(simulation: Simulation, target: Path, name: str, format: Format) -> str:
    """Write the stack under a name, and its references; the name of the file."""
    from spectromap.io import als, cxi, nxstxm, spectra

    writers = {"nxstxm": nxstxm.write, "als": als.write, "cxi": cxi.write}
    writers[format](simulation.stack, target / _file_name(name, format))
    for component, spectrum in simulation.given_references.data_vars.items():
        spectra.write_spectrum(target / f"{component}.csv", spectrum)
    return _file_name(name, format)


def _write_run(run: dict[str, Any], target: Path) -> Path:
    """Write the run description."""
    from spectromap.io._common import written_whole

    with written_whole(target / "RUN.yaml") as partial:
        partial.write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
    return target / "RUN.yaml"
