"""Where a pipeline runs, as a choice made when it is compiled: what differs between places, and nothing else.

A pipeline function draws the graph that all places share and asks its `Place` for the rest: what a training step runs
on, how a better release goes live, how a batch is predicted, what is tried again and what may be answered from cache.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from components import kserve
from components.batch import find_version, predict_batch
from components.compare_releases import compare_releases
from components.container_model import container_model
from components.deployment import deploy_version, promote_version
from components.end_of_run import end_of_run
from components.live_version import find_live
from components.registration import register_version
from twophase.errors import UsageError
from twophase.targets.traffic import MACHINE
from twophase.training.distributed import share
from twophase.training.train import BATCH

Named = dict[str, Any]
"""The arguments that name a model: project, region, api_endpoint, model; on a cluster namespace, releases, model."""


@dataclass(frozen=True)
class Machines:
    """What training runs on in Vertex AI. Taken when a pipeline is compiled: so are Google's components."""

    machine_type: str = "n1-standard-8"
    accelerator_type: str = ""
    """Such as `NVIDIA_TESLA_T4`; empty for none."""
    accelerator_count: int = 1
    """On one machine all fit a network together."""
    replicas: int = 1
    """Machines that fit one network together, each with one accelerator at most."""
    spot: bool = False
    service_account: str = ""
    network: str = ""
    encryption_key: str = ""

    def __post_init__(self) -> None:
        share(BATCH, self.replicas)
        if self.accelerator_count > 1 and not self.accelerator_type:
            raise UsageError(
                f"--accelerator-count {self.accelerator_count}: of what? Give --accelerator, such as NVIDIA_L4"
            )
        if self.replicas > 1 and self.accelerator_count > 1:
            raise UsageError(
                f"{self.replicas} machines with {self.accelerator_count} accelerators each: a machine of several uses "
                "one; ask for one each, or for one machine"
            )


USUAL = Machines()
"""What the checked-in specs were compiled with."""


@dataclass(frozen=True)
class Place:
    """What one place does in its own way."""

    training: Callable[[Any, Named], Any]
    """A training component as this place runs it: (component, named)."""
    compare: Callable[[Named, dict[str, Any]], Any]
    """Compare a release with the live one: (named, what is compared)."""
    go_live: Callable[[Any, Named, Any], None]
    """Register and deploy a release: (release, named, server image)."""
    predict: Callable[[Any, Any, Named, Any], None]
    """Predict a batch: (source, destination, named, machine type)."""
    end: Callable[[Named], Any] | None
    """In a cloud, where nobody sees it, how a run's end is reported: (named)."""

    @property
    def in_cloud(self) -> bool:
        """Whether steps run in containers of an engine that has a cache and several machines."""
        return self.end is not None

    def keep(self, task: Any) -> Any:
        """A step whose answer holds as long as its inputs are the same.

        In a cloud the engine's cache skips it. On one machine the workdir does that by content, which is finer, and
        heeds what was deleted there since.
        """
        return task.set_caching_options(self.in_cloud)

    def insist(self, task: Any) -> Any:
        """A step to keep, and to try again in a cloud: buckets refuse for a moment, spot machines are taken away."""
        self.keep(task)
        return task.set_retry(num_retries=2, backoff_duration="10s", backoff_factor=2.0) if self.in_cloud else task

    def ask(self, task: Any) -> Any:
        """A step that looks at the world or changes it: never answered from cache."""
        return task.set_caching_options(False)

    def guard(self, named: Named) -> AbstractContextManager[Any]:
        """What a run is wrapped in: in a cloud its end is reported, however it comes; here the caller sees it."""
        return dsl.ExitHandler(self.ask(self.end(named)), name="run") if self.end else contextlib.nullcontext()

    def sized(self, task: Any, cpu: str, memory: str) -> Any:
        """Ask for this much of a machine, where there are several to choose from."""
        return task.set_cpu_limit(cpu).set_memory_limit(memory) if self.in_cloud else task


def local() -> Place:
    """Every step on this machine; the model is registered and deployed at `api_endpoint`."""
    return Place(_as_it_is, _compare, _go_live, _predict, end=None)


def kubeflow() -> Place:
    """Kubeflow Pipelines, with KServe as the place where releases go live."""
    return Place(_as_it_is, _kserve_compare, _kserve_go_live, _predict, _end)


def vertex(machines: Machines = USUAL) -> Place:
    """Vertex AI Pipelines, with Google's components for training jobs, upload, endpoint, deployment and batches."""

    def training(component: Any, named: Named) -> Any:
        from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

        job = create_custom_training_job_from_component(
            component,
            machine_type=machines.machine_type,
            accelerator_type=machines.accelerator_type,
            accelerator_count=machines.accelerator_count,
            replica_count=machines.replicas,
            strategy="SPOT" if machines.spot else "STANDARD",
            restart_job_on_worker_restart=machines.spot or machines.replicas > 1,  # none goes on without the others
            service_account=machines.service_account,
            network=machines.network,
            encryption_spec_key_name=machines.encryption_key,
        )
        return functools.partial(job, project=named["project"], location=named["region"])

    return Place(training, _compare, _google_go_live, _google_predict, _vertex_end)


PLACES: dict[str, Callable[[], Place]] = {"local": local, "vertex": vertex, "kubeflow": kubeflow}


_VERTEX = ("project", "region", "api_endpoint", "model")
_CLUSTER = ("namespace", "releases", "model")


def _of(named: Named, names: tuple[str, ...]) -> Named:
    return {name: named[name] for name in names}


def _as_it_is(component: Any, named: Named) -> Any:
    return component


def _end(named: Named) -> Any:
    return end_of_run(project="", region="", api_endpoint="", model=named["model"])


def _vertex_end(named: Named) -> Any:
    return end_of_run(**_of(named, _VERTEX))


def _compare(named: Named, compared: dict[str, Any]) -> Any:
    return compare_releases(**compared, **_of(named, _VERTEX))


def _kserve_compare(named: Named, compared: dict[str, Any]) -> Any:
    return kserve.compare_releases(**compared, **_of(named, _CLUSTER))


def _kserve_go_live(release: Any, named: Named, server_image: Any) -> None:
    kserve.deploy_version(release=release, image=server_image, **_of(named, _CLUSTER)).set_caching_options(False)


def _go_live(release: Any, named: Named, server_image: Any) -> None:
    place = _of(named, _VERTEX)
    version = register_version(release=release, **place).set_caching_options(False)
    deploy_version(release=release, version=version.output, **place).set_caching_options(False)


def _predict(source: Any, destination: Any, named: Named, machine_type: Any) -> None:
    predict_batch(source=source, destination=destination, **named).set_caching_options(False)


def _google_go_live(release: Any, named: Named, server_image: Any) -> None:
    """Upload, endpoint and canary by Google's components; the try and the promotion by ours, as everywhere."""
    from google_cloud_pipeline_components.types import artifact_types
    from google_cloud_pipeline_components.v1.endpoint import EndpointCreateOp, ModelDeployOp
    from google_cloud_pipeline_components.v1.model import ModelUploadOp

    address = f"https://{named['region']}-aiplatform.googleapis.com/v1/"
    place = _of(named, _VERTEX)
    live = find_live(**place).set_caching_options(False)
    container = container_model(release=release, image=server_image)
    shared = {"project": named["project"], "location": named["region"]}
    model = {
        "display_name": named["model"],
        "unmanaged_container_model": container.outputs["unmanaged"],
        "labels": container.outputs["Output"],
        **shared,
    }
    with dsl.If(live.outputs["parent"] == "", name="first version"):
        first = ModelUploadOp(**model).set_caching_options(False)
    with dsl.Else(name="next version"):
        parent = dsl.importer(
            artifact_uri=address + str(live.outputs["parent"]),
            artifact_class=artifact_types.VertexModel,
            metadata={"resourceName": live.outputs["parent"]},
            reimport=True,
        )
        further = ModelUploadOp(parent_model=parent.output, **model).set_caching_options(False)
    version = dsl.OneOf(first.outputs["model"], further.outputs["model"])
    with dsl.If(live.outputs["endpoint"] == "", name="no endpoint"):
        made = EndpointCreateOp(display_name=named["model"], **shared).set_caching_options(False)
    with dsl.Else(name="an endpoint"):
        known = dsl.importer(
            artifact_uri=address + str(live.outputs["endpoint"]),
            artifact_class=artifact_types.VertexEndpoint,
            metadata={"resourceName": live.outputs["endpoint"]},
            reimport=True,
        )
    canary = ModelDeployOp(
        model=version,
        endpoint=dsl.OneOf(made.outputs["endpoint"], known.output),
        deployed_model_display_name=named["model"],
        traffic_split=live.outputs["traffic_split"],
        dedicated_resources_machine_type=MACHINE,
        dedicated_resources_min_replica_count=1,
        dedicated_resources_max_replica_count=1,
    ).set_caching_options(False)
    promote_version(release=release, version=version, **place).set_caching_options(False).after(canary)


def _google_predict(source: Any, destination: Any, named: Named, machine_type: Any) -> None:
    from google_cloud_pipeline_components.v1.batch_predict_job import ModelBatchPredictOp
    from google_cloud_pipeline_components.v1.model import ModelGetOp

    shared = {"project": named["project"], "location": named["region"]}
    name = find_version(**named).set_caching_options(False)
    version = ModelGetOp(model_name=name.output, **shared).set_caching_options(False)
    ModelBatchPredictOp(
        job_display_name=f"{named['model']}-batch",
        model=version.outputs["model"],
        instances_format="jsonl",
        predictions_format="jsonl",
        gcs_source_uris=[source],
        gcs_destination_output_uri_prefix=destination,
        machine_type=machine_type,
        starting_replica_count=1,
        max_replica_count=1,
        **shared,
    ).set_caching_options(False)
