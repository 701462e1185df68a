"""Fitting one network on several machines at once, each with its shard of every batch.

Keras's own `fit` does not work on several workers (Keras 3 cannot read the losses that they hand back), so the loop is
this module's: every worker takes its part of a batch, gradients are summed over all, and every worker makes the same
step. A batch is cut so that all parts together are the single worker's batch: the loss curve is the same but for the
order of sums, and for batch normalisation, whose statistics are each worker's own in an epoch and their mean after it.

Who the workers are comes from `TF_CONFIG`, as Vertex AI's training jobs and Kubeflow's trainers set it; without it
there is one. A worker uses one device. Nothing is written here: after each epoch the caller's network and optimizer
hold what all have learned, and its callbacks keep that as they do after Keras's own epochs. A worker that is lost ends
the others with an error; started again, all go on where the kept state says.
"""

import functools
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twophase.errors import TwoPhaseError

if TYPE_CHECKING:
    import keras

    from twophase.training.image_generator import ImageSequence


def worker() -> tuple[int, int]:
    """Which of how many workers this is, from 0: what `ImageGenerator.flow(shard=...)` takes.

    Raises `TwoPhaseError` when `TF_CONFIG` is not what TensorFlow reads.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return 0, 1
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        chiefs, others = len(cluster.get("chief", ())), len(cluster.get("worker", ()))
        index = int(task["index"]) + (chiefs if task["type"] == "worker" else 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TwoPhaseError(
            f"TF_CONFIG: is not understood ({error!r}); a cluster of chief and worker, and a task with type and index, "
            "are accepted"
        ) from None
    if index >= max(chiefs + others, 1):
        raise TwoPhaseError(f"TF_CONFIG: worker {index} of {chiefs + others}; the cluster does not list this task")
    return index, max(chiefs + others, 1)


def join() -> bool:
    """Meet the other workers, where there are any; return whether this is the first, whose model counts.

    Call it before TensorFlow has done anything else: what workers say to one another is set up when it starts.
    """
    index, count = worker()
    if count > 1:
        _strategy()
    return index == 0


@functools.cache
def _strategy() -> Any:
    import tensorflow as tf

    tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
    return tf.distribute.MultiWorkerMirroredStrategy()


def fit(
    network: "keras.Model",
    train: "ImageSequence",
    validation: "ImageSequence",
    first_epoch: int,
    epochs: int,
    callbacks: Sequence["keras.callbacks.Callback"],
) -> None:
    """What `network.fit` does, on all workers: the epochs from `first_epoch` on, with their callbacks.

    `network` is compiled, with a Keras loss that averages over a batch; its targets are one-hot. `train` has this
    worker's shard of every batch, `validation` is whole. Raises `TwoPhaseError` when the workers stand at different
    epochs.
    """
    import keras
    import tensorflow as tf

    strategy, (_, count) = _strategy(), worker()
    everywhere = strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(float(first_epoch)), axis=None)
    if float(everywhere) != count * first_epoch:
        raise TwoPhaseError(f"this worker stands at epoch {first_epoch}, others do not; start all of them again")
    with strategy.scope():
        shared = keras.models.clone_model(network)
        optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(network.optimizer))
        optimizer.build(shared.trainable_variables)
    network.optimizer.build(network.trainable_variables)
    here, there = ([*n.variables, *o.variables] for n, o in ((network, network.optimizer), (shared, optimizer)))
    for mine, ours in zip(here, there, strict=True):
        ours.assign(mine)

    def replica(images: Any, targets: Any, weights: Any) -> Any:
        size = tf.cast(tf.shape(images)[0], tf.float32)
        everyone = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, size)
        with tf.GradientTape() as tape:
            logits = shared(images, training=True)
            loss = network.loss(targets, logits, sample_weight=weights)  # Keras's: a mean over `count`
            loss = loss * size * count / everyone
        optimizer.apply(
            tape.gradient(loss, shared.trainable_variables), shared.trainable_variables
        )  # sums over workers
        right = tf.cast(tf.argmax(logits, -1) == tf.argmax(targets, -1), tf.float32)
        return tf.stack([loss, tf.reduce_sum(right * weights), tf.reduce_sum(weights)])

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(images: Any, targets: Any, weights: Any) -> Any:
        each = strategy.run(replica, args=(images, targets, weights))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)

    # Of batch normalisation: what each worker saw of the data.
    moving = [variable for variable in shared.non_trainable_variables if variable.dtype == "float32"]

    @tf.function  # type: ignore[untyped-decorator]
    def means() -> list[Any]:
        each = [strategy.run(tf.identity, args=(variable.value,)) for variable in moving]
        return [strategy.reduce(tf.distribute.ReduceOp.MEAN, one, axis=None) for one in each]

    calls = keras.callbacks.CallbackList(list(callbacks), model=network)
    calls.on_train_begin()
    for epoch in range(first_epoch, epochs):
        calls.on_epoch_begin(epoch)
        steps = [step(*map(tf.convert_to_tensor, train[i])).numpy() for i in range(len(train))]
        loss, right, weight = sum(steps)
        for variable, mean in zip(moving, means(), strict=True):
            variable.assign(mean)
        for mine, ours in zip(here, there, strict=True):
            mine.assign(ours.numpy())
        found = network.evaluate(validation, verbose=0, return_dict=True)
        logs = {"loss": loss / len(steps), "accuracy": right / weight, **{f"val_{n}": v for n, v in found.items()}}
        calls.on_epoch_end(epoch, logs)
    calls.on_train_end()
