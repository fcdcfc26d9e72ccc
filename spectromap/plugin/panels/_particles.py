"""Particles in a table, in a plot and in a cloud, chosen in any of them, and corrected by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QAction  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMenu,
    QSplitter,
    QToolBar,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from threadpoolctl import threadpool_limits

from spectromap.figures import particle_fits
from spectromap.figures._canvas import save_figure
from spectromap.plugin._alive import is_alive
from spectromap.plugin._shown import ROLE, layer_of, visible_box
from spectromap.plugin.panels import _labelling
from spectromap.plugin.panels._particle_editor import Editor
from spectromap.plugin.panels._particle_plots import NOTHING, Cloud, FitPlot, Known
from spectromap.plugin.panels._particle_table import ParticleTable, particle_columns
from spectromap.plugin.panels._regions import pixels, shapes_mask
from spectromap.profiles import radial_profiles
from spectromap.schema import InputError, SpectromapError, pixel_size
from spectromap.segment._grid import Labels

__all__ = ["ParticlePanel"]

#: A press of the mouse that moves less than this many pixels of the screen is a click.
CLICK_PX = 4
#: The ring round the chosen particle is so much larger than it, and so wide, in its own diameters.
RING, RING_WIDTH = 1.35, 0.03
#: Its role, and name.
RING_ROLE = "chosen particle"
#: Role of the layer for lines and shapes that tools ask for.
DRAWING = "drawing for particles"


class ParticlePanel(QWidget):
    """Particles in a table, the chosen one in a plot, all in a cloud; tools to correct them.

    Parameters
    ----------
    session : Session
        What is worked on.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self._known = NOTHING
        self._profiles: xr.Dataset | None = None
        self._fitted: Labels | None = None
        self._wanted = ""
        self._ring: Callable[[], Any] | None = None
        self.table, self.fit, self.cloud = ParticleTable(), FitPlot(), Cloud()
        self.editor = Editor(session, self)
        self.note = QLabel()
        self._lay_out()
        self.table.picked.connect(self._pick)
        self.cloud.picked.connect(self._pick)
        session.particle_chosen.connect(self._show_chosen)
        session.found.connect(self._on_found)
        session.changed.connect(self._refresh_soon)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._refresh)
        self._join(session.viewer)
        if session.holds("models"):
            self._on_found("models")
        elif session.group("particles") is not None:
            self._on_found("particles")
        self._refresh()

    # --- what it looks like --------------------------------------------------------------------

    def _lay_out(self) -> None:
        self.tools = QToolBar()
        self.actions_by_name: dict[str, QAction] = {}
        for name, tip, does in (
            ("Split", "Cut the chosen particle in two where it is narrow or thin.", self.split),
            ("Split by line", "Draw a line across the chosen particle; it is cut there. A line"
             " that is selected in a shapes layer is taken at once.", self.split_by_line),
            ("Merge", "Make one particle of the chosen rows; of one row and the particle that is"
             " clicked next.", self.merge),
            ("Delete", "Make the chosen particles background.", self.delete),
            ("New", "Draw round a new particle. Shapes that are selected in a shapes layer are"
             " taken at once.", self.new),
        ):  # fmt: skip
            self._add_tool(name, tip, does)
        for name in ("Split by line", "Merge", "New"):
            self.actions_by_name[name].setCheckable(True)
        self._add_agglomerates()
        self.tools.addSeparator()
        self._add_tool("Copy", "Copy the chosen rows, or all, for a spreadsheet.", self.table.copy)
        self._add_tool("Export table…", "Write the table as it is shown, as CSV.", self._ask_table)
        text = "Write the figure of the chosen particle with its map, as PDF, SVG or PNG."
        self._add_tool("Save figure…", text, self._ask_figure)
        self.tools.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
        self.tools.setStyleSheet("QToolButton:checked { background: palette(highlight); }")
        top = QHBoxLayout()
        top.setContentsMargins(0, 0, 0, 0)
        top.addWidget(self.tools, 1)
        top.addWidget(self.note)
        split = QSplitter(Qt.Orientation.Horizontal)
        for widget, share in ((self.table, 5), (self.fit, 4), (self.cloud, 4)):
            split.addWidget(widget)
            split.setStretchFactor(split.count() - 1, share)
        split.setSizes([350, 400, 440])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2, 0, 2, 2)
        layout.setSpacing(2)
        layout.addLayout(top)
        layout.addWidget(split, 1)

    def _add_tool(self, name: str, tip: str, does: Callable[[], object]) -> None:
        action = QAction(name, self)
        action.setToolTip(tip)
        action.triggered.connect(lambda: self._tell_errors(does))
        self.tools.addAction(action)
        self.actions_by_name[name] = action

    def _add_agglomerates(self) -> None:
        """A menu that is filled when it opens, because agglomerates come and go."""
        button = QToolButton()
        button.setText("Agglomerate")
        button.setToolTip("Put the chosen particles into an agglomerate, or take them out.")
        button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.agglomerates = QMenu(button)
        self.agglomerates.aboutToShow.connect(self._fill_agglomerates)
        button.setMenu(self.agglomerates)
        self.tools.addWidget(button)

    def _fill_agglomerates(self) -> None:
        table = self._known.table
        known = sorted(set(table["agglomerate"].values.tolist()) - {0}) if len(table) else []
        follows = max(known, default=0) + 1
        self.agglomerates.clear()
        for text, group in (
            (f"New agglomerate {follows}", follows),
            *((f"Agglomerate {group}", group) for group in known),
            ("None", 0),
        ):
            action = QAction(text, self.agglomerates)
            action.triggered.connect(lambda _=False, g=group: self._tell_errors(self.assign, g))
            self.agglomerates.addAction(action)

    def _tell_errors(self, does: Callable[..., object], *args: Any) -> None:
        """Do something; what the user can mend is said in the widget."""
        try:
            does(*args)
        except SpectromapError as error:
            self._end_waiting()
            self._session.told.emit("error", str(error))

    # --- the window ----------------------------------------------------------------------------

    def _join(self, viewer: Any) -> None:
        """Listen to layers that come and go, and to clicks."""
        if viewer is None:
            return
        for name in ("inserted", "removed"):
            getattr(viewer.layers.events, name).connect(self._on_layers, position="last")
        viewer.mouse_drag_callbacks.append(_clicks(weakref.ref(self)))
        self._on_layers()

    def _on_layers(self, event: Any = None) -> None:
        """A layer has come or gone; it may be that of the particles or the one to draw in."""
        if not is_alive(self):
            return
        viewer = self._session.viewer
        layer = layer_of(viewer, "particles")
        if layer is not None and layer is not self.editor._layer():
            layer.events.selected_label.connect(self._on_label)
        self.editor.watch(layer)
        if self._wanted in ("line", "shape") and layer_of(viewer, DRAWING) is None:
            self._end_waiting()

    def _on_label(self, event: Any) -> None:
        """A label was chosen with napari's own tools."""
        if is_alive(self) and event.source.selected_label in self._known.table["particle"]:
            self._pick(int(event.source.selected_label))

    def clicked(self, position: Any) -> None:
        """Choose the particle at a place of the canvas, in world coordinates.

        Parameters
        ----------
        position : sequence of float
            As napari's mouse events have it. Tools that draw keep their clicks.
        """
        viewer = self._session.viewer
        layer = layer_of(viewer, "particles")
        active = None if viewer is None else viewer.layers.selection.active
        if layer is None or str(getattr(active, "mode", "pan_zoom")) != "pan_zoom":
            return
        label = layer.get_value(position, world=True)
        if label in self._known.table["particle"]:
            self._pick(int(label))

    # --- choosing ------------------------------------------------------------------------------

    def _pick(self, label: int) -> None:
        """A particle was chosen in one of the places."""
        before = self._session.particle
        if self._wanted == "merge" and label != before:
            self._tell_errors(self._merge, [before, label])
            return
        self._session.choose(label)

    def _show_chosen(self, label: int) -> None:
        """Show the chosen particle everywhere."""
        if label not in self.table.chosen()[:1]:
            self.table.choose([label])
        self.cloud.choose(label)
        self.fit.show_particle(self._known, label)
        self._show_in_canvas(label)

    def _show_in_canvas(self, label: int) -> None:
        """Select the label, put a ring round it, and move there only if it is out of view."""
        viewer, known = self._session.viewer, self._known
        layer = layer_of(viewer, "particles")
        if layer is not None and label and layer.selected_label != label:
            layer.selected_label = label
        if viewer is None or known.maps is None or label not in known.table["particle"]:
            ring = layer_of(viewer, RING_ROLE)
            if ring is not None:
                ring.data = np.empty((0, 2))
            return
        row = known.table.sel(particle=label)
        y, x = float(row["y"]), float(row["x"])
        image = known.maps["thickness"]
        box = visible_box(viewer, image)
        if viewer.dims.ndisplay == 2 and not _holds(box, image, (y, x)):
            camera = viewer.scene.camera
            camera.center = (*camera.center[:-2], y, x)
        self._put_ring(viewer, y, x, float(row["radius"]))

    def _put_ring(self, viewer: Any, y: float, x: float, radius: float) -> None:
        """A ring round a particle; one that the user has deleted stays away."""
        from napari.layers import Points

        ring = layer_of(viewer, RING_ROLE)
        size = 2 * radius * RING
        if ring is not None:
            ring.data, ring.size, ring.current_size = [[y, x]], size, size
            return
        if self._ring is not None:
            return
        ring = Points(
            [[y, x]], name=RING_ROLE, units=("nm", "nm"), axis_labels=("y", "x"),
            size=size, face_color="transparent", border_color="white", border_width=RING_WIDTH,
            metadata={ROLE: RING_ROLE},
        )  # fmt: skip
        self._ring = weakref.ref(ring)
        with _same_selection(viewer):
            viewer.add_layer(ring)

    # --- what is found -------------------------------------------------------------------------

    def _on_found(self, step: str) -> None:
        """Something is known that was not, or has changed."""
        session = self._session
        maps = session.group("maps")
        if step == "models" and maps is not None and "particle_label" in maps:
            self._fitted = maps["particle_label"].values
            self._profiles = session.group("profiles")
        elif step == "particles" and maps is not None and not session.holds("models"):
            self._compute_profiles(maps)
        if step in ("composition", "particles", "models"):
            self._refresh_soon()

    def _compute_profiles(self, maps: xr.Dataset) -> None:
        """Profiles of particles whose models wait to be fitted."""
        session = self._session
        spectra, analysis = session.group("spectra"), session.analysis
        if spectra is None or analysis is None or "edge_distance" not in maps:
            return
        plan = analysis.plan
        arguments = maps, plan.fraction, float(spectra["resolution"]), plan.of("profiles")
        session.task("particle profiles", _profiles_of, *arguments, done=self._put_profiles)

    def _put_profiles(self, profiles: xr.Dataset) -> None:
        """Profiles are there, unless the models came first."""
        if is_alive(self) and not self._session.holds("models"):
            self._profiles = profiles
            self._refresh()

    def _refresh_soon(self) -> None:
        """After any change, once."""
        self._soon.start()

    def _refresh(self) -> None:
        """Show what is known now."""
        known = self._now()
        if _alike(known, self._known):
            return
        self._known = known
        self.table.show_table(known.table)
        self.cloud.show_table(known)
        self._say()
        label = self._session.particle
        self._show_chosen(label if label in known.table["particle"] else 0)

    def _now(self) -> Known:
        """Everything about the particles, from the groups of the session."""
        session = self._session
        particles, maps = session.group("particles"), session.group("maps")
        if particles is None or maps is None or "particle" not in particles.dims:
            return NOTHING
        if not particles.sizes["particle"]:
            return NOTHING
        if "particle_label" not in maps:  # the composition is newer than the particles
            return self._known
        models, held = session.group("models"), session.holds("models")
        profiles = session.group("profiles") if held else self._profiles
        if models is not None and not held:
            models = self._unchanged(models, particles, maps)
        return Known(
            particle_columns(particles, profiles, models),
            profiles,
            models,
            maps,
            str(particles.attrs.get("fraction", "")),
            models is not None and not held,
        )

    def _unchanged(
        self, models: xr.Dataset, particles: xr.Dataset, maps: xr.Dataset
    ) -> xr.Dataset | None:
        """The models of particles that are still what was fitted."""
        labels = maps["particle_label"].values
        if self._fitted is None or self._fitted.shape != labels.shape:
            return None
        changed = _labelling.touched(self._fitted, labels)
        kept = np.isin(models["particle"].values, particles["particle"].values)
        return models.isel(particle=kept & ~np.isin(models["particle"].values, changed))

    def _say(self, text: str = "") -> None:
        """What the user is asked for; else how many particles there are, and what is stale."""
        table = self._known.table
        count = table.sizes["particle"]
        if count and not text:
            text = f"{count} particles, {int(table['used'].values.sum())} used"
            if not self._session.holds("models"):
                text += "; models wait for Run"
        self.note.setText(text)

    # --- tools ---------------------------------------------------------------------------------

    def split(self) -> None:
        """Cut the chosen particle at its waist."""
        maps = self._known.maps
        labels = self.editor.labels()
        if maps is None:
            raise InputError("there is no thickness map yet", where="split")
        thickness = maps["thickness"]
        made = _labelling.split_at_waist(
            labels, self._session.particle, thickness.values, pixel_size(thickness)
        )
        self.editor.use(made[0])

    def split_by_line(self) -> None:
        """Cut the chosen particle along a line: the selected one, or one that is drawn now."""
        if self._stop("line"):
            return
        self.editor.labels()
        if not self._session.particle:
            raise InputError("no particle is chosen", where="split")
        layer = self._selected_shapes()
        if layer is not None and len(layer.selected_data) == 1:
            self._cut_along(layer, next(iter(layer.selected_data)))
        else:
            self._wait_for(
                "line", "add_line", f"Draw a line across particle {self._session.particle}."
            )

    def merge(self) -> None:
        """Make one particle of the chosen ones, or of the chosen one and the one clicked next."""
        if self._stop("merge"):
            return
        chosen = self.table.chosen()
        if len(chosen) > 1:
            self._merge(chosen)
            return
        self.editor.labels()
        if not self._session.particle:
            raise InputError("no particle is chosen", where="merge")
        text = f"Click the particle that belongs to particle {self._session.particle}."
        self._want("merge", text)

    def _merge(self, chosen: list[int]) -> None:
        self._end_waiting()
        self.editor.use(_labelling.merged(self.editor.labels(), chosen))
        self._session.choose(chosen[0])
        self.table.choose(chosen[:1])

    def delete(self) -> None:
        """Make the chosen particles background."""
        self.editor.use(_labelling.without(self.editor.labels(), self._chosen()))

    def new(self) -> None:
        """A new particle from the selected shapes, or from one that is drawn now."""
        if self._stop("shape"):
            return
        self.editor.labels()
        layer = self._selected_shapes()
        if layer is not None:
            self._add_from(layer, layer.selected_data)
        else:
            self._wait_for("shape", "add_polygon_lasso", "Draw round the new particle.")

    def assign(self, group: int) -> None:
        """Put the chosen particles into an agglomerate.

        Parameters
        ----------
        group : int
            Its number; 0 takes them out of theirs.
        """
        maps = self._known.maps
        if maps is None:
            raise InputError("there are no particles yet", where="agglomerate")
        labels, now = self.editor.labels(), maps["agglomerate_label"].values
        self.editor.use_agglomerates(_labelling.grouped(now, labels, self._chosen(), group))

    def _chosen(self) -> list[int]:
        """The chosen rows, or the chosen particle."""
        return self.table.chosen() or [self._session.particle]

    # --- lines and shapes that tools ask for ---------------------------------------------------

    def _selected_shapes(self) -> Any:
        """The active layer, if shapes in it are selected."""
        viewer = self._session.viewer
        layer: Any = None if viewer is None else viewer.layers.selection.active
        return layer if hasattr(layer, "shape_type") and layer.selected_data else None

    def _wait_for(self, wanted: str, mode: str, text: str) -> None:
        """Let the user draw something."""
        from napari.layers import Shapes

        viewer = self._session.viewer
        if viewer is None:
            return
        pixel = min(pixel_size(self._known.maps["thickness"])) if self._known.maps else 1.0
        layer = Shapes(
            ndim=2, name=text.rstrip("."), units=("nm", "nm"), axis_labels=("y", "x"),
            edge_width=pixel, edge_color="white", face_color="transparent",
            metadata={ROLE: DRAWING},
        )  # fmt: skip
        viewer.add_layer(layer)
        layer.mode = mode
        layer.events.data.connect(self._on_drawing)
        self._want(wanted, text)

    def _on_drawing(self, event: Any) -> None:
        """Something is being drawn; it is taken once napari is done with it."""
        if is_alive(self) and str(getattr(event, "action", "")) == "added":
            QTimer.singleShot(0, self._take_drawing)

    def _take_drawing(self) -> None:
        viewer = self._session.viewer if is_alive(self) else None
        layer = layer_of(viewer, DRAWING)
        if layer is None or not len(layer.data) or not self._wanted:
            return
        does = self._cut_along if self._wanted == "line" else self._add_from
        last = len(layer.data) - 1
        self._tell_errors(does, layer, last if self._wanted == "line" else [last])
        self._end_waiting()

    def _cut_along(self, layer: Any, number: int) -> None:
        if str(layer.shape_type[number]) != "line":
            raise InputError(
                "the selected shape is no line", where="split", remedy="Draw a line, or none."
            )
        image = self._image()
        world = np.array([layer.data_to_world(end)[-2:] for end in layer.data[number]])
        (y0, x0), (y1, x1) = pixels(world, image)
        labels, label = self.editor.labels(), self._session.particle
        self.editor.use(_labelling.split_by_line(labels, label, (y0, x0), (y1, x1))[0])

    def _add_from(self, layer: Any, numbers: Iterable[int]) -> None:
        inside = shapes_mask(layer, numbers, self._image())
        labels, label = _labelling.with_new(self.editor.labels(), inside)
        self.editor.use(labels)
        self._session.choose(label)

    def _image(self) -> xr.DataArray:
        """The pixels of the particles, with their axes."""
        maps: xr.Dataset | None = self._session.group("maps")
        if maps is None:
            raise InputError("there are no maps yet", where="particles")
        return maps["thickness"]

    def _want(self, wanted: str, text: str = "") -> None:
        """Say at the buttons and beside them what is waited for."""
        self._wanted = wanted
        self._say(text)
        for name, kind in (("Split by line", "line"), ("Merge", "merge"), ("New", "shape")):
            self.actions_by_name[name].setChecked(kind == wanted)

    def _stop(self, wanted: str) -> bool:
        """End waiting; whether it was for this, so that the button was pressed to stop it."""
        was = self._wanted == wanted
        self._end_waiting()
        return was

    def _end_waiting(self) -> None:
        """Stop waiting for a click or a drawing."""
        self._want("")
        viewer = self._session.viewer
        layer = layer_of(viewer, DRAWING)
        if layer is not None:
            viewer.layers.remove(layer)
            particles = layer_of(viewer, "particles")
            if particles is not None:
                viewer.layers.selection.active = particles

    # --- files ---------------------------------------------------------------------------------

    def save_table(self, path: str | Path) -> None:
        """Write the table as it is shown.

        Parameters
        ----------
        path : path-like
            A CSV file; its columns are named as those of ``particles.csv``.
        """
        self._tell_errors(self.table.save, path)

    def save_figure(self, path: str | Path) -> None:
        """Write the figure of the chosen particle; the ending tells the format.

        Parameters
        ----------
        path : path-like
            The file: png, pdf or svg.
        """
        session = self._session

        def done(written: Path) -> None:
            session.told.emit("info", f"Saved {written.name}.")

        session.task("figure", _write_figure, self._known, session.particle, path, done=done)

    def _ask_table(self) -> None:
        self._ask("Export table", "particles.csv", "Table (*.csv)", self.save_table)

    def _ask_figure(self) -> None:
        name, kinds = f"particle_{self._session.particle}.pdf", "Figure (*.pdf *.svg *.png)"
        self._ask("Save figure", name, kinds, self.save_figure)

    def _ask(self, title: str, name: str, kinds: str, save: Callable[[str], None]) -> None:
        """Ask for a file without stopping anything else."""
        dialog = QFileDialog(self, title, name, kinds)
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix(Path(name).suffix)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.selectFile(name)
        dialog.fileSelected.connect(save)
        dialog.open()


def _clicks(panel: weakref.ref[ParticlePanel]) -> Callable[[Any, Any], Iterator[None]]:
    """What napari calls when a button of the mouse goes down: a click chooses a particle."""

    def clicked(viewer: Any, event: Any) -> Iterator[None]:
        start = np.array(event.pos, dtype=np.float64)
        yield
        while event.type == "mouse_move":
            yield
        found = panel()
        still = np.hypot(*(np.array(event.pos) - start)) <= CLICK_PX
        if found is not None and is_alive(found) and still and event.button == 1:
            found.clicked(event.position)

    return clicked


def _profiles_of(
    maps: xr.Dataset, fraction: str, resolution: float, options: Mapping[str, Any]
) -> xr.Dataset:
    """Profiles as a run makes them."""
    with threadpool_limits(1):
        return radial_profiles(maps, fraction, resolution, **options)


def _write_figure(known: Known, label: int, path: str | Path) -> Path:
    """Draw and write the figure of a particle."""
    groups = {
        "maps": known.maps,
        "profiles": known.profiles,
        "particles": known.table,
        "models": known.models,
    }
    tree = xr.DataTree.from_dict(
        {f"/entry/{name}": group for name, group in groups.items() if group is not None}
    )
    figure = particle_fits(tree, label)
    if figure is None:
        raise InputError("the chosen particle has no profile", where="figure")
    return save_figure(figure, path)


def _alike(one: Known, other: Known) -> bool:
    """Whether nothing would look different."""
    if one.stale != other.stale or one.maps is not other.maps:
        return False
    return one.table.identical(other.table) and one.profiles is other.profiles


def _holds(box: Any, image: xr.DataArray, place: tuple[float, float]) -> bool:
    """Whether a place in nm is in a box of an image."""
    if box is None:
        return False
    return all(
        image[axis].values[part][0] <= at <= image[axis].values[part][-1]
        for axis, part, at in zip("yx", box, place, strict=True)
    )


@contextmanager
def _same_selection(viewer: Any) -> Iterator[None]:
    """Leave the selected layers what they are; napari selects what is added."""
    selection = viewer.layers.selection
    before, active = set(selection), selection.active
    yield
    selection.clear()
    selection.update(before)
    selection.active = active
