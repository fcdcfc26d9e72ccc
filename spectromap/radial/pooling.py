"""What the particles of a field say together about D and about the model.

Every particle enters with its likelihood and not with a number and an error: its profile
likelihood rises at a different rate on either side, and where only a limit exists it never rises
on one of them. `Likelihoods` keeps that as normal sides of different width, one of which may be
infinite; averaged over a normal spread between particles it has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import optimize, special

from spectromap.schema import VERDICTS

__all__ = [
    "ONE_SIDED_95",
    "SPREADS",
    "Estimate",
    "Likelihoods",
    "estimate",
    "log_likelihood",
    "pool",
    "selected",
    "with_common",
]

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: Spreads between particles that are tried [dex].
SPREADS: Array = np.concatenate([[0.0], np.geomspace(0.01, 5.0, 36)])
#: A side is open where it is wider than this [dex of depth] and wider than the other side: a fit
#: that is normal in the depth then rises by little more than 2 however shallow the depth.
_OPEN = 0.5
#: Softness of the edge of a particle with one limit, at most [dex of depth]: what the slope of a
#: likelihood that is normal in the depth makes it, between 0.22 and 0.43 for any best depth.
_EDGE = 0.3
#: Widths below this [dex] are the arithmetic of a fit and not a measurement.
_NARROWEST = 1e-3
#: Standard deviations from a likelihood's top to its 95 % limit where there is one limit only.
ONE_SIDED_95 = float(special.ndtri(0.95))
#: How far an interval is sought [dex].
_FARTHEST = 100.0
#: One-sided probabilities at the ends of the 68 and the 95 % interval.
_LEVELS = {"68": float(special.ndtr(1.0)), "95": 0.975}


@dataclass(frozen=True)
class Likelihoods:
    """Likelihood of log10 of a quantity for each particle, each of shape (particle,).

    ``exp(-((x - top) / width)**2 / 2)``, with ``below`` as the width where x < top and ``above``
    where x > top; an infinite width makes the particle a limit.
    """

    top: Array
    below: Array
    above: Array

    def __getitem__(self, chosen: Any) -> Likelihoods:
        """Some of the particles."""
        return Likelihoods(self.top[chosen], self.below[chosen], self.above[chosen])

    @property
    def closed(self) -> Mask:
        """Which are values and not limits."""
        return np.asarray(np.isfinite(self.below) & np.isfinite(self.above))


@dataclass(frozen=True)
class Estimate:
    """Mean over particles, its error and limits, and the spread between particles, all in dex.

    Where all particles are limits to the same side the mean is NaN and one side infinite. With
    fewer than two values the spread is not known (NaN) and taken as zero.
    """

    mean: float = np.nan
    error: float = np.nan
    spread: float = np.nan
    low68: float = np.nan
    high68: float = np.nan
    low95: float = np.nan
    high95: float = np.nan


# ------------------------------------------------------------------------ likelihood of a particle


def _likelihoods(value: Array, low: Array, high: Array, power: float) -> tuple[Likelihoods, Mask]:
    """Likelihoods from best values and limits; which say anything.

    At limits on both sides chi2 has risen by one; a limit on one side alone is that of 95 %.
    `power` is that of the depth in the quantity: 2 for D t, 1 for a shell.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        x, lower, upper = np.log10(value), np.log10(low), np.log10(high)
    below, above = x - lower, upper - x
    open_low = np.isneginf(lower) | ((below > _OPEN * power) & (below > above))
    open_high = np.isposinf(upper) | ((above > _OPEN * power) & (above >= below))
    informative = ~np.isnan(below) & ~np.isnan(above) & ~(open_low & open_high)
    # Where a side is open the best value is anywhere on a plateau: the limit is what is known, and
    # so is by how many standard deviations it lies off.
    off = np.where(np.isneginf(lower) | np.isposinf(upper), ONE_SIDED_95, 1.0)
    edge_above = np.maximum(np.minimum(above / off, np.where(open_low, _EDGE * power, np.inf)), 0.0)
    edge_below = np.maximum(
        np.minimum(below / off, np.where(open_high, _EDGE * power, np.inf)), 0.0
    )
    with np.errstate(invalid="ignore"):
        at_high, at_low = upper - off * edge_above, lower + off * edge_below
        top = np.where(open_low, at_high, np.where(open_high, at_low, x))
    edge_above, edge_below = (np.maximum(e, _NARROWEST) for e in (edge_above, edge_below))
    sides = Likelihoods(
        top, np.where(open_low, np.inf, edge_below), np.where(open_high, np.inf, edge_above)
    )
    return sides, informative


def _sides(
    particles: Likelihoods, mean: Array | float, spread: Array | float
) -> tuple[Array, Array, list[tuple[Array, Array]]]:
    """Distance to the top, spread, and for each side the log of its part and what is kept of it.

    A normal side of width w, averaged over a spread s, is ``sqrt(k) exp(-k (d/w)^2 / 2) Phi(
    +-sqrt(k) d / s)`` with the kept share ``k = 1 / (1 + (s/w)^2)``.
    """
    s = np.maximum(spread, 1e-6)
    distance = particles.top - mean
    parts = []
    for width, sign in ((particles.below, 1.0), (particles.above, -1.0)):
        kept = 1.0 / (1.0 + (s / width) ** 2)
        log = 0.5 * np.log(kept) - 0.5 * kept * (distance / width) ** 2
        parts.append((log + special.log_ndtr(sign * distance * np.sqrt(kept) / s), kept))
    return distance, s, parts


def log_likelihood(particles: Likelihoods, mean: Array | float, spread: Array | float) -> Array:
    """Log likelihood of each particle if true values are normal about a mean.

    Parameters
    ----------
    particles : Likelihoods
        Of N particles.
    mean, spread : array or float
        Mean and standard deviation of log10 between particles; broadcast against (..., N).

    Returns
    -------
    array, shape (..., N)
        0 where the particle is certain to look as it does.
    """
    _, _, ((below, _), (above, _)) = _sides(particles, mean, spread)
    return np.asarray(np.logaddexp(below, above))


def _score(particles: Likelihoods, mean: Array | float, spread: Array | float) -> Array:
    """Derivative of `log_likelihood` with the mean; it falls with the mean everywhere."""
    distance, s, ((below, kept_below), (above, kept_above)) = _sides(particles, mean, spread)
    log = np.logaddexp(below, above)
    share = np.exp(below - log)
    pull = share * kept_below / particles.below**2 + (1.0 - share) * kept_above / particles.above**2
    at_top = np.exp(-0.5 * (distance / s) ** 2 - log) / (s * np.sqrt(2.0 * np.pi))
    return np.asarray(distance * pull + (kept_above - kept_below) * at_top)


def _information(particles: Likelihoods, mean: Array | float, spread: Array | float) -> Array:
    """Observed information on the mean in each particle."""
    step = 1e-3 * np.hypot(np.minimum(particles.below, particles.above), spread)
    fall = _score(particles, mean - step, spread) - _score(particles, mean + step, spread)
    return np.asarray(np.maximum(fall, 0.0) / (2.0 * step))


# --------------------------------------------------------------------------- mean over particles


def _best_means(particles: Likelihoods, spreads: Array) -> Array:
    """Mean of the highest likelihood for every spread; there is only one maximum each."""
    low = np.full(spreads.shape, particles.top.min() - 3.0)
    high = np.full(spreads.shape, particles.top.max() + 3.0)
    for _ in range(28):
        middle = 0.5 * (low + high)
        rises = _score(particles, middle[:, None], spreads[:, None]).sum(axis=1) > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return np.asarray(0.5 * (low + high))


def _peak(values: Array) -> tuple[float, float]:
    """Place and height of the maximum, between points where it lies between them."""
    i = int(np.argmax(values))
    if i in (0, values.size - 1):
        return float(i), float(values[i])
    left, middle, right = (float(v) for v in values[i - 1 : i + 2])
    curvature = left - 2.0 * middle + right
    if curvature >= 0:
        return float(i), middle
    offset = 0.5 * (left - right) / curvature
    return i + offset, middle - 0.25 * (left - right) * offset


@dataclass(frozen=True)
class _Profile:
    """Restricted profile likelihood of the mean: the best spread at every mean."""

    particles: Likelihoods
    spreads: Array
    restriction: Array

    def __call__(self, mean: float) -> float:
        total = log_likelihood(self.particles, mean, self.spreads[:, None]).sum(axis=1)
        return _peak(total - self.restriction)[1]

    def reach(self, start: float, inner: float, sign: int, level: float) -> float:
        """Where the profile falls to a level, on one side of `start`, farther than `inner`."""

        def above(distance: float) -> float:
            return self(start + sign * distance) - level

        outer = 0.1
        while above(outer) > 0:
            outer *= 2.0
            if outer > _FARTHEST:
                return sign * np.inf
        return start + sign * float(optimize.brentq(above, inner, outer, xtol=1e-4))


def _fall(probability: float, count: float, values: int) -> float:
    """How far the log likelihood falls to the end of an interval.

    With the spread unknown the likelihood ratio of a mean of n equal particles is a function of
    Student's t, ``(n - 1) ln(1 + t^2 / (n - 1))``: its quantile makes the interval Student's.
    """
    if values < 2:
        return 0.5 * float(special.ndtri(probability)) ** 2
    degrees = count - 1.0
    return 0.5 * degrees * float(np.log1p(special.stdtrit(degrees, probability) ** 2 / degrees))


def _one_sided(particles: Likelihoods, sign: int) -> Estimate:
    """All particles are limits to the same side: so is what they say together."""
    profile = _Profile(particles, SPREADS[:1], np.zeros(1))
    start = float(particles.top.min() if sign > 0 else particles.top.max())
    ends: dict[str, float] = {}
    for name, probability in _LEVELS.items():
        # The likelihood is 1 far on the open side.
        end = profile.reach(start, -_FARTHEST, sign, -_fall(probability, 1.0, 0))
        ends |= {f"low{name}": end, f"high{name}": end}
        ends[f"low{name}" if sign > 0 else f"high{name}"] = -sign * np.inf
    return Estimate(**ends)


def estimate(particles: Likelihoods) -> Estimate:
    """Random-effects mean of values and limits.

    Parameters
    ----------
    particles : Likelihoods
        Of N particles.

    Returns
    -------
    Estimate
        NaN throughout where there is no particle.

    Notes
    -----
    The spread maximises the restricted likelihood (H. D. Patterson and R. Thompson, Biometrika
    58, 545 (1971); for what is not normal D. R. Cox and N. Reid, J. R. Stat. Soc. B 49, 1
    (1987)), the mean is the best one at that spread, and its limits are where the restricted
    profile likelihood falls to what Student's t demands. For values with equal errors that is the
    interval of G. Knapp and J. Hartung, Stat. Med. 22, 2693 (2003), and it is wider where the
    errors alone explain the scatter. A limit counts in the degrees of freedom as much as it
    informs on the mean.
    """
    if particles.top.size == 0:
        return Estimate()
    for open_sides, sign in ((particles.below, 1), (particles.above, -1)):
        if not np.isfinite(open_sides).any():
            return _one_sided(particles, sign)
    closed = particles.closed
    values = int(closed.sum())
    spreads = SPREADS if values > 1 else SPREADS[:1]
    means = _best_means(particles, spreads)
    columns = means[:, None], spreads[:, None]
    information = _information(particles, *columns).sum(axis=1)
    restriction = 0.5 * np.log(np.maximum(information, 1e-12))
    place, height = _peak(log_likelihood(particles, *columns).sum(axis=1) - restriction)
    spread = float(np.interp(place, np.arange(spreads.size), spreads))
    mean = float(_best_means(particles, np.array([spread]))[0])
    profile = _Profile(particles, spreads, restriction)
    height = max(height, profile(mean))

    share = _information(particles, mean, spread)
    count = float(values)
    if values > 1:
        count += float(np.sum(np.minimum(share[~closed] / np.mean(share[closed]), 1.0)))
    ends = {}
    for name, probability in _LEVELS.items():
        level = height - _fall(probability, count, values)
        ends[f"low{name}"] = profile.reach(mean, 0.0, -1, level)
        ends[f"high{name}"] = profile.reach(mean, 0.0, 1, level)
    return Estimate(
        mean=mean,
        error=float(1.0 / np.sqrt(max(share.sum(), 1e-12))),
        spread=spread if values > 1 else np.nan,
        **ends,
    )


def with_common(result: Estimate, error: float) -> Estimate:
    """Add an error that all particles share to an estimate, once.

    Parameters
    ----------
    result : Estimate
        Without it.
    error : float
        Standard error of log10.

    Returns
    -------
    Estimate
        With wider limits: in quadrature with the distance to the mean, or moved by the whole
        error where there is only a limit.
    """
    changes = {"error": float(np.hypot(result.error, error))}
    for name, probability in _LEVELS.items():
        common = error * float(special.ndtri(probability))
        for side, sign in ((f"low{name}", -1.0), (f"high{name}", 1.0)):
            end = getattr(result, side)
            if np.isnan(result.mean):  # a limit has no value to be far from
                changes[side] = end + sign * common
            else:
                changes[side] = result.mean + sign * float(np.hypot(end - result.mean, common))
    return replace(result, **changes)


def _without_one(particles: Likelihoods, result: Estimate) -> Array:
    """Change of the mean when each particle is left out, the spread held; NaN if none remains."""
    if np.isnan(result.mean):
        return np.full(particles.top.shape, np.nan)
    means = np.linspace(particles.top.min() - 1.0, particles.top.max() + 1.0, 401)
    scores = _score(particles, means[:, None], np.nan_to_num(result.spread))
    rest = scores.sum(axis=1, keepdims=True) - scores
    last = np.clip(np.sum(rest > 0, axis=0) - 1, 0, means.size - 2)
    column = np.arange(particles.top.size)
    left, right = rest[last, column], rest[last + 1, column]
    crosses = (left > 0) & (right <= 0)
    fall = np.where(crosses, left - right, 1.0)
    zero = means[last] + (means[1] - means[0]) * left / fall
    return np.where(crosses, zero - result.mean, np.nan)


# ------------------------------------------------------------------------- from the tables of a run


def _measured(
    models: xr.Dataset, model: str, names: tuple[str, str, str], power: float
) -> tuple[Likelihoods, Mask]:
    """Likelihoods of a quantity of a model for all particles, and which say anything of it."""
    if model not in models["model"].values:
        empty = np.full(models.sizes["particle"], np.nan)
        return Likelihoods(empty, empty, empty), np.zeros(empty.shape, bool)
    row = models.sel(model=model)
    value, low, high = (np.asarray(row[name].values, float) for name in names)
    return _likelihoods(value, low, high, power)


def _chosen(models: xr.Dataset, particles: xr.Dataset) -> tuple[Mask, NDArray[np.str_]]:
    """Particles that were fitted and may be used, and why the others are not."""
    fitted = np.isfinite(models["chi2"].values).any(axis=1)
    reasons = np.where(fitted, "", "not fitted").astype(object)
    if "used" in particles:
        table = particles.sel(particle=models["particle"])
        refused = ~np.asarray(table["used"].values, bool)
        reasons[refused] = "not used"
        if "reason" in table:
            reasons[refused] = [str(r) or "not used" for r in table["reason"].values[refused]]
    return np.asarray(reasons == "", bool), np.asarray(reasons)


def selected(
    models: xr.Dataset, particles: xr.Dataset
) -> tuple[Likelihoods, NDArray[np.str_], Array]:
    """Likelihoods of log10 D t [cm2] of all particles, and why some do not enter the mean.

    Parameters
    ----------
    models : Dataset, dims (particle, model)
        From `spectromap.radial.fit.fit_models`.
    particles : Dataset, dims (particle)
        Where ``used`` is false a particle is left out, for its ``reason``.

    Returns
    -------
    Likelihoods
        Of all particles; NaN where one says nothing.
    array of str, shape (particle,)
        Why a particle is left out; empty where it is not.
    array, shape (particle,)
        Error of log10 D t by the resolution, which all share; not in the likelihoods of values.
    """
    chosen, reasons = _chosen(models, particles)
    verdicts = np.array([str(v) for v in models["verdict"].values], dtype=object)
    other = chosen & ~np.isin(verdicts, ("diffusion", "undecided"))
    reasons[other] = [f"the verdict is {v}" for v in verdicts[other]]
    sides, informative = _measured(models, "diffusion", ("Dt_cm2", "Dt_low", "Dt_high"), 2.0)
    reasons[(reasons == "") & ~informative] = "no limit to either side"
    common = np.zeros(reasons.shape)
    if "diffusion" in models["model"].values:
        common = np.asarray(models["log10_D_systematic"].sel(model="diffusion").values, float)
    own = [
        np.where(sides.closed, np.sqrt(np.maximum(w**2 - common**2, (0.2 * w) ** 2)), w)
        for w in (sides.below, sides.above)
    ]
    top = np.where(informative, sides.top, np.nan)
    return Likelihoods(top, *own), reasons, common


def _log_time(models: xr.Dataset, used: Mask) -> float:
    """The log10 of the time [s] that turns D t into D; NaN where it is not known."""
    if not used.any():
        return np.nan
    row = models.sel(model="diffusion")
    return float(np.median(np.log10((row["Dt_cm2"] / row["D_cm2_s"]).values[used])))


def _evidence(models: xr.Dataset) -> Array:
    """Difference of AICc for diffusion against core-shell; of BIC where bins are too few."""
    if not {"diffusion", "core-shell"} <= set(models["model"].values):
        return np.full(models.sizes["particle"], np.nan)
    aicc, bic = (
        (models[n].sel(model="core-shell") - models[n].sel(model="diffusion")).values
        for n in ("aicc", "bic")
    )
    return np.where(np.isfinite(aicc), aicc, bic)


def _pooled_verdict(
    difference: Array, verdicts: NDArray[np.str_], limit: float, clip: float
) -> str:
    """Verdict from the summed evidence (positive: for diffusion), no particle above `clip`."""
    flat = verdicts == "no gradient"
    if 2 * int(flat.sum()) > verdicts.size:
        return "no gradient"
    clipped = np.clip(difference[np.isfinite(difference) & ~flat], -clip, clip)
    total = float(clipped.sum())
    # Evidence that cancels between particles is no evidence about all of them.
    if abs(total) < limit or abs(total) < 0.5 * float(np.abs(clipped).sum()):
        return "undecided"
    return "diffusion" if total > 0 else "core-shell"


def _diffusion(models: xr.Dataset, particles: xr.Dataset) -> dict[str, Any]:
    """Everything the pooled result says of D."""
    sides, reasons, common = selected(models, particles)
    used = reasons == ""
    everything = np.isfinite(sides.top)
    bare = estimate(sides[used])
    shared = float(np.median(common[used])) if used.any() else 0.0
    dt = with_common(bare, shared)
    log_time = _log_time(models, used)
    time_error = float(models.attrs.get("delithiated_time_rel_error", 0.0)) / np.log(10.0)
    d = with_common(dt, time_error)
    all_dt = estimate(sides[everything]).mean

    weight, influence = np.zeros(used.shape), np.full(used.shape, np.nan)
    if np.isfinite(bare.mean):
        share = _information(sides[used], bare.mean, np.nan_to_num(bare.spread))
        weight[used] = share / max(float(share.sum()), 1e-12)
        influence[used] = _without_one(sides[used], bare)
    known = np.nan_to_num(np.abs(influence))
    largest = int(np.argmax(known)) if known.any() else -1

    log_d = {"units": "1", "long_name": "log10 of D in cm2 s-1"}
    log_dt = {"units": "1", "long_name": "log10 of D t in cm2"}
    dex, one = {"units": "1", "long_name": "difference of log10 D"}, {"units": "1"}
    ends = {
        f"log10_D_{side}{level}": ((), getattr(d, f"{side}{level}") - log_time, log_d)
        for level in _LEVELS
        for side in ("low", "high")
    }
    return {
        "log10_D": ((), d.mean - log_time, log_d),
        "log10_D_errors": ((), d.error if np.isfinite(log_time) else np.nan, log_d),
        **ends,
        "log10_Dt": ((), dt.mean, log_dt),
        "log10_Dt_errors": ((), dt.error, log_dt),
        "spread": ((), d.spread, {"units": "1", "long_name": "spread of log10 D"}),
        "particles_used": ((), int(used.sum()), one),
        "count_limits": ((), int(np.sum(~sides.closed[used])), one),
        "count_left_out": ((), int(np.sum(~used)), one),
        "log10_D_all": ((), all_dt - log_time, log_d),
        "log10_D_shift": ((), all_dt - dt.mean, dex),
        "largest_influence": ((), influence[largest] if largest >= 0 else np.nan, dex),
        "most_influential": ((), int(models["particle"].values[largest]) if largest >= 0 else 0),
        "left_out": ("particle", np.asarray(reasons, dtype=object)),
        "weight": ("particle", weight, one),
        "influence": ("particle", influence, dex),
    }


def _shell(models: xr.Dataset, particles: xr.Dataset) -> dict[str, Any]:
    """Thickness of the shell over the particles that may have one."""
    chosen, _ = _chosen(models, particles)
    open_to = np.isin(models["verdict"].values.astype(str), ("core-shell", "undecided"))
    names = ("shell_thickness", "shell_low", "shell_high")
    sides, informative = _measured(models, "core-shell", names, 1.0)
    result = estimate(sides[chosen & open_to & informative])
    thickness = 10.0**result.mean
    return {
        "shell_thickness": ((), thickness, {"units": "nm"}),
        "shell_thickness_errors": ((), thickness * np.log(10.0) * result.error, {"units": "nm"}),
    }


def pool(
    models: xr.Dataset,
    particles: xr.Dataset,
    *,
    evidence: float = 10.0,
    evidence_clip: float = 10.0,
) -> xr.Dataset:
    """What all particles together say: the mean of log10 D, its spread, and the verdict.

    Parameters
    ----------
    models : Dataset, dims (particle, model)
        From `fit_models`.
    particles : Dataset, dims (particle)
        Where ``used`` is false a particle is left out.
    evidence : float
        Sum of AICc differences from which one model is preferred.
    evidence_clip : float
        No particle counts for more than this in the sum.

    Returns
    -------
    Dataset, dims (particle)
        Scalars: ``verdict``; ``log10_D`` [log10 of cm2/s] with ``log10_D_errors`` and its 68 and
        95 % limits; ``spread`` between particles (standard deviation of log10 D, NaN where fewer
        than two have a value); ``log10_Dt`` [log10 of cm2] with its error, known without a time
        too; ``particles_used``, how many determine D, and ``count_limits``, how many of them only
        by a limit; ``count_left_out``; ``log10_D_all``, the mean with every particle that says
        anything, whatever its verdict, and ``log10_D_shift``, how far it is from ``log10_D``;
        ``largest_influence``, the largest change of ``log10_D`` by leaving one particle out, and
        ``most_influential``, which (0: none); ``shell_thickness`` [nm] with
        ``shell_thickness_errors``; the number of particles with each verdict. Where all particles
        are limits to one side, ``log10_D`` is NaN and its interval open on that side.
        Per particle: ``left_out``, why it does not enter the mean, empty if it does; ``weight``,
        its share of what is known of the mean; ``influence``, the change of ``log10_D`` without
        it, at the same spread.

    Notes
    -----
    Random-effects likelihood (see `estimate`) of values and limits. The likelihood of a particle
    is normal on either side of the best value, with the distances to its two limits as widths (R.
    Barlow, arXiv:physics/0406120). Where a limit is missing, or so far that it says only that D t
    is not zero, the likelihood is flat on that side and falls beyond the other limit with a soft
    edge, so that chi2 has risen by one at the limit, as it has in the fit: such a limit is right
    in 84 % of cases, and together with a normal spread it is the censored value of J. Tobin,
    Econometrica 26, 24 (1958). Particles without a gradient, with the other model's verdict or
    with no limit at all do not enter the mean. Errors that all particles share (time, resolution)
    are added once, at the end.
    """
    chosen, _ = _chosen(models, particles)
    verdicts = np.array([str(v) for v in models["verdict"].values], dtype=np.str_)
    verdict = _pooled_verdict(_evidence(models)[chosen], verdicts[chosen], evidence, evidence_clip)
    variables: dict[str, Any] = {"verdict": ((), np.array(verdict, dtype=object))}
    variables |= _diffusion(models, particles)
    variables |= _shell(models, particles)
    for name in VERDICTS:
        key = "count_" + name.replace("-", "_").replace(" ", "_")
        variables[key] = ((), int(np.sum(verdicts[chosen] == name)), {"units": "1"})
    return xr.Dataset(variables, coords={"particle": models["particle"]})
