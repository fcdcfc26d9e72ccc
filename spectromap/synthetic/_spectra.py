"""Edges, and the absorption of pure components on an absolute scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import erf, voigt_profile

from spectromap._numerics import FloatArray, fwhm_to_sigma
from spectromap.schema import InputError

FORMULA = "Li1.18Ni0.21Mn0.53Co0.08O2"
DENSITY = 4.25
#: Sets the number of nodes of the quadrature over the line of the monochromator.
NODE_SPACING_EV = 0.2

Line = tuple[float, float, float, float]


@dataclass(frozen=True)
class EdgeModel:
    """Lines and steps of an absorption edge; energies in eV, heights in edge jumps.

    Attributes
    ----------
    element : str
        Symbol of the absorbing element.
    pre, post : tuple of float
        Where the tables are smooth and far enough from any edge to be trusted.
    steps : tuple of (centre, height, width)
        Error-function steps of the continuum; the heights sum to one.
    lines : dict of component name to tuple of (centre, height, HWHM, sigma)
        Voigt lines. The first component is the oxidised one, the second the reduced one.
    valences : dict of component name to float
        For the run description.
    reduced_compound : tuple of (formula, density)
        What a reference of the reduced component would be measured on.
    energies : tuple of (start, stop, step)
        Pieces of the default energy axis.
    span : tuple of float
        Range of a reference that reaches well before and after the edge.
    """

    element: str
    pre: tuple[float, float]
    post: tuple[float, float]
    steps: tuple[tuple[float, float, float], ...]
    lines: dict[str, tuple[Line, ...]]
    valences: dict[str, float]
    reduced_compound: tuple[str, float]
    energies: tuple[tuple[float, float, float], ...]
    span: tuple[float, float]

    @property
    def reduced(self) -> str:
        """Name of the component that is mapped as a fraction."""
        return list(self.lines)[1]


#: Edges that can be simulated. Positions follow published spectra of oxides (MnO2, LaMnO3, MnO;
#: NiO and NiO2; charged and discharged layered oxides at O K) to about 0.3 eV. For Ni see Y. Koyama
#: et al., J. Phys. Chem. B 109, 10749 (2005); for O, F. M. F. de Groot et al., Phys. Rev. B 40,
#: 5715 (1989), and W.-S. Yoon et al., J. Phys. Chem. B 106, 2526 (2002).
EDGES: dict[str, EdgeModel] = {
    "Mn L3": EdgeModel(
        element="Mn",
        pre=(575.0, 625.0),
        post=(688.0, 755.0),
        steps=((642.6, 2 / 3, 1.0), (653.6, 1 / 3, 1.0)),
        lines={
            "mn4": (
                (641.0, 4.1, 0.25, 0.30),
                (642.1, 1.4, 0.35, 0.35),
                (643.3, 5.9, 0.45, 0.45),
                (644.7, 1.1, 0.55, 0.60),
                (652.4, 1.3, 0.60, 0.50),
                (654.0, 2.2, 0.70, 0.60),
            ),
            "mn3": (
                (640.6, 2.0, 0.30, 0.35),
                (642.0, 4.7, 0.50, 0.65),
                (643.5, 1.6, 0.50, 0.70),
                (644.9, 0.5, 0.60, 0.70),
                (651.6, 0.9, 0.60, 0.60),
                (653.2, 1.9, 0.70, 0.70),
            ),
            "mn2": (
                (640.2, 7.4, 0.25, 0.30),
                (641.6, 2.6, 0.35, 0.40),
                (643.8, 1.2, 0.45, 0.50),
                (651.0, 1.3, 0.55, 0.45),
                (652.6, 1.5, 0.60, 0.50),
            ),
        },
        valences={"mn4": 4, "mn3": 3, "mn2": 2},
        reduced_compound=("Mn2O3", 4.5),
        energies=((635, 639, 0.5), (639, 645.5, 0.2), (645.5, 651, 0.75), (651, 660.1, 0.9)),
        span=(615.0, 705.0),
    ),
    "Ni L3": EdgeModel(
        element="Ni",
        pre=(806.0, 840.0),
        post=(885.0, 990.0),
        steps=((855.0, 2 / 3, 1.0), (872.3, 1 / 3, 1.0)),
        lines={
            "ni4": (
                (853.3, 1.8, 0.35, 0.35),
                (855.5, 5.6, 0.50, 0.55),
                (871.2, 1.0, 0.60, 0.50),
                (872.9, 1.4, 0.60, 0.60),
            ),
            "ni2": (
                (852.9, 6.0, 0.35, 0.35),
                (854.6, 2.2, 0.50, 0.50),
                (856.6, 0.7, 0.60, 0.80),
                (870.1, 1.2, 0.55, 0.45),
                (871.2, 1.1, 0.55, 0.45),
            ),
        },
        valences={"ni4": 4, "ni2": 2},
        reduced_compound=("NiO", 6.67),
        energies=((845, 850, 0.5), (850, 858, 0.2), (858, 866.1, 1.0)),
        span=(825.0, 905.0),
    ),
    "O K": EdgeModel(
        element="O",
        pre=(450.0, 525.0),
        post=(575.0, 625.0),
        steps=((535.5, 1.0, 1.8),),
        lines={
            "o_oxidised": (
                (528.6, 1.0, 0.25, 0.55),
                (530.9, 1.1, 0.30, 0.70),
                (537.6, 0.5, 0.80, 1.60),
                (543.0, 0.6, 1.00, 2.20),
            ),
            "o_reduced": (
                (529.6, 0.5, 0.25, 0.50),
                (532.0, 0.5, 0.30, 0.60),
                (537.0, 0.5, 0.80, 1.60),
                (541.2, 0.7, 1.00, 2.20),
            ),
        },
        valences={"o_oxidised": -1, "o_reduced": -2},
        reduced_compound=("Li2O", 2.01),
        energies=((520, 526, 0.75), (526, 535, 0.25), (535, 550.1, 1.0)),
        span=(505.0, 590.0),
    ),
}


def _edge(name: str) -> EdgeModel:
    """Model of an edge by its name."""
    if name not in EDGES:
        raise InputError(
            f"'{name}' is not an edge that can be simulated",
            where="edge",
            remedy=f"Choose one of {', '.join(EDGES)}.",
        )
    return EDGES[name]


@lru_cache(maxsize=32)
def _power_law(element: str, window: tuple[float, float]) -> tuple[float, float]:
    """Exponent and log factor of an element's tabulated cm2/g in a window free of its edges."""
    import xraydb

    energy = np.linspace(*window, 26)
    exponent, factor = np.polyfit(np.log(energy), np.log(xraydb.mu_elam(element, energy)), 1)
    return float(exponent), float(factor)


def _mass_densities(formula: str, density: float) -> dict[str, float]:
    """Each element's share of the density, in g/cm3 times 1e-7, which makes cm2/g into nm-1."""
    import xraydb

    masses = {s: n * xraydb.atomic_mass(s) for s, n in xraydb.chemparse(formula).items()}
    return {s: 1e-7 * density * mass / sum(masses.values()) for s, mass in masses.items()}


@lru_cache(maxsize=128)
def _without(element: str, formula: str, density: float, energy: bytes) -> FloatArray:
    """Tabulated absorption in nm-1 of all elements but one at energies given as float64.

    Tables are read point by point, and both components of every simulation ask for the same.
    """
    import xraydb

    at = np.frombuffer(energy)
    shares = _mass_densities(formula, density)
    del shares[element]
    return sum((w * xraydb.mu_elam(s, at) for s, w in shares.items()), np.zeros(at.size))


def absorption(
    edge: str, component: str, formula: str, density: float, energy: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Pre-edge background, continuum step and white lines of a component, each in nm-1.

    The step is that of the edge's element alone, so it is the same per atom in every compound:
    what else absorbs is smooth, and the tables round off only the element's own edge.
    """
    model = _edge(edge)
    own = _mass_densities(formula, density)[model.element]
    others = _without(model.element, formula, density, energy.tobytes())

    def element(window: tuple[float, float], at: Any) -> Any:
        return own * np.exp(np.polyval(_power_law(model.element, window), np.log(at)))

    step = sum(
        height * 0.5 * (1 + erf((energy - centre) / width)) for centre, height, width in model.steps
    )
    lines = sum(
        height * voigt_profile(energy - centre, sigma, hwhm) / voigt_profile(0.0, sigma, hwhm)
        for centre, height, hwhm, sigma in model.lines[component]
    )
    before, after = (element(window, energy) for window in (model.pre, model.post))
    first = model.steps[0][0]
    jump = float(element(model.post, first) - element(model.pre, first))
    return others + before, (after - before) * step, jump * lines


def reference_spectra(
    edge: str = "Mn L3",
    *,
    energies: Sequence[float] | FloatArray | None = None,
    formula: str = FORMULA,
    density_g_cm3: float = DENSITY,
) -> xr.Dataset:
    """True linear absorption of the pure components at infinite energy resolution.

    Far from the edge it is the tabulated absorption of the formula; the continuum steps carry the
    tabulated edge jump, and the white lines are Voigt profiles in units of that jump.

    Parameters
    ----------
    edge : str
        One of `EDGES`.
    energies : sequence of float, optional
        Energies in eV; every 0.1 eV from well below to well above the edge if left out.
    formula, density_g_cm3 : str, float
        What the particles are made of; the same for every component, so that the amount of a
        component is the thickness of particle that is in this state.

    Returns
    -------
    Dataset, dims (energy,)
        One variable a component, in nm-1.

    Raises
    ------
    InputError
        An edge that is not known here.

    References
    ----------
    W. T. Elam, B. D. Ravel and J. R. Sieber, Radiat. Phys. Chem. 63, 121 (2002), through xraydb.
    """
    model = _edge(edge)
    energy = span(model) if energies is None else np.asarray(energies, dtype=float)
    spectra = xr.Dataset(coords={"energy": ("energy", energy, {"units": "eV"})})
    for name in model.lines:
        parts = absorption(edge, name, formula, density_g_cm3, energy)
        attrs = {"units": "nm-1", "long_name": f"linear absorption of {name}"}
        spectra[name] = ("energy", np.sum(parts, axis=0), attrs)
    return spectra


def span(model: EdgeModel) -> FloatArray:
    """Energies of a reference, every 0.1 eV."""
    low, high = model.span
    return np.linspace(low, high, round((high - low) * 10) + 1)


def default_energies(edge: str = "Mn L3") -> FloatArray:
    """Energies in eV at which a stack is recorded unless others are asked for, densest at L3.

    Raises
    ------
    InputError
        An edge that is not known here.
    """
    pieces = [np.arange(*piece) for piece in _edge(edge).energies]
    return np.round(np.concatenate(pieces), 3)


def spectral_nodes(fwhm: float) -> tuple[FloatArray, FloatArray]:
    """Offsets in eV and weights of a quadrature over a Gaussian line."""
    if fwhm <= 0:
        return np.zeros(1), np.ones(1)
    # More nodes for a wider line, so that they stay closer than the white lines are wide.
    count = 3 + 2 * int(np.ceil(fwhm / NODE_SPACING_EV))
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes * fwhm_to_sigma(fwhm), weights / weights.sum()
