"""The little of Cloud Storage that Vertex AI's clients need: buckets are folders, objects are plain files in them.

`gs://NAME/a/b` is `home/buckets/NAME/a/b`, or `DIR/a/b` for a bucket that was mapped with `--bucket NAME=DIR`. An
object is written aside, synced and renamed. Its generation is the file's time of change in nanoseconds, raised where
the clock stood still, so preconditions hold; content types come from names, and custom metadata is not kept.
"""

import base64
import contextlib
import hashlib
import mimetypes
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, replacing, sync
from twophase.serving.refusal import Refusal

DEFAULT_BUCKET = "twophase"
"""The bucket that is always there: `aiplatform.init(staging_bucket="gs://twophase")`."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_ASIDE = ".tmp-"
_PART_BYTES = 255
"""Longest part of an object's name between slashes: a file's name."""
_LAST_BYTES = 170
"""Longest last part of a new object's name: while it is written, the file beside it has a longer one."""


@dataclass(frozen=True)
class Condition:
    """What a request expects of an object's generation before it acts; 0 means that there is none."""

    match: int | None = None
    not_match: int | None = None


class Elsewhere(Refusal):
    """A model in a bucket that is not here: it may be copied (`copied.copy`) and asked for again, see `standing_in`."""

    def __init__(self, uri: str, bucket: str) -> None:
        super().__init__(404, f"gs://{bucket}: is no bucket here; make it, or map a folder: --bucket {bucket}=DIR")
        self.uri = uri


class Buckets:
    """Folders as buckets. Use it from one thread at a time."""

    def __init__(self, root: Path, mapped: Mapping[str, Path] | None = None) -> None:
        """`mapped` names folders outside `root`. Raises `UsageError` for a bad name, or a folder that is not there."""
        self._root, self._mapped = root, dict(mapped or {})
        for name, folder in self._mapped.items():
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"--bucket {name}={folder}: {name!r} is no bucket name; 3 to 63 of a-z, 0-9, . _ - are"
                )
            if not folder.is_dir():
                raise UsageError(f"--bucket {name}={folder}: there is no such folder; make it, or name another")
        (root / DEFAULT_BUCKET).mkdir(parents=True, exist_ok=True)
        self._copies: dict[str, Path] = {}

    def folder(self, uri: str) -> Path:
        """The folder or file that `gs://...`, `file://...` or an absolute path names. Raises `Refusal`."""
        if uri.startswith("gs://"):
            bucket, _, name = uri.removeprefix("gs://").partition("/")
            return self._bucket(bucket) / relative(name.rstrip("/")) if name.strip("/") else self._bucket(bucket)
        path = Path(uri.removeprefix("file://"))
        if not path.is_absolute() or "://" in uri.removeprefix("file://"):
            raise Refusal(400, f"{uri!r}: cannot be read from here; give gs://BUCKET/PATH or an absolute path")
        return path

    def model(self, uri: str) -> Path:
        """`folder` of a model to copy in. Raises `Elsewhere` for one in a bucket that is not here."""
        bucket = uri.removeprefix("gs://").partition("/")[0]
        if uri in self._copies:
            return self._copies[uri]
        if uri.startswith("gs://") and _NAME.fullmatch(bucket) and bucket not in self.names():
            raise Elsewhere(uri, bucket)
        return self.folder(uri)

    @contextlib.contextmanager
    def standing_in(self, uri: str, copy: Path) -> Iterator[None]:
        """Let `copy` stand for the model at `uri`, within the block."""
        self._copies[uri] = copy
        try:
            yield
        finally:
            del self._copies[uri]

    def names(self) -> list[str]:
        """Every bucket."""
        return sorted({p.name for p in self._root.iterdir() if p.is_dir()} | self._mapped.keys())

    def create(self, name: str) -> None:
        """Make a bucket. Raises `Refusal` 409 when it is there."""
        if not _NAME.fullmatch(name):
            raise Refusal(400, f"{name!r}: is no bucket name; 3 to 63 of a-z, 0-9, . _ - are")
        if name in self.names():
            raise Refusal(409, f"{name}: the bucket is there already; use it, or take another name")
        (self._root / name).mkdir()
        sync(self._root)

    def remove(self, name: str) -> None:
        """Delete an empty bucket of the platform's own."""
        if self._bucket(name) == self._mapped.get(name):
            raise Refusal(400, f"{name}: is mapped to {self._mapped[name]}; only buckets made here can be deleted")
        if next(self.objects(name), None):
            raise Refusal(409, f"{name}: is not empty; delete its objects first")
        shutil.rmtree(self._bucket(name))

    def require(self, name: str) -> None:
        """Raise `Refusal` 404 unless the bucket is there."""
        self._bucket(name)

    def objects(self, bucket: str, prefix: str = "") -> Iterator[str]:
        """The names of a bucket's objects that start with `prefix`, sorted."""
        start = root = self._bucket(bucket)
        if "/" in prefix:
            try:
                start = root / relative(prefix.rpartition("/")[0])
            except Refusal:
                return  # no object has such a name
        paths = (Path(folder) / name for folder, _, names in os.walk(start) for name in names)
        names = (p.relative_to(root).as_posix() for p in paths if not p.name.startswith(_ASIDE))
        yield from sorted(name for name in names if name.startswith(prefix))

    def path(self, bucket: str, name: str, condition: Condition | None = None) -> Path:
        """The file of an object. Raises `Refusal` 404 when there is none, 412 when it is not as expected."""
        path = self._bucket(bucket) / relative(name)
        _check(path, condition or Condition())
        if not path.is_file():
            raise Refusal(404, f"No such object: {bucket}/{name}")
        return path

    def describe(self, bucket: str, name: str) -> JSON:
        """An object as the JSON API answers it."""
        path = self.path(bucket, name)
        stat = path.stat()
        md5, crc32c = _checksums(path, stat.st_size, stat.st_mtime_ns)
        time = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{stat.st_mtime_ns}",
            "name": name,
            "bucket": bucket,
            "generation": str(stat.st_mtime_ns),
            "metageneration": "1",
            "contentType": mimetypes.guess_type(name)[0] or "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(stat.st_size),
            "md5Hash": md5,
            "crc32c": crc32c,
            "etag": str(stat.st_mtime_ns),
            "timeCreated": time,
            "updated": time,
        }

    def insert(self, bucket: str, name: str, content: bytes | Path, condition: Condition | None = None) -> JSON:
        """Write an object, whole or not at all; `content` may be a file, which is copied."""
        path = self._bucket(bucket) / relative(name)
        if len(path.name.encode()) > _LAST_BYTES:
            raise Refusal(400, f"{name!r}: is too long here; after the last / up to {_LAST_BYTES} bytes are accepted")
        _check(path, condition or Condition())
        before = generation(path)
        try:
            with replacing(path) as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
            if generation(path) <= before:
                os.utime(path, ns=(before + 1, before + 1))
        except (TwoPhaseError, OSError) as error:
            if path.is_dir() or any(p.is_file() for p in path.parents):
                raise Refusal(
                    400, f"{name}: another object's name is a folder of this one; take another name"
                ) from None
            raise Refusal(507, str(error)) from None
        return self.describe(bucket, name)

    def delete(self, bucket: str, name: str, condition: Condition | None = None) -> None:
        """Delete an object, and folders that it leaves empty."""
        path = self.path(bucket, name, condition)
        path.unlink()
        root = self._bucket(bucket)
        with contextlib.suppress(OSError):  # the first folder that still holds something
            for folder in path.relative_to(root).parents[:-1]:
                (root / folder).rmdir()

    def _bucket(self, name: str) -> Path:
        folder = self._mapped.get(name) or self._root / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            raise Refusal(
                404, f"gs://{name}: there is no such bucket here; make it, or map a folder: --bucket {name}=DIR"
            )
        return folder


def generation(path: Path) -> int:
    """An object's generation; 0 for none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(10_000)
def _checksums(path: Path, size: int, changed: int) -> tuple[str, str]:
    """MD5 and CRC32C of a file in base64, read once as long as its size and time of change stay."""
    md5 = hashlib.md5(usedforsecurity=False)
    crc: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            crc.update(block)
    return base64.b64encode(md5.digest()).decode(), base64.b64encode(crc.digest()).decode()


def _check(path: Path, condition: Condition) -> None:
    found = generation(path)
    if condition.match not in (None, found) or condition.not_match == found:
        raise Refusal(412, "At least one of the pre-conditions you specified did not hold.")


def relative(name: str) -> Path:
    """Where an object lies below its bucket, and nowhere else. Raises `Refusal` 400."""
    parts = name.split("/")
    if (
        not name
        or len(name.encode()) > 1024
        or any(p in ("", ".", "..") or p.startswith(_ASIDE) or "\0" in p for p in parts)
        or any(len(p.encode()) > _PART_BYTES for p in parts)
    ):
        raise Refusal(
            400,
            f"{name!r}: is no object name here; parts between / have 1 to {_PART_BYTES} bytes, are not '.' or '..', "
            f"not {_ASIDE}*",
        )
    return Path(*parts)
