"""Images are tested by `make test-images`, which builds them first; it needs a container engine."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    if not os.environ.get("TEST_IMAGES"):
        pytest.skip("builds and runs images: make test-images")
