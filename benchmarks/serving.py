"""Online prediction, side by side: `twophase serve`, bare LiteRT, FastAPI with the SavedModel as most teams write it.

    python benchmarks/serving.py RELEASE [--seconds 10] [--rounds 3]

Each request carries one clip of 1 s as 16-bit WAV in base64 JSON, over kept-alive connections at concurrency 1, 8 and
32, from one load process. Every peer starts fresh for each round, is warmed up, and takes its turn. Bare LiteRT is the
same release through `twophase.release.runtime` in as many processes as there are cores, with no server and no client
beside it; what the client costs is therefore in our figure and not in the bare one. Peers that are not installed
(FastAPI) are left out, and said so.
"""

import argparse
import asyncio
import base64
import importlib.util
import io
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from _report import at_least, at_most, emit, machine, row

CONCURRENCY = (1, 8, 32)
FASTAPI = """
import base64, sys
import numpy as np, tensorflow as tf, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

class Request(BaseModel):
    instances: list[dict]

model = tf.saved_model.load(sys.argv[1])
infer = model.signatures["serving_default"]
name = next(iter(infer.structured_input_signature[1]))
app = FastAPI()

@app.get("/healthz")
def health():
    return {"status": "ok"}

@app.post("/predict")
def predict(request: Request):
    clips = [base64.b64decode(i["audio_bytes"]["b64"]) for i in request.instances]
    answer = infer(**{name: tf.constant(clips)})
    answer = {key: value.numpy() for key, value in answer.items() if value.dtype != tf.string}
    return {"predictions": [{key: value[i].tolist() for key, value in answer.items()} for i in range(len(clips))]}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""


def clip() -> bytes:
    """One second of a decaying tone, 16-bit WAV."""
    t = np.arange(16_000) / 16_000
    out = io.BytesIO()
    soundfile.write(out, (0.5 * np.exp(-2 * t) * np.sin(2 * np.pi * 440 * t)).astype(np.float32), 16_000, format="WAV")
    return out.getvalue()


def request() -> bytes:
    """The whole HTTP request."""
    body = json.dumps({"instances": [{"audio_bytes": {"b64": base64.b64encode(clip()).decode()}}]}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: l\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection that asks, waits for the answer, and asks again."""

    def __init__(self, message: bytes, until: float, times: list[float], done: asyncio.Future[None]) -> None:
        self.message, self.until, self.times, self.done = message, until, times, done
        self.buffer, self.wanted = b"", -1

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the request."""
        self.started = time.perf_counter()
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.buffer += data
        if self.wanted < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            assert self.buffer.startswith(b"HTTP/1.1 200"), self.buffer[:500]
            head = self.buffer[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            self.wanted = end + 4 + length
        if len(self.buffer) < self.wanted:
            return
        now = time.perf_counter()
        self.times.append(now - self.started)
        self.buffer, self.wanted = b"", -1
        if now < self.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        if not self.done.done():
            self.done.set_result(None) if error is None else self.done.set_exception(error)


def load(port: int, connections: int, seconds: float) -> list[float]:
    """Latencies in seconds of everything that was answered within `seconds`."""

    async def go() -> list[float]:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        done = [loop.create_future() for _ in range(connections)]
        message, until = request(), time.perf_counter() + seconds
        for future in done:
            await loop.create_connection(lambda future=future: Client(message, until, times, future), "127.0.0.1", port)
        await asyncio.gather(*done)
        return times

    if importlib.util.find_spec("uvloop"):
        import uvloop

        return uvloop.run(go())
    return asyncio.run(go())


def bare(release: str, seconds: float, counts: Any) -> None:
    """Answer clips without a server for `seconds`."""
    from twophase.audio.decode import decode
    from twophase.release.runtime import Pair

    classifier, pcm = Pair(Path(release)).classifier, decode(clip())
    classifier.clip_probabilities(pcm)
    n, until, before = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until:
        classifier.clip_probabilities(pcm)
        n += 1
    counts.put((n / seconds, 1e6 * (time.process_time() - before) / n))


def bare_rate(release: Path, processes: int, seconds: float) -> tuple[float, float]:
    """Clips a second of bare LiteRT in that many processes at once, and its processor time a clip in us."""
    context = multiprocessing.get_context("spawn")
    counts = context.Queue()
    running = [context.Process(target=bare, args=(str(release), seconds, counts)) for _ in range(processes)]
    for process in running:
        process.start()
    rates = [counts.get() for _ in running]
    for process in running:
        process.join()
    return sum(rate for rate, _ in rates), statistics.mean(spent for _, spent in rates)


class Peer:
    """A server in a process of its own, from start to first right answer, to its end."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [part.replace("PORT", str(self.port)) for part in command],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment, "PORT": str(self.port)},
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                load(self.port, 1, 0)
                break
            except OSError:
                time.sleep(0.005)
        self.cold_s = time.perf_counter() - started

    def memory_mb(self) -> float:
        """Proportional memory of the whole program, divided by how many of its processes answer."""
        parent = self.process.pid
        children = [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        pss = sum(_pss(pid) for pid in [parent, *children])
        return pss / max(1, len(children))

    def cpu_s(self) -> float:
        """Processor time of the whole program so far: what a busy machine distorts least."""
        parent = self.process.pid
        children = [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        return sum(_cpu_s(pid) for pid in [parent, *children])

    def stop(self) -> None:
        """End it with all its processes."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def run(release: Path, seconds: float = 10.0, rounds: int = 3) -> dict[str, Any]:
    """Measure every peer at every concurrency, in turns."""
    cores = len(os.sched_getaffinity(0))
    peers = {"twophase": ([sys.executable, "-m", "twophase.serving"], {"TWOPHASE_MODEL": str(release)})}
    if importlib.util.find_spec("fastapi"):
        peers["FastAPI + SavedModel"] = ([sys.executable, "-c", FASTAPI, str(release), "PORT"], {})
    else:
        print("FastAPI is not installed: left out", file=sys.stderr)
    figures: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds):
        for count in {1, cores}:
            rate, spent = bare_rate(release, count, seconds)
            figures.setdefault(("bare LiteRT", f"{count} processes"), []).append(rate)
            figures.setdefault(("bare LiteRT", f"processor time a clip, {count} processes"), []).append(spent)
        for name, (command, environment) in peers.items():
            peer = Peer(command, environment)
            figures.setdefault((name, "cold start"), []).append(peer.cold_s)
            for connections in CONCURRENCY:
                load(peer.port, connections, 1.0)
                at, before = f"at {connections}", peer.cpu_s()
                times = sorted(load(peer.port, connections, seconds))
                spent = 1e6 * (peer.cpu_s() - before) / len(times)
                figures.setdefault((name, f"processor time a request {at}"), []).append(spent)
                figures.setdefault((name, f"requests/s {at}"), []).append(len(times) / seconds)
                figures.setdefault((name, f"p50 {at}"), []).append(1e3 * times[len(times) // 2])
                figures.setdefault((name, f"p99 {at}"), []).append(1e3 * times[int(len(times) * 0.99)])
            figures.setdefault((name, "memory a worker"), []).append(peer.memory_mb())
            peer.stop()
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    found = {key: statistics.median(values) for key, values in figures.items()}
    units = {"cold": "s", "memo": "MB", "p50 ": "ms", "p99 ": "ms", "proc": "us"}
    rows = [row(f"{name}: {what}", value, units.get(what[:4], "1/s")) for (name, what), value in found.items()]
    model_ms = 1e3 / found["bare LiteRT", "1 processes"]
    best = max(found["twophase", f"requests/s at {c}"] for c in CONCURRENCY)
    goals = [
        at_least("requests/s of bare LiteRT's clips/s", best / found["bare LiteRT", f"{cores} processes"], 0.9),
        at_most("p50 on top of the model at 1, ms", found["twophase", "p50 at 1"] - model_ms, 1.0),
    ]
    other = "FastAPI + SavedModel"
    if other in peers:
        for connections, faster in zip(CONCURRENCY, (4, 5, 5), strict=True):
            rate, p99 = f"requests/s at {connections}", f"p99 at {connections}"
            goals.append(at_least(f"{rate} of {other}'s", found["twophase", rate] / found[other, rate], faster))
            if connections > 1:
                goals.append(at_most(f"{p99} of {other}'s", found["twophase", p99] / found[other, p99], 0.25))
        for what, goal in (("cold start", 0.1), ("memory a worker", 1 / 6)):
            goals.append(at_most(f"{what} of {other}'s", found["twophase", what] / found[other, what], round(goal, 3)))
    return {"benchmark": "serving", "machine": machine(), "rows": rows, "goals": goals}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    emit(run(given.release, given.seconds, given.rounds))
