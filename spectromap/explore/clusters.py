"""Groups of pixels with like spectra."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.explore._pixels import PIXEL_BLOCK, Array, Float32, Index, Pixels, Region
from spectromap.explore._whitened import Whitened, eigen
from spectromap.explore.regions import add_spectra, mean_noise_factor
from spectromap.schema import InputError

Label = NDArray[np.int32]
#: Pixels that the centres are found on.
SAMPLE = 4096


def cluster_spectra(
    absorption: xr.Dataset,
    n_clusters: int | None = None,
    *,
    n_components: int | None = None,
    max_clusters: int = 8,
    seed: int = 0,
    mask: Region | None = None,
) -> xr.Dataset:
    """Group pixels whose spectra are alike: k-means on the significant principal components.

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it, in memory or lazy.
    n_clusters : int, optional
        Default: the number between 2 and `max_clusters` with the largest ratio of the variance
        between clusters to that within (Calinski and Harabasz), a suggestion and no more.
    n_components : int, optional
        Principal components to use; default those that are significant, at most 8.
    max_clusters : int
        Most clusters that are suggested.
    seed : int
        Of the first centres; the same seed gives the same clusters.
    mask : DataArray or ndarray of bool, shape (ny, nx), or (y0, y1, x0, x1), optional
        Pixels to use; default all.

    Returns
    -------
    Dataset
        ``label`` (y, x) int32: 1, 2, ... by rising mean optical density, 0 = left out;
        ``optical_density`` (cluster, energy), the mean spectra, with ``optical_density_errors``
        (photon noise) and ``optical_density_systematic`` (I0, common to all clusters);
        ``pixel_count`` (cluster). Attribute ``n_components``.

    Raises
    ------
    InputError
        As `principal_components`; fewer than 1 or more clusters than pixels.

    Notes
    -----
    Distances are in standard deviations of the noise, so what separates most strongly is, as a
    rule, thickness. The centres are found on at most 4096 pixels drawn from the field, whose own
    scatter moves them by some hundredths of a cluster's width, and every pixel is put to the
    nearest. The mean spectra are means of optical densities, corrected for the bias of the
    logarithm to second order (see `region_spectrum`).

    References
    ----------
    T. Calinski, J. Harabasz, Commun. Stat. 3, 1 (1974).
    """
    pixels = Pixels.of(absorption, mask)
    whitened = Whitened.of(pixels)
    eigenvalues, axes = eigen(whitened.covariance)
    if n_components is None:
        _, edge = whitened.noise_level_and_edge(eigenvalues)
        n_components = int(np.clip((eigenvalues > edge).sum(), 1, 8))
    if not 1 <= n_components <= eigenvalues.size:
        raise InputError(f"must be between 1 and {eigenvalues.size}", where="n_components")
    most = whitened.count if n_clusters is None else n_clusters
    if not 1 <= most <= whitened.count or max_clusters < 2:
        raise InputError(
            f"between 1 and {whitened.count} clusters are possible", where="n_clusters"
        )
    scores = whitened.project(axes[:, :n_components], whitened.mean)
    points = _sample_scores(scores, seed)
    count = n_clusters or _suggested_count(points, min(max_clusters, most), seed)
    label = _nearest(scores, _k_means(points, count, seed))
    number = np.bincount(label, minlength=count + 1)[1:]
    density, errors = _mean_spectra(pixels, label, number)

    order = np.argsort(density.mean(axis=1))  # an empty cluster is NaN and comes last
    order = order[: np.count_nonzero(number)]
    rank = np.zeros(count + 1, np.int32)
    rank[order + 1] = np.arange(1, order.size + 1)
    result = xr.Dataset(coords=pixels.coords(cluster=order.size))
    result["label"] = (("y", "x"), rank[label].reshape(pixels.shape), {"units": "1"})
    result["pixel_count"] = ("cluster", number[order])
    add_spectra(
        result,
        ("cluster",),
        pixels.along_energy(density[order]),
        pixels.along_energy(errors[order]),
        pixels.i0_errors,
    )
    result.attrs = {"n_components": n_components}
    return result


def _sample_scores(scores: Float32, seed: int) -> Float32:
    """Scores (pixel, component) of a random sample of the pixels that have any."""
    finite = np.flatnonzero(np.isfinite(scores[0]))
    if finite.size > SAMPLE:
        rng = np.random.default_rng(seed)
        finite = finite[rng.integers(0, finite.size, SAMPLE)]
    return np.ascontiguousarray(scores[:, finite].T)


def _suggested_count(points: Float32, most: int, seed: int) -> int:
    """Number of clusters with the largest ratio of variance between to variance within them."""
    from sklearn.metrics import calinski_harabasz_score

    best, best_value = 1, 0.0
    for count in range(2, min(most, len(points) - 1) + 1):
        belongs = _nearest(points.T, _k_means(points, count, seed))
        if np.unique(belongs).size < 2:
            continue
        value = float(calinski_harabasz_score(points, belongs))
        if value > best_value:
            best, best_value = count, value
    return best


def _k_means(points: Float32, count: int, seed: int) -> Float32:
    """Centres of the best of three runs."""
    from sklearn.cluster import KMeans

    model = KMeans(count, n_init=3, random_state=seed, tol=1e-3)
    return np.asarray(model.fit(points).cluster_centers_, dtype=np.float32)


def _nearest(scores: Float32, centres: Float32) -> Label:
    """Index from one of the nearest centre of each pixel (component, pixel); 0 where NaN."""
    result = np.empty(scores.shape[1], np.int32)
    half = 0.5 * (centres**2).sum(axis=1, keepdims=True)
    for start in range(0, result.size, PIXEL_BLOCK):
        part = scores[:, start : start + PIXEL_BLOCK]
        distance = half - centres @ part
        result[start : start + PIXEL_BLOCK] = distance.argmin(axis=0) + 1
        result[start : start + PIXEL_BLOCK][np.isnan(part[0])] = 0
    return result


def _mean_spectra(pixels: Pixels, label: Label, number: Index) -> tuple[Array, Array]:
    """Mean optical density and its error (cluster, used energy), by products with membership."""
    sums = np.zeros((2, pixels.used.size, number.size))
    classes = np.arange(1, number.size + 1)
    for slab, start, where in pixels.blocks():
        member = (label[where, None] == classes).astype(np.float32)
        densities = pixels.densities(slab, (start, start + len(member)))
        # Pixels without data belong nowhere, but NaN times nothing is NaN.
        sums += np.where(member.any(axis=1), densities, 0.0) @ member
    labels = label.reshape(pixels.shape)
    factor = np.stack([mean_noise_factor(pixels, labels == k) for k in classes], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[0] / number).T, (np.sqrt(sums[1] * factor) / number).T
