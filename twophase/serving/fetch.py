"""A release from a bucket or a web server, verified: `python -m twophase.serving.fetch URI` prints its folder.

    gs://, s3://, az://, https:// (and http:// within a network that is trusted)
      .../FOLDER              a release: its manifest is read first, then the files that it names; nothing is listed
      .../NAME.tar.gz         an archive of one

    TEMPORARY/twophase-releases/<id>-<12 hex of the manifest>     a whole, verified release

Credentials are found where each cloud puts them: its variables, its metadata server, its workload identity. A fetch
that is cut off leaves nothing that is read; a release that is there already is verified, and fetched again only where
it was damaged.
"""

import shutil
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from twophase.errors import TwoPhaseError
from twophase.files import digest, new_directory
from twophase.release.manifest import EXTRA, ReleaseError, read, verify
from twophase.serving.source import release_in

MANIFEST = f"{EXTRA}/release.json"
MOST_BYTES = 4 << 30
"""Largest release that is taken, so that a wrong address does not fill the disk."""
SCHEMES = ("gs", "s3", "az", "https", "http")
_ARCHIVES = (".tar.gz", ".tgz")


def fetch(uri: str, folder: Path) -> Path:
    """The release at `uri`, below `folder`. Raises `TwoPhaseError` naming what is wrong with it, and where."""
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise TwoPhaseError(f"{uri}: cannot be fetched from; {', '.join(s + '://' for s in SCHEMES)} are accepted")
    place, _, name = uri.rpartition("/") if uri.endswith(_ARCHIVES) else (uri.rstrip("/"), "", "")
    source = _Source(place, {"allow_http": True} if scheme == "http" else None)
    folder.mkdir(parents=True, exist_ok=True)
    return _archive(source, name, folder) if name else _folder(source, folder)


class _Source:
    """One store, with its errors in words."""

    def __init__(self, address: str, client: Any) -> None:
        self._address = address
        self._store = self._call("", lambda: from_url(address, client_options=client))

    def save(self, name: str, path: Path) -> None:
        """Copy an object to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._call(name, lambda: self._copy(name, path))

    def _copy(self, name: str, path: Path) -> None:
        size = 0
        with path.open("wb") as file:
            for chunk in self._store.get(name).stream():
                size += file.write(chunk)
                if size > MOST_BYTES:
                    raise TwoPhaseError(f"{self._address}/{name}: is over {MOST_BYTES} bytes; this is no release")

    def _call(self, name: str, do: Any) -> Any:
        what = f"{self._address}/{name}".rstrip("/")
        try:
            return do()
        except FileNotFoundError:
            raise TwoPhaseError(f"{what}: is not there; give the folder of a release, or a .tar.gz of one") from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise TwoPhaseError(f"{what}: may not be read; let this service's account read it") from None
        except (BaseError, ValueError) as error:
            raise TwoPhaseError(f"{what}: cannot be read ({str(error).strip().splitlines()[0][:300]})") from None


def _folder(source: _Source, folder: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        source.save(MANIFEST, Path(aside) / MANIFEST)
        manifest = read(Path(aside))
        here = folder / f"{manifest.id}-{digest(Path(aside) / MANIFEST)[:12]}"
        if _whole(here):
            return here
        unsafe = [n for n in manifest.digests if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
        if unsafe:
            raise ReleaseError(f"{manifest.id}: names the file {unsafe[0]!r}, outside its folder; this is no release")
        with new_directory(here) as new, ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda name: source.save(name, new / name), (MANIFEST, *manifest.digests)):
                pass
            verify(new)
    return here


def _archive(source: _Source, name: str, folder: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        packed, unpacked = Path(aside) / "packed", Path(aside) / "unpacked"
        source.save(name, packed)
        try:
            with tarfile.open(packed) as archive:
                if sum(member.size for member in archive) > MOST_BYTES:
                    raise TwoPhaseError(f"{name}: unpacks to over {MOST_BYTES} bytes; this is no release")
                archive.extractall(unpacked, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise TwoPhaseError(f"{name}: is no whole archive ({error}); pack and upload it again") from None
        release = release_in(unpacked)
        here = folder / f"{verify(release).id}-{digest(release / MANIFEST)[:12]}"
        if not _whole(here):
            release.rename(here)
    return here


def _whole(release: Path) -> bool:
    """Whether a release is there; one that was damaged since is removed."""
    try:
        verify(release)
    except TwoPhaseError:
        shutil.rmtree(release, ignore_errors=True)
        return False
    return True


def main() -> int:
    """Fetch one release; the last line on stderr says what went wrong."""
    try:
        found = fetch(sys.argv[1], Path(tempfile.gettempdir()) / "twophase-releases")
    except TwoPhaseError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
