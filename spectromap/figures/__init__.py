"""From a result tree to matplotlib figures: the same for report, command line and notebooks.

Every function takes the tree of a run and returns a new `matplotlib.figure.Figure`, or None where
the tree has not got what it would draw. A group that is there but empty, such as the particles of
a field without any, gives a figure that says so. Nothing here touches pyplot or any other global
state. Maps are drawn with y upwards; error bars are 1 sigma unless the axis says otherwise.

`maps`, `spectra` (along the energy), `fits` (profiles and models), `coefficients` (one value a
particle), `places` (inside and outside) and `truth` hold the figures, `_canvas` what all of them
need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import xarray as xr

from spectromap.figures._canvas import (
    DPI,
    NOTE,
    component_label,
    fraction_name,
    save_figure,
    to_png,
)
from spectromap.figures.coefficients import D_figure, shell_figure
from spectromap.figures.fits import (
    group_profiles_figure,
    particle_fits,
    profiles_figure,
    representative_fits,
)
from spectromap.figures.maps import (
    chi2_map,
    fraction_map,
    label_map,
    reliable_pixels,
    thickness_map,
)
from spectromap.figures.places import heterogeneity_figure
from spectromap.figures.spectra import i0_figure, mean_spectrum, shifts_figure
from spectromap.figures.truth import truth_comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "FIGURES",
    "NOTE",
    "D_figure",
    "chi2_map",
    "component_label",
    "fraction_map",
    "fraction_name",
    "group_profiles_figure",
    "heterogeneity_figure",
    "i0_figure",
    "label_map",
    "mean_spectrum",
    "particle_fits",
    "profiles_figure",
    "reliable_pixels",
    "representative_fits",
    "save_figure",
    "shell_figure",
    "shifts_figure",
    "thickness_map",
    "to_png",
    "truth_comparison",
]

#: The figures of a report, in its order; each takes the tree of a result.
FIGURES: dict[str, Callable[[xr.DataTree], Figure | None]] = {
    "fraction_map": fraction_map,
    "thickness_map": thickness_map,
    "chi2_map": chi2_map,
    "label_map": label_map,
    "mean_spectrum": mean_spectrum,
    "group_profiles": group_profiles_figure,
    "profiles": profiles_figure,
    "representative_fits": representative_fits,
    "particle_fits": particle_fits,
    "D": D_figure,
    "shell": shell_figure,
    "heterogeneity": heterogeneity_figure,
    "shifts": shifts_figure,
    "i0": i0_figure,
}
