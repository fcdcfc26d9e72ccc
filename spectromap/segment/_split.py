"""Where one particle ends and the next begins."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from spectromap._numerics import fwhm_to_sigma
from spectromap.segment._field import ATTENUATION_PER_NM, Field, absorbed_share, thickness_of
from spectromap.segment._grid import (
    Array,
    Labels,
    Mask,
    Pair,
    crops,
    edt,
    shared_borders,
    sigma_px,
    skimage,
)

#: Two bumps are two particles where the saddle between them, in distance from the edge times
#: thickness, is lower than this share of the lower bump. That product has one maximum in any
#: convex body (both factors are concave in it), so the size of the particles need not be known.
SADDLE_SHARE = 0.87
#: Less than this share of what the particles absorb is taken for background.
LOW_SHARE = 0.1
#: Cut of the provisional outline, as share of what a particle absorbs, until its rim is fitted.
PROVISIONAL_SHARE = 0.4
#: The thickness bends upwards only between two bodies: by this many standard deviations of the
#: noise, and by this share of the thickness over the width of the optics.
CREASE_LEVELS = 5.0
CREASE_SHARE = 0.1
#: First order of a deconvolution that deepens narrow gaps: the share of the blur taken off.
SHARPENING = 0.5


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

    first, second, saddle = shared_borders(regions, heights, np.minimum)
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
    markers = ndimage.label(skimage("morphology").local_maxima(heights) & mask, np.ones((3, 3)))[0]
    regions = np.asarray(skimage("segmentation").watershed(-heights, markers, mask=mask))
    return _merged(regions, heights, least_cells) if regions.max() > 1 else regions


def heights_of(values: Array, regions: Labels, percentile: float = 85) -> Array:
    """What each region absorbs: the 85th percentile of its cells, indexed by label."""
    heights = np.zeros(int(regions.max()) + 1)
    for label, crop in crops(regions):
        heights[label] = np.percentile(values[crop][regions[crop] == label], percentile)
    return heights


def _creases(fine: Array, field: Field, pixel: Pair) -> Mask:
    """Where the thickness bends upwards, which it does nowhere within a convex body."""
    scale = max(fwhm_to_sigma(field.resolution), 0.7 * max(field.pixel))
    sigma = sigma_px(scale, pixel)
    thick = thickness_of(fine)
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
    return np.asarray(skimage("segmentation").watershed(-fine, basins, mask=mask))


def split_basins(fine: Array, field: Field, pixel: Pair, low: float, split: bool) -> Labels:
    """Basins on the fine grid: one particle each, with some of the gap around it."""
    optics = sigma_px(fwhm_to_sigma(field.resolution), pixel)
    curved = sum(
        s * s * ndimage.gaussian_filter(fine, sigma_px(0.5 * min(pixel), pixel), order=order)
        for s, order in zip(optics, ((2, 0), (0, 2)), strict=True)
    )
    sharp = thickness_of(fine - 0.5 * SHARPENING * curved)
    least = np.pi * field.resolution**2 / (pixel[0] * pixel[1])
    soft = sigma_px(0.5 * float(np.sqrt(field.pixel[0] * field.pixel[1])), pixel)
    wide = fine > low
    mask = wide
    basins = np.zeros(fine.shape, int)
    flat = sharp
    crease = _creases(fine, field, pixel)
    for _ in range(2):  # the first cut is made without knowing how high each particle is
        depth = ndimage.gaussian_filter(edt(mask & ~crease, pixel), soft)
        heights = ndimage.gaussian_filter(np.where(mask, depth * np.maximum(flat, 0), 0), soft)
        basins = _basins(heights, mask, least, split)
        mask = (basins > 0) & (
            absorbed_share(sharp) > PROVISIONAL_SHARE * heights_of(fine, basins)[basins]
        )
        flat = np.minimum(sharp, heights_of(sharp, basins, 50)[basins])
    return _spread(basins, fine, wide)
