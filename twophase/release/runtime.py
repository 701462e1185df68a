"""The pair as it runs: the exported files in LiteRT, without TensorFlow.

The device, the server and evaluation all answer through these two classes, so what is measured is what is shipped.
Both are safe to use from one thread at a time; make one a thread.
"""

from pathlib import Path
from typing import Any

import numpy as np

from twophase.audio.frontend import FRONT_END, Floats, Image
from twophase.audio.windows import audible, cut
from twophase.release.manifest import EXTRA, Manifest, read, require_front_end

LEAST_WEIGHT = 1e-3
"""What a window weighs that is none of these beyond doubt: a clip may hold no others."""


class Gate:
    """Phase 1: PCM windows in, logits out."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        """`model` is a `gate.tflite` or its bytes."""
        self._net = _Network(model, threads)

    def scores(self, windows: Floats) -> Floats:
        """float32 [n, samples] -> one logit a window, float32 [n]."""
        return np.fromiter((self._net(w[None])[0, 0] for w in windows), np.float32, len(windows))

    def clip_score(self, pcm: Floats) -> float:
        """A clip's score: the mean logit of its audible windows.

        Not the highest: a long clip would have more chances to be let through by mistake. On real recordings the mean
        stops 84 % of what is not wanted at 99 % recall where the highest stops 74 % (docs/models.md).
        """
        windows = cut(pcm)
        return float(self.scores(windows[audible(windows)]).mean())


class Classifier:
    """Phase 2: clips in, label probabilities out."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        """`model` is a `classifier.tflite` or its bytes."""
        self._net = _Network(model, threads)

    def logits(self, images: Image) -> Floats:
        """uint8 [n, frames, mels] -> float32 [n, labels + 1]."""
        return np.concatenate([self._net(i[None]) for i in images])

    def image_probabilities(self, images: Image) -> Floats:
        """The answer to one clip from the images of its windows: uint8 [n, frames, mels] -> float32 [labels + 1]."""
        return pool(self.logits(images))

    def clip_probabilities(self, pcm: Floats) -> Floats:
        """The answer to one clip: float32 [samples] at 16 kHz -> float32 [labels + 1], which sum to 1."""
        windows = cut(pcm)
        return self.image_probabilities(FRONT_END.images(windows[audible(windows)]))


class Pair:
    """A release folder, loaded: `manifest`, `gate`, `classifier`."""

    def __init__(self, release: Path, threads: int = 1) -> None:
        """Raises `ReleaseError` when `release` is none, or was made for another front end."""
        self.manifest: Manifest = read(release)
        require_front_end(self.manifest)
        self.gate = Gate(release / EXTRA / "gate.tflite", threads)
        self.classifier = Classifier(release / EXTRA / "classifier.tflite", threads)


def pool(logits: Floats) -> Floats:
    """Window logits to one clip answer: the softmax of their weighted mean, float32 [n, k] -> [k].

    A window weighs what it leaves for the labels, 1 - p(none of these), and `LEAST_WEIGHT`: one in which a note has
    decayed into its background says nothing of the note. `saved_model.py` has the same as a graph.
    """
    weight = 1.0 - _softmax(logits)[:, -1:] + LEAST_WEIGHT
    return _softmax((weight * logits).sum(axis=0) / weight.sum(axis=0))


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


class _Network:
    """One LiteRT model with one input and one output, batch 1."""

    def __init__(self, model: bytes | Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        content = model.read_bytes() if isinstance(model, Path) else model
        self._run: Any = Interpreter(model_content=content, num_threads=threads)
        self._run.allocate_tensors()
        self._in: int = self._run.get_input_details()[0]["index"]
        self._out: int = self._run.get_output_details()[0]["index"]

    def __call__(self, value: "np.ndarray[Any, Any]") -> Floats:
        self._run.set_tensor(self._in, value)
        self._run.invoke()
        return np.asarray(self._run.get_tensor(self._out), np.float32)
