"""Labelled clips: where they are, what they are, and on which side of the split each stands, for ever.

A data folder holds either `label/clip` files or a `labels.csv` (`fname,label,manually_verified[,group][,split]`, the
columns of FSDKaggle2018) somewhere above the clips, and maybe `wanted.txt`: the labels that the gate lets through, one
a line. Clips are known by content (sha256), so a renamed file is the same clip and an exact copy is a duplicate.

A clip's split is a fixed hash of its group (of its content where no group is given): 70 % train, 15 % validation,
15 % test. New clips never move old ones, so a clip that one version was trained on never tests the next. The same clip
or group on two sides fails the run.

A dataset that was read once is kept as a folder:

    clips.jsonl    one clip a line, in the order of their content digests
    dataset.json   wanted labels, and what was left out with the reason why; written last
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from twophase.audio.decode import SUFFIXES
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
}


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of a dataset."""

    sha256: str
    path: str
    """The file, absolute."""
    name: str
    """How people call it: its path below the data folder."""
    label: str
    group: str
    split: str


@dataclass(frozen=True)
class Dataset:
    """Clips by content, the labels that the gate lets through, and what was left out with the reason why."""

    clips: tuple[Clip, ...]
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


def read_source(source: Path, wanted: Sequence[str] | None = None) -> Dataset:
    """The dataset of a folder or a CSV file. `wanted` overrides its `wanted.txt`; one of the two must be there.

    Raises as `find_clips` does, and `UsageError` when `wanted` does not fit the labels.
    """
    clips, skipped = find_clips(source)
    folder = source.expanduser().resolve()
    folder = folder if folder.is_dir() else folder.parent
    return Dataset(tuple(clips), _wanted(folder, wanted, {c.label for c in clips}), tuple(skipped))


def find_clips(source: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """The clips of a folder or a CSV file, and the files left out with the reason why.

    Raises `TwoPhaseError` when there is nothing to read, a named file is missing, or clips stand on both sides.
    """
    source = source.expanduser().resolve()
    if source.is_file() and source.suffix.lower() == ".csv":
        table, folder = source, source.parent
    elif source.is_dir():
        table, folder = source / "labels.csv", source
    else:
        raise TwoPhaseError(
            f"{source}: is no folder and no .csv file; give a folder of label/clip files or a labels.csv"
        )
    skipped: list[tuple[str, str]] = []
    rows = list(_from_csv(table, folder)) if table.is_file() else list(_from_folders(folder, skipped))
    if not rows:
        raise TwoPhaseError(
            f"{source}: has no clips; a folder of label/clip files ({', '.join(SUFFIXES)}) or a labels.csv is accepted"
        )
    clips = _by_content(rows, skipped)
    sides = Sides()
    for clip in clips:
        sides.add(clip)
    return _without_duplicates(clips, skipped), skipped


def parse_wanted(text: str) -> tuple[str, ...]:
    """`--wanted`: a file with one label a line, or labels with commas between."""
    path = Path(text).expanduser()
    lines = path.read_text("utf-8").splitlines() if path.is_file() else text.split(",")
    return tuple(line.strip() for line in lines if line.strip())


class Sides:
    """Watches that no clip and no group stands on two sides of the split, one clip at a time."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def add(self, clip: Clip) -> None:
        """Raise `TwoPhaseError` when this clip or its group was added on another side."""
        for what, key in (("the same sound", clip.sha256), (f"group {clip.group!r}", f"group {clip.group}")):
            if what != "the same sound" and clip.group == clip.sha256:
                continue  # a clip that is its own group is watched already
            name, split = self._seen.setdefault(key, (clip.name, clip.split))
            if split != clip.split:
                where = f"{name} in {split}, {clip.name} in {clip.split}"
                raise TwoPhaseError(
                    f"{what} stands on more than one side of the split: {where}; "
                    "a clip or group belongs to one side, correct the split or group column"
                )


def write(folder: Path, dataset: Dataset) -> None:
    """Keep a dataset in `folder`."""
    with replacing(folder / "clips.jsonl", "w") as file:
        file.writelines(json.dumps(asdict(clip)) + "\n" for clip in sorted(dataset.clips, key=lambda c: c.sha256))
    write_json(folder / "dataset.json", {"wanted": dataset.wanted, "skipped": dataset.skipped})


def read(folder: Path) -> Dataset:
    """The dataset that `write` kept in `folder`."""
    head = read_json(folder / "dataset.json", "dataset")
    skipped = tuple((name, reason) for name, reason in head["skipped"])
    return Dataset(tuple(read_clips(folder / "clips.jsonl")), tuple(head["wanted"]), skipped)


def read_clips(path: Path) -> Iterator[Clip]:
    """The clips of a `clips.jsonl`, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Clip(**json.loads(line))


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    name: str
    label: str
    group: str | None = None
    split: str | None = None


def _from_folders(folder: Path, skipped: list[tuple[str, str]]) -> Iterator[_Row]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
        if "/" not in name:
            if path.name != "wanted.txt" and path.suffix.lower() in SUFFIXES:
                skipped.append((name, "lies outside of any label's folder; put it into one named after its label"))
        elif path.suffix.lower() not in SUFFIXES:
            skipped.append((name, f"is no clip by its name; {', '.join(SUFFIXES)} are"))
        else:
            yield _Row(path, name, name.split("/")[0])


def _from_csv(table: Path, folder: Path) -> Iterator[_Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if not {"fname", "label"} <= columns:
            raise TwoPhaseError(
                f"{table}: has the columns {', '.join(sorted(columns)) or 'none'}; "
                "fname,label,manually_verified[,group][,split] are accepted"
            )
        places = _Places(folder)
        for number, row in enumerate(reader, start=2):
            fname, label = (row["fname"] or "").strip(), (row["label"] or "").strip()
            if not fname or not label:
                raise TwoPhaseError(f"{table}: line {number} lacks fname or label; give both")
            split = (row.get("split") or "").strip().lower() or None
            if split is not None and split != "test" and split not in _ALIASES:
                raise TwoPhaseError(f"{table}: line {number} has split {split!r}; {', '.join(SPLITS)} are accepted")
            path = places.find(fname)
            if path is None:
                raise TwoPhaseError(
                    f"{table}: line {number} names {fname}, which is not below {folder}; "
                    "add the file or remove the line"
                )
            group = (row.get("group") or "").strip() or None
            yield _Row(path, fname, label, group, _ALIASES.get(split, split) if split else None)


class _Places:
    """Where a CSV's files lie: beside it by relative path, else anywhere below it by an unambiguous name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, fname: str) -> Path | None:
        path = self._folder / fname
        if path.is_file():
            return path
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for found in self._folder.rglob("*"):
                if found.is_file():
                    self._by_name[found.name].append(found)
        found_here = self._by_name.get(Path(fname).name, [])
        if len(found_here) > 1:
            raise TwoPhaseError(f"{fname}: is there {len(found_here)} times below {self._folder}; name it by its path")
        return found_here[0] if found_here else None


def _by_content(rows: Sequence[_Row], skipped: list[tuple[str, str]]) -> list[Clip]:
    clips = []
    for row in rows:
        try:
            sha = digest(row.path)
        except OSError as error:
            skipped.append((row.name, f"cannot be read ({error.strerror})"))
            continue
        group = row.group or sha
        clips.append(Clip(sha, str(row.path), row.name, row.label, group, row.split or split_of(group)))
    return clips


def _without_duplicates(clips: Sequence[Clip], skipped: list[tuple[str, str]]) -> list[Clip]:
    first: dict[str, Clip] = {}
    for clip in sorted(clips, key=lambda c: (c.sha256, c.name)):
        kept = first.setdefault(clip.sha256, clip)
        if kept is clip:
            continue
        if kept.label != clip.label:
            raise TwoPhaseError(
                f"{clip.name} is labelled {clip.label} and has the same content as {kept.name}, labelled {kept.label}; "
                "a clip has one label, remove one of the two"
            )
        skipped.append((clip.name, f"is a copy of {kept.name}"))
    return list(first.values())


def _wanted(folder: Path, given: Sequence[str] | None, labels: set[str]) -> tuple[str, ...]:
    file = folder / "wanted.txt"
    known = f"the labels of this data are {', '.join(sorted(labels))}"
    if given is None and not file.is_file():
        raise UsageError(
            f"--wanted: which labels should the gate let through? Name them, or list them in {file}; {known}"
        )
    source, wanted = ("--wanted", tuple(given)) if given is not None else (str(file), parse_wanted(str(file)))
    unknown = [w for w in wanted if w not in labels]
    if unknown or not wanted:
        raise UsageError(f"{source}: {', '.join(unknown) or 'an empty list'} is no label of this data; {known}")
    if set(wanted) == labels:
        raise UsageError(f"{source}: every label is wanted, so the gate has nothing to stop; {known}")
    return tuple(sorted(set(wanted)))
