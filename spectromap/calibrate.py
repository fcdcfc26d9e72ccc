"""Energy calibration: the rigid shift between the stack's energies and the references'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import LOG, component_names

__all__ = ["energy_shift"]

Array = NDArray[np.float64]

#: Mean spectra thicker than this carry saturation, not energy, in their shape.
MAX_OD = 2.0


def energy_shift(
    od: Array,
    od_errors: Array,
    references: Callable[[float], xr.Dataset],
    *,
    enabled: bool = True,
    max_shift_eV: float = 1.5,
) -> tuple[float, float]:
    """Shift of the energy axis at which the references describe a mean spectrum best.

    Parameters
    ----------
    od, od_errors : ndarray, shape (n_energy,)
        Mean optical density of absorbing pixels and its standard error; NaN is left out.
    references : callable
        From a shift in eV (true minus recorded energy) to the reference set on the stack's
        energies.
    enabled : bool
        False takes the recorded energies as true.
    max_shift_eV : float
        Largest shift looked for.

    Returns
    -------
    shift, error : float
        True minus recorded energy and its standard error, in eV, scaled by the misfit where the
        references do not describe the spectrum; ``(0, nan)`` where the data cannot fix it.
    """
    good = np.isfinite(od) & np.isfinite(od_errors) & (od_errors > 0) & (od < MAX_OD)
    count = len(component_names(references(0.0)))
    if not enabled or good.sum() < count + 4:
        return 0.0, float("nan")
    weights = 1.0 / od_errors[good] ** 2
    grid = np.arange(-max_shift_eV, max_shift_eV + 1e-9, 0.1)
    misfits = [_misfit(od[good], weights, references(s), good)[0] for s in grid]
    start = float(grid[int(np.argmin(misfits))])
    if abs(start) > max_shift_eV - 0.15:
        LOG.warning(
            "the energy axis could not be calibrated: the references fit best at the end of the"
            " range of %.1f eV; energies are taken as recorded", max_shift_eV
        )  # fmt: skip
        return 0.0, float("nan")
    shift, error = start, float("nan")
    for _ in range(8):
        chi2, slope, curvature = _misfit(od[good], weights, references(shift), good)
        step = float(np.clip(slope / curvature, -0.1, 0.1)) if curvature > 0 else 0.0
        shift += step
        degrees = max(int(good.sum()) - count - 2, 1)
        error = float(np.sqrt(max(chi2 / degrees, 1.0) / curvature)) if curvature > 0 else np.nan
        if abs(step) < 1e-5:
            break
    if not np.isfinite(error) or error > 0.3:
        LOG.warning("the energy axis cannot be calibrated on this stack (error above 0.3 eV)")
        return 0.0, float("nan")
    return shift, error


def _misfit(
    od: Array, weights: Array, references: xr.Dataset, good: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Chi-squared of the linear fit, its half-gradient and curvature by the shift."""
    names = component_names(references)
    columns: list[Any] = [references[n].values[good] for n in names]
    design = np.column_stack([*columns, np.ones(od.size)])
    root = np.sqrt(weights)[:, None]
    basis, _ = np.linalg.qr(design * root)
    target = od * root[:, 0]
    residual = target - basis @ (basis.T @ target)
    parameters, *_ = np.linalg.lstsq(design * root, target, rcond=None)
    slopes = np.column_stack([references[f"{n}_slope"].values[good] for n in names])
    direction = (slopes @ parameters[: len(names)]) * root[:, 0]
    direction = direction - basis @ (basis.T @ direction)  # what the linear part cannot absorb
    return (
        float(residual @ residual),
        float(direction @ residual),
        float(direction @ direction),
    )
