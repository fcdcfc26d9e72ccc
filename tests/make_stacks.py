"""Small stacks with known truth for the tests of single stages.

It shares nothing with the package, neither with the stages nor with `spectromap.synthetic`:
spheres by formula, drift and blur by the Fourier shift theorem on a larger canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

MARGIN = 32


@dataclass
class Made:
    """A stack and what went into it."""

    stack: xr.DataArray
    references: xr.Dataset
    shifts_px: np.ndarray
    t4: np.ndarray
    t3: np.ndarray
    i0: np.ndarray


def axis(count: int, step: float) -> np.ndarray:
    return np.arange(count) * step


def spectra(energy: np.ndarray) -> dict[str, np.ndarray]:
    """Two made-up Mn L3 spectra per nm."""

    def line(centre: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * ((energy - centre) / width) ** 2)

    step = 0.004 / (1.0 + np.exp(-(energy - 644.0) / 0.8))
    return {
        "mn4": 0.0022 + 0.009 * line(641.0, 0.6) + 0.018 * line(643.3, 0.8) + step,
        "mn3": 0.0021 + 0.016 * line(642.0, 1.0) + 0.004 * line(640.4, 0.6) + step,
    }


def reference_set(energy: np.ndarray, shift: float = 0.0) -> xr.Dataset:
    """The spectra as `spectromap.references.reference_set` would give them."""
    values, above, below = (spectra(energy + shift + d) for d in (0.0, 1e-3, -1e-3))
    data = {}
    for name in values:
        slope = (above[name] - below[name]) / 2e-3
        data[name] = ("energy", values[name], {"units": "nm-1"})
        data[f"{name}_slope"] = ("energy", slope, {"units": "nm-1 eV-1"})
    return xr.Dataset(
        data, coords={"energy": ("energy", energy, {"units": "eV"})}, attrs={"units": "nm-1"}
    )


def label(values: np.ndarray, energy: np.ndarray, pixel: float, **attrs: object) -> xr.DataArray:
    """An array as a stack."""
    return xr.DataArray(
        values,
        dims=("energy", "y", "x"),
        coords={
            "energy": ("energy", energy, {"units": "eV"}),
            "y": ("y", axis(values.shape[1], pixel), {"units": "nm"}),
            "x": ("x", axis(values.shape[2], pixel), {"units": "nm"}),
        },
        attrs={"quantity": "counts", "units": "count", "technique": "stxm", **attrs},
    )


def spheres(rng: np.random.Generator, shape: tuple[int, int], pixel: float) -> tuple:
    """Thickness of Mn4+ and Mn3+ of a dozen spheres, reduced at their rims, in nm."""
    yy, xx = np.mgrid[: shape[0], : shape[1]].astype(float)
    t4, t3 = np.zeros(shape), np.zeros(shape)
    count = max(6, shape[0] * shape[1] // 3000)
    for _ in range(count):
        radius = rng.uniform(6, 14)
        cy = rng.uniform(MARGIN + 12, shape[0] - MARGIN - 12)
        cx = rng.uniform(MARGIN + 12, shape[1] - MARGIN - 12)
        half = np.sqrt(np.maximum(radius**2 - (yy - cy) ** 2 - (xx - cx) ** 2, 0.0))
        fraction = 0.15 + 0.45 * (1.0 - half / radius)
        t4 += 2 * half * (1 - fraction) * 100 / 14
        t3 += 2 * half * fraction * 100 / 14
    return t4, t3


def make(
    seed: int = 0,
    shape: tuple[int, int] = (128, 144),
    n_energies: int = 60,
    photons: float = 2000.0,
    pixel: float = 10.0,
    blur_px: float = 2.0,
    drift_px: float = 7.0,
    jump_px: float = 0.0,
    dark: float = 0.0,
    energy_shift: float = 0.0,
    diffuse: bool = False,
) -> Made:
    """Simulate a stack; `energy_shift` is true minus recorded energy in eV."""
    rng = np.random.default_rng(seed)
    energy = np.linspace(635.0, 655.0, n_energies)
    true = spectra(energy + energy_shift)
    full = (shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN)
    t4, t3 = spheres(rng, full, pixel)
    fy, fx = np.fft.fftfreq(full[0])[:, None], np.fft.rfftfreq(full[1])[None]
    sigma = (6.0 if diffuse else 0.0) + 1e-9
    soft = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    t4, t3 = (np.fft.irfft2(np.fft.rfft2(t) * soft, full) for t in (t4, t3))
    optics = np.exp(-2 * (np.pi * blur_px / 2.3548) ** 2 * (fy**2 + fx**2))
    walk = np.cumsum(rng.normal(0, 0.4, (n_energies, 2)), axis=0) * (drift_px > 0)
    shifts = walk + np.linspace(0, drift_px, n_energies)[:, None] * [0.7, -0.7]
    shifts[n_energies // 2 :] += [jump_px, -jump_px / 2]
    shifts -= np.median(shifts, axis=0)
    i0 = photons * (1 + 0.1 * np.sin(np.arange(n_energies) / 9))
    frames = np.empty((n_energies, *shape), dtype=np.float32)
    inner = (slice(MARGIN, MARGIN + shape[0]), slice(MARGIN, MARGIN + shape[1]))
    for k in range(n_energies):
        light = np.exp(-t4 * true["mn4"][k] - t3 * true["mn3"][k])
        move = np.exp(-2j * np.pi * (fy * shifts[k, 0] + fx * shifts[k, 1]))
        seen = np.fft.irfft2(np.fft.rfft2(light) * optics * move, full)[inner]
        frames[k] = rng.poisson(np.maximum(seen, 0) * i0[k] + dark)
    return Made(
        stack=label(frames, energy, pixel),
        references=reference_set(energy),
        shifts_px=shifts,
        t4=t4[inner],
        t3=t3[inner],
        i0=i0,
    )
