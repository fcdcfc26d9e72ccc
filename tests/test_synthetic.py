"""The simulator against what can be known without it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import xarray as xr
import xraydb
import yaml
from scipy.spatial import cKDTree
from skimage.registration import phase_cross_correlation

from spectromap import schema
from spectromap.heterogeneity import statistics
from spectromap.synthetic import (
    EDGES,
    Extent,
    Instrument,
    Polyhedron,
    References,
    Sample,
    Scan,
    Simulation,
    Sphere,
    Superellipsoid,
    crank_sphere,
    default_energies,
    demo_field,
    diffuse,
    electrode_field,
    reference_spectra,
    simulate,
    simulate_scans,
    surface_distance,
    wide_electrode,
    write,
    write_scans,
)
from spectromap.synthetic._bodies import random_body
from spectromap.synthetic._places import heterogeneity

#: So many photons that noise is below any tolerance here, and nothing else that disturbs.
CLEAN = Instrument(
    photons=1e10,
    dark_counts=0.0,
    spectral_fwhm_eV=0.0,
    i0_slope=0.0,
    i0_dip=0.0,
    current_decay=0.0,
)
FEW = (636.0, 642.0, 643.2, 655.0)
SMALL = Scan(pixel_nm=8.0, shape_px=(90, 110), energies=FEW)
SOME = Sample(particles=4, radius_nm=(50.0, 80.0), mechanism="uniform")


def maps(simulation: Simulation) -> xr.Dataset:
    return simulation.truth["entry/maps"].to_dataset()


def table(simulation: Simulation) -> xr.Dataset:
    return simulation.truth["entry/particles"].to_dataset()


def transmission(simulation: Simulation) -> np.ndarray:
    """Frames over the true open field, without dark counts."""
    i0 = simulation.truth["entry/spectra/i0"].values
    return np.asarray(simulation.stack.values, dtype=float) / i0[:, None, None]


def grid(radius: float, voxel: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel centres about a body, off centre by parts of a voxel."""
    half = int(radius / voxel) + 3
    axis = ((np.arange(2 * half) - half + 0.5) * voxel).astype(np.float32)
    return axis[:, None, None] + 0.3, axis[None, :, None] - 0.4, axis + 0.7


@lru_cache(maxsize=1)
def electrode() -> Simulation:
    return electrode_field(seed=1)


@lru_cache(maxsize=1)
def demo() -> Simulation:
    return demo_field(seed=0)


# ------------------------------------------------------------------------------- the spectra


@pytest.mark.parametrize(
    ("edge", "energies"),
    [("Mn L3", (620.0, 700.0)), ("Ni L3", (830.0, 900.0)), ("O K", (510.0, 588.0))],
)
def test_references_are_tabulated_absorption_away_from_the_edge(
    edge: str, energies: tuple[float, ...]
) -> None:
    spectra = reference_spectra(edge, energies=energies)
    formula, density = Sample().formula, Sample().density_g_cm3
    expected = xraydb.material_mu(formula, np.array(energies), density=density) * 1e-7
    for name in spectra:
        np.testing.assert_allclose(spectra[name], expected, rtol=0.03, err_msg=str(name))
        assert spectra[name].attrs["units"] == "nm-1"


def test_white_lines_are_where_and_as_high_as_published() -> None:
    spectra = reference_spectra()
    jump = float(spectra.mn4.sel(energy=slice(695, 700)).mean()) - 0.0028
    for name, peak in (("mn4", 643.3), ("mn3", 642.0), ("mn2", 640.2)):
        energy = float(spectra.energy[int(spectra[name].values.argmax())])
        assert energy == pytest.approx(peak, abs=0.25), name
        assert 4 < float(spectra[name].max()) / jump < 18
    # The first line of the Mn4+ doublet is a peak of its own.
    first = spectra.mn4.sel(energy=slice(640.5, 641.5)).max()
    assert float(first) > 1.2 * float(spectra.mn4.sel(energy=slice(641.5, 642.2)).min())
    assert 3.0 < 200 * float(spectra.mn4.max()) < 5.0


def test_white_line_areas_follow_the_number_of_3d_holes() -> None:
    spectra = reference_spectra().sel(energy=slice(636, 660))
    area = {name: float(spectra[name].integrate("energy")) for name in ("mn4", "mn3", "mn2")}
    assert area["mn4"] > area["mn3"] > area["mn2"]


@pytest.mark.parametrize(
    ("edge", "component", "peak"),
    [
        ("Ni L3", "ni2", 852.9),
        ("Ni L3", "ni4", 855.5),
        ("O K", "o_oxidised", 530.8),
        ("O K", "o_reduced", 532.0),
    ],
)
def test_white_lines_of_the_other_edges(edge: str, component: str, peak: float) -> None:
    spectra = reference_spectra(edge)
    before_continuum = spectra[component].sel(energy=slice(None, 533.0 if edge == "O K" else None))
    assert float(before_continuum.idxmax()) == pytest.approx(peak, abs=0.3)


def test_holes_on_oxygen_show_below_the_lines_of_the_reduced_oxide() -> None:
    spectra = reference_spectra("O K")
    rise = {
        str(name): float(values.sel(energy=528.5, method="nearest") - values.sel(energy=524.0))
        for name, values in spectra.data_vars.items()
    }
    assert rise["o_oxidised"] > 4 * rise["o_reduced"] > 0


@pytest.mark.parametrize(
    ("edge", "before", "after"),
    [
        ("Mn L3", (575, 625), (690, 700)),
        ("Ni L3", (806, 840), (895, 905)),
        ("O K", (450, 525), (580, 590)),
    ],
)
def test_edge_jump_is_that_of_the_tables(
    edge: str, before: tuple[float, float], after: tuple[float, float]
) -> None:
    element = EDGES[edge].element
    atoms = xraydb.chemparse(Sample().formula)
    mass = sum(n * xraydb.atomic_mass(s) for s, n in atoms.items())
    share = 4.25e-7 * atoms[element] * xraydb.atomic_mass(element) / mass
    low, high = np.linspace(*before, 30), np.linspace(*after, 10)
    line = np.polyfit(np.log(low), np.log(xraydb.mu_elam(element, low)), 1)
    others = sum(
        4.25e-7 * n * xraydb.atomic_mass(s) / mass * xraydb.mu_elam(s, high)
        for s, n in atoms.items()
        if s != element
    )
    below = share * np.exp(np.polyval(line, np.log(high))) + others
    jump = share * xraydb.mu_elam(element, high) + others - below
    for name, values in reference_spectra(edge, energies=high).data_vars.items():
        # What the white lines leave so far above is a few per cent.
        np.testing.assert_allclose(values - below, jump, rtol=0.05, err_msg=str(name))


@pytest.mark.parametrize("edge", list(EDGES))
def test_default_energies(edge: str) -> None:
    energy = default_energies(edge)
    low, high = EDGES[edge].span
    assert 55 <= energy.size <= 65
    assert np.all(np.diff(energy) > 0)
    assert low < energy[0]
    assert energy[-1] < high
    first, reduced = EDGES[edge].lines[EDGES[edge].reduced][0], EDGES[edge].reduced
    assert reduced in reference_spectra(edge)
    assert np.min(np.diff(energy)[np.abs(energy[1:] - first[0]) < 1]) <= 0.25


def test_unknown_edge_is_refused() -> None:
    with pytest.raises(schema.InputError, match="Choose one of Mn L3"):
        reference_spectra("Mn K")


# ------------------------------------------------------------------------------- the bodies


@pytest.mark.parametrize("shape", ["sphere", "superellipsoid", "polyhedron"])
def test_bodies_have_the_volume_of_their_sphere_on_paper_and_in_voxels(shape: str) -> None:
    for seed in range(4):
        body = random_body(shape, 60.0, np.random.default_rng(seed))
        expected = 4 / 3 * np.pi * 60.0**3
        assert body.volume == pytest.approx(expected, rel=1e-6)
        voxel = 3.0
        level = body.level(*grid(body.reach, voxel))
        filled = np.clip(0.5 + level / voxel, 0, 1).sum(dtype=float) * voxel**3
        assert filled == pytest.approx(expected, rel=0.01)


def test_no_part_of_a_body_is_beyond_its_reach() -> None:
    for seed in range(6):
        body = random_body("superellipsoid", 60.0, np.random.default_rng(seed))
        y, x, z = grid(1.3 * body.reach, 4.0)
        inside = body.level(y, x, z) > 0
        assert np.sqrt(y**2 + x**2 + z**2)[inside].max() < body.reach


def test_distance_from_the_surface_is_euclidean() -> None:
    y, x, z = grid(40.0, 4.0)
    r = np.sqrt(y**2 + x**2 + z**2)
    # A level that is right only at the surface, as that of a superellipsoid.
    level = 40.0 * (1 - (r / 40.0) ** 2)
    distance = surface_distance(level.astype(np.float32), 4.0)
    np.testing.assert_allclose(distance[r < 48], (40.0 - r)[r < 48], atol=0.15)
    near = surface_distance(level.astype(np.float32), 4.0, reach=12.0)
    assert np.all(near[r < 26] == np.inf)
    np.testing.assert_array_equal(near[np.isfinite(near)], distance[np.isfinite(near)])


def test_distance_from_an_outline_in_two_dimensions() -> None:
    y, x = np.mgrid[-30:31, -30:31] + 0.25
    level = np.minimum(50 - 2 * np.abs(y), 40 - 2 * np.abs(x))
    distance = surface_distance(level, 2.0)
    assert distance[30, 30] == pytest.approx(40 - 0.5, abs=0.05)
    assert distance[30, 45] == pytest.approx(2 * (20 - 15.25), abs=0.05)


# ------------------------------------------------------------------------------- the fields


@pytest.mark.parametrize("tau", [1e-3, 0.02, 0.0999, 0.1001, 0.5])
def test_crank_series_against_forty_digits(tau: float) -> None:
    r = np.array([0.0, 1e-7, 1e-3, 0.3, 0.77, 0.999, 1.0])

    def exact(rho: float) -> float:
        with mpmath.workdps(40):
            decay = [mpmath.exp(-((n * mpmath.pi) ** 2) * mpmath.mpf(tau)) for n in range(1, 160)]
            total = mpmath.mpf(1)
            for n, factor in enumerate(decay, start=1):
                wave = mpmath.sin(n * mpmath.pi * rho) / (n * mpmath.pi * rho) if rho else 1
                total += 2 * (-1) ** n * wave * factor
            return float(total)

    found = crank_sphere(50.0 * r, 50.0, tau * 2500.0)
    np.testing.assert_allclose(found, [exact(float(v)) for v in r], atol=2e-12)


def test_without_time_nothing_has_arrived() -> None:
    np.testing.assert_array_equal(crank_sphere(np.array([0.0, 40.0]), 40.0, 0.0), [0.0, 1.0])
    level = Sphere(20.0).level(*grid(20.0, 4.0))
    np.testing.assert_array_equal(diffuse(level, 4.0, 0.0), (level <= 0).astype(np.float32))


@pytest.mark.parametrize(("radius", "dt"), [(60.0, 100.0), (60.0, 400.0), (80.0, 2500.0)])
def test_voxel_diffusion_against_the_series(radius: float, dt: float) -> None:
    y, x, z = grid(radius, 3.5)
    level = Sphere(radius).level(y, x, z)
    inside = level > 0
    r = np.sqrt(y**2 + x**2 + z**2)[inside]
    error = diffuse(level, 3.5, dt)[inside] - crank_sphere(r, radius, dt)
    assert np.abs(error).max() < 0.01
    assert abs(error.mean()) < 0.002


def test_diffusion_into_a_slab_is_that_of_one_dimension() -> None:
    # A plate much wider than thick; the middle knows nothing of its rim.
    plate = Polyhedron(
        np.array([[0, 0, 1.0], [0, 0, -1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]]),
        np.array([31.0, 31.0, 150.0, 150.0, 150.0, 150.0]),
    )
    axis = np.arange(-39, 40) * 4.0
    level = plate.level(axis[:, None, None], axis[None, :, None], axis[29:-29] + 1.3)
    column = diffuse(level.astype(np.float32), 4.0, 200.0)[39, 39]
    z = axis[29:-29] + 1.3
    n = np.arange(60)[:, None]
    odd = (2 * n + 1) * np.pi / 62.0
    waves = 4 / np.pi * (-1.0) ** n / (2 * n + 1) * np.cos(odd * z) * np.exp(-(odd**2) * 200.0)
    inside = np.abs(z) < 31
    np.testing.assert_allclose(column[inside], 1 - waves.sum(axis=0)[inside], atol=0.01)


@pytest.mark.parametrize("shape", ["sphere", "polyhedron", "superellipsoid"])
def test_shell_has_its_volume(shape: str) -> None:
    sample = replace(
        SOME, mechanism="core-shell", shape=shape, shell_nm=15.0, surface_fraction=1.0,
        initial_fraction=0.0, particles=3,
    )  # fmt: skip
    simulation = simulate(sample, CLEAN, replace(SMALL, energies=(640.0,)), seed=2)
    for body, mean in zip(
        (p.body for p in simulation.particles), table(simulation).mn3_fraction.values, strict=True
    ):
        assert mean == pytest.approx(_shell_share(body, 15.0), abs=0.01)


def _shell_share(body: Any, depth: float) -> float:
    """Share of the volume that lies less deep below the surface."""
    if isinstance(body, Sphere):
        return 1 - (1 - depth / body.radius) ** 3
    if isinstance(body, Polyhedron):
        return 1 - replace(body, offsets=body.offsets - depth).volume / body.volume
    # The distance of every point of a grid inside from many points on the surface.
    k = np.arange(60_000) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / k.size), np.pi * (1 + 5**0.5) * k
    x, y, z = np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)
    (e1, e2), rotation = body.exponents, body.rotation
    u, v, w = (np.abs(t) / s for t, s in zip(rotation @ [x, y, z], body.axes, strict=True))
    radius = ((u ** (2 / e2) + v ** (2 / e2)) ** (e2 / e1) + w ** (2 / e1)) ** (-e1 / 2)
    surface = cKDTree(np.column_stack([x * radius, y * radius, z * radius]))
    axis = np.arange(-body.reach, body.reach, 4.0)
    points = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    points = points[body.level(points[:, 1], points[:, 0], points[:, 2]) > 0]
    return float(np.mean(surface.query(points)[0] < depth))


def test_skin_of_mn2_has_its_thickness_and_its_spectrum() -> None:
    sample = replace(SOME, shape="sphere", particles=1, skin_nm=2.0, radius_nm=(60.0, 60.0))
    simulation = simulate(sample, CLEAN, replace(SMALL, energies=(640.2,)), seed=1)
    field = maps(simulation)
    total = float((field.thickness * field.mn2_fraction).sum()) / float(field.thickness.sum())
    assert total == pytest.approx(1 - (1 - 2 / 60) ** 3, rel=0.03)
    summed = field.mn4_fraction + field.mn3_fraction + field.mn2_fraction
    np.testing.assert_allclose(summed.values[field.thickness.values > 1], 1, atol=1e-5)
    without = simulate(replace(sample, skin_nm=0.0), CLEAN, simulation_scan(), seed=1)
    assert simulation.stack.sum() < without.stack.sum()
    assert list(simulation.given_references) == ["mn4", "mn3"]


def simulation_scan() -> Scan:
    return replace(SMALL, energies=(640.2,))


# ------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("shape", ["sphere", "superellipsoid", "polyhedron"])
def test_mass_is_conserved(shape: str) -> None:
    simulation = simulate(replace(SOME, shape=shape), CLEAN, SMALL, seed=3)
    volume = sum(p.body.volume for p in simulation.particles)
    field = maps(simulation)
    for name in ("thickness", "thickness_blurred"):
        assert float(field[name].sum()) * 8.0**2 == pytest.approx(volume, rel=0.02)
    assert float(table(simulation).volume.sum()) == pytest.approx(volume, rel=0.02)


def test_projected_sphere_is_a_chord() -> None:
    sample = replace(SOME, shape="sphere", particles=1, radius_nm=(70.0, 70.0))
    simulation = simulate(sample, CLEAN, SMALL, seed=4)
    field, particle = maps(simulation), simulation.particles[0]
    rho = np.hypot(field.y - particle.y, field.x - particle.x)
    chord = 2 * np.sqrt(np.maximum(70.0**2 - rho**2, 0))
    inside = rho.values < 60
    np.testing.assert_allclose(field.thickness.values[inside], chord.values[inside], rtol=0.02)
    slope = inside & (rho.values > 8)  # at the very tip a pixel's mean is not its centre
    np.testing.assert_allclose(field.edge_distance.values[slope], 70 - rho.values[slope], atol=0.5)
    assert np.isnan(field.edge_distance.values[rho.values > 120]).all()
    row = table(simulation).isel(particle=0)
    assert float(row.radius) == pytest.approx(70, rel=0.01)
    assert float(row.thickness) == pytest.approx(4 / 3 * 70, rel=0.02)
    np.testing.assert_allclose([row.y, row.x], [particle.y, particle.x], atol=0.5)
    assert (field.particle_label.values > 0).sum() * 64 == pytest.approx(float(row.area), rel=0.02)


def test_projected_fraction_is_the_chord_mean_of_the_series() -> None:
    sample = Sample(shape="sphere", particles=1, radius_nm=(70.0, 70.0))
    simulation = simulate(sample, CLEAN, SMALL, seed=4)
    field, particle = maps(simulation), simulation.particles[0]
    rho = np.hypot(field.y - particle.y, field.x - particle.x).values
    row, column = np.unravel_index(rho.argmin(), rho.shape)
    for step in range(8):
        distance = rho[row, column + step]
        z = np.linspace(0, np.sqrt(70.0**2 - distance**2), 400)
        progress = crank_sphere(np.hypot(distance, z), 70.0, 400.0)
        expected = 0.05 + 0.55 * np.trapezoid(progress, z) / z[-1]
        found = field.mn3_fraction.values[row, column + step]
        assert found == pytest.approx(expected, abs=0.01)


def test_lamella_is_never_thicker_than_the_section() -> None:
    sample = replace(SOME, mechanism="diffusion", geometry="lamella", section_nm=60.0)
    simulation = simulate(sample, CLEAN, SMALL, seed=5)
    thickness = maps(simulation).thickness.values
    assert thickness.max() <= 60.0 + 1e-3
    assert (thickness > 59.9).sum() > 50
    whole = simulate(SOME, CLEAN, SMALL, seed=5)
    assert maps(whole).thickness.values.max() > 90
    # The cut is no surface: nothing came in through it.
    centre = maps(simulation).edge_distance.values > 45
    assert np.nanmax(maps(simulation).mn3_fraction.values[centre]) < 0.5
    assert simulation.run["sample"]["section_nm"] == 60.0


def test_particles_do_not_touch_unless_asked() -> None:
    apart = simulate(replace(SOME, particles=7), CLEAN, SMALL, seed=6)
    assert np.all(table(apart).overlap == 1)
    crowded = simulate(replace(SOME, particles=7, overlap=0.5), CLEAN, SMALL, seed=6)
    assert float(table(crowded).overlap.max()) > 1.05


def test_particles_at_the_border_are_told() -> None:
    sample = replace(SOME, particles=12, at_border=True)
    simulation = simulate(sample, CLEAN, SMALL, seed=2)
    told = table(simulation).at_border.values
    labels = maps(simulation).particle_label.values
    rim = np.unique(np.r_[labels[0], labels[-1], labels[:, -1], labels[:, 0]])
    assert told.any()
    assert not told.all()
    assert set(rim[rim > 0]) <= set(1 + np.flatnonzero(told))


# ------------------------------------------------------------------------------- the instrument


def test_open_field_and_flat_particle_obey_beer_and_lambert() -> None:
    sample = Sample(
        geometry="lamella", mechanism="uniform", initial_fraction=0.3, shape="sphere",
        particles=1, radius_nm=(150.0, 150.0),
    )  # fmt: skip
    simulation = simulate(sample, CLEAN, SMALL, seed=1)
    seen = transmission(simulation)
    field = maps(simulation)
    flat = (field.thickness.values > 79.99) & (field.edge_distance.values > 60)
    assert flat.sum() > 20
    spectra = reference_spectra(energies=FEW)
    for frame in range(len(FEW)):
        mixed = 0.7 * float(spectra.mn4[frame]) + 0.3 * float(spectra.mn3[frame])
        np.testing.assert_allclose(-np.log(seen[frame][flat]), 80 * mixed, rtol=2e-3)
    np.testing.assert_allclose(seen[:, :, :9], 1, rtol=1e-3)


def test_photons_are_counted() -> None:
    noisy = replace(CLEAN, photons=900.0, dark_counts=100.0)
    simulation = simulate(replace(SOME, particles=1), noisy, SMALL, seed=1)
    y0, y1, x0, x1 = simulation.run["i0"]["region"]
    region = simulation.stack.values[:, y0:y1, x0:x1].astype(float)
    assert region.mean() == pytest.approx(1000, rel=2e-3)
    assert region.var() / region.mean() == pytest.approx(1, abs=0.04)
    assert np.all(simulation.stack.values == np.round(simulation.stack.values))
    assert simulation.stack.dtype == np.float32


def test_stray_light_limits_the_optical_density() -> None:
    big = Sample(particles=1, radius_nm=(150.0, 150.0), mechanism="uniform")
    scan = replace(SMALL, energies=(643.3,), pixel_nm=10.0)
    clean = transmission(simulate(big, CLEAN, scan, seed=1))
    stray = transmission(simulate(big, replace(CLEAN, stray_fraction=0.02), scan, seed=1))
    np.testing.assert_allclose(stray, 0.98 * clean + 0.02, atol=1e-3)
    assert -np.log(stray.min()) < -np.log(0.02)


def test_blur_acts_on_intensity() -> None:
    scan = replace(SMALL, energies=(643.3,))
    # The bodies are the same, their places need not be.
    sharp, blunt = (
        transmission(simulate(SOME, replace(CLEAN, resolution_nm=fwhm), scan, seed=8))
        for fwhm in (5.0, 16.0)
    )
    assert np.sum(1 - blunt) == pytest.approx(np.sum(1 - sharp), rel=5e-3)
    assert np.sum(-np.log(blunt)) < 0.97 * np.sum(-np.log(sharp))


def test_blur_of_ptychography_acts_on_the_amplitude() -> None:
    scan = replace(SMALL, energies=(643.3,))
    lost = []
    for fwhm in (5.0, 16.0):
        instrument = replace(CLEAN, technique="ptychography", resolution_nm=fwhm)
        frame = simulate(SOME, instrument, scan, seed=8).stack.values[0].astype(complex)
        lost.append(1 - frame / frame[:, :9].mean())
    assert np.sum(lost[1]) == pytest.approx(np.sum(lost[0]), rel=5e-3)
    intensity = [np.sum(1 - np.abs(1 - part) ** 2) for part in lost]
    assert abs(intensity[1] / intensity[0] - 1) > 0.02


def test_blur_has_its_width() -> None:
    # A particle far smaller than the blur is seen as the blur.
    sample = Sample(particles=1, shape="sphere", radius_nm=(6.0, 6.0), mechanism="uniform")
    scan = Scan(pixel_nm=5.0, shape_px=(80, 90), energies=(636.0,))
    for psf in ("gaussian", "airy"):
        blurring = replace(CLEAN, resolution_nm=50.0, psf=psf, pixel_average=False)
        image = 1 - transmission(simulate(sample, blurring, scan, seed=3))[0]
        row, column = np.unravel_index(image.argmax(), image.shape)
        line = image[row] / image.max()
        left = np.interp(0.5, line[: column + 1], np.arange(column + 1))
        right = column + np.interp(-0.5, -line[column:], np.arange(line.size - column))
        assert (right - left) * 5.0 == pytest.approx(50, rel=0.05), psf
    heavy = replace(CLEAN, resolution_nm=20.0, psf="tails")
    tails = 1 - transmission(simulate(sample, heavy, scan, seed=3))[0]
    plain = 1 - transmission(simulate(sample, replace(heavy, psf="gaussian"), scan, seed=3))[0]
    assert tails.max() < plain.max()
    assert tails.sum() == pytest.approx(plain.sum(), rel=0.05)


def test_line_width_averages_transmission() -> None:
    sample = Sample(
        geometry="lamella", mechanism="uniform", initial_fraction=0.0, shape="sphere",
        particles=1, radius_nm=(200.0, 200.0), section_nm=120.0,
    )  # fmt: skip
    scan = replace(SMALL, energies=(643.3,), pixel_nm=10.0)
    wide = simulate(sample, replace(CLEAN, spectral_fwhm_eV=1.0), scan, seed=1)
    flat = maps(wide).thickness.values > 119.9
    offset = np.linspace(-2.5, 2.5, 2001)
    weight = np.exp(-4 * np.log(2) * offset**2)
    spectrum = reference_spectra(energies=643.3 + offset).mn4.values
    expected = np.sum(weight * np.exp(-120 * spectrum)) / weight.sum()
    centre = flat & (maps(wide).edge_distance.values > 60)
    assert centre.sum() > 5
    np.testing.assert_allclose(transmission(wide)[0][centre], expected, rtol=5e-3)
    assert expected > 1.02 * np.exp(-120 * np.sum(weight * spectrum) / weight.sum())


def test_ptychography_is_half_the_optical_density_with_a_phase() -> None:
    sample = Sample(
        geometry="lamella", mechanism="uniform", initial_fraction=0.3, shape="sphere",
        particles=1, radius_nm=(150.0, 150.0),
    )  # fmt: skip
    instrument = replace(CLEAN, technique="ptychography", phase_per_nm=2e-3)
    simulation = simulate(sample, instrument, SMALL, seed=1)
    stack, field = simulation.stack, maps(simulation)
    assert stack.dtype == np.complex64
    assert stack.attrs["quantity"] == "amplitude"
    flat = (field.thickness.values > 79.99) & (field.edge_distance.values > 60)
    spectra = reference_spectra(energies=FEW)
    for frame in range(len(FEW)):
        mixed = 0.7 * float(spectra.mn4[frame]) + 0.3 * float(spectra.mn3[frame])
        ratio = stack.values[frame][flat] / stack.values[frame][:, :9].mean()
        np.testing.assert_allclose(-2 * np.log(np.abs(ratio)), 80 * mixed, rtol=3e-3)
        np.testing.assert_allclose(np.angle(ratio), -80 * 2e-3, atol=2e-3)
    assert np.abs(stack.values[0, :, :9]).mean() == pytest.approx(20, rel=0.01)
    assert simulation.run["stack"] == "stack.cxi"


def test_noise_of_amplitudes_is_that_of_photons() -> None:
    instrument = Instrument(technique="ptychography", photons=400.0, i0_dip=0.0, i0_slope=0.0)
    simulation = simulate(replace(SOME, particles=1), instrument, SMALL, seed=1)
    amplitude = np.abs(simulation.stack.values[:, :, :13]).astype(float)
    density = -2 * np.log(amplitude / amplitude.mean(axis=(1, 2), keepdims=True))
    assert density.std() == pytest.approx(1 / np.sqrt(400), rel=0.05)


def test_i0_drifts_steps_and_is_told() -> None:
    instrument = replace(CLEAN, photons=1e6, current_decay=0.1, i0_steps=((2, 0.8),), i0_slope=0.1)
    simulation = simulate(replace(SOME, particles=1), instrument, SMALL, seed=1)
    i0 = simulation.truth["entry/spectra/i0"].values
    measured = simulation.stack.values[:, :, :13].mean(axis=(1, 2))
    np.testing.assert_allclose(measured, i0, rtol=1e-3)
    assert i0.mean() == pytest.approx(1e6)
    assert i0[2] / i0[1] < 0.83
    current = simulation.stack.ring_current.values
    assert current[-1] / current[0] == pytest.approx(0.9)


def test_dead_and_saturated_pixels() -> None:
    instrument = replace(CLEAN, photons=1000.0, dead_pixels=5, saturation_counts=990.0)
    simulation = simulate(replace(SOME, particles=1), instrument, SMALL, seed=1)
    values = simulation.stack.values
    assert ((values == 0).all(axis=0)).sum() == 5
    assert values.max() == 990


# ------------------------------------------------------------------------------- drift, energy


def test_drift_truth_against_registration_and_centroid() -> None:
    scan = replace(SMALL, energies=(643.2,) * 5, drift_px=3.0, walk_px=0.7, jumps=1, jump_px=4.0)
    simulation = simulate(SOME, CLEAN, scan, seed=9)
    shifts = simulation.truth["entry/shifts"]
    true = np.column_stack([shifts.shift_y.values, shifts.shift_x.values])
    np.testing.assert_allclose(np.median(true, axis=0), 0, atol=1e-9)
    assert np.ptp(true[:, 0]) > 8
    absorbed = 1 - transmission(simulation)
    y, x = simulation.stack.y.values, simulation.stack.x.values
    mass = absorbed.sum(axis=(1, 2))
    centroid = np.column_stack(
        [(absorbed.sum(axis=2) @ y) / mass, (absorbed.sum(axis=1) @ x) / mass]
    )
    # Positive: the features of that frame lie at larger y and x.
    np.testing.assert_allclose(centroid - centroid[0], true - true[0], atol=0.15)
    for frame in range(1, 5):
        found, _, _ = phase_cross_correlation(
            absorbed[frame], absorbed[0], upsample_factor=100, normalization=None
        )
        np.testing.assert_allclose(found, (true[frame] - true[0]) / 8.0, atol=0.05)


def test_maps_lie_in_the_frame_of_zero_shift() -> None:
    scan = replace(SMALL, energies=(643.2,) * 5, walk_px=1.0)
    simulation = simulate(SOME, CLEAN, scan, seed=9)
    still = simulate(SOME, CLEAN, replace(scan, walk_px=0.0), seed=9)
    moved = simulation.truth["entry/shifts"]
    assert np.abs(moved.shift_y.values).max() > 1
    np.testing.assert_allclose(still.truth["entry/shifts/shift_y"].values, 0)
    field = maps(simulation)
    thin = -np.log(transmission(simulation))
    rows = np.average(np.arange(90), weights=field.thickness.values.sum(axis=1)) * 8 + 4
    for frame in range(5):
        seen = np.average(simulation.stack.y.values, weights=thin[frame].sum(axis=1))
        assert seen - rows == pytest.approx(float(moved.shift_y[frame]), abs=2.5)


def test_true_energy_is_recorded_energy_plus_shift() -> None:
    energies = tuple(np.arange(641.0, 645.0, 0.1))
    sample = Sample(particles=1, mechanism="uniform", initial_fraction=0.0, radius_nm=(40.0, 40.0))
    scan = replace(SMALL, energies=energies, energy_shift_eV=0.5)
    simulation = simulate(sample, CLEAN, scan, seed=1)
    spectra = simulation.truth["entry/spectra"]
    assert float(spectra.energy_shift) == 0.5
    density = -np.log(transmission(simulation)).sum(axis=(1, 2))
    peak = energies[int(density.argmax())]
    true_peak = float(reference_spectra().mn4.idxmax())
    assert peak == pytest.approx(true_peak - 0.5, abs=0.11)
    np.testing.assert_allclose(
        spectra.reference_mn4.values,
        reference_spectra(energies=np.array(energies) + 0.5).mn4.values,
    )
    np.testing.assert_allclose(simulation.stack.energy.values, energies)


def test_open_strip_is_open_in_every_frame() -> None:
    simulation = demo()
    y0, y1, x0, x1 = simulation.run["i0"]["region"]
    i0 = simulation.truth["entry/spectra/i0"].values
    strip = simulation.stack.values[:, y0:y1, x0:x1].astype(float) - 10
    np.testing.assert_allclose(strip.mean(axis=(1, 2)), i0, rtol=2e-3)
    # No column of it is darker than the others.
    columns = (strip / i0[:, None, None]).mean(axis=(0, 1))
    np.testing.assert_allclose(columns, 1, atol=1.5e-3)


# ------------------------------------------------------------------------------- seeds


def test_a_seed_repeats_bit_for_bit_and_another_does_not() -> None:
    first, again = (simulate(SOME, None, SMALL, seed=3) for _ in range(2))
    xr.testing.assert_identical(first.stack, again.stack)
    for node in first.truth.subtree:
        xr.testing.assert_identical(node.to_dataset(), again.truth[node.path].to_dataset())
    xr.testing.assert_identical(first.given_references, again.given_references)
    assert first.run == again.run
    other = simulate(SOME, None, SMALL, seed=4)
    assert not np.array_equal(first.stack.values, other.stack.values)


def test_noise_and_references_do_not_move_the_particles() -> None:
    first = simulate(SOME, CLEAN, SMALL, seed=3)
    second = simulate(
        SOME, replace(CLEAN, photons=100.0, dead_pixels=3), SMALL, References(noise=0.1), seed=3
    )
    xr.testing.assert_identical(maps(first), maps(second))


# ------------------------------------------------------------------------------- agglomerates


def test_places_and_depths_in_agglomerates() -> None:
    rows, field = table(electrode()), maps(electrode())
    place, depth = rows.place.values, rows.depth.values
    assert set(place) == {"outside", "exterior", "interior"}
    assert np.isnan(depth[place == "outside"]).all()
    assert np.all(rows.agglomerate.values[place == "outside"] == 0)
    for number in (1, 2):
        mine = rows.agglomerate.values == number
        assert mine.sum() == 19
        shallow, deep = depth[mine & (place == "exterior")], depth[mine & (place == "interior")]
        assert shallow.min() > 0
        assert shallow.max() < deep.min()
        assert deep.size >= 4
    owner = np.r_[0, rows.agglomerate.values]
    np.testing.assert_array_equal(field.agglomerate_label, owner[field.particle_label.values])
    assert np.all(rows.overlap.values < 1.02)


def test_differences_between_places_are_those_asked_for() -> None:
    truth = electrode().truth["entry/heterogeneity"]
    differences = dict(zip(truth.contrast.values, truth.difference.values, strict=True))
    assert differences["outside-inside"] > 0.03
    assert differences["outside-inside at equal thickness"] > 0.03
    assert differences["exterior-interior"] > 0.02
    surfaces = electrode().truth["entry/models/surface_fraction"].sel(model="diffusion").values
    place = table(electrode()).place.values
    for name, expected in (("outside", 0.6), ("exterior", 0.48), ("interior", 0.38)):
        np.testing.assert_allclose(surfaces[place == name], expected, atol=1e-6)


def test_d_may_differ_between_places_and_particles() -> None:
    sample = Sample(
        particles=2, agglomerates=1, primaries=7, radius_nm=(35.0, 40.0), inside_Dt=0.5,
        interior_Dt=0.2, geometry="lamella",
    )  # fmt: skip
    simulation = simulate(sample, CLEAN, replace(SMALL, energies=(640.0,)), seed=1)
    models = simulation.truth["entry/models"]
    d = models.D_cm2_s.sel(model="diffusion").values
    place = table(simulation).place.values
    for name, factor in (("outside", 1.0), ("exterior", 0.5), ("interior", 0.1)):
        np.testing.assert_allclose(d[place == name], factor * 1e-17, rtol=1e-9)
    np.testing.assert_allclose(models.Dt_cm2.sel(model="diffusion").values, d * 4e5)
    spread = simulate(
        Sample(particles=4, radius_nm=(50.0, 60.0), D_spread_dex=0.2), CLEAN, SMALL, seed=1
    )
    assert 0.03 < float(spread.truth["entry/pooled/spread"]) < 0.5


# ------------------------------------------------------------------------------- the truth tree


def test_truth_has_the_groups_and_names_of_a_result() -> None:
    truth = demo().truth
    groups = set(truth["entry"].children)
    assert groups == set(schema.RESULT_GROUPS) - {"profiles", "oxygen"}
    assert truth["entry"].attrs["schema_version"] == schema.SCHEMA_VERSION
    field = maps(demo())
    schema.check_map(field.mn3_fraction, "1")
    schema.check_map(field.thickness, "nm")
    schema.check_stack(demo().stack, ("counts",))
    for group in truth["entry"].children.values():
        for name, variable in group.to_dataset().data_vars.items():
            if variable.dtype.kind == "f":
                assert "units" in variable.attrs, name
    assert list(truth["entry/models"].model.values) == ["diffusion", "core-shell"]
    assert set(truth["entry/models/verdict"].values) == {"diffusion"}
    assert float(truth["entry/pooled/log10_D"]) == pytest.approx(-17)
    assert int(truth["entry/pooled/count_diffusion"]) == 14
    fraction = field.mn3_fraction.values[field.thickness.values > 1]
    assert fraction.min() >= 0.05
    assert fraction.max() <= 0.6 + 1e-6
    assert str(truth["entry/process"].attrs["simulation"]).startswith("sample:")


@pytest.mark.parametrize(
    ("mechanism", "verdict"),
    [("diffusion", "diffusion"), ("core-shell", "core-shell"), ("uniform", "no gradient")],
)
def test_truth_of_the_models(mechanism: str, verdict: str) -> None:
    sample = replace(SOME, mechanism=mechanism, particles=2)
    truth = simulate(sample, CLEAN, replace(SMALL, energies=(640.0,)), seed=1).truth
    assert set(truth["entry/models/verdict"].values) == {verdict}
    assert str(truth["entry/pooled/verdict"].values) == verdict
    models = truth["entry/models"]
    known = np.isfinite(models.surface_fraction.values).all(axis=0)
    assert list(models.model.values[known]) == ([verdict] if mechanism != "uniform" else [])
    assert np.isfinite(models.D_cm2_s.values).any() == (mechanism == "diffusion")
    assert np.isfinite(models.shell_thickness.values).any() == (mechanism == "core-shell")


# ------------------------------------------------------------------------------- references given


def given(references: References, **sample: Any) -> xr.Dataset:
    scan = replace(SMALL, energies=(640.0,))
    options = replace(SOME, particles=0, **sample)
    return simulate(options, CLEAN, scan, references, seed=5).given_references


def test_perfect_references_are_the_true_ones_whatever_their_units() -> None:
    truth = reference_spectra()
    atoms = xraydb.chemparse(Sample().formula)
    mass = sum(n * xraydb.atomic_mass(s) for s, n in atoms.items())
    per_cm3 = 4.25 * 6.02214076e23 * atoms["Mn"] / mass
    for units, name, to_nm in (
        ("per_nm", "nm-1", 1.0),
        ("cm2_per_g", "cm2 g-1", 4.25e-7),
        ("per_atom", "cm2", per_cm3 * 1e-7),
        ("od", "1", 1 / 100),
    ):
        told = given(References(units=units))
        for component in ("mn4", "mn3"):
            assert told[component].attrs["units"] == name
            np.testing.assert_allclose(told[component] * to_nm, truth[component], rtol=1e-9)


def test_faults_of_references() -> None:
    perfect = given(References()).mn4
    wide = given(References(fwhm_eV=1.0)).mn4
    assert float(wide.max()) < 0.95 * float(perfect.max())
    assert float(wide.integrate("energy")) == pytest.approx(
        float(perfect.integrate("energy")), rel=1e-3
    )
    late = given(References(energy_offset_eV=0.4)).mn4
    assert float(late.idxmax()) == pytest.approx(float(perfect.idxmax()) + 0.4, abs=0.05)
    scaled = given(References(amplitude_error=0.05)).mn4 / perfect
    assert float(scaled.std()) < 1e-6
    assert 1e-4 < abs(float(scaled.mean()) - 1) < 0.2
    bent = given(References(shape_error=0.05)).mn4 / perfect
    np.testing.assert_allclose(bent.sel(energy=[620.0, 700.0], method="nearest"), 1, atol=2e-3)
    assert 0.005 < float(bent.sel(energy=slice(640, 655)).std()) < 0.1


def test_reference_of_another_compound_needs_its_edge_jump() -> None:
    told = given(References(compound=True))
    assert told.mn4.attrs["units"] == "nm-1"
    assert told.mn3.attrs["units"] == "1"
    assert float(told.energy[-1]) > 690
    truth = reference_spectra().mn3

    def jump(spectrum: xr.DataArray) -> float:
        line = np.polyfit(np.log(spectrum.energy[:80]), np.log(spectrum[:80]), 1)
        before = np.exp(np.polyval(line, np.log(700.0)))
        return float(spectrum.sel(energy=700.0, method="nearest")) - float(before)

    peak = float(told.mn3.max() - told.mn3[0]) / jump(told.mn3)
    assert peak == pytest.approx(float(truth.max() - truth[0]) / jump(truth), rel=0.05)
    # Three times the manganese of the sample in a volume, so no fit with it as it is can be right.
    assert jump(told.mn3) / 100 > 1.5 * jump(truth)
    scan = replace(SMALL, energies=(640.0,))
    run = simulate(replace(SOME, particles=0), CLEAN, scan, References(compound=True)).run
    assert run["references"]["mn3"] == {"file": "mn3.csv", "valence": 3, "scale": "edge_jump"}
    assert run["references"]["mn4"] == {"file": "mn4.csv", "valence": 4}


# ------------------------------------------------------------------------------- other edges


@pytest.mark.parametrize(("edge", "fraction"), [("Ni L3", "ni2"), ("O K", "o_reduced")])
def test_other_edges(edge: str, fraction: str) -> None:
    scan = Scan(edge=edge, pixel_nm=8.0, shape_px=(80, 90))
    sample = replace(SOME, particles=2, mechanism="core-shell")
    simulation = simulate(sample, CLEAN, scan, seed=1)
    assert simulation.run["fraction"] == fraction
    assert list(simulation.run["references"])[1] == fraction
    field = maps(simulation)
    seen = -np.log(transmission(simulation))
    thick = field.thickness_blurred.values > 60
    spectra = [simulation.truth[f"entry/spectra/reference_{n}"].values for n in field_names(field)]
    basis = np.column_stack(spectra)
    amounts = np.linalg.lstsq(basis, seen[:, thick], rcond=None)[0]
    found = amounts[1] / amounts.sum(axis=0)
    np.testing.assert_allclose(
        found, field[f"{fraction}_fraction_blurred"].values[thick], atol=0.03
    )


def field_names(field: xr.Dataset) -> list[str]:
    """Components of the maps, in order."""
    ending = "_fraction"
    return [str(n).removesuffix(ending) for n in field.data_vars if str(n).endswith(ending)]


# ------------------------------------------------------------------------------- several scans

ORIGIN, WRONG_BY = (60.0, -40.0), (35.0, -22.0)


@lru_cache(maxsize=1)
def scans() -> dict[str, Simulation]:
    """One field at Mn L3, at Ni L3 on coarser pixels that lie elsewhere, and a part of it again."""
    return simulate_scans(
        Sample(geometry="lamella", shape="polyhedron", particles=6, radius_nm=(60.0, 90.0)),
        replace(CLEAN, resolution_nm=16.0),
        {
            "mn": Scan(pixel_nm=10.0, shape_px=(110, 130), energies=FEW, drift_px=2.0),
            "ni": Scan(
                edge="Ni L3", pixel_nm=12.0, shape_px=(88, 114), origin_nm=ORIGIN,
                energies=(845.0, 853.0, 855.5, 866.0), origin_error_nm=WRONG_BY, drift_px=2.0,
            ),
            "again": Scan(
                pixel_nm=10.0, shape_px=(60, 60), energies=FEW, origin_nm=(300.0, 400.0)
            ),
        },
        References(amplitude_error=0.02),
        changes={"ni": {"surface_fraction": 0.9}, "again": {"surface_fraction": 0.65}},
        seed=3,
    )  # fmt: skip


def absorbed_at(simulation: Simulation, frame: int) -> np.ndarray:
    """Centroid (y, x), in the coordinates of the file, of what a frame lacks in light."""
    density = -np.log(transmission(simulation)[frame])
    y, x = simulation.stack.y.values, simulation.stack.x.values
    total = density.sum()
    return np.array([density.sum(axis=1) @ y, density.sum(axis=0) @ x]) / total


def test_scans_see_the_same_bodies_at_the_same_places() -> None:
    main, other, part = scans().values()
    assert [p.body for p in main.particles] == [p.body for p in other.particles]
    assert [(p.y, p.x, p.cut_nm) for p in main.particles] == [
        (p.y, p.x, p.cut_nm) for p in other.particles
    ]
    labels = table(part).particle.values
    assert 0 < labels.size < 6
    for label, particle in zip(labels, part.particles, strict=True):
        assert particle.body is main.particles[label - 1].body
    for simulation in (other, part):
        offset = np.array([maps(simulation).attrs[f"offset_{axis}_nm"] for axis in "yx"])
        rows, own = table(main).sel(particle=table(simulation).particle), table(simulation)
        np.testing.assert_allclose(own.y - offset[0], rows.y, atol=0.5)
        np.testing.assert_allclose(own.x - offset[1], rows.x, atol=0.5)
        np.testing.assert_allclose(own.thickness, rows.thickness, rtol=0.01)
        np.testing.assert_allclose(own.area, rows.area, rtol=0.01)
    assert not np.array_equal(
        main.truth["entry/shifts/shift_y"].values, other.truth["entry/shifts/shift_y"].values
    )


def test_the_file_is_wrong_about_where_a_scan_lies_by_the_error_of_its_origin() -> None:
    main, other, _ = scans().values()
    assert float(other.stack.y[0]) == pytest.approx(ORIGIN[0] + WRONG_BY[0] + 6)
    assert float(other.stack.x[0]) == pytest.approx(ORIGIN[1] + WRONG_BY[1] + 6)
    xr.testing.assert_equal(maps(other).y.drop_vars("y"), other.stack.y.drop_vars("y"))
    # Before both edges everything absorbs by its thickness alone.
    seen = []
    for simulation in (main, other):
        shifts = simulation.truth["entry/shifts"]
        moved = [float(shifts.shift_y[0]), float(shifts.shift_x[0])]
        seen.append(absorbed_at(simulation, 0) - moved)
    np.testing.assert_allclose(seen[1] - seen[0], WRONG_BY, atol=1.0)
    assert maps(other).attrs["offset_y_nm"] == WRONG_BY[0]
    assert maps(other).attrs["offset_x_nm"] == WRONG_BY[1]
    assert maps(main).attrs["offset_y_nm"] == 0


def test_first_scan_is_what_a_single_simulation_makes() -> None:
    main = scans()["mn"]
    single = simulate(
        Sample(geometry="lamella", shape="polyhedron", particles=6, radius_nm=(60.0, 90.0)),
        replace(CLEAN, resolution_nm=16.0),
        Scan(pixel_nm=10.0, shape_px=(110, 130), energies=FEW, drift_px=2.0),
        References(amplitude_error=0.02),
        seed=3,
    )
    xr.testing.assert_identical(single.stack, main.stack)


def test_truth_of_the_main_scan_holds_the_others_on_its_grid() -> None:
    main, other, part = scans().values()
    entry = main.truth["entry"]
    seen, field = entry["maps_ni"].to_dataset(), maps(main)
    xr.testing.assert_equal(seen.y, field.y)
    assert seen.attrs["fraction"] == "ni2"
    assert seen.attrs["edge"] == "Ni L3"
    inside = np.isfinite(seen.thickness.values)
    assert 0.6 < inside.mean() < 1
    np.testing.assert_allclose(
        seen.thickness.values[inside], field.thickness.values[inside], atol=6.0
    )
    difference = seen.thickness.values[inside] - field.thickness.values[inside]
    assert difference.std() < 0.5
    # The mean over each particle is the one that its own grid gives.
    labels, whole = field.particle_label.values, entry["particles"].to_dataset()
    np.testing.assert_allclose(whole.ni2_fraction, table(other).ni2_fraction)
    for label in whole.particle.values:
        mine = (labels == label) & inside
        if mine.sum() == (labels == label).sum():
            thickness = seen.thickness.values[mine]
            mean = np.nansum(seen.ni2_fraction.values[mine] * thickness) / thickness.sum()
            assert mean == pytest.approx(float(whole.ni2_fraction.sel(particle=label)), abs=0.005)
    assert np.all(whole.ni2_fraction > whole.mn3_fraction + 0.05)
    assert "spectra_ni" in entry
    again = entry["maps_again"].to_dataset()
    both = again.thickness.values > 20
    assert np.isnan(again.thickness.values).mean() > 0.7
    assert 0.02 < (again.mn3_fraction - field.mn3_fraction).values[both].mean() < 0.05
    assert np.all(table(part).mn3_fraction > whole.mn3_fraction.sel(particle=table(part).particle))


def test_scans_have_their_own_noise_and_each_edge_its_own_faults_of_references() -> None:
    main, other, part = scans().values()
    xr.testing.assert_identical(main.given_references, part.given_references)

    def fault(simulation: Simulation, component: str) -> float:
        given, true = simulation.given_references[component], simulation.references[component]
        return float((given / true).mean())

    assert abs(fault(main, "mn4") - fault(other, "ni4")) > 1e-4
    again = simulate_scans(
        replace(SOME, particles=1), replace(CLEAN, photons=100.0), {"a": SMALL, "b": SMALL}, seed=1
    )
    assert not np.array_equal(again["a"].stack.values, again["b"].stack.values)
    xr.testing.assert_equal(maps(again["a"]).thickness, maps(again["b"]).thickness)


def test_open_columns_of_further_scans_are_open() -> None:
    for name, simulation in scans().items():
        if simulation.run["i0"] == "auto":
            continue
        y0, y1, x0, x1 = simulation.run["i0"]["region"]
        strip = transmission(simulation)[:, y0:y1, x0:x1]
        np.testing.assert_allclose(strip.mean(axis=(1, 2)), 1, atol=2e-3, err_msg=name)
    assert scans()["again"].run["i0"] == "auto"


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"changes": {"b": {"radius_nm": (20.0, 30.0)}}}, "changes.b"),
        ({"changes": {"c": {"photons": 10.0}}}, "changes"),
        ({"scans": {"a b": SMALL}}, "scans"),
        ({"scans": {}}, "scans"),
    ],
)
def test_scans_that_make_no_sense_are_refused(options: dict[str, Any], where: str) -> None:
    given: dict[str, Any] = {"scans": {"a": SMALL, "b": SMALL}} | options
    with pytest.raises(schema.InputError) as caught:
        simulate_scans(SOME, CLEAN, **given)
    assert caught.value.where == where


def test_files_of_several_scans(tmp_path: Path) -> None:
    from spectromap.io import als, results, spectra

    description = write_scans(scans(), tmp_path, "als")
    run = yaml.safe_load(description.read_text(encoding="utf-8"))
    assert {**run, "scans": None} == {**scans()["mn"].run, "stack": "stack.hdr", "scans": None}
    assert set(run["scans"]) == {"ni", "again"}
    assert run["scans"]["again"] == {"stack": "again.hdr", "i0": "auto"}
    entry = run["scans"]["ni"]
    assert entry["edge"] == "Ni L3"
    assert entry["fraction"] == "ni2"
    assert "instrument" not in entry
    stack = als.open(tmp_path / entry["stack"])
    np.testing.assert_allclose(stack.y, scans()["ni"].stack.y, atol=0.01)
    np.testing.assert_allclose(stack.x, scans()["ni"].stack.x, atol=0.01)
    np.testing.assert_allclose(stack.values, scans()["ni"].stack.values, rtol=1e-6)
    for component, reference in entry["references"].items():
        told = spectra.read_spectrum(tmp_path / reference["file"])
        np.testing.assert_allclose(told, scans()["ni"].given_references[component], rtol=1e-6)
    truth = results.read_result(tmp_path / "truth.h5")
    assert {"maps_ni", "maps_again", "spectra_ni"} <= set(truth["entry"].children)
    assert truth["entry/maps_ni"].attrs["offset_y_nm"] == WRONG_BY[0]
    assert not list(tmp_path.glob("*.part"))


# ------------------------------------------------------------------------------- truth by place


def placed_table(**effects: float) -> xr.Dataset:
    """Particles of known fraction: in large agglomerates 1 to 3, small ones 4 and 5, and loose."""
    rng = np.random.default_rng(5)
    owner = np.repeat([0, 1, 2, 3, 4, 5], [20, 24, 18, 30, 12, 11])
    depth = np.where(owner > 0, rng.uniform(100, 1500, owner.size), np.nan)
    place = np.where(owner == 0, "outside", np.where(depth < 700, "exterior", "interior"))
    thickness = rng.uniform(50, 100, owner.size) - 15 * (owner == 0)
    values = 0.5 - 0.002 * thickness
    values -= effects.get("inside", 0.0) * np.isin(owner, [1, 2, 3])
    values -= effects.get("interior", 0.0) * ((place == "interior") & (owner < 4))
    values += effects.get("per_nm", 0.0) * np.nan_to_num(depth) * (owner < 4)
    level = np.array([0.0, 0.0, 0.02, -0.02, 0.0, 0.01])
    columns = {
        "mn3_fraction": values + level[owner] * effects.get("levels", 0.0),
        "thickness": thickness,
        "depth": depth,
        "agglomerate": owner,
        "place": place.astype(object),
        "at_border": np.arange(owner.size) == 3,
        "area": np.where(owner > 3, 3e3, 3e4),
    }
    rows = xr.Dataset({name: ("particle", column) for name, column in columns.items()})
    return rows.assign_coords(particle=np.arange(1, owner.size + 1))


def by_contrast(result: xr.Dataset, name: str = "difference") -> dict[str, float]:
    return dict(zip(result.contrast.values, result[name].values, strict=True))


def test_truth_by_place_is_what_was_put_in() -> None:
    rows = placed_table(inside=0.1, interior=0.06, levels=1.0)
    truth = heterogeneity(rows, "mn3", 3)
    large = by_contrast(truth, "difference_large")
    values, owner = rows.mn3_fraction.values, rows.agglomerate.values
    kept = ~rows.at_border.values
    assert large["outside-inside"] == pytest.approx(
        values[kept & (owner == 0)].mean() - values[np.isin(owner, [1, 2, 3])].mean()
    )
    assert large["exterior-interior at equal thickness"] == pytest.approx(0.06, abs=1e-12)
    # Small agglomerates have no such difference, and dilute it where all are taken together.
    assert by_contrast(truth)["exterior-interior at equal thickness"] < 0.058
    deeper = heterogeneity(placed_table(per_nm=-5e-5), "mn3", 3)
    assert float(deeper.depth_trend_large[1]) == pytest.approx(-5e-5, abs=1e-12)
    assert float(deeper.depth_trend[1]) > -4.9e-5
    nothing = heterogeneity(placed_table(), "mn3", 3)
    for name, value in by_contrast(nothing).items():
        if "equal thickness" in name:
            assert value == pytest.approx(0, abs=1e-12), name
        elif name == "outside-inside":
            assert value == pytest.approx(0.03, abs=0.015)


def test_truth_by_place_is_what_the_statistics_find_without_noise() -> None:
    rows = placed_table(inside=0.1, interior=0.06, per_nm=-2e-5, levels=1.0)
    # A plain curve in thickness, so that the ways to adjust for it differ.
    rows["mn3_fraction"] = rows.mn3_fraction + 2e-5 * (rows.thickness - 75) ** 2
    truth = heterogeneity(rows, "mn3", 3)
    found = statistics(rows.assign(used=~rows.at_border), "mn3")
    assert list(truth.contrast.values) == list(found.contrast.values)
    np.testing.assert_allclose(truth.difference, found.difference, atol=1e-10)
    np.testing.assert_array_equal(truth.count_a, found.count_a)
    np.testing.assert_array_equal(truth.count_b, found.count_b)
    assert list(truth.trend.values) == list(found.trend.values)
    np.testing.assert_allclose(truth.depth_trend, found.depth_trend, atol=1e-13)


def test_truth_without_agglomerates_or_particles_is_unknown() -> None:
    for particles in (0, 2):
        simulation = simulate(replace(SOME, particles=particles), CLEAN, SMALL, seed=1)
        truth = simulation.truth["entry/heterogeneity"].to_dataset()
        assert np.isnan(truth.difference.values).all()
        assert np.isnan(truth.depth_trend.values).all()


# ------------------------------------------------------------------------------- a whole electrode

FEW_BODIES = Extent(size_px=150, agglomerates=1, primaries=14, small_agglomerates=0, particles=4)


@lru_cache(maxsize=2)
def whole_electrode(state: Any) -> dict[str, Simulation]:
    return wide_electrode(2, state=state, extent=FEW_BODIES)


def test_charged_electrode_shows_at_the_other_edges() -> None:
    electrode = whole_electrode("charged")
    assert list(electrode) == ["mn_l3", "ni_l3", "o_k"]
    assert [s.run["edge"] for s in electrode.values()] == ["Mn L3", "Ni L3", "O K"]
    steps = [float(s.stack.y[1] - s.stack.y[0]) for s in electrode.values()]
    np.testing.assert_allclose(steps, [50, 60, 70])
    main = electrode["mn_l3"]
    assert main.run["sample"]["state"] == "charged"
    assert main.run["sample"]["cycles"] == 125
    rows = main.truth["entry/particles"].to_dataset()
    assert float(rows.mn3_fraction.max()) < 0.07
    for name in ("ni2_fraction", "o_reduced_fraction"):
        assert rows[name].mean() > 0.3
        assert rows[name].sel(particle=rows.place == "outside").mean() > (
            rows[name].sel(particle=rows.place == "interior").mean() + 0.05
        )
    assert np.all(rows.overlap < 1.05)
    assert rows.thickness.max() <= 100.0
    offsets = [maps(s).attrs["offset_y_nm"] for s in electrode.values()]
    assert offsets[0] == 0
    assert min(abs(offset) for offset in offsets[1:]) > 70


def test_discharged_electrode_has_a_repeat_of_one_agglomerate() -> None:
    electrode = whole_electrode("discharged")
    main, repeat = electrode["mn_l3"], electrode["repeat"]
    assert main.truth["entry/heterogeneity/difference"].values[0] > 0.05
    both = table(main).sel(particle=table(repeat).particle)
    assert np.sum(both.agglomerate.values == 1) == 14
    assert not table(repeat).at_border.values[both.agglomerate.values == 1].any()
    change = table(repeat).mn3_fraction - both.mn3_fraction
    np.testing.assert_allclose(change, 0.02, atol=0.003)
    # The other state is the same electrode.
    charged = whole_electrode("charged")["mn_l3"]
    assert [(p.y, p.x, p.cut_nm) for p in main.particles] == [
        (p.y, p.x, p.cut_nm) for p in charged.particles
    ]


# ------------------------------------------------------------------------------- refusals, files


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"sample": Sample(shape="cube")}, "Sample.shape"),  # type: ignore[arg-type]
        ({"sample": Sample(radius_nm=(80.0, 60.0))}, "Sample.radius_nm"),
        ({"sample": Sample(surface_fraction=1.2)}, "Sample.surface_fraction"),
        ({"sample": Sample(particles=400)}, "Sample.particles"),
        ({"sample": Sample(skin_nm=2.0), "scan": Scan(edge="O K")}, "Sample.skin_nm"),
        ({"sample": Sample(agglomerates=1, gap_nm=70.0)}, "Sample.primaries"),
        ({"instrument": Instrument(photons=0.0)}, "Instrument.photons"),
        ({"instrument": Instrument(resolution_nm=-1.0)}, "Instrument.resolution_nm"),
        ({"instrument": Instrument(dark_counts=np.nan)}, "Instrument.dark_counts"),
        ({"scan": Scan(energies=(643.0, 640.0))}, "Scan.energies"),
        ({"scan": Scan(edge="Mn K")}, "Scan.edge"),
        ({"references": References(units="arb")}, "References.units"),  # type: ignore[arg-type]
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(schema.InputError) as caught:
        simulate(**options)
    assert caught.value.where == where
    assert caught.value.remedy


def test_run_description_has_the_names_of_the_design() -> None:
    run = demo().run
    assert list(run) == [
        "schema_version", "technique", "stack", "edge", "sample", "instrument", "i0",
        "references", "fraction", "seed",
    ]  # fmt: skip
    assert set(run["sample"]) == {
        "geometry", "section_nm", "formula", "density_g_cm3", "delithiated_time_s",
        "delithiated_time_rel_error",
    }  # fmt: skip
    assert set(run["instrument"]) == {
        "resolution_nm", "dark_counts", "spectral_fwhm_eV", "stray_fraction",
    }  # fmt: skip
    assert run["fraction"] == "mn3"
    assert run["i0"]["region"] == [0, 190, 0, 26]


@pytest.mark.parametrize(
    ("technique", "kind", "name"),
    [
        ("stxm", "nxstxm", "stack.hdf5"),
        ("stxm", "als", "stack.hdr"),
        ("ptychography", "cxi", "stack.cxi"),
    ],
)
def test_files_hold_what_was_simulated(
    tmp_path: Path, technique: Any, kind: Any, name: str
) -> None:
    from spectromap.io import als, cxi, nxstxm, results, spectra

    simulation = simulate(
        replace(SOME, particles=1),
        replace(CLEAN, technique=technique, photons=1000.0),
        replace(SMALL, shape_px=(40, 50)),
        seed=1,
    )
    description = write(simulation, tmp_path / "new" / "folder", kind)
    run = yaml.safe_load(description.read_text(encoding="utf-8"))
    assert run == {**simulation.run, "stack": name}
    readers: dict[str, Any] = {"nxstxm": nxstxm, "als": als, "cxi": cxi}
    stack = readers[kind].open(description.parent / name)
    np.testing.assert_allclose(stack.values, simulation.stack.values, rtol=1e-6)
    np.testing.assert_allclose(stack.energy, simulation.stack.energy, atol=1e-4)
    np.testing.assert_allclose(np.diff(stack.y), 8.0, rtol=1e-4)
    for component, entry in run["references"].items():
        told = spectra.read_spectrum(description.parent / entry["file"])
        assert told.attrs["units"] == "nm-1"
        np.testing.assert_allclose(told, simulation.given_references[component], rtol=1e-6)
    truth = results.read_result(description.parent / "truth.h5")
    xr.testing.assert_allclose(
        truth["entry/maps"].to_dataset(), simulation.truth["entry/maps"].to_dataset()
    )
    assert not list(description.parent.glob("*.part"))


def test_a_format_that_cannot_hold_the_quantity_is_refused(tmp_path: Path) -> None:
    simulation = simulate(replace(SOME, particles=0), CLEAN, SMALL)
    with pytest.raises(schema.InputError, match="Use nxstxm or als"):
        write(simulation, tmp_path, "cxi")
    assert not list(tmp_path.iterdir())


def test_demo_field_is_quick_and_as_described() -> None:
    simulation = demo()
    assert simulation.stack.sizes == {"energy": 60, "y": 190, "x": 220}
    assert table(simulation).sizes["particle"] == 14
    assert not table(simulation).at_border.any()
    assert len({type(p.body) for p in simulation.particles}) == 3
    thickness = maps(simulation).thickness.values
    peak = float(simulation.references.mn4.max())
    assert 3 < peak * thickness.max() < 5.5
    shifts = simulation.truth["entry/shifts"]
    assert 2 < np.ptp(shifts.shift_x.values) / 7 < 25
    coverage = np.mean(maps(simulation).particle_label.values > 0)
    assert 0.12 < coverage < 0.5


def test_superellipsoid_that_is_a_sphere() -> None:
    body = Superellipsoid((50.0, 50.0, 50.0), (1.0, 1.0), np.eye(3))
    y, x, z = grid(50.0, 5.0)
    near = np.abs(Sphere(50.0).level(y, x, z)) < 10
    np.testing.assert_allclose(
        body.level(y, x, z)[near], Sphere(50.0).level(y, x, z)[near], atol=1e-2
    )
    assert body.volume == pytest.approx(Sphere(50.0).volume)
