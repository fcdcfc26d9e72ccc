"""Coherent multi-crystal rings: spots of single grains followed over a series of frames.

With tens of grains in the beam a Debye-Scherrer ring falls apart into spots, one for each grain
[Nature 606, 305 (2022), Fig. 3b]. A spot keeps its azimuth and moves along the radius as the
lattice spacing of its grain changes. Four steps, each a function: calibrate the ring (pixel to
the length of Q), find the spots of every frame, follow them from frame to frame, and tell how many
populations of grains there are by a mixture of trajectories.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage, optimize

from spectromap._numerics import generator, robust_std
from spectromap.schema import InputError

__all__ = [
    "RingCalibration",
    "calibrate_ring",
    "find_spots",
    "ring_populations",
    "track_spots",
]

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

HC_EV_NM = 1239.841984
FRAME_DIMS = ("frame", "row", "column")
#: An arc of fewer degrees about the beam does not tell its own centre.
LEAST_ARC_DEG = 60.0
#: Circles through three spots that are tried, and the distance in pixels of a spot that fits.
TRIALS, CLOSE_PX = 500, 3.0
#: Rounds in which pixels far above the background are taken out of it.
CLIPPING = 4
#: Variance in photons below which no pixel is trusted, and rounds of the fit of spots.
LEAST_PHOTONS, FIT_ROUNDS = 0.1, 6
#: Searches for spots in what the fit leaves, and how unlike a Gaussian of its peak a spot may be.
SEARCHES, UNLIKENESS = 4, 0.1
#: Distance in widths from which two spots are told apart.
RESOLVED = 1.5
#: Gates along radius and arc, as shares of those given, once common motion is known.
TIGHTER = np.array([1 / 3, 1.0])
#: Spots that it takes to tell a common motion, and cost of a change of brightness by a factor e.
LEAST_TOGETHER, DIMMING = 3, 0.02
#: Degrees of the polynomials that paths of populations may follow.
DEGREES = (1, 3, 5)
#: Least spread in pixels that a mixture may claim; below, it would fit single spots.
FLOOR_PX = 0.05
ROUNDS = 200


@dataclass(frozen=True)
class RingCalibration:
    """From pixels to the length of Q.

    The detector stands at right angles on an arm turned by `two_theta_deg` about the vertical.

    Attributes
    ----------
    row, column : float
        Pixel where the arm (at 0: the direct beam) meets the detector.
    energy_eV, distance_m, pixel_m, two_theta_deg : float
    q_norm : float
        Length of Q of the ring in 1/nm, a robust mean of its spots.
    q_norm_errors : float
        Its standard error in 1/nm from their scatter.
    radius_px : float
        Length of the same along the radius in pixels, from the beam; NaN on an arm.
    """

    row: float
    column: float
    energy_eV: float
    distance_m: float
    pixel_m: float
    two_theta_deg: float = 0.0
    q_norm: float = float("nan")
    q_norm_errors: float = float("nan")
    radius_px: float = float("nan")

    def _rays(self, row: Floats, column: Floats) -> tuple[Floats, Floats, Floats]:
        """Directions x, y, z from the sample to pixels; z along the beam, y against the rows."""
        arm = np.deg2rad(self.two_theta_deg)
        reach = self.distance_m / self.pixel_m
        across = np.asarray(column, float) - self.column
        x = reach * np.sin(arm) + across * np.cos(arm)
        z = reach * np.cos(arm) - across * np.sin(arm)
        return x, self.row - np.asarray(row, float), z

    def q(self, row: Floats, column: Floats) -> Floats:
        """Length of Q in 1/nm at pixels, ``4 pi / lambda sin(theta)``."""
        x, y, z = self._rays(row, column)
        theta = np.arctan2(np.hypot(x, y), z) / 2
        return np.asarray(4 * np.pi * self.energy_eV / HC_EV_NM * np.sin(theta))

    def azimuth(self, row: Floats, column: Floats) -> Floats:
        """Angle about the beam in degrees, 0 along growing columns, 90 against growing rows."""
        x, y, _ = self._rays(row, column)
        return np.asarray(np.rad2deg(np.arctan2(y, x)))

    def per_pixel(self, row: Floats, column: Floats) -> tuple[Floats, Floats]:
        """Change of Q in 1/nm for a pixel along the radius, and pixels a degree of azimuth."""
        step = 0.5
        across = (self.q(row, column + step) - self.q(row, column - step)) / (2 * step)
        down = (self.q(row + step, column) - self.q(row - step, column)) / (2 * step)
        x, y, _ = self._rays(row, column)
        return np.hypot(across, down), np.deg2rad(np.hypot(x, y))


def _checked(frames: xr.Dataset) -> tuple[Floats, Mask]:
    """Counts and usable pixels of frames."""
    if "counts" not in frames or frames["counts"].dims != FRAME_DIMS:
        raise InputError(f"expected counts with dims {FRAME_DIMS}", where="frames")
    counts = np.asarray(frames["counts"].values, np.float64)
    mask = np.isfinite(counts)
    if "mask" in frames:
        mask &= np.broadcast_to(np.asarray(frames["mask"].values, bool), counts.shape)
    if np.any(counts[mask] < 0):
        raise InputError("counts below zero", where="frames", remedy="Give photons.")
    return np.where(mask, counts, 0.0), mask


def find_spots(
    frames: xr.Dataset, *, spot_px: float = 1.5, threshold: float = 6.0, background_px: int = 15
) -> pd.DataFrame:
    """Find the bright spots of every frame.

    A matched filter on the counts above a local background that spots do not raise; the place is
    the centre of a Gaussian of the width of a spot, fitted with its neighbours; then the same on
    what the fit leaves, where a bright spot had covered a weak one.

    Parameters
    ----------
    frames : Dataset
        ``counts`` (frame, row, column) in photons, optionally ``mask`` (True = usable).
    spot_px : float
        Width (1 sigma) of a spot in pixels.
    threshold : float
        Smallest signal in standard deviations of the filtered noise.
    background_px : int
        Edge of the square over which the background is taken.

    Returns
    -------
    DataFrame
        One row a spot: ``frame``, ``row``, ``column`` (pixels), ``intensity`` (photons above the
        background) with ``row_errors``, ``column_errors`` and ``intensity_errors`` from photon
        noise, and ``significance``, the intensity over its error.

    Raises
    ------
    InputError
        Counts missing, below zero or with other dimensions; widths that are not positive.
    """
    if spot_px <= 0 or threshold <= 0 or background_px < 3:
        raise InputError(
            "spot_px, threshold and background_px must be positive", where="find_spots"
        )
    counts, mask = _checked(frames)
    tables = []
    for number, (image, usable) in enumerate(zip(counts, mask, strict=True)):
        table = _spots(image, usable, spot_px, threshold, background_px)
        table.insert(0, "frame", number)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _background(image: Floats, usable: Mask, size: int) -> Floats:
    """Local mean without the pixels that stand out."""
    keep = usable
    level = np.zeros_like(image)
    for _ in range(CLIPPING):
        share = ndimage.uniform_filter(keep.astype(float), size)
        level = ndimage.uniform_filter(np.where(keep, image, 0.0), size) / np.maximum(share, 1e-9)
        keep = usable & (image < level + 3 * np.sqrt(level + 1))
    return level


def _spots(
    image: Floats, usable: Mask, width: float, threshold: float, background_px: int
) -> pd.DataFrame:
    """Spots of one frame, and then those that brighter ones nearby had covered."""
    level = np.maximum(_background(image, usable, background_px), LEAST_PHOTONS)
    above = np.where(usable, image - level, 0.0)
    model = np.zeros_like(image)
    fit = _Fit(above, level, width)
    for _ in range(SEARCHES):
        # Spots are not quite Gaussian: what a tenth of one could be is no other spot.
        variance = level + model + (UNLIKENESS * model) ** 2
        # Both filters have unit norm for white noise.
        signal = ndimage.gaussian_filter(above - model, width) * 2 * np.sqrt(np.pi) * width
        noise = np.sqrt(ndimage.gaussian_filter(variance, width / np.sqrt(2)))
        top = signal == ndimage.maximum_filter(signal, 2 * max(1, round(width)) + 1)
        places = np.argwhere(top & (signal > threshold * noise) & usable)
        if not len(places):
            break
        model = fit.added(places.astype(float))
    found = fit.table()
    inside = (found["row"] > -0.5) & (found["row"] < image.shape[0] - 0.5)
    inside &= (found["column"] > -0.5) & (found["column"] < image.shape[1] - 0.5)
    kept: pd.DataFrame = found[inside & (found["significance"] > threshold)]
    return kept


class _Patch:
    """The pixels about a spot, and a Gaussian on them."""

    def __init__(self, start: Floats, reach: int, width: float) -> None:
        middle = np.rint(start).astype(int)
        self.start, self.width = start, width
        self.down, self.across = (np.arange(m - reach, m + reach + 1.0) for m in middle)
        # The arrays are padded by `reach`.
        self.box = tuple(slice(m, m + 2 * reach + 1) for m in middle)

    def terms(self, place: Floats) -> Floats:
        """A Gaussian of sum 1 and its derivatives by row and column of its place."""
        down, across = self.down - place[0], self.across - place[1]
        square = self.width**2
        shape = np.exp(-(down[:, None] ** 2 + across**2) / (2 * square)) / (2 * np.pi * square)
        return np.stack([shape, shape * down[:, None] / square, shape * across / square])


class _Fit:
    """Gaussians of one width fitted together to the counts above the background."""

    def __init__(self, above: Floats, level: Floats, width: float) -> None:
        self.width, self.reach = width, int(np.ceil(3 * width)) + 2
        self.above = np.pad(above, self.reach)
        self.level = np.pad(level, self.reach, mode="edge")
        self.model = np.zeros_like(self.above)
        self.patches: list[_Patch] = []
        self.place: Floats = np.zeros((0, 2))
        self.photons: Floats = np.zeros(0)
        self.errors = np.ones((0, 3))

    def added(self, places: Floats) -> Floats:
        """Fit with more spots; return the model of all of them on the frame.

        Two that end up closer than can be told apart are one: the middle of a pair, found first,
        and a spot of the pair.
        """
        self._set(
            np.concatenate([self.place, places]), np.append(self.photons, np.zeros(len(places)))
        )
        self._iterate()
        if self._merge():
            self._iterate()
        inner = (slice(self.reach, -self.reach),) * 2
        return self.model[inner]

    def _set(self, place: Floats, photons: Floats) -> None:
        """Start from these spots."""
        self.place, self.photons = place, photons
        self.errors = np.ones((len(place), 3))
        self.patches = [_Patch(p.copy(), self.reach, self.width) for p in place]
        self.model = np.zeros_like(self.above)
        for patch, at, height in zip(self.patches, place, photons, strict=True):
            self.model[patch.box] += height * patch.terms(at)[0]

    def _iterate(self) -> None:
        for _ in range(FIT_ROUNDS):
            for i in range(len(self.patches)):
                self._improve(i)

    def _merge(self) -> bool:
        """Put spots that are too close into one, the weaker into the brighter."""
        place, photons = self.place.copy(), self.photons.copy()
        keep = photons > 0
        for i in np.argsort(photons):
            away = np.hypot(*(place - place[i]).T)
            away[~keep], away[i] = np.inf, np.inf
            near = int(np.argmin(away)) if keep[i] else i
            if near != i and away[near] < RESOLVED * self.width:
                both = photons[[i, near]]
                place[near] = both @ place[[i, near]] / both.sum()
                photons[near], keep[i] = both.sum(), False
        if keep.all():
            return False
        self._set(place[keep], photons[keep])
        return True

    def _improve(self, i: int) -> None:
        """Refit one spot to what the others leave: linear in its intensity and its shift."""
        patch, place, photons = self.patches[i], self.place[i], self.photons[i]
        terms = patch.terms(place)
        self.model[patch.box] -= photons * terms[0]
        others = self.model[patch.box]
        weight = 1 / (self.level[patch.box] + np.maximum(others, 0) + photons * terms[0])
        normal = np.einsum("aij,bij,ij->ab", terms, terms, weight)
        inverse = np.linalg.inv(normal)
        rest = self.above[patch.box] - others
        found = inverse @ np.einsum("aij,ij,ij->a", terms, rest, weight)
        self.photons[i], self.errors[i] = max(found[0], 0.0), np.sqrt(np.diag(inverse))
        shift = np.clip(found[1:] / max(found[0], 1e-9), -0.5, 0.5)
        self.place[i] = np.clip(place + shift, patch.start - 2, patch.start + 2)
        self.model[patch.box] += self.photons[i] * patch.terms(self.place[i])[0]

    def table(self) -> pd.DataFrame:
        """Spots with their errors."""
        scale = np.maximum(self.photons, 1e-9)
        values = {
            "row": self.place[:, 0],
            "column": self.place[:, 1],
            "intensity": self.photons,
            "row_errors": self.errors[:, 1] / scale,
            "column_errors": self.errors[:, 2] / scale,
            "intensity_errors": self.errors[:, 0],
            "significance": self.photons / self.errors[:, 0],
        }
        return pd.DataFrame(values)


# --------------------------------------------------------------------------------------------
# Calibration


def calibrate_ring(
    spots: pd.DataFrame,
    *,
    energy_eV: float,
    distance_m: float,
    pixel_m: float,
    two_theta_deg: float = 0.0,
    centre: tuple[float, float] | None = None,
    q_norm: float | None = None,
    seed: int = 0,
) -> RingCalibration:
    """Find the centre of a ring and its length of Q from the spots that lie on it.

    A ring of which the detector sees a long arc fixes its own centre: circles through three spots
    at random, then a robust fit. A short arc, as on a detector arm, does not; there the geometry
    gives the centre, and `q_norm` of a known state may shift it along the radius.

    Parameters
    ----------
    spots : DataFrame
        ``row`` and ``column`` of spots of one ring, outliers allowed (from `find_spots`).
    energy_eV, distance_m, pixel_m : float
        Photon energy in eV, distance from the sample and edge of a pixel in m.
    two_theta_deg : float
        Angle of the detector arm.
    centre : tuple of float, optional
        Row and column where the arm (at 0: the direct beam) meets the detector.
    q_norm : float, optional
        Known length of Q of this ring in 1/nm, used where the arc is too short for its centre.
    seed : int
        For the circles tried.

    Returns
    -------
    RingCalibration

    Raises
    ------
    InputError
        Fewer than three spots, or a short arc without a centre.
    """
    row, column = (np.asarray(spots[n], float) for n in ("row", "column"))
    if row.size < 3:
        raise InputError(f"{row.size} spots do not fix a ring", where="calibrate_ring")
    if centre is None and two_theta_deg != 0:
        raise InputError(
            "the centre of the detector is needed on an arm", where="calibrate_ring.centre"
        )
    origin = _circle(row, column, seed) if centre is None else centre
    start = RingCalibration(
        float(origin[0]), float(origin[1]), energy_eV, distance_m, pixel_m, two_theta_deg
    )
    arc = _arc(start.azimuth(row, column))
    if arc >= LEAST_ARC_DEG:
        start = _centred(start, row, column)
    elif centre is None:
        raise InputError(
            f"an arc of {arc:.0f} degrees does not tell its centre",
            where="calibrate_ring",
            remedy="Give the centre from the geometry of the detector.",
        )
    elif q_norm is not None:
        start = _moved(start, row, column, q_norm)
    q = start.q(row, column)
    ring, scatter = _robust_mean(q)
    radius = float("nan")
    if two_theta_deg == 0:
        sine = ring * HC_EV_NM / (4 * np.pi * energy_eV)
        radius = float(np.tan(2 * np.arcsin(sine)) * distance_m / pixel_m)
    return replace(start, q_norm=ring, q_norm_errors=scatter / np.sqrt(q.size), radius_px=radius)


def _arc(azimuth: Floats) -> float:
    """Degrees about the beam that the spots span: a turn less the largest gap."""
    ordered = np.sort(azimuth % 360)
    gaps = np.append(np.diff(ordered), ordered[0] + 360 - ordered[-1])
    return float(360 - gaps.max())


def _robust_mean(values: Floats) -> tuple[float, float]:
    """Mean and standard deviation of the values near their median."""
    middle, spread = float(np.median(values)), robust_std(values)
    near = values[np.abs(values - middle) <= 3 * spread]
    return float(near.mean()), float(near.std())


def _circle(row: Floats, column: Floats, seed: int) -> tuple[float, float]:
    """Centre of the circle that passes closest to most spots, of those through three of them."""
    rng, best, centre = generator(seed), -1.0, (0.0, 0.0)
    for _ in range(TRIALS):
        three = rng.choice(row.size, 3, replace=False)
        y, x = row[three], column[three]
        sides = np.column_stack([y[1:] - y[0], x[1:] - x[0]])
        if abs(np.linalg.det(sides)) < 1.0:
            continue
        half = (sides**2).sum(axis=1) / 2
        away = np.linalg.solve(sides, half)
        radius = float(np.hypot(*away))
        place = float(y[0] + away[0]), float(x[0] + away[1])
        off = np.abs(np.hypot(row - place[0], column - place[1]) - radius)
        score = float(np.maximum(0.0, 1 - (off / CLOSE_PX) ** 2).sum())
        if score > best:
            best, centre = score, place
    return centre


def _centred(start: RingCalibration, row: Floats, column: Floats) -> RingCalibration:
    """Centre for which all spots have one length of Q, by a robust fit."""
    slope = float(np.median(start.per_pixel(row, column)[0]))
    ring = float(np.median(start.q(row, column)))

    def off(values: Floats) -> Floats:
        there = replace(start, row=float(values[0]), column=float(values[1]))
        return np.asarray(there.q(row, column) / slope - float(values[2]), float)

    guess = [start.row, start.column, ring / slope]
    fit = optimize.least_squares(off, guess, loss="cauchy", f_scale=1.0, x_scale=[1, 1, 1])
    return replace(start, row=float(fit.x[0]), column=float(fit.x[1]))


def _moved(start: RingCalibration, row: Floats, column: Floats, q_norm: float) -> RingCalibration:
    """Centre shifted along the radius so that the ring has the known length of Q."""
    turn = np.deg2rad(float(np.median(start.azimuth(row, column))))

    def at(shift: float) -> RingCalibration:
        return replace(
            start, row=start.row - shift * np.sin(turn), column=start.column + shift * np.cos(turn)
        )

    def off(shift: float) -> float:
        return _robust_mean(at(shift).q(row, column))[0] - q_norm

    slope = float(np.median(start.per_pixel(row, column)[0]))
    shift, old = 0.0, np.inf
    # Newton with the slope at the start: the relation is nearly linear.
    for _ in range(20):
        if abs(old) < 1e-12 * q_norm:
            break
        old = off(shift)
        shift += old / slope
    return at(shift)


# --------------------------------------------------------------------------------------------
# Tracks


class _Tracks:
    """What is known of the spots that are followed; places in pixels along radius and arc.

    Grains of one population move along the radius together, so that speed is a matter of the
    neighbourhood: a spot that is missed for a while moves with those that are seen.
    """

    def __init__(self, radial_gate: float, azimuth_gate: float, most_missed: int) -> None:
        self.gate = np.array([radial_gate, azimuth_gate])
        self.most_missed = most_missed
        self.begun = 0
        self.number: Integers = np.zeros(0, int)
        self.place: Floats = np.zeros((0, 2))
        self.speed: Floats = np.zeros(0)
        self.brightness: Floats = np.zeros(0)
        self.missed: Integers = np.zeros(0, int)
        self.length: Integers = np.zeros(0, int)

    def advance(self, places: Floats, bright: Floats) -> Integers:
        """Follow all tracks to the spots of the next frame; the track of every spot."""
        expected: Floats = self.place + np.outer(self.speed, [1.0, 0.0])
        pairs = self._assigned(expected, places, bright, self.gate)
        expected = self._together(expected, places, pairs)
        pairs = self._assigned(expected, places, bright, self.gate * TIGHTER)
        self._follow(expected, places, bright, pairs)
        numbers = np.full(len(places), -1)
        numbers[pairs[:, 1]] = self.number[pairs[:, 0]]
        self._begin(numbers, places, bright)
        self._keep(self.missed <= self.most_missed)
        return numbers

    def _assigned(self, expected: Floats, places: Floats, bright: Floats, gate: Floats) -> Integers:
        """Pairs of tracks and spots at the least total cost."""
        off = (places[None] - expected[:, None]) / gate
        off[..., 0] /= np.sqrt(1 + self.missed)[:, None]
        far = (off**2).sum(axis=-1)
        change = bright[None] - self.brightness[:, None]
        cost = far + DIMMING * np.minimum(change**2, 4.0)
        out = far > 1.0
        # As dear as anything within the gate: such a pair stands for "neither is assigned".
        cost[out] = 1.0 + 4.0 * DIMMING
        pairs = np.column_stack(optimize.linear_sum_assignment(cost))
        return np.asarray(pairs[~out[pairs[:, 0], pairs[:, 1]]])

    def _near(self, place: float, others: Floats) -> Mask:
        return np.asarray(np.abs(others - place) < self.gate[0])

    def _together(self, expected: Floats, places: Floats, pairs: Integers) -> Floats:
        """Expected places moved along the radius by the median that tracks nearby were off."""
        moved = expected.copy()
        seen = expected[pairs[:, 0], 0]
        off = places[pairs[:, 1], 0] - seen
        for i, place in enumerate(expected[:, 0]):
            near = self._near(place, seen)
            if near.sum() >= LEAST_TOGETHER:
                moved[i, 0] += np.median(off[near])
        return moved

    def _follow(self, expected: Floats, places: Floats, bright: Floats, pairs: Integers) -> None:
        """Move all tracks, those that were not seen to where they should be."""
        track, spot = pairs.T
        before = self.place[:, 0].copy()
        self.place = expected
        self.missed += 1
        self.missed[track] = 0
        self.length[track] += 1
        # The azimuth of a grain is constant, so that its mean is the best guess.
        gain = np.column_stack([np.full(track.size, 0.7), 1 / np.minimum(self.length[track], 5)])
        self.place[track] += gain * (places[spot] - expected[track])
        self.brightness[track] += 0.5 * (bright[spot] - self.brightness[track])
        steps = self.place[:, 0] - before
        for i, place in enumerate(self.place[:, 0]):
            near = self._near(place, self.place[track, 0])
            own = near.sum() < LEAST_TOGETHER
            self.speed[i] = steps[i] if own else np.median(steps[track][near])

    def _begin(self, numbers: Integers, places: Floats, bright: Floats) -> None:
        """Begin a track at every spot without one, at the speed of its neighbours."""
        for spot in np.flatnonzero(numbers < 0):
            near = self._near(places[spot, 0], self.place[:, 0]) & (self.length > 1)
            speed = float(np.median(self.speed[near])) if near.any() else 0.0
            numbers[spot] = self.begun
            self.number = np.append(self.number, self.begun)
            self.place = np.vstack([self.place, places[spot]])
            self.speed = np.append(self.speed, speed)
            self.brightness = np.append(self.brightness, bright[spot])
            self.missed = np.append(self.missed, 0)
            self.length = np.append(self.length, 1)
            self.begun += 1

    def _keep(self, which: Mask) -> None:
        for name in ("number", "place", "speed", "brightness", "missed", "length"):
            setattr(self, name, getattr(self, name)[which])


def track_spots(
    spots: pd.DataFrame,
    calibration: RingCalibration,
    *,
    radial_gate_px: float = 10.0,
    azimuth_gate_px: float = 2.0,
    most_missed: int = 3,
) -> pd.DataFrame:
    """Follow spots from frame to frame.

    In each frame spots are assigned to tracks at the least total cost [Crouse, IEEE Trans. Aerosp.
    Electron. Syst. 52, 1679 (2016)]: the squared distance from where the track should be in units
    of the gate, along the radius and along the arc, and a little for a change of brightness.
    Where it should be follows from the speed of the spots nearby along the radius; then all that
    are nearby are moved by what they were off together, and assigned again within a third of the
    radial gate, since grains of one population move together. Beyond the gate, which grows with
    the frames that were missed, nothing is assigned, and a spot left over begins a track.

    Parameters
    ----------
    spots : DataFrame
        From `find_spots`.
    calibration : RingCalibration
        Pixel to the length of Q and azimuth.
    radial_gate_px, azimuth_gate_px : float
        Furthest that a spot may be from where it is expected, in pixels.
    most_missed : int
        Frames in a row in which a spot may be missing before its track ends.

    Returns
    -------
    DataFrame
        `spots` with ``track`` (from 0), ``q`` [1/nm] and ``q_errors``, ``d_nm``, ``azimuth``
        [degree] and ``radial`` (pixels along the radius from the calibrated ring).

    Raises
    ------
    InputError
        Gates that are not positive or columns missing.
    """
    missing = {"frame", "row", "column", "intensity"} - set(spots.columns)
    if missing:
        raise InputError(f"columns missing: {', '.join(sorted(missing))}", where="spots")
    if radial_gate_px <= 0 or azimuth_gate_px <= 0 or most_missed < 0:
        raise InputError("gates must be positive", where="track_spots")
    table = _on_ring(spots, calibration)
    number = np.full(len(table), -1)
    frames = table["frame"].to_numpy()
    places = table[["radial", "arc"]].to_numpy()
    bright = np.log(np.maximum(table["intensity"].to_numpy(), 1e-9))
    tracks = _Tracks(radial_gate_px, azimuth_gate_px, most_missed)
    for frame in range(int(frames.max(initial=-1)) + 1):
        here = np.flatnonzero(frames == frame)
        number[here] = tracks.advance(places[here], bright[here])
    table["track"] = number
    return table.drop(columns="arc")


def _on_ring(spots: pd.DataFrame, calibration: RingCalibration) -> pd.DataFrame:
    """Spots with their places on the ring."""
    table = spots.reset_index(drop=True)
    row, column = (table[n].to_numpy(float) for n in ("row", "column"))
    q = calibration.q(row, column)
    slope, per_degree = calibration.per_pixel(row, column)
    azimuth = calibration.azimuth(row, column)
    ring = calibration.q_norm if np.isfinite(calibration.q_norm) else float(np.median(q))
    extra = {
        "q": q,
        "d_nm": 2 * np.pi / q,
        "azimuth": azimuth,
        "radial": (q - ring) / float(np.median(slope)) if len(table) else q,
        "arc": azimuth * float(np.median(per_degree)) if len(table) else azimuth,
    }
    if {"row_errors", "column_errors"} <= set(table.columns):
        extra["q_errors"] = slope * np.hypot(table["row_errors"], table["column_errors"]) / 2**0.5
    return table.assign(**extra)


# --------------------------------------------------------------------------------------------


# Populations


def ring_populations(
    tracks: pd.DataFrame,
    voltage: Floats | None = None,
    *,
    most: int = 5,
    least_length: int = 3,
    seed: int = 0,
) -> tuple[pd.DataFrame, xr.Dataset]:
    """Count the populations of grains and tell each track's own.

    A mixture of trajectories [Gaffney and Smyth, KDD 1999, 63]: the tracks of a population follow
    one polynomial path along the radius, each with an offset of its own, with noise. Fitted by
    expectation maximisation from Gaussian mixtures of the median places, for every number of
    populations up to `most` and several degrees of the path; the Bayesian information criterion
    over tracks chooses. A population has at least three tracks.

    Parameters
    ----------
    tracks : DataFrame
        From `track_spots`.
    voltage : ndarray, optional
        Voltage in V of each frame, copied to the summary.
    most : int
        Largest number of populations.
    least_length : int
        Spots that a track must have to take part; shorter ones are often noise.
    seed : int
        For the starts.

    Returns
    -------
    tracks : DataFrame
        With ``population``: 1, 2, ... in the order of appearance (then of spacing), 0 for tracks
        that are too short.
    summary : Dataset
        By (population, frame): ``q`` [1/nm] and ``d_nm`` (means over spots), ``q_errors``,
        ``intensity`` (sum) with errors, ``spots``; by (components): ``bic``, infinite where not
        possible. ``attrs["populations"]`` is the number chosen.

    Raises
    ------
    InputError
        Fewer than three tracks that are long enough.
    """
    sizes = tracks.groupby("track")["frame"].transform("size")
    used = tracks[sizes >= least_length]
    if used["track"].nunique() < 3:
        raise InputError(
            f"{used['track'].nunique()} tracks of {least_length} spots or more: too few to group",
            where="ring_populations",
        )
    bic = np.full(most, np.inf)
    best: _Mixture | None = None
    for degree in DEGREES:
        data = _Trajectories(used, degree)
        for count in range(1, most + 1):
            for labels in data.starts(count, seed):
                mixture = _mixture(data, labels, count)
                if mixture is None:
                    continue
                if best is None or mixture.bic < best.bic:
                    best = mixture
                bic[count - 1] = min(bic[count - 1], mixture.bic)
    assert best is not None  # one population is always possible
    own = _ordered(used, dict(zip(best.tracks.tolist(), best.labels.tolist(), strict=True)))
    table = tracks.assign(population=tracks["track"].map(own).fillna(0).astype(int))
    return table, _summary(table, bic, voltage)


class _Trajectories:
    """Sums over the spots of every track that a mixture needs."""

    def __init__(self, table: pd.DataFrame, degree: int) -> None:
        ordered = table.sort_values(["track", "frame"])
        self.tracks, index = np.unique(ordered["track"].to_numpy(), return_inverse=True)
        frame = ordered["frame"].to_numpy(float)
        self.radial = ordered["radial"].to_numpy(float)
        span = max(float(np.ptp(frame)), 1.0)
        terms = np.polynomial.legendre.legvander(2 * (frame - frame.min()) / span - 1, degree)
        self.terms = degree + 1
        self.size = np.bincount(index).astype(float)
        self.y = np.bincount(index, self.radial)
        self.yy = np.bincount(index, self.radial**2)
        self.x = self._sums(index, terms)
        self.xy = self._sums(index, terms * self.radial[:, None])
        self.xx = self._sums(index, terms[:, :, None] * terms[:, None, :])
        by_track = ordered.groupby("track")
        self.places = np.column_stack([by_track["radial"].median(), by_track["frame"].mean()])

    def _sums(self, index: Integers, values: Floats) -> Floats:
        total = np.zeros((self.tracks.size, *values.shape[1:]))
        np.add.at(total, index, values)
        return total

    def starts(self, count: int, seed: int) -> Iterator[Integers]:
        """First guesses of the labels: by median place, and by that and the mean frame."""
        if count > self.tracks.size // 3:
            return
        # scikit-learn takes a second to load.
        mixture = importlib.import_module("sklearn.mixture")
        spread = np.maximum(self.places.std(axis=0), 1e-9)
        for columns in (self.places[:, :1], self.places / spread):
            model = mixture.GaussianMixture(count, n_init=4, random_state=seed, reg_covar=1e-3)
            yield np.asarray(model.fit_predict(columns))


@dataclass
class _Mixture:
    """A fitted mixture: the label of every track and how good it is."""

    tracks: Integers
    labels: Integers
    bic: float


def _mixture(data: _Trajectories, labels: Integers, count: int) -> _Mixture | None:
    """Expectation maximisation from given labels; None where a population dies out."""
    share = np.eye(count)[labels]
    spread, noise = max(float(np.var(data.places[:, 0])) / count**2, 1.0), 1.0
    old = -np.inf
    for _ in range(ROUNDS):
        if share.sum(axis=0).min() < 3 - 1e-6:
            return None
        paths = _paths(data, share, spread, noise)
        total, squares = _residuals(data, paths)
        spread, noise = _variances(data, share, total, squares, spread, noise)
        logs = _log_likelihood(data, total, squares, spread, noise) + np.log(share.mean(axis=0))
        top = logs.max(axis=1, keepdims=True)
        likelihood = float((top[:, 0] + np.log(np.exp(logs - top).sum(axis=1))).sum())
        share = np.exp(logs - top)
        share /= share.sum(axis=1, keepdims=True)
        if likelihood - old < 1e-6 * abs(likelihood):
            break
        old = likelihood
    parameters = count * data.terms + count - 1 + 2
    bic = parameters * np.log(data.tracks.size) - 2 * likelihood
    return _Mixture(data.tracks, share.argmax(axis=1), float(bic))


def _paths(data: _Trajectories, share: Floats, spread: float, noise: float) -> Floats:
    """Coefficients of the path of every population, by generalised least squares."""
    common = spread / (noise + data.size * spread)
    xx = data.xx - common[:, None, None] * data.x[:, :, None] * data.x[:, None, :]
    xy = data.xy - common[:, None] * data.x * data.y[:, None]
    # A population seen in few frames does not fix all terms: those stay near zero.
    ridge = 1e-6 * np.trace(data.xx.sum(axis=0)) * np.eye(data.terms)
    return np.stack(
        [
            np.linalg.solve(np.tensordot(w, xx, axes=1) + ridge, np.tensordot(w, xy, axes=1))
            for w in share.T
        ]
    )


def _residuals(data: _Trajectories, paths: Floats) -> tuple[Floats, Floats]:
    """Sum, and sum of squares, of the residuals of every track from every path."""
    total = data.y[:, None] - data.x @ paths.T
    bent = np.einsum("kp,ipq,kq->ik", paths, data.xx, paths)
    squares = data.yy[:, None] - 2 * data.xy @ paths.T + bent
    return total, np.maximum(squares, total**2 / data.size[:, None])


def _variances(
    data: _Trajectories,
    share: Floats,
    total: Floats,
    squares: Floats,
    spread: float,
    noise: float,
) -> tuple[float, float]:
    """Variances of the offsets of tracks and of the noise of spots, one step."""
    size = data.size[:, None]
    mean = spread * total / (noise + size * spread)
    rest = spread * noise / (noise + size * spread)
    new_spread = float((share * (mean**2 + rest)).sum() / data.tracks.size)
    left = squares - 2 * mean * total + size * (mean**2 + rest)
    new_noise = float((share * left).sum() / data.size.sum())
    return max(new_spread, FLOOR_PX**2), max(new_noise, FLOOR_PX**2)


def _log_likelihood(
    data: _Trajectories, total: Floats, squares: Floats, spread: float, noise: float
) -> Floats:
    """Log-likelihood of every track under every path."""
    size = data.size[:, None]
    both = noise + size * spread
    quadratic = (squares - spread / both * total**2) / noise
    determinant = (size - 1) * np.log(noise) + np.log(both)
    return np.asarray(-0.5 * (quadratic + determinant + size * np.log(2 * np.pi)))


def _ordered(used: pd.DataFrame, labels: dict[int, int]) -> dict[int, int]:
    """Labels from 1 in the order in which populations appear, smaller spacing first."""
    own = used["track"].map(labels)
    begins = used["frame"].groupby(used["track"]).transform("min")
    first, q = begins.groupby(own).median(), used["q"].groupby(own).median()
    order = sorted(set(labels.values()), key=lambda k: (first[k], -q[k]))
    return {track: order.index(label) + 1 for track, label in labels.items()}


def _summary(table: pd.DataFrame, bic: Floats, voltage: Floats | None) -> xr.Dataset:
    """Place and intensity of every population in every frame."""
    count, frames = int(table["population"].max()), int(table["frame"].max()) + 1
    grid = pd.MultiIndex.from_product(
        [range(1, count + 1), range(frames)], names=["population", "frame"]
    )
    groups = table[table["population"] > 0].groupby(["population", "frame"])

    def cells(series: pd.Series, empty: float = np.nan) -> Floats:
        filled = series.reindex(grid).fillna(empty)
        return np.asarray(filled.to_numpy(float).reshape(count, frames))

    spots = cells(groups.size(), 0.0)
    q = cells(groups["q"].mean())
    scatter = cells(groups["q"].std(ddof=0)) / np.sqrt(np.maximum(spots - 1, 1))
    values = {
        "q": (q, "nm-1", "length of Q"),
        "q_errors": (np.where(spots > 1, scatter, np.nan), "nm-1", "standard error"),
        "d_nm": (2 * np.pi / q, "nm", "lattice spacing"),
        "intensity": (cells(groups["intensity"].sum(), 0.0), "count", "photons of all spots"),
        "spots": (spots, "1", "spots"),
    }
    if "intensity_errors" in table:
        squared = groups["intensity_errors"].agg(lambda e: float((e**2).sum()))
        errors = np.sqrt(cells(squared, 0.0))
        values["intensity_errors"] = (errors, "count", "from photon noise")
    summary = xr.Dataset(
        {
            name: (("population", "frame"), value, {"units": units, "long_name": long_name})
            for name, (value, units, long_name) in values.items()
        },
        coords={"population": np.arange(1, count + 1), "components": np.arange(1, bic.size + 1)},
    )
    attrs = {"units": "1", "long_name": "Bayesian information criterion"}
    summary["bic"] = ("components", bic, attrs)
    if voltage is not None:
        summary["voltage"] = ("frame", np.asarray(voltage, float), {"units": "V"})
    summary.attrs["populations"] = count
    return summary
