"""The front end: the one definition of window -> image that training, devices and servers share.

A window is `SAMPLES` mono samples at 16 kHz in [-1, 1]; its image is `uint8 [frames, mels]`: the log-mel spectrogram,
relative to the window's own maximum, 50 dB deep. Everything that changes a pixel is a field of `FrontEnd`, and the
fingerprint is a digest of those fields: two programs with the same fingerprint look at the same images.

This module holds the NumPy/SciPy form, for serving. The graph form, for the exported models, is `frontend_graph.py`;
the compiled form, for bulk work, `frontend_compiled.py`; a parity test holds all three and librosa together. Each
window is normalised by itself, never by its batch, so a clip alone and the same clip in any batch give the same image.

Mel scale and area normalisation: M. Slaney, Auditory Toolbox, Interval Research TR 1998-010, as librosa's default.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of everything past decoding."""

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]

_BLOCK = 8  # windows at a time: 1 MB of frames and as much of spectra
_GROUPS = 8  # groups of mel bands: a seventh of the dense product's arithmetic
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
        out = np.empty((len(windows), *self.shape), np.float32)
        for here, unit in self._blocks(windows, 1.0):
            out[here] = unit
        return out

    def images(self, windows: Floats) -> Image:
        """Images as both models see them: float32 [n, samples] -> uint8 [n, frames, mels]."""
        out = np.empty((len(windows), *self.shape), np.uint8)
        for here, level in self._blocks(windows, 255.0):
            out[here] = np.rint(level, out=level)
        return out

    def _blocks(self, windows: Floats, white: float) -> Iterator[tuple[slice, Floats]]:
        """Images in [0, white] by blocks that stay in the processor's cache; each block overwrites the one before."""
        from scipy.fft import rfft  # its batched float32 transform; devices use the graph form and need no SciPy

        self._check_shape(windows)
        x = np.ascontiguousarray(windows, dtype=np.float32)
        size = min(_BLOCK, len(x))
        frames = np.lib.stride_tricks.sliding_window_view(x, self.n_fft, axis=-1)[:, :: self.hop]
        framed = np.empty((size, self.frames, self.n_fft), np.float32)
        mel = np.empty((size, *self.shape), np.float32)
        for i in range(0, len(x), size or 1):
            n = min(size, len(x) - i)
            _check_finite(x[i : i + n])  # here, where it brings the block into the cache
            spectrum = rfft(np.multiply(frames[i : i + n], self.hann, out=framed[:n]), axis=-1)
            squares = spectrum.view(np.float32)
            np.square(squares, out=squares)
            image = mel[:n]
            for bins, mels, weights in self._mel_groups:
                np.matmul(squares[..., bins], weights, out=image[..., mels])
            yield slice(i, i + n), self.relative(image, white)

    def relative(self, mel: Floats, white: float) -> Floats:
        """Mel powers, in place, to levels in [0, white] below each window's maximum: float32 [n, ...] -> the same."""
        np.maximum(mel, np.float32(self.floor), out=mel)
        np.log(mel, out=mel)
        mel *= np.float32(white / self.range_ln)
        mel += np.float32(white) - mel.reshape(len(mel), -1).max(axis=1)[:, None, None]
        return np.maximum(mel, np.float32(0.0), out=mel)

    @cached_property
    def _mel_groups(self) -> list[tuple[slice, slice, Floats]]:
        """The mel matrix without most of its zeros: groups of neighbouring bands over the bins they reach.

        Rows come twice, for the squares of real and imaginary parts, which lie side by side: the product adds them.
        One small product a window keeps BLAS from starting threads of its own below this program's (measured: five
        times the processor time) and makes a window's result the same bits alone and in any batch.
        """
        groups = []
        for bands in np.array_split(np.arange(self.mels), min(_GROUPS, self.mels)):
            reach = np.flatnonzero(self.mel_matrix[:, bands].any(axis=1))
            low, high = (int(reach[0]), int(reach[-1]) + 1) if len(reach) else (0, 1)
            weights = np.repeat(self.mel_matrix[low:high, bands], 2, axis=0)
            groups.append((slice(2 * low, 2 * high), slice(int(bands[0]), int(bands[-1]) + 1), weights))
        return groups

    def check(self, windows: Floats) -> None:
        """Raise `ValueError` unless `windows` is finite [n, samples]."""
        self._check_shape(windows)
        _check_finite(windows)

    def _check_shape(self, windows: Floats) -> None:
        if windows.ndim != 2 or windows.shape[1] != self.samples:
            raise ValueError(f"windows must be [n, {self.samples}] samples, not {list(windows.shape)}")


FRONT_END = FrontEnd()
"""The front end of this version of the project, for both models."""


def _check_finite(windows: Floats) -> None:
    if not np.isfinite(windows).all():
        raise ValueError("windows hold NaN or infinite samples; only finite values have an image")


def _hz_to_mel(hz: float) -> float:
    return float(hz / (200.0 / 3.0) if hz < 1000.0 else 15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel * (200.0 / 3.0), 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))
