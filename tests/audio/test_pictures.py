"""Images as files: what is exported trains as the stored images do, and what is drawn is the right way up."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twophase.audio.dataset import SPLITS, read_source
from twophase.audio.frontend import FRONT_END, SAMPLE_RATE
from twophase.audio.images import ImageSet, make_all
from twophase.audio.pictures import contact_sheet, example_rows, export_png, file_name, picture
from twophase.errors import TwoPhaseError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Low and high tones and a noise, two clips a split, one of them of several windows."""
    home = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = []
    for label, hz in (("low", 150.0), ("high/er", 5000.0), ("noise", 0.0)):
        for i in range(6):
            t = np.arange(SAMPLE_RATE * (1 + 2 * (i == 0))) / SAMPLE_RATE
            sound = np.sin(2 * np.pi * (hz + i) * t) if hz else rng.standard_normal(len(t)) / 5
            rows.append((f"{label[:3]}{i}.wav", label, SPLITS[i % 3]))
            soundfile.write(home / rows[-1][0], 0.5 * sound, SAMPLE_RATE)
    with (home / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("fname", "label", "split"), *rows])
    dataset = read_source(home, ["low", "high/er"])
    return make_all(home, dataset, "fail", lambda done, total: None)


def test_an_export_read_by_flow_from_directory_is_the_stored_images(images: ImageSet, tmp_path: Path) -> None:
    from twophase.training.image_generator import ImageGenerator

    done: list[int] = []
    assert export_png(images, tmp_path / "png", done.append) == len(images)
    assert sum(done) == len(images.clips)
    seen = 0
    for split in SPLITS:
        flow = ImageGenerator(dtype="uint8").flow_from_directory(
            tmp_path / "png" / split,
            target_size=FRONT_END.shape,
            color_mode="grayscale",
            class_mode="sparse",
            batch_size=10_000,
            shuffle=False,
        )
        assert list(flow.class_indices) == sorted(file_name(label) for label in images.labels)
        pixels, classes = flow[0]
        labels = sorted(images.labels, key=file_name)
        start = 0
        for number, label in enumerate(labels):
            rows = images.rows(split, [label])
            np.testing.assert_array_equal(pixels[start : start + len(rows), ..., 0], images.take(rows))
            assert (classes[start : start + len(rows)] == number).all()
            start += len(rows)
        assert start == len(pixels)
        seen += start
    assert seen == len(images)


def test_an_export_needs_a_folder_of_its_own(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(TwoPhaseError, match="not an empty folder"):
        export_png(images, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), min_size=1, max_size=5, unique=True))
def test_labels_name_distinct_folders_and_nothing_outside(labels: list[str]) -> None:
    names = [file_name(label) for label in labels]
    assert len(set(names)) == len(labels)
    for name in names:
        assert Path(name).name == name
        assert name not in (".", "..")
        assert "\0" not in name


def test_pictures_have_low_frequencies_at_the_bottom_and_time_to_the_right(images: ImageSet) -> None:
    for label, low in (("low", True), ("high/er", False)):
        drawn = picture(images.take(example_rows(images, label, 1))[0])
        assert drawn.size == (FRONT_END.frames, FRONT_END.mels)
        brightness = np.asarray(drawn.convert("L"), int).sum(axis=1)
        assert (brightness.argmax() > FRONT_END.mels // 2) == low
    rising = np.zeros(FRONT_END.shape, np.uint8)
    rising[30:] = 255
    columns = np.asarray(picture(rising).convert("L"), int).sum(axis=0)
    assert columns[:30].max() < columns[30:].min()


def test_examples_are_one_window_of_different_clips(images: ImageSet) -> None:
    for count in (1, 3, 100):
        rows = example_rows(images, "noise", count)
        clips = images.clip_of_row[rows]
        assert len(set(clips.tolist())) == len(rows) == min(count, 6)
        assert {images.clips[c].label for c in clips} == {"noise"}


def test_a_contact_sheet_has_a_row_for_every_label(images: ImageSet, tmp_path: Path) -> None:
    contact_sheet(images, tmp_path / "new" / "sheet.png", per_label=4)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        column = np.asarray(sheet.convert("L"), int)[:, -30]  # through the last window of each row
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column < 255, [0]])))
    assert len(edges) == 2 * len(images.labels)
    assert (np.diff(edges)[::2] == 2 * FRONT_END.mels).all()
    again = tmp_path / "again.png"
    contact_sheet(images, again, per_label=4)
    assert again.read_bytes() == (tmp_path / "new" / "sheet.png").read_bytes()
