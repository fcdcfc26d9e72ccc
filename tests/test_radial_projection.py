"""Line integrals, blur and the spectral fit against independent integration."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spectromap.radial import core_shell, diffusion
from spectromap.radial.projection import (
    blur_matrix,
    disc_nodes,
    line_integral,
    observed_thicknesses,
    shell_lengths,
    slab_of,
    thickness,
)

SLABS = [None, (-40.0, 40.0), (10.0, 90.0), (-100.0, -70.0)]
ENERGY = np.linspace(636.0, 648.0, 25)


def spectra() -> np.ndarray:
    """Two components per nm: an absorption step each, with a peak at another energy."""
    rise = 0.5 + np.arctan((ENERGY - 641.5) / 0.5) / np.pi
    columns = [
        0.0022 + 0.003 * rise + 0.015 * np.exp(-(((ENERGY - centre) / 1.0) ** 2))
        for centre in (643.6, 641.8)
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("slab", SLABS)
def test_thickness_counts_the_voxels_along_the_beam(slab: tuple[float, float] | None) -> None:
    z = np.arange(-100.0, 100.0, 0.01) + 0.005
    rho = np.array([0.0, 20.0, 55.5, 80.0, 99.0, 100.0, 120.0])
    body = rho[:, None] ** 2 + z**2 < 100.0**2
    if slab is not None:
        body &= (z > slab[0]) & (z < slab[1])
    assert thickness(rho, 100.0, slab) == pytest.approx(body.sum(axis=1) * 0.01, abs=0.021)


def test_slab_is_centred_on_its_midplane() -> None:
    assert slab_of(80.0, 30.0) == (-10.0, 70.0)


@pytest.mark.parametrize("slab", SLABS)
@pytest.mark.parametrize("depth", [0.001, 0.02, 0.2, 0.6])
def test_line_integral_is_good_to_a_millionth(
    depth: float, slab: tuple[float, float] | None
) -> None:
    radius = 100.0
    rho = np.array([0.0, 31.0, 74.0, 97.0, 99.9])

    def profile(r: np.ndarray) -> np.ndarray:
        return diffusion.concentration(r / radius, depth**2)

    got = line_integral(profile, rho, radius, slab)
    lower, upper = (-radius, radius) if slab is None else slab
    for place, value in zip(rho, got, strict=True):
        top = np.sqrt(radius**2 - place**2)
        low, high = np.clip([lower, upper], -top, top)
        # Brute force: so many points that even the thinnest layer holds a hundred of them.
        z = (np.arange(400_000) + 0.5) / 400_000 * (high - low) + low
        brute = profile(np.minimum(np.hypot(place, z), radius)).mean() * (high - low)
        assert value == pytest.approx(brute, abs=1e-6 * 2 * radius)


def test_line_integral_of_a_parabola_is_exact() -> None:
    rho = np.array([0.0, 40.0, 90.0])
    got = line_integral(lambda r: r**2, rho, 100.0, (-30.0, 80.0))
    for place, value in zip(rho, got, strict=True):
        top = float(np.sqrt(100.0**2 - place**2))
        low, high = max(-30.0, -top), min(80.0, top)
        exact = mpmath.quad(lambda z, p=place: p**2 + z**2, [low, high])
        assert value == pytest.approx(float(exact), rel=1e-12)


@given(
    radius=st.floats(20.0, 400.0),
    cut=st.floats(-0.9, 0.9),
    height=st.floats(0.05, 2.5),
    shells=st.integers(2, 60),
)
@settings(max_examples=50, deadline=None)
def test_shell_lengths_add_up_to_the_thickness(
    radius: float, cut: float, height: float, shells: int
) -> None:
    rho = np.linspace(0, 1.1 * radius, 40)
    slab = slab_of(height * radius, cut * radius)
    lengths = shell_lengths(rho, np.linspace(0, radius, shells + 1), slab)
    assert np.all(lengths >= -1e-9 * radius)
    assert lengths.sum(axis=1) == pytest.approx(thickness(rho, radius, slab), abs=1e-9 * radius)


def test_shells_give_the_line_integral_after_blur() -> None:
    radius, sigma, depth = 100.0, 4.0, 0.15
    edges = 1.0 - np.sinh(3.5 * np.linspace(1, 0, 401)) / np.sinh(3.5)
    nodes, weights = disc_nodes(radius, 256)
    r = np.linspace(0, 105.0, 50)
    blur = blur_matrix(r, nodes, weights, sigma)
    means = diffusion.shell_means(edges, np.array([depth]))[:, 0]
    by_shells = blur @ (shell_lengths(nodes, edges * radius) @ means)
    smooth = line_integral(lambda x: diffusion.concentration(x / radius, depth**2), nodes, radius)
    assert by_shells == pytest.approx(blur @ smooth, abs=1e-4 * radius)


def test_core_shell_shells_give_the_closed_form() -> None:
    """What is left of the path after a smaller sphere is taken out."""
    radius, depth, slab = 100.0, 0.23, (-10.0, 55.0)
    edges = np.append(np.linspace(0, 1 - depth, 200), np.linspace(1 - depth, 1, 100)[1:])
    rho = np.linspace(0, 99.5, 60)
    means = core_shell.shell_means(edges, np.array([depth]))[:, 0]
    closed = thickness(rho, radius, slab) - thickness(rho, radius * (1 - depth), slab)
    assert shell_lengths(rho, edges * radius, slab) @ means == pytest.approx(closed, abs=1e-8)


def test_blur_of_a_gaussian_is_a_wider_gaussian() -> None:
    nodes, weights = disc_nodes(200.0, 300)
    r = np.array([0.0, 5.0, 20.0, 60.0])
    for sigma, width in ((4.0, 15.0), (19.0, 12.0)):
        blurred = blur_matrix(r, nodes, weights, sigma) @ np.exp(-0.5 * (nodes / width) ** 2)
        total = width**2 + sigma**2
        exact = width**2 / total * np.exp(-0.5 * r**2 / total)
        assert blurred == pytest.approx(exact, abs=1e-9)


def test_blur_keeps_a_constant_inside_and_the_total() -> None:
    nodes, weights = disc_nodes(100.0, 200)
    assert blur_matrix(np.array([0.0, 30.0, 60.0]), nodes, weights, 4.0).sum(
        axis=1
    ) == pytest.approx(1.0, abs=1e-9)
    out, out_weights = disc_nodes(160.0, 400)
    total = (out * out_weights) @ blur_matrix(out, nodes, weights, 4.0)
    assert total == pytest.approx(nodes * weights, rel=1e-6)


def test_blur_agrees_with_a_blurred_image() -> None:
    step, sigma, radius = 0.5, 4.25, 60.0
    axis = np.arange(-90, 90 + step / 2, step)
    distance = np.hypot(axis[:, None], axis)
    # Cells are averaged over 5 x 5 points: the thickness of a sphere ends steeply.
    offsets = (np.arange(5) - 2) * step / 5
    image = np.mean(
        [
            thickness(np.hypot(axis[:, None] + dy, axis + dx), radius)
            for dy in offsets
            for dx in offsets
        ],
        axis=0,
    )
    image = ndimage.gaussian_filter(image, sigma / step, truncate=7)
    nodes, weights = disc_nodes(radius, 128)
    middle = axis.size // 2
    r = distance[middle]
    got = blur_matrix(r, nodes, weights, sigma) @ thickness(nodes, radius)
    assert got == pytest.approx(image[middle], abs=0.05)


def seen(radius: float, fraction: float, fwhm: float, **options: object) -> np.ndarray:
    """Apparent thickness of both components of a uniform sphere, at some distances inside."""
    nodes, weights = disc_nodes(radius, max(160, int(600 / fwhm)))
    r = radius - np.array([2.0, 10.0, 40.0])
    blur = blur_matrix(r, nodes, weights, fwhm / 2.3548)
    whole = thickness(nodes, radius)
    amounts = np.stack([(1 - fraction) * whole, fraction * whole], axis=-1)[:, None]
    return observed_thicknesses(amounts, spectra(), blur, **options)[:, 0]


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
@pytest.mark.parametrize("photons", [None, 1e4])
def test_sharp_optics_report_the_truth(technique: str, photons: float | None) -> None:
    got = seen(100.0, 0.3, 0.5, technique=technique, photons=photons, dark_counts=10.0)
    whole = thickness(100.0 - np.array([2.0, 10.0, 40.0]), 100.0)
    assert got.sum(axis=1) == pytest.approx(whole, rel=5e-3)
    assert got[:, 1] / got.sum(axis=1) == pytest.approx(0.3, abs=1e-4)


def test_thin_bodies_reach_the_limit_of_small_optical_density() -> None:
    nodes, weights = disc_nodes(100.0, 160)
    blur = blur_matrix(np.array([50.0, 95.0]), nodes, weights, 10.0)
    whole = thickness(nodes, 100.0)
    amount = whole * (nodes / 100.0) ** 2
    amounts = 1e-5 * np.stack([whole - amount, amount], axis=-1)[:, None]
    got = observed_thicknesses(amounts, spectra(), blur, photons=1e4)[:, 0]
    assert got[:, 1] / got.sum(axis=1) == pytest.approx(blur @ amount / (blur @ whole), abs=1e-5)


def test_blurred_intensity_gives_uniform_particles_a_false_rim() -> None:
    def rim(fwhm: float, technique: str) -> float:
        got = seen(100.0, 0.1, fwhm, technique=technique, photons=1e4)
        fraction = got[:, 1] / got.sum(axis=1)
        return float(fraction.max() - 0.1)

    # The sizes that full simulations of Mn L3 stacks have shown, within a factor of two.
    assert 0.005 < rim(10.0, "stxm") < 0.04
    assert 0.025 < rim(45.0, "stxm") < 0.14
    assert rim(45.0, "ptychography") == pytest.approx(0.5 * rim(45.0, "stxm"), rel=0.3)


def test_the_chain_agrees_with_blurred_images() -> None:
    """Blur every transmitted image, fit every pixel: what the one-dimensional chain claims."""
    radius, fwhm, step = 60.0, 20.0, 1.0
    axis = np.arange(-100, 100 + step / 2, step)
    offsets = (np.arange(4) - 1.5) * step / 4
    whole = np.mean(
        [
            thickness(np.hypot(axis[:, None] + dy, axis + dx), radius)
            for dy in offsets
            for dx in offsets
        ],
        axis=0,
    )
    middle = axis.size // 2
    fraction = np.clip(np.hypot(axis[:, None], axis) / radius, 0, 1) ** 2
    columns = np.column_stack([spectra(), np.ones(ENERGY.size)])
    recorded = []
    for base, mapped in spectra():
        od = whole * ((1 - fraction) * base + fraction * mapped)
        image = ndimage.gaussian_filter(np.exp(-od), fwhm / 2.354820045, truncate=6)
        # The filter's own border: outside the image all light arrives.
        recorded.append(-np.log(image[middle]))
    expected = np.empty((axis.size, 3))
    for pixel, od in enumerate(np.transpose(recorded)):
        root = np.exp(-0.5 * od)[:, None]
        expected[pixel] = np.linalg.lstsq(columns * root, od * root[:, 0], rcond=None)[0]

    r = np.abs(axis)
    nodes, weights = disc_nodes(radius, 160)
    true = thickness(nodes, radius)
    share = (nodes / radius) ** 2
    amounts = np.stack([true * (1 - share), true * share], axis=-1)[:, None]
    blur = blur_matrix(r, nodes, weights, fwhm / 2.354820045)
    got = observed_thicknesses(amounts, spectra(), blur, photons=1e4)[:, 0]
    assert got == pytest.approx(expected[:, :2], abs=0.15)


def test_samples_past_the_largest_od_do_not_count() -> None:
    """A place that sees two thicknesses: only weak absorption is then nearly linear in them."""
    blur = np.array([[0.5, 0.5]])
    amounts = np.array([[[320.0, 80.0]], [[80.0, 20.0]]])
    everything = observed_thicknesses(amounts, spectra(), blur, photons=None)
    weak = observed_thicknesses(amounts, spectra(), blur, photons=None, max_od=1.0)
    truth = np.array([200.0, 50.0])
    assert np.abs(weak[0, 0] - truth).max() < np.abs(everything[0, 0] - truth).max()
