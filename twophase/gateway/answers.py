"""What the classifier answered, kept until the device has fetched it and said so.

An answer is written once: the first that arrives for a stored clip. So a batch job that is read twice, or a clip that
was asked about twice, changes nothing, and a device sees one answer.
"""

import time
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from twophase.files import JSON
from twophase.gateway.refused import Refused
from twophase.gateway.store import clip, note
from twophase.release.manifest import NONE

FETCHED_AT_ONCE = 1_000


_UNASKED = (clip.c.state == "stored", clip.c.job.is_(None))


def backlog(c: Connection) -> tuple[int, float, float]:
    """How many clips nobody was asked about yet; when the first and the last of them were stored, or 0."""
    first, last = (func.coalesce(f(clip.c.stored), 0.0) for f in (func.min, func.max))
    number, oldest, newest = c.execute(select(func.count(), first, last).where(*_UNASKED)).one()
    return number, oldest, newest


def waiting(c: Connection, limit: int) -> list[Row[Any]]:
    """Clips that nobody was asked about yet, the longest waiting first: `device`, `sequence` and `bytes`."""
    columns = (clip.c.device, clip.c.sequence)
    order = (clip.c.stored, *columns)
    return list(c.execute(select(*columns, clip.c.bytes).where(*_UNASKED).order_by(*order).limit(limit)))


def put(c: Connection, device: str, sequence: int, answer: JSON) -> bool:
    """Write down an answer, `{"prediction": ...}` or `{"error": ...}`; whether it was the first."""
    prediction = answer.get("prediction")
    changed = c.execute(
        update(clip)
        .where(clip.c.device == device, clip.c.sequence == sequence, clip.c.state == "stored")
        .values(
            state="answered",
            answered=time.time(),
            job=None,
            prediction=prediction,
            wanted=prediction and prediction["label"] != NONE,
            error=answer.get("error"),
        )
    )
    return changed.rowcount == 1


def lost(c: Connection, device: str, sequence: int) -> None:
    """A stored clip is not on the disk any more: the device, which keeps it until the answer, is to send it again."""
    which = (clip.c.device == device, clip.c.sequence == sequence, clip.c.state == "stored")
    c.execute(update(clip).where(*which).values(state="receiving", stored=None, job=None))
    note(c, "clip lost", device, f"sequence {sequence} is not on the disk; it is asked for again")


def fetch(c: Connection, device: str, limit: int) -> list[JSON]:
    """The answers that wait for a device, lowest sequence first."""
    found = c.execute(
        select(clip.c.sequence, clip.c.prediction, clip.c.error)
        .where(clip.c.device == device, clip.c.state == "answered")
        .order_by(clip.c.sequence)
        .limit(limit)
    )
    return [
        {"sequence": row.sequence, **({"error": row.error} if row.error else {"prediction": row.prediction})}
        for row in found
    ]


def acknowledge(c: Connection, device: str, body: JSON) -> None:
    """A device has these answers for good. Raises `Refused` where that is no list of its numbers."""
    numbers = body.get("acknowledge") if isinstance(body, dict) else None
    if not isinstance(numbers, list) or len(numbers) > FETCHED_AT_ONCE or not all(type(n) is int for n in numbers):
        raise Refused(400, f"acknowledge: is no list of at most {FETCHED_AT_ONCE} sequence numbers")
    for start in range(0, len(numbers), 500):  # below every database's limit of values in a statement
        some = numbers[start : start + 500]
        which = (clip.c.device == device, clip.c.sequence.in_(some), clip.c.state == "answered")
        c.execute(update(clip).where(*which).values(state="done"))
