import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from twophase.local.process import Address, down, up

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))  # the stand-in release is theirs

from standin import make


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("releases")
    return make(folder / "a", seed=1), make(folder / "b", seed=2)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    down(folder)


@pytest.fixture
def platform(home: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    address = up(home)
    for name, value in address.environment.items():
        monkeypatch.setitem(os.environ, name, value)
    return address


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A platform for requests that change nothing."""
    home = tmp_path_factory.mktemp("shared")
    with httpx.Client(base_url=up(home).url, timeout=30) as client:
        yield client
    down(home)
