"""Several states of one sample beside each other, from the comparison of their results."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from spectromap.figures._canvas import (
    BLUE,
    DECORATION,
    DOUBLE_IN,
    GREY,
    INK,
    ORANGE,
    PALE,
    SIGMA,
    SINGLE_IN,
    FloatArray,
    component_label,
    draw_points,
    errors_of,
    group_of,
    new_figure,
    numbers_of,
    styled,
    texts_of,
    units_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "growth_figure",
    "release_figure",
    "state_differences_figure",
    "state_distributions_figure",
    "state_profiles_figure",
    "state_spectra_figure",
]

MARKERS = "osD^vP*X"
_BY_CYCLES = "number of cycles"


def _series(tree: xr.DataTree, *names: str) -> xr.Dataset | None:
    """The comparison, if it holds these variables for at least one state."""
    found = group_of(tree, "series")
    if found is None or "state" not in found.sizes or not set(names) <= set(found.variables):
        return None
    return found if found.sizes["state"] else None


def _component(found: xr.Dataset) -> str:
    """Name of the mapped component."""
    return str(found.attrs.get("fraction", ""))


def _looks(found: xr.Dataset) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Position, name and look of every state: dark to light in their order."""
    from matplotlib import colormaps

    names = texts_of(found, "state")
    charged = [state == "charged" for state in texts_of(found, "sample_state")]
    shades = colormaps["viridis"](np.linspace(0.0, 0.82, max(len(names), 2)))
    for index, name in enumerate(names):
        face = {"markerfacecolor": "white"} if charged[index] else {}
        look = {"color": tuple(shades[index]), "marker": MARKERS[index % len(MARKERS)]}
        yield index, name, look | face


@styled
def state_spectra_figure(tree: xr.DataTree) -> Figure | None:
    """Mean spectrum of every state, and its difference from the reference state.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.series.compare_states` makes it.

    Returns
    -------
    Figure or None
        None where the tree compares no spectra. Bands are 1 sigma: of the spectra without, of
        the differences with the error of the energy calibration.
    """
    found = _series(tree, "energy", "mean_od", "mean_od_difference")
    if found is None:
        return None
    energy = np.asarray(found["energy"].values, dtype=np.float64)
    figure = new_figure(SINGLE_IN, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    lower.axhline(0, color=GREY, linewidth=0.7)
    reference = str(found.attrs.get("reference", ""))
    for index, name, look in _looks(found):
        one = found.isel(state=index)
        for axes, quantity in ((upper, "mean_od"), (lower, "mean_od_difference")):
            if quantity == "mean_od_difference" and name == reference:
                continue
            values, errors = numbers_of(one, quantity), errors_of(one, quantity)
            _band(axes, energy, values, errors, look["color"], name)
    units = units_of(found["mean_od"]) or " [1]"
    upper.set_ylabel(f"mean optical density{units}")
    lower.set_ylabel(f"less {reference or 'the reference'}")
    lower.set_xlabel("photon energy [eV]")
    _legend_above(figure, upper, 2)
    figure.align_ylabels([upper, lower])
    return figure


def _legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """Names of the states above all panels: among six of them no place is free."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _band(
    axes: Axes, x: FloatArray, y: FloatArray, errors: FloatArray, colour: Any, name: str
) -> None:
    """A curve on the band of its error."""
    bars = np.nan_to_num(errors)
    axes.fill_between(
        x, y - bars, y + bars, color=colour, alpha=0.25, linewidth=0, label=f"_{name}, 1 {SIGMA}"
    )
    axes.plot(x, y, color=colour, linewidth=1.2, label=name)


@styled
def state_profiles_figure(tree: xr.DataTree) -> Figure | None:
    """Mean fraction and thickness against the distance from the edge, state by state.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.series.compare_states` makes it.

    Returns
    -------
    Figure or None
        None where the tree compares no profiles. Bars are the standard error of the mean over
        particles (68 %).
    """
    found = _series(tree, "distance")
    name = "" if found is None else f"{_component(found)}_profile"
    if found is None or name not in found:
        return None
    quantities = [n for n in (name, "thickness_profile") if n in found]
    figure = new_figure(SINGLE_IN, 3.5 if len(quantities) == 1 else 4.8)
    panels = figure.subplots(
        len(quantities), 1, sharex=True, squeeze=False, height_ratios=[1.8, 1][: len(quantities)]
    )[:, 0]
    distance = np.asarray(found["distance"].values, dtype=np.float64)
    step = float(np.diff(distance).mean()) if distance.size > 1 else 0.0
    count = found.sizes["state"]
    for index, state, look in _looks(found):
        one, aside = found.isel(state=index), (index - (count - 1) / 2) * 0.12 * step
        for axes, quantity in zip(panels, quantities, strict=True):
            values, errors = numbers_of(one, quantity), errors_of(one, quantity)
            # A little apart, so that the bars of states that agree can be told from each other.
            draw_points(axes, distance + aside, values, errors, label=state, markersize=3.8, **{
                k: v for k, v in look.items()})  # fmt: skip
            axes.plot(distance + aside, values, color=look["color"], linewidth=0.7, zorder=1,
                      label=DECORATION)  # fmt: skip
    panels[0].set_ylabel(f"{component_label(_component(found))} fraction (68 %)")
    _legend_above(figure, panels[0], 2)
    if len(panels) == 2:
        panels[1].set_ylabel("thickness [nm]")
        panels[1].set_ylim(0, None)
    panels[-1].set_xlabel("distance from the edge [nm]")
    panels[-1].set_xlim(0, None)
    figure.align_ylabels(list(panels))
    return figure


@styled
def state_distributions_figure(tree: xr.DataTree) -> Figure | None:
    """How the fractions of particles are distributed in every state.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.series.compare_states` makes it.

    Returns
    -------
    Figure or None
        None where the tree compares no distributions. Left: density with its 1 sigma error.
        Right: quantiles with theirs.
    """
    found = _series(tree, "bin", "density", "quantile")
    name = "" if found is None else f"{_component(found)}_quantiles"
    if found is None or name not in found:
        return None
    count = found.sizes["state"]
    figure = new_figure(DOUBLE_IN, float(np.clip(0.8 + 0.75 * count, 2.6, 9.0)))
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1], squeeze=False)[0]
    panels = left.subplots(count, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    axes = right.add_subplot()
    middle = np.asarray(found["bin"].values, dtype=np.float64)
    levels = np.asarray(found["quantile"].values, dtype=np.float64)
    for index, state, look in _looks(found):
        one = found.isel(state=index)
        density, errors = numbers_of(one, "density"), errors_of(one, "density")
        options: dict[str, Any] = {
            "color": look["color"],
            "step": "mid",
            "linewidth": 0,
            "label": DECORATION,
        }
        panels[index].fill_between(middle, 0 * density, density, alpha=0.4, **options)
        draw_points(panels[index], middle, density, errors, color=look["color"], marker="",
                    label=f"_{state}")  # fmt: skip
        panels[index].set_title(state, fontsize=8, pad=2)
        _draw_quantiles(axes, count - 1 - index, levels, one, name, look)
    label = f"{component_label(_component(found))} fraction of a particle"
    panels[-1].set_xlabel(label)
    panels[-1].set_ylim(0, None)
    left.supylabel("share of particles per unit", fontsize=9)
    names = [textwrap.fill(state, 14) for state in texts_of(found, "state")]
    axes.set_yticks(range(count), names[::-1])
    axes.set_ylim(-0.6, count - 0.4)
    axes.set_xlabel(label)
    return figure


def _draw_quantiles(
    axes: Axes,
    position: int,
    levels: FloatArray,
    one: xr.Dataset,
    name: str,
    look: dict[str, Any],
) -> None:
    """Every quantile of one state with its error, on lines that join the outer and inner ones."""
    values, errors = numbers_of(one, name), errors_of(one, name)
    for number in range(values.size // 2):
        ends = [values[number], values[-1 - number]]
        axes.plot(ends, [position] * 2, color=look["color"], alpha=0.35, linewidth=3 + 4 * number,
                  solid_capstyle="butt", label=DECORATION)  # fmt: skip
    for level, value, error in zip(levels, values, errors, strict=True):
        size = 6 if level == 0.5 else 3.5
        options = look | {"linestyle": "none", "markersize": size, "elinewidth": 0.9}
        axes.errorbar([value], [position], xerr=[np.nan_to_num(error)],
                      label=f"_quantile {level:g}", **options)  # fmt: skip


@styled
def release_figure(tree: xr.DataTree) -> Figure | None:
    """Released oxygen and the mean state of the mapped metal against the number of cycles.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.series.compare_states` makes it.

    Returns
    -------
    Figure or None
        None where neither is known. Thick bars: random error (1 sigma), thin ones: with the
        systematic one. Open: charged.
    """
    found = _series(tree, "cycles")
    if found is None:
        return None
    shown = []
    if "released_fraction" in found and np.isfinite(numbers_of(found, "released_fraction")).any():
        shown.append(("released_fraction", 100.0, "oxygen released [at% of O]"))
    names = [str(n) for n in found.data_vars]
    states = [n for n in names if n.endswith("_state") and f"{n}_change" in names]
    for name in states or [n for n in names if n == f"{_component(found)}_mean"]:
        element = name.removesuffix("_state")
        metal = f"mean state of {element.capitalize()}"
        mean = f"mean {component_label(_component(found))} fraction"
        shown.append((name, 1.0, metal if states else mean))
    if not shown:
        return None
    figure = new_figure(DOUBLE_IN if len(shown) > 1 else SINGLE_IN, 3.3)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (name, factor, label) in zip(panels, shown, strict=True):
        _draw_by_cycles(axes, found, name, factor)
        axes.set_ylabel(f"{label} (±1{SIGMA})")
    # All states have a mean state; of charged ones no released oxygen is known.
    _legend_above(figure, panels[-1], 3 * len(panels))
    return figure


def _cycles(found: xr.Dataset) -> FloatArray:
    """Number of cycles; the order of the states where some are not known."""
    cycles = numbers_of(found, "cycles")
    return cycles if np.isfinite(cycles).all() else np.arange(cycles.size, dtype=np.float64)


def _cycle_axis(axes: Axes, found: xr.Dataset) -> None:
    """An axis of cycles that shows none, one and hundreds of them, named where states are."""
    cycles = _cycles(found)
    known = bool(np.isfinite(numbers_of(found, "cycles")).all())
    ticks = np.unique(cycles)
    if known and ticks.max() > 10:
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        ticks = _apart(ticks)
    names = [f"{tick:g}" for tick in ticks] if known else texts_of(found, "state")
    axes.set_xticks(ticks, names)
    axes.xaxis.set_minor_locator(_no_ticks())
    high = float(cycles.max())
    axes.set_xlim(-0.35, high * 1.8 if known and high > 10 else high + 0.35)
    axes.set_xlabel(_BY_CYCLES if known else "state")


def _apart(ticks: FloatArray) -> FloatArray:
    """Ticks whose names do not touch on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick < 2 or tick > 1.9 * kept[-1]:
            kept.append(float(tick))
    return np.array(kept)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _draw_by_cycles(axes: Axes, found: xr.Dataset, name: str, factor: float) -> None:
    """One quantity of all states against cycles, with both errors."""
    cycles, values = _cycles(found), factor * numbers_of(found, name)
    random = factor * np.nan_to_num(errors_of(found, name))
    common = f"{name}_systematic"
    systematic = factor * np.nan_to_num(numbers_of(found, common)) if common in found else 0.0
    whole = np.hypot(random, systematic)
    for index, state, look in _looks(found):
        if not np.isfinite(values[index]):
            continue
        one = slice(index, index + 1)
        draw_points(axes, cycles[one], values[one], whole[one], elinewidth=0.9, markersize=6,
                    label=f"_{state}, both errors", **look)  # fmt: skip
        draw_points(axes, cycles[one], values[one], random[one], elinewidth=2.6, markersize=6,
                    label=state, **look)  # fmt: skip
    _cycle_axis(axes, found)
    axes.margins(y=0.12)


@styled
def growth_figure(tree: xr.DataTree) -> Figure | None:
    """D t of every state against cycles, and whether it grows as it does for one D.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.series.compare_states` makes it.

    Returns
    -------
    Figure or None
        None where no D t is known. Bars: 68 % (thick) and 95 % intervals; grey: what one
        diffusion coefficient for all states asks for, with the times that are known.
    """
    found = _series(tree, "log10_Dt", "log10_Dt_low68", "log10_Dt_high68", "cycles")
    if found is None or not any(
        np.isfinite(numbers_of(found, n)).any()
        for n in ("log10_Dt", "log10_Dt_low68", "log10_Dt_high68")
    ):
        return None
    figure = new_figure(SINGLE_IN, 3.7)
    axes = figure.add_subplot()
    cycles = _cycles(found)
    for index, state, look in _looks(found):
        _draw_product(axes, found.isel(state=index), float(cycles[index]), state, look)
    _draw_one_D(axes, found, cycles)
    _cycle_axis(axes, found)
    axes.set_ylabel("log₁₀(D t / cm²) (68 %, 95 %)")
    lines = []
    if "growth_slope" in found:
        ends = [float(found[f"growth_slope{end}"]) for end in ("", "_low68", "_high68")
                if f"growth_slope{end}" in found]  # fmt: skip
        text = f"slope with time: {ends[0]:.2f}"
        lines.append(text + (f" ({ends[1]:.2f} to {ends[2]:.2f})" if len(ends) == 3 else ""))
    if "growth_verdict" in found:
        lines.append(textwrap.fill(str(found["growth_verdict"].item()), 50))
    elif found.attrs.get("growth_remark"):
        lines.append(textwrap.fill(str(found.attrs["growth_remark"]), 50))
    axes.set_title("\n".join(lines), fontsize=8)
    _legend_above(figure, axes, 2)
    return figure


def _draw_product(
    axes: Axes, one: xr.Dataset, cycles: float, name: str, look: dict[str, Any]
) -> None:
    """D t of one state with both intervals, or an arrow where only a limit is known."""
    value = float(one["log10_Dt"])
    if not np.isfinite(value):
        low, high = (float(one[f"log10_Dt_{side}68"]) for side in ("low", "high"))
        end, marker = (low, "^") if np.isfinite(low) else (high, "v")
        if not np.isfinite(end):
            return
        options: dict[str, Any] = look | {"marker": marker, "linestyle": "none", "markersize": 8}
        axes.plot([cycles], [end], label=f"{name}, {'lower' if end == low else 'upper'} limit",
                  **options)  # fmt: skip
        return
    for level, width in (("95", 0.9), ("68", 2.6)):
        ends = [f"log10_Dt_{side}{level}" for side in ("low", "high")]
        if not set(ends) <= set(one):
            continue
        bars = np.abs(np.array([[float(one[end])] for end in ends]) - value)
        options = look | {"linestyle": "none", "elinewidth": width, "markersize": 6}
        label = name if level == "68" else f"_{name}, 95 %"
        bars = np.where(np.isfinite(bars), bars, 0.0)
        axes.errorbar([cycles], [value], yerr=bars, label=label, **options)


def _draw_one_D(axes: Axes, found: xr.Dataset, cycles: FloatArray) -> None:
    """D t that one D gives at the times of the states."""
    if "growth_log10_D" not in found or "delithiated_time_s" not in found:
        return
    times = numbers_of(found, "delithiated_time_s")
    level = float(found["growth_log10_D"])
    known = np.isfinite(times) & (times > 0)
    if np.isfinite(level) and known.any():
        axes.plot(cycles[known], level + np.log10(times[known]), "_", color=GREY, markersize=22,
                  markeredgewidth=1.6, zorder=0, label="one D for all")  # fmt: skip


@styled
def state_differences_figure(tree: xr.DataTree) -> Figure | None:
    """Differences of the mean fraction of particles between all pairs of states.

    Parameters
    ----------
    tree : DataTree
        As `spectromap.series.compare_states` makes it.

    Returns
    -------
    Figure or None
        None where the tree compares no pairs. Lines are intervals of each pair alone; p-values
        hold for all pairs together (Holm).
    """
    found = _series(tree, "pair", "difference", "low", "high")
    if found is None or not found.sizes["pair"]:
        return None
    pairs = list(zip(texts_of(found, "later"), texts_of(found, "earlier"), strict=True))
    figure = new_figure(DOUBLE_IN, float(np.clip(1.0 + 0.5 * len(pairs), 2.4, 9.0)))
    axes = figure.add_subplot()
    axes.axvline(0, color=GREY, linewidth=0.7)
    rows = np.arange(len(pairs))[::-1].astype(float)
    ways = [("", "as they are", BLUE, "o", 0.16)]
    if "equal_thickness_difference" in found:
        ways.append(("equal_thickness_", "at equal thickness", ORANGE, "s", -0.16))
    for start, name, colour, marker, aside in ways:
        value, low, high = (numbers_of(found, start + n) for n in ("difference", "low", "high"))
        ends = np.nan_to_num(np.array([value - low, high - value]))
        axes.errorbar(value, rows + aside, xerr=ends, color=colour, marker=marker, markersize=5,
                      linestyle="none", elinewidth=1.6, label=name)  # fmt: skip
        p_values = numbers_of(found, f"{start}p_value_holm")
        for row, at, p in zip(rows + aside, high, p_values, strict=True):
            if np.isfinite(p) and np.isfinite(at):
                text = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
                axes.annotate(text, (at, row), xytext=(4, 0), textcoords="offset points",
                              va="center", fontsize=7.5, color=INK)  # fmt: skip
    for row in rows[:-1]:
        axes.axhline(row - 0.5, color=PALE, linewidth=0.8)
    axes.set_yticks(
        rows, [textwrap.fill(f"{later} less {earlier}", 30) for later, earlier in pairs]
    )
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.margins(x=0.18)
    percent = round(100 * float(found.attrs.get("confidence", 0.95)))
    component = component_label(_component(found))
    axes.set_xlabel(f"difference in {component} fraction ({percent} %)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
