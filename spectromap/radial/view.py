"""A particle as the measurement sees it: projected, blurred, fitted, outlined and binned.

Blur and spectral fit act on intensities, so that a profile is not seen quite linearly. Two ways
through are offered: `limit`, for small optical density, is one matrix product; `full` computes
everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._numerics import fwhm_to_sigma
from spectromap.radial.projection import (
    Slab,
    blur_matrix,
    disc_nodes,
    observed_thicknesses,
    shell_lengths,
)
from spectromap.schema import LOG, InputError

__all__ = [
    "SHELLS",
    "Body",
    "Context",
    "Optics",
    "Profile",
    "View",
    "full",
    "limit",
    "optics_of",
    "shell_edges",
    "sphere_radii",
    "view_of",
    "views",
]

Array = NDArray[np.floating[Any]]

#: Concentric shells that a profile is made of, finer towards the surface.
SHELLS = 400
_SHELL_GRADING = 3.5
#: Nodes across a bin.
_BIN_NODES = 3
_MOST_ENERGIES = 64
#: Positions of the lower face of a section that are tried: beyond the centre, and short of it.
_CUTS_INSIDE, _CUTS_OUTSIDE = 6, 6
#: Agreement of a sphere's thickness profile with the measured one: relative, and in nm.
_THICKNESS_SHAPE, _THICKNESS_FLOOR = 0.05, 1.0


@dataclass(frozen=True)
class Context:
    """What the fit must know about the sample and the measurement.

    Parameters
    ----------
    geometry : str
        "dispersed" (whole particles) or "lamella" (a section of nominal thickness).
    section_nm : float, optional
        Nominal thickness of the lamella [nm].
    resolution_nm : float
        Full width at half maximum of the point spread function [nm].
    resolution_rel_error : float
        Its relative standard error, which enters the error of D.
    technique : str
        "stxm" or "ptychography": whether intensity or the modulus of the transmission is blurred.
    delithiated_time_s : float, optional
        Time [s] over which the sample was delithiated; without it only D t is reported.
    delithiated_time_rel_error : float
        Its relative standard error; common to all particles.
    references : Dataset, optional
        Spectra per nm of the components, dims (energy), named like the components. Without them
        the limit of small optical density is used.
    fraction : str
        Name of the mapped component.
    photons : float, optional
        Mean counts without sample; None if the spectral fit weighs all energies alike.
    dark_counts : float
        Mean dark counts.
    max_od : float
        Optical density past which the spectral fit leaves a sample out.
    offset : bool
        Whether the spectral fit has a constant background.
    edge_threshold_nm : float, optional
        Measured thickness at which the outline of a particle was drawn [nm]; None if the outline
        is the true one.
    """

    geometry: str = "dispersed"
    section_nm: float | None = None
    resolution_nm: float = 10.0
    resolution_rel_error: float = 0.1
    technique: str = "stxm"
    delithiated_time_s: float | None = None
    delithiated_time_rel_error: float = 0.0
    references: xr.Dataset | None = None
    fraction: str = "mn3"
    photons: float | None = 1e4
    dark_counts: float = 0.0
    max_od: float = np.inf
    offset: bool = True
    edge_threshold_nm: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.geometry not in ("dispersed", "lamella"):
            raise InputError(f"'{self.geometry}' is not dispersed or lamella", where="geometry")
        if self.geometry == "lamella" and not (self.section_nm or 0) > 0:
            raise InputError(
                "a lamella needs its nominal thickness",
                where="section_nm",
                remedy="Give the thickness of the section in nm.",
            )
        if self.technique not in ("stxm", "ptychography"):
            raise InputError(f"'{self.technique}' is not stxm or ptychography", where="technique")
        for name in ("resolution_nm", "delithiated_time_s", "photons", "edge_threshold_nm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise InputError(f"{value} is not a positive number", where=name)
        if self.references is not None and self.fraction not in self.references:
            raise InputError(
                f"there is no reference spectrum '{self.fraction}'",
                where="references",
                remedy=f"They are named {', '.join(map(str, self.references))}.",
            )


@dataclass(frozen=True)
class Optics:
    """The measurement as the full calculation needs it."""

    spectra: Array
    mapped: int
    base: int
    context: Context


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


@dataclass(frozen=True)
class View:
    """A body seen through the optics: matrices from shells to nodes, to places, to bins."""

    body: Body
    shells: Array
    blur: Array
    average: Array
    system: Array
    penalty: float = 0.0

    @property
    def thickness(self) -> Array:
        """Blurred thickness in every bin, for small optical density [nm]."""
        return np.asarray(self.system.sum(axis=1))


@lru_cache(maxsize=1)
def shell_edges() -> Array:
    """Boundaries of the shells as fractions of the radius."""
    depth = np.sinh(_SHELL_GRADING * np.linspace(1.0, 0.0, SHELLS + 1)) / np.sinh(_SHELL_GRADING)
    return np.asarray(1.0 - depth)


@lru_cache(maxsize=16)
def _unit_sphere(count: int) -> Array:
    """Path lengths through the shells of a whole sphere of radius one."""
    return shell_lengths(disc_nodes(1.0, count)[0], shell_edges())


@lru_cache(maxsize=1)
def _bin_rule() -> tuple[Array, Array]:
    """Nodes and weights across a bin, on -1 to 1."""
    x, w = np.polynomial.legendre.leggauss(_BIN_NODES)
    return x, w


def view_of(body: Body, data: Profile, sigma: float, penalty: float = 0.0) -> View:
    """Matrices for one particle whose body is known, for a blur of standard deviation `sigma`."""
    # Enough nodes that neither the kernel nor the kink at a phase boundary is missed.
    ratio = body.disc / max(sigma, body.disc / 250.0)
    count = 64 * int(np.ceil(np.clip(8.0 * ratio, 128, 640) / 64))
    nodes, weights = disc_nodes(body.disc, count)
    if body.slab is None:
        shells = body.radius * _unit_sphere(count)
    else:
        shells = shell_lengths(nodes, body.radius * shell_edges(), body.slab)
    x, w = _bin_rule()
    outer = np.maximum(data.outline - data.lower, 0.25 * (data.upper - data.lower))
    inner = np.maximum(data.outline - data.upper, 0.0)
    places = (0.5 * (outer + inner)[:, None] + 0.5 * (outer - inner)[:, None] * x).ravel()
    bins = data.lower.size
    share = (w * places.reshape(bins, -1)) / (w * places.reshape(bins, -1)).sum(1, keepdims=True)
    average = np.zeros((bins, places.size))
    average[np.arange(bins).repeat(_BIN_NODES), np.arange(places.size)] = share.ravel()
    blur = blur_matrix(places, nodes, weights, max(sigma, body.disc / 250.0))
    return View(body, shells, blur, average, (average @ blur) @ shells, penalty)


def optics_of(context: Context) -> Optics | None:
    """Reference spectra for the full calculation, or None where there are none in nm."""
    references = context.references
    if references is None:
        return None
    names = [str(n) for n in references.data_vars if references[n].dims == ("energy",)]
    units = {references[n].attrs.get("units", "nm-1") for n in names}
    if units != {"nm-1"} or len(names) < 2:
        LOG.warning(
            "references: not two or more spectra in nm-1, so the radial models are blurred as for"
            " small optical density"
        )
        return None
    spectra = np.stack([np.asarray(references[n].values, float) for n in names], axis=1)
    spectra = spectra[np.all(np.isfinite(spectra), axis=1)]
    if len(spectra) > _MOST_ENERGIES:
        spectra = spectra[np.linspace(0, len(spectra) - 1, _MOST_ENERGIES).round().astype(int)]
    mapped = names.index(context.fraction)
    return Optics(spectra, mapped, 1 if mapped == 0 else 0, context)


def _through_optics(
    amount: Array, whole: Array, blur: Array, optics: Optics
) -> tuple[Array, Array]:
    """Apparent thickness of the mapped component and of all, shape (place, model)."""
    amounts = np.zeros((*amount.shape, optics.spectra.shape[1]))
    amounts[..., optics.mapped] = amount
    amounts[..., optics.base] = whole[:, None] - amount
    context = optics.context
    seen = observed_thicknesses(
        amounts,
        optics.spectra,
        blur,
        technique=context.technique,
        photons=context.photons,
        dark_counts=context.dark_counts,
        max_od=context.max_od,
        offset=context.offset,
    )
    return seen[..., optics.mapped], seen.sum(axis=-1)


def full(view: View, profiles: Array, optics: Optics) -> tuple[Array, Array]:
    """Fraction and thickness in every bin for profiles (shell, model), everything included."""
    amount, whole = _through_optics(
        view.shells @ profiles, view.shells.sum(axis=1), view.blur, optics
    )
    thickness = view.average @ whole
    return (view.average @ amount) / thickness, thickness


def limit(view: View, profiles: Array) -> Array:
    """Fraction in every bin for profiles (shell, model) in the limit of small optical density."""
    return np.asarray((view.system @ profiles) / view.thickness[:, None])


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
        seen = _through_optics(typical * whole[:, None], whole, blur, optics)[1][:, 0]
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


def _thickness_misfit(thickness: Array, data: Profile, rel_error: float) -> float:
    """Chi2 of a thickness profile whose scale is known to a relative error."""
    good = np.isfinite(data.thickness) & np.isfinite(data.thickness_errors)
    seen, model = data.thickness[good], thickness[good]
    variance = data.thickness_errors[good] ** 2 + _THICKNESS_FLOOR**2
    variance = variance + (_THICKNESS_SHAPE * seen) ** 2
    prior = 1.0 / rel_error**2
    scale = (np.sum(seen * model / variance) + prior) / (np.sum(model**2 / variance) + prior)
    return float(np.sum((seen - scale * model) ** 2 / variance) + prior * (scale - 1.0) ** 2)


def views(
    data: Profile, radius: float, context: Context, optics: Optics | None, rel_error: float
) -> list[View]:
    """The bodies worth considering, the likeliest first; their penalty is relative to it."""
    sigma = fwhm_to_sigma(context.resolution_nm)
    if context.geometry == "dispersed":
        return [view_of(Body(radius), data, sigma)]
    typical = float(np.average(data.fraction, weights=1.0 / data.variance))
    scored = []
    for body in _sections(data, context, optics, typical):
        view = view_of(body, data, sigma)
        if optics is None:
            thickness = view.thickness
        else:
            thickness = full(view, np.full((SHELLS, 1), typical), optics)[1][:, 0]
        scored.append((_thickness_misfit(thickness, data, rel_error), view))
    scored.sort(key=lambda pair: pair[0])
    lowest = scored[0][0]
    return [
        View(v.body, v.shells, v.blur, v.average, v.system, misfit - lowest)
        for misfit, v in scored
        if misfit < lowest + 9.0
    ]
