"""Asking the classifier: few clips one by one at the endpoint, a backlog as one batch job. One thread, never gives up.

A backlog is whatever waits, of one device or of a thousand: once more than `ONLINE` clips do, it gathers until nothing
more has come for a moment and then becomes one job; the next job is made when that one has ended. Few clips that come
meanwhile are asked online.

A job is written down before it is submitted, under an id that is its display name, so that after a crash it is found
again rather than made again. Asking twice is harmless: the first answer stays (`twophase.gateway.answers`).
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, delete, insert, select, update

from twophase.files import JSON
from twophase.gateway import answers
from twophase.gateway.classifier import Away, Classifier
from twophase.gateway.store import Store, clip, job, note

ONLINE = 16
"""More clips than these that wait together are a backlog."""
QUIET_S = 5.0
"""A backlog has gathered when nothing has come for this long,"""
GATHER_S = 60.0
"""or when the first of it has waited this long."""
_POLL_S = 2.0
_LONGEST_S = 60.0
_TOGETHER = 500

_logger = logging.getLogger(__name__)


class Asking:
    """The thread that asks. `answered` is called with the names of devices that have new answers."""

    def __init__(
        self,
        store: Store,
        classifier: Classifier,
        path: Callable[[str, int], Path],
        answered: Callable[[set[str]], None],
    ) -> None:
        self._store, self._classifier, self._path, self._answered = store, classifier, path, answered
        self._woken, self._ending = Event(), Event()
        self.jobs_made = 0
        self.front_end = ""
        """The classifier's; empty while it has never been reached."""
        self.trouble = ""
        """Why the classifier cannot be asked now; empty while it can."""
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
        running = self._store.do(lambda c: c.execute(select(job)).one_or_none())
        if running is not None and self._follow(running):
            running = None
        count, oldest, newest = self._store.do(answers.backlog)
        if count <= ONLINE:
            self._ask(self._store.do(lambda c: answers.waiting(c, ONLINE)))
            return self._woken, _POLL_S if running is not None else _LONGEST_S
        now = time.time()
        gathered = not (0 <= now - newest <= QUIET_S and 0 <= now - oldest <= GATHER_S)  # also where the clock jumped
        if running is None and gathered:
            self._start()
        return self._ending, _POLL_S  # one clip more changes nothing now

    def _ask(self, found: list[Row[Any]]) -> None:
        """Ask about clips one by one. One that the classifier fails at does not hold up the others."""
        failed: Away | None = None
        for row in random.sample(found, len(found)):
            if self._ending.is_set():
                return
            path = self._path(row.device, row.sequence)
            if not path.is_file():
                self._lost(row)
                continue
            try:
                self._put([(row.device, row.sequence, self._classifier.predict(path))])
            except Away as error:
                if failed is not None:  # it is not the clip
                    raise
                failed = error
        if failed is not None:
            raise failed

    def _start(self) -> None:
        """Make one job of everything that waits."""
        id = f"gateway-{uuid4().hex[:12]}"

        def make(c: Connection) -> None:
            c.execute(insert(job).values(id=id, made=time.time()))
            c.execute(update(clip).where(clip.c.state == "stored", clip.c.job.is_(None)).values(job=id))

        self._store.do(make)
        self._submit(id)

    def _submit(self, id: str) -> None:
        def members(c: Connection) -> list[Row[Any]]:
            return list(c.execute(select(clip.c.device, clip.c.sequence).where(clip.c.job == id)))

        there = []
        for row in self._store.do(members):
            path = self._path(row.device, row.sequence)
            if path.is_file():
                there.append(path)
            else:
                self._lost(row)
        if not there:
            self._store.do(lambda c: c.execute(delete(job).where(job.c.id == id)))
            return
        name = self._classifier.submit(id, there)
        self._store.do(lambda c: c.execute(update(job).where(job.c.id == id).values(name=name)))
        self.jobs_made += 1

    def _lost(self, row: Row[Any]) -> None:
        self._store.do(lambda c: answers.lost(c, row.device, row.sequence))

    def _follow(self, running: Row[Any]) -> bool:
        """Take a job one step further; whether it is over."""
        name = running.name or self._classifier.find(running.id)
        if name is None:
            self._submit(running.id)
            return False
        failed = self._classifier.ended(name)
        if failed is None:
            return False
        if failed:
            _logger.warning("batch job %s failed, its clips wait again: %s", name, failed)
        elif not self._put((path.parent.name, int(path.name), said) for path, said in self._classifier.answers(name)):
            failed = "it answered no clip"

        def over(c: Connection) -> None:
            c.execute(update(clip).where(clip.c.job == running.id).values(job=None))
            c.execute(delete(job).where(job.c.id == running.id))
            if failed:
                note(c, "job failed", "", f"{name}: {failed}")

        self._store.do(over)
        self._classifier.clean(name)
        if failed:
            raise Away(f"{name}: {failed}")
        return True

    def _put(self, found: Iterable[tuple[str, int, JSON]]) -> int:
        """Write answers down, tell who has some; how many. An error that is the classifier's own is no answer."""
        count = 0
        final = (item for item in found if item[2].get("error", {}).get("code", 0) < 500)
        for some in _chunks(final):

            def put(c: Connection, some: list[tuple[str, int, JSON]] = some) -> set[str]:
                return {device for device, sequence, answer in some if answers.put(c, device, sequence, answer)}

            self._answered(self._store.do(put))
            count += len(some)
        return count


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, _TOGETHER)):
        yield some
