"""The table of particles: one row each, with errors and why it is not used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, ndimage

from spectromap._numerics import fwhm_to_sigma
from spectromap.schema import FLAGS, LOG, PLACES, InputError, check_map, pixel_size
from spectromap.segment._field import measured
from spectromap.segment._grid import (
    Array,
    Crop,
    Labels,
    Mask,
    Pair,
    check_label_map,
    check_length,
    crops,
    filled,
    sigma_px,
    surface,
)
from spectromap.segment.agglomerates import agglomerate_bodies
from spectromap.segment.outlines import centroid, closed_contour, edge_distance, outline_area, to_nm

#: Pixels with one of these flags carry no measurement.
UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]
#: What the fit of a blurred rim does not know of its shape: how far off the edge of a particle lies
#: (1 sigma), as share of the resolution, in simulated fields of spheres, polyhedra and sections.
RIM_ERROR = 0.13


@dataclass
class _Limits:
    """What a particle must satisfy to be used."""

    max_overlap: float
    least_radius: float
    allow_border: bool


def _noise_area(maps: xr.Dataset, labels: Labels, resolution: float, pixel: Pair) -> float:
    """Area [nm2] that shares one independent value of the noise.

    It is the sum of the autocorrelation of the thickness in the empty part of the map, out to one
    resolution: one pixel for raw counts, more once frames were interpolated or reconstructed. It
    lies between one pixel and the correlation area ``4 pi sigma**2`` of the point spread function,
    which is taken where the map has no empty part.
    """
    one = pixel[0] * pixel[1]
    most = max(one, 4.0 * np.pi * fwhm_to_sigma(resolution) ** 2)
    values, errors = maps["thickness"].values, maps["thickness_errors"].values
    good = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    away = ndimage.distance_transform_edt(labels == 0, sampling=pixel)
    empty = good & (away > max(1.25 * resolution, 3.0 * max(pixel)))
    if empty.sum() < 400:
        return most
    z = np.where(empty, values / np.where(good, errors, 1.0), 0.0)
    z = np.where(empty, z - surface(z, empty), 0.0)
    reach = [max(2, int(np.ceil(resolution / p))) for p in pixel]
    shape = [fft.next_fast_len(n + 2 * r, real=True) for n, r in zip(z.shape, reach, strict=True)]
    product, pairs = (
        fft.irfft2(np.abs(fft.rfft2(part.astype(np.float32), shape)) ** 2, shape)
        for part in (z, empty)
    )
    rows, columns = (np.r_[0 : r + 1, -r:0] for r in reach)
    lags = np.ix_(rows, columns)
    near = np.hypot(rows[:, None] * pixel[0], columns * pixel[1]) <= max(
        resolution, 1.5 * max(pixel)
    )
    correlation = product[lags] / np.maximum(pairs[lags], 1.0)
    total = float(correlation[near].sum() / max(correlation[0, 0], 1e-12))
    return float(np.clip(total * one, one, most))


@dataclass
class _Pixels:
    """Everything about the pixels that the rows of the table are made from."""

    labels: Labels
    thickness: Array
    thickness_errors: Array
    fraction: Array
    fraction_errors: Array
    smooth: Array
    border: Mask
    owner: Labels
    distance: Array
    jitter: Array
    jitter_length: float
    noise_area: float
    resolution: float
    pixel: Pair


def _jitter(
    smooth: Array, errors: Array, sigma: Pair, noise_area: float, resolution: float, pixel: Pair
) -> tuple[Array, float]:
    """Noise of the place of a contour [nm] at every pixel, and the length [nm] that shares it.

    Smoothing by a Gaussian of width w leaves ``sigma sqrt(a / (4 pi w**2))`` of noise that is
    independent from area a to area a, and correlates it along a line over ``2 sqrt(pi) w``. Over
    the slope of the map this is how far the contour moves; never more than half a resolution,
    which is where contours run along the line between two touching particles.
    """
    square = sigma[0] * pixel[0] * sigma[1] * pixel[1] + noise_area / (4.0 * np.pi)
    noise = np.nan_to_num(errors) * np.sqrt(noise_area / (4.0 * np.pi * square))
    slope = np.hypot(*np.gradient(smooth, *pixel))
    jitter = np.minimum(noise / np.maximum(slope, 1e-9), 0.5 * resolution)
    return jitter, float(2.0 * np.sqrt(np.pi * square))


def _collect(maps: xr.Dataset, fraction: str, resolution: float) -> _Pixels:
    """Take the maps apart and mark what cannot be used."""
    values = {
        name: np.asarray(maps[name].values)
        for name in (
            "thickness",
            "thickness_errors",
            f"{fraction}_fraction",
            f"{fraction}_fraction_errors",
        )
    }
    labels = check_label_map(maps["particle_label"], maps["thickness"])
    pixel = pixel_size(maps["thickness"])
    bad = ~np.all([np.isfinite(v) for v in values.values()], axis=0)
    if "flags" in maps:
        bad |= (np.asarray(maps["flags"].values).astype(int) & UNUSABLE) > 0
    usable = [np.where(bad, np.nan, v) for v in values.values()]
    sigma = sigma_px(fwhm_to_sigma(resolution), pixel, 0.7)
    smooth = ndimage.gaussian_filter(filled(values["thickness"])[0], sigma, mode="nearest")
    nearest = ndimage.distance_transform_edt(
        labels == 0, return_distances=False, return_indices=True
    )
    if "edge_distance" in maps:
        distance = np.asarray(maps["edge_distance"].values)
    else:
        edge = edge_distance(maps["particle_label"], maps["thickness"], resolution)
        distance = np.asarray(edge.values)
    noise_area = _noise_area(maps, labels, resolution, pixel)
    jitter, length = _jitter(smooth, usable[1], sigma, noise_area, resolution, pixel)
    return _Pixels(
        labels=labels,
        thickness=usable[0],
        thickness_errors=usable[1],
        fraction=usable[2],
        fraction_errors=usable[3],
        smooth=smooth,
        border=_border(np.isfinite(measured(values["thickness"], values["thickness_errors"]))),
        owner=labels[tuple(nearest)],
        distance=distance,
        jitter=jitter,
        jitter_length=length,
        noise_area=noise_area,
        resolution=resolution,
        pixel=pixel,
    )


def _border(valid: Mask) -> Mask:
    """Pixels at the border of what was measured: of the frame, or of an area without data on it."""
    outside = np.pad(~valid, 1, constant_values=True)
    pieces = ndimage.label(outside)[0]
    near = ndimage.binary_dilation(pieces == pieces[0, 0], np.ones((3, 3)))
    return np.asarray(near[1:-1, 1:-1])


def _outline_of(data: _Pixels, label: int, crop: Crop) -> Array | None:
    """Outline in pixels of the whole map, where the distance from the edge is zero."""
    distance = data.distance[crop]
    far = float(max(data.pixel)) * 3.0
    signed = np.where(np.isfinite(distance), distance, -far)
    owned = data.owner[crop] == label
    polygon = closed_contour(np.where(owned, signed, -np.abs(signed)), data.labels[crop] == label)
    if polygon is None:
        return None
    return np.asarray(polygon + np.array([crop[0].start, crop[1].start], float))


def _area_error(data: _Pixels, outline: Array) -> float:
    """Standard error [nm2] of the area inside an outline in pixels.

    Photon noise moves every stretch of the outline by itself; what is not known of the shape of
    the rim moves all of it together.
    """
    step = np.hypot(*(np.diff(outline, axis=0) * np.array(data.pixel)).T)
    middle = 0.5 * (outline[:-1] + outline[1:])
    moved = ndimage.map_coordinates(data.jitter, middle.T, order=1, mode="nearest")
    noise = np.sqrt((moved**2 * step).sum() * data.jitter_length)
    return float(np.hypot(noise, RIM_ERROR * data.resolution * step.sum()))


def _row(data: _Pixels, label: int, crop: Crop, section: float | None) -> dict[str, Any]:
    """Properties of one particle, without its agglomerate."""
    mine = data.labels[crop] == label
    one = data.pixel[0] * data.pixel[1]
    polygon = _outline_of(data, label, crop)
    if polygon is None:  # smaller than a contour can be
        area = mine.sum() * one
        area_error = 0.5 * np.sqrt(area * one)
        inside = np.argwhere(mine).mean(axis=0)
        centre = (float(inside[0] + crop[0].start), float(inside[1] + crop[1].start))
    else:
        area, centre = outline_area(polygon) * one, centroid(polygon)
        area_error = _area_error(data, polygon)
    radius = float(np.sqrt(area / np.pi))
    highest = float(data.smooth[crop][mine].max())
    allowed = 2.0 * radius if section is None else min(2.0 * radius, section)
    used = mine & np.isfinite(data.thickness[crop])
    t, t_errors, f, f_errors = (
        values[crop][used].astype(float)
        for values in (
            data.thickness,
            data.thickness_errors,
            data.fraction,
            data.fraction_errors,
        )
    )
    row = dict(particle=label, area=area, area_errors=area_error, radius=radius)
    row |= dict(radius_errors=area_error / (2.0 * np.pi * radius), y=centre[0], x=centre[1])
    row |= dict(thickness_max=highest, overlap=highest / allowed)
    row |= dict(at_border=bool((data.border[crop] & mine).any()), pixels=int(used.sum()))
    return row | _composition(t, t_errors, f, f_errors, data.noise_area / one)


def _composition(
    t: Array, t_errors: Array, f: Array, f_errors: Array, shared: float
) -> dict[str, float]:
    """Mean thickness and fraction of the pixels of one particle, with errors.

    The fraction is ``F = sum(f t) / sum(t)``, whose error is that of ``sum(f t - F t)``: sigma_f t
    for every pixel. That runs away with f where noise takes t to nearly nothing, so that there it
    is held to what it is in the thicker pixels.
    """
    if t.size == 0 or t.sum() <= 0:
        nan = float("nan")
        return dict(thickness=nan, thickness_errors=nan, fraction=nan, fraction_errors=nan)
    shared = min(shared, float(t.size))
    total = float(t.sum())
    mean = float((f * t).sum() / total)
    noise = np.abs(t) * f_errors
    thin = np.abs(t) < 0.3 * total / t.size
    if thin.any() and not thin.all():
        noise[thin] = np.minimum(noise[thin], np.median(noise[~thin]))
    return dict(
        thickness=total / t.size,
        thickness_errors=float(np.sqrt(shared * (t_errors**2).sum())) / t.size,
        fraction=mean,
        fraction_errors=float(np.sqrt(shared * (noise**2).sum())) / total,
    )


def _places(
    data: _Pixels, groups: Labels, rows: list[dict[str, Any]], gap: float, exterior: float | None
) -> None:
    """Add agglomerate, depth and place to the rows."""
    bodies = {b.group: b for b in agglomerate_bodies(data.labels, groups, data.pixel, gap)}
    for row, (_, crop) in zip(rows, crops(data.labels), strict=True):
        mine = groups[crop][data.labels[crop] == row["particle"]]
        members = np.bincount(mine[mine > 0]) if (mine > 0).any() else np.zeros(1, int)
        row["agglomerate"] = int(members.argmax())
        row["depth"], row["place"] = float("nan"), PLACES[0]
        if row["agglomerate"] > 0:
            body = bodies[row["agglomerate"]]
            row["depth"] = body.at(row["y"], row["x"])
            limit = 2.0 * body.radius if exterior is None else exterior
            row["place"] = PLACES[1] if row["depth"] <= limit else PLACES[2]


def _reason(row: dict[str, Any], limits: _Limits) -> str:
    """Why a particle is not used; empty if it is."""
    reasons = []
    if not np.isfinite(row["fraction"]):
        reasons.append("no composition was measured")
    if row["at_border"] and not limits.allow_border:
        reasons.append("it is cut by the border of the map")
    if row["overlap"] > limits.max_overlap:
        reasons.append(f"overlap: {row['overlap']:.2f} times as thick as its outline allows")
    if row["radius"] < limits.least_radius:
        reasons.append(f"too small: radius below {limits.least_radius:.0f} nm")
    return "; ".join(reasons)


def particle_table(
    maps: xr.Dataset,
    fraction: str,
    resolution_nm: float | None = None,
    geometry: Literal["dispersed", "lamella"] = "dispersed",
    section_nm: float | None = None,
    *,
    max_overlap: float = 1.3,
    min_radius_nm: float | None = None,
    allow_border: bool = False,
    exterior_nm: float | None = None,
) -> xr.Dataset:
    """Measure every particle.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        ``particle_label``, ``thickness`` [nm] and ``<fraction>_fraction``, unconstrained and with
        their ``_errors``; if there, ``agglomerate_label`` (else all particles are outside),
        ``edge_distance`` [nm] (else it is made) and ``flags``.
    fraction : str
        Name of the mapped component, such as "mn3".
    resolution_nm : float, optional
        Full width at half maximum of the point spread function [nm]; default two pixels.
    geometry : {"dispersed", "lamella"}
        Whole particles, or a section.
    section_nm : float, optional
        Nominal thickness of a section [nm], which then bounds the thickness of a particle too.
    max_overlap : float
        Particles with a larger overlap score are not used: the largest thickness over what the
        outline allows. A sphere scores 1, a cube seen along its edge 0.9 and along its diagonal
        1.2, a tall prism among others up to 1.5; one sphere on top of another up to 2, two that
        share a seventh of their outlines 0.9 to 1.5. So 1.3 leaves out few that stand alone, and
        1.1 two thirds of such overlaps where the optics resolve them.
    min_radius_nm : float, optional
        Smaller particles [nm] are not used; default two resolutions.
    allow_border : bool
        Use particles that the border of the map cuts.
    exterior_nm : float, optional
        Primaries whose centre is not deeper than this [nm] below the surface of their agglomerate
        are at its exterior; default the median diameter of its primaries, which takes the
        outermost layer.

    Returns
    -------
    Dataset, dims (particle,)
        The coordinate ``particle`` is the label. ``area`` [nm2], equivalent ``radius`` and centre
        ``y``, ``x`` [nm] of the sub-pixel outline, with errors of area and radius (noise of the
        outline, and what is not known of the shape of the rim); mean ``thickness`` [nm];
        ``thickness_max`` [nm], the largest within one resolution element; ``overlap``, that
        over the diameter (or the section if it is thinner); ``<fraction>_fraction`` = sum
        of the component's thickness over the sum of the thickness; errors of both (random, 1 sigma,
        with the correlation of noise between pixels); ``agglomerate``, ``place`` and ``depth``
        [nm] below the surface of the agglomerate; ``at_border``, ``used`` and ``reason``, why not.

    Raises
    ------
    InputError
        A variable is missing, units are wrong, or an option is out of range.
    """
    _check_table(maps, fraction, geometry)
    for name, length in (
        ("resolution_nm", resolution_nm),
        ("section_nm", section_nm),
        ("min_radius_nm", min_radius_nm),
        ("exterior_nm", exterior_nm),
        ("max_overlap", max_overlap),
    ):
        check_length(name, length)
    pixel = pixel_size(maps["thickness"])
    resolution = 2.0 * max(pixel) if resolution_nm is None else resolution_nm
    data = _collect(maps, fraction, resolution)
    section = section_nm if geometry == "lamella" else None
    rows = [_row(data, label, crop, section) for label, crop in crops(data.labels, 4)]
    groups = np.zeros_like(data.labels)
    if "agglomerate_label" in maps:
        groups = check_label_map(maps["agglomerate_label"], maps["thickness"])
    _places(data, groups, rows, 2.0 * max(pixel), exterior_nm)
    least = 2.0 * resolution if min_radius_nm is None else min_radius_nm
    limits = _Limits(max_overlap, least, allow_border)
    for row in rows:
        row["reason"] = _reason(row, limits)
        row["used"] = row["reason"] == ""
    if rows and not any(row["used"] for row in rows):
        LOG.warning("particles: none of the %d found can be used: %s", len(rows), rows[0]["reason"])
    return _as_dataset(rows, fraction, maps["thickness"])


def _check_table(maps: xr.Dataset, fraction: str, geometry: str) -> None:
    """Refuse maps that lack something, and unknown geometries."""
    if geometry not in ("dispersed", "lamella"):
        raise InputError(
            f"'{geometry}' is not known", where="geometry", remedy="Use dispersed or lamella."
        )
    for name in (
        f"{fraction}_fraction",
        f"{fraction}_fraction_errors",
        "thickness",
        "thickness_errors",
        "particle_label",
    ):
        if name not in maps:
            raise InputError(
                f"the variable '{name}' is missing",
                where="maps",
                remedy="Unmix the stack and find the particles first.",
            )
    check_map(maps["thickness"], "nm", name="thickness")


#: Column, its type, units and description; `fraction` becomes ``<fraction>_fraction``.
_COLUMNS: tuple[tuple[str, type, str, str], ...] = (
    ("area", float, "nm2", "area inside the outline"),
    ("area_errors", float, "nm2", "standard error of the area"),
    ("radius", float, "nm", "radius of the circle of the same area"),
    ("radius_errors", float, "nm", "standard error of the radius"),
    ("y", float, "nm", "centre"),
    ("x", float, "nm", "centre"),
    ("thickness", float, "nm", "mean thickness"),
    ("thickness_errors", float, "nm", "standard error of the mean thickness"),
    ("thickness_max", float, "nm", "largest thickness within a resolution element"),
    ("overlap", float, "1", "largest thickness over what the outline allows"),
    ("fraction", float, "1", "fraction of the component, weighted by thickness"),
    ("fraction_errors", float, "1", "standard error of the fraction"),
    ("agglomerate", np.int32, "1", "agglomerate, 0 = none"),
    ("place", object, "", "outside of agglomerates, or exterior or interior of one"),
    ("depth", float, "nm", "depth of the centre below the surface of the agglomerate"),
    ("at_border", bool, "", "cut by the border of the map"),
    ("used", bool, "", "taken for models and statistics"),
    ("reason", object, "", "why it is not used"),
)


def _as_dataset(rows: list[dict[str, Any]], fraction: str, like: xr.DataArray) -> xr.Dataset:
    """Rows as a Dataset, with centres in the coordinates of the map."""
    centres = np.array([[row["y"], row["x"]] for row in rows]).reshape(-1, 2)
    for row, (y, x) in zip(rows, to_nm(centres, like), strict=True):
        row["y"], row["x"] = y, x
    table = xr.Dataset(
        coords={"particle": np.array([row["particle"] for row in rows], np.int32)},
        attrs={"fraction": fraction},
    )
    for column, kind, units, text in _COLUMNS:
        values: NDArray[Any] = np.empty(len(rows), dtype=kind)
        values[:] = [row[column] for row in rows]
        attrs = {"long_name": text} | ({"units": units} if units else {})
        name = column.replace("fraction", f"{fraction}_fraction")
        table[name] = ("particle", values, attrs)
    return table
