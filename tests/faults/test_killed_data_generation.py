"""Data generation killed at random moments, run again: the same bytes as a run that nobody disturbed.

`make test-faults SEEDS=200` kills 200 times; the tests of every day a few times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.audio.clips import write_folder
from twophase.files import digest

RUN = """
import sys
from pathlib import Path
from twophase.audio import images
from twophase.audio.dataset import read_source
images.CLIPS_PER_SHARD = 5
images.make_all(Path(sys.argv[2]), read_source(sys.argv[1], workdir=Path(sys.argv[2])), "fail", print)
"""


def content(workdir: Path) -> dict[str, str]:
    files = [p for p in sorted(workdir.rglob("*")) if p.is_file() and p.name != ".lock"]
    kept = {p.relative_to(workdir).as_posix(): p for p in files if not p.name.startswith(".tmp-")}
    return {name: digest(p.read_bytes().replace(bytes(workdir), b"WORKDIR")) for name, p in kept.items()}


def run(folder: Path, workdir: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(workdir)], stdout=subprocess.DEVNULL)


def kill_and_run_again(folder: Path, workdir: Path, within_s: float, chance: random.Random) -> bool:
    """Kill a run after a random time and run again; say whether the kill came before the end."""
    process = run(folder, workdir)
    try:
        process.wait(chance.uniform(0, within_s))
        early = False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        early = True
    assert run(folder, workdir).wait() == 0
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
