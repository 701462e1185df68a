"""A release's life on SageMaker: boto3 against moto's control plane, whose endpoints are our server."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.core.exceptions import JsonRESTError
from typer.testing import CliRunner

from tests.targets.answers import asks, expected
from tests.targets.sagemaker_server import Cloud, sagemaker
from twophase.cli import app
from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import read
from twophase.targets.sagemaker import SageMaker

ROLE = "arn:aws:iam::123456789012:role/models"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with sagemaker(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def target(cloud: Cloud) -> SageMaker:
    return SageMaker("pair", "eu-west-1", ROLE)


def test_a_whole_life(target: SageMaker, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    first, second, third = releases
    said: list[str] = []
    target.deploy(first, dry_run=True, say=said.append)
    assert said == [
        f"register {read(first).id} as a version of pair",
        "deploy version new without traffic",
        "replay the golden windows through version new",
        "split the traffic: version new 100%",
    ]
    assert target.status().versions == {}, "a dry run changes nothing"

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
    assert target.batch([*clips[:3], broken, tmp_path / "missing.wav", *clips[3:]], results) == 2
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    said = [str(lines.pop(3)["error"]) for _ in range(2)]
    assert "cannot be read" in said[1]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips]
    assert lines == expected(first, clips)
    left = boto3.client("s3").list_objects_v2(Bucket="sagemaker-eu-west-1-123456789012", Prefix="twophase/pair/batch/")
    assert left["KeyCount"] == 0, "sounds do not stay in the bucket"

    assert target.deploy(third) == "3"
    assert target.status().shares == {"1": 0, "3": 100}, "the one before stays, older ones go"
    states = boto3.client("sagemaker").list_model_packages(ModelPackageGroupName="pair")["ModelPackageSummaryList"]
    assert {package["ModelApprovalStatus"] for package in states} == {"Approved"}

    target.delete()
    target.delete()
    found = target.status()
    assert (found.versions, found.shares) == ({}, {})
    client = boto3.client("sagemaker")
    assert client.list_endpoint_configs()["EndpointConfigs"] == client.list_models()["Models"] == []
    assert boto3.client("s3").list_objects_v2(Bucket="sagemaker-eu-west-1-123456789012")["KeyCount"] == 0


def test_a_version_that_answers_wrongly_gets_no_traffic(
    target: SageMaker,
    releases: tuple[Path, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, _ = releases
    target.deploy(first)
    asked = SageMaker.ask
    monkeypatch.setattr(SageMaker, "ask", lambda self, clips, version="": asked(self, clips, "1"))
    with pytest.raises(TwoPhaseError, match="does not answer as"):
        target.deploy(second)
    assert target.status().shares == {"1": 100}
    assert set(target.status().versions) == {"1", "2"}, "registered it is"


def test_what_was_cut_off_is_finished_by_the_next(target: SageMaker, releases: tuple[Path, ...]) -> None:
    first, second, _ = releases
    target.deploy(first)
    target.attach(target.register(second))
    assert target.register(second) == "2"
    assert target.status().shares == {"1": 100, "2": 0}
    assert target.deploy(second) == "2"
    assert target.status().shares == {"1": 0, "2": 100}


def test_bad_input(
    target: SageMaker,
    releases: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="is no name"):
        SageMaker("A name", "eu-west-1", ROLE)
    with pytest.raises(UsageError, match="give 1 to 100"):
        target.deploy(releases[0], percent=0)
    changed = Path(shutil.copytree(releases[0], tmp_path / "changed"))
    (changed / "saved_model.pb").write_bytes(b"another")
    with pytest.raises(TwoPhaseError, match="was changed"):
        target.deploy(changed)
    target.deploy(releases[0])
    with pytest.raises(UsageError, match="sum to 100"):
        target.shift({"1": 50})
    with pytest.raises(UsageError, match="is no version"):
        target.promote("7")
    with pytest.raises(UsageError, match="no version to go back to"):
        target.rollback()
    client = boto3.client("sagemaker")
    target.register(releases[1])
    (package,) = (
        p
        for p in client.list_model_packages(ModelPackageGroupName="pair")["ModelPackageSummaryList"]
        if p["ModelPackageVersion"] == 2
    )
    client.update_model_package(ModelPackageArn=package["ModelPackageArn"], ModelApprovalStatus="Rejected")
    with pytest.raises(TwoPhaseError, match="was rejected"):
        target.deploy(releases[1])
    assert target.status().shares == {"1": 100}


def test_an_expired_token_and_a_failed_endpoint_are_named(
    target: SageMaker, releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.sagemaker.models import sagemaker_backends
    from moto.sagemaker.responses import SageMakerResponse

    def expired(self: object) -> None:
        raise JsonRESTError("ExpiredTokenException", "The security token included in the request is expired")

    target.deploy(releases[0])
    with monkeypatch.context() as patch:
        patch.setattr(SageMakerResponse, "update_endpoint", expired)
        with pytest.raises(TwoPhaseError, match=r"ExpiredTokenException.*sign in again"):
            target.deploy(releases[1])
    assert target.status().shares == {"1": 100}
    assert target.deploy(releases[1], percent=30) == "2", "what was done before is kept"
    sagemaker_backends["123456789012"]["eu-west-1"].endpoints["pair"].endpoint_status = "Failed"
    for change in (lambda: target.deploy(releases[2]), lambda: target.promote("2"), target.rollback):
        with pytest.raises(TwoPhaseError, match=r"failed state \(Failed\); nothing was changed"):
            change()
    assert target.status().shares == {"1": 70, "2": 30}


def test_a_first_release_that_answers_wrongly_leaves_no_endpoint(
    target: SageMaker, releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SageMaker, "ask", lambda self, sounds, version="": [])
        with pytest.raises(TwoPhaseError, match="does not answer as"):
            target.deploy(releases[0])
    assert (target.status().shares, set(target.status().versions)) == ({}, {"1"})
    assert target.deploy(releases[0]) == "1", "and the next attempt finds its way clear"
    assert target.status().shares == {"1": 100}


def test_alarms_guard_a_move_of_traffic(
    target: SageMaker, cloud: Cloud, releases: tuple[Path, ...], clips: list[Path]
) -> None:
    target.deploy(releases[0])
    guarded = SageMaker("pair", "eu-west-1", ROLE, alarms="errors,latency", instances="2")
    guarded.deploy(releases[1], percent=10)
    coming, moving = cloud.updates
    assert coming is None, "a variant that comes without traffic is not guarded: its name is new"
    assert moving["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": "errors"}, {"AlarmName": "latency"}]}
    routing = moving["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert (routing["Type"], routing["CanarySize"]["Value"]) == ("CANARY", 1)
    assert guarded.status().shares == {"1": 90, "2": 10}

    cloud.alarm = "latency"
    with pytest.raises(TwoPhaseError, match="went back to how the endpoint was: Alarm latency went off"):
        guarded.promote("2")
    assert guarded.status().shares == {"1": 90, "2": 10}
    cloud.alarm = ""
    guarded.promote("2")
    assert guarded.rollback() == "1"
    assert guarded.status().shares == {"1": 100, "2": 0}
    assert guarded.predict(clips) == expected(releases[0], clips)
    assert len(boto3.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]) == 1
    with pytest.raises(UsageError, match="is no number of machines"):
        SageMaker("pair", "eu-west-1", ROLE, instances="0")


def packed(release: Path) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        archive.add(release, ".")
    return whole.getvalue()


def tampered(release: Path) -> bytes:
    (release / "assets.extra/gate.tflite").write_bytes(b"another")
    return packed(release)


def of_another_front_end(release: Path) -> bytes:
    manifest = release / "assets.extra/release.json"
    manifest.write_text(manifest.read_text().replace(read(release).fingerprint, "f" * 12))
    return packed(release)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (tampered, r"gate\.tflite was changed"),
        (of_another_front_end, "front end"),
        (lambda release: packed(release)[:-5_000], "Compressed file ended|unexpected end"),
    ],
)
def test_what_was_damaged_on_its_way_leaves_the_live_version(
    target: SageMaker,
    releases: tuple[Path, ...],
    clips: list[Path],
    tmp_path: Path,
    damage: Callable[[Path], bytes],
    words: str,
) -> None:
    target.deploy(releases[0])
    target.register(releases[1])
    key = f"twophase/pair/{read(releases[1]).id}/model.tar.gz"
    data = damage(Path(shutil.copytree(releases[1], tmp_path / "damaged")))
    boto3.client("s3").put_object(Bucket="sagemaker-eu-west-1-123456789012", Key=key, Body=data)
    with pytest.raises(TwoPhaseError, match=f"went back .*({words})"):
        target.deploy(releases[1])
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(releases[0], clips)


def test_a_bucket_without_permission_is_named(
    target: SageMaker, releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.s3.exceptions import S3AccessDeniedError
    from moto.s3.models import S3Backend

    def denied(*_: object, **__: object) -> None:
        raise S3AccessDeniedError

    target.deploy(releases[0])
    with monkeypatch.context() as patch:
        patch.setattr(S3Backend, "put_object", denied)
        with pytest.raises(TwoPhaseError, match=r"PutObject: .*\(AccessDenied\); let this account do it"):
            target.deploy(releases[1])
    assert target.status().shares == {"1": 100}
    assert set(target.status().versions) == {"1"}


def test_a_change_that_still_runs_is_waited_for(target: SageMaker, cloud: Cloud, releases: tuple[Path, ...]) -> None:
    from moto.sagemaker.models import sagemaker_backends

    target.deploy(releases[0])
    endpoint = sagemaker_backends["123456789012"]["eu-west-1"].endpoints["pair"]
    endpoint.endpoint_status, cloud.busy = "Updating", 2
    assert target.deploy(releases[1]) == "2"
    assert target.status().shares == {"1": 0, "2": 100}


@pytest.mark.parametrize("percent", [40, 60, 100])
def test_the_same_command_again_changes_nothing(target: SageMaker, releases: tuple[Path, ...], percent: int) -> None:
    target.deploy(releases[0])
    for _ in range(2):
        target.deploy(releases[1], percent)
        assert target.status().serving == {v: s for v, s in {"1": 100 - percent, "2": percent}.items() if s}
    assert len(target.status().history) == 2


def test_a_deployment_that_was_not_tidied_is_tidied_by_the_next(target: SageMaker, releases: tuple[Path, ...]) -> None:
    target.deploy(releases[0])
    target.deploy(releases[1])
    target.attach(target.register(releases[2]))
    target.shift({"3": 100})  # and here it was killed
    assert target.deploy(releases[2]) == "3"
    assert target.status().shares == {"2": 0, "3": 100}


def test_jobs_by_name(target: SageMaker, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    from moto.sagemaker.models import sagemaker_backends

    with pytest.raises(UsageError, match="no live version"):
        target.submit(clips)
    target.deploy(releases[0])
    with pytest.raises(TwoPhaseError, match="cannot be read"):
        target.submit([tmp_path / "missing.wav"])
    name = target.submit(clips)
    job = sagemaker_backends["123456789012"]["eu-west-1"].transform_jobs[name]
    job.transform_job_status = "InProgress"
    with pytest.raises(UsageError, match="is still running"):
        target.fetch(name, tmp_path / "out.jsonl")
    target.cancel(name)
    with pytest.raises(TwoPhaseError, match="is cancelled"):
        target.fetch(name, tmp_path / "out.jsonl")
    bucket = {"Bucket": "sagemaker-eu-west-1-123456789012", "Prefix": "twophase/pair/batch/"}
    assert boto3.client("s3").list_objects_v2(**bucket)["KeyCount"] == 0, "no sound stays behind"
    name = target.submit(clips)
    assert target.fetch(name, tmp_path / "out.jsonl") == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(clips)
    with pytest.raises(TwoPhaseError, match="NoSuchKey"):
        target.fetch(name, tmp_path / "out.jsonl")


def test_answers_of_which_one_is_missing_are_nobody_s(
    target: SageMaker, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path
) -> None:
    target.deploy(releases[0])
    name, s3 = target.submit([tmp_path / "missing.wav", *clips]), boto3.client("s3")
    of = {"Bucket": "sagemaker-eu-west-1-123456789012", "Key": f"twophase/pair/batch/{name}/out/in.jsonl.out"}
    lines = s3.get_object(**of)["Body"].read().splitlines(keepends=True)
    s3.put_object(**of, Body=b"".join(lines[:5] + lines[6:]))
    with pytest.raises(TwoPhaseError, match=rf"{name}: .*in\.jsonl\.out has 11 answers to 12 clips"):
        target.fetch(name, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    s3.put_object(**of, Body=b"\n".join(lines))  # with empty lines, as an answer's own end and SageMaker's make them
    assert target.fetch(name, tmp_path / "out.jsonl") == 1


def test_an_endpoint_of_others_is_left_alone(target: SageMaker, releases: tuple[Path, ...]) -> None:
    client = boto3.client("sagemaker")
    client.create_model(ModelName="theirs", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": "theirs",
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
    }
    client.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="pair", EndpointConfigName="theirs")
    for change in (lambda: target.deploy(releases[0]), target.delete):
        with pytest.raises(UsageError, match=r"twophase did not make \(variant AllTraffic\)"):
            change()
    assert client.describe_endpoint(EndpointName="pair")["EndpointStatus"] == "InService"


def test_jobs_on_the_command_line(
    target: SageMaker, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path
) -> None:
    target.deploy(releases[0])

    def run(line: str) -> str:
        done = CliRunner().invoke(app, f"{line} --target sagemaker --set role={ROLE}".split())
        if done.exception:
            raise done.exception
        return done.output

    name = run(f"batch submit pair {' '.join(map(str, clips))}").strip()
    assert run(f"batch status {name}") == f"{name}: succeeded\n"
    with pytest.raises(UsageError, match=r"has ended \(succeeded\)"):
        run(f"batch cancel {name}")
    assert run(f"batch fetch {name} --to {tmp_path / 'out.jsonl'}").endswith("0 clips not answered\n")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips]
    assert lines == expected(releases[0], clips)
    with pytest.raises(UsageError, match="lists no jobs here"):
        run("batch status")
    with pytest.raises(UsageError, match="runs at local or vertex"):
        run("batch submit pair gs://b/x.jsonl --to gs://b/out")


def test_a_gateway_asks_it(target: SageMaker, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    asks(target, releases[0], clips, tmp_path)
