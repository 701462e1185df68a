"""The commands for models, versions, traffic and batch jobs, as scripts use them."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.serving.standin import make
from twophase.cli import app
from twophase.errors import TwoPhaseError
from twophase.local import process
from twophase.release.manifest import read


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    process.down(tmp_path / "home")


@pytest.fixture
def twophase(home: Path) -> Callable[[str], str]:
    environment = {"TWOPHASE_API_ENDPOINT": process.up(home, 0).url, "COLUMNS": "200"}

    def run(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), env=environment)
        if done.exception:
            raise done.exception
        return done.stdout

    return run


def test_the_life_of_a_model(twophase: Callable[[str], str], tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    twophase(f"models create m {first}")
    with pytest.raises(TwoPhaseError, match="is there already"):
        twophase(f"models create m {first}")
    (made,) = json.loads(twophase(f"versions create m {second} --json"))
    assert (made["versionId"], made["labels"]["release"]) == ("2", read(second).id)
    assert json.loads(twophase("models describe m"))["versionId"] == "1"
    twophase("versions promote m 1")
    assert json.loads(twophase("endpoints traffic m 1=75 2=25 --json")) == {"1": 75, "2": 25}
    assert twophase(f"versions promote m {read(second).id}") == "m: version 1: 0%, version 2: 100%\n"
    assert twophase("versions rollback m") == "m: version 1: 100%, version 2: 0%\n"
    entries = json.loads(twophase("versions history m --json"))
    assert [e["traffic"] for e in entries] == [{"1": 100}, {"1": 75, "2": 25}, {"2": 100}, {"1": 100}]
    assert entries[2]["releases"] == {"2": read(second).id}
    assert read(second).id in twophase("versions history m")
    with pytest.raises(TwoPhaseError, match="is deployed at"):
        twophase("versions delete m 2")
    twophase(f"versions create m {first}")
    assert "version 3 deleted" in twophase("versions delete m 3")
    with pytest.raises(TwoPhaseError, match="is deployed at"):
        twophase("models delete m")
    with pytest.raises(TwoPhaseError, match="VERSION=PERCENT"):
        twophase("endpoints traffic m 1")


def test_a_batch_job(twophase: Callable[[str], str], home: Path, tmp_path: Path) -> None:
    twophase(f"models create m {make(tmp_path / 'a', 1)}")
    image = {"images": {"b64": base64.b64encode(bytes(61 * 64)).decode()}}
    (home / "buckets/twophase/in.jsonl").write_text(json.dumps({**image, "id": 7}) + "\n")
    name = twophase("batch submit m gs://twophase/in.jsonl --to gs://twophase/out --key-field id").strip()
    while (job := json.loads(twophase(f"batch status {name.rpartition('/')[2]} --json")))["state"] != (
        "JOB_STATE_SUCCEEDED"
    ):
        assert "FAILED" not in job["state"]
        time.sleep(0.05)
    folder = home / "buckets" / job["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://")
    (line,) = (folder / "prediction.results-00000-of-00001").read_text().splitlines()
    assert json.loads(line)["id"] == 7
    assert name in twophase("batch status")
    with pytest.raises(TwoPhaseError, match="was not submitted from clips"):
        twophase(f"batch fetch {name} --to {tmp_path / 'out.jsonl'}")
    with pytest.raises(TwoPhaseError, match="has ended"):
        twophase(f"batch cancel {name}")
