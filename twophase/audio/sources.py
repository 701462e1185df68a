"""Where clips lie: files, ranges of tar files, objects of a bucket. One name for each, one way to list and to read.

A location is an absolute path, a URL (`gs://`, `s3://`, `az://`: whatever fsspec has a package for), or either of them
with a range behind it: `/data/shard-000.tar#1536+32044` is the 32,044 bytes from byte 1,536, so that members of a tar
are read in any order and side by side. A stamp changes when what lies there does (size and time, or the bucket's own
tag), so that what was read once need not be read again to know that it is the same.

What is written is whole or absent, on a disk as in a bucket, where an object appears when its last byte is there. What
cannot be reached raises `Unreachable`: it says something of the moment, not of the clip.
"""

import logging
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import replacing

_RANGE = re.compile(r"(?P<file>.*)#(?P<start>\d+)\+(?P<size>\d+)", re.DOTALL)
_EXTRAS = {"gs": "google", "gcs": "google", "s3": "aws", "az": "azure", "abfs": "azure"}


class Unreachable(TwoPhaseError):
    """A place that cannot be read now; the message names it and says why.

    `gone` is whether that is final as far as this run goes: nothing is there, or something else than was listed. All
    else (no access, a bucket out of order) may pass, and is worth another try.
    """

    def __init__(self, location: str, reason: str, gone: bool = False) -> None:
        super().__init__(f"{location}: {reason}")
        self.reason, self.gone = reason, gone


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a listing: its path below the listed place, where it is, its stamp and its size in bytes."""

    name: str
    location: str
    stamp: str
    size: int = 0


def is_url(location: str) -> bool:
    """Whether a location is in a bucket rather than on this machine."""
    return "://" in location


def read(location: str) -> bytes:
    """The bytes at a location. Raises `Unreachable`."""
    ranged = _RANGE.fullmatch(location)
    file, start, end = location, 0, None
    if ranged:
        file, start = ranged["file"], int(ranged["start"])
        end = start + int(ranged["size"])
    with _reached(location):
        if is_url(file):
            system, path = _system(file)
            return bytes(system.cat_file(path, start=start, end=end) if ranged else system.cat_file(path))
        with Path(file).open("rb") as opened:
            opened.seek(start)
            return opened.read(-1 if end is None else end - start)


def write(location: str, data: bytes) -> None:
    """Put bytes at a location, whole or not at all. Raises `Unreachable`, or `TwoPhaseError` where a disk refuses."""
    if not is_url(location):
        with replacing(Path(location)) as file:
            file.write(data)
        return
    with _reached(location, "written"):
        system, path = _system(location)
        system.pipe_file(path, data)


def upload(file: Path, url: str) -> None:
    """Put a file into a bucket, whole or not at all, whatever its size. Raises `Unreachable`."""
    with _reached(url, "written"):
        system, path = _system(url)
        system.put_file(str(file), path)


def download(url: str, file: Path) -> None:
    """Put an object into a file, in pieces where it is large. Raises `Unreachable`; the file may then be incomplete."""
    with _reached(url):
        system, path = _system(url)
        system.get_file(path, str(file))


def remove(location: str) -> None:
    """Delete a file or an object; it need not be there. Raises `Unreachable`."""
    with _reached(location, "deleted"):
        try:
            if is_url(location):
                system, path = _system(location)
                system.rm_file(path)
            else:
                Path(location).unlink()
        except FileNotFoundError:
            pass


def listing(place: str) -> Iterator[Found]:
    """Every file below a folder or a bucket's prefix, those of a folder before its folders'; hidden ones are left out.

    Memory holds one folder, of a bucket one folder of the first level. Raises `Unreachable`.
    """
    for found in _objects(place) if is_url(place) else _files(place):
        if not any(part.startswith(".") for part in found.name.split("/")):
            yield found


def members(tar: Found) -> Iterator[Found]:
    """The files inside an uncompressed tar, each as a range of it. Raises `Unreachable` when it is not one."""
    try:
        with _reached(tar.location), _open(tar.location) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte of each
                if member.isfile():
                    place = f"{tar.location}#{member.offset_data}+{member.size}"
                    yield Found(member.name, place, tar.stamp, member.size)
    except tarfile.TarError as error:
        raise Unreachable(
            tar.location, f"is no uncompressed tar that can be read to its end ({error}); make it again"
        ) from None


@contextmanager
def _reached(location: str, done: str = "read") -> Iterator[None]:
    """Turn what goes wrong with a place into `Unreachable`: every package for a bucket has exceptions of its own."""
    try:
        yield
    except (TwoPhaseError, tarfile.TarError):
        raise
    except Exception as error:
        raise Unreachable(location, _why(error, done), isinstance(error, FileNotFoundError)) from None


def _open(location: str) -> IO[bytes]:
    if not is_url(location):
        return Path(location).open("rb")
    system, path = _system(location)
    return cast(IO[bytes], system.open(path, "rb"))


def _files(root: str) -> Iterator[Found]:
    above = os.path.join(root, "")  # noqa: PTH118
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118  # a million Path objects cost a gigabyte
            try:
                facts = os.stat(path)  # noqa: PTH116
            except OSError:
                continue  # a dangling link, or gone since
            yield Found(path[len(above) :], path, f"{facts.st_size}-{facts.st_mtime_ns}", facts.st_size)


def _objects(place: str) -> Iterator[Found]:
    with _reached(place):
        system, path = _system(place)
        scheme, root = place.split("://", 1)[0], path.rstrip("/") + "/"
        try:
            top = sorted(system.ls(path, detail=True), key=lambda facts: (facts["type"] == "directory", facts["name"]))
        except FileNotFoundError:
            return
        for item in top:
            below = system.find(item["name"], detail=True) if item["type"] == "directory" else {item["name"]: item}
            for key, facts in sorted(below.items()):
                stamp = next((str(facts[k]) for k in ("etag", "ETag", "md5Hash", "generation") if facts.get(k)), "")
                if key.startswith(root):
                    size = int(facts.get("size") or 0)
                    name, location = key.removeprefix(root), f"{scheme}://{key}"
                    yield Found(name, location, f"{size}-{stamp}" if stamp else "", size)


@cache
def _filesystem(scheme: str) -> Any:
    try:
        import fsspec

        system = fsspec.filesystem(scheme, use_listings_cache=False)  # others write there too
    except (ImportError, ValueError) as error:
        raise UsageError(f"{scheme}://: cannot be read here ({error}); {_remedy(scheme, error)}") from None
    # Packages for buckets log a traceback for what they raise too, and what is raised is said here.
    logging.getLogger(type(system).__module__.partition(".")[0]).addHandler(logging.NullHandler())
    return system


def _remedy(scheme: str, error: Exception) -> str:
    if scheme not in _EXTRAS:
        return f"{', '.join(f'{s}://' for s in _EXTRAS)} are accepted"
    if isinstance(error, ImportError):
        return f"pip install 'twophase[{_EXTRAS[scheme]}]'"
    return "log in; az:// also needs AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING"


def _system(url: str) -> tuple[Any, str]:
    system = _filesystem(url.split("://", 1)[0])
    return system, system._strip_protocol(url)


def _why(error: Exception, done: str) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "is not there; give a place that exists"
    if isinstance(error, PermissionError):
        return f"may not be {done} ({said}); ask for access, or log in"
    return f"cannot be {done} ({' '.join(said.split())[:200]}); try again, what is finished is kept"
