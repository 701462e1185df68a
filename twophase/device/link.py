"""One connection over HTTP, and what its failures mean to a device: try again, or never again.

The standard library speaks the HTTP: urllib3 would be 4 MB more of the memory that a device may take. Certificates are
checked against the system's authorities, or those in the file that `SSL_CERT_FILE` names.
"""

from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from typing import NamedTuple
from urllib.parse import urlsplit

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON

CONNECT_S, SILENT_S = 10.0, 60.0
"""How long a connection may take to open, and to stand still."""

_LARGEST = 8 << 20  # of an answer: nothing that is asked for is as long
_TRY_AGAIN = frozenset({408, 429})


class Away(TwoPhaseError):
    """The other side cannot be asked now. `retry_after_s` is the least wait that it asked for."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(TwoPhaseError):
    """The other side refuses this request for good. `offset` is set where it says how much of an upload it has."""

    def __init__(self, message: str, code: int, offset: int | None = None) -> None:
        super().__init__(message)
        self.code, self.offset = code, offset


class Answer(NamedTuple):
    """One response."""

    code: int
    reason: str
    headers: HTTPMessage
    body: bytes


class Link:
    """One connection, opened when it is needed and again after every failure; for one thread at a time."""

    def __init__(self, address: str) -> None:
        """Raises `UsageError` for what is no address, or would show what is sent to who listens on the way."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{address}: is no address; https://HOST[:PORT] is accepted")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise UsageError(f"{address}: only https:// is accepted for another machine")
        self.address = address
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=CONNECT_S)

    def exchange(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One request and its answer, whatever its code. Raises `Away`."""
        connection = self._connection
        try:
            if connection.sock is None:
                connection.connect()
                connection.sock.settimeout(SILENT_S)  # type: ignore[attr-defined]
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            data = response.read(_LARGEST)
            if not response.isclosed():
                raise HTTPException(f"an answer of more than {_LARGEST} bytes")
            return Answer(response.status, response.reason, response.headers, data)
        except (OSError, HTTPException) as error:
            connection.close()  # the next request opens another
            raise Away(f"{self.address}: {error or type(error).__name__}") from None

    def failure(self, answer: Answer, value: JSON) -> TwoPhaseError:
        """What an answer that is not what was asked for means; `value` is its JSON, if it has any.

        3xx, 200 with another body, and 4xx without an `error` are a portal's, or a proxy's that is being set up: they
        say nothing about what was asked. Only a body that is too large for a proxy will be so again.
        """
        said = value.get("error") if isinstance(value, dict) else None
        message = str(said.get("message", "")) if isinstance(said, dict) else str(said or "")
        message = f"{self.address}: {answer.code} {message or answer.reason}"
        for_good = 400 <= answer.code < 500 and answer.code not in _TRY_AGAIN
        if not for_good or (said is None and answer.code != 413):
            wait = answer.headers.get("Retry-After", "")
            return Away(message, float(wait) if wait.isdecimal() else 0.0)
        offset = answer.headers.get("Upload-Offset", "")
        return Refused(message, answer.code, int(offset) if offset.isdecimal() else None)
