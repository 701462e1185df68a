"""The loop with people: which clips are most worth listening to, and what came of it.

    SHEET.csv     fname,label,manually_verified,group,split,suggestion,why    the most worth first

A person listens from the top, corrects `label` where it is wrong or missing, and puts 1 into `manually_verified`.
`merge` takes the lines so marked into the table of the data (the CSV file that was given, or `labels.csv`), which the
next run reads; other lines change nothing. Where folders were the labels, the table is made and takes their place:
what is put into them later must be added to it, and is named as left out until then.

Test clips are never chosen by what the models answered: a test set that is put right only where they were wrong would
flatter them. They come up in the audit alone, drawn by chance from all test clips, whatever the gate did with them;
beside them it draws other clips that the gate stopped, which no answer of the classifier would ever bring to light.
Both files are written whole or not at all.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from twophase.audio import sources
from twophase.audio.dataset import TABLE, Clip, find_clips, place_of, split_of
from twophase.audio.decode import SUFFIXES
from twophase.audio.frontend import Floats
from twophase.errors import TwoPhaseError
from twophase.files import digest, replacing
from twophase.release import manifest
from twophase.release.manifest import EXTRA, NONE
from twophase.training.answers import Answers, ask

AUDIT = 5
"""One line in so many is drawn by chance."""

_COLUMNS = ("fname", "label", "manually_verified", "group", "split")
_Row = dict[str, str]


@dataclass(frozen=True)
class Choice:
    """A clip worth listening to; its label is empty where nobody has given one."""

    clip: Clip
    suggestion: str
    """What the pair takes it for."""
    why: str


def choose(release: Path, data: Path | str, count: int, progress: Callable[[int, int], object]) -> list[Choice]:
    """Up to `count` clips of a data folder, table or URL to listen to, the most worth first, one of a group.

    Candidates are its labelled clips and, where a table has the labels, the clips beside it that this does not name.
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
    drawn = ~verified & (tested | ~passed)
    by_chance = [i for i in np.argsort([c.sha256 for c in given.clips]) if drawn[i]]
    audited = _one_of_a_group(given.clips, by_chance, count // AUDIT, set())
    groups = {given.clips[i].group for i in audited}
    chosen = _one_of_a_group(given.clips, by_worth, count - len(audited), groups)
    reasons = {i: why[i] for i in chosen}
    for i in audited:
        reasons[i] = f"drawn by chance from {'the test clips' if tested[i] else 'what the gate stopped'}"
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


def merge(data: Path | str, sheet: Path) -> int:
    """Take the verified lines of a sheet into the table of `data`; return how many labels that changed or gave.

    Clips keep their group and split. Raises `TwoPhaseError`, and changes nothing, when a verified line has no label or
    names a clip that is not there, or the labels are in tars.
    """
    answers = {row["fname"]: row for row in _read(sheet) if row.get("manually_verified", "").strip() == "1"}
    labelled, rows = find_clips(data)[0], _table(data)
    clips = {c.name: c for c in [*labelled, *_unlabelled(data)]}
    for name, row in answers.items():
        if name not in clips:
            raise TwoPhaseError(f"{sheet}: names {name}, which is not below {data}; take that line out")
        if not row["label"].strip():
            raise TwoPhaseError(f"{sheet}: {name} is verified and has no label; give one, or put 0 for unheard")
    inside = next((c.name for c in labelled if ".tar#" in c.path), None)
    if inside is not None:
        raise TwoPhaseError(
            f"{data}: {inside} is in a tar, and no table can name what is in one; correct the labels in the tar "
            "(key.cls or key.json), or unpack the tars into folders of labels first"
        )
    if not rows:
        rows = [{"fname": c.name, "label": c.label, "manually_verified": "0", "split": c.split} for c in labelled]
    of_file = {PurePosixPath(name).name: name for name in clips}
    changed = 0
    for row in rows:
        answer = answers.pop(row["fname"], None) or answers.pop(of_file.get(row["fname"], ""), None)
        if answer:
            changed += row["label"] != answer["label"].strip()
            row.update(label=answer["label"].strip(), manually_verified="1")
    rows += [{name: answer.get(name, "").strip() for name in _COLUMNS} for answer in answers.values()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys([*rows[0], *_COLUMNS])), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    sources.write(table_of(data), text.getvalue().encode())
    return changed + len(answers)


def table_of(data: Path | str) -> str:
    """Where the table of a data folder, CSV file or URL of one is, or would be."""
    place, name = place_of(data)
    return f"{place}/{name if name.endswith('.csv') else TABLE}"


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


def _unlabelled(data: Path | str) -> list[Clip]:
    """The clips beside a table that it does not name; none where there is no table."""
    named = {row["fname"] for row in _table(data)}
    if not named:
        return []
    clips = []
    for file in sources.listing(place_of(data)[0]):
        path = PurePosixPath(file.name)
        if path.suffix.lower() in SUFFIXES and not {file.name, path.name} & named:
            sha = digest(sources.read(file.location))
            clips.append(Clip(sha, file.location, file.name, "", sha, split_of(sha)))
    return clips


def _table(data: Path | str) -> list[_Row]:
    """The lines of the table of `data`; none where there is no table."""
    if place_of(data)[1].endswith(".tar"):
        return []
    try:
        return _rows(table_of(data), sources.read(table_of(data)))
    except sources.Unreachable as error:
        if error.gone:
            return []
        raise


def _read(sheet: Path) -> list[_Row]:
    return _rows(str(sheet), sources.read(str(sheet)))


def _rows(name: str, content: bytes) -> list[_Row]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise TwoPhaseError(f"{name}: is no UTF-8 text ({error.reason}); give a UTF-8 file with commas") from None
    if not {"fname", "label"} <= set(reader.fieldnames or ()):
        raise TwoPhaseError(f"{name}: lacks fname or label; the columns {', '.join(_COLUMNS)} are accepted")
    return [{name: value or "" for name, value in row.items() if name} for row in reader]
