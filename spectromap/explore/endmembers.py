"""Spectra of the purest pixels of a stack."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import ndimage

from spectromap._compiled import F32
from spectromap.explore._pixels import Array, Float32, Index, Mask, Pixels, Region
from spectromap.explore._whitened import Whitened, eigen
from spectromap.explore.regions import add_spectra, region_spectrum
from spectromap.schema import LOG, InputError

#: A spectrum is used from this signal, in standard deviations of the noise.
SIGNAL = 10.0
#: ... and from this share of the median signal.
THICKNESS = 0.25
#: Corners are sought among so many pixels.
SEARCH = 100_000


def suggest_endmembers(
    absorption: xr.Dataset,
    n_endmembers: int,
    *,
    pixel_share: float = 0.02,
    mask: Region | None = None,
) -> xr.Dataset:
    """Spectra of the purest pixels of a stack, for when there are no references.

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it, in memory or lazy.
    n_endmembers : int
        How many, at least 2.
    pixel_share : float
        Share of the absorbing pixels that each spectrum is averaged over, at least 20 pixels.
    mask : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1), optional
        Pixels to use; default all.

    Returns
    -------
    Dataset
        ``optical_density`` (endmember, energy), the mean spectrum of the chosen pixels, with
        ``optical_density_errors`` and ``optical_density_systematic`` as in `region_spectrum`;
        ``source`` (y, x) int32, the endmember that a pixel was taken for, 0 = none;
        ``pixel_count`` (endmember); ``recession`` (endmember): how far the next purest pixels
        (twice as many) lie back towards the rest, as a share of the distance between the
        endmember and the others, with ``recession_errors``; ``plateau`` (endmember): True where
        they do not lie back, so that many pixels agree on this spectrum.

    Raises
    ------
    InputError
        As `principal_components`; fewer than 2 endmembers, or too few pixels that absorb.

    Notes
    -----
    Spectra are reduced to as many components as there are endmembers (uncentred, whitened by the
    noise) and divided by their length along the mean spectrum, which removes thickness. Mixtures
    then fill a simplex whose corners are sought by successive projection and once refined against
    the facet opposite. A pixel is chosen by the mean of its eight neighbours and not by itself, so
    that the chosen ones are not those with the most favourable noise.

    Limits. The corners are the purest spectra that were found, pure or not: where species mix in
    every pixel, the true spectra lie beyond them, fractions come out too wide and no data set can
    tell by how much. ``plateau`` is the hint there is: False says that pixels get steadily purer up
    to the very last, as they do in a gradient that ends nowhere. True says that a region is
    uniform, not that it is pure. Pixels with less than a quarter of the median signal are not
    used, because blur bends their spectra. A constant background or a wrong I0 counts as one more
    species.

    References
    ----------
    M. C. U. Araujo et al., Chemom. Intell. Lab. Syst. 57, 65 (2001), successive projection;
    M. E. Winter, Proc. SPIE 3753, 266 (1999), for corners as the simplex of largest volume.
    """
    pixels = Pixels.of(absorption, mask)
    if not 2 <= n_endmembers <= pixels.used.size:
        raise InputError(f"must be between 2 and {pixels.used.size}", where="n_endmembers")
    scores, middle = _scores(pixels, n_endmembers)
    around = _neighbour_sum(scores)
    thickness = np.tensordot(middle, scores, 1)
    usable = (np.tensordot(middle, around, 1) > 0) & (thickness > SIGNAL)
    if usable.any():
        usable &= thickness >= THICKNESS * np.median(thickness[usable])
    flat = np.flatnonzero(usable)
    count = max(20, round(pixel_share * flat.size))
    if flat.size < 3 * count * n_endmembers:
        raise InputError(
            f"{flat.size} pixels absorb enough, {3 * count * n_endmembers} are needed",
            where="suggest_endmembers",
            remedy="Widen the mask, or ask for fewer endmembers.",
        )
    own, around = (m.reshape(n_endmembers, -1).take(flat, axis=1) for m in (scores, around))
    own /= middle @ own
    around /= middle @ around
    chosen = corners(around, n_endmembers, count)

    source = np.zeros(pixels.shape, np.int32)
    for k, (inner, _) in enumerate(chosen):
        source.flat[flat[inner]] = k + 1
    spectra = [region_spectrum(absorption, source == k + 1) for k in range(n_endmembers)]
    recession, errors, plateau = _recession(own, chosen)
    result = xr.Dataset(coords=pixels.coords(endmember=n_endmembers))
    names = ("optical_density", "optical_density_errors")
    density, own_errors = (np.stack([s[name].values for s in spectra]) for name in names)
    add_spectra(result, ("endmember",), density, own_errors, pixels.i0_errors)
    result["pixel_count"] = ("endmember", [s.attrs["pixel_count"] for s in spectra])
    result["recession"] = ("endmember", recession, {"units": "1"})
    result["recession_errors"] = ("endmember", errors, {"units": "1"})
    result["plateau"] = ("endmember", plateau)
    result["source"] = (("y", "x"), source, {"units": "1"})
    return result


def _scores(pixels: Pixels, count: int) -> tuple[Float32, Float32]:
    """Scores (count, y, x) on uncentred components, and the direction of the mean spectrum."""
    whitened = Whitened.of(pixels)
    mean = whitened.mean / whitened.noise
    axes = eigen(whitened.covariance + np.outer(mean, mean))[1][:, :count]
    scores = whitened.project(axes, np.zeros_like(mean))
    middle = axes.T @ mean
    return scores.reshape(count, *pixels.shape), (middle / np.linalg.norm(middle)).astype(F32)


def _neighbour_sum(maps: Float32) -> Float32:
    """Sum of the eight neighbours of each pixel, without itself; NaN with fewer than five."""
    known = np.isfinite(maps[0])

    def around(values: Float32) -> Float32:
        return np.asarray(F32(9.0) * ndimage.uniform_filter(values, 3, mode="constant") - values)

    few = around(known.astype(F32)) < 4.5
    result = np.stack([around(np.where(known, values, F32(0.0))) for values in maps])
    result[:, few] = np.nan
    return result


def corners(points: Float32, count: int, size: int) -> list[tuple[Index, Index]]:
    """For each corner of a cloud (axis, pixel): the `size` pixels at it, and twice as many next."""
    # An odd step does not stay in the same columns of the field.
    step = 1 + 2 * (points.shape[1] // SEARCH)
    few = np.ascontiguousarray(points[:, ::step])
    found = np.empty((count, len(points)), F32)
    for refined in (False, True):  # one after the other, then each against all the others
        for k in range(count):
            others = np.delete(found, k, axis=0) if refined else found[:k]
            outermost = _highest(_away(others, few) @ few, max(1, size // step))
            found[k] = few[:, outermost].mean(axis=1)
    chosen = []
    for k in range(count):
        away = _away(np.delete(found, k, axis=0), found[k][:, None])
        order = _highest(away @ points, 3 * size)
        chosen.append((order[:size], order[size:]))
    return chosen


def _away(others: Float32, points: Float32) -> Float32:
    """Direction from the plane through some corners to the points farthest from it.

    `others` (corner, axis), `points` (axis, pixel); its length is the mean distance of those.
    """
    origin = others[0] if len(others) else points.mean(axis=1)
    rest = points - origin[:, None]
    if len(others) > 1:
        basis, _ = np.linalg.qr((others[1:] - origin).T)
        rest -= basis @ (basis.T @ rest)
    farthest = _highest((rest**2).sum(axis=0), max(1, rest.shape[1] // 200))
    return np.asarray(rest[:, farthest].mean(axis=1))


def _highest(values: Float32, count: int) -> Index:
    """Indices of the `count` largest values, in falling order."""
    first = max(0, values.size - count)
    chosen = np.argpartition(values, first)[first:]
    return chosen[np.argsort(-values[chosen], kind="stable")]


def _recession(points: Float32, chosen: list[tuple[Index, Index]]) -> tuple[Array, Array, Mask]:
    """How far the next pixels lie back from each corner, the error, and whether they do not."""
    at = np.array([points[:, inner].mean(axis=1) for inner, _ in chosen])
    recession, errors = np.empty(len(chosen)), np.empty(len(chosen))
    for k, pair in enumerate(chosen):
        away = _away(np.delete(at, k, axis=0), at[k][:, None])
        heights = [away @ points[:, part] / (away @ away) for part in pair]
        recession[k] = heights[0].mean() - heights[1].mean()
        errors[k] = np.sqrt(sum(h.var() / h.size for h in heights))
    plateau = np.abs(recession) < np.maximum(3.0 * errors, 0.01)
    if not plateau.all():
        LOG.warning(
            "endmember %s: the purest pixels do not agree with the next ones, so the pure species"
            " probably lies beyond them", ", ".join(str(k + 1) for k in np.flatnonzero(~plateau))
        )  # fmt: skip
    return recession, errors, plateau
