"""Phase retrieval: CPU time over that of the transforms it is made of, memory, and accuracy.

One thread. The floor is one complex64 ``fftn`` and ``ifftn`` of scipy over the whole volume. An
iteration is one of a run: support and modulus projection, the error, and its share of shrink-wrap
every 20. Memory is the peak that a start adds, in complex64 volumes; the counts themselves are in.
On a GPU, if there is one, times are those of the clock and the floor is its own pair.

Accuracy is that of simulated crystals, 1e6 photons in the brightest pixel, of 20 starts each: how
many correlate with the truth by 0.99 or more, and the correlation, phase error and volume of the
support of what `reconstruct` makes of them.
"""

from __future__ import annotations

import argparse
import csv
import time
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy import fft
from threadpoolctl import threadpool_limits

Row = tuple[str, str, str, str, int]
ON_GPU = ("cupy", "torch")
#: Largest ratio to a pair of transforms, on each backend.
RATIOS = {"scipy": 1.15, "pyfftw": 0.7, "cupy": 1.3, "torch": 1.3}
MEMORY = 12.0
#: Diameter of the crystal over the window's side.
SHARE = 0.33
LEAST = {"starts": 0.8, "correlation": 0.995}
LARGEST = {"phase": 0.05, "volume": 0.05}


def cpu_time(function: Callable[[], object], repeats: int) -> float:
    """Smallest CPU time of a few calls, in s."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def gpu_time(function: Callable[[], object], repeats: int) -> float:
    """Smallest time by the clock, in s; what is called fetches something, and so waits."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def pair_of(values: np.ndarray, backend: str, repeats: int) -> float:
    """Time of a forward and a backward transform, in s."""
    from spectromap.bcdi._backend import get_backend

    if backend not in ON_GPU:
        return cpu_time(lambda: fft.ifftn(fft.fftn(values, workers=1), workers=1), repeats)
    chosen = get_backend(backend)
    loaded = chosen.load(values)

    def pairs() -> None:
        found = loaded
        for _ in range(20):
            found = chosen.xp.fft.ifftn(chosen.xp.fft.fftn(found))
        chosen.fetch(found[:1, :1, :1])

    return gpu_time(pairs, repeats) / 20


def simulation(size: int, fields: str) -> Any:
    """A crystal of about a third of the window, with one kind of strain."""
    from spectromap.synthetic import _crystal as crystal

    kinds: dict[str, Any] = {
        "gradient": (crystal.RadialGradient(),),
        "core-shell": (crystal.CoreShell(),),
        "dislocation": (crystal.Dislocation(),),
    }
    scan = crystal.RockingScan(shape=(size, size, size))
    voxel = scan.wavelength_nm * scan.distance_m / (size * scan.pixel_m)
    body = crystal.Crystal(diameter_nm=SHARE * size * voxel)
    return crystal.simulate_crystal(body, kinds[fields], scan, seed=1)


def speed(size: int, backend: str, repeats: int) -> list[Row]:
    """Ratio and memory of a few blocks of iterations."""
    from spectromap.bcdi import phasing

    measurement = phasing.measurement_of(simulation(size, "gradient").scan)
    shape = (size, size, size)
    values = np.random.default_rng(0).normal(size=shape).astype(np.complex64)
    pair = pair_of(values, backend, max(repeats, 5))
    timed = gpu_time if backend in ON_GPU else cpu_time

    def run(count: int) -> None:
        phasing.run_starts(measurement, [0], sequence=f"{count}*HIO", backend=backend)

    run(20)  # compiles, plans
    # Two lengths, so that the beginning and the end of a start drop out.
    short, long = (timed(lambda n=n: run(n), repeats) for n in (41, 141))
    ratio = (long - short) / 100 / pair
    tracemalloc.start()
    run(21)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    volumes = (peak + measurement.amplitude.nbytes + measurement.region.nbytes) / values.nbytes
    bar = RATIOS[backend]
    print(f"{size} {backend:8s} {ratio:5.2f} pairs an iteration (bar {bar}), pair {1e3 * pair:.1f}"
          f" ms; {volumes:.1f} volumes (bar {MEMORY:g})", flush=True)  # fmt: skip
    return [
        (f"iteration, {backend}", str(size), f"{ratio:.3f}", f"{bar:g}", int(ratio <= bar)),
        (f"memory, {backend}", str(size), f"{volumes:.2f}", f"{MEMORY:g}", int(volumes <= MEMORY)),
    ]


def accuracy(size: int, fields: str, starts: int) -> list[Row]:
    """Truth against what comes out."""
    from tqdm import tqdm

    from spectromap.bcdi import phasing, solutions

    truth = simulation(size, fields)
    measurement = phasing.measurement_of(truth.scan)
    found = phasing.run_starts(measurement, range(starts), tqdm, backend="scipy")
    single = [solutions.align(s.full(), truth.detector_object).correlation for s in found]
    result = solutions.combine(found, measurement)
    good = float(np.mean(np.array(single) >= 0.99))
    laid = solutions.align(result["object"].values, truth.detector_object)
    phase = phase_error(laid.object, truth.detector_object, truth.detector_support)
    volume = abs(float(result["support"].sum()) / truth.detector_support.sum() - 1.0)
    name = f"{fields}, {int(result['accepted'].sum())} of {starts} accepted"
    print(f"{size} {name}: {good * starts:.0f} starts above 0.99 (lowest {min(single):.4f}),"
          f" combined {laid.correlation:.4f}, phase {phase:.4f} rad, volume off by {volume:.1%},"
          f" spread {spread(result):.4f} rad", flush=True)  # fmt: skip
    rows: list[Row] = []
    for key, value in (("starts", good), ("correlation", laid.correlation)):
        text = (f"{value:.4f}", f">= {LEAST[key]:g}", int(value >= LEAST[key]))
        rows.append((f"{fields}: {key}", str(size), *text))
    for key, value in (("phase", phase), ("volume", volume)):
        text = (f"{value:.4f}", f"<= {LARGEST[key]:g}", int(value <= LARGEST[key]))
        rows.append((f"{fields}: {key}", str(size), *text))
    return rows


def phase_error(found: np.ndarray, truth: np.ndarray, support: np.ndarray) -> float:
    """Standard deviation of the phase from the true one in the support, in rad."""
    ratio = found[support] * np.conj(truth[support])
    return float(np.sqrt(np.mean(np.angle(ratio * np.conj(ratio.sum())) ** 2)))


def spread(result: xr.Dataset) -> float:
    """Root mean square of the stated errors of phase."""
    return float(np.sqrt((result["phase_errors"] ** 2).mean()))


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("speed", "accuracy"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--fields", nargs="+", default=["gradient", "core-shell", "dislocation"])
    parser.add_argument("--backends", nargs="+", default=["scipy", "pyfftw"])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows: list[Row] = []
    with threadpool_limits(1):
        for size in options.sizes:
            if options.what == "accuracy":
                for fields in options.fields:
                    rows += accuracy(size, fields, options.starts)
                continue
            for backend in options.backends:
                if find_spec(backend) is None:
                    print(f"{backend} is not installed")
                    continue
                rows += speed(size, backend, options.repeats)
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("task", "size", "value", "bar", "met"))
            writer.writerows(rows)
    raise SystemExit(0 if all(row[-1] for row in rows) else 1)


if __name__ == "__main__":
    main()
