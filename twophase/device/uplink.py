"""The uplink: clips to the gateway, answers back, for as long as it takes.

Two loops, each with at most one request at a time. `Sender` announces what waits, in order, uploads what the gateway
does not have from the byte where it stopped, and marks it sent; `Fetcher` asks for answers, keeps each before it
acknowledges it, and lets the clip go. So a cut anywhere is repeated, not lost: at least once on the wire, and by its
sequence number once in the end.

Nothing is given up for lack of an answer: no network, 408, 429 and 5xx wait, twice as long each time up to `LONGEST_S`,
jittered so that a fleet does not come back as a herd, and never less than `Retry-After`. What the gateway refuses for
good goes to the dead letters after one try. What is on the disk is the spool's, and the day's budget.
"""

import random
import threading
import time
from collections.abc import Callable

from twophase.device.budget import Budget
from twophase.device.client import Client, NotThisKey
from twophase.device.direct import Direct
from twophase.device.link import Away, Refused
from twophase.device.spool import Spool
from twophase.errors import TwoPhaseError
from twophase.files import JSON, digest

SHORTEST_S, LONGEST_S = 1.0, 900.0
"""The first wait after a failure, and the longest, jitter and `Retry-After` apart."""
AT_ONCE = 20
"""Clips announced in one request."""
WAIT_S = 20
"""How long one request for answers is held."""
RECHECK_S = 6 * 3600.0
"""How often the gateway is asked what became of clips that it has not answered."""

IDLE_S = 60.0
"""How often is looked for more to do where nothing says that there is."""

_ON_THE_WAY = (404, 409, 422)  # announced too long ago, at another offset, changed on the way: announcing mends it


class Backoff:
    """How long to wait after failures: doubled each time, capped, drawn at random from its upper half."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance, self._failures = chance or random.SystemRandom(), 0

    def failed(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait now."""
        wait = min(SHORTEST_S * 2.0 ** min(self._failures, 30), LONGEST_S)
        self._failures += 1
        return max(wait * self._chance.uniform(0.5, 1.0), at_least_s * self._chance.uniform(1.0, 1.25))

    def succeeded(self) -> None:
        """The next failure is a first one."""
        self._failures = 0


class Sender:
    """Sends what waits in a spool."""

    def __init__(self, spool: Spool, client: Client | Direct, budget: Budget) -> None:
        self._spool, self._client, self._budget = spool, client, budget
        self._rechecked = time.monotonic()

    def round(self) -> float:
        """Send some of what waits; returns the seconds until there may be more to do, 0 when there is.

        Raises `Away`, `NotThisKey`, or `SpoolError`; all is as it was, or further.
        """
        if time.monotonic() - self._rechecked >= RECHECK_S:
            self.recheck()
        waiting = self._spool.waiting(AT_ONCE)
        for sequence, found, size in self._announce(waiting):
            if found["state"] != "receiving":
                self._settle(sequence, found)
            elif self._budget.allows(size - found["offset"]):
                self._upload(sequence, found["offset"])
            else:
                return IDLE_S
        return 0.0 if waiting else IDLE_S

    def recheck(self) -> None:
        """Ask what became of clips that the gateway has: one that it lost is sent again."""
        after = -1
        while sent := self._spool.sent(AT_ONCE, after):
            for sequence, found, _ in self._announce(sent):
                self._settle(sequence, found)
            after = sent[-1]
        self._rechecked = time.monotonic()

    def _announce(self, sequences: list[int]) -> list[tuple[int, JSON, int]]:
        """How far the gateway is with clips: number, state, bytes. Damaged ones are left out."""
        clips = [described for s in sequences if (described := self._describe(s))]
        if not clips:
            return []
        try:
            found = self._client.announce(clips)
        except Refused as refused:
            if len(clips) > 1:  # one of them; which one, each alone will tell
                return [some for clip in clips for some in self._announce([clip["sequence"]])]
            self._spool.refuse(clips[0]["sequence"], str(refused))
            return []
        return [(clip["sequence"], state, clip["bytes"]) for clip, state in zip(clips, found, strict=False)]

    def _describe(self, sequence: int) -> JSON | None:
        with self._spool.sending(sequence) as taken:
            if taken is None:
                return None
            story = taken.story
            return {
                "sequence": sequence,
                "sha256": digest(taken.data),
                "bytes": len(taken.data),
                "kind": story.kind,
                "gate": story.gate,
                "front_end": story.front_end,
                "score": story.score,
                "windows": story.windows,
                "captured": story.captured,
                "clock_trusted": story.clock == "trusted",
            }

    def _upload(self, sequence: int, offset: int) -> None:
        with self._spool.sending(sequence) as taken:
            if taken is None:
                return
            try:
                found = self._client.upload(sequence, taken.data, offset)
            except Refused as refused:
                if refused.code not in _ON_THE_WAY:
                    self._spool.refuse(sequence, str(refused))
                    return
                raise Away(str(refused)) from None
            self._budget.spend(len(taken.data) - offset)
            self._settle(sequence, found)

    def _settle(self, sequence: int, found: JSON) -> None:
        """Note what the gateway says of a clip."""
        state = found["state"]
        if state == "rejected":
            self._spool.refuse(sequence, str(found["error"]["message"]))
        elif state == "done":
            self._spool.forget(sequence)
        else:
            self._spool.mark_sent(sequence, state != "receiving")


class Fetcher:
    """Fetches answers into a spool."""

    def __init__(self, spool: Spool, client: Client | Direct, answered: Callable[[JSON], object]) -> None:
        """`answered` is called with each answer, joined to its clip's story, once."""
        self._spool, self._client, self._answered = spool, client, answered
        self._idle_s = 0.0

    def round(self, wait_s: int = WAIT_S) -> float:
        """Fetch what there is; returns the seconds until asking again is worth it, 0 when it is at once.

        Raises `Away`, `NotThisKey`, or `SpoolError`; an answer that is not kept here is not acknowledged.
        """
        if not self._spool.expects_answers():
            self._idle_s = 0.0
            return 1.0
        found = self._client.answers(wait_s)
        for answer in found:
            if "prediction" in answer:
                if kept := self._spool.answer(answer["sequence"], answer["prediction"]):
                    self._answered(kept)
            else:
                self._spool.refuse(answer["sequence"], str(answer["error"]["message"]))
        if found:
            self._client.acknowledge([answer["sequence"] for answer in found])
        self._idle_s = 0.0 if found else min(2 * self._idle_s + 1, IDLE_S)
        return self._idle_s


def keep_going(
    work: Callable[[], float],
    stop: threading.Event,
    failed: Callable[[str], object],
    news: threading.Event | None = None,
) -> None:
    """Call `work` until `stop`, with the waits that it returns, or after a failure those of `Backoff`.

    `failed` is called with what went wrong, and with nothing when it goes well again. `news` ends a wait that no
    failure made; who sets `stop` sets it too.
    """
    backoff, news = Backoff(), news or stop
    while not stop.is_set():
        try:
            if news is not stop:
                news.clear()
            wait = work()
            backoff.succeeded()
            failed("")
            news.wait(wait)
            continue
        except NotThisKey as error:
            failed(str(error))
            wait = LONGEST_S
        except (TwoPhaseError, OSError) as error:
            failed(str(error))
            wait = backoff.failed(error.retry_after_s if isinstance(error, Away) else 0.0)
        except Exception as error:  # whatever it is, a newer gateway or a newer version may mend it: nothing ends here
            failed(f"the gateway answers what this version does not understand ({error!r})")
            wait = backoff.failed()
        stop.wait(wait)
