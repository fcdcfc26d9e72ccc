"""The wide demonstration, on a field that is small enough for a test."""

from __future__ import annotations

import pytest

from spectromap import demo
from spectromap.io.results import read_result
from spectromap.synthetic import Extent

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("wide")
    extent = Extent(size_px=160, agglomerates=2, primaries=14, small_agglomerates=0, particles=6)
    told = demo.run_wide_demo(out, extent=extent)
    assert "outside-inside" in told
    return out


def test_both_states_have_a_result_with_all_their_scans(folder):
    discharged = read_result(folder / "discharged/result.h5")["entry"].children
    charged = read_result(folder / "charged/result.h5")["entry"].children
    assert {"maps_repeat", "repeats", "oxygen"} <= set(discharged)
    assert {"maps_ni_l3", "maps_o_k"} <= set(charged)
    assert "oxygen" not in charged


def test_other_edges_lie_where_they_are(folder):
    tree = read_result(folder / "charged/result.h5")
    truth = read_result(folder / "charged/simulated/truth.h5")
    for name in ("maps_ni_l3", "maps_o_k"):
        for axis in "yx":
            found, true = (t[f"/entry/{name}"].attrs[f"offset_{axis}_nm"] for t in (tree, truth))
            assert abs(found - true) < 0.3 * 60.0


def test_the_figures_of_the_paper_are_drawn(folder):
    drawn = {str(path.relative_to(folder / "figures")) for path in folder.glob("figures/*/*.pdf")}
    assert {
        "discharged/4a_agglomerates.pdf",
        "discharged/4b_one_agglomerate.pdf",
        "discharged/4cd_thickness.pdf",
        "charged/5abc_charged_maps.pdf",
        "charged/5d_charged_thickness.pdf",
        "states/1d_state_spectra.pdf",
    } <= drawn
