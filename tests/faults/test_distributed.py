"""Two workers on loopback learn what one does: the same loss curve, and both the same network. `make test-faults`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twophase.errors import TwoPhaseError
from twophase.training.distributed import worker

TRAIN = """
import json, sys
import numpy as np
from twophase.training import networks
from twophase.training.distributed import fit_together
from twophase.training.fit import Recipe, prepare
from twophase.training.image_generator import ImageGenerator

import keras

prepare(3)
rng = np.random.default_rng(0)
wanted = rng.integers(0, 2, 256)
images = rng.integers(0, 120, (256, 61, 64)).astype(np.uint8)
images[wanted == 1, :, 20:30] += 100
targets, weights = wanted[:, None].astype(np.float32), rng.uniform(0.5, 1.5, 256).astype(np.float32)

def batches(shard, size):
    return ImageGenerator().flow(images, targets, size, True, weights, 5, shard=shard)

def plain():
    return keras.Sequential([keras.Input((61, 64, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                             keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])

loss = keras.losses.BinaryCrossentropy(from_logits=True)
build = {"gate": lambda: networks.gate(1, "random"), "plain": plain}[sys.argv[2]]
network, history = fit_together(build, loss, batches, 32, Recipe(steps=40, seed=3))
total = float(sum(np.abs(w).sum() for w in network.get_weights()))
open(sys.argv[1], "w").write(json.dumps({"loss": history["loss"], "weights": total}))
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def train(folder: Path, workers: int, network: str) -> list[dict[str, Any]]:
    """Fit with so many workers, as a training service would start them; what each of them ended with."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    cluster = {"chief": addresses[:1], "worker": addresses[1:]}
    running = []
    for i in range(workers):
        task = {"type": "worker", "index": i - 1} if i else {"type": "chief", "index": 0}
        config = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} if workers > 1 else {}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", **config}
        command = [sys.executable, "-c", TRAIN, str(folder / f"{workers}-{i}.json"), network]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    return [json.loads((folder / f"{workers}-{i}.json").read_text()) for i in range(workers)]


@pytest.mark.faults
@pytest.mark.skipif("SEEDS" not in os.environ, reason="45 s: make test-faults")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("network", "first_epoch", "curve"), [("plain", 1e-4, 0.01), ("gate", 0.1, 0.1)])
def test_two_workers_learn_what_one_does(tmp_path: Path, network: str, first_epoch: float, curve: float) -> None:
    """The gate's batch normalisation sees half of each batch; else rounding differs, more as losses fall."""
    (alone,) = train(tmp_path, 1, network)
    first, second = train(tmp_path, 2, network)
    assert first == second, "both end with the same network"
    assert first["loss"][0] == pytest.approx(alone["loss"][0], abs=first_epoch)
    assert first["loss"] == pytest.approx(alone["loss"], abs=curve)
    assert first["loss"][-1] < 0.6 * first["loss"][0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", (0, 1)),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "chief", "index": 0}}', (0, 3)),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 1}}', (2, 3)),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', (1, 2)),
    ],
)
def test_who_the_workers_are_is_read_as_vertex_and_kubeflow_say_it(config: str, expected, monkeypatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    assert worker() == expected


@pytest.mark.parametrize(
    "config", ["no json", "[]", '{"task": {"type": "worker"}}', '{"task": {"type": "worker", "index": 5}}']
)
def test_another_tf_config_is_refused(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(TwoPhaseError, match="TF_CONFIG"):
        worker()
