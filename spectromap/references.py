"""Reference spectra: units, absolute scale from tabulated cross-sections, one energy axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.constants import Avogadro
from scipy.interpolate import CubicSpline

from spectromap._numerics import fwhm_to_sigma
from spectromap.schema import LOG, InputError

__all__ = [
    "Edge",
    "Material",
    "guess_edge",
    "normalise_reference",
    "normalise_references",
    "number_density",
    "reference_from_pixels",
    "reference_set",
]

Scale = Literal["auto", "edge_jump", "none"]
Spectrum = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Tables are not to be trusted this close to an edge (white lines, edge energy), in eV.
BELOW_EDGE_EV = 4.0
ABOVE_EDGE_EV = 10.0
#: Where tables are smooth: shares of the edge's energy, and eV above the last edge of the group.
PRE_ANCHORS, POST_ANCHORS_EV = np.array([0.88, 0.94]), np.array([25.0, 45.0])
#: From here on the wings of the lines of a K edge do not matter.
FAR_FROM_EDGE_EV = 20.0
#: Half width of the white lines of L3 and L2 in eV, as core holes and multiplets make it, and how
#: far it may be from that; lines lower than this share of the highest have no wings.
WING_WIDTH_EV, WING_SPREAD_EV, LINE_SHARE, WING_SWEEPS = 0.4, 0.2, 0.04, 6
#: A spectrum that begins near its edge has a pre-edge if it starts this flat over so many eV.
FLAT_SHARE, FLAT_SPAN_EV = 0.015, 0.4
#: Pre-edge over edge jump, relative to that of the sample, that a real compound can have.
PLAIN_BACKGROUND = (0.25, 2.0)
#: Relative errors of an edge jump from which on it is reported, and is none.
POOR_JUMP_ERROR, MAX_JUMP_ERROR = 0.1, 0.35
#: A reference thicker than this has its peaks cut by stray light and by the line of the beam.
THICK_REFERENCE_OD = 1.5
COMMON_EDGES = ("Mn L3", "Fe L3", "Co L3", "Ni L3", "O K", "C K", "N K", "F K", "Ti L3", "Cu L3")
#: Frames may lie this far outside a reference before it counts as not covering them.
COVERAGE_TOLERANCE_EV = 0.5
#: A reference whose pre-edge is off the tables by more than this factor is reported.
TABLE_DISAGREEMENT = 1.5
#: Nodes of the quadrature over a Gaussian: closer than the lines are wide up to 1.5 eV FWHM.
NODES = 31
#: A spline of fewer points is no spectrum.
MIN_POINTS = 4


class Edge:
    """An absorption edge: ``Edge("Mn L3")``.

    Parameters
    ----------
    name : str
        Element symbol and edge, such as ``Mn L3``, ``Ni L3`` or ``O K``.

    Attributes
    ----------
    element : str
        Element symbol.
    first_eV, last_eV : float
        Tabulated energy of the edge, and of the last edge of its group (L2 for L3 or L2).
    split : bool
        Whether it is an L3 and L2 pair.

    Raises
    ------
    InputError
        The name is not an element and an edge of it.

    References
    ----------
    W. T. Elam, B. D. Ravel and J. R. Sieber, Radiat. Phys. Chem. 63, 121 (2002), through xraydb.
    """

    def __init__(self, name: str) -> None:
        import xraydb

        parts = name.split()
        if len(parts) != 2:
            raise _bad_edge(name)
        self.name = name
        self.element = parts[0].capitalize()
        try:
            edges = xraydb.xray_edges(self.element)
        except ValueError as error:
            raise _bad_edge(name) from error
        label = parts[1].upper().replace("L23", "L3").replace("L2,3", "L3")
        if not edges or label not in edges:
            raise _bad_edge(name)
        group = [e.energy for key, e in edges.items() if key in ("L3", "L2")]
        self.first_eV = float(min(group) if label in ("L3", "L2") else edges[label].energy)
        self.last_eV = float(max(group) if label in ("L3", "L2") else edges[label].energy)
        self.split = self.last_eV > self.first_eV


def _bad_edge(name: str) -> InputError:
    return InputError(
        f"'{name}' is not an absorption edge",
        where="edge",
        remedy="Write it like 'Mn L3' or 'O K'.",
    )


def guess_edge(energy: Spectrum) -> str:
    """Name of the edge that a range of energies spans: the first L3 or K edge inside it.

    Parameters
    ----------
    energy : ndarray
        Energies in eV.

    Raises
    ------
    InputError
        No edge of the usual elements lies inside.
    """
    for name in COMMON_EDGES:
        if energy[0] < Edge(name).first_eV + 4.0 < energy[-1]:
            return name
    raise InputError(
        f"no common edge lies between {energy[0]:.1f} and {energy[-1]:.1f} eV",
        where="edge",
        remedy="Name it in the run description, like 'edge: Mn L3'.",
    )


@dataclass(frozen=True)
class Material:
    """What the sample is made of: chemical formula and density in g/cm3."""

    formula: str
    density_g_cm3: float


def _composition(formula: str) -> dict[str, float]:
    """Atoms per formula unit."""
    import xraydb

    try:
        return {k: float(v) for k, v in xraydb.chemparse(formula).items()}
    except ValueError as error:
        raise InputError(
            f"'{formula}' is not a chemical formula",
            where="sample.formula",
            remedy="Write it like Li1.18Ni0.21Mn0.53Co0.08O2.",
        ) from error


def number_density(element: str, material: Material) -> float:
    """Atoms of an element per nm3 of a material.

    Parameters
    ----------
    element : str
        Symbol.
    material : Material
        Composition and density.

    Returns
    -------
    float
        Number density in nm-3.

    Raises
    ------
    InputError
        Not a formula, or the element is not in it.
    """
    import xraydb

    atoms = _composition(material.formula)
    if element not in atoms:
        raise InputError(
            f"the formula {material.formula} has no {element}",
            where="sample.formula",
            remedy="Give the composition of the sample at whose edge the stack was taken.",
        )
    mass = sum(n * xraydb.atomic_mass(symbol) for symbol, n in atoms.items())
    return float(material.density_g_cm3 * Avogadro * atoms[element] / mass * 1e-21)


def tabulated_absorption(energy: Spectrum, material: Material) -> Spectrum:
    """Linear absorption coefficient of a material from tables, in nm-1.

    Parameters
    ----------
    energy : ndarray
        Photon energies in eV.
    material : Material
        Composition and density.

    References
    ----------
    C. T. Chantler, J. Phys. Chem. Ref. Data 29, 597 (2000), and the Elam tables, through xraydb.
    """
    import xraydb

    _composition(material.formula)
    per_cm = xraydb.material_mu(
        material.formula, np.asarray(energy, float), density=material.density_g_cm3
    )
    return np.asarray(per_cm * 1e-7)


def _edge_element(energy: Spectrum, edge: Edge, material: Material) -> tuple[Spectrum, Spectrum]:
    """What the edge element absorbs below and above its edge, continued as powers, in nm-1.

    Tables interpolate over the last stretch below an edge, so the powers are taken further away;
    the element alone has no other edge there, which a compound may have.
    """
    import xraydb

    atoms = _composition(material.formula)
    mass = sum(n * xraydb.atomic_mass(symbol) for symbol, n in atoms.items())
    share = atoms.get(edge.element, 0.0) * xraydb.atomic_mass(edge.element) / mass
    if share == 0.0:
        number_density(edge.element, material)  # says that the formula lacks the element
    sides = []
    for anchors in (PRE_ANCHORS * edge.first_eV, edge.last_eV + POST_ANCHORS_EV):
        values = xraydb.mu_elam(edge.element, anchors)
        power = np.log(values[1] / values[0]) / np.log(anchors[1] / anchors[0])
        per_mass = values[1] * (energy / anchors[1]) ** power
        sides.append(np.asarray(per_mass * share * material.density_g_cm3 * 1e-7))
    return sides[0], sides[1]


def _tabulated_jump(energy: Spectrum, edge: Edge, material: Material) -> tuple[Spectrum, Spectrum]:
    """Edge jump, zero below the edge, and all that is absorbed without it, in nm-1.

    The jump is that of the atoms of the edge element alone, so that it is the same per atom in
    every compound.
    """
    import xraydb

    below, above = _edge_element(energy, edge, material)
    atoms = _composition(material.formula)
    mass = sum(n * xraydb.atomic_mass(symbol) for symbol, n in atoms.items())
    others = np.zeros(energy.size)
    for symbol, number in atoms.items():
        if symbol != edge.element:
            share = number * xraydb.atomic_mass(symbol) / mass
            others += xraydb.mu_elam(symbol, energy) * share * material.density_g_cm3 * 1e-7
    return np.where(energy > edge.first_eV, above - below, 0.0), below + others


def _regions(spectrum: xr.DataArray, edge: Edge, name: str) -> tuple[Mask, Mask, str]:
    """Pre-edge and post-edge of a spectrum, and what is to be said about them."""
    energy = spectrum.energy.values
    pre, post = edge.first_eV - energy > BELOW_EDGE_EV, energy - edge.last_eV > ABOVE_EDGE_EV
    note = ""
    if not pre.any():
        pre = _flat_start(spectrum, edge)
        note = f", pre-edge of only {np.ptp(energy[pre]):.1f} eV" if pre.any() else ""
    for side, mask, near in (("pre-edge", pre, BELOW_EDGE_EV), ("post-edge", post, ABOVE_EDGE_EV)):
        if not mask.any():
            raise InputError(
                f"it covers {energy[0]:.1f} to {energy[-1]:.1f} eV, so it has no {side} ({near:g}"
                " eV or more from the edge) from which an edge jump could be taken",
                where=f"reference '{name}'",
                remedy="Measure the reference over the whole edge, or give it per nm, in cm2/g or"
                " per atom.",
            )
    if not edge.split:
        # Without a model of the wings keep away from them, if the spectrum allows it.
        far_pre = pre & (edge.first_eV - energy > FAR_FROM_EDGE_EV)
        far_post = post & (energy - edge.last_eV > FAR_FROM_EDGE_EV)
        pre = far_pre if far_pre.sum() > 3 else pre
        post = far_post if far_post.sum() > 3 else post
    return pre, post, note


def _flat_start(spectrum: xr.DataArray, edge: Edge) -> Mask:
    """The first points of a spectrum that begins close to its edge, if they are flat."""
    energy, values = spectrum.energy.values, spectrum.values
    height = float(values.max() - values.min())
    risen = (np.abs(values - np.median(values[:3])) > FLAT_SHARE * height) | (
        energy > edge.first_eV + 1.0
    )
    flat = np.arange(energy.size) < (int(np.argmax(risen)) if risen.any() else 0)
    return flat if flat.sum() > 2 and np.ptp(energy[flat]) > FLAT_SPAN_EV else flat & False


def _background(
    spectrum: xr.DataArray, pre: Mask, post: Mask, jump: Spectrum, power: Spectrum
) -> tuple[tuple[Spectrum, ...], str]:
    """What may lie below the edge, the likeliest first, and what to say of it.

    Each is a set of columns: a power law and a constant where the spectrum is long enough to tell
    them apart, else one of them.
    """
    energy, values = spectrum.energy.values, spectrum.values
    constant = np.ones(energy.size)
    if np.ptp(energy[pre]) > 5.0 and np.ptp(energy[post]) > 5.0:
        return (np.column_stack([power, constant]),), "power law and constant below the edge"
    below, above = float(np.mean(values[pre])), float(np.mean(values[post]))
    table = float(np.mean(power[pre]) / np.mean(jump[post]))
    share = below / max(above - below, 1e-300)
    # No sample has so much, or so little, below its edge: curves drawn one above the other do.
    if PLAIN_BACKGROUND[0] * table < share < PLAIN_BACKGROUND[1] * table:
        return (power[:, None], constant[:, None]), "power law below the edge"
    return (constant[:, None], power[:, None]), f"constant of {below:.3g} below the edge taken off"


def _wings(spectrum: xr.DataArray, height: Spectrum, rest: Spectrum, edge: Edge) -> Spectrum:
    """What the white lines of L3 and of L2 add far away, for a Lorentzian half width of 1 eV."""
    energy, values = spectrum.energy.values, spectrum.values
    between = (energy > 0.5 * (edge.first_eV + edge.last_eV)) & (energy < edge.last_eV)
    valley = energy[between][int(np.argmin(values[between]))] if between.any() else edge.last_eV
    wings = []
    first = energy <= valley
    tops = [float(energy[m][int(np.argmax(values[m]))]) for m in (first, ~first)]
    steps = (2.0 * (energy > tops[0]) + (energy > tops[1])) / 3.0
    lines = values - rest - height * steps
    for window in (first, ~first):
        tall = np.where(window & (lines > LINE_SHARE * lines.max()), lines, 0.0)
        tall *= np.gradient(energy) / np.pi
        distance = energy[:, None] - energy[None, tall > 0]
        near = np.abs(distance) < 1.0
        wings.append(
            np.where(near, 0.0, tall[tall > 0] / np.where(near, 1.0, distance) ** 2).sum(1)
        )
    return np.column_stack(wings)


def _tie_to_tables(
    spectrum: xr.DataArray, edge: Edge, material: Material, name: str
) -> xr.DataArray:
    """Scale a spectrum so that its edge jump is that of the sample's edge element, in nm-1.

    Away from the edge the spectrum is the tabulated jump of the edge element, times a factor,
    on a background: the power law of what absorbs besides, a constant, and the wings of the white
    lines of L3 and L2. These follow from the lines themselves: a line of area S and half width
    gamma is ``S gamma / (pi (E - E0)^2)`` far from E0. One gamma each is fitted, with a prior.
    """
    pre, post, note = _regions(spectrum, edge, name)
    energy = spectrum.energy.values
    jump, power = _tabulated_jump(energy, edge, material)
    backgrounds, what = _background(spectrum, pre, post, jump, power)
    found, error = _fit_jump(spectrum, pre, post, edge, jump, backgrounds[0])
    for other in backgrounds[1:]:
        # Too short to tell which is right: the truth lies anywhere between the two.
        apart = _fit_jump(spectrum, pre, post, edge, jump, other)[0][0] - found[0]
        error = float(np.hypot(error, apart / np.sqrt(12.0)))
    if not found[0] > 0 or error > MAX_JUMP_ERROR * found[0]:
        raise InputError(
            "its post-edge is not clearly above its pre-edge, so there is no edge jump",
            where=f"reference '{name}'",
            remedy="Check the file: columns, energy units, whether it is absorption, and whether"
            " its continuum has been subtracted.",
        )
    factor = 1.0 / float(found[0])
    relative = error * factor
    if relative > POOR_JUMP_ERROR:
        LOG.warning("reference '%s': its edge jump is known to %.0f %% only", name, 100 * relative)
    treatment = (
        f"{what}{note}; edge jump set to that of the tables (times {factor:.4g},"
        f" +- {100 * relative:.1f} %)"
    )
    offset = power - factor * (backgrounds[0] @ found[1:])
    made = _result(spectrum, factor, "nm-1", treatment, offset)
    return made.assign_attrs(relative_error=spectrum.attrs.get("relative_error", relative))


def _fit_jump(
    spectrum: xr.DataArray,
    pre: Mask,
    post: Mask,
    edge: Edge,
    jump: Spectrum,
    background: Spectrum,
) -> tuple[Spectrum, float]:
    """Edge jump and background of a spectrum, wings of its lines allowed for; the jump's error."""
    plain, chosen = np.column_stack([jump, background]), pre | post
    values = spectrum.values
    found, error = _least_squares(plain[chosen], values[chosen], 0)
    for _ in range(WING_SWEEPS if edge.split else 0):
        if found[0] <= 0:
            break
        wings = _wings(spectrum, found[0] * jump, background @ found[1 : plain.shape[1]], edge)
        design = np.column_stack([plain, wings])
        found, error = _least_squares(design[chosen], values[chosen], 2)
    return found[: plain.shape[1]], error


def _least_squares(design: Spectrum, values: Spectrum, wings: int) -> tuple[Spectrum, float]:
    """Least squares with a prior on the last columns; the error of the first parameter.

    The error is that of the scatter about the fit, with neighbours as correlated as they are.
    """
    rms = 1e-3 * float(np.ptp(values))
    count = design.shape[1]
    found, error = np.zeros(count), np.nan
    for _ in range(3 if wings else 2):
        weight = rms / WING_SPREAD_EV
        prior = weight * np.eye(count)[count - wings :]
        target = np.append(values, np.full(wings, weight * WING_WIDTH_EV))
        whole = np.vstack([design, prior])
        found = np.linalg.lstsq(whole, target, rcond=None)[0]
        residual = values - design @ found
        spare = max(values.size - (count - wings), 1)
        rms = max(float(np.sqrt(np.sum(residual**2) / spare)), 1e-6 * float(np.ptp(values)))
        alike = float(residual[1:] @ residual[:-1] / max(float(residual @ residual), 1e-300))
        inflation = (1 + max(alike, 0.0)) / (1 - min(max(alike, 0.0), 0.9))
        inverse = np.linalg.pinv(whole.T @ whole)
        error = float(rms * np.sqrt(inverse[0, 0] * inflation))
    return found, error


def normalise_reference(
    spectrum: xr.DataArray,
    edge: Edge,
    *,
    name: str = "reference",
    material: Material | None = None,
    scale: Scale = "auto",
) -> xr.DataArray:
    """Put one reference spectrum on an absolute scale, if what is known allows it.

    Parameters
    ----------
    spectrum : DataArray, dims (energy,)
        ``attrs["units"]`` is ``1`` (optical density), ``nm-1``, ``cm2 g-1`` or ``cm2`` (per atom
        of the edge element).
    edge : Edge
        The absorption edge.
    name : str
        Component name, for messages.
    material : Material, optional
        The sample; the component is meant at the sample's density of the edge element.
    scale : {"auto", "edge_jump", "none"}
        ``edge_jump`` ties the spectrum to tabulated cross-sections below and above the edge;
        ``auto`` divides optical densities by ``attrs["thickness_nm"]`` if it is there, and else
        ties them where it is possible; ``none`` leaves them relative.

    Returns
    -------
    DataArray, dims (energy,)
        In nm-1, or in units of ``1`` where no absolute scale can be had, at increasing energies;
        ``attrs["treatment"]`` says what was done, ``attrs["relative_error"]`` is the standard
        error of the scale where it is known: given, or that of the edge jump. A coordinate
        ``errors`` is scaled along. What has been normalised is returned as it is.

    Raises
    ------
    InputError
        An edge jump was asked for but the spectrum has no pre-edge or post-edge, or the formula
        or density it takes is missing.
    """
    units = str(spectrum.attrs.get("units", "1"))
    if "treatment" in spectrum.attrs and (units == "nm-1" or scale != "edge_jump"):
        return spectrum
    tidy, steps = _tidied(spectrum, name)
    made = _scaled(tidy, edge, name, material, scale)
    steps = [*steps, str(made.attrs["treatment"])]
    made.attrs["treatment"] = "; ".join(steps)
    LOG.info("reference '%s': %s", name, made.attrs["treatment"])
    if material is not None and made.attrs["units"] == "nm-1":
        _check_against_tables(made, edge, material, name)
    return made


def _scaled(
    spectrum: xr.DataArray, edge: Edge, name: str, material: Material | None, scale: Scale
) -> xr.DataArray:
    """The rule by which a spectrum gets its absolute scale."""
    units = str(spectrum.attrs.get("units", "1"))
    if units == "nm-1" and scale != "edge_jump":
        return _result(spectrum, 1.0, "nm-1", "as given, per nm")
    thickness = float(spectrum.attrs.get("thickness_nm", 0.0))
    if units == "1" and thickness > 0 and scale == "auto":
        return _per_thickness(spectrum, thickness)
    if units == "1" and (scale == "none" or (scale == "auto" and material is None)):
        return _result(spectrum, 1.0, "1", "as given, optical density")
    if material is None:
        raise InputError(
            f"a spectrum in '{units}' needs the sample's composition and density",
            where=f"reference '{name}'",
            remedy="Set sample.formula and sample.density_g_cm3.",
        )
    if scale == "edge_jump":
        return _tie_to_tables(spectrum, edge, material, name)
    if units == "cm2 g-1":
        factor = material.density_g_cm3 * 1e-7
        return _result(spectrum, factor, "nm-1", "mass absorption times the sample's density")
    if units == "cm2":
        factor = number_density(edge.element, material) * 1e14
        return _result(spectrum, factor, "nm-1", "per atom, times atoms per volume")
    if units != "1":
        raise InputError(
            f"units '{units}' are not those of an absorption spectrum",
            where=f"reference '{name}'",
            remedy="Use OD, per nm, cm2/g or per atom (key 'units').",
        )
    try:
        return _tie_to_tables(spectrum, edge, material, name)
    except InputError as error:
        LOG.warning(
            "reference '%s': %s; amounts, and with them fractions, stay relative to the references",
            name,
            error.what,
        )
        return _result(spectrum, 1.0, "1", "as given, optical density: " + error.what)


def _per_thickness(spectrum: xr.DataArray, thickness: float) -> xr.DataArray:
    """Optical density over a known thickness."""
    made = _result(spectrum, 1.0 / thickness, "nm-1", f"divided by its {thickness:g} nm")
    error = float(spectrum.attrs.get("thickness_error_nm", 0.0)) / thickness
    if error > 0:
        made.attrs.setdefault("relative_error", error)
    return made


def _result(
    spectrum: xr.DataArray,
    factor: float,
    units: str,
    treatment: str,
    offset: Spectrum | float = 0.0,
) -> xr.DataArray:
    """A spectrum times a factor, plus an offset; errors are scaled along."""
    attrs = {**spectrum.attrs, "units": units, "treatment": treatment}
    made = spectrum.copy(data=factor * spectrum.values + offset).assign_attrs(attrs)
    if "errors" in made.coords:
        errors = made.coords["errors"]
        made = made.assign_coords(
            errors=("energy", factor * errors.values, {**errors.attrs, "units": units})
        )
    return made


def _tidied(spectrum: xr.DataArray, name: str) -> tuple[xr.DataArray, list[str]]:
    """Finite points at increasing energies, each once; what had to be done to get there."""
    energy = np.asarray(spectrum.energy.values, dtype=float)
    finite = np.isfinite(energy) & np.isfinite(spectrum.values.astype(float))
    if np.unique(energy[finite]).size < MIN_POINTS:
        raise InputError(
            f"it has fewer than {MIN_POINTS} energies with a value", where=f"reference '{name}'"
        )
    steps = []
    if not finite.all():
        steps.append(f"{int((~finite).sum())} points without a value left out")
    tidy = spectrum.astype(float)[finite]
    order = np.diff(energy[finite])
    if (order < 0).any():
        steps.append("energies sorted")
        tidy = tidy.sortby("energy")
    if np.unique(energy[finite]).size < tidy.size:
        steps.append("values at one energy averaged")
        tidy = _averaged(tidy)
    return tidy.assign_attrs(spectrum.attrs), steps


def _averaged(spectrum: xr.DataArray) -> xr.DataArray:
    """One value an energy; the energies are sorted already."""
    energy, inverse = np.unique(spectrum.energy.values, return_inverse=True)
    count = np.bincount(inverse)
    coords = {"energy": ("energy", energy, spectrum.energy.attrs)}
    values = np.bincount(inverse, weights=spectrum.values) / count
    made = xr.DataArray(values, dims="energy", coords=coords, name=spectrum.name)
    if "errors" in spectrum.coords:
        variance = np.bincount(inverse, weights=spectrum.coords["errors"].values ** 2)
        errors = ("energy", np.sqrt(variance) / count, spectrum.coords["errors"].attrs)
        made = made.assign_coords(errors=errors)
    return made


def _cover(spectrum: xr.DataArray, energy: Spectrum, name: str) -> None:
    low, high = float(spectrum.energy[0]), float(spectrum.energy[-1])
    outside = (energy < low - COVERAGE_TOLERANCE_EV) | (energy > high + COVERAGE_TOLERANCE_EV)
    if outside.any():
        raise InputError(
            f"it covers {low:.2f} to {high:.2f} eV, but {int(outside.sum())} of {energy.size}"
            f" frames lie outside ({energy[0]:.2f} to {energy[-1]:.2f} eV)",
            where=f"reference '{name}'",
            remedy="Use a reference measured over the whole range of the stack.",
        )


def _check_against_tables(
    spectrum: xr.DataArray, edge: Edge, material: Material, name: str
) -> None:
    """Warn about a reference in nm-1 whose pre-edge absorption is far from the tables."""
    energy = spectrum.energy.values
    pre = energy < edge.first_eV - BELOW_EDGE_EV
    if not pre.any():
        return
    table = float(np.mean(tabulated_absorption(energy[pre], material)))
    ratio = float(np.mean(spectrum.values[pre])) / table
    if not 1 / TABLE_DISAGREEMENT < ratio < TABLE_DISAGREEMENT:
        LOG.warning(
            "reference '%s': its pre-edge absorption is %.2f times the tabulated %.4g per nm of"
            " %s; a spectrum without its pre-edge, another density or wrong units would do that",
            name, ratio, table, material.formula,
        )  # fmt: skip


def reference_from_pixels(
    od: xr.DataArray,
    edge: Edge,
    *,
    errors: xr.DataArray | None = None,
    region: Mask | None = None,
    material: Material | None = None,
    thickness_nm: float | None = None,
    thickness_error_nm: float = 0.0,
    energy_shift: float = 0.0,
    energy_scale: float = 1.0,
    scale: Scale = "auto",
    name: str = "pristine",
) -> xr.DataArray:
    """Make a reference of pixels whose state is known, such as a pristine particle of the same day.

    Choose thin pixels, whose highest peak stays below an optical density of about 1.

    Parameters
    ----------
    od : DataArray, dims (energy,) or (energy, ...)
        Optical density of the region (``attrs["pixel_count"]`` says of how many pixels), or of
        pixels, which are averaged; pixels without data at some energy are left out.
    edge : Edge
        The absorption edge.
    errors : DataArray, optional
        Standard errors in the shape of `od`. Without them those of pixels follow from their
        scatter about the mean spectrum, scaled to each.
    region : ndarray of bool, optional
        Which pixels to take, in the shape of the pixels of `od`.
    material : Material, optional
        What the region is made of, with the density of the sample; for the edge jump.
    thickness_nm, thickness_error_nm : float, optional
        Mean thickness of the region and its standard error; then no edge jump is needed.
    energy_shift, energy_scale : float
        Calibration of these pixels' energies, see `reference_set`.
    scale : {"auto", "edge_jump", "none"}
        See `normalise_reference`: "auto" takes the thickness if it is given, else the edge jump
        if there is one.
    name : str
        Name of the component.

    Returns
    -------
    DataArray, dims (energy,)
        As `normalise_reference` makes it, with standard errors in the coordinate ``errors``;
        ``attrs["treatment"]`` says what was done.

    Raises
    ------
    InputError
        No pixel has data at every energy, or an edge jump was asked for where there is none.
    """
    values, spread, count = _mean_spectrum(od, errors, region, name)
    if float(np.nanmax(values)) > THICK_REFERENCE_OD:
        LOG.warning(
            "reference '%s': an optical density of %.1f is high for a reference: its peaks are"
            " flattened by stray light and by the width of the beam's line", name, values.max()
        )  # fmt: skip
    recorded = np.asarray(od.energy.values, dtype=float)
    middle = 0.5 * (recorded[0] + recorded[-1])
    true = middle + energy_scale * (recorded - middle) + energy_shift
    spectrum = xr.DataArray(
        values,
        dims="energy",
        coords={
            "energy": ("energy", true, {"units": "eV", "long_name": "photon energy"}),
            "errors": ("energy", spread, {"units": "1"}),
        },
        name=name,
        attrs={"units": "1"},
    )
    if thickness_nm is not None:
        spectrum.attrs |= {"thickness_nm": thickness_nm, "thickness_error_nm": thickness_error_nm}
    made = normalise_reference(spectrum, edge, name=name, material=material, scale=scale)
    made.attrs["treatment"] = f"mean of {count} pixels; {made.attrs['treatment']}"
    return made


def _mean_spectrum(
    od: xr.DataArray, errors: xr.DataArray | None, region: Mask | None, name: str
) -> tuple[Spectrum, Spectrum, int]:
    """Mean spectrum of pixels, its standard errors, and how many pixels there were."""
    values = np.asarray(od.values, dtype=float).reshape(od.sizes["energy"], -1)
    complete = np.isfinite(values).all(axis=0)
    if region is not None:
        complete &= np.asarray(region, dtype=bool).ravel()
    if od.ndim > 1 and not complete.any():
        raise InputError("no pixel has data at every energy", where=f"reference '{name}'")
    if od.ndim == 1:
        complete[:] = True
    values, count = values[:, complete], int(complete.sum())
    mean = values.mean(axis=1)
    if od.ndim == 1 and errors is not None:
        return mean, np.asarray(errors.values, dtype=float), int(od.attrs.get("pixel_count", 1))
    if errors is not None:
        given = np.asarray(errors.values, dtype=float).reshape(od.sizes["energy"], -1)[:, complete]
        return mean, np.asarray(np.sqrt(np.sum(given**2, axis=1)) / count), count
    if count < 2:
        return mean, np.full(mean.size, np.nan), count
    design = np.column_stack([mean, np.ones(mean.size)])
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    spare = max(count - 1, 1) * (1 - 2 / mean.size)
    return mean, np.asarray(np.sqrt(np.sum(rest**2, axis=1) / spare / count)), count


def normalise_references(
    spectra: Mapping[str, xr.DataArray],
    edge: Edge,
    *,
    material: Material | None = None,
    scales: Mapping[str, Scale] | None = None,
) -> dict[str, xr.DataArray]:
    """Put the spectra of all components on one scale; `reference_set` then takes them as they are.

    Parameters
    ----------
    spectra : mapping of component name to DataArray (energy,)
        As `normalise_reference` takes them.
    edge : Edge
        The absorption edge.
    material : Material, optional
        Composition and density of the sample.
    scales : mapping, optional
        Scale rule of each component, see `normalise_reference`.

    Returns
    -------
    dict of str to DataArray (energy,)
        All in nm-1, or all in optical density.

    Raises
    ------
    InputError
        Absolute and relative spectra are mixed, or one cannot be normalised as wanted.
    """
    normal = {
        name: normalise_reference(
            spectrum, edge, name=name, material=material, scale=(scales or {}).get(name, "auto")
        )
        for name, spectrum in spectra.items()
    }
    if len({str(s.attrs["units"]) for s in normal.values()}) > 1:
        relative = [n for n, s in normal.items() if s.attrs["units"] == "1"]
        raise InputError(
            f"{', '.join(relative)} is in optical density and the others are absolute",
            where="references",
            remedy="Add 'scale: edge_jump' to it, or give all of them in the same units.",
        )
    return normal


def reference_set(
    spectra: Mapping[str, xr.DataArray],
    energy: Spectrum,
    edge: Edge,
    *,
    material: Material | None = None,
    scales: Mapping[str, Scale] | None = None,
    broadening_eV: Mapping[str, float] | None = None,
    energy_shift: float = 0.0,
    energy_scale: float = 1.0,
    extra_broadening_eV: float = 0.0,
) -> xr.Dataset:
    """Reference spectra of all components on the energies of a stack.

    Parameters
    ----------
    spectra : mapping of component name to DataArray (energy,)
        As `normalise_reference` takes them, or as `normalise_references` gave them.
    energy : ndarray, shape (n_energy,)
        Recorded energies of the stack in eV.
    edge : Edge
        The absorption edge.
    material : Material, optional
        Composition and density of the sample.
    scales : mapping, optional
        Scale rule of each component, see `normalise_reference`.
    broadening_eV : mapping, optional
        Gaussian FWHM by which a component's spectrum is broadened, where the stack was recorded
        at a lower energy resolution than the reference.
    energy_shift, energy_scale : float
        True energies are ``middle + energy_scale * (recorded - middle) + energy_shift`` in eV,
        with the middle of the recorded ones.
    extra_broadening_eV : float
        Gaussian FWHM by which all components are broadened, in quadrature with `broadening_eV`.

    Returns
    -------
    Dataset, dims (energy,)
        One variable a component and ``<component>_slope``, its derivative by the true energy;
        units nm-1 if all references are absolute, else ``1``. ``attrs["relative_error"]`` of a
        component is the standard error of its scale, where it is known.

    Raises
    ------
    InputError
        A reference does not cover the energies, or absolute and relative ones are mixed.
    """
    normal = normalise_references(spectra, edge, material=material, scales=scales)
    recorded = np.asarray(energy, dtype=float)
    middle = 0.5 * (recorded[0] + recorded[-1])
    true = middle + energy_scale * (recorded - middle) + energy_shift
    columns: dict[str, tuple[str, Spectrum, dict[str, object]]] = {}
    units = "1"
    for name, spectrum in normal.items():
        _cover(spectrum, recorded, name)
        width = float(np.hypot((broadening_eV or {}).get(name, 0.0), extra_broadening_eV))
        values, slope = _interpolate(spectrum, true, width)
        kept = ("units", "treatment", "valence", "relative_error")
        attrs = {key: spectrum.attrs[key] for key in kept if key in spectrum.attrs}
        units = str(attrs["units"])
        columns[name] = ("energy", values, {**attrs, "long_name": f"reference {name}"})
        slope_units = "nm-1 eV-1" if units == "nm-1" else "eV-1"
        columns[f"{name}_slope"] = ("energy", slope, {"units": slope_units})
    axis = {"energy": ("energy", recorded, {"units": "eV"})}
    return xr.Dataset(columns, coords=axis, attrs={"units": units})


@lru_cache(maxsize=1)
def _nodes() -> tuple[Spectrum, Spectrum]:
    """Places, in standard deviations, and weights of a quadrature over a Gaussian."""
    places, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return places, weights / weights.sum()


def _interpolate(
    spectrum: xr.DataArray, energy: Spectrum, fwhm: float
) -> tuple[Spectrum, Spectrum]:
    """Values and slopes at the given energies, convolved with a Gaussian of the given FWHM.

    Held constant outside the spectrum. The convolution is a Gauss-Hermite quadrature, so that
    values and slopes belong together and vary smoothly with the width.
    """
    own = spectrum.energy.values
    spline = CubicSpline(own, spectrum.values)
    nodes, weights = np.zeros(1), np.ones(1)
    if fwhm > 0:
        nodes, weights = _nodes()
        nodes = nodes * fwhm_to_sigma(fwhm)
    places = energy[:, None] + nodes
    inside = np.clip(places, own[0], own[-1])
    slope = np.where(inside == places, spline(inside, 1), 0.0)
    return np.asarray(spline(inside) @ weights), np.asarray(slope @ weights)
