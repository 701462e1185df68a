"""What no training could run on is refused before a spec is compiled or anything is asked for."""

import subprocess
import sys

import pytest

from pipelines.places import Machines
from twophase.errors import UsageError

REFUSED = [
    (("--replicas", "33"), "33 workers: are too many for batches of 64; 32 at most fit together"),
    (("--accelerator-count", "4"), "--accelerator-count 4: of what? Give --accelerator"),
    (
        ("--replicas", "2", "--accelerator", "NVIDIA_L4", "--accelerator-count", "2"),
        "2 machines with 2 accelerators each: a machine of several uses",
    ),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_machines_that_cannot_fit_together_are_refused_by_one_message(options: tuple[str, ...], words: str) -> None:
    vertex = ("submit", "--target", "vertex", "--project", "p", "--bucket", "gs://b", "--image", "i", "--dry-run")
    command = [sys.executable, "-m", "twophase", *vertex, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.startswith(f"twophase: {words}")


def test_as_many_machines_as_a_batch_can_keep_in_step_are_taken() -> None:
    assert Machines(replicas=32, accelerator_count=1).replicas == 32
    assert Machines(accelerator_type="NVIDIA_L4", accelerator_count=8).accelerator_count == 8
    with pytest.raises(UsageError, match="33 workers"):
        Machines(replicas=33)
