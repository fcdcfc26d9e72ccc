"""Runs over several scans of one field: other edges, repeats, groups drawn by hand, oxygen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tifffile
import yaml
from make_runs import FORMULA, description, write_nxstxm, write_references
from make_stacks import make

from spectromap import cli
from spectromap.config import describe_scan, load_run, parse_run, to_yaml
from spectromap.io.results import read_result
from spectromap.oxygen import Measured, oxygen_balance
from spectromap.schema import InputError

PHOTONS = 5000.0
#: Where the further scans are written to lie, y and x in nm.
OFFSETS = {"again": (37.0, -21.0), "coarse": (-64.0, 33.0)}


def noisy(stack, seed, photons=PHOTONS):
    """Counts of a scan of its own from one that is nearly without noise."""
    rng = np.random.default_rng(seed)
    scale = photons / float(stack.max())
    return stack.copy(data=rng.poisson(stack.values * scale).astype(np.float32))


def moved(stack, offset):
    return stack.assign_coords(
        {a: stack[a].copy(data=stack[a].values + o) for a, o in zip("yx", offset, strict=True)}
    )


def coarser(stack):
    """Two by two pixels in one."""
    return stack.coarsen(y=2, x=2).sum().assign_attrs(stack.attrs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans")
    made = make(seed=4, shape=(96, 110), n_energies=30, photons=1e7, drift_px=0.0)
    write_nxstxm(path / "scan.hdf5", noisy(made.stack, 1))
    write_nxstxm(path / "again.hdf5", moved(noisy(made.stack, 2), OFFSETS["again"]))
    coarse = coarser(noisy(made.stack, 3))
    write_nxstxm(path / "coarse.hdf5", moved(coarse, OFFSETS["coarse"]))
    write_references(path)
    content = description(
        oxygen={"states": {"Ni": {"value": 2.1, "error": 0.05}}},
        scans={
            "again": {"stack": "again.hdf5"},
            "coarse": {
                "stack": "coarse.hdf5",
                "references": {
                    "new4": {"file": "mn4.csv", "column": "per_nm"},
                    "new3": {"file": "mn3.csv", "column": "per_nm"},
                },
                "fraction": "new3",
            },
        },
    )
    (path / "run.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["run", "--config", str(path / "run.yaml"), "--out", str(path / "out")]) == 0
    return path


@pytest.fixture(scope="module")
def result(folder):
    return read_result(folder / "out/result.h5")


@pytest.mark.parametrize("name", OFFSETS)
def test_scans_are_laid_on_one_grid(result, name):
    maps, other = result["/entry/maps"], result[f"/entry/maps_{name}"]
    np.testing.assert_array_equal(other.y, maps.y)
    larger = {"again": 10.0, "coarse": 20.0}[name]
    for axis, true in zip("yx", OFFSETS[name], strict=True):
        found = other.attrs[f"offset_{axis}_nm"]
        assert abs(found - true) < 0.1 * larger  # a third of that is asked for
        assert 0 < other.attrs[f"offset_{axis}_nm_errors"] < 0.1 * larger
    thick = (maps.thickness.values > 120) & np.isfinite(other.thickness.values)
    assert thick.sum() > 300
    ratio = other.thickness.values[thick] / maps.thickness.values[thick]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.03)


def test_composition_at_another_edge_is_in_the_particle_table(result):
    particles = result["/entry/particles"]
    used = particles.used.values
    difference = particles.new3_fraction - particles.mn3_fraction
    assert used.sum() >= 5
    assert np.abs(difference.values[used]).max() < 0.03
    assert np.all(particles.new3_fraction_errors.values[used] > 0)


def test_a_repeat_without_damage_says_so(result):
    repeats = result["/entry/repeats"]
    assert list(repeats.scan.values) == ["again"]
    repeats = repeats.isel(scan=0)
    error = np.hypot(repeats.mean_change_errors, repeats.mean_change_systematic)
    assert abs(float(repeats.mean_change)) < 3 * float(error)
    assert float(repeats.noise_ratio) == pytest.approx(1.0, abs=0.25)
    dose = result["/entry/maps"]["dose"]
    assert dose.attrs["units"] == "MGy"
    assert np.nanmedian(dose) > 0


def test_oxygen_follows_from_the_mean_fraction(result):
    oxygen = result["/entry/oxygen"]
    mean = 4.0 - float(oxygen["state"])
    expected = oxygen_balance(Measured(mean), FORMULA, states={"Ni": Measured(2.1, 0.05)})
    assert float(oxygen["released_fraction"]) == pytest.approx(float(expected.released_fraction))
    particles = result["/entry/particles"]
    weight = particles.area * particles.thickness
    assert mean == pytest.approx(float((weight * particles.mn3_fraction).sum() / weight.sum()))
    assert float(oxygen["released_fraction_errors"]) > 0


def test_replay_of_several_scans_gives_the_same(folder, result):
    out = folder / "replayed"
    assert cli.main(["run", "--replay", str(folder / "out/result.h5"), "--out", str(out)]) == 0
    again = read_result(out / "result.h5")
    for group in ("maps_again", "maps_coarse", "repeats", "particles", "oxygen"):
        assert again[f"/entry/{group}"].dataset.identical(result[f"/entry/{group}"].dataset), group


def test_a_changed_further_scan_is_noticed(folder, capsys):
    original = (folder / "again.hdf5").read_bytes()
    shutil.copy(folder / "coarse.hdf5", folder / "again.hdf5")
    code = cli.main(["run", "--replay", str(folder / "out/result.h5"), "--out", str(folder / "no")])
    (folder / "again.hdf5").write_bytes(original)
    assert code == 2
    assert "again.hdf5" in capsys.readouterr().err


def test_a_scan_of_another_field_is_left_out_and_the_rest_stands(folder, capsys):
    other = make(seed=17, shape=(96, 110), n_energies=30, photons=4000.0)
    write_nxstxm(folder / "elsewhere.hdf5", moved(other.stack, (9000.0, 9000.0)))
    content = description(
        scans={"elsewhere": {"stack": "elsewhere.hdf5"}},
        models={"models": ["diffusion"], "shape": "sphere"},
    )
    (folder / "other.yaml").write_text(yaml.safe_dump(content))
    out = folder / "elsewhere"
    assert cli.main(["run", "--config", str(folder / "other.yaml"), "--out", str(out)]) == 0
    tree = read_result(out / "result.h5")
    assert "maps_elsewhere" not in tree["entry"].children
    assert "particles" in tree["entry"].children
    assert "scans.elsewhere: left out" in tree["/entry/process"].attrs["warnings"]


def test_agglomerates_drawn_by_hand(folder, result):
    maps = result["/entry/maps"]
    drawn = np.zeros(maps.particle_label.shape, np.uint8)
    drawn[:, : drawn.shape[1] // 2] = 3
    tifffile.imwrite(folder / "groups.tif", drawn)
    content = description(agglomerate_labels="groups.tif", labels="out/result.h5")
    (folder / "drawn.yaml").write_text(yaml.safe_dump(content))
    out = folder / "drawn"
    assert cli.main(["run", "--config", str(folder / "drawn.yaml"), "--out", str(out)]) == 0
    particles = read_result(out / "result.h5")["/entry/particles"]
    middle = float(maps.x[drawn.shape[1] // 2])
    clear = np.abs(particles.x.values - middle) > 20
    expected = np.where(particles.x.values < middle, 3, 0)
    assert set(expected[clear]) == {0, 3}
    np.testing.assert_array_equal(particles.agglomerate.values[clear], expected[clear])


def test_check_names_what_is_wrong_with_a_further_scan(folder, capsys):
    content = description(scans={"lost": {"stack": "nowhere.hdf5"}})
    (folder / "bad.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["check", str(folder / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert "scans.lost" in error
    assert "nowhere.hdf5" in error


def test_check_names_what_is_wrong_with_the_oxygen(folder, capsys):
    content = description(oxygen={"states": {"Fe": {"value": 3.0}}})
    (folder / "bad.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["check", str(folder / "bad.yaml")]) == 2
    assert "Fe cannot be given here" in capsys.readouterr().err


def test_a_charged_sample_has_no_oxygen_balance(folder):
    sample = {**description()["sample"], "state": "charged", "cycles": 125}
    content = description(sample=sample, models={"models": ["diffusion"], "shape": "sphere"})
    (folder / "charged.yaml").write_text(yaml.safe_dump(content))
    out = folder / "charged"
    assert cli.main(["run", "--config", str(folder / "charged.yaml"), "--out", str(out)]) == 0
    tree = read_result(out / "result.h5")
    assert "oxygen" not in tree["entry"].children
    assert "charged" in tree["/entry/process"].attrs["warnings"]
    assert tree["entry"].attrs["sample_state"] == "charged"
    assert tree["entry"].attrs["cycles"] == 125


def run_with(scans):
    return parse_run(description(instrument={"resolution_nm": 25, "dark_counts": 7}, scans=scans))


def test_a_scan_takes_over_what_it_does_not_say():
    run = run_with({"again": {"stack": "b.h5", "instrument": {"dark_counts": 3}}})
    again = describe_scan(parse_run(yaml.safe_load(to_yaml(run))), "again")
    assert again.stack == "b.h5"
    assert again.instrument.dark_counts == 3
    assert again.instrument.resolution_nm == 25
    assert list(again.references) == ["mn4", "mn3"]
    assert again.fraction == "mn3"


def test_a_scan_at_another_edge_has_its_own_fraction():
    references = {"ni4": {"file": "a", "valence": 4}, "ni2": {"file": "b", "valence": 2}}
    run = run_with({"ni": {"stack": "b.h5", "edge": "Ni L3", "references": references}})
    ni = describe_scan(run, "ni")
    assert ni.fraction is None
    assert ni.edge == "Ni L3"
    assert list(ni.references) == ["ni4", "ni2"]


@pytest.mark.parametrize(
    ("scans", "problem"),
    [
        ({"a b": {"stack": "x"}}, "cannot name a scan"),
        ({"a": {"stack": "x", "sample": {}}}, "unknown key"),
        (
            {"a": {"stack": "x", "references": {"mn3": {"file": "x"}, "q": {"file": "y"}}}},
            "the component 'mn3' is that of the run",
        ),
    ],
)
def test_mistakes_about_scans_are_named(scans, problem):
    with pytest.raises(InputError, match=problem):
        run_with(scans)


def test_the_paths_of_scans_are_those_beside_the_description(folder):
    run = load_run(folder / "run.yaml")
    assert run.scans["again"].stack == str(folder / "again.hdf5")
    assert describe_scan(run, "coarse").references["new3"].file == str(folder / "mn3.csv")
