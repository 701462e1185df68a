"""Clips on disk for the tests of this room."""

from pathlib import Path

import numpy as np
import soundfile

from twophase.audio.frontend import Floats


def tone(hz: float, seconds: float = 0.5, rate: int = 16_000, seed: int = 0) -> Floats:
    """A decaying tone in a little noise: float32 [seconds * rate]."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.5 * np.sin(2 * np.pi * hz * t) * np.exp(-3 * t) + 0.01 * noise).astype(np.float32)


def write_clip(path: Path, hz: float = 440.0, seconds: float = 0.5, rate: int = 16_000, seed: int = 0) -> Path:
    """A tone as an audio file of the kind that `path` ends with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(hz, seconds, rate, seed), rate)
    return path


def write_folder(root: Path, labels: int = 3, clips: int = 12) -> Path:
    """A data folder `label-<i>/<j>.wav` of different clips, with a `wanted.txt` that names the first label."""
    for i in range(labels):
        for j in range(clips):
            write_clip(root / f"label-{i}" / f"{j:02d}.wav", hz=200.0 * (i + 1) + 7 * j, seed=100 * i + j)
    (root / "wanted.txt").write_text("label-0\n")
    return root
