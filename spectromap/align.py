"""Registration: where the sample lay in each frame, found from all frames together.

Contrast turns over across an absorption edge, so no single frame can serve all others as the
reference. Shifts are first measured between many pairs of frames a few energies apart, on images
of their edges, and solved for together by robust least squares; jumps of tens of pixels survive
this. Each frame is then registered to what the spectral model of the whole stack predicts for it,
by maximum likelihood, which is as good as the photons allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.signal.windows import tukey

from spectromap._numerics import robust_std, sample_shifted
from spectromap.schema import LOG, InputError, check_stack, component_names, pixel_size

__all__ = ["apply_shifts", "register", "zero_shifts"]

Array = NDArray[np.float64]
Frames = NDArray[np.float32]

#: Frames are binned until no side is longer than this: more pixels add nothing but time.
REGISTRATION_SIZE = 640
EDGE_SCALES = (1.0, 2.0, 3.5)
#: A correlation peak this many standard deviations high is a chance maximum.
CHANCE_PEAK = 5.0
#: Pairs that disagree with the joint solution by more than this many pixels count against it.
INCONSISTENT_PX = 1.5
#: A standard error of this many pixels halves the confidence in a frame.
POOR_ERROR_PX = 0.5
REFINEMENTS = 3
NOMINAL_COUNTS = 1e4
PIXEL_BLOCK = 32768
#: What interpolation and an imperfect spectral model leave, whatever the photons; in pixels.
MODEL_ERROR_PX = 0.01


def zero_shifts(stack: xr.DataArray) -> xr.Dataset:
    """Shifts of a stack that is aligned already: zero, certain, nothing flagged.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        The stack.

    Returns
    -------
    Dataset, dims (energy,)
        As `register` returns it.
    """
    count = stack.sizes["energy"]
    return _dataset(stack, np.zeros((count, 2)), np.zeros((count, 2)), np.ones(count), 0.0)


def register(
    stack: xr.DataArray,
    references: xr.Dataset | None = None,
    dark_counts: float = 0.0,
    *,
    enabled: bool = True,
    max_shift_nm: float | None = None,
    lags: tuple[int, ...] = (1, 2, 3, 5, 8, 13, 21),
    refine: bool = True,
    min_confidence: float = 0.3,
) -> xr.Dataset:
    """Measure the shift of every frame of a stack.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts, amplitudes or optical density; each frame is read once.
    references : Dataset, optional
        Reference spectra on the energies of the stack; without them the model of the refinement
        is a constant and the stack's own mean spectrum.
    dark_counts : float
        Counts without light, per pixel and frame.
    enabled : bool
        False for a stack that is aligned already.
    max_shift_nm : float, optional
        Largest shift between two frames that is looked for; default a third of the field.
    lags : tuple of int
        Distances, in frames, of the pairs that are compared.
    refine : bool
        Register each frame to the model's prediction after the pairwise solution.
    min_confidence : float
        Frames of less confidence are flagged and left out of the fit.

    Returns
    -------
    Dataset, dims (energy,)
        ``shift_y``, ``shift_x`` in nm: where the features of that frame lie relative to the common
        frame, median zero over the frames kept; ``shift_y_errors``, ``shift_x_errors`` in nm;
        ``confidence`` from 0 to 1; ``flagged``.

    Raises
    ------
    InputError
        Not a stack, or frames of fewer than 8 x 8 pixels.

    References
    ----------
    Robust joint solution: P. J. Huber, Robust Statistics (1981), section 7.8 (iterated weights).
    Refinement: B. D. Lucas and T. Kanade, Proc. IJCAI 674 (1981), here with Poisson weights.
    """
    check_stack(stack)
    if not enabled or stack.sizes["energy"] == 1:
        return zero_shifts(stack)
    if min(stack.shape[1:]) < 8:
        LOG.warning("frames of %s pixels are too small to be registered", stack.shape[1:])
        return zero_shifts(stack)
    frames, binning = _load(stack, dark_counts)
    dy, dx = pixel_size(stack)
    limit = (
        (frames.shape[1] / 3.0, frames.shape[2] / 3.0)
        if max_shift_nm is None
        else (max_shift_nm / dy / binning, max_shift_nm / dx / binning)
    )
    shifts, errors, consistency = _pairwise(frames, lags, limit)
    if refine and stack.sizes["energy"] >= 8:
        refiner = _Refiner.prepare(frames, references, dark_counts * binning**2, stack)
        shifts, errors, agreement = refiner.run(shifts, errors, consistency > min_confidence)
        consistency = np.minimum(consistency, agreement)
    confidence = consistency / (1.0 + (errors.max(axis=1) / (POOR_ERROR_PX / binning)) ** 2)
    shifts, errors = shifts * binning * [dy, dx], errors * binning * [dy, dx]
    result = _dataset(stack, shifts, errors, confidence, min_confidence)
    flagged = result["flagged"].values
    if flagged.any():
        listed = ", ".join(f"{e:.2f}" for e in stack.energy.values[flagged])
        LOG.warning("frames that could not be aligned, left out of the fit: %s eV", listed)
    if flagged.all():
        raise InputError(
            "no frame could be aligned",
            where="align",
            remedy="Check the stack; if it is aligned already, set align: {enabled: false}.",
        )
    return result


def _dataset(
    stack: xr.DataArray, shifts: Array, errors: Array, confidence: Array, threshold: float
) -> xr.Dataset:
    """Shifts in nm as the result holds them, median zero over the frames that are kept."""
    flagged = ~(confidence >= threshold)
    if not flagged.all():
        shifts = shifts - np.median(shifts[~flagged], axis=0)
    result = xr.Dataset(coords={"energy": stack.energy})
    for k, axis in enumerate("yx"):
        name = f"shift_{axis}"
        text = f"where the features of the frame lie, {axis}"
        result[name] = ("energy", shifts[:, k], {"units": "nm", "long_name": text})
        result[f"{name}_errors"] = ("energy", errors[:, k], {"units": "nm"})
    result["confidence"] = ("energy", np.clip(confidence, 0.0, 1.0), {"units": "1"})
    result["flagged"] = ("energy", flagged, {"units": "1"})
    return result


def apply_shifts(stack: xr.DataArray, shifts: xr.Dataset) -> xr.DataArray:
    """Bring the frames to the common frame, interpolating once.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        Counts, amplitudes or optical density; NaN marks pixels without data.
    shifts : Dataset
        As `register` makes it.

    Returns
    -------
    DataArray, dims (energy, y, x)
        Float; amplitudes come back as their modulus. NaN where a frame has no data; all NaN for
        flagged frames.
    """
    check_stack(stack)
    dy, dx = pixel_size(stack)
    aligned = np.empty(stack.shape, dtype=np.float32)
    for index in range(stack.sizes["energy"]):
        if bool(shifts["flagged"].values[index]):
            aligned[index] = np.nan
            continue
        frame = np.asarray(stack[index].values)
        # The phase of a reconstruction is free from frame to frame: only its modulus is aligned.
        frame = np.abs(frame) if np.iscomplexobj(frame) else frame
        aligned[index] = sample_shifted(
            frame.astype(np.float32, copy=False),
            float(shifts["shift_y"].values[index]) / dy,
            float(shifts["shift_x"].values[index]) / dx,
        )
    return stack.copy(data=aligned)


def _load(stack: xr.DataArray, dark: float) -> tuple[Frames, int]:
    """All frames as intensities, binned so that they fit in memory; dark counts removed."""
    binning = 1
    while max(stack.shape[1:]) / binning > REGISTRATION_SIZE:
        binning *= 2
    ny, nx = (size // binning for size in stack.shape[1:])
    frames = np.empty((stack.sizes["energy"], ny, nx), dtype=np.float32)
    for index in range(len(frames)):
        frame = np.asarray(stack[index].values)
        if stack.attrs["quantity"] == "amplitude":
            frame = np.abs(frame) ** 2
        elif stack.attrs["quantity"] == "optical_density":
            frame = np.exp(-frame)
        frame = frame[: ny * binning, : nx * binning].astype(np.float32, copy=False)
        blocks = frame.reshape(ny, binning, nx, binning)
        frames[index] = blocks.sum(axis=(1, 3)) if binning > 1 else frame
    if stack.attrs["quantity"] == "counts":
        frames -= np.float32(dark * binning**2)
    else:
        # Not counts: put them on a scale on which the square root of a value is a small error.
        frames *= np.float32(NOMINAL_COUNTS / max(np.nanpercentile(frames[0], 90), 1e-30))
    return frames, binning


def _filled(frame: Frames) -> Frames:
    """Frame with missing pixels at its median."""
    missing = ~np.isfinite(frame)
    if not missing.any():
        return frame
    middle = np.float32(np.median(frame[~missing])) if not missing.all() else np.float32(0)
    return np.where(missing, middle, frame)


# ---------------------------------------------------------------- pairs of frames


def _edges(frame: Frames, scale: float, window: Frames) -> Frames:
    """Gradient magnitude of the square root of counts, which has noise of one size."""
    stable = np.sqrt(np.maximum(_filled(frame), 0.0))
    edges = ndimage.gaussian_gradient_magnitude(stable, scale, mode="nearest")
    spread = float(edges.std())
    edges = (edges - float(np.average(edges, weights=window))) * window
    return np.asarray(edges / spread if spread > 0 else edges * 0, dtype=np.float32)


def _spectra(frames: Frames, scale: float, shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Fourier transforms of the edge images, zero-padded to `shape`."""
    ny, nx = frames.shape[1:]
    window = np.outer(tukey(ny, 0.2), tukey(nx, 0.2)).astype(np.float32)
    result = np.empty((len(frames), shape[0], shape[1] // 2 + 1), dtype=np.complex64)
    for index, frame in enumerate(frames):
        result[index] = fft.rfft2(_edges(frame, scale, window), shape)
    return result


def _peak(
    first: NDArray[np.complex64],
    second: NDArray[np.complex64],
    shape: tuple[int, int],
    limit: tuple[float, float],
) -> tuple[float, float, float]:
    """Shift of the second image against the first in pixels, and how far its peak stands out."""
    correlation = fft.irfft2(second * np.conj(first), shape)
    reach = [min(int(np.ceil(r)), n // 2 - 2) for r, n in zip(limit, shape, strict=True)]
    rows = np.arange(-reach[0], reach[0] + 1)
    columns = np.arange(-reach[1], reach[1] + 1)
    near = correlation[np.ix_(rows, columns)]
    spread = robust_std(near)
    y, x = np.unravel_index(int(np.argmax(near)), near.shape)
    height = float(near[y, x] - np.median(near)) / spread if spread > 0 else 0.0
    offset_y = _vertex(correlation[[rows[y] - 1, rows[y], (rows[y] + 1)], columns[x]])
    offset_x = _vertex(correlation[rows[y], [columns[x] - 1, columns[x], columns[x] + 1]])
    return float(rows[y]) + offset_y, float(columns[x]) + offset_x, height


def _vertex(values: NDArray[Any]) -> float:
    """Offset of the vertex of the parabola through three values, within half a pixel."""
    curvature = float(values[0] - 2.0 * values[1] + values[2])
    if curvature >= 0:
        return 0.0
    return float(np.clip(0.5 * float(values[0] - values[2]) / curvature, -0.5, 0.5))


def _best_scale(frames: Frames, shape: tuple[int, int], limit: tuple[float, float]) -> float:
    """The filter on which neighbouring frames agree most clearly: wide if noisy, else narrow."""
    sample = np.unique(np.linspace(0, len(frames) - 2, min(12, len(frames) - 1)).astype(int))
    heights = []
    for scale in EDGE_SCALES:
        pairs = np.concatenate([frames[sample], frames[sample + 1]])
        spectra = _spectra(pairs, scale, shape)
        half = len(sample)
        found = [_peak(spectra[k], spectra[half + k], shape, limit)[2] for k in range(half)]
        heights.append(float(np.median(found)))
    return EDGE_SCALES[int(np.argmax(heights))]


def _pairwise(
    frames: Frames, lags: tuple[int, ...], limit: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """Shifts (frame, 2) in pixels from all pairs, their errors, and each frame's consistency."""
    shape = tuple(
        int(fft.next_fast_len(int(n + r), real=True))
        for n, r in zip(frames.shape[1:], limit, strict=True)
    )
    padded = (shape[0], shape[1])
    spectra = _spectra(frames, _best_scale(frames, padded, limit), padded)
    count = len(frames)
    pairs = [(i, i + lag) for lag in lags if lag < count for i in range(count - lag)]
    measured = np.array([_peak(spectra[i], spectra[j], padded, limit) for i, j in pairs])
    index = np.array(pairs)
    weights = np.maximum(measured[:, 2] - CHANCE_PEAK, 1e-3) ** 2
    shifts, residual, robust = _solve_pairs(index, measured[:, :2], weights, count)
    good = (np.hypot(*residual.T) < INCONSISTENT_PX) & (measured[:, 2] > CHANCE_PEAK)
    consistency = np.zeros(count)
    errors = np.full((count, 2), np.inf)
    for frame in range(count):
        touching = (index == frame).any(axis=1)
        total = weights[touching].sum()
        consistency[frame] = weights[touching & good].sum() / total if total > 0 else 0.0
        strength = robust[touching & good]
        if strength.size:
            spread = np.average(residual[touching & good] ** 2, axis=0, weights=strength)
            errors[frame] = np.sqrt(spread / strength.size) + 1e-3
    return shifts, errors, consistency


def _solve_pairs(
    index: NDArray[np.intp], measured: Array, weights: Array, count: int
) -> tuple[Array, Array, Array]:
    """Frame shifts from pair shifts; weights fall with the residual until the solution rests."""
    rows = np.arange(len(index))
    design = np.zeros((len(index), count))
    design[rows, index[:, 1]] = 1.0
    design[rows, index[:, 0]] = -1.0
    robust = weights.copy()
    shifts = np.zeros((count, 2))
    for scale in (30.0, 10.0, 3.0, 1.0, *([0.5] * 10)):
        normal = design.T @ (design * robust[:, None]) + 1e-9 * np.eye(count)
        shifts[:] = np.linalg.solve(normal, design.T @ (measured * robust[:, None]))
        residual = measured - design @ shifts
        robust = weights / (1.0 + (residual**2).sum(axis=1) / scale**2)
    return shifts - np.median(shifts, axis=0), measured - design @ shifts, robust


# ---------------------------------------------------------------- frames against the model


@dataclass
class _Refiner:
    """Frames, their brightness, and the spectra of which the stack is made."""

    frames: Frames
    level: Array
    basis: Array | None
    dark: float

    @classmethod
    def prepare(
        cls, frames: Frames, references: xr.Dataset | None, dark: float, stack: xr.DataArray
    ) -> _Refiner:
        """Brightness of each frame, and the basis if references are known."""
        level = np.array([_bright_level(frame) for frame in frames])
        basis = None
        if references is not None:
            names = component_names(references)
            basis = np.column_stack([references[n].values for n in names])
        noise_free = stack.attrs["quantity"] != "counts"
        return cls(frames, level, basis, 0.0 if noise_free else dark)

    def run(
        self, shifts: Array, errors: Array, usable: NDArray[np.bool_]
    ) -> tuple[Array, Array, Array]:
        """Alternate between the model of the stack and the shift of each frame."""
        usable = usable & (self.level > 0)
        if usable.sum() < 8:
            return shifts, errors, np.ones(len(shifts))
        start = shifts.copy()
        agreement = np.ones(len(shifts))
        for _ in range(REFINEMENTS):
            model = self._model(shifts, usable)
            moved = 0.0
            for k in range(len(shifts)):
                step, error, fit = self._step(k, model[k], shifts[k])
                if not np.all(np.isfinite(step)) or np.hypot(*(shifts[k] + step - start[k])) > 3.0:
                    agreement[k] = min(agreement[k], 0.5)
                    continue
                shifts[k] += step
                errors[k], agreement[k] = error, fit
                moved = max(moved, float(np.abs(step).max()) if usable[k] else 0.0)
            shifts -= np.median(shifts[usable], axis=0)
            if moved < 0.003:
                break
        return shifts, errors, agreement

    def _model(self, shifts: Array, usable: NDArray[np.bool_]) -> Frames:
        """Transmission that the spectral model predicts for each frame, in the common frame."""
        count, ny, nx = self.frames.shape
        density = np.full((count, ny * nx), np.nan, dtype=np.float32)
        for k in np.flatnonzero(usable):
            aligned = sample_shifted(self.frames[k], shifts[k, 0], shifts[k, 1])
            floor = max(1.0 / self.level[k], 1e-3)
            density[k] = -np.log(np.maximum(aligned / self.level[k], floor)).ravel()
        basis = self._basis(density, usable)
        weight = np.where(usable, self.level, 0.0) * np.exp(-_mean_absorption(density))
        blocks = range(0, ny * nx, PIXEL_BLOCK)
        amounts = np.concatenate(
            [
                _amounts(density[:, k : k + PIXEL_BLOCK], basis, np.nan_to_num(weight))
                for k in blocks
            ],
            axis=1,
        )
        sigma = self._smoothing()
        images = [_smooth(image.reshape(ny, nx), sigma) for image in amounts]
        # The densities are not needed any more: reuse their memory.
        for row, coefficients in zip(density, basis, strict=True):
            eta = np.tensordot(coefficients, np.array(images), axes=1)
            row[:] = np.exp(-np.clip(eta, -1.0, 12.0)).ravel()
        return density.reshape(count, ny, nx)

    def _basis(self, density: Frames, usable: NDArray[np.bool_]) -> Array:
        """Spectra of the model: the references on the stack's own baseline, or its mean.

        A baseline image free at every pixel would absorb a shift between the frames below the
        edge and those above, so the baseline is held in proportion to the references.
        """
        mean = np.where(usable, _mean_absorption(density), 0.0)
        if self.basis is None:
            return mean[:, None]
        design = np.column_stack([self.basis, np.ones(len(mean))])
        weight = np.sqrt(np.where(usable, self.level * np.exp(-mean), 0.0))
        parameters, *_ = np.linalg.lstsq(design * weight[:, None], mean * weight, rcond=None)
        total = float(parameters[:-1].sum())
        # References that cannot describe the mean spectrum are no model of the stack.
        if not total > 0:
            return mean[:, None]
        return np.asarray(self.basis + parameters[-1] / total)

    def _smoothing(self) -> float:
        """Blur of the model in pixels: more where photons are few, so it carries less noise."""
        photons = float(np.median(self.level))
        return float(np.clip(1.5 - 0.5 * np.log10(max(photons, 1.0) / 100.0), 0.4, 2.0))

    def _step(self, k: int, model: Frames, shift: Array) -> tuple[Array, Array, float]:
        """One Gauss-Newton step for a frame: its change, its error, the agreement."""
        predicted = sample_shifted(model, -shift[0], -shift[1]).astype(np.float64)
        gradient_y, gradient_x = (np.asarray(g) for g in np.gradient(predicted))
        good = np.isfinite(gradient_y) & np.isfinite(gradient_x) & np.isfinite(self.frames[k])
        if good.sum() < 100:
            return np.full(2, np.nan), np.full(2, np.inf), 0.0
        data = self.frames[k][good].astype(np.float64)
        level = max(float(self.level[k]), 1e-30)
        design = np.column_stack(
            [-gradient_y[good], -gradient_x[good], predicted[good], np.ones(data.size)]
        )
        weights = 1.0 / (np.maximum(predicted[good], 1e-3) * level + self.dark + 1e-12)
        normal = design.T @ (design * weights[:, None])
        if np.linalg.cond(normal) > 1e14:
            return np.full(2, np.nan), np.full(2, np.inf), 0.0
        covariance: Array = np.asarray(np.linalg.inv(normal), dtype=np.float64)
        solution: Array = np.asarray(covariance @ (design.T @ (weights * data)))
        misfit = data - design @ solution
        scale = float(np.sum(weights * misfit**2)) / max(data.size - 4, 1)
        amplitude = float(solution[2])
        if amplitude <= 0.2 * level:
            return np.full(2, np.nan), np.full(2, np.inf), 0.0
        self.level[k] = amplitude
        step = np.clip(solution[:2] / amplitude, -1.0, 1.0)
        error = np.sqrt(np.diagonal(covariance)[:2] * scale) / amplitude
        error = np.hypot(error, MODEL_ERROR_PX)
        signal = float(np.var(design @ solution))
        agreement = signal / (signal + max(float(np.var(misfit)) - float(np.mean(1 / weights)), 0))
        return step, error, agreement


def _amounts(density: Frames, basis: Array, weight: Array) -> Array:
    """Amounts (basis, pixel) of the basis spectra, NaN where too few frames saw the pixel."""
    measured = np.isfinite(density)
    weights = measured * weight[:, None]
    rows, columns = np.triu_indices(basis.shape[1])
    upper = (basis[:, rows] * basis[:, columns]).T @ weights
    normal = np.empty((density.shape[1], basis.shape[1], basis.shape[1]))
    normal[:, rows, columns] = normal[:, columns, rows] = upper.T
    ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-30
    normal += ridge * np.eye(basis.shape[1])
    right = basis.T @ (weights * np.nan_to_num(density))
    amounts = np.linalg.solve(normal, right.T[:, :, None])[:, :, 0].T
    # A pixel seen by few frames is extrapolated to the others, badly.
    amounts[:, measured.sum(axis=0) < 0.7 * (weight > 0).sum()] = np.nan
    return np.asarray(amounts)


def _bright_level(frame: Frames) -> float:
    """Brightness of the least absorbing tenth of a frame."""
    finite = frame[np.isfinite(frame)]
    return float(np.percentile(finite, 90)) if finite.size else 0.0


def _mean_absorption(density: Frames) -> Array:
    """Mean spectrum of the more absorbing half of the pixels, (frame,)."""
    finite = np.isfinite(density)
    count = np.maximum(finite.sum(axis=0), 1)
    mean = np.where(finite, density, 0.0).sum(axis=0) / count
    thick = (mean >= np.median(mean)) & (mean < 2.5)
    thick = thick if thick.any() else mean >= np.median(mean)
    chosen = np.where(finite, density, 0.0)[:, thick].sum(axis=1)
    return np.asarray(chosen / np.maximum(finite[:, thick].sum(axis=1), 1), dtype=np.float64)


def _smooth(image: Array, sigma: float) -> Array:
    """Gaussian blur of an image with missing pixels."""
    known = np.isfinite(image)
    weight = ndimage.gaussian_filter(known.astype(float), sigma)
    total = ndimage.gaussian_filter(np.where(known, image, 0.0), sigma)
    return np.where(known, total / np.maximum(weight, 1e-9), np.nan)
