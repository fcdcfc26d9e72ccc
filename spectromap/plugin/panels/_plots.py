"""Plots in the dock: a matplotlib canvas in the colours and letters of the window it is in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from qtpy.QtCore import QEvent, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QColor, QPalette
from qtpy.QtWidgets import QVBoxLayout, QWidget

from spectromap.figures._canvas import BLUE, GREEN, INK, ORANGE, PURPLE, RED, save_figure

__all__ = ["Plot"]

#: Letters of a plot are smaller than those of the window, by so many points, but not unreadable.
SMALLER_PT, LEAST_PT = 1.0, 7.0
#: How much of the ink is in what should stay in the background, such as a grid.
FAINT = 0.35
PAD_IN = 0.03
PRINTED_PT = 8.0
#: Told apart with any colour vision (Okabe and Ito, 2008), on white and lightened on black.
ON_LIGHT = (BLUE, ORANGE, GREEN, RED, PURPLE)
ON_DARK = ("#56b4e9", "#e69f00", "#1cc795", "#f57f3f", "#e3a3c6")
#: From this lightness of the paper on, ink is dark.
LIGHT_PAPER = 0.5


class Plot(QWidget):
    """A matplotlib figure that looks like the window around it.

    Draw into `figure` as always, in `ink`, `faint` and `colours`, then call `redraw`; what axes
    have of their own (frame, ticks, labels, title, legend) gets its colour and size there. What
    has to move at once is registered with `animate` and drawn alone by `draw_animated`.

    Parameters
    ----------
    parent : QWidget, optional
        The widget around it.

    Attributes
    ----------
    figure : Figure
        What to draw into; its layout is constrained.
    canvas : FigureCanvasQTAgg
        For ``mpl_connect``.
    paper, ink, faint : str
        Colours of the background, of text, and of what should not catch the eye.
    colours : tuple of str
        Colours for data.
    restyled : Signal
        The colours have changed: artists drawn in the old ones should be drawn again.
    """

    restyled = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.figure = Figure(layout=ConstrainedLayoutEngine(w_pad=PAD_IN, h_pad=PAD_IN))
        # matplotlib's canvas has no types of its own.
        self.canvas: Any = FigureCanvasQTAgg(self.figure)  # type: ignore[no-untyped-call]
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.canvas)
        self._moving: list[Artist] = []
        self._still: Any = None
        self._take_colours()
        self.canvas.mpl_connect("draw_event", self._keep_still)

    # --- drawing -------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw everything, when Qt has time for it; what is hidden is drawn when it is shown."""
        self._dress()
        if self.isVisible():
            self.canvas.draw_idle()

    def animate(self, artists: Iterable[Artist]) -> None:
        """Say which artists `draw_animated` draws, in this order, and no other.

        Parameters
        ----------
        artists : iterable of Artist
            Lines, texts or fills that belong to axes of the figure.
        """
        for artist in self._moving:
            artist.set_animated(False)
        self._moving = list(artists)
        for artist in self._moving:
            artist.set_animated(True)

    def draw_animated(self) -> None:
        """Draw the animated artists where they are now, over a kept picture of the rest."""
        if self._still is None:
            self.redraw()
            return
        self.canvas.restore_region(self._still)
        self._draw_over()
        self.canvas.blit(self.figure.bbox)

    def _keep_still(self, _: Any) -> None:
        """Keep what was just drawn, without what moves, and draw that over it."""
        if self.canvas.is_saving():
            return
        self._still = self.canvas.copy_from_bbox(self.figure.bbox)
        self._draw_over()

    def _draw_over(self) -> None:
        for artist in self._moving:
            if artist.axes is not None and artist.get_visible():
                artist.axes.draw_artist(artist)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure, dark on white; the ending tells the format (png, svg, pdf).

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        FileError
            An ending that is no figure format, or a file that cannot be written.
        """
        with self._printed():
            return save_figure(self.figure, path)

    @contextmanager
    def _printed(self) -> Iterator[None]:
        """The colours of paper for a while; who drew in `colours` draws again meanwhile."""
        before = self.paper, self.ink
        self._colour("#ffffff", INK)
        self.restyled.emit()
        self._dress(PRINTED_PT)
        try:
            yield
        finally:
            self._colour(*before)
            self.restyled.emit()
            self.redraw()

    # --- how it looks --------------------------------------------------------------------------

    def changeEvent(self, event: Any) -> None:
        """Follow the theme and the size of the letters of the window."""
        super().changeEvent(event)
        kinds = (QEvent.Type.StyleChange, QEvent.Type.PaletteChange, QEvent.Type.FontChange)
        if event.type() in kinds and hasattr(self, "canvas"):
            self._follow()

    def showEvent(self, event: Any) -> None:
        """Only in a window are its colours known."""
        super().showEvent(event)
        self._follow()

    def _follow(self) -> None:
        before = self.paper, self.ink
        self._take_colours()
        if before != (self.paper, self.ink):
            self.restyled.emit()
        self.redraw()

    def _take_colours(self) -> None:
        palette = self.palette()
        window, text = QPalette.ColorRole.Window, QPalette.ColorRole.WindowText
        self._colour(palette.color(window).name(), palette.color(text).name())

    def _colour(self, paper: str, ink: str) -> None:
        self.paper, self.ink = paper, ink
        self.faint = _between(paper, ink)
        self.colours = ON_LIGHT if QColor(paper).lightnessF() > LIGHT_PAPER else ON_DARK

    def _dress(self, points: float | None = None) -> None:
        """Give figure and axes the colours and the letters."""
        if points is None:
            points = max(self.font().pointSizeF() - SMALLER_PT, LEAST_PT)
            # A point of the plot is one of the window; the canvas knows of dense screens.
            self.figure.dpi = self.logicalDpiY() * self.canvas.device_pixel_ratio
        self.figure.set_facecolor(self.paper)
        for axes in self.figure.axes:
            _dress_axes(axes, self.paper, self.ink, points)


def _between(paper: str, ink: str) -> str:
    """A colour between those of paper and ink."""
    mixed = [
        round(FAINT * i + (1 - FAINT) * p)
        for p, i in zip(QColor(paper).getRgb()[:3], QColor(ink).getRgb()[:3], strict=True)
    ]
    return str(QColor(*mixed).name())


def _dress_axes(axes: Axes, paper: str, ink: str, points: float) -> None:
    """Frame, ticks, labels, title and legend of one axes."""
    now = axes.xaxis.get_tick_params()
    # Cleared axes have forgotten it; else it need not be said again, which takes a while.
    if (now.get("labelcolor"), now.get("labelsize")) != (ink, points):
        axes.set_facecolor(paper)
        axes.tick_params(which="both", color=ink, labelcolor=ink, labelsize=points, width=0.7)
        for spine in axes.spines.values():
            spine.set(edgecolor=ink, linewidth=0.7)
    legend = axes.get_legend()
    texts = [
        axes.xaxis.label,
        axes.yaxis.label,
        axes.title,
        *(legend.get_texts() if legend else ()),
    ]
    for text in texts:
        text.set(color=ink, fontsize=points)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(color=ink, fontsize=points)
    if legend is not None:
        legend.get_frame().set(facecolor=paper, edgecolor="none", alpha=0.8)
