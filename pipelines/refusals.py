"""What a cloud refuses, in one message that says what to do; and how else asking for a run can end."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from twophase.errors import TwoPhaseError, UsageError
from twophase.targets import google_errors
from twophase.targets.google_errors import NoAnswer

PATIENCE_S = 600.0
"""How long a run that is watched may be out of sight: runs take hours, and connections are lost."""
T = TypeVar("T")


class AlreadyThere(TwoPhaseError):
    """A run of this id was asked for before."""


class RunEndedBadly(TwoPhaseError):
    """The run was watched until it failed or was cancelled."""


def patiently(ask: Callable[[], T]) -> T:
    """The answer to a question that changes nothing. It is asked again, which is said once, while nobody answers.

    Raises `NoAnswer` after `PATIENCE_S` seconds of that.
    """
    began, pause_s = time.monotonic(), 0.5
    while True:
        try:
            return ask()
        except NoAnswer as error:
            if time.monotonic() - began + pause_s > PATIENCE_S:
                raise
            if pause_s == 0.5:
                print(f"{error}; it is asked again for {PATIENCE_S / 60:.0f} minutes", file=sys.stderr)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 15.0)


@contextlib.contextmanager
def in_words(at: str, what: str) -> Iterator[None]:
    """Turn what Google's clients raise into this project's errors: `at` is the address, `what` is asked for there."""
    from google.api_core.exceptions import Aborted, Conflict

    try:
        with google_errors.in_words(at):
            try:
                yield
            except Conflict as error:
                if _aborted(error):
                    raise Aborted(error.message) from error
                raise AlreadyThere(f"{what}: a run of this id is there already; nothing was done") from error
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error


def _aborted(conflict: Any) -> bool:
    """Whether a conflict is with another change under way, and not with what is there already.

    gRPC tells `Aborted` from `AlreadyExists`; through REST both are their parent, told apart by the answer's status.
    """
    from google.api_core.exceptions import Aborted

    if isinstance(conflict, Aborted):
        return True
    try:
        return bool(conflict.response.json()["error"]["status"] == "ABORTED")
    except (AttributeError, ValueError, KeyError, TypeError):
        return False
