"""Radial models of a particle, as a transmitted beam sees them.

`MODELS` is the list of models: each is a plain function ``(edges, depth) -> means`` that gives,
for concentric shells of a sphere of radius one, the mean of ``(c - c_initial) / (c_surface -
c_initial)`` at each penetration depth (a fraction of the radius). Adding a model is adding one
such function here and one test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectromap.radial import core_shell, diffusion

__all__ = ["MODELS", "core_shell", "diffusion"]

Array = NDArray[np.floating[Any]]

#: Name of every model and its function. The depth means ``sqrt(D t) / R`` for diffusion and the
#: thickness of the outer phase over R for every other model.
MODELS: dict[str, Callable[[Array, Array], Array]] = {
    "diffusion": diffusion.shell_means,
    "core-shell": core_shell.shell_means,
}
