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

from tests.targets.azure_server import Azure, azure
from twophase.errors import TwoPhaseError, UsageError
from twophase.serving.instances import audio_images
from twophase.serving.predictor import Predictor
from twophase.targets.azureml import AzureML

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK warns of itself while it is imported


class Credential:
    """What azure-identity gives after `az login`, until it expires."""

    expired = False

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        if self.expired:
            raise ClientAuthenticationError("the token has expired")
        return AccessToken("token", int(time.time()) + 60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AzureML, Azure, Credential]]:
    with azure(tmp_path, monkeypatch) as cloud:
        credential = Credential()
        yield AzureML("pair", "s", "g", "w", credential=credential), cloud, credential
    gc.collect()  # the SDK leaves its connections to it, and they warn: here, not in another test


def expected(release: Path, clips: list[Path]) -> list[dict]:
    predictor = Predictor(release)
    return [predictor.predict_images(audio_images(clip.read_bytes(), "clip")) for clip in clips]


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
