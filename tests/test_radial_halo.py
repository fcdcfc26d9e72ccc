"""Wings of the point spread function: fields with wings of known share and width, and without.

The forward model is the test's own: spheres by formula, two Gaussians on the transmission (or its
modulus), a fit of every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap.pipeline import Plan, analyze
from spectromap.radial.context import Context, optics_of
from spectromap.radial.halo import Halo, estimate_halo
from spectromap.radial.solid_view import Field
from spectromap.schema import Instrument, Sample
from spectromap.synthetic import Instrument as Simulated
from spectromap.synthetic import Sample as Particles
from spectromap.synthetic import Scan, default_energies, simulate

Array = NDArray[np.float64]

PIXEL, RESOLUTION, COUNT, FINE = 10.0, 20.0, 120, 3
#: Noise of the thickness [nm].
NOISE = 2.0
ENERGY = np.linspace(636.0, 648.0, 16)
MN4 = 0.006 + 0.012 * np.exp(-(((ENERGY - 643.4) / 1.0) ** 2))
MN3 = 0.006 + 0.015 * np.exp(-(((ENERGY - 641.8) / 1.0) ** 2))


@dataclass(frozen=True)
class Made:
    """Thickness of both components as they are seen [nm], and where the particles are."""

    base: Array
    mapped: Array
    labels: NDArray[np.intp]
    distance: Array
    technique: str

    def halo(self, seed: int, background: float = 0.0) -> Halo:
        """What is found in a measurement of it."""
        rng = np.random.default_rng(seed)
        whole = self.base + self.mapped
        values = {
            "thickness": (whole + background + rng.normal(0.0, NOISE, whole.shape), "nm"),
            "thickness_errors": (np.full(whole.shape, NOISE), "nm"),
            "mn3_fraction": (self.mapped / np.where(np.abs(whole) > 1.0, whole, 1.0), "1"),
            "mn3_fraction_errors": (np.full(whole.shape, 0.01), "1"),
            "particle_label": (self.labels, "1"),
            "edge_distance": (self.distance, "nm"),
        }
        axis = (np.arange(COUNT) + 0.5) * PIXEL
        maps = xr.Dataset(
            {name: (("y", "x"), v, {"units": u}) for name, (v, u) in values.items()},
            coords={name: (name, axis, {"units": "nm"}) for name in ("y", "x")},
        )
        units = {"units": "nm-1"}
        context = Context(
            resolution_nm=RESOLUTION,
            technique=self.technique,
            references=xr.Dataset({"mn4": ("energy", MN4, units), "mn3": ("energy", MN3, units)}),
        )
        return Field(maps, PIXEL, context, optics_of(context)).halo


@lru_cache(maxsize=8)
def made(share: float, width: float, seed: int, technique: str = "stxm") -> Made:
    """Nine spheres of 50 to 100 nm; `width` of the wings in resolutions."""
    rng = np.random.default_rng(seed)
    balls: list[tuple[float, float, float]] = []
    while len(balls) < 9:
        y, x = rng.uniform(150.0, COUNT * PIXEL - 150.0, 2)
        radius = rng.uniform(50.0, 100.0)
        if all(np.hypot(y - cy, x - cx) > radius + other + 40.0 for cy, cx, other in balls):
            balls.append((y, x, radius))
    cells, pixels = ((np.arange(COUNT * n) + 0.5) * PIXEL / n for n in (FINE, 1))
    path, inside = np.zeros((cells.size, cells.size)), []
    for y, x, radius in balls:
        off = np.hypot(cells[:, None] - y, cells - x)
        path += 2.0 * np.sqrt(np.maximum(radius**2 - off**2, 0.0))
        inside.append(radius - np.hypot(pixels[:, None] - y, pixels - x))
    power = 0.5 if technique == "ptychography" else 1.0
    sigma = RESOLUTION / PIXEL * FINE / 2.3548
    seen = []
    for spectrum in 0.8 * MN4 + 0.2 * MN3:
        passed = np.exp(-power * spectrum * path)
        soft = (1.0 - share) * ndimage.gaussian_filter(passed, sigma, mode="nearest")
        if share > 0:
            soft += share * ndimage.gaussian_filter(passed, width * sigma, mode="nearest")
        seen.append(soft.reshape(COUNT, FINE, COUNT, FINE).mean(axis=(1, 3)) ** (1.0 / power))
    columns = np.column_stack([MN4, MN3, np.ones(ENERGY.size)])
    density = -np.log(np.array(seen)).reshape(ENERGY.size, -1)
    found = np.linalg.lstsq(columns, density, rcond=None)[0].reshape(3, COUNT, COUNT)
    nearest = np.array(inside).max(axis=0)
    labels = np.where(nearest > 0, np.array(inside).argmax(axis=0) + 1, 0)
    return Made(found[0], found[1], labels, nearest, technique)


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
@pytest.mark.parametrize(("share", "width"), [(0.1, 5.0), (0.15, 8.0)])
def test_wings_are_found_with_their_share_and_width(
    technique: str, share: float, width: float
) -> None:
    found = [
        made(share, width, field, technique).halo(10 * field + k)
        for field in (1, 2)
        for k in (0, 1)
    ]
    # Over what is seen to be absorbed, from which the wings are missing.
    off = np.array([halo.share - share / (1.0 - share) for halo in found])
    stated = np.array([halo.error for halo in found])
    widths = np.array([halo.fwhm_nm for halo in found]) / (width * RESOLUTION)
    assert np.sqrt(np.mean((off / stated) ** 2)) < 1.5
    assert np.median(stated) < 0.04
    assert np.median(np.abs(off)) < 0.015
    assert abs(np.log(widths).mean()) < 0.15


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
def test_there_are_no_wings_where_there_are_none(technique: str) -> None:
    for field in (1, 2):
        scene = made(0.0, 1.0, field, technique)
        assert all(scene.halo(seed, background=1.0) == Halo() for seed in range(10))


def test_too_little_empty_space_says_nothing() -> None:
    scene = made(0.15, 8.0, 1)
    thickness, away = scene.base + scene.mapped, np.maximum(-scene.distance, 0.0)
    shadow = np.where(scene.labels > 0, thickness, 0.0)
    errors = np.full(thickness.shape, NOISE)

    def share(empty: Array) -> float:
        return estimate_halo(thickness, errors, shadow, empty, (PIXEL, PIXEL), RESOLUTION).share

    assert share(away) > 0.05
    assert share(np.minimum(away, 1.5 * RESOLUTION)) == 0.0
    few = np.zeros_like(away)
    few[:15, :15] = 500.0
    assert share(few) == 0.0
    shadow[:] = 0.0
    assert share(away) == 0.0
    errors[:] = np.nan
    assert share(away) == 0.0


def test_uniform_particles_under_wings_have_no_gradient(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tenth of the light in wings of five times the width, of which the run is told nothing."""
    field = simulate(
        Particles(
            mechanism="uniform",
            initial_fraction=0.1,
            shape="sphere",
            particles=5,
            radius_nm=(150.0, 210.0),
        ),
        Simulated(resolution_nm=45.0, psf="tails", photons=8000.0),
        Scan(pixel_nm=20.0, shape_px=(120, 130), energies=tuple(default_energies("Mn L3")[::2])),
        seed=2,
    )
    plan = Plan(
        dict(field.given_references),
        "mn3",
        sample=Sample(formula=Particles().formula, density_g_cm3=Particles().density_g_cm3),
        instrument=Instrument(resolution_nm=45.0, dark_counts=10.0),
    )
    result = analyze(field.stack, plan)
    assert result["entry/pooled"]["verdict"].item() == "no gradient"
    assert set(result["entry/models"]["verdict"].values) == {"no gradient"}
    assert "wings of the point spread function" in caplog.text
