"""From a result tree to matplotlib figures: the same for report, command line and notebooks.

Every function takes the tree of a run and returns a new `matplotlib.figure.Figure`, or None where
the tree has not got what it would draw. A group that is there but empty, such as the particles of
a field without any, gives a figure that says so. Nothing here touches pyplot or any other global
state. Maps are drawn with y upwards; error bars are 1 sigma unless the axis says otherwise.

`maps`, `spectra` (along the energy), `fits` (profiles and models), `coefficients` (one value a
particle), `places` (inside and outside), `agglomerates`, `thickness` (and other edges), `spread`
(how much particles differ), `balance` (oxygen), `repeats`, `states` (several results) and `truth`
hold the figures, `_canvas` what all of them need. `catalogue` lists them and writes all to files,
`data` reads the numbers behind them.
"""

from __future__ import annotations

from spectromap.figures._canvas import (
    DPI,
    NOTE,
    component_label,
    fraction_name,
    save_figure,
    to_png,
)
from spectromap.figures.agglomerates import agglomerates_figure, one_agglomerate_figure
from spectromap.figures.balance import oxygen_figure
from spectromap.figures.catalogue import (
    FIGURES,
    PAPER_CAPTIONS,
    PAPER_FIGURES,
    SERIES_FIGURES,
    write_figures,
)
from spectromap.figures.coefficients import D_figure, shell_figure
from spectromap.figures.data import figure_images, figure_rows
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
from spectromap.figures.repeats import repeats_figure
from spectromap.figures.spectra import i0_figure, mean_spectrum, shifts_figure
from spectromap.figures.spread import (
    correlation_figure,
    depth_figure,
    primaries_figure,
    variance_figure,
)
from spectromap.figures.states import (
    growth_figure,
    release_figure,
    state_differences_figure,
    state_distributions_figure,
    state_profiles_figure,
    state_spectra_figure,
)
from spectromap.figures.thickness import (
    charged_maps_figure,
    charged_thickness_figure,
    thickness_figure,
)
from spectromap.figures.truth import truth_comparison

__all__ = [
    "DPI",
    "FIGURES",
    "NOTE",
    "PAPER_CAPTIONS",
    "PAPER_FIGURES",
    "SERIES_FIGURES",
    "D_figure",
    "agglomerates_figure",
    "charged_maps_figure",
    "charged_thickness_figure",
    "chi2_map",
    "component_label",
    "correlation_figure",
    "depth_figure",
    "figure_images",
    "figure_rows",
    "fraction_map",
    "fraction_name",
    "group_profiles_figure",
    "growth_figure",
    "heterogeneity_figure",
    "i0_figure",
    "label_map",
    "mean_spectrum",
    "one_agglomerate_figure",
    "oxygen_figure",
    "particle_fits",
    "primaries_figure",
    "profiles_figure",
    "release_figure",
    "reliable_pixels",
    "repeats_figure",
    "representative_fits",
    "save_figure",
    "shell_figure",
    "shifts_figure",
    "state_differences_figure",
    "state_distributions_figure",
    "state_profiles_figure",
    "state_spectra_figure",
    "thickness_figure",
    "thickness_map",
    "to_png",
    "truth_comparison",
    "variance_figure",
    "write_figures",
]
