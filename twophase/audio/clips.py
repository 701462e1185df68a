"""Clips: what one is, and any number of them in a file.

A list of clips is a file of JSON lines. `Clips` reads a line when its clip is asked for, so that a million clips cost
sixteen megabytes of memory, not one gigabyte. The file may be replaced or deleted meanwhile: an open one stays as it
was.
"""

import json
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from twophase.errors import TwoPhaseError
from twophase.files import disk_error

_DECODER = json.JSONDecoder()  # of text that is known to be UTF-8: a third of the time of `json.loads`


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of a dataset."""

    sha256: str
    path: str
    """Where it is: an absolute path, or another location of `sources.py`."""
    name: str
    """How people call it: its path below the data folder."""
    label: str
    group: str
    split: str

    def to_json(self) -> dict[str, str]:
        """Its fields by name (`dataclasses.asdict` takes ten times as long, and there may be a million)."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of_line(cls, line: bytes | str) -> "Clip":
        """The clip of a JSON line, which may say more than this."""
        known, _ = _DECODER.raw_decode(line if isinstance(line, str) else line.decode())
        return cls(*[known[name] for name in cls.__slots__])


class Clips(Sequence[Clip]):
    """The clips of a file of JSON lines, in the file's order or another one."""

    def __init__(self, path: Path) -> None:
        """The clips of the file at `path`."""
        self._take(os.open(path, os.O_RDONLY))
        with open(self._file, "rb", closefd=False) as file:
            starts = array("q", [0])
            for line in file:
                starts.append(starts[-1] + len(line))
        ends: NDArray[np.int64] = np.array(starts, np.int64)
        self._starts, self._ends = ends[:-1], ends[1:]

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> "Clips":
        """These clips, in a temporary file without a name that is gone with the last of its readers."""
        made = cls.__new__(cls)
        starts = array("q", [0])
        try:
            with TemporaryFile() as file:
                for clip in clips:
                    starts.append(starts[-1] + file.write(json.dumps(clip.to_json()).encode() + b"\n"))
                file.flush()
                made._take(os.dup(file.fileno()))
        except OSError as error:
            raise disk_error(Path(gettempdir()), error) from error
        ends: NDArray[np.int64] = np.array(starts, np.int64)
        made._starts, made._ends = ends[:-1], ends[1:]
        return made

    def at(self, index: NDArray[Any]) -> "Clips":
        """The clips of these numbers, int [n], in this order."""
        made = Clips.__new__(Clips)
        made._take(os.dup(self._file))
        made._starts, made._ends = self._starts[index], self._ends[index]
        return made

    def _take(self, file: int) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> "Clips": ...

    def __getitem__(self, index: int | slice) -> "Clip | Clips":
        if isinstance(index, slice):
            return self.at(np.arange(len(self))[index])
        start, end = int(self._starts[index]), int(self._ends[index])
        return Clip.of_line(os.pread(self._file, end - start, start))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Clip.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list


def read_clips(path: Path) -> Iterator[Clip]:
    """The clips of a file of JSON lines, one at a time. Raises `TwoPhaseError` where a line is none."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield Clip.of_line(line)
                except (ValueError, KeyError, TypeError):
                    raise TwoPhaseError(
                        f"{path}: line {number} is no clip, the file is damaged; run the step that wrote it again"
                    ) from None
    except OSError as error:
        raise disk_error(path, error) from error
