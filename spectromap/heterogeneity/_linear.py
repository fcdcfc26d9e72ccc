"""One coefficient of a linear regression on clustered particles, its error and its freedom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.floating[Any]]
Index = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

#: Relative size below which a direction of the design counts as absent.
_TINY = 1e-9


@dataclass(frozen=True)
class Coefficient:
    """A coefficient with its variance and Satterthwaite's degrees of freedom.

    `shared` is the part of the variance that primaries of one agglomerate have in common, so that
    more primaries of the same agglomerates do not lower it.
    """

    value: float = float("nan")
    variance: float = float("nan")
    freedom: float = float("nan")
    shared: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether an interval can be given."""
        return bool(np.isfinite(self.value) and self.variance > 0)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Student's interval; NaN where there is none."""
        if not self.known:
            return float("nan"), float("nan")
        half = half_width(self.variance, self.freedom, confidence)
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the coefficient is zero."""
        if not self.known:
            return float("nan")
        return float(2.0 * special.stdtr(self.freedom, -abs(self.value) / np.sqrt(self.variance)))


def half_width(variance: float, freedom: float, confidence: float) -> float:
    """Half of Student's interval."""
    return float(special.stdtrit(freedom, 0.5 + 0.5 * confidence) * np.sqrt(variance))


@dataclass
class _Design:
    """A regression reduced to what its first coefficient needs.

    `basis` spans the columns (n, k), the estimate is ``weights @ values``.
    """

    basis: Array
    weights: Array

    def remove(self, values: Array) -> Array:
        """What the regression leaves of values, or of the columns of a matrix."""
        return np.asarray(values - self.basis @ (self.basis.T @ values))


def _spanned(columns: Array) -> Array:
    """Orthonormal basis of the columns; columns that repeat others add nothing."""
    scale = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(scale > 0, scale, 1.0)
    left, size, _ = np.linalg.svd(scaled, full_matrices=False)
    return np.asarray(left[:, size > _TINY * max(size.max(initial=0.0), 1e-300)])


def _design(columns: Array) -> _Design | None:
    """The design, or None where the other columns take the place of the first."""
    wanted, others = columns[:, 0], _spanned(columns[:, 1:])
    own = wanted - others @ (others.T @ wanted)
    square = float(own @ own)
    if square <= 1e-7 * float(wanted @ wanted):
        return None
    return _Design(np.column_stack([others, own / np.sqrt(square)]), own / square)


def _adjusted(design: _Design, unit: Index, count: int) -> Array:
    """Weights stretched to what the residuals of every unit have lost to the fit (CR2).

    ``(I - H_gg)^(-1/2) w_g`` for every unit g, with H the projection on the design. A direction
    that the fit takes whole, as an effect of that unit, stays without residual.
    """
    stretched = design.weights.copy()
    single = np.bincount(unit, minlength=count)[unit] == 1
    left = np.maximum(1.0 - np.sum(design.basis[single] ** 2, axis=1), 0.0)
    stretched[single] *= np.where(left > _TINY, 1.0 / np.sqrt(np.maximum(left, _TINY)), 0.0)
    for number in np.unique(unit[~single]):
        members = np.flatnonzero(unit == number)
        vectors, size, _ = np.linalg.svd(design.basis[members], full_matrices=False)
        left = np.maximum(1.0 - size**2, 0.0)
        factor = np.where(left > _TINY, 1.0 / np.sqrt(np.maximum(left, _TINY)), 0.0)
        along = vectors.T @ design.weights[members]
        stretched[members] += vectors @ ((factor - 1.0) * along)
    return stretched


def _summed(values: Array, unit: Index, count: int) -> Array:
    """Sum of rows over units; rows with unit -1 belong to none."""
    total = np.zeros((count, *values.shape[1:]))
    here = unit >= 0
    np.add.at(total, unit[here], values[here])
    return total


def _components(design: _Design, residual: Array, block: Index, count: int) -> tuple[float, float]:
    """Variance of single particles and of the effects that a block shares, by moments.

    The sums of squares of the residuals and of their sums over blocks are set to what they are
    on average: quadratic estimates of S. R. Searle, Variance Components (1992), chapter 11.
    """
    n, k = design.basis.shape
    sizes = np.bincount(block[block >= 0], minlength=count).astype(float)
    lost = _summed(design.basis, block, count)
    left = np.diag(sizes) - lost @ lost.T
    single = float(residual @ residual)
    shared = float(np.sum(_summed(residual, block, count) ** 2))
    matrix = np.array([[n - k, np.trace(left)], [np.trace(left), np.sum(left**2)]])
    if count == 0 or np.linalg.matrix_rank(matrix, hermitian=True) < 2:
        return single / max(n - k, 1), 0.0
    own, between = np.linalg.solve(matrix, [single, shared])
    if between <= 0:
        return single / max(n - k, 1), 0.0
    return max(float(own), 0.0), float(between)


def _cautious(own: float, between: float, block: Index, count: int) -> tuple[float, float]:
    """Variance components with what blocks share raised by 0.7 of its standard error.

    The variance of the means of G blocks is known to sqrt(2 / (G - 1)) of itself. Half as much
    covers too little with three or four agglomerates of unequal size (92.9 %), and all of it too
    much with three that do not differ (97.5 %).
    """
    if count < 2:
        return own, between
    members = float(np.sum(block >= 0)) / count
    return own, between + (between + own / members) / np.sqrt(count - 1)


def coefficient(columns: Array, values: Array, unit: Index, block: Index) -> Coefficient:
    """First coefficient of a regression by least squares, every particle counting once.

    Parameters
    ----------
    columns : ndarray, shape (n, k)
        Design; the others may repeat each other, but must not make up the first.
    values : ndarray, shape (n,)
        What is explained.
    unit : ndarray of int, shape (n,)
        Number of the unit of every particle, 0 up: units are independent of each other.
    block : ndarray of int, shape (n,)
        Number of the agglomerate of every particle, 0 up, where units are agglomerates; -1: none.

    Returns
    -------
    Coefficient
        NaN where the coefficient cannot be told.

    Notes
    -----
    The variance is the bias-reduced one that adds up squares over units (CR2), and its degrees
    of freedom are Satterthwaite's: R. M. Bell and D. F. McCaffrey, Survey Methodology 28, 169
    (2002). Both are taken under the variance components of the residuals instead of independent
    particles (G. W. Imbens and M. Kolesar, Rev. Econ. Stat. 98, 701 (2016)), so that an
    agglomerate of many primaries does not pass for many agglomerates. Three agglomerates often
    look as if they did not differ when they do: `_cautious` keeps the intervals honest there.
    """
    design = _design(columns)
    if design is None or columns.shape[0] <= design.basis.shape[1]:
        return Coefficient()
    count, blocks = int(unit.max()) + 1, int(block.max()) + 1
    residual = design.remove(values)
    stretched = _adjusted(design, unit, count)
    raw = float(np.sum(_summed(stretched * residual, unit, count) ** 2))
    own, between = _cautious(*_components(design, residual, block, blocks), block, blocks)
    expected, squared = _expectation(
        design, stretched, (unit, count), (block, blocks), own, between
    )
    shared = between * float(np.sum(_summed(design.weights, block, blocks) ** 2))
    truth = own * float(design.weights @ design.weights) + shared
    value = float(design.weights @ values)
    if expected <= 0 or truth <= 0:
        return Coefficient(value)
    variance = raw * truth / expected
    return Coefficient(value, variance, expected**2 / squared, variance * shared / truth)


def _expectation(
    design: _Design,
    stretched: Array,
    units: tuple[Index, int],
    blocks: tuple[Index, int],
    own: float,
    between: float,
) -> tuple[float, float]:
    """Trace of the matrix whose quadratic form the variance is, and of its square.

    With p_g what unit g takes from the values, the matrix is p_g' Omega p_h: diagonal, less what
    the fit removes, plus what blocks share; kept as a diagonal and a product of low rank.
    """
    unit, count = units
    block, number = blocks
    diagonal = own * _summed(stretched**2, unit, count)
    taken = _summed(stretched[:, None] * design.basis, unit, count)
    shares = np.zeros((number, count))
    here = block >= 0
    np.add.at(shares, (block[here], unit[here]), stretched[here])
    shares -= _summed(design.basis, block, number) @ taken.T
    factor = np.column_stack([taken, shares.T])
    signs = np.concatenate([np.full(taken.shape[1], -own), np.full(number, between)])
    cross = signs[:, None] * (factor.T @ factor)
    spread = np.sum(factor**2 * signs, axis=1)
    trace = float(np.sum(diagonal) + np.trace(cross))
    square = float(np.sum(diagonal**2) + 2 * np.sum(diagonal * spread) + np.sum(cross * cross.T))
    return trace, square
