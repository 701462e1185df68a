"""The front end: the one definition of window -> image that training, devices and servers share.

A window is `SAMPLES` mono samples at 16 kHz in [-1, 1]; its image is `uint8 [frames, mels]`: the log-mel spectrogram,
relative to the window's own maximum, 50 dB deep. Everything that changes a pixel is a field of `FrontEnd`, and the
fingerprint is a digest of those fields: two programs with the same fingerprint look at the same images.

This module holds the fast NumPy/SciPy form for bulk work and serving. The graph form, for the exported models, is
`frontend_graph.py`; a parity test holds both and librosa together. Each window is normalised by itself, never by its
batch, so a clip alone and the same clip in any batch give the same image.

Mel scale and area normalisation: M. Slaney, Auditory Toolbox, Interval Research TR 1998-010, as librosa's default.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of everything past decoding."""

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]

_VERSION = 1  # counts changes of the arithmetic itself that no field shows


@dataclass(frozen=True)
class FrontEnd:
    """What turns a window into an image. Lengths in samples, frequencies in Hz, depths in dB."""

    sample_rate: int = SAMPLE_RATE
    n_fft: int = 512
    hop: int = 256
    frames: int = 61
    mels: int = 64
    f_min: float = 0.0
    f_max: float = 8000.0
    floor: float = 1e-5
    """Smallest mel power that is told apart from silence."""
    range_db: float = 50.0
    """How far below a window's maximum the image is black."""

    @property
    def samples(self) -> int:
        """Length of a window: 15,872 samples, 0.992 s."""
        return (self.frames - 1) * self.hop + self.n_fft

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of an image: (frames, mels)."""
        return (self.frames, self.mels)

    @property
    def range_ln(self) -> float:
        """`range_db` in natural-log units of power."""
        return self.range_db * float(np.log(10.0)) / 10.0

    @cached_property
    def fingerprint(self) -> str:
        """`fe-<12 hex>`: equal for equal images, different for anything else."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)
        return "fe-" + hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def hann(self) -> Floats:
        """Periodic Hann window, float32 [n_fft]."""
        n = np.arange(self.n_fft)
        return (0.5 - 0.5 * np.cos(2 * np.pi * n / self.n_fft)).astype(np.float32)

    @cached_property
    def band_edges_hz(self) -> NDArray[np.float64]:
        """Where the triangular bands begin, peak and end, float64 [mels + 2]: band m peaks at entry m + 1."""
        return _mel_to_hz(np.linspace(_hz_to_mel(self.f_min), _hz_to_mel(self.f_max), self.mels + 2))

    @cached_property
    def bins_hz(self) -> NDArray[np.float64]:
        """Frequencies of the FFT's bins, float64 [n_fft // 2 + 1]."""
        return np.linspace(0.0, self.sample_rate / 2, self.n_fft // 2 + 1)

    @cached_property
    def mel_matrix(self) -> Floats:
        """Triangular bands of unit area, float32 [n_fft // 2 + 1, mels]."""
        hz, bins = self.band_edges_hz, self.bins_hz[:, None]
        rising = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2])
        falling = (hz[2:] - bins) / (hz[2:] - hz[1:-1])
        return (np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (hz[2:] - hz[:-2])).astype(np.float32)

    def unit_images(self, windows: Floats) -> Floats:
        """Images before rounding: float32 [n, samples] -> float32 [n, frames, mels] in [0, 1]."""
        from scipy.fft import rfft  # its batched float32 transform; devices use the graph form and need no SciPy

        self.check(windows)
        x = np.ascontiguousarray(windows, dtype=np.float32)
        out = np.empty((len(x), *self.shape), np.float32)
        for i in range(0, len(x), 8):  # blocks that stay in the processor's cache
            block = x[i : i + 8]
            framed = np.lib.stride_tricks.sliding_window_view(block, self.n_fft, axis=-1)[:, :: self.hop]
            spectrum = rfft(framed * self.hann, axis=-1)
            power = np.square(spectrum.real)
            power += np.square(spectrum.imag)
            mel = power.reshape(-1, power.shape[-1]) @ self.mel_matrix
            np.maximum(mel, np.float32(self.floor), out=mel)
            np.log(mel, out=mel)
            out[i : i + 8] = mel.reshape(len(block), *self.shape)
        out -= out.max(axis=(1, 2), keepdims=True)
        out *= np.float32(1.0 / self.range_ln)
        out += np.float32(1.0)
        return np.maximum(out, np.float32(0.0), out=out)

    def images(self, windows: Floats) -> Image:
        """Images as both models see them: float32 [n, samples] -> uint8 [n, frames, mels]."""
        unit = self.unit_images(windows)
        unit *= np.float32(255.0)
        return np.rint(unit, out=unit).astype(np.uint8)

    def check(self, windows: Floats) -> None:
        """Raise `ValueError` unless `windows` is finite [n, samples]."""
        if windows.ndim != 2 or windows.shape[1] != self.samples:
            raise ValueError(f"windows must be [n, {self.samples}] samples, not {list(windows.shape)}")
        if not np.isfinite(windows).all():
            raise ValueError("windows hold NaN or infinite samples; only finite values have an image")


FRONT_END = FrontEnd()
"""The front end of this version of the project, for both models."""


def _hz_to_mel(hz: float) -> float:
    return float(hz / (200.0 / 3.0) if hz < 1000.0 else 15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel * (200.0 / 3.0), 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))
