"""One release behind HTTP, in the words of every cloud at once.

| caller | health | predictions |
| --- | --- | --- |
| Vertex AI | `AIP_HEALTH_ROUTE` | `AIP_PREDICT_ROUTE` |
| SageMaker | `GET /ping` | `POST /invocations` |
| Azure ML | `GET /`, `GET /healthz` | `POST /score` |
| KServe, TensorFlow Serving | `GET /v1/models/NAME` | `POST /v1/models/NAME[/versions/V]:predict` |

The body is JSON, or one audio file when its content type is `audio/*` or `application/octet-stream`. The program starts
answering only once the release is loaded and has reproduced its golden windows, so that health is readiness.
"""

import re

import orjson

from twophase.serving.asgi import Receive, Scope, Send, header, read_body, respond
from twophase.serving.instances import LIMITS, Limits
from twophase.serving.predictor import Predictor
from twophase.serving.refusal import Refusal

_MODEL = re.compile(r"/v1/models/[^/:]+(?:/versions/[^/:]+)?(?P<verb>:predict|/ready)?")


class App:
    """The ASGI program around one predictor."""

    def __init__(
        self,
        predictor: Predictor,
        health_routes: tuple[str, ...] = ("/", "/healthz", "/ping"),
        predict_routes: tuple[str, ...] = ("/predict", "/invocations", "/score"),
        limits: Limits = LIMITS,
    ) -> None:
        self._predictor, self._limits = predictor, limits
        self._health, self._predict = frozenset(health_routes), frozenset(predict_routes)
        self._status = orjson.dumps(
            {"model_version_status": [{"version": predictor.id, "state": "AVAILABLE", "status": {"error_code": "OK"}}]}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await self._answer(scope, receive)
        except Refusal as refusal:
            await respond(send, refusal.body(), refusal.code)
        else:
            await respond(send, body)

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        path, method = scope["path"], scope["method"]
        named = None if path in self._predict else _MODEL.fullmatch(path)
        if path in self._predict or (named and named["verb"] == ":predict"):
            if method != "POST":
                raise Refusal(405, f"{method} {path}: predictions are asked for by POST")
            return await self._predictions(scope, await read_body(scope, receive, self._limits.body_bytes))
        if path in self._health or named:
            if method not in ("GET", "HEAD"):
                raise Refusal(405, f"{method} {path}: this route is read by GET")
            return self._status
        raise Refusal(404, f"{path}: there is no such route; predictions are at {', '.join(sorted(self._predict))}")

    async def _predictions(self, scope: Scope, body: bytes) -> bytes:
        predictions = await self._predictor.answer(body, header(scope, b"content-type") or b"")
        return orjson.dumps({"predictions": predictions})
