"""Forgetting clips: by device, by time, one by one; and those whose time is over.

A forgotten clip leaves its number, its size and its time, so that the device is told that it is done and its quota
stays what it was: no sound, no answer, nothing about what was heard. Rows are changed first, files removed after; what
a crash leaves of files is removed by the next sweep.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, select, update

from twophase.errors import TwoPhaseError
from twophase.gateway.store import Store, clip, code, day, device, note, outcome, period

ABANDONED_S = 7 * 86_400.0
"""An upload that was announced this long ago and never ended is given up; the device announces it again."""

_OVER_S = 90 * 86_400.0
"""A period that was not reported for this long goes on no more."""

_NOTHING: dict[str, Any] = {
    column.name: None
    for column in clip.columns
    if column.name not in ("device", "sequence", "state", "bytes", "announced", "answered")
}


def forget(store: Store, home: Path, name: str, sequence: int | None = None, before: float | None = None) -> int:
    """Forget clips of a device: one, those stored before a time, or all with everything it reported; how many.

    Raises `TwoPhaseError` when there is no such device.
    """

    def forget(c: Connection) -> int:
        if c.scalar(select(device.c.name).where(device.c.name == name)) is None:
            raise TwoPhaseError(f"{name}: is no device here; see `twophase gateway devices`")
        which = [clip.c.device == name, clip.c.sha256.is_not(None)]
        which += [] if sequence is None else [clip.c.sequence == sequence]
        which += [] if before is None else [clip.c.announced < before]
        if sequence is None and before is None:
            for table in (period, day, outcome):
                c.execute(delete(table).where(table.c.device == name))
        number = c.execute(update(clip).where(*which).values(state="done", **_NOTHING)).rowcount
        note(c, "forgotten", name, f"{number} clips")
        return number

    number = store.do(forget)
    sweep(store, home)
    return number


def expire(store: Store, home: Path, keep_days: float) -> int:
    """Forget what the device has fetched and is older than `keep_days`, and uploads that were given up; how many clips.

    The sound of a clip whose answer was not fetched yet goes at that age too; its answer stays.
    """
    now = time.time()

    def expire(c: Connection) -> int:
        old = clip.c.announced < now - keep_days * 86_400
        c.execute(delete(clip).where(clip.c.state == "receiving", clip.c.announced < now - ABANDONED_S))
        c.execute(delete(period).where(period.c.reported < now - _OVER_S))
        c.execute(delete(code).where(code.c.expires < now - _OVER_S))
        fetched = (clip.c.state == "done", clip.c.sha256.is_not(None), old)
        return c.execute(update(clip).where(*fetched).values(**_NOTHING)).rowcount

    number = store.do(expire)
    sweep(store, home, now - keep_days * 86_400)
    return number


def sweep(store: Store, home: Path, answered_before: float = 0.0) -> None:
    """Remove the files of clips that are forgotten, or answered and stored before a time."""
    for folder in sorted((home / "clips").glob("*")):
        here = {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()}

        def needed(c: Connection, name: str = folder.name) -> set[int]:
            rows = c.execute(
                select(clip.c.sequence, clip.c.state, clip.c.announced).where(
                    clip.c.device == name, clip.c.sha256.is_not(None)
                )
            )
            return {r.sequence for r in rows if r.state in ("receiving", "stored") or r.announced >= answered_before}

        for sequence in here.keys() - store.do(needed):
            with contextlib.suppress(FileNotFoundError):
                here[sequence].unlink()
