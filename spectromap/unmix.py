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

from spectromap._unmix_kernel import (
    BASIS,
    COMMON,
    COVARIANCE,
    DARK,
    ENERGIES,
    ENERGY_COLUMNS,
    ERROR,
    FRACTION,
    I0,
    KNOWN,
    KNOWN_OD,
    MAX_COMPONENTS,
    MAX_PARAMETERS,
    MIN_TRANSMISSION,
    NORMAL,
    PATTERN,
    QUALITY,
    RAISED,
    RIGHT,
    SCALE,
    SHARED,
    SHIFTS,
    SHOWN,
    SLOPES,
    THICKNESS,
    UNUSED,
    Shared,
    fit_pixels,
    make_scratch,
)  # fmt: skip
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
ALIKE = 0.03
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
    check_stack(stack.assign_attrs(quantity="optical_density"), name="absorption")
    design = _design_of(absorption, references, baseline, sum_to_one)
    moving = shift_errors is not None and log_gradient is not None
    shifts = np.zeros((stack.shape[0], 2)) if shift_errors is None else np.asarray(shift_errors)
    frames = _frames_of(absorption, references, design, energy_shift_errors, shifts)
    limits = {
        "stray": np.float32(stray_fraction),
        "ceiling": np.float32(np.inf if max_od is None else max_od),
        "rejected": np.float32(reject_chi2),
    }
    shared = _shared(design, frames, {"constrained": sum_to_one, "moving": moving, **limits})
    names = _map_names(design.components)
    pixels = int(np.prod(stack.shape[1:]))
    values = np.ascontiguousarray(stack.values, dtype=np.float32).reshape(-1, pixels)
    maps = np.empty((len(names), pixels), dtype=np.float32)
    flags = np.empty(pixels, dtype=np.int32)
    scratch = make_scratch(len(shared.order), len(shared.ends))
    fit_pixels(values, _motion(log_gradient, stack.shape), shared, scratch, maps, flags)
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
    design = _columns(references, baseline)
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


def _map_names(components: tuple[str, ...]) -> dict[str, int]:
    """Maps and the rows in which the compiled loops have them; the largest OD comes last."""
    rows: dict[str, int] = {}
    for k, name in enumerate(components):
        rows[f"{name}_fraction"] = FRACTION + k
        rows[f"{name}_fraction_errors"] = ERROR + k
        rows[f"{name}_fraction_systematic"] = COMMON + k
        rows[f"{name}_fraction_nonnegative"] = SHOWN + k
        rows[f"{name}_thickness"] = THICKNESS + k
        for i, other in enumerate(components[k:], k):
            rows[f"{name}_{other}_covariance"] = COVARIANCE + i * (i + 1) // 2 + k
    rows["thickness"] = THICKNESS + MAX_COMPONENTS
    rows["thickness_errors"] = ERROR + MAX_COMPONENTS
    rows["thickness_systematic"] = COMMON + MAX_COMPONENTS
    rows["thickness_nonnegative"] = SHOWN + MAX_COMPONENTS
    last = ("offset", "chi2", "residual", "samples_used", "max_od")
    return rows | {name: QUALITY + k for k, name in enumerate(last)}


def _columns(references: xr.Dataset, baseline: Baseline) -> Array:
    """References, then the baseline: a constant and a slope over the range of the energies."""
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
    columns, count = _columns(references, baseline), len(components)
    if count > MAX_COMPONENTS:
        raise InputError(
            f"{count} references; the fit takes up to {MAX_COMPONENTS}",
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
    for k in used:
        for group in members:
            if np.ptp(features[[*group, k]], axis=0).max() <= 1.0:
                group.append(int(k))
                break
        else:
            members.append([int(k)])
    return [np.array(group, dtype=np.intp) for group in members]


def _packed(values: Array, shape: tuple[int, ...], fill: float = 0.0) -> Samples:
    """Values in single precision in the corner of a larger array."""
    result = np.full(shape, fill, dtype=np.float32)
    result[tuple(slice(n) for n in np.shape(values))] = values
    return result


def _rows_of(first: int, positions: list[int], *, pairs: bool = False) -> NDArray[np.intp]:
    """Rows of the kernel's sums for all parameters or pairs of them, an even number."""
    rows = positions
    if pairs:
        rows = [i * (i + 1) // 2 + j for n, i in enumerate(positions) for j in positions[: n + 1]]
    return np.array([*(first + r for r in rows), *[UNUSED] * (len(rows) % 2)], dtype=np.intp)


def _positions(design: _Design) -> list[int]:
    """Where the kernel has the parameters: components from 0 on, baseline from 4 on."""
    free, size = _n_free(design), design.columns.shape[1]
    return [*range(free), *range(MAX_COMPONENTS, MAX_COMPONENTS + size - free)]


def _class_sums(
    design: _Design, frames: _Frames, basis: Array, classes: list[NDArray[np.intp]]
) -> dict[str, Array]:
    """Photons of every class of energies, and means weighted by them."""
    total = np.array([frames.scale[group].sum() for group in classes])

    def mean(values: Array) -> Array:
        return np.array(
            [frames.scale[g] @ values[g] / t for g, t in zip(classes, total, strict=True)]
        )

    photons = np.array([frames.photons[group].sum() for group in classes])
    return {
        "basis": mean(basis), "known": mean(design.known), "dark": mean(frames.dark),
        "scale": total, "photons": photons,
    }  # fmt: skip


def _shared(design: _Design, frames: _Frames, options: dict[str, Any]) -> Shared:
    """Collect what the compiled loops need."""
    basis, back = _orthonormal(design.columns, frames.scale)
    classes = _classes(design, np.flatnonzero(frames.scale > 0))
    order, means = np.concatenate(classes), _class_sums(design, frames, basis, classes)
    size, positions = basis.shape[1], _positions(design)
    pairs = [means["basis"][:, i] * means["basis"][:, j] for i in range(size) for j in range(i + 1)]
    product_rows = _rows_of(NORMAL, positions, pairs=True)
    if options["constrained"]:
        pairs += [means["basis"][:, i] * means["known"] for i in range(size)]
        product_rows = np.append(product_rows[: len(pairs) - size], _rows_of(KNOWN, positions))
        product_rows = np.append(product_rows, [UNUSED] * (len(product_rows) % 2)).astype(np.intp)
    energies, groups = (n + -n % ENERGIES for n in (len(order), len(classes)))
    table = np.zeros((len(order), ENERGY_COLUMNS), dtype=np.float32)
    table[:, KNOWN_OD], table[:, SCALE] = design.known[order], frames.scale[order]
    table[:, DARK], table[:, I0] = frames.dark[order], frames.i0_variance[order]
    table[:, [BASIS + p for p in positions]] = basis[order]
    table[:, SLOPES : SLOPES + len(design.components)] = frames.slopes[order]
    table[:, SHIFTS:] = frames.shift_variance[order]
    floor = np.maximum(2.0 / means["photons"], MIN_TRANSMISSION) * (1.0 - options["stray"])
    four, even = (MAX_COMPONENTS, MAX_COMPONENTS), size + size % 2
    offset = np.zeros(MAX_PARAMETERS)
    offset[positions] = design.offset @ back
    return Shared(
        order=order,
        ends=np.cumsum([len(group) for group in classes]),
        energies=table,
        columns=_packed(basis[order].T, (even, energies)),
        classes=np.column_stack([means["known"], means["scale"], means["dark"], floor]).astype(
            np.float32
        ),
        products=_packed(np.array(pairs), (len(pairs) + 2, groups)),
        class_columns=_packed(means["basis"].T, (even, groups)),
        product_rows=product_rows,
        pair_rows=_rows_of(SHARED, positions, pairs=True),
        right_rows=_rows_of(RIGHT, positions),
        pattern_rows=_rows_of(PATTERN, positions),
        amounts=_packed((design.amounts @ back)[:, : _n_free(design)], four),
        constant=_packed(design.constant, four[:1]),
        rescaled=_packed(design.rescaled.T, four),
        scale_errors=_packed(frames.scale_errors, four[:1]),
        unused=_packed(np.zeros(len(design.components)), four[:1], 1.0),
        offset=_packed(offset, (MAX_PARAMETERS + 1,)),
        rows=np.array(list(_map_names(design.components).values()), dtype=np.intp),
        size=np.float32(size),
        frames=np.float32(frames.measured),
        bits=np.array([FLAGS[name] for name in RAISED], dtype=np.int32),
        **options,
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
