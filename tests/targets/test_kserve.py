"""A release's life on KServe: the Kubernetes client against a loopback cluster whose revisions are our server."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.targets.kubernetes_server import Cluster, kubernetes
from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import read
from twophase.serving.instances import audio_images
from twophase.serving.predictor import Predictor
from twophase.targets.kserve import KServe


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="models")
    yield "s3://models/two-phase"
    server.stop()


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> Iterator[tuple[KServe, Cluster]]:
    with kubernetes(tmp_path) as (cluster, config):
        yield KServe("pair", "models", bucket, kubeconfig=config), cluster


def expected(release: Path, clips: list[Path]) -> list[dict]:
    predictor = Predictor(release)
    return [predictor.predict_images(audio_images(clip.read_bytes(), "clip")) for clip in clips]


def test_a_whole_life(
    place: tuple[KServe, Cluster], releases: tuple[Path, ...], clips: list[Path], tmp_path: Path
) -> None:
    target, cluster = place
    first, second, third = releases
    assert target.deploy(first) == "1"
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(first, clips)

    assert target.deploy(second, percent=10) == "2"
    assert target.status().shares == {"1": 90, "2": 10}
    assert target.deploy(second, percent=10) == "2", "again: nothing to do"
    with pytest.raises(TwoPhaseError, match="is between two versions"):
        target.deploy(third, percent=10)
    assert target.status().shares == {"1": 90, "2": 10}
    target.promote("2")
    assert target.status().shares == {"2": 100}
    assert target.predict(clips) == expected(second, clips)

    assert target.rollback() == "1"
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(first, clips)

    results = tmp_path / "results.jsonl"
    assert target.batch(clips, results) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips]
    assert lines == expected(first, clips)
    history = [entry.shares for entry in target.status().history]
    assert history[:3] == [{"1": 100}, {"1": 90, "2": 10}, {"2": 100}]
    assert history[-1] == {"1": 100}

    target.delete()
    target.delete()
    assert target.status().versions == {}
    assert cluster.objects == {}
    assert boto3.client("s3").list_objects_v2(Bucket="models")["KeyCount"] == 0


def test_a_canary_is_taken_back(place: tuple[KServe, Cluster], releases: tuple[Path, ...]) -> None:
    target, _ = place
    target.deploy(releases[0])
    target.deploy(releases[1], percent=10)
    assert target.rollback() == "1"
    assert target.status().shares == {"1": 100}
    assert target.deploy(releases[2], percent=50) == "3"


def test_a_release_that_does_not_come_up_gets_no_traffic(
    place: tuple[KServe, Cluster], releases: tuple[Path, ...], clips: list[Path]
) -> None:
    target, _ = place
    target.deploy(releases[0])
    target.register(releases[1])
    name = f"two-phase/pair/{read(releases[1]).id}/assets.extra/gate.tflite"
    boto3.client("s3").put_object(Bucket="models", Key=name, Body=b"tampered with in the bucket")
    with pytest.raises(TwoPhaseError, match=r"does not come up: .*gate\.tflite was changed"):
        target.deploy(releases[1])
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(releases[0], clips)


def test_bad_input(place: tuple[KServe, Cluster], releases: tuple[Path, ...], tmp_path: Path) -> None:
    target, _ = place
    with pytest.raises(UsageError, match="is not deployed"):
        target.predict([next(releases[0].glob("*.pb"))])
    with pytest.raises(TwoPhaseError, match="cannot be used"):
        KServe("pair", "models", "s3://nowhere/x", kubeconfig=str(tmp_path / "kubeconfig")).deploy(releases[0])
    (tmp_path / "none").write_text("{}")
    with pytest.raises(TwoPhaseError, match="no cluster to talk to"):
        KServe("pair", "models", "s3://models", kubeconfig=str(tmp_path / "none"))


def test_a_first_release_that_answers_wrongly_leaves_no_endpoint(
    place: tuple[KServe, Cluster], releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, *_ = place
    with monkeypatch.context() as patch:
        patch.setattr(KServe, "ask", lambda self, sounds, version="": [])
        with pytest.raises(TwoPhaseError, match="does not answer as"):
            target.deploy(releases[0])
    assert (target.status().shares, set(target.status().versions)) == ({}, {"1"})
    assert target.deploy(releases[0]) == "1", "and the next attempt finds its way clear"
    assert target.status().shares == {"1": 100}
