"""Single-phase diffusion into a sphere whose surface is held at a constant concentration.

Everything here is dimensionless: radii are fractions of the sphere's radius R, times are
``tau = D t / R**2`` and concentrations are ``(c - c0) / (cs - c0)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from spectromap.schema import InputError

__all__ = ["concentration", "mean_uptake", "shell_average", "shell_means"]

Array = NDArray[np.floating[Any]]

#: Below this time the error-function series is used, above it the sine series; at the switch the
#: first term left out of either is below 1e-19.
_SWITCH = 0.1
_SINE_TERMS = 8
_ERFC_TERMS = 4
#: Radius below which the difference of two error functions is replaced by its expansion.
_SMALL_RADIUS = 1e-4
#: Nodes for the mean over one shell.
_SHELL_NODES = 4


def _long_time(r: Array, tau: Array) -> Array:
    """Sine series; ``sin(n pi r) / (pi r)`` written as ``n sinc(n r)`` has no pole at r = 0."""
    total = np.ones(r.shape)
    for n in range(1, _SINE_TERMS + 1):
        total += 2.0 * (-1.0) ** n * np.sinc(n * r) * np.exp(-(n**2) * np.pi**2 * tau)
    return total


def _short_time(r: Array, tau: Array) -> Array:
    """Error-function series, with its expansion to second order in r at the centre."""
    width = 2.0 * np.sqrt(tau)
    near_centre = r < _SMALL_RADIUS
    radius = np.where(near_centre, 1.0, r)
    total = np.zeros(r.shape)
    for n in range(_ERFC_TERMS):
        odd = 2 * n + 1
        away = special.erfc((odd - radius) / width) - special.erfc((odd + radius) / width)
        a, x = odd / width, r / width
        bell = 4.0 / np.sqrt(np.pi) / width * np.exp(-(a**2))
        # a**2 overflows to inf only where the exponential is already zero.
        centre = bell * (1.0 + np.where(bell > 0, x**2 * (2.0 * a**2 - 1.0) / 3.0, 0.0))
        total += np.where(near_centre, centre, away / radius)
    return total


def concentration(r: ArrayLike, tau: ArrayLike) -> Array:
    """Concentration in a sphere, ``(c - c0) / (cs - c0)``.

    Parameters
    ----------
    r : array_like
        Distance from the centre as a fraction of the radius, 0 to 1.
    tau : array_like
        ``D t / R**2``, zero or more, broadcast against `r`.

    Returns
    -------
    ndarray
        0 (still the initial value) to 1 (the surface value), good to 1e-12 at every time.

    Raises
    ------
    InputError
        A radius outside 0 to 1 or a negative time.

    References
    ----------
    J. Crank, The Mathematics of Diffusion, 2nd ed. (Oxford, 1975), equations 6.18 (sine series)
    and 6.20 (error functions).
    """
    radius, time = np.broadcast_arrays(np.asarray(r, float), np.asarray(tau, float))
    if np.any((radius < 0) | (radius > 1 + 1e-12)):
        raise InputError("radii must lie between 0 and 1", where="r")
    if np.any(time < 0) or np.any(np.isnan(time)):
        raise InputError("times must be zero or more", where="tau")
    result = np.empty(radius.shape)
    late = time >= _SWITCH
    result[late] = _long_time(radius[late], time[late])
    start = time <= np.finfo(float).tiny
    early = ~late & ~start
    result[early] = _short_time(radius[early], time[early])
    result[start] = (radius[start] >= 1.0).astype(float)
    return result


def mean_uptake(tau: ArrayLike) -> Array:
    """Volume mean of `concentration`: the fraction of the final uptake that has happened.

    Parameters
    ----------
    tau : array_like
        ``D t / R**2``, zero or more.

    Returns
    -------
    ndarray
        0 to 1, good to 1e-12 at every time.

    Raises
    ------
    InputError
        A negative time.

    References
    ----------
    J. Crank, The Mathematics of Diffusion, 2nd ed. (Oxford, 1975), equations 6.20 and 6.21.
    """
    time = np.asarray(tau, float)
    if np.any(time < 0) or np.any(np.isnan(time)):
        raise InputError("times must be zero or more", where="tau")
    n = np.arange(1, _SINE_TERMS + 1).reshape(-1, *([1] * time.ndim))
    late = 1.0 - 6.0 / np.pi**2 * np.sum(np.exp(-(n**2) * np.pi**2 * time) / n**2, axis=0)
    root = np.sqrt(np.minimum(time, _SWITCH))
    x = n / np.where(root > 0, root, 1.0)
    ierfc = np.exp(-(x**2)) / np.sqrt(np.pi) - x * special.erfc(x)
    early = 6.0 * root * (1.0 / np.sqrt(np.pi) + 2.0 * np.sum(ierfc, axis=0)) - 3.0 * root**2
    return np.asarray(np.where(time >= _SWITCH, late, early))


def shell_average(values_at: Callable[[Array], Array], edges: Array) -> Array:
    """Means by volume over concentric shells of what is known at every radius.

    Parameters
    ----------
    values_at : callable
        Takes radii (k, j, 1) to values (k, j, m).
    edges : ndarray, shape (k + 1,)
        Shell boundaries as fractions of the radius, ascending.

    Returns
    -------
    ndarray, shape (k, m)
    """
    nodes, weights = np.polynomial.legendre.leggauss(_SHELL_NODES)
    middle, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    r = middle[:, None] + half[:, None] * nodes
    share = weights * r**2
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("kj,kjm->km", share, values_at(r[:, :, None])))


def shell_means(edges: Array, depth: Array) -> Array:
    """Mean of the concentration over concentric shells, for several penetration depths.

    Parameters
    ----------
    edges : ndarray, shape (k + 1,)
        Shell boundaries as fractions of the radius, ascending from 0 to 1.
    depth : ndarray, shape (m,)
        ``sqrt(D t) / R``.

    Returns
    -------
    ndarray, shape (k, m)
        Volume means of `concentration`.
    """
    return shell_average(lambda r: concentration(r, np.square(depth)), edges)
