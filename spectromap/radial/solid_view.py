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
from spectromap.radial.body import (
    ATTENUATION_PER_NM,
    Solid,
    outward_shift,
    section_bodies,
    whole_body,
)
from spectromap.radial.context import Context, Optics
from spectromap.radial.halo import Halo, estimate_halo
from spectromap.radial.projection import absorption_power, blurred_absorption
from spectromap.radial.view import Profile, likeliest, thickness_misfit, through_optics
from spectromap.schema import FLAGS, InputError, pixel_size

__all__ = ["Field", "SolidView"]

Array = NDArray[np.floating[Any]]
Index = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Crop = tuple[slice, slice]
_Given = tuple[Array, Array, Array, tuple[float, float], float]

#: Depths, in radii, at which a body is solved; between them cubics, and from the shallowest to
#: none at all a parabola.
_SHALLOWEST, _DEEPEST, _SOLVED = 0.03, 1.0, 35
#: Cells times energies of the full calculation: the more cells, the fewer energies.
_WORK = 700_000
_ENERGIES = (16, 24, 32, 48, 64)
#: Cells of a pixel are at least this many times finer than the resolution.
_CELLS_PER_RESOLUTION = 4.0
_FEWEST_CELLS, _MOST_CELLS = 2, 4
#: Bodies of a section that are considered at most.
_MOST_BODIES = 4
#: Thickness profiles of bodies misfit alike in neighbouring bins; so many count as one.
_ALIKE = 3.0
#: Margin around a particle, in resolutions: as far as the blur of its neighbours reaches.
_MARGIN = 2.0
#: Outlines that are known better than this [nm] stay: thickness tells no better where facets end.
_LEAST_EDGE_ERROR_NM = 1.0
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

    def blur(self, sigma_nm: float, share: float = 1.0) -> Any:
        """The same for cells (n, k) to used pixels, as `observed_thicknesses` wants it.

        `share` is that of the light in the core of the point spread function.
        """
        shape = (self.shape[0] * self.cells, self.shape[1] * self.cells)

        def apply(values: Array) -> Array:
            images = np.ascontiguousarray(values.T).reshape(-1, *shape)
            return share * self.blurred(images, sigma_nm)

        return apply


@dataclass(frozen=True)
class Beside:
    """What the neighbours of a particle add at its used pixels.

    `absorbed` (pixel, energy) is their blurred absorption, and that in the wings of all particles,
    the share of the light in the core being `core` (and `stray` what the spectral fit took for
    stray light in their place); `thickness` and `amount` (pixel,) are
    their blurred thickness and that of the mapped component for small optical density [nm].
    """

    absorbed: Array | None
    thickness: Array
    amount: Array
    core: float = 1.0
    stray: float = 0.0


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
        """Thickness [nm] of the initial and of the surface fraction, (1 + depth, Ny, Nx).

        The first is for no depth at all.
        """
        key = (model, extra)
        if key not in self._solved:
            depths = _depths() * self.radius
            first, second = MODELS[model].through(self.solid, depths, extra * self.radius)
            start = first[:1] + second[:1], np.zeros_like(second[:1])
            self._solved[key] = (
                np.concatenate([start[0], first]),
                np.concatenate([start[1], second]),
            )
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
            self.grid.blur(self._sigma, self.beside.core),
            self.optics,
            self.beside.absorbed,
            self.beside.stray,
        )
        whole = self._binned(total)
        return self._binned(seen) / whole, whole / weights


def _depths() -> Array:
    """Depths at which bodies are solved, in radii."""
    return np.geomspace(_SHALLOWEST, _DEEPEST, _SOLVED)


def _at_depths(values: Array, depths: Array) -> Array:
    """Values (bin, none and solved depths) at other depths, (bin, depth)."""
    return np.stack([_map_at(values.T, depth) for depth in depths], axis=1)


def _map_at(maps: Array, depth: float) -> Array:
    """Maps (none and solved depths, ...) at one depth, by the cubic through the nearest four."""
    start, maps = maps[0], maps[1:]
    step = np.log(_DEEPEST / _SHALLOWEST) / (_SOLVED - 1)
    place = np.log(max(depth, 1e-12) / _SHALLOWEST) / step
    if place <= 0:  # a thin layer grows nearly in proportion to its depth
        share, further = depth / _SHALLOWEST, np.exp(step)
        bend = (share - 1.0) / (further - 1.0)
        return np.asarray(
            start
            + share * (1.0 - bend) * (maps[0] - start)
            + share * bend / further * (maps[1] - start)
        )
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
    edge_error : float
        Standard error of where outlines lie, in resolutions. Where it is large, edges are placed
        by the thickness.
    """

    def __init__(
        self,
        maps: xr.Dataset,
        bin_nm: float,
        context: Context,
        optics: Optics | None,
        edge_error: float = 0.0,
    ) -> None:
        self.context, self.bin_nm = context, bin_nm
        self.edge_nm = edge_error * context.resolution_nm
        self.optics = optics
        self.pixel = pixel_size(maps["thickness"])
        self.labels = np.asarray(maps["particle_label"].values)
        self.distance = np.asarray(maps["edge_distance"].values)
        self.thickness = np.asarray(maps["thickness"].values)
        self.errors = np.asarray(maps["thickness_errors"].values)
        self.fraction = np.asarray(maps[f"{context.fraction}_fraction"].values)
        fraction_errors = np.asarray(maps[f"{context.fraction}_fraction_errors"].values)
        good = np.isfinite(self.thickness) & np.isfinite(self.fraction)
        good &= (self.errors > 0) & (fraction_errors > 0) & (self.distance >= 0)
        if "flags" in maps:
            good &= (np.asarray(maps["flags"].values).astype(int) & _UNUSABLE) == 0
        self.good = good
        finest = context.resolution_nm / _CELLS_PER_RESOLUTION
        self.cells = int(np.clip(np.ceil(max(self.pixel) / finest), _FEWEST_CELLS, _MOST_CELLS))
        self._found = dict(enumerate(ndimage.find_objects(self.labels), start=1))
        self._shadows: dict[int, Array | None] = {}
        self._in_wings: dict[int, Array] = {}
        self.halo = self._halo()

    @property
    def places_edges(self) -> bool:
        """Whether edges are placed by the thickness and not only by outlines."""
        return self.edge_nm > _LEAST_EDGE_ERROR_NM

    def _halo(self) -> Halo:
        """Wings of the point spread function."""
        if self.optics is None:
            return Halo()
        optics = self.optics.thinned(_ENERGIES[1])
        columns = np.column_stack([optics.spectra, np.ones(len(optics.spectra))])
        answer = np.linalg.pinv(columns)[:-1].sum(axis=0)
        power = absorption_power(self.context.technique)
        shadow = np.tensordot(answer, self._absorbed(optics), 1) / power
        away = ndimage.distance_transform_edt(self.labels == 0, sampling=self.pixel)
        return estimate_halo(
            self.thickness, self.errors, shadow, away, self.pixel, self.context.resolution_nm
        )

    def _absorbed(self, optics: Optics) -> Array:
        """What the particles absorb at every energy (energy, y, x), as it was measured."""
        inside = (self.labels > 0) & self.good
        whole = np.where(inside, np.maximum(self.thickness, 0.0), 0.0).astype(np.float32)
        total = float(whole.sum())
        level = float((np.where(inside, self.fraction, 0.0) * whole).sum() / max(total, 1e-9))
        level = float(np.clip(level, 0.0, 1.0))
        spectrum = (1.0 - level) * optics.spectra[:, optics.base]
        spectrum = spectrum + level * optics.spectra[:, optics.mapped]
        power = absorption_power(self.context.technique)
        return np.stack([-np.expm1(-np.float32(power * a) * whole) for a in spectrum])

    def _wings(self, optics: Optics) -> Array:
        """Absorption in the wings of the point spread function (energy, y, x)."""
        count = len(optics.spectra)
        if count not in self._in_wings:
            sigma = [fwhm_to_sigma(self.halo.fwhm_nm) / p for p in self.pixel]
            self._in_wings[count] = np.stack(
                [
                    self.halo.share * ndimage.gaussian_filter(image, sigma, mode="constant")
                    for image in self._absorbed(optics)
                ]
            )
        return self._in_wings[count]

    def _crop(self, label: int) -> Crop:
        """Box around a particle with a margin for the blur, within the frame."""
        margin = int(np.ceil(_MARGIN * self.context.resolution_nm / min(self.pixel))) + 2
        y, x = (
            slice(max(s.start - margin, 0), min(s.stop + margin, n))
            for s, n in zip(self._found[label], self.labels.shape, strict=True)
        )
        return y, x

    def bodies(self, label: int) -> list[Solid]:
        """What the particle may be: one body, or a section at several heights; none if tiny."""
        shadow = self._shadow(label)
        if shadow is None:
            return []
        thickness = self._own_thickness(label)
        if self.optics is not None:
            thickness = thickness - self._beyond(label, shadow)
        given = self._given(label, thickness)
        outward = 0.0
        if self.places_edges:
            outward = outward_shift(*given, cells=self.cells, error_nm=self.edge_nm)
        if self.context.geometry == "dispersed":
            return [whole_body(*given, cells=self.cells, outward_nm=outward)]
        section = float(self.context.section_nm or 0.0)
        return section_bodies(*given, section, cells=self.cells, outward_nm=outward)

    def _shadow(self, label: int) -> Array | None:
        """Projected thickness [nm] on the particle's own crop at first sight; None if tiny."""
        if label not in self._shadows:
            given = self._given(label, self._own_thickness(label))
            try:
                solid = whole_body(*given, cells=self.cells)
                self._shadows[label] = solid.thickness.astype(np.float32)
            except InputError:  # no pixel of it lies inside of its outline
                self._shadows[label] = None
        return self._shadows[label]

    def _own_thickness(self, label: int) -> Array:
        """Measured thickness [nm] on the crop of a particle, NaN on its neighbours."""
        labels = self.labels[self._crop(label)]
        return np.where((labels > 0) & (labels != label), np.nan, self.thickness[self._crop(label)])

    def _given(self, label: int, thickness: Array) -> _Given:
        """What a body is made from, with the distance negative outside of the particle."""
        crop = self._crop(label)
        distance = self.distance[crop]
        edge = np.where(self.labels[crop] == label, distance, -np.abs(distance))
        return thickness, self.errors[crop], edge, self.pixel, self.context.resolution_nm

    def _beyond(self, label: int, shadow: Array) -> Array:
        """Apparent thickness beyond that of one even attenuation, which bodies are made with.

        Thick samples absorb some energies wholly, and the fit then rests on others; neighbours
        and the wings of the point spread function absorb here too.
        """
        crop = self._crop(label)
        size = (crop[0].stop - crop[0].start) * (crop[1].stop - crop[1].start)
        every = self._grid_of(crop, sparse.csr_array((0, size)), np.arange(size))
        optics = self._optics(crop)
        assert optics is not None
        beside = self._beside(label, every, optics)
        sigma = fwhm_to_sigma(self.context.resolution_nm)
        whole = shadow.ravel().astype(float)
        full = through_optics(
            self._level(label) * whole[:, None],
            whole,
            every.blur(sigma, beside.core),
            optics,
            beside.absorbed,
            beside.stray,
        )[1]
        alone = blurred_absorption(ATTENUATION_PER_NM * whole[:, None], every.blur(sigma), "stxm")
        simple = -np.log1p(-np.minimum(alone, 1.0 - 1e-6)) / ATTENUATION_PER_NM
        return np.asarray((full - simple).reshape(every.shape))

    def _grid_of(self, crop: Crop, bins: sparse.csr_array, used: Index) -> Grid:
        """The cells of a crop."""
        mean = float(np.sqrt(self.pixel[0] * self.pixel[1]))
        return Grid(crop, self.cells, mean / self.cells, bins, used)

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
        return self._grid_of(crop, matrix, used)

    def _level(self, label: int) -> float:
        """Mean fraction of a particle."""
        crop = self._crop(label)
        mine = (self.labels[crop] == label) & self.good[crop]
        whole = self.thickness[crop][mine].astype(float)
        total = float(whole.sum())
        if not total > 0:
            return 0.0
        return float(np.clip((self.fraction[crop][mine] * whole).sum() / total, 0.0, 1.0))

    def _optics(self, crop: Crop) -> Optics | None:
        """The optics with as many energies as the size of a crop allows."""
        size = (crop[0].stop - crop[0].start) * (crop[1].stop - crop[1].start) * self.cells**2
        most = max([n for n in _ENERGIES if n * size <= _WORK], default=_ENERGIES[0])
        return None if self.optics is None else self.optics.thinned(most)

    def _beside(self, label: int, grid: Grid, optics: Optics | None) -> Beside:
        """What the neighbours within the crop add to a particle's pixels."""
        near = np.unique(self.labels[grid.crop])
        shape = (grid.shape[0] * self.cells, grid.shape[1] * self.cells)
        thickness, amount = np.zeros((2, *shape), dtype=np.float32)
        for other in near[(near > 0) & (near != label)]:
            shadow = self._shadow(int(other))
            if shadow is not None:
                _paste(thickness, amount, shadow, self._level(int(other)),
                       grid.crop, self._crop(int(other)), self.cells)  # fmt: skip
        sigma = fwhm_to_sigma(self.context.resolution_nm)
        blurred = grid.blurred(np.stack([thickness, amount]), sigma)
        core = 1.0 - self.halo.share
        absorbed = None
        if optics is not None and thickness.any():
            spectra = optics.spectra
            od = np.outer((thickness - amount).ravel(), spectra[:, optics.base])
            od += np.outer(amount.ravel(), spectra[:, optics.mapped])
            absorbed = blurred_absorption(od, grid.blur(sigma, core), self.context.technique)
        if optics is not None and self.halo.share > 0:
            wings = self._wings(optics)[:, grid.crop[0], grid.crop[1]]
            wings = wings.reshape(len(wings), -1)[:, grid.used].T
            absorbed = wings if absorbed is None else absorbed + wings
        return Beside(absorbed, blurred[:, 0], blurred[:, 1], core, self._taken_for_stray)

    @property
    def _taken_for_stray(self) -> float:
        """Light in the wings that the spectral fit took for light that is never absorbed.

        Stray light that is there and taken off changes nothing.
        """
        return self.context.stray_fraction if self.halo.share > 0 else 0.0

    def views(self, label: int, data: Profile, bins: Index, rel_error: float) -> list[SolidView]:
        """The bodies worth considering, the likeliest first; none where it has no body."""
        grid = self._grid(label, bins)
        optics = self._optics(grid.crop)
        beside = self._beside(label, grid, optics)
        cut = self.context.geometry == "lamella"
        found = [
            SolidView(solid, grid, self.context, optics, beside, cut)
            for solid in self.bodies(label)
        ]
        if len(found) < 2:
            return found
        level = self._level(label)
        misfits = [
            view.solid.penalty + thickness_misfit(view.uniform(level)[1], data, rel_error) / _ALIKE
            for view in found
        ]
        best = likeliest(misfits)[:_MOST_BODIES]
        return [replace(found[i], penalty=penalty) for i, penalty in best]


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
