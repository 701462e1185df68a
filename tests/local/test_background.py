"""The thread that runs jobs: no job's failure ends it, and a disk that was full for a while loses no job's end."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from twophase.errors import TwoPhaseError
from twophase.local import background
from twophase.local.background import Background


@pytest.fixture
def control() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as found:
        yield found


def test_a_job_that_fails_does_not_hinder_the_next(control: ThreadPoolExecutor) -> None:
    said: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def run(job: str) -> None:
        if job == "good":
            said.put((job, "done"))
            return
        raise TwoPhaseError("no") if job == "bad" else KeyError("oops")

    jobs = Background("jobs", run, lambda job, reason: said.put((job, reason)), control.submit)
    for job in ("bad", "worse", "good"):
        jobs.put(job)
    assert [said.get(timeout=10) for _ in range(3)] == [("bad", "no"), ("worse", "KeyError: 'oops'"), ("good", "done")]
    jobs.close(lambda: None)


def test_what_a_full_disk_refuses_is_entered_once_there_is_room(
    control: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "RETRY_S", 0.01)
    left, done = [None] * 3, SimpleQueue[str]()

    def enter() -> None:
        if left:
            left.pop()
            raise sqlite3.OperationalError("database or disk is full")

    def run(job: str) -> None:
        jobs.change(enter)
        done.put(job)

    jobs = Background("jobs", run, lambda job, reason: done.put(reason), control.submit)
    jobs.put("first")
    assert done.get(timeout=10) == "first"
    left += [None] * 10_000
    jobs.put("second")
    jobs.put("third")
    jobs.close(lambda: None)
    assert done.empty(), "what was under way is left for the next start"
