"""A release's life on Azure ML: azure-ai-ml over TLS against loopback, whose deployments are our server."""

import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from tests.targets.answers import asks, expected
from tests.targets.azure_server import Azure, azure
from twophase.errors import TwoPhaseError, UsageError
from twophase.targets.azureml import AzureML

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK warns of itself while it is imported


class Credential:
    """What azure-identity gives after `az login`, until it expires."""

    expired = False

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        if self.expired:
            raise ClientAuthenticationError("the token has expired")
        return AccessToken("token", int(time.time()) + 60)


@pytest.fixture(params=["here"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[AzureML, Azure, Credential]]:
    with azure(tmp_path, monkeypatch, request.param) as cloud:
        credential = Credential()
        yield AzureML("pair", "s", "g", "w", credential=credential), cloud, credential
    gc.collect()  # the SDK leaves its connections to it, and they warn: here, not in another test


@pytest.mark.parametrize("place", ["here", "azurite"], indirect=True)
def test_a_whole_life(place: Any, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    target, cloud, _ = place
    first, second, _ = releases
    assert target.deploy(first) == "1"
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(first, clips)

    assert target.deploy(second, percent=10) == "2"
    assert target.status().shares == {"1": 90, "2": 10}
    assert target.deploy(second, percent=10) == "2", "again: nothing to do"
    target.promote("2")
    assert target.status().alone == "2"
    assert target.predict(clips) == expected(second, clips)
    assert target.rollback() == "1"
    assert target.predict(clips) == expected(first, clips)
    assert [entry.shares for entry in target.status().history] == [
        {"1": 100},
        {"1": 90, "2": 10},
        {"2": 100},
        {"1": 100},
    ]

    results, broken = tmp_path / "results.jsonl", tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    assert target.batch([*clips[:2], broken], results) == 1
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert lines.pop()["error"]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips[:2]]
    assert lines == expected(first, clips[:2])

    target.delete()
    target.delete()
    found = target.status()
    assert (found.versions, found.shares) == ({}, {})
    assert not any("onlineEndpoints" in path for path in cloud.resources)


def test_what_fails_leaves_the_live_version(place: Any, releases: tuple[Path, ...], monkeypatch: Any) -> None:
    target, _, credential = place
    target.deploy(releases[0])
    asked = AzureML.ask
    with monkeypatch.context() as patch:
        patch.setattr(AzureML, "ask", lambda self, sounds, version="": asked(self, sounds, "1"))
        with pytest.raises(TwoPhaseError, match="does not answer as"):
            target.deploy(releases[1])
    assert target.status().shares == {"1": 100}
    with pytest.raises(UsageError, match="sum to 100"):
        target.shift({"1": 90})
    credential.expired = True
    with pytest.raises(TwoPhaseError, match="the token has expired; sign in again"):
        AzureML("pair", "s", "g", "w", credential=credential).deploy(releases[1])
    credential.expired = False
    assert target.deploy(releases[1]) == "2"
    assert target.status().shares == {"1": 0, "2": 100}


def test_a_first_release_that_answers_wrongly_leaves_no_endpoint(
    place: Any, releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, *_ = place
    with monkeypatch.context() as patch:
        patch.setattr(AzureML, "ask", lambda self, sounds, version="": [])
        with pytest.raises(TwoPhaseError, match="does not answer as"):
            target.deploy(releases[0])
    assert (target.status().shares, set(target.status().versions)) == ({}, {"1"})
    assert target.deploy(releases[0]) == "1", "and the next attempt finds its way clear"
    assert target.status().shares == {"1": 100}


def test_half_of_the_traffic_is_copied_to_a_version_that_answers_nobody(
    place: Any, releases: tuple[Path, ...], clips: list[Path]
) -> None:
    target, cloud, _ = place
    first, second, _ = releases
    with pytest.raises(UsageError, match="no other version whose traffic could be copied"):
        target.deploy(first, percent=50, mirror=True)
    target.deploy(first)
    with pytest.raises(UsageError, match="at most 50% of the traffic"):
        target.deploy(second, percent=60, mirror=True)
    assert target.deploy(second, percent=50, mirror=True) == "2"
    found = target.status()
    assert (found.shares, found.mirrored) == ({"1": 100, "2": 0}, {"2": 50})
    assert [target.predict([clip]) for clip in clips] == [[answer] for answer in expected(first, clips)]
    assert cloud.mirrored["version-2"] > 0
    target.promote("2")
    found = target.status()
    assert (found.alone, found.mirrored) == ("2", {})
    with pytest.raises(UsageError, match="has no other version"):
        target.deploy(second, percent=50, mirror=True)


def test_an_archived_release_is_restored_and_a_new_one_gets_a_new_number(
    place: Any, releases: tuple[Path, ...]
) -> None:
    target, *_ = place
    target.deploy(releases[0])
    target.delete()
    assert target.deploy(releases[1]) == "2"
    assert target.deploy(releases[0]) == "1"
    assert target.status().shares == {"1": 100, "2": 0}


def test_a_failed_deployment_that_was_left_behind_is_made_again(place: Any, releases: tuple[Path, ...]) -> None:
    target, cloud, _ = place
    target.deploy(releases[0])
    target.attach(target.register(releases[1]))
    left = next(r for path, r in cloud.resources.items() if path.endswith("/deployments/version-2"))
    left["properties"]["provisioningState"] = "Failed"
    assert target.deploy(releases[1]) == "2"
    assert target.status().shares == {"1": 0, "2": 100}


def test_jobs_by_name(place: Any, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    target, cloud, credential = place
    with pytest.raises(UsageError, match="no live version"):
        target.submit(clips)
    target.deploy(releases[0])
    name = target.submit(clips * 9)
    assert target.job(name).state == "succeeded"
    assert target.fetch(name, tmp_path / "out.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips * 9]
    assert lines == expected(releases[0], clips) * 9, "in order, though two files were answered apart"
    with pytest.raises(TwoPhaseError, match="run the same command"):
        target.fetch(name, tmp_path / "out.jsonl")
    environment = next(r for path, r in cloud.resources.items() if "/environments/twophase-batch/" in path)
    dockerfile = cloud.stored(environment["properties"]["build"]["contextUri"]) / "Dockerfile"
    assert dockerfile.read_text().startswith("FROM twophase/server:")
    compute = next(r for path, r in cloud.resources.items() if path.endswith("/computes/twophase-batch"))
    assert compute["properties"]["properties"]["scaleSettings"]["minNodeCount"] == 0

    cloud.jobs_end = "Running"
    running = target.submit(clips)
    with pytest.raises(UsageError, match="is still running"):
        target.fetch(running, tmp_path / "more.jsonl")
    target.cancel(running)
    with pytest.raises(TwoPhaseError, match="is cancelled"):
        target.fetch(running, tmp_path / "more.jsonl")
    cloud.jobs_end = "Failed"
    with pytest.raises(TwoPhaseError, match="is failed: see its log at"):
        target.batch(clips, tmp_path / "more.jsonl")
    assert not (tmp_path / "more.jsonl").exists()
    long_name = AzureML("a" * 32, "s", "g", "w", credential=credential)
    long_name.deploy(releases[0])
    with pytest.raises(UsageError, match="is 38 characters, Azure takes 32 of a batch endpoint"):
        long_name.submit(clips)


def test_an_endpoint_in_a_failed_state_is_named(place: Any, releases: tuple[Path, ...]) -> None:
    target, cloud, _ = place
    target.deploy(releases[0])
    endpoint = next(r for path, r in cloud.resources.items() if path.endswith("/onlineEndpoints/pair"))
    endpoint["properties"]["provisioningState"] = "Failed"
    for change in (lambda: target.deploy(releases[1]), lambda: target.promote("1"), target.rollback):
        with pytest.raises(TwoPhaseError, match=r"failed state \(its provisioning failed\); nothing was changed"):
            change()
    assert target.status().shares == {"1": 100}


def test_an_endpoint_of_others_is_left_alone(place: Any, releases: tuple[Path, ...]) -> None:
    target, cloud, _ = place
    target.deploy(releases[0])
    mine = next(path for path in cloud.resources if path.endswith("/deployments/version-1"))
    cloud.resources[mine.replace("version-1", "blue")] = {**cloud.resources[mine], "name": "blue"}
    for change in (lambda: target.deploy(releases[1]), target.delete):
        with pytest.raises(UsageError, match=r"twophase did not make \(deployment blue\)"):
            change()
    assert any("/onlineEndpoints/" in path for path in cloud.resources)


def test_a_gateway_asks_it(place: Any, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    target, cloud, _ = place
    asks(target, releases[0], clips, tmp_path)
    cloud.key = "another"
    assert target.predict(clips[:1]) == expected(releases[0], clips[:1]), "also when the key was changed meanwhile"
