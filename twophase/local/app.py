"""The platform behind one address: Vertex AI v1, its predictions, and the little of Cloud Storage beside it.

Two planes. Predictions are answered in the event loop, from memory, and never wait for a disk. Everything else runs in
one control thread, one request after another, so that a change is a transaction without a lock in sight.
"""

import asyncio
import hmac
import logging
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import orjson

from twophase import __version__
from twophase.errors import TwoPhaseError
from twophase.files import JSON, disk_error
from twophase.local import ml
from twophase.local.api import methods, request_of, route
from twophase.local.artifacts import Artifacts
from twophase.local.buckets import Buckets, Elsewhere
from twophase.local.copied import copy
from twophase.local.endpoints import Endpoints
from twophase.local.jobs import BatchJobs
from twophase.local.live import Answers, Live, Target
from twophase.local.ml import OldPlatform
from twophase.local.models import Models
from twophase.local.observed import AccessLog, Metrics
from twophase.local.operations import Operations
from twophase.local.pipelines import Pipelines
from twophase.local.resources import now
from twophase.local.storage import Storage
from twophase.local.store import Store
from twophase.serving.asgi import JSON_TYPE, Receive, Scope, Send, header, read_body, respond
from twophase.serving.instances import LIMITS, Limits
from twophase.serving.refusal import Refusal

UPLOAD_BYTES = 256 << 20
"""Largest body of one storage request; the official client sends larger files in parts."""

_PREDICT = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+/endpoints/[^/:]+):(predict|rawPredict|streamRawPredict)")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Answer(NamedTuple):
    """A whole response."""

    body: bytes
    code: int = 200
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Platform:
    """The ASGI program over one home folder. The caller holds the folder's lock."""

    def __init__(
        self,
        home: Path,
        buckets: Mapping[str, Path] | None = None,
        limits: Limits = LIMITS,
        token: str | None = None,
    ) -> None:
        """Open a home and bring its endpoints back; `token`, where given, has to come with every request."""
        self._limits, self._token = limits, token
        self._store = Store(home / "platform.sqlite")
        folders = self._buckets = Buckets(home / "buckets", buckets)
        self._copies = home / "copies"
        shutil.rmtree(self._copies, ignore_errors=True)  # what a crash left
        self._copies.mkdir()
        artifacts = self._artifacts = Artifacts(home / "artifacts")
        self._live = Live(artifacts)
        models = Models(self._store, artifacts, folders)
        self._storage = Storage(folders, home / "uploads")
        self._control = ThreadPoolExecutor(1, "control")
        self._jobs = BatchJobs(self._store, models, artifacts, folders, home / "batch", self._control.submit)
        endpoints = Endpoints(self._store, models, self._live)
        self._pipelines = Pipelines(self._store, folders, home / "pipelines", self._control.submit)
        services = (models, endpoints, self._jobs, self._pipelines, Operations(self._store))
        self._methods = {
            name: method for service in services for name in dir(service) if callable(method := getattr(service, name))
        }
        self._old = OldPlatform(self._store, artifacts, folders, self._jobs, self._live)
        self._metrics = Metrics()
        self._log = AccessLog(home / "access.log", self._control.submit)
        methods()  # the routing table, before the first request asks for it

    def close(self) -> None:
        """Let the change under way end, then release the files."""
        self._pipelines.close()
        self._jobs.close()
        self._log.flush()
        self._control.shutdown()
        self._store.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        posted = scope["method"] == "POST"
        predict = posted and (_PREDICT.fullmatch(scope["path"]) or ml.PREDICT.fullmatch(scope["path"]))
        target: Target | None = None
        try:
            self._authenticate(scope)
            if predict:
                target, predictor = self._live.choose(predict[1])
                answer = await self._predict(predict[1], predict[2], target, predictor, scope, receive)
            else:
                answer = await self._other(scope, receive)
        except Refusal as refusal:
            answer = Answer(refusal.body(), refusal.code)
        self._observe(scope, predict[1] if predict else None, target, answer.code, time.perf_counter() - started)
        await respond(send, answer.body, answer.code, answer.content_type, *answer.headers)

    async def _other(self, scope: Scope, receive: Receive) -> Answer:
        path, verb = scope["path"], scope["method"]
        if path == "/healthz":
            return Answer(orjson.dumps({"status": "ok", "twophase": __version__}))
        if path == "/metrics":
            return Answer(self._metrics.text(), content_type=b"text/plain; version=0.0.4; charset=utf-8")
        if path == "/twophase/gc" and verb == "POST":
            return Answer(orjson.dumps(await self._in_control(self._collect)))
        if "/storage/v1/b" in path:
            return await self._object(scope, receive)
        body = await read_body(scope, receive, self._limits.body_bytes)

        def call() -> JSON:
            return self._call(verb, path, scope["query_string"], body)

        try:
            found = await self._in_control(call)
        except Elsewhere as elsewhere:
            found = await self._with_copy(elsewhere, call)
        return Answer(orjson.dumps(found))

    async def _with_copy(self, elsewhere: Elsewhere, call: Callable[[], JSON]) -> JSON:
        """Copy in what a request names in another bucket, beside the control thread, and have it answered again."""

        def again(aside: Path) -> JSON:
            with self._buckets.standing_in(elsewhere.uri, aside):
                return call()

        try:
            with tempfile.TemporaryDirectory(dir=self._copies) as folder:
                await asyncio.to_thread(copy, elsewhere, Path(folder))
                return await self._in_control(lambda: again(Path(folder)))
        except OSError as error:
            raise Refusal(507, str(disk_error(self._copies, error))) from None

    def _authenticate(self, scope: Scope) -> None:
        if header(scope, b"origin") is not None:  # what is sent to loopback in somebody's name by a page in a browser
            raise Refusal(403, "this platform is not for web pages: requests with the header Origin are refused")
        given = header(scope, b"authorization") or b""
        if self._token and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise Refusal(401, "this platform wants its token: send Authorization: Bearer TOKEN")

    async def _predict(
        self, endpoint: str, how: str, target: Target, predictor: Answers, scope: Scope, receive: Receive
    ) -> Answer:
        body = await read_body(scope, receive, self._limits.body_bytes)
        raw = how in ("rawPredict", "streamRawPredict")
        content_type = header(scope, b"content-type") if raw else None
        answer: JSON = {"predictions": await predictor.answer(body, content_type or b"")}
        if not raw:
            answer |= {
                "deployedModelId": target.deployed_model_id,
                "model": target.model,
                "modelDisplayName": target.display_name,
                "modelVersionId": target.version,
            }
        fields = (
            (b"x-vertex-ai-endpoint-id", endpoint.rpartition("/")[2].encode()),
            (b"x-vertex-ai-deployed-model-id", target.deployed_model_id.encode()),
        )
        return Answer(orjson.dumps(answer), headers=fields)

    async def _object(self, scope: Scope, receive: Receive) -> Answer:
        body = await read_body(scope, receive, UPLOAD_BYTES)
        headers = dict(scope["headers"])
        base = f"{scope['scheme']}://{headers.get(b'host', b'localhost').decode('latin-1')}"
        path = scope["raw_path"].decode("latin-1")
        code, content, fields = await self._in_control(
            lambda: self._storage.answer(scope["method"], path, scope["query_string"], headers, body, base)
        )
        content_type = next((value for name, value in fields if name == b"content-type"), JSON_TYPE)
        return Answer(content, code, content_type, tuple(f for f in fields if f[0] != b"content-type"))

    def _observe(self, scope: Scope, endpoint: str | None, target: Target | None, code: int, seconds: float) -> None:
        model, version = (target.model, target.version) if target else ("", "")
        if endpoint:
            known = endpoint if code not in (401, 403, 404) else ""  # names that nobody made must not become metrics
            self._metrics.predicted(known, model, version, code, seconds)
        else:
            self._metrics.answered(scope["method"], code)
        entry = {"time": now(), "method": scope["method"], "path": scope["path"], "code": code}
        answered_by = {"model": model, "version": version} if target else {}
        self._log.add(**entry, ms=round(1e3 * seconds, 3), **answered_by)

    def _collect(self) -> JSON:
        """Delete the artifacts that no version, and no job under way, needs; what is deployed is a version's."""
        rows = self._store.all("SELECT DISTINCT artifact FROM version WHERE artifact IS NOT NULL")
        needed = {row["artifact"] for row in rows} | self._jobs.artifacts_in_use() | self._old.artifacts_in_use()
        garbage = sorted(self._artifacts.keys() - needed)
        for key in garbage:
            self._artifacts.remove(key)
        return {"removed": garbage, "kept": len(needed)}

    def _call(self, verb: str, path: str, query: bytes, body: bytes) -> JSON:
        if ml.PATH.fullmatch(path):
            return self._old.answer(verb, path, query, body)
        method, names = route(verb, path)
        call = self._methods.get(re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
        if call is None:
            raise Refusal(501, f"{method.name}: this method of the Vertex AI API is not built here")
        return call(request_of(method, names, query, body))

    async def _in_control(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._control, call)
        except Refusal:
            raise
        except TwoPhaseError as error:
            raise Refusal(400, str(error), "FAILED_PRECONDITION") from None
        except (sqlite3.OperationalError, OSError) as error:
            raise Refusal(
                507, f"the platform's folder cannot be written ({error}); free some room and try again"
            ) from None
        except Exception:
            _log.exception("a request failed")
            raise Refusal(500, "the platform failed at this request; its log has the details") from None
