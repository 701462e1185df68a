"""The operating point: the gate threshold, chosen on validation data by a recall target or by costs.

Never on test data. The threshold lies halfway between the two neighbouring scores that it separates, so that rounding
on another processor does not move a clip across it.
"""

from dataclasses import dataclass

import numpy as np

from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import OperatingPoint
from twophase.training.answers import Answers
from twophase.training.evaluate import right, threshold_for_recall
from twophase.training.intervals import groups_of, interval

SWEPT_RECALLS = (0.9, 0.95, 0.98, 1.0)
REJECTIONS = (0.0, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Rule:
    """What to choose by: a recall target, or the costs of a miss and of a call."""

    recall: float | None = None
    miss: float | None = None
    call: float | None = None

    def __str__(self) -> str:
        if self.recall is not None:
            return f"recall >= {self.recall:g} on validation clips at the fewest escalations"
        return f"least cost on validation clips, a miss costing {self.miss:g} and a needless call {self.call:g}"


DEFAULT_RULE = Rule(miss=1.0, call=1.0)
"""A miss and a needless call weigh the same unless told otherwise: the point of highest gate accuracy."""


def parse_rule(text: str) -> Rule:
    """`recall=R`, or `miss=A,call=B`, or nothing for the default. Raises `UsageError` for anything else."""
    if not text:
        return DEFAULT_RULE
    try:
        parts = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
        if set(parts) == {"recall"} and 0.0 < parts["recall"] <= 1.0:
            return Rule(recall=parts["recall"])
        if set(parts) == {"miss", "call"} and min(parts.values()) >= 0.0:
            return Rule(miss=parts["miss"], call=parts["call"])
    except ValueError:
        pass
    raise UsageError(
        f"{text}: is no rule for the threshold; a recall above 0 and up to 1 (--recall 0.95) or two costs from 0 up "
        "(--cost miss=5,call=0.1) are accepted"
    )


def choose(validation: Answers, rule: Rule = DEFAULT_RULE) -> OperatingPoint:
    """The operating point that `rule` picks on these answers. Raises `TwoPhaseError` without clips of both kinds."""
    wanted, other = validation.gate[validation.wanted], validation.gate[~validation.wanted]
    if not len(wanted) or not len(other):
        missing = "wanted" if not len(wanted) else "unwanted"
        raise TwoPhaseError(f"the validation split has no {missing} clip, so no threshold can be chosen; add some")
    if rule.recall is not None:
        threshold = _below(threshold_for_recall(wanted, rule.recall), validation)
    else:
        threshold = _cheapest(validation, rule)
    passed, groups = validation.gate >= threshold, groups_of(validation.clips)
    shares = {
        "recall": (passed, validation.wanted),
        "stopped": (~passed, ~validation.wanted),
        "escalation_rate": (passed, np.ones_like(passed)),
    }
    return OperatingPoint(
        threshold,
        str(rule),
        **{name: float(of[among].mean()) for name, (of, among) in shares.items()},
        intervals={name: found for name, which in shares.items() if (found := interval(*which, groups))},
    )


def sweep(validation: Answers, threshold: float) -> list[dict[str, float]]:
    """What other thresholds would do together with rejecting unsure answers: a row for each pair of the two.

    `threshold` and those that keep each of `SWEPT_RECALLS`, by `REJECTIONS`: an answer less sure than `rejection` is
    taken for none of these. `recall` is of the wanted clips; those that end `right`, get a `wrong` label, or for which
    the classifier is `called`, are shares of all.
    """
    wanted, none = validation.gate[validation.wanted], len(validation.names) - 1
    kept = (
        {_below(threshold_for_recall(wanted, recall), validation) for recall in SWEPT_RECALLS} if len(wanted) else set()
    )
    named, sure = validation.probabilities.argmax(axis=1), validation.probabilities.max(axis=1)
    rows = []
    for at in sorted({threshold, *kept}):
        passed = validation.gate >= at
        for rejection in REJECTIONS:
            answered = passed & (sure >= rejection) & (named != none)
            shares = {
                "recall": passed[validation.wanted],
                "right": right(validation, at, rejection),
                "wrong": answered & (named != validation.truth),
                "called": passed,
            }
            rows.append({"threshold": at, "rejection": rejection, **{k: float(v.mean()) for k, v in shares.items()}})
    return rows


def _cheapest(validation: Answers, rule: Rule) -> float:
    scores = np.unique(validation.gate)
    edges = np.concatenate([[scores[0] - 1.0], (scores[1:] + scores[:-1]) / 2.0, [scores[-1] + 1.0]])
    wanted, other = np.sort(validation.gate[validation.wanted]), np.sort(validation.gate[~validation.wanted])
    misses = np.searchsorted(wanted, edges)
    calls = len(other) - np.searchsorted(other, edges)
    cost = misses * float(rule.miss or 0) + calls * float(rule.call or 0)
    best = np.flatnonzero(cost <= cost.min() + 1e-9)
    return float(np.float32(edges[best[len(best) // 2]]))


def _below(score: float, validation: Answers) -> float:
    lower = validation.gate[validation.gate < score]
    return float(np.float32((score + float(lower.max())) / 2.0)) if len(lower) else float(score - 1.0)
