"""The method step by step: the same numbers, kept as long as they hold, and spectra on demand."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import yaml
from make_runs import description, write_run

from spectromap import batch, config
from spectromap.pipeline import STEPS, Analysis, analyze
from spectromap.schema import FLAGS, InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    write_run(folder)
    return folder


def loaded(folder, **changes):
    """Stack and plan of the run in a folder, with some keys changed."""
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(description(**changes)))
    stack, plan, _ = batch.load_all(config.load_run(path))
    return stack, plan


@pytest.fixture(scope="module")
def done(folder):
    """All steps done; tests that change something make their own."""
    analysis = Analysis(*loaded(folder))
    for step in STEPS:
        analysis.run(step)
    return analysis


def identical(one, other):
    assert set(one["entry"].children) == set(other["entry"].children)
    for name, group in one["entry"].children.items():
        assert group.to_dataset().identical(other["entry"][name].to_dataset()), name


def test_steps_one_by_one_give_the_numbers_of_a_run(folder, done):
    identical(done.tree(), analyze(*loaded(folder)))


def test_what_was_redone_is_as_if_done_at_once(folder):
    analysis = Analysis(*loaded(folder))
    for step in STEPS:
        analysis.run(step)
    _, plan = loaded(folder, fit={"baseline": "none"}, i0={"region": [0, 12, 0, 12]})
    analysis.change(plan, since="i0")
    assert analysis.done == ("data", "align")
    for step in STEPS[2:]:
        analysis.run(step)
    identical(analysis.tree(), analyze(*loaded(
        folder, fit={"baseline": "none"}, i0={"region": [0, 12, 0, 12]}
    )))  # fmt: skip


def test_a_step_leaves_what_came_before_as_it_was(folder):
    analysis = Analysis(*loaded(folder))
    for step in STEPS[:5]:
        analysis.run(step)
    before = {name: group.copy(deep=True) for name, group in analysis.groups().items()}
    for step in STEPS[5:]:
        analysis.run(step)
    after = analysis.groups("composition")
    assert set(after) == set(before)
    assert "particle_label" not in after["maps"]
    for name, group in before.items():
        assert group.identical(after[name]), name


def test_the_spectrum_of_a_region_agrees_with_its_pixels(done):
    maps = done.groups()["maps"]
    inside = maps["particle_label"].values == int(maps["particle_label"].max())
    found = done.spectrum(inside)
    parts = found["reference_mn3"] + found["reference_mn4"] + found["baseline"]
    np.testing.assert_allclose(parts, found["fit"], rtol=1e-9, atol=1e-12)
    weights = maps["thickness"].values[inside]
    fraction = np.sum(weights * maps["mn3_fraction"].values[inside]) / weights.sum()
    systematic = 0.001  # a fit of the mean is not the mean of fits where thickness varies
    error = np.hypot(float(found["mn3_fraction_errors"]), systematic)
    assert abs(float(found["mn3_fraction"]) - fraction) < 3 * error
    assert float(found["thickness"]) == pytest.approx(weights.mean(), rel=0.03)
    assert found.attrs["pixel_count"] == pytest.approx(inside.sum(), rel=0.05)
    # Blurred edges are no linear mixture, which a mean over many pixels begins to feel.
    assert 0.3 < found.attrs["chi2"] < 6


def test_a_spectrum_before_the_references_are_known_has_no_fit(folder):
    analysis = Analysis(*loaded(folder))
    for step in ("data", "align", "i0"):
        analysis.run(step)
    found = analysis.spectrum(np.ones(analysis.stack.shape[1:], dtype=bool))
    assert "fit" not in found
    assert np.isfinite(found["optical_density"]).all()


def test_a_preview_is_the_map_at_every_nth_pixel(done):
    maps = done.groups()["maps"]
    found = done.preview(slice(20, 60), slice(10, 70), most=200)
    assert found.sizes["y"] * found.sizes["x"] <= 200
    same = maps["mn3_fraction"].sel(y=found.y, x=found.x)
    thick = maps["thickness"].sel(y=found.y, x=found.x).values > 30
    # Stray light, were there any, and errors of shifts are left to the whole fit.
    np.testing.assert_allclose(found["mn3_fraction"].values[thick], same.values[thick], atol=0.02)


def test_frames_and_pixels_are_left_out(folder):
    stack, _ = loaded(folder)
    mask = np.zeros(stack.shape[1:], dtype=np.uint8)
    mask[30:40, 20:50] = 1
    tifffile.imwrite(folder / "mask.tif", mask)
    energies = [float(e) for e in stack.energy.values[[3, 10]]]
    exclude = {"energies": energies, "mask": "mask.tif"}
    shifts = {"corrections": {energies[0]: [7.0, 0.0]}}  # of a frame that is not there
    analysis = Analysis(*loaded(folder, exclude=exclude, shifts=shifts))
    for step in STEPS[:5]:
        analysis.run(step)
    groups = analysis.groups()
    assert np.flatnonzero(groups["shifts"]["flagged"].values).tolist() == [3, 10]
    mask = mask[::-1] if stack.attrs.get("y_reversed") else mask
    mask = mask[:, ::-1] if stack.attrs.get("x_reversed") else mask
    maps = groups["maps"]
    core = np.zeros_like(mask, dtype=bool)  # drift moves the edges of what is left out
    core[33:37, 24:46] = True
    core = core & (mask > 0)
    assert core.any()
    assert np.isnan(maps["thickness"].values[core]).all()
    assert (maps["flags"].values[mask > 0] & FLAGS["dead"]).all()
    assert np.isfinite(maps["thickness"].values[50:70, 10:80]).all()


@pytest.mark.parametrize(
    ("exclude", "message"),
    [({"energies": [1.0]}, "no frame"), ({"mask": "small.tif"}, "shape")],
)
def test_what_cannot_be_left_out_is_named(folder, exclude, message):
    tifffile.imwrite(folder / "small.tif", np.ones((3, 4), dtype=np.uint8))
    with pytest.raises(InputError, match=message):
        analyze(*loaded(folder, exclude=exclude))
