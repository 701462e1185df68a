"""The same clips and seed make the same release, from nothing, wherever: two whole runs. `make test-faults`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twophase.local import process


@pytest.mark.faults
@pytest.mark.skipif("SEEDS" not in os.environ, reason="two whole runs: make test-faults")
@pytest.mark.timeout(1800)
def test_two_runs_from_nothing_end_with_one_release(tmp_path: Path) -> None:
    found = set()
    for name in ("one", "two"):
        home = tmp_path / name / "home"
        command = [sys.executable, "-m", "twophase", "run", "--quick", "--per-label", "6", "--seed", "3", "--json"]
        done = subprocess.run(
            [*command, "--workdir", str(tmp_path / name / "work")],
            env={**os.environ, "TWOPHASE_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        process.down(home)
        assert done.returncode == 0, done.stderr
        found.add(json.loads(done.stdout.splitlines()[-1])["release_id"])
    assert len(found) == 1
