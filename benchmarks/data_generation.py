"""Clips to images, end to end: one core and two, again with nothing new, with 1 % new, and how memory grows.

    TWOPHASE_RECORDINGS=/data/orchestra python benchmarks/data_generation.py      about 4 minutes

Reads the folder that TWOPHASE_RECORDINGS names, or renders clips where it names none. A run here is the work of the
pipeline's first four steps in one process: list, plan, decode and make images, collect. What a fresh interpreter and
the pipeline's engine add is another benchmark's business. Memory is the peak of a process of its own for each step,
over synthesised clips of a twentieth of a second in tars of 1,000, and over a plan of a million clips that exist by
name alone.
"""

import json
import os
import subprocess
import sys
import tarfile
import wave
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
from _report import at_least, at_most, emit, in_turns, machine, row

from twophase.audio import images, packs, sources
from twophase.audio.dataset import Clip, find_clips, read_clips
from twophase.audio.decode import decode_native, resample
from twophase.audio.store import Store
from twophase.files import digest

ROUNDS, SMALL, LARGE, PLANNED = 3, 1_000, 100_000, 1_000_000

STEPS = {"list": 1.5, "make": 1.25, "collect": 1.5}
"""The steps whose memory is measured, and how much more a hundred times the clips may cost them."""


def run() -> dict[str, Any]:
    """Measure speed on real or rendered clips, and memory on synthesised ones."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        data = _data(home)
        clips, _ = find_clips(str(data))
        packs.images_of(clips[0])  # compiling the front end is no stage's
        rates = in_turns(_workers(home, clips), ROUNDS)
        stages = _stages(clips)
        first, again, grown = _runs(home, clips)
        memory = {count: _memory(home, count) for count in (SMALL, LARGE)}
        plan_mb = _in_process(f"plan_only({str(home / 'million')!r}, {PLANNED})")
    one, two = rates["one core"], rates["two cores"]
    others = max(ms for name, ms in stages.items() if name != "decode")
    return {
        "benchmark": "data_generation",
        "machine": machine(),
        "rows": [
            row("clips", len(clips), "clips"),
            *(row(f"clips to images, {name}", rate, "clips/s") for name, rate in rates.items()),
            *(row(f"stage: {name}", ms, "ms a clip") for name, ms in stages.items()),
            row("first run", first, "s"),
            row("second run, nothing new", again, "s"),
            row("third run, 1 % new", grown, "s"),
            *(row(f"peak memory: {step} {n:,} clips", mb[step], "MB") for step in STEPS for n, mb in memory.items()),
            row(f"peak memory of planning {PLANNED:,} clips", plan_mb["plan"], "MB"),
        ],
        "goals": [
            at_least("two cores / one core", two / one, 1.6),
            at_least("decoding / the next largest stage, time", stages["decode"] / others, 1.0),
            at_most("second run with nothing new / first", again / first, 0.05),
            at_most("run with 1 % new / first", grown / first, 0.05),
            *(
                at_most(
                    f"memory to {step} {LARGE:,} clips / {SMALL:,}", memory[LARGE][step] / memory[SMALL][step], most
                )
                for step, most in STEPS.items()
            ),
            at_most("memory of planning a million clips / 1 GB", plan_mb["plan"] / 1000, 1.0),
        ],
    }


def _data(home: Path) -> Path:
    named = os.environ.get("TWOPHASE_RECORDINGS", "")
    if named and (Path(named) / "labels.csv").is_file():
        return Path(named)
    from twophase.audio import synth

    return synth.write_clips(home / "synth", 40, 0, synth.LABELS) and home / "synth"


def _workers(home: Path, clips: list[Clip]) -> dict[str, Callable[[], float]]:
    def rate(workers: int, turn: list[int]) -> float:
        turn[0] += 1
        begun = perf_counter()
        packs.make(Store(home / f"store-{workers}-{turn[0]}"), clips, workers=workers)
        return len(clips) / (perf_counter() - begun)

    one, two = [0], [0]
    return {"one core": lambda: rate(1, one), "two cores": lambda: rate(2, two)}


def _stages(clips: list[Clip]) -> dict[str, float]:
    """Processor time of each stage on one thread, milliseconds a clip."""
    from twophase.audio import frontend_compiled  # 60 MB that listing does not pay

    names = ("read and hash", "decode", "resample", "cut", "front end")
    spent = dict.fromkeys(names, 0.0)
    for clip in clips[::3]:
        marks = [process_time()]
        data = sources.read(clip.path)
        digest(data)
        marks.append(process_time())
        native, rate = decode_native(data)
        marks.append(process_time())
        pcm = resample(native, rate)
        marks.append(process_time())
        windows = packs.windows_of(pcm)
        marks.append(process_time())
        frontend_compiled.images(windows)
        marks.append(process_time())
        for name, begun, ended in zip(names, marks, marks[1:], strict=False):
            spent[name] += (ended - begun) * 1000 / len(clips[::3])
    return spent


def _runs(home: Path, clips: list[Clip]) -> tuple[float, float, float]:
    """Seconds of a first run over 99 % of the clips, a second with nothing new, and a third with the rest."""
    new = clips[:: max(2, len(clips) // max(1, len(clips) // 100))]
    old = [c for c in clips if c not in set(new)]
    linked = home / "linked"

    def add(some: list[Clip]) -> None:
        for clip in some:
            path = linked / clip.label / f"{clip.sha256[:16]}{Path(clip.path).suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(clip.path)

    def once() -> float:
        begun = perf_counter()
        work = home / "work"
        found, _ = find_clips(linked, work)
        shards = images.plan(found, work / "shards", len(found))
        images.collect([images.make_shard(work / "images", s) for s in shards], shards, (), work / "set", "skip")
        return perf_counter() - begun

    add(old)
    first, again = once(), median(once() for _ in range(3))
    add(new)
    return first, again, once()


def _memory(home: Path, count: int) -> dict[str, float]:
    """Peak memory of the steps over so many clips, MB."""
    folder = home / f"tars-{count}"
    folder.mkdir()
    for first in range(0, count, 1_000):
        with tarfile.open(folder / f"{first:07d}.tar", "w") as archive:
            for i in range(first, first + 1_000):
                file = BytesIO()
                with wave.open(file, "wb") as clip:
                    clip.setparams((1, 2, 16_000, 0, "NONE", ""))
                    clip.writeframes(np.random.default_rng(i).integers(-9_000, 9_000, 800, np.int16).tobytes())
                info = tarfile.TarInfo(f"label-{i % 4}/{i}.wav")
                info.size = file.tell()
                file.seek(0)
                archive.addfile(info, file)
    place = repr(str(folder))
    return {k: v for step in ("listed", "made", "collected") for k, v in _in_process(f"{step}({place})").items()}


def _in_process(call: str) -> dict[str, float]:
    """What one of the functions below says, in a process of its own: memory by step, MB."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import data_generation as d; d.{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def listed(folder: str) -> None:
    """List and plan the clips of a folder."""
    clips, _ = find_clips(folder, Path(folder) / "work")
    images.plan(clips, Path(folder) / "work" / "shards", len(clips))
    _say("list")


def made(folder: str) -> None:
    """Make every shard of a plan, one after the other, as one pod after the other would."""
    work = Path(folder) / "work"
    for shard in sorted((work / "shards").glob("shard-*.jsonl")):
        images.make_shard(work / "images", shard)
    _say("make")


def collected(folder: str) -> None:
    """Collect what was made."""
    work = Path(folder) / "work"
    shards = sorted((work / "shards").glob("shard-*.jsonl"))
    images.collect([s.with_suffix(".made.json") for s in shards], shards, (), work / "set", "skip")
    _say("collect")


def plan_only(folder: str, count: int) -> None:
    """Plan clips that exist by name alone, and read the largest shard back."""
    clips = (
        Clip(sha, f"/clips/{i}.wav", f"{i}.wav", f"label-{i % 50}", sha, "train")
        for i, sha in ((i, digest(str(i).encode())) for i in range(count))
    )
    shards = images.plan(clips, Path(folder), count)
    assert len(shards) == images.MAX_SHARDS
    list(read_clips(max(shards, key=lambda s: s.stat().st_size)))
    _say("plan")


def _say(step: str) -> None:
    status = Path("/proc/self/status").read_text()  # getrusage also counts what the parent had when it forked
    print(json.dumps({step: int(status.split("VmHWM:")[1].split()[0]) / 1e3}))


if __name__ == "__main__":
    emit(run())
