"""What the particles of a field say together about D and about the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from spectromap.schema import VERDICTS

__all__ = ["pool"]

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

_NORMAL_95 = float(special.ndtri(0.975))


def _paule_mandel(x: Array, variance: Array) -> float:
    """Variance between particles at which the weighted scatter equals its expectation."""

    def excess(between: float) -> float:
        weight = 1.0 / (variance + between)
        mean = np.sum(weight * x) / weight.sum()
        return float(np.sum(weight * (x - mean) ** 2) - (x.size - 1))

    if x.size < 2 or excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, max(4.0 * float(np.var(x)), 1e-12)
    while excess(high) > 0:
        high *= 4.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def _random_effects(x: Array, errors: Array, common: float) -> dict[str, float]:
    """Mean over particles with its error, 68 and 95 % half widths, and the spread."""
    if x.size == 0:
        return dict.fromkeys(("mean", "error", "half68", "half95", "spread"), np.nan)
    between = _paule_mandel(x, errors**2)
    weight = 1.0 / (errors**2 + between)
    mean = float(np.sum(weight * x) / weight.sum())
    inflation, factor68, factor95 = 1.0, 1.0, _NORMAL_95
    if x.size > 1:
        # Never below the classical error: with few particles the scatter is small by chance.
        inflation = max(1.0, float(np.sum(weight * (x - mean) ** 2)) / (x.size - 1))
        factor68 = float(special.stdtrit(x.size - 1, special.ndtr(1.0)))
        factor95 = float(special.stdtrit(x.size - 1, 0.975))
    error = float(np.sqrt(inflation / weight.sum()))
    return {
        "mean": mean,
        "error": float(np.hypot(error, common)),
        "half68": float(np.hypot(factor68 * error, common)),
        "half95": float(np.hypot(factor95 * error, _NORMAL_95 * common)),
        "spread": float(np.sqrt(between)) if x.size > 1 else np.nan,
    }


def _log_measure(
    models: xr.Dataset, model: str, names: tuple[str, str, str], chosen: Mask
) -> tuple[Array, Array, Mask]:
    """log10 of a quantity with its 68 % error where both limits exist, and for which particles."""
    if model not in models["model"].values:
        return np.empty(0), np.empty(0), np.zeros(chosen.shape, bool)
    value, low, high = (np.asarray(models[n].sel(model=model).values, float) for n in names)
    good = chosen & np.isfinite(value) & (value > 0) & (low > 0) & np.isfinite(high)
    return np.log10(value[good]), 0.5 * np.log10(high[good] / low[good]), good


def _open_to(model: str, chosen: Mask, verdicts: NDArray[np.str_]) -> Mask:
    """Particles that follow a model or may follow it."""
    return np.asarray(chosen & ((verdicts == model) | (verdicts == "undecided")))


def _mean_log_dt(models: xr.Dataset, chosen: Mask) -> tuple[dict[str, float], Mask]:
    """Mean of log10 D t [cm2] over particles, and which of them entered."""
    log_dt, errors, used = _log_measure(
        models, "diffusion", ("Dt_cm2", "Dt_low", "Dt_high"), chosen
    )
    if not used.any():
        return _random_effects(log_dt, errors, 0.0), used
    # The resolution is the same for all: out of the single errors, into the error of the mean.
    shift = np.asarray(models["log10_D_systematic"].sel(model="diffusion").values, float)[used]
    errors = np.sqrt(np.maximum(errors**2 - shift**2, (0.2 * errors) ** 2))
    return _random_effects(log_dt, errors, float(np.median(shift))), used


def _with_time(mean: dict[str, float], models: xr.Dataset, used: Mask) -> dict[str, float]:
    """From log10 D t to log10 D, with the error of the time; NaN where no time is known."""
    if not used.any():
        return mean
    row = models.sel(model="diffusion")
    log_time = float(np.median(np.log10((row["Dt_cm2"] / row["D_cm2_s"]).values[used])))
    common = float(models.attrs.get("delithiated_time_rel_error", 0.0)) / np.log(10.0)
    return {
        "mean": mean["mean"] - log_time,
        "error": float(np.hypot(mean["error"], common)),
        "half68": float(np.hypot(mean["half68"], common)),
        "half95": float(np.hypot(mean["half95"], _NORMAL_95 * common)),
        "spread": mean["spread"],
    }


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
    Dataset
        Scalars: ``verdict``; ``log10_D`` [log10 of cm2/s] with ``log10_D_errors`` and its 68 and
        95 % limits; ``spread`` between particles (standard deviation of log10 D, NaN for one
        particle); ``log10_Dt`` [log10 of cm2] with its error, known without a time too;
        ``particles_used``, how many determine D; ``shell_thickness`` [nm] with
        ``shell_thickness_errors``; the number of particles with each verdict.

    Notes
    -----
    Random-effects mean with the variance between particles after R. C. Paule and J. Mandel, J.
    Res. Natl. Bur. Stand. 87, 377 (1982), and the interval of G. Knapp and J. Hartung, Stat. Med.
    22, 2693 (2003), never narrower than the classical one. Particles without a gradient, with the
    other model's verdict or with only a limit for D do not enter the mean. Errors that all
    particles share (time, resolution) are added once, at the end.
    """
    chosen = np.isfinite(models["chi2"].values).any(axis=1)
    if "used" in particles:
        table = particles.sel(particle=models["particle"])
        chosen &= np.asarray(table["used"].values, bool)
    verdicts = np.array([str(v) for v in models["verdict"].values], dtype=np.str_)

    mean_dt, used = _mean_log_dt(models, _open_to("diffusion", chosen, verdicts))
    mean_d = _with_time(mean_dt, models, used)
    shell = _random_effects(
        *_log_measure(
            models,
            "core-shell",
            ("shell_thickness", "shell_low", "shell_high"),
            _open_to("core-shell", chosen, verdicts),
        )[:2],
        0.0,
    )
    thickness = 10.0 ** shell["mean"]
    verdict = _pooled_verdict(_evidence(models)[chosen], verdicts[chosen], evidence, evidence_clip)

    log_d = {"units": "1", "long_name": "log10 of D in cm2 s-1"}
    log_dt = {"units": "1", "long_name": "log10 of D t in cm2"}
    scalars: dict[str, Any] = {
        "verdict": ((), np.array(verdict, dtype=object)),
        "log10_D": ((), mean_d["mean"], log_d),
        "log10_D_errors": ((), mean_d["error"], log_d),
        "log10_D_low68": ((), mean_d["mean"] - mean_d["half68"], log_d),
        "log10_D_high68": ((), mean_d["mean"] + mean_d["half68"], log_d),
        "log10_D_low95": ((), mean_d["mean"] - mean_d["half95"], log_d),
        "log10_D_high95": ((), mean_d["mean"] + mean_d["half95"], log_d),
        "log10_Dt": ((), mean_dt["mean"], log_dt),
        "log10_Dt_errors": ((), mean_dt["error"], log_dt),
        "spread": ((), mean_d["spread"], {"units": "1", "long_name": "spread of log10 D"}),
        "particles_used": ((), int(used.sum()), {"units": "1"}),
        "shell_thickness": ((), thickness, {"units": "nm"}),
        "shell_thickness_errors": ((), thickness * np.log(10.0) * shell["error"], {"units": "nm"}),
    }
    for name in VERDICTS:
        key = "count_" + name.replace("-", "_").replace(" ", "_")
        scalars[key] = ((), int(np.sum(verdicts[chosen] == name)), {"units": "1"})
    return xr.Dataset(scalars)
