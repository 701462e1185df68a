"""Start, find and stop the platform's process. Imports nothing heavy: every command line call comes through here.

    home/server.json   pid, port, address, started: written when the platform answers; kept for the next one's port
    home/.lock         held by the running platform, whose pid is in it; a `server.json` of another process is stale
    home/server.log    what a detached platform says

Two that start a platform on one home at once get the same one: the second is refused the lock, and finds the first.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from twophase.errors import TwoPhaseError
from twophase.files import read_json, write_json

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True)
class Address:
    """A running platform."""

    home: str
    pid: int
    port: int
    url: str
    """`http://127.0.0.1:PORT`."""
    started: str

    @property
    def environment(self) -> dict[str, str]:
        """What points Google's clients here: the storage library, and gcloud."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"{self.url}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_ML": f"{self.url}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.url}/storage/v1/",
            "CLOUDSDK_AI_PLATFORM_REGION": "global",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        }


def default_home() -> Path:
    """`TWOPHASE_HOME`, else `twophase` in the user's data directory."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("TWOPHASE_HOME") or Path(data) / "twophase")


def status(home: Path) -> Address | None:
    """The platform that answers on `home`, or None; also None while one starts, whose record is not there yet."""
    path = home / "server.json"
    if not _locked(home) or not path.is_file():
        return None
    found = Address(**read_json(path, "server record"))
    holder = (home / ".lock").read_text()
    return found if holder in (str(found.pid), "") else None  # a full disk may cost the lock its holder's name


def ensure_up(home: Path) -> Address:
    """The platform that runs on `home`; a detached one is started when none does."""
    return status(home) or up(home)


def up(home: Path, port: int | None = None, buckets: Mapping[str, Path] | None = None) -> Address:
    """Start a detached platform and wait until it answers.

    `port` None takes the port it had last time, if that is free, so that addresses survive a restart. Raises
    `TwoPhaseError` with the platform's own words when it does not start, naming the holder when one runs already.
    """
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "twophase.local", "--home", str(home)]
    command += ["--port", str(port)] if port is not None else []
    for name, folder in (buckets or {}).items():
        command += ["--bucket", f"{name}={folder}"]
    with (home / "server.log").open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=home
        )
    threading.Thread(target=process.wait, daemon=True).start()  # it may end long after this call: leave no zombie
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = status(home)
        if found and (found.pid == process.pid or process.poll() is not None):
            if found.pid != process.pid and port not in (None, found.port):
                break
            return found
        if process.poll() is not None and not _locked(home):
            break
        time.sleep(0.02)
    else:
        process.terminate()
        raise TwoPhaseError(f"{home}: the platform did not answer within {START_TIMEOUT_S:.0f} s; see {log.name}")
    with Path(log.name).open("rb") as said:
        said.seek(start)
        words = said.read().decode("utf-8", "replace").strip().splitlines()
    if not words:
        raise TwoPhaseError(f"{home}: the platform ended at once; see {log.name}")
    raise TwoPhaseError(words[-1].removeprefix("error: "))


def down(home: Path) -> Address | None:
    """Stop the platform on `home`, letting requests under way end; None when none runs. Raises when it stays."""
    found = status(home)
    if found is None:
        return None
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _locked(home):
        if time.monotonic() > deadline:
            raise TwoPhaseError(
                f"{home}: process {found.pid} did not stop within {STOP_TIMEOUT_S:.0f} s; end it by hand"
            )
        time.sleep(0.02)
    return found


def gc(home: Path) -> list[str]:
    """Have the platform on `home` delete the artifacts that nothing needs any more; their keys."""
    import httpx

    token = os.environ.get("TWOPHASE_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    answer = httpx.post(f"{ensure_up(home).url}/twophase/gc", headers=headers, timeout=600.0)
    if answer.is_error:
        raise TwoPhaseError(answer.json()["error"]["message"])
    removed: list[str] = answer.json()["removed"]
    return removed


def announce(home: Path, port: int, host: str) -> None:
    """Called by the platform once it answers: write `server.json`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(home / "server.json", asdict(Address(str(home), os.getpid(), port, f"http://{host}:{port}", started)))


def last_port(home: Path) -> int:
    """The port that the platform had last time; 0, any free one, for none."""
    try:
        return int(json.loads((home / "server.json").read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _locked(home: Path) -> bool:
    """Whether a process holds the home, by asking for the lock without keeping it."""
    try:
        with (home / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
