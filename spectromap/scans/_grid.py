"""Maps of one scan on the pixels of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from spectromap._compiled import compiled
from spectromap.scans._maps import (
    UNUSABLE,
    Array,
    Mask,
    Pair,
    components,
    covariance,
    usable,
    variance_of,
)
from spectromap.schema import FLAGS, check_map, pixel_size

#: A resampled pixel may miss this share of what it is made of.
MISSING_SHARE = 0.25
#: A fraction is shown where it is known to this (`fit_components` does the same).
KNOWN_FRACTION = 0.5
#: Maps that no average makes sense of: the nearest pixel is taken.
NEAREST = ("chi2", "residual", "samples_used", "max_od")


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
    names = components(maps)
    check_map(maps["thickness"], name="maps.thickness")
    grid = _Grid.of(maps["thickness"], like, registration)
    means, squares = _averages(maps, names, grid)
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
            value = 0.0 if registration is None else float(registration[f"offset_{axis}{text}"])
            result.attrs[f"offset_{axis}_nm{text}"] = value
    return result


def _averages(
    maps: xr.Dataset, names: list[str], grid: _Grid
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Averages of maps, and of those that hold variances."""
    linear, squared = _by_weights(maps, names)
    amounts = ["thickness", *(f"{name}_thickness" for name in names)]
    covariances = [name for name in squared if name.endswith("_covariance")]
    core = [*(linear[name] for name in amounts), *(squared[name] for name in covariances)]
    whole = usable(maps) & np.all([np.isfinite(values) for values in core], axis=0)
    found: list[dict[str, Array]] = []
    for power, values, together in ((1, linear, amounts), (2, squared, covariances)):
        averages = grid.averaged([values[name] for name in together], whole, power)
        means = dict(zip(together, averages, strict=True))
        for name in values.keys() - means.keys():  # what may have gaps of its own
            known = whole & np.isfinite(values[name])
            means[name] = grid.averaged([values[name]], known, power)[0]
        found.append(means)
    return found[0], found[1]


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
    variance = sum(squares[covariance(squares, a, b)] for a, b in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        values["thickness_errors"] = np.sqrt(np.maximum(variance, 0.0))
        values["thickness_nonnegative"] = np.maximum(total, 0.0)
        there = np.where(total > 0, total, np.nan)
        shares = {name: means[f"{name}_thickness"] / there for name in names}
        spread = {
            name: np.sqrt(variance_of(squares, names, name, share)) / there
            for name, share in shares.items()
        }
        shown = {name: np.clip(share, 0.0, 1.0) for name, share in shares.items()}
        whole = sum(shown.values())
        for name in names:
            values[f"{name}_fraction"] = shares[name]
            values[f"{name}_fraction_errors"] = spread[name]
            known = spread[name] < KNOWN_FRACTION
            values[f"{name}_fraction_nonnegative"] = np.where(known, shown[name] / whole, np.nan)
            systematic = f"{name}_fraction_systematic"
            if systematic in means:
                values[systematic] = means[systematic] / there
    return {name: np.asarray(v, maps[name].dtype) for name, v in values.items() if name in maps}


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
