"""Fitting one network: seeded, resumable, and the same every time.

    STATE/                   one fit, named by whoever calls by all that it depends on
      N.npz                  every variable after epoch N, the last kept one
      progress.json          history up to epoch N; written last: an epoch counts when this says so
      logs/                  TensorBoard

Epochs are kept every few seconds: those of a small set take less time than keeping them. A fit that is killed goes on
after the last kept one, and ends with the weights of an undisturbed one: batches and augmentation are functions of
(seed, epoch), and dropout's generator is kept too, which Keras's own weight files leave out. Same seed, inputs and
thread count: same weights (`enable_op_determinism`). Several devices fit together without being asked to
(distributed.py). Several workers keep epochs each by its own clock, so they go on where the first one's state says.
"""

import io
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twophase.files import locked, read_json, replacing, write_json
from twophase.training import distributed
from twophase.training.augment import Augment

if TYPE_CHECKING:
    import keras

    from twophase.training.image_generator import ImageSequence

Progress = Callable[[int, int, dict[str, float]], object]
"""Called with (finished epochs, planned epochs, last logs)."""


MOST_EPOCHS = 100
"""However few the clips: an epoch costs time of its own, and a handful of clips teaches nothing more after so many."""


KEEP_EVERY_S = 5.0
"""How much work a killed fit loses at most, in seconds and the epoch under way."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to fit; the learning rate falls by a cosine over the planned epochs, to nothing.

    The weights are those of the last epoch. Those of the lowest validation loss are worse: on a hundred augmented clips
    that loss is mostly chance, and early epochs have not settled (a fold's classifier: .83 of clips for .85, mixed .66
    for .72).
    """

    steps: int
    """About how many batches to learn from, in whole epochs: training takes as long for many clips as for few."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    """What the training images go through."""

    def epochs(self, batches: int) -> int:
        """How many epochs of so many batches to plan."""
        return max(1, min(MOST_EPOCHS, round(self.steps / batches)))


def prepare(seed: int) -> None:
    """Make TensorFlow repeatable and quiet. Call before a network is built: its first weights depend on the seed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit(
    network: "keras.Model",
    loss: Any,
    train: "ImageSequence",
    validation: "ImageSequence",
    recipe: Recipe,
    state: Path,
    progress: Progress = lambda done, planned, logs: None,
) -> dict[str, list[float]]:
    """Fit a network, leave the last weights in it, and return the history.

    The history holds a list over the epochs of `loss`, `val_loss`, `accuracy`, `val_accuracy`, `seconds`.
    """
    import keras

    epochs = recipe.epochs(len(train))
    steps = epochs * len(train)
    warmup = min(len(train), steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 20, steps - warmup, warmup_target=recipe.learning_rate, warmup_steps=warmup
    )
    with distributed.strategy().scope():
        learner = distributed.replicated(network)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
        optimizer.build(learner.trainable_variables)
        learner.compile(optimizer, loss, weighted_metrics=["accuracy"])
    run = _Run(learner, optimizer, epochs, state, progress)
    with locked(state, "this training"):  # an orphan of a killed run may still be at it
        run.resume()
        if not run.over:
            callbacks = [
                train.follow(),
                validation.follow(),  # its augmentation is a function of the epoch too
                run.callback(),
                keras.callbacks.TensorBoard(state / "logs", write_graph=False),
            ]
            if distributed.worker()[1] > 1:
                distributed.fit(learner, train, validation, run.epoch, epochs, callbacks)
            else:
                learner.fit(
                    distributed.filled(train),
                    validation_data=distributed.filled(validation),
                    initial_epoch=run.epoch,
                    epochs=epochs,
                    verbose=0,
                    shuffle=False,  # the generator shuffles, by seed and epoch
                    callbacks=callbacks,
                )
    if learner is not network:
        network.set_weights(learner.get_weights())
    return run.history


class _Run:
    """Where a fit stands: what `progress.json` holds, and the weights beside it."""

    def __init__(self, network: Any, optimizer: Any, planned: int, state: Path, progress: Progress) -> None:
        self._network, self._optimizer, self._state = network, optimizer, state
        self._planned, self._progress = planned, progress
        self.history: dict[str, list[float]] = {}
        self.epoch = 0
        self._kept = -math.inf

    @property
    def over(self) -> bool:
        return self.epoch >= self._planned

    def resume(self) -> None:
        progress = self._state / "progress.json"
        mine = read_json(progress, "training state") if progress.is_file() else {}
        self.history = json.loads(distributed.of_first(json.dumps(mine).encode()))
        if not self.history:
            return
        self.epoch = len(self.history["val_loss"])
        kept = self._file(self.epoch)
        weights = distributed.of_first(kept.read_bytes() if kept.is_file() else b"")
        with np.load(io.BytesIO(weights)) as saved:
            for name, variable in self._variables().items():
                variable.assign(saved[name])

    def finish_epoch(self, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        self.epoch += 1
        if self.over or time.monotonic() - self._kept >= KEEP_EVERY_S:
            self._keep()
        self._progress(self.epoch, self._planned, logs)

    def _keep(self) -> None:
        kept = self._file(self.epoch)
        with replacing(kept) as file:
            np.savez(file, **self._values())
        write_json(self._state / "progress.json", self.history)
        for path in self._state.glob("*.npz"):
            if path != kept:
                path.unlink()
        self._kept = time.monotonic()

    def _values(self) -> dict[str, Any]:
        return {name: variable.numpy() for name, variable in self._variables().items()}

    def _variables(self) -> dict[str, Any]:
        network = {f"network{i}": v for i, v in enumerate(self._network.variables)}
        return network | {f"optimizer{i}": v for i, v in enumerate(self._optimizer.variables)}

    def _file(self, epoch: int) -> Path:
        return self._state / f"{epoch}.npz"

    def callback(self) -> Any:
        """The Keras callback that drives this run."""
        import keras

        run = self

        class Drive(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.began = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                run.finish_epoch({**(logs or {}), "seconds": time.perf_counter() - self.began})

        return Drive()
