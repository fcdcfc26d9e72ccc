"""Bodies from thickness and outline against spheres in closed form and the simulator's bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import brentq

from spectromap._numerics import gaussian_blur
from spectromap.radial import body, diffusion, projection
from spectromap.radial.fit import PLACED_SHARE
from spectromap.schema import InputError
from spectromap.synthetic._bodies import random_polyhedron
from spectromap.synthetic._fields import diffuse, surface_distance

Array = NDArray[np.floating[Any]]

ATTENUATION = 0.015
FINE = 4


def seen(thickness: Array, pixel: float, resolution: float) -> Array:
    """Blurred thickness on pixels, from one on a grid four times finer."""
    absorbed = gaussian_blur(-np.expm1(-ATTENUATION * thickness), resolution * FINE / pixel)
    return np.asarray(-np.log1p(-binned(absorbed)) / ATTENUATION)


def binned(values: Array, factor: int = FINE) -> Array:
    """Mean over pixels of the last two axes."""
    *lead, ny, nx = values.shape
    blocks = values.reshape(*lead, ny // factor, factor, nx // factor, factor)
    return np.asarray(blocks.mean(axis=(-3, -1)))


def from_centre(count: int, step: float, middle: tuple[float, float]) -> Array:
    """Distance of cell centres from a point [nm]."""
    place = (np.arange(count) + 0.5) * step
    return np.hypot(place[:, None] - middle[0], place - middle[1])


class Ball:
    """Measured maps of a sphere, off the centre of its crop."""

    def __init__(
        self,
        radius: float,
        pixel: float,
        resolution: float,
        slab: tuple[float, float] | None = None,
    ) -> None:
        self.radius, self.slab, self.pixel = radius, slab, pixel
        self.count = int(np.ceil(2 * (radius + max(25, resolution)) / pixel))
        self.middle = (self.count * pixel / 2 + 1.3, self.count * pixel / 2 - 0.7)
        fine = from_centre(self.count * FINE, pixel / FINE, self.middle)
        self.thickness = seen(projection.thickness(fine, radius, slab), pixel, resolution)
        face = 0.0 if slab is None else max(slab[0], 0.0)
        outline = np.sqrt(radius**2 - face**2)
        distance = outline - from_centre(self.count, pixel, self.middle)
        self.distance = np.where(distance > -5 * pixel, distance, np.nan)
        self.errors = np.ones_like(distance)

    def measured(self) -> tuple[Array, Array, Array, tuple[float, float]]:
        """What the bodies are made from."""
        return self.thickness, self.errors, self.distance, (self.pixel, self.pixel)

    def truth(self, solid: body.Solid, profile: Any) -> tuple[Array, Array]:
        """Thickness and the projected amount of a radial profile on the cells of a solid."""
        rho = from_centre(solid.shape[0], solid.cell, self.middle)
        thickness = projection.thickness(rho, self.radius, self.slab)
        amount = np.zeros_like(rho)
        ok = thickness > 0
        amount[ok] = projection.line_integral(profile, rho[ok], self.radius, self.slab)
        return thickness, amount


def crank(radius: float, depth: float) -> Any:
    """Concentration against the distance from the centre."""
    return lambda r: diffusion.concentration(np.minimum(r / radius, 1), (depth / radius) ** 2)


@pytest.mark.parametrize(
    ("radius", "pixel", "resolution", "cells"), [(100, 5, 10, 2), (60, 7, 10, 3), (150, 20, 45, 3)]
)
def test_a_blurred_sphere_diffuses_as_cranks_series(
    radius: float, pixel: float, resolution: float, cells: int
) -> None:
    ball = Ball(radius, pixel, resolution)
    solid = body.whole_body(*ball.measured(), resolution, cells=cells)
    depths = radius * np.array([0.4, 0.05, 0.12, 0.6])  # in any order
    amounts = body.progress(solid, depths)
    for depth, amount in zip(depths, amounts, strict=True):
        thickness, true = ball.truth(solid, crank(radius, depth))
        assert np.sqrt(np.mean((amount - true)[true > 0] ** 2)) < 0.01 * thickness[true > 0].mean()
        assert amount.sum() == pytest.approx(true.sum(), rel=0.015)
    assert solid.radius == pytest.approx(radius, rel=0.003)
    # A cell that the outline crosses may be on either side of it.
    assert np.sqrt(np.mean((solid.thickness - thickness)[thickness > 0] ** 2)) < 0.01 * radius


def test_noise_makes_no_bumps_that_diffusion_sees() -> None:
    ball = Ball(100, 5, 10)
    noise = np.random.default_rng(1).normal(0, 4, ball.thickness.shape)
    solid = body.whole_body(
        ball.thickness + noise, 4 * ball.errors, ball.distance, (5, 5), 10, cells=2
    )
    thickness, true = ball.truth(solid, crank(100, 10))
    amount = body.progress(solid, np.array([10.0]))[0]
    assert amount.sum() == pytest.approx(true.sum(), rel=0.03)
    assert np.std((solid.thickness - thickness)[thickness > 60]) < 4


def shifted(ball: Ball, off: float, error: float, noise: float = 0.0) -> float:
    """Where the edge is put if the outline lies `off` nm inside of the true one."""
    errors = np.full_like(ball.thickness, max(noise, 1.0))
    thickness = ball.thickness + np.random.default_rng(4).normal(0, noise, errors.shape)
    pixel = (ball.pixel, ball.pixel)
    return body.outward_shift(
        thickness, errors, ball.distance - off, pixel, 45, cells=2, error_nm=error
    )


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_thickness_puts_the_edge_of_a_sphere_right(noise: float) -> None:
    off = [-3.0, 0.0, 2.0, 4.0]
    found = [
        [shifted(ball, o, 2.25, noise) for o in off]
        for ball in (Ball(150, 20, 45), Ball(230, 20, 45))
    ]
    assert np.all(np.diff(found, axis=1) > 0)
    # The fit of D counts on this share of the error of the outline.
    assert np.sqrt(np.mean(np.subtract(found, off) ** 2)) < PLACED_SHARE * 2.25


def test_an_outline_that_is_known_well_holds_the_edge() -> None:
    ball = Ball(150, 20, 45)
    assert abs(shifted(ball, 4.0, 0.1)) < 0.5
    # Nothing but noise far above the thickness: only the outline says where the edge is.
    assert abs(shifted(ball, 4.0, 2.25, noise=1000.0)) < 1.0


@pytest.mark.parametrize("slab", [None, (-20.0, 60.0)])
def test_a_body_whose_edge_is_moved_is_larger(
    slab: tuple[float, float] | None,
) -> None:
    ball = Ball(150, 20, 45, slab)

    def made(outward: float) -> body.Solid:
        given = (*ball.measured(), 45)
        if slab is None:
            return body.whole_body(*given, cells=2, outward_nm=outward)
        return body.section_bodies(*given, 80, cells=2, outward_nm=outward)[1]

    small, large = made(0.0), made(4.0)
    assert np.allclose(large.distance, small.distance + 4.0)
    size = [np.sqrt(np.count_nonzero(s.thickness > 0) / np.pi) * s.cell for s in (small, large)]
    assert size[1] - size[0] == pytest.approx(4.0, abs=1.0)


@pytest.mark.parametrize("height", [0.0, 20.0, 60.0])
def test_a_section_of_a_sphere_is_cut_after_diffusion(height: float) -> None:
    ball = Ball(100, 5, 10, (height - 40, height + 40))
    solids = body.section_bodies(*ball.measured(), 10, 80, cells=2)
    middles = np.array([sum(s.slab or (0, 0)) / 2 for s in solids])
    assert np.all(np.diff(middles) > 0)
    solid = solids[int(np.argmin(np.abs(middles - height)))]
    for depth in (10.0, 20.0):
        thickness, true = ball.truth(solid, crank(100, depth))
        amount = body.progress(solid, np.array([depth]))[0]
        inside = thickness > 20
        share, wanted = (
            a[inside] / t[inside] for a, t in ((amount, solid.thickness), (true, thickness))
        )
        assert np.mean(share) == pytest.approx(np.mean(wanted), abs=0.025)


def robin(radius: float, depth: float, ratio: float) -> Any:
    """Sphere with surface exchange, D / (k R) = ratio; Crank, 2nd ed., equation 6.40."""
    rate = 1 / ratio
    roots = [
        brentq(lambda b: b / np.tan(b) + rate - 1, n * np.pi + 1e-9, (n + 1) * np.pi - 1e-9)
        for n in range(40)
    ]

    def profile(r: Array) -> Array:
        x = np.maximum(r / radius, 1e-9)
        total = np.ones_like(x)
        for b in roots:
            decay = np.exp(-(b**2) * (depth / radius) ** 2)
            total -= 2 * rate / x * decay / (b**2 + rate * (rate - 1)) * np.sin(b * x) / np.sin(b)
        return total

    return profile


@pytest.mark.parametrize("ratio", [0.2, 1.0, 5.0])
def test_surface_exchange_slows_a_sphere_as_the_series_says(ratio: float) -> None:
    ball = Ball(60, 5, 10)
    solid = body.whole_body(*ball.measured(), 10, cells=2)
    depths = np.array([4.0, 10.0, 30.0])
    amounts = body.progress(solid, depths, exchange_nm=ratio * 60)
    for depth, amount in zip(depths, amounts, strict=True):
        _, true = ball.truth(solid, robin(60, depth, ratio))
        assert amount.sum() == pytest.approx(true.sum(), rel=0.02)


def test_the_shell_of_a_sphere_and_of_its_section() -> None:
    for slab in (None, (-20.0, 60.0)):
        ball = Ball(100, 5, 10, slab)
        if slab is None:
            solid = body.whole_body(*ball.measured(), 10, cells=2)
        else:
            bodies = body.section_bodies(*ball.measured(), 10, 80, cells=2)
            solid = min(bodies, key=lambda s: abs(sum(s.slab or (0, 0)) - sum(slab)))
        for depth in (15.0, 40.0):
            layer = body.shell(solid, np.array([depth]))[0]
            thickness, true = ball.truth(solid, lambda r, d=depth: (r > 100 - d).astype(float))
            rho = from_centre(solid.shape[0], solid.cell, ball.middle)
            true = thickness - projection.thickness(rho, 100 - depth, slab)
            assert layer.sum() / solid.thickness.sum() == pytest.approx(
                true.sum() / thickness.sum(), rel=0.02 if slab is None else 0.05
            )
            assert np.all(layer <= solid.thickness + 1e-3)


class Facets:
    """A polyhedron of the simulator, solved by the simulator, projected and blurred."""

    def __init__(self, seed: int, tau: float, cut: float | None = None) -> None:
        radius, resolution, step = 100.0, 10.0, 2.5
        shape = random_polyhedron(radius, np.random.default_rng([5, seed]))
        half = int(np.ceil((shape.reach + 30) / 10)) * 4
        place = ((np.arange(2 * half) - half + 0.5) * step).astype(np.float32)
        deep = int(np.ceil(shape.reach / step)) + 2
        z = place[half - deep : half + deep]
        level = shape.level(place[:, None, None], place[None, :, None], z)
        fill = np.clip(0.5 + level / step, 0, 1)
        kept = np.full(z.size, step)
        if cut is not None:
            top, bottom = np.minimum(z + step / 2, cut + 40), np.maximum(z - step / 2, cut - 40)
            kept = np.clip(top - bottom, 0, step)
        thickness = fill @ kept
        amount = (fill * diffuse(level, step, tau * radius**2)) @ kept
        outline = surface_distance(level[..., kept > 0].max(axis=-1), step)
        width = resolution / step
        absorbed = gaussian_blur(-np.expm1(-ATTENUATION * thickness), width)
        self.thickness = -np.log1p(-binned(absorbed, 2)) / ATTENUATION
        self.fraction = binned(gaussian_blur(amount, width), 2) / np.maximum(
            binned(gaussian_blur(thickness, width), 2), 1e-3
        )
        self.distance = binned(outline, 2)
        self.errors = np.ones_like(self.distance)
        self.log_dt = np.log10(tau * radius**2)

    def found(self, solid: body.Solid) -> float:
        """Least squares for log10 D t with both concentrations free, less the truth."""
        depths = np.geomspace(3, 60, 28)
        width = 10.0 / solid.cell
        model = binned(gaussian_blur(body.progress(solid, depths), width), 2)
        model /= np.maximum(binned(gaussian_blur(solid.thickness, width), 2), 1e-3)
        ok = (self.distance > 0) & (self.thickness > 10)
        weight, misfits = self.thickness[ok], []
        for column in model[:, ok]:
            matrix = np.column_stack([np.ones(ok.sum()), column]) * weight[:, None]
            wanted = weight * self.fraction[ok]
            left = wanted - matrix @ np.linalg.lstsq(matrix, wanted, rcond=None)[0]
            misfits.append(float(left @ left))
        best = int(np.clip(np.argmin(misfits), 1, depths.size - 2))
        log = 2 * np.log10(depths[best - 1 : best + 2])
        a, b, _ = np.polyfit(log - log[1], misfits[best - 1 : best + 2], 2)
        return float(log[1] - b / (2 * a) - self.log_dt)


def test_polyhedra_from_their_thickness_give_d_t() -> None:
    errors = []
    for seed, tau in enumerate((0.01, 0.03, 0.01, 0.03)):
        facets = Facets(seed, tau)
        solid = body.whole_body(
            facets.thickness, facets.errors, facets.distance, (5, 5), 10, cells=2
        )
        errors.append(facets.found(solid))
    assert abs(np.mean(errors)) < 0.03
    assert np.max(np.abs(errors)) < 0.08


def test_cut_polyhedra_give_d_t_when_the_cut_is_known() -> None:
    errors = []
    for seed, (tau, cut) in enumerate(((0.01, 20.0), (0.03, 45.0), (0.01, -55.0))):
        facets = Facets(seed, tau, cut)
        solids = body.section_bodies(
            facets.thickness, facets.errors, facets.distance, (5, 5), 10, 80, cells=2
        )
        middles = [sum(s.slab or (0, 0)) / 2 for s in solids]
        near = int(np.argmin(np.abs(np.array(middles) - abs(cut))))
        errors.append(facets.found(solids[near]))
    assert abs(np.mean(errors)) < 0.06
    assert np.max(np.abs(errors)) < 0.2


def test_turning_and_flipping_the_crop_turns_the_answer() -> None:
    facets = Facets(3, 0.01)
    maps = facets.thickness, facets.errors, facets.distance
    depths = np.array([10.0, 30.0])
    straight = body.progress(body.whole_body(*maps, (5, 5), 10, cells=2), depths)
    turned = [np.rot90(m) for m in maps]
    other = body.progress(body.whole_body(*turned, (5, 5), 10, cells=2), depths)
    difference = np.rot90(straight, axes=(1, 2)) - other
    assert np.sqrt(np.mean(difference[:, other[0] > 0] ** 2)) < 1.0
    assert other.sum() == pytest.approx(straight.sum(), rel=1e-3)


def test_pixels_that_are_not_square_and_pixels_without_data() -> None:
    ball = Ball(100, 5, 10)
    thickness, errors, distance, _ = ball.measured()
    wide = [ndimage.zoom(m, (1, 0.5), order=1, grid_mode=True, mode="nearest")
            for m in (thickness, errors, np.nan_to_num(distance, nan=-30.0))]  # fmt: skip
    wide[0][10, 10] = np.nan
    solid = body.whole_body(wide[0], wide[1], wide[2], (5.0, 10.0), 10, cells=2)
    assert solid.radius == pytest.approx(100, rel=0.02)


def test_what_cannot_be_a_particle_is_refused() -> None:
    flat = np.ones((12, 12))
    with pytest.raises(InputError, match="no pixel lies inside"):
        body.whole_body(flat, flat, -flat, (5, 5), 10, cells=2)
    with pytest.raises(InputError, match="one shape"):
        body.whole_body(flat, flat, flat[:5], (5, 5), 10, cells=2)
    with pytest.raises(InputError, match="above zero"):
        body.whole_body(flat, flat, flat, (0, 5), 10, cells=2)
    ball = Ball(60, 10, 10)
    with pytest.raises(InputError, match="section"):
        body.section_bodies(*ball.measured(), 10, 0, cells=2)
    solid = body.whole_body(*ball.measured(), 10, cells=2)
    with pytest.raises(InputError, match="depths"):
        body.progress(solid, np.array([0.0, 5.0]))
    with pytest.raises(InputError, match="exchange"):
        body.progress(solid, np.array([5.0]), exchange_nm=-1)
