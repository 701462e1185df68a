"""The time, and whether to trust it. A device without a battery may wake up in 1970, or years ahead.

    STATE/clock.json    the newest time that the gateway has told, to the hour: the floor

The clock is plausible when it is not before the floor, nor `AHEAD_S` after it. Once the gateway was heard since the
start, it is compared with the gateway's time, carried on by the monotonic clock: at most `OFF_S` apart is plausible.
What waits for a plausible time: gate updates, whose signatures expire. What does not: listening, keeping and sending;
clips carry `clock=untrusted` meanwhile, and their order is that of their numbers.
"""

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

from twophase.errors import TwoPhaseError
from twophase.files import read_json, write_json

BUILT = 1_735_689_600.0
"""No clock that is right shows a time before this program was written: 2025."""
AHEAD_S = 5 * 365 * 86_400.0
"""A device that was off this long, in seconds, has to hear the gateway before it trusts its clock."""
OFF_S = 300.0

log = logging.getLogger(__name__)


class Clock:
    """This device's clock. Any thread may ask, and tell."""

    def __init__(self, state: Path) -> None:
        """Read the floor that is kept in `state`."""
        self._file = state / "clock.json"
        self._floor, self._mutex = BUILT, threading.Lock()
        self._told: float | None = None  # the gateway's time when the monotonic clock was 0
        with suppress(TwoPhaseError, ValueError, KeyError, TypeError):  # none yet, or damaged: the program's own age
            self._floor = max(BUILT, float(read_json(self._file, "clock")["floor"]))

    def told(self, gateway_time: float) -> None:
        """The gateway said what time it is."""
        if gateway_time < BUILT:
            return
        with self._mutex:
            self._told = gateway_time - time.monotonic()
            if gateway_time <= self._floor + 3600:
                return
            self._floor = gateway_time
            try:
                write_json(self._file, {"floor": gateway_time})
            except TwoPhaseError as error:  # costs an older floor after the next start, and no request
                log.warning("the clock's floor is not kept: %s", error)

    @property
    def trusted(self) -> bool:
        """Whether `time.time()` is plausible."""
        now = time.time()
        if self._told is not None:
            return abs(self._told + time.monotonic() - now) <= OFF_S
        return self._floor <= now <= self._floor + AHEAD_S
