"""Room in a spool that is bounded: what goes when a new clip does not fit in `max_bytes` or on the disk.

First go clips that the gateway already has (their story stays for the answer), then damaged and refused ones, then by
worth: the gate's margin, plus `recency` for every thousand clips heard later. What is being sent never goes. Files of
every kind count, rounded up to blocks of the disk. Every drop is counted and logged.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from twophase.device.aside import Aside
from twophase.device.durable import SpoolError
from twophase.device.index import SENT, WAITING
from twophase.device.layout import BLOCK, cost
from twophase.device.records import Records
from twophase.device.store import Store
from twophase.errors import TwoPhaseError, UsageError

MIN_BYTES = 16 << 20
"""Smallest `max_bytes`: what the spool itself needs, and some clips."""

_RESERVE = 2 << 20  # what the index and its log may grow between two looks, folders, one answer being written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What bounds a spool."""

    max_bytes: int = 1 << 30
    """Bytes on the disk, everything included."""
    recency: float = 1.0
    """How much of the gate's margin being a thousand clips newer is worth: 0 keeps the surest, much the newest."""
    keep_answers: int = 10_000
    """Answers that stay readable on the device, an eighth of `max_bytes` at most; the oldest go first."""

    def __post_init__(self) -> None:
        if self.max_bytes < MIN_BYTES:
            raise UsageError(f"max_bytes = {self.max_bytes}: too small for a spool; {MIN_BYTES} or more is accepted")
        if not self.recency >= 0:
            raise UsageError(f"recency = {self.recency}: is no weight; 0 or more is accepted")
        if self.keep_answers < 1:
            raise UsageError(f"keep_answers = {self.keep_answers}: 1 or more is accepted")

    def records(self, folder: Path, incoming: Path) -> Records:
        """Answers or stories within these limits."""
        return Records(folder, incoming, self.keep_answers, self.max_bytes // 8)


class Room:
    """Who takes how much, and who goes. The caller takes care that one thread at a time is in here."""

    def __init__(
        self, limits: Limits, clips: Store, aside: Aside, answers: Records, stories: Records, counts: Counter[str]
    ) -> None:
        self._limits, self._clips, self._aside, self._answers, self._stories = limits, clips, aside, answers, stories
        self._counts = counts
        self.in_flight: set[int] = set()
        """Clips that are being sent."""
        self.reserved = 0
        """Bytes of clips that are being written."""

    @property
    def used(self) -> int:
        """Bytes on the disk of everything, and some for what cannot be foreseen."""
        records = self._answers.bytes + self._stories.bytes
        return self._clips.used + self.reserved + self._aside.bytes + records + _RESERVE

    def fit(self, size: int, worth: float) -> bool:
        """Make room within `max_bytes` for `size` bytes; False, and nothing done, when all else is worth more."""
        return self.make(self.used + size - self._limits.max_bytes, worth)

    def make(self, missing: int, worth: float) -> bool:
        """Free `missing` bytes of what is worth at most `worth`; False, and nothing done, where there is not as much.

        Raises `SpoolError`, or `OSError`, when the disk fails.
        """
        if missing <= 0:
            return True
        chosen = []
        for frees, drop in self._victims(worth):
            chosen.append(drop)
            missing -= frees
            if missing <= 0:
                for goes in chosen:
                    goes()
                return True
        return False

    def count_drop(self, counter: str, sequence: int, why: str) -> None:
        """Count and log that a clip was dropped."""
        self._counts[counter] += 1
        log.warning("clip %d dropped: %s", sequence, why)

    def _victims(self, worth: float) -> Iterator[tuple[int, Callable[[], None]]]:
        """What may be dropped for a clip of this worth, in that order: bytes that become free, and how."""
        for sequence, size, _ in self._least(SENT):
            if size > BLOCK:  # else its story takes as much
                yield cost(size) - cost(1), partial(self._shrink, sequence)
        for size, path in self._aside.files():
            yield size, partial(self._drop_aside, path, size)
        for sequence, size, its_worth in self._least(WAITING):
            if its_worth > worth:
                return
            yield cost(size), partial(self._drop, sequence, its_worth)

    def _least(self, state: int) -> list[tuple[int, int, float]]:
        """The clips of a state that are worth least and not in flight; more of them than any one clip needs room."""
        found = self._clips.indexed(lambda index: index.least_first(state, limit=1000 + len(self.in_flight)))
        return [row for row in found if row[0] not in self.in_flight]

    def _shrink(self, sequence: int) -> None:
        """Drop a clip that the gateway has; its story stays, for the answer."""
        lost = ""
        try:
            story = asdict(self._clips.story(sequence))
            try:
                self._stories.put(sequence, story)
            except SpoolError:  # no room even for that, but for the clip's own
                self._clips.remove(sequence)
                self._stories.put(sequence, story)
        except (OSError, TwoPhaseError) as error:
            lost = f"; its answer will not be known here: {error}"
        self._clips.remove(sequence)
        self.count_drop("dropped_sent", sequence, "the gateway has it" + lost)

    def _drop(self, sequence: int, worth: float) -> None:
        self._clips.remove(sequence)
        self.count_drop("dropped_waiting", sequence, f"worth {worth:.2f}")

    def _drop_aside(self, path: Path, size: int) -> None:
        self._aside.remove(path, size)
        if path.suffix == ".flac":
            self.count_drop(f"dropped_{path.parent.name}", int(path.stem), path.parent.name)
