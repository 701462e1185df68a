"""What devices report, and what follows from it: figures with intervals, drift, and releases that are halted."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import insert, select, update

from tests.gateway.remote import Device
from twophase.gateway import advice, devices, field, retention
from twophase.gateway.server import open_store
from twophase.gateway.store import Store, clip, day, log, outcome

GATE = "r-0123456789ab"


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[Store]:
    store = open_store(tmp_path, database)
    for i in range(40):
        store.do(lambda c, i=i: devices.expect(c, f"d{i}"))
    yield store
    store.close()


def status(windows: int, escalated: int, audited: int, at: int = 10, **more: object) -> dict:
    scores = [0] * field.BINS
    scores[at] = windows
    period = {"id": "1", "gate": GATE, "windows": windows, "escalated": escalated, "audited": audited, "scores": scores}
    return {"gate": GATE, "periods": [period], **more}


def report(store: Store, name: str, value: dict) -> dict:
    return store.do(lambda c: field.report(c, name, field.parse(value)))


def answered(store: Store, name: str, kind: str, wanted: int, not_wanted: int, first: int) -> None:
    rows = [
        {"device": name, "sequence": first + i, "state": "answered", "bytes": 1, "announced": time.time()}
        | {"sha256": "x", "stored": time.time(), "kind": kind, "gate": GATE, "wanted": i < wanted}
        for i in range(wanted + not_wanted)
    ]
    store.do(lambda c: c.execute(insert(clip), rows))


def test_reports_count_once_however_often_and_late_they_come(store: Store) -> None:
    for windows, escalated in ((100, 5), (100, 5), (400, 30), (100, 5)):
        report(store, "d0", status(windows, escalated, 1))
    (row,) = store.do(lambda c: c.execute(select(day)).all())
    assert (row.counters["windows"], row.counters["escalated"], sum(row.counters["scores"])) == (400, 30, 400)


def test_recall_and_escalation_lie_in_their_intervals(store: Store) -> None:
    rng = np.random.default_rng(1)
    for i in range(30):  # 10 % escalated, 90 % of that wanted; of the rest 1 % wanted: recall .09 / (.09 + .009)
        escalated = int(rng.binomial(10_000, 0.1))
        report(store, f"d{i}", status(10_000, escalated, 200))
        wanted, missed = int(rng.binomial(50, 0.9)), int(rng.binomial(200, 0.01))
        answered(store, f"d{i}", "escalation", wanted, 50 - wanted, 1)
        answered(store, f"d{i}", "audit", missed, 200 - missed, 1000)
    (found,) = store.do(field.figures)
    assert (found.gate, found.devices, found.windows, found.audited) == (GATE, 30, 300_000, 6000)
    assert found.escalation.low < 0.1 < found.escalation.high
    assert found.recall is not None
    assert found.recall.low < 0.09 / 0.099 < found.recall.high
    assert found.recall.high - found.recall.low < 0.06
    assert found.drift is None


def test_drift_compares_the_last_week_with_the_first(store: Store) -> None:
    today = int(time.time()) // 86_400
    for at, bin in ((today - 20, 10), (today - 1, 10)):
        put_day(store, at, bin)
    assert store.do(field.figures)[0].drift == pytest.approx(0)
    put_day(store, today, 25)
    drift = store.do(field.figures)[0].drift
    assert drift is not None
    assert drift > field.DRIFTED


def put_day(store: Store, at: int, bin: int) -> None:
    scores = [0] * field.BINS
    scores[bin] = 2_000
    counters = {"windows": 2_000, "escalated": 100, "audited": 10, "scores": scores}
    store.do(lambda c: c.execute(insert(day).values(gate=GATE, day=at, device="d0", counters=counters)))


def test_advice_is_given_once_with_the_clips_that_it_rests_on(store: Store, tmp_path: Path) -> None:
    home, news = tmp_path, tmp_path / "news"
    manifest = home / "updates" / "targets" / GATE / "assets.extra" / "0123.release.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"operating_point": {"recall": 0.95}}))
    report(store, "d0", status(100_000, 1_000, 500))
    answered(store, "d0", "escalation", 90, 10, 1)
    answered(store, "d0", "audit", 20, 180, 1000)  # recall .009 / (.009 + .099)
    (home / "clips" / "d0").mkdir(parents=True)
    (home / "clips" / "d0" / "1").write_bytes(b"fLaC...")
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence == 1).values(prediction={"label": "Oboe"})))
    (found,) = advice.give(store, home, news)
    assert (found.gate, found.do) == (GATE, "retune")
    assert advice.give(store, home, news) == []
    folder = news / f"{GATE}-retune"
    assert sorted(path.name for path in folder.iterdir()) == ["1-d0.flac", "labels.csv", "manifest.json"]
    assert (folder / "labels.csv").read_text().splitlines() == ["fname,label,manually_verified", "1-d0.flac,Oboe,0"]
    assert json.loads((folder / "manifest.json").read_text())["do"] == "retune"


def test_a_release_that_fails_is_halted_for_all(store: Store) -> None:
    def tried(name: str, state: str, release: str = "r-new") -> list[str]:
        update = {"release": release, "state": state, "reason": "golden window 3"}
        return report(store, name, status(1, 0, 0, updates=[update]))["halted"]

    assert [tried(f"d{i}", "installed") for i in range(10)] == [[]] * 10
    assert tried("d10", "failed") == tried("d10", "failed") == []  # one device's own trouble
    assert tried("d11", "failed") == ["r-new"]
    assert tried("d12", "installed", "r-other") == ["r-new"]
    (event,) = store.do(lambda c: c.execute(select(log).where(log.c.what == "release halted")).all())
    assert "failed on 2 of 12 devices" in event.message


def test_reports_are_checked(gateway: tuple[Path, str], enrol: Callable[[str], Device]) -> None:
    device = enrol("reporter")
    assert device.send("PUT", "/v1/status", status(10, 1, 1)).json() == {"halted": []}
    for bad in ([], {}, {"gate": 1}, status(1, 2, 0), status(-1, 0, 0), status(1, 0, 0, updates=[{"release": "r"}])):
        assert device.send("PUT", "/v1/status", bad).status_code == 400
    with httpx.Client(base_url=gateway[1]) as http:
        assert http.put("/v1/status", json=status(1, 0, 0)).status_code == 401


def test_clips_are_forgotten_by_one_by_time_and_all(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "d0"
    folder.mkdir(parents=True)
    answered(store, "d0", "audit", 1, 3, 1)
    report(store, "d0", status(10, 1, 1, updates=[{"release": "r-x", "state": "installed"}]))
    for n in range(1, 5):
        (folder / str(n)).write_bytes(b"x")
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence == 2).values(announced=5.0)))

    def left() -> tuple[set[str], set[int]]:
        rows = store.do(lambda c: c.execute(select(clip).where(clip.c.kind.is_not(None))).all())
        return {path.name for path in folder.iterdir()}, {row.sequence for row in rows}

    assert retention.forget(store, tmp_path, "d0", sequence=1) == 1
    assert left() == ({"2", "3", "4"}, {2, 3, 4})
    assert retention.forget(store, tmp_path, "d0", before=10.0) == 1
    assert left() == ({"3", "4"}, {3, 4})
    assert retention.forget(store, tmp_path, "d0") == 2
    assert left() == (set(), set())
    assert store.do(lambda c: c.execute(select(day)).all() + c.execute(select(outcome)).all()) == []
    assert {r.state for r in store.do(lambda c: c.execute(select(clip)).all())} == {"done"}  # the numbers stay used


def test_time_takes_sound_first_and_answers_once_they_are_fetched(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "d0"
    folder.mkdir(parents=True)
    answered(store, "d0", "audit", 3, 0, 1)
    for n in range(1, 4):
        (folder / str(n)).write_bytes(b"x")
    old = {"announced": time.time() - 40 * 86_400}
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence < 3).values(**old)))
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence == 1).values(state="done")))
    assert retention.expire(store, tmp_path, 30) == 1
    assert [path.name for path in folder.iterdir()] == ["3"]
    rows = {row.sequence: row for row in store.do(lambda c: c.execute(select(clip)).all())}
    assert rows[1].wanted is None
    assert (rows[2].state, rows[2].wanted) == ("answered", True)  # it waits to be fetched
