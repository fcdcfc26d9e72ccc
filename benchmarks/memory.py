"""Peak memory of a whole run on 60 frames of 2048 x 2048, float32, gzip, from file to report.

Bar: under 2 GiB. The stack itself takes 0.94 GiB uncompressed. Prints the peak of the process,
its CPU time, and that of reading the file once with h5py, which is the floor.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
import yaml

LIMIT_GIB = 2.0

READ = """
import sys, time, h5py
start = time.process_time()
with h5py.File(sys.argv[1]) as file:
    data = file["entry1/counter0/data"]
    for k in range(len(data)):
        data[k]
print(time.process_time() - start)
"""


def lines(energy: np.ndarray) -> dict[str, np.ndarray]:
    """Two spectra per nm with Mn-like white lines."""
    step = 0.004 / (1.0 + np.exp(-(energy - 644.0) / 0.8))
    peak4 = 0.018 * np.exp(-0.5 * ((energy - 643.3) / 0.8) ** 2)
    peak3 = 0.016 * np.exp(-0.5 * ((energy - 642.0) / 1.0) ** 2)
    return {"mn4": 0.0022 + peak4 + step, "mn3": 0.0021 + peak3 + step}


def thickness(size: int, rng: np.random.Generator) -> np.ndarray:
    """Spheres all over a field, with an open strip on the left, in nm."""
    field = np.zeros((size, size), dtype=np.float32)
    for _ in range(size * size // 20000):
        radius = rng.uniform(15, 40)
        cy, cx = rng.uniform(45, size - 45), rng.uniform(150, size - 45)
        rows = slice(int(cy - radius), int(cy + radius) + 2)
        columns = slice(int(cx - radius), int(cx + radius) + 2)
        yy, xx = np.mgrid[rows, columns]
        half = np.sqrt(np.maximum(radius**2 - (yy - cy) ** 2 - (xx - cx) ** 2, 0.0))
        field[rows, columns] = np.maximum(field[rows, columns], 5.0 * half)
    return field


def write_scan(folder: Path, energies: int, size: int) -> Path:
    """Write an NXstxm file frame by frame, references, and a run description."""
    from spectromap.io import write_spectrum

    rng = np.random.default_rng(0)
    energy = np.linspace(635.0, 655.0, energies)
    field, spectra = thickness(size, rng), lines(energy)
    with h5py.File(folder / "scan.hdf5", "w") as file:
        entry = file.create_group("entry1")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXstxm"
        group = entry.create_group("counter0")
        group.attrs["NX_class"] = "NXdata"
        group.attrs["signal"] = "data"
        group.attrs["axes"] = ["energy", "sample_y", "sample_x"]
        data = group.create_dataset(
            "data", (energies, size, size), np.float32, chunks=(1, size, size), compression=4
        )
        position = np.arange(size) * 0.005
        for name, values, units in (
            ("energy", energy, "eV"), ("sample_y", position, "um"), ("sample_x", position, "um"),
        ):  # fmt: skip
            group[name] = values
            group[name].attrs["units"] = units
        for k in range(energies):
            moved = np.roll(field, (k % 5, -(k % 3)), axis=(0, 1))
            mu = 0.75 * spectra["mn4"][k] + 0.25 * spectra["mn3"][k]
            data[k] = rng.poisson(3000.0 * np.exp(-mu * moved))
    fine = np.arange(628.0, 662.0, 0.1)
    for name, values in lines(fine).items():
        coords = {"energy": ("energy", fine, {"units": "eV"})}
        spectrum = xr.DataArray(
            values, dims="energy", coords=coords, name=name, attrs={"units": "nm-1"}
        )
        write_spectrum(folder / f"{name}.csv", spectrum)
    description = {
        "stack": "scan.hdf5",
        "edge": "Mn L3",
        "sample": {"delithiated_time_s": 4e5},
        "instrument": {"resolution_nm": 10},
        "references": {"mn4": {"file": "mn4.csv"}, "mn3": {"file": "mn3.csv"}},
        "fraction": "mn3",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


def main() -> int:
    """Measure and print; the exit code says whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--energies", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spectromap-") as name:
        folder = Path(name)
        run = write_scan(folder, options.energies, options.size)
        floor = float(
            subprocess.run(
                [sys.executable, "-c", READ, str(folder / "scan.hdf5")],
                capture_output=True, text=True, check=True,
            ).stdout
        )  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "spectromap.cli", "run", "--config", str(run),
             "--out", str(folder / "out"), "--quiet"],
            check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        peak = after.ru_maxrss / 2**20
        print(
            f"{options.energies} x {options.size} x {options.size}: peak {peak:.2f} GiB"
            f" (bar {LIMIT_GIB:g}), {time.monotonic() - start:.0f} s, CPU {cpu:.0f} s ="
            f" {cpu / floor:.1f} times reading the file ({floor:.1f} s)"
        )
    return int(peak > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
