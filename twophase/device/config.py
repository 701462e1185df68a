"""How a device is set: `STATE/device.toml`, every value of which has a default.

    source = "-"            metrics_port = 9471      report_every_s = 900
    [listen] ...            how clips are cut: `listener.Listening`
    [spool] ...             what bounds the spool: `room.Limits`
    [daily] ...             what may go up in a day: `budget.Daily`
    [update] ...            where gate updates come from, and how often: `Updating`

A file of an older version stays readable: values are added, never renamed or given another meaning. An unknown name is
refused, since it is a slip of the pen, or meant for a newer version.
"""

import math
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from twophase.audio.frontend import SAMPLE_RATE
from twophase.device.budget import Daily
from twophase.device.listener import Listening
from twophase.device.room import Limits
from twophase.errors import UsageError

LONGEST_S = 30 * 86_400.0
"""The longest time between two things that are done again and again."""


@dataclass(frozen=True)
class Updating:
    """Where gate updates come from."""

    url: str = ""
    """A static host of the update repository; the gateway's by default."""
    every_s: float = 21_600.0

    def __post_init__(self) -> None:
        if not 60 <= self.every_s <= LONGEST_S:
            raise UsageError(f"every_s = {self.every_s}: 60 seconds to 30 days ({LONGEST_S:g}) are accepted")


@dataclass(frozen=True)
class Config:
    """All settings of one device."""

    source: str = "-"
    """Where sound comes from: `-`, a FIFO, `microphone[:DEVICE]`, a clip, or a folder of clips."""
    metrics_port: int = 9471
    """`/metrics` and `/status` on loopback; 0 for none."""
    report_every_s: float = 900.0
    """How often the gateway hears how this device does."""
    listen: Listening = field(default_factory=Listening)
    spool: Limits = field(default_factory=Limits)
    daily: Daily = field(default_factory=Daily)
    update: Updating = field(default_factory=Updating)

    def __post_init__(self) -> None:
        if not 0 <= self.metrics_port < 1 << 16:
            raise UsageError(f"metrics_port = {self.metrics_port}: is no port; 1 to 65535, or 0 for none, is accepted")
        if not 60 <= self.report_every_s <= LONGEST_S:
            raise UsageError(
                f"report_every_s = {self.report_every_s}: 60 seconds to 30 days ({LONGEST_S:g}) are accepted"
            )
        longest = round(self.listen.max_clip_s * 1.01 * 2 * SAMPLE_RATE)  # what FLAC cannot make smaller
        if 0 < self.daily.bytes < longest:
            raise UsageError(
                f"daily.bytes = {self.daily.bytes}: a clip of max_clip_s = {self.listen.max_clip_s} may have {longest} "
                "and would never go up; more bytes, or a smaller max_clip_s, is accepted"
            )


def read(path: Path) -> Config:
    """The settings in a file; the defaults when there is no file. Raises `UsageError` naming what is not accepted."""
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        return _made(Config, tomllib.loads(text), "")  # type: ignore[no-any-return]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is no TOML ({error})") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _made(kind: Any, given: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    values = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{where}{name}: is not known; {', '.join(where + n for n in known)} are accepted")
        default = getattr(kind(), name)
        if is_dataclass(default):
            if not isinstance(value, dict):
                raise UsageError(f"{where}{name} = {value!r}: is a table: write [{name}] and its values below")
            values[name] = _made(type(default), value, f"{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}{name} = {value}: a finite number is accepted")
        elif type(value) is type(default) or (isinstance(default, float) and type(value) is int):
            values[name] = type(default)(value)
        else:
            raise UsageError(f"{where}{name} = {value!r}: a {type(default).__name__} is accepted")
    return kind(**values)
