"""The clips that wait, as files in folders of a thousand, and the index in step with them.

    clips/000000017000/000000017042.flac    one clip (clip.py)
    index.db                                what follows from them (index.py); built anew when it is lost

The caller takes care that one thread at a time is in here; `write` and the reading of clips may go on beside.
"""

import errno
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from twophase.device import clip
from twophase.device.clip import Damaged, Story
from twophase.device.durable import SpoolError, SpoolFull, make_folder, spool_error, write_new
from twophase.device.index import WAITING, Index, IndexLost, Row, discard, is_full, size_on_disk
from twophase.device.layout import BLOCK, ENTRY, FOLDER_OF, cost, name, numbered

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # reading fails for the moment, and says nothing about the file

log = logging.getLogger(__name__)

T = TypeVar("T")


class Store:
    """The clips below one folder."""

    def __init__(self, root: Path, recency: float, damaged: Callable[[int, str], object]) -> None:
        """`damaged` is called with what cannot be read, and why."""
        self._root, self._recency, self._damaged = root, recency, damaged
        self._path_of_index = root / "index.db"
        self._bytes = 0
        self._index: Index | None = None  # closed

    def open(self) -> None:
        """Bring index and files into step. Raises `SpoolError`."""
        self._index = self._open_index()

    @property
    def used(self) -> int:
        """What clips and index take on the disk."""
        return self._bytes + size_on_disk(self._path_of_index)

    def worth(self, sequence: int, margin: float) -> float:
        """What a clip is worth: the gate's margin, and `recency` for every thousand clips before it."""
        return margin + self._recency * sequence / 1000

    def path(self, sequence: int) -> Path:
        """Where a clip's file is."""
        return self._root / "clips" / name(sequence // FOLDER_OF * FOLDER_OF) / f"{name(sequence)}.flac"

    def new_folder(self, at_least: int) -> int:
        """Begin a folder above all that there ever were, for numbers from `at_least` on; its first number.

        It is synced before a number of it is used, so no number is used twice. Folders that became empty go.
        """
        before = sorted(first for first, _ in numbered(self._root / "clips", ""))
        start = max([at_least // FOLDER_OF * FOLDER_OF, *(first + FOLDER_OF for first in before)])
        make_folder(self._root / "clips" / name(start))
        for first in before[:-1]:  # a clip of the last may still be being written
            with suppress(OSError):
                (self._root / "clips" / name(first)).rmdir()
        return start

    def write(self, sequence: int, data: bytes) -> None:
        """Put a clip's file on the disk; nobody sees it before `add`. Raises `SpoolError`."""
        path = self.path(sequence)
        write_new(path, data, self._root / "incoming" / path.name)

    def add(self, row: Row) -> None:
        """Let a clip that was written be one of those that wait. Raises `SpoolError`; then its file is gone."""
        try:
            self.indexed(lambda index: index.add([row]))
            self._bytes += cost(row.bytes)
        except SpoolError:
            with suppress(OSError):
                self.path(row.sequence).unlink(missing_ok=True)
            raise

    def read(self, sequence: int) -> tuple[bytes, Story]:
        """A clip as it was written, and its story. Raises `Damaged`, or `OSError` when it cannot be read."""
        with _lasting(self.path(sequence)) as path:
            data = path.read_bytes()
        return data, _own(clip.check(data), sequence)

    def story(self, sequence: int) -> Story:
        """A clip's story, by the beginning of its file. Raises `Damaged`, or `OSError` when it cannot be read."""
        with _lasting(self.path(sequence)) as path, path.open("rb") as file:
            head = file.read(clip.HEAD_BYTES)
        return _own(clip.story_of(head), sequence)

    def remove(self, sequence: int) -> None:
        """Take a clip out of its folder and the index, where it is there."""
        try:
            self.path(sequence).unlink(missing_ok=True)
        except OSError as error:
            log.warning("clip %d: cannot be removed: %s", sequence, error)
        try:
            if row := self.indexed(lambda index: index.get(sequence)):
                self.indexed(lambda index: index.remove([sequence]))
                self._bytes -= cost(row.bytes)
        except SpoolError as error:  # a row without a file: found when it is to be sent, or at the next start
            log.warning("clip %d: its row stays in the index: %s", sequence, error)

    def close(self) -> None:
        """Let nothing more in or out."""
        if self._index is not None:
            self._index.close()
        self._index = None

    def indexed(self, use: Callable[[Index], T]) -> T:
        """Use the index; when it turns out to be damaged, build it anew, once. Raises `SpoolError`."""
        if self._index is None:
            raise SpoolError(f"{self._root}: is closed")
        try:
            try:
                return use(self._index)
            except sqlite3.DatabaseError as error:
                if is_full(error):
                    raise
                log.warning("%s: the index is lost (%s)", self._path_of_index, error)
                self._index.close()
                self._index = self._open_index()
                return use(self._index)
        except sqlite3.DatabaseError as error:
            raise _no_index(self._path_of_index, error) from None

    def _open_index(self) -> Index:
        """The index, in step with the files; built anew when it cannot be used. Raises `SpoolError`."""
        path = self._path_of_index
        try:
            return self._in_step()
        except (IndexLost, sqlite3.DatabaseError) as error:
            log.warning("%s: %s; it is built anew from the clips", path, error)
        try:
            discard(path)
            return self._in_step()
        except OSError as error:
            raise spool_error(path, error) from None
        except (IndexLost, sqlite3.DatabaseError) as error:
            raise _no_index(path, error) from None

    def _in_step(self) -> Index:
        """The index, once every file has a row and every row a file."""
        bad: dict[int, str] = {}
        with ExitStack() as stack:
            index = Index(self._path_of_index, self._recency)
            stack.callback(index.close)
            folders = sorted(first for first, _ in numbered(self._root / "clips", ""))
            for first in index.folders(FOLDER_OF) - set(folders):
                index.remove(index.between(first, first + FOLDER_OF))
            for first in folders:
                known = index.between(first, first + FOLDER_OF)
                folder = self._root / "clips" / name(first)
                found = {sequence: entry.stat().st_size for sequence, entry in numbered(folder, ".flac")}
                new = []
                for sequence in sorted(s for s, size in found.items() if known.get(s) != size):
                    try:
                        worth = self.worth(sequence, self.story(sequence).margin)
                        new.append(Row(sequence, WAITING, found[sequence], worth))
                    except (OSError, Damaged) as error:
                        bad[sequence] = str(error)
                index.add(new)
                index.remove(known.keys() - found.keys())
                if not found and first != folders[-1]:
                    folder.rmdir()
            self._bytes = index.bytes(BLOCK, ENTRY)
            stack.pop_all()
        self._index = index
        for sequence, why in bad.items():
            self._damaged(sequence, why)
        return index


@contextmanager
def _lasting(path: Path) -> Iterator[Path]:
    """Raise `SpoolError` for a failure that passes, so that the file is not taken for damaged."""
    try:
        yield path
    except OSError as error:
        if error.errno in _PASSING:
            raise spool_error(path, error) from None
        raise


def _own(story: Story, sequence: int) -> Story:
    if story.sequence != sequence:
        raise Damaged(f"it says that it is clip {story.sequence}")
    return story


def _no_index(path: Path, error: Exception) -> SpoolError:
    return (SpoolFull if is_full(error) else SpoolError)(f"{path}: {error}; free some room")
