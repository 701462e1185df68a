"""The gateway behind one address: what docs/gateway.md says that devices may ask, and nothing else.

Every request below `/v1/` is signed by its device, and every answer is about that device alone: its name comes from the
proof, never from the request. What is refused for its key is logged with the reason, which the sender is not told.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from twophase.files import JSON
from twophase.gateway import answers, devices, field, intake, observed, proofs, reports
from twophase.gateway.asking import Asking
from twophase.gateway.classifier import Classifier
from twophase.gateway.intake import Intake, Quota
from twophase.gateway.observed import Metrics
from twophase.gateway.proofs import NotThisKey, Verifier
from twophase.gateway.published import published
from twophase.gateway.refused import Refused, later
from twophase.gateway.store import Store, note, words
from twophase.serving.asgi import JSON_TYPE, Receive, Scope, Send, header, read_body, respond
from twophase.serving.refusal import Refusal

UPLOADS = 64
"""Uploads at the same time; whoever comes then is told when to come back."""
BODY_BYTES = 1 << 20
SILENT_S = 60.0
"""How long a body may stand still,"""
UPLOAD_S = 600.0
"""and how long one request of an upload may take: what came is kept, so the next one goes on."""
WAIT_S = 30.0
"""The longest that a device can wait for answers in one request."""

_logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A whole response of JSON."""

    body: JSON
    headers: tuple[tuple[str, str], ...] = ()


class Gateway:
    """The ASGI program over one home folder, and the thread that asks the classifier. It belongs to one event loop."""

    def __init__(self, home: Path, store: Store, classifier: Classifier, quota: Quota) -> None:
        self._home, self._store, self._verifier = home, store, Verifier()
        self._intake = Intake(home, store, quota)
        self._uploading = 0
        self._news: dict[str, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        (home / "updates").mkdir(exist_ok=True)
        self._updates = StaticFiles(directory=home / "updates")
        self._asking = Asking(store, classifier, self._intake.path, home / "jobs", self._tell)
        self._promised = partial(published, home)
        self.metrics = Metrics(self._gauges)

    def close(self) -> None:
        """Let what is under way end."""
        self._asking.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._loop = asyncio.get_running_loop()
        started, route, code = time.perf_counter(), _route(scope["path"]), 200
        try:
            if route == "updates":
                return await self._update(scope, receive, send)
            answer = await self._answer(scope, receive)
            await self._respond(send, answer.body, 200, answer.headers)
        except Refused as refused:
            code = refused.code
            await self._respond(send, refused.to_json(), code, tuple(refused.headers.items()))
        except Refusal as refusal:
            code = refusal.code
            await self._respond(send, refusal.to_json(), code)
        except Exception as error:
            if isinstance(error, SQLAlchemyError):  # a full disk, a database that is away: nothing of this program's
                _logger.error("the database failed: %s", words(error))
            else:
                _logger.exception("a request failed")
            failed = later(503, "the gateway failed at this request; its log has the details")
            code = failed.code
            await self._respond(send, failed.to_json(), code, tuple(failed.headers.items()))
        finally:
            self.metrics.answered(route, code, time.perf_counter() - started)

    async def _respond(self, send: Send, body: JSON, code: int, headers: tuple[tuple[str, str], ...] = ()) -> None:
        named = ((name.lower().encode(), value.encode()) for name, value in headers)
        nonce = (b"dpop-nonce", self._verifier.nonce().encode())
        await respond(send, orjson.dumps(body), code, JSON_TYPE, nonce, *named)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        method, parts = scope["method"], scope["path"].split("/")[1:]
        match method, parts:
            case "GET" | "HEAD", ["healthz"]:
                return Answer({"status": "ok"})
            case "POST", ["v1", "enrol"]:
                return Answer(await self._enrol(scope, await _body(scope, receive)))
            case "PATCH", ["v1", "clips", number]:
                return await self._append(scope, receive, number)
            case ("POST", ["v1", "clips" | "answers"]) | ("GET", ["v1", "answers"]) | ("PUT", ["v1", "key" | "status"]):
                body = await _body(scope, receive)
                device, key = await self._device(scope, body)
                return Answer(await self._call(method, parts[1], device, key, scope, body))
        raise Refused(
            404, f"{method} {scope['path'][:100]}: devices cannot ask that here; docs/gateway.md has what they can"
        )

    async def _call(self, method: str, what: str, device: str, key: str, scope: Scope, body: bytes) -> JSON:
        if method == "GET":
            return {"answers": await self._wait(device, scope)}
        value = _json(body)
        match what:
            case "clips":
                clips = intake.parse(value)
                return {"clips": await self._intake.announce(device, clips, self._asking.front_end)}
            case "answers":
                await self._in_store(lambda c: answers.acknowledge(c, device, value))
                return {}
            case "key":
                return await self._replace_key(device, key, value)
            case _:
                report = reports.parse(value)
                halted = await self._in_store(lambda c: reports.report(c, device, report))
                figures = await self._in_store(lambda c: field.figures(c, self._promised, device))
                told = {"halted": halted, "field": [asdict(item) for item in figures]}
                return told if report.get("root", True) else {**told, "root": self._root()}

    async def _enrol(self, scope: Scope, body: bytes) -> JSON:
        proof = proofs.read(_header(scope, b"dpop"))
        if not proof.key:
            raise Refused(400, "DPoP: has no jwk; enrol with the public key in the proof's header")
        try:
            self._verifier.verify(proof, proof.key, "POST", _target(scope), body)
            value = _json(body)
            code = value.get("code") if isinstance(value, dict) else None
            if not isinstance(code, str):
                raise Refused(400, 'code: is missing; send {"code": "..."}')
            found = await self._in_store(lambda c: devices.enrol(c, code, proof.key))
        except NotThisKey as refused:
            await self._refuse_key("", refused)
            raise
        except devices.Unwelcome as refused:
            device, why = refused.device, refused.why
            await self._in_store(lambda c: note(c, "enrolment refused", device, why))
            raise
        return {**found, "root": self._root()}

    async def _replace_key(self, device: str, key: str, value: JSON) -> JSON:
        new = proofs.read(value.get("proof") if isinstance(value, dict) else None)
        self._verifier.claims(new, new.key, "PUT", "/v1/key")
        await self._in_store(lambda c: devices.replace_key(c, device, key, new.key))
        return {"device": device}

    async def _append(self, scope: Scope, receive: Receive, number: str) -> Answer:
        device, _ = await self._device(scope, None)
        offset = _header(scope, b"upload-offset") or ""
        if not number.isdecimal() or len(number) > 18 or not offset.isdecimal() or len(offset) > 18:
            raise Refused(400, "Upload-Offset: is no number of bytes, or the clip's number none")
        if self._uploading >= UPLOADS:
            raise later(429, f"{UPLOADS} uploads are under way; come back later")
        self._uploading += 1
        try:
            found, size = await self._intake.append(device, int(number), int(offset), _parts(receive))
        finally:
            self._uploading -= 1
        if found["state"] == "stored":
            self._asking.wake()
        return Answer(found, (("Upload-Offset", str(size)),))

    async def _wait(self, device: str, scope: Scope) -> list[JSON]:
        given = parse_qs(scope["query_string"].decode("latin-1"))
        wait_s, limit = _number(given, "wait", 0, WAIT_S), int(_number(given, "limit", 100, answers.FETCHED_AT_ONCE))
        news = self._news.setdefault(device, asyncio.Event())
        ends = time.monotonic() + wait_s
        while True:
            news.clear()
            found: list[JSON] = await self._in_store(lambda c: answers.fetch(c, device, limit))
            left_s = ends - time.monotonic()
            if found or left_s <= 0:
                return found
            try:
                await asyncio.wait_for(news.wait(), left_s)
            except TimeoutError:
                return []

    def _tell(self, names: set[str]) -> None:
        """Called in the asking thread: these devices have answers."""

        def tell() -> None:
            for name in names & self._news.keys():
                self._news[name].set()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(tell)

    async def _device(self, scope: Scope, body: bytes | None) -> tuple[str, str]:
        """Whose request it is, and the key that signed it. Raises `NotThisKey`, logged, unless it holds."""
        proof = proofs.read(_header(scope, b"dpop"))
        try:
            key = await self._in_store(lambda c: devices.key_of(c, proof.kid))
            self._verifier.verify(proof, key, scope["method"], _target(scope), body)
        except NotThisKey as refused:
            await self._refuse_key(proof.kid, refused)
            raise
        return proof.kid, key

    async def _refuse_key(self, device: str, refused: NotThisKey) -> None:
        self.metrics.refused_key()
        _logger.warning("refused the key of %r: %s", device[:100], refused.why)
        await self._in_store(lambda c: note(c, "key refused", device, refused.why))

    async def _update(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {**scope, "path": scope["path"].removeprefix("/updates"), "root_path": ""}
        try:
            response = await self._updates.get_response(self._updates.get_path(inner), inner)
        except HTTPException as error:
            raise Refused(error.status_code, f"{scope['path'][:200]}: there is no such file") from None
        await response(inner, receive, send)

    def _root(self) -> JSON:
        """The first root of the update repository, which devices trust from then on; None before it is published."""
        path = self._home / "updates" / "metadata" / "1.root.json"
        return path.read_text() if path.is_file() else None

    def _gauges(self) -> dict[str, float]:
        counts = self._store.do(observed.counts)
        up = 0.0 if self._asking.trouble else 1.0
        return {**counts, "classifier_up": up, "batch_jobs_made": float(self._asking.jobs_made)}

    async def _in_store(self, call: Any) -> Any:
        return await asyncio.wrap_future(self._store.submit(call))


async def _body(scope: Scope, receive: Receive) -> bytes:
    try:
        async with asyncio.timeout(SILENT_S):
            return await read_body(scope, receive, BODY_BYTES)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {SILENT_S:g} s") from None


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The body of an upload as it comes. Raises `Refused` 408 when the sender is gone, stands still, or drips."""
    ends, more = time.monotonic() + UPLOAD_S, True
    while more:
        try:
            message = await asyncio.wait_for(receive(), min(SILENT_S, ends - time.monotonic()))
        except TimeoutError:
            raise Refused(
                408, f"nothing came for {SILENT_S:g} s, or not all in {UPLOAD_S:g} s; what had come is kept"
            ) from None
        if message["type"] == "http.disconnect":
            raise Refused(408, "the connection closed; what had come is kept")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _route(path: str) -> str:
    """What a metric calls a path: names that nobody made must not become metrics."""
    first, *rest = path[1:].split("/")
    name = rest[0] if first == "v1" and rest else first
    return name if name in ("enrol", "key", "clips", "answers", "status", "updates", "healthz") else "other"


def _target(scope: Scope) -> str:
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")


def _header(scope: Scope, name: bytes) -> str | None:
    value = header(scope, name)
    return None if value is None else value.decode("latin-1")


def _json(body: bytes) -> JSON:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is no JSON ({error})") from None


def _number(given: dict[str, list[str]], name: str, default: float, most: float) -> float:
    text = given.get(name, [str(default)])[0]
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise Refused(400, f"{name}={text[:20]}: is no number from 0 to {most:g}")
    return value
