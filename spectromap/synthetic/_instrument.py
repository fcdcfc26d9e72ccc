"""The instrument: drift, blur, spectral line, I0, stray light, noise."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from spectromap._numerics import FloatArray, fwhm_to_sigma
from spectromap.synthetic._options import Draw, Instrument, Setup
from spectromap.synthetic._scene import Grid, Scene
from spectromap.synthetic._spectra import spectral_nodes


def drift(setup: Setup) -> FloatArray:
    """Shifts (frame, 2) in pixels along y and x, of median zero."""
    scan, frames = setup.scan, setup.energy.size
    rng = setup.random(Draw.DRIFT)
    walk = np.cumsum(rng.normal(0, 1, (frames, 2)), axis=0) * scan.walk_px
    turn = rng.uniform(0, 2 * np.pi)
    linear = np.linspace(-0.5, 0.5, frames)[:, None] * scan.drift_px
    shifts = walk + linear * np.array([np.sin(turn), np.cos(turn)])
    for _ in range(scan.jumps):
        frame = int(rng.integers(frames // 5, max(frames - frames // 5, frames // 5 + 1)))
        turn = rng.uniform(0, 2 * np.pi)
        shifts[frame:] += scan.jump_px * np.array([np.sin(turn), np.cos(turn)])
    return np.asarray(shifts - np.median(shifts, axis=0))


def _transfer(instrument: Instrument, frequency: FloatArray) -> FloatArray:
    """Transfer function of the blur at spatial frequencies in 1/nm."""
    width = instrument.resolution_nm
    if width <= 0:
        return np.ones_like(frequency)

    def gaussian(fwhm: float) -> FloatArray:
        return np.asarray(np.exp(-2 * (np.pi * fwhm_to_sigma(fwhm) * frequency) ** 2))

    if instrument.psf == "gaussian":
        return gaussian(width)
    if instrument.psf == "tails":
        return np.asarray(0.9 * gaussian(width) + 0.1 * gaussian(5 * width))
    # Incoherent circular pupil: the FWHM of its Airy pattern is 1.029 over the cut-off frequency.
    nu = np.clip(frequency * width / 1.029, 0, 1)
    return np.asarray(2 / np.pi * (np.arccos(nu) - nu * np.sqrt(1 - nu**2)))


class Optics:
    """Blur a canvas, shift it, and sample it on the pixels of the recorded field."""

    def __init__(self, instrument: Instrument, grid: Grid) -> None:
        self.grid = grid
        self.average = instrument.pixel_average
        ny, nx = grid.cells
        self.fy = scipy.fft.fftfreq(ny)[:, None]
        self.fx_whole = scipy.fft.fftfreq(nx)[None, :]
        self.fx_half = scipy.fft.rfftfreq(nx)[None, :]
        self.instrument = instrument

    @cached_property
    def transfer_whole(self) -> FloatArray:
        """Transfer function on the frequencies of a complex canvas."""
        return self._filter(self.fx_whole)

    @cached_property
    def transfer_half(self) -> FloatArray:
        """Transfer function on the frequencies of a real canvas."""
        return self._filter(self.fx_half)

    def _filter(self, fx: FloatArray) -> FloatArray:
        radius = np.hypot(self.fy, fx) / self.grid.cell
        return _transfer(self.instrument, radius).astype(np.float32)

    def record(self, canvas: NDArray[Any], shift: FloatArray) -> NDArray[Any]:
        """Frame that shows a canvas (zero where nothing is) moved by a shift in pixels."""
        moved = np.asarray(shift, dtype=float) * self.grid.fine
        if self.average:
            return self.grid.binned(self.blurred(canvas, moved))
        # Bring the centre of a pixel onto its first cell.
        back = self.blurred(canvas, moved - (self.grid.fine - 1) / 2)
        return np.asarray(self.grid.crop(back)[:: self.grid.fine, :: self.grid.fine])

    def blurred(self, canvas: NDArray[Any], moved: FloatArray) -> NDArray[Any]:
        """Canvas (zero where nothing is), blurred and moved by a number of cells."""
        real = not np.iscomplexobj(canvas)
        fx = self.fx_half if real else self.fx_whole
        ramp = np.exp(-2j * np.pi * self.fy * moved[0]) * np.exp(-2j * np.pi * fx * moved[1])
        blur = self.transfer_half if real else self.transfer_whole
        transform = scipy.fft.rfft2 if real else scipy.fft.fft2
        spectrum = transform(canvas) * (ramp * blur).astype(np.complex64)
        if real:
            return np.asarray(scipy.fft.irfft2(spectrum, s=canvas.shape))
        return np.asarray(scipy.fft.ifft2(spectrum, overwrite_x=True))


def open_field(setup: Setup) -> tuple[FloatArray, FloatArray]:
    """Expected counts of the open field without dark counts, and the ring current in mA."""
    instrument = setup.instrument
    place = np.linspace(0, 1, setup.energy.size)
    current = instrument.ring_current_mA * (1 - instrument.current_decay) ** place
    middle = np.exp(-(((place - 0.5) / 0.2) ** 2))
    counts = (1 + instrument.i0_slope * (place - 0.5)) * (1 - instrument.i0_dip * middle)
    counts = counts * current
    for frame, factor in instrument.i0_steps:
        counts[frame:] *= factor
    return np.asarray(instrument.photons * counts / counts.mean()), np.asarray(current)


def _transmission(amounts: FloatArray, energy: float, setup: Setup) -> NDArray[Any]:
    """Transmitted intensity, or complex amplitude, of cells with the given amounts in nm."""
    offsets, weights = spectral_nodes(setup.instrument.spectral_fwhm_eV)
    total = np.zeros(amounts.shape[1], dtype=np.float32)
    for weight, per_nm in zip(weights, setup.spectra(energy + offsets).T, strict=True):
        density = per_nm.astype(np.float32) @ amounts
        total += np.float32(weight) * np.exp(-density / (2 if setup.coherent else 1))
    if not setup.coherent:
        return total
    phase = np.float32(setup.instrument.phase_per_nm) * amounts.sum(axis=0)
    return np.asarray(total * np.exp(-1j * phase))


class _Beam:
    """Turns the blurred transmission of a frame into what the detector reads."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.instrument = setup, setup.instrument
        self.i0, _ = open_field(setup)
        rng = setup.random(Draw.DEFECTS)
        rows, columns = (
            rng.integers(0, n, setup.instrument.dead_pixels) for n in setup.scan.shape_px
        )
        self.dead = rows, columns

    def detect(self, transmission: NDArray[Any], frame: int) -> NDArray[Any]:
        """Counts or complex amplitudes of one frame from its blurred transmission."""
        rng = self.setup.random(Draw.NOISE, frame)
        if self.setup.coherent:
            image = self._amplitudes(transmission, frame, rng)
        else:
            image = self._counts(transmission, frame, rng)
        image[self.dead] = 0
        return image

    def _counts(self, transmission: FloatArray, frame: int, rng: np.random.Generator) -> FloatArray:
        """Counts in float32."""
        stray = self.instrument.stray_fraction
        light = (1 - stray) * np.clip(transmission.astype(float), 0, None) + stray
        counts = rng.poisson(self.i0[frame] * light + self.instrument.dark_counts)
        limit = self.instrument.saturation_counts
        counts = counts if limit is None else np.minimum(counts, limit)
        return np.asarray(counts, dtype=np.float32)

    def _amplitudes(
        self, transmission: NDArray[Any], frame: int, rng: np.random.Generator
    ) -> NDArray[Any]:
        """Complex amplitudes on an arbitrary scale and at an arbitrary phase."""
        photons = self.instrument.photons
        scale = self.instrument.amplitude_scale * np.sqrt(self.i0[frame] / photons)
        # The square root of a Poisson number of mean N T has the variance 1/4 whatever T is.
        noise = rng.normal(0, 0.5 / np.sqrt(self.i0[frame]), (2, *transmission.shape))
        turn = np.exp(1j * rng.uniform(-np.pi, np.pi))
        noisy = transmission + noise[0] + 1j * noise[1]
        return np.asarray(scale * turn * noisy, dtype=np.complex64)


def record(setup: Setup, scene: Scene, shifts: FloatArray, optics: Optics) -> NDArray[Any]:
    """All frames of a scene that lies, frame by frame, at the given shifts in pixels."""
    beam = _Beam(setup)
    occupied = np.nonzero(scene.amounts.sum(axis=0) > 0)
    columns = scene.amounts[:, occupied[0], occupied[1]]
    canvas = np.zeros(scene.grid.cells, dtype=np.complex64 if setup.coherent else np.float32)
    kind = np.complex64 if setup.coherent else np.float32
    frames = np.empty((setup.energy.size, *scene.grid.shape), dtype=kind)
    for k, energy in enumerate(setup.true_energy):
        # Zero is the open field, so that the periodic transform sees no edge.
        canvas[occupied] = 1 - _transmission(columns, float(energy), setup)
        frames[k] = beam.detect(1 - optics.record(canvas, shifts[k]), k)
    return frames
