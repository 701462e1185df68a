"""Fitting one network on several machines at once, each with its shard of every batch.

Keras's own `fit` does not work on several workers (Keras 3 cannot read the losses that they hand back), so the loop is
this module's: every worker takes its part of a batch, gradients are summed over all, and every worker makes the same
step. A batch is cut so that all parts together are the single worker's batch: the loss curve is the same but for the
order of sums, and for batch normalisation, whose statistics are each worker's own while training and their mean after.

Who the workers are comes from `TF_CONFIG`, as Vertex AI's training jobs and Kubeflow's trainers set it; without it
there is one. A worker uses one device. Nothing is written: the caller does that, on the first worker. A worker that is
lost ends the others with an error.
"""

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twophase.errors import TwoPhaseError
from twophase.training.fit import Progress, Recipe

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


def fit_together(
    build: Callable[[], "keras.Model"],
    loss: Any,
    train: Callable[[tuple[int, int], int], "ImageSequence"],
    batch_size: int,
    recipe: Recipe,
    progress: Progress = lambda done, planned, logs: None,
) -> tuple["keras.Model", dict[str, list[float]]]:
    """Build and fit a network on all workers; every worker gets the same network and history (`loss`, `seconds`).

    `train(shard, size)` gives this worker's batches of `size` images, a part of every batch of `batch_size`. `loss` is
    a Keras loss that averages over a batch. Call it before TensorFlow has done anything else: workers meet here first.
    """
    import keras
    import tensorflow as tf

    index, count = worker()
    if batch_size % count:
        raise TwoPhaseError(
            f"batches of {batch_size} cannot be shared by {count} workers; give a number that divides it"
        )
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if count > 1 else tf.distribute.get_strategy()
    batches = train((index, count), batch_size // count)
    epochs = recipe.epochs(len(batches))
    with strategy.scope():
        network = build()
        steps = epochs * len(batches)
        warmup = min(len(batches), steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            recipe.learning_rate / 20, steps - warmup, warmup_target=recipe.learning_rate, warmup_steps=warmup
        )
        optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
        optimizer.build(network.trainable_variables)

    def replica(images: Any, targets: Any, weights: Any) -> Any:
        size = tf.cast(tf.shape(images)[0], tf.float32)
        everyone = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, size)
        with tf.GradientTape() as tape:
            mine = loss(targets, network(images, training=True), sample_weight=weights)  # Keras's: a mean over `count`
            mine = mine * size * count / everyone
        gradients = tape.gradient(mine, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)  # which sums them over the workers
        return mine

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(images: Any, targets: Any, weights: Any) -> Any:
        each = strategy.run(replica, args=(images, targets, weights))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)

    history: dict[str, list[float]] = {"loss": [], "seconds": []}
    for epoch in range(epochs):
        began = time.perf_counter()
        batches.set_epoch(epoch)
        losses = [float(step(*map(tf.convert_to_tensor, batches[i]))) for i in range(len(batches))]
        history["loss"].append(sum(losses) / len(losses))
        history["seconds"].append(time.perf_counter() - began)
        progress(epoch + 1, epochs, {"loss": history["loss"][-1]})
    for variable in network.non_trainable_variables:  # of batch normalisation: what each worker saw of the data
        if variable.dtype == "float32":
            each = strategy.run(tf.identity, args=(variable.value,))
            variable.assign(strategy.reduce(tf.distribute.ReduceOp.MEAN, each, axis=None))
    return network, history
