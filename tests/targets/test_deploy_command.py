"""`twophase deploy`, `predict`, `target` and `destroy`, over the platform on this machine."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twophase.cli import app
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
    assert twophase(f"predict pair {files} --to {tmp_path / 'b.jsonl'} --batch-from 10").startswith(
        "12 clips, 0 of them"
    )
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips]
    assert lines == online

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
        ("deploy {release} --target vertex", "vertex needs project"),
        ("deploy {release} --percent 101", "give 1 to 100 per cent"),
        ("target promote other 3", "is no version of other"),
        ("predict pair x.wav", "x.wav: cannot be read"),
    ],
)
def test_wrong_usage(twophase: Callable[[str], str], releases: tuple[Path, ...], line: str, words: str) -> None:
    with pytest.raises(TwoPhaseError, match=words) as refused:
        twophase(line.format(release=releases[0]))
    assert isinstance(refused.value, UsageError) or "x.wav" in words


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match=r"sagemaker needs boto3; install twophase\[sagemaker\]"):
        place("sagemaker", "pair", {"role": "r"})
