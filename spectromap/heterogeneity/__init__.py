"""Do particles differ by where they lie, and how much of what is seen is chance.

`contrasts` compares places, `compare_groups` any groups; `depth_trend` follows the depth below the
surface of agglomerates; `variance_components` says where the variance lies, `primaries_needed` how
many particles must be seen, `correlation_length` over what distance a map is alike, `size_classes`
which agglomerates are large. `statistics` asks all of them.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from spectromap.heterogeneity._contrasts import compare_groups, contrasts
from spectromap.heterogeneity._correlation import correlation_length
from spectromap.heterogeneity._spread import primaries_needed, variance_components
from spectromap.heterogeneity._table import check_columns, classes
from spectromap.heterogeneity._trend import depth_trend

__all__ = [
    "compare_groups",
    "contrasts",
    "correlation_length",
    "depth_trend",
    "primaries_needed",
    "size_classes",
    "statistics",
    "variance_components",
]


def size_classes(particles: xr.Dataset) -> xr.Dataset:
    """Sizes of the agglomerates, and which of them are large.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As `spectromap.segment.particle_table` makes it, used particles and others.

    Returns
    -------
    Dataset, dims (agglomerate,)
        ``agglomerate_diameter`` [nm] of the circle of the area of its primaries,
        ``agglomerate_primaries``, their number, and ``size_class``, "large" or "small": an
        agglomerate is large if its diameter is at least half the usual one: half of the area lies
        in agglomerates of that diameter and above. A plane cuts a sphere to less than half its
        diameter in 13 % of sections, so that a small one may be a large one cut near its surface.

    Raises
    ------
    InputError
        A column is missing.
    """
    check_columns(particles, "agglomerate", "area")
    numbers, diameter, members, names = classes(particles)
    result = xr.Dataset(coords={"agglomerate": numbers})
    for name, values, attrs in (
        ("diameter", diameter, {"units": "nm", "long_name": "circle of the area of its primaries"}),
        ("primaries", members.astype(np.int32), {"units": "1", "long_name": "primaries in it"}),
    ):
        result[f"agglomerate_{name}"] = ("agglomerate", values, attrs)
    result["size_class"] = ("agglomerate", names, {"long_name": "large or small"})
    return result


def statistics(
    particles: xr.Dataset,
    fraction: str,
    maps: xr.Dataset | None = None,
    resolution_nm: float | None = None,
    *,
    confidence: float = 0.95,
    min_count: int = 5,
    min_agglomerates: int = 3,
    half_width_wanted: float = 0.02,
    n_resamples: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """Everything that the result says of heterogeneity.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As `spectromap.segment.particle_table` makes it.
    fraction : str
        Name of the mapped component.
    maps : Dataset, dims (y, x), optional
        Its maps, for the spread within primaries and the correlation length.
    resolution_nm : float, optional
        Full width at half maximum of the point spread function [nm]; default two pixels.
    confidence : float
        Coverage of the intervals.
    min_count : int
        Fewer particles than this in a group say nothing.
    min_agglomerates : int
        From this many on, intervals hold for agglomerates like these; see `contrasts`.
    half_width_wanted : float
        Half width of the interval of the mean fraction that is wanted; see `primaries_needed`.
    n_resamples : int
        How often seeing the sample anew is tried.
    seed : int
        Another seed is another set of draws.

    Returns
    -------
    Dataset, dims (contrast,), (trend,), (component,), (number,), (agglomerate,) and (lag,)
        The variables of `contrasts`, `depth_trend`, `variance_components`, `primaries_needed`,
        `size_classes` and, with maps, `correlation_length`.

    Raises
    ------
    InputError
        A column or map is missing, or an option is out of range.
    """
    result = contrasts(
        particles,
        fraction,
        confidence=confidence,
        min_count=min_count,
        min_agglomerates=min_agglomerates,
    )
    parts = [
        depth_trend(
            particles,
            fraction,
            confidence=confidence,
            min_count=min_count,
            min_agglomerates=min_agglomerates,
        ),
        variance_components(particles, fraction, maps, confidence=confidence),
        primaries_needed(
            particles,
            fraction,
            half_width_wanted=half_width_wanted,
            confidence=confidence,
            min_agglomerates=min_agglomerates,
            n_resamples=n_resamples,
            seed=seed,
        ),
        size_classes(particles),
    ]
    if maps is not None:
        parts.append(correlation_length(maps, fraction, resolution_nm))
    for part in parts:
        result = result.merge(part)
    return result
