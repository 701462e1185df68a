"""Figures of the pair from its answers: gate, classifier, and both as one system.

A clip is right in the end when it is not wanted and was stopped (by the gate, or by the classifier's none of these),
or is wanted, was let through and got its label. Intervals are 95 % intervals over groups, see intervals.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import Floats
from twophase.release.scores import spread
from twophase.training.answers import Answers
from twophase.training.intervals import Mask, groups_of, interval

RECALLS = (0.95, 0.99)
HEADLINE = (
    ("gate", "accuracy"),
    ("gate", "recall"),
    ("gate", "stopped"),
    ("classifier", "accuracy"),
    ("pair", "accuracy"),
)


def right(answers: Answers, threshold: float, rejection: float = 0.0) -> Mask:
    """Which clips the pair gets right in the end, [n]; an answer less sure than `rejection` means none of these."""
    none = len(answers.names) - 1
    heeded = (answers.gate >= threshold) & (answers.probabilities.max(axis=1) >= rejection)
    return np.asarray(np.where(heeded, answers.probabilities.argmax(axis=1), none) == answers.truth)


def evaluate(answers: Answers, threshold: float, rejection: float = 0.0) -> dict[str, Any]:
    """All figures as one JSON object: `clips`, `gate`, `classifier`, `pair`; what has no clips to rest on is null.

    An answer less sure than `rejection` means none of these for the pair; the classifier's own figures are of its first
    answers.
    """
    wanted, passed = answers.wanted, answers.gate >= threshold
    groups = groups_of(answers.clips)
    total = int(answers.bytes.sum())
    top = np.argsort(-answers.probabilities, axis=1, kind="stable")
    in_top3 = (top[:, :3] == answers.truth[:, None]).any(axis=1)

    def share(of: Mask, among: Mask | None = None) -> dict[str, Any]:
        among = np.ones(len(of), bool) if among is None else among
        return {"value": _mean(of[among]), "interval": interval(of, among, groups)}

    figures = {
        "gate.accuracy": share(passed == wanted),
        "gate.recall": share(passed, wanted),
        "gate.stopped": share(~passed, ~wanted),
        "gate.precision": share(wanted, passed),
        "gate.escalation_rate": share(passed),
        "classifier.accuracy": share(top[:, 0] == answers.truth, wanted),
        "classifier.top3": share(in_top3, wanted),
        "pair.accuracy": share(right(answers, threshold, rejection)),
    }
    nested: dict[str, Any] = {"gate": {}, "classifier": {}, "pair": {}}
    for name, figure in figures.items():
        part, key = name.split(".")
        nested[part][key] = figure["value"]
        nested[part].setdefault("intervals", {})[key] = figure["interval"]
    nested["gate"]["threshold"] = float(threshold)
    nested["gate"]["at_recall"] = {f"{r:.2f}": {"stopped": stopped_at_recall(answers, r)} for r in RECALLS}
    nested["classifier"]["clips"] = int(wanted.sum())
    nested["classifier"]["ece"] = calibration_error(answers.probabilities[wanted], answers.truth[wanted])
    nested["classifier"]["per_label"] = {
        name: {"clips": int((answers.truth == i).sum()), "recall": _mean((top[:, 0] == i)[answers.truth == i])}
        for i, name in enumerate(answers.names[:-1])
    }
    nested["classifier"]["confusion"] = confusion(answers).tolist()
    nested["classifier"]["names"] = list(answers.names)
    nested["pair"]["calls_ratio"] = _mean(passed)
    nested["pair"]["bytes_ratio"] = float(answers.bytes[passed].sum() / total) if total else None
    return {"clips": len(answers.clips), "bad": [list(b) for b in answers.bad], **nested}


def evaluate_conditions(answers: Mapping[str, Answers], threshold: float, rejection: float = 0.0) -> dict[str, Any]:
    """`evaluate` under every condition of conditions.py: the clean figures, `conditions` and `headline`.

    `conditions` holds each condition's figures by its name; `headline` the worst value of each main figure and the
    condition in which it was found. Under `mixed`, `classifier.clips` says how many wanted clips were mixed; where the
    split has no unwanted clip that is 0, and the figures are null.
    """
    figures = {condition: evaluate(given, threshold, rejection) for condition, given in answers.items()}
    headline = {
        f"{part} {name}": dict(zip(("value", "condition"), min(found), strict=True))
        for part, name in HEADLINE
        if (found := [(f[part][name], condition) for condition, f in figures.items() if f[part][name] is not None])
    }
    return {**figures["clean"], "conditions": figures, "headline": headline}


def robustness(answers: Mapping[str, Answers], threshold: float, rejection: float = 0.0) -> list[dict[str, Any]]:
    """A few shares under each condition of the same clips: `condition`, `clips`, and what became of them."""
    rows = []
    for condition, given in answers.items():
        wanted, passed = given.wanted, given.gate >= threshold
        named = given.probabilities.argmax(axis=1) == given.truth
        shares = {
            "recall": _mean(passed[wanted]),
            "stopped": _mean(~passed[~wanted]),
            "classifier": _mean(named[wanted]),
            "pair": _mean(right(given, threshold, rejection)),
        }
        rows.append({"condition": condition, "clips": len(given.clips), **shares})
    return rows


def gate_scores(answers: Answers, threshold: float) -> dict[str, list[int]]:
    """How the gate's logits of windows lie about its threshold: `wanted` and `unwanted`, see `release.scores`."""

    def windows(of: Mask) -> Floats:
        chosen = [logits for logits, here in zip(answers.windows, of, strict=True) if here]
        return np.concatenate([np.empty(0, np.float32), *chosen])

    return {
        "wanted": spread(windows(answers.wanted) - threshold),
        "unwanted": spread(windows(~answers.wanted) - threshold),
    }


def stopped_at_recall(answers: Answers, recall: float) -> float | None:
    """Share of unwanted clips stopped by the highest threshold that keeps `recall` of the wanted ones."""
    wanted, other = answers.gate[answers.wanted], answers.gate[~answers.wanted]
    if not len(wanted) or not len(other):
        return None
    return float((other < threshold_for_recall(wanted, recall)).mean())


def threshold_for_recall(wanted: Floats, recall: float) -> float:
    """The highest threshold that at least `recall` of these scores reach."""
    ordered = np.sort(wanted)
    return float(ordered[int(np.floor((1.0 - recall) * len(ordered) + 1e-9))])


def confusion(answers: Answers) -> NDArray[np.int64]:
    """Counts of (truth, answer) of the classifier over all clips, [names, names]."""
    k = len(answers.names)
    pairs = answers.truth * k + answers.probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=k * k).reshape(k, k)


def calibration_error(probabilities: Floats, truth: NDArray[np.int64], bins: int = 10) -> float | None:
    """Expected calibration error of the top answer over equal-width bins (Naeini et al., AAAI 2015)."""
    if not len(truth):
        return None
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.abs(np.bincount(which, correct - confidence, bins))
    return float(gaps.sum() / len(truth))


def _mean(values: Mask) -> float | None:
    return float(values.mean()) if len(values) else None
