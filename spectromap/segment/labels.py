"""Labels: found in a thickness map, or given by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from spectromap.schema import LOG, InputError, check_map, pixel_size
from spectromap.segment._field import Field, absorbed_share, prepare
from spectromap.segment._grid import Array, Labels, check_length, crops, label_map
from spectromap.segment._rims import edge_levels
from spectromap.segment._split import LOW_SHARE, heights_of, split_basins

#: The rim of a particle is followed down to this many standard deviations of the noise.
RIM_NOISE_LEVELS = 3.0
#: A particle stands out by this many standard deviations of the noise.
FAINTEST_NOISE_LEVELS = 6.0
#: Largest number of cells of the finer grid that gaps are looked for on.
MAX_CELLS = 6_000_000


def _finer(values: Array, factor: int) -> Array:
    """Cubic spline on a grid `factor` times finer, whose blocks are the old pixels."""
    if factor == 1:
        return values
    places = [(np.arange(n * factor) + 0.5) / factor - 0.5 for n in values.shape]
    grid = np.meshgrid(*places, indexing="ij")
    return np.asarray(ndimage.map_coordinates(values, grid, order=3, mode="mirror"))


def _blocks(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """The cells of every pixel as last axis, shape (ny, nx, factor**2)."""
    ny, nx = values.shape[0] // factor, values.shape[1] // factor
    parts = values.reshape(ny, factor, nx, factor).transpose(0, 2, 1, 3)
    return parts.reshape(ny, nx, factor * factor)


def _whole(labels: Labels, least: float, most: float, area: float) -> NDArray[np.int32]:
    """Largest piece of every label, holes filled, within the size limits [nm2], in raster order."""
    kept = np.zeros(labels.shape, np.int32)
    for label, crop in crops(labels):
        pieces, count = ndimage.label(labels[crop] == label)
        if count > 1:
            pieces = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        piece = ndimage.binary_fill_holes(pieces > 0)
        piece &= ((labels[crop] == label) | (labels[crop] == 0)) & (kept[crop] == 0)
        if least <= piece.sum() * area <= most:
            kept[crop][piece] = label
    found, first = np.unique(kept, return_index=True)
    first[found == 0] = -1
    number = np.zeros(int(kept.max()) + 1, np.int32)
    number[found[np.argsort(first)]] = np.arange(found.size) + (0 if found[0] == 0 else 1)
    return number[kept]


def _factor(field: Field) -> int:
    """How many times finer the grid must be for the resolution to span 2.5 cells."""
    wanted = int(np.ceil(2.5 * max(field.pixel) / field.resolution))
    most = int(np.sqrt(MAX_CELLS / field.absorbed.size))
    return max(1, min(wanted, 3, most))


def _cut(field: Field, threshold: float | None, split: bool) -> Labels:
    """Label the pixels of a prepared map; sizes are not looked at yet."""
    factor = _factor(field)
    pixel = (field.pixel[0] / factor, field.pixel[1] / factor)
    fine = _finer(field.absorbed, factor)
    if threshold is None:
        low = max(RIM_NOISE_LEVELS * field.noise, LOW_SHARE * field.height)
    else:
        low = float(absorbed_share(np.asarray(threshold)))
    basins = split_basins(fine, field, pixel, low, split)
    if threshold is None:  # a remnant of the background is no particle
        faint = heights_of(fine, basins) < FAINTEST_NOISE_LEVELS * field.noise
        basins = np.where(faint[basins], 0, basins)
    levels: Array = np.full(fine.shape, low)
    if threshold is None and basins.any():
        levels = np.where(basins > 0, edge_levels(fine, basins, field, pixel), low)
        levels = np.maximum(levels, RIM_NOISE_LEVELS * field.noise)
    surplus = _blocks(fine - levels, factor).mean(axis=-1)
    highest = _blocks(np.where(basins > 0, fine, -np.inf), factor).argmax(axis=-1)
    owner = np.take_along_axis(_blocks(basins, factor), highest[..., None], axis=-1)[..., 0]
    return np.where((surplus > 0) & field.valid, owner, 0)


def find_particles(
    thickness: xr.DataArray,
    thickness_errors: xr.DataArray | None,
    resolution_nm: float,
    *,
    enabled: bool = True,
    threshold_nm: float | None = None,
    min_radius_nm: float | None = None,
    max_radius_nm: float | None = None,
    split: bool = True,
) -> xr.DataArray:
    """Label the particles of a thickness map.

    Parameters
    ----------
    thickness : DataArray, dims (y, x)
        Thickness [nm], unconstrained; pixels with NaN are background. An uneven background
        (up to a polynomial of the sixth degree) is found and taken off.
    thickness_errors : DataArray, dims (y, x), or None
        Standard error [nm]; the noise is taken from the map itself where that shows more.
    resolution_nm : float
        Full width at half maximum of the point spread function [nm].
    enabled : bool
        False finds none: a run then ends with the maps.
    threshold_nm : float, optional
        Thickness above the background [nm] at which every particle ends. Default: each
        particle's own, from a fit of its blurred rim.
    min_radius_nm, max_radius_nm : float, optional
        Limits of the equivalent radius [nm]. Default: the larger of one resolution and two
        pixels, and none.
    split : bool
        Whether touching particles are told apart.

    Returns
    -------
    DataArray, dims (y, x), int32
        ``particle_label``: 1 to n in the order of their first pixels, 0 is background.

    Raises
    ------
    InputError
        A map in the wrong shape or units, or a length that is not positive.

    Notes
    -----
    Particles are told apart by a watershed on distance from the edge times thickness, both lightly
    smoothed. Within a convex body both factors are concave, so that their product has a single
    maximum; two maxima are two particles where the saddle between them is below `SADDLE_SHARE` of
    the lower one (compare the dynamics of M. Grimaud, Proc. SPIE 1769, 292 (1992)). The test has
    no length in it, so that sizes are found and not told.

    The edge of each particle is where a rounded, possibly cut body fitted to its mean rim begins.
    """
    check_map(thickness, "nm", name="thickness")
    if thickness_errors is not None:
        check_map(thickness_errors, "nm", name="thickness_errors")
        if thickness_errors.shape != thickness.shape:
            raise InputError(
                f"its shape is {thickness_errors.shape}, that of the thickness {thickness.shape}",
                where="thickness_errors",
            )
    for name, length in (
        ("resolution_nm", resolution_nm),
        ("threshold_nm", threshold_nm),
        ("min_radius_nm", min_radius_nm),
        ("max_radius_nm", max_radius_nm),
    ):
        check_length(name, length)
    pixel = pixel_size(thickness)
    least = max(resolution_nm, 2.0 * max(pixel)) if min_radius_nm is None else min_radius_nm
    most = np.inf if max_radius_nm is None else max_radius_nm
    errors = None if thickness_errors is None else np.asarray(thickness_errors.values, float)
    field = prepare(thickness, errors, resolution_nm) if enabled else None
    labels = np.zeros(thickness.shape, np.int32)
    if field is not None:
        cut = _cut(field, threshold_nm, split)
        labels = _whole(cut, np.pi * least**2, np.pi * most**2, pixel[0] * pixel[1])
        labels[~field.valid] = 0
    if enabled and not labels.any():
        LOG.warning("particles: nothing in the thickness map stands out of the background")
    return label_map(labels, thickness, "particle_label", "particle, 0 = background")


def check_labels(labels: ArrayLike | xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Take labels that the user made: nothing is renumbered.

    Parameters
    ----------
    labels : array_like or DataArray, shape (ny, nx)
        Whole numbers, 0 (or NaN) is background.
    like : DataArray, dims (y, x)
        The map that they belong to.

    Returns
    -------
    DataArray, dims (y, x), int32
        ``particle_label`` on the axes of `like`.

    Raises
    ------
    InputError
        Another shape, not whole numbers, or negative ones.
    """
    values = np.asarray(labels.values if isinstance(labels, xr.DataArray) else labels)
    if values.shape != like.shape:
        raise InputError(
            f"the labels have shape {values.shape}, the maps {like.shape}",
            where="labels",
            remedy="Draw them on a map of this run, or on one with the same pixels.",
        )
    if values.dtype.kind not in "biuf":
        raise InputError(f"the labels are of type {values.dtype}", where="labels")
    numbers = np.nan_to_num(values.astype(float), nan=0.0)
    whole = np.isfinite(numbers) & (numbers == np.round(numbers))
    if not whole.all() or numbers.min() < 0 or numbers.max() > np.iinfo(np.int32).max:
        raise InputError(
            "labels must be whole numbers from 0 up",
            where="labels",
            remedy="0 is background and every particle has its own number.",
        )
    return label_map(numbers.astype(np.int32), like, "particle_label", "particle, 0 = background")
