"""The gateway killed at random moments while devices upload and fetch: nothing stored is lost, each is answered once.

`make test-faults SEEDS=1000` kills a thousand times; the tests of every day a few times.
"""

import io
import os
import random
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from tests.gateway.remote import Device, Key, Process, announced, serving
from twophase.audio.frontend import FRONT_END
from twophase.gateway import devices
from twophase.gateway.server import open_store

DEVICES = 3
KILLS_A_HOME = 10
"""Then the next home, so that a long run does not only grow one database."""


def sound(seed: int) -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).normal(size=16_000)
    soundfile.write(file, noise, 16_000, format="FLAC")
    return file.getvalue()


class Sender(threading.Thread):
    """A device that never gives up: it numbers clips, sends them in pieces, fetches answers and acknowledges them."""

    def __init__(self, name: str, key: Key, where: list[str], seed: int) -> None:
        super().__init__()
        self.name_, self.key, self.where, self.chance = name, key, where, random.Random(seed)
        self.clips: dict[int, bytes] = {}
        self.stored: set[int] = set()
        self.answered: set[int] = set()
        self.acknowledged: set[int] = set()
        self.wrong: list[str] = []
        self.filling, self.failed = True, None

    def run(self) -> None:
        while self.filling or len(self.acknowledged) < len(self.clips):
            try:
                with httpx.Client(base_url=self.where[0], timeout=30) as http:
                    self._talk(Device(http, self.key, self.name_))
            except httpx.HTTPError:
                time.sleep(0.02)  # killed; the next one listens elsewhere

    def _talk(self, device: Device) -> None:
        while self.filling or len(self.acknowledged) < len(self.clips):
            if self.filling and len(self.clips) - len(self.acknowledged) < 30:
                number = len(self.clips) + 1
                self.clips[number] = sound(number * 1000 + len(self.name_))
            for number in sorted(self.clips.keys() - self.stored):
                self._send(device, number)
            for item in device.answers():
                number = item["sequence"]
                if number in self.acknowledged:
                    self.wrong.append(f"{number} was answered again after it was acknowledged")
                if "prediction" not in item:
                    self.wrong.append(f"{number}: {item}")
                self.answered.add(number)
            if told := self.answered - self.acknowledged:  # also again: the word that it was heard may have been lost
                device.acknowledge(*told)
                self.acknowledged |= told

    def _send(self, device: Device, number: int) -> None:
        data = self.clips[number]
        half = self.chance.randrange(len(data))
        new = announced(number, data, front_end=FRONT_END.fingerprint)
        (state,) = device.announce(new).raise_for_status().json()["clips"]
        if state["state"] == "receiving":
            offset = state["offset"]
            if offset < half:
                device.append(number, offset, data[offset:half]).raise_for_status()
                offset = half
            device.append(number, offset, data[offset:]).raise_for_status()
        self.stored.add(number)


@pytest.mark.faults
@pytest.mark.timeout(36_000)
def test_no_clip_is_lost_and_each_is_answered_once(tmp_path: Path) -> None:
    kills = int(os.environ.get("SEEDS", "2"))
    with serving(tmp_path) as classifier:
        for first in range(0, kills, KILLS_A_HOME):
            one_home(classifier, tmp_path / str(first), range(first, min(kills, first + KILLS_A_HOME)))


def one_home(classifier: str, home: Path, seeds: range) -> None:
    process = Process(home, "--api-endpoint", classifier)
    where, senders = [process.said], []
    store = open_store(home)
    with httpx.Client(base_url=where[0], timeout=30) as http:
        for number in range(DEVICES):
            device = Device(http)
            device.enrol(store.do(lambda c, n=number: devices.expect(c, f"d{n}"))).raise_for_status()
            senders.append(Sender(f"d{number}", device.key, where, number))
    store.close()
    for sender in senders:
        sender.start()
    for seed in seeds:
        time.sleep(random.Random(seed).uniform(0.05, 1.0))
        process.kill()
        stored = {sender.name_: set(sender.stored) for sender in senders}
        process = Process(home, "--api-endpoint", classifier)
        where[0] = process.said
        for name, numbers in stored.items():
            assert {int(p.name) for p in (home / "clips" / name).glob("*")} >= numbers, f"seed {seed}"
    for sender in senders:
        sender.filling = False
    for sender in senders:
        sender.join()
        assert sender.wrong == []
        assert sender.acknowledged == sender.clips.keys() == sender.stored
    assert sum(len(sender.clips) for sender in senders) > len(seeds)
    process.stop()
