"""Single notes from the General MIDI soundfont `TimGM6mb.sf2`, in tune and without clicks.

symusic's synthesiser does the rendering. It is fast, but 0.5.9 leaves four things out; the first three are mended here:

- A zone's root key (SoundFont 2.04, 8.1.2, generator 58) is ignored: a note sounds as if the sample's own key were the
  root, up to four octaves off. It is rendered at a rate that undoes the difference.
- Looped samples do not decay: plucked and struck sounds are given a decay.
- Many presets stop within 1 ms of the end of a note, which clicks: each note ends in a fade.
- Velocity changes nothing: loudness and brightness are the caller's.

A loop shorter than a sample period never returns from the synthesiser: play within the ranges of real instruments.
Nothing is written. The soundfont is the one inside the pretty_midi package, which is located but never imported (slow).
"""

import importlib.util
import itertools
import math
import struct
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

_INSTRUMENT, _KEY_RANGE, _SAMPLE, _ROOT_KEY = 41, 43, 53, 58  # generators of SoundFont 2.04, 8.1.2


def path() -> Path:
    """The soundfont. Raises `TwoPhaseError` when pretty_midi is not installed."""
    spec = importlib.util.find_spec("pretty_midi")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (found := Path(folder) / "TimGM6mb.sf2").is_file():
            return found
    raise TwoPhaseError("TimGM6mb.sf2: not found; the synthesiser needs it, install twophase[train]")


def note(bank: int, program: int, key: int, seconds: float, decay_s: float = math.inf) -> Floats:
    """One note, float32 [seconds * RATE] or a little more; it loses 60 dB in `decay_s`, and its end is faded.

    `bank` is 0 or `DRUMS`, `program` and `key` are MIDI numbers from 0. A program or key without a sample is silence.
    """
    stretch = 2.0 ** (root_offset(bank, program, key) / 12.0)
    score = core.ScoreSecond(480)
    track = core.TrackSecond("", program, bank == DRUMS)
    track.notes.append(core.NoteSecond(0.0, seconds / stretch, key, 100))
    score.tracks.append(track)
    pcm = np.array(_synthesiser(round(RATE * stretch)).render(score, False)[0], np.float32)
    if decay_s < math.inf:
        pcm *= np.exp(np.arange(len(pcm), dtype=np.float32) * np.float32(-6.9 / (decay_s * RATE)))
    fade = min(len(pcm), int(_RELEASE_S * RATE))
    pcm[len(pcm) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return pcm


def root_offset(bank: int, program: int, key: int) -> int:
    """Semitones between a zone's root key and its sample's own key: how much too high a note would sound."""
    return next((offset for low, high, offset in _zones().get((bank, program), ()) if low <= key <= high), 0)


@cache
def _synthesiser(rate: int) -> Any:
    return symusic.Synthesizer(str(path()), rate, 0)


@cache
def _zones() -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """(bank, program) -> (lowest key, highest key, offset) of each zone, in the soundfont's order."""
    data = path().read_bytes()
    chunks = _chunks(data, 12, len(data))

    def table(name: bytes, record: str) -> list[tuple[Any, ...]]:
        return list(struct.iter_unpack(record, chunks[name]))

    def bags(first: int, last: int, index: list[tuple[Any, ...]], generators: list[tuple[Any, ...]]) -> Any:
        return (dict(generators[index[b][0] : index[b + 1][0]]) for b in range(first, last))

    presets, instruments = table(b"phdr", "<20sHHHIII"), table(b"inst", "<20sH")
    preset_bags, preset_generators = table(b"pbag", "<HH"), table(b"pgen", "<HH")
    instrument_bags, generators = table(b"ibag", "<HH"), table(b"igen", "<HH")
    own_keys = [header[6] for header in table(b"shdr", "<20sIIIIIBbHH")]
    zones: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for preset, after in itertools.pairwise(presets):
        found = zones.setdefault((preset[2], preset[1]), [])
        for layer in bags(preset[3], after[3], preset_bags, preset_generators):
            if _INSTRUMENT not in layer:
                continue
            i = layer[_INSTRUMENT]
            for zone in bags(instruments[i][1], instruments[i + 1][1], instrument_bags, generators):
                if _SAMPLE in zone:
                    own, keys = own_keys[zone[_SAMPLE]], zone.get(_KEY_RANGE, 127 << 8)
                    found.append((keys & 255, keys >> 8, zone.get(_ROOT_KEY, own) - own))
    return zones


def _chunks(data: bytes, at: int, end: int) -> dict[bytes, bytes]:
    """The leaves of a RIFF file by name, but for the samples."""
    found: dict[bytes, bytes] = {}
    while at < end:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"LIST":
            found |= _chunks(data, at + 12, at + 8 + size)
        elif name != b"smpl":
            found[name] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return found
