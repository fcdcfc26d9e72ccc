"""Spectra as a panel shows them: counts or optical densities with their fit, drawn or in a file."""

from __future__ import annotations

import csv
import itertools
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import Signal  # type: ignore[attr-defined]

from spectromap.figures import component_label
from spectromap.io._common import written_whole
from spectromap.plugin._layers import Content
from spectromap.plugin.panels._plots import Plot
from spectromap.schema import FileError

__all__ = ["Counts", "Curves", "Row", "Spectrum", "write_spectra"]

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

#: Frames of a region are read in the background for so long, then what was found is drawn.
BATCH_S = 0.2
#: The scale of the plot stays while the spectrum fills at least this share of it.
LEAST_FILLED, MARGIN, LEGEND_SHARE = 0.35, 0.1, 0.25
#: Space around the axes in pixels of the screen: left, right, bottom, top, between them.
SPACE_PX = (70, 10, 38, 8, 6)
#: Labels lie so far from the left edge, whatever the numbers at the ticks are.
LABEL_PX = 18
RESIDUAL_SHARE = 0.29
REFERENCE_LINES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 3)))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A spectrum to be drawn, and what was found in it.

    Parameters
    ----------
    energy, values : ndarray, shape (n_energy,)
        Energy in eV; counts or optical density, NaN at frames that are missing.
    axis : str
        What the values are, for the axis.
    pixels : int
        How many pixels it is the mean of.
    found : Dataset, optional
        As `spectromap.pipeline.Analysis.spectrum` returns it; none for counts.
    """

    energy: Values
    values: Values
    axis: str
    pixels: int
    found: xr.Dataset | None = None

    @classmethod
    def of(cls, found: xr.Dataset) -> Spectrum:
        """What the analysis found in a region."""
        energy, values = found["energy"].values, found["optical_density"].values
        return cls(energy, values, "OD", int(found.attrs["pixel_count"]), found)

    def column(self, name: str) -> Values:
        """What was found along the energy, NaN where it was not."""
        if self.found is None or name not in self.found:
            return np.full(self.energy.shape, np.nan)
        return np.asarray(self.found[name].values, dtype=np.float64)

    def number(self, name: str) -> float:
        """A number that was found, NaN where it was not."""
        if self.found is None:
            return float("nan")
        if name in self.found.attrs:
            return float(self.found.attrs[name])
        return float(self.found[name]) if name in self.found else float("nan")

    @property
    def errors(self) -> Values:
        """Standard error of the values, that of I0 included."""
        return np.hypot(
            self.column("optical_density_errors"), self.column("optical_density_systematic")
        )

    @property
    def fitted(self) -> bool:
        """Whether there is a fit."""
        return self.found is not None and "fit" in self.found

    @property
    def references(self) -> dict[str, Values]:
        """The references times their amounts, by component."""
        names = [] if self.found is None else [str(name) for name in self.found.data_vars]
        prefix = "reference_"
        return {n.removeprefix(prefix): self.column(n) for n in names if n.startswith(prefix)}

    def extremes(self, *, references: bool = False) -> tuple[float, float]:
        """The least and the most that is drawn of it; NaN where nothing is."""
        drawn = [self.values, self.column("fit"), *(self.references.values() if references else ())]
        values = np.concatenate(drawn)
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Counts:
    """Mean counts of a region, as far as they have been read."""

    values: Values
    read: Mask

    @classmethod
    def none(cls, energies: int) -> Counts:
        """Nothing has been read."""
        return cls(np.full(energies, np.nan), np.zeros(energies, dtype=bool))

    def more(self, content: Content, y: NDArray[np.intp], x: NDArray[np.intp]) -> Counts:
        """The same with some frames more: as many as can be read in a moment."""
        values, read = self.values.copy(), self.read.copy()
        end = time.monotonic() + BATCH_S
        for frames, block in _blocks(content, read):
            values[frames] = [_mean(frame[y, x]) for frame in block]
            read[frames] = True
            if time.monotonic() > end:
                break
        return Counts(values, read)


def _blocks(content: Content, read: Mask) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Frames that have not been read, in the pieces in which the file has them."""
    if content.frames is None:
        yield slice(None), content.array.values
        return
    edges = content.frames.edges
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        if not read[first:last].all():
            yield slice(first, last), content.frames.read(number)


def _mean(values: NDArray[Any]) -> float:
    """Mean of what is finite, of complex values their modulus."""
    values = np.abs(values) if np.iscomplexobj(values) else values
    values = values[np.isfinite(values)]
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


@dataclass(eq=False)
class Row:
    """A spectrum in the list: that of the cursor, of the region, or one that is kept."""

    key: str
    name: str
    colour: int
    line: str = "-"
    mask: Mask | None = None
    spectrum: Spectrum | None = None
    #: The layer that the mask was drawn in.
    layer: weakref.ref[Any] | None = field(default=None, repr=False)
    #: Counts of a region as far as they are read.
    counts: Counts | None = None


def write_spectra(path: str | Path, spectra: dict[str, Spectrum]) -> Path:
    """Write spectra and their fits as a table.

    Parameters
    ----------
    path : path-like
        A CSV file.
    spectra : dict of str to Spectrum
        By name; a block of rows each.

    Returns
    -------
    Path
        The file: a row for every spectrum and energy, with a header; what is missing is empty.

    Raises
    ------
    FileError
        The file cannot be written.
    """
    columns = ("optical_density_errors", "optical_density_systematic", "fit", "residual")
    components = sorted({name for one in spectra.values() for name in one.references})
    references = [f"reference_{name}" for name in components]
    header = ("spectrum", "pixel_count", "energy_eV", "quantity", "value", *columns, *references)
    try:
        with written_whole(Path(path)) as partial, partial.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for name, one in spectra.items():
                numbers = zip(
                    one.energy, one.values, *map(one.column, (*columns, *references)), strict=True
                )
                for energy, *row in numbers:
                    cells = ["" if np.isnan(value) else f"{value:.9g}" for value in row]
                    first, *rest = cells
                    table.writerow((name, one.pixels, f"{energy:.9g}", one.axis, first, *rest))
    except OSError as error:
        raise FileError(f"the table could not be written ({error})", where=path) from error
    return Path(path)


class Curves(Plot):
    """Spectra over the energy: those that are kept, and over them one that may change at once."""

    #: The energy that was clicked.
    picked = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        # The constrained layout takes longer than all the rest of drawing.
        self.figure.set_layout_engine("none")
        self.above, self.below = (
            self.figure.add_axes((0, 0, 1, 1)),
            self.figure.add_axes((0, 0, 1, 0.2)),
        )
        self.below.sharex(self.above)
        self.above.locator_params(axis="y", nbins=4)
        self.below.locator_params(axis="y", nbins=2)
        self._still_rows: list[Row] = []
        self._front: Row | None = None
        self._energy = float("nan")
        self._residual = False
        self.restyled.connect(self._draw_all)
        for name in ("button_press_event", "motion_notify_event"):
            self.canvas.mpl_connect(name, self._pick)
        self._draw_all()

    def show_rows(self, rows: Sequence[Row], front: Row | None) -> None:
        """Draw everything: rows that stay, and the one in front."""
        self._still_rows = [row for row in rows if row.spectrum is not None and row is not front]
        self._front = front
        self._draw_all()

    def show_front(self, front: Row) -> None:
        """Draw another spectrum in front, and the rest only if it does not fit."""
        self._front = front
        spectrum = front.spectrum
        same = spectrum is not None and (
            self._residual == spectrum.fitted and self._axis() == self.above.get_ylabel()
        )
        if not same or front.colour != self._front_colour:
            self._draw_all()
            return
        self._place_front()
        if self._fits():
            self.draw_animated()
        else:
            self._limit()
            self.redraw()

    def show_energy(self, energy: float) -> None:
        """Draw the line at the energy of the slider."""
        if energy == self._energy:
            return
        self._energy = energy
        for line in self._markers:
            line.set_xdata([energy, energy])
        self.draw_animated()

    def resizeEvent(self, event: Any) -> None:
        """Keep the space around the axes."""
        super().resizeEvent(event)
        self._arrange()

    # --- everything ----------------------------------------------------------------------------

    def _draw_all(self) -> None:
        front = self._front.spectrum if self._front is not None else None
        self._residual = front is not None and front.fitted
        for axes in (self.above, self.below):
            # Cleared axes would have to make all their ticks anew, which takes half of the time.
            for artist in (*axes.lines, *axes.collections):
                artist.remove()
        self._draw_still()
        self._make_front(front)
        self._place_front()
        self._make_markers()
        self.animate([*self._front_artists(), *self._markers])
        self._label(front)
        self._limit()
        self._arrange()
        self.redraw()

    def _draw_still(self) -> None:
        for row in self._still_rows:
            one, colour = row.spectrum, self.colours[row.colour]
            if one is None:
                continue
            self.above.plot(one.energy, one.values, color=colour, lw=1.2, ls=row.line)
            low, high = one.values - one.errors, one.values + one.errors
            self.above.fill_between(one.energy, low, high, color=colour, alpha=0.2, lw=0)

    def _make_front(self, front: Spectrum | None) -> None:
        """Artists of the spectrum in front, to be filled with data."""
        self._front_colour = self._front.colour if self._front is not None else 0
        colour = self.colours[self._front_colour]
        nothing = np.full(2, np.nan)
        self._band = self.above.fill_between(nothing, nothing, nothing, color=colour, alpha=0.3)
        (self._data,) = self.above.plot([], [], color=colour, marker=".", ms=4, lw=1)
        (self._fit,) = self.above.plot([], [], color=self.ink, lw=1.3)
        names = () if front is None else front.references
        self._parts = {
            name: self.above.plot([], [], color=self.ink, lw=1, ls=style, alpha=0.75)[0]
            for name, style in zip(names, REFERENCE_LINES, strict=False)
        }
        self._noise = self.below.fill_between(nothing, nothing, nothing, color=colour, alpha=0.3)
        (self._rest,) = self.below.plot([], [], color=colour, marker=".", ms=3, lw=0.8)
        for artist in (self._band, self._noise):
            artist.set_linewidth(0)

    def _front_artists(self) -> list[Any]:
        upper = [self._band, *self._parts.values(), self._data, self._fit]
        return [*upper, self._noise, self._rest]

    def _make_markers(self) -> None:
        """The line at the energy of the slider."""
        self._markers = [
            axes.axvline(self._energy, color=self.ink, lw=1, alpha=0.6)
            for axes in (self.above, self.below)
        ]

    def _place_front(self) -> None:
        """Give the artists in front the data of the spectrum there."""
        one = self._front.spectrum if self._front is not None else None
        for artist in self._front_artists():
            artist.set_visible(one is not None)
        if one is None:
            return
        for artist in (self._noise, self._rest):
            artist.set_visible(one.fitted)
        self._data.set_data(one.energy, one.values)
        self._band.set_data(one.energy, one.values - one.errors, one.values + one.errors)
        self._fit.set_data(one.energy, one.column("fit"))
        for name, line in self._parts.items():
            line.set_data(one.energy, one.column(f"reference_{name}"))
        noise = one.column("optical_density_errors")
        self._noise.set_data(one.energy, -noise, noise)
        self._rest.set_data(one.energy, one.column("residual"))

    def _axis(self) -> str:
        one = self._front.spectrum if self._front is not None else None
        rows = [row.spectrum for row in self._still_rows]
        return next((s.axis for s in (one, *rows) if s is not None), "")

    def _label(self, front: Spectrum | None) -> None:
        legend = self.above.get_legend()
        if legend is not None:
            legend.remove()
        self.above.set_ylabel(self._axis())
        bottom = self.below if self._residual else self.above
        bottom.set_xlabel("energy [eV]")
        self.above.tick_params(labelbottom=not self._residual)
        self.below.set_ylabel("residual" if self._residual else "")
        self.below.axhline(0, color=self.faint, lw=0.8)
        self.below.set_visible(self._residual)
        if front is not None and front.fitted:
            lines = {"data": self._data, "fit": self._fit}
            lines |= {component_label(name): line for name, line in self._parts.items()}
            # In one line above the spectra: lower it would hide them.
            self.above.legend(
                lines.values(), lines.keys(), loc="upper right", ncols=len(lines),
                borderaxespad=0.2, handlelength=2.0, columnspacing=1.2,
            )  # fmt: skip

    # --- scales --------------------------------------------------------------------------------

    def _limit(self) -> None:
        low, high = self._extremes()
        if np.isfinite(low):
            room = MARGIN * (high - low or abs(high) or 1.0)
            legend = LEGEND_SHARE * (high - low) if self._residual else 0.0
            self.above.set_ylim(low - room, high + room + legend)
        most = self._most_residual()
        if np.isfinite(most):
            self.below.set_ylim(-1.4 * most, 1.4 * most)
        energies = [
            row.spectrum.energy[[0, -1]]
            for row in (*self._still_rows, self._front)
            if row is not None and row.spectrum is not None
        ]
        if energies:
            low, high = float(np.min(energies)), float(np.max(energies))
            room = 0.01 * (high - low or 1.0)
            self.above.set_xlim(low - room, high + room)

    def _extremes(self) -> tuple[float, float]:
        """The least and the most of all that is drawn in the upper axes."""
        found = [row.spectrum.extremes() for row in self._still_rows if row.spectrum is not None]
        if self._front is not None and self._front.spectrum is not None:
            found.append(self._front.spectrum.extremes(references=True))
        values = np.array(found, dtype=np.float64).ravel()
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan)

    def _most_residual(self) -> float:
        one = self._front.spectrum if self._front is not None else None
        if one is None or not one.fitted:
            return float("nan")
        rest, noise = np.abs(one.column("residual")), one.column("optical_density_errors")
        values = np.concatenate([rest, noise])
        values = values[np.isfinite(values)]
        return float(values.max()) if values.size and values.max() > 0 else float("nan")

    def _fits(self) -> bool:
        """Whether the scales of the axes suit the spectrum in front."""
        pairs = [(self.above.get_ylim(), self._extremes())]
        most = self._most_residual()
        if np.isfinite(most):
            pairs.append((self.below.get_ylim(), (-most, most)))
        return all(
            bottom <= low and high <= top and high - low >= LEAST_FILLED * (top - bottom)
            for (bottom, top), (low, high) in pairs
            if np.isfinite(low)
        )

    def _arrange(self) -> None:
        """Put the axes into their places."""
        width, height = max(self.canvas.width(), 1), max(self.canvas.height(), 1)
        left, right, bottom, top, between = SPACE_PX
        wide, high = max(width - left - right, 10), max(height - bottom - top, 10)
        small = RESIDUAL_SHARE * high if self._residual else 0.0
        base = bottom + small + (between if self._residual else 0)
        tall = max(height - top - base, 5)
        self.above.set_position((left / width, base / height, wide / width, tall / height))
        self.below.set_position(
            (left / width, bottom / height, wide / width, small / height or 0.1)
        )
        for axes in (self.above, self.below):
            axes.yaxis.set_label_coords((LABEL_PX - left) / wide, 0.5)

    def _pick(self, event: Any) -> None:
        """A click, or a drag with the left button, chooses the energy."""
        pressed = event.name == "button_press_event" and event.button == 1
        dragged = event.name == "motion_notify_event" and 1 in (event.buttons or ())
        if event.inaxes is not None and (pressed or dragged):
            self.picked.emit(float(event.xdata))
