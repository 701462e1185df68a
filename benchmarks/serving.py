"""Online prediction, side by side: `twophase serve`, bare LiteRT, FastAPI with the SavedModel as most teams write it.

    python benchmarks/serving.py RELEASE [--seconds 10] [--rounds 3] [--peers litserve,bentoml,kserve]

Each request carries one clip of 1 s as 16-bit WAV in base64 JSON, over kept-alive connections at concurrency 1, 8 and
32, from one load process. Every peer starts fresh for each round, is warmed up, and takes its turn.

Bare LiteRT is the classifier from samples to logits in LiteRT alone, front end included, in as many processes as there
are cores, with no server and no client beside it; what the client costs is therefore in our figure and not in the bare
one. The release in process is the same without a server, as `twophase.release.runtime` runs it (SciPy's front end
before LiteRT's network). FastAPI is left out where it is not installed. `--peers` are put by uv into environments of
their own below the user's cache folder, and left out, with a line that says why, where that fails:

    uv pip install 'tensorflow-cpu>=2.20' litserve      (or bentoml, or kserve)

A server whose answer is not the release's own, within `TOLERANCE`, is left out too.
"""

import argparse
import asyncio
import base64
import contextlib
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
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from _peers import PEERS, installed
from _report import at_least, at_most, emit, machine, row

CONCURRENCY = (1, 8, 32)
START_TIMEOUT_S = 120.0
TOLERANCE = 0.02
"""How far a probability may be from the release's own: the SavedModel's front end and network are not LiteRT's."""
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


def request(path: str = "/predict") -> bytes:
    """The whole HTTP request."""
    body = json.dumps({"instances": [{"audio_bytes": {"b64": base64.b64encode(clip()).decode()}}]}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: l\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
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


def load(port: int, connections: int, seconds: float, path: str = "/predict") -> list[float]:
    """Latencies in seconds of everything that was answered within `seconds`."""

    async def go() -> list[float]:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        done = [loop.create_future() for _ in range(connections)]
        message, until = request(path), time.perf_counter() + seconds
        for future in done:
            await loop.create_connection(lambda future=future: Client(message, until, times, future), "127.0.0.1", port)
        await asyncio.gather(*done)
        return times

    if importlib.util.find_spec("uvloop"):
        import uvloop

        return uvloop.run(go())
    return asyncio.run(go())


def in_process(release: str) -> Callable[[], object]:
    """Answers one clip from its samples as the server does, without a server."""
    from twophase.audio.decode import decode
    from twophase.release.runtime import Pair

    classifier, pcm = Pair(Path(release)).classifier, decode(clip())
    return lambda: classifier.clip_probabilities(pcm)


def litert(release: str) -> Callable[[], object]:
    """Answers one clip from its samples by LiteRT alone: the front end's graph, then the classifier."""
    from ai_edge_litert.interpreter import Interpreter

    from twophase.audio.decode import decode
    from twophase.audio.windows import cut

    folder = Path(release) / "assets.extra"
    nets = [Interpreter(model_content=front_end_file()), Interpreter(str(folder / "classifier.tflite"))]
    for net in nets:
        net.allocate_tensors()
    ends = [(net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]) for net in nets]
    value = cut(decode(clip()))

    def answer() -> object:
        found: Any = value
        for net, (first, last) in zip(nets, ends, strict=True):
            net.set_tensor(first, found)
            net.invoke()
            found = net.get_tensor(last)
        return found

    return answer


@cache
def front_end_file() -> bytes:
    """The front end as a LiteRT file, made by TensorFlow in a process of its own, which leaves nothing in ours."""
    code = """
import sys, tensorflow as tf
from twophase.audio.frontend import FRONT_END
from twophase.audio.frontend_graph import image_graph
made = tf.function(
    lambda pcm: tf.cast(image_graph(pcm), tf.uint8), input_signature=[tf.TensorSpec([1, FRONT_END.samples], tf.float32)]
).get_concrete_function()
sys.stdout.buffer.write(tf.lite.TFLiteConverter.from_concrete_functions([made]).convert())
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout


Answering = Callable[[str], Callable[[], object]]


def repeat(answering: Answering, release: str, seconds: float, start: Any, counts: Any) -> None:
    """Answer clips for `seconds`, once every process is ready."""
    answer = answering(release)
    answer()
    start.wait()
    n, until, before = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until:
        answer()
        n += 1
    counts.put((n / seconds, 1e6 * (time.process_time() - before) / n))


def bare_rate(release: Path, processes: int, seconds: float, answering: Answering = in_process) -> tuple[float, float]:
    """Clips a second in that many processes at once without a server, and the processor time a clip in us."""
    context = multiprocessing.get_context("spawn")
    counts, start = context.Queue(), context.Barrier(processes)
    arguments = (answering, str(release), seconds, start, counts)
    running = [context.Process(target=repeat, args=arguments) for _ in range(processes)]
    for process in running:
        process.start()
    rates = [counts.get() for _ in running]
    for process in running:
        process.join()
    return sum(rate for rate, _ in rates), statistics.mean(spent for _, spent in rates)


class Peer:
    """A server in a process of its own, from start to first right answer, to its end."""

    def __init__(self, command: list[str], environment: dict[str, str], path: str = "/predict") -> None:
        self.path = path
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [part.replace("PORT", str(self.port)) for part in command],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment, "PORT": str(self.port)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                load(self.port, 1, 0, path)
                break
            except (OSError, AssertionError):  # nobody there, or not ready
                if self.process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                    self.stop()
                    raise RuntimeError(f"{command[:2]}: did not answer") from None
                time.sleep(0.005)
        self.cold_s = time.perf_counter() - started

    def check(self, expected: Any) -> None:
        """Raise `RuntimeError`, and end the server, unless it answers the clip with these probabilities."""
        body = request(self.path).partition(b"\r\n\r\n")[2]
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{self.path}", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as response:
            (prediction,) = json.load(response)["predictions"]
        found = prediction["probabilities"]
        found = list(found.values()) if isinstance(found, dict) else found
        if np.shape(found) != np.shape(expected) or np.abs(np.subtract(found, expected)).max() > TOLERANCE:
            self.stop()
            raise RuntimeError(f"answers {found}, the release {np.asarray(expected).tolist()}")

    def memory_mb(self) -> float:
        """Proportional memory of the whole program, divided by how many of its processes answer."""
        pss = sum(_pss(pid) for pid in [self.process.pid, *self.children()])
        return pss / max(1, len(self.children()))

    def cpu_s(self) -> list[float]:
        """Processor time so far of the program's first process and each that it started: least distorted by others."""
        return [_cpu_s(pid) for pid in [self.process.pid, *self.children()]]

    def children(self) -> list[int]:
        """The processes that it started."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sorted(int(pid) for thread in threads for pid in (thread / "children").read_text().split())

    def stop(self) -> None:
        """End it with all its processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, number)
                self.process.wait(10)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def run(release: Path, seconds: float = 10.0, rounds: int = 3, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Measure every peer at every concurrency, in turns."""
    cores = len(os.sched_getaffinity(0))
    peers = {"twophase": ([sys.executable, "-m", "twophase.serving"], {"TWOPHASE_MODEL": str(release)}, "/predict")}
    fastapi = "FastAPI + SavedModel"
    if importlib.util.find_spec("fastapi"):
        peers[fastapi] = ([sys.executable, "-c", FASTAPI, str(release), "PORT"], {}, "/predict")
    else:
        print("FastAPI is not installed: left out", file=sys.stderr)
    for name in others:
        if command := installed(name, release):
            path = "/v1/models/m:predict" if name == "kserve" else "/predict"
            peers[PEERS[name][0]] = (command, {"TF_USE_LEGACY_KERAS": "0"}, path)
    expected = in_process(str(release))()
    figures: dict[tuple[str, str], list[float]] = {}

    def add(name: str, what: str, value: float) -> None:
        figures.setdefault((name, what), []).append(value)

    for turn in range(rounds):
        for count in sorted({1, cores}):
            for name, answering in (("bare LiteRT", litert), ("the release in process", in_process)):
                rate, spent = bare_rate(release, count, seconds, answering)
                add(name, f"{count} processes", rate)
                add(name, f"processor time a clip, {count} processes", spent)
        for name in list(peers):
            try:
                peer = Peer(*peers[name])
                peer.check(expected)
            except RuntimeError as error:
                print(f"{name} does not answer as it should: left out ({error})", file=sys.stderr)
                del peers[name]
                continue
            add(name, "cold start", peer.cold_s)
            for connections in CONCURRENCY:
                load(peer.port, connections, 1.0, peer.path)
                at, before = f"at {connections}", peer.cpu_s()
                times = sorted(load(peer.port, connections, seconds, peer.path))
                spent = [now - then for then, now in zip(before, peer.cpu_s(), strict=True)]
                add(name, f"processor time a request {at}", 1e6 * sum(spent) / len(times))
                add(name, f"requests/s {at}", len(times) / seconds)
                add(name, f"p50 {at}", 1e3 * times[len(times) // 2])
                add(name, f"p99 {at}", 1e3 * times[int(len(times) * 0.99)])
                if name == "twophase" and connections >= cores > 1:
                    add(name, f"busiest worker to mean {at}", max(spent[1:]) / statistics.mean(spent[1:]))
            add(name, "memory a worker", peer.memory_mb())
            peer.stop()
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    found = {key: statistics.median(values) for key, values in figures.items()}
    units = {"cold": "s", "memo": "MB", "p50 ": "ms", "p99 ": "ms", "proc": "us", "busi": "x"}
    rows = [row(f"{name}: {what}", value, units.get(what[:4], "1/s")) for (name, what), value in found.items()]
    best = max(found["twophase", f"requests/s at {c}"] for c in CONCURRENCY)
    both = f"{cores} processes"
    rows.append(row("requests/s to the release in process", best / found["the release in process", both], "x"))
    model_ms = found["the release in process", "processor time a clip, 1 processes"] / 1e3
    goals = [
        at_least("requests/s of bare LiteRT's clips/s", best / found["bare LiteRT", both], 0.9),
        at_most("p50 on top of the model at 1, ms", found["twophase", "p50 at 1"] - model_ms, 1.0),
    ]
    if fastapi in peers:
        for connections, faster in zip(CONCURRENCY, (4, 5, 5), strict=True):
            rate, p99 = f"requests/s at {connections}", f"p99 at {connections}"
            goals.append(at_least(f"{rate} of {fastapi}'s", found["twophase", rate] / found[fastapi, rate], faster))
            if connections > 1:
                goals.append(at_most(f"{p99} of {fastapi}'s", found["twophase", p99] / found[fastapi, p99], 0.25))
        for what, goal in (("cold start", 0.1), ("memory a worker", 1 / 6)):
            ratio = found["twophase", what] / found[fastapi, what]
            goals.append(at_most(f"{what} of {fastapi}'s", ratio, round(goal, 3)))
    for name in peers.keys() - {"twophase", fastapi}:
        for connections in CONCURRENCY:
            rate = f"requests/s at {connections}"
            goals.append(at_least(f"{rate} of {name}'s", found["twophase", rate] / found[name, rate], 1))
    return {"benchmark": "serving", "machine": machine(), "rows": rows, "goals": goals}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="", help=f"of {','.join(PEERS)}; installed where they are not")
    given = parser.parse_args()
    emit(run(given.release, given.seconds, given.rounds, tuple(filter(None, given.peers.split(",")))))
