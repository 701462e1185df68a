"""Batch prediction: a job's clips a second beside the bare model's in as many processes, and its memory by its length.

    python benchmarks/batch.py RELEASE [--clips 10000] [--large 100000]

The job's processes are run as the platform runs them, on JSONL of 1 s WAV clips with a `key_field`. The bare model
answers as many clips from samples in memory, in as many processes: no reading, no JSON, no writing. Start-up is part of
both times. They take turns.
"""

import argparse
import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _report import at_least, at_most, emit, in_turns, machine, row
from serving import clip

from twophase.local.batch import Plan, index, progress, write_plan

BARE = """
import sys
sys.path.insert(0, sys.argv[1])
from serving import in_process
answer = in_process(sys.argv[2])
for _ in range(int(sys.argv[3])):
    answer()
"""


def bare(release: Path, clips: int) -> float:
    """Seconds that the bare model takes over so many clips."""
    count = len(os.sched_getaffinity(0))
    command = [sys.executable, "-c", BARE, str(Path(__file__).parent), str(release), str(clips // count)]
    started = time.perf_counter()
    for process in [subprocess.Popen(command) for _ in range(count)]:
        if process.wait():
            raise SystemExit(f"the bare model ended with {process.returncode}")
    return time.perf_counter() - started


def job(release: Path, clips: int, folder: Path) -> tuple[float, float]:
    """Seconds that a job of so many clips takes, and the largest of its processes in MB."""
    source, work = folder / "in.jsonl", folder / "job"
    encoded = base64.b64encode(clip()).decode()
    with source.open("w") as file:
        for i in range(clips):
            file.write(json.dumps({"key": i, "audio_bytes": {"b64": encoded}}) + "\n")
    stat = source.stat()
    inputs = [(str(source), stat.st_size, stat.st_mtime_ns)]
    started = time.perf_counter()
    total, starts = index(inputs)
    plan = Plan(
        model=str(release),
        inputs=inputs,
        format="jsonl",
        buckets={},
        output=str(folder / "out"),
        total=total,
        starts=starts,
        echo=True,
        key_field="key",
        included=[],
        excluded=[],
        parameters=None,
    )
    work.mkdir()
    write_plan(work, plan)
    count = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "twophase.local.batch", str(work)]
    for process in [subprocess.Popen([*command, str(i), str(count)]) for i in range(count)]:
        if process.wait():
            raise SystemExit(f"a process of the job ended with {process.returncode}")
    seconds = time.perf_counter() - started
    assert progress(work) == (clips, 0)
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def run(release: Path, clips: int = 10_000, large: int = 100_000, rounds: int = 3) -> dict[str, Any]:
    """Measure the bare model and a job of `clips` in turns, and the memory of a small and a large job."""
    cores = len(os.sched_getaffinity(0))
    memory: dict[int, float] = {}

    def rate(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            seconds, memory[count] = job(release, count, Path(folder))
        return count / seconds

    small = rate(1000)  # first: the largest process so far is what is remembered
    found = in_turns({"bare": lambda: clips / bare(release, clips), "job": lambda: rate(clips)}, rounds)
    rows = [
        row(f"bare model, {cores} processes, {clips:,} clips", found["bare"], "clips/s"),
        row("job of 1,000 clips", small, "clips/s"),
        row(f"job of {clips:,} clips", found["job"], "clips/s"),
        row(f"job of {large:,} clips", rate(large), "clips/s"),
        *(row(f"memory of the largest process, {count:,} clips", memory[count], "MB") for count in sorted(memory)),
    ]
    goals = [
        at_least(f"clips/s of the bare model's, {clips:,} clips", found["job"] / found["bare"], 0.9),
        at_most(f"memory at {large:,} to that at 1,000", memory[large] / memory[1000], 1.1),
    ]
    return {"benchmark": "batch", "machine": machine(), "rows": rows, "goals": goals}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=100_000)
    given = parser.parse_args()
    emit(run(given.release, given.clips, given.large))
