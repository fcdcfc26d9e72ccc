"""Peak memory and CPU time of a whole run on an NXstxm file, float32, gzip, from file to report.

The floor is the CPU time of reading the file once with h5py. Bars: 60 frames of 2048 x 2048 to
maps with sigma in less than 6 times the floor and 1 GiB (the stack itself takes 0.94 GiB);
60 frames of 8192 x 8192, which are 15 GiB, in 2 GiB: ``--size 8192``. ``--particles`` goes on to
particles, profiles and models.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
import yaml

LARGE = 4096
LIMIT_GIB, LIMIT_LARGE_GIB, LIMIT_RATIO = 1.0, 2.0, 6.0

READ = """
import sys, time, h5py
start = time.process_time()
with h5py.File(sys.argv[1]) as file:
    data = file["entry1/counter0/data"]
    for k in range(len(data)):
        data[k]
print(time.process_time() - start)
"""

# The peak is not taken from getrusage, which also counts what the parent process held.
RUN = """
import sys, time
from spectromap import cli
code = cli.main(sys.argv[1:])
status = open("/proc/self/status").read()
print(time.process_time(), status.split("VmHWM:")[1].split()[0])
sys.exit(code)
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


def write_scan(folder: Path, energies: int, size: int, particles: bool = True) -> Path:
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
            "data",
            (energies, size, size),
            np.float32,
            chunks=(1, size, size),
            compression=1 if size > LARGE else 4,
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
        "segment": {"enabled": particles},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


def main() -> int:
    """Measure and print; the exit code says whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--energies", type=int, default=60)
    parser.add_argument("--particles", action="store_true", help="do not stop at the maps")
    parser.add_argument("--folder", help="where to put the file; default the system's")
    options = parser.parse_args()
    large = options.size > LARGE
    with tempfile.TemporaryDirectory(prefix="spectromap-", dir=options.folder) as name:
        folder = Path(name)
        run = write_scan(folder, options.energies, options.size, options.particles)
        floor = float(
            subprocess.run(
                [sys.executable, "-c", READ, str(folder / "scan.hdf5")],
                capture_output=True, text=True, check=True,
            ).stdout
        )  # fmt: skip
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", RUN, "run", "--config", str(run), "--out", str(folder / "out"),
             "--quiet"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        cpu, peak_kib = (float(word) for word in done.stdout.split()[-2:])
        peak, limit = peak_kib / 2**20, LIMIT_LARGE_GIB if large else LIMIT_GIB
        print(
            f"{options.energies} x {options.size} x {options.size}: peak {peak:.2f} GiB"
            f" (bar {limit:g}), {time.monotonic() - start:.0f} s, CPU {cpu:.1f} s ="
            f" {cpu / floor:.1f} times reading the file ({floor:.1f} s, bar {LIMIT_RATIO:g})"
        )
    slow = cpu >= LIMIT_RATIO * floor and not options.particles
    return int(peak > limit or slow)


if __name__ == "__main__":
    sys.exit(main())
