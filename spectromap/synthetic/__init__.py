"""Simulated electrodes with a known truth: what STXM and ptychography would record of them.

The simulator borrows no analysis stage, because it is there to test them: bodies are voxels,
the diffusion is solved on them, drift is a Fourier shift, and reference spectra are sums of
Voigt lines on tabulated absorption. What happens, in order:

1. particles (sphere, superellipsoid, random polyhedron, packed primaries of an agglomerate) are
   placed on the field without touching;
2. the fraction of the reduced component is solved in each whole body (`crank_sphere`, `diffuse`,
   core-shell or uniform); a lamella is cut afterwards;
3. thickness and component amounts are projected along z on cells finer than the pixels;
4. at each energy the transmission is blurred as the instrument blurs it (intensity in STXM,
   complex amplitude in ptychography), shifted by the stage drift, and sampled on pixels;
5. I0, stray light, dark counts and photon noise are added.

`simulate` does all of it, `simulate_scans` for several scans of one sample; `demo_field`,
`electrode_field` and `wide_electrode` are ready-made; `write` and `write_scans` leave beamline
files, references, the truth and a run description in a folder.

`simulate_crystal` and `simulate_crystal_series` make rocking scans of a strained crystal as Bragg
coherent diffraction records them, `simulate_ring` the spots of many crystals on a ring.
"""

from __future__ import annotations

from spectromap.synthetic._bodies import Particle, Polyhedron, Sphere, Superellipsoid
from spectromap.synthetic._crystal import (
    CoreShell,
    Crystal,
    CrystalSeries,
    CrystalSimulation,
    Dislocation,
    RadialGradient,
    Recording,
    RockingScan,
    simulate_crystal,
    simulate_crystal_series,
)
from spectromap.synthetic._fields import crank_sphere, diffuse, surface_distance
from spectromap.synthetic._files import write, write_scans
from spectromap.synthetic._options import Instrument, References, Sample, Scan, Simulation
from spectromap.synthetic._rings import (
    RingDetector,
    RingPopulation,
    default_populations,
    simulate_ring,
)
from spectromap.synthetic._scans import Extent, simulate_scans, wide_electrode
from spectromap.synthetic._simulate import demo_field, electrode_field, simulate
from spectromap.synthetic._spectra import EDGES, EdgeModel, default_energies, reference_spectra

__all__ = [
    "EDGES",
    "CoreShell",
    "Crystal",
    "CrystalSeries",
    "CrystalSimulation",
    "Dislocation",
    "EdgeModel",
    "Extent",
    "Instrument",
    "Particle",
    "Polyhedron",
    "RadialGradient",
    "Recording",
    "References",
    "RingDetector",
    "RingPopulation",
    "RockingScan",
    "Sample",
    "Scan",
    "Simulation",
    "Sphere",
    "Superellipsoid",
    "crank_sphere",
    "default_energies",
    "default_populations",
    "demo_field",
    "diffuse",
    "electrode_field",
    "reference_spectra",
    "simulate",
    "simulate_crystal",
    "simulate_crystal_series",
    "simulate_ring",
    "simulate_scans",
    "surface_distance",
    "wide_electrode",
    "write",
    "write_scans",
]
