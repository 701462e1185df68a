"""A thousand devices that come back at once, over bad links, to one gateway: is anything lost, asked twice, or stormed?

    python benchmarks/fleet.py RELEASE [--devices 1000] [--clips 5]

A platform serves the release, a gateway stands before it, both in processes of their own and on this machine with the
fleet. Every device has clips waiting and starts in the same second. An upload takes two seconds on average, so more are
under way than the gateway takes. A fifth of them is cut somewhere, a tenth of the answers never arrives, a twentieth of
the requests is sent twice. Devices follow docs/gateway.md: they back off with jitter, heed `Retry-After`, and never
give up.
"""

import argparse
import asyncio
import importlib
import io
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from _report import at_most, emit, machine, row

from twophase.gateway import devices
from twophase.gateway.server import open_store
from twophase.local.process import down, up
from twophase.release.manifest import read

sys.path.insert(0, str(Path(__file__).parents[1]))
remote: Any = importlib.import_module("tests.gateway.remote")  # the protocol as the tests speak it

CUT, LOST, TWICE = 0.2, 0.1, 0.05
PIECES, PIECE_S = 4, 0.5
"""Of an upload, and how long each takes on average."""
LONGEST_S = 60.0
WHERE = "projects/local/locations/us-central1"


class LinkBroke(Exception):
    """What a device sees of a bad link."""


class Sender:
    """One device: its clips, and what it has seen of the gateway."""

    def __init__(
        self, name: str, http: httpx.AsyncClient, clips: dict[int, bytes], front_end: str, fleet: "Fleet"
    ) -> None:
        self.name, self.key, self._http, self._front_end, self._fleet = name, remote.Key(), http, front_end, fleet
        self._clips, self._nonce, self._chance = clips, "", random.Random(name)
        self.answered: set[int] = set()
        self.acknowledged: set[int] = set()
        self.again = 0
        """Answers that came again after they were acknowledged."""

    async def run(self) -> None:
        """Send everything and fetch every answer."""
        stored: set[int] = set()
        tries = 0
        while len(self.acknowledged) < len(self._clips):
            try:
                if len(stored) < len(self._clips):
                    await self._upload(stored)
                if len(self.answered) < len(self._clips):
                    answer = await self._send("GET", "/v1/answers?wait=20")
                    numbers = {item["sequence"] for item in answer.json()["answers"]}
                    self.again += len(numbers & self.acknowledged)
                    self.answered |= numbers
                if self.answered:
                    await self._send("POST", "/v1/answers", {"acknowledge": sorted(self.answered)})
                    self.acknowledged |= self.answered
                tries = 0
            except LinkBroke as error:
                tries += 1
                told_s = float(error.args[0])
                backoff_s = self._chance.uniform(0, min(LONGEST_S, 2.0**tries))
                await asyncio.sleep(max(told_s, backoff_s))

    async def _upload(self, stored: set[int]) -> None:
        waiting = [remote.announced(n, d, front_end=self._front_end) for n, d in self._clips.items() if n not in stored]
        answer = await self._send("POST", "/v1/clips", {"clips": waiting})
        for item in answer.json()["clips"]:
            if item["state"] == "receiving":
                await self._append(item["sequence"], item["offset"])
            stored.add(item["sequence"])

    async def _append(self, number: int, offset: int) -> None:
        rest = self._clips[number][offset:]
        end = self._chance.randrange(len(rest)) if self._chance.random() < CUT else len(rest)

        async def body() -> AsyncIterator[bytes]:
            size = max(1, -(-end // PIECES))
            for at in range(0, end, size):
                await asyncio.sleep(self._chance.expovariate(1 / PIECE_S))
                yield rest[at : min(at + size, end)]
            if end < len(rest):
                raise LinkBroke(0)

        fields = {"upload-offset": str(offset), "content-length": str(len(rest))}
        await self._send("PATCH", f"/v1/clips/{number}", body=body, headers=fields)

    async def _send(
        self, method: str, target: str, value: Any = None, body: Any = None, headers: Any = None
    ) -> httpx.Response:
        """An answer that came through. Raises `LinkBroke` with how long the gateway asked to wait."""
        for _ in range(3):
            content = b"" if value is None else httpx.Request("POST", "/", json=value).content
            proof = self.key.proof(self.name, method, target, self._nonce, None if body else content)
            answer = await self._over_the_link(
                method, target, body or (lambda content=content: content), {"dpop": proof, **(headers or {})}
            )
            self._nonce = answer.headers.get("dpop-nonce", self._nonce)
            if "use_dpop_nonce" not in answer.headers.get("www-authenticate", ""):
                break
        if answer.is_success:
            return answer
        if answer.status_code not in (408, 409, 422, 429) and answer.status_code < 500:
            raise RuntimeError(f"{method} {target}: {answer.status_code} {answer.text}")
        raise LinkBroke(answer.headers.get("retry-after", 0))

    async def _over_the_link(self, method: str, target: str, body: Any, headers: Any) -> httpx.Response:
        self._fleet.sent()
        await asyncio.sleep(self._chance.expovariate(1 / 0.05))
        try:
            answer = await self._http.request(method, target, content=body(), headers=headers)
            if self._chance.random() < TWICE:  # the same bytes again: a proof is good once
                again = await self._http.request(method, target, content=body(), headers=headers)
                self._fleet.replays[again.status_code] += 1
        except httpx.TransportError:
            raise LinkBroke(0) from None
        self._fleet.codes[answer.status_code] += 1
        if self._chance.random() < LOST:
            raise LinkBroke(answer.headers.get("retry-after", 0))
        return answer


class Fleet:
    """What all devices together saw."""

    def __init__(self) -> None:
        self.codes: Counter[int] = Counter()
        self.replays: Counter[int] = Counter()
        self._began = time.monotonic()
        self._seconds: Counter[int] = Counter()

    def sent(self) -> None:
        """Count a request."""
        self._seconds[int(time.monotonic() - self._began)] += 1

    def busiest_after_the_first(self) -> int:
        """Requests in the busiest second once the first wave, of ten seconds, is over."""
        return max((n for second, n in self._seconds.items() if second >= 10), default=0)


def sounds(count: int, seed: int) -> dict[int, bytes]:
    """Clips of one second."""
    rng, clips = np.random.default_rng(seed), {}
    for number in range(1, count + 1):
        file = io.BytesIO()
        soundfile.write(file, 0.1 * rng.normal(size=16_000), 16_000, format="FLAC")
        clips[number] = file.getvalue()
    return clips


def deploy(url: str, release: Path, front_end: str) -> None:
    """Serve a release at the endpoint `two-phase`."""
    with httpx.Client(base_url=f"{url}/v1/", timeout=60) as http:

        def made(path: str, body: dict[str, Any]) -> Any:
            return http.post(path, json=body).raise_for_status().json()["response"]

        model = {"displayName": "two-phase", "artifactUri": str(release), "labels": {"front_end": front_end}}
        version = made(f"{WHERE}/models:upload", {"model": model})["model"]
        endpoint = made(f"{WHERE}/endpoints", {"displayName": "two-phase"})["name"]
        made(f"{endpoint}:deployModel", {"deployedModel": {"model": version}, "trafficSplit": {"0": 100}})


async def send_all(url: str, home: Path, count: int, clips: int, front_end: str) -> tuple[list[Sender], Fleet]:
    """Enrol the fleet, then let all of it loose."""
    fleet = Fleet()
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        senders = [Sender(f"d{i:04}", http, sounds(clips, i), front_end, fleet) for i in range(count)]
        store = open_store(home)
        for some in senders:
            store.submit(lambda c, s=some: devices.enrol(c, devices.expect(c, s.name), s.key.jwk["x"]))
        store.close()
        fleet.__init__()  # type: ignore[misc]
        async with asyncio.TaskGroup() as group:
            for sender in senders:
                group.create_task(sender.run())
    return senders, fleet


def run(release: Path, count: int = 1000, clips: int = 5) -> dict[str, Any]:
    """Send `clips` clips from each of `count` devices at once."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    front_end = read(release).fingerprint
    with tempfile.TemporaryDirectory() as folder:
        platform, home = Path(folder) / "platform", Path(folder) / "gateway"
        url = up(platform).url
        try:
            deploy(url, release, front_end)
            gateway = remote.Process(home, "--api-endpoint", url)
            began = time.monotonic()
            senders, fleet = asyncio.run(send_all(gateway.said, home, count, clips, front_end))
            took = time.monotonic() - began
            gateway.stop()
            jobs = httpx.get(f"{url}/v1/{WHERE}/batchPredictionJobs").json().get("batchPredictionJobs", [])
        finally:
            down(platform)
    sent, total = sum(fleet.codes.values()), count * clips
    lost = total - sum(len(sender.acknowledged) for sender in senders)
    replayed = sum(n for code, n in fleet.replays.items() if code < 400)
    rows = [
        row("devices", count, "at once"),
        row("clips", total, "clips"),
        row("until every answer was fetched", took, "s"),
        row("requests", sent, "requests"),
        row("of these told to come later (429)", fleet.codes[429], "requests"),
        row("of these failed (5xx)", sum(n for code, n in fleet.codes.items() if code >= 500), "requests"),
        row("busiest second after the first ten", fleet.busiest_after_the_first(), "requests"),
        row("requests sent twice", sum(fleet.replays.values()), "requests"),
        row("batch jobs", len(jobs), "jobs"),
    ]
    goals = [
        at_most("clips lost", lost, 0),
        at_most("answered again", sum(sender.again for sender in senders), 0),
        at_most("replayed requests that were taken", replayed, 0),
        at_most("batch jobs", len(jobs), 10),
        at_most("busiest second after the first ten, a device", fleet.busiest_after_the_first() / count, 0.5),
    ]
    return {"benchmark": "fleet", "machine": machine(), "rows": rows, "goals": goals}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=5)
    given = parser.parse_args()
    emit(run(given.release, given.devices, given.clips))
