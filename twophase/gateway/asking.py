"""Asking the classifier: few clips one by one at the endpoint, a backlog as one batch job. One thread, never gives up.

A backlog is whatever waits, of one device or of a thousand: once more than `ONLINE` clips do, it gathers until nothing
more has come for a moment and then becomes one job; the next job is made when that one has ended. Few clips that come
meanwhile are asked online, and so is a backlog where the place runs no jobs, or fails at them.

A job is written down before it is submitted, under an id that is its name at the place, so that after a crash it is
found again rather than made again. Its row goes last: when its clips are answered or wait again, and what it was given
and wrote is removed. One that cannot be followed for an hour while the place answers, whoever took it away, is given
up, and its clips wait again. Asking twice is harmless: the first answer stays (`twophase.gateway.answers`).

    home/jobs/    what is being uploaded; nothing of it counts
"""

import logging
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, delete, insert, select, update

from twophase.files import JSON
from twophase.gateway import answers
from twophase.gateway.classifier import Away, Classifier, NoneSent
from twophase.gateway.store import Store, clip, job, note

ONLINE = 16
"""More clips than these that wait together are a backlog."""
QUIET_S = 5.0
"""A backlog has gathered when nothing has come for this long,"""
GATHER_S = 60.0
"""or when the first of it has waited this long."""
JOB_CLIPS, JOB_BYTES = 10_000, 256 << 20
"""The largest job; the rest of a backlog is the next one."""
UNREAD = 60
"""How often in a row a job cannot be followed before it is given up: about an hour."""
FAILING_S = 86_400.0
"""How long the classifier may fail at a clip while it answers others: then the clip is what is wrong."""
_POLL_S = 2.0
_LONGEST_S = 60.0
_AFTER_FAILED_JOB_S = (60.0, 3600.0)
"""How long no job is made after one that failed, and at most after many in a row."""
_TOGETHER = 500

_logger = logging.getLogger(__name__)
Clip = tuple[str, int]


class Asking:
    """The thread that asks. `answered` is called with the names of devices that have new answers."""

    def __init__(
        self,
        store: Store,
        classifier: Classifier,
        path: Callable[[str, int], Path],
        scratch: Path,
        answered: Callable[[set[str]], None],
    ) -> None:
        """`path` says where a clip lies: in a folder of its device's name, as its number."""
        self._store, self._classifier, self._path, self._answered = store, classifier, path, answered
        self._scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)  # what a crash left
        self._woken, self._ending = Event(), Event()
        self.jobs_made = 0
        self.front_end = ""
        """The classifier's; empty while it has never been reached."""
        self.trouble = ""
        """Why the classifier cannot be asked now; empty while it can."""
        self._failing: dict[Clip, float] = {}
        """Since when the classifier has failed at a clip."""
        self._failed_jobs, self._no_job_before = 0, 0.0
        self._unread = 0
        self._thread = Thread(target=self._run, name="asking", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A clip was stored."""
        self._woken.set()

    def close(self) -> None:
        """End after the present question; what waits is asked after the next start."""
        self._ending.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._ending.is_set():
            try:
                self.front_end = self._classifier.front_end()
                heed, after_s = self._step()
                wait_s, self.trouble = 0.0, ""
            except Exception as error:  # whatever it is, the clips stay and are asked about again
                if not isinstance(error, Away):
                    _logger.exception("asking the classifier failed")
                if not self.trouble:
                    _logger.warning("the classifier cannot be asked, clips wait: %s", error)
                self.trouble = str(error)
                heed, after_s = self._ending, min(_LONGEST_S, max(1.0, 2 * wait_s))
                wait_s = after_s
            heed.wait(after_s)
            self._woken.clear()

    def _step(self) -> tuple[Event, float]:
        """Do what can be done now; what to wait for before the next step, and for how long at most, in seconds."""
        id: str | None = self._store.do(lambda c: c.execute(select(job.c.id)).scalar())
        running, trouble = id is not None, None
        if id is not None:
            try:
                running = not self._follow(id)
                self._unread = 0
            except Exception as error:  # the job's: others are asked about all the same
                trouble, self._unread = error, self._unread + 1
                if self._unread >= UNREAD:
                    self._end(id, f"given up, since it cannot be followed: {error}")
                    self._forget(id)
        count, oldest, newest = self._store.do(answers.backlog)
        now = time.time()
        gathered = not (0 <= now - newest <= QUIET_S and 0 <= now - oldest <= GATHER_S)  # also where the clock jumped
        jobs = self._classifier.runs_jobs and trouble is None and time.monotonic() >= self._no_job_before
        if count <= ONLINE or not jobs:
            self._ask(self._few())
        elif gathered and not running:
            self._start()
        if trouble is not None:
            raise trouble
        if count > ONLINE:
            return self._ending, _POLL_S if jobs else 0.0  # one clip more changes nothing now
        return self._woken, _POLL_S if running else _LONGEST_S

    # Online

    def _few(self) -> list[Clip]:
        """Clips that wait, first those at which the classifier has not failed."""
        found = self._store.do(lambda c: answers.waiting(c, ONLINE + len(self._failing)))
        return sorted(((row.device, row.sequence) for row in found), key=lambda key: self._failing.get(key, 0.0))[
            :ONLINE
        ]

    def _ask(self, clips: list[Clip]) -> None:
        """Ask about clips one by one. One that the classifier fails at does not hold up the others."""
        failed: list[Clip] = []
        away, answered = None, 0
        for key in random.sample(clips, len(clips)):
            if self._ending.is_set():
                return
            if not self._path(*key).is_file():
                self._lost(key)
                continue
            try:
                answered += self._put([(*key, self._classifier.predict(self._path(*key)))])
            except Away as error:
                failed.append(key)
                away = error
                if len(failed) > 1 and not answered:  # it is not the clip
                    raise
        if answered:
            self._failed_at(failed)
        if away is not None:
            raise away

    def _failed_at(self, clips: Iterable[Clip]) -> None:
        """The classifier answered others, and not these."""
        now = time.monotonic()
        for key in clips:
            if now - self._failing.setdefault(key, now) >= FAILING_S:
                why = "the classifier has failed at this clip for a day while it answered others"
                self._put([(*key, {"error": {"code": 500, "message": why, "status": "INTERNAL"}})])

    # In a job

    def _start(self) -> None:
        """Make one job of what has waited longest."""
        id = f"gateway-{uuid4().hex[:12]}"

        def make(c: Connection) -> None:
            room = JOB_BYTES
            c.execute(insert(job).values(id=id, made=time.time()))
            for row in answers.waiting(c, JOB_CLIPS):
                room -= row.bytes
                if room < 0:
                    break
                c.execute(
                    update(clip).where(clip.c.device == row.device, clip.c.sequence == row.sequence).values(job=id)
                )

        self._store.do(make)
        self._submit(id)

    def _submit(self, id: str) -> None:
        there = []
        for key in self._members(id):
            if self._path(*key).is_file():
                there.append(self._path(*key))
            else:
                self._lost(key)
        if not there:
            return self._forget(id)
        self._scratch.mkdir(exist_ok=True)
        try:
            self._classifier.submit(id, there, self._scratch)
            self.jobs_made += 1
        except NoneSent:
            self._put((*_key(path), self._classifier.predict(path)) for path in there)

    def _follow(self, id: str) -> bool:
        """Take a job one step further; whether it is over."""
        name = self._classifier.find(id)
        if self._members(id):
            if name is None:
                self._submit(id)
                return False
            why = self._classifier.ended(name)
            if why is None:
                return False
            if not why and not self._put((*_key(path), said) for path, said in self._classifier.answers(name)):
                why = "it answered no clip"
            if not why:
                self._failed_at(self._members(id))
            self._end(id, why)
        if name is not None:
            self._classifier.clean(name)
        self._forget(id)
        return True

    def _end(self, id: str, why: str) -> None:
        """Let the clips of a job wait again that it did not answer; `why` is why it failed, if it did."""

        def free(c: Connection) -> None:
            c.execute(update(clip).where(clip.c.job == id).values(job=None))
            if why:
                note(c, "job failed", "", f"{id}: {why}")

        self._store.do(free)
        self._failed_jobs = self._failed_jobs + 1 if why else 0
        if why:
            _logger.warning("batch job %s failed, its clips wait again: %s", id, why)
            first_s, most_s = _AFTER_FAILED_JOB_S
            self._no_job_before = time.monotonic() + min(first_s * 2.0 ** (self._failed_jobs - 1), most_s)

    def _forget(self, id: str) -> None:
        self._unread = 0
        self._store.do(lambda c: c.execute(delete(job).where(job.c.id == id)))

    # Both

    def _members(self, id: str) -> list[Clip]:
        columns = (clip.c.device, clip.c.sequence)
        rows = self._store.do(lambda c: c.execute(select(*columns).where(clip.c.job == id)).all())
        return [(row.device, row.sequence) for row in rows]

    def _lost(self, key: Clip) -> None:
        self._store.do(lambda c: answers.lost(c, *key))

    def _put(self, found: Iterable[tuple[str, int, JSON]]) -> int:
        """Write answers down, tell who has some; how many there were."""
        count = 0
        for some in _chunks(found):

            def put(c: Connection, some: list[tuple[str, int, JSON]] = some) -> set[str]:
                return {device for device, sequence, answer in some if answers.put(c, device, sequence, answer)}

            self._answered(self._store.do(put))
            count += len(some)
            for device, sequence, _ in some:
                self._failing.pop((device, sequence), None)
        return count


def _key(path: Path) -> Clip:
    """Whose clip a file is, and its number."""
    return path.parent.name, int(path.name)


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, _TOGETHER)):
        yield some
