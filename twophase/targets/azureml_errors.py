"""What azure-ai-ml raises, in one sentence with what to do."""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from twophase.errors import TwoPhaseError

_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_words(method: _Method) -> _Method:
    """Turn the SDK's errors into `TwoPhaseError`."""

    @functools.wraps(method)
    def spoken(*args: Any, **kwargs: Any) -> Any:
        from azure.ai.ml.exceptions import MlException
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            return method(*args, **kwargs)
        except ClientAuthenticationError as error:
            raise TwoPhaseError(
                f"Azure ML: {_said(error)}; sign in again (`az login`) and run the same command: what is done is kept"
            ) from error
        except (AzureError, MlException) as error:
            raise TwoPhaseError(
                f"Azure ML: {_said(error)}; see what it says and run the same command: what is done is kept"
            ) from error

    return cast(_Method, spoken)


def _said(error: Exception) -> str:
    """What the SDK says, without its colours and its layout."""
    return " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split())[:400] or type(error).__name__
