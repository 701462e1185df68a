"""Field conditions: what the same clips sound like as devices hear them.

    clean      the clip as it is
    channel    through one 8 kHz mono channel and back, so that no source is told by its bandwidth
    mixed      wanted clips over an unwanted one of the same split at 0, 10 or 20 dB, then all through the channel
    snr R      wanted clips over an unwanted one of the same split at R dB, all else as it is
    level L    every clip L dB quieter, as 16-bit samples

Which background, which stretch of it and which ratio a clip gets follows from the digest of its content, so the
figures of two releases rest on the same sounds. A clip whose split has no background for it is not heard at all: as it
is, it would flatter. Backgrounds come from the clips that are being evaluated, never from
others: what training mixes in and what tests are mixed with have no clip in common. Reads backgrounds from disk; writes
nothing.
"""

from collections.abc import Collection, Sequence

import numpy as np
import soxr

from twophase.audio import sources
from twophase.audio.dataset import Clip
from twophase.audio.decode import BadClip, decode
from twophase.audio.frontend import SAMPLE_RATE, Floats
from twophase.audio.windows import audible, cut

CONDITIONS = ("clean", "channel", "mixed")
SNRS_DB = (0, 10, 20)
"""Mean power of a clip over that of its background, both over their audible windows."""
SWEEP = ("snr 20", "snr 10", "snr 0", "level 20", "level 40", "level 60")
"""The single difficulties of which the report shows how much of each the pair bears."""


class Field:
    """One condition, with the unwanted ones of some clips as backgrounds. Safe to call from many threads."""

    def __init__(self, condition: str, clips: Sequence[Clip], wanted: Collection[str]) -> None:
        self._condition, self._wanted = condition, frozenset(wanted)
        self._backgrounds: dict[str, list[Clip]] = {}
        for clip in sorted(clips, key=lambda c: c.sha256):
            if clip.label not in self._wanted:
                self._backgrounds.setdefault(clip.split, []).append(clip)

    def __call__(self, clip: Clip, pcm: Floats) -> Floats | None:
        """What is heard of a decoded clip: float32 [n] -> float32 [n], 16 kHz.

        None where it should be mixed and there is nothing to mix it with. Raises `sources.Unreachable` when the
        background cannot be read now and may be later.
        """
        what, _, amount = self._condition.partition(" ")
        if what in ("mixed", "snr") and clip.label in self._wanted:
            mixed = self._over_background(clip, pcm, int(amount) if amount else None)
            if mixed is None:
                return None
            pcm = mixed
        if what == "level":
            return quieter(pcm, float(amount))
        return channel(pcm) if what in ("channel", "mixed") else pcm

    def _over_background(self, clip: Clip, pcm: Floats, snr_db: int | None) -> Floats | None:
        choices = self._backgrounds.get(clip.split, ())
        if not choices:
            return None
        rng = np.random.default_rng(int(clip.sha256[:15], 16))
        chosen = choices[rng.integers(len(choices))]
        try:
            background = decode(sources.read(chosen.path), chosen.name)
        except BadClip:  # named in its own turn
            return None
        except sources.Unreachable as error:
            if not error.gone:
                raise
            return None
        if not background.any():
            return None
        start, drawn = rng.integers(len(background)), SNRS_DB[rng.integers(len(SNRS_DB))]
        background = np.resize(np.roll(background, -start), len(pcm))
        return mix(pcm, background, drawn if snr_db is None else snr_db)


def channel(pcm: Floats) -> Floats:
    """Through 8 kHz and back: float32 [n] at 16 kHz -> the same."""
    narrow = soxr.resample(soxr.resample(pcm, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE)
    out = np.zeros(len(pcm), np.float32)
    out[: len(narrow)] = narrow[: len(pcm)]
    return out


def quieter(pcm: Floats, by_db: float) -> Floats:
    """A clip so much quieter, rounded as a 16-bit microphone would: float32 [n] -> float32 [n]."""
    return np.asarray(np.rint(pcm * (32767.0 * 10.0 ** (-by_db / 20.0))) / 32767.0, np.float32)


def mix(pcm: Floats, background: Floats, snr_db: float) -> Floats:
    """A clip over a background of the same length at this ratio: float32 [n] -> float32 [n]."""
    behind = _power(background)
    if behind == 0.0:
        return pcm
    return pcm + background * np.float32(np.sqrt(_power(pcm) / behind * 10.0 ** (-snr_db / 10.0)))


def _power(pcm: Floats) -> float:
    windows = cut(pcm)
    return float(np.mean(np.square(windows[audible(windows)])))
