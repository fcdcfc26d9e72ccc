"""Whether a field can decide between diffusion and core-shell at all, whatever the fit.

Every particle is taken as the sphere that it nearly is, in its section if there is one, with the
true parameters and without noise. The profile of the other model that comes closest to it, with
free fractions and depth, misses it by a chi2: twice the log of the noise-free likelihood ratio.
Errors are those of photon noise in the measured profile. Nothing of the fit is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from _radial_fields import Stored
from scipy import ndimage

from spectromap.synthetic import crank_sphere

Array = np.ndarray[Any, np.dtype[np.float64]]

#: Concentric shells of a sphere, cells to its radius, and layers across it.
SHELLS, CELLS, LAYERS = 150, 40, 60
#: Depths of the other model that are tried, in radii.
DEPTHS: Array = np.logspace(np.log10(0.02), np.log10(0.98), 60)
FWHM_PER_SIGMA = 2.3548


def _shell_shares(radius: float, slab: tuple[float, float], sigma: float, rho: Array) -> Array:
    """Share of each shell in what is seen at distances from the axis, shape (rho, shell).

    The limit of small optical density: amounts are blurred, and divided by the blurred thickness.
    """
    cell = radius / CELLS
    place = (np.arange(CELLS + int(np.ceil(4 * sigma / cell))) + 0.5) * cell
    low, high = max(slab[0], -radius), min(slab[1], radius)
    z = low + (np.arange(LAYERS) + 0.5) * (high - low) / LAYERS
    r = np.sqrt(place[:, None, None] ** 2 + place[None, :, None] ** 2 + z**2)
    shell = np.minimum((r / radius * SHELLS).astype(int), SHELLS)
    column = np.arange(place.size**2).reshape(place.size, -1, 1)
    counts = np.bincount(
        (column * (SHELLS + 1) + shell).ravel(), minlength=column.size * (SHELLS + 1)
    )
    amounts = counts.reshape(place.size, place.size, -1)[..., :SHELLS].astype(float)
    width = sigma / cell
    seen = ndimage.gaussian_filter(amounts, (width, width, 0), mode="reflect")[0]
    shares = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1e-9)
    return np.stack([np.interp(rho, place, share) for share in shares.T], axis=1)


def _progress(model: str, radius: float, depths: Array) -> Array:
    """Progress from the initial to the surface fraction in each shell, shape (shell, depth)."""
    r = (np.arange(SHELLS) + 0.5) / SHELLS * radius
    if model == "core-shell":
        width = radius / SHELLS
        return np.clip((r[:, None] - radius + depths) / width + 0.5, 0, 1)
    return np.stack([crank_sphere(r, radius, float(d) ** 2) for d in depths], axis=1)


def _misfit(shapes: Array, curve: Array, errors: Array) -> float:
    """Lowest chi2 of any of the shapes (bin, depth) with free fractions against a curve."""
    lowest = np.inf
    for shape in shapes.T:
        design = np.stack([1 - shape, shape], axis=1) / errors[:, None]
        target = curve / errors
        solution = np.linalg.lstsq(design, target, rcond=None)[0]
        lowest = min(lowest, float(np.sum((target - design @ solution) ** 2)))
    return lowest


def likelihood_ratio(kept: Stored, profiles: xr.Dataset, found: dict[int, int]) -> float:
    """Twice the log of the noise-free likelihood ratio of the true to the other model.

    Parameters
    ----------
    kept : Stored
        The field.
    profiles : Dataset, dims (particle, distance)
        Measured profiles; only their distances and errors are used.
    found : dict
        Found label of every true label.

    Returns
    -------
    float
        Sum over the particles; NaN where nothing is to be decided.
    """
    models = ("diffusion", "core-shell")
    true = kept.truth.attrs["verdict"]
    if true not in models:
        return np.nan
    other = models[1 - models.index(true)]
    name = f"{kept.maps.attrs['fraction']}_fraction_errors"
    total = 0.0
    for label, number in found.items():
        errors = profiles[name].sel(particle=number).values.astype(float)
        good = np.isfinite(errors) & (errors > 0)
        if good.sum() > 3:
            truth = kept.truth.sel(particle=label)
            distance = profiles["distance"].values[good]
            total += _particle_ratio(kept, truth, distance, errors[good], (true, other))
    return total


def _particle_ratio(
    kept: Stored, truth: xr.Dataset, distance: Array, errors: Array, models: tuple[str, str]
) -> float:
    """What one particle adds to the likelihood ratio."""
    radius, sample = float(truth["body_radius"]), kept.field.sample
    slab = (-np.inf, np.inf)
    if sample.geometry == "lamella":
        middle = float(truth["cut_height"])
        slab = (middle - sample.section_nm / 2, middle + sample.section_nm / 2)
    rho = np.maximum(float(truth["radius"]) - distance, 0.0)
    sigma = kept.field.instrument.resolution_nm / FWHM_PER_SIGMA
    shares = _shell_shares(radius, slab, sigma, rho)
    depth = sample.shell_nm if models[0] == "core-shell" else np.sqrt(float(truth["dt_nm2"]))
    shape = shares @ _progress(models[0], radius, np.array([depth]))[:, 0]
    initial, surface = float(truth["initial_fraction"]), float(truth["surface_fraction"])
    curve = initial + (surface - initial) * shape
    return _misfit(shares @ _progress(models[1], radius, DEPTHS * radius), curve, errors)
