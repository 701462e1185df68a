"""News on one machine: a folder is watched, and new data in it starts a run on the platform of this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

from pipelines.clients import Vertex
from pipelines.news import Reaction, Watch, is_news, react
from pipelines.submission import Submission


def watch_folder(
    watch: Watch, jobs: Vertex, order: Callable[[str], Submission], quiet_s: float, stop: Event | None = None
) -> Iterator[Reaction]:
    """React at once to what was missed, then to news, gathered until the folder is quiet for `quiet_s` seconds.

    Ends when `stop` is set, or with the process.
    """
    from watchfiles import Change
    from watchfiles import watch as changes

    yield react(watch, jobs, order)
    every = changes(watch.place, debounce=int(1000 * quiet_s), stop_event=stop, raise_interrupt=False)
    for found in every:
        if any(change != Change.deleted and is_news(watch, str(Path(path))) for change, path in found):
            yield react(watch, jobs, order)
