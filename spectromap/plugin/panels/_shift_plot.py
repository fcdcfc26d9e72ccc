"""Shifts of the frames as they are now, and their plot against the energy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import Qt, Signal  # type: ignore[attr-defined]

from spectromap.align import frame_number
from spectromap.plugin.panels._plots import Plot
from spectromap.schema import InputError

__all__ = ["DIGITS", "Corrections", "ShiftPlot", "Table", "frame_at", "read_table"]

Mask = NDArray[np.bool_]
Energies = NDArray[np.float64]
#: y and x in nm by the energy in eV.
Corrections = dict[float, tuple[float, float]]
#: Corrections and energies are written with so many digits after the point.
DIGITS = 4


@dataclass(frozen=True, eq=False)
class Table:
    """Frames of the stack: what is known of each; shifts in nm, NaN where there is none."""

    energies: Energies
    shifts: NDArray[np.float64]
    errors: NDArray[np.float64]
    flagged: Mask
    corrected: Mask
    excluded: Mask

    @property
    def usable(self) -> Mask:
        """Frames to compare others with."""
        kept: Mask = np.isfinite(self.shifts).all(axis=1) & ~self.flagged & ~self.excluded
        return kept

    def same_as(self, other: Table) -> bool:
        """Whether nothing is known now that was not known."""
        return all(
            np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")
            for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        )


def frame_at(energies: Energies, energy: float) -> int | None:
    """Number of the frame at an energy, None where there is none."""
    if energies.size:
        with suppress(InputError):
            return frame_number(energies, float(energy))
    return None


def _marked(energies: Energies, chosen: Iterable[float]) -> Mask:
    """Which frames are at one of some energies."""
    numbers = {frame_at(energies, energy) for energy in chosen}
    return np.array([k in numbers for k in range(energies.size)], dtype=bool)


def read_table(
    energies: Energies,
    found: xr.Dataset | None,
    *,
    made: Mapping[float, tuple[float, float]],
    now: Mapping[float, tuple[float, float]],
    left_out: Iterable[float],
) -> Table:
    """What is known of the frames, with the corrections as they are now.

    Parameters
    ----------
    energies : ndarray, shape (n_energy,)
        Energies of the frames in eV.
    found : Dataset or None
        As `spectromap.align.register` makes it.
    made, now : mapping
        The corrections that are in what was found, and those that should be.
    left_out : iterable of float
        Energies of the frames that are left out.

    Returns
    -------
    Table
    """
    count = energies.size
    shifts, errors = np.full((count, 2), np.nan), np.zeros((count, 2))
    flagged, corrected = np.zeros(count, dtype=bool), _marked(energies, now)
    if found is not None:
        own = np.asarray(found["energy"].values, dtype=np.float64)
        rows = {k: row for k, e in enumerate(energies) if (row := frame_at(own, e)) is not None}
        here, there = list(rows), list(rows.values())
        for k, axis in enumerate("yx"):
            shifts[here, k] = found[f"shift_{axis}"].values[there]
            errors[here, k] = found[f"shift_{axis}_errors"].values[there]
        flagged[here] = found["flagged"].values[there]
    for sign, corrections in ((1.0, now), (-1.0, made)):
        for energy, change in corrections.items():
            if (number := frame_at(energies, energy)) is not None:
                shifts[number] += sign * np.asarray(change)
    excluded = _marked(energies, left_out)
    return Table(energies, shifts, errors, flagged & ~corrected, corrected, excluded)


class ShiftPlot(Plot):
    """Shift of every frame against the energy; a click chooses a frame."""

    #: Energy that was clicked at, in eV.
    clicked = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        self._axes = self.figure.subplots()
        self._line: Any = None
        self._drawn: tuple[Table, int] | None = None
        self.restyled.connect(self._draw)
        self.canvas.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.canvas.mpl_connect("button_press_event", self._pressed)

    def _pressed(self, event: Any) -> None:
        if event.xdata is not None:
            self.clicked.emit(float(event.xdata))

    @property
    def drawn(self) -> bool:
        """Whether anything was."""
        return self._drawn is not None

    def show_table(self, table: Table, frame: int) -> None:
        """Draw all frames."""
        self._drawn = table, frame
        self._draw()
        self.redraw()

    def point_at(self, frame: int) -> None:
        """Move the line to another frame."""
        if self._drawn is None or self._line is None:
            return
        table = self._drawn[0]
        self._drawn = table, frame
        self._line.set_xdata([table.energies[frame]] * 2)
        self.draw_animated()

    def _draw(self) -> None:
        if self._drawn is None:
            return
        table, frame = self._drawn
        axes = self._axes
        axes.clear()
        axes.axhline(0.0, color=self.faint, linewidth=0.7)
        kept = ~table.flagged & ~table.excluded
        for k, name in enumerate("yx"):
            self._draw_axis(table, k, name)
        self._mark_others(table)
        _limit(axes, table, kept)
        axes.set_xlabel("energy [eV]")
        axes.set_ylabel("shift [nm]")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=1.0, borderpad=0.1
            )
        position = table.energies[frame] if frame < table.energies.size else np.nan
        self._line = axes.axvline(position, color=self.ink, linewidth=1.0)
        self.animate([self._line])

    def _draw_axis(self, table: Table, k: int, name: str) -> None:
        """Shifts along one axis, corrected ones as diamonds."""
        colour = self.colours[k]
        kept = ~table.flagged & ~table.excluded & np.isfinite(table.shifts[:, k])
        style: dict[str, Any] = {"color": colour, "linestyle": "none", "elinewidth": 0.8}
        for chosen, marker, size, label in (
            (kept & ~table.corrected, "o", 3.5, name),
            (kept & table.corrected, "D", 5.5, f"{name}, corrected"),
        ):
            if chosen.any():
                x, y, error = table.energies, table.shifts[:, k], table.errors[:, k]
                style |= {"marker": marker, "markersize": size, "label": label}
                self._axes.errorbar(x[chosen], y[chosen], error[chosen], **style)

    def _mark_others(self, table: Table) -> None:
        """Frames that could not be aligned, and those that are left out, which may lie anywhere."""
        for chosen, marker, colour, label in (
            (table.flagged & ~table.excluded, "s", self.colours[3], "not aligned"),
            (table.excluded, "x", self.ink, "left out"),
        ):
            for energy in table.energies[chosen]:
                self._axes.axvline(energy, color=colour, alpha=0.25, linewidth=3, zorder=0)
            if chosen.any():
                style: dict[str, Any] = {"color": colour, "markersize": 6, "fillstyle": "none"}
                places = np.zeros(int(chosen.sum()))
                self._axes.plot(table.energies[chosen], places, marker, label=label, **style)


def _limit(axes: Any, table: Table, kept: Mask) -> None:
    """Limits of the axes: all energies, and the shifts of the frames that are kept."""
    if table.energies.size:
        margin = 0.03 * float(np.ptp(table.energies)) or 1.0
        axes.set_xlim(table.energies.min() - margin, table.energies.max() + margin)
    values = table.shifts[kept]
    values = np.append(values[np.isfinite(values)], 0.0)
    margin = 0.12 * float(np.ptp(values)) or 1.0
    axes.set_ylim(float(values.min()) - margin, float(values.max()) + margin)
