"""Frames of a coherent multi-crystal ring whose grains are known.

Tens of grains in the beam put bright spots on one Debye-Scherrer ring. Each grain keeps its
azimuth, moves along the radius as its lattice spacing changes with voltage, fades, and is missed
where it turns out of the Bragg condition. Populations of grains have spacings of their own and
come and go. Under the spots lie the weak ring of all the small grains and a flat background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from spectromap._numerics import FloatArray, generator
from spectromap.schema import InputError

HC_EV_NM = 1239.841984
#: Charge to 4.8 V and discharge to 2.5 V in 22 frames.
RING_VOLTAGES = (
    *(3.2, 3.6, 3.8, 3.9, 4.0, 4.1, 4.25, 4.38, 4.43, 4.472, 4.5, 4.6, 4.7, 4.8),
    *(4.6, 4.4, 4.1, 3.8, 3.5, 3.2, 2.9, 2.5),
)


@dataclass(frozen=True)
class RingPopulation:
    """Grains that share a lattice spacing.

    Attributes
    ----------
    grains : int
    d_nm : tuple of float
        Mean lattice spacing at each frame.
    strength : tuple of float
        Relative intensity at each frame, 0 where the population is absent.
    """

    grains: int
    d_nm: tuple[float, ...]
    strength: tuple[float, ...]


def default_populations() -> tuple[RingPopulation, ...]:
    """Three populations as published [Nature 606, 305 (2022), Fig. 3b].

    The first expands a little and weakens above 4.47 V, where the second appears at a larger
    spacing, strongest at 4.8 V; the third, Li2Mn2O4, shows at the start of the discharge only.
    """
    frame = np.arange(len(RING_VOLTAGES))
    first = 0.4720 + 0.0020 * np.sin(np.pi * np.clip(frame, 0, 19) / 20)
    fading = np.interp(frame, [0, 9, 13, 17, 21], [1.0, 1.0, 0.35, 0.8, 1.0])
    second = 0.4770 + 0.0006 * np.interp(frame, [9, 13, 19], [0.0, 1.0, -0.5])
    growing = np.interp(frame, [8, 9, 13, 16, 18], [0.0, 0.25, 1.0, 0.6, 0.0])
    third = 0.4805 - 0.0001 * (frame - 14)
    shortly = np.where((frame >= 14) & (frame <= 17), 0.8, 0.0)
    parts = ((30, first, fading), (16, second, growing), (9, third, shortly))
    return tuple(
        RingPopulation(grains, tuple(d.tolist()), tuple(strength.tolist()))
        for grains, d, strength in parts
    )


@dataclass(frozen=True)
class RingDetector:
    """The detector and what limits it.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns.
    energy_eV, distance_m, pixel_m : float
    two_theta_deg : float
        Angle of the detector arm in the horizontal plane; 0 looks into the beam and sees the
        whole ring.
    centre : tuple of float, optional
        Row and column where the arm meets the detector; the middle by default.
    spot_px : float
        Width (1 sigma) of a spot.
    photons : float
        Median photons of a spot at full strength.
    background : float
        Photons per pixel.
    missed : float
        Probability that a grain is out of the Bragg condition in a frame.
    """

    shape: tuple[int, int] = (256, 256)
    energy_eV: float = 9000.0
    distance_m: float = 1.95
    pixel_m: float = 55e-6
    two_theta_deg: float = 16.62
    centre: tuple[float, float] | None = None
    spot_px: float = 1.5
    photons: float = 1500.0
    background: float = 0.5
    missed: float = 0.06

    @property
    def origin(self) -> tuple[float, float]:
        """Row and column where the arm meets the detector."""
        rows, columns = self.shape
        return self.centre or ((rows - 1) / 2, (columns - 1) / 2)

    def place(self, d_nm: FloatArray, azimuth: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Row and column at which a spacing diffracts; azimuth in rad about the beam.

        Azimuth 0 points along growing columns and pi/2 against growing rows.
        """
        two_theta = 2 * np.arcsin(HC_EV_NM / self.energy_eV / (2 * np.asarray(d_nm)))
        along, out = np.cos(two_theta), np.sin(two_theta)
        x, y = out * np.cos(azimuth), out * np.sin(azimuth)
        arm = np.deg2rad(self.two_theta_deg)
        scale = self.distance_m / self.pixel_m / (along * np.cos(arm) + x * np.sin(arm))
        row, column = self.origin
        across = x * np.cos(arm) - along * np.sin(arm)
        return np.asarray(row - scale * y), np.asarray(column + scale * across)


@dataclass(frozen=True)
class RingSimulation:
    """Simulated frames and the grains behind them.

    Attributes
    ----------
    frames : Dataset
        ``counts`` and ``mask`` (frame, row, column), ``voltage`` (frame) in V.
    truth : DataFrame
        One row for each grain and frame in which it was recorded: ``frame``, ``grain``,
        ``population`` (from 1), ``row``, ``column``, ``d_nm``, ``photons``.
    """

    frames: xr.Dataset
    truth: pd.DataFrame


def simulate_ring(
    populations: Sequence[RingPopulation] | None = None,
    detector: RingDetector | None = None,
    voltages: Sequence[float] = RING_VOLTAGES,
    *,
    d_spread: float = 3e-4,
    seed: int = 0,
) -> RingSimulation:
    """Simulate the frames of a multi-crystal ring during a cycle.

    Parameters
    ----------
    populations : sequence of RingPopulation, optional
        Grains; `default_populations` otherwise.
    detector : RingDetector, optional
        Geometry and counting.
    voltages : sequence of float
        Voltage of each frame in V.
    d_spread : float
        Relative spread (1 sigma) of the spacings of the grains of a population; from frame to
        frame a spot moves by a tenth of that at random.
    seed : int
        The same seed gives the same frames, bit for bit.

    Returns
    -------
    RingSimulation

    Raises
    ------
    InputError
        A population that does not have a value for each frame.
    """
    detector = detector or RingDetector()
    populations = default_populations() if populations is None else populations
    for population in populations:
        if not len(population.d_nm) == len(population.strength) == len(voltages):
            raise InputError(
                f"a population has {len(population.d_nm)} spacings and "
                f"{len(population.strength)} strengths for {len(voltages)} frames",
                where="simulate_ring",
            )
    truth = _grains(populations, detector, d_spread, seed)
    counts = np.stack(
        [
            _frame(truth[truth["frame"] == number], populations, detector, number)
            for number in range(len(voltages))
        ]
    )
    noisy = generator(seed, 1).poisson(counts).astype(np.float32)
    dims = ("frame", "row", "column")
    frames = xr.Dataset(
        {
            "counts": (dims, noisy, {"units": "count", "long_name": "photons"}),
            "mask": (dims, np.ones(noisy.shape, bool), {"long_name": "usable"}),
        },
        coords={"voltage": ("frame", np.asarray(voltages, float), {"units": "V"})},
    )
    frames.attrs |= {
        "technique": "cmcd",
        "energy_eV": detector.energy_eV,
        "distance_m": detector.distance_m,
        "pixel_m": (detector.pixel_m, detector.pixel_m),
        "two_theta_deg": detector.two_theta_deg,
        "centre": detector.origin,
        "source_file": "simulated",
    }
    return RingSimulation(frames, truth)


def _azimuths(detector: RingDetector) -> tuple[float, float]:
    """Range of azimuths that the detector sees."""
    if detector.two_theta_deg == 0:
        return -np.pi, np.pi
    radius = np.tan(np.deg2rad(detector.two_theta_deg)) * detector.distance_m / detector.pixel_m
    half = 0.47 * detector.shape[0] / radius
    return -half, half


def _grains(
    populations: Sequence[RingPopulation], detector: RingDetector, d_spread: float, seed: int
) -> pd.DataFrame:
    """Where every grain is and how bright, in the frames in which it is recorded."""
    parts, first = [], 0
    for number, population in enumerate(populations, start=1):
        rng = generator(seed, 2, number)
        shape = (population.grains, len(population.d_nm))
        strength = np.broadcast_to(population.strength, shape)
        azimuth = np.broadcast_to(rng.uniform(*_azimuths(detector), shape[0])[:, None], shape)
        offset = rng.normal(0, d_spread, (shape[0], 1)) + rng.normal(0, d_spread / 10, shape)
        d_nm = np.asarray(population.d_nm) * (1 + offset)
        row, column = detector.place(d_nm, azimuth)
        row = row + rng.normal(0, 0.2, shape)
        bright = rng.lognormal(0, 0.6, (shape[0], 1)) * rng.lognormal(0, 0.25, shape)
        rows, columns = detector.shape
        seen = (strength > 0) & (rng.uniform(size=shape) > detector.missed)
        seen &= (row > 3) & (row < rows - 4) & (column > 3) & (column < columns - 4)
        grain, frame = np.nonzero(seen)
        part = {
            "frame": frame,
            "grain": grain + first,
            "population": number,
            "row": row[seen],
            "column": column[seen],
            "d_nm": d_nm[seen],
            "photons": (detector.photons * bright * strength)[seen],
        }
        parts.append(pd.DataFrame(part))
        first += shape[0]
    return pd.concat(parts, ignore_index=True)


def _frame(
    grains: pd.DataFrame,
    populations: Sequence[RingPopulation],
    detector: RingDetector,
    number: int,
) -> FloatArray:
    """Expected counts of one frame."""
    rows, columns = (np.arange(n, dtype=float) for n in detector.shape)
    width = detector.spot_px
    counts = np.full(detector.shape, detector.background)
    for row, column, photons in grains[["row", "column", "photons"]].to_numpy():
        spot = np.exp(-(((rows - row) / width) ** 2) / 2)[:, None] * np.exp(
            -(((columns - column) / width) ** 2) / 2
        )
        counts += photons / (2 * np.pi * width**2) * spot
    for population in populations:
        if population.strength[number] > 0:
            counts += population.strength[number] * _powder(population.d_nm[number], detector)
    return counts


def _powder(d_nm: float, detector: RingDetector) -> FloatArray:
    """Weak ring of the grains too small to be told apart, one photon a pixel at its crest."""
    low, high = _azimuths(detector)
    azimuth = np.linspace(1.2 * low, 1.2 * high, 4001)
    row, column = detector.place(np.full(azimuth.shape, d_nm), azimuth)
    if detector.two_theta_deg == 0:
        rows, columns = np.indices(detector.shape)
        away = np.hypot(rows - detector.origin[0], columns - detector.origin[1])
        radius = float(np.hypot(row - detector.origin[0], column - detector.origin[1]).mean())
        return np.asarray(np.exp(-(((away - radius) / 4) ** 2) / 2))
    crest = np.interp(np.arange(detector.shape[0]), row[::-1], column[::-1])
    columns = np.arange(detector.shape[1])
    return np.asarray(np.exp(-(((columns - crest[:, None]) / 4) ** 2) / 2))
