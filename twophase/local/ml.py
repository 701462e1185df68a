"""The old AI Platform Prediction API v1 (`ml.googleapis.com`), which Google shut down in January 2025.

Enough of it that `gcloud ai-platform models|versions|predict|jobs` does what the books of its years say. Models have
named versions; the first version is the default until another is set. A version answers from memory as soon as it is
made. Reference: cloud.google.com/ai-platform/prediction/docs/reference/rest (archived), and gcloud's own client.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import orjson

from twophase.files import JSON
from twophase.local.artifacts import Artifacts
from twophase.local.buckets import Buckets
from twophase.local.jobs import BatchJobs
from twophase.local.live import Live, Target
from twophase.local.resources import etag, failed, missing, new_id, now, page, page_start
from twophase.local.store import Store, parent_of
from twophase.serving.refusal import Refusal

PATH = re.compile(r"/v1/projects/[^/]+/(?:models|jobs|operations)(?:[/:].*)?")
"""What belongs to this API: Vertex's paths have a location in between."""

PREDICT = re.compile(r"/v1/(projects/[^/]+/models/[^/:]+(?:/versions/[^/:]+)?):(predict)")

_MODEL, _VERSION, _JOB, _OPERATION = "ml.model", "ml.version", "ml.job", "ml.operation"
_NAME = re.compile(r"[a-zA-Z]\w{0,127}", re.ASCII)
_MODEL_FIELDS = {
    "name",
    "description",
    "regions",
    "onlinePredictionLogging",
    "onlinePredictionConsoleLogging",
    "labels",
    "etag",
}
_VERSION_FIELDS = {
    "name",
    "description",
    "isDefault",
    "deploymentUri",
    "runtimeVersion",
    "machineType",
    "framework",
    "pythonVersion",
    "labels",
    "etag",
    "autoScaling",
    "manualScaling",
    "serviceAccount",
    "acceleratorConfig",
    "requestLoggingConfig",
}
_INPUT_FIELDS = {
    "modelName",
    "versionName",
    "uri",
    "dataFormat",
    "outputDataFormat",
    "inputPaths",
    "outputPath",
    "maxWorkerCount",
    "region",
    "runtimeVersion",
    "batchSize",
    "signatureName",
    "accelerator",
}
_KINDS: dict[str, type] = {
    **dict.fromkeys(("regions", "inputPaths"), list),
    **dict.fromkeys(("onlinePredictionLogging", "onlinePredictionConsoleLogging", "isDefault"), bool),
    **dict.fromkeys(("labels", "autoScaling", "manualScaling", "acceleratorConfig", "requestLoggingConfig"), dict),
    **dict.fromkeys(("predictionInput", "accelerator"), dict),
}
"""The fields that are no strings; int64 fields are strings in proto-JSON."""
_FORMATS = {"JSON": "jsonl", "TEXT": "jsonl"}
_STATES = {
    "JOB_STATE_PENDING": "QUEUED",
    "JOB_STATE_RUNNING": "RUNNING",
    "JOB_STATE_SUCCEEDED": "SUCCEEDED",
    "JOB_STATE_FAILED": "FAILED",
    "JOB_STATE_CANCELLED": "CANCELLED",
}


class OldPlatform:
    """The routes of the old API. Use it from the control thread."""

    def __init__(self, store: Store, artifacts: Artifacts, buckets: Buckets, jobs: BatchJobs, live: Live) -> None:
        self._store, self._artifacts, self._buckets, self._jobs, self._live = store, artifacts, buckets, jobs, live
        for version in store.resources(_VERSION):
            live.restore(version["artifact"], version["name"])
            self._route(version)
        for model in store.resources(_MODEL):
            self._route_default(model["name"])

    def answer(self, verb: str, path: str, query: bytes, body: bytes) -> JSON:
        """Answer one request. Raises `Refusal`."""
        name, _, action = path.removeprefix("/v1/").partition(":")
        parts = name.split("/")
        kinds = "/".join(parts[::2])
        parent = "/".join(parts[:2])
        asked = dict(parse_qsl(query.decode("latin-1")))
        routes: dict[tuple[str, str, str], Callable[[], JSON]] = {
            ("POST", "projects/models", ""): lambda: self._create_model(parent, _object(body)),
            ("GET", "projects/models", ""): lambda: (
                self._list(_MODEL, parent, "models", asked) if len(parts) == 3 else self._model(name)
            ),
            ("DELETE", "projects/models", ""): lambda: self._delete_model(name),
            ("POST", "projects/models/versions", ""): lambda: self._create_version("/".join(parts[:4]), _object(body)),
            ("GET", "projects/models/versions", ""): lambda: (
                self._list(_VERSION, "/".join(parts[:4]), "versions", asked) if len(parts) == 5 else self._version(name)
            ),
            ("DELETE", "projects/models/versions", ""): lambda: self._delete_version(name),
            ("POST", "projects/models/versions", "setDefault"): lambda: self._set_default(name),
            ("POST", "projects/jobs", ""): lambda: self._create_job(parent, _object(body)),
            ("GET", "projects/jobs", ""): lambda: (
                self._list(_JOB, parent, "jobs", asked) if len(parts) == 3 else self._job(self._jobs.read(_JOB, name))
            ),
            ("POST", "projects/jobs", "cancel"): lambda: self._jobs.cancel(_JOB, name),
            ("GET", "projects/operations", ""): lambda: (
                self._list(_OPERATION, parent, "operations", asked) if len(parts) == 3 else self._get(_OPERATION, name)
            ),
        }
        route = routes.get((verb, kinds, action))
        if route is None:
            raise Refusal(501, f"{verb} {path}: this method of the old AI Platform API is not built here")
        return route()

    def artifacts_in_use(self) -> set[str]:
        """The artifacts of this API's versions."""
        return {version["artifact"] for version in self._store.resources(_VERSION)}

    def _create_model(self, parent: str, given: JSON) -> JSON:
        _check_fields(given, _MODEL_FIELDS, "model")
        name = f"{parent}/models/{_check_name(given)}"
        if self._store.get(_MODEL, name):
            raise Refusal(409, f"Field: model.name Error: A model with the same name already exists: {name}")
        body = {"regions": ["us-central1"], **given, "name": name, "createTime": now()}
        with self._store.transaction():
            self._store.put(_MODEL, etag(body))
        self._route_default(name)
        return self._model(name)

    def _model(self, name: str) -> JSON:
        model = {k: v for k, v in self._get(_MODEL, name).items() if k not in ("createTime", "default")}
        default = self._get(_MODEL, name).get("default")
        return {**model, "defaultVersion": self._version(default)} if default else model

    def _delete_model(self, name: str) -> JSON:
        self._get(_MODEL, name)
        if self._store.resources(_VERSION, name):
            raise failed(f"{name}: cannot be deleted while it has versions; delete its versions first")
        with self._store.transaction():
            self._store.delete(_MODEL, name)
            operation = self._done(name, "DELETE_MODEL", {}, "google.protobuf.Empty")
        self._live.forget(name)
        return operation

    def _create_version(self, model: str, given: JSON) -> JSON:
        found = self._get(_MODEL, model)
        _check_fields(given, _VERSION_FIELDS, "version")
        name = f"{model}/versions/{_check_name(given)}"
        if self._store.get(_VERSION, name):
            raise Refusal(409, f"Field: version.name Error: A version with the same name already exists: {name}")
        uri = given.get("deploymentUri", "")
        if not uri:
            raise Refusal(
                400, "Field: version.deploymentUri Error: is missing; give the folder of a model, gs://BUCKET/PATH"
            )
        artifact = self._artifacts.add(self._buckets.model(uri), uri)
        self._live.load(artifact)
        body = {
            "machineType": "mls1-c1-m2",
            "framework": "TENSORFLOW",
            **{k: v for k, v in given.items() if k != "isDefault"},
            "name": name,
            "createTime": now(),
            "state": "READY",
            "artifact": artifact,
        }
        with self._store.transaction():
            self._store.put(_VERSION, etag(body))
            if not found.get("default"):
                self._store.put(_MODEL, etag({**found, "default": name}))
            operation = self._done(name, "CREATE_VERSION", _shown(body), "google.cloud.ml.v1.Version")
        self._route(body)
        self._route_default(model)
        return operation

    def _version(self, name: str) -> JSON:
        body = self._get(_VERSION, name)
        is_default = self._get(_MODEL, parent_of(name)).get("default") == name
        return _shown(body) | ({"isDefault": True} if is_default else {})

    def _delete_version(self, name: str) -> JSON:
        body, model = self._get(_VERSION, name), self._get(_MODEL, parent_of(name))
        others = [v for v in self._store.resources(_VERSION, model["name"]) if v["name"] != name]
        if model.get("default") == name and others:
            raise failed(f"{name}: is the default version; set another as default first")
        with self._store.transaction():
            self._store.delete(_VERSION, name)
            if model.get("default") == name:
                self._store.put(_MODEL, etag({k: v for k, v in model.items() if k != "default"}))
            operation = self._done(body["name"], "DELETE_VERSION", {}, "google.protobuf.Empty")
        self._live.forget(name)
        self._route_default(model["name"])
        return operation

    def _set_default(self, name: str) -> JSON:
        self._get(_VERSION, name)
        model = self._get(_MODEL, parent_of(name))
        with self._store.transaction():
            self._store.put(_MODEL, etag({**model, "default": name}))
        self._route_default(model["name"])
        return self._version(name)

    def _create_job(self, parent: str, given: JSON) -> JSON:
        _check_fields(given, {"jobId", "predictionInput", "labels", "etag"}, "job")
        asked = given.get("predictionInput")
        if not isinstance(asked, dict):
            raise Refusal(501, "projects.jobs.create: only prediction jobs are built here; give predictionInput")
        _check_fields(asked, _INPUT_FIELDS, "job.predictionInput")
        identity = given.get("jobId", "")
        if not _NAME.fullmatch(identity):
            raise Refusal(400, f"Field: job.jobId Error: {identity!r}; a letter, then up to 127 letters, digits and _")
        if asked.get("dataFormat") not in _FORMATS:
            raise Refusal(
                400,
                f"Field: dataFormat Error: {asked.get('dataFormat')}; JSON and TEXT, one instance a line, are accepted",
            )
        for field, only in (("outputDataFormat", "JSON"), ("signatureName", "serving_default")):
            if asked.get(field, only) != only:
                raise Refusal(501, f"Field: {field} Error: {asked[field]} is not built here; leave it out for {only}")
        if asked.get("uri"):
            artifact = self._artifacts.add(self._buckets.model(asked["uri"]), asked["uri"])
        else:
            version = asked.get("versionName") or self._get(_MODEL, asked.get("modelName", "")).get("default")
            if not version:
                raise failed(f"{asked['modelName']}: has no version; create one, or name a version or a uri")
            artifact = self._get(_VERSION, version)["artifact"]
        body = {
            "name": f"{parent}/jobs/{identity}",
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": asked.get("inputPaths", [])}},
            "outputInfo": {"gcsOutputDirectory": asked.get("outputPath", "").rstrip("/")},
            "job": given,
        }
        return self._job(self._jobs.enqueue(_JOB, body, artifact))

    def _job(self, body: JSON) -> JSON:
        stats = body.get("completionStats", {})
        counts = {"predictionCount": stats.get("successfulCount"), "errorCount": stats.get("failedCount")}
        output = {"outputPath": body["outputInfo"]["gcsOutputDirectory"]} | {k: v for k, v in counts.items() if v}
        times = {name: body[name] for name in ("createTime", "startTime", "endTime") if name in body}
        error = {"errorMessage": body["error"]["message"]} if "error" in body else {}
        return etag({**body["job"], **times, **error, "state": _STATES[body["state"]], "predictionOutput": output})

    def _list(self, kind: str, parent: str, field: str, asked: dict[str, str]) -> JSON:
        shown = {_MODEL: self._model, _VERSION: self._version}
        request = {"pageSize": asked.get("pageSize", "0"), "pageToken": asked.get("pageToken", "")}
        if asked.get("filter"):
            raise Refusal(501, "filter: is not built here for the old API; list without it")
        page_start(request)
        if kind == _VERSION:
            self._get(_MODEL, parent)
        items = sorted(self._store.resources(kind, parent), key=lambda b: str(b["name"]))
        if kind == _JOB:
            items.sort(key=lambda b: str(b["createTime"]), reverse=True)
            return page(items, request, field, lambda b: self._job(self._jobs.read(_JOB, b["name"])))
        return page(items, request, field, lambda b: shown[kind](b["name"]) if kind in shown else b)

    def _get(self, kind: str, name: str) -> JSON:
        body = self._store.get(kind, name)
        if body is None:
            raise missing(name)
        return body

    def _route(self, version: JSON) -> None:
        target = _target(version)
        self._live.route(version["name"], [target], {target.deployed_model_id: 100})

    def _route_default(self, model: str) -> None:
        default = self._get(_MODEL, model).get("default")
        targets = [_target(self._get(_VERSION, default))] if default else []
        self._live.route(model, targets, {target.deployed_model_id: 100 for target in targets})

    def _done(self, of: str, kind: str, response: JSON, message: str) -> JSON:
        project, identity, time = "/".join(of.split("/")[:2]), f"{kind.lower()}_{new_id()}", now()
        operation = {
            "name": f"{project}/operations/{identity}",
            "createTime": time,
            "metadata": {
                "@type": "type.googleapis.com/google.cloud.ml.v1.OperationMetadata",
                "createTime": time,
                "endTime": time,
                "operationType": kind,
                "modelName": "/".join(of.split("/")[:4]),
            },
            "done": True,
            "response": {"@type": f"type.googleapis.com/{message}", **response},
        }
        self._store.put(_OPERATION, operation)
        return {k: v for k, v in operation.items() if k != "createTime"}


def _target(version: JSON) -> Target:
    identity = version["name"].rpartition("/")[2]
    return Target(identity, version["artifact"], parent_of(version["name"]), identity, "")


def _shown(version: JSON) -> JSON:
    return {k: v for k, v in version.items() if k != "artifact"}


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is no JSON ({error}); send one object") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is no JSON object; send one object")
    return value


def _check_fields(given: JSON, known: set[str], what: str) -> None:
    for name, value in given.items():
        if name not in known:
            raise Refusal(400, f"{what}: has the unknown field {name!r}; known are {', '.join(sorted(known))}")
        kind = _KINDS.get(name, str)
        if not isinstance(value, kind) or (
            isinstance(value, list) and not all(isinstance(item, str) for item in value)
        ):
            raise Refusal(400, f"Field: {what}.{name} Error: is a {type(value).__name__}, not a {kind.__name__}")


def _check_name(given: JSON) -> str:
    name = given.get("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refusal(400, f"Field: name Error: {name!r} is no name; a letter, then up to 127 letters, digits and _")
    return name
