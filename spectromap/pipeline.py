"""The whole method, from a stack to a verdict, in the order in which it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from spectromap import explore, oxygen, references
from spectromap._plan import Mask, Plan, Setting, in_stack_order, region_mask
from spectromap._run import STEPS, Groups, Run, Scans
from spectromap._streaming import Progress
from spectromap.schema import SCHEMA_VERSION, InputError, check_stack

__all__ = ["STEPS", "Analysis", "Plan", "Scans", "analyze", "in_stack_order"]


def analyze(
    stack: xr.DataArray,
    plan: Plan,
    *,
    scans: Scans | None = None,
    scratch: str | Path | None = None,
    progress: Progress = False,
) -> xr.DataTree:
    """Run the whole method on one stack.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        As `spectromap.open_stack` returns it; lazy stacks are read once.
    plan : Plan
        References and options.
    scans : mapping of name to (DataArray, Plan), optional
        Further scans of the same field, at other edges or once more at the same one. Their maps
        come to lie on the grid of the first.
    scratch : path, optional
        Folder for the uncompressed copy of a stack that does not fit in memory.
    progress : bool or callable
        Show progress bars; or what is given the items of some work and a text, and gives the items
        back one by one.

    Returns
    -------
    DataTree
        The result, with the groups and names of ``spectromap.schema.RESULT_GROUPS``, and
        ``maps_<name>`` and ``spectra_<name>`` of every further scan.

    Raises
    ------
    InputError
        References, masks or labels that do not belong to the stack, or a scan of another field.
    """
    for one in (stack, *(other for other, _ in (scans or {}).values())):
        check_stack(one)
    with threadpool_limits(1):
        run = Run(stack, plan, scans, scratch, progress)
        for step in STEPS:
            run.run(step)
    return _tree(run)


class Analysis:
    """The steps of `analyze` one at a time; what each found is kept, so that it can be redone.

    Parameters
    ----------
    stack, plan, scans, scratch, progress
        As for `analyze`.
    """

    def __init__(
        self,
        stack: xr.DataArray,
        plan: Plan,
        *,
        scans: Scans | None = None,
        scratch: str | Path | None = None,
        progress: Progress = False,
    ) -> None:
        for one in (stack, *(other for other, _ in (scans or {}).values())):
            check_stack(one)
        self.stack, self.plan, self.scans = stack, plan, scans
        self._start = Run(stack, plan, scans, scratch, progress)
        self._after: dict[str, Run] = {}

    def change(self, plan: Plan, scans: Scans | None = None, *, since: str) -> None:
        """Go on by another plan; what steps before `since` found is kept, the rest is dropped.

        Parameters
        ----------
        plan, scans
            As for `analyze`; of the same stack.
        since : str
            The first step of `STEPS` for which the plan differs.
        """
        self.plan, self.scans = plan, scans
        for step in STEPS[STEPS.index(since) :]:
            self._after.pop(step, None)

    @property
    def done(self) -> tuple[str, ...]:
        """The steps that are done."""
        return tuple(step for step in STEPS if step in self._after)

    def run(self, step: str) -> None:
        """Do one step; those after it are dropped.

        Parameters
        ----------
        step : str
            One of `STEPS`; all before it are done.

        Raises
        ------
        InputError
            As `analyze` does.
        """
        number = STEPS.index(step)
        assert self.done[:number] == STEPS[:number], f"steps before '{step}' are missing"
        before = self._after[STEPS[number - 1]] if number else self._start
        run = before.continued(self.plan, self.scans)
        with threadpool_limits(1):
            run.run(step)
        self.change(self.plan, self.scans, since=step)
        self._after[step] = run

    def groups(self, step: str | None = None) -> Groups:
        """What was found up to a step, by default the last that is done.

        Parameters
        ----------
        step : str, optional
            One of `done`.

        Returns
        -------
        dict of Dataset
            The groups of the result, and ``i0`` with the ``open_area`` (y, x), and
            ``components``, the references on the energies of the stack.
        """
        run = self._run(step)
        groups = dict(run.groups)
        if "i0" in groups:
            stack = run.stack
            area = xr.DataArray(run.area, coords={"y": stack.y, "x": stack.x}, dims=("y", "x"))
            groups["i0"] = groups["i0"].assign(open_area=area)
        return groups

    def tree(self) -> xr.DataTree:
        """The result as far as it has come, as `analyze` returns it."""
        return _tree(self._run())

    def _run(self, step: str | None = None) -> Run:
        last = step or (self.done[-1] if self.done else None)
        return self._start if last is None else self._after[last]

    def spectrum(self, inside: Mask) -> xr.Dataset:
        """Optical density of a region, and its composition once the energy is calibrated.

        Parameters
        ----------
        inside : ndarray of bool, shape (ny, nx)
            The region in the common frame. Of large regions every n-th pixel is taken.

        Returns
        -------
        Dataset, dims (energy,)
            ``optical_density``, ``optical_density_errors`` and ``optical_density_systematic`` as
            `spectromap.explore.region_spectrum` makes them. With a calibrated energy also ``fit``,
            ``fit_errors``, ``residual``, ``baseline`` and ``reference_<component>`` times its
            amount; ``thickness`` and ``<component>_fraction`` with their ``_errors``. Attributes
            ``pixel_count`` and, of the fit, ``chi2`` per degree of freedom. Where it is above one
            the errors of the fit are those of the photons times its root.

        Raises
        ------
        InputError
            No pixel in the region was measured in every usable frame.
        """
        with threadpool_limits(1):
            run = self._run()
            found = run.spectrum_of(np.flatnonzero(inside))
            if "components" in run.groups:
                found = run.fit_spectrum(found)
        return found

    def preview(self, rows: slice, columns: slice, most: int = 10_000) -> xr.Dataset:
        """Composition of every n-th pixel of a box, as the whole field would be mapped.

        Parameters
        ----------
        rows, columns : slice
            The box in pixels of the common frame.
        most : int
            Pixels that are fitted, at most.

        Returns
        -------
        Dataset, dims (y, x)
            Maps as `spectromap.unmix.fit_components` makes them.
        """
        with threadpool_limits(1):
            return self._run("energy").preview(rows, columns, most)


def reference_of_region(
    stack: xr.DataArray,
    region: tuple[int, int, int, int],
    plan: Plan,
    *,
    name: str = "pristine",
    thickness_nm: float | None = None,
    thickness_error_nm: float = 0.0,
    scale: references.Scale = "auto",
) -> xr.DataArray:
    """Reference spectrum from a region of a stack, such as a pristine particle of the same day.

    Parameters
    ----------
    stack : DataArray, dims (energy, y, x)
        A stack of the same beamtime; its recorded energies are taken as they are.
    region : tuple of int
        ``y0, y1, x0, x1`` in pixels of the file, half open; thin sample all over.
    plan : Plan
        How this stack is aligned, where its I0 comes from, and what the sample is; references in
        it are not used.
    name : str
        Name of the component.
    thickness_nm, thickness_error_nm : float, optional
        Mean thickness of the region and its standard error, where it is known.
    scale : {"auto", "edge_jump", "none"}
        See `spectromap.references.normalise_reference`.

    Returns
    -------
    DataArray, dims (energy,)
        As `spectromap.references.reference_from_pixels` makes it.

    Raises
    ------
    InputError
        The region lies outside the frames, or an edge jump is asked for where there is none.
    """
    check_stack(stack)
    inside = region_mask(region, stack, f"references.{name}.region")
    with threadpool_limits(1):
        run = Run(stack, replace(plan, spectra={}))
        for step in ("data", "align", "i0"):
            run.run(step)
        shifts, i0 = run.groups["shifts"], run.groups["i0"]
        made = run.transmission(shifts, i0, range(stack.sizes["y"]))
        found = explore.region_spectrum(made, inside)
    energy = stack.energy.values.astype(float)
    kept = np.isfinite(found["optical_density"].values)
    count = {"pixel_count": found.attrs["pixel_count"]}
    return references.reference_from_pixels(
        found["optical_density"][kept].assign_attrs(count),
        references.Edge(plan.edge or references.guess_edge(energy)),
        errors=found["optical_density_errors"][kept],
        material=run.material,
        thickness_nm=thickness_nm,
        thickness_error_nm=thickness_error_nm,
        scale=scale,
        name=name,
    )


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
    try:
        run = Setting(stack, plan)
    except InputError as error:
        return [str(error)]
    trials: list[Callable[[], object]] = []
    if plan.spectra:
        trials.append(run.reference_set)
    if plan.i0_region is not None or plan.i0_mask is not None:
        trials.append(run.given_area)
    states = run.oxygen_states()
    if states is not None and plan.sample.state == "discharged":
        trials.append(partial(run.oxygen_of, oxygen.Measured(0.0), states))
    for where, drawn in (("labels", plan.labels), ("agglomerate_labels", plan.agglomerates)):
        if drawn is not None and drawn.shape != stack.shape[1:]:
            found.append(f"{where}: shape {drawn.shape}, but the frames are {stack.shape[1:]}")
    for trial in trials:
        try:
            trial()
        except InputError as error:
            found.append(str(error))
    return found


def _tree(run: Run) -> xr.DataTree:
    """The result tree."""
    stack, plan = run.source, run.plan
    groups = {n: g for n, g in run.groups.items() if n not in ("i0", "components")}
    tree = xr.DataTree.from_dict({f"/entry/{name}": group for name, group in groups.items()})
    state: dict[str, Any] = {"sample_state": plan.sample.state}
    if plan.sample.cycles is not None:
        state["cycles"] = plan.sample.cycles
    tree["entry"].attrs = state | {
        "schema_version": SCHEMA_VERSION,
        "title": str(stack.attrs.get("title", Path(str(stack.attrs.get("source_file", ""))).stem)),
        "default": "maps",
        "technique": str(stack.attrs.get("technique", "stxm")),
        "source_file": str(stack.attrs.get("source_file", "")),
    }
    return tree
