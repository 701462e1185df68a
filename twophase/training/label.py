"""The loop with people: which clips are most worth listening to, and what came of it.

    SHEET.csv     fname,label,manually_verified,group,split,suggestion,why    the most worth first

A person listens from the top, corrects `label` where it is wrong or missing, and puts 1 into `manually_verified`.
`merge` takes the lines so marked into the data folder's `labels.csv`, which the next run reads; other lines change
nothing.

Test clips are never chosen by what the models answered: a test set that is put right only where they were wrong would
flatter them. They come up in the audit alone, clips drawn by chance from those that the gate stopped, which no answer
of the classifier would ever bring to light. Both files are written whole or not at all.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from twophase.audio import sources
from twophase.audio.dataset import TABLE, Clip, find_clips, split_of
from twophase.audio.decode import SUFFIXES
from twophase.audio.frontend import Floats
from twophase.errors import TwoPhaseError
from twophase.files import digest, replacing
from twophase.release import manifest
from twophase.release.manifest import EXTRA, NONE
from twophase.training.answers import Answers, ask

AUDIT = 5
"""One line in so many is drawn by chance from what the gate stopped."""

_COLUMNS = ("fname", "label", "manually_verified", "group", "split")
_Row = dict[str, str]


@dataclass(frozen=True)
class Choice:
    """A clip worth listening to; its label is empty where nobody has given one."""

    clip: Clip
    suggestion: str
    """What the pair takes it for."""
    why: str


def choose(release: Path, data: Path, count: int, progress: Callable[[int, int], object]) -> list[Choice]:
    """Up to `count` clips of a data folder to listen to, the most worth first, one of a group.

    Candidates are its labelled clips and, where it has a `labels.csv`, the clips below it that this does not name.
    Those that a person has verified before count half.
    """
    found = manifest.verify(release)
    manifest.require_front_end(found)
    clips = [*find_clips(data)[0], *_unlabelled(data)]
    done = 0

    def report(n: int) -> None:
        nonlocal done
        done += n
        progress(done, len(clips))

    extra = release / EXTRA
    given = ask(extra / "gate.tflite", extra / "classifier.tflite", (*found.labels, NONE), clips, report)
    verified = {row["fname"] for row in _table(data) if row.get("manually_verified") == "1"}
    heard = np.array([c.name in verified or PurePosixPath(c.name).name in verified for c in given.clips], bool)
    return rank(given, found.operating_point.threshold, heard, count)


def rank(
    given: Answers, threshold: float, verified: "np.ndarray[tuple[int], np.dtype[np.bool_]]", count: int
) -> list[Choice]:
    """The choice among clips with these answers; `verified` [n] says which a person has listened to before."""
    none, passed = len(given.names) - 1, given.gate >= threshold
    named = np.where(passed, given.probabilities.argmax(axis=1), none)
    worth, why = _worth(given, passed)
    worth = np.where(verified, worth / 2, worth)
    tested = np.array([c.split == "test" for c in given.clips], bool)
    by_worth = [i for i in np.argsort(-worth, kind="stable") if not tested[i] and worth[i] > 0]
    by_chance = [i for i in np.argsort([c.sha256 for c in given.clips]) if not passed[i] and not verified[i]]
    audited = _one_of_a_group(given.clips, by_chance, count // AUDIT, set())
    groups = {given.clips[i].group for i in audited}
    chosen = _one_of_a_group(given.clips, by_worth, count - len(audited), groups)
    reasons = {**{i: why[i] for i in chosen}, **dict.fromkeys(audited, "drawn by chance from what the gate stopped")}
    return [Choice(given.clips[i], given.names[named[i]], reason) for i, reason in reasons.items()]


def write(sheet: Path, choices: Iterable[Choice]) -> None:
    """Write the sheet to be filled in."""
    with replacing(sheet, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*_COLUMNS, "suggestion", "why"))
        for found in choices:
            clip = found.clip
            group = "" if clip.group == clip.sha256 else clip.group
            writer.writerow((clip.name, clip.label, 0, group, clip.split, found.suggestion, found.why))


def merge(data: Path, sheet: Path) -> int:
    """Take the verified lines of a sheet into the `labels.csv` of `data`; return how many labels that changed or gave.

    Clips keep their group and split. Raises `TwoPhaseError`, and changes nothing, when a verified line has no label or
    names a clip that is not there.
    """
    answers = {row["fname"]: row for row in _read(sheet) if row.get("manually_verified", "").strip() == "1"}
    clips = {c.name: c for c in [*find_clips(data)[0], *_unlabelled(data)]}
    for name, row in answers.items():
        if name not in clips:
            raise TwoPhaseError(f"{sheet}: names {name}, which is not below {data}; take that line out")
        if not row["label"].strip():
            raise TwoPhaseError(f"{sheet}: {name} is verified and has no label; give one, or put 0 for unheard")
    rows = _table(data) or [
        {"fname": c.name, "label": c.label, "manually_verified": "0", "split": c.split}
        for c in clips.values()
        if c.label
    ]
    of_file = {PurePosixPath(name).name: name for name in clips}
    changed = 0
    for row in rows:
        answer = answers.pop(row["fname"], None) or answers.pop(of_file.get(row["fname"], ""), None)
        if answer:
            changed += row["label"] != answer["label"].strip()
            row.update(label=answer["label"].strip(), manually_verified="1")
    rows += [{name: answer.get(name, "").strip() for name in _COLUMNS} for answer in answers.values()]
    with replacing(data / TABLE, "w") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*rows[0], *_COLUMNS])), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return changed + len(answers)


def _worth(given: Answers, passed: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> tuple[Floats, list[str]]:
    """From 0 to 1 what a person's answer would tell, and why, for every clip."""
    p, n = given.probabilities, np.arange(len(given.clips))
    ordered, none = np.sort(p, axis=1), p[:, -1]
    labelled = np.array([bool(c.label) for c in given.clips], bool)
    reasons = {
        "the two models disagree": np.where(passed, none, np.where(p.argmax(axis=1) < p.shape[1] - 1, 1 - none, 0)),
        "two answers are nearly as likely": np.where(passed, 1 - (ordered[:, -1] - ordered[:, -2]), 0),
        "the label is doubted": np.where(labelled, 1 - p[n, given.truth], 0),
    }
    every = np.stack(list(reasons.values()))
    return every.max(axis=0).astype(np.float32), [list(reasons)[i] for i in every.argmax(axis=0)]


def _one_of_a_group(clips: tuple[Clip, ...], order: Iterable[int], count: int, taken: set[str]) -> list[int]:
    chosen: list[int] = []
    for i in order:
        if len(chosen) < count and clips[i].group not in taken:
            taken.add(clips[i].group)
            chosen.append(int(i))
    return chosen


def _unlabelled(data: Path) -> list[Clip]:
    """The clips below a folder that its `labels.csv` does not name; none where the folders are the labels."""
    named = {row["fname"] for row in _table(data)}
    if not named:
        return []
    clips = []
    for file in sources.listing(str(data.resolve())):
        path = PurePosixPath(file.name)
        if path.suffix.lower() in SUFFIXES and not {file.name, path.name} & named:
            sha = digest(sources.read(file.location))
            clips.append(Clip(sha, file.location, file.name, "", sha, split_of(sha)))
    return clips


def _table(data: Path) -> list[_Row]:
    return _read(data / TABLE) if (data / TABLE).is_file() else []


def _read(path: Path) -> list[_Row]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""))
    except (OSError, UnicodeDecodeError) as error:
        raise TwoPhaseError(f"{path}: cannot be read ({error}); give a UTF-8 file with commas") from None
    if not {"fname", "label"} <= set(reader.fieldnames or ()):
        raise TwoPhaseError(f"{path}: lacks fname or label; the columns {', '.join(_COLUMNS)} are accepted")
    return [{name: value or "" for name, value in row.items() if name} for row in reader]
