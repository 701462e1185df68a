"""What may go up in a day, and what has.

    STATE/budget.json    the day of UTC by the device's clock, and what went up in it: clips and bytes

A clock that jumps to another day begins another budget. A crash forgets at most the clip that was going up, or, where
the disk took nothing, what went up since it last did.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import read_json, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Daily:
    """What may go up in a day of UTC; 0 is without bound."""

    calls: int = 0
    """Clips."""
    bytes: int = 0

    def __post_init__(self) -> None:
        if self.calls < 0 or self.bytes < 0:
            raise UsageError(f"calls = {self.calls}, bytes = {self.bytes} a day: 0 or more is accepted")


class Budget:
    """A day's spending, kept in one file."""

    def __init__(self, file: Path, daily: Daily, now: Callable[[], float] = time.time) -> None:
        self._file, self._daily, self._now = file, daily, now
        self._day, self._calls, self._bytes = "", 0, 0
        with suppress(TwoPhaseError, KeyError, TypeError):  # none yet, or damaged: the day begins anew
            spent = read_json(file, "budget")
            self._day, self._calls, self._bytes = str(spent["day"]), int(spent["calls"]), int(spent["bytes"])

    def allows(self, size: int) -> bool:
        """Whether a clip of so many bytes may go up today."""
        day = datetime.fromtimestamp(max(self._now(), 0), UTC).date().isoformat()
        if day != self._day:
            self._day, self._calls, self._bytes = day, 0, 0
        calls, most = self._daily.calls, self._daily.bytes
        return (not calls or self._calls < calls) and (not most or self._bytes + size <= most)

    def spend(self, size: int) -> None:
        """A clip went up."""
        self._calls, self._bytes = self._calls + 1, self._bytes + size
        if self._daily.calls or self._daily.bytes:
            try:
                write_json(self._file, {"day": self._day, "calls": self._calls, "bytes": self._bytes})
            except TwoPhaseError as error:  # what goes up makes room: it does not wait for the disk
                log.warning("the day's budget is not kept: %s", error)
