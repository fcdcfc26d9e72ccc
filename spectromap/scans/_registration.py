"""Where a second scan of a field lies, from the thickness that both show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft, ndimage, special

from spectromap._numerics import fwhm_to_sigma, robust_std, vertex
from spectromap.scans._maps import Array, Mask, usable
from spectromap.schema import InputError, check_map, pixel_size

#: Coordinates of a file are rarely off by more than this share of the smaller field.
NEAR = 0.25
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
        valid = np.isfinite(values) & np.isfinite(errors) & usable(maps)
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
        Largest offset along either axis. By default a quarter of the smaller field, and where no
        place stands out there, whatever leaves a fifth of the smaller field in common.
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
    near = NEAR * float(min(first.extent.max(), second.extent.max()))
    for limit in (near, None) if max_offset_nm is None else (max_offset_nm,):
        found = _placed(first, second, limit)
        if found is not None and found[1] >= min_confidence:
            return _registration(*found)
    raise InputError(
        "the scan cannot be registered with the first: no place stands out",
        where="others",
        remedy="Check that both show the same field; bring their coordinates nearer together.",
    )


def _placed(
    first: _Picture, second: _Picture, limit: float | None
) -> tuple[_Found, float, float] | None:
    """Place of the second map, its confidence, and the share in common; None where it is lost."""
    coarse = _Coarse.between(first, second)
    best = coarse.best(limit)
    if best is None:
        return None
    offset, confidence, overlap = best
    # The coarser map is what is fitted; the finer can be interpolated.
    swapped = float(np.max(second.step)) > float(np.max(first.step))
    still, moving = (second, first) if swapped else (first, second)
    fit = _Fit(still, moving, -offset if swapped else offset)
    try:
        found = fit.run()
    except InputError:  # it went where the fields have nothing in common
        return None
    pixel = float(np.max(still.step))
    error = float(np.sqrt(np.max(np.diag(found.covariance)[:2])))
    confidence /= 1.0 + (error / (POOR_ERROR_PX * pixel)) ** 2
    if np.max(np.abs(fit.start - found.place[:2])) > 2.5 * coarse.cell:
        return None
    return (found.reversed() if swapped else found), confidence, overlap


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

    def best(self, limit: float | None) -> tuple[Array, float, float] | None:
        """Offset [nm] of the best place, how it stands out (0 to 1), and the share in common.

        None where the fields have nothing in common.
        """
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
            return None
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
        areas: list[float] = []
        for values, valid in zip(self.values, self.valid, strict=True):
            flat = np.where(valid > 0, values - values[valid > 0].mean(), 0.0)
            power = np.abs(fft.fft2(flat)) ** 2
            areas.append(float(power.size * (power**2).sum() / max(power.sum() ** 2, 1e-30)))
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
            and special.fdtrc(2, tiles - 2, waves) < DISTORTION_P
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
    slope_y, slope_x = (np.gradient(image, step[axis], axis=axis) for axis in (0, 1))
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
    inverse = np.asarray(np.linalg.pinv(curvature, rcond=1e-12, hermitian=True), float)
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
