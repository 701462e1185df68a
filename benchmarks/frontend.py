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
from threadpoolctl import threadpool_limits

from twophase.audio import frontend_compiled as compiled
from twophase.audio.frontend import FRONT_END, Floats

ROUNDS, WINDOWS = 7, 256


def run() -> dict[str, Any]:
    """Measure all peers and our stages."""
    with TemporaryDirectory() as folder, _one_core():
        rates = in_turns(_peers(Path(folder)), ROUNDS)
        stages = in_turns(_stages(_windows(WINDOWS)), ROUNDS)
    ours = rates["ours, compiled"]
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
        "ours, compiled": lambda: _rate(lambda: compiled.images(windows), WINDOWS),
        "ours, compiled, a window a call": lambda: _rate(lambda: [compiled.images(w[None]) for w in windows[:64]], 64),
        "ours, NumPy and SciPy": lambda: _rate(lambda: f.images(windows), WINDOWS),
        "ours, NumPy and SciPy, a window a call": lambda: _rate(lambda: [f.images(w[None]) for w in windows[:64]], 64),
        "ours, TensorFlow graph": lambda: _rate(lambda: graph(windows[:64]).numpy(), 64),
        "librosa": lambda: _rate(lambda: [with_librosa(w) for w in windows[:64]], 64),
        "the notebook's recipe": lambda: _rate(lambda: recipe(windows[0]), 1),
    }


def _stages(windows: Floats) -> dict[str, Callable[[], float]]:
    """Stages of the compiled form by themselves: microseconds a window."""
    f, tables = FRONT_END, compiled._tables(FRONT_END)
    n = f.n_fft // 2
    samples, a, b, c, d, power = (np.ones((n + 1, 72), np.float32) for _ in range(6))
    samples, a, b, c, d = samples[:n], a[:n], b[:n], c[:n], d[:n]
    mel = np.ones((1, f.mels, f.frames), np.float32)

    def transform() -> None:
        compiled._first_stage(samples, tables.hann, tables.twiddles, tables.first, a, b, 64)
        for length in (n // 4, n // 16, n // 64):
            compiled._stage(a, b, tables.twiddles, c, d, length, 64)

    stages = {
        "samples to lanes": lambda: compiled._lanes(windows[0], f.frames + 1, samples),
        "Hann window and FFT": transform,
        "power": lambda: compiled._real_power(a, b, tables.split, tables.mirror, power, 64),
        "logarithm, range and rounding": lambda: np.rint(f.relative(mel, 255.0)).astype(np.uint8).transpose(0, 2, 1),
        "all, mel bands included": lambda: compiled.images(windows[:1]),
    }
    return {name: lambda work=work: 1e6 / _rate(work, 1, 200) for name, work in stages.items()}


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
