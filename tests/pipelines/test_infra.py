"""What can be checked of `infra/` and `cloudbuild.yaml` without Google: syntax, and names that are the code's."""

import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from components import IMAGE
from pipelines import trigger

ROOT = Path(__file__).parents[2]


def test_terraform_reads_it_and_would_not_write_it_otherwise() -> None:
    if shutil.which("terraform") is None:
        pytest.skip("needs terraform")
    done = subprocess.run(["terraform", "fmt", "-check", "-diff", "infra"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_trigger_is_told_what_it_reads() -> None:
    told = set(re.findall(r"TWOPHASE_[A-Z_]+", (ROOT / "infra" / "trigger.tf").read_text()))
    code = Path(trigger.__file__).read_text()
    read = {f"TWOPHASE_{name}" for name in re.findall(r'(?:_setting\(|_number\(|TWOPHASE_)"?([A-Z_]+)', code)}
    assert told == read - {"TWOPHASE_API_ENDPOINT", "TWOPHASE_TASKS_ENDPOINT"}, "those two are for tests"


def test_cloud_build_makes_the_image_that_specs_name() -> None:
    build = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
    assert build["substitutions"]["_TAG"] == IMAGE.rpartition(":")[2]
    assert "containers/trainer.Dockerfile" in str(build["steps"])


def test_cuda_s_libraries_are_those_that_the_locked_tensorflow_asks_for() -> None:
    """By its own extra, each with hashes; nothing else is in that lock."""
    asked = {
        canonicalize_name(wanted.name): wanted.specifier
        for wanted in map(Requirement, requires("tensorflow") or ())
        if wanted.marker and wanted.marker.evaluate({"extra": "and-cuda"}) and not wanted.marker.evaluate({"extra": ""})
    }
    lock = (ROOT / "containers" / "cuda.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:", lock, re.MULTILINE))
    assert locked.keys() == asked.keys()
    assert all(asked[name].contains(version) for name, version in locked.items())
