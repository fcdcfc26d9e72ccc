"""Rocking scans of a strained, faceted crystal whose truth is known.

What happens, in order:

1. a convex polyhedron carries a displacement field along Q (elastic misfit, dislocation);
2. its scattering is summed over cells three times finer than the voxels of the reconstruction,
   straight to the pixels of the detector (a matrix Fourier transform; no periodic box);
3. the intensity is blurred by the area of a pixel and by the coherence of the beam;
4. dark counts, hot pixels, stray peaks and photon noise are added.

Sign of the phase. An atom displaced by u scatters ``exp(i Q.u) exp(i q.r)``, q measured from the
Bragg peak, so the object carries the phase ``+Q.u`` in every frame and tensile strain along Q
(``u = phase / |Q|``) is positive. A forward Fourier transform has the other sign in front of q.r:
voxel n of the *detector frame*, counted from the centre, lies opposite to where the directions of
the detector would put it, which is why the lattice of a simulation carries a minus sign.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, Protocol, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial.transform import Rotation

from spectromap._numerics import FloatArray, generator
from spectromap.schema import InputError
from spectromap.synthetic._bodies import Polyhedron, Sphere

ComplexArray = NDArray[np.complexfloating[Any, Any]]
BoolArray = NDArray[np.bool_]

HC_EV_NM = 1239.841984
#: Fine cells along one voxel of the reconstruction; odd, so that a voxel is a block of them.
FINE = 3
#: Points along one cell at the surface, where the cell is partly filled.
POINTS = 3
#: Pixels beyond the window that the blur may draw from.
MARGIN = 4
#: Voltages of the published series [Nature 606, 305 (2022), Fig. 2].
SERIES_VOLTAGES = (3.2, 3.75, 3.90, 3.99, 4.09, 4.25, 4.38, 4.43, 4.46, 4.49, 4.51)
#: Surface strain that rises to 4.43 V and relaxes after oxygen release sets in, as published.
SERIES_STRAIN = (3e-4, 1e-4, 3e-4, 5e-4, 8e-4, 1.1e-3, 1.4e-3, 1.6e-3, 1.5e-3, 9e-4, 4e-4)


@dataclass(frozen=True)
class Crystal:
    """A faceted particle: a truncated octahedron, turned, its faces at uneven distances.

    Attributes
    ----------
    diameter_nm : float
        Diameter of the sphere of the same volume.
    unevenness : float
        Spread (uniform, relative) of the distances of the faces; 0 is centrosymmetric.
    """

    diameter_nm: float = 400.0
    unevenness: float = 0.12

    def body(self, seed: int) -> Polyhedron:
        """Polyhedron about the origin, the same for the same seed."""
        rng = generator(seed, 0)
        corners = np.array(list(product((-1.0, 1.0), repeat=3))) / np.sqrt(3)
        normals = np.vstack([np.eye(3), -np.eye(3), corners])
        offsets = np.repeat([1.0, 0.9], [6, 8])
        offsets = offsets * rng.uniform(1 - self.unevenness, 1 + self.unevenness, offsets.size)
        turned = normals @ Rotation.random(random_state=rng).as_matrix().T
        unit = Polyhedron(turned, offsets)
        scale = (Sphere(self.diameter_nm / 2).volume / unit.volume) ** (1 / 3)
        return replace(unit, offsets=offsets * scale)


@dataclass(frozen=True)
class Place:
    """Points in the sample frame, with what a displacement field needs to know.

    Attributes
    ----------
    z, y, x : ndarray
        Coordinates in nm from the centre of the particle.
    radius : float
        Radius in nm of the sphere of the particle's volume.
    q : ndarray, shape (3,)
        Scattering vector (z, y, x) in 1/nm.
    """

    z: FloatArray
    y: FloatArray
    x: FloatArray
    radius: float
    q: FloatArray

    @property
    def q_norm(self) -> float:
        """Length of Q in 1/nm."""
        return float(np.linalg.norm(self.q))

    def along(self, direction: FloatArray) -> FloatArray:
        """Projection of the points on a direction (z, y, x)."""
        return np.asarray(self.z * direction[0] + self.y * direction[1] + self.x * direction[2])

    def moved(self, step: FloatArray) -> Place:
        """The same points moved by a vector (z, y, x) in nm."""
        return replace(self, z=self.z + step[0], y=self.y + step[1], x=self.x + step[2])


class Field(Protocol):
    """A displacement field."""

    def displacement(self, place: Place) -> FloatArray:
        """Displacement along Q in nm."""

    def density(self, place: Place) -> FloatArray | float:
        """Share of the atoms that still scatter in phase."""


def _radial(place: Place, inner: FloatArray, total: float, poisson: float) -> FloatArray:
    """Displacement along Q of a sphere with a misfit strain that depends on the radius only.

    `inner` is the integral of ``misfit(s) s**2`` from 0 to r divided by ``r**3``, `total` the same
    to the radius of the sphere. Free surface, isotropic stiffness; as in thermal stress
    [Timoshenko and Goodier, Theory of Elasticity, section 152].
    """
    free = 2 * (1 - 2 * poisson) / (1 - poisson) * total
    stretch = (1 + poisson) / (1 - poisson) * inner + free
    return np.asarray(stretch * place.along(place.q / place.q_norm))


def _distance(place: Place) -> FloatArray:
    return np.sqrt(place.z**2 + place.y**2 + place.x**2)


@dataclass(frozen=True)
class CoreShell:
    """A core that would be larger by `misfit` if the shell let it: elastic, coherent.

    The field is that of a sphere of the particle's volume with a concentric core.

    Attributes
    ----------
    misfit : float
        Strain of the core free of stress; negative puts the core under tension.
    shell_nm : float
        Thickness of the shell.
    poisson : float
        Poisson's ratio.
    """

    misfit: float = 1e-3
    shell_nm: float = 80.0
    poisson: float = 0.3

    def displacement(self, place: Place) -> FloatArray:
        """Displacement along Q in nm."""
        core = max(place.radius - self.shell_nm, 0.0)
        r = np.maximum(_distance(place), 1e-6)
        inner = self.misfit / 3 * np.minimum(1.0, (core / r) ** 3)
        total = self.misfit / 3 * (core / place.radius) ** 3
        return _radial(place, np.asarray(inner), total, self.poisson)

    def density(self, place: Place) -> float:
        """All atoms scatter in phase."""
        return 1.0


@dataclass(frozen=True)
class RadialGradient:
    """A misfit strain that grows with the square of the radius, as after a diffusion.

    Attributes
    ----------
    strain : float
        Misfit at the surface relative to the centre; positive means a larger lattice outside.
    poisson : float
        Poisson's ratio.
    """

    strain: float = 1e-3
    poisson: float = 0.3

    def displacement(self, place: Place) -> FloatArray:
        """Displacement along Q in nm."""
        share = (_distance(place) / place.radius) ** 2
        return _radial(place, self.strain / 5 * share, self.strain / 5, self.poisson)

    def density(self, place: Place) -> float:
        """All atoms scatter in phase."""
        return 1.0


@dataclass(frozen=True)
class Dislocation:
    """A straight dislocation in an infinite isotropic crystal.

    ``u = b/2pi (theta + sin(2 theta) / (4 (1 - nu)))`` along b for an edge, ``b theta / 2pi`` for
    a screw [Hirth and Lothe, Theory of Dislocations, chapter 3]. The cut is invisible when Q.b is
    a multiple of 2 pi, as it is here. Atoms within the core do not scatter in phase.

    Attributes
    ----------
    character : {"screw", "edge"}
    line : tuple of float
        Direction (z, y, x) of the line.
    through_nm : tuple of float
        A point (z, y, x) on it.
    order : int
        Q.b / 2 pi.
    core_nm : float
        Radius of the core.
    poisson : float
        Poisson's ratio.
    """

    character: Literal["screw", "edge"] = "edge"
    line: tuple[float, float, float] = (1.0, 0.0, 0.3)
    through_nm: tuple[float, float, float] = (0.0, 10.0, 20.0)
    order: int = 1
    core_nm: float = 8.0
    poisson: float = 0.3

    def _across(self, place: Place) -> tuple[FloatArray, FloatArray]:
        """Coordinates along the part of Q that is normal to the line, and normal to both."""
        line = np.asarray(self.line, float) / np.linalg.norm(self.line)
        first = place.q - (place.q @ line) * line
        if np.linalg.norm(first) < 1e-6 * place.q_norm:
            first = np.cross(line, np.eye(3)[int(np.argmin(np.abs(line)))])
        first = first / np.linalg.norm(first)
        # (z, y, x) is a left-handed order, hence the sign of the cross product.
        second = -np.cross(line, first)
        moved = place.moved(-np.asarray(self.through_nm, float))
        return moved.along(first), moved.along(second)

    def displacement(self, place: Place) -> FloatArray:
        """Displacement along Q in nm."""
        a, b = self._across(place)
        turn = np.arctan2(b, a)
        if self.character == "edge":
            turn = turn + np.sin(2 * turn) / (4 * (1 - self.poisson))
        return np.asarray(self.order / place.q_norm * turn)

    def density(self, place: Place) -> FloatArray:
        """Share of atoms in phase: none on the line, nearly all beyond the core."""
        a, b = self._across(place)
        return np.asarray(1 - np.exp(-(a**2 + b**2) / self.core_nm**2))


@dataclass(frozen=True)
class RockingScan:
    """How the peak is scanned and what records it.

    Attributes
    ----------
    shape : tuple of int
        Frames, rows, columns.
    geometry : {"orthogonal", "34idc"}
        Orthogonal: frames, rows, columns step along z, y, x and Q is along y. 34idc: the
        diffractometer of APS 34-ID-C rocked about theta, in which the three steps are skew. Sample
        circles from outside: theta (about +y), chi (-z), phi (+y); detector arm: delta (+y), gamma
        (-x); beam along +z, y up; rows run down, columns along +x. The sample frame is that of the
        laboratory when all circles are at zero.
    d_nm : float
        Lattice spacing, 0.472 for (003) of a layered oxide.
    energy_eV, distance_m, pixel_m : float
    step_deg : float, optional
        Step of the rocking angle; None makes it as long in reciprocal space as a pixel.
    theta_deg, chi_deg, phi_deg, gamma_deg : float
        34idc only; delta follows from `d_nm`.
    """

    shape: tuple[int, int, int] = (64, 64, 64)
    geometry: Literal["orthogonal", "34idc"] = "orthogonal"
    d_nm: float = 0.472
    energy_eV: float = 9000.0
    distance_m: float = 0.5
    pixel_m: float = 55e-6
    step_deg: float | None = None
    theta_deg: float = 0.22
    chi_deg: float = 90.0
    phi_deg: float = -5.0
    gamma_deg: float = 5.0

    @property
    def wavelength_nm(self) -> float:
        """Wavelength in nm."""
        return HC_EV_NM / self.energy_eV

    @property
    def delta_deg(self) -> float:
        """Angle of the detector arm about the vertical that meets the Bragg condition."""
        sine = self.wavelength_nm / (2 * self.d_nm)
        if not 0 < sine < 1:
            raise InputError("no Bragg angle for this spacing and energy", where="RockingScan.d_nm")
        cosine = (1 - 2 * sine**2) / np.cos(np.deg2rad(self.gamma_deg))
        if abs(cosine) > 1:
            raise InputError("gamma is beyond the Bragg angle", where="RockingScan.gamma_deg")
        return float(np.rad2deg(np.arccos(cosine)))

    def steps(self) -> tuple[FloatArray, FloatArray, float]:
        """Q in 1/nm, the steps of frame, row and column (rows of a matrix), and the angle step.

        All components are (z, y, x) in the sample frame; the steps are those at the centre of the
        scan, the curvature of the Ewald sphere over the window is left out.
        """
        pixel = 2 * np.pi / self.wavelength_nm * self.pixel_m / self.distance_m
        if self.geometry == "orthogonal":
            length = 2 * np.pi / self.d_nm
            q, axes = np.array([0.0, length, 0.0]), np.diag([length, 1.0, 1.0])
        else:
            q, axes = self._goniometer()
        by_angle = pixel / float(np.linalg.norm(axes[0]))
        angle = by_angle if self.step_deg is None else float(np.deg2rad(self.step_deg))
        return q, axes * np.array([[angle], [pixel], [pixel]]), float(np.rad2deg(angle))

    def _goniometer(self) -> tuple[FloatArray, FloatArray]:
        """Q, and its derivative by the rocking angle with the directions of row and column."""
        angle = {n: np.deg2rad(getattr(self, f"{n}_deg")) for n in ("theta", "chi", "phi", "gamma")}
        # Rotations act on (x, y, z).
        sample = (
            Rotation.from_rotvec([0, angle["theta"], 0])
            * Rotation.from_rotvec([0, 0, -angle["chi"]])
            * Rotation.from_rotvec([0, angle["phi"], 0])
        )
        arm = Rotation.from_rotvec([0, np.deg2rad(self.delta_deg), 0]) * Rotation.from_rotvec(
            [-angle["gamma"], 0, 0]
        )
        wave = 2 * np.pi / self.wavelength_nm
        q = wave * (arm.apply([0, 0, 1]) - np.array([0.0, 0.0, 1.0]))
        # As the crystal turns about +y, a fixed detector sees Q turn the other way within it.
        lab = np.stack([q, np.cross(q, [0, 1, 0]), arm.apply([0, -1, 0]), arm.apply([1, 0, 0])])
        in_sample = sample.inv().apply(lab)[:, ::-1]
        return in_sample[0], in_sample[1:]


@dataclass(frozen=True)
class Recording:
    """What the detector makes of the intensity.

    Attributes
    ----------
    peak_photons : float
        Expected photons in the brightest pixel.
    photon_noise : bool
        False leaves the expected counts.
    pixel_fill : float
        Edge of the sensitive area of a pixel, in pixels; 0 samples points.
    coherence_nm : tuple of float, optional
        Gaussian coherence lengths (1 sigma of the mutual coherence) along the three axes of the
        detector-frame object; None is full coherence.
    dark_counts : float
        Expected dark counts per pixel and frame.
    hot_pixels, aliens : int
        Pixels that read high in every frame; stray peaks from elsewhere.
    """

    peak_photons: float = 1e6
    photon_noise: bool = True
    pixel_fill: float = 1.0
    coherence_nm: tuple[float, float, float] | None = None
    dark_counts: float = 0.0
    hot_pixels: int = 0
    aliens: int = 0


@dataclass(frozen=True)
class CrystalSimulation:
    """A simulated rocking scan and all that is true of it.

    Attributes
    ----------
    scan : Dataset
        The prepared scan: ``counts`` and ``mask`` (frame, row, column), ``angle`` in degrees.
    detector_object : ndarray complex64, shape of the scan
        Object in the detector frame, ``|fftshift(fftn(ifftshift(object)))|**2`` being the counts
        up to noise, blur and what lies beyond the window; phase ``+Q.u``.
    detector_support : ndarray of bool
        Voxels that are at least half full.
    flaws : ndarray of bool, shape of the scan
        Pixels that hold a hot pixel or a stray peak.
    lattice : ndarray, shape (3, 3)
        Rows are the steps in nm (z, y, x) of one voxel along each axis of `detector_object`.
    q : ndarray, shape (3,)
        Scattering vector (z, y, x) in 1/nm at the centre of the scan.
    body : Polyhedron
        The particle, centred on index ``n // 2`` of every axis.
    fields : tuple
        Displacement fields.
    offset : ndarray, shape (3,)
        Difference (z, y, x) in 1/nm between `q` and the one the fields refer to: the scan is
        centred on the brightest pixel.
    """

    scan: xr.Dataset
    detector_object: ComplexArray
    detector_support: BoolArray
    flaws: BoolArray
    lattice: FloatArray
    q: FloatArray
    body: Polyhedron
    fields: tuple[Field, ...]
    offset: FloatArray

    @property
    def voxel_nm(self) -> float:
        """Edge in nm of a cube with the volume of a voxel of the detector-frame object."""
        return float(abs(np.linalg.det(self.lattice)) ** (1 / 3))

    def truth(self, voxel_nm: float | None = None, size: int | None = None) -> xr.Dataset:
        """Truth in the sample frame, on a grid of equal voxels about the centre of the particle.

        Parameters
        ----------
        voxel_nm : float, optional
            Edge of a voxel; that of the scan by default.
        size : int, optional
            Voxels along each axis; by default as many as the particle needs and four more.

        Returns
        -------
        Dataset, dims (z, y, x)
            ``object`` (phase ``+Q.u``), ``density`` (filled share), ``support`` (at least half
            full), ``displacement`` [nm] along Q and ``strain`` (its derivative along Q).
        """
        step = self.voxel_nm if voxel_nm is None else voxel_nm
        count = size or 2 * int(np.ceil(self.body.reach / step)) + 4
        axis = (np.arange(count) - count // 2) * step
        lattice = np.eye(3) * step
        grid = _Grid(lattice, [range(-(count // 2), count - count // 2)] * 3)
        density = _density(self.body, self.fields, self.q, grid)
        displacement = self.displacement(*grid.points())
        phase = np.linalg.norm(self.q) * displacement
        dims = ("z", "y", "x")
        values = {
            "object": (density * np.exp(1j * phase)).astype(np.complex64),
            "density": density.astype(np.float32),
            "support": density >= 0.5,
            "displacement": displacement.astype(np.float32),
            "strain": self.strain(*grid.points()).astype(np.float32),
        }
        coords = {d: (d, axis, {"units": "nm"}) for d in dims}
        truth = xr.Dataset({n: (dims, v) for n, v in values.items()}, coords=coords)
        truth.attrs |= {"q_vector": self.q, "q_norm": float(np.linalg.norm(self.q))}
        truth["object"].attrs |= truth.attrs | {"units": "1"}
        truth["displacement"].attrs |= {"units": "nm", "long_name": "displacement along Q"}
        truth["strain"].attrs |= {"units": "1", "long_name": "strain along Q"}
        return truth

    def displacement(self, z: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
        """Displacement along Q in nm at points of the sample frame in nm, undefined on cuts."""
        place = self._place(z, y, x)
        total = sum((f.displacement(place) for f in self.fields), np.zeros(1))
        phase = place.q_norm * total + place.along(self.offset)
        return np.asarray(phase / np.linalg.norm(self.q))

    def strain(self, z: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
        """Strain along Q at points of the sample frame in nm, blind to the cuts."""
        q_norm, step = float(np.linalg.norm(self.q)), 1e-2
        half = step / 2 * self.q / q_norm
        after = self.displacement(z + half[0], y + half[1], x + half[2])
        before = self.displacement(z - half[0], y - half[1], x - half[2])
        turn = np.angle(np.exp(1j * q_norm * (after - before)))
        return np.asarray(turn / (q_norm * step))

    def _place(self, z: FloatArray, y: FloatArray, x: FloatArray) -> Place:
        return Place(z, y, x, _radius(self.body), self.q - self.offset)


@dataclass(frozen=True)
class CrystalSeries:
    """Scans of one particle at several voltages.

    Attributes
    ----------
    voltage : ndarray
        Voltages in V, in the order of the scans.
    simulations : tuple of CrystalSimulation
        One for each voltage.
    """

    voltage: FloatArray
    simulations: tuple[CrystalSimulation, ...]

    def truth(self, voxel_nm: float | None = None, size: int | None = None) -> xr.Dataset:
        """Truth of all voltages, dims (voltage, z, y, x); see `CrystalSimulation.truth`."""
        axis = xr.DataArray(self.voltage, dims="voltage", name="voltage", attrs={"units": "V"})
        return xr.concat([s.truth(voxel_nm, size) for s in self.simulations], dim=axis)


@dataclass(frozen=True)
class _Grid:
    """Cells of a skew lattice: their steps in nm and the indices along the three axes."""

    lattice: FloatArray
    indices: list[range] = field(default_factory=list)

    def points(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Coordinates z, y, x of the centres."""
        n = np.ix_(*(np.asarray(i, np.float32) for i in self.indices))
        z, y, x = (sum(n[j] * np.float32(self.lattice[j, c]) for j in range(3)) for c in range(3))
        return cast("tuple[FloatArray, FloatArray, FloatArray]", (z, y, x))


def _radius(body: Polyhedron) -> float:
    return float((3 * body.volume / (4 * np.pi)) ** (1 / 3))


def _filled(body: Polyhedron, grid: _Grid) -> FloatArray:
    """Share of every cell that lies in the body."""
    z, y, x = np.broadcast_arrays(*grid.points())
    depth = body.level(y, x, z)
    reach = 0.5 * np.linalg.norm(np.abs(grid.lattice).sum(axis=0))
    share = (depth > 0).astype(np.float32)
    edge = np.abs(depth) < reach
    near = [np.asarray(c[edge]) for c in (z, y, x)]
    inside = np.zeros(near[0].shape, np.float32)
    for step in product((np.arange(POINTS) - (POINTS - 1) / 2) / POINTS, repeat=3):
        dz, dy, dx = (np.float32(v) for v in np.asarray(step) @ grid.lattice)
        inside += body.level(near[1] + dy, near[2] + dx, near[0] + dz) > 0
    share[edge] = inside / POINTS**3
    return share


def _density(body: Polyhedron, fields: Sequence[Field], q: FloatArray, grid: _Grid) -> FloatArray:
    """Share of the atoms of every cell that scatter in phase."""
    place = Place(*grid.points(), _radius(body), q)
    share = _filled(body, grid)
    for one in fields:
        share = share * one.density(place)
    return np.asarray(share)


def _fine_grid(body: Polyhedron, lattice: FloatArray, shape: Sequence[int]) -> _Grid:
    """Fine cells that hold the body, whole voxels of them along each axis."""
    places = body.corners()[:, ::-1] @ np.linalg.inv(lattice)
    indices = []
    for axis, size in enumerate(shape):
        low, high = places[:, axis].min(), places[:, axis].max()
        if high - low > size / 2:
            raise InputError(
                f"the crystal is {high - low:.0f} voxels long on axis {axis} and the window has "
                f"{size}: its fringes are not sampled twice",
                where="simulate_crystal",
                remedy="Take a smaller crystal, a longer distance or a finer step.",
            )
        first, last = int(np.floor(low)) - 1, int(np.ceil(high)) + 1
        indices.append(range(FINE * first - FINE // 2, FINE * last + FINE // 2 + 1))
    return _Grid(lattice / FINE, indices)


def _amplitude(
    cells: ComplexArray, grid: _Grid, shape: Sequence[int], centre: Sequence[int], margin: int
) -> ComplexArray:
    """Scattered amplitude at the pixels of the window about `centre`, and a margin around it."""
    amplitude = cells
    for axis, size in enumerate(shape):
        pixel = np.arange(-(size // 2) - margin, size - size // 2 + margin) + centre[axis]
        turn = np.outer(pixel, np.asarray(grid.indices[axis]) / (FINE * size))
        # A cell scatters as a box; the crystal does not, so its form factor is divided out.
        form = np.sinc(pixel / (FINE * size))[:, None] * FINE
        kernel = (np.exp(-2j * np.pi * turn) / form).astype(np.complex64)
        amplitude = np.moveaxis(np.tensordot(kernel, amplitude, axes=(1, axis)), 0, axis)
    return amplitude


def _blurred(
    intensity: FloatArray, recording: Recording, shape: Sequence[int], lattice: FloatArray
) -> FloatArray:
    """Intensity averaged over the pixel and over the spread of the beam.

    Both multiply the autocorrelation of the object. A Gaussian mutual coherence of length L
    blurs by ``n |a| / (2 pi L)`` pixels on an axis of n voxels of edge ``|a|``.
    """
    spectrum = fft.rfftn(intensity)
    edges = np.linalg.norm(lattice, axis=1)
    for axis, size in enumerate(intensity.shape):
        frequency = fft.rfftfreq(size) if axis == 2 else fft.fftfreq(size)
        factor = np.sinc(frequency * recording.pixel_fill) if axis else np.ones(size)
        if recording.coherence_nm is not None:
            sigma = shape[axis] * edges[axis] / (2 * np.pi * recording.coherence_nm[axis])
            factor = factor * np.exp(-2 * (np.pi * sigma * frequency) ** 2)
        spectrum *= factor.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(np.maximum(fft.irfftn(spectrum, intensity.shape), 0.0))


def _margin(recording: Recording, shape: Sequence[int], lattice: FloatArray) -> int:
    """Pixels around the window that the blur needs."""
    if recording.coherence_nm is None:
        return MARGIN
    sigma = np.asarray(shape) * np.linalg.norm(lattice, axis=1)
    return MARGIN + int(np.ceil(4 * np.max(sigma / (2 * np.pi * np.array(recording.coherence_nm)))))


def _add_flaws(counts: FloatArray, recording: Recording, rng: np.random.Generator) -> BoolArray:
    """Add hot pixels and stray peaks to the expected counts; True where they are."""
    before = counts.copy()
    peak, (frames, rows, columns) = recording.peak_photons, counts.shape
    for _ in range(recording.hot_pixels):
        row, column = int(rng.integers(rows)), int(rng.integers(columns))
        counts[:, row, column] += peak * rng.uniform(0.05, 0.5)
    axes = np.ix_(*(np.arange(n) for n in counts.shape))
    for _ in range(recording.aliens):
        # In the outer half of the window, on a circle about the Bragg peak, in any frame.
        turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.32, 0.42)
        centre = (
            rng.uniform(0.1, 0.9) * frames,
            rows * (0.5 + away * np.sin(turn)),
            columns * (0.5 + away * np.cos(turn)),
        )
        width = (rng.uniform(0.7, 1.5), 1.5, 1.5)
        power = sum(((a - c) / w) ** 2 for a, c, w in zip(axes, centre, width, strict=True))
        counts += peak * rng.uniform(1e-3, 1e-2) * np.exp(-power / 2)
    return np.asarray(counts - before > 1.0)


def _recorded(
    intensity: FloatArray, recording: Recording, seed: int
) -> tuple[FloatArray, BoolArray]:
    """Counts of the detector from expected photons, and where its flaws are."""
    counts = intensity + recording.dark_counts
    flaws = _add_flaws(counts, recording, generator(seed, 1))
    if recording.photon_noise:
        counts = generator(seed, 2).poisson(counts).astype(np.float32)
    return counts.astype(np.float32), flaws


def simulate_crystal(
    crystal: Crystal | None = None,
    fields: Sequence[Field] = (RadialGradient(),),
    scan: RockingScan | None = None,
    recording: Recording | None = None,
    *,
    seed: int = 0,
    noise_seed: int | None = None,
) -> CrystalSimulation:
    """Simulate the rocking scan of a strained crystal about one Bragg peak.

    Parameters
    ----------
    crystal : Crystal, optional
        The particle.
    fields : sequence of CoreShell, RadialGradient or Dislocation
        Displacement fields, added up; empty is a perfect crystal.
    scan : RockingScan, optional
        Window, geometry and wavelength.
    recording : Recording, optional
        Photons, blur and flaws of the detector.
    seed : int
        The same seed gives the same particle and, bit for bit, the same counts.
    noise_seed : int, optional
        Seed of flaws and photon noise, for another scan of the same particle; `seed` by default.

    Returns
    -------
    CrystalSimulation
        The prepared scan and the truth.

    Raises
    ------
    InputError
        A crystal whose fringes the window does not sample twice, or no Bragg angle.
    """
    crystal, scan, recording = crystal or Crystal(), scan or RockingScan(), recording or Recording()
    q, reciprocal, step_deg = scan.steps()
    lattice = -2 * np.pi * np.linalg.inv(reciprocal * np.array(scan.shape)[:, None]).T
    body = crystal.body(seed)
    grid = _fine_grid(body, lattice, scan.shape)
    place = Place(*grid.points(), _radius(body), q)
    displacement = sum((f.displacement(place) for f in fields), np.zeros(1, np.float32))
    density = _density(body, fields, q, grid)
    phase = np.asarray(np.linalg.norm(q) * displacement, np.float32)
    cells = (density * np.exp(1j * phase)).astype(np.complex64)

    margin = _margin(recording, scan.shape, lattice)
    centre = _brightest(cells, grid, scan.shape)
    amplitude = _amplitude(cells, grid, scan.shape, centre, margin)
    intensity = np.abs(amplitude.astype(np.complex128)) ** 2
    intensity = _blurred(intensity, recording, scan.shape, lattice)
    inner = (slice(margin, -margin),) * 3
    intensity = intensity[inner]
    scale = recording.peak_photons / intensity.max()
    counts, flaws = _recorded(
        intensity * scale, recording, seed if noise_seed is None else noise_seed
    )

    offset = np.asarray(centre) @ reciprocal
    detector_object, support = _voxels(cells, density, grid, scan.shape, centre)
    return CrystalSimulation(
        scan=_prepared(scan, counts, q + offset, step_deg),
        detector_object=(detector_object * np.sqrt(scale)).astype(np.complex64),
        detector_support=support,
        flaws=flaws,
        lattice=lattice,
        q=q + offset,
        body=body,
        fields=tuple(fields),
        offset=offset,
    )


def _brightest(cells: ComplexArray, grid: _Grid, shape: Sequence[int]) -> tuple[int, ...]:
    """Pixel, counted from the Bragg peak of the unstrained lattice, at which the peak is highest.

    The detector and the rocking angle are centred on it, by whole pixels.
    """
    intensity = np.abs(_amplitude(cells, grid, shape, (0, 0, 0), 0))
    top = np.unravel_index(int(np.argmax(intensity)), intensity.shape)
    return tuple(int(t) - n // 2 for t, n in zip(top, shape, strict=True))


def _voxels(
    cells: ComplexArray,
    density: FloatArray,
    grid: _Grid,
    shape: Sequence[int],
    centre: Sequence[int],
) -> tuple[ComplexArray, BoolArray]:
    """Means of the fine cells over voxels in the window, and which are at least half full."""
    first = [(i.start + FINE // 2) // FINE for i in grid.indices]
    counts = [len(i) // FINE for i in grid.indices]
    blocks = [v for n in counts for v in (n, FINE)]
    place = tuple(
        slice(f + n // 2, f + n // 2 + c) for f, n, c in zip(first, shape, counts, strict=True)
    )
    filled = np.zeros(shape, np.complex64)
    filled[place] = cells.reshape(blocks).mean(axis=(1, 3, 5))
    support = np.zeros(shape, bool)
    support[place] = density.reshape(blocks).mean(axis=(1, 3, 5)) >= 0.5
    for axis, size in enumerate(shape):
        turn = np.exp(-2j * np.pi * centre[axis] * (np.arange(size) - size // 2) / size)
        filled *= turn.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.complex64)
    return filled, support


def _prepared(scan: RockingScan, counts: FloatArray, q: FloatArray, step_deg: float) -> xr.Dataset:
    """The scan as the stages expect it."""
    dims = ("frame", "row", "column")
    frames = (np.arange(scan.shape[0]) - scan.shape[0] // 2) * step_deg
    angles = {"theta": 0.0}
    if scan.geometry == "34idc":
        names = ("theta", "chi", "phi", "delta", "gamma")
        angles = {n: float(getattr(scan, f"{n}_deg")) for n in names}
    prepared = xr.Dataset(
        {
            "counts": (dims, counts, {"units": "count", "long_name": "photons"}),
            "mask": (dims, np.ones(counts.shape, bool), {"long_name": "usable"}),
        },
        coords={
            "angle": (
                "frame",
                angles["theta"] + frames,
                {"units": "degree", "long_name": "rocking angle"},
            )
        },
    )
    prepared.attrs |= {
        "technique": "bcdi",
        "energy_eV": scan.energy_eV,
        "distance_m": scan.distance_m,
        "pixel_m": (scan.pixel_m, scan.pixel_m),
        "angles": json.dumps(angles),
        "scan_axis": "theta",
        "geometry": scan.geometry,
        "centre": (scan.shape[1] // 2, scan.shape[2] // 2),
        "source_file": "simulated",
        "q_vector": tuple(float(v) for v in q),
        "q_norm": float(np.linalg.norm(q)),
    }
    return prepared


def simulate_crystal_series(
    voltages: Sequence[float] = SERIES_VOLTAGES,
    fields: Sequence[Sequence[Field]] | None = None,
    crystal: Crystal | None = None,
    scan: RockingScan | None = None,
    recording: Recording | None = None,
    *,
    seed: int = 0,
) -> CrystalSeries:
    """Simulate scans of one crystal at several voltages.

    Parameters
    ----------
    voltages : sequence of float
        Voltages in V.
    fields : sequence of sequences of fields, optional
        The fields at each voltage. The default is a tensile surface that grows to 4.43 V and
        relaxes above, as in the published series; then `voltages` must be the default too.
    crystal, scan, recording
        As for `simulate_crystal`.
    seed : int
        Keys the particle (the same at all voltages) and the noise (another at each).

    Returns
    -------
    CrystalSeries
        Scans and truth in the order of the voltages.

    Raises
    ------
    InputError
        As many fields as voltages are needed; see also `simulate_crystal`.
    """
    states = [(RadialGradient(s),) for s in SERIES_STRAIN] if fields is None else list(fields)
    if len(states) != len(voltages):
        raise InputError(
            f"{len(voltages)} voltages but {len(states)} states of strain",
            where="simulate_crystal_series",
            remedy="Give the fields of every voltage.",
        )
    noise = np.random.SeedSequence(seed).generate_state(len(states))
    simulations = [
        simulate_crystal(crystal, state, scan, recording, seed=seed, noise_seed=int(key))
        for state, key in zip(states, noise, strict=True)
    ]
    return CrystalSeries(np.asarray(voltages, float), tuple(simulations))
