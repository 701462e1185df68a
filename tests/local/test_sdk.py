"""The official SDK, unpatched, against the platform in its own process."""

import base64
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

from twophase.local.process import Address, down, up
from twophase.release.manifest import read


def wav(pcm: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, pcm, 16_000, format="WAV")
    return out.getvalue()


CLIP = {"audio_bytes": {"b64": base64.b64encode(wav(np.sin(np.arange(16_000) / 6))).decode()}}
IMAGE = "example.com/serve:latest"


@pytest.fixture
def sdk(platform: Address) -> Address:
    connect(platform)
    return platform


def connect(address: Address) -> None:
    aiplatform.init(
        project="p",
        location="us-central1",
        api_endpoint=address.url,
        api_transport="rest",
        credentials=AnonymousCredentials(),
        staging_bucket="gs://twophase",
    )


def upload(release: Path, **options: object) -> aiplatform.Model:
    return aiplatform.Model.upload(
        display_name="pair", artifact_uri=str(release), serving_container_image_uri=IMAGE, **options
    )


def test_versions_and_aliases(sdk: Address, releases: tuple[Path, Path]) -> None:
    first = upload(releases[0], labels={"stage": "prod"}, version_aliases=["champion"])
    assert (first.version_id, sorted(first.version_aliases)) == ("1", ["champion", "default"])
    second = upload(releases[1], parent_model=first.resource_name, is_default_version=False)
    assert (second.version_id, second.version_aliases) == ("2", [])

    registry = first.versioning_registry
    assert [v.version_id for v in registry.list_versions()] == ["2", "1"]
    registry.add_version_aliases(["champion", "default"], version="2")
    assert aiplatform.Model(f"{first.name}@champion").version_id == "2"
    assert aiplatform.Model(first.name).version_id == "2"
    assert not aiplatform.Model(f"{first.name}@1").version_aliases
    registry.remove_version_aliases(["champion"], version="2")
    with pytest.raises(exceptions.NotFound):
        aiplatform.Model(f"{first.name}@champion")
    with pytest.raises(exceptions.BadRequest, match="cannot be taken away"):
        registry.remove_version_aliases(["default"], version="2")

    registry.delete_version("1")
    assert [v.version_id for v in registry.list_versions()] == ["2"]
    with pytest.raises(exceptions.BadRequest, match="default version"):
        registry.delete_version("2")
    assert upload(releases[0], parent_model=first.resource_name).version_id == "3"
    assert [m.name for m in aiplatform.Model.list(filter='display_name="pair"')] == [first.name]
    assert aiplatform.Model.list(filter='display_name="other"') == []
    first.delete()
    assert aiplatform.Model.list() == []


def test_deploy_split_predict_undeploy_restart(sdk: Address, home: Path, releases: tuple[Path, Path]) -> None:
    ids = [read(r).id for r in releases]
    first = upload(releases[0])
    second = upload(releases[1], parent_model=first.resource_name)
    endpoint = aiplatform.Endpoint.create(display_name="pair")
    with pytest.raises(exceptions.BadRequest, match="no deployed model"):
        endpoint.predict([CLIP])
    endpoint.deploy(first, machine_type="n1-standard-4", traffic_percentage=100)
    answer = endpoint.predict([CLIP, CLIP], parameters={"release": ids[0]})
    assert [p["release"] for p in answer.predictions] == ids[:1] * 2
    assert answer.model_version_id == "1"
    assert answer.predictions[0]["confidence"] == max(answer.predictions[0]["probabilities"].values())

    endpoint.deploy(second, traffic_percentage=30)
    versions = Counter(endpoint.predict([CLIP]).model_version_id for _ in range(60))
    assert set(versions) == {"1", "2"}

    with pytest.raises(exceptions.BadRequest, match="is deployed at"):
        first.delete()
    by_version = {d.model_version_id: d.id for d in endpoint.list_models()}
    endpoint.update(traffic_split={by_version["1"]: 0, by_version["2"]: 100})
    assert down(home)
    again = up(home)
    assert again.port == sdk.port
    connect(again)
    endpoint = aiplatform.Endpoint(endpoint.resource_name)
    assert {endpoint.predict([CLIP]).model_version_id for _ in range(10)} == {"2"}

    endpoint.undeploy(by_version["1"])
    assert [d.model_version_id for d in endpoint.list_models()] == ["2"]
    endpoint.undeploy_all()
    endpoint.delete()
    assert aiplatform.Endpoint.list() == []
    first.delete()


def test_a_changed_release_is_refused(sdk: Address, releases: tuple[Path, Path], tmp_path: Path) -> None:
    changed = shutil.copytree(releases[0], tmp_path / "changed")
    (changed / "saved_model.pb").write_bytes(b"other")
    with pytest.raises(exceptions.BadRequest, match=r"saved_model\.pb was changed"):
        upload(changed)
    assert aiplatform.Model.list() == []


def test_what_is_not_built_says_so(sdk: Address) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="ListCustomJobs"):
        aiplatform.CustomJob.list()
