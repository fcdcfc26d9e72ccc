"""What is true of a simulation, under the names of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray
from scipy import sparse

from spectromap import __version__
from spectromap._numerics import FloatArray
from spectromap.schema import SCHEMA_VERSION
from spectromap.synthetic._bodies import Particle
from spectromap.synthetic._instrument import Optics, open_field
from spectromap.synthetic._options import NM2_PER_CM2, Sample, Setup
from spectromap.synthetic._places import agglomerate_depths, heterogeneity
from spectromap.synthetic._scene import Grid, Scene, Shadow, binned, filled

#: Further outside than this many pixels there is no edge distance.
NEAR_PIXELS = 5


def _variable(
    dims: tuple[str, ...], values: Any, units: str, long_name: str = ""
) -> tuple[tuple[str, ...], Any, dict[str, str]]:
    """Values with their units, as xarray takes them."""
    attrs = {"units": units}
    return dims, values, {**attrs, "long_name": long_name} if long_name else attrs


def axis(size: int, pixel: float, name: str, start: float = 0.0) -> xr.Variable:
    """Pixel centres along y or x in nm."""
    values = start + (np.arange(size) + 0.5) * pixel
    return xr.Variable(name, values, {"units": "nm", "long_name": name})


def _ratio(part: FloatArray, whole: FloatArray, least: float = 1e-3) -> FloatArray:
    """Quotient, NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(whole > least, part / whole, np.nan), dtype=np.float32)


def _label_maps(
    shadows: Sequence[Shadow], grid: Grid, numbers: Sequence[int] = ()
) -> tuple[NDArray[np.int32], FloatArray]:
    """Labels (the thicker particle where two overlap) and distance from the outline.

    Particles are numbered from 1 on unless their numbers are given.
    """
    labels = np.zeros(grid.shape, dtype=np.int32)
    thickest = np.zeros(grid.shape, dtype=np.float32)
    distance = np.full(grid.shape, np.nan, dtype=np.float32)
    for label, shadow in zip(numbers or range(1, len(shadows) + 1), shadows, strict=True):
        place, depth, thickness = _on_pixels(shadow, grid)
        depth[depth < -NEAR_PIXELS * grid.pixel] = np.nan
        mine = (depth > 0) & (thickness >= thickest[place])
        labels[place][mine], thickest[place][mine] = label, thickness[mine]
        outside = np.isfinite(depth) & (labels[place] == 0) & ~(distance[place] > depth)
        distance[place] = np.where(mine | outside, depth, distance[place])
    return labels, distance


def _on_pixels(shadow: Shadow, grid: Grid) -> tuple[tuple[slice, slice], FloatArray, FloatArray]:
    """Pixels of the field on which a particle lies, its depth and its thickness there."""
    start = np.array([shadow.y, shadow.x]) - grid.margin * grid.fine
    stop = start + shadow.thickness.shape
    first = np.clip(start // grid.fine, 0, grid.shape)
    last = np.clip(-(-stop // grid.fine), first, grid.shape)
    corner, size = first * grid.fine, (last - first) * grid.fine
    low, high = np.clip(start, corner, corner + size), np.clip(stop, corner, corner + size)
    cells = tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))
    part = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    depth, thickness = np.full(size, np.nan, np.float32), np.zeros(size, np.float32)
    depth[cells], thickness[cells] = shadow.depth[part], shadow.thickness[part]
    place = slice(first[0], last[0]), slice(first[1], last[1])
    return place, binned(depth, grid.fine), binned(thickness, grid.fine)


def _amounts(
    names: Sequence[str], sharp: FloatArray, blurred: FloatArray, coords: Mapping[Any, xr.Variable]
) -> xr.Dataset:
    """Fractions and thickness from amounts (component, y, x) in nm, sharp and blurred."""
    dims = ("y", "x")
    maps = xr.Dataset(coords=dict(coords))
    for name, part, soft in zip(names, sharp, blurred, strict=True):
        maps[f"{name}_fraction"] = _variable(
            dims, _ratio(part, sharp.sum(axis=0)), "1", f"true fraction of {name}"
        )
        maps[f"{name}_fraction_blurred"] = _variable(
            dims, _ratio(soft, blurred.sum(axis=0), 1.0), "1", f"blurred fraction of {name}"
        )
    maps["thickness"] = _variable(dims, sharp.sum(axis=0), "nm", "true thickness")
    maps["thickness_blurred"] = _variable(dims, blurred.sum(axis=0), "nm", "blurred thickness")
    maps.attrs["fraction"] = names[1]
    return maps


def _maps(setup: Setup, scene: Scene, optics: Optics) -> xr.Dataset:
    """Maps of the common frame, sharp and blurred."""
    grid = scene.grid
    labels, distance = _label_maps(scene.shadows, grid, scene.numbers)
    owner = np.zeros(scene.labels.max(initial=0) + 1, dtype=np.int32)
    owner[scene.labels] = [p.agglomerate for p in scene.particles]
    sharp = np.stack([grid.binned(a) for a in scene.amounts])
    blurred = np.stack([optics.record(a, np.zeros(2)) for a in scene.amounts])
    dims = ("y", "x")
    coords = {
        name: axis(size, grid.pixel, name, start)
        for name, size, start in zip(dims, grid.shape, setup.file_origin, strict=True)
    }
    maps = _amounts(setup.names, sharp, blurred, coords)
    maps["particle_label"] = _variable(dims, labels, "1", "particle")
    maps["agglomerate_label"] = _variable(dims, owner[labels], "1", "agglomerate")
    maps["edge_distance"] = _variable(dims, distance, "nm", "distance inwards from the outline")
    return maps


def maps_elsewhere(setup: Setup, scene: Scene, main: Setup, like: xr.Dataset) -> xr.Dataset:
    """Fractions and thickness of a scan on the pixels of the main scan, NaN off its field.

    Parameters
    ----------
    setup, scene : Setup, Scene
        The scan.
    main : Setup
        The main scan.
    like : Dataset, dims (y, x)
        Its maps; their coordinates are those of its file.
    """
    grid, optics, pixel = scene.grid, Optics(setup.instrument, scene.grid), main.scan.pixel_nm
    shares, covered = [], []
    for k, name in enumerate("yx"):
        # Where the pixels really begin, from the corner of the scan on.
        begin = like[name].values - pixel / 2 - main.scan.origin_error_nm[k]
        begin = begin - setup.scan.origin_nm[k]
        shares.append(_cells_in_pixels(begin, pixel, grid, k))
        end = grid.shape[k] * grid.pixel
        covered.append((begin > -1e-6) & (begin + pixel < end + 1e-6))
    off = ~np.outer(*covered)

    def seen(cells: FloatArray) -> FloatArray:
        pixels = np.asarray(shares[0] @ cells @ shares[1].T, dtype=np.float32)
        pixels[off] = np.nan
        return pixels

    sharp = np.stack([seen(a) for a in scene.amounts])
    blurred = np.stack([seen(optics.blurred(a, np.zeros(2))) for a in scene.amounts])
    return _amounts(setup.names, sharp, blurred, {name: like[name].variable for name in "yx"})


def _cells_in_pixels(begin: FloatArray, pixel: float, grid: Grid, k: int) -> sparse.csr_array:
    """Share of each cell of the canvas along an axis in pixels that begin at given places in nm."""
    edges = (np.arange(grid.cells[k] + 1) - grid.margin * grid.fine) * grid.cell
    low = np.maximum(begin[:, None], edges[None, :-1])
    high = np.minimum(begin[:, None] + pixel, edges[None, 1:])
    return sparse.csr_array(np.maximum(high - low, 0) / pixel)


def _particle_row(
    shadow: Shadow,
    particle: Particle,
    crowd: NDArray[np.int16],
    setup: Setup,
    grid: Grid,
    range_px: FloatArray,
) -> dict[str, Any]:
    """What the particle stage would measure of one particle on perfect maps."""
    fill = filled(shadow.depth, grid.cell)
    area = float(fill.sum(dtype=float)) * grid.cell**2
    volume = float(shadow.thickness.sum(dtype=float)) * grid.cell**2
    cells = np.argwhere(shadow.depth > 0)
    inside = tuple(cells.T)
    # Position of cell centres in the recorded field, in cells.
    place = cells + np.array([shadow.y, shadow.x]) - grid.margin * grid.fine + 0.5
    y, x = np.average(place, axis=0, weights=fill[inside]) * grid.cell + setup.file_origin
    # At the border: in the outermost pixels of any frame.
    low = (place.min(axis=0) - 0.5) / grid.fine + range_px[0]
    high = (place.max(axis=0) + 0.5) / grid.fine + range_px[1]
    return {
        "area": area,
        "radius": np.sqrt(area / np.pi),
        "y": y,
        "x": x,
        "thickness": volume / area,
        "thickness_max": float(shadow.thickness.max()),
        "overlap": float(crowd[shadow.window()][inside].mean()),
        "fraction": float(shadow.reduced.sum(dtype=float)) * grid.cell**2 / volume,
        "agglomerate": particle.agglomerate,
        "place": particle.place,
        "at_border": bool(np.any(low < 1) or np.any(high > np.array(grid.shape) - 1)),
        "used": True,
        "reason": "",
        "volume": volume,
        "body_radius": (particle.body.volume * 3 / (4 * np.pi)) ** (1 / 3),
        "cut_height": particle.cut_nm,
        "shape": type(particle.body).__name__.lower(),
    }


_COLUMN_UNITS = {"area": "nm2", "volume": "nm3"} | dict.fromkeys(
    ("radius", "y", "x", "thickness", "thickness_max", "body_radius", "cut_height", "depth"), "nm"
)


def _particle_table(setup: Setup, scene: Scene, maps: xr.Dataset, shifts: FloatArray) -> xr.Dataset:
    """One row a particle."""
    grid, particles = scene.grid, scene.particles
    range_px = np.stack([shifts.min(axis=0), shifts.max(axis=0)])
    crowd = np.zeros(grid.cells, dtype=np.int16)
    for shadow in scene.shadows:
        crowd[shadow.window()] += shadow.depth > 0
    rows = [
        _particle_row(shadow, particle, crowd, setup, grid, range_px)
        for shadow, particle in zip(scene.shadows, particles, strict=True)
    ]
    table = xr.Dataset(coords={"particle": scene.labels})
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows]
        kind = object if isinstance(values[0], str) else None
        name = f"{maps.attrs['fraction']}_fraction" if key == "fraction" else key
        units = _COLUMN_UNITS.get(key, "1")
        table[name] = _variable(("particle",), np.array(values, dtype=kind), units)
    if rows:
        depth = agglomerate_depths(particles, maps, table, setup.sample.gap_nm)
        table["depth"] = _variable(("particle",), depth, "nm")
    return table


_VERDICTS = {"diffusion": "diffusion", "core-shell": "core-shell", "uniform": "no gradient"}


def _models(scene: Scene, sample: Sample) -> xr.Dataset:
    """True parameters in the row of the true model; NaN elsewhere."""
    names, particles = ["diffusion", "core-shell"], scene.particles
    table = xr.Dataset(
        coords={
            "particle": scene.labels,
            "model": ("model", np.array(names, dtype=object)),
        }
    )
    active = np.array([[np.nan if sample.mechanism != n else 1.0 for n in names]])
    dt = np.array([[p.dt_nm2] for p in particles]).reshape(-1, 1) / NM2_PER_CM2
    surface = np.array([[p.surface] for p in particles]).reshape(-1, 1)
    initial = np.array([[p.initial] for p in particles]).reshape(-1, 1)
    diffusion, shell = active * np.array([[1, np.nan]]), active * np.array([[np.nan, 1]])
    ones = np.ones_like(dt)
    for name, values, units in (
        ("D_cm2_s", diffusion * dt / sample.delithiated_time_s, "cm2 s-1"),
        ("Dt_cm2", diffusion * dt, "cm2"),
        ("shell_thickness", shell * ones * sample.shell_nm, "nm"),
        ("surface_fraction", active * surface, "1"),
        ("initial_fraction", active * initial, "1"),
    ):
        table[name] = _variable(("particle", "model"), values, units)
    verdict = np.array([_VERDICTS[sample.mechanism]] * len(particles), dtype=object)
    table["verdict"] = _variable(("particle",), verdict, "1")
    return table


def _pooled(particles: Sequence[Particle], sample: Sample) -> xr.Dataset:
    """True verdict and the mean and spread of log10 D over the particles that are there."""
    count, verdict = len(particles), _VERDICTS[sample.mechanism]
    log_d = np.full(max(count, 1), np.nan)
    if sample.mechanism == "diffusion" and count:
        dt = np.array([p.dt_nm2 for p in particles]) / NM2_PER_CM2
        log_d = np.log10(np.maximum(dt / sample.delithiated_time_s, 1e-30))
    shell = sample.shell_nm if sample.mechanism == "core-shell" else np.nan
    pooled = xr.Dataset(
        {
            "verdict": verdict,
            "log10_D": _variable((), float(log_d.mean()), "1", "log10 of D in cm2/s"),
            "spread": _variable((), float(log_d.std()), "1", "spread of log10 D, 1 sigma"),
            "shell_thickness": _variable((), shell, "nm"),
            "particles_used": count,
        }
    )
    for name in ("diffusion", "core-shell", "undecided", "no gradient"):
        key = "count_" + name.replace("-", "_").replace(" ", "_")
        pooled[key] = count if name == verdict else 0
    return pooled


def _shifts(setup: Setup, shifts: FloatArray) -> xr.Dataset:
    """Where the features of each frame lie relative to the common frame, in nm."""
    truth = xr.Dataset(coords={"energy": ("energy", setup.energy, {"units": "eV"})})
    in_nm = (shifts * setup.scan.pixel_nm).T
    for name, values in zip(("shift_y", "shift_x"), in_nm, strict=True):
        truth[name] = _variable(("energy",), values, "nm")
    truth["flagged"] = _variable(("energy",), np.zeros(len(shifts), dtype=bool), "1")
    return truth


def _spectra(setup: Setup) -> xr.Dataset:
    """Open field, and the pure spectra at the true energy of each frame."""
    truth = xr.Dataset(coords={"energy": ("energy", setup.energy, {"units": "eV"})})
    i0, _ = open_field(setup)
    if setup.coherent:
        i0 = i0 * setup.instrument.amplitude_scale**2 / setup.instrument.photons
    truth["i0"] = _variable(("energy",), i0, "1" if setup.coherent else "count", "open field")
    for name, values in zip(setup.names, setup.spectra(setup.true_energy), strict=True):
        truth[f"reference_{name}"] = _variable(("energy",), values, "nm-1")
    truth["energy_shift"] = _variable((), setup.scan.energy_shift_eV, "eV", "true minus recorded")
    return truth


def _process(setup: Setup, run: dict[str, Any]) -> xr.Dataset:
    """What was simulated, to do it again."""
    options = json.loads(json.dumps(asdict(setup)))
    return xr.Dataset(
        attrs={
            "version": __version__,
            "seed": setup.seed,
            "configuration": yaml.safe_dump(run, sort_keys=False),
            "simulation": yaml.safe_dump(options, sort_keys=False),
        }
    )


def truth_tree(
    setup: Setup, scene: Scene, shifts: FloatArray, optics: Optics, run: dict[str, Any]
) -> xr.DataTree:
    """Tree with the groups and names of a result file."""
    maps = _maps(setup, scene, optics)
    table = _particle_table(setup, scene, maps, shifts)
    groups = {
        "shifts": _shifts(setup, shifts),
        "spectra": _spectra(setup),
        "maps": maps,
        "particles": table,
        "models": _models(scene, setup.sample),
        "pooled": _pooled(scene.particles, setup.sample),
        "heterogeneity": heterogeneity(table, setup.model.reduced, setup.sample.agglomerates),
        "process": _process(setup, run),
    }
    entry = {"schema_version": SCHEMA_VERSION, "title": "truth of a simulation", "default": "maps"}
    tree = {f"/entry/{name}": group for name, group in groups.items()}
    return xr.DataTree.from_dict({"/entry": xr.Dataset(attrs=entry), **tree})
