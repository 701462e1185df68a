"""`heard.csv`: which clips a release learned from or was tuned on, so that nothing it has heard ever tests it.

assets.extra/heard.csv    clip,group,split: the first 16 hex digits of the digests of content and group; and on
                          which side the clip stood: train, or validation for those that chose the threshold
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from twophase.audio.dataset import Clip
from twophase.files import digest
from twophase.release.manifest import EXTRA, ReleaseError

HEARD = f"{EXTRA}/heard.csv"
_COLUMNS = ("clip", "group", "split")

Line = tuple[str, str, str]


def lines_of(clips: Iterable[Clip]) -> set[Line]:
    """What `heard.csv` says of clips: those of the test split are not heard."""
    return {(c.sha256[:16], _group(c), c.split) for c in clips if c.split != "test"}


def write(release: Path, lines: Iterable[Line]) -> None:
    """Write `heard.csv` into a release that is being made."""
    with (release / HEARD).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(sorted(set(lines)))


def read(release: Path) -> set[Line]:
    """The lines of a release's `heard.csv`. Raises `ReleaseError` when it has none, or not a whole one."""
    try:
        with (release / HEARD).open(newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file, strict=True)
            if tuple(head) == _COLUMNS:
                return {(clip, group, split) for clip, group, split in lines}
    except (OSError, ValueError, csv.Error):
        pass
    raise ReleaseError(
        f"{release}: has no whole {HEARD}, so nobody knows which clips it has heard; "
        "take an untouched copy of the release, or export it again"
    )


def unheard(release: Path, clips: Sequence[Clip], splits: Sequence[str] = ("train", "validation")) -> list[Clip]:
    """The clips of which neither content nor group was heard on one of these sides."""
    heard = [line for line in read(release) if line[2] in splits]
    known, groups = {clip for clip, _, _ in heard}, {group for _, group, _ in heard}
    return [c for c in clips if c.sha256[:16] not in known and _group(c) not in groups]


def _group(clip: Clip) -> str:
    return digest(clip.group.encode())[:16]
