"""Several states of one sample, such as numbers of cycles, compared with each other.

Every state has a result of its own, so that two of them differ by their state, by the particles
that were seen, and by what each scan has to itself: its I0, its energy calibration, its shifts.
Only the scales of the references are common to all. Errors of differences hold all of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray
from scipy import interpolate, special

from spectromap import heterogeneity, oxygen, profiles, references, unmix
from spectromap._numerics import generator
from spectromap.heterogeneity._contrasts import holm
from spectromap.oxygen import Measured
from spectromap.radial import pooling
from spectromap.radial.states import State, fit_states
from spectromap.schema import LOG, SCHEMA_VERSION, InputError

__all__ = ["compare_states", "name_states"]

Array = NDArray[np.floating[Any]]
#: Variables of a Dataset: dims, values, attributes.
Columns = dict[str, tuple[Any, ...]]
Datasets = dict[str, xr.Dataset]

#: Groups of a result that a comparison needs.
NEEDED = ("spectra", "maps", "particles", "profiles", "models", "pooled")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Bins of the distributions, at least and at most.
BINS = (5, 30)
#: From so many agglomerates on, they are what is resampled.
MIN_AGGLOMERATES = 4
#: Resolutions that differ by more than this factor blur rims by visibly different amounts.
RESOLUTION_RATIO = 1.5


@dataclass(frozen=True)
class _State:
    """One state: its result, what is known of the sample, and options of its oxygen balance."""

    name: str
    cycles: float
    sample_state: str
    formula: str
    edge: str
    fraction: str
    groups: Datasets
    mean: Measured
    balance: dict[str, Any]

    @property
    def discharged(self) -> bool:
        return self.sample_state == "discharged"

    @property
    def components(self) -> list[str]:
        """Names of the components, as the references have them."""
        names = [str(name) for name in self.groups["spectra"].data_vars]
        return [n.removeprefix("reference_") for n in names if n.startswith("reference_")]

    def attribute(self, component: str, name: str) -> float:
        """A number that a reference carries; NaN where it does not."""
        reference = self.groups["spectra"][f"reference_{component}"]
        return float(reference.attrs.get(name, np.nan))

    @property
    def shared(self) -> float:
        """Systematic error of the mean fraction that all states have in common.

        It is that of the scales of the references: ``f (1 - f)`` times their relative errors,
        exact for two components and the most it can be for more.
        """
        of = {c: np.nan_to_num(self.attribute(c, "relative_error")) for c in self.components}
        own = of.pop(self.fraction, 0.0)
        scale = np.hypot(own, max(of.values(), default=0.0))
        f = float(np.clip(self.mean.value, 0.0, 1.0))
        return float(min(f * (1.0 - f) * scale, self.mean.systematic))

    @property
    def scan(self) -> float:
        """Systematic error of the mean fraction that only this scan has."""
        return float(np.sqrt(max(self.mean.systematic**2 - self.shared**2, 0.0)))

    @property
    def against_others(self) -> Measured:
        """The mean fraction, with as systematic error what it shares with other states."""
        random = float(np.hypot(self.mean.error, self.scan))
        return Measured(self.mean.value, random, self.shared)


# ------------------------------------------------------------------------------------- the states


def _group(tree: xr.DataTree, name: str) -> xr.Dataset | None:
    """A group of a result, None where it is missing."""
    entry = tree.children.get("entry")
    node = None if entry is None else entry.children.get(name)
    return None if node is None else node.to_dataset(inherit=False)


def _configuration(tree: xr.DataTree) -> dict[str, Any]:
    """The run description that a result carries, with the sample that its entry names."""
    process = _group(tree, "process")
    text = "" if process is None else str(process.attrs.get("configuration", ""))
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("its configuration cannot be read", where=_title(tree)) from error
    content = dict(content) if isinstance(content, dict) else {}
    attrs = tree["entry"].attrs if "entry" in tree.children else {}
    told = {"cycles": attrs.get("cycles"), "state": attrs.get("sample_state")}
    sample = {k: v for k, v in (content.get("sample") or {}).items() if v is not None}
    return content | {"sample": told | sample}


def _title(tree: xr.DataTree) -> str:
    """What a result calls itself."""
    attrs = tree["entry"].attrs if "entry" in tree.children else {}
    return str(attrs.get("title") or attrs.get("source_file") or "result")


def _cycles(sample: Mapping[str, Any]) -> float:
    cycles = sample.get("cycles")
    return float("nan") if cycles is None else float(cycles)


def name_states(results: Iterable[xr.DataTree]) -> dict[str, xr.DataTree]:
    """Name results by the state of their sample, for `compare_states`.

    Parameters
    ----------
    results : iterable of DataTree
        As `spectromap.pipeline.analyze` or `spectromap.read_result` return them.

    Returns
    -------
    dict of str to DataTree
        "pristine" for no cycles, else "1 cycle", "125 cycles"; with ", charged" where the sample
        was charged.

    Raises
    ------
    InputError
        A result does not say how many cycles its sample has seen, or two are of the same state.
    """
    named: dict[str, xr.DataTree] = {}
    for tree in results:
        sample = _configuration(tree)["sample"]
        cycles = _cycles(sample)
        if not np.isfinite(cycles):
            raise InputError(
                "it is not known how many cycles the sample has seen",
                where=_title(tree),
                remedy="Give sample.cycles in the run description.",
            )
        name = "pristine" if cycles == 0 else f"{cycles:g} cycle{'s' if cycles != 1 else ''}"
        name += ", charged" if sample.get("state") == "charged" else ""
        if name in named:
            raise _twice(f"{_title(named[name])} and {_title(tree)}", name)
        named[name] = tree
    return named


def _twice(names: str, state: str) -> InputError:
    return InputError(
        f"{names} are of the same state ({state})",
        where="results",
        remedy="Compare one result of each state, or correct sample.cycles and sample.state.",
    )


def _read(name: str, tree: xr.DataTree) -> _State:
    """What one result says of its state."""
    where = f"state '{name}'"
    found = {group: _group(tree, group) for group in NEEDED}
    groups = {group: dataset for group, dataset in found.items() if dataset is not None}
    missing = [group for group in NEEDED if group not in groups]
    if missing:
        raise InputError(
            f"the result has no group '{missing[0]}'",
            where=where,
            remedy="Only results with references and particles can be compared.",
        )
    fraction = str(groups["maps"].attrs.get("fraction", ""))
    particles = groups["particles"]
    if f"{fraction}_fraction" not in particles:
        raise InputError(f"its particles have no fraction '{fraction}'", where=where)
    if not _used(particles, fraction).any():
        raise InputError("the result has no particle that can be used", where=where)
    configuration = _configuration(tree)
    sample = configuration["sample"]
    edge = groups["maps"].attrs.get("edge") or configuration.get("edge")
    balance = _group(tree, "oxygen")
    formula = "" if balance is None else balance.attrs.get("pristine_formula", "")
    return _State(
        name=name,
        cycles=_cycles(sample),
        sample_state=str(sample.get("state") or ""),
        formula=str(sample.get("formula") or formula),
        edge=str(edge or references.guess_edge(groups["spectra"]["energy"].values)),
        fraction=fraction,
        groups=groups,
        mean=oxygen.mean_fraction(particles, fraction, groups["maps"]),
        balance=_balance_options(configuration.get("oxygen") or {}),
    )


def _balance_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a run description says of the other metals, the lithium and the formula."""
    options: dict[str, Any] = {
        name: {metal: Measured(**told) for metal, told in (section.get(name) or {}).items()}
        for name in ("pristine_states", "states")
    }
    if section.get("lithium"):
        options["lithium"] = Measured(**section["lithium"])
    return options | {"composition_errors": section.get("composition_errors")}


def _used(particles: xr.Dataset, fraction: str) -> NDArray[np.bool_]:
    """Particles that count."""
    values = np.asarray(particles[f"{fraction}_fraction"].values, float)
    return np.asarray(particles["used"].values.astype(bool) & np.isfinite(values))


def _read_all(results: Mapping[str, xr.DataTree]) -> list[_State]:
    """All states by cycles, discharged before charged; refuses what cannot be compared."""
    if len(results) < 2:
        raise InputError(
            f"{len(results)} result, but a comparison needs at least two",
            where="results",
            remedy="Give one result of every state.",
        )
    if not all(results):
        raise InputError("a state has no name", where="results")
    states = [_read(name, tree) for name, tree in results.items()]
    states.sort(key=lambda s: (np.nan_to_num(s.cycles, nan=np.inf), not s.discharged))
    first = states[0]
    for state in states[1:]:
        if _edge(state) != _edge(first):
            _refuse_pair(first, state, "edge", first.edge, state.edge)
        if state.fraction != first.fraction:
            _refuse_pair(first, state, "mapped fraction", first.fraction, state.fraction)
    for one, other in combinations(states, 2):
        if (one.cycles, one.sample_state) == (other.cycles, other.sample_state):
            raise _twice(f"'{one.name}' and '{other.name}'", f"{one.cycles:g} cycles")
    return states


def _edge(state: _State) -> tuple[str, float]:
    """The edge, however it is spelled."""
    edge = references.Edge(state.edge)
    return edge.element, edge.first_eV


def _refuse_pair(one: _State, other: _State, what: str, first: str, second: str) -> None:
    raise InputError(
        f"the {what} of '{one.name}' is {first}, that of '{other.name}' is {second}",
        where="results",
        remedy="Compare results of one edge and one component, by the same names.",
    )


def _find_reference(states: list[_State], name: str | None) -> int:
    """Position of the state that the others are compared with."""
    names = [state.name for state in states]
    if name is not None:
        if name not in names:
            raise InputError(
                f"there is no state '{name}'",
                where="reference",
                remedy=f"The states are {', '.join(names)}.",
            )
        return names.index(name)
    return next((i for i, state in enumerate(states) if state.discharged), 0)


# ----------------------------------------------------------------------- mean fraction and oxygen


def _with_errors(
    name: str, measured: list[Measured], text: str, dim: str = "state"
) -> dict[str, tuple[Any, ...]]:
    """Columns of values with both errors."""
    attrs = {"units": "1"}
    return {
        name: (dim, [m.value for m in measured], attrs | {"long_name": text}),
        f"{name}_errors": (dim, [m.error for m in measured], attrs),
        f"{name}_systematic": (dim, [m.systematic for m in measured], attrs),
    }


def _difference(one: Measured, other: Measured) -> Measured:
    """Difference of values whose systematic errors are one and the same, sign and all."""
    return Measured(
        one.value - other.value,
        float(np.hypot(one.error, other.error)),
        abs(one.systematic - other.systematic),
    )


def _means(states: list[_State], reference: int) -> Columns:
    """Mean fraction and mean state, and what changed since the reference."""
    fraction, element = states[0].fraction, _edge(states[0])[0]
    own = [state.mean for state in states]
    columns = _with_errors(f"{fraction}_mean", own, f"{fraction} fraction of all that was seen")
    others = [state.against_others for state in states]
    changes = _changes(others, reference)
    columns |= _with_errors(f"{fraction}_change", changes, "mean less that of the reference state")
    slopes = [_valences(state) for state in states]
    if all(ends is not None for ends in slopes):
        name, text = f"{element.lower()}_state", f"mean state of {element}"
        as_states = [_as_state(m, ends) for m, ends in zip(own, slopes, strict=True) if ends]
        columns |= _with_errors(name, as_states, text)
        as_states = [_as_state(m, ends) for m, ends in zip(others, slopes, strict=True) if ends]
        changes = _changes(as_states, reference)
        columns |= _with_errors(f"{name}_change", changes, f"{text} less that of the reference")
    return columns


def _changes(values: list[Measured], reference: int) -> list[Measured]:
    """Differences from the reference, which does not differ from itself."""
    base = values[reference]
    return [
        Measured(0.0) if row == reference else _difference(value, base)
        for row, value in enumerate(values)
    ]


def _valences(state: _State) -> tuple[float, float] | None:
    """State of the element where the fraction is 0 and 1; None where that is not known."""
    others = [c for c in state.components if c != state.fraction]
    if len(others) != 1 or state.fraction not in state.components:
        return None
    ends = tuple(state.attribute(c, "valence") for c in (others[0], state.fraction))
    return (ends[0], ends[1]) if np.isfinite(ends).all() else None


def _as_state(fraction: Measured, valences: tuple[float, float]) -> Measured:
    """Mean state that belongs to a mean fraction."""
    slope = valences[1] - valences[0]
    return Measured(
        valences[0] + slope * fraction.value,
        abs(slope) * fraction.error,
        abs(slope) * fraction.systematic,
    )


def _released(
    states: list[_State],
    reference: int,
    formula: str,
    metals: Mapping[str, Mapping[str, Measured]],
) -> tuple[Columns, str]:
    """Oxygen that was lost since the reference state, and why it is not known where it is not."""
    pristine = states[reference]
    remark = _why_no_oxygen(pristine, formula)
    values = np.full((len(states), 2, 3), np.nan)
    if not remark:
        try:
            values = np.stack([_lost(state, pristine, formula, metals) for state in states])
        except InputError as error:  # such as a metal whose state nobody has told
            remark = str(error)
    if remark:
        LOG.warning("series: no released oxygen: %s", remark)
    columns: Columns = {}
    for row, (name, text) in enumerate(_OXYGEN.items()):
        for column, suffix in enumerate(("", "_errors", "_systematic")):
            attrs = {"units": "1"} | ({} if suffix else {"long_name": text})
            columns[f"{name}{suffix}"] = ("state", values[:, row, column], attrs)
    return columns, remark


_OXYGEN = {
    "released_fraction": "oxygen lost since the reference state over that of the formula",
    "delta": "oxygen lost per formula unit since the reference state",
}


def _why_no_oxygen(pristine: _State, formula: str) -> str:
    """What is missing to count oxygen; empty if nothing is."""
    if not formula:
        return "the formula of the sample is not known"
    if _valences(pristine) is None:
        return "the valences of the references are not known"
    if not pristine.discharged:
        return f"the reference state, '{pristine.name}', is not known to be discharged"
    return ""


def _lost(
    state: _State,
    pristine: _State,
    formula: str,
    metals: Mapping[str, Mapping[str, Measured]],
) -> Array:
    """Rows of `_OXYGEN` with both errors for one state; NaN where it is not discharged."""
    valences = _valences(pristine)
    if not state.discharged or valences is None:
        return np.full((2, 3), np.nan)
    if state is pristine:
        return np.zeros((2, 3))
    before = state.balance["pristine_states"] | pristine.balance["states"]
    told = {"pristine_states": metals.get(pristine.name, before)}
    told["states"] = metals.get(state.name, state.balance["states"])
    balance = oxygen.oxygen_balance(
        state.against_others,
        formula,
        valences,
        element=_edge(state)[0],
        pristine_fraction=pristine.against_others,
        **state.balance | told,
    )
    ends = ("", "_errors", "_systematic")
    names = ("released_fraction", "delta_relative")
    return np.array([[float(balance[name + end]) for end in ends] for name in names])


# ------------------------------------------------------------------------------------ mean spectra


@dataclass(frozen=True)
class _Spectrum:
    """A mean spectrum per thickness at its true energies, and what would change it.

    `covariance` is that of the noise, `by_energy` the change per eV of the energy calibration,
    `by_fraction` the change per unit of the fraction; `columns` are the references (energy,
    component), and `shares` those of the components, which fit it.
    """

    energy: Array
    values: Array
    covariance: Array
    by_energy: Array
    by_fraction: Array
    columns: Array
    shares: Array

    def on(self, energy: Array) -> _Spectrum:
        """At other energies, by a cubic spline: linear in the values, so that errors follow."""
        spline = interpolate.CubicSpline(self.energy, np.eye(self.energy.size))
        matrix = np.asarray(spline(energy))
        return _Spectrum(
            energy,
            matrix @ self.values,
            matrix @ self.covariance @ matrix.T,
            matrix @ self.by_energy,
            matrix @ self.by_fraction,
            matrix @ self.columns,
            self.shares,
        )

    def apart(self, other: _Spectrum) -> Array:
        """Difference of the fit with its own references from that with another's.

        On the axis of the other, where its references are exact, it shows what interpolation has
        done to lines that few energies trace, and references that are not the same.
        """
        return np.asarray((self.columns - other.columns) @ self.shares)


def _spectrum(state: _State) -> _Spectrum:
    """The mean optical density without its offset, over the thickness that the references fit.

    With the fit ``od = R a + b``, the spectrum is ``(od - b) / sum(a)``. As `a` and `b` are linear
    in the optical density, so is a small change of the spectrum, through noise or through an error
    of the energies, which moves the references against the data.
    """
    spectra = state.groups["spectra"]
    recorded = np.asarray(spectra["energy"].values, float)
    names = state.components
    columns = np.column_stack([spectra[f"reference_{c}"].values.astype(float) for c in names])
    od, errors = (np.asarray(spectra[n].values, float) for n in ("mean_od", "mean_od_errors"))
    good = np.isfinite(od) & (errors > 0) & np.isfinite(columns).all(axis=1)
    energy, first, which = np.unique(recorded[good], return_index=True, return_inverse=True)
    weight = errors[good] ** -2.0
    total = np.bincount(which, weight)
    mean: NDArray[np.float64] = np.bincount(which, weight * od[good]) / total
    error = np.asarray(total**-0.5, dtype=np.float64)
    columns = columns[good][first]
    axes = {"energy": energy}
    known = xr.Dataset({c: ("energy", columns[:, k]) for k, c in enumerate(names)}, axes)
    parameters, covariance, _ = unmix.fit_spectrum(mean, error, known, baseline="constant")
    amounts, offset = parameters[:-1], parameters[-1]
    design = np.column_stack([columns, np.ones(energy.size)])
    solver = covariance @ (design.T / error**2)
    thickness = float(amounts.sum())
    values = (mean - offset) / thickness
    change = np.eye(energy.size) - solver[-1] - np.outer(values, solver[:-1].sum(axis=0))
    change /= thickness
    slope = np.gradient(columns @ amounts, energy, edge_order=1)
    mapped = names.index(state.fraction)
    rest = np.delete(amounts, mapped)
    others = np.delete(columns, mapped, axis=1) @ (rest / rest.sum())
    return _Spectrum(
        energy=_true_energy(spectra, recorded, energy),
        values=values,
        covariance=(change * error**2) @ change.T,
        by_energy=-change @ slope,
        by_fraction=columns[:, mapped] - others,
        columns=columns,
        shares=amounts / thickness,
    )


def _true_energy(spectra: xr.Dataset, recorded: Array, energy: Array) -> Array:
    """Calibrated energies."""
    scale = float(spectra["energy_scale"]) if "energy_scale" in spectra else 1.0
    middle = 0.5 * (recorded[0] + recorded[-1])
    return np.asarray(middle + scale * (energy - middle) + float(spectra["energy_shift"]))


def _spectra(states: list[_State], reference: int) -> Columns:
    """Mean spectra on one axis, and their differences from the reference's."""
    own = [_spectrum(state) for state in states]
    low, high = max(s.energy[0] for s in own), min(s.energy[-1] for s in own)
    axis = own[reference].energy
    axis = axis[(axis >= low) & (axis <= high)]
    if axis.size < 2:
        raise InputError("the states have no energies in common", where="results")
    made = [s.on(axis) for s in own]
    shift = [float(np.nan_to_num(s.groups["spectra"]["energy_shift_errors"])) for s in states]
    noise = np.array([np.diag(s.covariance) for s in made])
    sample = np.array([m.by_fraction * s.mean.error for m, s in zip(made, states, strict=True)])
    energy = np.array([m.by_energy * e for m, e in zip(made, shift, strict=True)])
    apart = np.array([m.apart(made[reference]) for m in made])
    values = np.array([s.values for s in made])
    total = noise + sample**2 + energy**2 + apart**2
    away = np.arange(len(states))[:, None] != reference
    units = str(states[0].groups["spectra"][f"reference_{states[0].fraction}"].attrs["units"])
    dims, attrs = ("state", "energy"), {"units": units}
    text = "mean optical density without offset, over the fitted thickness"
    difference = "mean spectrum less that of the reference state"
    return {
        "energy": ("energy", axis, {"units": "eV", "long_name": "photon energy"}),
        "mean_od": (dims, values, attrs | {"long_name": text}),
        "mean_od_errors": (dims, np.sqrt(noise + sample**2), attrs),
        "mean_od_systematic": (dims, np.hypot(energy, apart), attrs),
        "mean_od_difference": (dims, values - values[reference], attrs | {"long_name": difference}),
        "mean_od_difference_errors": (dims, np.sqrt(total + total[reference]) * away, attrs),
    }


# -------------------------------------------------------------------- profiles and distributions


def _profiles(states: list[_State]) -> Columns:
    """Mean profiles of the used particles on one axis of distance."""
    fraction, found = states[0].fraction, []
    for state in states:
        particles = state.groups["particles"]
        used = _used(particles, fraction)
        group = particles["used"].isel(particle=used)
        found.append(profiles.group_profiles(state.groups["profiles"], group).isel(group=0))
    widths = [float(np.diff(f["distance"].values).mean()) for f in found if f.sizes["distance"] > 1]
    step = max(widths, default=2.0 * float(found[0]["distance"].values[0]))
    end = max(float(f["distance"].values[-1]) for f in found)
    axis = step * (0.5 + np.arange(max(1, round(end / step + 0.5))))
    columns: Columns = {
        "distance": ("distance", axis, {"units": "nm", "long_name": "distance from the edge"})
    }
    for source, name in ((f"{fraction}_fraction", f"{fraction}_profile"), ("thickness",) * 2):
        target = "thickness_profile" if source == "thickness" else name
        units = found[0][source].attrs.get("units", "1")
        for suffix in ("", "_errors", "_spread"):
            values = np.stack([_interpolated(f, f"{source}{suffix}", axis) for f in found])
            columns[f"{target}{suffix}"] = (("state", "distance"), values, {"units": units})
    counts = np.stack([_interpolated(f, "particle_count", axis) for f in found])
    counts = np.nan_to_num(counts).round().astype(np.int32)
    columns["profile_particles"] = (("state", "distance"), counts, {"units": "1"})
    return columns


def _interpolated(profile: xr.Dataset, name: str, axis: Array) -> Array:
    """Values of a profile at other distances; errors too, which is cautious."""
    values = np.asarray(profile[name].values, float)
    known = np.isfinite(values)
    if not known.any():
        return np.full(axis.size, np.nan)
    distance = profile["distance"].values[known]
    return np.asarray(np.interp(axis, distance, values[known], left=np.nan, right=np.nan))


def _check_resolution(states: list[_State]) -> Columns:
    """The resolution of every state; a warning where rims are not blurred alike."""
    attrs = {"units": "nm", "long_name": "full width at half maximum of the point spread function"}
    found = [s.groups["spectra"].get("resolution") for s in states]
    widths = np.array([np.nan if f is None else float(f) for f in found])
    known = widths[np.isfinite(widths)]
    if known.size and known.max() > RESOLUTION_RATIO * known.min():
        LOG.warning(
            "series: resolutions of %.3g to %.3g nm: profiles and rims of the states are not"
            " blurred alike", known.min(), known.max(),
        )  # fmt: skip
    return {"resolution": ("state", widths, attrs)}


def _quantiles(values: Array, weights: Array) -> Array:
    """Quantiles (draw, quantile) of sorted values of which each counts as often as it is drawn."""
    place = (np.cumsum(weights, axis=1) - 0.5 * weights) / weights.sum(axis=1, keepdims=True)
    drawn = [weight > 0 for weight in weights]
    return np.array(
        [np.interp(QUANTILES, p[d], values[d]) for p, d in zip(place, drawn, strict=True)]
    )


def _distribution(
    state: _State, edges: Array, n_resamples: int, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Density and quantiles of the fractions of particles, each with its standard error."""
    particles = state.groups["particles"]
    used = _used(particles, state.fraction)
    values = np.asarray(particles[f"{state.fraction}_fraction"].values, float)[used]
    unit = _units(np.asarray(particles["agglomerate"].values).astype(int)[used])
    order = np.argsort(values, kind="stable")
    values, unit = values[order], unit[order]
    count = int(unit.max()) + 1
    which = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, edges.size - 2)
    hits = np.zeros((values.size, edges.size - 1))
    hits[np.arange(values.size), which] = 1.0 / np.diff(edges)[which]
    whole = np.ones((1, values.size))
    density, levels = whole @ hits / values.size, _quantiles(values, whole)
    if count < 2:
        unknown = np.full(levels.shape[1], np.nan)
        return density[0], np.full(edges.size - 1, np.nan), levels[0], unknown
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=n_resamples)[:, unit]
    drawn = drawn[drawn.sum(axis=1) > 0].astype(float)
    densities = drawn @ hits / drawn.sum(axis=1, keepdims=True)
    # The plain bootstrap has the variance of the sample, which is too small by (n - 1) / n.
    wider = np.sqrt(count / (count - 1.0))
    errors = [wider * np.std(d, axis=0) for d in (densities, _quantiles(values, drawn))]
    return density[0], errors[0], levels[0], errors[1]


def _units(agglomerate: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """What is drawn: agglomerates where there are enough, else primaries; numbers from 0."""
    own = -1 - np.arange(agglomerate.size)
    enough = np.unique(agglomerate[agglomerate > 0]).size >= MIN_AGGLOMERATES
    numbers = np.where((agglomerate > 0) & enough, agglomerate, own)
    return np.asarray(np.unique(numbers, return_inverse=True)[1])


def _distributions(states: list[_State], n_resamples: int, seed: int) -> Columns:
    """Distributions of the fractions of particles, in bins that all states share."""
    values = [
        s.groups["particles"][f"{s.fraction}_fraction"].values[
            _used(s.groups["particles"], s.fraction)
        ]
        for s in states
    ]
    together = np.concatenate(values).astype(float)
    # Twice the interquartile range over the cube root of the number, of the smallest state.
    width = min(2.0 * np.subtract(*np.percentile(v, [75, 25])) / v.size ** (1 / 3) for v in values)
    low, high = together.min(), together.max()
    span = max(high - low, 1e-6)
    count = int(np.clip(np.ceil(span / max(width, 1e-9)), *BINS))
    edges = np.linspace(low, low + span, count + 1)
    rows = [
        _distribution(state, edges, n_resamples, generator(seed, number))
        for number, state in enumerate(states)
    ]
    one = {"units": "1"}
    parts = [np.stack(part) for part in zip(*rows, strict=True)]
    density, density_errors, levels, level_errors = parts
    text = "share of the particles per unit of the fraction"
    name = states[0].fraction
    return {
        "bin": ("bin", 0.5 * (edges[1:] + edges[:-1]), one | {"long_name": f"{name} fraction"}),
        "bin_width": ((), edges[1] - edges[0], one),
        "density": (("state", "bin"), density, one | {"long_name": text}),
        "density_errors": (("state", "bin"), density_errors, one),
        "quantile": ("quantile", np.array(QUANTILES), one),
        f"{name}_quantiles": (("state", "quantile"), levels, one),
        f"{name}_quantiles_errors": (("state", "quantile"), level_errors, one),
        "particle_count": ("state", [v.size for v in values], one),
    }


# ----------------------------------------------------------------------------- pairs of states


def _joined(states: list[_State]) -> xr.Dataset:
    """The particles of all states in one table, with their state and field."""
    fraction = states[0].fraction
    names = (f"{fraction}_fraction", "thickness", "area")
    columns = [*names, *(f"{n}_errors" for n in names[:2]), "agglomerate", "place", "used"]
    tables = [s.groups["particles"] for s in states]
    made = {
        name: ("particle", np.concatenate([table[name].values for table in tables]))
        for name in columns
        if all(name in table for table in tables)
    }
    state = np.repeat([s.name for s in states], [t.sizes["particle"] for t in tables])
    return xr.Dataset(made).assign(state=("particle", state), field=("particle", state))


#: Ways to compare two states: the end of the name of a contrast, and the start of a variable's.
_WAYS = {"": "", " at equal thickness": "equal_thickness_"}
_NUMBERS = {
    "difference": "mean fraction of particles, later state less earlier",
    "low": "lower end of the interval",
    "high": "upper end of the interval",
    "p_value": "two-sided",
    "degrees_of_freedom": "of the interval and the p-value",
    "systematic": "part of the error that single scans have, in the interval",
    "p_value_holm": "two-sided, for all pairs together (Holm)",
}


def _differences(states: list[_State], confidence: float) -> Columns:
    """All pairs, as they are and at equal thickness."""
    pairs = [(one, two) for one, two in combinations(range(len(states)), 2)]
    found = heterogeneity.compare_groups(_joined(states), states[0].fraction, "state",
                                         confidence=confidence)  # fmt: skip
    names = [state.name for state in states]
    columns: Columns = {
        "pair": ("pair", np.array([f"{names[b]}-{names[a]}" for a, b in pairs], object)),
        "later": ("pair", np.array([names[b] for _, b in pairs], object)),
        "earlier": ("pair", np.array([names[a] for a, _ in pairs], object)),
    }
    for end, start in _WAYS.items():
        rows = [_pair(found, states[a], states[b], end, confidence) for a, b in pairs]
        numbers = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        numbers["p_value_holm"] = holm(numbers["p_value"].astype(float))
        for name, text in _NUMBERS.items():
            attrs = {"units": "1", "long_name": text}
            columns[f"{start}{name}"] = ("pair", numbers[name].astype(float), attrs)
        for name in ("resampled_by", "remark"):
            columns[f"{start}{name}"] = ("pair", numbers[name].astype(object))
    return columns


def _pair(
    found: xr.Dataset, one: _State, two: _State, end: str, confidence: float
) -> dict[str, Any]:
    """The later state less the earlier, with the errors that their scans have.

    The variance of each scan's own error is known, that between particles has degrees of freedom:
    those of their sum after F. E. Satterthwaite, Biometrics Bull. 2, 110 (1946).
    """
    name, sign = f"{two.name}-{one.name}{end}", 1.0
    if name not in found["contrast"].values:
        name, sign = f"{one.name}-{two.name}{end}", -1.0
    row = found.sel(contrast=name)
    value, freedom = sign * float(row["difference"]), float(row["degrees_of_freedom"])
    shared = abs(one.shared - two.shared)
    systematic = float(np.sqrt(one.scan**2 + two.scan**2 + shared**2))
    half = 0.5 * float(row["high"] - row["low"])
    variance = (half / special.stdtrit(freedom, 0.5 + 0.5 * confidence)) ** 2
    total = variance + systematic**2
    freedom = freedom * (total / variance) ** 2 if variance > 0 else freedom
    error = float(np.sqrt(total))
    reach = float(special.stdtrit(freedom, 0.5 + 0.5 * confidence)) * error
    return {
        "difference": value,
        "low": value - reach,
        "high": value + reach,
        "p_value": float(2.0 * special.stdtr(freedom, -abs(value) / error)),
        "degrees_of_freedom": freedom,
        "systematic": systematic,
        "resampled_by": str(row["resampled_by"].item()),
        "remark": str(row["remark"].item()),
    }


# ------------------------------------------------------------------------------------------- D t


def _seconds(state: _State) -> float:
    """Time that turns D t into D; NaN where it is not known."""
    models = state.groups["models"]
    ratio = np.asarray((models["Dt_cm2"] / models["D_cm2_s"]).values, float)
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if ratio.size else float("nan")


def _diffusion(states: list[_State]) -> Columns:
    """Mean of log10 D t in every state, with its limits, and the verdict."""
    estimates = []
    for state in states:
        sides, reasons, common = pooling.selected(state.groups["models"], state.groups["particles"])
        used = reasons == ""
        shared = float(np.median(common[used])) if used.any() else 0.0
        estimates.append(pooling.with_common(pooling.estimate(sides[used]), shared))
    attrs = {"units": "1", "long_name": "log10 of D t in cm2"}
    names = {"log10_Dt": "mean", "log10_Dt_errors": "error", "log10_Dt_spread": "spread"}
    names |= {f"log10_Dt_{e}": e for e in ("low68", "high68", "low95", "high95")}
    columns: Columns = {
        name: ("state", [getattr(e, field) for e in estimates], attrs)
        for name, field in names.items()
    }
    verdicts = [str(state.groups["pooled"]["verdict"].item()) for state in states]
    columns["verdict"] = ("state", np.array(verdicts, object))
    times = [_seconds(state) for state in states]
    columns["delithiated_time_s"] = ("state", times, {"units": "s"})
    return columns


def _growth(states: list[_State]) -> tuple[Columns, str]:
    """Whether D t grows with the time, or why that is not known."""
    timed = [(state, _seconds(state)) for state in states]
    known = [(state, seconds) for state, seconds in timed if np.isfinite(seconds)]
    if len({seconds for _, seconds in known}) < 2:
        return {}, "fewer than two different times spent delithiated are known"
    found = fit_states(
        [
            State(
                state.cycles,
                state.groups["models"],
                state.groups["particles"],
                seconds,
                float(state.groups["models"].attrs.get("delithiated_time_rel_error", 0.0)),
            )
            for state, seconds in known
        ]
    )
    columns = {f"growth_{name}": ((), v.values, v.attrs) for name, v in found.items() if not v.dims}
    return columns, ""


# ---------------------------------------------------------------------------------------- all of it


def compare_states(
    results: Mapping[str, xr.DataTree],
    *,
    reference: str | None = None,
    formula: str | None = None,
    metals: Mapping[str, Mapping[str, Measured]] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 400,
    seed: int = 0,
) -> xr.DataTree:
    """Compare several states of one sample.

    Parameters
    ----------
    results : mapping of name of a state to DataTree
        Results of one edge and one mapped component, as `spectromap.pipeline.analyze` or
        `spectromap.read_result` return them; `name_states` names them.
    reference : str, optional
        The state that others are compared with; by default the discharged one of fewest cycles.
    formula : str, optional
        Composition of the pristine sample; by default that of the runs.
    metals : mapping of state to mapping of element to Measured, optional
        States of the metals that were not mapped, as `spectromap.oxygen.oxygen_balance` takes
        them: those of the reference as its pristine states. By default those of the runs.
    confidence : float
        Coverage of the intervals of differences.
    n_resamples : int
        Draws for the errors of distributions.
    seed : int
        Another seed is another set of draws.

    Returns
    -------
    DataTree
        With the group ``/entry/series``, ordered by cycles, dims (state), (state, energy) [eV],
        (state, distance) [nm], (state, bin), (state, quantile) and (pair). ``_errors`` are random,
        ``_systematic`` is common to the pixels of a scan, or, for changes, to both states.
        ``cycles``, ``sample_state``, ``resolution`` [nm], ``particle_count`` of the used ones.
        ``<component>_mean`` (see `spectromap.oxygen.mean_fraction`) and its ``_change`` from the
        reference; ``<element>_state``, the mean valence, and its ``_change``, where both
        references of two have a valence; ``released_fraction`` and ``delta``, oxygen lost since
        the reference over that of the formula and per formula unit, of discharged states.
        ``mean_od``, the mean spectrum without its offset over the thickness that the references
        fit [nm-1, or 1 for relative references], at true energies; its ``_errors`` hold noise and
        the sample of particles, ``_systematic`` that of the energy calibration and, against the
        reference state, of interpolation and of references that are not the same;
        ``mean_od_difference`` from the reference with all of them in its ``_errors``.
        ``<component>_profile`` and ``thickness_profile`` [nm] over used particles, with
        ``_errors`` and ``_spread`` between particles, and ``profile_particles``, their number.
        ``density`` of the fractions of used particles, ``bin`` their middle and ``bin_width``, and
        ``<component>_quantiles``; errors by drawing agglomerates, or primaries where there are
        fewer than four agglomerates. Per pair, ``later`` less ``earlier``: ``difference`` of the
        mean of particles, ``low``, ``high``, ``p_value``, ``p_value_holm``,
        ``degrees_of_freedom``, ``systematic``, ``resampled_by``, ``remark``, and all of these with
        the prefix ``equal_thickness_``. ``log10_Dt`` [log10 of cm2] with its error, its limits
        and its ``_spread``, ``verdict``, ``delithiated_time_s``; and, where at least two times
        are known, the scalars of `spectromap.radial.states.fit_states` with the prefix
        ``growth_``. Attributes ``fraction``, ``edge``, ``reference``, ``confidence``;
        ``released_remark`` and ``growth_remark`` say why something is missing.

    Raises
    ------
    InputError
        Fewer than two results, the same state twice, different edges or mapped components, a
        result without particles, no energies in common, or a reference that is no state.

    Notes
    -----
    Two states are two scans: the part of the systematic error that is not the references' scales
    is each scan's own and counts as random in every change and every interval of a difference.
    Nothing but the state is meant to differ: other fields of the same electrode, sections of
    another thickness or another resolution make differences too. Weights are those of the stages:
    ``<component>_mean`` is weighted by volume, differences between pairs count every particle
    once, and mean spectra are those of thin pixels, rims above all.
    """
    states = _read_all(results)
    base = _find_reference(states, reference)
    material = formula or next((s.formula for s in (states[base], *states) if s.formula), "")
    columns: Columns = {
        "state": ("state", np.array([s.name for s in states], object)),
        "cycles": ("state", [s.cycles for s in states], {"units": "1"}),
        "sample_state": ("state", np.array([s.sample_state for s in states], object)),
    }
    released, released_remark = _released(states, base, material, metals or {})
    growth, growth_remark = _growth(states)
    for part in (
        _means(states, base),
        released,
        _spectra(states, base),
        _check_resolution(states),
        _profiles(states),
        _distributions(states, n_resamples, seed),
        _differences(states, confidence),
        _diffusion(states),
        growth,
    ):
        columns |= part
    axes = ("state", "energy", "distance", "bin", "quantile", "pair")
    dataset = xr.Dataset(
        {name: column for name, column in columns.items() if name not in axes},
        coords={name: columns[name] for name in axes},
        attrs={
            "fraction": states[0].fraction,
            "edge": states[0].edge,
            "reference": states[base].name,
            "confidence": float(confidence),
            "released_remark": released_remark,
            "growth_remark": growth_remark,
        },
    )
    tree = xr.DataTree.from_dict({"/entry/series": dataset})
    tree["entry"].attrs = {
        "schema_version": SCHEMA_VERSION,
        "title": f"{states[0].edge}: {', '.join(state.name for state in states)}",
        "default": "series",
    }
    return tree
