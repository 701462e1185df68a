"""A gateway's home is made by the gateway alone; whoever asks about one that is not there is told so."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.gateway.conftest import NOWHERE
from twophase.cli import app
from twophase.errors import TwoPhaseError, UsageError
from twophase.gateway.server import open_store


def gateway(*line: str, home: Path) -> str:
    platform = {"TWOPHASE_HOME": str(home.parent / "platform"), "TWOPHASE_API_ENDPOINT": ""}
    done = CliRunner().invoke(app, ["gateway", *line, "--home", str(home)], env=platform)
    if done.exception:
        raise done.exception
    return done.output


@pytest.mark.parametrize(
    "line", [("devices",), ("enrol", "porch"), ("revoke", "porch"), ("forget", "porch"), ("events",), ("field",)]
)
def test_where_no_gateway_was_started_nothing_is_made(tmp_path: Path, line: tuple[str, ...]) -> None:
    with pytest.raises(TwoPhaseError, match="there is no gateway there; start it with `twophase gateway up --home"):
        gateway(*line, home=tmp_path / "typo")
    assert not list(tmp_path.iterdir())


def test_a_device_is_expected_under_either_spelling(tmp_path: Path) -> None:
    open_store(tmp_path / "home").close()
    assert gateway("enrol", "porch", home=tmp_path / "home") != gateway("enroll", "porch", home=tmp_path / "home")
    assert "porch" in gateway("devices", home=tmp_path / "home")


def test_a_file_is_no_home(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TwoPhaseError, match=f"^{file}: there is no gateway there"):
        gateway("devices", home=file)
    command = [sys.executable, "-m", "twophase", "gateway", "up", "--home", str(file), *NOWHERE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == f"twophase: {file}: File exists; give a folder that can be read and written\n"


def test_an_address_that_others_would_reach_without_tls_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0: others would talk to the gateway without TLS"):
        gateway("up", "--host", "0.0.0.0", home=tmp_path / "home")
    assert not list(tmp_path.iterdir())
