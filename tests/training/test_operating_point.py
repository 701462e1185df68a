"""The threshold is chosen by its rule, on the answers it is given, and figures follow from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.audio.dataset import Clip
from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import NONE
from twophase.training.answers import Answers, read, write
from twophase.training.evaluate import evaluate
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


@settings(deadline=None)
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


def guesses(rows: "list[Row]") -> Answers:
    """Answers in which the classifier may be wrong: each row a gate's score, a label, the answer and how sure it is."""
    clips = tuple(
        Clip(f"{i:064x}", f"/{i}.wav", f"{i}.wav", label, f"g{i}", "validation")
        for i, (_, label, _, _) in enumerate(rows)
    )
    probabilities = np.array(
        [[sure if i == answer else (1 - sure) / 2 for i in range(len(NAMES))] for _, _, answer, sure in rows],
        np.float32,
    )
    gate = np.array([score for score, *_ in rows], np.float32)
    return Answers(clips, NAMES, gate, probabilities, np.arange(1, len(rows) + 1) * 1000)


Row = tuple[float, str, int, float]
guessed = st.lists(
    st.tuples(
        st.one_of(
            st.floats(-20, 20, width=32), st.sampled_from([-1.0, float(np.nextafter(np.float32(-1), 0)), 0.0, 1.0])
        ),
        st.sampled_from(["Cello", "Flute", "Rain", "Speech"]),
        st.integers(0, len(NAMES) - 1),
        st.one_of(st.floats(0.34375, 1.0, width=32), st.sampled_from([0.5, 0.75, 1.0])),
    ),
    min_size=2,
    max_size=25,
).filter(lambda rows: {r[1] in NAMES for r in rows} == {True, False})
cost = st.one_of(st.just(0.0), st.floats(1e-3, 10))


@settings(deadline=None)
@given(
    rows=guessed, miss=st.floats(1e-3, 10), wrong=cost, call=cost, byte=st.one_of(st.just(0.0), st.floats(1e-7, 1e-3))
)
def test_no_point_of_a_grid_costs_less(rows: list[Row], miss: float, wrong: float, call: float, byte: float) -> None:
    """By plain loops: what every clip costs at every threshold and rejection that tells any two clips apart."""
    given_answers = guesses(rows)

    def total(threshold: float, rejection: float) -> float:
        found = 0.0
        for score, row, size, clip in zip(
            given_answers.gate, given_answers.probabilities, given_answers.bytes, given_answers.clips, strict=True
        ):
            passed, best = score >= threshold, int(row.argmax())
            answer = NAMES[best] if passed and row[best] >= rejection else NONE
            truth = clip.label if clip.label in NAMES else NONE
            found += passed * (call + byte * size)
            found += wrong if answer not in (NONE, truth) else miss if answer != truth else 0.0
        return found

    rule = Rule(miss=miss, wrong=wrong, call=call, byte=byte)
    point = choose(given_answers, rule)
    chosen = total(point.threshold, point.rejection)
    assert point.cost == pytest.approx(chosen / len(rows))
    thresholds = [-100.0, *given_answers.gate, 100.0]
    rejections = [0.0, *given_answers.probabilities.max(axis=1), 1.1]
    least = min(total(t, r) for t in thresholds for r in rejections)
    assert chosen <= least * (1 + 1e-9)
    assert 0.0 <= point.rejection <= 1.0
    if point.rejection:
        assert total(point.threshold, 0.0) > chosen  # nothing is rejected for nothing


def test_a_miss_and_a_needless_call_weigh_the_same_by_default() -> None:
    given_answers = answers([3.0, 2.0, 1.0, 0.0, -1.0, -2.0], ["Cello", "Rain", "Flute", "Rain", "Rain", "Flute"])
    point = choose(given_answers)
    accuracy = ((given_answers.gate >= point.threshold) == given_answers.wanted).mean()
    assert accuracy == max(
        ((given_answers.gate >= t) == given_answers.wanted).mean() for t in [*given_answers.gate, 9.0]
    )


def test_wrong_labels_that_cost_are_rejected_and_right_ones_are_not() -> None:
    rows = [(3.0, "Cello", 0, 0.9), (2.0, "Flute", 1, 0.8), (2.2, "Cello", 1, 0.6), (2.5, "Rain", 0, 0.5)]
    given_answers = guesses(rows)
    assert choose(given_answers, Rule(miss=1, call=0.1)).rejection == 0.0
    point = choose(given_answers, Rule(miss=1, wrong=5, call=0.1))
    assert point.rejection == pytest.approx(0.7)
    assert point.cost == pytest.approx((1 + 4 * 0.1) / 4)  # the unsure cello is a miss
    assert (
        str(Rule(miss=1, wrong=5, call=0.1))
        == point.chosen_by
        == ("least cost on validation clips: miss 1, wrong 5, call 0.1")
    )


def test_bytes_that_cost_keep_long_clips_from_being_sent() -> None:
    rows = [(3.0, "Cello", 0, 0.9), (2.0, "Flute", 1, 0.8), (-1.0, "Rain", 2, 0.9)]
    assert choose(guesses(rows), Rule(miss=1, byte=1e-4)).recall == 1.0
    assert choose(guesses(rows), Rule(miss=1, byte=6e-4)).recall == 0.5  # the second is of 2,000 bytes


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
    assert {"recall", "stopped", "escalation_rate"} <= point.intervals.keys()
    for name, (low, high) in point.intervals.items():
        assert 0 <= low < high <= (2 if name == "cost" else 1)
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


@pytest.mark.parametrize(
    "text",
    [
        *("recall=0", "recall=1.1", "recall=nan", "recall=x", "recall=0.9,miss=1", "sped=1", "1", "miss=1,,call=1"),
        *("miss=-1,call=1", "miss=inf,call=1", "miss=1,call=nan", "miss=1e13,call=1", "miss=1,miss=2,call=1"),
        *("miss=0,call=0", "miss=0,call=1", "call=1", "wrong=1,call=1", "miss=1", "miss=1,call=0", "Miss=1,call=1"),
    ],
)
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--recall 0\.95"):
        parse_rule(text)


def test_rules_are_read() -> None:
    assert parse_rule("") is DEFAULT_RULE
    assert parse_rule("recall=0.9") == Rule(recall=0.9)
    assert parse_rule("call=0.1, miss=5") == Rule(miss=5, call=0.1)
    assert parse_rule("miss=5,wrong=2,call=0.1,byte=1e-6") == Rule(miss=5, wrong=2, call=0.1, byte=1e-6)
