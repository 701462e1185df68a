"""What a cloud refuses, in one message that says what to do; and how else asking for a run can end."""

import contextlib
from collections.abc import Iterator

from twophase.errors import TwoPhaseError, UsageError
from twophase.targets import google_errors


class AlreadyThere(TwoPhaseError):
    """A run of this id was asked for before."""


class RunEndedBadly(TwoPhaseError):
    """The run was watched until it failed or was cancelled."""


@contextlib.contextmanager
def in_words(at: str, what: str) -> Iterator[None]:
    """Turn what Google's clients raise into this project's errors: `at` is the address, `what` is asked for there."""
    from google.api_core.exceptions import Conflict

    try:
        with google_errors.in_words(at):
            try:
                yield
            except Conflict as error:  # AlreadyExists through gRPC, its parent through REST
                raise AlreadyThere(f"{what}: a run of this id is there already; nothing was done") from error
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error
