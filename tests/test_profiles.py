"""Profiles: right values, honest errors, no bias where particles are thin."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spectromap.profiles import radial_profiles
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
