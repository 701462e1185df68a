"""Two workers on loopback learn what one does, also when one is killed on the way. `make test-faults`."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twophase.errors import TwoPhaseError
from twophase.training.distributed import worker

TRAIN = """
import functools, json, os, sys
from pathlib import Path
import numpy as np
from kfp.dsl import Model
from components.unfinished import going_on
from twophase.training import distributed, fit, networks

first, (index, count) = distributed.join(), distributed.worker()
import keras
from twophase.training.image_generator import ImageGenerator

folder, network, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
fit.prepare(3)
fit.KEEP_EVERY_S = 0
rng = np.random.default_rng(0)
wanted = rng.integers(0, 2, 256)
images = rng.integers(0, 120, (256, 61, 64)).astype(np.uint8)
images[wanted == 1, :, 20:30] += 100
targets, weights = np.eye(2, dtype=np.float32)[wanted], rng.uniform(0.5, 1.5, 256).astype(np.float32)

def plain():
    return keras.Sequential([keras.Input((61, 64, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                             keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])

def together(train, validation_data, initial_epoch, epochs, callbacks, **_):
    distributed.fit(built, train, validation_data, initial_epoch, epochs, callbacks)

def progress(done, planned, logs):
    print("epoch", done, flush=True)
    if done == kill_at and not first:
        os.kill(os.getpid(), 9)

built = {"gate": lambda: networks.gate(2, "random"), "plain": plain}[network]()
if count > 1:
    built.fit = together
train = ImageGenerator().flow(images, targets, 32 // count, True, weights, 5, shard=(index, count))
validation = ImageGenerator().flow(images[:64], targets[:64], 32, False, weights[:64])
loss = keras.losses.CategoricalCrossentropy(from_logits=True)
work = folder / str(os.getpid())
with going_on(work, Model(uri=str(folder / "model")), first, progress, every_s=0) as keep:
    history = fit.fit(built, loss, train, validation, fit.Recipe(steps=40, seed=3), work / "fits" / "key", keep)
total = float(sum(np.abs(w).sum() for w in built.get_weights()))
print(json.dumps({"loss": history["loss"], "val_loss": history["val_loss"], "weights": total}))
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def train(folder: Path, workers: int, network: str, kill_at: int = 0) -> list[tuple[int, list[str]]]:
    """Fit with so many workers, as a training service would start them: how each ended, and what it said.

    A worker that is not the first kills itself after epoch `kill_at`.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    cluster = {"chief": addresses[:1], "worker": addresses[1:]}
    running = []
    for i in range(workers):
        task = {"type": "worker", "index": i - 1} if i else {"type": "chief", "index": 0}
        config = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} if workers > 1 else {}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", **config}
        command = [sys.executable, "-c", TRAIN, str(folder), network, str(kill_at)]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=400)[0].splitlines() for process in running]
    return [(process.returncode, lines) for process, lines in zip(running, said, strict=True)]


def learned(ended: list[tuple[int, list[str]]]) -> list[dict[str, Any]]:
    assert [code for code, _ in ended] == [0] * len(ended)
    return [json.loads(lines[-1]) for _, lines in ended]


long = pytest.mark.skipif("SEEDS" not in os.environ, reason="a minute each: make test-faults")


@pytest.mark.faults
@long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("network", "first_epoch", "curve"), [("plain", 1e-4, 0.01), ("gate", 0.1, 0.1)])
def test_two_workers_learn_what_one_does(tmp_path: Path, network: str, first_epoch: float, curve: float) -> None:
    """The gate's batch normalisation sees half of each batch; else rounding differs, more as losses fall."""
    (alone,) = learned(train(tmp_path / "1", 1, network))
    first, second = learned(train(tmp_path / "2", 2, network))
    assert first == second, "both end with the same network"
    assert first["loss"][0] == pytest.approx(alone["loss"][0], abs=first_epoch)
    assert first["loss"] == pytest.approx(alone["loss"], abs=curve)
    assert first["loss"][-1] < 0.6 * first["loss"][0]


@pytest.mark.faults
@long
@pytest.mark.timeout(900)
def test_workers_go_on_after_one_was_killed_and_end_where_they_would_have(tmp_path: Path) -> None:
    """The others end with an error; all are started again on empty disks, as a service does."""
    undisturbed = learned(train(tmp_path / "undisturbed", 2, "gate"))
    (first, _), (second, _) = train(tmp_path / "killed", 2, "gate", kill_at=2)
    assert first > 0, "it does not wait for ever, nor write a model alone"
    assert second == -signal.SIGKILL
    ended = train(tmp_path / "killed", 2, "gate")
    assert learned(ended) == undisturbed
    assert all("epoch 1" not in lines for _, lines in ended), "what was kept is not done again"
    assert not (tmp_path / "killed" / "model.fits").exists()


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
