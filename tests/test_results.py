"""The result file: two readers agree bit for bit, NeXus viewers find it, and it is never half."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import dask.array
import h5py
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from make_results import make_tree, only_maps, with_lazy_map, without_particles

from spectromap.io.results import (
    LOCK_NAME,
    read_result,
    result_lock,
    write_result,
    write_tables,
)
from spectromap.schema import RESULT_GROUPS, FileError, InputError

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def tree():
    return make_tree()


@pytest.fixture(scope="module")
def file(tree, tmp_path_factory):
    return write_result(tree, tmp_path_factory.mktemp("result") / "result.h5")


def in_a_process(code, *arguments):
    """Run code in its own process; gives the finished process."""
    preamble = f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- what is read is what was written ----------------------------------------------------------


def test_reading_gives_back_the_tree(tree, file):
    again = read_result(file)
    xr.testing.assert_identical(tree, again)
    for node in tree.subtree:
        for name, variable in node.variables.items():
            kind = object if variable.dtype.kind == "U" else variable.dtype
            assert again[node.path].variables[name].dtype == kind, (node.path, name)
    assert type(again["entry"].attrs["schema_version"]) is int


def test_reading_twice_changes_nothing(file, tmp_path):
    once = read_result(file)
    xr.testing.assert_identical(once, read_result(write_result(once, tmp_path / "again.h5")))


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_both_netcdf_engines_read_every_bit(tree, file, engine):
    with xr.open_datatree(file, engine=engine) as opened:
        assert {g for g in opened["entry"].children} == set(RESULT_GROUPS)
        assert not opened.variables
        assert not opened["entry"].variables
        for group in RESULT_GROUPS:
            want = tree[f"entry/{group}"].to_dataset(inherit=False)
            got = opened[f"entry/{group}"].to_dataset(inherit=False)
            assert set(got.variables) == set(want.variables)
            assert set(got.coords) == set(want.coords)
            for name in want.variables:
                assert_same_bits(got[name], want[name])


def assert_same_bits(got, want):
    assert got.dims == want.dims
    if want.dtype.kind in "OU":
        assert [str(v) for v in np.ravel(got.values)] == [str(v) for v in np.ravel(want.values)]
        return
    assert got.dtype == want.dtype
    assert got.values.tobytes() == want.values.tobytes()
    assert got.attrs.get("units") == want.attrs.get("units")


def test_file_is_closed_after_reading(file, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(file.read_bytes())
    read_result(copy)
    with h5py.File(copy, "r+"):
        pass


def test_flags_keep_their_meaning(file):
    with xr.open_datatree(file, engine="netcdf4") as opened:
        attrs = opened["entry/maps/flags"].attrs
    assert attrs["flag_meanings"].split()[5] == "model_rejected"
    assert list(attrs["flag_masks"]) == [1, 2, 4, 8, 16, 32]


def test_no_particles(tree, tmp_path):
    empty = without_particles(tree)
    file = write_result(empty, tmp_path / "empty.h5")
    xr.testing.assert_identical(empty, read_result(file))
    with xr.open_datatree(file, engine="netcdf4") as opened:
        assert opened["entry/particles"].sizes["particle"] == 0
        assert opened["entry/particles/reason"].dtype.kind in "OUT"


def test_several_edges_and_nested_groups(tree, tmp_path):
    more = tree.copy(deep=True)
    nickel = more["entry/maps"].to_dataset()
    nickel = nickel.rename({n: n.replace("mn3", "ni3") for n in nickel.data_vars if "mn3" in n})
    nickel.attrs["fraction"] = "ni3"
    more["entry/maps_ni_l3"] = xr.DataTree(nickel)
    volume = xr.Dataset({"amplitude": (("z", "y", "x"), np.ones((2, 3, 4), np.float32))})
    more["entry/bcdi/object"] = xr.DataTree(volume)
    file = write_result(more, tmp_path / "more.h5")
    xr.testing.assert_identical(more, read_result(file))
    with h5py.File(file) as raw:
        assert raw["entry/maps_ni_l3"].attrs["signal"] == "ni3_fraction_nonnegative"
        assert raw["entry/bcdi/object"].attrs["signal"] == "amplitude"


def test_long_attributes(tmp_path):
    big = only_maps()
    big["entry/process"] = xr.DataTree()
    big["entry/process"].attrs["warnings"] = json.dumps(["é" * 100] * 3000)
    file = write_result(big, tmp_path / "big.h5")
    for engine in ("h5netcdf", "netcdf4"):
        with xr.open_datatree(file, engine=engine) as opened:
            text = opened["entry/process"].attrs["warnings"]
        assert text == big["entry/process"].attrs["warnings"]


def test_missing_text_becomes_empty(tree, tmp_path):
    some = tree.copy(deep=True)
    particles = some["entry/particles"].to_dataset()
    particles["reason"] = ("particle", np.array(["", None, np.nan, "zu dünn"], dtype=object))
    some["entry/particles"] = xr.DataTree(particles)
    again = read_result(write_result(some, tmp_path / "r.h5"))
    assert list(again["entry/particles/reason"].values) == ["", "", "", "zu dünn"]


words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(words, max_size=5),
    attr=words,
    number=st.floats(allow_nan=False),
    count=st.integers(-(2**62), 2**62),
)
def test_any_text_and_number_survives(tmp_path, names, attr, number, count):
    dataset = xr.Dataset(
        {
            "reason": ("particle", np.array(names, dtype=object), {"text": attr}),
            "used": ("particle", np.arange(len(names)) % 2 == 0),
            "depth": ("particle", np.full(len(names), number)),
        },
        attrs={"text": attr, "number": number, "count": count},
    )
    tree = xr.DataTree.from_dict({"/entry": xr.Dataset(), "/entry/particles": dataset})
    again = read_result(write_result(tree, tmp_path / "any.h5"))["entry/particles"].to_dataset()
    xr.testing.assert_identical(again, dataset)
    assert again["reason"].dtype == object
    assert again["used"].dtype == bool


# --- NeXus -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silx():
    """silx, where it is installed: it is no dependency, only a witness."""
    pytest.importorskip("silx.io.nxdata")
    import silx

    return silx


def test_silx_finds_the_default_plot(tree, file, silx):
    maps = tree["entry/maps"]
    with silx.io.open(str(file)) as opened:
        default = silx.io.nxdata.get_default(opened)
        assert default is not None
        assert default.is_valid
        assert default.signal.name == "/entry/maps/mn3_fraction_nonnegative"
        assert default.axes_dataset_names == ["y", "x"]
        shown = maps["mn3_fraction_nonnegative"].values
        np.testing.assert_array_equal(default.signal[()], shown)
        np.testing.assert_array_equal(default.axes[1][()], maps["x"].values)
        assert default.axes[0].attrs["units"] == "nm"
        assert "mn3_fraction" in default.auxiliary_signals_dataset_names
        assert "thickness" in default.auxiliary_signals_dataset_names


def test_every_group_is_valid_nexus(file, silx):
    signals = {}
    with silx.io.open(str(file)) as opened:
        assert opened.attrs["NX_class"] == "NXroot"
        assert opened["entry"].attrs["NX_class"] == "NXentry"
        for name, group in opened["entry"].items():
            if group.attrs["NX_class"] == "NXdata":
                data = silx.io.nxdata.NXdata(group)
                assert data.is_valid, data.issues
                signals[name] = data.signal.name.split("/")[-1]
    assert signals == {
        "shifts": "shift_y",
        "spectra": "mean_od",
        "maps": "mn3_fraction_nonnegative",
        "particles": "mn3_fraction",
        "profiles": "mn3_fraction",
        "models": "D_cm2_s",
        "pooled": "log10_D",
        "heterogeneity": "difference",
        "oxygen": "li_tm",
    }


def test_nexus_attributes(file):
    with h5py.File(file) as raw:
        entry = raw["entry"]
        assert raw.attrs["default"] == "entry"
        assert entry.attrs["default"] == "maps"
        assert int(np.ravel(entry.attrs["schema_version"])[0]) == 1
        assert entry["process"].attrs["NX_class"] == "NXprocess"
        # text is never a plot axis
        assert list(entry["models"].attrs["axes"]) == ["particle", "."]
        assert list(np.atleast_1d(entry["heterogeneity"].attrs["axes"])) == ["."]
        assert entry["profiles/mn3_fraction"].attrs["interpretation"] == "spectrum"
        assert "axes" not in entry["pooled"].attrs
        # what NeXus viewers read of a bool is a number
        assert entry["shifts/flagged"].dtype == np.int8
        assert entry["maps/thickness"].attrs["units"] == "nm"


def test_a_group_without_numbers_is_no_plot(tree, tmp_path, silx):
    file = write_result(without_particles(tree), tmp_path / "empty.h5")
    with silx.io.open(str(file)) as opened:
        assert opened["entry/profiles"].attrs["NX_class"] == "NXcollection"
        assert silx.io.nxdata.get_default(opened).is_valid


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, [1, 2], {"a": 1}, 1 + 2j, np.zeros((2, 2)), b"bytes"])
def test_attributes_are_numbers_and_strings(tree, tmp_path, value):
    bad = tree.copy(deep=True)
    bad["entry/maps"].attrs["odd"] = value
    with pytest.raises(InputError, match=r"/entry/maps.*'odd'.*numbers or strings"):
        write_result(bad, tmp_path / "r.h5")
    assert not list(tmp_path.iterdir())


def test_a_bool_attribute_becomes_a_number(tmp_path):
    some = only_maps()
    some["entry/maps"].attrs["scaled"] = True
    again = read_result(write_result(some, tmp_path / "r.h5"))
    assert again["entry/maps"].attrs["scaled"] == 1


def test_data_outside_the_groups_are_refused(tree, tmp_path):
    bad = tree.copy(deep=True)
    bad["entry"].dataset = xr.Dataset(coords={"field": [1.0]})
    with pytest.raises(InputError, match="'/entry' may carry attributes only, not field"):
        write_result(bad, tmp_path / "r.h5")
    with pytest.raises(InputError, match="no group 'entry'"):
        write_result(xr.DataTree(), tmp_path / "r.h5")


def test_complex_values_are_refused(tree, tmp_path):
    bad = with_lazy_map(tree, np.zeros((48, 64), complex))
    with pytest.raises(InputError, match=r"maps/thickness.*complex"):
        write_result(bad, tmp_path / "r.h5")


def test_reading_what_is_no_result(tmp_path, file):
    with pytest.raises(FileError, match="no such file"):
        read_result(tmp_path / "missing.h5")
    text = tmp_path / "text.h5"
    text.write_text("Mn3+")
    with pytest.raises(FileError, match=r"text\.h5.*not a readable HDF5 file"):
        read_result(text)
    whole = file.read_bytes()
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="truncated"):
        read_result(truncated)
    other = tmp_path / "scan.hdf5"
    with h5py.File(other, "w") as raw:
        raw["entry1/counter0/data"] = np.zeros((2, 2))
    with pytest.raises(FileError, match="not a result of spectromap"):
        read_result(other)


def test_damaged_values(tmp_path, file):
    damaged = tmp_path / "damaged.h5"
    with h5py.File(file) as raw:
        header = h5py.h5o.get_info(raw["entry/maps/chi2"].id).addr
    content = bytearray(file.read_bytes())
    content[header : header + 64] = b"\xff" * 64
    damaged.write_bytes(bytes(content))
    with pytest.raises(FileError, match=r"damaged\.h5: .*cannot be read.*run the analysis"):
        read_result(damaged)


@pytest.mark.parametrize(("version", "advice"), [(99, "Update spectromap"), (0, "Run it again")])
def test_other_schema_versions(tmp_path, version, advice):
    other = only_maps()
    other["entry"].attrs["schema_version"] = version
    file = write_result(other, tmp_path / "r.h5")
    with pytest.raises(
        FileError, match=f"schema_version {version}; this release reads 1.*{advice}"
    ):
        read_result(file)


# --- whole or not at all -----------------------------------------------------------------------


def failing(shape, error):
    """A lazy map whose last block fails."""

    def block(block_info=None):
        if block_info[None]["chunk-location"][0] == 2:
            raise error
        return np.ones(block_info[None]["chunk-shape"], np.float32)

    rows = (shape[0] // 3,) * 3
    return dask.array.map_blocks(block, chunks=(rows, (shape[1],)), dtype=np.float32)


def test_lazy_maps_are_written_block_by_block(tmp_path):
    values = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    lazy = with_lazy_map(only_maps(), dask.array.from_array(values, chunks=(16, 64)))
    again = read_result(write_result(lazy, tmp_path / "r.h5"))
    np.testing.assert_array_equal(again["entry/maps/thickness"].values, values)


def test_large_maps_are_compressed(tmp_path):
    large = only_maps()
    maps = make_tree(shape=(300, 400))["entry/maps"].to_dataset()
    large["entry/maps"] = xr.DataTree(maps)
    file = write_result(large, tmp_path / "r.h5")
    assert file.stat().st_size < 0.6 * maps.nbytes
    xr.testing.assert_identical(large, read_result(file))


@pytest.mark.parametrize("error", [ValueError("no such luck"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_the_old_file(tmp_path, error):
    path, tree = tmp_path / "result.h5", only_maps()
    bad = with_lazy_map(tree, failing((48, 64), error))
    with pytest.raises(type(error)):
        write_result(bad, path)
    assert not list(tmp_path.iterdir())
    write_result(tree, path)
    before = path.read_bytes()
    with pytest.raises(type(error)):
        write_result(bad, path)
    assert [p.name for p in tmp_path.iterdir()] == ["result.h5"]
    assert path.read_bytes() == before


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = write_result(only_maps(), tmp_path / "result.h5")
    before = path.read_bytes()
    code = """
        import os, signal, sys
        from make_results import only_maps, with_lazy_map
        from spectromap.io.results import write_result
        import dask.array, numpy as np
        def block(block_info=None):
            if block_info[None]["chunk-location"][0] == 2: os.kill(os.getpid(), signal.SIGKILL)
            return np.ones(block_info[None]["chunk-shape"], np.float32)
        lazy = dask.array.map_blocks(block, chunks=((16,) * 3, (64,)), dtype=np.float32)
        write_result(with_lazy_map(only_maps(), lazy), sys.argv[1])
    """
    ended = in_a_process(code, path)
    assert ended.returncode == -9, ended.stderr
    assert path.read_bytes() == before
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"result.h5", "result.h5.part"}
    write_result(only_maps(seed=1), path)  # the leftover is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["result.h5"]
    read_result(path)


def test_a_disk_that_fills(tmp_path):
    """A limit on the size of files makes real writes fail, early, in the middle and at the end."""
    code = """
        import os, resource, sys
        from make_results import only_maps
        from spectromap.io.results import write_result
        from spectromap.schema import FileError
        folder = sys.argv[1]
        tree = only_maps()
        whole = write_result(tree, folder + "/whole.h5").stat().st_size
        os.remove(folder + "/whole.h5")
        for share in (0.01, 0.5, 0.95, 0.999):
            limit = int(share * whole)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                write_result(tree, folder + "/result.h5")
            except FileError as error:
                assert "result.h5: could not be written (File too large)" in str(error), error
                assert "free space" in str(error)
            else:
                raise AssertionError(f"{share} was enough")
            assert not os.listdir(folder), os.listdir(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        write_result(tree, folder + "/result.h5")
        print("survived")
    """
    ended = in_a_process(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "survived"
    assert ended.stderr == ""
    xr.testing.assert_identical(read_result(tmp_path / "result.h5"), only_maps())


def test_too_little_space_is_seen_beforehand(tree, tmp_path):
    huge = make_tree()
    maps = xr.Dataset(
        {"thickness": (("y", "x"), dask.array.zeros((10**7, 10**7), dtype=np.float32))}
    )
    huge["entry/maps"] = xr.DataTree(maps)
    with pytest.raises(FileError, match=r"result\.h5: the result needs .* MB and the disk has"):
        write_result(huge, tmp_path / "sub" / "result.h5")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_in_the_way(tree, tmp_path):
    (tmp_path / "result.h5").mkdir()
    with pytest.raises(FileError, match=r"result\.h5: could not be written"):
        write_result(tree, tmp_path / "result.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["result.h5"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    """One process reads all the time while another writes one version after the other."""
    code = """
        import sys, time
        from pathlib import Path
        from spectromap.io.results import read_result
        path, seen = Path(sys.argv[1]), []
        stop = time.monotonic() + 60
        while (not seen or seen[-1] < 5) and time.monotonic() < stop:
            if path.exists():
                tree = read_result(path)
                number = tree["entry"].attrs["number"]
                assert (tree["entry/maps/thickness"].values == number).all()
                seen.append(number)
        assert seen == sorted(seen) and seen[-1] == 5, seen
        print(len(set(seen)))
    """
    path = tmp_path / "result.h5"
    found = {}
    reader = threading.Thread(target=lambda: found.update(ended=in_a_process(code, path)))
    reader.start()
    tree = only_maps()
    for number in range(6):
        version = with_lazy_map(tree, np.full((48, 64), number, np.float32))
        version["entry"].attrs["number"] = number
        write_result(version, path)
    reader.join()
    assert found["ended"].returncode == 0, found["ended"].stderr


# --- one writer --------------------------------------------------------------------------------


def lock_of(pid, host=None, started=""):
    return json.dumps({"pid": pid, "host": host or socket.gethostname(), "started": started})


def dead_process():
    """Number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_lock_keeps_the_second_out(tmp_path):
    folder = tmp_path / "out"
    with result_lock(folder) as lock:
        held = json.loads(lock.read_text())
        assert held["pid"] == os.getpid()
        assert held["host"] == socket.gethostname()
        with (
            pytest.raises(FileError, match=f"another run is writing here .*{os.getpid()}"),
            result_lock(folder),
        ):
            pass
        assert lock.exists()
    assert not list(folder.iterdir())
    with result_lock(folder):
        pass


def test_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), result_lock(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_lock_holds_against_another_process(tmp_path):
    code = """
        import sys
        from spectromap.io.results import result_lock
        from spectromap.schema import FileError
        try:
            with result_lock(sys.argv[1]): print("got it")
        except FileError as error: print(error)
    """
    with result_lock(tmp_path):
        ended = in_a_process(code, tmp_path)
    assert "another run is writing here" in ended.stdout
    assert "got it" in in_a_process(code, tmp_path).stdout


@pytest.mark.parametrize("reused", [False, True])
def test_lock_of_a_dead_process_is_taken_over(tmp_path, caplog, reused):
    # The number may be in use again, even by ourselves: the time of the start tells.
    text = lock_of(os.getpid(), started="another boot:1") if reused else lock_of(dead_process())
    (tmp_path / LOCK_NAME).write_text(text)
    with caplog.at_level("WARNING", "spectromap"), result_lock(tmp_path) as lock:
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert "taken over" in caplog.text
    assert str(tmp_path) in caplog.text
    assert not list(tmp_path.iterdir())


def test_lock_of_another_computer_is_respected(tmp_path):
    (tmp_path / LOCK_NAME).write_text(lock_of(dead_process(), host="another-node"))
    with pytest.raises(FileError, match=r"on another-node.*delete"), result_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).exists()


def test_unreadable_lock_is_respected(tmp_path):
    (tmp_path / LOCK_NAME).write_text("")
    with pytest.raises(FileError, match="unknown"), result_lock(tmp_path):
        pass


@pytest.mark.parametrize("attempt", range(5))
def test_only_one_takes_over(tmp_path, attempt):
    """Many runs find the same stale lock at the same time."""
    (tmp_path / LOCK_NAME).write_text(lock_of(dead_process()))
    start, done = threading.Barrier(8), threading.Barrier(8)
    outcomes = []

    def run():
        start.wait()
        try:
            with result_lock(tmp_path):
                outcomes.append("in")
                done.wait()
        except FileError:
            outcomes.append("out")
            done.wait()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["out"] * 7


def test_lock_in_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be used"), result_lock(tmp_path / "file"):
        pass


# --- tables ------------------------------------------------------------------------------------


def test_tables(tree, tmp_path):
    written = write_tables(tree, tmp_path)
    assert [p.name for p in written] == ["particles.csv", "models.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models.csv", "particles.csv"]
    particles = pd.read_csv(written[0], keep_default_na=False, na_values=[""])
    assert list(particles["particle"]) == [1, 2, 3, 4]
    expected = {"area_nm2", "radius_nm", "thickness_errors_nm", "mn3_fraction", "y_nm", "used"}
    assert expected <= set(particles.columns)
    np.testing.assert_allclose(particles["area_nm2"], tree["entry/particles/area"].values)
    assert list(particles["used"]) == [True, True, True, False]
    models = pd.read_csv(written[1])
    assert len(models) == 8
    assert {"D_cm2_s", "D_low_cm2_s", "Dt_cm2", "Dt_low_cm2", "shell_low_nm"} <= set(models.columns)
    assert "fit" not in models.columns
    row = models[(models["particle"] == 3) & (models["model"] == "core-shell")].iloc[0]
    assert row["shell_thickness_nm"] == 41.2
    assert row["verdict"] == "core-shell"
    assert models["D_low_cm2_s"][2] == 0.0


def test_tables_without_particles(tree, tmp_path):
    write_tables(tree, tmp_path)
    particles, models = write_tables(without_particles(tree), tmp_path)
    assert len(pd.read_csv(particles)) == 0
    assert len(pd.read_csv(models)) == 0
    bare = xr.DataTree.from_dict({"/entry": xr.Dataset()})
    particles, models = write_tables(bare, tmp_path)
    assert particles.read_text() == "particle\n"
    assert models.read_text() == "particle,model\n"
