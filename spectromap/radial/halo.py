"""Light in the wings of the point spread function, seen as a shadow around the particles.

Zone plates put a part of the light far beyond their resolution: side lobes, other orders, dirt. A
Gaussian of the stated resolution has nothing there, so that what seems to absorb in empty places
between the particles shows the wings, how strong they are and how far they reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._numerics import fwhm_to_sigma, vertex
from spectromap.schema import LOG

__all__ = ["Halo", "estimate_halo"]

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: Widths that are tried, in resolutions.
_WIDTHS: Array = np.geomspace(2.5, 12.0, 9)
#: Places count as empty from this many resolutions off the particles on.
_EMPTY = 1.6
_FEWEST_PIXELS = 300
#: The field is cut into so many parts a side for the error of the share.
_TILES = 4
#: Wings are believed from this share, and from so many standard errors, on.
_LEAST_SHARE, _LEAST_SIGNIFICANCE = 0.02, 4.0
#: Above this share it is not the optics.
_LARGEST_SHARE = 0.4


@dataclass(frozen=True)
class Halo:
    """A second, wide Gaussian of the point spread function.

    Attributes
    ----------
    share : float
        Light in the wings over what the particles are seen to absorb, which is nearly all in the
        core; 0 if there is none to be seen.
    fwhm_nm : float
        Full width at half maximum [nm].
    error : float
        Standard error of the share, the width being free.
    """

    share: float = 0.0
    fwhm_nm: float = 1.0
    error: float = 0.0


def estimate_halo(
    thickness: Array,
    errors: Array,
    shadow: Array,
    empty_distance: Array,
    pixel: tuple[float, float],
    resolution_nm: float,
) -> Halo:
    """Fit the wings of the point spread function to what empty places seem to hold.

    Parameters
    ----------
    thickness, errors : ndarray, shape (ny, nx)
        Measured thickness and its standard error [nm]; NaN where nothing was measured.
    shadow : ndarray, shape (ny, nx)
        Thickness [nm] that the absorption of the particles looks like once it is spread thinly.
    empty_distance : ndarray, shape (ny, nx)
        Distance from the nearest particle [nm].
    pixel : (dy, dx)
        Edges of a pixel [nm].
    resolution_nm : float
        Full width at half maximum of the core [nm].

    Returns
    -------
    Halo
        Without share where empty places are too few or show nothing.
    """
    use = np.isfinite(thickness) & np.isfinite(errors) & (errors > 0)
    use &= empty_distance > max(_EMPTY * resolution_nm, 2.0 * max(pixel))
    if np.count_nonzero(use) < _FEWEST_PIXELS:
        return Halo()
    weight = 1.0 / errors[use]
    seen, tile = thickness[use] * weight, _tiles(use)
    every = []
    for width in _WIDTHS:
        sigma = fwhm_to_sigma(width * resolution_nm)
        spread = ndimage.gaussian_filter(
            shadow, (sigma / pixel[0], sigma / pixel[1]), mode="constant"
        )
        every.append(_moments(weight, spread[use] * weight, seen, tile))
    parts = np.array(every)
    total = parts.sum(axis=-1)
    shares, gains = _solved(total)
    best = int(np.argmax(gains))
    without = [total - part for part in np.moveaxis(parts, -1, 0)]
    certain = _jackknife(np.array([_solved(sums)[0][best] for sums in without]))
    if shares[best] < max(_LEAST_SHARE, _LEAST_SIGNIFICANCE * certain):
        return Halo()
    if shares[best] > _LARGEST_SHARE:
        return Halo()
    width, share = _likeliest(shares, gains)
    # The narrower the wings, the larger their share: the error is that with the width free.
    error = _jackknife(np.array([_likeliest(*_solved(sums))[1] for sums in without]))
    LOG.warning(
        "%.0f %% of the light lies in wings of the point spread function, %.3g nm wide: the radial"
        " models take that into account",
        100 * share / (1.0 + share),
        width * resolution_nm,
    )
    return Halo(share, width * resolution_nm, error)


def _tiles(use: Mask) -> NDArray[np.intp]:
    """Part of the field that every place in use lies in, numbered from 0 without gaps."""
    rows, cols = np.nonzero(use)
    tile = rows * _TILES // use.shape[0] * _TILES + cols * _TILES // use.shape[1]
    return np.unique(tile, return_inverse=True)[1]


def _moments(level: Array, spread: Array, seen: Array, tile: NDArray[np.intp]) -> Array:
    """Sums of products that a background and a share follow from, (5, tile)."""
    products = level * level, level * spread, spread * spread, level * seen, spread * seen
    return np.array([np.bincount(tile, values) for values in products])


def _solved(moments: Array) -> tuple[Array, Array]:
    """Share at every width, and by how much it and a background lower chi2; (width, 5) to each."""
    ll, ls, ss, ly, sy = moments.T
    scale = np.maximum(ll * ss - ls**2, 1e-12 * ll * ss + 1e-300)
    level, share = (ss * ly - ls * sy) / scale, (ll * sy - ls * ly) / scale
    return share, level * ly + share * sy


def _likeliest(shares: Array, gains: Array) -> tuple[float, float]:
    """Width in resolutions, between those that were tried, and the share there."""
    logs = np.log(_WIDTHS)
    width = vertex(logs, -gains)
    return float(np.exp(width)), float(np.interp(width, logs, shares))


def _jackknife(shares: Array) -> float:
    """Standard error from values that were found without one part of the field each."""
    if shares.size < 3:
        return np.inf
    return float(np.sqrt((shares.size - 1) / shares.size * np.sum((shares - shares.mean()) ** 2)))
