import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in release: its gate lets loud windows through."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
    from standin import make

    return make(tmp_path_factory.mktemp("release") / "one", seed=1)
