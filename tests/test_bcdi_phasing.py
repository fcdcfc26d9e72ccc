"""Phase retrieval against simulated crystals, and against its textbook form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import fft, ndimage

from spectromap.bcdi import phasing, solutions
from spectromap.bcdi._backend import Backend, get_backend, in_array_api
from spectromap.schema import InputError
from spectromap.synthetic import (
    Crystal,
    CrystalSimulation,
    Dislocation,
    RadialGradient,
    Recording,
    RockingScan,
    simulate_crystal,
)

pytestmark = pytest.mark.long

SIZE = 48
SHORT = "30*HIO + 10*ER"


def simulated(fields: Any = None, **recording: Any) -> CrystalSimulation:
    """A crystal about a third of the window wide."""
    crystal = Crystal(diameter_nm=420.0)
    scan = RockingScan(shape=(SIZE,) * 3)
    return simulate_crystal(
        crystal, fields or (RadialGradient(),), scan, Recording(**recording), seed=1
    )


@pytest.fixture(scope="module")
def truth() -> CrystalSimulation:
    return simulated()


@pytest.fixture(scope="module")
def measured(truth: CrystalSimulation) -> phasing.Measurement:
    return phasing.measurement_of(truth.scan)


def compare(result: xr.Dataset, truth: CrystalSimulation) -> tuple[float, float, float]:
    """Correlation, phase error [rad], and volume of the support over the true one."""
    laid = solutions.align(result["object"].values, truth.detector_object)
    ratio = laid.object * np.conj(truth.detector_object)
    inside = ratio[truth.detector_support]
    phase = np.angle(inside * np.conj(inside.sum()))
    volume = float(result["support"].sum()) / truth.detector_support.sum()
    return laid.correlation, float(np.sqrt(np.mean(phase**2))), volume


def test_a_crystal_is_what_it_was(truth: CrystalSimulation) -> None:
    seen: list[tuple[int, int]] = []
    result = solutions.reconstruct(
        truth.scan, watch=lambda start, errors: seen.append((start, errors.size)), starts=3
    )
    correlation, phase, volume = compare(result, truth)
    assert correlation >= 0.995
    assert phase <= 0.05
    assert volume == pytest.approx(1.0, abs=0.05)
    assert int(result["accepted"].sum()) >= 2
    assert seen[0] == (0, phasing.INTERVAL)
    assert seen[-1] == (2, result.sizes["iteration"])
    inside = result["support"].values
    assert np.isfinite(result["phase_errors"].values[inside]).all()
    assert 0.0 < float(result["phase_errors"].mean()) < 0.1
    assert float(result["transfer"][0]) == pytest.approx(1.0, abs=0.05)
    mass = ndimage.center_of_mass(np.abs(result["object"].values) ** 2)
    np.testing.assert_allclose(mass, SIZE // 2, atol=0.6)


def test_a_dislocation_does_not_break_the_support() -> None:
    truth = simulated((Dislocation(),))
    result = solutions.reconstruct(truth.scan, starts=1)
    correlation, _, volume = compare(result, truth)
    assert correlation >= 0.99
    assert volume == pytest.approx(1.0, abs=0.05)


def test_unmeasured_pixels_are_left_open(truth: CrystalSimulation) -> None:
    scan = truth.scan.copy(deep=True)
    scan["mask"][:, 32:35, :] = False
    middle = slice(SIZE // 2 - 1, SIZE // 2 + 1)
    scan["mask"][middle, middle, middle] = False
    scan["counts"] = scan["counts"].where(scan["mask"], 1e9)
    result = solutions.reconstruct(scan, starts=1)
    correlation, _, volume = compare(result, truth)
    assert correlation >= 0.985
    assert volume == pytest.approx(1.0, abs=0.05)


def test_a_blurred_beam_is_found() -> None:
    length = 500.0
    blurred = simulated(coherence_nm=(length,) * 3)
    measured = phasing.measurement_of(blurred.scan)
    found = {}
    for coherence in ("full", "gaussian"):
        [solution] = phasing.run_starts(measured, [0], coherence=coherence)
        laid = solutions.align(solution.full(), blurred.detector_object)
        found[coherence] = laid.correlation
    assert found["gaussian"] > max(0.985, found["full"] + 0.01)
    edges = np.linalg.norm(blurred.lattice, axis=1)
    expected = SIZE * edges / (2 * np.pi * length)
    np.testing.assert_allclose(solution.coherence_widths, expected, rtol=0.15)


def test_a_start_is_the_same_wherever_it_runs(measured: phasing.Measurement) -> None:
    alone = phasing.run_starts(measured, [2], sequence=SHORT, seed=3)[0]
    among = phasing.run_starts(measured, [0, 2], sequence=SHORT, seed=3)[1]
    other = phasing.run_starts(measured, [2], sequence=SHORT, seed=4)[0]
    assert np.array_equal(alone.object, among.object)
    assert np.array_equal(alone.errors, among.errors)
    assert not np.array_equal(alone.errors, other.errors)


def textbook(
    name: str, values: np.ndarray, amplitude: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """One update of an object in the whole volume, as it is written in the papers."""
    spectrum = fft.fftn(values)
    known = amplitude >= 0
    projected = fft.ifftn(np.where(known, amplitude * np.exp(1j * np.angle(spectrum)), spectrum))
    if name == "ER":
        return np.where(inside, projected, 0)
    if name == "HIO":
        return np.where(inside, projected, values - 0.9 * projected)
    return np.where(inside, projected, 0.9 * values + (1 - 2 * 0.9) * projected)


@pytest.mark.parametrize("name", list(phasing.ALGORITHMS))
@pytest.mark.parametrize("backend", ["compiled", "array API"])
def test_updates_are_those_of_the_papers(name: str, backend: str) -> None:
    rng = np.random.default_rng(5)
    shape = (12, 10, 14)
    inside = np.zeros(shape, dtype=bool)
    inside[3:9, 2:7, 5:11] = rng.random((6, 5, 6)) > 0.3
    amplitude = np.where(rng.random(shape) > 0.1, rng.random(shape), -1.0).astype(np.float32)
    chosen: Backend = get_backend("scipy")
    chosen = replace(chosen, block_bytes=3 * 10 * 14 * 8)
    if backend == "array API":
        chosen = in_array_api("numpy", np)
    planes = phasing._Planes(phasing.Measurement(amplitude, inside, 1.0), chosen)
    box = phasing.bounding_box(inside)
    planes.open(box)
    values = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * inside
    expected = values
    planes.put(values[box].astype(np.complex64))
    for _ in range(4):
        error = np.abs(np.abs(fft.fftn(expected)) - amplitude)[amplitude >= 0]
        expected = textbook(name, expected, amplitude, inside)
        squared, found = planes.sweep(phasing.ALGORITHMS[name](0.9))
        assert squared == pytest.approx(np.sum(error**2), rel=1e-4)
        planes.put(found * inside[box])
    planes.settle()
    difference = fft.ifftn(planes.field) - expected
    assert np.abs(difference).max() < 1e-5 * np.abs(expected).max()


def test_sequences() -> None:
    step = phasing.Step
    assert phasing.parse_sequence("50*HIO + 20*ER") == (step("HIO", 50), step("ER", 20))
    assert phasing.parse_sequence("2*(5*hio+ER)") == (step("HIO", 5), step("ER", 1)) * 2
    assert phasing.parse_sequence(["3*RAAR", ("ER", 2)]) == (step("RAAR", 3), step("ER", 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("50*HIO + 20*XY", "found 'XY' at character 13"),
        ("50 HIO", r"expected '\*', found 'HIO' at character 4"),
        ("2*(HIO + ER", r"expected '\)', found the end at character 12"),
        ("HIO ER", "found 'ER' at character 5"),
        ("0*ER", "above zero"),
        ("HIO & ER", "found '& ER' at character 5"),
        ("", "found the end at character 1"),
        ([], "is empty"),
    ],
)
def test_a_wrong_sequence_is_named(text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        phasing.parse_sequence(text)


def smooth_object(seed: int = 0) -> np.ndarray:
    """A lopsided object with room around it."""
    rng = np.random.default_rng(seed)
    shape = (24, 20, 22)
    values = np.zeros(shape, dtype=complex)
    values[8:14, 7:13, 7:15] = rng.normal(size=(6, 6, 8)) + 1j * rng.normal(size=(6, 6, 8))
    parts = [ndimage.gaussian_filter(part, 1.2) for part in (values.real, values.imag)]
    return np.asarray(parts[0] + 1j * parts[1], dtype=np.complex64)


@pytest.mark.parametrize("twin", [False, True])
def test_alignment_undoes_what_diffraction_does_not_tell(twin: bool) -> None:
    reference = smooth_object()
    shift = (2.3, -1.6, 0.45)
    moved = fft.ifftn(ndimage.fourier_shift(fft.fftn(reference), shift))
    moved = (3.0 * np.exp(1j) * moved).astype(np.complex64)
    laid = solutions.align(solutions.twin_of(moved) if twin else moved, reference)
    assert laid.twin is twin
    assert laid.correlation > 0.9999
    np.testing.assert_allclose(laid.object, reference, atol=2e-3 * np.abs(reference).max())
    if not twin:
        np.testing.assert_allclose(laid.shift, -np.array(shift), atol=0.01)


def test_alignment_takes_off_a_ramp_where_asked() -> None:
    reference = smooth_object(1)
    turn = np.exp(0.35j * np.arange(24))[:, None, None]
    turned = (reference * turn).astype(np.complex64)
    assert solutions.align(turned, reference).correlation < 0.95
    assert solutions.align(turned, reference, ramp=True).correlation > 0.99


def test_bad_runs_are_rejected_blindly(measured: phasing.Measurement) -> None:
    good = phasing.run_starts(measured, [0, 1])
    stuck = replace(good[0], start=7, errors=good[0].errors * 1.5)
    rng = np.random.default_rng(0)
    wrong = replace(
        good[0], start=8, object=good[0].object * np.exp(3j * rng.random(good[0].object.shape))
    )
    result = solutions.combine([stuck, *good, wrong], measured)
    assert result["accepted"].values.tolist() == [False, True, True, False]
    assert "error" in str(result["reason"].values[0])
    assert "correlation" in str(result["reason"].values[3])
    assert result.attrs["best"] in (0, 1)


def test_the_transfer_function_tells_where_starts_agree(measured: phasing.Measurement) -> None:
    amplitude = np.maximum(measured.amplitude, 0)
    radius = np.sqrt(sum(np.meshgrid(*[fft.fftfreq(SIZE) ** 2] * 3, indexing="ij")))
    values = fft.ifftn(amplitude * np.exp(-((radius / 0.25) ** 2))).astype(np.complex64)
    frequency, transfer = solutions.transfer_function(values, measured)
    assert np.all(np.diff(transfer[~np.isnan(transfer)]) < 0)
    assert solutions.resolution(frequency, transfer) == pytest.approx(4.0, rel=0.05)


def test_scans_that_cannot_be_phased(truth: CrystalSimulation) -> None:
    counts = truth.scan["counts"]
    cases = {
        "negative": truth.scan.assign(counts=counts - 1),
        "no photons": truth.scan.assign(counts=counts * 0),
        "expected counts and mask": truth.scan.drop_vars("mask"),
        "larger than half": truth.scan.isel({d: slice(None, None, 3) for d in solutions.DIMS}),
    }
    for message, scan in cases.items():
        with pytest.raises(InputError, match=message):
            phasing.measurement_of(scan)


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"sigma": (0.0, 1.0)}, {"threshold": (0.1, 1.0)}, {"coherence": "none"},
     {"backend": "abacus"}],
)  # fmt: skip
def test_options_that_cannot_be(measured: phasing.Measurement, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        phasing.run_starts(measured, [0], sequence="1*ER", **options)
