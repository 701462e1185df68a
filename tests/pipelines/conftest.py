"""A platform for the tests of a module, and a pipeline small enough to be run often."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from pipelines.clients import Vertex
from twophase.local import process
from twophase.local.process import Address

PLACE = ("local", "us-central1")


@dsl.component(base_image="none", install_kfp_package=False)
def try_it(data: str, data_digest: str, fail: bool, wait_for: str) -> str:
    """Fails, or waits for a file, if asked to."""
    import time
    from pathlib import Path

    from twophase.errors import TwoPhaseError
    from twophase.progress import step

    with step("try it"):
        while wait_for and not Path(wait_for).exists():
            time.sleep(0.05)
        if fail:
            raise TwoPhaseError(f"{data}: is asked to fail")
    return data_digest


@dsl.pipeline(name="two-phase")
def small(data: str, data_digest: str = "", fail: bool = False, wait_for: str = "", count: int = 1) -> None:
    try_it(data=data, data_digest=data_digest, fail=fail, wait_for=wait_for).set_caching_options(False)


@pytest.fixture(scope="session")
def small_spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("spec") / "small.yaml"
    compiler.Compiler().compile(small, str(path))
    return dict(next(yaml.safe_load_all(path.read_text())))


@pytest.fixture(scope="module")
def clips_bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `gs://clips` is on the platform."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, clips_bucket: Path) -> Iterator[Address]:
    home = tmp_path_factory.mktemp("home")
    address = process.up(home, 0, {"clips": clips_bucket})
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    os.environ["STORAGE_EMULATOR_HOST"] = address.url
    yield address
    process.down(home)
    os.environ.pop("STORAGE_EMULATOR_HOST", None)
    if before is not None:
        os.environ["STORAGE_EMULATOR_HOST"] = before


@pytest.fixture(scope="module")
def vertex(platform: Address) -> Vertex:
    return Vertex(*PLACE, platform.url)
