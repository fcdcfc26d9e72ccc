"""Pictures that compare a frame with others in the common frame, made without any window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from spectromap._numerics import KERNEL_HALF_WIDTH, sample_shifted
from spectromap.align import bin_frame
from spectromap.plugin._layers import PERCENTILES, SAMPLED_PX, SCREEN_PX, SIGNED_COLOURS

__all__ = ["ALTERNATE", "DIFFERENCE", "OVERLAY", "Box", "Partner", "Wanted", "pictures", "seen"]

Picture = NDArray[np.uint8]
Image = NDArray[np.float32]

ALTERNATE, DIFFERENCE, OVERLAY = "Flicker", "Difference", "Overlay"


@dataclass(frozen=True)
class Box:
    """Part of the common frame, in pixels: the first ones, how many values, and pixels a value."""

    first: tuple[int, int]
    count: tuple[int, int]
    step: int

    @classmethod
    def of(
        cls, rows: slice, columns: slice, screen: tuple[int, int] = (SCREEN_PX, SCREEN_PX)
    ) -> Box:
        """Rows and columns, no finer than a screen of so many pixels shows them."""
        ny, nx = rows.stop - rows.start, columns.stop - columns.start
        step = max(1, ny // screen[0], nx // screen[1])
        return cls((rows.start, columns.start), (max(ny // step, 1), max(nx // step, 1)), step)


@dataclass(frozen=True)
class Wanted:
    """A frame and others to compare it with; shifts in pixels, of the frame and of the others."""

    frame: int
    others: tuple[int, ...]
    shift: tuple[float, float]
    other_shifts: tuple[tuple[float, float], ...]
    box: Box
    how: str


class Partner:
    """The picture that a frame is compared with, which stays while the frame is moved."""

    def __init__(self) -> None:
        self._made: tuple[Any, tuple[Any, ...], Image] | None = None

    def picture(self, values: Any, wanted: Wanted) -> Image:
        """Mean of the other frames, each between black and white."""
        key = (wanted.others, wanted.other_shifts, wanted.box)
        made = self._made
        if made is None or made[0] is not values or made[1] != key:
            self._made = made = values, key, _mean(values, wanted)
        return made[2]


def pictures(values: Any, wanted: Wanted, kept: Partner) -> tuple[Box, list[Picture]]:
    """What is to be seen: two pictures that alternate, or one.

    Parameters
    ----------
    values : array_like, shape (n_energy, ny, nx)
        The frames; only what is needed of them is read.
    wanted : Wanted
        What is compared.
    kept : Partner
        Keeps what the frame is compared with.

    Returns
    -------
    tuple of (Box, list of ndarray)
        Where they lie, and the pictures, red, green, blue and alpha.
    """
    partner = kept.picture(values, wanted)
    frame = _levelled(seen(values, wanted.frame, wanted.shift, wanted.box))
    if wanted.how == ALTERNATE:
        return wanted.box, [_painted(image, image, image) for image in (frame, partner)]
    if wanted.how == OVERLAY:
        return wanted.box, [_painted(frame, partner, frame)]
    difference = frame - partner
    picture = colormaps[SIGNED_COLOURS[0]](0.5 + difference, bytes=True)
    picture[..., 3] = 255 * np.isfinite(difference)
    return wanted.box, [picture]


def _mean(values: Any, wanted: Wanted) -> Image:
    """Mean of the other frames where most of them have data."""
    total = np.zeros(wanted.box.count, dtype=np.float32)
    known = np.zeros(wanted.box.count, dtype=np.float32)
    for frame, shift in zip(wanted.others, wanted.other_shifts, strict=True):
        image = _levelled(seen(values, frame, shift, wanted.box))
        finite = np.isfinite(image)
        total[finite] += image[finite]
        known += finite
    enough = known > 0.5 * len(wanted.others)
    mean = np.full_like(total, np.nan)
    mean[enough] = total[enough] / known[enough]
    return _levelled(mean)


def seen(values: Any, frame: int, shift: tuple[float, float], box: Box) -> Image:
    """A frame in a box of the common frame, interpolated once.

    Parameters
    ----------
    values : array_like, shape (n_energy, ny, nx)
        The frames.
    frame : int
        Which of them.
    shift : tuple of float
        Its shift along y and x in pixels.
    box : Box
        What is wanted of the common frame.

    Returns
    -------
    ndarray, shape `box.count`
        NaN where the frame has no data.
    """
    (rows, y), (columns, x) = (
        _needed(box.first[k], box.count[k], shift[k], box.step, values.shape[1 + k])
        for k in range(2)
    )
    part = np.asarray(values[frame, rows, columns])
    part = np.abs(part) if np.iscomplexobj(part) else part
    ny, nx = box.count
    if min(part.shape) < box.step:
        return np.full((ny, nx), np.nan, dtype=np.float32)
    binned = bin_frame(part.astype(np.float32, copy=False), box.step)
    missing = max(nx - binned.shape[1], 0)
    binned = np.pad(binned, ((0, 0), (0, missing)), constant_values=np.nan)
    return np.asarray(sample_shifted(binned, y, x, range(ny))[:, :nx], dtype=np.float32)


def _needed(first: int, count: int, shift: float, step: int, size: int) -> tuple[slice, float]:
    """Pixels of a frame along an axis, and where in them, in steps, the first value lies."""
    halo = KERNEL_HALF_WIDTH * step
    low = min(max(first + int(np.floor(shift)) - halo, 0), size)
    high = min(max(first + count * step + int(np.ceil(shift)) + halo, low), size)
    return slice(low, high), (first + shift - low) / step


def _levelled(image: Image) -> Image:
    """An image between 0 and 1, so that frames of other energies look alike."""
    every = -(-max(image.shape) // SAMPLED_PX)
    sample = image[::every, ::every]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return image
    low, high = np.percentile(sample, PERCENTILES).astype(np.float32)
    spread = max(high - low, np.finfo(np.float32).tiny)
    return np.asarray((image - low) / spread, dtype=np.float32)


def _painted(red: Image, green: Image, blue: Image) -> Picture:
    """An opaque picture, transparent where there is no data."""
    picture = np.zeros((*red.shape, 4), dtype=np.uint8)
    finite = np.isfinite(red) & np.isfinite(green)
    for k, channel in enumerate((red, green, blue)):
        picture[..., k] = np.clip(np.where(finite, channel, 0.0) * 255, 0, 255)
    picture[..., 3] = 255 * finite
    return picture
