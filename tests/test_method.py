"""The whole method on simulated scans: the answer against the truth, through beamline files.

The fit is told references, optics and energies that are not quite those of the simulation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spectromap import batch, cli, config, demo, synthetic
from spectromap.io.results import read_result
from spectromap.synthetic import Instrument, References, Sample, Scan, simulate

DRIFT = {"drift_px": 4.0, "walk_px": 0.3, "jumps": 1, "jump_px": 8.0}
FINE = Scan(pixel_nm=6.0, shape_px=(170, 190), energy_shift_eV=-0.1, **DRIFT)
FEW = {"particles": 7, "radius_nm": (70.0, 110.0)}

CASES = {
    "ptychography": (
        Sample(**FEW), Instrument(technique="ptychography"), References(shape_error=0.01), "cxi"
    ),
    "core-shell": (
        Sample(mechanism="core-shell", shell_nm=22.0, **FEW),
        Instrument(photons=6000.0, psf="airy"),
        References(amplitude_error=0.01),
        "als",
    ),
    "uniform": (
        Sample(mechanism="uniform", initial_fraction=0.15, **FEW),
        Instrument(photons=6000.0),
        References(shape_error=0.01),
        "nxstxm",
    ),
    "lamella": (
        Sample(geometry="lamella", **FEW),
        Instrument(technique="ptychography"),
        References(units="cm2_per_g"),
        "cxi",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Name, truth, result."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    sample, instrument, references, form = CASES[request.param]
    simulation = simulate(sample, instrument, FINE, references, seed=3)
    run = config.load_run(synthetic.write(simulation, folder / "scan", format=form))
    result = read_result(batch.run(run, folder / "out"))
    return request.param, read_result(folder / "scan" / "truth.h5"), result


def test_verdict_and_particles(case):
    _, truth, result = case
    assert result["/entry/pooled/verdict"].item() == truth["/entry/pooled/verdict"].item()
    matched = demo.overlaps(
        truth["/entry/maps/particle_label"].values, result["/entry/maps/particle_label"].values
    )
    assert len(matched) == truth["/entry/particles"].sizes["particle"]
    assert result["/entry/particles"].sizes["particle"] == len(matched)
    assert np.mean([overlap for _, overlap in matched.values()]) >= 0.9


def test_shifts_energy_and_composition(case):
    name, truth, result = case
    error = demo.shift_errors(truth, result)
    assert np.median(error) < 0.03
    assert np.percentile(error, 95) < 0.1
    spectra = result["/entry/spectra"]
    assert float(spectra["energy_shift"]) == pytest.approx(-0.1, abs=0.03)
    real, maps = truth["/entry/maps"], result["/entry/maps"]
    thick = real["thickness_blurred"].values > 40
    difference = (maps["mn3_fraction"].values - real["mn3_fraction_blurred"].values)[thick]
    # The wings of an Airy pattern reach over whole particles: fitted stray light mends only part.
    assert abs(np.nanmean(difference)) < (0.03 if name == "core-shell" else 0.02)
    assert np.nanstd(difference) < 0.03
    ratio = maps["thickness"].values[thick] / real["thickness_blurred"].values[thick]
    assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.04)


def test_diffusion_coefficient_or_shell(case):
    name, truth, result = case
    pooled = result["/entry/pooled"]
    if truth["/entry/pooled/verdict"].item() == "diffusion":
        error = abs(float(pooled["log10_D"]) - float(truth["/entry/pooled/log10_D"]))
        assert error < 0.15
        assert float(pooled["log10_D_low95"]) < float(pooled["log10_D"])
        low, high = float(pooled["log10_D_low95"]), float(pooled["log10_D_high95"])
        assert low - 0.05 < float(truth["/entry/pooled/log10_D"]) < high + 0.05
    elif name == "core-shell":
        assert float(pooled["shell_thickness"]) == pytest.approx(22.0, rel=0.2)
    else:
        assert int(pooled["count_no_gradient"]) == result["/entry/particles"].sizes["particle"]


def test_inside_of_agglomerates_is_told_from_outside(tmp_path):
    simulation = synthetic.electrode_field(seed=1)
    run = config.load_run(synthetic.write(simulation, tmp_path / "scan"))
    result = read_result(batch.run(run, tmp_path / "out"))
    truth = read_result(tmp_path / "scan" / "truth.h5")
    found = result["/entry/heterogeneity"].to_dataset().set_index(contrast="contrast")
    real = truth["/entry/heterogeneity"].to_dataset().set_index(contrast="contrast")
    for contrast in ("outside-inside", "outside-inside at equal thickness"):
        row, expected = found.sel(contrast=contrast), real.sel(contrast=contrast)
        assert float(row.difference) == pytest.approx(float(expected.difference), abs=0.025)
        assert float(row.low) < float(expected.difference) < float(row.high)
        assert float(row.low) > 0


def test_demo_tells_the_truth_beside_the_answer(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "--quiet"]) == 0
    table = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in table.splitlines() if "  " in line}
    assert "diffusion  diffusion" in rows["verdict"]
    assert "-17.00" in rows["log10 D [cm2/s]"]
    for name in ("result.h5", "particles.csv", "models.csv", "report.html", "truth.png"):
        assert (tmp_path / name).stat().st_size > 200
    assert (tmp_path / "truth.txt").read_text().strip() in table
    assert (tmp_path / "simulated" / "RUN.yaml").exists()
