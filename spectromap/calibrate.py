"""Energy calibration: where the references lie on the stack's energy axis, and how sharp it is.

One mean spectrum is fitted by the references, moved by a shift and, if wanted, a scale and a
common Gaussian broadening. Beside the amounts and a constant the fit has the products of the
references two by two: stray light and amounts that vary inside the point spread function add them
to leading order, ``-ln<exp(-m)> = <m> - var(m) / 2``, and they would be taken for a shift and for
broadening. The monochromator averages transmission too, which its line width tells. What the
references cannot describe is a correlated error; its size, range and place are estimated from the
residual, and with it the weights and the standard errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap._numerics import FWHM_PER_SIGMA
from spectromap.schema import LOG, component_names

__all__ = ["Calibration", "calibrate_energy"]

Array = NDArray[np.float64]
Resolution = Literal["matched", "broadened", "sharper"]

#: Mean spectra thicker than this carry saturation, not energy, in their shape.
MAX_OD = 3.0
#: FWHM in eV of the line of the monochromator where it is not told; 0.1 to 0.3 is usual.
USUAL_LINE_EV = 0.2
#: Relative error of the correction for it, which knows mean amounts and the second order only.
LINE_ERROR = 0.5
#: What the expansions leave of a shift, in eV.
LEAST_ERROR_EV = 0.001
#: Points beyond the number of unknowns that the fit needs, and with which it gets more unknowns.
SPARE_POINTS, MANY_SPARE_POINTS = 4, 12
#: A shift less certain than this is worse than the axis of most beamlines.
MAX_SHIFT_ERROR_EV = 0.1
#: Another shift fits as well if twice the log-likelihood differs by less (three sigma).
RIVAL_DIFFERENCE = 9.0
#: Chi-squared rises by about 25 at five standard errors; less than this, and the error is wrong.
LEAST_RISE = 3.0
#: Steps of the search, and the width in eV by which the effect of broadening is probed.
GRID_STEP_EV, PROBE_EV = 0.1, 0.12
#: A difference in resolution is taken for real from so many standard errors, and this width, on.
SIGNIFICANT, LEAST_WIDTH_EV = 4.0, 0.1
#: A scale whose error moves the ends of the axis by more than this, or that no monochromator has.
MAX_SCALE_ERROR_EV, MAX_SCALE_CHANGE = 0.1, 0.02
#: Relative misfit of the references, its range in eV, and its size away from the white lines as a
#: share of that on the highest: what is tried.
MISFITS = tuple(1e-3 * 2.0**k for k in range(8))
RANGES_EV = (0.2, 0.4, 0.8, 1.6)
FLOORS = (0.0, 0.1, 0.5)


class References(Protocol):
    """Makes the reference set at a shift and a scale of the energy axis and a broadening."""

    def __call__(self, shift: float, scale: float, broadening_eV: float, /) -> xr.Dataset:
        """Return the reference set."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Energy axis and resolution of a stack against its references.

    True energies are ``middle + scale * (recorded - middle) + shift``, with the middle of the
    stack's energies.

    Attributes
    ----------
    shift, shift_error : float
        In eV; ``0`` and NaN where the references cannot fix it, a NaN error also where a shift
        was given without one.
    scale, scale_error : float
        ``1`` and NaN where it was not fitted.
    broadening_eV, broadening_error : float
        Gaussian FWHM by which the references have to be broadened; 0 unless `resolution` is
        "broadened". The error of a zero is the width that one standard error would hide.
    resolution : {"matched", "broadened", "sharper"}
        The sample is recorded as sharply as the references, less sharply, or more sharply.
    width_difference_eV : float
        Difference of the widths in quadrature, FWHM, negative where the sample is sharper,
        whether significant or not; NaN where it was not estimated.
    misfit : float
        Relative rms by which the references differ from the spectrum beyond the noise; NaN where
        it was not estimated.
    """

    shift: float = 0.0
    shift_error: float = math.nan
    scale: float = 1.0
    scale_error: float = math.nan
    broadening_eV: float = 0.0
    broadening_error: float = math.nan
    resolution: Resolution = "matched"
    width_difference_eV: float = math.nan
    misfit: float = math.nan


def calibrate_energy(
    od: Array,
    od_errors: Array,
    references: References,
    line_width_eV: float | None = None,
    *,
    enabled: bool = True,
    max_shift_eV: float = 1.5,
    shift_eV: float | None = None,
    shift_error_eV: float | None = None,
    fit_scale: bool = False,
    fit_resolution: bool = True,
) -> Calibration:
    """Shift of the energy axis, and broadening, with which the references fit a mean spectrum.

    Parameters
    ----------
    od, od_errors : ndarray, shape (n_energy,)
        Mean optical density of absorbing pixels (up to about 3 at the highest peak of each) and
        its standard error; NaN is left out, and what lies above `MAX_OD`.
    references : callable
        From shift in eV, scale, and broadening (FWHM in eV) to the reference set on the stack's
        energies.
    line_width_eV : float, optional
        FWHM of the line of the monochromator with which the stack was recorded; by default
        `USUAL_LINE_EV`.
    enabled : bool
        False takes energies and resolution as they are.
    max_shift_eV : float
        Largest shift looked for.
    shift_eV, shift_error_eV : float, optional
        Shift (true minus recorded energy) known from elsewhere, and its standard error; it is
        not fitted then.
    fit_scale : bool
        Fit a scale of the energy axis too; needs L3 and L2.
    fit_resolution : bool
        Find out whether the sample is recorded less sharply than the references, and by how much.

    Returns
    -------
    Calibration
        Shift, scale, broadening, their standard errors. A warning says why where the references
        cannot fix the energy, and where the sample is sharper than they are.

    References
    ----------
    M. C. Kennedy and A. O'Hagan, J. R. Stat. Soc. B 63, 425 (2001), for the correlated misfit;
    D. A. Harville, J. Am. Stat. Assoc. 72, 320 (1977), for its restricted likelihood.
    """
    given = Calibration(
        shift=0.0 if shift_eV is None else shift_eV,
        shift_error=math.nan if shift_error_eV is None else shift_error_eV,
    )
    if not enabled:
        return Calibration()
    line = USUAL_LINE_EV if line_width_eV is None else line_width_eV
    fit = _Fit(od, od_errors, references, max_shift_eV, line)
    if shift_eV is not None:
        usable = fit_resolution and fit.spare >= SPARE_POINTS
        return _told(fit.resolved(given, ())) if usable else given
    if fit.spare < SPARE_POINTS:
        return _refused(f"{fit.good.sum()} usable energies are too few")
    start, reason = fit.search()
    if reason:
        return _refused(reason)
    free = ("shift", "scale") if fit_scale and fit.spare >= MANY_SPARE_POINTS else ("shift",)
    found = fit.resolved(start, free) if fit_resolution else fit.converged(start, free)
    if fit_scale:
        found = fit.checked_scale(found, fit_resolution)
    reason = fit.doubts(found)
    return _refused(reason) if reason else _told(found)


def _told(found: Calibration) -> Calibration:
    """Say what cannot be mended."""
    if found.resolution == "sharper":
        LOG.warning(
            "the sample is resolved better than the references: their lines are %.2f eV wider in"
            " quadrature, which cannot be undone; composition is biased where lines overlap",
            -found.width_difference_eV,
        )
    return found


def _refused(reason: str) -> Calibration:
    LOG.warning(
        "the energy axis could not be calibrated: %s; energies are taken as recorded", reason
    )
    return Calibration()


class _Fit:
    """Generalised least squares of one spectrum by the references."""

    def __init__(
        self, od: Array, errors: Array, references: References, reach: float, line: float
    ) -> None:
        known = np.isfinite(od) & np.isfinite(errors) & (errors > 0)
        self.good = known & (np.where(known, od, np.inf) < MAX_OD)
        self.od, self.variance = od[self.good], errors[self.good] ** 2
        self.make, self.reach, self.line_variance = references, reach, line**2
        first = references(0.0, 1.0, 0.0)
        energy = np.asarray(first.energy.values, dtype=float)
        self.energy, self.middle = energy[self.good], 0.5 * (energy[0] + energy[-1])
        self.half_span = 0.5 * float(energy[-1] - energy[0])
        self.names = component_names(first)
        self.spare = int(self.good.sum()) - len(self.names) - 2
        self.covariance = np.diag(self.variance)
        self.misfit = math.nan

    # --- the model ---------------------------------------------------------------------------

    def spectra(self, shift: float, scale: float, width: float) -> tuple[Array, Array]:
        """References and their slopes, (n_good, n_component), at a shift, scale and FWHM."""
        made = self.make(shift, scale, width)
        values = [made[n].values[self.good] for n in self.names]
        slopes = [made[f"{n}_slope"].values[self.good] for n in self.names]
        return np.column_stack(values), np.column_stack(slopes)

    def linear(self, at: Calibration, variance: float) -> tuple[Array, Array, Array, Array]:
        """Columns of the linear part, amounts, white lines, and what the columns are to describe.

        A negative variance, which no convolution can give, is continued linearly.
        """
        values, slopes = self.spectra(at.shift, at.scale, math.sqrt(max(variance, 0.0)))
        if variance < 0:
            values = values + variance * self._by_variance(at, 0.0, values)
        count = len(self.names)
        columns, target = np.column_stack([values, np.ones(len(values))]), self.od
        amounts = self._solve(columns, target)
        # The line averages transmission, not optical density: var(m) is slope squared times its.
        line = max(self.line_variance + variance, 0.0) / FWHM_PER_SIGMA**2
        target = target + 0.5 * line * (slopes @ amounts[:count]) ** 2
        lines = values @ amounts[:count]
        lines = lines - lines.min()
        if self.spare >= MANY_SPARE_POINTS:
            parts = values - values.min(axis=0)
            first, second = np.triu_indices(count)
            columns = np.column_stack([columns, parts[:, first] * parts[:, second]])
        return columns, self._solve(columns, target), lines, target

    def _by_variance(self, at: Calibration, variance: float, values: Array) -> Array:
        """Derivative of the references by the square of the broadening."""
        wider = math.sqrt(variance + PROBE_EV**2)
        return (self.spectra(at.shift, at.scale, wider)[0] - values) / PROBE_EV**2

    def directions(
        self, at: Calibration, variance: float, free: tuple[str, ...], amounts: Array
    ) -> Array:
        """What the free nonlinear parameters do to the model, (n_good, n_free)."""
        count = len(self.names)
        base = max(variance, 0.0)
        values, slopes = self.spectra(at.shift, at.scale, math.sqrt(base))
        slope = slopes @ amounts[:count]
        columns = []
        for name in free:
            if name == "shift":
                columns.append(slope)
            elif name == "scale":
                columns.append(slope * (self.energy - self.middle))
            else:
                columns.append(self._by_variance(at, base, values) @ amounts[:count])
        return np.column_stack(columns) if columns else np.empty((len(values), 0))

    def _solve(self, columns: Array, target: Array) -> Array:
        """Generalised least squares."""
        root = np.linalg.cholesky(self.covariance)
        whitened = np.linalg.solve(root, np.column_stack([columns, target]))
        found, *_ = np.linalg.lstsq(whitened[:, :-1], whitened[:, -1], rcond=1e-12)
        return np.asarray(found, dtype=float)

    # --- what the references cannot describe -------------------------------------------------

    def estimate_misfit(self, design: Array, lines: Array, target: Array) -> None:
        """Size and range of the misfit by restricted likelihood; sets the covariance."""
        tried = list(self._candidates(lines, target))
        values = np.array([_likelihood(c, design, target, restricted=True) for _, c in tried])
        # Few points tell little about the misfit: average over what is likely, lest the error
        # be that of the luckiest guess.
        shares = np.exp(-0.5 * (values - values.min()))
        shares /= shares.sum()
        self.covariance = np.tensordot(shares, [c for _, c in tried], 1)
        self.misfit = math.sqrt(shares @ [size**2 for size, _ in tried])

    def _candidates(self, lines: Array, target: Array) -> Iterator[tuple[float, Array]]:
        """Sizes of the misfit, with the covariances they, some ranges and places make."""
        correction = LINE_ERROR * (target - self.od)
        noise = np.diag(self.variance) + np.outer(correction, correction)
        yield 0.0, noise
        distance = self.energy[:, None] - self.energy[None, :]
        for floor, reach in itertools.product(FLOORS, RANGES_EV):
            place = lines + floor * lines.max()
            alike = np.outer(place, place) * np.exp(-0.5 * (distance / reach) ** 2)
            for size in MISFITS:
                yield size, noise + size**2 * alike

    # --- the fit -----------------------------------------------------------------------------

    def search(self) -> tuple[Calibration, str]:
        """The best shift on a grid, and why it cannot be trusted, if so."""
        shifts = np.arange(-self.reach, self.reach + 1e-9, GRID_STEP_EV)
        values = self._profile(shifts, Calibration())
        start = Calibration(shift=float(shifts[int(np.argmin(values))]))
        if abs(start.shift) > self.reach - 1.5 * GRID_STEP_EV:
            return start, f"the references fit best at the end of the range of {self.reach:g} eV"
        return start, ""

    def _profile(self, shifts: Array, at: Calibration) -> Array:
        """Chi-squared of the linear fit at each shift, everything else as given."""
        inverse = np.linalg.inv(np.linalg.cholesky(self.covariance))
        variance = _signed_square(at)
        found = []
        for shift in shifts:
            columns, amounts, _, target = self.linear(replace(at, shift=float(shift)), variance)
            residual = inverse @ (target - columns @ amounts)
            found.append(float(residual @ residual))
        return np.array(found)

    def converged(self, start: Calibration, free: tuple[str, ...]) -> Calibration:
        """Gauss-Newton in the free parameters, with the misfit estimated along the way."""
        at, variance = start, _signed_square(start)
        for sweep in range(3):
            if sweep:
                columns, amounts, lines, target = self.linear(at, variance)
                moved = self.directions(at, variance, free, amounts)
                self.estimate_misfit(np.column_stack([columns, moved]), lines, target)
            at, variance, errors = self._descend(at, variance, free)
        at = replace(at, misfit=self.misfit)
        if "shift" in free:
            at = replace(at, shift_error=math.hypot(errors["shift"], LEAST_ERROR_EV))
        if "scale" in free:
            at = replace(at, scale_error=errors["scale"])
        if "variance" in free:
            at = _with_width(at, variance, errors["variance"])
        return at

    def _descend(
        self, at: Calibration, variance: float, free: tuple[str, ...]
    ) -> tuple[Calibration, float, dict[str, float]]:
        """Steps until they are small; the errors at the end."""
        limits = {"shift": 0.1, "scale": 0.2 / self.half_span, "variance": 0.1}
        errors = dict.fromkeys(free, math.nan)
        for _ in range(25 if free else 0):
            columns, amounts, _, target = self.linear(at, variance)
            moved = self.directions(at, variance, free, amounts)
            design = np.column_stack([columns, moved])
            root = np.linalg.cholesky(self.covariance)
            whitened = np.linalg.solve(root, np.column_stack([design, target]))
            scale = np.linalg.norm(whitened[:, :-1], axis=0)
            scale[scale == 0] = 1.0
            inverse = np.linalg.pinv(whitened[:, :-1] / scale, rcond=1e-9)
            # The nonlinear columns start at zero: what they are given is the step.
            steps = (inverse @ whitened[:, -1]) / scale
            spread = np.sqrt(np.sum(inverse**2, axis=1)) / scale
            size = 0.0
            for index, name in enumerate(free, start=columns.shape[1]):
                step = float(np.clip(steps[index], -limits[name], limits[name]))
                errors[name] = float(spread[index]) if spread[index] > 0 else math.nan
                size = max(size, abs(step) / limits[name])
                if name == "variance":
                    variance = float(np.clip(variance + step, -4.0, 4.0))
                else:
                    at = replace(at, **{name: getattr(at, name) + step})
            if size < 1e-4:
                break
        return at, variance, errors

    def resolved(self, start: Calibration, free: tuple[str, ...]) -> Calibration:
        """Fit with the resolution free, if there are points enough."""
        if self.spare < MANY_SPARE_POINTS:
            return self.converged(start, free)
        # The shift stays that of the fit with free resolution even where the difference is not
        # significant: it is nearly as certain, and a small difference does not move it.
        found = self.converged(start, (*free, "variance"))
        if found.resolution == "matched":
            return found
        with_width, covariance = self.likelihood(found), self.covariance
        without = self.likelihood(self.converged(start, free))
        self.covariance, self.misfit = covariance, found.misfit
        if without - with_width > SIGNIFICANT**2:
            return found
        return replace(found, resolution="matched", broadening_eV=0.0)

    def likelihood(self, at: Calibration) -> float:
        """Minus twice the log-likelihood, with the misfit that suits it best."""
        columns, _, lines, target = self.linear(at, _signed_square(at))
        covariances = [covariance for _, covariance in self._candidates(lines, target)]
        return min(_likelihood(covariance, columns, target) for covariance in covariances)

    def checked_scale(self, found: Calibration, fit_resolution: bool) -> Calibration:
        """Take the scale back where it is not known well enough."""
        known = found.scale_error * self.half_span < MAX_SCALE_ERROR_EV
        if known and abs(found.scale - 1) < MAX_SCALE_CHANGE:
            return found
        LOG.warning("the scale of the energy axis cannot be fitted on this stack: taken as 1")
        start = Calibration(shift=found.shift)
        if fit_resolution:
            return self.resolved(start, ("shift",))
        return self.converged(start, ("shift",))

    def doubts(self, found: Calibration) -> str:
        """Why a converged shift is not to be trusted; empty if it is."""
        if not found.shift_error < MAX_SHIFT_ERROR_EV:
            return f"the error of the shift would be {found.shift_error:.2g} eV"
        if abs(found.shift) > self.reach:
            return f"the references fit best beyond the range of {self.reach:g} eV"
        shifts = np.arange(-self.reach, self.reach + 1e-9, GRID_STEP_EV)
        values = self._profile(shifts, found)
        aside = found.shift + 5 * found.shift_error * np.array([0, -1, 1])
        best, *flanks = self._profile(aside, found)
        if min(flanks) < best + LEAST_RISE:
            return "the references and their changes with energy cannot be told apart"
        others = np.abs(shifts - found.shift) > max(6 * found.shift_error, 2 * GRID_STEP_EV)
        if others.any() and values[others].min() < best + RIVAL_DIFFERENCE:
            rival = float(shifts[others][int(np.argmin(values[others]))])
            return f"shifts of {found.shift:.2f} and {rival:.2f} eV fit about equally well"
        return ""


def _likelihood(
    covariance: Array, design: Array, target: Array, *, restricted: bool = False
) -> float:
    """Minus twice the (restricted) log-likelihood of a covariance, but for a constant."""
    root = np.linalg.cholesky(covariance)
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    whitened = np.linalg.solve(root, np.column_stack([design / scale, target]))
    basis, triangle = np.linalg.qr(whitened[:, :-1])
    residual = whitened[:, -1] - basis @ (basis.T @ whitened[:, -1])
    value = 2 * np.log(np.diag(root)).sum() + residual @ residual
    if restricted:
        value += 2 * np.log(np.maximum(np.abs(np.diag(triangle)), 1e-12)).sum()
    return float(value)


def _signed_square(at: Calibration) -> float:
    """The difference that was fitted, significant or not: the shift goes with it."""
    width = np.nan_to_num(at.width_difference_eV)
    return float(width * abs(width))


def _with_width(at: Calibration, variance: float, error: float) -> Calibration:
    """Judge a fitted difference of the squared widths."""
    width = math.copysign(math.sqrt(abs(variance)), variance)
    real = abs(variance) > SIGNIFICANT * error and abs(width) > LEAST_WIDTH_EV
    at = replace(at, width_difference_eV=width, broadening_error=math.sqrt(error))
    if not real:
        return replace(at, resolution="matched", broadening_eV=0.0)
    if variance > 0:
        return replace(
            at, resolution="broadened", broadening_eV=width, broadening_error=error / (2 * width)
        )
    return replace(at, resolution="sharper", broadening_eV=0.0)
