"""Enrolment, and keys that are lost, replaced, revoked, stolen and used again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update

from tests.gateway.remote import Device, Key, announced
from twophase.errors import TwoPhaseError
from twophase.gateway import devices
from twophase.gateway.server import open_store
from twophase.gateway.store import Store, code, log

Enrol = Callable[[str], Device]


@pytest.fixture
def store(gateway: tuple[Path, str]) -> Iterator[Store]:
    store = open_store(gateway[0])
    yield store
    store.close()


@pytest.fixture
def http(gateway: tuple[Path, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway[1], timeout=30) as http:
        yield http


def events(store: Store, name: str) -> list[str]:
    return store.do(lambda c: [f"{e.what} {e.message}" for e in c.execute(select(log).where(log.c.device == name))])


def test_a_code_lets_one_key_in_however_often_it_asks(store: Store, http: httpx.Client) -> None:
    text = store.do(lambda c: devices.expect(c, "porch"))
    device = Device(http)
    first = device.enrol(text)
    assert first.json() == {"device": "porch", "next_sequence": 1, "root": None}
    assert device.enrol(text.lower().replace("-", " ")).json() == first.json()
    thief = Device(http)
    assert thief.enrol(text).status_code == 403
    assert any("used by another key" in e for e in events(store, "porch"))
    assert device.answers() == []


def test_codes_end(store: Store, http: httpx.Client) -> None:
    text = store.do(lambda c: devices.expect(c, "attic"))
    store.do(lambda c: c.execute(update(code).where(code.c.device == "attic").values(expires=0.0)))
    assert Device(http).enrol(text).status_code == 403
    assert Device(http).enrol("AAAAA-AAAAA-AAAAA-AAAAA").status_code == 403
    for bad in ("", "../etc", "a" * 64, "-x"):
        with pytest.raises(TwoPhaseError, match="no device name"):
            store.do(lambda c, bad=bad: devices.expect(c, bad))


def test_a_lost_key_is_replaced_and_numbers_go_on(store: Store, http: httpx.Client, enrol: Enrol) -> None:
    old = enrol("shed")
    old.upload(7, b"sound")
    new = Device(http)
    answer = new.enrol(store.do(lambda c: devices.expect(c, "shed")))
    assert answer.json()["next_sequence"] == 8
    assert old.announce(announced(8, b"more")).status_code == 401
    assert new.upload(8, b"more") == "stored"


def rotate(device: Device, new: Key) -> httpx.Response:
    proof = new.proof(None, "PUT", "/v1/key", "", None)
    return device.send("PUT", "/v1/key", {"proof": proof})


def test_rotation_survives_a_lost_response(http: httpx.Client, enrol: Enrol, store: Store) -> None:
    device, new = enrol("roof"), Key()
    assert rotate(device, new).json() == {"device": "roof"}
    assert device.announce(announced(1, b"x")).status_code == 401  # the old key is out
    later = Device(http, new, "roof")
    assert rotate(later, new).json() == {"device": "roof"}
    assert later.upload(1, b"x") == "stored"
    assert any("signature" in e for e in events(store, "roof"))
    other = enrol("cellar")
    assert rotate(other, new).status_code == 401  # a key is one device's


def test_revoked_means_from_now_on_and_codes_too(store: Store, http: httpx.Client) -> None:
    device = Device(http)
    text = store.do(lambda c: devices.expect(c, "yard"))
    device.enrol(text)
    spare = store.do(lambda c: devices.expect(c, "yard"))
    assert device.upload(1, b"x") == "stored"
    store.do(lambda c: devices.revoke(c, "yard"))
    for answer in (device.announce(announced(2, b"y")), device.send("GET", "/v1/answers"), device.append(1, 0, b"x")):
        assert answer.status_code == 401
        assert "invalid_token" in answer.headers["www-authenticate"]
    assert device.enrol(text).status_code == device.enrol(spare).status_code == 403
    assert sum("revoked" in e for e in events(store, "yard")) >= 3
    with pytest.raises(TwoPhaseError, match="no device here"):
        store.do(lambda c: devices.revoke(c, "nobody"))


def test_a_recorded_request_is_refused(http: httpx.Client, enrol: Enrol, store: Store) -> None:
    device = enrol("gate")
    device.answers()
    body = httpx.Request("POST", "/", json={"clips": [announced(1, b"x")]}).content
    proof = device.key.proof("gate", "POST", "/v1/clips", device.nonce, body)

    def send(
        path: str = "/v1/clips", content: bytes = body, proof: str = proof, method: str = "POST"
    ) -> httpx.Response:
        return http.request(method, path, content=content, headers={"dpop": proof})

    assert send(content=body.replace(b"escalation", b"audit")).status_code == 401
    assert send(path="/v1/answers").status_code == 401
    assert send(path="/v1/clips?a=1").status_code == 401
    assert send().status_code == 200
    assert send().status_code == 401
    stale = device.key.proof("gate", "POST", "/v1/clips", "", body)
    assert "use_dpop_nonce" in send(proof=stale).headers["www-authenticate"]
    ours = device.key.proof("gate", "POST", "/v1/clips", "é" + device.nonce[:-1], body)
    assert "use_dpop_nonce" in send(proof=ours).headers["www-authenticate"]
    for wrong in ("", "x", "a.b.c", proof[:-4], proof.replace(".", "", 1)):
        assert send(proof=wrong).status_code == 401
    assert any("used before" in e for e in events(store, "gate"))
    assert any("another body" in e for e in events(store, "gate"))


def test_a_key_opens_its_own_device_only(http: httpx.Client, enrol: Enrol, store: Store) -> None:
    victim, thief = enrol("east"), enrol("west")
    victim.announce(announced(1, b"secret"))
    as_victim = Device(http, thief.key, "east")
    assert as_victim.send("GET", "/v1/answers").status_code == 401
    assert any("signature" in e for e in events(store, "east"))
    assert thief.append(1, 0, b"secret").status_code == 404
    victim.append(1, 0, b"secret")
    assert thief.announce(announced(1, b"other")).json()["clips"][0]["state"] == "receiving"  # a number of its own
    assert victim.announce(announced(1, b"secret")).json()["clips"][0]["state"] == "stored"
    for path in (
        "/metrics",
        "/v1/devices",
        "/v1/clips/1",
        "/updates/../gateway.sqlite",
        "/updates/%2e%2e/gateway.sqlite",
    ):
        assert http.get(path).status_code == 404
