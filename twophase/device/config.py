"""How a device is set: `STATE/device.toml`, every value of which has a default.

    source = "-"            metrics_port = 9471      report_every_s = 900
    [listen] ...            how clips are cut: `listener.Listening`
    [spool] ...             what bounds the spool: `spool.Limits`
    [daily] ...             what may go up in a day: `budget.Daily`
    [update] ...            where gate updates come from, and how often: `Updating`

A file of an older version stays readable: values are added, never renamed or given another meaning. An unknown name is
refused, since it is a slip of the pen, or meant for a newer version.
"""

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from twophase.device.budget import Daily
from twophase.device.listener import Listening
from twophase.device.spool import Limits
from twophase.errors import UsageError


@dataclass(frozen=True)
class Updating:
    """Where gate updates come from."""

    url: str = ""
    """A static host of the update repository; the gateway's by default."""
    every_s: float = 21_600.0

    def __post_init__(self) -> None:
        if self.every_s < 60:
            raise UsageError(f"every_s = {self.every_s}: too often; 60 seconds or more is accepted")


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
        elif type(value) is type(default) or (isinstance(default, float) and type(value) is int):
            values[name] = type(default)(value)
        else:
            raise UsageError(f"{where}{name} = {value!r}: a {type(default).__name__} is accepted")
    return kind(**values)
