"""The whole method on small scans, through files, as users run it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import xarray as xr
from make_results import make_tree
from make_runs import write_run
from make_stacks import make, spectra

from spectromap import _streaming, batch, cli, pipeline
from spectromap.config import load_run
from spectromap.io.results import read_result
from spectromap.schema import FLAGS, RESULT_GROUPS, FileError, InputError

#: For runs of which nothing later is looked at.
MAPS_ONLY = {"enabled": False}


@pytest.fixture(scope="module")
def made():
    return make(seed=1, shape=(96, 110), n_energies=40, photons=4000.0, energy_shift=0.15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("run")
    write_run(path, made)
    assert cli.main(["run", "--config", str(path / "run.yaml"), "--out", str(path / "out")]) == 0
    return path


@pytest.fixture(scope="module")
def result(folder):
    return read_result(folder / "out" / "result.h5")


def test_every_group_of_the_contract_is_there(result):
    assert set(result["entry"].children) == set(RESULT_GROUPS)
    assert result["entry"].attrs["schema_version"] == 1


def test_every_name_of_a_result_is_written_down(result):
    """The contract in ``docs/result.md``, and the tree that the figures are tested with."""
    written = (Path(__file__).parents[1] / "docs/result.md").read_text(encoding="utf-8")
    for group in RESULT_GROUPS:
        for name in result[f"entry/{group}"].data_vars:
            plain = re.sub("_(errors|systematic)$", "", str(name))
            general = re.sub("mn[34]", "<component>", plain)
            assert f"`{name}`" in written or f"`{general}`" in written, f"{group}/{name}"
    for group in ("particles", "profiles", "models", "pooled", "heterogeneity"):
        assert set(make_tree()[f"entry/{group}"]) == set(result[f"entry/{group}"]), group


def test_shifts_energy_composition_and_thickness_are_true(result, made):
    shifts, maps = result["/entry/shifts"], result["/entry/maps"]
    found = np.stack([shifts.shift_y.values, shifts.shift_x.values], axis=1) / 10.0
    error = found - made.shifts_px
    error = np.hypot(*(error - np.median(error, axis=0)).T)
    assert np.median(error) < 0.03
    spectra = result["/entry/spectra"]
    assert float(spectra["energy_shift"]) == pytest.approx(0.15, abs=0.02)
    total = made.t4 + made.t3
    thick = (total > 100) & np.isfinite(maps["thickness"].values)
    fraction = made.t3 / np.maximum(total, 1e-9)
    assert abs(np.mean((maps["mn3_fraction"].values - fraction)[thick])) < 0.02
    assert np.median(maps["thickness"].values[thick] / total[thick]) == pytest.approx(1, abs=0.02)


def test_variables_have_units_and_siblings(result):
    for name in ("shifts", "spectra", "maps", "particles", "profiles"):
        for variable, values in result[f"/entry/{name}"].data_vars.items():
            if np.issubdtype(values.dtype, np.number):
                assert "units" in values.attrs, f"{name}/{variable}"
    maps = result["/entry/maps"]
    for name in ("mn3_fraction", "mn4_fraction", "thickness"):
        assert f"{name}_errors" in maps
        assert f"{name}_systematic" in maps
    assert maps.attrs["fraction"] == "mn3"
    assert maps["flags"].attrs["flag_meanings"].split() == list(FLAGS)


def test_tables_and_report_lie_beside_the_result_and_nothing_else(folder):
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"result.h5", "particles.csv", "models.csv", "report.html"}


def digest(tree):
    total = hashlib.sha256()
    for node in tree.subtree:
        if node.name == "process":
            continue
        for name, values in sorted(node.dataset.data_vars.items()):
            total.update(str(name).encode())
            array = np.asarray(values.values)
            total.update(array.tobytes() if array.dtype != object else str(array.tolist()).encode())
    return total.hexdigest()


def test_replay_gives_the_same_numbers(folder, result):
    out = folder / "again"
    assert cli.main(["run", "--replay", str(folder / "out/result.h5"), "--out", str(out)]) == 0
    assert digest(read_result(out / "result.h5")) == digest(result)


def test_replay_refuses_changed_input(folder, tmp_path, capsys):
    write_run(tmp_path, segment=MAPS_ONLY)
    assert (
        cli.main(["run", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "o")]) == 0
    )
    with open(tmp_path / "mn3.csv", "a") as stream:
        stream.write("662.5,0.004\n")
    capsys.readouterr()
    code = cli.main(
        ["run", "--replay", str(tmp_path / "o/result.h5"), "--out", str(tmp_path / "p")]
    )
    assert code == 2
    assert "mn3.csv" in capsys.readouterr().err
    assert not (tmp_path / "p" / "result.h5").exists()


def test_scratch_file_and_memory_give_the_same_numbers(folder, result, monkeypatch, tmp_path):
    monkeypatch.setattr(_streaming, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(_streaming, "SLAB_BYTES", 40 * 110 * 4 * 7)
    run = load_run(folder / "run.yaml")
    batch.run(run, tmp_path)
    assert digest(read_result(tmp_path / "result.h5")) == digest(result)
    assert not list(tmp_path.glob("*.part"))


def test_without_references_there_is_still_something_to_see(folder, tmp_path):
    code = cli.main(["run", str(folder / "scan.hdf5"), "--out", str(tmp_path)])
    assert code == 0
    tree = read_result(tmp_path / "result.h5")
    assert "mean_od" in tree["/entry/maps"]
    assert "no references are given" in tree["/entry/process"].attrs["warnings"]


def test_labels_given_by_hand_replace_segmentation(folder, tmp_path):
    labels = np.zeros((96, 110), np.uint16)
    labels[20:50, 20:60] = 7
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    run = load_run(folder / "run.yaml", labels=str(tmp_path / "labels.tif"))
    batch.run(run, tmp_path / "out")
    tree = read_result(tmp_path / "out/result.h5")
    assert list(tree["/entry/particles"]["particle"].values) == [7]
    assert list(tree["/entry/models"]["particle"].values) == [7]
    assert np.array_equal(tree["/entry/maps"]["particle_label"].values, labels)


def test_labels_are_known_by_their_content(folder, result, tmp_path):
    labels = result["/entry/maps"]["particle_label"].values
    assert labels.max() > 0
    shutil.copy(folder / "out/result.h5", tmp_path / "earlier")
    tifffile.imwrite(tmp_path / "labels.png", labels)
    with open(tmp_path / "drawn.tif", "wb") as stream:
        np.save(stream, labels)
    for name in ("earlier", "labels.png", "drawn.tif"):
        run = load_run(folder / "run.yaml", labels=str(tmp_path / name))
        assert np.array_equal(batch.load_plan(run).labels, labels), name
        batch.check(run)
    (tmp_path / "notes.tif").write_text("particles 3 and 5 touch")
    with pytest.raises(FileError, match="nor an earlier result"):
        batch.load_plan(load_run(folder / "run.yaml", labels=str(tmp_path / "notes.tif")))


@pytest.mark.parametrize(("axis", "change"), [("y", lambda y: y + 40.0), ("x", lambda x: 1.02 * x)])
def test_labels_of_a_result_that_lies_elsewhere_are_refused(folder, tmp_path, axis, change):
    """Another field, or the same one with other pixels, of the same shape."""
    earlier = tmp_path / "earlier.h5"
    shutil.copy(folder / "out/result.h5", earlier)
    with h5py.File(earlier, "r+") as file:
        place = file["entry/maps"][axis]
        place[...] = change(place[...])
    run = load_run(folder / "run.yaml", labels=str(earlier))
    for use in (batch.check, lambda r: batch.run(r, tmp_path / "out")):
        with pytest.raises(InputError, match=f"labels: they lie at {axis} from .* nm, the frames"):
            use(run)
    assert not list((tmp_path / "out").glob("*"))


def test_region_mask_and_spectrum_give_the_same_i0(folder, made, tmp_path):
    mask = np.zeros((96, 110), bool)
    mask[2:90, 2:9] = True
    np.save(tmp_path / "mask.npy", mask)
    sources = [{"region": [2, 90, 2, 9]}, {"mask": str(tmp_path / "mask.npy")}]
    found = []
    for number, i0 in enumerate(sources):
        out = tmp_path / str(number)
        batch.run(load_run(folder / "run.yaml", i0=i0, segment=MAPS_ONLY), out)
        found.append(read_result(out / "result.h5")["/entry/spectra"]["i0"].values)
    assert np.array_equal(*found)
    lines = [f"{e:.5f} {v:.4f}" for e, v in zip(made.stack.energy.values, found[0], strict=True)]
    (tmp_path / "i0.xsp").write_text("\n".join(lines))
    i0 = {"spectrum": str(tmp_path / "i0.xsp")}
    batch.run(load_run(folder / "run.yaml", i0=i0, segment=MAPS_ONLY), tmp_path)
    spectrum = read_result(tmp_path / "result.h5")["/entry/spectra"]["i0"].values
    assert np.allclose(spectrum, found[0], rtol=1e-5)


def test_a_stack_of_optical_densities_is_not_divided_again():
    still = make(seed=4, shape=(80, 90), n_energies=30, photons=20000.0, drift_px=0.0)
    counts = np.maximum(still.stack.values, 1.0)
    od = still.stack.copy(data=-np.log(counts / still.i0[:, None, None]).astype(np.float32))
    od.attrs |= {"quantity": "optical_density", "units": "1"}
    energy = np.arange(628.0, 662.0, 0.1)
    references = {
        name: xr.DataArray(v, dims="energy", coords={"energy": energy}, attrs={"units": "nm-1"})
        for name, v in spectra(energy).items()
    }
    tree = pipeline.analyze(od, pipeline.Plan(references, "mn3"))
    assert (tree["/entry/spectra"]["i0"].values == 1).all()
    total = still.t4 + still.t3
    thick = total > 100
    maps = tree["/entry/maps"]
    assert np.nanmedian(maps["thickness"].values[thick] / total[thick]) == pytest.approx(
        1, abs=0.03
    )
    error = (maps["mn3_fraction"].values - still.t3 / np.maximum(total, 1e-9))[thick]
    assert abs(np.nanmean(error)) < 0.02


def test_flipping_the_file_changes_nothing_but_the_direction(folder, result, made, tmp_path):
    turned = make(seed=1, shape=(96, 110), n_energies=40, photons=4000.0, energy_shift=0.15)
    turned.stack = turned.stack.isel(y=slice(None, None, -1))
    write_run(tmp_path, turned, segment=MAPS_ONLY)
    batch.run(load_run(tmp_path / "run.yaml"), tmp_path / "out")
    tree = read_result(tmp_path / "out/result.h5")
    first, second = (t["/entry/maps"]["thickness"].values for t in (result, tree))
    assert np.allclose(first, second, equal_nan=True)


def test_a_killed_run_leaves_no_result_and_the_next_one_works(folder, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "spectromap.cli", "run", "--config", str(folder / "run.yaml"),
         "--out", str(out), "--quiet"]
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out.exists() and any(out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "result.h5").exists()
    assert cli.main(["run", "--config", str(folder / "run.yaml"), "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {
        "result.h5", "particles.csv", "models.csv", "report.html"
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_small_stack(folder, tmp_path):
    # Not ru_maxrss: that is at least what the parent process holds.
    code = (
        "import sys; from spectromap import cli;"
        f"code = cli.main(['run', '--config', {str(folder / 'run.yaml')!r},"
        " '--out', 'OUT', '--quiet']);"
        "status = open('/proc/self/status').read();"
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024); sys.exit(code)"
    )
    # The compiler takes as much again: where the first run had to compile, the second need not.
    for attempt in range(2):
        command = [sys.executable, "-c", code.replace("OUT", str(tmp_path / str(attempt)))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak = int(done.stdout.split()[-1])
        if peak < 700:
            break
    assert peak < 700  # MiB; the program alone takes about 400


def test_result_opens_as_netcdf(folder):
    with xr.open_datatree(Path(folder) / "out" / "result.h5") as tree:
        assert "mn3_fraction" in tree["/entry/maps"]


def test_silx_finds_the_default_plot_and_every_group(folder):
    nxdata = pytest.importorskip("silx.io.nxdata")
    import h5py

    with h5py.File(folder / "out" / "result.h5") as file:
        default = nxdata.get_default(file)
        assert default is not None
        assert default.signal.name == "/entry/maps/mn3_fraction_nonnegative"
        shown = default.signal[()]
        assert 0 <= np.nanmin(shown) <= np.nanmax(shown) <= 1
        assert [axis.name for axis in default.axes] == ["/entry/maps/y", "/entry/maps/x"]
        for name in set(RESULT_GROUPS) - {"process"}:
            group = nxdata.NXdata(file[f"/entry/{name}"])
            assert group.is_valid, f"{name}: {group.issues}"


def test_shifts_from_a_file_replace_registration(folder, result, tmp_path, capsys):
    shifts = result["/entry/shifts"].to_dataset()
    table = shifts[["shift_y", "shift_x", "shift_y_errors", "shift_x_errors"]].to_dataframe()
    table.to_csv(tmp_path / "shifts.csv", float_format="%.17g")
    for source in (tmp_path / "shifts.csv", folder / "out" / "result.h5"):
        run = load_run(folder / "run.yaml", shifts={"file": str(source)})
        plan = batch.load_plan(run)
        found = plan.shifts["shift_y"].values
        assert np.allclose(found, shifts["shift_y"].values, rtol=1e-13, atol=0)
    nearest, energy = 10, str(round(float(shifts.energy[10]), 2))
    run = load_run(
        folder / "run.yaml",
        shifts={"file": str(tmp_path / "shifts.csv"), "corrections": {energy: [100.0, 0.0]}},
        segment=MAPS_ONLY,
    )
    tree = read_result(batch.run(run, tmp_path / "out"))
    moved = tree["/entry/shifts"]["shift_y"].values - shifts["shift_y"].values
    moved -= np.median(moved)
    assert moved[nearest] == pytest.approx(100.0)
    assert np.abs(np.delete(moved, nearest)).max() < 1e-9
    assert "particles" not in tree["entry"].children
    again, before = (t["/entry/maps"]["thickness"].values for t in (tree, result))
    both = np.isfinite(again) & np.isfinite(before)
    assert both.mean() > 0.98 * np.isfinite(before).mean()
    assert np.median(np.abs(again - before)[both]) < 2.0
    (folder / "bad.csv").write_text("energy,shift_y\n640,1\n")
    (folder / "bad.yaml").write_text(
        (folder / "run.yaml").read_text() + "shifts: {file: bad.csv}\n"
    )
    code = cli.main(["run", "--config", str(folder / "bad.yaml"), "--out", str(tmp_path / "p")])
    assert code == 2
    assert "no column shift_x" in capsys.readouterr().err


def test_mask_and_reference_guide_the_registration(folder, made, tmp_path):
    mask = np.zeros((96, 110), bool)
    mask[:, :80] = True
    np.save(tmp_path / "mask.npy", mask)
    still = make(seed=1, shape=(96, 110), n_energies=40, photons=4000.0, drift_px=0.0)
    write_run(tmp_path / "still", still)
    known = {
        "mask": str(tmp_path / "mask.npy"),
        "reference": str(tmp_path / "still" / "scan.hdf5"),
    }
    run = load_run(folder / "run.yaml", shifts=known, segment=MAPS_ONLY)
    shifts = read_result(batch.run(run, tmp_path / "out"))["/entry/shifts"]
    found = np.stack([shifts.shift_y.values, shifts.shift_x.values], axis=1) / 10.0
    error = found - made.shifts_px
    assert np.median(np.hypot(*error.T)) < 0.1  # the common offset is known too
    assert shifts.attrs["common_frame"] == "reference"


def test_a_region_of_a_scan_serves_as_a_reference(folder, tmp_path):
    flat = make(seed=4, shape=(60, 60), n_energies=40, photons=20000.0, drift_px=0.0)
    thickness = np.zeros((60, 60))
    thickness[15:45, 15:45] = 60.0
    rng = np.random.default_rng(0)
    light = np.exp(-thickness * flat.references["mn4"].values[:, None, None])
    flat.stack.values[:] = rng.poisson(20000 * light)
    pure = tmp_path / "pure"
    write_run(pure, flat)
    references = {
        "mn4": {
            "file": str(pure / "scan.hdf5"),
            "region": [18, 42, 18, 42],
            "thickness_nm": 60,
            "thickness_error_nm": 3,
            "valence": 4,
        },
        "mn3": {"file": str(folder / "mn3.csv"), "valence": 3},
    }
    run = load_run(folder / "run.yaml", references=references)
    spectrum = batch.load_plan(run).spectra["mn4"]
    expected = flat.references["mn4"].values
    assert spectrum.attrs["units"] == "nm-1"
    assert "mean of 576 pixels" in spectrum.attrs["treatment"]
    assert spectrum.attrs["relative_error"] == pytest.approx(0.05)
    pull = (spectrum.values - expected) / spectrum.coords["errors"].values
    assert np.sqrt(np.mean(pull**2)) < 2.0
    assert np.abs(spectrum.values / expected - 1).max() < 0.05
    references["mn4"]["region"] = [18, 70, 18, 42]
    with pytest.raises(InputError, match=r"references\.mn4\.region.*reaches outside"):
        batch.load_plan(load_run(folder / "run.yaml", references=references))


def test_the_phase_of_a_reconstruction_is_carried_beside_the_density(made):
    stack = made.stack
    phase = 0.004 * (made.t4 + made.t3)
    yy, xx = np.mgrid[:96, :110]
    rng = np.random.default_rng(0)
    objects = np.empty(stack.shape, np.complex64)
    for k in range(len(objects)):
        mu4, mu3 = made.references["mn4"].values[k], made.references["mn3"].values[k]
        modulus = 20.0 * np.exp(-0.5 * (mu4 * made.t4 + mu3 * made.t3))
        ramp = rng.uniform(-3, 3) + 0.01 * yy - 0.02 * xx
        noise = rng.normal(0, 0.05, (2, 96, 110))
        objects[k] = modulus * np.exp(1j * (phase + ramp)) + noise[0] + 1j * noise[1]
    wave = stack.copy(data=objects)
    wave.attrs |= {"quantity": "amplitude", "units": "1", "technique": "ptychography"}
    known = {
        name: xr.DataArray(
            values,
            coords={"energy": ("energy", np.arange(628.0, 662.0, 0.1), {"units": "eV"})},
            dims="energy",
            attrs={"units": "nm-1"},
        )
        for name, values in spectra(np.arange(628.0, 662.0, 0.1)).items()
    }
    options = {"align": {"enabled": False}, "segment": {"enabled": False}}
    plan = pipeline.Plan(known, "mn3", "Mn L3", options=options)
    tree = pipeline.analyze(wave, plan)
    maps = tree["/entry/maps"]
    assert maps["phase"].attrs["units"] == "rad"
    error = maps["phase"].values - phase
    error -= np.median(error[phase < 1e-4])
    assert np.abs(np.median(error[phase > 0.3])) < 0.01
    assert np.nanstd(error) < 0.02
    thick = made.t4 + made.t3 > 50
    ratio = maps["thickness"].values[thick] / (made.t4 + made.t3)[thick]
    assert np.median(ratio) == pytest.approx(1, abs=0.03)
    assert np.isfinite(tree["/entry/spectra"]["mean_phase"].values).all()


def test_what_was_left_out_is_counted_in_the_result(made, tmp_path):
    hurt = make(seed=1, shape=(96, 110), n_energies=40, photons=4000.0, energy_shift=0.15)
    hurt.stack.values[5] = 0  # beam lost
    hurt.stack.values[9, 70:] = 0  # part way down
    hurt.stack.values[12, 40, 50] = 1e6  # cosmic ray
    hurt.stack.values[20, :60] *= 1.04  # top-up
    write_run(tmp_path, hurt)
    run = load_run(tmp_path / "run.yaml", segment=MAPS_ONLY)
    tree = read_result(batch.run(run, tmp_path / "out"))
    found = tree["/entry/spectra"]
    assert list(np.flatnonzero(found["lost_samples"].values)) == [5]
    # The row in which the beam went may be hurt as well.
    assert found["bad_row_samples"].values[9] in (26 * 110, 27 * 110)
    assert found["spike_samples"].values[12] == 1
    assert found["bad_row_samples"].values[20] >= 30 * 110
    warnings = tree["/entry/process"].attrs["warnings"]
    assert "frames without beam" in warnings
    assert "I0 steps part way down" in warnings
    assert np.isfinite(tree["/entry/maps"]["thickness"].values).mean() > 0.85
