"""Every format in a real window: its values lie where they should, the right way up, in nm."""

from __future__ import annotations

import time

import h5py
import make_files
import make_text_files
import numpy as np
import pytest
import xarray as xr
from make_results import make_tree
from napari_window import MANIFEST, opened_window, settle

from spectromap.io.results import write_result
from spectromap.plugin import _layers
from spectromap.plugin._frames import InFile
from spectromap.plugin.reader import ENDINGS, get_reader, read_layers

pytestmark = pytest.mark.viewer

ENERGIES = make_files.ENERGIES
COUNTS = make_files.counts(4, 3, 5)


def pollux(folder):
    return make_files.pollux(folder / "pollux.hdf5"), COUNTS, 12000.0, -3000.0, 50.0, 50.0


def downwards(folder):
    """An axis that goes down in the file goes up in the window."""
    y = make_files.Y_UM[::-1]
    path = make_files.pollux(folder / "down.hdf5", y=y)
    return path, COUNTS[:, ::-1], 12000.0, -3000.0, 50.0, 50.0


def als(folder):
    path = make_text_files.als_stack(folder, COUNTS, ENERGIES, origin=(-5.0, 7.0))
    return path, COUNTS, 7000.0, -5000.0, 40.0, 50.0


def axis2000(folder):
    path = make_text_files.ncb(folder, COUNTS, ENERGIES, scale=1.0, x=(1.0, 3.0), y=(2.0, 2.5))
    return path, COUNTS, 2000.0, 1000.0, 250.0, 500.0


def tiff(folder):
    path = make_text_files.tiff(folder / "stack.tif", COUNTS.astype(np.uint16))
    text = "# pixel_nm: 40\n# origin_nm: 100, 200\n# quantity: counts\n"
    path.with_suffix(".txt").write_text(text + "\n".join(f"{e:g}" for e in ENERGIES) + "\n")
    return path, COUNTS, 100.0, 200.0, 40.0, 40.0


def cxi(folder):
    images = [make_files.complex_image(12, 10, 20.0 + k) for k in range(4)]
    path = make_files.cxi_entries(folder / "scan.cxi", ENERGIES, images)
    return path, np.abs(images), None, None, 5.0, 5.0


AXES = (("z", 6, 12.0), ("y", 7, 10.0), ("x", 8, 9.0))
FORMATS = (pollux, downwards, als, axis2000, tiff, cxi)


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_a_stack_lies_where_it_was_measured(window, tmp_path, make):
    path, values, y0, x0, dy, dx = make(tmp_path)
    layer = window.open(path)[-1]
    stack = _layers.content_of(layer).array
    y0 = float(stack.y[0]) if y0 is None else y0
    x0 = float(stack.x[0]) if x0 is None else x0
    assert layer.axis_labels == ("energy", "y", "x")
    assert [str(unit) for unit in layer.units] == ["pixel", "nanometer", "nanometer"]
    np.testing.assert_allclose(layer.scale, (1, dy, dx), rtol=1e-5)
    np.testing.assert_allclose(layer.translate, (0, y0, x0), atol=1e-2)
    for k, i, j in ((0, 0, 0), (1, 2, 0), (3, 0, 4), (2, 2, 3)):
        window.viewer.dims.set_current_step(0, k)
        found = layer.get_value((k, y0 + i * dy, x0 + j * dx), world=True)
        assert found == pytest.approx(values[k, i, j], rel=1e-6), (k, i, j)
    window.picture(tmp_path / f"{make.__name__}.png")
    assert not [message for severity, message in window.messages if severity == "error"]


def test_a_complex_stack_is_amplitude_and_hidden_phase(window, tmp_path):
    path = cxi(tmp_path)[0]
    phase, amplitude = window.open(path)
    assert amplitude.name.endswith("/ amplitude")
    assert amplitude.visible
    assert phase.name.endswith("/ phase [rad]")
    assert not phase.visible
    stack = _layers.content_of(phase).array
    shown = np.asarray(phase.data[2])
    np.testing.assert_allclose(shown, np.angle(stack[2].values), atol=1e-6)


def test_y_points_upwards_on_the_screen(window, tmp_path):
    """The brightest corner of the field is the upper right one, as its coordinates say."""
    data = np.full((4, 30, 40), 100.0)
    data[:, 20:, 30:] = 1000.0
    data[:, 20:, :10] = 500.0
    y, x = 3.0 + 0.02 * np.arange(30), 1.0 + 0.02 * np.arange(40)
    (layer,) = window.open(make_files.pollux(tmp_path / "corner.hdf5", data=data, y=y, x=x))
    np.testing.assert_allclose(layer.contrast_limits, (100, 1000))
    brightness = {
        (row, column): window.colour_at(3000 + row * 20, 1000 + column * 20)[0]
        for row, column in ((5, 5), (5, 35), (25, 5), (25, 35))
    }
    window.picture(tmp_path / "corner.png")
    assert brightness[25, 35] > 250
    assert brightness[5, 5] < 5
    assert brightness[5, 35] < 5
    assert 90 < brightness[25, 5] < 130
    assert window.viewer.canvas.overlays.scale_bar.visible


def test_the_edge_of_a_pixel_is_half_a_step_from_its_centre(window, tmp_path):
    data = np.full((4, 12, 16), 100.0)
    data[:, 6, 8] = 1000.0
    y, x = 0.05 * np.arange(12), 0.05 * np.arange(16)
    (layer,) = window.open(make_files.pollux(tmp_path / "dot.hdf5", data=data, y=y, x=x))
    layer.contrast_limits = (100, 1000)
    assert window.colour_at(300 + 20, 400 + 20)[0] > 250
    assert window.colour_at(300 - 20, 400 - 20)[0] > 250
    assert window.colour_at(300 + 30, 400)[0] < 5
    assert window.colour_at(300, 400 - 30)[0] < 5


def test_the_energy_is_shown_in_eV(window, tmp_path):
    window.open(make_files.pollux(tmp_path / "scan.hdf5"))
    text, dims = window.viewer.canvas.overlays.text, window.viewer.dims
    for step, energy in enumerate(ENERGIES):
        dims.set_current_step(0, step)
        assert text.visible
        assert text.text == f"{energy:.2f} eV"
        assert dims.axis_labels == (f"{energy:.2f} eV", "y", "x")
    dims.set_current_step(0, 0)
    window.picture(tmp_path / "energy.png")
    window.viewer.layers.clear()
    assert not text.visible


def test_two_stacks_of_other_energies_both_say_theirs(window, tmp_path):
    window.open(make_files.pollux(tmp_path / "mn.hdf5"))
    window.open(make_files.pollux(tmp_path / "ni.hdf5", energy=850.0 + np.arange(4)))
    window.viewer.dims.set_current_step(0, 1)
    text = window.viewer.canvas.overlays.text.text
    assert text.splitlines() == ["851.00 eV  ni", "640.50 eV  mn"]
    window.picture(tmp_path / "two.png")
    window.viewer.layers["ni"].visible = False
    window.viewer.dims.set_current_step(0, 2)
    assert window.viewer.canvas.overlays.text.text == "642.25 eV"


def test_files_opened_together_are_one_series(window, tmp_path):
    paths = []
    for number in (0, 2, 1):
        path = tmp_path / f"scan_{number}.cxi"
        paths.append(make_files.cosmic(path, 850.0 + number, corner=None, pixnm=4.0))
    layers = window.open([str(path) for path in paths], stack=True)
    assert layers[-1].data.shape == (3, 12, 10)
    np.testing.assert_allclose(_layers.content_of(layers[-1]).energies, [850, 851, 852])


# --------------------------------------------------------------------------------------------
# Results


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return write_result(make_tree(), tmp_path_factory.mktemp("result") / "result.h5")


@pytest.fixture(scope="module")
def opened(napari_with_plugin, result):
    """A result in a window, for tests that only look at it."""
    with opened_window(napari_with_plugin) as window:
        window.layers = window.open(result)
        yield window


def test_a_result_opens_with_everything_and_shows_what_matters(opened, tmp_path):
    maps = _layers.content_of(opened.layers[0]).result["/entry/maps"]
    shown = [layer.name for layer in opened.layers if layer.visible]
    assert shown == ["thickness [nm]", "Mn³⁺ fraction", "particles"]
    found = {_layers.content_of(layer).variable for layer in opened.layers}
    assert found == {str(name) for name in maps.data_vars}
    for layer in opened.layers:
        content = _layers.content_of(layer)
        assert [str(unit) for unit in layer.units] == ["nanometer"] * 2
        assert layer.axis_labels == ("y", "x")
        np.testing.assert_allclose(layer.translate, (maps.y[0], maps.x[0]))
        if content.raw:
            np.testing.assert_array_equal(layer.data, content.array.values)
    opened.picture(tmp_path / "result.png")


def test_the_fraction_is_drawn_only_where_it_says_something(opened):
    layer = next(one for one in opened.layers if one.name == "Mn³⁺ fraction")
    values = _layers.content_of(layer).array.values
    drawn = np.isfinite(layer.data)
    np.testing.assert_array_equal(layer.data[drawn], values[drawn])
    assert 0.1 < drawn.mean() < 0.5
    assert layer.colormap.name == "viridis"
    assert -0.1 < layer.contrast_limits[0] < layer.contrast_limits[1] < 0.7
    assert layer.colorbar.visible


def test_labels_carry_their_table(opened):
    layer = opened.layers[-1]
    table = layer.features
    particles = _layers.content_of(layer).result["/entry/particles"]
    assert list(table["index"]) == [1, 2, 3, 4]
    np.testing.assert_allclose(table["area"], particles["area"])
    assert list(table["verdict"]) == ["diffusion", "undecided", "core-shell", "undecided"]
    assert layer.contour == 1
    y, x = float(particles["y"][2]), float(particles["x"][2])
    assert layer.get_value((y, x), world=True) == 3
    status = layer.get_status((y, x), world=True)
    assert "verdict: core-shell" in status["coordinates"]


def test_flags_say_what_they_mean(opened):
    layer = next(one for one in opened.layers if one.name == "maps / flags")
    meanings = dict(zip(layer.features["index"], layer.features["meaning"], strict=True))
    assert meanings[9] == "no_data, dead"
    assert set(meanings) == set(np.unique(layer.data)) - {0}


def test_large_maps_are_read_when_they_are_shown(window, result, monkeypatch):
    eager = {layer.name: layer for layer in window.open(result)}
    window.viewer.layers.clear()
    monkeypatch.setattr("spectromap.plugin.reader.LARGE_BYTES", 1000)
    read = []
    whole = InFile.__getitem__
    monkeypatch.setattr(
        InFile, "__getitem__", lambda one, key: read.append(one.name) or whole(one, key)
    )
    lazy = window.open(result)
    assert [layer.name for layer in lazy] == list(eager)
    assert "/entry/maps/thickness" in read, "what is shown is read"
    for name in ("chi2", "edge_distance", "agglomerate_label", "flags"):
        layer = window.viewer.layers[next(one for one in eager if f"/ {name}" in one)]
        expected = eager[layer.name]
        if name != "flags":  # which tell what is reliable
            assert f"/entry/maps/{name}" not in read
        layer.visible = True
        settle()
        assert f"/entry/maps/{name}" in read
        np.testing.assert_array_equal(layer.data, expected.data)
        if name.endswith("label"):
            layer.data_setitem((np.array([0]), np.array([0])), 7)
            assert layer.data[0, 0] == 7, "labels can be painted on"
        elif name == "flags":
            assert layer.features.equals(expected.features)
        else:
            assert tuple(layer.contrast_limits) == tuple(expected.contrast_limits)
        layer.visible = False


def test_stack_and_result_lie_on_each_other(window, result, tmp_path):
    maps = window.open(result)[-1]
    places = {axis: _layers.content_of(maps).array[axis].values / 1e3 for axis in ("y", "x")}
    data = np.random.default_rng(0).poisson(1000, (4, 48, 64)).astype(float)
    (stack,) = window.open(make_files.pollux(tmp_path / "scan.hdf5", data=data, **places))
    np.testing.assert_allclose(stack.extent.world[:, 1:], maps.extent.world, atol=1e-2)
    window.picture(tmp_path / "both.png")


def test_a_volume_lies_in_space_too(window, tmp_path):
    """Groups of other techniques hold volumes; their axes are z, y, x in nm."""
    tree = make_tree()
    places = {name: (name, step * np.arange(n)) for name, n, step in AXES}
    values = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    strain = xr.DataArray(values, dims=("z", "y", "x"), coords=places, attrs={"units": "1"})
    tree["/entry/bcdi"] = xr.DataTree(xr.Dataset({"strain": strain}))
    path = write_result(tree, tmp_path / "result.h5")
    layer = next(one for one in window.open(path) if one.name == "bcdi / strain")
    assert not layer.visible
    assert layer.ndim == 3
    np.testing.assert_allclose(layer.scale, [step for _, _, step in AXES])
    assert [str(unit) for unit in layer.units] == ["nanometer"] * 3
    window.viewer.layers.clear()
    window.viewer.add_layer(layer)
    layer.visible = True
    window.viewer.dims.ndisplay = 3
    window.picture(tmp_path / "volume.png")
    assert not window.viewer.canvas.overlays.text.visible, "a volume has no energy"


# --------------------------------------------------------------------------------------------
# What cannot be opened


def test_other_files_are_left_to_others(tmp_path):
    for name in ("notes.txt", "photo.png", "no-such-file.hdf5", "plain"):
        if "no-such" not in name:
            (tmp_path / name).write_bytes(b"something")
        assert get_reader(str(tmp_path / name)) is None
    assert get_reader(str(tmp_path)) is None
    assert get_reader([]) is None
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"not a picture")
    assert get_reader(str(broken)) is None


def test_the_manifest_names_the_endings_that_are_asked():
    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(MANIFEST)
    patterns = manifest.contributions.readers[0].filename_patterns
    assert patterns == [f"*{ending}" for ending in ENDINGS]
    manifest.validate_imports()


def wrong_hdf5(folder):
    with h5py.File(folder / "wrong.h5", "w") as file:
        file["numbers"] = [1, 2]
    return folder / "wrong.h5", "no reader takes this file"


def truncated(folder):
    whole = make_files.pollux(folder / "whole.hdf5")
    return make_files.cut(whole, folder / "cut.hdf5", 0.7), "truncated"


def text_file(folder):
    (folder / "notes.dat").write_text("these are notes")
    return folder / "notes.dat", "no reader takes this file"


def old_result(folder):
    write_result(make_tree(), folder / "future.h5")
    with h5py.File(folder / "future.h5", "r+") as file:
        file["entry"].attrs["schema_version"] = 99
    return folder / "future.h5", "Update spectromap"


@pytest.mark.parametrize("make", [wrong_hdf5, truncated, text_file, old_result])
def test_a_wrong_file_gives_a_message_and_nothing_else(window, tmp_path, make):
    path, expected = make(tmp_path)
    assert window.open(path) == []
    ((severity, message),) = window.messages
    assert severity == "error"
    assert expected in message
    assert "Traceback" not in message
    assert window.open(make_files.pollux(tmp_path / "good.hdf5"))


def test_what_is_odd_about_a_file_is_told(window, tmp_path):
    path = make_files.pollux(tmp_path / "twice.hdf5", energy=[640.0, 641.0, 641.0, 642.0])
    assert window.open(path)
    ((severity, message),) = window.messages
    assert severity == "warning"
    assert "more than once" in message


def test_a_file_that_breaks_while_it_is_open(window, tmp_path, monkeypatch):
    monkeypatch.setattr("spectromap.plugin._frames.KEPT_BYTES", 64 * 64 * 4)  # none read ahead
    data = np.random.default_rng(1).random((12, 64, 64))
    path = make_files.packed_frames(tmp_path / "scan.hdf5", data, "gzip")
    (layer,) = window.open(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    for step in (1, 2, 3, 4):
        window.viewer.dims.set_current_step(0, step)
        settle()
    told = [message for severity, message in window.messages if severity == "error"]
    assert len(told) == 1, "once is enough"
    assert "truncated" in told[0] or "damaged" in told[0]
    window.viewer.layers.remove(layer)
    path.write_bytes(content)
    (again,) = window.open(path)
    window.viewer.dims.set_current_step(0, 3)
    assert again.get_value((3, 0, 0), world=True) == pytest.approx(data[3, 0, 0])


# --------------------------------------------------------------------------------------------
# Large ones


def sparse(path, shape=(60, 8192, 8192)):
    """A file that claims 16 GB and holds nothing: chunks never written read as the fill value."""
    with h5py.File(path, "w") as file:
        data = make_files.nexus(make_files.nexus(file, "entry1", "NXentry"), "counter0", "NXdata")
        make_files.text(file["entry1"], "definition", "NXstxm")
        data.attrs["signal"] = np.bytes_("data")
        data.attrs["axes"] = np.array([b"energy", b"sample_y", b"sample_x"])
        data.create_dataset(
            "data", shape, "f4", chunks=(1, *shape[1:]), fillvalue=1000.0, compression="gzip"
        )
        data["energy"] = 638.0 + 0.25 * np.arange(shape[0])
        data["sample_y"], data["sample_x"] = (0.01 * np.arange(n) for n in shape[1:])
    return path


def test_a_stack_larger_than_memory_opens_at_once(window, tmp_path):
    path = sparse(tmp_path / "large.hdf5")
    assert path.stat().st_size < 10_000_000
    spent = []
    for _ in range(2):
        window.viewer.layers.clear()
        # Nothing is waited for: what the processor works is what it takes when others rest.
        worked = time.process_time()
        (layer,) = window.open(path)
        spent.append(time.process_time() - worked)
    assert layer.data[0].nbytes == 60 * 8192**2 * 4
    blocks = _layers.content_of(layer).frames
    assert set(blocks.kept) == {29}, "only the frame that is shown is read"
    assert min(spent) < 2.0
    window.viewer.dims.set_current_step(0, 45)
    settle()
    assert sum(block.nbytes for block in blocks.kept.values()) <= 2**30


def test_a_large_frame_lies_where_a_small_one_does(window, tmp_path):
    """Of large frames a coarse copy is drawn, which must not lie beside the fine one."""
    shape = (4, 2, 5000)
    data = np.full(shape, 100.0, dtype=np.float32)
    data[:, :, 2000:3000] = 1000.0
    y, x = 0.01 * np.arange(2) * 500, 0.01 * np.arange(shape[2])
    path = make_files.pollux(tmp_path / "wide.hdf5", data=data, y=y, x=x)
    (layer,) = window.open(path)
    assert layer.multiscale
    window.viewer.fit_to_view()
    settle()
    nm_per_px = 1 / window.viewer.scene.camera.zoom
    for edge, sign in ((20_000, 1), (30_000, -1)):
        assert window.colour_at(2500, edge + sign * 4 * nm_per_px)[0] > 250
        assert window.colour_at(2500, edge - sign * 4 * nm_per_px)[0] < 5


def test_frames_once_seen_are_kept_and_no_more_than_memory_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("spectromap.plugin._frames.KEPT_BYTES", 3 * 64 * 64 * 4)
    data = np.random.default_rng(1).random((12, 64, 64))
    path = make_files.packed_frames(tmp_path / "scan.hdf5", data, "gzip")
    ((values, options, _),) = read_layers(path)
    blocks = options["metadata"][_layers.KEY].frames
    for step in (0, 1, 2, 3, 2, 4):
        np.testing.assert_allclose(np.asarray(values[step]), data[step], rtol=1e-6)
    assert len(blocks.kept) <= 3
