"""Clips that arrive whole, in pieces, twice, wrongly, and not at all."""

import shutil
import socket
import ssl
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.device.cloud import Oracle
from tests.gateway.conftest import NOWHERE
from tests.gateway.remote import Device, Process, announced
from twophase.errors import UsageError
from twophase.gateway import devices
from twophase.gateway.intake import Intake, Quota
from twophase.gateway.server import Address, open_store, run

Enrol = Callable[[str], Device]


def test_pieces_in_order_and_only_the_whole_counts(enrol: Enrol, gateway: tuple[Path, str]) -> None:
    device, data = enrol("a"), bytes(range(256)) * 8
    first = device.announce(announced(1, data)).json()
    assert first == {"clips": [{"sequence": 1, "state": "receiving", "offset": 0}]}
    half = device.append(1, 0, data[:1000])
    assert (half.json()["state"], half.headers["upload-offset"]) == ("receiving", "1000")
    wrong = device.append(1, 0, data)
    assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, "1000")
    assert device.announce(announced(1, data)).json()["clips"][0]["offset"] == 1000
    rest = device.append(1, 1000, data[1000:])
    assert (rest.json()["state"], rest.headers["upload-offset"]) == ("stored", "2048")
    assert device.append(1, 1000, data[1000:]).json()["state"] == "stored"  # the answer was lost
    assert device.announce(announced(1, data)).json()["clips"] == [{"sequence": 1, "state": "stored"}]
    assert (gateway[0] / "clips" / "a" / "1").read_bytes() == data


def test_what_is_wrong_is_refused_and_named(enrol: Enrol) -> None:
    device = enrol("b")
    assert device.append(5, 0, b"x").status_code == 404
    device.announce(announced(1, b"abc"))
    changed = device.append(1, 0, b"abd")
    assert (changed.status_code, changed.headers["upload-offset"]) == (422, "0")
    assert device.append(1, 0, b"abcd").status_code == 400
    assert device.upload(1, b"abc") == "stored"
    other = device.announce(announced(1, b"abd")).json()["clips"][0]
    assert (other["state"], other["error"]["code"]) == ("rejected", 409)
    big = device.announce(announced(2, b"x", bytes=1 << 30)).json()["clips"][0]
    assert (big["state"], big["error"]["code"]) == ("rejected", 413)
    for bad in (
        {"sequence": 0},
        {"sequence": True},
        {"sha256": "x"},
        {"kind": "song"},
        {"captured": "now"},
        {"captured": "2026-03-01"},
        {"score": float("1e9")},
        {"windows": None},
        {"clock_trusted": 1},
    ):
        answer = device.announce(announced(3, b"x") | bad)
        assert answer.status_code == 400
        assert next(iter(bad)) in answer.json()["error"]["message"]
    assert device.send("POST", "/v1/clips", {"clips": []}).status_code == 400
    assert device.send("GET", "/v1/answers?wait=1000").status_code == 400
    assert device.send("POST", "/v1/answers", {"acknowledge": ["1"]}).status_code == 400


def test_a_connection_cut_at_every_byte_leaves_nothing_partial(enrol: Enrol, gateway: tuple[Path, str]) -> None:
    device, data = enrol("c"), bytes(range(64))
    device.announce(announced(1, data))
    address = (urlsplit(gateway[1]).hostname, urlsplit(gateway[1]).port)
    file = gateway[0] / "clips" / "c" / "1"
    cut, now = 0, {"state": "receiving", "offset": 0}
    while now["state"] == "receiving":
        proof = device.key.proof("c", "PATCH", "/v1/clips/1", device.nonce, None)
        rest = data[now["offset"] :]
        head = f"PATCH /v1/clips/1 HTTP/1.1\r\nhost: x\r\ndpop: {proof}\r\nupload-offset: {now['offset']}\r\n"
        whole = f"{head}content-length: {len(rest)}\r\n\r\n".encode() + rest
        with socket.create_connection(address) as connection:
            connection.sendall(whole[:cut])
            if cut >= len(whole):
                connection.recv(4096)
        now = device.announce(announced(1, data)).json()["clips"][0]
        assert data.startswith(file.read_bytes() if file.exists() else b"")
        cut += 1
    assert now == {"sequence": 1, "state": "stored"}
    assert file.read_bytes() == data


def test_a_second_upload_ends_the_first(enrol: Enrol, gateway: tuple[Path, str]) -> None:
    device, data = enrol("d"), b"0123456789"
    device.announce(announced(1, data))
    proof = device.key.proof("d", "PATCH", "/v1/clips/1", device.nonce, None)
    head = f"PATCH /v1/clips/1 HTTP/1.1\r\nhost: x\r\ndpop: {proof}\r\nupload-offset: 0\r\ncontent-length: 10\r\n\r\n"
    with socket.create_connection((urlsplit(gateway[1]).hostname, urlsplit(gateway[1]).port)) as stuck:
        stuck.sendall(head.encode() + data[:4])
        while device.announce(announced(1, data)).json()["clips"][0]["offset"] != 4:
            time.sleep(0.01)
        assert device.append(1, 4, data[4:]).json()["state"] == "stored"
        stuck.sendall(b"XXXXXX")
        assert b"409" in stuck.recv(4096)
    assert (gateway[0] / "clips" / "d" / "1").read_bytes() == data


def test_quotas_are_each_devices_own(tmp_path: Path) -> None:
    process = Process(tmp_path, *NOWHERE, "--clips-per-day", "3", "--bytes-per-day", "1000")
    store = open_store(tmp_path)
    with httpx.Client(base_url=process.said) as http:
        greedy, modest = Device(http), Device(http)
        for device, name in ((greedy, "greedy"), (modest, "modest")):
            device.enrol(store.do(lambda c, name=name: devices.expect(c, name)))
        clips = [announced(n, bytes([n])) for n in range(1, 6)]
        taken = greedy.announce(*clips).json()["clips"]
        assert [item["sequence"] for item in taken] == [1, 2, 3]
        over = greedy.announce(*clips[3:])
        assert over.status_code == 429
        assert int(over.headers["retry-after"]) >= 60
        assert greedy.upload(1, bytes([1])) == "stored"  # what was taken may come
        assert modest.upload(1, b"x" * 900) == "stored"
        assert modest.announce(announced(2, b"x" * 200)).status_code == 429
    store.close()
    process.stop()


def test_killed_while_uploads_come(tmp_path: Path) -> None:
    """What was answered for is there after `kill -9`, and what was not goes on where it was."""
    process = Process(tmp_path, *NOWHERE)
    store = open_store(tmp_path)
    with httpx.Client(base_url=process.said) as http:
        device = Device(http)
        device.enrol(store.do(lambda c: devices.expect(c, "x")))
        assert device.upload(1, b"whole") == "stored"
        device.announce(announced(2, b"halves"), announced(3, b"all but said"))
        device.append(2, 0, b"hal")
    store.close()
    process.kill()
    (tmp_path / "clips" / "x" / "3").write_bytes(b"all but said")  # killed between the file and its row
    shutil.copy(tmp_path / "clips" / "x" / "1", tmp_path / "copy")
    again = Process(tmp_path, *NOWHERE)
    with httpx.Client(base_url=again.said) as http:
        device = Device(http, device.key, "x")
        states = device.announce(announced(1, b"whole"), announced(2, b"halves"), announced(3, b"all but said")).json()[
            "clips"
        ]
        assert [item["state"] for item in states] == ["stored", "receiving", "stored"]
        assert states[1]["offset"] == 3
        assert device.append(2, 3, b"ves").json()["state"] == "stored"
    again.stop()


def test_what_was_heard_is_the_owners_alone(tmp_path: Path) -> None:
    """Also in a folder that is there, under the umask of most machines."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    store = open_store(home)
    Intake(home, store, Quota())
    store.close()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_tls(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    pem, secret = tmp_path / "gateway.pem", tmp_path / "gateway.key"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    process = Process(tmp_path / "home", *NOWHERE, "--certificate", str(pem), "--private-key", str(secret))
    try:
        assert process.said.startswith("https://")
        trust = ssl.create_default_context(cafile=pem)
        assert httpx.get(f"{process.said}/healthz", verify=trust).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.said}/healthz")
    finally:
        process.stop()


def test_others_are_not_answered_without_tls(tmp_path: Path) -> None:
    for address, words in (
        (Address(host="0.0.0.0"), "without TLS"),
        (Address(certificate=tmp_path / "none.pem"), "is no file"),
    ):
        with pytest.raises(UsageError, match=words):
            run(tmp_path, Oracle(), address, Quota(), "", 30, None, said=print)
