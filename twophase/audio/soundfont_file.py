"""Single notes from any SoundFont 2 file, by TinySoundFont: envelopes, filters, loops and velocity layers as it says.

For pretraining alone, where more players of each instrument are wanted than the embedded soundfont has. The renderer is
MIT, but its package requires PyAudio, which nothing here needs and which has to be compiled: it is in no extra; install
it with `pip install --no-deps tinysoundfont`. Files are only read.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from twophase.audio.frontend import Floats
from twophase.audio.soundfont import DRUMS, RATE
from twophase.errors import TwoPhaseError

_TAIL_S = 0.5


def note(file: Path, bank: int, program: int, key: int, seconds: float, velocity: int) -> Floats:
    """One note held for `seconds`, and half a second of what follows, float32 [n] at `soundfont.RATE`.

    `bank` is 0 or `DRUMS`; `program`, `key` and `velocity` are MIDI numbers. What the file does not have is silence.
    Raises `TwoPhaseError` when the file cannot be played.
    """
    synthesiser, loaded = _load(file)
    held, tail = int(seconds * RATE), int(_TAIL_S * RATE)
    if synthesiser.sfpreset_name(loaded, bank, program) is None:
        return np.zeros(held + tail, np.float32)
    synthesiser.program_select(0, loaded, bank, program, bank == DRUMS)
    synthesiser.noteon(0, key, velocity)
    first = bytes(synthesiser.generate(held))  # bytes: the buffer may be used again
    synthesiser.noteoff(0, key)
    pcm = np.frombuffer(first + bytes(synthesiser.generate(tail)), np.float32).reshape(-1, 2).mean(axis=1)
    synthesiser.sounds_off()
    synthesiser.generate(RATE // 50)  # silence fades in within some samples, and is not this note's
    return np.asarray(pcm, np.float32)


@cache
def _load(file: Path) -> tuple[Any, int]:
    try:
        import tinysoundfont
    except ImportError:
        raise TwoPhaseError(f"{file}: needs TinySoundFont; pip install --no-deps tinysoundfont") from None
    synthesiser = tinysoundfont.Synth(samplerate=RATE)
    try:
        return synthesiser, synthesiser.sfload(str(file))
    except (RuntimeError, tinysoundfont.SoundFontException):
        raise TwoPhaseError(f"{file}: cannot be played; give a SoundFont 2 file") from None
