"""A step as a process: it says where it stands, works where no other run does, and ends when nobody listens any more.

What a step prints is read by whoever runs it (kfp's local runners, a launcher in a container). When that is gone, even
by `kill -9`, the step ends at once, as it does when it is told to (SIGTERM: a run that is cancelled): an exception
unwinds it, so that a version half deployed is taken back. Whole files are all that it leaves.

In a workdir that outlives steps there are two kinds of locks on `WORKDIR/.lock`: `twophase run` holds it for all its
steps (run_local.py), steps of a submitted run share it while they work. Either is refused while the other is there.
"""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from twophase import progress
from twophase.files import locked

HELD = "TWOPHASE_HELD"
"""Environment variable: the workdir that this step's run holds for it."""


GRACE_S = 10.0
"""How long a step that nobody listens to may take to end in order."""


@contextmanager
def step(name: str, workdir: str = "") -> Iterator[progress.Step]:
    """Do a step's work, in `workdir` where it needs one; errors are said as `twophase.progress.step` says them."""
    try:
        with progress.step(name) as say, ExitStack() as during:
            during.enter_context(_ending_in_order())
            during.enter_context(_while_read())
            if workdir and os.environ.get(HELD) != workdir:
                during.enter_context(locked(Path(workdir), "this workdir", shared=True))
            yield say
    except _ToldToEnd:
        os._exit(128 + signal.SIGTERM)  # an interpreter with TensorFlow in it takes seconds to end


class _ToldToEnd(BaseException):
    """What SIGTERM raises."""


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Make an exception of the first SIGTERM; one more, as of a runner that ends too, would cut off what unwinds."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _ToldToEnd

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _while_read() -> Iterator[None]:
    """End this process when the other end of its standard output is closed; otherwise the next line would tell it."""
    over = os.eventfd(0)
    done, either = select.poll(), select.poll()
    for poll in (done, either):
        poll.register(over, select.POLLIN)
    either.register(1, 0)  # a pipe without readers is an error, which is told unasked; files and terminals have none

    def watch() -> None:
        if dict(either.poll()).get(1, 0) & (select.POLLERR | select.POLLHUP):
            os.kill(os.getpid(), signal.SIGTERM)
            if not done.poll(1000 * GRACE_S):
                os.kill(os.getpid(), signal.SIGKILL)

    watcher = threading.Thread(target=watch, name="reader", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        watcher.join()
        os.close(over)
