"""Where a particle ends on the background: a fit of its blurred rim."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, optimize

from spectromap.segment._field import Field, absorbed_share, thickness_of
from spectromap.segment._grid import Array, Labels, Mask, Pair, crops, edt
from spectromap.segment._split import PROVISIONAL_SHARE, heights_of

#: How a rim rises with depth below the edge: between the root of a sphere and the straight line
#: of a wedge, as the mean around faceted and cut particles does.
RIM_EXPONENT = 0.65
#: Fitted rims must lie in this range of the particle's own height to be believed.
RIM_SHARES = (0.08, 0.6)


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
    return np.asarray(absorbed_share(thickness) @ (weights / weights.sum()))


def _rim_profile(
    values: Array, mine: Mask, others: Mask, field: Field, pixel: Pair
) -> tuple[Array, Array, Array]:
    """Distance inside of a provisional outline, mean absorbed share there and number of cells.

    Only the free rim counts: cells whose nearest neighbour is further than the rim itself.
    """
    step = float(np.sqrt(pixel[0] * pixel[1]))
    inwards = edt(mine, pixel)
    signed = np.where(mine, inwards - 0.5 * step, 0.5 * step - edt(~mine, pixel))
    reach = max(3.0 * field.sigma, 0.6 * float(inwards.max()))
    use = (signed > -3.0 * field.sigma) & (signed < reach)
    if others.any():
        use &= edt(~others, pixel) > np.abs(signed) + 2.5 * field.sigma
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
    values: Array, mine: Mask, others: Mask, field: Field, pixel: Pair, height: float
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

    start = np.array([-0.3, usual, np.log(1.3 * float(thickness_of(np.asarray(height))))])
    fit = optimize.least_squares(misfit, start, max_nfev=25)
    edge = np.array([fit.x[0] * field.sigma])
    return float(_rim_curve(edge, fit.x, radius, field.sigma)[0])


def _rim_shares(fine: Array, basins: Labels, field: Field, pixel: Pair) -> tuple[Array, Array]:
    """Height of every particle [nm] and the share of it at which its edge lies."""
    heights = heights_of(fine, basins)
    inside = (basins > 0) & (fine > PROVISIONAL_SHARE * heights[basins])
    shares = np.full(heights.size, np.nan)
    margin = int(np.ceil(4.0 * field.sigma / min(pixel)))
    for label, crop in crops(basins, margin):
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


def edge_levels(fine: Array, basins: Labels, field: Field, pixel: Pair) -> Array:
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
