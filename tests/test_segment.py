"""Segmentation against images whose particles are known."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, spatial

from spectromap import segment
from spectromap.schema import PLACES, InputError
from spectromap.segment.table import RIM_ERROR

MU = 0.018  # per nm; blur acts on exp(-MU T)


def a_map(values, pixel=(5.0, 5.0), name="thickness", units="nm"):
    coords = {
        dim: (dim, np.arange(n) * step + 100.0, {"units": "nm"})
        for dim, n, step in zip(("y", "x"), np.shape(values), pixel, strict=True)
    }
    return xr.DataArray(values, dims=("y", "x"), coords=coords, name=name, attrs={"units": units})


def label_map(values, pixel=(5.0, 5.0)):
    return a_map(np.asarray(values, np.int32), pixel, "particle_label", "1")


class Scene:
    """A field drawn on a fine grid, then blurred in intensity, binned and made noisy."""

    def __init__(self, size_px, pixel, resolution, sub, seed=0):
        self.pixel, self.resolution, self.sub = pixel, resolution, sub
        self.rng = np.random.default_rng(seed)
        step = pixel / sub
        axis = (np.arange(size_px * sub) + 0.5) * step
        self.y, self.x = np.meshgrid(axis, axis, indexing="ij")
        self.size = size_px * pixel
        self.thickness = np.zeros(self.y.shape)
        self.owner = np.zeros(self.y.shape, int)
        self.count = 0

    def add(self, thickness):
        self.count += 1
        self.owner[thickness > self.thickness] = self.count
        self.thickness = self.thickness + thickness

    def binned(self, values):
        n = values.shape[0] // self.sub
        return values.reshape(n, self.sub, n, self.sub).mean(axis=(1, 3))

    def finished(self, noise, uneven=0.0):
        sigma = self.resolution / 2.3548 / self.pixel * self.sub
        seen = self.binned(ndimage.gaussian_filter(np.exp(-MU * self.thickness), sigma))
        values = -np.log(seen) / MU
        labels = np.zeros(values.shape, int)
        for number in range(1, self.count + 1):
            labels[self.binned((self.owner == number).astype(float)) >= 0.5] = number
        ramp = np.linspace(-0.4, 0.6, values.shape[0])
        values = values + uneven * (ramp[:, None] + 0.5 * ramp**2)
        values = values + self.rng.normal(0, noise, values.shape)
        pixel = (self.pixel, self.pixel)
        errors = a_map(np.full(values.shape, noise), pixel, "thickness_errors")
        return a_map(values, pixel), errors, labels


def sphere(scene, y, x, radius):
    rest = radius**2 - (scene.y - y) ** 2 - (scene.x - x) ** 2
    return 2.0 * np.sqrt(np.maximum(rest, 0.0))


def polyhedron(scene, y, x, radius, rng):
    """A random convex body with 16 faces."""
    normals = rng.normal(size=(16, 3))
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    top = np.full(scene.y.shape, 1.2 * radius)
    bottom = -top
    for nx, ny, nz in normals:
        height = radius * rng.uniform(0.85, 1.1) - nx * (scene.x - x) - ny * (scene.y - y)
        if nz > 0:
            top = np.minimum(top, height / nz)
        else:
            bottom = np.maximum(bottom, height / nz)
    inside = np.hypot(scene.y - y, scene.x - x) < 1.25 * radius
    return np.where(inside, np.maximum(top - bottom, 0.0), 0.0)


def loose_field(size_px, pixel, resolution, sub, radii, section=None, seed=0, count=12):
    """Polyhedra and spheres; every third touches another or lies slightly over it."""
    scene = Scene(size_px, pixel, resolution, sub, seed)
    rng = scene.rng
    places = []
    while scene.count < count:
        radius = rng.uniform(*radii)
        touching = scene.count % 3 == 2
        if touching:
            y0, x0, other = places[rng.integers(len(places))]
            turn = rng.uniform(0, 2 * np.pi)
            apart = 0.92 * (radius + other)
            y, x = y0 + apart * np.sin(turn), x0 + apart * np.cos(turn)
        else:
            y, x = rng.uniform(0, scene.size, 2)
        if min(y, x) < 1.4 * radius or max(y, x) > scene.size - 1.4 * radius:
            continue
        near = [np.hypot(y - b, x - a) - r - radius for b, a, r in places]
        if sum(gap < 0.4 * radius + resolution for gap in near) > (1 if touching else 0):
            continue
        body = sphere(scene, y, x, radius)
        if rng.random() < 0.6:
            body = polyhedron(scene, y, x, radius, rng)
        scene.add(body if section is None else np.minimum(body, section))
        places.append((y, x, radius))
    return scene


def packed(count, diameter, pixel, gap, seed=0, section=80.0):
    """One agglomerate of primaries with walls `gap` apart, and four loose discs."""
    scene = Scene(int(1.4 * diameter / pixel), pixel, 45.0, int(pixel / 5), seed)
    rng, middle = scene.rng, scene.size / 2
    cloud = rng.uniform(-0.5, 0.5, (12_000, 2)) * diameter
    cloud = cloud[np.hypot(*cloud.T) < diameter / 2]
    points = cloud[:count].copy()
    for _ in range(6):
        nearest = spatial.cKDTree(points).query(cloud)[1]
        points = np.array([cloud[nearest == k].mean(axis=0) for k in range(count)])
    points += rng.normal(0, 0.05 * diameter / np.sqrt(count), points.shape)
    here = np.stack([scene.y.ravel() - middle, scene.x.ravel() - middle], axis=1)
    away, which = spatial.cKDTree(points).query(here, k=2)
    apart = np.linalg.norm(points[which[:, 0]] - points[which[:, 1]], axis=1)
    wall = (away[:, 1] ** 2 - away[:, 0] ** 2) / (2 * apart) - gap / 2
    inside = (np.minimum(wall, diameter / 2 - np.hypot(*here.T)) > 0).reshape(scene.y.shape)
    heights = section * rng.uniform(0.75, 1.0, count)
    cell = which[:, 0].reshape(scene.y.shape)
    for number in range(count):
        scene.add(np.where(inside & (cell == number), heights[number], 0.0))
    for y, x in ((0.08, 0.08), (0.92, 0.08), (0.08, 0.92), (0.92, 0.92)):
        far = np.hypot(scene.y - y * scene.size, scene.x - x * scene.size)
        scene.add(np.where(far < 0.4 * diameter / np.sqrt(count), section, 0.0))
    return scene


def overlaps(found, truth):
    """Best intersection over union of every true particle, and F1 at 0.5."""
    numbers = np.unique(truth[truth > 0])
    best = []
    for number in numbers:
        mine = truth == number
        hits = np.bincount(found[mine], minlength=1)
        hits[0] = 0
        other = found == hits.argmax()
        best.append(hits.max() / (mine | other).sum() if hits.max() else 0.0)
    count = len(np.unique(found[found > 0]))
    return np.array(best), 2 * np.sum(np.array(best) > 0.5) / (len(numbers) + count)


# ---------------------------------------------------------------- finding


@pytest.mark.parametrize("section", [None, 80.0])
def test_sharp_particles_are_found(section):
    scene = loose_field(200, 5.0, 10.0, 2, (60, 120), section, seed=3)
    thickness, errors, truth = scene.finished(2.0)
    found = segment.find_particles(thickness, errors, 10.0)
    best, f1 = overlaps(found.values, truth)
    assert best.mean() >= 0.92
    assert f1 == 1.0


@pytest.mark.parametrize("section", [None, 80.0])
def test_particles_are_found_at_stxm_resolution(section):
    scene = loose_field(150, 20.0, 45.0, 4, (150, 260), section, seed=5)
    thickness, errors, truth = scene.finished(3.0)
    best, f1 = overlaps(segment.find_particles(thickness, errors, 45.0).values, truth)
    assert best.mean() >= 0.88
    assert f1 >= 0.95


@pytest.mark.parametrize(
    ("count", "diameter", "pixel", "gap"), [(60, 2400.0, 20.0, 20.0), (60, 3200.0, 40.0, 40.0)]
)
def test_a_dense_agglomerate_falls_into_its_primaries(count, diameter, pixel, gap):
    thickness, errors, truth = packed(count, diameter, pixel, gap).finished(2.0)
    best, f1 = overlaps(segment.find_particles(thickness, errors, 45.0).values, truth)
    assert best.mean() >= 0.88
    assert f1 >= 0.97


def test_small_particles_are_found_at_stxm_resolution():
    scene = loose_field(150, 20.0, 45.0, 4, (65, 110), seed=2)
    thickness, errors, truth = scene.finished(2.0)
    best, f1 = overlaps(segment.find_particles(thickness, errors, 45.0).values, truth)
    assert best.mean() >= 0.85
    assert f1 >= 0.95


@pytest.mark.parametrize("height", [20.0, 60.0])
def test_a_background_that_no_quadratic_follows(height):
    scene = loose_field(200, 5.0, 10.0, 2, (60, 100), 80.0, seed=4)
    thickness, errors, truth = scene.finished(2.0)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in thickness.shape), indexing="ij")
    wave = height * np.sin(2.2 * x + 1) * np.cos(2.7 * y)
    found = segment.find_particles(thickness.copy(data=thickness.values + wave), errors, 10.0)
    best, f1 = overlaps(found.values, truth)
    assert best.mean() >= 0.9
    assert f1 == 1.0


def test_an_uneven_background_changes_little():
    scene = loose_field(160, 5.0, 10.0, 2, (60, 100), seed=8, count=8)
    clean, errors, _ = scene.finished(2.0)
    uneven, _, _ = scene.finished(2.0, uneven=50.0)
    flat = segment.find_particles(clean, errors, 10.0)
    best, f1 = overlaps(segment.find_particles(uneven, errors, 10.0).values, flat.values)
    assert f1 == 1.0
    assert best.min() > 0.93
    offset = segment.find_particles(clean.copy(data=clean.values + 15.0), errors, 10.0)
    assert overlaps(offset.values, flat.values)[0].min() > 0.98


@pytest.mark.parametrize("turn", [0.0, 0.4, 1.0])
def test_a_long_particle_stays_whole(turn):
    scene = Scene(120, 5.0, 10.0, 2)
    y, x = scene.y - 300, scene.x - 300
    along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
    scene.add(np.where((abs(along) < 220) & (abs(across) < 55), 80.0, 0.0))
    thickness, errors, truth = scene.finished(3.0)
    found = segment.find_particles(thickness, errors, 10.0)
    assert found.values.max() == 1
    assert overlaps(found.values, truth)[0][0] > 0.93


def touching(pixel=5.0, apart=1.85):
    scene = Scene(120, pixel, 2 * pixel, 2)
    for side in (-0.5, 0.5):
        scene.add(sphere(scene, 60 * pixel, (60 + side * apart * 20) * pixel, 20 * pixel))
    return scene


def test_touching_particles_are_told_apart_only_if_wanted():
    thickness, errors, truth = touching().finished(2.0)
    found = segment.find_particles(thickness, errors, 10.0)
    assert found.values.max() == 2
    assert overlaps(found.values, truth)[0].min() > 0.9
    assert segment.find_particles(thickness, errors, 10.0, split=False).values.max() == 1


def test_labels_are_numbered_by_their_first_pixel_and_reproduced():
    thickness, errors, _ = loose_field(160, 5.0, 10.0, 2, (60, 100), seed=8, count=8).finished(2.0)
    found = segment.find_particles(thickness, errors, 10.0)
    assert found.dtype == np.int32
    assert found.name == "particle_label"
    numbers, first = np.unique(found.values[found.values > 0], return_index=True)
    np.testing.assert_array_equal(numbers, np.arange(1, 9))
    assert np.all(np.diff(first) > 0)
    xr.testing.assert_identical(found, segment.find_particles(thickness, errors, 10.0))
    turned = segment.find_particles(
        thickness.copy(data=thickness.values[::-1, ::-1]), errors, 10.0
    ).values[::-1, ::-1]
    assert overlaps(turned, found.values)[0].min() > 0.98


@pytest.mark.parametrize("field", ["noise", "ramp", "nothing", "no data"])
def test_an_empty_field_gives_no_labels_and_says_so(field, caplog):
    rng = np.random.default_rng(0)
    values = {
        "noise": rng.normal(0, 3, (128, 128)),
        "ramp": rng.normal(0, 3, (128, 128)) + np.linspace(-20, 40, 128),
        "nothing": np.zeros((40, 40)),
        "no data": np.full((40, 40), np.nan),
    }[field]
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        found = segment.find_particles(a_map(values), None, 10.0)
    assert not found.values.any()
    assert "nothing" in caplog.text


def test_missing_pixels_are_background():
    thickness, errors, truth = touching(apart=2.6).finished(2.0)
    values = thickness.values.copy()
    values[:, :20] = np.nan
    values[60, 40:44] = np.nan
    found = segment.find_particles(thickness.copy(data=values), errors, 10.0)
    assert not found.values[np.isnan(values)].any()
    assert found.values.max() == 2
    assert overlaps(found.values, truth)[0].min() > 0.8


def test_size_limits_and_holes():
    scene = Scene(140, 5.0, 10.0, 2)
    for x, radius in ((100, 20), (250, 60), (520, 120)):
        far = np.hypot(scene.y - 350, scene.x - x)
        scene.add(np.where((far < radius) & ((far > 12) | (radius < 100)), 80.0, 0.0))
    thickness, errors, _ = scene.finished(2.0)
    every = segment.find_particles(thickness, errors, 10.0)
    assert every.values.max() == 3
    assert every.values[70, 104] == every.values[70, 90] == 1  # the hole of the large one
    assert segment.find_particles(thickness, errors, 10.0, min_radius_nm=40.0).values.max() == 2
    assert segment.find_particles(thickness, errors, 10.0, max_radius_nm=90.0).values.max() == 2


def test_a_given_threshold_is_where_particles_end():
    scene = Scene(100, 5.0, 10.0, 2)
    scene.add(sphere(scene, 250, 250, 150))
    thickness, errors, _ = scene.finished(0.5)
    for level in (100.0, 200.0):
        found = segment.find_particles(thickness, errors, 10.0, threshold_nm=level)
        above = (thickness.values > level).sum()
        assert (found.values == 1).sum() == pytest.approx(above, rel=0.02)


def test_mistakes_are_named():
    thickness = a_map(np.zeros((20, 20)))
    with pytest.raises(InputError, match="min_radius_nm"):
        segment.find_particles(thickness, None, 10.0, min_radius_nm=-1.0)
    with pytest.raises(InputError, match="resolution_nm"):
        segment.find_particles(thickness, None, float("nan"))
    with pytest.raises(InputError, match="units"):
        segment.find_particles(a_map(np.zeros((20, 20)), units="um"), None, 10.0)


# ---------------------------------------------------------------- outlines


def anti_aliased_disc(radius, centre, size=64, height=80.0, pixel=(1.0, 1.0)):
    fine = (np.arange(size * 8) + 0.5) / 8 - 0.5
    y, x = np.meshgrid(fine, fine, indexing="ij")
    inside = np.hypot((y - centre[0]) * pixel[0], (x - centre[1]) * pixel[1]) < radius
    return height * inside.reshape(size, 8, size, 8).mean(axis=(1, 3))


@pytest.mark.parametrize("threshold", [None, 40.0])
@pytest.mark.parametrize(("pixel", "tolerance"), [((1.0, 1.0), 0.1), ((1.0, 1.6), 0.25)])
def test_distances_are_measured_from_a_sub_pixel_outline(threshold, pixel, tolerance):
    radius, centre = 20.3, (31.3, 32.1)
    values = anti_aliased_disc(radius, centre, pixel=pixel)
    thickness, labels = a_map(values, pixel), label_map(values > 40, pixel)
    distance = segment.edge_distance(labels, thickness, 2.0, threshold_nm=threshold)
    y, x = np.indices(values.shape)
    exact = radius - np.hypot((y - centre[0]) * pixel[0], (x - centre[1]) * pixel[1])
    near = exact > -6.0 + tolerance
    assert np.isfinite(distance.values[near]).all()
    assert np.isnan(distance.values[exact < -6.0 - tolerance]).all()
    known = np.isfinite(distance.values)
    assert np.abs(distance.values - exact)[known].max() < tolerance
    outline = segment.outlines(labels, thickness, threshold_nm=threshold)[1]
    assert segment.outline_area(outline) == pytest.approx(np.pi * radius**2, rel=0.015)
    middle = 0.5 * (outline.min(axis=0) + outline.max(axis=0))
    np.testing.assert_allclose(middle, 100.0 + np.multiply(centre, pixel), atol=0.1)


def test_the_line_between_touching_particles_is_an_edge_of_both():
    thickness, errors, _ = touching(apart=1.9).finished(1.0)
    found = segment.find_particles(thickness, errors, 10.0)
    distance = segment.edge_distance(found, thickness, 10.0).values
    row = distance[60]
    # Centres are 95 nm from the line between the two and the radius is 100 nm.
    assert row[58:62].max() < 12.0
    assert row[40:42].max() == pytest.approx(95.0, abs=8.0)
    assert np.all(distance[(found.values > 0) & np.isfinite(distance)] > -5.0)


def test_a_hand_drawn_label_is_taken_as_it_is():
    thickness, _, _ = touching(apart=2.6).finished(1.0)
    drawn = np.zeros(thickness.shape, int)
    drawn[20:50, 30:90] = 7  # follows no contour of the map
    outline = segment.outlines(label_map(drawn), thickness)
    assert list(outline) == [7]
    assert segment.outline_area(outline[7]) == pytest.approx(30 * 60 * 25, rel=0.03)
    low, high = outline[7].min(axis=0), outline[7].max(axis=0)
    np.testing.assert_allclose(low, [100 + 19.5 * 5, 100 + 29.5 * 5], atol=1.5)
    np.testing.assert_allclose(high, [100 + 49.5 * 5, 100 + 89.5 * 5], atol=1.5)


def test_the_border_of_the_map_is_no_edge():
    values = np.zeros((40, 40))
    values[:20, 10:30] = 80.0
    distance = segment.edge_distance(label_map(values > 0), a_map(values), 10.0).values
    assert distance[0, 20] == pytest.approx(9.5 * 5, abs=3.0)
    assert distance[10, 20] == pytest.approx(9.5 * 5, abs=3.0)


def test_nothing_labelled_has_no_outline():
    empty = label_map(np.zeros((20, 20)))
    assert segment.outlines(empty, a_map(np.zeros((20, 20)))) == {}
    assert np.isnan(segment.edge_distance(empty, a_map(np.zeros((20, 20)))).values).all()
    full = segment.edge_distance(label_map(np.ones((20, 20))), a_map(np.full((20, 20), 80.0)))
    assert np.isnan(full.values).all()


@given(
    radius=st.floats(1.0, 1e3),
    sides=st.integers(3, 40),
    shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
    start=st.integers(0, 39),
)
@settings(max_examples=40, deadline=None)
def test_area_of_a_regular_polygon(radius, sides, shift, start):
    turn = 2 * np.pi * (np.arange(sides) + start) / sides
    outline = radius * np.column_stack([np.sin(turn), np.cos(turn)]) + shift
    exact = 0.5 * sides * radius**2 * np.sin(2 * np.pi / sides)
    assert segment.outline_area(outline) == pytest.approx(exact, rel=1e-6)
    assert segment.outline_area(outline[::-1]) == pytest.approx(exact, rel=1e-6)


# ---------------------------------------------------------------- given labels


def test_given_labels_keep_their_numbers():
    like = a_map(np.zeros((4, 5)))
    given_labels = np.array([[0, 3, 3, 0, 17]] * 4, float)
    taken = segment.check_labels(given_labels, like)
    np.testing.assert_array_equal(taken.values, given_labels)
    assert taken.dtype == np.int32
    assert taken.name == "particle_label"
    np.testing.assert_array_equal(taken.x, like.x)
    xr.testing.assert_identical(segment.check_labels(taken, like), taken)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((5, 4), int), r"\(5, 4\).*\(4, 5\)"),
        (np.full((4, 5), 0.5), "whole numbers"),
        (np.full((4, 5), -1), "whole numbers"),
        (np.full((4, 5), "a"), "type"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        segment.check_labels(labels, a_map(np.zeros((4, 5))))


# ---------------------------------------------------------------- agglomerates


def grid_of_discs(rows, columns, gap=2, size=9, shape=(120, 120), corner=(10, 10)):
    labels = np.zeros(shape, int)
    for k in range(rows * columns):
        y = corner[0] + (k // columns) * (size + gap)
        x = corner[1] + (k % columns) * (size + gap)
        labels[y : y + size, x : x + size] = k + 1
    return labels


def test_close_particles_make_an_agglomerate():
    labels = grid_of_discs(4, 5)
    labels[80:90, 80:90] = 30
    labels[80:90, 92:102] = 31
    groups = segment.group_agglomerates(label_map(labels))
    assert groups.name == "agglomerate_label"
    assert set(np.unique(groups.values[(labels > 0) & (labels < 30)])) == {1}
    assert not groups.values[(labels == 0) | (labels >= 30)].any()
    pairs = segment.group_agglomerates(label_map(labels), min_particles=2)
    assert pairs.values.max() == 2


def test_the_gap_decides():
    labels = grid_of_discs(4, 5, gap=4)
    for gap_nm, expected in ((19.0, 0), (20.0, 1)):
        groups = segment.group_agglomerates(label_map(labels), gap_nm=gap_nm)
        assert groups.values.max() == expected
    with pytest.raises(InputError, match="min_particles"):
        segment.group_agglomerates(label_map(labels), min_particles=0)
    assert not segment.group_agglomerates(label_map(labels * 0)).values.any()


def maps_of(labels, thickness=80.0, fraction=0.3, pixel=(5.0, 5.0), **more):
    shape = np.shape(labels)
    values = {
        "thickness": np.where(np.asarray(labels) > 0, thickness, 0.0),
        "thickness_errors": np.full(shape, 2.0),
        "mn3_fraction": np.broadcast_to(fraction, shape).copy(),
        "mn3_fraction_errors": np.full(shape, 0.03),
    } | more
    units = {"thickness": "nm", "thickness_errors": "nm"}
    maps = xr.Dataset({k: a_map(v, pixel, k, units.get(k, "1")) for k, v in values.items()})
    maps["particle_label"] = label_map(labels, pixel)
    return maps


def test_place_and_depth_in_an_agglomerate():
    labels = grid_of_discs(5, 5, corner=(30, 30))
    labels[5:14, 100:109] = 99
    maps = maps_of(labels)
    maps["agglomerate_label"] = segment.group_agglomerates(maps["particle_label"])
    table = segment.particle_table(maps, "mn3", 10.0)
    place = dict(zip(table.particle.values, table.place.values, strict=True))
    inner = {7, 8, 9, 12, 13, 14, 17, 18, 19}
    assert {k for k, v in place.items() if v == "interior"} == inner
    assert place[99] == "outside"
    assert set(place.values()) == set(PLACES)
    depth = dict(zip(table.particle.values, table.depth.values, strict=True))
    assert np.isnan(depth[99])
    assert depth[13] == pytest.approx(26.5 * 5, abs=8.0)  # the middle one
    assert depth[3] == pytest.approx(4.5 * 5, abs=5.0)
    wide = segment.particle_table(maps, "mn3", 10.0, exterior_nm=100.0)
    assert (wide.place.values == "interior").sum() == 1


def test_depth_is_not_measured_from_the_border_of_the_map():
    labels = grid_of_discs(5, 10, corner=(0, 0), shape=(53, 108))
    maps = maps_of(labels)
    maps["agglomerate_label"] = segment.group_agglomerates(maps["particle_label"])
    maps["particle_label"].values[0, 50] = 50  # nothing is outside: all goes on beyond the border
    table = segment.particle_table(maps, "mn3", 10.0)
    assert (table.place == "interior").all()


# ---------------------------------------------------------------- the table


def test_table_of_a_disc():
    radius, centre = 20.3, (31.3, 32.1)
    values = anti_aliased_disc(radius, centre)
    maps = maps_of(values > 40, pixel=(4.0, 4.0))
    maps["thickness"].values[:] = values
    maps["particle_label"].values[values > 40] = 12
    table = segment.particle_table(maps, "mn3", 8.0)
    assert table.particle.values.tolist() == [12]
    one = table.isel(particle=0)
    assert float(one.radius) == pytest.approx(4 * radius, rel=0.005)
    assert float(one.area) == pytest.approx(np.pi * (4 * radius) ** 2, rel=0.01)
    assert float(one.y) == pytest.approx(100 + 4 * centre[0], abs=0.4)
    assert float(one.x) == pytest.approx(100 + 4 * centre[1], abs=0.4)
    assert float(one.mn3_fraction) == pytest.approx(0.3)
    assert float(one.thickness_max) == pytest.approx(80.0, rel=0.01)
    assert float(one.overlap) == pytest.approx(80.0 / (8 * radius), rel=0.01)
    assert one.place == "outside"
    assert bool(one.used)
    assert one.reason == ""
    assert set(table.data_vars) == {
        *("area", "area_errors", "radius", "radius_errors", "y", "x"),
        *("thickness", "thickness_errors", "thickness_max", "overlap"),
        *("mn3_fraction", "mn3_fraction_errors", "agglomerate", "place", "depth"),
        *("at_border", "used", "reason"),
    }
    assert table.area.attrs["units"] == "nm2"
    assert table.at_border.dtype == bool


def test_the_error_of_the_area_is_what_noise_makes_of_it():
    rng = np.random.default_rng(2)
    values = ndimage.gaussian_filter(anti_aliased_disc(20.3, (31.3, 32.1)), 1.5)
    shared = RIM_ERROR * 12.0 * 2 * np.pi * 4 * 20.3  # what is the same in every repeat
    areas, variances = [], []
    for _ in range(60):
        maps = maps_of(values > 40, pixel=(4.0, 4.0), thickness_errors=np.full(values.shape, 12.0))
        maps["thickness"].values[:] = values + rng.normal(0, 12.0, values.shape)
        # At a given threshold; else the edge of the same label takes part of the noise away.
        maps["edge_distance"] = segment.edge_distance(
            maps["particle_label"], maps["thickness"], 12.0, threshold_nm=40.0
        )
        table = segment.particle_table(maps, "mn3", 12.0)
        areas.append(float(table.area[0]))
        variances.append(float(table.area_errors[0]) ** 2 - shared**2)
    assert 0.6 < np.sqrt(max(np.mean(variances), 0.0)) / np.std(areas) < 1.6


@pytest.mark.parametrize(
    ("resolution", "pixel", "radii"), [(10.0, 5.0, (60, 120)), (45.0, 20.0, (150, 260))]
)
def test_the_error_of_the_radius_covers_the_truth(resolution, pixel, radii):
    pulls = []
    for seed in (11, 12):
        scene = loose_field(200, pixel, resolution, 4, radii, seed=seed, count=12)
        thickness, errors, truth = scene.finished(2.0)
        found = segment.find_particles(thickness, errors, resolution)
        maps = maps_of(found.values, pixel=(pixel, pixel))
        maps["thickness"].values[:] = thickness.values
        table = segment.particle_table(maps, "mn3", resolution)
        for row in range(table.sizes["particle"]):
            mine = found.values == int(table.particle[row])
            whole = truth == np.bincount(truth[mine])[1:].argmax() + 1
            radius = pixel * np.sqrt(whole.sum() / np.pi)
            pulls.append(float((table.radius[row] - radius) / table.radius_errors[row]))
    assert 0.5 <= np.mean(np.abs(pulls) < 1) <= 0.95
    assert np.abs(pulls).max() < 4.0


def test_the_fraction_is_weighted_by_thickness():
    labels = np.zeros((60, 60), int)
    labels[10:50, 10:50] = 1
    thickness = np.where(labels > 0, np.linspace(20, 100, 60)[:, None], 0.0)
    fraction = np.tile(np.linspace(0.1, 0.7, 60)[:, None], (1, 60))
    maps = maps_of(labels, thickness, fraction)
    table = segment.particle_table(maps, "mn3", 10.0)
    inside = labels > 0
    exact = (thickness * fraction)[inside].sum() / thickness[inside].sum()
    assert float(table.mn3_fraction[0]) == pytest.approx(exact, rel=1e-6)
    flags = np.where(np.arange(60)[:, None] < 30, 8, 0) * np.ones((1, 60), int)
    maps["flags"] = label_map(flags)
    rest = inside & (flags == 0)
    exact = (thickness * fraction)[rest].sum() / thickness[rest].sum()
    assert float(segment.particle_table(maps, "mn3", 10.0).mn3_fraction[0]) == pytest.approx(exact)


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_errors_cover_with_and_without_correlated_noise(blur):
    rng = np.random.default_rng(4)
    labels = np.zeros((240, 240), int)
    for k in range(100):
        y, x = 8 + 23 * (k // 10), 8 + 23 * (k % 10)
        labels[y : y + 11, x : x + 11] = k + 1
    t3, t4 = (np.where(labels > 0, t, 0.0) for t in (24.0, 56.0))
    noise = []
    for _ in range(2):
        raw = rng.normal(0, 1, (300, 300))
        raw = (ndimage.gaussian_filter(raw, blur) if blur else raw)[30:270, 30:270]
        noise.append(3.0 * raw / raw.std())
    t3, t4 = t3 + noise[0], t4 + noise[1]
    total = t3 + t4
    with np.errstate(all="ignore"):
        fraction = t3 / total
        errors = 3.0 * np.sqrt(t4**2 + t3**2) / total**2
    maps = maps_of(
        labels,
        mn3_fraction=fraction,
        mn3_fraction_errors=errors,
        thickness_errors=np.full(labels.shape, 3.0 * np.sqrt(2.0)),
    )
    maps["thickness"].values[:] = total
    table = segment.particle_table(maps, "mn3", 20.0)
    pulls = (table.mn3_fraction - 0.3) / table.mn3_fraction_errors
    assert abs(float(pulls.mean())) < 0.4
    assert 0.75 < float(pulls.std()) < 1.3
    pulls = (table.thickness - 80.0) / table.thickness_errors
    assert 0.75 < float(pulls.std()) < 1.3


def test_particles_are_left_out_for_a_reason(caplog):
    labels = np.zeros((100, 100), int)
    labels[0:30, 5:35] = 1  # cut by the border
    labels[60:90, 60:90] = 2  # too thick
    labels[60:64, 10:14] = 3  # too small
    labels[60:90, 25:50] = 4  # good
    labels[5:30, 60:85] = 5  # next to a gap in the data that reaches the border
    thickness = np.where(labels == 2, 400.0, np.where(labels > 0, 80.0, 0.0))
    maps = maps_of(labels, thickness)
    maps["thickness"].values[:31, 85:] = np.nan
    table = segment.particle_table(maps, "mn3", 10.0).set_index(particle="particle")
    used = dict(zip(table.particle.values.tolist(), table.used.values.tolist(), strict=True))
    assert used == {1: False, 2: False, 3: False, 4: True, 5: False}
    reason = {int(k): str(table.reason.sel(particle=k).values) for k in used}
    assert "border" in reason[1]
    assert "border" in reason[5]
    assert "overlap" in reason[2]
    assert "too small" in reason[3]
    assert float(table.overlap.sel(particle=2)) > 2.0
    loose = segment.particle_table(
        maps, "mn3", 10.0, max_overlap=5.0, min_radius_nm=1.0, allow_border=True
    )
    assert loose.used.all()
    with caplog.at_level(logging.WARNING, logger="spectromap"):
        segment.particle_table(maps, "mn3", 10.0, min_radius_nm=500.0)
    assert "none" in caplog.text


def test_a_section_bounds_the_thickness():
    labels = np.zeros((100, 100), int)
    labels[20:80, 20:80] = 1
    maps = maps_of(labels, 120.0)
    whole = segment.particle_table(maps, "mn3", 10.0)
    section = segment.particle_table(maps, "mn3", 10.0, "lamella", 80.0)
    assert whole.used.all()
    assert float(section.overlap[0]) == pytest.approx(1.5, rel=0.01)
    assert not section.used.any()


def test_the_table_follows_the_edge_distance_it_is_given():
    thickness, errors, _ = touching(apart=1.9).finished(1.0)
    found = segment.find_particles(thickness, errors, 10.0)
    maps = maps_of(found.values)
    maps["thickness"].values[:] = thickness.values
    free = segment.particle_table(maps, "mn3", 10.0)
    maps["edge_distance"] = segment.edge_distance(found, thickness, 10.0, threshold_nm=120.0)
    cut = segment.particle_table(maps, "mn3", 10.0)
    assert (cut.radius < 0.95 * free.radius).all()
    np.testing.assert_allclose(free.radius, 97.0, atol=4.0)
    assert float(abs(free.x[1] - free.x[0])) == pytest.approx(190.0, abs=6.0)


def test_a_field_without_particles_has_an_empty_table():
    table = segment.particle_table(maps_of(np.zeros((30, 30), int)), "mn3", 10.0)
    assert table.sizes["particle"] == 0
    assert table.mn3_fraction.shape == (0,)


def test_a_table_needs_its_maps():
    maps = maps_of(np.zeros((30, 30), int))
    with pytest.raises(InputError, match="mn3_fraction_errors"):
        segment.particle_table(maps.drop_vars("mn3_fraction_errors"), "mn3")
    with pytest.raises(InputError, match="geometry"):
        segment.particle_table(maps, "mn3", 10.0, "flat")


def test_pixels_that_few_frames_have_seen_are_no_particles():
    """Drift leaves a strip of noise at the border: nothing is found in it, and it cuts."""
    scene = Scene(120, 10.0, 25.0, 2, seed=3)
    scene.add(sphere(scene, 600.0, 600.0, 150.0))
    scene.add(sphere(scene, 60.0, 250.0, 120.0))
    thickness, errors, _ = scene.finished(1.0)
    errors[:4] = 60.0
    thickness[:4] = thickness[:4].values + scene.rng.normal(0, 60.0, (4, 120))
    maps = xr.Dataset({"thickness": thickness, "thickness_errors": errors})
    maps["particle_label"] = segment.find_particles(thickness, errors, 25.0)
    assert int(maps["particle_label"].max()) == 2
    maps["mn3_fraction"] = a_map(np.full(thickness.shape, 0.3), (10.0, 10.0), units="1")
    maps["mn3_fraction_errors"] = 0.01 * xr.ones_like(maps["mn3_fraction"])
    table = segment.particle_table(maps, "mn3", 25.0)
    at_border = dict(zip(table.y.values > 400.0, table.at_border.values, strict=True))
    assert at_border == {True: False, False: True}
