"""How gates do in the field: what devices report, recall and escalation with intervals, drift, and what follows.

Devices report running counters of each period; the gateway keeps the last report of each and adds the increments to
the day on which it hears them, so a report may come twice, late or never. Recall is measured against the classifier: of
the windows that the gate rejected a random share is uploaded (`audit`), and the classifier says how many of those were
wanted.

Intervals are percentiles of 2,000 draws: devices are drawn with replacement, since the windows of one device resemble
each other, and the two shares that were sampled are drawn from their Beta posterior with Jeffreys' prior.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, select

from twophase.files import JSON
from twophase.gateway import devices
from twophase.gateway.refused import Refused
from twophase.gateway.store import clip, day, device, halted, note, outcome, period, upsert

BINS = 34
"""Of scores relative to the threshold, 0.5 wide; the first and the last are open."""
KEPT_DAYS = 30
"""How far back the figures look."""
DRIFTED = 0.25
"""A population stability index above this is commonly read as another population (Siddiqi, Credit Risk Scorecards)."""
ENOUGH = 1_000
"""Windows that a drift is judged from."""
HALTING_FAILURES = 2
HALTING_SHARE = 0.02
"""A release is halted when this many devices failed to install it, and more than this share of those that tried."""

_COUNTERS = ("windows", "escalated", "audited")
_DAY_S = 86_400


def parse(body: JSON) -> JSON:
    """A device's status, checked. Raises `Refused` naming the first field that is not as it should be."""
    value = _object(body, "the status")
    _text(value.get("gate"), "gate")
    for i, item in enumerate(_list(value.get("periods", []), "periods", 50)):
        _text(item.get("id"), f"periods[{i}].id")
        _text(item.get("gate"), f"periods[{i}].gate")
        counts: list[Any] = [item.get(name) for name in _COUNTERS]
        scores = item.get("scores")
        if not all(map(_is_count, counts)) or sum(counts[1:]) > counts[0]:
            raise Refused(400, f"periods[{i}]: windows, escalated and audited are counts, the first the largest")
        if not isinstance(scores, list) or len(scores) != BINS or not all(map(_is_count, scores)):
            raise Refused(400, f"periods[{i}].scores: is no list of {BINS} counts")
    for i, item in enumerate(_list(value.get("updates", []), "updates", 20)):
        _text(item.get("release"), f"updates[{i}].release")
        if item.get("state") not in ("installed", "failed"):
            raise Refused(400, f"updates[{i}].state: is {item.get('state')!r}; installed or failed is accepted")
    return value


def report(c: Connection, name: str, status: JSON) -> JSON:
    """Take a device's status; what it has to know: releases that are halted."""
    devices.report(c, name, status)
    for item in status.get("periods", []):
        _count(c, name, item)
    for item in status.get("updates", []):
        _tried(c, name, item)
    return {"halted": list(c.scalars(select(halted.c.release).order_by(halted.c.release)))}


def counts(c: Connection) -> dict[str, float]:
    """The gauges of /metrics."""
    clips = _by_state(c.execute(select(clip.c.state, func.count()).group_by(clip.c.state)))
    return {
        **{f"clips_{state}": float(clips.get(state, 0)) for state in ("receiving", "stored", "answered", "done")},
        "devices": float(c.scalar(select(func.count()).where(device.c.state == "active")) or 0),
        "releases_halted": float(c.scalar(select(func.count()).select_from(halted)) or 0),
    }


@dataclass(frozen=True)
class Share:
    """A share and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Field:
    """One gate's figures of the last `KEPT_DAYS` days."""

    gate: str
    devices: int
    windows: int
    audited: int
    """Audit clips that the classifier answered."""
    escalation: Share
    recall: Share | None
    """None before an escalated and an audit clip were answered."""
    drift: float | None
    """Population stability index of the last week's scores against this gate's first week, where there are both."""


def figures(c: Connection) -> list[Field]:
    """Every gate that was heard of, by name."""
    today = int(time.time()) // _DAY_S
    since = today - KEPT_DAYS
    rows = c.execute(select(day).where(day.c.day > since).order_by(day.c.gate, day.c.day, day.c.device)).all()
    asked = c.execute(
        select(clip.c.gate, clip.c.device, clip.c.kind, clip.c.wanted, func.count())
        .where(clip.c.wanted.is_not(None), clip.c.stored > since * _DAY_S)
        .group_by(clip.c.gate, clip.c.device, clip.c.kind, clip.c.wanted)
    ).all()
    found = []
    for gate in sorted({row.gate for row in rows}):
        by_device: dict[str, np.ndarray[Any, Any]] = {}
        for row in rows:
            if row.gate == gate:
                sums = by_device.setdefault(row.device, np.zeros(6))
                sums[:2] += row.counters["windows"], row.counters["escalated"]
        for at, owner, kind, wanted, number in asked:
            if at == gate and owner in by_device:
                by_device[owner][2 + 2 * (kind == "audit") + (not wanted)] += number
        mine = [row for row in rows if row.gate == gate]
        table = np.stack([by_device[name] for name in sorted(by_device)])
        found.append(
            Field(
                gate,
                len(table),
                int(table[:, 0].sum()),
                int(table[:, 4:].sum()),
                *_shares(table),
                _drift([(row.day, row.counters["scores"]) for row in mine], today),
            )
        )
    return found


def _shares(table: "np.ndarray[Any, Any]") -> tuple[Share, Share | None]:
    """Escalation and recall.

    `table` is float64 [devices, 6]: windows, escalated; clips that passed and are wanted, or not; audited, the same.
    """
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), 2_000)
    drawn = np.vstack([table.sum(axis=0, keepdims=True), weights @ table])  # the first is the sample itself
    windows, escalated, wanted, unwanted, missed, rightly = drawn.T
    rejected = windows - escalated
    share = rng.beta(escalated + 0.5, rejected + 0.5)
    share[0] = escalated[0] / max(windows[0], 1)
    if not (wanted[0] + unwanted[0] and missed[0] + rightly[0]):
        return _share(share), None
    precision, miss = rng.beta(wanted + 0.5, unwanted + 0.5), rng.beta(missed + 0.5, rightly + 0.5)
    precision[0], miss[0] = wanted[0] / (wanted[0] + unwanted[0]), missed[0] / (missed[0] + rightly[0])
    caught = escalated * precision
    return _share(share), _share(caught / np.maximum(caught + rejected * miss, 1e-9))


def _share(draws: "np.ndarray[Any, Any]") -> Share:
    low, high = np.percentile(draws[1:], (2.5, 97.5))
    return Share(float(draws[0]), float(low), float(high))


def _drift(days: list[tuple[int, list[int]]], today: int) -> float | None:
    first = days[0][0]
    own, lately = np.zeros(BINS), np.zeros(BINS)
    for at, scores in days:
        if at < first + 7:
            own += scores
        if at > today - 7 and at >= first + 7:
            lately += scores
    if min(own.sum(), lately.sum()) < ENOUGH:
        return None
    p, q = (own + 0.5) / (own + 0.5).sum(), (lately + 0.5) / (lately + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


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
    today = {"gate": item["gate"], "day": int(time.time()) // _DAY_S, "device": name}
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
    ended = _by_state(c.execute(of.group_by(outcome.c.state)))
    failed, tried = ended.get("failed", 0), sum(ended.values())
    if failed < HALTING_FAILURES or failed <= HALTING_SHARE * tried:
        return
    if c.scalar(select(halted.c.release).where(halted.c.release == release)) is None:
        why = f"failed on {failed} of {tried} devices, last on {name}: {reason}"
        upsert(c, halted, {"release": release, "at": now, "reason": why})
        note(c, "release halted", name, f"{release} {why}")


def _by_state(rows: Iterable[Any]) -> dict[str, int]:
    return dict(map(tuple, rows))


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(400, f"{name}: is no object")
    return value


def _list(value: Any, name: str, most: int) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
        raise Refused(400, f"{name}: is no list of at most {most} objects")
    return value


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise Refused(400, f"{name}: is no name of 1 to 64 characters")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53
