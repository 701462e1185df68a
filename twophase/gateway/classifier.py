"""Whom the gateway asks: an endpoint for a few clips, a batch prediction job for many, at any target.

`Classifier` is all that the gateway knows of a target; `TargetClassifier` makes one of every `twophase.targets.Target`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.targets.jobs import RUNNING, SUCCEEDED, Jobs
from twophase.targets.requests import BLAMED, ClipRefused
from twophase.targets.target import Target

_FRONT_END_S = 60.0
"""How long what is live is taken to stay live."""
_RPC = {3: 400, 11: 400}
"""What of google.rpc's codes, which are 1 to 16, blames a clip: INVALID_ARGUMENT and OUT_OF_RANGE."""


class Away(TwoPhaseError):
    """The classifier cannot be asked now; nothing is known about the clip."""


class NoneSent(TwoPhaseError):
    """Not one of a job's clips can be sent; `predict` says of each why."""


class Classifier(Protocol):
    """What answers clips. Every method may raise `Away`.

    An answer is `{"prediction": ...}`, or `{"error": ...}` with a code from 400 to 499 where the clip is what is wrong.
    """

    runs_jobs: bool
    """Whether there are batch jobs; the methods from `submit` on are for those."""

    def front_end(self) -> str:
        """The fingerprint of the front end that it speaks; empty where that is not known."""

    def predict(self, clip: Path) -> JSON:
        """Its answer to one clip."""

    def submit(self, job: str, clips: Sequence[Path], scratch: Path) -> None:
        """Start one batch job, by the gateway's own id for it; files that are needed meanwhile are put in `scratch`.

        Raises `NoneSent`.
        """

    def find(self, job: str) -> str | None:
        """The place's name of the job that was started with this id, if there is one."""

    def ended(self, name: str) -> str | None:
        """Whether a job has ended: None while it goes on, else empty, or why it failed."""

    def answers(self, name: str) -> Iterator[tuple[Path, JSON]]:
        """The answers of a job that has ended, those that say nothing of their clip left out."""

    def clean(self, name: str) -> None:
        """Remove what a job was given, and what it wrote."""


class TargetClassifier:
    """One name at a place. Use it from one thread at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.runs_jobs = isinstance(target, Jobs)
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
                return _refused(refused.code, refused.said)
        return {"prediction": prediction}

    def submit(self, job: str, clips: Sequence[Path], scratch: Path) -> None:
        """See `Classifier`."""
        with _away():
            try:
                self._jobs.submit(clips, job, scratch)
            except ClipRefused as refused:
                raise NoneSent(str(refused)) from None

    def find(self, job: str) -> str | None:
        """See `Classifier`."""
        with _away():
            return self._jobs.find(job)

    def ended(self, name: str) -> str | None:
        """See `Classifier`."""
        with _away():
            job = self._jobs.job(name)
        return None if job.state == RUNNING else "" if job.state == SUCCEEDED else job.why or job.state

    def answers(self, name: str) -> Iterator[tuple[Path, JSON]]:
        """See `Classifier`."""
        with _away():
            for line in self._jobs.results(name):
                where = line.pop("clip")
                if "error" not in line:
                    yield Path(where), {"prediction": line}
                elif code := _code(line["error"]):
                    message = str(line["error"].get("message", "")).removeprefix(f"{where}: ")
                    yield Path(where), _refused(code, message)

    def clean(self, name: str) -> None:
        """See `Classifier`."""
        with _away():
            self._jobs.forget(name)

    @property
    def _jobs(self) -> Jobs:
        assert isinstance(self._target, Jobs)
        return self._target


@contextmanager
def _away() -> Iterator[None]:
    """Whatever a place says of anything but a clip: it is asked again later."""
    try:
        yield
    except NoneSent:
        raise
    except TwoPhaseError as error:
        raise Away(str(error)) from None


def _code(error: Any) -> int:
    """The HTTP status of a line's error where it blames the clip, else 0."""
    code: Any = error.get("code") if isinstance(error, dict) else None
    return int(code) if code in BLAMED else _RPC.get(code, 0)


def _refused(code: int, message: str) -> JSON:
    return {"error": {"code": code, "message": message, "status": "INVALID_ARGUMENT"}}
