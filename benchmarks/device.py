"""What a device costs: cold start, memory, processor time a microphone, acknowledged clips, 100,000 clips waiting.

    python benchmarks/device.py RELEASE [--waiting 100000] [--folder DIR]

The agent is the real program, with the environment that its unit gives it, and its uplink trying a gateway that is
away. Clips for the rate are 96 kB of PCM (3 s of noise, which FLAC cannot make smaller); the 100,000 that wait are
short ones, since neither start reads past their tags. `--folder` is on the disk that is to be measured.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from _report import at_least, at_most, emit, machine, row

from twophase.device import updates
from twophase.device.clip import Heard, Story, pack
from twophase.device.identity import Identity
from twophase.device.layout import FOLDER_OF
from twophase.device.listener import HOP
from twophase.device.spool import FORMAT, opened

RATE = 16_000
HEARD = Heard("porch", "2026-03-01T12:00:00.000+00:00", "trusted", "r-0123456789ab", "fe-0123456789ab", 2.5, 1.0, 3)
DECIDE = """
import sys
from pathlib import Path
import numpy
from twophase.device.agent import Agent
from twophase.device.config import Config
agent = Agent(Path(sys.argv[1]), Config())
agent.listener.feed(numpy.full(16000, 3000, numpy.int16))
held = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(agent.listener.tallies[0].windows, int(held.split()[1]), flush=True)
"""
OPEN = """
import sys, time
from pathlib import Path
from twophase.device.spool import opened
began = time.monotonic()
with opened(Path(sys.argv[1])) as spool:
    took = time.monotonic() - began
    held = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(took, int(held.split()[1]) / 1024, spool.status()["waiting"])
"""


def noise(seed: int, seconds: float) -> "np.ndarray[Any, np.dtype[np.int16]]":
    """Noise that no codec makes smaller."""
    return np.random.default_rng(seed).integers(-32768, 32767, int(RATE * seconds), np.int16)


def agent(release: Path, folder: Path) -> dict[str, float]:
    """Seconds to the first decision, resident MB, processor seconds a second of sound."""
    state = folder / "state"
    Identity("porch", "http://127.0.0.1:9", Identity.make("").private_key).write(state)
    updates.install(state, release)
    port = free_port()
    (state / "device.toml").write_text(f"metrics_port = {port}\n")
    command = [sys.executable, "-m", "twophase.device", str(state)]
    decided = [sys.executable, "-c", DECIDE, str(state)]
    starts = sorted(took(decided) for _ in range(5))
    first = starts[0][1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | of_unit(), **quiet) as p:
        try:
            spent = []
            for turn in range(10):
                p.stdin.write((noise(turn, 60) // 300).tobytes())
                p.stdin.flush()
                wait_for_windows(port, 60 * RATE * (turn + 1) // HOP - 1)
                spent.append(_cpu_s(p.pid))
            resident = int(Path(f"/proc/{p.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        finally:
            p.kill()
    cpu = (spent[-1] - spent[1]) / (60 * 8)
    return {"start": starts[2][0], "first": first, "resident": resident, "cpu": cpu}


def of_unit() -> dict[str, str]:
    """The environment that the device's systemd unit sets."""
    unit = Path(__file__).parents[1] / "containers" / "device.service"
    lines = [line for line in unit.read_text().splitlines() if line.startswith("Environment=MALLOC")]
    return dict(pair.split("=") for line in lines for pair in line.removeprefix("Environment=").split())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def took(command: list[str]) -> tuple[float, float]:
    """Seconds from starting a program to its first decision, and the MB that it holds then."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        _, kb = process.stdout.readline().split()
        return time.monotonic() - began, int(kb) * 1024 / 1e6


def wait_for_windows(port: int, count: int) -> None:
    """Until the agent has decided so many windows; what is in its pipe is decided within moments."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
                if json.load(answer)["windows"] >= count:
                    return
        except OSError:
            pass  # it has not begun to answer
        time.sleep(0.2)
    raise TimeoutError(f"{count} windows were not decided within 60 s")


def _cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def rate(folder: Path, clips: int = 500) -> float:
    """Acknowledged clips of 96 kB a second, by one thread."""
    sounds = [noise(seed, 3) for seed in range(20)]
    with opened(folder / "rate") as spool:
        began = time.monotonic()
        for i in range(clips):
            assert spool.put(sounds[i % 20], HEARD)
        return clips / (time.monotonic() - began)


def waiting(folder: Path, clips: int) -> dict[str, float]:
    """Seconds and MB to open a spool with many clips: its index built, and intact."""
    spool, sound = folder / "many", noise(0, 0.02)
    for sequence in range(1, clips + 1):
        place = spool / FORMAT / "clips" / f"{sequence // FOLDER_OF * FOLDER_OF:012d}"
        if sequence % FOLDER_OF in (0, 1):
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{sequence:012d}.flac").write_bytes(pack(sound, Story.of(HEARD, sequence)))
    figures = {}
    for name in ("rebuilt", "intact"):
        said = subprocess.run([sys.executable, "-c", OPEN, str(spool)], capture_output=True, text=True, check=True)
        took, held, found = map(float, said.stdout.split())
        assert found == clips, f"{found} of {clips} are there"
        figures |= {name: took, f"{name} MB": held}
    return figures


def run(release: Path, clips: int = 100_000, folder: Path | None = None) -> dict[str, Any]:
    """Measure everything in one folder."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        here = Path(place)
        costs, per_s, many = agent(release, here), rate(here), waiting(here, clips)
        disk = subprocess.run(["df", "--output=source,fstype", place], capture_output=True, text=True).stdout.split()
    rows = [
        row("cold start to the first decision", costs["start"], "s"),
        row("resident then", costs["first"], "MB"),
        row("resident with uplink, reports and metrics at work", costs["resident"], "MB"),
        row("processor time a microphone", 100 * costs["cpu"], "% of a core"),
        row("acknowledged clips of 96 kB", per_s, "clips/s"),
        row(f"start with {clips:,} waiting, index intact", many["intact"], "s"),
        row(f"start with {clips:,} waiting, index rebuilt", many["rebuilt"], "s"),
        row("memory of that, the larger", max(many["intact MB"], many["rebuilt MB"]), "MB"),
    ]
    goals = [
        at_most("cold start, s", costs["start"], 0.5),
        at_most("resident at the first decision, MB", costs["first"], 60),
        at_most("a microphone, % of a core", 100 * costs["cpu"], 1),
        at_least("acknowledged clips/s", per_s, 100),
        at_most("start, index intact, s", many["intact"], 2),
        at_most("start, index rebuilt, s", many["rebuilt"], 60),
        at_most("memory with clips waiting, MB", max(many["intact MB"], many["rebuilt MB"]), 100),
    ]
    about = {**machine(), "disk": " ".join(disk[-2:])}
    return {"benchmark": "device", "machine": about, "rows": rows, "goals": goals}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    emit(run(given.release, given.waiting, given.folder))
