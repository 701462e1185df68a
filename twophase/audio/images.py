"""The image store: every clip's images once, keyed by what the clip holds and by the front end.

    STORE/<front end>/<pack>.npy     uint8 [rows, frames, mels], memory-mapped by readers
    STORE/<front end>/<pack>.jsonl   one line a clip: digest, first row, rows, seconds, peak; or why it has none
    SET/clips.jsonl, SET/set.json    an image set: the clips of one dataset with their rows; `set.json` is written last

A pack is named by the clips it holds and never changes, so writing it twice gives the same bytes, two writers cannot
harm each other, and a crash leaves nothing that is taken for whole: the `.jsonl` comes last and is the pack's word
that it is there. Images of a clip are looked up across all packs, whatever the pack: a clip is decoded once.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio.dataset import SPLITS, Clip, Dataset, check_splits, read_clips
from twophase.audio.decode import BadClip, decode
from twophase.audio.frontend import FRONT_END, SAMPLE_RATE, Floats, Image
from twophase.audio.windows import audible, cut
from twophase.errors import TwoPhaseError
from twophase.files import digest, digest_of, read_json, replacing, write_json

MAX_ROWS = 64
"""Most windows of one clip that are kept, evenly spread: a long recording does not outweigh all others."""

MAX_SHARDS = 256
"""Most shards of a plan: as wide as Kubeflow and Vertex fan out comfortably."""

CLIPS_PER_SHARD = 2_000
"""About how many clips a shard holds until there are `MAX_SHARDS` of them."""

Report = Callable[[int], object]
"""Called with the number of clips that were just finished."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a pack knows of one clip. `error` is empty, or says why it has no rows."""

    sha256: str
    start: int
    rows: int
    seconds: float = 0.0
    peak: float = 0.0
    error: str = ""


def plan(clips: Iterable[Clip], folder: Path, count: int) -> list[Path]:
    """Cut clips into shards by content and write a manifest for each: `folder/shard-000.jsonl`, ...

    `count` is how many clips there are. The number of shards is a power of two, at most `MAX_SHARDS`; a clip's shard
    depends on its content alone, so new clips leave the others where they are. Memory does not grow with the clips.
    """
    shards = 1
    while shards < MAX_SHARDS and count > shards * CLIPS_PER_SHARD:
        shards *= 2
    paths = [folder / f"shard-{i:03d}.jsonl" for i in range(shards)]
    folder.mkdir(parents=True, exist_ok=True)
    files = [path.open("w", encoding="utf-8") for path in paths]
    try:
        for clip in clips:
            files[int(clip.sha256[:8], 16) * shards >> 32].write(json.dumps(asdict(clip)) + "\n")
    finally:
        for file in files:
            file.close()
    return [path for path in paths if path.stat().st_size]


def make_pack(store: Path, clips: Sequence[Clip], report: Report = lambda n: None, workers: int | None = None) -> Path:
    """Make the pack of these clips, decoding only those that no pack of the store has; return its `.jsonl`.

    A clip that cannot be used is not an error here: its entry says why, and the collection decides.
    """
    home = store / FRONT_END.fingerprint
    name = digest_of(sorted(c.sha256 for c in clips))[:16]
    done = home / f"{name}.jsonl"
    if done.is_file():
        report(len(clips))
        return done
    known = _Packs(home)
    unique = sorted({c.sha256: c for c in clips}.values(), key=lambda c: c.sha256)
    entries: list[Entry] = []
    start = 0
    workers = workers or len(os.sched_getaffinity(0))
    with (
        replacing(home / f"{name}.npy") as file,
        ThreadPoolExecutor(workers) as pool,  # decoding, resampling and the FFT all release the interpreter's lock
    ):
        _write_header(file, 0)
        for clip, (images, entry) in _in_order(pool, unique, lambda c: known.find(c.sha256) or _images(c), workers * 4):
            entries.append(Entry(clip.sha256, start, len(images), entry.seconds, entry.peak, entry.error))
            start += len(images)
            file.write(images.tobytes())
            report(1)
        file.seek(0)
        _write_header(file, start)
    with replacing(done, "w") as file:
        file.writelines(json.dumps(asdict(e)) + "\n" for e in entries)
    return done


def make_all(workdir: Path, dataset: Dataset, on_bad_clip: str, progress: Callable[[int, int], object]) -> "ImageSet":
    """Plan, make and collect in this process: what the pipeline's steps do for one dataset."""
    shards = plan(dataset.clips, workdir / "shards", len(dataset.clips))
    done = itertools.count(1)
    packs = [
        make_pack(workdir / "images", list(read_clips(shard)), lambda n: progress(next(done), len(dataset.clips)))
        for shard in shards
    ]
    return collect(packs, shards, dataset.wanted, workdir / "set", on_bad_clip)


def collect(
    packs: Sequence[Path], shards: Sequence[Path], wanted: Sequence[str], folder: Path, on_bad_clip: str
) -> "ImageSet":
    """Join packs and shard manifests into an image set at `folder`; return it.

    `on_bad_clip` is `skip` (bad clips are named in the set) or `fail`. Raises `TwoPhaseError` for bad clips under
    `fail`, for a clip no pack has, for a label without enough usable clips, and for clips on both sides of the split.
    """
    by_clip = {e.sha256: (pack.stem, e) for pack in packs for e in read_entries(pack)}
    clips = sorted((c for shard in shards for c in read_clips(shard)), key=lambda c: c.sha256)
    check_splits(clips)
    bad: list[tuple[str, str]] = []
    lines: list[dict[str, Any]] = []
    for clip in clips:
        if clip.sha256 not in by_clip:
            raise TwoPhaseError(f"{clip.name}: no pack holds its images; run the step that makes images again")
        pack, entry = by_clip[clip.sha256]
        if entry.error:
            bad.append((clip.name, entry.error))
        else:
            lines.append(
                {**asdict(clip), "pack": pack, "start": entry.start, "rows": entry.rows, "seconds": entry.seconds}
            )
    if bad and on_bad_clip == "fail":
        listed = "\n".join(f"  {name}: {reason}" for name, reason in bad[:20])
        raise TwoPhaseError(f"{len(bad)} clips cannot be used (--on-bad-clip skip leaves them out):\n{listed}")
    _check_labels(lines, wanted)
    with replacing(folder / "clips.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    home = packs[0].parent
    header = {
        "front_end": FRONT_END.fingerprint,
        "home": str(home),
        "wanted": list(wanted),
        "bad": bad,
        "digest": digest_of([[d["sha256"], d["label"], d["split"], d["rows"]] for d in lines] + list(wanted)),
        "clips": digest(folder / "clips.jsonl"),
    }
    write_json(folder / "set.json", header)
    return ImageSet(folder)


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
        self._home = Path(header["home"])
        with (folder / "clips.jsonl").open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        self.clips = tuple(Clip(*(d[k] for k in ("sha256", "path", "name", "label", "group", "split"))) for d in lines)
        self.labels = tuple(sorted({c.label for c in self.clips}))
        self.seconds: Floats = np.array([d["seconds"] for d in lines], np.float32)
        rows = np.array([d["rows"] for d in lines], np.int64)
        self.clip_of_row: NDArray[np.int32] = np.repeat(np.arange(len(lines), dtype=np.int32), rows)
        label = np.array([self.labels.index(c.label) for c in self.clips], np.int32)
        split = np.array([SPLITS.index(c.split) for c in self.clips], np.int8)
        self.label_of_row: NDArray[np.int32] = label[self.clip_of_row]
        self.split_of_row: NDArray[np.int8] = split[self.clip_of_row]
        self._pack_names = sorted({d["pack"] for d in lines})
        pack = np.array([self._pack_names.index(d["pack"]) for d in lines], np.int32)
        within = np.arange(len(self.clip_of_row)) - np.repeat(np.cumsum(rows) - rows, rows)
        self._pack_of_row = pack[self.clip_of_row]
        self._row_in_pack = np.array([d["start"] for d in lines], np.int64)[self.clip_of_row] + within

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
        return [open_pack(self._home / f"{name}.npy") for name in self._pack_names]


class Rows:
    """Some rows of an image set, numbered from 0."""

    def __init__(self, images: ImageSet, rows: NDArray[np.int64]) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: NDArray[np.intp], /) -> Image:
        """Images by their number in this subset: int [n] -> uint8 [n, frames, mels]."""
        return self._images.take(self._rows[rows])


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
    """What a pack's `.jsonl` says of its clips."""
    with pack.open(encoding="utf-8") as file:
        for line in file:
            yield Entry(**json.loads(line))


class _Packs:
    """Lookup of a clip's images across the finished packs of one front end."""

    def __init__(self, home: Path) -> None:
        self._where: dict[str, tuple[Path, Entry]] = {}
        self._open: dict[Path, Image] = {}
        for pack in sorted(home.glob("*.jsonl")):
            self._where.update({e.sha256: (pack.with_suffix(".npy"), e) for e in read_entries(pack)})

    def find(self, sha256: str) -> tuple[Image, Entry] | None:
        found = self._where.get(sha256)
        if found is None:
            return None
        path, entry = found
        if path not in self._open:
            self._open[path] = open_pack(path)
        return self._open[path][entry.start : entry.start + entry.rows], entry


def _images(clip: Clip) -> tuple[Image, Entry]:
    try:
        pcm = decode(Path(clip.path), clip.name)
        windows = cut(pcm)
        heard = np.flatnonzero(audible(windows))
        if len(heard) > MAX_ROWS:
            heard = heard[np.linspace(0, len(heard) - 1, MAX_ROWS).astype(np.int64)]
        images = FRONT_END.images(windows[heard])
        return images, Entry(clip.sha256, 0, len(images), len(pcm) / SAMPLE_RATE, float(np.abs(pcm).max()))
    except BadClip as error:
        return np.empty((0, *FRONT_END.shape), np.uint8), Entry(clip.sha256, 0, 0, error=error.reason)


def _in_order(
    pool: ThreadPoolExecutor, items: Sequence[Clip], work: Callable[[Clip], Any], ahead: int
) -> Iterator[Any]:
    """(item, work(item)) in the order of the items, at most `ahead` of them in memory."""
    waiting = [(item, pool.submit(work, item)) for item in items[:ahead]]
    waiting.reverse()
    rest = iter(items[ahead:])
    while waiting:
        item, future = waiting.pop()
        yield item, future.result()
        for following in rest:
            waiting.insert(0, (following, pool.submit(work, following)))
            break


def _write_header(file: Any, rows: int) -> None:
    """A `.npy` header of fixed length (NumPy pads the shape so that it can be rewritten in place)."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (rows, *FRONT_END.shape)}
    )


def _check_labels(lines: Sequence[dict[str, Any]], wanted: Sequence[str]) -> None:
    usable: dict[str, set[str]] = {}
    for line in lines:
        usable.setdefault(line["label"], set()).add(line["sha256"])
    if not usable:
        raise TwoPhaseError("no clip of the data can be used; give WAV, FLAC, Ogg or MP3 files with sound in them")
    for label in sorted({*usable, *wanted}):
        count = len(usable.get(label, ()))
        if count < 2:
            raise TwoPhaseError(
                f"label {label!r} has {count} usable clip{'s' * (count != 1)}; "
                "at least 2 from different recordings are needed, and 20 are a sensible start"
            )
        trained = {line["sha256"] for line in lines if line["label"] == label and line["split"] == "train"}
        if not trained:
            raise TwoPhaseError(
                f"label {label!r} has no clip in the train split ({count} in all); add clips of other recordings, "
                "or give a split column"
            )
