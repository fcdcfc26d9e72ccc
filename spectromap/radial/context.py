"""What the fit of radial models must know of the sample and of the measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import LOG, InputError

__all__ = ["Context", "Optics", "optics_of"]

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Context:
    """What the fit must know about the sample and the measurement.

    Parameters
    ----------
    geometry : str
        "dispersed" (whole particles) or "lamella" (a section of nominal thickness).
    section_nm : float, optional
        Nominal thickness of the lamella [nm].
    resolution_nm : float
        Full width at half maximum of the point spread function [nm].
    resolution_rel_error : float
        Its relative standard error, which enters the error of D.
    technique : str
        "stxm" or "ptychography": whether intensity or the modulus of the transmission is blurred.
    delithiated_time_s : float, optional
        Time [s] over which the sample was delithiated; without it only D t is reported.
    delithiated_time_rel_error : float
        Its relative standard error; common to all particles.
    references : Dataset, optional
        Spectra per nm of the components, dims (energy), named like the components. Without them
        the limit of small optical density is used.
    fraction : str
        Name of the mapped component.
    photons : float, optional
        Mean counts without sample; None if the spectral fit weighs all energies alike.
    dark_counts : float
        Mean dark counts.
    stray_fraction : float
        Fraction of the light that the spectral fit took as never absorbed.
    max_od : float
        Optical density past which the spectral fit leaves a sample out.
    offset : bool
        Whether the spectral fit has a constant background.
    edge_threshold_nm : float, optional
        Measured thickness at which the outline of a particle was drawn [nm]; None if the outline
        is the true one.
    """

    geometry: str = "dispersed"
    section_nm: float | None = None
    resolution_nm: float = 10.0
    resolution_rel_error: float = 0.1
    technique: str = "stxm"
    delithiated_time_s: float | None = None
    delithiated_time_rel_error: float = 0.0
    references: xr.Dataset | None = None
    fraction: str = "mn3"
    photons: float | None = 1e4
    dark_counts: float = 0.0
    stray_fraction: float = 0.0
    max_od: float = np.inf
    offset: bool = True
    edge_threshold_nm: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.geometry not in ("dispersed", "lamella"):
            raise InputError(f"'{self.geometry}' is not dispersed or lamella", where="geometry")
        if self.geometry == "lamella" and not (self.section_nm or 0) > 0:
            raise InputError(
                "a lamella needs its nominal thickness",
                where="section_nm",
                remedy="Give the thickness of the section in nm.",
            )
        if self.technique not in ("stxm", "ptychography"):
            raise InputError(f"'{self.technique}' is not stxm or ptychography", where="technique")
        for name in ("resolution_nm", "delithiated_time_s", "photons", "edge_threshold_nm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise InputError(f"{value} is not a positive number", where=name)
        if self.references is not None and self.fraction not in self.references:
            raise InputError(
                f"there is no reference spectrum '{self.fraction}'",
                where="references",
                remedy=f"They are named {', '.join(map(str, self.references))}.",
            )


@dataclass(frozen=True)
class Optics:
    """The measurement as the full calculation needs it."""

    spectra: Array
    mapped: int
    base: int
    context: Context

    def thinned(self, most: int) -> Optics:
        """The same with at most so many energies, spread evenly."""
        if len(self.spectra) <= most:
            return self
        chosen = np.linspace(0, len(self.spectra) - 1, most).round().astype(int)
        return replace(self, spectra=self.spectra[chosen])


def optics_of(context: Context) -> Optics | None:
    """Reference spectra for the full calculation, or None where there are none in nm."""
    references = context.references
    if references is None:
        return None
    names = [str(n) for n in references.data_vars if references[n].dims == ("energy",)]
    units = {references[n].attrs.get("units", "nm-1") for n in names}
    if units != {"nm-1"} or len(names) < 2:
        LOG.warning(
            "references: not two or more spectra in nm-1, so the radial models are blurred as for"
            " small optical density"
        )
        return None
    spectra = np.stack([np.asarray(references[n].values, float) for n in names], axis=1)
    spectra = spectra[np.all(np.isfinite(spectra), axis=1)]
    mapped = names.index(context.fraction)
    return Optics(spectra, mapped, 1 if mapped == 0 else 0, context)
