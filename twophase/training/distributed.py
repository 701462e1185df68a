"""Fitting one network on several devices, of one machine or of several: the same batches, the same loss curve.

Several GPUs of one machine: `MirroredStrategy` and Keras's own `fit`, which hands each GPU its part of every batch.
Several workers: `MultiWorkerMirroredStrategy` and the loop below, since Keras 3's `fit` cannot read the losses that
workers hand back. Each worker makes its shard of every batch itself and uses one GPU. Either way gradients are summed
over all, every copy of the network makes the same step, and batch normalisation takes its statistics over the whole
batch: a curve is that of one device but for the order of sums, for dropout, whose masks every copy draws alike for its
part, and for augmentation, which every worker draws for its shard.

Who the workers are comes from `TF_CONFIG`, as Vertex AI's training jobs and Kubeflow's TFJobs set it; without it there
is one. Nothing is written here: after each epoch every copy and the optimizer hold what all have learned, and the
caller's callbacks keep that. A worker that is lost ends the others with an error; started again, all go on where the
first one's kept state says.
"""

import functools
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twophase.errors import TwoPhaseError, UsageError

if TYPE_CHECKING:
    import keras

    from twophase.training.image_generator import ImageSequence

_KINDS = ("chief", "worker")


def worker() -> tuple[int, int]:
    """Which of how many workers this is, from 0: what `ImageGenerator.flow(shard=...)` takes.

    Raises `TwoPhaseError` when `TF_CONFIG` is not understood, or names tasks that no worker here is: a parameter server
    or an evaluator, for which there is nothing to do.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return 0, 1
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], (config["task"]["type"], int(config["task"]["index"]))
        workers = [(kind, index) for kind in _KINDS for index in range(len(cluster.get(kind, ())))]
        others = sorted({task[0], *(kind for kind in cluster if cluster[kind])} - {*_KINDS})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TwoPhaseError(
            f"TF_CONFIG: is not understood ({error!r}); a cluster of chief and worker, and a task with type and index, "
            "are accepted"
        ) from None
    if others:
        raise TwoPhaseError(
            f"TF_CONFIG: has {', '.join(others)}; chief and worker are all that train here, leave out the others"
        )
    if task not in workers:
        raise TwoPhaseError(f"TF_CONFIG: {task[0]} {task[1]} is not in its cluster of {len(workers)}; list it there")
    return workers.index(task), len(workers)


def share(batch: int, workers: int) -> int:
    """How many images of every batch each of so many workers takes.

    Where `workers` does not divide `batch`, all parts together are a little less than it. Raises `UsageError` where a
    part would be a single image: an epoch's last batch could then not be shared out, and some would wait for ever.
    """
    if workers > batch // 2:
        raise UsageError(f"{workers} workers: are too many for batches of {batch}; {batch // 2} at most fit together")
    return batch // workers


def join() -> bool:
    """Meet the other workers, where there are any; return whether this is the first, whose model counts.

    Call it before TensorFlow has done anything else: what workers say to one another is set up when it starts.
    """
    index, count = worker()
    if count > 1:
        strategy()
    return index == 0


def of_first(data: bytes) -> bytes:
    """The first worker's `data`, on every worker; each calls this at the same point of its work."""
    index, count = worker()
    if count == 1:
        return data
    import tensorflow as tf

    def everyone_s(values: Any) -> Any:
        mine = values if index == 0 else np.zeros_like(values)
        return strategy().reduce(tf.distribute.ReduceOp.SUM, tf.constant(mine), axis=None).numpy()

    size = int(everyone_s(np.int64(len(data))))
    words = np.frombuffer(data[:size].ljust(-(-size // 8) * 8, b"\0"), np.int64)  # what collectives can sum
    return bytes(everyone_s(words).tobytes()[:size])


@functools.cache
def strategy() -> Any:
    """The strategy under which what learns is made; TensorFlow's default one where there is one device.

    Devices are GPUs. Without any they are CPUs, of which there is one unless TensorFlow was told to see several in it.
    """
    import tensorflow as tf

    if worker()[1] > 1:
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
        return tf.distribute.MultiWorkerMirroredStrategy()
    if not os.environ.get("TF_CONFIG"):  # an empty one is none here, and to TensorFlow an error
        os.environ.pop("TF_CONFIG", None)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def replicated(network: "keras.Model") -> "keras.Model":
    """The network that learns: itself for one device, else a copy on each. Call it under `strategy().scope()`.

    Weights and dropout's generators are copied. Batch normalisation then takes its statistics over all devices: one
    that sees a part of the batch would learn another network, and each device would keep averages of its own.
    """
    import keras

    if strategy().num_replicas_in_sync == 1:
        return network

    def alike(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = True
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=alike, recursive=True)
    for ours, mine in zip(copy.variables, network.variables, strict=True):
        ours.assign(mine)
    return copy


def filled(batches: "ImageSequence") -> Any:
    """Batches of `(images, targets, weights)` that divide evenly among this machine's devices, as a `PyDataset`.

    Keras takes the mean of the devices' mean losses, and fails where a device gets no image of an epoch's last batch.
    So images are repeated at its end, with weight 0, and the others weigh as much more as the mean has become lower.
    """
    from keras.utils import PyDataset

    devices = strategy().num_replicas_in_sync
    if devices == 1:
        return batches

    class Filled(PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(batches)

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            images, targets, weights = batches[i]
            n = len(images)
            rows = np.resize(np.arange(n), -(-n // devices) * devices)
            scale = np.where(np.arange(len(rows)) < n, len(rows) / n, 0).astype(weights.dtype)
            return images[rows], targets[rows], weights[rows] * scale

    return Filled()


def fit(
    network: "keras.Model",
    train: "ImageSequence",
    validation: "ImageSequence",
    first_epoch: int,
    epochs: int,
    callbacks: Sequence["keras.callbacks.Callback"],
) -> None:
    """What `network.fit` does, on all workers: the epochs from `first_epoch` on, with their callbacks.

    `network` is `replicated`, and compiled under `strategy()` with a Keras loss that averages over a batch; its targets
    are one-hot. `train` has this worker's shard of every batch, `validation` is whole. All workers stand at the same
    epoch (`of_first`).
    """
    import keras
    import tensorflow as tf

    workers, (_, count) = strategy(), worker()
    own = keras.models.clone_model(network)  # Keras's `evaluate` fails as its `fit` does: validation is each worker's
    own.compile(loss=network.loss, weighted_metrics=["accuracy"])

    def replica(images: Any, targets: Any, weights: Any) -> Any:
        size = tf.cast(tf.shape(images)[0], tf.float32)
        everyone = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, size)
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = network.loss(targets, logits, sample_weight=weights) * count * size  # Keras's: a mean over `count`
            mean = loss / everyone
        variables = network.trainable_variables
        network.optimizer.apply(tape.gradient(mean, variables), variables)  # sums over workers
        right = tf.cast(tf.argmax(logits, -1) == tf.argmax(targets, -1), tf.float32)
        return tf.stack([loss, size, tf.reduce_sum(right * weights), tf.reduce_sum(weights)])

    # Traced once, for batches of any size: what workers say to one another is numbered by the traces of each.
    parts = [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in train[0]]

    @tf.function(input_signature=parts)  # type: ignore[untyped-decorator]
    def step(images: Any, targets: Any, weights: Any) -> Any:
        each = workers.run(replica, args=(images, targets, weights))
        return workers.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)

    calls = keras.callbacks.CallbackList(list(callbacks), model=network)
    calls.on_train_begin()
    for epoch in range(first_epoch, epochs):
        calls.on_epoch_begin(epoch)
        loss, size, right, weight = sum(step(*map(tf.convert_to_tensor, train[i])).numpy() for i in range(len(train)))
        own.set_weights(network.get_weights())
        found = own.evaluate(validation, verbose=0, return_dict=True)
        logs = {"loss": loss / size, "accuracy": right / weight, **{f"val_{n}": v for n, v in found.items()}}
        calls.on_epoch_end(epoch, logs)
    calls.on_train_end()
