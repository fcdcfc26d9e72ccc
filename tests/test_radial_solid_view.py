"""Bodies seen through the optics, against spheres in closed form, brute force and simulated fields.

Brute force shares nothing with the package: paths through spheres by formula, what has diffused by
summing a series along the beam, a blurred image at every energy and a fit of every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap import synthetic
from spectromap.profiles import radial_profiles
from spectromap.radial import MODELS, fit
from spectromap.radial.context import Context, optics_of
from spectromap.radial.fit import fit_models
from spectromap.radial.solid_view import Beside, Field, SolidView
from spectromap.radial.view import Body, Profile, SphereView
from spectromap.schema import InputError

Array = NDArray[np.floating[Any]]

ENERGY = np.linspace(636.0, 648.0, 24)
#: Cells to a pixel of the brute force.
FINE = 5
PHOTONS = 1e4


def _line(centre: float, width: float) -> Array:
    return np.exp(-(((ENERGY - centre) / width) ** 2))


MN4 = 0.004 + 0.012 * _line(643.6, 0.9) + 0.006 * _line(641.2, 0.7)
MN3 = 0.004 + 0.015 * _line(641.8, 1.0) + 0.005 * _line(643.2, 1.2)


@lru_cache(maxsize=1)
def references() -> xr.Dataset:
    """Two spectra per nm with the sizes of Mn L3 in an oxide."""
    units = {"units": "nm-1"}
    return xr.Dataset({"mn4": ("energy", MN4, units), "mn3": ("energy", MN3, units)})


def fitted(frames: Array) -> tuple[Array, Array]:
    """Thickness of Mn4+ and Mn3+ of every pixel (e, y, x): counts fitted by their likelihood."""
    columns = np.column_stack([MN4, MN3, np.ones(ENERGY.size)])
    shape, wanted = frames.shape[1:], frames.reshape(ENERGY.size, -1)
    found = np.linalg.lstsq(columns, -np.log(wanted), rcond=None)[0]
    for _ in range(8):
        model = np.exp(-columns @ found)
        normal = np.einsum("ep,ej,ek->pjk", model, columns, columns)
        right = np.einsum("ep,ej->pj", model - wanted, columns)
        found += np.linalg.solve(normal, right[..., None])[..., 0].T
    return found[0].reshape(shape), found[1].reshape(shape)


@dataclass(frozen=True)
class Balls:
    """Spheres ``(y, x, radius, initial fraction)`` [nm], without noise.

    `depth` is sqrt(D t) [nm] or, with `shell`, the thickness of the outer phase; 0 where nothing
    has come into them.
    """

    balls: tuple[tuple[float, float, float, float], ...]
    shape: tuple[int, int]
    pixel: float
    resolution: float
    technique: str = "stxm"
    depth: float = 0.0
    surface: float = 0.6
    shell: bool = False

    def paths(self) -> tuple[Array, Array]:
        """Whole and mapped thickness on the cells [nm]."""
        y, x = ((np.arange(n * FINE) + 0.5) * self.pixel / FINE for n in self.shape)
        whole, mapped = np.zeros((2, y.size, x.size))
        for cy, cx, radius, initial in self.balls:
            # Dense towards the rim, where the thickness ends steeply.
            angle = np.linspace(0.0, 0.5 * np.pi, 500)
            rho, height = radius * np.sin(angle), radius * np.cos(angle)
            z = height[:, None] * (np.arange(200) + 0.5) / 200
            r = np.hypot(rho[:, None], z) / radius
            come = np.zeros(rho.size)
            if self.shell:
                core = np.sqrt(np.maximum((radius - self.depth) ** 2 - rho**2, 0.0))
                come = 1.0 - core / np.maximum(height, 1e-9)
            elif self.depth > 0:
                n = np.arange(1, 200)[:, None]
                decay = np.exp(-((n * np.pi * self.depth / radius) ** 2))
                grid = np.linspace(0.0, 1.0, 2001)
                series = 1.0 + 2.0 * ((-1.0) ** n * np.sinc(n * grid) * decay).sum(axis=0)
                come = np.interp(r, grid, series).mean(axis=1)
            off = np.hypot(y[:, None] - cy, x - cx)
            path = 2.0 * np.sqrt(np.maximum(radius**2 - off**2, 0.0))
            whole += path
            mapped += path * (initial + (self.surface - initial) * np.interp(off, rho, come))
        return whole, mapped

    def frames(self) -> Array:
        """Transmission of every pixel at every energy."""
        whole, mapped = self.paths()
        power = 0.5 if self.technique == "ptychography" else 1.0
        sigma = self.resolution / self.pixel * FINE / 2.354820045
        frames = []
        for base, other in zip(MN4, MN3, strict=True):
            od = (whole - mapped) * base + mapped * other
            soft = ndimage.gaussian_filter(np.exp(-power * od), sigma, mode="nearest")
            pixels = soft.reshape(self.shape[0], FINE, self.shape[1], FINE).mean(axis=(1, 3))
            frames.append(pixels ** (1.0 / power))
        return np.array(frames)

    def maps(self) -> xr.Dataset:
        """What a measurement without noise makes of them, with outlines that are true."""
        base, mapped = fitted(self.frames())
        y, x = ((np.arange(n) + 0.5) * self.pixel for n in self.shape)
        inside = np.array(
            [radius - np.hypot(y[:, None] - cy, x - cx) for cy, cx, radius, _ in self.balls]
        )
        nearest = inside.max(axis=0)
        labels = np.where(nearest > 0, inside.argmax(axis=0) + 1, 0)
        whole = base + mapped
        values = {
            "thickness": (whole, "nm"),
            "thickness_errors": (np.ones(self.shape), "nm"),
            "mn3_fraction": (mapped / np.where(np.abs(whole) > 1e-3, whole, 1.0), "1"),
            "mn3_fraction_errors": (np.full(self.shape, 0.01), "1"),
            "particle_label": (labels, "1"),
            "edge_distance": (nearest, "nm"),
        }
        return xr.Dataset(
            {k: (("y", "x"), v, {"units": u}) for k, (v, u) in values.items()},
            coords={k: (k, v, {"units": "nm"}) for k, v in {"y": y, "x": x}.items()},
        )

    @property
    def bin_nm(self) -> float:
        """Width of the bins."""
        return max(self.pixel, 0.5 * self.resolution)

    def context(self, optics: bool = True) -> Context:
        """What the models are told."""
        return Context(
            resolution_nm=self.resolution,
            technique=self.technique,
            references=references() if optics else None,
            photons=PHOTONS,
        )

    def profile(self, maps: xr.Dataset, label: int = 1) -> tuple[Profile, NDArray[np.intp]]:
        """Binned fraction and thickness, as sums over the pixels, and the bins that have any."""
        mine = maps["particle_label"].values == label
        own = (maps["edge_distance"].values[mine] / self.bin_nm).astype(int)
        pixels = np.bincount(own)
        whole = np.bincount(own, maps["thickness"].values[mine])
        amount = np.bincount(own, (maps["thickness"] * maps["mn3_fraction"]).values[mine])
        bins = np.flatnonzero(pixels)
        lower = bins * self.bin_nm
        count = bins.size
        profile = Profile(
            lower=lower,
            upper=lower + self.bin_nm,
            fraction=(amount / np.maximum(whole, 1e-9))[bins],
            variance=np.full(count, 1e-4),
            thickness=(whole / np.maximum(pixels, 1))[bins],
            thickness_errors=np.ones(count),
            outline=self.balls[label - 1][2],
        )
        return profile, bins

    def view(self, label: int = 1, optics: bool = True) -> tuple[SolidView, Profile]:
        """One particle as a body, and its profile."""
        maps, context = self.maps(), self.context(optics)
        field = Field(maps, self.bin_nm, context, optics_of(context))
        data, bins = self.profile(maps, label)
        (view,) = field.views(label, data, bins, 0.1)
        return view, data


def one(technique: str = "stxm", **more: Any) -> Balls:
    """A sphere of 80 nm at 10 nm, off the centre of the field."""
    return Balls(((110.7, 113.9, 80.0, 0.1),), (44, 45), 5.0, 10.0, technique, **more)


# ------------------------------------------------------------------------------------- spheres


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
def test_a_sphere_is_seen_as_spheres_are(technique: str) -> None:
    depths, fractions = np.array([0.08, 0.2, 0.45]), (np.full(3, 0.1), np.full(3, 0.6))
    scene = one(technique)
    view, data = scene.view()
    sphere = SphereView.of(Body(80.0), data, scene.context(), optics_of(scene.context()))
    assert view.radius == pytest.approx(80.0, rel=0.005)
    # Pixels do not fill the outermost bins evenly, which the spheres know nothing of.
    for model, rim, rest in (("diffusion", 0.008, 0.004), ("core-shell", 0.028, 0.012)):
        pairs = [
            *zip(*(v.basis(model, 0.0, depths) for v in (view, sphere)), strict=True),
            tuple(v.seen(model, 0.0, depths, *fractions) for v in (view, sphere)),
        ]
        for ours, theirs in pairs:
            assert ours[0] == pytest.approx(theirs[0], abs=rim)
            assert ours[1:] == pytest.approx(theirs[1:], abs=rest)
    (ours, path), (theirs, chord) = (v.uniform(0.1) for v in (view, sphere))
    assert ours == pytest.approx(theirs, abs=0.0015)
    assert path[2:] == pytest.approx(chord[2:], rel=0.015)


def test_without_reference_spectra_amounts_are_blurred() -> None:
    depths = np.array([0.08, 0.2, 0.45])
    view, data = one().view(optics=False)
    sphere = SphereView.of(Body(80.0), data, one().context(False), None)
    for model, tolerance in (("diffusion", 0.008), ("core-shell", 0.026)):
        first, second = view.basis(model, 0.0, depths)
        for ours, theirs in zip((first, second), sphere.basis(model, 0.0, depths), strict=True):
            assert ours == pytest.approx(theirs, abs=tolerance)
        seen = view.seen(model, 0.0, depths, np.full(3, 0.1), np.full(3, 0.6))
        assert seen == pytest.approx(0.1 * first + 0.6 * second, abs=1e-5)
    assert view.uniform(0.1)[0] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
@pytest.mark.parametrize("shell", [False, True])
def test_what_is_in_a_sphere_is_seen_as_brute_force_sees_it(technique: str, shell: bool) -> None:
    view, data = one(technique, depth=16.0, shell=shell).view()
    model = "core-shell" if shell else "diffusion"
    depth, initial, surface = (np.array([v]) for v in (16.0 / view.radius, 0.1, 0.6))
    seen = view.seen(model, 0.0, depth, initial, surface)[:, 0]
    assert seen == pytest.approx(data.fraction, abs=0.001 if not shell else 0.004)
    # What small optical densities would give is well off: the full chain is needed.
    first, second = view.basis(model, 0.0, depth)
    off = np.abs(0.1 * first + 0.6 * second - data.fraction[:, None]).max()
    assert off > 0.004


@pytest.mark.parametrize(
    ("technique", "pixel", "resolution", "radius", "rim"),
    [
        ("stxm", 5.0, 10.0, 80.0, 0.018),
        ("ptychography", 5.0, 10.0, 80.0, 0.008),
        ("stxm", 20.0, 45.0, 180.0, 0.06),
    ],
)
def test_uniform_particles_show_the_false_rim_of_brute_force(
    technique: str, pixel: float, resolution: float, radius: float, rim: float
) -> None:
    count = int(2 * (radius + 2.5 * resolution) / pixel)
    middle = 0.5 * count * pixel
    ball = (middle + 0.7, middle + 1.9, radius, 0.1)
    view, data = Balls((ball,), (count, count + 1), pixel, resolution, technique).view()
    assert data.fraction[0] - 0.1 > rim
    fraction, thickness = view.uniform(0.1)
    assert fraction == pytest.approx(data.fraction, abs=0.0015)
    assert thickness == pytest.approx(data.thickness, rel=0.004)


def test_neighbours_shine_into_the_rim() -> None:
    def misfits(gap: float, resolution: float, radius: float, pixel: float) -> tuple[float, float]:
        """Largest error of the fraction in a bin, with neighbours and without them."""
        count = int(2 * (radius + 2.5 * resolution) / pixel)
        y, x = 0.5 * count * pixel + 0.7, 0.5 * count * pixel + 1.9
        apart = 2 * radius + gap * resolution
        balls = (y, x, radius, 0.1), (y, x + apart, radius, 0.5), (y + apart, x, radius, 0.5)
        view, data = Balls(balls, (2 * count, 2 * count), pixel, resolution).view()
        nothing = np.zeros_like(view.beside.thickness)
        alone = replace(view, beside=Beside(None, nothing, nothing))
        seen, bare = (float(np.abs(v.uniform(0.1)[0] - data.fraction).max()) for v in (view, alone))
        return seen, bare

    seen, bare = misfits(0.25, 10.0, 80.0, 5.0)
    assert seen < 0.0015 < 0.0035 < bare
    seen, bare = misfits(0.5, 45.0, 180.0, 20.0)
    assert seen < 0.0025 < 0.0035 < bare
    # Spheres end so thinly that one resolution further nothing of a neighbour is left.
    seen, bare = misfits(1.0, 10.0, 80.0, 5.0)
    assert max(seen, bare) < 0.001


# ------------------------------------------------------------------------------------- depths


@pytest.mark.parametrize("model", ["diffusion", "core-shell"])
def test_between_the_depths_that_were_solved(model: str) -> None:
    scene = one()
    view, data = scene.view(optics=False)
    inner = np.array([0.0312, 0.0467, 0.1234, 0.37, 0.66, 0.85])
    found = view.basis(model, 0.0, inner)
    exact = MODELS[model].through(view.solid, inner * view.radius, 0.0)
    sigma = 10.0 / 2.354820045
    whole = view.grid.bins @ view.grid.blurred(view.solid.thickness[None], sigma)
    for ours, maps in zip(found, exact, strict=True):
        wanted = view.grid.bins @ view.grid.blurred(maps, sigma) / whole
        assert ours[:, :-1] == pytest.approx(wanted[:, :-1], abs=1e-3)
        # The last of a core is gone within one step.
        assert ours[:, -1] == pytest.approx(wanted[:, -1], abs=7e-3)
    thin = np.array([0.003, 0.01, 0.02])
    sphere = SphereView.of(Body(80.0), data, scene.context(False), None)
    for ours, theirs in zip(
        view.basis(model, 0.0, thin), sphere.basis(model, 0.0, thin), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=0.015)
    initial, surface = view.basis(model, 0.0, np.array([0.0, 1e-9, 1.0, 50.0]))
    for share, start in ((initial, 1.0), (surface, 0.0)):
        assert share[:, :2] == pytest.approx(start, abs=1e-4)
        assert share[:, 2:] == pytest.approx(1.0 - start, abs=1e-3)


def test_models_without_a_solution_in_the_body_use_its_layers() -> None:
    solid = one().view(optics=False)[0].solid
    depths = 80.0 * np.array([0.05, 0.12, 0.3])
    for name in ("diffusion", "core-shell"):
        model = MODELS[name]
        pairs = zip(
            model.through(solid, depths, 0.0),
            replace(model, solid=None).through(solid, depths, 0.0),
            strict=True,
        )
        for solved, layered in pairs:
            off = np.sqrt(np.mean((solved - layered) ** 2, axis=(1, 2)))
            assert np.all(off < 0.007 * solid.thickness.mean())
            assert layered.sum(axis=(1, 2)) == pytest.approx(solved.sum(axis=(1, 2)), rel=0.01)


# ---------------------------------------------------------------------------------- the fit


ENERGIES = tuple(synthetic.default_energies("Mn L3")[::3])
DT_NM2 = 400.0


@lru_cache(maxsize=4)
def polyhedra(geometry: str, seed: int) -> tuple[xr.Dataset, xr.Dataset, Context]:
    """Maps of five simulated polyhedra with their true outlines, fitted pixel by pixel."""
    made = synthetic.simulate(
        synthetic.Sample(
            geometry=geometry,  # type: ignore[arg-type]
            shape="polyhedron",
            particles=5,
            radius_nm=(60.0, 90.0),
            D_cm2_s=1e-17,
            delithiated_time_s=DT_NM2 * 1e-14 / 1e-17,
        ),
        synthetic.Instrument(photons=3e4, dark_counts=0.0, spectral_fwhm_eV=0.0),
        synthetic.Scan(pixel_nm=5.0, shape_px=(130, 150), energies=ENERGIES),
        seed=seed,
    )
    truth = made.truth["entry/maps"].to_dataset()
    i0 = made.truth["entry/spectra"]["i0"].values[:, None, None]
    spectra = made.references[["mn4", "mn3"]].interp(energy=list(ENERGIES))
    columns = np.column_stack([spectra["mn4"], spectra["mn3"], np.ones(len(ENERGIES))])
    passed = np.maximum(made.stack.values / i0, 1e-4)
    weight = passed * i0
    right = np.einsum("eyx,ek->yxk", weight * -np.log(passed), columns)
    covariance = np.linalg.inv(np.einsum("eyx,ej,ek->yxjk", weight, columns, columns))
    base, mapped, _ = np.moveaxis(np.einsum("yxjk,yxk->yxj", covariance, right), -1, 0)
    (v44, v43), (_, v33) = np.moveaxis(covariance[..., :2, :2], (2, 3), (0, 1))
    whole = base + mapped
    safe = np.where(np.abs(whole) > 1.0, whole, 1.0)
    variance = base**2 * v33 + mapped**2 * v44 - 2.0 * base * mapped * v43
    values = {
        "thickness": (whole, "nm"),
        "thickness_errors": (np.sqrt(v44 + v33 + 2.0 * v43), "nm"),
        "mn3_fraction": (mapped / safe, "1"),
        "mn3_fraction_errors": (np.sqrt(variance) / safe**2, "1"),
        "particle_label": (truth["particle_label"].values, "1"),
        "edge_distance": (truth["edge_distance"].values, "nm"),
    }
    maps = xr.Dataset(
        {name: (("y", "x"), v, {"units": u}) for name, (v, u) in values.items()},
        coords={"y": truth["y"], "x": truth["x"]},
    )
    context = Context(
        geometry=geometry,
        section_nm=80.0 if geometry == "lamella" else None,
        resolution_nm=10.0,
        resolution_rel_error=0.0,
        references=spectra,
        photons=float(i0.mean()),
    )
    return maps, made.truth["entry/particles"].to_dataset(), context


def errors(geometry: str, shape: Literal["sphere", "measured"]) -> tuple[Array, Array]:
    """Error of log10 D t of ten polyhedra, and what it is said to be."""
    found, stated = [], []
    for seed in (1, 2):
        maps, particles, context = polyhedra(geometry, seed)
        profiles = radial_profiles(maps, "mn3", 10.0)
        row = fit_models(
            profiles,
            particles,
            context,
            maps,
            models=("diffusion",),
            shape=shape,
        ).isel(model=0)
        found.append(np.log10(row["Dt_cm2"].values / (DT_NM2 * 1e-14)))
        stated.append(0.5 * np.log10((row["Dt_high"] / row["Dt_low"]).values))
    return np.concatenate(found), np.concatenate(stated)


def test_polyhedra_diffuse_as_their_own_bodies_do() -> None:
    spheres, _ = errors("dispersed", "sphere")
    bodies, stated = errors("dispersed", "measured")
    rms = [float(np.sqrt(np.mean(e**2))) for e in (spheres, bodies)]
    assert spheres.mean() > 0.07
    assert abs(bodies.mean()) < 0.03
    assert rms[1] < 0.045
    assert rms[1] < 0.4 * rms[0]
    assert np.sqrt(np.mean((bodies / stated) ** 2)) < 1.3


def test_sections_of_polyhedra_are_cut_from_their_bodies() -> None:
    spheres, _ = errors("lamella", "sphere")
    bodies, stated = errors("lamella", "measured")
    rms = [float(np.sqrt(np.mean(e**2))) for e in (spheres, bodies)]
    assert rms[1] < rms[0]
    assert rms[1] < 0.07
    assert abs(bodies.mean()) < 0.05
    assert np.sqrt(np.mean((bodies / stated) ** 2)) < 1.3


def test_wide_blur_has_edges_placed_by_the_thickness() -> None:
    # A front of 12 nm beside outlines that lie 3 nm too far inside, as a blur of 45 nm makes them.
    depth = 12.0
    scene = Balls(((287.0, 293.0, 180.0, 0.05),), (29, 29), 20.0, 45.0, depth=depth)
    maps = scene.maps()
    distance = maps["edge_distance"]
    maps["edge_distance"] = distance.copy(data=distance.values - 3.0)
    labels = maps["particle_label"]
    inside = maps["edge_distance"].values > 0
    maps["particle_label"] = labels.copy(data=np.where(inside, labels.values, 0))
    particles = xr.Dataset({"radius": ("particle", [177.0])}, coords={"particle": [1]})
    profiles = radial_profiles(maps, "mn3", 45.0)

    def off(edge_error: float) -> tuple[float, float]:
        row = fit_models(
            profiles,
            particles,
            replace(scene.context(), resolution_rel_error=0.0),
            maps,
            models=("diffusion",),
            edge_error=edge_error,
        ).isel(model=0, particle=0)
        return float(np.log10(row["Dt_cm2"] / (depth**2 * 1e-14))), float(row["log10_D_systematic"])

    (given, _), (placed, stated) = off(0.02), off(0.05)
    assert abs(given) > 0.15
    assert abs(placed) < 0.08
    assert stated == pytest.approx(0.6 * 2 * 2.25 / (depth * np.log(10)), rel=0.1)


def test_which_shape_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, particles, context = polyhedra("dispersed", 1)
    profiles = radial_profiles(maps, "mn3", 10.0).isel(particle=slice(2))

    def depth(given: xr.Dataset | None, **options: Any) -> Array:
        made = fit_models(profiles, particles, context, given, models=("diffusion",), **options)
        return np.asarray(made["Dt_cm2"].values)

    measured, sphere = depth(maps, shape="measured"), depth(maps, shape="sphere")
    assert np.all(np.abs(np.log10(measured / sphere)) > 0.02)
    assert np.array_equal(depth(maps), measured)
    assert np.array_equal(depth(None), sphere)
    monkeypatch.setattr(fit, "MOST_BODIES", 1)
    assert np.array_equal(depth(maps), sphere)
    with pytest.raises(InputError, match="maps"):
        depth(None, shape="measured")
    with pytest.raises(InputError, match="shape"):
        depth(maps, shape="cube")
