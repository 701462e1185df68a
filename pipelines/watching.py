"""News on one machine: a folder is watched, and new data in it starts a run on the platform of this machine."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

from pipelines.clients import Vertex
from pipelines.news import Reaction, Watch, is_news, react
from pipelines.submission import Submission
from twophase.errors import TwoPhaseError

_LONGEST_BURST = 20
"""A burst of news that does not end is reacted to after so many times the quiet that would end it."""


def watch_folder(
    watch: Watch,
    jobs: Vertex,
    order: Callable[[str], Submission],
    quiet_s: float,
    stop: Event | None = None,
    sweep_s: float = 300.0,
) -> Iterator[Reaction]:
    """React at once to what was missed, then to news, gathered until the folder is quiet for `quiet_s` seconds.

    Every `sweep_s` seconds what lies there is looked at without news: for runs that failed or were held back, for an
    address that did not answer, for news between the first look and the watching. Only what came of that anew is told.
    Ends when `stop` is set, or with the process.
    """
    from watchfiles import Change
    from watchfiles import watch as changes

    told = _react(watch, jobs, order)
    yield told
    every = changes(
        watch.place,
        step=int(1000 * quiet_s),
        debounce=int(1000 * quiet_s * _LONGEST_BURST),
        rust_timeout=int(1000 * sweep_s),
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=False,
    )
    looked = time.monotonic()
    for found in every:
        news = any(change != Change.deleted and is_news(watch, str(Path(path))) for change, path in found)
        if news or time.monotonic() - looked >= sweep_s:
            looked, reaction = time.monotonic(), _react(watch, jobs, order)
            if news or reaction != told:
                yield (told := reaction)


def _react(watch: Watch, jobs: Vertex, order: Callable[[str], Submission]) -> Reaction:
    """A reaction, also to what cannot be reached: nobody delivers the news again here but the next sweep."""
    try:
        return react(watch, jobs, order)
    except TwoPhaseError as error:
        return Reaction("", str(error))
