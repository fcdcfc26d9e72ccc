"""Reference spectra: units, absolute scale from tabulated cross-sections, one energy axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    "number_density",
    "reference_set",
]

Scale = Literal["auto", "edge_jump", "none"]
Spectrum = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Tables are not to be trusted this close to an edge (white lines, edge energy), in eV.
BELOW_EDGE_EV = 4.0
ABOVE_EDGE_EV = 10.0
#: From here on the wings of the white lines do not matter.
FAR_FROM_EDGE_EV = 20.0
COMMON_EDGES = ("Mn L3", "Fe L3", "Co L3", "Ni L3", "O K", "C K", "N K", "F K", "Ti L3", "Cu L3")
#: Frames may lie this far outside a reference before it counts as not covering them.
COVERAGE_TOLERANCE_EV = 0.5
#: A reference whose pre-edge is off the tables by more than this factor is reported.
TABLE_DISAGREEMENT = 1.5


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


def _power_law(energy: Spectrum, anchors: Spectrum, material: Material) -> Spectrum:
    """Tabulated absorption in nm-1, continued from two energies as a power of the energy."""
    total = tabulated_absorption(anchors, material)
    slope = np.log(total[1] / total[0]) / np.log(anchors[1] / anchors[0])
    return np.asarray(total[1] * (energy / anchors[1]) ** slope)


def _without_edge(energy: Spectrum, edge: Edge, material: Material) -> Spectrum:
    """What would be absorbed without the edge, in nm-1."""
    return _power_law(energy, np.array([0.94, 0.975]) * edge.first_eV, material)


def _with_edge(energy: Spectrum, edge: Edge, material: Material) -> Spectrum:
    """What is absorbed above the edge; the tables themselves are rounded off close to it."""
    return _power_law(energy, edge.last_eV + np.array([25.0, 45.0]), material)


def _regions(spectrum: xr.DataArray, edge: Edge, name: str) -> Mask:
    """Energies of a spectrum that the tables describe: well below and well above the edge."""
    energy = spectrum.energy.values
    below, above = edge.first_eV - energy, energy - edge.last_eV
    chosen = np.zeros(energy.size, dtype=bool)
    for side, distance, near in (
        ("pre-edge", below, BELOW_EDGE_EV),
        ("post-edge", above, ABOVE_EDGE_EV),
    ):
        if not (distance > near).any():
            raise InputError(
                f"it covers {energy[0]:.1f} to {energy[-1]:.1f} eV, so it has no {side} ({near:g}"
                " eV or more from the edge) from which an edge jump could be taken",
                where=f"reference '{name}'",
                remedy="Measure the reference over the whole edge, or give it per nm, in cm2/g or"
                " per atom.",
            )
        # The wings of the white lines reach far: keep away from them if the spectrum allows it.
        far = distance > FAR_FROM_EDGE_EV
        chosen |= far if far.sum() > 3 else distance > near
    return chosen


def _tie_to_tables(spectrum: xr.DataArray, edge: Edge, material: Material, name: str) -> Spectrum:
    """Scale a spectrum so that its edge jump is that of the sample's edge element, in nm-1.

    Away from the edge the spectrum is the tabulated jump of the edge element, times a factor,
    on a background: the power law of what absorbs besides, and a constant.
    """
    chosen = _regions(spectrum, edge, name)
    energy, values = spectrum.energy.values, spectrum.values.astype(float)
    background = _without_edge(energy, edge, material)
    above = energy > edge.first_eV
    jump = np.where(above, _with_edge(energy, edge, material) - background, 0.0)
    columns = [jump, background]
    if np.ptp(energy[chosen & ~above]) > 5.0 and np.ptp(energy[chosen & above]) > 5.0:
        columns.append(np.ones(energy.size))
    design = np.column_stack(columns)
    parameters, *_ = np.linalg.lstsq(design[chosen], values[chosen], rcond=None)
    if not parameters[0] > 0:
        raise InputError(
            "its post-edge is not above its pre-edge, so there is no edge jump",
            where=f"reference '{name}'",
            remedy="Check the file: columns, energy units, and whether it is absorption.",
        )
    LOG.info("reference '%s': edge jump scaled by %.4g to the tables", name, 1 / parameters[0])
    own_background = design[:, 1:] @ parameters[1:]
    return np.asarray((values - own_background) / parameters[0] + background)


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
        ``auto`` does so for optical densities where it is possible; ``none`` leaves them relative.

    Returns
    -------
    DataArray, dims (energy,)
        In nm-1, or in units of ``1`` where no absolute scale can be had; ``attrs["treatment"]``
        says what was done.

    Raises
    ------
    InputError
        An edge jump was asked for but the spectrum has no pre-edge or post-edge, or the formula
        or density it takes is missing.
    """
    units = str(spectrum.attrs.get("units", "1"))
    if units == "nm-1" and scale != "edge_jump":
        return _result(spectrum, spectrum.values, "nm-1", "as given, per nm")
    if units == "1" and (scale == "none" or (scale == "auto" and material is None)):
        return _result(spectrum, spectrum.values, "1", "as given, optical density")
    if material is None:
        raise InputError(
            f"a spectrum in '{units}' needs the sample's composition and density",
            where=f"reference '{name}'",
            remedy="Set sample.formula and sample.density_g_cm3.",
        )
    if scale == "edge_jump":
        values = _tie_to_tables(spectrum, edge, material, name)
        return _result(spectrum, values, "nm-1", "scaled to the edge jump of the tables")
    if units == "cm2 g-1":
        values = spectrum.values * material.density_g_cm3 * 1e-7
        return _result(spectrum, values, "nm-1", "mass absorption times the sample's density")
    if units == "cm2":
        atoms = number_density(edge.element, material)
        return _result(
            spectrum, spectrum.values * atoms * 1e14, "nm-1", "per atom, times atoms per volume"
        )
    if units != "1":
        raise InputError(
            f"units '{units}' are not those of an absorption spectrum",
            where=f"reference '{name}'",
            remedy="Use OD, per nm, cm2/g or per atom (key 'units').",
        )
    try:
        values = _tie_to_tables(spectrum, edge, material, name)
    except InputError as error:
        LOG.warning("%s; thickness stays relative to the references", error.what)
        return _result(spectrum, spectrum.values, "1", "as given, optical density")
    return _result(spectrum, values, "nm-1", "scaled to the edge jump of the tables")


def _result(spectrum: xr.DataArray, values: Spectrum, units: str, treatment: str) -> xr.DataArray:
    attrs = {**spectrum.attrs, "units": units, "treatment": treatment}
    return spectrum.copy(data=np.asarray(values, dtype=float)).assign_attrs(attrs)


def _broadened(spectrum: xr.DataArray, fwhm: float) -> xr.DataArray:
    """Convolve a spectrum on any energy axis with a Gaussian of the given FWHM in eV."""
    energy = spectrum.energy.values
    sigma = fwhm_to_sigma(fwhm)
    fine = np.arange(energy[0] - 5 * sigma, energy[-1] + 5 * sigma, sigma / 5)
    inside = np.clip(fine, energy[0], energy[-1])
    values = CubicSpline(energy, spectrum.values)(inside)
    kernel = np.exp(-0.5 * (np.arange(-25, 26) / 5.0) ** 2)
    smooth = np.convolve(values, kernel / kernel.sum(), mode="same")
    return spectrum.copy(data=np.interp(energy, fine, smooth))


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
    """Warn about a reference whose pre-edge absorption is far from the tables."""
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


def reference_set(
    spectra: Mapping[str, xr.DataArray],
    energy: Spectrum,
    edge: Edge,
    *,
    material: Material | None = None,
    scales: Mapping[str, Scale] | None = None,
    broadening_eV: Mapping[str, float] | None = None,
    energy_shift: float = 0.0,
) -> xr.Dataset:
    """Reference spectra of all components on the energies of a stack.

    Parameters
    ----------
    spectra : mapping of component name to DataArray (energy,)
        As `normalise_reference` takes them.
    energy : ndarray, shape (n_energy,)
        Recorded energies of the stack in eV.
    edge : Edge
        The absorption edge.
    material : Material, optional
        Composition and density of the sample.
    scales : mapping, optional
        Scale rule of each component, see `normalise_reference`.
    broadening_eV : mapping, optional
        Gaussian FWHM by which a component's spectrum is broadened first, where the stack was
        recorded at a lower energy resolution than the reference.
    energy_shift : float
        True minus recorded energy of the stack, in eV.

    Returns
    -------
    Dataset, dims (energy,)
        One variable a component and ``<component>_slope``, its derivative by energy; units nm-1
        if all references are absolute, else ``1``.

    Raises
    ------
    InputError
        A reference does not cover the energies, or absolute and relative ones are mixed.
    """
    normal = {}
    for name, spectrum in spectra.items():
        width = (broadening_eV or {}).get(name, 0.0)
        raw = _broadened(spectrum, width) if width > 0 else spectrum
        normal[name] = normalise_reference(
            raw,
            edge,
            name=name,
            material=material,
            scale=(scales or {}).get(name, "auto"),
        )
        _cover(normal[name], np.asarray(energy, float), name)
    units = {str(s.attrs["units"]) for s in normal.values()}
    if len(units) > 1:
        relative = [n for n, s in normal.items() if s.attrs["units"] == "1"]
        raise InputError(
            f"{', '.join(relative)} is in optical density and the others are absolute",
            where="references",
            remedy="Add 'scale: edge_jump' to it, or give all of them in the same units.",
        )
    if material is not None and units == {"nm-1"}:
        for name, spectrum in normal.items():
            _check_against_tables(spectrum, edge, material, name)
    result = xr.Dataset(coords={"energy": ("energy", np.asarray(energy, float), {"units": "eV"})})
    result.attrs["units"] = units.pop()
    for name, spectrum in normal.items():
        values, slope = _interpolate(spectrum, result.energy.values + energy_shift)
        attrs = {k: v for k, v in spectrum.attrs.items() if k in ("units", "treatment", "valence")}
        result[name] = ("energy", values, {**attrs, "long_name": f"reference {name}"})
        slope_units = "nm-1 eV-1" if attrs["units"] == "nm-1" else "eV-1"
        result[f"{name}_slope"] = ("energy", slope, {"units": slope_units})
    return result


def _interpolate(spectrum: xr.DataArray, energy: Spectrum) -> tuple[Spectrum, Spectrum]:
    """Values and slopes at the given energies, held constant outside the spectrum."""
    own = spectrum.energy.values
    spline = CubicSpline(own, spectrum.values)
    inside = np.clip(energy, own[0], own[-1])
    slope = np.where(inside == energy, spline(inside, 1), 0.0)
    return np.asarray(spline(inside)), slope
