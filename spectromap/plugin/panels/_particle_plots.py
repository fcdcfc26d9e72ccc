"""The chosen particle with the models fitted to it, and all particles as a cloud of points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from qtpy.QtCore import QSignalBlocker, Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from spectromap.figures import component_label
from spectromap.figures._canvas import (
    GREY,
    INK,
    MODEL_COLOURS,
    PALE,
    SIGMA,
    SUPERSCRIPTS,
    numbers_of,
    texts_of,
)
from spectromap.figures.fits import _draw_profile, _draw_residuals, _fits, _profile_limits
from spectromap.plugin.panels._particle_table import TO, column_title, written
from spectromap.plugin.panels._plots import ON_LIGHT, Plot

__all__ = ["NOTHING", "Cloud", "FitPlot", "Known"]

#: A click into the cloud chooses the nearest particle within this many pixels of the screen.
NEAR_PX = 60
#: From this ratio of largest to smallest on, numbers are drawn on a logarithmic axis.
WIDE = 30.0
#: What the colours of the cloud can tell.
CLASSES = ("agglomerate", "verdict", "place")
#: How small legends are.
LEGEND: dict[str, Any] = {
    "fontsize": 8, "frameon": False, "handlelength": 1.2, "handletextpad": 0.4,
    "borderaxespad": 0.2, "borderpad": 0.1, "labelspacing": 0.3,
}  # fmt: skip
#: Before a power of ten.
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Known:
    """What is known of the particles at the moment.

    Attributes
    ----------
    table : Dataset, dims (particle,)
        As `particle_columns` makes it.
    profiles, models, maps : Dataset or None
        Of `models` only the particles that have not been changed since they were fitted.
    fraction : str
        Name of the mapped component.
    stale : bool
        Whether the models are those of an older description.
    """

    table: xr.Dataset
    profiles: xr.Dataset | None = None
    models: xr.Dataset | None = None
    maps: xr.Dataset | None = None
    fraction: str = ""
    stale: bool = False


NOTHING = Known(xr.Dataset(coords={"particle": np.zeros(0, dtype=int)}))


class FitPlot(Plot):
    """Profile of the chosen particle, the fit of every model, and what they leave over."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._known, self._label, self._outdated = NOTHING, 0, False
        self.head = QLabel()
        self.head.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        # A long text is broken into lines, and does not make the window wider.
        self.head.setWordWrap(True)
        self.head.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        layout = self.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.setSpacing(0)
        layout.insertWidget(0, self.head)
        engine: Any = self.figure.get_layout_engine()
        engine.set(h_pad=0.02, hspace=0.0)
        self.setMinimumWidth(240)
        self.setToolTip(
            "Fraction against the distance from the edge with its 1 sigma errors, the models"
            " fitted to it, and below what they leave over in units of sigma."
        )
        self.restyled.connect(self._draw)

    def show_particle(self, known: Known, label: int) -> None:
        """Draw another particle."""
        self._known, self._label = known, label
        self._outdated = True
        if self.isVisible():
            self._draw()

    def showEvent(self, event: Any) -> None:
        """Draw what was not seen before."""
        super().showEvent(event)
        if self._outdated:
            self._draw()

    def _draw(self) -> None:
        self._outdated = False
        self.figure.clear()
        index = self._index()
        self.head.setText("" if index is None else self.title())
        self.head.setToolTip(self.head.text())
        if index is None:
            self._say(self._reason())
        else:
            self._draw_particle(index)
        self.redraw()

    def _index(self) -> int | None:
        """Where the profile of the chosen particle is, if it has one."""
        profiles, name = self._known.profiles, f"{self._known.fraction}_fraction"
        if profiles is None or name not in profiles or self._label not in profiles["particle"]:
            return None
        index = int(np.flatnonzero(profiles["particle"].values == self._label)[0])
        known = np.isfinite(numbers_of(profiles, name)[index]).any()
        return index if known else None

    def _reason(self) -> str:
        if not self._known.table.sizes["particle"]:
            return "No particles yet: run the step Particles."
        if not self._label:
            return "Click a particle in the picture,\nthe table or the plot beside."
        if self._known.profiles is None:
            return f"Particle {self._label}: no profile yet."
        return f"Particle {self._label} is too small for a profile."

    def _say(self, text: str) -> None:
        self.figure.text(0.5, 0.5, text, ha="center", va="center", color=self.ink, fontsize=9)

    def _draw_particle(self, index: int) -> None:
        profiles, models = self._known.profiles, self._known.models
        assert profiles is not None
        name = f"{self._known.fraction}_fraction"
        upper, lower = self.figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
        _draw_profile(upper, profiles, models, index, name)
        upper.set_ylim(_profile_limits(profiles, models, name, [index]))
        upper.set_ylabel(component_label(self._known.fraction))
        _draw_residuals(lower, profiles, index, name, _fits(models, self._label))
        most = max([3.5, *(1.15 * float(np.nanmax(np.abs(y))) for y in _pulls(lower))])
        lower.set_ylim(-most, most)
        lower.set_ylabel(SIGMA)
        lower.set_xlabel("distance from the edge [nm]")
        lower.set_xlim(0, _reach(profiles, index, name))
        for axes in (upper, lower):
            _recolour(axes, self)
        handles, names = upper.get_legend_handles_labels()
        # Beside the axes it covers nothing.
        self.figure.legend(handles, names, loc="outside right upper", labelcolor=self.ink, **LEGEND)
        self.figure.align_ylabels([upper, lower])

    def title(self) -> str:
        """Number, verdict and what the model of the verdict found, with its 68 % interval."""
        rows = self._known.table.sel(particle=[self._label])
        said = [str(self._label), *filter(None, texts_of(rows, "verdict"))]
        numbers = {str(n): float(rows[n].item()) for n in rows if rows[n].dtype.kind == "f"}
        said += _found(numbers, said[-1])
        if len(said) == 1:
            said.append("not fitted yet")
        elif self._known.stale:
            said.append("stale")
        return ", ".join(said)


def _found(numbers: Mapping[str, float], verdict: str) -> list[str]:
    """D or the shell, with the interval of 68 %."""
    if verdict == "core-shell" and np.isfinite(numbers.get("shell_thickness", np.nan)):
        low, high = (written(np.round(numbers[n], 1)) for n in ("shell_low", "shell_high"))
        return [f"shell {numbers['shell_thickness']:.0f} ({low}{TO}{high}) nm"]
    D = numbers.get("D_cm2_s", np.nan)
    if not (np.isfinite(D) and D > 0):
        return []
    power = int(np.floor(np.log10(D)))
    mean, low, high = (
        written(np.round(numbers[n] / 10.0**power, 2)) for n in ("D_cm2_s", "D_low", "D_high")
    )
    exponent = f"{power}".replace("-", "⁻").translate(SUPERSCRIPTS)
    return [f"D = {mean} ({low}{TO}{high}) {TIMES} 10{exponent} cm² s⁻¹"]


def _pulls(axes: Any) -> list[NDArray[np.float64]]:
    """What is drawn of the residuals that is known at all."""
    drawn = (np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines[1:])
    return [values for values in drawn if np.isfinite(values).any()]


def _reach(profiles: xr.Dataset, index: int, name: str) -> float:
    """How far a profile goes, in nm; bins of larger particles need no room."""
    known = np.isfinite(numbers_of(profiles, name)[index])
    distance = profiles["distance"].values
    step = float(np.diff(distance).mean()) if distance.size > 1 else 2 * float(distance[0])
    return float(distance[known].max()) + step


def _recolour(axes: Any, plot: Plot) -> None:
    """Turn the colours of printed figures into those of the window."""
    colours = {INK: plot.ink, GREY: plot.faint, PALE: plot.faint}
    colours |= dict(zip(ON_LIGHT, plot.colours, strict=True))
    for artist in [*axes.lines, *axes.collections, *axes.patches]:
        old = np.atleast_2d(artist.get_facecolor() if artist in axes.patches else _colour(artist))
        new = colours.get(to_hex(old[0])) if len(old) else None
        if new is not None:
            artist.set_color(new)
        if artist in axes.patches:
            artist.set_alpha(0.35)


def _colour(artist: Any) -> Any:
    from matplotlib.colors import to_rgba

    return artist.get_colors() if hasattr(artist, "get_colors") else to_rgba(artist.get_color())


# --- all particles -----------------------------------------------------------------------------


class Cloud(QWidget):
    """Any number of the particles against any other; a click chooses the nearest one."""

    picked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._known, self._label, self._outdated = NOTHING, 0, False
        self._wanted: dict[QComboBox, str] = {}
        self._axes: Any = None
        self._ring: Any = None
        self._points = np.empty((0, 2))
        self.plot = Plot(self)
        self.plot.setMinimumWidth(220)
        self.plot.setToolTip("Click a point to choose the particle.")
        self.across, self.up, self.colour = QComboBox(), QComboBox(), QComboBox()
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(3)
        # No words between them: they need all of the width.
        for box, tip, share in (
            (self.up, "Number that is drawn upwards", 6),
            (self.across, "Number that is drawn to the right", 6),
            (self.colour, "What the colours tell", 5),
        ):
            box.setToolTip(tip)
            box.setSizeAdjustPolicy(
                QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
            )
            box.setMinimumContentsLength(5)
            box.activated.connect(self._choose_axis)
            row.addWidget(box, share)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(row)
        layout.addWidget(self.plot, 1)
        self.plot.restyled.connect(self._draw)
        self.plot.canvas.mpl_connect("button_press_event", self._clicked)

    def show_table(self, known: Known) -> None:
        """Draw other particles; the axes stay what they are if they can."""
        self._known = known
        names = [
            name
            for name, array in known.table.data_vars.items()
            if array.dtype.kind == "f" and not str(name).endswith("_errors")
        ]
        fraction = f"{known.fraction}_fraction"
        self._offer(self.across, names, "radius")
        self._offer(self.up, names, fraction)
        self._offer(self.colour, [n for n in CLASSES if n in known.table], "verdict")
        self._outdated = True
        if self.isVisible():
            self._draw()

    def showEvent(self, event: Any) -> None:
        """Draw what was not seen before."""
        super().showEvent(event)
        if self._outdated:
            self._draw()

    def _offer(self, box: QComboBox, names: Iterable[Any], first: str) -> None:
        """Fill a box; what the user chose in it stays chosen, else it is the first choice."""
        blocked = QSignalBlocker(box)
        box.clear()
        for name in names:
            box.addItem(column_title(self._known.table, str(name)), str(name))
        found = [box.findData(name) for name in (self._wanted.get(box), first)]
        box.setCurrentIndex(next((place for place in found if place >= 0), 0))
        blocked.unblock()

    def _choose_axis(self) -> None:
        """The user has chosen what is drawn."""
        box = self.sender()
        assert isinstance(box, QComboBox)
        self._wanted[box] = box.currentData()
        self._draw()

    def choose(self, label: int) -> None:
        """Mark a particle."""
        self._label = label
        if not self._outdated:
            self._mark()
            self.plot.draw_animated()

    def _draw(self, *_: Any) -> None:
        self._outdated = False
        figure = self.plot.figure
        figure.clear()
        self.plot.animate([])
        names = self.across.currentData(), self.up.currentData()
        self._axes = self._ring = None
        if all(names) and self._known.table.sizes["particle"]:
            self._draw_points(*names)
        self.plot.redraw()

    def _draw_points(self, across: str, up: str) -> None:
        table = self._known.table
        axes = self._axes = self.plot.figure.subplots()
        self._points = np.column_stack([table[n].values.astype(np.float64) for n in (across, up)])
        for number, (text, rows) in enumerate(_classes(table, self.colour.currentData())):
            x, y = self._points[rows].T
            colour = self._class_colour(text, number)
            look: dict[str, Any] = {"markersize": 4.5, "elinewidth": 0.7, "marker": "o"}
            bars = {"xerr": self._bars(across, rows), "yerr": self._bars(up, rows)}
            axes.errorbar(x, y, color=colour, label=text, linestyle="none", **bars, **look)
        # What is drawn stands in the boxes above, with its unit: the plot is low.
        for scale, values in zip((axes.set_xscale, axes.set_yscale), self._points.T, strict=True):
            scale("log" if _is_wide(values) else "linear")
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="best", **LEGEND)
        (self._ring,) = axes.plot([], [], "o", mfc="none", mec=self.plot.ink, ms=9, mew=1.6)
        self._mark()
        self.plot.animate([self._ring])

    def _class_colour(self, text: str, number: int) -> str:
        """The colour that a verdict has everywhere; others in turn."""
        if text in MODEL_COLOURS:
            known = dict(zip(ON_LIGHT, self.plot.colours, strict=True))
            return known.get(MODEL_COLOURS[text], self.plot.faint)
        if text in ("", "none", "not fitted"):
            return self.plot.faint
        return self.plot.colours[number % len(self.plot.colours)]

    def _bars(self, name: str, rows: NDArray[np.bool_]) -> Any:
        """Errors of the points, those of no length where they are not known."""
        table = self._known.table
        if f"{name}_errors" not in table:
            return None
        return np.nan_to_num(table[f"{name}_errors"].values[rows])

    def _mark(self) -> None:
        """Put the ring round the chosen particle."""
        if self._ring is None:
            return
        rows = np.flatnonzero(self._known.table["particle"].values == self._label)
        self._ring.set_data(*self._points[rows].T)

    def _clicked(self, event: Any) -> None:
        if self._axes is not None and event.inaxes is self._axes:
            label = self.nearest(event.x, event.y)
            if label:
                self.picked.emit(label)

    def nearest(self, x: float, y: float) -> int:
        """The particle nearest to a place in pixels of the canvas; 0 where there is none."""
        finite = np.asarray(np.isfinite(self._points).all(axis=1))
        if self._axes is None or not finite.any():
            return 0
        places = self._axes.transData.transform(np.where(finite[:, None], self._points, 1.0))
        away = np.where(finite, np.hypot(*(places - (x, y)).T), np.inf)
        row = int(np.argmin(away))
        near = away[row] <= NEAR_PX * self.plot.canvas.device_pixel_ratio
        return int(self._known.table["particle"].values[row]) if near else 0


def _classes(table: xr.Dataset, name: str | None) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Rows of the table by what the colours tell."""
    if name is None:
        yield "", np.ones(table.sizes["particle"], dtype=bool)
        return
    texts = np.array([str(value) for value in table[name].values], dtype=object)
    if name == "agglomerate":
        texts = np.array(["none" if t == "0" else t for t in texts], dtype=object)
    if name == "verdict":
        texts = np.array([t or "not fitted" for t in texts], dtype=object)
    for text in dict.fromkeys(sorted(texts)):
        yield text, texts == text


def _is_wide(values: NDArray[np.float64]) -> bool:
    """Whether numbers need a logarithmic axis."""
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and known.max() > WIDE * known.min())
