"""What the gateway remembers: one database, changed only in transactions, by one thread.

    device   a name, its present public key, its state; the last status that it sent
    code     one-time enrolment codes, as hashes
    clip     every sequence number ever announced: how far it is, its story, what the classifier answered
    job      batch prediction jobs that are under way
    period   the last counters that a device reported of one period
    day      the increments of those counters, by day, gate and device
    outcome  how the installation of a release ended on a device
    halted   releases that no device shall install any more
    event    what was refused or recommended; a flood of one kind displaces no other

Calls that wait at the same time share one transaction, each in a savepoint of its own: a thousand devices cost one sync
of the disk, not a thousand. A call's result is handed out only after the commit. A crash leaves the last commit.
SQLite (WAL, synchronous=FULL) and PostgreSQL, by the same statements.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    delete,
    event,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from twophase.errors import TwoPhaseError

SCHEMA = 1
"""The number of this layout; a database of a newer program is refused."""

EVENTS_KEPT = 10_000
_TOGETHER = 256
T = TypeVar("T")


class _Json(TypeDecorator[Any]):
    """A JSON value as text: the same in every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


_tables = MetaData()
_schema = Table("schema", _tables, Column("number", Integer, primary_key=True))
device = Table(
    "device",
    _tables,
    Column("name", Text, primary_key=True),
    Column("key", Text),  # base64url of 32 bytes; none before the enrolment
    Column("state", Text, nullable=False),  # expected, active or revoked
    Column("enrolled", Float),
    Column("seen", Float),
    Column("status", _Json),
)
code = Table(
    "code",
    _tables,
    Column("hash", Text, primary_key=True),
    Column("device", Text, nullable=False),
    Column("expires", Float, nullable=False),
    Column("key", Text),  # the key that used it
)
clip = Table(
    "clip",
    _tables,
    Column("device", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),  # receiving, stored, answered or done
    Column("bytes", BigInteger, nullable=False),
    Column("announced", Float, nullable=False),
    Column("sha256", Text),
    Column("kind", Text),
    Column("gate", Text),
    Column("score", Float),
    Column("windows", Integer),
    Column("captured", Text),
    Column("clock_trusted", Boolean),
    Column("stored", Float),
    Column("answered", Float),
    Column("job", Text),
    Column("prediction", _Json),
    Column("error", _Json),
    Column("wanted", Boolean),  # whether the classifier gave it a label
    Index("clip_by_state", "state", "job", "stored"),
    Index("clip_by_time", "device", "announced"),
)
job = Table(
    "job",
    _tables,
    Column("id", Text, primary_key=True),
    Column("made", Float, nullable=False),
)
period = Table(
    "period",
    _tables,
    Column("device", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("counters", _Json, nullable=False),
    Column("reported", Float, nullable=False),
)
day = Table(
    "day",
    _tables,
    Column("gate", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),  # since 1970, UTC, by the gateway's clock
    Column("device", Text, primary_key=True),
    Column("counters", _Json, nullable=False),
)
outcome = Table(
    "outcome",
    _tables,
    Column("release", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("state", Text, nullable=False),  # installed or failed
    Column("reason", Text, nullable=False),
    Column("reported", Float, nullable=False),
)
halted = Table(
    "halted", _tables, Column("release", Text, primary_key=True), Column("at", Float), Column("reason", Text)
)
log = Table(
    "event",
    _tables,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("what", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("message", Text, nullable=False),
)


def upsert(connection: Connection, table: Table, values: dict[str, Any]) -> None:
    """Insert a row, or give the one with its primary key these values."""
    made = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table).values(**values)
    connection.execute(made.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=values))


def note(connection: Connection, what: str, device: str, message: str) -> None:
    """Write an event down; of its own kind, those go that are older than the last `EVENTS_KEPT` of all."""
    result = connection.execute(
        insert(log).values(at=time.time(), what=what, device=device[:100], message=message[:500])
    )
    newest = result.inserted_primary_key
    if newest is not None and newest[0] % 100 == 0:
        connection.execute(delete(log).where(log.c.what == what, log.c.id <= newest[0] - EVENTS_KEPT))


class Store:
    """The database behind its one thread. `submit` may be called from any thread."""

    def __init__(self, place: Path | str) -> None:
        """`place` is a file of SQLite, made when it is not there, or a `postgresql://` address.

        Raises `TwoPhaseError` when it cannot be used.
        """
        url = f"sqlite:///{place}" if isinstance(place, Path) else place.replace("postgresql:", "postgresql+pg8000:", 1)
        try:
            self._engine = _engine(url)
            with self._engine.begin() as connection:
                _tables.create_all(connection)
                found = connection.scalar(select(_schema.c.number))
                if found is None:
                    connection.execute(insert(_schema).values(number=SCHEMA))
        except (SQLAlchemyError, ImportError) as error:
            raise TwoPhaseError(f"{place}: this database cannot be used ({words(error)}); name another") from None
        if found not in (None, SCHEMA):
            raise TwoPhaseError(f"{place}: was written by another twophase (schema {found}); use that version")
        self._queue: SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Connection], T]) -> "Future[T]":
        """Run a call in a transaction, all or nothing; the future is done when it is durable."""
        future: Future[T] = Future()
        self._queue.put((call, future))
        return future

    def do(self, call: Callable[[Connection], T]) -> T:
        """`submit`, and wait."""
        return self.submit(call).result()

    def close(self) -> None:
        """End what waits, then release the database."""
        self._queue.put(None)
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            group = [item]
            while len(group) < _TOGETHER:
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
                if more is None:
                    self._queue.put(None)
                    break
                group.append(more)
            self._commit(group)

    def _commit(self, group: list[tuple[Callable[[Connection], Any], "Future[Any]"]]) -> None:
        ended: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._engine.begin() as connection:
                for call, future in group:
                    try:
                        with connection.begin_nested():
                            ended.append((future, call(connection), None))
                    except Exception as error:
                        ended.append((future, None, error))
        except Exception as error:  # nothing of the group was kept, so nobody may be told otherwise
            ended = [(future, None, error) for _, future in group]
        for future, value, failure in ended:
            if not future.set_running_or_notify_cancel():
                continue
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # the driver's own transactions know no savepoints
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 30000"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def words(error: Exception) -> str:
    """What a database says is wrong, in one line."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
