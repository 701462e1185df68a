"""The image store: packs of images in a workdir, in a folder that machines share, or in a bucket.

    STORE/<front end>/<first>-<last>-<digest>.npy      uint8 [rows, frames, mels], memory-mapped by readers
    STORE/<front end>/<first>-<last>-<digest>.jsonl    one line a clip: an `Entry`

A pack is named by the clips in it (their first and last digest, and a digest of all) and never changes. So writing it
twice gives the same bytes, two writers cannot harm each other, and a reader of some clips opens only the packs in
whose range they lie. The `.jsonl` comes last and is the pack's word that it is there: a crash leaves nothing that is
taken for whole. A pack that does not fit its `.jsonl` is passed over: its clips are made again.

Of a bucket, lists are read in place and images through a cache on this machine, `$XDG_CACHE_HOME/twophase/images`: a
pack that is needed is brought whole, checked, and memory-mapped like any other. Whatever more than one run may use is
deleted only by forgetting: another run may be reading what this one no longer needs.
"""

import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio import sources
from twophase.audio.frontend import FRONT_END, Image
from twophase.errors import TwoPhaseError
from twophase.files import digest, digest_of, disk_error, sync


@dataclass(frozen=True, slots=True)
class Entry:
    """What a pack knows of one clip. `error` is empty, or says why it has no rows and never will."""

    sha256: str
    start: int
    rows: int
    crc: int = 0
    """Of the rows' bytes (CRC-32)."""
    seconds: float = 0.0
    rate: int = 0
    """Samples a second as recorded."""
    peak: float = 0.0
    clipped: float = 0.0
    """Share of samples at full scale."""
    error: str = ""


Where = dict[str, tuple[str, Entry]]
"""By a clip's digest: the name of the pack that holds it, and its entry there."""


class Store:
    """The packs of this program's front end at a place: a folder, or the URL of one in a bucket."""

    def __init__(self, place: Path | str) -> None:
        self.place = str(place).rstrip("/")
        self.remote = sources.is_url(self.place)
        self._home = f"{self.place}/{FRONT_END.fingerprint}"
        self._folder = _cache(self.place) / FRONT_END.fingerprint if self.remote else Path(self._home)

    def lookup(self, shas: Iterable[str]) -> Where:
        """Where the images of clips are: every digest that a whole pack holds. Raises `sources.Unreachable`."""
        wanted = set(shas)
        where: Where = {}
        for name, images_size in self._packs(wanted):
            try:
                entries = self.entries(name)
            except sources.Unreachable as error:
                if not error.gone:
                    raise
                continue  # somebody is forgotten at this moment
            except TwoPhaseError:
                continue  # its clips are made again, under the same name
            if images_size == _size_of(sum(e.rows for e in entries)):
                for entry in entries:
                    if entry.sha256 in wanted:
                        where.setdefault(entry.sha256, (name, entry))
        return where

    def entries(self, name: str) -> list[Entry]:
        """What a pack's list says of its clips. Raises `TwoPhaseError` when it is damaged or cannot be read."""
        place = f"{self._home}/{name}.jsonl"
        try:
            return [Entry(**json.loads(line)) for line in sources.read(place).splitlines()]
        except (ValueError, TypeError) as error:
            raise TwoPhaseError(
                f"{place}: this list of a pack cannot be read ({error}); delete it and run again"
            ) from None

    def images(self, name: str) -> Image:
        """A pack's images, memory-mapped. Raises `TwoPhaseError` when they are damaged or cannot be read."""
        path = self._folder / f"{name}.npy"
        if self.remote and not path.exists():
            self._fetch(name, path)
        return open_pack(path)

    def copies(self, where: Where) -> Iterator[tuple[Image, Entry]]:
        """The images of clips out of the packs they lie in. Raises `TwoPhaseError` where bits have flipped."""
        opened: dict[str, Image] = {}
        for _, (name, entry) in sorted(where.items()):
            if name not in opened:
                opened[name] = self.images(name)
            images = opened[name][entry.start : entry.start + entry.rows]
            _check(images, entry, f"{self._home}/{name}.npy")
            yield images, entry

    def write(self, made: Iterable[tuple[Image, Entry]]) -> str | None:
        """Write clips, which come in the order of their digests, as one pack; its name, or None where there are none.

        Memory holds one clip's images. Raises `TwoPhaseError` when disk or bucket refuse; then there is no pack.
        """
        aside = self._folder / f".tmp-{uuid.uuid4().hex}"  # writers may be on machines of their own
        aside_list = aside.with_suffix(".jsonl")
        entries: list[Entry] = []
        start = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                _write_header(file, 0)
                for images, entry in made:
                    entries.append(replace(entry, start=start))
                    start += len(images)
                    file.write(np.ascontiguousarray(images).data)
                file.seek(0)
                _write_header(file, start)
                file.flush()
                os.fsync(file.fileno())
            if not entries:
                return None
            with aside_list.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(e)) + "\n" for e in entries)
                file.flush()
                os.fsync(file.fileno())
            name = f"{entries[0].sha256[:8]}-{entries[-1].sha256[:8]}-{digest_of([e.sha256 for e in entries])[:16]}"
            aside.rename(self._folder / f"{name}.npy")
            sync(self._folder)
            if self.remote:
                sources.upload(self._folder / f"{name}.npy", f"{self._home}/{name}.npy")
                sources.upload(aside_list, f"{self._home}/{name}.jsonl")
            else:
                aside_list.rename(self._folder / f"{name}.jsonl")
                sync(self._folder)
        except OSError as error:
            raise disk_error(self._folder, error) from error
        finally:
            for left in (aside, aside_list):
                with suppress(OSError):
                    left.unlink()
        return name

    def prune(self, used: Iterable[str]) -> int:
        """Delete from this machine the packs that are not `used`, and what crashes left; count them.

        Not for a folder that several runs use. What is cached of a bucket stays a day: its reader may be at work.
        """
        keep = set(used)
        doomed = [p for p in self._folder.glob("*-*-*.jsonl") if p.stem not in keep]
        for pack in doomed:
            pack.unlink(missing_ok=True)  # first, so that a crash leaves no list without images
        for images in self._folder.glob("*-*-*.npy"):
            if images.stem not in keep and (not self.remote or _older_than_a_day(images)):
                images.unlink(missing_ok=True)
        for aside in filter(_older_than_a_day, self._folder.glob(".tmp-*")):  # nobody writes one pack for a day
            aside.unlink(missing_ok=True)
        return len(doomed)

    def forget(self, digests: set[str]) -> int:
        """Take clips out of the packs of every front end; return how many were in this one's.

        Packs of others are deleted where they may hold such clips: they are not ours to read, and made again when they
        are needed. What this machine caches of a bucket is deleted too.
        """
        count = 0
        for name, _ in self._packs(digests):
            held = {e.sha256: (name, e) for e in self.entries(name)}
            count += len(held.keys() & digests)
            if held.keys() & digests:
                self.write(self.copies({sha: at for sha, at in held.items() if sha not in digests}))
                sources.remove(f"{self._home}/{name}.jsonl")
                sources.remove(f"{self._home}/{name}.npy")
        starts = _starts(digests)
        for file in list(sources.listing(self.place)):
            front_end, _, name = file.name.rpartition("/")
            if front_end != FRONT_END.fingerprint and _within(name.rpartition(".")[0], starts):
                sources.remove(file.location)
        if self.remote:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
        return count

    def _packs(self, shas: Iterable[str]) -> list[tuple[str, int]]:
        """The packs in whose range any of these digests lies, with the size of their images, the largest first."""
        starts, lists, sizes = _starts(shas), [], {}
        for file in sources.listing(self._home):
            stem, _, kind = file.name.rpartition(".")
            if _within(stem, starts):
                if kind == "jsonl":
                    lists.append((-file.size, stem))
                else:
                    sizes[stem] = file.size
        return [(name, sizes.get(name, -1)) for _, name in sorted(lists)]

    def _fetch(self, name: str, path: Path) -> None:
        aside = path.with_name(f".tmp-{uuid.uuid4().hex}.npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            place = f"{self._home}/{name}.npy"
            sources.download(place, aside)
            images, entries = open_pack(aside), self.entries(name)
            if len(images) != sum(e.rows for e in entries):
                raise TwoPhaseError(f"{place}: does not fit its list; delete both and run again")
            for entry in entries:
                _check(images[entry.start : entry.start + entry.rows], entry, place)
            aside.rename(path)
        except OSError as error:
            raise disk_error(path, error) from error
        finally:
            with suppress(OSError):
                aside.unlink()


def _cache(url: str) -> Path:
    """Where this machine keeps packs of a bucket."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "twophase" / "images" / digest(url.encode())[:16]


def _older_than_a_day(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > 86_400
    return False


def open_pack(path: Path) -> Image:
    """A pack's images, memory-mapped. Raises `TwoPhaseError` when the file is not one."""
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise TwoPhaseError(f"{path}: this pack of images cannot be read ({error}); delete it and run again") from None
    if images.dtype != np.uint8 or images.shape[1:] != FRONT_END.shape:
        raise TwoPhaseError(
            f"{path}: holds {images.dtype} {list(images.shape)}, not uint8 images; delete it and run again"
        )
    return np.asarray(images)


def _check(images: Image, entry: Entry, place: str) -> None:
    if zlib.crc32(np.ascontiguousarray(images).data) != entry.crc and entry.rows:
        raise TwoPhaseError(
            f"{place}: the images of clip {entry.sha256[:12]} are not those that were written; "
            "delete the file and run again"
        )


def _starts(shas: Iterable[str]) -> NDArray[np.int64]:
    return np.array(sorted({int(sha[:8], 16) for sha in shas}), np.int64)


def _within(name: str, starts: NDArray[np.int64]) -> bool:
    """Whether a pack of this name may hold clips whose digests start like these."""
    try:
        first, last, _ = (int(part, 16) for part in name.split("-"))
    except ValueError:
        return False
    return bool(np.searchsorted(starts, first) < np.searchsorted(starts, last, side="right"))


def _write_header(file: Any, rows: int) -> None:
    """A `.npy` header of fixed length (NumPy pads the shape so that it can be rewritten in place)."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (rows, *FRONT_END.shape)}
    )


def _size_of(rows: int) -> int:
    """Bytes of the file of a pack of so many rows; its header has 128."""
    return 128 + rows * int(np.prod(FRONT_END.shape))
