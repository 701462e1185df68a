"""The uplink and updates on bad days: cut at every byte, killed anywhere, away for a week, clocks that jump.

`make test-faults SEEDS=200` cuts at every byte and kills 200 times; every day it is a few of each. The gateway is real.
"""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.device.cloud import Cloud, cloud
from tests.device.conftest import _make
from tests.device.sounds import HEARD as SAID
from tests.device.sounds import noise
from tests.faults.disk_device import build, run
from tests.faults.proxy_device import link
from twophase.audio.frontend import FRONT_END
from twophase.device import updates
from twophase.device.budget import Budget, Daily
from twophase.device.client import Client, NotThisKey
from twophase.device.clip import utc
from twophase.device.gates import LoadedGate
from twophase.device.identity import Identity
from twophase.device.link import Away
from twophase.device.spool import Spool, opened
from twophase.device.uplink import Fetcher, Sender, keep_going
from twophase.release import sign

SEEDS = int(os.environ.get("SEEDS", "4"))
HEARD = replace(SAID, front_end=FRONT_END.fingerprint)
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler: the disk is a small library that is preloaded")
    return build(tmp_path_factory.mktemp("shim"))


def sender(spool: Spool, identity: Identity, state: Path) -> Sender:
    return Sender(spool, Client(identity), Budget(state / "budget.json", Daily()))


def deliver(spool: Spool, identity: Identity, state: Path) -> list[Any]:
    """Send all and fetch all, on a good link."""
    sending, got = sender(spool, identity, state), []
    while spool.waiting(1):
        sending.round()
    fetcher = Fetcher(spool, Client(identity), got.append)
    while spool.expects_answers():
        fetcher.round(wait_s=5)
    return got


@pytest.mark.parametrize("way", ["cut_up", "cut_down", "change_up"])
def test_an_upload_cut_or_changed_at_every_byte(gateway: Cloud, tmp_path: Path, way: str) -> None:
    """Nothing partial counts at the gateway, every clip arrives as it was, and is answered once."""
    identity = gateway.enrol(tmp_path, f"link-{way.replace('_', '-')}")
    with opened(tmp_path / "spool") as spool, link(gateway.port) as (bad, port):
        through = replace(identity, gateway=f"http://127.0.0.1:{port}")
        first = spool.put(noise(0, 0.01), HEARD)
        bad.up = 0
        sender(spool, through, tmp_path).round()
        whole, body = bad.up, len((spool.root / "clips" / "000000000000" / f"{first:012d}.flac").read_bytes())
        places = range(whole - body, whole) if way == "change_up" else range(whole + 20 if way == "cut_up" else 700)
        sent = [first]
        for place in places if SEEDS >= 200 else sorted(random.Random(way).sample(places, 12)):
            sent.append(spool.put(noise(place, 0.01), HEARD))
            bad.up = 0
            setattr(bad, way, place)
            with suppress(Away, NotThisKey):
                sender(spool, through, tmp_path).round()
            setattr(bad, way, None)
            assert not list((spool.root / "refused").iterdir())
            (file,) = spool.root.glob(f"clips/*/{sent[-1]:012d}.flac")
            data = file.read_bytes()
            while spool.waiting(1):
                sender(spool, through, tmp_path).round()
            assert gateway.clip(identity.device, sent[-1]) == data
        got = deliver(spool, identity, tmp_path)
        assert sorted(a["sequence"] for a in got) == sent
        assert spool.status()["damaged"] == 0


# Hears, sends and fetches; says what was acknowledged and what was answered.
PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
from tests.device.sounds import HEARD, noise
from twophase.audio.frontend import FRONT_END
from twophase.device.budget import Budget, Daily
from twophase.device.client import Client
from twophase.device.identity import Identity
from twophase.device.spool import opened
from twophase.device.uplink import Fetcher, Sender

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

state, seed = Path(sys.argv[1]), int(sys.argv[2])
identity = Identity.read(state)
heard = replace(HEARD, front_end=FRONT_END.fingerprint)
with opened(state / "spool") as spool:
    sender = Sender(spool, Client(identity), Budget(state / "budget.json", Daily(calls=100_000)))
    fetcher = Fetcher(spool, Client(identity), lambda kept: say("answered", kept["sequence"]))
    for i in range(3):
        say("put", spool.put(noise(seed * 10 + i, 0.02), heard))
        sender.round()
        fetcher.round(wait_s=0)
"""


def test_killed_anywhere_between_hearing_and_the_answer(gateway: Cloud, shim: Path, tmp_path: Path) -> None:
    """No acknowledged clip is lost, and each is answered once."""
    identity, said, killed = gateway.enrol(tmp_path, "killed"), [], 0
    for seed in range(SEEDS):
        fault = f"kill {random.Random(seed).randint(1, 90)}"
        ran = run(shim, PROGRAM, seed, root=tmp_path, fault=fault)
        assert ran.code in (0, -signal.SIGKILL), ran.errors
        killed += ran.code != 0
        said += ran.said
    assert killed
    with opened(tmp_path / "spool") as spool:
        deliver(spool, identity, tmp_path)
        answers = [a["sequence"] for a in spool.answers() if not a["provisional"]]
        assert not spool.status()["damaged"]
    put = {int(line.split()[1]) for line in said if line.startswith("put ")}
    answered = [line for line in said if line.startswith("answered ")]
    assert put <= set(answers)
    assert len(answers) == len(set(answers))
    assert len(answered) == len(set(answered))


UPDATE = """
import sys
from pathlib import Path
from twophase.device import updates
print(updates.update(Path(sys.argv[1]), sys.argv[2]).state)
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_killed_anywhere_in_an_update(shim: Path, tmp_path: Path) -> None:
    """The device always has one whole gate, the old or the new; the next look ends what was begun."""
    state, public = tmp_path / "state", tmp_path / "public"
    old, new = _make(tmp_path / "a", 1), _make(tmp_path / "b", 2)
    sign.sign(old, tmp_path / "repository", tmp_path / "keys", 100)
    Identity("porch", "http://127.0.0.1:9", Identity.make("").private_key).write(state)
    shutil.copy(tmp_path / "repository" / "metadata" / "1.root.json", state / "root.json")
    updates.install(state, old, 1)
    sign.sign(new, tmp_path / "repository", tmp_path / "keys", 100)
    sign.publish(tmp_path / "repository", public)
    names = {json.loads((r / "assets.extra" / "release.json").read_text())["id"] for r in (old, new)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(public)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url, killed = f"http://127.0.0.1:{server.server_port}", 0
    try:
        for seed in range(max(1, SEEDS // 4)):
            place = tmp_path / "device"
            shutil.copytree(state, place)
            for at in (random.Random(seed).randint(1, 60), 0):
                ran = run(shim, UPDATE, url, root=place, fault=f"kill {at}" if at else "")
                assert ran.code in (0, -signal.SIGKILL), ran.errors
                killed += ran.code != 0
                assert LoadedGate.load(updates.current(place)[0]).id in names
            assert updates.current(place)[1] == 2
            shutil.rmtree(place)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert killed


def test_a_gateway_that_is_away_for_a_week_while_the_clock_jumps(
    gateway: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, the order is kept, and a week costs a few hundred tries."""
    identity = gateway.enrol(tmp_path, "away")
    nowhere = replace(identity, gateway="http://127.0.0.1:9")
    clocks = [time.time(), 0.0, time.time() + 10 * 365 * 86_400, time.time() - 86_400, time.time()]

    class Week(threading.Event):
        """Waits of a simulated week, which take no time."""

        passed_s = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            self.passed_s += timeout or 0.0
            if self.passed_s > 7 * 86_400:
                self.set()
            return self.is_set()

    week, tries, put = Week(), [0], []
    with opened(tmp_path / "spool") as spool:
        sending = sender(spool, nowhere, tmp_path)

        def work() -> float:
            tries[0] += 1
            if tries[0] % 100 == 1:
                now = clocks[tries[0] // 100 % len(clocks)]
                monkeypatch.setattr(time, "time", lambda: now)
                put.append(spool.put(noise(tries[0], 0.02), replace(HEARD, captured=utc(now))))
            return sending.round()

        keep_going(work, week, lambda why: None)
        monkeypatch.undo()
        assert 672 <= tries[0] <= 1500
        assert spool.waiting(1000) == put == sorted(put)
        assert len(put) > 6
        got = deliver(spool, identity, tmp_path)
        assert [a["sequence"] for a in got] == put
