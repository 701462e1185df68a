"""What a cloud refuses, in one message that says what to do; and how else asking for a run can end."""

import contextlib
from collections.abc import Iterator

from twophase.errors import TwoPhaseError, UsageError


class AlreadyThere(TwoPhaseError):
    """A run of this id was asked for before."""


class RunEndedBadly(TwoPhaseError):
    """The run was watched until it failed or was cancelled."""


@contextlib.contextmanager
def in_words(at: str, what: str) -> Iterator[None]:
    """Turn what Google's clients raise into this project's errors: `at` is the address, `what` is asked for there."""
    from google.api_core import exceptions as said
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    try:
        yield
    except said.Conflict as error:  # AlreadyExists through gRPC, its parent through REST
        raise AlreadyThere(f"{what}: a run of this id is there already; nothing was done") from error
    except GoogleAuthError as error:
        raise TwoPhaseError(f"{at}: no credentials ({error}); run `gcloud auth application-default login`") from error
    except (said.Forbidden, said.Unauthorized) as error:
        raise TwoPhaseError(f"{at}: not allowed ({error.message}); docs/vertex.md lists the roles") from error
    except said.TooManyRequests as error:
        raise TwoPhaseError(f"{at}: over a quota ({error.message}); ask for more, or give other machines") from error
    except said.NotFound as error:
        raise TwoPhaseError(f"{at}: {error.message}; see that project, region and bucket exist") from error
    except said.GoogleAPIError as error:
        raise TwoPhaseError(f"{at}: {getattr(error, 'message', error)}") from error
    except (RequestException, ConnectionError) as error:
        raise TwoPhaseError(f"{at}: does not answer ({type(error).__name__}); see that the address is right") from error
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error
