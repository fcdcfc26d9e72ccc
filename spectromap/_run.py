"""The steps of a run, and what they know of each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap import (
    absorption,
    align,
    calibrate,
    explore,
    heterogeneity,
    oxygen,
    profiles,
    resolution,
    segment,
    unmix,
)
from spectromap import (
    scans as field_scans,
)
from spectromap._overview import Overview
from spectromap._plan import Mask, Plan, Setting, in_stack_order
from spectromap._streaming import Frames, MapStore, Progress, binned, progress_bar
from spectromap.radial import fit as radial_fit
from spectromap.schema import FLAGS, LOG, InputError, component_names, pixel_size

__all__ = ["STEPS", "Groups", "Run", "Scans"]

Groups = dict[str, xr.Dataset]
Scans = Mapping[str, tuple[xr.DataArray, Plan]]

#: The steps in their order; each rests on those before it.
STEPS = (
    *("data", "align", "i0", "energy"),
    *("composition", "particles", "models", "heterogeneity"),
)


#: Until it is estimated; relative errors of a resolution that is given, and of one that cannot be
#: told.
DEFAULT_RESOLUTION_PX = 2.0
GIVEN_RESOLUTION_ERROR, UNKNOWN_RESOLUTION_ERROR = 0.1, 0.4
#: The middle of a larger picture says as much about the resolution, in less memory.
MOST_RESOLUTION_PX = 2048
#: Mean OD of the pixels whose spectra are averaged, at least, and OD at the highest peak, at most.
MEAN_SPECTRUM_OD = (0.1, 3.0)
#: Highest peak of a spectrum over its mean, where no references tell it.
USUAL_PEAK = 3.0
FEW_SPECTRA, MOST_SPECTRA = 200, 20_000
#: The logarithm of so many counts is not biased by their noise.
ENOUGH_COUNTS = 2000.0
#: Stray light is looked for in so many of the most absorbing pixels, at most this share of all.
STRAY_PIXELS = 4096
ABSORBING_SHARE = 0.3
STRAY_LEAST_OD = 0.3
#: ... where the thickness changes by less than this share over one resolution: light of thinner
#: neighbours mixed in by the optics looks like stray light.
STRAY_EVENNESS = 0.15
STRAY_LEAST_PIXELS = 30
#: The open area must not absorb like the sample; this much mean optical density counts as doing so.
OPEN_AREA_MAX_OD = 0.1


class Run(Setting):
    """What was found of a stack so far, and the steps that find more, in the order of `STEPS`.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        The stack, lazy or not.
    plan : Plan
        References and options.
    scans : mapping of name to (DataArray, Plan), optional
        Further scans of the same field.
    scratch : path, optional
        Folder for the uncompressed copy of a stack that does not fit in memory.
    progress : bool or callable
        See `spectromap._streaming.Progress`.
    """

    def __init__(
        self,
        stack: xr.DataArray,
        plan: Plan,
        scans: Scans | None = None,
        scratch: str | Path | None = None,
        progress: Progress = False,
    ) -> None:
        super().__init__(stack, plan)
        self.source = stack
        self.scans, self.scratch, self.progress = dict(scans or {}), scratch, progress
        self.groups: Groups = {}
        self.mapped_scans: dict[str, Run] = {}
        self.dark = plan.instrument.dark_counts if self.quantity == "counts" else 0.0
        self.resolution = self._first_resolution()
        self.resolution_rel_error = GIVEN_RESOLUTION_ERROR
        self.sharpest: xr.Dataset | None = None
        self.noise: xr.Dataset | None = None

    def continued(self, plan: Plan, scans: Scans | None = None) -> Run:
        """A run that knows the same and goes on by another plan; this one stays as it is."""
        other = copy.copy(self)
        other.noise = None
        Setting.__init__(other, self.stack, plan)
        other.scans, other.mapped_scans = dict(scans or {}), dict(self.mapped_scans)
        other.groups = {name: group.copy() for name, group in self.groups.items()}
        if "shifts" in self.groups:
            other.overview = copy.copy(self.overview)
        return other

    def run(self, step: str) -> None:
        """Do one step; those before it are done."""
        steps: dict[str, Callable[[], None]] = {
            "data": self._read,
            "align": self._register,
            "i0": self._open_area,
            "energy": self._calibrate,
            "composition": self._map,
            "particles": self._find_particles,
            "models": self._fit_models,
            "heterogeneity": self._compare,
        }
        steps[step]()

    def _read(self) -> None:
        plan = self.plan
        dark = plan.instrument.dark_counts
        frames = Frames.read(self.stack, dark, self.scratch, self.progress)
        pixels = None
        if plan.exclude_mask is not None:
            pixels = in_stack_order(plan.exclude_mask, self.stack, "exclude.mask")
        self.frames = frames.without(energies=self._left_out(), pixels=pixels)
        self.stack = self.frames.stack

    def _left_out(self) -> list[int]:
        """Numbers of the frames that are left out by hand."""
        energy = self.stack.energy.values
        return [align.frame_number(energy, e) for e in self.plan.exclude_energies]

    def _register(self) -> None:
        self.groups["shifts"] = self.register()

    def _open_area(self) -> None:
        self.groups["i0"] = self.open_area(self.groups["shifts"])

    def _calibrate(self) -> None:
        if self.plan.spectra:
            found = self.calibrate(self.groups["shifts"], self.groups["i0"])
            self.groups["spectra"], self.groups["components"] = found

    def _map(self) -> None:
        groups = self.groups
        shifts, i0 = groups["shifts"], groups["i0"]
        if not self.plan.spectra:
            groups |= self.without_references(shifts, i0)
            return
        spectra, components = groups["spectra"], groups["components"]
        self.find_stray(spectra, shifts, i0, components)
        maps = self.map_composition(shifts, i0, spectra, components)
        self.describe(spectra, components)
        self.find_resolution(spectra)
        self.carry_phase(shifts, spectra, maps)
        self.find_dose(spectra, maps)
        groups["maps"] = maps
        for name, (stack, plan) in self.scans.items():
            LOG.info("scan '%s'", name)
            other = Run(stack, plan, None, self.scratch, self.progress)
            for step in STEPS[: STEPS.index("composition") + 1]:
                other.run(step)
            self.mapped_scans[name] = other

    def _find_particles(self) -> None:
        if self._looks_for_particles():
            self.groups["particles"] = self.find_particles(self.groups["maps"])

    def _fit_models(self) -> None:
        if "particles" in self.groups:
            self.groups |= self.fit_models()

    def _compare(self) -> None:
        groups = self.groups
        if "particles" in groups:
            groups |= self.compare(groups["particles"], groups["maps"])
        for name, other in self.mapped_scans.items():
            groups |= self.add_scan(name, groups, other)

    @property
    def quantity(self) -> str:
        """What the values of the stack are."""
        return str(self.stack.attrs["quantity"])

    def _first_resolution(self) -> float:
        """Resolution in nm as it is given, or what will do until it is estimated."""
        given = self.plan.instrument.resolution_nm
        return (
            DEFAULT_RESOLUTION_PX * max(pixel_size(self.stack)) if given is None else float(given)
        )

    def find_resolution(self, spectra: xr.Dataset) -> None:
        """Estimate the resolution where it is not given, and say so in the spectra."""
        if self.sharpest is not None:
            picture = _middle(self.sharpest, MOST_RESOLUTION_PX)
            found = resolution.estimate_resolution(
                picture["mean_transmission"], picture["mean_transmission_errors"]
            )
            if found.limit or not np.isfinite(found.fwhm_nm):
                self.resolution = float(np.nanmin([found.fwhm_nm, self.resolution]))
                self.resolution_rel_error = UNKNOWN_RESOLUTION_ERROR
                LOG.warning(
                    "instrument.resolution_nm is not given and cannot be estimated (%s): %.3g nm is"
                    " assumed, and D depends on it", found.reason, self.resolution
                )  # fmt: skip
            else:
                self.resolution = found.fwhm_nm
                self.resolution_rel_error = found.error_nm / found.fwhm_nm
                LOG.info("resolution: %.3g +- %.2g nm", found.fwhm_nm, found.error_nm)
        error = self.resolution * self.resolution_rel_error
        text = "full width at half maximum of the point spread function"
        spectra["resolution"] = ((), self.resolution, {"units": "nm", "long_name": text})
        spectra["resolution_errors"] = ((), error, {"units": "nm"})

    def register(self) -> xr.Dataset:
        """Shift of every frame, and with it an overview of the field."""
        plan, dark = self.plan, self.dark
        binning = align.binning_for(self.stack.shape[1:])
        small = binned(self.stack, binning, self.progress)
        if plan.shifts is not None:
            shifts = align.given_shifts(self.stack, plan.shifts)
        else:
            LOG.info("registering frames")
            shifts = align.register(
                small,
                dark * binning**2,
                self._align_mask(),
                plan.align_reference,
                **plan.of("align"),
            )
        left_out = set(self._left_out())
        energy = self.stack.energy.values
        corrected = {
            e: by
            for e, by in plan.shift_corrections.items()
            if align.frame_number(energy, e) not in left_out
        }
        if corrected:
            shifts = align.correct_shifts(shifts, corrected)
        shape = (self.stack.sizes["y"], self.stack.sizes["x"])
        self.overview = Overview.of(small, binning, shape, shifts, dark)
        return shifts

    def _align_mask(self) -> xr.DataArray | None:
        """The pixels that registration looks at, with their axes."""
        if self.plan.align_mask is None:
            return None
        mask = in_stack_order(self.plan.align_mask, self.stack, "shifts.mask")
        return xr.DataArray(mask, coords={"y": self.stack.y, "x": self.stack.x}, dims=("y", "x"))

    def open_area(self, shifts: xr.Dataset) -> xr.Dataset:
        """I0 of every frame, with the gain it implies in ``attrs['gain']``."""
        plan = self.plan
        area, doubt = self._area()
        self.area = area
        if plan.i0_spectrum is not None:
            bright = self.frames.defects["brightness"].values
            i0 = absorption.i0_from_spectrum(plan.i0_spectrum, self.stack, bright, self.dark)
            if area.any():
                i0["noise"] = absorption.i0_from_area(self.stack, area, shifts, self.dark)["noise"]
        else:
            i0 = absorption.i0_from_area(self.stack, area, shifts, self.dark, doubt)
            self.frames = self.frames.without(rows=i0["step_rows"].values)
            self.stack = self.frames.stack
            if self.quantity == "optical_density":
                i0["i0"][:], i0["i0_errors"][:] = 1.0, 0.0  # I0 was divided out already
            elif not doubt:
                self._check_open_area(i0)
        if not (i0["i0"].values > 0).any():
            raise InputError(
                "I0 is zero or missing at every energy",
                where="i0",
                remedy="Choose another region, mask or spectrum.",
            )
        i0.attrs["gain"] = absorption.effective_gain(i0, self.quantity)
        self.overview.set_open_area(area)
        return i0

    def _check_open_area(self, i0: xr.Dataset) -> None:
        """Warn if I0 was taken where there is sample."""
        if not self.plan.spectra:
            return
        od = absorption.sample_in_open_area(i0, self.reference_set())
        if od > OPEN_AREA_MAX_OD:
            LOG.warning(
                "the open area absorbs like the sample (optical density %.2f at the edge), so the"
                " field may have no open area; give i0 as a spectrum or a mask", od
            )  # fmt: skip

    def _area(self) -> tuple[Mask, float]:
        """The open area in the common frame, given or found, and how far I0 is in doubt."""
        given = self.given_area()
        if given is not None:
            return given, 0.0
        if self.quantity == "optical_density":
            return np.ones(self.stack.shape[1:], dtype=bool), 0.0
        return self.overview.find_open_area(self.resolution)

    def without_references(self, shifts: xr.Dataset, i0: xr.Dataset) -> Groups:
        """What can be said without references: shifts, I0, mean spectrum, mean OD."""
        LOG.warning("no references are given: no composition, no thickness, no particles")
        spectra = self._mean_spectrum(shifts, i0, USUAL_PEAK)
        store = MapStore(self.stack, self.scratch)
        text = "optical density of the mean transmission"
        for rows in progress_bar(self.frames.slabs(), "averaging", self.progress):
            made = self.transmission(shifts, i0, rows)
            mean = made["transmission"].mean("energy").values
            with np.errstate(divide="ignore", invalid="ignore"):
                od = np.where(mean > 0, -np.log(mean), np.nan).astype(np.float32)
            maps = xr.Dataset({"mean_od": (("y", "x"), od, {"units": "1", "long_name": text})})
            store.put(rows, maps)
        maps = store.dataset()
        return {"shifts": shifts, "spectra": spectra, "maps": maps}

    def calibrate(self, shifts: xr.Dataset, i0: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Mean spectrum of thin pixels, and the references at the energies that it fixes."""
        LOG.info("calibrating the energy")
        known = self.reference_set()
        shapes = np.array([known[name].values for name in component_names(known)]).mean(axis=0)
        peak = float(shapes.max() / max(shapes.mean(), 1e-12))
        spectra = self._mean_spectrum(shifts, i0, peak)
        found = calibrate.calibrate_energy(
            spectra["mean_od"].values,
            spectra["mean_od_errors"].values,
            self.reference_set,
            self.plan.instrument.spectral_fwhm_eV,
            **self.plan.of("energy"),
        )
        for name, value, units, text in (
            ("energy_shift", found.shift, "eV", "true minus recorded energy"),
            ("energy_shift_errors", found.shift_error, "eV", ""),
            ("energy_scale", found.scale, "1", "scale of the energy axis about its middle"),
            ("energy_scale_errors", found.scale_error, "1", ""),
            ("broadening", found.broadening_eV, "eV", "FWHM by which references were broadened"),
            ("broadening_errors", found.broadening_error, "eV", ""),
            ("width_difference", found.width_difference_eV, "eV",
             "FWHM of the sample's lines beyond the references', in quadrature"),
            ("misfit", found.misfit, "1", "relative misfit of the references"),
        ):  # fmt: skip
            spectra[name] = ((), value, {"units": units} | ({"long_name": text} if text else {}))
        spectra.attrs["resolution"] = found.resolution
        return spectra, self.reference_set(found.shift, found.scale, found.broadening_eV)

    def _mean_spectrum(self, shifts: xr.Dataset, i0: xr.Dataset, peak: float) -> xr.Dataset:
        """Mean OD of pixels that absorb, but little even at the highest peak.

        The logarithm of few counts is biased, and that of a mean over unlike pixels too: so
        pixels of nearly the same thickness are averaged first, until they have counts enough.
        """
        pixels = self.thin = self._thin_pixels(peak)
        counts = float(np.nanmedian(i0["i0"].values)) / i0.attrs["gain"]
        together = int(np.clip(np.ceil(ENOUGH_COUNTS / max(counts, 1e-9)), 1, pixels.size))
        rows = self._transmission_at(pixels, shifts, i0)
        od, errors = np.full((2, self.stack.sizes["energy"]), np.nan)
        for index, row in enumerate(rows):
            od[index], errors[index] = _mean_of_groups(row, together, i0, index, self.dark)
        result = i0[["i0", "i0_errors"]].copy()
        result.attrs["gain"] = i0.attrs["gain"]
        result = result.merge(self._defect_counts())
        text = "mean optical density of thin absorbing pixels"
        result["mean_od"] = ("energy", od, {"units": "1", "long_name": text})
        result["mean_od_errors"] = ("energy", errors, {"units": "1"})
        return result

    def _defect_counts(self) -> xr.Dataset:
        """What was wrong with each frame, as numbers of samples."""
        defects = self.frames.defects
        columns, rows = defects.sizes["x"], defects.sizes["y"]
        found = {
            "lost_samples": defects["lost"] * (rows * columns),
            "bad_row_samples": defects["bad_rows"].sum("y") * columns,
            "bad_column_samples": defects["bad_columns"].sum("x") * rows,
            "spike_samples": defects["spikes"],
            "negative_samples": defects["negative"],
            "missing_samples": defects["missing"],
        }
        result = xr.Dataset(coords={"energy": self.stack.energy})
        for name, counts in found.items():
            text = f"{name.removesuffix('_samples').replace('_', ' ')} samples, left out"
            values = counts.values.astype(np.int64)
            result[name] = ("energy", values, {"units": "1", "long_name": text})
        return result

    def _thin_pixels(self, peak: float) -> NDArray[np.intp]:
        """Pixels thin enough for the mean spectrum, in the order of their mean OD."""
        od = self.overview.od.ravel()
        low, high = MEAN_SPECTRUM_OD[0], max(MEAN_SPECTRUM_OD[1] / peak, 2 * MEAN_SPECTRUM_OD[0])
        chosen = np.flatnonzero((od >= low) & (od <= high))
        if chosen.size < FEW_SPECTRA:  # all is thick, or nothing is: take what comes nearest
            distance = np.nan_to_num(np.abs(od - high), nan=np.inf)
            nearest = min(FEW_SPECTRA, int(np.isfinite(distance).sum()))
            chosen = np.argsort(distance, kind="stable")[:nearest]
        chosen = chosen[:: max(1, chosen.size // MOST_SPECTRA)]
        return self.overview.pixels(chosen[np.argsort(od[chosen], kind="stable")])

    def _transmission_at(
        self, pixels: NDArray[np.intp], shifts: xr.Dataset, i0: xr.Dataset
    ) -> NDArray[np.float32]:
        """Transmission (energy, pixel) at some pixels of the common frame."""
        result = np.full((self.stack.sizes["energy"], pixels.size), np.nan, dtype=np.float32)
        level = i0["i0"].values
        usable = ~shifts["flagged"].values & np.isfinite(level) & (level > 0)
        for index, values in self.frames.points(pixels, shifts, np.flatnonzero(usable).tolist()):
            values = absorption.intensity(values, self.quantity) - np.float32(self.dark)
            result[index] = values / level[index]
        return result

    def find_stray(
        self, spectra: xr.Dataset, shifts: xr.Dataset, i0: xr.Dataset, components: xr.Dataset
    ) -> None:
        """Add the fraction of light that the sample cannot absorb to the spectra."""
        stated = self.plan.instrument.stray_fraction
        fraction, error = stated, float("nan")
        if self.quantity == "counts":
            fraction, error = unmix.estimate_stray(
                self._thick_pixels(shifts, i0), components, stated, **self.plan.of("stray")
            )
        if fraction != stated:
            LOG.warning(
                "%.1f %% of the light does not feel the sample (stated: %.1f %%): fitted",
                100 * fraction, 100 * stated,
            )  # fmt: skip
        text = "fraction of the open-area light that the sample cannot absorb"
        spectra["stray_fraction"] = ((), fraction, {"units": "1", "long_name": text})
        spectra["stray_fraction_errors"] = ((), error, {"units": "1"})

    def _thick_pixels(self, shifts: xr.Dataset, i0: xr.Dataset) -> xr.Dataset:
        """Transmission of a sample of the most absorbing pixels, as one column of an image."""
        od = self.overview.od.ravel()
        least = max(STRAY_LEAST_OD, float(np.nanpercentile(od, 100 * (1 - ABSORBING_SHARE))))
        even = self.overview.unevenness(self.resolution).ravel() < STRAY_EVENNESS
        thick = np.flatnonzero((od > least) & even)
        thick = thick if thick.size >= STRAY_LEAST_PIXELS else thick[:0]
        thick = self.overview.pixels(thick[:: max(1, thick.size // STRAY_PIXELS)])
        return self._column(thick, shifts, i0)

    def _column(self, chosen: NDArray[np.intp], shifts: xr.Dataset, i0: xr.Dataset) -> xr.Dataset:
        """Transmission of some pixels (flat indices) as one column of an image."""
        axes = {
            "y": ("y", np.arange(chosen.size, dtype=float), {"units": "nm"}),
            "x": ("x", np.zeros(1), {"units": "nm"}),
        }
        column = self._transmission_at(chosen, shifts, i0)[:, :, None]
        values = {"transmission": (("energy", "y", "x"), column, {"units": "1"})}
        return self._noise(shifts, i0).assign_coords(axes).assign(values)

    def _noise(self, shifts: xr.Dataset, i0: xr.Dataset) -> xr.Dataset:
        """What `spectromap.absorption.transmission` says of every frame, whatever the pixel."""
        if self.noise is None:
            one = self.stack.isel(y=slice(0, 1), x=slice(0, 1)).copy(
                data=np.ones((self.stack.sizes["energy"], 1, 1), dtype=np.float32)
            )
            made = absorption.transmission(one, i0, shifts, self.dark, i0.attrs["gain"])
            self.noise = made.drop_dims(["y", "x"])
        return self.noise

    def spectrum_of(self, chosen: NDArray[np.intp]) -> xr.Dataset:
        """Mean optical density of some pixels (flat indices)."""
        chosen = chosen[:: -(-chosen.size // MOST_SPECTRA) or 1]
        column = self._column(chosen, self.groups["shifts"], self.groups["i0"])
        spectra = self.groups.get("spectra", xr.Dataset())
        column = _without_stray(column, float(spectra.get("stray_fraction", 0.0)))
        whole = np.ones((chosen.size, 1), dtype=bool)
        return explore.region_spectrum(column, whole).drop_vars(["region", "y", "x"])

    def fit_spectrum(self, found: xr.Dataset) -> xr.Dataset:
        """A mean spectrum with the fit by the references."""
        components = self.groups["components"]
        names = component_names(components)
        baseline = self.plan.of("fit").get("baseline", "constant")
        od = found["optical_density"].values
        # The noise of I0 is another one in every frame, so it counts like that of the region.
        errors = np.hypot(
            found["optical_density_errors"].values, found["optical_density_systematic"].values
        )
        amounts, covariance, fitted = unmix.fit_spectrum(od, errors, components, baseline=baseline)
        good = np.isfinite(od) & (errors > 0)
        freedom = max(int(good.sum()) - amounts.size, 1)
        chi2 = float(np.sum(((od - fitted)[good] / errors[good]) ** 2) / freedom)
        # What photons do not explain is as likely to have moved the amounts.
        covariance = covariance * max(chi2, 1.0)
        design = unmix.design_matrix(components, baseline)
        spread = np.sqrt(np.einsum("ij,jk,ik->i", design, covariance, design))
        count = len(names)
        curves = {
            "fit": fitted,
            "fit_errors": spread,
            "residual": od - fitted,
            "baseline": design[:, count:] @ amounts[count:],
            **{f"reference_{n}": amounts[k] * design[:, k] for k, n in enumerate(names)},
        }
        made = {name: ("energy", values, {"units": "1"}) for name, values in curves.items()}
        made |= self._amounts(amounts[:count], covariance[:count, :count])
        return found.assign(made).assign_attrs(chi2=chi2)

    def _amounts(
        self, amounts: NDArray[np.float64], covariance: NDArray[np.float64]
    ) -> dict[str, Any]:
        """Thickness and fractions, and their errors by propagation."""
        components = self.groups["components"]
        total = float(amounts.sum())
        units = {"units": "nm" if components.attrs["units"] == "nm-1" else "1"}
        found: dict[str, Any] = {
            "thickness": ((), total, units),
            "thickness_errors": ((), float(np.sqrt(covariance.sum())), units),
        }
        for k, name in enumerate(component_names(components)):
            slope = (np.arange(amounts.size) == k) / total - amounts[k] / total**2
            error = float(np.sqrt(slope @ covariance @ slope))
            found[f"{name}_fraction"] = ((), float(amounts[k] / total), {"units": "1"})
            found[f"{name}_fraction_errors"] = ((), error, {"units": "1"})
        return found

    def preview(self, rows: slice, columns: slice, most: int) -> xr.Dataset:
        """Composition of every n-th pixel of a box."""
        y, x = (np.arange(n)[s] for n, s in zip(self.stack.shape[1:], (rows, columns), strict=True))
        step = max(1, int(np.ceil(np.sqrt(y.size * x.size / most))))
        y, x = y[step // 2 :: step], x[step // 2 :: step]
        chosen = np.ravel_multi_index(np.meshgrid(y, x, indexing="ij"), self.stack.shape[1:])
        shifts, components = self.groups["shifts"], self.groups["components"]
        column = self._column(chosen.ravel(), shifts, self.groups["i0"])
        maps = unmix.fit_components(column, components, **self.plan.of("fit"))
        axes = {"y": self.stack.y[y], "x": self.stack.x[x]}
        return xr.Dataset(
            {n: (("y", "x"), a.values.reshape(y.size, x.size), a.attrs) for n, a in maps.items()},
            coords=axes,
            attrs=maps.attrs | {"fraction": self.plan.fraction},
        )

    def map_composition(
        self, shifts: xr.Dataset, i0: xr.Dataset, spectra: xr.Dataset, components: xr.Dataset
    ) -> xr.Dataset:
        """Composition maps, slab by slab of rows."""
        defects = self.frames.defects
        errors = np.stack([shifts[f"shift_{axis}_errors"].values for axis in "yx"], axis=1)
        store, means = MapStore(self.stack, self.scratch), MapStore(self.stack, self.scratch)
        sharpest = self.plan.instrument.resolution_nm is None
        technique = str(self.stack.attrs.get("technique", "stxm"))
        for rows in progress_bar(self.frames.slabs(), "fitting pixels", self.progress):
            made = self.transmission(shifts, i0, rows)
            if sharpest:
                means.put(rows, absorption.mean_transmission(made, technique))
            maps = unmix.fit_components(
                made,
                components,
                float(np.nan_to_num(spectra["energy_shift_errors"])),
                float(spectra["stray_fraction"]),
                errors,
                self.overview.log_gradient(rows),
                **self.plan.of("fit"),
            )
            here = slice(rows.start, rows.stop)
            for name, flag in (("dead", "dead"), ("hot", "dead"), ("saturated", "saturated")):
                maps["flags"].values[defects[name].values[here]] |= FLAGS[flag]
            store.put(rows, maps)
        self.sharpest = means.dataset() if sharpest else None
        maps = store.dataset()
        maps["flags"].attrs |= {
            "flag_masks": np.array(list(FLAGS.values()), dtype=np.int32),
            "flag_meanings": " ".join(FLAGS),
        }
        maps.attrs["fraction"] = self.plan.fraction
        return maps

    def transmission(self, shifts: xr.Dataset, i0: xr.Dataset, rows: range) -> xr.Dataset:
        """Transmission of some rows of the common frame."""
        aligned = self.frames.aligned(shifts, rows)
        return absorption.transmission(aligned, i0, shifts, self.dark, i0.attrs["gain"])

    def carry_phase(self, shifts: xr.Dataset, spectra: xr.Dataset, maps: xr.Dataset) -> None:
        """Add the mean phase of a ptychographic stack to the maps, and its spectrum."""
        source = self.source
        if source.dtype.kind != "c" or not self.area.any():
            return
        total, seen = np.zeros((2, *self.stack.shape[1:]), dtype=np.float32)
        mean = np.full(self.stack.sizes["energy"], np.nan)
        thin = np.unravel_index(self.thin, self.stack.shape[1:])
        kept = np.flatnonzero(~shifts["flagged"].values)
        for index in progress_bar(list(kept), "phases", self.progress):
            one = [int(index)]
            angle = explore.phase(source[one], self.area, shifts.isel(energy=one))
            angle.attrs["quantity"] = "optical_density"  # it moves like any other real frame
            aligned = align.apply_shifts(angle, shifts.isel(energy=one)).values[0]
            finite = np.isfinite(aligned)
            total += np.where(finite, aligned, 0.0)
            seen += finite
            values = aligned[thin]
            mean[index] = np.nanmean(values) if np.isfinite(values).any() else np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            phase = np.where(seen > 0.5 * kept.size, total / seen, np.nan).astype(np.float32)
        text = "mean phase relative to the open area"
        maps["phase"] = (("y", "x"), phase, {"units": "rad", "long_name": text})
        text = "mean phase of the pixels of the mean spectrum"
        spectra["mean_phase"] = ("energy", mean, {"units": "rad", "long_name": text})

    def find_dose(self, spectra: xr.Dataset, maps: xr.Dataset) -> None:
        """Add the dose of the scan to the maps, where counts and the density say it."""
        density = self.plan.sample.density_g_cm3
        if self.quantity == "counts" and density and maps["thickness"].attrs["units"] == "nm":
            maps["dose"] = field_scans.dose_map(
                maps, spectra, density, detector_efficiency=self.plan.instrument.detector_efficiency
            )

    def describe(self, spectra: xr.Dataset, components: xr.Dataset) -> None:
        """Complete the spectra: fit of the mean spectrum, references as used."""
        od, errors = spectra["mean_od"].values, spectra["mean_od_errors"].values
        baseline = self.plan.of("fit").get("baseline", "constant")
        _, _, fitted = unmix.fit_spectrum(od, errors, components, baseline=baseline)
        spectra["mean_fit"] = ("energy", fitted, {"units": "1"})
        for name in component_names(components):
            spectra[f"reference_{name}"] = components[name]

    def _looks_for_particles(self) -> bool:
        """Whether particles are wanted and the maps can tell them."""
        if "components" not in self.groups:
            return False
        if self.groups["maps"]["thickness"].attrs["units"] != "nm":
            LOG.warning(
                "thickness is relative to the references, so no particles are looked for; give"
                " sample.formula and sample.density_g_cm3, or references per nm"
            )
            return False
        return self.plan.labels is not None or bool(self.plan.of("segment").get("enabled", True))

    def find_particles(self, maps: xr.Dataset) -> xr.Dataset:
        """The particle table; adds the labels to the maps."""
        plan = self.plan
        LOG.info("particles")
        if plan.labels is not None:
            labels = segment.check_labels(plan.labels, maps["thickness"])
        else:
            labels = segment.find_particles(
                maps["thickness"], maps["thickness_errors"], self.resolution, **plan.of("segment")
            )
        maps["particle_label"] = labels
        if plan.agglomerates is None:
            groups = segment.group_agglomerates(labels, **plan.of("agglomerates"))
        else:
            groups = segment.given_agglomerates(labels, plan.agglomerates)
        maps["agglomerate_label"] = groups
        maps["edge_distance"] = segment.edge_distance(
            labels,
            maps["thickness"],
            self.resolution,
            threshold_nm=plan.of("segment").get("threshold_nm"),
        )
        return self.particle_table(maps)

    def particle_table(self, maps: xr.Dataset) -> xr.Dataset:
        """The table of the particles that are in the maps."""
        plan = self.plan
        return segment.particle_table(
            maps,
            plan.fraction,
            self.resolution,
            plan.sample.geometry,
            plan.sample.section_nm,
            **plan.of("particles"),
        )

    def radial_profiles(self, maps: xr.Dataset) -> xr.Dataset:
        """Radial profiles of the particles that are in the maps."""
        plan = self.plan
        return profiles.radial_profiles(maps, plan.fraction, self.resolution, **plan.of("profiles"))

    def fit_models(self) -> Groups:
        """Profiles, the models fitted to them, and what the particles say together."""
        LOG.info("profiles and models")
        maps, particles = self.groups["maps"], self.groups["particles"]
        found = self.radial_profiles(maps)
        models = radial_fit.fit_models(
            found,
            particles,
            self._context(self.groups["spectra"], self.groups["components"]),
            maps,
            partial(progress_bar, text="fitting particles", show=self.progress),
            **self.plan.of("models"),
        )
        pooled = radial_fit.pool(models, particles, **self.plan.of("pooled"))
        return {"profiles": found, "models": models, "pooled": pooled}

    def compare(self, particles: xr.Dataset, maps: xr.Dataset) -> Groups:
        """Statistics of heterogeneity, and the oxygen that was lost."""
        plan = self.plan
        found = heterogeneity.statistics(
            particles,
            plan.fraction,
            maps,
            self.resolution,
            seed=plan.seed,
            **plan.of("heterogeneity"),
        )
        return {"heterogeneity": found} | self.balance_oxygen(particles, maps)

    def balance_oxygen(self, particles: xr.Dataset, maps: xr.Dataset) -> Groups:
        """Lost oxygen, where composition and valences are known and the sample counts it."""
        plan, states = self.plan, self.oxygen_states()
        if states is None or not particles.sizes["particle"]:
            return {}
        if plan.sample.state == "charged":
            LOG.warning("oxygen: the sample is charged, so its composition does not count oxygen")
            return {}
        try:
            measured = oxygen.mean_fraction(particles, plan.fraction, maps)
            return {"oxygen": self.oxygen_of(measured, states)}
        except InputError as error:  # all else of the run stands
            LOG.warning("oxygen: no balance: %s", error)
            return {}

    def add_scan(self, name: str, groups: Groups, other: Run) -> Groups:
        """Lay the maps of a further scan on the grid of this one, and compare them.

        What the particles are made of at another edge goes into their table.
        """
        maps, fraction, found = groups["maps"], other.plan.fraction, other.groups
        try:
            place = field_scans.register_scan(
                maps, found["maps"], self.resolution, other.resolution
            )
        except InputError as error:  # what was found without it stands
            LOG.warning("scans.%s: left out: %s", name, error)
            return {}
        moved = field_scans.on_grid(found["maps"], maps, place)
        moved.attrs |= {"fraction": fraction, "edge": other.edge.name if other.edge else ""}
        for axis in ("y", "x"):
            LOG.info(
                "offset in %s: %.4g +- %.2g nm",
                axis, float(place[f"offset_{axis}"]), float(place[f"offset_{axis}_errors"]),
            )  # fmt: skip
        added = {f"maps_{name}": moved, f"spectra_{name}": found["spectra"]}
        if "particles" not in groups or not groups["particles"].sizes["particle"]:
            return added
        if fraction == self.plan.fraction:
            return added | self._add_repeat(name, groups, moved)
        return added | {"particles": self._with_fraction(groups, other, moved)}

    def _with_fraction(self, groups: Groups, other: Run, moved: xr.Dataset) -> xr.Dataset:
        """The particle table with the composition at another edge."""
        fraction, maps = other.plan.fraction, groups["maps"]
        both = moved.assign(particle_label=maps["particle_label"])
        both["edge_distance"] = maps["edge_distance"]
        sample = self.plan.sample
        table = segment.particle_table(
            both, fraction, other.resolution, sample.geometry, sample.section_nm
        )
        names = [f"{fraction}_fraction", f"{fraction}_fraction_errors"]
        return groups["particles"].assign({name: table[name] for name in names})

    def _add_repeat(self, name: str, groups: Groups, moved: xr.Dataset) -> Groups:
        """The comparison with a repeat, beside those of other repeats."""
        maps = groups["maps"]
        compared = field_scans.compare_repeats(
            maps, moved, self.plan.fraction, self.resolution, (maps.get("dose"), moved.get("dose"))
        )
        rings = resolution.fourier_ring_correlation(maps["thickness"], moved["thickness"])
        for number in ("ring_resolution", "ring_resolution_limit"):
            compared[number] = rings[number]
        compared = compared.expand_dims(scan=[name])
        done = [groups["repeats"]] if "repeats" in groups else []
        return {"repeats": xr.concat([*done, compared], "scan", join="outer")}

    def _context(self, spectra: xr.Dataset, components: xr.Dataset) -> radial_fit.Context:
        """What the radial models need to know of the sample and the instrument."""
        sample, fit = self.plan.sample, self.plan.of("fit")
        gain, max_od = float(spectra.attrs["gain"]), fit.get("max_od")
        return radial_fit.Context(
            geometry=sample.geometry,
            section_nm=sample.section_nm,
            resolution_nm=self.resolution,
            resolution_rel_error=self.resolution_rel_error,
            technique=self.stack.attrs.get("technique", "stxm"),
            delithiated_time_s=sample.delithiated_time_s,
            delithiated_time_rel_error=sample.delithiated_time_rel_error,
            references=components[component_names(components)],
            fraction=self.plan.fraction,
            photons=float(np.nanmedian(spectra["i0"].values)) / gain,
            dark_counts=self.dark / gain,
            stray_fraction=float(spectra["stray_fraction"]),
            max_od=np.inf if max_od is None else max_od,
            offset=fit.get("baseline", "constant") != "none",
        )


def _middle(maps: xr.Dataset, most: int) -> xr.Dataset:
    """The middle of maps, of at most so many pixels a side."""
    starts = {axis: max(maps.sizes[axis] - most, 0) // 2 for axis in ("y", "x")}
    return maps.isel({axis: slice(start, start + most) for axis, start in starts.items()})


def _mean_of_groups(
    row: NDArray[np.float32], together: int, i0: xr.Dataset, index: int, dark: float
) -> tuple[float, float]:
    """Mean OD of one frame over groups of like pixels, and its standard error."""
    row = row[: row.size // together * together].reshape(-1, together)
    row = row[np.isfinite(row).all(axis=1)].mean(axis=1, dtype=np.float64)
    row = row[row > 0]
    if row.size < 3:
        return float("nan"), float("nan")
    level = float(i0["i0"].values[index])
    photons = together * level / i0.attrs["gain"]
    variance = np.sum((row + dark / level) / row**2) / photons
    shared = np.nan_to_num(i0["i0_errors"].values[index] / level)
    return float(np.mean(-np.log(row))), float(np.hypot(np.sqrt(variance) / row.size, shared))


def _without_stray(pixels: xr.Dataset, stray: float) -> xr.Dataset:
    """Transmission without the light that the sample cannot absorb, and the noise of that."""
    if stray == 0.0:
        return pixels
    kept = 1.0 - stray
    changed = {name: pixels[name].copy() for name in ("transmission", "photons", "dark")}
    changed["transmission"] = (changed["transmission"] - stray) / kept
    changed["photons"] = changed["photons"] * kept
    changed["dark"] = (changed["dark"] + stray) / kept
    for name, array in changed.items():
        array.attrs = pixels[name].attrs
    return pixels.assign(changed)
