"""Surface exchange against a certified table, the skin against the simulator, all models alike."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectromap.radial import diffusion, skin, surface_exchange
from spectromap.radial.models import MODELS
from spectromap.radial.projection import shell_lengths
from spectromap.schema import InputError
from spectromap.synthetic import Instrument, Sample, Scan, simulate

CERTIFIED = Path(__file__).parent / "certified"
#: Every model with every value of its further parameter.
VARIANTS = [(name, extra) for name, model in MODELS.items() for extra in model.extras]


# ----------------------------------------------------------------------------- surface exchange


def test_exchange_is_good_to_1e_10_at_every_time_and_rate() -> None:
    """Rates from far too slow to matter to held; L = 1 is a removable singularity."""
    table = np.loadtxt(CERTIFIED / "sphere_exchange.txt")
    for biot in np.unique(table[:, 2]):
        r, tau, _, exact = table[table[:, 2] == biot].T
        got = surface_exchange.concentration(r, tau, float(biot))
        assert got == pytest.approx(exact, abs=1e-10, rel=0)


def test_uptake_with_exchange_is_good_to_1e_10() -> None:
    table = np.loadtxt(CERTIFIED / "sphere_exchange_uptake.txt")
    for biot in np.unique(table[:, 1]):
        tau, _, exact = table[table[:, 1] == biot].T
        got = surface_exchange.mean_uptake(tau, float(biot))
        assert got == pytest.approx(exact, abs=1e-10, rel=0)


@given(biot=st.floats(1e-3, 1e4), tau=st.floats(1e-6, 2.0))
@settings(max_examples=60, deadline=None)
def test_what_passes_the_surface_is_what_is_inside(biot: float, tau: float) -> None:
    """The rate of the mean is three times the flux through the surface."""
    step = 1e-4 * tau
    rate = np.diff(surface_exchange.mean_uptake([tau - step, tau + step], biot))[0] / (2 * step)
    flux = 3.0 * biot * (1.0 - float(surface_exchange.concentration(1.0, tau, biot)))
    assert rate == pytest.approx(flux, rel=1e-5, abs=1e-9 / step)


@given(biot=st.floats(1e-3, 1e4), tau=st.floats(1e-6, 2.0), step=st.floats(1.01, 5.0))
@settings(max_examples=60, deadline=None)
def test_exchange_grows_outwards_with_time_and_with_rate(
    biot: float, tau: float, step: float
) -> None:
    r = np.linspace(0, 1, 101)
    now = surface_exchange.concentration(r, tau, biot)
    assert np.all(np.diff(now) >= -1e-12)
    assert np.all((now >= -1e-12) & (now <= 1 + 1e-12))
    assert np.all(surface_exchange.concentration(r, step * tau, biot) - now >= -1e-11)
    assert np.all(surface_exchange.concentration(r, tau, step * biot) - now >= -1e-11)
    assert np.all(diffusion.concentration(r, tau) - now >= -1e-11)


@pytest.mark.parametrize("tau", [1e-3, 0.02, 0.05, 0.4])
def test_fast_exchange_is_a_held_surface(tau: float) -> None:
    r = np.linspace(0, 1, 41)
    held = diffusion.concentration(r, tau)
    for biot, tolerance in ((1e5, 2e-4), (1e13, 1e-11), (1e16, 1e-13), (np.inf, 0.0)):
        got = surface_exchange.concentration(r, tau, biot)
        assert got == pytest.approx(held, abs=tolerance, rel=0)
        uptake = float(surface_exchange.mean_uptake(tau, biot))
        assert uptake == pytest.approx(float(diffusion.mean_uptake(tau)), abs=tolerance, rel=0)


def test_slow_exchange_fills_the_particle_evenly() -> None:
    """With L << 1 the particle is a stirred tank with the rate 3 L."""
    biot, tau = 1e-3, np.array([30.0, 300.0, 3000.0])
    tank = 1.0 - np.exp(-3.0 * biot * tau)
    assert surface_exchange.mean_uptake(tau, biot) == pytest.approx(tank, abs=1e-3)
    across = surface_exchange.concentration([0.0, 1.0], 300.0, biot)
    assert np.ptp(across) < 1e-3


def test_nothing_has_entered_at_the_start_and_all_at_the_end() -> None:
    r = np.array([0.0, 0.5, 1.0])
    assert surface_exchange.concentration(r, 0.0, 5.0).tolist() == [0.0, 0.0, 0.0]
    assert surface_exchange.concentration(r, np.inf, 5.0) == pytest.approx(1.0)
    assert surface_exchange.mean_uptake([0.0, np.inf], 5.0) == pytest.approx([0.0, 1.0])


@given(depth=st.floats(0.003, 1.0), exchange=st.floats(1e-3, 10.0))
@settings(max_examples=40, deadline=None)
def test_shells_with_exchange_add_up_to_the_whole(depth: float, exchange: float) -> None:
    edges = 1.0 - np.sinh(3.5 * np.linspace(1, 0, 101)) / np.sinh(3.5)
    means = surface_exchange.shell_means(edges, np.array([depth]), exchange)[:, 0]
    uptake = float(surface_exchange.mean_uptake(depth**2, 1.0 / exchange))
    assert np.diff(edges**3) @ means == pytest.approx(uptake, rel=1e-6)


def test_without_exchange_length_the_shells_are_those_of_diffusion() -> None:
    edges, depth = np.linspace(0, 1, 41), np.array([0.01, 0.2, 0.7])
    got = surface_exchange.shell_means(edges, depth, 0.0)
    assert got.tolist() == diffusion.shell_means(edges, depth).tolist()


def test_impossible_exchange_is_refused() -> None:
    for biot in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="Biot"):
            surface_exchange.concentration(0.5, 0.1, biot)
        with pytest.raises(InputError, match="Biot"):
            surface_exchange.mean_uptake(0.1, biot)
    for r, tau in ((-0.1, 0.1), (1.2, 0.1), (0.5, -1.0), (0.5, np.nan)):
        with pytest.raises(InputError):
            surface_exchange.concentration(r, tau, 2.0)
    with pytest.raises(InputError, match="tau"):
        surface_exchange.mean_uptake([-1.0], 2.0)
    for exchange in (-0.1, np.inf, np.nan):
        with pytest.raises(InputError, match="exchange"):
            surface_exchange.shell_means(np.linspace(0, 1, 5), np.array([0.1]), exchange)


# ---------------------------------------------------------------------------------------- skin


def test_a_skin_takes_away_its_volume_and_nothing_else() -> None:
    edges, depth = np.linspace(0, 1, 9), np.array([0.05, 0.3])
    initial, surface = skin.shell_weights(edges, depth, 0.2)
    fine = np.linspace(0, 0.8, 8001)
    uptake = np.diff(fine**3) @ diffusion.concentration(
        0.5 * (fine[1:] + fine[:-1])[:, None], depth**2
    )
    volume = np.diff(edges**3)
    assert volume @ surface == pytest.approx(uptake, rel=2e-4)
    assert volume @ (initial + surface) == pytest.approx(0.8**3)
    # The boundary cuts the shell from 0.75 to 0.875; the one outside of it is all skin.
    assert (initial + surface)[:6] == pytest.approx(1.0)
    kept = (0.8**3 - 0.75**3) / (0.875**3 - 0.75**3)
    assert (initial + surface)[6] == pytest.approx(kept)
    assert (initial + surface)[7].tolist() == [0.0, 0.0]


def test_a_skin_of_nothing_is_diffusion() -> None:
    edges, depth = np.linspace(0, 1, 30), np.array([0.01, 0.2, 0.7])
    initial, surface = skin.shell_weights(edges, depth, 0.0)
    assert surface == pytest.approx(diffusion.shell_means(edges, depth), abs=1e-15)
    assert initial + surface == pytest.approx(1.0)


def test_a_skin_that_fills_the_particle_is_refused() -> None:
    for thickness in (-0.1, 1.0, np.nan):
        with pytest.raises(InputError, match="skin"):
            skin.shell_weights(np.linspace(0, 1, 5), np.array([0.1]), thickness)


def test_skin_is_that_of_the_simulator() -> None:
    """Projected amounts of the mapped component, by voxels that share nothing with the shells."""
    radius, thickness, dt = 70.0, 4.0, 400.0
    sample = Sample(
        shape="sphere", particles=1, radius_nm=(radius, radius), skin_nm=thickness, D_cm2_s=1e-17
    )
    scan = Scan(pixel_nm=4.0, shape_px=(70, 70), energies=(640.2,))
    simulation = simulate(sample, Instrument(photons=1e6), scan, seed=4)
    maps, particle = simulation.truth["entry/maps"].to_dataset(), simulation.particles[0]
    rho = np.hypot(maps.y - particle.y, maps.x - particle.x).values
    edges = 1.0 - np.sinh(3.5 * np.linspace(1, 0, 201)) / np.sinh(3.5)
    depth = np.array([np.sqrt(dt) / radius])
    initial, surface = skin.shell_weights(edges, depth, thickness / radius)
    mean = (0.05 * initial + 0.6 * surface)[:, 0]
    inside = rho < radius - 8.0
    expected = shell_lengths(rho[inside], radius * edges) @ mean
    found = (maps.thickness * maps.mn3_fraction).values[inside]
    assert found == pytest.approx(expected, abs=0.015 * 2 * radius)
    assert found.sum() == pytest.approx(expected.sum(), rel=0.01)
    plain = shell_lengths(rho[inside], radius * edges) @ (
        0.05 + 0.55 * diffusion.shell_means(edges, depth)[:, 0]
    )
    assert found.sum() < 0.9 * plain.sum()


# ---------------------------------------------------------------------------------- all models


@pytest.mark.parametrize(("name", "extra"), VARIANTS)
def test_every_model_starts_empty_and_ends_full(name: str, extra: float) -> None:
    edges = np.linspace(0, 1, 21)
    initial, surface = MODELS[name].shells(edges, np.array([1e-4, 0.2, 30.0]), extra)
    assert initial.shape == surface.shape == (20, 3)
    assert surface[:-1, 0] == pytest.approx(0.0, abs=1e-12)
    present = (initial + surface)[:, 0]
    assert initial + surface == pytest.approx(present[:, None] * np.ones(3))
    share = np.divide(surface[:, 1], present, out=np.ones(20), where=present > 0)
    assert np.all(np.diff(share) >= -1e-12)
    assert surface[:, 2] == pytest.approx(present, abs=1e-9)
    if MODELS[name].extra == "skin_thickness":
        assert np.diff(edges**3) @ present == pytest.approx((1.0 - extra) ** 3)
    else:
        assert present == pytest.approx(1.0)


def test_only_models_with_a_further_parameter_try_several_values() -> None:
    for name, model in MODELS.items():
        assert (len(model.extras) > 1) == bool(model.extra), name
    assert {name for name, m in MODELS.items() if m.depth == "shell_thickness"} == {"core-shell"}


def closest(target: np.ndarray, edges: np.ndarray, exchange: float) -> tuple[float, float]:
    """Misfit (rms over the contrast) and depth of the profile that fits best, fractions free."""
    depths = np.logspace(-2, 0.3, 150)
    root = np.sqrt(np.diff(edges**3))
    best = (np.inf, np.nan)
    for depth, column in zip(
        depths, surface_exchange.shell_means(edges, depths, exchange).T, strict=True
    ):
        design = np.stack([np.ones(column.size), column], axis=1) * root[:, None]
        fitted = design @ np.linalg.lstsq(design, target * root, rcond=None)[0]
        misfit = float(np.sqrt(np.sum((fitted - target * root) ** 2)) / np.ptp(target))
        best = min(best, (misfit, float(depth)))
    return best


@pytest.mark.parametrize("depth", [0.1, 0.2, 0.3])
def test_the_exchange_lengths_that_are_tried_leave_no_gap(depth: float) -> None:
    """Between two of them, and past either end, profiles differ by little once fitted."""
    edges = np.linspace(0, 1, 31)
    tried = MODELS["surface-exchange"].extras
    between = [np.sqrt(a * b) for a, b in pairwise(tried)]
    for exchange in (0.0, *between, 10.0):
        target = surface_exchange.shell_means(edges, np.array([depth]), exchange)[:, 0]
        misfit, found = min(closest(target, edges, value) for value in tried)
        assert misfit < 0.005
        assert abs(2 * np.log10(found / depth)) < 0.1
    # What is at stake: the profile of a slow surface, taken for that of a held one.
    slow = surface_exchange.shell_means(edges, np.array([depth]), 1.0)[:, 0]
    misfit, found = closest(slow, edges, 0.0)
    assert misfit > 0.008
    assert 2 * np.log10(found / depth) < -0.15
