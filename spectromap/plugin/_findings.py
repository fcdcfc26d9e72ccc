"""What a step found, in a line or two, by the same words and numbers as the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from spectromap.report import format_value, pooled_lines, summary_cards

__all__ = ["finding"]

Groups = Mapping[str, xr.Dataset]


def finding(step: str, stack: xr.DataArray, groups: Groups, fraction: str) -> str:
    """What a step found.

    Parameters
    ----------
    step : str
        One of `spectromap.pipeline.STEPS`.
    stack : DataArray, dims (energy, y, x)
        The stack.
    groups : mapping of str to Dataset
        As `spectromap.pipeline.Analysis.groups` gives them after the step.
    fraction : str
        The mapped component.

    Returns
    -------
    str
        Lines; empty where there is nothing to say.
    """
    if step == "data":
        return _of_data(stack)
    texts: dict[str, Callable[[Groups], list[str]]] = {
        "align": _of_shifts,
        "i0": _of_open_area,
        "models": _of_models,
        "heterogeneity": _of_contrasts,
    }
    lines = texts[step](groups) if step in texts else []
    wanted = {
        "energy": ("energy",),
        "composition": ("fraction", "thickness", "fit"),
        "particles": ("particles",),
        "heterogeneity": ("oxygen", *(f"repeat {number}" for number in range(9))),
    }.get(step, ())
    cards = summary_cards(groups, fraction) if wanted else {}
    for card in (cards[name] for name in wanted if name in cards):
        notes = f" ({'; '.join(card['notes'])})" if card["notes"] else ""
        lines.append(f"{card['label']}: {card['value']}{notes}")
    return "\n".join(lines)


def _of_data(stack: xr.DataArray) -> str:
    """Size of the stack."""
    frames, rows, columns = stack.shape
    energy = stack.energy.values
    size = f"{frames} frames of {rows} x {columns} pixels"
    return f"{size}, {energy[0]:.2f} to {energy[-1]:.2f} eV"


def _of_shifts(groups: Groups) -> list[str]:
    """Largest shift, typical error, flagged frames."""
    shifts = groups["shifts"]
    flagged = shifts["flagged"].values
    length = np.hypot(shifts["shift_y"].values, shifts["shift_x"].values)[~flagged]
    errors = np.hypot(shifts["shift_y_errors"].values, shifts["shift_x_errors"].values)[~flagged]
    lines = []
    if length.size:
        error = float(np.nanmedian(errors)) if np.isfinite(errors).any() else np.nan
        typical = f", median error {format_value(error, digits=2)} nm" if error > 0 else ""
        lines.append(f"Largest shift {format_value(float(length.max()))} nm{typical}")
    if flagged.any():
        energies = ", ".join(f"{energy:.2f}" for energy in shifts["energy"].values[flagged][:8])
        lines.append(f"{int(flagged.sum())} frames left out: {energies} eV")
    return lines


def _of_open_area(groups: Groups) -> list[str]:
    """How large the open area is and what it says."""
    i0 = groups["i0"]
    share = float(i0["open_area"].mean())
    level = float(np.nanmedian(i0["i0"].values))
    area = f"Open area {100 * share:.3g} % of the field" if share else "I0 measured apart"
    return [f"{area}; median I0 {format_value(level)}; gain {format_value(i0.attrs['gain'])}"]


def _of_models(groups: Groups) -> list[str]:
    """The verdict, and what it rests on."""
    if "pooled" not in groups:
        return ["No particles, no profiles."]
    pooled = groups["pooled"]
    return [f"Verdict: {pooled['verdict'].item()}", *pooled_lines(pooled)]


def _of_contrasts(groups: Groups) -> list[str]:
    """Spread between particles, and the contrasts that are significant."""
    if "heterogeneity" not in groups:
        return ["No particles, no statistics."]
    found = groups["heterogeneity"]
    if "contrast" not in found.coords:
        return []
    lines = []
    for name in found["contrast"].values:
        one = found.sel(contrast=name)
        value, low, high = (float(one[key]) for key in ("difference", "low", "high"))
        if np.isfinite(value):
            span = f"{format_value(low)} to {format_value(high)}"
            lines.append(f"{str(name).replace('_', ' ')}: {format_value(value)} ({span})")
    return lines
