"""Augmentation of log-mel images, whole batches at a time.

Most operations are what the front end could have seen: another pitch, the sound a little later, over something else,
through another microphone or a narrow channel, or from far away. The rest (masks, mixup) keep a net from leaning on
one detail. Images are in levels, 0 to 255 for `RANGE_DB` below the image's own maximum, so the operations that change
the maximum (warp to band limit) end by restoring it, as the front end would have. A gain changes nothing else in such
images than how much lies below the floor.

Pure functions of their arguments and the generator that they are given; the input is left as it was.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import FRONT_END, Floats
from twophase.errors import UsageError

Array = NDArray[Any]

RANGE_DB = FRONT_END.range_db
"""How many dB the levels 0 to 255 span."""

_BANDS_HZ = FRONT_END.band_edges_hz[1:-1]

_LN_PER_LEVEL = np.float32(FRONT_END.range_ln / 255.0)
_LEVELS_PER_DB = np.float32(255.0 / RANGE_DB)


@dataclass(frozen=True)
class Augment:
    """What to do to a batch, in this order; what is 0 is not done.

    Strengths are upper ends: each image draws its own amounts, uniformly. Masks are SpecAugment's (Park et al. 2019,
    arXiv:1904.08779), filled with the image's mean as there; mixup is Zhang et al.'s (2018, arXiv:1710.09412).
    """

    warp_semitones: float = 0.0
    """Pitch and spectral envelope move up to so many semitones up or down, by interpolation between mel bands."""
    shift_frames: int = 0
    """The sound moves up to so many frames earlier or later; what comes in is the image's minimum."""
    background_probability: float = 0.0
    """The share of images that get a background image mixed in."""
    background_snr_db: tuple[float, float] = (0.0, 30.0)
    """Mean power of the image over that of its background, in dB, from and to."""
    tilt_db: float = 0.0
    """The highest mel band gains or loses up to so many dB against the lowest, linearly between."""
    band_limit_probability: float = 0.0
    """The share of images that lose everything above some frequency, as through a telephone."""
    band_limit_hz: tuple[float, float] = (3000.0, 5000.0)
    """Where the band ends, from and to."""
    quiet_probability: float = 0.0
    """The share of images that lose what is faint, as recordings do that are so quiet that the front end's floor, which
    is absolute, lies above it."""
    quiet_db: float = 40.0
    """How far that floor comes up, at most."""
    mixup_alpha: float = 0.0
    """Each image and its label are averaged with another of the batch, weighted by Beta(alpha, alpha)."""
    time_masks: int = 0
    time_mask_frames: int = 0
    """Each of `time_masks` hides 0 to so many frames."""
    freq_masks: int = 0
    freq_mask_mels: int = 0
    """Each of `freq_masks` hides 0 to so many mel bands."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, tuple) and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"Augment: {field.name} is {value}; give a number from 0 up")
            if field.name.endswith("_probability") and value > 1:
                raise UsageError(f"Augment: {field.name} is {value}; give 0 to 1")
            if isinstance(value, tuple) and not (math.isfinite(value[0]) and value[0] <= value[1] < math.inf):
                raise UsageError(f"Augment: {field.name} is {value}; give (from, to) with from <= to")

    def __call__(
        self, batch: Array, labels: Array | None, rng: np.random.Generator, background: Array | None = None
    ) -> tuple[Floats, Array | None]:
        """Levels, uint8 or float [n, frames, mels] -> float32 [n, frames, mels] in 0 to 255, and the labels.

        `labels` are returned as they are, or mixed if `mixup_alpha`, which only floating labels can be (one-hot
        [n, classes], or [n] of a binary problem). `background` holds as many images as the batch, one for each.
        """
        if batch.ndim != 3:
            raise UsageError(f"Augment: images are {list(batch.shape)}; give [n, frames, mels]")
        out: Floats = batch.astype(np.float32)
        peak = out.max(axis=(1, 2), keepdims=True)
        if self.warp_semitones:
            out = out @ _warp(len(out), self.warp_semitones, rng)
        if self.shift_frames:
            out = _shift(out, self.shift_frames, rng)
        if self.background_probability:
            self._mix_in(out, background, rng)
        if self.tilt_db:
            out += _tilt(out.shape, self.tilt_db, rng)
        if self.band_limit_probability:
            chosen = rng.random(len(out)) < self.band_limit_probability
            ends = np.where(chosen, rng.uniform(*self.band_limit_hz, size=len(out)), math.inf)
            np.copyto(out, np.float32(-math.inf), where=ends[:, None, None] < _BANDS_HZ)
        if (
            self.warp_semitones
            or self.shift_frames
            or self.background_probability
            or self.tilt_db
            or self.band_limit_probability
        ):
            out += peak - out.max(axis=(1, 2), keepdims=True)
            np.maximum(out, np.float32(0.0), out=out)
        if self.quiet_probability:
            chosen = rng.random(len(out)) < self.quiet_probability
            floor = np.where(chosen, rng.uniform(0.0, self.quiet_db, len(out)), 0.0) * _LEVELS_PER_DB
            np.maximum(out, floor.astype(np.float32)[:, None, None], out=out)
        if self.mixup_alpha:
            out, labels = _mixup(out, labels, self.mixup_alpha, rng)
        if self.time_masks or self.freq_masks:
            hidden = _masks(len(out), out.shape[1], self.time_masks, self.time_mask_frames, rng)[:, :, None]
            hidden = hidden | _masks(len(out), out.shape[2], self.freq_masks, self.freq_mask_mels, rng)[:, None, :]
            np.copyto(out, out.mean(axis=(1, 2), keepdims=True), where=hidden)
        return out, labels

    def _mix_in(self, out: Floats, background: Array | None, rng: np.random.Generator) -> None:
        """Add the power of a background to some of the images, in place.

        Both are relative to their own maxima, so the ratio is set between their mean powers. What lies below the 50 dB
        counts as lying at them: at most 1e-5 of the maximum too much. A background ends where the image's last sound
        does: a clip shorter than a window is padded after it was recorded, with whatever was behind it.
        """
        if background is None or background.shape != out.shape:
            given = "nothing" if background is None else list(background.shape)
            raise UsageError(f"Augment: background is {given}; background_probability needs {list(out.shape)}")
        chosen = np.flatnonzero(rng.random(len(out)) < self.background_probability)
        snr_db = rng.uniform(*self.background_snr_db, size=len(out)).astype(np.float32)[chosen]
        signal = _power(out[chosen])
        noise = _power(background[chosen].astype(np.float32))
        loudest: Floats = out[chosen].max(axis=2)  # of each frame, and then of it and those that follow
        np.maximum.accumulate(loudest[:, ::-1], axis=1, out=loudest[:, ::-1])
        noise *= (loudest > 0)[:, :, None]
        behind = np.maximum(noise.mean(axis=(1, 2)), np.float32(1e-3))  # an image that was shifted out has none
        ratio = signal.mean(axis=(1, 2)) / behind * np.float32(10.0) ** (snr_db / np.float32(-10.0))
        noise *= ratio[:, None, None]
        signal += noise
        np.log(signal, out=signal)
        signal /= _LN_PER_LEVEL
        out[chosen] = signal


def _power(levels: Floats) -> Floats:
    levels *= _LN_PER_LEVEL
    return np.exp(levels, out=levels)


def _warp(n: int, most: float, rng: np.random.Generator) -> Floats:
    """Interpolation between mel bands for n factors of frequency: [n, mels, mels], to multiply images with."""
    factor = 2.0 ** (rng.uniform(-most, most, size=(n, 1)) / 12.0)
    bands = np.arange(len(_BANDS_HZ), dtype=np.float32)
    source = np.interp(_BANDS_HZ / factor, _BANDS_HZ, bands).astype(np.float32)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(source[:, None, :] - bands[:, None])), np.float32)


def _shift(x: Array, most: int, rng: np.random.Generator) -> Array:
    n, frames, _ = x.shape
    source = np.arange(frames) - rng.integers(-most, most, size=(n, 1), endpoint=True)
    outside = (source < 0) | (source >= frames)
    shifted: Array = x[np.arange(n)[:, None], np.clip(source, 0, frames - 1)]
    np.copyto(shifted, x.min(axis=(1, 2), keepdims=True), where=outside[:, :, None])
    return shifted


def _tilt(shape: tuple[int, ...], most_db: float, rng: np.random.Generator) -> Floats:
    slope = rng.uniform(-most_db, most_db, size=(shape[0], 1, 1)).astype(np.float32)
    return slope * _LEVELS_PER_DB * np.linspace(-0.5, 0.5, shape[2], dtype=np.float32)


def _mixup(x: Floats, labels: Array | None, alpha: float, rng: np.random.Generator) -> tuple[Floats, Array]:
    if labels is None or not np.issubdtype(labels.dtype, np.floating):
        kind = "absent" if labels is None else f"{labels.dtype} {list(labels.shape)}"
        raise UsageError(f"Augment: mixup needs floating labels that can be averaged, one-hot ones; these are {kind}")
    other = rng.permutation(len(x))
    share = rng.beta(alpha, alpha, size=len(x)).astype(np.float32)
    weight = share.reshape(-1, *[1] * (labels.ndim - 1)).astype(labels.dtype)
    mixed = labels * weight + labels[other] * (1 - weight)
    share = share[:, None, None]
    theirs = x[other]
    theirs *= 1 - share
    x *= share
    x += theirs
    return x, mixed


def _masks(n: int, length: int, count: int, widest: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which positions are hidden: bool [n, length], `count` runs a row, each 0 to `widest` long."""
    width = rng.integers(0, min(widest, length), size=(n, count, 1), endpoint=True)
    start = rng.integers(0, length - width, endpoint=True)
    at = np.arange(length)
    return np.asarray(((at >= start) & (at < start + width)).any(axis=1))
