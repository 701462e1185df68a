"""The threshold is chosen by its rule, on the answers it is given, and figures follow from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.audio.dataset import Clip
from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import NONE
from twophase.training.answers import Answers, read, write
from twophase.training.compare import compare
from twophase.training.evaluate import evaluate, right
from twophase.training.intervals import wilson
from twophase.training.operating_point import DEFAULT_RULE, Rule, choose, parse_rule, sweep

NAMES = ("Cello", "Flute", NONE)


def answers(scores: list[float], labels: list[str], sure: float = 0.8) -> Answers:
    """Answers whose classifier is always right with probability `sure`."""
    clips = tuple(Clip(f"{i:064x}", f"/{i}.wav", f"{i}.wav", label, f"g{i}", "test") for i, label in enumerate(labels))
    rest = (1 - sure) / 2
    rows = [[sure if n == (x if x in NAMES else NONE) else rest for n in NAMES] for x in labels]
    return Answers(
        clips, NAMES, np.array(scores, np.float32), np.array(rows, np.float32), np.arange(1, len(labels) + 1)
    )


many = st.lists(
    st.tuples(
        st.floats(-20, 20, width=32),
        st.sampled_from(["Cello", "Flute", "Rain", "Speech"]),
    ),
    min_size=4,
    max_size=60,
).filter(lambda rows: {r[1] in NAMES for r in rows} == {True, False})


@given(rows=many, recall=st.floats(0.01, 1.0))
def test_a_recall_target_is_met_and_no_higher_threshold_meets_it(rows, recall: float) -> None:
    given_answers = answers([r[0] for r in rows], [r[1] for r in rows])
    point = choose(given_answers, Rule(recall=recall))
    wanted = given_answers.gate[given_answers.wanted]
    assert point.recall >= recall - 1e-9
    assert point.recall == pytest.approx((wanted >= point.threshold).mean())
    higher = np.unique(wanted[wanted >= point.threshold])
    if len(higher) > 1:
        assert (wanted >= higher[1]).mean() < recall


@given(rows=many, miss=st.floats(0.1, 10), call=st.floats(0.1, 10))
def test_no_other_threshold_costs_less(rows, miss: float, call: float) -> None:
    given_answers = answers([r[0] for r in rows], [r[1] for r in rows])

    def cost(threshold: float) -> float:
        passed = given_answers.gate >= threshold
        return miss * float((given_answers.wanted & ~passed).sum()) + call * float(
            (~given_answers.wanted & passed).sum()
        )

    chosen = cost(choose(given_answers, Rule(miss=miss, call=call)).threshold)
    others = [cost(float(t)) for t in [*given_answers.gate, -100.0, 100.0]]
    assert chosen <= min(others) + 1e-6


@settings(deadline=None, max_examples=25)  # a thousand resamplings each
@given(rows=many)
def test_figures_are_shares_and_agree_with_each_other(rows) -> None:
    given_answers = answers([r[0] for r in rows], [r[1] for r in rows])
    figures = evaluate(given_answers, 0.0)
    gate = figures["gate"]
    n, wanted = len(rows), int(given_answers.wanted.sum())
    passed = gate["recall"] * wanted + (1 - gate["stopped"]) * (n - wanted)
    assert gate["escalation_rate"] == pytest.approx(passed / n)
    assert figures["classifier"]["accuracy"] == 1.0
    # The classifier is always right here, so the pair is wrong exactly where the gate misses.
    assert figures["pair"]["accuracy"] == pytest.approx(1 - (1 - gate["recall"]) * wanted / n)
    assert figures["pair"]["calls_ratio"] == pytest.approx(gate["escalation_rate"])


@settings(deadline=None, max_examples=10)
@given(rows=many)
def test_a_share_lies_in_its_interval_which_is_never_without_width(rows) -> None:
    point = choose(answers([r[0] for r in rows], [r[1] for r in rows]))
    assert point.intervals.keys() == {"recall", "stopped", "escalation_rate"}
    for name, (low, high) in point.intervals.items():
        assert 0 <= low < high <= 1
        assert low - 1e-9 <= getattr(point, name) <= high + 1e-9


def test_the_sweep_holds_the_operating_point_and_rejecting_all_leaves_what_is_unwanted() -> None:
    given_answers = answers([3.0, -1.0, 2.0, -3.0], ["Cello", "Flute", "Rain", "Rain"])
    rows = sweep(given_answers, 0.0)
    here = next(r for r in rows if (r["threshold"], r["rejection"]) == (0.0, 0.0))
    assert here == {"threshold": 0.0, "rejection": 0.0, "recall": 0.5, "right": 0.75, "wrong": 0.0, "called": 0.5}
    rejected = [r for r in rows if r["rejection"] == 0.9]
    assert all(r["right"] == 0.5 for r in rejected)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"), [(1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775), (0.5, 40, 0.352, 0.648)]
)
def test_wilson_gives_the_textbook_interval(share: float, count: int, low: float, high: float) -> None:
    assert wilson(share, count) == pytest.approx([low, high], abs=5e-4)


def test_answers_come_back_as_they_were_kept(tmp_path) -> None:
    kept = answers([1.5, -2.25, 0.1], ["Cello", "Rain", "Flute"])
    write(tmp_path / "a.jsonl", kept)
    found = read(tmp_path / "a.jsonl")
    assert found.clips == kept.clips
    np.testing.assert_array_equal(found.gate, kept.gate)
    np.testing.assert_array_equal(found.probabilities, kept.probabilities)


def test_without_clips_of_both_kinds_there_is_no_threshold() -> None:
    with pytest.raises(TwoPhaseError, match="no unwanted clip"):
        choose(answers([1.0, 2.0], ["Cello", "Flute"]))


@pytest.mark.parametrize("text", ["recall=0", "recall=1.1", "recall=x", "miss=1", "miss=-1,call=1", "sped=1", "1"])
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--recall 0\.95"):
        parse_rule(text)


def test_rules_are_read() -> None:
    assert parse_rule("") is DEFAULT_RULE
    assert parse_rule("recall=0.9") == Rule(recall=0.9)
    assert parse_rule("call=0.1, miss=5") == Rule(miss=5, call=0.1)


def test_the_verdict_needs_an_interval_on_one_side_of_zero() -> None:
    labels = ["Cello", "Rain"] * 40
    good = answers([3.0, -3.0] * 40, labels)
    bad = answers([-3.0, 3.0] * 40, labels)  # misses every wanted clip
    close = answers([-3.0, -3.0] + [3.0, -3.0] * 39, labels)  # misses one
    assert right(good, 0.0).all()
    assert compare(good, 0.0, bad, 0.0, "r-new", "r-old").name == "better"
    assert compare(bad, 0.0, good, 0.0, "r-new", "r-old").name == "worse"
    assert compare(close, 0.0, good, 0.0, "r-new", "r-old").name == "not shown"
    assert compare(good, 0.0, good, 0.0, "r-new", "r-old").name == "not shown"
