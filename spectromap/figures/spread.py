"""How much particles differ: with depth, between agglomerates, over distance, and with chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from spectromap.figures._canvas import (
    BLUE,
    DOUBLE_IN,
    GREY,
    INK,
    ORANGE,
    RED,
    SIGMA,
    SINGLE_IN,
    FloatArray,
    component_label,
    draw_cloud,
    errors_of,
    fraction_name,
    group_of,
    new_figure,
    note_figure,
    numbers_of,
    styled,
)
from spectromap.figures.places import MINUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["correlation_figure", "depth_figure", "primaries_figure", "variance_figure"]

#: An interval that ends beyond so many times the largest estimate runs out of the picture.
LONGEST = 2.5


def _found(tree: xr.DataTree, *names: str) -> xr.Dataset | None:
    """The statistics, if they hold these variables."""
    found = group_of(tree, "heterogeneity")
    return found if found is not None and set(names) <= set(found.variables) else None


def _percent(found: xr.Dataset) -> int:
    """Coverage of the intervals."""
    return round(100 * float(found.attrs.get("confidence", 0.95)))


@styled
def depth_figure(tree: xr.DataTree) -> Figure | None:
    """Fraction against the depth below the surface of the agglomerate, with its trend.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no depth trend. The trend is one within agglomerates, so that
        the points, used particles with 1 sigma, are drawn less the level of their agglomerate;
        the band holds the interval of the slope.
    """
    names = ("depth_trend", "depth_trend_low", "depth_trend_high", "trend")
    found, particles = _found(tree, *names), group_of(tree, "particles")
    fraction = fraction_name(tree)
    needed = {f"{fraction}_fraction", "depth", "agglomerate"}
    if found is None or particles is None or not needed <= set(particles):
        return None
    slopes = {
        str(trend): tuple(float(found[n].sel(trend=trend)) for n in names[:3])
        for trend in found["trend"].values
    }
    slope, low, high = slopes.get("by depth", (np.nan,) * 3)
    if not np.isfinite(slope):
        return note_figure("Too few particles in agglomerates for a trend with depth.")
    depth, values, errors = _levelled(particles, f"{fraction}_fraction", slope)
    figure = new_figure(SINGLE_IN, 3.1)
    axes = figure.add_subplot()
    draw_cloud(axes, depth, values, errors, most=max(depth.size, 60), color=BLUE,
               label="_particles less the level of their agglomerate")  # fmt: skip
    middle, level = float(depth.mean()), float(values.mean())
    along = np.linspace(float(depth.min()), float(depth.max()), 50)
    lower, upper = (level + end * (along - middle) for end in (low, high))
    axes.fill_between(
        along, lower, upper, color=RED, alpha=0.25, linewidth=0, label="_interval of slope"
    )
    axes.plot(along, level + slope * (along - middle), color=RED, label="_trend")
    axes.set_xlabel("depth below the surface [nm]")
    axes.set_ylabel(f"{component_label(fraction)} fraction, levelled (±1{SIGMA})")
    lines = [
        f"{name.removeprefix('by depth').strip() or 'trend'}: {_slope_text(*ends)}"
        for name, ends in slopes.items()
    ]
    axes.set_title("\n".join(lines), fontsize=7.5)
    return figure


def _slope_text(slope: float, low: float, high: float) -> str:
    """A slope and its interval per um."""
    if not np.isfinite(slope):
        return "not testable"
    per_um = [f"{1000 * value:+.3f}".replace("-", MINUS) for value in (slope, low, high)]
    return f"{per_um[0]} ({per_um[1]} to {per_um[2]}) µm⁻¹"


def _levelled(
    particles: xr.Dataset, name: str, slope: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Depths, values less the level of their agglomerate (the mean level kept), and errors."""
    depth, values = numbers_of(particles, "depth"), numbers_of(particles, name)
    agglomerate = np.asarray(particles["agglomerate"].values).astype(np.int64)
    used = (agglomerate > 0) & np.isfinite(depth) & np.isfinite(values)
    if "used" in particles:
        used &= np.asarray(particles["used"].values, dtype=bool)
    depth, values, errors = depth[used], values[used], errors_of(particles, name)[used]
    which = np.unique(agglomerate[used], return_inverse=True)[1]
    level = np.bincount(which, values - slope * depth) / np.bincount(which)
    return depth, values - level[which] + level[which].mean(), errors


@styled
def variance_figure(tree: xr.DataTree) -> Figure | None:
    """Where the fraction varies: between agglomerates, between and within primaries, by noise.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no variance components. Bars are standard deviations, lines
        their intervals, with an arrow where these run out of the picture.
    """
    found = _found(tree, "variance", "variance_low", "variance_high", "component")
    if found is None:
        return None
    names = [str(name) for name in found["component"].values]
    value, low, high = (
        np.sqrt(numbers_of(found, n)) for n in ("variance", "variance_low", "variance_high")
    )
    if not np.isfinite(value).any():
        return note_figure("No particles, so no variance.")
    figure = new_figure(SINGLE_IN, 0.9 + 0.42 * len(names))
    axes = figure.add_subplot()
    rows = np.arange(len(names))[::-1]
    edge = max(LONGEST * float(np.nanmax(value)), 1e-4)
    axes.barh(rows, np.nan_to_num(value), height=0.55, color=GREY, alpha=0.6)
    for row, *ends in zip(rows, value, low, high, strict=True):
        _draw_deviation(axes, int(row), (float(ends[0]), float(ends[1]), float(ends[2])), edge)
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 1.08 * min(edge, float(np.nanmax(np.concatenate([value, high])))))
    fraction = component_label(fraction_name(tree))
    axes.set_xlabel(f"standard deviation of {fraction}\nfraction ({_percent(found)} %)")
    return figure


def _draw_deviation(axes: Axes, row: int, numbers: tuple[float, float, float], edge: float) -> None:
    """One component with its interval; the variance of noise has none."""
    value, low, high = numbers
    if not np.isfinite(value):
        axes.annotate("not known", (0, row), xytext=(4, 0), textcoords="offset points",
                      va="center", color=GREY, fontsize=8)  # fmt: skip
        return
    known = np.isfinite(low) and np.isfinite(high)
    ends = [[value - low], [high - value]] if known else [[0.0], [0.0]]
    axes.errorbar([value], [row], xerr=ends, fmt="o", color=INK, elinewidth=1.4, markersize=4,
                  label="_standard deviation")  # fmt: skip
    if known and high > edge:
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(1.07 * edge, row), xytext=(0.95 * edge, row), arrowprops=arrow)


@styled
def primaries_figure(tree: xr.DataTree) -> Figure | None:
    """How far the mean fraction strays after so many primaries, and how wide its interval is.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result does not say.
    """
    found = _found(tree, "number", "half_width", "half_width_same_agglomerates", "seen_low",
                   "seen_high", "half_width_wanted", "primaries_seen")  # fmt: skip
    if found is None:
        return None
    number = np.asarray(found["number"].values, dtype=np.float64)
    half_width = numbers_of(found, "half_width")
    if not np.isfinite(half_width).any():
        return note_figure("Too few particles to say how many are needed.")
    fraction, percent = component_label(fraction_name(tree)), _percent(found)
    figure = new_figure(DOUBLE_IN, 2.9)
    left, right = figure.subplots(1, 2)
    lower, upper = numbers_of(found, "seen_low"), numbers_of(found, "seen_high")
    left.fill_between(
        number, lower, upper, color=BLUE, alpha=0.3, linewidth=0, label=f"{percent} % of repeats"
    )
    if "mean_fraction" in found:
        left.axhline(float(found["mean_fraction"]), color=INK, linewidth=0.8, label="all primaries")
    left.set_ylabel(f"mean {fraction} fraction")
    left.legend(loc="upper right")
    right.plot(number, half_width, color=BLUE, label="agglomerates added")
    same = numbers_of(found, "half_width_same_agglomerates")
    right.plot(number, same, color=ORANGE, linestyle="--", label="same agglomerates")
    _draw_wanted(right, found)
    right.set_yscale("log")
    right.set_ylabel(f"half width of the interval ({percent} %)")
    right.legend(loc="best")
    seen = number[np.isfinite(lower)]
    _count_axis(left, float(number[0]), float(seen[-1]) if seen.size else float(number[-1]))
    _count_axis(right, float(number[0]), float(number[-1]))
    return figure


def _count_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of numbers of primaries."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high < 500 * low else (1,)
    powers = 10.0 ** np.arange(0, np.ceil(np.log10(high)) + 1)
    ticks = [step * power for power in powers for step in steps if low <= step * power <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("primaries seen")


def _draw_wanted(axes: Axes, found: xr.Dataset) -> None:
    """The half width that is wanted, the primaries it takes, and those of this sample."""
    wanted, seen = float(found["half_width_wanted"]), float(found["primaries_seen"])
    options: dict[str, Any] = {"linewidth": 0.8, "color": GREY}
    axes.axhline(wanted, linestyle=":", **options)
    axes.axvline(seen, linestyle="-", **options)
    needed = float(found["primaries_needed"]) if "primaries_needed" in found else np.nan
    lines = [f"seen: {seen:.0f}"]
    if np.isfinite(needed):
        axes.plot([needed], [wanted], "o", color=RED, markersize=5, zorder=4, label="_needed")
        text = f"needed for ±{wanted:g}: {needed:.0f}"
        groups = float(found["agglomerates_needed"]) if "agglomerates_needed" in found else 0.0
        if groups > 0:
            text += f" in {groups:.0f} agglomerate{'s' if groups > 1 else ''}"
        lines.append(text)
    else:
        lines.append(f"±{wanted:g} is out of reach")
    axes.set_title("\n".join(lines), fontsize=8)


@styled
def correlation_figure(tree: xr.DataTree) -> Figure | None:
    """Over what distance the fraction is alike.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where the result has no correlogram.
    """
    found = _found(tree, "lag", "correlation_variance")
    if found is None:
        return None
    lag = np.asarray(found["lag"].values, dtype=np.float64)
    curve = numbers_of(found, "correlation_variance")
    if not np.isfinite(curve).any():
        return note_figure("No particles, so no correlation.")
    length, error, top = (
        float(found[n]) if n in found else np.nan
        for n in ("correlation_length", "correlation_length_errors", "correlated_variance")
    )
    figure = new_figure(SINGLE_IN, 2.8)
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.7)
    axes.plot(lag, curve, "o", color=INK, markersize=3, label="measured")
    if np.isfinite(length) and np.isfinite(top):
        along = np.linspace(0, float(lag.max()), 200)
        axes.plot(along, top * np.exp(-along / length), color=RED, label="exponential")
        bar = error if np.isfinite(error) else 0.0
        axes.errorbar([length], [top * np.exp(-1.0)], xerr=[bar], fmt="D", color=RED, markersize=5,
                      elinewidth=1.4, label=f"length (±1{SIGMA})")  # fmt: skip
        text = f"correlation length {length:.0f}"
        axes.set_title(text + (f" ± {error:.0f} nm" if np.isfinite(error) else " nm"))
        axes.set_xlim(0, min(float(lag.max()), max(8 * length, 6 * float(lag.min()))))
    else:
        axes.set_title("correlation length not known")
    axes.legend(loc="upper right")
    axes.set_xlabel("distance [nm]")
    fraction = component_label(fraction_name(tree))
    axes.set_ylabel(f"covariance of {fraction} fraction")
    return figure
