"""Several scans of one field: fields by formula, whose places, amounts and changes are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special, stats

from spectromap import absorption, scans, unmix
from spectromap.schema import FLAGS, InputError
from spectromap.synthetic import Instrument, Sample, Scan, default_energies, simulate

FWHM = 2.3548


def variable(values: np.ndarray, units: str = "1") -> tuple:
    return ("y", "x"), values, {"units": units}


def axes(y: np.ndarray, x: np.ndarray) -> dict[str, tuple]:
    return {"y": ("y", y, {"units": "nm"}), "x": ("x", x, {"units": "nm"})}


# ---------------------------------------------------------------- fields by formula


@dataclass
class Field:
    """Lobed discs with domed tops in a square field, thickness by formula at any place."""

    seed: int
    side: float = 1500.0
    count: int = 25
    radius: tuple[float, float] = (50.0, 110.0)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 0])
        self.centre = rng.uniform(0.0, self.side, (self.count, 2))
        self.size = rng.uniform(*self.radius, self.count)
        self.height = rng.uniform(0.7, 1.2, self.count) * self.size
        self.lobes = rng.uniform(0.0, 0.18, (self.count, 3))
        self.turn = rng.uniform(0.0, 2.0 * np.pi, (self.count, 3))

    def thickness(self, y: np.ndarray, x: np.ndarray, fwhm: float, tone: np.ndarray) -> np.ndarray:
        sigma, total = fwhm / FWHM, np.zeros(y.shape)
        for k in range(self.count):
            dy, dx = y - self.centre[k, 0], x - self.centre[k, 1]
            rho = np.hypot(dy, dx)
            near = rho < 1.8 * self.size[k] + 5.0 * sigma
            angle, rho = np.arctan2(dy[near], dx[near]), rho[near]
            lobes = self.lobes[k] @ np.cos(np.arange(1, 4)[:, None] * angle + self.turn[k][:, None])
            edge = self.size[k] * (1.0 + lobes)
            top = self.height[k] * (1.0 - 0.4 * np.minimum((rho / edge) ** 2, 1.2))
            rim = 0.5 * special.erfc((rho - edge) / (np.sqrt(2.0) * sigma))
            total[near] += tone[k] * top * rim
        return total


@dataclass
class View:
    """How a scan sees a field: ``coordinate = place + offset + M place``."""

    pixel: float = 10.0
    fwhm: float = 20.0
    origin: tuple[float, float] = (0.0, 0.0)
    side: tuple[float, float] = (1500.0, 1500.0)
    offset: np.ndarray = field(default_factory=lambda: np.zeros(2))
    ratio: float = 1.0
    unlike: float = 0.0
    noise: float = 6.0
    stretch: float = 0.0
    turn: float = 0.0
    seed: int = 0

    @property
    def matrix(self) -> np.ndarray:
        return np.array([[self.stretch, self.turn], [-self.turn, self.stretch]])

    def of(self, made: Field) -> xr.Dataset:
        rng = np.random.default_rng([made.seed, 1, self.seed])
        tone = self.ratio * (1.0 + self.unlike * rng.normal(size=made.count))
        y, x = (
            o + self.pixel * np.arange(int(s / self.pixel))
            for o, s in zip(self.origin, self.side, strict=True)
        )
        back, total, parts = np.linalg.inv(np.eye(2) + self.matrix), 0.0, (-1 / 3, 0.0, 1 / 3)
        for dy in parts:  # a pixel averages over its area
            for dx in parts:
                grid = np.meshgrid(y + dy * self.pixel, x + dx * self.pixel, indexing="ij")
                place = (np.stack(grid, axis=-1) - self.offset) @ back.T
                total = total + made.thickness(place[..., 0], place[..., 1], self.fwhm, tone) / 9.0
        errors = self.noise * (1.0 + 0.004 * total)
        values = total + rng.normal(size=total.shape) * errors
        maps = {"thickness": variable(values, "nm"), "thickness_errors": variable(errors, "nm")}
        return xr.Dataset(maps, coords=axes(y, x))


def deviations(made: Field, first: View, second: View) -> tuple[np.ndarray, np.ndarray, xr.Dataset]:
    """Offsets found less the true ones in nm, their errors, and the registration."""
    found = scans.register_scan(first.of(made), second.of(made), first.fwhm, second.fwhm)
    centre = np.array([float(found["centre_y"]), float(found["centre_x"])])
    true = second.offset + second.matrix @ centre
    off = np.array([float(found[f"offset_{a}"]) for a in "yx"]) - true
    return off, np.array([float(found[f"offset_{a}_errors"]) for a in "yx"]), found


EDGES = {
    "finer pixels first": (
        View(pixel=10.0, fwhm=20.0),
        dict(pixel=15.0, fwhm=25.0, ratio=0.8, unlike=0.08),
        0.1,
    ),
    "a quarter of the field away": (
        View(pixel=10.0, fwhm=20.0),
        dict(pixel=30.0, fwhm=40.0, ratio=1.2, unlike=0.1),
        0.25,
    ),
    "coarser pixels first": (
        View(pixel=25.0, fwhm=45.0),
        dict(pixel=10.0, fwhm=20.0, unlike=0.05),
        0.2,
    ),
}


@pytest.mark.parametrize("case", EDGES)
def test_scans_of_two_edges_are_registered_to_hundredths_of_a_pixel(case):
    first, options, reach = EDGES[case]
    offs, errors = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        made, offset = Field(seed), rng.uniform(-reach, reach, 2) * 1500.0
        origin = tuple(offset + rng.uniform(-100.0, 100.0, 2))
        second = View(offset=offset, origin=origin, side=(1500.0, 1350.0), seed=7, **options)
        off, error, found = deviations(made, first, second)
        assert float(found["confidence"]) > 0.6
        assert not bool(found["distortion_applied"])
        assert float(found["amount_ratio"]) == pytest.approx(second.ratio, rel=0.08)
        offs.append(off / max(first.pixel, second.pixel))
        errors.append(error / max(first.pixel, second.pixel))
    assert np.abs(offs).max() < 0.15
    assert np.sqrt(np.mean(np.square(offs))) < 0.05
    assert 0.5 < np.sqrt(np.mean(np.square(np.array(offs) / errors))) < 1.5


def test_errors_of_the_place_hold_where_noise_has_slopes_of_its_own():
    ratios = []
    for seed in range(6):
        second = View(pixel=15.0, offset=np.array([40.0, -25.0]), noise=35.0, seed=3)
        off, error, _ = deviations(Field(seed), View(noise=35.0), second)
        ratios += list(off / error)
        assert np.abs(off).max() < 0.4 * 15.0
    assert 0.6 < np.sqrt(np.mean(np.square(ratios))) < 1.45


def test_stretch_and_rotation_are_found_where_they_are():
    second = View(
        pixel=12.0, offset=np.array([60.0, -90.0]), stretch=0.003, turn=-0.002, unlike=0.05, seed=2
    )
    off, error, found = deviations(Field(5), View(), second)
    assert bool(found["distortion_applied"])
    assert float(found["scale"]) == pytest.approx(1.003, abs=3 * float(found["scale_errors"]))
    assert float(found["rotation"]) == pytest.approx(
        -0.002, abs=3 * float(found["rotation_errors"])
    )
    assert float(found["scale_errors"]) < 4e-4
    assert (np.abs(off) < 4.0 * error).all()
    # Maps land where they belong all over the field, which a mere shift does not do.
    sharp = View(noise=0.05, seed=1)
    moved = View(**{**vars(second), "noise": 0.05, "unlike": 0.0, "pixel": 10.0}).of(Field(5))
    reference, rests = sharp.of(Field(5)), []
    for registration in (found, found.assign(distortion_applied=False)):
        seen = scans.on_grid(composed(moved), reference, registration)
        rests.append(float(np.nanstd((seen["thickness"] - reference["thickness"]).values)))
    assert rests[0] < 0.5 * rests[1]


def test_the_part_of_the_field_around_one_agglomerate_is_found():
    made = Field(3, side=2400.0, count=60)
    whole = View(pixel=15.0, side=(2400.0, 2400.0))
    offset = np.array([310.0, -180.0])
    part = View(
        offset=offset, origin=(900.0 + 310.0, 700.0 - 180.0), side=(800.0, 800.0), unlike=0.05
    )
    off, _, found = deviations(made, whole, part)
    assert np.abs(off).max() < 0.15 * 15.0
    assert float(found["overlap"]) == pytest.approx(1.0, abs=0.1)


def test_registration_is_the_same_seen_from_the_other_scan():
    made = Field(8)
    one = View().of(made)
    other = View(pixel=15.0, offset=np.array([120.0, -60.0]), ratio=0.8).of(made)
    there, back = scans.register_scan(one, other, 20.0), scans.register_scan(other, one, 20.0)
    for name in ("offset_y", "offset_x"):
        assert float(there[name]) == pytest.approx(-float(back[name]), abs=1e-6)
        assert float(there[f"{name}_errors"]) == pytest.approx(float(back[f"{name}_errors"]))
    assert float(there["amount_ratio"] * back["amount_ratio"]) == pytest.approx(1.0, rel=1e-6)


def test_scans_that_have_nothing_in_common_are_refused():
    first = View().of(Field(0))
    for seed in (11, 12, 13):
        with pytest.raises(InputError, match="no place stands out"):
            scans.register_scan(first, View(seed=1).of(Field(seed)), 20.0)
    far = View(origin=(50_000.0, 0.0), side=(300.0, 300.0)).of(Field(0))
    with pytest.raises(InputError, match="no place stands out"):
        scans.register_scan(first, far, 20.0, max_offset_nm=1000.0)
    with pytest.raises(InputError, match="no thickness"):
        scans.register_scan(first.drop_vars("thickness"), first, 20.0)
    with pytest.raises(InputError, match="hardly any pixels"):
        scans.register_scan(first * np.nan, first, 20.0)


# ---------------------------------------------------------------- composition by formula

#: Covariance of the amounts of two components for a unit of noise.
SPREAD = np.array([[1.0, -0.6], [-0.6, 1.2]])


def composed(
    maps: xr.Dataset,
    fraction: np.ndarray | float = 0.3,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    smooth_px: float = 0.0,
    stated: float | None = None,
) -> xr.Dataset:
    """Maps of two components; `stated` is the noise that their errors state."""
    t = np.asarray(maps["thickness"].values, float)
    noisy = np.zeros((2, *t.shape))
    if rng is not None:
        noisy = rng.normal(size=noisy.shape)
        if smooth_px:
            noisy = ndimage.gaussian_filter(noisy, (0.0, smooth_px, smooth_px), mode="wrap")
            noisy *= 2.0 * np.sqrt(np.pi) * smooth_px
        noisy = np.tensordot(np.linalg.cholesky(SPREAD), noisy, 1) * noise
    a, b = t * (1.0 - fraction) + noisy[0], t * fraction + noisy[1]
    c = SPREAD * (noise if stated is None else stated) ** 2
    flat = np.ones_like(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        f = np.where(a + b > 0, b / (a + b), np.nan)
        error = np.sqrt(f**2 * c[0, 0] + (1 - f) ** 2 * c[1, 1] - 2 * f * (1 - f) * c[0, 1])
        error /= np.abs(a + b)
        shown = np.where((error < 0.5) & (a + b > 0), np.clip(f, 0.0, 1.0), np.nan)
    values = {
        "mn4_fraction": (1.0 - f, "1"),
        "mn3_fraction": (f, "1"),
        "mn4_fraction_errors": (error, "1"),
        "mn3_fraction_errors": (error, "1"),
        "mn3_fraction_systematic": (np.where(a + b > 0, 0.01, np.nan), "1"),
        "mn3_fraction_nonnegative": (shown, "1"),
        "thickness_errors": (flat * np.sqrt(c.sum()), "nm"),
        "mn4_thickness": (a, "nm"),
        "mn3_thickness": (b, "nm"),
        "thickness": (a + b, "nm"),
        "mn4_mn4_covariance": (c[0, 0] * flat, "nm2"),
        "mn4_mn3_covariance": (c[0, 1] * flat, "nm2"),
        "mn3_mn3_covariance": (c[1, 1] * flat, "nm2"),
        "chi2": (flat, "1"),
    }
    data = {n: variable(v.astype(np.float32), units) for n, (v, units) in values.items()}
    data["flags"] = variable(np.zeros(t.shape, np.int32))
    return xr.Dataset(data, coords=maps.coords, attrs={"fraction": "mn3"})


def grid(shape: tuple[int, int], pixel: float, origin: tuple[float, float]) -> xr.Dataset:
    y, x = (o + pixel * np.arange(n) for o, n in zip(origin, shape, strict=True))
    return xr.Dataset({"thickness": variable(np.full(shape, 100.0), "nm")}, coords=axes(y, x))


@pytest.mark.parametrize("pixel", [4.3, 10.0, 23.0])
def test_errors_are_those_of_the_averages(pixel):
    rng = np.random.default_rng(0)
    made = composed(grid((int(1500 / pixel),) * 2, pixel, (3.3, 1.7)), 0.3, 5.0, rng)
    seen = scans.on_grid(made, grid((130, 130), 10.0, (100.0, 100.0)))
    assert np.isfinite(seen["thickness"]).all()
    for name, true in (("thickness", 100.0), ("mn3_fraction", 0.3), ("mn4_fraction", 0.7)):
        errors = float(seen[f"{name}_errors"].mean())
        assert errors < float(made[f"{name}_errors"].mean())
        assert float(seen[name].std()) == pytest.approx(errors, rel=0.06)
        assert float(seen[name].mean()) == pytest.approx(true, rel=0.01)
    assert float(seen["mn3_fraction_systematic"].mean()) == pytest.approx(0.01, rel=1e-2)
    assert seen["thickness"].dtype == np.float32


def test_a_registered_scan_agrees_with_the_first_within_errors():
    made = Field(4)
    one, other = (
        View(noise=1e-3),
        View(pixel=7.0, noise=1e-3, offset=np.array([123.4, -67.8]), origin=(200.0, -90.0)),
    )
    rng = np.random.default_rng(1)
    first, second = (composed(v.of(made), 0.3, 4.0, rng) for v in (one, other))
    found = scans.register_scan(first, second, 20.0)
    seen = scans.on_grid(second, first, found)
    rest = (seen["thickness"] - first["thickness"]) / np.hypot(
        seen["thickness_errors"], first["thickness_errors"]
    )
    inside = np.isfinite(rest.values)
    assert 0.7 < inside.mean() < 0.95
    assert np.std(rest.values[inside]) == pytest.approx(1.0, abs=0.05)
    assert (seen["flags"].values[~inside] & FLAGS["no_data"] > 0).all()
    assert (seen["flags"].values[inside] & FLAGS["no_data"] == 0).all()
    for axis in "yx":
        assert seen.attrs[f"offset_{axis}_nm"] == float(found[f"offset_{axis}"])
        assert seen.attrs[f"offset_{axis}_nm_errors"] == float(found[f"offset_{axis}_errors"])
        np.testing.assert_array_equal(seen[axis], first[axis])
    assert seen.attrs["fraction"] == "mn3"


def test_on_its_own_grid_a_map_stays_what_it_is():
    rng = np.random.default_rng(2)
    made = composed(View(side=(400.0, 500.0)).of(Field(1)), 0.2, 3.0, rng)
    seen = scans.on_grid(made, made)
    assert set(seen.data_vars) == set(made.data_vars)
    for name in made.data_vars:
        np.testing.assert_allclose(seen[name], made[name], rtol=2e-5, atol=2e-5)
        assert seen[name].attrs == made[name].attrs


@settings(max_examples=25, deadline=None)
@given(
    pixel=st.floats(2.0, 40.0),
    step=st.floats(2.0, 40.0),
    offset=st.tuples(st.floats(-60.0, 60.0), st.floats(-60.0, 60.0)),
    turn=st.floats(-0.02, 0.02),
)
def test_what_is_even_stays_even_and_outside_is_not_known(pixel, step, offset, turn):
    made = composed(grid((30, 34), pixel, (0.0, 0.0)), 0.4, 2.0)
    registration = xr.Dataset(
        {
            "offset_y": offset[0], "offset_x": offset[1], "offset_y_errors": 1.0,
            "offset_x_errors": 1.0, "scale": 1.0, "rotation": turn, "centre_y": 10.0,
            "centre_x": 20.0, "distortion_applied": True,
        }
    )  # fmt: skip
    like = grid((12, 15), step, (5.0, -8.0))
    seen = scans.on_grid(made, like, registration)
    known = np.isfinite(seen["thickness"].values)
    np.testing.assert_allclose(seen["thickness"].values[known], 100.0, rtol=1e-5)
    np.testing.assert_allclose(seen["mn3_fraction"].values[known], 0.4, rtol=1e-5)
    # Interpolation may sharpen a little, but never adds more than a few percent of noise.
    ratio = seen["thickness_errors"].values[known] / float(made["thickness_errors"][0, 0])
    assert (ratio < 1.35).all()
    y, x = like["y"].values[:, None], like["x"].values[None]
    at = (
        y + offset[0] + turn * (x - 20.0),
        x + offset[1] - turn * (y - 10.0),
    )
    ends = (29 * pixel, 33 * pixel)
    for place, end in zip(at, ends, strict=True):
        outside = np.broadcast_to((place < -pixel) | (place > end + pixel), known.shape)
        assert not known[outside].any()
    inner = np.all(
        [
            (p > 2.1 * max(pixel, step)) & (p < e - 2.1 * max(pixel, step))
            for p, e in zip(at, ends, strict=True)
        ],
        axis=0,
    )
    assert known[inner].all()


def test_defects_leave_small_gaps_and_their_flags():
    made = composed(grid((40, 40), 10.0, (0.0, 0.0)), 0.3, 2.0)
    made["flags"].values[10, 10] = FLAGS["dead"]
    made["thickness"].values[10, 10] = 1e6
    made["flags"].values[30, 30] = FLAGS["model_rejected"]
    made["particle_label"] = variable(np.full((40, 40), 3, np.int32))
    seen = scans.on_grid(made, grid((30, 30), 10.0, (53.0, 52.0)))
    values = seen["thickness"].values
    assert np.nanmax(np.abs(values - 100.0)) < 1e-3
    assert 1 <= np.isnan(values).sum() <= 4
    assert seen["flags"].values[25, 25] == FLAGS["model_rejected"]
    assert np.count_nonzero(seen["flags"].values == FLAGS["model_rejected"]) == 1
    assert (seen["particle_label"].values == 3).all()
    coarse = scans.on_grid(made, grid((8, 8), 40.0, (55.0, 55.0)))
    assert np.count_nonzero(coarse["flags"].values & FLAGS["model_rejected"]) == 1


def test_maps_without_amounts_are_refused():
    made = composed(grid((10, 10), 10.0, (0.0, 0.0)))
    with pytest.raises(InputError, match="thickness"):
        scans.on_grid(made[["mn3_fraction"]], made)
    with pytest.raises(InputError, match="covariance"):
        scans.on_grid(made.drop_vars("mn3_mn3_covariance"), made)


# ---------------------------------------------------------------- dose


def spectra(per_nm: float, photons: float, gain: float = 1.0) -> xr.Dataset:
    energy = np.array([640.0, 650.0])
    made = xr.Dataset(coords={"energy": ("energy", energy, {"units": "eV"})})
    made["i0"] = ("energy", np.full(2, photons * gain), {"units": "count"})
    for name in ("mn4", "mn3"):
        made[f"reference_{name}"] = ("energy", np.full(2, per_nm), {"units": "nm-1"})
    return made.assign_attrs(gain=gain)


@pytest.mark.parametrize("thickness", [1.0, 50.0, 400.0])
def test_dose_is_absorbed_energy_over_mass(thickness):
    made = composed(grid((3, 4), 20.0, (0.0, 0.0)), 0.3, 0.01)
    made = composed(made.assign(thickness=made["thickness"] * thickness / 100.0), 0.3, 0.01)
    dose = scans.dose_map(made, spectra(0.02, 1000.0), 4.25)
    joule = 1000.0 * (640.0 + 650.0) * 1.602176634e-19 * (1.0 - np.exp(-0.02 * thickness))
    kilogram = 4.25e3 * 20e-9 * 20e-9 * thickness * 1e-9
    np.testing.assert_allclose(dose.values, joule / kilogram * 1e-6, rtol=1e-5)
    assert dose.attrs["units"] == "MGy"
    assert "lower bound" in dose.attrs["long_name"]
    again = scans.dose_map(made, spectra(0.02, 1000.0, gain=3.0), 4.25, detector_efficiency=0.5)
    np.testing.assert_allclose(again, 2.0 * dose, rtol=1e-6)
    assert "lower bound" not in again.attrs["long_name"]


def test_dose_is_not_known_where_there_is_no_sample():
    made = composed(grid((3, 4), 20.0, (0.0, 0.0)), 0.3, 5.0)
    made["thickness"].values[0] = 1.0
    lost = spectra(0.02, 1000.0)
    lost["i0"].values[0] = np.nan
    dose = scans.dose_map(made, lost, 4.25)
    assert np.isnan(dose.values[0]).all()
    np.testing.assert_allclose(
        dose.values[1:], scans.dose_map(made, spectra(0.02, 1000.0), 4.25)[1:]
    )
    stray = lost.assign(stray_fraction=0.1)
    np.testing.assert_allclose(scans.dose_map(made, stray, 4.25), 0.9 * dose, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        ({}, {"density_g_cm3": 0.0}, "density_g_cm3"),
        ({}, {"detector_efficiency": 1.5}, "detector_efficiency"),
        ({"drop": "reference_mn3"}, {}, "reference_mn3"),
        ({"drop": "i0"}, {}, "i0"),
        ({"i0": 0.0}, {}, "I0"),
    ],
)
def test_dose_that_cannot_be_told_is_refused(change, options, match):
    made = composed(grid((3, 4), 20.0, (0.0, 0.0)), 0.3, 5.0)
    given_spectra = spectra(0.02, 1000.0)
    if "drop" in change:
        given_spectra = given_spectra.drop_vars(change["drop"])
    if "i0" in change:
        given_spectra["i0"].values[:] = change["i0"]
    with pytest.raises(InputError, match=match):
        scans.dose_map(made, given_spectra, **{"density_g_cm3": 4.0, **options})


# ---------------------------------------------------------------- repeats


def repeats(
    seed: int, *, change: float = 0.0, spread: float = 0.0, smooth: float = 0.0, stated: float = 8.0
) -> tuple[xr.Dataset, xr.Dataset]:
    """Two scans of forty discs, the fraction of which rises between them."""
    rng = np.random.default_rng(seed)
    row, column = np.meshgrid(np.arange(8), np.arange(5), indexing="ij")
    centre = np.stack([row.ravel() * 200.0 + 110.0, column.ravel() * 200.0 + 110.0], axis=1)
    centre += rng.uniform(-15.0, 15.0, centre.shape)
    radius, own = rng.uniform(60.0, 80.0, 40), rng.uniform(0.1, 0.4, 40)
    risen = own + change + spread * rng.normal(size=40)
    base = grid((165, 105), 10.0, (0.0, 0.0))
    y, x = base["y"].values[:, None], base["x"].values[None]
    distance = np.hypot(y - centre[:, 0, None, None], x - centre[:, 1, None, None])
    ratio = distance / radius[:, None, None]
    body = 100.0 * 0.5 * special.erfc((distance - radius[:, None, None]) / 11.0)
    thickness = body.sum(axis=0)
    labels = ((ratio < 1.0) * np.arange(1, 41)[:, None, None]).sum(axis=0)
    made = []
    for fraction in (own, risen):
        rim = fraction[:, None, None] + 0.1 * np.minimum(ratio, 1.2) ** 2
        mixed = (body * rim).sum(axis=0) / np.maximum(thickness, 1e-9)
        base["thickness"].values[:] = thickness
        made.append(composed(base, mixed, 8.0, rng, smooth, stated))
    made[0]["particle_label"] = variable(labels.astype(np.int32))
    return made[0], made[1]


def compared(seeds: range, **options: float) -> list[xr.Dataset]:
    return [
        scans.compare_repeats(*repeats(seed, **options), "mn3", 15.0)  # type: ignore[arg-type]
        for seed in seeds
    ]


def collect(found: list[xr.Dataset], name: str) -> np.ndarray:
    return np.array([one[name].values for one in found])


@pytest.mark.parametrize("smooth", [0.0, 0.8])
def test_without_damage_changes_are_noise_of_the_stated_size(smooth):
    found = compared(range(18), smooth=smooth)
    z = collect(found, "change") / collect(found, "change_errors")
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1.0, abs=0.08)
    mean = collect(found, "mean_change") / collect(found, "mean_change_errors")
    assert np.sqrt(np.mean(mean**2)) < 1.35
    assert np.mean(collect(found, "noise_ratio")) == pytest.approx(1.0, abs=0.03)
    pixels = 1.0 if smooth == 0.0 else 4.0 * np.pi * smooth**2
    assert np.mean(collect(found, "noise_pixels")) == pytest.approx(pixels, rel=0.1)
    assert stats.kstest(collect(found, "dichroism"), "uniform").pvalue > 0.005
    assert np.mean(collect(found, "changed_share")) == pytest.approx(0.046, abs=0.025)
    assert np.isnan(collect(found, "change_per_MGy")).all()


def test_damage_is_told_from_noise():
    found = compared(range(16), change=0.012)
    z = (collect(found, "mean_change") - 0.012) / collect(found, "mean_change_errors")
    assert abs(z.mean()) < 0.6
    inside = (collect(found, "mean_change_low") < 0.012) & (
        collect(found, "mean_change_high") > 0.012
    )
    assert inside.mean() >= 0.87
    assert (collect(found, "mean_change_low") > 0.0).all()
    assert np.median(collect(found, "dichroism")) > 0.2


def test_particles_that_change_unlike_each_other_are_noticed():
    found = compared(range(10), change=0.01, spread=0.03)
    assert (collect(found, "dichroism") < 1e-3).all()
    assert np.mean(collect(found, "change_spread")) == pytest.approx(0.03, rel=0.15)
    inside = (collect(found, "mean_change_low") < 0.01) & (
        collect(found, "mean_change_high") > 0.01
    )
    assert inside.sum() >= 8
    assert "dichroism" in found[0]["dichroism"].attrs["remark"]


def test_errors_that_are_too_small_are_seen_and_made_up_for():
    found = compared(range(8), stated=5.0)
    assert np.mean(collect(found, "noise_ratio")) == pytest.approx(1.6, abs=0.05)
    z = collect(found, "change") / collect(found, "change_errors")
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1.0, abs=0.12)


def test_change_is_told_per_dose():
    first, second = repeats(3, change=0.02)
    dose = xr.zeros_like(first["thickness"]).assign_attrs(units="MGy") + 40.0
    dose = dose.where(first["thickness"] > 20.0).assign_attrs(units="MGy")
    found = scans.compare_repeats(first, second, "mn3", 15.0, (dose, None))
    np.testing.assert_allclose(found["dose"], 40.0)
    for name in ("", "_errors"):
        assert float(found[f"change_per_MGy{name}"]) == pytest.approx(
            float(found[f"mean_change{name}"]) / 40.0
        )
    longer = scans.compare_repeats(
        first, second, "mn3", 15.0, (dose, (2.0 * dose).assign_attrs(dose.attrs))
    )
    np.testing.assert_allclose(longer["dose"], 60.0)
    with pytest.raises(InputError, match="MGy"):
        scans.compare_repeats(first, second, "mn3", 15.0, (dose.assign_attrs(units="Gy"), None))


def test_error_of_the_registration_counts():
    first, second = repeats(4)
    cut = first["particle_label"].where(first["x"] < 310.0, 0).astype(np.int32)
    first["particle_label"] = cut.assign_attrs(units="1")
    sure = scans.compare_repeats(first, second, "mn3", 15.0)
    unsure = scans.compare_repeats(first, second.assign_attrs(offset_x_nm_errors=20.0), "mn3", 15.0)
    assert (unsure["change_errors"] >= sure["change_errors"]).all()
    assert float(unsure["change_errors"].max()) > 1.1 * float(sure["change_errors"].max())


def test_what_cannot_be_compared_is_refused():
    first, second = repeats(0)
    for one, other, name, match in (
        (first, second.isel(x=slice(1, None)), "mn3", "grid"),
        (first, second, "mn2", "mn2"),
        (second, first, "mn3", "particles"),
        (first, second.assign(thickness=second["thickness"] * np.nan), "mn3", "particle"),
    ):
        with pytest.raises(InputError, match=match):
            scans.compare_repeats(one, other, name, 15.0)


# ---------------------------------------------------------------- the whole chain

ENERGIES = tuple(default_energies("Mn L3")[::4])


def counted(
    made: object, rng: np.random.Generator, photons: float, origin: float = 0.0
) -> xr.Dataset:
    """Composition of a simulated field, after counting photons once more."""
    rate = (
        made.stack.values.astype(float)
        / made.stack.values[:, :4, :4].mean(axis=(1, 2))[:, None, None]
    )
    stack = made.stack.copy(data=rng.poisson(rate * photons).astype(np.float32))
    stack = stack.assign_coords({a: (a, stack[a].values + origin, {"units": "nm"}) for a in "yx"})
    i0 = xr.Dataset(
        {
            "i0": ("energy", np.full(len(ENERGIES), photons), {"units": "count"}),
            "i0_errors": ("energy", np.zeros(len(ENERGIES)), {"units": "count"}),
        },
        coords={"energy": stack.energy},
    )
    references = made.references.interp(energy=stack.energy)
    references["energy"].attrs["units"] = "eV"
    names = ["mn4", "mn3"]
    slopes = {f"{n}_slope": references[n].differentiate("energy") for n in names}
    components = references[names].assign(slopes).assign_attrs(units="nm-1")
    return unmix.fit_components(absorption.transmission(stack, i0), components)


@pytest.fixture(scope="module")
def damaged() -> list:
    """The same field before and after the beam raised the fraction at the surfaces."""
    sample = dict(particles=8, radius_nm=(60.0, 90.0), shape="superellipsoid")
    return [
        simulate(
            Sample(surface_fraction=surface, **sample),
            Instrument(photons=1e9, dark_counts=0.0, spectral_fwhm_eV=0.0),
            Scan(pixel_nm=10.0, shape_px=(90, 100), energies=ENERGIES),
            seed=3,
        )
        for surface in (0.6, 0.64)
    ]


def test_damage_between_simulated_scans_is_measured(damaged):
    labels = damaged[0].truth["entry/maps"]["particle_label"]
    true = []
    for made in damaged:
        maps = counted(made, np.random.default_rng(0), 1e8)
        inside = labels.values > 0
        part, whole = (
            np.bincount(labels.values[inside], maps[name].values[inside])[1:]
            for name in ("mn3_thickness", "thickness")
        )
        true.append(part / whole)
    true_change = true[1] - true[0]
    assert 0.005 < true_change.mean() < 0.04
    z, means, ratios = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        first, second = (counted(made, rng, 600.0) for made in damaged)
        first["particle_label"] = labels
        found = scans.compare_repeats(first, second, "mn3", 10.0)
        z.append((found["change"].values - true_change) / found["change_errors"].values)
        means.append(float(found["mean_change"] / found["mean_change_errors"]))
        ratios.append(float(found["noise_ratio"]))
    assert np.sqrt(np.mean(np.square(z))) == pytest.approx(1.0, abs=0.25)
    assert min(means) > 2.5
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


def test_simulated_scans_are_registered_by_what_was_fitted(damaged):
    rng = np.random.default_rng(9)
    first = counted(damaged[0], rng, 3000.0)
    second = counted(damaged[0], rng, 1500.0, origin=37.0)
    coarse = scans.on_grid(second, grid((45, 50), 20.0, (47.0, 47.0)))
    # What is not known of a fraction where there is no sample makes no gaps in the amounts.
    assert np.isfinite(coarse["thickness"].values[1:-1, 1:-1]).all()
    found = scans.register_scan(first, coarse, 10.0)
    for axis in "yx":
        off = float(found[f"offset_{axis}"]) - 37.0
        assert abs(off) < 0.05 * 20.0
        assert abs(off) < 4.0 * float(found[f"offset_{axis}_errors"])
