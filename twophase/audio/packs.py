"""Packs: what the front end made of clips, once, keyed by what each clip holds and by the front end.

    STORE/<front end>/<first>-<last>-<digest>.npy      uint8 [rows, frames, mels], memory-mapped by readers
    STORE/<front end>/<first>-<last>-<digest>.jsonl    one line a clip: an `Entry`

A pack is named by the clips in it (their first and last digest, and a digest of all) and never changes. So writing it
twice gives the same bytes, two writers cannot harm each other, and a reader of some clips opens only the packs in
whose range they lie. The `.jsonl` comes last and is the pack's word that it is there: a crash leaves nothing that is
taken for whole. New clips make a new pack; what is there stays as it is, until a shard's clips lie in more than
`MERGE` packs and are copied together. A pack that does not fit its `.jsonl` is passed over: its clips are made again.

Only what a clip's content decides is kept: its images, or why it can never have any. A clip that is gone is reported,
and asked for again next time; a place that refuses (403, 503, an I/O error) fails the shard once what was read is kept.
"""

import itertools
import json
import os
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twophase.audio import sources
from twophase.audio.dataset import Clip
from twophase.audio.decode import BadClip, decode_native, resample
from twophase.audio.frontend import FRONT_END, Floats, Image
from twophase.audio.windows import audible, cut
from twophase.errors import TwoPhaseError
from twophase.files import digest, digest_of, disk_error, sync

MAX_ROWS = 64
"""Most windows of one clip that are kept, evenly spread: a long recording does not outweigh all others."""

MERGE = 8
"""Most packs that a shard's clips lie in before they are copied into one."""

SILENT = 1e-5
"""A clip whose peak is below this (-100 dB) is silent: it has no image, and nothing to learn."""

CLIPPED = 0.999
"""Samples from this level on count as clipped."""

Report = Callable[[int], object]
"""Called with the number of clips that were just finished."""


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


@dataclass(frozen=True)
class Made:
    """What came of a shard: packs that hold its clips together, and the clips that could not be reached, with why."""

    packs: tuple[Path, ...]
    gone: tuple[tuple[str, str], ...] = ()


def make(store: Path, clips: Sequence[Clip], report: Report = lambda n: None, workers: int | None = None) -> Made:
    """See that packs of the store hold these clips, decoding only those that none has.

    A clip that cannot be used is not an error here: its entry says why, and the collection decides. Memory holds a few
    clips a worker, whatever their number. Raises `TwoPhaseError` when the store cannot be written or clips not be read.
    """
    home = store / FRONT_END.fingerprint
    unique = {c.sha256: c for c in sorted(clips, key=lambda c: (c.sha256, c.name))}
    held = _lookup(home, unique)
    report(len(held))
    missing = [clip for sha, clip in unique.items() if sha not in held]
    packs = {pack for pack, _ in held.values()}
    gone: list[tuple[str, str]] = []
    refused: list[sources.Unreachable] = []
    if missing:
        workers = workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:  # decoding, resampling and the FFT release the interpreter's lock
            made = _in_order(pool, missing, images_of, workers * 4)
            written = _write(home, _reached(made, gone, refused, report))
        packs |= {written} if written else set()
    if refused:
        raise TwoPhaseError(f"{len(refused)} clips cannot be read now; what was read is kept. The first: {refused[0]}")
    if len(packs) > MERGE:
        whole = _write(home, _copies(_lookup(home, unique)))
        packs = {whole} if whole else set()
    return Made(tuple(sorted(packs)), tuple(gone))


def images_of(clip: Clip) -> tuple[Image, Entry]:
    """A clip's images and what is to be known of it. Raises `sources.Unreachable` when it is not there any more."""
    none = np.empty((0, *FRONT_END.shape), np.uint8)
    data = sources.read(clip.path)
    if digest(data) != clip.sha256:
        raise sources.Unreachable(clip.path, "has changed since the clips were listed; run again", gone=True)
    try:
        native, rate = decode_native(data, clip.name)
        pcm = resample(native, rate, clip.name)
        peak = float(np.abs(native).max())
        if peak < SILENT:
            raise BadClip(clip.name, "is silent; a clip with sound in it is needed")
    except BadClip as error:
        return none, Entry(clip.sha256, 0, 0, error=error.reason)
    images = FRONT_END.images(windows_of(pcm))
    clipped = float(np.mean(np.abs(native) >= CLIPPED))
    return images, Entry(
        clip.sha256, 0, len(images), zlib.crc32(images.data), len(native) / rate, rate, peak, round(clipped, 6)
    )


def windows_of(pcm: Floats) -> Floats:
    """The windows of a clip that are kept: audible, at most `MAX_ROWS`; float32 [n_samples] -> [n, samples]."""
    windows = cut(pcm)
    heard = np.flatnonzero(audible(windows))
    if len(heard) > MAX_ROWS:
        heard = heard[np.linspace(0, len(heard) - 1, MAX_ROWS).astype(np.int64)]
    return np.asarray(windows[heard])


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


def read_entries(pack: Path) -> Iterator[Entry]:
    """What a pack's `.jsonl` says of its clips. Raises `TwoPhaseError` when it is damaged."""
    try:
        with pack.open(encoding="utf-8") as file:
            for line in file:
                yield Entry(**json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise TwoPhaseError(f"{pack}: this list of a pack cannot be read ({error}); delete it and run again") from None


def prune(home: Path, used: Iterable[str]) -> int:
    """Delete the packs of `home` that are not `used` (names without suffix), and what crashes left; count them.

    A store belongs to one workdir, and the caller has just written the one set that refers to it.
    """
    keep = set(used)
    doomed = [p for p in home.glob("*-*-*.jsonl") if p.stem not in keep]
    for pack in doomed:
        pack.unlink(missing_ok=True)  # first, so that a crash leaves no list without images
    for images in home.glob("*-*-*.npy"):
        if images.stem not in keep:
            images.unlink(missing_ok=True)
    for aside in home.glob(".tmp-*"):
        if time.time() - aside.stat().st_mtime > 86_400:  # nobody writes one pack for a day
            aside.unlink(missing_ok=True)
    return len(doomed)


def forget(home: Path, digests: set[str]) -> int:
    """Rewrite the packs of `home` without these clips; return how many clips were in them."""
    count = 0
    for pack in _packs(home, digests):
        entries = {e.sha256: (pack, e) for e in read_entries(pack)}
        count += len(entries.keys() & digests)
        if entries.keys() & digests:
            _write(home, _copies({sha: at for sha, at in entries.items() if sha not in digests}))
            pack.unlink()
            pack.with_suffix(".npy").unlink(missing_ok=True)
    return count


def _packs(home: Path, shas: Iterable[str]) -> list[Path]:
    """The packs in whose range any of these digests lies, the largest first."""
    starts = np.array(sorted({int(sha[:8], 16) for sha in shas}), np.int64)
    chosen = []
    for pack in home.glob("*-*-*.jsonl"):
        first, last = (int(part, 16) for part in pack.stem.split("-")[:2])
        if np.searchsorted(starts, first) < np.searchsorted(starts, last, side="right"):
            chosen.append(pack)
    return sorted(chosen, key=lambda p: (-p.stat().st_size, p.name))


def _lookup(home: Path, shas: Iterable[str]) -> dict[str, tuple[Path, Entry]]:
    """Where the images of clips are: every digest that a whole pack holds, with the pack and its entry."""
    wanted = set(shas)
    where: dict[str, tuple[Path, Entry]] = {}
    for pack in _packs(home, wanted):
        try:
            entries = list(read_entries(pack))
            whole = len(open_pack(pack.with_suffix(".npy"))) == sum(e.rows for e in entries)
        except TwoPhaseError:
            continue  # its clips are made again, under the same name
        if whole:
            for entry in entries:
                if entry.sha256 in wanted:
                    where.setdefault(entry.sha256, (pack, entry))
    return where


def _copies(where: dict[str, tuple[Path, Entry]]) -> Iterator[tuple[Image, Entry]]:
    """The images of clips out of the packs that they lie in. Raises `TwoPhaseError` where bits have flipped."""
    opened: dict[Path, Image] = {}
    for _, (pack, entry) in sorted(where.items()):
        if pack not in opened:
            opened[pack] = open_pack(pack.with_suffix(".npy"))
        images = opened[pack][entry.start : entry.start + entry.rows]
        check(images, entry, pack)
        yield images, entry


def check(images: Image, entry: Entry, pack: Path) -> None:
    """Raise `TwoPhaseError` unless a clip's images are those that were written."""
    if zlib.crc32(np.ascontiguousarray(images).data) != entry.crc and entry.rows:
        raise TwoPhaseError(
            f"{pack.with_suffix('.npy')}: the images of clip {entry.sha256[:12]} have changed on disk; "
            "delete the file and run again"
        )


def _reached(
    made: Iterator[tuple[Clip, Any]],
    gone: list[tuple[str, str]],
    refused: list[sources.Unreachable],
    report: Report,
) -> Iterator[tuple[Image, Entry]]:
    for clip, result in made:
        try:
            yield result()
        except sources.Unreachable as error:
            if error.gone:
                gone.append((clip.sha256, error.reason))
            else:
                refused.append(error)
        report(1)


def _write(home: Path, made: Iterator[tuple[Image, Entry]]) -> Path | None:
    """Write clips in the order of their digests as one pack; return its `.jsonl`, or None where there are none."""
    aside = home / f".tmp-{uuid.uuid4().hex}"  # writers may be on machines of their own: a process id names none
    aside_list = aside.with_suffix(".jsonl")
    entries: list[Entry] = []
    start = 0
    try:
        home.mkdir(parents=True, exist_ok=True)
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
        name = digest_of([e.sha256 for e in entries])[:16]
        pack = home / f"{entries[0].sha256[:8]}-{entries[-1].sha256[:8]}-{name}.jsonl"
        aside.rename(pack.with_suffix(".npy"))
        sync(home)
        aside_list.rename(pack)
        sync(home)
    except OSError as error:
        raise disk_error(home, error) from error
    finally:
        aside.unlink(missing_ok=True)
        aside_list.unlink(missing_ok=True)
    return pack


def _in_order(
    pool: ThreadPoolExecutor, items: Sequence[Clip], work: Callable[[Clip], Any], ahead: int
) -> Iterator[tuple[Clip, Callable[[], Any]]]:
    """(item, result of work(item)) in the order of the items, at most `ahead` of them in memory."""
    waiting = deque((item, pool.submit(work, item)) for item in items[:ahead])
    rest = iter(items[ahead:])
    while waiting:
        item, future = waiting.popleft()
        yield item, future.result
        for following in itertools.islice(rest, 1):
            waiting.append((following, pool.submit(work, following)))


def _write_header(file: Any, rows: int) -> None:
    """A `.npy` header of fixed length (NumPy pads the shape so that it can be rewritten in place)."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (rows, *FRONT_END.shape)}
    )
