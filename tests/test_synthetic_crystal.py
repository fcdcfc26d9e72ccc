"""The simulated crystal against what elasticity, Fourier theory and geometry say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from spectromap.schema import InputError
from spectromap.synthetic import _crystal as crystals
from spectromap.synthetic._bodies import Polyhedron
from spectromap.synthetic._crystal import (
    CoreShell,
    Crystal,
    Dislocation,
    Place,
    RadialGradient,
    Recording,
    RockingScan,
    simulate_crystal,
    simulate_crystal_series,
)


def spectrum(values):
    return fft.fftshift(fft.fftn(fft.ifftshift(values)))


def correlation(a, b):
    return abs(np.vdot(a, b)) / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real)


def test_a_box_scatters_as_a_product_of_sincs():
    """The amplitude is that of the body, not of its voxels, out to the corners of the window."""
    shape = (48, 40, 36)
    # Half edges along z, y, x in voxels, which end between the points that fill cells.
    halves = np.array([113.0, 127.0, 95.0]) / 18
    normals = np.vstack([np.eye(3), -np.eye(3)])
    box = Polyhedron(normals, np.tile(halves[::-1], 2))
    grid = crystals._fine_grid(box, np.eye(3), shape)
    cells = crystals._filled(box, grid).astype(np.complex64)
    found = crystals._amplitude(cells, grid, shape, (0, 0, 0), 0)
    expected = 1.0
    for axis, (size, half) in enumerate(zip(shape, halves, strict=True)):
        pixel = (np.arange(size) - size // 2) / size
        expected = expected * np.expand_dims(
            2 * half * np.sinc(2 * half * pixel), [a for a in range(3) if a != axis]
        )
    assert np.abs(found - expected).max() < 3e-3 * expected.max()
    assert correlation(found, expected) > 0.99999


@pytest.mark.parametrize("geometry", ["orthogonal", "34idc"])
def test_counts_are_those_of_the_true_object(geometry):
    made = simulate_crystal(scan=RockingScan(geometry=geometry), seed=3)
    counts = made.scan["counts"].values
    assert counts.dtype == np.float32
    assert made.scan["mask"].values.all()
    assert np.unravel_index(counts.argmax(), counts.shape) == (32, 32, 32)
    assert counts.max() == pytest.approx(1e6, rel=0.01)
    # 0.3 % are lost to the area of the pixels and to what the window cuts off.
    assert correlation(np.abs(spectrum(made.detector_object)), np.sqrt(counts)) > 0.996
    # The phase of the object is Q.u where its lattice says that the voxel lies.
    index = np.stack(np.meshgrid(*[np.arange(64) - 32] * 3, indexing="ij"), axis=-1)
    z, y, x = np.moveaxis(index @ made.lattice, -1, 0)
    inside = made.body.level(y, x, z) > made.voxel_nm
    phase = np.linalg.norm(made.q) * made.displacement(z, y, x)[inside]
    error = np.angle(made.detector_object[inside] * np.exp(-1j * phase))
    assert np.abs(error).max() < 0.02


def test_the_skew_frame_is_that_of_the_stages():
    """Two independent derivations of the goniometer agree, phase and sign included."""
    geometry = pytest.importorskip("spectromap.bcdi.geometry")
    made = simulate_crystal(scan=RockingScan(geometry="34idc", chi_deg=80.0))
    frame = geometry.sample_frame(made.scan)
    np.testing.assert_allclose(frame.voxels.T, -made.lattice, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(frame.q, made.q - made.offset, rtol=1e-6)
    found = geometry.to_sample_frame(made.detector_object, frame)
    z, y, x = np.meshgrid(found.z, found.y, found.x, indexing="ij")
    inside = made.body.level(y, x, z) > 2 * float(found.voxel_nm)
    phase = np.linalg.norm(made.q) * made.displacement(z, y, x)[inside]
    error = np.angle(found.values[inside] * np.exp(-1j * phase))
    assert abs(error.mean()) < 1e-3
    assert error.std() < 0.02
    # The detector angle at which gold was measured for d = 0.2335 nm.
    assert RockingScan(d_nm=0.2335, gamma_deg=12.6346).delta_deg == pytest.approx(32.174, abs=0.01)


def test_tension_moves_the_peak_to_smaller_q():
    tension = simulate_crystal(fields=[RadialGradient(4e-3)])
    pressure = simulate_crystal(fields=[RadialGradient(-4e-3)])
    wanted = 2 * np.pi / 0.472
    assert np.linalg.norm(tension.q) < wanted - 0.004 < wanted + 0.004 < np.linalg.norm(pressure.q)
    # Relative to the centre of the scan both are small: the rest is where the peak went.
    assert abs(float(tension.truth()["strain"].where(tension.truth()["support"]).mean())) < 1e-3


def test_pixels_integrate():
    """The sum over pixels three times finer is what a coarse pixel counts."""
    recording = Recording(photon_noise=False)
    coarse = simulate_crystal(fields=(), recording=recording)
    step = float(np.diff(coarse.scan["angle"].values).mean())
    fine = (
        simulate_crystal(
            fields=(),
            scan=RockingScan(shape=(64, 192, 192), pixel_m=55e-6 / 3, step_deg=step),
            recording=recording,
        )
        .scan["counts"]
        .values
    )
    summed = fine[:, 2:-1, 2:-1].reshape(64, 63, 3, 63, 3).sum(axis=(2, 4))
    expected = coarse.scan["counts"].values[:, 1:, 1:]
    summed *= expected.max() / summed.max()
    core = (slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(summed[core], expected[core], rtol=0.01, atol=0.1)
    assert np.corrcoef(np.sqrt(summed.ravel()), np.sqrt(expected.ravel()))[0, 1] > 0.9999


def test_partial_coherence_fills_the_minima():
    """A Gaussian mutual coherence damps the autocorrelation by its value at each distance."""
    lengths = (300.0, 200.0, 400.0)
    point = Recording(photon_noise=False, pixel_fill=0.0)
    partial = Recording(photon_noise=False, pixel_fill=0.0, coherence_nm=lengths)
    full, blurred = (simulate_crystal(fields=(), recording=r) for r in (point, partial))
    before, after = (np.abs(spectrum(s.scan["counts"].values)) for s in (full, blurred))
    n = np.arange(64) - 32
    for axis, length in enumerate(lengths):
        line = tuple(slice(None) if a == axis else 32 for a in range(3))
        ratio = after[line] / before[line] * before[32, 32, 32] / after[32, 32, 32]
        distance = n * np.linalg.norm(full.lattice, axis=1)[axis]
        near = np.abs(n) < 12
        expected = np.exp(-((distance / length) ** 2) / 2)
        np.testing.assert_allclose(ratio[near], expected[near], rtol=0.02)


def test_same_seed_same_counts_and_noise_is_of_photons():
    quiet = Recording(photon_noise=False, dark_counts=0.5)
    noisy = Recording(dark_counts=0.5)
    one, two = (simulate_crystal(recording=noisy, seed=5).scan["counts"].values for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = simulate_crystal(recording=noisy, seed=5, noise_seed=1).scan["counts"].values
    assert np.any(one != other)
    expected = simulate_crystal(recording=quiet, seed=5).scan["counts"].values
    assert np.mean((one - expected) ** 2 / expected) == pytest.approx(1.0, abs=0.02)


def test_flaws_are_where_they_are_said_to_be():
    flawed = Recording(photon_noise=False, hot_pixels=4, aliens=3)
    clean = simulate_crystal(recording=Recording(photon_noise=False)).scan["counts"].values
    made = simulate_crystal(recording=flawed)
    differs = made.scan["counts"].values - clean > 1.0
    assert np.mean(differs != made.flaws) < 1e-5
    assert made.flaws.all(axis=0).sum() == 4
    assert not made.flaws[:, 24:40, 24:40].all(axis=0).all()


@pytest.mark.parametrize(
    ("field", "mean"), [(CoreShell(1e-3, 60.0), (140 / 200) ** 3), (RadialGradient(1e-3), 3 / 5)]
)
def test_mean_strain_is_the_mean_misfit(field, mean):
    """Albenga's theorem: elastic strains of a free, homogeneous body average to zero."""
    radius, q = 200.0, np.array([0.0, 13.3, 0.0])
    axis = np.linspace(-radius, radius, 81)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    after = field.displacement(Place(z, y + 0.05, x, radius, q))
    before = field.displacement(Place(z, y - 0.05, x, radius, q))
    strain = (after - before) / 0.1
    inside = z**2 + y**2 + x**2 < radius**2
    assert strain[inside].mean() == pytest.approx(1e-3 * mean, rel=0.01)


@pytest.mark.parametrize("character", ["edge", "screw"])
def test_dislocation_turns_the_phase_once_and_its_cut_is_invisible(character):
    field = Dislocation(character, line=(1.0, 0.0, 0.0), through_nm=(0.0, 0.0, 0.0))
    q = np.array([6.0, 12.0, 0.0])
    angle = np.linspace(0, 2 * np.pi, 73)
    ring = Place(np.zeros(73), 50 * np.sin(angle), 50 * np.cos(angle), 200.0, q)
    steps = np.diff(ring.q_norm * field.displacement(ring))
    wrapped = np.angle(np.exp(1j * steps))
    assert abs(wrapped.sum()) == pytest.approx(2 * np.pi)
    assert np.abs(wrapped).max() < 0.2
    assert np.abs(steps).max() > 6.0
    assert np.all(np.abs(field.density(ring) - 1) < 1e-6)
    on_line = Place(np.zeros(1), np.zeros(1), np.zeros(1), 200.0, q)
    assert field.density(on_line) == 0

    truth = simulate_crystal(fields=[field]).truth()
    strain = truth["strain"].where(truth["support"])
    # Strain falls as b / 2 pi r: nothing past the core exceeds what its nearest voxel may have.
    away = np.hypot(truth["y"], truth["x"]) > 40
    assert float(np.abs(strain.where(away)).max()) < 3.5 / (13.3 * 40)


def test_series_follows_its_states_with_one_particle():
    series = simulate_crystal_series(scan=RockingScan((48, 48, 48)), seed=2)
    assert series.voltage[0] == 3.2
    bodies = {s.body.offsets.tobytes() for s in series.simulations}
    assert len(bodies) == 1
    truth = series.truth()
    assert truth["strain"].dims == ("voltage", "z", "y", "x")
    inside = truth["strain"].where(truth["support"])
    spread = inside.std(("z", "y", "x")).values
    order = np.asarray(crystals.SERIES_STRAIN)
    np.testing.assert_allclose(spread / spread.max(), order / order.max(), rtol=1e-3)
    with pytest.raises(InputError, match="11 voltages but 1 states"):
        simulate_crystal_series(fields=[[CoreShell()]])


def test_a_crystal_too_large_for_the_window_is_refused():
    with pytest.raises(InputError, match="not sampled twice"):
        simulate_crystal(Crystal(900.0))
    with pytest.raises(InputError, match="no Bragg angle"):
        simulate_crystal(scan=RockingScan(geometry="34idc", d_nm=0.05))
    with pytest.raises(InputError, match="beyond the Bragg angle"):
        simulate_crystal(scan=RockingScan(geometry="34idc", gamma_deg=40.0))
