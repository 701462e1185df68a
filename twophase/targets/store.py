"""Releases in a bucket, each whole or not at all: its files first, its manifest last.

A folder without a manifest is no release to any reader, so an upload that was cut off is only room that the next one
fills. Credentials are found where each cloud puts them, as for fetching (`twophase.serving.fetch`).
"""

from pathlib import Path
from typing import Any

from twophase.errors import TwoPhaseError
from twophase.release.manifest import EXTRA, verify

MANIFEST = f"{EXTRA}/release.json"


class Store:
    """A folder of releases: `s3://bucket/path`, `gs://bucket/path`, `https://ACCOUNT.blob.core.windows.net/c/path`."""

    def __init__(self, folder: str) -> None:
        """Raises `TwoPhaseError` when `folder` is no address of a store."""
        from obstore.store import from_url

        self._folder = folder.rstrip("/")
        self._store = self._call(lambda: from_url(self._folder))

    def address(self, name: str) -> str:
        """Where a release lies."""
        return f"{self._folder}/{name}"

    def put(self, release: Path, name: str) -> None:
        """Upload a release; nothing where it is there already. Raises `TwoPhaseError`, also when it is not whole."""
        manifest = verify(release)
        if not self._there(f"{name}/{MANIFEST}"):
            for file in (*manifest.digests, MANIFEST):
                self._call(lambda file=file: self._store.put(f"{name}/{file}", release / file))

    def get(self, file: str) -> bytes:
        """A file's bytes, by its path in the folder. Raises `TwoPhaseError`."""
        return bytes(self._call(lambda: self._store.get(file).bytes()))

    def clear(self) -> None:
        """Remove everything in the folder."""
        for chunk in self._call(lambda: list(self._store.list())):
            for item in chunk:
                self._call(lambda path=item["path"]: self._store.delete(path))

    def _there(self, path: str) -> bool:
        try:
            self._store.head(path)
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._named(error) from None
        return True

    def _call(self, do: Any) -> Any:
        from obstore.exceptions import BaseError

        try:
            return do()
        except (BaseError, OSError, ValueError) as error:
            raise self._named(error) from None

    def _named(self, error: Exception) -> TwoPhaseError:
        why = str(error).strip().splitlines()[0][:300]
        return TwoPhaseError(
            f"{self._folder}: cannot be used ({why}); see that it is there and that you may write to it"
        )
