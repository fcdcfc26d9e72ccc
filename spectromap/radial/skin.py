"""Diffusion into a sphere whose outermost layer has turned into another phase.

A thin skin (of Mn2+, on a layered oxide) replaces what was there, whatever its concentration: in
it there is neither the initial nor the surface state. The concentration is still held at the
surface of the particle, outside of the skin. Lengths are fractions of the radius.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectromap.radial import diffusion
from spectromap.schema import InputError

__all__ = ["shell_weights"]

Array = NDArray[np.floating[Any]]


def shell_weights(edges: Array, depth: Array, skin: float) -> tuple[Array, Array]:
    """Shares of the initial and of the surface state in concentric shells.

    Parameters
    ----------
    edges : ndarray, shape (k + 1,)
        Shell boundaries as fractions of the radius, ascending from 0 to 1.
    depth : ndarray, shape (m,)
        ``sqrt(D t) / R``.
    skin : float
        Thickness of the skin over the radius, 0 to less than 1.

    Returns
    -------
    initial, surface : ndarray, shape (k, m)
        Means over the shells by volume; what is missing to one is skin.

    Raises
    ------
    InputError
        A skin that is negative or fills the particle.
    """
    if not 0 <= skin < 1:
        raise InputError(f"{skin} is not a thickness between 0 and 1", where="skin")
    below = edges[:-1] < 1.0 - skin
    # A shell that the boundary of the skin cuts counts up to there.
    inner = np.append(edges[:-1][below], min(float(edges[-1]), 1.0 - skin))
    diffused = diffusion.shell_means(inner, depth)
    kept = np.diff(inner**3) / np.diff(edges**3)[below]
    initial, surface = np.zeros((2, below.size, np.size(depth)))
    initial[below] = kept[:, None] * (1.0 - diffused)
    surface[below] = kept[:, None] * diffused
    return initial, surface
