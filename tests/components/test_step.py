"""A step as a process: it ends with who runs it, in order, and works where no other run does."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.step import HELD, step
from twophase.errors import TwoPhaseError
from twophase.files import locked

RUNNER = """
import sys
from kfp.local.subprocess_task_handler import run_local_subprocess
run_local_subprocess(["sh", "-c", '"$0" "$@"; true', sys.executable, "-c", *sys.argv[1:]])
"""
"""As `twophase run` and the platform run a step: by kfp's own code, a shell between."""

STEP = """
import os, sys, time
from pathlib import Path
from components.step import step
told, ended = map(Path, sys.argv[1:])
with step("silent"):
    try:
        told.write_text(str(os.getpid()))
        while True:
            time.sleep(0.05)
    finally:
        ended.write_text("in order")
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A runner, and the process id of the step that it runs, which says nothing any more."""
    told = tmp_path / "told"
    os.mkfifo(told)
    command = [sys.executable, "-c", RUNNER, STEP, str(told), str(tmp_path / "ended")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as runner:
        yield runner, int(told.read_text())
        runner.kill()


def ended(process: int) -> None:
    """Wait for the end of a process that is not a child."""
    try:
        watched = os.pidfd_open(process)
    except ProcessLookupError:  # it was quicker
        return
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        assert poll.poll(30_000), "it is still there"
    finally:
        os.close(watched)


def test_a_silent_step_ends_with_a_runner_that_is_killed(running, tmp_path: Path) -> None:
    runner, process = running
    runner.send_signal(signal.SIGKILL)
    ended(process)
    assert (tmp_path / "ended").read_text() == "in order"


def test_a_step_that_is_told_to_end_ends_in_order(running, tmp_path: Path) -> None:
    _, process = running
    os.kill(process, signal.SIGTERM)
    ended(process)
    assert (tmp_path / "ended").read_text() == "in order"


def test_a_step_stays_out_of_a_workdir_that_a_run_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path, "this workdir"), pytest.raises(SystemExit), step("kept out", str(tmp_path)):
        pytest.fail("it began")
    said = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("twophase: "))
    assert f"in use by process {os.getpid()}; wait for it to end" in said["error"]


def test_a_run_s_own_steps_work_where_it_holds_the_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HELD, str(tmp_path))
    with locked(tmp_path, "this workdir"), step("its own", str(tmp_path)):
        pass


def test_a_run_stays_out_while_steps_of_another_work(tmp_path: Path) -> None:
    """Steps of one run are side by side: those that make shards' images."""
    with (
        step("one", str(tmp_path)),
        step("another", str(tmp_path)),
        pytest.raises(TwoPhaseError, match="in use by"),
        locked(tmp_path, "this workdir"),
    ):
        pytest.fail("it began")
