"""Particles in a thickness map: labels, sub-pixel outlines, agglomerates and the particle table.

Rims are judged on the *absorbed share* ``(1 - exp(-mu T)) / mu`` and not on the thickness itself:
the optics blur intensity, so that a sharp edge keeps its place at half height only there. With
thickness, the half height of a sharp 80 nm rim lies a fifth of the resolution too far inside.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage, optimize, sparse, spatial

from spectromap._numerics import fwhm_to_sigma, robust_std
from spectromap.schema import FLAGS, LOG, PLACES, InputError, check_map, pixel_size, with_units

__all__ = [
    "check_labels",
    "edge_distance",
    "find_particles",
    "group_agglomerates",
    "outline_area",
    "outlines",
    "particle_table",
]

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Crop = tuple[slice, slice]
Pair = tuple[float, float]

#: Attenuation per nm that a thickness map answers to at a blurred rim: what an L3 stack of a
#: transition-metal oxide gives, within 10 % for 40 to 250 nm. A factor of two moves rims by less
#: than a tenth of the resolution.
ATTENUATION_PER_NM = 0.015
#: Two bumps are two particles where the saddle between them, in distance from the edge times
#: thickness, is lower than this share of the lower bump. That product has one maximum in any
#: convex body (both factors are concave in it), so the size of the particles need not be known.
SADDLE_SHARE = 0.87
#: A pixel is above the background from this many standard deviations of the noise ...
NOISE_LEVELS = 5.0
#: ... and its rim is followed down to this many, ...
RIM_NOISE_LEVELS = 3.0
#: ... and this share of what the particles absorb.
LOW_SHARE = 0.1
#: Cut of the provisional outline, as share of what a particle absorbs, until its rim is fitted.
PROVISIONAL_SHARE = 0.4
#: The thickness bends upwards only between two bodies: by this many standard deviations of the
#: noise, and by this share of the thickness over the width of the optics.
CREASE_LEVELS = 5.0
CREASE_SHARE = 0.1
#: How a rim rises with depth below the edge: between the root of a sphere and the straight line
#: of a wedge, as the mean around faceted and cut particles does.
RIM_EXPONENT = 0.65
#: Noise that is left by the smoothing, as share of what the particles absorb.
NOISE_SHARE = 0.04
#: First order of a deconvolution that deepens narrow gaps: the share of the blur taken off.
SHARPENING = 0.5
#: Fitted rims must lie in this range of the particle's own height to be believed.
RIM_SHARES = (0.08, 0.6)
#: Largest number of cells of the finer grid that gaps are looked for on.
MAX_CELLS = 6_000_000
#: Pixels with one of these flags carry no measurement.
UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]


# ---------------------------------------------------------------- the map, prepared


@dataclass
class _Field:
    """A thickness map without gaps and background, ready for cutting.

    `absorbed` [nm] is the smoothed absorbed share, `noise` its standard deviation where nothing
    lies, `height` what a typical particle absorbs, `sigma` the blur in it [nm], `pixel` (dy, dx).
    """

    absorbed: Array
    valid: Mask
    noise: float
    height: float
    sigma: float
    resolution: float
    pixel: Pair


def _skimage(part: str) -> Any:
    """Load a part of scikit-image; only when needed, because it takes its time."""
    return importlib.import_module(f"skimage.{part}")


def _absorbed(thickness: Array) -> Array:
    """Absorbed share [nm] of a thickness; a straight line below zero, so that noise stays even."""
    curved = -np.expm1(-ATTENUATION_PER_NM * np.maximum(thickness, 0.0)) / ATTENUATION_PER_NM
    return np.asarray(np.where(thickness > 0, curved, thickness))


def _thickness(absorbed: Array) -> Array:
    """Thickness [nm] of an absorbed share, capped where nothing comes through."""
    share = np.minimum(ATTENUATION_PER_NM * absorbed, 0.98)
    return np.asarray(np.where(share > 0, -np.log1p(-share) / ATTENUATION_PER_NM, absorbed))


def _filled(values: Array) -> tuple[Array, Mask]:
    """Values with every NaN replaced by its nearest neighbour, and where they were finite."""
    valid = np.isfinite(values)
    if valid.all() or not valid.any():
        return np.where(valid, values, 0.0), valid
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return values[tuple(nearest)], valid


def _white_noise(values: Array) -> float:
    """Noise of single pixels from a mask that no plane and no slope passes.

    References
    ----------
    J. Immerkaer, Comput. Vis. Image Underst. 64, 300 (1996).
    """
    mask = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6.0
    return robust_std(ndimage.convolve(values, mask, mode="nearest"))


def _noise_of(values: Array, errors: Array | None) -> float:
    """Noise of single pixels [nm]: what the map shows, or what its errors say if that is more."""
    shown = _white_noise(values)
    finite = errors[np.isfinite(errors)] if errors is not None else np.zeros(0)
    return max(shown, float(np.median(finite)) if finite.size else 0.0, 1e-6)


def _after_smoothing(noise: float, sigma: Pair) -> float:
    """Standard deviation that a Gaussian of `sigma` pixels leaves of white noise."""
    left = 1.0
    for s in sigma:
        left /= np.sqrt(max(2.0 * np.sqrt(np.pi) * s, 1.0))
    return noise * left


def _polynomial(shape: tuple[int, ...], order: int) -> Array:
    """Columns 1, y, x, y2, xy, x2 up to `order` on a grid that runs from -1 to 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    columns = [np.ones_like(y), y, x, y * y, x * y, x * x]
    return np.stack(columns[: (1, 3, 6)[order]], axis=-1)


def _background(smooth: Array, noise: float) -> tuple[Array, float]:
    """Uneven background [nm] and the scatter of the pixels about it.

    A polynomial, from constant to quadratic, is fitted to the pixels that are not above it, again
    and again; it keeps to the lowest mode of the histogram. Where a twentieth of the map or less
    is background there is nothing to fit and the thickness is taken as it is.
    """
    step = max(1, int(np.sqrt(smooth.size / 20_000)))
    values = smooth[::step, ::step]
    columns = _polynomial(values.shape, 2).reshape(-1, 6)
    flat = values.ravel()
    chosen: Mask = flat <= (
        _skimage("filters").threshold_otsu(flat) if np.ptp(flat) > 0 else flat[0]
    )
    coefficients: Array = np.zeros(1)
    used, scatter = 1, noise
    for order in (0, 1, 1, 1, 2, 2, 2, 2):
        n = (1, 3, 6)[order]
        if chosen.mean() < (0.02, 0.05, 0.2)[order]:
            break
        fitted = np.linalg.lstsq(columns[chosen, :n], flat[chosen], rcond=None)[0]
        rest = flat - columns[:, :n] @ fitted
        scatter = max(robust_std(rest[chosen]), noise)
        centre = np.median(rest[chosen])
        chosen = rest < centre + 2.5 * scatter
        coefficients, used = fitted, order
    if chosen.mean() < 0.05 and used == 0:
        return np.zeros_like(smooth), noise
    return np.asarray(_polynomial(smooth.shape, used) @ coefficients), scatter


def _sigma_px(sigma_nm: float, pixel: Pair, least: float = 0.0) -> Pair:
    """Standard deviation in pixels of each axis."""
    return max(sigma_nm / pixel[0], least), max(sigma_nm / pixel[1], least)


def _prepare(thickness: xr.DataArray, errors: Array | None, resolution: float) -> _Field | None:
    """Fill, flatten and smooth a map; None where nothing stands out of the noise."""
    values, valid = _filled(np.asarray(thickness.values, float))
    if not valid.any():
        return None
    pixel = pixel_size(thickness)
    optics = fwhm_to_sigma(resolution)
    noise = _noise_of(values, errors)

    coarse = _sigma_px(optics, pixel, 0.7)
    smooth = ndimage.gaussian_filter(values, coarse, mode="nearest")
    base, scatter = _background(smooth, _after_smoothing(noise, coarse))
    flat = values - base
    seen = _absorbed(smooth - base)
    above = seen[valid & (seen > NOISE_LEVELS * scatter)]
    if above.size == 0:
        return None
    height = float(np.percentile(above, 95))

    # As little smoothing as leaves the noise small beside a particle; rims must stay sharp.
    needed = noise / (NOISE_SHARE * height * 2.0 * np.sqrt(np.pi))
    mean_pixel = float(np.sqrt(pixel[0] * pixel[1]))
    width = float(np.clip(needed * mean_pixel, 0.3 * optics, max(1.2 * optics, 0.8 * mean_pixel)))
    sigma = _sigma_px(width, pixel)
    absorbed = ndimage.gaussian_filter(_absorbed(flat), sigma, mode="nearest")
    left = max(_after_smoothing(noise, sigma), scatter)
    total = float(np.sqrt(optics**2 + width**2 + mean_pixel**2 / 12.0))
    return _Field(absorbed, valid, left, height, total, resolution, pixel)


# ---------------------------------------------------------------- splitting


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


def _borders(
    regions: Labels, heights: Array, score: Callable[[Array, Array], Array]
) -> tuple[Labels, Labels, Array]:
    """Pairs of touching regions (first < second) and the highest score of cells on both sides."""
    ahead, back, every = slice(1, None), slice(None, -1), slice(None)
    steps = (
        ((every, ahead), (every, back)),
        ((ahead, every), (back, every)),
        ((ahead, ahead), (back, back)),
        ((ahead, back), (back, ahead)),
    )
    found = []
    for one, other in steps:
        a, b = regions[one], regions[other]
        touch = (a != b) & (a > 0) & (b > 0)
        low, high = np.minimum(a, b)[touch], np.maximum(a, b)[touch]
        found.append((low, high, score(heights[one][touch], heights[other][touch])))
    first, second, best = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((-best, second, first))
    first, second, best = first[order], second[order], best[order]
    new = np.ones(first.size, bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return first[new], second[new], best[new]


def _merged(regions: Labels, heights: Array, least_cells: float) -> Labels:
    """Join the regions whose saddle is no valley, highest saddle first, and too small ones."""
    count = int(regions.max())
    index = np.arange(count + 1)
    peak = np.asarray(ndimage.maximum(heights, regions, index), float)
    size = np.bincount(regions.ravel(), minlength=count + 1).astype(float)
    parent = index.copy()

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    first, second, saddle = _borders(regions, heights, np.minimum)
    for k in np.argsort(-saddle, kind="stable"):
        keep, join = root(int(first[k])), root(int(second[k]))
        if keep == join:
            continue
        if peak[keep] < peak[join]:
            keep, join = join, keep
        if saddle[k] >= SADDLE_SHARE * peak[join] or size[join] < least_cells:
            parent[join] = keep
            size[keep] += size[join]
    return np.asarray([root(int(i)) for i in index])[regions]


def _basins(heights: Array, mask: Mask, least_cells: float, split: bool) -> Labels:
    """Regions of the mask, one per particle."""
    if not split:
        return np.asarray(ndimage.label(mask)[0])
    markers = ndimage.label(_skimage("morphology").local_maxima(heights) & mask, np.ones((3, 3)))[0]
    regions = np.asarray(_skimage("segmentation").watershed(-heights, markers, mask=mask))
    return _merged(regions, heights, least_cells) if regions.max() > 1 else regions


def _edt(mask: Mask, pixel: Pair) -> Array:
    """Distance [nm] of every cell of the mask from the outside; the frame's border is none."""
    padded = np.pad(mask, 1, mode="edge")
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=pixel)[1:-1, 1:-1])


def _heights(values: Array, regions: Labels, percentile: float = 85) -> Array:
    """What each region absorbs: the 85th percentile of its cells, indexed by label."""
    heights = np.zeros(int(regions.max()) + 1)
    for label, crop in _crops(regions):
        heights[label] = np.percentile(values[crop][regions[crop] == label], percentile)
    return heights


def _crops(labels: Labels, margin: int = 0) -> Iterator[tuple[int, Crop]]:
    """Every label that occurs with its bounding box, widened by a margin within the frame."""
    for label, found in enumerate(ndimage.find_objects(np.asarray(labels)), start=1):
        if found is not None:
            y, x = (
                slice(max(s.start - margin, 0), min(s.stop + margin, n))
                for s, n in zip(found, labels.shape, strict=True)
            )
            yield label, (y, x)


def _split(fine: Array, field: _Field, pixel: Pair, low: float, split: bool) -> Labels:
    """Basins on the fine grid: one particle each, with some of the gap around it."""
    optics = _sigma_px(fwhm_to_sigma(field.resolution), pixel)
    curved = sum(
        s * s * ndimage.gaussian_filter(fine, _sigma_px(0.5 * min(pixel), pixel), order=order)
        for s, order in zip(optics, ((2, 0), (0, 2)), strict=True)
    )
    sharp = _thickness(fine - 0.5 * SHARPENING * curved)
    least = np.pi * field.resolution**2 / (pixel[0] * pixel[1])
    soft = _sigma_px(0.5 * float(np.sqrt(field.pixel[0] * field.pixel[1])), pixel)
    wide = fine > low
    mask = wide
    basins = np.zeros(fine.shape, int)
    flat = sharp
    crease = _creases(fine, field, pixel)
    for _ in range(2):  # the first cut is made without knowing how high each particle is
        depth = ndimage.gaussian_filter(_edt(mask & ~crease, pixel), soft)
        heights = ndimage.gaussian_filter(np.where(mask, depth * np.maximum(flat, 0), 0), soft)
        basins = _basins(heights, mask, least, split)
        mask = (basins > 0) & (
            _absorbed(sharp) > PROVISIONAL_SHARE * _heights(fine, basins)[basins]
        )
        flat = np.minimum(sharp, _heights(sharp, basins, 50)[basins])
    return _spread(basins, fine, wide)


def _creases(fine: Array, field: _Field, pixel: Pair) -> Mask:
    """Where the thickness bends upwards, which it does nowhere within a convex body."""
    scale = max(fwhm_to_sigma(field.resolution), 0.7 * max(field.pixel))
    sigma = _sigma_px(scale, pixel)
    thick = _thickness(fine)
    yy, xx, xy = (
        sigma[0] ** o[0] * sigma[1] ** o[1] * ndimage.gaussian_filter(thick, sigma, order=o)
        for o in ((2, 0), (0, 2), (1, 1))
    )
    bend = 0.5 * (yy + xx) + np.hypot(0.5 * (yy - xx), xy)
    empty = fine < LOW_SHARE * field.height
    away = ndimage.binary_erosion(empty, iterations=int(3 * max(sigma)))
    noise = np.sqrt(np.mean(bend[away] ** 2)) if away.any() else field.noise
    # Photon noise in thickness grows with what is absorbed.
    limit = CREASE_LEVELS * noise * np.exp(0.5 * ATTENUATION_PER_NM * np.maximum(thick, 0))
    return np.asarray(bend > np.maximum(limit, CREASE_SHARE * thick))


def _spread(basins: Labels, fine: Array, mask: Mask) -> Labels:
    """Let the basins grow down the thickness until they fill the mask."""
    return np.asarray(_skimage("segmentation").watershed(-fine, basins, mask=mask))


# ---------------------------------------------------------------- rims


def _rim_curve(distance: Array, rim: Array, radius: float, sigma: float) -> Array:
    """Blurred absorbed share [nm] at a distance [nm] inside of the provisional outline.

    The rim (place of the edge in sigma, log of the steepness, log of the cap in nm) is that of a
    rounded body, thickness ``min(a sqrt(R) (s (1 - s / 2 R) / R)**p, cap)`` at depth s: with p of
    1/2 a sphere for ``a = 2 sqrt(2 R)``; a section's flat top for a low cap; an upright face for a
    large a. p is `RIM_EXPONENT`.
    """
    place, steepness, cap = rim[0] * sigma, np.exp(rim[1]), np.exp(rim[2])
    offsets = np.linspace(-3.2, 3.2, 33)
    weights = np.exp(-0.5 * offsets**2)
    depth = np.clip((distance - place)[:, None] - offsets * sigma, 0.0, radius)
    thickness = np.minimum(
        steepness
        * (depth * (1.0 - 0.5 * depth / radius)) ** RIM_EXPONENT
        * radius ** (0.5 - RIM_EXPONENT),
        cap,
    )
    return np.asarray(_absorbed(thickness) @ (weights / weights.sum()))


def _rim_profile(
    values: Array, mine: Mask, others: Mask, field: _Field, pixel: Pair
) -> tuple[Array, Array, Array]:
    """Distance inside of a provisional outline, mean absorbed share there and number of cells.

    Only the free rim counts: cells whose nearest neighbour is further than the rim itself.
    """
    step = float(np.sqrt(pixel[0] * pixel[1]))
    inwards = _edt(mine, pixel)
    signed = np.where(mine, inwards - 0.5 * step, 0.5 * step - _edt(~mine, pixel))
    reach = max(3.0 * field.sigma, 0.6 * float(inwards.max()))
    use = (signed > -3.0 * field.sigma) & (signed < reach)
    if others.any():
        use &= _edt(~others, pixel) > np.abs(signed) + 2.5 * field.sigma
    cell = np.round(signed[use] / step).astype(int)
    if cell.size == 0:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    cell -= cell.min()
    count = np.bincount(cell)
    good = count > 3
    distance = np.bincount(cell, signed[use])[good] / count[good]
    mean = np.bincount(cell, values[use])[good] / count[good]
    return distance, mean, count[good].astype(float)


def _rim_level(
    values: Array, mine: Mask, others: Mask, field: _Field, pixel: Pair, height: float
) -> float:
    """Absorbed share [nm] at a particle's edge, from a fit of its rim; NaN where none is free."""
    distance, mean, count = _rim_profile(values, mine, others, field, pixel)
    outside, inside = distance < -0.5 * field.sigma, distance > 1.5 * field.sigma
    if outside.sum() < 2 or inside.sum() < 2:
        return float("nan")
    radius = max(float(np.sqrt(mine.sum() * pixel[0] * pixel[1] / np.pi)), field.sigma)
    weights = 1.0 / np.sqrt(field.noise**2 / count + (0.02 * height) ** 2)
    usual = np.log(1.5 * np.sqrt(2.0 * radius))

    def misfit(rim: Array) -> Array:
        rest = (_rim_curve(distance, rim, radius, field.sigma) - mean) * weights
        # Weak beliefs, for rims that the blur has left without a shape: within two sigma of the
        # provisional outline, and nearly as steep as a sphere within a factor of three.
        return np.concatenate([rest, [0.5 * rim[0], rim[1] - usual]])

    start = np.array([-0.3, usual, np.log(1.3 * float(_thickness(np.asarray(height))))])
    fit = optimize.least_squares(misfit, start, max_nfev=25)
    edge = np.array([fit.x[0] * field.sigma])
    return float(_rim_curve(edge, fit.x, radius, field.sigma)[0])


def _rim_shares(fine: Array, basins: Labels, field: _Field, pixel: Pair) -> tuple[Array, Array]:
    """Height of every particle [nm] and the share of it at which its edge lies."""
    heights = _heights(fine, basins)
    inside = (basins > 0) & (fine > PROVISIONAL_SHARE * heights[basins])
    shares = np.full(heights.size, np.nan)
    margin = int(np.ceil(4.0 * field.sigma / min(pixel)))
    for label, crop in _crops(basins, margin):
        mine = inside[crop] & (basins[crop] == label)
        if mine.any() and heights[label] > 0:
            others = inside[crop] & (basins[crop] != label)
            level = _rim_level(fine[crop], mine, others, field, pixel, float(heights[label]))
            shares[label] = level / heights[label]
    shares[(shares < RIM_SHARES[0]) | (shares > RIM_SHARES[1])] = np.nan
    found = np.isfinite(shares)
    # Particles without a free rim are taken to be like the others.
    shares[~found] = np.median(shares[found]) if found.any() else PROVISIONAL_SHARE
    return heights, shares


def _levels(fine: Array, basins: Labels, field: _Field, pixel: Pair) -> Array:
    """Level [nm] of the absorbed share at which each cell's particle ends.

    In a gap the neighbour's blurred rim adds to the particle's own. What it adds follows from how
    deep the valley m is beside twice the edge level e: ``(m / 2e)**2.6`` of e for two blurred
    steps, and nothing where the two touch, because there is no gap to find.
    """
    heights, shares = _rim_shares(fine, basins, field, pixel)
    edge = (heights * shares)[basins]
    none = np.where(basins > 0, basins, basins.max() + 1)
    above, below = ndimage.grey_dilation(basins, size=3), ndimage.grey_erosion(none, size=3)
    line = (basins > 0) & ((above > basins) | (below < basins))
    if not line.any():
        return np.asarray(edge)
    away, nearest = ndimage.distance_transform_edt(~line, sampling=pixel, return_indices=True)
    valley = np.clip(fine[tuple(nearest)] / np.maximum(2.0 * edge, 1e-9), 0.0, 1.0)
    added = valley**2.6 * np.clip((1.0 - valley) / 0.3, 0.0, 1.0)
    return np.asarray(edge * (1.0 + np.where(away < 2.5 * field.sigma, added, 0.0)))


# ---------------------------------------------------------------- labels


def _whole(labels: Labels, least: float, most: float, area: float) -> NDArray[np.int32]:
    """Largest piece of every label, holes filled, within the size limits [nm2], in raster order."""
    kept = np.zeros(labels.shape, np.int32)
    for label, crop in _crops(labels):
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


def _factor(field: _Field) -> int:
    """How many times finer the grid must be for the resolution to span 2.5 cells."""
    wanted = int(np.ceil(2.5 * max(field.pixel) / field.resolution))
    most = int(np.sqrt(MAX_CELLS / field.absorbed.size))
    return max(1, min(wanted, 3, most))


def _cut(field: _Field, threshold: float | None, split: bool) -> Labels:
    """Label the pixels of a prepared map; sizes are not looked at yet."""
    factor = _factor(field)
    pixel = (field.pixel[0] / factor, field.pixel[1] / factor)
    fine = _finer(field.absorbed, factor)
    if threshold is None:
        low = max(RIM_NOISE_LEVELS * field.noise, LOW_SHARE * field.height)
    else:
        low = float(_absorbed(np.asarray(threshold)))
    basins = _split(fine, field, pixel, low, split)
    levels: Array = np.full(fine.shape, low)
    if threshold is None and basins.any():
        levels = np.where(basins > 0, _levels(fine, basins, field, pixel), low)
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
        Thickness [nm], unconstrained; pixels with NaN are background. An uneven background (up
        to a quadratic polynomial) is found and taken off.
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
        Limits of the equivalent radius [nm]. Default: the larger of 1.5 resolutions and 2.5
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
        _check_length(name, length)
    pixel = pixel_size(thickness)
    least = max(1.5 * resolution_nm, 2.5 * max(pixel)) if min_radius_nm is None else min_radius_nm
    most = np.inf if max_radius_nm is None else max_radius_nm
    errors = None if thickness_errors is None else np.asarray(thickness_errors.values, float)
    field = _prepare(thickness, errors, resolution_nm) if enabled else None
    labels = np.zeros(thickness.shape, np.int32)
    if field is not None:
        cut = _cut(field, threshold_nm, split)
        labels = _whole(cut, np.pi * least**2, np.pi * most**2, pixel[0] * pixel[1])
        labels[~field.valid] = 0
    if enabled and not labels.any():
        LOG.warning("particles: nothing in the thickness map stands out of the background")
    return _label_map(labels, thickness, "particle_label", "particle, 0 = background")


def _check_length(name: str, length: float | None) -> None:
    """Refuse a length that is not positive."""
    if length is not None and not (np.isfinite(length) and length > 0):
        raise InputError(f"{length} is not a positive length in nm", where=name)


def _label_map(labels: Labels, like: xr.DataArray, name: str, long_name: str) -> xr.DataArray:
    """Labels as a map on the axes of another."""
    coords = {dim: like[dim] for dim in ("y", "x")}
    return with_units(
        xr.DataArray(labels.astype(np.int32), dims=("y", "x"), coords=coords), name, "1", long_name
    )


# ---------------------------------------------------------------- outlines


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
    return _label_map(numbers.astype(np.int32), like, "particle_label", "particle, 0 = background")


def _check_label_map(labels: xr.DataArray, like: xr.DataArray | None = None) -> Labels:
    """Values of a label map that fits another map."""
    check_map(labels, name=str(labels.name or "labels"))
    if like is not None and labels.shape != like.shape:
        raise InputError(
            f"the labels have shape {labels.shape}, the map {like.shape}", where="labels"
        )
    return np.asarray(labels.values).astype(np.int32)


@dataclass
class _Ground:
    """What outlines are drawn on: a smooth map and, for every pixel, the nearest particle."""

    labels: Labels
    values: Array
    owner: Labels
    away: Array
    pixel: Pair
    level: float | None


def _ground(labels: Labels, thickness: xr.DataArray, threshold: float | None) -> _Ground:
    """Smooth the thickness for contours at the particles' edges."""
    values, _ = _filled(np.asarray(thickness.values, float))
    pixel = pixel_size(thickness)
    noise = _white_noise(values)
    if threshold is not None and labels.any():
        far = ndimage.distance_transform_edt(labels == 0) > 3
        values = values - _surface(values, far)
    inside = values[labels > 0]
    height = max(float(np.percentile(inside, 85)), 1e-6) if inside.size else 1.0
    width = np.clip(noise / (NOISE_SHARE * height * 2.0 * np.sqrt(np.pi)), 0.9, 1.2)
    smooth = ndimage.gaussian_filter(values, float(width), mode="nearest")
    away, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return _Ground(labels, smooth, labels[tuple(nearest)], away, pixel, threshold)


def _surface(values: Array, empty: Mask) -> Array:
    """Quadratic through the pixels away from particles; a constant where they are few."""
    order = 2 if empty.mean() > 0.2 else 0
    if empty.sum() < 20:
        return np.zeros_like(values)
    columns = _polynomial(values.shape, order)
    fitted = np.linalg.lstsq(columns[empty], values[empty], rcond=None)[0]
    return np.asarray(columns @ fitted)


def _edge_level(values: Array, mine: Mask, empty: Mask) -> tuple[float, float] | None:
    """Level at which a label ends on the background, and the slope there per pixel.

    The level is the median of the values half way between the pixels on the two sides of the free
    edge. None where no edge is free.
    """
    ahead, back, every = slice(1, None), slice(None, -1), slice(None)
    inner, outer = [], []
    for one, other in (((ahead, every), (back, every)), ((every, ahead), (every, back))):
        for here, there in ((one, other), (other, one)):
            face = mine[here] & empty[there]
            inner.append(values[here][face])
            outer.append(values[there][face])
    inside, outside = np.concatenate(inner), np.concatenate(outer)
    if inside.size == 0:
        return None
    slope = max(float(np.median(inside - outside)), 1e-9)
    return float(np.median(0.5 * (inside + outside))), slope


def _edge_field(ground: _Ground, label: int, crop: Crop) -> Array:
    """Signed field that is zero along a particle's edge, in pixels near it.

    Free edges follow the level of the map at which the label ends; where a neighbour touches, and
    where the label does not follow the map (a hand-drawn one), the outline of the label counts.
    """
    mine = ground.labels[crop] == label
    owned = ground.owner[crop] == label
    drawn = ndimage.gaussian_filter(owned.astype(float), 0.7, mode="nearest")
    field = (drawn - 0.5) * 0.7 * np.sqrt(2.0 * np.pi)
    values = ground.values[crop]
    edge = _edge_level(values, mine, owned & (ground.labels[crop] == 0))
    if edge is not None:
        level, slope = edge if ground.level is None else (ground.level, edge[1])
        above = owned & (values > level) & (ground.away[crop] < 3)
        follows = (above & mine).sum() > 0.75 * (above | mine).sum()
        if ground.level is not None or follows:
            free = (values - level) / slope
        else:
            shape = ndimage.gaussian_filter(mine.astype(float), 0.7, mode="nearest")
            free = (shape - 0.5) * 0.7 * np.sqrt(2.0 * np.pi)
        field = np.minimum(field, free)
    return np.asarray(np.minimum(field, 2.5 - ground.away[crop]))


def _polygon(field: Array, around: Mask) -> Array | None:
    """Closed zero contour (n, 2) of a field, in pixels, that holds most of the given pixels."""
    # Beyond the frame the field changes sign, so that contours close half a pixel outside.
    padded = np.pad(field, 1, mode="edge")
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        padded[edge] = -np.abs(padded[edge]) - 1e-9
    best, most = None, 0.0
    for contour in _skimage("measure").find_contours(padded, 0.0):
        if len(contour) < 4 or outline_area(contour) <= most:
            continue
        held = _skimage("measure").grid_points_in_poly(padded.shape, contour)[1:-1, 1:-1] & around
        if held.any():
            best, most = contour - 1.0, outline_area(contour)
    return best


def outline_area(outline: Array) -> float:
    """Area inside a closed outline by the shoelace formula, in the square of its units.

    Parameters
    ----------
    outline : ndarray, shape (n, 2)
        Corners (y, x) in order; the last may repeat the first.

    Returns
    -------
    float
        Never negative.
    """
    y, x = outline[:, 0], outline[:, 1]
    return float(0.5 * abs(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1))))


def _centroid(outline: Array) -> tuple[float, float]:
    """Centre of the area inside a closed outline, as (y, x)."""
    origin = outline.mean(axis=0)
    y, x = (outline - origin).T
    cross = y * np.roll(x, -1) - x * np.roll(y, -1)
    twice = cross.sum()
    if abs(twice) < 1e-12:
        return float(origin[0]), float(origin[1])
    cy = ((y + np.roll(y, -1)) * cross).sum() / (3.0 * twice)
    cx = ((x + np.roll(x, -1)) * cross).sum() / (3.0 * twice)
    return float(origin[0] + cy), float(origin[1] + cx)


def _to_nm(outline: Array, like: xr.DataArray) -> Array:
    """Pixel indices as coordinates (y, x) in nm."""
    dy, dx = pixel_size(like)
    start = np.array([float(like["y"][0]), float(like["x"][0])])
    return np.asarray(start + outline * np.array([dy, dx]))


def outlines(
    labels: xr.DataArray, thickness: xr.DataArray, *, threshold_nm: float | None = None
) -> dict[int, Array]:
    """Sub-pixel outline of every particle.

    Parameters
    ----------
    labels : DataArray, dims (y, x), int
        Particles; 0 is background.
    thickness : DataArray, dims (y, x)
        Thickness [nm].
    threshold_nm : float, optional
        Thickness above the background [nm] at which particles end. Default: for each particle the
        level of the map along its label.

    Returns
    -------
    dict of int to ndarray, shape (n, 2)
        Label to closed polygon of (y, x) in nm. Where two particles touch, it runs between their
        labels; at the border of the map, half a pixel outside of the last row.

    Raises
    ------
    InputError
        Maps in the wrong shape or units.

    Notes
    -----
    Marching squares (W. E. Lorensen and H. E. Cline, Comput. Graph. 21, 163 (1987)) on the lightly
    smoothed thickness.
    """
    check_map(thickness, "nm", name="thickness")
    values = _check_label_map(labels, thickness)
    _check_length("threshold_nm", threshold_nm)
    ground = _ground(values, thickness, threshold_nm)
    found = {label: polygon for label, _, polygon in _polygons(ground)}
    return {label: _to_nm(polygon, thickness) for label, polygon in found.items()}


def _polygons(ground: _Ground) -> Iterator[tuple[int, Crop, Array]]:
    """Every particle's label, crop and outline in pixels of the whole map."""
    for label, crop in _crops(ground.labels, 4):
        corner = np.array([crop[0].start, crop[1].start], float)
        mine = ground.labels[crop] == label
        polygon = _polygon(_edge_field(ground, label, crop), mine)
        if polygon is not None:
            yield label, crop, polygon + corner


def _distance_to(start: Array, end: Array, points: Array) -> Array:
    """Distance of points (n, 2) to the nearest of many short line segments."""
    along = end - start
    square = np.maximum((along**2).sum(axis=1), 1e-30)
    near = min(6, len(start))
    _, sides = spatial.cKDTree(0.5 * (start + end)).query(points, k=near)
    sides = np.asarray(sides).reshape(len(points), near)
    offset = points[:, None] - start[sides]
    part = np.clip((offset * along[sides]).sum(axis=-1) / square[sides], 0.0, 1.0)
    rest = offset - part[..., None] * along[sides]
    return np.asarray(np.sqrt((rest**2).sum(axis=-1)).min(axis=1))


def edge_distance(
    labels: xr.DataArray,
    thickness: xr.DataArray,
    resolution_nm: float | None = None,
    *,
    threshold_nm: float | None = None,
) -> xr.DataArray:
    """Distance of every pixel from the sub-pixel outline of its particle.

    Parameters
    ----------
    labels : DataArray, dims (y, x), int
        Particles; 0 is background.
    thickness : DataArray, dims (y, x)
        Thickness [nm].
    resolution_nm : float, optional
        Full width at half maximum of the point spread function [nm]. Outside, distances are given
        up to three times it, or up to 5 pixels.
    threshold_nm : float, optional
        See `outlines`.

    Returns
    -------
    DataArray, dims (y, x), float32
        ``edge_distance`` [nm], positive inside, NaN far from any particle. The line between two
        that touch is an edge of both; the border of the map is none.

    Raises
    ------
    InputError
        Maps in the wrong shape or units, or a length that is not positive.
    """
    check_map(thickness, "nm", name="thickness")
    values = _check_label_map(labels, thickness)
    _check_length("threshold_nm", threshold_nm)
    _check_length("resolution_nm", resolution_nm)
    pixel = pixel_size(thickness)
    reach = 5.0 * max(pixel) if resolution_nm is None else 3.0 * resolution_nm
    ground = _ground(values, thickness, threshold_nm)
    distance = np.full(values.shape, np.nan)
    for label, _, polygon in _polygons(ground):
        _draw_distance(distance, ground, label, polygon, reach)
    coords = {dim: thickness[dim] for dim in ("y", "x")}
    result = xr.DataArray(distance.astype(np.float32), dims=("y", "x"), coords=coords)
    return with_units(result, "edge_distance", "nm", "distance inwards from the outline")


def _draw_distance(
    distance: Array, ground: _Ground, label: int, polygon: Array, reach: float
) -> None:
    """Enter the distances of the pixels in and around one particle."""
    start, end = polygon[:-1], polygon[1:]
    middle = 0.5 * (start + end)
    real = ((middle >= 0) & (middle <= np.array(distance.shape) - 1.0)).all(axis=1)
    if not real.any():  # the particle fills the whole map
        return
    margin = np.ceil(reach / np.array(ground.pixel)).astype(int) + 2
    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + margin + 1, distance.shape)
    crop = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    inside = _skimage("measure").grid_points_in_poly(
        (int(high[0] - low[0]), int(high[1] - low[1])), polygon - low
    )
    inside &= ground.owner[crop] == label
    before = distance[crop]
    wanted = inside | ~(before > 0)
    nm = np.array(ground.pixel)
    found = _distance_to(start[real] * nm, end[real] * nm, (np.argwhere(wanted) + low) * nm)
    outside = np.fmax(before[wanted], np.where(found <= reach, -found, np.nan))
    before[wanted] = np.where(inside[wanted], found, outside)


# ---------------------------------------------------------------- agglomerates


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
    values = _check_label_map(labels)
    _check_length("gap_nm", gap_nm)
    if min_particles < 1:
        raise InputError(f"{min_particles} is not a number of particles", where="min_particles")
    pixel = pixel_size(labels)
    numbers, first, count = np.unique(values, return_index=True, return_counts=True)
    first, count, numbers = first[numbers > 0], count[numbers > 0], numbers[numbers > 0]
    if numbers.size == 0:
        return _label_map(values * 0, labels, "agglomerate_label", "agglomerate, 0 = none")
    radius = float(np.sqrt(np.median(count) * pixel[0] * pixel[1] / np.pi))
    gap = max(2.0 * max(pixel), 0.5 * radius) if gap_nm is None else gap_nm
    away, nearest = ndimage.distance_transform_edt(values == 0, sampling=pixel, return_indices=True)
    # Where the regions nearest to two particles meet, their distances add up to the gap.
    owner = values[tuple(nearest)]
    a, b, width = _borders(owner, away, lambda one, other: -(one + other))
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
    return _label_map(of_label[values], labels, "agglomerate_label", "agglomerate, 0 = none")


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


def _bodies(labels: Labels, groups: Labels, pixel: Pair, gap: float) -> Iterator[_Body]:
    """Outer shape of every agglomerate: its primaries with the gaps between them closed."""
    for group, crop in _crops(groups):
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
        depth = _edt(closed, pixel)
        start = [s.start - w - f[0] for s, w, f in zip(crop, wide, frame, strict=True)]
        yield _Body(group, depth, (start[0], start[1]), radius)


# ---------------------------------------------------------------- the table


@dataclass
class _Limits:
    """What a particle must satisfy to be used."""

    max_overlap: float
    least_radius: float
    allow_border: bool


def _noise_area(maps: xr.Dataset, labels: Labels, resolution: float, pixel: Pair) -> float:
    """Area [nm2] that shares one independent value of the noise.

    It is the sum of the autocorrelation of the thickness in the empty part of the map, out to one
    resolution: one pixel for raw counts, more once frames were interpolated or reconstructed. It
    lies between one pixel and the correlation area ``4 pi sigma**2`` of the point spread function,
    which is taken where the map has no empty part.
    """
    one = pixel[0] * pixel[1]
    most = max(one, 4.0 * np.pi * fwhm_to_sigma(resolution) ** 2)
    values, errors = maps["thickness"].values, maps["thickness_errors"].values
    good = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    away = ndimage.distance_transform_edt(labels == 0, sampling=pixel)
    empty = good & (away > max(1.25 * resolution, 3.0 * max(pixel)))
    if empty.sum() < 400:
        return most
    z = np.where(empty, values / np.where(good, errors, 1.0), 0.0)
    z = np.where(empty, z - _surface(z, empty), 0.0)
    reach = [max(2, int(np.ceil(resolution / p))) for p in pixel]
    shape = [fft.next_fast_len(n + 2 * r, real=True) for n, r in zip(z.shape, reach, strict=True)]
    product, pairs = (
        fft.irfft2(np.abs(fft.rfft2(part.astype(np.float32), shape)) ** 2, shape)
        for part in (z, empty)
    )
    rows, columns = (np.r_[0 : r + 1, -r:0] for r in reach)
    lags = np.ix_(rows, columns)
    near = np.hypot(rows[:, None] * pixel[0], columns * pixel[1]) <= max(
        resolution, 1.5 * max(pixel)
    )
    correlation = product[lags] / np.maximum(pairs[lags], 1.0)
    total = float(correlation[near].sum() / max(correlation[0, 0], 1e-12))
    return float(np.clip(total * one, one, most))


@dataclass
class _Pixels:
    """Everything about the pixels that the rows of the table are made from."""

    labels: Labels
    thickness: Array
    thickness_errors: Array
    fraction: Array
    fraction_errors: Array
    smooth: Array
    border: Mask
    owner: Labels
    distance: Array
    noise_area: float
    pixel: Pair


def _collect(maps: xr.Dataset, fraction: str, resolution: float) -> _Pixels:
    """Take the maps apart and mark what cannot be used."""
    values = {
        name: np.asarray(maps[name].values)
        for name in (
            "thickness",
            "thickness_errors",
            f"{fraction}_fraction",
            f"{fraction}_fraction_errors",
        )
    }
    labels = _check_label_map(maps["particle_label"], maps["thickness"])
    pixel = pixel_size(maps["thickness"])
    bad = ~np.all([np.isfinite(v) for v in values.values()], axis=0)
    if "flags" in maps:
        bad |= (np.asarray(maps["flags"].values).astype(int) & UNUSABLE) > 0
    usable = [np.where(bad, np.nan, v) for v in values.values()]
    sigma = _sigma_px(fwhm_to_sigma(resolution), pixel, 0.7)
    smooth = ndimage.gaussian_filter(_filled(values["thickness"])[0], sigma, mode="nearest")
    nearest = ndimage.distance_transform_edt(
        labels == 0, return_distances=False, return_indices=True
    )
    if "edge_distance" in maps:
        distance = np.asarray(maps["edge_distance"].values)
    else:
        edge = edge_distance(maps["particle_label"], maps["thickness"], resolution)
        distance = np.asarray(edge.values)
    return _Pixels(
        labels=labels,
        thickness=usable[0],
        thickness_errors=usable[1],
        fraction=usable[2],
        fraction_errors=usable[3],
        smooth=smooth,
        border=_border(np.isfinite(values["thickness"])),
        owner=labels[tuple(nearest)],
        distance=distance,
        noise_area=_noise_area(maps, labels, resolution, pixel),
        pixel=pixel,
    )


def _border(valid: Mask) -> Mask:
    """Pixels at the border of what was measured: of the frame, or of an area without data on it."""
    outside = np.pad(~valid, 1, constant_values=True)
    pieces = ndimage.label(outside)[0]
    near = ndimage.binary_dilation(pieces == pieces[0, 0], np.ones((3, 3)))
    return np.asarray(near[1:-1, 1:-1])


def _outline_of(data: _Pixels, label: int, crop: Crop) -> Array | None:
    """Outline in pixels of the whole map, where the distance from the edge is zero."""
    distance = data.distance[crop]
    far = float(max(data.pixel)) * 3.0
    signed = np.where(np.isfinite(distance), distance, -far)
    owned = data.owner[crop] == label
    polygon = _polygon(np.where(owned, signed, -np.abs(signed)), data.labels[crop] == label)
    if polygon is None:
        return None
    return np.asarray(polygon + np.array([crop[0].start, crop[1].start], float))


def _row(data: _Pixels, label: int, crop: Crop, section: float | None) -> dict[str, Any]:
    """Properties of one particle, without its agglomerate."""
    mine = data.labels[crop] == label
    one = data.pixel[0] * data.pixel[1]
    polygon = _outline_of(data, label, crop)
    if polygon is None:  # smaller than a contour can be
        area = mine.sum() * one
        inside = np.argwhere(mine).mean(axis=0)
        centre = (float(inside[0] + crop[0].start), float(inside[1] + crop[1].start))
    else:
        area, centre = outline_area(polygon) * one, _centroid(polygon)
    radius = float(np.sqrt(area / np.pi))
    highest = float(data.smooth[crop][mine].max())
    allowed = 2.0 * radius if section is None else min(2.0 * radius, section)
    used = mine & np.isfinite(data.thickness[crop])
    t, t_errors, f, f_errors = (
        values[crop][used].astype(float)
        for values in (
            data.thickness,
            data.thickness_errors,
            data.fraction,
            data.fraction_errors,
        )
    )
    row = dict(particle=label, area=area, radius=radius, y=centre[0], x=centre[1])
    row |= dict(thickness_max=highest, overlap=highest / allowed)
    row |= dict(at_border=bool((data.border[crop] & mine).any()), pixels=int(used.sum()))
    return row | _composition(t, t_errors, f, f_errors, data.noise_area / one)


def _composition(
    t: Array, t_errors: Array, f: Array, f_errors: Array, shared: float
) -> dict[str, float]:
    """Mean thickness and fraction of the pixels of one particle, with errors.

    The fraction is ``F = sum(f t) / sum(t)``, whose error is that of ``sum(f t - F t)``: sigma_f t
    for every pixel. That runs away with f where noise takes t to nearly nothing, so that there it
    is held to what it is in the thicker pixels.
    """
    if t.size == 0 or t.sum() <= 0:
        nan = float("nan")
        return dict(thickness=nan, thickness_errors=nan, fraction=nan, fraction_errors=nan)
    shared = min(shared, float(t.size))
    total = float(t.sum())
    mean = float((f * t).sum() / total)
    noise = np.abs(t) * f_errors
    thin = np.abs(t) < 0.3 * total / t.size
    if thin.any() and not thin.all():
        noise[thin] = np.minimum(noise[thin], np.median(noise[~thin]))
    return dict(
        thickness=total / t.size,
        thickness_errors=float(np.sqrt(shared * (t_errors**2).sum())) / t.size,
        fraction=mean,
        fraction_errors=float(np.sqrt(shared * (noise**2).sum())) / total,
    )


def _places(
    data: _Pixels, groups: Labels, rows: list[dict[str, Any]], gap: float, exterior: float | None
) -> None:
    """Add agglomerate, depth and place to the rows."""
    bodies = {b.group: b for b in _bodies(data.labels, groups, data.pixel, gap)}
    for row, (_, crop) in zip(rows, _crops(data.labels), strict=True):
        mine = groups[crop][data.labels[crop] == row["particle"]]
        members = np.bincount(mine[mine > 0]) if (mine > 0).any() else np.zeros(1, int)
        row["agglomerate"] = int(members.argmax())
        row["depth"], row["place"] = float("nan"), PLACES[0]
        if row["agglomerate"] > 0:
            body = bodies[row["agglomerate"]]
            row["depth"] = body.at(row["y"], row["x"])
            limit = 2.0 * body.radius if exterior is None else exterior
            row["place"] = PLACES[1] if row["depth"] <= limit else PLACES[2]


def _reason(row: dict[str, Any], limits: _Limits) -> str:
    """Why a particle is not used; empty if it is."""
    reasons = []
    if not np.isfinite(row["fraction"]):
        reasons.append("no composition was measured")
    if row["at_border"] and not limits.allow_border:
        reasons.append("it is cut by the border of the map")
    if row["overlap"] > limits.max_overlap:
        reasons.append(f"overlap: {row['overlap']:.2f} times as thick as its outline allows")
    if row["radius"] < limits.least_radius:
        reasons.append(f"too small: radius below {limits.least_radius:.0f} nm")
    return "; ".join(reasons)


def particle_table(
    maps: xr.Dataset,
    fraction: str,
    resolution_nm: float | None = None,
    geometry: Literal["dispersed", "lamella"] = "dispersed",
    section_nm: float | None = None,
    *,
    max_overlap: float = 1.3,
    min_radius_nm: float | None = None,
    allow_border: bool = False,
    exterior_nm: float | None = None,
) -> xr.Dataset:
    """Measure every particle.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        ``particle_label``, ``thickness`` [nm] and ``<fraction>_fraction``, unconstrained and with
        their ``_errors``; if there, ``agglomerate_label`` (else all particles are outside),
        ``edge_distance`` [nm] (else it is made) and ``flags``.
    fraction : str
        Name of the mapped component, such as "mn3".
    resolution_nm : float, optional
        Full width at half maximum of the point spread function [nm]; default two pixels.
    geometry : {"dispersed", "lamella"}
        Whole particles, or a section.
    section_nm : float, optional
        Nominal thickness of a section [nm], which then bounds the thickness of a particle too.
    max_overlap : float
        Particles with a larger overlap score are not used. A sphere scores 1, a cube seen along
        its edge 0.9 and along its diagonal 1.2; one sphere on top of another scores up to 2.
    min_radius_nm : float, optional
        Smaller particles [nm] are not used; default two resolutions.
    allow_border : bool
        Use particles that the border of the map cuts.
    exterior_nm : float, optional
        Primaries whose centre is not deeper than this [nm] below the surface of their agglomerate
        are at its exterior; default the median diameter of its primaries, which takes the
        outermost layer.

    Returns
    -------
    Dataset, dims (particle,)
        The coordinate ``particle`` is the label. ``area`` [nm2], equivalent ``radius`` and centre
        ``y``, ``x`` [nm] of the sub-pixel outline; mean ``thickness`` [nm]; ``thickness_max`` [nm],
        the largest within one resolution element; ``overlap``, that over the diameter (or the
        section if it is thinner); ``<fraction>_fraction`` = sum of the component's thickness over
        the sum of the thickness; errors of both (random, 1 sigma, with the correlation of noise
        between pixels); ``agglomerate``, ``place`` and ``depth`` [nm] below the surface of the
        agglomerate; ``at_border``, ``used`` and ``reason``, why not.

    Raises
    ------
    InputError
        A variable is missing, units are wrong, or an option is out of range.
    """
    _check_table(maps, fraction, geometry)
    for name, length in (
        ("resolution_nm", resolution_nm),
        ("section_nm", section_nm),
        ("min_radius_nm", min_radius_nm),
        ("exterior_nm", exterior_nm),
        ("max_overlap", max_overlap),
    ):
        _check_length(name, length)
    pixel = pixel_size(maps["thickness"])
    resolution = 2.0 * max(pixel) if resolution_nm is None else resolution_nm
    data = _collect(maps, fraction, resolution)
    section = section_nm if geometry == "lamella" else None
    rows = [_row(data, label, crop, section) for label, crop in _crops(data.labels, 4)]
    groups = np.zeros_like(data.labels)
    if "agglomerate_label" in maps:
        groups = _check_label_map(maps["agglomerate_label"], maps["thickness"])
    _places(data, groups, rows, 2.0 * max(pixel), exterior_nm)
    least = 2.0 * resolution if min_radius_nm is None else min_radius_nm
    limits = _Limits(max_overlap, least, allow_border)
    for row in rows:
        row["reason"] = _reason(row, limits)
        row["used"] = row["reason"] == ""
    if rows and not any(row["used"] for row in rows):
        LOG.warning("particles: none of the %d found can be used: %s", len(rows), rows[0]["reason"])
    return _as_dataset(rows, fraction, maps["thickness"])


def _check_table(maps: xr.Dataset, fraction: str, geometry: str) -> None:
    """Refuse maps that lack something, and unknown geometries."""
    if geometry not in ("dispersed", "lamella"):
        raise InputError(
            f"'{geometry}' is not known", where="geometry", remedy="Use dispersed or lamella."
        )
    for name in (
        f"{fraction}_fraction",
        f"{fraction}_fraction_errors",
        "thickness",
        "thickness_errors",
        "particle_label",
    ):
        if name not in maps:
            raise InputError(
                f"the variable '{name}' is missing",
                where="maps",
                remedy="Unmix the stack and find the particles first.",
            )
    check_map(maps["thickness"], "nm", name="thickness")


#: Column, its type, units and description; `fraction` becomes ``<fraction>_fraction``.
_COLUMNS: tuple[tuple[str, type, str, str], ...] = (
    ("area", float, "nm2", "area inside the outline"),
    ("radius", float, "nm", "radius of the circle of the same area"),
    ("y", float, "nm", "centre"),
    ("x", float, "nm", "centre"),
    ("thickness", float, "nm", "mean thickness"),
    ("thickness_errors", float, "nm", "standard error of the mean thickness"),
    ("thickness_max", float, "nm", "largest thickness within a resolution element"),
    ("overlap", float, "1", "largest thickness over what the outline allows"),
    ("fraction", float, "1", "fraction of the component, weighted by thickness"),
    ("fraction_errors", float, "1", "standard error of the fraction"),
    ("agglomerate", np.int32, "1", "agglomerate, 0 = none"),
    ("place", object, "", "outside of agglomerates, or exterior or interior of one"),
    ("depth", float, "nm", "depth of the centre below the surface of the agglomerate"),
    ("at_border", bool, "", "cut by the border of the map"),
    ("used", bool, "", "taken for models and statistics"),
    ("reason", object, "", "why it is not used"),
)


def _as_dataset(rows: list[dict[str, Any]], fraction: str, like: xr.DataArray) -> xr.Dataset:
    """Rows as a Dataset, with centres in the coordinates of the map."""
    centres = np.array([[row["y"], row["x"]] for row in rows]).reshape(-1, 2)
    for row, (y, x) in zip(rows, _to_nm(centres, like), strict=True):
        row["y"], row["x"] = y, x
    table = xr.Dataset(
        coords={"particle": np.array([row["particle"] for row in rows], np.int32)},
        attrs={"fraction": fraction},
    )
    for column, kind, units, text in _COLUMNS:
        values: NDArray[Any] = np.empty(len(rows), dtype=kind)
        values[:] = [row[column] for row in rows]
        attrs = {"long_name": text} | ({"units": units} if units else {})
        name = column.replace("fraction", f"{fraction}_fraction")
        table[name] = ("particle", values, attrs)
    return table
