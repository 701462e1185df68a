"""The REST client's own work: a token that runs out while a job is waited for."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from twophase.errors import TwoPhaseError
from twophase.targets.rest import Vertex

GOOD = {"token": "first"}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        good = self.headers["authorization"] == f"Bearer {GOOD['token']}"
        body = b"{}" if good else b'{"error": {"message": "the token has expired"}}'
        self.send_response(200 if good else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_token_that_ran_out_is_renewed_or_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOPHASE_TOKEN", "first")
    vertex = Vertex("p", "r", address)
    assert vertex.get("x") == {}
    monkeypatch.setitem(GOOD, "token", "second")
    with pytest.raises(TwoPhaseError, match="refused with 401: the token has expired"):
        vertex.get("x")
    monkeypatch.setenv("TWOPHASE_TOKEN", "second")
    assert vertex.get("x") == {}
    assert vertex.get("x") == {}
