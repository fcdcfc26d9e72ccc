"""Stacks, maps, labels, volumes and results as napari layers: the only bridge between them.

A layer is what napari calls layer data: values, keyword arguments, kind. Its ``metadata`` holds
under `KEY` a `Content` that says which part of which file it is, with the labelled array itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.figures import component_label, reliable_pixels
from spectromap.figures._canvas import group_of
from spectromap.figures.maps import limits_of
from spectromap.plugin._frames import Blocks, kept_frames
from spectromap.schema import LENGTH_UNITS, LOG

__all__ = [
    "KEY",
    "Content",
    "LayerData",
    "content_of",
    "fraction_layer",
    "labels_layer",
    "particle_table",
    "picture",
    "result_layers",
    "stack_layers",
    "thickness_layer",
]

LayerData = tuple[Any, dict[str, Any], str]

#: Where a layer's metadata holds its `Content`.
KEY = "spectromap"
#: ... and what is to be done with the layer when it is shown for the first time.
WHEN_SHOWN = "spectromap: when shown"
SPACE = ("z", "y", "x")
#: Limits of colours are percentiles of at most so many values of a frame or a map.
SAMPLED_PX = 512
PERCENTILES = (0.5, 99.5)
#: Frames of more bytes than this are not read three times only to choose colours.
SMALL_FRAME_BYTES = 64 * 2**20
#: No screen shows more pixels along a side.
SCREEN_PX = 2048
#: The best ending decides the colours of a map, whatever group it is in.
COLOURS = (
    ("_errors", "magma"),
    ("_systematic", "magma"),
    ("_fraction", "viridis"),
    ("_fraction_nonnegative", "viridis"),
    ("chi2", "magma"),
    ("residual", "magma"),
    ("edge_distance", "PiYG"),
    ("offset", "PiYG"),
)
#: Maps with these colours mean something at zero, which has to lie in the middle.
SIGNED_COLOURS = ("PiYG",)


@dataclass(frozen=True, eq=False)
class Content:
    """What a layer shows.

    Attributes
    ----------
    array : DataArray
        The values with their axes; lazy where the file is.
    source : str
        The file.
    group, variable : str
        Place in the result; empty for a stack.
    result : DataTree, optional
        The whole result that the layer belongs to.
    raw : bool
        Whether the layer shows the values as they are, and not only where they are reliable.
    frames : Blocks, optional
        The frames of a lazy stack that are in memory.
    """

    array: xr.DataArray
    source: str
    group: str = ""
    variable: str = ""
    result: xr.DataTree | None = None
    raw: bool = True
    frames: Blocks | None = None

    @property
    def energies(self) -> NDArray[np.float64] | None:
        """Energies of the frames in eV; None where there are no frames."""
        if "energy" not in self.array.dims:
            return None
        return np.asarray(self.array["energy"].values, dtype=np.float64)

    def seen(self, y: Any, x: Any) -> NDArray[Any]:
        """Values of pixels of a stack in the frames that are in memory, without reading any.

        Parameters
        ----------
        y, x : int or ndarray of int
            Row and column, or those of several pixels.

        Returns
        -------
        ndarray, shape (n_energy, ...)
            NaN where a frame has not been read.
        """
        if self.frames is None:
            return np.asarray(self.array.data[:, y, x])
        return self.frames.seen(y, x)


def content_of(layer: Any) -> Content | None:
    """What a layer shows, or None if this plugin did not make it.

    Parameters
    ----------
    layer : napari.layers.Layer
        Any layer.

    Returns
    -------
    Content or None
    """
    found = layer.metadata.get(KEY)
    return found if isinstance(found, Content) else None


def stack_layers(
    stack: xr.DataArray, name: str = "", complain: Callable[[str], None] = LOG.error
) -> list[LayerData]:
    """A stack as layers: its values, or magnitude and phase of a complex one.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        As `spectromap.open_stack` returns it; it stays lazy.
    name : str
        Name of the layer; by default that of the file.
    complain : callable
        Told once what is wrong when frames cannot be read later.

    Returns
    -------
    list of (values, arguments, kind)
        The last one is to lie on top.
    """
    source = str(stack.attrs.get("source_file", ""))
    name = name or Path(source.split(" and ")[0]).stem or "stack"
    values, frames = kept_frames(stack, complain)
    content = Content(stack, source, frames=frames)
    if not np.issubdtype(stack.dtype, np.complexfloating):
        limits = sampled_limits(values)
        return [_image(values, content, name, colormap="gray", contrast_limits=limits)]
    size, angle = abs(values), _angle(values)
    hidden = {"visible": False, "contrast_limits": (-np.pi, np.pi), "colormap": "twilight_shifted"}
    seen = {"colormap": "gray", "contrast_limits": sampled_limits(size)}
    return [
        _image(angle, content, f"{name} / phase [rad]", **hidden),
        _image(size, content, f"{name} / amplitude", **seen),
    ]


def _angle(values: Any) -> Any:
    """Phase of complex values, lazy if they are."""
    return values.map_blocks(np.angle) if hasattr(values, "dask") else np.angle(values)


def result_layers(tree: xr.DataTree, source: str = "") -> list[LayerData]:
    """Every picture of a result as a layer; most are hidden.

    What is shown: thickness, on it the fraction where it says something, and the outlines of the
    particles with their table.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.read_result` returns it.
    source : str
        The file.

    Returns
    -------
    list of (values, arguments, kind)
        From the bottom to the top: hidden maps by group, then what is shown.
    """
    shown = list(_shown(tree, source))
    # A map that is on top as it is need not lie below again; napari takes 0.1 s for every layer.
    seen = {(c.group, c.variable) for _, options, _ in shown if (c := options["metadata"][KEY]).raw}
    return [*_hidden(tree, source, seen), *shown]


def _hidden(tree: xr.DataTree, source: str, seen: set[tuple[str, str]]) -> Iterator[LayerData]:
    """Every other picture, group by group."""
    entry = tree.children.get("entry")
    for group in () if entry is None else entry.children:
        dataset = group_of(tree, str(group))
        for name, array in {} if dataset is None else dataset.data_vars.items():
            if _is_picture(array) and (group, name) not in seen:
                yield picture(Content(array, source, str(group), str(name), tree))


def _is_picture(array: xr.DataArray) -> bool:
    """Whether the last axes of an array are those of space."""
    return array.dims[-2:] == SPACE[1:] and array.dtype.kind in "biuf" and array.size > 0


def picture(content: Content) -> LayerData:
    """A map, labels or a volume, hidden.

    Parameters
    ----------
    content : Content
        What of a result it is; what is lazy is read when the layer is shown.

    Returns
    -------
    tuple of (values, arguments, kind)
    """
    array, name = content.array, f"{content.group} / {content.variable}"
    if array.attrs.get("units", "1") not in ("", "1"):
        name += f" [{array.attrs['units']}]"
    if _is_labels(content):
        return _hidden_labels(content, name)
    colours = _colours(content.variable)
    options: dict[str, Any] = {"visible": False, "colormap": colours}
    if not _is_lazy(array):
        options["contrast_limits"] = _map_limits(content)
        return _image(array.values, content, name, **options)
    values, options, kind = _image(array.data, content, name, contrast_limits=(0, 1), **options)
    options["metadata"][WHEN_SHOWN] = _set_limits
    return values, options, kind


def _hidden_labels(content: Content, name: str) -> LayerData:
    """Labels, hidden; what is still in a file stays there until they are shown."""
    array = content.array
    if not _is_lazy(array) or array.dtype.kind == "b":
        return labels_layer(content, name, visible=False, features=_features(array))
    options = {**_common(content, name), "visible": False}
    options["metadata"][WHEN_SHOWN] = _set_labels
    return array.data, options, "labels"


def _is_lazy(array: xr.DataArray) -> bool:
    """Whether values are still in a file."""
    return hasattr(array.data, "dask")


def _map_limits(content: Content) -> tuple[float, float]:
    """Limits of the colours of a map."""
    signed = _colours(content.variable) in SIGNED_COLOURS
    return sampled_limits(content.array.values, signed=signed)


def _set_limits(layer: Any) -> None:
    """Choose colours for a map that is shown for the first time."""
    layer.contrast_limits_range = limits = _map_limits(layer.metadata[KEY])
    layer.contrast_limits = limits


def _set_labels(layer: Any) -> None:
    """Give labels that are shown for the first time their values, which can be painted on."""
    content = layer.metadata[KEY]
    layer.data, options, _ = labels_layer(content, "", features=_features(content.array))
    layer.features = options["features"]


def _features(array: xr.DataArray) -> Any:
    """What the values of flags mean; None for other labels."""
    return _flag_table(array) if "flag_masks" in array.attrs else None


def _colours(variable: str) -> str:
    """Colour map of a variable."""
    return next((colours for ending, colours in COLOURS if variable.endswith(ending)), "gray")


def _is_labels(content: Content) -> bool:
    """Whether the values are numbers of things, not amounts."""
    array = content.array
    if array.dtype.kind == "f":
        return False
    numbered = content.variable.endswith("_label") or "flag_masks" in array.attrs
    return numbered or array.dtype.kind == "b"


def _shown(tree: xr.DataTree, source: str) -> Iterator[LayerData]:
    """What a result shows when it is opened."""
    maps = group_of(tree, "maps")
    if maps is None:
        return

    def content(variable: str) -> Content:
        return Content(maps[variable], source, "maps", variable, tree)

    below = next((name for name in ("thickness", "mean_od") if name in maps), None)
    if below is not None:
        yield thickness_layer(content(below))
    fraction = str(maps.attrs.get("fraction", ""))
    if f"{fraction}_fraction" in maps:
        yield fraction_layer(content(f"{fraction}_fraction"), maps, fraction)
    if "particle_label" in maps:
        features = particle_table(group_of(tree, "particles"), group_of(tree, "models"))
        yield labels_layer(content("particle_label"), "particles", features=features)


def thickness_layer(content: Content) -> LayerData:
    """The thickness, or what there is in its place, as the picture below all others.

    Parameters
    ----------
    content : Content
        The map.

    Returns
    -------
    tuple of (values, arguments, kind)
    """
    values, options, kind = picture(replace(content, array=content.array.compute()))
    name = options["name"].removeprefix("maps / ").replace("_", " ")
    return values, {**options, "name": name, "visible": True}, kind


def fraction_layer(content: Content, maps: xr.Dataset, fraction: str) -> LayerData:
    """The fraction where it says something, transparent elsewhere, as the figures draw it.

    Parameters
    ----------
    content : Content
        The map of the fraction.
    maps : Dataset
        All maps, which say where it is reliable.
    fraction : str
        The component.

    Returns
    -------
    tuple of (values, arguments, kind)
    """
    good = reliable_pixels(maps, fraction)
    values = np.where(good, content.array.values, np.nan).astype(np.float32)
    name = f"{component_label(fraction)} fraction"
    limits = limits_of(values, 0.05, 0.1)
    content = replace(content, raw=False)
    return _image(values, content, name, colormap="viridis", contrast_limits=limits)


def particle_table(particles: xr.Dataset | None, models: xr.Dataset | None) -> Any:
    """Columns of the particle table and the verdicts, as napari's features.

    Parameters
    ----------
    particles, models : Dataset, optional
        Groups of a result.

    Returns
    -------
    pandas.DataFrame or None
        ``index`` is the label; None where there is no table.
    """
    if particles is None or "particle" not in particles.dims:
        return None
    columns = {
        str(name): array.values
        for name, array in particles.data_vars.items()
        if array.dims == ("particle",)
    }
    if models is not None and "verdict" in models:
        columns["verdict"] = models["verdict"].reindex(particle=particles["particle"]).values
    return _table({"index": particles["particle"].values, **columns})


def _flag_table(array: xr.DataArray) -> Any:
    """What each value of a map of flags means."""
    masks = np.atleast_1d(array.attrs["flag_masks"])
    meanings = str(array.attrs["flag_meanings"]).split()
    present = np.unique(array.values[array.values > 0])
    texts = [
        ", ".join(text for mask, text in zip(masks, meanings, strict=False) if value & int(mask))
        for value in present
    ]
    return _table({"index": present, "meaning": np.array(texts, dtype=object)})


def _table(columns: dict[str, Any]) -> Any:
    """Columns as napari takes them."""
    import pandas as pd

    return pd.DataFrame(columns)


def _image(values: Any, content: Content, name: str, **options: Any) -> LayerData:
    """An image layer in its place."""
    common = {"cache": False, "interpolation2d": "nearest", **_common(content, name)}
    data, large = with_overview(values)
    return data, {**common, "multiscale": large, **options}, "image"


def with_overview(values: Any) -> tuple[Any, bool]:
    """Values, and every n-th of them for the whole field where frames are larger than a screen.

    Parameters
    ----------
    values : array, shape (..., ny, nx)
        Lazy or not.

    Returns
    -------
    array or list of array, bool
        A list, the finest first, and True for large frames: then napari hands to the graphics
        card no more than what is seen.
    """
    step = -(-max(values.shape[-2:]) // SCREEN_PX)
    if step <= 2:
        return values, False
    every = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    return [values, values[every]], True


def labels_layer(content: Content, name: str, **options: Any) -> LayerData:
    """A labels layer in its place.

    Parameters
    ----------
    content : Content
        Numbers of things, or a mask.
    name : str
        Name of the layer.
    **options
        Of the layer.

    Returns
    -------
    tuple of (values, arguments, kind)
    """
    values = np.asarray(content.array.values)
    if values.dtype.kind == "b":
        values = values.astype(np.int32)
    return values, {**_common(content, name), **options}, "labels"


def _common(content: Content, name: str) -> dict[str, Any]:
    """What every layer has: its name, its place and what it shows."""
    return {"name": name, "metadata": {KEY: content}, **placement(content.array)}


def placement(array: xr.DataArray) -> dict[str, Any]:
    """Where an array lies: scale, translation, units and labels of its axes.

    Parameters
    ----------
    array : DataArray
        With ``z``, ``y`` and ``x`` in nm at pixel centres, as every array of this package.

    Returns
    -------
    dict
        Keyword arguments of a napari layer. Axes that are not of space, such as energy, are
        counted: their steps need not be equal, and napari knows no others.
    """
    steps = [axis_step(array, str(dim)) if dim in SPACE else 1.0 for dim in array.dims]
    starts = [float(array[dim].values[0]) if dim in SPACE else 0.0 for dim in array.dims]
    return {
        "scale": tuple(steps),
        "translate": tuple(starts),
        "units": tuple(LENGTH_UNITS if dim in SPACE else "pixel" for dim in array.dims),
        "axis_labels": tuple(str(dim) for dim in array.dims),
    }


def axis_step(array: xr.DataArray, dim: str) -> float:
    """Mean step of an axis in nm, so that both of its ends lie where they should."""
    values = np.asarray(array[dim].values, dtype=np.float64)
    return float((values[-1] - values[0]) / (values.size - 1)) if values.size > 1 else 1.0


def sampled_limits(values: Any, *, signed: bool = False) -> tuple[float, float]:
    """Limits of colours, from few values of a few frames.

    Parameters
    ----------
    values : array, shape (..., ny, nx)
        Lazy or not.
    signed : bool
        Whether zero has to lie in the middle.

    Returns
    -------
    tuple of float
        Robust percentiles; (0, 1) where nothing is finite.
    """
    sample = np.concatenate([_sample(frame) for frame in _some_frames(values)])
    if not sample.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(sample, PERCENTILES))
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _some_frames(values: Any) -> Iterator[NDArray[Any]]:
    """First, middle and last frame; only the middle one, which is the first shown, of large ones.

    An array of more axes than three is looked at along its first.
    """
    if values.ndim == 2:
        yield np.asarray(values)
        return
    size = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    last = values.shape[0] - 1
    for index in {0, last // 2, last} if size <= SMALL_FRAME_BYTES else {last // 2}:
        yield np.asarray(values[index])


def _sample(frame: NDArray[Any]) -> NDArray[np.float64]:
    """Every n-th value that is finite."""
    steps = tuple(slice(None, None, -(-size // SAMPLED_PX)) for size in frame.shape)
    taken = frame[steps].astype(np.float64).ravel()
    return np.asarray(taken[np.isfinite(taken)])
