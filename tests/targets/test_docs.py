"""What the documentation says of targets is all there is to say."""

from pathlib import Path

from twophase.targets.places import SETTINGS

DOCS = (Path(__file__).parents[2] / "docs/targets.md").read_text()


def test_every_target_and_setting_is_documented() -> None:
    for name, settings in SETTINGS.items():
        (row,) = [line for line in DOCS.splitlines() if line.startswith(f"| `{name}` | ") and "never" not in line][:1]
        assert all(f"`{s}`" in row or f"`--{s.replace('_', '-')}`" in row for s in settings), (name, row)
