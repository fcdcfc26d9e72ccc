"""The field of view: particles placed, solved, cut and projected along the beam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from spectromap._numerics import FloatArray, generator
from spectromap.schema import InputError
from spectromap.synthetic._bodies import (
    Body,
    Particle,
    Polyhedron,
    Sphere,
    random_body,
    random_polyhedron,
)
from spectromap.synthetic._fields import crank_sphere, diffuse, surface_distance
from spectromap.synthetic._options import NM2_PER_CM2, Draw, Sample, Scan, Setup

#: Voxels of a body are at most this large in nm, or this part of a pixel where that is more, divide
#: the smallest radius at least so often, and a diffusion front (the root of D t) too unless that
#: asks for less than the least.
MAX_VOXEL_NM = 3.5
VOXELS_PER_PIXEL = 6
VOXELS_PER_RADIUS = 12
VOXELS_PER_FRONT = 4
LEAST_VOXEL_NM = 1.5
#: The projected cells are at least this many times finer than the FWHM of the blur.
CELLS_PER_RESOLUTION = 2.5
#: Of the walls between packed primaries, those count that are nearer than this, in reaches of the
#: body that they cut; a wall beyond it changes nothing in the body or near its surface.
WALLS_IN_REACHES = 1.5


@dataclass
class _Disc:
    """A round place on the field for a particle or an agglomerate, in nm."""

    radius: float
    y: float = 0.0
    x: float = 0.0


def _place_discs(
    discs: list[_Disc],
    box: tuple[float, float, float, float],
    gap: float,
    over: set[int],
    rng: np.random.Generator,
) -> None:
    """Give every disc a centre in the box (y0, y1, x0, x1); those in `over` lie on another."""
    order = sorted(range(len(discs)), key=lambda i: (i in over, -discs[i].radius))
    for _ in range(40):
        done: list[_Disc] = []
        if all(_place_one(discs[i], done, box, gap, i in over, rng) for i in order):
            return
    raise InputError(
        f"{len(discs)} particles or agglomerates do not fit on the field",
        where="Sample.particles",
        remedy="Take fewer or smaller ones, more pixels, or less drift.",
    )


def _place_one(
    disc: _Disc,
    done: list[_Disc],
    box: tuple[float, float, float, float],
    gap: float,
    over: bool,
    rng: np.random.Generator,
) -> bool:
    """Place one disc beside those done, or partly over one of them; False if there is no room."""
    y0, y1, x0, x1 = box
    if y1 - y0 < 2 * disc.radius or x1 - x0 < 2 * disc.radius:
        return False
    for _ in range(300):
        host = done[int(rng.integers(len(done)))] if over and done else None
        if host is None:
            disc.y = rng.uniform(y0 + disc.radius, y1 - disc.radius)
            disc.x = rng.uniform(x0 + disc.radius, x1 - disc.radius)
        else:
            away = rng.uniform(0.5, 0.75) * (disc.radius + host.radius)
            turn = rng.uniform(0, 2 * np.pi)
            disc.y, disc.x = host.y + away * np.sin(turn), host.x + away * np.cos(turn)
        inside = y0 <= disc.y - disc.radius and disc.y + disc.radius <= y1
        inside &= x0 <= disc.x - disc.radius and disc.x + disc.radius <= x1
        others = [d for d in done if d is not host]
        free = all(
            np.hypot(d.y - disc.y, d.x - disc.x) > d.radius + disc.radius + gap for d in others
        )
        if inside and free:
            done.append(disc)
            return True
    return False


def _packed(
    sample: Sample, count: int, number: int, seed: int
) -> tuple[float, list[tuple[Polyhedron, float, float, str]]]:
    """Radius of an agglomerate and its primaries: body, y and x from its centre, and place.

    Each primary is its Voronoi cell, less half the gap, cut by a random polyhedron that rounds
    it; the centres come from Lloyd's relaxation in a disc.
    """
    rng = generator(seed, Draw.PRIMARIES, number)
    mean = float(np.mean(sample.radius_nm))
    radius = mean * np.sqrt(count / 0.86)
    cloud = _in_disc(4000, radius, rng)
    centres = _in_disc(count, radius, rng)
    for _ in range(25):
        nearest = cKDTree(centres).query(cloud)[1]
        counts = np.bincount(nearest, minlength=len(centres))
        for axis in range(2):
            sums = np.bincount(nearest, cloud[:, axis], minlength=len(centres))
            centres[:, axis] = np.where(counts > 0, sums / np.maximum(counts, 1), centres[:, axis])
    spacing = radius * np.sqrt(np.pi / count)
    primaries = []
    for i, (y, x) in enumerate(centres):
        cap = random_polyhedron(1.12 * rng.uniform(0.92, 1.08) * mean, rng)
        others = np.delete(centres, i, axis=0) - centres[i]
        apart = np.linalg.norm(others, axis=1)
        near = apart / 2 - sample.gap_nm / 2 < WALLS_IN_REACHES * cap.reach
        others, apart = others[near], apart[near]
        walls = np.column_stack([others[:, 1] / apart, others[:, 0] / apart, np.zeros(apart.size)])
        body = Polyhedron(
            np.concatenate([cap.normals, walls]),
            np.concatenate([cap.offsets, apart / 2 - sample.gap_nm / 2]),
        )
        place = "exterior" if radius - np.hypot(y, x) < 0.9 * spacing else "interior"
        primaries.append((body, float(y), float(x), place))
    reach = max(
        float(np.hypot(*(body.corners()[:, :2] + (x, y)).T).max()) for body, y, x, _ in primaries
    )
    return reach, primaries


def _in_disc(count: int, radius: float, rng: np.random.Generator) -> FloatArray:
    """Random points (y, x) spread evenly over a disc."""
    r = radius * np.sqrt(rng.uniform(0, 1, count))
    turn = rng.uniform(0, 2 * np.pi, count)
    return np.column_stack([r * np.sin(turn), r * np.cos(turn)])


def _make_particles(
    sample: Sample, box: tuple[float, float, float, float], gap: float, seed: int
) -> tuple[Particle, ...]:
    """All particles of the field, agglomerated ones first, large agglomerates before small."""
    counts = [sample.primaries] * sample.agglomerates
    counts += [sample.small_primaries] * sample.small_agglomerates
    packed = [_packed(sample, count, k, seed) for k, count in enumerate(counts)]
    low, high = sample.radius_nm
    loose = []
    for k in range(sample.particles):
        rng = generator(seed, Draw.BODY, k)
        loose.append(random_body(sample.shape, float(rng.uniform(low, high)), rng))
    discs = [_Disc(radius) for radius, _ in packed] + [_Disc(body.reach) for body in loose]
    over = set(range(len(discs) - round(sample.overlap * len(loose)), len(discs)))
    _place_discs(discs, box, gap, over, generator(seed, Draw.PLACING))
    particles = [
        Particle(prism, disc.y + y, disc.x + x, 0.0, number, place)
        for number, ((_, primaries), disc) in enumerate(zip(packed, discs, strict=False), start=1)
        for prism, y, x, place in primaries
    ]
    for body, disc in zip(loose, discs[len(packed) :], strict=True):
        particles.append(Particle(body, disc.y, disc.x))
    return tuple(with_history(p, sample, k, seed) for k, p in enumerate(particles))


def with_history(particle: Particle, sample: Sample, number: int, seed: int) -> Particle:
    """Give a particle its cut, its D t and its fractions."""
    rng = generator(seed, Draw.HISTORY, number)
    cut, log_d, surface = rng.uniform(-1, 1), rng.normal(), rng.normal()
    radius = (particle.body.volume * 3 / (4 * np.pi)) ** (1 / 3)
    inside, interior = particle.agglomerate > 0, particle.place == "interior"
    dt = sample.D_cm2_s * sample.delithiated_time_s * NM2_PER_CM2
    dt *= 10 ** (sample.D_spread_dex * log_d)
    dt *= (sample.inside_Dt if inside else 1.0) * (sample.interior_Dt if interior else 1.0)
    held = sample.surface_fraction + sample.surface_spread * surface
    if inside:
        level = generator(seed, Draw.AGGLOMERATE, particle.agglomerate).normal()
        held += sample.agglomerate_spread * level
    drop = sample.inside_drop * inside + sample.interior_drop * interior
    held -= drop * (sample.small_share if particle.agglomerate > sample.agglomerates else 1.0)
    return replace(
        particle,
        cut_nm=0.7 * radius * cut if sample.geometry == "lamella" else 0.0,
        dt_nm2=dt,
        surface=float(np.clip(held, 0, 1)),
        initial=sample.initial_fraction,
    )


@dataclass(frozen=True)
class Grid:
    """Cells on which the field is projected: `fine` to a pixel, `voxels` to a cell."""

    pixel: float
    shape: tuple[int, int]
    margin: int  # pixels around the recorded field
    fine: int
    voxels: int
    origin: tuple[float, float] = (0.0, 0.0)  # of the recorded field on the sample, in nm

    @property
    def cell(self) -> float:
        """Edge of a cell in nm."""
        return self.pixel / self.fine

    @property
    def cells(self) -> tuple[int, int]:
        """Shape of the canvas, good for Fourier transforms."""
        ny, nx = (scipy.fft.next_fast_len((n + 2 * self.margin) * self.fine) for n in self.shape)
        return ny, nx

    def crop(self, canvas: FloatArray) -> FloatArray:
        """Cells of the recorded field."""
        start = self.margin * self.fine
        ny, nx = self.shape
        return canvas[start : start + ny * self.fine, start : start + nx * self.fine]

    def binned(self, canvas: FloatArray) -> FloatArray:
        """Mean of a canvas over each pixel of the recorded field."""
        return binned(self.crop(canvas), self.fine)


def binned(image: FloatArray, factor: int) -> FloatArray:
    """Mean over blocks of the last two axes."""
    *lead, ny, nx = image.shape
    blocks = image.reshape(*lead, ny // factor, factor, nx // factor, factor)
    return np.asarray(blocks.mean(axis=(-3, -1)))


def _make_grid(setup: Setup, shifts: FloatArray, outside: float = 0.0) -> Grid:
    """Choose cells that resolve blur and particles, which reach so far outside of the field."""
    sample, scan, resolution = setup.sample, setup.scan, setup.instrument.resolution_nm
    largest = max(MAX_VOXEL_NM, scan.pixel_nm / VOXELS_PER_PIXEL)
    largest = min(largest, sample.radius_nm[0] / VOXELS_PER_RADIUS)
    if sample.mechanism == "diffusion":
        front = np.sqrt(sample.D_cm2_s * sample.delithiated_time_s * NM2_PER_CM2)
        largest = min(largest, max(front / VOXELS_PER_FRONT, LEAST_VOXEL_NM))
    wanted = resolution / CELLS_PER_RESOLUTION or np.inf
    fine = max(2, int(np.ceil(scan.pixel_nm / wanted - 1e-9)))
    # A third cell per pixel costs less than voxels of half a cell.
    fine = max(fine, min(3, int(np.ceil(scan.pixel_nm / largest - 1e-9))))
    voxels = int(np.ceil(scan.pixel_nm / fine / largest - 1e-9))
    if sample.at_border:
        outside = max(outside, 2 * sample.radius_nm[1])
    around = 3 * resolution + outside
    margin = int(np.ceil(np.abs(shifts).max() + around / scan.pixel_nm)) + 2
    return Grid(scan.pixel_nm, scan.shape_px, margin, fine, voxels, scan.origin_nm)


@dataclass(frozen=True)
class Shadow:
    """A projected particle on the cells from (y, x) on: amounts in nm, and its outline."""

    y: int
    x: int
    thickness: FloatArray
    reduced: FloatArray
    skin: FloatArray
    depth: FloatArray  # distance inwards from the outline, nm

    def window(self) -> tuple[slice, slice]:
        """Place of the particle on the canvas."""
        ny, nx = self.thickness.shape
        return slice(self.y, self.y + ny), slice(self.x, self.x + nx)


def filled(depth: FloatArray, voxel: float) -> FloatArray:
    """Share of each voxel that lies deeper than the surface."""
    return np.asarray(np.clip(np.float32(0.5) + depth / np.float32(voxel), 0, 1))


def _reduced_share(
    particle: Particle, level: FloatArray, r: FloatArray, voxel: float, sample: Sample
) -> FloatArray:
    """Amount of the reduced component in each voxel, 0 to 1."""
    fill = filled(level, voxel)
    start, held = np.float32(particle.initial), np.float32(particle.surface)
    if sample.mechanism == "uniform":
        return fill * start
    if sample.mechanism == "core-shell":
        depth = _depth(particle.body, level, voxel, sample.shell_nm)
        return held * fill + (start - held) * filled(depth - np.float32(sample.shell_nm), voxel)
    if isinstance(particle.body, Sphere):
        radius = particle.body.radius
        table = np.linspace(0, radius, 2001)
        values = crank_sphere(table, radius, particle.dt_nm2).astype(np.float32)
        progress = np.interp(r, table, values).astype(np.float32)
    else:
        progress = diffuse(level, voxel, particle.dt_nm2)
    return fill * (start + (held - start) * progress)


def _depth(body: Body, level: FloatArray, voxel: float, needed: float) -> FloatArray:
    """Euclidean depth below the surface, exact to a little past `needed`."""
    if body.exact:
        return level
    return surface_distance(level, voxel, needed + 3 * voxel)


def _centres(first: int, count: int, grid: Grid, origin: float) -> FloatArray:
    """Voxel centres from a cell on, in nm from an origin."""
    voxel = grid.cell / grid.voxels
    centres = (np.arange(count * grid.voxels) + 0.5) * voxel + first * grid.cell - origin
    return centres.astype(np.float32)


def _cut(z: FloatArray, voxel: float, middle: float, section: float) -> FloatArray:
    """Share of each layer of voxels that is in the section."""
    bottom = np.maximum(z - voxel / 2, middle - section / 2)
    top = np.minimum(z + voxel / 2, middle + section / 2)
    return np.asarray(np.clip((top - bottom) / voxel, 0, 1))


def _project(particle: Particle, grid: Grid, sample: Sample) -> Shadow:
    """Solve a body, cut it if it is in a lamella, and project it along z."""
    body, voxel = particle.body, grid.cell / grid.voxels
    place = np.array([particle.y, particle.x]) - grid.origin
    first = np.floor((place - body.reach) / grid.cell).astype(int) - 2
    count = np.ceil((place + body.reach) / grid.cell).astype(int) + 2 - first
    y, x = (_centres(int(f), int(n), grid, c) for f, n, c in zip(first, count, place, strict=True))
    half = int(np.ceil(body.reach / voxel)) + 2
    z = ((np.arange(2 * half) - half + 0.5) * voxel).astype(np.float32)
    y, x = y[:, None, None], x[None, :, None]
    level = body.level(y, x, z)
    reduced = _reduced_share(particle, level, np.sqrt(y**2 + x**2 + z**2), voxel, sample)
    fill = filled(level, voxel)
    skin = np.zeros_like(fill)
    if sample.skin_nm > 0:
        below = _depth(body, level, voxel, sample.skin_nm) - np.float32(sample.skin_nm)
        skin = fill - filled(below, voxel)
        reduced = reduced * (1 - skin / np.maximum(fill, np.float32(1e-6)))
    layers = np.ones_like(z)
    if sample.geometry == "lamella":
        layers = _cut(z, voxel, particle.cut_nm, sample.section_nm)
    weight = layers * np.float32(voxel)
    thickness, part, skin = (binned(a @ weight, grid.voxels) for a in (fill, reduced, skin))
    outline = binned(level[..., layers > 0].max(axis=-1), grid.voxels)
    corner = first + grid.margin * grid.fine
    return Shadow(
        y=int(corner[0]),
        x=int(corner[1]),
        thickness=thickness,
        reduced=part,
        skin=skin,
        depth=surface_distance(outline, grid.cell),
    )


@dataclass(frozen=True)
class Scene:
    """Everything on the field, and the amounts (component, y, x) in nm on all cells.

    Particles are numbered from 1 on unless their `numbers` are given.
    """

    grid: Grid
    particles: tuple[Particle, ...]
    shadows: tuple[Shadow, ...]
    amounts: FloatArray
    numbers: tuple[int, ...] = ()

    @property
    def labels(self) -> NDArray[np.int32]:
        """Label of every particle."""
        return np.array(self.numbers or range(1, len(self.particles) + 1), dtype=np.int32)


def place(setup: Setup, shifts: FloatArray) -> tuple[Particle, ...]:
    """All particles of the sample, placed so that they stay on the field in every frame."""
    box, gap = _placing_box(setup, shifts)
    return _make_particles(setup.sample, box, gap, setup.seed)


def outside_by(particle: Particle, scan: Scan) -> float:
    """How far a particle may reach over the border of a field, in nm; negative inside."""
    low = np.array([particle.y, particle.x]) - particle.body.reach - scan.origin_nm
    high = low + 2 * particle.body.reach - np.array(scan.shape_px) * scan.pixel_nm
    return float(max(-low.min(), high.max()))


def make_scene(
    setup: Setup, shifts: FloatArray, placed: Mapping[int, Particle] | None = None
) -> Scene:
    """Project particles, given by label or placed on the field of this scan."""
    if placed is None:
        placed = dict(enumerate(place(setup, shifts), start=1))
    outside = max((outside_by(p, setup.scan) for p in placed.values()), default=0.0)
    grid = _make_grid(setup, shifts, max(outside, 0.0))
    particles = tuple(placed.values())
    shadows = tuple(_project(particle, grid, setup.sample) for particle in particles)
    amounts = np.zeros((len(setup.names), *grid.cells), dtype=np.float32)
    for shadow in shadows:
        parts = (shadow.thickness - shadow.reduced - shadow.skin, shadow.reduced, shadow.skin)
        for amount, part in zip(amounts, parts, strict=False):
            amount[shadow.window()] += np.maximum(part, 0)
    return Scene(grid, particles, shadows, amounts, tuple(placed))


def _placing_box(
    setup: Setup, shifts: FloatArray
) -> tuple[tuple[float, float, float, float], float]:
    """Where particles may lie (y0, y1, x0, x1), and the gap between them, in nm."""
    sample, pixel = setup.sample, setup.scan.pixel_nm
    height, width = (n * pixel for n in setup.scan.shape_px)
    y, x = setup.scan.origin_nm
    apart = 1.5 * setup.instrument.resolution_nm + pixel
    pad = float(np.abs(shifts).max()) * pixel + apart
    left = setup.open_columns * pixel + pad
    if sample.agglomerates or sample.small_agglomerates:  # loose particles stay visibly loose
        apart = max(apart, 4 * sample.gap_nm, sample.apart_nm)
    if sample.at_border:
        over = sample.radius_nm[1]
        return (y - over, y + height + over, x + left, x + width + over), apart
    return (y + pad, y + height - pad, x + left, x + width - pad), apart
