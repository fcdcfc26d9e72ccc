"""What there is to set in each step, taken from the models of the run description."""

from __future__ import annotations

import html
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from spectromap.config import STAGES, Run
from spectromap.pipeline import Plan
from spectromap.plugin.state import STEPS, State, step_of
from spectromap.schema import Instrument, Sample

__all__ = [
    "LAST",
    "MATTERS",
    "SAVE",
    "TIPS",
    "Entry",
    "KeyPath",
    "as_tip",
    "entries_of",
    "help_of",
    "title_of",
    "value_of",
]

KeyPath = tuple[str, ...]

#: Where the last step of the list saves and loads, there is nothing to run.
SAVE = STEPS[-1].name
LAST = STEPS[-2].name
TIPS = {
    "data": "What was measured, of what, and with what.",
    "align": "Where every frame lies.",
    "i0": "The light without sample, and from it the optical density.",
    "energy": "The reference spectra, and the energy axis by them.",
    "composition": "How much of every reference is in every pixel.",
    "particles": "Which pixels are one particle, and which particles one agglomerate.",
    "models": "Composition from the edge inwards, and which model follows it.",
    "heterogeneity": "How particles differ, by place and by chance, and the oxygen lost.",
    "save": "The description is the state: it gives the same numbers on the command line.",
}
#: Options that a user of STXM sets, by step; the others are folded.
MATTERS: dict[str, dict[KeyPath, str]] = {
    "data": {
        ("stack",): "Stack",
        ("edge",): "Absorption edge",
        ("sample", "formula"): "Formula",
        ("sample", "density_g_cm3"): "Density [g/cm³]",
        ("sample", "geometry"): "Geometry",
        ("sample", "section_nm"): "Section thickness [nm]",
        ("sample", "delithiated_time_s"): "Time delithiated [s]",
        ("instrument", "resolution_nm"): "Resolution [nm]",
        ("instrument", "dark_counts"): "Dark counts",
    },
    "align": {
        ("align", "enabled"): "Measure the shifts",
        ("align", "max_shift_nm"): "Largest shift [nm]",
        ("shifts", "reference"): "Reference",
        ("align", "fast"): "Fast",
    },
    "i0": {
        ("i0", "region"): "Region [px]",
        ("i0", "mask"): "Mask",
        ("i0", "spectrum"): "Spectrum",
    },
    "energy": {
        ("energy", "enabled"): "Calibrate",
        ("energy", "max_shift_eV"): "Largest shift [eV]",
        ("energy", "shift_eV"): "Known shift [eV]",
    },
    "composition": {
        ("fit", "baseline"): "Baseline",
        ("fit", "max_od"): "Largest optical density",
        ("stray", "enabled"): "Estimate stray light",
    },
    "particles": {
        ("segment", "threshold_nm"): "Threshold [nm]",
        ("segment", "min_radius_nm"): "Least radius [nm]",
        ("segment", "split"): "Split touching ones",
        ("particles", "max_overlap"): "Largest overlap",
    },
    "models": {
        ("models", "models"): "Models",
        ("models", "shape"): "Shape",
        ("profiles", "bin_nm"): "Bin [nm]",
    },
    "heterogeneity": {
        ("heterogeneity", "confidence"): "Confidence",
        ("heterogeneity", "min_count"): "Least count",
    },
}
#: Keys that have editors of their own, or none.
ELSEWHERE = ("references", "fraction", "schema_version")
#: Endings of names that are units.
UNITS = {"_nm": "nm", "_eV": "eV", "_s": "s", "_g_cm3": "g/cm³", "_nm3": "nm³", "_px": "px"}
#: Whose text says what the options of a section mean.
DOCUMENTED: dict[str, Callable[..., Any]] = {**STAGES, "sample": Sample, "instrument": Instrument}
#: What the text of `Plan` calls a key that is not in a section of a stage.
PLANNED: dict[KeyPath, str] = {
    ("edge",): "edge",
    ("seed",): "seed",
    ("i0", "region"): "i0_region",
    ("i0", "mask"): "i0_mask",
    ("i0", "spectrum"): "i0_spectrum",
    ("shifts", "file"): "shifts",
    ("shifts", "corrections"): "shift_corrections",
    ("shifts", "mask"): "align_mask",
    ("shifts", "reference"): "align_reference",
    ("labels",): "labels",
    ("agglomerate_labels",): "agglomerates",
    ("exclude", "energies"): "exclude_energies",
    ("exclude", "mask"): "exclude_mask",
}
#: What no text of a function says.
EXPLAINED: dict[KeyPath, str] = {
    ("stack",): "File of the stack, a glob, or several files parted by ';'.",
    ("technique",): "How the stack was recorded; automatic takes what the file says.",
    ("scans",): "Further scans of the same field, as in a run description.",
    ("exclude", "energies"): "Energies in eV of frames that are left out.",
    ("exclude", "mask"): "Image of the pixels of the file that are left out.",
    ("references", "valence"): "Oxidation state of the reference.",
    ("references", "region"): "y0, y1, x0, x1 in pixels, if the file is a stack.",
    ("references", "scale"): "How the spectrum becomes optical density per nm.",
    ("references", "units"): "Units of the values, where the file does not say them.",
    ("references", "column"): "Column of the file, if it has several.",
    ("references", "fwhm_eV"): "Energy resolution at which it was recorded, FWHM in eV.",
    ("references", "relative_error"): "Relative standard error of its scale.",
    ("references", "thickness_nm"): "Thickness of what was measured, where it is known.",
    ("references", "thickness_error_nm"): "Standard error of that thickness.",
}


@dataclass(frozen=True)
class Entry:
    """One value of the run description and how it is shown."""

    path: KeyPath
    kind: Any
    default: Any
    title: str
    text: str

    @property
    def name(self) -> str:
        """The last key, by which the meaning of a value is known."""
        return self.path[-1]


@cache
def entries_of(step: str) -> tuple[Entry, ...]:
    """Every value that a step rests on and that a form can edit, those that matter first.

    Parameters
    ----------
    step : str
        Name of a step of `spectromap.plugin.state.STEPS`.

    Returns
    -------
    tuple of Entry
    """
    defaults, found = State(), {}
    for key, field in Run.model_fields.items():
        if step_of(key) != step or key in ELSEWHERE:
            continue
        for path, kind in _leaves(key, field.annotation):
            found[path] = Entry(
                path, kind, defaults.value(*path), _title(step, path), help_of(path)
            )
    first = [found.pop(path) for path in MATTERS.get(step, {}) if path in found]
    return (*first, *found.values())


def _leaves(key: str, kind: Any) -> list[tuple[KeyPath, Any]]:
    """A key itself, or the keys of the section that it is."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [((key, name), field.annotation) for name, field in kind.model_fields.items()]
    return [((key,), kind)]


def _title(step: str, path: KeyPath) -> str:
    """What an option is called in a form, with its units."""
    known = MATTERS.get(step, {}).get(path)
    return known or title_of(path[-1])


def title_of(name: str) -> str:
    """A name of the run description for the eye, such as ``Bin [nm]`` for ``bin_nm``."""
    units = ""
    for ending in sorted(UNITS, key=len, reverse=True):
        if name.endswith(ending):
            name, units = name.removesuffix(ending), f" [{UNITS[ending]}]"
            break
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:] + units


def help_of(path: KeyPath) -> str:
    """What a value means: the text of the function that takes it."""
    if path in EXPLAINED:
        text = EXPLAINED[path]
    elif path in PLANNED:
        text = _parameters(Plan).get(PLANNED[path], "")
    else:
        text = _parameters(DOCUMENTED[path[0]]).get(path[-1], "") if path[0] in DOCUMENTED else ""
    return as_tip(text, ".".join(path))


def as_tip(text: str, key: str = "") -> str:
    """Text of a tool tip, which Qt breaks into lines only where it is marked up."""
    named = f"<br/><code>{html.escape(key)}</code>" if key else ""
    return f"<p>{html.escape(text)}{named}</p>"


@cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, str]:
    """Texts of the parameters of a function, from its numpydoc."""
    lines = (inspect.getdoc(function) or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if below.startswith("---"):
            inside, names = line.strip() == "Parameters", []
        elif not inside or not line.strip() or line.startswith("---"):
            continue
        elif not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
        else:
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
    return types.MappingProxyType(found)


def value_of(content: Mapping[str, Any], entry: Entry) -> Any:
    """What a description says, right or wrong, or the default where it says nothing.

    Parameters
    ----------
    content : mapping
        As `State.content` returns it.
    entry : Entry
        The value.

    Returns
    -------
    object
    """
    level: Any = content
    for key in entry.path:
        if not isinstance(level, Mapping) or key not in level:
            return entry.default
        level = level[key]
    return level
