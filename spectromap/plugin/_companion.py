"""What a viewer needs besides layers: y upwards, a scale bar, the energy in eV, outlines."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from qtpy.QtCore import QTimer

from spectromap.plugin._layers import KEY, WHEN_SHOWN, Content, LayerData, content_of

__all__ = ["energy_lines", "follow", "prepared", "show"]

#: y upwards as in every picture; with z towards the eye the axes x, y, z are right-handed.
ORIENTATION = ("towards", "up", "right")
#: Where the slider of the energy is; only stacks have a third axis from the end.
FROM_END = 3
TEXT_SIZE = 12
OUTLINE_PX = 1
OUTLINED = ("particle_label", "agglomerate_label", "open_area")
#: Key of the metadata of a layer that becomes visible once it is in its place.
SHOWN_LATER = "spectromap: shown later"

_followed: weakref.WeakSet[Any] = weakref.WeakSet()


def show(viewer: Any, layers: Iterable[LayerData]) -> list[Any]:
    """Add layers to a viewer, the last on top, and look at all of it.

    Parameters
    ----------
    viewer : napari.Viewer
        The window.
    layers : iterable of (values, arguments, kind)
        Layer data, as a reader returns them.

    Returns
    -------
    list of napari.layers.Layer
    """
    from napari.layers import Layer

    added = [viewer.add_layer(Layer.create(*layer)) for layer in prepared(viewer, layers)]
    viewer.fit_to_view()
    return added


def prepared(viewer: Any, layers: Iterable[LayerData]) -> list[LayerData]:
    """Layers as an empty viewer should get them, which is followed from now on.

    napari draws the first frame of its first layer, and only then goes to the middle one; of a
    large file that is one frame too many. So what has frames is hidden until it is in its place.
    """
    follow(viewer)
    if viewer.layers:
        return list(layers)
    _fit_soon(viewer)
    return [_hidden_at_first(layer) for layer in layers]


def _fit_soon(viewer: Any) -> None:
    """Fit the view once the slider has its place: napari does it before, and cuts the picture."""
    itself = weakref.ref(viewer)

    def fit() -> None:
        waiting = itself()
        if waiting is not None and waiting in type(waiting)._instances:
            waiting.fit_to_view()

    QTimer.singleShot(0, fit)


def _hidden_at_first(layer: LayerData) -> LayerData:
    """A visible stack, hidden until it is in its place; anything else as it is."""
    values, options, kind = layer
    content: Content = options["metadata"][KEY]
    if content.energies is None or not options.get("visible", True):
        return layer
    metadata = {**options["metadata"], SHOWN_LATER: True}
    return values, {**options, "metadata": metadata, "visible": False}, kind


def follow(viewer: Any) -> None:
    """Turn y upwards in a viewer; from now on show energies of stacks and outlines of particles.

    Parameters
    ----------
    viewer : napari.Viewer
        The window; following it again changes nothing.
    """
    if viewer in _followed:
        return
    _followed.add(viewer)
    viewer.scene.camera.orientation = ORIENTATION
    overlays = viewer.canvas.overlays
    overlays.scale_bar.visible = True
    overlays.text.font_size = TEXT_SIZE
    overlays.text.position = "top_left"
    itself = weakref.ref(viewer)

    # A function of its own, because napari forgets methods of objects that nobody else holds.
    def update(event: Any = None) -> None:
        followed = itself()
        if followed is not None:
            _show_energy(followed)

    viewer.layers.events.inserted.connect(_dress, position="last")
    viewer.layers.events.removed.connect(_undress, position="last")
    viewer.dims.events.point.connect(update)
    viewer.dims.events.axis_labels.connect(update)
    for name in ("inserted", "removed", "reordered"):
        getattr(viewer.layers.events, name).connect(update, position="last")
    update()


def _dress(event: Any) -> None:
    """What no argument of a layer can ask for: outlines of particles, a bar for the fraction."""
    layer, content = event.value, content_of(event.value)
    if content is None:
        return
    if content.variable in OUTLINED:
        layer.contour = OUTLINE_PX
    if content.frames is not None:
        content.frames.read_ahead()
    if WHEN_SHOWN in layer.metadata:
        layer.events.visible.connect(_when_shown)
    if layer.metadata.pop(SHOWN_LATER, False):
        layer.visible = True
    if not content.raw:
        layer.colorbar.visible = True
        layer.colorbar.position = "bottom_left"


def _when_shown(event: Any) -> None:
    """Do what was put off until a layer is seen."""
    layer = event.source
    if layer.visible and WHEN_SHOWN in layer.metadata:
        layer.metadata.pop(WHEN_SHOWN)(layer)


def _undress(event: Any) -> None:
    """Stop what was done for a layer, unless another one, such as its phase, still wants it."""
    content = content_of(event.value)
    if content is None or content.frames is None:
        return
    others = [other for layer in event.source if (other := content_of(layer)) is not None]
    if all(other.frames is not content.frames for other in others):
        content.frames.stop()


def _show_energy(viewer: Any) -> None:
    """Write the energy into the canvas and beside the slider."""
    stacks = [
        (layer.name, content.energies, layer.visible)
        for layer in viewer.layers
        if (content := content_of(layer)) is not None and content.energies is not None
    ]
    visible = [(name, energies) for name, energies, seen in stacks if seen]
    text, axis = viewer.canvas.overlays.text, viewer.dims.ndim - FROM_END
    text.visible = bool(visible) and axis >= 0
    if not stacks or axis < 0:
        return
    # A hidden stack has its slider too; napari makes room for the label when the slider appears.
    shown = visible or [(name, energies) for name, energies, _ in stacks]
    lines = energy_lines(shown, viewer.dims.current_step[axis])
    text.text = "\n".join(f"{energy}  {name}".rstrip() for energy, name in lines)
    # A stack puts its own name of the axis back whenever layers change.
    if viewer.dims.axis_labels[axis] != lines[0][0]:
        viewer.dims.set_axis_label(axis, lines[0][0])


def energy_lines(stacks: Sequence[tuple[str, Any]], step: int) -> list[tuple[str, str]]:
    """Energies of a frame, one line if all stacks agree.

    Parameters
    ----------
    stacks : sequence of (name, energies in eV)
        At least one, the topmost last.
    step : int
        Number of the frame.

    Returns
    -------
    list of (energy, name)
        Such as ``642.30 eV``, the topmost first; no name where all stacks agree.
    """
    lines: dict[str, str] = {}
    for name, energies in reversed(stacks):
        shown = f"{energies[step]:.2f} eV" if 0 <= step < len(energies) else "no frame"
        lines.setdefault(shown, name)
    return list(lines.items()) if len(lines) > 1 else [(shown, "") for shown in lines]
