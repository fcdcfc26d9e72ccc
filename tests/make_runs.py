"""Small run folders, written without the package: a scan, references and a description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from make_stacks import Made, make, spectra

FORMULA = "Li1.18Ni0.21Mn0.53Co0.08O2"


def write_nxstxm(path: Path, stack: Any) -> None:
    """The least that makes an NXstxm file."""
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry1")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXstxm"
        data = entry.create_group("counter0")
        data.attrs["NX_class"] = "NXdata"
        data.attrs["signal"] = "data"
        data.attrs["axes"] = ["energy", "sample_y", "sample_x"]
        data.create_dataset(
            "data", data=stack.values, chunks=(1, *stack.shape[1:]), compression="gzip"
        )
        for name, values, units in (
            ("energy", stack.energy.values, "eV"),
            ("sample_y", stack.y.values / 1e3, "um"),
            ("sample_x", stack.x.values / 1e3, "um"),
        ):
            data[name] = values
            data[name].attrs["units"] = units


def write_references(folder: Path, low: float = 628.0, high: float = 662.0) -> None:
    energy = np.arange(low, high, 0.1)
    for name, values in spectra(energy).items():
        rows = "\n".join(f"{e:.4f},{v:.8f}" for e, v in zip(energy, values, strict=True))
        (folder / f"{name}.csv").write_text(f"energy_eV,per_nm\n{rows}\n")


def description(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema_version": 1,
        "technique": "stxm",
        "stack": "scan.hdf5",
        "edge": "Mn L3",
        "sample": {"formula": FORMULA, "density_g_cm3": 4.25, "delithiated_time_s": 4.0e5},
        "instrument": {"resolution_nm": 25},
        "references": {
            "mn4": {"file": "mn4.csv", "valence": 4},
            "mn3": {"file": "mn3.csv", "valence": 3},
        },
        "fraction": "mn3",
    }
    return {**content, **changes}


def write_run(folder: Path, made: Made | None = None, **changes: Any) -> Path:
    """A complete run folder; returns the description's path."""
    folder.mkdir(parents=True, exist_ok=True)
    made = made or make(seed=1, shape=(80, 90), n_energies=24, photons=3000.0)
    write_nxstxm(folder / "scan.hdf5", made.stack)
    write_references(folder)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(description(**changes)))
    return path
