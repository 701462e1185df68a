import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.remote import Device, Process
from twophase.gateway import devices
from twophase.gateway.server import open_store

NOWHERE = ("--api-endpoint", "http://127.0.0.1:9")
"""A classifier that does not answer: clips wait."""


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a platform where an endpoint `two-phase` serves a stand-in release."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
    from standin import make

    from twophase.audio.frontend import FRONT_END
    from twophase.local.process import down, up

    release = make(tmp_path_factory.mktemp("release") / "a", seed=1)
    home = tmp_path_factory.mktemp("platform")
    url = up(home).url
    where = "projects/local/locations/us-central1"
    with httpx.Client(base_url=f"{url}/v1/", timeout=60) as http:

        def made(path: str, body: dict) -> dict:
            return http.post(path, json=body).raise_for_status().json()["response"]

        labels = {"front_end": FRONT_END.fingerprint}
        model = {"displayName": "two-phase", "artifactUri": str(release), "labels": labels}
        version = made(f"{where}/models:upload", {"model": model})["model"]
        endpoint = made(f"{where}/endpoints", {"displayName": "two-phase"})["name"]
        made(f"{endpoint}:deployModel", {"deployedModel": {"model": version}, "trafficSplit": {"0": 100}})
    yield url
    down(home)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A gateway that stores and never asks: its home and its address."""
    home = tmp_path_factory.mktemp("gateway")
    process = Process(home, *NOWHERE)
    yield home, process.said
    process.stop()


@pytest.fixture
def enrol(gateway: tuple[Path, str]) -> Iterator[Callable[[str], Device]]:
    """Enrols a device of that name with `gateway`."""
    home, url = gateway
    store = open_store(home)
    with httpx.Client(base_url=url, timeout=30) as http:

        def enrol(name: str) -> Device:
            device = Device(http)
            device.enrol(store.do(lambda c: devices.expect(c, name))).raise_for_status()
            return device

        yield enrol
    store.close()
