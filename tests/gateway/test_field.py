"""How gates do in the field: figures with intervals, how scores moved, and what is advised."""

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, update

from tests.gateway.said import GATE, answered, report, status
from twophase.gateway import advice, field
from twophase.gateway.published import Published, published
from twophase.gateway.store import Store, clip, day
from twophase.release import scores
from twophase.release.scores import BINS


def figures(store: Store, promised: Published | None = None, only: str | None = None) -> list[field.Field]:
    return store.do(lambda c: field.figures(c, lambda gate: promised or Published(), only))


def test_recall_and_escalation_lie_in_their_intervals(store: Store) -> None:
    rng = np.random.default_rng(1)
    for i in range(30):  # 10 % escalated, 90 % of that wanted; of the rest 1 % wanted: recall .09 / (.09 + .009)
        escalated = int(rng.binomial(10_000, 0.1))
        report(store, f"d{i}", status(10_000, escalated, 200))
        wanted, missed = int(rng.binomial(50, 0.9)), int(rng.binomial(200, 0.01))
        answered(store, f"d{i}", "escalation", wanted, 50 - wanted, 1)
        answered(store, f"d{i}", "audit", missed, 200 - missed, 1000)
    (found,) = figures(store)
    assert (found.gate, found.devices, found.windows, found.audited) == (GATE, 30, 300_000, 6000)
    assert found.escalation.low < 0.1 < found.escalation.high
    assert found.recall is not None
    assert found.recall.low < 0.09 / 0.099 < found.recall.high
    assert found.recall.high - found.recall.low < 0.06
    assert found.drift is found.change is None
    (own,) = figures(store, only="d7")
    assert (own.devices, own.windows, own.audited) == (1, 10_000, 200)
    assert own.recall is not None
    assert own.recall.high - own.recall.low > found.recall.high - found.recall.low
    assert figures(store, only="d39") == []


def test_change_compares_the_last_week_with_the_first(store: Store) -> None:
    """And the first is not forgotten when the figures look no further back than a month."""
    today = int(time.time()) // 86_400
    for at, bin in ((today - 50, 10), (today - 1, 10)):
        put_day(store, at, bin)
    assert figures(store)[0].change == pytest.approx(0)
    put_day(store, today, 25)
    change = figures(store)[0].change
    assert change is not None
    assert change > field.DRIFTED


def put_day(store: Store, at: int, bin: int) -> None:
    scores = [0] * BINS
    scores[bin] = 2_000
    counters = {"windows": 2_000, "escalated": 100, "audited": 10, "scores": scores}
    store.do(lambda c: c.execute(insert(day).values(gate=GATE, day=at, device="d0", counters=counters)))


def test_advice_is_given_once_with_the_clips_that_it_rests_on(store: Store, tmp_path: Path) -> None:
    home, news = tmp_path, tmp_path / "news"
    manifest = home / "updates" / "targets" / GATE / "assets.extra" / "0123.release.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"operating_point": {"recall": 0.95}}))
    assert partial(published, home)(GATE).recall == 0.95
    report(store, "d0", status(100_000, 1_000, 500))
    answered(store, "d0", "escalation", 90, 10, 1)
    answered(store, "d0", "audit", 20, 180, 1000)  # recall .009 / (.009 + .099)
    (home / "clips" / "d0").mkdir(parents=True)
    (home / "clips" / "d0" / "1").write_bytes(b"fLaC...")
    store.do(lambda c: c.execute(update(clip).where(clip.c.sequence == 1).values(prediction={"label": "Oboe"})))
    (found,) = advice.give(store, home, news)
    assert (found.gate, found.do) == (GATE, "retune")
    assert advice.give(store, home, news) == []
    assert {str(path.relative_to(news)) for path in news.rglob("*.*")} == {
        f"Oboe/{GATE}-d0-1.flac",
        f"{GATE}-retune/manifest.json",
    }
    assert json.loads((news / f"{GATE}-retune" / "manifest.json").read_text())["do"] == "retune"


def test_drift_is_what_no_mixture_of_validation_clips_explains(store: Store) -> None:
    rng = np.random.default_rng(0)
    wanted, unwanted = (scores.spread(rng.normal(mean, 2, 20_000)) for mean in (4, -5))
    promised = Published(spread=scores.of_release({"gate_scores": {"wanted": wanted, "unwanted": unwanted}}))

    def heard(margins: np.ndarray) -> float | None:
        value = status(len(margins), 0, 0)
        value["periods"][0] |= {"id": str(len(margins)), "scores": scores.spread(margins)}
        report(store, "d0", value)
        return figures(store, promised)[0].drift

    assert heard(rng.normal(-5, 2, 900)) is None  # too few
    few_wanted = heard(np.concatenate([rng.normal(4, 2, 200), rng.normal(-5, 2, 9_800)]))
    assert few_wanted is not None
    assert few_wanted < 0.05
    other = heard(rng.normal(0, 1, 20_000))
    assert other is not None
    assert other > field.DRIFTED


@pytest.mark.parametrize(
    "bad", [{}, {"gate_scores": {}}, {"gate_scores": {"wanted": [1] * BINS, "unwanted": [0] * BINS}}]
)
def test_a_release_that_does_not_say_how_its_scores_are_spread_says_nothing(bad: dict) -> None:
    assert scores.of_release(bad) is None


def test_every_margin_has_one_bin() -> None:
    margins = np.array([-1e9, -8.5, -0.5, -1e-9, 0.0, 0.49, 8.0, 1e9])
    assert scores.spread(margins) == np.bincount([scores.bin_of(m) for m in margins], minlength=BINS).tolist()
