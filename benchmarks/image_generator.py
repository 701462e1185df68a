"""Images a second into a training loop: Keras's generators and ours, from the same folders and from packed images.

    python benchmarks/image_generator.py        1 minute; on two cores ours reach 25 and 3 times Keras's

All give float32 batches of 64 in [0, 1], shuffled, one-hot labels beside them. From folders, each turn is a training
run of its own: a new generator and `EPOCHS` epochs, so that what a generator keeps in memory is paid for where it is
read. The first epoch of ours, which decodes every file, is listed as well.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _report import at_least, emit, in_turns, machine, row
from keras.src.legacy.preprocessing.image import ImageDataGenerator
from PIL import Image

from twophase.audio.frontend import FRONT_END
from twophase.audio.images import open_pack
from twophase.training.augment import Augment
from twophase.training.image_generator import ImageGenerator

IMAGES, LABELS, BATCH, EPOCHS, ROUNDS = 8192, 8, 64, 5, 3
SIZE = (FRONT_END.frames, FRONT_END.mels)
AUGMENT = Augment(
    shift_frames=6,
    background_probability=0.5,
    tilt_db=6.0,
    time_masks=2,
    time_mask_frames=8,
    freq_masks=2,
    freq_mask_mels=8,
)


def run() -> dict[str, Any]:
    """Measure and return the result; takes about a minute."""
    with TemporaryDirectory() as name:
        figures = in_turns(_peers(Path(name)), ROUNDS)
    reference = figures["Keras ImageDataGenerator, PNG folders"]
    goals = [
        at_least("packed images / ImageDataGenerator", figures["ImageGenerator, packed images"] / reference, 25),
        at_least("PNG folders / ImageDataGenerator", figures["ImageGenerator, PNG folders"] / reference, 3),
    ]
    rows = [row(name, value, "images/s") for name, value in figures.items()]
    return {"benchmark": "image_generator", "machine": machine(), "rows": rows, "goals": goals}


def _peers(home: Path) -> dict[str, Callable[[], float]]:
    images, labels = _images()
    np.save(home / "pack.npy", images)
    for i, image in enumerate(images):
        folder = home / "png" / str(labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    pack, one_hot = open_pack(home / "pack.npy"), np.eye(LABELS, dtype=np.float32)[labels]
    ours = ImageGenerator(rescale=1 / 255)
    packed = ours.flow(pack, one_hot, batch_size=BATCH, seed=1)
    augmenting = ImageGenerator(rescale=1 / 255, augment=AUGMENT, background=pack)
    augmented = augmenting.flow(pack, one_hot, batch_size=BATCH, seed=1)

    def folders(generator: Any) -> Any:
        return generator.flow_from_directory(
            str(home / "png"), target_size=SIZE, color_mode="grayscale", batch_size=BATCH, seed=1
        )

    def dataset() -> float:
        begun = perf_counter()
        batches = keras.utils.image_dataset_from_directory(
            home / "png", label_mode="categorical", color_mode="grayscale", batch_size=BATCH, image_size=SIZE, seed=1
        ).map(lambda x, y: (x / 255, y))
        seen = sum(len(x) for _ in range(EPOCHS) for x, _ in batches)
        return seen / (perf_counter() - begun)

    return {
        "Keras ImageDataGenerator, PNG folders": lambda: _rate(
            lambda: folders(ImageDataGenerator(rescale=1 / 255)), EPOCHS
        ),
        "Keras image_dataset_from_directory, PNG folders": dataset,
        "ImageGenerator, PNG folders": lambda: _rate(lambda: folders(ours), EPOCHS),
        "ImageGenerator, PNG folders, first epoch": lambda: _rate(lambda: folders(ours), 1),
        "ImageGenerator, packed images": lambda: _rate(lambda: packed, EPOCHS),
        "ImageGenerator, packed images, augmented": lambda: _rate(lambda: augmented, EPOCHS),
    }


def _rate(make: Callable[[], Any], epochs: int) -> float:
    """Images a second over some epochs of a Keras sequence, its making included."""
    begun = perf_counter()
    sequence = make()
    seen = 0
    for _ in range(epochs):
        sequence.on_epoch_begin()
        seen += sum(len(sequence[i][0]) for i in range(len(sequence)))
        sequence.on_epoch_end()
    return seen / (perf_counter() - begun)


def _images() -> tuple[np.ndarray, np.ndarray]:
    """Harmonic tones with a decay in noise, as images: uint8 [IMAGES, frames, mels], and a label each."""
    rng = np.random.default_rng(0)
    t = np.arange(FRONT_END.samples, dtype=np.float32) / FRONT_END.sample_rate
    images = np.empty((IMAGES, *FRONT_END.shape), np.uint8)
    for i in range(0, IMAGES, 64):
        pitch = rng.uniform(100, 800, (64, 1)).astype(np.float32)
        tone = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 6))
        decay = np.exp(-t * rng.uniform(0, 6, (64, 1)).astype(np.float32))
        noise = rng.standard_normal(tone.shape, dtype=np.float32) * rng.uniform(0.001, 0.1, (64, 1)).astype(np.float32)
        images[i : i + 64] = FRONT_END.images(tone * decay + noise)
    return images, rng.integers(LABELS, size=IMAGES)


if __name__ == "__main__":
    emit(run())
