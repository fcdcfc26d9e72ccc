"""What the viewer shows of a session: the pictures of each step, and a preview of the maps."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from spectromap.align import apply_shifts
from spectromap.plugin._alive import is_alive, while_alive
from spectromap.plugin._companion import follow, prepared
from spectromap.plugin._frames import KEPT_BYTES
from spectromap.plugin._layers import (
    KEY,
    Content,
    LayerData,
    content_of,
    fraction_layer,
    labels_layer,
    particle_table,
    picture,
    stack_layers,
    thickness_layer,
)
from spectromap.plugin.reader import FILES

__all__ = ["ROLE", "Shown", "layer_of", "source_of", "visible_box"]

#: Where a layer's metadata says what it is for.
ROLE = "spectromap: role"
#: Roles from the bottom to the top, and the steps whose result they show.
ROLES = {
    "phase": "data",
    "stack": "data",
    "mean": "align",
    "open area": "i0",
    "thickness": "composition",
    "fraction": "composition",
    "preview": "energy",
    "agglomerates": "particles",
    "particles": "particles",
}
#: Values of a layer's own that stay as the user has set them when it is shown anew.
PLACE = ("scale", "translate")
STALE = " (stale)"
#: Where the metadata of the fraction says that its colour bar gave way to that of the preview.
BAR = "spectromap: bar"
#: The camera has to rest for so long before the preview is computed.
REST_MS = 150

Pictures = dict[str, LayerData]


def layer_of(viewer: Any, role: str) -> Any:
    """The layer with a role, or None where there is none.

    Parameters
    ----------
    viewer : napari.Viewer or None
        The window.
    role : str
        "stack", "mean", "open area", "thickness", "fraction", "preview", "agglomerates" or
        "particles"; other panels have roles of their own.

    Returns
    -------
    napari.layers.Layer or None
        Ask again whenever it is needed: users delete layers.
    """
    layers = () if viewer is None else viewer.layers
    return next((layer for layer in layers if layer.metadata.get(ROLE) == role), None)


def visible_box(viewer: Any, image: xr.DataArray) -> tuple[slice, slice] | None:
    """Rows and columns of an image that the canvas shows; None where it shows none of them.

    Parameters
    ----------
    viewer : napari.Viewer
        The window, in two dimensions.
    image : DataArray, dims (..., y, x)
        Anything with axes in nm.

    Returns
    -------
    tuple of slice, or None
    """
    camera, size = viewer.scene.camera, viewer.canvas.size
    found = []
    for axis, middle, pixels in zip("yx", camera.center[-2:], size, strict=True):
        half = pixels / 2 / camera.zoom
        inside = np.flatnonzero(np.abs(image[axis].values - middle) <= half)
        if not inside.size:
            return None
        found.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return found[0], found[1]


class Shown(QObject):
    """Adds and updates the layers that show what a session has found.

    A layer is updated in place: its values, its place and its table change, all else stays as the
    user has set it. One that the user deletes stays away until its step has run again. What an
    older description has made says so in its name.

    Parameters
    ----------
    session : Session
        What is worked on; it owns this object.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.session = session
        self._source = ""
        self._previewed: tuple[Any, ...] = ()
        self._preview_wanted = True
        self._preview_dismissed = False
        #: What is done one after the other, in a turn each, and the stack that it is for.
        self._queue: deque[tuple[str, Callable[[], None]]] = deque()
        self._rest = self._timer(REST_MS, self._compute_preview)
        self._turn = self._timer(0, self._put_next)
        session.found.connect(self._show)
        session.changed.connect(self._follow)
        viewer = session.viewer
        for event in (viewer.scene.camera.events.center, viewer.scene.camera.events.zoom):
            event.connect(self._wait_for_rest)
        viewer.layers.events.removed.connect(self._notice_removal)
        session.task("warm up", _warm_up, done=while_alive(self._prepare_canvas))
        self._follow()

    def _timer(self, milliseconds: int, method: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(milliseconds)
        timer.timeout.connect(method)
        return timer

    def _prepare_canvas(self, _: Any) -> None:
        """Make what the canvas has beside its layers before the first of them comes."""
        viewer = self.session.viewer
        if viewer is not None and not viewer.layers:
            follow(viewer)

    # --- what the steps have found -------------------------------------------------------------

    def _show(self, step: str) -> None:
        """Show what a step has found; the pictures are made in the background."""
        session, make = self.session, MAKERS.get(step)
        if step == "data":
            self._show_stack()
        if step == "energy":
            self._preview_dismissed = False
        if make is not None:
            groups = [session.group(name) for name in GROUPS[step]]
            first = [] if step == "models" else [session.stack]
            session.task(f"show {step}", make, *first, *groups, done=self._putter(step))
        self._follow()

    def _putter(self, step: str) -> Callable[[Any], None]:
        """What puts the pictures of a step into the viewer, if its stack is still the same."""
        source = self._source

        def put(made: Any) -> None:
            if not is_alive(self) or source != self._source or self.session.viewer is None:
                return
            if step == "models":
                self._put_table(made)
                return
            for role in (role for role, its_step in ROLES.items() if its_step == step):
                self._queue.append((source, partial(self._put, role, made.get(role))))
            self._turn.start()

        return put

    @property
    def settled(self) -> bool:
        """Whether everything that was handed over is in the viewer."""
        return not self._queue

    def _put_next(self) -> None:
        """Do one thing that is due; the window works in between."""
        source, act = self._queue.popleft()
        if self.session.viewer is not None and source == self._source:
            act()
        if self._queue:
            self._turn.start()

    def _put(self, role: str, made: LayerData | None) -> None:
        """Add or update one layer, or take away what its step no longer has."""
        viewer = self.session.viewer
        if role == "fraction":
            self._replace_preview(made)
        layer = layer_of(viewer, role)
        if made is not None:
            self._update(layer, role, made)
        elif layer is not None:
            viewer.layers.remove(layer)
        self._mark_stale()

    def _update(self, layer: Any, role: str, made: LayerData) -> None:
        """Put new values into a layer, or add one where there is none or it cannot take them.

        napari takes a tenth of a second to add a layer and as long to draw it for the first time,
        so it is added hidden and shown in a turn of its own.
        """
        values, options, kind = made
        if layer is not None and layer.multiscale == options.get("multiscale", False):
            _renew(layer, made)
            return
        viewer, visible = self.session.viewer, options.get("visible", True)
        with _same_selection(viewer, layer) as replaced:
            if layer is not None:
                viewer.layers.remove(layer)
            metadata = {**options["metadata"], ROLE: role}
            options = {**options, "metadata": metadata, "visible": False}
            replaced.append(_insert(viewer, role, (values, options, kind)))
        if visible:
            self._queue.appendleft((self._source, partial(_show, *replaced)))
            self._turn.start()

    def _put_table(self, table: Any) -> None:
        """Give the particles the table that has their verdicts."""
        layer = layer_of(self.session.viewer, "particles")
        if layer is not None:
            layer.features = table

    def _follow(self) -> None:
        """After any change: another stack, stale layers, a preview that is due."""
        if self.session.viewer is None:
            return
        source = source_of(self.session.stack)
        if source != self._source:
            self._source = source
            self._forget_others()
            self._preview_dismissed = False
            self._show_stack()
        self._mark_stale()
        self._wait_for_rest()

    def _forget_others(self) -> None:
        """Take away what belongs to another stack; a stack itself stays, as any layer does."""
        viewer = self.session.viewer
        for layer in [one for one in viewer.layers if one.metadata.get(ROLE) in ROLES]:
            content = content_of(layer)
            if content is not None and _same(content.source, self._source):
                continue
            if layer.metadata[ROLE] in ("stack", "phase"):
                del layer.metadata[ROLE]
            else:
                viewer.layers.remove(layer)

    def _show_stack(self) -> None:
        """Show the stack, in the layer that is open already if there is one."""
        viewer, stack = self.session.viewer, self.session.stack
        if viewer is None or stack is None or layer_of(viewer, "stack") is not None:
            return
        for layer in reversed(viewer.layers):
            content = content_of(layer)
            if content is None or content.energies is None or content.group:
                continue
            if _same(content.source, self._source):
                layer.metadata[ROLE] = "stack"
                return
        complain = _complainer(self.session)
        named = self.session.state.value("stack")
        files = [named] if isinstance(named, str) else list(named)
        self.session.task("show data", _stack, stack, files, complain, done=self._putter("data"))

    def _mark_stale(self) -> None:
        """Say in the names of layers which of them an older description has made."""
        viewer, holds = self.session.viewer, dict[str, bool]()
        for layer in () if viewer is None else viewer.layers:
            step = ROLES.get(layer.metadata.get(ROLE, ""), "data")
            if step == "data":
                continue
            if step not in holds:
                holds[step] = self.session.holds(step)
            name = layer.name.removesuffix(STALE) + ("" if holds[step] else STALE)
            if layer.name != name:
                layer.name = name

    # --- preview -------------------------------------------------------------------------------

    def preview(self, on: bool) -> None:
        """Whether the fraction in the visible region is shown while it is not yet mapped.

        Parameters
        ----------
        on : bool
            It is on to begin with, and shows once the energy is calibrated.
        """
        self._preview_wanted, self._preview_dismissed = on, False
        if on:
            self._wait_for_rest()
        else:
            self._end_preview()

    def _preview_due(self) -> bool:
        """Whether a preview says something that no map says, and nobody else computes."""
        session = self.session
        wanted = self._preview_wanted and not self._preview_dismissed
        if not wanted or session.viewer is None or session.busy:
            return False
        return bool(session.holds("energy") and not session.holds("composition"))

    def _wait_for_rest(self, event: Any = None) -> None:
        """Begin to wait for the camera to rest."""
        if is_alive(self) and self._preview_wanted:
            self._rest.start()

    def _compute_preview(self) -> None:
        """Compute the maps of the visible region, unless they are shown already."""
        if not self._preview_due():
            self._previewed = ()
            return
        session, viewer = self.session, self.session.viewer
        box = None if viewer.dims.ndisplay != 2 else visible_box(viewer, session.stack)
        if box is None or session.analysis is None:
            return
        wanted = (session.state.mark("composition"), box)
        if wanted == self._previewed:
            return
        self._previewed = wanted
        arguments = (session.analysis, session.stack, *box)
        session.task("preview", _preview, *arguments, done=self._put_preview)

    def _put_preview(self, made: Pictures) -> None:
        """Show the preview, unless it is too late for it."""
        if not is_alive(self):
            return
        if not self._preview_due() or "preview" not in made:
            self._previewed = ()  # it was not shown, so it has to be made when it is due again
            return
        viewer = self.session.viewer
        self._update(layer_of(viewer, "preview"), "preview", made["preview"])
        self._choose_bar()

    def _choose_bar(self) -> None:
        """Show one bar of the fraction: that of the preview, or of the map where there is none."""
        fraction = layer_of(self.session.viewer, "fraction")
        previewed = layer_of(self.session.viewer, "preview") is not None
        if fraction is None:
            return
        if previewed and fraction.colorbar.visible:
            fraction.metadata[BAR] = True
            fraction.colorbar.visible = False
        elif not previewed and fraction.metadata.pop(BAR, False):
            fraction.colorbar.visible = True

    def _replace_preview(self, made: LayerData | None) -> None:
        """Make the preview the layer of the fraction, which is quicker than a new one."""
        viewer = self.session.viewer
        layer = layer_of(viewer, "preview")
        if layer is None or made is None or layer_of(viewer, "fraction") is not None:
            self._end_preview()
            return
        self._previewed = ()
        layer.metadata[ROLE] = "fraction"
        layer.name = made[1]["name"]
        layer.contrast_limits = made[1]["contrast_limits"]

    def _end_preview(self) -> None:
        """Take the preview away."""
        self._previewed = ()
        viewer, dismissed = self.session.viewer, self._preview_dismissed
        layer = layer_of(viewer, "preview")
        if layer is not None:
            viewer.layers.remove(layer)
            self._preview_dismissed = dismissed

    def _notice_removal(self, event: Any) -> None:
        """Leave the preview away if the user deletes it, until the energy is calibrated again."""
        if is_alive(self) and event.value.metadata.get(ROLE) == "preview":
            self._preview_dismissed = True
            self._choose_bar()


def _complainer(session: Any) -> Callable[[str], None]:
    """What tells a session that its file is damaged, without keeping it alive."""
    itself = weakref.ref(session)

    def complain(message: str) -> None:
        told = itself()
        if told is not None and is_alive(told):
            told.told.emit("error", message)

    return complain


def source_of(stack: xr.DataArray | None) -> str:
    """The file that a stack comes from; nothing without a stack.

    Parameters
    ----------
    stack : DataArray or None
        As `spectromap.open_stack` returns it.

    Returns
    -------
    str
    """
    return "" if stack is None else str(stack.attrs.get("source_file", ""))


def _same(one: str, other: str) -> bool:
    """Whether two names are those of one file."""
    if one == other:
        return True
    try:
        return Path(one).samefile(other)
    except OSError:
        return os.path.abspath(one) == os.path.abspath(other)


def _renew(layer: Any, made: LayerData) -> None:
    """Put new values into a layer."""
    values, options, kind = made
    layer.data = values
    for name in PLACE:
        if tuple(getattr(layer, name)) != options[name]:
            setattr(layer, name, options[name])
    layer.metadata[KEY] = options["metadata"][KEY]
    if kind == "labels":
        layer.features = options.get("features")


def _insert(viewer: Any, role: str, made: LayerData) -> Any:
    """Add a layer where it belongs."""
    from napari.layers import Layer

    (ready,) = prepared(viewer, [made])
    layer = Layer.create(*ready)
    viewer.layers.insert(_place(viewer, role), layer)
    return layer


def _show(layer: Any) -> None:
    """Make a layer visible."""
    layer.visible = True


@contextmanager
def _same_selection(viewer: Any, leaving: Any) -> Iterator[list[Any]]:
    """Leave selected what was: whoever paints or measures keeps the tool in hand.

    A layer that leaves hands its place to the one that takes it, which is put into the list.
    """
    selection, added = viewer.layers.selection, list[Any]()
    before, active = set(selection), selection.active
    yield added
    if not before:
        return
    stay = {added[0] if one is leaving else one for one in before}
    if set(selection) != stay:
        selection.clear()
        selection.update(stay)
    selection.active = added[0] if active is leaving and active is not None else active


def _place(viewer: Any, role: str) -> int:
    """Where in the list of layers a new one belongs: above those that lie below it."""
    below = list(ROLES)[: list(ROLES).index(role)]
    found = [k for k, layer in enumerate(viewer.layers) if layer.metadata.get(ROLE) in below]
    return found[-1] + 1 if found else 0


def _warm_up() -> None:
    """Load and compile what napari needs for its first scale bar and its first labels.

    That takes half a second, which would be lost while the first of them is added.
    """
    import pint
    from napari.layers import Labels

    pint.Quantity("1 pixel")
    Labels(np.zeros((2, 2), dtype=np.int32))


# --- the pictures of each step, made away from the window --------------------------------------


def _stack(stack: xr.DataArray, files: Sequence[str], complain: Callable[[str], None]) -> Pictures:
    """The stack; of a complex one amplitude and phase."""
    layers = stack_layers(stack, complain=complain)
    for _, options, _ in layers:
        options["metadata"][FILES] = files
    return dict(zip(("stack", "phase"), reversed(layers), strict=False))


def _mean(stack: xr.DataArray, shifts: xr.Dataset | None) -> Pictures:
    """The mean of the aligned frames, hidden; of few of them where they are too many to read."""
    if shifts is None:
        return {}
    kept = np.flatnonzero(~shifts["flagged"].values)
    every = -(-stack.nbytes // KEPT_BYTES)
    total, seen = np.zeros((2, *stack.shape[1:]), dtype=np.float32)
    for index in kept[::every]:
        one = [int(index)]
        frame = apply_shifts(stack[one], shifts.isel(energy=one)).values[0]
        finite = np.isfinite(frame)
        total[finite] += frame[finite]
        seen += finite
    # Where few frames have been, a mean is that of other energies than beside it.
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(2 * seen > len(kept[::every]), total / seen, np.nan)
    content = _content(stack, "mean", mean, units=stack.attrs.get("units", "1"))
    values, options, kind = picture(content)
    return {"mean": (values, {**options, "name": "mean of aligned frames"}, kind)}


def _open_area(stack: xr.DataArray, i0: xr.Dataset | None) -> Pictures:
    """Where I0 was taken, as an outline; nothing where it was given as a spectrum."""
    if i0 is None or "open_area" not in i0 or not i0["open_area"].values.any():
        return {}
    content = _content(stack, "open_area", i0["open_area"].values, group="i0")
    return {"open area": labels_layer(content, "open area")}


def _composition(stack: xr.DataArray, maps: xr.Dataset | None) -> Pictures:
    """Thickness, and the fraction where it says something."""
    made: Pictures = {}
    if maps is None:
        return made
    source = source_of(stack)
    below = next((name for name in ("thickness", "mean_od") if name in maps), None)
    if below is not None:
        made["thickness"] = thickness_layer(Content(maps[below], source, "maps", below))
    fraction = str(maps.attrs.get("fraction", ""))
    if f"{fraction}_fraction" in maps:
        name = f"{fraction}_fraction"
        made["fraction"] = fraction_layer(Content(maps[name], source, "maps", name), maps, fraction)
    return made


def _particles(
    stack: xr.DataArray,
    maps: xr.Dataset | None,
    particles: xr.Dataset | None,
    models: xr.Dataset | None,
) -> Pictures:
    """Outlines of particles with their table, and of agglomerates, hidden."""
    made: Pictures = {}
    labels = {"particles": "particle_label", "agglomerates": "agglomerate_label"}
    for role, name in labels.items():
        if maps is None or name not in maps:
            continue
        # Users paint in the layer; what was found is not theirs to change.
        content = Content(maps[name].copy(deep=True), source_of(stack), "maps", name)
        options: dict[str, Any] = {"visible": role == "particles"}
        if role == "particles":
            options["features"] = particle_table(particles, models)
        made[role] = labels_layer(content, role, **options)
    return made


def _preview(analysis: Any, stack: xr.DataArray, rows: slice, columns: slice) -> Pictures:
    """The fraction in a box, as coarse as it has to be."""
    maps, fraction = analysis.preview(rows, columns), analysis.plan.fraction
    name = f"{fraction}_fraction"
    if name not in maps or min(maps[name].shape) < 2:
        return {}
    content = Content(maps[name], source_of(stack), "maps", name)
    values, options, kind = fraction_layer(content, maps, fraction)
    if not np.isfinite(values).any():
        return {}
    return {"preview": (values, {**options, "name": f"{options['name']} (preview)"}, kind)}


def _content(
    stack: xr.DataArray, name: str, values: NDArray[Any], group: str = "", units: str = "1"
) -> Content:
    """An image on the pixels of a stack."""
    coords = {axis: stack[axis] for axis in ("y", "x")}
    array = xr.DataArray(values, coords=coords, dims=("y", "x"), attrs={"units": units})
    return Content(array, source_of(stack), group, name)


#: What makes the pictures of a step; the models only have a table.
MAKERS: Mapping[str, Callable[..., Any]] = {
    "align": _mean,
    "i0": _open_area,
    "composition": _composition,
    "particles": _particles,
    "models": particle_table,
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "align": ("shifts",),
    "i0": ("i0",),
    "composition": ("maps",),
    "particles": ("maps", "particles", "models"),
    "models": ("particles", "models"),
}
