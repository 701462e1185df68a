"""Requests that nobody would send, over every route of the serving program: no crash, no 500, no growth of memory.

`make test-faults SEEDS=200` sends 200,000; the tests of every day send 1,000. A request is a valid one of some
contract, damaged, or made of random parts. Two programs are asked: one of one release, one of many models.
"""

import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pybase64
import pytest

from tests.serving import clients
from tests.serving.standin import make

COUNT = 1_000 * int(os.environ.get("SEEDS", "1"))
MOST_GROWTH = 24_000_000
"""Bytes that a worker may grow by after the first fifth: the allocator's caches, not a leak of 150 bytes a request."""
ROUTES = (
    *("/", "/ping", "/healthz", "/predict", "/invocations", "/score", "/nowhere", "/predict/", "//predict"),
    *("/v1/models", "/v1/models/m", "/v1/models/m:predict", "/v1/models/m/versions/1:predict", "/v1/models/m/metadata"),
    *("/v1/models/m:classify", "/v1/models/m/ready", "/v1/models/%00:predict", "/v1/models/:predict"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/infer"),
    *("/v2/models/m/versions/r-0/infer", "/v2/models//infer", "/models", "/models/m", "/models/m/invoke"),
    *("/models/%2e%2e%2fx", "/models/a%2Fb/invoke", "/models/" + "x" * 400),
)
ASKED = ("/predict", "/invocations", "/v1/models/m:predict", "/v2/models/m/infer", "/models/m/invoke", "/models")
TYPES = (
    *("application/json", "application/jsonlines", "application/octet-stream", "audio/wav", "audio/flac", "text/plain"),
    *("application/x-ndjson", "", "multipart/form-data", "application/json; charset=utf-8"),
)
pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]


class Requests:
    """Damaged requests, the same for the same seed."""

    def __init__(self, seed: int, clips: list[bytes], release: Path) -> None:
        self._random, self._clips, self._release = random.Random(seed), clips, release

    def next(self) -> tuple[str, str, dict[str, str], bytes]:
        r = self._random
        method = r.choices(("POST", "GET", "DELETE", "PUT", "HEAD"), (90, 6, 2, 1, 1))[0]
        headers, body = r.choice(
            (self._json, self._json, self._lines, self._tensors, self._binary, self._audio, self._load)
        )()
        if r.random() < 0.8:
            body = self._damaged(body)
        if r.random() < 0.3:
            headers["content-type"] = r.choice(TYPES)
        if r.random() < 0.1:
            headers["accept"] = r.choice(TYPES)
        if r.random() < 0.02:
            headers["inference-header-content-length"] = r.choice(("-1", "9" * 30, "x", "", "1e3", str(len(body))))
        return method, r.choice(ASKED if r.random() < 0.7 else ROUTES), headers, body if method == "POST" else b""

    def _clip(self) -> str:
        return pybase64.b64encode(self._damaged(self._random.choice(self._clips))).decode()

    def _instance(self) -> Any:
        r = self._random
        return r.choice(
            (
                lambda: {"audio_bytes": {"b64": self._clip()}},
                lambda: {"b64": self._clip()},
                lambda: {"pcm": [r.uniform(-1, 1) for _ in range(r.randint(0, 40))]},
                lambda: {"images": {"b64": pybase64.b64encode(r.randbytes(r.choice((0, 1, 3904, 7808)))).decode()}},
                lambda: [[r.randint(-1, 256)] * r.choice((0, 1, 64))] * r.choice((0, 1, 61)),
                lambda: self._value(3),
            )
        )()

    def _value(self, depth: int) -> Any:
        r = self._random
        if depth and r.random() < 0.6:
            inside = [self._value(depth - 1) for _ in range(r.randint(0, 4))]
            names = ("b64", "pcm", "images", "audio_bytes", "inputs", "data", "shape")
            return inside if r.random() < 0.5 else {r.choice(names): value for value in inside}
        return r.choice((None, True, -1, 2**63, 1e308, -0.0, "", "A" * 40, "\u0000", "none", [], {}))

    def _json(self) -> tuple[dict[str, str], bytes]:
        r = self._random
        request: Any = {
            r.choice(("instances", "instances", "inputs")): [self._instance() for _ in range(r.randint(0, 3))]
        }
        if r.random() < 0.2:
            request["parameters"] = self._value(2)
        if r.random() < 0.05:
            request = self._value(4)
        return {"content-type": "application/json"}, json.dumps(request).encode()

    def _lines(self) -> tuple[dict[str, str], bytes]:
        lines = [json.dumps(self._instance()) for _ in range(self._random.randint(0, 4))]
        return {"content-type": "application/jsonlines"}, "\n".join(lines).encode()

    def _tensors(self) -> tuple[dict[str, str], bytes]:
        r = self._random
        name, datatype = r.choice((("pcm", "FP32"), ("images", "UINT8"), ("audio_bytes", "BYTES"), ("x", "INT64")))
        data = [self._clip()] if name == "audio_bytes" else [r.randint(0, 255) for _ in range(r.choice((0, 1, 3904)))]
        shape = r.choice(([1, len(data)], [len(data)], [1, 1, 61, 64], [-1], [10**12, 10**12], self._value(2)))
        tensor = {"name": name, "datatype": datatype, "shape": shape, "data": r.choice((data, data, self._value(3)))}
        request: dict[str, Any] = {"id": self._value(0), "inputs": [tensor]}
        if r.random() < 0.3:
            request["outputs"] = r.choice(([{"name": "label"}], self._value(2)))
        if r.random() < 0.3:
            request["parameters"] = r.choice(({"binary_data_output": True}, self._value(2)))
        return {"content-type": "application/json"}, json.dumps(request).encode()

    def _binary(self) -> tuple[dict[str, str], bytes]:
        clip = self._random.choice(self._clips)
        data = struct.pack("<I", len(clip) + self._random.choice((0, 0, 0, 1, 2**31))) + clip
        tensor = {
            "name": "audio_bytes",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"binary_data_size": len(data)},
        }
        head = json.dumps({"inputs": [tensor]}).encode()
        return {"inference-header-content-length": str(len(head))}, head + data

    def _audio(self) -> tuple[dict[str, str], bytes]:
        return {"content-type": "audio/wav"}, self._random.choice(self._clips)

    def _load(self) -> tuple[dict[str, str], bytes]:
        url = self._random.choice((str(self._release), "/", "/etc", "\u0000", "../..", ""))
        body = {"model_name": self._random.choice(("m", "a/b", "..", "", "x" * 300)), "url": url}
        return {"content-type": "application/json"}, json.dumps(body).encode()

    def _damaged(self, data: bytes) -> bytes:
        r, found = self._random, bytearray(data)
        for _ in range(r.choice((0, 0, 1, 2, 8))):
            at = r.randrange(len(found) + 1)
            kind = r.randrange(4)
            if kind == 0:
                found[at : at + r.randint(1, 64)] = b""
            elif kind == 1:
                found[at:at] = r.randbytes(r.randint(1, 16))
            elif kind == 2:
                del found[at:]
            elif at < len(found):
                found[at] ^= 1 << r.randrange(8)
        return bytes(found)


@contextmanager
def program(**told: str) -> Iterator[tuple[int, int]]:
    """A serving program of two workers: its process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PORT": str(port), "TWOPHASE_WORKERS": "2", **told}
    process = subprocess.Popen([sys.executable, "-m", "twophase.serving"], env=environment)
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield process.pid, port
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def workers(pid: int) -> dict[int, int]:
    """Resident bytes of a program's workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(c): int(Path(f"/proc/{c}/statm").read_text().split()[1]) * 4096 for c in children}


def test_no_crash_no_500_no_growth(tmp_path: Path) -> None:
    release = make(tmp_path / "release", seed=1)
    clips = [clip for clip in clients.clips(12) if len(clip) < 60_000] + [b"", b"RIFF", b"fLaC" + bytes(40)]
    codes: Counter[int] = Counter()
    lock, done = threading.Lock(), 0
    before: dict[int, int] = {}
    with (
        program(TWOPHASE_MODEL=str(release)) as (one, one_port),
        program(SAGEMAKER_MULTI_MODEL="true") as (many, many_port),
    ):

        def send(seed: int) -> None:
            nonlocal done
            made, port = Requests(seed, clips, release), many_port if seed % 4 == 3 else one_port
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            for _ in range(250):
                method, path, headers, body = made.next()
                connection.request(method, path, body or None, headers)
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status < 500 or answer.status in (501, 503, 507), (
                    seed,
                    method,
                    path,
                    headers,
                    body[:500],
                    said,
                )
                if answer.status >= 400 and method != "HEAD":
                    assert json.loads(said)["error"], (path, said)
                with lock:
                    codes[answer.status] += 1
                    done += 1
                    if done == COUNT // 5:
                        before.update(workers(one) | workers(many))
            connection.close()

        load = {"model_name": "m", "url": str(release)}
        assert httpx.post(f"http://127.0.0.1:{many_port}/models", json=load).status_code == 200
        for _ in range(4):  # a connection each, so that both workers have loaded it before their size is taken
            httpx.post(f"http://127.0.0.1:{many_port}/models/m/invoke", json={"instances": [{"pcm": [0.5]}]})
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(COUNT // 250)))
        after = workers(one) | workers(many)
        assert after.keys() == before.keys(), "a worker died and was replaced"
        growth = {pid: after[pid] - before[pid] for pid in after}
        grown = [f"{size / 1e6:.1f} MB" for size in growth.values()]
        sys.stdout.write(f"{done} requests: {dict(sorted(codes.items()))}; workers grew by {grown}\n")
        assert max(growth.values()) <= MOST_GROWTH
    assert codes[200] > COUNT / 50
    assert codes[400] > COUNT / 50
