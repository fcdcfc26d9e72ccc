"""What is true of particles by where they lie: depth in agglomerates, differences, trends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._numerics import FloatArray
from spectromap.synthetic._bodies import Particle

Mask = NDArray[np.bool_]

#: Ways to ask for a difference, as they end the name of a contrast.
_WAYS = ("", "at equal thickness", "at equal thickness, stratified")
#: Particles of the smaller group to a stratum of thickness, and the most strata.
_TO_A_STRATUM, _MOST_STRATA = 5, 5


def agglomerate_depths(
    particles: Sequence[Particle], maps: xr.Dataset, table: xr.Dataset, gap: float
) -> FloatArray:
    """Depth of each centroid below the outline of its agglomerate, gaps closed, in nm.

    NaN outside of agglomerates, and in one that the border of the field cuts: how far it goes on
    cannot be told from the maps.
    """
    pixel = float(maps.x[1] - maps.x[0])
    owner = np.array([p.agglomerate for p in particles])
    depths = np.full(len(particles), np.nan)
    reach = int(np.ceil(gap / pixel)) + 2
    ball = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    boxes = ndimage.find_objects(maps.agglomerate_label.values)
    whole = maps.agglomerate_label.shape
    for number, box in enumerate(boxes, start=1):
        if box is None or any(s.start == 0 or s.stop == n for s, n in zip(box, whole, strict=True)):
            continue
        mask = np.pad(maps.agglomerate_label.values[box] == number, 2 * reach)
        closed = ndimage.binary_fill_holes(ndimage.binary_closing(mask, ball))
        depth = ndimage.distance_transform_edt(closed) * pixel
        mine = owner == number
        rows, columns = (
            np.rint((table[name].values[mine] - maps[name].values[0]) / pixel).astype(int)
            + 2 * reach
            - corner.start
            for name, corner in zip(("y", "x"), box, strict=True)
        )
        inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
        depths[np.flatnonzero(mine)[inside]] = depth[rows[inside], columns[inside]]
    return depths


@dataclass(frozen=True)
class _Rows:
    """Columns of the particles that lie wholly on the field."""

    values: FloatArray
    thickness: FloatArray
    depth: FloatArray
    agglomerate: NDArray[np.integer[Any]]
    place: NDArray[np.str_]
    large: Mask

    def take(self, chosen: Mask) -> _Rows:
        """Some of the particles."""
        return _Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))


def heterogeneity(table: xr.Dataset, fraction: str, large: int) -> xr.Dataset:
    """Differences between places and the trend with depth, of the particles that are there.

    What a perfect measurement of the mean fraction and thickness of every particle would give: each
    particle counts once, those that the border cuts do not. Names, groups and covariates are those
    of the result; the variables that end in ``_large`` leave out small agglomerates.

    Parameters
    ----------
    table : Dataset, dims (particle,)
        The true particle table.
    fraction : str
        Mapped component.
    large : int
        Agglomerates up to this number are large.

    Returns
    -------
    Dataset, dims (contrast,) and (trend,)
    """
    rows = _rows(table, fraction, large)
    only_large = rows.take(rows.large | (rows.agglomerate == 0))
    names, differences = _differences(rows)
    result = xr.Dataset(coords={"contrast": ("contrast", np.array(names, dtype=object))})
    for ending, some in (("", rows), ("_large", only_large)):
        found = dict(zip(*_differences(some), strict=True))
        values = [found[name][0] if name in found else np.nan for name in names]
        attrs = {"units": "1", "long_name": "first group less the second"}
        result[f"difference{ending}"] = ("contrast", np.array(values), attrs)
    for k, ending in ((1, "a"), (2, "b")):
        counts = np.array([row[k] for row in differences], dtype=np.int64)
        result[f"count_{ending}"] = ("contrast", counts, {"units": "1"})
    trends = ["by depth", "by depth at equal thickness"]
    result = result.assign_coords(trend=("trend", np.array(trends, dtype=object)))
    for ending, some in (("", rows), ("_large", only_large)):
        slopes = np.array([_slope(some, adjusted) for adjusted in (False, True)])
        attrs = {"units": "1/nm", "long_name": "change of the fraction with depth"}
        result[f"depth_trend{ending}"] = ("trend", slopes, attrs)
    return result


def _rows(table: xr.Dataset, fraction: str, large: int) -> _Rows:
    """Particles that lie wholly on the field."""
    if f"{fraction}_fraction" not in table:
        none = np.empty(0)
        return _Rows(none, none, none, none.astype(int), none.astype(str), none.astype(bool))
    agglomerate = table.agglomerate.values
    rows = _Rows(
        table[f"{fraction}_fraction"].values,
        table.thickness.values,
        table.depth.values,
        agglomerate,
        table.place.values.astype(str),
        (agglomerate > 0) & (agglomerate <= large),
    )
    return rows.take(~table.at_border.values)


def _differences(rows: _Rows) -> tuple[list[str], list[tuple[float, int, int]]]:
    """Every contrast in every way: its name, its difference, and the particles on both sides."""
    inside, small = rows.agglomerate > 0, (rows.agglomerate > 0) & ~rows.large
    questions = [
        ("outside-inside", ~inside, inside, False),
        ("exterior-interior", rows.place == "exterior", rows.place == "interior", True),
    ]
    if small.any() and rows.large.any():
        questions.append(("large-small", rows.large, small, False))
    names, found = [], []
    for name, first, second, within in questions:
        for way in _WAYS:
            names.append(f"{name} {way}".rstrip())
            value = _difference(rows.take(first | second), first[first | second], way, within)
            found.append((value, int(first.sum()), int(second.sum())))
    return names, found


def _difference(rows: _Rows, first: Mask, way: str, within: bool) -> float:
    """Mean of the first group less that of the others; within agglomerates if asked for."""
    if first.all() or not first.any() or first.size < 4:
        return float("nan")
    columns = [first[:, None].astype(float), np.ones((first.size, 1))]
    if within:
        columns.append(_members(rows.agglomerate))
    if way:
        stratified = way.endswith("stratified")
        columns.append(_strata(rows.thickness, first) if stratified else rows.thickness[:, None])
    if way and not within:
        # Places may differ in level; the slope on thickness is that within them.
        for group in (first, ~first):
            members = _members(rows.place) * group[:, None]
            columns.append(members - members.sum(axis=0) / group.sum() * group[:, None])
    return _first_coefficient(columns, rows.values)


def _strata(thickness: FloatArray, first: Mask) -> FloatArray:
    """Membership of strata of equal numbers, and what is left of thickness within them."""
    smaller = min(int(first.sum()), int((~first).sum()))
    count = int(np.clip(smaller // _TO_A_STRATUM, 2, _MOST_STRATA))
    members = _members(
        np.searchsorted(np.quantile(thickness, np.arange(1, count) / count), thickness, "right")
    )
    means = (members.T @ thickness) / members.sum(axis=0)
    return np.column_stack([members, thickness - members @ means])


def _slope(rows: _Rows, adjusted: bool) -> float:
    """Change of the fraction with depth within agglomerates, in 1/nm."""
    rows = rows.take(np.isfinite(rows.depth))
    if rows.values.size < 4:
        return float("nan")
    columns = [rows.depth[:, None], _members(rows.agglomerate)]
    if adjusted:
        columns.append(rows.thickness[:, None])
    return _first_coefficient(columns, rows.values)


def _members(names: NDArray[Any]) -> FloatArray:
    """One column for each name: 1 where it is."""
    return np.asarray(names[:, None] == np.unique(names)[None, :], dtype=float)


def _first_coefficient(columns: Sequence[FloatArray], values: FloatArray) -> float:
    """First coefficient of a linear regression; NaN where the other columns contain it."""
    design = np.column_stack(columns)
    first, others = design[:, 0], design[:, 1:]
    left = first - others @ np.linalg.lstsq(others, first, rcond=None)[0]
    if left @ left < 1e-9 * (first @ first):
        return float("nan")
    return float(left @ values / (left @ left))
