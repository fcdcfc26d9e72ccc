"""Profiles of particles and of groups, and the models fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.figures._canvas import (
    GREY,
    INK,
    MODEL_COLOURS,
    PALE,
    PURPLE,
    SIGMA,
    WIDTH_IN,
    FloatArray,
    component_label,
    draw_points,
    errors_of,
    fraction_name,
    group_of,
    new_figure,
    note_figure,
    numbers_of,
    styled,
    texts_of,
    units_of,
)
from spectromap.figures.maps import (
    colour_bar,
    draw_map,
    draw_outlines,
    extension,
    limits_of,
    reliable_pixels,
)
from spectromap.figures.places import PLACE_COLOURS
from spectromap.profiles import group_profiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["group_profiles_figure", "particle_fits", "profiles_figure", "representative_fits"]

Mask = NDArray[np.bool_]

MODEL_STYLES = {
    "diffusion": "-",
    "core-shell": "--",
    "surface-exchange": "-.",
    "diffusion-skin": ":",
}
MOST_PROFILES = 9
#: So many particles stand for all where fits are shown in full.
REPRESENTATIVES = 3
NONE_LARGE_ENOUGH = "No particle is large enough for a profile."


def _model_line(model: object) -> dict[str, Any]:
    """How the curve of a model is drawn, always alike."""
    name = str(model)
    return {"color": MODEL_COLOURS.get(name, GREY), "linestyle": MODEL_STYLES.get(name, "-.")}


# --- what is drawn of which particle -----------------------------------------------------------


def _used(profiles: xr.Dataset, particles: xr.Dataset | None) -> Mask:
    """Which of the particles with a profile count; all of them where the table does not tell."""
    labels = profiles["particle"].values
    if particles is None or "used" not in particles:
        return np.ones(labels.size, dtype=bool)
    flags = dict(zip(particles["particle"].values, particles["used"].values, strict=True))
    return np.array([flags.get(label, False) for label in labels], dtype=bool)


def _information(profiles: xr.Dataset, name: str) -> FloatArray:
    """How well every profile is determined; zero where it has less than two bins."""
    values, errors = numbers_of(profiles, name), errors_of(profiles, name)
    good = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    information = np.where(good, 1 / np.where(good, errors, 1.0) ** 2, 0.0).sum(axis=1)
    return np.asarray(information * (good.sum(axis=1) > 1))


def _profile_order(profiles: xr.Dataset, particles: xr.Dataset | None, name: str) -> list[int]:
    """Positions of the particles that tell most: used ones first, then by the error of a bin."""
    information, used = _information(profiles, name), _used(profiles, particles)
    order = sorted(range(information.size), key=lambda i: (not used[i], -information[i]))
    return [i for i in order if information[i] > 0]


def _verdict(models: xr.Dataset | None, number: int) -> str:
    """Verdict on a particle; empty where there is none."""
    if models is None or "verdict" not in models or number not in models["particle"].values:
        return ""
    return str(models["verdict"].sel(particle=number).item())


def _fits(models: xr.Dataset | None, number: int) -> list[tuple[str, FloatArray, FloatArray]]:
    """Name, distances and curve of every model that was fitted to a particle."""
    if models is None or "fit" not in models or number not in models["particle"].values:
        return []
    distance = np.asarray(models["distance"].values, dtype=np.float64)
    found: list[tuple[str, FloatArray, FloatArray]] = []
    for model in models["model"].values:
        curve = np.asarray(models["fit"].sel(particle=number, model=model).values, np.float64)
        if np.isfinite(curve).any():
            found.append((str(model), distance, curve))
    return found


# --- one particle ------------------------------------------------------------------------------


def _draw_profile(
    axes: Axes, profiles: xr.Dataset, models: xr.Dataset | None, index: int, name: str
) -> None:
    """One measured profile with the fit of every model."""
    one = profiles.isel(particle=index)
    distance = profiles["distance"].values
    draw_points(axes, distance, numbers_of(one, name), errors_of(one, name), label="measured")
    for model, where, curve in _fits(models, one["particle"].item()):
        axes.plot(where, curve, **_model_line(model), label=model, zorder=3)


def _draw_residuals(
    axes: Axes, profiles: xr.Dataset, index: int, name: str, fits: Sequence[tuple[str, Any, Any]]
) -> None:
    """Measured minus fitted in units of sigma, for each of some models."""
    axes.axhspan(-1, 1, color=PALE, zorder=0)
    axes.axhline(0, color=GREY, linewidth=0.6)
    one = profiles.isel(particle=index)
    measured, errors = numbers_of(one, name), errors_of(one, name)
    for model, where, curve in fits:
        if curve.shape == measured.shape:
            pull = (measured - curve) / np.where(errors > 0, errors, np.nan)
            axes.plot(where, pull, **_model_line(model), marker="o", markersize=2.5)


def _profile_limits(
    profiles: xr.Dataset, models: xr.Dataset | None, name: str, chosen: Sequence[int]
) -> tuple[float, float]:
    """Common limits of the profiles, from the bins that say something and the curves there."""
    values = numbers_of(profiles, name)[list(chosen)]
    errors = np.nan_to_num(errors_of(profiles, name)[list(chosen)])
    sure = np.isfinite(values) & (errors <= 3 * np.median(errors[np.isfinite(values)]))
    low, high = float((values - errors)[sure].min()), float((values + errors)[sure].max())
    numbers = [int(profiles["particle"].values[index]) for index in chosen]
    curves = [curve for number in numbers for _, _, curve in _fits(models, number)]
    fitted = np.concatenate([[low, high], *curves])
    # A curve that is far off must not squeeze the data.
    room = 0.4 * (high - low)
    low = float(np.clip(np.nanmin(fitted), low - room, low))
    high = float(np.clip(np.nanmax(fitted), high, high + room))
    margin = 0.08 * (high - low) or 0.05
    return low - margin, high + margin


@styled
def profiles_figure(tree: xr.DataTree, *, most: int = MOST_PROFILES) -> Figure | None:
    """Fraction against the distance from the edge, particle by particle, with every model.

    Parameters
    ----------
    tree : DataTree
        A result.
    most : int
        How many particles to draw: those whose profiles are best determined.

    Returns
    -------
    Figure or None
        None where the result has no profiles. Error bars are 1 sigma.
    """
    profiles, particles = group_of(tree, "profiles"), group_of(tree, "particles")
    fraction = fraction_name(tree)
    name = f"{fraction}_fraction"
    if profiles is None or name not in profiles:
        return None
    order = sorted(_profile_order(profiles, particles, name)[:most])
    if not order:
        return note_figure(NONE_LARGE_ENOUGH)
    models, used = group_of(tree, "models"), _used(profiles, particles)
    columns = min(3, len(order))
    rows = -(-len(order) // columns)
    figure = new_figure(max(2.3 * columns, 4.6), 1.9 * rows + 0.7)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, index in zip(grid, order, strict=False):
        _draw_profile(axes, profiles, models, index, name)
        number = int(profiles["particle"].values[index])
        about = _verdict(models, number) if used[index] else "left out"
        axes.set_title(f"{number}: {about}" if about else f"{number}")
    grid[0].set_ylim(_profile_limits(profiles, models, name, order))
    grid[0].set_xlim(0, None)
    _finish_grid(figure, grid, len(order), columns, component_label(fraction))
    return figure


def _finish_grid(
    figure: Figure, grid: NDArray[Any], panels: int, columns: int, component: str
) -> None:
    """Labels on the outside, the legend above, no empty panels."""
    for axes in grid[panels:]:
        axes.remove()
    # The last panel of a column carries the labels, also where the row below is not full.
    for axes in grid[max(panels - columns, 0) : panels]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("distance from the edge [nm]", fontsize=9)
    figure.supylabel(f"{component} fraction (±1{SIGMA})", fontsize=9)
    _common_legend(figure, list(grid[:panels]))


def _common_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above all panels."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=5)


@styled
def particle_fits(tree: xr.DataTree, particle: int | None = None) -> Figure | None:
    """One particle in full: its map, its profile with every model, the residuals in sigma.

    Parameters
    ----------
    tree : DataTree
        A result.
    particle : int, optional
        Its number; the best determined one by default.

    Returns
    -------
    Figure or None
        None where the result has no profiles, or not of this particle.
    """
    profiles, maps = group_of(tree, "profiles"), group_of(tree, "maps")
    fraction = fraction_name(tree)
    name = f"{fraction}_fraction"
    if profiles is None or maps is None or name not in profiles or name not in maps:
        return None
    order = _profile_order(profiles, group_of(tree, "particles"), name)
    if particle is not None:
        order = [i for i in order if int(profiles["particle"].values[i]) == particle]
    if not order:
        return None if particle is not None else note_figure(NONE_LARGE_ENOUGH)
    number = int(profiles["particle"].values[order[0]])
    models = group_of(tree, "models")
    figure = new_figure(WIDTH_IN + 0.6, 3.6)
    parts = figure.subfigures(1, 2, width_ratios=[1, 1.15], squeeze=False)
    left, right = parts[0]
    _draw_particle(left.add_subplot(), maps, number, fraction)
    upper, lower = right.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_profile(upper, profiles, models, order[0], name)
    upper.set_ylim(_profile_limits(profiles, models, name, order[:1]))
    upper.set_ylabel(f"{component_label(fraction)} fraction (±1{SIGMA})")
    upper.set_title(": ".join(filter(None, [f"particle {number}", _verdict(models, number)])))
    upper.legend(loc="best")
    _draw_residuals(lower, profiles, order[0], name, _fits(models, number))
    lower.set_ylabel(f"residual / {SIGMA}")
    lower.set_xlabel("distance from the edge [nm]")
    lower.set_xlim(0, None)
    right.align_ylabels([upper, lower])
    return figure


def _draw_particle(axes: Axes, maps: xr.Dataset, number: int, fraction: str) -> None:
    """The map around one particle."""
    labels = np.asarray(maps["particle_label"].values) if "particle_label" in maps else None
    shown = maps
    if labels is not None and np.any(labels == number):
        shown = maps.isel(_square_around(labels == number))
    good = reliable_pixels(shown, fraction, min_thickness_share=0.02)
    values = np.where(good, shown[f"{fraction}_fraction"].values, np.nan)
    limits = limits_of(values, 0.05, 0.1)
    image = draw_map(axes, shown, values, cmap="viridis", vmin=limits[0], vmax=limits[1])
    if labels is not None:
        outline = (shown["particle_label"].values == number).astype(int)
        draw_outlines(axes, shown, outline, colors="white", linewidths=1.6)
        draw_outlines(axes, shown, outline, colors=INK, linewidths=0.6)
    label = f"{component_label(fraction)} fraction"
    colour_bar(axes, image, label, extension(values, limits), "top")


def _square_around(inside: Mask) -> dict[str, slice]:
    """Rows and columns of a square about a particle, as far as the field goes."""
    places = np.nonzero(inside)
    half = 2 + 0.6 * max(float(np.ptp(place)) for place in places)
    window = {}
    for dim, place in zip(("y", "x"), places, strict=True):
        middle = (float(place.min()) + float(place.max())) / 2
        window[dim] = slice(max(round(middle - half), 0), round(middle + half) + 1)
    return window


# --- a few particles that stand for all --------------------------------------------------------


def _representatives(
    profiles: xr.Dataset,
    particles: xr.Dataset | None,
    models: xr.Dataset | None,
    name: str,
    count: int,
) -> list[int]:
    """Positions of fitted particles from small to large, evenly among all that are used."""
    used, information = _used(profiles, particles), _information(profiles, name)
    labels = [int(n) for n in profiles["particle"].values]
    chosen = [i for i, n in enumerate(labels) if used[i] and information[i] and _fits(models, n)]
    bins = np.isfinite(numbers_of(profiles, name)).sum(axis=1)
    radii: dict[int, float] = {}
    if particles is not None and "radius" in particles:
        radii = dict(
            zip(
                particles["particle"].values.tolist(),
                particles["radius"].values.tolist(),
                strict=True,
            )
        )
    chosen.sort(key=lambda i: (radii.get(labels[i], 0.0), bins[i]))
    places = (np.arange(min(count, len(chosen))) + 0.5) * len(chosen) / max(count, 1)
    if len(chosen) <= count:
        return chosen
    return [chosen[int(place)] for place in places]


@styled
def representative_fits(
    tree: xr.DataTree, particles: Sequence[int] | None = None, *, count: int = REPRESENTATIVES
) -> Figure | None:
    """A few particles side by side: the profile with every model, and the residuals of each.

    Parameters
    ----------
    tree : DataTree
        A result.
    particles : sequence of int, optional
        Their numbers. By default they are chosen by size alone, evenly from the smallest to the
        largest of the used ones, so that how well a model fits has no part in the choice.
    count : int
        How many to choose.

    Returns
    -------
    Figure or None
        None where the result has no fitted profiles, or not of these particles. Error bars and
        the unit of the residuals are 1 sigma of the profile; p is the probability of a worse fit
        if the model is right.
    """
    profiles, table = group_of(tree, "profiles"), group_of(tree, "particles")
    models, fraction = group_of(tree, "models"), fraction_name(tree)
    name = f"{fraction}_fraction"
    if profiles is None or models is None or "fit" not in models or name not in profiles:
        return None
    labels = [int(n) for n in profiles["particle"].values]
    if particles is None:
        chosen = _representatives(profiles, table, models, name, count)
    else:
        chosen = [labels.index(n) for n in particles if n in labels and _fits(models, n)]
    if not chosen:
        return None if labels else note_figure("No particle has been fitted.")
    names = [str(model) for model in models["model"].values]
    rows = 1 + len(names)
    figure = new_figure(max(2.3 * len(chosen) + 0.5, 4.4), 2.6 + 1.15 * len(names))
    heights = [2.6] + [1.0] * len(names)
    grid = figure.subplots(
        rows, len(chosen), sharex=True, sharey="row", squeeze=False, height_ratios=heights
    )
    for column, index in zip(grid.T, chosen, strict=True):
        _draw_column(column, profiles, models, index, name)
        column[0].set_title(_title(table, models, labels[index]))
    grid[0, 0].set_ylim(_profile_limits(profiles, models, name, chosen))
    grid[0, 0].set_xlim(0, None)
    grid[0, 0].set_ylabel(f"{component_label(fraction)} fraction (±1{SIGMA})")
    _share_residual_limits(grid[1:])
    figure.align_ylabels(list(grid[:, 0]))
    figure.supxlabel("distance from the edge [nm]", fontsize=9)
    _common_legend(figure, list(grid[0]))
    return figure


def _title(particles: xr.Dataset | None, models: xr.Dataset, number: int) -> str:
    """Number, radius and verdict of a particle."""
    parts = [str(number)]
    if particles is not None and "radius" in particles and number in particles["particle"].values:
        parts.append(f"R = {float(particles['radius'].sel(particle=number)):.0f} nm")
    return ", ".join(parts) + (f": {_verdict(models, number)}" if "verdict" in models else "")


def _draw_column(
    column: NDArray[Any], profiles: xr.Dataset, models: xr.Dataset, index: int, name: str
) -> None:
    """Profile and residuals of one particle, a panel for each model."""
    _draw_profile(column[0], profiles, models, index, name)
    number = int(profiles["particle"].values[index])
    fits = {model: (model, where, curve) for model, where, curve in _fits(models, number)}
    for axes, model in zip(column[1:], models["model"].values, strict=True):
        own = fits.get(str(model))
        _draw_residuals(axes, profiles, index, name, [own] if own else [])
        text = _in_numbers(models.sel(particle=number, model=model))
        axes.set_title(text, fontsize=8, color=_model_line(model)["color"])


def _in_numbers(fit: xr.Dataset) -> str:
    """What one model says about one particle."""
    said = []
    D, shell, p = (
        float(fit[n]) if n in fit else np.nan for n in ("D_cm2_s", "shell_thickness", "goodness")
    )
    if np.isfinite(D) and D > 0:
        mantissa, exponent = f"{D:.1e}".split("e")
        said.append(rf"D = ${mantissa} \times 10^{{{int(exponent)}}}$ cm² s⁻¹")
    if np.isfinite(shell):
        said.append(f"{shell:.0f} nm shell")
    if np.isfinite(p):
        said.append(f"p = {p:.2f}" if p >= 0.01 else "p < 0.01")
    return ", ".join(said)


def _share_residual_limits(rows: NDArray[Any]) -> None:
    """One scale for the residuals of all models: a better fit is seen to be one."""
    drawn = [line.get_ydata() for axes in rows.ravel() for line in axes.lines[1:]]
    values = np.abs(np.concatenate([np.zeros(1), *(np.asarray(y, float) for y in drawn)]))
    most = max(1.15 * float(np.nanmax(values)), 3.5)
    for row in rows:
        row[0].set_ylim(-most, most)
        row[0].set_ylabel(f"residual / {SIGMA}")


# --- groups ------------------------------------------------------------------------------------


def _groups(profiles: xr.Dataset, particles: xr.Dataset | None) -> xr.DataArray:
    """The place of every particle that counts, one group of all where places are not known."""
    used = _used(profiles, particles)
    labels = profiles["particle"].values[used]
    known: dict[Any, str] = {}
    if particles is not None and "place" in particles:
        known = dict(zip(particles["particle"].values, texts_of(particles, "place"), strict=True))
    names = np.array([known.get(n) or "all" for n in labels], dtype=object)
    return xr.DataArray(names, {"particle": labels}, ("particle",))


@styled
def group_profiles_figure(tree: xr.DataTree) -> Figure | None:
    """Mean fraction and thickness of the particles against the distance from the edge, by place.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no profiles with errors. Bars are the standard error of the mean
        over the used particles (68 %), bands the standard deviation between them; see
        `spectromap.profiles.group_profiles`.
    """
    profiles, particles = group_of(tree, "profiles"), group_of(tree, "particles")
    fraction = fraction_name(tree)
    name = f"{fraction}_fraction"
    if profiles is None or name not in profiles or f"{name}_errors" not in profiles:
        return None
    groups = _groups(profiles, particles)
    if not np.any(_information(profiles, name)) or not groups.size:
        return note_figure(NONE_LARGE_ENOUGH)
    # Only means are drawn here: what is counted along with them may be missing.
    counts = ("pixel_count", "independent_count", "mean_distance")
    profiles = profiles.assign(
        {n: xr.zeros_like(profiles[name]) for n in counts if n not in profiles}
    )
    means = group_profiles(profiles, groups)
    quantities = [n for n in (name, "thickness") if n in means]
    figure = new_figure(WIDTH_IN, 3.2 if len(quantities) == 1 else 4.4)
    panels = figure.subplots(
        len(quantities), 1, sharex=True, squeeze=False, height_ratios=[3, 1.6][: len(quantities)]
    )[:, 0]
    for axes, quantity in zip(panels, quantities, strict=True):
        _draw_groups(axes, means, quantity, groups)
    panels[0].set_ylabel(f"{component_label(fraction)} fraction (68 %)")
    if len(quantities) == 2:
        panels[1].set_ylabel(f"thickness{units_of(means['thickness'])}")
        panels[1].set_ylim(0, None)
    panels[0].legend(loc="best")
    panels[-1].set_xlabel("distance from the edge [nm]")
    panels[-1].set_xlim(0, None)
    figure.align_ylabels(list(panels))
    return figure


def _draw_groups(axes: Axes, means: xr.Dataset, name: str, groups: xr.DataArray) -> None:
    """Mean of every group with its error, on the band of the spread between particles."""
    distance = means["distance"].values
    offsets = np.linspace(-0.08, 0.08, means.sizes["group"]) * float(
        np.diff(distance).mean() if distance.size > 1 else 0.0
    )
    for group, offset in zip(means["group"].values, offsets, strict=True):
        one = means.sel(group=group)
        colour = PLACE_COLOURS.get(str(group), PURPLE)
        mean, spread = numbers_of(one, name), numbers_of(one, f"{name}_spread")
        axes.fill_between(
            distance, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0
        )
        count = int(np.sum(groups.values == group))
        label = f"{group}: {count} particle{'s' if count != 1 else ''}"
        options: dict[str, Any] = {"color": colour, "markersize": 4, "label": label}
        # A little apart, so that bars of groups that agree can be told from each other.
        draw_points(axes, distance + offset, mean, errors_of(one, name), **options)
