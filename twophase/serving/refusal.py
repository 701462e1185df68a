"""How a server says no: a status, and a message that says what would be accepted, in Google's error shape."""

from typing import Any

import orjson

from twophase.errors import TwoPhaseError

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}
"""The canonical status that goes with an HTTP code where nothing more exact is known (google/rpc/code.proto)."""


class Refusal(TwoPhaseError):
    """A request that is not answered: an HTTP code, a canonical status, a message."""

    def __init__(self, code: int, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.code, self.status = code, status or STATUS[code]

    def to_json(self) -> dict[str, Any]:
        """As Google's APIs answer it: `{"error": {"code", "message", "status"}}`."""
        return {"error": {"code": self.code, "message": str(self), "status": self.status}}

    def body(self) -> bytes:
        """`to_json` as bytes."""
        return orjson.dumps(self.to_json())
