"""A release's life on KServe: the Kubernetes client against a loopback cluster whose revisions are our server."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.targets.answers import asks, expected
from tests.targets.kubernetes_server import Cluster, kubernetes
from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import read
from twophase.targets.kserve import KServe


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"{address}/moto-api/reset")  # it is one for all tests of a process
    boto3.client("s3").create_bucket(Bucket="models")
    yield "s3://models/two-phase"
    server.stop()


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> Iterator[tuple[KServe, Cluster]]:
    with kubernetes(tmp_path) as (cluster, config):
        yield KServe("pair", "models", bucket, kubeconfig=config), cluster


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

    results, broken = tmp_path / "results.jsonl", tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    assert target.batch([*clips[:3], broken, tmp_path / "missing.wav", *clips[3:]], results) == 2
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [bool(lines.pop(3)["error"]) for _ in range(2)] == [True, True]
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
    with pytest.raises(UsageError, match=r"store=az://models: is no address that KServe reads; s3://, gs://, https://"):
        KServe("pair", "models", "az://models", kubeconfig=str(tmp_path / "kubeconfig"))
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


DEFAULTS = "/api/v1/namespaces/kserve/configmaps/inferenceservice-config"


def test_raw_mode_replaces_pods_and_refuses_a_share(
    place: tuple[KServe, Cluster], releases: tuple[Path, ...], clips: list[Path]
) -> None:
    target, cluster = place
    first, second, third = releases
    cluster.objects[DEFAULTS] = {"data": {"deploy": '{"defaultDeploymentMode": "Standard"}'}}
    assert target.deploy(first, percent=10) == "1", "there is nobody to share with"
    (service,) = [o for path, o in cluster.objects.items() if "/inferenceservices/" in path]
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    with pytest.raises(UsageError, match=r"raw mode, which cannot split traffic; give --percent 100"):
        target.deploy(second, percent=10)
    assert target.status().versions == {"1": read(first).id}, "nothing was changed"
    assert target.deploy(second) == "2"
    assert target.status().shares == {"2": 100}
    assert target.predict(clips) == expected(second, clips)
    assert target.rollback() == "1"
    assert target.predict(clips) == expected(first, clips)

    target.register(third)
    name = f"two-phase/pair/{read(third).id}/assets.extra/gate.tflite"
    boto3.client("s3").put_object(Bucket="models", Key=name, Body=b"tampered with in the bucket")
    with pytest.raises(TwoPhaseError, match=r"new pods do not come up: .*gate\.tflite was changed"):
        target.deploy(third)
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(first, clips)
    assert [entry.alone for entry in target.status().history][:3] == ["1", "2", "1"]
    target.delete()


def test_a_service_of_others_is_left_alone(place: tuple[KServe, Cluster], releases: tuple[Path, ...]) -> None:
    target, cluster = place
    target.deploy(releases[0])
    (service,) = [o for path, o in cluster.objects.items() if "/inferenceservices/" in path]
    del service["metadata"]["annotations"]["twophase.dev/version"]
    for change in (lambda: target.deploy(releases[1]), target.delete, target.status):
        with pytest.raises(UsageError, match="is an InferenceService that twophase did not make"):
            change()
    assert service in cluster.objects.values()


def test_what_kubernetes_refuses_is_named(
    place: tuple[KServe, Cluster], releases: tuple[Path, ...], clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, cluster = place
    target.deploy(releases[0])
    monkeypatch.setattr(Cluster, "handle", lambda self, method, path, body: (401, {"message": "Unauthorized"}))
    for call in (lambda: target.deploy(releases[1]), lambda: target.batch(clips, clips[0].with_suffix(".jsonl"))):
        with pytest.raises(TwoPhaseError, match=r"Kubernetes: Unauthorized \(401\)"):
            call()
    assert cluster.objects


def test_a_gateway_asks_it(
    place: tuple[KServe, Cluster], releases: tuple[Path, ...], clips: list[Path], tmp_path: Path
) -> None:
    asks(place[0], releases[0], clips, tmp_path)
