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
leaves only by an answer (which is synced first), a refusal, damage, or pressure (room.py: what goes first).

After a crash what was acknowledged is there, and nothing is there in part. A sequence number is never used twice, also
when the index is lost: a folder of a thousand is made and synced before its first number is used, and every start
begins a new one. Order is the order of sequence numbers; no clock has a part in it.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from twophase.device import clip
from twophase.device.aside import KINDS, Aside
from twophase.device.clip import PCM, Damaged, Heard, Story
from twophase.device.durable import SpoolError, SpoolFull, spool_error
from twophase.device.index import SENT, WAITING, Index, Row
from twophase.device.layout import BLOCK, FOLDER_OF, cost
from twophase.device.room import Limits, Room
from twophase.device.store import Store
from twophase.errors import TwoPhaseError
from twophase.files import JSON, locked, sync

FORMAT = "v1"

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self.root, self._limits = root, limits
        self.counts: Counter[str] = Counter()
        """What happened since the start: `put`, `answered`, `refused`, `damaged`, `disk_errors`, `dropped_*`."""
        self._mutex = threading.RLock()
        self._first = first_sequence
        self._next = self._end = 0  # of the folder that is being filled; none before the first put
        for name in ("clips", "answers", "stories", "incoming", *KINDS):
            (root / name).mkdir(parents=True, exist_ok=True)
        for path in (root, root.parent, root.parent.parent):
            sync(path)
        for left in (root / "incoming").iterdir():
            left.unlink()
        self._answers, self._stories = (limits.records(root / n, root / "incoming") for n in ("answers", "stories"))
        self._aside = Aside(root)
        self._clips = Store(root, limits.recency, partial(self._set_aside, "damaged"))
        self._room = Room(limits, self._clips, self._aside, self._answers, self._stories, self.counts)
        self._clips.open()

    # Clips in

    def put(self, pcm: PCM, heard: Heard) -> int | None:
        """Keep a clip: int16 [n] at 16 kHz. Returns its sequence number once nothing but the disk itself can lose it.

        None when the spool is full of clips that are worth more. Raises `SpoolError` when the disk fails or is full;
        then the clip is not kept.
        """
        try:
            sequence = self._with_room(BLOCK, inf, self._new_sequence)
            data = clip.pack(pcm, Story.of(heard, sequence))
            row = Row(sequence, WAITING, len(data), self._clips.worth(sequence, heard.margin))
            with self._reserved(row) as fits:
                if not fits:
                    self._room.count_drop("dropped_new", sequence, "worth less than what is kept")
                    return None
                self._with_room(cost(len(data)), row.worth, partial(self._keep, row, data))
        except SpoolError:
            self.counts["disk_errors"] += 1
            raise
        except OSError as error:
            self.counts["disk_errors"] += 1
            raise spool_error(self.root, error) from None
        self.counts["put"] += 1
        return sequence

    @contextmanager
    def _reserved(self, row: Row) -> Iterator[bool]:
        """Hold room within `max_bytes` for a clip that is being written; whether there is any."""
        size = cost(row.bytes)
        with self._mutex:
            fits = self._room.fit(size, row.worth)
            self._room.reserved += size
        try:
            yield fits
        finally:
            with self._mutex:
                self._room.reserved -= size

    def _with_room(self, size: int, worth: float, work: Callable[[], T]) -> T:
        """Do what needs `size` bytes of the disk; where that is full, once more when something made room."""
        try:
            return work()
        except SpoolFull:
            with self._mutex:
                if not self._room.make(size, worth):
                    raise
            return work()

    def _keep(self, row: Row, data: bytes) -> None:
        self._clips.write(row.sequence, data)
        with self._mutex:
            self._clips.add(row)

    def _new_sequence(self) -> int:
        with self._mutex:
            if self._next == self._end:
                start = self._clips.new_folder(self._first)
                self._next, self._end = max(start, self._first), start + FOLDER_OF
            self._next += 1
            return self._next - 1

    # Clips out

    def waiting(self, limit: int, after: int = -1) -> list[int]:
        """The next clips to send, in order: at most `limit`, later than `after`, none that is in flight."""
        return self._indexed(lambda index: index.in_order(WAITING, self._room.in_flight, limit, after))

    def sent(self, limit: int, after: int = -1) -> list[int]:
        """Clips that the gateway has and has not answered, in order."""
        return self._indexed(lambda index: index.in_order(SENT, self._room.in_flight, limit, after))

    def expects_answers(self) -> bool:
        """Whether the gateway has clips that it has not answered."""
        return bool(len(self._stories) or self.sent(1))

    @contextmanager
    def sending(self, sequence: int) -> Iterator[Taken | None]:
        """A clip, whole and verified, that is not dropped within the block; None when it is gone or was set aside."""
        with self._mutex:
            self._room.in_flight.add(sequence)
        try:
            yield self._take(sequence)
        finally:
            with self._mutex:
                self._room.in_flight.discard(sequence)

    def mark_sent(self, sequence: int, sent: bool = True) -> None:
        """Note that the gateway has a clip, or that it does not have it after all."""
        self._indexed(lambda index: index.mark(sequence, SENT if sent else WAITING))

    def rescore(self, margin: Callable[[PCM], float]) -> int:
        """Value what waits by another gate, which decides what is dropped first; how many clips that were.

        `margin` is how far above that gate's threshold a clip is. Their stories keep the gate that chose them.
        """
        done, last = 0, -1
        while some := self.waiting(FOLDER_OF, last):
            for sequence in some:
                if (taken := self._take(sequence)) and taken.story.kind == "escalation":
                    worth = self._clips.worth(sequence, margin(clip.sound(taken.data)))
                    self._indexed(partial(Index.value, sequence=sequence, worth=worth))
                    done += 1
            last = some[-1]
        return done

    def answer(self, sequence: int, answer: JSON) -> JSON | None:
        """Keep the cloud's answer, joined to the clip's story, and let the clip go.

        Returns what was kept, or None when it was there before or no such clip is known: each clip is answered once.
        Raises `SpoolError` when the disk fails; then the clip stays.
        """
        kept = None
        with self._mutex:
            try:
                if sequence not in self._answers and (story := self._story(sequence)):
                    kept = {**asdict(story), "answer": answer, "provisional": False}
            except SpoolError:
                raise
            except (OSError, TwoPhaseError) as error:
                self._set_aside("damaged", sequence, f"answered, and its story is lost: {error}")
            if kept is not None:
                self._answers.put(sequence, kept)
                self.counts["answered"] += 1
            self.forget(sequence)
        return kept

    def refuse(self, sequence: int, why: str) -> None:
        """Put a clip among the dead letters: the cloud will not take it, now or later."""
        self._set_aside("refused", sequence, why)

    def forget(self, sequence: int) -> None:
        """Let a clip go: it is answered, or its owner deleted it in the cloud."""
        with self._mutex:
            self._clips.remove(sequence)
            self._stories.remove(sequence)

    # What is known

    def answers(self) -> Iterator[JSON]:
        """What is known of every clip, in order: the cloud's answer, or the gate's own, marked `provisional`."""
        with self._mutex:
            known = {*self._answers, *self._stories, *self._indexed(lambda index: index.all())}
        for sequence in sorted(known):
            try:
                if sequence in self._answers:
                    yield self._answers.get(sequence)
                elif story := self._story(sequence):
                    yield {**asdict(story), "answer": None, "provisional": True}
            except (OSError, TwoPhaseError) as error:
                log.warning("clip %d: what is known of it cannot be read: %s", sequence, error)

    def status(self) -> dict[str, Any]:
        """Clips by state, bytes, and `counts`."""
        with self._mutex:
            clips = self._indexed(lambda index: index.count())
            used = self._room.used
        return {
            "waiting": clips.get(WAITING, 0),
            "sent": clips.get(SENT, 0),
            "answers": len(self._answers),
            **self._aside.count(),
            "bytes": used,
            "max_bytes": self._limits.max_bytes,
            "counts": dict(self.counts),
        }

    def close(self) -> None:
        """Let nothing more in or out: another process may hold the spool from now on."""
        with self._mutex:
            self._clips.close()

    # Within

    def _indexed(self, use: Callable[[Index], T]) -> T:
        with self._mutex:
            return self._clips.indexed(use)

    def _take(self, sequence: int) -> Taken | None:
        try:
            return Taken(*self._clips.read(sequence))
        except FileNotFoundError:  # it made room, or was answered, a moment ago: its story stays
            with self._mutex:
                self._clips.remove(sequence)
        except (OSError, Damaged) as error:
            self._set_aside("damaged", sequence, str(error))
        return None

    def _story(self, sequence: int) -> Story | None:
        """The story of a clip that waits for its answer, None when there is no such clip.

        Raises `OSError` or `TwoPhaseError` when it cannot be read.
        """
        try:
            if sequence in self._stories:
                return Story(**self._stories.get(sequence))
            return self._clips.story(sequence)
        except FileNotFoundError:
            return None
        except TypeError as error:
            raise Damaged(str(error)) from None

    def _set_aside(self, kind: str, sequence: int, why: str) -> None:
        """Keep a clip, with the reason beside it, where it is not sent from."""
        log.warning("clip %d: %s: %s", sequence, kind, why)
        self.counts[kind] += 1
        with self._mutex:
            try:
                self._aside.put(self._clips.path(sequence), kind, why)
            except OSError as error:
                log.warning("clip %d: cannot be set aside whole: %s", sequence, error)
            self.forget(sequence)
