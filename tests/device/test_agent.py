"""The device as a program: offline and back, told to end, watched, set up wrongly."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile
from sqlalchemy import select

from tests.device.cloud import cloud
from tests.device.sounds import noise
from twophase.device import updates
from twophase.device.agent import Agent
from twophase.device.config import Config, read
from twophase.device.enrol import directly
from twophase.device.identity import Identity
from twophase.device.metrics import METRICS
from twophase.errors import UsageError
from twophase.gateway.store import period

LOUD, SOFT = noise(1, 3), noise(2, 4) // 500


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def twophase(*arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "twophase", "device", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


@contextmanager
def running(state: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "twophase", "device", "run", "--state", str(state), "--json"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def event(output: IO[bytes] | None, name: str) -> Any:
    assert output is not None
    for line in output:
        if (said := json.loads(line))["event"] == name:
            return said
    raise AssertionError(f"it ended without {name}")


def page(url: str) -> str:
    """What is there, once somebody listens."""
    ends = time.monotonic() + 20
    while True:
        try:
            return str(urllib.request.urlopen(url, timeout=5).read().decode())
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)


@pytest.fixture
def state(tmp_path: Path, release: Path) -> Path:
    """A device that has a gate and a gateway that is away."""
    place = tmp_path / "state"
    Identity("porch", f"http://127.0.0.1:{free_port()}", Identity.make("").private_key).write(place)
    updates.install(place, release)
    return place


def test_offline_it_keeps_its_clips_and_back_it_gets_its_answers(tmp_path: Path, release: Path) -> None:
    place, clips, port = tmp_path / "state", tmp_path / "clips", free_port()
    with cloud(tmp_path / "gateway", port) as gateway:
        gateway.enrol(place)
    updates.install(place, release)
    clips.mkdir()
    soundfile.write(clips / "loud.flac", LOUD, 16_000)
    soundfile.write(clips / "soft.wav", SOFT, 16_000)
    (place / "device.toml").write_text("metrics_port = 0\n[listen]\naudit_share = 0.0\n")
    heard = twophase("run", "--state", str(place), "--source", str(clips), "--json")
    assert heard.returncode == 0, heard.stderr
    (said,) = map(json.loads, heard.stdout.splitlines())
    assert (said["event"], said["provisional"]) == ("heard", True)
    (known,) = map(json.loads, twophase("status", "--clips", "--json", "--state", str(place)).stdout.splitlines())
    assert known["provisional"]
    assert known["answer"] is None
    with cloud(tmp_path / "gateway", port):
        sent = twophase("send", "--state", str(place), "--json")
    assert json.loads(sent.stdout)["answers"] == 1, sent.stderr
    (known,) = map(json.loads, twophase("status", "--clips", "--json", "--state", str(place)).stdout.splitlines())
    assert known["answer"]["label"] == "oboe"
    assert known["captured"] == said["captured"]


def test_online_it_sends_gets_its_answer_and_reports(tmp_path: Path, release: Path) -> None:
    place = tmp_path / "state"
    with cloud(tmp_path / "gateway") as gateway:
        gateway.enrol(place)
        updates.install(place, release)
        (place / "device.toml").write_text(f"metrics_port = {free_port()}\n")
        with running(place) as process:
            assert process.stdin is not None
            process.stdin.write(np.concatenate([SOFT, LOUD, SOFT]).tobytes())
            process.stdin.flush()
            heard = event(process.stdout, "heard")
            answered = event(process.stdout, "answered")
            assert (answered["sequence"], answered["score"]) == (heard["sequence"], heard["score"])
            assert answered["answer"]["label"] == "oboe"
        while not (place / "field.json").exists():  # its first report, and what the gateway made of it
            time.sleep(0.05)
        assert gateway.store.do(lambda c: c.execute(select(period)).all())
    (figures,) = json.loads(twophase("status", "--json", "--state", str(place)).stdout)["field"]
    assert figures["gate"] == heard["gate"]
    assert 0 <= figures["escalation"]["low"] <= figures["escalation"]["high"] <= 1
    assert "escalation" in twophase("status", "--state", str(place)).stdout


def test_in_development_clips_go_straight_to_an_endpoint(tmp_path: Path, release: Path) -> None:
    place, clip = tmp_path / "state", tmp_path / "loud.flac"
    soundfile.write(clip, LOUD, 16_000)
    port = free_port()
    env = {**os.environ, "PORT": str(port), "TWOPHASE_MODEL": str(release), "WEB_CONCURRENCY": "1"}
    server = subprocess.Popen([sys.executable, "-m", "twophase.serving"], env=env, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/v1/models/model:predict"
        said = twophase("enroll", "--direct", url, "--gate", str(release), "--state", str(place))
        assert "for development" in said.stdout, said.stderr
        assert twophase("run", "--source", str(clip), "--state", str(place)).returncode == 0
        for _ in range(20):  # the server may not listen yet
            sent = twophase("send", "--json", "--state", str(place))
            if sent.returncode == 0:
                break
        assert json.loads(sent.stdout)["answers"] == 1, sent.stderr
    finally:
        server.terminate()
        server.wait()


def test_it_listens_to_a_pipe_is_watched_and_ends_when_told(state: Path) -> None:
    port = free_port()
    (state / "device.toml").write_text(f"metrics_port = {port}\n")
    with running(state) as process:
        assert process.stdin is not None
        process.stdin.write(np.concatenate([SOFT, LOUD, SOFT]).tobytes())
        process.stdin.flush()
        assert event(process.stdout, "heard")["score"] > 0
        text = page(f"http://127.0.0.1:{port}/metrics")
        assert all(f"\n{name}" in "\n" + text for name in METRICS)
        assert "twophase_spool_waiting 1\n" in text
        status = json.loads(twophase("status", "--json", "--state", str(state)).stdout)
        assert status["escalated"] >= 5
        refused = twophase("send", "--state", str(state))
        assert f"in use by process {process.pid}" in refused.stderr
        assert refused.returncode == 1
        process.stdin.write(LOUD.tobytes())  # a clip that is open when it is told to end
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as a service manager and a shell may do
        assert process.wait(20) == 0
    kept = json.loads(twophase("status", "--json", "--state", str(state)).stdout)
    assert kept["spool"]["waiting"] in (1, 2)  # the second, when its windows came before the signal
    assert (state / "log" / "device.log").stat().st_size < 1 << 20


def test_what_was_heard_is_the_owners_alone(state: Path) -> None:
    """Also in a folder that came from elsewhere, under the umask of most machines."""
    state.chmod(0o755)
    Agent(state, Config())
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_without_a_root_it_says_so_and_exits_with_1(state: Path) -> None:
    said = twophase("status", "--state", str(state))
    assert "none until the gateway has published" in said.stdout, said.stderr
    directly(state, "http://127.0.0.1:1/predict")
    refused = twophase("update", "--state", str(state))
    assert (refused.returncode, refused.stdout) == (1, "waiting none without a gateway\n")


def test_it_imports_no_tensorflow_no_scipy_and_no_cloud(state: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from twophase.device import agent, client, config, enrol, metrics, uplink\n"
        f"a = agent.Agent(Path({str(state)!r}), config.Config(source={os.devnull!r}, metrics_port=0))\n"
        "import numpy; a.listener.feed(numpy.full(20000, 9000, numpy.int16)); assert a.listener.tallies[0].windows\n"
        "print([m for m in ('tensorflow', 'scipy', 'keras', 'kfp', 'google.auth', 'boto3', 'azure', 'httpx', 'urllib3',"
        " 'tuf') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_settings_that_are_not_known_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    assert read(path) == Config()
    path.write_text("[listen]\npre_roll_s = 1\n")
    assert read(path).listen.pre_roll_s == 1.0
    for text, says in (
        ("[listen]\npreroll = 1", "listen.preroll: is not known"),
        ("listen = 1", r"write \[listen\]"),
        ("[spool]\nmax_bytes = 'much'", "spool.max_bytes = 'much': a int"),
        ("[spool]\nmax_bytes = 1", "too small"),
        ("source = ", "no TOML"),
        ("report_every_s = 0", "report_every_s = 0.0: 60 seconds"),
        ("metrics_port = 70000", "is no port"),
        ("[update]\nevery_s = nan", "every_s = nan: a finite"),
        ("[listen]\nmin_level_db = 70", "min_level_db = 70.0: -120 to 0"),
        ("[listen]\npre_roll_s = -1", "0 or more"),
        ("[daily]\nbytes = 500000", "would never go up"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=says):
            read(path)


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "device.md").read_text()
    config = Config()
    for name in asdict(config):
        value = getattr(config, name)
        assert f"`[{name}]`" in page or f"`{name}`" in page
        for inner in asdict(value) if is_dataclass(value) else ():
            assert f"`{inner}`" in page, inner


def test_a_device_that_is_not_enrolled_says_what_to_do(tmp_path: Path) -> None:
    for command in ("run", "update"):
        done = twophase(command, "--state", str(tmp_path / "none"))
        assert done.returncode == 1
        assert "device enroll" in done.stderr
