"""Both branches of the pipeline's end, seen in what they leave behind: what beats the live release goes live, else not.

The real steps and the real condition, compiled for this machine, on evaluations whose answers are known.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import compiler, components, dsl, local
from kfp.dsl import Dataset, Model

from pipelines import places
from pipelines.two_phase import go_live_if_better
from twophase.local import process
from twophase.release import manifest
from twophase.targets.rest import Vertex
from twophase.targets.vertex import Registry
from twophase.training import answers
from twophase.training.judge import Judgement

PLACE = ("local", "us-central1")
STOPS_ALL = 1e6
"""A threshold that nothing reaches: the pair is right about what is unwanted, and wrong about everything else."""


@pytest.fixture
def address(tmp_path: Path):
    home = tmp_path / "home"
    yield process.up(home, 0).url
    process.down(home)


def with_threshold(release: Path, folder: Path, threshold: float) -> Path:
    """A release of the same models with another threshold, so of another id."""
    found = manifest.read(release)
    name = manifest.release_id(found.labels, found.computes, threshold)
    copy = Path(shutil.copytree(release, folder / name))
    path = copy / "assets.extra/release.json"
    value = json.loads(path.read_text())
    value["id"], value["operating_point"]["threshold"] = name, threshold
    path.write_text(json.dumps(value))
    return copy


def evaluation(judged: Judgement, folder: Path, right: bool) -> Path:
    """An evaluation on the same test clips in which every answer is right, or every one is wrong."""
    copy = Path(shutil.copytree(judged.folder, folder / f"evaluation-{right}"))
    test = judged.test
    passed = test.wanted if right else ~test.wanted
    names = np.where(test.wanted, test.truth, 0) if right else (test.truth + 1) % (len(test.names) - 1)
    given = replace(
        test,
        gate=(judged.point.threshold + np.where(passed, 1.0, -1.0)).astype(np.float32),
        probabilities=np.eye(len(test.names), dtype=np.float32)[names],
    )
    answers.write(copy / "test.jsonl", given)
    return copy


def end_of_pipeline(evaluated: Path, release: Path, root: Path, address: str) -> None:
    """Run what `two_phase` ends with, as it is compiled for this machine."""

    @dsl.pipeline(name="end")
    def end(workdir: str, project: str, region: str, api_endpoint: str, model: str) -> None:
        def given(folder: Path, kind: type) -> Any:
            return dsl.importer(artifact_uri=str(folder), artifact_class=kind, reimport=True).output

        named = {"project": project, "region": region, "api_endpoint": api_endpoint, "model": model}
        judged = given(evaluated, Dataset)
        go_live_if_better(places.local(), judged, judged, given(release, Model), workdir, named, "unused")

    compiler.Compiler().compile(end, str(root / "end.yaml"))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root / "root"), raise_on_error=True)
    arguments = {"workdir": str(root / "work"), "api_endpoint": address, "model": "m"}
    place = dict(zip(("project", "region"), PLACE, strict=True))
    components.load_component_from_file(str(root / "end.yaml"))(**arguments, **place)


def verdict(root: Path) -> str:
    (executed,) = (root / "root").rglob("compare-releases/executor_output.json")
    return str(json.loads(executed.read_text())["parameterValues"]["Output"])


def live(address: str) -> dict[str, int]:
    """Releases with traffic, and what they have of it."""
    endpoint = Vertex(*PLACE, address).endpoint("m")
    split = endpoint.get("trafficSplit", {})
    return {d["displayName"]: split[d["id"]] for d in endpoint["deployedModels"] if split.get(d["id"])}


@pytest.mark.parametrize(("right", "word", "versions"), [(True, "better", 2), (False, "worse", 1)])
def test_only_what_beats_the_live_release_is_registered_and_deployed(
    tiny_pair, tiny_release: Path, tmp_path: Path, address: str, right: bool, word: str, versions: int
) -> None:
    judged = Judgement.read(next((tiny_pair.workdir / "evaluations").iterdir()))
    champion = with_threshold(tiny_release, tmp_path / "champion", STOPS_ALL)
    registry = Registry(*PLACE, address)
    registry.deploy(champion, registry.register(champion, "m"), "m")
    (root := tmp_path / "run").mkdir()
    end_of_pipeline(evaluation(judged, tmp_path, right), tiny_release, root, address)
    assert verdict(root) == word
    vertex = Vertex(*PLACE, address)
    assert len(vertex.versions(vertex.model("m"))) == versions
    assert live(address) == {(tiny_release if right else champion).name: 100}
    assert bool(list((root / "root").rglob("register-version"))) is right, "the branch itself"
