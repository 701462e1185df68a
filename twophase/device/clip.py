"""A clip as the device keeps it: a FLAC file that any player plays, its story in its tags, its checksum inside.

The story (device, sequence, capture time, gate, score) stands in the file's Vorbis comments, one `FIELD=value` each.
The last, `SHA256`, is the digest of the whole file with 64 zeros in its own place: one flipped bit anywhere is found.
The tags stand before the sound: a file's first `HEAD_BYTES` are enough to read its story.

FLAC's layout: RFC 9639, sections 8.1 (block header) and 8.6 (Vorbis comment).
"""

import io
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from twophase.audio.frontend import SAMPLE_RATE
from twophase.errors import TwoPhaseError
from twophase.files import digest

HEAD_BYTES = 2048
"""A file's story lies within its first so many bytes."""

PCM = NDArray[np.int16]

_CHECKSUM = b"SHA256="
_ZEROS = b"0" * 64
_VORBIS_COMMENT = 4
_LAST = 0x80
_VENDOR = b"twophase"


class Damaged(TwoPhaseError):
    """A clip file that is not what was written: cut short, changed, or another program's."""


@dataclass(frozen=True)
class Heard:
    """What the device says of a clip when it was heard."""

    device: str
    captured: str
    """When its first sample was heard, ISO 8601 in UTC, by the device's own clock."""
    clock: Literal["trusted", "untrusted"]
    """Whether that clock was plausible then."""
    gate: str
    """The release whose gate chose it."""
    front_end: str
    """That gate's front end, by fingerprint."""
    score: float
    """The clip's logit: the mean of its audible windows."""
    threshold: float
    """What the score was compared with."""
    windows: int
    """How many of its windows passed the gate; of an audit clip, how many it has."""
    kind: Literal["escalation", "audit"] = "escalation"
    """`audit`: the gate rejected it; it is a random sample that goes up so that recall can be measured."""

    @property
    def margin(self) -> float:
        """How sure the gate was. An audit clip's is 0: which of them are kept must not depend on their score."""
        return self.score - self.threshold if self.kind == "escalation" else 0.0


@dataclass(frozen=True)
class Story(Heard):
    """A clip's story in the spool: what was heard, and its place in the device's order."""

    sequence: int = 0

    @classmethod
    def of(cls, heard: Heard, sequence: int) -> Self:
        """`heard`, as clip number `sequence`."""
        return cls(**asdict(heard), sequence=sequence)


def utc(timestamp: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")


def pack(pcm: PCM, story: Story) -> bytes:
    """A FLAC file: int16 [n >= 1] at 16 kHz, mono, with its story and checksum."""
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    encoded = file.getvalue()
    start, end = _comment_block(encoded)
    fields = [f"{name.upper()}={value}".encode() for name, value in asdict(story).items()]
    fields.append(_CHECKSUM + _ZEROS)
    body = _sized(_VENDOR) + len(fields).to_bytes(4, "little") + b"".join(map(_sized, fields))
    header = bytes([encoded[start]]) + len(body).to_bytes(3, "big")
    whole = encoded[:start] + header + body + encoded[end:]
    at = start + len(header) + len(body) - len(_ZEROS)
    return whole[:at] + digest(whole).encode() + whole[at + len(_ZEROS) :]


def story_of(head: bytes) -> Story:
    """The story in a file's first `HEAD_BYTES`. Raises `Damaged`; what follows the tags is not looked at."""
    return _read(head)[0]


def check(data: bytes) -> Story:
    """The story of a whole file whose every bit is as it was written. Raises `Damaged`."""
    story, at = _read(data)
    stated = data[at : at + len(_ZEROS)]
    if digest(data[:at] + _ZEROS + data[at + len(_ZEROS) :]).encode() != stated:
        raise Damaged("its checksum does not fit: it was changed after it was written")
    return story


def sound(data: bytes) -> PCM:
    """The samples of a packed clip, int16 [n]."""
    pcm, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    return np.asarray(pcm, np.int16)


def _sized(field: bytes) -> bytes:
    return len(field).to_bytes(4, "little") + field


def _comment_block(data: bytes) -> tuple[int, int]:
    """Where the Vorbis comments begin, header included, and end. Raises `Damaged`."""
    at = 4
    while data[:4] == b"fLaC" and at + 4 <= len(data):
        kind, end = data[at], at + 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        if kind & ~_LAST == _VORBIS_COMMENT:
            return at, end
        if kind & _LAST:
            break
        at = end
    raise Damaged("it is no FLAC file with tags")


def _read(data: bytes) -> tuple[Story, int]:
    """The story, and where the checksum's digits begin."""
    start, end = _comment_block(data)
    at = start + 4
    at += 4 + int.from_bytes(data[at : at + 4], "little") + 4  # past the vendor and the count
    tags: dict[str, str] = {}
    last = b""
    while at + 4 <= end <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        last = data[at + 4 : at + 4 + size]
        name, _, value = last.partition(b"=")
        tags[name.decode("utf-8", "replace").lower()] = value.decode("utf-8", "replace")
        at += 4 + size
    if at != end or not last.startswith(_CHECKSUM) or len(last) != len(_CHECKSUM) + len(_ZEROS):
        raise Damaged("its tags are cut short or changed")
    del tags["sha256"]
    try:
        floats = {name: float(tags[name]) for name in ("score", "threshold")}
        counts = {name: int(tags[name]) for name in ("windows", "sequence")}
        story = Story(**{**tags, **floats, **counts})  # type: ignore[arg-type]
    except (KeyError, ValueError, TypeError):
        raise Damaged("its tags do not tell a clip's story") from None
    return story, end - len(_ZEROS)
