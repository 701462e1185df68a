"""The image set: the images of one dataset with the clip, label and split of each, joined from its shards' packs.

    SHARDS/shard-000.jsonl         the clips of a shard: what one `make_images` step is given
    SHARDS/shard-000.made.json     the packs that hold them: what it gives back
    SET/clips.jsonl                one line a clip: the clip, its pack and its rows there, in the order of digests
    SET/set.json                   written last: wanted labels, clips that cannot be used, digests

A clip's shard depends on its content alone, and shards are ranges of digests: one after the other they are in order, so
neither planning nor collecting holds more than one shard. The packs themselves are `packs.py`'s.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.audio import packs
from twophase.audio.dataset import SPLITS, Clip, Dataset, Sides, read_clips
from twophase.audio.frontend import FRONT_END, Floats, Image
from twophase.audio.packs import Entry, open_pack, read_entries
from twophase.audio.packs import Report as Report
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


def make_shard(store: Path, shard: Path, report: Report = lambda n: None, workers: int | None = None) -> Path:
    """Make the images of a shard's clips, decoding only those that no pack has; return where the result is said."""
    made = packs.make(store, list(read_clips(shard)), report, workers)
    result = shard.with_suffix(".made.json")
    write_json(result, {"packs": [str(p) for p in made.packs], "gone": made.gone})
    return result


def make_all(workdir: Path, dataset: Dataset, on_bad_clip: str, progress: Callable[[int, int], object]) -> "ImageSet":
    """Plan, make and collect in this process: what the pipeline's steps do for one dataset."""
    finished = 0

    def report(n: int) -> None:
        nonlocal finished
        finished += n
        progress(finished, len(dataset.clips))

    with locked(workdir, "this workdir"):
        shards = plan(dataset.clips, workdir / "shards", len(dataset.clips))
        made = [make_shard(workdir / "images", shard, report) for shard in shards]
        return collect(made, shards, dataset.wanted, workdir / "set", on_bad_clip, dataset.skipped)


def collect(
    made: Sequence[Path],
    shards: Sequence[Path],
    wanted: Sequence[str],
    folder: Path,
    on_bad_clip: str,
    skipped: Sequence[tuple[str, str]] = (),
) -> "ImageSet":
    """Join what came of the shards into an image set at `folder`; return it. Packs that it does not use are deleted.

    `on_bad_clip` is `skip` (bad clips are named in the set) or `fail`; `skipped` are files that were left out before,
    with the reason why, which the set names too. Raises `TwoPhaseError` for bad clips under
    `fail`, for a clip no pack has, for a label without enough usable clips, and for clips on both sides of the split.
    """
    sides, labels, identity = Sides(), _Labels(wanted), hashlib.sha256()
    bad: list[tuple[str, str]] = []
    used: set[Path] = set()
    with replacing(folder / "clips.jsonl", "w") as file:
        for shard, result in sorted(zip(shards, made, strict=True)):
            for clip, pack, entry in _joined(shard, result):
                sides.add(clip)
                if pack is not None:
                    used.add(pack)
                if pack is None or entry.error:
                    bad.append((clip.name, entry.error))
                    continue
                labels.add(clip)
                line = {"pack": pack.stem, "start": entry.start, "rows": entry.rows, "seconds": entry.seconds}
                file.write(json.dumps({**clip.to_json(), **line}) + "\n")
                identity.update(json.dumps([clip.sha256, clip.label, clip.group, clip.split, entry.rows]).encode())
        if bad and on_bad_clip == "fail":
            listed = "\n".join(f"  {name}: {reason}" for name, reason in bad)
            count = f"{len(bad)} clip{'s' * (len(bad) != 1)}"
            raise TwoPhaseError(f"{count} cannot be used (--on-bad-clip skip leaves them out):\n{listed}")
        labels.check(bad)
    home = next(iter(used)).parent
    identity.update(json.dumps(sorted(wanted)).encode())
    header = {
        "front_end": FRONT_END.fingerprint,
        "home": str(home),
        "wanted": list(wanted),
        "bad": [*skipped, *bad],
        "digest": identity.hexdigest(),
        "clips": digest(folder / "clips.jsonl"),
    }
    write_json(folder / "set.json", header)
    packs.prune(home, {pack.stem for pack in used})
    return ImageSet(folder)


def _joined(shard: Path, result: Path) -> Iterator[tuple[Clip, Path | None, Entry]]:
    """A shard's clips in order, each with its pack and entry; without a pack where it could not be reached."""
    made = read_json(result, "result of a shard")
    gone = {sha: Entry(sha, 0, 0, error=reason) for sha, reason in made["gone"]}
    held = {e.sha256: (Path(p), e) for p in made["packs"] for e in read_entries(Path(p))}
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
        self._home = Path(header["home"])
        clips: list[Clip] = []
        columns: list[tuple[float, int, int, str]] = []
        with (folder / "clips.jsonl").open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                kept = (line.pop("seconds"), line.pop("rows"), line.pop("start"), sys.intern(line.pop("pack")))
                columns.append(kept)
                line.update(label=sys.intern(line["label"]), split=sys.intern(line["split"]))
                clips.append(Clip(**line))
        seconds, counts, starts, pack_names = zip(*columns, strict=True)
        rows = np.array(counts, np.int64)
        self.clips = tuple(clips)
        self.labels = tuple(sorted({c.label for c in clips}))
        self.seconds: Floats = np.array(seconds, np.float32)
        self.clip_of_row: NDArray[np.int32] = np.repeat(np.arange(len(clips), dtype=np.int32), rows)
        label = np.array([self.labels.index(c.label) for c in clips], np.int32)
        split = np.array([SPLITS.index(c.split) for c in clips], np.int8)
        self.label_of_row: NDArray[np.int32] = label[self.clip_of_row]
        self.split_of_row: NDArray[np.int8] = split[self.clip_of_row]
        self._pack_names = sorted(set(pack_names))
        pack = np.array([self._pack_names.index(name) for name in pack_names], np.int32)
        within = np.arange(len(self.clip_of_row)) - np.repeat(np.cumsum(rows) - rows, rows)
        self._pack_of_row = pack[self.clip_of_row]
        self._row_in_pack = np.array(starts, np.int64)[self.clip_of_row] + within

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
