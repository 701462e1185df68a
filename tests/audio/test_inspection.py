"""Looking at a dataset: what is wrong with it is counted, named and comes with something to do about it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.audio.clips import tone, write_clip, write_folder
from twophase.audio import inspection
from twophase.audio.decode import decode
from twophase.audio.pictures import contact_sheet


def test_everything_a_person_should_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "data", labels=2, clips=25)
    for i in range(22):
        write_clip(folder / "narrow" / f"{i}.wav", hz=150 + 9 * i, rate=8000, seed=i)
    write_clip(folder / "few" / "a.wav", hz=3000, seconds=1.0)
    write_clip(folder / "few" / "b.wav", hz=3500)
    soundfile.write(folder / "few" / "silent.wav", np.zeros(4000), 16_000)
    soundfile.write(folder / "few" / "loud.wav", np.clip(tone(2500) * 9, -1, 1), 16_000)
    (folder / "few" / "broken.wav").write_text("no sound")
    original = folder / "label-0" / "03.wav"
    soundfile.write(folder / "label-0" / "quieter.flac", decode(original) * 0.7, 16_000)
    (folder / "label-1" / "copy.wav").write_bytes((folder / "label-1" / "00.wav").read_bytes())
    found, images = inspection.inspect(str(folder), tmp_path / "w")

    assert found.clips == 25 + 25 + 22 + 5 + 1
    assert found.labels["few"]["clips"] == 3
    assert found.labels["narrow"]["seconds"] == pytest.approx(11.0)
    assert found.durations_s == {"shortest": 0.5, "median": 0.5, "longest": 1.0}
    assert found.rates == {8000: 22, 16000: 54}
    assert found.silent == ["few/silent.wav"]
    assert found.clipped == ["few/loud.wav"]
    assert {name for name, _ in found.unusable} == {"few/silent.wav", "few/broken.wav"}
    assert found.left_out == [("label-1/copy.wav", "is a copy of label-1/00.wav")]
    pairs = {frozenset(pair) for pair in found.near_duplicates}
    assert frozenset({"label-0/03.wav", "label-0/quieter.flac"}) in pairs
    assert not any("few/a.wav" in pair for pair in pairs)
    words = "\n".join(found.warnings)
    assert "few has 3 usable clips; record more" in words
    assert "every clip of narrow is recorded below 16000 Hz" in words
    assert "1 clips are silent (few/silent.wav)" in words
    inspection.show(found)
    assert "warning: few has 3 usable clips" in capsys.readouterr().out
    assert set(found.to_json()) >= {"clips", "labels", "warnings", "near_duplicates"}
    if images is not None:
        contact_sheet(images, tmp_path / "sheet.png")
        assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_data_that_nothing_can_be_trained_on_is_still_inspected(tmp_path: Path) -> None:
    write_clip(tmp_path / "data" / "only" / "a.wav")
    found, images = inspection.inspect(str(tmp_path / "data"), tmp_path / "w")
    assert images is None
    assert found.clips == 1
    assert any("label 'only' has 1 usable clip" in words for words in found.warnings)


def test_the_recordings(recordings: Path, tmp_path: Path) -> None:
    if not (recordings / "labels.csv").is_file():
        pytest.skip("needs the orchestra recordings")
    found, images = inspection.inspect(str(recordings), tmp_path)
    assert images is not None
    assert sum(found.rates.values()) + len(found.unusable) == found.clips
    assert set(found.rates) == {8000, 44100}
    assert any("Speech is recorded below 16000 Hz" in words for words in found.warnings)
