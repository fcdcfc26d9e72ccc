"""Principal components of a stack."""

from __future__ import annotations

import numpy as np
import xarray as xr

from spectromap.explore._pixels import Pixels, Region
from spectromap.explore._whitened import Whitened, eigen
from spectromap.schema import InputError


def principal_components(
    absorption: xr.Dataset, n_components: int = 5, *, mask: Region | None = None
) -> xr.Dataset:
    """Principal components of the optical density, centred and whitened by the photon noise.

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it, in memory or lazy.
    n_components : int
        How many components get a map.
    mask : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1), optional
        Pixels to use; default all.

    Returns
    -------
    Dataset
        ``eigenvalues`` (rank): variance along each component over that of the noise, which alone
        would give 1; ``significant`` (rank); ``mean`` and ``noise`` (energy), the mean optical
        density as measured and the standard deviation of a pixel's noise; ``loadings``
        (component, energy) in optical density; ``scores`` (component, y, x) in standard deviations
        of the noise. ``mean + sum(scores * loadings)`` is the optical density of a pixel.
        Attributes ``significant_count``, ``noise_edge`` and ``noise_level`` (measured over stated
        noise), ``pixel_count``. The largest entry of every loading is positive.

    Raises
    ------
    InputError
        Not an absorption data set, a mask of another shape, no usable frame or pixel, or more
        components than energies.

    Notes
    -----
    Each energy is divided by the root mean square of its photon noise, from
    ``var(OD) = variance_factor (T + dark) / (photons T^2)``. The error of I0 is common to all
    pixels and falls out with the mean. A component is significant above the edge of the
    Marchenko-Pastur law for the effective number of pixels (thin pixels are less noisy than thick
    ones; interpolated ones are not independent), relative to the median eigenvalue, with a
    margin of 3 % for the noise model. Drift that was not removed, changes of focus and the blur of
    intensities instead of densities are not noise, and rightly come out as components.

    Pixels with a transmission of zero or below in any frame are left out; where counts are so few
    that many drop out, bin the stack first.

    References
    ----------
    M. R. Keenan, P. G. Kotula, Surf. Interface Anal. 36, 203 (2004), for the weighting.
    """
    pixels = Pixels.of(absorption, mask)
    size = pixels.used.size
    if not 1 <= n_components <= size:
        raise InputError(f"must be between 1 and {size}, the energies", where="n_components")
    whitened = Whitened.of(pixels)
    eigenvalues, axes = eigen(whitened.covariance)
    level, edge = whitened.noise_level_and_edge(eigenvalues)
    axes = axes[:, :n_components]
    loadings = axes * whitened.noise[:, None]
    sign = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(n_components)])
    axes, loadings = axes * sign, loadings * sign
    scores = whitened.project(axes, whitened.mean)

    units = {"units": "1"}
    variables = {
        "eigenvalues": ("rank", eigenvalues, units),
        "significant": ("rank", eigenvalues > edge),
        "mean": ("energy", pixels.along_energy(whitened.mean), units),
        "noise": ("energy", pixels.along_energy(whitened.noise), units),
        "loadings": (
            ("component", "energy"),
            pixels.along_energy(loadings.T),
            units | {"long_name": "optical density per score"},
        ),
        "scores": (
            ("component", "y", "x"),
            scores.reshape(n_components, *pixels.shape),
            units | {"long_name": "score in standard deviations of the noise"},
        ),
    }
    attrs = {
        "significant_count": int((eigenvalues > edge).sum()),
        "noise_edge": edge,
        "noise_level": level,
        "pixel_count": whitened.count,
    }
    return xr.Dataset(variables, pixels.coords(component=n_components, rank=size), attrs)
