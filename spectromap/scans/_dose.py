"""What the beam left in the sample."""

from __future__ import annotations

import numpy as np
import xarray as xr

from spectromap.scans._maps import Array, components, usable
from spectromap.schema import InputError, check_map, pixel_size

#: Pixels thinner than this many standard deviations hold no sample.
LEAST_THICKNESS = 3.0
NM3_G_CM3_IN_KG = 1e-24
JOULE_PER_EV = 1.602176634e-19


def dose_map(
    maps: xr.Dataset,
    spectra: xr.Dataset,
    density_g_cm3: float,
    *,
    detector_efficiency: float = 1.0,
) -> xr.DataArray:
    """Dose that one scan left in the sample, from what the fit says it absorbed.

    Parameters
    ----------
    maps : Dataset, dims (y, x)
        Amounts ``<component>_thickness`` in nm, ``thickness`` and its errors.
    spectra : Dataset, dims (energy,)
        ``i0`` [count] with ``attrs["gain"]``, counts per photon; ``reference_<component>`` [nm-1];
        ``stray_fraction`` if there is any. Frames without I0 count with the median I0.
    density_g_cm3 : float
        Density of the sample in g/cm3.
    detector_efficiency : float
        Share of the photons behind the sample that are counted. With one, the default, the
        dose is a lower bound: those that were not counted were absorbed all the same.

    Returns
    -------
    DataArray, dims (y, x)
        ``dose`` in MGy, NaN where there is no sample. Energy that electrons and fluorescence
        carry away is not taken off, nor is the time the beam waited between pixels added.

    Raises
    ------
    InputError
        Thickness that is not in nm, references or I0 that are missing, a density or an efficiency
        that cannot be.

    Notes
    -----
    ``D = sum_E N0(E) E (1 - exp(-tau(E))) / (rho t a)``, N0 photons on the pixel of area a, tau
    the optical density of thickness t without the baseline: absorbed energy over mass, as in
    J. Wang et al., J. Electron Spectrosc. Relat. Phenom. 170, 25 (2009). Where the sample is thin
    ``(1 - exp(-tau)) / t`` tends to tau/t, so that the dose does not depend on the thickness.
    """
    names = components(maps)
    check_map(maps["thickness"], "nm", name="maps.thickness")
    for name, value, most in (
        ("density_g_cm3", density_g_cm3, np.inf),
        ("detector_efficiency", detector_efficiency, 1.0),
    ):
        if not 0 < value <= most:
            raise InputError(f"{value} is out of range", where=name)
    missing = [n for n in ("i0", *(f"reference_{c}" for c in names)) if n not in spectra]
    if missing:
        raise InputError(f"there is no '{missing[0]}'", where="spectra")
    thickness = np.asarray(maps["thickness"].values, float)
    errors = np.asarray(maps["thickness_errors"].values, float)
    sample = (thickness > LEAST_THICKNESS * errors) & usable(maps)
    absorbed = np.zeros(int(sample.sum()))
    parts = np.stack([np.maximum(maps[f"{n}_thickness"].values[sample], 0.0) for n in names])
    per_nm = np.stack([np.asarray(spectra[f"reference_{n}"].values, float) for n in names])
    shares = parts / np.maximum(parts.sum(axis=0), 1e-30)
    for energy, photons, reference in zip(
        spectra["energy"].values, _photons(spectra, detector_efficiency), per_nm.T, strict=True
    ):
        absorption = reference @ shares
        tau = np.maximum(absorption * thickness[sample], 1e-12)
        absorbed += photons * float(energy) * absorption * -np.expm1(-tau) / tau
    step = pixel_size(maps["thickness"])
    kg_per_nm = density_g_cm3 * NM3_G_CM3_IN_KG * step[0] * step[1]
    dose = np.full(thickness.shape, np.nan, np.float32)
    dose[sample] = absorbed * JOULE_PER_EV / kg_per_nm * 1e-6
    text = "absorbed dose" + (", lower bound" if detector_efficiency == 1.0 else "")
    return xr.DataArray(
        dose, dims=("y", "x"), coords={"y": maps.y, "x": maps.x}, name="dose",
        attrs={"units": "MGy", "long_name": text},
    )  # fmt: skip


def _photons(spectra: xr.Dataset, efficiency: float) -> Array:
    """Photons on a pixel in each frame that the sample can absorb."""
    i0 = np.asarray(spectra["i0"].values, float)
    known = np.isfinite(i0) & (i0 > 0)
    if not known.any():
        raise InputError("I0 is missing at every energy", where="spectra.i0")
    stray = float(spectra["stray_fraction"]) if "stray_fraction" in spectra else 0.0
    photons = np.where(known, i0, np.median(i0[known])) / float(spectra.attrs.get("gain", 1.0))
    return np.asarray(photons * (1.0 - stray) / efficiency)
