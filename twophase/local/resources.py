"""What all resources of the API share: names, times, etags, masks, pages, and operations that are done at once."""

import base64
import random
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

from twophase.files import JSON, digest_of
from twophase.local.store import Store
from twophase.serving.refusal import Refusal

PACKAGE = "type.googleapis.com/google.cloud.aiplatform.v1."
_ID = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62})")


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_id(wanted: str | None = None) -> str:
    """The id a request wants for its resource, or a number such as Vertex gives. Raises `Refusal`."""
    if not wanted:
        return str(random.getrandbits(62) | 1 << 61)
    if not _ID.fullmatch(wanted):
        raise Refusal(
            400, f"{wanted!r}: is no resource id; up to 63 of a-z, 0-9, _ and - are, not starting with _ or -"
        )
    return wanted


def missing(name: str) -> Refusal:
    """The refusal of a name that names nothing."""
    return Refusal(404, f"{name}: not found")


def failed(reason: str) -> Refusal:
    """The refusal of what the present state does not allow."""
    return Refusal(400, reason, "FAILED_PRECONDITION")


def etag(body: JSON) -> JSON:
    """The body with its etag."""
    return {**body, "etag": digest_of({k: v for k, v in body.items() if k != "etag"})[:16]}


def patched(current: JSON, patch: JSON, mask: str, allowed: Iterable[str]) -> JSON:
    """`current` with the fields that `mask` names taken from `patch`, or unset where it lacks them.

    Raises `Refusal` for a field that cannot be changed, and for an etag that is no longer the current one.
    """
    if patch.get("etag", current.get("etag")) != current.get("etag"):
        raise Refusal(409, f"{current['name']}: has changed since it was read (etag); read it and try again", "ABORTED")
    fields = [f.split(".")[0] for f in mask.split(",") if f]
    if not fields:
        raise Refusal(400, f"updateMask: is empty; name the fields to change, of {', '.join(sorted(allowed))}")
    for field in fields:
        if field not in allowed:
            raise Refusal(400, f"updateMask: {field} cannot be changed; {', '.join(sorted(allowed))} can")
    kept = {k: v for k, v in current.items() if k not in fields}
    return kept | {f: patch[f] for f in fields if f in patch}


def page(
    items: list[JSON], request: JSON, field: str, encode: Callable[[JSON], JSON] = lambda x: x, largest: int = 1000
) -> JSON:
    """One page of a list and the token of the next."""
    start = page_start(request)
    size = min(int(request.get("pageSize", 0)) or 100, largest)
    found: dict[str, Any] = {field: [encode(item) for item in items[start : start + size]]}
    if start + size < len(items):
        found["nextPageToken"] = page_token(start + size)
    return found


def page_start(request: JSON) -> int:
    """Where the page that a request asks for starts. Raises `Refusal`."""
    token = request.get("pageToken", "")
    try:
        start = int(base64.urlsafe_b64decode(token)) if token else 0
        if start < 0 or int(request.get("pageSize", 0)) < 0:
            raise ValueError
    except ValueError:
        raise Refusal(
            400, f"pageToken, pageSize: {token!r} is no token that a list gave, or the size is negative"
        ) from None
    return start


def page_token(start: int) -> str:
    """The token of the page that starts at item `start`."""
    return base64.urlsafe_b64encode(str(start).encode()).decode()


def done(store: Store, resource: str, method: str, response: JSON | None, kind: str = "") -> JSON:
    """Record and answer a long-running operation that has ended well; `kind` is the response's message type."""
    time = now()
    typed = (
        {"@type": PACKAGE + kind, **(response or {})}
        if kind
        else {"@type": "type.googleapis.com/google.protobuf.Empty"}
    )
    operation = {
        "name": f"{resource}/operations/{new_id()}",
        "metadata": {
            "@type": f"{PACKAGE}{'Delete' if method.startswith('Delete') else method}OperationMetadata",
            "genericMetadata": {"createTime": time, "updateTime": time},
        },
        "done": True,
        "response": typed,
    }
    store.run(
        "INSERT INTO resource VALUES (?, 'operation', ?, ?, ?)",
        operation["name"],
        "/".join(resource.split("/")[:4]),
        time,
        orjson.dumps(operation),
    )
    return operation
