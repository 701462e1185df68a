"""What boto3 raises, in one sentence with what to do."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from twophase.errors import TwoPhaseError
from twophase.targets.requests import BLAMED, ClipRefused

MISSING = ("Could not find", "does not exist", "not found", "ResourceNotFound")
"""What SageMaker's errors say of what is not there; their codes do not tell."""
_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_words(method: _Method) -> _Method:
    """Turn boto3's errors into one message with what to do."""

    @functools.wraps(method)
    def spoken(*args: Any, **kwargs: Any) -> Any:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return method(*args, **kwargs)
        except (ClientError, S3UploadFailedError) as error:
            refused = error.__context__ if isinstance(error, S3UploadFailedError) else error
            if not isinstance(refused, ClientError):
                raise TwoPhaseError(f"SageMaker: {error}; run the same command again: what is done is kept") from error
            said = refused.response.get("Error", {})
            code, message = said.get("Code", ""), said.get("Message", str(refused))
            todo = {
                "ExpiredTokenException": "sign in again and run the same command: what is done is kept",
                "ExpiredToken": "sign in again and run the same command: what is done is kept",
                "AccessDeniedException": "let this account do it, or use another",
                "AccessDenied": "let this account do it, or use another",
            }.get(code, "see what it says and run the same command again: what is done is kept")
            where, by_server = f"SageMaker, {refused.operation_name}", refused.response.get("OriginalStatusCode")
            if by_server in BLAMED:  # a `ModelError`: what our server answered
                raise ClipRefused(by_server, refused.response.get("OriginalMessage", message), where) from error
            raise TwoPhaseError(f"{where}: {message} ({code}); {todo}") from error
        except BotoCoreError as error:
            raise TwoPhaseError(
                f"SageMaker: {error}; see that you are signed in (`aws sts get-caller-identity`)"
            ) from error

    return cast(_Method, spoken)


@contextmanager
def passing(*words: str) -> Iterator[None]:
    """Let errors pass that say one of these."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if not any(word in str(error) for word in words):
            raise
