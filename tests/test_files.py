"""Locks on folders: held alone or shared, and looked at without a trace."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twophase.errors import TwoPhaseError
from twophase.files import locked, refuse_locked

HOLD = """
import sys
from pathlib import Path
from twophase.files import locked
with locked(Path(sys.argv[1]), "it", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """Another process that holds the folder; its id."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate()


@pytest.mark.parametrize("holder", ["alone"], indirect=True)
def test_who_holds_a_folder_alone_is_named_to_everybody_else(tmp_path: Path, holder: int) -> None:
    for enter in (lambda: locked(tmp_path, "it").__enter__(), lambda: locked(tmp_path, "it", shared=True).__enter__()):
        with pytest.raises(TwoPhaseError, match=f"it is in use by process {holder}; wait for it to end"):
            enter()
    with pytest.raises(TwoPhaseError, match=f"it is in use by process {holder}; wait for it to end"):
        refuse_locked(tmp_path, "it")


@pytest.mark.parametrize("holder", ["shared"], indirect=True)
def test_a_folder_that_is_shared_is_shared_and_looks_leave_its_holder_s_name(tmp_path: Path, holder: int) -> None:
    refuse_locked(tmp_path, "it")
    with pytest.raises(TwoPhaseError, match=f"it is in use by process {holder}; wait"), locked(tmp_path, "it"):
        pytest.fail("it was taken")
    with locked(tmp_path, "it", shared=True):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_look_writes_nothing(tmp_path: Path) -> None:
    refuse_locked(tmp_path / "nowhere", "it")
    refuse_locked(tmp_path, "it")
    assert not [*tmp_path.iterdir()]
