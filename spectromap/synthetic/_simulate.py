"""The whole simulation, and fields that are ready to use."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._numerics import FloatArray
from spectromap.synthetic._files import description, given_references
from spectromap.synthetic._instrument import Optics, drift, open_field, record
from spectromap.synthetic._options import Instrument, References, Sample, Scan, Setup, Simulation
from spectromap.synthetic._scene import Scene, make_scene
from spectromap.synthetic._spectra import reference_spectra
from spectromap.synthetic._truth import axis, truth_tree


def simulate(
    sample: Sample | None = None,
    instrument: Instrument | None = None,
    scan: Scan | None = None,
    references: References | None = None,
    *,
    seed: int = 0,
) -> Simulation:
    """Simulate a spectromicroscopy stack of an electrode whose truth is known.

    Parameters
    ----------
    sample : Sample, optional
        What is looked at.
    instrument : Instrument, optional
        What looks at it.
    scan : Scan, optional
        Energies, pixels and drift.
    references : References, optional
        How the reference spectra that come with the data differ from the true ones.
    seed : int
        The same seed gives the same numbers, bit for bit.

    Returns
    -------
    Simulation
        Stack, truth, references and run description.

    Raises
    ------
    InputError
        An option that does not exist or makes no sense, or more particles than fit.
    """
    setup = Setup(
        sample or Sample(),
        instrument or Instrument(),
        scan or Scan(),
        references or References(),
        seed,
    )
    shifts = drift(setup)
    return recorded(setup, shifts, make_scene(setup, shifts))


def recorded(setup: Setup, shifts: FloatArray, scene: Scene) -> Simulation:
    """What the instrument makes of a scene, with all that is true of it."""
    optics = Optics(setup.instrument, scene.grid)
    stack = _stack(setup, record(setup, scene, shifts, optics))
    given = given_references(setup)
    run = description(setup, given)
    return Simulation(
        stack=stack,
        truth=truth_tree(setup, scene, shifts, optics, run),
        references=reference_spectra(
            setup.scan.edge,
            formula=setup.sample.formula,
            density_g_cm3=setup.sample.density_g_cm3,
        ),
        given_references=given,
        run=run,
        particles=scene.particles,
    )


def _stack(setup: Setup, frames: NDArray[Any]) -> xr.DataArray:
    """Frames with their axes."""
    energy, pixel = setup.energy, setup.scan.pixel_nm
    _, current = open_field(setup)
    coords: dict[str, Any] = {
        "energy": ("energy", energy, {"units": "eV", "long_name": "photon energy"}),
        "y": axis(frames.shape[1], pixel, "y", setup.file_origin[0]),
        "x": axis(frames.shape[2], pixel, "x", setup.file_origin[1]),
        "dwell_time": ("energy", np.full(energy.size, setup.scan.dwell_s), {"units": "s"}),
        "ring_current": ("energy", current, {"units": "mA"}),
    }
    attrs = {
        "quantity": "amplitude" if setup.coherent else "counts",
        "units": "1" if setup.coherent else "count",
        "technique": setup.instrument.technique,
        "source_format": "simulation",
        "source_file": "simulated",
        "title": f"simulated {setup.scan.edge} stack",
    }
    return xr.DataArray(
        frames, dims=("energy", "y", "x"), coords=coords, name="intensity", attrs=attrs
    )


def demo_field(seed: int = 0) -> Simulation:
    """Simulate the field of the demonstration: dispersed LMR primary particles after cycling.

    Sharp STXM (10 nm) of 14 particles into which Mn3+ grew by diffusion with D = 1e-17 cm2/s
    over 4e5 s, with drift, a jump, an energy error and references that are slightly off.

    Parameters
    ----------
    seed : int
        Another seed is another field.

    Returns
    -------
    Simulation
        60 energies of 190 x 220 pixels of 7 nm.
    """
    return simulate(
        Sample(),
        Instrument(photons=8000.0),
        Scan(
            shape_px=(190, 220),
            energy_shift_eV=0.1,
            drift_px=5.0,
            walk_px=0.3,
            jumps=1,
            jump_px=3.0,
        ),
        References(amplitude_error=0.01, shape_error=0.01),
        seed=seed,
    )


def electrode_field(seed: int = 0) -> Simulation:
    """Simulate a section through two agglomerates with loose particles between them.

    An 80 nm lamella; the surface fraction is lower inside the agglomerates than outside and lower
    still in their interior, as it was found in cycled LMR electrodes.

    Parameters
    ----------
    seed : int
        Another seed is another field.

    Returns
    -------
    Simulation
        60 energies of 230 x 250 pixels of 10 nm.
    """
    return simulate(
        Sample(
            geometry="lamella",
            particles=14,
            radius_nm=(65.0, 105.0),
            agglomerates=2,
            primaries=19,
            inside_drop=0.12,
            interior_drop=0.1,
        ),
        Instrument(resolution_nm=12.0, photons=8000.0),
        Scan(pixel_nm=10.0, shape_px=(230, 250), drift_px=4.0, walk_px=0.2, open_share=0.08),
        References(amplitude_error=0.01, shape_error=0.01),
        seed=seed,
    )
