"""A Kubernetes API server with KServe on loopback: as much of both as an InferenceService's life needs.

Objects are kept as they are sent, merge patches are applied by RFC 7386, generations count changes of the spec. What
KServe's controller does in serverless mode is done to each change: a changed pod is a new revision, fetched from its
`STORAGE_URI` and run as our server; one that does not come up is `BlockedByFailedLoad`; traffic is split between the
newest revision and the last that had all of it. In raw mode a changed pod takes the place of the one before once it is
up, and a Deployment tells how far that is. An object may say only what KServe's own generated classes know.
"""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kserve
import yaml
from kubernetes import client as core

from tests.serving.loopback import serving
from twophase.errors import TwoPhaseError
from twophase.serving.app import App
from twophase.serving.fetch import fetch
from twophase.serving.predictor import Predictor
from twophase.targets.kserve import GROUP, PLURAL, VERSION


def checked(value: Any, kind: str) -> None:
    """Fail where an object says something that KServe's or Kubernetes' generated class of it does not know."""
    if kind.startswith("list["):
        for item in value:
            checked(item, kind[5:-1])
    elif known := getattr(kserve, kind, None) or getattr(core, kind, None):
        fields = {name: known.openapi_types[attribute] for attribute, name in known.attribute_map.items()}
        assert value.keys() <= fields.keys(), f"{kind} has no {value.keys() - fields.keys()}"
        for name, item in value.items():
            checked(item, fields[name])
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, (value, kind)
    elif kind == "dict(str, str)":
        assert all(isinstance(item, str) for item in value.values()), value


class Revision:
    """A pod of the predictor, as an ASGI program."""

    def __init__(self, name: str, pod: Any, folder: Path) -> None:
        self.name, self.pod, self.failure, self.app = name, pod, "", None
        environment = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        try:
            self.app = App(Predictor(fetch(environment["STORAGE_URI"], folder)))
        except TwoPhaseError as error:
            self.failure = str(error)


class Service:
    """An InferenceService, and what the controller has made of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self.revisions: list[Revision] = []
        self.rolled_out: Revision | None = None
        self.newest_share = 100
        self.url = self._address(stack, self._routed)
        self.latest_url = self._address(stack, lambda: self._ready()[-1])
        self.prev_url = self._address(stack, lambda: self.rolled_out)

    def _address(self, stack: ExitStack, choose: Any) -> str:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await choose().app(scope, receive, send)

        return str(stack.enter_context(serving(app)).base_url).rstrip("/")

    def _ready(self) -> list[Revision]:
        return [revision for revision in self.revisions if revision.app]

    def _routed(self) -> Any:
        newest = self._ready()[-1]
        return newest if random.uniform(0, 100) < self.newest_share else self.rolled_out

    def deployment(self, name: str) -> Any:
        """A raw predictor's Deployment: it keeps the old pod until the new one is up."""
        up = bool(self.revisions[-1].app)
        progressing = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
        if not up:
            why = f"ReplicaSet has timed out progressing: {self.revisions[-1].failure}"
            progressing |= {"status": "False", "reason": "ProgressDeadlineExceeded", "message": why}
        counts = {"replicas": 1 if up else 2, "updatedReplicas": 1, "availableReplicas": 1}
        pod = {"metadata": {}, "spec": {"containers": [{"name": "kserve-container"}]}}
        return {
            "metadata": {"name": name, "generation": len(self.revisions)},
            "spec": {"replicas": 1, "selector": {}, "template": pod},
            "status": {"observedGeneration": len(self.revisions), "conditions": [progressing], **counts},
        }

    def reconcile(self, spec: Any, raw: bool) -> Any:
        """What the status says once the controller is done."""
        pod = {key: value for key, value in spec["predictor"].items() if key != "canaryTrafficPercent"}
        if not self.revisions or self.revisions[-1].pod != pod:
            name = f"predictor-{len(self.revisions) + 1:05}"
            self.revisions.append(Revision(name, pod, self._folder))
        newest, canary = self.revisions[-1], spec["predictor"].get("canaryTrafficPercent", 100)
        if newest.app and (raw or canary == 100 or self.rolled_out is None):
            self.rolled_out, self.newest_share = newest, 100
        elif newest.app:
            self.newest_share = canary
        ready, blocked = self._ready(), bool(newest.failure)
        traffic = []
        if ready:
            traffic.append(_route(ready[-1], self.newest_share, "latest", self.latest_url))
        if raw:
            traffic = []
        elif self.rolled_out and ready[-1] is not self.rolled_out:
            traffic.append(_route(self.rolled_out, 100 - self.newest_share, "prev", self.prev_url))
        condition = {"type": "Ready", "status": "True" if self.rolled_out else "False"}
        if not self.rolled_out:
            condition["message"] = newest.failure
        model = {"transitionStatus": "BlockedByFailedLoad" if blocked else "UpToDate"}
        if blocked:
            model["lastFailureInfo"] = {"message": newest.failure}
        predictor = {"latestCreatedRevision": newest.name, "traffic": traffic}
        if ready:
            predictor["latestReadyRevision"] = ready[-1].name
        return {
            "conditions": [condition],
            "components": {"predictor": predictor},
            "modelStatus": model,
            "url": self.url,
        }


def _route(revision: Revision, percent: int, tag: str, url: str) -> Any:
    return {"revisionName": revision.name, "percent": percent, "tag": tag, "url": url}


class Cluster:
    """Objects by path, and the controller."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.objects: dict[str, Any] = {}
        self._services: dict[str, Service] = {}

    def handle(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return 409, {"message": f"{path} already exists"}
            return 201, self._keep(path, body, {"metadata": {"generation": 0}})
        if "/deployments/" in path:
            service = path.replace("/apis/apps/v1/", f"/apis/{GROUP}/{VERSION}/").replace(
                "/deployments/", f"/{PLURAL}/"
            )
            found = self._services.get(service.removesuffix("-predictor"))
            return (200, found.deployment(path.rpartition("/")[2])) if found else (404, {"message": "not found"})
        if path not in self.objects:
            return 404, {"message": f"{path} not found", "reason": "NotFound"}
        if method == "PATCH":
            return 200, self._keep(path, merged(self.objects[path], body), self.objects[path])
        if method == "DELETE":
            self._services.pop(path, None)
            return 200, self.objects.pop(path)
        return 200, self.objects[path]

    def _keep(self, path: str, value: Any, before: Any) -> Any:
        generation = before["metadata"]["generation"] + (value.get("spec") != before.get("spec"))
        value["metadata"]["generation"] = generation
        if "/inferenceservices/" in path:
            checked({k: v for k, v in value.items() if k != "status"}, "V1beta1InferenceService")
            if path not in self._services:
                self._services[path] = Service(self._folder, self._stack)
            raw = value["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] in ("RawDeployment", "Standard")
            status = self._services[path].reconcile(value["spec"], raw)
            value["status"] = status | {"observedGeneration": generation}
        self.objects[path] = value
        return value


def merged(value: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict) or not isinstance(value, dict):
        return patch
    kept = {key: item for key, item in value.items() if key not in patch}
    return kept | {key: merged(value.get(key, {}), item) for key, item in patch.items() if item is not None}


@contextmanager
def kubernetes(folder: Path) -> Iterator[tuple[Cluster, str]]:
    """A cluster, and the path of a kubeconfig that leads to it."""
    with ExitStack() as stack:
        cluster = Cluster(folder, stack)

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                code, answer = cluster.handle(self.command, self.path.partition("?")[0], body)
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "loopback",
            "contexts": [{"name": "loopback", "context": {"cluster": "loopback", "user": "nobody"}}],
            "clusters": [{"name": "loopback", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "nobody", "user": {}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        yield cluster, str(path)
