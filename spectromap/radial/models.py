"""The radial models: what each makes of a sphere, by name.

A model says how much of the initial and of the surface state there is in concentric shells of a
sphere of radius one. Everything after that (projection, blur, spectral fit, the search for the
best depth and fractions, the verdict) is the same for all, and all of it is linear in the two
fractions.

To add a model, write one function ``(edges, depth, extra) -> (initial, surface)``::

    def frozen_core(edges, depth, extra):
        u = np.where(edges[:-1, None] < extra, 0.0, diffusion.shell_means(edges, depth))
        return 1.0 - u, u

    MODELS["frozen core"] = Model(
        frozen_core, depth="diffusion_length", extra="core_radius", extras=(0.3, 0.5, 0.7)
    )

and a test of it against a truth that is known otherwise. ``edges`` (k + 1,) are the boundaries of
the shells, ascending from 0 to 1, ``depth`` (m,) how far the change has come, ``extra`` one more
parameter; all are fractions of the radius. ``initial`` and ``surface`` (k, m) are means by
volume. They sum to one, or to less where neither state is present. A model with nothing further
to fit ignores ``extra``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spectromap.radial import body, core_shell, diffusion, skin, surface_exchange

__all__ = ["MODELS", "Model"]

Array = NDArray[np.floating[Any]]
Weights = tuple[Array, Array]

#: Layers of even depth that a body is taken apart into, finer towards the surface.
_LAYERS = 40


@dataclass(frozen=True)
class Model:
    """A radial model.

    Parameters
    ----------
    shells : callable
        ``(edges, depth, extra) -> (initial, surface)``, see the module.
    depth : {"diffusion_length", "shell_thickness"}
        What the depth is: ``sqrt(D t)`` or the thickness of the outer phase, over R.
    extra : str
        What the further parameter is: "" for none, "exchange_length" (``D / k``),
        "skin_thickness"; over R here, in nm in the result.
    extras : tuple of float
        The values of it that are tried; one value for a model without.
    solid : callable, optional
        ``(solid, depths, extra) -> (initial, surface)``: thickness [nm] of the initial and of the
        surface state along the beam, (m, ny, nx), for a `spectromap.radial.body.Solid`, with
        depths and extra in nm. Without it a body of any shape has in its layers of even depth
        what a sphere has in the shells of the same volume.
    """

    shells: Callable[[Array, Array, float], Weights]
    depth: Literal["diffusion_length", "shell_thickness"]
    extra: str = ""
    extras: tuple[float, ...] = (0.0,)
    solid: Callable[[body.Solid, Array, float], Weights] | None = None

    def through(self, solid: body.Solid, depths: Array, extra: float) -> Weights:
        """Thickness of both states in a body of any shape, depths and extra in nm."""
        if self.solid is not None:
            return self.solid(solid, depths, extra)
        level = np.sort(solid.level[solid.level > 0])
        below = np.linspace(0.0, 1.0, _LAYERS + 1)[1:] ** 2 * level[-1]
        layers = np.diff(body.shell(solid, below), axis=0, prepend=0.0)
        inside = 1.0 - np.searchsorted(level, below[:-1]) / level.size
        edges = np.cbrt(np.concatenate([[1.0], inside, [0.0]]))[::-1]
        initial, surface = self.shells(edges, depths / solid.radius, extra / solid.radius)
        return (
            np.tensordot(initial[::-1].T, layers, 1),
            np.tensordot(surface[::-1].T, layers, 1),
        )


def _diffused(solid: body.Solid, depths: Array, extra: float) -> Weights:
    changed = body.progress(solid, depths)
    return solid.thickness - changed, changed


def _shelled(solid: body.Solid, depths: Array, extra: float) -> Weights:
    changed = body.shell(solid, depths)
    return solid.thickness - changed, changed


def _exchanged(solid: body.Solid, depths: Array, extra: float) -> Weights:
    changed = body.progress(solid, depths, exchange_nm=extra)
    return solid.thickness - changed, changed


def _skinned(solid: body.Solid, depths: Array, extra: float) -> Weights:
    changed = body.progress(solid, depths)
    hidden = body.shell(solid, np.array([extra]))
    # The skin is thin beside the front, and there the change is complete.
    kept = np.maximum(changed - hidden, 0.0)
    return np.maximum(solid.thickness - hidden - kept, 0.0), kept


def _diffusion(edges: Array, depth: Array, extra: float) -> Weights:
    changed = diffusion.shell_means(edges, depth)
    return 1.0 - changed, changed


def _core_shell(edges: Array, depth: Array, extra: float) -> Weights:
    changed = core_shell.shell_means(edges, depth)
    return 1.0 - changed, changed


def _surface_exchange(edges: Array, depth: Array, extra: float) -> Weights:
    changed = surface_exchange.shell_means(edges, depth, extra)
    return 1.0 - changed, changed


#: Every model by its name.
MODELS: dict[str, Model] = {
    "diffusion": Model(_diffusion, depth="diffusion_length", solid=_diffused),
    "core-shell": Model(_core_shell, depth="shell_thickness", solid=_shelled),
    # With depth and fractions free, profiles between these and past either end are within half a
    # per cent of the contrast of one of them: a longer length only asks for more contrast.
    "surface-exchange": Model(
        _surface_exchange,
        depth="diffusion_length",
        extra="exchange_length",
        extras=(0.03, 0.1, 0.3, 1.0, 3.0),
        solid=_exchanged,
    ),
    # From half a nanometre on a particle of 100 nm to 5 nm.
    "diffusion-skin": Model(
        skin.shell_weights,
        depth="diffusion_length",
        extra="skin_thickness",
        extras=(0.005, 0.01, 0.015, 0.02, 0.03, 0.05),
        solid=_skinned,
    ),
}
