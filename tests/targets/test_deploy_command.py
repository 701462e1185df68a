"""`twophase deploy`, `predict`, `target` and `destroy`, over the platform on this machine."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twophase.cli import app
from twophase.cli.deploy import asked
from twophase.errors import TwoPhaseError, UsageError
from twophase.local import process
from twophase.release.manifest import read
from twophase.targets.places import place


@pytest.fixture(scope="module")
def twophase(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    home = tmp_path_factory.mktemp("home")
    environment = {"TWOPHASE_API_ENDPOINT": process.up(home, 0).url, "COLUMNS": "200"}

    def run(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), env=environment)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    yield run
    process.down(home)


def test_a_life(twophase: Callable[[str], str], releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    first, second, _ = releases
    assert "register" in twophase(f"deploy {first} --model pair --dry-run")
    assert twophase("target status pair") == "nothing is deployed\n"
    assert "version 1 has its traffic at local" in twophase(f"deploy {first} --model pair")
    twophase(f"deploy {second} --model pair --percent 25")
    found = json.loads(twophase("target status pair --json"))
    assert found["shares"] == {"1": 75, "2": 25}
    assert found["versions"] == {"1": read(first).id, "2": read(second).id}
    assert "version 2 has all traffic" in twophase("target promote pair 2")
    assert "version 1 has all traffic" in twophase("target rollback pair")

    files = " ".join(map(str, clips))
    online = json.loads(twophase(f"predict pair {files} --to {tmp_path / 'a.jsonl'} --json"))["predictions"]
    said = twophase(f"predict pair {files} --to {tmp_path / 'b.jsonl'} --batch-from 10")
    assert "12 clips, 0 of them not answered" in said
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips]
    assert lines == online

    name = twophase(f"batch submit pair {files}").strip()
    while "RUNNING" in (said := twophase(f"batch status {name} --json")) or "PENDING" in said:
        time.sleep(0.05)
    assert twophase(f"batch fetch {name} --to {tmp_path / 'c.jsonl'}").endswith("0 clips not answered\n")
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    with pytest.raises(TwoPhaseError, match="answers are removed once fetched"):
        twophase(f"batch fetch {name} --to {tmp_path / 'c.jsonl'}")

    twophase("destroy pair --yes")
    assert twophase("target status pair") == "nothing is deployed\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("deploy {release} --target gcp", "local, vertex, sagemaker, azureml, kserve are"),
        ("deploy {release} --target sagemaker", "sagemaker needs role"),
        ("deploy {release} --target kserve --set bucket=x", "means nothing to kserve"),
        ("deploy {release} --target kserve --set store", "NAME=VALUE is accepted"),
        ("deploy {release} --target azureml --set workspace=w", "azureml needs subscription"),
        ("deploy {release} --target vertex", "vertex needs project; give --project, or TWOPHASE_PROJECT"),
        ("batch status --target vertex", "vertex needs project; give --project"),
        ("deploy {release} --target kserve --region r", "--region: means nothing to kserve; it has namespace"),
        ("deploy {release} --target azureml --project p", "--project: means nothing to azureml"),
        ("target status pair --target sagemaker --api-endpoint http://x", "--api-endpoint: means nothing to sagemaker"),
        ("target status pair --target kserve --home x", "--home x: means nothing to kserve"),
        ("deploy {release} --percent 101", "give 1 to 100 per cent"),
        ("batch submit other x.wav --to gs://b/out", "is for gs:// sources"),
        ("batch submit other x.wav gs://b/x.jsonl --to gs://b/out", "has no clip files beside them"),
        ("batch submit other gs://b/x.jsonl", "has no clip files beside them"),
        ("target promote other 3", "is no version of other"),
        ("predict pair x.wav", "x.wav: cannot be read"),
    ],
)
def test_wrong_usage(twophase: Callable[[str], str], releases: tuple[Path, ...], line: str, words: str) -> None:
    with pytest.raises(TwoPhaseError, match=words) as refused:
        twophase(line.format(release=releases[0]))
    assert isinstance(refused.value, UsageError) or "x.wav" in words


def test_options_reach_the_place_that_has_them(twophase: Callable[[str], str]) -> None:
    assert twophase("target status pair --target vertex --project local") == "nothing is deployed\n"
    with pytest.raises(TwoPhaseError, match=r"127\.0\.0\.1:1: does not answer"):
        twophase("target status pair --target vertex --project p --api-endpoint http://127.0.0.1:1")
    assert asked("sagemaker", ["role=r"], ("", "eu-west-1", ""), None) == {"role": "r", "region": "eu-west-1"}


def test_a_dry_run_and_what_is_no_release_start_nothing(releases: tuple[Path, ...], tmp_path: Path) -> None:
    home = tmp_path / "home"
    line = ["deploy", str(releases[0]), "--dry-run", "--home", str(home)]
    done = CliRunner().invoke(app, line, env={"TWOPHASE_API_ENDPOINT": ""})
    assert "does not run; start it with `twophase local up`" in str(done.exception)
    line = ["deploy", str(tmp_path), "--home", str(home)]
    done = CliRunner().invoke(app, line, env={"TWOPHASE_API_ENDPOINT": ""})
    assert "is no release" in str(done.exception)
    assert not home.exists()


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch, releases: tuple[Path, ...]) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match=re.escape("sagemaker needs boto3; install twophase[sagemaker]")):
        place("sagemaker", "pair", {"role": "r"})
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform", None)  # only an upload needs it
    monkeypatch.delattr("google.cloud.aiplatform", raising=False)
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "t")
    with pytest.raises(UsageError, match=r"google.cloud.aiplatform for an upload; install twophase\[pipelines\]"):
        place("vertex", "pair", {"project": "p"}).register(releases[0])


def test_a_place_without_batch_jobs_says_so(
    twophase: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "current-context": "c"}
    cluster |= {"contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}], "users": [], "kind": "Config"}
    (tmp_path / "kubeconfig").write_text(json.dumps(cluster))
    found = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"  # KUBECONFIG as it was at the import
    monkeypatch.setattr(found, str(tmp_path / "kubeconfig"))
    with pytest.raises(UsageError, match="kserve: runs no batch jobs; `twophase predict --to FILE`"):
        twophase("batch submit pair x.wav --target kserve --set store=s3://models")


def test_only_azure_copies_traffic(twophase: Callable[[str], str], releases: tuple[Path, ...]) -> None:
    twophase(f"deploy {releases[0]} --model copied")
    with pytest.raises(UsageError, match="only azureml copies traffic"):
        twophase(f"deploy {releases[1]} --model copied --percent 10 --mirror")
    twophase("destroy copied --yes")
