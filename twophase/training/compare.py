"""Champion and challenger: is the new release better, on the same clips, than the live one?

Both are asked about the challenger's test clips that the champion has not heard either (all of them, unless somebody
edited groups or splits since), each through the front end that it was made for. Each answers for what it is meant to
do: a clip of a label that only one of them names is wanted by that one, and for the other to stop. The difference of
their shares of clips right in the end is bootstrapped over groups, overall and for every label that both name. Better
or worse means that its 95 % interval lies on one side of zero and that they differ in `DIFFERING` groups or more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twophase.audio.frontend import SAMPLE_RATE, Floats, FrontEnd
from twophase.errors import TwoPhaseError
from twophase.release.heard import unheard
from twophase.release.manifest import EXTRA, NONE, Manifest, verify
from twophase.training.answers import Answers, ask
from twophase.training.evaluate import right
from twophase.training.intervals import Mask, bootstrap, groups_of
from twophase.training.judge import Judgement

DIFFERING = 6
"""In how many groups two releases must differ: five that all agree are no rarer than 1 in 20 where neither release is
better (sign test, two-sided: 2 / 2**5 = .06), and a bootstrap of groups that all agree has no width to say so."""


@dataclass(frozen=True)
class Verdict:
    """`name` is `better`, `worse` or `not shown`; `words` say why; `labels` has a name for each label of both."""

    name: str
    words: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One of two releases: its id, what it answered, and its operating point."""

    name: str
    answers: Answers
    threshold: float
    rejection: float = 0.0

    def at(self, index: NDArray[np.int64]) -> "Side":
        """Its answers at some positions."""
        return Side(self.name, self.answers.at(index), self.threshold, self.rejection)


def against_champion(challenger: Judgement, release: Path, champion: Path | None) -> Verdict:
    """The verdict on a release against the live one (None where nothing is live).

    Raises `ReleaseError` when one of the folders is no longer what was exported, and `TwoPhaseError` when the live one
    names labels that the new one does not: it is for another task.
    """
    if champion is None:
        return Verdict("better", "nothing is live yet, so the new release goes ahead")
    old, new = verify(champion), verify(release)
    if old.id == new.id:
        return Verdict("not shown", f"{new.id} is live already")
    if not set(old.labels) <= set(new.labels):
        gone = ", ".join(sorted(set(old.labels) - set(new.labels)))
        raise TwoPhaseError(
            f"{new.id} does not name {gone}, which the live {old.id} does; give another --model if it is for another "
            "task, or train with these labels too"
        )
    front_end = front_end_of(old)
    if front_end is None:
        return not_comparable(new, old)
    fresh = unheard(champion, challenger.test.clips)
    if not fresh:
        return Verdict("not shown", f"{old.id} has heard every test clip, so {new.id} cannot be compared with it")
    extra = champion / EXTRA
    theirs = ask(extra / "gate.tflite", extra / "classifier.tflite", (*old.labels, NONE), fresh, front_end=front_end)
    return compare(
        Side(new.id, challenger.test, challenger.point.threshold, challenger.point.rejection),
        Side(old.id, theirs, old.operating_point.threshold, old.operating_point.rejection),
    )


def front_end_of(release: Manifest) -> FrontEnd | None:
    """The front end that a release was made for; None where this program cannot make its images."""
    try:
        found = FrontEnd(**{name: value for name, value in release.front_end.items() if name != "fingerprint"})
    except TypeError:
        return None
    usable = found.sample_rate == SAMPLE_RATE and found.fingerprint == release.fingerprint
    return found if usable else None


def not_comparable(release: Manifest, other: Manifest) -> Verdict:
    """The verdict where this program cannot make the images of `other`."""
    return Verdict(
        "not shown",
        f"{other.id} has front end {other.fingerprint}, which this version of twophase cannot make, so {release.id} "
        "cannot be compared with it; deploy it yourself (`twophase deploy`) if it is to take its place",
    )


def compare(new: Side, old: Side) -> Verdict:
    """The verdict on two releases by their answers; only clips that both have answered count."""
    new, old = _on_the_same_clips(new, old)
    clips = new.answers.clips
    if not clips:
        return Verdict("not shown", f"{new.name} and {old.name} have answered no clip in common")
    difference = _right(new) - _right(old)
    groups = groups_of(clips)
    name, gain = _shown(difference, groups)
    found = {label: _shown(difference[here], groups[here]) for label, here in _labels_of_both(new, old)}
    said = {"better": "better than", "worse": "worse than", "not shown": "not shown to be better or worse than"}
    words = f"{new.name} is {said[name]} {old.name} on {len(clips)} clips: {gain}{_by_label(found)}"
    return Verdict(name, words, {label: verdict for label, (verdict, _) in found.items()})


def _on_the_same_clips(new: Side, old: Side) -> tuple[Side, Side]:
    """Both sides' answers to the clips that both have answered, in one order."""
    places = [{clip.sha256: i for i, clip in enumerate(side.answers.clips)} for side in (new, old)]
    common = [sha for sha in places[0] if sha in places[1]]
    first, second = (np.array([place[sha] for sha in common], np.int64) for place in places)
    return new.at(first), old.at(second)


def _right(side: Side) -> Floats:
    return right(side.answers, side.threshold, side.rejection).astype(np.float32)


def _labels_of_both(new: Side, old: Side) -> Iterator[tuple[str, Mask]]:
    """Which clips are of each label that both name, and last those that neither wants."""
    labels = np.array([clip.label for clip in new.answers.clips])
    for label in new.answers.names[:-1]:
        if label in old.answers.names[:-1] and (labels == label).any():
            yield label, labels == label
    if (neither := ~new.answers.wanted & ~old.answers.wanted).any():
        yield NONE, neither


def _shown(difference: Floats, groups: NDArray[np.int64]) -> tuple[str, str]:
    """What a difference of clips shows, and in words how large it is."""
    _, groups = np.unique(groups, return_inverse=True)

    def figure(weights: Floats) -> NDArray[np.float64]:
        return np.asarray((weights @ difference) / np.maximum(weights.sum(axis=1), 1), np.float64)

    low, high = np.percentile(bootstrap(groups, figure), [2.5, 97.5])
    differing = int(np.count_nonzero(np.bincount(groups, difference)))
    gain = f"{100 * difference.mean():+.1f} points of clips right, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if differing < DIFFERING:
        return "not shown", f"{gain}; they differ in {differing} groups of clips, {DIFFERING} are needed"
    return "better" if low > 0 else "worse" if high < 0 else "not shown", gain


def _by_label(found: dict[str, tuple[str, str]]) -> str:
    """The verdicts by label in words."""
    if not found:
        return ""
    parts = [
        f"{name} at {', '.join(label for label, (verdict, _) in found.items() if verdict == name)}"
        for name in ("better", "worse")
        if any(verdict == name for verdict, _ in found.values())
    ]
    rest = sum(verdict == "not shown" for verdict, _ in found.values())
    if rest:
        parts.append(f"nothing is shown for {rest} of {len(found)}")
    return f"; by label (at 95 % each: one of twenty may be chance): {', '.join(parts)}"
