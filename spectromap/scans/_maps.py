"""What the parts share: components, their covariances, usable pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spectromap.schema import FLAGS, InputError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Pair = tuple[float, float]

UNUSABLE = FLAGS["no_data"] | FLAGS["dead"]


def usable(maps: xr.Dataset) -> Mask:
    """Pixels that were measured and not defective, by their flags."""
    if "flags" not in maps:
        return np.ones(maps["thickness"].shape, bool)
    return np.asarray((maps["flags"].values.astype(int) & UNUSABLE) == 0)


def components(maps: xr.Dataset) -> list[str]:
    """Names of the components of which there are amounts."""
    names = [
        str(n).removesuffix("_thickness") for n in maps.data_vars if str(n).endswith("_thickness")
    ]
    missing = [
        f"{name}_{name}_covariance" for name in names if f"{name}_{name}_covariance" not in maps
    ]
    if "thickness" not in maps or not names or missing:
        raise InputError(
            f"there is no '{missing[0] if missing else 'thickness'}'",
            where="maps",
            remedy="Give the maps of a scan with references, as the group `maps` has them.",
        )
    return names


def covariance(maps: xr.Dataset | dict[str, Any], a: str, b: str) -> str:
    """Name of the covariance of two components; the later one stands last."""
    name = f"{a}_{b}_covariance"
    return name if name in maps else f"{b}_{a}_covariance"


def variance_of(covariances: dict[str, Any], names: list[str], fraction: str, share: Any) -> Any:
    """Variance of ``t_c - f t``, amount c less its share of all, from the covariances."""
    total: Any = 0.0
    for a in names:
        for b in names:
            factors = ((a == fraction) - share) * ((b == fraction) - share)
            total = total + factors * covariances[covariance(covariances, a, b)]
    return np.maximum(total, 0.0)
