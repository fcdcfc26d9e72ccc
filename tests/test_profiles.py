"""Profiles of particles and groups: right values, honest errors, no bias where all is thin."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spectromap.profiles import group_profiles, map_profiles, radial_profiles
from spectromap.schema import FLAGS, InputError

PIXEL = 5.0
#: Variances of t4 and t3 [nm2] and their covariance, as a spectral fit of two spectra has them.
V44, V33, V34 = 9.0, 7.0, -5.0


def disc(radius: float, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Edge distance of a disc and the coordinates of its pixels [nm]."""
    axis = (np.arange(size) - (size - 1) / 2) * PIXEL
    return radius - np.hypot(axis[:, None], axis), axis


def measured(
    distance: np.ndarray,
    axis: np.ndarray,
    fraction: np.ndarray,
    thickness: np.ndarray,
    rng: np.random.Generator | None = None,
    scale: float = 1.0,
) -> xr.Dataset:
    """Maps of one particle with the correlated noise of t3 and t4."""
    t3, t4 = fraction * thickness, (1 - fraction) * thickness
    if rng is not None:
        factor = np.linalg.cholesky(np.array([[V44, V34], [V34, V33]])) * scale
        noise = np.einsum("ij,jyx->iyx", factor, rng.normal(size=(2, *distance.shape)))
        t4, t3 = t4 + noise[0], t3 + noise[1]
    t = t3 + t4
    variance = t4**2 * V33 + t3**2 * V44 - 2 * t3 * t4 * V34
    values = {
        "mn3_fraction": (t3 / t, "1"),
        "mn3_fraction_errors": (scale * np.sqrt(variance) / t**2, "1"),
        "thickness": (t, "nm"),
        "thickness_errors": (np.full(t.shape, scale * np.sqrt(V33 + V44 + 2 * V34)), "nm"),
        "particle_label": ((distance > 0).astype(np.int32), "1"),
        "edge_distance": (distance, "nm"),
    }
    return xr.Dataset(
        {name: (("y", "x"), array, {"units": units}) for name, (array, units) in values.items()},
        coords={dim: (dim, axis, {"units": "nm"}) for dim in ("y", "x")},
    )


def test_means_distances_and_counts_of_a_known_particle() -> None:
    distance, axis = disc(103.0)
    maps = measured(distance, axis, 0.2 + 0.002 * distance, 50.0 + distance)
    got = radial_profiles(maps, "mn3", 10.0)
    assert got.sizes == {"particle": 1, "distance": 20}
    assert got["distance"].values[:3] == pytest.approx([2.5, 7.5, 12.5])
    assert got["distance"].attrs["units"] == "nm"
    row = got.isel(particle=0)
    for column in range(20):
        inside = (distance >= 5 * column) & (distance < 5 * column + 5)
        if column == 0:
            inside &= distance > 0
        t = (50.0 + distance)[inside]
        f = (0.2 + 0.002 * distance)[inside]
        assert row["pixel_count"][column] == inside.sum()
        assert row["thickness"][column] == pytest.approx(t.mean())
        assert row["mn3_fraction"][column] == pytest.approx(np.sum(f * t) / t.sum())
        assert row["mean_distance"][column] == pytest.approx(np.sum(distance[inside] * t) / t.sum())
    # 10 nm wide Gaussian: one independent element is 4 pi sigma^2 = 226.6 nm^2 or 9.06 pixels.
    ratio = row["pixel_count"] / row["independent_count"]
    assert ratio.values == pytest.approx(226.6 / 25.0, rel=1e-3)


def test_default_bin_is_a_pixel_or_half_the_resolution() -> None:
    distance, axis = disc(103.0)
    maps = measured(distance, axis, np.full(distance.shape, 0.2), 50.0 + distance)
    assert radial_profiles(maps, "mn3", 4.0).attrs["bin_nm"] == 5.0
    assert radial_profiles(maps, "mn3", 40.0).attrs["bin_nm"] == 20.0
    fixed = radial_profiles(maps, "mn3", 10.0, bin_nm=8.0, max_distance_nm=50.0)
    assert fixed["distance"].values == pytest.approx(np.arange(7) * 8.0 + 4.0)
    assert fixed["pixel_count"].sum() == ((distance > 0) & (distance < 50.0)).sum()


def test_thin_rims_are_not_biased() -> None:
    """The mean of noisy ratios is, whichever way it is weighted; the ratio of sums is not."""
    distance, axis = disc(140.0)
    thin = np.where(distance < 20, 6.0, 6.0 + distance)
    truth = np.full(distance.shape, 0.1)
    rim = (distance > 0) & (distance < 10)
    ours, inverse_variance = [], []
    rng = np.random.default_rng(3)
    for _ in range(60):
        maps = measured(distance, axis, truth, thin, rng)
        profile = radial_profiles(maps, "mn3", 10.0, bin_nm=10.0)
        ours.append(float(profile["mn3_fraction"][0, 0]))
        f = maps["mn3_fraction"].values[rim]
        weight = 1.0 / maps["mn3_fraction_errors"].values[rim] ** 2
        inverse_variance.append(np.sum(weight * f) / weight.sum())
    error = np.std(ours) / np.sqrt(len(ours))
    assert np.mean(ours) == pytest.approx(0.1, abs=3 * error + 0.005)
    assert abs(np.mean(inverse_variance) - 0.1) > 0.05


def test_errors_cover_the_truth() -> None:
    distance, axis = disc(120.0)
    truth = 0.5 - 0.003 * np.clip(distance, 0, 120)
    thickness = 20.0 + np.clip(distance, 0, 120)
    exact = radial_profiles(measured(distance, axis, truth, thickness), "mn3", 10.0)
    rng = np.random.default_rng(11)
    pulls, thickness_pulls = [], []
    for _ in range(80):
        got = radial_profiles(measured(distance, axis, truth, thickness, rng), "mn3", 10.0)
        for name, pull in (("mn3_fraction", pulls), ("thickness", thickness_pulls)):
            pull.append(((got[name] - exact[name]) / got[f"{name}_errors"]).values.ravel())
    for pull in (np.concatenate(pulls), np.concatenate(thickness_pulls)):
        # A little wide: scatter beyond the photons' is never negative.
        assert 0.66 < np.mean(np.abs(pull) < 1) < 0.85
        assert np.mean(np.abs(pull) < 2) > 0.94


def test_shape_scatter_counts_by_independent_elements() -> None:
    """Composition that varies within a bin over one resolution: too few pixels are independent."""
    distance, axis = disc(140.0)
    fwhm, sigma = 20.0, 20.0 / 2.3548
    rng = np.random.default_rng(5)
    thickness = np.full(distance.shape, 100.0)
    pulls, photon_pulls = [], []
    for _ in range(40):
        field = ndimage.gaussian_filter(rng.normal(size=distance.shape), sigma / PIXEL, mode="wrap")
        fraction = 0.4 + 0.05 * field / field.std()
        maps = measured(distance, axis, fraction, thickness, rng, scale=0.05)
        got = radial_profiles(maps, "mn3", fwhm, bin_nm=20.0).isel(particle=0)
        photons = 0.05 * np.sqrt(V33) / 100.0 / np.sqrt(got["pixel_count"].values)
        assert np.all(got["mn3_fraction_errors"].values > 0.5 * photons)
        difference = got["mn3_fraction"].values - 0.4
        pulls.append((difference / got["mn3_fraction_errors"].values)[:5])
        photon_pulls.append((difference / photons)[:5])
    assert 0.55 < np.mean(np.abs(np.concatenate(pulls)) < 1) < 0.85
    assert np.mean(np.abs(np.concatenate(photon_pulls)) < 1) < 0.2


def test_a_steep_gradient_is_not_scatter() -> None:
    distance, axis = disc(120.0)
    maps = measured(distance, axis, 0.6 - 0.004 * distance, np.full(distance.shape, 100.0))
    got = radial_profiles(maps, "mn3", 10.0, bin_nm=15.0).isel(particle=0)
    pixel_error = maps["mn3_fraction_errors"].where(maps["particle_label"] > 0).mean().item()
    assert got["mn3_fraction_errors"].values[1:-1] == pytest.approx(
        pixel_error / np.sqrt(got["pixel_count"].values[1:-1]), rel=0.3
    )


@given(flip=st.sampled_from([(1, -1), (-1, 1), (-1, -1)]), factor=st.floats(0.3, 3.0))
@settings(max_examples=10, deadline=None)
def test_flips_and_thickness_do_not_matter(flip: tuple[int, int], factor: float) -> None:
    distance, axis = disc(90.0, 50)
    maps = measured(
        distance, axis, 0.3 + 0.001 * distance, 60.0 + distance, np.random.default_rng(1), 0.1
    )
    first = radial_profiles(maps, "mn3", 10.0)
    turned = maps.copy()
    for name in maps:
        turned[name] = (("y", "x"), maps[name].values[:: flip[0], :: flip[1]], maps[name].attrs)
    for name in ("thickness", "thickness_errors"):
        turned[name] = turned[name] * factor
        turned[name].attrs["units"] = "nm"
    second = radial_profiles(turned, "mn3", 10.0)
    for name in ("mn3_fraction", "mn3_fraction_errors", "mean_distance"):
        assert second[name].values == pytest.approx(first[name].values, rel=1e-9, nan_ok=True)
    assert second["thickness"].values == pytest.approx(factor * first["thickness"].values)


def test_pixels_without_data_are_left_out_and_empty_bins_are_nan() -> None:
    distance, axis = disc(103.0)
    maps = measured(distance, axis, np.full(distance.shape, 0.2), 50.0 + distance)
    flags = np.zeros(distance.shape, np.int32)
    ring = (distance >= 20) & (distance < 25)
    flags[ring] = FLAGS["dead"]
    flags[(distance >= 30) & (distance < 35)] = FLAGS["negative_component"]
    maps["flags"] = (("y", "x"), flags)
    hole = (distance >= 40) & (distance < 45)
    maps["mn3_fraction"].values[hole] = np.nan
    got = radial_profiles(maps, "mn3", 10.0).isel(particle=0)
    for column in (4, 8):
        assert got["pixel_count"][column] == 0
        assert got["independent_count"][column] == 0
        for name in ("mn3_fraction", "mn3_fraction_errors", "thickness", "thickness_errors"):
            assert np.isnan(got[name][column])
    assert got["pixel_count"][6] > 0
    assert np.isfinite(got["mn3_fraction_errors"].values[[3, 5, 7, 9]]).all()


def test_particles_keep_their_labels() -> None:
    distance, axis = disc(60.0, 30)
    one = measured(distance, axis, np.full(distance.shape, 0.2), 50.0 + distance)
    two = measured(distance, axis, np.full(distance.shape, 0.7), 50.0 + distance)
    two["particle_label"] = two["particle_label"] * 9
    two = two.assign_coords(x=("x", axis + 30 * PIXEL, {"units": "nm"}))
    got = radial_profiles(xr.concat([one, two], "x"), "mn3", 10.0)
    assert got["particle"].values.tolist() == [1, 9]
    assert got["mn3_fraction"].sel(particle=1).values == pytest.approx(0.2)
    assert got["mn3_fraction"].sel(particle=9).values == pytest.approx(0.7)


def test_a_field_without_particles_gives_an_empty_table() -> None:
    distance, axis = disc(60.0, 30)
    maps = measured(distance, axis, np.full(distance.shape, 0.2), np.full(distance.shape, 9.0))
    maps["particle_label"] = maps["particle_label"] * 0
    assert radial_profiles(maps, "mn3", 10.0).sizes["particle"] == 0


def test_what_is_missing_or_impossible_is_named() -> None:
    distance, axis = disc(60.0, 30)
    maps = measured(distance, axis, np.full(distance.shape, 0.2), np.full(distance.shape, 9.0))
    with pytest.raises(InputError, match="edge_distance"):
        radial_profiles(maps.drop_vars("edge_distance"), "mn3", 10.0)
    with pytest.raises(InputError, match="ni3_fraction"):
        radial_profiles(maps, "ni3", 10.0)
    with pytest.raises(InputError, match="resolution_nm"):
        radial_profiles(maps, "mn3", 0.0)
    with pytest.raises(InputError, match="bin_nm"):
        radial_profiles(maps, "mn3", 10.0, bin_nm=-1.0)
    maps["thickness"].attrs["units"] = "um"
    with pytest.raises(InputError, match="um"):
        radial_profiles(maps, "mn3", 10.0)


# ------------------------------------------------------------------------------------- any map


def with_phase(
    distance: np.ndarray, axis: np.ndarray, rng: np.random.Generator | None = None
) -> xr.Dataset:
    """A particle with a map of another quantity whose error grows over the field."""
    maps = measured(distance, axis, np.full(distance.shape, 0.2), 50.0 + distance)
    errors = 0.02 * (1.0 + np.arange(axis.size) / axis.size) * np.ones(distance.shape)
    phase = -0.5 + 0.01 * distance
    if rng is not None:
        phase = phase + errors * rng.normal(size=errors.shape)
    for name, values in (("phase", phase), ("phase_errors", errors)):
        maps[name] = (("y", "x"), values, {"units": "rad"})
    return maps


def test_any_map_has_a_profile_in_its_own_units() -> None:
    distance, axis = disc(103.0)
    maps = with_phase(distance, axis)
    got = map_profiles(maps, "phase", 10.0).isel(particle=0)
    assert got["phase"].attrs["units"] == got["phase_errors"].attrs["units"] == "rad"
    assert got.attrs["map"] == "phase"
    weight = maps["phase_errors"].values ** -2
    for column in range(20):
        inside = (distance > 0) & (distance >= 5 * column) & (distance < 5 * column + 5)
        w, d = weight[inside], distance[inside]
        assert got["phase"][column] == pytest.approx(np.sum(w * (-0.5 + 0.01 * d)) / w.sum())
        assert got["mean_distance"][column] == pytest.approx(np.sum(w * d) / w.sum())
        # A slope within the bin is no scatter: what is left is the error of a weighted mean.
        assert got["phase_errors"][column] == pytest.approx(1 / np.sqrt(w.sum()), rel=0.02)
    fraction = radial_profiles(maps, "mn3", 10.0).isel(particle=0)
    for name in ("thickness", "thickness_errors", "pixel_count", "independent_count"):
        assert got[name].values.tolist() == fraction[name].values.tolist()


def test_errors_of_any_map_cover_the_truth() -> None:
    distance, axis = disc(120.0)
    exact = map_profiles(with_phase(distance, axis), "phase", 10.0)["phase"]
    rng = np.random.default_rng(23)
    pulls = []
    for _ in range(60):
        got = map_profiles(with_phase(distance, axis, rng), "phase", 10.0)
        pulls.append(((got["phase"] - exact) / got["phase_errors"]).values.ravel())
    pull = np.concatenate(pulls)
    assert 0.66 < np.mean(np.abs(pull) < 1) < 0.80
    assert np.mean(np.abs(pull) < 2) > 0.94


def test_the_thickness_is_a_map_too() -> None:
    distance, axis = disc(60.0, 30)
    maps = measured(distance, axis, np.full(distance.shape, 0.2), 50.0 + distance)
    got, other = map_profiles(maps, "thickness", 10.0), radial_profiles(maps, "mn3", 10.0)
    assert got["thickness"].values.tolist() == other["thickness"].values.tolist()


def test_a_map_without_errors_is_refused() -> None:
    distance, axis = disc(60.0, 30)
    maps = with_phase(distance, axis)
    with pytest.raises(InputError, match="phase_errors"):
        map_profiles(maps.drop_vars("phase_errors"), "phase", 10.0)
    with pytest.raises(InputError, match="speed"):
        map_profiles(maps, "speed", 10.0)
    with pytest.raises(InputError, match="resolution_nm"):
        map_profiles(maps, "phase", -1.0)


# -------------------------------------------------------------------------------------- groups


def drawn(
    rng: np.random.Generator, truth: np.ndarray, count: int, errors: np.ndarray, spread: float
) -> xr.Dataset:
    """Profiles of particles that differ from `truth`, with known errors, shape (count, bins)."""
    own = truth + np.hypot(spread, errors) * rng.normal(size=errors.shape)
    dims, ones = ("particle", "distance"), np.ones(errors.shape)
    return xr.Dataset(
        {
            "mn3_fraction": (dims, own, {"units": "1"}),
            "mn3_fraction_errors": (dims, errors, {"units": "1"}),
            "mean_distance": (dims, ones * np.arange(truth.size), {"units": "nm"}),
            "pixel_count": (dims, 9 * ones.astype(int), {"units": "1"}),
            "independent_count": (dims, 2 * ones, {"units": "1"}),
        },
        coords={
            "particle": np.arange(1, count + 1),
            "distance": ("distance", np.arange(truth.size) * 5.0, {"units": "nm"}),
        },
    )


def one_group(profiles: xr.Dataset) -> xr.DataArray:
    return xr.DataArray(
        np.zeros(profiles.sizes["particle"], int), {"particle": profiles["particle"]}, "particle"
    )


@pytest.mark.parametrize("count", [2, 3, 6, 20])
@pytest.mark.parametrize("spread", [0.0, 0.03, 0.2])
def test_errors_of_a_group_cover_the_truth_whatever_the_scatter(count: int, spread: float) -> None:
    rng = np.random.default_rng([count, int(1000 * spread)])
    truth = np.linspace(0.6, 0.1, 1500)
    errors = rng.uniform(0.01, 0.06, (count, truth.size))
    profiles = drawn(rng, truth, count, errors, spread)
    got = group_profiles(profiles, one_group(profiles)).isel(group=0)
    covered = np.mean(np.abs(got["mn3_fraction"] - truth) < got["mn3_fraction_errors"])
    # Two particles with nothing but photon errors are given the t factor 1.84 for nothing.
    assert 0.65 < covered < (0.97 if spread < 0.1 else 0.73)
    if count == 20:
        assert covered < 0.76
    if spread == 0.2:  # the scatter between particles is what counts
        weight = errors**-2
        mean = (weight * profiles["mn3_fraction"].values).sum(axis=0) / weight.sum(axis=0)
        assert np.mean(np.abs(mean - truth) * np.sqrt(weight.sum(axis=0)) < 1) < 0.35


def test_spread_between_particles_is_found() -> None:
    rng = np.random.default_rng(8)
    profiles = drawn(rng, np.full(100, 0.5), 40, rng.uniform(0.01, 0.1, (40, 100)), 0.05)
    found = group_profiles(profiles, one_group(profiles))["mn3_fraction_spread"].values
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.05, rel=0.05)


def test_groups_are_kept_apart_and_particles_without_one_left_out() -> None:
    rng = np.random.default_rng(2)
    profiles = drawn(rng, np.array([0.5, 0.2]), 6, np.full((6, 2), 1e-4), 0.0)
    profiles["mn3_fraction"].values[3:] += 0.3
    profiles["mn3_fraction"].values[5, 1] = np.nan
    profiles["pixel_count"].values[5, 1] = 0
    labels = np.array(["outside", "", "outside", "exterior", "interior", "exterior"], object)
    table = xr.Dataset(
        {"place": ("particle", labels), "used": ("particle", np.arange(6) != 4)},
        coords={"particle": profiles["particle"]},
    )
    # The table may hold the particles in another order.
    table = table.isel(particle=[5, 3, 1, 0, 2, 4])
    got = group_profiles(profiles, table["place"][table["used"]])
    assert got["group"].values.tolist() == ["exterior", "outside"]
    assert got["mn3_fraction"].dims == ("group", "distance")
    assert got["mn3_fraction"].values == pytest.approx(np.array([[0.8, 0.5], [0.5, 0.2]]), abs=1e-3)
    assert got["particle_count"].values.tolist() == [[2, 1], [2, 2]]
    assert got["pixel_count"].values.tolist() == [[18, 9], [18, 18]]
    assert got["independent_count"].sel(group="outside").values.tolist() == [4.0, 4.0]
    assert got["mean_distance"].values.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert np.isnan(got["mn3_fraction_spread"].sel(group="exterior")[1])
    numbered = group_profiles(profiles, xr.full_like(table["place"], 0).astype(int))
    assert numbered["group"].values.tolist() == [0]
    lost = xr.DataArray([1.0, np.nan], {"particle": [1, 2]}, "particle")
    assert group_profiles(profiles, lost)["particle_count"].values.tolist() == [[1, 1]]


def test_where_one_particle_reaches_deeper_it_is_no_surer_than_the_others() -> None:
    rng = np.random.default_rng(4)
    truth = np.array([0.5, 0.4, 0.3])
    pulls = []
    for _ in range(200):
        profiles = drawn(rng, truth, 8, np.full((8, 3), 0.01), 0.1)
        profiles["mn3_fraction"].values[1:, 2] = np.nan
        got = group_profiles(profiles, one_group(profiles)).isel(group=0)
        pulls.append((got["mn3_fraction"].values - truth)[2] / got["mn3_fraction_errors"].values[2])
    assert 0.58 < np.mean(np.abs(pulls) < 1) < 0.76


def test_group_means_of_measured_particles_cover_the_truth() -> None:
    """From noisy maps of particles that differ to the mean of the population."""
    distance, axis = disc(80.0, 40)
    rng = np.random.default_rng(17)
    pulls = []
    for _ in range(25):
        particles = []
        for number in range(6):
            fraction = 0.5 - 0.002 * distance + 0.04 * rng.normal()
            thickness = 60.0 + distance + 5.0 * rng.normal()
            maps = measured(distance, axis, fraction, thickness, rng)
            maps["particle_label"] = maps["particle_label"] * (number + 1)
            places = ("x", axis + 1000.0 * number, {"units": "nm"})
            particles.append(maps.assign_coords(x=places))
        profiles = radial_profiles(xr.concat(particles, "x"), "mn3", 10.0, bin_nm=20.0)
        got = group_profiles(profiles, one_group(profiles)).isel(group=0)
        for name, truth in (
            ("mn3_fraction", lambda d: 0.5 - 0.002 * d),
            ("thickness", lambda d: 60.0 + d),
        ):
            expected = truth(got["mean_distance"].values[:3])
            difference = got[name].values[:3] - expected
            pulls.append(difference / got[f"{name}_errors"].values[:3])
    assert 0.58 < np.mean(np.abs(np.concatenate(pulls)) < 1) < 0.80


def test_groups_that_fit_nothing_are_refused() -> None:
    profiles = drawn(np.random.default_rng(1), np.array([0.5]), 3, np.full((3, 1), 0.1), 0.0)
    with pytest.raises(InputError, match="no particle"):
        group_profiles(profiles, xr.DataArray([1, 2], {"particle": [8, 9]}, "particle"))
    with pytest.raises(InputError, match="one dimension 'particle'"):
        group_profiles(profiles, xr.DataArray([1, 2, 3], {"label": [1, 2, 3]}, "label"))
    with pytest.raises(InputError, match="errors"):
        group_profiles(profiles.drop_vars("mn3_fraction_errors"), one_group(profiles))
