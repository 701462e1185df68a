"""The sheet names the clips that matter most, and what a person answers reaches the next run and nothing else."""

import csv
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from twophase.audio.dataset import Clip, find_clips
from twophase.errors import TwoPhaseError
from twophase.release.manifest import NONE
from twophase.training.answers import Answers
from twophase.training.label import Choice, choose, merge, rank, write

NAMES = ("Cello", "Flute", NONE)

Given = tuple[str, str, float, tuple[float, float, float]]  # label, split, the gate's score, probabilities


def answers(*rows: Given, group: str = "") -> Answers:
    clips = tuple(
        Clip(f"{i:064x}", f"/{i}.wav", f"{i}.wav", label, group or f"g{i}", split)
        for i, (label, split, _, _) in enumerate(rows)
    )
    probabilities = np.array([row[3] for row in rows], np.float32)
    gate = np.array([row[2] for row in rows], np.float32)
    return Answers(clips, NAMES, gate, probabilities, np.ones(len(rows), np.int64))


SURE = ("Cello", "train", 3.0, (0.98, 0.01, 0.01))
CLOSE = ("Cello", "train", 3.0, (0.5, 0.4, 0.1))
DOUBTED = ("Flute", "train", 3.0, (0.95, 0.03, 0.02))
DISAGREED = ("", "train", -3.0, (0.9, 0.05, 0.05))
TESTED = ("Flute", "test", 3.0, (0.95, 0.03, 0.02))


def chosen(given: Answers, count: int = 4, verified: tuple[int, ...] = ()) -> dict[int, Choice]:
    heard = np.isin(np.arange(len(given.clips)), verified)
    return {int(c.clip.name.split(".")[0]): c for c in rank(given, 0.0, heard, count)}


def test_doubt_and_disagreement_come_before_what_is_sure_and_say_why() -> None:
    found = chosen(answers(SURE, CLOSE, DOUBTED, DISAGREED))
    assert list(found) == [2, 3, 1, 0]
    assert (found[2].why, found[2].suggestion) == ("the label is doubted", "Cello")
    assert (found[3].why, found[3].suggestion) == ("the two models disagree", NONE)
    assert found[1].why == "two answers are nearly as likely"


def test_test_clips_are_not_chosen_by_what_the_models_said() -> None:
    assert list(chosen(answers(TESTED, SURE))) == [1]


def test_what_somebody_has_verified_counts_half() -> None:
    assert list(chosen(answers(DOUBTED, CLOSE), verified=(0,))) == [1, 0]


def test_one_of_a_group_and_never_more_than_asked_for() -> None:
    assert len(chosen(answers(CLOSE, CLOSE, DOUBTED, group="one"))) == 1
    assert len(chosen(answers(*[CLOSE] * 9), 3)) == 3


def test_the_audit_draws_from_what_the_gate_stopped_also_test_clips() -> None:
    stopped = ("Rain", "test", -3.0, (0.0, 0.0, 1.0))
    found = chosen(answers(*[CLOSE] * 9, stopped), 5)
    assert found[9].why == "drawn by chance from the test clips"
    assert len(found) == 5


def test_a_test_clip_is_drawn_whatever_the_models_answered() -> None:
    """Or putting labels right would take what the gate misses out of the test set, and nothing else."""
    scores = np.random.default_rng(0).permutation(np.linspace(-3, 3, 40))
    drawn = [
        set(chosen(answers(*[("Flute", "test", float(s), (p, 0.9 - p, 0.1)) for s in given]), 50))
        for given, p in ((scores, 0.9), (-scores, 0.1), (np.full(40, 3.0), 0.5), (np.full(40, -3.0), 0.5))
    ]
    assert len(drawn[0]) == 10
    assert all(found == drawn[0] for found in drawn)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three labelled clips, one that no table names."""
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.full(800, 0.1 * (i + 1)), 16_000)
    table = "fname,label,manually_verified,group,split\n0.wav,Cello,0,a,train\n1.wav,Flute,1,b,test\n2.wav,Rain,0,c,\n"
    (tmp_path / "labels.csv").write_text(table)
    return tmp_path


def fill(sheet: Path, labels: dict[str, str], clips: list[Clip]) -> None:
    write(sheet, [Choice(c, "Cello", "why not") for c in clips])
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["fname"] in labels:
            row.update(label=labels[row["fname"]], manually_verified="1")
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_verified_answers_reach_the_next_run_and_others_do_not(folder: Path, tmp_path_factory) -> None:
    sheet, before = tmp_path_factory.mktemp("sheet") / "sheet.csv", {c.name: c for c in find_clips(folder)[0]}
    new = Clip("9" * 64, str(folder / "3.wav"), "3.wav", "", "9" * 64, "train")
    fill(sheet, {"0.wav": "Flute", "3.wav": "Rain"}, [*before.values(), new])
    assert merge(folder, sheet) == 2
    after = {c.name: c for c in find_clips(folder)[0]}
    assert {name: c.label for name, c in after.items()} == {
        "0.wav": "Flute",
        "1.wav": "Flute",
        "2.wav": "Rain",
        "3.wav": "Rain",
    }
    assert all((after[n].group, after[n].split) == (c.group, c.split) for n, c in before.items())
    assert merge(folder, sheet) == 0


def answered(folder: Path, labels: dict[str, str]) -> Path:
    fill(folder.with_suffix(".sheet"), labels, list(find_clips(folder)[0]))
    return folder.with_suffix(".sheet")


def test_folders_of_labels_become_a_table_and_what_comes_later_is_named(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "folders"
    for i, name in enumerate(("Cello/0.wav", "Flute/0.wav", "Rain/2.wav")):
        (data / name).parent.mkdir(parents=True)
        shutil.copy(folder / f"{i}.wav", data / name)
    before = {c.name: c for c in find_clips(data)[0]}
    assert merge(data, answered(data, {"Flute/0.wav": "Rain"})) == 1
    shutil.copy(folder / "3.wav", data / "Cello" / "3.wav")
    after, left_out = find_clips(data)
    assert {c.name: c.label for c in after} == {"Cello/0.wav": "Cello", "Flute/0.wav": "Rain", "Rain/2.wav": "Rain"}
    assert {c.name: c.split for c in after} == {name: c.split for name, c in before.items()}
    assert [name for name, why in left_out if "is not named in labels.csv" in why] == ["Cello/3.wav"]


def test_a_table_of_another_name_takes_the_answers_itself(folder: Path) -> None:
    table = (folder / "labels.csv").rename(folder / "mine.csv")
    assert merge(table, answered(table, {"0.wav": "Flute"})) == 1
    assert {c.name: c.label for c in find_clips(table)[0]}["0.wav"] == "Flute"
    assert not (folder / "labels.csv").exists()


def test_the_table_of_a_bucket_takes_answers_too(folder: Path) -> None:
    bucket, url = fsspec.filesystem("memory"), "memory://answers/clips"
    for file in folder.iterdir():
        bucket.pipe_file(f"/answers/clips/{file.name}", file.read_bytes())
    sheet = answered(folder, {"0.wav": "Flute"})
    assert merge(url, sheet) == 1
    assert {c.name: c.label for c in find_clips(url)[0]}["0.wav"] == "Flute"
    assert {c.name: c.label for c in find_clips(folder)[0]}["0.wav"] == "Cello"


@pytest.mark.parametrize("which", ["", "clips.tar"])
def test_answers_about_clips_in_tars_are_refused(folder: Path, tmp_path: Path, which: str) -> None:
    data = tmp_path / "tars"
    (data / "Cello").mkdir(parents=True)
    shutil.copy(folder / "1.wav", data / "Cello" / "1.wav")
    with tarfile.open(data / "clips.tar", "w") as tar:
        tar.add(folder / "0.wav", "Flute/0.wav")
    before = sorted(data.rglob("*"))
    with pytest.raises(TwoPhaseError, match=r"clips.tar/Flute/0.wav is in a tar.*unpack"):
        merge(data / which, answered(data / which, {"clips.tar/Flute/0.wav": "Rain"}))
    assert {p.name for p in data.rglob("*")} - {"clips.sheet"} == {p.name for p in before}


@pytest.mark.parametrize(("labels", "words"), [({"0.wav": " "}, "has no label"), ({"7.wav": "Rain"}, "is not below")])
def test_an_answer_that_cannot_be_taken_changes_nothing(folder: Path, labels: dict[str, str], words: str) -> None:
    clips = [*find_clips(folder)[0], Clip("7" * 64, "/7.wav", "7.wav", "", "7" * 64, "train")]
    before = (folder / "labels.csv").read_bytes()
    fill(folder / "sheet.txt", labels, clips)
    with pytest.raises(TwoPhaseError, match=words):
        merge(folder, folder / "sheet.txt")
    assert (folder / "labels.csv").read_bytes() == before


def test_a_release_chooses_from_a_folder_also_what_nobody_has_labelled(
    tiny_release: Path, tiny_data: Path, tmp_path
) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    soundfile.write(data / "new.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    found = choose(tiny_release, data, 50, lambda done, planned: None)
    assert "new.wav" in {c.clip.name for c in found}
    assert all(c.clip.split != "test" or "chance" in c.why for c in found)
