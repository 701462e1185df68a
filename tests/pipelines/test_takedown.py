"""What a pipeline made under a name is taken down, in an order that works, and nothing else."""

from pathlib import Path

import pytest

from pipelines.takedown import Takedown
from tests.serving.standin import make
from twophase.errors import TwoPhaseError
from twophase.local.process import Address
from twophase.targets.rest import Vertex
from twophase.targets.vertex import Registry

PLACE = ("local", "us-central1")


def test_all_of_a_name_goes_and_nothing_else(platform: Address, tmp_path: Path) -> None:
    registry = Registry(*PLACE, platform.url)
    release = make(tmp_path / "r", seed=1)
    for name in ("doomed", "kept"):
        registry.deploy(release, registry.register(release, name), name)
    takedown = Takedown(*PLACE, platform.url, "doomed")
    assert [kind for kind, _ in takedown.find()] == ["endpoint", "model"]
    takedown.delete()
    assert takedown.find() == []
    takedown.delete()  # again: nothing to do
    vertex = Vertex(*PLACE, platform.url)
    assert vertex.model("kept")
    assert vertex.endpoint("kept")["trafficSplit"]
    with pytest.raises(TwoPhaseError, match="doomed"):
        vertex.model("doomed")
