"""Several scans of one field: brought to one grid, and repeats compared.

Scans at different edges share the thickness, so thickness is what they are registered by: a masked
normalised correlation finds the place whatever the offset, and weighted least squares then finds
it to a few hundredths of a pixel. Errors come from the scatter of what single parts of the field
say, because two thickness maps differ by more than noise.

A second scan at the same edge tells what the errors are worth and what the beam did.
"""

from __future__ import annotations

from spectromap.scans._dose import dose_map
from spectromap.scans._grid import on_grid
from spectromap.scans._registration import register_scan
from spectromap.scans._repeats import compare_repeats

__all__ = ["compare_repeats", "dose_map", "on_grid", "register_scan"]
