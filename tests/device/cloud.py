"""A real gateway behind real HTTP, with a classifier that answers every clip at once."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from twophase.audio.frontend import FRONT_END
from twophase.device.enrol import enrol
from twophase.device.identity import Identity
from twophase.gateway import asking, devices
from twophase.gateway.app import Gateway
from twophase.gateway.intake import Quota
from twophase.gateway.server import how, open_store
from twophase.serving.server import listening


@dataclass
class Oracle:
    """A classifier: every clip is an oboe. It counts how often it was asked about each."""

    asked: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, list[Path]] = field(default_factory=dict)
    runs_jobs: bool = True

    def front_end(self) -> str:
        return FRONT_END.fingerprint

    def predict(self, clip: Path) -> Any:
        self.asked[clip.name] = self.asked.get(clip.name, 0) + 1
        return {"prediction": {"label": "oboe", "confidence": 0.9}}

    def submit(self, job: str, clips: Sequence[Path], scratch: Path) -> None:
        self.jobs[job] = list(clips)

    def find(self, job: str) -> str | None:
        return job if job in self.jobs else None

    def ended(self, name: str) -> str | None:
        return ""

    def answers(self, name: str) -> Iterator[tuple[Path, Any]]:
        for clip in self.jobs[name]:
            yield clip, self.predict(clip)

    def clean(self, name: str) -> None:
        pass


@dataclass
class Cloud:
    """A gateway that runs: its folder, its address, its classifier."""

    home: Path
    port: int
    oracle: Oracle
    store: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def enrol(self, state: Path, name: str = "porch", url: str = "") -> Identity:
        return enrol(state, url or self.url, self.store.do(lambda c: devices.expect(c, name)))

    def clip(self, name: str, sequence: int) -> bytes:
        return (self.home / "clips" / name / str(sequence)).read_bytes()


@contextmanager
def cloud(home: Path, port: int = 0, quota: Quota | None = None) -> Iterator[Cloud]:
    """A gateway in a thread of this process; its backlogs gather for a tenth of a second."""
    asking.QUIET_S, asking._POLL_S = 0.1, 0.05
    store, oracle = open_store(home), Oracle()
    gateway = Gateway(home, store, oracle, quota or Quota(free_bytes=0))
    program = uvicorn.Server(uvicorn.Config(gateway, **how()))
    with listening("127.0.0.1", port) as bound:
        thread = threading.Thread(target=program.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        bound.listen()
        yield Cloud(home, bound.getsockname()[1], oracle, store)
        program.should_exit = True
        thread.join(timeout=10)
    gateway.close()
    store.close()
