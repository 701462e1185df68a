"""New training data starts a run, exactly one, however often and wherever the news comes in.

News is an object that was written last: `_SUCCESS` or `manifest.json` below the watched place. What the pipeline writes
itself is never news. What is there decides the rest:

    watched place --listing--> digest of names and stamps of what was written last --> two-phase-<digest>[-<attempt>]

The id is the claim. Whoever creates the job of that id has started the run; `already there` is success. A crash before
that leaves no run, a crash after it leaves the one run; news that is delivered again finds which. A run that failed is
tried again under the next attempt's id. There is no state besides the jobs themselves.

Two things hold runs back: fewer new clips than a run is worth, and as many runs today as are paid for. Reacting without
news is harmless, so a schedule that does it (a sweep) finds what was missed; clips that are being written just then are
no reason for a run, since nothing is written last yet.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

from pipelines.clients import Vertex
from pipelines.refusals import AlreadyThere
from pipelines.submission import Submission
from twophase.audio import sources
from twophase.files import digest, digest_of

WRITTEN_LAST = ("_SUCCESS", "manifest.json")
FAILED = ("PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED")


@dataclass(frozen=True)
class Watch:
    """What is watched, and how often it may start a run."""

    place: str
    """A folder or a URL that clips are put below."""
    own: tuple[str, ...] = ()
    """Places that the pipeline writes to: nothing below them is news."""
    new_clips: int = 0
    """So many files more than the last run saw, or more, are worth a run; 0 for any news."""
    runs_a_day: int = 24
    """Most runs that news of this place starts in a day."""
    attempts: int = 3
    """How often one state of the data is tried when runs fail."""


@dataclass(frozen=True)
class Reaction:
    """What came of news: the job where there is one, and why in words."""

    job: str
    words: str
    started: bool = False


def is_news(watch: Watch, location: str) -> bool:
    """Whether an object says that new data is whole: written last, below the place, and not by the pipeline."""
    below = location.startswith(watch.place.rstrip("/") + "/")
    return below and not _own(watch, location) and PurePosixPath(location).name in WRITTEN_LAST


def react(watch: Watch, jobs: Vertex, order: Callable[[str], Submission]) -> Reaction:
    """Start the run for what lies at the watched place now, unless it was started or is held back.

    `order` makes the submission for a digest of the data. Raises `TwoPhaseError` when the place or the address cannot
    be reached: the news is then to be delivered again.
    """
    found = [file for file in sources.listing(watch.place) if not _own(watch, file.location)]
    news = [[file.name, file.stamp] for file in found if is_news(watch, file.location)]
    if not news:
        return Reaction("", f"nothing is whole yet: there is no {' or '.join(WRITTEN_LAST)}")
    files = len(found) - len(news)
    asked = order(digest_of([[file.name, file.stamp] for file in found]))
    name = f"{asked.name}-{digest_of([watch.place, asked.arguments.get('model'), news])[:24]}"
    mine = {"trigger": digest(watch.place.encode())[:16], "files": str(files)}
    for attempt in range(1, watch.attempts + 1):
        job_id = name if attempt == 1 else f"{name}-{attempt}"
        there = jobs.get(job_id)
        if there is None:
            held = _held_back(watch, jobs.started(mine["trigger"]), files) if attempt == 1 else ""
            if held:
                return Reaction("", held)
            try:
                made = jobs.submit(replace(asked, job_id=job_id, labels={**asked.labels, **mine}))
            except AlreadyThere:
                return Reaction(job_id, "another delivery of the same news started it")
            return Reaction(made, f"started for {files} files", started=True)
        if there.state.name not in FAILED:
            return Reaction(job_id, f"was started before ({there.state.name})")
    return Reaction(name, f"failed {watch.attempts} times; mend it and submit it by hand")


def _own(watch: Watch, location: str) -> bool:
    return any(location.startswith(own.rstrip("/") + "/") for own in watch.own)


def _held_back(watch: Watch, started: list[tuple[datetime, int]], files: int) -> str:
    """Why no new run is to be started; empty where none speaks against it. `started`: when, and how many files."""
    if started and 0 <= files - max(started)[1] < watch.new_clips:
        return f"{files - max(started)[1]} new files are fewer than the {watch.new_clips} that a run is worth"
    today = datetime.now(UTC).date()
    count = sum(when.date() == today for when, _ in started)
    return (
        f"{count} runs today are as many as may be; a sweep of tomorrow starts it" if count >= watch.runs_a_day else ""
    )
