"""Stacks larger than memory: frames are read once, then slabs of rows, and maps grow by slabs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import align, detector
from spectromap._numerics import rows_needed, sample_points, sample_shifted
from spectromap.io._scratch import ScratchArray, check_space, lazily
from spectromap.schema import pixel_size

#: Stacks, or all their maps, up to this size are held in memory, larger ones in scratch files.
IN_MEMORY_BYTES = 256 * 2**20
#: Rows of one slab are chosen so that a slab of all energies has about this size.
SLAB_BYTES = 48 * 2**20
#: Maps on the disk are read and written in pieces of about this size.
CHUNK_BYTES = 16 * 2**20
#: Guess of how many maps a fit makes, to decide where they are kept.
EXPECTED_MAPS = 26

Folder = str | Path | None


#: Progress bars or none, or what is given the items and a text, gives the items back one by one,
#: and may break off in between.
Progress = bool | Callable[[list[Any], str], Iterable[Any]]


def progress_bar(items: Sequence[Any], text: str, show: Progress) -> Any:
    """The items, with a progress bar if one is wanted."""
    if callable(show):
        return show(list(items), text)
    from tqdm import tqdm

    return tqdm(items, desc=text, disable=None if show else True, leave=False, delay=2.0)


@dataclass
class Frames:
    """A stack that was read once and rid of defects, in memory or on the disk."""

    stack: xr.DataArray
    defects: xr.Dataset
    scratch: ScratchArray | None

    @classmethod
    def read(
        cls, stack: xr.DataArray, dark_counts: float, folder: Folder, progress: Progress
    ) -> Frames:
        """Read every frame once, inspecting it on the way."""
        size = 4 * math.prod(stack.shape)
        scratch: ScratchArray | None = None
        if size > IN_MEMORY_BYTES and folder is not None:
            check_space(folder, size)
            scratch = ScratchArray(folder, stack.shape, np.float32)
        memory = np.empty(stack.shape if scratch is None else (0, 0, 0), dtype=np.float32)
        inspection = detector.Inspection(
            stack.energy.values,
            (stack.sizes["y"], stack.sizes["x"]),
            stack.attrs["quantity"],
            dark_counts=dark_counts,
            name=str(stack.attrs.get("source_file", "stack")),
        )
        for start, stop in progress_bar(list(_energy_chunks(stack)), "reading frames", progress):
            block = np.asarray(stack[start:stop].values)
            for index in range(start, stop):
                clean = inspection.add(index, block[index - start])
                if scratch is None:
                    memory[index] = clean
                else:
                    scratch.write((index,), clean)
        defects = inspection.finish()
        data: Any = memory
        if scratch is None:
            detector.blank(memory, defects)
        else:
            data = lazily(_without_defects(scratch, defects), ("energy", "y", "x"))
        return cls(_like(stack, data), defects, scratch)

    def without(
        self,
        energies: Sequence[int] = (),
        pixels: NDArray[np.bool_] | None = None,
        rows: NDArray[np.bool_] | None = None,
    ) -> Frames:
        """The frames without some of them, pixels (y, x), or rows (energy, y) of single frames."""
        bad = [b for b in (pixels, rows) if b is not None and b.any()]
        if not energies and not bad:
            return self
        defects = self.defects.copy(deep=True)
        defects["lost"].values[list(energies)] = True
        if pixels is not None:
            defects["dead"].values |= pixels
        if rows is not None:
            defects["bad_rows"].values |= rows
        data: Any
        if self.scratch is None:
            data = detector.blank(self.stack.values.copy(), defects)
        else:
            data = lazily(_without_defects(self.scratch, defects), ("energy", "y", "x"))
        return Frames(_like(self.stack, data), defects, self.scratch)

    def points(
        self, pixels: NDArray[np.intp], shifts: xr.Dataset, frames: Iterable[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Numbers of some frames, and their values at pixels (flat indices) of the common frame."""
        y, x = np.unravel_index(pixels, self.stack.shape[1:])
        dy, dx = pixel_size(self.stack)
        shift_y, shift_x = shifts["shift_y"].values / dy, shifts["shift_x"].values / dx
        held = self.stack.values if self.scratch is None else None
        ny = self.stack.sizes["y"]
        rows = range(int(y.min()), int(y.max()) + 1) if y.size else range(0)
        for index in frames:
            by, bx = float(shift_y[index]), float(shift_x[index])
            if held is not None:
                yield index, np.asarray(sample_points(held[index], y, x, by, bx))
                continue
            needed = rows_needed(rows, by, ny)
            piece = np.asarray(self.stack[index, needed.start : needed.stop].values)
            yield index, np.asarray(sample_points(piece, y - needed.start, x, by, bx))

    def slabs(self) -> list[range]:
        """Rows of the common frame, a slab at a time."""
        energies, ny, nx = self.stack.shape
        rows = max(1, int(SLAB_BYTES // (4 * energies * nx)))
        return [range(start, min(ny, start + rows)) for start in range(0, ny, rows)]

    def aligned(self, shifts: xr.Dataset, rows: range) -> xr.DataArray:
        """Rows of all aligned frames; flagged frames are NaN."""
        energies, ny, nx = self.stack.shape
        result = np.empty((energies, len(rows), nx), dtype=np.float32)
        flagged = shifts["flagged"].values
        for index in range(energies):
            if flagged[index]:
                result[index] = np.nan
                continue
            shift_y, shift_x = _shift_px(self.stack, shifts, index)
            needed = rows_needed(rows, shift_y, ny)
            piece = np.asarray(self.stack[index, needed.start : needed.stop].values)
            local = range(rows.start - needed.start, rows.stop - needed.start)
            result[index] = sample_shifted(piece, shift_y, shift_x, local)
        part = self.stack.isel(y=slice(rows.start, rows.stop))
        return xr.DataArray(result, dims=part.dims, coords=part.coords, attrs=part.attrs)


def _like(stack: xr.DataArray, data: Any) -> xr.DataArray:
    """Clean frames with the axes of the stack."""
    return xr.DataArray(
        data, dims=stack.dims, coords=stack.coords, attrs=dict(stack.attrs), name="intensity"
    )


def _without_defects(scratch: ScratchArray, defects: xr.Dataset) -> ScratchArray:
    """The same data, NaN where only the whole stack could tell that they are unusable."""
    return scratch.filtered(lambda values, box: detector.blank(values, defects, box[1], box[0]))


def binned(stack: xr.DataArray, binning: int, progress: Progress) -> xr.DataArray:
    """A stack of larger pixels, in memory: sums of `binning` x `binning` of the stack's."""
    if binning == 1:
        return stack
    ny, nx = (n // binning for n in stack.shape[1:])
    small = np.empty((stack.sizes["energy"], ny, nx), dtype=np.float32)
    for index in progress_bar(list(range(len(small))), "binning frames", progress):
        small[index] = align.bin_frame(np.asarray(stack[index].values), binning)
    coords: dict[str, Any] = {"energy": stack.energy}
    for dim, size in (("y", ny), ("x", nx)):
        centres = stack[dim].values[: size * binning].reshape(size, binning).mean(axis=1)
        coords[dim] = (dim, centres, stack[dim].attrs)
    return xr.DataArray(small, dims=stack.dims, coords=coords, attrs=stack.attrs)


def _shift_px(stack: xr.DataArray, shifts: xr.Dataset, index: int) -> tuple[float, float]:
    """Shift of a frame in pixels."""
    dy, dx = pixel_size(stack)
    return float(shifts["shift_y"].values[index]) / dy, float(shifts["shift_x"].values[index]) / dx


def _energy_chunks(stack: xr.DataArray) -> Iterator[tuple[int, int]]:
    """First and last frame of each chunk of the file, so that none is decoded twice."""
    sizes = stack.chunks[0] if stack.chunks else (1,) * stack.sizes["energy"]
    start = 0
    for size in sizes:
        yield start, start + int(size)
        start += int(size)


@dataclass
class MapStore:
    """Maps of a whole field that come slab by slab."""

    stack: xr.DataArray
    folder: Folder
    _kept: dict[str, Any] = field(default_factory=dict)
    _attrs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _common: dict[str, Any] = field(default_factory=dict)

    def put(self, rows: range, maps: xr.Dataset) -> None:
        """Keep the rows of all maps."""
        if not self._kept:
            self._make(maps)
        for name, kept in self._kept.items():
            if isinstance(kept, ScratchArray):
                kept.write((slice(rows.start, rows.stop),), maps[name].values)
            else:
                kept[rows.start : rows.stop] = maps[name].values

    def _make(self, maps: xr.Dataset) -> None:
        shape = self.stack.shape[1:]
        size = 4 * EXPECTED_MAPS * math.prod(shape)
        on_disk = size > IN_MEMORY_BYTES and self.folder is not None
        if on_disk and self.folder is not None:
            check_space(self.folder, size)
        self._common = dict(maps.attrs)
        for name, array in maps.data_vars.items():
            self._attrs[str(name)] = dict(array.attrs)
            self._kept[str(name)] = (
                ScratchArray(self.folder, shape, array.dtype)
                if on_disk and self.folder is not None
                else np.empty(shape, dtype=array.dtype)
            )

    def dataset(self) -> xr.Dataset:
        """The whole maps; those on the disk are read anew each time they are used."""
        result = xr.Dataset(coords={"y": self.stack.y, "x": self.stack.x}, attrs=self._common)
        for name, kept in self._kept.items():
            if isinstance(kept, ScratchArray):
                # In chunks, so that whoever writes them never holds more than a few.
                rows = max(1, CHUNK_BYTES // (kept.dtype.itemsize * kept.shape[1]))
                variable = lazily(kept, ("y", "x")).chunk({"y": rows})
            else:
                variable = xr.Variable(("y", "x"), kept)
            result[name] = variable
            result[name].attrs = self._attrs[name]
        return result
