"""The whole method on simulated scans: the answer against the truth, through beamline files.

The fit is told references, optics and energies that are not quite those of the simulation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from make_stacks import label

from spectromap import absorption, batch, cli, config, demo, pipeline, schema, synthetic
from spectromap.io.results import read_result
from spectromap.pipeline import Plan
from spectromap.synthetic import Instrument, References, Sample, Scan, simulate

pytestmark = pytest.mark.long

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


@pytest.mark.acceptance
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


def seen_at(
    resolution: float, pixel: float, shape: tuple[int, int], technique: str, sample: Sample
) -> tuple[synthetic.Simulation, Plan]:
    """A small field at some resolution, and a plan that does not say which."""
    field = simulate(
        sample,
        Instrument(technique=technique, resolution_nm=resolution, dark_counts=0.0),
        Scan(
            pixel_nm=pixel,
            shape_px=shape,
            energies=tuple(synthetic.default_energies("Mn L3")[::3]),
            drift_px=1.5,
        ),
        seed=6,
    )
    told = schema.Sample(
        formula=sample.formula,
        density_g_cm3=sample.density_g_cm3,
        delithiated_time_s=sample.delithiated_time_s,
    )
    return field, Plan(dict(field.given_references.data_vars), "mn3", sample=told)


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
def test_resolution_that_is_not_given_is_found(technique):
    sample = Sample(particles=6, radius_nm=(65.0, 95.0))
    field, plan = seen_at(16.0, 6.0, (135, 150), technique, sample)
    result = pipeline.analyze(field.stack, plan)
    spectra, pooled = result["entry/spectra"], result["entry/pooled"]
    found, error = float(spectra["resolution"]), float(spectra["resolution_errors"])
    assert found == pytest.approx(16.0, abs=2.0 * error)
    assert error < 0.15 * found
    assert pooled["verdict"].item() == "diffusion"
    assert float(pooled["log10_D"]) == pytest.approx(-17.0, abs=0.1)
    assert float(pooled["log10_D_low95"]) < -17.0 < float(pooled["log10_D_high95"])


def test_resolution_that_cannot_be_told_is_said_to_be_assumed(caplog):
    sample = Sample(particles=4, radius_nm=(90.0, 130.0), mechanism="uniform")
    field, plan = seen_at(4.0, 14.0, (80, 90), "stxm", sample)
    spectra = pipeline.analyze(field.stack, plan)["entry/spectra"]
    found = float(spectra["resolution"])
    assert "instrument.resolution_nm is not given and cannot be estimated" in caplog.text
    assert f"{found:.3g} nm is assumed" in caplog.text
    assert 14.0 <= found <= 28.0
    assert float(spectra["resolution_errors"]) == pytest.approx(0.4 * found)


@pytest.mark.parametrize("technique", ["stxm", "ptychography"])
def test_the_error_of_the_mean_transmission_is_its_scatter(technique):
    rng, counts = np.random.default_rng(3), technique == "stxm"
    energy = np.linspace(640.0, 645.0, 6)
    i0 = xr.Dataset(
        {"i0": ("energy", np.linspace(300.0, 900.0, 6)), "i0_errors": ("energy", np.zeros(6))}
    )
    through = rng.uniform(0.05, 1.0, (6, 20, 24))
    dark = 20.0 if counts else 0.0
    light = through * i0["i0"].values[:, None, None] + dark
    images, stated = [], []
    for _ in range(300):
        # Both parts of a reconstructed amplitude have the noise of half a count.
        real, imaginary = rng.normal(0.0, 0.5, (2, *light.shape))
        values = rng.poisson(light) if counts else np.abs(np.sqrt(light) + real + 1j * imaginary)
        kind = {} if counts else {"quantity": "amplitude", "units": "1", "technique": technique}
        stack = label(values.astype(np.float32), energy, 10.0, **kind)
        made = absorption.transmission(stack, i0, dark_counts=dark)
        mean = absorption.mean_transmission(made, technique)
        images.append(mean["mean_transmission"].values)
        stated.append(mean["mean_transmission_errors"].values)
    scatter, error = np.std(images, axis=0, ddof=1), np.mean(stated, axis=0)
    assert np.mean(error**2) == pytest.approx(np.mean(scatter**2), rel=0.03)
    if counts:  # the error of an amplitude is the same everywhere
        assert np.corrcoef(scatter.ravel(), error.ravel())[0, 1] > 0.5
    truth = (through if counts else np.sqrt(through)).mean(axis=0)
    assert np.abs(np.mean(images, axis=0) - truth).max() < 0.3 * scatter.mean()
