"""The figures command: every figure of results as files, and of several states together."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from make_results import make_tree

from spectromap import cli
from spectromap.io.results import read_result, write_result


def write(folder, cycles, raised=0.0, seed=0):
    """A result of a state, its particles reduced by so much more."""
    tree = make_tree(seed=seed)
    tree["entry"].attrs |= {"cycles": cycles, "sample_state": "discharged"}
    particles = tree["entry/particles"].to_dataset()
    particles["mn3_fraction"] = particles["mn3_fraction"] + raised
    tree["entry/particles"].dataset = particles
    return write_result(tree, folder / f"cycle{cycles:g}" / "result.h5")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    files = [write(folder, 0), write(folder, 125, raised=0.1, seed=1)]
    out = folder / "out"
    code = cli.main(
        ["figures", *map(str, files), "--out", str(out), "--formats", "png", "svg", "--dpi", "50"]
    )
    assert code == 0
    return out


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_result_and_the_states_have_a_folder(drawn):
    assert {path.name for path in drawn.iterdir()} == {"cycle0", "cycle125", "states"}
    for name in ("2a_fraction_map", "4cd_thickness", "S39_primaries", "oxygen"):
        for form in ("png", "svg"):
            assert (drawn / "cycle125" / f"{name}.{form}").stat().st_size > 2000, name


def test_the_data_behind_a_figure_are_those_of_the_result(drawn):
    particles = read_result(drawn.parent / "cycle125/result.h5")["/entry/particles"]
    used = particles.used.values
    found = [r for r in rows(drawn / "cycle125/4cd_thickness.csv") if r["y_low"]]
    values = np.array([float(row["y"]) for row in found])
    for value in particles.mn3_fraction.values[used]:
        assert np.abs(values - value).min() < 1e-6


def test_states_are_compared(drawn):
    series = read_result(drawn / "states/states.h5")["/entry/series"]
    assert list(series.state.values) == ["pristine", "125 cycles"]
    assert float(series["mn3_change"][1]) == pytest.approx(0.1, abs=1e-6)
    found = rows(drawn / "states/1d_state_spectra.csv")
    assert {"pristine", "125 cycles"} <= {row["series"] for row in found}


def test_results_without_cycles_are_drawn_one_by_one(tmp_path, capsys):
    files = []
    for name in ("one", "two"):
        files.append(write_result(make_tree(), tmp_path / name / "result.h5"))
    command = ["figures", *map(str, files), "--formats", "png", "--dpi", "40"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two"}
    assert "how many cycles" in capsys.readouterr().err


def test_a_result_that_is_none_is_named(tmp_path, capsys):
    (tmp_path / "result.h5").write_text("nothing")
    assert cli.main(["figures", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "result.h5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
