"""The little of HTTP that both servers share, on bare ASGI: a bounded request body, a response in two messages.

A framework's request and response objects cost as much as the model does (docs/serving.md has the figures).
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from twophase.serving.refusal import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_TIMEOUT_S = 60.0
"""How long a sender may take over one request's body."""

JSON_TYPE = b"application/json"


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    return next((value for key, value in scope["headers"] if key == name), None)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises `Refusal` 413 past `limit` bytes, 408 when the sender is too slow or gone."""
    declared = header(scope, b"content-length")
    if declared is not None and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts, size = [body], len(body)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while message.get("more_body"):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(408, "the connection closed before the body was whole; send it again")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise Refusal(408, f"the body was not whole within {BODY_TIMEOUT_S:.0f} s; send it faster") from None
    return b"".join(parts)


async def respond(
    send: Send, body: bytes, code: int = 200, content_type: bytes = JSON_TYPE, *headers: tuple[bytes, bytes]
) -> None:
    """One whole response."""
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": code, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is over {limit} bytes; send fewer instances a request, or a batch prediction job")
