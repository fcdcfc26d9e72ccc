"""Small pictures of what every step found, drawn off-screen in the colours of the window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QSize, Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QColor, QImage, QPalette, QPixmap
from qtpy.QtWidgets import QGraphicsOpacityEffect, QLabel, QSizePolicy, QVBoxLayout, QWidget

from spectromap import figures
from spectromap.figures._canvas import (
    MODEL_COLOURS,
    draw_points,
    errors_of,
    new_figure,
    numbers_of,
    texts_of,
)
from spectromap.figures.maps import draw_outlines, length_scale, limits_of
from spectromap.plugin._alive import is_alive, while_alive
from spectromap.plugin.panels._plots import LIGHT_PAPER, ON_DARK, ON_LIGHT
from spectromap.schema import PLACES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Look", "Picture", "draw_step"]

Groups = Mapping[str, xr.Dataset]
Pixels = NDArray[np.uint8]

#: Width and height in the dock, and of the window of an enlarged one, in pixels of the screen.
SMALL, LARGE = (330, 180), (920, 560)
SMALL_PT, LARGE_PT = 7.0, 10.0
INCH_PX = 96
#: No picture shows more pixels of a map along a side.
MOST_PX = 400
MOST_NUMBERED = 30
STALE_OPACITY = 0.4
#: The same in full, as a report shows it.
IN_FULL: dict[str, Callable[[xr.DataTree], Figure | None]] = {
    "align": figures.shifts_figure,
    "i0": figures.i0_figure,
    "energy": figures.mean_spectrum,
    "composition": figures.fraction_map,
    "particles": figures.label_map,
    "models": figures.profiles_figure,
    "heterogeneity": figures.heterogeneity_figure,
}


@dataclass(frozen=True)
class Look:
    """Colours and letters of a picture.

    Attributes
    ----------
    paper, ink : str
        Background and text.
    points : float
        Size of the letters.
    """

    paper: str = "#ffffff"
    ink: str = "#222222"
    points: float = SMALL_PT

    @property
    def colours(self) -> tuple[str, ...]:
        """Blue, orange, green, red and purple that can be told from the paper."""
        return ON_LIGHT if QColor(self.paper).lightnessF() > LIGHT_PAPER else ON_DARK

    def of(self, model: str) -> str:
        """The colour of a model or a verdict, as everywhere, for this paper."""
        colour = MODEL_COLOURS.get(model, self.ink)
        return dict(zip(ON_LIGHT, self.colours, strict=True)).get(colour, colour)


def draw_step(
    step: str,
    groups: Groups,
    look: Look,
    size: tuple[int, int] = SMALL,
    ratio: float = 1.0,
    stack: xr.DataArray | None = None,
) -> Pixels | None:
    """Draw what a step found.

    Parameters
    ----------
    step : str
        Name of the step.
    groups : mapping of str to Dataset
        Groups of the result, as far as there are any.
    look : Look
        Colours and letters.
    size : (int, int)
        Width and height in pixels of the screen.
    ratio : float
        Device pixels for each of them.
    stack : DataArray, optional
        One frame is drawn under the open area.

    Returns
    -------
    ndarray of uint8, shape (height, width, 4), or None
        None where there is nothing to draw.
    """
    painter = PAINTERS.get(step)
    if painter is None:
        return None
    figure = new_figure(size[0] / INCH_PX, size[1] / INCH_PX)
    given = dict(groups)
    if stack is not None:
        given["stack"] = xr.Dataset({"frame": _one_frame(stack)})
    try:
        painter(figure, given, look)
    except KeyError:  # a group or a variable that this run has not got
        return None
    figure.set_facecolor(look.paper)
    for axes in figure.axes:
        _dress(axes, look)
    return _pixels(figure, INCH_PX * ratio)


def _pixels(figure: Figure, dpi: float) -> Pixels:
    """A figure as pixels."""
    figure.set_dpi(dpi)
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _dress(axes: Axes, look: Look) -> None:
    """Give axes the colours and letters of the window."""
    axes.tick_params(
        which="both", color=look.ink, labelcolor=look.ink, labelsize=look.points, width=0.6
    )
    if axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0):
        axes.set_facecolor(look.paper)
    for name, spine in axes.spines.items():
        spine.set(edgecolor=look.ink, linewidth=0.6)
        if name in ("top", "right") and not axes.images:
            spine.set_visible(False)
    legend = axes.get_legend()
    texts = [axes.xaxis.label, axes.yaxis.label, axes.title]
    for text in [*texts, *(legend.get_texts() if legend else ())]:
        text.set(color=look.ink, fontsize=look.points)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(color=look.ink, fontsize=look.points)
    if legend is not None:
        legend.set_frame_on(False)


# --- what is drawn of each step ----------------------------------------------------------------


def _draw_shifts(figure: Figure, groups: Groups, look: Look) -> None:
    """Shifts with their errors; flagged frames are crosses."""
    shifts = groups["shifts"]
    axes = figure.add_subplot()
    energy = shifts["energy"].values
    flagged = np.nan_to_num(numbers_of(shifts, "flagged")) > 0
    kept = []
    for name, colour in zip(("shift_y", "shift_x"), look.colours, strict=False):
        values, errors = numbers_of(shifts, name), errors_of(shifts, name)
        options: dict[str, Any] = {"color": colour, "markersize": 2.5, "label": name[-1]}
        draw_points(axes, energy[~flagged], values[~flagged], errors[~flagged], **options)
        axes.plot(energy[flagged], values[flagged], "x", color=look.colours[3], markersize=5)
        kept.append(values[~flagged & np.isfinite(values)])
    inside = np.concatenate(kept)
    if inside.size:
        room = 0.15 * float(np.ptp(inside)) or 1.0
        axes.set_ylim(float(inside.min()) - room, float(inside.max()) + room)
    axes.axhline(0, color=look.ink, linewidth=0.5, alpha=0.5)
    axes.set(xlabel="photon energy [eV]", ylabel="shift [nm]")
    axes.legend(loc="best", ncols=2, handletextpad=0.2)


def _draw_i0(figure: Figure, groups: Groups, look: Look) -> None:
    """I0 with its error, and where it was taken."""
    i0 = groups["i0"]
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    energy, level = i0["energy"].values, numbers_of(i0, "i0")
    errors = np.nan_to_num(errors_of(i0, "i0"))
    colour = look.colours[0]
    left.fill_between(energy, level - errors, level + errors, color=colour, alpha=0.3, linewidth=0)
    left.plot(energy, level, color=colour, marker="o", markersize=2, linewidth=1)
    left.set(xlabel="photon energy [eV]", ylabel="I0")
    area = _thinned(i0["open_area"])
    if "stack" in groups:
        _show(right, groups["stack"]["frame"], cmap="gray")
    tint = np.ma.masked_equal(area.values.astype(float), 0)
    _show(right, area.copy(data=tint), cmap="winter", vmin=0, vmax=1.2, alpha=0.55)
    share = 100 * float(i0["open_area"].values.mean())
    right.set_title(f"open area: {share:.0f} %")


def _draw_mean(figure: Figure, groups: Groups, look: Look) -> None:
    """Mean spectrum with its fit, and the residual."""
    spectra = groups["spectra"]
    fitted = "mean_fit" in spectra
    ratios = [2.4, 1] if fitted else [1]
    upper, *below = figure.subplots(
        len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False
    ).ravel()
    energy, mean = spectra["energy"].values, numbers_of(spectra, "mean_od")
    errors = errors_of(spectra, "mean_od")
    options: dict[str, Any] = {"color": look.ink, "markersize": 2.5}
    draw_points(upper, energy, mean, errors, label="mean", **options)
    upper.set_ylabel("optical density")
    if not fitted:
        upper.set_xlabel("photon energy [eV]")
        return
    (lower,) = below
    fit = numbers_of(spectra, "mean_fit")
    upper.plot(energy, fit, color=look.colours[3], linewidth=1.2, label="fit", zorder=3)
    draw_points(lower, energy, mean - fit, errors, **options)
    upper.legend(loc="best")
    lower.axhline(0, color=look.colours[3], linewidth=0.8)
    lower.set(xlabel="photon energy [eV]", ylabel="residual")
    figure.align_ylabels([upper, lower])


def _draw_fraction(figure: Figure, groups: Groups, look: Look) -> None:
    """Map of the fraction where it says something; its histogram is the colour bar."""
    maps, name = groups["maps"], str(groups["maps"].attrs["fraction"])
    good = figures.reliable_pixels(maps, name)
    values = np.where(good, maps[f"{name}_fraction"].values, np.nan)
    low, high = limits_of(values, 0.05, 0.1)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    shown = _thinned(maps[f"{name}_fraction"].copy(data=values))
    _show(left, shown, cmap="viridis", vmin=low, vmax=high)
    counts, edges = np.histogram(values[good], bins=30, range=(low, high))
    middle = (edges[1:] + edges[:-1]) / 2
    from matplotlib import colormaps

    colours = colormaps["viridis"]((middle - low) / (high - low))
    right.barh(middle, counts, height=np.diff(edges), color=colours)
    right.set(ylim=(low, high), ylabel=f"{figures.component_label(name)} fraction", xlabel="pixels")
    right.locator_params(axis="x", nbins=3)


def _draw_particles(figure: Figure, groups: Groups, look: Look) -> None:
    """Outlines on the thickness, and the fraction of every particle."""
    from matplotlib.patheffects import withStroke

    maps, table = groups["maps"], groups["particles"]
    if "particle_label" not in maps:  # the composition is newer than the particles
        return
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    labels = _thinned(maps["particle_label"])
    _show(left, _thinned(maps["thickness"]), cmap="gray")
    draw_outlines(left, labels.to_dataset(), labels.values, colors=ON_DARK[1], linewidths=0.8)
    scale, _ = length_scale(maps)
    if table.sizes["particle"] <= MOST_NUMBERED:
        for number, y, x in zip(table["particle"].values, table["y"], table["x"], strict=True):
            text = left.text(float(x) * scale, float(y) * scale, str(number), color="white")
            text.set(fontsize=look.points, ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    name = str(maps.attrs["fraction"])
    values, errors = numbers_of(table, f"{name}_fraction"), errors_of(table, f"{name}_fraction")
    order = np.argsort(values)
    used = table["used"].values.astype(bool)[order]
    options: dict[str, Any] = {"markersize": 3}
    for chosen, colour in ((used, look.colours[0]), (~used, "#888888")):
        rows = np.flatnonzero(chosen)
        draw_points(
            right, rows, values[order][chosen], errors[order][chosen], color=colour, **options
        )
    component = figures.component_label(name)
    right.set(xlabel="particles, in order", ylabel=f"{component} fraction", xticks=[])


def _draw_models(figure: Figure, groups: Groups, look: Look) -> None:
    """The profile that is known best with both fits, and D of every particle with the pooled."""
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_profile(left, groups, look)
    _draw_coefficients(right, groups, look)


def _draw_profile(axes: Axes, groups: Groups, look: Look) -> None:
    profiles, models = groups["profiles"], groups["models"]
    name = f"{groups['maps'].attrs['fraction']}_fraction"
    values, errors = numbers_of(profiles, name), errors_of(profiles, name)
    known = np.isfinite(values) & (errors > 0)
    labels = list(models["particle"].values)
    fitted = np.isin(profiles["particle"].values, labels)
    information = np.where(known, 1 / np.where(known, errors, 1.0) ** 2, 0.0).sum(axis=1) * fitted
    axes.set(xlabel="distance from edge [nm]", ylabel="fraction")
    if not information.any():
        axes.set_title("no particle with a profile")
        return
    best = int(np.argmax(information))
    number = int(profiles["particle"].values[best])
    draw_points(
        axes, profiles["distance"].values, values[best], errors[best],
        color=look.ink, markersize=2.5,
    )  # fmt: skip
    for model in models["model"].values:
        curve = models["fit"].sel(particle=number, model=model)
        axes.plot(curve["distance"], curve, color=look.of(str(model)), linewidth=1.2, label=model)
    axes.set_title(f"particle {number}")
    axes.legend(loc="best", handlelength=1.2)


def _draw_coefficients(axes: Axes, groups: Groups, look: Look) -> None:
    models, pooled = groups["models"], groups["pooled"]
    timed = bool(np.isfinite(numbers_of(models, "D_cm2_s")).any())
    name, units, mean = (
        ("D_cm2_s", "D [cm²/s]", "log10_D") if timed else ("Dt_cm2", "D t [cm²]", "log10_Dt")
    )
    one = models.sel(model="diffusion") if "diffusion" in models["model"].values else None
    axes.set(xlabel="particles, in order", ylabel=f"log₁₀ {units}", xticks=[])
    if one is None:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        value, low, high = (
            np.log10(numbers_of(one, f"{name}{end}")) for end in ("", "_low", "_high")
        )
    order = [i for i in np.argsort(value) if np.isfinite(value[i])]
    verdicts = texts_of(models, "verdict")
    for row, index in enumerate(order):
        ends = np.nan_to_num([value[index] - low[index], high[index] - value[index]], posinf=9)
        bars = np.clip(ends, 0, None)[:, None]
        colour = look.of(verdicts[index])
        axes.errorbar([row], [value[index]], yerr=bars, fmt="o", color=colour, markersize=3)
    centre, error = (float(pooled[n]) for n in (mean, f"{mean}_errors"))
    if np.isfinite(centre):
        band = np.nan_to_num(error)
        axes.axhspan(centre - band, centre + band, color=look.colours[3], alpha=0.25, linewidth=0)
        axes.axhline(centre, color=look.colours[3], linewidth=1)
    if order:
        middle = value[order]
        axes.set_ylim(float(middle.min()) - 0.6, float(middle.max()) + 0.6)


def _draw_heterogeneity(figure: Figure, groups: Groups, look: Look) -> None:
    """Fraction against thickness by place, and the differences between places."""
    found, table = groups["heterogeneity"], groups["particles"]
    name = f"{groups['maps'].attrs['fraction']}_fraction"
    known = np.flatnonzero(np.isfinite(numbers_of(found, "difference")))
    panels = figure.subplots(1, 2 if known.size else 1, squeeze=False)[0]
    left = panels[0]
    values, errors = numbers_of(table, name), errors_of(table, name)
    places = np.array(texts_of(table, "place"))
    colours = dict(zip(PLACES, (look.colours[i] for i in (3, 1, 0)), strict=True))
    for place in sorted(set(places)):
        here = places == place
        draw_points(
            left, numbers_of(table, "thickness")[here], values[here], errors[here],
            color=colours.get(place, look.ink), markersize=3, label=place,
        )  # fmt: skip
    component = figures.component_label(name.removesuffix("_fraction"))
    left.set(xlabel="thickness [nm]", ylabel=f"{component} fraction")
    left.margins(0.1)
    if set(places) - {""}:
        left.legend(loc="best", handletextpad=0.2)
    if known.size:
        _draw_differences(panels[1], found.isel(contrast=known[::-1]), look)
    else:
        left.set_title("too few particles to compare places")


def _draw_differences(axes: Axes, found: xr.Dataset, look: Look) -> None:
    difference, low, high = (numbers_of(found, n) for n in ("difference", "low", "high"))
    axes.axvline(0, color=look.ink, linewidth=0.6)
    rows = np.arange(difference.size)
    ends = np.stack([difference - low, high - difference])
    axes.errorbar(difference, rows, xerr=ends, fmt="o", color=look.colours[0], markersize=3)
    where = axes.get_yaxis_transform()
    for row, name in zip(rows, found["contrast"].values, strict=True):
        base, _, rest = str(name).partition(" at ")
        text = f"   {rest.split(', ')[-1]}" if rest else base  # what is new about this row
        axes.text(0.03, row + 0.12, text, transform=where, color=look.ink, fontsize=look.points)
    axes.set_yticks([])
    axes.set_ylim(-0.4, rows.size - 0.1)
    axes.margins(x=0.15)
    axes.set_xlabel("difference")
    axes.locator_params(axis="x", nbins=3)


PAINTERS: dict[str, Callable[[Figure, Groups, Look], None]] = {
    "align": _draw_shifts,
    "i0": _draw_i0,
    "energy": _draw_mean,
    "composition": _draw_fraction,
    "particles": _draw_particles,
    "models": _draw_models,
    "heterogeneity": _draw_heterogeneity,
}


def _thinned(array: xr.DataArray) -> xr.DataArray:
    """Every n-th pixel of a large map."""
    step = -(-max(array.shape[-2:]) // MOST_PX)
    return array.isel(y=slice(step // 2, None, step), x=slice(step // 2, None, step))


def _one_frame(stack: xr.DataArray) -> xr.DataArray:
    """The middle frame of a stack, coarse."""
    frame = _thinned(stack.isel(energy=stack.sizes["energy"] // 2)).load()
    return abs(frame) if frame.dtype.kind == "c" else frame


def _show(axes: Axes, values: xr.DataArray, **options: Any) -> None:
    """A map, y upwards, without ticks."""
    scale, _ = length_scale(values.to_dataset(name="map"))
    left, right = _ends(values["x"].values * scale)
    low, high = _ends(values["y"].values * scale)
    options |= {"extent": (left, right, low, high), "interpolation": "nearest"}
    axes.imshow(values.values, origin="lower", **options)
    axes.set(xticks=[], yticks=[], facecolor="#80808040")


def _ends(centres: NDArray[Any]) -> tuple[float, float]:
    """First and last edge of an axis of pixel centres."""
    half = float(centres[-1] - centres[0]) / max(centres.size - 1, 1) / 2
    return float(centres[0]) - half, float(centres[-1]) + half


# --- where they are shown ----------------------------------------------------------------------


class Picture(QLabel):
    """The picture of one step, drawn when it can be seen; a click shows it in full.

    Parameters
    ----------
    session : Session
        What found it, and draws in the background.
    step, title : str
        Name of the step, for the program and for the eye.
    """

    drawn = Signal()

    def __init__(self, session: Any, step: str, title: str) -> None:
        super().__init__()
        self._session, self._step, self._title = session, step, title
        self._known = self._outdated = False
        self._look: Look | None = None
        self._large: _Enlarged | None = None
        self.setToolTip("<p>Click to see it in full.</p>")
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._veil = QGraphicsOpacityEffect(self)
        self._veil.setOpacity(STALE_OPACITY)
        self._veil.setEnabled(False)
        self.setGraphicsEffect(self._veil)
        self.setVisible(False)

    def set_stale(self, stale: bool) -> None:
        """Whether what it shows no longer holds: then it is pale."""
        self._veil.setEnabled(stale)

    def forget(self) -> None:
        """Nothing was found in what is open now."""
        self._known = self._outdated = False
        self.clear()
        self.setVisible(False)

    def refresh(self) -> None:
        """Something was found: draw it, now or when it can be seen."""
        self._known = self._outdated = True
        self.setVisible(self._step in PAINTERS)
        if self.isVisible():
            self._draw()

    def showEvent(self, event: Any) -> None:
        """Draw what was not seen before."""
        super().showEvent(event)
        self._follow()

    def changeEvent(self, event: Any) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        kinds = (QEvent.Type.StyleChange, QEvent.Type.PaletteChange)
        if event.type() in kinds and hasattr(self, "_look"):
            self._follow()

    def _follow(self) -> None:
        self._outdated |= self._look != self._colours()
        if self.isVisible() and self._known and self._outdated:
            self._draw()

    def _colours(self) -> Look:
        palette = self.palette()
        window, text = QPalette.ColorRole.Window, QPalette.ColorRole.WindowText
        return Look(palette.color(window).name(), palette.color(text).name())

    def _draw(self) -> None:
        self._outdated, self._look = False, self._colours()
        self._session.task(
            f"picture of {self._step}",
            draw_step,
            self._step,
            self._groups(),
            self._look,
            SMALL,
            self.devicePixelRatioF(),
            self._session.stack if self._step == "i0" else None,
            done=while_alive(self._show),
        )

    def _groups(self) -> dict[str, xr.Dataset]:
        """What there is to draw, as far as it was found."""
        names = NEEDED[self._step]
        return {name: found for name in names if (found := self._session.group(name)) is not None}

    def _show(self, pixels: Pixels | None) -> None:
        if pixels is None or not self._known:
            self.clear()
            return
        self.setPixmap(as_pixmap(pixels, self.devicePixelRatioF()))
        self.drawn.emit()

    # --- in full -------------------------------------------------------------------------------

    def mousePressEvent(self, event: Any) -> None:
        """Show it in full."""
        if event.button() == Qt.MouseButton.LeftButton:
            self.enlarge()

    def enlarge(self) -> None:
        """Show it in full in a window of its own."""
        look = Look(self._colours().paper, self._colours().ink, LARGE_PT)
        self._session.task(
            f"large picture of {self._step}",
            draw_in_full,
            self._step,
            self._session.tree,
            self._groups(),
            look,
            self.devicePixelRatioF(),
            done=while_alive(self._show_large),
        )

    def _show_large(self, pixels: Pixels | None) -> None:
        if pixels is None:
            return
        if self._large is None or not is_alive(self._large):
            self._large = _Enlarged(self, self._title)
        self._large.show_pixels(pixels)


#: Groups that a picture is drawn from.
NEEDED = {
    "align": ("shifts",),
    "i0": ("i0",),
    "energy": ("spectra",),
    "composition": ("maps",),
    "particles": ("maps", "particles"),
    "models": ("maps", "profiles", "models", "pooled"),
    "heterogeneity": ("maps", "particles", "heterogeneity"),
}


def draw_in_full(
    step: str, tree: Callable[[], xr.DataTree], groups: Groups, look: Look, ratio: float
) -> Pixels | None:
    """What a step found as a report shows it; the small picture enlarged where there is none.

    Parameters
    ----------
    step : str
        Name of the step.
    tree : callable
        Gives the result as far as it has come.
    groups : mapping of str to Dataset
        For the small picture.
    look : Look
        Colours and letters of that.
    ratio : float
        Device pixels for each pixel of the screen.

    Returns
    -------
    ndarray of uint8, shape (height, width, 4), or None
    """
    figure = IN_FULL[step](tree())
    if figure is None:
        return draw_step(step, groups, look, LARGE, ratio)
    width, height = figure.get_size_inches()
    return _pixels(figure, ratio * min(LARGE[0] / width, LARGE[1] / height))


def as_pixmap(pixels: Pixels, ratio: float) -> QPixmap:
    """Pixels as Qt draws them."""
    height, width = pixels.shape[:2]
    data = pixels.tobytes()
    image = QImage(data, width, height, 4 * width, QImage.Format.Format_RGBA8888)
    pixmap = QPixmap.fromImage(image)
    pixmap.setDevicePixelRatio(ratio)
    return pixmap


class _Enlarged(QWidget):
    """A window beside the viewer with one picture in it."""

    def __init__(self, parent: QWidget, title: str) -> None:
        super().__init__(parent, Qt.WindowType.Window)
        self.setWindowTitle(f"spectromap: {title}")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.label = QLabel()
        self.label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.label.setMinimumSize(QSize(200, 120))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addWidget(self.label)

    def show_pixels(self, pixels: Pixels) -> None:
        """Show a picture, in front."""
        self._pixmap = as_pixmap(pixels, self.devicePixelRatioF())
        self.label.setPixmap(self._pixmap)
        self.show()
        self.raise_()

    def resizeEvent(self, event: Any) -> None:
        """The picture fills the window."""
        super().resizeEvent(event)
        ratio = self.devicePixelRatioF()
        scaled = self._pixmap.scaled(
            self.label.size() * ratio,
            Qt.AspectRatioMode.KeepAspectRatio,
            Qt.TransformationMode.SmoothTransformation,
        )
        scaled.setDevicePixelRatio(ratio)
        self.label.setPixmap(scaled)
