"""The checked-in specs: fresh, accepted by Kubeflow's own message types, and alike but for what a place must change."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.compile import SPECS, compile_spec, spec_path
from pipelines.places import Machines, vertex

LIVE = "better"
"""The branch in which places differ: how a better release goes live."""


def spec(name: str) -> dict[str, Any]:
    return next(yaml.safe_load_all(spec_path(name).read_text("utf-8")))


def tasks(spec: dict[str, Any], dag: dict[str, Any] | None = None, path: str = "") -> Iterator[tuple[str, dict, dict]]:
    """Every task that runs something: its path without what only groups, the task, its executor."""
    for name, task in (dag or spec["root"]["dag"])["tasks"].items():
        component = spec["components"][task["componentRef"]["name"]]
        unseen = re.match("exit-handler|condition-branches", name)
        inside = path if unseen else f"{path}/{task['taskInfo']['name']}"
        if "dag" in component:
            yield from tasks(spec, component["dag"], inside)
        else:
            executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
            yield inside.lstrip("/"), task, executor


def graph(name: str) -> dict[str, dict[str, Any]]:
    """What each task of a spec is given and what it runs; the branch that goes live is left out."""
    found = {}
    for path, task, executor in tasks(spec(name)):
        if LIVE not in path and path != "end-of-run":
            container = executor["container"]
            found[path] = {
                "inputs": json.loads(_numberless(json.dumps(task["inputs"]))),
                "after": sorted(map(_numberless, task.get("dependentTasks", ()))),
                "runs": [container["image"], container.get("command"), container.get("args")],
            }
    return found


def _numberless(text: str) -> str:
    """Names without what kfp adds where a graph lies inside another: loops are counted on, inputs are passed on."""
    return re.sub(r"(for-loop|condition)-\d+", r"\1", text.replace("pipelinechannel--", ""))


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_is_fresh(name: str) -> None:
    assert spec_path(name).read_text("utf-8") == compile_spec(name), "run `make compile` and commit the result"


@pytest.mark.parametrize("name", SPECS)
def test_compiling_again_gives_the_same_bytes(name: str) -> None:
    assert compile_spec(name) == compile_spec(name)


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_is_a_pipeline_spec(name: str) -> None:
    parsed = json_format.ParseDict(spec(name), pipeline_spec_pb2.PipelineSpec())
    assert parsed.pipeline_info.name == name.split(".")[0].replace("_", "-")


@pytest.mark.parametrize("name", SPECS)
def test_no_path_of_one_machine_is_in_the_spec(name: str) -> None:
    text = spec_path(name).read_text("utf-8")
    assert "/home/" not in text


def test_kubeflow_differs_in_where_the_live_release_is_and_in_nothing_else() -> None:
    here, there = graph("two_phase.local"), graph("two_phase.kubeflow")
    assert here.keys() == there.keys()
    assert {path for path in here if here[path] != there[path]} == {"compare-releases"}
    assert [path for path, _, _ in tasks(spec("two_phase.kubeflow")) if LIVE in path] == [f"{LIVE}/deploy-version"]


def test_vertex_differs_in_what_training_runs_on_and_in_nothing_else() -> None:
    here, there = graph("two_phase.local"), graph("two_phase.vertex")
    assert here.keys() == there.keys()
    different = {path for path in here if here[path] != there[path]}
    assert different == {"train-gate", "train-classifier"}
    for path in different:
        assert here[path]["after"] == there[path]["after"]
        image, command, _ = here[path]["runs"]
        job = next(t for p, t, _ in tasks(spec("two_phase.vertex")) if p == path)
        component = spec("two_phase.vertex")["components"][job["componentRef"]["name"]]
        workers = component["inputDefinitions"]["parameters"]["worker_pool_specs"]["defaultValue"]
        assert workers[0]["container_spec"]["image_uri"] == image
        assert workers[0]["container_spec"]["command"] == command
        assert here[path]["inputs"]["artifacts"] == there[path]["inputs"]["artifacts"]


def test_what_changes_the_world_is_never_answered_from_cache() -> None:
    for name in SPECS:
        for path, task, executor in tasks(spec(name)):
            acts = LIVE in path or name.startswith("batch") or "compare-releases" in path or path == "end-of-run"
            if acts and "importer" not in executor and path != f"{LIVE}/container-model":
                assert not task["cachingOptions"].get("enableCache"), f"{name}: {path}"


def test_here_the_workdir_is_the_cache() -> None:
    assert not any(task["cachingOptions"].get("enableCache") for _, task, _ in tasks(spec("two_phase.local")))
    cached = {path for path, task, _ in tasks(spec("two_phase.vertex")) if task["cachingOptions"].get("enableCache")}
    assert {"generate-data", "train-gate", "train-classifier", "evaluate-pair", "export-release"} <= cached


def test_training_machines_are_chosen_when_a_spec_is_compiled() -> None:
    chosen = Machines("g2-standard-8", "NVIDIA_L4", 1, spot=True, service_account="trainer@p.iam.gserviceaccount.com")
    found = next(yaml.safe_load_all(compile_spec("two_phase.vertex", vertex(chosen))))
    given = found["components"]["comp-train-gate"]["inputDefinitions"]["parameters"]
    machine = given["worker_pool_specs"]["defaultValue"][0]["machine_spec"]
    assert machine == {"machine_type": "g2-standard-8", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1.0}
    assert given["strategy"]["defaultValue"] == "SPOT"
    assert given["service_account"]["defaultValue"] == chosen.service_account


def test_several_workers_fit_one_network_and_are_started_again_together() -> None:
    """Vertex AI's way: the first worker is a pool of its own. The executor is the same, which knows its place."""
    found = next(yaml.safe_load_all(compile_spec("two_phase.vertex", vertex(Machines(replicas=4)))))
    for name in ("train-gate", "train-classifier"):
        given = found["components"][f"comp-{name}"]["inputDefinitions"]["parameters"]
        first, others = given["worker_pool_specs"]["defaultValue"]
        assert (first["replica_count"], others["replica_count"]) == (1, 3)
        assert first["container_spec"] == others["container_spec"]
        assert given["restart_job_on_worker_restart"]["defaultValue"] is True


def test_a_version_goes_live_on_vertex_through_a_canary() -> None:
    found = {path: task for path, task, _ in tasks(spec("two_phase.vertex")) if LIVE in path}
    deploy = found[f"{LIVE}/model-deploy"]
    assert deploy["inputs"]["parameters"]["traffic_split"] == {
        "taskOutputParameter": {"producerTask": "find-live", "outputParameterKey": "traffic_split"}
    }
    assert "model-deploy" in found[f"{LIVE}/promote-version"]["dependentTasks"]
    assert {f"{LIVE}/first version/model-upload", f"{LIVE}/no endpoint/endpoint-create"} <= found.keys()


def test_specs_are_small_enough_to_be_sent() -> None:
    for name in SPECS:
        assert len(json.dumps(spec(name))) < 1_000_000, f"{name}: Vertex AI takes 1 MB"
