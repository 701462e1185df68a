"""What listing clips learns of their content, kept so that nothing is read twice without need.

    WORKDIR/digests.npy        48 bytes a clip: a hash of its location and stamp, and the digest of its content
    WORKDIR/fetched/<sha256>   clips that were read from a bucket for their digest and are yet to be decoded

Both are caches: what is missing, damaged or too much for the disk is read again where it lies. Digests are written when
a listing ends, also when a bucket ended it; `fetched` is emptied as clips are decoded, and when images are collected.
"""

import hashlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from twophase.audio import sources
from twophase.audio.sources import Found
from twophase.files import digest, disk_error, replacing

DIGESTS, FETCHED = "digests.npy", "fetched"

MAX_BYTES = 8 << 30
"""Most that is kept of a bucket's clips until they are decoded, and never more than a quarter of the free disk."""

_RECORD = np.dtype([("key", "<u8"), ("check", "<u8"), ("sha256", "u1", 32)])  # key and check: the hash's 16 bytes
_READERS = 16  # files read at once: more than cores, since a bucket's answer takes longer than its digest


class Digests:
    """Digests by location and stamp, in a workdir where one is given."""

    def __init__(self, workdir: Path | None) -> None:
        self._path = workdir / DIGESTS if workdir else None
        self._fetched = workdir / FETCHED if workdir else None
        self._known = _load(self._path)
        self._keys = np.ascontiguousarray(self._known["key"])
        self._seen: list[NDArray[np.void]] = []
        self._room, self._lock = _room(workdir), Lock()
        self._pool = ThreadPoolExecutor(_READERS)  # a bucket answers many at once; hashing releases the lock

    def of(self, files: Sequence[Found]) -> list[str | sources.Unreachable]:
        """The digest of what lies at each place, or why it cannot be read; only what is new or has changed is read."""
        asked = np.zeros(len(files), _RECORD)
        asked["key"], asked["check"] = np.frombuffer(b"".join(map(_mark, files)), "<u8").reshape(-1, 2).T
        stamped = np.array([bool(file.stamp) for file in files])
        same = np.zeros(len(files), bool)
        if len(self._known):
            found = self._known[np.searchsorted(self._keys, asked["key"]) % len(self._known)]
            same = stamped & (found["key"] == asked["key"]) & (found["check"] == asked["check"])
            asked["sha256"][same] = found["sha256"][same]
        answers: list[str | sources.Unreachable] = [sha.tobytes().hex() for sha in asked["sha256"]]
        new = [int(i) for i in np.flatnonzero(~same)]
        for i, answer in zip(new, self._pool.map(self._read, [files[i] for i in new]), strict=True):
            answers[i] = answer
            if isinstance(answer, str):
                asked["sha256"][i] = np.frombuffer(bytes.fromhex(answer), np.uint8)
            else:
                stamped[i] = False
        self._seen.append(asked[stamped])
        return answers

    def __enter__(self) -> "Digests":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Write what was learned: without files that are not there any more, if the listing came to its end."""
        self._pool.shutdown(cancel_futures=True)
        if self._path is None:
            return
        seen = np.concatenate([np.empty(0, _RECORD), *self._seen, *([self._known] if failed else [])])
        seen = seen[np.unique(seen["key"], return_index=True)[1]]
        if not np.array_equal(seen, self._known):
            with replacing(self._path) as file:
                np.save(file, seen)

    def _read(self, file: Found) -> str | sources.Unreachable:
        try:
            data = sources.read(file.location)
        except sources.Unreachable as error:
            return error
        sha = digest(data)
        if self._fetched is not None and sources.is_url(file.location) and self._has_room(len(data)):
            try:
                self._fetched.mkdir(exist_ok=True)
                (self._fetched / sha).write_bytes(data)  # its name is its check: half of it is not taken for it
            except OSError:
                (self._fetched / sha).unlink(missing_ok=True)
        return sha

    def _has_room(self, size: int) -> bool:
        with self._lock:
            fits = size <= self._room
            self._room -= size * fits
            return fits


def take(location: str, sha256: str, workdir: Path | None) -> bytes:
    """A clip's bytes: those that listing left in the workdir, which are then gone from there, or what lies there now.

    Raises `sources.Unreachable` where it is not there any more, or another clip is.
    """
    if workdir is not None:
        kept = workdir / FETCHED / sha256
        try:
            data = kept.read_bytes()
            kept.unlink(missing_ok=True)
            if digest(data) == sha256:
                return data
        except OSError:
            pass  # never kept, or taken by another run
    data = sources.read(location)
    if digest(data) != sha256:
        raise sources.Unreachable(location, "has changed since the clips were listed; run again", gone=True)
    return data


def _room(workdir: Path | None) -> int:
    """How many bytes of clips may still be kept there."""
    if workdir is None:
        return 0
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(workdir, error) from error
    held = sum(file.stat().st_size for file in (workdir / FETCHED).glob("*"))
    return min(MAX_BYTES, shutil.disk_usage(workdir).free // 4) - held


def _mark(file: Found) -> bytes:
    return hashlib.sha256(f"{file.location}\n{file.stamp}".encode("utf-8", "surrogateescape")).digest()[:16]


def _load(path: Path | None) -> NDArray[np.void]:
    if path is not None and path.is_file():
        try:
            known = np.load(path)
            if known.dtype == _RECORD and known.ndim == 1:
                return np.asarray(known)
        except (OSError, ValueError, EOFError):
            pass
    return np.empty(0, _RECORD)
