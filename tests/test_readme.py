"""What the README and the docs point at is there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import twophase

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text("utf-8")))
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= rules


def commands(page: Path) -> set[str]:
    """What stands in a page's code as `twophase ...`, to the end of the line or the comment."""
    return {
        said.strip()
        for said in re.findall(r"(?:^|`|\$\()twophase ([a-z][^`#\n]*)", page.read_text("utf-8"), re.MULTILINE)
    }


def test_commands_of_the_readme_exist_and_have_the_options_that_it_gives_them() -> None:
    reference = (ROOT / "docs/cli.md").read_text("utf-8")
    _, *parts = re.split(r"^##+ `twophase ([a-z ]+)`$", reference, flags=re.MULTILINE)
    known = dict(zip(parts[::2], parts[1::2], strict=True))
    groups = {name.split()[0] for name in known if " " in name}
    for command in commands(ROOT / "README.md"):
        words = command.split()
        name = " ".join(words[: 2 if words[0] in groups and len(words) > 1 else 1])
        assert name in known, command
        for option in (word for word in words if word.startswith("--")):
            assert f"* `{option}" in known[name], command


def test_the_readme_s_request_to_vertex_is_accepted_as_it_stands() -> None:
    (command,) = (line for line in commands(ROOT / "README.md") if line.startswith("submit"))
    program = [sys.executable, "-m", "twophase", *command.split()]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parent"] == "projects/P/locations/us-central1"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "containers" / "device.service"], ids=lambda page: page.name
)
def test_the_wheel_has_the_name_that_the_pages_give_it(page: Path) -> None:
    named = set(re.findall(r"twophase-([0-9.]+)-py3-none-any\.whl", page.read_text("utf-8")))
    assert named == {twophase.__version__}
