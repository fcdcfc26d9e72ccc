"""CPU time of the array stages over the CPU time of a floor measured in the same run.

One thread. Floors, for a float32 stack of 60 frames: T1 one ``rfft2`` and ``irfft2`` a frame;
T2 one sum over the energies; T3 one product of the spectra with their transpose. Sizes S, M, L
are 256, 1024 and 2048 pixels squared. Each time is the smallest of a few repeats.

R are the radial fits, which have no floor: CPU seconds, for 1,000 particles as spheres and for one
particle of 60 x 60 pixels as the body it is, diffusion and core-shell both.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from scipy import fft, ndimage
from threadpoolctl import threadpool_limits

SIZES = {"S": 256, "M": 1024, "L": 2048}
Row = tuple[str, str, str, str, str, int]
ENERGIES = 60
COUNTS = 2000.0
#: What each ratio, or time, should not exceed.
BARS = {
    "shifts": 2.5,
    "shifts, fast": 1.0,
    "optical density": 8.0,
    "fit, 2 references": 12.0,
    "fit, 3 references": 12.0,
    "PCA": 2.0,
    "k-means": 6.0,
    "1,000 particles as spheres": 60.0,
    "body of 60 x 60 pixels": 2.0,
    "section of 60 x 60 pixels": 2.0,
}
#: Pixel and resolution of the radial fits [nm], and the section [nm].
PIXEL, RESOLUTION, SECTION = 5.0, 10.0, 80.0


def cpu_time(function: Callable[[], object], repeats: int) -> float:
    """Smallest CPU time of a few calls, in s."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def spectra(energy: np.ndarray) -> dict[str, np.ndarray]:
    """Three absorption spectra per nm with Mn-like white lines."""
    step = 0.004 / (1.0 + np.exp(-(energy - 644.0) / 0.8))

    def line(centre: float, width: float, height: float) -> np.ndarray:
        return height * np.exp(-0.5 * ((energy - centre) / width) ** 2) + step + 0.0021

    return {
        "mn4": line(643.3, 0.8, 0.018) + line(641.0, 0.6, 0.007) - step - 0.0021,
        "mn3": line(642.0, 1.0, 0.016),
        "mn2": line(640.0, 0.5, 0.022),
    }


def reference_set(energy: np.ndarray, count: int) -> xr.Dataset:
    """References as the fit takes them."""
    result = xr.Dataset(
        coords={"energy": ("energy", energy, {"units": "eV"})}, attrs={"units": "nm-1"}
    )
    for name, values in list(spectra(energy).items())[:count]:
        result[name] = ("energy", values, {"units": "nm-1"})
        result[f"{name}_slope"] = ("energy", np.gradient(values, energy), {"units": "nm-1 eV-1"})
    return result


def make_stack(size: int, seed: int = 0) -> xr.DataArray:
    """Counts of round particles that drift by whole and half pixels, with Poisson noise."""
    rng = np.random.default_rng(seed)
    energy = np.linspace(635.0, 655.0, ENERGIES)
    margin = 16
    wide = size + 2 * margin
    thickness = np.zeros((wide, wide), dtype=np.float32)
    for _ in range(max(8, size * size // 6000)):
        radius = rng.uniform(5.0, 22.0)
        cy, cx = rng.uniform(radius + 1, wide - radius - 1, 2)
        rows = slice(int(cy - radius), int(cy + radius) + 2)
        columns = slice(int(cx - radius), int(cx + radius) + 2)
        yy, xx = np.mgrid[rows, columns]
        half = np.sqrt(np.maximum(radius**2 - (yy - cy) ** 2 - (xx - cx) ** 2, 0.0))
        thickness[rows, columns] = np.maximum(thickness[rows, columns], 9.0 * half)
    finer = 0.25 * (thickness + np.roll(thickness, 1, 0) + np.roll(thickness, 1, 1)
                    + np.roll(thickness, (1, 1), (0, 1)))  # fmt: skip
    counts = np.empty((ENERGIES, size, size), dtype=np.float32)
    mu4, mu3 = spectra(energy)["mn4"], spectra(energy)["mn3"]
    for k in range(ENERGIES):
        y, x = margin + (k * 7) % 11 - 5, margin + (k * 5) % 9 - 4
        field = (thickness if k % 2 else finer)[y : y + size, x : x + size]
        counts[k] = rng.poisson(COUNTS * np.exp(-(0.7 * mu4[k] + 0.3 * mu3[k]) * field))
    axis = np.arange(size) * 10.0
    return xr.DataArray(
        counts,
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", energy, {"units": "eV"}),
            "y": ("y", axis, {"units": "nm"}),
            "x": ("x", axis, {"units": "nm"}),
        },
        attrs={"quantity": "counts", "units": "count", "technique": "stxm"},
    )


def floors(stack: xr.DataArray, repeats: int) -> dict[str, float]:
    """CPU time of the three floors, in s."""
    frames = stack.values
    flat = frames.reshape(len(frames), -1)

    def transforms() -> None:
        for frame in frames:
            fft.irfft2(fft.rfft2(frame), frame.shape)

    return {
        "T1": cpu_time(transforms, repeats),
        "T2": cpu_time(lambda: np.sum(flat, axis=0), repeats),
        "T3": cpu_time(lambda: flat @ flat.T, repeats),
    }


def tasks(stack: xr.DataArray) -> dict[str, tuple[str, Callable[[], object]]]:
    """Each stage with its floor."""
    from spectromap import absorption, align, explore, unmix

    i0 = xr.Dataset(coords={"energy": stack.energy})
    for name, value in (("i0", COUNTS), ("i0_errors", 1.0), ("noise", 1.0)):
        i0[name] = ("energy", np.full(ENERGIES, value))
    measured = absorption.transmission(stack, i0)
    sets = {count: reference_set(stack.energy.values, count) for count in (2, 3)}

    def density() -> object:
        return absorption.optical_density(absorption.transmission(stack, i0))

    return {
        "shifts": ("T1", lambda: align.register(stack)),
        "shifts, fast": ("T1", lambda: align.register(stack, fast=True)),
        "optical density": ("T2", density),
        "fit, 2 references": ("T2", lambda: unmix.fit_components(measured, sets[2])),
        "fit, 3 references": ("T2", lambda: unmix.fit_components(measured, sets[3])),
        "PCA": ("T3", lambda: explore.principal_components(measured, n_components=5)),
        "k-means": ("T3", lambda: explore.cluster_spectra(measured, n_clusters=4)),
    }


def particle_maps(count: int, radius: float, section: float | None, seed: int = 0) -> xr.Dataset:
    """Maps of spheres of about a radius, in rows, with a rim that was changed, and with noise."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    step = int(2 * radius / PIXEL) + 12
    axis = (np.arange(side * step) + 0.5) * PIXEL
    shape = (axis.size, axis.size)
    thickness, changed = np.zeros((2, *shape))
    labels, distance = np.zeros(shape, int), np.full(shape, -1e3)
    for k in range(count):
        middle = (np.array([k // side, k % side]) + 0.5) * step * PIXEL
        own = radius * (1.0 if count < 10 else rng.uniform(0.6, 1.0))
        off = np.hypot(axis[:, None] - middle[0], axis - middle[1])
        half = np.sqrt(np.maximum(own**2 - off**2, 0.0))
        core = np.sqrt(np.maximum((0.85 * own) ** 2 - off**2, 0.0))
        if section is not None:
            half, core = np.minimum(half, 0.5 * section), np.minimum(core, 0.5 * section)
        thickness += 2.0 * half
        changed += 2.0 * (half - core)
        labels[off < own] = k + 1
        distance = np.maximum(distance, own - off)
    width = RESOLUTION / PIXEL / 2.3548
    thickness, changed = (ndimage.gaussian_filter(m, width) for m in (thickness, changed))
    fraction = 0.1 + 0.5 * changed / np.maximum(thickness, 1e-3)
    errors = 1.0 / np.maximum(thickness, 10.0)
    values = {
        "thickness": (thickness + rng.normal(0.0, 1.0, shape), "nm"),
        "thickness_errors": (np.ones(shape), "nm"),
        "mn3_fraction": (fraction + errors * rng.normal(0.0, 1.0, shape), "1"),
        "mn3_fraction_errors": (errors, "1"),
        "particle_label": (labels, "1"),
        "edge_distance": (distance, "nm"),
    }
    return xr.Dataset(
        {name: (("y", "x"), v, {"units": units}) for name, (v, units) in values.items()},
        coords={name: (name, axis, {"units": "nm"}) for name in ("y", "x")},
    )


def radial_tasks() -> dict[str, tuple[float, Callable[[], object]]]:
    """Each radial fit, and by what its time is multiplied."""
    from spectromap.profiles import radial_profiles
    from spectromap.radial.fit import Context, fit_models

    energy = np.linspace(635.0, 655.0, ENERGIES)

    def task(
        count: int, radius: float, shape: Literal["sphere", "measured"], section: float | None
    ) -> Callable[[], object]:
        maps = particle_maps(count, radius, section)
        profiles = radial_profiles(maps, "mn3", RESOLUTION)
        area = np.bincount(maps["particle_label"].values.ravel())[1:] * PIXEL**2
        table = xr.Dataset(
            {"radius": ("particle", np.sqrt(area / np.pi))},
            coords={"particle": np.arange(1, count + 1)},
        )
        context = Context(
            geometry="dispersed" if section is None else "lamella",
            section_nm=section,
            resolution_nm=RESOLUTION,
            references=reference_set(energy, 2)[["mn4", "mn3"]],
            photons=COUNTS,
        )
        return lambda: fit_models(profiles, table, context, maps, shape=shape)

    wide = 30 * PIXEL
    return {
        "1,000 particles as spheres": (10.0, task(100, 120.0, "sphere", None)),
        "body of 60 x 60 pixels": (0.5, task(2, wide, "measured", None)),
        "section of 60 x 60 pixels": (0.5, task(2, wide, "measured", SECTION)),
    }


def stage_rows(size: str, options: argparse.Namespace) -> list[Row]:
    """Ratios of the array stages at one size."""
    stack = make_stack(SIZES[size])
    floor = floors(stack, options.repeats)
    print(size, ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in floor.items()), flush=True)
    rows = []
    for name, (kind, function) in tasks(stack).items():
        if not name.startswith(options.only):
            continue
        function()  # compiles, warms the caches
        ratio = cpu_time(function, options.repeats) / floor[kind]
        rows.append((name, size, kind, f"{ratio:.2f}", f"{BARS[name]:g}", int(ratio <= BARS[name])))
        print(f"  {name:20s} {ratio:7.2f} times {kind} (bar {BARS[name]:g})", flush=True)
    return rows


def radial_rows(options: argparse.Namespace) -> list[Row]:
    """CPU seconds of the radial fits."""
    print("R", flush=True)
    rows = []
    for name, (factor, function) in radial_tasks().items():
        if not name.startswith(options.only):
            continue
        function()  # compiles, warms the caches
        spent = factor * cpu_time(function, options.repeats)
        rows.append((name, "R", "s", f"{spent:.2f}", f"{BARS[name]:g}", int(spent <= BARS[name])))
        print(f"  {name:28s} {spent:7.2f} s (bar {BARS[name]:g})", flush=True)
    return rows


def main() -> int:
    """Measure, print and, if asked, write; the exit code says whether all bars were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="SMLR", help="which of S, M, L and R")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="tasks whose name starts with this")
    parser.add_argument("--out", type=Path, help="CSV file for the figures")
    options = parser.parse_args()
    rows = []
    with threadpool_limits(1):
        for size in options.sizes:
            rows += radial_rows(options) if size == "R" else stage_rows(size, options)
    if options.out:
        with open(options.out, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("task", "size", "floor", "value", "bar", "met"))
            writer.writerows(rows)
    return int(not all(row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
