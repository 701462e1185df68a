"""`twophase device run`: one process that listens, keeps, sends, fetches answers, reports and updates itself.

    STATE/identity.json, root.json      who it is, and whose updates it believes (enrol.py)
    STATE/device.toml                   its settings (config.py)
    STATE/gates/, updates/              its gate (updates.py)
    STATE/spool/                        its clips (spool.py)
    STATE/clock.json, budget.json       the floor of its clock; the day's spending
    STATE/field.json                    how its gates do, as the gateway says (status.py)
    STATE/log/device.log                at most 2 MB, the older half in device.log.1

Listening comes first: nothing that the network or the disk does holds it up. Clips pass through a short queue to a
thread that keeps them; when the disk fails so long that the queue is full, the oldest of the queue is lost, counted and
logged. All else is a thread that tries again for ever. A crash loses the clip that is open and what is in the queue.
"""

import json
import logging
import logging.handlers
import math
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twophase.device import status, updates
from twophase.device.budget import Budget
from twophase.device.clip import Heard, utc
from twophase.device.clock import Clock
from twophase.device.config import Config
from twophase.device.gates import LoadedGate
from twophase.device.identity import SCHEME, Identity
from twophase.device.listener import Detection, Listener
from twophase.device.sources import stream
from twophase.device.spool import opened
from twophase.device.updates import Outcome
from twophase.errors import TwoPhaseError
from twophase.files import JSON, private

if TYPE_CHECKING:
    from twophase.device.client import Client
    from twophase.device.direct import Direct

QUEUE = 16
"""Clips that wait for the disk: at most half a minute each."""

UPDATE_LIMIT_S = 600.0
"""How long one look for an update may take."""

log = logging.getLogger(__name__)


class Agent:
    """One device at work."""

    def __init__(self, state: Path, config: Config, said: Callable[[JSON], object] = lambda event: None) -> None:
        """`said` is called with what happens: {"event": "heard"|"answered"|"updated", ...}."""
        self.state, self.config, self._says = state, config, said
        self.identity = Identity.read(state)
        private(state)
        self.clock = Clock(state)
        gate = LoadedGate.load(updates.current(state)[0])
        self.listener = Listener(gate, self._heard, config.listen)
        self.counts: Counter[str] = Counter()
        self.trouble: dict[str, str] = {}
        """What cannot be done now, and why, by task."""
        self._stop, self._news = threading.Event(), threading.Event()
        self._queue: queue.Queue[tuple[Detection, Heard] | None] = queue.Queue(QUEUE)
        self._threads: list[threading.Thread] = []
        self._client = connecting(self.identity, self.clock)

    def run(self) -> None:
        """Listen until the source ends. Raises `TwoPhaseError` when the spool is held, or the source cannot be read."""
        with ExitStack() as stack:
            limits, first = self.config.spool, self.identity.next_sequence
            self.spool = stack.enter_context(opened(self.state / "spool", limits, first))
            stack.callback(self._end)
            self._start("keep", self._keep)
            for name, task in self._tasks().items():
                self._start(name, task)
            stack.callback(self.listener.finish)  # also when this process is told to end
            for block in stream(self.config.source):
                if block is None:
                    self.listener.finish()
                else:
                    self.listener.feed(block)

    def status(self) -> JSON:
        """What this device does and has."""
        tally = self.listener.tallies[-1]
        return {
            "device": self.identity.device,
            "gate": self.listener.gate.id,
            "clock_trusted": self.clock.trusted,
            "windows": tally.windows,
            "escalated": tally.escalated,
            "audited": tally.audited,
            "lost": self.counts["lost"],
            "updates": updates.hindered(self.state) or "on",
            "field": status.field_of(self.state),
            "spool": self.spool.status(),
            "trouble": {task: why for task, why in self.trouble.items() if why},
        }

    def _end(self) -> None:
        """Keep what was heard, and let every thread end what it is doing."""
        self._stop.set()
        self._news.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=5 if thread.name != "keep" else None)

    def _said(self, event: JSON) -> None:
        with suppress(OSError):  # nobody listens any more
            self._says(event)

    def _start(self, name: str, task: Callable[[], object]) -> None:
        thread = threading.Thread(target=task, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    # What was heard

    def _heard(self, detection: Detection) -> None:
        heard = Heard(
            device=self.identity.device,
            captured=utc(max(time.time() - detection.ago_s, 0.0)),
            clock="trusted" if self.clock.trusted else "untrusted",
            gate=detection.gate.id,
            front_end=detection.gate.manifest.fingerprint,
            score=detection.score,
            threshold=detection.gate.threshold,
            windows=detection.windows,
            kind=detection.kind,
        )
        while True:
            try:
                return self._queue.put_nowait((detection, heard))
            except queue.Full:
                self._queue.get_nowait()
                self.counts["lost"] += 1
                log.error("a clip is lost: the disk does not take clips: %s", self.trouble.get("keep"))

    def _keep(self) -> None:
        while item := self._queue.get():
            detection, heard = item
            while True:
                try:
                    sequence = self.spool.put(detection.pcm, heard)
                    self.trouble["keep"] = ""
                    break
                except Exception as error:  # a disk that fails; whatever it is, the next clip is heard too
                    if self.trouble.get("keep") != str(error):
                        log.error("a clip is not kept yet: %s", error)
                    self.trouble["keep"] = str(error)
                    if self._queue.full() or self._stop.wait(1.0):
                        self.counts["lost"] += 1
                        log.error("a clip is lost: %s", error)
                        sequence = None
                        break
            if sequence is not None:
                self._news.set()
                self._said({"event": "heard", "sequence": sequence, **asdict(heard), "provisional": True})

    # What goes on beside

    def _tasks(self) -> dict[str, Callable[[], object]]:
        tasks: dict[str, Callable[[], object]] = {}
        if not self.identity.gateway.startswith(SCHEME):
            tasks["update"] = self._update
        if self.config.metrics_port:
            tasks["metrics"] = self._metrics
        return {**tasks, "send": self._send, "fetch": self._fetch, "report": self._report}

    def _forever(self, name: str, work: Callable[[], float], news: threading.Event | None = None) -> None:
        from twophase.device.uplink import keep_going

        def failed(why: str) -> None:
            if why and why != self.trouble.get(name):
                log.warning("%s: %s", name, why)
            self.trouble[name] = why

        keep_going(work, self._stop, failed, news)

    def _send(self) -> None:
        from twophase.device.uplink import Sender

        sender = Sender(self.spool, self._client(), Budget(self.state / "budget.json", self.config.daily))
        self._forever("send", sender.round, self._news)

    def _fetch(self) -> None:
        from twophase.device.uplink import Fetcher

        fetcher = Fetcher(self.spool, self._client(), lambda kept: self._said({"event": "answered", **kept}))
        self._forever("fetch", fetcher.round)

    def _report(self) -> None:
        client = self._client()

        def report() -> float:
            ended = len(self.listener.tallies) - 1  # before: a gate may come into use meanwhile
            told = client.report(status.report(self.listener, self.spool, self.state))
            del self.listener.tallies[:ended]
            updates.halt(self.state, [str(release) for release in told.get("halted", [])])
            status.told(self.state, told.get("field", []))
            return self.config.report_every_s

        self._forever("report", report)

    def _update(self) -> None:
        wait = random.uniform(60, 600)  # a fleet that starts together does not ask together
        while not self._stop.wait(wait):
            outcome = look_for_update(self.state, self.config.update.url)
            if outcome.state == "installed":
                try:
                    self._exchange(updates.current(self.state)[0])
                except (TwoPhaseError, OSError) as error:  # the gate in use goes on; the next start takes the new one
                    outcome = replace(outcome, state="error", reason=str(error))
            self.trouble["update"] = outcome.reason
            if outcome.state != "current":
                log.warning("update: %s %s %s", outcome.state, outcome.release, outcome.reason)
                self._said({"event": "updated", **asdict(outcome)})
            wait = self.config.update.every_s * random.uniform(0.8, 1.2)

    def _exchange(self, folder: Path) -> None:
        """Let a new gate decide what is heard from now on, and what of the spool is dropped first."""
        self.listener.use(LoadedGate.load(folder))
        self.spool.rescore(LoadedGate.load(folder).margin)  # its own copy: the listener's runs in another thread

    def _metrics(self) -> None:
        from twophase.device.metrics import serve

        try:
            serve(self.config.metrics_port, self.status, self._stop)
        except OSError as error:
            self.trouble["metrics"] = f"port {self.config.metrics_port}: {error}"
            log.warning("metrics: %s", self.trouble["metrics"])


def connecting(identity: Identity, clock: Clock) -> "Callable[[], Client | Direct]":
    """What makes a connection for each task; in direct mode it is one for all of them, since it holds the answers.

    What it imports takes 15 MB and 100 ms: it is for threads that start after the first windows were decided.
    """
    if identity.gateway.startswith(SCHEME):
        from twophase.device.direct import Direct

        direct = Direct(identity.gateway)
        return lambda: direct

    def client() -> "Client":
        from twophase.device.client import Client

        return Client(identity, clock.told)

    return client


def look_for_update(state: Path, url: str = "", limit_s: float = UPDATE_LIMIT_S) -> Outcome:
    """`updates.update` in a program of its own, which is ended after `limit_s`."""
    command = [sys.executable, "-m", "twophase.device.updates", str(state), *([url] if url else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=True)
        return Outcome(**json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return Outcome("error", reason=f"took longer than {limit_s:g} s; the gate in use stays")
    except (subprocess.CalledProcessError, ValueError, TypeError) as error:
        return Outcome("error", reason=f"the look for an update failed ({error}); the gate in use stays")


def send_all(state: Path, config: Config, answered: Callable[[JSON], object], wait_s: float) -> JSON:
    """Send what waits, now, and wait for answers up to `wait_s`; the spool's status then. Raises `TwoPhaseError`."""
    from twophase.device.uplink import Fetcher, Sender

    identity = Identity.read(state)
    client = connecting(identity, Clock(state))()
    with opened(state / "spool", config.spool, identity.next_sequence) as spool:
        sender = Sender(spool, client, Budget(state / "budget.json", config.daily))
        while spool.waiting(1) and sender.round() == 0:
            pass
        fetcher, ends = Fetcher(spool, client, answered), time.monotonic() + wait_s
        while spool.expects_answers() and (left := ends - time.monotonic()) > 0:
            fetcher.round(wait_s=math.ceil(min(left, 20)))
        return spool.status()


def log_to(state: Path, also_stderr: bool) -> None:
    """Log to the state folder, within 2 MB, and to standard error where a person reads it."""
    folder = state / "log"
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(folder / "device.log", maxBytes=1 << 20, backupCount=1)
    ]
    if also_stderr:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)
    logging.raiseExceptions = False  # a full disk costs lines of the log, nothing else
