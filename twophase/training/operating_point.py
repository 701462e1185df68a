"""The operating point: gate threshold and classifier rejection, chosen on validation data by a recall target or costs.

Never on test data. Both lie halfway between the two neighbouring values that they separate, so that rounding on another
processor does not move a clip across them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import Floats
from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import OperatingPoint
from twophase.training.answers import Answers
from twophase.training.evaluate import threshold_for_recall
from twophase.training.intervals import Mask, groups_of, interval, interval_of_mean

SWEPT_RECALLS = (0.9, 0.95, 0.98, 1.0)
REJECTIONS = (0.0, 0.3, 0.5, 0.7, 0.9)
COSTS = ("miss", "wrong", "call", "byte")
MOST = 1e12
"""The highest cost that is accepted."""

_EQUAL = 1.0 + 1e-12  # sums of the same costs in another order


@dataclass(frozen=True)
class Rule:
    """What to choose by: a recall target of the gate, or costs in any one unit."""

    recall: float | None = None
    miss: float = 0.0
    """Of a wanted clip that ends as none of these: stopped by the gate, or so answered by the classifier."""
    wrong: float = 0.0
    """Of a clip, wanted or not, that ends with a label that is not its own."""
    call: float = 0.0
    """Of any clip about which the classifier is asked."""
    byte: float = 0.0
    """Of each byte of such a clip's file."""

    def __str__(self) -> str:
        if self.recall is not None:
            return f"recall >= {self.recall:g} on validation clips at the fewest escalations"
        costs = {name: getattr(self, name) for name in COSTS}
        return "least cost on validation clips: " + ", ".join(f"{k} {v:g}" for k, v in costs.items() if v)


DEFAULT_RULE = Rule(miss=2.0, call=1.0)
"""A miss costs as much as two calls. It saves the one call for the clip itself, so it weighs as much as one needless
call: the point of highest gate accuracy, where the classifier names what is wanted."""


def parse_rule(text: str) -> Rule:
    """`recall=R`, or costs by name (`miss=A,call=B`; absent ones are 0), or nothing for the default.

    Raises `UsageError` for anything else, also where a miss costs nothing, since then it is best to stop everything, or
    nothing but a miss costs, since then it is best to stop nothing.
    """
    if not text:
        return DEFAULT_RULE
    try:
        parts = [(name.strip(), float(value)) for name, value in (part.split("=") for part in text.split(","))]
    except ValueError:
        parts = []
    values = dict(parts)
    if len(parts) == len(values):
        if set(values) == {"recall"} and 0.0 < values["recall"] <= 1.0:
            return Rule(**values)
        costs = [values.get(name, 0.0) for name in COSTS]
        if set(values) <= set(COSTS) and all(0.0 <= c <= MOST for c in costs) and costs[0] > 0.0 and any(costs[1:]):
            return Rule(**values)
    raise UsageError(
        f"{text}: is no rule for the operating point; a recall above 0 and up to 1 (--recall 0.95) or the costs of "
        f"{', '.join(COSTS)} (--cost miss=5,call=0.1) are accepted: from 0 to {MOST:g}, 0 where left out, a miss and "
        "one of the others above 0"
    )


def choose(validation: Answers, rule: Rule = DEFAULT_RULE) -> OperatingPoint:
    """The operating point that `rule` picks on these answers. Raises `TwoPhaseError` without clips of both kinds.

    A recall target is met at the fewest escalations, and nothing is rejected: that would spare none. Costs are swept
    over both; of points that cost the same it is that of least rejection, in the middle of its thresholds.
    """
    wanted, other = validation.gate[validation.wanted], validation.gate[~validation.wanted]
    if not len(wanted) or not len(other):
        missing = "wanted" if not len(wanted) else "unwanted"
        raise TwoPhaseError(f"the validation split has no {missing} clip, so no threshold can be chosen; add some")
    groups = groups_of(validation.clips)
    if rule.recall is not None:
        threshold, rejection = _below(threshold_for_recall(wanted, rule.recall), validation), 0.0
        cost, spread = None, None
    else:
        threshold, rejection = _cheapest(validation, rule)
        costs = costs_of(validation, rule, threshold, rejection)
        cost, spread = float(costs.mean()), interval_of_mean(costs, groups)
    passed = validation.gate >= threshold
    shares = {
        "recall": (passed, validation.wanted),
        "stopped": (~passed, ~validation.wanted),
        "escalation_rate": (passed, np.ones_like(passed)),
    }
    intervals = {name: interval(*which, groups) for name, which in shares.items()} | {"cost": spread}
    return OperatingPoint(
        threshold,
        str(rule),
        **{name: float(of[among].mean()) for name, (of, among) in shares.items()},
        intervals={name: found for name, found in intervals.items() if found},
        rejection=rejection,
        cost=cost,
    )


def costs_of(answers: Answers, rule: Rule, threshold: float, rejection: float) -> NDArray[np.float64]:
    """What each clip costs at an operating point, [n]."""
    passed = answers.gate >= threshold
    named, wrong = _labels(answers, passed & (answers.probabilities.max(axis=1) >= rejection))
    return (
        rule.miss * (answers.wanted & ~named) + rule.wrong * wrong + passed * (rule.call + rule.byte * answers.bytes)
    ).astype(np.float64)


def sweep(validation: Answers, threshold: float, rejection: float = 0.0) -> list[dict[str, float]]:
    """What other operating points would do: a row for each pair of threshold and rejection.

    `threshold` and those that keep each of `SWEPT_RECALLS`, by `rejection` and `REJECTIONS`. `recall` is of the wanted
    clips; those that end `right`, get a `wrong` label, or for which the classifier is `called`, are shares of all.
    """
    wanted, sure = validation.gate[validation.wanted], validation.probabilities.max(axis=1)
    kept = (
        {_below(threshold_for_recall(wanted, recall), validation) for recall in SWEPT_RECALLS} if len(wanted) else set()
    )
    rows = []
    for at in sorted({threshold, *kept}):
        passed = validation.gate >= at
        for least in sorted({rejection, *REJECTIONS}):
            named, wrong = _labels(validation, passed & (sure >= least))
            shares = {
                "recall": passed[validation.wanted],
                "right": (named == validation.wanted) & ~wrong,
                "wrong": wrong,
                "called": passed,
            }
            rows.append({"threshold": at, "rejection": least, **{k: float(v.mean()) for k, v in shares.items()}})
    return rows


def _labels(answers: Answers, heeded: Mask) -> tuple[Mask, Mask]:
    """Which clips end with a label, [n], and which of them with a wrong one, where the classifier is heeded."""
    answer = answers.probabilities.argmax(axis=1)
    named = heeded & (answer < len(answers.names) - 1)
    return named, named & (answer != answers.truth)


def _cheapest(validation: Answers, rule: Rule) -> tuple[float, float]:
    """Threshold and rejection of least cost. Counts are exact, so the only rounding is that of their four products."""
    order = np.argsort(-validation.gate, kind="stable")
    gate, sure = validation.gate[order], validation.probabilities.max(axis=1)[order]
    wanted = validation.wanted[order]
    named, wrong = (which[order] for which in _labels(validation, np.ones_like(wanted)))
    # The clips let through are the first k of this order, for every k that does not part equal scores.
    counts: NDArray[np.int64] = np.concatenate([[0], np.flatnonzero(gate[1:] != gate[:-1]) + 1, [len(gate)]])

    def of_first(values: NDArray[np.int64] | Mask) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(values)]).astype(np.int64)[counts]

    sent = rule.call * counts + rule.byte * of_first(validation.bytes[order])
    least, first, rejection = np.inf, 0, 0.0
    for candidate in _rejections(sure, named, wrong) if rule.wrong else [0.0]:
        kept = named & (sure >= candidate)
        misses = wanted.sum() - of_first(kept & wanted)
        cost = rule.miss * misses + rule.wrong * of_first(kept & wrong) + sent
        lowest = float(cost.min())
        if lowest * _EQUAL < least:
            ties = np.flatnonzero(cost <= lowest * _EQUAL)
            least, first, rejection = lowest, int(counts[ties[(len(ties) - 1) // 2]]), candidate
    if first == 0:
        return float(gate[0] + 1.0), rejection
    if first == len(gate):
        return float(gate[-1] - 1.0), rejection
    return float(_halfway(gate[first], gate[first - 1])), rejection


def _rejections(sure: Floats, named: Mask, wrong: Mask) -> list[float]:
    """The rejections of which one costs least: none, and one above the probability of each wrong label.

    To raise it past right labels only makes misses; to reject every label is no better than to let nothing through.
    """
    levels = np.unique(sure[named])
    low = np.intersect1d(levels[:-1], sure[wrong])
    return [0.0, *_halfway(low, levels[np.searchsorted(levels, low, "right")]).tolist()]


def _below(score: float, validation: Answers) -> float:
    lower = validation.gate[validation.gate < score]
    return float(_halfway(lower.max(), np.float32(score))) if len(lower) else float(score - 1.0)


def _halfway(low: "Floats | np.float32", high: "Floats | np.float32") -> Floats:
    """Above `low` and up to `high`, in float32: for neighbouring numbers it is `high`."""
    middle = np.asarray(low + (high - low) / np.float32(2.0), np.float32)
    return np.where(middle > low, middle, high).astype(np.float32)
