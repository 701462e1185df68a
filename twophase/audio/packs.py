"""Packs made: what the front end makes of clips, once, kept in a `Store` by what each clip holds.

What no pack holds is decoded and becomes a new pack; what is there stays as it is, until a shard's clips lie in more
than `MERGE` packs and are copied together.

Only what a clip's content decides is kept: its images, or why it can never have any. A clip that is gone is reported,
and asked for again next time; a place that refuses (403, 503, an I/O error) fails the shard once what was read is kept.
"""

import itertools
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twophase.audio import fetched, sources
from twophase.audio.clips import Clip
from twophase.audio.decode import BadClip, decode_native, resample
from twophase.audio.frontend import FRONT_END, Floats, Image
from twophase.audio.store import Entry, Store
from twophase.audio.windows import audible, cut
from twophase.errors import TwoPhaseError

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


@dataclass(frozen=True)
class Made:
    """What came of a shard: names of packs that hold its clips together, and clips that are gone, with why."""

    packs: tuple[str, ...]
    gone: tuple[tuple[str, str], ...] = ()


def make(
    store: Store,
    clips: Sequence[Clip],
    report: Report = lambda n: None,
    workers: int | None = None,
    workdir: Path | None = None,
) -> Made:
    """See that packs of the store hold these clips, decoding only those that none has.

    `workdir` is where listing may have left what it read of a bucket (fetched.py).

    A clip that cannot be used is not an error here: its entry says why, and the collection decides. Memory holds a few
    clips a worker, whatever their number. Raises `TwoPhaseError` when the store cannot be written or clips not be read.
    """
    unique = {c.sha256: c for c in sorted(clips, key=lambda c: (c.sha256, c.name))}
    held = store.lookup(unique)
    report(len(held))
    missing = [clip for sha, clip in unique.items() if sha not in held]
    packs = {name for name, _ in held.values()}
    gone: list[tuple[str, str]] = []
    refused: list[sources.Unreachable] = []
    if missing:
        workers = workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:  # decoding, resampling and the FFT release the interpreter's lock
            made = _in_order(pool, missing, lambda clip: images_of(clip, workdir), workers * 4)
            written = store.write(_reached(made, gone, refused, report))
        packs |= {written} if written else set()
    if refused:
        raise TwoPhaseError(f"{len(refused)} clips cannot be read now; what was read is kept. The first: {refused[0]}")
    if len(packs) > MERGE:
        whole = store.write(store.copies(store.lookup(unique)))
        packs = {whole} if whole else set()
    return Made(tuple(sorted(packs)), tuple(gone))


def images_of(clip: Clip, workdir: Path | None = None) -> tuple[Image, Entry]:
    """A clip's images and what is to be known of it. Raises `sources.Unreachable` when it is not there any more."""
    none = np.empty((0, *FRONT_END.shape), np.uint8)
    data = fetched.take(clip.path, clip.sha256, workdir)
    try:
        native, rate = decode_native(data, clip.name)
        pcm = resample(native, rate, clip.name)
        peak = float(np.abs(native).max())
        if peak < SILENT:
            raise BadClip(clip.name, "is silent; a clip with sound in it is needed")
    except BadClip as error:
        return none, Entry(clip.sha256, 0, 0, error=error.reason)
    from twophase.audio import frontend_compiled  # half a second that a run with nothing new does not pay

    images = frontend_compiled.images(windows_of(pcm))
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
