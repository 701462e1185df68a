"""Batch jobs: clips that go to a place together, and answers that are fetched when it is done.

A job has a folder of its own at the place, and nothing of it is kept here, so that who asks for the answers need not be
who submitted it:

    clips.jsonl    one line a clip, in order: `{"clip": path}`, or with an `error` where it could not be sent
    in.jsonl       one instance a line, of those that could

The folder is removed once the answers are written, or it is known that there will be none. Until then a fetch that was
cut off is done again.
"""

import base64
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, replacing
from twophase.targets.requests import ClipRefused, Limits, sent
from twophase.targets.target import Target

CLIPS, INSTANCES = "clips.jsonl", "in.jsonl"
RUNNING, SUCCEEDED, FAILED, CANCELLED = "running", "succeeded", "failed", "cancelled"
NO_ANSWER: JSON = {"error": {"code": 503, "message": "the job gave no answer to it"}}


@dataclass(frozen=True)
class Job:
    """A batch job as it stands."""

    name: str
    state: str
    """`running`, `succeeded`, `failed` or `cancelled`."""
    why: str = ""
    """Why it failed, in the place's own words."""

    def to_json(self) -> JSON:
        """For machines."""
        return {"job": self.name, "state": self.state, "why": self.why}


class Jobs(Target):
    """One name at a place that runs batch jobs."""

    def submit(self, clips: Sequence[Path], name: str = "", scratch: Path | None = None) -> str:
        """Start a job about clips; the place's name for it. A clip that cannot be sent costs no other.

        `name`, by which `find` finds it, is a word, a dash and 12 hex digits that no job had. What is uploaded is
        written to `scratch` first, by default the system's. Raises `ClipRefused` when no clip can be sent, else
        `TwoPhaseError`.
        """
        with TemporaryDirectory(dir=scratch) as folder:
            write_instances(clips, self.limits, Path(folder))
            return self.start(Path(folder), name or f"{self.model}-{secrets.token_hex(6)}")

    def fetch(self, name: str, output: Path) -> int:
        """Write the answers of a job that succeeded, one line a clip, in order; how many clips were not answered.

        Raises `UsageError` while it runs, `TwoPhaseError` when it did not succeed.
        """
        job = self.job(name)
        if job.state == RUNNING:
            raise UsageError(f"{name}: is still running; see `twophase batch status`")
        if job.state != SUCCEEDED:
            self.forget(name)
            raise TwoPhaseError(f"{name}: is {job.state}: {job.why or 'no reason given'}")
        failed = write_answers(self.results(name), output)
        self.forget(name)
        return failed

    def results(self, name: str) -> Iterator[JSON]:
        """What a job that succeeded says of each clip, in order: the lines of `Target.batch`."""
        return by_clip(self.told(name), self.answers(name))

    def batch(self, clips: Sequence[Path], output: Path, say: Callable[[str], None] = lambda words: None) -> int:
        """Submit, wait, fetch; `say` is told the job's name, by which `twophase batch` finds what was cut off here."""
        name, wait_s = self.submit(clips), 0.1
        say(f"batch job {name}")
        while self.job(name).state == RUNNING:
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 15.0)
        return self.fetch(name, output)

    @abstractmethod
    def start(self, folder: Path, name: str) -> str:
        """Upload `clips.jsonl` and `in.jsonl` of a folder, and have the live version answer the latter.

        The job is called `name`; the name that the place gives it.
        """

    @abstractmethod
    def find(self, name: str) -> str | None:
        """The place's name for the job that was started as `name`; None where none was."""

    @abstractmethod
    def job(self, name: str) -> Job:
        """How far a job is. Raises `TwoPhaseError` when there is none of that name."""

    @abstractmethod
    def cancel(self, name: str) -> None:
        """Ask for the end of a job that runs."""

    @abstractmethod
    def told(self, name: str) -> bytes:
        """A job's `clips.jsonl`."""

    @abstractmethod
    def answers(self, name: str) -> Iterator[JSON]:
        """What a job that succeeded said, a prediction or an error for each line of `in.jsonl`, in order."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Remove a job's folder; nothing where it is gone."""


def write_instances(clips: Sequence[Path], limits: Limits, folder: Path) -> None:
    """Write `clips.jsonl` and `in.jsonl` into a folder. Raises `TwoPhaseError` when not one clip can be sent."""
    count, why = 0, TwoPhaseError("there are no clips; give clip files")
    with (folder / CLIPS).open("wb") as names, (folder / INSTANCES).open("wb") as instances:
        for clip in clips:
            line: JSON = {"clip": str(clip)}
            try:
                data = base64.b64encode(sent(clip, limits)).decode()
            except TwoPhaseError as error:
                code = {"code": error.code} if isinstance(error, ClipRefused) else {}
                line["error"], why = {**code, "message": str(error)}, error
            else:
                instances.write(orjson.dumps({"audio_bytes": {"b64": data}}, option=orjson.OPT_APPEND_NEWLINE))
                count += 1
            names.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    if not count:
        raise why


def count_sent(told: bytes) -> int:
    """How many clips of a `clips.jsonl` were sent: the lines of its `in.jsonl`."""
    return sum("error" not in orjson.loads(line) for line in told.splitlines())


def by_clip(told: bytes, answers: Iterator[JSON]) -> Iterator[JSON]:
    """Join the clips of `clips.jsonl` with the answers to those of them that were sent."""
    for line in told.splitlines():
        clip = orjson.loads(line)
        yield clip if "error" in clip else clip | next(answers, NO_ANSWER)


def write_answers(results: Iterator[JSON], output: Path) -> int:
    """Write one line a clip, whole or not at all; how many clips were not answered."""
    failed = 0
    with replacing(output) as file:
        for found in results:
            failed += "error" in found
            file.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))
    return failed
