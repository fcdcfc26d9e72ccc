"""spectromap: oxygen-loss maps from X-ray spectromicroscopy of battery cathodes.

Read `spectromap.schema` for names and units, then `spectromap.pipeline` for the method.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

#: Every public name and the module it comes from; loaded when it is first used.
_PUBLIC = {
    "FileError": "schema",
    "InputError": "schema",
    "Instrument": "schema",
    "Sample": "schema",
    "SpectromapError": "schema",
    "check_map": "schema",
    "check_stack": "schema",
    "open_stack": "io",
    "read_spectrum": "io",
    "write_spectrum": "io",
    "read_result": "io.results",
    "write_result": "io.results",
    "fetch": "io.manifest",
    "load_manifest": "io.manifest",
    "Edge": "references",
    "Material": "references",
    "reference_set": "references",
    "normalise_reference": "references",
    "normalise_references": "references",
    "reference_from_pixels": "references",
    "find_defects": "detector",
    "register": "align",
    "given_shifts": "align",
    "correct_shifts": "align",
    "apply_shifts": "align",
    "find_open_area": "absorption",
    "i0_from_area": "absorption",
    "i0_from_spectrum": "absorption",
    "transmission": "absorption",
    "optical_density": "absorption",
    "Calibration": "calibrate",
    "calibrate_energy": "calibrate",
    "fit_components": "unmix",
    "principal_components": "explore",
    "cluster_spectra": "explore",
    "nonnegative_factors": "explore",
    "region_spectrum": "explore",
    "difference_spectrum": "explore",
    "suggest_endmembers": "explore",
    "Composite": "explore",
    "colour_composite": "explore",
    "phase": "explore",
    "phase_contrast": "explore",
    "Resolution": "resolution",
    "estimate_resolution": "resolution",
    "fourier_ring_correlation": "resolution",
    "find_particles": "segment",
    "group_agglomerates": "segment",
    "given_agglomerates": "segment",
    "edge_distance": "segment",
    "particle_table": "segment",
    "radial_profiles": "profiles",
    "map_profiles": "profiles",
    "group_profiles": "profiles",
    "fit_models": "radial.fit",
    "pool": "radial.fit",
    "STATE_VERDICTS": "radial.states",
    "State": "radial.states",
    "fit_states": "radial.states",
    "contrasts": "heterogeneity",
    "compare_groups": "heterogeneity",
    "depth_trend": "heterogeneity",
    "variance_components": "heterogeneity",
    "primaries_needed": "heterogeneity",
    "correlation_length": "heterogeneity",
    "size_classes": "heterogeneity",
    "statistics": "heterogeneity",
    "Measured": "oxygen",
    "mean_fraction": "oxygen",
    "oxygen_balance": "oxygen",
    "register_scan": "scans",
    "on_grid": "scans",
    "dose_map": "scans",
    "compare_repeats": "scans",
    "Plan": "pipeline",
    "analyze": "pipeline",
    "compare_states": "series",
    "name_states": "series",
    "draw_figures": "batch",
    "load_run": "config",
    "run": "batch",
    "write_report": "report",
}

__all__ = [*_PUBLIC, "__version__", "synthetic"]


def __getattr__(name: str) -> Any:
    """Load a public name, or a module of the package, when it is first asked for."""
    if name in _PUBLIC:
        value = getattr(import_module(f"spectromap.{_PUBLIC[name]}"), name)
    elif name in ("synthetic", "figures", "radial", "io"):
        value = import_module(f"spectromap.{name}")
    else:
        raise AttributeError(f"module 'spectromap' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
