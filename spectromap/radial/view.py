"""A particle as the measurement sees it: projected, blurred, fitted, outlined and binned.

Blur and spectral fit act on intensities, so that a profile is not seen quite linearly. Two ways
through are offered: `View.basis`, for small optical density, is linear in the fractions;
`View.seen` computes everything. Here the particle is a sphere or a cut sphere; a body of any shape
is in `spectromap.radial.solid_view`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spectromap._numerics import fwhm_to_sigma
from spectromap.radial import MODELS
from spectromap.radial.context import Context, Optics
from spectromap.radial.projection import (
    Slab,
    blur_matrix,
    disc_nodes,
    observed_thicknesses,
    shell_lengths,
)

__all__ = [
    "DEPTHS",
    "SHELLS",
    "Body",
    "Profile",
    "SphereView",
    "View",
    "likeliest",
    "shell_edges",
    "sphere_radii",
    "sphere_views",
    "thickness_misfit",
    "through_optics",
]

Array = NDArray[np.floating[Any]]

#: Concentric shells that a profile is made of, finer towards the surface.
SHELLS = 400
_SHELL_GRADING = 3.5
#: Nodes across a bin.
_BIN_NODES = 3
#: Penetration depths tried, in radii: 0.025 decades of D t from one to the next.
DEPTHS: NDArray[np.float64] = np.logspace(np.log10(0.003), 0.0, 203)
#: Energies that the full calculation uses at most.
_MOST_ENERGIES = 64
#: Positions of the lower face of a section that are tried: beyond the centre, and short of it.
_CUTS_INSIDE, _CUTS_OUTSIDE = 6, 6
#: Agreement of a model's thickness profile with the measured one: relative, and in nm.
_THICKNESS_SHAPE, _THICKNESS_FLOOR = 0.05, 1.0
#: Bodies whose thickness profile is less likely than this, in chi2, are not considered.
_UNLIKELY = 9.0


@dataclass(frozen=True)
class Profile:
    """Profile of one particle: usable bins only."""

    lower: Array
    upper: Array
    fraction: Array
    variance: Array
    thickness: Array
    thickness_errors: Array
    outline: float


class View(Protocol):
    """A body seen through the optics, in the bins of a measured profile."""

    @property
    def radius(self) -> float:
        """Unit of the depths [nm]."""

    @property
    def cut(self) -> bool:
        """Whether the body is a section whose height was chosen by its thickness."""

    @property
    def penalty(self) -> float:
        """Chi2 of the thickness profile beyond that of the likeliest body."""

    def basis(self, model: str, extra: float, depths: Array) -> tuple[Array, Array]:
        """Share of the initial and of the surface fraction (bin, depth) for small OD."""

    def seen(
        self, model: str, extra: float, depths: Array, initial: Array, surface: Array
    ) -> Array:
        """Fraction (bin, depth), everything included."""

    def uniform(self, level: float) -> tuple[Array, Array]:
        """Fraction and thickness [nm] in every bin of a particle of one composition."""

    def at_resolution(self, resolution_nm: float) -> View:
        """The same body through optics of another resolution."""


def through_optics(
    mapped: Array,
    whole: Array,
    blur: Any,
    optics: Optics,
    added: Array | None = None,
    stray: float = 0.0,
) -> tuple[Array, Array]:
    """Apparent thickness of the mapped component and of all, shape (place, model).

    `mapped` (node, model) and `whole` (node,) are the true ones; for `blur`, `added` and `stray`
    see `spectromap.radial.projection.observed_thicknesses`.
    """
    amounts = np.zeros((*mapped.shape, optics.spectra.shape[1]))
    amounts[..., optics.mapped] = mapped
    amounts[..., optics.base] = whole[:, None] - mapped
    context = optics.context
    seen = observed_thicknesses(
        amounts,
        optics.spectra,
        blur,
        added=added,
        stray=stray,
        technique=context.technique,
        photons=context.photons,
        dark_counts=context.dark_counts,
        max_od=context.max_od,
        offset=context.offset,
    )
    return seen[..., optics.mapped], seen.sum(axis=-1)


def thickness_misfit(thickness: Array, data: Profile, rel_error: float) -> float:
    """Chi2 of a thickness profile whose scale is known to a relative error."""
    good = np.isfinite(data.thickness) & np.isfinite(data.thickness_errors)
    seen, model = data.thickness[good], thickness[good]
    variance = data.thickness_errors[good] ** 2 + _THICKNESS_FLOOR**2
    variance = variance + (_THICKNESS_SHAPE * seen) ** 2
    prior = 1.0 / rel_error**2
    scale = (np.sum(seen * model / variance) + prior) / (np.sum(model**2 / variance) + prior)
    return float(np.sum((seen - scale * model) ** 2 / variance) + prior * (scale - 1.0) ** 2)


def likeliest(misfits: list[float]) -> list[tuple[int, float]]:
    """Index and penalty of the bodies worth considering, the likeliest first."""
    order = np.argsort(misfits, kind="stable")
    lowest = misfits[order[0]]
    return [(int(i), misfits[i] - lowest) for i in order if misfits[i] < lowest + _UNLIKELY]


# ------------------------------------------------------------------------------------- spheres


@dataclass(frozen=True)
class Body:
    """A sphere, or the part of it between two planes."""

    radius: float
    slab: Slab | None = None

    @property
    def disc(self) -> float:
        """Radius of the outline without blur."""
        if self.slab is None or self.slab[0] <= 0:
            return self.radius
        return float(np.sqrt(max(self.radius**2 - self.slab[0] ** 2, 0.0)))


@lru_cache(maxsize=1)
def shell_edges() -> Array:
    """Boundaries of the shells as fractions of the radius."""
    depth = np.sinh(_SHELL_GRADING * np.linspace(1.0, 0.0, SHELLS + 1)) / np.sinh(_SHELL_GRADING)
    return np.asarray(1.0 - depth)


@lru_cache(maxsize=32)
def _table(model: str, extra: float) -> tuple[Array, Array]:
    """`_shares` at all of `DEPTHS`."""
    return MODELS[model].shells(shell_edges(), DEPTHS, extra)


def _shares(model: str, extra: float, depths: Array) -> tuple[Array, Array]:
    """Share of the initial and of the surface fraction in every shell, (shell, depth)."""
    if depths is DEPTHS:
        return _table(model, extra)
    return MODELS[model].shells(shell_edges(), depths, extra)


@lru_cache(maxsize=16)
def _unit_sphere(count: int) -> Array:
    """Path lengths through the shells of a whole sphere of radius one."""
    return shell_lengths(disc_nodes(1.0, count)[0], shell_edges())


@lru_cache(maxsize=1)
def _bin_rule() -> tuple[Array, Array]:
    """Nodes and weights across a bin, on -1 to 1."""
    x, w = np.polynomial.legendre.leggauss(_BIN_NODES)
    return x, w


@dataclass(frozen=True)
class SphereView:
    """A sphere or cut sphere: matrices from shells to nodes, to places, to bins."""

    body: Body
    data: Profile
    context: Context
    optics: Optics | None
    shells: Array
    blur: Array
    average: Array
    system: Array
    penalty: float = 0.0

    @classmethod
    def of(cls, body: Body, data: Profile, context: Context, optics: Optics | None) -> SphereView:
        """Matrices for one particle whose body is known."""
        # Enough nodes that neither the kernel nor the kink at a phase boundary is missed.
        sigma = max(fwhm_to_sigma(context.resolution_nm), body.disc / 250.0)
        count = 64 * int(np.ceil(np.clip(8.0 * body.disc / sigma, 128, 640) / 64))
        nodes, weights = disc_nodes(body.disc, count)
        if body.slab is None:
            shells = body.radius * _unit_sphere(count)
        else:
            shells = shell_lengths(nodes, body.radius * shell_edges(), body.slab)
        places, average = _bins_of(data)
        blur = blur_matrix(places, nodes, weights, sigma)
        system = (average @ blur) @ shells
        return cls(body, data, context, optics, shells, blur, average, system)

    @property
    def radius(self) -> float:
        """Radius of the sphere [nm]."""
        return self.body.radius

    @property
    def cut(self) -> bool:
        """Whether it is a section."""
        return self.body.slab is not None

    def basis(self, model: str, extra: float, depths: Array) -> tuple[Array, Array]:
        """Share of the initial and of the surface fraction (bin, depth) for small OD."""
        whole = self.system.sum(axis=1)[:, None]
        first, second = _shares(model, extra, depths)
        return self.system @ first / whole, self.system @ second / whole

    def seen(
        self, model: str, extra: float, depths: Array, initial: Array, surface: Array
    ) -> Array:
        """Fraction (bin, depth), everything included."""
        first, second = _shares(model, extra, depths)
        return self._full(initial * first + surface * second)[0]

    def uniform(self, level: float) -> tuple[Array, Array]:
        """Fraction and thickness [nm] in every bin of a particle of one composition."""
        fraction, thickness = self._full(np.full((SHELLS, 1), level))
        return fraction[:, 0], thickness[:, 0]

    def at_resolution(self, resolution_nm: float) -> SphereView:
        """The same body through optics of another resolution."""
        context = replace(self.context, resolution_nm=resolution_nm)
        return SphereView.of(self.body, self.data, context, self.optics)

    def _full(self, profiles: Array) -> tuple[Array, Array]:
        """Fraction and thickness in every bin for profiles (shell, model)."""
        if self.optics is None:
            whole = self.system.sum(axis=1)[:, None]
            return self.system @ profiles / whole, np.broadcast_to(whole, (whole.size, 1))
        amount, whole = through_optics(
            self.shells @ profiles, self.shells.sum(axis=1), self.blur, self.optics
        )
        thickness = self.average @ whole
        return (self.average @ amount) / thickness, thickness


def _bins_of(data: Profile) -> tuple[Array, Array]:
    """Distances from the axis within all bins [nm], and the matrix that averages over each."""
    x, w = _bin_rule()
    outer = np.maximum(data.outline - data.lower, 0.25 * (data.upper - data.lower))
    inner = np.maximum(data.outline - data.upper, 0.0)
    places = (0.5 * (outer + inner)[:, None] + 0.5 * (outer - inner)[:, None] * x).ravel()
    bins = data.lower.size
    share = (w * places.reshape(bins, -1)) / (w * places.reshape(bins, -1)).sum(1, keepdims=True)
    average = np.zeros((bins, places.size))
    average[np.arange(bins).repeat(_BIN_NODES), np.arange(places.size)] = share.ravel()
    return places, average


def _crossing(body: Body, context: Context, optics: Optics | None, typical: float) -> float:
    """Distance from the axis at which the body's apparent thickness falls to the threshold."""
    threshold = context.edge_threshold_nm
    if threshold is None:
        return body.disc
    sigma = fwhm_to_sigma(context.resolution_nm)
    r = np.maximum(body.disc + sigma * np.linspace(-5.0, 4.0, 46), 0.0)
    nodes, weights = disc_nodes(body.disc, 192)
    blur = blur_matrix(r, nodes, weights, max(sigma, body.disc / 60.0))
    whole = shell_lengths(nodes, np.array([0.0, body.radius]), body.slab)[:, 0]
    seen: Array = blur @ whole
    if optics is not None:
        seen = through_optics(typical * whole[:, None], whole, blur, optics)[1][:, 0]
    above = np.flatnonzero(seen >= threshold)
    if above.size == 0 or above[-1] == r.size - 1:
        return np.nan
    i = int(above[-1])
    step = (seen[i] - threshold) / (seen[i] - seen[i + 1])
    return float(r[i] + step * (r[i + 1] - r[i]))


def sphere_radii(outlines: Array, context: Context, optics: Optics | None, typical: float) -> Array:
    """Radius of the spheres whose apparent outlines have the given radii."""
    if context.edge_threshold_nm is None or outlines.size == 0:
        return outlines
    margin = 2.0 * context.resolution_nm
    trial = np.geomspace(0.4 * outlines.min(), 1.1 * outlines.max() + margin, 48)
    seen = np.array([_crossing(Body(r), context, optics, typical) for r in trial])
    good = np.isfinite(seen)
    # Below the smallest sphere that reaches the threshold at all the outline says nothing.
    if good.sum() < 2:
        return outlines
    order = np.maximum.accumulate(seen[good])
    return np.asarray(np.interp(outlines, order, trial[good]))


def _sections(data: Profile, context: Context, optics: Optics | None, typical: float) -> list[Body]:
    """Spheres cut at different heights, all with the measured outline."""
    half = 0.5 * float(context.section_nm or 0.0)
    disc = data.outline
    bodies = []
    # Height of the lower face: from mid-plane through the centre to a cap 45 degrees wide.
    inside = np.linspace(-half, 0.0, _CUTS_INSIDE)
    outside = disc * np.tan(np.linspace(0.0, 0.25 * np.pi, _CUTS_OUTSIDE + 1)[1:])
    for face in np.concatenate([inside, outside]):
        true = disc
        for _ in range(2):
            body = Body(float(np.hypot(true, max(face, 0.0))), (face, face + 2.0 * half))
            seen = _crossing(body, context, optics, typical)
            if np.isfinite(seen):
                true = max(true + disc - seen, 0.3 * disc)
        bodies.append(Body(float(np.hypot(true, max(face, 0.0))), (face, face + 2.0 * half)))
    return bodies


def sphere_views(
    data: Profile, radius: float, context: Context, optics: Optics | None, rel_error: float
) -> list[SphereView]:
    """The spheres worth considering, the likeliest first; their penalty is relative to it."""
    optics = None if optics is None else optics.thinned(_MOST_ENERGIES)
    if context.geometry == "dispersed":
        return [SphereView.of(Body(radius), data, context, optics)]
    typical = float(np.average(data.fraction, weights=1.0 / data.variance))
    found = [
        SphereView.of(body, data, context, optics)
        for body in _sections(data, context, optics, typical)
    ]
    misfits = [thickness_misfit(view.uniform(typical)[1], data, rel_error) for view in found]
    return [replace(found[i], penalty=penalty) for i, penalty in likeliest(misfits)]
