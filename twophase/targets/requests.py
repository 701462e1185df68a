"""Clips as requests that a place lets through: grouped as long as they fit, made smaller where they do not.

A clip goes as the file that it is. Where that alone is over a place's limit it goes as what the models hear of it,
16 kHz mono FLAC; what is still over is refused, with the limit's name.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from twophase.audio.decode import decode
from twophase.audio.frontend import SAMPLE_RATE
from twophase.errors import TwoPhaseError
from twophase.serving.instances import LIMITS

SOUND_S = LIMITS.windows * 0.49
"""Sound that the server takes in a request, in seconds: its windows are 0.496 s apart."""
_CLIPS, _FRAME = 100, 64  # clips a request; bytes of JSON around a clip and around a request


BLAMED = frozenset({400, 413, 415, 422})
"""Statuses that say that a clip is what is wrong. All others may pass: credentials, a limit, an endpoint on its way."""


class ClipRefused(TwoPhaseError):
    """The place does not take this clip, and would not take it the next time."""

    def __init__(self, code: int, said: str, where: str) -> None:
        """`code` is one of `BLAMED`; `said` is what is wrong, without `where` that was found."""
        super().__init__(f"{where}: {said}")
        self.code, self.said = code, said


def refusal(code: int, said: str, where: str, status: str = "") -> TwoPhaseError:
    """What an answer that is no success means to who asked: `ClipRefused` where the clip is what is wrong.

    `status` is Google's name of the error: an endpoint without traffic is 400 too, and `FAILED_PRECONDITION`.
    """
    if code in BLAMED and status != "FAILED_PRECONDITION":
        return ClipRefused(code, said, f"{where}: refused with {code}")
    return TwoPhaseError(f"{where}: refused with {code}: {said}")


@dataclass(frozen=True)
class Limits:
    """What a place lets through in one request."""

    place: str
    """How errors call it."""
    request_bytes: int
    seconds: int
    """How long it waits for an answer."""


def requests(clips: Sequence[Path], limits: Limits) -> Iterator[list[bytes]]:
    """The clips in order, as many a request as fit. Raises `TwoPhaseError` where one alone does not."""
    group: list[bytes] = []
    size, seconds = _FRAME, 0.0
    for clip in clips:
        data = sent(clip, limits)
        more_s = _seconds(data)
        if group and (size + _size(data) > limits.request_bytes or seconds + more_s > SOUND_S or len(group) == _CLIPS):
            yield group
            group, size, seconds = [], _FRAME, 0.0
        group.append(data)
        size, seconds = size + _size(data), seconds + more_s
    if group:
        yield group


def sent(clip: Path, limits: Limits) -> bytes:
    """A clip as a request carries it. Raises `TwoPhaseError`, and `ClipRefused` when it is too long for the place."""
    try:
        data = clip.read_bytes()
    except OSError as error:
        raise TwoPhaseError(f"{clip}: cannot be read ({error.strerror}); give clip files") from None
    if _FRAME + _size(data) > limits.request_bytes:
        try:
            pcm = decode(data, str(clip))
        except TwoPhaseError as error:
            raise ClipRefused(400, str(error).removeprefix(f"{clip}: "), str(clip)) from None
        file = io.BytesIO()
        soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        data = file.getvalue()
    if _FRAME + _size(data) > limits.request_bytes:
        raise ClipRefused(
            413,
            f"takes {_size(data)} bytes even as 16 kHz FLAC, {limits.place} takes {limits.request_bytes} a request; "
            "cut it into shorter clips",
            str(clip),
        )
    return data


def wav(window: Any) -> bytes:
    """Samples at 16 kHz as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, window, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def body(clips: Sequence[bytes]) -> dict[str, Any]:
    """The request that every contract of the server takes."""
    return {"instances": [{"audio_bytes": {"b64": base64.b64encode(data).decode()}} for data in clips]}


def _size(data: bytes) -> int:
    return _FRAME + 4 * -(-len(data) // 3)


def _seconds(data: bytes) -> float:
    """A clip's length by its header, which the server does not trust and who sends it may."""
    try:
        return float(soundfile.info(io.BytesIO(data)).duration)
    except soundfile.LibsndfileError:
        return 0.0  # the server says what is wrong with it
