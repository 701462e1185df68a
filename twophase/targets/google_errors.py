"""What Google's clients raise, in one message that says what to do."""

import contextlib
import re
from collections.abc import Iterator

from twophase.errors import TwoPhaseError


class NoAnswer(TwoPhaseError):
    """Nobody answered: it says something of the moment, not of what was asked."""


@contextlib.contextmanager
def in_words(at: str) -> Iterator[None]:
    """Turn it into `TwoPhaseError`, `NoAnswer` where that is it; `at` is the address that is asked."""
    from google.api_core import exceptions as said
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests import RequestException

    unanswered = (said.ServiceUnavailable, said.BadGateway, said.GatewayTimeout, said.RetryError)
    try:
        yield
    except (*unanswered, TransportError, RequestException, ConnectionError) as error:
        raise NoAnswer(
            f"{at}: does not answer ({_why(error)}); see that it runs and that the address is right, then try again: "
            "what is done is kept"
        ) from error
    except (GoogleAuthError, said.Unauthorized) as error:
        raise TwoPhaseError(
            f"{at}: no credentials ({_why(error)}); run `gcloud auth application-default login`"
        ) from error
    except said.Forbidden as error:
        raise TwoPhaseError(f"{at}: not allowed ({_why(error)}); docs/vertex.md lists the roles") from error
    except said.TooManyRequests as error:
        raise TwoPhaseError(f"{at}: over a quota ({_why(error)}); ask for more, or give other machines") from error
    except said.NotFound as error:
        raise TwoPhaseError(f"{at}: {_why(error)}; see that project, region and bucket exist") from error
    except said.Aborted as error:
        raise TwoPhaseError(f"{at}: something else was being changed there ({_why(error)}); try again") from error
    except said.GoogleAPIError as error:
        raise TwoPhaseError(f"{at}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What was said, on one line; without the request, which REST's errors begin with."""
    said = re.sub(r"^[A-Z]+ https?://\S+: ", "", str(getattr(error, "message", "") or error))
    return " ".join(said.split())[:400] or type(error).__name__
