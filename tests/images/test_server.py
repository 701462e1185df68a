"""The server image, built and run: every contract asked of the running container (`make test-images`)."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serving import clients
from tests.serving.standin import make
from twophase.cli.containers import image
from twophase.release.manifest import EXTRA
from twophase.serving.instances import audio_images
from twophase.serving.predictor import Predictor

pytestmark = [pytest.mark.images, pytest.mark.timeout(1800)]

IMAGE = image("server")
MOST_BYTES, MOST_BYTES_A_WORKER = 350_000_000, 100_000_000
RESIDENT = r"""
import pathlib
for process in pathlib.Path('/proc').glob('[0-9]*'):
    if process.name != '1' and (process / 'cmdline').read_bytes().startswith(b'python\0-m\0twophase.serving'):
        fields = dict(line.split(':') for line in (process / 'smaps_rollup').read_text().splitlines()[1:])
        print(1024 * int(fields['Rss'].split()[0]))
"""


def say(words: str) -> None:
    """A figure for who runs this with `ARGS=-rP`."""
    sys.stdout.write(f"{words}\n")


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that any user may read."""
    folder = make(tmp_path_factory.mktemp("release"), seed=1)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


@contextmanager
def running(*options: str, **environment: str) -> Iterator[httpx.Client]:
    """A container as a careful place runs it: nothing may be written but /tmp, no capability, no new privilege."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = [f"--env={name}={value}" for name, value in {"PORT": str(port), **environment}.items()]
    safe = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
    started = time.monotonic()
    container = docker("run", "--detach", "--network=host", *safe, *told, *options, IMAGE, "serve").stdout.strip()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.headers["x-container"] = container
            while docker("inspect", "--format={{.State.Running}}", container).stdout.strip() == "true":
                try:
                    client.get("/ping")
                    break
                except httpx.TransportError:
                    time.sleep(0.01)
            else:
                pytest.fail(docker("logs", container).stderr)
            say(f"ready {time.monotonic() - started:.2f} s after `docker run` was called")
            yield client
            docker("stop", container)
            code = docker("inspect", "--format={{.State.ExitCode}}", container).stdout.strip()
            assert code == "0", f"SIGTERM ended it with {code}: {docker('logs', container).stderr}"
    finally:
        docker("rm", "--force", container)


def test_the_image_is_small_and_says_what_it_is() -> None:
    (found,) = json.loads(docker("image", "inspect", IMAGE).stdout)
    say(f"{found['Size'] / 1e6:.0f} MB")
    assert found["Size"] <= MOST_BYTES
    assert found["Config"]["User"] == "1000:1000"
    assert found["Config"]["Labels"]["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    listed = docker("run", "--rm", "--entrypoint=python", IMAGE, "-c", "import tensorflow", check=False)
    assert "No module named 'tensorflow'" in listed.stderr


@pytest.mark.parametrize("user", ["1000:1000", "0:0"])
def test_every_contract(release: Path, user: str) -> None:
    clips = clients.clips(50)
    predictor = Predictor(release)
    expected = clients.table([predictor.predict_images(audio_images(clip, "clip")) for clip in clips])
    mounted = f"--volume={release}:/opt/ml/model:ro"
    with running(mounted, f"--user={user}", TWOPHASE_WORKERS="2", AIP_PREDICT_ROUTE=clients.VERTEX_ROUTE) as client:
        for ask in (clients.ask_vertex, *clients.ASKS):
            assert np.abs(ask(client, clips) - expected).max() <= 1e-5, ask.__name__
        resident = docker("exec", client.headers["x-container"], "python", "-c", RESIDENT).stdout.split()
        say(f"resident: {[f'{int(size) / 1e6:.0f} MB' for size in resident]}")
        assert len(resident) == 2
        assert max(map(int, resident)) <= MOST_BYTES_A_WORKER


def test_many_models(release: Path) -> None:
    mounted = f"--volume={release}:/opt/ml/models/1/model:ro"
    with running(mounted, SAGEMAKER_MULTI_MODEL="true", TWOPHASE_WORKERS="2") as client:
        body = {"model_name": "1", "url": "/opt/ml/models/1/model"}
        assert client.post("/models", json=body).status_code == 200
        for _ in range(4):  # a connection each, so that both workers are asked
            answer = httpx.post(client.base_url.join("/models/1/invoke"), json={"instances": [{"pcm": [0.5]}]})
            assert answer.status_code == 200
        assert client.delete("/models/1").status_code == 200


@pytest.mark.parametrize("variable", ["AIP_STORAGE_URI", "STORAGE_URI"])
def test_a_release_is_fetched(release: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = ["python", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    web = docker(
        "run", "--detach", "--network=host", f"--volume={release}:/r:ro", "--workdir=/r",
        f"--entrypoint={serve[0]}", IMAGE, *serve[1:],
    ).stdout.strip()  # fmt: skip
    try:
        for _ in range(500):
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                time.sleep(0.01)
        with running(**{variable: f"http://127.0.0.1:{port}"}) as client:
            assert client.post("/predict", json={"instances": [{"pcm": [0.5]}]}).status_code == 200
    finally:
        docker("rm", "--force", web)


def test_what_may_not_be_served_ends_the_container(release: Path, tmp_path: Path) -> None:
    def refused(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        told = [f"--env={name}={value}" for name, value in environment.items()]
        mounted = f"--volume={folder}:/mnt/models:ro"
        return docker("run", "--rm", "--network=host", mounted, *told, IMAGE, "serve", check=False)

    changed = Path(shutil.copytree(release, tmp_path / "changed"))
    with (changed / EXTRA / "gate.tflite").open("ab") as file:
        file.write(b"x")
    (tmp_path / "empty").mkdir(mode=0o755)
    for folder, environment, code, words in (
        (changed, {}, 1, "gate.tflite was changed"),
        (tmp_path / "empty", {}, 2, "no release is in"),
        (release, {"PORT": "http"}, 2, "is no port"),
        (release, {"AIP_STORAGE_URI": "http://127.0.0.1:1/r"}, 1, "cannot be read"),
    ):
        ended = refused(folder, **environment)
        assert (ended.returncode, words in ended.stderr) == (code, True), ended.stderr
        assert "Traceback" not in ended.stderr
