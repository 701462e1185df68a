"""Champion and challenger: is the new release better, on the same clips, than the live one?

Both are asked about the challenger's test clips that the champion has not heard either (all of them, unless somebody
edited groups or splits since). The difference of their end-to-end accuracies is bootstrapped over groups; better or
worse means that its 95 % interval lies on one side of zero.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import Floats
from twophase.errors import TwoPhaseError
from twophase.release.heard import unheard
from twophase.release.manifest import EXTRA, NONE, read
from twophase.training.answers import Answers, ask
from twophase.training.evaluate import right
from twophase.training.intervals import bootstrap, groups_of
from twophase.training.judge import Judgement


@dataclass(frozen=True)
class Verdict:
    """`name` is `better`, `worse` or `not shown`; `words` say why."""

    name: str
    words: str


def against_champion(challenger: Judgement, release: Path, champion: Path | None) -> Verdict:
    """The verdict on a release against the live one (None where nothing is live)."""
    if champion is None:
        return Verdict("better", "nothing is live yet, so the new release goes ahead")
    old, new = read(champion), read(release)
    if old.id == new.id:
        return Verdict("not shown", f"{new.id} is live already")
    if old.fingerprint != new.fingerprint:
        return Verdict("better", f"{old.id} has another front end, so {new.id} goes ahead")
    if not set(old.labels) <= set(new.labels):
        gone = ", ".join(sorted(set(old.labels) - set(new.labels)))
        raise TwoPhaseError(
            f"{new.id} does not name {gone}, which the live {old.id} does; give another --model if it is for another "
            "task, or train with these labels too"
        )
    if old.labels != new.labels:
        return Verdict("better", f"{new.id} names more labels than {old.id}, so it goes ahead")
    fresh = unheard(champion, challenger.test.clips)
    extra = champion / EXTRA
    theirs = ask(extra / "gate.tflite", extra / "classifier.tflite", (*old.labels, NONE), fresh)
    answered = {c.sha256 for c in theirs.clips}
    if not answered:
        return Verdict("not shown", f"{old.id} has heard every test clip, so {new.id} cannot be compared with it")
    kept = [i for i, c in enumerate(challenger.test.clips) if c.sha256 in answered]
    test = challenger.test.at(np.array(kept, np.int64))
    return compare(test, challenger.point.threshold, theirs, old.operating_point.threshold, new.id, old.id)


def compare(
    new: Answers, new_threshold: float, old: Answers, old_threshold: float, name: str, champion: str
) -> Verdict:
    """The verdict on two sets of answers to the same clips."""
    difference = right(new, new_threshold).astype(np.float32) - right(old, old_threshold).astype(np.float32)
    groups = groups_of(new.clips)

    def figure(weights: Floats) -> NDArray[np.float64]:
        return np.asarray((weights @ difference) / np.maximum(weights.sum(axis=1), 1), np.float64)

    low, high = np.percentile(bootstrap(groups, figure), [2.5, 97.5])
    gain = f"{100 * difference.mean():+.1f} points of clips right, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if low > 0:
        return Verdict("better", f"{name} is better than {champion}: {gain}")
    if high < 0:
        return Verdict("worse", f"{name} is worse than {champion}: {gain}")
    return Verdict("not shown", f"{name} is not shown to be better or worse than {champion}: {gain}")
