"""Looking at a dataset before training on it: what is there, what is wrong with it, what a person should do.

Every clip is decoded once, into the same packs that training uses, so inspecting is no work lost. Counts come from the
packs' entries; near-duplicates from the images: clips that differ by less than `NEAR_LEVELS` of 255 on average although
their bytes differ (another encoding, another gain) are one recording, and must not stand on two sides of the split.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twophase.audio import images as image_sets
from twophase.audio.clips import Clip
from twophase.audio.dataset import SPLITS, find_clips
from twophase.audio.frontend import SAMPLE_RATE, Floats
from twophase.audio.images import ImageSet
from twophase.audio.store import Entry, Store
from twophase.display import table
from twophase.errors import TwoPhaseError
from twophase.files import locked, read_json

NEAR_LEVELS = 4.0
"""Mean difference of two clips' images, in levels of 255, below which they are one recording."""

MAX_COMPARED = 20_000
"""Most clips that are compared with each other: the comparison grows with the square."""

CLIPPED_SHARE = 1e-3
"""Share of samples at full scale from which on a clip counts as clipped."""

FEW = 20
"""Clips of a label below which a warning is given."""


@dataclass
class Inspection:
    """What was found; `to_json` for machines."""

    clips: int = 0
    seconds: float = 0.0
    labels: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each label: `clips`, one count for each split, `seconds`."""
    durations_s: dict[str, float] = field(default_factory=dict)
    """`shortest`, `median`, `longest`."""
    rates: dict[int, int] = field(default_factory=dict)
    """Clips by sampling rate, as recorded."""
    silent: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    """Clips that cannot be used with the reason why, silent ones among them."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Files that are no clips or exact copies of one."""
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def inspect(
    source: str, workdir: Path, progress: Callable[[int, int], object] = lambda done, total: None
) -> tuple[Inspection, ImageSet | None]:
    """Inspect a data folder, table, tar or URL; also its image set, or None where no models could be trained on it.

    Raises as `dataset.find_clips` does, and `TwoPhaseError` when the workdir is in use or cannot be written.
    """
    clips, left_out = find_clips(source, workdir)
    finished = 0

    def report(n: int) -> None:
        nonlocal finished
        finished += n
        progress(finished, len(clips))

    with locked(workdir, "this workdir"):
        shards = image_sets.plan(clips, workdir / "shards", len(clips))
        store = Store(workdir / "images")
        made = [image_sets.make_shard(store.place, shard, report, workdir=workdir) for shard in shards]
        results = [read_json(m, "result of a shard") for m in made]
        entries = {e.sha256: e for r in results for name in r["packs"] for e in store.entries(name)}
        entries |= {sha: Entry(sha, 0, 0, error=reason) for r in results for sha, reason in r["gone"]}
        found = _counts(clips, entries)
        found.left_out = left_out
        try:
            images = image_sets.collect(made, shards, (), workdir / "set", "skip")
        except TwoPhaseError as error:
            images = None
            found.warnings.append(str(error))
    if images is not None:
        found.near_duplicates = [(a.name, b.name) for a, b in near_duplicates(images)]
        _warn_of_near(found, images)
    _warn(found, clips, entries)
    return found, images


def near_duplicates(images: ImageSet) -> list[tuple[Clip, Clip]]:
    """Pairs of clips whose images are the same within `NEAR_LEVELS`, among the first `MAX_COMPARED`."""
    count = min(len(images.clips), MAX_COMPARED)
    starts = np.searchsorted(images.clip_of_row, np.arange(count))
    rows = np.diff(np.append(starts, np.searchsorted(images.clip_of_row, count)))
    first = images.take(starts)
    marks: Floats = np.stack(
        [np.add.reduceat(np.add.reduceat(i.astype(np.float32), np.arange(0, 61, 6), 0), np.arange(0, 64, 4), 1).ravel()
         for i in first]
    )  # fmt: skip
    marks -= marks.mean(axis=1, keepdims=True)
    marks /= np.maximum(np.linalg.norm(marks, axis=1, keepdims=True), 1e-6)
    pairs = []
    for begin in range(0, count, 1024):
        alike = marks[begin : begin + 1024] @ marks.T > 0.99
        for i, j in zip(*np.nonzero(alike), strict=True):
            a, b = begin + int(i), int(j)
            if a < b and rows[a] == rows[b]:
                n = int(rows[a])
                one = images.take(np.arange(starts[a], starts[a] + n)).astype(np.int16)
                other = images.take(np.arange(starts[b], starts[b] + n))
                if np.abs(one - other).mean() <= NEAR_LEVELS:
                    pairs.append((images.clips[a], images.clips[b]))
    return pairs


def show(found: Inspection) -> None:
    """Tables for people, on standard output; warnings last, since they are what to act on."""
    rows = [
        [label, *(f"{row[k]:.0f}" for k in ("clips", *SPLITS)), f"{row['seconds']:.1f}"]
        for label, row in found.labels.items()
    ]
    table(["label", "clips", *SPLITS, "seconds"], rows)
    lines = [
        f"{found.clips} clips, {found.seconds:.0f} s; "
        + ", ".join(f"{k} {v:.2f} s" for k, v in found.durations_s.items()),
        "rates: " + ", ".join(f"{count} at {rate} Hz" for rate, count in found.rates.items()),
        f"{len(found.silent)} silent, {len(found.clipped)} clipped, {len(found.near_duplicates)} pairs look alike",
        *(f"left out: {name}: {reason}" for name, reason in (*found.unusable, *found.left_out)),
        *(f"warning: {words}" for words in found.warnings),
    ]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")


def _counts(clips: Sequence[Clip], entries: dict[str, Entry]) -> Inspection:
    found = Inspection(clips=len(clips))
    labels: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(("clips", *SPLITS, "seconds"), 0))
    for clip in clips:
        entry, row = entries[clip.sha256], labels[clip.label]
        if entry.error:
            found.unusable.append((clip.name, entry.error))
            if entry.error.startswith("is silent"):
                found.silent.append(clip.name)
            continue
        row["clips"] += 1
        row[clip.split] += 1
        row["seconds"] = round(row["seconds"] + entry.seconds, 3)
        if entry.clipped >= CLIPPED_SHARE:
            found.clipped.append(clip.name)
    usable = [entries[c.sha256] for c in clips if not entries[c.sha256].error]
    found.labels = dict(sorted(labels.items()))
    found.rates = dict(sorted(Counter(e.rate for e in usable).items()))
    lengths = sorted(e.seconds for e in usable)
    found.seconds = round(sum(lengths), 3)
    if lengths:
        found.durations_s = {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    return found


def _warn(found: Inspection, clips: Sequence[Clip], entries: dict[str, Entry]) -> None:
    say = found.warnings.append
    for label, row in found.labels.items():
        if row["clips"] < FEW:
            say(f"{label} has {row['clips']:.0f} usable clips; record more, {FEW} are a sensible start")
        empty = [split for split in SPLITS if not row[split]]
        if empty:
            say(f"{label} has no clip in {' and '.join(empty)}; add clips of other groups, or give a split column")
    rates: dict[str, Counter[bool]] = defaultdict(Counter)
    for clip in clips:
        if not entries[clip.sha256].error:
            rates[clip.label][entries[clip.sha256].rate < SAMPLE_RATE] += 1
    narrow = [label for label, seen in rates.items() if not seen[False]]
    if narrow and len(narrow) < len(rates):
        say(
            f"every clip of {', '.join(sorted(narrow))} is recorded below {SAMPLE_RATE} Hz and other labels are not; "
            "models may learn the missing treble instead of the sound: record all alike, or judge on other recordings"
        )
    for names, what, advice in (
        (found.silent, "silent", "they are left out; remove them"),
        (found.clipped, "clipped", "if devices will not clip like that, record them again at a lower level"),
        ([n for n, _ in found.unusable if n not in set(found.silent)], "unusable", "they are left out; see why below"),
    ):
        if names:
            say(f"{len(names)} clips are {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): {advice}")


def _warn_of_near(found: Inspection, images: ImageSet) -> None:
    by_name = {c.name: c for c in images.clips}
    pairs = [(by_name[a], by_name[b]) for a, b in found.near_duplicates]
    split = [(a, b) for a, b in pairs if a.split != b.split]
    labels = [(a, b) for a, b in pairs if a.label != b.label]
    for chosen, what, advice in (
        (split, "on two sides of the split", "give both the same group, or accuracy flatters"),
        (labels, "under two labels", "listen to both and correct one label"),
    ):
        if chosen:
            a, b = chosen[0]
            found.warnings.append(
                f"{len(chosen)} pairs of clips look alike and stand {what} (first: {a.name}, {b.name}): {advice}"
            )
    if len(images.clips) > MAX_COMPARED:
        found.warnings.append(f"only the first {MAX_COMPARED} clips were compared for near-duplicates")
