"""Clips in: any WAV, FLAC, Ogg or MP3 file becomes mono float32 at 16 kHz.

Decoding trusts nothing: the header's length, rate and channels are not believed (the file is read in blocks of bounded
size up to `MAX_CLIP_S`, and must then hold what the header promised), channels are averaged, samples must be finite.
Every refusal is a `BadClip` that names the file and says what would be accepted. Silence is no refusal here: a device
may hear it; data generation leaves it out.
"""

import io
import struct
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

RATES = (1_000, 768_000)
"""Lowest and highest sampling rate that is believed, in Hz."""

_BLOCK = 1 << 18  # samples of all channels


class BadClip(TwoPhaseError):
    """A file that cannot be used as a clip; the message names it and says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def decode(source: Path | bytes, name: str | None = None) -> Floats:
    """One clip as float32 [n >= 1] in about [-1, 1], mono, 16 kHz.

    `source` is a file or its bytes; `name` is how errors call it. Raises `BadClip`.
    """
    return resample(*decode_native(source, name), name or _label(source))


def decode_native(source: Path | bytes, name: str | None = None) -> tuple[Floats, int]:
    """One clip at its own rate: float32 [n >= 1], mono, and the samples a second. Raises `BadClip`."""
    label = name or _label(source)
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise BadClip(label, f"cannot be read ({error.strerror}); give a readable file") from None
    if not data:
        raise BadClip(label, "the file is empty; a WAV, FLAC, Ogg or MP3 file is accepted")
    _check_length(data, label)
    pcm, rate = _read(data, label)
    if not np.isfinite(pcm).all():
        raise BadClip(label, "has NaN or infinite samples; only finite samples are accepted, export it again")
    return pcm, rate


def resample(pcm: Floats, rate: int, label: str = "clip") -> Floats:
    """A clip at 16 kHz, float32 [n >= 1]. Raises `BadClip` when nothing is left of it."""
    if rate != SAMPLE_RATE:
        pcm = soxr.resample(pcm, rate, SAMPLE_RATE)
    if len(pcm) == 0:
        raise BadClip(label, "has no samples at 16 kHz; a clip needs at least one")
    return np.ascontiguousarray(pcm, dtype=np.float32)


def _label(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "clip"


def _read(data: bytes, label: str) -> tuple[Floats, int]:
    blocks: list[Floats] = []
    found = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            promised = 0 if file.format == "MP3" else int(file.frames)  # of an MP3 that is an estimate
            if not RATES[0] <= rate <= RATES[1]:
                raise BadClip(label, f"claims {rate} samples a second; {RATES[0]} to {RATES[1]} Hz are accepted")
            size = max(1, _BLOCK // int(file.channels))
            while True:
                block = file.read(size, dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                found += len(block)
                if found > MAX_CLIP_S * rate:
                    raise BadClip(label, f"is longer than {MAX_CLIP_S} s; cut it into clips of at most {MAX_CLIP_S} s")
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
    except soundfile.LibsndfileError as error:
        raise BadClip(label, f"is no WAV, FLAC, Ogg or MP3 file that can be decoded ({error.error_string})") from None
    if not found:
        raise BadClip(label, "has zero samples; a clip needs at least one")
    if found < promised:
        raise BadClip(label, f"promises {promised} samples and holds {found}; it was cut short, copy it again")
    return np.concatenate(blocks), rate


def _check_length(data: bytes, label: str) -> None:
    """Raise `BadClip` for a WAV file cut short, which libsndfile takes for a shorter clip.

    Writers that cannot seek back leave 0 or 0xFFFFFFFF for a length; that is a custom, not a lie.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        if kind == b"data":
            held = len(data) - at - 8
            if held < size < 0xFFFFFF00:
                raise BadClip(label, f"promises {size} bytes of sound, holds {held}; it was cut short, copy it again")
            return
        at += 8 + size + size % 2
