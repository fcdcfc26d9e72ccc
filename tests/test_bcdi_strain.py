"""Displacement and strain of simulated crystals against the truth of the simulation.

The object is what perfect phases would give: the measured moduli, noise and pixel area included,
with the phases of the true spectrum.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import fft

from spectromap.bcdi.strain import (
    displacement_and_strain,
    find_support,
    strain_by_depth,
    strain_fractions,
    strain_histogram,
)
from spectromap.schema import InputError
from spectromap.synthetic import (
    CoreShell,
    Dislocation,
    RadialGradient,
    simulate_crystal,
)

pytestmark = pytest.mark.long

DIMS = ("z", "y", "x")


def seen(made):
    """Object in the sample frame from the counts and the true phases."""
    spectrum = fft.fftshift(fft.fftn(fft.ifftshift(made.detector_object)))
    moduli = np.sqrt(made.scan["counts"].values)
    values = moduli * np.exp(1j * np.angle(spectrum))
    values = fft.fftshift(fft.ifftn(fft.ifftshift(values))).astype(np.complex64)
    coords = {
        dim: (dim, (np.arange(n) - n // 2) * made.lattice[i, i], {"units": "nm"})
        for i, (dim, n) in enumerate(zip(DIMS, values.shape, strict=True))
    }
    attrs = {"q_vector": tuple(made.q)}
    return xr.DataArray(values, coords=coords, dims=DIMS, attrs=attrs).sortby(list(DIMS))


def points(crystal):
    return np.meshgrid(*(crystal[d].values for d in DIMS), indexing="ij")


def ball(radius=12.0, size=40, voxel=10.0, phase=lambda z, y, x: 0.0 * z):
    """A round crystal without blur or noise, phase in rad by coordinates in voxels."""
    axis = np.arange(size) - size // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = z**2 + y**2 + x**2 < radius**2
    values = (inside * np.exp(1j * phase(z, y, x))).astype(np.complex64)
    coords = {d: (d, axis * voxel, {"units": "nm"}) for d in DIMS}
    return xr.DataArray(values, coords=coords, dims=DIMS, attrs={"q_vector": (0.0, 12.0, 5.0)})


@pytest.mark.parametrize("seed", [0, 1])
def test_strain_and_displacement_of_a_gradient(seed):
    made = simulate_crystal(fields=[RadialGradient(2e-3)], seed=seed)
    crystal = seen(made)
    maps = displacement_and_strain(crystal)
    z, y, x = points(crystal)
    voxel, q = maps.attrs["voxel_nm"], maps.attrs["q_norm"]
    inner = made.body.level(y, x, z) > 2 * voxel
    truth = made.strain(z, y, x)
    error = (maps["strain"].values + maps.attrs["mean_strain"] - truth)[inner] * q * voxel
    assert np.sqrt(np.mean(error**2)) < 0.01  # rad per voxel; 0.02 is the bar
    assert np.abs(error).max() < 0.04
    assert np.std(truth[inner]) * q * voxel > 0.06
    phase = q * (maps["displacement"].values - made.displacement(z, y, x))
    ramp = np.column_stack([z[inner], y[inner], x[inner], np.ones(inner.sum())])
    rest = phase[inner] - ramp @ np.linalg.lstsq(ramp, phase[inner], rcond=None)[0]
    assert rest.std() < 0.02
    volume = float(maps["support"].sum()) * voxel**3
    assert volume == pytest.approx(made.body.volume, rel=0.03)
    depth = made.body.level(y, x, z)[maps["support"].values]
    error = maps["depth"].values[maps["support"].values] - depth
    assert abs(error.mean()) < 0.2 * voxel
    assert np.sqrt(np.mean(error**2)) < 0.25 * voxel


def test_core_shell_is_sharp_to_the_voxel():
    """Against differences of the true displacement over the same two voxels."""
    made = simulate_crystal(fields=[CoreShell(2e-3, 60.0)])
    crystal = seen(made)
    maps = displacement_and_strain(crystal)
    z, y, x = points(crystal)
    voxel, q = maps.attrs["voxel_nm"], maps.attrs["q_norm"]
    inner = made.body.level(y, x, z) > 2 * voxel
    up, down = made.displacement(z, y + voxel, x), made.displacement(z, y - voxel, x)
    truth = (up - down) / (2 * voxel)
    error = (maps["strain"].values + maps.attrs["mean_strain"] - truth)[inner] * q * voxel
    assert np.sqrt(np.mean(error**2)) < 0.02


@pytest.mark.parametrize("character", ["edge", "screw"])
def test_a_dislocation_leaves_no_line_of_strain(character):
    line = (1.0, 0.0, 0.3) if character == "edge" else (0.5, 1.0, 0.2)
    made = simulate_crystal(fields=[Dislocation(character, line=line)])
    crystal = seen(made)
    maps = displacement_and_strain(crystal)
    z, y, x = points(crystal)
    voxel, q = maps.attrs["voxel_nm"], maps.attrs["q_norm"]
    along = np.asarray(line) / np.linalg.norm(line)
    place = np.stack([z, y, x], -1) - made.fields[0].through_nm
    away = np.linalg.norm(place - (place @ along)[..., None] * along, axis=-1) / voxel
    inner = made.body.level(y, x, z) > 2 * voxel
    error = (maps["strain"].values + maps.attrs["mean_strain"] - made.strain(z, y, x)) * q * voxel
    far = inner & (away > 3)
    assert np.sqrt(np.mean(error[far] ** 2)) < 0.02
    assert np.abs(error[far]).max() < 0.1
    # The derivative of the unwrapped phase does have the line, so there was one to avoid.
    naive = np.abs(np.gradient(maps["phase"].values, axis=1))[far]
    assert np.nanmax(naive) > 2.0
    # The core is found, and nothing else inside is taken for one.
    found = maps["dislocation"].values & inner
    assert found.sum() > 10
    assert away[found].max() < 2.0
    assert np.isnan(maps["strain"].values[found]).all()


def test_ramp_and_offset_do_not_matter():
    made = simulate_crystal(fields=[RadialGradient(2e-3)])
    crystal = seen(made)
    z, y, x = points(crystal)
    tilt = np.exp(1j * (0.02 * z - 0.015 * y + 0.01 * x + 2.0)).astype(np.complex64)
    tilted = crystal * tilt
    tilted.attrs = crystal.attrs
    one, two = (displacement_and_strain(c) for c in (crystal, tilted))
    for name in ("strain", "displacement"):
        used = one["depth"].values > one.attrs["voxel_nm"]
        np.testing.assert_allclose(one[name].values[used], two[name].values[used], atol=2e-5)
    moved = np.subtract(two.attrs["ramp"], one.attrs["ramp"])
    np.testing.assert_allclose(moved, (0.02, -0.015, 0.01), rtol=1e-3)
    # A ramp along Q is a uniform strain: the lattice spacing keeps it.
    grown = float((two["d_spacing"] / one["d_spacing"]).median()) - 1
    assert grown == pytest.approx(-0.015 / one.attrs["q_norm"], rel=0.02)


def test_strain_is_along_q():
    """A quadratic phase whose derivative along a tilted Q is known everywhere."""
    crystal = ball(phase=lambda z, y, x: 0.01 * y**2 + 0.02 * x * y - 0.01 * z * x)
    maps = displacement_and_strain(crystal)
    z, y, x = (c / 10 for c in points(crystal))
    expected = (12 * (0.02 * y + 0.02 * x) + 5 * (0.02 * y - 0.01 * z)) / 13 / (13 * 10)
    deep = maps["depth"].values > 10
    np.testing.assert_allclose(maps["strain"].values[deep], expected[deep], atol=2e-6)
    assert maps["strain"].attrs["units"] == "1"
    assert maps["displacement"].attrs["units"] == "nm"


def test_errors_are_the_spread_over_starts():
    rng, sigma = np.random.default_rng(1), 0.05
    crystal = ball(phase=lambda z, y, x: 0.01 * y**2)
    starts = []
    for _ in range(40):
        noise = rng.normal(0, sigma, crystal.shape)
        z, y, x = points(crystal)
        ramp = rng.normal(0, 0.01, 3) @ np.stack([z, y, x]).reshape(3, -1)
        start = crystal.values * np.exp(1j * (noise + ramp.reshape(z.shape) + rng.uniform(0, 6)))
        starts.append(start.astype(np.complex64))
    stack = xr.DataArray(np.stack(starts), dims=("start", *DIMS))
    maps = displacement_and_strain(crystal, stack)
    deep = maps["depth"].values > 20
    assert maps["phase_errors"].values[deep].mean() == pytest.approx(sigma, rel=0.03)
    # A central difference of independent voxels has 1/sqrt(2) of their error.
    expected = sigma / np.sqrt(2) / (13.0 * 10.0)
    assert maps["strain_errors"].values[deep].mean() == pytest.approx(expected, rel=0.03)
    fractions = strain_fractions(maps)
    assert 0 < float(fractions["tensile_fraction_errors"]) < 0.2
    assert float(strain_by_depth(maps)["strain_errors"].median()) > 0.95 * expected


@pytest.mark.parametrize("strength", [6e-4, 2e-3])
def test_numbers_of_a_state_follow_the_truth(strength):
    made = simulate_crystal(fields=[RadialGradient(strength)])
    crystal = seen(made)
    maps = displacement_and_strain(crystal)
    z, y, x = points(crystal)
    depth = made.body.level(y, x, z)
    voxel = maps.attrs["voxel_nm"]
    truth = made.strain(z, y, x)
    deep = maps["depth"].values >= 2 * voxel
    truth = truth - maps.attrs["mean_strain"]
    found = strain_fractions(maps, min_depth_nm=2 * voxel)
    assert float(found["tensile_fraction"]) == pytest.approx(np.mean(truth[deep] > 0), abs=0.05)
    assert float(found["strain_spread"]) == pytest.approx(truth[deep].std(), rel=0.1)
    total = sum(float(found[f"{n}_fraction"]) for n in ("tensile", "compressive", "neutral"))
    assert total == pytest.approx(1.0)
    neutral = strain_fractions(maps, neutral=1.0)
    assert float(neutral["neutral_fraction"]) == 1.0

    histogram = strain_histogram(maps, bins=30)
    assert float(histogram["volume_share"].sum()) == pytest.approx(1.0)
    mean = float((histogram["volume_share"] * histogram["strain"]).sum())
    used = maps["strain"].values[maps["depth"].values >= voxel]
    assert mean == pytest.approx(np.nanmean(used), abs=float(np.diff(histogram["strain"])[0]))

    profile = strain_by_depth(maps)
    for row in range(2, 6):
        near = np.abs(depth - float(profile["depth"][row])) < voxel / 2
        spread = np.ptp(profile["strain"].values[2:6])
        assert float(profile["strain"][row]) == pytest.approx(truth[near].mean(), abs=0.2 * spread)
    assert profile["strain"].values[2] > profile["strain"].values[5]


def test_support_ignores_stray_voxels_and_holes():
    crystal = ball()
    crystal.values[3, 3, 3] = 1.0
    crystal.values[20, 20, 20] = 0.0
    support = find_support(crystal)
    assert not support.values[3, 3, 3]
    assert support.values[20, 20, 20]
    assert float(support.sum()) == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)


def test_what_is_no_object_is_refused():
    crystal = ball()
    with pytest.raises(InputError, match="dims"):
        displacement_and_strain(crystal.transpose("x", "y", "z"))
    with pytest.raises(InputError, match="complex"):
        displacement_and_strain(abs(crystal))
    with pytest.raises(InputError, match="q_vector"):
        displacement_and_strain(crystal.drop_attrs())
    with pytest.raises(InputError, match="equal cubes"):
        displacement_and_strain(crystal.assign_coords(x=crystal["x"] * 2))
    with pytest.raises(InputError, match="empty"):
        displacement_and_strain(crystal.copy(data=np.zeros_like(crystal.values)))
    with pytest.raises(InputError, match="support"):
        displacement_and_strain(crystal, support=find_support(crystal)[:5])
    one = xr.DataArray(crystal.values[None], dims=("start", *DIMS))
    with pytest.raises(InputError, match="two starts"):
        displacement_and_strain(crystal, one)
    with pytest.raises(InputError, match="no voxel deeper"):
        strain_fractions(displacement_and_strain(crystal), min_depth_nm=1e4)
