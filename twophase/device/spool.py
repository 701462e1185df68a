"""The spool: clips that wait for the cloud, each one file, safe from kills, power cuts, full disks and flipped bits.

    SPOOL/.lock                              who holds it
    SPOOL/v1/                                the format is in the name, which no flipped bit changes
      clips/000000017000/000000017042.flac   a folder for each thousand sequence numbers; clip.py: what is in a file
      answers/000000017041.json              what the cloud said, with the clip's story; the newest `keep_answers`
      stories/000000017038.json              stories of clips that made room after the gateway had them; as many
      refused/000000017040.flac, .why        what the cloud will not take: the dead letters
      damaged/000000017039.flac, .why        what is not as it was written
      incoming/                              files being written; emptied at every start
      index.db                               an index of clips/; index.py: why nothing rests on it

A clip is acknowledged when `put` returns: its file was synced under `incoming/`, renamed, and its folder synced. It
leaves only by an answer (which is synced first), a refusal, damage, or pressure: when a new clip does not fit in
`max_bytes` or on the disk, what is worth least goes, and may be the new clip itself. First go clips that the gateway
already has (their story stays for the answer), then damaged and refused ones, then by worth: the gate's margin, plus
`recency` for every thousand clips heard later. What is being sent never goes. Files of every kind count, rounded up to
blocks of the disk.

After a crash what was acknowledged is there, and nothing is there in part. A sequence number is never used twice, also
when the index is lost: a folder of a thousand is made and synced before its first number is used, and every start
begins a new one. Order is the order of sequence numbers; no clock has a part in it.
"""

import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twophase.device import clip
from twophase.device.clip import PCM, Damaged, Heard, Story
from twophase.device.durable import SpoolError, SpoolFull, make_folder, sealed, spool_error, unsealed, write_new
from twophase.device.index import SENT, WAITING, Index, IndexLost, Row, discard, is_full, size_on_disk
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, locked, sync

FORMAT = "v1"
FOLDER_OF = 1000
"""Sequence numbers in one folder."""

MIN_BYTES = 16 << 20
"""Smallest `max_bytes`: what the spool itself needs, and some clips."""

_RESERVE = 2 << 20  # what the index and its log may grow between two looks, folders, one answer being written
_BLOCK = 4096  # of the disk
_ENTRY = 64  # a name in its folder
_ASIDE = ("damaged", "refused")  # in the order in which they make room

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What bounds a spool."""

    max_bytes: int = 1 << 30
    """Bytes on the disk, everything included."""
    recency: float = 1.0
    """How much of the gate's margin being a thousand clips newer is worth: 0 keeps the surest, much the newest."""
    keep_answers: int = 10_000
    """Answers that stay readable on the device; the oldest go first."""

    def __post_init__(self) -> None:
        if self.max_bytes < MIN_BYTES:
            raise UsageError(f"max_bytes = {self.max_bytes}: too small for a spool; {MIN_BYTES} or more is accepted")
        if not self.recency >= 0:
            raise UsageError(f"recency = {self.recency}: is no weight; 0 or more is accepted")
        if self.keep_answers < 1:
            raise UsageError(f"keep_answers = {self.keep_answers}: 1 or more is accepted")


@dataclass(frozen=True)
class Taken:
    """A clip that is being sent: its file as it was written, and its story."""

    data: bytes
    story: Story


@contextmanager
def opened(folder: Path, limits: Limits | None = None, first_sequence: int = 1) -> Iterator["Spool"]:
    """The spool in `folder`, for this process alone; new numbers begin at `first_sequence` or later.

    Raises `TwoPhaseError` when another process holds it (and says which), or when a newer version wrote it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, "the spool"))
            newer = sorted(path.name for path in folder.glob("v*") if path.name != FORMAT)
            if newer:
                raise TwoPhaseError(f"{folder}: has format {newer[-1]}, this twophase reads {FORMAT}; update it")
            spool = Spool(folder / FORMAT, limits or Limits(), first_sequence)
        except OSError as error:
            raise spool_error(folder, error) from None
        stack.callback(spool.close)
        yield spool


class Spool:
    """An open spool; `opened` makes one. Any thread may call any method."""

    def __init__(self, root: Path, limits: Limits, first_sequence: int) -> None:
        """Read what is there; for `opened`, which holds the lock."""
        self.root, self.limits = root, limits
        self.counts: Counter[str] = Counter()
        """What happened since the start: `put`, `answered`, `refused`, `damaged`, `disk_errors`, `dropped_*`."""
        self._mutex = threading.RLock()
        self._in_flight: set[int] = set()
        self._first = first_sequence
        self._next = self._end = 0  # of the folder that is being filled; none before the first put
        self._reserved = 0  # bytes of puts under way
        self._bytes = 0  # of clips
        self._closed = False
        for name in ("clips", "answers", "stories", "incoming", *_ASIDE):
            (root / name).mkdir(parents=True, exist_ok=True)
        for path in (root, root.parent, root.parent.parent):
            sync(path)
        for left in (root / "incoming").iterdir():
            left.unlink()
        self._answers, self._stories = (set(_numbered(root / name, ".json")) for name in ("answers", "stories"))
        self._aside = sum(_cost(path.stat().st_size) for kind in _ASIDE for path in (root / kind).iterdir())
        self._index = self._open_index()

    # Clips in

    def put(self, pcm: PCM, heard: Heard) -> int | None:
        """Keep a clip: int16 [n] at 16 kHz. Returns its sequence number once nothing but the disk itself can lose it.

        None when the spool is full of clips that are worth more. Raises `SpoolError` when the disk fails or is full;
        then the clip is not kept.
        """
        sequence = self._new_sequence()
        data = clip.pack(pcm, Story.of(heard, sequence))
        row = Row(sequence, WAITING, len(data), self._worth(sequence, heard.margin))
        cost = _cost(len(data))
        with self._mutex:
            if not self._free(self._used() + cost - self.limits.max_bytes, row.worth):
                self._count_drop("dropped_new", sequence, "worth less than what is kept")
                return None
            self._reserved += cost
        try:
            try:
                self._keep(row, data)
            except SpoolFull:
                if not self._free(cost, row.worth):
                    raise
                self._keep(row, data)
        except SpoolError:
            self.counts["disk_errors"] += 1
            raise
        finally:
            with self._mutex:
                self._reserved -= cost
        self.counts["put"] += 1
        return sequence

    def _keep(self, row: Row, data: bytes) -> None:
        path = self._path(row.sequence)
        self._write(path, data)
        try:
            with self._mutex:
                self._indexed(lambda index: index.add([row]))
                self._bytes += _cost(row.bytes)
        except SpoolError:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # not acknowledged, so not there
            raise

    def _new_sequence(self) -> int:
        with self._mutex:
            if self._next == self._end:
                used = [first + FOLDER_OF for first in _numbered(self.root / "clips", "")]
                start = max([*used, self._first // FOLDER_OF * FOLDER_OF])
                make_folder(self.root / "clips" / _name(start))
                self._next, self._end = max(start, self._first), start + FOLDER_OF
            self._next += 1
            return self._next - 1

    # Clips out

    def waiting(self, limit: int, after: int = -1) -> list[int]:
        """The next clips to send, in order: at most `limit`, later than `after`, none that is in flight."""
        with self._mutex:
            return self._indexed(lambda index: index.in_order(WAITING, self._in_flight, limit, after))

    def sent(self, limit: int, after: int = -1) -> list[int]:
        """Clips that the gateway has and has not answered, in order."""
        with self._mutex:
            return self._indexed(lambda index: index.in_order(SENT, self._in_flight, limit, after))

    def expects_answers(self) -> bool:
        """Whether the gateway has clips that it has not answered."""
        with self._mutex:
            return bool(self._stories or self.sent(1))

    @contextmanager
    def sending(self, sequence: int) -> Iterator[Taken | None]:
        """A clip, whole and verified, that is not dropped within the block; None when it is gone or was set aside."""
        with self._mutex:
            self._in_flight.add(sequence)
        try:
            yield self._take(sequence)
        finally:
            with self._mutex:
                self._in_flight.discard(sequence)

    def mark_sent(self, sequence: int, sent: bool = True) -> None:
        """Note that the gateway has a clip, or that it does not have it after all."""
        with self._mutex:
            self._indexed(lambda index: index.mark(sequence, SENT if sent else WAITING))

    def rescore(self, margin: Callable[[PCM], float]) -> int:
        """Value what waits by another gate, which decides what is dropped first; how many clips that were.

        `margin` is how far above that gate's threshold a clip is. Their stories keep the gate that chose them.
        """
        done, last = 0, -1
        while some := self.waiting(FOLDER_OF, last):
            for sequence in some:
                if (taken := self._take(sequence)) and taken.story.kind == "escalation":
                    worth = self._worth(sequence, margin(clip.sound(taken.data)))
                    with self._mutex:
                        self._indexed(partial(Index.value, sequence=sequence, worth=worth))
                    done += 1
            last = some[-1]
        return done

    def story(self, sequence: int) -> Story | None:
        """The story of a clip that waits for its answer, or None when there is none."""
        try:
            if sequence in self._stories:
                return Story(**unsealed(self._json("stories", sequence)))
            return _head(self._path(sequence), sequence)
        except (OSError, TwoPhaseError):
            return None

    def answer(self, sequence: int, answer: JSON) -> JSON | None:
        """Keep the cloud's answer, joined to the clip's story, and let the clip go.

        Returns what was kept, or None when it was there before or no such clip is known: each clip is answered once.
        Raises `SpoolError` when the disk fails; then the clip stays.
        """
        kept = None
        if sequence not in self._answers and (story := self.story(sequence)):
            kept = {**asdict(story), "answer": answer, "provisional": False}
            self._write(self._json("answers", sequence), sealed(kept))
            self._answers.add(sequence)
            self.counts["answered"] += 1
            self._keep_newest("answers", self._answers)
        self.forget(sequence)
        return kept

    def refuse(self, sequence: int, why: str) -> None:
        """Put a clip among the dead letters: the cloud will not take it, now or later."""
        self._set_aside(sequence, "refused", why)

    def forget(self, sequence: int) -> None:
        """Let a clip go: it is answered, or its owner deleted it in the cloud."""
        with self._mutex:
            self._remove(sequence)
            self._forget_story(sequence)

    # What is known

    def answers(self) -> Iterator[JSON]:
        """What is known of every clip, in order: the cloud's answer, or the gate's own, marked `provisional`."""
        with self._mutex:
            known = self._answers | self._stories | set(self._indexed(lambda index: index.all()))
        for sequence in sorted(known):
            if sequence in self._answers:
                try:
                    yield unsealed(self._json("answers", sequence))
                except TwoPhaseError as error:
                    log.warning("an answer is lost: %s", error)
            elif story := self.story(sequence):
                yield {**asdict(story), "answer": None, "provisional": True}

    def status(self) -> dict[str, Any]:
        """Clips by state, bytes, and `counts`."""
        with self._mutex:
            clips = self._indexed(lambda index: index.count())
            used = self._used()
        return {
            "waiting": clips.get(WAITING, 0),
            "sent": clips.get(SENT, 0),
            "answers": len(self._answers),
            **{kind: len(list(_numbered(self.root / kind, ".flac"))) for kind in _ASIDE},
            "bytes": used,
            "max_bytes": self.limits.max_bytes,
            "counts": dict(self.counts),
        }

    def close(self) -> None:
        """Let nothing more in or out: another process may hold the spool from now on."""
        with self._mutex:
            self._closed = True
            self._index.close()

    # Files

    def _path(self, sequence: int) -> Path:
        return self.root / "clips" / _name(sequence // FOLDER_OF * FOLDER_OF) / f"{_name(sequence)}.flac"

    def _json(self, kind: str, sequence: int) -> Path:
        return self.root / kind / f"{_name(sequence)}.json"

    def _write(self, path: Path, data: bytes) -> None:
        write_new(path, data, self.root / "incoming" / path.name)

    def _take(self, sequence: int) -> Taken | None:
        try:
            data = self._path(sequence).read_bytes()
            story = clip.check(data)
            if story.sequence != sequence:
                raise Damaged(f"it says that it is clip {story.sequence}")
            return Taken(data, story)
        except FileNotFoundError:
            self.forget(sequence)
        except (OSError, Damaged) as error:
            self._set_aside(sequence, "damaged", str(error))
        return None

    def _set_aside(self, sequence: int, kind: str, why: str) -> None:
        """Move a clip to `refused` or `damaged`, with the reason beside it."""
        log.warning("clip %d: %s: %s", sequence, kind, why)
        self.counts[kind] += 1
        path = self._path(sequence)
        with self._mutex:
            self._forget_story(sequence)
            try:
                size = path.stat().st_size
                path.rename(self.root / kind / path.name)
                self._aside += _cost(size) + _cost(1)
                (self.root / kind / f"{_name(sequence)}.why").write_text(why + "\n", "utf-8")
                sync(self.root / kind)
            except OSError as error:
                log.warning("clip %d: cannot be set aside whole: %s", sequence, error)
            self._remove(sequence)

    def _remove(self, sequence: int) -> None:
        """Take a clip out of its folder and the index."""
        try:
            self._path(sequence).unlink(missing_ok=True)
        except OSError as error:
            log.warning("clip %d: cannot be removed: %s", sequence, error)
        try:
            if row := self._indexed(lambda index: index.get(sequence)):
                self._indexed(lambda index: index.remove([sequence]))
                self._bytes -= _cost(row.bytes)
        except SpoolError as error:  # a row without a file: found when it is to be sent, or at the next start
            log.warning("clip %d: its row stays in the index: %s", sequence, error)

    def _forget_story(self, sequence: int) -> None:
        if sequence in self._stories:
            self._stories.discard(sequence)
            self._json("stories", sequence).unlink(missing_ok=True)

    def _keep_newest(self, kind: str, numbers: set[int]) -> None:
        while len(numbers) > self.limits.keep_answers:
            oldest = min(numbers)
            self._json(kind, oldest).unlink(missing_ok=True)
            numbers.discard(oldest)

    # Room

    def _worth(self, sequence: int, margin: float) -> float:
        return margin + self.limits.recency * sequence / 1000

    def _used(self) -> int:
        small = (len(self._answers) + len(self._stories)) * _cost(1)
        return self._bytes + self._reserved + self._aside + small + size_on_disk(self.root / "index.db") + _RESERVE

    def _free(self, missing: int, worth: float) -> bool:
        """Make `missing` bytes free by what is worth least; False, and nothing done, when all else is worth more."""
        if missing <= 0:
            return True
        with self._mutex:
            chosen = []
            for frees, drop in self._victims(worth):
                chosen.append(drop)
                missing -= frees
                if missing <= 0:
                    break
            else:
                return False
            for drop in chosen:
                drop()
            return True

    def _victims(self, worth: float) -> Iterator[tuple[int, Callable[[], None]]]:
        """What may be dropped for a clip of this worth, in that order: bytes that become free, and how."""
        for sequence, size, _ in self._least(SENT):
            yield _cost(size) - _cost(1), partial(self._shrink, sequence)
        for kind in _ASIDE:
            for path in sorted((self.root / kind).iterdir()):
                yield _cost(path.stat().st_size), partial(self._drop_aside, path)
        for sequence, size, its_worth in self._least(WAITING):
            if its_worth > worth:
                return
            yield _cost(size), partial(self._drop, sequence, its_worth)

    def _least(self, state: int) -> list[tuple[int, int, float]]:
        """The clips of a state that are worth least and not in flight; more of them than any one clip needs room."""
        found = self._indexed(lambda index: index.least_first(state, limit=1000 + len(self._in_flight)))
        return [row for row in found if row[0] not in self._in_flight]

    def _shrink(self, sequence: int) -> None:
        """Drop a clip that the gateway has; its story stays, for the answer."""
        if story := self.story(sequence):
            with suppress(SpoolError):  # no room even for that: the answer will come without its story
                self._write(self._json("stories", sequence), sealed(asdict(story)))
                self._stories.add(sequence)
                self._keep_newest("stories", self._stories)
        self._remove(sequence)
        self._count_drop("dropped_sent", sequence, "the gateway has it")

    def _drop(self, sequence: int, worth: float) -> None:
        self._remove(sequence)
        self._count_drop("dropped_waiting", sequence, f"worth {worth:.2f}")

    def _drop_aside(self, path: Path) -> None:
        self._aside -= _cost(path.stat().st_size)
        path.unlink()
        if path.suffix == ".flac":
            self._count_drop(f"dropped_{path.parent.name}", int(path.stem), path.parent.name)

    def _count_drop(self, counter: str, sequence: int, why: str) -> None:
        self.counts[counter] += 1
        log.warning("clip %d dropped: %s", sequence, why)

    # The index

    def _indexed(self, use: Callable[[Index], T]) -> T:
        """Use the index; when it turns out to be damaged, build it anew, once. Raises `SpoolError`."""
        path = self.root / "index.db"
        if self._closed:
            raise SpoolError(f"{self.root}: is closed")
        try:
            try:
                return use(self._index)
            except sqlite3.DatabaseError as error:
                if is_full(error):
                    raise
                log.warning("%s: the index is lost (%s)", path, error)
                self._index.close()
                self._index = self._open_index()
                return use(self._index)
        except sqlite3.DatabaseError as error:
            raise (SpoolFull if is_full(error) else SpoolError)(f"{path}: {error}; free some room") from None

    def _open_index(self) -> Index:
        """The index, in step with the files; built anew when it cannot be used. Raises `SpoolError`."""
        path = self.root / "index.db"
        try:
            return self._in_step(path)
        except (IndexLost, sqlite3.DatabaseError) as error:
            log.warning("%s: %s; it is built anew from the clips", path, error)
        try:
            discard(path)
            return self._in_step(path)
        except OSError as error:
            raise spool_error(path, error) from None
        except (IndexLost, sqlite3.DatabaseError) as error:
            raise (SpoolFull if is_full(error) else SpoolError)(f"{path}: {error}; free some room") from None

    def _in_step(self, path: Path) -> Index:
        """The index at `path`, once every file has a row and every row a file; what cannot be read is set aside."""
        bad: dict[int, str] = {}
        with ExitStack() as stack:
            index = Index(path, self.limits.recency)
            stack.callback(index.close)
            folders = sorted(_numbered(self.root / "clips", ""))
            for first in index.folders(FOLDER_OF) - set(folders):
                index.remove(index.between(first, first + FOLDER_OF))
            for first in folders:
                known = index.between(first, first + FOLDER_OF)
                found = self._sizes(first)
                new = []
                for sequence in sorted(s for s, size in found.items() if known.get(s) != size):
                    try:
                        margin = _head(self._path(sequence), sequence).margin
                        new.append(Row(sequence, WAITING, found[sequence], self._worth(sequence, margin)))
                    except (OSError, Damaged) as error:
                        bad[sequence] = str(error)
                index.add(new)
                index.remove(known.keys() - found.keys())
                if not found and first != folders[-1]:
                    (self.root / "clips" / _name(first)).rmdir()
            self._bytes = index.bytes(_BLOCK, _ENTRY)
            stack.pop_all()
        self._index = index
        for sequence, why in bad.items():
            self._set_aside(sequence, "damaged", why)
        return index

    def _sizes(self, first: int) -> dict[int, int]:
        """Sizes of the clip files in the folder that begins with `first`."""
        with os.scandir(self.root / "clips" / _name(first)) as entries:
            return {int(e.name[:-5]): e.stat().st_size for e in entries if _is_numbered(e.name, ".flac")}


def _cost(size: int) -> int:
    """Bytes on the disk of a file of `size` bytes."""
    return -(-size // _BLOCK) * _BLOCK + _ENTRY


def _name(sequence: int) -> str:
    return f"{sequence:012d}"


def _is_numbered(name: str, suffix: str) -> bool:
    stem = name.removesuffix(suffix)
    return name.endswith(suffix) and len(stem) >= 12 and stem.isdecimal()


def _numbered(folder: Path, suffix: str) -> Iterator[int]:
    """Numbers of the files in a folder that have this suffix."""
    with os.scandir(folder) as entries:
        yield from (int(e.name.removesuffix(suffix)) for e in entries if _is_numbered(e.name, suffix))


def _head(path: Path, sequence: int) -> Story:
    """A clip file's story. Raises `Damaged` when it is another clip's."""
    with path.open("rb") as file:
        story = clip.story_of(file.read(clip.HEAD_BYTES))
    if story.sequence != sequence:
        raise Damaged(f"it says that it is clip {story.sequence}")
    return story
