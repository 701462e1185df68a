"""Several devices of one machine learn what one does; who the workers are is read, or refused in one sentence."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.fitting import learned, start
from twophase.errors import TwoPhaseError, UsageError
from twophase.training.distributed import share, worker
from twophase.training.image_generator import ImageGenerator

VERTEX = {"chief": ["cmle-training-workerpool0-0:2222"], "worker": ["workerpool1-0:2222", "workerpool1-1:2222"]}
TFJOB = {"worker": ["job-worker-0.default.svc:2222", "job-worker-1.default.svc:2222"]}


def config(cluster: dict[str, list[str]], kind: str, index: int) -> str:
    return json.dumps({"cluster": cluster, "environment": "cloud", "task": {"type": kind, "index": index}})


@pytest.mark.timeout(300)
def test_two_devices_learn_what_one_does(tmp_path: Path) -> None:
    """Keras's own `fit`, which fails where a device gets no image of a batch; `TF_CONFIG` is Vertex's for one machine.

    The weights differ by rounding. In the losses the last batch's single image counts as two of 258, or of 66.
    """
    alone = config({"chief": VERTEX["chief"]}, "chief", 0)
    processes = [start(tmp_path / str(n), "plain", n, images=257, config=alone) for n in (1, 2)]
    one, two = map(learned, processes)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-2)
    assert two["val_loss"] == pytest.approx(one["val_loss"], abs=3e-2)
    assert one["loss"][-1] < 0.6 * one["loss"][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 1)),
        (config({"chief": VERTEX["chief"]}, "chief", 0), (0, 1)),
        (config(VERTEX, "chief", 0), (0, 3)),
        (config(VERTEX, "worker", 1), (2, 3)),
        (config(TFJOB, "worker", 1), (1, 2)),
    ],
)
def test_who_the_workers_are_is_read_as_vertex_and_kubeflow_say_it(text: str, expected: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    assert worker() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is not understood"),
        ("[]", "is not understood"),
        (config(TFJOB, "worker", "first"), "is not understood"),
        ('{"sparseCluster": {"worker": {"0": "a:1"}}, "task": {"type": "worker", "index": 0}}', "is not understood"),
        (config(TFJOB, "worker", 2), "worker 2 is not in its cluster of 2"),
        (config(TFJOB, "evaluator", 0), "has evaluator; chief and worker are all that train here"),
        (config({**TFJOB, "ps": ["a:1"]}, "worker", 0), "has ps; chief and worker are all that train here"),
    ],
)
def test_another_tf_config_is_refused(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(TwoPhaseError, match=f"TF_CONFIG: {words}"):
        worker()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(8, 300), workers=st.sampled_from((2, 4)), epoch=st.integers(0, 100))
def test_all_workers_parts_are_one_worker_s_batch(n: int, workers: int, epoch: int) -> None:
    """But for an epoch's last batch, which takes an image of the one before it where it would leave a worker none."""
    images = np.arange(n, dtype=np.float32).reshape(n, 1, 1)

    def batches(index: int, count: int) -> list[list[float]]:
        order = ImageGenerator().flow(images, batch_size=share(8, count), seed=3, shard=(index, count))
        order.set_epoch(epoch)
        return [order[i].ravel().tolist() for i in range(len(order))]

    whole, parts = batches(0, 1), [batches(i, workers) for i in range(workers)]
    together = [sorted(chain(*part)) for part in zip(*parts, strict=True)]
    assert together[:-2] == [sorted(batch) for batch in whole][:-2]
    assert sorted(chain(*together)) == sorted(chain(*whole))


def test_a_batch_is_shared_by_no_more_workers_than_can_go_in_step() -> None:
    assert [share(64, workers) for workers in (1, 2, 3, 32)] == [64, 32, 21, 2]
    with pytest.raises(UsageError, match="33 workers: are too many for batches of 64; 32 at most fit together"):
        share(64, 33)
