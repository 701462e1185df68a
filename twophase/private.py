"""Folders that hold what was heard: only their owner enters them, whatever the umask of who makes them is."""

from contextlib import suppress
from pathlib import Path


def private(folder: Path) -> None:
    """Make a folder that is its owner's alone (mode 700); one that is there becomes so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # somebody else's, or on a disk that keeps no modes
        folder.chmod(0o700)
