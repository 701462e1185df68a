"""The gateway image, built and run: a device enrols, sends, finds its clip after a restart (`make test-images`)."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.device.sounds import HEARD, noise
from tests.device.test_agent import free_port
from tests.images.docker import docker
from twophase.audio.frontend import FRONT_END
from twophase.cli.containers import image
from twophase.device.budget import Budget, Daily
from twophase.device.client import Client
from twophase.device.enrol import enrol
from twophase.device.spool import opened
from twophase.device.uplink import Sender

pytestmark = [pytest.mark.images, pytest.mark.timeout(600)]

IMAGE = image("gateway")


@contextmanager
def running(state: str) -> Iterator[tuple[str, str]]:
    """A gateway in a container with a read-only file system: the container, and the gateway's address.

    It speaks plain HTTP, as behind a proxy, and its classifier is away.
    """
    port = free_port()
    place = [
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--network=host",
        f"--volume={state}:/state",
    ]
    told = ["--behind-proxy", "--api-endpoint", "http://127.0.0.1:9", "--port", str(port)]
    name = docker("run", "--detach", *place, IMAGE, *told)
    try:
        url, ends = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/healthz").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < ends, docker("logs", name)
                time.sleep(0.1)
        yield name, url
        docker("stop", name)
        assert docker("inspect", "--format={{.State.ExitCode}}", name) == "0"
    finally:
        docker("rm", "--force", name)


def test_a_device_enrols_sends_and_finds_its_clip_after_a_restart(state: str, tmp_path: Path) -> None:
    with running(state) as (name, url):
        identity = enrol(tmp_path, url, docker("exec", name, "twophase", "gateway", "enrol", "porch"))
        with opened(tmp_path / "spool") as spool:
            sequence = spool.put(noise(1), replace(HEARD, front_end=FRONT_END.fingerprint))
            Sender(spool, Client(identity), Budget(tmp_path / "budget.json", Daily())).round()
            assert spool.sent(9) == [sequence]
    with running(state) as (name, url):
        with opened(tmp_path / "spool") as spool:
            sender = Sender(spool, Client(replace(identity, gateway=url)), Budget(tmp_path / "budget.json", Daily()))
            sender.recheck()
            assert spool.sent(9) == [sequence]
        (device,) = json.loads(docker("exec", name, "twophase", "gateway", "devices", "--json"))
        assert (device["device"], device["clips"]) == ("porch", {"stored": 1})
