"""Radial models of a particle, as a transmitted beam sees them.

`MODELS` holds every model by its name; how to add one is told in `spectromap.radial.models`.
"""

from __future__ import annotations

from spectromap.radial import core_shell, diffusion, surface_exchange
from spectromap.radial.models import MODELS, Model

__all__ = ["MODELS", "Model", "core_shell", "diffusion", "surface_exchange"]
