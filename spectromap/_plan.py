"""What a run needs to know beside the stack, and what can be checked without the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import oxygen, references
from spectromap.schema import InputError, Instrument, Sample

__all__ = ["Mask", "Plan", "Setting", "in_stack_order", "region_mask"]

Options = Mapping[str, Mapping[str, Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What a run needs to know beside the stack.

    Parameters
    ----------
    spectra : mapping of component name to DataArray (energy,)
        Reference spectra as `spectromap.io.read_spectrum` returns them.
    fraction : str
        The component that is mapped as a fraction.
    edge : str, optional
        Absorption edge, such as ``Mn L3``; by default the one the energies span.
    sample, instrument : Sample, Instrument
        See `spectromap.schema`.
    i0_region : tuple of int, optional
        ``y0, y1, x0, x1`` in pixels of the file, half open.
    i0_mask : ndarray of bool, optional
        Open area on the pixel grid of the file.
    i0_spectrum : DataArray, optional
        I0 measured apart. With none of the three the open area is found in the stack.
    shifts : Dataset, optional
        Shifts from elsewhere, as `spectromap.io.shifts.read_shifts` returns them; they replace
        registration.
    shift_corrections : mapping of energy in eV to (y, x) in nm
        Added to the shifts of the frames at these energies, by hand.
    exclude_energies : sequence of float
        Energies in eV of frames that are left out.
    exclude_mask : ndarray of bool, optional
        Pixels of the file that are left out of every frame.
    align_mask : ndarray of bool, optional
        Pixels of the file that registration looks at.
    align_reference : DataArray, optional
        A stack or image of the same field that fixes the common frame.
    scales, fwhm_eV : mapping, optional
        Scale rule and energy resolution of single references.
    labels : ndarray of int or DataArray, optional
        Hand-corrected particle labels, on the pixel grid of the result.
    agglomerates : ndarray of int or DataArray, optional
        Agglomerates drawn by hand, on the same grid.
    options : mapping
        Options of the stages: ``align``, ``energy``, ``stray``, ``fit``, ``segment``,
        ``agglomerates``, ``particles``, ``profiles``, ``models``, ``pooled``, ``heterogeneity``,
        ``oxygen``.
    seed : int
        Seed of every random step.
    """

    spectra: Mapping[str, xr.DataArray]
    fraction: str
    edge: str | None = None
    sample: Sample = field(default_factory=Sample)
    instrument: Instrument = field(default_factory=Instrument)
    i0_region: tuple[int, int, int, int] | None = None
    i0_mask: Mask | None = None
    i0_spectrum: xr.DataArray | None = None
    shifts: xr.Dataset | None = None
    shift_corrections: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    exclude_energies: Sequence[float] = ()
    exclude_mask: Mask | None = None
    align_mask: Mask | None = None
    align_reference: xr.DataArray | None = None
    scales: Mapping[str, references.Scale] = field(default_factory=dict)
    fwhm_eV: Mapping[str, float] = field(default_factory=dict)
    labels: NDArray[np.integer[Any]] | xr.DataArray | None = None
    agglomerates: NDArray[np.integer[Any]] | xr.DataArray | None = None
    options: Options = field(default_factory=dict)
    seed: int = 0

    def of(self, stage: str) -> dict[str, Any]:
        """Options of one stage."""
        return dict(self.options.get(stage, {}))


class Setting:
    """The axes of a stack with the plan for it: all that can be checked without the data."""

    def __init__(self, stack: xr.DataArray, plan: Plan) -> None:
        self.stack, self.plan = stack, plan
        sample = plan.sample
        self.material = (
            references.Material(sample.formula, sample.density_g_cm3)
            if sample.formula and sample.density_g_cm3
            else None
        )

        energy = stack.energy.values.astype(float)
        self.edge: references.Edge | None = None
        self.normal: dict[str, xr.DataArray] = {}
        if plan.spectra:
            self.edge = references.Edge(plan.edge or references.guess_edge(energy))
            self.normal = references.normalise_references(
                plan.spectra, self.edge, material=self.material, scales=plan.scales
            )

    def reference_set(
        self, shift: float = 0.0, scale: float = 1.0, broadening_eV: float = 0.0
    ) -> xr.Dataset:
        """References on the energies of the stack, at an energy calibration."""
        recorded = self.plan.instrument.spectral_fwhm_eV
        widths = {
            name: float(np.sqrt(max(recorded**2 - own**2, 0.0)))
            for name, own in self.plan.fwhm_eV.items()
            if recorded is not None
        }
        assert self.edge is not None, "a plan without references has no reference set"
        return references.reference_set(
            self.normal,
            self.stack.energy.values.astype(float),
            self.edge,
            broadening_eV=widths,
            energy_shift=shift,
            energy_scale=scale,
            extra_broadening_eV=broadening_eV,
        )

    def oxygen_states(self) -> tuple[float, float] | None:
        """States of the mapped metal at fractions 0 and 1, if the oxygen can be balanced."""
        formula, fraction = self.plan.sample.formula, self.plan.fraction
        valence = {n: s.attrs["valence"] for n, s in self.normal.items() if "valence" in s.attrs}
        if formula is None or self.edge is None or self.edge.element == "O":
            return None
        if len(self.normal) != 2 or len(valence) != 2:
            return None
        other = next(name for name in valence if name != fraction)
        return float(valence[other]), float(valence[fraction])

    def oxygen_of(self, mean: oxygen.Measured, states: tuple[float, float]) -> xr.Dataset:
        """Oxygen balance for a mean fraction."""
        sample, element = self.plan.sample, self.edge.element if self.edge else ""
        return oxygen.oxygen_balance(
            mean, sample.formula or "", states, sample.state, element, **self.plan.of("oxygen")
        )

    def given_area(self) -> Mask | None:
        """The open area that the plan states, in the common frame."""
        plan = self.plan
        if plan.i0_mask is not None:
            return in_stack_order(plan.i0_mask, self.stack)
        if plan.i0_region is not None:
            return region_mask(plan.i0_region, self.stack, "i0.region")
        return None


def region_mask(region: tuple[int, int, int, int], stack: xr.DataArray, where: str) -> Mask:
    """A region in pixels of the file as a mask of the stack."""
    y0, y1, x0, x1 = region
    shape = stack.shape[1:]
    if y1 > shape[0] or x1 > shape[1]:
        raise InputError(
            f"the region {y0, y1, x0, x1} reaches outside the frames of {shape} pixels",
            where=where,
            remedy="It is y0, y1, x0, x1 in pixels of the file, half open.",
        )
    mask = np.zeros(shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return in_stack_order(mask, stack, where)


def in_stack_order(image: Mask, stack: xr.DataArray, where: str = "i0.mask") -> Mask:
    """An image in pixels of the file, turned as the reader turned the frames."""
    if image.shape != stack.shape[1:]:
        raise InputError(
            f"the mask has shape {image.shape}, the frames {stack.shape[1:]}",
            where=where,
            remedy="Save the mask on the pixel grid of the file.",
        )
    if stack.attrs.get("y_reversed"):
        image = image[::-1]
    return image[:, ::-1] if stack.attrs.get("x_reversed") else image
