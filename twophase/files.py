"""Files that are whole or absent: written aside, synced, renamed; and the digests that prove it.

A crash leaves at most a `.tmp-<machine>.<process>-<name>` beside the target, which nothing reads and which the next
writer of that target on that machine removes, once its process is gone.
"""

import errno
import fcntl
import glob
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from twophase.errors import TwoPhaseError

JSON = Any
"""A JSON value; whoever reads one checks its shape."""


def digest(data: bytes | Path) -> str:
    """`sha256` of bytes or of a file's content, 64 hex digits."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: JSON) -> str:
    """`sha256` of a JSON value in canonical form (sorted keys, no spaces)."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def code_digest(*modules: str) -> str:
    """`sha256` of modules' source files, and of all modules of those that are packages; nothing is imported.

    What is kept by content is kept by the code that made it too: another version of the code makes it again.
    """
    files: list[Path] = []
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"there is no module {name}")
        origin = Path(spec.origin)
        files += sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]
    return digest_of([[path.name, digest(path)] for path in files])


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes `path`'s place, synced, when the block ends well, and is gone when it does not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error) from error
    aside = _aside(path)
    try:
        with aside.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
        sync(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: JSON) -> None:
    """Write a JSON value, indented, whole or not at all."""
    with replacing(path, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def read_json(path: Path, what: str) -> JSON:
    """Read a JSON value; `what` is how the error calls the file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TwoPhaseError(f"{path}: there is no such {what}") from None
    except (ValueError, OSError) as error:
        raise TwoPhaseError(f"{path}: this {what} cannot be read ({error}); make it again") from None


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory that becomes `path` when the block ends well. `path` must not exist, or be empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise TwoPhaseError(f"{path}: already exists and is not an empty folder; give a new one")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        aside.mkdir()
        yield aside
        sync_tree(aside)
        aside.rename(path)
        sync(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Where this process writes what becomes `path`; what dead processes left there is removed."""
    machine = socket.gethostname()
    for left in path.parent.glob(f".tmp-{glob.escape(machine)}.*-{glob.escape(path.name)}"):
        process = left.name.removeprefix(f".tmp-{machine}.").split("-")[0]
        if process == str(os.getpid()) or not Path(f"/proc/{process}").exists():
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".tmp-{machine}.{os.getpid()}-{path.name}")


def private(folder: Path) -> None:
    """Make a folder that nobody but its owner enters; one that is there becomes so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # somebody else's, or on a disk that keeps no modes
        folder.chmod(0o700)


def sync(directory: Path) -> None:
    """Make a directory's entries durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Make every file and folder below `root` durable."""
    for folder, _, names in os.walk(root):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync(Path(folder))


@contextmanager
def locked(folder: Path, what: str, shared: bool = False) -> Iterator[None]:
    """Hold `folder` for this process alone, or with others that share it; who comes too late is told who holds it.

    The lock is the kernel's (`flock`): it ends with the process, however that ends. Raises `TwoPhaseError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder, what)
        with suppress(OSError):  # a full disk costs the holder's name, not the lock
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), str(os.getpid()).encode(), 0)
        yield


def refuse_locked(folder: Path, what: str) -> None:
    """Raise as `locked` does where another process holds `folder` for itself alone; a look, which writes nothing."""
    with suppress(FileNotFoundError), (folder / ".lock").open() as file:
        _lock(file, fcntl.LOCK_SH, folder, what)


def _lock(file: IO[str], kind: int, folder: Path, what: str) -> None:
    for wait in (0.05, 0.1, 0.2, 0.4, 0.0):  # whoever looks whether it is held holds it for a moment
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(wait)
    file.seek(0)
    holder = file.read().strip() or "unknown"
    raise TwoPhaseError(f"{folder}: {what} is in use by process {holder}; wait for it to end, or give another folder")


def disk_error(path: Path, error: OSError) -> TwoPhaseError:
    """What an `OSError` while writing means to a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TwoPhaseError(f"{path}: the disk is full; free some room and run again, what is finished is kept")
    return TwoPhaseError(f"{path}: {error.strerror or error}; give a folder that can be read and written")
