"""What heterogeneity statistics are worth: simulated particle tables whose differences are known.

Tables are drawn directly, without images: agglomerates with levels and rim-core differences of
their own and of unequal size, primaries that scatter, measurement errors of fraction and thickness
that differ from particle to particle, and a fraction that depends on thickness. For every kind of
table and every contrast: mean estimate against the truth, how often the 95 % interval holds the
truth, and, where there is no difference, how often p < 0.05. Then the slope with depth, the
variance components, the number of primaries needed, and the correlation length of simulated maps.

Every line of the CSV file is one of these with its bars; the exit code is 1 if one is missed. A
rate over n tables is known to sqrt(rate (1 - rate) / n), 0.7 % for 1000, and a bar counts as
missed beyond one of these; for a mean it is three.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft

from spectromap import heterogeneity

Array = NDArray[np.floating[Any]]

EQUAL, STRATA = " at equal thickness", " at equal thickness, stratified"
OUT_IN, RIM_CORE, SIZES = "outside-inside", "exterior-interior", "large-small"
COVERAGE = (0.93, 0.97)
FALSE_POSITIVES = (0.03, 0.07)


@dataclass(frozen=True)
class Tables:
    """A kind of table; lengths in nm, fractions as they are.

    Attributes
    ----------
    agglomerates, small : int
        Large ones, and small ones (a quarter of the diameter).
    members : (int, int)
        Primaries of an agglomerate, evenly in the logarithm.
    outside : int
        Primaries outside.
    difference, rim, size : float
        Outside less inside, exterior less interior, large less small.
    per_um : float
        Change of the fraction with depth, instead of the step of `rim`.
    between, gradient, within : float
        Scatter of the levels of agglomerates, of their rim-core differences (of their slopes, per
        um), and between primaries.
    slope : float
        Change of the fraction per nm of thickness.
    curve : float
        The fraction falls as this over thickness.
    thickness : (float, float)
        Mean outside and inside.
    rim_thinner : float
        By how much primaries of the exterior are thinner.
    errors : (float, float)
        Standard errors of the fractions, evenly.
    thickness_error : float
    """

    name: str
    agglomerates: int = 10
    small: int = 0
    members: tuple[int, int] = (8, 20)
    outside: int = 30
    difference: float = 0.1
    rim: float = 0.05
    size: float = 0.0
    per_um: float = 0.0
    between: float = 0.03
    gradient: float = 0.015
    within: float = 0.06
    slope: float = 0.0
    curve: float = 0.0
    thickness: tuple[float, float] = (80.0, 80.0)
    rim_thinner: float = 0.0
    errors: tuple[float, float] = (0.0, 0.0)
    thickness_error: float = 0.0


def table(kind: Tables, seed: int) -> xr.Dataset:
    """Draw one table, independent of those of other kinds."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.name.encode())])
    ends = np.log(kind.members[0]), np.log(kind.members[1] + 1)
    count = kind.agglomerates + kind.small
    sizes = np.exp(rng.uniform(*ends, count)).astype(int)
    agglomerate = np.repeat(np.arange(1, count + 1), sizes)
    inside = agglomerate.size
    small = agglomerate > kind.agglomerates
    radius = np.where(small, 800.0, 2400.0)
    # Depth of points that fill a sphere evenly: half of them lie in the outer fifth.
    depth = radius * (1.0 - np.cbrt(rng.random(inside)))
    exterior = depth < 0.2 * radius
    level, tilt = rng.normal(0, kind.between, count), rng.normal(0, kind.gradient, count)
    side = np.where(exterior, 0.5, -0.5)
    value = level[agglomerate - 1] + np.where(small, 0.0, kind.size)
    if kind.per_um:
        value += (kind.per_um + tilt[agglomerate - 1]) * depth / 1000.0
    else:
        value += side * (kind.rim + tilt[agglomerate - 1])
    place = np.where(exterior, "exterior", "interior").astype(object)
    out = np.zeros(kind.outside)
    thickness = np.concatenate(
        [kind.thickness[1] - side * kind.rim_thinner, out + kind.thickness[0]]
    )
    thickness = np.maximum(thickness + rng.normal(0, 12.0, thickness.size), 25.0)
    true = 0.3 + np.concatenate([value, out + kind.difference])
    true += kind.slope * (thickness - 80.0) + kind.curve / thickness
    true += rng.normal(0, kind.within, true.size)
    errors = rng.uniform(*kind.errors, true.size)
    shares = rng.lognormal(0, 0.3, true.size)
    columns: dict[str, Any] = {
        "mn3_fraction": true + errors * rng.normal(size=true.size),
        "mn3_fraction_errors": errors,
        "thickness": thickness + kind.thickness_error * rng.normal(size=true.size),
        "thickness_errors": np.full(true.size, kind.thickness_error),
        "agglomerate": np.concatenate([agglomerate, out.astype(int)]),
        "place": np.concatenate([place, np.full(out.size, "outside", object)]),
        "depth": np.concatenate([depth, out + np.nan]),
        "area": np.concatenate([np.where(small, 0.05, 1.0), out + 1.0]) * 4e4 * shares,
        "used": np.ones(true.size, bool),
    }
    return xr.Dataset(
        {name: ("particle", column) for name, column in columns.items()},
        coords={"particle": np.arange(1, true.size + 1)},
    )


def _truth(kind: Tables) -> dict[str, float]:
    """True contrasts; those that a kind does not fix are left out."""
    truth = {}
    gap = kind.thickness[0] - kind.thickness[1]
    raw = {OUT_IN: kind.difference, RIM_CORE: kind.rim}
    if kind.small:
        raw[SIZES] = kind.size
    # Depth is no step, and the size of agglomerates is no part of inside.
    if kind.per_um or kind.small:
        raw = {SIZES: kind.size} if kind.small else {}
    for name, value in raw.items():
        confounding = {OUT_IN: gap, RIM_CORE: -kind.rim_thinner}.get(name, 0.0) * kind.slope
        if not (kind.curve and (gap or kind.rim_thinner)):
            truth[name] = value + confounding
            truth[name + EQUAL] = value
        truth[name + STRATA] = value
    return truth


KINDS = [
    Tables("ten agglomerates"),
    Tables("three agglomerates", agglomerates=3),
    Tables("four agglomerates, unequal", agglomerates=4, members=(5, 60)),
    Tables("five agglomerates", agglomerates=5),
    Tables("six agglomerates, unequal", agglomerates=6, members=(5, 60)),
    Tables("twenty agglomerates", agglomerates=20),
    Tables("ten agglomerates, very unequal", members=(4, 100)),
    Tables("agglomerates that differ much", between=0.08, gradient=0.03),
    Tables("agglomerates that do not differ", between=0.0, gradient=0.0),
    Tables("few outside", outside=8),
    Tables("measurement errors", errors=(0.01, 0.12), thickness_error=6.0,
           slope=0.002, thickness=(70.0, 85.0), rim_thinner=6.0),
    Tables("curved in thickness", curve=12.0, thickness=(72.0, 84.0), rim_thinner=5.0),
    Tables("large and small", small=8, size=-0.06),
    Tables("nothing", difference=0.0, rim=0.0),
    Tables("nothing, three agglomerates", agglomerates=3, difference=0.0, rim=0.0),
    Tables("thickness alone", difference=0.0, rim=0.0, slope=-0.003, thickness=(65.0, 90.0),
           rim_thinner=10.0, errors=(0.01, 0.05), thickness_error=4.0),
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One figure: what it is of, the truth, what was found, and whether the bars are met."""

    kind: str
    quantity: str
    tables: int
    truth: float
    mean: float
    coverage: float
    false_positives: float
    width: float
    met: bool


def _rate_met(rate: float, bars: tuple[float, float], count: int) -> bool:
    """Whether a rate lies within its bars, as far as so many tables can tell."""
    slack = np.sqrt(0.05 * 0.95 / count)
    return bars[0] - slack <= rate <= bars[1] + slack


def contrast_lines(kind: Tables, count: int, first: int = 0) -> Iterator[Line]:
    """Every contrast of one kind of table."""
    found = [
        heterogeneity.contrasts(table(kind, seed), "mn3") for seed in range(first, first + count)
    ]
    for name, truth in _truth(kind).items():
        rows = [one.isel(contrast=list(one.contrast.values).index(name)) for one in found]
        mine = {
            key: np.array([float(row[key]) for row in rows])
            for key in ("difference", "low", "high", "p_value")
        }
        yield _line(kind.name, name, truth, mine["difference"], mine)


def _line(kind: str, name: str, truth: float, values: Array, ends: dict[str, Array]) -> Line:
    """Figures of one quantity: 5 % of truth on average, or of the scatter where there is none."""
    known = np.isfinite(values)
    count = int(known.sum())
    mean = float(np.mean(values[known]))
    coverage = float(np.mean((ends["low"] <= truth) & (truth <= ends["high"])))
    positive = float(np.mean(ends["p_value"] < 0.05)) if truth == 0 else float("nan")
    slack = 3.0 * float(np.std(values[known])) / np.sqrt(count)
    met = bool(known.all()) and abs(mean - truth) <= 0.05 * abs(truth) + slack
    met &= _rate_met(coverage, COVERAGE, count)
    met &= bool(np.isnan(positive)) or _rate_met(positive, FALSE_POSITIVES, count)
    width = float(np.median(ends["high"] - ends["low"]))
    return Line(kind, name, count, truth, mean, coverage, positive, width, met)


def trend_lines(count: int, first: int = 0) -> Iterator[Line]:
    """Slope with depth, with and without one."""
    for kind in (
        Tables("depth", per_um=-0.05, rim=0.0),
        Tables("depth, four agglomerates", agglomerates=4, per_um=-0.05, members=(8, 40)),
        Tables("no depth", rim=0.0, gradient=0.0),
    ):
        found = [
            heterogeneity.depth_trend(table(kind, seed), "mn3")
            for seed in range(first, first + count)
        ]
        for index, name in enumerate(found[0].trend.values):
            ends = {
                key: np.array([float(f[f"depth_trend_{key}"][index]) for f in found])
                for key in ("low", "high", "p_value")
            }
            values = np.array([float(f.depth_trend[index]) for f in found])
            yield _line(kind.name, f"slope {name} [1/nm]", kind.per_um / 1000.0, values, ends)


def variance_lines(count: int, first: int = 0) -> Iterator[Line]:
    """Variance components; estimates are cut at zero, so that their bias has no bar."""
    for kind in (
        Tables("variances", rim=0.0, gradient=0.0, errors=(0.01, 0.1)),
        Tables("variances, four agglomerates", agglomerates=4, rim=0.0, gradient=0.0),
    ):
        found = [
            heterogeneity.variance_components(table(kind, seed), "mn3")
            for seed in range(first, first + count)
        ]
        for index, truth in enumerate((kind.between**2, kind.within**2)):
            name = str(found[0].component.values[index])
            ends = {
                key: np.array([float(f[f"variance_{key}"][index]) for f in found])
                for key in ("low", "high")
            }
            values = np.array([float(f.variance[index]) for f in found])
            coverage = float(np.mean((ends["low"] <= truth) & (truth <= ends["high"])))
            width = float(np.median(ends["high"] - ends["low"]))
            met = _rate_met(coverage, COVERAGE, count)
            mean = float(np.mean(values))
            yield Line(kind.name, name, count, truth, mean, coverage, float("nan"), width, met)


def number_lines(count: int, first: int = 0) -> Iterator[Line]:
    """Primaries needed: do as many give the wanted half width, and does the interval hold."""
    small = Tables("primaries needed", outside=0, rim=0.0, gradient=0.0)
    wanted = 0.012
    needed = [
        float(
            heterogeneity.primaries_needed(
                table(small, seed),
                "mn3",
                half_width_wanted=wanted,
                n_resamples=100,
            ).primaries_needed
        )
        for seed in range(first, first + count)
    ]
    # As many agglomerates as that asks for, seen anew.
    sizes = np.exp(np.random.default_rng(1).uniform(np.log(8), np.log(21), 100_000)).astype(int)
    agglomerates = round(float(np.median(needed)) / sizes.mean())
    large = Tables("seen", agglomerates=agglomerates, outside=0, rim=0.0, gradient=0.0)
    seen = []
    for seed in range(first, first + count):
        again = table(large, seed)
        found = heterogeneity.primaries_needed(again, "mn3", n_resamples=100)
        number = int(found.primaries_seen)
        half = float(np.interp(number, found.number, found.half_width))
        seen.append((float(found.mean_fraction), half))
    means, halves = np.array(seen).T
    coverage = float(np.mean(np.abs(means - 0.3) <= halves))
    half = float(np.median(halves))
    met = abs(half / wanted - 1.0) < 0.15 and _rate_met(coverage, COVERAGE, count)
    nothing = float("nan")
    yield Line(
        small.name, "half width when seen", count, wanted, half, coverage, nothing, 2 * half, met
    )


def field(length: float, pixel: float, shape: tuple[int, int], seed: int) -> xr.Dataset:
    """A map whose fraction is alike over a length, in round particles, with noise in pixels."""
    rng = np.random.default_rng([seed, 41])
    y, x = (np.arange(2 * n) * pixel for n in shape)
    y, x = np.minimum(y, y[-1] + pixel - y), np.minimum(x, x[-1] + pixel - x)
    power = np.maximum(fft.fft2(np.exp(-np.hypot(y[:, None], x[None, :]) / length)).real, 0.0)
    white = fft.fft2(rng.normal(size=power.shape))
    smooth = fft.ifft2(np.sqrt(power) * white).real[: shape[0], : shape[1]]
    rows, columns = (np.arange(n) * pixel for n in shape)
    pitch = 200.0
    gap = np.hypot((rows % pitch)[:, None] - 0.5 * pitch, (columns % pitch)[None, :] - 0.5 * pitch)
    label = (
        (rows // pitch).astype(int)[:, None] * 1000 + (columns // pitch).astype(int)[None, :] + 1
    )
    inside = gap < 80.0
    noise = 0.08
    maps = {
        "mn3_fraction": np.where(
            inside, 0.3 + 0.05 * smooth + noise * rng.normal(size=shape), np.nan
        ),
        "mn3_fraction_errors": np.full(shape, noise),
        "thickness": np.where(inside, 2.0 * np.sqrt(np.maximum(80.0**2 - gap**2, 1.0)), 0.0),
        "particle_label": np.where(inside, label, 0),
    }
    coords = {
        name: (name, values + 0.5 * pixel, {"units": "nm"})
        for name, values in (("y", rows), ("x", columns))
    }
    result = xr.Dataset({k: (("y", "x"), v) for k, v in maps.items()}, coords=coords)
    result["thickness"].attrs["units"] = "nm"
    return result


def length_lines(count: int, first: int = 0) -> Iterator[Line]:
    """Correlation lengths; their scatter must be what the errors say within a factor of 1.5."""
    for length in (200.0, 500.0):
        found = [
            heterogeneity.correlation_length(field(length, 25.0, (400, 400), seed), "mn3")
            for seed in range(first, first + count)
        ]
        values = np.array([float(f.correlation_length) for f in found])
        errors = np.array([float(f.correlation_length_errors) for f in found])
        mean = float(np.mean(values))
        coverage = float(np.mean(np.abs(values - length) <= 1.96 * errors))
        scatter = float(np.std(values) / np.mean(errors))
        met = abs(mean / length - 1.0) < 0.1 and 1 / 1.5 < scatter < 1.5
        width = float(np.median(3.92 * errors))
        yield Line("map", "correlation length [nm]", count, length, mean, coverage, float("nan"),
                   width, met)  # fmt: skip


def main() -> int:
    """Measure, print, write; the exit code says whether every bar was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=int, default=1000, help="of every kind")
    parser.add_argument("--maps", type=int, default=40, help="of every correlation length")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--kind", default="", help="only kinds with this text in their name")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    logging.getLogger("spectromap").setLevel(logging.ERROR)
    start = time.monotonic()
    jobs: list[tuple[str, Callable[[], Iterator[Line]]]] = [
        (kind.name, lambda kind=kind: contrast_lines(kind, options.tables, options.first))
        for kind in KINDS
    ]
    jobs += [
        ("depth", lambda: trend_lines(options.tables, options.first)),
        ("variances", lambda: variance_lines(options.tables, options.first)),
        ("primaries needed", lambda: number_lines(options.tables // 2, options.first)),
        ("map", lambda: length_lines(options.maps, options.first)),
    ]
    lines: list[Line] = []
    print(f"{'kind':<31} {'quantity':<45} {'truth':>9} {'mean':>9} {'cover':>6} {'p<.05':>6}")
    for name, job in jobs:
        if options.kind not in name:
            continue
        for line in job():
            lines.append(line)
            print(
                f"{line.kind:<31} {line.quantity:<45} {line.truth:>9.3g} {line.mean:>9.3g}"
                f" {line.coverage:>6.3f} {line.false_positives:>6.3f}"
                f"{'' if line.met else '  MISSED'}",
                flush=True,
            )
    with open(options.out, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(Line.__annotations__))
        writer.writeheader()
        for line in lines:
            writer.writerow(
                {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in vars(line).items()}
            )
    missed = sum(not line.met for line in lines)
    print(f"{len(lines)} figures, {missed} missed, {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
