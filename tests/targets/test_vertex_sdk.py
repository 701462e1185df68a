"""Going live and not going live, by the official SDK against the platform on this machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twophase.local import process
from twophase.release import golden, manifest
from twophase.targets.rest import Vertex
from twophase.targets.traffic import CANARY_PERCENT, Traffic
from twophase.targets.vertex_sdk import Registry, SmokeTestFailed
from twophase.training.compare import against_champion
from twophase.training.judge import Judgement

PLACE = ("local", "us-central1")


@pytest.fixture
def address(tmp_path: Path):
    home = tmp_path / "home"
    yield process.up(home, 0).url
    process.down(home)


def another(release: Path, folder: Path, threshold: float) -> Path:
    """A release of the same models with another threshold, so of another id."""
    found = manifest.read(release)
    name = manifest.release_id(found.labels, found.computes, threshold)
    copy = Path(shutil.copytree(release, folder / name))
    path = copy / "assets.extra/release.json"
    value = json.loads(path.read_text())
    value["id"], value["operating_point"]["threshold"] = name, threshold
    path.write_text(json.dumps(value))
    return copy


def traffic(address: str, model: str = "m") -> dict[str, int]:
    """Share of the traffic by release id."""
    endpoint = Vertex(*PLACE, address).endpoint(model)
    split = endpoint.get("trafficSplit", {})
    return {d["displayName"]: split.get(d["id"], 0) for d in endpoint["deployedModels"]}


def test_two_versions_go_live_one_after_the_other(tiny_release: Path, address: str, tmp_path: Path) -> None:
    registry = Registry(*PLACE, address)
    assert registry.champion("m", tmp_path / "releases") is None
    first = registry.register(tiny_release, "m")
    assert registry.champion("m", tmp_path / "releases") is None, "registered is not live"
    registry.deploy(tiny_release, first, "m")
    assert traffic(address) == {tiny_release.name: 100}
    fetched = registry.champion("m", tmp_path / "releases")
    assert fetched == tmp_path / "releases" / tiny_release.name
    assert manifest.verify(fetched).id == tiny_release.name
    second = another(tiny_release, tmp_path, 0.123)
    version = registry.register(second, "m")
    assert version.endswith("@2")
    assert registry.register(second, "m") == version, "a release is registered once"
    registry.deploy(second, version, "m")
    assert traffic(address) == {tiny_release.name: 0, second.name: 100}, "the one before is ready for a rollback"
    assert "default" in Vertex(*PLACE, address).model("m")["versionAliases"]
    registry.deploy(second, version, "m")  # again: nothing to do
    assert traffic(address) == {tiny_release.name: 0, second.name: 100}
    pair = Traffic(Vertex(*PLACE, address), "m")
    assert [entry.alone for entry in pair.history()] == ["1", "2"]
    assert pair.rollback() == "1"
    assert registry.champion("m", tmp_path / "releases") == tmp_path / "releases" / tiny_release.name


def test_a_version_that_answers_wrongly_does_not_go_live(tiny_release: Path, address: str, tmp_path: Path) -> None:
    registry = Registry(*PLACE, address)
    registry.deploy(tiny_release, registry.register(tiny_release, "m"), "m")
    other = another(tiny_release, tmp_path, 0.5)
    version = registry.register(other, "m")
    with np.load(other / golden.GOLDEN) as file:
        arrays = dict(file)
    arrays["classifier"] = arrays["classifier"][:, ::-1]  # what the exporter expects is not what the endpoint says
    np.savez_compressed(other / golden.GOLDEN, **arrays)
    with pytest.raises(SmokeTestFailed, match="kept its traffic"):
        registry.deploy(other, version, "m")
    assert traffic(address) == {tiny_release.name: 100}


def test_a_deployment_that_was_cut_off_is_finished_by_the_next(
    tiny_release: Path, address: str, tmp_path: Path
) -> None:
    """The process died after the canary was deployed: it has a tenth of the traffic, and nobody tried it."""
    from google.cloud import aiplatform

    registry = Registry(*PLACE, address)
    registry.deploy(tiny_release, registry.register(tiny_release, "m"), "m")
    second = another(tiny_release, tmp_path, 0.5)
    version = registry.register(second, "m")
    aiplatform.Endpoint.list(filter='display_name="m"')[0].deploy(
        aiplatform.Model(version), deployed_model_display_name=second.name, traffic_percentage=CANARY_PERCENT
    )
    assert traffic(address) == {tiny_release.name: 90, second.name: 10}
    assert registry.champion("m", tmp_path / "releases").name == tiny_release.name
    registry.deploy(second, version, "m")
    assert traffic(address) == {tiny_release.name: 0, second.name: 100}


def test_a_version_that_was_deployed_twice_is_taken_away_once(tiny_release: Path, address: str, tmp_path: Path) -> None:
    from google.cloud import aiplatform

    registry = Registry(*PLACE, address)
    version = registry.register(tiny_release, "m")
    registry.deploy(tiny_release, version, "m")
    endpoint = aiplatform.Endpoint.list(filter='display_name="m"')[0]
    endpoint.deploy(aiplatform.Model(version), deployed_model_display_name="the double", traffic_percentage=0)
    assert traffic(address) == {tiny_release.name: 100, "the double": 0}
    registry.deploy(tiny_release, version, "m")
    assert traffic(address) == {tiny_release.name: 100}


def test_the_verdict_is_on_clips_that_the_champion_has_not_heard(tiny_pair, tiny_release: Path, tmp_path: Path) -> None:
    judged = Judgement.read(next((tiny_pair.workdir / "evaluations").iterdir()))
    challenger = another(tiny_release, tmp_path, judged.point.threshold + 1)
    assert against_champion(judged, challenger, None).name == "better"
    assert against_champion(judged, tiny_release, tiny_release).name == "not shown"
    assert against_champion(judged, challenger, tiny_release).name == "not shown"
    heard = tiny_release / "assets.extra/heard.csv"
    copy = Path(shutil.copytree(tiny_release, tmp_path / "copy"))
    lines = heard.read_text() + "".join(f"{c.sha256[:16]},x,train\n" for c in judged.test.clips)
    (copy / "assets.extra/heard.csv").write_text(lines)
    manifest.write(copy, replace(manifest.read(copy), digests=manifest.files_of(copy)))
    assert "has heard every test clip" in against_champion(judged, challenger, copy).words
