"""Figures show what the tree holds, say what they show, and never fail for what is missing."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from make_results import electrode_table, make_tree, only_maps, without_particles
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image

from spectromap import figures
from spectromap.figures.agglomerates import filled_bodies
from spectromap.figures.data import COLUMNS
from spectromap.figures.thickness import bin_means
from spectromap.heterogeneity import statistics
from spectromap.schema import FLAGS, RESULT_GROUPS, FileError, InputError
from spectromap.series import compare_states

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDS_PARTICLES = (
    "label_map",
    "group_profiles",
    "profiles",
    "representative_fits",
    "particle_fits",
    "D",
    "heterogeneity",
)


#: Every figure of one result.
ALL = figures.FIGURES | figures.PAPER_FIGURES


def other_edge(tree, edge, fraction, at):
    """Maps at another edge on the grid of the main ones."""
    maps = tree["entry/maps"].to_dataset()
    names = {f"mn3_{n}": f"{fraction}_{n}" for n in ("fraction", "fraction_errors")}
    other = maps[[*names, "thickness", "thickness_errors", "flags"]].rename(names)
    other[f"{fraction}_fraction"] = at + 0.5 * other[f"{fraction}_fraction"]
    return other.assign_attrs(fraction=fraction, edge=edge)


def repeats():
    """One repeat: a change of 0.01 per MGy."""
    rng = np.random.default_rng(5)
    dose = rng.uniform(1, 2, 30)
    change = 0.01 * dose + rng.normal(0, 0.004, 30)
    of_scan = {"mean_change": 0.015, "mean_change_low": 0.013, "mean_change_high": 0.017,
               "change_per_MGy": 0.0101, "change_per_MGy_errors": 0.0005, "noise_ratio": 1.03,
               "dichroism": 0.41}  # fmt: skip
    dims = ("scan", "particle")
    variables = {
        "change": (dims, change[None]),
        "change_errors": (dims, np.full((1, 30), 0.004)),
        "dose": (dims, dose[None], {"units": "MGy"}),
    } | {name: ("scan", [value]) for name, value in of_scan.items()}
    coords = {"scan": np.array(["again"], object), "particle": np.arange(1, 31)}
    return xr.Dataset(variables, coords)


@pytest.fixture(scope="module")
def tree():
    """A result with everything that a result can have."""
    full = make_tree()
    for name, edge, fraction, at in (("ni_l3", "Ni L3", "ni_red", 0.3), ("o_k", "O K", "o_red", 0)):
        full[f"entry/maps_{name}"] = xr.DataTree(other_edge(full, edge, fraction, at))
        particles = full["entry/particles"].to_dataset()
        own = {
            f"{fraction}_fraction{end}": particles[f"mn3_fraction{end}"] for end in ("", "_errors")
        }
        full["entry/particles"] = xr.DataTree(particles.assign(own))
    again = full["entry/maps"].to_dataset().assign_attrs(edge="Mn L3")
    full["entry/maps_again"] = xr.DataTree(again)
    full["entry/repeats"] = xr.DataTree(repeats())
    return full


@pytest.fixture(scope="module")
def electrode():
    """Many particles inside and outside of agglomerates, and what the statistics say of them."""
    table = electrode_table(agglomerates=6, primaries=20, loose=60)
    groups = {"/entry/maps": make_tree()["entry/maps"].to_dataset(), "/entry/particles": table}
    groups["/entry/heterogeneity"] = statistics(table, "mn3", n_resamples=100)
    return xr.DataTree.from_dict(groups)


@pytest.fixture(scope="module")
def series():
    """Three states of one sample, each with more Mn3+ and ten times the D t of the one before."""
    states = {}
    for number, name in enumerate(("pristine", "1 cycle", "125 cycles")):
        state = make_tree(seed=number)
        state["entry"].attrs |= {"cycles": (0, 1, 125)[number], "sample_state": "discharged"}
        models = state["entry/models"].to_dataset()
        longer = {n: models[n] * 10**number for n in ("Dt_cm2", "Dt_low", "Dt_high")}
        state["entry/models"] = xr.DataTree(models.assign(longer))
        particles = electrode_table(seed=number)
        more = particles["mn3_fraction"] + 0.1 * number
        state["entry/particles"] = xr.DataTree(particles.assign(mn3_fraction=more))
        for component, valence in (("mn4", 4), ("mn3", 3)):
            state[f"entry/spectra/reference_{component}"].attrs["valence"] = valence
        states[name] = state
    return compare_states(states, formula="Li1.18Ni0.21Mn0.53Co0.08O2", n_resamples=50)


@pytest.fixture(scope="module")
def drawn(tree, series):
    """Every figure, drawn once."""
    made = {}

    def get(name):
        if name not in made:
            single = name in ALL
            draw = ALL[name] if single else figures.SERIES_FIGURES[name]
            made[name] = draw(tree if single else series)
        return made[name]

    return get


def replaced(tree, group, **variables):
    """The same result with some variables of a group replaced."""
    copy = tree.copy(deep=True)
    copy[f"entry/{group}"] = xr.DataTree(copy[f"entry/{group}"].to_dataset().assign(variables))
    return copy


def without(tree, dropped):
    """The same result without some variables, given as (group, name)."""
    copy = tree.copy(deep=True)
    for group in {group for group, _ in dropped}:
        names = [name for g, name in dropped if g == group]
        dataset = copy[f"entry/{group}"].to_dataset().drop_vars(names)
        copy[f"entry/{group}"] = xr.DataTree(dataset)
    return copy


def pixels(figure, dpi=60):
    """What is drawn, as an array of colours."""
    return np.asarray(Image.open(io.BytesIO(figures.to_png(figure, dpi))).convert("RGB"))


def texts(figure):
    """All text that a figure shows."""
    found = [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_visible()]
    return " | ".join(t for t in found if t)


def is_note(figure):
    return figure.get_gid() == figures.NOTE


# --- every figure ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ALL, *figures.SERIES_FIGURES])
def test_every_figure_is_drawn(drawn, name):
    figure = drawn(name)
    assert isinstance(figure, Figure)
    assert not is_note(figure)
    shown = pixels(figure)
    assert shown.std() > 5
    # the margins are white: nothing runs out of the picture
    for margin in (shown[:2], shown[-2:], shown[:, :2], shown[:, -2:]):
        assert (margin == 255).all()


@pytest.mark.parametrize("name", [*ALL, *figures.SERIES_FIGURES])
def test_labels_do_not_overlap(drawn, name):
    figure = drawn(name)
    figure.savefig(io.BytesIO(), format="png")
    renderer = figure.canvas.get_renderer()
    shown = [t for t in figure.findobj(mpl.text.Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in shown if t.axes is not None]
    ticks = [tick for axes in figure.axes for tick in outside_ticks(axes)]
    boxes = [(text, box) for text, box in boxes if (text, tuple(box.bounds)) not in ticks]
    for (one, a), (other, b) in combinations(boxes, 2):
        overlap_x = min(a.x1, b.x1) - max(a.x0, b.x0)
        overlap_y = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert overlap_x < 1 or overlap_y < 1, (one, other)


def outside_ticks(axes):
    """Labels of ticks beyond the limits of an axis, which are not drawn."""
    found = []
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = sorted((low, high))
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            margin = 1e-6 * (high - low)
            if not low - margin <= tick.get_loc() <= high + margin:
                for label in (tick.label1, tick.label2):
                    found.append((label.get_text(), tuple(label.get_window_extent().bounds)))
    return found


@pytest.mark.parametrize("name", NEEDS_PARTICLES)
def test_no_particles_is_said(tree, name):
    figure = figures.FIGURES[name](without_particles(tree))
    assert is_note(figure)
    assert "No particle" in texts(figure)


def test_a_bare_tree_gives_no_figures():
    bare = xr.DataTree.from_dict({"/entry": xr.Dataset()})
    for draw in (ALL | figures.SERIES_FIGURES).values():
        assert draw(bare) is None
        assert draw(xr.DataTree()) is None
    assert figures.truth_comparison(bare, bare) is None


@pytest.mark.parametrize("group", RESULT_GROUPS)
def test_any_group_may_be_missing(tree, group):
    groups = {path: node for path, node in tree.to_dict().items() if not path.endswith(group)}
    less = xr.DataTree.from_dict(groups)
    for draw in ALL.values():
        figure = draw(less)
        assert figure is None or isinstance(figure, Figure)


def variables(tree):
    """All (group, name) of a result."""
    groups = tree["entry"].children
    return [(group, str(n)) for group in groups for n in groups[group].data_vars]


@pytest.mark.parametrize("seed", range(8))
def test_any_variables_may_be_missing(tree, seed):
    names = variables(tree)
    some = np.random.default_rng(seed).permutation(len(names))[: len(names) // (2 + seed % 3)]
    less = without(tree, [names[i] for i in some])
    for draw in ALL.values():
        figure = draw(less)
        assert figure is None or isinstance(figure, Figure)


@pytest.mark.parametrize("seed", range(4))
def test_any_variables_of_a_series_may_be_missing(series, seed):
    names = variables(series)
    some = np.random.default_rng(seed).permutation(len(names))[: len(names) // (2 + seed % 3)]
    less = without(series, [names[i] for i in some])
    for draw in figures.SERIES_FIGURES.values():
        figure = draw(less)
        assert figure is None or isinstance(figure, Figure)


def test_figures_of_fields_without_particles_may_be_notes(tree):
    empty = without_particles(tree)
    for draw in figures.PAPER_FIGURES.values():
        figure = draw(empty)
        assert figure is None or isinstance(figure, Figure)


def test_every_further_figure_has_a_caption():
    assert set(figures.PAPER_CAPTIONS) == {*figures.PAPER_FIGURES, *figures.SERIES_FIGURES}


def test_maps_of_nothing(tree):
    nan = xr.full_like(tree["entry/maps/thickness"], np.nan)
    names = ("mn3_fraction", "thickness", "chi2")
    empty = replaced(tree, "maps", **dict.fromkeys(names, nan))
    assert is_note(figures.fraction_map(empty))
    for draw in (figures.thickness_map, figures.chi2_map, figures.label_map):
        pixels(draw(empty))
    pixels(figures.truth_comparison(empty, tree))


def test_one_component(tree):
    """A fit of one component has a thickness and no fraction."""
    names = [v for v in variables(tree) if "fraction" in v[1]]
    single = without(tree, names)
    del single["entry/maps"].attrs["fraction"]
    assert figures.fraction_map(single) is None
    assert figures.profiles_figure(single) is None
    assert figures.thickness_map(single) is not None
    assert figures.truth_comparison(single, single) is not None


def test_import_is_light_and_pyplot_is_never_used(tmp_path):
    code = f"""
import sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
from spectromap import figures
assert "matplotlib" not in sys.modules
from make_results import only_maps
figures.save_figure(figures.fraction_map(only_maps()), {str(tmp_path / "f.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_the_users_settings_neither_matter_nor_change(tree):
    plain = pixels(figures.thickness_map(tree))
    with mpl.rc_context({"image.origin": "upper", "font.size": 30, "axes.facecolor": "black"}):
        before = dict(mpl.rcParams)
        figure = figures.thickness_map(tree)
        assert dict(mpl.rcParams) == before
    np.testing.assert_array_equal(pixels(figure), plain)


# --- maps --------------------------------------------------------------------------------------


def image_of(figure):
    """The map of a figure with one."""
    return figure.axes[0].images[0]


def test_fraction_map_shows_the_fraction(tree):
    figure = figures.fraction_map(tree)
    maps = tree["entry/maps"]
    shown = image_of(figure).get_array()
    values = maps["mn3_fraction"].values
    drawn = ~shown.mask
    np.testing.assert_allclose(shown.data[drawn], values[drawn])
    # what is drawn is sure and thick; what is not is thin, unsure or missing
    thickness = maps["thickness"].values
    thick = thickness > 0.05 * np.nanpercentile(thickness, 99)
    sure = maps["mn3_fraction_errors"].values < 0.2
    np.testing.assert_array_equal(drawn, thick & sure & (maps["flags"].values & 9 == 0))
    low, high = image_of(figure).get_clim()
    assert 0 <= low < 0.1
    assert 0.35 < high < 0.6
    assert "Mn³⁺ fraction" in texts(figure)
    outlines = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    assert outlines


def test_flagged_pixels_are_hidden(tree):
    flags = tree["entry/maps/flags"].copy(deep=True)
    flags[14, 12] |= FLAGS["dead"]
    flags[14, 13] |= FLAGS["model_rejected"]
    marked = replaced(tree, "maps", flags=flags)
    mask = image_of(figures.fraction_map(marked)).get_array().mask
    assert mask[14, 12]
    assert not mask[14, 13]
    mask = image_of(figures.fraction_map(marked, hide_rejected=True)).get_array().mask
    assert mask[14, 13]


def test_maps_have_y_upwards_and_true_scales(tree):
    figure = figures.thickness_map(tree)
    image = image_of(figure)
    assert image.origin == "lower"
    assert image.get_extent() == [0, 800, 0, 600]
    assert figure.axes[0].get_aspect() == 1
    assert figure.axes[0].get_ylim() == (0, 600)
    # particle 3 lies at y = 200, x = 480: below the middle, right of it
    shown = pixels(figure).mean(axis=2)
    bright = np.argwhere(shown[:, : shown.shape[1] * 3 // 4] > 150)
    assert bright.size
    assert {"x [nm]", "y [nm]", "thickness [nm]"} <= set(texts(figure).split(" | "))


@pytest.mark.parametrize(
    ("step", "bar", "axis"),
    [(0.5, "5 nm", "nm"), (12.5, "100 nm", "nm"), (80.0, "1 µm", "µm"), (400.0, "5 µm", "µm")],
)
def test_scale_bar(tree, step, bar, axis):
    maps = tree["entry/maps"].to_dataset()
    maps = maps.assign_coords({d: (d, step * np.arange(maps.sizes[d])) for d in ("y", "x")})
    scaled = tree.copy()
    scaled["entry/maps"] = xr.DataTree(maps)
    figure = figures.thickness_map(scaled)
    (drawn,) = [a for a in figure.axes[0].artists if isinstance(a, AnchoredSizeBar)]
    assert drawn.txt_label.get_text() == bar
    length = drawn.size_bar.get_children()[0].get_width()
    assert length == float(bar.split()[0])
    assert f"x [{axis}]" in texts(figure)


def test_label_map_numbers_particles(tree):
    figure = figures.label_map(tree)
    places = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    assert set(places) == {"1", "2", "3", "4"}
    np.testing.assert_allclose(places["3"], (480, 200), atol=7)
    colours = image_of(figure).get_array()
    grey = colours[38, 56]
    assert grey[0] == grey[1] == grey[2] < 1  # particle 4 is left out
    assert len({tuple(colours[y, x]) for y, x in ((13, 12), (32, 17), (16, 38))}) == 3


def test_touching_particles_keep_their_border():
    tree = only_maps()
    labels = np.zeros((48, 64), np.int32)
    labels[10:20, 10:20], labels[10:20, 20:30] = 1, 2
    tree = replaced(tree, "maps", particle_label=(("y", "x"), labels))
    (outlines,) = figures.chi2_map(tree).axes[0].collections
    lines = outlines.get_segments()
    # two squares of 10 by 10 pixels share one side of ten
    assert len(lines) == 40 + 40 - 10
    assert sum(np.allclose(line[:, 0], 20 * 12.5) for line in lines) == 10


# --- curves ------------------------------------------------------------------------------------


def error_bars(axes):
    """Error bars of an axes, without bars of other kinds."""
    return [c for c in axes.containers if isinstance(c, ErrorbarContainer)]


def bars(axes):
    """Points of the error bars of an axes: x, y, and half length."""
    found = []
    for container in error_bars(axes):
        line, _, (verticals,) = container
        segments = verticals.get_segments()
        half = [np.ptp(s[:, 1]) / 2 if len(s) else np.nan for s in segments]
        found.append((line.get_xdata(), line.get_ydata(), half))
    return found


def test_mean_spectrum(tree):
    spectra = tree["entry/spectra"]
    figure = figures.mean_spectrum(tree)
    upper, middle, lower = figure.axes
    x, y, half = bars(upper)[0]
    np.testing.assert_allclose(x, spectra["energy"])
    np.testing.assert_allclose(y, spectra["mean_od"])
    np.testing.assert_allclose(half, spectra["mean_od_errors"])
    np.testing.assert_allclose(bars(middle)[0][1], spectra["mean_od"] - spectra["mean_fit"])
    np.testing.assert_allclose(lower.lines[1].get_ydata(), spectra["reference_mn3"])
    assert "reference [nm⁻¹]" in texts(figure)
    assert "Mn⁴⁺" in texts(figure)


def test_shifts_ignore_flagged_frames_for_the_axes(tree):
    figure = figures.shifts_figure(tree)
    low, high = figure.axes[0].get_ylim()
    assert high < 60  # the flagged frame lies at 180 nm
    assert "1 of 60 frames flagged" in texts(figure)
    _, y, _ = bars(figure.axes[0])[0]
    assert len(y) == 59
    assert low < y.min()


def test_i0(tree):
    figure = figures.i0_figure(tree)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), tree["entry/spectra/i0"])
    assert "I0 [count]" in texts(figure)


def test_profiles(tree):
    figure = figures.profiles_figure(tree)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["1: diffusion", "2: undecided", "3: core-shell", "4: left out"]
    profiles = tree["entry/profiles"]
    one = profiles["mn3_fraction"].values[2]
    x, y, half = bars(figure.axes[2])[0]
    np.testing.assert_allclose(x, profiles["distance"])
    np.testing.assert_allclose(y, one)
    np.testing.assert_allclose(half, profiles["mn3_fraction_errors"].values[2])
    fits = {line.get_label(): line.get_ydata() for line in figure.axes[2].lines}
    np.testing.assert_allclose(fits["core-shell"], tree["entry/models/fit"].values[2, 1])


def test_curves_stay_in_the_picture_and_never_squeeze_the_data(tree):
    fit = tree["entry/models/fit"].copy(deep=True)
    data = figures.profiles_figure(tree).axes[0].get_ylim()
    for height, seen in ((0.5, True), (40.0, False)):
        fit[0, 1, 0] = height
        low, high = figures.profiles_figure(replaced(tree, "models", fit=fit)).axes[0].get_ylim()
        assert (high > height) == seen
        assert high - low < 1.6 * (data[1] - data[0])


def test_profiles_choose_the_best_determined(tree):
    figure = figures.profiles_figure(tree, most=2)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:2] == ["2: undecided", "3: core-shell"]


def with_places(tree, places):
    """The same result with its particles in other places."""
    return replaced(tree, "particles", place=("particle", np.array(places, object)))


def test_group_profiles(tree):
    """Means of each place over the used particles, with the errors that their scatter implies."""
    figure = figures.group_profiles_figure(with_places(tree, ["outside"] * 2 + ["interior"] * 2))
    fraction, thickness = figure.axes
    labels = [t.get_text() for t in fraction.get_legend().get_texts()]
    assert labels == ["interior: 1 particle", "outside: 2 particles"]
    profiles = tree["entry/profiles"]
    (_, alone, alone_half), (x, mean, half) = bars(fraction)
    np.testing.assert_allclose(alone, profiles["mn3_fraction"].values[2])  # 4 is left out
    assert np.all(np.array(alone_half) >= profiles["mn3_fraction_errors"].values[2] * 0.999)
    values = profiles["mn3_fraction"].values[:2]
    errors = profiles["mn3_fraction_errors"].values[:2]
    shared = np.isfinite(values).all(axis=0)
    assert np.all(mean[shared] >= values.min(axis=0)[shared])
    assert np.all(mean[shared] <= values.max(axis=0)[shared])
    # the mean of two is no surer than the noise of both together allows
    photon = np.sqrt(1 / np.sum(errors[:, shared] ** -2, axis=0))
    assert np.all(np.array(half)[shared] > photon)
    assert np.all(np.abs(x - profiles["distance"].values) < 1)
    units = thickness.get_ylabel()
    assert units == "thickness [nm]"
    drawn = bars(thickness)[0][1]
    np.testing.assert_allclose(drawn, profiles["thickness"].values[2])


def test_group_bands_are_the_spread_between_particles(tree):
    """Two particles that differ by 0.2 everywhere, with errors far below that."""
    values = tree["entry/profiles/mn3_fraction"].copy(deep=True)
    values[:] = np.array([0.2, 0.4, 0.3, 0.9])[:, None]
    errors = xr.full_like(values, 1e-4)
    figure = figures.group_profiles_figure(
        replaced(
            with_places(tree, ["outside", "outside", "interior", "outside"]),
            "profiles",
            mn3_fraction=values,
            mn3_fraction_errors=errors,
        )
    )
    _, (_, mean, half) = bars(figure.axes[0])
    np.testing.assert_allclose(mean, 0.3, atol=1e-6)
    # standard error 0.1 times Student's factor of two particles, 1.84
    np.testing.assert_allclose(half, 0.1837, atol=1e-3)
    polygons = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    band = polygons[1].get_paths()[0].get_extents()
    np.testing.assert_allclose(
        [band.y0, band.y1], 0.3 + np.sqrt(0.02) * np.array([-1, 1]), atol=1e-4
    )


def test_groups_without_places_are_one(tree):
    figure = figures.group_profiles_figure(without(tree, [("particles", "place")]))
    assert "all: 3 particles" in texts(figure)


def test_representative_fits(tree):
    """Particles are chosen by size alone; every model has its own residuals on one scale."""
    figure = figures.representative_fits(tree)
    grid = np.array(figure.axes).reshape(3, 3)
    assert [axes.get_title("left") for axes in grid[0]] == [
        "1, R = 95 nm: diffusion",
        "2, R = 110 nm: undecided",
        "3, R = 130 nm: core-shell",
    ]
    profiles, models = tree["entry/profiles"], tree["entry/models"]
    np.testing.assert_allclose(bars(grid[0, 2])[0][1], profiles["mn3_fraction"].values[2])
    for row, model in enumerate(["diffusion", "core-shell"], start=1):
        fit = models["fit"].sel(model=model).values[2]
        pull = (profiles["mn3_fraction"].values[2] - fit) / profiles["mn3_fraction_errors"].values[
            2
        ]
        np.testing.assert_allclose(grid[row, 2].lines[-1].get_ydata(), pull)
        low, high = grid[row, 2].get_ylim()
        assert low == -high < -np.nanmax(np.abs(pull))
    assert {axes.get_ylim() for axes in grid[1:].ravel()} == {grid[1, 0].get_ylim()}
    reach = max(models["distance"].values[np.isfinite(fit)])
    assert all(axes.get_xlim()[1] > reach for axes in grid.ravel())
    assert grid[1, 0].get_title("left") == r"D = $1.0 \times 10^{-17}$ cm² s⁻¹, p = 0.64"
    assert grid[2, 0].get_title("left") == "38 nm shell, p < 0.01"


def test_representatives_of_many_are_spread_over_the_sizes(tree):
    groups = {}
    for name in ("particles", "profiles", "models"):
        many = tree[f"entry/{name}"].to_dataset().isel(particle=[0] * 9)
        groups[f"/entry/{name}"] = many.assign_coords(particle=np.arange(1, 10))
    radius = np.array([90.0, 10, 80, 20, 70, 30, 60, 40, 50])
    groups["/entry/particles"]["radius"] = ("particle", radius, {"units": "nm"})
    figure = figures.representative_fits(xr.DataTree.from_dict(groups))
    titles = [axes.get_title("left") for axes in figure.axes[:3]]
    assert [t.split(":")[0] for t in titles] == ["4, R = 20 nm", "9, R = 50 nm", "3, R = 80 nm"]


def test_representatives_may_be_named(tree):
    figure = figures.representative_fits(tree, [3, 1])
    titles = [axes.get_title("left") for axes in figure.axes[:2]]
    assert [t[0] for t in titles] == ["3", "1"]
    assert figures.representative_fits(tree, [99]) is None


def test_particle_fits(tree):
    figure = figures.particle_fits(tree, 1)
    assert "particle 1: diffusion" in texts(figure)
    image = figure.axes[0].images[0]
    left, right, bottom, top = image.get_extent()
    assert left < 150 - 95
    assert right > 150 + 95
    assert bottom < 170 - 95 < 170 + 95 < top
    profiles, models = tree["entry/profiles"], tree["entry/models"]
    pull = (profiles["mn3_fraction"] - models["fit"].sel(model="diffusion")).isel(particle=0)
    pull = pull / profiles["mn3_fraction_errors"].isel(particle=0)
    residuals = figure.subfigs[1].axes[1]
    assert "residual" in residuals.get_ylabel()
    drawn = [line.get_ydata() for line in residuals.lines if len(line.get_ydata()) == pull.size]
    np.testing.assert_allclose(drawn[0], pull.values)
    assert figures.particle_fits(tree, 99) is None


def test_diffusion_coefficients(tree):
    figure = figures.D_figure(tree)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2", "3"]
    points = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"
    }
    assert points == {0: 1.05e-17, 2: 1.9e-17}
    # particle 2 has an upper limit only: an arrow to the left of it
    (arrow,) = [a for a in axes.texts if isinstance(a, Annotation)]
    assert arrow.xyann == (1.3e-17, 1)
    assert arrow.xy[0] < 1.3e-17
    bands = sorted(patch.get_width() for patch in axes.patches)
    np.testing.assert_allclose(bands[0], 10**-16.94 - 10**-17.10)
    np.testing.assert_allclose(bands[1], 10**-16.86 - 10**-17.18)
    assert "pooled, 68 %" in texts(figure)


def faces(figure):
    """Whether the point of each particle is filled, by its row."""
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    return {line.get_ydata()[0]: line.get_markerfacecolor() != "white" for line in points}


def test_open_points_are_not_pooled(tree):
    assert faces(figures.D_figure(tree)) == {0: True, 2: False}  # the third is core-shell
    reasons = np.array(["at the border", "", "", "not used"], object)
    said = replaced(
        tree, "pooled", left_out=("particle", reasons, {}), particle=("particle", np.arange(1, 5))
    )
    figure = figures.D_figure(said)
    assert faces(figure) == {0: False, 2: True}
    assert "not pooled" in texts(figure)


def test_bounds_lie_behind_the_intervals(tree):
    figure = figures.D_figure(tree)
    grey = [line for line in figure.axes[0].lines if line.get_linewidth() == 6]
    found = {line.get_ydata()[0]: np.log10(line.get_xdata()) for line in grey}
    np.testing.assert_allclose(found[0], np.log10(1.05e-17) + 0.05 * np.array([-1, 1]))
    assert set(found) == {0, 2}  # a limit has none


def test_without_a_time_the_product_is_drawn(tree):
    unknown = xr.full_like(tree["entry/models/D_low"], np.nan)
    timeless = replaced(
        replaced(tree, "models", D_cm2_s=unknown, D_low=unknown, D_high=unknown),
        "pooled",
        log10_Dt=((), -11.42),
        log10_Dt_errors=((), 0.1),
    )
    figure = figures.D_figure(timeless)
    assert "D t [cm²]" in figure.axes[0].get_xlabel()
    (band,) = figure.axes[0].patches
    np.testing.assert_allclose(band.get_width(), 10**-11.32 - 10**-11.52)
    points = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points, [4.2e-12, 7.6e-12])


def test_shell_thickness(tree):
    figure = figures.shell_figure(tree)
    (axes,) = figure.axes
    assert axes.get_xscale() == "linear"
    points = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"
    }
    assert points == {0: 35.0, 1: 38.0, 2: 41.2}
    assert faces(figure) == {0: True, 1: False, 2: True}
    (band,) = axes.patches
    np.testing.assert_allclose([band.get_x(), band.get_width()], [36.3, 4.2])
    only = replaced(tree, "models", verdict=("particle", np.array(["diffusion"] * 4, object)))
    assert figures.shell_figure(only) is None


def test_lower_limits_point_to_the_right(tree):
    high = tree["entry/models/D_high"].copy(deep=True)
    high[0, 0] = np.inf
    figure = figures.D_figure(replaced(tree, "models", D_high=high))
    arrows = {a.xyann[0]: a.xy[0] for a in figure.axes[0].texts}
    assert arrows[8.0e-18] > 8.0e-18
    pixels(figure)


def test_values_without_intervals_are_points(tree):
    """The truth of a simulation knows D exactly."""
    nothing = xr.full_like(tree["entry/models/D_low"], np.nan)
    figure = figures.D_figure(replaced(tree, "models", D_low=nothing, D_high=nothing))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["2", "1", "3"]
    assert not figure.axes[0].texts
    same = xr.full_like(nothing, 1e-17)
    figure = figures.D_figure(replaced(tree, "models", D_cm2_s=same, D_low=same, D_high=same))
    low, high = figure.axes[0].get_xlim()
    assert low < 1e-17 < high


def test_scale_bar_avoids_the_particles(tree):
    """Particle 4 lies in the upper right corner; the others leave the lower right one free."""
    labels = np.zeros((48, 64), np.int32)
    labels[:20] = 1
    labels[40:, 50:] = 2
    below = replaced(tree, "maps", particle_label=(("y", "x"), labels))
    (bar,) = [a for a in figures.chi2_map(below).axes[0].artists if isinstance(a, AnchoredSizeBar)]
    assert bar.loc == AnchoredSizeBar.codes["upper left"]


def test_heterogeneity(tree):
    figure = figures.heterogeneity_figure(tree)
    scatter, forest = figure.axes
    drawn = sorted(float(x) for xs, _, _ in bars(scatter) for x in xs)
    np.testing.assert_allclose(drawn, sorted(tree["entry/particles/thickness"].values))
    assert [t.get_text() for t in scatter.get_legend().get_texts()] == [
        "outside", "exterior", "interior"]  # fmt: skip
    found = tree["entry/heterogeneity"]
    known = np.isfinite(found["difference"].values)
    ends = np.transpose([found["low"].values[known], found["high"].values[known]])
    np.testing.assert_allclose(interval_ends(forest), ends)
    assert "p < 0.001" in texts(figure)
    hidden = found["difference"].copy(deep=True)
    hidden[0] = np.nan
    assert "not testable" in texts(
        figures.heterogeneity_figure(replaced(tree, "heterogeneity", difference=hidden))
    )


def interval_ends(axes):
    """Ends of horizontal error bars, from the top down."""
    found = {}
    for container in error_bars(axes):
        _, _, (bars_of,) = container
        for segment in bars_of.get_segments():
            found[segment[0, 1]] = segment[:, 0]
    return [found[row] for row in sorted(found, reverse=True)]


def test_nine_contrasts_have_room():
    """Agglomerates of two sizes ask three questions in three ways."""
    table = electrode_table()
    small = table["agglomerate"].values == 4
    table["area"] = table["area"] * np.where(small, 0.05, 1.0)
    found = statistics(table, "mn3", n_resamples=100)
    groups = {"/entry/particles": table, "/entry/heterogeneity": found}
    figure = figures.heterogeneity_figure(xr.DataTree.from_dict(groups))
    assert found.sizes["contrast"] == 9
    assert figure.get_size_inches()[1] > 4
    pixels(figure)
    ticks = figure.axes[1].get_yticklabels()
    boxes = [tick.get_window_extent() for tick in ticks]
    assert all(a.y0 >= b.y1 - 1 for a, b in pairwise(boxes))


# --- agglomerates ------------------------------------------------------------------------------


def ring(seed=0):
    """A field with a closed ring of primaries, a pair cut by the border, and one alone."""
    labels, groups = np.zeros((60, 80), np.int32), np.zeros((60, 80), np.int32)
    y, x = np.mgrid[:60, :80]
    for number in range(12):
        angle = 2 * np.pi * number / 12
        disc = np.hypot(y - 30 - 16 * np.sin(angle), x - 35 - 16 * np.cos(angle)) < 4
        labels[disc], groups[disc] = number + 1, 1
    for number, centre in ((13, 5), (14, 14)):
        disc = np.hypot(y - centre, x - 77) < 5
        labels[disc], groups[disc] = number, 2
    labels[50:56, 65:70] = 15
    maps = xr.Dataset(
        {
            "mn3_fraction": (("y", "x"), np.where(labels > 0, 0.2 + 0.01 * labels, np.nan)),
            "thickness": (("y", "x"), np.where(labels > 0, 80.0, 0.0), {"units": "nm"}),
            "particle_label": (("y", "x"), labels),
            "agglomerate_label": (("y", "x"), groups),
        },
        {d: (d, 20.0 * (0.5 + np.arange(n)), {"units": "nm"}) for d, n in (("y", 60), ("x", 80))},
        {"fraction": "mn3"},
    )
    place = np.array(["exterior"] * 11 + ["interior"] + ["exterior"] * 2 + ["outside"], object)
    particles = xr.Dataset({"place": ("particle", place)}, {"particle": np.arange(1, 16)})
    sizes = xr.Dataset(
        {"size_class": ("agglomerate", np.array(["large", "small"], object))},
        {"agglomerate": [1, 2]},
    )
    names = {"maps": maps, "particles": particles, "heterogeneity": sizes}
    return xr.DataTree.from_dict({f"/entry/{name}": group for name, group in names.items()})


def test_bodies_of_agglomerates_are_filled():
    maps = ring()["entry/maps"].to_dataset()
    bodies = filled_bodies(maps)
    primaries = maps["agglomerate_label"].values
    np.testing.assert_array_equal(bodies[primaries > 0], primaries[primaries > 0])
    assert bodies[30, 35] == 1  # the middle of the ring
    assert bodies[53, 67] == 0  # the primary outside
    assert not np.any(bodies[:, :10])


def test_agglomerates_are_outlined_and_numbered():
    figure = figures.agglomerates_figure(ring())
    numbers = {t.get_text(): t for t in figure.axes[0].texts}
    assert set(numbers) == {"1", "2"}
    assert numbers["1"].get_fontweight() == "bold"
    assert numbers["2"].get_fontweight() == "normal"
    np.testing.assert_allclose(numbers["1"].get_position(), (35.5 * 20, 30.5 * 20), atol=25)
    widths = [c.get_linewidths()[0] for c in figure.axes[0].collections]
    assert max(widths[2:]) == 2 * max(widths[:2])  # large ones are drawn over small ones
    # one outline around the whole ring, none inside it
    segments = np.array(figure.axes[0].collections[-1].get_segments())
    reach = np.hypot(*(segments.mean(axis=1) - [35.5 * 20, 30.5 * 20]).T)
    assert reach.min() > 14 * 20
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(image.get_array()[53, 67], 0.35)


def test_one_agglomerate_is_the_largest_whole_one():
    figure = figures.one_agglomerate_figure(ring())
    assert "agglomerate 1" in texts(figure)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert left < (35 - 20) * 20 < (35 + 21) * 20 < right < 75 * 20
    assert bottom < 10 * 20 < 51 * 20 < top
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["exterior", "interior"]
    colours = figure.legends[0].legend_handles
    drawn = [mpl.colors.to_hex(c.get_colors()[0]) for c in figure.axes[0].collections]
    assert [mpl.colors.to_hex(c.get_color()) for c in colours] == drawn[1:]
    # the primary with the number 12 alone is interior
    segments = np.array(figure.axes[0].collections[-1].get_segments()).mean(axis=(0, 1))
    angle = 2 * np.pi * 11 / 12
    middle = [(35.5 + 16 * np.cos(angle)) * 20, (30.5 + 16 * np.sin(angle)) * 20]
    np.testing.assert_allclose(segments, middle, atol=15)
    assert "agglomerate 2" in texts(figures.one_agglomerate_figure(ring(), 2))
    assert figures.one_agglomerate_figure(ring(), 7) is None


def test_without_agglomerates_there_is_no_figure_of_them():
    alone = replaced(ring(), "maps", agglomerate_label=(("y", "x"), np.zeros((60, 80), np.int32)))
    assert figures.agglomerates_figure(alone) is None
    assert figures.one_agglomerate_figure(alone) is None


# --- thickness ---------------------------------------------------------------------------------


def test_bin_means_cover_the_truth():
    """Two thirds of the intervals hold the mean, also where agglomerates have a level."""
    rng = np.random.default_rng(2)
    unit = np.repeat(np.arange(8), 10)
    covered, edges = [], np.array([0.0, 50.0, 100.0])
    for _ in range(400):
        thickness = rng.uniform(0, 100, unit.size)
        values = 0.3 + 0.03 * rng.normal(size=8)[unit] + 0.02 * rng.normal(size=unit.size)
        rows = bin_means(thickness, values, unit, edges)
        covered += list(np.abs(rows[:, 1] - 0.3) < rows[:, 2])
    assert 0.62 < np.mean(covered) < 0.75


def test_bin_means_of_few():
    """One agglomerate tells only how much its primaries scatter; one particle tells nothing."""
    thickness, values = np.array([10.0, 20.0, 30.0, 80.0]), np.array([0.1, 0.2, 0.3, 0.9])
    edges = np.array([0.0, 50.0, 100.0])
    (row,) = bin_means(thickness, values, np.ones(4, int), edges)
    # Student's factor of three is 1.32
    np.testing.assert_allclose(row, [20.0, 0.2, 1.3213 * 0.1 / np.sqrt(3)], rtol=1e-3)
    assert bin_means(thickness[:1], values[:1], np.ones(1, int), edges).shape == (0, 3)


def test_thickness_figure(electrode):
    figure = figures.thickness_figure(electrode)
    particles, found = electrode["entry/particles"], electrode["entry/heterogeneity"]
    outside = particles["place"].values == "outside"
    for axes, first, question in zip(
        figure.axes,
        (outside, particles["place"].values == "exterior"),
        ("outside-inside", "exterior-interior"),
        strict=True,
    ):
        x, y, half = bars(axes)[0]
        np.testing.assert_allclose(x, particles["thickness"].values[first])
        np.testing.assert_allclose(y, particles["mn3_fraction"].values[first])
        np.testing.assert_allclose(half, 0.004)
        row = found.sel(contrast=f"{question} at equal thickness")
        assert f"{float(row['difference']):+.3f} ({float(row['low']):+.3f}" in axes.get_title(
            "left"
        )
        assert "95 %" in axes.get_title("left")
        means = bars(axes)[2]
        assert len(means[0]) > 2
        # means lie among their particles
        assert y.min() < min(means[1]) < max(means[1]) < y.max()
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels == ["outside (60)", "inside (120)"]


def test_particles_that_do_not_count_are_not_drawn(electrode):
    used = np.arange(180) % 2 == 0
    half = replaced(electrode, "particles", used=("particle", used))
    drawn = sum(len(x) for x, _, _ in bars(figures.thickness_figure(half).axes[0])[:2])
    assert drawn == 90


def test_thickness_needs_places(electrode):
    loose = np.full(180, "outside", object)
    assert (
        figures.thickness_figure(replaced(electrode, "particles", place=("particle", loose)))
        is None
    )


def test_other_edges(tree):
    figure = figures.charged_maps_figure(tree)
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) == 2  # not the repeat at the edge of the main map
    values = tree["entry/maps_ni_l3/ni_red_fraction"].values
    drawn = ~shown[0].get_array().mask
    np.testing.assert_allclose(shown[0].get_array().data[drawn], values[drawn])
    assert {"Ni L3: ni_red fraction", "O K: o_red fraction"} <= set(texts(figure).split(" | "))
    assert figures.charged_maps_figure(make_tree()) is None


def test_other_edges_against_thickness(tree):
    figure = figures.charged_thickness_figure(tree)
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels == ["Ni L3, ni_red (3)", "O K, o_red (3)"]
    x, y, _ = bars(figure.axes[0])[0]
    particles = tree["entry/particles"]
    np.testing.assert_allclose(x, particles["thickness"].values[:3])
    np.testing.assert_allclose(y, particles["ni_red_fraction"].values[:3])


# --- how much particles differ -------------------------------------------------------------------


def test_depth(electrode):
    """Levels that agglomerates have of their own neither tilt the points nor hide their trend."""
    table = electrode["entry/particles"].to_dataset()
    level = 0.05 * np.random.default_rng(8).normal(size=7)
    level[0] = 0.0
    shifted = table["mn3_fraction"] + level[table["agglomerate"].values]
    moved = replaced(electrode, "particles", mn3_fraction=shifted)
    for one in (electrode, moved):
        figure = figures.depth_figure(one)
        x, y, _ = bars(figure.axes[0])[0]
        assert len(x) == 120
        slope = float(electrode["entry/heterogeneity/depth_trend"][0])
        np.testing.assert_allclose(np.polyfit(x, y, 1)[0], slope, rtol=0.05)
        trend = figure.axes[0].lines[-1]
        np.testing.assert_allclose(np.polyfit(*trend.get_data(), 1)[0], slope)
        assert np.std(y) < 0.03
    assert f"trend: {1000 * slope:+.3f}".replace("-", "\N{MINUS SIGN}") in texts(figure)
    unknown = replaced(electrode, "heterogeneity", depth_trend=("trend", [np.nan, np.nan]))
    assert is_note(figures.depth_figure(unknown))


def test_variance(electrode):
    found = electrode["entry/heterogeneity"]
    figure = figures.variance_figure(electrode)
    (axes,) = figure.axes
    known = np.flatnonzero(np.isfinite(found["variance"].values))
    lengths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(np.array(lengths)[known], np.sqrt(found["variance"].values[known]))
    ends = interval_ends(axes)
    np.testing.assert_allclose(
        ends[1], np.sqrt([found["variance_low"][1], found["variance_high"][1]])
    )
    assert "not known" in texts(figure)  # no maps, so nothing within primaries
    far = found["variance_high"].copy(deep=True)
    far[0] = 1e4 * float(found["variance"].max())
    figure = figures.variance_figure(replaced(electrode, "heterogeneity", variance_high=far))
    assert figure.axes[0].get_xlim()[1] < 4 * np.sqrt(float(found["variance"].max()))
    assert any(isinstance(a, Annotation) and a.arrow_patch for a in figure.axes[0].texts)


def test_primaries_needed(electrode):
    found = electrode["entry/heterogeneity"]
    figure = figures.primaries_figure(electrode)
    left, right = figure.axes
    curves = {line.get_label(): line.get_data() for line in right.lines}
    np.testing.assert_allclose(curves["agglomerates added"], [found["number"], found["half_width"]])
    (needed,), (wanted,) = curves["_needed"]
    assert (needed, wanted) == (float(found["primaries_needed"]), 0.02)
    assert "seen: 180" in right.get_title("left")
    band = left.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([band.y0, band.y1],
                               [found["seen_low"].min(), found["seen_high"].max()])  # fmt: skip
    never = replaced(electrode, "heterogeneity", primaries_needed=((), np.nan))
    assert "out of reach" in texts(figures.primaries_figure(never))


def test_correlation(tree):
    lag = np.arange(20.0, 400, 20)
    known = {
        "correlation_variance": ("lag", 0.01 * np.exp(-lag / 80)),
        "correlation_length": ((), 80.0),
        "correlation_length_errors": ((), 6.0),
        "correlated_variance": ((), 0.01),
    }
    found = xr.Dataset(known, {"lag": lag})
    result = xr.DataTree.from_dict({"/entry/heterogeneity": found})
    figure = figures.correlation_figure(result)
    lines = {line.get_label(): line.get_data() for line in figure.axes[0].lines}
    x, curve = lines["exponential"]
    np.testing.assert_allclose(np.interp(lag, x, curve), lines["measured"][1], rtol=1e-3)
    assert "correlation length 80 ± 6 nm" in texts(figure)
    unknown = found.assign(correlation_length=((), np.nan))
    result = xr.DataTree.from_dict({"/entry/heterogeneity": unknown})
    assert "not known" in texts(figures.correlation_figure(result))


# --- oxygen and repeats ------------------------------------------------------------------------


def test_oxygen(tree):
    """What was measured is read back from the models and the differences from them."""
    figure = figures.oxygen_figure(tree)
    found = tree["entry/oxygen"]
    released, li_tm, density = figure.axes
    value = 100 * float(found["released_fraction"])
    np.testing.assert_allclose(released.containers[0].lines[0].get_xdata(), value)
    for axes, name, given in ((li_tm, "li_tm", (1.40, 0.04)), (density, "density", (4.35, 0.1))):
        points = [float(c.lines[0].get_xdata()[0]) for c in axes.containers[::2]]
        np.testing.assert_allclose(points, [*found[name].values, given[0]])
        np.testing.assert_allclose(np.ptp(interval_ends(axes)[2]) / 2, given[1])
    shown = texts(figure)
    assert "vacancy: Li$_{1.18}$Ni$_{0.21}$" in shown
    assert f"finding: {found['finding'].item()}" in shown


def test_oxygen_without_measured_structure(tree):
    names = [n for n in tree["entry/oxygen"].data_vars if str(n).startswith(("density", "li_tm_"))]
    less = without(tree, [("oxygen", str(n)) for n in names])
    figure = figures.oxygen_figure(less)
    assert len(figure.axes) == 2
    assert "measured" not in texts(figure)


def test_repeats(tree):
    figure = figures.repeats_figure(tree)
    left, right = figure.axes
    x, y, half = bars(left)[0]
    found = tree["entry/repeats"].isel(scan=0)
    np.testing.assert_allclose(x, found["dose"])
    np.testing.assert_allclose(y, found["change"])
    np.testing.assert_allclose(half, 0.004)
    assert "again: mean +0.0150 (+0.0130 to +0.0170)" in left.get_title("left")
    pulls = right.lines[1].get_ydata()
    np.testing.assert_allclose(pulls, np.sort(found["change"] / 0.004))
    one = xr.DataTree.from_dict({"/entry/repeats": found.to_dataset().drop_vars(["dose", "scan"])})
    assert figures.repeats_figure(one).axes[0].get_xlabel() == "particle"


# --- states ------------------------------------------------------------------------------------


def test_states_against_cycles(series):
    found = series["entry/series"]
    oxygen, state = figures.release_figure(series).axes
    for axes, name, factor in ((oxygen, "released_fraction", 100), (state, "mn_state", 1)):
        drawn = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers]
        values = factor * found[name].values
        np.testing.assert_allclose(drawn[::2], np.transpose([[0, 1, 125], values]))
        thin = np.ptp(axes.containers[2].lines[2][0].get_segments()[0][:, 1]) / 2
        both = np.hypot(found[f"{name}_errors"][1], found[f"{name}_systematic"][1])
        np.testing.assert_allclose(thin, factor * both)
    assert [t.get_text() for t in oxygen.get_xticklabels()] == ["0", "1", "125"]


def test_spectra_and_profiles_of_states(series):
    found = series["entry/series"]
    upper, lower = figures.state_spectra_figure(series).axes
    np.testing.assert_allclose(upper.lines[2].get_ydata(), found["mean_od"][2])
    assert len(lower.lines) == 1 + 2  # zero, and no difference of the reference from itself
    np.testing.assert_allclose(lower.lines[2].get_ydata(), found["mean_od_difference"][2])
    upper, _ = figures.state_profiles_figure(series).axes
    _, y, half = bars(upper)[1]
    np.testing.assert_allclose(y, found["mn3_profile"][1])
    np.testing.assert_allclose(half, found["mn3_profile_errors"][1])


def test_distributions_and_differences_of_states(series):
    found = series["entry/series"]
    *panels, right = figures.state_distributions_figure(series).axes
    np.testing.assert_allclose(bars(panels[1])[0][1], found["density"][1])
    middle = [c.lines[0].get_xdata()[0] for c in right.containers]
    np.testing.assert_allclose(np.reshape(middle, (3, 5)), found["mn3_quantiles"])
    (axes,) = figures.state_differences_figure(series).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "1 cycle less pristine", "125 cycles less pristine", "125 cycles less 1 cycle"]  # fmt: skip
    raw = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 0] for s in raw], np.transpose([found["low"], found["high"]]))


def test_growth_of_the_product_of_states(series):
    found = series["entry/series"]
    figure = figures.growth_figure(series)
    (axes,) = figure.axes
    drawn = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers[1::2]]
    np.testing.assert_allclose(drawn, np.transpose([[0, 1, 125], found["log10_Dt"]]))
    thick = [c.lines[2][0].get_segments()[0][:, 1] for c in axes.containers[1::2]]
    ends = np.transpose([found["log10_Dt_low68"], found["log10_Dt_high68"]])
    np.testing.assert_allclose(thick, ends)
    assert f"slope with time: {float(found['growth_slope']):.2f}" in texts(figure)
    (one,) = [line for line in axes.lines if line.get_label() == "one D for all"]
    np.testing.assert_allclose(np.diff(one.get_ydata()), 1.0)  # ten times the time


def test_a_state_with_only_a_limit_is_a_triangle(series):
    value = series["entry/series/log10_Dt"].copy(deep=True)
    low = series["entry/series/log10_Dt_low68"].copy(deep=True)
    value[0], low[0] = np.nan, -np.inf
    figure = figures.growth_figure(replaced(series, "series", log10_Dt=value, log10_Dt_low68=low))
    (limit,) = [line for line in figure.axes[0].lines if line.get_marker() == "v"]
    np.testing.assert_allclose(limit.get_ydata(), series["entry/series/log10_Dt_high68"].values[0])
    assert "pristine, upper limit" in texts(figure)


# --- truth -------------------------------------------------------------------------------------


def test_truth_on_the_same_grid(tree):
    figure = figures.truth_comparison(tree, tree)
    assert "median +0, scatter 0" in texts(figure)
    shown = texts(figure)
    assert shown.count("truth") >= 2


def test_truth_as_the_optics_see_it(tree):
    maps = tree["entry/maps"]
    truth = replaced(tree, "maps", thickness_blurred=maps["thickness"] - 2)
    figure = figures.truth_comparison(tree, truth)
    assert "truth, as the optics see it" in texts(figure)
    assert "median +2, scatter" in texts(figure)


def test_truth_on_another_grid_is_interpolated(tree):
    maps = tree["entry/maps"].to_dataset()
    plane = maps["y"] / 100 + maps["x"] / 50 + 60
    answer = replaced(tree, "maps", thickness=plane.assign_attrs(units="nm"))
    y, x = np.arange(-5, 610, 7.0), np.arange(-5, 810, 7.0)
    finer = xr.Dataset(
        {"thickness": (("y", "x"), y[:, None] / 100 + x[None, :] / 50 + 60 - 3)},
        coords={"y": y, "x": x},
    )
    truth = xr.DataTree.from_dict({"/entry/maps": finer})
    figure = figures.truth_comparison(answer, truth)
    difference = figure.axes[2].images[0].get_array().compressed()
    np.testing.assert_allclose(difference, 3, atol=1e-9)


# --- files and names ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_saving(tree, tmp_path, ending):
    path = figures.save_figure(figures.i0_figure(tree), tmp_path / f"i0.{ending}")
    assert path.stat().st_size > 2000


def test_saving_as_what_is_no_figure(tree, tmp_path):
    figure = figures.i0_figure(tree)
    with pytest.raises(FileError, match=r"i0\.docx.*no figure format.*png"):
        figures.save_figure(figure, tmp_path / "i0.docx")
    with pytest.raises(FileError, match="could not be written"):
        figures.save_figure(figure, tmp_path / "nowhere" / "i0.png")


def column(rows, name, **chosen):
    """One column of the rows that have these values."""
    return [row[name] for row in rows if all(row[k] == v for k, v in chosen.items())]


def test_rows_are_what_is_drawn(tree, electrode):
    rows = figures.figure_rows(figures.profiles_figure(tree))
    assert set(rows[0]) == set(COLUMNS)
    profiles = tree["entry/profiles"]
    finite = np.isfinite(profiles["mn3_fraction"].values[2])
    chosen = {"panel": 3, "series": "measured"}
    for name, values in {
        "x": profiles["distance"].values,
        "y": profiles["mn3_fraction"].values[2],
        "y_low": (profiles["mn3_fraction"] - profiles["mn3_fraction_errors"]).values[2],
        "y_high": (profiles["mn3_fraction"] + profiles["mn3_fraction_errors"]).values[2],
    }.items():
        drawn = np.array(column(rows, name, **chosen))[finite]
        np.testing.assert_allclose(drawn, values[finite])
    assert np.isnan(column(rows, "x_low", **chosen)).all()
    assert set(column(rows, "x_name")) == {"distance from the edge [nm]"}
    assert set(column(rows, "title", panel=3)) == {"3: core-shell"}
    np.testing.assert_allclose(
        np.array(column(rows, "y", panel=3, series="core-shell"))[finite],
        tree["entry/models/fit"].values[2, 1][finite],
    )
    # names instead of rows, and horizontal intervals
    rows = figures.figure_rows(figures.heterogeneity_figure(electrode))
    found = electrode["entry/heterogeneity"]
    assert column(rows, "y", panel=2) == [str(n) for n in found["contrast"].values]
    for end in ("low", "high"):
        np.testing.assert_allclose(column(rows, f"x_{end}", panel=2), found[end])
    # bands
    rows = figures.figure_rows(figures.primaries_figure(electrode))
    seen = np.isfinite(found["seen_low"].values)
    band = {"panel": 1, "series": "95 % of repeats"}
    np.testing.assert_allclose(column(rows, "x", **band), found["number"].values[seen])
    np.testing.assert_allclose(column(rows, "y_low", **band), found["seen_low"].values[seen])
    np.testing.assert_allclose(column(rows, "y_high", **band), found["seen_high"].values[seen])


def test_rows_of_limits_and_pooled_values(tree):
    rows = figures.figure_rows(figures.D_figure(tree))
    names = {(row["series"], row["y"]) for row in rows}
    assert {("value", "1"), ("68 % interval", "1"), ("upper limit", "2")} <= names
    np.testing.assert_allclose(column(rows, "x_low", series="pooled, 68 %"), 10**-17.10)
    assert set(column(rows, "x_name")) == {"D [cm² s⁻¹] (68 % intervals)"}


@pytest.mark.parametrize("name", [*ALL, *figures.SERIES_FIGURES])
def test_every_figure_has_data_with_names(drawn, name):
    rows, images = figures.figure_rows(drawn(name)), figures.figure_images(drawn(name))
    assert rows or images or name == "label_map"
    for row in rows:
        assert row["series"]
        assert row["x_name"] or isinstance(row["x"], str), row
        assert row["y_name"] or isinstance(row["y"], str), row


def test_images_are_maps_with_their_axes(tree):
    (table,) = figures.figure_images(figures.thickness_map(tree)).values()
    maps = tree["entry/maps"]
    np.testing.assert_allclose(table[0, 1:], maps["x"])
    np.testing.assert_allclose(table[1:, 0], maps["y"])
    np.testing.assert_allclose(table[1:, 1:], maps["thickness"])
    assert np.isnan(table[0, 0])


def test_all_figures_are_written(tree, tmp_path):
    seen = []

    def track(jobs):
        for job in jobs:
            seen.append(job.name)
            yield job

    files = figures.write_figures({"field": tree}, tmp_path, formats=["png"], dpi=50, track=track)
    assert sorted(files) == sorted(tmp_path.iterdir())
    names = {file.name for file in files}
    expected = {"2a_fraction_map.png", "2a_fraction_map_map1.csv.gz", "4a_agglomerates.png",
                "4cd_thickness.csv", "5abc_charged_maps_map2.csv.gz", "oxygen.csv"}  # fmt: skip
    assert expected <= names
    assert len(seen) == len(ALL) + len(figures.SERIES_FIGURES)
    widths = set()
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                widths.add(image.width)
    assert widths == {int(89 / 25.4 * 50), int(183 / 25.4 * 50)}
    with open(tmp_path / "oxygen.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    measured = [row for row in rows if row["series"] == "measured, random"]
    assert [row["y"] for row in measured] == ["measured", "measured"]
    np.testing.assert_allclose([float(row["x"]) for row in measured], [1.40, 4.35])
    with gzip.open(tmp_path / "thickness_map_map1.csv.gz") as stream:
        table = np.genfromtxt(stream, delimiter=",")
    np.testing.assert_allclose(table[1:, 1:], tree["entry/maps/thickness"], rtol=1e-5)


def test_drawings_hold_text_and_are_the_same_again(tmp_path):
    groups = {"/entry/spectra": make_tree()["entry/spectra"].to_dataset()}
    few = xr.DataTree.from_dict(groups)
    once = figures.write_figures({"a": few}, tmp_path / "1", formats=["svg", "pdf"])
    again = figures.write_figures({"a": few}, tmp_path / "2", formats=["svg", "pdf"])
    assert [f.name for f in once] == [
        "mean_spectrum.svg", "mean_spectrum.pdf", "mean_spectrum.csv",
        "i0.svg", "i0.pdf", "i0.csv"]  # fmt: skip
    assert [f.read_bytes() for f in once] == [f.read_bytes() for f in again]
    drawing = (tmp_path / "1" / "i0.svg").read_text(encoding="utf-8")
    assert ">photon energy [eV]</text>" in drawing
    assert b"/Type3" not in (tmp_path / "1" / "i0.pdf").read_bytes()


def test_several_results_have_folders_of_their_own(series, tmp_path):
    some = only_maps()
    files = figures.write_figures(
        {"1 cycle": some, "series": series}, tmp_path, formats=["png"], dpi=40
    )
    assert {file.parent.name for file in files} == {"1_cycle", "series"}
    assert tmp_path / "series" / "1d_state_spectra.csv" in files


def test_what_cannot_be_written_is_said(tmp_path):
    some = only_maps()
    with pytest.raises(InputError, match="no result"):
        figures.write_figures({}, tmp_path)
    with pytest.raises(InputError, match=r"gif is no format.*pdf"):
        figures.write_figures({"a": some}, tmp_path, formats=["png", "gif"])
    with pytest.raises(InputError, match="same name"):
        figures.write_figures({"a b": some, "a_b": some}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="folder"):
        figures.write_figures({"a": some}, tmp_path / "file" / "x", formats=["png"])


@pytest.mark.parametrize(
    ("name", "label"),
    [("mn3", "Mn³⁺"), ("ni2", "Ni²⁺"), ("goethite", "goethite"), ("fe", "fe"), ("xy3", "xy3")],
)
def test_component_labels(name, label):
    assert figures.component_label(name) == label
