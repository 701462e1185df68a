"""Canary, promotion, rollback and history, under load, against the platform on this machine."""

import base64
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.standin import make
from twophase.errors import TwoPhaseError, UsageError
from twophase.local import process
from twophase.release.manifest import read
from twophase.targets.rest import Vertex
from twophase.targets.traffic import KEPT, Traffic, history, recorded

IMAGE = base64.b64encode(np.zeros(61 * 64, np.uint8).tobytes()).decode()
BODY = {"instances": [{"images": {"b64": IMAGE}}]}
PLACE = ("local", "us-central1")
SHARES = st.lists(st.dictionaries(st.sampled_from("123"), st.integers(1, 100), min_size=1), max_size=70)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("releases")
    return [make(folder / str(seed), seed) for seed in (1, 2, 3)]


@pytest.fixture
def vertex(tmp_path: Path) -> Iterator[Vertex]:
    home = tmp_path / "home"
    yield Vertex(*PLACE, process.up(home, 0).url)
    process.down(home)


@pytest.fixture
def traffic(vertex: Vertex, releases: list[Path]) -> Traffic:
    """A model of three versions, none deployed."""
    parent = ""
    for release in releases:
        parent = vertex.upload("m", release, parent)["name"].partition("@")[0]
    return Traffic(vertex, "m")


def answered_by(vertex: Vertex, count: int = 40) -> set[str]:
    endpoint = vertex.endpoint("m")["name"]
    return {vertex.post(f"{endpoint}:predict", BODY)["modelVersionId"] for _ in range(count)}


def test_canary_promote_and_back(vertex: Vertex, traffic: Traffic, releases: list[Path]) -> None:
    traffic.promote(read(releases[0]).id)
    assert traffic.shares() == {"1": 100}
    with pytest.raises(UsageError, match="no version to go back to"):
        traffic.rollback()
    traffic.split({"1": 60, "2": 40})
    assert answered_by(vertex) == {"1", "2"}
    assert "default" in vertex.version(traffic.model, "1")["versionAliases"]
    assert traffic.rollback() == "1", "a canary is ended by a rollback"
    traffic.promote("2")
    assert "default" in vertex.version(traffic.model, "2")["versionAliases"]
    traffic.promote("3")
    assert traffic.shares() == {"2": 0, "3": 100}, "the one before stays deployed, an older one does not"
    assert traffic.rollback() == "2"
    assert answered_by(vertex, 5) == {"2"}
    assert vertex.model("m")["versionId"] == "2"
    assert [entry.shares for entry in traffic.history()] == [
        {"1": 100},
        {"1": 60, "2": 40},
        {"1": 100},
        {"2": 100},
        {"3": 100},
        {"2": 100},
    ]
    traffic.promote("2")
    assert len(traffic.history()) == 6, "nothing changed"


def test_refusals(vertex: Vertex, traffic: Traffic) -> None:
    with pytest.raises(UsageError, match="sums to 90"):
        traffic.split({"1": 90})
    with pytest.raises(TwoPhaseError, match="@7: not found"):
        traffic.promote("7")
    with pytest.raises(TwoPhaseError, match="r-000000000000: is no version"):
        traffic.promote("r-000000000000")
    with pytest.raises(TwoPhaseError, match="no such"):
        Traffic(vertex, "no such")


def test_what_others_changed_is_in_the_history(vertex: Vertex, traffic: Traffic) -> None:
    traffic.promote("1")
    traffic.promote("2")
    endpoint = vertex.endpoint("m")
    first = next(d["id"] for d in endpoint["deployedModels"] if d["modelVersionId"] == "1")
    vertex.patch(endpoint["name"], {"trafficSplit": {first: 100}}, updateMask="trafficSplit")
    traffic.promote("3")
    assert [entry.alone for entry in traffic.history()] == ["1", "2", "1", "3"]
    assert traffic.rollback() == "1"


def test_a_version_that_was_deployed_twice_stays_once(vertex: Vertex, traffic: Traffic) -> None:
    """As by a command that was cut off while it deployed, and was given again."""
    traffic.promote("1")
    traffic.attach("2")
    traffic.attach("2")
    traffic.promote("2")
    traffic.attach("1")
    traffic.attach("2")
    traffic.promote("2")
    deployed = vertex.endpoint("m")["deployedModels"]
    assert sorted(d["modelVersionId"] for d in deployed) == ["1", "2"]
    assert traffic.shares() == {"1": 0, "2": 100}


def test_fifty_switches_and_ten_rollbacks_under_load(vertex: Vertex, traffic: Traffic, releases: list[Path]) -> None:
    traffic.promote("1")
    ids = {str(version): read(release).id for version, release in enumerate(releases, 1)}
    url, over, answers = f"{vertex.address}/v1/{vertex.endpoint('m')['name']}:predict", threading.Event(), []

    def ask() -> None:
        with httpx.Client(timeout=30) as http:
            while not over.is_set():
                answers.append(http.post(url, json=BODY))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for i in range(50):
        traffic.promote(str(2 + i % 2) if i % 5 else "1")
    for _ in range(10):
        traffic.rollback()
    over.set()
    for asker in askers:
        asker.join()
    assert {answer.status_code for answer in answers} == {200}
    told = {(a.json()["modelVersionId"], a.json()["predictions"][0]["release"]) for a in answers}
    assert told == set(ids.items()), "every answer names the version that gave it, and every version gave some"


@given(SHARES)
def test_a_history_is_what_was_recorded(states: list[dict[str, int]]) -> None:
    labels = {"stage": "prod"}
    for state in states:
        labels = recorded(labels, state)
    changes = [s for s, last in zip(states, [{}, *states], strict=False) if s != last]
    found = history(labels)
    assert [entry.shares for entry in found] == changes[-KEPT:]
    assert [e.since for e in found] == sorted({e.since for e in found})
    assert labels["stage"] == "prod"
    assert all(len(key) < 64 and len(value) < 64 for key, value in labels.items())


def test_history_only_grows_though_the_clock_went_back() -> None:
    ahead = f"live-{datetime(2999, 1, 1, tzinfo=UTC):%Y%m%dt%H%M%S%f}"
    assert [entry.alone for entry in history(recorded({ahead: "1-100"}, {"2": 100}))] == ["1", "2"]
