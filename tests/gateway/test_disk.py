"""Clips that meet a bad disk, and senders that take their time: refused with when to come back, nothing half kept."""

import errno
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.device.cloud import Cloud, cloud
from tests.device.sounds import HEARD, noise
from tests.faults.disk_device import build
from tests.gateway.conftest import NOWHERE
from tests.gateway.remote import Device, Process, announced
from twophase.audio import frontend
from twophase.device.budget import Budget, Daily
from twophase.device.client import Client
from twophase.device.link import Away
from twophase.device.spool import opened
from twophase.device.uplink import Sender
from twophase.gateway import app, devices
from twophase.gateway.intake import FULL_S, UPLOADS_EACH, Quota
from twophase.gateway.server import open_store

SPEAKS = {"front_end": frontend.FRONT_END.fingerprint}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler: the disk is a small library that is preloaded")
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (f"write 3 {errno.ENOSPC} ONCE", 507),  # folder, file, then its bytes
        (f"sync 2 {errno.EIO} ONCE", 503),  # folder, then the file
    ],
)
def test_a_disk_that_is_full_or_fails_is_said_and_the_clip_comes_again(
    fault: str, code: int, shim: Path, tmp_path: Path
) -> None:
    disk = {"LD_PRELOAD": str(shim), "DISK_ROOT": str(tmp_path / "clips"), "DISK_FAULT": fault}
    process = Process(tmp_path, *NOWHERE, env=disk)
    store = open_store(tmp_path)
    with httpx.Client(base_url=process.said, timeout=30) as http:
        device, data = Device(http), bytes(range(256))
        device.enrol(store.do(lambda c: devices.expect(c, "porch"))).raise_for_status()
        device.announce(announced(1, data))
        failed = device.append(1, 0, data)
        assert failed.status_code == code
        assert int(failed.headers["retry-after"]) >= (FULL_S if code == 507 else 1)
        assert "disk" in failed.json()["error"]["message"]
        assert device.upload(1, data) == "stored"
    store.close()
    process.stop()
    assert (tmp_path / "clips" / "porch" / "1").read_bytes() == data


def test_a_gateway_without_room_takes_nothing_new_and_the_device_waits_as_long_as_it_says(tmp_path: Path) -> None:
    with cloud(tmp_path / "gateway", quota=Quota(free_bytes=1 << 60)) as full, opened(tmp_path / "spool") as spool:
        identity = full.enrol(tmp_path)
        sequence = spool.put(noise(1), replace(HEARD, **SPEAKS))
        with pytest.raises(Away, match="507") as away:
            Sender(spool, Client(identity), Budget(tmp_path / "budget.json", Daily())).round()
        assert away.value.retry_after_s >= FULL_S
        assert spool.waiting(9) == [sequence]


def enrolled(gateway: Cloud, http: httpx.Client) -> Device:
    device = Device(http)
    device.enrol(gateway.store.do(lambda c: devices.expect(c, "porch"))).raise_for_status()
    return device


def begun(gateway: Cloud, device: Device, sequence: int, first: bytes, length: int) -> socket.socket:
    """An upload of `length` bytes, of which the first have come."""
    proof = device.key.proof("porch", "PATCH", f"/v1/clips/{sequence}", device.nonce, None)
    head = f"PATCH /v1/clips/{sequence} HTTP/1.1\r\nhost: x\r\ndpop: {proof}\r\nupload-offset: 0\r\n"
    connection = socket.create_connection(("127.0.0.1", gateway.port))
    connection.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + first)
    return connection


@pytest.mark.parametrize(("bound", "drips"), [("SILENT_S", False), ("UPLOAD_S", True)])
def test_an_upload_that_stands_still_or_drips_is_ended_and_what_came_is_kept(
    bound: str, drips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, bound, 0.5)
    data = bytes(1000)
    with cloud(tmp_path) as gateway, httpx.Client(base_url=gateway.url) as http:
        device = enrolled(gateway, http)
        device.announce(announced(1, data, **SPEAKS))
        with begun(gateway, device, 1, data[:4], len(data)) as slow:
            slow.settimeout(0.05)
            said = b""
            while not said:
                try:
                    said = slow.recv(4096)
                except TimeoutError:
                    if drips:
                        slow.sendall(b"\0")
        assert said.startswith(b"HTTP/1.1 408")
        now = device.announce(announced(1, data, **SPEAKS)).json()["clips"][0]
        assert now["offset"] >= 4
        assert device.append(1, now["offset"], data[now["offset"] :]).json()["state"] == "stored"


def test_one_device_cannot_hold_every_upload(tmp_path: Path) -> None:
    with cloud(tmp_path) as gateway, httpx.Client(base_url=gateway.url) as http:
        device, held = enrolled(gateway, http), []
        clips = [announced(n, bytes(100 + n), **SPEAKS) for n in range(1, UPLOADS_EACH + 2)]
        device.announce(*clips)
        try:
            for clip in clips[:-1]:
                held.append(begun(gateway, device, clip["sequence"], b"\0", clip["bytes"]))
            while not all(c["offset"] for c in device.announce(*clips).json()["clips"][:-1]):
                time.sleep(0.01)
            last = clips[-1]
            assert device.append(last["sequence"], 0, bytes(last["bytes"])).status_code == 429
            assert device.append(1, 1, bytes(clips[0]["bytes"] - 1)).json()["state"] == "stored"
        finally:
            for connection in held:
                connection.close()


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SILENT_S", 0.1)
    with cloud(tmp_path) as gateway, socket.create_connection(("127.0.0.1", gateway.port)) as silent:
        silent.sendall(b"POST /v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
        assert silent.recv(4096).startswith(b"HTTP/1.1 408")
