"""Labels corrected by hand, against what pure geometry says."""

from __future__ import annotations

import numpy as np
import pytest

from spectromap.plugin.panels import _labelling as labelling
from spectromap.schema import InputError

SHAPE = (40, 60)
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]


def disc(y, x, radius):
    return np.hypot(ROWS - y, COLUMNS - x) <= radius


def field():
    """A dumbbell (7) of two overlapping discs, a square touching it (3), and a disc apart (5)."""
    labels = np.zeros(SHAPE, np.int32)
    labels[15:25, 35:45] = 3
    labels[disc(20, 14, 9)] = 7
    labels[disc(20, 28, 7)] = 7
    labels[disc(6, 52, 4)] = 5
    return labels


def thickness():
    """Two spheres, as the dumbbell is one."""
    spheres = [
        2 * np.sqrt(np.maximum(r**2 - (ROWS - 20) ** 2 - (COLUMNS - x) ** 2, 0))
        for x, r in ((14, 9.5), (28, 7.5))
    ]
    return np.maximum(*spheres)


def untouched(before, after, but):
    """Whether every other particle is what it was."""
    others = [label for label in np.unique(before) if label > 0 and label not in but]
    return all(np.array_equal(before == label, after == label) for label in others)


def test_a_line_cuts_at_the_pixels_on_either_side():
    before = field()
    kept = before.copy()
    # From below to above through x = 20.5, not reaching either end of the particle.
    after, parts = labelling.split_by_line(before, 7, (12.0, 20.5), (30.0, 20.5))
    assert parts == [7, 8]
    mine = before == 7
    np.testing.assert_array_equal(after == 7, mine & (COLUMNS < 20.5))
    np.testing.assert_array_equal(after == 8, mine & (COLUMNS > 20.5))
    assert untouched(before, after, but=(7,))
    np.testing.assert_array_equal(before, kept)  # a new image, the old one stays
    oblique, _ = labelling.split_by_line(before, 7, (0.0, 0.0), (39.0, 39.0))
    np.testing.assert_array_equal(oblique == 8, mine & (COLUMNS > ROWS))


def test_a_line_through_a_horseshoe_leaves_three_pieces():
    labels = np.zeros(SHAPE, np.int32)
    labels[5:30, 5:30] = 2
    labels[5:20, 12:23] = 0
    after, parts = labelling.split_by_line(labels, 2, (15.5, 0.0), (15.5, 50.0))
    assert parts == [2, 3, 4]
    assert [np.count_nonzero(after == part) for part in parts] == [
        25 * 25 - 11 * 15 - 2 * 11 * 7,
        11 * 7,
        11 * 7,
    ]
    np.testing.assert_array_equal(after > 0, labels > 0)


def test_two_spheres_part_where_they_meet():
    before = field()
    after, parts = labelling.split_at_waist(before, 7, thickness(), (10.0, 10.0))
    assert parts == [7, 8]
    # Equally far from both surfaces: the plane in which two spheres intersect.
    plane = (14 + 28) / 2 + (9.5**2 - 7.5**2) / (2 * 14)
    mine = before == 7
    wrong = (after == 8) != (mine & (plane < COLUMNS))
    assert np.abs(COLUMNS[wrong] - plane).max(initial=0) <= 1.5
    np.testing.assert_array_equal(after > 0, before > 0)
    assert untouched(before, after, but=(7,))
    with pytest.raises(InputError, match="no waist"):
        labelling.split_at_waist(before, 3, np.ones(SHAPE), (10.0, 10.0))


def test_a_noisy_sphere_has_no_waist():
    generator = np.random.default_rng(3)
    labels = disc(20, 20, 14).astype(np.int32)
    height = 2 * np.sqrt(np.maximum(15**2 - (ROWS - 20) ** 2 - (COLUMNS - 20) ** 2, 0))
    with pytest.raises(InputError, match="no waist"):
        labelling.split_at_waist(labels, 1, height + generator.normal(0, 0.5, SHAPE), (7.0, 7.0))


def test_merging_takes_back_what_splitting_did():
    before = field()
    halves, parts = labelling.split_by_line(before, 7, (0.0, 20.5), (39.0, 20.5))
    np.testing.assert_array_equal(labelling.merged(halves, parts), before)
    second_first = labelling.merged(halves, parts[::-1])
    np.testing.assert_array_equal(second_first == 8, before == 7)
    three = labelling.merged(halves, [3, 8, 7])
    np.testing.assert_array_equal(three == 3, (before == 3) | (before == 7))
    np.testing.assert_array_equal(three == 5, before == 5)
    with pytest.raises(InputError, match="do not touch"):
        labelling.merged(halves, [7, 5])
    with pytest.raises(InputError, match="two particles or more"):
        labelling.merged(halves, [7, 7])


def test_deleting_and_drawing_change_only_what_was_asked_for():
    before = field()
    fewer = labelling.without(before, [3, 5])
    np.testing.assert_array_equal(fewer, np.where(before == 7, 7, 0))
    drawn = disc(30, 30, 8)  # over a part of the dumbbell and the square
    more, label = labelling.with_new(before, drawn)
    assert label == 8
    np.testing.assert_array_equal(more == 8, drawn & (before == 0))
    assert untouched(before, more, but=())
    with pytest.raises(InputError, match="no background"):
        labelling.with_new(before, before == 7)
    # A frame that a particle cuts in two: the larger piece is the particle.
    band = (ROWS == 20) & (COLUMNS < 52)
    across, label = labelling.with_new(labelling.without(before, [3]), band)
    assert np.flatnonzero((across == label)[20]).tolist() == list(range(36, 52))


def test_what_an_eraser_cut_in_two_is_two_particles():
    before = field()
    erased = before.copy()
    erased[:, 18:21] = 0
    assert labelling.touched(before, erased) == [7]
    after = labelling.in_one_piece(erased, [7, 99])
    np.testing.assert_array_equal(after == 7, (before == 7) & (COLUMNS < 18))
    np.testing.assert_array_equal(after == 8, (before == 7) & (COLUMNS > 20))
    np.testing.assert_array_equal(labelling.in_one_piece(erased, [3, 5]), erased)
    np.testing.assert_array_equal(labelling.in_one_piece(after, [7, 8, 3, 5]), after)


def test_agglomerates_are_made_of_whole_particles():
    labels = field()
    none = np.zeros(SHAPE, np.int32)
    one = labelling.grouped(none, labels, [3, 7], 1)
    np.testing.assert_array_equal(one > 0, (labels == 3) | (labels == 7))
    two = labelling.grouped(one, labels, [3, 5], 2)
    assert {(int(p), int(a)) for p, a in zip(labels.flat, two.flat, strict=True)} == {
        (0, 0), (3, 2), (5, 2), (7, 1)
    }  # fmt: skip
    np.testing.assert_array_equal(labelling.grouped(two, labels, [3, 5, 7], 0), none)


@pytest.mark.parametrize("wrong", [[4], [0], [], [7, 4]])
def test_particles_that_are_not_there_are_named(wrong):
    with pytest.raises(InputError, match="no particle"):
        labelling.without(field(), wrong)
    with pytest.raises(InputError, match="does not cross"):
        labelling.split_by_line(field(), 7, (0.0, 0.0), (0.0, 5.0))
