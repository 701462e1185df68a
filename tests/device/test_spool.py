"""The spool on a good disk: what is kept, in which order it goes, what is dropped first, and who may open it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.device.sounds import HEARD, noise
from twophase.device import store
from twophase.device.clip import Story, check, pack, sound
from twophase.device.durable import SpoolFull
from twophase.device.room import MIN_BYTES, Limits
from twophase.device.spool import FORMAT, opened
from twophase.errors import TwoPhaseError, UsageError


def on_disk(folder: Path) -> int:
    """What `du` says, in bytes."""
    return sum(p.lstat().st_blocks * 512 for p in [folder, *folder.rglob("*")])


def test_a_clip_is_a_flac_file_that_plays_and_tells_its_story(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        sequence = spool.put(noise(1), HEARD)
    assert sequence == 1
    path = tmp_path / FORMAT / "clips" / "000000000000" / "000000000001.flac"
    played, rate = soundfile.read(path, dtype="int16")
    assert rate == 16_000
    assert np.array_equal(played, noise(1))
    story = check(path.read_bytes())
    assert story == Story.of(HEARD, 1)
    assert b"SCORE=2.5" in path.read_bytes()


def test_every_flipped_bit_of_a_clip_is_found() -> None:
    data = pack(noise(1, 0.01), Story.of(HEARD, 7))
    assert np.array_equal(sound(data), noise(1, 0.01))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TwoPhaseError):
            check(bytes(changed))


def test_order_is_by_sequence_and_survives_the_clock_and_the_index(tmp_path: Path) -> None:
    captured = ["2036-01-01T00:00:00.000+00:00", "1970-01-01T00:00:00.000+00:00", "2026-03-01T12:00:00.000+00:00"]
    with opened(tmp_path) as spool:
        put = [spool.put(noise(i), replace(HEARD, captured=when)) for i, when in enumerate(captured)]
        assert spool.waiting(10) == put == [1, 2, 3]
    (tmp_path / FORMAT / "index.db").unlink()
    with opened(tmp_path) as spool:
        assert spool.waiting(10) == put
        later = spool.put(noise(4), HEARD)
        assert later is not None
        assert later > 3


def test_a_number_is_never_used_twice_even_when_nothing_is_left(tmp_path: Path) -> None:
    used: list[int | None] = []
    for _ in range(3):
        with opened(tmp_path, first_sequence=500) as spool:
            used.append(spool.put(noise(1), HEARD))
            spool.forget(used[-1] or 0)
        (tmp_path / FORMAT / "index.db").unlink()
    assert used == [500, 1000, 2000]


def test_an_answer_joins_the_story_once_and_lets_the_clip_go(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        first, second = spool.put(noise(1), HEARD), spool.put(noise(2), HEARD)
        assert first
        assert second
        assert [a["provisional"] for a in spool.answers()] == [True, True]
        kept = spool.answer(first, {"label": "Oboe"})
        assert kept["answer"] == {"label": "Oboe"}
        assert kept["captured"] == HEARD.captured
        assert spool.answer(first, {"label": "Flute"}) is None
        assert spool.waiting(10) == [second]
    with opened(tmp_path) as spool:
        assert spool.answer(first, {"label": "Flute"}) is None
        assert [(a["sequence"], a["provisional"]) for a in spool.answers()] == [(first, False), (second, True)]


def test_under_pressure_the_least_valuable_goes_and_the_bound_holds(tmp_path: Path) -> None:
    limits = Limits(max_bytes=MIN_BYTES, recency=0.0)
    with opened(tmp_path, limits) as spool:
        margins: dict[int, float] = {}
        chance = np.random.default_rng(0)
        for seed in range(60):
            margin = float(chance.uniform(0, 10))
            sequence = spool.put(noise(seed, 16), replace(HEARD, score=HEARD.threshold + margin))
            if sequence is not None:
                margins[sequence] = margin
            assert on_disk(tmp_path) <= limits.max_bytes
        kept = spool.waiting(1000)
        dropped = 60 - len(kept)
        assert dropped > 20
        assert spool.counts["dropped_waiting"] + spool.counts["dropped_new"] == dropped
        assert min(margins[s] for s in kept) >= max([m for s, m in margins.items() if s not in kept])


def test_what_is_in_flight_is_never_dropped_and_what_the_gateway_has_goes_first(tmp_path: Path) -> None:
    limits = Limits(max_bytes=MIN_BYTES)
    with opened(tmp_path, limits) as spool:
        worst = spool.put(noise(0, 16), replace(HEARD, score=HEARD.threshold - 100))
        best = spool.put(noise(1, 16), replace(HEARD, score=HEARD.threshold + 100))
        assert worst
        assert best
        spool.mark_sent(best)
        with spool.sending(worst) as taken:
            for seed in range(2, 60):
                spool.put(noise(seed, 16), HEARD)
            assert taken
        assert worst in spool.waiting(1000)
        assert spool.counts["dropped_sent"] == 1
        kept = spool.answer(best, {"label": "Oboe"})  # its story stayed
        assert kept["score"] == HEARD.threshold + 100


def test_a_clip_that_made_room_a_moment_ago_still_gets_its_answer(tmp_path: Path) -> None:
    """The uplink holds its number; pressure takes its sound; its story stays for the answer."""
    with opened(tmp_path, Limits(max_bytes=MIN_BYTES)) as spool:
        first = spool.put(noise(0, 16), HEARD)
        assert first
        spool.mark_sent(first)
        for seed in range(1, 60):
            spool.put(noise(seed, 16), HEARD)
        assert spool.counts["dropped_sent"] == 1
        with spool.sending(first) as taken:
            assert taken is None
        assert spool.answer(first, {"label": "Oboe"})


def test_an_answer_to_a_clip_that_cannot_be_read_is_named_not_swallowed(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        sequence = spool.put(noise(0), HEARD)
        assert sequence
        path = tmp_path / FORMAT / "clips" / "000000000000" / f"{sequence:012d}.flac"
        path.write_bytes(b"x" + path.read_bytes()[1:])
        assert spool.answer(sequence, {"label": "Oboe"}) is None
        assert spool.status()["damaged"] == spool.counts["damaged"] == 1
        assert spool.waiting(9) == []


def test_answers_never_crowd_out_clips(tmp_path: Path) -> None:
    """Each kept answer of 200 kB: an eighth of 16 MB holds ten."""
    with opened(tmp_path, Limits(max_bytes=MIN_BYTES)) as spool:
        for seed in range(14):
            sequence = spool.put(noise(seed), HEARD)
            assert sequence
            assert spool.answer(sequence, {"label": "x" * 200_000})
        assert [a["sequence"] for a in spool.answers()] == list(range(5, 15))
    with opened(tmp_path, Limits(max_bytes=MIN_BYTES)) as spool:
        assert spool.status()["bytes"] > 10 * 200_000
        assert spool.status()["answers"] == 10


def test_a_full_disk_is_made_room_on_also_when_a_folder_is_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as spool:
        first = spool.put(noise(0), HEARD)
    full = [True]

    def make_folder(path: Path) -> None:
        if full.pop() if full else False:
            raise SpoolFull(f"{path}: full")
        path.mkdir()

    monkeypatch.setattr(store, "make_folder", make_folder)
    with opened(tmp_path) as spool:
        second = spool.put(noise(1), HEARD)
        assert spool.waiting(9) == [second]
        assert first != second
        assert spool.counts["dropped_waiting"] == 1


def test_folders_that_became_empty_go(tmp_path: Path) -> None:
    for _ in range(3):
        with opened(tmp_path) as spool:
            sequence = spool.put(noise(0), HEARD)
            assert sequence
            spool.forget(sequence)
    with opened(tmp_path) as spool:
        assert spool.put(noise(0), HEARD) == 3000
        assert len(list((tmp_path / FORMAT / "clips").iterdir())) == 2


def test_what_waits_can_be_valued_by_another_gate(tmp_path: Path) -> None:
    limits = Limits(max_bytes=MIN_BYTES, recency=0.0)
    with opened(tmp_path, limits) as spool:
        first = spool.put(noise(0, 16), replace(HEARD, score=HEARD.threshold + 9))
        second = spool.put(noise(1, 16), HEARD)
        assert spool.rescore(lambda pcm: -9.0 if np.array_equal(pcm, noise(0, 16)) else 9.0) == 2
        for seed in range(2, 60):
            spool.put(noise(seed, 16), HEARD)
        assert first not in spool.waiting(1000)
        assert second in spool.waiting(1000)


def test_a_damaged_clip_is_set_aside_and_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for seed in range(3):
            spool.put(noise(seed), HEARD)
    path = tmp_path / FORMAT / "clips" / "000000000000" / "000000000002.flac"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with opened(tmp_path) as spool:
        whole = []
        for sequence in spool.waiting(10):
            with spool.sending(sequence) as taken:
                whole += [sequence] if taken else []
        assert whole == spool.waiting(10) == [1, 3]
        assert spool.status()["damaged"] == 1
        assert "checksum" in (tmp_path / FORMAT / "damaged" / "000000000002.why").read_text()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path\nfrom twophase.device.spool import opened\nwith opened(Path({str(tmp_path)!r})): 0"
    )
    with opened(tmp_path):
        second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in second.stderr


def test_limits_and_formats_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_bytes = 5"):
        Limits(max_bytes=5)
    (tmp_path / "v9").mkdir()
    with pytest.raises(TwoPhaseError, match="v9"), opened(tmp_path):
        pass
