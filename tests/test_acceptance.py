"""Long figures: many simulated fields through the whole method, run by `make acceptance`.

The table goes to ``benchmarks/fields.csv``; it says how far the answers are from the truth when
references and optics given to the fit are not quite those of the simulation.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from spectromap import batch, config, demo, synthetic
from spectromap.io.results import read_result
from spectromap.synthetic import Instrument, References, Sample, Scan, simulate

TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "fields.csv"
SEEDS = range(4)
SCAN = Scan(energy_shift_eV=0.1, drift_px=5.0, walk_px=0.3, jumps=1, jump_px=8.0)
KINDS = {
    "diffusion": Sample(),
    "core-shell": Sample(mechanism="core-shell", shell_nm=22.0),
    "no gradient": Sample(mechanism="uniform", initial_fraction=0.15),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One row a field."""
    found = []
    for kind, sample in KINDS.items():
        for seed in SEEDS:
            folder = tmp_path_factory.mktemp(f"{kind.split()[0]}{seed}")
            simulation = simulate(
                sample,
                Instrument(photons=8000.0),
                SCAN,
                References(amplitude_error=0.01, shape_error=0.01),
                seed=seed,
            )
            run = config.load_run(synthetic.write(simulation, folder / "scan"))
            result = read_result(batch.run(run, folder / "out"))
            truth = read_result(folder / "scan" / "truth.h5")
            found.append({"kind": kind, "seed": seed, **figures_of(truth, result)})
    with open(TABLE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, found[0])
        writer.writeheader()
        writer.writerows(found)
    return found


def figures_of(truth, result) -> dict[str, object]:
    pooled, maps, real = (
        result["/entry/pooled"], result["/entry/maps"], truth["/entry/maps"]
    )  # fmt: skip
    thick = real["thickness_blurred"].values > 40
    error = (maps["mn3_fraction"].values - real["mn3_fraction_blurred"].values)[thick]
    shift = demo.shift_errors(truth, result)
    return {
        "verdict": pooled["verdict"].item(),
        "log10_D": round(float(pooled["log10_D"]), 3),
        "log10_D_errors": round(float(pooled["log10_D_errors"]), 3),
        "shell_thickness_nm": round(float(pooled["shell_thickness"]), 2),
        "shift_median_px": round(float(np.median(shift)), 4),
        "shift_95_px": round(float(np.percentile(shift, 95)), 4),
        "mn3_bias": round(float(np.nanmean(error)), 4),
        "mn3_rms": round(float(np.nanstd(error)), 4),
        "particles": result["/entry/particles"].sizes["particle"],
    }


@pytest.mark.acceptance
def test_every_verdict_is_right(rows):
    assert [row["verdict"] for row in rows] == [row["kind"] for row in rows]


@pytest.mark.acceptance
def test_pooled_answers_are_near_the_truth(rows):
    found = np.array([row["log10_D"] for row in rows if row["kind"] == "diffusion"])
    assert abs(found.mean() + 17.0) < 0.1
    shells = np.array([r["shell_thickness_nm"] for r in rows if r["kind"] == "core-shell"])
    assert abs(shells.mean() / 22.0 - 1) < 0.15


@pytest.mark.acceptance
def test_registration_and_composition_hold_on_every_field(rows):
    for row in rows:
        assert row["shift_median_px"] < 0.03
        assert row["shift_95_px"] < 0.10
        # References that are off by 1 % move every pixel of a field alike.
        assert abs(row["mn3_bias"]) < 0.03
        assert row["mn3_rms"] < 0.03
