"""Sound in, clips out: windows, the gate, hysteresis, and a little before and after.

Time goes in hops of half a window, as in training (`audio.windows`): every hop completes a window, and the gate scores
it. A clip opens with a window whose logit reaches the threshold, stays open while logits stay above the threshold less
`hysteresis`, and closes when no window did for `pre_roll_s + post_roll_s`: so what overlaps is one clip, and no sound
is in two. It is cut at `max_clip_s` and goes on as the next.

Of what was rejected, a random share of windows is given out too, marked `audit`: what the gate misses in the field
cannot be known otherwise. Windows below `min_level_db` are silence: they are neither scored nor counted, since the
front end looks at each window relative to its own maximum and would show the gate amplified noise.

Nothing is kept on disk here; a crash loses the clip that is open.
"""

import math
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from twophase.audio.frontend import FRONT_END, SAMPLE_RATE
from twophase.audio.windows import AUDIBLE_DB
from twophase.device.clip import PCM
from twophase.device.gates import LoadedGate
from twophase.errors import UsageError
from twophase.release.scores import BINS, bin_of

HOP = FRONT_END.samples // 2
"""Samples from one window to the next: 0.496 s."""

_FULL_SCALE = np.float32(1 / 32768)


@dataclass(frozen=True)
class Listening:
    """How clips are cut from what is heard. Lengths in seconds, rounded up to hops of half a window."""

    pre_roll_s: float = 0.5
    post_roll_s: float = 0.5
    max_clip_s: float = 30.0
    hysteresis: float = 0.5
    """How far below the threshold a logit may fall before the clip closes."""
    min_level_db: float = -70.0
    """A window whose loudness is below this, relative to full scale, is silence."""
    audit_share: float = 0.005
    """Share of the rejected windows that go up all the same."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_clip_s <= 240:  # 8 MB: a gateway takes no more as one clip
            raise UsageError(f"max_clip_s = {self.max_clip_s}: 2 to 240 seconds are accepted")
        if not (self.pre_roll_s >= 0 <= self.post_roll_s and self.pre_roll_s + self.post_roll_s <= self.max_clip_s / 2):
            raise UsageError("pre_roll_s and post_roll_s: 0 or more, together at most half of max_clip_s, is accepted")
        if not 0 <= self.audit_share <= 1:
            raise UsageError(f"audit_share = {self.audit_share}: is no share; 0 to 1 is accepted")
        if not -120 <= self.min_level_db <= 0:
            raise UsageError(f"min_level_db = {self.min_level_db}: -120 to 0, which is full scale, is accepted")
        if not self.hysteresis >= 0:
            raise UsageError(f"hysteresis = {self.hysteresis}: 0 or more is accepted")


@dataclass(frozen=True)
class Detection:
    """A clip that was heard: int16 samples at 16 kHz, and what the gate said."""

    pcm: PCM
    gate: LoadedGate
    score: float
    """Mean logit of its audible windows, from the first to the last that kept it open."""
    windows: int
    """How many of its windows reached the threshold; of an audit clip, how many it has."""
    kind: Literal["escalation", "audit"]
    ago_s: float
    """How long before the last sample that was fed its first sample was heard."""


@dataclass
class Tally:
    """What a gate decided since it began: counts of windows."""

    gate: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """A name that no other tally has."""
    windows: int = 0
    escalated: int = 0
    audited: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * BINS)

    def count(self, margin: float) -> None:
        """One more window, whose logit is `margin` above the threshold."""
        self.windows += 1
        self.escalated += margin >= 0
        self.scores[bin_of(margin)] += 1


@dataclass(frozen=True, slots=True)
class _Scored:
    """A window of the clip that is open: its logit, its power, and how many hops the clip had with it."""

    score: float
    power: float
    end: int


class Listener:
    """Cuts one stream into clips. One thread feeds it; any may give it another gate."""

    def __init__(
        self,
        gate: LoadedGate,
        heard: Callable[[Detection], object],
        listening: Listening | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """`heard` is called with each clip; `chance` draws the audit sample."""
        listening = listening or Listening()
        self.gate, self.tallies = gate, [Tally(gate.id)]
        """The gate in use, and what each gate decided: the last tally is that of the gate in use."""
        self._next_gate: LoadedGate | None = None
        self._heard, self._chance = heard, chance or random.SystemRandom()
        self._hysteresis, self._audit_share = listening.hysteresis, listening.audit_share
        self._silence = 10 ** (listening.min_level_db / 10)
        self._pre, self._post = _hops(listening.pre_roll_s), _hops(listening.post_roll_s)
        self._most = _hops(listening.max_clip_s)
        self._rest: PCM = np.empty(0, np.int16)  # fed, and not yet a hop
        self._last: PCM | None = None  # the hop that begins the next window
        self._stepped = 0  # hops of this stream
        self._kept: list[PCM] = []  # hops of the clip that is open, or of the pre-roll of one that may come
        self._open: list[_Scored] = []  # empty: no clip is open
        self._ends = 0  # how many hops the clip had when a window last kept it open

    def use(self, gate: LoadedGate) -> None:
        """Let another gate decide from the next window on; a clip that is open is given out as the old one's."""
        self._next_gate = gate

    def feed(self, pcm: PCM) -> None:
        """More of the stream: int16 [n] at 16 kHz, any n."""
        fed = np.concatenate([self._rest, pcm]) if len(self._rest) else pcm
        whole = len(fed) // HOP * HOP
        for at in range(0, whole, HOP):
            self._rest = fed[at + HOP :]
            self._step(fed[at : at + HOP])
        self._rest = fed[whole:].copy()

    def finish(self) -> None:
        """The stream ended: decide what is left, padded with zeros as in training, and close the clip that is open."""
        while self._stepped < 2 or len(self._rest) > FRONT_END.samples // 4:
            self.feed(np.zeros(HOP - len(self._rest), np.int16))
        if self._open:
            self._give_out(self._ends + self._post)
        self._rest, self._last, self._kept, self._stepped = np.empty(0, np.int16), None, [], 0

    def _step(self, hop: PCM) -> None:
        if self._next_gate:
            self._exchange(self._next_gate)
        self._kept.append(hop)
        if self._last is not None:
            window = np.concatenate([self._last, hop]) * _FULL_SCALE
            power = float(np.dot(window, window)) / len(window)
            if power >= self._silence:
                self._decide(float(self.gate.gate.scores(window[None])[0]), power)
        self._last = hop
        self._stepped += 1
        if not self._open:
            del self._kept[: -self._pre - 1]
        elif len(self._kept) >= self._most or len(self._kept) - self._ends >= self._pre + self._post:
            self._give_out(self._ends + self._post)

    def _decide(self, score: float, power: float) -> None:
        margin = score - self.gate.threshold
        self.tallies[-1].count(margin)
        if self._open or margin >= 0:
            self._open.append(_Scored(score, power, len(self._kept)))
            if margin >= -self._hysteresis:
                self._ends = len(self._kept)
        elif self._chance.random() < self._audit_share and len(self._kept) >= 2:
            self.tallies[-1].audited += 1
            pcm = np.concatenate(self._kept[-2:])
            self._heard(Detection(pcm, self.gate, score, 1, "audit", self._ago(2)))

    def _give_out(self, hops: int) -> None:
        """Close the clip after so many hops; what follows may be the next one's pre-roll."""
        said = [window for window in self._open if window.end <= self._ends]
        loudest = max(window.power for window in said)
        audible = [window.score for window in said if window.power >= loudest * 10 ** (-AUDIBLE_DB / 10)]
        passed = sum(window.score >= self.gate.threshold for window in said)
        score = float(np.mean(audible))
        pcm = np.concatenate(self._kept[:hops])
        ago = self._ago(len(self._kept))
        self._kept, self._open, self._ends = self._kept[hops:], [], 0
        self._heard(Detection(pcm, self.gate, score, passed, "escalation", ago))

    def _exchange(self, gate: LoadedGate) -> None:
        if self._open:
            self._give_out(self._ends + self._post)
        self._next_gate = None
        self.gate = gate
        self.tallies.append(Tally(gate.id))

    def _ago(self, hops: int) -> float:
        return (hops * HOP + len(self._rest)) / SAMPLE_RATE


def _hops(seconds: float) -> int:
    return math.ceil(seconds * SAMPLE_RATE / HOP)
