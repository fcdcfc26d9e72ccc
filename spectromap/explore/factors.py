"""Non-negative factors of a stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from spectromap._compiled import F32
from spectromap.explore._pixels import Float32, Pixels, Region
from spectromap.explore._whitened import eigen
from spectromap.explore.endmembers import corners
from spectromap.schema import LOG, InputError

SAMPLE = 4096
BLOCK = 65_536
ROUND = 20
#: The search for factors ends when a round makes the residual smaller by less than this share.
GAIN = 1e-4


def nonnegative_factors(
    absorption: xr.Dataset,
    n_factors: int,
    *,
    max_iterations: int = 2000,
    seed: int = 0,
    mask: Region | None = None,
) -> xr.Dataset:
    """Spectra and maps, none negative, whose products make up the optical density (NMF).

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it, in memory or lazy.
    n_factors : int
        Number of factors.
    max_iterations : int
        After these the search ends, with a warning.
    seed : int
        The same seed gives the same factors.
    mask : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1), optional
        Pixels to use; default all.

    Returns
    -------
    Dataset
        ``spectra`` (factor, energy) with mean 1 over the energies, and ``amount`` (factor, y, x),
        so that an amount is the mean optical density that the factor contributes and the sum of
        ``amount * spectra`` is the optical density of the pixel. Most abundant first. Attribute
        ``residual``: root mean square residual over the noise, of the pixels fitted.

    Raises
    ------
    InputError
        As `principal_components`; fewer than one factor or more than energies.

    Notes
    -----
    Optical density is clipped at zero, and rows and columns are divided by the root of the noise
    variance that the best product of a spectrum and a map describes (Keenan and Kotula), so that
    least squares comes close to the likelihood of the photons while nothing turns negative. The
    spectra are found on at most 4096 pixels that absorb, the maps for all of them.

    Factors are unique only where each species has pixels without the others and energies at which
    the others do not absorb, and the spectra of one edge never have those. Of all that fit equally
    well, the search finds those nearest to its start, which is the purest spectra of the stack
    (corners by successive projection, as in `suggest_endmembers`). They are to look at; for
    amounts, fit references.

    References
    ----------
    M. R. Keenan, P. G. Kotula, Surf. Interface Anal. 36, 203 (2004); A. Cichocki, A.-H. Phan,
    IEICE Trans. Fundam. E92-A, 708 (2009), for the solver.
    """
    pixels = Pixels.of(absorption, mask)
    if not 1 <= n_factors <= pixels.used.size:
        raise InputError(f"must be between 1 and {pixels.used.size}", where="n_factors")
    sample = pixels.densities(pixels.sample())
    row_noise = np.sqrt(sample[1].mean(axis=1))
    weighted, _ = _weighted(_absorbing(sample), row_noise)
    model, residual = _fit_factors(weighted, n_factors, max_iterations, seed)
    spectra = model.components_ * row_noise
    scale = spectra.mean(axis=1)
    scale = np.where(scale > 0, scale, 1.0)
    amount = np.full((n_factors, pixels.mask.size), np.nan, np.float32)
    for slab, start, where in pixels.blocks(BLOCK):
        values = slab[pixels.used, start : start + where.stop - where.start]
        good = np.flatnonzero((values > 0).all(axis=0) & pixels.mask[where])
        if good.size:
            weighted, column = _weighted(pixels.densities(values.take(good, axis=1)), row_noise)
            found = model.transform(weighted) * column[:, None] * scale
            amount[:, where.start + good] = found.T
    order = np.argsort(-np.nansum(amount, axis=1, dtype=float), kind="stable")
    result = xr.Dataset(coords=pixels.coords(factor=n_factors))
    result["spectra"] = (
        ("factor", "energy"),
        pixels.along_energy((spectra / scale[:, None])[order]),
        {"units": "1", "long_name": "spectrum over its mean"},
    )
    result["amount"] = (
        ("factor", "y", "x"),
        amount[order].reshape(n_factors, *pixels.shape),
        {"units": "1", "long_name": "mean optical density of the factor"},
    )
    result.attrs = {"residual": residual}
    return result


def _absorbing(sample: Float32) -> Float32:
    """Pixels of a sample that absorb: the clipped noise of the open area is no spectrum."""
    density, variance = sample.mean(axis=1)
    chosen = np.flatnonzero(density > 5.0 * np.sqrt(variance / sample.shape[1]))
    if chosen.size < 2:
        raise InputError("no pixel absorbs", where="absorption", remedy="Check the mask and I0.")
    # The sample is in the order of the rows: every n-th is spread over the field.
    return sample.take(chosen[:: 1 + chosen.size // SAMPLE], axis=2)


def _weighted(values: Float32, row_noise: Float32) -> tuple[Float32, Float32]:
    """Clipped optical density (pixel, energy) over its noise in rank one; noise of the pixels.

    Of optical densities and variances (2, energy, pixel).
    """
    density, variance = values
    column = np.sqrt((variance / row_noise[:, None] ** 2).mean(axis=0))
    weighted = np.maximum(density, F32(0.0)) / row_noise[:, None] / column
    return np.ascontiguousarray(weighted.T), column


def _fit_factors(weighted: Float32, count: int, iterations: int, seed: int) -> tuple[Any, float]:
    """A fitted model of scikit-learn, and its residual in units of noise."""
    from sklearn.decomposition import NMF

    spectra = _pure_rows(weighted, count)
    amounts = np.linalg.lstsq(spectra.T, weighted.T, rcond=None)[0].T
    amounts = np.ascontiguousarray(np.maximum(amounts, 1e-3), np.float32)
    model = NMF(count, init="custom", random_state=seed, max_iter=ROUND, tol=0.0)
    error = np.inf
    # The model's own criterion is relative to its first step, which is small from a good start.
    for _ in range(max(1, iterations // ROUND)):
        before = error
        amounts = model.fit_transform(weighted, W=amounts, H=spectra)
        spectra, error = model.components_, model.reconstruction_err_
        if error > (1.0 - GAIN) * before:
            break
    else:
        LOG.warning("non-negative factors had not settled after %d iterations", iterations)
    model.set_params(tol=1e-4, max_iter=10_000)
    residual = weighted - amounts @ model.components_
    return model, float(np.sqrt(np.mean(residual.astype(float) ** 2)))


def _pure_rows(weighted: Float32, count: int) -> Float32:
    """Mean of the rows at each corner of the cloud that the rows (pixel, energy) make."""
    _, axes = eigen((weighted.T @ weighted).astype(float))
    scores = axes[:, :count].T @ weighted.T
    length = axes[:, :count].T @ weighted.mean(axis=0)
    points = scores / np.maximum(length @ scores / np.linalg.norm(length), 1e-6)
    chosen = corners(points, count, max(1, len(weighted) // 50))
    rows = [weighted[inner].mean(axis=0) for inner, _ in chosen]
    return np.ascontiguousarray(rows, np.float32)
