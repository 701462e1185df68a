"""A fit that is killed goes on, and ends where an undisturbed one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TinyPair

STEPS = 30

TRAIN = """
import sys
from pathlib import Path
from twophase.audio.images import ImageSet
from twophase.training import train
from twophase.training.fit import Recipe
images = ImageSet(Path(sys.argv[1]))
recipe = Recipe(steps=int(sys.argv[3]), augment=train.AUGMENT)
print(train.train_gate(images, Path(sys.argv[2]), recipe), flush=True)
"""


def start(tiny_pair: TinyPair, workdir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAIN, str(tiny_pair.workdir / "set"), str(workdir), str(STEPS)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.timeout(600)
def test_a_killed_fit_ends_with_the_weights_of_an_undisturbed_one(tiny_pair: TinyPair, tmp_path: Path) -> None:
    undisturbed = start(tiny_pair, tmp_path / "whole")
    killed = start(tiny_pair, tmp_path / "killed")
    finished: list[int] = []
    while killed.poll() is None:  # killed once it has finished an epoch and is in the middle of another
        for state in (tmp_path / "killed").glob("fits/*/progress.json"):
            finished = json.loads(state.read_text())["loss"]
        if finished:
            killed.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it was over before it could be killed"
    assert not list((tmp_path / "killed").glob("models/*/history.json"))
    resumed = start(tiny_pair, tmp_path / "killed")
    models = []
    for process in (undisturbed, resumed):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        models.append(Path(output.splitlines()[-1]))
    whole, again = (json.loads((m / "history.json").read_text()) for m in models)
    assert len(whole["history"]["loss"]) > len(finished) >= 1
    assert again["history"]["val_loss"] == pytest.approx(whole["history"]["val_loss"], abs=0)
    assert again["weights"] == whole["weights"]
    assert (models[0] / "gate.tflite").read_bytes() == (models[1] / "gate.tflite").read_bytes()
