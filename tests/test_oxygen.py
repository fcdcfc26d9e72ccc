"""Oxygen book-keeping: the numbers of the 2021 paper, charge balance, and errors that hold."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import xarray as xr
import xraydb
from hypothesis import given, settings
from hypothesis import strategies as st

from spectromap import oxygen
from spectromap.oxygen import FINDINGS, Measured, mean_fraction, oxygen_balance
from spectromap.schema import InputError

FORMULA = "Li1.18Ni0.21Mn0.53Co0.08O2"
METALS = {"Ni": 0.21, "Mn": 0.53, "Co": 0.08}
#: Mn3+ fraction that by itself releases 6.5 at%, to O1.87.
AT_500_CYCLES = 0.26 / 0.53
CELL = Measured(0.1005, 0.0002)


def balance(fraction=0.2, error=0.01, systematic=0.0, formula=FORMULA, **options):
    return oxygen_balance(Measured(fraction, error, systematic), formula, **options)


def total(result, name, **at):
    """Random and systematic error together."""
    parts = (result[f"{name}_{kind}"].sel(at) for kind in ("errors", "systematic"))
    return float(np.hypot(*parts))


def charge_of(formula):
    """Charge of the metals that balances a formula, per metal."""
    atoms = xraydb.chemparse(formula)
    metals = sum(n for name, n in atoms.items() if name not in ("Li", "O"))
    return (2.0 * atoms["O"] - atoms["Li"]) / metals


def mass_of(formula):
    return sum(n * xraydb.atomic_mass(name) for name, n in xraydb.chemparse(formula).items())


def ratio_of(formula):
    atoms = xraydb.chemparse(formula)
    return atoms["Li"] / sum(n for name, n in atoms.items() if name not in ("Li", "O"))


# --- the paper


def test_the_pristine_formula_reads_3_44_and_its_states_3_39():
    result = balance()
    assert float(result.tm_state_pristine) == pytest.approx(3.44, abs=0.001)
    assert float(result.tm_state_pristine_absolute) == pytest.approx(3.39, abs=0.001)
    assert float(result.delta_pristine) == pytest.approx(0.02, abs=1e-12)
    assert float(result.delta) == pytest.approx(float(result.delta_relative) + 0.02, abs=1e-12)


def test_manganese_at_3_80_alone_is_2_65_percent_and_cobalt_makes_it_3_3():
    alone = balance(0.2)
    assert float(alone.state) == pytest.approx(3.80)
    assert float(alone.released_fraction) == pytest.approx(0.0265, abs=1e-12)
    assert float(alone.oxygen_per_reduced) == pytest.approx(0.5)
    with_cobalt = balance(0.2, states={"Co": Measured(2.675, 0.05)})
    assert float(with_cobalt.released_fraction) == pytest.approx(0.033, abs=1e-12)
    assert float(with_cobalt.oxygen_per_reduced) > 0.5
    by_element = with_cobalt.delta_by_element
    assert float(by_element.sel(element="Mn")) == pytest.approx(0.053)
    assert float(by_element.sel(element="Co")) == pytest.approx(0.013)
    assert float(by_element.sum()) == pytest.approx(float(with_cobalt.delta_relative))


def test_structures_after_500_cycles():
    result = balance(AT_500_CYCLES, cell_volume_nm3=CELL)
    assert float(result.released_fraction) == pytest.approx(0.065, abs=1e-12)
    assert float(result.tm_state) == pytest.approx(3.12, abs=0.003)
    vacancy, densified = (str(result.formula.sel(model=m).item()) for m in oxygen.MODELS)
    assert vacancy == "Li1.18Ni0.21Mn0.53Co0.08O1.87"
    assert densified == "Li1.0575Ni0.2414Mn0.6092Co0.092O2"
    for formula in (vacancy, densified):
        assert charge_of(formula) == pytest.approx(3.122, abs=5e-4)
    li_tm = result.li_tm
    assert float(li_tm.sel(model="vacancy")) == pytest.approx(1.44, abs=0.002)
    assert float(li_tm.sel(model="densified")) == pytest.approx(1.122, abs=5e-4)
    rounded = np.round(float(result.content.sel(model="densified", element="Li")), 2)
    assert rounded == 1.06
    assert rounded / (2.0 - rounded) == pytest.approx(1.128, abs=5e-4)


def test_densities_are_9_5_to_9_6_percent_apart_and_those_of_the_formulae():
    result = balance(AT_500_CYCLES, cell_volume_nm3=CELL)
    assert 1.095 < float(result.density_ratio) < 1.0965
    vacancy, densified = result.density.values
    assert densified / vacancy == pytest.approx(float(result.density_ratio))
    formula = str(result.formula.sel(model="vacancy").item())
    grams = 3.0 * mass_of(formula) / 6.02214076e23
    assert vacancy == pytest.approx(grams / (CELL.value * 1e-21), rel=1e-6)
    metals = {name: 0.94 / 0.82 * n for name, n in METALS.items()}
    rounded = "Li1.06" + "".join(f"{k}{n:.6f}" for k, n in metals.items()) + "O2"
    assert mass_of(rounded) / mass_of(formula) == pytest.approx(1.095, abs=5e-4)


# --- the laws behind it

CONTENTS = st.floats(0.05, 0.6)


@st.composite
def materials(draw):
    """A layered oxide with two cations on two oxygen, and a Mn3+ fraction."""
    shares = {name: draw(CONTENTS) for name in ("Ni", "Mn", "Co")}
    lithium = draw(st.floats(1.0, 1.3))
    factor = (2.0 - lithium) / sum(shares.values())
    formula = f"Li{lithium:.12f}" + "".join(f"{k}{n * factor:.12f}" for k, n in shares.items())
    return formula + "O2", draw(st.floats(0.02, 0.6))


@given(materials())
@settings(max_examples=60, deadline=None)
def test_both_structures_balance_at_one_state_and_fill_what_they_should(material):
    formula, fraction = material
    result = balance(fraction, formula=formula)
    state = float(result.tm_state)
    for model in oxygen.MODELS:
        content = result.content.sel(model=model)
        lithium = float(content.sel(element="Li"))
        metals = float(content.sum()) - lithium
        charge = lithium + metals * state - 2.0 * float(result.oxygen.sel(model=model))
        assert charge == pytest.approx(0.0, abs=1e-9)
    assert float(result.content.sel(model="densified").sum()) == pytest.approx(2.0, abs=1e-9)
    assert float(result.li_tm.sel(model="densified")) == pytest.approx(state - 2.0, abs=1e-9)
    assert float(result.li_tm.sel(model="densified")) < float(result.li_tm.sel(model="vacancy"))
    assert float(result.density_ratio) > 1.0


@given(st.floats(0.2, 5.0), st.floats(0.02, 0.6))
@settings(max_examples=30, deadline=None)
def test_a_multiple_of_the_formula_is_the_same_material(factor, fraction):
    atoms = {"Li": 1.18, **METALS, "O": 2.0}
    multiple = "".join(f"{name}{n * factor:.12f}" for name, n in atoms.items())
    one, other = (
        balance(
            fraction,
            formula=formula,
            cell_volume_nm3=CELL,
            formula_units=units,
            measured_li_tm=Measured(1.4, 0.02),
            measured_density_g_cm3=Measured(4.25, 0.05),
        )
        for formula, units in ((FORMULA, 3.0), (multiple, 3.0 / factor))
    )
    assert float(other.delta) == pytest.approx(factor * float(one.delta), rel=1e-7)
    for name in (
        "released_fraction",
        "tm_state",
        "li_tm",
        "density",
        "density_ratio",
        "li_tm_z",
        "density_densified_share",
        "p_value",
    ):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-6, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(
        other.released_fraction_errors, one.released_fraction_errors, rtol=1e-7
    )


def test_nothing_lost_leaves_one_structure():
    result = balance(0.0, measured_li_tm=Measured(1.44, 0.02))
    np.testing.assert_allclose(result.li_tm, 1.18 / 0.82, rtol=1e-12)
    assert float(result.density_ratio) == pytest.approx(1.0, abs=1e-12)
    assert np.isnan(float(result.oxygen_per_reduced))
    assert np.isnan(float(result.li_tm_densified_share))
    assert str(result.finding.item()) == "undecided"


def test_lithium_that_is_gone_counts_as_oxygen_that_stayed():
    result = balance(0.3, lithium=Measured(1.10, 0.01))
    lost = 0.5 * (0.53 * 0.3 + 0.08)
    assert float(result.delta_relative) == pytest.approx(lost)
    formula = str(result.formula.sel(model="vacancy").item())
    assert charge_of(formula) == pytest.approx(float(result.tm_state), abs=1e-3)
    assert xraydb.chemparse(formula)["Li"] == 1.1


# --- errors


def drawn(rng, count):
    """The same balance by hand with drawn inputs: what every output should scatter like."""

    def normal(value, error):
        return value + error * rng.normal(size=count)

    metals = {name: normal(n, 0.01) for name, n in METALS.items()}
    composition, lithium_before = metals, normal(1.18, 0.012)
    lithium = 1.16 + 0.01 * rng.normal(size=count) + 0.004 / 0.012 * (lithium_before - 1.18)
    shared = rng.normal(size=count)
    mn_before = 4.0 - (0.05 + 0.008 * rng.normal(size=count) + 0.02 * shared)
    mn = 4.0 - (0.3 + 0.01 * rng.normal(size=count) + 0.03 * shared)
    nickel = normal(2.0, 0.05)
    co_shared = 0.03 * rng.normal(size=count)
    co_before = normal(3.0, 0.02) + co_shared
    co = normal(2.9, 0.04) + co_shared
    before = {"Ni": nickel, "Mn": mn_before, "Co": co_before}
    now = {"Ni": nickel, "Mn": mn, "Co": co}
    metal = sum(composition.values())
    cations = lithium_before + metal
    oxygen_before = 0.5 * (lithium_before + sum(n * before[k] for k, n in composition.items()))
    oxygen_now = 0.5 * (lithium + sum(n * now[k] for k, n in composition.items()))
    lost = oxygen_before - oxygen_now
    state = (2.0 * (2.0 - lost) - lithium) / metal
    dense_metal = (4.0 - cations) / (state - 1.0)
    masses = {k: xraydb.atomic_mass(k) for k in (*METALS, "Li", "O")}
    metal_mass = sum(n * masses[k] for k, n in composition.items())
    vacancy_mass = metal_mass + lithium * masses["Li"] + (2.0 - lost) * masses["O"]
    dense_lithium = cations - dense_metal
    dense_mass = metal_mass * dense_metal / metal + dense_lithium * masses["Li"] + 2 * masses["O"]
    cell, li_tm, density = normal(0.1005, 0.0005), normal(1.40, 0.02), normal(4.25, 0.05)
    to_density = 3.0 / (6.02214076e23 * cell * 1e-21)
    vacancy_density, dense_density = vacancy_mass * to_density, dense_mass * to_density
    dense_ratio, ratio = dense_lithium / dense_metal, lithium / metal
    share = (1 / (1 + li_tm) - 1 / (1 + ratio)) / (1 / (1 + dense_ratio) - 1 / (1 + ratio))
    return {
        ("delta", ""): 2.0 - oxygen_now,
        ("delta_pristine", ""): 2.0 - oxygen_before,
        ("delta_relative", ""): lost,
        ("released_fraction", ""): lost / 2.0,
        ("oxygen_per_reduced", ""): lost / (composition["Mn"] * (mn_before - mn)),
        ("tm_state", ""): state,
        ("tm_state_absolute", ""): sum(n * now[k] for k, n in composition.items()) / metal,
        ("li_tm", "vacancy"): ratio,
        ("li_tm", "densified"): dense_ratio,
        ("density", "vacancy"): vacancy_density,
        ("density", "densified"): dense_density,
        ("density_ratio", ""): dense_mass / vacancy_mass,
        ("li_tm_difference", "densified"): li_tm - dense_ratio,
        ("density_difference", "vacancy"): density - vacancy_density,
        ("li_tm_densified_share", ""): share,
        ("density_densified_share", ""): (density - vacancy_density)
        / (dense_density - vacancy_density),
    }


def test_errors_are_the_scatter_of_drawn_inputs():
    result = oxygen_balance(
        Measured(0.3, 0.01, 0.03),
        FORMULA,
        pristine_fraction=Measured(0.05, 0.008, 0.02),
        pristine_states={"Ni": Measured(2.0, 0.05), "Co": Measured(3.0, 0.02, 0.03)},
        states={"Co": Measured(2.9, 0.04, 0.03)},
        lithium=Measured(1.16, 0.01, 0.004),
        composition_errors={"Li": 0.012, "Ni": 0.01, "Mn": 0.01, "Co": 0.01},
        cell_volume_nm3=Measured(0.1005, 0.0005),
        measured_li_tm=Measured(1.40, 0.02),
        measured_density_g_cm3=Measured(4.25, 0.05),
    )
    for (name, model), values in drawn(np.random.default_rng(5), 200_000).items():
        at = {"model": model} if model else {}
        # Ratios scatter with tails: half the width of the central 68 % is what an error means.
        low, middle, high = np.quantile(values, (0.1587, 0.5, 0.8413))
        error = total(result, name, **at)
        assert 0.5 * (high - low) == pytest.approx(error, rel=0.05), (name, model)
        assert middle == pytest.approx(float(result[name].sel(at)), abs=0.1 * error), (name, model)


def test_what_both_states_share_leaves_the_difference_alone():
    result = balance(0.3, 0.01, 0.05, pristine_fraction=Measured(0.1, 0.01, 0.05))
    assert float(result.delta_relative_systematic) == pytest.approx(0.0, abs=1e-15)
    assert float(result.delta_systematic) == pytest.approx(0.5 * 0.53 * 0.05)
    assert float(result.delta_relative_errors) == pytest.approx(0.5 * 0.53 * 0.01 * np.sqrt(2.0))
    unshared = balance(0.3, 0.01, 0.05, pristine_fraction=Measured(0.1, 0.01))
    assert float(unshared.delta_relative_systematic) == pytest.approx(0.5 * 0.53 * 0.05)


def test_a_metal_that_does_not_change_has_no_part_in_what_was_lost():
    uncertain = {"Ni": Measured(2.0, 0.2)}
    result = balance(pristine_states=uncertain)
    certain = balance()
    assert float(result.delta_relative_errors) == float(certain.delta_relative_errors)
    assert float(result.delta_errors) == pytest.approx(
        np.hypot(float(certain.delta_errors), 0.5 * 0.21 * 0.2)
    )
    changed = balance(pristine_states=uncertain, states=uncertain)
    assert float(changed.delta_by_element_errors.sel(element="Ni")) == pytest.approx(
        0.5 * 0.21 * 0.2 * np.sqrt(2.0)
    )


# --- what a measured Li:TM and density say


def mixture(share, lost=0.13):
    """Li:TM and density of a material in which this share of the release is densified.

    Cations fill their two sites, the rest of the release leaves vacancies, and the state of the
    metals stays that of vacancies alone.
    """
    state = (2.0 * (2.0 - lost) - 1.18) / 0.82
    vacancies = (1.0 - share) * lost
    metal = (2.0 - 2.0 * vacancies) / (state - 1.0)
    masses = sum(n * xraydb.atomic_mass(name) for name, n in METALS.items()) * metal / 0.82
    masses += (2.0 - metal) * xraydb.atomic_mass("Li")
    masses += (2.0 - vacancies) * xraydb.atomic_mass("O")
    return (2.0 - metal) / metal, 3.0 * masses / (6.02214076e23 * CELL.value * 1e-21)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
def test_the_densified_share_is_found_by_both(share):
    li_tm, density = mixture(share)
    result = balance(
        AT_500_CYCLES,
        cell_volume_nm3=CELL,
        measured_li_tm=Measured(li_tm, 0.005),
        measured_density_g_cm3=Measured(density, 0.02),
    )
    assert float(result.li_tm_densified_share) == pytest.approx(share, abs=1e-6)
    assert float(result.density_densified_share) == pytest.approx(share, abs=1e-6)


def test_what_the_measurements_say():
    def says(li_tm, density=None, error=0.02):
        more = {}
        if density is not None:
            more = {
                "cell_volume_nm3": CELL,
                "measured_density_g_cm3": Measured(density, 0.03),
            }
        found = balance(AT_500_CYCLES, measured_li_tm=Measured(li_tm, error), **more)
        word = str(found.finding.item())
        assert found.finding.attrs["long_name"] == FINDINGS[word]
        return word

    assert says(1.43) == says(*mixture(0.0)) == "vacancy"
    assert says(1.12) == says(*mixture(1.0)) == "densified"
    assert says(*mixture(0.5)) == says(mixture(0.5)[0]) == "in part"
    assert says(1.3, error=0.3) == "undecided"
    assert says(1.7) == says(0.9) == "neither"
    # Li:TM of one structure and the density of the other: no mixture has both.
    assert says(mixture(0.1)[0], mixture(0.9)[1]) == "neither"
    assert str(balance().finding.item()) == "not compared"


@pytest.mark.long
def test_the_true_structure_is_rejected_at_the_stated_rate():
    rng = np.random.default_rng(8)
    truth, rejected = mixture(1.0), []
    for _ in range(800):
        result = balance(
            AT_500_CYCLES + 0.03 * rng.normal(),
            0.03,
            cell_volume_nm3=Measured(CELL.value * (1 + 0.01 * rng.normal()), 0.01 * CELL.value),
            measured_li_tm=Measured(truth[0] + 0.01 * rng.normal(), 0.01),
            measured_density_g_cm3=Measured(truth[1] + 0.03 * rng.normal(), 0.03),
        )
        rejected.append(result.p_value.sel(model="densified").item() < oxygen.SIGNIFICANCE)
    assert 0.03 < np.mean(rejected) < 0.07


def test_one_error_of_the_release_is_not_counted_twice():
    """Li:TM and density both lie off because the release does: that is one deviation, not two."""
    off = 1.9 * 0.03 * 0.53 / 2.0
    with_release, against_it = mixture(1.0, 0.13 - off), mixture(1.0, 0.13 + off)

    def p_value(li_tm, density):
        result = balance(
            AT_500_CYCLES,
            0.03,
            cell_volume_nm3=CELL,
            measured_li_tm=Measured(li_tm, 0.002),
            measured_density_g_cm3=Measured(density, 0.004),
        )
        assert np.all(np.abs(result.li_tm_z.sel(model="densified")) < 2.0)
        return float(result.p_value.sel(model="densified"))

    assert p_value(*with_release) > 0.12
    assert p_value(with_release[0], against_it[1]) < 1e-6


def test_agreement_with_the_bulk():
    result = balance(0.2, 0.03, 0.04, bulk_state=Measured(3.90, 0.12))
    assert float(result.bulk_difference) == pytest.approx(-0.1)
    assert total(result, "bulk_difference") == pytest.approx(0.13)
    assert float(result.bulk_z) == pytest.approx(-0.1 / 0.13)


# --- the mean of a field


def field(rng, agglomerates=12, members=(5, 30), between=0.06, within=0.05, outside=0):
    """Particles in agglomerates whose means scatter; the volumes differ."""
    agglomerate = np.repeat(np.arange(1, agglomerates + 1), rng.integers(*members, agglomerates))
    f = 0.2 + between * rng.normal(size=agglomerates)[agglomerate - 1]
    agglomerate = np.append(agglomerate, np.zeros(outside, int))
    f = np.append(f, 0.2 + between * rng.normal(size=outside))
    count = f.size
    return xr.Dataset(
        {
            "mn3_fraction": ("particle", f + within * rng.normal(size=count)),
            "mn3_fraction_errors": ("particle", np.full(count, 0.01)),
            "area": ("particle", rng.lognormal(10.0, 0.4, count)),
            "thickness": ("particle", rng.uniform(50.0, 150.0, count)),
            "agglomerate": ("particle", agglomerate),
        },
        coords={"particle": np.arange(1, count + 1)},
    )


@pytest.mark.parametrize(
    "setup",
    [dict(agglomerates=14), dict(agglomerates=0, outside=40), dict(agglomerates=8, outside=12)],
)
def test_the_error_of_the_mean_covers(setup):
    rng = np.random.default_rng(3)
    means = [mean_fraction(field(rng, **setup), "mn3") for _ in range(1500)]
    away = np.array([(m.value - 0.2) / m.error for m in means])
    assert abs(np.mean([m.value for m in means]) - 0.2) < 0.003
    assert 0.62 < np.mean(np.abs(away) < 1.0) < 0.72


def test_few_agglomerates_are_said(caplog):
    table = field(np.random.default_rng(0), agglomerates=2)
    with caplog.at_level(logging.WARNING, "spectromap"):
        mean_fraction(table, "mn3")
    assert "agglomerates seen (2)" in caplog.text


def test_the_mean_is_by_volume_and_never_better_than_its_noise():
    table = xr.Dataset(
        {
            "mn3_fraction": ("particle", [0.1, 0.4, np.nan]),
            "mn3_fraction_errors": ("particle", [0.03, 0.03, np.nan]),
            "area": ("particle", [200.0, 100.0, 50.0]),
            "thickness": ("particle", [50.0, 50.0, 50.0]),
            "agglomerate": ("particle", [0, 0, 0]),
        }
    )
    assert mean_fraction(table, "mn3").value == pytest.approx(0.2)
    one = mean_fraction(table.isel(particle=[0]), "mn3")
    assert (one.value, one.error) == (0.1, pytest.approx(0.03))
    alike = table.assign(mn3_fraction=("particle", [0.2, 0.2, np.nan]))
    assert mean_fraction(alike, "mn3").error == pytest.approx(0.03 * np.sqrt(5.0) / 3.0)


def test_the_systematic_error_of_the_maps_does_not_average_out():
    table = field(np.random.default_rng(0))
    shape = (4, 5)
    labels = np.ones(shape, int)
    labels[0] = 0
    systematic = np.where(labels > 0, 0.04, 0.5)
    systematic[1, 1] = np.nan
    maps = xr.Dataset(
        {
            "mn3_fraction_systematic": (("y", "x"), systematic),
            "thickness": (("y", "x"), np.full(shape, 80.0)),
            "particle_label": (("y", "x"), labels),
        }
    )
    assert mean_fraction(table, "mn3", maps).systematic == pytest.approx(0.04)
    assert mean_fraction(table, "mn3").systematic == 0.0


# --- what is refused, and what is said


def test_a_charged_sample_is_refused():
    with pytest.raises(InputError, match="only in a discharged"):
        balance(charge="charged")


def test_oxygen_that_comes_in_is_said(caplog):
    with caplog.at_level(logging.WARNING, "spectromap"):
        balance(0.0, 0.01, pristine_fraction=Measured(0.01, 0.01))
        assert not caplog.text
        balance(0.0, 0.01, pristine_fraction=Measured(0.1, 0.01))
    assert "more oxygen" in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fraction": 20.0}, "is no fraction"),
        ({"pristine_fraction": Measured(5.0)}, "pristine_fraction"),
        ({"formula": "what?"}, "not a chemical formula"),
        ({"formula": "Ni0.21Mn0.53O2"}, "no Li"),
        ({"formula": "LiNiO2"}, "no Mn"),
        ({"formula": "LiMnFe"}, "no O"),
        ({"element": "O"}, "no metal"),
        ({"valences": (4.0, 4.0)}, "valences"),
        ({"formula": "Li1.2Mn0.6Ti0.2O2"}, "state of Ti"),
        ({"states": {"Mn": Measured(3.8)}}, "Mn cannot be given"),
        ({"states": {"Fe": Measured(3.0)}}, "Fe cannot be given"),
        ({"states": {"Ni": Measured(-2.0)}}, "no state"),
        ({"lithium": Measured(0.0)}, "lithium"),
        ({"composition_errors": {"O": 0.1}}, "O cannot be given"),
        ({"composition_errors": {"Li": -0.1}}, "systematic"),
        ({"formula_units": 0.0}, "formula_units"),
        ({"cell_volume_nm3": Measured(-1.0)}, "cell_volume_nm3"),
        ({"measured_li_tm": Measured(1.4)}, "no error"),
        ({"measured_density_g_cm3": Measured(4.2, 0.1)}, "known cell"),
        ({"bulk_state": Measured(3.8)}, "no error"),
        ({"formula": "Li9Mn0.1Ni0.1Co0.1O2"}, "cannot be balanced"),
    ],
)
def test_what_cannot_be_used_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        balance(**options)


@pytest.mark.parametrize(
    "values", [(np.nan,), (np.inf,), (1.0, -0.1), (1.0, np.nan), (1.0, 0.0, -1.0)]
)
def test_a_measured_value_is_a_number_with_errors(values):
    with pytest.raises(InputError):
        Measured(*values)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Measured(1.0).error = 2.0


@pytest.mark.parametrize("missing", ["mn3_fraction", "area", "agglomerate"])
def test_a_table_that_lacks_something_is_refused(missing):
    table = field(np.random.default_rng(0))
    with pytest.raises(InputError, match=missing):
        mean_fraction(table.drop_vars(missing), "mn3")
    with pytest.raises(InputError, match="mn3_fraction_systematic"):
        mean_fraction(table, "mn3", xr.Dataset())
    with pytest.raises(InputError, match="no particle"):
        mean_fraction(table.where(False), "mn3")


def test_every_value_has_units_and_both_errors():
    result = balance(
        cell_volume_nm3=CELL,
        measured_li_tm=Measured(1.4, 0.02),
        measured_density_g_cm3=Measured(4.25, 0.05),
        bulk_state=Measured(3.8, 0.05),
    )
    words = {"formula", "finding", "p_value", "li_tm_z", "density_z", "bulk_z"}
    for name, variable in result.data_vars.items():
        assert variable.attrs["long_name"], name
        if name in words or name.endswith(("_errors", "_systematic")):
            continue
        for kind in ("errors", "systematic"):
            assert result[f"{name}_{kind}"].dims == variable.dims
            assert result[f"{name}_{kind}"].attrs["units"] == variable.attrs["units"]
    assert result.attrs == {"pristine_formula": FORMULA, "mapped_element": "Mn"}
