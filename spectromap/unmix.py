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

from spectromap.schema import FLAGS, InputError, check_stack, with_units

__all__ = ["fit_components", "fit_spectrum"]

Baseline = Literal["none", "constant", "linear"]
Array = NDArray[np.float64]

BLOCK = 8192  # pixels in one pass: the working set stays in the cache
PAD = 64  # matrix products over multiples of this are the same for any chunking
MIN_TRANSMISSION = 1e-4
MAX_ITERATIONS = 6
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
        ``<c>_fraction_nonnegative`` (for the eye); ``thickness`` with its errors and
        ``thickness_nonnegative`` in nm; ``offset``; ``chi2`` reduced; ``residual``, the median
        absolute residual in OD; ``max_od``; ``flags``. Also ``<c>_thickness`` and its variances and
        covariances ``<c>_<d>_covariance`` for sums over pixels.

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
    components = tuple(str(n) for n in references.data_vars if not str(n).endswith("_slope"))
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
    data = _padded(transmission).astype(np.float64)
    measured = np.isfinite(data) & np.isfinite(problem.photons)[:, None]
    data = np.where(measured, data, 1.0)
    state = _fisher_scoring(data, measured, problem)
    result = _summarise(state, problem)
    return {name: values[:n_pixels] for name, values in result.items()}


@dataclass
class _State:
    """A fitted block: parameters (pixel, parameter) and what the errors follow from."""

    parameters: Array
    normal: Array  # (pixel, parameter, parameter)
    right: Array  # (pixel, parameter)
    weights: Array  # (energy, pixel), inverse variance of the OD
    chi2: Array
    used: Array  # (pixel,) number of samples
    residual: Array
    data_od_max: Array


def _predict(eta: Array, problem: _Problem) -> tuple[Array, Array, Array]:
    """Transmission, its derivative by OD, and its variance, all (energy, pixel)."""
    absorbed = np.exp(-np.clip(eta, -1.0, 25.0)) * (1.0 - problem.stray)
    model = absorbed + problem.stray
    photons = problem.photons[:, None]
    variance = (np.maximum(model, MIN_TRANSMISSION) + problem.dark[:, None]) / photons
    return model, -absorbed, variance * problem.variance_factor[:, None]


def _normal(weights: Array, problem: _Problem) -> Array:
    """Normal matrices (pixel, parameter, parameter) of all pixels from one product."""
    rows, columns = problem.pairs
    products = problem.design[:, rows] * problem.design[:, columns]
    upper = products.T @ weights
    size = problem.design.shape[1]
    full = np.empty((weights.shape[1], size, size))
    full[:, rows, columns] = upper.T
    full[:, columns, rows] = upper.T
    return full


def _solve(normal: Array, right: Array) -> Array:
    """Solutions of all pixels; NaN where the matrix has no inverse."""
    scale = np.sqrt(np.maximum(np.einsum("pii->pi", normal), 1e-300))
    scaled = normal / scale[:, :, None] / scale[:, None, :]
    sick = np.linalg.cond(scaled) > 1e12 if scaled.shape[1] > 1 else scale[:, 0] < 1e-140
    scaled[sick] = np.eye(scaled.shape[1])
    solution = np.linalg.solve(scaled, (right / scale)[:, :, None])[:, :, 0] / scale
    solution[sick] = np.nan
    return np.asarray(solution)


def _start(data: Array, measured: NDArray[np.bool_], problem: _Problem) -> Array:
    """Parameters from the logarithm of the data, weighted by the data."""
    floor = np.maximum(2.0 / np.where(problem.photons > 0, problem.photons, 1.0), MIN_TRANSMISSION)
    absorbed = (data - problem.stray) / (1.0 - problem.stray)
    clipped = np.maximum(absorbed, floor[:, None])
    _, _, variance = _predict(-np.log(clipped), problem)
    weights = np.where(measured, clipped**2 / variance, 0.0)
    return _solve(_normal(weights, problem), (problem.design.T @ (weights * -np.log(clipped))).T)


def _fisher_scoring(data: Array, measured: NDArray[np.bool_], problem: _Problem) -> _State:
    """Iterate the weighted linear fit on the model's own weights until nothing moves."""
    parameters = np.nan_to_num(_start(data, measured, problem))
    # A fixed number of steps: a test on the block would tie a pixel to its neighbours.
    for _ in range(MAX_ITERATIONS):
        eta = problem.design @ parameters.T
        model, slope, variance = _predict(eta, problem)
        kept = measured & (eta <= problem.max_od)
        weights = np.where(kept, slope**2 / variance, 0.0)
        step = np.clip((data - model) / np.where(slope < -1e-12, slope, -1e-12), -1.0, 1.0)
        working = eta + step
        normal = _normal(weights, problem)
        right = (problem.design.T @ (weights * working)).T
        parameters = np.nan_to_num(_solve(normal, right))
    eta = problem.design @ parameters.T
    model, slope, variance = _predict(eta, problem)
    misfit = np.where(kept, data - model, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        od = -np.log((data - problem.stray) / (1.0 - problem.stray))
        residual = _median_absolute(np.where(kept & np.isfinite(od), od - eta, np.nan))
        highest = np.max(np.where(measured & np.isfinite(od), od, -np.inf), axis=0)
    return _State(
        parameters=parameters,
        normal=normal,
        right=right,
        weights=weights,
        chi2=np.sum(misfit**2 / variance, axis=0),
        used=kept.sum(axis=0),
        residual=residual,
        data_od_max=np.where(np.isfinite(highest), highest, np.nan),
    )


def _median_absolute(values: Array) -> Array:
    """Median over energy of |values|, NaN where there is nothing."""
    ordered = np.sort(np.abs(values), axis=0)  # NaN go last
    count = np.isfinite(ordered).sum(axis=0)
    middle = np.maximum(count - 1, 0)
    low = np.take_along_axis(ordered, (middle // 2)[None], axis=0)[0]
    high = np.take_along_axis(ordered, ((middle + 1) // 2)[None], axis=0)[0]
    return np.where(count > 0, 0.5 * (low + high), np.nan)


def _inverse(normal: Array) -> Array:
    """Covariances of all pixels; NaN where the matrix has no inverse."""
    size = normal.shape[1]
    columns = [
        _solve(normal.copy(), np.broadcast_to(np.eye(size)[k], normal.shape[:2]))
        for k in range(size)
    ]
    return np.stack(columns, axis=2)


def _nonnegative(state: _State, n_components: int) -> Array:
    """Exact non-negative amounts: the best of all subsets that satisfies the constraint.

    Up to four components have at most sixteen subsets, so enumeration is exact and, over many
    pixels at once, faster than any active-set iteration.
    """
    size = state.parameters.shape[1]
    free = list(range(n_components, size))
    best = np.full(state.parameters.shape[0], np.inf)
    result = np.zeros_like(state.parameters)
    for count in range(n_components, -1, -1):
        for subset in combinations(range(n_components), count):
            chosen = [*subset, *free]
            trial = np.zeros_like(result)
            if chosen:
                block = state.normal[:, chosen][:, :, chosen]
                trial[:, chosen] = _solve(block, state.right[:, chosen])
            cost = np.einsum("pi,pij,pj->p", trial, state.normal, trial)
            cost -= 2.0 * np.einsum("pi,pi->p", trial, state.right)
            with np.errstate(invalid="ignore"):
                feasible = np.all(trial[:, :n_components] >= 0, axis=1) & (cost < best)
            best = np.where(feasible, cost, best)
            result = np.where(feasible[:, None], trial, result)
    return result[:, :n_components]


def _systematic(state: _State, covariance: Array, problem: _Problem) -> Array:
    """Covariance of the parameters that the I0 noise and the energy error share over pixels."""
    rows, columns = problem.pairs
    products = problem.design[:, rows] * problem.design[:, columns]
    spread = (state.weights * problem.i0_relative_errors[:, None]) ** 2
    meat = np.empty_like(covariance)
    upper = (products.T @ spread).T
    meat[:, rows, columns] = upper
    meat[:, columns, rows] = upper
    total = covariance @ meat @ covariance
    slopes = problem.slopes @ state.parameters[:, : len(problem.components)].T
    pattern = (problem.design.T @ (state.weights * slopes)).T * problem.energy_shift_errors
    moved = np.einsum("pij,pj->pi", covariance, pattern)
    return np.asarray(total + moved[:, :, None] * moved[:, None, :])


def _fractions(amounts: Array) -> tuple[Array, Array]:
    """Fractions and total; NaN where there is nothing to take a fraction of."""
    total = amounts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions = np.where(total[:, None] > 0, amounts / total[:, None], np.nan)
    return fractions, total


def _fraction_errors(amounts: Array, covariance: Array) -> Array:
    """Standard error of each fraction by linear propagation of the full covariance."""
    count = amounts.shape[1]
    total = amounts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        jacobian = -amounts[:, :, None] / total[:, None, None] ** 2 * np.ones(count)
        jacobian += np.eye(count) / total[:, None, None]
        variance = np.einsum("pki,pij,pkj->pk", jacobian, covariance, jacobian)
        return np.where(total[:, None] > 0, np.sqrt(np.maximum(variance, 0.0)), np.nan)


def _summarise(state: _State, problem: _Problem) -> dict[str, NDArray[Any]]:
    """Named outputs of one block."""
    count = len(problem.components)
    degrees = state.used - problem.design.shape[1]
    covariance = _inverse(state.normal)[:, :, :]
    covariance[degrees < 0] = np.nan
    shared = _systematic(state, covariance, problem)[:, :count, :count]
    covariance = covariance[:, :count, :count]
    usable = np.asarray(np.isfinite(covariance).all(axis=(1, 2)))
    amounts = np.where(usable[:, None], state.parameters[:, :count], np.nan)
    positive = np.where(usable[:, None], _nonnegative(state, count), np.nan)
    fractions, total = _fractions(amounts)
    shown, shown_total = _fractions(positive)
    random, systematic = (_fraction_errors(amounts, c) for c in (covariance, shared))
    result: dict[str, NDArray[Any]] = {}
    for k, name in enumerate(problem.components):
        result[f"{name}_fraction"] = fractions[:, k]
        result[f"{name}_fraction_errors"] = random[:, k]
        result[f"{name}_fraction_systematic"] = systematic[:, k]
        result[f"{name}_fraction_nonnegative"] = shown[:, k]
        result[f"{name}_thickness"] = amounts[:, k]
        for other in range(k, count):
            key = f"{name}_{problem.components[other]}_covariance"
            result[key] = covariance[:, k, other]
    result["thickness"] = total
    result["thickness_errors"] = np.sqrt(np.maximum(covariance.sum(axis=(1, 2)), 0.0))
    result["thickness_systematic"] = np.sqrt(np.maximum(shared.sum(axis=(1, 2)), 0.0))
    result["thickness_nonnegative"] = shown_total
    if problem.design.shape[1] > count:
        result["offset"] = np.where(usable, state.parameters[:, count], np.nan)
    else:
        result["offset"] = np.zeros(total.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        result["chi2"] = np.where(usable & (degrees > 0), state.chi2 / degrees, np.nan)
    result["residual"] = np.where(usable, state.residual, np.nan)
    result["max_od"] = state.data_od_max
    result["samples_used"] = state.used.astype(np.float64)
    return {name: values.astype(np.float32) for name, values in result.items()}


def _flags(maps: xr.Dataset, problem: _Problem, reject_chi2: float) -> xr.DataArray:
    """Flag bits of every pixel, see `spectromap.schema.FLAGS`."""
    frames = int(np.isfinite(problem.photons).sum())
    conditions: dict[str, Callable[[], Any]] = {
        "no_data": lambda: ~np.isfinite(maps["thickness"].values),
        "energies_left_out": lambda: maps["samples_used"].values < frames,
        "model_rejected": lambda: maps["chi2"].values > reject_chi2,
        "negative_component": lambda: np.any(
            [maps[f"{c}_thickness"].values < 0 for c in problem.components], axis=0
        ),
    }
    bits = np.zeros(maps["thickness"].shape, dtype=np.int32)
    for name, condition in conditions.items():
        bits |= np.where(condition(), FLAGS[name], 0).astype(np.int32)
    flags = xr.DataArray(bits, dims=("y", "x"), coords={"y": maps.y, "x": maps.x}, name="flags")
    flags.attrs["units"] = "1"
    return flags
