"""Composition of every pixel: how much of each reference, with errors that cover.

The model of a pixel is Beer-Lambert with a baseline,
``OD(E) = sum_k t_k r_k(E) + b0 [+ b1 (E - E0)]``, seen through whatever light cannot be absorbed
(the stray fraction) and photon noise. It is fitted to the *transmission*, not to its logarithm,
by Fisher scoring with the variance that the model itself predicts. The logarithm of few counts is
biased and its weights follow the noise; this way thick pixels need no special treatment.

The loops over pixels are in `spectromap._unmix_kernel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import _unmix_kernel as kernel
from spectromap.schema import FLAGS, LOG, InputError, check_stack, component_names

__all__ = ["estimate_stray", "fit_components", "fit_spectrum"]

Baseline = Literal["none", "constant", "linear"]
Array = NDArray[np.float64]
Samples = NDArray[np.float32]

N_BASELINE = {"none": 0, "constant": 1, "linear": 2}
#: Share of chi-squared by which fitted stray light must improve the fit to be believed.
STRAY_GAIN = 0.01
#: A column this small a part of which is its own cannot be told from the others.
COLLINEAR = 1e-6
#: Energies count as alike if no reference differs by more than this part of its range ...
ALIKE = 0.05
#: ... and the sloping baseline by this part.
ALIKE_SLOPE = 0.15


def fit_components(
    absorption: xr.Dataset,
    references: xr.Dataset,
    energy_shift_errors: float = 0.0,
    stray_fraction: float = 0.0,
    shift_errors: Array | None = None,
    log_gradient: NDArray[Any] | None = None,
    *,
    baseline: Baseline = "constant",
    max_od: float | None = None,
    reject_chi2: float = 3.0,
    sum_to_one: bool = False,
) -> xr.Dataset:
    """Fit every pixel by non-negative amounts of the references and a baseline.

    Parameters
    ----------
    absorption : Dataset
        As `spectromap.absorption.transmission` makes it: ``transmission`` (energy, y, x), NaN
        where not measured, and along energy ``photons``, ``dark``, ``variance_factor``,
        ``i0_relative_errors``.
    references : Dataset, dims (energy,)
        Up to four, as `spectromap.references.reference_set` makes them. ``attrs["relative_error"]``
        of a reference is the standard error of its scale; it goes into the systematic errors.
    energy_shift_errors : float
        Standard error of the energy calibration in eV; goes into the systematic errors.
    stray_fraction : float
        Fraction of the open-area light that the sample cannot absorb.
    shift_errors : ndarray, shape (n_energy, 2), optional
        Standard errors of the frame shifts along y and x in nm, independent of each other; with
        `log_gradient` they go into the systematic errors. NaN counts as none.
    log_gradient : ndarray, shape (2, ny, nx), optional
        Relative slope of the optical density along y and x, d ln(OD)/dy and d ln(OD)/dx in nm-1.
    baseline : {"none", "constant", "linear"}
        Optical density that does not belong to the references: support film, I0 error.
    max_od : float, optional
        Samples whose modelled optical density lies above this are left out. The default leaves
        them in: their photon weight is small already.
    reject_chi2 : float
        Pixels of a larger reduced chi-squared are flagged ``model_rejected``.
    sum_to_one : bool
        The amounts add up to one: for references that are optical densities of the pure
        components at the very thickness of the sample, the same all over the field. Amounts are
        then fractions of that thickness, the constraint holds for the unconstrained and the
        non-negative solution, and the errors are those under the constraint (the total has none).

    Returns
    -------
    Dataset, dims (y, x)
        For every component c ``<c>_fraction`` (unconstrained), ``<c>_fraction_errors`` (photon
        noise), ``<c>_fraction_systematic`` (what the pixels share: I0, shifts, energy calibration,
        scales of the references) and ``<c>_fraction_nonnegative`` (for the eye, NaN where nothing
        is known); ``thickness`` with its errors and ``thickness_nonnegative`` in nm; ``offset``,
        the constant part of the baseline; ``chi2`` reduced; ``residual``, the root mean square
        residual in OD, weighted as in the fit; ``max_od``, the largest OD of the data; ``flags``.
        Also ``<c>_thickness`` and its variances and covariances ``<c>_<d>_covariance`` for sums
        over pixels.

    Raises
    ------
    InputError
        Fewer energies than unknowns, references on other energies, more than four references,
        references that cannot be told apart, or `sum_to_one` with references per nm.

    Notes
    -----
    The variance of a transmission T is ``variance_factor (T + dark) / photons``. The systematic
    covariance is ``A S A^T``, A the change of the amounts with the optical densities of the fit
    and S the covariance of the optical densities from noise in I0 (independent from energy to
    energy), from errors of the shifts (``OD^2 sum_i (d ln(OD)/dx_i sigma_i)^2``, likewise), from
    the error of the energies (``dOD/dE sigma_E``, one for all) and from the references' scales.

    References
    ----------
    P. McCullagh and J. A. Nelder, Generalized Linear Models, 2nd ed. (1989), section 2.5
    (Fisher scoring); C. L. Lawson and R. J. Hanson, Solving Least Squares Problems (1974),
    chapters 20 to 23 (equality constraint, non-negative solution).
    """
    stack = absorption["transmission"]
    quantity: Any = stack.attrs.get("quantity")
    check_stack(stack, [quantity], name="absorption")
    design = _design_of(absorption, references, baseline, sum_to_one)
    moving = shift_errors is not None and log_gradient is not None
    shifts = np.zeros((stack.shape[0], 2)) if shift_errors is None else np.asarray(shift_errors)
    frames = _frames_of(absorption, references, design, energy_shift_errors, shifts)
    limits = {
        "stray": np.float32(stray_fraction),
        "lowest": np.float32(-np.inf if max_od is None else -max_od / kernel.LN2),
        "rejected": np.float32(reject_chi2),
    }
    shared = _shared(design, frames, moving=moving, **limits)
    names = _map_names(design.components)
    pixels = int(np.prod(stack.shape[1:]))
    values = np.ascontiguousarray(stack.values, dtype=np.float32).reshape(-1, pixels)
    maps = np.empty((len(names), pixels), dtype=np.float32)
    flags = np.empty(pixels, dtype=np.int32)
    motion = _motion(log_gradient, stack.shape)
    kernel.fit_pixels(values, motion, shared, kernel.make_scratch(shared, len(names)), maps, flags)
    units = "nm" if references.attrs.get("units") == "nm-1" else "1"
    coords = {"y": stack.y, "x": stack.x}
    result: dict[str, Any] = {
        name: (("y", "x"), column.reshape(stack.shape[1:]), {"units": _units_of(name, units)})
        for name, column in zip(names, maps, strict=True)
    }
    result["flags"] = (("y", "x"), flags.reshape(stack.shape[1:]), {"units": "1"})
    return xr.Dataset(result, coords=coords)


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
        As `fit_components` takes it; a sample of absorbing pixels is enough, best of pixels
        around which the thickness hardly changes: light of thin neighbours mixed in by the optics
        looks like stray light too.
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
    if (
        not enabled
        or frames < len(component_names(references)) + 4
        or absorption["transmission"].size == 0
    ):
        return stated, float("nan")
    grid = np.unique(np.append(stated, stated + max_fraction * np.linspace(0.0, 1.0, 9) ** 2))
    total = np.array([_capped_chi2(absorption, references, float(s)) for s in grid])
    best = int(np.argmin(total))
    if best == 0:
        return stated, float("nan")
    if best == grid.size - 1:
        # No end of it: then it is not stray light that the spectra want, but another model.
        LOG.warning("the spectra of thick pixels are flattened by more than stray light would do")
        return stated, float("nan")
    around = slice(best - 1, best + 2)
    curvature, slope, _ = np.polyfit(grid[around], total[around], 2)
    fraction, error = float(-slope / (2 * curvature)), float(1.0 / np.sqrt(curvature))
    # Chi-squared is inflated by what references leave over; a gain must stand out from that too.
    gain = (total[0] - total[best]) / total[best]
    return (fraction, error) if gain > STRAY_GAIN else (stated, float("nan"))


def _capped_chi2(absorption: xr.Dataset, references: xr.Dataset, stray: float) -> float:
    """Sum of chi-squared over pixels, none of which counts too much."""
    maps = fit_components(absorption, references, 0.0, stray)
    degrees = maps["samples_used"].values.astype(float) - len(component_names(references)) - 1
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
    design = design_matrix(references, baseline)
    good = np.isfinite(od) & np.isfinite(od_errors) & (od_errors > 0)
    if good.sum() < design.shape[1]:
        raise InputError("fewer energies than unknowns", where="spectrum")
    weights = np.where(good, 1.0 / np.where(good, od_errors, 1.0) ** 2, 0.0)
    normal = design.T @ (design * weights[:, None])
    covariance = np.linalg.pinv(normal, hermitian=True)
    parameters = covariance @ (design.T @ (weights * np.where(good, od, 0.0)))
    return parameters, np.asarray(covariance, dtype=float), design @ parameters


def _units_of(name: str, units: str) -> str:
    """Units of a map."""
    if name.endswith("_covariance"):
        return "nm2" if units == "nm" else "1"
    return units if "thickness" in name else "1"


def _map_names(components: tuple[str, ...]) -> list[str]:
    """Maps in the order in which the compiled loops have them."""
    kinds = ("fraction", "fraction_errors", "fraction_systematic", "fraction_nonnegative")
    totals = ((), ("thickness_errors",), ("thickness_systematic",), ("thickness_nonnegative",))
    names: list[str] = []
    for kind, total in zip(kinds, totals, strict=True):
        names += [*(f"{name}_{kind}" for name in components), *total]
    names += [*(f"{name}_thickness" for name in components), "thickness"]
    for k, name in enumerate(components):
        names += [f"{other}_{name}_covariance" for other in components[: k + 1]]
    return [*names, "offset", "chi2", "residual", "samples_used", "max_od"]


def design_matrix(references: xr.Dataset, baseline: Baseline) -> Array:
    """References, then the baseline: a constant and a slope over the range of the energies.

    Parameters
    ----------
    references : Dataset
        As `spectromap.references.reference_set` makes it.
    baseline : {"none", "constant", "linear"}
        See `fit_components`.

    Returns
    -------
    ndarray, shape (n_energy, n_parameter)
        The columns that `fit_spectrum` weighs by its parameters.
    """
    energy = references.energy.values
    columns = [references[name].values for name in component_names(references)]
    span = max(float(np.ptp(energy)), 1e-9)
    columns += [((energy - energy.mean()) / span) ** k for k in range(N_BASELINE[baseline])]
    return np.column_stack(columns)


@dataclass(frozen=True)
class _Design:
    """The linear model of the optical density: ``known + columns @ parameters``."""

    components: tuple[str, ...]
    columns: Array  # (energy, parameter)
    known: Array  # (energy,)
    amounts: Array  # (component, parameter)
    constant: Array  # (component,): amounts are constant + amounts @ parameters
    offset: Array  # (parameter,): the constant part of the baseline
    rescaled: Array  # (component, component): what the scale of a reference does to the amounts
    spectra: Array  # (energy, component) the references themselves


def _design_of(
    absorption: xr.Dataset, references: xr.Dataset, baseline: Baseline, sum_to_one: bool
) -> _Design:
    """Check that references and stack belong together and set up the linear model."""
    energy, components = absorption.energy.values, tuple(component_names(references))
    if references.energy.shape != energy.shape or not np.allclose(references.energy, energy):
        raise InputError(
            "the references are on other energies than the stack",
            where="references",
            remedy="Make them with reference_set(..., energy=stack.energy.values, ...).",
        )
    columns, count = design_matrix(references, baseline), len(components)
    if count > kernel.MAX_COMPONENTS:
        raise InputError(
            f"{count} references; the fit takes up to {kernel.MAX_COMPONENTS}",
            where="references",
            remedy="Leave out or join those that are alike.",
        )
    spectra = columns[:, :count].copy()
    known, amounts = np.zeros(len(energy)), np.eye(count, columns.shape[1])
    constant, rescaled = np.zeros(count), np.eye(count)
    if sum_to_one:
        _check_sum_to_one(references)
        # The last amount is one minus the others.
        known = columns[:, count - 1].copy()
        columns = np.delete(columns, count - 1, axis=1)
        columns[:, : count - 1] -= known[:, None]
        amounts = np.delete(amounts, count - 1, axis=1)
        amounts[-1, : count - 1] = -1.0
        constant[-1] = 1.0
        rescaled[-1] = -1.0
        rescaled[:, -1] = 0.0
    if len(energy) < columns.shape[1]:
        raise InputError(
            f"{len(energy)} energies cannot fix {columns.shape[1]} unknowns"
            f" ({', '.join(components)} and baseline '{baseline}')",
            where="stack",
            remedy="Use fewer references, baseline: none, or a stack of more energies.",
        )
    offset = np.zeros(columns.shape[1])
    if N_BASELINE[baseline]:
        offset[-N_BASELINE[baseline]] = 1.0
    return _Design(components, columns, known, amounts, constant, offset, rescaled, spectra)


def _check_sum_to_one(references: xr.Dataset) -> None:
    if references.attrs.get("units") == "nm-1" or len(component_names(references)) < 2:
        raise InputError(
            "sum_to_one takes two or more references in optical density of the sample's own"
            " thickness, not per nm",
            where="fit.sum_to_one",
            remedy="Leave it out: amounts per nm add up to the thickness, which is fitted.",
        )


@dataclass(frozen=True)
class _Frames:
    """What is known of every energy, one row each."""

    scale: Array  # photons over what interpolation left of the variance, 0: not used
    photons: Array
    dark: Array
    i0_variance: Array
    shift_variance: Array  # (energy, 2)
    slopes: Array  # (energy, component): change of the references by the energy error
    scale_errors: Array  # (component,)
    measured: int


def _frames_of(
    absorption: xr.Dataset,
    references: xr.Dataset,
    design: _Design,
    energy_error: float,
    shift_errors: Array,
) -> _Frames:
    """Collect the noise and the errors of every energy."""
    photons = absorption["photons"].values.astype(float)
    measured = np.isfinite(photons)
    used = measured & (photons > 0)
    factor = absorption["variance_factor"].values.astype(float)
    names = design.components
    slopes = np.stack([references[f"{name}_slope"].values for name in names], axis=1)
    relative = [references[name].attrs.get("relative_error", 0.0) for name in names]
    return _Frames(
        scale=np.where(used, np.where(used, photons, 0.0) / factor, 0.0),
        photons=np.where(used, photons, 0.0),
        dark=absorption["dark"].values.astype(float),
        i0_variance=np.nan_to_num(absorption["i0_relative_errors"].values.astype(float)) ** 2,
        shift_variance=np.nan_to_num(shift_errors.astype(float)) ** 2,
        slopes=slopes * np.nan_to_num(float(energy_error)),
        scale_errors=np.nan_to_num(np.array(relative, dtype=float)),
        measured=int(measured.sum()),
    )


def _orthonormal(columns: Array, scale: Array) -> tuple[Array, Array]:
    """Basis of the columns, and the columns' parameters from those of the basis.

    The baseline comes first in the orthogonalisation: the parameters of the components then do
    not depend on its own.
    """
    weight = np.sqrt(scale / max(float(scale.max()), 1e-30))[:, None]
    length = np.linalg.norm(columns * weight, axis=0)
    length[length == 0] = 1.0
    upper = np.asarray(np.linalg.qr((columns * weight / length)[:, ::-1], mode="r"))
    if upper.shape[0] < columns.shape[1] or not (np.abs(np.diag(upper)) > COLLINEAR).all():
        raise InputError(
            "two references, or one and the baseline, are the same at the energies that were"
            " measured, so their amounts cannot be told apart",
            where="references",
            remedy="Leave one of them out.",
        )
    back = np.linalg.inv(upper)[::-1, ::-1] / length[:, None]
    return columns @ back, back


def _classes(design: _Design, used: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Energies in classes inside which all references are nearly the same."""
    extent = np.ptp(design.spectra[used], axis=0)
    features = design.spectra / np.where(extent > 0, ALIKE * extent, 1.0)
    if np.ptp(design.columns[:, -1]) > 0 and design.columns.shape[1] - _n_free(design) == 2:
        features = np.column_stack([features, design.columns[:, -1] / ALIKE_SLOPE])
    members: list[list[int]] = []
    lowest, highest = np.empty((2, len(used), features.shape[1]))
    for k in used:
        low = np.minimum(lowest[: len(members)], features[k])
        high = np.maximum(highest[: len(members)], features[k])
        fits = np.flatnonzero(((high - low) <= 1.0).all(axis=1))
        if fits.size:
            group = int(fits[0])
            members[group].append(int(k))
            lowest[group], highest[group] = low[group], high[group]
        else:
            lowest[len(members)] = highest[len(members)] = features[k]
            members.append([int(k)])
    return [np.array(group, dtype=np.intp) for group in members]


def _factors(values: Array) -> Samples:
    """Factors of sums over energies or classes, (sum, energy), padded with zeros."""
    count, sums = values.shape
    result = np.zeros((sums + sums % 2, count + -count % kernel.ENERGIES), dtype=np.float32)
    result[:sums, :count] = values.T
    return result


def _class_means(frames: _Frames, classes: list[NDArray[np.intp]], values: Array) -> Array:
    """Means over the classes of energies, weighted by photons, (class, ...)."""
    weights = [frames.scale[group] / frames.scale[group].sum() for group in classes]
    return np.array([w @ values[g] for w, g in zip(weights, classes, strict=True)])


def _shared(design: _Design, frames: _Frames, *, stray: np.float32, **limits: Any) -> kernel.Shared:
    """Collect what the compiled loops need."""
    basis, back = _orthonormal(design.columns, frames.scale)
    classes = _classes(design, np.flatnonzero(frames.scale > 0))
    order, size = np.concatenate(classes), basis.shape[1]
    i, j = np.tril_indices(size)
    products = [basis[:, i] * basis[:, j]]
    constrained, moved = bool(design.constant.any()), bool(frames.slopes.any())
    if constrained:
        products.append(basis * design.known[:, None])
    slopes = sum(part.shape[1] for part in products)
    if moved:
        products += [basis * slope[:, None] for slope in frames.slopes.T]
    table = np.zeros((len(order), kernel.ENERGY_COLUMNS), dtype=np.float32)
    table[:, kernel.KNOWN_LOG], table[:, kernel.SCALE] = (
        -design.known[order] / kernel.LN2,
        frames.scale[order],
    )
    table[:, kernel.DARK], table[:, kernel.I0] = frames.dark[order], frames.i0_variance[order]
    table[:, [kernel.SHIFT_Y, kernel.SHIFT_X]] = frames.shift_variance[order] * kernel.LN2**2
    table[:, kernel.BASIS : kernel.BASIS + size] = -basis[order] / kernel.LN2
    photons, total = (
        np.array([values[group].sum() for group in classes])
        for values in (frames.photons, frames.scale)
    )
    floor = np.maximum(2.0 / photons, kernel.MIN_TRANSMISSION) * (1.0 - stray)
    known, dark, columns, means = (
        _class_means(frames, classes, values)
        for values in (design.known, frames.dark, basis, np.column_stack(products))
    )
    return kernel.Shared(
        order=order,
        ends=np.cumsum([len(group) for group in classes]),
        energies=table,
        columns=_factors(basis[order]),
        classes=np.column_stack([known, total, dark, floor]).astype(np.float32),
        class_columns=_factors(columns),
        products=_factors(means),
        known=len(i) if constrained else 0,
        slopes=slopes if moved else 0,
        amounts=(design.amounts @ back).astype(np.float32),
        constant=design.constant.astype(np.float32),
        rescaled=design.rescaled.astype(np.float32),
        scale_errors=frames.scale_errors.astype(np.float32),
        offset=(design.offset @ back).astype(np.float32),
        stray=stray,
        frames=np.float32(frames.measured),
        least=np.float32(0.5 if constrained else -np.inf),
        bits=np.array([FLAGS[name] for name in kernel.RAISED], dtype=np.int32),
        **limits,
    )


def _n_free(design: _Design) -> int:
    """Number of parameters that are not baseline."""
    return len(design.components) - int(design.constant.any())


def _motion(log_gradient: NDArray[Any] | None, shape: tuple[int, ...]) -> Samples:
    """Relative slopes of the optical density (2, pixel)."""
    if log_gradient is None:
        return np.zeros((2, 0), dtype=np.float32)
    if log_gradient.shape != (2, *shape[1:]):
        raise InputError(
            f"it has shape {log_gradient.shape}, not {(2, *shape[1:])}", where="log_gradient"
        )
    return np.ascontiguousarray(log_gradient, dtype=np.float32).reshape(2, -1)
