"""The psf from the picture: simulated fields whose blur is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from spectromap.resolution import Resolution, estimate_resolution
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
