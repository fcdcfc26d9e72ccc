"""Recovery of D, of the model and of their errors from simulated measurements.

The simulation shares nothing with the package: profiles by brute-force series or a voxel solution,
line integrals by summing voxels, blurred images, Poisson counts, a spectral fit of every pixel.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from spectromap.profiles import radial_profiles
from spectromap.radial import MODELS, Model
from spectromap.radial.fit import Context, fit_models, pool
from spectromap.schema import InputError

pytestmark = pytest.mark.long

ENERGY = np.linspace(636.0, 648.0, 30)
SECONDS = 4e5
#: Photon noise alone, as for a perfect sphere and perfect reference spectra.
PHOTONS_ONLY = {
    "fraction_noise": 0.0,
    "distance_noise_nm": 0.0,
    "rim_allowance": 0.0,
    "shape_error": 0.0,
    "edge_error": 0.0,
}


@lru_cache(maxsize=1)
def references() -> xr.Dataset:
    """Two spectra per nm with the sizes of Mn L3 in an oxide."""

    def peak(centre: float, width: float) -> np.ndarray:
        return np.exp(-(((ENERGY - centre) / width) ** 2))

    def step(centre: float) -> np.ndarray:
        return 0.5 + np.arctan((ENERGY - centre) / 0.5) / np.pi

    mn4 = 0.0022 + 0.003 * step(642.0) + 0.012 * peak(643.6, 0.9) + 0.006 * peak(641.2, 0.7)
    mn3 = 0.0022 + 0.003 * step(641.0) + 0.015 * peak(641.8, 1.0) + 0.005 * peak(643.2, 1.2)
    return xr.Dataset(
        {"mn4": ("energy", mn4, {"units": "nm-1"}), "mn3": ("energy", mn3, {"units": "nm-1"})},
        coords={"energy": ("energy", ENERGY, {"units": "eV"})},
    )


def crank(r: np.ndarray, tau: float) -> np.ndarray:
    """Concentration in a sphere by three hundred terms of the sine series."""
    n = np.arange(1, 301)[:, None]
    terms = (-1.0) ** n * np.sinc(n * r) * np.exp(-(n**2) * np.pi**2 * tau)
    return 1.0 + 2.0 * terms.sum(axis=0)


def sphere(
    kind: str,
    radius: float,
    depth: float,
    initial: float,
    surface: float,
    slab: tuple[float, float] | None = None,
    border: float = 40.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Thickness and mapped thickness [nm] on pixels of 1 nm, by summing along z."""
    lower, upper = (-radius, radius) if slab is None else slab
    z = np.arange(lower, upper, 0.4) + 0.2
    # Dense towards the rim, where the thickness ends steeply.
    rho = radius * np.sin(np.linspace(0, 0.5 * np.pi, 700))
    r = np.hypot(rho[:, None], z)
    grid = np.linspace(0, 1, 1001)
    shape = {
        "diffusion": crank(grid, (depth / radius) ** 2),
        "core-shell": (grid > 1 - depth / radius).astype(float),
        "uniform": np.zeros(grid.size),
        "buried": ((grid > 0.3) & (grid < 1 - depth / radius)).astype(float),
    }[kind]
    composition = initial + (surface - initial) * np.interp(r / radius, grid, shape)
    inside = r < radius
    whole, mapped = 0.4 * inside.sum(axis=1), 0.4 * (inside * composition).sum(axis=1)
    half = np.ceil((radius + border) / 20) * 20 + 10
    fine = np.arange(-half, half, 0.25) + 0.125
    distance = np.hypot(fine[:, None], fine)
    return tuple(  # type: ignore[return-value]
        np.interp(distance, rho, values, right=0.0)
        .reshape(fine.size // 4, 4, fine.size // 4, 4)
        .mean(axis=(1, 3))
        for values in (whole, mapped)
    )


def images(
    whole: np.ndarray, mapped: np.ndarray, fwhm: float, pixel: int, technique: str
) -> np.ndarray:
    """Transmission at every energy, blurred and sampled."""
    power = 0.5 if technique == "ptychography" else 1.0
    frames = []
    for base, other in zip(references()["mn4"].values, references()["mn3"].values, strict=True):
        od = (whole - mapped) * base + mapped * other
        blurred = ndimage.gaussian_filter(np.exp(-power * od), fwhm / 2.354820045, truncate=5)
        # The filter mirrors at the border, where there is nothing but open area.
        frames.append(blurred[pixel // 2 :: pixel, pixel // 2 :: pixel] ** (1.0 / power))
    return np.array(frames)


def unmixed(
    frames: np.ndarray, photons: float, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fraction, thickness and their errors by a photon-weighted fit with an offset."""
    counts = frames * photons if rng is None else rng.poisson(frames * photons).astype(float)
    counts = np.maximum(counts, 1.0)
    columns = np.column_stack([references()["mn4"], references()["mn3"], np.ones(ENERGY.size)])
    od = -np.log(counts / photons)
    normal = np.einsum("eyx,ej,ek->yxjk", counts, columns, columns)
    right = np.einsum("eyx,eyx,ej->yxj", counts, od, columns)
    covariance = np.linalg.inv(normal)
    t4, t3, _ = np.moveaxis(np.einsum("yxjk,yxk->yxj", covariance, right), -1, 0)
    v44, v33, v34 = covariance[..., 0, 0], covariance[..., 1, 1], covariance[..., 0, 1]
    t = t3 + t4
    t = np.where(np.abs(t) < 1e-6, 1e-6, t)
    sigma = np.sqrt(t4**2 * v33 + t3**2 * v44 - 2 * t3 * t4 * v34) / t**2
    return t3 / t, sigma, t, np.sqrt(v33 + v44 + 2 * v34)


def outline(frames: np.ndarray, pixel: int, threshold: float) -> tuple[np.ndarray, float]:
    """Edge distance of every pixel [nm] and equivalent radius, from the noise-free thickness."""
    clean = ndimage.zoom(
        unmixed(frames, 1e12, None)[2], pixel, order=3, grid_mode=True, mode="nearest"
    )
    labels, _ = ndimage.label(clean > threshold)
    inside = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    signed = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    signed = signed - 0.5 * np.sign(signed)
    start = pixel // 2
    return signed[start::pixel, start::pixel], float(np.sqrt(inside.sum() / np.pi))


def experiment(
    body: tuple[np.ndarray, np.ndarray],
    count: int = 1,
    *,
    fwhm: float = 10.0,
    pixel: int = 5,
    technique: str = "ptychography",
    photons: float = 1e4,
    threshold: float = 12.0,
    seed: int = 0,
    **context: object,
) -> tuple[xr.Dataset, xr.Dataset, Context]:
    """Profiles, particle table and context of several measurements of one body."""
    frames = images(*body, fwhm, pixel, technique)
    distance, radius = outline(frames, pixel, threshold)
    rng = np.random.default_rng(seed)
    axis = np.arange(frames.shape[1]) * float(pixel)
    profiles = []
    for label in range(1, count + 1):
        names = ("mn3_fraction", "mn3_fraction_errors", "thickness", "thickness_errors")
        maps = xr.Dataset(
            {
                name: (("y", "x"), values, {"units": "nm" if "thick" in name else "1"})
                for name, values in zip(names, unmixed(frames, photons, rng), strict=True)
            },
            coords={dim: (dim, axis, {"units": "nm"}) for dim in ("y", "x")},
        )
        maps["particle_label"] = (("y", "x"), np.where(distance > 0, label, 0))
        maps["edge_distance"] = (("y", "x"), distance, {"units": "nm"})
        profiles.append(radial_profiles(maps, "mn3", fwhm))
    particles = xr.Dataset(
        {"radius": ("particle", np.full(count, radius))},
        coords={"particle": np.arange(1, count + 1)},
    )
    options = {
        "resolution_nm": fwhm,
        "resolution_rel_error": 0.0,
        "technique": technique,
        "references": references(),
        "photons": photons,
        "edge_threshold_nm": threshold,
        "delithiated_time_s": SECONDS,
    } | context
    return xr.concat(profiles, "particle", data_vars="all"), particles, Context(**options)


def log_d(depth_nm: float) -> float:
    """The log10 of D in cm2/s that reaches a depth in the time of all tests."""
    return float(np.log10(depth_nm**2 * 1e-14 / SECONDS))


@lru_cache(maxsize=1)
def diffused() -> tuple[xr.Dataset, xr.Dataset, Context]:
    """Forty measurements of a sphere of 100 nm with D t / R^2 = 0.04."""
    return experiment(sphere("diffusion", 100.0, 20.0, 0.1, 0.6), 40, technique="stxm")


# ------------------------------------------------------------------------------- spheres


def test_diffusion_is_recovered_with_errors_that_cover() -> None:
    profiles, particles, context = diffused()
    result = fit_models(profiles, particles, context, **PHOTONS_ONLY)
    row = result.sel(model="diffusion")
    assert set(result["verdict"].values) == {"diffusion"}
    found = np.log10(row["D_cm2_s"].values)
    assert found.mean() == pytest.approx(log_d(20.0), abs=0.02)
    # The theory's own figure at 10,000 counts, 10 nm, R = 100 nm, D t / R^2 = 0.04.
    assert row["log10_D_bound"].values == pytest.approx(0.006, abs=0.0025)
    assert found.std() == pytest.approx(float(row["log10_D_bound"].mean()), rel=0.5)
    half_width = 0.5 * np.log10((row["D_high"] / row["D_low"]).values)
    pulls = (found - found.mean()) / half_width
    assert 0.5 < np.mean(np.abs(pulls) < 1) < 0.9
    for name, truth in (("surface_fraction", 0.6), ("initial_fraction", 0.1)):
        assert row[name].values == pytest.approx(truth, abs=0.02)
        spread = row[name].values.std()
        assert float(row[f"{name}_errors"].mean()) == pytest.approx(spread, rel=0.5)
    assert np.all(row["goodness"].values > 1e-3)
    assert float(result["goodness"].sel(model="core-shell").max()) < 1e-6
    assert np.nanmax(np.abs(row["fit"] - profiles["mn3_fraction"]).values[:, 1:]) < 0.03


def test_default_errors_are_honest_about_what_photons_do_not_know() -> None:
    profiles, particles, context = diffused()
    some = profiles.isel(particle=slice(10)), particles.isel(particle=slice(10))
    row = fit_models(*some, context).sel(model="diffusion")
    assert np.all((row["D_low"] < 10 ** log_d(20.0)) & (row["D_high"] > 10 ** log_d(20.0)))
    half_width = 0.5 * np.log10(row["D_high"] / row["D_low"])
    assert np.all((half_width > 0.05) & (half_width < 0.08))


@pytest.mark.parametrize(("technique", "depth"), [("stxm", 20.0), ("ptychography", 35.0)])
def test_core_shell_is_recognised(technique: str, depth: float) -> None:
    body = sphere("core-shell", 100.0, depth, 0.1, 0.6)
    profiles, particles, context = experiment(body, 5, technique=technique)
    result = fit_models(profiles, particles, context)
    row = result.sel(model="core-shell")
    assert set(result["verdict"].values) == {"core-shell"}
    assert row["shell_thickness"].values == pytest.approx(depth, abs=0.7)
    assert np.all((row["shell_low"] < depth + 0.5) & (row["shell_high"] > depth - 0.5))
    assert row["surface_fraction"].values == pytest.approx(0.6, abs=0.015)
    assert row["initial_fraction"].values == pytest.approx(0.1, abs=0.015)
    assert np.isnan(row["D_cm2_s"]).all()
    assert np.isnan(result["shell_thickness"].sel(model="diffusion")).all()


@pytest.mark.parametrize("fwhm", [pytest.param(10.0, marks=pytest.mark.acceptance), 45.0])
def test_false_rims_of_uniform_particles_are_not_gradients(fwhm: float) -> None:
    pixel = 5 if fwhm == 10 else 20
    body = sphere("uniform", 100.0, 0.0, 0.1, 0.1, border=2.5 * fwhm)
    profiles, particles, context = experiment(
        body, 40, fwhm=fwhm, pixel=pixel, technique="stxm", threshold=12.0 if fwhm == 10 else 20.0
    )
    rim = float((profiles["mn3_fraction"][:, 0] - profiles["mn3_fraction"][:, -1]).mean())
    assert rim > (0.01 if fwhm == 10 else 0.03)
    for options in ({}, PHOTONS_ONLY):
        verdicts = fit_models(profiles, particles, context, **options)["verdict"].values
        assert np.mean(verdicts == "no gradient") >= 0.95
    assert pool(fit_models(profiles, particles, context), particles)["verdict"] == "no gradient"


def test_at_the_resolution_of_a_zone_plate_large_particles_still_answer() -> None:
    for kind, depth in (("diffusion", 40.0), ("core-shell", 50.0)):
        body = sphere(kind, 160.0, depth, 0.1, 0.6, border=90.0)
        data = experiment(
            body, 6, fwhm=40.0, pixel=20, technique="stxm", threshold=20.0, photons=2e4
        )
        result = fit_models(*data)
        if kind == "diffusion":
            found = np.log10(result["D_cm2_s"].sel(model=kind).values)
            assert found == pytest.approx(log_d(depth), abs=0.2)
        else:
            assert result["shell_thickness"].sel(model=kind).values == pytest.approx(depth, abs=4)
        wrong = {"diffusion": "core-shell", "core-shell": "diffusion"}[kind]
        assert wrong not in result["verdict"].values


def test_blur_left_out_of_the_model_is_seen_in_d() -> None:
    """The full chain matters: without reference spectra the answer moves, within its error."""
    profiles, particles, _ = diffused()
    some = profiles.isel(particle=slice(3)), particles.isel(particle=slice(3))
    bare = Context(
        resolution_nm=10.0, delithiated_time_s=SECONDS, edge_threshold_nm=12.0, references=None
    )
    row = fit_models(*some, bare).sel(model="diffusion")
    truth = 10 ** log_d(20.0)
    assert np.all((row["D_low"] < truth) & (row["D_high"] > truth))
    sharp = Context(
        resolution_nm=0.5, delithiated_time_s=SECONDS, edge_threshold_nm=12.0, references=None
    )
    shift = np.log10(fit_models(*some, sharp).sel(model="diffusion")["D_cm2_s"] / truth)
    assert np.all(np.abs(shift) > 0.04)


def test_flat_profiles_give_one_sided_limits() -> None:
    late = experiment(sphere("diffusion", 100.0, 75.0, 0.1, 0.6), 4)
    result = fit_models(*late)
    row = result.sel(model="diffusion")
    assert np.all(row["log10_D_bound"] > 1.0)
    assert np.all(row["D_high"] / row["D_low"] > 3)
    assert np.all(row["D_low"] < 10 ** log_d(75.0))
    assert np.any(np.isinf(row["D_high"]))
    flat = experiment(sphere("uniform", 100.0, 0.0, 0.3, 0.3), 4)
    row = fit_models(*flat).sel(model="diffusion")
    assert np.mean((row["D_low"] == 0) | np.isinf(row["D_high"])) > 0.7


def test_profiles_that_follow_neither_model_are_undecided() -> None:
    data = experiment(sphere("buried", 100.0, 35.0, 0.1, 0.7), 2)
    result = fit_models(*data)
    assert set(result["verdict"].values) == {"undecided"}
    assert np.all(result["goodness"].values < 1e-7)


def test_a_thin_skin_gives_an_upper_limit() -> None:
    skin = experiment(sphere("diffusion", 100.0, 2.0, 0.1, 0.35), 4, photons=3e3)
    row = fit_models(*skin).sel(model="diffusion")
    assert np.all(row["D_low"] < 10 ** log_d(2.0))
    assert np.all(row["D_high"] > 10 ** log_d(2.0))
    assert np.all(row["D_high"] < 10 ** log_d(20.0))


# -------------------------------------------------------------------- other bodies, sections


def test_sections_are_cut_after_the_diffusion() -> None:
    for kind, height in (("diffusion", 35.0), ("diffusion", 65.0), ("core-shell", 50.0)):
        slab = (height - 40.0, height + 40.0)
        data = experiment(
            sphere(kind, 100.0, 20.0, 0.1, 0.6, slab), 2, geometry="lamella", section_nm=80.0
        )
        result = fit_models(*data)
        assert set(result["verdict"].values) == {kind}
        if kind == "diffusion":
            found = np.log10(result["D_cm2_s"].sel(model=kind).values)
            assert found == pytest.approx(log_d(20.0), abs=0.1)
        else:
            assert result["shell_thickness"].sel(model=kind).values == pytest.approx(20, abs=1.5)


@lru_cache(maxsize=1)
def cushion() -> np.ndarray:
    """Voxels of 4 nm inside a superellipsoid, between a sphere and a cube, turned at random."""
    axis = np.arange(-35, 35) * 4.0 + 2.0
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    return np.asarray((np.abs(points @ turn / 90.0) ** 4).sum(axis=-1) < 1.0)


@pytest.mark.parametrize("kind", ["diffusion", "core-shell"])
def test_a_body_between_sphere_and_cube_keeps_d_and_the_model(kind: str) -> None:
    inside = cushion()
    if kind == "diffusion":
        shape = np.where(inside, 0.0, 1.0)
        steps = int(np.ceil((20.0 / 4.0) ** 2 * 6.5))
        for _ in range(steps):
            change = -6.0 * shape
            for axis in range(3):
                change += np.roll(shape, 1, axis) + np.roll(shape, -1, axis)
            shape += inside * change * (20.0 / 4.0) ** 2 / steps
    else:
        shape = ndimage.distance_transform_edt(inside) * 4.0 < 22.0
    whole, mapped = 4.0 * inside.sum(axis=0), 4.0 * (inside * (0.1 + 0.5 * shape)).sum(axis=0)
    # Voxels to pixels of 1 nm without their staircase.
    body = tuple(
        np.pad(ndimage.gaussian_filter(np.kron(v, np.ones((4, 4))), 2.0), 40)
        for v in (whole.astype(float), mapped)
    )
    result = fit_models(*experiment(body, 2, fwhm=12.0))  # type: ignore[arg-type]
    assert set(result["verdict"].values) == {kind}
    if kind == "diffusion":
        found = np.log10(result["D_cm2_s"].sel(model=kind).values)
        assert found == pytest.approx(log_d(20.0), abs=0.12)
    else:
        assert result["shell_thickness"].sel(model=kind).values == pytest.approx(20.0, abs=3.0)


# ----------------------------------------------------------------------- errors and options


def test_errors_of_time_and_resolution_enter_d() -> None:
    profiles, particles, context = diffused()
    some = profiles.isel(particle=slice(4)), particles.isel(particle=slice(4))

    def width(**changes: float) -> tuple[float, float]:
        options = {name: getattr(context, name) for name in context.__dataclass_fields__}
        result = fit_models(*some, Context(**(options | changes)), **PHOTONS_ONLY)
        result = result.sel(model="diffusion")
        d = 0.5 * np.log10(result["D_high"] / result["D_low"]).mean().item()
        dt = 0.5 * np.log10(result["Dt_high"] / result["Dt_low"]).mean().item()
        return d, dt

    bare, bare_dt = width()
    assert bare == pytest.approx(bare_dt)
    timed, timed_dt = width(delithiated_time_rel_error=0.2)
    assert timed == pytest.approx(np.hypot(bare, 0.2 / np.log(10)), rel=1e-3)
    assert timed_dt == pytest.approx(bare_dt)
    blurred, blurred_dt = width(resolution_rel_error=0.5)
    assert blurred == pytest.approx(blurred_dt)
    assert blurred > 1.3 * bare


def test_without_a_time_only_the_product_is_known() -> None:
    profiles, particles, context = diffused()
    options = {name: getattr(context, name) for name in context.__dataclass_fields__}
    timeless = Context(**(options | {"delithiated_time_s": None}))
    models = fit_models(profiles.isel(particle=[0, 1]), particles, timeless)
    row = models.sel(model="diffusion")
    assert np.isnan(row["D_cm2_s"]).all()
    assert row["Dt_cm2"].values == pytest.approx(4e-12, rel=0.1)
    pooled = pool(models, particles)
    assert np.isnan(pooled["log10_D"])
    assert pooled["log10_Dt"] == pytest.approx(np.log10(4e-12), abs=0.05)


def test_criteria_are_what_they_are_called() -> None:
    profiles, particles, context = diffused()
    result = fit_models(profiles.isel(particle=[0]), particles, context).isel(particle=0)
    count = int(np.isfinite(profiles["mn3_fraction"][0]).sum())
    row = result.sel(model="diffusion")
    assert row["aicc"] == pytest.approx(row["chi2"] + 6 + 24 / (count - 4))
    assert row["bic"] == pytest.approx(row["chi2"] + 3 * np.log(count))


def test_either_end_may_be_the_larger() -> None:
    """Reduction at the surface is expected, oxidation is possible."""
    data = experiment(sphere("diffusion", 100.0, 20.0, 0.6, 0.2), 2)
    row = fit_models(*data).sel(model="diffusion")
    assert np.log10(row["D_cm2_s"].values) == pytest.approx(log_d(20.0), abs=0.05)
    assert np.all(row["initial_fraction"] > row["surface_fraction"])


def test_a_third_model_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def exponential(
        edges: np.ndarray, depth: np.ndarray, extra: float
    ) -> tuple[np.ndarray, np.ndarray]:
        middle = 0.5 * (edges[1:] + edges[:-1])
        changed = np.exp(-(1.0 - middle[:, None]) / depth)
        return 1.0 - changed, changed

    monkeypatch.setitem(MODELS, "exponential", Model(exponential, depth="shell_thickness"))
    profiles, particles, context = diffused()
    names = ("diffusion", "core-shell", "exponential")
    result = fit_models(profiles.isel(particle=[0, 1]), particles, context, models=names)
    assert result["model"].values.tolist() == list(names)
    assert np.isfinite(result["shell_thickness"].sel(model="exponential")).all()
    assert set(result["verdict"].values) <= {"diffusion", "undecided"}


def test_particles_that_cannot_be_fitted_stay_empty() -> None:
    profiles, particles, context = diffused()
    table = particles.copy()
    table["used"] = ("particle", np.arange(40) != 1)
    profiles = profiles.isel(particle=slice(3)).copy(deep=True)
    profiles["mn3_fraction"][2, 2:] = np.nan
    result = fit_models(profiles, table, context)
    assert np.isfinite(result["chi2"][0]).all()
    for row in (1, 2):
        assert result["verdict"][row] == "undecided"
        for name in ("chi2", "D_cm2_s", "aicc", "goodness"):
            assert np.isnan(result[name][row]).all()
    pooled = pool(result, table)
    assert pooled["particles_used"] == 1
    assert pooled["count_diffusion"] == 1
    assert pooled["count_undecided"] == 0


def test_no_particles_at_all() -> None:
    profiles, particles, context = diffused()
    models = fit_models(profiles.isel(particle=[]), particles, context)
    assert models.sizes["particle"] == 0
    pooled = pool(models, particles)
    assert pooled["verdict"] == "undecided"
    assert np.isnan(pooled["log10_D"])
    assert pooled["particles_used"] == 0


def test_references_without_a_scale_are_told(caplog: pytest.LogCaptureFixture) -> None:
    profiles, particles, context = diffused()
    plain = references().copy()
    for name in plain:
        plain[name] = plain[name].assign_attrs(units="1")
    options = {name: getattr(context, name) for name in context.__dataclass_fields__}
    fit_models(profiles.isel(particle=[0]), particles, Context(**(options | {"references": plain})))
    assert "nm-1" in caplog.text


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"geometry": "pellet"}, "geometry"),
        ({"geometry": "lamella"}, "section_nm"),
        ({"technique": "tem"}, "technique"),
        ({"resolution_nm": 0.0}, "resolution_nm"),
        ({"delithiated_time_s": -1.0}, "delithiated_time_s"),
        ({"photons": float("nan")}, "photons"),
        ({"references": xr.Dataset()}, "references"),
    ],
)
def test_impossible_contexts_are_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Context(**options)  # type: ignore[arg-type]


def test_wrong_input_is_named() -> None:
    profiles, particles, context = diffused()
    with pytest.raises(InputError, match="'Fick'"):
        fit_models(profiles, particles, context, models=("Fick",))
    with pytest.raises(InputError, match="no line in the table"):
        fit_models(profiles, particles.isel(particle=slice(2)), context)
    with pytest.raises(InputError, match="mn3_fraction"):
        fit_models(profiles.drop_vars("mn3_fraction"), particles, context)
