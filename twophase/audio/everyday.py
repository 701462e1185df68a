"""Everyday sounds that are no instrument, from arithmetic alone: wind, rain, engines, alarms, birds, knocks, babble.

Every recipe has the signature `recipe(rng, x, n)`: `x` in [0, 1) moves its main character (pitch, rate, colour), `n` is
how many samples at 16 kHz to make; it gives float32 [n], of any level. Some are tonal or percussive on purpose: a gate
that only told noise from tones would pass on easier ones.
"""

import numpy as np
from scipy.signal import lfilter

from twophase.audio.effects import noise
from twophase.audio.frontend import SAMPLE_RATE, Floats

Rng = np.random.Generator


def bursts(rng: Rng, x: float, n: int) -> Floats:
    """Bursts of noise, from white to brown."""
    out = np.zeros(n, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        a = int(rng.integers(0, max(1, n * 3 // 4)))
        b = min(n, a + int(rng.uniform(0.08, 1.0) * SAMPLE_RATE))
        shape = np.hanning(b - a).astype(np.float32) ** np.float32(rng.uniform(0.1, 1.0))
        out[a:b] += noise(b - a, -6.0 * x, rng) * shape
    return out


def hiss(rng: Rng, x: float, n: int) -> Floats:
    """Steady noise in a band, as of tapes, taps and fans."""
    return _resonate(noise(n, 0.0, rng), 200.0 * 25.0**x, rng.uniform(300.0, 4000.0))


def wind(rng: Rng, x: float, n: int) -> Floats:
    """Howling: noise through a resonance, in gusts."""
    howl = _resonate(noise(n, -3.0, rng), 150.0 * 6.0**x, rng.uniform(60.0, 400.0))
    gusts = howl / howl.std() + np.float32(0.3) * noise(n, -6.0, rng)
    return np.asarray(gusts * _wander(rng, n, 1.5), np.float32)


def rain(rng: Rng, x: float, n: int) -> Floats:
    """Many small drops over a hiss."""
    drops = _hits(rng, n, 40.0 * 20.0**x)
    return _resonate(drops, rng.uniform(1500.0, 5000.0), 1500.0) + np.float32(0.02) * noise(n, -1.0, rng)


def hum(rng: Rng, x: float, n: int) -> Floats:
    """Mains hum and buzz: harmonics of a steady low tone."""
    f0 = 45.0 + 80.0 * x
    t = np.arange(n) / SAMPLE_RATE
    out = sum(rng.exponential(k**-0.7) * np.sin(2 * np.pi * (f0 * k * t + rng.random())) for k in range(1, 13))
    return np.asarray(out, np.float32) + np.float32(0.05) * noise(n, -3.0, rng)


def engine(rng: Rng, x: float, n: int) -> Floats:
    """Firing pulses at a rate that drifts, through the resonances of a body."""
    phase = np.cumsum(12.0 * 10.0**x * _wander(rng, n, 0.25) / SAMPLE_RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0) * rng.uniform(0.6, 1.0, n) + 0.03 * rng.standard_normal(n)
    out = np.zeros(n, np.float32)
    for hz in rng.uniform(80.0, 2500.0, 3):
        out += _resonate(pulses, hz, rng.uniform(60.0, 500.0))
    return out


def beeps(rng: Rng, x: float, n: int) -> Floats:
    """Alarms: a tone, or two in turn, switched on and off."""
    t = np.arange(n) / SAMPLE_RATE
    rate = rng.uniform(1.5, 8.0)
    step = np.floor(t * rate) % 2
    hz = 400.0 * 8.0**x * np.where(step > 0, rng.choice([1.0, 1.0, 0.75, 1.26]), 1.0)
    tone = np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)
    tone = np.tanh(tone * rng.choice([0.5, 2.0, 6.0]))
    gate = (t * rate) % 1.0 < rng.choice([0.5, 0.7, 1.1])
    return np.asarray(tone * np.convolve(gate, np.ones(80) / 80, "same"), np.float32)


def siren(rng: Rng, x: float, n: int) -> Floats:
    """A tone that sweeps up and down, or only up."""
    t = np.arange(n) / SAMPLE_RATE
    turn = (t * rng.uniform(0.3, 5.0) + rng.random()) % 1.0
    sweep = 2.0 * np.abs(turn - 0.5) if rng.random() < 0.6 else turn
    hz = 300.0 * 6.0**x * rng.uniform(1.3, 3.0) ** sweep
    tone = np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)
    return np.asarray(np.tanh(tone * rng.uniform(0.5, 5.0)), np.float32)


def chirps(rng: Rng, x: float, n: int) -> Floats:
    """Birdlike: short fast sweeps in series."""
    out = np.zeros(n, np.float32)
    base, at = 1500.0 * 3.0**x, int(rng.uniform(0.0, 0.2) * SAMPLE_RATE)
    while at < n:
        length = int(rng.uniform(0.03, 0.2) * SAMPLE_RATE)
        u = np.linspace(0.0, 1.0, length)
        hz = base * rng.uniform(0.8, 1.25) * (1.0 + rng.uniform(-0.4, 0.4) * u + 0.1 * np.sin(u * rng.uniform(0, 60)))
        chirp = np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE) * np.sin(np.pi * u) ** 2
        out[at : at + length] += chirp[: n - at].astype(np.float32)
        at += length + int(rng.exponential(0.12) * SAMPLE_RATE)
    return out


def clapping(rng: Rng, x: float, n: int) -> Floats:
    """A crowd that claps."""
    return _resonate(_hits(rng, n, 8.0 * 25.0**x), rng.uniform(900.0, 1800.0), 900.0)


def crackle(rng: Rng, x: float, n: int) -> Floats:
    """Fire, clicks and scratches: sparse hits, sharp and of very different strengths."""
    return _resonate(_hits(rng, n, 2.0 * 30.0**x), rng.uniform(1000.0, 6000.0), rng.uniform(1000.0, 6000.0))


def knocks(rng: Rng, x: float, n: int) -> Floats:
    """Something struck that does not ring: a few damped modes without harmony."""
    hits = _hits(rng, n, rng.uniform(1.0, 6.0))
    out = np.zeros(n, np.float32)
    for hz in 120.0 * 15.0**x * np.array([1.0, rng.uniform(1.3, 2.2), rng.uniform(2.3, 4.5)]):
        out += _resonate(hits, min(hz, 7000.0), rng.uniform(20.0, 120.0))
    return out


def babble(rng: Rng, x: float, n: int) -> Floats:
    """Speechlike: syllables of a buzz with moving pitch, or of breath, through three formants each."""
    out = np.zeros(n, np.float32)
    pitch, at = 90.0 * 3.0**x, 0
    while at < n:
        length = int(rng.uniform(0.08, 0.3) * SAMPLE_RATE)
        u = np.linspace(0.0, 1.0, length)
        hz = pitch * rng.uniform(0.8, 1.3) * (1.0 + rng.uniform(-0.2, 0.2) * u)
        buzz = np.diff(np.floor(np.cumsum(hz) / SAMPLE_RATE + rng.random()), prepend=0.0)
        source = buzz + 0.02 * rng.standard_normal(length) if rng.random() < 0.8 else 0.1 * rng.standard_normal(length)
        voice = np.zeros(length, np.float32)
        for low, high in ((250.0, 850.0), (850.0, 2400.0), (2300.0, 3400.0)):
            voice += _resonate(source, rng.uniform(low, high), rng.uniform(60.0, 160.0))
        out[at : at + length] += (voice * np.sin(np.pi * u) ** 0.5)[: n - at].astype(np.float32)
        at += length + int(rng.choice([0.0, 0.03, 0.15]) * SAMPLE_RATE)
    return out


def _resonate(source: "np.ndarray[tuple[int], np.dtype[np.floating]]", hz: float, width_hz: float) -> Floats:
    """Through one resonance at `hz`, `width_hz` wide."""
    r = np.exp(-np.pi * width_hz / SAMPLE_RATE)
    poles = [1.0, -2.0 * r * np.cos(2 * np.pi * hz / SAMPLE_RATE), r * r]
    return np.asarray(lfilter([1.0 - r, 0.0, r - 1.0], poles, source), np.float32)


def _hits(rng: Rng, n: int, per_second: float) -> Floats:
    """Impulses at random times, a few of them much stronger than the rest; at least one, early."""
    out = np.zeros(n, np.float32)
    count = 1 + rng.poisson(per_second * n / SAMPLE_RATE)
    where = rng.integers(0, n, count)
    where[0] = rng.integers(0, max(1, n // 3))
    np.add.at(out, where, (rng.exponential(1.0, count) ** 1.5 + 0.1).astype(np.float32))
    return out


def _wander(rng: Rng, n: int, depth: float) -> Floats:
    """A slow positive random curve around 1."""
    knots = np.exp(rng.normal(0.0, depth, 3 + n // 6000) / 2.0)
    return np.interp(np.linspace(0.0, 1.0, n), np.linspace(0.0, 1.0, len(knots)), knots).astype(np.float32)
