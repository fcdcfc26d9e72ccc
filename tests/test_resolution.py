"""The psf from the picture: simulated fields whose blur is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from spectromap.resolution import (
    Resolution,
    estimate_resolution,
    fourier_ring_correlation,
)
from spectromap.schema import InputError
from spectromap.synthetic import Instrument, Sample, Scan, Simulation, default_energies, simulate

FRAMES = 10
#: A stack has more frames than are simulated here.
FRAMES_OF_A_STACK = 60
ENERGIES = tuple(default_energies("Mn L3")[:: FRAMES_OF_A_STACK // FRAMES])


def axes(shape: tuple[int, int], pixel: float) -> dict[str, xr.Variable]:
    return {
        name: xr.Variable(name, (np.arange(n) + 0.5) * pixel, {"units": "nm"})
        for name, n in zip(("y", "x"), shape, strict=True)
    }


def as_map(values: np.ndarray, pixel: float) -> xr.DataArray:
    return xr.DataArray(
        values, dims=("y", "x"), coords=axes(values.shape, pixel), attrs={"units": "1"}
    )


def field(
    resolution: float, pixel: float, seed: int, *, photons: float = 5000.0, **sample: object
) -> Simulation:
    """A field of particles that are alike inside, which is quick to simulate."""
    big = resolution > 28
    radius = (120.0, 250.0) if big else (60.0, 120.0)
    pixels = int(9.0 * radius[1] / pixel)
    options = {"particles": 8, "radius_nm": radius, "mechanism": "uniform", **sample}
    technique = str(options.pop("technique", "stxm"))
    return simulate(
        Sample(**options),  # type: ignore[arg-type]
        Instrument(
            technique=technique,  # type: ignore[arg-type]
            resolution_nm=resolution,
            photons=photons * FRAMES_OF_A_STACK / FRAMES,
            dark_counts=0.0,
        ),
        Scan(pixel_nm=pixel, shape_px=(pixels, int(1.12 * pixels)), energies=ENERGIES),
        seed=seed,
    )


def mean_image(made: Simulation) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean of what was blurred, and its error."""
    i0 = made.truth["entry/spectra"]["i0"].values[:, None, None]
    frames, pixel = made.stack.values, float(np.diff(made.stack.x.values[:2])[0])
    if np.iscomplexobj(frames):
        share = np.abs(frames) / np.sqrt(i0)
        # The noise of an amplitude is the same everywhere: that of the open columns.
        variance = np.ones_like(share) * share[:, :, :10].var(axis=(1, 2), keepdims=True)
    else:
        share = frames / i0
        variance = np.maximum(share, 0.0) / i0
    error = np.sqrt(variance.mean(axis=0) / share.shape[0])
    return as_map(share.mean(axis=0), pixel), as_map(error, pixel)


def estimate(made: Simulation) -> Resolution:
    return estimate_resolution(*mean_image(made))


FIELDS = [
    (8.0, 5.0, {"shape": "sphere"}),
    (10.0, 7.0, {"geometry": "lamella"}),
    (12.0, 10.0, {"photons": 20000.0}),
    (16.0, 6.0, {"shape": "polyhedron", "photons": 1000.0}),
    (20.0, 8.0, {"geometry": "lamella", "technique": "ptychography"}),
    (25.0, 10.0, {"photons": 500.0}),
    (45.0, 20.0, {"shape": "polyhedron"}),
    (60.0, 25.0, {}),
]


@pytest.fixture(scope="module")
def estimates() -> list[tuple[float, Resolution]]:
    return [
        (resolution, estimate(field(resolution, pixel, seed, **options)))  # type: ignore[arg-type]
        for seed, (resolution, pixel, options) in enumerate(FIELDS)
    ]


def test_width_is_found_within_its_error(estimates):
    assert not any(found.limit for _, found in estimates)
    off = np.array([np.log(found.fwhm_nm / true) for true, found in estimates])
    error = np.array([found.error_nm / found.fwhm_nm for _, found in estimates])
    assert abs(off.mean()) < 0.03
    assert np.sqrt(np.mean(off**2)) < 0.06
    assert error.max() < 0.15
    assert np.median(error) < 0.06
    deviation = np.abs(off) / error
    assert np.mean(deviation < 1.0) >= 0.5
    assert deviation.max() < 3.0


def test_pixels_are_no_part_of_the_width():
    rng = np.random.default_rng(1)
    found = []
    made = field(20.0, 5.0, 3)
    image, _ = mean_image(made)
    for together in (1, 2):
        ny, nx = (n // together for n in image.shape)
        values = image.values[: ny * together, : nx * together]
        values = values.reshape(ny, together, nx, together).mean(axis=(1, 3))
        noise = 1e-3
        values = values + rng.normal(0.0, noise, values.shape)
        errors = np.full(values.shape, noise)
        found.append(
            estimate_resolution(as_map(values, 5.0 * together), as_map(errors, 5.0 * together))
        )
    fine, coarse = found
    assert coarse.fwhm_nm == pytest.approx(20.0, abs=2.0 * coarse.error_nm)
    assert coarse.fwhm_nm == pytest.approx(fine.fwhm_nm, abs=1.5 * coarse.error_nm)


def test_psf_far_below_the_pixels_is_a_limit():
    found = estimate(field(4.0, 12.0, 4))
    assert found.limit
    assert found.fwhm_nm >= 12.0
    assert np.isnan(found.error_nm)
    assert found.reason


def test_gaps_as_narrow_as_the_psf_are_not_taken_for_it():
    made = field(
        12.0, 6.0, 5, geometry="lamella", shape="polyhedron", particles=0, agglomerates=1,
        primaries=10, radius_nm=(60.0, 100.0),
    )  # fmt: skip
    found = estimate(made)
    assert found.limit or abs(found.fwhm_nm - 12.0) < 2.0 * found.error_nm
    assert found.fwhm_nm > 11.0


def test_nothing_is_said_of_noise():
    rng = np.random.default_rng(0)
    values, errors = rng.normal(1.0, 0.01, (80, 90)), np.full((80, 90), 0.01)
    found = estimate_resolution(as_map(values, 5.0), as_map(errors, 5.0))
    assert found.limit
    assert np.isnan(found.fwhm_nm)
    assert "noise" in found.reason


def test_pixels_without_data_and_stripes_do_no_harm():
    made = field(12.0, 6.0, 6)
    image, errors = mean_image(made)
    whole = estimate_resolution(image, errors)
    rng = np.random.default_rng(2)
    image.values += rng.normal(0.0, 0.003, (image.shape[0], 1))
    image.values[:4] = np.nan
    image.values[:, -7:] = np.nan
    dead = rng.integers(0, min(image.shape), (2, 10))
    image.values[dead[0], dead[1]] = np.nan
    found = estimate_resolution(image, errors)
    assert found.fwhm_nm == pytest.approx(whole.fwhm_nm, abs=2.0 * whole.error_nm)


@pytest.mark.parametrize("shape", [(20, 100), (3, 3)])
def test_few_pixels_say_nothing(shape):
    found = estimate_resolution(as_map(np.ones(shape), 5.0), as_map(np.ones(shape), 5.0))
    assert np.isnan(found.fwhm_nm)
    assert "pixels" in found.reason


def test_what_is_no_image_is_refused():
    image = as_map(np.ones((40, 40)), 5.0)
    with pytest.raises(InputError, match="shape"):
        estimate_resolution(image, as_map(np.ones((40, 41)), 5.0))
    with pytest.raises(InputError, match="units"):
        estimate_resolution(image.assign_attrs(units="nm"), image)


# ---------------------------------------------------------------- two pictures


def blurred(seed: int, fwhm: float, pixel: float, size: int = 256) -> np.ndarray:
    """A picture of white detail seen with a Gaussian psf, of standard deviation one unblurred."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size, pixel)[:, None], np.fft.fftfreq(size, pixel))
    transfer = np.exp(-2.0 * (np.pi * fwhm / 2.3548 * frequency) ** 2)
    return np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * transfer).real


def twice(seed: int, fwhm: float, noise: float, pixel: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Two pictures of the same, each with noise of its own."""
    rng, same = np.random.default_rng([seed, 1]), blurred(seed, fwhm, pixel)
    first, second = (as_map(same + noise * rng.normal(size=same.shape), pixel) for _ in range(2))
    return first, second


@pytest.mark.parametrize(
    ("fwhm", "noise", "pixel"), [(20.0, 0.1, 5.0), (20.0, 0.5, 5.0), (40.0, 0.02, 8.0)]
)
def test_rings_agree_down_to_where_half_a_bit_is_left(fwhm, noise, pixel):
    lengths, deviations = [], []
    for seed in range(6):
        found = fourier_ring_correlation(*twice(seed, fwhm, noise, pixel))
        assert not bool(found["ring_resolution_limit"])
        k, curve = found["frequency"].values, found["ring_correlation"].values
        power = np.exp(-((2.0 * np.pi * fwhm / 2.3548 * k) ** 2))
        expected = power / (power + noise**2)
        spread = (1.0 - expected**2) / np.sqrt(2.0 * found["ring_modes"].values)
        lengths.append(float(found["ring_resolution"]))
        deviations += list(((curve - expected) / spread)[expected < 0.999])
    true = k[np.flatnonzero(expected < found["half_bit"].values)[0]]
    assert np.mean(lengths) == pytest.approx(1.0 / true, rel=0.05)
    assert 0.8 < np.sqrt(np.mean(np.square(deviations))) < 1.25
    assert (np.diff(k) > 0).all()
    assert k[-1] <= 0.5 / pixel


def test_threshold_is_the_published_one():
    found = fourier_ring_correlation(*twice(1, 20.0, 0.1, 5.0))
    root = np.sqrt(found["ring_modes"].values)
    expected = (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
    np.testing.assert_allclose(found["half_bit"], expected)
    assert found["frequency"].attrs["units"] == "nm-1"


def test_pictures_that_agree_to_the_pixel_give_a_limit_and_noise_gives_nothing():
    first, second = twice(2, 2.0, 0.05, 5.0)
    found = fourier_ring_correlation(first, second)
    assert bool(found["ring_resolution_limit"])
    assert float(found["ring_resolution"]) == 10.0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        one, other = (as_map(rng.normal(size=(90, 100)), 5.0) for _ in range(2))
        nothing = fourier_ring_correlation(one, other)
        assert np.isnan(float(nothing["ring_resolution"]))
        assert not bool(nothing["ring_resolution_limit"])


def test_rings_do_not_care_for_gaps_and_which_comes_first():
    first, second = twice(3, 20.0, 0.3, 5.0)
    whole = float(fourier_ring_correlation(first, second)["ring_resolution"])
    turned = fourier_ring_correlation(second, first)
    assert float(turned["ring_resolution"]) == pytest.approx(whole)
    first.values[:20] = np.nan
    second.values[:, -30:] = np.nan
    rng = np.random.default_rng(0)
    dead = rng.integers(30, 200, (2, 20))
    first.values[dead[0], dead[1]] = np.nan
    found = fourier_ring_correlation(first, second)
    assert float(found["ring_resolution"]) == pytest.approx(whole, rel=0.1)


def test_pictures_on_different_grids_are_refused():
    first, second = twice(4, 20.0, 0.3, 5.0)
    for other in (second[1:], second.assign_coords(x=second.x + 3.0)):
        other["x"].attrs["units"] = "nm"
        with pytest.raises(InputError, match="grids"):
            fourier_ring_correlation(first, other)
    small = fourier_ring_correlation(first[:20], second[:20])
    assert small.sizes["frequency"] == 0
    assert np.isnan(float(small["ring_resolution"]))
