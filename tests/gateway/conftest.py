from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.remote import Device, Process, serving
from twophase.gateway import devices
from twophase.gateway.server import open_store

NOWHERE = ("--api-endpoint", "http://127.0.0.1:9")
"""A classifier that does not answer: clips wait."""


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a platform where an endpoint `two-phase` serves a stand-in release."""
    with serving(tmp_path_factory.mktemp("classifier")) as url:
        yield url


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
