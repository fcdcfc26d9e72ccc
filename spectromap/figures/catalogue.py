"""Which figures there are, in reading order: their names, files and captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from spectromap.figures.agglomerates import agglomerates_figure, one_agglomerate_figure
from spectromap.figures.balance import oxygen_figure
from spectromap.figures.coefficients import D_figure, shell_figure
from spectromap.figures.files import Job, write_jobs
from spectromap.figures.fits import (
    group_profiles_figure,
    particle_fits,
    profiles_figure,
    representative_fits,
)
from spectromap.figures.maps import chi2_map, fraction_map, label_map, thickness_map
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "PAPER_CAPTIONS", "PAPER_FIGURES", "SERIES_FIGURES", "write_figures"]

Draw = Callable[[xr.DataTree], "Figure | None"]

#: The figures that every report has, in its order; each takes the tree of a result.
FIGURES: dict[str, Draw] = {
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

#: Figures of results that have agglomerates, other edges, an oxygen balance or repeats.
PAPER_FIGURES: dict[str, Draw] = {
    "agglomerates": agglomerates_figure,
    "one_agglomerate": one_agglomerate_figure,
    "thickness": thickness_figure,
    "depth": depth_figure,
    "variance": variance_figure,
    "primaries": primaries_figure,
    "correlation": correlation_figure,
    "charged_maps": charged_maps_figure,
    "charged_thickness": charged_thickness_figure,
    "oxygen": oxygen_figure,
    "repeats": repeats_figure,
}

#: Figures of a comparison of states, as `spectromap.series.compare_states` makes it.
SERIES_FIGURES: dict[str, Draw] = {
    "state_spectra": state_spectra_figure,
    "state_profiles": state_profiles_figure,
    "state_distributions": state_distributions_figure,
    "state_differences": state_differences_figure,
    "release": release_figure,
    "growth": growth_figure,
}

#: Figures that show what one of P. M. Csernica et al., Nat. Energy 6, 642 (2021) shows.
_NUMBERS = {
    "state_spectra": "1d",
    "fraction_map": "2a",
    "state_profiles": "2d",
    "group_profiles": "2d",
    "representative_fits": "2eg",
    "agglomerates": "4a",
    "one_agglomerate": "4b",
    "thickness": "4cd",
    "charged_maps": "5abc",
    "charged_thickness": "5d",
    "primaries": "S39",
}

#: Title, caption and whether the figure takes the full width; {c} is the mapped component.
PAPER_CAPTIONS: dict[str, tuple[str, str, bool]] = {
    "agglomerates": (
        "Secondary particles",
        "{c} fraction of the field with its agglomerates, outlined and numbered; thick outlines"
        " and bold numbers: large ones, with at least half the usual diameter. Pale grey: too thin"
        " or not known.",
        False,
    ),
    "one_agglomerate": (
        "One secondary particle",
        "{c} fraction of the largest agglomerate that the field does not cut, on its own scale;"
        " outlines of the primary particles by their place.",
        False,
    ),
    "thickness": (
        "{c} fraction against thickness, by place",
        "Faint: used particles (bars: 1 sigma). Strong: means of bins with equal numbers of"
        " particles, with the 68 % interval that the scatter between agglomerates, and between"
        " primaries outside of them, gives. Above: difference at equal thickness by regression,"
        " with its interval.",
        True,
    ),
    "depth": (
        "{c} fraction against depth",
        "Used particles in agglomerates, less the level of their agglomerate (bars: 1 sigma), and"
        " the trend within agglomerates; the band holds the interval of the slope.",
        False,
    ),
    "variance": (
        "Where the {c} fraction varies",
        "Standard deviation between agglomerates, between the primaries of one, between the pixels"
        " of one, and by noise of the mean of a primary; lines are intervals, an arrow where one"
        " runs out of the picture.",
        False,
    ),
    "primaries": (
        "How many primaries must be seen",
        "Left: where the mean lies after so many primaries, in repeats that see the sample"
        " agglomerate after agglomerate in random order. Right: half width of the interval of the"
        " mean if agglomerates come with the primaries, and if none is added; vertical: primaries"
        " of this sample; dotted: the half width that is wanted.",
        True,
    ),
    "correlation": (
        "Over what distance the {c} fraction is alike",
        "Mean product of deviations from the mean at a distance, from the resolution on, and the"
        " exponential that describes it.",
        False,
    ),
    "charged_maps": (
        "Other edges",
        "Fraction of the reduced form at every other edge, on the grid of the main map. White:"
        " agglomerates; black: particles.",
        True,
    ),
    "charged_thickness": (
        "Other edges, against thickness",
        "Fraction of the reduced form of used particles at every other edge (faint, bars: 1"
        " sigma) and means of bins with the 68 % interval that the scatter between agglomerates,"
        " and between primaries outside of them, gives.",
        False,
    ),
    "oxygen": (
        "Released oxygen",
        "Oxygen lost since the pristine state, in all and by the metal whose state tells it; Li:TM"
        " and density of both structures that it can leave behind, beside what was measured. Thick"
        " bars: random error (1 sigma); thin: with the systematic one.",
        True,
    ),
    "repeats": (
        "Repeated scans",
        "Left: change of the {c} fraction of every particle from the first scan to the second"
        " (bars: 1 sigma), and the mean with its 95 % interval. Right: the same in units of its"
        " error, beside what noise alone would give.",
        True,
    ),
    "state_spectra": (
        "Mean spectra by state",
        "Mean spectra over the fitted thickness, and their differences from the reference state;"
        " bands are 1 sigma, those of the differences with the energy calibration.",
        False,
    ),
    "state_profiles": (
        "{c} fraction against the distance from the edge, by state",
        "Means over the used particles; bars: standard error of the mean (68 %). Deep bins hold"
        " large particles only.",
        False,
    ),
    "state_distributions": (
        "Distribution of the {c} fraction, by state",
        "Left: density of the mean fractions of particles. Right: their 5, 25, 50, 75 and 95 %"
        " quantiles. Bars: 1 sigma, by drawing agglomerates or primaries anew.",
        True,
    ),
    "state_differences": (
        "Differences between states",
        "Mean fraction of particles, the later state less the earlier, with the interval of each"
        " pair alone; p-values hold for all pairs together (Holm).",
        True,
    ),
    "release": (
        "Released oxygen against cycles",
        "Oxygen lost since the reference state, and the mean state of the mapped metal. Thick"
        " bars: random error (1 sigma); thin: with the systematic one. Open: charged.",
        True,
    ),
    "growth": (
        "D t against cycles",
        "D t of every state with its 68 % (thick) and 95 % intervals; grey: what one diffusion"
        " coefficient for all states asks for.",
        False,
    ),
}


def write_figures(
    trees: Mapping[str, xr.DataTree],
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("pdf", "svg", "png"),
    dpi: int = 300,
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> list[Path]:
    """Write every figure that the results can give, in print quality, with the data behind it.

    Parameters
    ----------
    trees : mapping of name to DataTree
        Results, and comparisons of states. Figures of one tree go to `folder` itself, those of
        several each to a folder with the name of the tree inside it.
    folder : path-like
        Made if it is missing.
    formats : sequence of {"pdf", "svg", "png"}
        Text stays text in PDF and SVG. Figures are 89 or 183 mm wide.
    dpi : int
        Pixels per inch of PNG and of what is drawn as pixels in the others.
    track : callable
        Is given the list of what is to be drawn and gives it back one by one, such as a progress
        bar.

    Returns
    -------
    list of Path
        The files, each written whole: ``<figure>.<format>``, where a number in front is that of
        the figure of the paper; ``<figure>.csv`` with a row for every point, curve, band and
        interval that is drawn (see `spectromap.figures.data.figure_rows`); and for every map in it
        ``<figure>_map<panel>.csv.gz``, x of the pixels in the first row and y in the first column.
        Large maps have every n-th pixel there, as in the figure; the result has all. Figures
        that a result has nothing for are left out.

    Raises
    ------
    InputError
        No result, two of the same name, or an unknown format.
    FileError
        A file cannot be written.
    """
    drawn = {
        "_".join(filter(None, (_NUMBERS.get(name, ""), name))): draw
        for name, draw in (FIGURES | PAPER_FIGURES | SERIES_FIGURES).items()
    }
    return write_jobs(trees, Path(folder), drawn, formats, dpi, track)
