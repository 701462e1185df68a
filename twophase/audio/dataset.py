"""Labelled clips: where they are, what they are, and on which side of the split each stands, for ever.

A data folder, or a bucket's prefix, holds one of three layouts, and maybe `wanted.txt`: the labels that the gate lets
through, one a line.

    labels.csv       `fname,label,manually_verified[,group][,split]`, the columns of FSDKaggle2018, above the clips;
                     clips that it does not name are left out, and said to be
    label/clip       files in folders
    *.tar            WebDataset shards, also beside such folders: `key.wav` with `key.cls` or `key.txt` (its label) or
                     `key.json` (`label[,group][,split]`), or `label/key.wav` alone; uncompressed, read in place

Clips are known by content (sha256), so a renamed file is the same clip and an exact copy is a duplicate.

A clip's split is a fixed hash of its group (of its content where no group is given): 70 % train, 15 % validation,
15 % test. New clips never move old ones, so a clip that one version was trained on never tests the next. The same clip
or group on two sides fails the run.

A dataset that was read once is kept as a folder:

    clips.jsonl    one clip a line, in the dataset's order, which is that of their content digests
    dataset.json   wanted labels, and what was left out with the reason why; written last

What is learned of the clips' content is kept in the workdir that the caller names (fetched.py), so that a second
reading opens only what is new. Clips lie in a file while they are worked on: memory holds some hundred bytes of each,
one tar or folder of a bucket, and every name of a table and every group.
"""

import csv
import io
import itertools
import json
import os
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from twophase.audio import sources
from twophase.audio.clips import Clip as Clip
from twophase.audio.clips import Clips
from twophase.audio.clips import read_clips as read_clips
from twophase.audio.decode import SUFFIXES
from twophase.audio.fetched import Digests
from twophase.audio.sources import Found
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import digest, read_json, replacing, write_json

SPLITS = ("train", "validation", "test")
_SHARES = (0.70, 0.15, 0.15)
_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_BATCH = 1_024  # files asked for before the first of them is waited for

TABLE = "labels.csv"
"""The file of a data folder that says what its clips are, where it is there."""


@dataclass(frozen=True)
class Dataset:
    """Clips by content, the labels that the gate lets through, and what was left out with the reason why."""

    clips: Sequence[Clip]
    wanted: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, sorted."""
        return tuple(sorted({c.label for c in self.clips}))


def split_of(group: str) -> str:
    """The side of the split on which a group stands: a fixed hash, whatever else is in the dataset."""
    position = int(digest(f"twophase-split/1:{group}".encode())[:8], 16) / 2**32
    return SPLITS[0] if position < _SHARES[0] else SPLITS[1] if position < _SHARES[0] + _SHARES[1] else SPLITS[2]


def read_source(source: Path | str, wanted: Sequence[str] | None = None, workdir: Path | None = None) -> Dataset:
    """The dataset at a folder, a CSV file, tars or a URL of one. `wanted` overrides its `wanted.txt`.

    Raises as `find_clips` does, and `UsageError` when `wanted` does not fit the labels.
    """
    clips, skipped = find_clips(source, workdir)
    return Dataset(clips, _wanted(place_of(source)[0], wanted, {c.label for c in clips}), tuple(skipped))


def find_clips(source: Path | str, workdir: Path | None = None) -> tuple[Clips, list[tuple[str, str]]]:
    """The clips of a folder, a CSV file, tars or a URL of one by content, and the files left out with the reason why.

    `workdir` is where digests are kept between readings. Raises `TwoPhaseError` when there is nothing to read, a named
    file is missing, a bucket refuses, or clips stand on both sides.
    """
    place, table = place_of(source)
    files = sources.listing(place)
    top = []
    for file in files:  # a folder's files come before what is below it
        top.append(file)
        if "/" in file.name:
            break
    files = itertools.chain(top, files)
    skipped: list[tuple[str, str]] = []
    if table.endswith(".csv"):
        rows = _from_csv(table, place, files, [])  # who names a table among several means no other clips
    elif not table and any(f.name == TABLE for f in top):
        rows = _from_csv(TABLE, place, files, skipped)
    elif table:
        rows = _from_tar(next((f for f in files if f.name == table), Found(table, f"{place}/{table}", "")), skipped)
    else:
        rows = _from_folders(files, skipped)
    clips = _by_content(rows, skipped, workdir)
    if not clips:
        raise TwoPhaseError(
            f"{source}: has no clips; a folder of label/clip files ({', '.join(SUFFIXES)}), a labels.csv or tars of "
            "key.wav and key.cls are accepted"
        )
    return clips, skipped


def place_of(source: Path | str) -> tuple[str, str]:
    """The folder or prefix of a source, and the name of the one file in it that is meant (or an empty one).

    Raises `TwoPhaseError` when it is neither.
    """
    source = str(source)
    if sources.is_url(source):
        folder, _, last = source.rstrip("/").rpartition("/")
        return (folder, last) if last.endswith((".csv", ".tar")) else (source.rstrip("/"), "")
    path = Path(source).expanduser().resolve()
    if path.is_file() and path.suffix.lower() in (".csv", ".tar"):
        return str(path.parent), path.name
    if path.is_dir():
        return str(path), ""
    raise TwoPhaseError(
        f"{source}: is no folder and no .csv or .tar file; give a folder of label/clip files, a labels.csv or a tar"
    )


def parse_wanted(text: str) -> tuple[str, ...]:
    """`--wanted`: a file with one label a line, or labels with commas between."""
    path = os.path.expanduser(text)  # noqa: PTH111 - text that is no path, or too long for one, is no error here
    if not os.path.isfile(path):  # noqa: PTH113 - the same
        lines = text.split(",")
    else:
        try:
            lines = Path(path).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TwoPhaseError(f"{path}: cannot be read ({error}); give a UTF-8 file, one label a line") from None
    return tuple(line.strip() for line in lines if line.strip())


class Sides:
    """Watches that no clip and no group stands on two sides of the split: one clip at a time, by content in order."""

    def __init__(self) -> None:
        self._groups: dict[str, tuple[str, str]] = {}
        self._last: Clip | None = None

    def add(self, clip: Clip) -> None:
        """Raise `TwoPhaseError` when this clip or its group was added on another side."""
        if self._last is not None and self._last.sha256 == clip.sha256:
            _one_side("the same sound", clip, self._last.name, self._last.split)
        self._last = clip
        if clip.group != clip.sha256:  # a clip that is its own group is watched already
            _one_side(f"group {clip.group!r}", clip, *self._groups.setdefault(clip.group, (clip.name, clip.split)))


def _one_side(what: str, clip: Clip, name: str, split: str) -> None:
    if split != clip.split:
        raise TwoPhaseError(
            f"{what} stands on more than one side of the split: {name} in {split}, {clip.name} in {clip.split}; "
            "a clip or group belongs to one side, correct the split or group column"
        )


def write(folder: Path, dataset: Dataset) -> None:
    """Keep a dataset in `folder`."""
    with replacing(folder / "clips.jsonl", "w") as file:
        file.writelines(json.dumps(clip.to_json()) + "\n" for clip in dataset.clips)
    write_json(folder / "dataset.json", {"wanted": dataset.wanted, "skipped": dataset.skipped})


def read(folder: Path) -> Dataset:
    """The dataset that `write` kept in `folder`."""
    head = read_json(folder / "dataset.json", "dataset")
    skipped = tuple((name, reason) for name, reason in head["skipped"])
    return Dataset(Clips(folder / "clips.jsonl"), tuple(head["wanted"]), skipped)


@dataclass(frozen=True, slots=True)
class _Row:
    file: Found
    label: str
    group: str | None = None
    split: str | None = None


def _from_folders(files: Iterable[Found], skipped: list[tuple[str, str]]) -> Iterator[_Row]:
    for file in files:
        is_clip = PurePosixPath(file.name).suffix.lower() in SUFFIXES
        if file.name.endswith(".tar"):
            yield from _from_tar(file, skipped)
        elif "/" not in file.name:
            if is_clip:
                skipped.append((file.name, "lies outside of any label's folder; put it into one named after its label"))
        elif not is_clip:
            skipped.append((file.name, f"is no clip by its name; {', '.join(SUFFIXES)} are"))
        else:
            yield _Row(file, file.name.split("/")[0])


def _from_tar(tar: Found, skipped: list[tuple[str, str]]) -> Iterator[_Row]:
    """A tar's clips: files that share the name up to the first dot of its last part describe one clip."""
    by_key: dict[str, dict[str, Found]] = defaultdict(dict)
    for member in sources.members(tar):
        folder, _, last = member.name.rpartition("/")
        key, _, kind = last.partition(".")
        by_key[f"{folder}/{key}" if folder else key]["." + kind.lower()] = member
    for key, kinds in by_key.items():
        clips = [kinds[kind] for kind in SUFFIXES if kind in kinds]
        if not clips:
            skipped.append((f"{tar.name}/{key}", f"has no clip by its names; {', '.join(SUFFIXES)} are"))
            continue
        member = clips[0]
        facts = _sidecar(kinds) or ({"label": key.split("/")[0]} if "/" in key else {})
        if not facts.get("label"):
            raise TwoPhaseError(
                f"{tar.location}: {member.name} has no label; put {key}.cls, {key}.txt or {key}.json beside it"
            )
        named = Found(f"{tar.name}/{member.name}", member.location, member.stamp)
        split = _split(facts.get("split"), f"{tar.location}: {key}.json")
        yield _Row(named, str(facts["label"]).strip(), facts.get("group"), split)


def _sidecar(kinds: dict[str, Found]) -> dict[str, Any]:
    for kind in (".json", ".cls", ".txt"):
        if kind not in kinds:
            continue
        text = sources.read(kinds[kind].location)
        try:
            facts = json.loads(text) if kind == ".json" else {"label": text.decode()}
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise TwoPhaseError(f"{kinds[kind].location} ({kinds[kind].name}): is no label; text or JSON is accepted")
        return facts
    return {}


def _from_csv(name: str, place: str, files: Iterable[Found], skipped: list[tuple[str, str]]) -> Iterator[_Row]:
    by_path = {f.name: f for f in files}
    table = by_path.get(name)
    if table is None:
        raise TwoPhaseError(f"{place}: has no such .csv file; give one that is there")
    try:
        text = sources.read(table.location).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TwoPhaseError(f"{table.location}: is no UTF-8 text ({error.reason}); save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = set(reader.fieldnames or ())
    if not {"fname", "label"} <= columns:
        raise TwoPhaseError(
            f"{table.location}: has the columns {', '.join(sorted(columns)) or 'none'}; "
            "fname,label,manually_verified[,group][,split] are accepted"
        )
    by_name: dict[str, list[Found]] = defaultdict(list)
    for listed in by_path.values():
        by_name[PurePosixPath(listed.name).name].append(listed)
    named = set()
    for number, row in enumerate(reader, start=2):
        where = f"{table.location}: line {number}"
        fname, label = (row["fname"] or "").strip(), (row["label"] or "").strip()
        if not fname or not label:
            raise TwoPhaseError(f"{where} lacks fname or label; give both")
        same = by_name[PurePosixPath(fname).name]
        found = by_path.get(fname) or (same[0] if same else None)
        if found is None:
            raise TwoPhaseError(f"{where} names {fname}, which is not below {place}; add the file or remove the line")
        if fname not in by_path and len(same) > 1:
            raise TwoPhaseError(f"{where}: {fname} is there {len(same)} times below {place}; name it by its path")
        group = (row.get("group") or "").strip() or None
        named.add(found.name)
        yield _Row(found, label, group, _split(row.get("split"), where))
    for other in by_path:
        if other not in named and PurePosixPath(other).suffix.lower() in (*SUFFIXES, ".tar"):
            skipped.append((other, f"is not named in {name}, which alone says what clips there are; add it there"))


def _split(text: str | None, where: str) -> str | None:
    split = (text or "").strip().lower()
    if split and split not in _ALIASES:
        raise TwoPhaseError(f"{where} has split {split!r}; {', '.join(SPLITS)} are accepted")
    return _ALIASES[split] if split else None


def _by_content(rows: Iterator[_Row], skipped: list[tuple[str, str]], workdir: Path | None) -> Clips:
    """The clips of rows in the order of their digests, each sound once."""
    digests, shas = Digests(workdir), bytearray()

    def found() -> Iterator[Clip]:
        while batch := [*itertools.islice(rows, _BATCH)]:
            for row, sha in zip(batch, digests.of([row.file for row in batch]), strict=True):
                if isinstance(sha, sources.Unreachable):
                    if sources.is_url(row.file.location) and not sha.gone:
                        raise sha  # a bucket out of order would leave out every clip behind it
                    skipped.append((row.file.name, sha.reason))
                    continue
                shas.extend(bytes.fromhex(sha))
                group = row.group or sha
                split = row.split or split_of(group)
                yield Clip(sha, row.file.location, row.file.name, row.label, group, split)

    with digests:
        clips = Clips.of(found())
    order = np.lexsort(np.frombuffer(shas, ">u8").reshape(-1, 4).T[::-1])
    return _without_duplicates(clips.at(order), skipped)


def _without_duplicates(clips: Clips, skipped: list[tuple[str, str]]) -> Clips:
    sides, kept, position = Sides(), array("q"), 0
    for _, copies in itertools.groupby(clips, lambda c: c.sha256):
        first, *others = sorted(enumerate(copies, position), key=lambda at: at[1].name)
        kept.append(first[0])
        position += 1 + len(others)
        sides.add(first[1])
        for _, clip in others:
            sides.add(clip)
            if first[1].label != clip.label:
                raise TwoPhaseError(
                    f"{clip.name} is labelled {clip.label} and has the same content as {first[1].name}, labelled "
                    f"{first[1].label}; a clip has one label, remove one of the two"
                )
            skipped.append((clip.name, f"is a copy of {first[1].name}"))
    return clips.at(np.array(kept, np.int64))


def _wanted(place: str, given: Sequence[str] | None, labels: set[str]) -> tuple[str, ...]:
    file = f"{place}/wanted.txt"
    known = f"the labels of this data are {', '.join(sorted(labels))}"
    if given is None:
        try:
            text = sources.read(file).decode("utf-8-sig")
        except sources.Unreachable:
            raise UsageError(
                f"--wanted: which labels should the gate let through? Name them, or list them in {file}; {known}"
            ) from None
        except UnicodeDecodeError as error:
            raise TwoPhaseError(f"{file}: is no UTF-8 text ({error.reason}); save it as UTF-8") from None
        wanted = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        wanted = tuple(given)
    source = "--wanted" if given is not None else file
    unknown = [w for w in wanted if w not in labels]
    if unknown or not wanted:
        raise UsageError(f"{source}: {', '.join(unknown) or 'an empty list'} is no label of this data; {known}")
    if set(wanted) == labels:
        raise UsageError(f"{source}: every label is wanted, so the gate has nothing to stop; {known}")
    return tuple(sorted(set(wanted)))
