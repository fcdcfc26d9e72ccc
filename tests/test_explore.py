"""What a stack holds: every answer against a simulated truth, within the error it states."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from make_stacks import label, make, spectra
from sklearn.metrics import adjusted_rand_score

from spectromap import absorption, align, explore
from spectromap.explore import _pixels, composite
from spectromap.io import open_stack
from spectromap.schema import InputError

ENERGY = np.linspace(635.0, 655.0, 40)


def measured(od, photons=2000.0, dark=0.0, seed=0, i0_error=0.0):
    """Photon counts of an optical density (energy, y, x), as an absorption data set.

    With `i0_error`, the I0 of each energy is off by that relative standard deviation.
    """
    rng = np.random.default_rng(seed)
    counts = rng.poisson(photons * np.exp(-od) + dark).astype(np.float32)
    energy = ENERGY[: len(od)]
    i0 = xr.Dataset(coords={"energy": energy})
    level = photons * np.exp(rng.normal(0, i0_error, len(od)))
    i0["i0"] = ("energy", level)
    i0["i0_errors"] = ("energy", np.full(len(od), photons * i0_error))
    return absorption.transmission(label(counts, energy, 10.0), i0, dark_counts=dark)


def two_states(rng, shape=(80, 90), pure=True):
    """Thicknesses of two species in blocks of 10 pixels, the spectra, the optical density."""
    blocks = (shape[0] // 10, shape[1] // 10)
    fraction = rng.uniform(0.2, 0.8, blocks)
    if pure:
        fraction.flat[::5], fraction.flat[1::5] = 0.0, 1.0
    thickness = np.kron(rng.uniform(40, 120, blocks), np.ones((10, 10)))
    fraction = np.kron(fraction, np.ones((10, 10)))
    pure_spectra = np.array(list(spectra(ENERGY).values()))
    amounts = np.stack([thickness * (1 - fraction), thickness * fraction])
    return amounts, pure_spectra, np.einsum("ke,kyx->eyx", pure_spectra, amounts)


# --- principal components ---


@pytest.mark.parametrize(("photons", "dark"), [(3000.0, 0.0), (300.0, 20.0)])
def test_noise_alone_has_no_significant_component_and_unit_eigenvalues(photons, dark):
    od = np.full((40, 60, 70), 0.5) * (1 + np.sin(ENERGY / 3))[:, None, None]
    found = explore.principal_components(measured(od, photons, dark, seed=1))
    assert found.attrs["significant_count"] == 0
    assert found.attrs["noise_level"] == pytest.approx(1.0, abs=0.03)
    assert found.eigenvalues.values.mean() == pytest.approx(1.0, abs=0.02)
    bias = (1 + dark / photons * np.exp(od[:, 0, 0])) * np.exp(od[:, 0, 0]) / photons / 2
    assert np.allclose(found["mean"], od[:, 0, 0] + bias, atol=5 * found.noise.values.max() / 65)


@pytest.mark.parametrize("seed", range(3))
def test_two_species_give_two_components_that_span_their_spectra(seed):
    _, pure_spectra, od = two_states(np.random.default_rng(seed))
    found = explore.principal_components(measured(od, 5000.0, seed=seed), 2)
    assert found.attrs["significant_count"] == 2
    basis = found.loadings.values.T
    left = pure_spectra.T - basis @ np.linalg.lstsq(basis, pure_spectra.T, rcond=None)[0]
    assert np.abs(left).max() < 0.02 * pure_spectra.max()


def test_mean_and_components_rebuild_the_density_within_the_noise():
    _, _, od = two_states(np.random.default_rng(3))
    found = explore.principal_components(measured(od, 5000.0, seed=3), 2)
    rebuilt = found["mean"] + (found.loadings * found.scores).sum("component")
    error = (rebuilt.transpose("energy", "y", "x").values - od) / found.noise.values[:, None, None]
    # Two of forty dimensions keep their noise.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(np.sqrt(2 / 40), rel=0.15)


def test_components_equal_those_of_a_plain_eigenvalue_problem():
    _, _, od = two_states(np.random.default_rng(4))
    made = measured(od, 4000.0, 15.0, seed=4)
    found = explore.principal_components(made, 3)
    t = made.transmission.values.reshape(40, -1).astype(float)
    variance = (t + 15.0 / 4000.0) / 4000.0 / t**2
    noise = np.sqrt(variance.mean(axis=1))
    expected = np.linalg.eigvalsh(np.cov(-np.log(t) / noise[:, None]))[::-1]
    assert np.allclose(found.noise, noise, rtol=1e-3)
    assert np.allclose(found.eigenvalues, expected, rtol=2e-3)
    assert np.allclose(found.scores.var(("y", "x"), ddof=1), expected[:3], rtol=2e-3)
    largest = np.abs(found.loadings).argmax("energy")
    assert (found.loadings.isel(energy=largest) > 0).all()


def test_pixels_and_frames_without_data_are_left_out_and_change_nothing_else():
    _, _, od = two_states(np.random.default_rng(5))
    made = measured(od, 5000.0, seed=5)
    holes = made.copy(deep=True)
    holes["transmission"].values[3, 10:14, 20:25] = np.nan
    holes["transmission"].values[4, 40, 41] = -0.01
    holes["transmission"].values[7] = np.nan
    holes["photons"].values[7] = np.nan
    mask = np.ones(od.shape[1:], bool)
    mask[10:14, 20:25] = mask[40, 41] = False
    kept = np.delete(np.arange(40), 7)
    found = explore.principal_components(holes, 3)
    expected = explore.principal_components(made.isel(energy=kept), 3, mask=mask)
    assert found.attrs["pixel_count"] == mask.sum()
    assert np.array_equal(np.isfinite(found.scores[0]), mask)
    assert np.isnan(found.loadings[:, 7]).all()
    assert np.allclose(found.eigenvalues[:3], expected.eigenvalues[:3], rtol=2e-3)
    assert np.allclose(found.scores, expected.scores, atol=0.05, equal_nan=True)


def test_a_lazy_stack_read_in_slabs_gives_the_same(monkeypatch):
    _, _, od = two_states(np.random.default_rng(6))
    made = measured(od, 3000.0, seed=6)
    whole = explore.principal_components(made, 3)
    clusters = explore.cluster_spectra(made, 3)
    monkeypatch.setattr(_pixels, "SLAB_BYTES", 40 * 90 * 4 * 3)
    lazy = made.chunk({"energy": 1})
    again = explore.principal_components(lazy, 3)
    assert again.identical(whole)
    assert explore.cluster_spectra(lazy, 3).identical(clusters)


def test_the_interpolation_of_drifting_frames_does_not_pass_for_a_component():
    rng = np.random.default_rng(7)
    counts = rng.poisson(800.0, (40, 90, 100)).astype(np.float32)
    stack = label(counts, ENERGY, 10.0)
    shifts = align.zero_shifts(stack)
    shifts["shift_y"][:] = rng.uniform(-20, 20, 40)
    shifts["shift_x"][:] = rng.uniform(-20, 20, 40)
    i0 = xr.Dataset(
        {"i0": ("energy", np.full(40, 800.0)), "i0_errors": ("energy", np.zeros(40))},
        coords={"energy": stack.energy},
    )
    made = absorption.transmission(align.apply_shifts(stack, shifts), i0, shifts)
    found = explore.principal_components(made)
    assert found.attrs["significant_count"] == 0
    assert found.attrs["noise_level"] == pytest.approx(1.0, abs=0.05)


# --- clusters ---


@pytest.fixture(scope="module")
def three_regions():
    """Optical density of three uniform regions, and which pixel belongs to which (1 to 3)."""
    pure = list(spectra(ENERGY).values())
    levels = [np.zeros(40), 60 * pure[0], 100 * pure[1]]
    region = np.ones((60, 70), np.int32)
    region[10:50, 5:30], region[20:45, 40:65] = 2, 3
    return np.moveaxis(np.array(levels)[region - 1], -1, 0), region


def test_clusters_are_the_regions_by_rising_density(three_regions):
    od, region = three_regions
    found = explore.cluster_spectra(measured(od, 500.0, seed=1), 3)
    assert (found.label.values == region).mean() > 0.999
    assert found.label.dtype == np.int32
    assert np.array_equal(found.pixel_count, np.bincount(found.label.values.ravel())[1:])


def test_the_number_of_clusters_is_suggested(three_regions):
    od, region = three_regions
    found = explore.cluster_spectra(measured(od, 1000.0, seed=2))
    assert found.sizes["cluster"] == 3
    assert adjusted_rand_score(found.label.values.ravel(), region.ravel()) > 0.99


def test_cluster_spectra_hold_the_truth_within_their_errors(three_regions):
    od, region = three_regions
    truth = np.array([od[:, region == k][:, 0] for k in (1, 2, 3)])
    pulls = []
    for seed in range(8):
        found = explore.cluster_spectra(measured(od, 150.0, 5.0, seed=seed), 3)
        pulls.append((found.optical_density - truth) / found.optical_density_errors)
    pulls = np.array(pulls)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.1)
    # 0.1 sigma of these errors is 0.0004 at the white line: the bias of the logarithm is 0.02.
    assert np.abs(pulls.mean(axis=(0, 2))).max() < 0.25


def test_pixels_without_data_do_not_spoil_the_spectra_of_clusters(three_regions):
    od, region = three_regions
    made = measured(od, 500.0, seed=1)
    made["transmission"].values[4:, :6] = np.nan  # where the field drifted away
    found = explore.cluster_spectra(made, 3)
    assert (found.label.values[:6] == 0).all()
    truth = np.array([od[:, region == k][:, 0] for k in (1, 2, 3)])
    assert np.abs(found.optical_density.values - truth).max() < 0.02


def test_the_error_of_i0_is_kept_apart_from_the_photons(three_regions):
    od, _ = three_regions
    found = explore.cluster_spectra(measured(od, 500.0, seed=3, i0_error=0.02), 3)
    assert np.allclose(found.optical_density_systematic, 0.02, rtol=0.1)
    assert found.optical_density_errors.values.max() < 0.01


def test_the_same_seed_gives_the_same_clusters():
    made = measured(two_states(np.random.default_rng(8))[2], 1000.0, seed=8)
    first, second = (explore.cluster_spectra(made, 5, seed=3) for _ in range(2))
    assert first.identical(second)


# --- non-negative factors ---


def test_factors_are_the_species_where_both_occur_pure():
    amounts, pure_spectra, od = two_states(np.random.default_rng(9))
    found = explore.nonnegative_factors(measured(od, 5000.0, seed=9), 2)
    truth = pure_spectra / pure_spectra.mean(axis=1, keepdims=True)
    spectra_found = found.spectra.values
    order = [int(np.abs(spectra_found - t).sum(axis=1).argmin()) for t in truth]
    assert sorted(order) == [0, 1]
    assert np.abs(spectra_found[order] - truth).max() < 0.08 * truth.max()
    mean_density = amounts * pure_spectra.mean(axis=1)[:, None, None]
    assert np.abs(found.amount.values[order] - mean_density).mean() < 0.06 * mean_density.mean()
    assert found.attrs["residual"] == pytest.approx(1.0, abs=0.1)


def test_factors_rebuild_the_density_and_none_is_negative():
    _, _, od = two_states(np.random.default_rng(10), pure=False)
    made = measured(od, 3000.0, seed=10)
    made["transmission"].values[2, 5, 6] = np.nan
    found = explore.nonnegative_factors(made, 2)
    assert found.spectra.values.min() >= 0
    assert np.nanmin(found.amount.values) >= 0
    assert np.allclose(found.spectra.mean("energy"), 1.0)
    assert np.array_equal(np.argwhere(np.isnan(found.amount.values[0])), [[5, 6]])
    assert (np.diff(found.amount.sum(("y", "x"))) <= 0).all()
    rebuilt = (found.spectra * found.amount).sum("factor").transpose("energy", "y", "x").values
    error = np.delete((rebuilt - od).reshape(40, -1), 5 * 90 + 6, axis=1)
    assert np.sqrt(np.mean(error**2)) < 0.015


# --- regions ---


@pytest.mark.parametrize("estimator", ["grouped", "mean_density", "mean_transmission"])
@pytest.mark.parametrize("photons", [2000.0, 100.0])
def test_the_spectrum_of_an_even_region_is_right_within_its_error(estimator, photons):
    level = 80 * spectra(ENERGY)["mn4"]
    od = np.broadcast_to(level[:, None, None], (40, 30, 40))
    pulls = []
    for seed in range(12):
        found = explore.region_spectrum(
            measured(od, photons, 2.0, seed), (5, 25, 4, 34), estimator=estimator
        )
        pulls.append((found.optical_density.values - level) / found.optical_density_errors.values)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)
    assert np.abs(np.mean(pulls)) < 0.25
    assert found.attrs["pixel_count"] == 600


def test_few_counts_and_uneven_thickness_together_are_right_only_in_groups():
    rng = np.random.default_rng(11)
    thickness = rng.uniform(0, 150, (60, 60))
    od = spectra(ENERGY)["mn4"][:, None, None] * thickness
    made = [measured(od, 30.0, 0.0, seed) for seed in range(6)]
    peak = int(spectra(ENERGY)["mn4"].argmax())
    truth = od.mean(axis=(1, 2))

    def bias(estimator):
        found = [explore.region_spectrum(m, (0, 60, 0, 60), estimator=estimator) for m in made]
        return np.mean([f.optical_density.values[peak] for f in found]) - truth[peak]

    assert abs(bias("grouped")) < 0.02
    assert bias("mean_transmission") < -0.2
    assert abs(bias("mean_density")) > 0.03


def test_an_even_region_of_few_counts_is_right_in_groups():
    od = np.full((40, 50, 50), 1.5)
    found = [explore.region_spectrum(measured(od, 20.0, 0.0, s), (0, 50, 0, 50)) for s in range(6)]
    values = np.array([f.optical_density.values for f in found])
    errors = np.array([f.optical_density_errors.values for f in found])
    assert abs(values.mean() - 1.5) < 0.006
    assert np.std((values - 1.5) / errors) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("scattered", [False, True])
def test_errors_of_interpolated_frames_know_that_neighbours_share_noise(scattered):
    rng = np.random.default_rng(12)
    counts = rng.poisson(500.0, (40, 70, 80)).astype(np.float32)
    stack = label(counts, ENERGY, 10.0)
    shifts = align.zero_shifts(stack)
    shifts["shift_y"][:], shifts["shift_x"][:] = 5.0, 5.0
    i0 = xr.Dataset(
        {"i0": ("energy", np.full(40, 500.0)), "i0_errors": ("energy", np.zeros(40))},
        coords={"energy": stack.energy},
    )
    made = absorption.transmission(align.apply_shifts(stack, shifts), i0, shifts)
    mask = np.zeros((16, 16), bool)
    mask[::4, ::4] = True
    if not scattered:
        mask[:] = True
    pulls = []
    for y in range(8, 50, 16):
        for x in range(8, 60, 16):
            region = np.zeros((70, 80), bool)
            region[y : y + 16, x : x + 16] = mask
            found = explore.region_spectrum(made, region)
            pulls.append(found.optical_density / found.optical_density_errors)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)


def test_the_shared_error_of_i0_cancels_in_a_difference():
    _, _, od = two_states(np.random.default_rng(13))
    made = measured(od, 3000.0, seed=13, i0_error=0.05)
    a = explore.region_spectrum(made, (0, 10, 0, 10))
    b = explore.region_spectrum(made, (10, 20, 10, 20))
    found = explore.difference_spectrum(a, b)
    truth = od[:, :10, :10].mean(axis=(1, 2)) - od[:, 10:20, 10:20].mean(axis=(1, 2))
    pull = (found.optical_density.values - truth) / found.optical_density_errors.values
    assert np.sqrt(np.mean(pull**2)) == pytest.approx(1.0, abs=0.3)
    assert (found.optical_density_systematic == 0).all()
    assert np.abs(a.optical_density.values - od[:, :10, :10].mean(axis=(1, 2))).std() > 0.02
    half = explore.difference_spectrum(a, b, scale=0.5)
    assert np.allclose(half.optical_density_systematic, 0.5 * a.optical_density_systematic)


def test_pixels_in_both_regions_make_no_difference():
    made = measured(np.full((40, 20, 20), 0.7), 1000.0, seed=14)
    whole = explore.region_spectrum(made, (0, 20, 0, 20))
    same = explore.difference_spectrum(whole, whole)
    assert (same.optical_density == 0).all()
    assert (same.optical_density_errors < 1e-9).all()
    pulls = []
    for seed in range(10):
        made = measured(np.full((40, 20, 20), 0.7), 1000.0, seed=seed)
        a, b = (explore.region_spectrum(made, (0, 20, x, x + 12)) for x in (0, 8))
        found = explore.difference_spectrum(a, b)
        pulls.append(found.optical_density / found.optical_density_errors)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)


def test_a_region_without_data_or_outside_the_field_is_refused():
    made = measured(np.full((40, 20, 20), 0.7), 1000.0)
    made["transmission"].values[3, :5] = np.nan
    with pytest.raises(InputError, match="none of its 100 pixels was measured"):
        explore.region_spectrum(made, (0, 5, 0, 20))
    assert explore.region_spectrum(made, (0, 6, 0, 20)).attrs["pixel_count"] == 20
    with pytest.raises(InputError, match="does not lie within 20 rows and 20 columns"):
        explore.region_spectrum(made, (0, 21, 0, 20))
    with pytest.raises(InputError, match=r"boolean mask of shape \(20, 20\)"):
        explore.region_spectrum(made, np.ones((5, 5), bool))


# --- endmembers ---


@pytest.mark.parametrize("seed", range(3))
def test_pure_regions_come_back_within_their_errors(seed):
    amounts, pure_spectra, od = two_states(np.random.default_rng(seed), (120, 120))
    found = explore.suggest_endmembers(measured(od, 2000.0, 5.0, seed=seed), 2)
    assert found.plateau.all()
    fraction = amounts[1] / amounts.sum(axis=0)
    for k in (1, 2):
        inside = found.source.values == k
        which = round(float(fraction[inside].mean()))
        assert np.allclose(fraction[inside], which)
        thickness = amounts.sum(axis=0)[inside].mean()
        row = found.sel(endmember=k)
        pull = (row.optical_density - thickness * pure_spectra[which]) / row.optical_density_errors
        assert np.sqrt(np.mean(pull.values**2)) == pytest.approx(1.0, abs=0.35)
        assert abs(pull.values.mean()) < 0.6
    assert {round(float(fraction[found.source.values == k].mean())) for k in (1, 2)} == {0, 1}


def test_three_species_are_found():
    rng = np.random.default_rng(15)
    pure = np.array([*spectra(ENERGY).values(), 0.008 * np.exp(-0.5 * ((ENERGY - 646) / 2) ** 2)])
    shares = rng.dirichlet([1, 1, 1], (15, 15))
    for k in range(3):
        shares.reshape(-1, 3)[k::9] = np.eye(3)[k]
    amounts = np.kron(np.moveaxis(shares, -1, 0), np.ones((1, 8, 8))) * 90.0
    od = np.einsum("ke,kyx->eyx", pure, amounts)
    found = explore.suggest_endmembers(measured(od, 3000.0, seed=15), 3)
    share = amounts / amounts.sum(axis=0)
    purity = [share[:, found.source.values == k].mean(axis=1) for k in (1, 2, 3)]
    assert sorted(int(p.argmax()) for p in purity) == [0, 1, 2]
    assert min(p.max() for p in purity) > 0.98
    assert found.plateau.all()


def test_a_gradient_without_pure_pixels_is_said_to_have_no_plateau(caplog):
    thickness = 80.0
    fraction = np.broadcast_to(np.linspace(0.2, 0.8, 150), (80, 150))
    pure = np.array(list(spectra(ENERGY).values()))
    od = thickness * np.einsum("ke,kyx->eyx", pure, np.stack([1 - fraction, fraction]))
    found = explore.suggest_endmembers(measured(od, 3000.0, seed=16), 2)
    assert not found.plateau.any()
    assert "lies beyond them" in caplog.text
    # The stated bias: the purest there is, not the pure.
    reached = sorted(fraction[found.source.values == k].mean() for k in (1, 2))
    assert reached[0] == pytest.approx(0.2, abs=0.03)
    assert reached[1] == pytest.approx(0.8, abs=0.03)


def test_an_empty_field_has_no_endmembers():
    with pytest.raises(InputError, match="pixels absorb enough"):
        explore.suggest_endmembers(measured(np.zeros((40, 30, 30)), 1000.0), 2)


# --- colour composites ---


def a_map(values, name):
    values = np.asarray(values, dtype=float)
    axes = {d: (d, np.arange(n) * 5.0, {"units": "nm"}) for d, n in zip("yx", values.shape)}  # noqa: B905
    return xr.DataArray(values, dims=("y", "x"), coords=axes, name=name)


def test_colours_run_from_black_to_full_and_unknown_is_grey():
    a = a_map([[0.0, 1.0, 2.0], [np.nan, 0.0, 5.0]], "mn4")
    b = a_map([[0.0, 0.0, 1.0], [0.0, 1.0, 9.0]], "mn3")
    found = explore.colour_composite([a, b], limits={"mn4": (0.0, 2.0), "mn3": (0.0, 1.0)})
    blue, orange = (np.array(found.colours[n]) for n in ("mn4", "mn3"))
    image = found.image.values
    assert image.dtype == np.float32
    assert np.allclose(image[0, 0], 0.0)
    assert np.allclose(image[0, 1], blue / 2)
    assert np.allclose(image[0, 2], 1.0)  # equal amounts are white
    assert np.allclose(image[1, 0], 0.5)
    assert np.allclose(image[1, 1], orange)
    assert np.allclose(image[1, 2], 1.0)
    assert found.limits == {"mn4": (0.0, 2.0), "mn3": (0.0, 1.0)}


def test_limits_are_percentiles_of_the_finite_values():
    values = np.arange(10_000.0).reshape(100, 100)
    values[0, 0] = np.nan
    tree = xr.Dataset({"t": a_map(values, "t"), "flat": a_map(np.ones((100, 100)), "flat")})
    found = explore.colour_composite(tree, percentiles=(10.0, 90.0))
    assert found.limits["t"] == pytest.approx((1000.8, 8999.2), abs=1.0)
    assert found.limits["flat"] == (1.0, 2.0)
    assert list(explore.colour_composite(tree, ["t"]).colours) == ["t"]


# Machado, Oliveira, Fernandes, IEEE TVCG 15, 1291 (2009), severity 1.0, linear RGB.
CONES = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("vision", CONES)
@pytest.mark.parametrize("count", [2, 3])
def test_the_colours_differ_for_every_eye(vision, count):
    from skimage.color import rgb2lab

    colours = np.array([*composite.COMPOSITE_COLOURS[count], (0.0, 0.0, 0.0)])
    assert np.allclose(colours.sum(axis=0), 1.0)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(CONES[vision]).T, 0.0, 1.0)
    seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen[None])[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(count + 1, 1)]
    assert apart.min() > 44.0


def test_composites_of_too_many_or_unlike_maps_are_refused():
    a = a_map(np.ones((3, 3)), "a")
    with pytest.raises(InputError, match=r"4 maps.*one, two or three"):
        explore.colour_composite({n: a for n in "abcd"})
    with pytest.raises(InputError, match="there is no map z"):
        explore.colour_composite({"a": a}, ["z"])
    with pytest.raises(InputError, match="another grid"):
        explore.colour_composite([a, a_map(np.ones((3, 4)), "b")])
    with pytest.raises(InputError, match="not ascending"):
        explore.colour_composite([a], limits=(1.0, 1.0))


# --- phase ---


def objects(seed, strength=1.0, noise=0.01):
    """Complex stack with offset, ramp and noise; its true phase, density and open area."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:80, :96].astype(float)
    ball = 2 * np.sqrt(np.maximum(18.0**2 - (y - 38) ** 2 - (x - 50) ** 2, 0)) / 36.0
    steps = np.linspace(0.5, 1.0, 4)
    true_phase = -strength * steps[:, None, None] * ball
    density = 0.8 * steps[::-1, None, None] * ball
    ramps = rng.uniform(-0.3, 0.3, (4, 2)) * [1.0, 1.0]
    ramp = ramps[:, 0, None, None] * y + ramps[:, 1, None, None] * x
    offset = rng.uniform(-np.pi, np.pi, 4)[:, None, None]
    values = 20.0 * np.exp(-density / 2 + 1j * (true_phase + ramp + offset))
    values += (
        20.0
        * noise
        / np.sqrt(2)
        * (rng.normal(size=values.shape) + 1j * rng.normal(size=values.shape))
    )
    stack = label(values.astype(np.complex64), ENERGY[:4], 5.0, quantity="amplitude", units="1")
    return stack, true_phase, density, ball == 0


@pytest.mark.parametrize("strength", [0.3, 2.0, 9.0])
def test_the_phase_comes_back_without_offset_ramp_or_jumps(strength):
    stack, truth, _, area = objects(1, strength)
    area[:, 80:] = area[70:] = False
    found = explore.phase(stack, area)
    error = found.values - truth
    assert found.attrs["units"] == "rad"
    assert np.abs(error[:, area].mean(axis=1)).max() < 1e-3
    assert np.abs(error[:, ~area].mean(axis=1)).max() < 3e-3
    inside = truth < 0
    assert error[inside].std() < 0.012


def test_the_density_lies_beside_the_phase_and_its_noise_is_stated():
    stack, truth, density, area = objects(2)
    found = explore.phase_contrast(stack, area)
    assert np.allclose(found.phase_errors, 0.01 / np.sqrt(2), rtol=0.05)
    assert np.abs((found.optical_density.values - density).mean()) < 1e-3
    assert (found.optical_density.values - density).std() < 0.03
    assert found.phase.values[truth < 0].std() > 0.1


def test_the_open_area_follows_the_drift():
    stack, truth, _, area = objects(3)
    moved = stack.copy(data=np.roll(stack.values, (6, -9), axis=(1, 2)))
    moved.values[:, :6], moved.values[:, :, -9:] = np.nan, np.nan
    shifts = align.zero_shifts(stack)
    shifts["shift_y"][:], shifts["shift_x"][:] = 30.0, -45.0
    found = explore.phase(moved, area, shifts)
    expected = np.roll(truth, (6, -9), axis=(1, 2))
    known = np.isfinite(moved.values)
    assert np.array_equal(np.isfinite(found.values), known)
    assert np.abs((found.values - expected)[known]).mean() < 0.01


def test_moduli_and_counts_have_no_phase():
    stack, _, _, area = objects(4)
    with pytest.raises(InputError, match="moduli only"):
        explore.phase(np.abs(stack).assign_attrs(stack.attrs), area)
    with pytest.raises(InputError, match="quantity"):
        explore.phase(make(n_energies=3).stack, area)


# --- real scans ---


@pytest.fixture(scope="module")
def toner(shared_data):
    """Absorption of an Fe L3 stack of two phases, with its references."""
    folder = shared_data / "als-toner-stxm-fe/Data/ALS_Toner/71214078_FigS4/Aligned"
    if not folder.is_dir():
        pytest.skip("the Fe stack is not on this machine")
    stack = open_stack(folder / "71214078.hdr").load()
    columns = {
        name: np.loadtxt(folder / name)[:, 1] for name in ("i0.xsp", "reduced.r", "oxidized.r")
    }
    i0 = xr.Dataset(coords={"energy": stack.energy})
    i0["i0"] = ("energy", 0.433 * columns["i0.xsp"])
    i0["i0_errors"] = ("energy", np.zeros(stack.sizes["energy"]))
    design = np.column_stack([columns["reduced.r"], columns["oxidized.r"], np.ones(len(stack))])
    return absorption.transmission(stack, i0), design


def explained(spectrum, design, weights):
    """Share of a spectrum, in units of its noise, that the columns of a design make up."""
    amounts, *_ = np.linalg.lstsq(design * weights[:, None], spectrum * weights, rcond=None)
    left = (spectrum - design @ amounts) * weights
    return 1 - np.std(left) / np.std(spectrum * weights)


def test_the_strongest_components_of_the_fe_stack_are_made_of_its_references(toner):
    made, design = toner
    found = explore.principal_components(made, 5)
    assert found.attrs["significant_count"] >= 2
    sloped = np.column_stack([design, np.linspace(-1, 1, len(design))])
    weights = 1 / found.noise.values
    assert explained(found.loadings.values[0], sloped, weights) > 0.9
    assert explained(found.loadings.values[1], sloped, weights) > 0.85


def test_endmembers_of_the_fe_stack_are_iron_and_something_without_iron(toner):
    made, design = toner
    found = explore.suggest_endmembers(made, 2)
    iron = []
    for spectrum in found.optical_density.values:
        amounts, *_ = np.linalg.lstsq(design, spectrum, rcond=None)
        iron.append(amounts[:2].sum())
        assert np.std(spectrum - design @ amounts) < 0.02
    assert max(iron) > 0.3
    assert min(iron) < 0.2 * max(iron)


def test_clusters_of_the_fe_stack_rise_in_density(toner):
    clusters = explore.cluster_spectra(toner[0], 4)
    assert (np.diff(clusters.optical_density.mean("energy")) > 0).all()
    assert clusters.pixel_count.values.sum() == 125 * 125


def test_the_cosmic_reconstruction_is_flat_where_nothing_is(shared_data):
    stack = open_stack(shared_data / "cosmic-xanespy" / "ptycho-scan-856eV.cxi").load()
    image = np.abs(stack.values[0])
    area = absorption.find_open_area(image**2)
    assert area.sum() > 200
    found = explore.phase_contrast(stack, area)
    phase = found.phase.values[0]
    assert np.isfinite(phase).all()
    assert abs(phase[area].mean()) < 1e-3
    rows, columns = np.nonzero(area)
    slope = np.linalg.lstsq(
        np.column_stack([rows - rows.mean(), columns - columns.mean()]), phase[area], rcond=None
    )[0]
    assert np.abs(slope).max() * 285 < 0.02
    light = np.mean(image[area] ** 2)
    assert np.allclose(found.optical_density.values[0], -np.log(image**2 / light), atol=1e-4)
