"""Forgetting: a person's clips leave the images of a workdir and its next training; who still carries them is said.

    WORKDIR/forgotten.jsonl    one line a wish: digests of the clips, and of the group or label that was named

The wish is kept first and honoured by every later run, also for clips of that group or label that come later; it holds
digests, not names. Then the images go, of every front end and also out of a shared store, and whatever names, shows or
plays clips; so do all reports, which play test clips, those of earlier releases too. The list by which clips are known
goes last: after a crash, forgetting again does the rest. The user's own files are not touched. Models that learned from
the clips remain until they are trained again and their releases deleted: `carriers` names them.
"""

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twophase.audio.clips import Clip, Clips, read_clips
from twophase.audio.dataset import Dataset
from twophase.audio.fetched import DIGESTS, FETCHED
from twophase.audio.store import Store
from twophase.errors import TwoPhaseError
from twophase.files import digest, locked, read_json, replacing

WISHES = "forgotten.jsonl"

LISTS = ("reports", "evaluations", "pipeline", "run.log", DIGESTS, FETCHED, "set", "shards")
"""What a workdir holds that names clips, shows or plays them; last `shards`, by which `forget` knows them."""


@dataclass(frozen=True)
class Forgotten:
    """What forgetting did: the clips, how many of them had images, their files, and releases that learned from them."""

    clips: tuple[Clip, ...]
    with_images: int
    files: tuple[str, ...]
    """Where the clips themselves still are: the user's to delete."""
    releases: tuple[str, ...]


def forget(workdir: Path, wish: str) -> Forgotten:
    """Take the clips of a name, a digest (8 or more digits), a group or a label out of a workdir.

    Raises `TwoPhaseError` when no clip of the last run there answers to `wish`, or a run is at work.
    """
    with locked(workdir, "this workdir"):
        clips = [c for c in _clips(workdir) if _named(c, wish)]
        if not clips:
            raise TwoPhaseError(
                f"{wish}: is no clip, group or label of the last run in {workdir}; give a clip's name as the run knows "
                "it, the start of its digest, a group or a label"
            )
        digests = {c.sha256 for c in clips}
        whole = [_secret(wish)] if any(wish in (c.group, c.label) for c in clips) else []
        with replacing(workdir / WISHES, "w") as file:
            known = (workdir / WISHES).read_text("utf-8") if (workdir / WISHES).is_file() else ""
            file.write(known + json.dumps({"clips": sorted(digests), "named": whole}) + "\n")
        count = sum(store.forget(digests) for store in _stores(workdir))
        for name in LISTS:
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return Forgotten(
            tuple(clips), count, tuple(c.path for c in clips), tuple(carriers(workdir / "releases", clips))
        )


def without_forgotten(dataset: Dataset, workdir: Path) -> Dataset:
    """A dataset without the clips that are to be forgotten in this workdir; each of them is counted as left out."""
    if not (workdir / WISHES).is_file():
        return dataset
    wishes = [json.loads(line) for line in (workdir / WISHES).read_text("utf-8").splitlines()]
    digests = {sha for wish in wishes for sha in wish["clips"]}
    named = {secret for wish in wishes for secret in wish["named"]}

    def wished(clip: Clip) -> bool:
        return clip.sha256 in digests or bool(named & {_secret(clip.group), _secret(clip.label)})

    kept = Clips.of(c for c in dataset.clips if not wished(c))
    reasons = ((c.name, "is to be forgotten (twophase data forget)") for c in dataset.clips if wished(c))
    labels = {c.label for c in kept}
    return Dataset(kept, tuple(w for w in dataset.wanted if w in labels), (*dataset.skipped, *reasons))


def carriers(releases: Path, clips: Iterable[Clip]) -> list[str]:
    """Releases below a folder that learned from any of these clips, by the list that each release carries."""
    shas = {c.sha256[:16] for c in clips}
    found = []
    for heard in sorted(releases.glob("*/assets.extra/heard.csv")):
        with heard.open(newline="", encoding="utf-8") as file:
            if shas & {row["clip"] for row in csv.DictReader(file)}:
                found.append(heard.parents[1].name)
    return found


def _clips(workdir: Path) -> Sequence[Clip]:
    shards = (workdir / "shards").glob("shard-*.jsonl")
    return sorted((c for shard in shards for c in read_clips(shard)), key=lambda c: c.name)


def _named(clip: Clip, wish: str) -> bool:
    by_digest = len(wish) >= 8 and clip.sha256.startswith(wish)
    return wish in (clip.name, clip.group, clip.label) or by_digest


def _secret(name: str) -> str:
    return digest(f"twophase-forgotten/1:{name}".encode())


def _stores(workdir: Path) -> list[Store]:
    """The stores that hold a workdir's images: its own, and the one that its last set says."""
    places = {str(workdir / "images")}
    if (workdir / "set" / "set.json").is_file():
        places.add(read_json(workdir / "set" / "set.json", "image set")["store"])
    return [Store(place) for place in sorted(places)]
