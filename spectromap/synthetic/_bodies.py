"""Particles as bodies: sphere, superellipsoid, convex polyhedron."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import ConvexHull, HalfspaceIntersection
from scipy.spatial.transform import Rotation
from scipy.special import beta

from spectromap._numerics import FloatArray


@dataclass(frozen=True)
class Sphere:
    """A sphere of the given radius in nm."""

    radius: float

    #: Whether `level` is the Euclidean distance inside the body.
    exact = True

    @property
    def reach(self) -> float:
        """Radius in nm of a sphere about the centre that holds the body."""
        return self.radius

    @property
    def volume(self) -> float:
        """Volume in nm3."""
        return 4 / 3 * np.pi * self.radius**3

    def level(self, y: FloatArray, x: FloatArray, z: FloatArray) -> FloatArray:
        """Depth below the surface in nm, negative outside."""
        return np.asarray(self.radius - np.sqrt(y**2 + x**2 + z**2))


@dataclass(frozen=True)
class Superellipsoid:
    """A superellipsoid ``((x/a)^(2/e2) + (y/b)^(2/e2))^(e2/e1) + (z/c)^(2/e1) = 1``, turned.

    Attributes
    ----------
    axes : tuple of float
        Half axes a, b, c in nm.
    exponents : tuple of float
        e1 and e2: 1 is an ellipsoid, towards 0 a box.
    rotation : ndarray, shape (3, 3)
        From the field's (x, y, z) to the axes of the body.

    References
    ----------
    A. H. Barr, IEEE Comput. Graph. Appl. 1(1), 11 (1981).
    """

    axes: tuple[float, float, float]
    exponents: tuple[float, float]
    rotation: FloatArray

    exact = False

    @property
    def reach(self) -> float:
        """Radius in nm of a sphere about the centre that holds the body."""
        # Exponents up to 1 bulge towards the corners of the box, never past the ellipsoid's axes
        # by more than the corner of |x/a|^p = 1 in three dimensions.
        power = 2 / min(self.exponents)
        return float(max(self.axes) * 3 ** (0.5 - 1 / max(power, 2.0)))

    @property
    def volume(self) -> float:
        """Volume in nm3."""
        (a, b, c), (e1, e2) = self.axes, self.exponents
        return float(2 / 3 * a * b * c * e1 * e2 * beta(e1 / 2, e1) * beta(e2 / 2, e2 / 2))

    def level(self, y: FloatArray, x: FloatArray, z: FloatArray) -> FloatArray:
        """Depth below the surface in nm to first order, negative outside."""
        tiny = np.float32(1e-6)
        turned = [row[0] * x + row[1] * y + row[2] * z for row in self.rotation.astype(np.float32)]
        u, v, w = (np.abs(t) / np.float32(s) + tiny for t, s in zip(turned, self.axes, strict=True))
        a, b, c = (np.float32(s) for s in self.axes)
        e1, e2 = self.exponents
        p, q = 2 / e2, 2 / e1
        flat = u**p + v**p
        whole = flat ** (e2 / e1) + w**q
        gradient = np.hypot(
            flat ** (e2 / e1 - 1) * np.hypot(u ** (p - 1) / a, v ** (p - 1) / b), w ** (q - 1) / c
        ) * whole ** (e1 / 2 - 1)
        return np.asarray((1 - whole ** (e1 / 2)) / gradient)


@dataclass(frozen=True)
class Polyhedron:
    """A convex polyhedron: where ``normals @ (x, y, z) <= offsets``.

    Attributes
    ----------
    normals : ndarray, shape (n, 3)
        Unit vectors outwards.
    offsets : ndarray, shape (n,)
        Distance of each face from the centre in nm.
    """

    normals: FloatArray
    offsets: FloatArray

    exact = True

    def corners(self) -> FloatArray:
        """Corners in nm, shape (n, 3), as x, y, z."""
        planes = np.column_stack([self.normals, -self.offsets])
        return np.asarray(HalfspaceIntersection(planes, np.zeros(3)).intersections)

    @property
    def reach(self) -> float:
        """Radius in nm of a sphere about the centre that holds the body."""
        return float(np.linalg.norm(self.corners(), axis=1).max())

    @property
    def volume(self) -> float:
        """Volume in nm3."""
        return float(ConvexHull(self.corners()).volume)

    def level(self, y: FloatArray, x: FloatArray, z: FloatArray) -> FloatArray:
        """Depth below the nearest face in nm, negative outside."""
        planes = np.column_stack([self.normals, self.offsets]).astype(np.float32)
        depth: FloatArray | None = None
        for n_x, n_y, n_z, offset in planes:
            below = offset - n_x * x - n_y * y - n_z * z
            depth = below if depth is None else np.minimum(depth, below, out=depth)
        return np.asarray(depth)


Body = Sphere | Superellipsoid | Polyhedron


def _random_superellipsoid(radius: float, rng: np.random.Generator) -> Superellipsoid:
    """Superellipsoid of random axes, exponents and direction with the volume of a sphere."""
    axes = rng.uniform(0.75, 1.25, 3)
    exponents = (float(rng.uniform(0.5, 1.0)), float(rng.uniform(0.5, 1.0)))
    turn = Rotation.random(random_state=rng).as_matrix()
    unit = Superellipsoid((axes[0], axes[1], axes[2]), exponents, turn)
    axes *= (Sphere(radius).volume / unit.volume) ** (1 / 3)
    return replace(unit, axes=(float(axes[0]), float(axes[1]), float(axes[2])))


def random_polyhedron(radius: float, rng: np.random.Generator) -> Polyhedron:
    """Convex polyhedron of random faces with the volume of a sphere of the given radius."""
    count = int(rng.integers(12, 19))
    # Directions on a turned spiral are even enough that the faces always close.
    k = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    normals = np.column_stack(
        [np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)]
    )
    normals = normals + rng.normal(0, 0.15, normals.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    stretch = rng.uniform(0.85, 1.15, 3)
    offsets = np.linalg.norm(normals * stretch, axis=1) * rng.uniform(0.88, 1.08, count)
    turned = normals @ Rotation.random(random_state=rng).as_matrix().T
    unit = Polyhedron(turned, offsets)
    return replace(unit, offsets=offsets * (Sphere(radius).volume / unit.volume) ** (1 / 3))


def random_body(shape: str, radius: float, rng: np.random.Generator) -> Body:
    """Body of the given kind whose volume is that of a sphere of the given radius."""
    if shape == "mixed":
        shape = str(rng.choice(["sphere", "superellipsoid", "polyhedron"], p=[0.15, 0.4, 0.45]))
    if shape == "sphere":
        return Sphere(radius)
    if shape == "superellipsoid":
        return _random_superellipsoid(radius, rng)
    return random_polyhedron(radius, rng)


@dataclass(frozen=True)
class Particle:
    """One body of the field with what happened to it.

    Attributes
    ----------
    body : Sphere, Superellipsoid or Polyhedron
    y, x : float
        Centre in nm.
    cut_nm : float
        Height of the middle of the section above the centre of the body (0 where it is whole).
    agglomerate : int
        0 for a loose particle.
    place : {"outside", "exterior", "interior"}
    dt_nm2 : float
        Diffusion coefficient times time.
    surface, initial : float
        Fractions of the reduced component.
    """

    body: Body
    y: float
    x: float
    cut_nm: float = 0.0
    agglomerate: int = 0
    place: str = "outside"
    dt_nm2: float = 0.0
    surface: float = 0.0
    initial: float = 0.0
