"""A small, plausible result tree made by hand: every group of the contract, and known numbers."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from spectromap.heterogeneity import statistics
from spectromap.oxygen import Measured, oxygen_balance
from spectromap.schema import FLAGS, SCHEMA_VERSION

PIXEL_NM = 12.5
#: y, x, radius in nm; the last particle touches the border.
PARTICLES = (
    (170.0, 150.0, 95.0),
    (400.0, 210.0, 110.0),
    (200.0, 480.0, 130.0),
    (470.0, 700.0, 105.0),
)
MODELS = ("diffusion", "core-shell")
CONFIGURATION = """schema_version: 1
technique: stxm
stack: scan.hdf5          # a field of the second cycle
references:
  mn4: {file: pristine.csv, valence: 4}
  mn3: {file: mn2o3.csv, valence: 3, scale: edge_jump}
fraction: mn3
seed: 0
"""


def _array(dims, values, units, long_name=""):
    attrs = {"units": units} | ({"long_name": long_name} if long_name else {})
    return (dims, values, attrs)


def _energies(count):
    return np.linspace(634.0, 660.0, count)


def _peak(energy, centre, width, height):
    return height / (1 + ((energy - centre) / width) ** 2)


def shifts(energies=60, seed=0):
    rng = np.random.default_rng([seed, 1])
    walk = np.cumsum(rng.normal(0, 4, (2, energies)), axis=1)
    walk -= np.median(walk, axis=1, keepdims=True)
    flagged = np.zeros(energies, bool)
    flagged[17] = True
    walk[:, 17] += 180
    confidence = np.where(flagged, 0.12, rng.uniform(0.8, 0.98, energies))
    errors = np.full(energies, 0.4)
    return xr.Dataset(
        {
            "shift_y": _array("energy", walk[0], "nm"),
            "shift_x": _array("energy", walk[1], "nm"),
            "shift_y_errors": _array("energy", errors, "nm"),
            "shift_x_errors": _array("energy", 1.3 * errors, "nm"),
            "confidence": _array("energy", confidence, "1"),
            "flagged": ("energy", flagged),
        },
        coords={"energy": _array("energy", _energies(energies), "eV", "photon energy")},
    )


def spectra(energies=60, seed=0):
    rng = np.random.default_rng([seed, 2])
    energy = _energies(energies)
    mn4 = 0.004 + _peak(energy, 643.6, 1.2, 0.024) + _peak(energy, 654.2, 1.5, 0.010)
    mn3 = 0.004 + _peak(energy, 642.1, 1.3, 0.022) + _peak(energy, 653.0, 1.6, 0.009)
    fit = 0.05 + 80 * (0.82 * mn4 + 0.18 * mn3)
    noise = 0.012 * np.exp(fit / 2)
    i0 = 9000 - 20 * (energy - energy[0]) + 150 * np.sin(energy)
    return xr.Dataset(
        {
            "i0": _array("energy", i0, "count", "I0"),
            "i0_errors": _array("energy", np.sqrt(i0 / 4), "count"),
            "mean_od": _array("energy", fit + noise * rng.normal(size=energies), "1"),
            "mean_od_errors": _array("energy", noise, "1"),
            "mean_fit": _array("energy", fit, "1"),
            "reference_mn4": _array("energy", mn4, "nm-1"),
            "reference_mn3": _array("energy", mn3, "nm-1"),
            "energy_shift": _array((), np.float64(-0.083), "eV"),
            "energy_shift_errors": _array((), np.float64(0.012), "eV"),
            "resolution": _array((), np.float64(24.0), "nm"),
            "resolution_errors": _array((), np.float64(2.4), "nm"),
        },
        coords={"energy": _array("energy", energy, "eV", "photon energy")},
    )


def _distance_map(y, x):
    """Depth below the edge of the nearest particle and its label (0 outside)."""
    depth = np.full((y.size, x.size), -np.inf)
    label = np.zeros((y.size, x.size), np.int32)
    for number, (cy, cx, radius) in enumerate(PARTICLES, start=1):
        inside = radius - np.hypot(y[:, None] - cy, x[None, :] - cx)
        label[inside > np.maximum(depth, 0)] = number
        depth = np.maximum(depth, inside)
    return depth, label


def maps(shape=(48, 64), seed=0):
    rng = np.random.default_rng([seed, 3])
    y = PIXEL_NM * (0.5 + np.arange(shape[0]))
    x = PIXEL_NM * (0.5 + np.arange(shape[1]))
    depth, label = _distance_map(y, x)
    thickness = np.zeros(shape)
    for number, (cy, cx, radius) in enumerate(PARTICLES, start=1):
        chord = radius**2 - (y[:, None] - cy) ** 2 - (x[None, :] - cx) ** 2
        thickness += 2 * np.sqrt(np.clip(chord, 0, None)) * (number > 0)
    truth = np.where(label == 3, np.where(depth < 40, 0.35, 0.08), 0.08 + 0.3 * np.exp(-depth / 45))
    thickness_errors = np.full(shape, 1.5)
    fraction_errors = 2.5 / np.maximum(thickness, 1.0)
    fraction = np.where(label > 0, truth, 0.3) + fraction_errors * rng.normal(size=shape)
    thickness = thickness + 1.5 * rng.normal(size=shape)
    chi2 = rng.chisquare(57, shape) / 57
    flags = np.zeros(shape, np.int32)
    flags[(chi2 > 1.5) & (label > 0)] |= FLAGS["model_rejected"]
    flags[30:32, 40:42] |= FLAGS["dead"] | FLAGS["no_data"]
    chi2[24:28, 36:39] = 4.2
    flags[24:28, 36:39] |= FLAGS["model_rejected"]
    flags[fraction < 0] |= FLAGS["negative_component"]
    dead = (flags & FLAGS["no_data"]) > 0
    edge = np.where(depth > -60, depth, np.nan)

    def of(values, units="1", long_name=""):
        values = np.where(dead, np.nan, values).astype(np.float32)
        return _array(("y", "x"), values, units, long_name)

    variables = {
        "mn3_fraction": of(fraction, long_name="Mn3+ fraction"),
        "mn3_fraction_errors": of(fraction_errors),
        "mn3_fraction_systematic": of(np.full(shape, 0.015)),
        "mn3_fraction_nonnegative": of(np.clip(fraction, 0, 1)),
        "mn4_fraction": of(1 - fraction),
        "mn4_fraction_errors": of(fraction_errors),
        "mn4_fraction_systematic": of(np.full(shape, 0.015)),
        "mn4_fraction_nonnegative": of(np.clip(1 - fraction, 0, 1)),
        "thickness": of(thickness, "nm", "thickness"),
        "thickness_errors": of(thickness_errors, "nm"),
        "thickness_systematic": of(0.05 * np.abs(thickness), "nm"),
        "thickness_nonnegative": of(np.clip(thickness, 0, None), "nm"),
        "offset": of(0.01 * rng.normal(size=shape)),
        "chi2": of(chi2),
        "residual": of(0.012 * np.sqrt(chi2)),
        "max_od": of(0.02 * np.clip(thickness, 0, None) + 0.1),
        "edge_distance": of(edge, "nm"),
        "particle_label": (("y", "x"), label),
        "agglomerate_label": (("y", "x"), np.where(label > 0, 1 + (label == 4), 0).astype("i4")),
        "flags": (
            ("y", "x"),
            flags,
            {
                "flag_masks": np.array(list(FLAGS.values()), np.int32),
                "flag_meanings": " ".join(FLAGS),
            },
        ),
    }
    coords = {"y": _array("y", y, "nm", "y"), "x": _array("x", x, "nm", "x")}
    return xr.Dataset(variables, coords=coords, attrs={"fraction": "mn3"})


def particles():
    radius = np.array([r for _, _, r in PARTICLES])
    count = len(PARTICLES)
    used = np.array([True, True, True, False])
    variables = {
        "area": _array("particle", np.pi * radius**2, "nm2"),
        "area_errors": _array("particle", 2 * np.pi * radius * 1.2, "nm2"),
        "radius": _array("particle", radius, "nm"),
        "radius_errors": _array("particle", np.full(count, 1.2), "nm"),
        "thickness": _array("particle", 4 / 3 * radius, "nm"),
        "thickness_errors": _array("particle", 0.02 * radius, "nm"),
        "thickness_max": _array("particle", 2 * radius, "nm"),
        "overlap": _array("particle", np.array([0.98, 1.02, 1.0, 1.4]), "1"),
        "mn3_fraction": _array("particle", np.array([0.212, 0.196, 0.228, 0.181]), "1"),
        "mn3_fraction_errors": _array("particle", np.array([0.006, 0.005, 0.004, 0.006]), "1"),
        "agglomerate": ("particle", np.array([1, 1, 1, 2], np.int32)),
        "place": ("particle", np.array(["outside", "exterior", "interior", "outside"], object)),
        "depth": _array("particle", np.array([np.nan, 60.0, 240.0, np.nan]), "nm"),
        "at_border": ("particle", np.array([False, False, False, False])),
        "used": ("particle", used),
        "reason": ("particle", np.where(used, "", "overlaps its neighbour").astype(object)),
    }
    coords = {
        "particle": ("particle", np.arange(1, count + 1)),
        "y": _array("particle", np.array([p[0] for p in PARTICLES]), "nm"),
        "x": _array("particle", np.array([p[1] for p in PARTICLES]), "nm"),
    }
    variables |= {name: coords.pop(name) for name in ("y", "x")}
    return xr.Dataset(variables, coords=coords)


def _profile_truth(distance):
    smooth = 0.08 + 0.3 * np.exp(-distance / 45)
    step = 0.08 + 0.27 / (1 + np.exp((distance - 40) / 6))
    return np.stack([step if number == 3 else smooth for number in range(1, 5)])


def profiles(seed=0):
    rng = np.random.default_rng([seed, 4])
    distance = 5.0 + 10.0 * np.arange(13)
    radius = np.array([r for _, _, r in PARTICLES])[:, None]
    inside = distance[None, :] < radius
    pixels = np.where(inside, 2 * np.pi * np.clip(radius - distance, 2, None) * 10 / 156, 0)
    errors = np.where(inside, 0.05 / np.sqrt(np.maximum(pixels / 4, 1)), np.nan)
    values = _profile_truth(distance) + errors * rng.normal(size=errors.shape)
    thickness = 2 * np.sqrt(np.clip(radius**2 - (radius - distance) ** 2, 0, None))
    dims = ("particle", "distance")
    return xr.Dataset(
        {
            "mn3_fraction": _array(dims, values, "1", "Mn3+ fraction"),
            "mn3_fraction_errors": _array(dims, errors, "1"),
            "thickness": _array(dims, np.where(inside, thickness, np.nan), "nm"),
            "thickness_errors": _array(dims, np.where(inside, 2.0, np.nan), "nm"),
            "mean_distance": _array(dims, np.where(inside, distance, np.nan), "nm"),
            "pixel_count": _array(dims, pixels.astype(np.int32), "1"),
            "independent_count": _array(dims, pixels / 4, "1"),
        },
        coords={
            "particle": ("particle", np.arange(1, 5)),
            "distance": _array("distance", distance, "nm", "distance from the edge"),
        },
    )


def models():
    distance = 5.0 + 10.0 * np.arange(13)
    radius = np.array([r for _, _, r in PARTICLES])[:, None]
    dims = ("particle", "model")
    none = np.full(4, np.nan)

    def both(diffusion, core_shell, units="1"):
        return _array(dims, np.stack([np.array(diffusion), np.array(core_shell)], axis=1), units)

    smooth = 0.08 + 0.3 * np.exp(-distance / 45)
    step = 0.08 + 0.27 / (1 + np.exp((distance - 40) / 6))
    fit = np.stack([np.stack([smooth, step])] * 4)
    fit = np.where((distance[None, :] < radius)[:, None, :], fit, np.nan)
    diffusion = np.array([1.05e-17, 8.2e-18, 1.9e-17, np.nan])
    low = np.array([8.0e-18, 0.0, 1.1e-17, np.nan])
    high = np.array([1.4e-17, 1.3e-17, 3.2e-17, np.nan])
    time = 4.0e5
    variables = {
        "D_cm2_s": both(diffusion, none, "cm2 s-1"),
        "D_low": both(low, none, "cm2 s-1"),
        "D_high": both(high, none, "cm2 s-1"),
        "Dt_cm2": both(diffusion * time, none, "cm2"),
        "Dt_low": both(low * time, none, "cm2"),
        "Dt_high": both(high * time, none, "cm2"),
        "shell_thickness": both(none, [38.0, 35.0, 41.2, np.nan], "nm"),
        "shell_low": both(none, [33.0, 30.0, 38.9, np.nan], "nm"),
        "shell_high": both(none, [44.0, 41.0, 43.1, np.nan], "nm"),
        "surface_fraction": both([0.38, 0.37, 0.41, np.nan], [0.3, 0.29, 0.35, np.nan]),
        "surface_fraction_errors": both([0.02] * 3 + [np.nan], [0.02] * 3 + [np.nan]),
        "initial_fraction": both([0.08, 0.07, 0.06, np.nan], [0.09, 0.08, 0.08, np.nan]),
        "initial_fraction_errors": both([0.01] * 3 + [np.nan], [0.01] * 3 + [np.nan]),
        "log10_D_bound": both([0.05, 0.06, 0.04, np.nan], none),
        "log10_D_systematic": both([0.02, 0.03, 0.02, np.nan], none),
        "aicc": both([12.1, 14.0, 41.0, np.nan], [35.2, 15.1, 13.3, np.nan]),
        "bic": both([13.1, 15.0, 42.0, np.nan], [36.2, 16.1, 14.3, np.nan]),
        "chi2": both([6.1, 8.0, 35.0, np.nan], [29.2, 9.1, 7.3, np.nan]),
        "goodness": both([0.64, 0.45, 1e-4, np.nan], [1e-3, 0.33, 0.71, np.nan]),
        "fit": _array(("particle", "model", "distance"), fit, "1"),
        "verdict": (
            "particle",
            np.array(["diffusion", "undecided", "core-shell", "undecided"], object),
        ),
    }
    return xr.Dataset(
        variables,
        coords={
            "particle": ("particle", np.arange(1, 5)),
            "model": ("model", np.array(MODELS, object)),
            "distance": _array("distance", distance, "nm", "distance from the edge"),
        },
    )


def pooled():
    numbers = {
        "log10_D": -17.02,
        "log10_D_errors": 0.08,
        "log10_D_low68": -17.10,
        "log10_D_high68": -16.94,
        "log10_D_low95": -17.18,
        "log10_D_high95": -16.86,
        "log10_Dt": -11.42,
        "log10_Dt_errors": 0.07,
        "spread": 0.12,
        "log10_D_all": -16.94,
        "log10_D_shift": 0.08,
        "largest_influence": -0.05,
    }
    counts = {
        "particles_used": 2,
        "count_limits": 1,
        "count_left_out": 2,
        "most_influential": 1,
        "count_diffusion": 1,
        "count_core_shell": 1,
        "count_undecided": 1,
        "count_no_gradient": 0,
    }
    variables = {name: _array((), np.float64(value), "1") for name, value in numbers.items()}
    variables |= {name: _array((), np.int64(value), "1") for name, value in counts.items()}
    variables["shell_thickness"] = _array((), np.float64(38.4), "nm")
    variables["shell_thickness_errors"] = _array((), np.float64(2.1), "nm")
    variables["verdict"] = ((), "diffusion")
    reasons = ["", "", "the verdict is core-shell", "overlaps its neighbour"]
    variables["left_out"] = ("particle", np.array(reasons, object))
    variables["weight"] = _array("particle", np.array([0.8, 0.2, 0.0, 0.0]), "1")
    variables["influence"] = _array("particle", np.array([-0.05, 0.02, np.nan, np.nan]), "1")
    return xr.Dataset(variables, coords={"particle": ("particle", np.arange(1, 5))})


def electrode_table(agglomerates=4, primaries=12, loose=14, seed=0):
    """Particles of a larger field: loose ones, and agglomerates with less inside."""
    rng = np.random.default_rng([seed, 5])
    inside = agglomerates * primaries
    number = np.concatenate([np.zeros(loose), np.repeat(1 + np.arange(agglomerates), primaries)])
    depth = np.concatenate([np.full(loose, np.nan), rng.uniform(50, 1500, inside)])
    place = np.where(number == 0, "outside", np.where(depth < 500, "exterior", "interior"))
    thickness = rng.uniform(50, 90, number.size)
    fraction = 0.3 - 0.001 * thickness + 0.01 * rng.normal(size=number.size)
    fraction -= np.where(number > 0, 0.04 + 2e-5 * np.nan_to_num(depth), 0.0)
    radius = rng.uniform(140, 200, number.size)
    variables = {
        "area": _array("particle", np.pi * radius**2, "nm2"),
        "radius": _array("particle", radius, "nm"),
        "thickness": _array("particle", thickness, "nm"),
        "thickness_errors": _array("particle", np.full(number.size, 0.8), "nm"),
        "mn3_fraction": _array("particle", fraction, "1"),
        "mn3_fraction_errors": _array("particle", np.full(number.size, 0.004), "1"),
        "agglomerate": ("particle", number.astype(np.int32)),
        "place": ("particle", place.astype(object)),
        "depth": _array("particle", depth, "nm"),
        "used": ("particle", np.ones(number.size, bool)),
    }
    return xr.Dataset(variables, coords={"particle": np.arange(1, number.size + 1)})


def heterogeneity(seed=0):
    """What `statistics` says of a larger field, with the map of this one."""
    return statistics(electrode_table(seed=seed), "mn3", maps(seed=seed), 24.0)


def oxygen():
    return oxygen_balance(
        Measured(0.2, 0.01, 0.012),
        "Li1.18Ni0.21Mn0.53Co0.08O2",
        measured_li_tm=Measured(1.40, 0.04),
        cell_volume_nm3=Measured(0.1),
        measured_density_g_cm3=Measured(4.35, 0.1),
    )


def process():
    return xr.Dataset(
        attrs={
            "version": "0.1.0",
            "configuration": CONFIGURATION,
            "input_sha256": json.dumps({"scan.hdf5": "9f" * 32}),
            "reference_sha256": json.dumps({"pristine.csv": "1a" * 32, "mn2o3.csv": "2b" * 32}),
            "seed": 0,
            "warnings": json.dumps(["scan.hdf5: energies recorded more than once <642.1 eV>"]),
            "start_time": "2026-11-21T10:00:00+00:00",
            "end_time": "2026-11-21T10:01:12+00:00",
            "python": "3.11.2",
            "packages": json.dumps({"numpy": "2.4.6", "xarray": "2026.9.0"}),
            "command": "spectromap run --config RUN.yaml --out out",
        }
    )


def make_tree(shape=(48, 64), energies=60, seed=0):
    """Every group of the contract: maps of `shape`, four particles, `energies` energies."""
    groups = {
        "/": xr.Dataset(),
        "/entry": xr.Dataset(
            attrs={
                "schema_version": SCHEMA_VERSION,
                "title": "Electrode field, 2 cycles",
                "default": "maps",
            }
        ),
        "/entry/shifts": shifts(energies, seed),
        "/entry/spectra": spectra(energies, seed),
        "/entry/maps": maps(shape, seed),
        "/entry/particles": particles(),
        "/entry/profiles": profiles(seed),
        "/entry/models": models(),
        "/entry/pooled": pooled(),
        "/entry/heterogeneity": heterogeneity(),
        "/entry/oxygen": oxygen(),
        "/entry/process": process(),
    }
    return xr.DataTree.from_dict(groups)


def without_particles(tree):
    """The same result for a field in which no particle was found."""
    copy = tree.copy(deep=True)
    for name in ("particles", "profiles", "models"):
        dataset = copy[f"entry/{name}"].to_dataset().isel(particle=slice(0, 0))
        copy[f"entry/{name}"] = xr.DataTree(dataset)
    found = copy["entry/maps"].to_dataset()
    for name in ("particle_label", "agglomerate_label"):
        found[name] = xr.zeros_like(found[name])
    found["edge_distance"] = xr.full_like(found["edge_distance"], np.nan)
    copy["entry/maps"] = xr.DataTree(found)
    nothing = copy["entry/pooled"].to_dataset().isel(particle=slice(0, 0))
    for name, array in nothing.data_vars.items():
        if array.dtype.kind == "f":
            nothing[name] = xr.full_like(array, np.nan)
        elif array.dtype.kind == "i":
            nothing[name] = xr.zeros_like(array)
    nothing["verdict"] = ((), "undecided")
    copy["entry/pooled"] = xr.DataTree(nothing)
    none = copy["entry/particles"].to_dataset()
    copy["entry/heterogeneity"] = xr.DataTree(statistics(none, "mn3", found, 24.0))
    entry = copy["entry"]
    del entry["oxygen"]
    return copy


def only_maps(seed=0):
    """The least that is a result: a few maps."""
    names = ["mn3_fraction", "mn3_fraction_errors", "thickness", "chi2", "flags"]
    groups = {"/entry": xr.Dataset(attrs={"schema_version": 1, "default": "maps"})}
    return xr.DataTree.from_dict(groups | {"/entry/maps": maps(seed=seed)[names]})


def with_lazy_map(tree, values):
    """The same result with its map of the thickness replaced, perhaps by a lazy one."""
    copy = tree.copy(deep=True)
    maps = copy["entry/maps"].to_dataset()
    maps["thickness"] = (("y", "x"), values, maps["thickness"].attrs)
    copy["entry/maps"] = xr.DataTree(maps)
    return copy
