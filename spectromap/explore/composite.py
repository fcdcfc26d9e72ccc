"""Colour images of up to three maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from spectromap.schema import InputError, check_map

#: Colours of one, two and three maps (red, green, blue). Their sum is white, so that equal amounts
#: are neutral. Of all such triples on a grid of 0.1 this one keeps the pure colours and black
#: furthest apart (CIELAB distance 45; red, green and blue 28) for normal vision and for those who
#: lack one of the three cones, after G. M. Machado et al., IEEE TVCG 15, 1291 (2009).
COMPOSITE_COLOURS: dict[int, tuple[tuple[float, float, float], ...]] = {
    1: ((1.0, 1.0, 1.0),),
    2: ((0.0, 0.45, 1.0), (1.0, 0.55, 0.0)),
    3: ((0.0, 0.0, 1.0), (0.3, 1.0, 0.0), (0.7, 0.0, 0.0)),
}
NEUTRAL_GREY = 0.5


class Composite(NamedTuple):
    """A colour image and what its colours mean."""

    image: xr.DataArray
    """(y, x, channel), red, green and blue from 0 to 1."""
    limits: dict[str, tuple[float, float]]
    """Of each map, the values drawn black and in full colour."""
    colours: dict[str, tuple[float, float, float]]
    """Of each map, the full colour."""


def colour_composite(
    maps: Mapping[str, xr.DataArray] | Sequence[xr.DataArray] | xr.Dataset,
    names: Sequence[str] | None = None,
    *,
    limits: Mapping[str, tuple[float, float]] | tuple[float, float] | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> Composite:
    """One colour image of up to three maps, readable with any colour vision.

    Parameters
    ----------
    maps : mapping, Dataset or sequence of DataArray, dims (y, x)
        Maps on one grid; of a mapping or Dataset, those in `names` or else all.
    names : sequence of str, optional
        Which maps, in the order of the colours; for a sequence of maps, what to call them.
    limits : mapping from name to (low, high), or one pair for all, optional
        Values drawn black and in full colour.
    percentiles : tuple of float
        Where no limits are given: they are these percentiles of the map.

    Returns
    -------
    Composite
        ``image`` (y, x, channel) float32 from 0 to 1, ``limits`` and ``colours`` by name. A pixel
        where any map is NaN is neutral grey.

    Raises
    ------
    InputError
        No map or more than three, an unknown name, maps on different grids, limits that are not
        ascending.
    """
    chosen = _named_maps(maps, names)
    first = next(iter(chosen.values()))
    colours = dict(zip(chosen, COMPOSITE_COLOURS[len(chosen)], strict=True))
    image = np.zeros((*first.shape, 3))
    unknown = np.zeros(first.shape, bool)
    drawn: dict[str, tuple[float, float]] = {}
    for name, values in chosen.items():
        if values.shape != first.shape or not all(
            np.array_equal(values[dim].values, first[dim].values) for dim in ("y", "x")
        ):
            raise InputError("it lies on another grid than the first map", where=name)
        given = limits.get(name) if isinstance(limits, Mapping) else limits
        low, high = drawn[name] = _limits(values, given, percentiles, name)
        unknown |= ~np.isfinite(values.values)
        level = np.clip((np.nan_to_num(values.values.astype(float)) - low) / (high - low), 0, 1)
        image += level[..., None] * np.array(colours[name])
    image[unknown] = NEUTRAL_GREY
    labelled = xr.DataArray(
        np.clip(image, 0.0, 1.0).astype(np.float32),
        dims=("y", "x", "channel"),
        coords={"y": first["y"], "x": first["x"]},
        attrs={"units": "1", "long_name": "red, green, blue"},
    )
    return Composite(labelled, drawn, colours)


def _named_maps(
    maps: Mapping[str, xr.DataArray] | Sequence[xr.DataArray] | xr.Dataset,
    names: Sequence[str] | None,
) -> dict[str, xr.DataArray]:
    """Up to three checked maps by name."""
    where = "colour_composite"
    if isinstance(maps, (Mapping, xr.Dataset)):
        known = list(maps.data_vars) if isinstance(maps, xr.Dataset) else list(maps)
        wanted = known if names is None else list(names)
        missing = [str(name) for name in wanted if name not in known]
        if missing:
            raise InputError(f"there is no map {', '.join(missing)}", where=where)
        chosen = {str(name): maps[str(name)] for name in wanted}
    else:
        called = [str(m.name or f"map {k + 1}") for k, m in enumerate(maps)]
        called = called if names is None else list(names)
        if len(called) != len(maps) or len(set(called)) != len(called):
            raise InputError("every map needs a name of its own", where=where)
        chosen = dict(zip(called, maps, strict=True))
    if len(chosen) not in COMPOSITE_COLOURS:
        raise InputError(
            f"{len(chosen)} maps", where=where, remedy="Name one, two or three of them."
        )
    for name, values in chosen.items():
        check_map(values, name=name)
    return chosen


def _limits(
    values: xr.DataArray,
    given: tuple[float, float] | None,
    percentiles: tuple[float, float],
    name: str,
) -> tuple[float, float]:
    """Limits as given or from percentiles; a map of one value gets a range of one."""
    if given is not None:
        low, high = float(given[0]), float(given[1])
        if not low < high:
            raise InputError(f"limits {low:g} to {high:g} are not ascending", where=name)
        return low, high
    finite = values.values[np.isfinite(values.values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, percentiles))
    return (low, high) if high > low else (low, low + 1.0)
