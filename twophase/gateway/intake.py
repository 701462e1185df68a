"""Clips coming in: announced, uploaded in pieces over links that break, and stored once they are whole.

    home/clips/DEVICE/SEQUENCE    what has arrived of a clip so far; its row says whether that is all of it

A file below `clips` means nothing without its row: nobody reads it before the row says `stored`, which is committed
after the file and its folder are synced and the whole has the announced SHA-256. So nothing partial is ever visible,
and a crash at any moment leaves a clip that goes on at its offset, or, where the disk lost unsynced bytes, at zero.
"""

import asyncio
import errno
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from twophase.files import JSON, digest, sync
from twophase.gateway.refused import Refused, later
from twophase.gateway.store import Store, clip, note

KINDS = ("escalation", "audit")
ANNOUNCED_AT_ONCE = 100
UPLOADS_EACH = 4
"""Uploads of one device at the same time: a device sends one, and may not know yet that its last connection broke."""
FULL_S = 600.0
"""When to come back to a gateway whose disk is full."""
_DAY_S = 86_400.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
RELEASE = re.compile(r"r-[0-9a-f]{12}")
"""A gate's name, which is a release's id; names of files are made of it."""


@dataclass(frozen=True)
class Quota:
    """What one device may send in 24 hours, and what is always refused."""

    clips: int = 10_000
    bytes: int = 1 << 30
    clip_bytes: int = 8_000_000
    """Four minutes of sound. Some places take less in one request (Vertex AI and Azure ML 1.5 MB): their answer to a
    clip that does not fit, as FLAC, is an error that says so."""
    free_bytes: int = 256 << 20
    """Left on the disk, for the database and for whoever comes to make room."""


@dataclass(frozen=True)
class Announced:
    """One clip as a device announced it, checked."""

    sequence: int
    sha256: str
    bytes: int
    kind: str
    gate: str
    front_end: str
    score: float
    windows: int
    captured: str
    clock_trusted: bool


class Intake:
    """What arrives from devices. Its coroutines belong to one event loop."""

    def __init__(self, home: Path, store: Store, quota: Quota) -> None:
        self._clips, self._store, self._quota = home / "clips", store, quota
        self._clips.mkdir(parents=True, exist_ok=True)
        self._uploads: dict[tuple[str, int], object] = {}

    def path(self, device: str, sequence: int) -> Path:
        """Where a clip's bytes lie."""
        return self._clips / device / str(sequence)

    async def announce(self, device: str, clips: list[Announced], front_end: str) -> list[JSON]:
        """Take note of clips and say how far each is; ends where the quota does.

        `front_end` is the classifier's, or empty where that is not known. Raises `Refused` 429 when nothing can be
        taken, 507 when the disk is full.
        """
        if shutil.disk_usage(self._clips).free < self._quota.free_bytes:
            raise later(507, "the gateway's disk is full; its operator has to make room", FULL_S)
        taken = await self._wrap(lambda c: self._announce(c, device, clips, front_end))
        return [await self._with_offset(device, answer) for answer in taken]

    async def append(self, device: str, sequence: int, offset: int, body: AsyncIterator[bytes]) -> tuple[JSON, int]:
        """Add bytes to a clip at `offset`; its state and its next offset, once both are durable. Raises `Refused`."""
        row = await self._wrap(lambda c: _row(c, device, sequence))
        if row is None:
            raise Refused(404, f"clips/{sequence}: was not announced; announce it first")
        if row.state != "receiving":
            return {"sequence": sequence, "state": row.state}, row.bytes
        key, me = (device, sequence), object()
        if key not in self._uploads and sum(owner == device for owner, _ in self._uploads) >= UPLOADS_EACH:
            raise later(429, f"{device}: {UPLOADS_EACH} uploads of this device are under way; end one first")
        self._uploads[key] = me
        path = self.path(device, sequence)
        try:
            with _disk():
                if not path.parent.is_dir():
                    path.parent.mkdir(exist_ok=True)
                    await asyncio.to_thread(sync, self._clips)
                size = await self._receive(path, offset, row.bytes, body, lambda: self._uploads.get(key) is me)
            await self._sync(path)
            if size == row.bytes:
                await self._complete(device, sequence, path, row.sha256)
        finally:
            if self._uploads.get(key) is me:
                del self._uploads[key]
        return {"sequence": sequence, "state": "stored" if size == row.bytes else "receiving"}, size

    async def _receive(self, path: Path, offset: int, whole: int, body: AsyncIterator[bytes], mine: Any) -> int:
        """Write what comes; the file's size after it. What was written before a connection broke stays."""
        with path.open("ab", buffering=0) as file:  # nothing is written once the next upload has begun
            size = file.seek(0, os.SEEK_END)
            if offset != size:
                raise Refused(409, f"Upload-Offset: {offset}; this clip goes on at {size}", Upload_Offset=str(size))
            async for part in body:
                if not mine():
                    raise Refused(409, "another upload of this clip goes on", Upload_Offset=str(size))
                if size + len(part) > whole:
                    raise Refused(400, f"the body goes beyond the announced {whole} bytes; announce the clip again")
                rest = memoryview(part)
                while rest:
                    rest = rest[file.write(rest) :]
                size += len(part)
        return size

    async def _sync(self, path: Path) -> None:
        """Make a file and its name durable; what the disk failed to keep is not trusted again."""
        with _disk():
            try:
                await asyncio.to_thread(_sync, path)
            except OSError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise

    async def _with_offset(self, device: str, answer: JSON) -> JSON:
        """Say how much of a clip is here; one that is all here, from before a crash, is stored now."""
        sha256, whole = answer.pop("sha256", ""), answer.pop("bytes", 0)
        if answer["state"] != "receiving":
            return answer
        path = self.path(device, answer["sequence"])
        size = path.stat().st_size if path.is_file() else 0
        if size < whole or (device, answer["sequence"]) in self._uploads:
            return {**answer, "offset": size}
        try:
            await self._sync(path)
            await self._complete(device, answer["sequence"], path, sha256)
        except Refused:
            return {**answer, "offset": 0}
        return {"sequence": answer["sequence"], "state": "stored"}

    async def _complete(self, device: str, sequence: int, path: Path, sha256: str) -> None:
        """Store a clip that is all here and synced. Raises `Refused` 422, and forgets the bytes, when they differ."""
        if await asyncio.to_thread(digest, path) != sha256:
            path.unlink(missing_ok=True)
            raise Refused(
                422,
                f"clips/{sequence}: its bytes do not have the announced SHA-256; send it again from 0",
                "DATA_LOSS",
                Upload_Offset="0",
            )
        await self._wrap(lambda c: _store(c, device, sequence))

    def _announce(self, c: Connection, device: str, clips: list[Announced], front_end: str) -> list[JSON]:
        since = time.time() - _DAY_S
        number, size, oldest = c.execute(
            select(func.count(), func.coalesce(func.sum(clip.c.bytes), 0), func.min(clip.c.announced)).where(
                clip.c.device == device, clip.c.announced > since
            )
        ).one()
        taken: list[JSON] = []
        for new in clips:
            row = _row(c, device, new.sequence)
            if row is not None:
                taken.append(_known(c, device, new, row))
            elif new.bytes > self._quota.clip_bytes:
                taken.append(_rejected(new, 413, f"has {new.bytes} bytes; {self._quota.clip_bytes} are accepted"))
            elif front_end not in ("", new.front_end):
                taken.append(
                    _rejected(new, 412, f"was made for front end {new.front_end}, the classifier has {front_end}")
                )
            elif number + 1 > self._quota.clips or size + new.bytes > self._quota.bytes:
                if not taken:
                    left = max(60.0, min(3600.0, (oldest or since) - since))
                    raise later(429, f"{device}: has sent its {number} clips, {size} bytes of this day", left)
                break
            else:
                number, size = number + 1, size + new.bytes
                c.execute(insert(clip).values(**_columns(device, new)))
                taken.append({"sequence": new.sequence, "state": "receiving", "sha256": new.sha256, "bytes": new.bytes})
        return taken

    async def _wrap(self, call: Any) -> Any:
        return await asyncio.wrap_future(self._store.submit(call))


def parse(body: JSON) -> list[Announced]:
    """The clips that a request announces. Raises `Refused` naming the first field that is not as it should be."""
    clips = body.get("clips") if isinstance(body, dict) else None
    if not isinstance(clips, list) or not 1 <= len(clips) <= ANNOUNCED_AT_ONCE:
        raise Refused(400, f"clips: is no list of 1 to {ANNOUNCED_AT_ONCE}")
    return [_checked(item, f"clips[{i}]") for i, item in enumerate(clips)]


def _checked(item: JSON, name: str) -> Announced:
    def field(key: str, kind: Any, good: Any, accepted: str) -> Any:
        value = item.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not good(value):
            raise Refused(400, f"{name}.{key}: is {str(value)[:80]!r}; {accepted}")
        return value

    if not isinstance(item, dict):
        raise Refused(400, f"{name}: is no object")
    return Announced(
        field("sequence", int, lambda v: 0 < v < 1 << 62, "a whole number from 1 on is accepted"),
        field("sha256", str, _SHA256.fullmatch, "64 hex digits are accepted"),
        field("bytes", int, lambda v: 0 < v < 1 << 40, "the size of the file is accepted"),
        field("kind", str, KINDS.__contains__, f"{' or '.join(KINDS)} is accepted"),
        field("gate", str, RELEASE.fullmatch, "a release's id is accepted"),
        field("front_end", str, lambda v: 0 < len(v) <= 64, "a name of 1 to 64 characters is accepted"),
        float(field("score", (int, float), lambda v: abs(v) < 1e6, "a finite number is accepted")),
        field("windows", int, lambda v: 0 < v < 1 << 31, "a number of windows is accepted"),
        field("captured", str, _is_time, "a time such as 2026-03-01T12:00:00Z is accepted"),
        field("clock_trusted", bool, lambda v: True, "true or false is accepted"),
    )


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _columns(device: str, new: Announced) -> dict[str, Any]:
    named = {name: value for name, value in vars(new).items() if name != "front_end"}
    return {**named, "device": device, "state": "receiving", "announced": time.time()}


def _row(c: Connection, device: str, sequence: int) -> Row[Any] | None:
    return c.execute(select(clip).where(clip.c.device == device, clip.c.sequence == sequence)).one_or_none()


def _known(c: Connection, device: str, new: Announced, row: Row[Any]) -> JSON:
    """A clip that was announced before; the same number for another sound is refused, and seen by the operator."""
    if row.sha256 not in (None, new.sha256):  # none where the clip was deleted
        note(c, "conflict", device, f"sequence {new.sequence} was announced again for another clip")
        return _rejected(new, 409, "another clip has this sequence; enrol again for fresh numbers")
    return {"sequence": new.sequence, "state": row.state, "sha256": row.sha256, "bytes": row.bytes}


def _rejected(new: Announced, code: int, why: str) -> JSON:
    refusal = Refused(code, f"clips/{new.sequence}: {why}")
    return {"sequence": new.sequence, "state": "rejected", **refusal.to_json()}


def _store(c: Connection, device: str, sequence: int) -> None:
    which = (clip.c.device == device, clip.c.sequence == sequence, clip.c.state == "receiving")
    c.execute(update(clip).where(*which).values(state="stored", stored=time.time()))


@contextmanager
def _disk() -> Iterator[None]:
    """What a disk that is full or fails means to a device: to send again later."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise later(507, "the gateway's disk is full; its operator has to make room", FULL_S) from None
        raise later(503, f"the gateway's disk failed ({error.strerror}); send this clip again") from None


def _sync(path: Path) -> None:
    """Make a file and its name durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync(path.parent)
