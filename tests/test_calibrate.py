"""The energy shift against known ones."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from make_stacks import reference_set, spectra

from spectromap import calibrate


def mean_od(shift, sigma, seed, t4=40.0, t3=15.0):
    energy = np.linspace(635, 655, 60)
    true = spectra(energy + shift)
    od = t4 * true["mn4"] + t3 * true["mn3"] + 0.05
    noise = np.random.default_rng(seed).normal(0, sigma, energy.size)
    return od + noise, np.full(energy.size, sigma), partial(reference_set, energy)


@pytest.mark.parametrize("shift", [-0.4, -0.05, 0.0, 0.1, 0.4])
def test_shift_is_recovered_with_its_sign(shift):
    found, error = calibrate.energy_shift(*mean_od(shift, 0.002, 1))
    assert found == pytest.approx(shift, abs=0.01)
    assert 0 < error < 0.01


def test_error_covers():
    pulls = []
    for seed in range(60):
        found, error = calibrate.energy_shift(*mean_od(0.12, 0.01, seed))
        pulls.append((found - 0.12) / error)
    assert 0.5 < np.mean(np.abs(pulls) < 1) < 0.85
    assert abs(np.mean(pulls)) < 0.5


def test_it_is_refused_when_references_cannot_fix_it(caplog):
    energy = np.linspace(635, 655, 60)
    flat = np.full(60, 0.5) + np.random.default_rng(0).normal(0, 0.01, 60)
    found, error = calibrate.energy_shift(flat, np.full(60, 0.01), partial(reference_set, energy))
    assert found == 0.0
    assert np.isnan(error)
    assert "calibrated" in caplog.text


def test_disabled_and_too_few_energies_leave_the_axis_alone():
    od, errors, make = mean_od(0.3, 0.002, 1)
    assert calibrate.energy_shift(od, errors, make, enabled=False)[0] == 0.0
    od[5:] = np.nan
    found, error = calibrate.energy_shift(od, errors, make)
    assert found == 0.0
    assert np.isnan(error)
