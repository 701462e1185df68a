"""Clips in a file: the sequence that a list of them would be."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.audio.clips import Clip, Clips, read_clips
from twophase.audio.dataset import Dataset, read, write
from twophase.errors import TwoPhaseError

texts = st.text(st.characters(exclude_categories=()), max_size=12)  # surrogates too: file names need not be UTF-8
clips = st.lists(st.builds(Clip, texts, texts, texts, texts, texts, texts), max_size=9)


@given(clips, st.slices(9), st.randoms())
def test_a_file_of_clips_is_the_sequence_that_was_put_in(given_clips: list[Clip], some: slice, chance) -> None:
    kept = Clips.of(given_clips)
    assert kept == given_clips
    assert list(kept[some]) == given_clips[some]
    order = list(range(len(given_clips)))
    chance.shuffle(order)
    assert list(kept.at(order)) == [given_clips[i] for i in order]
    with pytest.raises(IndexError):
        kept[len(given_clips)]


@given(clips)
@settings(max_examples=20, deadline=None)
def test_a_kept_dataset_outlives_its_file(given_clips: list[Clip]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, Dataset(given_clips, ("a",), (("b", "why"),)))
        found = read(folder)
        assert list(read_clips(folder / "clips.jsonl")) == given_clips
        (folder / "clips.jsonl").unlink()
        assert found == Dataset(found.clips, ("a",), (("b", "why"),))
        assert list(found.clips) == given_clips


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TwoPhaseError, match=r"nowhere\.jsonl: .*give a folder"):
        list(read_clips(tmp_path / "nowhere.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"sha256": "0"}\n')
    with pytest.raises(TwoPhaseError, match=r"bad\.jsonl: line 1 is no clip"):
        list(read_clips(tmp_path / "bad.jsonl"))
