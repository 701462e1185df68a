"""A release's life on Vertex AI: its API on this machine, in a process of its own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.targets.answers import asks, expected
from twophase.errors import TwoPhaseError
from twophase.local import process
from twophase.targets.rest import Vertex
from twophase.targets.vertex import VertexAI


@pytest.fixture
def target(tmp_path: Path) -> Iterator[VertexAI]:
    home = tmp_path / "home"
    yield VertexAI("pair", "local", "us-central1", process.up(home, 0).url)
    process.down(home)


def test_a_whole_life(target: VertexAI, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    first, second, third = releases
    assert target.deploy(first) == "1"
    assert target.status().shares == {"1": 100}
    assert target.predict(clips) == expected(first, clips)

    assert target.deploy(second, percent=10) == "2"
    assert target.status().shares == {"1": 90, "2": 10}
    target.promote("2")
    assert target.status().alone == "2"
    assert target.predict(clips) == expected(second, clips)
    assert target.rollback() == "1"
    assert target.predict(clips) == expected(first, clips)

    results, broken = tmp_path / "results.jsonl", tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    assert target.batch([*clips[:3], broken, *clips[3:]], results) == 1
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert lines.pop(3)["error"]
    assert [line.pop("clip") for line in lines] == [str(clip) for clip in clips]
    assert lines == expected(first, clips)

    assert target.deploy(third) == "3"
    assert target.status().alone == "3"
    target.delete()
    target.delete()
    found = target.status()
    assert (found.versions, found.shares) == ({}, {})


def test_a_version_that_answers_wrongly_gets_no_traffic(
    target: VertexAI, releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target.deploy(releases[0])
    asked = VertexAI.ask
    monkeypatch.setattr(VertexAI, "ask", lambda self, sounds, version="": asked(self, sounds, "1"))
    with pytest.raises(TwoPhaseError, match="does not answer as"):
        target.deploy(releases[1])
    assert target.status().shares == {"1": 100}


def test_a_kill_anywhere_is_finished_by_the_next(target: VertexAI, releases: tuple[Path, ...]) -> None:
    target.deploy(releases[0])
    target.attach(target.register(releases[1]))
    assert target.status().shares == {"1": 100, "2": 0}
    target.shift({"1": 90, "2": 10})
    assert target.deploy(releases[1]) == "2"
    assert target.status().alone == "2"
    endpoint = Vertex("local", "us-central1", target._vertex.address).endpoint("pair")
    assert len(endpoint["deployedModels"]) == 2, "the one before stays for a rollback"


def test_a_first_release_that_answers_wrongly_leaves_no_endpoint(
    target: VertexAI, releases: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(VertexAI, "ask", lambda self, sounds, version="": [])
        with pytest.raises(TwoPhaseError, match="does not answer as"):
            target.deploy(releases[0])
    assert (target.status().shares, set(target.status().versions)) == ({}, {"1"})
    assert target.deploy(releases[0]) == "1", "and the next attempt finds its way clear"
    assert target.status().shares == {"1": 100}


class _Changing(BaseHTTPRequestHandler):
    """An endpoint whose operation is under way when it is asked for the first time."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path.partition("?")[0])
        name = "projects/p/locations/r/endpoints/1"
        operations = [{"name": f"{name}/operations/2", **({"done": True} if len(self.asked) > 2 else {})}]
        found = {"operations": operations} if "/operations" in self.path else {"endpoints": [{"name": name}]}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_change_that_still_runs_is_waited_for() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Changing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        VertexAI("pair", "p", "r", f"http://127.0.0.1:{server.server_port}").settle()
        server.shutdown()
        thread.join()
    endpoints = "/v1/projects/p/locations/r/endpoints"
    assert _Changing.asked == [endpoints, f"{endpoints}/1/operations", f"{endpoints}/1/operations"]


def test_a_gateway_asks_it(target: VertexAI, releases: tuple[Path, ...], clips: list[Path], tmp_path: Path) -> None:
    asks(target, releases[0], clips, tmp_path)
