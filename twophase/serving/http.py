"""HTTP/1.1 for both servers, as uvicorn's protocol: whole requests in, whole responses out, every wait bounded.

uvicorn keeps processes, signals and draining; what it does for each request (a cycle, an event, a task before the body
is there, a timer) costs a fifth of what the model does (docs/serving.md), so that part is done here. A body of up to
`EAGER_BYTES` is gathered before the ASGI program is called, a larger one is streamed to it while it comes. Requests of
one connection are answered in order, one at a time, and its reading pauses while more of them wait.

A client that sends nothing loses its connection after `IDLE_S`; one that does not finish what it began is answered 408
after `REQUEST_S`; one that does not read its answers is cut off after as long. What is no HTTP is answered 400, a head
of over `HEAD_BYTES` 431, both in Google's error shape.
"""

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from twophase.serving.asgi import JSON_TYPE
from twophase.serving.refusal import Refusal

EAGER_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
IDLE_S = 75.0
"""Longer than the 60 s for which load balancers and clients keep a connection that they mean to use again."""
REQUEST_S = 60.0

_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_STATUS[499] = b"HTTP/1.1 499 Client Closed Request\r\n"  # Cloud Storage's word for an upload that was cancelled
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """One client's connection; uvicorn makes it (`uvicorn.Config(http=Connection)`)."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app, self.server, self._app_state = config.loaded_app, server_state, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: _Exchange | None = None
        """What is being read."""
        self._waiting: deque[_Exchange] = deque()
        """What was read, or is too large to wait for its end, and is not answered yet."""
        self._answering: _Exchange | None = None
        self._reading = self._writable = True
        self._ending = False
        self._head_bytes = 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        self.server.connections.add(self)  # type: ignore[arg-type]
        self._peers = {"client": _peer(transport, "peername"), "server": _peer(transport, "sockname")}
        self._since = self._loop.time()
        self._timer = self._loop.call_later(min(IDLE_S, REQUEST_S), self._check_time)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whoever waits for the rest of its body is told."""
        self.server.connections.discard(self)
        self._timer.cancel()
        self._ending = True
        for exchange in (self._incoming, self._answering):
            if exchange is not None:
                exchange.lost()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # no other protocol is spoken here; the request was answered as it is
            self._ending = True
        except httptools.HttpParserError as error:
            self._refuse(Refusal(400, f"the request is no HTTP/1.1 ({error.__context__ or error})"))
        else:
            in_head = self._incoming is not None and not self._incoming.scope
            self._head_bytes = self._head_bytes + len(data) if in_head else 0
            if self._head_bytes > HEAD_BYTES:
                self._refuse(Refusal(431, f"the request's head is over {HEAD_BYTES} bytes", "INVALID_ARGUMENT"))

    def pause_writing(self) -> None:
        """The client does not read what it asked for: no more is answered until it does."""
        self._writable = False
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        """It reads again."""
        self._writable = True
        self._next()

    def shutdown(self) -> None:
        """uvicorn drains: what is being answered ends, nothing else begins."""
        self._ending = True
        if self._answering is None:
            self.transport.close()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._since = self._loop.time()
        self._incoming = _Exchange(self)

    def on_url(self, url: bytes) -> None:
        """A part of its URL."""
        self._exchange.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers."""
        self._exchange.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        exchange, parser = self._exchange, self._parser
        version = parser.get_http_version()
        exchange.keep_alive = parser.should_keep_alive() and version != "1.0"
        url = exchange.url
        if not url.startswith(b"/"):  # the absolute form, as sent to proxies
            parts = httptools.parse_url(url)
            url = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        raw_path, _, query = url.partition(b"?")
        path = raw_path.decode("ascii")
        exchange.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": exchange.headers,
            "state": self._app_state.copy(),
            **self._peers,
        }
        if (b"expect", b"100-continue") in exchange.headers and self._answering is None:
            self.transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        """A part of its body."""
        exchange = self._exchange
        exchange.add(data)
        if exchange.size > EAGER_BYTES:
            if not exchange.queued:
                self._queue(exchange)
            self.read(False)

    def on_message_complete(self) -> None:
        """It is whole."""
        exchange, self._incoming = self._exchange, None
        exchange.complete()
        if not exchange.queued:
            self._queue(exchange)
        elif exchange.finished:  # it was answered before its end
            self._go_on(exchange)

    # What an exchange calls.

    def read(self, wanted: bool) -> None:
        """Let more bytes come, or none for now."""
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            self.transport.resume_reading() if wanted else self.transport.pause_reading()

    def write(self, head: bytes, body: bytes) -> None:
        """A response, or its next part."""
        if len(body) < EAGER_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))

    def answered(self, exchange: "_Exchange") -> None:
        """A response is whole. What is left of its request is read and dropped: a client may read only after that."""
        self._answering = None
        self._since = self._loop.time()
        self.server.total_requests += 1
        if exchange.whole:
            self._go_on(exchange)
        else:
            self.read(True)

    @property
    def _exchange(self) -> "_Exchange":
        assert self._incoming is not None
        return self._incoming

    def _queue(self, exchange: "_Exchange") -> None:
        exchange.queued = True
        self._waiting.append(exchange)
        self._next()

    def _go_on(self, exchange: "_Exchange") -> None:
        if self._ending or not exchange.keep_alive:
            self.transport.close()
        else:
            self._next()

    def _next(self) -> None:
        if self._answering is None and self._waiting and self._writable and not self._ending:
            self._answering = self._waiting.popleft()
            task = self._loop.create_task(self._answer(self._answering))
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)
        self.read(not self._waiting)

    async def _answer(self, exchange: "_Exchange") -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except Exception:
            _log.exception("a request failed")
        if not exchange.finished:
            if not exchange.started:
                self._say(Refusal(500, "the server failed at this request; its log has the details"))
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Say no for good, unless another answer is under way: the connection ends."""
        self._ending = True
        if self._answering is None:
            self._say(refusal)
            self.transport.close()

    def _say(self, refusal: Refusal) -> None:
        exchange, body = _Exchange(self), refusal.body()
        exchange.keep_alive = False
        length = str(len(body)).encode()
        self.write(exchange.head(refusal.code, [(b"content-type", JSON_TYPE), (b"content-length", length)]), body)

    def _check_time(self) -> None:
        """Close what has waited for its client for too long; called now and then, so that requests need no timer."""
        waited = self._loop.time() - self._since
        reading = self._incoming is not None and not self._incoming.queued
        limit = REQUEST_S if reading or not self._writable else IDLE_S
        if self._answering is not None or (self._waiting and self._writable):
            waited = 0.0
        if waited >= limit and reading and not self._ending:
            self._refuse(Refusal(408, f"the request was not whole within {REQUEST_S:.0f} s; send it faster"))
            self._since, waited = self._loop.time(), 0.0
        if waited < limit:
            self._timer = self._loop.call_later(min(IDLE_S, REQUEST_S, limit - waited), self._check_time)
        else:
            self.transport.abort()  # it has had its time to read what is still to be sent


class _Exchange:
    """A request and its response, as the ASGI program sees them."""

    def __init__(self, connection: Connection) -> None:
        self.url, self.keep_alive = b"", True
        self.headers: list[tuple[bytes, bytes]] = []
        self.scope: dict[str, Any] = {}
        self.size = 0
        """Bytes of the body that have come and were not received yet."""
        self.whole = self.queued = self.started = self.finished = False
        self._connection = connection
        self._parts: list[bytes] = []
        self._gone = self._received = False
        self._head = b""
        self._waiter: asyncio.Future[None] | None = None

    def add(self, data: bytes) -> None:
        """A part of the body has come."""
        if not self.finished:
            self._parts.append(data)
            self.size += len(data)
            self._wake()

    def complete(self) -> None:
        """The body has come to its end."""
        self.whole = True
        self._wake()

    def lost(self) -> None:
        """The client is gone."""
        self._gone = True
        self._wake()

    async def receive(self) -> dict[str, Any]:
        """The next part of the body, all of it where it is whole; after its end nothing, until the client is gone."""
        while not self._parts and not self._gone and (self._received or not self.whole):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._gone and not self._parts:
            return {"type": "http.disconnect"}
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        self._received = self.whole
        if not self.whole:
            self._connection.read(True)
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    async def send(self, message: Any) -> None:
        """The head of the response, then its body; what is sent to nobody is dropped."""
        if message["type"] == "http.response.start":
            self._head = self.head(message["status"], message["headers"])
            return
        if not self._gone:
            body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
            self._connection.write(self._head, body)
            self._head, self.started = b"", True
        if not message.get("more_body"):
            self.finished = True
            self._parts.clear()
            self.size = 0
            self._connection.answered(self)

    def head(self, code: int, headers: Any) -> bytes:
        """Status line and headers."""
        lines = [_STATUS[code]]
        for name, value in (*self._connection.server.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _peer(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    found = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
