"""Crank's sphere against a certified table, and the shell means of diffusion and core-shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from spectromap.radial import core_shell, diffusion
from spectromap.schema import InputError

CERTIFIED = Path(__file__).parent / "certified"


@pytest.fixture(scope="module")
def held() -> np.ndarray:
    """Radius, time and concentration, written by certified/make_tables.py."""
    return np.loadtxt(CERTIFIED / "sphere_held.txt").T


def test_concentration_is_good_to_1e_12_at_every_time(held: np.ndarray) -> None:
    r, tau, exact = held
    assert diffusion.concentration(r, tau) == pytest.approx(exact, abs=1e-12, rel=0)


@pytest.mark.parametrize(
    ("series", "low", "high"),
    [(diffusion._short_time, 0.0, 0.2), (diffusion._long_time, 0.05, np.inf)],
)
def test_either_series_is_good_well_beyond_the_switch(
    held: np.ndarray, series: Callable[..., np.ndarray], low: float, high: float
) -> None:
    r, tau, exact = held[:, (held[1] >= low) & (held[1] <= high)]
    assert series(r, tau) == pytest.approx(exact, abs=1e-12, rel=0)


def test_mean_uptake_is_the_volume_mean_to_1e_12() -> None:
    tau, exact = np.loadtxt(CERTIFIED / "sphere_held_uptake.txt").T
    assert diffusion.mean_uptake(tau) == pytest.approx(exact, abs=1e-12, rel=0)


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
