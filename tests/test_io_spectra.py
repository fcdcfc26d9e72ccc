"""Spectra from text: separators, headings, units, order, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from make_text_files import xdi_text

from spectromap.io.spectra import parse_units, read_spectrum, write_spectrum
from spectromap.schema import FileError, InputError

ENERGY = [640.0, 641.5, 643.25]
VALUE = [0.1, -0.25, 1.5e-3]


def check(spectrum: xr.DataArray, units: str = "1", values: list[float] | None = None) -> None:
    """Compare with the usual three points."""
    assert spectrum.dims == ("energy",)
    np.testing.assert_allclose(spectrum.energy, ENERGY)
    np.testing.assert_allclose(spectrum, VALUE if values is None else values)
    assert spectrum.energy.attrs["units"] == "eV"
    assert spectrum.attrs["units"] == units


@pytest.mark.parametrize(
    "separator", [",", ";", "\t", " ", "   ", ", ", " ; ", " \t"], ids=lambda text: repr(text)
)
@pytest.mark.parametrize(
    "heading",
    ["", "energy{0}intensity\n", "# free words\n\n", "a title\n", "# energy{0}intensity\n"],
)
@pytest.mark.parametrize("tail", ["", "{0}"])
def test_separators_and_headings(tmp_path, separator, heading, tail):
    rows = "".join(
        f"{energy}{separator}{value:.6e}{tail.format(separator)}\n"
        for energy, value in zip(ENERGY, VALUE, strict=True)
    )
    path = tmp_path / "spectrum.txt"
    path.write_text(heading.format(separator) + rows)
    spectrum = read_spectrum(path)
    check(spectrum)
    assert spectrum.attrs["units_assumed"] == 1
    assert spectrum.name == ("intensity" if "energy" in heading else "spectrum")


def test_byte_order_mark_crlf_and_quotes(tmp_path):
    path = tmp_path / "spectrum.csv"
    path.write_bytes(
        b'\xef\xbb\xbf"energy_eV","mn4_per_nm"\r\n'
        + b"".join(b"%.2f,%.6f\r\n" % pair for pair in zip(ENERGY, VALUE, strict=True))
    )
    spectrum = read_spectrum(path)
    check(spectrum, "nm-1")
    assert spectrum.name == "mn4"
    assert "units_assumed" not in spectrum.attrs
    path.write_bytes(b"\xef\xbb\xbf640,1\r\n641,2\r\n")
    np.testing.assert_allclose(read_spectrum(path).energy, [640, 641])


@pytest.mark.parametrize("separator", [";", "\t", " "])
def test_decimal_commas(tmp_path, separator):
    path = tmp_path / "spectrum.csv"
    rows = [f"{e:.3f}{separator}{v:.6f}" for e, v in zip(ENERGY, VALUE, strict=True)]
    path.write_text("\n".join(rows).replace(".", ","))
    check(read_spectrum(path))


@pytest.mark.parametrize(
    ("name", "units", "factor", "base"),
    [
        ("mn4_od", "1", 1, "mn4"),
        ("OD", "1", 1, "spectrum"),
        ("optical density", "1", 1, "spectrum"),
        ("mn3_optical_density", "1", 1, "mn3"),
        ("mn4_per_nm", "nm-1", 1, "mn4"),
        ("mn4 (1/nm)", "nm-1", 1, "mn4"),
        ("mn4 [nm-1]", "nm-1", 1, "mn4"),
        ("mn4 (nm^-1)", "nm-1", 1, "mn4"),
        ("mn4 (nm\u207b\xb9)", "nm-1", 1, "mn4"),
        ("od_per_nm", "nm-1", 1, "spectrum"),
        ("mu_per_nm", "nm-1", 1, "spectrum"),
        ("mn4_per_um", "nm-1", 1e-3, "mn4"),
        ("mn4 (cm-1)", "nm-1", 1e-7, "mn4"),
        ("mn4_cm2_per_g", "cm2 g-1", 1, "mn4"),
        ("mu/rho (cm2/g)", "cm2 g-1", 1, "mu/rho"),
        ("mu/rho (cm\xb2/g)", "cm2 g-1", 1, "mu/rho"),
        ("mass_absorption", "cm2 g-1", 1, "spectrum"),
        ("mn4_per_atom", "cm2", 1, "mn4"),
        ("sigma (cm2/atom)", "cm2", 1, "sigma"),
        ("sigma (barn/atom)", "cm2", 1e-24, "sigma"),
        ("i0_counts", "count", 1, "i0"),
        ("i0_counts_per_s", "count s-1", 1, "i0"),
        ("i0 (Hz)", "count s-1", 1, "i0"),
        ("i0 (counts/ms)", "count s-1", 1e3, "i0"),
    ],
)
def test_units_in_the_name_of_the_column(tmp_path, name, units, factor, base):
    path = tmp_path / "spectrum.csv"
    rows = "".join(f"{e},{v}\n" for e, v in zip(ENERGY, VALUE, strict=True))
    path.write_text(f"energy_eV,{name}\n{rows}", encoding="utf-8")
    spectrum = read_spectrum(path)
    check(spectrum, units, [value * factor for value in VALUE])
    assert spectrum.name == base
    assert "units_assumed" not in spectrum.attrs


@pytest.mark.parametrize(("name", "base"), [("mu(E)", "mu(E)"), ("intensity", "intensity")])
def test_units_that_nothing_tells(tmp_path, name, base):
    path = tmp_path / "spectrum.csv"
    path.write_text(f"energy,{name}\n640,1\n641,2\n")
    spectrum = read_spectrum(path)
    assert (spectrum.attrs["units"], spectrum.attrs["units_assumed"]) == ("1", 1)
    assert spectrum.name == base
    told = read_spectrum(path, units="barn/atom")
    assert told.attrs["units"] == "cm2"
    assert "units_assumed" not in told.attrs
    np.testing.assert_allclose(told, [1e-24, 2e-24])
    with pytest.raises(InputError, match="'furlong' is not a unit"):
        read_spectrum(path, units="furlong")


@pytest.mark.parametrize("units", ["1", "od", "nm-1", "cm2 g-1", "cm2", "count", "count s-1"])
def test_the_names_used_here_are_units_too(units):
    assert parse_units(units) == ("1" if units == "od" else units, 1.0)


@pytest.mark.parametrize(
    "name", ["energy (keV)", "energy_keV", "Photon Energy [keV]", "keV", "E (keV)"]
)
def test_energies_in_kev(tmp_path, name):
    path = tmp_path / "spectrum.csv"
    rows = "".join(f"{e / 1000},{v}\n" for e, v in zip(ENERGY, VALUE, strict=True))
    path.write_text(f"{name},mn4\n{rows}")
    check(read_spectrum(path))


def test_kev_without_a_word_is_refused(tmp_path):
    path = tmp_path / "spectrum.csv"
    path.write_text("energy,od\n0.640,1\n0.641,2\n")
    with pytest.raises(FileError, match=r"lie outside.*write the unit keV"):
        read_spectrum(path)


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_headings_with_units_in_brackets(tmp_path, separator):
    path = tmp_path / "spectrum.txt"
    heading = f"Energy (keV){separator}mu (cm2/g)\n"
    path.write_text(heading + f"0.640{separator}1\n0.641{separator}2\n")
    spectrum = read_spectrum(path)
    np.testing.assert_allclose(spectrum.energy, [640, 641])
    assert (spectrum.name, spectrum.attrs["units"]) == ("mu", "cm2 g-1")


def test_the_caller_knows_better_than_the_name(tmp_path):
    path = tmp_path / "spectrum.csv"
    path.write_text("energy_eV,mn4_od\n640,1\n641,2\n")
    assert read_spectrum(path, units="per_nm").attrs["units"] == "nm-1"


def test_energy_need_not_come_first(tmp_path):
    path = tmp_path / "spectrum.csv"
    path.write_text("sample,index,energy_loss_eV,intensity_od\nMn2,6,640,1\nMn2,6,641,2\n")
    spectrum = read_spectrum(path, column="intensity")
    np.testing.assert_allclose(spectrum.energy, [640, 641])
    np.testing.assert_allclose(spectrum, [1, 2])


def test_choosing_a_column(tmp_path, caplog):
    path = tmp_path / "spectra.csv"
    path.write_text("energy_eV,mn4_per_nm,mn4_per_nm_errors,mn3_od\n640,1,0.1,10\n641,2,0.1,20\n")
    np.testing.assert_allclose(read_spectrum(path), [1, 2])
    assert "'mn4_per_nm' is read, not 'mn3_od'" in caplog.text
    for column in ("mn3_od", "mn3", "MN3", 4):
        spectrum = read_spectrum(path, column=column)
        np.testing.assert_allclose(spectrum, [10, 20])
        assert (spectrum.name, spectrum.attrs["units"]) == ("mn3", "1")
    for column in ("mn2", 0, 5):
        with pytest.raises(FileError, match=r"no column .*It has 'energy_eV', 'mn4_per_nm'"):
            read_spectrum(path, column=column)


def test_one_value_with_its_error_needs_no_choice(tmp_path, caplog):
    path = tmp_path / "spectrum.csv"
    path.write_text("energy_eV,mn4_per_nm,sigma\n640,1,0.1\n641,2,0.1\n")
    np.testing.assert_allclose(read_spectrum(path), [1, 2])
    assert not caplog.records


# Order


def test_digitised_curves_are_sorted_and_averaged(tmp_path, caplog):
    path = tmp_path / "digitised.csv"
    path.write_text("640,1\n642,5\n641,2\n642,7\n640.5,3\n")
    spectrum = read_spectrum(path)
    np.testing.assert_allclose(spectrum.energy, [640, 640.5, 641, 642])
    np.testing.assert_allclose(spectrum, [1, 3, 2, 6])
    assert "have been sorted; 1 repeated energies have been averaged" in caplog.text


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(6400, 6420), st.integers(-1000, 1000)), min_size=2, max_size=30
    ).filter(lambda pairs: len({energy for energy, _ in pairs}) > 1)
)
def test_any_order_gives_the_mean_at_every_energy(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("order") / "spectrum.txt"
    path.write_text("".join(f"{energy / 10} {value}\n" for energy, value in pairs))
    spectrum = read_spectrum(path)
    groups: dict[float, list[int]] = {}
    for energy, value in pairs:
        groups.setdefault(energy / 10, []).append(value)
    expected = {energy: sum(values) / len(values) for energy, values in sorted(groups.items())}
    np.testing.assert_allclose(spectrum.energy, list(expected))
    np.testing.assert_allclose(spectrum, list(expected.values()), rtol=1e-12, atol=1e-12)


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy,od\n640,1\n641,nan\n642,3\n", "line 3: column 'od' holds 'nan'"),
        ("energy,od\n640,1\n\n# c\n641,bad\n", "line 5: column 'od' holds 'bad'"),
        ("640 1\n641 2\nx 3\n642 4\n", "line 3: column 1 holds 'x'"),
        ("640,1\n641,\n642,3\n643,4\n", "line 2 has 1 columns, and column 2 is wanted"),
        ("640,1\n641,inf\n642,3\n", "line 2: column 2 holds 'inf'"),
        ("640,1\n", "holds 1 energy, and a spectrum needs two"),
        ("640,1\n640,2\n640,3\n", "holds 1 energy"),
        ("640\n641\n", "holds no rows of 2 or more numbers"),
        ("", "holds no rows"),
        ("# only\n# comments\n", "holds no rows"),
        ("nothing but words\nand more of them\n", "holds no rows of 2"),
        ("energy (degrees),od\n12,1\n13,2\n", "energy is in 'degrees'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, message):
    path = tmp_path / "spectrum.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=message) as raised:
        read_spectrum(path)
    assert str(path) in str(raised.value)


def test_files_that_are_not_text(tmp_path):
    with pytest.raises(FileError, match=r"nothing\.csv: cannot be read"):
        read_spectrum(tmp_path / "nothing.csv")
    with pytest.raises(FileError, match="cannot be read"):
        read_spectrum(tmp_path)
    (tmp_path / "image.csv").write_bytes(b"\x89HDF\r\n\x1a\n\0\0")
    with pytest.raises(FileError, match="binary"):
        read_spectrum(tmp_path / "image.csv")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789.,;eE+-naif \t\n#\"'()[]_xy", max_size=80))
def test_any_text_gives_a_spectrum_or_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "spectrum.txt"
    path.write_text(text)
    raised = None
    try:
        spectrum = read_spectrum(path)
        assert np.all(np.diff(spectrum.energy) > 0)
        assert np.all(np.isfinite(spectrum))
    except FileError as error:
        raised = error
    assert raised is None or str(path) in str(raised)


# XDI


def test_xdi_names_its_columns_and_keeps_negative_absorption(tmp_path):
    path = tmp_path / "mno.xdi"
    i0, itrans = [100.0, 100.0, 200.0], [150.0, 100.0, 100.0]
    path.write_text(xdi_text({"energy eV": ENERGY, "i0": i0, "itrans": itrans, "irefer": i0}))
    spectrum = read_spectrum(path)
    check(spectrum, "1", [-np.log(1.5), 0.0, np.log(2.0)])
    assert spectrum.attrs["source_format"] == "xdi"
    assert spectrum.attrs["sample_name"] == "MnO"
    assert "units_assumed" not in spectrum.attrs
    check(read_spectrum(path, column="irefer"), "1", i0)


def test_xdi_with_its_own_absorption(tmp_path, caplog):
    path = tmp_path / "mno.xdi"
    path.write_text(
        xdi_text({"energy keV": [e / 1e3 for e in ENERGY], "i0": [1, 1, 1], "mutrans": VALUE})
    )
    check(read_spectrum(path))
    assert not caplog.records


def test_xdi_errors(tmp_path):
    path = tmp_path / "mno.xdi"
    path.write_text(xdi_text({"angle degrees": ENERGY, "i0": VALUE, "itrans": VALUE}))
    with pytest.raises(FileError, match="no column is an energy: angle degrees, i0"):
        read_spectrum(path)
    path.write_text(xdi_text({"energy eV": ENERGY, "i0": [1, 0, 1], "itrans": [1, 1, 1]}))
    with pytest.raises(FileError, match="line 12: an intensity is not positive"):
        read_spectrum(path)


# Point scans


def point_scan(folder, regions: int = 1) -> None:
    """A header of spectra at points, and one ``.xsp`` for each with two channels."""
    points = ", ".join(f"{energy:.3f}" for energy in ENERGY)
    axis = f'{{\n\t\t\tPAxis = {{ Name = "Energy"; Unit = "eV"; Points = (3, {points});\n}};\n}}'
    (folder / "MPI_006.hdr").write_text(
        '\nScanDefinition = { Label = "MPI_006.hdr"; Type = "NEXAFS Point Scan";'
        ' Flags = "Spectra"; ScanType = "Spectra"; Dwell = 1000;\n'
        f"\tRegions = ({regions},\n" + ",\n".join([axis] * regions) + ");\n\n"
        '\tChannels = (2,\n{ Name = "APD"; Unit = "counts";},\n{ Name = "PD"; Unit = "V";});\n};\n'
    )
    for region in range(regions):
        rows = [f"{e:g}\t{1000 + region}\t{v:g}\t\n" for e, v in zip(ENERGY, VALUE, strict=True)]
        (folder / f"MPI_006_{region}.xsp").write_text("".join(rows))


def test_a_point_scan_is_read_through_its_header(tmp_path, caplog):
    point_scan(tmp_path)
    spectrum = read_spectrum(tmp_path / "MPI_006.hdr")
    check(spectrum, "1", [1000, 1000, 1000])
    assert spectrum.name == "APD"
    assert spectrum.attrs["source_format"] == "als-hdr"
    assert spectrum.attrs["dwell_time_s"] == 1.0
    assert "'APD' is read, not 'PD'" in caplog.text
    check(read_spectrum(tmp_path / "MPI_006.hdr", column="PD"), "1")


def test_one_xsp_for_each_region(tmp_path, caplog):
    point_scan(tmp_path, regions=2)
    check(read_spectrum(tmp_path / "MPI_006.hdr"), "1", [1000] * 3)
    assert "MPI_006_0.xsp is read, not MPI_006_1.xsp" in caplog.text
    second = read_spectrum(tmp_path / "MPI_006_1.xsp")
    check(second, "1", [1001] * 3)
    assert second.attrs["units_assumed"] == 1
    (tmp_path / "MPI_006_0.xsp").unlink()
    with pytest.raises(FileError, match=r"'MPI_006_0\.xsp', which holds its numbers, is missing"):
        read_spectrum(tmp_path / "MPI_006.hdr")


# Writing


@settings(max_examples=40, deadline=None)
@given(
    energies=st.lists(
        st.floats(100, 9000, allow_nan=False), min_size=2, max_size=8, unique=True
    ).map(sorted),
    units=st.lists(
        st.sampled_from(["1", "nm-1", "cm2 g-1", "cm2", "count", "count s-1"]),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_written_is_read(tmp_path_factory, energies, units, seed):
    random = np.random.default_rng(seed)
    spectra = xr.Dataset(
        {
            f"mn{index}": ("energy", random.normal(size=len(energies)), {"units": unit})
            for index, unit in enumerate(units)
        },
        coords={"energy": ("energy", energies, {"units": "eV"})},
    )
    path = tmp_path_factory.mktemp("spectra") / "spectra.csv"
    write_spectrum(path, spectra)
    for name, expected in spectra.items():
        found = read_spectrum(path, column=str(name))
        assert found.name == name
        assert found.attrs["units"] == expected.attrs["units"]
        assert "units_assumed" not in found.attrs
        np.testing.assert_array_equal(found.energy, energies)
        np.testing.assert_array_equal(found, expected)


def test_names_of_written_columns(tmp_path):
    energy = ("energy", ENERGY, {"units": "eV"})
    names = {"mn4": "nm-1", "mn3_per_nm": "nm-1", "thick": "1", "od": "1", "i0": "count"}
    spectra = xr.Dataset(
        {name: ("energy", VALUE, {"units": units}) for name, units in names.items()},
        coords={"energy": energy},
    )
    write_spectrum(tmp_path / "spectra.csv", spectra)
    heading = (tmp_path / "spectra.csv").read_text().splitlines()[0]
    assert heading == "energy_eV,mn4_per_nm,mn3_per_nm,thick_od,od,i0_counts"
    write_spectrum(tmp_path / "one.csv", spectra["mn4"])
    check(read_spectrum(tmp_path / "one.csv"), "nm-1")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.assign_coords(energy=ENERGY), "coordinate in eV"),
        (lambda s: s.drop_vars("a"), "no spectrum"),
        (lambda s: s.assign(two=(("x", "energy"), np.ones((2, 3)))), "'two' has dims"),
        (lambda s: s.assign(a=s.a * np.nan), "'a' holds NaN"),
        (lambda s: s.assign(a=s.a.assign_attrs(units="K")), "'a' is in 'K'"),
        (lambda s: s.rename(a="a,b"), "cannot be the name"),
    ],
)
def test_what_cannot_be_written(tmp_path, change, message):
    spectra = xr.Dataset(
        {"a": ("energy", VALUE, {"units": "1"})},
        coords={"energy": ("energy", ENERGY, {"units": "eV"})},
    )
    with pytest.raises(InputError, match=message):
        write_spectrum(tmp_path / "spectra.csv", change(spectra))
    assert not list(tmp_path.iterdir())


# Real files


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("Data2_MnO", 640.47),
        ("Data3_MnO", 640.47),
        ("Data2_YBaMn3AlO7", 640.40),
        ("Data2_LaMnO3", 642.31),
        ("Data3_LaMnO3", 642.36),
        ("Data2_SrMnO3", 643.25),
        ("Data3_MnO2", 643.95),
    ],
)
def test_real_digitised_references(shared_data, name, peak):
    folder = shared_data / "mn-l23-mnedgenet" / "test_Mn_spectra"
    spectrum = read_spectrum(folder / f"{name}.csv")
    assert np.all(np.diff(spectrum.energy) > 0)
    assert float(spectrum.energy[int(np.argmax(spectrum.values))]) == pytest.approx(peak, abs=0.01)
    assert 636 < float(spectrum.energy[0]) < float(spectrum.energy[-1]) < 663
    assert (spectrum.attrs["units"], spectrum.attrs["units_assumed"]) == ("1", 1)


@pytest.mark.parametrize(
    ("name", "least"), [("MnO_rt_01", -0.24), ("MnO2_rt_01", -0.49), ("Mn2O3_rt_01", 0.07)]
)
def test_real_xdi(shared_data, name, least):
    path = shared_data / "xas-mnk-xdi" / f"{name}.xdi"
    spectrum = read_spectrum(path)
    assert spectrum.sizes["energy"] == 217
    assert float(spectrum.min()) == pytest.approx(least, abs=0.005)
    raw = np.loadtxt(path)
    np.testing.assert_allclose(spectrum.energy, raw[:, 0])
    np.testing.assert_allclose(spectrum, np.log(raw[:, 1] / raw[:, 2]))


@pytest.mark.parametrize("name", ["i0.xsp", "oxidized.r", "reduced.t"])
def test_real_two_column_spectra(shared_data, name):
    folder = shared_data / "als-toner-stxm-fe" / "Data" / "ALS_Toner"
    path = folder / "71214078_FigS4" / "Aligned" / name
    spectrum = read_spectrum(path)
    np.testing.assert_allclose(spectrum.energy, np.loadtxt(folder / "Energy.txt"))
    np.testing.assert_allclose(spectrum, np.loadtxt(path)[:, 1])
    assert spectrum.attrs["units"] == "1"
