"""Small files that outlive a power cut, and say themselves whether they are whole.

`write_new` puts a file under a name that is whole and synced, or absent. After a failed sync the kernel may take pages
for written that never were, so that file is removed: nothing is ever synced a second time and believed.
"""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

from twophase.errors import TwoPhaseError
from twophase.files import JSON, digest_of, disk_error, read_json, sync


class SpoolError(TwoPhaseError):
    """The disk does not take what is given to it: nothing of that was kept, and what was there is as it was."""


class SpoolFull(SpoolError):
    """The disk has no room."""


def write_new(path: Path, data: bytes, aside: Path) -> None:
    """Write `path`, by way of `aside` on the same disk. Durable when this returns; raises `SpoolError`."""
    try:
        aside.unlink(missing_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        aside.rename(path)
        sync(path.parent)
    except OSError as error:
        for left in (aside, path):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        raise spool_error(path, error) from None


def make_folder(path: Path) -> None:
    """Make a folder, durable when this returns. Raises `SpoolError`."""
    try:
        path.mkdir(exist_ok=True)
        sync(path.parent)
    except OSError as error:
        raise spool_error(path, error) from None


def spool_error(path: Path, error: OSError) -> SpoolError:
    """What an `OSError` means to a person."""
    kind = SpoolFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SpoolError
    return kind(str(disk_error(path, error)))


def sealed(value: JSON) -> bytes:
    """A JSON object with its own checksum."""
    return json.dumps({**value, "sha256": digest_of(value)}, indent=1).encode() + b"\n"


def unsealed(path: Path) -> JSON:
    """What `sealed` made of an object. Raises `TwoPhaseError` when one bit of it changed."""
    value = read_json(path, "file of the spool")
    stated = value.pop("sha256", None) if isinstance(value, dict) else None
    if stated != digest_of(value):
        raise TwoPhaseError(f"{path}: was changed after it was written")
    return value
