"""Diffusion into a sphere whose surface exchanges with its surroundings at a finite rate.

The flux through the surface is ``k (cs - c)`` instead of ``c`` being held at ``cs``, so that two
lengths matter: the radius R and ``D / k``. Everything here is dimensionless: radii are fractions
of R, times are ``tau = D t / R**2``, concentrations ``(c - c0) / (cs - c0)``, and the exchange is
given by the Biot number ``L = k R / D`` or by its inverse, the exchange length over the radius.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from spectromap.radial import diffusion
from spectromap.schema import InputError

__all__ = ["concentration", "mean_uptake", "shell_means"]

Array = NDArray[np.floating[Any]]

#: Below this time the wave that enters at the surface has not come back from the centre (what it
#: brings back is below 1e-15), above it the terms of the sine series that are left out are.
_SWITCH = 0.03
_SINE_TERMS = 12
#: Radius below which a difference quotient is replaced by the derivative.
_SMALL_RADIUS = 1e-6
#: Below this ``(L - 1) sqrt(tau)`` quotients of small differences are replaced by sums.
_SMALL = 0.5
_SUM_NODES, _SUM_TERMS = 10, 40
#: Above this Biot number the surface is held, and its square overflows.
_HELD = 1e100


@lru_cache(maxsize=64)
def _roots(biot: float) -> Array:
    """First positive roots of ``beta cot(beta) + L - 1 = 0``, one between multiples of pi."""
    h = biot - 1.0

    def miss(beta: float, n: int) -> float:
        # With beta = A sin(phi) and h = A cos(phi) the equation is sin(beta + phi) = 0.
        return float(beta + np.arctan2(beta, h) - n * np.pi)

    # beta cot(beta) = 1 - 2 sum s / (k^2 pi^2 - s), s = beta^2, bounds the first root from below.
    first = min(np.pi * np.sqrt(biot / (3.5 + biot)), 3.0)
    lowest = [first, *(np.pi * np.arange(1, _SINE_TERMS))]
    return np.array(
        [
            optimize.brentq(miss, low, n * np.pi, args=(n,), xtol=1e-300, rtol=1e-15)
            for n, low in enumerate(lowest, start=1)
        ]
    )


def _sine_series(r: Array, tau: Array, biot: float) -> Array:
    """Long times; ``1 / sin(beta)`` is written out, as it becomes singular with growing L."""
    h = biot - 1.0
    total = np.ones(r.shape)
    for n, beta in enumerate(_roots(biot), start=1):
        size = 2.0 * biot * np.hypot(beta, h) / (beta**2 + biot * h)
        total += (-1.0) ** n * size * np.sinc(beta * r / np.pi) * np.exp(-(beta**2) * tau)
    return total


def _drop(a: Array, step: Array) -> Array:
    """``(erfcx(a) - erfcx(a + step)) / step``, for steps down to zero and below."""
    nodes, weights = np.polynomial.legendre.leggauss(_SUM_NODES)
    small = np.abs(step) < _SMALL
    result = np.empty(a.shape)
    a_large, large = a[~small], step[~small]
    result[~small] = (special.erfcx(a_large) - special.erfcx(a_large + large)) / large
    # The quotient is the mean of the derivative, erfcx'(z) = 2 z erfcx(z) - 2 / sqrt(pi).
    z = a[small] + 0.5 * (nodes[:, None] + 1.0) * step[small]
    slope = 2.0 / np.sqrt(np.pi) - 2.0 * z * special.erfcx(z)
    result[small] = 0.5 * weights @ slope
    return result


def _half_space(depth: Array, tau: Array, biot: float) -> Array:
    """What enters through a flat surface with the flux ``L - (L - 1) c``, at a depth.

    It is ``L / (L - 1) (erfc(a) - exp(h x + h^2 t) erfc(a + h sqrt(t)))``, a = x / (2 sqrt(t)).
    """
    root = np.sqrt(tau)
    a = depth / (2.0 * root)
    return np.asarray(biot * root * np.exp(-(a**2)) * _drop(a, (biot - 1.0) * root))


def _short_time(r: Array, tau: Array, biot: float) -> Array:
    """Short times: waves from the near and from the far side of the surface."""
    near_centre = r < _SMALL_RADIUS
    radius = np.where(near_centre, 1.0, r)
    waves = _half_space(1.0 - radius, tau, biot) - _half_space(1.0 + radius, tau, biot)
    # Minus the derivative of the wave at the centre.
    root = np.sqrt(tau)
    a = 0.5 / root
    slope = biot * np.exp(-(a**2)) * special.erfcx(a + (biot - 1.0) * root)
    return np.asarray(np.where(near_centre, 2.0 * slope, waves / radius))


def _check_biot(biot: float) -> None:
    """Refuse a Biot number that is no positive number."""
    if not biot > 0:
        raise InputError(
            f"{biot} is not a positive Biot number",
            where="biot",
            remedy="It is k R / D; infinity holds the surface at its final value.",
        )


def concentration(r: ArrayLike, tau: ArrayLike, biot: float) -> Array:
    """Concentration in a sphere, ``(c - c0) / (cs - c0)``.

    Parameters
    ----------
    r : array_like
        Distance from the centre as a fraction of the radius, 0 to 1.
    tau : array_like
        ``D t / R**2``, zero or more, broadcast against `r`.
    biot : float
        ``k R / D`` with the rate k of the exchange; infinity is `diffusion.concentration`.

    Returns
    -------
    ndarray
        0 (still the initial value) to 1 (in equilibrium with the surroundings), good to 1e-10 at
        every time for Biot numbers from 1e-3 up.

    Raises
    ------
    InputError
        A radius outside 0 to 1, a negative time, or a Biot number that is not positive.

    References
    ----------
    J. Crank, The Mathematics of Diffusion, 2nd ed. (Oxford, 1975), equations 6.40 to 6.42. The
    form for short times is the Laplace transform of the solution, ``L sinh(q r) / (r s (q cosh(q)
    + (L - 1) sinh(q)))`` with ``q = sqrt(s)``, to the lowest power of ``exp(-2 q)`` and inverted
    term by term (equation 3.35 for the half space).
    """
    _check_biot(biot)
    if biot > _HELD:
        return diffusion.concentration(r, tau)
    radius, time = np.broadcast_arrays(np.asarray(r, float), np.asarray(tau, float))
    if np.any((radius < 0) | (radius > 1 + 1e-12)):
        raise InputError("radii must lie between 0 and 1", where="r")
    _check_time(time)
    result = np.zeros(radius.shape)
    late = time >= _SWITCH
    result[late] = _sine_series(radius[late], time[late], biot)
    early = ~late & (time > np.finfo(float).tiny)
    result[early] = _short_time(radius[early], time[early], biot)
    return result


def _check_time(time: Array) -> None:
    """Refuse negative times."""
    if np.any(time < 0) or np.any(np.isnan(time)):
        raise InputError("times must be zero or more", where="tau")


def _early_uptake(tau: Array, biot: float) -> Array:
    """Integral of the flux ``3 L (1 - c)`` through the surface at short times."""
    root, h = np.sqrt(tau), biot - 1.0
    z = h * root
    small = np.abs(z) < _SMALL
    # The terms of erfcx(z) = sum (-z)^k / Gamma(k / 2 + 1) from the third power on.
    k = np.arange(3, 3 + _SUM_TERMS)
    terms = np.power.outer(np.where(small, z, 0.0), k - 3) * (-1.0) ** (k - 1)
    rest = np.sum(terms / special.gamma(0.5 * k + 1.0), axis=-1)
    by_sum = 3.0 * biot * tau - 3.0 * biot**2 * root**3 * rest
    if np.all(small):
        return np.asarray(by_sum)
    ratio = biot / h
    closed = 6.0 * ratio**2 * root / np.sqrt(np.pi) - 3.0 * ratio * tau
    closed += 3.0 * ratio**2 / h * (special.erfcx(np.maximum(z, 0.0)) - 1.0)
    return np.asarray(np.where(small, by_sum, closed))


def mean_uptake(tau: ArrayLike, biot: float) -> Array:
    """Volume mean of `concentration`: the fraction of the final uptake that has happened.

    Parameters
    ----------
    tau : array_like
        ``D t / R**2``, zero or more.
    biot : float
        ``k R / D``; infinity is `diffusion.mean_uptake`.

    Returns
    -------
    ndarray
        0 to 1, good to 1e-10 at every time for Biot numbers from 1e-3 up.

    Raises
    ------
    InputError
        A negative time or a Biot number that is not positive.

    References
    ----------
    J. Crank, The Mathematics of Diffusion, 2nd ed. (Oxford, 1975), equation 6.43. At short times
    the flux through the surface is integrated, ``1 - c(R)`` there being ``1 - L / (L - 1) (1 -
    erfcx((L - 1) sqrt(tau)))``.
    """
    _check_biot(biot)
    if biot > _HELD:
        return diffusion.mean_uptake(tau)
    time = np.asarray(tau, float)
    _check_time(time)
    square = _roots(biot) ** 2
    size = 6.0 * biot**2 / (square * (square + biot * (biot - 1.0)))
    late = 1.0 - np.exp(-np.multiply.outer(time, square)) @ size
    early = _early_uptake(np.minimum(time, _SWITCH), biot)
    return np.asarray(np.where(time >= _SWITCH, late, early))


def shell_means(edges: Array, depth: Array, exchange: float) -> Array:
    """Mean of the concentration over concentric shells, for several penetration depths.

    Parameters
    ----------
    edges : ndarray, shape (k + 1,)
        Shell boundaries as fractions of the radius, ascending from 0 to 1.
    depth : ndarray, shape (m,)
        ``sqrt(D t) / R``.
    exchange : float
        Exchange length over the radius, ``D / (k R)``, the inverse of the Biot number; 0 holds
        the surface at its final value.

    Returns
    -------
    ndarray, shape (k, m)
        Volume means of `concentration`.

    Raises
    ------
    InputError
        An exchange length that is negative or infinite.
    """
    if not 0 <= exchange < np.inf:
        raise InputError(f"{exchange} is not zero or a positive length", where="exchange")
    biot = 1.0 / exchange if exchange > 0 else np.inf
    return diffusion.shell_average(lambda r: concentration(r, np.square(depth), biot), edges)
