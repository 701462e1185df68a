"""Images a second from decoded audio on one core: ours, librosa, TensorFlow, and the reference notebook's recipe.

    python benchmarks/frontend.py        about 1 minute; ours reaches 10 times librosa, 1,000 times the recipe

All make images of the same size, 61 frames by 64 mels (the recipe: as many pixels), of the same windows of about one
second at 16 kHz. librosa gets a window a call, as its users call it; ours and TensorFlow get blocks. The process is
held to one core and its maths libraries to one thread. The time of each of our stages is listed as well.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import librosa
import numpy as np
from _notebook_recipe import make_image
from _report import at_least, emit, in_turns, machine, row
from scipy.fft import rfft
from threadpoolctl import threadpool_limits

from twophase.audio.frontend import FRONT_END, Floats

ROUNDS, WINDOWS = 7, 256


def run() -> dict[str, Any]:
    """Measure all peers and our stages."""
    with TemporaryDirectory() as folder, _one_core():
        rates = in_turns(_peers(Path(folder)), ROUNDS)
        stages = in_turns(_stages(_windows(WINDOWS)), ROUNDS)
    ours = rates["ours, NumPy and SciPy"]
    return {
        "benchmark": "frontend",
        "machine": machine(),
        "rows": [
            *(row(name, rate, "windows/s") for name, rate in rates.items()),
            *(row(f"stage: {name}", us, "us a window") for name, us in stages.items()),
        ],
        "goals": [
            at_least("ours / librosa", ours / rates["librosa"], 10),
            at_least("ours / the notebook's recipe", ours / rates["the notebook's recipe"], 1000),
        ],
    }


def _peers(folder: Path) -> dict[str, Callable[[], float]]:
    import tensorflow as tf

    from twophase.audio.frontend_graph import image_graph

    f, windows = FRONT_END, _windows(WINDOWS)
    graph = tf.function(image_graph, input_signature=[tf.TensorSpec([None, f.samples], tf.float32)])

    def with_librosa(window: Floats) -> Any:
        mel = librosa.feature.melspectrogram(
            y=window, sr=f.sample_rate, n_fft=f.n_fft, hop_length=f.hop, n_mels=f.mels, center=False
        )
        db = librosa.power_to_db(mel, ref=np.max, amin=f.floor, top_db=f.range_db)
        return np.rint((db.T / f.range_db + 1.0) * 255.0).astype(np.uint8)

    def recipe(window: Floats) -> None:
        make_image(window, f.sample_rate, folder / "a.png", (f.mels, f.frames))

    return {
        "ours, NumPy and SciPy": lambda: _rate(lambda: f.images(windows), WINDOWS),
        "ours, a window a call": lambda: _rate(lambda: [f.images(w[None]) for w in windows[:64]], 64),
        "ours, TensorFlow graph": lambda: _rate(lambda: graph(windows[:64]).numpy(), 64),
        "librosa": lambda: _rate(lambda: [with_librosa(w) for w in windows[:64]], 64),
        "the notebook's recipe": lambda: _rate(lambda: recipe(windows[0]), 1),
    }


def _stages(windows: Floats) -> dict[str, Callable[[], float]]:
    """Our stages by themselves, on blocks as `FrontEnd` cuts them: microseconds a window."""
    f, n = FRONT_END, 8
    frames = np.lib.stride_tricks.sliding_window_view(windows[:n], f.n_fft, axis=-1)[:, :: f.hop]
    framed = np.multiply(frames, f.hann)
    squares = np.square(rfft(framed, axis=-1).view(np.float32))
    mel = np.ones((n, *f.shape), np.float32)
    levels = np.empty(mel.shape, np.uint8)

    def bands() -> None:
        for bins, mels, weights in f._mel_groups:
            np.matmul(squares[..., bins], weights, out=mel[..., mels])

    def quantise() -> None:
        image = np.log(np.maximum(mel, np.float32(f.floor)))
        image *= np.float32(255.0 / f.range_ln)
        image += np.float32(255.0) - image.reshape(n, -1).max(axis=1)[:, None, None]
        levels[:] = np.rint(np.maximum(image, np.float32(0.0), out=image), out=image)

    stages = {
        "frames times Hann window": lambda: np.multiply(frames, f.hann, out=framed),
        "FFT": lambda: rfft(framed, axis=-1),
        "power": lambda: np.square(squares, out=np.empty_like(squares)),
        "mel bands": bands,
        "logarithm, range and rounding": quantise,
    }
    return {name: lambda work=work: 1e6 / _rate(work, n, 30) for name, work in stages.items()}


def _rate(work: Callable[[], Any], count: int, times: int = 1) -> float:
    begun = perf_counter()
    for _ in range(times):
        work()
    return times * count / (perf_counter() - begun)


def _windows(count: int) -> Floats:
    """Harmonic tones in noise, float32 [count, samples]."""
    rng = np.random.default_rng(0)
    t = np.arange(FRONT_END.samples, dtype=np.float32) / FRONT_END.sample_rate
    pitch = rng.uniform(100, 800, (count, 1)).astype(np.float32)
    tones = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 6))
    return np.asarray(tones + 0.01 * rng.standard_normal(tones.shape), np.float32)


@contextmanager
def _one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with threadpool_limits(1):
            yield
    finally:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    emit(run())
