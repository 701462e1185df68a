"""Images are tested by `make test-images`, which builds them first; it needs a container engine."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.images.docker import docker


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    if not os.environ.get("TEST_IMAGES"):
        pytest.skip("builds and runs images: make test-images")


@pytest.fixture
def state() -> Iterator[str]:
    """A volume."""
    name = f"twophase-{uuid4().hex[:12]}"
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", name)
