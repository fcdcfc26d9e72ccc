"""Bad input: a clear message and exit code 2, or a named flag; nothing half done remains.

Every case of the list that users of such files meet: what is wrong is named with its place and a
remedy, no traceback is shown, and the output folder holds no result.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import yaml
from make_runs import description, write_nxstxm, write_references
from make_runs import write_run as write_whole_run
from make_stacks import make

from spectromap import cli
from spectromap.io import results
from spectromap.io.results import read_result
from spectromap.schema import FLAGS

pytestmark = pytest.mark.long


@pytest.fixture
def made():
    return make(seed=1, shape=(80, 90), n_energies=24, photons=3000.0)


def write_run(folder: Path, made=None, **changes) -> Path:
    """A run that ends with the maps, which are all that is looked at here."""
    return write_whole_run(folder, made, segment={"enabled": False}, **changes)


def run(folder: Path, capsys) -> SimpleNamespace:
    """Run the description in a folder; what came out."""
    capsys.readouterr()
    out = folder / "out"
    code = cli.main(["run", "--config", str(folder / "run.yaml"), "--out", str(out)])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if code:
        left = [p.name for p in out.iterdir()] if out.exists() else []
        assert left == []
    return SimpleNamespace(code=code, error=error, out=out)


def check_refused(folder: Path, capsys, *texts: str) -> None:
    outcome = run(folder, capsys)
    assert outcome.code == 2
    for text in texts:
        assert text in outcome.error, outcome.error


def check_warned(folder: Path, capsys, *texts: str):
    """Run through with a warning that the result keeps; returns the result."""
    outcome = run(folder, capsys)
    assert outcome.code == 0, outcome.error
    tree = read_result(outcome.out / "result.h5")
    kept = tree["/entry/process"].attrs["warnings"]
    for text in texts:
        assert text in kept, kept
    return tree


def test_truncated_hdf5(tmp_path, capsys):
    write_run(tmp_path)
    path = tmp_path / "scan.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    check_refused(tmp_path, capsys, "scan.hdf5", "truncated")


def test_truncated_in_the_middle_of_the_data(tmp_path, capsys, made):
    write_run(tmp_path, made)
    path = tmp_path / "scan.hdf5"
    with h5py.File(path, "r") as file:
        info = file["entry1/counter0/data"].id.get_chunk_info(12)
    content = bytearray(path.read_bytes())
    content[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    path.write_bytes(content)
    check_refused(tmp_path, capsys, "scan.hdf5")


def test_empty_hdf5(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "scan.hdf5").write_bytes(b"")
    check_refused(tmp_path, capsys, "scan.hdf5", "empty")


def test_hdf5_without_a_stack_lists_every_format_with_its_reason(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "scan.hdf5").unlink()
    with h5py.File(tmp_path / "scan.hdf5", "w") as file:
        file["nothing"] = 1
    check_refused(tmp_path, capsys, "scan.hdf5", "NXstxm", "CXI", "als-hdr", "axis2000", "tiff")


def test_missing_stack(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "scan.hdf5").unlink()
    check_refused(tmp_path, capsys, "scan.hdf5")


def write_als(folder: Path, made) -> None:
    from spectromap.io import als

    write_run(folder, made, stack="scan.hdr")
    als.write(made.stack, folder / "scan.hdr")


def test_missing_xim(tmp_path, capsys, made):
    write_als(tmp_path, made)
    missing = sorted(tmp_path.glob("*.xim"))[7]
    missing.unlink()
    check_refused(tmp_path, capsys, missing.name)


def test_planes_of_different_shape(tmp_path, capsys, made):
    write_als(tmp_path, made)
    odd = sorted(tmp_path.glob("*.xim"))[5]
    odd.write_text("\n".join(odd.read_text().splitlines()[:-3]) + "\n")
    check_refused(tmp_path, capsys, odd.name)


def test_nan_and_negative_counts_are_flagged(tmp_path, capsys, made):
    made.stack[3, 10:12, 10:12] = np.nan
    made.stack[4, 60, 70] = -50
    write_run(tmp_path, made)
    tree = check_warned(tmp_path, capsys, "negative counts", "samples without data")
    flags = tree["/entry/maps"]["flags"].values
    assert flags[10, 10] & FLAGS["energies_left_out"]
    assert np.isfinite(tree["/entry/maps"]["thickness"].values[10, 10])


def test_dead_pixels_rows_and_frames_are_flagged(tmp_path, capsys, made):
    made.stack[:, 40, :] = 0
    made.stack[:, 5, 6] = 0
    made.stack[9] = 0
    write_run(tmp_path, made)
    tree = check_warned(tmp_path, capsys, "dead pixels", "frames without beam")
    assert tree["/entry/shifts"]["flagged"].values[9]
    assert (tree["/entry/maps"]["flags"].values[40] & FLAGS["dead"]).all()


def test_saturated_pixels_are_flagged(tmp_path, capsys, made):
    made.stack.values[:] = np.minimum(made.stack.values, 3060.0)
    write_run(tmp_path, made)
    tree = check_warned(tmp_path, capsys, "saturated")
    assert (tree["/entry/maps"]["flags"].values & FLAGS["saturated"]).any()


def test_unsorted_energies_are_sorted(tmp_path, capsys, made):
    order = np.random.default_rng(0).permutation(24)
    sorted_run, mixed_run = tmp_path / "sorted", tmp_path / "mixed"
    write_run(sorted_run, made)
    straight = run(sorted_run, capsys)
    made.stack = made.stack.isel(energy=order)
    write_run(mixed_run, made)
    tree = check_warned(mixed_run, capsys, "not in order")
    assert straight.code == 0
    expected = read_result(straight.out / "result.h5")["/entry/maps"]["thickness"].values
    assert np.array_equal(tree["/entry/maps"]["thickness"].values, expected, equal_nan=True)


def test_repeated_energies_are_kept_and_told(tmp_path, capsys, made):
    energy = made.stack.energy.values.copy()
    energy[11] = energy[10]
    made.stack = made.stack.assign_coords(energy=("energy", energy, {"units": "eV"}))
    write_run(tmp_path, made)
    tree = check_warned(tmp_path, capsys, "recorded more than once")
    assert tree["/entry/shifts"].sizes["energy"] == 24


def test_kev_given_as_ev(tmp_path, capsys, made):
    write_run(tmp_path, made)
    with h5py.File(tmp_path / "scan.hdf5", "r+") as file:
        file["entry1/counter0/energy"][:] /= 1e3
    check_refused(tmp_path, capsys, "scan.hdf5", "keV")


def test_fewer_energies_than_unknowns(tmp_path, capsys, made):
    made.stack = made.stack[[8, 16]]
    write_run(tmp_path, made, i0={"region": [0, 10, 0, 10]})
    check_refused(tmp_path, capsys, "2 energies cannot fix 3 unknowns")


def test_references_that_do_not_cover_the_energies(tmp_path, capsys, made):
    write_run(tmp_path, made)
    write_references(tmp_path, low=637.0)
    check_refused(tmp_path, capsys, "reference 'mn", "637.00", "Use a reference")


def test_missing_reference_file(tmp_path, capsys, made):
    write_run(tmp_path, made)
    (tmp_path / "mn3.csv").unlink()
    check_refused(tmp_path, capsys, "references.mn3.file", "mn3.csv")


def test_i0_of_zero_in_a_frame(tmp_path, capsys, made):
    made.stack[6, :12, :12] = 0
    write_run(tmp_path, made, i0={"region": [0, 10, 0, 10]}, align={"enabled": False})
    tree = check_warned(tmp_path, capsys, "I0 is zero")
    assert list(np.flatnonzero(tree["/entry/spectra"]["i0"].values <= 0)) == [6]
    assert np.isfinite(tree["/entry/maps"]["thickness"].values).mean() > 0.9


def test_i0_of_zero_everywhere(tmp_path, capsys, made):
    made.stack[:, :12, :12] = 0
    write_run(tmp_path, made, i0={"region": [0, 10, 0, 10]}, align={"enabled": False})
    check_refused(tmp_path, capsys, "i0")


def test_a_stack_without_open_area_says_so(tmp_path, capsys):
    from make_stacks import label, spectra

    rng = np.random.default_rng(0)
    energy = np.linspace(635, 655, 24)
    mu = spectra(energy)
    yy, xx = np.mgrid[:80, :90]
    thickness = 120 + 40 * np.sin(yy / 7.0) * np.cos(xx / 9.0)
    light = np.exp(-thickness * mu["mn4"][:, None, None])
    covered = make(seed=1, shape=(80, 90), n_energies=24)
    covered.stack = label(rng.poisson(3000 * light).astype(np.float32), energy, 10.0)
    write_run(tmp_path, covered, align={"enabled": False})
    check_warned(tmp_path, capsys, "the open area absorbs like the sample")


def test_a_mask_of_another_shape(tmp_path, capsys, made):
    np.save(tmp_path / "mask.npy", np.ones((10, 12), bool))
    write_run(tmp_path, made, i0={"mask": "mask.npy"})
    check_refused(tmp_path, capsys, "i0.mask", "(10, 12)", "(80, 90)")


def test_labels_of_another_shape(tmp_path, capsys, made):
    np.save(tmp_path / "labels.npy", np.ones((10, 12), np.int32))
    write_run(tmp_path, made, labels="labels.npy")
    check_refused(tmp_path, capsys, "labels", "(10, 12)", "(80, 90)")


def test_a_frame_that_cannot_be_aligned(tmp_path, capsys, made):
    made.stack[13] = np.random.default_rng(0).poisson(900.0, made.stack.shape[1:])
    write_run(tmp_path, made)
    tree = check_warned(tmp_path, capsys, "could not be aligned")
    assert list(np.flatnonzero(tree["/entry/shifts"]["flagged"].values)) == [13]


def test_a_disk_that_fills(tmp_path, made):
    write_run(tmp_path, made)
    out = tmp_path / "out"
    # A limit on file size stands for the full disk: the write itself fails, half way.
    command = (
        f"ulimit -f 100; exec {shlex.quote(sys.executable)} -m spectromap.cli run"
        f" --config {tmp_path}/run.yaml --out {out}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "result.h5" in done.stderr
    assert list(out.iterdir()) == []


def test_two_runs_writing_one_result(tmp_path, capsys, made):
    write_run(tmp_path, made)
    out = tmp_path / "out"
    out.mkdir()
    with results.result_lock(out):
        code = cli.main(["run", "--config", str(tmp_path / "run.yaml"), "--out", str(out)])
    assert code == 2
    assert "another run" in capsys.readouterr().err
    assert not (out / "result.h5").exists()


def test_unknown_compression_filter(tmp_path, capsys, made):
    write_run(tmp_path, made)
    path = tmp_path / "scan.hdf5"
    with h5py.File(path, "r+") as file:
        group = file["entry1/counter0"]
        del group["data"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 80, 90))
        plist.set_filter(40999, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((24, 80, 90))
        dataset = h5py.h5d.create(group.id, b"data", h5py.h5t.IEEE_F32LE, space, plist)
        for k in range(24):
            dataset.write_direct_chunk((k, 0, 0), bytes(4 * 80 * 90))
    check_refused(tmp_path, capsys, "scan.hdf5", "40999")


def test_external_link_outside_the_data_folder(tmp_path, capsys, made):
    outside = tmp_path / "outside"
    outside.mkdir()
    write_nxstxm(outside / "secret.hdf5", made.stack)
    folder = tmp_path / "run"
    write_run(folder, made)
    with h5py.File(folder / "scan.hdf5", "r+") as file:
        del file["entry1/counter0/data"]
        file["entry1/counter0/data"] = h5py.ExternalLink(
            "../outside/secret.hdf5", "/entry1/counter0/data"
        )
    check_refused(folder, capsys, "scan.hdf5", "outside the folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stack: a\nstack: b\n", "'stack'"),
        ("stack: a\nsizes: 3\n", "sizes: unknown key"),
        ("stack: !!python/name:os.system\n", "not a valid YAML file"),
        ("stack: [unclosed\n", "not a valid YAML file"),
    ],
)
def test_yaml_that_is_not_a_description(tmp_path, capsys, text, expected):
    (tmp_path / "run.yaml").write_text(text)
    check_refused(tmp_path, capsys, "run.yaml", expected)


def test_check_names_every_mistake_at_once(tmp_path, capsys, made):
    np.save(tmp_path / "mask.npy", np.ones((10, 12), bool))
    path = write_run(tmp_path, made, i0={"mask": "mask.npy"})
    write_references(tmp_path, low=637.0)
    assert cli.main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert "(10, 12)" in error
    assert "reference 'mn" in error
    content = description()
    path.write_text(yaml.safe_dump(content))
    write_references(tmp_path)
    assert cli.main(["check", str(path), "--memory"]) == 0
    assert "GiB of memory" in capsys.readouterr().out
