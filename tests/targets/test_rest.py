"""The REST client's own work: where its token comes from, and one that runs out while a job is waited for."""

import json
import os
import subprocess
import sys
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


class _Metadata(BaseHTTPRequestHandler):
    """What a machine in Google's cloud can ask about itself."""

    def do_GET(self) -> None:
        account = {"email": "gateway@p.iam.gserviceaccount.com", "aliases": ["default"], "scopes": []}
        token = {"access_token": "of-the-machine", "expires_in": 3600, "token_type": "Bearer"}
        body = json.dumps(token if "/token" in self.path else account).encode()
        self.send_response(200)
        for name, value in {"Metadata-Flavor": "Google", "content-type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


TOKEN = """
import httpx
from twophase.targets.rest import Vertex
print(next(Vertex("p", "r", "").auth.auth_flow(httpx.Request("GET", "https://x"))).headers["authorization"])
"""


def test_a_machine_in_googles_cloud_needs_no_other_credentials() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        here = f"127.0.0.1:{server.server_port}"
        environment = {**os.environ, "GCE_METADATA_HOST": here, "GCE_METADATA_IP": here, "PATH": "/nowhere"}
        said = subprocess.run([sys.executable, "-c", TOKEN], env=environment, capture_output=True, text=True)
        server.shutdown()
        thread.join()
    assert said.stdout == "Bearer of-the-machine\n", said.stderr
