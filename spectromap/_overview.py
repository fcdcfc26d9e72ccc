"""The field at a glance: a coarse mean image, from which the open area and pixels are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap import absorption, align
from spectromap._streaming import binned
from spectromap.schema import InputError, pixel_size

Mask = NDArray[np.bool_]
Image = NDArray[np.float64]

#: Frames are binned until no side has more pixels than this.
OVERVIEW_PX = 512
#: Slopes of thinner places are noise over nothing.
LEAST_SLOPE_OD = 0.05


@dataclass
class Overview:
    """Coarse aligned frames of a stack and their mean.

    Attributes
    ----------
    frames : ndarray, shape (n_energy, rows, columns)
        Intensities without dark counts, aligned.
    image : ndarray, shape (rows, columns)
        Mean of the frames, each divided by its brightness; NaN where too few saw the place.
    binning : int
        Pixels of the stack along each side of a coarse one.
    shape : tuple of int
        Rows and columns of the stack.
    pixel_nm : tuple of float
        Size of the coarse pixels.
    od : ndarray, shape (rows, columns)
        Optical density of the mean image, once the open area is known.
    """

    frames: NDArray[np.float32]
    image: Image
    binning: int
    shape: tuple[int, int]
    pixel_nm: tuple[float, float]
    od: Image

    @classmethod
    def of(
        cls,
        small: xr.DataArray,
        binning: int,
        shape: tuple[int, int],
        shifts: xr.Dataset,
        dark: float,
    ) -> Overview:
        """Make it from a stack that is binned already, by `binning`; `dark` is that per pixel."""
        again = -(-max(small.shape[1:]) // OVERVIEW_PX)
        coarse = binned(small, again, False)
        binning *= again
        aligned = align.apply_shifts(coarse, shifts)
        frames = absorption.intensity(aligned.values, str(small.attrs["quantity"]))
        frames = frames - np.float32(dark * binning**2)
        image = _mean_image(frames)
        return cls(frames, image, binning, shape, pixel_size(coarse), np.full_like(image, np.nan))

    def find_open_area(self, resolution_nm: float) -> tuple[Mask, float]:
        """The open area on the pixels of the stack, and how far an I0 from it is in doubt.

        Where no open area stands out it is the brightest pixels, and the doubt is not zero.

        Raises
        ------
        InputError
            No pixel was measured in most of the frames.
        """
        margin = resolution_nm / max(self.pixel_nm)
        area, doubt = absorption.find_open_area(self.image, margin, self.frames), 0.0
        if not area.any():
            area, doubt = absorption.brightest_area(self.image)
        if not area.any():
            raise InputError(
                "no pixel is measured in most of the frames",
                where="i0",
                remedy="Check the shifts: the frames hardly overlap.",
            )
        large = np.repeat(np.repeat(area, self.binning, axis=0), self.binning, axis=1)
        result = np.zeros(self.shape, dtype=bool)
        result[: large.shape[0], : large.shape[1]] = large[: self.shape[0], : self.shape[1]]
        return result, doubt

    def set_open_area(self, area: Mask) -> None:
        """Take the brightness of the open area (on the pixels of the stack) for that without OD.

        The frames are forgotten: they are not needed any more.
        """
        self.frames = self.frames[:0].copy()
        step = slice(self.binning // 2, None, self.binning)
        inside = area[step, step][: self.image.shape[0], : self.image.shape[1]]
        inside = inside & np.isfinite(self.image)
        level = np.median(self.image[inside]) if inside.any() else np.nanpercentile(self.image, 99)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.od = np.where(self.image > 0, -np.log(self.image / level), np.nan)

    def pixels(self, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """Pixels of the stack (flat indices) in the middle of coarse ones (flat indices)."""
        y, x = np.unravel_index(chosen, self.od.shape)
        middle = self.binning // 2
        return np.ravel_multi_index(
            (y * self.binning + middle, x * self.binning + middle), self.shape
        )

    def unevenness(self, length_nm: float) -> Image:
        """Relative change of the OD over a length, (rows, columns)."""
        od = np.nan_to_num(ndimage.gaussian_filter(np.nan_to_num(self.od), 1.0))
        change = np.hypot(*(np.gradient(od, step, axis=k) for k, step in enumerate(self.pixel_nm)))
        return np.asarray(change * length_nm / np.maximum(od, LEAST_SLOPE_OD))

    def log_gradient(self, rows: range) -> NDArray[np.float32]:
        """Relative slope of the OD in nm-1 along y and x, (2, rows, columns of the stack)."""
        od = np.nan_to_num(self.od)
        slopes: list[Any] = [
            np.gradient(od, step, axis=axis) if od.shape[axis] > 1 else np.zeros_like(od)
            for axis, step in enumerate(self.pixel_nm)
        ]
        relative = np.where(od > LEAST_SLOPE_OD, slopes / np.maximum(od, LEAST_SLOPE_OD), 0.0)
        y = np.minimum(np.arange(rows.start, rows.stop) // self.binning, od.shape[0] - 1)
        x = np.minimum(np.arange(self.shape[1]) // self.binning, od.shape[1] - 1)
        return np.ascontiguousarray(relative[:, y][:, :, x], dtype=np.float32)


def _mean_image(frames: NDArray[np.float32]) -> Image:
    """Mean over frames divided by their brightness; NaN where less than half of them saw it."""
    sums = np.zeros(frames.shape[1:])
    seen = np.zeros(frames.shape[1:])
    used = 0
    for frame in frames:
        finite = np.isfinite(frame)
        bright = float(np.percentile(frame[finite], 95)) if finite.any() else 0.0
        if bright > 0:
            sums += np.where(finite, frame / np.float32(bright), 0.0)
            seen += finite
            used += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(seen > 0.5 * used, sums / seen, np.nan)
