import sys
from pathlib import Path

import pytest


def _make(folder: Path, seed: int) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
    from standin import make

    return make(folder, seed)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in release: its gate lets loud windows through."""
    return _make(tmp_path_factory.mktemp("release") / "one", 1)


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return _make(tmp_path_factory.mktemp("newer") / "two", 2)
