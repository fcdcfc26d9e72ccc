"""What a stack holds before anything is assumed: components, clusters, factors, regions, phase.

All of it works on the transmission and its photon noise as `spectromap.absorption.transmission`
gives them, so that a spectrum comes with its error and a component is called significant against
the noise and not by eye. A pixel takes part only if every usable frame measured it. A stack is read
in slabs of rows that fit in memory, two to four times over, and never as a whole.
"""

from spectromap.explore.clusters import cluster_spectra
from spectromap.explore.components import principal_components
from spectromap.explore.composite import Composite, colour_composite
from spectromap.explore.endmembers import suggest_endmembers
from spectromap.explore.factors import nonnegative_factors
from spectromap.explore.ptychography import phase, phase_contrast
from spectromap.explore.regions import difference_spectrum, region_spectrum

__all__ = [
    "Composite",
    "cluster_spectra",
    "colour_composite",
    "difference_spectrum",
    "nonnegative_factors",
    "phase",
    "phase_contrast",
    "principal_components",
    "region_spectrum",
    "suggest_endmembers",
]
