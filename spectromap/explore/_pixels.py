"""A stack as a matrix (energy, pixel), read in blocks of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._compiled import F32, compiled, log32
from spectromap.schema import InputError

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: A mask of pixels, or rows and columns ``(y0, y1, x0, x1)``, half open.
Region = xr.DataArray | Mask | tuple[int, int, int, int]

#: Pixels of one matrix product: their spectra stay in the cache of one core.
PIXEL_BLOCK = 4096
#: Columns of a block: rows whose addresses differ by a power of two would share a part of the
#: cache.
BLOCK_WIDTH = PIXEL_BLOCK + 16
#: What is read at once from a stack that is not in memory.
SLAB_BYTES = 256 * 2**20
#: So many pixels fix the noise of an energy to a percent or two.
NOISE_SAMPLE = 8192
RUN = 8


@dataclass(frozen=True)
class Pixels:
    """An absorption data set as a matrix (energy, pixel), of which some rows and pixels count."""

    absorption: xr.Dataset
    used: Index
    """Frames with an I0."""
    mask: Mask
    """Pixels asked for, flat."""
    noise_factor: Array
    """Variance of a transmission T is noise_factor (T + dark)."""
    dark: Array

    @classmethod
    def of(cls, absorption: xr.Dataset, mask: Region | None = None) -> Pixels:
        """Check an absorption data set and find what of it can be used."""
        needed = ("transmission", "photons", "dark", "variance_factor", "i0_relative_errors")
        missing = [name for name in needed if name not in absorption]
        if missing or absorption["transmission"].dims != ("energy", "y", "x"):
            raise InputError(
                f"{', '.join(missing) or 'transmission (energy, y, x)'} is missing",
                where="absorption",
                remedy="Make it with spectromap.transmission.",
            )
        photons = absorption["photons"].values.astype(float)
        used = np.flatnonzero(np.isfinite(photons) & (photons > 0))
        if used.size < 2:
            raise InputError(f"{used.size} frames have an I0, two are needed", where="absorption")
        shape = absorption["transmission"].shape[1:]
        inside = np.ones(shape, bool) if mask is None else as_mask(mask, shape)
        factor = (absorption["variance_factor"].values / photons)[used]
        dark = absorption["dark"].values.astype(float)[used]
        return cls(absorption, used, inside.ravel(), factor, dark)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.absorption.sizes["y"], self.absorption.sizes["x"]

    def slabs(self) -> Iterator[tuple[int, Float32]]:
        """Index of the first pixel, and transmission (every frame, pixel) of rows at a time."""
        array = self.absorption["transmission"].variable
        frames, ny, nx = array.shape
        rows = ny
        if not isinstance(array._data, np.ndarray):
            together = max(1, PIXEL_BLOCK // nx)
            rows = max(1, SLAB_BYTES // (4 * frames * nx * together)) * together
        for first in range(0, ny, rows):
            slab = np.ascontiguousarray(array[:, first : first + rows].values, dtype=np.float32)
            yield first * nx, slab.reshape(frames, -1)

    def blocks(self, size: int = PIXEL_BLOCK) -> Iterator[tuple[Float32, int, slice]]:
        """Slab, index in it of the first pixel of a block, and the pixels of the block.

        A block is some whole rows or a part of one, the same whatever the slabs: sums over blocks
        are the same to the last bit.
        """
        nx = self.shape[1]
        group = max(1, size // nx) * nx
        for offset, slab in self.slabs():
            for first in range(0, slab.shape[1], group):
                end = min(first + group, slab.shape[1])
                for start in range(first, end, size):
                    stop = min(start + size, end)
                    yield slab, start, slice(offset + start, offset + stop)

    def spectra(self, index: Index) -> Float32:
        """Transmission (used energy, pixel) of some pixels, given in rising order."""
        parts = []
        for offset, slab in self.slabs():
            low, high = np.searchsorted(index, [offset, offset + slab.shape[1]])
            parts.append(np.take(slab, index[low:high] - offset, axis=1))
        values = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return values if self.used.size == len(values) else values[self.used]

    def sample(self) -> Float32:
        """Transmission (used energy, pixel) of pixels spread evenly over those that can be used."""
        index = np.flatnonzero(self.mask)
        if index.size > NOISE_SAMPLE:
            # Multiples of the golden ratio fill the field evenly and keep no step with its rows;
            # short runs, because pixels come from the memory in cache lines.
            starts = np.arange(NOISE_SAMPLE // RUN) * 0.6180339887498949 % 1.0 * (index.size - RUN)
            chosen = np.zeros(index.size, bool)
            chosen[starts.astype(int)[:, None] + np.arange(RUN)] = True
            index = index[chosen]
        values = self.spectra(index)
        good = (values > 0).all(axis=0)
        values = values if good.all() else values.compress(good, axis=1)
        if values.shape[1] < 2:
            raise InputError(
                "no pixel was measured in every usable frame",
                where="absorption",
                remedy="Choose another mask, or leave out the frames that cover too little.",
            )
        return values

    def densities(self, values: Float32, block: tuple[int, int] | None = None) -> Float32:
        """Optical density without the bias of the logarithm, and variance: (2, used energy, pixel).

        Of transmissions of the used energies, or of a slab from pixel ``block[0]`` to ``block[1]``.
        """
        rows = np.arange(self.used.size) if block is None else self.used
        start, stop = block or (0, values.shape[1])
        result = np.empty((2, rows.size, stop - start), np.float32)
        factor, dark = self.noise_factor.astype(np.float32), self.dark.astype(np.float32)
        _densities(values, rows, start, factor, dark, result)
        return result

    def along_energy(self, values: Array) -> Array:
        """Values of the usable frames put among all frames (last axis), NaN elsewhere."""
        shape = (*values.shape[:-1], self.absorption.sizes["energy"])
        result = np.full(shape, np.nan)
        result[..., self.used] = values
        return result

    @property
    def i0_errors(self) -> Array:
        """Error of the optical density of every pixel that I0 makes, at each energy."""
        return self.along_energy(self.absorption["i0_relative_errors"].values[self.used])

    def coords(self, **other: int) -> dict[str, Any]:
        """Coordinates of the absorption data set and, counted from one, of other dimensions."""
        coords: dict[str, Any] = {n: self.absorption[n].variable for n in ("energy", "y", "x")}
        return coords | {name: np.arange(1, count + 1) for name, count in other.items()}


def as_mask(region: Region, shape: tuple[int, ...], where: str = "mask") -> Mask:
    """A region as a mask of the pixel grid."""
    if isinstance(region, tuple):
        inside = np.zeros(shape, bool)
        y0, y1, x0, x1 = region
        if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
            raise InputError(
                f"{region} does not lie within {shape[0]} rows and {shape[1]} columns",
                where=where,
                remedy="Give y0, y1, x0, x1 in pixels, half open.",
            )
        inside[y0:y1, x0:x1] = True
        return inside
    values = np.asarray(region)
    if values.shape != tuple(shape) or values.dtype != bool:
        raise InputError(
            f"expected a boolean mask of shape {tuple(shape)}, got {values.dtype} {values.shape}",
            where=where,
        )
    return values


@compiled
def _densities(
    transmission: Float32,
    rows: Index,
    start: int,
    factor: Float32,
    dark: Float32,
    result: Float32,
) -> None:
    """Optical density -ln T - var / 2, and its variance var; nonsense where T <= 0."""
    n = result.shape[2]
    for k in range(rows.size):
        row = transmission[rows[k], start : start + n]
        density, variance = result[0, k], result[1, k]
        # Below one photon the law of small noise says nothing any more.
        f, d, least = factor[k], dark[k], min(factor[k], F32(1.0))
        for p in range(n):
            inverse = F32(1.0) / max(row[p], least)
            v = f * (F32(1.0) + d * inverse) * inverse
            variance[p] = v
            density[p] = -log32(max(row[p], F32(1e-30))) - F32(0.5) * v
