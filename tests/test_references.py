"""Units and absolute scale of reference spectra, against xraydb itself."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import xraydb
from scipy.special import erf, voigt_profile

from spectromap import references
from spectromap.io.spectra import read_spectrum
from spectromap.schema import InputError

LMR = references.Material("Li1.18Ni0.21Mn0.53Co0.08O2", 4.25)
EDGE = references.Edge("Mn L3")


def spectrum(energy, values, units):
    return xr.DataArray(values, dims="energy", coords={"energy": energy}, attrs={"units": units})


def compound(energy, formula, density):
    """Absorption per nm of a compound with a made-up white line."""
    white = 0.02 * np.exp(-0.5 * ((energy - 642) / 0.8) ** 2)
    return xraydb.material_mu(formula, energy, density=density) * 1e-7 + white


#: White lines of L3 and L2 in edge jumps: centre, height, Lorentzian half width, Gaussian sigma.
LINES = {
    "mn4": ((641.0, 4.1, 0.25, 0.3), (643.3, 5.9, 0.45, 0.45), (654.0, 2.4, 0.7, 0.6)),
    "mn3": ((640.6, 2.0, 0.3, 0.35), (642.0, 4.7, 0.5, 0.65), (653.2, 2.2, 0.7, 0.7)),
}


def shares(formula):
    """Mass fraction of every element."""
    atoms = xraydb.chemparse(formula)
    masses = {s: n * xraydb.atomic_mass(s) for s, n in atoms.items()}
    return {s: m / sum(masses.values()) for s, m in masses.items()}


def oxide(energy, formula, density, lines):
    """Absorption per nm: tabulated elements, steps of the Mn atoms, and Voigt lines on them."""
    found = {s: w * density * 1e-7 for s, w in shares(formula).items()}
    mn = found.pop("Mn")
    others = sum(xraydb.mu_elam(s, energy) * w for s, w in found.items())
    below = mn * xraydb.mu_elam("Mn", 600.0) * (energy / 600) ** -2.1
    above = mn * xraydb.mu_elam("Mn", 690.0) * (energy / 690) ** -2.3
    shape = sum(w / 2 * (1 + erf(energy - c)) for c, w in ((642.6, 2 / 3), (653.6, 1 / 3))) + sum(
        h * voigt_profile(energy - c, s, g) / voigt_profile(0, s, g) for c, h, g, s in lines
    )
    return others + below + (above - below) * shape


def white_line(spectrum):
    return float(spectrum.max() - spectrum[:5].mean())


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


@pytest.mark.parametrize(("first", "last", "within"), [(620, 705, 0.01), (636.2, 662, 0.03)])
@pytest.mark.parametrize("component", LINES)
def test_an_od_of_unknown_thickness_is_tied_to_the_tables(component, first, last, within, caplog):
    energy = np.arange(first, last, 0.1)
    per_nm = oxide(energy, *LMR.__dict__.values(), LINES[component])
    offset = 0.1 if last > 700 else 0.0  # what is short cannot tell an offset from a background
    od = spectrum(energy, 83.0 * per_nm + offset, "1")
    result = references.normalise_reference(od, EDGE, material=LMR)
    assert result.attrs["units"] == "nm-1"
    assert white_line(result.values) == pytest.approx(white_line(per_nm), rel=within)
    assert result.values[-1] == pytest.approx(per_nm[-1], rel=0.03)
    assert "edge jump set to that of the tables" in result.attrs["treatment"]
    assert 0 < result.attrs["relative_error"] < 0.15
    assert ("pre-edge of only" in result.attrs["treatment"]) == (first > 636)


@pytest.mark.parametrize("last", [665, 705])
@pytest.mark.parametrize("component", LINES)
def test_mn2o3_is_put_on_the_mn_density_of_the_sample(component, last):
    energy = np.arange(615, last, 0.1)
    measured = 50.0 * oxide(energy, "Mn2O3", 4.5, LINES[component])
    wanted = oxide(energy, *LMR.__dict__.values(), LINES[component])
    result = references.normalise_reference(
        spectrum(energy, measured, "1"), EDGE, material=LMR, scale="edge_jump"
    )
    assert white_line(result.values) == pytest.approx(white_line(wanted), rel=0.015)


def test_the_error_of_an_edge_jump_is_that_of_its_noise():
    energy = np.arange(615, 705, 0.2)
    clean = 60.0 * oxide(energy, *LMR.__dict__.values(), LINES["mn3"])
    scales, stated = [], []
    for seed in range(40):
        noisy = clean + np.random.default_rng(seed).normal(0, 0.01, energy.size)
        made = references.normalise_reference(spectrum(energy, noisy, "1"), EDGE, material=LMR)
        steps = np.diff(noisy)[100:200]  # over L3, where the background does not matter
        scales.append(np.diff(made.values)[100:200] @ steps / (steps @ steps))
        stated.append(made.attrs["relative_error"])
    scatter = np.std(scales) / np.mean(scales)
    assert scatter == pytest.approx(np.median(stated), rel=0.35)


def test_a_curve_whose_continuum_was_taken_off_has_no_edge_jump(caplog):
    energy = np.arange(630, 670, 0.1)
    lines = spectrum(energy, np.exp(-0.5 * (energy - 642) ** 2), "1")
    lines += 0.002 * np.random.default_rng(0).normal(size=energy.size)
    with pytest.raises(InputError, match="no edge jump"):
        references.normalise_reference(lines, EDGE, material=LMR, scale="edge_jump")
    assert references.normalise_reference(lines, EDGE, material=LMR).attrs["units"] == "1"
    assert "stay relative to the references" in caplog.text


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


@pytest.mark.parametrize("width", [0.0, 0.6])
def test_values_and_slopes_follow_shift_scale_and_broadening(width):
    energy = np.arange(630, 670, 0.1)
    pair = {"mn4": spectrum(energy, oxide(energy, *LMR.__dict__.values(), LINES["mn4"]), "nm-1")}
    recorded = np.arange(636, 660.1, 0.3)

    def made(**options):
        return references.reference_set(
            pair, recorded, EDGE, extra_broadening_eV=width, **options
        ).mn4

    base = references.reference_set(pair, recorded, EDGE, extra_broadening_eV=width)
    above, below = made(energy_shift=1e-3), made(energy_shift=-1e-3)
    assert np.allclose(base.mn4_slope, (above - below) / 2e-3, atol=1e-7)
    moved = made(energy_shift=0.2, energy_scale=1.01)
    fine = spectrum(energy, oxide(energy, *LMR.__dict__.values(), LINES["mn4"]), "nm-1")
    true = 648 + 1.01 * (recorded - 648) + 0.2
    there = references.reference_set({"mn4": fine}, true, EDGE, extra_broadening_eV=width).mn4
    assert np.allclose(moved.values, there.values, rtol=1e-9)


def test_broadenings_add_in_quadrature_and_agree_with_a_convolution():
    energy = np.arange(620, 690, 0.02)
    values = oxide(energy, *LMR.__dict__.values(), LINES["mn4"])
    recorded = np.arange(638, 658, 0.5)
    both = references.reference_set(
        {"mn4": spectrum(energy, values, "nm-1")},
        recorded,
        EDGE,
        broadening_eV={"mn4": 0.3},
        extra_broadening_eV=0.4,
    )
    kernel = np.exp(-0.5 * (np.arange(-2, 2.01, 0.02) / (0.5 / 2.35482)) ** 2)
    expected = np.convolve(values, kernel / kernel.sum(), mode="same")
    assert np.allclose(both.mn4.values, np.interp(recorded, energy, expected), rtol=2e-3)


def test_points_out_of_order_repeated_or_missing_change_nothing():
    energy = np.arange(620, 700, 0.25)
    values = 70 * oxide(energy, *LMR.__dict__.values(), LINES["mn3"])
    clean = references.normalise_reference(spectrum(energy, values, "1"), EDGE, material=LMR)
    order = np.random.default_rng(0).permutation(energy.size)
    messy = np.append(energy[order], [650.0, 650.0, 640.0])
    there = np.append(values[order], [values[120] + 0.1, values[120] - 0.1, np.nan])
    made = references.normalise_reference(spectrum(messy, there, "1"), EDGE, material=LMR)
    assert np.allclose(made.energy, energy)
    assert np.allclose(made.values, clean.values, rtol=1e-6)
    for step in ("1 points without a value", "energies sorted", "at one energy averaged"):
        assert step in made.attrs["treatment"]
    with pytest.raises(InputError, match="fewer than 4 energies"):
        references.normalise_reference(spectrum(energy[:3], values[:3], "1"), EDGE)


def test_what_is_normalised_is_not_normalised_again(caplog):
    energy = np.arange(620, 700, 0.25)
    values = 4 * oxide(energy, *LMR.__dict__.values(), LINES["mn3"])
    once = references.normalise_references(
        {"mn3": spectrum(energy, values, "nm-1")}, EDGE, material=LMR
    )
    assert "pre-edge absorption is 4.0" in caplog.text
    caplog.clear()
    twice = references.normalise_references(once, EDGE, material=LMR)
    assert twice["mn3"] is once["mn3"]
    assert caplog.text == ""


def test_the_error_of_a_scale_is_carried_to_the_set():
    energy = np.arange(620, 700, 0.25)
    pair = {
        n: spectrum(energy, 60 * oxide(energy, *LMR.__dict__.values(), LINES[n]), "1")
        for n in LINES
    }
    pair["mn4"].attrs["relative_error"] = 0.03
    made = references.reference_set(pair, np.arange(636.0, 656), EDGE, material=LMR)
    assert made.mn4.attrs["relative_error"] == 0.03
    assert 0 < made.mn3.attrs["relative_error"] < 0.02
    assert "edge jump" in made.mn3.attrs["treatment"]
    given = {"mn3": spectrum(energy, pair["mn3"].values / 60, "nm-1")}
    plain = references.reference_set(given, np.arange(636.0, 656), EDGE)
    assert "relative_error" not in plain.mn3.attrs


def region(energy, pixels=400, thick=(20.0, 60.0), seed=0, noise=0.02):
    """OD of pristine pixels, their errors, the true spectrum per nm and the mean thickness."""
    rng = np.random.default_rng(seed)
    per_nm = oxide(energy, *LMR.__dict__.values(), LINES["mn4"])
    nm = rng.uniform(*thick, pixels)
    od = np.outer(per_nm, nm) + rng.normal(0, noise, (energy.size, pixels))
    coords = {"energy": ("energy", energy, {"units": "eV"})}
    label = xr.DataArray(od, dims=("energy", "pixel"), coords=coords)
    return label, xr.full_like(label, noise), per_nm, float(nm.mean())


@pytest.mark.parametrize("with_errors", [True, False])
def test_a_pristine_region_of_known_thickness_is_a_reference(with_errors):
    energy = np.arange(634.0, 650.0, 0.2)  # L3 only: no edge jump to be had
    od, errors, per_nm, thickness = region(energy)
    made = references.reference_from_pixels(
        od,
        EDGE,
        errors=errors if with_errors else None,
        material=LMR,
        thickness_nm=thickness,
        thickness_error_nm=0.05 * thickness,
    )
    pull = (made.values - per_nm) / made.coords["errors"].values
    assert np.sqrt(np.mean(pull**2)) == pytest.approx(1.0, abs=0.25)
    assert made.attrs["units"] == "nm-1"
    assert made.coords["errors"].attrs["units"] == "nm-1"
    assert made.attrs["relative_error"] == pytest.approx(0.05)
    assert "mean of 400 pixels; divided by its" in made.attrs["treatment"]
    used = references.reference_set({"pristine": made}, energy[5:-5], EDGE, material=LMR)
    assert used.pristine.attrs["relative_error"] == pytest.approx(0.05)


def test_an_l3_only_region_has_no_edge_jump_and_stays_relative(caplog):
    energy = np.arange(634.0, 650.0, 0.2)
    od, errors, *_ = region(energy)
    with pytest.raises(InputError, match=r"'mn4'.*no post-edge"):
        references.reference_from_pixels(
            od, EDGE, errors=errors, material=LMR, scale="edge_jump", name="mn4"
        )
    made = references.reference_from_pixels(od, EDGE, errors=errors, material=LMR)
    assert made.attrs["units"] == "1"
    assert np.allclose(made.values, od.values.mean(axis=1))
    assert "no post-edge" in made.attrs["treatment"]
    assert "stay relative" in caplog.text


def test_a_region_over_the_whole_edge_is_tied_to_the_tables_at_its_true_energies():
    energy = np.arange(620.0, 700.0, 0.2)
    od, errors, per_nm, _ = region(energy, seed=2)
    chosen = np.arange(400) < 300
    od[7, 5] = np.nan  # this pixel is left out
    made = references.reference_from_pixels(
        od, EDGE, errors=errors, region=chosen, material=LMR, energy_shift=0.3
    )
    assert white_line(made.values) == pytest.approx(white_line(per_nm), rel=0.02)
    assert made.energy.values == pytest.approx(energy + 0.3)
    assert "mean of 299 pixels" in made.attrs["treatment"]
    assert "edge jump" in made.attrs["treatment"]


def test_thick_or_empty_regions_are_reported(caplog):
    energy = np.arange(634.0, 650.0, 0.2)
    od, errors, *_ = region(energy, thick=(120.0, 160.0))
    references.reference_from_pixels(od, EDGE, errors=errors, thickness_nm=140.0)
    assert "is high for a reference" in caplog.text
    with pytest.raises(InputError, match="no pixel has data at every energy"):
        references.reference_from_pixels(od, EDGE, region=np.zeros(400, bool))


def digitised(shared_data, name, number):
    """One curve of the digitised EELS library, which has many to a file."""
    path = shared_data / "eels-mn-classifier" / "derived_csv" / f"digitized_{name}.csv"
    if not path.exists():
        pytest.skip("data set is not here")
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    kept = np.array([(float(r[2]), float(r[3])) for r in rows if int(r[1]) == number])
    return spectrum(kept[:, 0], kept[:, 1], "1")


@pytest.mark.parametrize(("name", "number", "peak"), [("Mn3", 16, 642.3), ("Mn4", 20, 643.5)])
def test_digitised_eels_curves_are_tied_to_the_tables(shared_data, name, number, peak):
    raw = digitised(shared_data, name, number)
    made = references.normalise_reference(raw, EDGE, name=name, material=LMR, scale="edge_jump")
    assert np.all(np.diff(made.energy) > 0)
    assert "energies sorted" in made.attrs["treatment"]
    assert "taken off" in made.attrs["treatment"]
    assert float(made.energy[int(np.argmax(made.values))]) == pytest.approx(peak, abs=1.2)
    jump = 0.0042  # of the Mn atoms of the sample, nm-1
    assert 2 < white_line(made.values) / jump < 8
    table = references.tabulated_absorption(np.array([632.0]), LMR)[0]
    assert float(made[made.energy < 634].mean()) == pytest.approx(table, rel=0.1)


@pytest.mark.parametrize("name", ["Data2_LaMnO3", "Data2_MnO", "Data2_SrMnO3", "Data3_MnO2"])
def test_digitised_curves_without_continuum_stay_relative(shared_data, name, caplog):
    path = shared_data / "mn-l23-mnedgenet" / "test_Mn_spectra" / f"{name}.csv"
    if not path.exists():
        pytest.skip("data set is not here")
    made = references.normalise_reference(read_spectrum(path), EDGE, name=name, material=LMR)
    poor = made.attrs.get("relative_error", np.inf) > 0.1
    assert poor or made.attrs["units"] == "1"
    assert ("stay relative" in caplog.text) or ("known to" in caplog.text)
    used = references.reference_set({name: made}, np.arange(638.0, 656.0, 0.3), EDGE)
    assert np.all(np.isfinite(used[name]))
