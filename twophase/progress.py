"""How a pipeline step says where it stands: one line of JSON that a person can read and a program can draw.

    twophase: {"step": "train the gate", "done": 3, "total": 12, "note": "loss 0.21"}

Steps run in processes of their own, here and in the cloud, and share nothing but their output; so progress, results
and errors are lines on standard output, in any log. `parse` finds them again, whatever a runner puts around them.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twophase.errors import TwoPhaseError
from twophase.files import disk_error

_LINE = re.compile(r"twophase: (\{.*\})\s*$")
_EVERY_S = 0.2


@dataclass(frozen=True)
class Event:
    """One line. `done` of `total` units are finished; `error` is set on the last line of a step that failed."""

    step: str
    done: int = 0
    total: int = 0
    note: str = ""
    error: str = ""
    exit_code: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    """What the step hands to whoever reads: paths, names."""


class Step:
    """What a running step reports through."""

    def __init__(self, name: str) -> None:
        self._name, self._done, self._last = name, 0, 0.0

    def at(self, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units are finished; at most five lines a second are printed."""
        now = time.monotonic()
        if done >= total or now - self._last >= _EVERY_S:
            self._last = now
            _print(Event(self._name, done, total, note))

    def advance(self, by: int, total: int) -> None:
        """Say that `by` more of `total` units are finished."""
        self._done += by
        self.at(self._done, total)

    def result(self, note: str, **values: Any) -> None:
        """Say what came of the step: in words, and as values for programs."""
        _print(Event(self._name, 1, 1, note, values=values))


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Run a step's work: what the user can mend ends the process with one line and its exit code, not a traceback."""
    _print(Event(name))
    try:
        yield Step(name)
    except TwoPhaseError as error:
        _print(Event(name, error=str(error), exit_code=error.exit_code))
        sys.exit(error.exit_code)
    except OSError as error:
        _print(Event(name, error=str(disk_error(Path(error.filename or "."), error)), exit_code=1))
        raise
    except Exception as error:
        _print(
            Event(name, error=f"unexpected {type(error).__name__}: {error}; its traceback is in the log", exit_code=1)
        )
        raise


def parse(line: str) -> Event | None:
    """The event in a line of a log, or None."""
    found = _LINE.search(line)
    try:
        return Event(**json.loads(found.group(1))) if found else None
    except (ValueError, TypeError):  # two processes wrote one line
        return None


def _print(event: Event) -> None:
    sys.stdout.write("twophase: " + json.dumps({k: v for k, v in asdict(event).items() if v or k == "step"}) + "\n")
    sys.stdout.flush()
