"""The report of a run: one HTML file that needs nothing beside it.

The page is built from the result tree alone, so that it can be made again from a result file. Parts
that a result has not got are left out and named.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import figures
from spectromap.io._common import written_whole
from spectromap.schema import FLAGS, VERDICTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["format_power", "format_value", "write_report"]

FloatArray = NDArray[np.floating[Any]]

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TO = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_ROWS = 200
MOST_LISTED = 20
#: Pixels per inch of a screen, as browsers count.
SCREEN_DPI = 96
HEADLINES = {
    "diffusion": "Single-phase diffusion describes the particles.",
    "core-shell": "A core-shell (two-phase) structure describes the particles.",
    "undecided": "The data do not decide between diffusion and core-shell.",
    "no gradient": "No gradient: the particles are uniform within their errors.",
}
#: Title, caption and whether the figure takes the full width; {c} is the mapped component.
CAPTIONS: dict[str, tuple[str, str, bool]] = {
    "fraction_map": (
        "{c} fraction",
        "Unconstrained fraction per pixel, y upwards. Pale grey: too thin (below 5 % of the"
        " thickest, or below three errors), 1-sigma error above 0.2, or no data. Colours span the"
        " central 98 % of the pixels. Lines: outlines of the particles.",
        False,
    ),
    "thickness_map": (
        "Thickness",
        "Unconstrained projected thickness of the fitted components (without references: optical"
        " density of the mean transmission). Pale grey: no data.",
        False,
    ),
    "chi2_map": (
        "Quality of the fit",
        "Chi-squared per degree of freedom of every pixel; about 1 where photon noise is all that"
        " separates data and model. White lines: outlines of the particles.",
        False,
    ),
    "label_map": (
        "Particles",
        "Particles with their numbers; grey ones are left out of the statistics (the table says"
        " why). Black lines: outlines of the agglomerates.",
        False,
    ),
    "mean_spectrum": (
        "Mean spectrum and references",
        "Mean optical density of absorbing pixels, not the thickest, with its fit; bars are 1-sigma"
        " random errors of the mean. Middle: measured minus fitted. Bottom: the references as the"
        " fit used them.",
        True,
    ),
    "group_profiles": (
        "Mean {c} fraction and thickness against the distance from the edge",
        "Means over the used particles of each place, weighted by their errors and by how much"
        " particles differ. Bars: standard error of the mean (68 %); bands: standard deviation"
        " between particles. Deep bins hold large particles only.",
        True,
    ),
    "profiles": (
        "{c} fraction against the distance from the edge, particle by particle",
        "Measured profiles of the best determined particles with the fitted models, projected and"
        " blurred as the instrument sees them. Bars are 1-sigma errors for the number of"
        " independent resolution elements in a bin.",
        True,
    ),
    "representative_fits": (
        "The models on three particles",
        "Particles chosen by size alone, a small, a middle and a large one. Top: measured profile"
        " with the fitted models (bars: 1 sigma). Below: the residuals of each model in units of"
        " sigma, with its parameter and the probability p of a worse fit if the model is right.",
        True,
    ),
    "particle_fits": (
        "The best determined particle",
        "Left: its map. Right: its profile with the fitted models (bars: 1 sigma), and the"
        " residuals in units of sigma.",
        True,
    ),
    "D": (
        "Diffusion coefficient",
        "D of every particle that limits it, with its 68 % interval; an arrow is a one-sided 68 %"
        " limit. Open: not in the pooled value. Grey: Cramér-Rao bound, the error of a fit that"
        " knows nothing but the profile. Line and bands: pooled value with its 68 % and 95 %"
        " intervals. Without the time of delithiation, D t.",
        True,
    ),
    "shell": (
        "Shell thickness",
        "Thickness of the reduced shell of every particle if it is core-shell, with its 68 %"
        " interval; an arrow is a one-sided limit. Open: not in the pooled value. Line and band:"
        " pooled value with its 68 % interval.",
        True,
    ),
    "heterogeneity": (
        "Inside and outside",
        "Left: mean fraction of every particle against its thickness (bars: 1-sigma random error)."
        " Right: contrasts between groups of particles with 95 % intervals; on the right of zero"
        " the group named first has more {c}.",
        True,
    ),
    "shifts": (
        "Registration",
        "Where the features of every frame lie relative to the common frame (bars: 1 sigma), and"
        " the confidence of the registration. Red: frames flagged and left out; their values may"
        " lie outside the axes.",
        True,
    ),
    "i0": ("Incident intensity", "I0 against energy; the band is its 1-sigma error.", True),
}


def write_report(
    tree: xr.DataTree, path: str | os.PathLike[str], *, dpi: int = figures.DPI
) -> Path:
    """Write the report of a result as one self-contained HTML file.

    Parameters
    ----------
    tree : DataTree
        A result; groups may be missing.
    path : path-like
        The file, ``report.html`` as a rule; written whole or not at all.
    dpi : int
        Pixels per inch of the figures; their size on the page stays the same.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileError
        The file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    template = files("spectromap").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(template).render(_content(tree, dpi))
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    return Path(path)


# --- numbers -----------------------------------------------------------------------------------


def format_value(value: float, error: float | None = None, digits: int = 3) -> str:
    """A number for the eye, rounded where its error says so.

    Parameters
    ----------
    value : float
        The number; an en dash stands for NaN.
    error : float, optional
        Its error: two significant digits where they begin with 1 or 2, one otherwise, and the
        value to the same place. Without one the value gets `digits` significant digits.
    digits : int
        Significant digits of a value without an error.

    Returns
    -------
    str
        Such as ``0.187 ± 0.004``.
    """
    if not math.isfinite(value):
        return NOTHING if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    if error is None or not math.isfinite(error) or error <= 0:
        if value == 0:
            return "0"
        places = digits - 1 - math.floor(math.log10(abs(value)))
        return _fixed(value, places)
    first = math.floor(math.log10(error))
    places = (1 if error / 10**first < 2.95 else 0) - first
    return f"{_fixed(value, places)} ± {_fixed(error, places)}"


def _fixed(value: float, places: int) -> str:
    """Rounded to a number of decimal places, which may be negative."""
    text = f"{round(value, places):.{max(places, 0)}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def format_power(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A number over many powers of ten, with the interval it lies in.

    Parameters
    ----------
    value : float
        The number, above zero.
    low, high : float
        Ends of its interval. Zero or NaN below and a finite end above mean an upper limit, a
        finite end below and infinity above a lower one.

    Returns
    -------
    str
        Such as ``9.5 (8.0-11.5) x 10^-18`` in typographic signs, ``< 1.3 x 10^-17``, or an en
        dash.
    """
    below = math.isfinite(low) and low > 0
    above = math.isfinite(high) and high > 0
    if above and not below:
        return f"< {_power(high)}"
    if below and not above:
        return f"> {_power(low)}"
    if not math.isfinite(value) or value <= 0:
        return NOTHING
    if not below:
        return _power(value)
    exponent = math.floor(math.log10(value))
    scaled = [f"{number / 10**exponent:.2g}" for number in (low, high)]
    about = f"{value / 10**exponent:.1f}"
    if max(float(s) for s in scaled) >= 1000:
        return f"{_power(value)} ({_power(low)} {TO} {_power(high)})"
    low_text, high_text = (f"{float(s):g}" for s in scaled)
    return f"{about} ({low_text}{TO}{high_text}) {TIMES} {_ten(exponent)}"


def _power(value: float) -> str:
    """Two significant digits times a power of ten."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} {TIMES} {_ten(int(exponent))}"


def _ten(exponent: int) -> str:
    """A power of ten."""
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def _percent(part: float, whole: float) -> str:
    """A share for the eye."""
    share = 100 * part / whole if whole else 0.0
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.3g} %"


def _plural(count: int, noun: str) -> str:
    """A number and what is counted."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# --- what the page says ------------------------------------------------------------------------


def _content(tree: xr.DataTree, dpi: int) -> dict[str, Any]:
    """Everything the template shows."""
    groups = _groups(tree)
    process = dict(groups.get("process", xr.Dataset()).attrs)
    fraction = figures.fraction_name(tree) or "component"
    component = figures.component_label(fraction)
    drawn, missing = _figures(tree, component, dpi)
    return {
        "title": _title(tree, process),
        "header": _header(process),
        "version": str(process.get("version", "")),
        "verdict": _verdict(groups),
        "cards": list(summary_cards(groups, fraction).values()),
        "flagged": [*_flagged_frames(groups), *_flagged_pixels(groups), *_warnings(process)],
        "figures": drawn,
        "missing": missing,
        "table": _table(groups, fraction),
        "configuration": str(process.get("configuration", "")).strip(),
        "provenance": _provenance(process),
    }


#: Shares and medians of larger maps are those of every n-th pixel a side.
MOST_COUNTED_PIXELS = 4096


def _groups(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Groups of the result by name."""
    entry = tree.children.get("entry")
    groups = {} if entry is None else {n: node.to_dataset() for n, node in entry.children.items()}
    for name, group in groups.items():
        step = -(-max(group.sizes.get("y", 1), group.sizes.get("x", 1)) // MOST_COUNTED_PIXELS)
        if step > 1:  # as good for shares and medians, and it does not fill the memory
            groups[name] = group.isel(y=slice(None, None, step), x=slice(None, None, step))
    return groups


def _scalar(dataset: xr.Dataset, name: str) -> float:
    """A scalar, NaN where it is missing."""
    return float(dataset[name]) if name in dataset and dataset[name].ndim == 0 else math.nan


def _column(dataset: xr.Dataset, name: str) -> FloatArray:
    """A variable along particle, NaN where it is missing."""
    if name not in dataset:
        return np.full(dataset.sizes.get("particle", 0), np.nan)
    return np.asarray(dataset[name].values, dtype=np.float64)


def _json(text: Any) -> Any:
    """Value of a JSON attribute; the text itself where it is none."""
    try:
        return json.loads(str(text))
    except ValueError:
        return text


def _title(tree: xr.DataTree, process: Mapping[str, Any]) -> str:
    """Title of the result, or the name of what was measured."""
    entry = tree.children.get("entry")
    title = "" if entry is None else str(entry.attrs.get("title", ""))
    names = _input_names(process)
    return title or (Path(names[0]).name if names else "spectromap result")


def _input_names(process: Mapping[str, Any]) -> list[str]:
    """Names of the files that were read."""
    hashes = _json(process.get("input_sha256", "{}"))
    return [str(name) for name in hashes] if isinstance(hashes, dict) else []


def _header(process: Mapping[str, Any]) -> list[str]:
    """File, date and version, as far as they are known."""
    names = _input_names(process)
    lines = []
    if names:
        more = f" and {_plural(len(names) - 1, 'more file')}" if len(names) > 1 else ""
        lines.append(f"{names[0]}{more}")
    if when := process.get("end_time") or process.get("start_time"):
        lines.append(str(when)[:19].replace("T", " "))
    if process.get("version"):
        lines.append(f"spectromap {process['version']}")
    return lines


def _verdict(groups: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """The answer in words, and the pooled numbers behind it."""
    pooled = groups.get("pooled", xr.Dataset())
    verdict = str(pooled["verdict"].item()) if "verdict" in pooled else ""
    counts = {
        v: _scalar(pooled, f"count_{v.replace('-', '_').replace(' ', '_')}") for v in VERDICTS
    }
    models = groups.get("models", xr.Dataset())
    fitted = "chi2" in models and bool(np.isfinite(models["chi2"]).any())
    if not verdict or (sum(counts.values()) == 0 and not fitted):
        reason = (
            "No verdict: no particle could be fitted."
            if "particles" in groups
            else "Maps and spectra only: no particles were looked for (see what was flagged)."
        )
        return {"headline": reason, "lines": []}
    lines = []
    told = [f"{name} {int(count)}" for name, count in counts.items() if math.isfinite(count)]
    if told:
        lines.append(f"Verdicts on single particles: {', '.join(told)}.")
    return {"headline": HEADLINES.get(verdict, verdict), "lines": [*pooled_lines(pooled), *lines]}


def pooled_lines(pooled: xr.Dataset) -> list[str]:
    """Pooled diffusion coefficient and shell thickness in words.

    Parameters
    ----------
    pooled : Dataset
        The group of the result.

    Returns
    -------
    list of str
    """
    lines = []
    value, low, high = (_scalar(pooled, f"log10_D{end}") for end in ("", "_low68", "_high68"))
    if any(math.isfinite(number) for number in (value, low, high)):
        text = format_value(value, _scalar(pooled, "log10_D_errors"))
        power = format_power(*(10**number for number in (value, low, high)))
        equals = "" if power[0] in "<>" else "= "
        lines.append(f"Pooled diffusion coefficient: D {equals}{power} cm² s⁻¹ (68 %).")
        ends = [f"{level} %: {_interval(pooled, level)}" for level in ("68", "95")]
        known = "; ".join(end for end in ends if not end.endswith(": "))
        lines.append(f"log₁₀ D = {text}{f' ({known})' if known else ''}.")
    elif math.isfinite(product := _scalar(pooled, "log10_Dt")):
        text = format_value(product, _scalar(pooled, "log10_Dt_errors"))
        lines.append(f"log₁₀ D t = {text} (in cm²); without the time delithiated there is no D.")
    spread = _scalar(pooled, "spread")
    if math.isfinite(spread):
        lines.append(f"Spread between particles: {format_value(spread, digits=2)} dex.")
    lines += _robustness(pooled)
    shell = _scalar(pooled, "shell_thickness")
    if math.isfinite(shell):
        text = format_value(shell, _scalar(pooled, "shell_thickness_errors"))
        lines.append(f"Shell thickness if core-shell: {text} nm.")
    return lines


def _robustness(pooled: xr.Dataset) -> list[str]:
    """What the pooled D rests on, and how far it moves with another choice of particles."""
    used, limits, out = (
        _scalar(pooled, name) for name in ("particles_used", "count_limits", "count_left_out")
    )
    if not math.isfinite(limits + out) or not used > 0:
        return []
    line = f"D rests on {_plural(int(used), 'particle')}"
    if limits:
        line += f", {int(limits)} of them by a one-sided limit only"
    line += f"; {int(out)} left out." if out else "; none left out."
    shift, influence = _scalar(pooled, "log10_D_shift"), _scalar(pooled, "largest_influence")
    if out and math.isfinite(shift):
        line += f" With all particles that say anything, log₁₀ D moves by {_signed(shift)}."
    if math.isfinite(influence):
        number = int(_scalar(pooled, "most_influential"))
        line += (
            f" Leaving out particle {number}, which matters most, moves it by {_signed(influence)}."
        )
    return [line]


def _signed(value: float) -> str:
    """A difference to two places, with its sign."""
    return ("+" if round(value, 2) >= 0 else "") + _fixed(value, 2)


def _interval(pooled: xr.Dataset, level: str) -> str:
    """Interval of log10 D; empty where there is none."""
    ends = [_scalar(pooled, f"log10_D_{side}{level}") for side in ("low", "high")]
    if all(math.isnan(end) for end in ends):
        return ""
    return " to ".join(_fixed(end, 2) if math.isfinite(end) else format_value(end) for end in ends)


def _card(label: str, value: str, *notes: str) -> dict[str, Any]:
    """One number of the summary."""
    return {"label": label, "value": value, "notes": [note for note in notes if note]}


def summary_cards(groups: Mapping[str, xr.Dataset], fraction: str) -> dict[str, dict[str, Any]]:
    """The numbers of the summary, as far as the result has them.

    Parameters
    ----------
    groups : mapping of str to Dataset
        Groups of the result.
    fraction : str
        The mapped component.

    Returns
    -------
    dict of dict
        By their names: ``label``, ``value`` and ``notes``, all text.
    """
    cards = {
        "fraction": _fraction_card(groups, fraction),
        "thickness": _thickness_card(groups),
        "particles": _particles_card(groups),
        "fit": _fit_card(groups),
        "energy": _energy_card(groups),
        "oxygen": _oxygen_card(groups),
        **{f"repeat {number}": card for number, card in enumerate(_repeat_cards(groups))},
    }
    return {name: card for name, card in cards.items() if card is not None}


def _fraction_card(groups: Mapping[str, xr.Dataset], fraction: str) -> dict[str, Any] | None:
    """Mean fraction, weighted by volume, with its random and systematic error."""
    particles, maps = groups.get("particles", xr.Dataset()), groups.get("maps", xr.Dataset())
    name, label = f"{fraction}_fraction", f"{figures.component_label(fraction)} fraction"
    values, weights = _column(particles, name), _volumes(particles)
    good = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    if not good.any():
        return _pixel_fraction_card(maps, name, label)
    share = weights[good] / weights[good].sum()
    mean = float(share @ values[good])
    error = float(np.sqrt(np.sum((share * _column(particles, f"{name}_errors")[good]) ** 2)))
    systematic = _particle_median(maps, f"{name}_systematic")
    random = "; ± 1-sigma random" if math.isfinite(error) else ""
    notes = [f"mean of {_plural(int(good.sum()), 'particle')}, by volume{random}"]
    if math.isfinite(systematic):
        notes.append(f"systematic ± {format_value(systematic, digits=2)}")
    if good.sum() > 1:
        spread = float(np.std(values[good], ddof=1))
        notes.append(f"standard deviation between particles {format_value(spread, digits=2)}")
    return _card(label, format_value(mean, error), *notes)


def _volumes(particles: xr.Dataset) -> FloatArray:
    """Volume of every particle in nm3: what its fraction counts in a mean."""
    return _column(particles, "area") * _column(particles, "thickness")


def _pixel_fraction_card(maps: xr.Dataset, name: str, label: str) -> dict[str, Any] | None:
    """Mean fraction of the field where there are no particles."""
    if name not in maps or "thickness" not in maps:
        return None
    good = figures.reliable_pixels(maps, name.removesuffix("_fraction"))
    if not good.any():
        return None
    weights = np.asarray(maps["thickness"].values)[good].astype(np.float64)
    values = np.asarray(maps[name].values)[good].astype(np.float64)
    mean = format_value(float(weights @ values / weights.sum()))
    count = _plural(int(good.sum()), "pixel")
    return _card(label, mean, f"mean of {count}, by thickness")


def _has_particles(maps: xr.Dataset) -> bool:
    """Whether any pixel belongs to a particle."""
    return "particle_label" in maps and bool((maps["particle_label"] > 0).any())


def _inside(maps: xr.Dataset) -> NDArray[np.bool_]:
    """Pixels of particles; all pixels where there are none."""
    if _has_particles(maps):
        return np.asarray(maps["particle_label"].values > 0)
    return np.ones(tuple(maps.sizes[d] for d in ("y", "x") if d in maps.sizes), dtype=bool)


def _particle_values(maps: xr.Dataset, name: str) -> FloatArray:
    """Finite values of a map on the particles; where there are none, on what absorbs."""
    if name not in maps:
        return np.zeros(0)
    fraction = str(maps.attrs.get("fraction", ""))
    inside = _inside(maps)
    if not _has_particles(maps) and f"{fraction}_fraction" in maps and "thickness" in maps:
        inside = figures.reliable_pixels(maps, fraction)
    values = np.asarray(maps[name].values)[inside]
    return np.asarray(values[np.isfinite(values)])


def _particle_median(maps: xr.Dataset, name: str) -> float:
    """Median of a map on the particles."""
    values = _particle_values(maps, name)
    return float(np.median(values)) if values.size else math.nan


def _thickness_card(groups: Mapping[str, xr.Dataset]) -> dict[str, Any] | None:
    """Typical thickness and its range."""
    maps = groups.get("maps", xr.Dataset())
    values = _particle_values(maps, "thickness")
    if not values.size:
        return None
    low, middle, high = (float(v) for v in np.percentile(values, (5, 50, 95)))
    units = str(maps["thickness"].attrs.get("units", ""))
    unit = "" if units in ("", "1") else f" {units}"
    label = f"90 % of the pixels: {format_value(low)} to {format_value(high)}{unit}"
    systematic = _particle_median(maps, "thickness_systematic")
    extra = f"systematic ± {format_value(systematic, digits=2)}{unit}"
    notes = [label, extra if math.isfinite(systematic) else ""]
    return _card("Thickness, median", f"{format_value(middle)}{unit}", *notes)


def _particles_card(groups: Mapping[str, xr.Dataset]) -> dict[str, Any] | None:
    """How many particles were found and used, and why others were left out."""
    particles = groups.get("particles")
    if particles is None:
        return None
    found = particles.sizes.get("particle", 0)
    used = _is_used(particles)
    reasons = Counter(
        reason or "no reason given"
        for reason, kept in zip(_texts(particles, "reason"), used, strict=True)
        if not kept
    )
    notes = [f"left out: {count} {reason}" for reason, count in reasons.most_common()]
    return _card("Particles", f"{int(used.sum())} of {found} used", *notes)


def _is_used(particles: xr.Dataset) -> NDArray[np.bool_]:
    """Which particles count."""
    if "used" not in particles:
        return np.ones(particles.sizes.get("particle", 0), dtype=bool)
    return np.asarray(particles["used"].values, dtype=bool)


def _texts(dataset: xr.Dataset, name: str) -> list[str]:
    """A text variable along particle."""
    if name not in dataset:
        return [""] * dataset.sizes.get("particle", 0)
    return [str(value) for value in dataset[name].values]


def _fit_card(groups: Mapping[str, xr.Dataset]) -> dict[str, Any] | None:
    """How well the pixels are described."""
    maps = groups.get("maps", xr.Dataset())
    chi2, residual = _particle_median(maps, "chi2"), _particle_median(maps, "residual")
    if not (math.isfinite(chi2) or math.isfinite(residual)):
        return None
    value = f"χ² = {format_value(chi2)}" if math.isfinite(chi2) else NOTHING
    note = f"rms residual {format_value(residual)} OD" if math.isfinite(residual) else ""
    label = "Fit on the particles, median" if _has_particles(maps) else "Fit, median"
    return _card(label, value, note)


def _energy_card(groups: Mapping[str, xr.Dataset]) -> dict[str, Any] | None:
    """Shift of the energy scale."""
    spectra = groups.get("spectra", xr.Dataset())
    shift = _scalar(spectra, "energy_shift")
    if not math.isfinite(shift):
        return None
    text = format_value(shift, _scalar(spectra, "energy_shift_errors"))
    notes = ["true = recorded + shift"]
    if spectra.attrs.get("resolution") == "broadened":
        width = format_value(_scalar(spectra, "broadening"), digits=2)
        notes.append(f"references broadened by {width} eV")
    if spectra.attrs.get("resolution") == "sharper":
        notes.append("the sample's lines are sharper than the references'")
    return _card("Energy shift", f"{text} eV", *notes)


def _oxygen_card(groups: Mapping[str, xr.Dataset]) -> dict[str, Any] | None:
    """Oxygen that was lost, with both errors."""
    oxygen = groups.get("oxygen", xr.Dataset())
    released, error, systematic = (
        100.0 * _scalar(oxygen, f"released_fraction{kind}")
        for kind in ("", "_errors", "_systematic")
    )
    if not math.isfinite(released):
        return None
    state = format_value(_scalar(oxygen, "state"), _scalar(oxygen, "state_errors"))
    notes = [
        "of all oxygen since the pristine state; ± 1-sigma random",
        f"systematic ± {format_value(systematic, digits=2)} at%" if systematic > 0 else "",
        f"mean state {oxygen.attrs.get('mapped_element', '')} {state}",
    ]
    return _card("Oxygen released", f"{format_value(released, error)} at%", *notes)


def _repeat_cards(groups: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """What every repeat says of the beam and of the errors."""
    repeats = groups.get("repeats", xr.Dataset())
    cards = []
    for name in repeats["scan"].values if "scan" in repeats.coords else ():
        one = repeats.sel(scan=name)
        change = format_value(_scalar(one, "mean_change"), _scalar(one, "mean_change_errors"))
        rate, noise = _scalar(one, "change_per_MGy"), _scalar(one, "noise_ratio")
        notes = [
            f"{format_value(rate, _scalar(one, 'change_per_MGy_errors'))} per MGy"
            if math.isfinite(rate)
            else "",
            f"noise {format_value(noise)} times what is stated" if math.isfinite(noise) else "",
        ]
        cards.append(_card(f"Change until repeat '{name}'", change, *notes))
    return cards


# --- what was flagged --------------------------------------------------------------------------


def _flagged_frames(groups: Mapping[str, xr.Dataset]) -> list[str]:
    """Frames that the registration gave up."""
    shifts = groups.get("shifts", xr.Dataset())
    if "flagged" not in shifts or not bool(shifts["flagged"].any()):
        return []
    flagged = np.asarray(shifts["flagged"].values, dtype=bool)
    energies = [f"{energy:.2f}" for energy in shifts["energy"].values[flagged]]
    listed = ", ".join(energies[:12]) + (" ..." if len(energies) > 12 else "")
    return [f"{flagged.sum()} of {flagged.size} frames could not be aligned: {listed} eV"]


def _flagged_pixels(groups: Mapping[str, xr.Dataset]) -> list[str]:
    """How many pixels carry each flag, in the field and on the particles."""
    maps = groups.get("maps", xr.Dataset())
    if "flags" not in maps:
        return []
    flags = np.asarray(maps["flags"].values)
    inside = _inside(maps)
    lines = []
    for name, bit in FLAGS.items():
        marked = (flags & bit) != 0
        if not marked.any():
            continue
        whole = _percent(float(marked.sum()), float(marked.size))
        line = f"{name.replace('_', ' ')}: {whole} of the field"
        if _has_particles(maps):
            part = _percent(float((marked & inside).sum()), float(inside.sum()))
            line += f", {part} of the particles"
        lines.append(line)
    return lines


def _warnings(process: Mapping[str, Any]) -> list[str]:
    """Warnings of the run."""
    warnings = _json(process.get("warnings", "[]"))
    if isinstance(warnings, list):
        return [f"warning: {text}" for text in warnings]
    return [f"warning: {warnings}"] if warnings else []


# --- figures -----------------------------------------------------------------------------------


def _figures(tree: xr.DataTree, component: str, dpi: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Figures as embedded images with captions, and the titles of those that are missing."""
    drawn, missing = [], []
    captions = CAPTIONS | figures.PAPER_CAPTIONS
    for name, draw in (figures.FIGURES | figures.PAPER_FIGURES).items():
        title, caption, wide = captions[name]
        title, caption = (text.replace("{c}", component) for text in (title, caption))
        caption = caption.replace(" %", "\N{NO-BREAK SPACE}%")
        figure = draw(tree)
        if figure is None:
            missing += [title] if name in figures.FIGURES else []
            continue
        image, width = _embedded(figure, dpi)
        if figure.get_gid() == figures.NOTE:
            caption = ""
        shown = {"name": name, "title": title, "caption": caption, "wide": wide}
        drawn.append(shown | {"data": image, "width": width})
    return drawn, missing


def _embedded(figure: Figure, dpi: int) -> tuple[str, int]:
    """A figure as base64 text, and its width on the screen."""
    png = figures.to_png(figure, dpi)
    width = int.from_bytes(png[16:20], "big")  # IHDR is always the first chunk of a PNG
    return base64.b64encode(png).decode("ascii"), round(width * SCREEN_DPI / dpi)


# --- tables ------------------------------------------------------------------------------------


def _table(groups: Mapping[str, xr.Dataset], fraction: str) -> dict[str, Any]:
    """A row per particle: what it is, what the models give, the verdict."""
    particles = groups.get("particles", xr.Dataset())
    count = particles.sizes.get("particle", 0)
    if not count:
        return {"columns": [], "rows": [], "note": "No particles were found."}
    models = groups.get("models", xr.Dataset())
    columns = [
        ("particle", "", False),
        ("verdict", "", True),
        ("place", "", True),
        ("radius", "nm", False),
        ("thickness", "nm", False),
        (figures.component_label(fraction), "fraction", False),
        ("D (68 %)", "cm² s⁻¹", False),
        ("bound", "of log₁₀ D", False),
        ("shell (68 %)", "nm", False),
        ("ΔAICc", "core-shell - diffusion", False),
        ("goodness", "diffusion / core-shell", False),
    ]
    shown = range(min(count, MOST_ROWS))
    rows = [_row(particles, models, index, fraction) for index in shown]
    note = (
        "Errors are 1-sigma random. The bound is the Cramér-Rao bound for the profile"
        " alone. ΔAICc above zero favours diffusion; goodness is the probability"
        " of a worse fit if the model is right."
    )
    if count > MOST_ROWS:
        note += (
            f" The first {MOST_ROWS} of {count} particles; particles.csv and models.csv hold all."
        )
    heads = [{"label": label, "unit": unit, "text": text} for label, unit, text in columns]
    return {"columns": heads, "rows": rows, "note": note}


def _row(particles: xr.Dataset, models: xr.Dataset, index: int, fraction: str) -> dict[str, Any]:
    """Cells of one particle."""
    one = particles.isel(particle=index)
    number = int(one["particle"]) if "particle" in one else index + 1
    used = bool(_is_used(particles)[index])
    fit = _fit_of(models, number)
    verdict = fit["verdict"] if used else f"left out: {_texts(particles, 'reason')[index]}"
    cells = [
        str(number),
        verdict,
        _texts(particles, "place")[index],
        format_value(_scalar(one, "radius")),
        format_value(_scalar(one, "thickness"), _scalar(one, "thickness_errors")),
        format_value(
            _scalar(one, f"{fraction}_fraction"), _scalar(one, f"{fraction}_fraction_errors")
        ),
        format_power(*fit["D"]),
        format_value(fit["bound"], digits=1),
        _range(*fit["shell"]),
        format_value(fit["aicc"][1] - fit["aicc"][0]),
        " / ".join(_probability(p) for p in fit["goodness"]),
    ]
    return {"cells": cells, "used": used}


def _fit_of(models: xr.Dataset, number: int) -> dict[str, Any]:
    """What the models say about one particle; NaN for what is missing."""
    known = "particle" in models.coords and number in models["particle"].values

    def values(names: Iterable[str], model: str) -> list[float]:
        if not known or model not in models["model"].values:
            return [math.nan for _ in names]
        here = models.sel(particle=number, model=model)
        return [_scalar(here, name) for name in names]

    both: Sequence[str] = ("diffusion", "core-shell")
    return {
        "D": values(("D_cm2_s", "D_low", "D_high"), "diffusion"),
        "bound": values(("log10_D_bound",), "diffusion")[0],
        "shell": values(("shell_thickness", "shell_low", "shell_high"), "core-shell"),
        "aicc": [values(("aicc",), model)[0] for model in both],
        "goodness": [values(("goodness",), model)[0] for model in both],
        "verdict": str(models["verdict"].sel(particle=number).item())
        if known and "verdict" in models
        else NOTHING,
    }


def _range(value: float, low: float, high: float) -> str:
    """A value with its interval."""
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high)):
        return format_value(value)
    return f"{format_value(value)} ({format_value(low)}{TO}{format_value(high)})"


def _probability(p: float) -> str:
    """A probability for the eye."""
    if not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _provenance(process: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from, a line each; the rest has its own place on the page."""
    lines = []
    for key, value in process.items():
        if key in ("configuration", "warnings") or value in ("", None):
            continue
        name = str(key).replace("_", " ").replace("sha256", "SHA-256")
        value = _json(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            parts = [(f"{name}: {part}", str(content)) for part, content in value.items()]
            lines += parts[:MOST_LISTED]
            if len(parts) > MOST_LISTED:
                lines.append((name, f"{len(parts) - MOST_LISTED} more in the result file"))
        elif isinstance(value, list):
            lines.append((name, ", ".join(str(part) for part in value)))
        else:
            lines.append((name, str(value)))
    return lines
