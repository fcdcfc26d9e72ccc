"""Secondary particles: which primaries belong together, and how deep each lies in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import ndimage, sparse

from spectromap.schema import InputError, pixel_size
from spectromap.segment._grid import (
    Array,
    Labels,
    Pair,
    check_label_map,
    check_length,
    crops,
    edt,
    label_map,
    shared_borders,
)


def group_agglomerates(
    labels: xr.DataArray, *, gap_nm: float | None = None, min_particles: int = 10
) -> xr.DataArray:
    """Group primary particles into secondary ones.

    Parameters
    ----------
    labels : DataArray, dims (y, x), int
        Primary particles; 0 is background.
    gap_nm : float, optional
        Particles closer than this [nm], edge to edge, belong together. Default: the larger of two
        pixels and half the median equivalent radius.
    min_particles : int
        Smaller groups are no agglomerates. A primary with all its neighbours around it makes
        seven; from ten on a group has an interior even if some primaries were not told apart.

    Returns
    -------
    DataArray, dims (y, x), int32
        ``agglomerate_label``: on the pixels of the primaries, in the order of their first pixels;
        0 on the background and on primaries outside of any agglomerate.

    Raises
    ------
    InputError
        A map in the wrong shape, or options out of range.
    """
    values = check_label_map(labels)
    check_length("gap_nm", gap_nm)
    if min_particles < 1:
        raise InputError(f"{min_particles} is not a number of particles", where="min_particles")
    pixel = pixel_size(labels)
    numbers, first, count = np.unique(values, return_index=True, return_counts=True)
    first, count, numbers = first[numbers > 0], count[numbers > 0], numbers[numbers > 0]
    if numbers.size == 0:
        return label_map(values * 0, labels, "agglomerate_label", "agglomerate, 0 = none")
    radius = float(np.sqrt(np.median(count) * pixel[0] * pixel[1] / np.pi))
    gap = max(2.0 * max(pixel), 0.5 * radius) if gap_nm is None else gap_nm
    away, nearest = ndimage.distance_transform_edt(values == 0, sampling=pixel, return_indices=True)
    # Where the regions nearest to two particles meet, their distances add up to the gap.
    owner = values[tuple(nearest)]
    a, b, width = shared_borders(owner, away, lambda one, other: -(one + other))
    close = -width <= gap + 1e-6
    size = int(numbers.max()) + 1
    links = sparse.coo_array((np.ones(close.sum()), (a[close], b[close])), shape=(size, size))
    group = sparse.csgraph.connected_components(links, directed=False)[1][numbers]
    members = np.bincount(group)
    large = np.flatnonzero(members >= min_particles)
    starts = [int(first[group == g].min()) for g in large]
    number = np.zeros(members.size, np.int32)
    number[large[np.argsort(starts)]] = np.arange(1, large.size + 1)
    of_label = np.zeros(int(numbers.max()) + 1, np.int32)
    of_label[numbers] = number[group]
    return label_map(of_label[values], labels, "agglomerate_label", "agglomerate, 0 = none")


def given_agglomerates(labels: xr.DataArray, drawn: Labels | xr.DataArray) -> xr.DataArray:
    """Group primary particles as somebody drew it.

    Parameters
    ----------
    labels : DataArray, dims (y, x), int
        Primary particles; 0 is background.
    drawn : ndarray or DataArray, shape (y, x), int
        Numbers of the agglomerates, 0 outside: painted over whole areas or over primaries only.

    Returns
    -------
    DataArray, dims (y, x), int32
        ``agglomerate_label`` as `group_agglomerates` makes it, with the numbers that were drawn: a
        primary belongs to the agglomerate that covers most of it, to none if that is less than
        half.

    Raises
    ------
    InputError
        A map in the wrong shape, or numbers that are none.
    """
    values = check_label_map(labels)
    groups = np.asarray(drawn.values if isinstance(drawn, xr.DataArray) else drawn)
    if groups.shape != values.shape or groups.dtype.kind not in "iu" or groups.min(initial=0) < 0:
        raise InputError(
            f"they are {groups.dtype} of shape {groups.shape}, the map is {values.shape}",
            where="agglomerate_labels",
            remedy="Draw whole numbers on the pixel grid of the result, 0 outside.",
        )
    of_label = np.zeros(int(values.max(initial=0)) + 1, np.int32)
    for label, crop in crops(values):
        covered = np.bincount(groups[crop][values[crop] == label])
        most = int(covered.argmax())
        of_label[label] = most if 2 * covered[most] >= covered.sum() else 0
    return label_map(of_label[values], labels, "agglomerate_label", "agglomerate, 0 = none")


@dataclass
class _Body:
    """Depth below the surface of one agglomerate [nm] on a grid that starts at `start`."""

    group: int
    depth: Array
    start: tuple[int, int]
    radius: float

    def at(self, y: float, x: float) -> float:
        """Depth at a place in pixels of the map."""
        place = [[y - self.start[0]], [x - self.start[1]]]
        return float(ndimage.map_coordinates(self.depth, place, order=1, mode="nearest")[0])


def agglomerate_bodies(labels: Labels, groups: Labels, pixel: Pair, gap: float) -> Iterator[_Body]:
    """Outer shape of every agglomerate: its primaries with the gaps between them closed."""
    for group, crop in crops(groups):
        mine = groups[crop] == group
        areas = np.bincount(labels[crop][mine])
        radius = float(np.sqrt(np.median(areas[areas > 0]) * pixel[0] * pixel[1] / np.pi))
        reach = max(gap, radius)
        wide = [int(np.ceil(reach / p)) + 2 for p in pixel]
        # The border of the map is no surface: what lies there goes on outside.
        frame = [
            (w if s.start > 0 else 0, w if s.stop < n else 0)
            for w, s, n in zip(wide, crop, labels.shape, strict=True)
        ]
        mask = np.pad(np.pad(mine, frame), [(w, w) for w in wide], mode="edge")
        grown = ndimage.distance_transform_edt(~mask, sampling=pixel) <= reach
        closed = ndimage.distance_transform_edt(grown, sampling=pixel) > reach
        closed = ndimage.binary_fill_holes(closed | mask)
        depth = edt(closed, pixel)
        start = [s.start - w - f[0] for s, w, f in zip(crop, wide, frame, strict=True)]
        yield _Body(group, depth, (start[0], start[1]), radius)
