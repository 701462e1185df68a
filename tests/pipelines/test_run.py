"""`twophase run` on rendered clips, from nothing to answers; again, and with nothing new."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from twophase.local import process
from twophase.release import golden, manifest
from twophase.release.runtime import Pair

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "two_phase.ipynb"
QUICK = ("--quick", "--per-label", "6", "--seed", "3")


def twophase(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TWOPHASE_HOME": str(home)}
    command = [sys.executable, "-m", "twophase", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("home")
    yield folder
    process.down(folder)


@pytest.fixture(scope="module")
def first(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = twophase("run", *QUICK, "--workdir", str(tmp_path_factory.mktemp("first")), "--json", home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def again(first: dict[str, Any], home: Path) -> dict[str, Any]:
    """The same, in the same workdir, and which of the files that take long to make it made anew (`made`)."""
    workdir = Path(first["release"]).parents[1]

    def made() -> dict[str, int]:
        kept = (path for room in ("synth", "images", "models", "releases") for path in (workdir / room).rglob("*"))
        return {str(path): path.stat().st_mtime_ns for path in kept if path.is_file() and path.name[0] != "."}

    before = made()
    done = twophase("run", *QUICK, "--workdir", str(workdir), "--json", home=home)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "made": made().items() - before.items()}


@pytest.mark.timeout(900)
def test_a_run_ends_with_a_deployed_pair_that_answers(first: dict[str, Any], home: Path) -> None:
    assert first["verdict"] == "better"
    assert first["live_release"] == first["release_id"]
    assert first["version"].endswith("@1")
    assert len(first["predictions"]) == 5
    assert Path(first["report"]).read_text().count("<html") == 1
    release = Path(first["release"])
    assert manifest.verify(release).id == first["release_id"]
    golden.replay(Pair(release), release)


@pytest.mark.timeout(900)
def test_a_run_with_nothing_new_makes_nothing_anew(first: dict[str, Any], again: dict[str, Any]) -> None:
    assert again["release_id"] == first["release_id"]
    assert not again["made"]


@pytest.mark.timeout(900)
def test_what_is_not_better_is_not_registered(first: dict[str, Any], again: dict[str, Any], home: Path) -> None:
    """The other branch: the verdict is not `better`, and the registry still has one version."""
    assert again["verdict"] == "not shown"
    assert again["version"] == first["version"]
    listed = twophase("versions", "list", "two-phase", "--json", home=home)
    assert [v["versionId"] for v in json.loads(listed.stdout)] == ["1"]


@pytest.mark.timeout(900)
def test_the_deployed_pair_is_asked_from_the_command_line(first: dict[str, Any], home: Path) -> None:
    clip = next((Path(first["release"]).parents[1] / "synth").rglob("*.flac"))
    done = twophase("predict", "two-phase", str(clip), "--json", home=home)
    answer = json.loads(done.stdout)
    assert answer["predictions"][0]["release"] == first["release_id"]
    assert sum(answer["predictions"][0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.timeout(900)
def test_a_release_is_evaluated_on_what_it_has_not_heard(first: dict[str, Any], home: Path) -> None:
    data = next((Path(first["release"]).parents[1] / "synth").iterdir())
    done = twophase("evaluate", first["release"], "--data", str(data), "--json", home=home)
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert found["clips"] + found["heard"] == len(list(data.rglob("*.flac")))
    assert {"accuracy", "recall", "stopped", "escalation_rate", "at_recall"} <= found["gate"].keys()
    assert found["gate"]["at_recall"].keys() == {"0.95", "0.99"}
    assert {"accuracy", "top3", "ece"} <= found["classifier"].keys()
    assert {"accuracy", "calls_ratio", "bytes_ratio"} <= found["pair"].keys()


@pytest.mark.timeout(900)
def test_another_threshold_makes_another_release(first: dict[str, Any], home: Path) -> None:
    data = next((Path(first["release"]).parents[1] / "synth").iterdir())
    done = twophase("tune", first["release"], "--data", str(data), "--recall", "0.5", "--json", home=home)
    tuned = json.loads(done.stdout)
    assert tuned["operating_point"]["recall"] >= 0.5
    assert tuned["release_id"] != first["release_id"]
    assert manifest.verify(Path(tuned["release"])).lineage["tuned_from"] == first["release_id"]
    compared = twophase("compare", tuned["release"], first["release"], "--data", str(data), "--json", home=home)
    assert json.loads(compared.stdout)["verdict"] in ("better", "worse", "not shown")


@pytest.mark.timeout(900)
def test_the_notebook_runs_from_top_to_bottom(first: dict[str, Any], home: Path, tmp_path: Path, monkeypatch) -> None:
    """In the first run's workdir, so that its run through the official SDK finds the training done; to SUCCEEDED."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    settings.source += f"\nWORKDIR = {str(Path(first['release']).parents[1])!r}\nQUICK, PER_LABEL, SEED = True, 6, 3"
    monkeypatch.setenv("TWOPHASE_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    done = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(o.get("text", "") for cell in done.cells for o in cell.get("outputs", ()))
    assert "write-report: succeeded" in said
    assert "3 answered, 0 not" in said


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
