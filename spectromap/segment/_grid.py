"""Small helpers on pixel grids: crops, borders, noise, polynomials, label maps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._numerics import robust_std
from spectromap.schema import InputError, check_map, with_units

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Crop = tuple[slice, slice]
Pair = tuple[float, float]

#: Noise that is left by the smoothing, as share of what the particles absorb.
NOISE_SHARE = 0.04


def skimage(part: str) -> Any:
    """Load a part of scikit-image; only when needed, because it takes its time."""
    return importlib.import_module(f"skimage.{part}")


def filled(values: Array) -> tuple[Array, Mask]:
    """Values with every NaN replaced by its nearest neighbour, and where they were finite."""
    valid = np.isfinite(values)
    if valid.all() or not valid.any():
        return np.where(valid, values, 0.0), valid
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return values[tuple(nearest)], valid


def white_noise(values: Array) -> float:
    """Noise of single pixels from a mask that no plane and no slope passes.

    References
    ----------
    J. Immerkaer, Comput. Vis. Image Underst. 64, 300 (1996).
    """
    mask = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6.0
    return robust_std(ndimage.convolve(values, mask, mode="nearest"))


def after_smoothing(noise: float, sigma: Pair) -> float:
    """Standard deviation that a Gaussian of `sigma` pixels leaves of white noise."""
    left = 1.0
    for s in sigma:
        left /= np.sqrt(max(2.0 * np.sqrt(np.pi) * s, 1.0))
    return noise * left


def polynomial(shape: tuple[int, ...], order: int) -> Array:
    """Columns 1, y, x, y2, xy, x2 up to `order` on a grid that runs from -1 to 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    columns = [np.ones_like(y), y, x, y * y, x * y, x * x]
    return np.stack(columns[: (1, 3, 6)[order]], axis=-1)


def surface(values: Array, empty: Mask) -> Array:
    """Quadratic through the pixels away from particles; a constant where they are few."""
    order = 2 if empty.mean() > 0.2 else 0
    if empty.sum() < 20:
        return np.zeros_like(values)
    columns = polynomial(values.shape, order)
    fitted = np.linalg.lstsq(columns[empty], values[empty], rcond=None)[0]
    return np.asarray(columns @ fitted)


def sigma_px(sigma_nm: float, pixel: Pair, least: float = 0.0) -> Pair:
    """Standard deviation in pixels of each axis."""
    return max(sigma_nm / pixel[0], least), max(sigma_nm / pixel[1], least)


def edt(mask: Mask, pixel: Pair) -> Array:
    """Distance [nm] of every cell of the mask from the outside; the frame's border is none."""
    padded = np.pad(mask, 1, mode="edge")
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=pixel)[1:-1, 1:-1])


def crops(labels: Labels, margin: int = 0) -> Iterator[tuple[int, Crop]]:
    """Every label that occurs with its bounding box, widened by a margin within the frame."""
    for label, found in enumerate(ndimage.find_objects(np.asarray(labels)), start=1):
        if found is not None:
            y, x = (
                slice(max(s.start - margin, 0), min(s.stop + margin, n))
                for s, n in zip(found, labels.shape, strict=True)
            )
            yield label, (y, x)


def shared_borders(
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


def check_length(name: str, length: float | None) -> None:
    """Refuse a length that is not positive."""
    if length is not None and not (np.isfinite(length) and length > 0):
        raise InputError(f"{length} is not a positive length in nm", where=name)


def check_label_map(labels: xr.DataArray, like: xr.DataArray | None = None) -> Labels:
    """Values of a label map that fits another map."""
    check_map(labels, name=str(labels.name or "labels"))
    if like is not None and labels.shape != like.shape:
        raise InputError(
            f"the labels have shape {labels.shape}, the map {like.shape}", where="labels"
        )
    return np.asarray(labels.values).astype(np.int32)


def label_map(labels: Labels, like: xr.DataArray, name: str, long_name: str) -> xr.DataArray:
    """Labels as a map on the axes of another."""
    coords = {dim: like[dim] for dim in ("y", "x")}
    return with_units(
        xr.DataArray(labels.astype(np.int32), dims=("y", "x"), coords=coords), name, "1", long_name
    )
