"""Displacement and strain along Q from the complex object in the sample frame.

The object carries the phase ``Q.u`` (see `spectromap.bcdi.geometry` for the sign), so
``u = phase / |Q|`` is the displacement along Q and ``du/dx_Q`` the strain; tension is positive
[Robinson and Harder, Nat. Mater. 8, 291 (2009)]. A uniform strain and a shift of the whole
crystal are a ramp and an offset of the phase, which the reconstruction does not fix: both are
taken out, and strain is relative to the mean of the crystal.

Strain never comes from the unwrapped phase. Differences of neighbouring voxels, wrapped into
(-pi, pi], are the same on both sides of the cut that unwrapping must leave at a dislocation.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._numerics import robust_std
from spectromap.schema import InputError

__all__ = [
    "displacement_and_strain",
    "find_support",
    "strain_by_depth",
    "strain_fractions",
    "strain_histogram",
]

Floats = NDArray[np.floating[Any]]
Complexes = NDArray[np.complexfloating[Any, Any]]
Mask = NDArray[np.bool_]

DIMS = ("z", "y", "x")
#: Differences further than this many robust standard deviations from the middle count less.
OUTLIER = 3.0
#: Rounds of reweighting; each moves the mean by less than a tenth of the one before.
ROUNDS = 20
#: Voxels by which the support is closed, so that the core of a dislocation is no surface.
CLOSING = 2
#: Part of a direction below which an axis does not contribute to the derivative along it.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class _Crystal:
    """A checked object: its values, the edge of a voxel in nm and Q (z, y, x) in 1/nm."""

    values: Complexes
    voxel: float
    q: Floats

    @property
    def q_norm(self) -> float:
        return float(np.linalg.norm(self.q))


def _checked(crystal: xr.DataArray) -> _Crystal:
    """Refuse what is no object in the sample frame."""
    if not isinstance(crystal, xr.DataArray) or crystal.dims != DIMS:
        raise InputError(
            f"expected a DataArray with dims {DIMS}",
            where="crystal",
            remedy="Bring the object to the sample frame first.",
        )
    if not np.iscomplexobj(crystal.values) or not np.all(np.isfinite(crystal.values)):
        raise InputError("the object must be complex and finite", where="crystal")
    if "q_vector" not in crystal.attrs:
        raise InputError(
            "attrs['q_vector'] is missing", where="crystal", remedy="Set it: (z, y, x) in 1/nm."
        )
    q = np.asarray(crystal.attrs["q_vector"], float)
    if q.shape != (3,) or not 0 < np.linalg.norm(q) < np.inf:
        raise InputError(f"q_vector is {crystal.attrs['q_vector']}", where="crystal")
    return _Crystal(crystal.values, _voxel(crystal), q)


def _voxel(array: xr.DataArray | xr.Dataset) -> float:
    """Edge in nm of the voxels, which must be cubes."""
    steps: list[float] = []
    for dim in DIMS:
        if dim not in array.coords or array.sizes[dim] < 2:
            raise InputError(f"coordinate '{dim}' in nm is missing or too short", where="crystal")
        steps.extend(np.diff(np.asarray(array[dim].values, float)))
    if min(steps) <= 0 or np.ptp(steps) > 1e-3 * max(steps):
        raise InputError(
            f"voxels must be equal cubes, steps go from {min(steps):.3g} to {max(steps):.3g} nm",
            where="crystal",
            remedy="Resample the object to equal voxels.",
        )
    return float(np.mean(steps))


def find_support(crystal: xr.DataArray, *, threshold: float = 0.5) -> xr.DataArray:
    """Voxels that belong to the crystal: the largest connected part above a share of the inside.

    Half of the amplitude inside is where a surface lies after a symmetric blur, so the volume is
    not biased by the resolution.

    Parameters
    ----------
    crystal : DataArray, dims (z, y, x), complex
        Object in the sample frame.
    threshold : float
        Amplitude at the surface relative to the median amplitude inside.

    Returns
    -------
    DataArray of bool, dims (z, y, x)

    Raises
    ------
    InputError
        Not an object in the sample frame, or an empty one, or a threshold outside of (0, 1).
    """
    _checked(crystal)
    if not 0 < threshold < 1:
        raise InputError(
            f"threshold is {threshold}", where="find_support", remedy="Between 0 and 1."
        )
    amplitude = np.abs(crystal.values)
    if not amplitude.any():
        raise InputError("the object is empty", where="crystal")
    inside = np.median(amplitude[amplitude > 0.5 * amplitude.max()])
    for _ in range(3):
        support = _largest(amplitude > threshold * inside)
        inside = np.median(amplitude[_eroded(support, 1)])
    # Outside of the array there is no crystal, nor does closing make one.
    padded = np.pad(_largest(amplitude > threshold * inside), CLOSING)
    ball = ndimage.generate_binary_structure(3, 1)
    closed = ndimage.binary_closing(padded, ball, iterations=CLOSING)
    closed = ndimage.binary_fill_holes(closed)[(slice(CLOSING, -CLOSING),) * 3]
    attrs = {"long_name": "inside the crystal"}
    return xr.DataArray(closed, coords=crystal.coords, dims=DIMS, name="support", attrs=attrs)


def _largest(mask: Mask) -> Mask:
    """The largest connected part."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return np.asarray(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))


def _eroded(mask: Mask, voxels: int) -> Mask:
    """The mask without its outer layers, or as it is where nothing else would be left."""
    inner = ndimage.binary_erosion(mask, iterations=voxels) if voxels else mask
    return np.asarray(inner) if inner.any() else mask


def _slices(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all voxels but the last, and all but the first, on an axis."""
    before = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    after = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    return before, after


def _steps(values: Complexes, support: Mask, axis: int) -> Floats:
    """Wrapped differences of the phase along an axis in rad, NaN unless both ends are inside."""
    before, after = _slices(axis)
    step = np.angle(values[after] * np.conj(values[before])).astype(np.float64)
    step[~(support[after] & support[before])] = np.nan
    return np.asarray(step)


def _ramp(values: Complexes, support: Mask) -> Floats:
    """Mean change of the phase from voxel to voxel along every axis in rad, robustly.

    Huber's mean of wrapped differences about their circular mean, so that neither a dislocation
    nor a few bad voxels tilt it.
    """
    ramp = np.zeros(3)
    for axis in range(3):
        step = _steps(values, support, axis)
        step = step[np.isfinite(step)]
        if not step.size:
            continue
        start = float(np.angle(np.exp(1j * step).sum()))
        rest = np.angle(np.exp(1j * (step - start)))
        ramp[axis] = start + _huber_mean(rest)
    return ramp


def _huber_mean(values: Floats) -> float:
    """Mean in which outliers count as if they lay `OUTLIER` standard deviations away."""
    limit, mean = OUTLIER * robust_std(values), float(np.median(values))
    if limit == 0:
        return float(values.mean())
    for _ in range(ROUNDS):
        weight = np.minimum(1.0, limit / np.maximum(np.abs(values - mean), limit))
        mean = float(np.average(values, weights=weight))
    return mean


def _without_ramp(values: Complexes, ramp: Floats, inner: Mask) -> Complexes:
    """The object with its ramp taken out and the mean phase in `inner` set to zero."""
    index = np.ix_(*(np.arange(n) - n // 2 for n in values.shape))
    phase = sum((r * i for r, i in zip(ramp, index, strict=True)), np.zeros((1, 1, 1)))
    level = values * np.exp(-1j * phase)
    unit = level[inner] / np.maximum(np.abs(level[inner]), np.finfo(np.float32).tiny)
    return np.asarray(level * np.exp(-1j * np.angle(unit.sum())))


def _gradient(values: Complexes, support: Mask, direction: Floats) -> Floats:
    """Derivative of the phase along a unit vector in rad per voxel.

    The mean of the wrapped differences to both neighbours, of the one that there is at a surface,
    NaN where there is none.
    """
    total = np.where(support, 0.0, np.nan)
    for axis in range(3):
        if abs(direction[axis]) < NEGLIGIBLE:
            continue
        step = _steps(values, support, axis)
        before, after = _slices(axis)
        found, count = np.zeros(values.shape), np.zeros(values.shape)
        for side in (before, after):
            found[side] += np.nan_to_num(step)
            count[side] += np.isfinite(step)
        along = np.divide(found, count, out=np.full(values.shape, np.nan), where=count > 0)
        total += direction[axis] * along
    return np.asarray(total)


def _vortices(values: Complexes, support: Mask) -> Mask:
    """Voxels on a closed path of four around which the phase turns once: lines of dislocations."""
    turning = np.zeros(values.shape, bool)
    steps = [_steps(values, support, axis) for axis in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        low_second, high_second = _slices(second)
        low_first, high_first = _slices(first)
        circulation = (
            steps[first][low_second]
            + steps[second][high_first]
            - steps[first][high_second]
            - steps[second][low_first]
        )
        around = np.abs(np.nan_to_num(circulation)) > np.pi
        for side_first in (low_first, high_first):
            for side_second in (low_second, high_second):
                turning[side_first][side_second] |= around
    return turning


def _unwrapped(phase: Floats, support: Mask, inner: Mask) -> Floats:
    """Phase without jumps of 2 pi where that can be, median zero in `inner`, NaN outside.

    Reliable voxels first [Herraez et al., Appl. Opt. 41, 7437 (2002)].
    """
    # scikit-image takes a second to load.
    restoration = importlib.import_module("skimage.restoration")
    box = ndimage.find_objects(support.astype(np.uint8))[0]
    masked = np.ma.masked_array(phase[box], mask=~support[box])
    smooth = np.full(phase.shape, np.nan)
    smooth[box] = restoration.unwrap_phase(masked, rng=0).filled(np.nan)
    return np.asarray(smooth - np.nanmedian(smooth[inner]))


def _depth(amplitude: Floats, support: Mask, voxel: float) -> Floats:
    """Distance in nm of every voxel's centre below the surface, NaN outside.

    The distance to the nearest voxel outside, shortened by how far that voxel lies from the
    surface: half a voxel where it is empty, nothing where it is half full. (Half a voxel for all
    makes particles with oblique faces too shallow by a third of a voxel.)
    """
    share = np.pad(amplitude / np.median(amplitude[_eroded(support, 2)]), 1)
    distance, nearest = ndimage.distance_transform_edt(np.pad(support, 1), return_indices=True)
    beyond = 0.5 - np.clip(share[tuple(nearest)], 0.0, 0.5)
    depth = (distance - beyond)[1:-1, 1:-1, 1:-1] * voxel
    return np.where(support, depth, np.nan)


def displacement_and_strain(
    crystal: xr.DataArray,
    starts: xr.DataArray | None = None,
    *,
    support: xr.DataArray | None = None,
    threshold: float = 0.5,
    margin: int = 2,
) -> xr.Dataset:
    """Displacement, strain and lattice spacing along Q, with the spread over starts.

    Parameters
    ----------
    crystal : DataArray, dims (z, y, x), complex
        Object in the sample frame on cubic voxels, coordinates in nm, phase ``Q.u``;
        ``attrs["q_vector"]`` is Q (z, y, x) in 1/nm.
    starts : DataArray, dims (start, z, y, x), complex, optional
        Aligned solutions of the starts that `crystal` was made of, on the same voxels. Their
        standard deviation is the error of everything that follows. (It says how well the phase
        retrieval is determined; starts share the photon noise, so it does not fall with their
        number.)
    support : DataArray of bool, dims (z, y, x), optional
        Voxels of the crystal; `find_support` otherwise.
    threshold : float
        See `find_support`.
    margin : int
        Outer layers, in voxels, that do not enter the fit of ramp and offset.

    Returns
    -------
    Dataset, dims (z, y, x)
        ``amplitude``; ``support``; ``depth`` below the surface [nm]; ``phase`` [rad] unwrapped
        (a dislocation leaves a cut), ``displacement`` [nm], ``strain``, ``d_spacing`` [nm];
        ``dislocation``, voxels around which the phase turns: strain is NaN there, as is
        everything outside of the support. With `starts` also ``<name>_errors``. Attributes:
        ``q_vector``, ``q_norm``, ``voxel_nm``, ``mean_strain`` (that of the ramp, relative to
        2 pi over the length of Q) and ``ramp`` (z, y, x) in rad/nm.

    Raises
    ------
    InputError
        Not a complex object on cubic voxels with its Q; a support or starts on another grid or
        empty; fewer than two starts.
    """
    one = _checked(crystal)
    inside = _support(crystal, support, threshold)
    inner = _eroded(inside, margin)
    ramp = _ramp(one.values, inner)
    level = _without_ramp(one.values, ramp, inner)
    direction = one.q / one.q_norm
    vortices = _vortices(level, inside)
    strain = _gradient(level, inside, direction) / (one.voxel * one.q_norm)
    strain[vortices] = np.nan
    mean_strain = float(ramp @ direction) / (one.voxel * one.q_norm)
    phase = _unwrapped(np.angle(level), inside, inner)
    spacing = 2 * np.pi / one.q_norm
    values = {
        "amplitude": (np.abs(one.values), "1", "amplitude"),
        "phase": (phase, "rad", "phase without ramp, unwrapped"),
        "displacement": (phase / one.q_norm, "nm", "displacement along Q"),
        "strain": (strain, "1", "strain along Q relative to the mean"),
        "d_spacing": (spacing * (1 + mean_strain + strain), "nm", "lattice spacing along Q"),
        "depth": (_depth(np.abs(one.values), inside, one.voxel), "nm", "depth below the surface"),
    }
    if starts is not None:
        phase_errors, strain_errors = _spread(_grids(starts, crystal), level, inside, inner, one)
        strain_errors[vortices] = np.nan
        values |= {
            "phase_errors": (phase_errors, "rad", "spread over starts"),
            "displacement_errors": (phase_errors / one.q_norm, "nm", "spread over starts"),
            "strain_errors": (strain_errors, "1", "spread over starts"),
            "d_spacing_errors": (spacing * strain_errors, "nm", "spread over starts"),
        }
    maps = xr.Dataset(
        {
            name: (DIMS, value.astype(np.float32), {"units": units, "long_name": long_name})
            for name, (value, units, long_name) in values.items()
        },
        coords=crystal.coords,
    )
    maps["support"] = (DIMS, inside, {"long_name": "inside the crystal"})
    maps["dislocation"] = (DIMS, vortices, {"long_name": "on the line of a dislocation"})
    maps.attrs = {
        "q_vector": tuple(one.q.tolist()),
        "q_norm": one.q_norm,
        "voxel_nm": one.voxel,
        "mean_strain": mean_strain,
        "ramp": tuple((ramp / one.voxel).tolist()),
    }
    return maps


def _support(crystal: xr.DataArray, support: xr.DataArray | None, threshold: float) -> Mask:
    """The support given or found; never empty."""
    if support is None:
        return np.asarray(find_support(crystal, threshold=threshold).values)
    inside = np.asarray(support.values, bool)
    if support.dims != DIMS or inside.shape != crystal.shape or not inside.any():
        raise InputError("the support is empty or on another grid", where="support")
    return inside


def _grids(starts: xr.DataArray, crystal: xr.DataArray) -> list[Complexes]:
    """Solutions of the starts on the grid of the crystal."""
    if starts.dims != ("start", *DIMS) or starts.shape[1:] != crystal.shape:
        raise InputError(
            f"expected dims ('start', *{DIMS}) on the grid of the crystal", where="starts"
        )
    if starts.sizes["start"] < 2:
        raise InputError("a spread needs two starts or more", where="starts")
    return [np.asarray(starts[i].values) for i in range(starts.sizes["start"])]


def _spread(
    starts: list[Complexes], level: Complexes, inside: Mask, inner: Mask, one: _Crystal
) -> tuple[Floats, Floats]:
    """Standard deviations over starts of phase [rad] and strain.

    Each start is compared with the object, its own ramp and offset taken out: differences are
    small, so that nothing needs unwrapping.
    """
    phase, strain = _Moments(level.shape), _Moments(level.shape)
    direction = one.q / one.q_norm
    reference = np.where(inside, np.exp(-1j * np.angle(level)), 0.0)
    for values in starts:
        relative = values * reference
        relative = _without_ramp(relative, _ramp(relative, inner), inner)
        phase.add(np.where(inside, np.angle(relative), np.nan))
        strain.add(_gradient(relative, inside, direction) / (one.voxel * one.q_norm))
    return phase.deviation(), strain.deviation()


class _Moments:
    """Running mean and sum of squares [Welford, Technometrics 4, 419 (1962)]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)

    def add(self, values: Floats) -> None:
        """Count one more array."""
        self.count += 1
        change = values - self.mean
        self.mean += change / self.count
        self.squares += change * (values - self.mean)

    def deviation(self) -> Floats:
        """Standard deviation of one array."""
        return np.asarray(np.sqrt(self.squares / (self.count - 1)))


# --------------------------------------------------------------------------------------------
# Numbers of one state


def _used(maps: xr.Dataset, min_depth_nm: float | None) -> Mask:
    """Voxels with a strain that is trusted, by default all but the outermost layer."""
    missing = [n for n in ("strain", "support", "depth") if n not in maps]
    if missing:
        raise InputError(
            f"{', '.join(missing)} missing", where="maps", remedy="See displacement_and_strain."
        )
    least = _voxel(maps) if min_depth_nm is None else min_depth_nm
    depth = np.nan_to_num(np.asarray(maps["depth"].values, float), nan=-np.inf)
    used = np.isfinite(maps["strain"].values) & (depth >= least)
    if not used.any():
        raise InputError(
            f"no voxel deeper than {least:g} nm has a strain",
            where="min_depth_nm",
            remedy="Take a smaller depth.",
        )
    return np.asarray(used)


def _errors(maps: xr.Dataset, used: Mask) -> Floats:
    """Errors of the strain of the voxels used, zero where none are known."""
    if "strain_errors" not in maps:
        return np.zeros(int(used.sum()))
    return np.asarray(np.nan_to_num(maps["strain_errors"].values[used].astype(float)))


def strain_fractions(
    maps: xr.Dataset, *, neutral: float = 0.0, min_depth_nm: float | None = None
) -> xr.Dataset:
    """Share of the volume under tension and under compression along Q.

    Parameters
    ----------
    maps : Dataset, dims (z, y, x)
        From `displacement_and_strain`.
    neutral : float
        Strain up to which, either way, a voxel counts as neither.
    min_depth_nm : float, optional
        Depth from which voxels are used; by default one voxel, because the derivative of the
        outermost layer has one side only.

    Returns
    -------
    Dataset
        ``tensile_fraction``, ``compressive_fraction``, ``neutral_fraction`` (sum 1),
        ``mean_strain`` and ``strain_spread`` (standard deviation between voxels), and ``volume``
        [nm3] of the voxels used; with errors of the strain also ``<name>_errors`` of the
        fractions. Those take the errors of all voxels as one: half of what the fraction changes
        when every strain moves from one error below to one above, an upper limit.

    Raises
    ------
    InputError
        Maps without strain, or no voxel that deep.
    """
    used = _used(maps, min_depth_nm)
    strain, errors = maps["strain"].values[used].astype(float), _errors(maps, used)

    def shares(values: Floats) -> Floats:
        tension, pressure = np.mean(values > neutral), np.mean(values < -neutral)
        return np.array([tension, pressure, 1 - tension - pressure])

    found = xr.Dataset()
    change = np.abs(shares(strain + errors) - shares(strain - errors)) / 2
    names = ("tensile", "compressive", "neutral")
    for name, value, error in zip(names, shares(strain), change, strict=True):
        long_name = f"share of the volume, {name}"
        found[f"{name}_fraction"] = ((), value, {"units": "1", "long_name": long_name})
        if "strain_errors" in maps:
            found[f"{name}_fraction_errors"] = ((), error, {"units": "1"})
    found["mean_strain"] = ((), strain.mean(), {"units": "1", "long_name": "mean strain along Q"})
    found["strain_spread"] = (
        (),
        strain.std(),
        {"units": "1", "long_name": "standard deviation of the strain between voxels"},
    )
    volume = used.sum() * _voxel(maps) ** 3
    found["volume"] = ((), volume, {"units": "nm3", "long_name": "volume used"})
    return found


def strain_histogram(
    maps: xr.Dataset,
    *,
    bins: int = 60,
    limit: float | None = None,
    min_depth_nm: float | None = None,
) -> xr.Dataset:
    """Histogram of the strain by volume.

    Parameters
    ----------
    maps : Dataset, dims (z, y, x)
        From `displacement_and_strain`.
    bins : int
        Number of equal bins from ``-limit`` to ``limit``.
    limit : float, optional
        Largest strain; by default that of the voxels used. What lies beyond is counted in the
        outermost bins.
    min_depth_nm : float, optional
        See `strain_fractions`.

    Returns
    -------
    Dataset, dims (strain,)
        ``volume_share`` (sum 1) at the centres of the bins.

    Raises
    ------
    InputError
        Maps without strain, no voxel that deep, or no bins.
    """
    if bins < 1 or (limit is not None and limit <= 0):
        raise InputError("bins and limit must be positive", where="strain_histogram")
    strain = maps["strain"].values[_used(maps, min_depth_nm)].astype(float)
    # The strain of a perfect crystal is zero, and an axis needs a width.
    edge = limit or float(np.abs(strain).max()) or 1e-9
    counts, edges = np.histogram(np.clip(strain, -edge, edge), bins=bins, range=(-edge, edge))
    centres = (edges[1:] + edges[:-1]) / 2
    attrs = {"units": "1", "long_name": "share of the volume"}
    return xr.Dataset(
        {"volume_share": ("strain", counts / strain.size, attrs)},
        coords={"strain": ("strain", centres, {"units": "1", "long_name": "strain along Q"})},
    )


def strain_by_depth(
    maps: xr.Dataset, *, bin_nm: float | None = None, resolution_nm: float | None = None
) -> xr.Dataset:
    """Mean strain against the depth below the surface.

    Parameters
    ----------
    maps : Dataset, dims (z, y, x)
        From `displacement_and_strain`.
    bin_nm : float, optional
        Width of the bins; one voxel by default.
    resolution_nm : float, optional
        Voxels within one cube of this edge count as one measurement; two voxels by default,
        which is what a central difference spans.

    Returns
    -------
    Dataset, dims (depth,)
        ``strain`` and ``strain_errors``: the scatter of the voxels over the square root of
        the number of independent ones, and the spread over starts, which is common to a bin;
        ``strain_spread`` between voxels; ``voxel_count``; ``independent_count``.

    Raises
    ------
    InputError
        Maps without strain, or widths that are not positive.
    """
    used, voxel = _used(maps, 0.0), _voxel(maps)
    width = voxel if bin_nm is None else bin_nm
    element = 2 * voxel if resolution_nm is None else resolution_nm
    if width <= 0 or element <= 0:
        raise InputError("bin_nm and resolution_nm must be positive", where="strain_by_depth")
    strain, errors = maps["strain"].values[used].astype(float), _errors(maps, used)
    place = (maps["depth"].values[used] / width).astype(int)
    count = np.bincount(place)
    full = np.maximum(count, 1)
    mean = np.bincount(place, strain) / full
    spread = np.sqrt(np.bincount(place, (strain - mean[place]) ** 2) / full)
    independent = np.maximum(count * min(1.0, (voxel / element) ** 3), 1.0)
    common = np.bincount(place, errors) / full
    values = {
        "strain": (mean, "1", "mean strain along Q"),
        "strain_errors": (np.hypot(spread / np.sqrt(independent), common), "1", "standard error"),
        "strain_spread": (spread, "1", "standard deviation between voxels"),
        "voxel_count": (count, "1", "voxels"),
        "independent_count": (independent, "1", "independent elements"),
    }
    depth = (np.arange(count.size) + 0.5) * width
    profile = xr.Dataset(
        {n: ("depth", v, {"units": u, "long_name": t}) for n, (v, u, t) in values.items()},
        coords={"depth": ("depth", depth, {"units": "nm", "long_name": "depth below the surface"})},
    )
    return profile.isel(depth=np.flatnonzero(count))
