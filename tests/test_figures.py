"""Figures show what the tree holds, say what they show, and never fail for what is missing."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from make_results import make_tree, only_maps, without_particles
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image

from spectromap import figures
from spectromap.schema import FLAGS, RESULT_GROUPS, FileError

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


@pytest.fixture(scope="module")
def tree():
    return make_tree()


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


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn(tree, name):
    figure = figures.FIGURES[name](tree)
    assert isinstance(figure, Figure)
    assert not is_note(figure)
    drawn = pixels(figure)
    assert drawn.std() > 5
    # the margins are white: nothing runs out of the picture
    for margin in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]):
        assert (margin == 255).all()


@pytest.mark.parametrize("name", figures.FIGURES)
def test_labels_do_not_overlap(tree, name):
    figure = figures.FIGURES[name](tree)
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
    for draw in figures.FIGURES.values():
        assert draw(bare) is None
        assert draw(xr.DataTree()) is None
    assert figures.truth_comparison(bare, bare) is None


@pytest.mark.parametrize("group", RESULT_GROUPS)
def test_any_group_may_be_missing(tree, group):
    groups = {path: node for path, node in tree.to_dict().items() if not path.endswith(group)}
    less = xr.DataTree.from_dict(groups)
    for draw in figures.FIGURES.values():
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
    for draw in figures.FIGURES.values():
        figure = draw(less)
        assert figure is None or isinstance(figure, Figure)


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


def bars(axes):
    """Points of the error bars of an axes: x, y, and half length."""
    found = []
    for container in axes.containers:
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
    intervals = [line.get_xdata() for line in forest.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(intervals[1], [0.021, 0.083])
    assert "p < 0.001" in texts(figure)
    assert "not testable" in texts(figure)


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


@pytest.mark.parametrize(
    ("name", "label"),
    [("mn3", "Mn³⁺"), ("ni2", "Ni²⁺"), ("goethite", "goethite"), ("fe", "fe"), ("xy3", "xy3")],
)
def test_component_labels(name, label):
    assert figures.component_label(name) == label
