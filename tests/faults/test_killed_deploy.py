"""`twophase deploy` killed at random moments: the live version answers all the while, and the same command finishes it.

`make test-faults SEEDS=200` kills 200 times; the tests of every day twice.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serving.standin import make
from twophase.local import process
from twophase.release.manifest import read
from twophase.targets.local import VertexAI

SEEDS = int(os.environ.get("SEEDS", "2"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]


def test_the_same_command_finishes_it(tmp_path: Path) -> None:
    releases = [make(tmp_path / str(seed), seed) for seed in (1, 2)]
    address = process.up(tmp_path / "home", 0).url
    target = VertexAI("pair", "local", "us-central1", address)
    environment = {**os.environ, "TWOPHASE_API_ENDPOINT": address}

    def deploy(release: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "twophase", "deploy", str(release), "--model", "pair"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    try:
        started = time.monotonic()
        assert deploy(releases[0]).wait() == 0
        seconds = time.monotonic() - started
        for seed in range(SEEDS):
            live, newcomer = releases[seed % 2], releases[1 - seed % 2]
            running = deploy(newcomer)
            time.sleep(random.Random(seed).uniform(0, 1.2 * seconds))
            running.send_signal(signal.SIGKILL)
            running.wait()
            found = target.status()
            assert sum(found.shares.values()) == 100
            assert found.versions[found.live] in {read(live).id, read(newcomer).id}
            assert deploy(newcomer).wait() == 0
            found = target.status()
            assert found.versions[found.alone] == read(newcomer).id
            assert len(found.versions) == 2, "a release is registered once"
    finally:
        process.down(tmp_path / "home")
