"""What can be checked of `infra/` and `cloudbuild.yaml` without Google: syntax, and names that are the code's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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
