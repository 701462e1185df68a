"""A release small enough to make in a second: two linear models, exported, with manifest and golden windows."""

from pathlib import Path

import numpy as np

from twophase.audio.frontend import FRONT_END
from twophase.files import digest
from twophase.release import manifest
from twophase.release.golden import GOLDEN
from twophase.release.manifest import EXTRA, Manifest, OperatingPoint
from twophase.release.runtime import Pair

LABELS = ("cello", "flute", "oboe")


def make(folder: Path, seed: int) -> Path:
    """Write a release whose answers depend on `seed`; equal seeds make equal releases."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 4e-3, (FRONT_END.mels, len(LABELS) + 1)).astype(np.float32)

    def gate(window: "tf.Tensor") -> "tf.Tensor":
        return tf.reduce_mean(tf.square(window), axis=1, keepdims=True) * float(100 + seed) - 1.0

    def classifier(image: "tf.Tensor") -> "tf.Tensor":
        return tf.reduce_mean(tf.cast(image, tf.float32), axis=1) @ weights

    extra = folder / EXTRA
    (extra / "golden").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"stand-in")
    inputs = {
        "gate": (gate, tf.TensorSpec([1, FRONT_END.samples], tf.float32)),
        "classifier": (classifier, tf.TensorSpec([1, *FRONT_END.shape], tf.uint8)),
    }
    for name, (function, spec) in inputs.items():
        concrete = tf.function(function, input_signature=[spec]).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        (extra / f"{name}.tflite").write_bytes(converter.convert())

    computes = {name: digest(extra / f"{name}.tflite") for name in inputs} | {"weights": digest(weights.tobytes())}
    point = OperatingPoint(0.0, "stand-in", 1.0, 0.0, 1.0)

    def write() -> None:
        found = manifest.files_of(folder)
        identity = manifest.release_id(LABELS, computes, point.threshold)
        front_end = manifest.front_end_json()
        manifest.write(folder, Manifest(identity, LABELS, front_end, point, computes, found))

    write()
    pair = Pair(folder)
    windows = (0.1 * rng.normal(size=(3, FRONT_END.samples))).astype(np.float32)
    classes = [pair.classifier.image_probabilities(i[None]) for i in FRONT_END.images(windows)]
    np.savez(folder / GOLDEN, windows=windows, gate=pair.gate.scores(windows), classifier=np.stack(classes))
    write()
    return folder
