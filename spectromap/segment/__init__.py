"""Particles in a thickness map: labels, sub-pixel outlines, agglomerates and the particle table.

`find_particles` (`labels`) prepares the map (`_field`), tells touching particles apart (`_split`)
and puts every edge where its blurred rim says (`_rims`). `edge_distance` (`outlines`),
`group_agglomerates` (`agglomerates`) and `particle_table` (`table`) take labels from there, or
from the user (`check_labels`, `given_agglomerates`).
"""

from __future__ import annotations

from spectromap.segment.agglomerates import given_agglomerates, group_agglomerates
from spectromap.segment.labels import check_labels, find_particles
from spectromap.segment.outlines import edge_distance, outline_area, outlines
from spectromap.segment.table import particle_table

__all__ = [
    "check_labels",
    "edge_distance",
    "find_particles",
    "given_agglomerates",
    "group_agglomerates",
    "outline_area",
    "outlines",
    "particle_table",
]
