"""The model card says what the release's own figures say, whatever the labels are called."""

from pathlib import Path

from twophase.release import card, manifest
from twophase.release.manifest import OperatingPoint

POINT = OperatingPoint(-0.25, "the least cost", 1.0, 0.9, 0.5, {"recall": [0.8, 1.0]})


def test_a_release_carries_its_card_and_the_card_its_figures(tiny_release: Path) -> None:
    found, text = manifest.verify(tiny_release), (tiny_release / card.CARD).read_text("utf-8")
    assert text.startswith(f"# {found.id}\n")
    assert card.CARD in found.digests
    assert f"{found.metrics['pair']['accuracy']:.1%}" in text
    assert found.operating_point.chosen_by in text
    for label, row in found.metrics["classifier"]["per_label"].items():
        assert f"| {label.replace('_', chr(92) + '_')} | {row['clips']} |" in text
    assert "dB above a background" in text
    assert "dB quieter" in text


def test_without_figures_the_card_says_so(tmp_path: Path) -> None:
    (tmp_path / manifest.EXTRA).mkdir()
    card.write(tmp_path, "r-0123456789ab", ["Flute"], POINT, {}, {"tuned_from": "r-1"})
    text = (tmp_path / card.CARD).read_text("utf-8")
    assert "Not measured" in text
    assert "80.0% to 100.0%" in text


def test_labels_are_text_and_no_markup(tmp_path: Path) -> None:
    (tmp_path / manifest.EXTRA).mkdir()
    card.write(tmp_path, "r-0123456789ab", ["<b>|a", "x\n# y"], POINT, {}, {})
    text = (tmp_path / card.CARD).read_text("utf-8")
    assert r"\<b\>\|a, x \# y" in text
