"""How well particles are found: simulated fields whose particles are known, default settings.

Nothing is told of the size of the particles. Most maps are made without a stack: the transmission
at six absorptions is blurred as the instrument blurs it (intensity, or complex amplitude), counted
in photons, and turned back into thickness by photon-weighted least squares. Two fields go through
a whole stack and the default run. Figures of a field: mean intersection over union (IoU) of every
true particle with the label that covers most of it (0 where there is none), and precision, recall
and F1 at an IoU of 0.5.

Every field is a line of the CSV file; a line is printed for every kind with its bars, which its
mean over seeds must reach. The exit code is 1 if one does not.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import segment
from spectromap.pipeline import Plan, analyze
from spectromap.schema import Instrument as ToldInstrument
from spectromap.schema import Sample as ToldSample
from spectromap.synthetic import Instrument, Polyhedron, References, Sample, Scan, simulate
from spectromap.synthetic._instrument import Optics, drift
from spectromap.synthetic._options import Setup
from spectromap.synthetic._scene import Scene, _make_grid, _make_particles, _placing_box, _project
from spectromap.synthetic._truth import _label_maps

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

#: Absorption per nm at which the maps are made, from before the Mn L3 edge to its white line.
ABSORPTIONS = np.array([0.002, 0.006, 0.010, 0.014, 0.02, 0.03])
#: Share of the dose of a stack of 60 energies that an offset, fitted as well, leaves each of them.
DOSE = 0.8
PHASE_PER_NM = 1e-3

PTYCHOGRAPHY = Instrument(technique="ptychography", resolution_nm=10.0, photons=10_000.0)
SHARP = Instrument(resolution_nm=10.0, photons=5000.0)
STXM = Instrument(resolution_nm=45.0, photons=1500.0)
FINE, COARSE = Scan(pixel_nm=5.0, shape_px=(240, 270)), Scan(pixel_nm=20.0, shape_px=(150, 180))
WIDE = Scan(pixel_nm=5.0, shape_px=(280, 320))
DENSE = Scan(pixel_nm=40.0, shape_px=(170, 190))
PACKED: dict[str, Any] = {"particles": 3, "agglomerates": 1, "primaries": 20}
LARGE: dict[str, Any] = {"particles": 16, "radius_nm": (150.0, 260.0)}
SMALL: dict[str, Any] = {"particles": 24, "radius_nm": (70.0, 130.0)}
AGGLOMERATE: dict[str, Any] = {
    "particles": 4,
    "agglomerates": 1,
    "primaries": 150,
    "radius_nm": (180.0, 180.0),
    "gap_nm": 40.0,
}
SECTION: dict[str, Any] = {"geometry": "lamella"}


@dataclass(frozen=True)
class Kind:
    """A kind of field and its bars.

    Attributes
    ----------
    name : str
    sample, instrument, scan
        See `spectromap.synthetic`.
    iou, f1 : float
        Least mean over seeds.
    uneven_nm : float
        Height of an uneven background that no quadratic follows.
    whole_run : bool
        Make a stack and run the whole method, instead of only a thickness map.
    """

    name: str
    sample: Sample
    instrument: Instrument
    scan: Scan
    iou: float = 0.90
    f1: float = 0.0
    uneven_nm: float = 0.0
    whole_run: bool = False


def _kind(name: str, options: dict[str, Any], *rest: Any, **more: Any) -> Kind:
    """A kind of field; what happened in the particles does not matter here."""
    return Kind(name, Sample(**{"particles": 14, **options}, mechanism="uniform"), *rest, **more)


KINDS = [
    _kind("ptycho dispersed", {}, PTYCHOGRAPHY, FINE),
    _kind("ptycho section", SECTION, PTYCHOGRAPHY, FINE),
    _kind("ptycho overlapping", {"overlap": 0.3}, PTYCHOGRAPHY, FINE),
    _kind("ptycho touching", {**PACKED, "gap_nm": 2.0}, PTYCHOGRAPHY, WIDE),
    _kind("ptycho touching section", {**PACKED, **SECTION, "gap_nm": 2.0}, PTYCHOGRAPHY, WIDE),
    _kind("ptycho section uneven", SECTION, PTYCHOGRAPHY, FINE, uneven_nm=40.0),
    _kind("sharp STXM dispersed", {}, SHARP, FINE),
    _kind("STXM dispersed", LARGE, STXM, COARSE, iou=0.85),
    _kind("STXM section", {**LARGE, **SECTION}, STXM, COARSE, iou=0.85),
    _kind("STXM small", SMALL, STXM, COARSE, iou=0.85),
    _kind("STXM section small", {**SMALL, **SECTION}, STXM, COARSE, iou=0.85),
    _kind("STXM overlapping", {**LARGE, "overlap": 0.3}, STXM, COARSE, iou=0.85),
    _kind("STXM section uneven", {**LARGE, **SECTION}, STXM, COARSE, iou=0.85, uneven_nm=40.0),
    _kind("dense", AGGLOMERATE, STXM, DENSE, iou=0.85, f1=0.97),
    _kind("dense section", {**AGGLOMERATE, **SECTION}, STXM, DENSE, iou=0.85, f1=0.97),
    _kind("ptycho dispersed, run", {}, PTYCHOGRAPHY, FINE, whole_run=True),
    _kind("STXM dispersed, run", LARGE, STXM, COARSE, iou=0.85, whole_run=True),
]


def _scene(setup: Setup) -> Scene:
    """The scene of a simulation on coarser voxels: only its shadow is wanted."""
    shifts = drift(setup)
    grid = replace(_make_grid(setup, shifts), voxels=1)
    particles = _make_particles(setup.sample, *_placing_box(setup, shifts), setup.seed)
    near = []
    for particle in particles:
        body = particle.body
        if isinstance(body, Polyhedron):  # faces that do not reach the body cost time
            touch = body.offsets < body.reach
            body = Polyhedron(body.normals[touch], body.offsets[touch])
        near.append(replace(particle, body=body))
    shadows = tuple(_project(particle, grid, setup.sample) for particle in near)
    amounts = np.zeros((1, *grid.cells), dtype=np.float32)
    for shadow in shadows:
        amounts[0][shadow.window()] += np.maximum(shadow.thickness, 0)
    return Scene(grid, tuple(near), shadows, amounts)


def _seen(thickness: Array, per_nm: float, optics: Optics, coherent: bool) -> Array:
    """Transmission as the instrument sees it."""
    if coherent:
        wave = np.exp(-(0.5 * per_nm + 1j * PHASE_PER_NM) * thickness).astype(np.complex64)
        return np.asarray(np.abs(1 - optics.record(1 - wave, np.zeros(2))) ** 2)
    absorbed = (1 - np.exp(-per_nm * thickness)).astype(np.float32)
    return np.asarray(1 - optics.record(absorbed, np.zeros(2)))


def uneven(shape: tuple[int, int], height: float) -> Array:
    """A background in nm that rises and falls over the field."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    wave = np.sin(2.2 * x + 1) * np.cos(2.7 * y)
    return np.asarray(height * (wave - wave.min()) / np.ptp(wave))


def thickness_map(kind: Kind, seed: int) -> tuple[xr.DataArray, xr.DataArray, Labels]:
    """Thickness and its errors as a fit would find them, and the true labels."""
    setup = Setup(kind.sample, kind.instrument, kind.scan, References(), seed)
    scene = _scene(setup)
    optics = Optics(kind.instrument, scene.grid)
    rng = np.random.default_rng([seed, 99])
    photons = DOSE * kind.instrument.photons
    total, weight = np.zeros((2, *kind.scan.shape_px))
    for per_nm in ABSORPTIONS:
        seen = _seen(scene.amounts[0], per_nm, optics, setup.coherent)
        counted = np.maximum(rng.poisson(photons * np.maximum(seen, 0)), 1)
        total -= per_nm * counted * np.log(counted / photons)
        weight += per_nm**2 * counted
    values = total / weight + uneven(kind.scan.shape_px, kind.uneven_nm)
    coords = {
        name: (name, (np.arange(n) + 0.5) * kind.scan.pixel_nm, {"units": "nm"})
        for name, n in zip("yx", kind.scan.shape_px, strict=True)
    }
    maps = (
        xr.DataArray(v, dims=("y", "x"), coords=coords, attrs={"units": "nm"})
        for v in (values, 1 / np.sqrt(weight))
    )
    thickness, errors = maps
    return thickness, errors, _label_maps(scene.shadows, scene.grid)[0]


def whole_run(kind: Kind, seed: int) -> tuple[Labels, Labels]:
    """Labels that the default run finds in a simulated stack, and the true ones."""
    made = simulate(kind.sample, kind.instrument, kind.scan, seed=seed)
    spectra = {str(n): made.given_references[n] for n in made.given_references.data_vars}
    plan = Plan(
        spectra=spectra,
        fraction=list(spectra)[1],
        edge=kind.scan.edge,
        sample=ToldSample(formula=kind.sample.formula, density_g_cm3=kind.sample.density_g_cm3),
        instrument=ToldInstrument(
            resolution_nm=kind.instrument.resolution_nm,
            dark_counts=kind.instrument.dark_counts if kind.instrument is STXM else 0.0,
            spectral_fwhm_eV=kind.instrument.spectral_fwhm_eV,
        ),
    )
    labels = analyze(made.stack, plan)["/entry/maps/particle_label"].values
    return np.asarray(labels), np.asarray(made.truth["/entry/maps/particle_label"].values)


def compared(found: Labels, truth: Labels) -> dict[str, float]:
    """Mean IoU over the true particles, and precision, recall and F1 at an IoU of 0.5."""
    best = []
    for number in np.unique(truth[truth > 0]):
        mine = truth == number
        hits = np.bincount(found[mine], minlength=1)
        hits[0] = 0
        either = mine | (found == hits.argmax())
        best.append(hits.max() / either.sum() if hits.max() else 0.0)
    right = int(np.sum(np.array(best) > 0.5))
    count = np.unique(found[found > 0]).size
    return {
        "iou": float(np.mean(best)),
        "f1": 2 * right / (len(best) + count),
        "precision": right / max(count, 1),
        "recall": right / len(best),
    }


def measured(kind: Kind, seed: int) -> dict[str, float]:
    """Figures of one field."""
    if kind.whole_run:
        return compared(*whole_run(kind, seed))
    thickness, errors, truth = thickness_map(kind, seed)
    found = segment.find_particles(thickness, errors, kind.instrument.resolution_nm)
    return compared(found.values, truth)


def rows_of(kind: Kind, seeds: range) -> Iterator[dict[str, Any]]:
    """One row for every seed."""
    for seed in seeds:
        figures = measured(kind, seed)
        yield {"field": kind.name, "seed": seed, **{k: f"{v:.4f}" for k, v in figures.items()}}


def main() -> int:
    """Measure, print, write; the exit code says whether every bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many; whole runs take one")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--field", default="", help="only fields with this text in their name")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    logging.getLogger("spectromap").setLevel(logging.ERROR)
    start, rows, missed = time.monotonic(), [], 0
    print(f"{'field':<25} {'IoU':>6} {'bar':>6} {'F1':>6} {'bar':>6} {'prec.':>6} {'recall':>6}")
    for kind in (k for k in KINDS if options.field in k.name):
        count = 1 if kind.whole_run else options.seeds
        found = list(rows_of(kind, range(options.first, options.first + count)))
        mean = {
            name: float(np.mean([float(row[name]) for row in found]))
            for name in ("iou", "f1", "precision", "recall")
        }
        met = mean["iou"] >= kind.iou and mean["f1"] >= kind.f1
        bar = f"{kind.f1:>6.2f}" if kind.f1 else f"{'':>6}"
        print(
            f"{kind.name:<25} {mean['iou']:>6.3f} {kind.iou:>6.2f} {mean['f1']:>6.3f} {bar}"
            f" {mean['precision']:>6.3f} {mean['recall']:>6.3f} {'' if met else ' MISSED'}",
            flush=True,
        )
        rows += found
        missed += not met
    with open(options.out, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} fields, {missed} kinds miss a bar, {time.monotonic() - start:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
