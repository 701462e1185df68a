"""Single notes from the General MIDI soundfont `TimGM6mb.sf2`, in tune and without clicks.

symusic's synthesiser does the rendering. It is fast, but 0.5.9 has gaps, all but the last mended here:

- A zone's root key and scale tuning (SoundFont 2.04, 8.1.2, generators 58 and 56) are ignored: a note sounds as if the
  sample's own key were the root, up to four octaves off. It is rendered at a rate that undoes the difference.
- Samples without a loop, which most drums and sound effects are, stop after some milliseconds in many zones: they are
  played from the soundfont directly.
- Looped samples do not decay: plucked and struck sounds are given a decay.
- Many presets stop within 1 ms of the end of a note, which clicks: each note ends in a fade.
- Velocity changes nothing: loudness and brightness are the caller's.

Far outside a zone's range symusic never returns (a loop shorter than a sample), or reads past the sample, so that the
same note differs from run to run: play within the ranges that `synth` lists, all of which were rendered and compared.
Nothing is written. The soundfont is the one inside the pretty_midi package, which is located but never imported (slow).
"""

import importlib.util
import itertools
import math
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import symusic
from symusic import core

from twophase.audio.frontend import Floats
from twophase.errors import TwoPhaseError

RATE = 44_100
"""Samples per second of rendered notes: that of the soundfont's samples."""

DRUMS = 128
"""The bank that holds drum kits; melodic programs are in bank 0."""

_RELEASE_S = 0.04

_INSTRUMENT, _KEY_RANGE, _SAMPLE, _LOOP, _SCALE_TUNING, _ROOT_KEY = (
    41,
    43,
    53,
    54,
    56,
    58,
)  # generators of SoundFont 2.04, 8.1.2


def path() -> Path:
    """The soundfont. Raises `TwoPhaseError` when pretty_midi is not installed."""
    spec = importlib.util.find_spec("pretty_midi")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (found := Path(folder) / "TimGM6mb.sf2").is_file():
            return found
    raise TwoPhaseError("TimGM6mb.sf2: not found; the synthesiser needs it, install twophase[train]")


@dataclass(frozen=True)
class _Zone:
    """What the soundfont says of some keys of a program."""

    low: int
    high: int
    sample: Floats
    rate: int
    own_key: int
    """The key at which the sample sounds as it was recorded, by its header."""
    root_key: int
    """The same, by the zone: it overrides the header."""
    scale: int
    """Cents from key to key."""
    looped: bool


def note(bank: int, program: int, key: int, seconds: float, decay_s: float = math.inf, attack_s: float = 0.0) -> Floats:
    """One note, float32 [n] at `RATE`; rising for `attack_s`, losing 60 dB in `decay_s`, its end faded.

    It lasts `seconds`; a sample without a loop, as most drums have, lasts as long as it is. `bank` is 0 or `DRUMS`,
    `program` and `key` are MIDI numbers from 0. A program or key without a sample is silence.
    """
    zone = next((z for z in _zones().get((bank, program), ()) if z.low <= key <= z.high), None)
    if zone is None:
        return np.zeros(int(seconds * RATE), np.float32)
    shift = (key - zone.root_key) * zone.scale / 100.0  # semitones from the sample as recorded
    if zone.looped:
        pcm = _rendered(bank, program, key, seconds, key - zone.own_key - shift)
    else:
        step = 2.0 ** (shift / 12.0) * zone.rate / RATE
        at = np.arange(0.0, len(zone.sample) - 1, step)
        pcm = np.interp(at, np.arange(len(zone.sample)), zone.sample).astype(np.float32)
    if decay_s < math.inf:
        pcm *= np.exp(np.arange(len(pcm), dtype=np.float32) * np.float32(-6.9 / (decay_s * RATE)))
    rise = min(len(pcm) // 2, int(attack_s * RATE))
    pcm[:rise] *= np.linspace(0.0, 1.0, rise, dtype=np.float32)
    fade = min(len(pcm), int(_RELEASE_S * RATE))
    pcm[len(pcm) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return pcm


def _rendered(bank: int, program: int, key: int, seconds: float, too_high: float) -> Floats:
    """A looped sample by symusic, which would play it `too_high` by so many semitones: it is told a higher rate."""
    stretch = 2.0 ** (too_high / 12.0)
    score = core.ScoreSecond(480)
    track = core.TrackSecond("", program, bank == DRUMS)
    track.notes.append(core.NoteSecond(0.0, seconds / stretch, key, 100))
    score.tracks.append(track)
    return np.array(_synthesiser(round(RATE * stretch)).render(score, False)[0], np.float32)


@cache
def _synthesiser(rate: int) -> Any:
    return symusic.Synthesizer(str(path()), rate, 0)


@cache
def _zones() -> dict[tuple[int, int], list[_Zone]]:
    """(bank, program) -> its zones, in the soundfont's order."""
    data = path().read_bytes()
    chunks = _chunks(data, 12, len(data))
    pcm = np.frombuffer(chunks[b"smpl"], "<i2").astype(np.float32) / np.float32(32768.0)

    def table(name: bytes, record: str) -> list[tuple[Any, ...]]:
        return list(struct.iter_unpack(record, chunks[name]))

    def bags(first: int, last: int, index: list[tuple[Any, ...]], generators: list[tuple[Any, ...]]) -> Any:
        return (dict(generators[index[b][0] : index[b + 1][0]]) for b in range(first, last))

    presets, instruments, samples = table(b"phdr", "<20sHHHIII"), table(b"inst", "<20sH"), table(b"shdr", "<20s5IBbHH")
    preset_bags, preset_generators = table(b"pbag", "<HH"), table(b"pgen", "<HH")
    instrument_bags, generators = table(b"ibag", "<HH"), table(b"igen", "<HH")
    zones: dict[tuple[int, int], list[_Zone]] = {}
    for preset, after in itertools.pairwise(presets):
        found = zones.setdefault((preset[2], preset[1]), [])
        for layer in bags(preset[3], after[3], preset_bags, preset_generators):
            if _INSTRUMENT not in layer:
                continue
            i = layer[_INSTRUMENT]
            for zone in bags(instruments[i][1], instruments[i + 1][1], instrument_bags, generators):
                if _SAMPLE in zone:
                    _, start, end, _, _, rate, own_key, *_ = samples[zone[_SAMPLE]]
                    keys, root_key = zone.get(_KEY_RANGE, 127 << 8), zone.get(_ROOT_KEY, own_key)
                    scale, looped = zone.get(_SCALE_TUNING, 100), zone.get(_LOOP, 0) != 0
                    found.append(_Zone(keys & 255, keys >> 8, pcm[start:end], rate, own_key, root_key, scale, looped))
    return zones


def _chunks(data: bytes, at: int, end: int) -> dict[bytes, bytes]:
    """The leaves of a RIFF file by name."""
    found: dict[bytes, bytes] = {}
    while at < end:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"LIST":
            found |= _chunks(data, at + 12, at + 8 + size)
        else:
            found[name] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return found
