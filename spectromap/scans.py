"""Several scans of one field: brought to one grid, and repeats compared.

Scans at different edges share the thickness, so thickness is what they are registered by: a masked
normalised correlation finds the place whatever the offset, and weighted least squares then finds
it to a few hundredths of a pixel. Errors come from the scatter of what single parts of the field
say, because two thickness maps differ by more than noise.

A second scan at the same edge tells what the errors are worth and what the beam did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize, stats

from spectromap._compiled import compiled
from spectromap._numerics import fwhm_to_sigma, robust_std, vertex
from spectromap.schema import FLAGS, InputError, check_map, pixel_size

__all__ = ["compare_repeats", "dose_map", "on_grid", "register_scan"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Pair = tuple[float, float]

#: The place is looked for on maps of at most so many cells a side ...
COARSE_SIZE = 256
#: ... with at least this share of the smaller field in common,
LEAST_OVERLAP = 0.2
#: and so many cells.
LEAST_CELLS = 64
#: Nothing thicker than this multiple of a thick pixel is believed.
THICKEST = 1.5
#: Smoothing of both maps before they are compared, in pixels of the coarser (standard deviation):
#: without it, what interpolation leaves of the noise would depend on the place.
SMOOTHING_PX = 0.8
#: Thicknesses at two edges differ by such a share beyond their noise.
MODEL_SHARE = 0.05
#: Residuals beyond this many standard deviations count less (P. J. Huber).
HUBER = 2.5
STEPS, SMALL_STEP_PX = 12, 1e-3
#: A smaller standard error, in pixels of the coarser map, is not believed.
LEAST_ERROR_PX = 0.01
#: A standard error of this many pixels halves the confidence.
POOR_ERROR_PX = 0.5
#: Tiles of the field that tell by their scatter how well the place is known.
TILES, TILE_RESOLUTIONS = 8, 4.0
#: Scale and rotation are applied where they are as significant as this, and never beyond.
DISTORTION_P, LARGEST_DISTORTION = 1e-3, 0.03
#: A resampled pixel may miss this share of what it is made of.
MISSING_SHARE = 0.25
#: Pixels thinner than this many standard deviations hold no sample.
LEAST_THICKNESS = 3.0
#: A fraction is shown where it is known to this (`fit_components` does the same).
KNOWN_FRACTION = 0.5
NM3_G_CM3_IN_KG = 1e-24
JOULE_PER_EV = 1.602176634e-19
UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]
#: Maps that no average makes sense of: the nearest pixel is taken.
NEAREST = ("chi2", "residual", "samples_used", "max_od")
#: Noise is correlated no further than this many resolutions, or pixels.
NOISE_RESOLUTIONS, NOISE_PIXELS = 1.5, 2.9
#: A particle changed if its change exceeds this many standard errors.
CHANGED_SIGMA = 2.0
DICHROISM_REMARK = (
    "a small p-value means that particles changed by more or less than each other beyond their"
    " errors; oriented crystallites do so by linear dichroism where sample or polarisation was"
    " turned between the scans, and so does uneven beam damage: one scan cannot tell, and the"
    " fractions of single particles are then only known to this spread"
)


# ---------------------------------------------------------------- registration


@dataclass(frozen=True)
class _Picture:
    """A thickness map: values, their variance (zero where not measured), what was measured."""

    values: Array
    variance: Array
    valid: Mask
    origin: Array
    step: Array
    psf: float

    @classmethod
    def of(cls, maps: xr.Dataset, resolution: float) -> _Picture:
        """Take the thickness of maps, held below what cannot be."""
        values = np.asarray(maps["thickness"].values, float)
        errors = np.ones_like(values)
        if "thickness_errors" in maps:
            errors = np.asarray(maps["thickness_errors"].values, float)
        valid = np.isfinite(values) & np.isfinite(errors) & _usable(maps)
        if valid.sum() < LEAST_CELLS:
            raise InputError("the thickness map holds hardly any pixels", where="thickness")
        thick = THICKEST * float(np.percentile(values[valid], 99.0))
        values = np.clip(np.where(valid, values, 0.0), -thick, thick)
        variance = np.where(valid, errors, 0.0) ** 2
        origin = np.array([float(maps[axis].values[0]) for axis in "yx"])
        step = np.array(pixel_size(maps["thickness"]))
        return cls(values, variance, valid, origin, step, fwhm_to_sigma(resolution))

    @property
    def extent(self) -> Array:
        """Sides in nm."""
        return np.asarray(np.array(self.values.shape) * self.step)

    @property
    def blur(self) -> float:
        """Standard deviation in nm of what optics and pixels do together."""
        return float(np.sqrt(self.psf**2 + np.max(self.step) ** 2 / 12.0))

    def smoothed(self, sigma: float) -> tuple[Array, Array, Array]:
        """Values, variances and share of measured pixels under a Gaussian of `sigma` nm."""
        width = tuple(sigma / self.step)

        def blurred(image: Any) -> Array:
            return np.asarray(ndimage.gaussian_filter(np.asarray(image, float), width))

        share = blurred(self.valid)
        inside = np.maximum(share, 1e-6)
        area = max(1.0, 4.0 * np.pi * width[0] * width[1])
        return blurred(self.values) / inside, blurred(self.variance) / inside / area, share


def _usable(maps: xr.Dataset) -> Mask:
    """Pixels that were measured and not defective, by their flags."""
    if "flags" not in maps:
        return np.ones(maps["thickness"].shape, bool)
    return np.asarray((maps["flags"].values.astype(int) & UNUSABLE) == 0)


def register_scan(
    maps: xr.Dataset,
    others: xr.Dataset,
    resolution_nm: float,
    other_resolution_nm: float | None = None,
    *,
    max_offset_nm: float | None = None,
    min_confidence: float = 0.3,
) -> xr.Dataset:
    """Find where a second scan of a field lies relative to the first, by the thickness.

    Parameters
    ----------
    maps, others : Dataset, dims (y, x)
        ``thickness`` of the first and of the second scan, with ``thickness_errors`` and ``flags``
        if there are any. Pixels, fields and sharpness may differ, and the thickness by a factor.
    resolution_nm, other_resolution_nm : float
        Full width at half maximum of the point spread functions in nm; the second default that of
        the first. The sharper map is blurred to match, and what is left of a difference fitted.
    max_offset_nm : float, optional
        Largest offset along either axis; by default whatever leaves a fifth of the smaller field
        in common.
    min_confidence : float
        Less confidence is an error.

    Returns
    -------
    Dataset
        No dims. ``offset_y``, ``offset_x`` in nm, where the features of the second scan lie
        relative to the first in the coordinates of both (the correction is the negative), and
        ``offset_y_errors``, ``offset_x_errors``; ``scale`` of the coordinates of the second
        over the first and ``rotation`` in rad (from x towards y), with errors, about the point
        ``centre_y``, ``centre_x`` of the first at which the offset holds; ``distortion_applied``,
        whether these are significant, so that `on_grid` uses them; ``amount_ratio``, thickness of
        the second over the first; ``overlap``, share of the smaller field that is common;
        ``confidence`` from 0 to 1: how much better the place agrees than the second best.

    Raises
    ------
    InputError
        A thickness is missing, or no place stands out: nothing in common.

    Notes
    -----
    The errors are those of the sandwich estimator over tiles of the field (P. J. Huber, Proc.
    5th Berkeley Symp. 1, 221 (1967)), so that what the two maps do not agree on counts, wherever
    it comes from.

    References
    ----------
    D. Padfield, IEEE Trans. Image Process. 21, 2706 (2012), for the correlation of images of which
    parts are missing; B. D. Lucas and T. Kanade, Proc. IJCAI 674 (1981), for the fit.
    """
    for name, these in (("maps", maps), ("others", others)):
        if "thickness" not in these:
            raise InputError("there is no thickness", where=name)
        check_map(these["thickness"], name=f"{name}.thickness")
    first = _Picture.of(maps, resolution_nm)
    second = _Picture.of(
        others, resolution_nm if other_resolution_nm is None else other_resolution_nm
    )
    coarse = _Coarse.between(first, second)
    offset, confidence, overlap = coarse.best(max_offset_nm)
    # The coarser map is what is fitted; the finer can be interpolated.
    swapped = float(np.max(second.step)) > float(np.max(first.step))
    still, moving = (second, first) if swapped else (first, second)
    fit = _Fit(still, moving, -offset if swapped else offset)
    found = fit.run()
    pixel = float(np.max(still.step))
    error = float(np.sqrt(np.max(np.diag(found.covariance)[:2])))
    confidence /= 1.0 + (error / (POOR_ERROR_PX * pixel)) ** 2
    lost = bool(np.max(np.abs(fit.start - found.place[:2])) > 2.5 * coarse.cell)
    if lost or not confidence >= min_confidence:
        raise InputError(
            "the scan cannot be registered with the first: no place stands out",
            where="others",
            remedy="Check that both show the same field; bring their coordinates nearer together.",
        )
    if swapped:
        found = found.reversed()
    return _registration(found, confidence, overlap)


@dataclass(frozen=True)
class _Coarse:
    """Two maps on one coarse grid, for the search.

    `values` and `valid` of both; `shift` (2) is the offset [nm] that lag zero stands for.
    """

    values: tuple[Array, Array]
    valid: tuple[Array, Array]
    cell: float
    shift: Array

    @classmethod
    def between(cls, first: _Picture, second: _Picture) -> _Coarse:
        """Average both maps over the same square cells."""
        sides = max(first.extent.max(), second.extent.max())
        cell = max(
            float(first.step.max()), float(second.step.max()), first.psf, second.psf,
            float(sides) / COARSE_SIZE,
        )  # fmt: skip
        values, valid = [], []
        for picture in (first, second):
            smooth, _, share = picture.smoothed(0.5 * cell)
            axes = [
                np.arange(0.0, n - 0.5, cell / s)
                for n, s in zip(smooth.shape, picture.step, strict=True)
            ]
            grid = np.meshgrid(*axes, indexing="ij")
            known = ndimage.map_coordinates(share, grid, order=1, mode="nearest") > 0.5
            sampled = ndimage.map_coordinates(smooth, grid, order=1, mode="nearest")
            values.append(np.where(known, sampled, 0.0))
            valid.append(known.astype(float))
        return cls((values[0], values[1]), (valid[0], valid[1]), cell, second.origin - first.origin)

    def best(self, limit: float | None) -> tuple[Array, float, float]:
        """Offset [nm] of the best place, how it stands out (0 to 1), and the share in common."""
        correlation, count = self._correlation()
        lags = [
            _lags(n, a, b)
            for n, a, b in zip(
                correlation.shape, self.values[0].shape, self.values[1].shape, strict=True
            )
        ]
        smaller = min(float(v.sum()) for v in self.valid)
        allowed = count >= max(LEAST_OVERLAP * smaller, LEAST_CELLS)
        if limit is not None:
            for axis, lag in enumerate(lags):
                near = np.abs(self.shift[axis] + lag * self.cell) <= limit
                allowed &= near[:, None] if axis == 0 else near[None, :]
        if not allowed.any():
            raise InputError(
                "the fields of the scans have nothing in common",
                where="others",
                remedy="Give scans of the same field, or a larger max_offset_nm.",
            )
        area = self._correlation_area()
        # Fisher's z: a correlation of few independent cells is not worth much.
        height = np.arctanh(np.clip(correlation, -0.999, 0.999))
        height = np.where(allowed, height * np.sqrt(np.maximum(count / area - 3.0, 0.0)), -np.inf)
        peak = np.unravel_index(int(np.argmax(height)), height.shape)
        offset = np.array(
            [
                self.shift[k] + self.cell * _peak_along(correlation, peak, k, lags[k])
                for k in range(2)
            ]
        )
        reach = max(3.0, 1.5 * float(np.sqrt(area)))
        far = np.hypot(lags[0][:, None] - lags[0][peak[0]], lags[1] - lags[1][peak[1]]) > reach
        others = height[far & allowed]
        chance = float(np.sqrt(2.0 * np.log(max(float(allowed.sum()) / area, 2.0))))
        second = max(chance, float(others.max()) if others.size else 0.0)
        top = float(height[peak])
        confidence = float(np.clip(1.0 - second / top, 0.0, 1.0)) if top > 0 else 0.0
        return offset, confidence, float(count[peak]) / smaller

    def _correlation(self) -> tuple[Array, Array]:
        """Correlation coefficient at every lag, and the number of cells it is made of."""
        shape = [
            int(fft.next_fast_len(a + b - 1, real=True))
            for a, b in zip(self.values[0].shape, self.values[1].shape, strict=True)
        ]

        def product(a: Array, b: Array) -> Array:
            """Sum over cells i of a[i] b[i + lag]."""
            spectrum = np.conj(fft.rfft2(a, shape)) * fft.rfft2(b, shape)
            return np.asarray(fft.irfft2(spectrum, shape))

        valid_a, valid_b = self.valid
        a, b = (
            np.where(v > 0, x - x[v > 0].mean(), 0.0)
            for x, v in zip(self.values, self.valid, strict=True)
        )
        count = np.maximum(np.rint(product(valid_a, valid_b)), 0.0)
        n = np.maximum(count, 1.0)
        sum_a, sum_b = product(a, valid_b), product(valid_a, b)
        square_a = product(a**2, valid_b) - sum_a**2 / n
        square_b = product(valid_a, b**2) - sum_b**2 / n
        scale = 1e-9 * max(float(square_a.max()) * float(square_b.max()), 1e-30)
        below = np.sqrt(np.maximum(square_a, 0.0) * np.maximum(square_b, 0.0) + scale)
        return (product(a, b) - sum_a * sum_b / n) / below, count

    def _correlation_area(self) -> float:
        """Cells that share one independent value, from the spectra of both maps."""
        areas = []
        for values, valid in zip(self.values, self.valid, strict=True):
            flat = np.where(valid > 0, values - values[valid > 0].mean(), 0.0)
            power = np.abs(fft.fft2(flat)) ** 2
            areas.append(power.size * float((power**2).sum() / max(power.sum() ** 2, 1e-30)))
        return max(1.0, min(areas))


def _lags(size: int, first: int, second: int) -> Array:
    """Lag of the second map against the first at each index of a circular correlation."""
    lags = np.arange(size, dtype=float)
    lags[lags >= second] -= size
    lags[lags <= -first] = -size  # padding, which no overlap allows
    return lags


def _peak_along(values: Array, peak: Sequence[Any], axis: int, lags: Array) -> float:
    """Lag of a peak along one axis to a fraction of a cell."""
    row = np.take(values, int(peak[1 - axis]), axis=1 - axis)
    centre = int(peak[axis])
    around = np.take(row, [centre - 1, centre, centre + 1], mode="wrap")
    return float(lags[centre]) + vertex(np.array([-1.0, 0.0, 1.0]), -around)


@dataclass(frozen=True)
class _Found:
    """Place of a map: ``q = p + offset + M (p - centre)``, M from the last two of `place`.

    `place` holds the offset (y, x) [nm], the stretch and the rotation [rad]; `covariance` (4, 4).
    """

    place: Array
    covariance: Array
    centre: Array
    ratio: float
    applied: bool

    def reversed(self) -> _Found:
        """The same seen from the other map, to first order in the distortion."""
        ratio = 1.0 / self.ratio if self.ratio else float("nan")
        return _Found(
            -self.place, self.covariance, self.centre + self.place[:2], ratio, self.applied
        )


@dataclass
class _Fit:
    """Weighted least squares of the still map by the moving one."""

    still: _Picture
    moving: _Picture
    start: Array

    def __post_init__(self) -> None:
        pixel = float(np.max(self.still.step))
        smooth = (SMOOTHING_PX * pixel) ** 2
        excess = self.still.blur**2 - self.moving.blur**2
        self.target, self.noise, self.share = self.still.smoothed(
            np.sqrt(smooth + max(-excess, 0.0))
        )
        values, self.moving_noise, self.moving_share = self.moving.smoothed(
            np.sqrt(smooth + max(excess, 0.0))
        )
        self.spline = ndimage.spline_filter(values, order=3, mode="nearest")
        axes = [
            o + s * np.arange(n)
            for o, s, n in zip(
                self.still.origin, self.still.step, self.still.values.shape, strict=True
            )
        ]
        self.y, self.x = np.meshgrid(*axes, indexing="ij")
        self.centre = np.array([self.y.mean(), self.x.mean()])
        self.lever = self.y - self.centre[0], self.x - self.centre[1]
        self.tiles = self._tiles()

    def _tiles(self) -> NDArray[np.intp]:
        """Tile of each pixel, small beside what both maps have in common."""
        low = np.maximum(self.still.origin, self.moving.origin - self.start)
        high = np.minimum(
            self.still.origin + self.still.extent,
            self.moving.origin - self.start + self.moving.extent,
        )
        width = self.still.blur / fwhm_to_sigma(1.0)
        side = max(float((high - low).max()) / TILES, TILE_RESOLUTIONS * width)
        row, column = (np.floor((a - a.min()) / side).astype(np.intp) for a in (self.y, self.x))
        return np.asarray(row * (column.max() + 1) + column)

    def run(self) -> _Found:
        """The place, and with it scale and rotation where they are significant."""
        place = np.concatenate([self.start, [0.0, 0.0]])
        place, *_ = self._climb(place, 2)
        free, covariance, ratio, tiles = self._climb(place, 4)
        waves = free[2:] @ np.linalg.pinv(covariance[2:, 2:]) @ free[2:] / 2.0
        applied = bool(
            tiles > 4
            and np.max(np.abs(free[2:])) < LARGEST_DISTORTION
            and stats.f.sf(waves, 2, tiles - 2) < DISTORTION_P
        )
        if not applied:
            distortion = np.sqrt(np.diag(covariance))[2:]
            shifted, smaller, ratio, _ = self._climb(place, 2)
            covariance = np.diag([0.0, 0.0, *distortion**2])
            covariance[:2, :2] = smaller[:2, :2]
            free = np.concatenate([shifted[:2], free[2:]])
        pixel = float(np.max(self.still.step))
        covariance[[0, 1], [0, 1]] += (LEAST_ERROR_PX * pixel) ** 2
        return _Found(free, covariance, self.centre, ratio, applied)

    def _climb(self, place: Array, free: int) -> tuple[Array, Array, float, float]:
        """Iterate to the best place; the covariance, the ratio of amounts, number of tiles."""
        place = place.copy()
        if free == 2:
            place[2:] = 0.0
        for _ in range(STEPS):
            step, covariance, ratio, tiles = self._step(place, free)
            place[:free] += step
            if np.max(np.abs(step[:2])) < SMALL_STEP_PX * float(np.max(self.still.step)):
                break
        return place, covariance, ratio, tiles

    def _step(self, place: Array, free: int) -> tuple[Array, Array, float, float]:
        """One step of Gauss and Newton of the first `free` parameters."""
        seen, known, noise = self._seen(place)
        inner = known & (self.share > 0.95)
        count = int(inner.sum())
        if count < LEAST_CELLS:
            raise InputError(
                "the fields of the scans have hardly anything in common", where="others"
            )
        columns = _moves(seen, *self.lever, self.still.step)[:free]
        known_too = (seen, np.ones_like(seen), ndimage.laplace(seen))
        design = np.stack([c[inner] for c in (*columns, *known_too)], axis=1)
        target = self.target[inner]
        variance = self.noise[inner] + noise[inner] + (MODEL_SHARE * target) ** 2
        weights = 1.0 / np.maximum(variance, 1e-9 * variance.max())
        amounts = _solve(design[:, free:], weights, target)
        rest = target - design[:, free:] @ amounts
        scatter = max(robust_std(rest * np.sqrt(weights)), 1e-12)
        weights = weights * np.minimum(
            1.0, HUBER * scatter / np.maximum(np.abs(rest) * np.sqrt(weights), 1e-12)
        )
        # The slopes are those of the moving map; the still one has `amounts[0]` times as much.
        design[:, :free] *= amounts[0]
        still = np.stack([c[inner] for c in _moves(self.target, *self.lever, self.still.step)])
        step, covariance, tiles = _newton(
            design, still[:free].T, weights, target - design[:, free:] @ amounts, self.tiles[inner]
        )
        limit = 2.0 * float(np.max(self.still.step))
        step[:2] = np.clip(step[:2], -limit, limit)
        return step, covariance, 1.0 / float(amounts[0] or np.nan), tiles

    def _seen(self, place: Array) -> tuple[Array, Mask, Array]:
        """The moving map at the pixels of the still one, where it was measured, its variance."""
        dy, dx = self.lever
        y = self.y + place[0] + place[2] * dy + place[3] * dx
        x = self.x + place[1] + place[2] * dx - place[3] * dy
        at = [
            (a - o) / s
            for a, o, s in zip((y, x), self.moving.origin, self.moving.step, strict=True)
        ]
        values = ndimage.map_coordinates(self.spline, at, order=3, mode="nearest", prefilter=False)
        share = ndimage.map_coordinates(self.moving_share, at, order=1, mode="constant")
        noise = ndimage.map_coordinates(self.moving_noise, at, order=1, mode="nearest")
        return values, share > 0.95, noise


def _solve(design: Array, weights: Array, values: Array) -> Array:
    """Weighted least squares."""
    return np.asarray(_normal(design, design, weights) @ (design.T @ (weights * values)))


def _moves(image: Array, dy: Array, dx: Array, step: Array) -> list[Array]:
    """What a unit of offset along y and x, of stretch and of rotation changes in an image."""
    slope_y, slope_x = np.gradient(image, *step)
    return [slope_y, slope_x, slope_y * dy + slope_x * dx, slope_y * dx - slope_x * dy]


def _newton(
    design: Array, still: Array, weights: Array, rest: Array, tiles: NDArray[np.intp]
) -> tuple[Array, Array, float]:
    """Step of the places, its covariance from the scatter of tiles, and how many of them tell.

    The first columns of `design` are what moves do to the moving map, `still` the same of the
    still one. Noise has slopes too, so that the product of a map's slopes with themselves would
    take it for something to hold on to; that of both maps does not.
    """
    free = still.shape[1]
    moves, others = design[:, :free], design[:, free:]
    # What the other parameters can take up is no move.
    inverse = _normal(others, others, weights)
    moves = moves - others @ (inverse @ (others.T @ (moves * weights[:, None])))
    still = still - others @ (inverse @ (others.T @ (still * weights[:, None])))
    cross = still.T @ (moves * weights[:, None])
    curvature = 0.5 * (cross + cross.T)
    inverse = np.linalg.pinv(curvature, rcond=1e-12, hermitian=True)
    slopes = 0.5 * (moves + still)
    step = inverse @ (slopes.T @ (weights * rest))
    rest = rest - moves @ step
    number = int(tiles.max()) + 1
    scores = np.stack(
        [np.bincount(tiles, slope * weights * rest, number) for slope in slopes.T], axis=1
    )
    told = np.bincount(tiles, weights * (moves[:, :2] * still[:, :2]).sum(axis=1), number)
    count = float(told.sum() ** 2 / max(float((told**2).sum()), 1e-300))
    middle = scores.T @ scores * count / max(count - 2.0, 0.5)
    return step, inverse @ middle @ inverse, count


def _normal(left: Array, right: Array, weights: Array) -> Array:
    """Inverse of a matrix of weighted products, whatever the units of the columns."""
    scale = np.sqrt(np.maximum(weights @ left**2, 1e-300))
    inverse = np.linalg.pinv(
        (left / scale).T @ (right / scale * weights[:, None]), rcond=1e-10, hermitian=True
    )
    return np.asarray(inverse / np.outer(scale, scale))


def _registration(found: _Found, confidence: float, overlap: float) -> xr.Dataset:
    """The result of `register_scan`."""
    errors = np.sqrt(np.diag(found.covariance))
    offset = "where the features of the second scan lie relative to the first"
    result = xr.Dataset()
    for name, value, units, text in (
        ("offset_y", found.place[0], "nm", f"{offset}, y"),
        ("offset_x", found.place[1], "nm", f"{offset}, x"),
        ("offset_y_errors", errors[0], "nm", ""),
        ("offset_x_errors", errors[1], "nm", ""),
        ("scale", 1.0 + found.place[2], "1", "coordinates of the second scan over the first"),
        ("scale_errors", errors[2], "1", ""),
        ("rotation", found.place[3], "rad", "of the second scan against the first, x to y"),
        ("rotation_errors", errors[3], "rad", ""),
        ("centre_y", found.centre[0], "nm", "where the offset holds, y of the first scan"),
        ("centre_x", found.centre[1], "nm", "where the offset holds, x of the first scan"),
        ("distortion_applied", found.applied, "1", "whether scale and rotation are significant"),
        ("amount_ratio", found.ratio, "1", "thickness of the second scan over the first"),
        ("overlap", overlap, "1", "share of the smaller field that both scans saw"),
        ("confidence", confidence, "1", "how the place stands out, 0 to 1"),
    ):
        result[name] = ((), value, {"units": units} | ({"long_name": text} if text else {}))
    return result


# ---------------------------------------------------------------- one grid


def on_grid(
    maps: xr.Dataset, like: xr.Dataset | xr.DataArray, registration: xr.Dataset | None = None
) -> xr.Dataset:
    """Resample the maps of one scan onto the pixels of another.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        As `spectromap.unmix.fit_components` makes them.
    like : Dataset or DataArray, dims (y, x)
        The grid, such as the maps of the first scan.
    registration : Dataset, optional
        As `register_scan` makes it with `like` as the first scan; without it the coordinates are
        taken as they are.

    Returns
    -------
    Dataset, dims (y, x)
        The same variables on the grid of `like`, NaN outside of what was measured. Amounts are
        averaged and fractions made from them anew; variances and covariances are carried by the
        squared weights, so that errors are those of the averages; systematic errors are averaged
        as they are, being common to the pixels. Flags are those of all pixels that a new pixel
        covers; `chi2` and the like are those of the nearest. ``attrs`` gain ``offset_y_nm``,
        ``offset_x_nm`` and ``offset_y_nm_errors``, ``offset_x_nm_errors``.

    Raises
    ------
    InputError
        No maps, or maps without thickness.

    Notes
    -----
    Cubic convolution (R. G. Keys, IEEE Trans. Acoust. 29, 1153 (1981)). Where the new pixels are
    larger the kernel is stretched to their size, which averages the finer ones over the area. Up to
    a quarter of the weights may be missing. Noise of neighbours is correlated afterwards: see
    `compare_repeats` for how sums over pixels take that into account.
    """
    names = _components(maps)
    check_map(maps["thickness"], name="maps.thickness")
    grid = _Grid.of(maps["thickness"], like, registration)
    linear, squared = _by_weights(maps, names)
    usable = np.all([np.isfinite(v) for v in (*linear.values(), *squared.values())], axis=0)
    usable &= _usable(maps)
    means = dict(zip(linear, grid.averaged(list(linear.values()), usable, 1), strict=True))
    squares = dict(zip(squared, grid.averaged(list(squared.values()), usable, 2), strict=True))
    values = _recomputed(maps, names, means, squares)
    values["flags"] = grid.flags(maps, np.isfinite(means["thickness"]))
    for name in maps.data_vars:
        if maps[name].dims == ("y", "x") and str(name) not in values:
            values[str(name)] = grid.nearest(maps[name].values)
    result = xr.Dataset(coords={axis: like[axis] for axis in "yx"}, attrs=dict(maps.attrs))
    for name in (*(str(n) for n in maps.data_vars), "flags"):
        if name in values and name not in result:
            attrs = dict(maps[name].attrs) if name in maps else {"units": "1"}
            result[name] = (("y", "x"), values[name], attrs)
    for axis in "yx":
        for text in ("", "_errors"):
            known = registration is not None
            value = float(registration[f"offset_{axis}{text}"]) if registration is not None else 0.0
            result.attrs[f"offset_{axis}_nm{text}"] = value if known else 0.0
    return result


def _components(maps: xr.Dataset) -> list[str]:
    """Names of the components of which there are amounts."""
    names = [
        str(n).removesuffix("_thickness") for n in maps.data_vars if str(n).endswith("_thickness")
    ]
    missing = [
        f"{name}_{name}_covariance" for name in names if f"{name}_{name}_covariance" not in maps
    ]
    if "thickness" not in maps or not names or missing:
        raise InputError(
            f"there is no '{missing[0] if missing else 'thickness'}'",
            where="maps",
            remedy="Give the maps of a scan with references, as the group `maps` has them.",
        )
    return names


def _covariance(maps: xr.Dataset | dict[str, Any], a: str, b: str) -> str:
    """Name of the covariance of two components; the later one stands last."""
    name = f"{a}_{b}_covariance"
    return name if name in maps else f"{b}_{a}_covariance"


def _by_weights(maps: xr.Dataset, names: list[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Maps that weights average, and those of variances, which their squares do."""
    linear, squared = {}, {}
    derived = {
        f"{name}_fraction{kind}" for name in names
        for kind in ("", "_errors", "_systematic", "_nonnegative")
    } | {"thickness_errors", "thickness_nonnegative"}  # fmt: skip
    for key in maps.data_vars:
        name, variable = str(key), maps[key]
        if variable.dims != ("y", "x") or name in derived or name in NEAREST:
            continue
        if variable.dtype.kind != "f" or name == "edge_distance":
            continue
        values = np.asarray(variable.values, float)
        if name.endswith("_covariance"):
            squared[name] = values
        elif name.endswith("_errors"):
            squared[name] = values**2
        else:
            linear[name] = values
    for name in names:  # of an amount, which stays finite where there is nothing
        systematic = f"{name}_fraction_systematic"
        if systematic in maps:
            amount = np.abs(maps["thickness"].values * maps[systematic].values).astype(float)
            linear[systematic] = amount
    return linear, squared


def _recomputed(
    maps: xr.Dataset, names: list[str], means: dict[str, Array], squares: dict[str, Array]
) -> dict[str, Any]:
    """Fractions and errors from amounts and covariances."""
    total = means["thickness"]
    values: dict[str, Any] = dict(means)
    values |= {n: np.sqrt(v) if n.endswith("_errors") else v for n, v in squares.items()}
    pairs = [(a, b) for a in names for b in names]
    variance = sum(squares[_covariance(squares, a, b)] for a, b in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        values["thickness_errors"] = np.sqrt(np.maximum(variance, 0.0))
        values["thickness_nonnegative"] = np.maximum(total, 0.0)
        shares = {name: means[f"{name}_thickness"] / total for name in names}
        spread = {
            name: np.sqrt(_variance_of(squares, names, name, share)) / np.abs(total)
            for name, share in shares.items()
        }
        shown = {name: np.clip(share, 0.0, 1.0) for name, share in shares.items()}
        whole = sum(shown.values())
        for name in names:
            values[f"{name}_fraction"] = shares[name]
            values[f"{name}_fraction_errors"] = spread[name]
            known = (spread[name] < KNOWN_FRACTION) & (total > 0)
            values[f"{name}_fraction_nonnegative"] = np.where(known, shown[name] / whole, np.nan)
            systematic = f"{name}_fraction_systematic"
            if systematic in means:
                values[systematic] = np.abs(means[systematic] / total)
    return {name: np.asarray(v, maps[name].dtype) for name, v in values.items() if name in maps}


def _variance_of(covariances: dict[str, Any], names: list[str], fraction: str, share: Any) -> Any:
    """Variance of ``t_c - f t``, amount c less its share of all, from the covariances."""
    total: Any = 0.0
    for a in names:
        for b in names:
            factors = ((a == fraction) - share) * ((b == fraction) - share)
            total = total + factors * covariances[_covariance(covariances, a, b)]
    return np.maximum(total, 0.0)


@dataclass(frozen=True)
class _Grid:
    """Where the pixels of a grid lie in another, in its pixels: ``index = axis_k . (1, y, x)``."""

    shape: tuple[int, int]
    y: Array
    x: Array
    affine: Array
    stretch: Pair

    @classmethod
    def of(
        cls, source: xr.DataArray, like: xr.Dataset | xr.DataArray, registration: xr.Dataset | None
    ) -> _Grid:
        """The grid of `like` seen from `source`."""
        place = np.zeros((2, 3))
        place[0, 1] = place[1, 2] = 1.0
        if registration is not None:
            place[:, 0] = [float(registration["offset_y"]), float(registration["offset_x"])]
            if bool(registration["distortion_applied"]):
                stretch, turn = float(registration["scale"]) - 1.0, float(registration["rotation"])
                matrix = np.array([[stretch, turn], [-turn, stretch]])
                centre = [float(registration["centre_y"]), float(registration["centre_x"])]
                place[:, 1:] += matrix
                place[:, 0] -= matrix @ np.array(centre)
        step, own = np.array(pixel_size(source)), pixel_size(like)  # type: ignore[arg-type]
        place[:, 0] -= [float(source[axis].values[0]) for axis in "yx"]
        stretches = [max(1.0, o / s) for o, s in zip(own, step, strict=True)]
        return cls(
            (source.sizes["y"], source.sizes["x"]),
            np.asarray(like["y"].values, float),
            np.asarray(like["x"].values, float),
            place / step[:, None],
            (stretches[0], stretches[1]),
        )

    def averaged(self, values: list[Array], usable: Mask, power: int) -> list[Array]:
        """Averages by the weights, or of variances by their squares; NaN where too few count."""
        stack = np.ascontiguousarray(np.stack([np.where(usable, v, 0.0) for v in values], axis=-1))
        result = np.empty((self.y.size, self.x.size, len(values)))
        _average(stack, usable, self.y, self.x, self.affine, np.array(self.stretch), power, result)
        return [np.ascontiguousarray(result[..., k]) for k in range(len(values))]

    def _index(self) -> tuple[NDArray[np.intp], NDArray[np.intp], Mask]:
        """Nearest pixel of every new pixel, and whether there is one."""
        found = []
        for a, n in zip(self.affine, self.shape, strict=True):
            index = np.rint(a[0] + a[1] * self.y[:, None] + a[2] * self.x[None]).astype(np.intp)
            found.append((np.clip(index, 0, n - 1), (index >= 0) & (index < n)))
        return found[0][0], found[1][0], found[0][1] & found[1][1]

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the nearest pixels; outside NaN, zero or False."""
        y, x, inside = self._index()
        outside = np.nan if values.dtype.kind == "f" else values.dtype.type(0)
        return np.where(inside, values[y, x], outside).astype(values.dtype)

    def flags(self, maps: xr.Dataset, known: Mask) -> NDArray[np.int32]:
        """Flags of all pixels that the new ones cover."""
        flags = np.zeros(self.shape, np.int32)
        if "flags" in maps:
            flags = maps["flags"].values.astype(np.int32)
        sides = [2 * int(s // 2) + 1 for s in self.stretch]
        covered = np.zeros_like(flags)
        for bit in FLAGS.values():
            raised = ndimage.maximum_filter(((flags & bit) > 0).astype(np.uint8), sides)
            covered |= np.where(raised > 0, np.int32(bit), np.int32(0))
        found = np.asarray(self.nearest(covered), np.int32)
        hidden = np.int32(~UNUSABLE)  # what was left out of an average does not spoil it
        return np.where(known, found & hidden, found | np.int32(FLAGS["no_data"]))


@compiled
def _keys(distance: float) -> float:
    """Weight of cubic convolution at a distance in samples (a = -1/2)."""
    u = abs(distance)
    if u < 1.0:
        return (1.5 * u - 2.5) * u * u + 1.0
    if u < 2.0:
        return ((-0.5 * u + 2.5) * u - 4.0) * u + 2.0
    return 0.0


@compiled
def _taps(place: float, stretch: float, weights: NDArray[Any]) -> tuple[int, int]:
    """First sample and number of samples around a place, and their weights."""
    first = int(np.ceil(place - 2.0 * stretch))
    count = int(np.floor(place + 2.0 * stretch)) - first + 1
    for k in range(count):
        weights[k] = _keys((first + k - place) / stretch)
    return first, count


@compiled
def _gather(
    values: NDArray[Any],
    usable: NDArray[Any],
    corner: tuple[int, int],
    weights_y: NDArray[Any],
    weights_x: NDArray[Any],
    power: int,
    total: NDArray[Any],
) -> bool:
    """Average of maps (y, x, map) by separable weights; whether enough of it was measured."""
    all_of_it, known, size = 0.0, 0.0, 0.0
    total[:] = 0.0
    for i in range(weights_y.size):
        y = corner[0] + i
        for j in range(weights_x.size):
            x = corner[1] + j
            w = weights_y[i] * weights_x[j]
            all_of_it += abs(w)
            inside = y >= 0 and x >= 0 and y < values.shape[0] and x < values.shape[1]
            if inside and usable[y, x]:
                known += w
                size += abs(w)
                w = w * w if power == 2 else w
                for m in range(total.size):
                    total[m] += w * values[y, x, m]
    if size < (1.0 - MISSING_SHARE) * all_of_it:
        return False
    total /= known**power
    return True


@compiled
def _average(
    values: NDArray[Any],
    usable: NDArray[Any],
    ys: NDArray[Any],
    xs: NDArray[Any],
    affine: NDArray[Any],
    stretch: NDArray[Any],
    power: int,
    result: NDArray[Any],
) -> None:
    """Averages of maps (y, x, map) around points, by weights or by their squares."""
    ny, nx = usable.shape
    weights_y, weights_x = np.empty(int(4 * stretch[0]) + 2), np.empty(int(4 * stretch[1]) + 2)
    for i in range(ys.size):
        for j in range(xs.size):
            y = affine[0, 0] + affine[0, 1] * ys[i] + affine[0, 2] * xs[j]
            x = affine[1, 0] + affine[1, 1] * ys[i] + affine[1, 2] * xs[j]
            known = y >= -0.5 and x >= -0.5 and y <= ny - 0.5 and x <= nx - 0.5
            if known:
                top, rows = _taps(y, stretch[0], weights_y)
                left, columns = _taps(x, stretch[1], weights_x)
                known = _gather(
                    values, usable, (top, left), weights_y[:rows], weights_x[:columns], power,
                    result[i, j],
                )  # fmt: skip
            if not known:
                result[i, j, :] = np.nan


# ---------------------------------------------------------------- dose


def dose_map(
    maps: xr.Dataset,
    spectra: xr.Dataset,
    density_g_cm3: float,
    *,
    detector_efficiency: float = 1.0,
) -> xr.DataArray:
    """Dose that one scan left in the sample, from what the fit says it absorbed.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        Amounts ``<component>_thickness`` in nm, ``thickness`` and its errors.
    spectra : Dataset, dims (energy,)
        ``i0`` [count] with ``attrs["gain"]``, counts per photon; ``reference_<component>`` [nm-1];
        ``stray_fraction`` if there is any. Frames without I0 count with the median I0.
    density_g_cm3 : float
        Density of the sample in g/cm3.
    detector_efficiency : float
        Share of the photons behind the sample that are counted. With one, the default, the
        dose is a lower bound: those that were not counted were absorbed all the same.

    Returns
    -------
    DataArray, dims (y, x)
        ``dose`` in MGy, NaN where there is no sample. Energy that electrons and fluorescence
        carry away is not taken off, nor is the time the beam waited between pixels added.

    Raises
    ------
    InputError
        Thickness that is not in nm, references or I0 that are missing, a density or an efficiency
        that cannot be.

    Notes
    -----
    ``D = sum_E N0(E) E (1 - exp(-tau(E))) / (rho t a)``, N0 photons on the pixel of area a, tau
    the optical density of thickness t without the baseline: absorbed energy over mass, as in
    J. Wang et al., J. Electron Spectrosc. Relat. Phenom. 170, 25 (2009). Where the sample is thin
    ``(1 - exp(-tau)) / t`` tends to tau/t, so that the dose does not depend on the thickness.
    """
    names = _components(maps)
    check_map(maps["thickness"], "nm", name="maps.thickness")
    for name, value, most in (
        ("density_g_cm3", density_g_cm3, np.inf),
        ("detector_efficiency", detector_efficiency, 1.0),
    ):
        if not 0 < value <= most:
            raise InputError(f"{value} is out of range", where=name)
    missing = [n for n in ("i0", *(f"reference_{c}" for c in names)) if n not in spectra]
    if missing:
        raise InputError(f"there is no '{missing[0]}'", where="spectra")
    thickness = np.asarray(maps["thickness"].values, float)
    errors = np.asarray(maps["thickness_errors"].values, float)
    sample = (thickness > LEAST_THICKNESS * errors) & _usable(maps)
    absorbed = np.zeros(int(sample.sum()))
    parts = np.stack([np.maximum(maps[f"{n}_thickness"].values[sample], 0.0) for n in names])
    per_nm = np.stack([np.asarray(spectra[f"reference_{n}"].values, float) for n in names])
    shares = parts / np.maximum(parts.sum(axis=0), 1e-30)
    for energy, photons, reference in zip(
        spectra["energy"].values, _photons(spectra, detector_efficiency), per_nm.T, strict=True
    ):
        absorption = reference @ shares
        tau = np.maximum(absorption * thickness[sample], 1e-12)
        absorbed += photons * float(energy) * absorption * -np.expm1(-tau) / tau
    step = pixel_size(maps["thickness"])
    kg_per_nm = density_g_cm3 * NM3_G_CM3_IN_KG * step[0] * step[1]
    dose = np.full(thickness.shape, np.nan, np.float32)
    dose[sample] = absorbed * JOULE_PER_EV / kg_per_nm * 1e-6
    text = "absorbed dose" + (", lower bound" if detector_efficiency == 1.0 else "")
    return xr.DataArray(
        dose, dims=("y", "x"), coords={"y": maps.y, "x": maps.x}, name="dose",
        attrs={"units": "MGy", "long_name": text},
    )  # fmt: skip


def _photons(spectra: xr.Dataset, efficiency: float) -> Array:
    """Photons on a pixel in each frame that the sample can absorb."""
    i0 = np.asarray(spectra["i0"].values, float)
    known = np.isfinite(i0) & (i0 > 0)
    if not known.any():
        raise InputError("I0 is missing at every energy", where="spectra.i0")
    stray = float(spectra["stray_fraction"]) if "stray_fraction" in spectra else 0.0
    photons = np.where(known, i0, np.median(i0[known])) / float(spectra.attrs.get("gain", 1.0))
    return np.asarray(photons * (1.0 - stray) / efficiency)


# ---------------------------------------------------------------- repeats


def compare_repeats(
    first: xr.Dataset,
    second: xr.Dataset,
    fraction: str,
    resolution_nm: float,
    dose_MGy: tuple[xr.DataArray | None, xr.DataArray | None] = (None, None),
) -> xr.Dataset:
    """Compare two scans of one field: noise as it is, and what happened between them.

    Parameters
    ----------
    first, second : Dataset, dims (y, x)
        Maps on one grid (see `on_grid`): amounts and covariances of the components, ``flags``;
        ``particle_label`` of the first. ``attrs`` ``offset_y_nm_errors``, ``offset_x_nm_errors``
        of the second go into the errors.
    fraction : str
        Name of the mapped component.
    resolution_nm : float
        Full width at half maximum of the point spread function [nm]: no noise is correlated
        further.
    dose_MGy : tuple of DataArray or None
        Dose of each scan as `dose_map` makes it, on the same grid. One that is not known is taken
        to be like the other.

    Returns
    -------
    Dataset
        (particle): ``change`` of the fraction, second minus first, with ``change_errors`` (1
        sigma), and ``dose`` [MGy] between the scans. No dims: ``mean_change`` over particles
        with ``mean_change_errors``, 95 % interval ``mean_change_low``, ``mean_change_high``, and
        ``mean_change_systematic``, what the pixels of a scan share (an upper bound: the error
        of the references' scales is common to both scans); ``change_spread``, the standard
        deviation of true changes between particles; ``change_per_MGy`` and its errors, NaN
        without dose; ``noise_ratio``, scatter of the pixels over their stated errors, 1 if these
        are right; ``noise_pixels``, how many pixels share one value of the noise;
        ``changed_share`` of the particles whose change exceeds two standard errors (0.046 by
        chance); ``dichroism``, the p-value of equal changes in all particles, and what it means
        in ``attrs["remark"]``; ``particles_compared``.

    Raises
    ------
    InputError
        Different grids, no particles, or a map is missing.

    Notes
    -----
    With ``g = t_c - F t`` of each scan, F the fraction of the particle, the change of F is the
    sum of the difference of g over the thickness, and ``var(g)`` is known from the covariances.
    Noise of neighbouring pixels is correlated after interpolation: how much is measured on the
    difference itself inside the particles, as is its size. The mean is that of random effects (R.
    C. Paule and J. Mandel, J. Res. Natl. Bur. Stand. 87, 377 (1982)), so that the scatter
    between particles counts, its interval that of J. Hartung and G. Knapp, Stat. Med. 20, 1771
    (2001). Each scan sees the sample as it is in the middle of its own dose, so that half of
    both doses lies between them.
    """
    names = _components(first)
    if fraction not in names or _components(second) != names:
        raise InputError(f"not both scans hold the component '{fraction}'", where="fraction")
    if "particle_label" not in first or not (first["particle_label"].values > 0).any():
        raise InputError("no particles are marked", where="first.particle_label")
    for axis in "yx":
        if not np.array_equal(first[axis].values, second[axis].values):
            raise InputError(
                "the scans lie on different grids",
                where="second",
                remedy="Bring the second scan onto the grid of the first with on_grid.",
            )
    pair = _Repeats.of(first, second, names, fraction)
    labels, noise = pair.numbers, pair.noise(resolution_nm)
    error = np.sqrt(noise.correlated * pair.summed(pair.variance)) / pair.amount
    error = np.hypot(error, pair.moved(second))
    result = xr.Dataset(coords={"particle": ("particle", labels, {"units": "1"})})
    text = "change of the fraction from the first scan to the second"
    result["change"] = ("particle", pair.change, {"units": "1", "long_name": text})
    result["change_errors"] = ("particle", error, {"units": "1"})
    dose = pair.dose(dose_MGy)
    text = "dose between the scans"
    result["dose"] = ("particle", dose, {"units": "MGy", "long_name": text})
    mean = _random_effects(pair.change, error)
    rate = _random_effects(pair.change / dose, error / dose)
    share = np.mean(np.abs(pair.change) > CHANGED_SIGMA * error)
    for name, value, units, text in (
        ("mean_change", mean.value, "1", "mean change of the fraction"),
        ("mean_change_errors", mean.error, "1", ""),
        ("mean_change_low", mean.low, "1", "of the 95 % interval"),
        ("mean_change_high", mean.high, "1", "of the 95 % interval"),
        ("mean_change_systematic", pair.systematic(), "1", "what pixels share, at most"),
        ("change_spread", mean.spread, "1", "between particles, beyond their errors"),
        ("change_per_MGy", rate.value, "MGy-1", "change of the fraction per dose"),
        ("change_per_MGy_errors", rate.error, "MGy-1", ""),
        ("noise_ratio", noise.ratio, "1", "scatter of pixels over their stated errors"),
        ("noise_pixels", noise.correlated / noise.ratio**2, "1", "that share one value of noise"),
        ("changed_share", share, "1", "of particles that changed by more than two errors"),
        ("dichroism", mean.p_equal, "1", "p-value of equal changes in all particles"),
        ("particles_compared", labels.size, "1", ""),
    ):
        result[name] = ((), value, {"units": units} | ({"long_name": text} if text else {}))
    result["dichroism"].attrs["remark"] = DICHROISM_REMARK
    return result


@dataclass(frozen=True)
class _Noise:
    """Scatter over the stated errors, and the variance of a sum over that of independent pixels."""

    ratio: float
    correlated: float


@dataclass(frozen=True)
class _Repeats:
    """Two scans on one grid, pixel by pixel, and their particles.

    `row` (y, x) is the particle's place in `numbers`, -1 where there is none; `difference` that of
    ``t_c - F t`` and `variance` its stated variance; `amount` the thickness summed, by particle.
    """

    row: NDArray[np.intp]
    numbers: NDArray[np.int32]
    difference: Array
    variance: Array
    amount: Array
    change: Array
    relative: tuple[Array, Array]
    shared: Array
    step: Pair

    @classmethod
    def of(cls, first: xr.Dataset, second: xr.Dataset, names: list[str], fraction: str) -> _Repeats:
        """Take the maps apart."""
        good = np.all(
            [
                np.isfinite(scan["thickness"].values)
                & np.isfinite(scan[f"{fraction}_{fraction}_covariance"].values)
                & _usable(scan)
                for scan in (first, second)
            ],
            axis=0,
        )
        labels = np.where(good, first["particle_label"].values, 0).astype(np.int32)
        numbers, row = np.unique(labels, return_inverse=True)
        row = row.reshape(labels.shape) - int(numbers[0] == 0)
        numbers = numbers[numbers > 0]
        inside = row >= 0
        totals = [
            np.bincount(row[inside], scan["thickness"].values[inside].astype(float))
            for scan in (first, second)
        ]
        kept = (totals[0] > 0) & (totals[1] > 0)
        if not kept.any():
            raise InputError("no particle was seen by both scans", where="second")
        renamed = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
        row, numbers = renamed[row], numbers[kept]
        inside = row >= 0
        parts = [_shares(scan, names, fraction, row, inside) for scan in (first, second)]
        shared = np.sum([part[3] ** 2 for part in parts], axis=0)
        return cls(
            row=row,
            numbers=numbers,
            difference=parts[1][1] - parts[0][1],
            variance=parts[0][2] + parts[1][2],
            amount=np.sqrt(totals[0] * totals[1])[kept],
            change=parts[1][0] - parts[0][0],
            relative=(parts[0][1], parts[1][1]),
            shared=shared,
            step=pixel_size(first["thickness"]),
        )

    def summed(self, values: Array) -> Array:
        """Sum over the pixels of each particle."""
        inside = self.row >= 0
        return np.bincount(self.row[inside], values[inside], self.numbers.size).astype(float)

    def noise(self, resolution: float) -> _Noise:
        """Size and correlation of the noise of the difference inside the particles."""
        inside = (self.row >= 0) & (self.variance > 0)
        z = np.where(inside, self.difference / np.sqrt(np.where(inside, self.variance, 1.0)), 0.0)
        ratio = robust_std(z[inside])
        held = HUBER * ratio
        z = np.clip(z, -2.0 * held, 2.0 * held)
        far = max(NOISE_RESOLUTIONS * resolution, NOISE_PIXELS * max(self.step))
        reach = [int(np.ceil(far / s)) for s in self.step]
        shape = [
            int(fft.next_fast_len(n + 2 * r, real=True))
            for n, r in zip(z.shape, reach, strict=True)
        ]
        product, pairs = (
            fft.irfft2(np.abs(fft.rfft2(part.astype(float), shape)) ** 2, shape)
            for part in (z, inside)
        )
        rows, columns = (np.r_[0 : r + 1, -r:0] for r in reach)
        lags = np.ix_(rows, columns)
        near = np.hypot(rows[:, None] * self.step[0], columns * self.step[1]) <= far
        covariance = product[lags] / np.maximum(pairs[lags], 1.0)
        # The mean of each particle was taken off, and with it a share of every lag.
        pixels = self.summed(np.ones(self.row.shape))
        typical = float((pixels**2).sum() / pixels.sum())
        lost = min(float(near.sum()) / typical, 0.5)
        total = float(covariance[near].sum()) / (1.0 - lost)
        return _Noise(ratio, max(total, ratio**2))

    def moved(self, second: xr.Dataset) -> Array:
        """What the error of the registration does to each particle's change."""
        total = np.zeros(self.numbers.size)
        slopes = np.gradient(self.relative[0], *self.step)
        for axis, slope in zip("yx", slopes, strict=True):
            error = float(second.attrs.get(f"offset_{axis}_nm_errors", 0.0))
            total += (self.summed(slope) * error / self.amount) ** 2
        return np.sqrt(total)

    def dose(self, doses: tuple[xr.DataArray | None, xr.DataArray | None]) -> Array:
        """Dose between the middles of both scans, by particle."""
        found = []
        for dose in doses:
            if dose is None:
                continue
            if dose.attrs.get("units") != "MGy" or dose.shape != self.row.shape:
                raise InputError("a dose is in MGy on the grid of the maps", where="dose_MGy")
            known = np.isfinite(dose.values)
            total = self.summed(np.where(known, dose.values, 0.0))
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(total / self.summed(known.astype(float)))
        return np.mean(found, axis=0) if found else np.full(self.numbers.size, np.nan)

    def systematic(self) -> float:
        """Error of the mean change that all pixels of a scan share."""
        return float(np.average(np.sqrt(self.shared), weights=self.amount))


def _shares(
    scan: xr.Dataset, names: list[str], fraction: str, row: NDArray[np.intp], inside: Mask
) -> tuple[Array, Array, Array, Array]:
    """Fraction of each particle; ``t_c - F t`` of its pixels and their variance; the shared error.

    The shared error of the fraction is that of each particle.
    """
    total = np.where(inside, scan["thickness"].values, 0.0).astype(float)
    part = np.where(inside, scan[f"{fraction}_thickness"].values, 0.0).astype(float)
    weight = np.bincount(row[inside], total[inside])
    found = np.bincount(row[inside], part[inside]) / weight
    share = np.where(inside, found[row], 0.0)
    covariances = {
        str(n): np.where(inside, scan[n].values, 0.0).astype(float)
        for n in scan.data_vars
        if str(n).endswith("_covariance")
    }
    variance = np.where(inside, _variance_of(covariances, names, fraction, share), 0.0)
    systematic = np.zeros(weight.size)
    if f"{fraction}_fraction_systematic" in scan:
        values = np.nan_to_num(scan[f"{fraction}_fraction_systematic"].values[inside].astype(float))
        amounts = np.abs(total[inside])
        systematic = np.bincount(row[inside], values * amounts) / np.bincount(row[inside], amounts)
    return found, part - share * total, variance, systematic


@dataclass(frozen=True)
class _Mean:
    """Mean over particles, its standard error and 95 % interval; spread; p-value of no spread."""

    value: float
    error: float
    low: float
    high: float
    spread: float
    p_equal: float


def _random_effects(values: Array, errors: Array) -> _Mean:
    """Random-effects mean of values with errors (Paule and Mandel; Hartung and Knapp)."""
    good = np.isfinite(values) & np.isfinite(errors) & (errors > 0)
    values, errors = values[good], errors[good]
    count = values.size
    if count == 0:
        return _Mean(*(float("nan"),) * 6)

    def mean(variance: float) -> tuple[float, float, Array]:
        """Weighted mean, Cochran's Q and weights at a variance between particles."""
        weights = 1.0 / (errors**2 + variance)
        middle = float(weights @ values / weights.sum())
        return middle, float(weights @ (values - middle) ** 2), weights

    middle, q, weights = mean(0.0)
    p_equal = float(stats.chi2.sf(q, count - 1)) if count > 1 else float("nan")
    spread = 0.0
    if q > count - 1 > 0:
        largest = float(np.var(values, ddof=1)) * count + float(np.max(errors)) ** 2
        spread = float(optimize.brentq(lambda v: mean(v)[1] - (count - 1), 0.0, largest, rtol=1e-6))
        middle, q, weights = mean(spread)
    factor = max(q / (count - 1), 1.0) if count > 1 else 1.0
    error = float(np.sqrt(factor / weights.sum()))
    half = error * float(stats.t.ppf(0.975, count - 1)) if count > 1 else 1.96 * error
    return _Mean(middle, error, middle - half, middle + half, float(np.sqrt(spread)), p_equal)
