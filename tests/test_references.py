"""Units and absolute scale of reference spectra, against xraydb itself."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import xraydb

from spectromap import references
from spectromap.schema import InputError

LMR = references.Material("Li1.18Ni0.21Mn0.53Co0.08O2", 4.25)
EDGE = references.Edge("Mn L3")


def spectrum(energy, values, units):
    return xr.DataArray(values, dims="energy", coords={"energy": energy}, attrs={"units": units})


def compound(energy, formula, density):
    """Absorption per nm of a compound with a made-up white line."""
    white = 0.02 * np.exp(-0.5 * ((energy - 642) / 0.8) ** 2)
    return xraydb.material_mu(formula, energy, density=density) * 1e-7 + white


def test_edges_come_from_the_tables():
    assert EDGE.element == "Mn"
    assert EDGE.first_eV == pytest.approx(xraydb.xray_edge("Mn", "L3").energy)
    assert EDGE.last_eV == pytest.approx(xraydb.xray_edge("Mn", "L2").energy)
    assert references.guess_edge(np.linspace(635, 660, 10)) == "Mn L3"
    assert references.guess_edge(np.linspace(700, 730, 10)) == "Fe L3"
    with pytest.raises(InputError, match="Write it like 'Mn L3'"):
        references.Edge("manganese")
    with pytest.raises(InputError, match="no common edge"):
        references.guess_edge(np.linspace(2500, 2550, 5))


def test_number_density_of_mn_in_lmr():
    mass = sum(
        n * xraydb.atomic_mass(e)
        for e, n in {"Li": 1.18, "Ni": 0.21, "Mn": 0.53, "Co": 0.08, "O": 2}.items()
    )
    expected = 4.25 * 6.02214076e23 * 0.53 / mass * 1e-21
    assert references.number_density("Mn", LMR) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="has no Fe"):
        references.number_density("Fe", LMR)


@pytest.mark.parametrize("units", ["nm-1", "cm2 g-1", "cm2"])
def test_every_absolute_unit_gives_the_same_spectrum_per_nm(units):
    energy = np.linspace(630, 670, 200)
    per_nm = compound(energy, *LMR.__dict__.values())
    factor = {
        "nm-1": 1.0,
        "cm2 g-1": 1e7 / LMR.density_g_cm3,
        "cm2": 1e-14 / references.number_density("Mn", LMR),
    }[units]
    result = references.normalise_reference(
        spectrum(energy, per_nm * factor, units), EDGE, material=LMR
    )
    assert result.attrs["units"] == "nm-1"
    assert np.allclose(result.values, per_nm)


def test_an_od_of_unknown_thickness_is_tied_to_the_tables():
    energy = np.linspace(625, 700, 400)
    per_nm = compound(energy, *LMR.__dict__.values())
    od = spectrum(energy, 83.0 * per_nm + 0.1, "1")
    result = references.normalise_reference(od, EDGE, material=LMR)
    far = (energy < 632) | (energy > 680)
    assert np.allclose(result.values[far], per_nm[far], rtol=0.02)
    assert result.values.max() == pytest.approx(per_nm.max(), rel=0.05)


def test_mn2o3_is_put_on_the_mn_density_of_the_sample():
    energy = np.linspace(625, 700, 400)
    oxide = references.Material("Mn2O3", 4.5)
    od = spectrum(energy, 50.0 * compound(energy, *oxide.__dict__.values()), "1")
    result = references.normalise_reference(od, EDGE, material=LMR, scale="edge_jump")
    post, pre = energy > 690, energy < 630
    jump = result.values[post].mean() - result.values[pre].mean()
    table = references.tabulated_absorption(energy, LMR)
    assert jump == pytest.approx(table[post].mean() - table[pre].mean(), rel=0.03)


def test_an_l3_only_reference_has_no_edge_jump():
    energy = np.linspace(630, 648, 100)
    with pytest.raises(InputError, match=r"'mn3'.*no post-edge"):
        references.normalise_reference(
            spectrum(energy, np.ones(100), "1"), EDGE, name="mn3", material=LMR, scale="edge_jump"
        )


def test_without_formula_an_od_stays_relative():
    energy = np.linspace(625, 700, 100)
    result = references.normalise_reference(spectrum(energy, np.ones(100), "1"), EDGE)
    assert result.attrs["units"] == "1"
    with pytest.raises(InputError, match="needs the sample's composition"):
        references.normalise_reference(spectrum(energy, np.ones(100), "cm2 g-1"), EDGE)


def test_references_that_do_not_cover_the_energies_are_named():
    energy = np.linspace(636, 650, 100)
    ref = {"mn4": spectrum(energy, compound(energy, "MnO2", 5.0), "nm-1")}
    with pytest.raises(InputError, match=r"'mn4'.*covers 636.00 to 650.00.*lie outside"):
        references.reference_set(ref, np.linspace(635, 660, 50), EDGE)


def test_absolute_and_relative_references_do_not_mix():
    energy = np.linspace(630, 660, 100)
    pair = {
        "mn4": spectrum(energy, np.ones(100), "nm-1"),
        "mn3": spectrum(energy, np.ones(100), "1"),
    }
    with pytest.raises(InputError, match="mn3 is in optical density"):
        references.reference_set(pair, np.linspace(635, 655, 20), EDGE)


def test_a_reference_far_from_the_tables_is_reported(caplog):
    energy = np.linspace(625, 700, 200)
    pair = {"mn4": spectrum(energy, 4 * compound(energy, *LMR.__dict__.values()), "nm-1")}
    references.reference_set(pair, np.linspace(635, 655, 20), EDGE, material=LMR)
    assert "pre-edge absorption is 4.0" in caplog.text


def test_energy_shift_moves_the_spectrum_the_stated_way():
    energy = np.linspace(630, 665, 1000)
    pair = {"mn4": spectrum(energy, compound(energy, *LMR.__dict__.values()), "nm-1")}
    recorded = np.linspace(636, 655, 400)
    moved = references.reference_set(pair, recorded, EDGE, energy_shift=0.4)
    # true = recorded + shift: a peak at a true 642 eV is recorded at 641.6 eV
    assert recorded[moved.mn4.values.argmax()] == pytest.approx(641.6, abs=0.06)
    slope = np.gradient(moved.mn4.values, recorded)
    white = (recorded > 639.9) & (recorded < 645)  # the tabulated edge itself has a kink
    assert np.allclose(moved.mn4_slope.values[white], slope[white], atol=2e-4)


def test_broadening_keeps_the_area_and_lowers_the_peak():
    energy = np.linspace(630, 660, 600)
    pair = {"mn4": spectrum(energy, 0.02 * np.exp(-0.5 * ((energy - 642) / 0.3) ** 2), "nm-1")}
    recorded = np.linspace(636, 655, 400)
    sharp = references.reference_set(pair, recorded, EDGE)
    blunt = references.reference_set(pair, recorded, EDGE, broadening_eV={"mn4": 0.8})
    assert blunt.mn4.sum() == pytest.approx(float(sharp.mn4.sum()), rel=0.01)
    sigma = np.hypot(0.3, 0.8 / 2.3548)
    assert float(blunt.mn4.max()) == pytest.approx(0.02 * 0.3 / sigma, rel=0.02)
