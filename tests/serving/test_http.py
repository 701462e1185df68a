"""What both servers do with HTTP itself: in any pieces, out of order, too slow, too large, or not HTTP at all."""

import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.loopback import serving
from twophase.serving import http
from twophase.serving.asgi import header, read_body, respond
from twophase.serving.refusal import Refusal

LIMIT = 3_000_000


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The request as the server understood it."""
    if scope["path"] == "/fail":
        raise RuntimeError("told to")
    if scope["path"] == "/large":
        await respond(send, bytes(20_000_000))
        return
    if scope["path"] == "/refuse":
        await respond(send, b"no", 413)
        return
    try:
        size = len(await read_body(scope, receive, LIMIT))
    except Refusal as refusal:
        await respond(send, refusal.body(), refusal.code)
        return
    said = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode(), "size": size}
    await respond(send, json.dumps(said).encode(), 200, b"application/json", (b"x-a", header(scope, b"x-a") or b""))


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serving(echo) as client:
        yield client


def connected(server: httpx.Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.base_url.port), timeout=30)


def answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Codes and bodies of the next responses."""
    found, data = [], b""
    while len(found) < count:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) if end else 0
        if end and len(rest) >= length:
            found.append((int(head.split()[1]), rest[:length]))
            data = rest[length:]
        else:
            more = connection.recv(1 << 16)
            assert more, (found, data)
            data += more
    return found


def ended(connection: socket.socket) -> bool:
    """Whether the server closes the connection without another word."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


MESSAGES = (
    b"GET /a%20b?c=d HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n"
    b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /q HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    b"GET http://h/abs?x HTTP/1.1\r\nHost: h\r\n\r\n"
)
UNDERSTOOD = [
    {"method": "GET", "path": "/a b", "query": "c=d", "size": 0},
    {"method": "POST", "path": "/p", "query": "", "size": 5},
    {"method": "POST", "path": "/q", "query": "", "size": 7},
    {"method": "GET", "path": "/abs", "query": "x", "size": 0},
]


@given(cuts=st.lists(st.integers(1, len(MESSAGES) - 1), max_size=6, unique=True).map(sorted))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_pieces_of_a_pipeline_are_understood_alike(server: httpx.Client, cuts: list[int]) -> None:
    with connected(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in zip([0, *cuts], [*cuts, len(MESSAGES)], strict=True):
            connection.sendall(MESSAGES[start:end])
        assert [json.loads(body) for _, body in answers(connection, 4)] == UNDERSTOOD


def test_large_bodies_are_streamed_and_too_large_ones_refused(server: httpx.Client) -> None:
    assert server.post("/", content=b"x" * LIMIT).json()["size"] == LIMIT
    assert server.post("/", content=iter([b"x" * 500_000] * 6)).json()["size"] == LIMIT
    refused = server.post("/", content=iter([b"x" * 500_000] * 9))
    assert refused.status_code == 413
    assert server.post("/refuse", content=b"x" * 9_000_000).status_code == 413, "said although the body goes on"
    assert server.get("/").status_code == 200


def test_heads_fails_and_closes(server: httpx.Client) -> None:
    head = server.head("/x")
    assert (head.status_code, head.content, int(head.headers["content-length"]) > 0) == (200, b"", True)
    assert "date" in head.headers
    failed = server.get("/fail")
    assert (failed.status_code, failed.json()["error"]["status"]) == (500, "INTERNAL")
    for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"):
        with connected(server) as connection:
            connection.sendall(request)
            assert answers(connection, 1)[0][0] == 200
            assert ended(connection)
    with connected(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        assert json.loads(answers(connection, 1)[0][1])["size"] == 2
    with connected(server) as connection:
        connection.sendall(b"GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert answers(connection, 1)[0][0] == 200


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost h\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, 431),
    ],
)
def test_what_is_no_http_is_refused(server: httpx.Client, sent: bytes, code: int) -> None:
    with connected(server) as connection:
        connection.sendall(sent)
        found, body = answers(connection, 1)[0]
        assert (found, json.loads(body)["error"]["code"]) == (code, code)
        assert ended(connection)


def test_who_sends_nothing_or_too_slowly_loses_the_connection(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.3)
    monkeypatch.setattr(http, "REQUEST_S", 0.3)
    with connected(server) as silent, connected(server) as kept, connected(server) as slow:
        kept.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        slow.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel")
        assert answers(kept, 1)[0][0] == 200
        assert answers(slow, 1)[0][0] == 408
        assert ended(silent)
        assert ended(kept)
        assert ended(slow)


def test_who_does_not_read_is_cut_off(server: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.3)
    monkeypatch.setattr(http, "REQUEST_S", 0.3)
    with connected(server) as deaf:
        deaf.sendall(2 * b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")  # the second waits for the first to be read
        until = time.monotonic() + 30
        while held(deaf) and time.monotonic() < until:
            time.sleep(0.05)
        assert not held(deaf)


def held(connection: socket.socket) -> bool:
    """Whether the server's end of a connection is open (1 in the kernel's list), not only the kernel's buffer of it."""
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    lines = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(n.endswith(f":{theirs:04X}") and f.endswith(f":{ours:04X}") and s == "01" for n, f, s in lines)


def test_two_thousand_idle_connections_hinder_nobody(server: httpx.Client) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # both ends are in this process
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 5_000)), hard))
    idle = [connected(server) for _ in range(2_000)]
    started = time.monotonic()
    assert server.get("/").status_code == 200
    assert time.monotonic() - started < 10
    for connection in idle:
        connection.close()
