"""The report: one page that needs nothing beside it, with the numbers of the result in it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from make_results import CONFIGURATION, make_tree, only_maps, without_particles
from PIL import Image

from spectromap import figures
from spectromap.io.results import read_result, write_result
from spectromap.report import CAPTIONS, format_power, format_value, write_report
from spectromap.schema import FileError

#: Signs that read like others are compared as those.
PLAIN = str.maketrans({"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x"})
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """The page taken apart; complains about tags that do not match."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.images, self.ids, self.words = [], [], {}, set(), []
        self.tags = set()
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.links += [attrs[name] for name in ("src", "href", "action", "data") if name in attrs]
        if "id" in attrs:
            assert attrs["id"] not in self.ids
            self.ids.add(attrs["id"])
        if tag == "img":
            assert attrs["alt"]
            self.images[attrs["alt"]] = attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open[-1] == tag, f"{tag} closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words)).translate(PLAIN)


@pytest.fixture(scope="module")
def tree():
    return make_tree()


@pytest.fixture(scope="module")
def html(tree, tmp_path_factory):
    path = write_report(tree, tmp_path_factory.mktemp("report") / "report.html", dpi=60)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def page_of(tree, folder):
    """The page of a result, with small figures."""
    return Page(write_report(tree, folder / "report.html", dpi=30).read_text(encoding="utf-8"))


# --- the page ----------------------------------------------------------------------------------


def test_page_is_self_contained(html, page):
    assert html.startswith("<!DOCTYPE html>")
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_every_figure_is_there(page):
    assert set(figures.FIGURES) == set(CAPTIONS)
    assert set(figures.FIGURES) <= page.ids
    further = page.ids & set(figures.PAPER_FIGURES)
    assert further >= {"agglomerates", "thickness", "variance", "primaries", "oxygen"}
    assert len(page.images) == len(figures.FIGURES) + len(further)
    for title, attrs in page.images.items():
        data = base64.b64decode(attrs["src"].split(",", 1)[1], validate=True)
        image = Image.open(io.BytesIO(data))
        assert np.asarray(image.convert("L")).std() > 5, title
        assert abs(image.width * 96 / 60 - int(attrs["width"])) <= 1
    for words in ("1-sigma", "68 % interval", "standard error", "95 % intervals"):
        assert words in page.text


def test_header_and_provenance(page):
    for words in (
        "Electrode field, 2 cycles",
        "scan.hdf5 · 2026-11-21 10:01:12 · spectromap 0.1.0",
        "9f" * 32,
        "reference SHA-256: mn2o3.csv",
        "packages: xarray 2026.9.0",
        "spectromap run --config RUN.yaml --out out",
    ):
        assert words in page.text
    assert re.sub(r"\s+", " ", CONFIGURATION).strip() in page.text


def test_the_answer_is_told(page):
    for words in (
        "Single-phase diffusion describes the particles.",
        "D = 9.5 (7.9-11) x 10⁻¹⁸ cm² s⁻¹ (68 %)",
        "log₁₀ D = -17.02 ± 0.08 (68 %: -17.10 to -16.94; 95 %: -17.18 to -16.86)",
        "Spread between particles: 0.12 dex",
        "Shell thickness if core-shell: 38.4 ± 2.1 nm",
        "diffusion 1, core-shell 1, undecided 1, no gradient 0",
        "3 of 4 used",
        "left out: 1 overlaps its neighbour",
        "-0.083 ± 0.012 eV",
        "systematic ± 0.015",
    ):
        assert words in page.text


def test_mean_fraction(tree, page):
    particles = tree["entry/particles"]
    weights = particles["area"] * particles["thickness"]
    mean = float((weights * particles["mn3_fraction"]).sum() / weights.sum())
    found = re.search(r"Mn³⁺ fraction (0\.\d+) ± (0\.\d+) mean of 4 particles", page.text)
    assert abs(float(found[1]) - mean) < 1e-4
    share = weights / weights.sum()
    error = float(np.sqrt(((share * particles["mn3_fraction_errors"]) ** 2).sum()))
    assert abs(float(found[2]) - error) < 1e-4


def test_flags_are_told(tree, page):
    flags = tree["entry/maps/flags"].values
    share = 100 * np.mean(flags & 32 > 0)
    assert f"model rejected: {share:.3g} % of the field" in page.text
    assert "1 of 60 frames could not be aligned: 641.49 eV" in page.text
    assert "saturated" not in page.text


def test_text_of_the_user_is_escaped(tree, html, page, tmp_path):
    assert "&lt;642.1 eV&gt;" in html
    assert "energies recorded more than once <642.1 eV>" in page.text
    odd = tree.copy(deep=True)
    odd["entry"].attrs["title"] = "<script>alert(1)</script>"
    assert "script" not in page_of(odd, tmp_path).tags


def test_table(page):
    rows = re.search(r"particle verdict place.*?Errors are", page.text)[0]
    assert "1 diffusion outside 95.0 126.7 ± 1.9 0.212 ± 0.006 1.0 (0.8-1.4) x 10⁻¹⁷" in rows
    assert "2 undecided exterior" in rows
    assert "< 1.3 x 10⁻¹⁷" in rows
    assert "41.2 (38.9-43.1) -27.7 < 0.001 / 0.71" in rows
    assert "left out: overlaps its neighbour" in rows


# --- parts may be missing ----------------------------------------------------------------------


def test_no_particles(tree, tmp_path):
    page = page_of(without_particles(tree), tmp_path)
    assert "No verdict: no particle could be fitted." in page.text
    assert "0 of 0 used" in page.text
    assert "No particles were found." in page.text
    assert re.search(r"dead: \d+\.\d+ % of the field [^,]", page.text)


@pytest.mark.parametrize(
    ("group", "missing"),
    [
        ("shifts", "Registration."),
        ("spectra", "Mean spectrum and references; Incident intensity."),
        ("maps", "Mn³⁺ fraction; Thickness; Quality of the fit; Particles; The best determined"),
        ("particles", ""),
        ("models", "The models on three particles; Diffusion coefficient; Shell thickness."),
        ("pooled", ""),
        ("process", ""),
    ],
)
@pytest.mark.long
def test_a_group_may_be_missing(tree, tmp_path, group, missing):
    nodes = {path: node for path, node in tree.to_dict().items() if not path.endswith(group)}
    page = page_of(xr.DataTree.from_dict(nodes), tmp_path)
    assert ("Not in this result" in page.text) == bool(missing)
    assert not missing or f"Not in this result: {missing}" in page.text


def test_the_least_result(tmp_path):
    page = page_of(only_maps(), tmp_path)
    assert "Mn³⁺ fraction" in page.text
    assert "Not in this result: Particles; Mean spectrum" in page.text
    page = page_of(xr.DataTree(), tmp_path)
    assert "spectromap result" in page.text


def test_one_sided_pooled_limit(tmp_path):
    pooled = xr.Dataset(
        {
            "verdict": ((), "undecided"),
            "particles_used": ((), 2),
            "log10_D": ((), np.nan),
            "log10_D_low68": ((), -np.inf),
            "log10_D_high68": ((), -17.5),
        }
    )
    page = page_of(xr.DataTree.from_dict({"/entry/pooled": pooled}), tmp_path)
    assert "The data do not decide between diffusion and core-shell." in page.text
    assert "D = < 3.2 x 10⁻¹⁸ cm² s⁻¹" not in page.text
    assert "D < 3.2 x 10⁻¹⁸ cm² s⁻¹ (68 %)" in page.text


def with_pooled(tree, **values):
    """The same result with other pooled scalars."""
    pooled = tree["entry/pooled"].to_dataset().assign({k: ((), v) for k, v in values.items()})
    copy = tree.copy(deep=True)
    copy["entry/pooled"] = xr.DataTree(pooled)
    return copy


def test_a_verdict_needs_no_diffusion_coefficient(tree, tmp_path):
    """A field of core-shell particles determines no D, and still has an answer."""
    none = {"log10_D": np.nan, "log10_D_low68": np.nan, "log10_D_high68": np.nan}
    core = with_pooled(tree, verdict="core-shell", particles_used=0, **none)
    page = page_of(core, tmp_path)
    assert "A core-shell (two-phase) structure describes the particles." in page.text
    assert "Pooled diffusion coefficient" not in page.text
    assert "D rests on" not in page.text


def test_what_the_pooled_value_rests_on(tree, tmp_path):
    said = {"particles_used": 3, "count_limits": 2, "count_left_out": 3, "log10_D_shift": 0.12}
    said |= {"largest_influence": -0.034, "most_influential": 7}
    page = page_of(with_pooled(tree, **said), tmp_path)
    assert (
        "D rests on 3 particles, 2 of them by a one-sided limit only; 3 left out. With all"
        " particles that say anything, log₁₀ D moves by +0.12. Leaving out particle 7, which"
        " matters most, moves it by -0.03."
    ) in page.text


def test_without_a_time_the_product_is_told(tree, tmp_path):
    none = {"log10_D": np.nan, "log10_D_low68": np.nan, "log10_D_high68": np.nan}
    page = page_of(with_pooled(tree, log10_Dt=-11.42, log10_Dt_errors=0.08, **none), tmp_path)
    assert "log₁₀ D t = -11.42 ± 0.08 (in cm²)" in page.text


def test_many_particles_are_cut_short(tree, tmp_path):
    many = tree["entry/particles"].to_dataset().isel(particle=[0] * 250)
    many = many.assign_coords(particle=np.arange(1, 251))
    big = xr.DataTree.from_dict({"/entry/particles": many})
    page = page_of(big, tmp_path)
    assert "The first 200 of 250 particles" in page.text
    assert " 200 - outside" in page.text
    assert " 201 - outside" not in page.text


def test_report_of_a_file_is_the_report_of_the_tree(tree, html, tmp_path):
    again = read_result(write_result(tree, tmp_path / "result.h5"))
    write_report(again, tmp_path / "report.html", dpi=60)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


def test_an_older_report_is_kept_when_the_new_one_fails(tmp_path):
    path = tmp_path / "report.html"
    path.mkdir()
    with pytest.raises(FileError, match=r"report\.html: could not be written"):
        write_report(only_maps(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.18734, 0.0041, "0.187 ± 0.004"),
        (0.18734, 0.0125, "0.187 ± 0.013"),
        (-17.0231, 0.081, "-17.02 ± 0.08"),
        (153.26, 21.0, "153 ± 21"),
        (15326.0, 350.0, "15300 ± 400"),
        (2.0, 0.0, "2.00"),
        (0.000123456, None, "0.000123"),
        (95.0, None, "95.0"),
        (110.0, None, "110"),
        (0.0, None, "0"),
        (np.nan, 0.1, "-"),
        (np.inf, None, "∞"),
        (-np.inf, None, "-∞"),
        (1.5, np.nan, "1.50"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
    ],
)
def test_format_value(value, error, text):
    assert format_value(value, error).translate(PLAIN) == text


@settings(max_examples=200, deadline=None)
@given(
    value=st.floats(-1e6, 1e6),
    error=st.floats(1e-6, 1e5),
)
def test_rounding_stays_well_inside_the_error(value, error):
    shown, about = (float(t) for t in format_value(value, error).translate(PLAIN).split(" ± "))
    assert abs(shown - value) <= 0.18 * error
    assert abs(about - error) <= 0.18 * error


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((9.5e-18, 8.0e-18, 1.15e-17), "9.5 (8-12) x 10⁻¹⁸"),
        ((1.05e-17, 0.0, 1.3e-17), "< 1.3 x 10⁻¹⁷"),
        ((1.05e-17, np.nan, 1.3e-17), "< 1.3 x 10⁻¹⁷"),
        ((1.05e-17, 8e-18, np.inf), "> 8.0 x 10⁻¹⁸"),
        ((1.05e-17, np.nan, np.nan), "1.0 x 10⁻¹⁷"),
        ((1e-17, 1e-21, 1e-12), "1.0 x 10⁻¹⁷ (1.0 x 10⁻²¹ - 1.0 x 10⁻¹²)"),
        ((np.nan, np.nan, np.nan), "-"),
        ((np.nan, 1e-18, 1e-17), "-"),
    ],
)
def test_format_power(numbers, text):
    assert format_power(*numbers).translate(PLAIN) == text
