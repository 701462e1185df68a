"""Fit a small network on so many devices or workers, in processes of their own, as a training step does.

    python -m tests.training.fitting FOLDER NETWORK DEVICES KILL_AT IMAGES DISK

`NETWORK` is `plain`, `gate`, or `dry`, a gate without dropout. A worker that is not the first, or the only one, kills
itself after epoch `KILL_AT`. `DISK`, if any, is a folder in `FOLDER` that the next process to name it finds again;
there the first worker keeps every epoch, others their first. What it says is what it has learned, as JSON.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

BATCH = 32


def start(
    folder: Path,
    network: str,
    devices: int = 1,
    kill_at: int = 0,
    images: int = 269,
    config: str = "",
    disk: str = "",
) -> subprocess.Popen[str]:
    """A process that fits `network` to so many images; `config` is its `TF_CONFIG`.

    An epoch of 269 ends with a batch of 13, of which two workers have 7 and 6.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "TF_CONFIG": config}
    numbers = map(str, (devices, kill_at, images))
    command = [sys.executable, "-m", "tests.training.fitting", str(folder), network, *numbers, disk]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def start_workers(
    folder: Path, network: str, count: int, kill_at: int = 0, disks: bool = False
) -> list[subprocess.Popen[str]]:
    """So many workers of one machine, as a training service starts them; with `disks` each finds its own again."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    cluster = {"chief": addresses[:1], "worker": addresses[1:]}
    tasks = [{"type": "chief", "index": 0}, *({"type": "worker", "index": i} for i in range(count - 1))]
    configs = [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
    return [start(folder, network, 1, kill_at, config=c, disk=f"disk{i}" * disks) for i, c in enumerate(configs)]


def ended(process: subprocess.Popen[str]) -> int:
    """How a process ended."""
    process.communicate(timeout=400)
    return process.returncode


def learned(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process that ended well has learned: loss, val_loss, weights; and the first epoch that it did itself."""
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main(folder: Path, kind: str, devices: int, kill_at: int, n: int, disk: str) -> None:
    import tensorflow as tf

    if devices > 1:
        (processor,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * devices)

    from twophase.training import distributed, fit

    first, (index, count) = distributed.join(), distributed.worker()

    import numpy as np
    from keras import Input, Sequential, layers, losses, models
    from kfp.dsl import Model

    from components.unfinished import going_on
    from twophase.training import networks
    from twophase.training.image_generator import ImageGenerator

    fit.prepare(3)
    fit.KEEP_EVERY_S = 0 if first or not disk else math.inf
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 2, n)
    images = rng.integers(0, 120, (n, 61, 64)).astype(np.uint8)
    images[wanted == 1, :, 20:30] += 100
    targets, weights = np.eye(2, dtype=np.float32)[wanted], rng.uniform(0.5, 1.5, n).astype(np.float32)

    def dry(layer: Any) -> Any:
        return layers.Identity() if isinstance(layer, layers.Dropout) else type(layer).from_config(layer.get_config())

    if kind == "plain":
        dense = [layers.Dense(8), layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.Dense(2)]
        network = Sequential([Input((61, 64, 1)), layers.Rescaling(1 / 255), layers.Flatten(), *dense])
    else:
        network = networks.gate(2, "random")
        network = models.clone_model(network, clone_function=dry) if kind == "dry" else network

    done_here: list[int] = []

    def progress(done: int, planned: int, logs: dict[str, float]) -> None:
        done_here.append(done)
        if done == kill_at and (not first or count == 1):
            os.kill(os.getpid(), signal.SIGKILL)

    train = ImageGenerator().flow(images, targets, BATCH // count, True, weights, 5, shard=(index, count))
    validation = ImageGenerator().flow(images[:65], targets[:65], BATCH, False, weights[:65])
    loss = losses.CategoricalCrossentropy(from_logits=True)
    work = folder / (disk or str(os.getpid()))  # a machine in a cloud finds an empty disk
    with going_on(work, Model(uri=str(folder / "model")), first, progress, every_s=0) as keep:
        recipe = fit.Recipe(steps=40, seed=3)
        history = fit.fit(network, loss, train, validation, recipe, work / "fits" / "key", keep)
    total = float(sum(np.abs(w).sum(dtype=np.float64) for w in network.get_weights()))
    found = {"loss": history["loss"], "val_loss": history["val_loss"], "weights": total, "first_epoch": done_here[0]}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
