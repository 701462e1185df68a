"""Answers: online for few clips, one job for a backlog, once each, until they are fetched."""

import io
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from sqlalchemy import insert, select, update

from tests.device.cloud import Oracle
from tests.gateway.remote import Device, Process, announced
from twophase.audio.frontend import FRONT_END
from twophase.gateway import answers, asking, devices
from twophase.gateway.asking import Asking
from twophase.gateway.classifier import Away, Classifier, TargetClassifier
from twophase.gateway.server import open_store
from twophase.gateway.store import Store, clip, job
from twophase.targets.target import Target
from twophase.targets.vertex import VertexAI


def flac(pitch: int) -> bytes:
    file = io.BytesIO()
    sound = 0.3 * np.sin(np.arange(16_000) * pitch / 40)
    soundfile.write(file, sound, 16_000, format="FLAC")
    return file.getvalue()


@pytest.fixture
def store(tmp_path: Path, database: str) -> Iterator[Store]:
    store = open_store(tmp_path, database)
    yield store
    store.close()


def test_few_clips_are_answered_online_and_once(classifier: str, store: Store, database: str, tmp_path: Path) -> None:
    process = Process(tmp_path, "--api-endpoint", classifier, "--database", database)
    with httpx.Client(base_url=process.said, timeout=60) as http:
        device = Device(http)
        device.enrol(store.do(lambda c: devices.expect(c, "porch")))
        speaks = {"front_end": FRONT_END.fingerprint}
        assert device.upload(1, flac(7), **speaks) == "stored"
        (first,) = device.answers(wait=30)
        assert (first["sequence"], first["prediction"]["windows"]) == (1, 1)
        assert device.answers() == [first]  # until it is acknowledged
        device.acknowledge(1)
        device.acknowledge(1)
        assert device.answers() == []
        assert device.upload(1, flac(7), **speaks) == "done"
        assert device.upload(2, b"no sound at all", **speaks) == "stored"
        (bad,) = device.answers(wait=30)
        assert bad["error"]["code"] == 400
        other = device.announce(announced(3, flac(3))).json()["clips"][0]
        assert (other["state"], other["error"]["code"]) == ("rejected", 412)
    process.stop()


def backlog(store: Store, home: Path, clips: int) -> None:
    """Stored clips of three devices."""
    for n in range(clips):
        name, data = f"d{n % 3}", flac(1 + n)
        (home / "clips" / name).mkdir(parents=True, exist_ok=True)
        (home / "clips" / name / str(n)).write_bytes(data)
        row = {"device": name, "sequence": n, "state": "stored", "bytes": len(data), "announced": 0.0, "stored": 1.0}
        store.do(lambda c, row=row: c.execute(insert(clip).values(**row)))


def asking_of(store: Store, classifier: Classifier, home: Path, told: Any = lambda names: None) -> Asking:
    return Asking(store, classifier, lambda name, n: home / "clips" / name / str(n), home / "jobs", told)


class FailsAt(Oracle):
    """A classifier that breaks down whenever it is asked about clip 3."""

    def predict(self, clip: Path) -> Any:
        if clip.name == "3":
            raise Away("500 at clip 3")
        return super().predict(clip)


def stored(store: Store) -> list[int]:
    return store.do(lambda c: list(c.scalars(select(clip.c.sequence).where(clip.c.state == "stored"))))


def test_a_clip_that_the_classifier_fails_at_holds_up_no_other(store: Store, tmp_path: Path) -> None:
    backlog(store, tmp_path, 6)
    one = asking_of(store, FailsAt(), tmp_path)
    while len(stored(store)) > 1:
        time.sleep(0.01)
    one.close()
    assert stored(store) == [3]


def test_a_clip_that_it_fails_at_for_a_day_is_given_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FAILING_S", 0.0)
    backlog(store, tmp_path, 6)
    one = asking_of(store, FailsAt(), tmp_path)
    while stored(store):
        time.sleep(0.01)
    one.close()
    (found,) = store.do(lambda c: [a for a in answers.fetch(c, "d0", 10) if a["sequence"] == 3])
    assert found["error"]["code"] == 500


class Forgetful(Oracle):
    """A place where jobs go away while they run."""

    def ended(self, name: str) -> str | None:
        raise Away(f"{name}: there is no such job")


class Failing(Oracle):
    """A place where every job fails."""

    def ended(self, name: str) -> str | None:
        return "no machine is free"


@pytest.mark.parametrize("make", [Forgetful, Failing, partial(Oracle, runs_jobs=False)])
def test_a_backlog_is_answered_also_where_jobs_are_not(
    make: Callable[[], Oracle], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job that cannot be followed has taken waits again once it is given up; until then others are answered."""
    monkeypatch.setattr(asking, "_POLL_S", 0.02)
    monkeypatch.setattr(asking, "_LONGEST_S", 0.02)
    monkeypatch.setattr(asking, "QUIET_S", 0.0)
    monkeypatch.setattr(asking, "UNREAD", 3)
    oracle = make()
    backlog(store, tmp_path, 40)
    one = asking_of(store, oracle, tmp_path)
    while stored(store):
        time.sleep(0.01)
    one.close()
    assert len(oracle.jobs) == oracle.runs_jobs, "the next one would come a minute later"
    assert sum(len(store.do(lambda c, n=n: answers.fetch(c, f"d{n}", 100))) for n in range(3)) == 40


def test_a_large_backlog_is_several_jobs_one_after_the_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_POLL_S", 0.02)
    monkeypatch.setattr(asking, "QUIET_S", 0.0)
    monkeypatch.setattr(asking, "JOB_CLIPS", 30)
    backlog(store, tmp_path, 80)
    one = asking_of(store, oracle := Oracle(), tmp_path)
    while stored(store):
        time.sleep(0.01)
    one.close()
    assert [len(clips) for clips in oracle.jobs.values()] == [30, 30, 20]


def test_clips_that_the_disk_lost_are_asked_for_again_and_make_no_job(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_POLL_S", 0.05)
    backlog(store, tmp_path, 20)
    shutil.rmtree(tmp_path / "clips")
    oracle = Oracle()
    one = asking_of(store, oracle, tmp_path)
    while stored(store):
        time.sleep(0.01)
    one.close()
    assert oracle.jobs == {}
    rows = store.do(lambda c: c.execute(select(clip.c.state, clip.c.job)).all())
    assert {tuple(row) for row in rows} == {("receiving", None)}
    assert store.do(lambda c: c.execute(select(job)).all()) == []


def at(classifier: str) -> VertexAI:
    return VertexAI("two-phase", "local", "us-central1", classifier)


def jobs(classifier: str) -> list[dict]:
    where = f"{classifier}/v1/projects/local/locations/us-central1/batchPredictionJobs"
    return httpx.get(where).json().get("batchPredictionJobs", [])


def ask(store: Store, home: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let an `Asking` answer everything that waits; the devices that it told."""
    told: set[str] = set()
    monkeypatch.setattr(asking, "_POLL_S", 0.1)
    monkeypatch.setattr(asking, "QUIET_S", 0.1)
    one = asking_of(store, TargetClassifier(target), home, told.update)
    while store.do(lambda c: c.execute(select(clip).where(clip.c.state == "stored")).first()):
        time.sleep(0.05)
    one.close()
    return told


def test_a_backlog_of_many_devices_is_one_job(
    classifier: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(jobs(classifier))
    backlog(store, tmp_path, 30)
    assert ask(store, tmp_path, at(classifier), monkeypatch) == {"d0", "d1", "d2"}
    assert len(jobs(classifier)) == before + 1
    found = [store.do(lambda c, n=n: answers.fetch(c, f"d{n}", 100)) for n in range(3)]
    assert [[item["sequence"] for item in some] for some in found] == [list(range(n, 30, 3)) for n in range(3)]
    assert all(item["prediction"]["windows"] == 1 for some in found for item in some)
    assert httpx.get(f"{classifier}/storage/v1/b/local-twophase-staging/o").json().get("items", []) == []


@pytest.mark.parametrize("submitted", [True, False])
def test_a_job_is_found_again_after_a_crash(
    submitted: bool, classifier: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the job was written down, before or after it was submitted: it is made once."""
    before, id = len(jobs(classifier)), f"gateway-{secrets.token_hex(6)}"
    backlog(store, tmp_path, 20)
    store.do(lambda c: c.execute(insert(job).values(id=id, made=1.0)))
    store.do(lambda c: c.execute(update(clip).values(job=id)))
    if submitted:
        at(classifier).submit([tmp_path / "clips" / f"d{n % 3}" / str(n) for n in range(20)], id)
    ask(store, tmp_path, at(classifier), monkeypatch)
    assert len(jobs(classifier)) == before + 1
    assert sum(len(store.do(lambda c, n=n: answers.fetch(c, f"d{n}", 100))) for n in range(3)) == 20
    assert store.do(lambda c: c.execute(select(job)).all()) == []
