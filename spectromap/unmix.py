"""Composition of every pixel: how much of each reference, with errors that cover.

The model of a pixel is Beer-Lambert with a baseline,
``OD(E) = sum_k t_k r_k(E) + b0 [+ b1 (E - E0)]``, seen through whatever light cannot be absorbed
(the stray fraction) and photon noise. It is fitted to the *transmission*, not to its logarithm,
by Fisher scoring with the variance that the model itself predicts. The logarithm of few counts is
biased and its weights follow the noise; this way thick pixels need no special treatment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import FLAGS, InputError, check_stack, component_names, with_units

__all__ = ["estimate_stray", "fit_components", "fit_spectrum"]

Baseline = Literal["none", "constant", "linear"]
Array = NDArray[np.float64]
Samples = NDArray[np.float32]

BLOCK = 4096  # pixels in one pass: the working set stays in the cache
PAD = 64  # matrix products over multiples of this are the same for any chunking
MIN_TRANSMISSION = 1e-4
ITERATIONS = 5
#: A pixel seen in a smaller share of the frames (the border of a drifting field) is not measured:
#: the part of the spectrum that is left seldom tells the components apart.
MIN_SHARE = 0.5
#: Share of chi-squared by which fitted stray light must improve the fit to be believed.
STRAY_GAIN = 0.01
#: A fraction less certain than this is not worth a colour in the map for the eye.
SHOWN_ERROR = 0.5
#: Amounts this many standard deviations below zero are not noise.
NEGATIVE_SIGMA = 3.0
#: A pivot this much smaller than its diagonal element means that the unknowns cannot be told apart.
SINGULAR = 1e-7
N_BASELINE = {"none": 0, "constant": 1, "linear": 2}


@dataclass(frozen=True)
class _Problem:
    """Everything about the fit that all pixels share."""

    design: Array  # (energy, parameter): components first, then the baseline
    slopes: Array  # (energy, component): derivative of the references by energy
    components: tuple[str, ...]
    photons: Array  # (energy,) in the open area
    dark: Array  # (energy,) dark counts over photons
    variance_factor: Array  # (energy,) what interpolation left of the variance
    i0_relative_errors: Array  # (energy,)
    energy_shift_errors: float
    stray: float
    max_od: float

    @property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the upper triangle of a normal matrix."""
        return np.triu_indices(self.design.shape[1])


def fit_components(
    absorption: xr.Dataset,
    references: xr.Dataset,
    energy_shift_errors: float = 0.0,
    stray_fraction: float = 0.0,
    *,
    baseline: Baseline = "constant",
    max_od: float | None = None,
    reject_chi2: float = 3.0,
) -> xr.Dataset:
    """Fit every pixel by non-negative amounts of the references and a baseline.

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it: ``transmission`` (energy, y, x), NaN
        where not measured, and along energy ``photons``, ``dark``, ``variance_factor``,
        ``i0_relative_errors``.
    references : Dataset, dims (energy,)
        As `spectromap.references.reference_set` makes it.
    energy_shift_errors : float
        Standard error of the energy calibration in eV; goes into the systematic errors.
    stray_fraction : float
        Fraction of the open-area light that the sample cannot absorb.
    baseline : {"none", "constant", "linear"}
        Optical density that does not belong to the references: support film, I0 error.
    max_od : float, optional
        Samples whose modelled optical density lies above this are left out. The default leaves
        them in: their photon weight is small already.
    reject_chi2 : float
        Pixels of a larger reduced chi-squared are flagged ``model_rejected``.

    Returns
    -------
    Dataset, dims (y, x)
        For every component c ``<c>_fraction`` (unconstrained), ``<c>_fraction_errors`` (photon
        noise), ``<c>_fraction_systematic`` (I0 and energy calibration, common to the pixels) and
        ``<c>_fraction_nonnegative`` (for the eye, NaN where nothing is known); ``thickness`` with
        its errors and ``thickness_nonnegative`` in nm; ``offset``; ``chi2`` reduced; ``residual``,
        the median absolute residual in OD; ``max_od``; ``flags``. Also ``<c>_thickness`` and its
        variances and covariances ``<c>_<d>_covariance`` for sums over pixels.

    Raises
    ------
    InputError
        Fewer energies than unknowns, or references on other energies.

    References
    ----------
    P. McCullagh and J. A. Nelder, Generalized Linear Models, 2nd ed. (1989), section 2.5
    (Fisher scoring); C. L. Lawson and R. J. Hanson, Solving Least Squares Problems (1974),
    chapter 23 (non-negative solution).
    """
    stack = absorption["transmission"]
    check_stack(stack.assign_attrs(quantity="optical_density"), name="absorption")
    problem = _problem(
        absorption, references, energy_shift_errors, stray_fraction, baseline, max_od
    )
    shape = stack.shape[1:]
    values = np.asarray(stack.values).reshape(stack.shape[0], -1)
    blocks = [
        _kernel(values[:, start : start + BLOCK], problem)
        for start in range(0, values.shape[1], BLOCK)
    ]
    columns = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    units = "nm" if references.attrs.get("units") == "nm-1" else "1"
    coords = {"y": stack.y, "x": stack.x}
    maps = xr.Dataset(coords=coords)
    for name, column in columns.items():
        array = xr.DataArray(column.reshape(shape), dims=("y", "x"), coords=coords)
        maps[name] = with_units(array, name, _units_of(name, units))
    maps["flags"] = _flags(maps, problem, reject_chi2)
    return maps


def estimate_stray(
    absorption: xr.Dataset,
    references: xr.Dataset,
    stated: float = 0.0,
    *,
    enabled: bool = True,
    max_fraction: float = 0.08,
) -> tuple[float, float]:
    """Fraction of the light that the sample cannot absorb, from thick pixels.

    Light that does not pass the sample (higher orders, leakage, the far wings of the probe) fills
    up the white lines where the sample is thick, which no amount of any reference does. One
    fraction for all pixels is found by the smallest chi-squared.

    Parameters
    ----------
    absorption : Dataset
        As `fit_components` takes it; a sample of absorbing pixels is enough.
    references : Dataset
        As `fit_components` takes it.
    stated : float
        Fraction that is known already; the estimate replaces it only if it is clearly larger.
    enabled : bool
        False takes the stated fraction.
    max_fraction : float
        Largest fraction looked for.

    Returns
    -------
    fraction, error : float
        The fraction to use and its standard error, NaN where the stated one is kept.
    """
    frames = int(np.isfinite(absorption["photons"].values).sum())
    _, _, components = _design(references, "constant")
    if not enabled or frames < len(components) + 4 or absorption["transmission"].size == 0:
        return stated, float("nan")
    grid = np.unique(np.append(stated, stated + max_fraction * np.linspace(0.0, 1.0, 9) ** 2))
    total = np.array([_capped_chi2(absorption, references, float(s)) for s in grid])
    best = int(np.argmin(total))
    if best == 0:
        return stated, float("nan")
    around = slice(max(best - 1, 0), min(best + 2, grid.size))
    if best == grid.size - 1:
        fraction, error = float(grid[-1]), float("nan")
    else:
        curvature, slope, _ = np.polyfit(grid[around], total[around], 2)
        fraction, error = float(-slope / (2 * curvature)), float(1.0 / np.sqrt(curvature))
    # Chi-squared is inflated by what references leave over; a gain must stand out from that too.
    gain = (total[0] - total[best]) / total[best]
    return (fraction, error) if gain > STRAY_GAIN else (stated, float("nan"))


def _capped_chi2(absorption: xr.Dataset, references: xr.Dataset, stray: float) -> float:
    """Sum of chi-squared over pixels, none of which counts too much."""
    maps = fit_components(absorption, references, 0.0, stray)
    degrees = maps["samples_used"].values.astype(float) - len(_design(references, "constant")[2])
    return float(np.nansum(np.minimum(maps["chi2"].values, 9.0) * degrees))


def fit_spectrum(
    od: Array, od_errors: Array, references: xr.Dataset, *, baseline: Baseline = "constant"
) -> tuple[Array, Array, Array]:
    """Fit one mean spectrum by the references, weighted by its errors.

    Parameters
    ----------
    od, od_errors : ndarray, shape (n_energy,)
        Optical density and its standard error; not finite values are left out.
    references : Dataset
        As `spectromap.references.reference_set` makes it.
    baseline : {"none", "constant", "linear"}
        See `fit_components`.

    Returns
    -------
    parameters, covariance, fitted : ndarray
        Amounts of the components, then the baseline; their covariance; the fitted OD.
    """
    design, _, _ = _design(references, baseline)
    good = np.isfinite(od) & np.isfinite(od_errors) & (od_errors > 0)
    if good.sum() < design.shape[1]:
        raise InputError("fewer energies than unknowns", where="spectrum")
    weights = np.where(good, 1.0 / np.where(good, od_errors, 1.0) ** 2, 0.0)
    normal = design.T @ (design * weights[:, None])
    covariance = np.linalg.pinv(normal, hermitian=True)
    parameters = covariance @ (design.T @ (weights * np.where(good, od, 0.0)))
    return parameters, np.asarray(covariance, dtype=float), design @ parameters


def _units_of(name: str, units: str) -> str:
    """Units of an output of the kernel."""
    if name.endswith("_covariance"):
        return "nm2" if units == "nm" else "1"
    return units if "thickness" in name else "1"


def _design(references: xr.Dataset, baseline: Baseline) -> tuple[Array, Array, tuple[str, ...]]:
    """Design matrix, slopes of the references, component names."""
    components = tuple(component_names(references))
    energy = references.energy.values
    columns = [references[name].values for name in components]
    span = max(float(np.ptp(energy)), 1e-9)
    columns += [((energy - energy.mean()) / span) ** k for k in range(N_BASELINE[baseline])]
    slopes = [references[f"{name}_slope"].values for name in components]
    return np.column_stack(columns), np.column_stack(slopes), components


def _problem(
    absorption: xr.Dataset,
    references: xr.Dataset,
    energy_shift_errors: float,
    stray: float,
    baseline: Baseline,
    max_od: float | None,
) -> _Problem:
    """Check that references and stack belong together and collect what the kernel needs."""
    energy = absorption.energy.values
    if references.energy.shape != energy.shape or not np.allclose(references.energy, energy):
        raise InputError(
            "the references are on other energies than the stack",
            where="references",
            remedy="Make them with reference_set(..., energy=stack.energy.values, ...).",
        )
    design, slopes, components = _design(references, baseline)
    if len(energy) < design.shape[1]:
        raise InputError(
            f"{len(energy)} energies cannot fix {design.shape[1]} unknowns"
            f" ({', '.join(components)} and baseline '{baseline}')",
            where="stack",
            remedy="Use fewer references, baseline: none, or a stack of more energies.",
        )
    return _Problem(
        design=design,
        slopes=slopes,
        components=components,
        photons=absorption["photons"].values.astype(float),
        dark=absorption["dark"].values.astype(float),
        variance_factor=absorption["variance_factor"].values.astype(float),
        i0_relative_errors=absorption["i0_relative_errors"].values.astype(float),
        energy_shift_errors=float(np.nan_to_num(energy_shift_errors)),
        stray=stray,
        max_od=np.inf if max_od is None else max_od,
    )


def _padded(values: NDArray[Any]) -> NDArray[Any]:
    """Pixels filled up with empty ones to a multiple of PAD."""
    missing = -values.shape[1] % PAD
    return np.pad(values, ((0, 0), (0, missing)), constant_values=np.nan) if missing else values


def _kernel(transmission: NDArray[Any], problem: _Problem) -> dict[str, NDArray[Any]]:
    """Fit one block of pixels (energy, pixel)."""
    n_pixels = transmission.shape[1]
    data = _padded(transmission).astype(np.float32, copy=False)
    measured = np.isfinite(data) & np.isfinite(problem.photons)[:, None]
    data = np.where(measured, data, np.float32(1.0))
    state = _fisher_scoring(data, measured, problem)
    result = _summarise(state, problem)
    return {name: values[:n_pixels] for name, values in result.items()}


@dataclass
class _State:
    """A fitted block: parameters (parameter, pixel) and what the errors follow from."""

    parameters: Array
    normal: Array  # (parameter, parameter, pixel)
    weights: Samples  # (energy, pixel), inverse variance of the OD
    chi2: Array
    used: Array  # (pixel,) number of samples
    residual: Array
    data_od_max: Array


def _predict(eta: Samples, problem: _Problem) -> tuple[Samples, Samples, Samples]:
    """Transmission, minus its derivative by OD, and its inverse variance, all (energy, pixel)."""
    stray = np.float32(problem.stray)
    slope = np.exp(-np.clip(eta, np.float32(-1.0), np.float32(25.0))) * (np.float32(1.0) - stray)
    model = slope + stray
    scale = (problem.photons / problem.variance_factor).astype(np.float32)[:, None]
    dark = problem.dark.astype(np.float32)[:, None]
    return model, slope, scale / (np.maximum(model, np.float32(MIN_TRANSMISSION)) + dark)


def _normal(weights: Samples, problem: _Problem) -> Array:
    """Normal matrices (parameter, parameter, pixel) of all pixels from one product."""
    rows, columns = problem.pairs
    products = (problem.design[:, rows] * problem.design[:, columns]).astype(np.float32)
    upper = (products.T @ weights).astype(np.float64)
    size = problem.design.shape[1]
    full = np.empty((size, size, weights.shape[1]))
    full[rows, columns] = upper
    full[columns, rows] = upper
    return full


def _cholesky(normal: Array) -> Array:
    """Lower Cholesky factors of all pixels at once; NaN where the matrix is singular.

    The matrices are tiny and many: looping over their elements and working on whole rows of
    pixels is many times faster than a LAPACK call a pixel.
    """
    size = len(normal)
    lower = np.zeros_like(normal)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(size):
            for j in range(i + 1):
                rest = normal[i, j] - sum(lower[i, k] * lower[j, k] for k in range(j))
                if i == j:
                    regular = rest > SINGULAR * normal[i, i]
                    lower[i, i] = np.sqrt(np.where(regular, rest, np.nan))
                else:
                    lower[i, j] = rest / lower[j, j]
    return lower


def _substitute(lower: Array, right: Array) -> Array:
    """Solutions (parameter, pixel) from Cholesky factors."""
    size = len(lower)
    half = np.empty_like(right)
    for i in range(size):
        half[i] = (right[i] - sum(lower[i, k] * half[k] for k in range(i))) / lower[i, i]
    solution = np.empty_like(right)
    for i in reversed(range(size)):
        rest = half[i] - sum(lower[k, i] * solution[k] for k in range(i + 1, size))
        solution[i] = rest / lower[i, i]
    return solution


def _solve(normal: Array, right: Array) -> Array:
    """Solutions (parameter, pixel) of the normal equations; NaN where there is none."""
    return _substitute(_cholesky(normal), right)


def _start(data: Samples, measured: NDArray[np.bool_], problem: _Problem) -> Array:
    """Parameters from the logarithm of the data, weighted by the data."""
    photons = np.where(problem.photons > 0, problem.photons, 1.0)
    floor = np.maximum(2.0 / photons, MIN_TRANSMISSION).astype(np.float32)[:, None]
    absorbed = (data - np.float32(problem.stray)) / np.float32(1.0 - problem.stray)
    od = -np.log(np.maximum(absorbed, floor))
    _, slope, precision = _predict(od, problem)
    weights = np.where(measured, slope**2 * precision, np.float32(0.0))
    right = problem.design.astype(np.float32).T @ (weights * od)
    return _solve(_normal(weights, problem), right.astype(np.float64))


def _fisher_scoring(data: Samples, measured: NDArray[np.bool_], problem: _Problem) -> _State:
    """Iterate the weighted linear fit on the model's own weights until nothing moves."""
    design = problem.design.astype(np.float32)
    parameters = np.nan_to_num(_start(data, measured, problem))
    zero, one = np.float32(0.0), np.float32(1.0)
    # A fixed number of steps: a test on the block would tie a pixel to its neighbours. Solving
    # for the change keeps single precision out of the solution.
    for _ in range(ITERATIONS):
        eta = design @ parameters.astype(np.float32)
        model, slope, precision = _predict(eta, problem)
        kept = measured & (eta <= problem.max_od)
        weights = np.where(kept, slope**2 * precision, zero)
        step = np.clip((model - data) / np.maximum(slope, np.float32(1e-12)), -one, one)
        change = _solve(_normal(weights, problem), (design.T @ (weights * step)).astype(np.float64))
        parameters += np.nan_to_num(change)
    eta = design @ parameters.astype(np.float32)
    model, slope, precision = _predict(eta, problem)
    kept = measured & (eta <= problem.max_od)
    weights = np.where(kept, slope**2 * precision, zero)
    misfit = np.where(kept, data - model, zero)
    od, highest = _observed_od(data, measured, problem)
    return _State(
        parameters=parameters,
        normal=_normal(weights, problem),
        weights=weights,
        chi2=np.sum(misfit**2 * precision, axis=0, dtype=np.float64),
        used=kept.sum(axis=0),
        residual=_median_absolute(np.where(kept, od - eta, np.float32(np.nan))),
        data_od_max=highest,
    )


def _observed_od(
    data: Samples, measured: NDArray[np.bool_], problem: _Problem
) -> tuple[Samples, Array]:
    """Optical density of the data, NaN where it has none, and the largest of each pixel."""
    absorbed = (data - np.float32(problem.stray)) / np.float32(1.0 - problem.stray)
    positive = measured & (absorbed > 0)
    od = np.where(positive, -np.log(np.where(positive, absorbed, np.float32(1.0))), np.nan)
    highest = np.max(np.where(positive, od, -np.inf), axis=0)
    return od.astype(np.float32), np.where(np.isfinite(highest), highest, np.nan)


def _median_absolute(values: Samples) -> Array:
    """Median over energy of |values|, NaN where there is nothing."""
    ordered = np.sort(np.abs(values), axis=0)  # NaN go last
    count = np.isfinite(ordered).sum(axis=0)
    middle = np.maximum(count - 1, 0)
    low = np.take_along_axis(ordered, (middle // 2)[None], axis=0)[0]
    high = np.take_along_axis(ordered, ((middle + 1) // 2)[None], axis=0)[0]
    return np.where(count > 0, 0.5 * (low + high), np.nan)


def _inverse(normal: Array) -> Array:
    """Covariances (parameter, parameter, pixel); NaN where the matrix has no inverse."""
    lower = _cholesky(normal)
    unit = np.zeros(normal.shape[1:])
    columns = []
    for k in range(len(normal)):
        unit[:] = 0.0
        unit[k] = 1.0
        columns.append(_substitute(lower, unit))
    return np.stack(columns, axis=1)


def _nonnegative(state: _State, n_components: int) -> Array:
    """Exact non-negative amounts: the best of all subsets that satisfies the constraint.

    Up to four components have at most sixteen subsets, so enumeration is exact and, over many
    pixels at once, faster than any active-set iteration. Only pixels that violate the constraint
    take part.
    """
    result = np.array(state.parameters[:n_components])
    wrong = np.flatnonzero((result < 0).any(axis=0))
    if wrong.size == 0:
        return result
    normal, parameters = state.normal[:, :, wrong], state.parameters[:, wrong]
    right = np.einsum("ijp,jp->ip", normal, parameters)
    free = list(range(n_components, len(parameters)))
    best = np.full(wrong.size, np.inf)
    found = np.zeros((n_components, wrong.size))
    for count in range(n_components - 1, -1, -1):
        for subset in combinations(range(n_components), count):
            chosen = [*subset, *free]
            trial = np.zeros_like(parameters)
            if chosen:
                trial[chosen] = _solve(normal[np.ix_(chosen, chosen)], right[chosen])
            # At its own solution the quadratic form is minus half the right-hand side times it.
            cost = -np.sum(trial * right, axis=0)
            feasible = np.all(trial[:n_components] >= 0, axis=0) & (cost < best)
            best = np.where(feasible, cost, best)
            found = np.where(feasible, trial[:n_components], found)
    result[:, wrong] = found
    return result


def _systematic(state: _State, covariance: Array, problem: _Problem) -> Array:
    """Covariance of the parameters that the I0 noise and the energy error share over pixels."""
    spread = (state.weights * problem.i0_relative_errors.astype(np.float32)[:, None]) ** 2
    meat = _normal(spread, problem)
    total = _product(_product(covariance, meat), covariance)
    count = len(problem.components)
    slopes = problem.slopes.astype(np.float32) @ state.parameters[:count].astype(np.float32)
    pattern = problem.design.astype(np.float32).T @ (state.weights * slopes)
    moved = np.einsum("ijp,jp->ip", covariance, pattern * problem.energy_shift_errors)
    return np.asarray(total + moved[:, None] * moved[None, :])


def _product(left: Array, right: Array) -> Array:
    """Matrix products of all pixels."""
    return np.asarray(np.einsum("ijp,jkp->ikp", left, right))


def _fractions(amounts: Array) -> tuple[Array, Array]:
    """Fractions and total; NaN where there is nothing to take a fraction of."""
    total = amounts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, amounts / total, np.nan), total


def _fraction_errors(amounts: Array, covariance: Array) -> Array:
    """Standard error of each fraction by linear propagation of the full covariance."""
    fractions, total = _fractions(amounts)
    with np.errstate(divide="ignore", invalid="ignore"):
        # var(f_k) t^2 = C_kk - 2 f_k sum_j C_kj + f_k^2 sum_ij C_ij
        to_all = covariance.sum(axis=1)
        own = np.array([covariance[k, k] for k in range(len(amounts))])
        variance = own - 2.0 * fractions * to_all + fractions**2 * to_all.sum(axis=0)
        return np.where(total > 0, np.sqrt(np.maximum(variance, 0.0)) / total, np.nan)


def _summarise(state: _State, problem: _Problem) -> dict[str, NDArray[Any]]:
    """Named outputs of one block."""
    count, size = len(problem.components), problem.design.shape[1]
    degrees = state.used - size
    covariance = _inverse(state.normal)
    frames = int(np.isfinite(problem.photons).sum())
    covariance[:, :, (degrees < 0) | (state.used < MIN_SHARE * frames)] = np.nan
    shared = _systematic(state, covariance, problem)[:count, :count]
    covariance = covariance[:count, :count]
    usable = np.asarray(np.isfinite(covariance).all(axis=(0, 1)))
    amounts = np.where(usable, state.parameters[:count], np.nan)
    positive = np.where(usable, _nonnegative(state, count), np.nan)
    fractions, total = _fractions(amounts)
    shown, shown_total = _fractions(positive)
    random, systematic = (_fraction_errors(amounts, c) for c in (covariance, shared))
    result: dict[str, NDArray[Any]] = {}
    for k, name in enumerate(problem.components):
        result[f"{name}_fraction"] = fractions[k]
        result[f"{name}_fraction_errors"] = random[k]
        result[f"{name}_fraction_systematic"] = systematic[k]
        seen = random[k] < SHOWN_ERROR
        result[f"{name}_fraction_nonnegative"] = np.where(seen, shown[k], np.nan)
        result[f"{name}_thickness"] = amounts[k]
        for other in range(k, count):
            result[f"{name}_{problem.components[other]}_covariance"] = covariance[k, other]
    result["thickness"] = total
    result["thickness_errors"] = np.sqrt(np.maximum(covariance.sum(axis=(0, 1)), 0.0))
    result["thickness_systematic"] = np.sqrt(np.maximum(shared.sum(axis=(0, 1)), 0.0))
    result["thickness_nonnegative"] = shown_total
    offset = state.parameters[count] if size > count else np.zeros(total.shape)
    result["offset"] = np.where(usable, offset, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        result["chi2"] = np.where(usable & (degrees > 0), state.chi2 / degrees, np.nan)
    result["residual"] = np.where(usable, state.residual, np.nan)
    result["max_od"] = state.data_od_max
    result["samples_used"] = state.used.astype(np.float64)
    return {name: values.astype(np.float32) for name, values in result.items()}


def _below_zero(maps: xr.Dataset, component: str) -> NDArray[np.bool_]:
    """Where an amount is negative beyond what photon noise does."""
    amount = maps[f"{component}_thickness"].values
    sigma = np.sqrt(maps[f"{component}_{component}_covariance"].values)
    return np.asarray(amount < -NEGATIVE_SIGMA * sigma)


def _flags(maps: xr.Dataset, problem: _Problem, reject_chi2: float) -> xr.DataArray:
    """Flag bits of every pixel, see `spectromap.schema.FLAGS`."""
    frames = int(np.isfinite(problem.photons).sum())
    conditions: dict[str, Callable[[], Any]] = {
        "no_data": lambda: ~np.isfinite(maps["thickness"].values),
        "energies_left_out": lambda: maps["samples_used"].values < frames,
        "model_rejected": lambda: maps["chi2"].values > reject_chi2,
        "negative_component": lambda: np.any(
            [_below_zero(maps, name) for name in problem.components], axis=0
        ),
    }
    bits = np.zeros(maps["thickness"].shape, dtype=np.int32)
    for name, condition in conditions.items():
        bits |= np.where(condition(), FLAGS[name], 0).astype(np.int32)
    flags = xr.DataArray(bits, dims=("y", "x"), coords={"y": maps.y, "x": maps.x}, name="flags")
    flags.attrs["units"] = "1"
    return flags
