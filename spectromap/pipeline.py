"""The whole method, from a stack to a verdict, in the order in which it is done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from spectromap import (
    absorption,
    align,
    calibrate,
    detector,
    heterogeneity,
    profiles,
    references,
    segment,
    unmix,
)
from spectromap._numerics import KERNEL_HALF_WIDTH
from spectromap.radial import fit as radial_fit
from spectromap.schema import (
    FLAGS,
    LOG,
    SCHEMA_VERSION,
    FileError,
    InputError,
    Instrument,
    Sample,
    check_stack,
    component_names,
    pixel_size,
)

__all__ = ["Plan", "analyze"]

Groups = dict[str, xr.Dataset]
Options = Mapping[str, Mapping[str, Any]]
Mask = NDArray[np.bool_]

#: Stacks up to this size are held in memory, larger ones in a scratch file beside the result.
IN_MEMORY_BYTES = 256 * 2**20
#: Rows of one slab are chosen so that a slab of all energies has about this size.
SLAB_BYTES = 48 * 2**20
DEFAULT_RESOLUTION_PX = 2.0
#: Stray light is looked for in so many of the most absorbing pixels, at most this share of all.
STRAY_PIXELS = 4096
ABSORBING_SHARE = 0.3
#: The open area must not absorb like the sample; this much mean optical density counts as doing so.
OPEN_AREA_MAX_OD = 0.1


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
    scales, fwhm_eV : mapping, optional
        Scale rule and energy resolution of single references.
    labels : ndarray of int, optional
        Hand-corrected particle labels, on the pixel grid of the result.
    options : mapping
        Options of the stages: ``align``, ``energy``, ``stray``, ``fit``, ``segment``,
        ``agglomerates``, ``particles``, ``profiles``, ``models``, ``pooled``, ``heterogeneity``.
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
    scales: Mapping[str, references.Scale] = field(default_factory=dict)
    fwhm_eV: Mapping[str, float] = field(default_factory=dict)
    labels: NDArray[np.integer[Any]] | None = None
    options: Options = field(default_factory=dict)
    seed: int = 0

    def of(self, stage: str) -> dict[str, Any]:
        """Options of one stage."""
        return dict(self.options.get(stage, {}))


def analyze(
    stack: xr.DataArray,
    plan: Plan,
    *,
    scratch: str | Path | None = None,
    progress: bool = False,
) -> xr.DataTree:
    """Run the whole method on one stack.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        As `spectromap.open_stack` returns it; lazy stacks are read once.
    plan : Plan
        References and options.
    scratch : path, optional
        Folder for the uncompressed copy of a stack that does not fit in memory.
    progress : bool
        Show progress bars.

    Returns
    -------
    DataTree
        The result, with the groups and names of ``spectromap.schema.RESULT_GROUPS``.

    Raises
    ------
    InputError
        References, masks or labels that do not belong to the stack.
    """
    check_stack(stack)
    with threadpool_limits(1), _prepared(stack, scratch, progress) as (clean, defects):
        run = _Run(clean, plan, progress)
        shifts = run.register()
        i0 = run.open_area(shifts, defects)
        if not plan.spectra:
            return _tree(run.without_references(shifts, i0), stack, plan)
        spectra, set_of_references = run.calibrate(shifts, i0)
        run.find_stray(spectra, shifts, i0, set_of_references)
        maps = run.map_composition(shifts, i0, spectra, set_of_references, defects)
        spectra = run.describe(spectra, maps, set_of_references)
        groups = {"shifts": shifts, "spectra": spectra, "maps": maps}
        groups |= run.find_particles(maps, spectra, set_of_references)
    return _tree(groups, stack, plan)


def misfits(stack: xr.DataArray, plan: Plan) -> list[str]:
    """What of a plan does not fit a stack, a sentence each, without touching the data.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        The stack; only its axes are looked at.
    plan : Plan
        References and options.

    Returns
    -------
    list of str
        Empty if nothing is wrong.
    """
    found: list[str] = []
    run = _Run(stack, plan, progress=False)
    trials: list[Callable[[], object]] = []
    if plan.spectra:
        trials.append(run.reference_set)
    if plan.i0_region is not None or plan.i0_mask is not None:
        trials.append(run.given_area)
    if plan.labels is not None and plan.labels.shape != stack.shape[1:]:
        found.append(f"labels: shape {plan.labels.shape}, but the frames are {stack.shape[1:]}")
    for trial in trials:
        try:
            trial()
        except InputError as error:
            found.append(str(error))
    return found


class _Run:
    """One stack with its plan: the steps that `analyze` puts in order."""

    def __init__(self, stack: xr.DataArray, plan: Plan, progress: bool) -> None:
        self.stack, self.plan, self.progress = stack, plan, progress
        sample = plan.sample
        self.material = (
            references.Material(sample.formula, sample.density_g_cm3)
            if sample.formula and sample.density_g_cm3
            else None
        )
        self.dark = plan.instrument.dark_counts if stack.attrs["quantity"] == "counts" else 0.0
        self.resolution = self._resolution()

    def _resolution(self) -> float:
        """Resolution in nm, from the plan or from the pixel."""
        if self.plan.instrument.resolution_nm is not None:
            return float(self.plan.instrument.resolution_nm)
        assumed = DEFAULT_RESOLUTION_PX * max(pixel_size(self.stack))
        LOG.warning(
            "instrument.resolution_nm is not given: %.3g nm (two pixels) is assumed, and D depends"
            " on it", assumed
        )  # fmt: skip
        return assumed

    def reference_set(self, energy_shift: float = 0.0) -> xr.Dataset:
        """References on the energies of the stack at an energy shift."""
        energy = self.stack.energy.values.astype(float)
        recorded = self.plan.instrument.spectral_fwhm_eV
        broadening = {
            name: float(np.sqrt(max(recorded**2 - own**2, 0.0)))
            for name, own in self.plan.fwhm_eV.items()
            if recorded is not None
        }
        return references.reference_set(
            self.plan.spectra,
            energy,
            references.Edge(self.plan.edge or references.guess_edge(energy)),
            material=self.material,
            scales=self.plan.scales,
            broadening_eV=broadening,
            energy_shift=energy_shift,
        )

    def register(self) -> xr.Dataset:
        """Shift of every frame."""
        LOG.info("registering frames")
        known = self.reference_set() if self.plan.spectra else None
        return align.register(self.stack, known, self.dark, **self.plan.of("align"))

    def without_references(self, shifts: xr.Dataset, i0: xr.Dataset) -> Groups:
        """What can be said without references: shifts, I0, mean spectrum, mean OD."""
        LOG.warning("no references are given: no composition, no thickness, no particles")
        spectra = self._mean_spectrum(shifts, i0)
        total = self._mean_transmission(shifts, i0)
        maps = xr.Dataset(coords={"y": self.stack.y, "x": self.stack.x})
        with np.errstate(divide="ignore", invalid="ignore"):
            od = np.where(total > 0, -np.log(total), np.nan).astype(np.float32)
        text = "optical density of the mean transmission"
        maps["mean_od"] = (("y", "x"), od, {"units": "1", "long_name": text})
        return {"shifts": shifts, "spectra": spectra, "maps": maps}

    def open_area(self, shifts: xr.Dataset, defects: xr.Dataset) -> xr.Dataset:
        """I0 of every frame, with the gain it implies in ``attrs['gain']``."""
        plan = self.plan
        area = self._area(shifts)
        if plan.i0_spectrum is not None:
            bright = defects["brightness"].values
            i0 = absorption.i0_from_spectrum(plan.i0_spectrum, self.stack, bright, self.dark)
            if area.any():
                i0["noise"] = absorption.i0_from_area(self.stack, area, shifts, self.dark)["noise"]
        elif not area.any():
            raise InputError(
                "no open area was found in the stack",
                where="i0",
                remedy="Give i0 as a mask or a spectrum in the run description.",
            )
        else:
            if area.sum() < absorption.FEW_OPEN_PIXELS:
                LOG.warning("the open area has only %d pixels: I0 is noisy", int(area.sum()))
            i0 = absorption.i0_from_area(self.stack, area, shifts, self.dark)
            if self.stack.attrs["quantity"] == "optical_density":
                i0["i0"][:], i0["i0_errors"][:] = 1.0, 0.0  # I0 was divided out already
            else:
                self._check_open_area(i0)
        i0.attrs["gain"] = absorption.effective_gain(i0, self.stack.attrs["quantity"])
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

    def given_area(self) -> Mask | None:
        """The open area that the plan states, in the common frame."""
        plan, shape = self.plan, self.stack.shape[1:]
        if plan.i0_mask is not None:
            return _in_stack_order(plan.i0_mask, self.stack)
        if plan.i0_region is not None:
            y0, y1, x0, x1 = plan.i0_region
            if y1 > shape[0] or x1 > shape[1]:
                raise InputError(
                    f"the region {y0, y1, x0, x1} reaches outside the frames of {shape} pixels",
                    where="i0.region",
                    remedy="It is y0, y1, x0, x1 in pixels of the file, half open.",
                )
            region = np.zeros(shape, dtype=bool)
            region[y0:y1, x0:x1] = True
            return _in_stack_order(region, self.stack)
        return None

    def _area(self, shifts: xr.Dataset) -> Mask:
        """The open area in the common frame: given, or found on the mean image."""
        given, shape = self.given_area(), self.stack.shape[1:]
        if given is not None:
            return given
        if self.stack.attrs["quantity"] == "optical_density":
            return np.ones(shape, dtype=bool)
        margin = self.resolution / max(pixel_size(self.stack))
        return absorption.find_open_area(self._mean_image(shifts), margin)

    def _mean_image(self, shifts: xr.Dataset) -> NDArray[np.float64]:
        """Mean over a dozen frames, each divided by its brightness and brought into place."""
        kept = np.flatnonzero(~shifts["flagged"].values)
        chosen = kept[np.unique(np.linspace(0, kept.size - 1, min(12, kept.size)).astype(int))]
        sums = np.zeros(self.stack.shape[1:])
        seen = np.zeros(self.stack.shape[1:])
        for index in chosen:
            aligned = align.apply_shifts(
                self.stack[[int(index)]], shifts.isel(energy=[int(index)])
            ).values[0]
            values = absorption.intensity(aligned, self.stack.attrs["quantity"]) - self.dark
            finite = np.isfinite(values)
            if finite.any():
                values = values / np.percentile(values[finite], 95)
                sums += np.where(finite, values, 0.0)
                seen += finite
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(seen > 0.5 * len(chosen), sums / seen, np.nan)

    def calibrate(self, shifts: xr.Dataset, i0: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Mean spectrum of the absorbing pixels, and the references at the energy it fixes."""
        LOG.info("calibrating the energy")
        spectra = self._mean_spectrum(shifts, i0)
        od, errors = spectra["mean_od"].values, spectra["mean_od_errors"].values
        shift, error = calibrate.energy_shift(
            od, errors, self.reference_set, **self.plan.of("energy")
        )
        text = "true minus recorded energy"
        spectra["energy_shift"] = ((), shift, {"units": "eV", "long_name": text})
        spectra["energy_shift_errors"] = ((), error, {"units": "eV"})
        return spectra, self.reference_set(shift)

    def _mean_spectrum(self, shifts: xr.Dataset, i0: xr.Dataset) -> xr.Dataset:
        """Mean OD of pixels that absorb, but not so much that counts run out."""
        mean = np.nan_to_num(
            -np.log(np.maximum(self._mean_transmission(shifts, i0), 1e-3)), nan=0.0
        )
        thick = (mean > 0.15) & (mean < 1.5)
        if thick.sum() < 20:
            thick = mean >= np.percentile(mean, 90)
        od = np.full(self.stack.sizes["energy"], np.nan)
        errors = od.copy()
        for index in range(od.size):
            row = self._frame_transmission(index, shifts, i0)[thick]
            row = row[np.isfinite(row) & (row > 0)]
            if row.size > 10:
                photons = i0["i0"].values[index] / i0.attrs["gain"]
                variance = np.sum((row + self.dark / i0["i0"].values[index]) / row**2) / photons
                od[index] = float(np.mean(-np.log(row)))
                shared = np.nan_to_num(i0["i0_errors"].values[index] / i0["i0"].values[index])
                errors[index] = float(np.hypot(np.sqrt(variance) / row.size, shared))
        result = i0[["i0", "i0_errors"]].copy()
        result.attrs["gain"] = i0.attrs["gain"]
        text = "mean optical density of absorbing pixels"
        result["mean_od"] = ("energy", od, {"units": "1", "long_name": text})
        result["mean_od_errors"] = ("energy", errors, {"units": "1"})
        return result

    def _frame_transmission(
        self, index: int, shifts: xr.Dataset, i0: xr.Dataset
    ) -> NDArray[np.float32]:
        """Transmission of one frame in the common frame."""
        one = [index]
        aligned = align.apply_shifts(self.stack[one], shifts.isel(energy=one))
        made = absorption.transmission(
            aligned, i0.isel(energy=one), shifts.isel(energy=one), self.dark, i0.attrs["gain"]
        )
        return np.asarray(made["transmission"].values[0])

    def _mean_transmission(self, shifts: xr.Dataset, i0: xr.Dataset) -> NDArray[np.float64]:
        """Mean transmission over a few frames spread over the energies."""
        kept = np.flatnonzero(~shifts["flagged"].values & (i0["i0"].values > 0))
        chosen = kept[np.unique(np.linspace(0, kept.size - 1, min(12, kept.size)).astype(int))]
        total = np.zeros(self.stack.shape[1:])
        for index in chosen:
            total += self._frame_transmission(int(index), shifts, i0) / len(chosen)
        return total

    def find_stray(
        self, spectra: xr.Dataset, shifts: xr.Dataset, i0: xr.Dataset, components: xr.Dataset
    ) -> None:
        """Add the fraction of light that the sample cannot absorb to the spectra."""
        stated = self.plan.instrument.stray_fraction
        fraction, error = stated, float("nan")
        if self.stack.attrs["quantity"] == "counts":
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
        mean = self._mean_transmission(shifts, i0)
        thick = np.flatnonzero(mean < np.nanpercentile(mean, 100 * ABSORBING_SHARE))
        thick = thick[mean.ravel()[thick] < 0.75]
        if thick.size > STRAY_PIXELS:
            thick = thick[:: thick.size // STRAY_PIXELS]
        column = np.empty((self.stack.sizes["energy"], thick.size, 1), dtype=np.float32)
        for index in range(len(column)):
            column[index, :, 0] = self._frame_transmission(index, shifts, i0).ravel()[thick]
        one = self.stack.isel(y=slice(0, 8), x=slice(0, 8))
        noise = absorption.transmission(
            align.apply_shifts(one, shifts), i0, shifts, self.dark, i0.attrs["gain"]
        ).drop_dims(["y", "x"])
        axes = {"y": np.arange(thick.size, dtype=float), "x": np.zeros(1)}
        pixels = noise.assign_coords({k: (k, v, {"units": "nm"}) for k, v in axes.items()})
        pixels["transmission"] = (("energy", "y", "x"), column)
        return pixels

    def map_composition(
        self,
        shifts: xr.Dataset,
        i0: xr.Dataset,
        spectra: xr.Dataset,
        components: xr.Dataset,
        defects: xr.Dataset,
    ) -> xr.Dataset:
        """Composition maps, slab by slab of rows."""
        pieces = []
        for rows in _progress(list(_slabs(self.stack)), "fitting pixels", self.progress):
            made = absorption.transmission(
                _aligned_rows(self.stack, shifts, rows), i0, shifts, self.dark, i0.attrs["gain"]
            )
            pieces.append(
                unmix.fit_components(
                    made,
                    components,
                    float(spectra["energy_shift_errors"]),
                    float(spectra["stray_fraction"]),
                    **self.plan.of("fit"),
                )
            )
        maps = xr.concat(pieces, dim="y", combine_attrs="override")
        flags = maps["flags"].values
        flags |= np.where(defects["dead"].values, FLAGS["dead"], 0).astype(np.int32)
        flags |= np.where(defects["saturated"].values, FLAGS["saturated"], 0).astype(np.int32)
        maps["flags"].attrs |= {
            "flag_masks": np.array(list(FLAGS.values()), dtype=np.int32),
            "flag_meanings": " ".join(FLAGS),
        }
        maps.attrs["fraction"] = self.plan.fraction
        return maps

    def describe(self, spectra: xr.Dataset, maps: xr.Dataset, components: xr.Dataset) -> xr.Dataset:
        """The spectra group: I0, mean spectrum and its fit, references as used."""
        od, errors = spectra["mean_od"].values, spectra["mean_od_errors"].values
        baseline = self.plan.of("fit").get("baseline", "constant")
        _, _, fitted = unmix.fit_spectrum(od, errors, components, baseline=baseline)
        spectra["mean_fit"] = ("energy", fitted, {"units": "1"})
        for name in component_names(components):
            spectra[f"reference_{name}"] = components[name]
        return spectra

    def find_particles(
        self, maps: xr.Dataset, spectra: xr.Dataset, components: xr.Dataset
    ) -> Groups:
        """Particles and everything that follows from them; adds the labels to the maps."""
        plan, fraction = self.plan, self.plan.fraction
        if maps["thickness"].attrs["units"] != "nm":
            LOG.warning(
                "thickness is relative to the references, so no particles are looked for; give"
                " sample.formula and sample.density_g_cm3, or references per nm"
            )
            return {}
        LOG.info("particles, profiles and models")
        if plan.labels is not None:
            labels = segment.check_labels(plan.labels, maps["thickness"])
        else:
            labels = segment.find_particles(
                maps["thickness"], maps["thickness_errors"], self.resolution, **plan.of("segment")
            )
        maps["particle_label"] = labels
        maps["agglomerate_label"] = segment.group_agglomerates(labels, **plan.of("agglomerates"))
        maps["edge_distance"] = segment.edge_distance(
            labels,
            maps["thickness"],
            self.resolution,
            threshold_nm=plan.of("segment").get("threshold_nm"),
        )
        particles = segment.particle_table(
            maps,
            fraction,
            self.resolution,
            plan.sample.geometry,
            plan.sample.section_nm,
            **plan.of("particles"),
        )
        found = profiles.radial_profiles(maps, fraction, self.resolution, **plan.of("profiles"))
        models = radial_fit.fit_models(
            found, particles, self._context(spectra, components), **plan.of("models")
        )
        return {
            "particles": particles,
            "profiles": found,
            "models": models,
            "pooled": radial_fit.pool(models, particles, **plan.of("pooled")),
            "heterogeneity": heterogeneity.contrasts(
                particles, fraction, seed=plan.seed, **plan.of("heterogeneity")
            ),
        }

    def _context(self, spectra: xr.Dataset, components: xr.Dataset) -> radial_fit.Context:
        """What the radial models need to know of the sample and the instrument."""
        sample, fit = self.plan.sample, self.plan.of("fit")
        gain, max_od = float(spectra.attrs["gain"]), fit.get("max_od")
        return radial_fit.Context(
            geometry=sample.geometry,
            section_nm=sample.section_nm,
            resolution_nm=self.resolution,
            technique=self.stack.attrs.get("technique", "stxm"),
            delithiated_time_s=sample.delithiated_time_s,
            delithiated_time_rel_error=sample.delithiated_time_rel_error,
            references=components[component_names(components)],
            fraction=self.plan.fraction,
            photons=float(np.nanmedian(spectra["i0"].values)) / gain,
            dark_counts=self.dark / gain,
            max_od=np.inf if max_od is None else max_od,
            offset=fit.get("baseline", "constant") != "none",
        )


def _in_stack_order(image: Mask, stack: xr.DataArray) -> Mask:
    """An image in pixels of the file, turned as the reader turned the frames."""
    if image.shape != stack.shape[1:]:
        raise InputError(
            f"the mask has shape {image.shape}, the frames {stack.shape[1:]}",
            where="i0.mask",
            remedy="Save the mask on the pixel grid of the file.",
        )
    if stack.attrs.get("y_reversed"):
        image = image[::-1]
    return image[:, ::-1] if stack.attrs.get("x_reversed") else image


def _slabs(stack: xr.DataArray) -> Iterator[slice]:
    """Rows of the common frame, a slab at a time."""
    energies, ny, nx = stack.shape
    rows = max(1, int(SLAB_BYTES // (4 * energies * nx)))
    for start in range(0, ny, rows):
        yield slice(start, min(ny, start + rows))


def _aligned_rows(stack: xr.DataArray, shifts: xr.Dataset, rows: slice) -> xr.DataArray:
    """Aligned frames of a slab, read with the rows that shifting them needs."""
    kept = ~shifts["flagged"].values
    reach = shifts["shift_y"].values[kept] / pixel_size(stack)[0]
    below = int(np.ceil(max(0.0, -reach.min()))) + KERNEL_HALF_WIDTH
    above = int(np.ceil(max(0.0, reach.max()))) + KERNEL_HALF_WIDTH
    first = max(0, rows.start - below)
    last = min(stack.sizes["y"], rows.stop + above)
    aligned = align.apply_shifts(stack.isel(y=slice(first, last)), shifts)
    return aligned.isel(y=slice(rows.start - first, rows.stop - first))


@contextmanager
def _prepared(
    stack: xr.DataArray, folder: str | Path | None, progress: bool
) -> Iterator[tuple[xr.DataArray, xr.Dataset]]:
    """The stack, read once and rid of defects, in memory or in a scratch file; what was found."""
    real = np.dtype(np.float32)
    attrs = dict(stack.attrs)
    size = int(np.prod(stack.shape)) * real.itemsize
    with _store(stack, size, folder) as (frames, wrap):
        for start, stop in _progress(list(_energy_chunks(stack)), "reading frames", progress):
            block = np.asarray(stack[start:stop].values)
            # The phase of a reconstruction is not used: |A| is all that the maps follow from.
            frames[start:stop] = np.abs(block) if np.iscomplexobj(block) else block
        raw = wrap(stack.coords, attrs)
        defects = detector.find_defects(raw)
        for index, frame in enumerate(detector.clean_frames(raw, defects)):
            frames[index] = frame
        yield wrap(stack.coords, attrs), defects


def _energy_chunks(stack: xr.DataArray) -> Iterator[tuple[int, int]]:
    """First and last frame of each chunk of the file, so that none is decoded twice."""
    sizes = stack.chunks[0] if stack.chunks else (1,) * stack.sizes["energy"]
    start = 0
    for size in sizes:
        yield start, start + int(size)
        start += int(size)


@contextmanager
def _store(stack: xr.DataArray, size: int, folder: str | Path | None) -> Iterator[Any]:
    """Somewhere to keep float32 frames: an array, or an HDF5 file that is removed at the end."""

    def label(values: Any, coords: Any, attrs: dict[str, Any]) -> xr.DataArray:
        return xr.DataArray(values, dims=stack.dims, coords=coords, attrs=attrs, name="intensity")

    if size <= IN_MEMORY_BYTES or folder is None:
        frames = np.empty(stack.shape, dtype=np.float32)
        yield frames, lambda coords, attrs: label(frames, coords, attrs)
        return
    import h5netcdf

    path = Path(folder) / "scratch.part"
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        raise FileError(
            f"{size / 2**30:.1f} GiB of scratch space are needed, {free / 2**30:.1f} are free",
            where=folder,
            remedy="Choose an output folder on a larger disk.",
        )
    try:
        with h5netcdf.File(path, "w") as file:
            file.dimensions = dict(zip(stack.dims, stack.shape, strict=True))
            variable = file.create_variable("intensity", stack.dims, np.float32)

            def reopen(coords: Any, attrs: dict[str, Any]) -> xr.DataArray:
                lazy = xr.open_dataset(
                    xr.backends.H5NetCDFStore(file), decode_cf=False, cache=False
                )["intensity"]
                return lazy.assign_coords(coords).assign_attrs(attrs)

            yield variable, reopen
    finally:
        path.unlink(missing_ok=True)


def _tree(groups: Mapping[str, xr.Dataset], stack: xr.DataArray, plan: Plan) -> xr.DataTree:
    """The result tree."""
    tree = xr.DataTree.from_dict({f"/entry/{name}": group for name, group in groups.items()})
    tree["entry"].attrs = {
        "schema_version": SCHEMA_VERSION,
        "title": str(stack.attrs.get("title", Path(str(stack.attrs.get("source_file", ""))).stem)),
        "default": "maps",
        "technique": str(stack.attrs.get("technique", "stxm")),
        "source_file": str(stack.attrs.get("source_file", "")),
    }
    return tree


def _progress(items: list[Any], text: str, show: bool) -> Any:
    """The items, with a progress bar if one is wanted."""
    from tqdm import tqdm

    return tqdm(items, desc=text, disable=None if show else True, leave=False, delay=2.0)
