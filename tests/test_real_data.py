"""The method on real scans, against numbers that nobody here made."""

from __future__ import annotations

import numpy as np
import pytest

from spectromap import cli
from spectromap.io import open_stack, read_spectrum
from spectromap.io.masks import read_mask
from spectromap.io.results import read_result

TONER = "als-toner-stxm-fe/Data/ALS_Toner/71214078_FigS4/Aligned"


@pytest.fixture(scope="module")
def toner(shared_data, tmp_path_factory):
    """Result of `spectromap run toner-fe-71214078`, and the folder of the data."""
    out = tmp_path_factory.mktemp("toner")
    assert cli.main(["run", "toner-fe-71214078", "--out", str(out), "--quiet"]) == 0
    assert (out / "report.html").stat().st_size > 100_000
    return read_result(out / "result.h5"), shared_data / TONER


@pytest.fixture(scope="module")
def measured(toner):
    """Optical density (energy, pixel) by the plainest means, and the design matrix."""
    _, folder = toner
    stack = open_stack(folder / "71214078.hdr").load()
    columns = {
        name: np.loadtxt(folder / name)[:, 1] for name in ("i0.xsp", "reduced.r", "oxidized.r")
    }
    od = -np.log(stack.values / 0.433 / columns["i0.xsp"][:, None, None])
    design = np.column_stack(
        [columns["reduced.r"], columns["oxidized.r"], np.ones(stack.sizes["energy"])]
    )
    return od.reshape(len(od), -1), design


def test_the_two_phases_of_the_fe_particles_fit_as_well_as_least_squares(toner, measured):
    result, folder = toner
    od, design = measured
    maps = result["/entry/maps"]
    amounts = [maps[name].values.ravel() for name in ("fe2_thickness", "fe3_thickness", "offset")]
    residual = np.abs(od - design @ np.array(amounts))
    mask = np.asarray(read_mask(folder / "mask_file.msk")).ravel()
    assert np.isfinite(residual).all()
    assert np.median(residual[:, mask]) <= 0.0195
    assert np.median(residual) <= 0.0125


def test_the_map_is_that_of_an_independent_fit(toner, measured):
    result, _ = toner
    od, design = measured
    expected, *_ = np.linalg.lstsq(design, od, rcond=None)
    both = (expected[0] > 0) & (expected[1] > 0)
    fraction = result["/entry/maps"]["fe2_fraction"].values.ravel()
    correlation = np.corrcoef(expected[0][both] / expected[:2].sum(axis=0)[both], fraction[both])
    assert both.sum() > 2000
    assert correlation[0, 1] > 0.99


def test_the_i0_per_ms_was_brought_to_the_dwell(toner):
    result, folder = toner
    per_ms = read_spectrum(folder / "i0.xsp").values
    assert np.allclose(result["/entry/spectra"]["i0"].values, per_ms * 0.433)
    assert abs(float(result["/entry/spectra"]["energy_shift"])) < 0.05


def test_the_ni_pair_is_aligned_by_24_and_15_pixels(shared_data, tmp_path):
    file = shared_data / "cosmic-xanespy" / "stxm-scan.hdr"
    assert cli.main(["run", str(file), "--out", str(tmp_path), "--quiet"]) == 0
    shifts = read_result(tmp_path / "result.h5")["/entry/shifts"]
    moved = [np.diff(shifts[name].values)[0] / 27.18 for name in ("shift_y", "shift_x")]
    assert np.allclose(np.abs(moved), [24, 15], atol=0.5)


def test_the_cosmic_reconstruction_has_its_pixel_and_energy(shared_data, capsys):
    file = shared_data / "cosmic-xanespy" / "ptycho-scan-856eV.cxi"
    stack = open_stack(file)
    assert np.median(np.diff(stack.x)) == pytest.approx(6.0435606480754585, rel=1e-9)
    assert float(stack.energy[0]) == pytest.approx(855.9056, abs=1e-4)
    assert cli.main(["info", str(file)]) == 0
    assert "855.906 eV" in capsys.readouterr().out
