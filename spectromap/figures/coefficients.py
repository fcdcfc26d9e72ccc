"""One value for every particle, with its interval, and the pooled one: D and shell thickness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from spectromap.figures._canvas import (
    GREY,
    INK,
    MODEL_COLOURS,
    WIDTH_IN,
    group_of,
    new_figure,
    note_figure,
    numbers_of,
    styled,
    texts_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["D_figure", "shell_figure"]

Interval = tuple[float, float]
Row = Mapping[str, Any]

#: Rows of a figure whose particles are still named.
MOST_NAMED = 45
#: Length of the arrow of a limit, in decades.
ARROW = 0.35


@dataclass(frozen=True)
class _Quantity:
    """What is drawn: a parameter of a model, and the pooled value of it with its intervals."""

    model: str
    names: tuple[str, str, str]
    label: str
    pooled: Callable[[xr.Dataset], tuple[float, dict[str, Interval]]]
    logarithmic: bool


def _scalar(dataset: xr.Dataset, name: str) -> float:
    """A scalar, NaN where it is missing."""
    return float(dataset[name]) if name in dataset else np.nan


def _pooled_D(pooled: xr.Dataset) -> tuple[float, dict[str, Interval]]:
    """Pooled D and its intervals in cm2/s."""
    ends = {
        level: [_scalar(pooled, f"log10_D_{side}{level}") for side in ("low", "high")]
        for level in ("68", "95")
    }
    return 10 ** _scalar(pooled, "log10_D"), {k: (10**a, 10**b) for k, (a, b) in ends.items()}


def _pooled_Dt(pooled: xr.Dataset) -> tuple[float, dict[str, Interval]]:
    """Pooled D t and its interval in cm2."""
    value, error = _scalar(pooled, "log10_Dt"), _scalar(pooled, "log10_Dt_errors")
    return 10**value, {"68": (10 ** (value - error), 10 ** (value + error))}


def _pooled_shell(pooled: xr.Dataset) -> tuple[float, dict[str, Interval]]:
    """Pooled shell thickness and its interval in nm."""
    value, error = _scalar(pooled, "shell_thickness"), _scalar(pooled, "shell_thickness_errors")
    return value, {"68": (value - error, value + error)}


_D = _Quantity("diffusion", ("D_cm2_s", "D_low", "D_high"), "D [cm² s⁻¹]", _pooled_D, True)
_DT = _Quantity("diffusion", ("Dt_cm2", "Dt_low", "Dt_high"), "D t [cm²]", _pooled_Dt, True)
_SHELL = _Quantity(
    "core-shell",
    ("shell_thickness", "shell_low", "shell_high"),
    "shell thickness [nm]",
    _pooled_shell,
    False,
)


@styled
def D_figure(tree: xr.DataTree) -> Figure | None:
    """Diffusion coefficient of every particle with its 68 % interval, and the pooled one.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where no diffusion was fitted; D t where the time is not known. Arrows are one-sided
        limits, open points are not in the pooled value. The grey bar behind a point is its
        Cramer-Rao bound: the error of a fit that knows nothing but the profile, fractions free.
    """
    models = group_of(tree, "models")
    if models is None or "D_cm2_s" not in models or "diffusion" not in models["model"].values:
        return None
    timeless = "Dt_cm2" in models and not np.isfinite(numbers_of(models, "D_cm2_s")).any()
    return _forest(tree, models, _DT if timeless else _D)


@styled
def shell_figure(tree: xr.DataTree) -> Figure | None:
    """Shell thickness of every particle with its 68 % interval, and the pooled one.

    Parameters
    ----------
    tree : DataTree
        A result.

    Returns
    -------
    Figure or None
        None where no core-shell was fitted or all particles are known to have none. Arrows are
        one-sided limits, open points are not in the pooled value.
    """
    models = group_of(tree, "models")
    if models is None or "shell_thickness" not in models:
        return None
    possible = {"core-shell", "undecided"} & set(texts_of(models, "verdict"))
    if "core-shell" not in models["model"].values or not possible:
        return None
    return _forest(tree, models, _SHELL)


def _forest(tree: xr.DataTree, models: xr.Dataset, quantity: _Quantity) -> Figure:
    """A row per particle, in the order of the values, over the bands of the pooled value."""
    pooled = group_of(tree, "pooled")
    rows = _rows(models, quantity, pooled)
    if not rows:
        return note_figure(f"No particle limits the {quantity.label.partition(' [')[0]}.")
    value, intervals = (np.nan, {}) if pooled is None else quantity.pooled(pooled)
    intervals = {k: ends for k, ends in intervals.items() if np.all(np.isfinite(ends))}
    figure = new_figure(WIDTH_IN, float(np.clip(1.3 + 0.24 * len(rows), 2.4, 9.0)))
    axes = figure.add_subplot()
    axes.set_xlim(_limits(rows, intervals))
    if quantity.logarithmic:
        _log_axis(axes)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    _draw_pooled(axes, value, intervals, MODEL_COLOURS[quantity.model])
    for position, row in enumerate(rows):
        _draw_row(axes, position, row)
    axes.set_xlabel(f"{quantity.label} (68 % intervals)")
    axes.set_ylabel("particle")
    if len(rows) <= MOST_NAMED:
        axes.set_yticks(range(len(rows)), [str(row["particle"]) for row in rows])
    else:
        axes.set_yticks([])
    _legend(figure, axes, rows)
    return figure


def _log_axis(axes: Axes) -> None:
    """Powers of ten, and what is between where there are too few of them to read a value from."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    low, high = axes.get_xlim()
    axes.set_xscale("log")
    if high / low < 300:
        between = (2, 5) if high / low > 10 else (1.5, 2, 3, 4, 5, 7)
        axes.xaxis.set_minor_locator(LogLocator(subs=between))
        axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))


def _rows(models: xr.Dataset, quantity: _Quantity, pooled: xr.Dataset | None) -> list[Row]:
    """Particles whose value is known or limited, in order of it."""
    fits = models.sel(model=quantity.model)
    value, low, high = (numbers_of(fits, name) for name in quantity.names)
    bound = (
        numbers_of(fits, "log10_D_bound") if quantity.logarithmic else np.full(value.size, np.nan)
    )
    verdicts = texts_of(models, "verdict")
    counted = _counted(models, pooled, quantity, verdicts)
    rows = []
    for index, number in enumerate(models["particle"].values):
        row = _row(float(value[index]), float(low[index]), float(high[index]))
        if row:
            own = {"particle": int(number), "verdict": verdicts[index], "bound": bound[index]}
            rows.append(row | own | {"counted": counted[index]})
    return sorted(rows, key=lambda row: float(row["at"]))


def _counted(
    models: xr.Dataset, pooled: xr.Dataset | None, quantity: _Quantity, verdicts: list[str]
) -> list[bool]:
    """Which particles enter the pooled value: as the result says, or those with the verdict."""
    if pooled is not None and "left_out" in pooled and quantity.logarithmic:
        reasons = dict(zip(pooled["particle"].values, texts_of(pooled, "left_out"), strict=True))
        return [reasons.get(n, "?") == "" for n in models["particle"].values]
    return [verdict in (quantity.model, "undecided") for verdict in verdicts]


def _row(value: float, low: float, high: float) -> dict[str, Any]:
    """Where a value lies and what is known of it; nothing where nothing is known."""
    below, above = (np.isfinite(end) and end > 0 for end in (low, high))
    if below != above:
        at, kind = (high, "upper") if above else (low, "lower")
        return {"kind": kind, "at": at, "low": low, "high": high}
    if not (np.isfinite(value) and value > 0):
        return {}
    if np.isnan(low) and np.isnan(high):
        low = high = value
    return {"kind": "interval", "at": value, "low": low, "high": high} if low > 0 else {}


def _draw_row(axes: Axes, position: int, row: Row) -> None:
    """One particle: a point with its interval, or an arrow away from a limit."""
    colour = MODEL_COLOURS.get(row["verdict"], GREY)
    if row["kind"] == "interval":
        if row["bound"] < 1:
            ends = [row["at"] * 10 ** (sign * row["bound"]) for sign in (-1, 1)]
            axes.plot(
                ends, [position] * 2, color=INK, alpha=0.15, linewidth=6, solid_capstyle="butt",
                label="_Cramér-Rao bound",
            )  # fmt: skip
        ends, name = [row["low"], row["high"]], "_68 % interval"
        axes.plot(ends, [position] * 2, color=colour, linewidth=1.6, label=name)
        face = colour if row["counted"] else "white"
        axes.plot(row["at"], position, "o", color=colour, markerfacecolor=face, markersize=5,
                  label="_value" if row["counted"] else "_value, not pooled")  # fmt: skip
        return
    end = row["at"] * (10**-ARROW if row["kind"] == "upper" else 10**ARROW)
    axes.plot(row["at"], position, "|", color=colour, markersize=8, markeredgewidth=1.6,
              label=f"_{row['kind']} limit")  # fmt: skip
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(end, position), xytext=(row["at"], position), arrowprops=arrow)


def _draw_pooled(axes: Axes, value: float, intervals: Mapping[str, Interval], colour: str) -> None:
    """Bands of the pooled value."""
    for level, shade in (("95", 0.12), ("68", 0.22)):
        if level in intervals:
            label = f"pooled, {level} %"
            axes.axvspan(*intervals[level], color=colour, alpha=shade, linewidth=0, label=label)
    if np.isfinite(value):
        axes.axvline(value, color=colour, linewidth=1.0)


def _limits(rows: Sequence[Row], intervals: Mapping[str, Interval]) -> Interval:
    """Limits of the axis; a hopeless particle may run out of the picture."""
    ends = [row[side] for row in rows for side in ("low", "high", "at")]
    ends += [
        row["at"] * 10**sign
        for row in rows
        for kind, sign in (("upper", -ARROW), ("lower", ARROW))
        if row["kind"] == kind
    ]
    ends += [end for interval in intervals.values() for end in interval]
    logs = np.log10([end for end in ends if np.isfinite(end) and end > 0])
    middle = float(np.median(np.log10([row["at"] for row in rows])))
    low, high = max(float(logs.min()), middle - 3), min(float(logs.max()), middle + 3)
    margin = max(0.06, 0.08 * (high - low))
    return 10 ** (low - margin), 10 ** (high + margin)


def _legend(figure: Figure, axes: Axes, rows: Sequence[Row]) -> None:
    """Colours of the verdicts that occur, open points, and the pooled bands."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    point: dict[str, Any] = {"marker": "o", "markersize": 5}
    for verdict in sorted({str(row["verdict"]) for row in rows}):
        handles.append(Line2D([], [], color=MODEL_COLOURS.get(verdict, GREY), **point))
        labels.append(verdict or "no verdict")
    if not all(row["counted"] for row in rows):
        handles.append(Line2D([], [], color=INK, markerfacecolor="white", linestyle="", **point))
        labels.append("not pooled")
    if any(row["kind"] == "interval" and row["bound"] < 1 for row in rows):
        handles.append(Line2D([], [], color=INK, alpha=0.15, linewidth=6))
        labels.append("Cramér-Rao bound")
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
