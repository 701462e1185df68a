"""A run before it is asked for: a compiled spec with its arguments, checked against the spec's own types.

Its id is what makes it one run: whoever asks for the same id again is told that it is there (`clients.py`).
"""

import copy
import json
import secrets
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.compile import compile_spec, read_spec
from pipelines.places import USUAL, Machines, vertex
from twophase.audio import sources
from twophase.errors import UsageError
from twophase.files import digest_of, refuse_locked
from twophase.local.pipeline import checked
from twophase.targets.target import SERVER_IMAGE


@dataclass(frozen=True)
class Submission:
    """A run before it is asked for. `root` is where its outputs go, a `gs://` place in Google's cloud."""

    spec: dict[str, Any]
    job_id: str
    arguments: dict[str, Any]
    root: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    service_account: str = ""
    network: str = ""
    encryption_key: str = ""
    experiment: str = ""

    def __post_init__(self) -> None:
        """Check the arguments. Raises `UsageError` naming the first that the spec does not take."""
        checked(self.spec, self.arguments)

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.spec["pipelineInfo"]["name"])


def _vertex_spec(image: str, machines: Machines) -> dict[str, Any]:
    """The spec of `compiled/` with its steps in `image`; compiled anew where its training runs on other machines."""
    name = "two_phase.vertex"
    other = machines != USUAL
    return _with_image(yaml.safe_load(compile_spec(name, vertex(machines))) if other else read_spec(name), image)


def _with_image(spec: dict[str, Any], image: str) -> dict[str, Any]:
    """A spec with its steps in `image`, in the one that it names where that is empty."""
    from components import IMAGE

    return dict(json.loads(json.dumps(spec).replace(IMAGE, image or IMAGE)))


def data_state(data: str) -> tuple[str, int]:
    """A digest of what lies at a folder, a URL or one file of it, by names and stamps; and how many files there are.

    Nothing is read but the listing: another digest means that there may be new clips. Raises `sources.Unreachable`,
    also where nothing lies.
    """
    if not data:
        return "", 0
    one = data.endswith((".csv", ".tar"))
    found = list(sources.listing(data.rpartition("/")[0] if one else data))
    if not found or (one and data not in (file.location for file in found)):
        raise sources.Unreachable(data, "nothing lies there; give a place that holds clips", gone=True)
    return digest_of([[file.name, file.stamp] for file in found]), len(found)


def for_machine(arguments: dict[str, Any], workdir: Path, project: str, region: str, api_endpoint: str) -> Submission:
    """A run of `two_phase.local` on the platform of this machine.

    Raises `TwoPhaseError` while a `twophase run` is at the workdir; for runs of its own the platform waits.
    """
    refuse_locked(workdir, "this workdir")  # by which the run's first step would be refused
    place = {"workdir": str(workdir), "project": project, "region": region, "api_endpoint": api_endpoint}
    given = {**_with_digest(arguments), **place}
    return Submission(read_spec("two_phase.local"), new_id(), given, labels=_labels(given))


def for_vertex(
    arguments: dict[str, Any],
    bucket: str,
    image: str,
    project: str,
    region: str,
    machines: Machines = USUAL,
    server_image: str = "",
    **given: Any,
) -> Submission:
    """A run of `two_phase.vertex` in Google's cloud. Raises `UsageError` for what Vertex AI could not reach.

    Account, network and key of `machines` are the whole run's. `server_image` serves the classifier: ours, from beside
    the trainer's, where it is empty. `given` are more fields of the submission. Steps share no disk: what they hand on
    lies below `bucket`, and so do the packs of images, which a later run finds again.
    """
    at = in_bucket(bucket)
    _need_reachable(arguments)
    if "." not in image.partition("/")[0]:
        raise UsageError(
            f"--image {image or '(none)'}: Vertex AI cannot pull it; push the trainer with `twophase containers push` "
            "and give its name, such as us-central1-docker.pkg.dev/PROJECT/twophase/trainer:0.1.0"
        )
    serving = server_image or f"{image.rpartition('/')[0]}/{SERVER_IMAGE.rpartition('/')[2]}"
    place = {"project": project, "region": region, "store": f"gs://{at}/images", "server_image": serving}
    told = {**_with_digest(arguments), **place}
    labels = {**_labels(told), **given.pop("labels", {})}
    return Submission(
        _vertex_spec(image, machines),
        new_id(),
        told,
        root=f"gs://{at}/runs",
        labels=labels,
        service_account=machines.service_account,
        network=machines.network,
        encryption_key=machines.encryption_key,
        **given,
    )


def for_kubeflow(
    arguments: dict[str, Any], bucket: str, image: str, namespace: str, server_image: str = "", **given: Any
) -> Submission:
    """A run of `two_phase.kubeflow`; below `bucket`, a URL, lie its outputs, images and the releases KServe reads."""
    _need_reachable(arguments)
    if not sources.is_url(bucket):
        raise UsageError(f"--bucket {bucket or '(none)'}: s3://BUCKET, gs://BUCKET and the like are accepted")
    at = f"{bucket.rstrip('/')}/two-phase"
    place = {"store": f"{at}/images", "releases": f"{at}/releases", "namespace": namespace}
    told = {**_with_digest(arguments), **place, **({"server_image": server_image} if server_image else {})}
    spec = _with_image(read_spec("two_phase.kubeflow"), image)
    return Submission(spec, new_id(), told, root=f"{at}/runs", **given)


def to_repeat(submission: Submission) -> Submission:
    """The same for a schedule: clips are listed anew each time, since `data_digest` is that of today."""
    spec = copy.deepcopy(submission.spec)
    for part in (spec["root"], *spec["components"].values()):
        for task in part.get("dag", {}).get("tasks", {}).values():
            if task["taskInfo"]["name"] == "generate-data":
                task["cachingOptions"] = {}
    return replace(submission, spec=spec)


def in_bucket(bucket: str) -> str:
    """`NAME/two-phase` of `gs://NAME`. Raises `UsageError` for anything else."""
    name = bucket.removeprefix("gs://").rstrip("/")
    if not bucket.startswith("gs://") or not name:
        raise UsageError(f"--bucket {bucket or '(none)'}: gs://BUCKET is accepted; outputs and images go there")
    return f"{name}/two-phase"


def new_id() -> str:
    """An id for a run that a person asks for: when, and what tells it from another's of the same second."""
    return f"{time.strftime('two-phase-%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _with_digest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the digest of the data: as it lies there now, where the caller has not looked before."""
    if "data_digest" in arguments:
        return arguments
    return {**arguments, "data_digest": data_state(arguments.get("data", ""))[0]}


def _labels(arguments: dict[str, Any]) -> dict[str, str]:
    return {"data": arguments["data_digest"][:40] or "rendered"}


def _need_reachable(arguments: dict[str, Any]) -> None:
    data, weights = arguments.get("data", ""), arguments.get("weights", "")
    if data and not sources.is_url(data):
        raise UsageError(f"--data {data}: lies on this machine; copy it to a bucket and give gs://BUCKET/FOLDER")
    if weights not in ("", "random", "imagenet"):
        raise UsageError(f"--weights {weights}: lies on this machine, where no step of that run is; give imagenet")
