"""The model card says what the release's own figures say, whatever the labels are called."""

import shutil
from dataclasses import replace
from pathlib import Path

from twophase.release import card, manifest, scores
from twophase.release.manifest import OperatingPoint
from twophase.training.examine import tune

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
    assert "through one 8 kHz channel" in text
    for name, figures in found.metrics["conditions"].items():
        assert f"{figures['clips']}, {figures['classifier']['clips']} wanted" in text, name
    worst = found.metrics["headline"]["pair accuracy"]
    assert f"{worst['value']:.1%} ({worst['condition']})" in text


def test_without_figures_the_card_says_so(tmp_path: Path) -> None:
    (tmp_path / manifest.EXTRA).mkdir()
    card.write(tmp_path, "r-0123456789ab", ["Flute"], POINT, {}, {"tuned_from": "r-1"})
    text = (tmp_path / card.CARD).read_text("utf-8")
    assert "Not measured" in text
    assert "80.0% to 100.0%" in text
    assert "less sure" not in text


def test_what_is_rejected_and_what_a_clip_costs_is_said(tmp_path: Path) -> None:
    (tmp_path / manifest.EXTRA).mkdir()
    point = replace(POINT, rejection=0.4, cost=0.25)
    card.write(tmp_path, "r-0123456789ab", ["Flute"], point, {}, {})
    text = (tmp_path / card.CARD).read_text("utf-8")
    assert "Answers less sure than 40.0% count as none of these. A clip costs 0.25 on average." in text


def test_another_threshold_gets_a_card_of_its_own(tiny_release: Path, tiny_data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_release, tmp_path / tiny_release.name))
    tuned = Path(tune(copy, tiny_data, "recall=0.5", lambda done, planned: None)["release"])
    found = manifest.verify(tuned)
    assert scores.of_release(found.metrics) is not None
    assert scores.of_release(manifest.read(tiny_release).metrics) is not None
    text = (tuned / card.CARD).read_text("utf-8")
    assert text.startswith(f"# {tuned.name}\n")
    assert "Not measured" in text


def test_labels_are_text_and_no_markup(tmp_path: Path) -> None:
    (tmp_path / manifest.EXTRA).mkdir()
    card.write(tmp_path, "r-0123456789ab", ["<b>|a", "x\n# y"], POINT, {}, {})
    text = (tmp_path / card.CARD).read_text("utf-8")
    assert r"\<b\>\|a, x \# y" in text
