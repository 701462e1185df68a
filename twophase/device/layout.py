"""Names and sizes of the spool's files: each is named by its sequence number, and takes whole blocks of the disk."""

import os
from collections.abc import Iterator
from pathlib import Path

FOLDER_OF = 1000
"""Sequence numbers in one folder."""

BLOCK = 4096
"""Bytes of the disk that are given to one file at a time."""

ENTRY = 64
"""Bytes that a name takes in its folder."""


def cost(size: int) -> int:
    """Bytes on the disk of a file of `size` bytes."""
    return -(-size // BLOCK) * BLOCK + ENTRY


def name(sequence: int) -> str:
    """A sequence number as files and folders are named: names sort as numbers do."""
    return f"{sequence:012d}"


def numbered(folder: Path, suffix: str) -> Iterator["tuple[int, os.DirEntry[str]]"]:
    """Numbers and entries of what has this suffix in a folder; what is not named by a number is passed over."""
    with os.scandir(folder) as entries:
        for entry in entries:
            stem = entry.name.removesuffix(suffix)
            if entry.name.endswith(suffix) and len(stem) >= 12 and stem.isdecimal():
                yield int(stem), entry
