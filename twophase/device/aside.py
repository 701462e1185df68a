"""Clips that stay on the device and are not sent: each kept whole, and why beside it.

KIND/000000017040.flac    the clip
KIND/000000017040.why     why it is here, one line
"""

from collections.abc import Iterator
from pathlib import Path

from twophase.device.layout import cost, numbered
from twophase.files import sync

KINDS = ("damaged", "refused")
"""What is not as it was written, and what the cloud will not take; in the order in which they make room."""


class Aside:
    """The folders of `KINDS`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.bytes = sum(cost(path.stat().st_size) for kind in KINDS for path in (root / kind).iterdir())
        """What they take on the disk."""

    def put(self, clip: Path, kind: str, why: str) -> None:
        """Move a clip's file here. Raises `OSError`; the file is then where it was, or here without its reason."""
        here = self._root / kind / clip.name
        size = clip.stat().st_size
        clip.rename(here)
        self.bytes += cost(size)
        here.with_suffix(".why").write_text(why + "\n", "utf-8")
        self.bytes += cost(1)
        sync(here.parent)

    def count(self) -> dict[str, int]:
        """Clips by kind."""
        return {kind: sum(1 for _ in numbered(self._root / kind, ".flac")) for kind in KINDS}

    def files(self) -> Iterator[tuple[int, Path]]:
        """Every file that may make room, in that order, and the bytes that it takes."""
        for kind in KINDS:
            for path in sorted((self._root / kind).iterdir()):
                yield cost(path.stat().st_size), path

    def remove(self, path: Path, size: int) -> None:
        """Remove one of `files`."""
        path.unlink()
        self.bytes -= size
