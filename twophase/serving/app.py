"""One release behind HTTP, in the words of every cloud at once.

| caller | health | predictions |
| --- | --- | --- |
| Vertex AI | `AIP_HEALTH_ROUTE` | `AIP_PREDICT_ROUTE` |
| SageMaker | `GET /ping` | `POST /invocations` |
| SageMaker, many models | `GET /ping`, `GET /models[/NAME]` | `POST /models/NAME/invoke` |
| Azure ML | `GET /`, `GET /healthz` | `POST /score` |
| KServe V1, TensorFlow Serving | `GET /v1/models/NAME[/versions/V]` | `POST /v1/models/NAME[/versions/V]:predict` |
| KServe V2, Open Inference | `GET /v2/health/ready`, `/v2/models/NAME[/ready]` | `POST /v2/models/NAME/infer` |

The body is JSON, one instance a line where its content type says lines, or one audio file when its content type is
`audio/*` or `application/octet-stream`. A server of one release answers to every NAME, and to the version that it is.
The program starts answering only once the release is loaded and has reproduced its golden windows, so that health is
readiness.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from twophase.serving import open_inference, tensorflow_serving
from twophase.serving.asgi import JSON_TYPE, Receive, Scope, Send, header, read_body, respond
from twophase.serving.instances import LIMITS, Limits
from twophase.serving.multi_model import MultiModel
from twophase.serving.predictor import Predictor
from twophase.serving.refusal import Refusal

LINES = b"application/jsonlines"
_LINES = (LINES, b"application/x-jsonlines", b"application/json-lines", b"application/x-ndjson")
_NAME = r"(?P<name>[^/:]+)(?:/versions/(?P<version>[^/:]+))?"
_V1 = re.compile(rf"/v1/models(?:/{_NAME}(?P<verb>:\w+|/metadata|/ready)?)?")
_V2 = re.compile(rf"/v2(?:/(?P<health>health/live|health/ready)|/models/{_NAME}(?P<verb>/infer|/ready)?)?")
_MODELS = re.compile(r"/models(?:/(?P<name>.+?)(?P<verb>/invoke)?)?")


@dataclass(frozen=True)
class Answer:
    """A response."""

    body: bytes
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = ()


_Handler = Callable[["re.Match[str]", Scope, Receive], Awaitable[Answer]]


class App:
    """The ASGI program around one predictor, or around many that come and go."""

    def __init__(
        self,
        served: Predictor | MultiModel,
        health_routes: tuple[str, ...] = ("/", "/healthz", "/ping"),
        predict_routes: tuple[str, ...] = ("/predict", "/invocations", "/score"),
        limits: Limits = LIMITS,
    ) -> None:
        self._served, self._limits = served, limits
        self._health, self._predict = frozenset(health_routes), frozenset(predict_routes)
        self._families: tuple[tuple[re.Pattern[str], _Handler], ...] = ((_V1, self._v1), (_V2, self._v2))
        if isinstance(served, MultiModel):
            self._families += ((_MODELS, self._models),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            answer = await self._answer(scope, receive)
        except Refusal as refusal:
            plain = scope["path"].startswith(("/v1/models", "/v2")) and scope["path"] not in self._predict
            await respond(send, orjson.dumps({"error": str(refusal)}) if plain else refusal.body(), refusal.code)
        else:
            await respond(send, answer.body, 200, answer.content_type, *answer.headers)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path = scope["path"]
        if path in self._predict:
            return await self._predictions(scope, receive, "")
        if path in self._health:
            _by(scope, "GET")
            return _json({"status": "alive"})
        for family, handler in self._families:
            if found := family.fullmatch(path):
                return await handler(found, scope, receive)
        raise Refusal(404, f"{path}: there is no such route; predictions are at {', '.join(sorted(self._predict))}")

    async def _predictions(self, scope: Scope, receive: Receive, name: str) -> Answer:
        body = await self._posted(scope, receive)
        predictor, content_type = await self._predictor(name), header(scope, b"content-type") or b""
        if content_type.startswith(_LINES):
            return await self._lines(predictor, body)
        predictions = await predictor.answer(body, content_type)
        if (header(scope, b"accept") or b"").startswith(_LINES):
            return Answer(b"".join(map(_line, predictions)), LINES)
        return _json({"predictions": predictions})

    async def _lines(self, predictor: Predictor, body: bytes) -> Answer:
        """A prediction or an error a line, in order: one bad clip does not cost a batch its others."""
        lines, answers, windows = body.split(b"\n"), list[bytes](), 0
        for line in lines:
            if not line.strip():
                continue
            await asyncio.sleep(0)  # as between the clips of any other request, so that others do not wait for all
            try:
                (prediction,) = await predictor.predict([orjson.loads(line)])
                windows += prediction["windows"]
                answers.append(_line(prediction))
            except orjson.JSONDecodeError as error:
                answers.append(_line(Refusal(400, f"is no JSON ({error}); a line holds one instance").to_json()))
            except Refusal as refusal:
                answers.append(_line(refusal.to_json()))
            if windows > self._limits.windows or len(answers) > self._limits.instances:
                raise Refusal(
                    413,
                    f"the body holds over {self._limits.windows} windows of sound or {self._limits.instances} lines; "
                    "send fewer lines a request",
                )
        return Answer(b"".join(answers), LINES)

    async def _v1(self, route: "re.Match[str]", scope: Scope, receive: Receive) -> Answer:
        name, verb = route["name"], route["verb"]
        if name is None:
            _by(scope, "GET")
            return _json({"models": self._names()})
        predictor = await self._predictor(name, route["version"])
        if verb == ":predict":
            body = await self._posted(scope, receive)
            if columns := tensorflow_serving.read_columns(body):
                return _json({"outputs": tensorflow_serving.write_columns(await predictor.predict(*columns))})
            return _json({"predictions": await predictor.answer(body, header(scope, b"content-type") or b"")})
        if verb and verb.startswith(":"):
            raise Refusal(501, f"{verb}: is not offered; :predict is")
        _by(scope, "GET")
        if verb == "/metadata":
            return _json(tensorflow_serving.metadata(name, predictor.id, len(predictor.labels)))
        return _json(tensorflow_serving.status(name, predictor.id))

    async def _v2(self, route: "re.Match[str]", scope: Scope, receive: Receive) -> Answer:
        name, verb = route["name"], route["verb"]
        if verb == "/infer":
            body = await self._posted(scope, receive)
            predictor = await self._predictor(name, route["version"])
            asked = open_inference.read(body, header(scope, b"inference-header-content-length"))
            predictions = await predictor.predict(asked.instances, asked.parameters)
            content, size = open_inference.write(asked, predictions, name, predictor.id)
            if size is None:
                return Answer(content)
            length = (b"inference-header-content-length", str(size).encode())
            return Answer(content, b"application/octet-stream", (length,))
        _by(scope, "GET")
        if name is not None:
            predictor = await self._predictor(name, route["version"])
            if verb == "/ready":
                return _json({"name": name, "ready": True})
            return _json(open_inference.metadata(name, predictor.id, len(predictor.labels)))
        if route["health"]:
            return _json({route["health"].removeprefix("health/"): True})
        return _json({"name": "twophase", "version": "2", "extensions": ["binary_tensor_data"]})

    async def _models(self, route: "re.Match[str]", scope: Scope, receive: Receive) -> Answer:
        served, name, method = self._served, route["name"], scope["method"]
        assert isinstance(served, MultiModel)
        if name is None and method == "GET":
            return _json({"models": [served.describe(n) for n in served.names()]})
        if name is None:
            body = await self._posted(scope, receive)
            try:
                return _json(await served.load(orjson.loads(body)))
            except orjson.JSONDecodeError as error:
                raise Refusal(400, f"the body is no JSON ({error})") from None
        if route["verb"]:
            return await self._predictions(scope, receive, name)
        if method == "DELETE":
            served.unload(name)
            return _json({})
        _by(scope, "GET")
        return _json(served.describe(name))

    async def _predictor(self, name: str, version: str | None = None) -> Predictor:
        """Who answers for a model of that name and version. Raises `Refusal` 404."""
        if isinstance(self._served, MultiModel):
            found = await self._served.predictor(name)
        else:
            found = self._served
        if version not in (None, found.id, tensorflow_serving.version_number(found.id)):
            raise Refusal(404, f"{name}: has no version {version}; {found.id} is served here")
        return found

    def _names(self) -> list[str]:
        return self._served.names() if isinstance(self._served, MultiModel) else [self._served.id]

    async def _posted(self, scope: Scope, receive: Receive) -> bytes:
        _by(scope, "POST")
        return await read_body(scope, receive, self._limits.body_bytes)


def _by(scope: Scope, method: str) -> None:
    """Refuse a request by another method; what may be read by GET may be read by HEAD."""
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise Refusal(405, f"{scope['method']} {scope['path']}: this is asked for by {method}")


def _json(value: Any) -> Answer:
    return Answer(orjson.dumps(value))


def _line(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
