from pathlib import Path

import pytest

from tests.serving.standin import make


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("release"), seed=1)
