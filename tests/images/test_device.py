"""The device image, built and run: without network and with a read-only file system (`make test-images`)."""

import json
from pathlib import Path

import pytest

from tests.device.sounds import noise
from tests.images.docker import docker
from tests.serving.standin import make
from twophase.cli.containers import image

pytestmark = [pytest.mark.images, pytest.mark.timeout(600)]

IMAGE = image("device")


def test_it_listens_and_keeps_what_it_cannot_send(state: str, tmp_path: Path) -> None:
    release = make(tmp_path / "release", seed=1)
    for path in (tmp_path, release, *release.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    place = ["run", "--rm", "-i", "--read-only", "--tmpfs", "/tmp", "--network", "none", "-v", f"{state}:/state"]
    command = [*place, "-v", f"{release}:/release:ro", "--entrypoint", "twophase", IMAGE, "device"]
    url = "http://127.0.0.1:9/v1/models/model:predict"
    assert "for development" in docker(*command, "enroll", "--direct", url, "--gate", "/release")
    docker(*place, IMAGE, given=noise(1, 3).tobytes())
    status = json.loads(docker(*command, "status", "--json"))
    assert status["spool"]["waiting"] == 1
    (clip,) = map(json.loads, docker(*command, "status", "--clips", "--json").splitlines())
    assert clip["provisional"]
