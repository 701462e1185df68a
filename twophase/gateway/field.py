"""How gates do in the field: escalation and recall with intervals, and how far their scores have moved.

Recall is measured against the classifier: of the windows that the gate rejected a random share is uploaded (`audit`),
and the classifier says how many of those were wanted.

Intervals are percentiles of 2,000 draws: devices are drawn with replacement, since the windows of one device resemble
each other, and the two shares that were sampled are drawn from their Beta posterior with Jeffreys' prior. Of a single
device that is the posterior alone.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from twophase.files import JSON
from twophase.gateway.published import Published
from twophase.gateway.store import clip, day
from twophase.release.scores import BINS, instability, likeliest_mixture

KEPT_DAYS = 30
"""How far back the figures look."""
DRIFTED = 0.25
"""A population stability index above this is commonly read as another population (Siddiqi, Credit Risk Scorecards)."""
ENOUGH = 1_000
"""Windows that a drift is judged from."""

_DAY_S = 86_400
_WEEK = 7

Counts = NDArray[np.float64]


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
    """Population stability index of the last week's scores against the likeliest mixture of the wanted and the unwanted
    clips that the gate was chosen on; None where its release does not say, or too few windows were heard."""
    change: float | None
    """The same index against this gate's own first week; None before there are both weeks."""


def figures(c: Connection, promised: Callable[[str], Published], only: str | None = None) -> list[Field]:
    """Every gate that was heard of, by name; `only` is the name of a device whose own figures these are to be."""
    today = int(time.time()) // _DAY_S
    since = today - KEPT_DAYS
    mine = [] if only is None else [day.c.device == only]
    days = c.execute(select(day).where(day.c.day > since, *mine).order_by(day.c.gate)).all()
    which = [clip.c.wanted.is_not(None), clip.c.stored > since * _DAY_S]
    which += [] if only is None else [clip.c.device == only]
    kinds = (clip.c.gate, clip.c.device, clip.c.kind, clip.c.wanted)
    asked = c.execute(select(*kinds, func.count()).where(*which).group_by(*kinds)).all()
    found = []
    for gate in sorted({row.gate for row in days}):
        rows = [row for row in days if row.gate == gate]
        table: dict[str, Counts] = {row.device: np.zeros(6) for row in rows}
        for row in rows:
            table[row.device][:2] += row.counters["windows"], row.counters["escalated"]
        for at, owner, kind, wanted, number in asked:
            if at == gate and owner in table:
                table[owner][2 + 2 * (kind == "audit") + (not wanted)] += number
        counts = np.stack([table[name] for name in sorted(table)])
        lately = _scores([row.counters for row in rows if row.day > today - _WEEK])
        parts = promised(gate).spread
        found.append(
            Field(
                gate,
                len(counts),
                int(counts[:, 0].sum()),
                int(counts[:, 4:].sum()),
                *_shares(counts),
                None if parts is None else _moved(lately, likeliest_mixture(lately, parts)),
                _moved(lately, _first_week(c, gate, today, mine)),
            )
        )
    return found


def _shares(table: Counts) -> tuple[Share, Share | None]:
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


def _share(draws: Counts) -> Share:
    low, high = np.percentile(draws[1:], (2.5, 97.5))
    return Share(float(draws[0]), float(low), float(high))


def _moved(found: Counts, expected: Counts) -> float | None:
    """How far scores are from those that were expected; None where either is too few windows."""
    return None if min(found.sum(), expected.sum()) < ENOUGH else instability(found, expected)


def _first_week(c: Connection, gate: str, today: int, mine: list[Any]) -> Counts:
    """Scores of a gate's first week; none while that is the last week too."""
    first = c.scalar(select(func.min(day.c.day)).where(day.c.gate == gate, *mine))
    if first is None or first > today - 2 * _WEEK:
        return np.zeros(BINS)
    own = c.scalars(select(day.c.counters).where(day.c.gate == gate, day.c.day < first + _WEEK, *mine))
    return _scores(own.all())


def _scores(counters: Iterable[JSON]) -> Counts:
    return np.asarray(np.sum([np.zeros(BINS), *(item["scores"] for item in counters)], axis=0))
