"""Several scans of one sample: other edges, other pixels, other fields of view, repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from spectromap._numerics import FloatArray
from spectromap.schema import InputError
from spectromap.synthetic._bodies import Particle
from spectromap.synthetic._instrument import drift
from spectromap.synthetic._options import Instrument, References, Sample, Scan, Setup, Simulation
from spectromap.synthetic._scene import Scene, make_scene, outside_by, place, with_history
from spectromap.synthetic._simulate import recorded
from spectromap.synthetic._truth import maps_elsewhere

#: What a scan may see differently of the same bodies at the same places.
_HISTORY = (
    *("mechanism", "D_cm2_s", "delithiated_time_s", "D_spread_dex", "surface_fraction"),
    *("surface_spread", "agglomerate_spread", "initial_fraction", "shell_nm", "skin_nm"),
    *("inside_drop", "interior_drop", "small_share", "inside_Dt", "interior_Dt"),
)
#: Fewer open columns than this are no place to take I0 from.
_LEAST_OPEN = 4


def simulate_scans(
    sample: Sample,
    instrument: Instrument,
    scans: Mapping[str, Scan],
    references: References | None = None,
    *,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> dict[str, Simulation]:
    """Simulate several scans of one sample.

    All see the same bodies at the same places, each with its own edge, energies, pixels, field of
    view, drift and noise. The first is the main scan: on its field the particles are placed, as
    `simulate` places them.

    Parameters
    ----------
    sample : Sample
        What is looked at.
    instrument : Instrument
        What looks at it.
    scans : mapping of str to Scan
        By name, which becomes a part of group and file names. ``origin_nm`` says where a field
        lies, ``origin_error_nm`` what its file says wrong of that.
    references : References, optional
        How the references that come with the data differ from the true ones. Scans at one edge have
        the same references.
    changes : mapping of str to mapping, optional
        For a scan, fields of `Sample` (what happened inside the bodies, such as
        ``surface_fraction``), `Instrument` and `References` with values of their own.
    seed : int
        The same seed gives the same numbers, bit for bit; the first scan is what `simulate` makes
        with this seed.

    Returns
    -------
    dict of str to Simulation
        In the order of the scans. Particles have the same label in every scan. The truth of each is
        that of its scan alone, in the coordinates that its file states; ``maps`` has the attributes
        ``offset_y_nm`` and ``offset_x_nm``: where features appear relative to the main scan. The
        truth of the first also has what a run with all the scans would find: ``maps_<name>`` on the
        grid of the main scan, ``spectra_<name>``, and in ``particles`` the fraction at every other
        edge.

    Raises
    ------
    InputError
        An option that does not exist or makes no sense, or more particles than fit.
    """
    setups = make_setups(sample, instrument, scans, references or References(), changes or {}, seed)
    first = next(iter(setups.values()))
    return simulate_placed(setups, place(first, drift(first)))


def make_setups(
    sample: Sample,
    instrument: Instrument,
    scans: Mapping[str, Scan],
    references: References,
    changes: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> dict[str, Setup]:
    """Checked options of every scan."""
    _check_names(scans, changes)
    edges = list(dict.fromkeys(scan.edge for scan in scans.values()))
    setups = {}
    for number, (name, scan) in enumerate(scans.items()):
        options = _changed((sample, instrument, references), changes.get(name, {}), name)
        setups[name] = Setup(
            *(options[0], options[1], scan, options[2], seed),
            stream=number,
            reference_stream=edges.index(scan.edge),
        )
    return setups


def _check_names(scans: Mapping[str, Scan], changes: Mapping[str, Any]) -> None:
    """Refuse names that cannot be a part of the name of a group, and changes of no scan."""
    if not scans:
        raise InputError("no scan is given", where="scans", remedy="Give at least one.")
    for name in scans:
        if not name.isidentifier():
            raise InputError(
                f"'{name}' cannot name a scan", where="scans", remedy="Use letters and digits."
            )
    for name in changes:
        if name not in scans:
            raise InputError(
                f"'{name}' is no scan", where="changes", remedy=f"Choose one of {', '.join(scans)}."
            )


def _changed(
    options: tuple[Sample, Instrument, References], changed: Mapping[str, Any], scan: str
) -> tuple[Sample, Instrument, References]:
    """Options with some fields replaced."""
    sample, instrument, references = options
    left = dict(changed)

    def taken(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: left.pop(name) for name in names if name in left}

    sample = replace(sample, **taken(_HISTORY))
    instrument = replace(instrument, **taken(tuple(f.name for f in fields(Instrument))))
    references = replace(references, **taken(tuple(f.name for f in fields(References))))
    if left:
        raise InputError(
            f"{', '.join(left)} cannot differ between scans of one sample",
            where=f"changes.{scan}",
            remedy=f"Of the sample, {', '.join(_HISTORY)} can.",
        )
    return sample, instrument, references


def simulate_placed(
    setups: Mapping[str, Setup], particles: tuple[Particle, ...]
) -> dict[str, Simulation]:
    """Simulate scans of particles that are already placed."""
    result: dict[str, Simulation] = {}
    (main_name, main), *others = setups.items()
    result[main_name], _ = _simulated(main, main, particles)
    entry = result[main_name].truth["entry"]
    like, table = entry["maps"].to_dataset(), entry["particles"].to_dataset()
    for name, setup in others:
        simulation, scene = _simulated(setup, main, particles)
        own = simulation.truth["entry"]
        attrs = own["maps"].attrs
        seen = maps_elsewhere(setup, scene, main, like).assign_attrs(attrs)
        entry[f"maps_{name}"] = xr.DataTree(seen)
        entry[f"spectra_{name}"] = xr.DataTree(own["spectra"].to_dataset())
        column = f"{attrs['fraction']}_fraction"
        if column not in table and column in own["particles"]:
            found = own["particles"].to_dataset()[column]
            table[column] = found.reindex(particle=table.particle)
        result[name] = simulation
    entry["particles"] = xr.DataTree(table)
    return result


def _simulated(
    setup: Setup, main: Setup, particles: tuple[Particle, ...]
) -> tuple[Simulation, Scene]:
    """One scan, and what lies on its field."""
    shifts = drift(setup)
    placed = {
        label: with_history(particle, setup.sample, label - 1, setup.seed)
        for label, particle in enumerate(particles, start=1)
    }
    if setup is not main:
        placed = {k: p for k, p in placed.items() if _shows(p, setup, shifts)}
        setup = replace(setup, free_columns=_free_columns(setup, shifts, placed))
    scene = make_scene(setup, shifts, placed)
    simulation = recorded(setup, shifts, scene)
    simulation.truth["entry/maps"].attrs |= {"edge": setup.scan.edge, **_offset(setup, main)}
    return simulation, scene


def _shows(particle: Particle, setup: Setup, shifts: FloatArray) -> bool:
    """Whether a particle, or its blurred rim, is seen in any frame."""
    around = np.abs(shifts).max() * setup.scan.pixel_nm + 3 * setup.instrument.resolution_nm
    return outside_by(particle, setup.scan) < 2 * particle.body.reach + float(around)


def _free_columns(setup: Setup, shifts: FloatArray, placed: Mapping[int, Particle]) -> int:
    """Columns at the left into which nothing reaches, at most as many as are asked for."""
    pixel = setup.scan.pixel_nm
    left = min((p.x - p.body.reach for p in placed.values()), default=np.inf)
    pad = np.abs(shifts).max() * pixel + 1.5 * setup.instrument.resolution_nm + pixel
    free = (left - setup.scan.origin_nm[1] - pad) / pixel
    columns = int(np.clip(free, 0, setup.open_columns))
    return columns if columns >= _LEAST_OPEN else 0


def _offset(setup: Setup, main: Setup) -> dict[str, float]:
    """Where features appear in the file relative to where they appear in that of the main scan."""
    errors = zip("yx", setup.scan.origin_error_nm, main.scan.origin_error_nm, strict=True)
    offsets = {f"offset_{axis}_nm": float(own - other) for axis, own, other in errors}
    return offsets | {f"{name}_errors": 0.0 for name in offsets}


def _axis(*pieces: tuple[float, float, float]) -> tuple[float, ...]:
    """Energies from pieces of (start, stop, step) in eV."""
    return tuple(float(e) for piece in pieces for e in np.round(np.arange(*piece), 3))


#: Energies of large fields: fewer than of small ones, and just as dense on the lines.
_MN = _axis((635, 639, 1.0), (639, 645.5, 0.25), (645.5, 660.1, 1.6))
_NI = _axis((845, 851, 1.5), (851, 858, 0.25), (858, 866.1, 1.6))
_O = _axis((520, 526, 1.5), (526, 535, 0.3), (535, 550.1, 1.6))


@dataclass(frozen=True)
class Extent:
    """How much of a wide electrode there is: pixels along a side, and particles."""

    size_px: int = 1000
    agglomerates: int = 10
    primaries: int = 150
    small_agglomerates: int = 4
    particles: int = 90


def wide_electrode(
    seed: int = 0,
    *,
    state: Literal["discharged", "charged"] = "discharged",
    extent: Extent | None = None,
) -> dict[str, Simulation]:
    """Simulate a section through a whole electrode, as STXM sees it after 125 cycles.

    A 100 nm section of 50 x 50 um with ten large agglomerates of 5 um, some small ones and loose
    primaries, all of 300 to 400 nm, at 45 nm resolution. The surface fraction is lower inside
    large agglomerates than outside and lower still in their interior, half as much so in small
    ones, and scatters between agglomerates.

    Parameters
    ----------
    seed : int
        Another seed is another electrode. Both states show the same bodies.
    state : {"discharged", "charged"}
        Discharged, Mn3+ shows at Mn L3, and one agglomerate is scanned again, after the beam has
        reduced it a little. Charged, all Mn is Mn4+, and what was not oxidised shows at Ni L3 and
        O K, on coarser pixels and fields that lie elsewhere and say so wrongly.
    extent : Extent, optional
        A smaller electrode is quicker.

    Returns
    -------
    dict of str to Simulation
        "mn_l3", the main scan, and "repeat", or "ni_l3" and "o_k".
    """
    size = extent or Extent()
    sample = Sample(
        geometry="lamella",
        section_nm=100.0,
        particles=size.particles,
        radius_nm=(150.0, 200.0),
        delithiated_time_s=1.25e6,
        D_spread_dex=0.1,
        surface_spread=0.03,
        agglomerate_spread=0.03,
        agglomerates=size.agglomerates,
        primaries=size.primaries,
        small_agglomerates=size.small_agglomerates,
        gap_nm=40.0,
        apart_nm=400.0,
        inside_drop=0.12,
        interior_drop=0.1,
        state=state,
        cycles=125,
    )
    instrument = Instrument(resolution_nm=45.0, photons=8000.0)
    references = References(amplitude_error=0.01, shape_error=0.01)
    main = Scan(
        energies=_MN,
        pixel_nm=50.0,
        shape_px=(size.size_px, size.size_px),
        drift_px=2.0,
        walk_px=0.05,
        open_share=0.05,
    )
    if state == "charged":
        scans = {"mn_l3": main, **_other_edges(main)}
        setups = make_setups(sample, instrument, scans, references, _CHARGED, seed)
        return simulate_placed(setups, place(setups["mn_l3"], drift(setups["mn_l3"])))
    first = make_setups(sample, instrument, {"mn_l3": main}, references, {}, seed)["mn_l3"]
    particles = place(first, drift(first))
    scans = {"mn_l3": main, "repeat": _on_agglomerate(particles, main)}
    setups = make_setups(sample, instrument, scans, references, _DAMAGED, seed)
    return simulate_placed(setups, particles)


#: What each scan sees: nothing at Mn L3 but reduced surfaces at the other edges once charged, and
#: some reduction by the beam between two scans.
_CHARGED = {
    "mn_l3": {"surface_fraction": 0.06, "initial_fraction": 0.02, "surface_spread": 0.0}
    | {"agglomerate_spread": 0.0, "inside_drop": 0.0, "interior_drop": 0.0},
    "ni_l3": {"surface_fraction": 0.85, "initial_fraction": 0.15},
    "o_k": {"surface_fraction": 0.9, "initial_fraction": 0.25},
}
_DAMAGED = {"repeat": {"surface_fraction": 0.62, "initial_fraction": 0.07}}


def _other_edges(main: Scan) -> dict[str, Scan]:
    """Scans of nearly the same field on coarser pixels."""
    side = main.shape_px[0] * main.pixel_nm
    scans = {}
    for name, edge, energies, pixel, origin, error in (
        ("ni_l3", "Ni L3", _NI, 60.0, (0.018, 0.022), (180.0, -240.0)),
        ("o_k", "O K", _O, 70.0, (0.008, -0.014), (-310.0, 150.0)),
    ):
        scans[name] = replace(
            main,
            edge=edge,
            energies=energies,
            pixel_nm=pixel,
            shape_px=(round(0.96 * side / pixel), round(0.98 * side / pixel)),
            origin_nm=(origin[0] * side, origin[1] * side),
            origin_error_nm=error,
        )
    return scans


def _on_agglomerate(particles: tuple[Particle, ...], main: Scan) -> Scan:
    """Scan of the first agglomerate with some room around it, more at the left for I0."""
    mine = [p for p in particles if p.agglomerate == 1]
    corners = np.array([[p.y - p.body.reach, p.x - p.body.reach] for p in mine]).min(axis=0)
    far = np.array([[p.y + p.body.reach, p.x + p.body.reach] for p in mine]).max(axis=0)
    origin = corners - (10 * main.pixel_nm, 16 * main.pixel_nm)
    rows, columns = np.ceil((far - origin) / main.pixel_nm).astype(int) + 10
    return replace(
        main,
        shape_px=(int(rows), int(columns)),
        open_share=0.08,
        origin_nm=(float(origin[0]), float(origin[1])),
        origin_error_nm=(60.0, -85.0),
    )
