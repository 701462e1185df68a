"""What happens to a sound on its way to a file: room, microphone, noise, level, telephone channel.

Each effect takes and gives one clip, float32 [n] mono at 16 kHz, keeps its length, and touches nothing else; what is
random comes from the `rng` that it is given, so the same generator state gives the same samples. `record` chains them
with random strengths, the same for every label, so that the recording gives no label away.
"""

import numpy as np
import soxr
from scipy.fft import irfft, next_fast_len, rfft

from twophase.audio.frontend import SAMPLE_RATE, Floats

NOISE_SNR_DB = (12.0, 50.0)
"""How far noise lies below the sound in `record`."""


def record(pcm: Floats, rng: np.random.Generator) -> Floats:
    """One clip as some microphone in some room at some level would have recorded it. Silence stays silence."""
    if rng.random() < 0.5:
        pcm = room(pcm, decay_s=rng.uniform(0.1, 0.9), wet=rng.uniform(0.05, 0.5), rng=rng)
    pcm = tilt(pcm, rng.normal(0.0, 0.8))
    pcm = add_noise(pcm, rng.uniform(*NOISE_SNR_DB), rng.uniform(-6.0, 1.0), rng)
    if rng.random() < 0.1:
        pcm = telephone(pcm)
    return level(pcm, rng.uniform(-26.0, -0.5))


def room(pcm: Floats, decay_s: float, wet: float, rng: np.random.Generator) -> Floats:
    """Reverberation: noise that decays by 60 dB in `decay_s`, mixed in at `wet` (0 to 1) of the dry sound's power."""
    n = int(min(decay_s, 0.6) * SAMPLE_RATE)
    gap = int(rng.uniform(0.002, 0.02) * SAMPLE_RATE)
    t = np.arange(n, dtype=np.float32) / np.float32(SAMPLE_RATE)
    tail = rng.standard_normal(n, np.float32) * np.exp(np.float32(-6.9 / decay_s) * t)
    tail *= np.float32(np.sqrt(wet) / np.linalg.norm(tail))
    response = np.concatenate([np.ones(1, np.float32), np.zeros(gap, np.float32), tail])
    size = next_fast_len(len(pcm) + len(response), real=True)
    return np.asarray(irfft(rfft(pcm, size) * rfft(response, size), size)[: len(pcm)], np.float32)


def tilt(pcm: Floats, db_per_octave: float) -> Floats:
    """Make a sound brighter (positive) or duller around 1 kHz, as microphones and distance do."""
    size = next_fast_len(len(pcm), real=True)
    return np.asarray(irfft(rfft(pcm, size) * _slope(size, db_per_octave), size)[: len(pcm)], np.float32)


def noise(n: int, db_per_octave: float, rng: np.random.Generator) -> Floats:
    """Stationary noise with a mean square of 1: white at 0 dB an octave, pink at -3, brown at -6."""
    size = next_fast_len(max(n, 2), real=True)
    spectrum = rng.standard_normal((size // 2 + 1, 2), np.float32).view(np.complex64)[:, 0]
    out = irfft(spectrum * _slope(size, db_per_octave), size)[:n]
    return np.asarray(out / (np.sqrt(np.mean(np.square(out))) + 1e-12), np.float32)


def add_noise(pcm: Floats, snr_db: float, db_per_octave: float, rng: np.random.Generator) -> Floats:
    """Add stationary noise, `snr_db` below the clip's mean power."""
    rms = np.sqrt(np.mean(np.square(pcm)))
    return pcm + noise(len(pcm), db_per_octave, rng) * np.float32(rms * 10.0 ** (-snr_db / 20.0))


def telephone(pcm: Floats) -> Floats:
    """Through a channel of 8 kHz and back: nothing above 4 kHz is left."""
    narrow = soxr.resample(pcm, SAMPLE_RATE, SAMPLE_RATE // 2, "MQ")
    wide = soxr.resample(narrow, SAMPLE_RATE // 2, SAMPLE_RATE, "MQ")[: len(pcm)]
    return np.pad(wide, (0, len(pcm) - len(wide)))


def level(pcm: Floats, peak_dbfs: float) -> Floats:
    """Scale so that the largest sample is `peak_dbfs` below full scale. Silence stays silence."""
    peak = float(np.max(np.abs(pcm), initial=0.0))
    return pcm * np.float32(10.0 ** (peak_dbfs / 20.0) / peak) if peak > 0.0 else pcm


def _slope(size: int, db_per_octave: float) -> Floats:
    """Gain at each bin of a real transform of `size` samples; flat below 40 Hz, 1 at 1 kHz."""
    hz = np.maximum(np.arange(size // 2 + 1, dtype=np.float32) * np.float32(SAMPLE_RATE / size), np.float32(40.0))
    return np.asarray((hz / np.float32(1000.0)) ** np.float32(db_per_octave / 6.0206), np.float32)
