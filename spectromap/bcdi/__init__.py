"""Bragg coherent diffraction: from a rocking scan to displacement and strain.

A prepared scan is phased by `reconstruct`; `measurement_of`, `run_starts` and `combine` are its
three steps.
"""

from __future__ import annotations

from spectromap.bcdi.phasing import Measurement, Solution, measurement_of, run_starts
from spectromap.bcdi.solutions import align, combine, reconstruct

__all__ = [
    "Measurement",
    "Solution",
    "align",
    "combine",
    "measurement_of",
    "reconstruct",
    "run_starts",
]
