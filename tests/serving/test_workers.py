"""The serving program as a process: several workers, an even spread, drains, replacements, no orphans."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from twophase.serving.server import listening

BODY = {"instances": [[[0] * 64] * 61]}


def few_files() -> None:
    """As a shell starts programs, and less: a soft limit that is there to be raised."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.fixture
def program(release: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    workers = str(getattr(request, "param", 2))
    environment = {
        **os.environ,
        "TWOPHASE_MODEL": str(release),
        "AIP_HTTP_PORT": str(port),
        "TWOPHASE_WORKERS": workers,
    }
    command = [sys.executable, "-m", "twophase.serving", "serve"]
    process = subprocess.Popen(command, env=environment, preexec_fn=few_files)
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx.get(f"{url}/healthz")
            break
        except httpx.ConnectError:
            time.sleep(0.02)
    yield process, url
    process.kill()
    process.wait()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connections(pid: int) -> int:
    return sum("socket:" in str(f.readlink()) for f in Path(f"/proc/{pid}/fd").iterdir())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_connections_are_spread_evenly_and_a_dead_worker_is_replaced(program: tuple) -> None:
    process, url = program
    while len({connections(pid) for pid in children(process.pid)}) > 1:
        time.sleep(0.01)  # the connection that asked whether it is up is not closed yet
    clients = [httpx.Client(base_url=url) for _ in range(8)]
    for client in clients:
        assert client.post("/predict", json=BODY).status_code == 200
    after = [connections(pid) for pid in children(process.pid)]
    assert after[0] == after[1]
    for client in clients:
        client.close()
    killed = children(process.pid)[0]
    os.kill(killed, signal.SIGKILL)
    while alive(killed):
        time.sleep(0.01)
    assert [httpx.post(f"{url}/predict", json=BODY).status_code for _ in range(4)] == [200] * 4
    assert len(children(process.pid)) == 2


def test_idle_connections_hinder_nobody(program: tuple) -> None:
    _, url = program
    port = httpx.URL(url).port
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
    assert httpx.post(f"{url}/predict", json=BODY).status_code == 200
    for connection in idle:
        connection.close()


@pytest.mark.parametrize("program", [1, 2], indirect=True)
def test_sigterm_ends_every_process_well(program: tuple) -> None:
    process, _ = program
    workers = children(process.pid)
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert not any(map(alive, workers))


def test_workers_do_not_outlive_a_killed_parent(program: tuple) -> None:
    process, _ = program
    workers = children(process.pid)
    process.kill()
    while any(map(alive, workers)):
        time.sleep(0.01)


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    environment = {**os.environ, "TWOPHASE_MODEL": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-m", "twophase.serving"], env=environment, capture_output=True, check=False)
    assert ran.returncode == 2
    assert b"holds no release" in ran.stderr
