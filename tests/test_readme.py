"""What the README and the docs point at is there."""

import re
from pathlib import Path

import pytest

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


def test_commands_of_the_readme_exist() -> None:
    commands = set(re.findall(r"^twophase ([a-z]+(?: [a-z]+)?)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE))
    reference = (ROOT / "docs/cli.md").read_text("utf-8")
    known = set(re.findall(r"^##+ `twophase ([a-z ]+)`$", reference, re.MULTILINE))
    groups = {name.split()[0] for name in known if " " in name}
    for command in commands:
        first = command.split()[0]
        assert (command if first in groups else first) in known, command
