"""What waits in the spool, at hand: an SQLite table that is never the only place where anything is known.

    index.db, index.db-wal    clips(sequence, state, bytes, worth)

Everything in it follows from the clip files, or can be asked of the gateway again; so it is written without waiting
for the disk (WAL, synchronous=NORMAL), and an index that is damaged, of another version or of another `recency` is
thrown away and built anew. Opening compares every row with its entries in the table's own indexes, so a changed state
or worth is found; a changed size is found by the spool. And `sent` is a hint: a clip leaves only by an answer.
"""

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

WAITING, SENT = 0, 1
"""A clip's states: the gateway does not have it, or has it and has not answered yet."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE about (recency REAL NOT NULL);
CREATE TABLE clips (
    sequence INTEGER PRIMARY KEY, state INTEGER NOT NULL, bytes INTEGER NOT NULL, worth REAL NOT NULL
);
CREATE INDEX in_order ON clips (state, sequence);
CREATE INDEX least_first ON clips (state, worth, sequence);
"""


class IndexLost(Exception):
    """This index cannot be used; it has to be built anew."""


@dataclass(frozen=True, slots=True)
class Row:
    """One clip in the index. `bytes` is its file's size."""

    sequence: int
    state: int
    bytes: int
    worth: float


class Index:
    """An open index. Any `sqlite3.DatabaseError` from it means `IndexLost`, a full disk apart."""

    def __init__(self, path: Path, recency: float) -> None:
        """Open the index at `path`, or begin an empty one. Raises `IndexLost`."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # the spool's lock keeps others out: no -shm file
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=64")
            self._db.execute("PRAGMA cache_size=-2000")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT")
                self._db.execute("INSERT INTO about VALUES (?)", (recency,))
            elif version != _VERSION or self._db.execute("SELECT recency FROM about").fetchone() != (recency,):
                raise IndexLost("it is of another version or setting")
            elif self._db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                raise IndexLost("it is damaged")
        except (sqlite3.DatabaseError, IndexLost) as error:
            self._db.close()
            if is_full(error):
                raise
            raise IndexLost(str(error)) from None

    def close(self) -> None:
        """Close it; what was committed is there next time."""
        self._db.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Add or replace rows."""
        values = ((r.sequence, r.state, r.bytes, r.worth) for r in rows)
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?)", values)

    def remove(self, sequences: Iterable[int]) -> None:
        """Remove rows; those that are not there are passed over."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM clips WHERE sequence = ?", ((s,) for s in sequences))

    def mark(self, sequence: int, state: int) -> None:
        """Set a clip's state."""
        self._db.execute("UPDATE clips SET state = ? WHERE sequence = ?", (state, sequence))

    def value(self, sequence: int, worth: float) -> None:
        """Set what a clip is worth."""
        self._db.execute("UPDATE clips SET worth = ? WHERE sequence = ?", (worth, sequence))

    def get(self, sequence: int) -> Row | None:
        """One clip's row."""
        found = self._db.execute("SELECT * FROM clips WHERE sequence = ?", (sequence,)).fetchone()
        return Row(*found) if found else None

    def between(self, first: int, end: int) -> dict[int, int]:
        """Sizes by sequence, of `first` <= sequence < `end`."""
        rows = self._db.execute("SELECT sequence, bytes FROM clips WHERE sequence >= ? AND sequence < ?", (first, end))
        return dict(rows.fetchall())

    def folders(self, size: int) -> set[int]:
        """First numbers of the stretches of `size` numbers that have rows."""
        rows = self._db.execute("SELECT DISTINCT sequence / ? * ? FROM clips", (size, size))
        return {int(first) for (first,) in rows}

    def all(self) -> list[int]:
        """Every sequence number."""
        return [s for (s,) in self._db.execute("SELECT sequence FROM clips")]

    def in_order(self, state: int, without: Collection[int], limit: int, after: int) -> list[int]:
        """The first `limit` clips in a state, by sequence, later than `after`; but none of `without`."""
        rows = self._db.execute(
            "SELECT sequence FROM clips WHERE state = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (state, after, limit + len(without)),
        )
        return [s for (s,) in rows.fetchall() if s not in without][:limit]

    def least_first(self, state: int, limit: int) -> list[tuple[int, int, float]]:
        """(sequence, bytes, worth) of the first `limit` clips in a state, from the least worth."""
        query = "SELECT sequence, bytes, worth FROM clips WHERE state = ? ORDER BY worth, sequence LIMIT ?"
        return self._db.execute(query, (state, limit)).fetchall()

    def count(self) -> dict[int, int]:
        """Clips by state."""
        return dict(self._db.execute("SELECT state, count(*) FROM clips GROUP BY state").fetchall())

    def bytes(self, block: int, entry: int) -> int:
        """What all clips take on a disk: each rounded up to blocks, and an entry in its folder."""
        query = "SELECT coalesce(sum((bytes + ?1 - 1) / ?1 * ?1 + ?2), 0) FROM clips"
        return int(self._db.execute(query, (block, entry)).fetchone()[0])


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL


def discard(path: Path) -> None:
    """Throw an index away, with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def size_on_disk(path: Path) -> int:
    """Bytes that the index takes, with what SQLite keeps beside it."""
    files = (path.with_name(path.name + suffix) for suffix in ("", "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
