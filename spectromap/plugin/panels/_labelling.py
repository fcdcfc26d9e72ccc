"""Labels corrected by hand: what was drawn becomes particles again.

Every function takes an image of whole numbers, 0 being background, and returns a new one. The
numbers of particles that are not spoken of stay what they are, and no pixel changes hands that
was not asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from spectromap.schema import InputError
from spectromap.segment._grid import Array, Labels, Mask, Pair, crops, edt, shared_borders, skimage

__all__ = [
    "grouped",
    "in_one_piece",
    "merged",
    "split_at_waist",
    "split_by_line",
    "touched",
    "with_new",
    "without",
]

#: Pixels that share only a corner belong together, as in what `spectromap.segment` finds.
NEIGHBOURS = np.ones((3, 3), dtype=bool)
#: Standard deviation in pixels of the smoothing before a waist is looked for.
WAIST_SMOOTHING_PX = 1.0
#: A saddle less than this share below the lower summit is noise and no waist.
LEAST_WAIST = 0.02


def touched(before: Labels, after: Labels) -> list[int]:
    """Labels that have lost or gained pixels.

    Parameters
    ----------
    before, after : ndarray of int, shape (ny, nx)
        Labels; 0 is background.

    Returns
    -------
    list of int
        In rising order.
    """
    changed = before != after
    found = np.union1d(before[changed], after[changed])
    return [int(label) for label in found if label > 0]


def merged(labels: Labels, chosen: Iterable[int]) -> Labels:
    """Make one particle of several that touch; it keeps the number of the first.

    Parameters
    ----------
    labels : ndarray of int, shape (ny, nx)
        Labels; 0 is background.
    chosen : iterable of int
        At least two of them.

    Returns
    -------
    ndarray of int, shape (ny, nx)

    Raises
    ------
    InputError
        Fewer than two particles, or particles that do not touch.
    """
    names = _present(labels, chosen)
    if len(names) < 2:
        raise InputError("choose two particles or more", where="merge")
    inside = np.isin(labels, names)
    if ndimage.label(inside, NEIGHBOURS)[1] > 1:
        raise InputError(
            f"particles {_listed(names)} do not touch",
            where="merge",
            remedy="Paint a bridge between them first.",
        )
    return np.where(inside, names[0], labels).astype(labels.dtype)


def split_by_line(
    labels: Labels, label: int, start: tuple[float, float], end: tuple[float, float]
) -> tuple[Labels, list[int]]:
    """Cut a particle along a straight line, which goes on beyond its ends.

    Parameters
    ----------
    labels : ndarray of int, shape (ny, nx)
        Labels; 0 is background.
    label : int
        The particle.
    start, end : tuple of float
        Two places (row, column) on the line, in pixels.

    Returns
    -------
    ndarray of int, shape (ny, nx)
        The larger side keeps the number.
    list of int
        Numbers of the parts, the old one first.

    Raises
    ------
    InputError
        No such particle, or the line does not cross it.
    """
    (label,) = _present(labels, [label])
    rows, columns = np.nonzero(labels == label)
    along = np.subtract(end, start)
    across = along[0] * (columns - start[1]) - along[1] * (rows - start[0])
    second = across > 0
    if second.all() or not second.any():
        raise InputError(
            f"the line does not cross particle {label}",
            where="split",
            remedy="Draw it across the particle from side to side.",
        )
    if 2 * second.sum() > second.size:
        second = ~second
    return _cut(labels, label, rows[second], columns[second])


def split_at_waist(
    labels: Labels, label: int, thickness: Array, pixel: Pair
) -> tuple[Labels, list[int]]:
    """Cut a particle in two where it is narrow or thin.

    Parameters
    ----------
    labels : ndarray of int, shape (ny, nx)
        Labels; 0 is background.
    label : int
        The particle.
    thickness : ndarray, shape (ny, nx)
        Thickness map in nm; NaN counts as nothing.
    pixel : tuple of float
        Size of a pixel in nm.

    Returns
    -------
    ndarray of int, shape (ny, nx)
        The larger part keeps the number.
    list of int
        Numbers of the parts, the old one first.

    Raises
    ------
    InputError
        No such particle, or one that has no waist.

    Notes
    -----
    A watershed on distance from the edge times thickness, as `spectromap.segment.find_particles`
    makes it, joined along the highest saddles until two basins are left.
    """
    (label,) = _present(labels, [label])
    ((_, crop),) = crops((labels == label).astype(np.int32), margin=1)
    mine = labels[crop] == label
    heights = edt(mine, pixel) * np.maximum(np.nan_to_num(thickness[crop]), 0.0)
    heights = ndimage.gaussian_filter(heights, WAIST_SMOOTHING_PX)
    basins = _two_basins(heights, mine)
    if basins is None:
        raise InputError(
            f"particle {label} has no waist",
            where="split",
            remedy="Draw a line across it where it is to be cut.",
        )
    second = basins == np.argmin(np.bincount(basins[mine])[1:]) + 1
    rows, columns = np.nonzero(second)
    return _cut(labels, label, rows + crop[0].start, columns + crop[1].start)


def without(labels: Labels, chosen: Iterable[int]) -> Labels:
    """Make particles background.

    Parameters
    ----------
    labels : ndarray of int, shape (ny, nx)
        Labels; 0 is background.
    chosen : iterable of int
        Those to delete.

    Returns
    -------
    ndarray of int, shape (ny, nx)

    Raises
    ------
    InputError
        No such particle.
    """
    return np.where(np.isin(labels, _present(labels, chosen)), 0, labels).astype(labels.dtype)


def with_new(labels: Labels, inside: Mask) -> tuple[Labels, int]:
    """Add a particle where there is background; others keep their pixels.

    Parameters
    ----------
    labels : ndarray of int, shape (ny, nx)
        Labels; 0 is background.
    inside : ndarray of bool, shape (ny, nx)
        What was drawn; of several free pieces the largest becomes the particle.

    Returns
    -------
    ndarray of int, shape (ny, nx)
    int
        Number of the new particle.

    Raises
    ------
    InputError
        Nothing of it is free.
    """
    free = inside & (labels == 0)
    boxes = ndimage.find_objects(free.astype(np.uint8))
    if not boxes:
        raise InputError(
            "the shape holds no background",
            where="new particle",
            remedy="Draw it where there is no particle, or delete the one that is there.",
        )
    pieces = ndimage.label(free[boxes[0]], NEIGHBOURS)[0]
    result, label = labels.copy(), int(labels.max()) + 1
    result[boxes[0]][pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1] = label
    return result, label


def in_one_piece(labels: Labels, chosen: Iterable[int]) -> Labels:
    """Give every further piece of a particle a number of its own.

    Parameters
    ----------
    labels : ndarray of int, shape (ny, nx)
        Labels; 0 is background.
    chosen : iterable of int
        Those to look at; ones that do not occur are passed over.

    Returns
    -------
    ndarray of int, shape (ny, nx)
        The largest piece keeps the number.
    """
    result, chosen = labels.copy(), set(chosen)
    follows = int(labels.max(initial=0)) + 1
    for label, crop in crops(labels):
        if label not in chosen:
            continue
        pieces, count = ndimage.label(labels[crop] == label, NEIGHBOURS)
        sizes = np.bincount(pieces.ravel())[1:]
        for piece in np.argsort(-sizes, kind="stable")[1:count]:
            result[crop][pieces == piece + 1] = follows
            follows += 1
    return result


def grouped(agglomerates: Labels, labels: Labels, chosen: Iterable[int], group: int) -> Labels:
    """Put particles into an agglomerate.

    Parameters
    ----------
    agglomerates : ndarray of int, shape (ny, nx)
        Numbers of the agglomerates; 0 is none.
    labels : ndarray of int, shape (ny, nx)
        Labels of the particles; 0 is background.
    chosen : iterable of int
        The particles.
    group : int
        The agglomerate; 0 takes them out of theirs.

    Returns
    -------
    ndarray of int, shape (ny, nx)

    Raises
    ------
    InputError
        No such particle.
    """
    names = _present(labels, chosen)
    return np.where(np.isin(labels, names), group, agglomerates).astype(agglomerates.dtype)


def _present(labels: Labels, chosen: Iterable[int]) -> list[int]:
    """The labels that were chosen, each once."""
    names = list(dict.fromkeys(int(label) for label in chosen if label > 0))
    if not names:
        raise InputError("no particle is chosen", where="particles")
    lost = [name for name in names if not np.any(labels == name)]
    if lost:
        raise InputError(f"there is no particle {_listed(lost)}", where="particles")
    return names


def _listed(names: Iterable[int]) -> str:
    return ", ".join(str(name) for name in names)


def _cut(labels: Labels, label: int, rows: Labels, columns: Labels) -> tuple[Labels, list[int]]:
    """Give some pixels of a particle a new number, and every piece that falls off its own."""
    result = labels.copy()
    new = int(labels.max()) + 1
    result[rows, columns] = new
    result = in_one_piece(result, [label, new])
    return result, [label, *range(new, int(result.max()) + 1)]


def _two_basins(heights: Array, mask: Mask) -> Labels | None:
    """The two basins with the deepest saddle between them; None where there is one summit."""
    summits = skimage("morphology").local_maxima(heights) & mask
    markers = ndimage.label(summits, NEIGHBOURS)[0]
    basins = np.asarray(skimage("segmentation").watershed(-heights, markers, mask=mask))
    while True:
        first, second, saddle = shared_borders(basins, heights, np.minimum)
        if not saddle.size:
            return None
        peak = np.asarray(ndimage.maximum(heights, basins, np.arange(basins.max() + 1)))
        height = saddle / np.minimum(peak[first], peak[second])
        shallow = int(np.argmax(height))
        names = np.unique(basins[basins > 0])
        if names.size == 2:
            deep = height[shallow] < 1 - LEAST_WAIST
            return np.searchsorted(names, basins) + (basins > 0) if deep else None
        basins[basins == second[shallow]] = first[shallow]
