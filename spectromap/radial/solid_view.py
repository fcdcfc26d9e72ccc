"""A particle of any shape as the measurement sees it, in the same bins as its measured profile.

The body is projected onto cells finer than the pixels, blurred by the optics together with its
neighbours, averaged over the pixels, fitted, and averaged over the very pixels of every bin with
the weights of the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage, sparse

from spectromap._numerics import fwhm_to_sigma
from spectromap.radial import MODELS
from spectromap.radial.body import Solid, section_bodies, whole_body
from spectromap.radial.context import Context, Optics
from spectromap.radial.projection import blurred_absorption
from spectromap.radial.view import Profile, likeliest, thickness_misfit, through_optics
from spectromap.schema import FLAGS, pixel_size

__all__ = ["Field", "SolidView"]

Array = NDArray[np.floating[Any]]
Index = NDArray[np.integer[Any]]
Crop = tuple[slice, slice]

#: Depths, in radii, at which a body is solved; between them a cubic spline, past them the thin
#: layer of an even depth and the slowest decay.
_SHALLOWEST, _DEEPEST, _SOLVED = 0.03, 0.8, 33
#: Energies of the full calculation: it only corrects what is linear.
_ENERGIES = 16
#: Cells of a pixel are at least this many times finer than the resolution.
_CELLS_PER_RESOLUTION = 4.0
_FEWEST_CELLS, _MOST_CELLS = 2, 4
#: Margin around a particle, in resolutions: as far as the blur of its neighbours reaches.
_MARGIN = 2.0
#: Pixels with one of these flags carry no measurement.
_UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]


@dataclass(frozen=True)
class Grid:
    """The pixels around a particle: which bin each is in, with which weight, and its cells."""

    crop: Crop
    cells: int
    cell: float
    bins: sparse.csr_array  # (bin, pixel), the weights
    used: Index  # pixels with a bin, of the flattened crop

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        y, x = self.crop
        return y.stop - y.start, x.stop - x.start

    def blurred(self, images: Array, sigma_nm: float) -> Array:
        """Images on cells (k, Ny, Nx), blurred and averaged over the used pixels, (pixel, k)."""
        sigma = sigma_nm / self.cell
        ny, nx = self.shape
        result = np.empty((self.used.size, len(images)))
        for k, image in enumerate(images):
            soft = ndimage.gaussian_filter(image, sigma, mode="constant", truncate=4.0)
            mean = soft.reshape(ny, self.cells, nx, self.cells).mean(axis=(1, 3))
            result[:, k] = mean.ravel()[self.used]
        return result

    def blur(self, sigma_nm: float) -> Any:
        """The same for cells (n, k) to used pixels, as `observed_thicknesses` wants it."""
        shape = (self.shape[0] * self.cells, self.shape[1] * self.cells)

        def apply(values: Array) -> Array:
            return self.blurred(np.ascontiguousarray(values.T).reshape(-1, *shape), sigma_nm)

        return apply


@dataclass(frozen=True)
class Beside:
    """What the neighbours of a particle add at its used pixels.

    `absorbed` (pixel, energy) is their blurred absorption; `thickness` and `amount` (pixel,) are
    their blurred thickness and that of the mapped component for small optical density [nm].
    """

    absorbed: Array | None
    thickness: Array
    amount: Array


@dataclass(frozen=True)
class SolidView:
    """A body seen through the optics (see `spectromap.radial.view.View`)."""

    solid: Solid
    grid: Grid
    context: Context
    optics: Optics | None
    beside: Beside
    cut: bool = False
    penalty: float = 0.0
    _solved: dict[tuple[str, float], tuple[Array, Array]] = field(default_factory=dict)
    _linear: dict[tuple[str, float], tuple[Array, Array]] = field(default_factory=dict)

    @property
    def radius(self) -> float:
        """Radius of the sphere of the same volume [nm]."""
        return self.solid.radius

    @property
    def _sigma(self) -> float:
        return fwhm_to_sigma(self.context.resolution_nm)

    def _maps(self, model: str, extra: float) -> tuple[Array, Array]:
        """Thickness [nm] of the initial and of the surface fraction, (depth, Ny, Nx)."""
        key = (model, extra)
        if key not in self._solved:
            depths = _depths() * self.radius
            self._solved[key] = MODELS[model].through(self.solid, depths, extra * self.radius)
        return self._solved[key]

    def _binned(self, values: Array) -> Array:
        """Weighted sum over the pixels of every bin."""
        return np.asarray(self.grid.bins @ values)

    def _whole(self) -> Array:
        """Weighted sum of the blurred thickness of everything in every bin."""
        own = self.grid.blurred(self.solid.thickness[None], self._sigma)[:, 0]
        return self._binned(own + self.beside.thickness)

    def basis(self, model: str, extra: float, depths: Array) -> tuple[Array, Array]:
        """Share of the initial and of the surface fraction (bin, depth) for small OD."""
        key = (model, extra)
        if key not in self._linear:
            whole = self._whole()[:, None]
            initial, surface = (
                self._binned(self.grid.blurred(maps, self._sigma)) / whole
                for maps in self._maps(model, extra)
            )
            self._linear[key] = (initial, surface)
        first, second = self._linear[key]
        return _at_depths(first, depths), _at_depths(second, depths)

    def seen(
        self, model: str, extra: float, depths: Array, initial: Array, surface: Array
    ) -> Array:
        """Fraction (bin, depth), everything included."""
        first, second = (
            np.stack([_map_at(maps, depth) for depth in depths])
            for maps in self._maps(model, extra)
        )
        return self._full(initial[:, None, None] * first + surface[:, None, None] * second)[0]

    def uniform(self, level: float) -> tuple[Array, Array]:
        """Fraction and thickness [nm] in every bin of a particle of one composition."""
        fraction, thickness = self._full(level * self.solid.thickness[None])
        return fraction[:, 0], thickness[:, 0]

    def at_resolution(self, resolution_nm: float) -> SolidView:
        """The same body through optics of another resolution."""
        context = replace(self.context, resolution_nm=resolution_nm)
        return replace(self, context=context, _linear={})

    def _full(self, amounts: Array) -> tuple[Array, Array]:
        """Fraction and thickness in every bin for amounts of the component (model, Ny, Nx)."""
        weights = np.asarray(self.grid.bins.sum(axis=1))[:, None]
        if self.optics is None:
            amount = self._binned(
                self.grid.blurred(amounts, self._sigma) + self.beside.amount[:, None]
            )
            whole = self._whole()[:, None]
            return amount / whole, np.broadcast_to(whole / weights, amount.shape)
        seen, total = through_optics(
            amounts.reshape(len(amounts), -1).T,
            self.solid.thickness.ravel(),
            self.grid.blur(self._sigma),
            self.optics,
            self.beside.absorbed,
        )
        whole = self._binned(total)
        return self._binned(seen) / whole, whole / weights


def _depths() -> Array:
    """Depths at which bodies are solved, in radii."""
    return np.geomspace(_SHALLOWEST, _DEEPEST, _SOLVED)


def _at_depths(values: Array, depths: Array) -> Array:
    """Values (bin, solved depth) at other depths, (bin, depth)."""
    return np.stack([_map_at(values.T, depth) for depth in depths], axis=1)


def _map_at(maps: Array, depth: float) -> Array:
    """Maps (solved depth, ...) at one depth, by the cubic through the four nearest ones."""
    step = np.log(_DEEPEST / _SHALLOWEST) / (_SOLVED - 1)
    place = np.log(max(depth, 1e-12) / _SHALLOWEST) / step
    if place <= 0:  # a thin layer grows in proportion to its depth
        slope = (maps[1] - maps[0]) / (np.exp(step) - 1.0)
        return np.asarray(maps[0] + (depth / _SHALLOWEST - 1.0) * slope)
    if place >= _SOLVED - 1:
        return np.asarray(maps[-1])
    i = int(np.clip(np.floor(place), 1, _SOLVED - 3))
    t = place - i
    weights = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    return np.asarray(sum(w * maps[i - 1 + k] for k, w in enumerate(weights)))


# ---------------------------------------------------------------------------------- the field


class Field:
    """The maps that bodies are made from, and the bodies of all particles.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        ``thickness`` and the fraction with errors, ``particle_label``, ``edge_distance``.
    bin_nm : float
        Width of the bins of the profiles [nm].
    context : Context
        Sample and measurement.
    optics : Optics or None
        For the full calculation.
    """

    def __init__(
        self, maps: xr.Dataset, bin_nm: float, context: Context, optics: Optics | None
    ) -> None:
        self.context, self.bin_nm = context, bin_nm
        self.optics = None if optics is None else optics.thinned(_ENERGIES)
        self.pixel = pixel_size(maps["thickness"])
        self.labels = np.asarray(maps["particle_label"].values).astype(int)
        self.distance = np.asarray(maps["edge_distance"].values, float)
        self.thickness = np.asarray(maps["thickness"].values, float)
        self.errors = np.asarray(maps["thickness_errors"].values, float)
        self.fraction = np.asarray(maps[f"{context.fraction}_fraction"].values, float)
        fraction_errors = np.asarray(maps[f"{context.fraction}_fraction_errors"].values, float)
        good = np.isfinite(self.thickness) & np.isfinite(self.fraction)
        good &= (self.errors > 0) & (fraction_errors > 0) & (self.distance >= 0)
        if "flags" in maps:
            good &= (np.asarray(maps["flags"].values).astype(int) & _UNUSABLE) == 0
        self.good = good
        finest = context.resolution_nm / _CELLS_PER_RESOLUTION
        self.cells = int(np.clip(np.ceil(max(self.pixel) / finest), _FEWEST_CELLS, _MOST_CELLS))
        self._found = dict(enumerate(ndimage.find_objects(self.labels), start=1))
        self._bodies: dict[int, list[Solid]] = {}

    def square(self) -> bool:
        """Whether pixels are square, as bodies need them."""
        return abs(self.pixel[0] / self.pixel[1] - 1.0) < 0.01

    def _crop(self, label: int) -> Crop:
        """Box around a particle with a margin for the blur, within the frame."""
        margin = int(np.ceil(_MARGIN * self.context.resolution_nm / min(self.pixel))) + 2
        y, x = (
            slice(max(s.start - margin, 0), min(s.stop + margin, n))
            for s, n in zip(self._found[label], self.labels.shape, strict=True)
        )
        return y, x

    def bodies(self, label: int) -> list[Solid]:
        """What the particle may be: one body, or a section at several heights."""
        if label not in self._bodies:
            crop = self._crop(label)
            mine = self.labels[crop] == label
            other = (self.labels[crop] > 0) & ~mine
            distance = np.where(other, np.nan, self.distance[crop])
            given = (
                np.where(other, 0.0, np.nan_to_num(self.thickness[crop])),
                self.errors[crop],
                np.where(mine, distance, -np.abs(distance)),
                self.pixel,
                self.context.resolution_nm,
            )
            if self.context.geometry == "dispersed":
                found = [whole_body(*given, cells=self.cells)]
            else:
                section = float(self.context.section_nm or 0.0)
                found = section_bodies(*given, section, cells=self.cells)
            self._bodies[label] = found
        return self._bodies[label]

    def _grid(self, label: int, bins: Index) -> Grid:
        """The pixels of a particle in the given bins, numbered as they come."""
        crop = self._crop(label)
        mine = (self.labels[crop] == label) & self.good[crop]
        number = np.full(int(bins.max(initial=0)) + 1, -1)
        number[bins] = np.arange(bins.size)
        own = (np.where(mine, self.distance[crop], 0.0) / self.bin_nm).astype(int)
        own = np.minimum(own, number.size - 1)
        mine &= number[own] >= 0
        used = np.flatnonzero(mine)
        rows = number[own].ravel()[used]
        weights = 1.0 / self.errors[crop].ravel()[used] ** 2
        matrix = sparse.csr_array(
            (weights, (rows, np.arange(used.size))), shape=(bins.size, used.size)
        )
        mean = float(np.sqrt(self.pixel[0] * self.pixel[1]))
        return Grid(crop, self.cells, mean / self.cells, matrix, used)

    def _level(self, label: int) -> float:
        """Mean fraction of a particle."""
        mine = (self.labels == label) & self.good
        total = float(self.thickness[mine].sum())
        if not total > 0:
            return 0.0
        return float(np.clip((self.fraction * self.thickness)[mine].sum() / total, 0.0, 1.0))

    def _beside(self, label: int, grid: Grid) -> Beside:
        """What the neighbours within the crop add to a particle's pixels."""
        near = np.unique(self.labels[grid.crop])
        shape = (grid.shape[0] * self.cells, grid.shape[1] * self.cells)
        thickness, amount = np.zeros((2, *shape), dtype=np.float32)
        for other in near[(near > 0) & (near != label)]:
            solid = self.bodies(int(other))[0]
            _paste(thickness, amount, solid.thickness, self._level(int(other)),
                   grid.crop, self._crop(int(other)), self.cells)  # fmt: skip
        sigma = fwhm_to_sigma(self.context.resolution_nm)
        blurred = grid.blurred(np.stack([thickness, amount]), sigma)
        absorbed = None
        if self.optics is not None and thickness.any():
            spectra = self.optics.spectra
            od = np.outer((thickness - amount).ravel(), spectra[:, self.optics.base])
            od += np.outer(amount.ravel(), spectra[:, self.optics.mapped])
            absorbed = blurred_absorption(od, grid.blur(sigma), self.context.technique)
        return Beside(absorbed, blurred[:, 0], blurred[:, 1])

    def views(self, label: int, data: Profile, bins: Index, rel_error: float) -> list[SolidView]:
        """The bodies worth considering, the likeliest first."""
        grid = self._grid(label, bins)
        beside = self._beside(label, grid)
        cut = self.context.geometry == "lamella"
        found = [
            SolidView(solid, grid, self.context, self.optics, beside, cut)
            for solid in self.bodies(label)
        ]
        if len(found) == 1:
            return found
        level = self._level(label)
        misfits = [thickness_misfit(view.uniform(level)[1], data, rel_error) for view in found]
        return [replace(found[i], penalty=penalty) for i, penalty in likeliest(misfits)]


def _paste(
    thickness: Array,
    amount: Array,
    own: Array,
    level: float,
    crop: Crop,
    place: Crop,
    cells: int,
) -> None:
    """Add a neighbour's projection, made on its own crop, to the canvas of another crop."""
    into, source = [], []
    for here, there in zip(crop, place, strict=True):
        first, last = max(here.start, there.start), min(here.stop, there.stop)
        if first >= last:
            return
        into.append(slice((first - here.start) * cells, (last - here.start) * cells))
        source.append(slice((first - there.start) * cells, (last - there.start) * cells))
    part = own[tuple(source)]
    thickness[tuple(into)] += part
    amount[tuple(into)] += np.float32(level) * part
