"""Figures along the energy: mean spectrum, references, I0, shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.figures._canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SIGMA,
    WIDTH_IN,
    component_label,
    draw_points,
    errors_of,
    group_of,
    new_figure,
    numbers_of,
    styled,
    units_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["i0_figure", "mean_spectrum", "shifts_figure"]


@styled
def mean_spectrum(tree: xr.DataTree) -> Figure | None:
    """Mean optical density of the particles with its fit, the residual, and the references.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no mean spectrum.
    """
    spectra = group_of(tree, "spectra")
    if spectra is None or "mean_od" not in spectra:
        return None
    references = [str(n) for n in spectra.data_vars if str(n).startswith("reference_")]
    heights = [3.0, 1.1, 2.0] if references else [3.0, 1.1]
    figure = new_figure(WIDTH_IN, 1.1 * sum(heights) * 0.82)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    axes = panels[:, 0]
    energy = spectra["energy"].values
    mean, errors = numbers_of(spectra, "mean_od"), errors_of(spectra, "mean_od")
    draw_points(axes[0], energy, mean, errors, label=f"mean of absorbing pixels (±1{SIGMA})")
    if "mean_fit" in spectra:
        fit = numbers_of(spectra, "mean_fit")
        axes[0].plot(energy, fit, color=RED, label="fit", zorder=3)
        draw_points(axes[1], energy, mean - fit, errors)
    axes[0].set_ylabel("optical density")
    axes[0].legend(loc="best")
    axes[1].axhline(0, color=RED, linewidth=0.8)
    axes[1].set_ylabel("residual")
    if references:
        _draw_references(axes[2], spectra, references)
    axes[-1].set_xlabel("photon energy [eV]")
    figure.align_ylabels(list(axes))
    return figure


def _draw_references(axes: Axes, spectra: xr.Dataset, names: Sequence[str]) -> None:
    """The reference spectra as the fit used them."""
    lines = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":")]
    for index, name in enumerate(names):
        colour, line = lines[index % len(lines)]
        label = component_label(name.removeprefix("reference_"))
        axes.plot(spectra["energy"], spectra[name], color=colour, linestyle=line, label=label)
    axes.set_ylabel(f"reference{units_of(spectra[names[0]])}")
    axes.legend(loc="best", ncols=2 if len(names) > 2 else 1)


@styled
def i0_figure(tree: xr.DataTree) -> Figure | None:
    """Incident intensity against energy with its 1 sigma error.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no I0.
    """
    spectra = group_of(tree, "spectra")
    if spectra is None or "i0" not in spectra:
        return None
    figure = new_figure(WIDTH_IN, 2.6)
    axes = figure.add_subplot()
    energy, i0 = spectra["energy"].values, numbers_of(spectra, "i0")
    errors = np.nan_to_num(errors_of(spectra, "i0"))
    axes.fill_between(energy, i0 - errors, i0 + errors, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(energy, i0, color=BLUE, marker="o", markersize=2.5, linewidth=1.0)
    axes.set_xlabel("photon energy [eV]")
    axes.set_ylabel(f"I0{units_of(spectra['i0'])}")
    return figure


@styled
def shifts_figure(tree: xr.DataTree) -> Figure | None:
    """Shift of every frame in y and x with its error, and the confidence of the registration.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no shifts.
    """
    shifts = group_of(tree, "shifts")
    if shifts is None or "shift_y" not in shifts:
        return None
    figure = new_figure(WIDTH_IN, 3.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    energy = shifts["energy"].values
    flagged = np.nan_to_num(numbers_of(shifts, "flagged")) > 0
    for name, colour in (("y", BLUE), ("x", ORANGE)):
        values, errors = (
            numbers_of(shifts, f"shift_{name}"),
            numbers_of(shifts, f"shift_{name}_errors"),
        )
        draw_points(
            upper, energy[~flagged], values[~flagged], errors[~flagged], color=colour, label=name
        )
        upper.plot(energy[flagged], values[flagged], "x", color=colour, markersize=6)
    for axes in (upper, lower):
        for position in energy[flagged]:
            axes.axvline(position, color=RED, alpha=0.25, linewidth=3, zorder=0)
    upper.axhline(0, color=GREY, linewidth=0.6)
    _limit_shifts(upper, shifts, flagged)
    upper.set_ylabel(f"shift [nm] (±1{SIGMA})")
    title = f"{flagged.sum()} of {energy.size} frames flagged (red)" if flagged.any() else ""
    upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="along")
    upper.set_title(title)
    lower.plot(energy, numbers_of(shifts, "confidence"), color=INK, linewidth=1.0)
    lower.set_ylim(0, 1.05)
    lower.set_ylabel("confidence")
    lower.set_xlabel("photon energy [eV]")
    figure.align_ylabels([upper, lower])
    return figure


def _limit_shifts(axes: Axes, shifts: xr.Dataset, flagged: NDArray[np.bool_]) -> None:
    """Limits from the frames that are kept: a failed frame may lie anywhere."""
    kept = np.concatenate([numbers_of(shifts, n)[~flagged] for n in ("shift_y", "shift_x")])
    kept = kept[np.isfinite(kept)]
    if kept.size:
        margin = 0.12 * float(np.ptp(kept)) or 1.0
        axes.set_ylim(float(kept.min()) - margin, float(kept.max()) + margin)
