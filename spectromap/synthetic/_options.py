"""What can be simulated: the options, their checks, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import xarray as xr

from spectromap._numerics import FloatArray, generator
from spectromap.schema import InputError
from spectromap.synthetic._bodies import Particle
from spectromap.synthetic._spectra import (
    DENSITY,
    EDGES,
    FORMULA,
    EdgeModel,
    absorption,
    default_energies,
)

NM2_PER_CM2 = 1e14


class Draw(IntEnum):
    """Keys of the random generators: what one draw needs never moves another."""

    PLACING = 0
    BODY = 1
    PRIMARIES = 2
    HISTORY = 3
    DRIFT = 4
    NOISE = 5
    REFERENCE = 6
    DEFECTS = 7
    AGGLOMERATE = 8


@dataclass(frozen=True)
class Sample:
    """What lies on the membrane or in the section.

    Attributes
    ----------
    geometry : {"dispersed", "lamella"}
        Whole particles, or bodies cut to a section after the diffusion (no surface at the cuts).
    mechanism : {"diffusion", "core-shell", "uniform"}
        Uniform particles have `initial_fraction` throughout.
    shape : {"sphere", "superellipsoid", "polyhedron", "mixed"}
    particles : int
        Loose particles, each outside of any agglomerate.
    radius_nm : tuple of float
        Smallest and largest radius, of the sphere with the volume of the body.
    D_cm2_s, delithiated_time_s : float
        Diffusion coefficient in cm2/s and the time it acted in s; the product is what shows.
    D_spread_dex, surface_spread : float
        Scatter between particles (1 sigma) of log10 D and of the surface fraction.
    agglomerate_spread : float
        Scatter between agglomerates (1 sigma) of the surface fraction.
    surface_fraction, initial_fraction : float
        Fraction of the reduced component held at the surface and at the start; of shell and core.
    shell_nm : float
        Thickness of the shell.
    section_nm : float
        Thickness of a lamella.
    skin_nm : float
        Thickness of a Mn2+ skin over everything (Mn L3 only).
    agglomerates, primaries : int
        Large secondary particles, and packed primaries in each: prisms about random bodies, one
        layer deep, so that they do not hide each other.
    small_agglomerates, small_primaries : int
        Small secondary particles, and primaries in each.
    gap_nm, apart_nm : float
        Gap between neighbouring primaries, and the least one between agglomerates and what is
        outside of them, if four times the former is less.
    inside_drop, interior_drop : float
        By how much the surface fraction is lower inside a large agglomerate than outside, and
        further in its interior than at its exterior.
    small_share : float
        Share of these drops that small agglomerates have.
    inside_Dt, interior_Dt : float
        Factors on D t inside, and further in the interior.
    overlap : float
        Share of the loose particles that lie partly over another one.
    at_border : bool
        Whether particles may stick out of the field.
    formula, density_g_cm3 : str, float
        What the particles are made of.
    state : {"discharged", "charged"} or None
    cycles : int or None
        For the run description, which leaves out what is None.
    """

    geometry: Literal["dispersed", "lamella"] = "dispersed"
    mechanism: Literal["diffusion", "core-shell", "uniform"] = "diffusion"
    shape: Literal["sphere", "superellipsoid", "polyhedron", "mixed"] = "mixed"
    particles: int = 14
    radius_nm: tuple[float, float] = (60.0, 120.0)
    D_cm2_s: float = 1e-17
    delithiated_time_s: float = 4e5
    D_spread_dex: float = 0.0
    surface_fraction: float = 0.6
    surface_spread: float = 0.0
    agglomerate_spread: float = 0.0
    initial_fraction: float = 0.05
    shell_nm: float = 20.0
    section_nm: float = 80.0
    skin_nm: float = 0.0
    agglomerates: int = 0
    primaries: int = 20
    small_agglomerates: int = 0
    small_primaries: int = 12
    gap_nm: float = 15.0
    apart_nm: float = 0.0
    inside_drop: float = 0.0
    interior_drop: float = 0.0
    small_share: float = 0.5
    inside_Dt: float = 1.0
    interior_Dt: float = 1.0
    overlap: float = 0.0
    at_border: bool = False
    formula: str = FORMULA
    density_g_cm3: float = DENSITY
    state: Literal["discharged", "charged"] | None = None
    cycles: int | None = None


@dataclass(frozen=True)
class Instrument:
    """How the instrument sees it.

    Attributes
    ----------
    technique : {"stxm", "ptychography"}
        Counts, blurred in intensity; or complex amplitudes, blurred as such.
    resolution_nm : float
        FWHM of the blur.
    psf : {"gaussian", "airy", "tails"}
        Airy is a full circular pupil; tails put a tenth of the light into a five times wider
        Gaussian.
    pixel_average : bool
        A pixel integrates its area (fly scan), or is the value at its centre.
    photons : float
        Mean counts of the open field per pixel and frame, without dark counts.
    dark_counts : float
        Mean dark counts per pixel and frame (STXM).
    stray_fraction : float
        Share of the light that the sample cannot absorb (STXM).
    spectral_fwhm_eV : float
        Line width of the monochromator; it averages transmission, not optical density.
    i0_slope, i0_dip : float
        Relative change of I0 over the energies, and depth of a smooth dip in their middle.
    ring_current_mA, current_decay : float
        Ring current at the start and the share that is lost during the stack.
    i0_steps : tuple of (frame, factor)
        From that frame on, I0 is multiplied by the factor.
    dead_pixels : int
        Pixels that always read zero.
    saturation_counts : float or None
        Counts above are clipped.
    phase_per_nm : float
        Phase per nm of particle in rad (ptychography).
    amplitude_scale : float
        Amplitude of the open field (ptychography).
    """

    technique: Literal["stxm", "ptychography"] = "stxm"
    resolution_nm: float = 10.0
    psf: Literal["gaussian", "airy", "tails"] = "gaussian"
    pixel_average: bool = True
    photons: float = 10_000.0
    dark_counts: float = 10.0
    stray_fraction: float = 0.0
    spectral_fwhm_eV: float = 0.25
    i0_slope: float = -0.05
    i0_dip: float = 0.03
    ring_current_mA: float = 500.0
    current_decay: float = 0.02
    i0_steps: tuple[tuple[int, float], ...] = ()
    dead_pixels: int = 0
    saturation_counts: float | None = None
    phase_per_nm: float = 1e-3
    amplitude_scale: float = 20.0


@dataclass(frozen=True)
class Scan:
    """Where and when it is recorded.

    Attributes
    ----------
    edge : str
        One of `EDGES`.
    energies : tuple of float or None
        Recorded energies in eV, ascending; `default_energies` if None.
    energy_shift_eV : float
        True minus recorded energy.
    pixel_nm : float
    shape_px : tuple of int
        Rows and columns.
    open_share : float
        Share of the columns, at the left, kept free of particles for I0.
    drift_px : float
        Linear drift over the whole stack, in a random direction.
    walk_px : float
        Random walk, rms of one step of one axis.
    jumps, jump_px : int, float
        Number and length of sudden jumps.
    dwell_s : float
        Dwell time per pixel.
    origin_nm : tuple of float
        Where the corner of the field, of lowest y and x, really lies on the sample.
    origin_error_nm : tuple of float
        By how much the file states it too far out in y and x: features of the sample appear at
        coordinates that are larger by this.
    """

    edge: str = "Mn L3"
    energies: tuple[float, ...] | None = None
    energy_shift_eV: float = 0.0
    pixel_nm: float = 7.0
    shape_px: tuple[int, int] = (200, 220)
    open_share: float = 0.12
    drift_px: float = 0.0
    walk_px: float = 0.0
    jumps: int = 0
    jump_px: float = 0.0
    dwell_s: float = 0.001
    origin_nm: tuple[float, float] = (0.0, 0.0)
    origin_error_nm: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class References:
    """What the analysis is told of the pure components, and how that differs from the truth.

    Attributes
    ----------
    units : {"per_nm", "od", "cm2_per_g", "per_atom"}
        Per atom means all the absorption, divided by the atoms of the edge element.
    compound : bool
        The reduced component is the optical density of another compound (Mn2O3), which only its
        edge jump puts on the scale of the sample.
    fwhm_eV : float or None
        Energy resolution; None is that of the stack.
    amplitude_error, shape_error : float
        Relative errors (1 sigma) of a whole spectrum, and of its white lines from place to place.
    energy_offset_eV : float
        The references are recorded too high by this much.
    noise : float
        Relative noise of each point.
    components : int
        How many components are given, in the order of `EDGES`.
    """

    units: Literal["per_nm", "od", "cm2_per_g", "per_atom"] = "per_nm"
    compound: bool = False
    fwhm_eV: float | None = None
    amplitude_error: float = 0.0
    shape_error: float = 0.0
    energy_offset_eV: float = 0.0
    noise: float = 0.0
    components: int = 2


@dataclass(frozen=True)
class Simulation:
    """A simulated data set and everything that is true of it.

    Attributes
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts or complex amplitudes, at the recorded energies.
    truth : DataTree
        Groups and names of a result file, in the frame of median drift and in the coordinates
        that the file states.
    references : Dataset, dims (energy,)
        True spectra in nm-1.
    given_references : Dataset, dims (energy,)
        What the analysis is told; the units of each variable are in its attrs.
    run : dict
        The run description that fits the files of `write`.
    particles : tuple of Particle
        The bodies on the field, in the order of their labels, where they really lie.
    """

    stack: xr.DataArray
    truth: xr.DataTree
    references: xr.Dataset
    given_references: xr.Dataset
    run: dict[str, Any]
    particles: tuple[Particle, ...]


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "geometry": ("dispersed", "lamella"),
    "mechanism": ("diffusion", "core-shell", "uniform"),
    "shape": ("sphere", "superellipsoid", "polyhedron", "mixed"),
    "technique": ("stxm", "ptychography"),
    "psf": ("gaussian", "airy", "tails"),
    "units": ("per_nm", "od", "cm2_per_g", "per_atom"),
    "edge": tuple(EDGES),
    "state": ("discharged", "charged", None),
}
_FRACTIONS = (
    *("surface_fraction", "initial_fraction", "stray_fraction", "overlap", "open_share"),
    "small_share",
)
_POSITIVE = ("pixel_nm", "photons", "section_nm", "density_g_cm3", "amplitude_scale", "dwell_s")
_NOT_NEGATIVE = (
    *(
        "particles",
        "agglomerates",
        "small_agglomerates",
        "cycles",
        "D_cm2_s",
        "delithiated_time_s",
        "shell_nm",
        "skin_nm",
        "gap_nm",
        "apart_nm",
    ),
    *("resolution_nm", "dark_counts", "spectral_fwhm_eV", "dead_pixels", "jumps", "fwhm_eV"),
)


def _check(*options: object) -> None:
    """Refuse choices that do not exist and numbers that make no sense."""
    for group in options:
        for name, value in vars(group).items():
            if name in _CHOICES and value not in _CHOICES[name]:
                problem = f"{name} is {value!r}"
                remedy = f"Choose one of {', '.join(str(c) for c in _CHOICES[name])}."
            elif name in _FRACTIONS and not 0 <= value <= 1:
                problem, remedy = f"{name} is {value}", "It lies between 0 and 1."
            elif name in _POSITIVE and not value > 0:
                problem, remedy = f"{name} is {value}", "It must be above zero."
            elif name in _NOT_NEGATIVE and value is not None and not value >= 0:
                problem, remedy = f"{name} is {value}", "It must not be below zero."
            elif isinstance(value, (int, float)) and not np.isfinite(value):
                problem, remedy = f"{name} is {value}", "Give a finite number."
            else:
                continue
            raise InputError(problem, where=f"{type(group).__name__}.{name}", remedy=remedy)


@dataclass(frozen=True)
class Setup:
    """All the options of one simulation, checked.

    Scans of one sample share the seed. `stream` keeps their drift and noise apart, and
    `reference_stream` the faults of references of different edges. `free_columns` is what is
    known to be open where the placing of particles did not keep it so.
    """

    sample: Sample
    instrument: Instrument
    scan: Scan
    references: References
    seed: int
    stream: int = 0
    reference_stream: int = 0
    free_columns: int | None = None

    def __post_init__(self) -> None:
        _check(self.sample, self.instrument, self.scan, self.references)
        _check_together(self.sample, self.scan)

    @property
    def model(self) -> EdgeModel:
        """The edge."""
        return EDGES[self.scan.edge]

    @property
    def names(self) -> list[str]:
        """Components that are in the sample."""
        return list(self.model.lines)[: 3 if self.sample.skin_nm > 0 else 2]

    @property
    def coherent(self) -> bool:
        """Whether amplitudes are recorded."""
        return self.instrument.technique == "ptychography"

    @property
    def energy(self) -> FloatArray:
        """Energies of the frames as the file states them, in eV."""
        given = self.scan.energies
        return default_energies(self.scan.edge) if given is None else np.asarray(given, dtype=float)

    @property
    def true_energy(self) -> FloatArray:
        """Energies at which the frames are really recorded, in eV."""
        return self.energy + self.scan.energy_shift_eV

    @property
    def open_columns(self) -> int:
        """Columns at the left without particles."""
        if self.free_columns is not None:
            return self.free_columns
        return int(self.scan.open_share * self.scan.shape_px[1])

    @property
    def file_origin(self) -> tuple[float, float]:
        """Where the file states the corner of the field, in nm."""
        (y, x), (error_y, error_x) = self.scan.origin_nm, self.scan.origin_error_nm
        return y + error_y, x + error_x

    def random(self, draw: Draw, *key: int) -> np.random.Generator:
        """Generator of what differs from scan to scan."""
        return generator(self.seed, draw, *key, *([self.stream] if self.stream else []))

    def spectra(self, energy: FloatArray) -> FloatArray:
        """Absorption (component, energy) of what is in the sample, in nm-1."""
        formula, density = self.sample.formula, self.sample.density_g_cm3
        return np.array(
            [
                np.sum(absorption(self.scan.edge, name, formula, density, energy), axis=0)
                for name in self.names
            ]
        )


def _check_together(sample: Sample, scan: Scan) -> None:
    """Refuse options that contradict each other."""
    low, high = sample.radius_nm
    if not 0 < low <= high:
        raise InputError(
            f"radius_nm is {sample.radius_nm}",
            where="Sample.radius_nm",
            remedy="Give the smallest and the largest radius, both above zero.",
        )
    for count, name in (
        (sample.agglomerates, "primaries"),
        (sample.small_agglomerates, "small_primaries"),
    ):
        if count and (getattr(sample, name) < 1 or sample.gap_nm >= low):
            raise InputError(
                f"{getattr(sample, name)} primaries {sample.gap_nm:g} nm apart make no agglomerate",
                where=f"Sample.{name}",
                remedy="Take at least one, and a gap smaller than the radius.",
            )
    if sample.skin_nm > 0 and len(EDGES[scan.edge].lines) < 3:
        raise InputError(
            f"there is no spectrum for a skin at {scan.edge}",
            where="Sample.skin_nm",
            remedy="A skin of Mn2+ can be simulated at Mn L3.",
        )
    if scan.energies is not None and (not scan.energies or np.any(np.diff(scan.energies) < 0)):
        raise InputError(
            "the energies are not ascending",
            where="Scan.energies",
            remedy="Sort them; at least one is needed.",
        )
