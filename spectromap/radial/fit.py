"""Fit of radial models to the measured profiles of particles.

A model is compared with data only after it went through what the data went through (see
`spectromap.radial.view`). Every model is linear in the initial and the surface fraction, so that
only the penetration depth is searched: first for small optical density, then with what that limit
neglects, computed for the best depths, added to the model, and the search repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from spectromap._numerics import vertex
from spectromap.radial import MODELS
from spectromap.radial.context import Context, Optics, optics_of
from spectromap.radial.halo import Halo
from spectromap.radial.pooling import ONE_SIDED_95, pool
from spectromap.radial.solid_view import Field
from spectromap.radial.view import DEPTHS, Profile, View, sphere_radii, sphere_views
from spectromap.schema import LOG, InputError, pixel_size

__all__ = ["Context", "fit_models", "pool"]

Array = NDArray[np.floating[Any]]
Limits = tuple[float, float]

NM2_IN_CM2 = 1e-14
#: Depths at which the full calculation corrects the linear one, how often, and only where chi2 is
#: less than this above the lowest.
_CORRECTED, _CORRECTIONS, _NEAR = 7, 2, 25.0
#: What is not noise, for particles that are taken as spheres and for those whose body is measured;
#: for the names see `fit_models`. Found by simulation of polyhedra and superellipsoids.
SPHERE_ERRORS = {
    "fraction_noise": 0.005,
    "distance_noise_nm": 0.5,
    "rim_allowance": 0.3,
    "shape_error": 0.05,
}
BODY_ERRORS = {"fraction_noise": 0.002, "rim_allowance": 0.2, "shape_error": 0.015}
#: Profiles count as error what the shape of a body makes pixels of a bin differ by, which measured
#: bodies explain: chi2 then stays below one, and errors are smaller, down to this share of the
#: variance.
LEAST_SCALE = 0.5
#: Of a section the body beyond the cuts was not seen.
SECTION_SHAPE_ERROR = 0.035
#: Outlines of measured bodies are off by this share of the resolution from place to place.
DISTANCE_NOISE = 0.015
#: Share of the error of outlines that is left where edges were placed by the thickness; simulated
#: fields with a blur of 45 nm.
PLACED_SHARE = 0.6
#: More particles than this are taken as spheres unless bodies are asked for.
MOST_BODIES = 400
#: Sides of a pixel may differ by this share for bodies to be made.
UNEVEN_PIXELS = 0.01
#: Bins a particle must have: as many as a model has parameters.
_FEWEST_BINS = 3
#: Relative step for the derivative of a curve with the depth.
_STEP = 0.03


@dataclass(frozen=True)
class _Point:
    """A model at one depth, with the best fractions for it.

    `columns` (bin, 3) are the derivatives of the curve with log10 D t and with both fractions.
    """

    depth: float
    initial: float
    surface: float
    chi2: float
    curve: Array
    columns: Array


@dataclass(frozen=True)
class _Search:
    """One model in one view: chi2 along the depth, and the best point. Depths in radii."""

    view: View
    model: str
    extra: float
    correction: Array
    chi2: Array
    best: _Point


@dataclass(frozen=True)
class _Outcome:
    """One model for one particle, all views considered. Depths in nm."""

    search: _Search
    chi2: float
    degrees: int
    parameters: int
    depth: Array
    profile: Array

    @property
    def reduced(self) -> float:
        """Chi2 per degree of freedom."""
        return self.chi2 / self.degrees if self.degrees > 0 else np.nan

    @property
    def goodness(self) -> float:
        """Probability of a larger chi2."""
        return float(special.chdtrc(self.degrees, self.chi2)) if self.degrees > 0 else np.nan


# ------------------------------------------------------------------------------ one model, one view


def _candidates(a: tuple[Array, Array, Array], b: tuple[Array, Array], limits: Limits) -> Array:
    """Points where the minimum in a box can lie, shape (5, 2, depth); NaN where there is none.

    The free minimum if it lies in the box, and on each of the four edges the minimum of the
    parabola that chi2 is there.
    """
    (a11, a12, a22), (b1, b2) = a, b
    lowest, highest = limits
    determinant = a11 * a22 - a12**2
    solvable = determinant > 1e-10 * a11 * a22
    safe = np.where(solvable, determinant, 1.0)
    free = np.stack([a22 * b1 - a12 * b2, a11 * b2 - a12 * b1]) / safe
    inside = solvable & np.all((free >= lowest) & (free <= highest), axis=0)
    points = [np.where(inside, free, np.nan)]
    for bound in limits:
        edge = np.full(a11.shape, bound)
        second = np.clip((b2 - a12 * bound) / np.maximum(a22, 1e-300), lowest, highest)
        first = np.clip((b1 - a12 * bound) / np.maximum(a11, 1e-300), lowest, highest)
        points += [np.stack([edge, second]), np.stack([first, edge])]
    return np.stack(points)


def _fractions(
    basis: tuple[Array, Array], correction: Array, data: Profile, limits: Limits
) -> tuple[Array, Array, Array]:
    """Best initial and surface fraction within limits, and chi2, each of shape (depth,)."""
    weight = 1.0 / data.variance
    target = data.fraction[:, None] - correction
    first, second = basis
    a = weight @ first**2, weight @ (first * second), weight @ second**2
    b = weight @ (first * target), weight @ (second * target)
    points = _candidates(a, b, limits)
    p, q = points[:, 0], points[:, 1]
    gain = a[0] * p**2 + 2.0 * a[1] * p * q + a[2] * q**2 - 2.0 * (b[0] * p + b[1] * q)
    choice = np.nanargmin(gain, axis=0)
    depth = np.arange(choice.size)
    initial, surface = p[choice, depth], q[choice, depth]
    residual = target - initial * first - surface * second
    return initial, surface, np.asarray(weight @ residual**2)


def _corrected_depths(chi2: Array) -> NDArray[np.intp]:
    """Where along the depths the full calculation is made: around the lowest chi2."""
    near = np.flatnonzero(chi2 < chi2.min() + _NEAR)
    spread = np.linspace(near[0], near[-1], _CORRECTED).round().astype(int)
    return np.unique(np.append(spread, int(np.argmin(chi2))))


def _correction(
    view: View, model: str, extra: float, data: Profile, limits: Limits
) -> tuple[Array, Array]:
    """What the limit of small optical density neglects, and chi2, at every depth."""
    first, second = basis = view.basis(model, extra, DEPTHS)
    correction: Array = np.zeros(first.shape)
    initial, surface, chi2 = _fractions(basis, correction, data, limits)
    log_depth = np.log(DEPTHS)
    for _ in range(_CORRECTIONS):
        at = _corrected_depths(chi2)
        seen = view.seen(model, extra, DEPTHS[at], initial[at], surface[at])
        difference = seen - initial[at] * first[:, at] - surface[at] * second[:, at]
        correction = np.stack([np.interp(log_depth, log_depth[at], row) for row in difference])
        initial, surface, chi2 = _fractions(basis, correction, data, limits)
    return correction, chi2


def _point(
    view: View,
    variant: tuple[str, float],
    depth: float,
    correction: Array,
    data: Profile,
    limits: Limits,
) -> _Point:
    """A model at any depth, not only one of the table's."""
    around = depth * np.array([1.0 - _STEP, 1.0, 1.0 + _STEP])
    first, second = view.basis(*variant, around)
    own = np.array([np.interp(np.log(depth), np.log(DEPTHS), row) for row in correction])
    initial, surface, chi2 = _fractions((first[:, 1:2], second[:, 1:2]), own[:, None], data, limits)
    curves = initial[0] * first + surface[0] * second
    # D t goes with the square of the depth.
    step = 2.0 * np.log10((1.0 + _STEP) / (1.0 - _STEP))
    slope = (curves[:, 2] - curves[:, 0]) / step
    return _Point(
        depth=depth,
        initial=float(initial[0]),
        surface=float(surface[0]),
        chi2=float(chi2[0]),
        curve=curves[:, 1] + own,
        columns=np.stack([slope, first[:, 1], second[:, 1]], axis=1),
    )


def _search(
    view: View,
    model: str,
    extra: float,
    data: Profile,
    limits: Limits,
    correction: Array | None = None,
) -> _Search:
    """Best parameters of a model in one view, and chi2 along the depth."""
    variant = (model, extra)
    if correction is None:
        correction, chi2 = _correction(view, model, extra, data, limits)
    else:
        chi2 = _fractions(view.basis(*variant, DEPTHS), correction, data, limits)[2]
    lowest = float(np.exp(vertex(np.log(DEPTHS), chi2)))
    best = _point(view, variant, lowest, correction, data, limits)
    if best.chi2 > chi2.min():  # a kink, which no parabola describes
        depth = float(DEPTHS[np.argmin(chi2)])
        best = _point(view, variant, depth, correction, data, limits)
    return _Search(view, model, extra, correction, chi2, best)


def _searches(model: str, seen: Sequence[View], data: Profile, limits: Limits) -> list[_Search]:
    """All views and further parameters of a model.

    What the limit of small optical density neglects hardly depends on the height of the cut, so
    that it is found for the likeliest body only.
    """
    found = []
    for extra in MODELS[model].extras:
        first = _search(seen[0], model, extra, data, limits)
        found.append(first)
        for view in seen[1:]:
            found.append(_search(view, model, extra, data, limits, first.correction))
    return found


# ------------------------------------------------------------------------- one model, one particle


def _outcome(searches: list[_Search], data: Profile) -> _Outcome:
    """Join the views of one particle: chi2 along the depth is the lowest of all views."""
    best = min(searches, key=lambda s: s.best.chi2 + s.view.penalty)
    radius = best.view.radius
    unsorted = np.append(DEPTHS, best.best.depth) * radius
    order = np.argsort(unsorted, kind="stable")
    depth: Array = unsorted[order]
    profile: Array = np.append(best.chi2, best.best.chi2)[order] + best.view.penalty
    for other in searches:
        own = np.log(DEPTHS * other.view.radius)
        seen = np.interp(np.log(depth), own, other.chi2, left=np.inf, right=np.inf)
        profile = np.minimum(profile, seen + other.view.penalty)
    profile = np.maximum(profile, best.best.chi2 + best.view.penalty)
    further = len({s.extra for s in searches}) > 1
    return _Outcome(
        search=best,
        chi2=best.best.chi2,
        degrees=data.fraction.size - 3,
        parameters=3 + best.view.cut + further,
        depth=depth,
        profile=profile,
    )


def _crossing(x: Array, rise: Array, start: int, step: int, level: float) -> float:
    """Where the root of `rise` passes a level, going from `start` one way; NaN if nowhere."""
    i = start
    while 0 <= i + step < x.size:
        inner, outer = np.sqrt(max(rise[i], 0.0)), np.sqrt(max(rise[i + step], 0.0))
        if outer >= level:
            if not np.isfinite(outer):
                return float(x[i])
            share = (level - inner) / max(outer - inner, 1e-12)
            return float(x[i] + (x[i + step] - x[i]) * share)
        i += step
    return np.nan


def _interval(outcome: _Outcome, data: Profile, scale: float) -> tuple[float, float]:
    """68 % profile-likelihood interval of the depth [nm]; 0 or inf where chi2 does not rise.

    Where one side is open the other is the one-sided 95 % limit.
    """
    x = np.log(outcome.depth)
    rise = (outcome.profile - outcome.profile.min()) / scale
    start = int(np.argmin(outcome.profile))
    # A side is open where not even its end is excluded at 95 %. Both ends are uniform particles,
    # of which noise alone makes gradients of some depth.
    shut = [_chance([outcome], data, float(rise[end])) < 0.05 for end in (0, -1)]
    level = 1.0 if all(shut) else ONE_SIDED_95
    low, high = (np.exp(_crossing(x, rise, start, step, level)) for step in (-1, 1))
    return float(low) if shut[0] else 0.0, float(high) if shut[1] else np.inf


def _bounds(point: _Point, data: Profile) -> tuple[float, float, float]:
    """Cramer-Rao bounds of log10 D and of the initial and the surface fraction."""
    columns = point.columns / np.sqrt(data.variance)[:, None]
    size = np.sqrt(np.sum(columns**2, axis=0))
    for first in (0, 1):  # without a contrast nothing is known of D, but still of the fractions
        if np.any(size[first:] < 1e-9):
            continue
        scaled = columns[:, first:] / size[first:]
        information = scaled.T @ scaled
        if np.linalg.cond(information) < 1e12:
            errors = np.sqrt(np.diag(np.linalg.inv(information))) / size[first:]
            bound = float(errors[0]) if first == 0 else np.inf
            return bound, float(errors[-2]), float(errors[-1])
    return np.inf, np.nan, np.nan


def _resolution_shift(search: _Search, data: Profile, context: Context, limits: Limits) -> float:
    """Change of log10 D if the point spread function is wider by its standard error."""
    if context.resolution_rel_error == 0:
        return 0.0
    wider = context.resolution_nm * (1.0 + context.resolution_rel_error)
    basis = search.view.at_resolution(wider).basis(search.model, search.extra, DEPTHS)
    chi2 = _fractions(basis, search.correction, data, limits)[2]
    moved = vertex(np.log10(DEPTHS), chi2) - np.log10(search.best.depth)
    return float(abs(2.0 * moved))


# -------------------------------------------------------------------------------- one particle


@dataclass(frozen=True)
class _Options:
    """The options of `fit_models` that the fit of one particle needs."""

    models: tuple[str, ...]
    evidence: float
    gradient_p: float
    goodness_limit: float
    fraction_limits: Limits
    fraction_noise: float
    distance_noise_nm: float
    rim_allowance: float
    shape_error: float
    edge_error: float
    thickness_rel_error: float
    least_scale: float


def _false_rim(view: View, data: Profile, context: Context, known: bool) -> tuple[Array, float]:
    """How far the fraction of a uniform particle is off in every bin, and its own fraction."""
    weight = 1.0 / data.variance
    level = float(np.sum(weight * data.fraction) / weight.sum())
    if not known:
        # Size by simulation: 0.02 at 10 nm and 0.06 at 45 nm, gone after one resolution.
        size = 0.02 * (context.resolution_nm / 10.0) ** 0.73
        middle = 0.5 * (data.lower + data.upper)
        return size * np.exp(-2.0 * middle / context.resolution_nm), level
    rim: Array = np.zeros(data.fraction.size)
    for _ in range(_CORRECTIONS):
        rim = view.uniform(level)[0] - level
        level = float(np.sum(weight * (data.fraction - rim)) / weight.sum())
    return rim, level


def _steepness(data: Profile) -> Array:
    """Slope of the measured profile in every bin, per nm."""
    middle = 0.5 * (data.lower + data.upper)
    return np.asarray(np.gradient(data.fraction, middle))


def _aicc(chi2: float, parameters: int, count: int) -> float:
    """Akaike's criterion with the correction for small samples; NaN for too few bins."""
    spare = count - parameters - 1
    if spare <= 0:
        return np.nan
    return chi2 + 2.0 * parameters + 2.0 * parameters * (parameters + 1) / spare


def _chance(outcomes: Iterable[_Outcome], data: Profile, gain: float) -> float:
    """Probability that noise alone improves a uniform particle's chi2 this much or more.

    Of many depths and models the best is taken, which chance uses too. With q the unit vector by
    which a model at some depth goes beyond a constant, the gain is the largest (q y)**2 along all
    depths, and the bound of R. B. Davies, Biometrika 74, 33 (1987), holds: that of a single depth
    and ``exp(-gain / 2) / pi`` times the length of the way that q goes.
    """
    whitened = 1.0 / np.sqrt(data.variance)
    constant = whitened / np.linalg.norm(whitened)
    length = 0.0
    for outcome in outcomes:
        search = outcome.search
        q = search.view.basis(search.model, search.extra, DEPTHS)[1] * whitened[:, None]
        q = q - np.outer(constant, constant @ q)
        size = np.linalg.norm(q, axis=0)
        q = (q / np.maximum(size, 1e-300))[:, size > 1e-6 * np.linalg.norm(whitened)]
        length += float(np.sum(np.linalg.norm(np.diff(q, axis=1), axis=0)))
    chance = special.chdtrc(1, gain) + length / np.pi * np.exp(-0.5 * gain)
    return float(min(chance, 1.0))


def _verdict(
    outcomes: dict[str, _Outcome], data: Profile, uniform: float, scale: float, options: _Options
) -> str:
    """What one particle says; `uniform` is the chi2 of a particle without a gradient."""
    score = {n: o.profile.min() / scale + 2.0 * o.parameters for n, o in outcomes.items()}
    first, *others = sorted(score, key=lambda name: score[name])
    gain = max(uniform - outcomes[first].profile.min(), 0.0) / scale
    if _chance(outcomes.values(), data, gain) > options.gradient_p:
        return "no gradient"
    goodness = outcomes[first].goodness
    if not goodness > options.goodness_limit:
        return "undecided"
    if others and score[others[0]] - score[first] < options.evidence:
        return "undecided"
    return first


def _fit_particle(
    data: Profile, seen: Sequence[View], context: Context, known: bool, options: _Options
) -> tuple[dict[str, dict[str, Any]], str]:
    """Rows of the result for every model, and the verdict."""
    # Without reference spectra the false rim is not in the model, so that all of it is an error.
    rim, _ = _false_rim(seen[0], data, context, known)
    allowance = options.rim_allowance if known else 1.0
    variance = data.variance + options.fraction_noise**2 + (allowance * rim) ** 2
    variance = variance + (options.distance_noise_nm * _steepness(data)) ** 2
    measured, data = data, replace(data, variance=variance)
    rim, level = _false_rim(seen[0], data, context, known)
    known_rim = rim if known else 0.0
    uniform = float(np.sum((data.fraction - level - known_rim) ** 2 / variance))

    outcomes = {
        name: _outcome(_searches(name, seen, data, options.fraction_limits), data)
        for name in options.models
    }
    reduced = min(outcome.reduced for outcome in outcomes.values())
    scale = max(1.0, reduced) if np.isfinite(reduced) else 1.0
    errors_scale = max(options.least_scale, reduced) if np.isfinite(reduced) else 1.0
    rows = {}
    for name, outcome in outcomes.items():
        rows[name] = _row(outcome, data, context, (scale, errors_scale), options)
        rows[name]["log10_D_bound"] = _bounds(outcome.search.best, measured)[0]
    return rows, _verdict(outcomes, data, uniform, scale, options)


def _widened(best: float, edge: float, error: float) -> float:
    """Limit of a depth with a further error of log10 depth in quadrature; 0 and inf stay."""
    if not 0 < edge < np.inf:
        return edge
    distance = np.hypot(np.log10(edge / best), error)
    return float(best * 10.0 ** np.copysign(distance, edge - best))


def _row(
    outcome: _Outcome,
    data: Profile,
    context: Context,
    scales: tuple[float, float],
    options: _Options,
) -> dict[str, Any]:
    """Everything the result says about one model of one particle.

    `scales` divide chi2 for the comparison of models and for errors.
    """
    search, point = outcome.search, outcome.search.best
    best = point.depth * search.view.radius
    scale, errors_scale = scales
    low, high = _interval(outcome, data, errors_scale)
    initial_error, surface_error = (np.sqrt(errors_scale) * e for e in _bounds(point, data)[1:])
    outline = 2.0 * options.edge_error * context.resolution_nm / (best * np.log(10.0))
    optical = _resolution_shift(search, data, context, options.fraction_limits)
    # Neither the resolution nor where outlines are drawn averages out over particles.
    shift = float(np.hypot(outline, optical))
    count = data.fraction.size
    row: dict[str, Any] = {
        "surface_fraction": point.surface,
        "surface_fraction_errors": surface_error,
        "initial_fraction": point.initial,
        "initial_fraction_errors": initial_error,
        "log10_D_systematic": shift,
        "aicc": _aicc(outcome.profile.min() / scale, outcome.parameters, count),
        "bic": outcome.profile.min() / scale + outcome.parameters * np.log(count),
        "chi2": outcome.chi2,
        "goodness": outcome.goodness,
        "fit": point.curve,
    }
    further = 0.5 * float(np.hypot(shift, options.shape_error))
    low, high = (_widened(best, edge, further) for edge in (low, high))
    if MODELS[search.model].extra:
        row[MODELS[search.model].extra] = search.extra * search.view.radius
    if MODELS[search.model].depth != "diffusion_length":
        return row | {"shell_thickness": best, "shell_low": low, "shell_high": high}
    row |= {f"Dt_{n}": d**2 * NM2_IN_CM2 for n, d in (("cm2", best), ("low", low), ("high", high))}
    time = context.delithiated_time_s
    if time is not None:
        error = 0.5 * context.delithiated_time_rel_error / np.log(10.0)
        row["D_cm2_s"] = row["Dt_cm2"] / time
        for name, edge in (("D_low", low), ("D_high", high)):
            row[name] = _widened(best, edge, error) ** 2 * NM2_IN_CM2 / time
    return row


# --------------------------------------------------------------------------------- all particles

_UNITS = {
    "D_cm2_s": "cm2 s-1",
    "D_low": "cm2 s-1",
    "D_high": "cm2 s-1",
    "Dt_cm2": "cm2",
    "Dt_low": "cm2",
    "Dt_high": "cm2",
    "shell_thickness": "nm",
    "shell_low": "nm",
    "shell_high": "nm",
}
_PLAIN = (
    "surface_fraction",
    "surface_fraction_errors",
    "initial_fraction",
    "initial_fraction_errors",
    "log10_D_bound",
    "log10_D_systematic",
    "aicc",
    "bic",
    "chi2",
    "goodness",
)


def _bin_width(profiles: xr.Dataset) -> float:
    """Width of the bins of a profile [nm]."""
    distance = np.asarray(profiles["distance"].values, float)
    if distance.size > 1:
        return float(np.median(np.diff(distance)))
    return float(profiles.attrs.get("bin_nm", 2.0 * distance[0]))


def _effective_distance(lower: Array, upper: Array, outline: float, thickness: Array) -> Array:
    """Mean distance in bins of a disc, weighted by area and by the thickness that was measured."""
    x, w = np.polynomial.legendre.leggauss(4)
    d = 0.5 * (lower + upper)[:, None] + 0.5 * (upper - lower)[:, None] * x
    known = np.isfinite(thickness)
    local = np.ones(d.shape)
    if known.any():
        local = np.interp(d, (0.5 * (lower + upper))[known], np.maximum(thickness[known], 1e-6))
    weight = w * np.maximum(outline - d, 1e-3) * local
    return np.asarray((weight * d).sum(axis=1) / weight.sum(axis=1))


def _profile_of(
    profiles: xr.Dataset, row: int, fraction: str, outline: float
) -> tuple[Profile, Array]:
    """Usable bins of one particle, and which they are."""
    distance = np.asarray(profiles["distance"].values, float)
    half = 0.5 * _bin_width(profiles)
    value, error, thick, thick_error = (
        np.asarray(profiles[name].values[row], float)
        for name in (
            f"{fraction}_fraction",
            f"{fraction}_fraction_errors",
            "thickness",
            "thickness_errors",
        )
    )
    use = np.isfinite(value) & np.isfinite(error) & (error > 0)
    lower, upper = distance[use] - half, distance[use] + half
    if "mean_distance" in profiles:
        # The pixels of a bin do not fill it evenly: move the bin to where they are.
        measured = np.asarray(profiles["mean_distance"].values[row], float)[use]
        shift = measured - _effective_distance(lower, upper, outline, thick[use])
        shift = np.where(np.isfinite(shift), np.clip(shift, -half, half), 0.0)
        lower, upper = lower + shift, upper + shift
    data = Profile(
        lower=lower,
        upper=upper,
        fraction=value[use],
        variance=error[use] ** 2,
        thickness=thick[use],
        thickness_errors=thick_error[use],
        outline=outline,
    )
    return data, use


def _check(
    profiles: xr.Dataset, particles: xr.Dataset, fraction: str, models: Sequence[str]
) -> None:
    """Refuse unknown models and tables that do not belong together."""
    unknown = [name for name in models if name not in MODELS]
    if unknown or not models:
        raise InputError(
            f"there is no radial model {', '.join(map(repr, unknown)) or 'chosen'}",
            where="models",
            remedy=f"Choose from {', '.join(MODELS)}.",
        )
    for name in (f"{fraction}_fraction", f"{fraction}_fraction_errors", "thickness"):
        if name not in profiles:
            raise InputError(f"the variable '{name}' is missing", where="profiles")
    missing = set(profiles["particle"].values.tolist()) - set(particles["particle"].values.tolist())
    if missing:
        raise InputError(
            f"particles {sorted(missing)[:5]} have a profile but no line in the table",
            where="particles",
        )


def _empty(profiles: xr.Dataset, models: Sequence[str]) -> xr.Dataset:
    """The result with nothing measured yet."""
    count, kinds, bins = profiles.sizes["particle"], len(models), profiles.sizes["distance"]
    dims = ("particle", "model")
    data: dict[str, Any] = {
        name: (dims, np.full((count, kinds), np.nan), {"units": _UNITS.get(name, "1")})
        for name in (*_UNITS, *_PLAIN)
    }
    for extra in {MODELS[name].extra for name in models} - {""}:
        data[extra] = (dims, np.full((count, kinds), np.nan), {"units": "nm"})
    data["chi2"][2]["long_name"] = "chi square of the composition, not reduced"
    data["fit"] = ((*dims, "distance"), np.full((count, kinds, bins), np.nan), {"units": "1"})
    data["verdict"] = ("particle", np.full(count, "undecided", dtype=object))
    return xr.Dataset(
        data,
        coords={
            "particle": profiles["particle"],
            "model": ("model", np.array(list(models), dtype=object)),
            "distance": profiles["distance"],
        },
    )


def _field(
    maps: xr.Dataset | None,
    profiles: xr.Dataset,
    context: Context,
    optics: Optics | None,
    shape: str,
    count: int,
    edge_error: float,
) -> Field | None:
    """The bodies of all particles, or None where they are taken as spheres."""
    if shape not in ("auto", "measured", "sphere"):
        raise InputError(
            f"'{shape}' is not known", where="shape", remedy="Use auto, measured or sphere."
        )
    if shape == "measured" and maps is None:
        raise InputError("bodies are made from maps, and there are none", where="maps")
    if maps is None or shape == "sphere" or (shape == "auto" and count > MOST_BODIES):
        return None
    dy, dx = pixel_size(maps["thickness"])
    if abs(dy / dx - 1.0) > UNEVEN_PIXELS:
        LOG.warning("pixels are not square, so particles are taken as spheres in radial models")
        return None
    return Field(maps, _bin_width(profiles), context, optics, edge_error)


def _body_errors(context: Context) -> dict[str, float]:
    """What is not noise for particles whose body is measured."""
    errors = BODY_ERRORS | {"distance_noise_nm": DISTANCE_NOISE * context.resolution_nm}
    if context.geometry == "lamella":
        errors["shape_error"] = SECTION_SHAPE_ERROR
    return errors


def fit_models(
    profiles: xr.Dataset,
    particles: xr.Dataset,
    context: Context,
    maps: xr.Dataset | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
    *,
    models: Sequence[str] = ("diffusion", "core-shell"),
    shape: Literal["auto", "measured", "sphere"] = "auto",
    evidence: float = 8.0,
    gradient_p: float = 0.003,
    goodness_limit: float = 1e-7,
    fraction_limits: tuple[float, float] = (-0.05, 1.2),
    fraction_noise: float | None = None,
    distance_noise_nm: float | None = None,
    rim_allowance: float | None = None,
    shape_error: float | None = None,
    edge_error: float = 0.05,
    thickness_rel_error: float = 0.1,
) -> xr.Dataset:
    """Fit radial models to every particle's profile and say which one it follows.

    Parameters
    ----------
    profiles : Dataset, dims (particle, distance)
        From `spectromap.profiles.radial_profiles`.
    particles : Dataset, dims (particle)
        ``radius`` [nm], the equivalent radius of the outline; where ``used`` is false the particle
        is not fitted.
    context : Context
        Sample and measurement.
    maps : Dataset, dims (y, x), optional
        The maps of the profiles, with ``particle_label`` and ``edge_distance`` [nm]; bodies are
        made from them. Without them particles are spheres.
    track : callable, optional
        Takes the list of what is to be done and yields it, to show progress.
    models : sequence of str
        Names in `spectromap.radial.MODELS`.
    shape : {"auto", "measured", "sphere"}
        What particles are taken for: bodies of the measured thickness and outline, or spheres,
        more than ten times faster; auto takes spheres where there are more than 400 particles.
    evidence : float
        Difference of AICc from which one model is preferred to the other.
    gradient_p : float
        Probability of the improvement over a uniform particle, by chance, below which there is a
        gradient.
    goodness_limit : float
        Probability of chi2 below which even the better model is rejected. Shapes other than
        spheres alone go down to 1e-6 where a phase boundary is sharp.
    fraction_limits : (float, float)
        Range of the initial and the surface fraction. Either may be the larger.
    fraction_noise : float, optional
        Error of a bin that is added in quadrature: what references and model leave over. Default
        0.002 for measured bodies, 0.005 for spheres.
    distance_noise_nm : float, optional
        Error of a bin's distance [nm] that is added in quadrature, times the slope of the profile:
        outlines are not quite what they are taken for. Default 0.015 resolutions
        for measured bodies, 0.5 nm for spheres.
    rim_allowance : float, optional
        Relative error of the false rim that blur of the intensity gives a uniform particle.
        Default 0.2 and 0.3.
    shape_error : float, optional
        Standard error of a single log10 D, in quadrature, because bodies are not quite what they
        are taken for. Default 0.015, for sections 0.035, for spheres 0.05.
    edge_error : float
        Standard error of where outlines lie, in resolutions: an error of the depth that is the
        same however shallow it is, and for all particles. Where it is more than a nanometre the
        edge of a measured body is placed by its thickness, which leaves 0.6 of the error.
    thickness_rel_error : float
        Relative error of the thickness scale, for the height at which a section cuts a particle.

    Returns
    -------
    Dataset, dims (particle, model)
        ``D_cm2_s`` [cm2/s] (NaN without a time) and ``Dt_cm2`` [cm2] with their 68 % limits
        ``_low`` and ``_high``; where there is none on one side (0 or inf) the other is the limit
        that holds in 95 %; ``shell_thickness`` [nm] with
        limits for models of a shell; ``surface_fraction``, ``initial_fraction`` with
        errors; the further parameter of a model that has one, such as ``exchange_length`` [nm];
        ``log10_D_bound``, the Cramer-Rao bound for the errors of the profile alone, and
        ``log10_D_systematic``, the effect of the errors of resolution and outline, which all
        particles share; ``aicc``, ``bic``, ``chi2``
        (of the composition, not scaled) and ``goodness``, its probability;
        ``fit`` (particle, model, distance); ``verdict`` (particle): the name of a model,
        "undecided" or "no gradient".

    Raises
    ------
    InputError
        An unknown model or tables that do not belong together.

    Notes
    -----
    A particle is its measured body (`spectromap.radial.body`), blurred together with its neighbours
    and, where there are any, with the wings of the point spread function, and with its edge where
    outline and thickness together put it; or, with ``shape: sphere``, the sphere whose apparent
    thickness falls to the outline's threshold at the measured outline. A section is a body cut by
    two planes after the change of composition; the height of
    the cut is profiled out, with the misfit of the thickness as its likelihood. Whether there is a
    gradient is judged against a uniform particle seen in the same way, with the chance that many
    depths are tried (R. B. Davies, Biometrika 74, 33 (1987)). Errors are scaled by the root of the
    reduced chi2 (R. T. Birge, Phys. Rev. 40, 207 (1932)), for spheres only upwards. Limits come
    from the profile likelihood (rise of the scaled chi2 by one). AICc: C. M. Hurvich and
    C.-L. Tsai, Biometrika 76, 297 (1989).
    """
    fraction = context.fraction
    _check(profiles, particles, fraction, models)
    result = _empty(profiles, models)
    table = particles.sel(particle=profiles["particle"])
    outlines = np.asarray(table["radius"].values, float)
    used = (
        np.asarray(table["used"].values, bool) if "used" in table else np.full(outlines.size, True)
    )
    used = used & np.isfinite(outlines) & (outlines > 0)
    optics = optics_of(context)
    measured = np.asarray(profiles[f"{fraction}_fraction"].values, float)
    measured = measured[np.isfinite(measured)]
    typical = float(np.median(measured)) if measured.size else 0.0
    radii = np.full(outlines.size, np.nan)
    radii[used] = sphere_radii(outlines[used], context, optics, typical)
    field = _field(maps, profiles, context, optics, shape, int(used.sum()), edge_error)
    usual = SPHERE_ERRORS if field is None else _body_errors(context)
    given = {
        "fraction_noise": fraction_noise,
        "distance_noise_nm": distance_noise_nm,
        "rim_allowance": rim_allowance,
        "shape_error": shape_error,
    }
    options = _Options(
        models=tuple(models),
        evidence=evidence,
        gradient_p=gradient_p,
        goodness_limit=goodness_limit,
        fraction_limits=fraction_limits,
        edge_error=edge_error * (PLACED_SHARE if field is not None and field.places_edges else 1.0),
        thickness_rel_error=thickness_rel_error,
        least_scale=1.0 if field is None else LEAST_SCALE,
        **{name: usual[name] if value is None else value for name, value in given.items()},
    )
    for row in track([int(i) for i in np.flatnonzero(used)]):
        data, bins = _profile_of(profiles, row, fraction, float(outlines[row]))
        if data.fraction.size < _FEWEST_BINS:
            continue
        views: Sequence[View] = []
        if field is not None:
            label = int(result["particle"].values[row])
            views = field.views(label, data, np.flatnonzero(bins), thickness_rel_error)
        if not views:
            views = sphere_views(data, radii[row], context, optics, thickness_rel_error)
        rows, verdict = _fit_particle(data, views, context, optics is not None, options)
        result["verdict"].values[row] = verdict
        for column, name in enumerate(models):
            result["fit"].values[row, column, bins] = rows[name].pop("fit")
            for key, value in rows[name].items():
                result[key].values[row, column] = value
    halo = Halo() if field is None else field.halo
    result.attrs |= {
        "delithiated_time_rel_error": context.delithiated_time_rel_error,
        "shape": "sphere" if field is None else "measured",
        "wings_share": halo.share / (1.0 + halo.share),  # of all the light
        "wings_fwhm_nm": halo.fwhm_nm if halo.share > 0 else np.nan,
    }
    return result
