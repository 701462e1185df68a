"""Deployments that are cut off at random moments: the live version stays, and the same command finishes them.

On this machine the process is killed; of SageMaker the line is cut, after any one of its calls. `make test-faults
SEEDS=200` does both 200 times; the tests of every day twice.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import EndpointConnectionError

from tests.serving.standin import make
from tests.targets.sagemaker_server import sagemaker
from twophase.errors import TwoPhaseError
from twophase.local import process
from twophase.release.manifest import read
from twophase.targets.sagemaker import SageMaker
from twophase.targets.vertex import VertexAI

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


def test_a_line_that_is_cut_after_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = [make(tmp_path / str(seed), seed) for seed in (1, 2)]
    left, call = [10**9], BaseClient._make_api_call

    def until_it_is_cut(self: Any, *arguments: Any) -> Any:
        """A call that is carried out; the last one's answer is lost, and all later ones, those that clean up too."""
        if left[0] <= 0:
            raise EndpointConnectionError(endpoint_url="the line is cut")
        left[0] -= 1
        answer = call(self, *arguments)
        if left[0] == 0:
            raise EndpointConnectionError(endpoint_url="the line is cut")
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", until_it_is_cut)

    def deploy(release: Path, calls: int) -> None:
        left[0] = calls
        try:
            SageMaker("pair", "eu-west-1", "arn:aws:iam::123456789012:role/models").deploy(release)
        finally:
            left[0] = 10**9

    with sagemaker(tmp_path, monkeypatch):
        target = SageMaker("pair", "eu-west-1", "arn:aws:iam::123456789012:role/models")
        for seed in range(SEEDS):
            if seed % 4 == 0:
                target.delete()
            before, newcomer = target.status(), releases[seed % 2]
            calls = random.Random(seed).randrange(1, 45)
            with suppress(TwoPhaseError):
                deploy(newcomer, calls)
            found = target.status()
            assert sum(found.shares.values()) == (100 if before.shares or found.shares else 0), calls
            deploy(newcomer, 10**9)
            found = target.status()
            assert found.versions[found.alone or ""] == read(newcomer).id, calls
            assert sorted(found.versions.values()) == sorted(set(found.versions.values())), "registered once"
            assert len(found.shares) <= 2, "what is older is tidied"
