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
        Of the light; 0 if there is none to be seen.
    fwhm_nm : float
        Full width at half maximum [nm].
    error : float
        Standard error of the share.
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
    seen = thickness[use] * weight
    fits = []
    for width in _WIDTHS:
        sigma = fwhm_to_sigma(width * resolution_nm)
        spread = ndimage.gaussian_filter(
            shadow, (sigma / pixel[0], sigma / pixel[1]), mode="constant"
        )
        fits.append(np.column_stack([weight, spread[use] * weight]))
    found = [np.linalg.lstsq(columns, seen, rcond=None)[0] for columns in fits]
    chi2 = np.array([np.sum((seen - c @ x) ** 2) for c, x in zip(fits, found, strict=True)])
    best = int(np.argmin(chi2))
    share, error = float(found[best][1]), _jackknife(fits[best], seen, use)
    if share < max(_LEAST_SHARE, _LEAST_SIGNIFICANCE * error) or share > _LARGEST_SHARE:
        return Halo()
    width = float(np.exp(vertex(np.log(_WIDTHS), chi2)))
    share = float(np.interp(np.log(width), np.log(_WIDTHS), [x[1] for x in found]))
    LOG.warning(
        "%.0f %% of the light lies in wings of the point spread function, %.3g nm wide: the radial"
        " models take that into account",
        100 * share,
        width * resolution_nm,
    )
    return Halo(share, width * resolution_nm, error)


def _jackknife(columns: Array, seen: Array, use: Mask) -> float:
    """Standard error of the share from leaving out one part of the field after the other."""
    rows, cols = np.nonzero(use)
    tile = rows * _TILES // use.shape[0] * _TILES + cols * _TILES // use.shape[1]
    shares = np.array(
        [
            np.linalg.lstsq(columns[tile != t], seen[tile != t], rcond=None)[0][1]
            for t in np.unique(tile)
        ]
    )
    if shares.size < 3:
        return np.inf
    return float(np.sqrt((shares.size - 1) / shares.size * np.sum((shares - shares.mean()) ** 2)))
