"""Simulated fields for the radial benchmark: what is on them, and what a run is told of them.

Every field is drawn by its kind and number, so that a stored field can be made again. The maps of
a field are made once, by the whole default run, and kept in one file with the truth; particles,
profiles and models are then found in them as often as wanted, by the steps of the pipeline itself.

Kinds: the letter says what happened in the particles, the digit how they are looked at.

== ============================= == =====================================================
P  diffusion, D t/R^2 in range   1  whole particles, 10 nm, ptychography and STXM in turn
L  diffusion outside the range   2  the same, sections of 80 nm
C  core-shell, 15 to 40 nm       3  at least 150 nm, STXM at 45 nm; two in five are sections
U  uniform, fraction 0 to 0.15
== ============================= == =====================================================
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from spectromap._run import STEPS, Run
from spectromap.pipeline import Plan, analyze
from spectromap.schema import InputError
from spectromap.schema import Instrument as ToldInstrument
from spectromap.schema import Sample as ToldSample
from spectromap.synthetic import (
    Instrument,
    References,
    Sample,
    Scan,
    Simulation,
    _scene,
    simulate,
)

#: D t/R^2 of particles whose D is asked for, R the radius of the sphere with the body's volume.
RANGE = (0.005, 0.1)
TIME_S = 4e5
NM2_PER_CM2 = 1e14
KINDS = tuple(f"{letter}{digit}" for letter in "PCUL" for digit in "123")
SHAPES = ("sphere", "polyhedron", "mixed")
D_CM2_S = tuple(3e-18 * (1e-16 / 3e-18) ** (j / 6) for j in range(7))
#: The largest D needs the largest particles, which take minutes to simulate: fewer fields.
D_TURNS = (2, 0, 3, 1, 4, 2, 0, 5, 1, 3, 6)
SHELLS_NM = (15.0, 22.0, 30.0, 40.0)
UNIFORM_FRACTIONS = (0.0, 0.05, 0.1, 0.15)
#: Share of the field that particles cover, in discs about them, and its growth where they do not
#: fit.
COVER, LESS = 0.40, 0.92
#: Voxels in nm, the larger where the blur is 45 nm: a fifteenth of the time, and blurred fractions
#: that differ by 0.0003 rms.
COARSE_VOXEL_NM, FINE_VOXEL_NM = 7.0, _scene.MAX_VOXEL_NM
#: Larger particles are looked at with the largest pixels, so that fields stay small.
LARGE_NM = 140.0
#: Radius of the disc that holds a body, over that of the sphere of its volume, about.
REACH = 1.25


@dataclass(frozen=True)
class Field:
    """A field, and what the run is told of it."""

    kind: str
    number: int
    sample: Sample
    instrument: Instrument
    scan: Scan
    references: References
    told_resolution_nm: float

    @property
    def name(self) -> str:
        """Kind and number."""
        return f"{self.kind}-{self.number:03d}"

    @property
    def optics(self) -> str:
        """How the optics differ from what the run is told."""
        if self.instrument.psf != "gaussian":
            return self.instrument.psf
        off = self.told_resolution_nm / self.instrument.resolution_nm - 1
        return f"{off:+.0%}" if abs(off) > 1e-6 else "exact"


def field_of(kind: str, number: int) -> Field:
    """Draw a field.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    number : int
        From 0; shapes, optics, technique, D, shell and fraction take turns.

    Returns
    -------
    Field
    """
    rng = np.random.default_rng([ord(kind[0]), int(kind[1]), number])
    blurred = kind[1] == "3"
    sample = _sample(kind, number, rng)
    coherent = not blurred and (number + number // 4) % 2 == 0
    resolution = 45.0 if blurred else 10.0
    psf: Literal["gaussian", "tails"] = "tails" if number % 4 == 1 else "gaussian"
    told = resolution
    if number % 4 == 3:
        told = resolution * (1.1 if number // 8 % 2 else 0.9)
    instrument = Instrument(
        technique="ptychography" if coherent else "stxm",
        resolution_nm=resolution,
        psf=psf,
        photons=1500.0 if blurred else float(rng.uniform(8000, 10_000)),
    )
    pixel = 20.0 if blurred else float(rng.choice([5.0, 6.0, 7.0]))
    if not blurred and sample.radius_nm[0] > LARGE_NM:
        pixel = 7.0
    scan = Scan(
        pixel_nm=pixel,
        shape_px=_shape(sample, resolution, pixel, COVER),
        energy_shift_eV=0.1,
        drift_px=3.0,
        walk_px=0.2,
    )
    references = References(amplitude_error=0.01, shape_error=0.01)
    return Field(kind, number, sample, instrument, scan, references, told)


def _sample(kind: str, number: int, rng: np.random.Generator) -> Sample:
    """What is on a field."""
    blurred = kind[1] == "3"
    turn = number + number // 4
    common: dict[str, Any] = {
        "particles": int(rng.integers(10, 13)),
        "shape": SHAPES[number % 3],
        "geometry": "lamella" if kind[1] == "2" or (blurred and number % 5 > 2) else "dispersed",
        "delithiated_time_s": TIME_S,
        "surface_fraction": float(rng.uniform(0.45, 0.75)),
        "initial_fraction": float(rng.uniform(0.0, 0.1)),
        "radius_nm": (150.0, 260.0) if blurred else (60.0, 120.0),
    }
    if kind[0] == "C":
        shell = SHELLS_NM[turn % 4]
        return Sample(**common, mechanism="core-shell", shell_nm=shell)
    if kind[0] == "U":
        common["initial_fraction"] = UNIFORM_FRACTIONS[turn % 4]
        return Sample(**common, mechanism="uniform")
    coefficient, radii = _history(kind, number)
    return Sample(**{**common, "radius_nm": radii}, D_cm2_s=coefficient)


def _history(kind: str, number: int) -> tuple[float, tuple[float, float]]:
    """D, and radii that put the particles of a field into the range, or out of it."""
    blurred = kind[1] == "3"
    if kind[0] == "L":  # too slow and too fast in turn
        turn = (number // 2 + number // 4) % 2
        if blurred:
            return ((4e-18, (180.0, 230.0)), (1.6e-16, (150.0, 200.0)))[turn]
        fast = (1e-16, (60.0, 110.0)) if number // 2 % 2 else (3e-17, (60.0, 90.0))
        return ((2e-18, (130.0, 150.0)), fast)[turn]
    coefficient = D_CM2_S[D_TURNS[number % len(D_TURNS)]]
    if blurred:
        coefficient = max(coefficient, D_CM2_S[1])
    dt = coefficient * TIME_S * NM2_PER_CM2
    small, large = (150.0, 260.0) if blurred else (60.0, 120.0)
    lowest, highest = np.sqrt(dt / RANGE[1]), np.sqrt(dt / RANGE[0])
    low = max(small, 1.02 * lowest)
    return coefficient, (float(low), float(min(max(large, 1.25 * low), 0.98 * highest)))


def _shape(sample: Sample, resolution: float, pixel: float, cover: float) -> tuple[int, int]:
    """Rows and columns of a field that holds the particles."""
    apart = 1.5 * resolution + pixel
    reach = REACH * float(np.mean(sample.radius_nm)) + apart / 2
    side = np.sqrt(sample.particles * np.pi * reach**2 / cover) + 2 * apart + 4 * pixel
    rows = int(np.ceil(side / pixel))
    return rows, int(np.ceil(rows / (1 - Scan.open_share)))


def simulated(field: Field) -> tuple[Field, Simulation]:
    """Simulate a field, made larger until its particles fit."""
    _scene.MAX_VOXEL_NM = COARSE_VOXEL_NM if field.kind[1] == "3" else FINE_VOXEL_NM
    seed = 1000 * KINDS.index(field.kind) + field.number
    cover = COVER
    while True:
        try:
            made = simulate(field.sample, field.instrument, field.scan, field.references, seed=seed)
        except InputError:
            cover *= LESS
            shape = _shape(field.sample, field.instrument.resolution_nm, field.scan.pixel_nm, cover)
            field = replace(field, scan=replace(field.scan, shape_px=shape))
            continue
        return field, made


def plan_of(field: Field, given: xr.Dataset) -> Plan:
    """What a user would write who knows what the field is told; all else is default.

    Parameters
    ----------
    field : Field
        The field.
    given : Dataset, dims (energy,)
        References as given to the analysis.

    Returns
    -------
    Plan
    """
    sample, instrument = field.sample, field.instrument
    names = [str(name) for name in given.data_vars]
    return Plan(
        spectra={name: given[name] for name in names},
        fraction=names[1],
        edge=field.scan.edge,
        sample=ToldSample(
            geometry=sample.geometry,
            section_nm=sample.section_nm if sample.geometry == "lamella" else None,
            formula=sample.formula,
            density_g_cm3=sample.density_g_cm3,
            delithiated_time_s=sample.delithiated_time_s,
            delithiated_time_rel_error=0.1,
        ),
        instrument=ToldInstrument(
            resolution_nm=field.told_resolution_nm,
            dark_counts=0.0 if instrument.technique == "ptychography" else instrument.dark_counts,
            spectral_fwhm_eV=instrument.spectral_fwhm_eV,
        ),
    )


@dataclass(frozen=True)
class Stored:
    """The maps of a field with its truth.

    Attributes
    ----------
    field : Field
    given : Dataset, dims (energy,)
        References as given to the analysis.
    spectra, maps : Dataset
        Groups of the result.
    stack : DataArray, dims (energy, y, x)
        Axes and attributes of the stack; its values are not kept.
    truth : Dataset, dims (particle,)
        Truth of every particle, by its label.
    true_maps : Dataset, dims (y, x)
        ``particle_label``, ``thickness`` and ``edge_distance`` without noise.
    """

    field: Field
    given: xr.Dataset
    spectra: xr.Dataset
    maps: xr.Dataset
    stack: xr.DataArray
    truth: xr.Dataset
    true_maps: xr.Dataset

    def save(self, path: Path) -> None:
        """Write to a file; a reader never sees half of it."""
        part = path.with_suffix(".part")
        with open(part, "wb") as stream:
            pickle.dump(vars(self), stream, protocol=pickle.HIGHEST_PROTOCOL)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Stored:
        """Read from a file of this benchmark."""
        with open(path, "rb") as stream:
            return cls(**pickle.load(stream))


def group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """One group of a result or a truth."""
    node = tree[f"/entry/{name}"]
    assert isinstance(node, xr.DataTree)
    return node.to_dataset()


def stored(kind: str, number: int) -> Stored:
    """Make the maps of a field by the whole default run."""
    field, simulation = simulated(field_of(kind, number))
    plan = plan_of(field, simulation.given_references)
    # Particles are looked for later, in the stored maps.
    nothing = np.zeros(simulation.stack.shape[1:], dtype=np.int32)
    result = analyze(simulation.stack, replace(plan, labels=nothing))
    maps = group(result, "maps")
    return Stored(
        field=field,
        given=simulation.given_references,
        spectra=group(result, "spectra"),
        maps=maps.drop_vars(["particle_label", "agglomerate_label", "edge_distance"]),
        stack=_axes(simulation.stack),
        truth=_truth(field, simulation),
        true_maps=group(simulation.truth, "maps")[["particle_label", "thickness", "edge_distance"]],
    )


def _axes(stack: xr.DataArray) -> xr.DataArray:
    """A stack without its values, to be kept."""
    return stack.isel(y=slice(0, 1), x=slice(0, 1)).copy(
        data=np.zeros((stack.sizes["energy"], 1, 1), dtype=stack.dtype)
    )


def _truth(field: Field, simulation: Simulation) -> xr.Dataset:
    """Truth of every particle."""
    table, bodies = group(simulation.truth, "particles"), simulation.particles
    columns = ["radius", "body_radius", "cut_height", "shape", "thickness", "y", "x"]
    truth = table[columns]
    truth["dt_nm2"] = ("particle", np.array([body.dt_nm2 for body in bodies]))
    truth["surface_fraction"] = ("particle", np.array([body.surface for body in bodies]))
    truth["initial_fraction"] = ("particle", np.array([body.initial for body in bodies]))
    verdict = str(group(simulation.truth, "pooled")["verdict"].item())
    return truth.assign_attrs(verdict=verdict, shell_nm=field.sample.shell_nm)


def refitted(kept: Stored, options: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Find particles, profiles and models in stored maps.

    Parameters
    ----------
    kept : Stored
        The maps.
    options : dict, optional
        Options of stages that are not the default.

    Returns
    -------
    dict of Dataset
        Groups of the result, the maps with the labels among them.
    """
    plan = replace(plan_of(kept.field, kept.given), options=options or {})
    run = Run(kept.stack, plan)
    spectra = kept.spectra.copy()
    components = run.reference_set(
        float(spectra["energy_shift"]),
        float(spectra["energy_scale"]),
        float(np.nan_to_num(spectra["broadening"])),
    )
    run.groups = {"spectra": spectra, "maps": kept.maps.copy(), "components": components}
    with threadpool_limits(1):
        for step in STEPS[STEPS.index("particles") :]:
            run.run(step)
    del run.groups["spectra"], run.groups["components"]
    return run.groups


def file_of(folder: Path, kind: str, number: int) -> Path:
    """Where a field is kept."""
    return folder / f"{kind}-{number:03d}.pickle"


def kept_fields(folder: Path, kinds: list[str], most: int | None = None) -> Iterator[Path]:
    """Files of stored fields, in the order of kind and number."""
    for kind in kinds:
        yield from sorted(folder.glob(f"{kind}-*.pickle"))[:most]
