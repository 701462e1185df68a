"""Clips that are forgotten: one, by time, all of a device, and those whose time is over."""

import time
from pathlib import Path

from sqlalchemy import select, update

from tests.gateway.said import answered, report, status
from twophase.gateway import retention
from twophase.gateway.store import Store, clip, day, outcome


def test_clips_are_forgotten_by_one_by_time_and_all(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "d0"
    folder.mkdir(parents=True)
    answered(store, "d0", "audit", 1, 3, 1)
    report(store, "d0", status(10, 1, 1, updates=[{"release": "r-0000000000aa", "state": "installed"}]))
    for n in range(1, 5):
        (folder / str(n)).write_bytes(b"x")
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence == 2).values(announced=5.0)))

    def left() -> tuple[set[str], set[int]]:
        rows = store.do(lambda c: c.execute(select(clip).where(clip.c.kind.is_not(None))).all())
        return {path.name for path in folder.iterdir()}, {row.sequence for row in rows}

    assert retention.forget(store, tmp_path, "d0", sequence=1) == 1
    assert left() == ({"2", "3", "4"}, {2, 3, 4})
    assert retention.forget(store, tmp_path, "d0", before=10.0) == 1
    assert left() == ({"3", "4"}, {3, 4})
    assert retention.forget(store, tmp_path, "d0") == 2
    assert left() == (set(), set())
    assert store.do(lambda c: c.execute(select(day)).all() + c.execute(select(outcome)).all()) == []
    assert {r.state for r in store.do(lambda c: c.execute(select(clip)).all())} == {"done"}  # the numbers stay used


def test_time_takes_sound_first_and_answers_once_they_are_fetched(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "d0"
    folder.mkdir(parents=True)
    answered(store, "d0", "audit", 3, 0, 1)
    for n in range(1, 4):
        (folder / str(n)).write_bytes(b"x")
    old = {"announced": time.time() - 40 * 86_400}
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence < 3).values(**old)))
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence == 1).values(state="done")))
    assert retention.expire(store, tmp_path, 30) == 1
    assert [path.name for path in folder.iterdir()] == ["3"]
    rows = {row.sequence: row for row in store.do(lambda c: c.execute(select(clip)).all())}
    assert rows[1].wanted is None
    assert (rows[2].state, rows[2].wanted) == ("answered", True)  # it waits to be fetched
