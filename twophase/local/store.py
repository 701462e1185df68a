"""What the platform remembers: one SQLite file, changed only in transactions, by one thread.

    model      a model and the number of its next version, which is never used again
    version    a version's proto-JSON, and the artifact that it was uploaded with
    alias      which version an alias means; every model has exactly one `default`
    deployed   which version an endpoint's deployed model is of
    resource   everything else that has a name: endpoints, jobs, operations

A crash leaves the last committed state. The schema grows by named steps that are never edited; a file of a newer
program is refused, not guessed at.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from twophase.errors import TwoPhaseError
from twophase.files import JSON

MIGRATIONS: tuple[tuple[str, str], ...] = (
    (
        "0001 models, versions, aliases, resources",
        """
        CREATE TABLE model (
            name TEXT PRIMARY KEY, parent TEXT NOT NULL, next_version INTEGER NOT NULL, created TEXT NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX model_by_parent ON model (parent, created, name);
        CREATE TABLE version (
            model TEXT NOT NULL REFERENCES model ON DELETE CASCADE, id INTEGER NOT NULL, artifact TEXT,
            body BLOB NOT NULL, PRIMARY KEY (model, id)
        ) WITHOUT ROWID;
        CREATE INDEX version_by_artifact ON version (artifact);
        CREATE TABLE alias (
            model TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (model, alias),
            FOREIGN KEY (model, version) REFERENCES version ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE INDEX alias_by_version ON alias (model, version);
        CREATE TABLE deployed (
            endpoint TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL,
            PRIMARY KEY (endpoint, id), FOREIGN KEY (model, version) REFERENCES version
        ) WITHOUT ROWID;
        CREATE INDEX deployed_by_version ON deployed (model, version);
        CREATE TABLE resource (
            name TEXT PRIMARY KEY, kind TEXT NOT NULL, parent TEXT NOT NULL, created TEXT NOT NULL, body BLOB NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX resource_by_parent ON resource (kind, parent, created, name);
        """,
    ),
)
"""Every schema change, in order; append only."""


class Store:
    """The platform's memory. Use it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises `TwoPhaseError` when the file is of a newer program, or no database."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            self._migrate(path)
        except sqlite3.DatabaseError as error:
            raise TwoPhaseError(
                f"{path}: cannot be used ({error}); move it away to start with an empty platform"
            ) from None

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; durable when the block has ended. Not to be nested."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # SQLite ends it itself where the disk is full
                self._db.execute("ROLLBACK")

    def all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Every row of a query."""
        return self._db.execute(sql, values).fetchall()

    def one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query."""
        row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return row

    def run(self, sql: str, *values: Any) -> int:
        """Change rows, within a transaction; how many were changed."""
        return self._db.execute(sql, values).rowcount

    def get(self, kind: str, name: str) -> JSON | None:
        """A resource's proto-JSON."""
        row = self.one("SELECT body FROM resource WHERE name = ? AND kind = ?", name, kind)
        return row and orjson.loads(row["body"])

    def put(self, kind: str, body: JSON) -> None:
        """Insert or replace a resource by its `name`; its `createTime`, where it has one, orders lists."""
        name = body["name"]
        self.run(
            "INSERT INTO resource VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET body = excluded.body",
            name,
            kind,
            parent_of(name),
            body.get("createTime", ""),
            orjson.dumps(body),
        )

    def delete(self, kind: str, name: str) -> None:
        """Forget a resource."""
        self.run("DELETE FROM resource WHERE name = ? AND kind = ?", name, kind)

    def resources(self, kind: str, parent: str | None = None) -> list[JSON]:
        """All resources of a kind, below `parent` where given, newest first as Vertex lists them."""
        where, values = ("AND parent = ?", (parent,)) if parent else ("", ())
        rows = self.all(f"SELECT body FROM resource WHERE kind = ? {where} ORDER BY created DESC, name", kind, *values)
        return [orjson.loads(row["body"]) for row in rows]

    def _migrate(self, path: Path) -> None:
        self._db.execute("CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY)")
        done = {row["name"] for row in self.all("SELECT name FROM migration")}
        unknown = done - {name for name, _ in MIGRATIONS}
        if unknown:
            raise TwoPhaseError(f"{path}: was written by a newer twophase (schema {max(unknown)!r}); use that version")
        for name, script in MIGRATIONS:
            if name not in done:
                with self.transaction():
                    for statement in filter(str.strip, script.split(";")):
                        self._db.execute(statement)
                    self._db.execute("INSERT INTO migration VALUES (?)", (name,))


def parent_of(name: str) -> str:
    """`projects/p/locations/l` of `projects/p/locations/l/endpoints/1`."""
    return name.rsplit("/", 2)[0]
