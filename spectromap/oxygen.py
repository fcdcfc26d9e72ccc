"""Oxygen book-keeping: from a composition and mean oxidation states to the oxygen that is lost.

For a layered oxide of Li_a, transition metals M_i of content x_i and state z_i, and O_(n - delta),
charge balance is ``2 (n - delta) = a + sum x_i z_i``. The Mn3+ of discharged particles therefore
counts the oxygen that has left: two Mn3+ for every oxygen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special
from scipy.constants import Avogadro

from spectromap.schema import LOG, InputError

__all__ = ["FINDINGS", "Measured", "mean_fraction", "oxygen_balance"]

Array = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
#: Values by name, complex so that their imaginary parts carry a derivative.
Values = dict[str, complex]
Change = dict[str, float]
#: Variables of a Dataset: dims, values, attributes.
Columns = dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]

MODELS = ("vacancy", "densified")

#: What a measured Li:TM, density or both say about the two structures.
FINDINGS = {
    "not compared": "neither Li:TM nor density was given",
    "vacancy": "the lost oxygen leaves vacancies; the densified structure is rejected",
    "densified": "the lattice has densified; oxygen vacancies are rejected",
    "in part": "each structure by itself is rejected, a mixture of both is not",
    "undecided": "neither structure is rejected",
    "neither": "both structures are rejected, and so is a mixture of both",
}
#: A structure is rejected below this probability, and values disagree beyond so many errors.
SIGNIFICANCE, DISAGREEMENT = 0.05, 1.96
#: Mean fractions beyond these are no fractions, whatever the noise.
FRACTION_RANGE = (-0.5, 1.5)
#: Fewer agglomerates than this do not tell how much agglomerates differ.
MIN_AGGLOMERATES = 4
NM3_PER_CM3 = 1e21
#: So small that nothing of second order is left in double precision.
COMPLEX_STEP = 1e-30


@dataclass(frozen=True)
class Measured:
    """A value with its standard errors.

    Parameters
    ----------
    value : float
        The value.
    error : float
        Random standard error, independent of everything else.
    systematic : float
        Standard error that the value shares, in full and with the same sign, with its counterpart
        in the pristine state: of references, energy calibration, the same standards.

    Raises
    ------
    InputError
        A value that is not finite, or a negative error.
    """

    value: float
    error: float = 0.0
    systematic: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise InputError(f"{self.value!r} is no finite number", where="value")
        for name in ("error", "systematic"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise InputError(f"{getattr(self, name)!r} is no number from 0 up", where=name)

    @property
    def total(self) -> float:
        """Random and systematic error together."""
        return float(np.hypot(self.error, self.systematic))


#: States of the pristine material that are taken for granted unless others are given.
PRISTINE_STATES = {"Ni": Measured(2.0), "Co": Measured(3.0)}


def mean_fraction(particles: xr.Dataset, fraction: str, maps: xr.Dataset | None = None) -> Measured:
    """Mean fraction of a component in all that was seen, weighted by volume.

    Parameters
    ----------
    particles : Dataset, dims (particle,)
        As `spectromap.segment.particle_table` makes it. All particles with a fraction count, used
        or not: neither the border of the field nor overlap changes what they are made of.
    fraction : str
        Name of the mapped component, such as "mn3".
    maps : Dataset, dims (y, x), optional
        Maps with ``<fraction>_fraction_systematic``, ``thickness`` and ``particle_label``, for the
        systematic error; without them it is zero.

    Returns
    -------
    Measured
        ``sum(w f) / sum(w)`` with ``w`` area times thickness. The random error is that of a sample
        of the electrode: the scatter between agglomerates (those outside count one by one), or
        between primaries where there are fewer than four agglomerates, which is said; never less
        than the noise of the maps.

    Raises
    ------
    InputError
        A column is missing or no particle has a fraction.

    Notes
    -----
    The scatter is the jackknife over those units, which allows for large ones among them:
    B. Efron and C. Stein, Ann. Stat. 9, 586 (1981).
    """
    names = (f"{fraction}_fraction", f"{fraction}_fraction_errors", "area", "thickness")
    for name in (*names, "agglomerate"):
        if name not in particles:
            raise InputError(
                f"the column '{name}' is missing",
                where="particles",
                remedy="Make the table with spectromap.segment.particle_table.",
            )
    f, f_errors, area, thickness = (np.asarray(particles[n].values, float) for n in names)
    seen = np.isfinite(f) & np.isfinite(f_errors) & (area * thickness > 0)
    if not seen.any():
        raise InputError("no particle has a fraction", where="particles")
    f, f_errors, weight = f[seen], f_errors[seen], (area * thickness)[seen]
    weight = weight / weight.sum()
    mean = float(weight @ f)
    noise = float(np.sqrt(np.sum((weight * f_errors) ** 2)))
    units = _units(np.asarray(particles["agglomerate"].values).astype(int)[seen])
    share = np.bincount(units, weights=weight)
    away = np.bincount(units, weights=weight * (f - mean))
    scatter = 0.0
    if share.size > 1:
        left_out = away / (1.0 - share)
        scatter = float(np.sqrt((share.size - 1) / share.size * np.sum(left_out**2)))
    return Measured(mean, max(scatter, noise), _systematic(maps, fraction))


def _units(agglomerate: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Number of the independent unit of every particle, from 0."""
    count = np.unique(agglomerate[agglomerate > 0]).size
    if 0 < count < MIN_AGGLOMERATES:
        LOG.warning(
            "oxygen: the error of the mean holds for the agglomerates seen (%d); fewer than %d do"
            " not tell how much agglomerates differ", count, MIN_AGGLOMERATES,
        )  # fmt: skip
    own = -1 - np.arange(agglomerate.size)
    grouped = (agglomerate > 0) & (count >= MIN_AGGLOMERATES)
    numbers = np.where(grouped, agglomerate, own)
    return np.asarray(np.unique(numbers, return_inverse=True)[1])


def _systematic(maps: xr.Dataset | None, fraction: str) -> float:
    """Mean systematic error over the particles: what pixels share does not average out."""
    if maps is None:
        return 0.0
    name = f"{fraction}_fraction_systematic"
    for needed in (name, "thickness", "particle_label"):
        if needed not in maps:
            raise InputError(f"the variable '{needed}' is missing", where="maps")
    errors, thickness = (np.asarray(maps[n].values, float) for n in (name, "thickness"))
    use = (np.asarray(maps["particle_label"].values) > 0) & np.isfinite(errors) & (thickness > 0)
    return float(np.average(errors[use], weights=thickness[use])) if use.any() else 0.0


@dataclass(frozen=True)
class _Inputs:
    """Values by name, and what may change them by one standard error at a time.

    Each source of error is a dict of the changes it makes; the sources are independent.
    """

    values: Change = field(default_factory=dict)
    random: list[Change] = field(default_factory=list)
    systematic: list[Change] = field(default_factory=list)

    def add(self, name: str, measured: Measured) -> None:
        """One value by itself."""
        self.values[name] = measured.value
        self.random.append({name: measured.error})
        self.systematic.append({name: measured.systematic})

    def add_pair(self, name: str, before: Measured, now: Measured | None) -> None:
        """A value of the pristine state and of now; None: it is one and the same."""
        first, second = f"{name} before", f"{name} now"
        same = now is None
        now = before if now is None else now
        self.values.update({first: before.value, second: now.value})
        self.systematic.append({first: before.systematic, second: now.systematic})
        if same:
            self.random.append({first: before.error, second: before.error})
        else:
            self.random.extend([{first: before.error}, {second: now.error}])


@dataclass(frozen=True)
class _Composition:
    """The pristine formula: metals in its order, and what is exact about it."""

    metals: tuple[str, ...]
    contents: Change
    mapped: str
    valences: tuple[float, float]
    formula_units: float
    masses: Change


def oxygen_balance(
    fraction: Measured,
    formula: str,
    valences: tuple[float, float] = (4.0, 3.0),
    charge: Literal["discharged", "charged"] = "discharged",
    element: str = "Mn",
    *,
    pristine_fraction: Measured = Measured(0.0),
    pristine_states: Mapping[str, Measured] | None = None,
    states: Mapping[str, Measured] | None = None,
    lithium: Measured | None = None,
    composition_errors: Mapping[str, float] | None = None,
    cell_volume_nm3: Measured | None = None,
    formula_units: float = 3.0,
    measured_li_tm: Measured | None = None,
    measured_density_g_cm3: Measured | None = None,
    bulk_state: Measured | None = None,
) -> xr.Dataset:
    """Oxygen that was lost, the two structures this can leave behind, and which one is there.

    Parameters
    ----------
    fraction : Measured
        Mean fraction of the reduced form of `element`, as `mean_fraction` gives it.
    formula : str
        Pristine composition, such as Li1.18Ni0.21Mn0.53Co0.08O2; its oxygen is the full lattice,
        its lithium and metals together fill all cation sites.
    valences : (float, float)
        State of `element` where the fraction is 0 and where it is 1.
    charge : {"discharged", "charged"}
        A charged sample is refused: its metals are oxidised again and its lithium is out, so
        that its Mn3+ does not count oxygen.
    element : str
        The metal that was mapped.
    pristine_fraction : Measured
        Mean fraction in the pristine state, by the same analysis; by default none, exactly.
    pristine_states : mapping of element to Measured, optional
        States of the other metals in the pristine material; Ni 2 and Co 3 unless given.
    states : mapping of element to Measured, optional
        Their states now. A metal that is not named has its pristine state still, error and all.
    lithium : Measured, optional
        Lithium per formula unit now, on as many metals; by default what the formula says.
    composition_errors : mapping of element to float, optional
        Standard errors of the numbers in the formula; systematic.
    cell_volume_nm3 : Measured, optional
        Volume of the unit cell [nm3], one for both structures; for densities.
    formula_units : float
        Formula units in that cell; 3 in the hexagonal one of R-3m.
    measured_li_tm, measured_density_g_cm3 : Measured, optional
        Li:TM [1] and density [g/cm3] of the sample, compared with both structures.
    bulk_state : Measured, optional
        Mean state of `element` from bulk X-ray absorption, compared with that of the maps.

    Returns
    -------
    Dataset, dims (element, model)
        Every value with ``_errors`` (random) and ``_systematic``. ``state``, ``state_pristine``
        and ``state_change`` of the mapped element. ``delta``, oxygen missing per formula unit as
        the states say, ``delta_pristine``, the same before, and ``delta_relative``, their
        difference, which is what is known best; ``delta_by_element``, its parts.
        ``released_fraction``, ``delta_relative`` over the oxygen of the formula (times 100: at%),
        ``released_fraction_absolute`` from ``delta``; ``oxygen_per_reduced``, lost oxygen over
        newly reduced atoms of the mapped element: 0.5 if nothing else is reduced. ``tm_state`` and
        ``tm_state_pristine``: mean state of the metals if the pristine formula balances;
        ``tm_state_absolute`` and ``tm_state_pristine_absolute``: as the states are.
        Along ``model``, "vacancy" and "densified": ``formula``, ``content`` (model, element),
        ``oxygen``, ``li_tm``, ``molar_mass`` [g/mol] per formula unit and, with a cell,
        ``density`` [g/cm3]; ``density_ratio``, densified over vacancy with one common cell.
        For each of Li:TM and density that was measured: ``<name>_difference``, measured less
        model, ``<name>_z``, the same in errors of both, and ``<name>_densified_share`` of the
        release, 0 for vacancies and 1 for densification. ``p_value`` of each model by all that was
        measured, and ``finding``, one of `FINDINGS`. ``bulk_difference``, state of the maps less
        that of the bulk, and ``bulk_z``.

    Raises
    ------
    InputError
        A charged sample; a formula without lithium, oxygen or the mapped element; a metal without
        a state; states that no oxide can have; a measured value without an error.

    Notes
    -----
    Vacancies: metals and lithium stay, O is ``n - delta_relative``. Densified: the oxygen lattice
    and the cation sites are full again, so that the same mean state z needs
    ``(2 n - sites) / (z - 1)`` metals, and lithium has the rest; Li:TM is z - 2 for two cations on
    two oxygen. Both have the same mean state, which spectra cannot tell apart. Oxygen that a
    densified lattice has lost together with lithium oxide changes no state and is not counted.
    Errors are propagated to first order from independent sources, with exact derivatives by the
    complex step: W. Squire and G. Trapp, SIAM Rev. 40, 110 (1998).
    The structures are those of P. M. Csernica et al., Nat. Energy 6, 642 (2021).
    """
    _check_sample(charge, fraction, pristine_fraction)
    composition = _composition(formula, element, valences, formula_units)
    inputs = _collect(composition, composition_errors or {}, lithium)
    _add_states(inputs, composition, pristine_states or {}, states or {})
    inputs.add_pair(
        f"state {element}",
        _as_state(pristine_fraction, valences),
        _as_state(fraction, valences),
    )
    given = {
        "cell_volume_nm3": cell_volume_nm3,
        "measured_li_tm": measured_li_tm,
        "measured_density_g_cm3": measured_density_g_cm3,
        "bulk_state": bulk_state,
    }
    _check_given(given)
    for name, measured in given.items():
        if measured is not None:
            inputs.add(name, measured)
    found = _propagate(inputs, lambda values: _outputs(values, composition))
    _check_outcome(found)
    result = _as_dataset(found, composition)
    result.attrs |= {"pristine_formula": formula, "mapped_element": element}
    return result


def _check_sample(charge: str, fraction: Measured, pristine: Measured) -> None:
    """Refuse what does not count oxygen."""
    if charge != "discharged":
        raise InputError(
            f"the sample is '{charge}', and reduced metals count lost oxygen only in a discharged"
            " one: charging oxidises them again",
            where="charge",
            remedy="Map the same electrode discharged.",
        )
    low, high = FRACTION_RANGE
    for name, measured in (("fraction", fraction), ("pristine_fraction", pristine)):
        if not low < measured.value < high:
            raise InputError(
                f"{measured.value:g} is no fraction", where=name, remedy="Give it from 0 to 1."
            )


def _composition(
    formula: str, mapped: str, valences: tuple[float, float], formula_units: float
) -> _Composition:
    """Take a formula apart."""
    import xraydb

    try:
        contents = {k: float(v) for k, v in xraydb.chemparse(formula).items() if v > 0}
    except ValueError as error:
        raise InputError(
            f"'{formula}' is not a chemical formula",
            where="formula",
            remedy="Write it like Li1.18Ni0.21Mn0.53Co0.08O2.",
        ) from error
    for needed in ("Li", "O", mapped):
        if needed not in contents:
            raise InputError(f"'{formula}' holds no {needed}", where="formula")
    metals = tuple(name for name in contents if name not in ("Li", "O"))
    if mapped not in metals:
        raise InputError(f"'{mapped}' is no metal of '{formula}'", where="element")
    if valences[0] == valences[1]:
        raise InputError("both forms have the same state", where="valences")
    if not 0.0 < formula_units < np.inf:
        raise InputError(f"{formula_units!r} is no positive number", where="formula_units")
    masses = {name: float(xraydb.atomic_mass(name)) for name in contents}
    return _Composition(metals, contents, mapped, valences, formula_units, masses)


def _collect(
    composition: _Composition, errors: Mapping[str, float], lithium: Measured | None
) -> _Inputs:
    """Contents of metals and lithium with their errors; the formula's errors are systematic."""
    known = (*composition.metals, "Li")
    _check_names(errors, known, "composition_errors")
    inputs = _Inputs()
    for name in composition.metals:
        content = Measured(composition.contents[name], systematic=errors.get(name, 0.0))
        inputs.add(f"content {name}", content)
    before = Measured(composition.contents["Li"], systematic=errors.get("Li", 0.0))
    if lithium is not None and lithium.value <= 0:
        raise InputError(f"{lithium.value:g} is no content", where="lithium")
    inputs.add_pair("lithium", before, lithium)
    return inputs


def _check_names(names: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{', '.join(unknown)} cannot be given here",
            where=where,
            remedy=f"The elements are {', '.join(known)}.",
        )


def _add_states(
    inputs: _Inputs,
    composition: _Composition,
    before: Mapping[str, Measured],
    now: Mapping[str, Measured],
) -> None:
    """States of the metals that were not mapped."""
    others = tuple(name for name in composition.metals if name != composition.mapped)
    for where, given in (("pristine_states", before), ("states", now)):
        _check_names(given, others, where)
        for name, measured in given.items():
            if not 0.0 < measured.value <= 8.0:
                raise InputError(f"{name} {measured.value:g}+ is no state of a metal", where=where)
    for name in others:
        state = before.get(name, PRISTINE_STATES.get(name))
        if state is None:
            raise InputError(
                f"the state of {name} is not known",
                where="pristine_states",
                remedy=f"Add it, such as {name}: {{value: 3.0, error: 0.05}}.",
            )
        inputs.add_pair(f"state {name}", state, now.get(name))


def _as_state(fraction: Measured, valences: tuple[float, float]) -> Measured:
    """Mean state of the mapped element."""
    slope = valences[1] - valences[0]
    return Measured(
        valences[0] + slope * fraction.value,
        abs(slope) * fraction.error,
        abs(slope) * fraction.systematic,
    )


def _check_given(given: Mapping[str, Measured | None]) -> None:
    """Refuse values that are none, and measurements that cannot be compared."""
    for name, measured in given.items():
        if measured is None:
            continue
        if measured.value <= 0:
            raise InputError(f"{measured.value:g} is no positive number", where=name)
        if name != "cell_volume_nm3" and measured.total <= 0:
            raise InputError(
                "it has no error, so nothing can be compared with it",
                where=name,
                remedy="Give its standard error.",
            )
    if given["measured_density_g_cm3"] is not None and given["cell_volume_nm3"] is None:
        raise InputError(
            "a density can be compared only with that of a known cell",
            where="measured_density_g_cm3",
            remedy="Give cell_volume_nm3.",
        )


def _ratio(above: Complex | complex, below: Complex | complex) -> Complex:
    """Quotient; NaN where nothing is divided by nothing."""
    bottom = np.asarray(below, complex)
    safe = np.where(bottom.real == 0.0, 1.0, bottom)
    return np.asarray(np.where(bottom.real == 0.0, np.nan, np.asarray(above) / safe))


def _outputs(values: Values, composition: _Composition) -> dict[str, Complex]:
    """Everything that follows from the values."""
    metals = composition.metals
    content = np.array([values[f"content {m}"] for m in metals])
    before = np.array([values[f"state {m} before"] for m in metals])
    now = np.array([values[f"state {m} now"] for m in metals])
    lithium, lithium_now = values["lithium before"], values["lithium now"]
    full, total = composition.contents["O"], content.sum()
    parts = np.append(0.5 * content * (before - now), 0.5 * (lithium - lithium_now))
    lost = parts.sum()
    at_first = full - 0.5 * (lithium + content @ before)
    mapped = metals.index(composition.mapped)
    reduced = (
        content[mapped]
        * (now[mapped] - before[mapped])
        / (composition.valences[1] - composition.valences[0])
    )
    state = (2.0 * (full - lost) - lithium_now) / total
    result = {
        "state": now[mapped],
        "state_pristine": before[mapped],
        "state_change": now[mapped] - before[mapped],
        "delta": at_first + lost,
        "delta_pristine": at_first,
        "delta_relative": lost,
        "delta_by_element": parts,
        "released_fraction": lost / full,
        "released_fraction_absolute": (at_first + lost) / full,
        "oxygen_per_reduced": _ratio(lost, reduced),
        "tm_state": state,
        "tm_state_pristine": (2.0 * full - lithium) / total,
        "tm_state_absolute": content @ now / total,
        "tm_state_pristine_absolute": content @ before / total,
    }
    # Metals of the densified structure over those of the pristine one.
    more = (2.0 * full - lithium - total) / (state - 1.0) / total
    result["content"] = np.array(
        [[*content, lithium_now], [*(content * more), lithium + total * (1.0 - more)]]
    )
    result["oxygen"] = np.array([full - lost, full])
    result |= _structures(result["content"], result["oxygen"], values, composition)
    if "bulk_state" in values:
        result["bulk_difference"] = result["state"] - values["bulk_state"]
    return {name: np.asarray(value, complex) for name, value in result.items()}


def _structures(
    content: Complex, oxygen: Complex, values: Values, composition: _Composition
) -> dict[str, Complex]:
    """What can be measured of both structures, and where the sample lies between them.

    The share of metals in the cations and the density are linear in the share of the release that
    is densified; Li:TM is not.
    """
    masses = composition.masses
    metal = content[:, :-1].sum(axis=1)
    mass = content @ np.array([masses[m] for m in (*composition.metals, "Li")])
    mass = mass + oxygen * masses["O"]
    li_tm = content[:, -1] / metal
    result = {"li_tm": li_tm, "molar_mass": mass, "density_ratio": mass[1] / mass[0]}
    if "measured_li_tm" in values:
        seen, cations = values["measured_li_tm"], 1.0 / (1.0 + li_tm)
        result["li_tm_difference"] = seen - li_tm
        share = _ratio(1.0 / (1.0 + seen) - cations[0], cations[1] - cations[0])
        result["li_tm_densified_share"] = share
    if "cell_volume_nm3" in values:
        cells = NM3_PER_CM3 / (Avogadro * values["cell_volume_nm3"])
        result["density"] = density = composition.formula_units * mass * cells
        if "measured_density_g_cm3" in values:
            seen = values["measured_density_g_cm3"]
            result["density_difference"] = seen - density
            share = _ratio(seen - density[0], density[1] - density[0])
            result["density_densified_share"] = share
    return result


@dataclass(frozen=True)
class _Found:
    """Values, and what every source of error does to them, along a first axis."""

    values: dict[str, Array]
    random: dict[str, Array]
    systematic: dict[str, Array]

    def changes(self, name: str) -> Array:
        """All sources together."""
        return np.concatenate([self.random[name], self.systematic[name]])

    def error(self, name: str) -> Array:
        """Random and systematic error together."""
        return _norm(self.changes(name))


def _norm(changes: Array) -> Array:
    return np.asarray(np.sqrt(np.sum(changes**2, axis=0)))


def _propagate(inputs: _Inputs, function: Callable[[Values], dict[str, Complex]]) -> _Found:
    """Values of a function and their changes by one standard error of each source."""
    plain = {name: complex(value) for name, value in inputs.values.items()}
    values = {name: np.asarray(value.real) for name, value in function(plain).items()}

    def changes(sources: list[Change]) -> dict[str, Array]:
        moved = [
            function({k: v + 1j * COMPLEX_STEP * source.get(k, 0.0) for k, v in plain.items()})
            for source in sources
        ]
        return {name: np.array([m[name].imag for m in moved]) / COMPLEX_STEP for name in values}

    return _Found(values, changes(inputs.random), changes(inputs.systematic))


def _check_outcome(found: _Found) -> None:
    """Refuse states that no oxide has; say when oxygen seems to have come in."""
    oxygen, state = found.values["oxygen"], float(found.values["tm_state"])
    if state <= 1.0 or float(oxygen.min()) <= 0 or found.values["content"].min() <= 0:
        raise InputError(
            f"a mean state of {state:.2f}+ of the metals cannot be balanced by this formula",
            where="formula",
            remedy="Check the formula and the states.",
        )
    lost, error = float(found.values["delta_relative"]), float(found.error("delta_relative"))
    if lost < 0 and -lost > DISAGREEMENT * error:
        LOG.warning(
            "oxygen: %.4f +- %.4f more oxygen per formula unit than in the pristine state; a"
            " charged sample or another reference would do that", -lost, error,
        )  # fmt: skip


def _p_values(found: _Found, names: list[str]) -> Array:
    """Probability of differences this large under each model, shape (model,).

    What the measurements share, above all the error of the released oxygen, is in the covariance.
    """
    probability = []
    for model in range(len(MODELS)):
        differences = np.array([found.values[n][model] for n in names])
        changes = np.column_stack([found.changes(n)[:, model] for n in names])
        covariance = changes.T @ changes
        chi2 = float(differences @ np.linalg.solve(covariance, differences))
        probability.append(float(special.chdtrc(len(names), chi2)))
    return np.array(probability)


def _finding(found: _Found, measured: list[str], p_values: Array) -> str:
    """The key of `FINDINGS`."""
    if not measured:
        return "not compared"
    accepted = [name for name, p in zip(MODELS, p_values, strict=True) if p >= SIGNIFICANCE]
    if accepted:
        return accepted[0] if len(accepted) == 1 else "undecided"
    names = [f"{name}_densified_share" for name in measured]
    shares = [float(found.values[n]) for n in names]
    errors = [float(found.error(n)) for n in names]
    between = all(0.0 < s < 1.0 for s in shares)
    apart = found.changes(names[0]) - found.changes(names[-1])
    agree = abs(shares[0] - shares[-1]) <= DISAGREEMENT * float(_norm(apart))
    return "in part" if between and agree and np.isfinite(errors).all() else "neither"


def _formula(composition: _Composition, content: Array, oxygen: float) -> str:
    """A formula that can be read again."""
    numbers = dict(zip((*composition.metals, "Li"), content, strict=True)) | {"O": oxygen}
    parts = (f"{name}{numbers[name]:.4f}".rstrip("0").rstrip(".") for name in composition.contents)
    return "".join(parts)


#: Name, units and description of everything that has errors.
_COLUMNS: dict[str, tuple[str, str]] = {
    "state": ("1", "mean state of the mapped element"),
    "state_pristine": ("1", "the same in the pristine state"),
    "state_change": ("1", "mean state less that of the pristine state"),
    "delta": ("1", "oxygen missing per formula unit, as the states say"),
    "delta_pristine": ("1", "the same in the pristine state"),
    "delta_relative": ("1", "oxygen lost per formula unit since the pristine state"),
    "delta_by_element": ("1", "oxygen lost by the change of this element"),
    "released_fraction": ("1", "lost oxygen over that of the pristine formula"),
    "released_fraction_absolute": ("1", "missing oxygen over that of the pristine formula"),
    "oxygen_per_reduced": ("1", "lost oxygen per newly reduced atom of the mapped element"),
    "tm_state": ("1", "mean state of the metals, if the pristine formula balances"),
    "tm_state_pristine": ("1", "the same in the pristine state"),
    "tm_state_absolute": ("1", "mean state of the metals, as their states are"),
    "tm_state_pristine_absolute": ("1", "the same in the pristine state"),
    "content": ("1", "atoms per formula unit"),
    "oxygen": ("1", "oxygen per formula unit"),
    "li_tm": ("1", "Li:TM"),
    "molar_mass": ("g mol-1", "mass of a formula unit"),
    "density": ("g cm-3", "density with the common cell"),
    "density_ratio": ("1", "density of the densified over the vacancy structure, one cell"),
    "li_tm_difference": ("1", "measured Li:TM less that of the model"),
    "li_tm_densified_share": ("1", "share of the release that is densified, by Li:TM"),
    "density_difference": ("g cm-3", "measured density less that of the model"),
    "density_densified_share": ("1", "share of the release that is densified, by density"),
    "bulk_difference": ("1", "mean state of the maps less that of the bulk"),
}
_DIMS = {"delta_by_element": ("element",), "content": ("model", "element")} | {
    name: ("model",)
    for name in (
        "oxygen",
        "li_tm",
        "molar_mass",
        "density",
        "li_tm_difference",
        "density_difference",
    )
}


def _as_dataset(found: _Found, composition: _Composition) -> xr.Dataset:
    """Values with both errors, formulae, and how the structures compare."""
    columns: Columns = {}
    for name, (units, text) in _COLUMNS.items():
        if name not in found.values:
            continue
        dims = _DIMS.get(name, ())
        columns[name] = (dims, found.values[name], {"units": units, "long_name": text})
        for kind, changes in (("errors", found.random), ("systematic", found.systematic)):
            long_name = f"{'random' if kind == 'errors' else 'systematic'} error of {name}"
            attrs = {"units": units, "long_name": long_name}
            columns[f"{name}_{kind}"] = (dims, _norm(changes[name]), attrs)
    formulae = [
        _formula(composition, content, float(oxygen))
        for content, oxygen in zip(found.values["content"], found.values["oxygen"], strict=True)
    ]
    columns["formula"] = (("model",), np.array(formulae, object), {"long_name": "composition"})
    coords = {
        "element": np.array([*composition.metals, "Li"], dtype=object),
        "model": np.array(MODELS, dtype=object),
    }
    return xr.Dataset({**columns, **_comparison(found)}, coords)


def _comparison(found: _Found) -> Columns:
    """Differences in errors, the probability of each structure, and what they say."""
    columns: Columns = {}
    for name in ("li_tm", "density", "bulk"):
        difference = f"{name}_difference"
        if difference in found.values:
            z = found.values[difference] / found.error(difference)
            attrs = {"units": "1", "long_name": "difference over its error"}
            columns[f"{name}_z"] = (_DIMS.get(difference, ()), z, attrs)
    measured = [name for name in ("li_tm", "density") if f"{name}_z" in columns]
    p_values = np.full(len(MODELS), np.nan)
    if measured:
        p_values = _p_values(found, [f"{name}_difference" for name in measured])
    attrs = {"units": "1", "long_name": "probability of what was measured under the model"}
    columns["p_value"] = (("model",), p_values, attrs)
    finding = _finding(found, measured, p_values)
    columns["finding"] = ((), np.array(finding, object), {"long_name": FINDINGS[finding]})
    return columns
