"""One job after another, in a thread of its own that no job's failure ends.

What a job changes in the store, it has changed in the control thread. A store that cannot be written, as on a full
disk, is asked again until it can, so that a job that has ended does not stay under way for ever.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from twophase.errors import TwoPhaseError

RETRY_S = 2.0
Submit = Callable[[Callable[[], Any]], "Future[Any]"]
Job = TypeVar("Job")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Background(Generic[Job]):
    """The thread and its queue."""

    def __init__(self, name: str, run: Callable[[Job], None], fail: Callable[[Job, str], None], submit: Submit) -> None:
        """`run` does a job; one that raises is given to `fail` with the reason. `submit` runs in the control thread."""
        self._run, self._fail, self._submit = run, fail, submit
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_all, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Do a job after those that wait already."""
        self._queue.put(job)

    @property
    def stopping(self) -> bool:
        """Whether the platform ends; what is under way goes on when it starts again."""
        return self._stopping.is_set()

    def change(self, call: Callable[[], T]) -> T:
        """What `call` gives in the control thread. For the thread of this queue."""
        while True:
            try:
                return self._submit(call).result()  # type: ignore[no-any-return]
            except (sqlite3.OperationalError, OSError):
                if self._stopping.wait(RETRY_S):
                    raise

    def close(self, end: Callable[[], None]) -> None:
        """Stop; `end` ends the processes of the job under way."""
        self._stopping.set()
        self._queue.put(None)
        end()
        self._thread.join()

    def _run_all(self) -> None:
        while (job := self._queue.get()) is not None and not self.stopping:
            try:
                self._do(job)
            except Exception:
                _log.exception("%s: is left as it is until the platform starts again", job)

    def _do(self, job: Job) -> None:
        try:
            self._run(job)
        except TwoPhaseError as error:
            self._fail(job, str(error))
        except Exception as error:
            if self.stopping:
                return
            _log.exception("%s: failed", job)
            self._fail(job, f"{type(error).__name__}: {error}")
