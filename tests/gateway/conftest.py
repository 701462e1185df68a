import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine

from tests.gateway.remote import Device, Process, serving
from twophase.gateway import devices
from twophase.gateway.server import open_store
from twophase.gateway.store import Store

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


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """What `--database` names: nothing, and the empty PostgreSQL that `TWOPHASE_POSTGRES` names, where it names one."""
    if request.param == "sqlite":
        return ""
    url = os.environ.get("TWOPHASE_POSTGRES", "")
    if not url:
        pytest.skip("needs a PostgreSQL: set TWOPHASE_POSTGRES to postgresql://USER@HOST:PORT/DATABASE")
    engine = create_engine(url.replace("postgresql:", "postgresql+pg8000:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url


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


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[Store]:
    """A gateway's memory, with forty devices that are expected."""
    store = open_store(tmp_path, database)
    for i in range(40):
        store.do(lambda c, i=i: devices.expect(c, f"d{i}"))
    yield store
    store.close()
