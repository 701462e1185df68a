"""Clips in: any WAV, FLAC, Ogg or MP3 file becomes mono float32 at 16 kHz.

Decoding trusts nothing: the header's length is not believed (the file is read in blocks up to `MAX_CLIP_S`), channels
are averaged, samples must be finite. Every refusal is a `BadClip` that names the file and says what would be accepted.
"""

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from twophase.audio.frontend import SAMPLE_RATE, Floats
from twophase.errors import TwoPhaseError

MAX_CLIP_S = 600
"""Longest clip that is taken: what is longer is a recording session, to be cut into clips first."""

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3")
"""File names that are taken for clips, in lower case."""

_BLOCK = 1 << 18


class BadClip(TwoPhaseError):
    """A file that cannot be used as a clip; the message names it and says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def decode(source: Path | bytes, name: str | None = None) -> Floats:
    """One clip as float32 [n >= 1] in about [-1, 1], mono, 16 kHz.

    `source` is a file or its bytes; `name` is how errors call it. Raises `BadClip`.
    """
    label = name or (str(source) if isinstance(source, Path) else "clip")
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise BadClip(label, f"cannot be read ({error.strerror}); give a readable file") from None
    if not data:
        raise BadClip(label, "the file is empty; a WAV, FLAC, Ogg or MP3 file is accepted")
    pcm, rate = _read(data, label)
    if not np.isfinite(pcm).all():
        raise BadClip(label, "has NaN or infinite samples; only finite samples are accepted, export it again")
    if rate != SAMPLE_RATE:
        pcm = soxr.resample(pcm, rate, SAMPLE_RATE)
    if len(pcm) == 0:
        raise BadClip(label, "has no samples at 16 kHz; a clip needs at least one")
    return np.ascontiguousarray(pcm, dtype=np.float32)


def _read(data: bytes, label: str) -> tuple[Floats, int]:
    blocks: list[Floats] = []
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            left = MAX_CLIP_S * rate
            while True:
                block = file.read(min(_BLOCK, left + 1), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                left -= len(block)
                if left < 0:
                    raise BadClip(label, f"is longer than {MAX_CLIP_S} s; cut it into clips of at most {MAX_CLIP_S} s")
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
    except soundfile.LibsndfileError as error:
        raise BadClip(label, f"is no WAV, FLAC, Ogg or MP3 file that can be decoded ({error.error_string})") from None
    if not blocks:
        raise BadClip(label, "has zero samples; a clip needs at least one")
    return np.concatenate(blocks), rate
