"""The run description: one YAML file that says everything about a run.

The sections of the stages are made from the stages' own keyword-only arguments, so that the file
and the functions cannot drift apart.
"""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from spectromap import align, calibrate, heterogeneity, oxygen, profiles, segment, unmix
from spectromap.io._yaml import load_yaml, mistakes
from spectromap.radial import fit as radial_fit
from spectromap.schema import SCHEMA_VERSION, InputError, Instrument, Sample

__all__ = ["Run", "load_run", "parse_run", "resolve_paths", "to_yaml"]

#: Every stage section of the run description and the function whose options it holds.
STAGES: dict[str, Callable[..., Any]] = {
    "align": align.register,
    "energy": calibrate.calibrate_energy,
    "stray": unmix.estimate_stray,
    "fit": unmix.fit_components,
    "segment": segment.find_particles,
    "agglomerates": segment.group_agglomerates,
    "particles": segment.particle_table,
    "profiles": profiles.radial_profiles,
    "models": radial_fit.fit_models,
    "pooled": radial_fit.pool,
    "heterogeneity": heterogeneity.statistics,
    "oxygen": oxygen.oxygen_balance,
}


#: Stages that every further scan goes through by itself.
SCAN_STAGES = ("align", "energy", "stray", "fit")
#: What a further scan does not take over from the run: it is about the pixels of one file.
_OWN_TO_A_STACK = (
    *("stack", "i0", "shifts", "exclude"),
    *("scans", "labels", "agglomerate_labels"),
)

#: Keys of the run description whose values are paths.
PATH_KEYS = ("stack", "file", "mask", "spectrum", "labels", "agglomerate_labels", "reference")


class _Section(BaseModel):
    """A part of the run description: unknown keys are mistakes, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def stage_options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Options that a run description may set: keyword-only arguments, or fields of a dataclass.

    The seed is left out: there is one for the whole run.
    """
    parameters = inspect.signature(function).parameters
    if inspect.isclass(function):
        return dict(parameters)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "seed"
    }


def _section(name: str, function: Callable[..., Any]) -> type[_Section]:
    """Model of one section, from the signature of its function."""
    hints = typing.get_type_hints(function)
    fields: dict[str, Any] = {
        option: (hints[option], parameter.default)
        for option, parameter in stage_options(function).items()
    }
    return create_model(f"{name.capitalize()}Section", __base__=_Section, **fields)


def _check_region(region: tuple[int, int, int, int] | None) -> None:
    """Refuse a region that is empty or upside down."""
    if region is None:
        return
    y0, y1, x0, x1 = region
    if not (0 <= y0 < y1 and 0 <= x0 < x1):
        raise ValueError("region is y0, y1, x0, x1 in pixels, with 0 <= y0 < y1 and x0 < x1")


class I0(_Section):
    """Where I0 comes from; nothing given means the open area that is found by itself."""

    region: tuple[int, int, int, int] | None = None
    mask: str | None = None
    spectrum: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> I0:
        given = [n for n in ("region", "mask", "spectrum") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of region, mask and spectrum, not {' and '.join(given)}")
        _check_region(self.region)
        return self


class Shifts(_Section):
    """What is known about the shifts of the frames; nothing given means they are measured."""

    file: str | None = None
    corrections: dict[float, tuple[float, float]] = Field(default_factory=dict)
    mask: str | None = None
    reference: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Shifts:
        if self.file is not None and (self.mask or self.reference):
            raise ValueError("mask and reference are for shifts that are measured, not given")
        return self


class Exclude(_Section):
    """What is left out by hand: frames by their energies, and pixels of the file."""

    energies: list[float] = Field(default_factory=list)
    mask: str | None = None


def _auto(value: Any) -> Any:
    return {} if value in ("auto", None) else value


class Reference(_Section):
    """One reference spectrum: a file of one, or a region of a stack."""

    file: str
    region: tuple[int, int, int, int] | None = None
    valence: float | None = None
    scale: Literal["auto", "edge_jump", "none"] = "auto"
    units: str | None = None
    column: str | None = None
    fwhm_eV: float | None = Field(default=None, gt=0)
    relative_error: float | None = Field(default=None, ge=0)
    thickness_nm: float | None = Field(default=None, gt=0)
    thickness_error_nm: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_kind(self) -> Reference:
        _check_region(self.region)
        if self.region is not None and (self.column or self.units):
            raise ValueError("column and units are for files of spectra, region is for stacks")
        return self


SampleSection = _section("sample", Sample)
InstrumentSection = _section("instrument", Instrument)
_STAGE_FIELDS: dict[str, Any] = {
    name: (model, Field(default_factory=model))
    for name, model in ((n, _section(n, f)) for n, f in STAGES.items())
}


class _Described(_Section):
    """What is said of a stack: where it is, how it was recorded, and what it is made of."""

    technique: Literal["stxm", "ptychography"] | None = None
    stack: str | list[str]
    edge: str | None = None
    instrument: InstrumentSection = Field(  # type: ignore[valid-type]
        default_factory=InstrumentSection
    )
    i0: Annotated[I0, BeforeValidator(_auto)] = Field(default_factory=I0)
    shifts: Shifts = Field(default_factory=Shifts)
    exclude: Exclude = Field(default_factory=Exclude)
    references: dict[str, Reference] = Field(default_factory=dict)
    fraction: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Described:
        if self.references and not 2 <= len(self.references) <= 4:
            raise ValueError("references: give two to four of them")
        if self.fraction is not None and self.fraction not in self.references:
            raise ValueError(
                f"fraction: '{self.fraction}' is not one of the references"
                f" ({', '.join(self.references) or 'none given'})"
            )
        bad = [name for name in self.references if not name.isidentifier()]
        if bad:
            raise ValueError(f"references: {bad} cannot name a component; use letters and digits")
        return self


Scan = create_model(
    "Scan",
    __base__=_Described,
    __doc__="A further scan of the same field; what it does not say is as in the run.",
    **{name: _STAGE_FIELDS[name] for name in SCAN_STAGES},
)


class _Run(_Described):
    """Everything a run needs beyond the numbers in the stack."""

    schema_version: Literal[1] = SCHEMA_VERSION  # type: ignore[assignment]
    sample: SampleSection = Field(default_factory=SampleSection)  # type: ignore[valid-type]
    scans: dict[str, Scan] = Field(default_factory=dict)  # type: ignore[valid-type]
    labels: str | None = None
    agglomerate_labels: str | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _scans_apart(self) -> _Run:
        bad = [name for name in self.scans if not name.isidentifier()]
        if bad:
            raise ValueError(f"scans: {bad} cannot name a scan; use letters, digits and _")
        if self.scans and not self.references:
            raise ValueError("scans: without references there are no maps to lay them on")
        owner = dict.fromkeys(self.references, "the run")
        for name, scan in self.scans.items():
            for component in scan.references:  # type: ignore[attr-defined]
                if component in owner:
                    raise ValueError(
                        f"scans.{name}: the component '{component}' is that of {owner[component]}"
                        " too; call it something else, or leave out the references of a repeat"
                    )
                owner[component] = name
        return self


Run = create_model("Run", __base__=_Run, __doc__=_Run.__doc__, **_STAGE_FIELDS)


def parse_run(content: Mapping[str, Any], where: object = "run description") -> Any:
    """Check a run description and fill in the defaults.

    Parameters
    ----------
    content : mapping
        As read from YAML.
    where : object
        The file, for messages.

    Returns
    -------
    Run
        The frozen, validated description.

    Raises
    ------
    InputError
        With every mistake on a line of its own, each with its path.
    """
    try:
        return Run.model_validate(dict(content))
    except ValidationError as error:
        count = f"{error.error_count()} mistakes" if error.error_count() > 1 else "a mistake"
        raise InputError(
            f"{count} in the run description:{mistakes(error.errors())}", where=where
        ) from None


def describe_scan(run: Any, name: str) -> Any:
    """The run description of a further scan alone.

    Parameters
    ----------
    run : Run
        A run description with the scan in its ``scans``.
    name : str
        Name of the scan.

    Returns
    -------
    Run
        What the scan says, and what the run says where the scan says nothing; references and the
        mapped fraction go together. A scan without references is a repeat.
    """
    own = run.scans[name].model_dump(exclude_unset=True)
    content = run.model_dump(exclude=set(_OWN_TO_A_STACK))
    if own.get("references"):
        content |= {"fraction": None, "edge": None}
    for key, value in own.items():
        merge = isinstance(value, dict) and key not in ("references", "i0", "shifts", "exclude")
        content[key] = {**content[key], **value} if merge else value
    return parse_run(content, f"scans.{name}")


def resolve_paths(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of a run description made absolute, relative ones from the given folder.

    A path that does not exist below the folder is left as it is: it may name a data set.
    """

    def absolute(value: str) -> str:
        candidate = folder / value
        found = candidate.exists() or any(mark in value for mark in "*?[")
        return str(candidate.resolve() if candidate.exists() else candidate) if found else value

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, k) for k, v in value.items()}
        if key in PATH_KEYS and isinstance(value, str):
            return absolute(value)
        if key == "stack" and isinstance(value, list):
            return [absolute(v) if isinstance(v, str) else v for v in value]
        return value

    return {key: walk(value, key) for key, value in content.items()}


def load_content(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keys and values of a run description file, paths made absolute."""
    return resolve_paths(load_yaml(path), Path(path).resolve().parent)


def load_run(path: str | os.PathLike[str], **overrides: Any) -> Any:
    """Read a run description; paths in it are relative to the file.

    Parameters
    ----------
    path : path
        The YAML file.
    **overrides
        Top-level keys that replace those of the file.

    Returns
    -------
    Run

    Raises
    ------
    FileError, InputError
        The file cannot be read, or holds mistakes; all are named at once.
    """
    return parse_run({**load_content(path), **overrides}, path)


def to_yaml(run: Any) -> str:
    """The whole run description, defaults included, as YAML text.

    Further scans are written as they were given: what they leave out they take over from the run.
    """
    content = run.model_dump(mode="json")
    content["scans"] = {
        name: scan.model_dump(mode="json", exclude_unset=True) for name, scan in run.scans.items()
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
