"""The image set: the images of one dataset with the clip, label and split of each, joined from its shards' packs.

    SHARDS/shard-000.jsonl         the clips of a shard: what one `make_images` step is given
    SHARDS/shard-000.made.json     the packs that hold them: what it gives back
    SET/clips.jsonl                one line a clip: the clip, its pack and its rows there, in the order of digests
    SET/set.json                   written last: wanted labels, clips that cannot be used, digests

A clip's shard depends on its content alone, and shards are ranges of digests: one after the other they are in order, so
neither planning nor collecting holds more than one shard. What packs hold is `packs.py`'s, where they lie `store.py`'s:
a set may be moved to another machine, which then reads the same store.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio import packs
from twophase.audio.clips import Clip, Clips, read_clips
from twophase.audio.dataset import SPLITS, Dataset, Sides
from twophase.audio.fetched import FETCHED
from twophase.audio.frontend import FRONT_END, Floats, Image
from twophase.audio.packs import Report as Report
from twophase.audio.store import Entry, Store
from twophase.audio.store import open_pack as open_pack
from twophase.errors import TwoPhaseError
from twophase.files import digest, disk_error, locked, read_json, replacing, write_json

MAX_SHARDS = 256
"""Most shards of a plan: as wide as Kubeflow and Vertex fan out comfortably."""

CLIPS_PER_SHARD = 2_000
"""About how many clips a shard holds until there are `MAX_SHARDS` of them."""


def plan(clips: Iterable[Clip], folder: Path, count: int) -> list[Path]:
    """Cut clips into shards by content and write a manifest for each: `folder/shard-000.jsonl`, ...

    `count` is how many clips there are. The number of shards is a power of two, at most `MAX_SHARDS`; a clip's shard
    depends on its content alone, so new clips leave the others where they are. Memory does not grow with the clips.
    """
    shards = 1
    while shards < MAX_SHARDS and count > shards * CLIPS_PER_SHARD:
        shards *= 2
    paths = [folder / f"shard-{i:03d}.jsonl" for i in range(shards)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("shard-*"):
            old.unlink()
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
            for clip in clips:
                files[int(clip.sha256[:8], 16) * shards >> 32].write(json.dumps(clip.to_json()) + "\n")
    except OSError as error:
        raise disk_error(folder, error) from error
    return [path for path in paths if path.stat().st_size]


def make_shard(
    store: Path | str,
    shard: Path,
    report: Report = lambda n: None,
    workers: int | None = None,
    workdir: Path | None = None,
) -> Path:
    """Make the images of a shard's clips, decoding only those that no pack of `store` has; return where it is said.

    `store` is a folder or a URL; `workdir` is where listing may have left what it read of a bucket.
    """
    home = Store(store)
    made = packs.make(home, list(read_clips(shard)), report, workers, workdir)
    result = shard.with_suffix(".made.json")
    write_json(result, {"store": home.place, "packs": made.packs, "gone": made.gone})
    return result


def make_all(
    workdir: Path, dataset: Dataset, on_bad_clip: str, progress: Callable[[int, int], object], store: str = ""
) -> "ImageSet":
    """Plan, make and collect in this process: what the pipeline's steps do for one dataset.

    `store` is a folder or URL that other runs use too; the workdir's own where it is empty.
    """
    finished = 0

    def report(n: int) -> None:
        nonlocal finished
        finished += n
        progress(finished, len(dataset.clips))

    with locked(workdir, "this workdir"):
        shards = plan(dataset.clips, workdir / "shards", len(dataset.clips))
        place = store or workdir / "images"
        made = [make_shard(place, shard, report, workdir=workdir) for shard in shards]
        return collect(made, shards, dataset.wanted, workdir / "set", on_bad_clip, dataset.skipped, len(dataset.clips))


def collect(
    made: Sequence[Path],
    shards: Sequence[Path],
    wanted: Sequence[str],
    folder: Path,
    on_bad_clip: str,
    skipped: Sequence[tuple[str, str]] = (),
    planned: int | None = None,
) -> "ImageSet":
    """Join what came of the shards into an image set at `folder`, which is `WORKDIR/set`; return it.

    Shards may lie in folders of their own; their names say their order. Packs of the workdir's own store that the set
    does not use are deleted.

    `on_bad_clip` is `skip` (bad clips are named in the set) or `fail`; `skipped` are files that were left out before,
    with the reason why, which the set names too; `planned` is how many clips there must be. Raises `TwoPhaseError` for
    bad clips under `fail`, for a clip no pack has, for a label without enough usable clips, and for clips on both sides
    of the split.
    """
    sides, labels, identity = Sides(), _Labels(wanted), hashlib.sha256()
    bad: list[tuple[str, str]] = []
    count = 0
    used: set[str] = set()
    if not made:
        labels.check(bad)
    store = Store(read_json(made[0], "result of a shard")["store"])
    with replacing(folder / "clips.jsonl", "w") as file:
        for shard, result in sorted(zip(shards, made, strict=True), key=lambda pair: pair[0].name):
            for clip, pack, entry in _joined(shard, result, store):
                count += 1
                sides.add(clip)
                if pack is not None:
                    used.add(pack)
                if pack is None or entry.error:
                    bad.append((clip.name, entry.error))
                    continue
                labels.add(clip)
                line = {"pack": pack, "start": entry.start, "rows": entry.rows, "seconds": entry.seconds}
                file.write(json.dumps({**clip.to_json(), **line}) + "\n")
                identity.update(json.dumps([clip.sha256, clip.label, clip.group, clip.split, entry.rows]).encode())
        if planned is not None and count != planned:
            raise TwoPhaseError(
                f"{planned} clips were planned and {count} came back: a shard's list was cut short or is missing; "
                "run the step that plans shards again"
            )
        if bad and on_bad_clip == "fail":
            listed = "\n".join(f"  {name}: {reason}" for name, reason in bad)
            some = f"{len(bad)} clip{'s' * (len(bad) != 1)}"
            raise TwoPhaseError(f"{some} cannot be used (--on-bad-clip skip leaves them out):\n{listed}")
        labels.check(bad)
    identity.update(json.dumps(sorted(wanted)).encode())
    header = {
        "front_end": FRONT_END.fingerprint,
        "store": store.place,
        "wanted": list(wanted),
        "bad": [*skipped, *bad],
        "digest": identity.hexdigest(),
        "clips": digest(folder / "clips.jsonl"),
    }
    write_json(folder / "set.json", header)
    if store.remote or Path(store.place) == folder.parent / "images":
        store.prune(used)
    shutil.rmtree(folder.parent / FETCHED, ignore_errors=True)
    return ImageSet(folder)


def _joined(shard: Path, result: Path, store: Store) -> Iterator[tuple[Clip, str | None, Entry]]:
    """A shard's clips in order, each with its pack and entry; without a pack where it could not be reached."""
    made = read_json(result, "result of a shard")
    if made["store"] != store.place:
        raise TwoPhaseError(
            f"{result}: its images are in {made['store']}, others' in {store.place}; give all one store"
        )
    gone = {sha: Entry(sha, 0, 0, error=reason) for sha, reason in made["gone"]}
    held = {e.sha256: (name, e) for name in made["packs"] for e in store.entries(name)}
    for clip in sorted(read_clips(shard), key=lambda c: c.sha256):
        if clip.sha256 not in held and clip.sha256 not in gone:
            raise TwoPhaseError(f"{clip.name}: no pack holds its images; run the step that makes images again")
        yield (clip, *held.get(clip.sha256, (None, gone.get(clip.sha256))))


class ImageSet:
    """The images of one dataset: memory-mapped packs, and for every row its clip, label and split.

    `clips`, `labels`, `wanted` are what the dataset holds; `clip_of_row` int32 [n], `label_of_row` int32 [n] (index
    into `labels`) and `split_of_row` int8 [n] (index into `SPLITS`) say what row i is.
    """

    def __init__(self, folder: Path) -> None:
        """Open the set at `folder`. Raises `TwoPhaseError` when it is not whole or of another front end."""
        header = read_json(folder / "set.json", "image set")
        if header["front_end"] != FRONT_END.fingerprint:
            raise TwoPhaseError(
                f"{folder}: holds images of front end {header['front_end']}, this program has {FRONT_END.fingerprint}; "
                "make the images again"
            )
        if digest(folder / "clips.jsonl") != header["clips"]:
            raise TwoPhaseError(f"{folder}: clips.jsonl is not the one that set.json was written for; collect it again")
        self.digest: str = header["digest"]
        self.wanted: tuple[str, ...] = tuple(header["wanted"])
        self.bad: list[tuple[str, str]] = [(n, r) for n, r in header["bad"]]
        self._store = Store(header["store"])
        self.clips = Clips(folder / "clips.jsonl")
        columns = _Columns(folder / "clips.jsonl")
        self.labels = tuple(sorted(columns.labels))
        self.seconds: Floats = np.array(columns.seconds, np.float32)
        rows = np.array(columns.rows, np.int64)
        self.clip_of_row: NDArray[np.int32] = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        self.label_of_row: NDArray[np.int32] = _ranks(columns.labels)[np.array(columns.label)][self.clip_of_row]
        self.split_of_row: NDArray[np.int8] = np.array(columns.split, np.int8)[self.clip_of_row]
        self._pack_names = sorted(columns.packs)
        within = np.arange(len(self.clip_of_row)) - np.repeat(np.cumsum(rows) - rows, rows)
        self._pack_of_row = _ranks(columns.packs)[np.array(columns.pack)][self.clip_of_row]
        self._row_in_pack = np.array(columns.start, np.int64)[self.clip_of_row] + within

    def __len__(self) -> int:
        """Number of images."""
        return len(self.clip_of_row)

    def take(self, rows: NDArray[Any]) -> Image:
        """Images by row: int [n] -> uint8 [n, frames, mels]."""
        pack, row = self._pack_of_row[rows], self._row_in_pack[rows]
        if len(self._packs) == 1:
            return np.asarray(self._packs[0][row])
        out = np.empty((len(row), *FRONT_END.shape), np.uint8)
        for p in np.unique(pack):
            here = pack == p
            out[here] = self._packs[p][row[here]]
        return out

    def subset(self, rows: NDArray[np.int64]) -> "Rows":
        """The images of these rows alone, as a training generator reads them."""
        return Rows(self, rows)

    def rows(self, split: str, labels: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Rows of one split (and of some labels), in order."""
        chosen = self.split_of_row == SPLITS.index(split)
        if labels is not None:
            chosen &= np.isin(self.label_of_row, [i for i, name in enumerate(self.labels) if name in set(labels)])
        return np.flatnonzero(chosen)

    @cached_property
    def _packs(self) -> list[Image]:
        with ThreadPoolExecutor(8) as pool:  # a bucket's come side by side
            return list(pool.map(self._store.images, self._pack_names))


class _Columns:
    """What the lines of a `clips.jsonl` say, a number a clip and field; labels and packs by the order they come in."""

    def __init__(self, path: Path) -> None:
        self.seconds, self.rows, self.start = array("f"), array("q"), array("q")
        self.label, self.pack, self.split = array("i"), array("i"), array("b")
        self.labels: dict[str, int] = {}
        self.packs: dict[str, int] = {}
        with path.open("rb") as file:
            for line in map(json.loads, file):
                self.seconds.append(line["seconds"])
                self.rows.append(line["rows"])
                self.start.append(line["start"])
                self.label.append(self.labels.setdefault(line["label"], len(self.labels)))
                self.pack.append(self.packs.setdefault(line["pack"], len(self.packs)))
                self.split.append(SPLITS.index(line["split"]))


def _ranks(names: dict[str, int]) -> NDArray[np.int32]:
    """The place of each name among the sorted ones, by the order they came in."""
    ranks = np.empty(len(names), np.int32)
    ranks[np.array([names[name] for name in sorted(names)], np.int64)] = np.arange(len(names), dtype=np.int32)
    return ranks


class Rows:
    """Some rows of an image set, numbered from 0."""

    def __init__(self, images: ImageSet, rows: NDArray[np.int64]) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: NDArray[np.intp], /) -> Image:
        """Images by their number in this subset: int [n] -> uint8 [n, frames, mels]."""
        return self._images.take(self._rows[rows])


class _Labels:
    """Counts usable clips a label, and how many of them are trained on."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted, self._all, self._trained = wanted, Counter[str](), Counter[str]()

    def add(self, clip: Clip) -> None:
        self._all[clip.label] += 1
        self._trained[clip.label] += clip.split == "train"

    def check(self, bad: Sequence[tuple[str, str]]) -> None:
        """Raise `TwoPhaseError` unless every label can be learned; `bad` are the clips that could not be used."""
        because = f"; {len(bad)} cannot be used: " + "; ".join(f"{n} {r}" for n, r in bad[:3]) if bad else ""
        if not self._all:
            raise TwoPhaseError(f"no clip of the data can be used; give WAV, FLAC, Ogg or MP3 files{because}")
        for label in sorted({*self._all, *self._wanted}):
            count = self._all[label]
            if count < 2:
                raise TwoPhaseError(
                    f"label {label!r} has {count} usable clip{'s' * (count != 1)}; "
                    f"at least 2 from different recordings are needed, and 20 are a sensible start{because}"
                )
            if not self._trained[label]:
                raise TwoPhaseError(
                    f"label {label!r} has no clip in the train split ({count} in all); add clips of other recordings, "
                    f"or give a split column{because}"
                )
