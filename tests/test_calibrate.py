"""Energy shift, scale and resolution against known ones.

Spectra are Gaussian lines, so that any broadening is exact; the sample is counted photon by photon
through the line of a monochromator.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.special import erf

from spectromap.calibrate import Calibration, calibrate_energy

pytestmark = pytest.mark.long

ENERGY = np.concatenate([np.arange(635, 639, 0.5), np.arange(639, 645.6, 0.2),
                         np.arange(645.6, 660, 0.9)])  # fmt: skip
#: Centre in eV, height in nm-1, standard deviation in eV at the resolution of the references.
LINES = {
    "mn4": ((641.0, 0.010, 0.40), (643.3, 0.016, 0.55), (654.0, 0.006, 0.8)),
    "mn3": ((640.6, 0.004, 0.45), (642.0, 0.013, 0.75), (653.2, 0.005, 0.9)),
}
SIGMA_PER_FWHM = 1 / 2.35482


def per_nm(energy, width=0.0):
    """Absorption of both components, broadened by a Gaussian of a FWHM."""
    extra = (width * SIGMA_PER_FWHM) ** 2
    found = {}
    for name, lines in LINES.items():
        step = 0.002 * (1 + erf((energy - 643.5) / np.hypot(1.2, np.sqrt(2 * extra))))
        found[name] = 0.003 + step
        for centre, height, sigma in lines:
            wide = np.sqrt(sigma**2 + extra)
            found[name] += height * sigma / wide * np.exp(-0.5 * ((energy - centre) / wide) ** 2)
    return found


def references(energy=ENERGY, shape_error=0.0, seed=0, spectra=per_nm):
    """The callable: references that are wrong from place to place by a share of their lines."""
    rng = np.random.default_rng([seed, 99])
    waves = {name: rng.normal(size=(2, 12)) / np.sqrt(12) for name in LINES}
    rates = rng.uniform(0.2, 1.4, 12)  # rad per eV: ripples of about 5 eV and longer

    def given(place, width):
        values = spectra(place, width)
        for name in values:
            sines = waves[name][0] @ np.sin(np.outer(rates, place - 640))
            sines += waves[name][1] @ np.cos(np.outer(rates, place - 640))
            values[name] = 0.003 + (values[name] - 0.003) * (1 + shape_error * sines)
        return values

    def make(shift, scale, width):
        middle = 0.5 * (energy[0] + energy[-1])
        place = middle + scale * (energy - middle) + shift
        values, above, below = (given(place + d, width) for d in (0.0, 1e-3, -1e-3))
        data = {}
        for name in values:
            data[name] = ("energy", values[name])
            data[f"{name}_slope"] = ("energy", (above[name] - below[name]) / 2e-3)
        return xr.Dataset(data, coords={"energy": energy})

    return make


def recorded(seed=0, energy=ENERGY, shift=0.4, scale=1.0, width=0.0, counts=1500, stray=0.0,
             thick=(15.0, 60.0), pixels=1000, parts=1):  # fmt: skip
    """Mean OD of pixels, its error, and the share of the second component.

    With `parts`, a pixel sees so many places, from bare ones to twice as thick ones, the thinner
    the richer in the second component.
    """
    rng = np.random.default_rng(seed)
    nm, share = rng.uniform(*thick, pixels), rng.uniform(0.1, 0.5, pixels)
    middle = 0.5 * (energy[0] + energy[-1])
    light = np.zeros((energy.size, pixels))
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    for node, weight in zip(nodes * width * SIGMA_PER_FWHM, weights / weights.sum(), strict=True):
        true = per_nm(middle + scale * (energy - middle) + shift + node)
        for relative in (2 * np.arange(parts) + 1) / parts - (parts > 1) / parts:
            own = np.clip(share * (2 - relative), 0, 1)
            density = np.outer(true["mn4"], nm * (1 - own)) + np.outer(true["mn3"], nm * own)
            light += weight / parts * np.exp(-relative * density)
    seen = rng.poisson(counts * (stray + (1 - stray) * light) * 0.97)
    i0 = counts * (1 + 7e-4 * rng.normal(size=energy.size))
    od = np.mean(-np.log(seen / i0[:, None]) - 0.5 / seen, axis=1)
    errors = np.hypot(np.sqrt(np.sum(1 / seen, axis=1)) / pixels, 7e-4)
    return od, errors, float((nm * share).sum() / nm.sum())


def second_share(od, errors, make, found):
    """Share of the second component by weighted least squares, as the pixels are fitted."""
    made = make(found.shift, found.scale, found.broadening_eV)
    columns = np.column_stack([made.mn4, made.mn3, np.ones(od.size)]) / errors[:, None]
    amounts, *_ = np.linalg.lstsq(columns, od / errors, rcond=None)
    return amounts[1] / (amounts[0] + amounts[1])


@pytest.mark.parametrize(("shift", "counts"), [(-0.4, 1500), (0.05, 1500), (0.4, 10_000)])
def test_shift_is_recovered_with_its_sign(shift, counts):
    od, errors, _ = recorded(1, shift=shift, counts=counts)
    found = calibrate_energy(od, errors, references())
    assert found.shift == pytest.approx(shift, abs=0.005)
    assert 0 < found.shift_error < 0.005
    assert found.resolution == "matched"
    assert found.broadening_eV == 0.0
    assert (found.scale, np.isnan(found.scale_error)) == (1.0, True)


@pytest.mark.parametrize("width", [0.0, 0.5])
def test_shift_and_its_error_hold_with_wrong_references(width):
    pulls, off = [], []
    for seed in range(30):
        od, errors, _ = recorded(seed, width=width, counts=4000)
        found = calibrate_energy(od, errors, references(shape_error=0.015, seed=seed))
        off.append(found.shift - 0.4)
        pulls.append(off[-1] / found.shift_error)
    assert np.sqrt(np.mean(np.square(off))) < 0.005
    assert np.max(np.abs(off)) < 0.015
    assert 0.55 < np.mean(np.abs(pulls) < 1) < 0.95
    assert np.sqrt(np.mean(np.square(pulls))) < 1.4


def test_places_mixed_in_a_pixel_do_not_move_the_energy():
    off = []
    for seed in range(8):
        od, errors, _ = recorded(seed, thick=(100, 200), counts=4000, parts=5)
        found = calibrate_energy(od, errors, references(), 0.0)
        assert found.resolution == "matched"
        off.append((found.shift - 0.4, found.shift_error))
    off, stated = np.transpose(off)
    assert np.max(np.abs(off)) < 0.005
    assert np.sqrt(np.mean((off / stated) ** 2)) < 1.5


def test_the_line_of_the_monochromator_is_corrected_for():
    def wide(place, width):
        return per_nm(place, np.hypot(width, 0.3))

    for seed in range(4):
        od, errors, _ = recorded(seed, width=0.3, thick=(60, 130), counts=10_000)
        found = calibrate_energy(od, errors, references(spectra=wide), 0.3)
        assert found.resolution == "matched"
        assert found.shift == pytest.approx(0.4, abs=0.003)
        assert abs(found.width_difference_eV) < 0.15


def test_error_covers_where_photons_limit_it():
    pulls = []
    for seed in range(40):
        od, errors, _ = recorded(seed, counts=300, pixels=200)
        found = calibrate_energy(od, errors, references())
        pulls.append((found.shift - 0.4) / found.shift_error)
    assert 0.5 < np.mean(np.abs(pulls) < 1) < 0.87
    assert abs(np.mean(pulls)) < 0.5


def test_scale_is_fitted_if_wanted():
    pulls = []
    for seed in range(12):
        od, errors, _ = recorded(seed, scale=1.006, counts=6000)
        found = calibrate_energy(od, errors, references(), fit_scale=True)
        assert found.scale == pytest.approx(1.006, abs=0.003)
        assert found.shift == pytest.approx(0.4, abs=0.02)
        pulls.append((found.scale - 1.006) / found.scale_error)
    assert 0.4 < np.sqrt(np.mean(np.square(pulls))) < 1.6


def test_a_scale_that_cannot_be_known_is_taken_back(caplog):
    energy = np.arange(640.2, 643.9, 0.12)
    od, errors, _ = recorded(0, energy=energy, counts=200, pixels=4)
    found = calibrate_energy(od, errors, references(energy), fit_scale=True)
    assert found.scale == 1.0
    assert "scale of the energy axis cannot be fitted" in caplog.text


def test_a_less_sharp_sample_broadens_the_references():
    before, after, widths = [], [], []
    for seed in range(12):
        od, errors, share = recorded(seed, width=0.6, thick=(10, 40))
        make = references(shape_error=0.01, seed=seed)
        found = calibrate_energy(od, errors, make)
        assert found.resolution == "broadened"
        widths.append((found.broadening_eV, found.broadening_error))
        after.append(second_share(od, errors, make, found) - share)
        plain = calibrate_energy(od, errors, make, fit_resolution=False)
        assert plain.broadening_eV == 0.0
        before.append(second_share(od, errors, make, plain) - share)
    found, stated = np.transpose(widths)
    assert np.mean(found) == pytest.approx(0.6, abs=0.04)
    assert np.sqrt(np.mean(((found - 0.6) / stated) ** 2)) < 2
    assert abs(np.mean(before)) > 0.015
    assert abs(np.mean(after)) < 0.4 * abs(np.mean(before))


@pytest.mark.parametrize("stray", [0.0, 0.02])
def test_no_broadening_is_invented(stray):
    invented = 0
    for seed in range(30):
        od, errors, _ = recorded(seed, counts=6000, stray=stray)
        found = calibrate_energy(od, errors, references(shape_error=0.015, seed=seed))
        invented += found.resolution != "matched"
    assert invented == 0


def test_a_sharper_sample_is_flagged_and_nothing_is_undone(caplog):
    def wide(place, width):
        return per_nm(place, np.hypot(width, 0.7))

    od, errors, _ = recorded(3, counts=6000)
    found = calibrate_energy(od, errors, references(spectra=wide), 0.0)
    assert found.resolution == "sharper"
    assert found.broadening_eV == 0.0
    assert found.width_difference_eV == pytest.approx(-0.7, abs=0.12)
    assert abs(found.shift - 0.4) < min(2 * found.shift_error, 0.015)
    assert "resolved better than the references" in caplog.text


def test_points_too_thick_are_left_out():
    od, errors, _ = recorded(1)
    peak = int(np.argmax(od))
    od[peak] = 3.2
    assert calibrate_energy(od, errors, references()).shift == pytest.approx(0.4, abs=0.01)


def flat(rng):
    return 0.5 + rng.normal(0, 0.01, ENERGY.size), np.full(ENERGY.size, 0.01), references()


def too_few(rng):
    od, errors, _ = recorded()
    od[6:] = np.nan
    return od, errors, references()


def at_the_end(rng):
    return *recorded(shift=1.9)[:2], references()


def too_noisy(rng):
    od, errors, _ = recorded()
    return od + rng.normal(0, 0.3, od.size), np.hypot(errors, 0.3), references()


def only_the_post_edge(rng):
    energy = np.arange(657.0, 690.0, 0.6)
    return *recorded(energy=energy)[:2], references(energy)


def two_minima(rng):
    def comb(place, width):
        return {"mn4": 0.01 * (1 + np.cos(2 * np.pi * place / 0.9)), "mn3": 0.004 + 0 * place}

    energy = np.arange(640.0, 650.0, 0.13)
    od = 30 * comb(energy + 0.1, 0)["mn4"] + 0.2 + rng.normal(0, 0.01, energy.size)
    return od, np.full(energy.size, 0.01), references(energy, spectra=comb)


def collinear(rng):
    def moved(place, width):  # what a shift does is what the second component does
        line = 0.01 * np.exp(-0.5 * (place - 645) ** 2)
        return {"mn4": line, "mn3": line - 0.1 * (place - 645) * line}

    energy = np.arange(638.0, 652.0, 0.2)
    od = 40 * moved(energy, 0)["mn4"] + 0.1 + rng.normal(0, 0.004, energy.size)
    return od, np.full(energy.size, 0.004), references(energy, spectra=moved)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (flat, ""),
        (too_few, "6 usable energies are too few"),
        (at_the_end, "of the range of 1.5 eV"),
        (too_noisy, ""),
        (only_the_post_edge, ""),
        (two_minima, "fit about equally well"),
        (collinear, ""),
    ],
)
def test_it_is_refused_when_references_cannot_fix_it(case, why, caplog):
    for seed in range(1 if why else 5):
        found = calibrate_energy(*case(np.random.default_rng(seed)))
        assert (found.shift, found.scale, found.broadening_eV) == (0.0, 1.0, 0.0)
        assert np.isnan(found.shift_error)
    assert "could not be calibrated" in caplog.text
    assert why in caplog.text


def test_a_shift_by_hand_is_taken_as_it_is():
    od, errors, _ = recorded(0, width=0.6)
    found = calibrate_energy(od, errors, references(), shift_eV=0.41, shift_error_eV=0.02)
    assert (found.shift, found.shift_error) == (0.41, 0.02)
    assert found.broadening_eV == pytest.approx(0.6, abs=0.06)
    plain = calibrate_energy(od, errors, references(), shift_eV=-0.3, fit_resolution=False)
    assert (plain.shift, plain.broadening_eV) == (-0.3, 0.0)
    assert np.isnan(plain.shift_error)


def test_disabled_leaves_the_axis_alone():
    od, errors, _ = recorded()
    found = calibrate_energy(od, errors, references(), enabled=False, shift_eV=0.2)
    assert found.shift == 0.0
    assert np.isnan(found.shift_error)
    assert isinstance(found, Calibration)
