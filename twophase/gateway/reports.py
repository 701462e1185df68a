"""What devices report: running counters of each period, and how installations ended.

The gateway keeps the last report of each period and adds the increments to the day on which it hears them, so a report
may come twice, late or never. A release that fails on too many devices is halted for all.
"""

import time
from typing import Any

from sqlalchemy import Connection, func, select

from twophase.files import JSON
from twophase.gateway import devices
from twophase.gateway.intake import RELEASE
from twophase.gateway.refused import Refused
from twophase.gateway.store import day, halted, note, outcome, period, upsert
from twophase.release.scores import BINS

HALTING_FAILURES = 2
HALTING_SHARE = 0.02
"""A release is halted when this many devices failed to install it, and more than this share of those that tried."""

_COUNTERS = ("windows", "escalated", "audited")


def parse(body: JSON) -> JSON:
    """A device's status, checked. Raises `Refused` naming the first field that is not as it should be."""
    value = _object(body, "the status")
    if value.get("gate", "") is not None:  # none on a device that waits for its first one
        _release(value.get("gate"), "gate")
    if not isinstance(value.get("root", True), bool):
        raise Refused(400, f"root: is {str(value['root'])[:80]!r}; true or false is accepted")
    for i, item in enumerate(_list(value.get("periods", []), "periods", 50)):
        if not isinstance(item.get("id"), str) or not 0 < len(item["id"]) <= 64:
            raise Refused(400, f"periods[{i}].id: is no name of 1 to 64 characters")
        _release(item.get("gate"), f"periods[{i}].gate")
        counts: list[Any] = [item.get(name) for name in _COUNTERS]
        scores = item.get("scores")
        if not all(map(_is_count, counts)) or sum(counts[1:]) > counts[0]:
            raise Refused(400, f"periods[{i}]: windows, escalated and audited are counts, the first the largest")
        if not isinstance(scores, list) or len(scores) != BINS or not all(map(_is_count, scores)):
            raise Refused(400, f"periods[{i}].scores: is no list of {BINS} counts")
    for i, item in enumerate(_list(value.get("updates", []), "updates", 20)):
        _release(item.get("release"), f"updates[{i}].release")
        if item.get("state") not in ("installed", "failed"):
            raise Refused(400, f"updates[{i}].state: is {item.get('state')!r}; installed or failed is accepted")
    return value


def report(c: Connection, name: str, status: JSON) -> list[str]:
    """Take a device's status; the releases that are halted, which it has to know."""
    devices.report(c, name, status)
    for item in status.get("periods", []):
        _count(c, name, item)
    for item in status.get("updates", []):
        _tried(c, name, item)
    return list(c.scalars(select(halted.c.release).order_by(halted.c.release)))


def _count(c: Connection, name: str, item: JSON) -> None:
    """Add what is new in a period's counters to today; an older report than the last changes nothing."""
    which = (period.c.device == name, period.c.id == item["id"])
    known: JSON = c.scalar(select(period.c.counters).where(*which)) or dict.fromkeys(_COUNTERS, 0) | {
        "scores": [0] * BINS
    }
    new = {name: item[name] for name in (*_COUNTERS, "scores")}
    more = {n: new[n] - known[n] for n in _COUNTERS}
    scores = [a - b for a, b in zip(new["scores"], known["scores"], strict=True)]
    if min(*more.values(), *scores) < 0 or not more["windows"]:
        return
    upsert(c, period, {"device": name, "id": item["id"], "counters": new, "reported": time.time()})
    today = {"gate": item["gate"], "day": int(time.time()) // 86_400, "device": name}
    before = c.scalar(select(day.c.counters).where(*(day.c[key] == value for key, value in today.items())))
    if before:
        more = {n: more[n] + before[n] for n in _COUNTERS}
        scores = [a + b for a, b in zip(scores, before["scores"], strict=True)]
    upsert(c, day, {**today, "counters": {**more, "scores": scores}})


def _tried(c: Connection, name: str, item: JSON) -> None:
    """Write down how an installation ended, and halt the release when too many fail."""
    release = item["release"]
    reason = str(item.get("reason", ""))[:500]
    known = c.execute(
        select(outcome.c.state, outcome.c.reason).where(outcome.c.release == release, outcome.c.device == name)
    ).one_or_none()
    if known is not None and tuple(known) == (item["state"], reason):
        return
    now = time.time()
    upsert(c, outcome, {"release": release, "device": name, "state": item["state"], "reason": reason, "reported": now})
    of = select(outcome.c.state, func.count()).where(outcome.c.release == release)
    ended = dict(map(tuple, c.execute(of.group_by(outcome.c.state))))
    failed, tried = ended.get("failed", 0), sum(ended.values())
    if failed < HALTING_FAILURES or failed <= HALTING_SHARE * tried:
        return
    if c.scalar(select(halted.c.release).where(halted.c.release == release)) is None:
        why = f"failed on {failed} of {tried} devices, last on {name}: {reason}"
        upsert(c, halted, {"release": release, "at": now, "reason": why})
        note(c, "release halted", name, f"{release} {why}")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(400, f"{name}: is no object")
    return value


def _list(value: Any, name: str, most: int) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
        raise Refused(400, f"{name}: is no list of at most {most} objects")
    return value


def _release(value: Any, name: str) -> None:
    if not isinstance(value, str) or not RELEASE.fullmatch(value):
        raise Refused(400, f"{name}: is {str(value)[:80]!r}; a release's id is accepted")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53
