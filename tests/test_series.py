"""States of one sample beside each other: differences that are known, and how often they cover."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest
import xarray as xr
from make_results import make_tree, without_particles
from test_radial_pooling import TRUTH, measured
from test_radial_pooling import table as fits_table

from spectromap import Sample, analyze, profiles, schema, series, synthetic
from spectromap.io.results import read_result, write_result
from spectromap.oxygen import Measured
from spectromap.pipeline import Plan
from spectromap.radial.states import State, fit_states
from spectromap.schema import InputError
from spectromap.series import compare_states, name_states

FORMULA = "Li1.18Ni0.21Mn0.53Co0.08O2"
#: Released oxygen per unit of the Mn3+ fraction: half an oxygen each, of two.
PER_FRACTION = 0.53 / 4.0
LINES = {"mn4": ((643.6, 1.2, 0.024), (654.2, 1.5, 0.010)),
         "mn3": ((642.1, 1.3, 0.022), (653.0, 1.6, 0.009))}  # fmt: skip
ENERGY = np.concatenate([np.arange(636, 639, 0.5), np.arange(639, 647, 0.2), np.arange(647, 660)])


def absorption(component, energy):
    """Per nm: a continuum and two lines."""
    lines = LINES[component]
    return 0.004 + sum(h / (1 + ((energy - c) / w) ** 2) for c, w, h in lines)


@dataclass(frozen=True)
class Kind:
    """How a state is drawn.

    `scan` is the error that a scan has to itself, `scale` the relative error of the references,
    `slope` the change of the fraction per nm of thickness.
    """

    fraction: float
    cycles: float
    state: str = "discharged"
    count: int = 20
    agglomerates: int = 8
    between: float = 0.03
    within: float = 0.05
    scan: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    shift_error: float = 0.01
    thickness: float = 80.0
    slope: float = 0.0


def particle_table(kind, rng, off):
    """Particles of agglomerates, and as many loose ones as `count`; also their true mean."""
    members = rng.integers(4, 9, kind.agglomerates)
    agglomerate = np.append(np.repeat(np.arange(1, members.size + 1), members), [0] * kind.count)
    level = np.append(0.0, rng.normal(0, kind.between, members.size))
    n = agglomerate.size
    thickness = rng.normal(kind.thickness, 10.0, n)
    true = kind.fraction + level[agglomerate] + rng.normal(0, kind.within, n)
    true += kind.slope * (thickness - 80.0)
    area = 2e4 * rng.lognormal(0, 0.3, n)
    place = np.where(agglomerate > 0, rng.choice(["exterior", "interior"], n), "outside")
    columns = {
        "mn3_fraction": true + off + rng.normal(0, 0.01, n),
        "mn3_fraction_errors": np.full(n, 0.01),
        "thickness": thickness,
        "thickness_errors": np.full(n, 1.0),
        "area": area,
        "agglomerate": agglomerate.astype(np.int32),
        "place": place.astype(object),
        "used": np.ones(n, bool),
    }
    table = xr.Dataset(
        {name: ("particle", values) for name, values in columns.items()},
        coords={"particle": np.arange(11, 11 + n)},
    )
    return table, float(np.average(true, weights=area * thickness))


def mean_spectra(kind, fraction, rng):
    """A mean spectrum of 70 nm on an offset, and references where the energies seem to be."""
    found = kind.shift + kind.shift_error * rng.normal()
    true = {c: absorption(c, ENERGY + kind.shift) for c in LINES}
    od = 0.03 + 70.0 * (fraction * true["mn3"] + (1 - fraction) * true["mn4"])
    errors = 0.001 * np.exp(od / 2)
    variables = {
        "mean_od": ("energy", od + errors * rng.normal(size=od.size)),
        "mean_od_errors": ("energy", errors),
        "energy_shift": ((), found),
        "energy_shift_errors": ((), kind.shift_error),
        "resolution": ((), 20.0),
    }
    for component, valence in (("mn4", 4.0), ("mn3", 3.0)):
        attrs = {"units": "nm-1", "valence": valence, "relative_error": kind.scale}
        values = absorption(component, ENERGY + found)
        variables[f"reference_{component}"] = ("energy", values, attrs)
    return xr.Dataset(variables, coords={"energy": ("energy", ENERGY, {"units": "eV"})})


def profile_table(particles, bin_nm=10.0):
    """The same profile for all but for the fraction of each particle."""
    distance = bin_nm * (np.arange(6) + 0.5)
    shape = (particles.sizes["particle"], distance.size)
    values = particles["mn3_fraction"].values[:, None] + 0.2 * np.exp(-distance / 20.0)
    columns = {
        "mn3_fraction": values,
        "mn3_fraction_errors": np.full(shape, 0.01),
        "thickness": np.broadcast_to(40.0 + distance, shape),
        "thickness_errors": np.full(shape, 2.0),
        "mean_distance": np.broadcast_to(distance, shape),
        "pixel_count": np.full(shape, 9),
        "independent_count": np.full(shape, 3.0),
    }
    return xr.Dataset(
        {name: (("particle", "distance"), values) for name, values in columns.items()},
        coords={"particle": particles["particle"], "distance": ("distance", distance)},
        attrs={"bin_nm": bin_nm},
    )


#: So many particles have profiles and fits, which only some tests look at.
FITTED = 12
FLAT = fits_table((np.full(FITTED, 1e-12),) * 3, "no gradient")[0]


def draw(kind, rng, scale_off=0.0):
    """A result of one state; `scale_off` is the error of the references in standard errors."""
    shared = kind.scale * np.sqrt(2.0) * kind.fraction * (1.0 - kind.fraction)
    off = shared * scale_off + kind.scan * rng.normal()
    particles, field = particle_table(kind, rng, off)
    ones = np.ones((2, 2))
    maps = {
        "mn3_fraction_systematic": np.hypot(kind.scan, shared) * ones,
        "thickness": kind.thickness * ones,
        "particle_label": ones.astype(int),
    }
    groups = {
        "spectra": mean_spectra(kind, field, rng),
        "maps": xr.Dataset(
            {name: (("y", "x"), values) for name, values in maps.items()}, attrs={"fraction": "mn3"}
        ),
        "particles": particles,
        "profiles": profile_table(particles.isel(particle=slice(0, FITTED))),
        "models": FLAT,
        "pooled": xr.Dataset({"verdict": ((), np.array("no gradient", object))}),
    }
    tree = xr.DataTree.from_dict({f"/entry/{name}": group for name, group in groups.items()})
    tree["entry"].attrs = {"cycles": kind.cycles, "sample_state": kind.state, "title": "a field"}
    return tree


def compared(kinds, seed=0, *, scale_off=0.0, **options):
    """Some states drawn and compared."""
    rng = np.random.default_rng([9, seed])
    results = [draw(kind, rng, scale_off) for kind in kinds]
    return of(compare_states(name_states(results), formula=FORMULA, **options))


def of(tree):
    return tree["entry/series"].to_dataset()


KINDS = (
    Kind(0.05, 0, scan=0.01, scale=0.05, shift=0.1, thickness=75.0, slope=0.001),
    Kind(0.20, 1, scan=0.01, scale=0.05, shift=-0.2, thickness=80.0, slope=0.001),
    Kind(0.35, 125, scan=0.01, scale=0.05, shift=0.03, thickness=90.0, slope=0.001),
)
#: Mean fractions of the states, thickness included.
MEANS = np.array([k.fraction + k.slope * (k.thickness - 80.0) for k in KINDS])
DRAWS = 200


@pytest.fixture(scope="module")
def draws():
    logging.getLogger("spectromap").setLevel(logging.ERROR)
    rng = np.random.default_rng(12)
    found = [
        compared(KINDS, seed, scale_off=rng.normal(), n_resamples=100) for seed in range(DRAWS)
    ]
    logging.getLogger("spectromap").setLevel(logging.NOTSET)
    return found


def pulls(draws, name, truth):
    """Which states have errors, and their deviations (draw, state) in standard errors."""
    values = np.array([d[name].values for d in draws])
    parts = [np.array([d[n].values for d in draws]) for n in _errors_of(draws[0], name)]
    errors = np.sqrt(sum(part**2 for part in parts))
    away = np.all(errors > 0, axis=0)  # the reference does not differ from itself
    return away, (values - truth)[:, away] / errors[:, away]


def _errors_of(found, name):
    return [f"{name}_{kind}" for kind in ("errors", "systematic") if f"{name}_{kind}" in found]


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("mn3_mean", MEANS),
        ("mn3_change", MEANS - MEANS[0]),
        ("mn_state", 4.0 - MEANS),
        ("mn_state_change", MEANS[0] - MEANS),
        ("released_fraction", PER_FRACTION * (MEANS - MEANS[0])),
        ("delta", 2.0 * PER_FRACTION * (MEANS - MEANS[0])),
        ("mn3_quantiles", None),
    ],
)
@pytest.mark.long
def test_stated_errors_are_the_scatter_about_the_truth(draws, name, truth):
    if (
        truth is None
    ):  # of the median: errors of the sample alone, by a bootstrap that is cautious with medians
        truth = np.median([d[name].values for d in draws], axis=0)
        off = KINDS[0].scan ** 2 + 2.0 * (KINDS[0].scale * MEANS * (1.0 - MEANS)) ** 2
        errors = np.array([d[f"{name}_errors"].values[:, 2] for d in draws])
        scatter = np.std([d[name].values[:, 2] for d in draws], axis=0)
        assert np.sqrt((errors**2).mean(axis=0) + off) == pytest.approx(scatter, rel=0.25)
        return
    away, pull = pulls(draws, name, truth)
    assert away.sum() == (2 if truth[0] == 0.0 else 3)
    assert np.sqrt(np.mean(pull**2, axis=0)) == pytest.approx(1.0, abs=0.15)
    mean = np.mean([d[name].values for d in draws], axis=0)
    assert mean[away] == pytest.approx(truth[away], rel=0.05, abs=0.004)


def test_intervals_of_differences_cover(draws):
    pairs = [(0, 1), (0, 2), (1, 2)]
    for start, level in (("", MEANS), ("equal_thickness_", np.array([k.fraction for k in KINDS]))):
        truth = np.array([level[b] - level[a] for a, b in pairs])
        low, high, difference = (
            np.array([d[f"{start}{n}"].values for d in draws])
            for n in ("low", "high", "difference")
        )
        assert difference.mean(axis=0) == pytest.approx(truth, rel=0.05)
        covers = (low < truth) & (truth < high)
        assert 0.925 < covers.mean() < 0.975
        assert np.all(covers.mean(axis=0) > 0.9)


def test_differences_of_mean_spectra_are_those_of_the_references(draws):
    pull, amplitude = [], []
    for found in draws:
        energy = found["energy"].values
        shape = absorption("mn3", energy) - absorption("mn4", energy)
        difference = found["mean_od_difference"].values[1:]
        amplitude.append(difference @ shape / (shape @ shape))
        errors = found["mean_od_difference_errors"].values[1:]
        pull.append((difference - (MEANS[1:] - MEANS[0])[:, None] * shape)[:, :45] / errors[:, :45])
    assert np.mean(amplitude, axis=0) == pytest.approx(MEANS[1:] - MEANS[0], rel=0.04)
    assert np.sqrt(np.mean(np.square(pull))) == pytest.approx(1.0, abs=0.15)


@pytest.mark.long
def test_states_that_do_not_differ_are_told_apart_at_the_stated_rate():
    logging.getLogger("spectromap").setLevel(logging.ERROR)
    kinds = [Kind(0.2, cycles, scan=0.01, scale=0.05) for cycles in (0, 1, 125)]
    rng, found = np.random.default_rng(7), []
    for _ in range(DRAWS):
        states = series._read_all(name_states([draw(kind, rng) for kind in kinds]))
        found.append(series._differences(states, 0.95))
    logging.getLogger("spectromap").setLevel(logging.NOTSET)
    for name in ("p_value", "equal_thickness_p_value"):
        single = np.array([f[name][1] for f in found])
        assert 0.02 < (single < 0.05).mean() < 0.08
        together = np.array([f[f"{name}_holm"][1].min() for f in found])
        assert (together < 0.05).mean() < 0.09


def test_states_that_differ_in_thickness_do_not_differ_at_equal_thickness():
    thin, thick = Kind(0.2, 0, slope=0.004, thickness=65.0), Kind(0.2, 1, slope=0.004, thickness=90)
    found = compared([thin, thick])
    assert float(found["low"][0]) > 0.05
    assert float(found["p_value_holm"][0]) < 0.001
    assert float(found["equal_thickness_low"][0]) < 0.0 < float(found["equal_thickness_high"][0])


def test_the_error_of_a_scan_is_in_the_interval_of_a_difference():
    plain, off = (Kind(0.2, 0), Kind(0.3, 1)), (Kind(0.2, 0, scan=0.04), Kind(0.3, 1, scan=0.04))
    half = [float(0.5 * (f["high"] - f["low"])[0]) for f in (compared(plain), compared(off))]
    assert half[1] > 1.9 * np.hypot(0.04, 0.04)
    assert half[1] ** 2 == pytest.approx(half[0] ** 2 + (1.98 * 0.04) ** 2 * 2, rel=0.1)
    found = compared(off)
    assert float(found["systematic"][0]) == pytest.approx(np.hypot(0.04, 0.04))


def test_what_references_are_off_by_cancels_between_states():
    found = compared([Kind(f, cycles, scale=0.2) for cycles, f in ((0, 0.3), (1, 0.3001))])
    assert float(found["mn3_mean_systematic"][0]) == pytest.approx(0.2 * 0.21 * 2**0.5)
    # ... but for the means of the fields, which are not quite the same.
    mean = found["mn3_mean"].values
    apart = 0.2 * 2**0.5 * abs(mean[0] * (1 - mean[0]) - mean[1] * (1 - mean[1]))
    scale = np.minimum(0.2 * 2**0.5 * mean * (1 - mean), found["mn3_mean_systematic"].values)
    assert float(found["mn3_change_systematic"][1]) <= apart + 1e-12
    assert float(found["mn3_change_systematic"][1]) == pytest.approx(abs(scale[1] - scale[0]))
    assert float(found["mn3_change_systematic"][1]) < 0.2 * found["mn3_mean_systematic"][1]


# --- states: names, order, what cannot be compared


def test_states_are_named_by_the_configuration_or_the_entry():
    trees = [make_tree(seed=seed) for seed in range(3)]
    for tree, text in zip(trees, ("cycles: 1", "cycles: 125\n  state: charged", ""), strict=True):
        if text:
            tree["entry/process"].attrs["configuration"] += f"sample:\n  {text}\n"
    trees[2]["entry"].attrs |= {"cycles": 0.0, "sample_state": "discharged"}
    named = name_states(trees)
    assert list(named) == ["1 cycle", "125 cycles, charged", "pristine"]
    assert named["pristine"] is trees[2]
    with pytest.raises(InputError, match=r"Electrode field.*how many cycles.*sample\.cycles"):
        name_states([make_tree()])
    with pytest.raises(InputError, match=r"same state .pristine"):
        name_states([trees[2], trees[2]])


def test_the_order_in_which_results_are_given_does_not_matter():
    rng = np.random.default_rng(5)
    kinds = (Kind(0.2, 500, "charged"), Kind(0.1, 10), Kind(0.05, 0), Kind(0.2, 500))
    named = name_states([draw(kind, rng) for kind in kinds])
    found = of(compare_states(named))
    turned = of(compare_states(dict(reversed(named.items()))))
    xr.testing.assert_identical(found, turned)
    assert list(found.state.values) == ["pristine", "10 cycles", "500 cycles",
                                        "500 cycles, charged"]  # fmt: skip
    assert found.attrs["reference"] == "pristine"
    assert list(found.pair.values)[:2] == ["10 cycles-pristine", "500 cycles-pristine"]
    assert found.sizes["pair"] == 6
    assert list(found["later"].values[:1]) + list(found["earlier"].values[:1]) == [
        "10 cycles",
        "pristine",
    ]
    assert found["cycles"].values.tolist() == [0, 10, 500, 500]


def test_another_reference_turns_the_changes_round():
    kinds = [Kind(0.05, 0), Kind(0.3, 10)]
    first, second = compared(kinds), compared(kinds, reference="10 cycles")
    assert first["mn3_change"].values.tolist() == (-second["mn3_change"].values[::-1]).tolist()
    assert second.attrs["reference"] == "10 cycles"
    assert second["mn3_change_errors"].values[1] == 0.0


def pair_of_results():
    rng = np.random.default_rng(3)
    return {"old": draw(Kind(0.1, 0), rng), "new": draw(Kind(0.3, 10), rng)}


def refused(results, text, **options):
    with pytest.raises(InputError, match=text):
        compare_states(results, **options)


def test_results_that_cannot_be_compared_are_refused():
    results = pair_of_results()
    refused({"old": results["old"]}, "1 result, .*at least two")
    refused(results | {"again": results["new"]}, "'new' and 'again' are of the same state")
    refused({"": results["old"], "new": results["new"]}, "no name")
    refused(results, "no state 'older'.*old, new", reference="older")
    results["new"]["entry"].attrs["cycles"] = 10
    far = pair_of_results()
    far["new"]["entry/maps"].attrs["edge"] = "Ni L3"
    refused(far, "the edge of 'old' is Mn L3, that of 'new' is Ni L3")
    far = pair_of_results()
    spectra = far["new"]["entry/spectra"].to_dataset()
    spectra["energy_shift"] = spectra["energy_shift"] + 30.0
    far["new"]["entry/spectra"] = xr.DataTree(spectra)
    refused(far, "no energies in common")


def test_another_fraction_is_refused():
    results = pair_of_results()
    table = results["new"]["entry/particles"].to_dataset()
    names = {n: n.replace("mn3", "red") for n in table.data_vars if "mn3" in n}
    results["new"]["entry/particles"] = xr.DataTree(table.rename(names))
    refused(results, "state 'new': its particles have no fraction 'mn3'")
    maps = results["new"]["entry/maps"].to_dataset()
    maps = maps.rename({"mn3_fraction_systematic": "red_fraction_systematic"})
    results["new"]["entry/maps"] = xr.DataTree(maps.assign_attrs(fraction="red"))
    refused(results, "the mapped fraction of 'old' is mn3, that of 'new' is red")


def test_results_without_particles_are_refused():
    results = pair_of_results()
    none = results | {"new": without_particles(make_tree())}
    refused(none, "state 'new': the result has no particle that can be used")
    del results["new"]["entry"]["particles"]
    refused(results, "state 'new': the result has no group 'particles'")


def test_a_result_can_be_written_and_read(tmp_path):
    rng = np.random.default_rng(3)
    named = name_states([draw(Kind(0.1, 0), rng), draw(Kind(0.3, 10), rng)])
    tree = compare_states(named, formula=FORMULA)
    back = read_result(write_result(tree, tmp_path / "series.h5"))
    xr.testing.assert_identical(of(back), of(tree))
    assert back["entry"].attrs["default"] == "series"
    for name, values in of(tree).data_vars.items():
        if values.dtype.kind in "iuf":
            assert "units" in values.attrs, name


# --- oxygen


def lost(found, row=1):
    return float(found["released_fraction"][row])


def test_oxygen_is_counted_in_discharged_states_only():
    found = compared([Kind(0.05, 0), Kind(0.3, 10), Kind(0.3, 10, "charged")])
    assert lost(found, 0) == 0.0
    change = float(found["mn3_change"][1])
    assert lost(found) == pytest.approx(PER_FRACTION * change)
    assert float(found["delta"][1]) == pytest.approx(2 * lost(found))
    assert np.isnan(found["released_fraction"][2])
    assert np.isnan(found["released_fraction_errors"][2])
    assert found.attrs["released_remark"] == ""


def test_other_metals_release_oxygen_too():
    rng = np.random.default_rng(3)
    named = name_states([draw(Kind(0.0, 0), rng), draw(Kind(0.2, 1), rng)])
    metals = {"pristine": {"Co": Measured(3.0, 0.01)}, "1 cycle": {"Co": Measured(2.675, 0.05)}}
    plain, all_of_them = (
        of(compare_states(named, formula=FORMULA, metals=given)) for given in (None, metals)
    )
    assert lost(all_of_them) - lost(plain) == pytest.approx(0.08 * 0.325 / 4)
    error = np.hypot(0.01, 0.05) * 0.08 / 4
    both = np.hypot(float(plain["released_fraction_errors"][1]), error)
    assert float(all_of_them["released_fraction_errors"][1]) == pytest.approx(both, rel=1e-6)


def test_other_metals_are_those_of_the_run_descriptions():
    """As the run itself would balance them, but that the reference's metals are as they are."""
    rng = np.random.default_rng(3)
    trees = [draw(Kind(0.0, 0), rng), draw(Kind(0.2, 1), rng)]
    texts = (
        "oxygen:\n  states: {Co: {value: 2.9, error: 0.01}}",
        "oxygen:\n  pristine_states: {Ni: {value: 2.1}, Co: {value: 3.0}}\n"
        "  states: {Co: {value: 2.675, error: 0.05, systematic: 0.0}}\n  lithium: null",
    )
    for tree, text in zip(trees, texts, strict=True):
        process = xr.Dataset(attrs={"configuration": f"sample: {{formula: {FORMULA}}}\n{text}"})
        tree["entry/process"] = xr.DataTree(process)
    metals = {
        "pristine": {"Ni": Measured(2.1), "Co": Measured(2.9, 0.01)},
        "1 cycle": {"Co": Measured(2.675, 0.05)},
    }
    told = of(compare_states(name_states(trees)))
    given = of(compare_states(name_states(trees), metals=metals))
    assert lost(told) == pytest.approx(
        PER_FRACTION * float(told["mn3_change"][1]) + 0.08 * 0.225 / 4
    )
    assert lost(told) == lost(given)
    for kind in ("errors", "systematic"):
        assert told[f"delta_{kind}"][1] == given[f"delta_{kind}"][1]


def test_why_no_oxygen_is_counted_is_said(caplog):
    def remark(results, **options):
        found = of(compare_states(results, **options))
        assert np.isnan(found["released_fraction"]).all()
        assert found.attrs["released_remark"] in caplog.text
        return found.attrs["released_remark"]

    results = pair_of_results()
    assert "formula of the sample is not known" in remark(results)
    assert "state of Fe is not known" in remark(results, formula="Li1.2Mn0.6Fe0.2O2")
    for tree in results.values():
        tree["entry"].attrs["sample_state"] = "charged"
    assert "'old', is not known to be discharged" in remark(results, formula=FORMULA)
    for tree in results.values():
        del tree["entry/spectra/reference_mn4"].attrs["valence"]
    assert "valences" in remark(results, formula=FORMULA)
    assert "mn_state" not in of(compare_states(results))


# --- mean spectra


def with_spectra(tree, **changes):
    """A result with other mean spectra."""
    copy = tree.copy(deep=True)
    copy["entry/spectra"] = xr.DataTree(copy["entry/spectra"].to_dataset().assign(changes))
    return copy


def test_mean_spectra_do_not_depend_on_thickness_offset_or_repeated_energies():
    results = pair_of_results()
    plain = of(compare_states(results))
    spectra = results["new"]["entry/spectra"].to_dataset()
    other = {n: 3.0 * spectra[n] for n in ("mean_od", "mean_od_errors")}
    other["mean_od"] = other["mean_od"] + 0.4
    found = of(compare_states(results | {"new": with_spectra(results["new"], **other)}))
    for name in ("mean_od", "mean_od_errors", "mean_od_difference_errors"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-6, atol=1e-12)
    twice = results["new"].copy(deep=True)
    repeated = spectra.isel(energy=np.repeat(np.arange(ENERGY.size), 2))
    repeated["mean_od_errors"] = repeated["mean_od_errors"] * 2**0.5
    twice["entry/spectra"] = xr.DataTree(repeated)
    found = of(compare_states(results | {"new": twice}))
    np.testing.assert_allclose(found["mean_od"], plain["mean_od"], rtol=1e-6)
    np.testing.assert_allclose(found["mean_od_errors"], plain["mean_od_errors"], rtol=1e-6)


def test_an_error_of_the_energy_is_in_the_errors_of_a_difference():
    """Without an error of the calibration, one of 0.1 eV passes for a change of the sample."""
    rng = np.random.default_rng(8)
    first = draw(replace(Kind(0.2, 0), shift_error=0.0), rng)
    second = draw(replace(Kind(0.2, 1), shift_error=0.0), rng)
    spectra = second["entry/spectra"].to_dataset()
    off = {"energy_shift": spectra["energy_shift"] + 0.1}
    for component in LINES:
        name = f"reference_{component}"
        values = absorption(component, ENERGY + 0.1)
        off[name] = ("energy", values, spectra[name].attrs)
    pull = []
    for error in (0.0, 0.1):
        told = with_spectra(second, **off, energy_shift_errors=((), error))
        found = of(compare_states({"one": first, "other": told}))
        pull.append((found["mean_od_difference"] / found["mean_od_difference_errors"])[1].values)
    assert np.abs(pull[0]).max() > 8.0
    assert 0.5 < np.abs(pull[1]).max() < 2.5


def test_references_that_are_not_the_same_are_in_the_errors():
    results = pair_of_results()
    plain = of(compare_states(results))
    name = "reference_mn3"
    spectra = results["new"]["entry/spectra"].to_dataset()
    scaled = with_spectra(results["new"], **{name: (1.05 * spectra[name]).assign_attrs(
        spectra[name].attrs)})  # fmt: skip
    found = of(compare_states(results | {"new": scaled}))
    moved = np.abs(found["mean_od"] - plain["mean_od"])[1]
    assert float(moved.max()) > 3.0 * float(plain["mean_od_systematic"][1].max())
    assert bool((moved[:40] < 2.0 * found["mean_od_difference_errors"][1, :40]).all())


# --- profiles and distributions


def test_profiles_are_those_of_the_used_particles():
    results = pair_of_results()
    table = results["new"]["entry/particles"].to_dataset()
    table["used"][:4] = False
    results["new"]["entry/particles"] = xr.DataTree(table)
    found = of(compare_states(results))
    used = table["used"][table["used"].values]
    assert used.size == table.sizes["particle"] - 4
    curves = results["new"]["entry/profiles"].to_dataset()
    expected = profiles.group_profiles(curves, used).isel(group=0)
    row = found.sel(state="new")
    np.testing.assert_allclose(row["distance"], expected["distance"])
    for suffix in ("", "_errors", "_spread"):
        np.testing.assert_allclose(row[f"mn3_profile{suffix}"], expected[f"mn3_fraction{suffix}"])
        np.testing.assert_allclose(
            row[f"thickness_profile{suffix}"], expected[f"thickness{suffix}"]
        )
    assert row["profile_particles"].values.tolist() == [FITTED - 4] * 6
    assert int(row["particle_count"]) == used.size


def test_profiles_of_different_bins_meet_on_the_coarser_ones():
    results = pair_of_results()
    table = results["old"]["entry/particles"].to_dataset()
    plain = of(compare_states(results)).sel(state="old")
    results["old"]["entry/profiles"] = xr.DataTree(
        profile_table(table[{"particle": slice(0, FITTED)}], 4.0)
    )
    found = of(compare_states(results)).sel(state="old")
    assert found["distance"].values.tolist() == plain["distance"].values.tolist()
    reached = found["distance"].values < 22.0
    np.testing.assert_allclose(found["mn3_profile"][reached], plain["mn3_profile"][reached],
                               atol=0.002)  # fmt: skip
    assert np.isnan(found["mn3_profile"][~reached]).all()


def test_resolutions_that_differ_are_said(caplog):
    results = pair_of_results()
    coarse = with_spectra(results["new"], resolution=((), 45.0))
    found = of(compare_states(results | {"new": coarse}))
    assert "not blurred alike" in caplog.text
    assert found["resolution"].values.tolist() == [20.0, 45.0]


def test_distributions_are_densities_of_the_used_particles():
    found = compared([Kind(0.1, 0, within=0.02), Kind(0.4, 10, within=0.1)])
    area = (found["density"] * found["bin_width"]).sum("bin")
    assert area.values == pytest.approx([1.0, 1.0])
    level = (found["density"] * found["bin"] * found["bin_width"]).sum("bin")
    assert level.values == pytest.approx(found["mn3_mean"].values, abs=0.03)
    quantiles = found["mn3_quantiles"]
    assert bool((quantiles.diff("quantile") > 0).all())
    spread = (quantiles.sel(quantile=0.95) - quantiles.sel(quantile=0.05)).values / 3.29
    truth = [np.hypot(0.03 * 0.8, np.hypot(width, 0.01)) for width in (0.02, 0.1)]
    assert spread == pytest.approx(truth, rel=0.3)


# --- D t


def timed(seconds, log_dt, cycles, rng):
    """A result whose particles have a D t."""
    tree = draw(Kind(0.2, cycles, agglomerates=0, count=12), rng)
    fits = measured(rng.normal(log_dt, 0.1, 12), np.full(12, 0.1), rng)
    models, _ = fits_table(fits, seconds=seconds, time_rel_error=0.1, systematic=0.02)
    tree["entry/models"] = xr.DataTree(models)
    tree["entry/pooled"] = xr.DataTree(xr.Dataset({"verdict": ((), np.array("diffusion", object))}))
    return tree


def test_growth_of_dt_is_that_of_the_joint_fit():
    rng = np.random.default_rng(4)
    times = {0: None, 1: 1e5, 125: 5e5, 500: 2.5e6}
    trees = [
        timed(seconds, TRUTH + np.log10((seconds or 1e5) / 1e5), cycles, rng)
        for cycles, seconds in times.items()
    ]
    found = of(compare_states(name_states(trees), formula=FORMULA))
    with_time = [
        State(
            cycles,
            *(trees[i][f"entry/{n}"].to_dataset() for n in ("models", "particles")),
            float(seconds),
            0.1,
        )
        for i, (cycles, seconds) in enumerate(times.items())
        if seconds
    ]
    expected = fit_states(with_time)
    assert found["growth_verdict"].item() == expected["verdict"].item() == "one D"
    assert float(found["growth_slope"]) == pytest.approx(float(expected["slope"]))
    assert float(found["growth_slope_low95"]) < 1.0 < float(found["growth_slope_high95"])
    for name in ("log10_Dt", "log10_Dt_low95", "log10_Dt_high68"):
        np.testing.assert_allclose(found[name][1:], expected[name])
    assert found["log10_Dt"].values[1:] == pytest.approx(
        [TRUTH, TRUTH + np.log10(5), TRUTH + np.log10(25)], abs=0.15
    )
    assert bool((found["log10_Dt_errors"] > 0.02).all())
    assert list(found["verdict"].values) == ["diffusion"] * 4
    assert np.isnan(found["delithiated_time_s"][0])
    assert found["delithiated_time_s"].values[1:] == pytest.approx([1e5, 5e5, 2.5e6])


def test_why_growth_is_not_known_is_said():
    rng = np.random.default_rng(4)
    found = of(compare_states(name_states([timed(None, TRUTH, c, rng) for c in (0, 1)])))
    assert "growth_slope" not in found
    assert "two different times" in found.attrs["growth_remark"]
    assert np.isfinite(found["log10_Dt"]).all()


# --- through the whole method


def test_two_simulated_fields_differ_by_what_was_put_in(caplog):
    caplog.set_level(logging.ERROR, "spectromap")
    results, truth = [], []
    for cycles, fraction, shift in ((0, 0.08, 0.1), (40, 0.3, -0.15)):
        field = synthetic.simulate(
            synthetic.Sample(
                particles=7, radius_nm=(70.0, 105.0), mechanism="uniform", initial_fraction=fraction
            ),
            synthetic.Instrument(photons=6000.0),
            synthetic.Scan(
                pixel_nm=10.0,
                shape_px=(105, 120),
                energies=tuple(synthetic.default_energies("Mn L3")[::2]),
                energy_shift_eV=shift,
                drift_px=1.5,
            ),
            seed=cycles + 1,
        )
        spectra = {
            name: field.given_references[name].assign_attrs(
                valence=valence, **field.given_references[name].attrs
            )
            for name, valence in (("mn4", 4.0), ("mn3", 3.0))
        }
        plan = Plan(
            spectra,
            "mn3",
            sample=Sample(formula=FORMULA, density_g_cm3=4.25),
            instrument=schema.Instrument(resolution_nm=10.0, dark_counts=10.0),
            options={"models": {"shape": "sphere"}},
        )
        result = analyze(field.stack, plan)
        result["entry"].attrs |= {"cycles": cycles, "sample_state": "discharged"}
        results.append(result)
        truth.append(fraction)
    found = of(compare_states(name_states(results), formula=FORMULA))
    change = truth[1] - truth[0]
    error = float(np.hypot(found["mn3_change_errors"][1], found["mn3_change_systematic"][1]))
    assert float(found["mn3_change"][1]) == pytest.approx(change, abs=min(0.01, 4 * error))
    assert lost(found) == pytest.approx(PER_FRACTION * change, rel=0.05)
    assert float(found["low"][0]) < change + 0.005
    assert float(found["high"][0]) > change - 0.005
    energy = found["energy"].values
    known = synthetic.reference_spectra("Mn L3")
    shape = np.interp(energy, known.energy, known["mn3"] - known["mn4"])
    difference = found["mean_od_difference"].values[1]
    assert difference @ shape / (shape @ shape) == pytest.approx(change, rel=0.08)
    # Few energies trace the L2 line here, which the errors know.
    off = np.abs(difference - change * shape)
    assert off[energy < 648.0].max() < 0.08 * np.abs(difference).max()
    assert np.sqrt(np.mean((off / found["mean_od_difference_errors"].values[1]) ** 2)) < 2.0
    assert list(found["verdict"].values) == ["no gradient"] * 2


def test_public_names():
    assert series.__all__ == ["compare_states", "name_states"]
