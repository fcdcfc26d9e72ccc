"""How well D, shells and verdicts are found on simulated fields whose truth is known.

The fields are those of `_radial_fields`: at least ten particles each, references off by 1 % in
amplitude and in shape, and in half of the fields a point spread function that is not the one the
run is told. Everything else is a default run. All 230 fields take one to two hours on two cores,
half of it to simulate them, and 1.2 GB of disk while it runs. ``--count 4`` is a first look. A
stored field is not made again, so that a changed fit is judged sooner:

    python benchmarks/radial.py --fields FOLDER --only make     # simulate and map
    python benchmarks/radial.py --fields FOLDER --only fit      # particles, models, score

A line is printed for every figure with its bar, if it has one; they go to a CSV file, and with
``--rows`` one row a particle and one a field go to two more. The exit code is 1 if a bar is
missed.

Errors are those of log10 D. A particle counts where its outline overlaps the true one with an IoU
above 0.5, was not left out, and (for D) its true D t/R^2 lies in the range in which D is asked
for, R the radius of the sphere with the volume of the whole body. Intervals are those of D t: the
time is common to all and taken as it is.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from _radial_fields import (
    KINDS,
    NM2_PER_CM2,
    RANGE,
    Stored,
    file_of,
    kept_fields,
    refitted,
    stored,
)
from _radial_ideal import likelihood_ratio

from spectromap.demo import overlaps

Array = np.ndarray[Any, np.dtype[Any]]
Row = dict[str, Any]

LEAST_IOU = 0.5
#: |Bias| of the pooled log10 D, rms of a particle's, and relative error of a shell, by the digit
#: of the kind; decided verdicts, at least.
BIAS = {"1": 0.05, "2": 0.10, "3": 0.15}
RMS = {"1": 0.10, "2": 0.20, "3": 0.25}
SHELL = {"1": 0.10, "2": 0.25, "3": 0.25}
DECIDED = {"1": 0.95, "2": 0.95, "3": 0.80}
#: Twice the log of the noise-free likelihood ratio from which a field can decide: noise scatters
#: it by 10 (twice its root), so that it passes 10 in 93 % of such fields.
DECISIVE = 25.0
BOUND_FACTOR = 1.3
COVERAGE = (0.63, 0.73)
WIDTH = 1.5
LIMITS_RIGHT = 0.95
WRONG = 0.02
FLAT = 0.95
#: Fields of each kind that a whole run makes; more than 200 have a verdict.
COUNTS = (
    {"P1": 42, "P2": 28, "P3": 28, "C1": 20, "C2": 20, "C3": 20}
    | dict.fromkeys(("U1", "U2", "U3"), 16)
    | dict.fromkeys(("L1", "L2", "L3"), 8)
)


@dataclass(frozen=True)
class Line:
    """One figure, and the range in which it should lie if it has one."""

    kind: str
    figure: str
    value: float
    count: int
    low: float = -np.inf
    high: float = np.inf

    @property
    def met(self) -> str:
        """Whether the bar is met; empty without a bar."""
        if self.count == 0 or (np.isinf(self.low) and np.isinf(self.high)):
            return ""
        return "yes" if self.low <= self.value <= self.high else "NO"

    @property
    def bar(self) -> str:
        """The bar as text."""
        if not self.met:
            return ""
        if np.isinf(self.low):
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if np.isinf(self.high) else f"{self.low:g} to {self.high:g}"

    def row(self) -> Row:
        """As it goes into the CSV file."""
        return {
            "kind": self.kind,
            "figure": self.figure,
            "value": f"{self.value:.4g}",
            "count": self.count,
            "bar": self.bar,
            "met": self.met,
        }

    def text(self) -> str:
        """As it is printed."""
        return (
            f"{self.kind:<4} {self.figure:<46} {self.value:>8.3f} {self.count:>6}"
            f"  {self.bar:<14} {self.met}"
        )


# ------------------------------------------------------------------------------ one field


def scored(path: Path) -> tuple[Row, list[Row]]:
    """Fit a stored field and set it beside the truth.

    Parameters
    ----------
    path : Path
        A stored field.

    Returns
    -------
    dict, list of dict
        The row of the field, and one of every particle that is there.
    """
    kept = Stored.load(path)
    start = time.process_time()
    groups = refitted(kept)
    cpu = time.process_time() - start
    matched = overlaps(
        kept.true_maps["particle_label"].values, groups["maps"]["particle_label"].values
    )
    rows = [_particle_row(kept, groups, int(k), matched) for k in kept.truth["particle"].values]
    found = {row["label"]: row["found"] for row in rows if row["used"]}
    ratio = likelihood_ratio(kept, groups["profiles"], found)
    return _field_row(kept, groups, rows, cpu) | {"likelihood_ratio": ratio}, rows


def _common(kept: Stored) -> Row:
    """What says which field it is."""
    field = kept.field
    return {
        "kind": field.kind,
        "number": field.number,
        "technique": field.instrument.technique,
        "geometry": field.sample.geometry,
        "optics": field.optics,
        "shapes": field.sample.shape,
        "true_verdict": kept.truth.attrs["verdict"],
    }


def _number(table: xr.Dataset, name: str) -> float:
    """A scalar of a table, NaN if it has none of that name."""
    return float(table[name]) if name in table else np.nan


def _field_row(kept: Stored, groups: dict[str, Any], rows: list[Row], cpu: float) -> Row:
    """One field: truth and what was pooled."""
    pooled: xr.Dataset = groups["pooled"]
    counted = Counter(row["verdict"] for row in rows if row["used"])
    true_dt = np.array([row["true_log_dt"] for row in rows])
    diffused = kept.truth.attrs["verdict"] == "diffusion"
    return _common(kept) | {
        "particles": len(rows),
        "matched": sum(row["iou"] > LEAST_IOU for row in rows),
        "found": int(groups["maps"]["particle_label"].values.max()),
        "used": sum(row["used"] for row in rows),
        "iou": float(np.mean([row["iou"] for row in rows])),
        "verdict": str(pooled["verdict"].item()),
        **{f"count_{v.replace(' ', '_')}": counted[v] for v in VERDICTS},
        "true_log_dt": float(true_dt.mean()) if diffused else np.nan,
        "log_dt": _number(pooled, "log10_Dt"),
        "log_dt_errors": _number(pooled, "log10_Dt_errors"),
        "log_d_half68": 0.5
        * (_number(pooled, "log10_D_high68") - _number(pooled, "log10_D_low68")),
        "spread": _number(pooled, "spread"),
        "true_shell_nm": rows[0]["true_shell_nm"],
        "shell_nm": _number(pooled, "shell_thickness"),
        "shell_errors_nm": _number(pooled, "shell_thickness_errors"),
        "cpu_s": cpu,
    }


VERDICTS = ("diffusion", "core-shell", "undecided", "no gradient")


def _particle_row(
    kept: Stored, groups: dict[str, Any], label: int, matched: dict[int, tuple[int, float]]
) -> Row:
    """One particle: truth, and what was found if it was found."""
    truth = kept.truth.sel(particle=label)
    found, iou = matched.get(label, (0, 0.0))
    dt, radius = float(truth["dt_nm2"]), float(truth["body_radius"])
    verdict = kept.truth.attrs["verdict"]
    diffused, shelled = verdict == "diffusion", verdict == "core-shell"
    row = _common(kept) | {
        "label": label,
        "body": str(truth["shape"].item()),
        "body_radius": radius,
        "outline_radius": float(truth["radius"]),
        "cut_height": float(truth["cut_height"]),
        "true_surface": float(truth["surface_fraction"]),
        "true_initial": float(truth["initial_fraction"]),
        "dt_over_r2": dt / radius**2 if diffused else np.nan,
        "true_log_dt": np.log10(dt / NM2_PER_CM2) if diffused else np.nan,
        "true_shell_nm": kept.truth.attrs["shell_nm"] if shelled else np.nan,
        "iou": iou,
        "found": found if iou > LEAST_IOU else 0,
    }
    return row | _answer(groups, row["found"])


def _answer(groups: dict[str, Any], found: int) -> Row:
    """What the result says of one of its particles; nothing for 0."""
    names = (
        *("log_dt", "log_dt_low", "log_dt_high", "bound", "systematic", "surface", "initial"),
        *("goodness", "core_shell_goodness", "shell_nm", "shell_low", "shell_high"),
        "found_radius",
    )
    empty: Row = {"used": False, "reason": "", "verdict": "", **dict.fromkeys(names, np.nan)}
    if not found:
        return empty
    table = groups["particles"].sel(particle=found)
    used = bool(table["used"])
    models = groups["models"].sel(particle=found)
    diffusion, shell = (models.sel(model=name) for name in ("diffusion", "core-shell"))
    if not used or not np.isfinite(float(diffusion["Dt_cm2"])):
        return empty | {"reason": str(table["reason"].item()) or "not fitted"}
    with np.errstate(divide="ignore"):
        value, low, high = (
            float(np.log10(diffusion[name])) for name in ("Dt_cm2", "Dt_low", "Dt_high")
        )
    values = (
        *(value, low, high),
        *(float(diffusion[n]) for n in ("log10_D_bound", "log10_D_systematic")),
        *(float(diffusion[n]) for n in ("surface_fraction", "initial_fraction", "goodness")),
        float(shell["goodness"]),
        *(float(shell[n]) for n in ("shell_thickness", "shell_low", "shell_high")),
        float(table["radius"]),
    )
    verdict = str(models["verdict"].item())
    return {"used": True, "reason": "", "verdict": verdict, **dict(zip(names, values, strict=True))}


# ------------------------------------------------------------------------------ figures


class Table:
    """Rows as columns."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Array:
        return np.array([row[name] for row in self.rows])

    def where(self, mask: Array) -> Table:
        """Some of the rows."""
        return Table(row for row, kept in zip(self.rows, mask, strict=True) if kept)


def _rms(values: Array) -> float:
    """Root mean square; NaN of nothing."""
    return float(np.sqrt(np.mean(values**2))) if values.size else np.nan


def _mean(values: Array) -> float:
    """Mean; NaN of nothing."""
    return float(np.mean(values)) if values.size else np.nan


def _scatter(values: Array) -> float:
    """Half the range that holds the middle 68 %: a standard deviation that outliers spare."""
    return float(np.diff(np.percentile(values, [15.87, 84.13]))[0] / 2) if values.size else np.nan


def _found_lines(kind: str, particles: Table) -> Iterator[Line]:
    """How many particles were found and used."""
    count = len(particles)
    yield Line(kind, "particles matched", _mean(particles["iou"] > LEAST_IOU), count)
    yield Line(kind, "mean IoU", _mean(particles["iou"]), count)
    yield Line(kind, "particles used", _mean(particles["used"]), count)
    off = (particles["found_radius"] - particles["outline_radius"])[particles["used"]]
    yield Line(kind, "bias of the outline's radius [nm]", _mean(off), off.size)
    yield Line(kind, "rms of the outline's radius [nm]", _rms(off), off.size)


def _pooled_lines(kind: str, fields: Table) -> Iterator[Line]:
    """D of whole fields; the bar is that of particles in the range."""
    known = fields.where(np.isfinite(fields["log_dt"]))
    error, count = known["log_dt"] - known["true_log_dt"], len(known)
    bar = BIAS[kind[1]] if kind[0] == "P" else np.inf
    yield Line(kind, "|bias| of pooled log10 D", abs(_mean(error)), count, high=bar)
    yield Line(kind, "bias of pooled log10 D", _mean(error), count)
    yield Line(kind, "rms of pooled log10 D", _rms(error), count)
    held = np.abs(error) <= known["log_d_half68"]
    yield Line(kind, "pooled 68 % interval covers", _mean(held), count)


def diffusion_lines(kind: str, fields: Table, particles: Table) -> Iterator[Line]:
    """D of particles in the range."""
    digit = kind[1]
    scale = particles["dt_over_r2"]
    inside = particles.where(particles["used"] & (scale >= RANGE[0]) & (scale <= RANGE[1]))
    yield from _pooled_lines(kind, fields)
    error = inside["log_dt"] - inside["true_log_dt"]
    bar = np.maximum(RMS[digit], BOUND_FACTOR * inside["bound"])
    yield Line(kind, "bias of a particle's log10 D", _mean(error), error.size)
    yield Line(kind, "median error of a particle's log10 D", float(np.median(error)), error.size)
    strict = bar == RMS[digit]
    text = f"rms of log10 D, 1.3 bound < {RMS[digit]:g}"
    yield Line(kind, text, _rms(error[strict]), int(strict.sum()), high=RMS[digit])
    known = np.isfinite(bar)
    text = "rms of log10 D over max(bar, 1.3 bound)"
    yield Line(kind, text, _rms((error / bar)[known]), int(known.sum()), high=1.0)
    yield Line(kind, "scatter (68 %) of a particle's log10 D", _scatter(error), error.size)
    yield Line(kind, "median bound of log10 D", float(np.median(inside["bound"])), error.size)
    yield from _interval_lines(kind, inside, error)


def _interval_lines(kind: str, inside: Table, error: Array) -> Iterator[Line]:
    """Coverage and width of the particles' 68 % intervals."""
    low, high = inside["log_dt_low"], inside["log_dt_high"]
    true = inside["true_log_dt"]
    held = (low <= true) & (true <= high)
    closed = np.isfinite(low) & np.isfinite(high)
    low_bar, high_bar = COVERAGE
    yield Line(kind, "68 % interval covers", _mean(held), held.size, low_bar, high_bar)
    yield Line(kind, "68 % interval covers, two-sided", _mean(held[closed]), int(closed.sum()))
    width = float(np.median((high - low)[closed] / 2)) if closed.any() else np.nan
    yield Line(kind, "median half width of the interval", width, int(closed.sum()))
    ratio = width / _scatter(error[closed])
    yield Line(kind, "half width over scatter", ratio, int(closed.sum()), high=WIDTH)
    yield Line(kind, "one-sided limits in the range", _mean(~closed), held.size)


def limit_lines(kind: str, fields: Table, particles: Table) -> Iterator[Line]:
    """Limits of particles outside of the range."""
    scale = particles["dt_over_r2"]
    for text, outside in (("slow", scale < RANGE[0]), ("fast", scale > RANGE[1])):
        some = particles.where(particles["used"] & outside)
        low, high, true = (some[n] for n in ("log_dt_low", "log_dt_high", "true_log_dt"))
        open_low, open_high = ~np.isfinite(low), ~np.isfinite(high)
        one = open_low != open_high
        right = (low <= true) & (true <= high)
        yield Line(kind, f"{text}: one-sided limit", _mean(one), one.size)
        yield Line(kind, f"{text}: nothing said", _mean(open_low & open_high), one.size)
        text_right = f"{text}: one-sided limits right"
        yield Line(kind, text_right, _mean(right[one]), int(one.sum()), low=LIMITS_RIGHT)
        closed = ~open_low & ~open_high
        covered = f"{text}: two-sided intervals cover"
        yield Line(kind, covered, _mean(right[closed]), int(closed.sum()))
        error = (some["log_dt"] - true)[closed]
        yield Line(kind, f"{text}: median error, two-sided", _middle(error), int(closed.sum()))
    yield from _pooled_lines(kind, fields)


def _middle(values: Array) -> float:
    """Median; NaN of nothing."""
    return float(np.median(values)) if values.size else np.nan


def shell_lines(kind: str, fields: Table, particles: Table) -> Iterator[Line]:
    """Thickness of shells."""
    bar = SHELL[kind[1]]
    known = fields.where(np.isfinite(fields["shell_nm"]))
    ratio = known["shell_nm"] / known["true_shell_nm"] - 1
    yield Line(kind, "bias of a field's shell, relative", _mean(ratio), ratio.size, -bar, bar)
    yield Line(kind, "rms of a field's shell, relative", _rms(ratio), ratio.size, high=bar)
    used = particles.where(particles["used"])
    ratio = used["shell_nm"] / used["true_shell_nm"] - 1
    yield Line(kind, "median of a particle's shell, relative", _middle(ratio), ratio.size)
    yield Line(kind, "rms of a particle's shell, relative", _rms(ratio), ratio.size)
    yield Line(kind, "scatter (68 %) of shells, relative", _scatter(ratio), ratio.size)
    true = used["true_shell_nm"]
    held = (used["shell_low"] <= true) & (true <= used["shell_high"])
    yield Line(kind, "68 % interval of the shell covers", _mean(held), held.size)


def verdict_lines(kind: str, fields: Table, particles: Table) -> Iterator[Line]:
    """Verdicts of fields and of particles."""
    verdict, true = fields["verdict"], fields["true_verdict"]
    wrong = (verdict != "undecided") & (verdict != true)
    single, single_true = (
        particles.where(particles["used"])[n] for n in ("verdict", "true_verdict")
    )
    if kind[0] == "U":
        yield Line(kind, "fields 'no gradient'", _mean(verdict == true), len(fields), low=1.0)
        flat = _mean(single == single_true)
        yield Line(kind, "particles 'no gradient'", flat, single.size, low=FLAT)
    elif kind[0] == "L":  # a flat profile is rightly called so
        wrong &= verdict != "no gradient"
        yield Line(kind, "fields with a wrong verdict", _mean(wrong), len(fields), high=WRONG)
    else:
        yield Line(kind, "fields with a wrong verdict", _mean(wrong), len(fields), high=WRONG)
        yield Line(kind, "fields decided", _mean(verdict != "undecided"), len(fields))
        can = fields["likelihood_ratio"] >= DECISIVE
        decided = _mean((verdict != "undecided")[can])
        text = f"decided where 2 ln LR >= {DECISIVE:g}"
        yield Line(kind, text, decided, int(can.sum()), low=DECIDED[kind[1]])
    for name in VERDICTS:
        yield Line(kind, f"particles '{name}'", _mean(single == name), single.size)


def kind_lines(kind: str, fields: Table, particles: Table) -> Iterator[Line]:
    """All figures of a kind."""
    yield from _found_lines(kind, particles)
    makers = {"P": diffusion_lines, "L": limit_lines, "C": shell_lines}
    if kind[0] in makers:
        yield from makers[kind[0]](kind, fields, particles)
    yield from verdict_lines(kind, fields, particles)
    yield Line(kind, "CPU of a particle [s]", fields["cpu_s"].sum() / len(particles), len(fields))


def lines_of(fields: Table, particles: Table) -> Iterator[Line]:
    """Kind by kind, and verdicts over all fields."""
    for kind in KINDS:
        mine = fields["kind"] == kind
        if mine.any():
            yield from kind_lines(
                kind, fields.where(mine), particles.where(particles["kind"] == kind)
            )
    judged = fields.where(np.array([kind[0] in "PCU" for kind in fields["kind"]]))
    if len(judged):
        verdict, true = judged["verdict"], judged["true_verdict"]
        wrong = (verdict != "undecided") & (verdict != true)
        text = "fields with a wrong verdict, P, C and U"
        yield Line("all", text, _mean(wrong), len(judged), high=WRONG)


# ------------------------------------------------------------------------------ all of it


def _make(folder: Path, kind: str, number: int) -> None:
    """Make one field unless it is there."""
    path = file_of(folder, kind, number)
    if not path.exists():
        stored(kind, number).save(path)


def _quiet() -> None:
    """Only errors are logged: misfitting references are the point here."""
    logging.getLogger("spectromap").setLevel(logging.ERROR)


def _write(path: Path, rows: list[Row]) -> None:
    """Rows as a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def _options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=Path, help="where fields are kept; default: nowhere")
    parser.add_argument("--only", choices=("make", "fit"), help="only one of the two steps")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="fields of each kind")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=Path, help="folder for particles.csv and fields.csv")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    return parser.parse_args()


def _run(folder: Path, options: argparse.Namespace, pool: ProcessPoolExecutor) -> list[Line]:
    """Make fields, fit them, print and write."""
    if options.only != "fit":
        wanted = [
            (folder, kind, n)
            for kind in options.kinds
            for n in range(COUNTS[kind] if options.count is None else options.count)
        ]
        for made in [pool.submit(_make, *one) for one in wanted]:
            made.result()
        if options.only == "make":
            return []
    paths = list(kept_fields(folder, options.kinds, options.count))
    scores = list(pool.map(scored, paths))
    if not scores:
        raise SystemExit(f"there are no fields in {folder}; make some first")
    fields = Table(field for field, _ in scores)
    particles = Table(row for _, rows in scores for row in rows)
    lines = list(lines_of(fields, particles))
    for line in lines:
        print(line.text())
    _write(options.out, [line.row() for line in lines])
    if options.rows is not None:
        options.rows.mkdir(parents=True, exist_ok=True)
        _write(options.rows / "fields.csv", fields.rows)
        _write(options.rows / "particles.csv", particles.rows)
    return lines


def main() -> int:
    """Measure, print, write; the exit code says whether every bar was met."""
    options, start = _options(), time.monotonic()
    with (
        tempfile.TemporaryDirectory() as passing,
        ProcessPoolExecutor(options.workers, get_context("spawn"), _quiet) as pool,
    ):
        folder = options.fields or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        lines = _run(folder, options, pool)
    missed = sum(line.met == "NO" for line in lines)
    print(f"{len(lines)} figures, {missed} miss their bar, {time.monotonic() - start:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
