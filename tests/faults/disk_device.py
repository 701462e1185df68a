"""What a power cut leaves of a disk: operations recorded by `disk_device.c`, replayed without what was not synced.

The model is harsher than a journaling file system: until a file is synced, any of its writes may be missing, whole or
from some sector on, in any combination; until a folder is synced, any change of its entries may be missing, in any
combination (a renamed file may be under both names, or under none). Syncing a file says nothing about its folder.
"""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
SECTOR = 512


def build(folder: Path) -> Path:
    """Compile the shim. Raises `FileNotFoundError` where there is no C compiler."""
    library = folder / "disk.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def run(shim: Path, program: str, *arguments: Any, root: Path, log: Path | None = None, fault: str = "") -> "Ran":
    """Run a Python program on the recorded disk; what it writes to standard output is what it says."""
    env = {**os.environ, "LD_PRELOAD": str(shim), "DISK_ROOT": str(root), "DISK_SAY": "1", "DISK_FAULT": fault}
    if log:
        env["DISK_LOG"] = str(log)
    command = [sys.executable, "-c", program, str(root), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    return Ran(done.returncode, done.stdout.splitlines(), done.stderr)


@dataclass
class Ran:
    """How a program ended, what it said, line by line, and its standard error."""

    code: int
    said: list[str]
    errors: str


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, bytes), or (size, None)


@dataclass
class _Folder:
    now: dict[str, "_File | _Folder"] = field(default_factory=dict)
    synced: dict[str, "_File | _Folder"] = field(default_factory=dict)
    pending: list[tuple[str, "_File | _Folder | None"]] = field(default_factory=list)

    def set(self, name: str, node: "_File | _Folder | None") -> None:
        self.pending.append((name, node))
        _apply_entry(self.now, name, node)


@dataclass
class Disk:
    """A disk below one folder: what is on it, and what of that is sure."""

    at: Path
    root: _Folder = field(default_factory=_Folder)
    said: bytearray = field(default_factory=bytearray)

    def do(self, kind: str, a: str, b: bytes, number: int) -> None:
        """One recorded operation."""
        if kind == "!":
            self.said += b
            return
        folder, name = self._place(a)
        if kind == "c":
            folder.set(name, _File())
        elif kind == "m":
            folder.set(name, _Folder())
        elif kind in "ud":
            folder.set(name, None)
        elif kind == "r":
            node = folder.now[name]
            folder.set(name, None)
            target, new = self._place(b.decode())
            target.set(new, node)
        else:
            node = folder.now[name] if name else self.root
            if kind == "s":
                _settle(node)
            elif isinstance(node, _File):  # nobody writes to a folder
                node.pending.append((number, b if kind == "w" else None))

    def cut(self, chance: random.Random, into: Path) -> None:
        """What is found after the power was cut here, as one of the many ways that it may be found."""
        _found(self.root, chance, chance.choice((0.0, 0.3, 0.7, 1.0)), into)

    def _place(self, path: str) -> tuple[_Folder, str]:
        parts = Path(path).relative_to(self.at).parts
        node = self.root
        for part in parts[:-1]:
            step = node.now[part]
            assert isinstance(step, _Folder)
            node = step
        return node, parts[-1] if parts else ""


def records(log: Path) -> Iterator[tuple[str, str, bytes, int]]:
    """The operations of a log."""
    data, at = log.read_bytes(), 0
    while at < len(data):
        kind, la, lb, number = struct.unpack_from("<cIIq", data, at)
        at += 17
        yield kind.decode(), data[at : at + la].decode(), data[at + la : at + la + lb], number
        at += la + lb


def _apply_entry(entries: dict[str, "_File | _Folder"], name: str, node: "_File | _Folder | None") -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _write(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    else:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


def _settle(node: "_File | _Folder") -> None:
    if isinstance(node, _File):
        for offset, data in node.pending:
            _write(node.content, offset, data)
    else:
        node.synced = dict(node.now)
    node.pending.clear()


def _found(node: "_File | _Folder", chance: random.Random, kept: float, into: Path) -> None:
    if isinstance(node, _File):
        content = bytearray(node.content)
        for offset, data in node.pending:
            if chance.random() < kept:
                if data and chance.random() < 0.2:
                    data = data[: chance.randrange(0, len(data), SECTOR)]
                _write(content, offset, data)
        into.write_bytes(content)
        return
    into.mkdir(parents=True, exist_ok=True)
    entries = dict(node.synced)
    for name, child in node.pending:
        if chance.random() < kept:
            _apply_entry(entries, name, child)
    for name, child in entries.items():
        _found(child, chance, kept, into / name)
