"""Crank's sphere against a high-precision table, and the shell means of both models."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from spectromap.radial import MODELS, core_shell, diffusion
from spectromap.schema import InputError

RADII = (0.0, 1e-9, 3e-5, 9.9e-5, 1.01e-4, 1e-3, 0.03, 0.25, 0.5, 0.77, 0.95, 0.999, 1.0)
TIMES = (1e-9, 1e-6, 1e-4, 3e-3, 0.02, 0.05, 0.0999999, 0.1, 0.1000001, 0.13, 0.3, 1.0, 4.0)


def exact_by_errors(r: float, tau: float) -> mpmath.mpf:
    """Error-function series with forty digits."""
    with mpmath.workdps(60):
        radius = mpmath.mpf(r) if r > 0 else mpmath.mpf(10) ** -25
        width = 2 * mpmath.sqrt(mpmath.mpf(tau))
        total = mpmath.mpf(0)
        for n in range(25):
            odd = 2 * n + 1
            total += mpmath.erfc((odd - radius) / width) - mpmath.erfc((odd + radius) / width)
        return total / radius


def exact_by_sines(r: float, tau: float) -> mpmath.mpf:
    """Sine series with forty digits."""
    with mpmath.workdps(60):
        radius = mpmath.mpf(r) if r > 0 else mpmath.mpf(10) ** -25
        total = mpmath.mpf(0)
        for n in range(1, 300):
            decay = mpmath.exp(-(n**2) * mpmath.pi**2 * mpmath.mpf(tau))
            total += mpmath.mpf(-1) ** n / n * mpmath.sin(n * mpmath.pi * radius) * decay
        return 1 + 2 / (mpmath.pi * radius) * total


@pytest.mark.parametrize("tau", TIMES)
def test_concentration_is_good_to_1e_12_at_every_time(tau: float) -> None:
    exact = np.array([float(exact_by_errors(r, tau)) for r in RADII])
    assert diffusion.concentration(np.array(RADII), tau) == pytest.approx(exact, abs=1e-12, rel=0)


@pytest.mark.parametrize("tau", [0.02, 0.1, 0.7])
def test_the_table_itself_agrees_between_the_two_series(tau: float) -> None:
    for r in (0.0, 0.3, 0.9):
        assert abs(exact_by_errors(r, tau) - exact_by_sines(r, tau)) < 1e-25


@pytest.mark.parametrize("tau", TIMES[::2])
def test_mean_uptake_is_the_volume_mean_to_1e_12(tau: float) -> None:
    with mpmath.workdps(30):
        width = mpmath.sqrt(mpmath.mpf(tau))
        breaks = sorted({0, *(max(1 - k * width, mpmath.mpf(0)) for k in (1, 3, 9, 14)), 1})
        exact = 3 * mpmath.quad(lambda r: r**2 * exact_by_errors(r, tau), breaks)
    assert float(diffusion.mean_uptake(tau)) == pytest.approx(float(exact), abs=1e-12, rel=0)


@given(tau=st.floats(1e-8, 3.0), step=st.floats(1.01, 5.0))
@settings(max_examples=60, deadline=None)
def test_concentration_grows_outwards_and_with_time(tau: float, step: float) -> None:
    r = np.linspace(0, 1, 101)
    now, later = diffusion.concentration(r, tau), diffusion.concentration(r, tau * step)
    assert np.all(np.diff(now) >= -1e-12)
    assert np.all(later - now >= -1e-12)
    assert now[-1] == pytest.approx(1.0, abs=1e-12)
    assert np.all((now >= -1e-12) & (now <= 1 + 1e-12))


def test_limits_of_time() -> None:
    r = np.array([0.0, 0.5, 1.0])
    assert diffusion.concentration(r, 0.0).tolist() == [0.0, 0.0, 1.0]
    assert diffusion.concentration(r, np.inf) == pytest.approx(1.0)
    assert float(diffusion.mean_uptake(0.0)) == 0.0
    # A layer much thinner than the particle: the half space, bent over a sphere.
    tau, depth = 1e-6, 2e-3
    flat = special.erfc(depth / (2 * np.sqrt(tau))) / (1 - depth)
    assert float(diffusion.concentration(1 - depth, tau)) == pytest.approx(flat, rel=1e-9)


@pytest.mark.parametrize(("r", "tau"), [(-0.1, 0.1), (1.2, 0.1), (0.5, -1.0), (0.5, np.nan)])
def test_impossible_input_is_refused(r: float, tau: float) -> None:
    with pytest.raises(InputError):
        diffusion.concentration(r, tau)


def test_uptake_refuses_negative_times() -> None:
    with pytest.raises(InputError, match="tau"):
        diffusion.mean_uptake([-1.0])


@given(depth=st.floats(0.01, 1.0), shells=st.integers(30, 120))
@settings(max_examples=40, deadline=None)
def test_shells_add_up_to_the_whole(depth: float, shells: int) -> None:
    edges = np.linspace(0, 1, shells + 1)
    volume = np.diff(edges**3)
    diffused = volume @ diffusion.shell_means(edges, np.array([depth]))[:, 0]
    assert diffused == pytest.approx(float(diffusion.mean_uptake(depth**2)), abs=2e-5)
    phase = volume @ core_shell.shell_means(edges, np.array([depth]))[:, 0]
    assert phase == pytest.approx(1 - (1 - depth) ** 3, abs=1e-12)


def test_core_shell_is_a_step_at_its_depth() -> None:
    edges = np.linspace(0, 1, 11)
    means = core_shell.shell_means(edges, np.array([0.0, 0.3, 1.0, 1.5]))
    assert means[:, 0].tolist() == [0.0] * 10
    assert means[:, 1] == pytest.approx([0.0] * 7 + [1.0] * 3, abs=1e-12)
    assert means[:, 2] == pytest.approx(1.0)
    assert means[:, 3] == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_starts_empty_and_ends_full(name: str) -> None:
    edges = np.linspace(0, 1, 21)
    means = MODELS[name](edges, np.array([1e-4, 0.2, 2.0]))
    assert means.shape == (20, 3)
    assert means[:-1, 0] == pytest.approx(0.0, abs=1e-12)
    assert np.all(np.diff(means[:, 1]) >= -1e-12)
    assert means[:, 2] == pytest.approx(1.0, abs=1e-9)
