"""Gate updates against a real repository: what is installed, and everything that leaves the old gate in use."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.device.cloud import cloud
from twophase.device import status, updates
from twophase.device.clock import Clock
from twophase.device.config import Config
from twophase.device.gates import FILES
from twophase.device.identity import Identity
from twophase.errors import TwoPhaseError
from twophase.files import digest
from twophase.gateway import devices
from twophase.release import sign


@dataclass
class Place:
    """A repository, its keys, and the static host that devices read."""

    repository: Path
    keys: Path
    public: Path
    url: str

    def offer(self, release: Path, percent: int = 100) -> None:
        sign.sign(release, self.repository, self.keys, percent)
        sign.publish(self.repository, self.public)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    public = tmp_path / "public"
    public.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(public)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Place(tmp_path / "repository", tmp_path / "keys", public, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def device(tmp_path: Path, release: Path, place: Place) -> Path:
    """A device with the first gate, which trusts the repository's first root."""
    state = tmp_path / "state"
    place.offer(release)
    Identity("porch", place.url, Identity.make(place.url).private_key).write(state)
    shutil.copy(place.repository / "metadata" / "1.root.json", state / "root.json")
    assert updates.update(state, place.url).state == "installed"
    return state


def in_use(state: Path) -> str:
    return updates.current(state)[0].name


def id_of(release: Path) -> str:
    return str(json.loads((release / FILES[0]).read_text())["id"])


def test_a_newer_gate_replaces_the_old_and_the_one_before_stays(
    device: Path, place: Place, release: Path, newer: Path
) -> None:
    assert in_use(device) == id_of(release)
    assert updates.update(device, place.url) == updates.Outcome("current")
    place.offer(newer)
    assert updates.update(device, place.url) == updates.Outcome("installed", id_of(newer))
    assert in_use(device) == id_of(newer)
    assert {p.name for p in (device / "gates").glob("r-*")} == {id_of(release), id_of(newer)}


def test_a_gate_in_use_that_is_offered_again_is_never_removed(
    device: Path, place: Place, release: Path, tmp_path: Path
) -> None:
    """Enrolled with the very gate that the repository offers later: there is no moment without it."""
    state = tmp_path / "other"
    Identity("porch", place.url, Identity.make(place.url).private_key).write(state)
    shutil.copy(place.repository / "metadata" / "1.root.json", state / "root.json")
    updates.install(state, release)
    file = updates.current(state)[0] / FILES[1]
    inode = file.stat().st_ino
    assert updates.update(state, place.url) == updates.Outcome("installed", id_of(release))
    updates.install(state, release, 7)
    assert updates.current(state) == (file.parents[1], 7)
    assert file.stat().st_ino == inode
    file.write_bytes(b"damaged")
    updates.install(state, release, 7)  # one that is not whole is replaced
    assert file.read_bytes() == (release / FILES[1]).read_bytes()


def test_a_gate_is_for_its_cohort_and_never_when_halted(device: Path, place: Place, newer: Path) -> None:
    share = next(p for p in range(101) if updates.in_cohort("porch", id_of(newer), p))
    place.offer(newer, share - 1)
    assert updates.update(device, place.url).state == "current"
    place.offer(newer, share)
    updates.halt(device, [id_of(newer)])
    assert updates.update(device, place.url).state == "current"
    updates.halt(device, [])
    assert updates.update(device, place.url).state == "installed"


def test_older_metadata_and_older_gates_are_refused(device: Path, place: Place, newer: Path, release: Path) -> None:
    shutil.copytree(place.public, place.public.with_name("older"))
    place.offer(newer)
    assert updates.update(device, place.url).state == "installed"
    shutil.rmtree(place.public)
    shutil.copytree(place.public.with_name("older"), place.public)
    with pytest.raises(TwoPhaseError, match="not believed"):
        updates.update(device, place.url)
    shutil.rmtree(device / "updates")  # even a device that forgot what it saw never goes back
    assert updates.update(device, place.url).state == "current"
    assert in_use(device) == id_of(newer)


def test_another_enrolment_may_name_another_repository(
    device: Path, place: Place, release: Path, newer: Path, tmp_path: Path
) -> None:
    """What is left when the root key is lost: a new repository, whose serials begin anew, and enrolling again."""
    place.offer(newer)
    assert updates.update(device, place.url).state == "installed"
    root = (place.repository / "metadata" / "1.root.json").read_text()
    updates.believe(device, root)  # the same again changes nothing
    assert updates.current(device)[1] == 2
    shutil.rmtree(place.public)
    other = Place(tmp_path / "other", tmp_path / "other-keys", place.public, place.url)
    other.offer(release)
    with pytest.raises(TwoPhaseError, match="not believed"):
        updates.update(device, place.url)
    updates.believe(device, (other.repository / "metadata" / "1.root.json").read_text())
    assert updates.update(device, place.url) == updates.Outcome("installed", id_of(release))


def test_a_device_enrolled_before_the_first_publication_gets_its_gate(
    place: Place, release: Path, newer: Path, tmp_path: Path
) -> None:
    """By the real gateway: nobody has to go there and enrol it again, also where it has no gate to begin with."""
    state = tmp_path / "early"
    with cloud(tmp_path / "gateway") as gateway:
        gateway.enrol(state)
        for _ in range(2):
            assert updates.update(state) == updates.Outcome("waiting", reason="none until the gateway has published")
        assert status.resting(state, Config())["updates"] == "none until the gateway has published"
        place.offer(release)
        sign.publish(place.repository, tmp_path / "gateway" / "updates")
        assert updates.update(state) == updates.Outcome("installed", id_of(release))
        assert status.resting(state, Config())["updates"] == "on"
        assert not list(state.glob(".root*"))
        (known,) = gateway.store.do(devices.listed)
        assert known["gate"] == ""
        root = (state / "root.json").read_text()
        other = Place(tmp_path / "other", tmp_path / "other-keys", tmp_path / "public-too", "")
        other.offer(newer)
        shutil.rmtree(tmp_path / "gateway" / "updates")
        shutil.copytree(other.public, tmp_path / "gateway" / "updates")
        with pytest.raises(TwoPhaseError, match="not believed"):  # what it has is never replaced
            updates.update(state)
        assert (state / "root.json").read_text() == root


def test_another_signer_is_not_believed(device: Path, place: Place, newer: Path, release: Path, tmp_path: Path) -> None:
    shutil.rmtree(place.public)
    sign.sign(newer, tmp_path / "other", tmp_path / "other-keys", 100)
    sign.renew(tmp_path / "other", tmp_path / "other-keys")
    sign.publish(tmp_path / "other", place.public)
    with pytest.raises(TwoPhaseError, match="not believed"):
        updates.update(device, place.url)
    assert in_use(device) == id_of(release)


def test_cut_or_changed_anywhere_the_old_gate_stays(device: Path, place: Place, newer: Path, release: Path) -> None:
    place.offer(newer)
    (target,) = place.public.glob(f"targets/{id_of(newer)}/assets.extra/*.gate.tflite")
    whole = target.read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], b"", whole[:100] + b"\0" + whole[101:]):
        target.write_bytes(broken)
        with pytest.raises(TwoPhaseError, match="stays"):
            updates.update(device, place.url)
        assert in_use(device) == id_of(release)
    target.write_bytes(whole)
    assert updates.update(device, place.url).state == "installed"


def test_a_gate_that_decides_otherwise_here_is_reported_and_not_tried_again(
    device: Path, place: Place, newer: Path, release: Path, tmp_path: Path
) -> None:
    """Signed, whole, and wrong on this processor: as if its golden answers came from another."""
    place.offer(newer)
    (golden,) = place.repository.glob(f"targets/{id_of(newer)}/assets.extra/golden/*.golden.npz")
    bad = tmp_path / "bad"
    shutil.copytree(newer, bad)
    with np.load(golden) as said:
        np.savez(bad / FILES[2], windows=said["windows"], gate=said["gate"] + 1, classifier=said["classifier"])
    manifest = json.loads((bad / FILES[0]).read_text())
    manifest["digests"][FILES[2]] = digest(bad / FILES[2])
    (bad / FILES[0]).write_text(json.dumps(manifest))
    place_of = sign._open(place.repository, place.keys)
    offer = sign.Offer(id_of(newer), 3, 100)
    place_of.offer([offer], bad, id_of(newer))
    sign.publish(place.repository, place.public)
    outcome = updates.update(device, place.url)
    assert (outcome.state, outcome.release) == ("failed", id_of(newer))
    assert "does not decide here" in outcome.reason
    assert updates.failed(device) == {id_of(newer): outcome.reason}
    assert in_use(device) == id_of(release)
    assert updates.update(device, place.url).state == "current"


def test_updates_wait_for_a_plausible_time(device: Path, place: Place, newer: Path, monkeypatch: Any) -> None:
    place.offer(newer)
    for when in (0.0, time.time() + 10 * 365 * 86_400):
        monkeypatch.setattr(time, "time", lambda when=when: when)
        assert updates.update(device, place.url).state == "waiting"
    monkeypatch.undo()
    assert updates.update(device, place.url).state == "installed"


def test_the_clock_is_trusted_above_its_floor_and_near_the_gateway(tmp_path: Path, monkeypatch: Any) -> None:
    now = time.time()
    Clock(tmp_path).told(now)
    for offset, trusted in ((0, True), (-86_400, False), (3600, True), (10 * 365 * 86_400, False), (-now, False)):
        monkeypatch.setattr(time, "time", lambda offset=offset: now + offset)
        assert Clock(tmp_path).trusted == trusted, offset
        heard = Clock(tmp_path)
        heard.told(now)
        assert heard.trusted == (offset == 0)


def test_a_server_that_drips_is_ended(device: Path, newer: Path, release: Path) -> None:
    """One byte a moment would go on for hours; the look for an update has an end."""
    from twophase.device.agent import look_for_update

    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    while True:
                        connection.sendall(b" ")
                        time.sleep(0.05)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        outcome = look_for_update(device, url, limit_s=3)
        server.shutdown(socket.SHUT_RDWR)  # where the machine is so busy that it did not even connect
        thread.join()
    assert outcome.state == "error"
    assert "3 s" in outcome.reason
    assert in_use(device) == id_of(release)
