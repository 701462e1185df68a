"""Whom the gateway asks: an endpoint for a few clips, a batch prediction job for many, at any target.

`Classifier` is all that the gateway knows of a target; `TargetClassifier` makes one of every `twophase.targets.Target`.
Where a place runs no batch jobs it is asked about a backlog at once, and the answers lie here until they are read:

    home/answers/JOB.jsonl    one line a clip
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import orjson

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.targets.jobs import RUNNING, SUCCEEDED, Jobs, write_answers
from twophase.targets.requests import ClipRefused
from twophase.targets.target import Target

_FRONT_END_S = 60.0
"""How long what is live is taken to stay live."""


class Away(TwoPhaseError):
    """The classifier cannot be asked now; nothing is known about the clip."""


class Classifier(Protocol):
    """What answers clips. Every method may raise `Away`; an answer is `{"prediction": ...}` or `{"error": ...}`."""

    def front_end(self) -> str:
        """The fingerprint of the front end that it speaks; empty where that is not known."""

    def predict(self, clip: Path) -> JSON:
        """Its answer to one clip."""

    def submit(self, job: str, clips: Sequence[Path]) -> str:
        """Start one batch job about clips; the place's name for it. `job` is the gateway's own id for it."""

    def find(self, job: str) -> str | None:
        """The place's name of the job that was started with this id, if one was."""

    def ended(self, name: str) -> str | None:
        """Whether a job has ended: None while it goes on, else empty, or why it failed."""

    def answers(self, name: str) -> Iterator[tuple[Path, JSON]]:
        """The answers of a job that has ended."""

    def clean(self, name: str) -> None:
        """Remove what a job was given, and what it wrote."""


class TargetClassifier:
    """One name at a place. Use it from one thread at a time."""

    def __init__(self, target: Target, home: Path) -> None:
        """`home` is the gateway's folder."""
        self._target, self._folder = target, home / "answers"
        self._front_end, self._asked = "", -_FRONT_END_S

    def front_end(self) -> str:
        """See `Classifier`; looked up at most every minute."""
        if time.monotonic() - self._asked >= _FRONT_END_S:
            with _away():
                self._front_end = self._target.front_end()
            self._asked = time.monotonic()
        return self._front_end

    def predict(self, clip: Path) -> JSON:
        """See `Classifier`."""
        with _away():
            try:
                (prediction,) = self._target.predict([clip])
            except ClipRefused as refused:
                return {"error": _error(refused)}
        return {"prediction": prediction}

    def submit(self, job: str, clips: Sequence[Path]) -> str:
        """See `Classifier`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _away():
            try:
                if isinstance(self._target, Jobs):
                    return self._target.submit(clips, job)
                self._target.batch(clips, self._here(job))
            except ClipRefused as refused:  # not one of them can be sent
                write_answers(({"clip": str(clip), "error": _error(refused)} for clip in clips), self._here(job))
        return job

    def find(self, job: str) -> str | None:
        """See `Classifier`."""
        if self._here(job).is_file():
            return job
        with _away():
            return self._target.find(job) if isinstance(self._target, Jobs) else None

    def ended(self, name: str) -> str | None:
        """See `Classifier`."""
        if not isinstance(self._target, Jobs) or self._here(name).is_file():
            return ""
        with _away():
            job = self._target.job(name)
        return None if job.state == RUNNING else "" if job.state == SUCCEEDED else job.why or job.state

    def answers(self, name: str) -> Iterator[tuple[Path, JSON]]:
        """See `Classifier`."""
        with _away():
            for line in self._lines(name):
                clip, error = Path(line.pop("clip")), line.get("error")
                yield clip, {"prediction": line} if error is None else {"error": error}

    def clean(self, name: str) -> None:
        """See `Classifier`."""
        if self._here(name).is_file():
            self._here(name).unlink()
        elif isinstance(self._target, Jobs):
            with _away():
                self._target.forget(name)

    def _lines(self, name: str) -> Iterator[JSON]:
        if isinstance(self._target, Jobs) and not self._here(name).is_file():
            return self._target.results(name)
        return map(orjson.loads, self._here(name).read_bytes().splitlines())

    def _here(self, name: str) -> Path:
        return self._folder / f"{name.rpartition('/')[2]}.jsonl"


@contextmanager
def _away() -> Iterator[None]:
    """Whatever a place says of anything but a clip: it is asked again later."""
    try:
        yield
    except TwoPhaseError as error:
        raise Away(str(error)) from None


def _error(refused: ClipRefused) -> JSON:
    return {"code": refused.code, "message": str(refused), "status": "INVALID_ARGUMENT"}
