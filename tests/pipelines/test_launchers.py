"""Google's own launchers, as the compiled Vertex spec calls them, against the platform of this machine.

What the spec says of a task is resolved by kfp's own code and given to the launcher that ships with Google's
components, unchanged, through a proxy that answers for Google's addresses. Our steps around them run too: two releases
go live.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.cloud.aiplatform_v1 import types
from google.protobuf import json_format
from google_cloud_pipeline_components.types import artifact_types
from kfp.dsl import Artifact, Dataset, Model
from kfp.local import executor_input_utils, placeholder_utils
from kfp.pipeline_spec import pipeline_spec_pb2

from components import IMAGE
from components.container_model import container_model
from components.deployment import promote_version
from components.live_version import find_live
from pipelines import places
from pipelines.compile import compile_spec, spec_path
from pipelines.places import Machines
from tests.pipelines.loopback_google import google
from tests.serving.standin import make
from twophase.local.process import Address
from twophase.targets.rest import Vertex
from twophase.targets.traffic import MACHINE

PROJECT, REGION, MODEL = "p", "us-central1", "launched"


def parsed(text: str) -> pipeline_spec_pb2.PipelineSpec:
    return json_format.ParseDict(next(yaml.safe_load_all(text)), pipeline_spec_pb2.PipelineSpec())


def read(name: str) -> pipeline_spec_pb2.PipelineSpec:
    return parsed(spec_path(name).read_text())


SPEC = read("two_phase.vertex")


def resolved(component: str, root: Path, whole: pipeline_spec_pb2.PipelineSpec = SPEC, **inputs: Any) -> list[str]:
    """The command of a container task of a spec, as an engine resolves it."""
    spec = whole.components[f"comp-{component}"]
    root.mkdir(parents=True)
    given = executor_input_utils.construct_executor_input(spec, inputs, str(root), block_input_artifact=False)
    executor = json_format.MessageToDict(whole.deployment_spec)["executors"][spec.executor_label]["container"]
    told = executor_input_utils.executor_input_to_dict(given, spec)
    command = placeholder_utils.replace_placeholders(
        [*executor["command"], *executor["args"]], told, "run", component, str(root), "1"
    )
    # What only Vertex AI does: put a task's input into a custom job's, and write whole numbers as such.
    escaped = json.dumps(json.dumps(told))[1:-1]
    filled = [part.replace("{{$.json_escape[1]}}", escaped) for part in command]
    return [re.sub(r"(?<=[ :]\d)(\d*)\.0(?=[,}\]])", r"\1", part) for part in filled]


def launch(component: str, root: Path, **inputs: Any) -> dict[str, Any]:
    """Run a container task of the spec as an engine would; return its output artifacts by name."""
    command = resolved(component, root, **inputs)
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


class Jobs(grpc.GenericRpcHandler):
    """Vertex AI's job service as far as launchers need it: every job that is made has succeeded, and is kept."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        verb, kind = re.fullmatch(r".*JobService/(Create|Get)(\w+)", call.method).groups()  # type: ignore[union-attr]

        def answer(data: bytes, _: Any) -> bytes:
            if verb == "Create":
                request = getattr(types, f"Create{kind}Request").deserialize(data)
                self.made.append(request)
            name = f"projects/{PROJECT}/locations/{REGION}/{kind[0].lower()}{kind[1:]}s/1"
            return bytes(getattr(types, kind).serialize({"name": name, "state": "JOB_STATE_SUCCEEDED"}))

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def jobs(tmp_path: Path):
    """The job service, and how to run a command that means Google's."""
    service, server = Jobs(), grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with google(tmp_path, port) as environment:

        def run(command: list[str]) -> None:
            env = {**os.environ, **environment}
            done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]

        yield service, run
    server.stop(None)


def test_training_is_asked_for_as_a_custom_job_of_so_many_workers(jobs: Any, tmp_path: Path) -> None:
    service, run = jobs
    images = Dataset(name="images", uri="gs://b/images", metadata={"digest": "d"})
    given = {"images": images, "workdir": "/tmp/two-phase", "quick": True, "seed": 3}
    none = {"persistent_resource_id": ""}  # kfp knows no placeholder for it, which is Vertex AI's own
    spec = parsed(compile_spec("two_phase.vertex", places.vertex(Machines(replicas=3))))
    run(resolved("train-gate", tmp_path / "job", spec, project=PROJECT, location=REGION, **none, **given))
    (request,) = service.made
    assert request.parent == f"projects/{PROJECT}/locations/{REGION}"
    job = request.custom_job.job_spec
    assert job.scheduling.restart_job_on_worker_restart
    assert [pool.replica_count for pool in job.worker_pool_specs] == [1, 2]
    for pool in job.worker_pool_specs:
        assert pool.machine_spec.machine_type == Machines.machine_type
        assert pool.container_spec.image_uri == IMAGE
        arguments = list(pool.container_spec.args)
        told = json.loads(arguments[arguments.index("--executor_input") + 1])
        assert told["inputs"]["artifacts"]["images"]["artifacts"][0]["uri"] == "gs://b/images"
        assert told["inputs"]["parameterValues"]["seed"] == 3
        assert "gate" in told["outputs"]["artifacts"]
        assert arguments[arguments.index("--function_to_execute") + 1] == "train_gate"


def test_a_batch_is_asked_for_as_a_batch_prediction_job(jobs: Any, tmp_path: Path) -> None:
    service, run = jobs
    version = artifact_types.VertexModel(
        name="m", uri="", metadata={"resourceName": "projects/p/locations/r/models/1@2"}
    )
    command = resolved(
        "model-batch-predict",
        tmp_path / "job",
        read("batch_prediction.vertex"),
        job_display_name="b",
        model=version,
        instances_format="jsonl",
        predictions_format="jsonl",
        gcs_source_uris=["gs://b/in.jsonl"],
        gcs_destination_output_uri_prefix="gs://b/out",
        machine_type=MACHINE,
        starting_replica_count=1,
        max_replica_count=1,
        project=PROJECT,
        location=REGION,
    )
    run(command)
    (request,) = service.made
    job = request.batch_prediction_job
    assert job.model == "projects/p/locations/r/models/1@2"
    assert list(job.input_config.gcs_source.uris) == ["gs://b/in.jsonl"]
    assert job.output_config.gcs_destination.output_uri_prefix == "gs://b/out"
    assert job.dedicated_resources.machine_spec.machine_type == MACHINE
