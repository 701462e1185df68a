"""The uplink against a real gateway: delivery, refusals, budgets, waits, and a gateway that is away."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.device.cloud import Cloud, cloud
from tests.device.sounds import HEARD as SAID
from tests.device.sounds import noise
from twophase.audio.frontend import FRONT_END
from twophase.device import budget, clock
from twophase.device.budget import Budget, Daily
from twophase.device.client import Client, NotThisKey
from twophase.device.clock import Clock
from twophase.device.enrol import enrol, rotate
from twophase.device.identity import Identity
from twophase.device.link import Away
from twophase.device.spool import Spool, opened
from twophase.device.uplink import LONGEST_S, Backoff, Fetcher, Sender, keep_going
from twophase.errors import TwoPhaseError, UsageError
from twophase.gateway import devices

HEARD = replace(SAID, front_end=FRONT_END.fingerprint)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def sender(spool: Spool, identity: Identity, state: Path, daily: Daily | None = None) -> Sender:
    return Sender(spool, Client(identity), Budget(state / "budget.json", daily or Daily()))


def fetch_all(spool: Spool, identity: Identity) -> list[Any]:
    got: list[Any] = []
    fetcher = Fetcher(spool, Client(identity), got.append)
    while spool.expects_answers():
        fetcher.round(wait_s=5)
    return got


def test_clips_go_up_and_answers_come_back_with_their_story(gateway: Cloud, tmp_path: Path) -> None:
    identity = gateway.enrol(tmp_path, "one")
    with opened(tmp_path / "spool") as spool:
        sent = [spool.put(noise(seed), HEARD) for seed in range(3)]
        audit = spool.put(noise(9), replace(HEARD, kind="audit", score=-3.0))
        sending = sender(spool, identity, tmp_path)
        while spool.waiting(1):
            sending.round()
        got = fetch_all(spool, identity)
        assert [a["sequence"] for a in got] == [*sent, audit]
        assert got[0]["answer"]["label"] == "oboe"
        assert got[0]["captured"] == HEARD.captured
        assert got[-1]["kind"] == "audit"
        assert spool.status()["waiting"] == spool.status()["sent"] == 0


def test_a_backlog_comes_back_as_one_job(gateway: Cloud, tmp_path: Path) -> None:
    identity = gateway.enrol(tmp_path, "two")
    with opened(tmp_path / "spool") as spool:
        for seed in range(40):
            spool.put(noise(seed, 0.02), HEARD)
        sending = sender(spool, identity, tmp_path)
        while spool.waiting(1):
            sending.round()
        assert len(fetch_all(spool, identity)) == 40
        assert len(list(spool.answers())) == 40


def test_another_front_end_is_refused_kept_and_named_once(gateway: Cloud, tmp_path: Path) -> None:
    identity = gateway.enrol(tmp_path, "three")
    with opened(tmp_path / "spool") as spool:
        good = spool.put(noise(1), HEARD)
        bad = spool.put(noise(2), replace(HEARD, front_end="fe-000000000000"))
        sender(spool, identity, tmp_path).round()
        assert spool.waiting(9) == []
        assert spool.sent(9) == [good]
        why = (tmp_path / "spool" / "v1" / "refused" / f"{bad:012d}.why").read_text()
        assert "fe-000000000000" in why
        assert spool.status()["refused"] == 1


@pytest.mark.parametrize("offset", [0, 5])
def test_an_upload_that_is_not_expected_is_announced_again(gateway: Cloud, tmp_path: Path, offset: int) -> None:
    """Never announced is 404, another offset 409: neither makes a dead letter."""
    identity = gateway.enrol(tmp_path, f"from-{offset}")
    with opened(tmp_path / "spool") as spool:
        sequence = spool.put(noise(1), HEARD)
        assert sequence
        sending = sender(spool, identity, tmp_path)
        if offset:
            sending._announce([sequence])
        with pytest.raises(Away, match="409" if offset else "404"):
            sending._upload(sequence, offset)
        sending.round()
        assert spool.sent(9) == [sequence]


def test_a_lost_index_costs_no_second_answer(gateway: Cloud, tmp_path: Path) -> None:
    identity = gateway.enrol(tmp_path, "four")
    with opened(tmp_path / "spool") as spool:
        spool.put(noise(1), HEARD)
        sender(spool, identity, tmp_path).round()
        assert spool.sent(9) == [1]
    (tmp_path / "spool" / "v1" / "index.db").unlink()
    with opened(tmp_path / "spool") as spool:
        assert spool.waiting(9) == [1]
        sender(spool, identity, tmp_path).round()
        assert spool.sent(9) == [1]
        assert len(fetch_all(spool, identity)) == 1


def test_the_day_has_a_budget_and_the_next_day_another(gateway: Cloud, tmp_path: Path) -> None:
    identity = gateway.enrol(tmp_path, "five")
    with opened(tmp_path / "spool") as spool:
        for seed in range(5):
            spool.put(noise(seed, 0.02), HEARD)
        for days, sent in ((0, 2), (0, 2), (1, 4)):  # a restart is no new day
            day = 1_800_000_000.0 + days * 86_400
            budget = Budget(tmp_path / "budget.json", Daily(calls=2), lambda day=day: day)
            assert Sender(spool, Client(identity), budget).round() > 0
            assert len(spool.sent(9)) == sent


def test_a_revoked_key_keeps_everything_and_a_new_code_mends_it(gateway: Cloud, tmp_path: Path) -> None:
    identity = gateway.enrol(tmp_path, "six")
    with opened(tmp_path / "spool") as spool:
        spool.put(noise(1), HEARD)
        gateway.store.do(lambda c: devices.revoke(c, "six"))
        with pytest.raises(NotThisKey):
            sender(spool, identity, tmp_path).round()
        assert spool.waiting(9) == [1]
        again = gateway.enrol(tmp_path, "six")
        assert again.private_key != identity.private_key
        sender(spool, again, tmp_path).round()
        assert spool.sent(9) == [1]


def test_a_key_is_rotated_also_when_the_answer_was_lost(gateway: Cloud, tmp_path: Path) -> None:
    old = gateway.enrol(tmp_path, "seven")
    new = rotate(tmp_path)
    assert new.private_key != old.private_key
    assert Identity.read(tmp_path) == new
    new.write(tmp_path, "enrolling.json")
    old.write(tmp_path)  # as if the answer had not come
    assert rotate(tmp_path) == new
    new.write(tmp_path, "enrolling.json")  # as if it had been killed after the new key came into use
    newest = rotate(tmp_path)
    assert newest.private_key not in (old.private_key, new.private_key)
    new = newest
    with pytest.raises(NotThisKey):
        Client(old).answers(0)
    assert Client(new).answers(0) == []


def test_the_key_is_for_its_owner_alone_and_a_used_code_is_refused(gateway: Cloud, tmp_path: Path) -> None:
    code = gateway.store.do(lambda c: devices.expect(c, "eight"))
    first = enrol(tmp_path / "a", gateway.url, code)
    assert (tmp_path / "a" / "identity.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(TwoPhaseError):
        enrol(tmp_path / "b", gateway.url, code)
    replace(first, device="").write(tmp_path / "a", "enrolling.json")  # as if the answer had not come
    assert enrol(tmp_path / "a", gateway.url, code).private_key == first.private_key


def test_a_gateway_that_is_away_costs_waits_and_nothing_else(tmp_path: Path) -> None:
    identity = replace(Identity.make("http://127.0.0.1:9"), device="porch")
    with opened(tmp_path / "spool") as spool:
        spool.put(noise(1), HEARD)
        with pytest.raises(Away):
            sender(spool, identity, tmp_path).round()
        assert spool.waiting(9) == [1]


@contextmanager
def portal(code: int, body: bytes) -> Iterator[str]:
    """What answers everything alike: a hotel's network, a proxy that is being set up."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_the_gateways_own_refusal_makes_a_dead_letter(tmp_path: Path) -> None:
    refusal = b'{"error": {"code": 400, "message": "clips[0].kind: is a song", "status": "INVALID_ARGUMENT"}}'
    with opened(tmp_path / "spool") as spool:
        spool.put(noise(1), HEARD)
        for code, body in ((200, b"<html>welcome"), (302, b""), (403, b"<html>"), (404, b"{}"), (500, refusal)):
            with portal(code, body) as url, pytest.raises(Away, match=str(code)):
                sender(spool, replace(Identity.make(url), device="porch"), tmp_path).round()
            assert spool.waiting(9) == [1]
        for code, body in ((400, refusal), (413, b"<html>too large for this proxy")):
            sequence = spool.put(noise(2), HEARD) if code == 413 else 1
            with portal(code, body) as url:
                sender(spool, replace(Identity.make(url), device="porch"), tmp_path).round()
            assert spool.waiting(9) == []
            assert (tmp_path / "spool" / "v1" / "refused" / f"{sequence:012d}.flac").is_file()


def test_a_disk_that_takes_no_notes_holds_nothing_up(
    gateway: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes up makes room, so neither the clock's floor nor the day's budget waits for the disk."""
    identity = gateway.enrol(tmp_path, "nine")

    def full(path: Path, value: Any) -> None:
        raise TwoPhaseError(f"{path}: the disk is full")

    with opened(tmp_path / "spool") as spool:
        sequence = spool.put(noise(1), HEARD)
        monkeypatch.setattr(budget, "write_json", full)
        monkeypatch.setattr(clock, "write_json", full)
        client = Client(identity, Clock(tmp_path).told)
        Sender(spool, client, Budget(tmp_path / "budget.json", Daily(calls=5))).round()
        assert spool.sent(9) == [sequence]


def test_many_threads_may_tell_the_time_at_once(tmp_path: Path) -> None:
    told = Clock(tmp_path)
    failed: list[BaseException] = []

    def tell(first: int) -> None:
        try:
            for hours in range(first, first + 100, 2):
                told.told(1_800_000_000 + 7200.0 * hours)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=tell, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_waits_double_are_capped_jittered_and_heed_the_gateway() -> None:
    backoff = Backoff(random.Random(0))
    waits = [backoff.failed() for _ in range(2000)]
    assert 0.5 <= waits[0] <= 1
    assert all(LONGEST_S / 2 <= wait <= LONGEST_S for wait in waits[11:])
    assert len(set(waits)) == len(waits)
    assert backoff.failed(5000) >= 5000
    backoff.succeeded()
    assert backoff.failed() <= 1


def test_what_fails_is_tried_again_until_it_goes_well() -> None:
    stop, said = threading.Event(), []
    results: list[Any] = [Away("no network"), KeyError("clips"), NotThisKey("revoked"), OSError("disk")]
    results += [TwoPhaseError("disk"), RuntimeError("a slip"), 0.0]

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return super().wait(0)

    stop = Impatient()

    def work() -> float:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        stop.set()
        return float(result)

    keep_going(work, stop, said.append)
    assert [bool(message) for message in said] == [True] * 6 + [False]


def test_addresses_that_give_a_key_away_are_refused() -> None:
    with pytest.raises(UsageError, match="only https"):
        Client(Identity.make("http://gateway.example"))
    with pytest.raises(UsageError, match="is no address"):
        Client(Identity.make("gateway.example"))
