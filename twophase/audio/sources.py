"""Where clips lie: files, ranges of tar files, objects of a bucket. One name for each, one way to list and to read.

A location is an absolute path, a URL (`gs://`, `s3://`, `az://`: whatever fsspec has a package for), or either of them
with a range behind it: `/data/shard-000.tar#1536+32044` is the 32,044 bytes from byte 1,536, so that members of a tar
are read in any order and side by side. A stamp changes when what lies there does (size and time, or the bucket's own
tag), so that what was read once need not be read again to know that it is the same.

Nothing is written. What cannot be reached raises `Unreachable`: it says something of the moment, not of the clip.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from twophase.errors import TwoPhaseError, UsageError

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
    """A file of a listing: its path below the listed place, where it is, and its stamp."""

    name: str
    location: str
    stamp: str


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
    try:
        if is_url(file):
            system, path = _system(file)
            return bytes(system.cat_file(path, start=start, end=end) if ranged else system.cat_file(path))
        with Path(file).open("rb") as opened:
            opened.seek(start)
            return opened.read(-1 if end is None else end - start)
    except UsageError:
        raise
    except Exception as error:  # every package for a bucket has exceptions of its own
        raise Unreachable(location, _why(error), isinstance(error, FileNotFoundError)) from None


def listing(place: str) -> list[Found]:
    """Every file below a folder or a bucket's prefix, by name; hidden ones are left out. Raises `Unreachable`."""
    found = _objects(place) if is_url(place) else _files(Path(place))
    return sorted(
        (f for f in found if not any(part.startswith(".") for part in f.name.split("/"))), key=lambda f: f.name
    )


def members(tar: Found) -> list[Found]:
    """The files inside an uncompressed tar, each as a range of it. Raises `Unreachable` when it is not one."""
    try:
        with _open(tar.location) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            return [Found(m.name, f"{tar.location}#{m.offset_data}+{m.size}", tar.stamp) for m in archive if m.isfile()]
    except tarfile.TarError as error:
        raise Unreachable(
            tar.location, f"is no uncompressed tar that can be read to its end ({error}); make it again"
        ) from None
    except UsageError:
        raise
    except Exception as error:
        raise Unreachable(tar.location, _why(error)) from None


def _open(location: str) -> IO[bytes]:
    if not is_url(location):
        return Path(location).open("rb")
    system, path = _system(location)
    return cast(IO[bytes], system.open(path, "rb"))


def _files(root: Path) -> Iterator[Found]:
    above = os.path.join(root, "")  # noqa: PTH118
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118  # a million Path objects cost a gigabyte
            try:
                facts = os.stat(path)  # noqa: PTH116
            except OSError:
                continue  # a dangling link, or gone since
            yield Found(path[len(above) :], path, f"{facts.st_size}-{facts.st_mtime_ns}")


def _objects(place: str) -> Iterator[Found]:
    system, path = _system(place)
    try:
        objects: dict[str, dict[str, Any]] = system.find(path, detail=True)
    except Exception as error:
        raise Unreachable(place, _why(error)) from None
    scheme, root = place.split("://", 1)[0], path.rstrip("/") + "/"
    for key, facts in objects.items():
        stamp = next((str(facts[k]) for k in ("etag", "ETag", "md5Hash", "generation") if facts.get(k)), "")
        if key.startswith(root):
            yield Found(key.removeprefix(root), f"{scheme}://{key}", f"{facts.get('size')}-{stamp}" if stamp else "")


@cache
def _filesystem(scheme: str) -> Any:
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'twophase[{extra}]'" if extra else f"{', '.join(f'{s}://' for s in _EXTRAS)} are accepted"
        raise UsageError(f"{scheme}://: cannot be read here ({error}); {how}") from None


def _system(url: str) -> tuple[Any, str]:
    system = _filesystem(url.split("://", 1)[0])
    return system, system._strip_protocol(url)


def _why(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "is not there; give a place that exists"
    if isinstance(error, PermissionError):
        return f"may not be read ({said}); ask for read access, or log in"
    return f"cannot be read ({' '.join(said.split())[:200]}); try again, what is finished is kept"
