"""Both branches of the pipeline's end, seen in what they leave behind: what beats the live release goes live, else not.

The real steps and the real condition, compiled for this machine, on an evaluation whose answers are known: the
challenger is right about every clip, or wrong about every one, and the live release stops whatever it hears.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from kfp import compiler, components, dsl, local
from kfp.dsl import Dataset, Model

from pipelines import places
from pipelines.clients import Vertex as Jobs
from pipelines.refusals import RunEndedBadly
from pipelines.submission import Submission
from pipelines.two_phase import go_live_if_better
from tests.serving.standin import LABELS, make
from twophase.audio.clips import Clip
from twophase.files import digest, write_json
from twophase.local.process import Address
from twophase.release import heard, manifest
from twophase.release.manifest import NONE
from twophase.targets.rest import Vertex
from twophase.targets.vertex_sdk import Registry
from twophase.training import answers
from twophase.training.answers import Answers

PLACE = ("local", "us-central1")
STOPS_ALL = 1e6
"""A threshold that nothing reaches: such a release is right about what is unwanted, and wrong about everything else."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    """Eight test clips of every wanted label, and as many of another one."""
    folder, found = tmp_path_factory.mktemp("sounds"), []
    rng = np.random.default_rng(0)
    for i, label in enumerate((*LABELS, "Bark") * 8):
        path = folder / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, 16_000), 16_000)
        sha = digest(path)
        found.append(Clip(sha, str(path), path.name, label, sha, "test"))
    return tuple(found)


def stopping_all(release: Path, folder: Path) -> Path:
    """A release of the same models that lets nothing through, so of another id."""
    found = manifest.read(release)
    name = manifest.release_id(found.labels, found.computes, STOPS_ALL)
    copy = Path(shutil.copytree(release, folder / name))
    heard.write(copy, ())
    path = copy / "assets.extra/release.json"
    value = json.loads(path.read_text())
    value["id"], value["operating_point"]["threshold"] = name, STOPS_ALL
    value["digests"] = manifest.files_of(copy)
    path.write_text(json.dumps(value))
    return copy


def evaluation(clips: tuple[Clip, ...], folder: Path, right: bool) -> Path:
    """An evaluation on these clips in which every answer is right, or every one is wrong."""
    names = (*LABELS, NONE)
    wanted = np.array([c.label in LABELS for c in clips])
    truth = np.array([names.index(c.label) if c.label in LABELS else len(LABELS) for c in clips])
    named = np.where(wanted, truth, 0) if right else (truth + 1) % len(LABELS)
    given = Answers(
        clips,
        names,
        np.where(wanted == right, 1.0, -1.0).astype(np.float32),
        np.eye(len(names), dtype=np.float32)[named],
        np.ones(len(clips), np.int64),
    )
    for split in ("validation", "test"):
        answers.write(folder / f"{split}.jsonl", given)
    point = {"threshold": 0.0, "chosen_by": "test", "recall": 1.0, "stopped": 1.0, "escalation_rate": 0.5}
    write_json(folder / "judgement.json", {"point": point, "metrics": {}, "lineage": {}})
    return folder


def end_of_pipeline(evaluated: Path, release: Path, root: Path, address: str) -> tuple[Path, dict[str, str]]:
    """What `two_phase` ends with, compiled for this machine, and its arguments."""

    @dsl.pipeline(name="end")
    def end(workdir: str, project: str, region: str, api_endpoint: str, model: str) -> None:
        def given(folder: Path, kind: type) -> Any:
            return dsl.importer(artifact_uri=str(folder), artifact_class=kind, reimport=True).output

        named = {"project": project, "region": region, "api_endpoint": api_endpoint, "model": model}
        judged = given(evaluated, Dataset)
        go_live_if_better(places.local(), judged, judged, given(release, Model), workdir, named, "unused")

    compiler.Compiler().compile(end, str(root / "end.yaml"))
    place = dict(zip(("project", "region"), PLACE, strict=True))
    return root / "end.yaml", {"workdir": str(root / "work"), "api_endpoint": address, "model": root.name, **place}


def run_here(spec: Path, arguments: dict[str, str], root: Path) -> None:
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root / "root"), raise_on_error=True)
    components.load_component_from_file(str(spec))(**arguments)


def verdict(root: Path) -> str:
    (executed,) = (root / "root").rglob("compare-releases/executor_output.json")
    return str(json.loads(executed.read_text())["parameterValues"]["Output"])


def live(model: str, address: str) -> dict[str, int]:
    """Releases with traffic, and what they have of it."""
    endpoint = Vertex(*PLACE, address).endpoint(model)
    split = endpoint.get("trafficSplit", {})
    return {d["displayName"]: split[d["id"]] for d in endpoint["deployedModels"] if split.get(d["id"])}


@pytest.mark.parametrize(("right", "word", "versions"), [(True, "better", 2), (False, "worse", 1)])
def test_only_what_beats_the_live_release_is_registered_and_deployed(
    clips: tuple[Clip, ...], tmp_path: Path, platform: Address, right: bool, word: str, versions: int
) -> None:
    (root := tmp_path / word).mkdir()
    challenger = make(tmp_path / "challenger", seed=1)
    champion = stopping_all(challenger, tmp_path)
    registry = Registry(*PLACE, platform.url)
    registry.deploy(champion, registry.register(champion, word), word)
    run_here(*end_of_pipeline(evaluation(clips, tmp_path / "judged", right), challenger, root, platform.url), root)
    assert verdict(root) == word
    vertex = Vertex(*PLACE, platform.url)
    assert len(vertex.versions(vertex.model(word))) == versions
    assert live(word, platform.url) == {manifest.read(challenger if right else champion).id: 100}
    assert bool(list((root / "root").rglob("register-version"))) is right, "the branch itself"


def test_a_run_that_is_cancelled_while_a_canary_stands_there_leaves_all_traffic_to_one_version(
    clips: tuple[Clip, ...], tmp_path: Path, platform: Address, vertex: Jobs
) -> None:
    """The live one as a rule; the newcomer where it had been promoted just before."""
    (root := tmp_path / "cancelled").mkdir()
    challenger = make(tmp_path / "challenger", seed=1)
    champion = stopping_all(challenger, tmp_path)
    registry = Registry(*PLACE, platform.url)
    registry.deploy(champion, registry.register(champion, root.name), root.name)
    spec, arguments = end_of_pipeline(evaluation(clips, tmp_path / "judged", True), challenger, root, platform.url)
    name = vertex.submit(Submission(yaml.safe_load(spec.read_text()), "cancelled-end", arguments))
    while len(live(root.name, platform.url)) == 1:
        time.sleep(0.002)
    vertex.get("cancelled-end").cancel()
    with pytest.raises(RunEndedBadly, match="was cancelled"):
        vertex.wait(name)
    while len(left := live(root.name, platform.url)) > 1:  # its step takes the canary back
        time.sleep(0.02)
    assert left in ({manifest.read(release).id: 100} for release in (champion, challenger))
