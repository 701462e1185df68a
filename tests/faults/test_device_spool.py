"""The spool on a bad disk: kills, power cuts, full disks, failing syncs and flipped bits.

`make test-faults SEEDS=200` kills and cuts 200 times and flips 500 bits; every day it is a few of each. The disk is
`disk_device.py`; where there is no C compiler these tests are skipped, but for flipped bits.
"""

import errno
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.device.sounds import HEARD, noise
from tests.faults.disk_device import Disk, build, records, run
from twophase.device.clip import sound
from twophase.device.room import Limits
from twophase.device.spool import FORMAT, opened

SEEDS = int(os.environ.get("SEEDS", "4"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

# Puts clips, sends every other one to a cloud that answers at once, and says what it was told.
PROGRAM = """
import os, sys
from pathlib import Path
from tests.device.sounds import HEARD, noise
from twophase.device.durable import SpoolError
from twophase.device.spool import opened

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
try:
    with opened(folder) as spool:
        for seed in range(first, first + count):
            try:
                say("put", spool.put(noise(seed, 0.02), HEARD), seed)
                if seed % 2:
                    for sequence in spool.waiting(1):
                        with spool.sending(sequence) as taken:
                            spool.mark_sent(sequence)
                            if taken and spool.answer(sequence, {"label": "Oboe"}):
                                say("answered", sequence)
            except SpoolError as error:
                say("error", error)
except SpoolError as error:
    say("error", error)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler: the disk is a small library that is preloaded")
    return build(tmp_path_factory.mktemp("shim"))


def check(folder: Path, said: list[str], errors: str = "") -> None:
    """What was acknowledged is there, whole, and is answered once, but for what was dropped; nothing is damaged."""
    puts = {int(s): int(seed) for s, seed in (line.split()[1:] for line in said if line.startswith("put "))}
    for dropped in re.findall(r"clip (\d+) dropped", errors):
        puts.pop(int(dropped), None)
    answered = [int(line.split()[1]) for line in said if line.startswith("answered ")]
    assert len(answered) == len(set(answered))
    with opened(folder) as spool:
        found: dict[int, Any] = {a["sequence"]: a for a in spool.answers()}
        assert puts.keys() <= found.keys()
        assert all(not found[s]["provisional"] for s in answered)
        waiting = spool.waiting(10_000) + spool.sent(10_000)
        assert waiting == sorted(set(waiting)) or spool.sent(1)
        for sequence in waiting:
            with spool.sending(sequence) as taken:
                assert taken, f"clip {sequence} is not whole"
                if sequence in puts:
                    assert np.array_equal(sound(taken.data), noise(puts[sequence], 0.02))
                spool.answer(sequence, {"label": "Oboe"})
        assert not spool.status()["damaged"]
        everything = list(spool.answers())
        assert not any(a["provisional"] for a in everything)
        assert len({a["sequence"] for a in everything}) == len(everything)


def test_killed_at_any_operation(shim: Path, tmp_path: Path) -> None:
    """One spool, killed and opened again and again; in the end every acknowledged clip has its one answer."""
    folder, said, killed = tmp_path / "spool", [], 0
    for seed in range(SEEDS):
        ran = run(shim, PROGRAM, seed * 10, 10, root=folder, fault=f"kill {random.Random(seed).randint(1, 120)}")
        assert ran.code in (0, -signal.SIGKILL), ran.errors
        killed += ran.code != 0
        said += ran.said
    assert killed > SEEDS / 2
    check(folder, said)


def test_power_cut_that_drops_and_reorders_what_was_not_synced(shim: Path, tmp_path: Path) -> None:
    for episode in range(-(-SEEDS // 50)):
        folder, log = tmp_path / f"spool-{episode}", tmp_path / f"log-{episode}"
        ran = run(shim, PROGRAM, 100 * episode, 14, root=folder, log=log)
        assert ran.code == 0, ran.errors
        done = list(records(log))
        chance = random.Random(episode)
        cuts = sorted(chance.randrange(len(done)) for _ in range(min(50, SEEDS)))
        disk, at = Disk(folder), 0
        for number, cut in enumerate(cuts):
            for record in done[at:cut]:
                disk.do(*record)
            at = cut
            left = tmp_path / f"left-{episode}-{number}"
            disk.cut(chance, left)
            check(left, disk.said.decode().splitlines())
            shutil.rmtree(left)


FAULTS = [(kind, n, once) for kind in ("sync", "write") for n in (errno.EIO, errno.ENOSPC) for once in ("ONCE", "")]
FAULTS += [("remove", errno.EROFS, "ONCE"), ("remove", errno.EROFS, "")]


@pytest.mark.parametrize(
    ("kind", "number", "once"), FAULTS if SEEDS >= 200 else [FAULTS[0], FAULTS[3], FAULTS[7], FAULTS[9]]
)
def test_a_disk_that_is_full_or_fails_at_any_operation(
    shim: Path, tmp_path: Path, kind: str, number: int, once: str
) -> None:
    """A typed error, nothing corrupted, and it goes on when the disk does."""
    operations = range(1, {"write": 60, "sync": 25, "remove": 8}[kind])
    before = run(shim, PROGRAM, 0, 3, root=tmp_path / "before")
    for at in operations if SEEDS >= 200 else [random.Random(kind + once).choice(operations)]:
        folder = tmp_path / f"spool-{at}"
        shutil.copytree(tmp_path / "before", folder)
        during = run(shim, PROGRAM, 10, 5, root=folder, fault=f"{kind} {at} {number} {once}")
        assert during.code == 0, during.errors
        with opened(folder) as spool:
            assert all(spool.put(noise(seed, 0.02), HEARD) for seed in range(20, 23))
        check(folder, before.said + during.said, during.errors)
        shutil.rmtree(folder)


def test_one_bit_flipped_anywhere(tmp_path: Path) -> None:
    """At most that clip is lost, set aside and named; the rest is delivered."""
    original = tmp_path / "original"
    with opened(original) as spool:
        for seed in range(12):
            spool.put(noise(seed, 0.02), HEARD)
        for sequence in spool.waiting(2):
            spool.answer(sequence, {"label": "Oboe"})
        spool.mark_sent(4)
        running = tmp_path / "running"  # its index still has a write-ahead log
        shutil.copytree(original, running)
    for seed in range(SEEDS * 5 // 2):
        chance = random.Random(seed)
        folder = tmp_path / "flipped"
        shutil.copytree(chance.choice([original, running]), folder)
        path = chance.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size])
        data = bytearray(path.read_bytes())
        bit = chance.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        where = f"seed {seed}: bit {bit} of {path.relative_to(folder)}"
        with opened(folder) as spool:
            whole = []
            for sequence in sorted(spool.waiting(100) + spool.sent(100)):
                with spool.sending(sequence) as taken:
                    if taken and np.array_equal(sound(taken.data), noise(sequence - 1, 0.02)):
                        whole.append(sequence)
                        spool.answer(sequence, {"label": "Oboe"})
            answers = {a["sequence"] for a in spool.answers() if not a["provisional"]}
            assert len(whole) >= 9, where
            assert len(answers) >= 11, where
            if len(whole) == 9:
                assert spool.status()["damaged"] == 1, where
                assert (folder / FORMAT / "damaged" / f"{path.stem}.why").read_text(), where
        shutil.rmtree(folder)


def test_a_full_disk_by_a_small_tmpfs(tmp_path: Path) -> None:
    """A real full disk: the spool's bound is above what the disk holds; the least valuable make room."""
    from twophase.device.durable import SpoolFull

    mount = tmp_path / "small"
    mount.mkdir()
    if os.system(f"mount -t tmpfs -o size=3m tmpfs {mount} 2>/dev/null"):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        kept, full = [], 0
        with opened(mount / "spool", Limits(max_bytes=1 << 30)) as spool:
            for seed in range(80):
                try:
                    kept.append(spool.put(noise(seed, 4), HEARD))
                except SpoolFull:
                    full += 1
            waiting = spool.waiting(1000)
            assert spool.counts["dropped_waiting"] > 20
            assert set(waiting) <= set(kept)
            assert waiting[-1] == kept[-1]
            for sequence in waiting:
                with spool.sending(sequence) as taken:
                    assert taken
                    assert spool.answer(sequence, {"label": "Oboe"})
        with opened(mount / "spool") as spool:
            assert not spool.status()["damaged"]
            assert spool.put(noise(0, 4), HEARD)
    finally:
        os.system(f"umount {mount}")
