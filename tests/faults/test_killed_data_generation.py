"""Data generation killed at random moments, run again: the same bytes as a run that nobody disturbed.

`make test-faults SEEDS=200` kills 200 times; the tests of every day a few times.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.audio.buckets import fresh, google
from tests.audio.clips import write_folder
from twophase.audio import images, sources
from twophase.audio.dataset import read_source
from twophase.files import digest

__all__ = ["fresh", "google"]

RUN = """
import sys
from pathlib import Path
from twophase.audio import images
from twophase.audio.dataset import read_source
images.CLIPS_PER_SHARD = 5
workdir = Path(sys.argv[2])
images.make_all(workdir, read_source(sys.argv[1], workdir=workdir), "fail", print, *sys.argv[3:])
"""


pytestmark = pytest.mark.filterwarnings("ignore")  # of the emulator and the package for buckets, none of ours


def content(workdir: Path) -> dict[str, str]:
    files = [p for p in sorted(workdir.rglob("*")) if p.is_file() and p.name != ".lock"]
    kept = {p.relative_to(workdir).as_posix(): p for p in files if not p.name.startswith(".tmp-")}
    return {name: digest(p.read_bytes().replace(bytes(workdir), b"WORKDIR")) for name, p in kept.items()}


def run(folder: Path, workdir: Path, *store: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", RUN, str(folder), str(workdir), *store]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill_and_run_again(folder: Path, workdir: Path, within_s: float, chance: random.Random, *store: str) -> bool:
    """Kill a run after a random time and run again; say whether the kill came before the end."""
    process = run(folder, workdir, *store)
    try:
        process.wait(chance.uniform(0, within_s))
        early = False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        early = True
    assert run(folder, workdir, *store).wait() == 0
    return early


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_the_same_bytes_however_often_it_is_killed(tmp_path: Path) -> None:
    kills = int(os.environ.get("SEEDS", "4"))
    folder = write_folder(tmp_path / "data", labels=4, clips=10)
    began = time.monotonic()
    assert run(folder, tmp_path / "undisturbed").wait() == 0
    took = time.monotonic() - began
    expected = content(tmp_path / "undisturbed")
    early = 0
    for seed in range(kills):
        workdir = tmp_path / f"killed-{seed}"
        early += kill_and_run_again(folder, workdir, took, random.Random(seed))
        assert content(workdir) == expected, f"seed {seed}"
    assert early, "no kill came before the end of a run"


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_the_same_objects_in_a_bucket_however_often_it_is_killed(google: str, tmp_path: Path) -> None:
    """A fifth as many kills: each run signs up at a bucket first."""
    folder = write_folder(tmp_path / "data", labels=4, clips=10)
    began = time.monotonic()
    assert run(folder, tmp_path / "undisturbed", f"{google}/undisturbed").wait() == 0
    took = time.monotonic() - began
    expected = objects(f"{google}/undisturbed")
    early = 0
    for seed in range(max(2, int(os.environ.get("SEEDS", "4")) // 5)):
        store = f"{google}/killed-{seed}"
        early += kill_and_run_again(folder, tmp_path / f"killed-{seed}", took, random.Random(seed), store)
        assert objects(store) == expected, f"seed {seed}"
    assert early, "no kill came before the end of a run"


def objects(store: str) -> dict[str, str]:
    return {f.name: digest(sources.read(f.location)) for f in sources.listing(store)}


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_machines_that_share_a_bucket_and_die_lose_nothing(google: str, tmp_path: Path) -> None:
    """Several at once on overlapping data, each killed at a random moment and started again: all end with their set."""
    folders = [write_folder(tmp_path / f"data-{i}", labels=3, clips=8 + i) for i in range(3)]
    for seed in range(max(1, int(os.environ.get("SEEDS", "4")) // 20)):
        chance, store = random.Random(seed), f"{google}/shared-{seed}"
        workdirs = [tmp_path / f"{seed}-{i}" for i in range(3)]
        started = [run(folder, workdir, store) for folder, workdir in zip(folders, workdirs, strict=True)]
        for process in started:
            time.sleep(chance.uniform(0, 1))
            process.kill()
            process.wait()
        again = [run(folder, workdir, store) for folder, workdir in zip(folders, workdirs, strict=True)]
        assert [process.wait() for process in again] == [0, 0, 0], f"seed {seed}"
        shutil.rmtree(tmp_path / "cache")  # what is asked of the bucket is checked when it comes
        for folder, workdir in zip(folders, workdirs, strict=True):
            alone = images.make_all(tmp_path / "alone", read_source(folder), "fail", lambda done, total: None)
            found = images.ImageSet(workdir / "set")
            assert found.digest == alone.digest, f"seed {seed}"
            assert np.array_equal(found.take(np.arange(len(found))), alone.take(np.arange(len(alone))))
