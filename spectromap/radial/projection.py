"""What transmission makes of a radial profile: line integrals, blur and the spectral fit.

A sphere has its centre at the origin and the beam runs along z. A section keeps what lies between
two planes, ``slab = (lower, upper)`` in nm from the centre; ``None`` is the whole particle. Only
straight paths are considered (no diffraction inside the particle), and of a ptychographic
transmission only the modulus (the phase of the refractive part is left out).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

__all__ = [
    "Blur",
    "absorption_power",
    "blur_matrix",
    "blurred_absorption",
    "disc_nodes",
    "line_integral",
    "observed_thicknesses",
    "shell_lengths",
    "slab_of",
    "thickness",
]

Array = NDArray[np.floating[Any]]
Slab = tuple[float, float]
Blur = Callable[[Array], Array]

#: Panels that shrink by two towards the surface, and nodes in each: steep surface layers down to
#: 1e-4 of the radius are integrated to better than 1e-6.
_PANELS = 14
_PANEL_NODES = 14
#: Steps of the fit to counts, after a fit to optical densities; its longest step [nm], and the
#: largest optical density of its model.
_SCORING_STEPS, _LONGEST_STEP_NM, _HIGHEST_OD = 2, 100.0, 30.0
#: A Gaussian is cut off at this many standard deviations (1e-14 of its peak).
_REACH = 8.0


def slab_of(section_nm: float, midplane_nm: float) -> Slab:
    """Planes of a section of the given thickness whose mid-plane lies at a height, in nm."""
    return midplane_nm - 0.5 * section_nm, midplane_nm + 0.5 * section_nm


def _half_chord(rho: Array, radius: ArrayLike) -> Array:
    """Height of a sphere's surface above the mid-plane, 0 outside."""
    return np.asarray(np.sqrt(np.maximum(np.square(radius) - np.square(rho), 0.0)))


def _chord(rho: Array, radius: ArrayLike, slab: Slab | None) -> tuple[Array, Array]:
    """Lower and upper end of the path through the body; equal where there is none."""
    top = _half_chord(rho, radius)
    if slab is None:
        return -top, top
    return np.clip(-top, *slab), np.clip(top, *slab)


def thickness(rho: ArrayLike, radius: float, slab: Slab | None = None) -> Array:
    """Thickness of a sphere along the beam.

    Parameters
    ----------
    rho : array_like
        Distances from the axis [nm].
    radius : float
        Radius of the sphere [nm].
    slab : (lower, upper), optional
        Planes of the section [nm].

    Returns
    -------
    ndarray
        Path length [nm], shape of `rho`; 0 outside.
    """
    lower, upper = _chord(np.asarray(rho, float), radius, slab)
    return np.asarray(upper - lower)


@lru_cache(maxsize=1)
def _graded_nodes() -> tuple[Array, Array]:
    """Nodes and weights on 0 to 1, graded towards 1."""
    x, w = np.polynomial.legendre.leggauss(_PANEL_NODES)
    breaks = np.append(1.0 - 0.5 ** np.arange(_PANELS), 1.0)
    half = 0.5 * np.diff(breaks)[:, None]
    return (breaks[:-1, None] + half * (x + 1.0)).ravel(), (half * w).ravel()


def _from_midplane(
    profile: Callable[[Array], Array], rho: Array, end: Array, surface: Array
) -> Array:
    """Integral of a radial profile from the mid-plane to a height (odd in the height)."""
    # Towards the surface the substitution z = surface * sin(angle) keeps grazing paths smooth.
    nodes, weights = _graded_nodes()
    safe = np.where(surface > 0, surface, 1.0)
    stop = np.arcsin(np.clip(end / safe, -1.0, 1.0))
    angle = stop[..., None] * nodes
    z = surface[..., None] * np.sin(angle)
    values = profile(np.hypot(rho[..., None], z))
    integrand = values * surface[..., None] * np.cos(angle)
    return np.asarray(np.sum(integrand * weights, axis=-1) * stop)


def line_integral(
    profile: Callable[[Array], Array], rho: ArrayLike, radius: float, slab: Slab | None = None
) -> Array:
    """Integral of a smooth radial profile along the beam.

    Parameters
    ----------
    profile : callable
        Concentration at distances from the centre [nm]; called with an ndarray.
    rho : array_like
        Distances from the axis [nm].
    radius : float
        Radius of the sphere [nm].
    slab : (lower, upper), optional
        Planes of the section [nm].

    Returns
    -------
    ndarray
        Integral [concentration nm], 1e-6 of its scale for surface layers of 1e-3 of the radius
        and more; divided by `thickness` it is the mean along the path.
    """
    rho = np.asarray(rho, float)
    lower, upper = _chord(rho, radius, slab)
    surface = _half_chord(rho, radius)

    def inside(r: Array) -> Array:
        return profile(np.minimum(r, radius))  # rounding may put a node just outside

    above = _from_midplane(inside, rho, upper, surface)
    return np.asarray(above - _from_midplane(inside, rho, lower, surface))


def shell_lengths(rho: Array, edges: Array, slab: Slab | None = None) -> Array:
    """Length of the beam's path in each of a set of concentric shells.

    Parameters
    ----------
    rho : ndarray, shape (n,)
        Distances from the axis [nm].
    edges : ndarray, shape (k + 1,)
        Shell boundaries [nm], ascending from 0.
    slab : (lower, upper), optional
        Planes of the section [nm].

    Returns
    -------
    ndarray, shape (n, k)
        Lengths [nm]. A product with the means over the shells is a line integral; the projected
        amount of a whole particle is then conserved exactly.
    """
    lower, upper = _chord(rho[:, None], edges[None, :], slab)
    return np.asarray(np.diff(upper - lower, axis=1))


@lru_cache(maxsize=32)
def _angles(count: int) -> tuple[Array, Array]:
    """Nodes and weights of a Gauss-Legendre rule on 0 to pi/2."""
    x, w = np.polynomial.legendre.leggauss(count)
    return 0.25 * np.pi * (x + 1.0), 0.25 * np.pi * w


def disc_nodes(radius: float, count: int) -> tuple[Array, Array]:
    """Radial nodes for integrals over a disc, dense at its rim where thickness falls steeply.

    Parameters
    ----------
    radius : float
        Radius of the disc [nm].
    count : int
        Number of nodes.

    Returns
    -------
    nodes, weights : ndarray, shape (count,)
        In nm: ``sum(weights * f(nodes))`` is the integral of f over the radius.
    """
    angle, weight = _angles(count)
    return radius * np.sin(angle), radius * np.cos(angle) * weight


def blur_matrix(r: Array, nodes: Array, weights: Array, sigma: float) -> Array:
    """Blur of circularly symmetric functions by a Gaussian, as a matrix.

    Parameters
    ----------
    r : ndarray, shape (m,)
        Distances from the axis at which the blurred function is wanted [nm].
    nodes, weights : ndarray, shape (n,)
        Radial quadrature of the function to blur [nm], see `disc_nodes`.
    sigma : float
        Standard deviation of the Gaussian [nm].

    Returns
    -------
    ndarray, shape (m, n)
        ``matrix @ f(nodes)`` is the blurred function at `r`.

    Notes
    -----
    The angular integral of a two-dimensional Gaussian gives the kernel
    ``(r'/s^2) exp(-(r^2 + r'^2)/(2 s^2)) I0(r r'/s^2)`` (G. N. Watson, A Treatise on the Theory of
    Bessel Functions, section 13.31); the exponentially scaled I0 keeps it finite.
    """
    difference = r[:, None] - nodes[None, :]
    near = np.abs(difference) < _REACH * sigma
    product = (r[:, None] * nodes[None, :])[near] / sigma**2
    kernel = np.zeros(difference.shape)
    kernel[near] = np.exp(-0.5 * (difference[near] / sigma) ** 2) * special.ive(0, product)
    return np.asarray(kernel * (nodes * weights / sigma**2))


def blurred_absorption(od: Array, blur: Blur, technique: str) -> Array:
    """What is missing of the intensity, or of the modulus for ptychography, after the blur.

    Parameters
    ----------
    od : ndarray, shape (n, ...)
        Optical density without blur.
    blur : callable
        Takes (n, k) to (o, k).
    technique : str
        "stxm" or "ptychography".

    Returns
    -------
    ndarray, shape (o, ...)
        0 to 1. That of bodies side by side adds up, because none of them absorbs where another is.
    """
    # Outside the body nothing is absorbed, so that only the absorbed part needs blurring.
    absorbed = -np.expm1(-absorption_power(technique) * od)
    blurred = blur(absorbed.reshape(absorbed.shape[0], -1))
    return np.asarray(blurred.reshape(-1, *od.shape[1:]))


def absorption_power(technique: str) -> float:
    """Exponent of the optical density in what the optics blur."""
    return 0.5 if technique == "ptychography" else 1.0


def observed_thicknesses(
    amounts: Array,
    spectra: Array,
    blur: Array | Blur,
    *,
    added: Array | None = None,
    technique: str = "stxm",
    photons: float | None = None,
    dark_counts: float = 0.0,
    stray: float = 0.0,
    max_od: float = np.inf,
    offset: bool = True,
) -> Array:
    """Thickness of every component as blurred optics and a linear spectral fit report it.

    Parameters
    ----------
    amounts : ndarray, shape (n, m, c)
        True projected thickness [nm] of c components at n radial nodes for m models.
    spectra : ndarray, shape (e, c)
        Absorption per nm of every component at the energies of the measurement.
    blur : ndarray, shape (o, n), or callable
        From `blur_matrix`; or what takes (n, k) to (o, k).
    added : ndarray, shape (o, e), optional
        Absorption of bodies beside this one, from `blurred_absorption`.
    technique : str
        "stxm" blurs the transmitted intensity, "ptychography" the modulus of the transmission.
    photons : float, optional
        Counts without sample; the fit is then that of counts with photon noise, by Fisher scoring.
        None: a fit of the optical density in which all energies count alike.
    dark_counts : float
        Dark counts, for the same variance.
    stray : float
        Fraction of the light that the fit, rightly or not, takes as never absorbed.
    max_od : float
        Energies past this optical density are left out of the fit of that place.
    offset : bool
        The fit has a constant background.

    Returns
    -------
    ndarray, shape (o, m, c)
        Apparent thickness [nm].
    """
    apply = blur if callable(blur) else blur.__matmul__
    absorbed = blurred_absorption(amounts @ spectra.T, apply, technique)
    if added is not None:
        absorbed = absorbed + added[:, None, :]
    passed = np.maximum(1.0 - absorbed, 1e-12) ** (1.0 / absorption_power(technique))
    columns = np.column_stack([spectra, np.ones(len(spectra))]) if offset else spectra
    sample = np.maximum(passed - stray, 0.05 * passed) / (1.0 - stray)
    recorded = -np.log(sample)
    weights: Array = np.ones(recorded.shape)
    if photons is not None:
        weights = sample**2 / (passed + dark_counts / photons)
    if np.isfinite(max_od):
        weights = np.where(recorded > max_od, 0.0, weights)
    solution = _solved(weights, weights * recorded, columns)
    if photons is not None:
        dark = dark_counts / photons + stray
        for _ in range(_SCORING_STEPS):
            model = np.exp(-np.clip(solution @ columns.T, -_HIGHEST_OD, _HIGHEST_OD))
            model *= 1.0 - stray
            share = np.where(weights > 0, model / (model + dark), 0.0)
            step = _solved(share * model, share * (model + stray - passed), columns)
            solution = solution + np.clip(step, -_LONGEST_STEP_NM, _LONGEST_STEP_NM)
    return np.asarray(solution[..., : spectra.shape[1]])


def _solved(weights: Array, target: Array, columns: Array) -> Array:
    """Weighted least squares at every place; `target` has the weights in it already."""
    width = columns.shape[1]
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(columns), -1)
    normal = (weights @ products).reshape(*weights.shape[:-1], width, width)
    # A ridge far below rounding of the result keeps a place without light from being singular.
    trace = np.trace(normal, axis1=-2, axis2=-1)[..., None, None]
    normal = normal + np.eye(width) * (1e-13 * trace + 1e-300)
    return np.asarray(np.linalg.solve(normal, (target @ columns)[..., None])[..., 0])
