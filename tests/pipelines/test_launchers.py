"""Google's own launchers, as the compiled Vertex spec calls them, against the platform of this machine.

What the spec says of a task is resolved by kfp's own code and given to the launcher that ships with Google's
components, unchanged, through a proxy that answers for Google's addresses. Our steps around them run too: two releases
go live.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from google_cloud_pipeline_components.types import artifact_types
from kfp.dsl import Artifact, Model
from kfp.local import executor_input_utils, placeholder_utils
from kfp.pipeline_spec import pipeline_spec_pb2

from components.container_model import container_model
from components.deployment import promote_version
from components.live_version import find_live
from pipelines.compile import spec_path
from tests.pipelines.loopback_google import google
from tests.serving.standin import make
from twophase.local.process import Address
from twophase.targets.rest import Vertex
from twophase.targets.traffic import MACHINE

PROJECT, REGION, MODEL = "p", "us-central1", "launched"
SPEC = json_format.ParseDict(
    next(yaml.safe_load_all(spec_path("two_phase.vertex").read_text())), pipeline_spec_pb2.PipelineSpec()
)


def launch(component: str, root: Path, **inputs: Any) -> dict[str, Any]:
    """Run a container task of the spec as an engine would; return its output artifacts by name."""
    spec = SPEC.components[f"comp-{component}"]
    root.mkdir(parents=True)
    given = executor_input_utils.construct_executor_input(spec, inputs, str(root), block_input_artifact=False)
    executor = json_format.MessageToDict(SPEC.deployment_spec)["executors"][spec.executor_label]["container"]
    command = placeholder_utils.replace_placeholders(
        [*executor["command"], *executor["args"]],
        executor_input_utils.executor_input_to_dict(given, spec),
        "run",
        component,
        str(root),
        "1",
    )
    module = importlib.import_module(command[command.index("-m") + 1])
    module.main(command[command.index("-m") + 2 :])
    output = root / "executor_output.json"
    artifacts = json.loads(output.read_text())["artifacts"] if output.is_file() else {}
    return {name: found["artifacts"][0] for name, found in artifacts.items()}


def named(kind: type, artifact: dict[str, Any]) -> Any:
    return kind(name="a", uri=artifact["uri"], metadata=artifact["metadata"])


def go_live(release: Path, root: Path, platform: Address) -> dict[str, int]:
    """The `better` branch of the Vertex spec, task by task; the traffic after Google's part, by release."""
    place = {"project": PROJECT, "region": REGION, "api_endpoint": platform.url, "model": MODEL}
    shared = {"project": PROJECT, "location": REGION}
    live = find_live.python_func(**place)
    unmanaged = artifact_types.UnmanagedContainerModel(name="u", uri="", metadata={})
    labels = container_model.python_func(
        release=Model(uri=str(release)), image="us-docker.pkg.dev/p/twophase/server:1", unmanaged=unmanaged
    )
    upload = {"display_name": MODEL, "unmanaged_container_model": unmanaged, "labels": labels, **shared}
    if live.parent:
        parent = artifact_types.VertexModel(name="m", uri="", metadata={"resourceName": live.parent})
        made = launch("model-upload-2", root / "upload", parent_model=parent, **upload)
    else:
        made = launch("model-upload", root / "upload", **upload)
    version = named(artifact_types.VertexModel, made["model"])
    if live.endpoint:
        endpoint = artifact_types.VertexEndpoint(name="e", uri="", metadata={"resourceName": live.endpoint})
    else:
        found = launch("endpoint-create", root / "endpoint", display_name=MODEL, **shared)
        endpoint = named(artifact_types.VertexEndpoint, found["endpoint"])
    launch(
        "model-deploy",
        root / "deploy",
        model=version,
        endpoint=endpoint,
        deployed_model_display_name=MODEL,
        traffic_split=live.traffic_split,
        dedicated_resources_machine_type=MACHINE,
        dedicated_resources_min_replica_count=1,
        dedicated_resources_max_replica_count=1,
    )
    split = traffic(platform)
    promote_version.python_func(release=Model(uri=str(release)), version=version, **place)
    return split


def traffic(platform: Address) -> dict[str, int]:
    """Percent of the requests by release."""
    vertex = Vertex(PROJECT, REGION, platform.url)
    endpoint = vertex.endpoint(MODEL)
    releases = {
        d["id"]: vertex.get(f"{d['model']}@{d['modelVersionId']}")["labels"]["release"]
        for d in endpoint["deployedModels"]
    }
    return {releases[name]: share for name, share in endpoint["trafficSplit"].items() if share}


def test_two_releases_go_live_through_googles_launchers(
    platform: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(tmp_path / "a", seed=1), make(tmp_path / "b", seed=2)
    ids = [json.loads((r / "assets.extra/release.json").read_text())["id"] for r in (first, second)]
    with google(tmp_path, platform.port) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert go_live(first, tmp_path / "1", platform) == {ids[0]: 100}
        assert go_live(second, tmp_path / "2", platform) == {ids[0]: 90, ids[1]: 10}, "a canary first"
    assert traffic(platform) == {ids[1]: 100}
    assert (tmp_path / "hosts").read_text() == f"{REGION}-aiplatform.googleapis.com"
    vertex = Vertex(PROJECT, REGION, platform.url)
    versions = vertex.versions(vertex.model(MODEL))
    assert [v["labels"]["release"] for v in versions] == ids
    assert versions[1]["containerSpec"]["imageUri"] == "us-docker.pkg.dev/p/twophase/server:1"
    assert "default" in versions[1]["versionAliases"]


def test_a_prebuilt_serving_image_is_told_no_routes(tmp_path: Path) -> None:
    unmanaged = artifact_types.UnmanagedContainerModel(name="u", uri="", metadata={})
    image = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
    container_model.python_func(release=Model(uri=str(make(tmp_path / "r", 3))), image=image, unmanaged=unmanaged)
    assert unmanaged.metadata["containerSpec"] == {"imageUri": image}
    assert isinstance(unmanaged, Artifact)
