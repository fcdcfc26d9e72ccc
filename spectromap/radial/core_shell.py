"""Two-phase core-shell particle: a shell of constant composition around an untouched core."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["shell_means"]

Array = NDArray[np.floating[Any]]


def shell_means(edges: Array, depth: Array) -> Array:
    """Share of every concentric shell that belongs to the reduced phase.

    Parameters
    ----------
    edges : ndarray, shape (k + 1,)
        Shell boundaries as fractions of the radius, ascending from 0 to 1.
    depth : ndarray, shape (m,)
        Thickness of the reduced phase as a fraction of the radius; 1 and more fill the particle.

    Returns
    -------
    ndarray, shape (k, m)
        0 in the core, 1 in the reduced phase, the share by volume where the boundary cuts a shell.
    """
    core = np.clip(1.0 - np.asarray(depth, float), 0.0, 1.0)
    inner, outer = edges[:-1, None], edges[1:, None]
    untouched = np.clip(core, inner, outer) ** 3 - inner**3
    return np.asarray(1.0 - untouched / (outer**3 - inner**3))
