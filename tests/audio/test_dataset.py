"""Labelled clips: what is read, which side it stands on, and one message for everything that is wrong with the data."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.clips import write_clip, write_folder
from twophase.audio import sources
from twophase.audio.dataset import SPLITS, Dataset, find_clips, parse_wanted, read, read_source, split_of, write
from twophase.audio.decode import decode
from twophase.errors import TwoPhaseError, UsageError


def write_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SIDES = ["train", "train", "test", "train", "train", "train", "validation", "train"]


def by_name(found: Dataset) -> dict[str, tuple[str, str]]:
    return {c.name: (c.label, c.group if c.group != c.sha256 else "") for c in found.clips}


def test_folders_of_labels(folder: Path) -> None:
    (folder / "label-1" / "deeper").mkdir()
    write_clip(folder / "label-1" / "deeper" / "a.ogg", hz=999)
    (folder / "label-1" / ".hidden.wav").write_bytes(b"x")
    (folder / "label-1" / "notes.txt").write_text("x")
    write_clip(folder / "stray.wav", hz=777)
    found = read_source(folder)
    assert found.labels == ("label-0", "label-1", "label-2")
    assert found.wanted == ("label-0",)
    assert len(found.clips) == 37
    assert by_name(found)["label-1/deeper/a.ogg"] == ("label-1", "")
    assert dict(found.skipped) == {
        "label-1/notes.txt": "is no clip by its name; .wav, .flac, .ogg, .oga, .mp3 are",
        "stray.wav": "lies outside of any label's folder; put it into one named after its label",
    }


def test_a_table_names_labels_groups_and_splits(folder: Path) -> None:
    write_table(
        folder,
        [
            {"fname": "label-0/00.wav", "label": "A", "group": "g1", "split": "val"},
            {"fname": "label-0/01.wav", "label": "A", "group": "g1", "split": "validation"},
            {"fname": "label-1/02.wav", "label": "B", "group": "", "split": "Train"},
        ],
    )
    found = read_source(folder / "labels.csv", ["A"])
    assert by_name(found) == {"label-0/00.wav": ("A", "g1"), "label-0/01.wav": ("A", "g1"), "label-1/02.wav": ("B", "")}
    assert sorted(c.split for c in found.clips) == ["train", "validation", "validation"]
    assert find_clips(folder)[0] == list(found.clips)
    assert found.skipped == ()  # a table that is named among others means no other clips


def test_clips_beside_the_table_of_a_folder_are_named_as_left_out(folder: Path) -> None:
    write_table(folder, [{"fname": f"label-{i}/00.wav", "label": "A"} for i in range(3)])
    (folder / "label-1" / "notes.txt").write_text("x")
    write_tar(folder / "more.tar", {"A/a.wav": b"RIFF"})
    clips, skipped = find_clips(folder)
    assert len(clips) == 3
    assert {name for name, _ in skipped} == {
        "more.tar",
        *(f"label-{i}/{j:02d}.wav" for i in range(3) for j in range(1, 12)),
    }
    for name in ("label-1/01.wav", "more.tar"):
        assert dict(skipped)[name].startswith("is not named in labels.csv")


def test_files_of_a_table_are_found_anywhere_below_it(tmp_path: Path) -> None:
    write_clip(tmp_path / "audio_train" / "1a.wav")
    write_table(tmp_path, [{"fname": "1a.wav", "label": "A", "manually_verified": "1"}])
    assert [c.label for c in find_clips(tmp_path)[0]] == ["A"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_groups_side_never_changes(group: str) -> None:
    assert split_of(group) == split_of(group)
    assert split_of(group) in SPLITS


def test_the_sides_have_their_shares_and_stay_what_they_were() -> None:
    sides = [split_of(f"group {i}") for i in range(20_000)]
    shares = [sides.count(s) / len(sides) for s in SPLITS]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.01)
    assert [split_of(g) for g in "abcdefgh"] == SIDES  # a change here would test versions on what they were trained on


def test_copies_count_once(folder: Path) -> None:
    shutil.copy(folder / "label-0" / "00.wav", folder / "label-0" / "copy.wav")
    clips, skipped = find_clips(folder)
    assert len(clips) == 36
    assert skipped == [("label-0/copy.wav", "is a copy of label-0/00.wav")]


def test_a_kept_dataset_comes_back(folder: Path, tmp_path: Path) -> None:
    found = read_source(folder)
    write(tmp_path / "kept", found)
    back = read(tmp_path / "kept")
    assert sorted(back.clips, key=lambda c: c.name) == sorted(found.clips, key=lambda c: c.name)
    assert (back.wanted, back.skipped) == (found.wanted, found.skipped)


def test_a_second_reading_opens_only_what_is_new(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_source(folder, workdir=tmp_path / "w")
    write_clip(folder / "label-2" / "new.wav", hz=1500)
    opened: list[str] = []
    real = sources.read
    monkeypatch.setattr(sources, "read", lambda at: (opened.append(Path(at).name), real(at))[1])
    second = read_source(folder, workdir=tmp_path / "w")
    assert sorted(opened) == ["new.wav", "wanted.txt"]
    assert set(first.clips) < set(second.clips)
    write_clip(folder / "label-2" / "new.wav", hz=1600)  # another sound under the old name
    third = read_source(folder, workdir=tmp_path / "w")
    assert set(third.clips) != set(second.clips)
    (tmp_path / "w" / "digests.npy").write_text("not JSON")
    assert read_source(folder, workdir=tmp_path / "w") == third


def test_a_workdir_that_cannot_be_written_is_named(folder: Path) -> None:
    with pytest.raises(TwoPhaseError, match=r"/dev/null/w: .*give a folder that can be read and written"):
        find_clips(folder, Path("/dev/null/w"))


class TestTars:
    """WebDataset shards."""

    def test_members_with_sidecars(self, folder: Path, tmp_path: Path) -> None:
        wav = [(folder / "label-0" / f"{i:02d}.wav").read_bytes() for i in range(4)]
        write_tar(
            tmp_path / "tars" / "shard-000.tar",
            {
                "a.wav": wav[0],
                "a.cls": b"Oboe\n",
                "b.wav": wav[1],
                "b.json": json.dumps({"label": "Flute", "group": "g", "split": "test"}).encode(),
            },
        )
        write_tar(tmp_path / "tars" / "shard-001.tar", {"c.txt": b"Rain", "c.wav": wav[2], "Crow/d.wav": wav[3]})
        (tmp_path / "tars" / "wanted.txt").write_text("Oboe\nFlute\n")
        found = read_source(tmp_path / "tars")
        assert by_name(found) == {
            "shard-000.tar/a.wav": ("Oboe", ""),
            "shard-000.tar/b.wav": ("Flute", "g"),
            "shard-001.tar/c.wav": ("Rain", ""),
            "shard-001.tar/Crow/d.wav": ("Crow", ""),
        }
        assert next(c.split for c in found.clips if c.label == "Flute") == "test"
        for clip in found.clips:
            assert sources.read(clip.path) in wav
            assert len(decode(sources.read(clip.path))) == 8000
        assert len(find_clips(tmp_path / "tars" / "shard-001.tar")[0]) == 2

    def test_beside_folders(self, folder: Path, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "more.wav", hz=2222)
        write_tar(folder / "more.tar", {"label-9/a.wav": clip.read_bytes()})
        clips, skipped = find_clips(folder)
        assert len(clips) == 37
        assert next(c.name for c in clips if c.label == "label-9") == "more.tar/label-9/a.wav"
        assert skipped == []

    @pytest.mark.parametrize(
        ("name", "data", "words"),
        [
            ("cut.tar", None, "tar that can be read to its end"),
            ("text.tar", b"no tar at all" * 100, "no uncompressed tar"),
            ("label.tar", {"x.wav": b"RIFF"}, "x.wav has no label; put x.cls"),
            ("json.tar", {"x.wav": b"RIFF", "x.json": b"[1]"}, "x.json): is no label"),
            ("split.tar", {"x.wav": b"RIFF", "x.json": b'{"label": "A", "split": "dev"}'}, "split 'dev'; train"),
        ],
    )
    def test_a_corrupt_tar_is_named(self, tmp_path: Path, name: str, data, words: str) -> None:
        path = tmp_path / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            write_tar(path, data or {"a.wav": b"x" * 4000, "a.cls": b"A", "b.wav": b"y" * 4000, "b.cls": b"B"})
            if data is None:
                path.write_bytes(path.read_bytes()[:6500])
        with pytest.raises(TwoPhaseError) as caught:
            find_clips(path)
        assert words in str(caught.value)
        assert name in str(caught.value)


def refused(source: Path | str, *words: str, wanted: list[str] | None = None, kind: type = TwoPhaseError) -> None:
    with pytest.raises(kind) as caught:
        read_source(source, wanted)
    for word in words:
        assert word in str(caught.value)


class TestWhatIsWrong:
    """One message naming the file or argument, what was wrong and what would be accepted."""

    def test_a_place_that_is_not_there(self, tmp_path: Path) -> None:
        refused(tmp_path / "nowhere", "nowhere: is no folder", "label/clip files")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        refused(tmp_path, "has no clips", ".wav, .flac, .ogg, .oga, .mp3", "labels.csv")

    def test_a_table_without_the_columns(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("file,class\na.wav,A\n")
        refused(tmp_path, "labels.csv: has the columns class, file", "fname,label")

    def test_a_table_that_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("")
        refused(tmp_path, "has the columns none", "fname,label")

    def test_a_table_in_another_encoding(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_bytes("fname,label\nä.wav,A\n".encode("latin-1"))
        refused(tmp_path, "labels.csv: is no UTF-8 text", "save it as UTF-8")

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"fname": "gone.wav", "label": "A"}, ("line 2 names gone.wav", "remove the line")),
            ({"fname": "label-0/00.wav", "label": ""}, ("line 2 lacks fname or label",)),
            ({"fname": "00.wav", "label": "A"}, ("line 2: 00.wav is there 3 times", "by its path")),
            ({"fname": "label-0/00.wav", "label": "A", "split": "dev"}, ("split 'dev'", "train, validation, test")),
        ],
    )
    def test_a_row_of_a_table(self, folder: Path, row: dict[str, str], words: tuple[str, ...]) -> None:
        write_table(folder, [row])
        refused(folder, *words)

    def test_a_group_on_two_sides(self, folder: Path) -> None:
        rows = [
            {"fname": "label-0/00.wav", "label": "A", "group": "g", "split": "train"},
            {"fname": "label-0/01.wav", "label": "A", "group": "g", "split": "test"},
        ]
        write_table(folder, rows)
        refused(folder, "group 'g' stands on more than one side", "00.wav in train", "01.wav in test")

    def test_the_same_sound_on_two_sides(self, folder: Path) -> None:
        shutil.copy(folder / "label-0" / "00.wav", folder / "label-0" / "copy.wav")
        rows = [
            {"fname": "label-0/00.wav", "label": "A", "split": "train"},
            {"fname": "label-0/copy.wav", "label": "A", "split": "test"},
        ]
        write_table(folder, rows)
        refused(folder, "the same sound stands on more than one side", "copy.wav in test")

    def test_the_same_sound_under_two_labels(self, folder: Path) -> None:
        shutil.copy(folder / "label-0" / "00.wav", folder / "label-1" / "copy.wav")
        refused(folder, "label-1/copy.wav is labelled label-1", "one label, remove one")

    def test_wanted_labels(self, folder: Path) -> None:
        refused(folder, "--wanted: Flue is no label", "label-0, label-1, label-2", wanted=["Flue"], kind=UsageError)
        refused(folder, "every label is wanted", wanted=["label-0", "label-1", "label-2"], kind=UsageError)
        refused(folder, "an empty list", wanted=[], kind=UsageError)
        (folder / "wanted.txt").write_text("label-9\n")
        refused(folder, "wanted.txt: label-9 is no label", kind=UsageError)
        (folder / "wanted.txt").unlink()
        refused(folder, "--wanted: which labels", "wanted.txt", kind=UsageError)


def test_wanted_from_a_file_or_with_commas(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("A\n\n B \n")
    assert parse_wanted(str(tmp_path / "w.txt")) == parse_wanted("A, B") == ("A", "B")
    many = tuple(f"~label {i}" for i in range(1000))  # longer than any file's name, and no one's home
    assert parse_wanted(",".join(many)) == many
    (tmp_path / "w.txt").write_bytes(b"\xff")
    with pytest.raises(TwoPhaseError, match=r"w.txt: cannot be read .*UTF-8"):
        parse_wanted(str(tmp_path / "w.txt"))


def test_the_recordings(recordings: Path) -> None:
    found = read_source(recordings)
    assert len(found.clips) + len(found.skipped) == 1355
    assert len(found.labels) == 24
    assert len(found.wanted) == 13
    sides: dict[str, set[str]] = {}
    for clip in found.clips:
        sides.setdefault(clip.group, set()).add(clip.split)
    assert all(len(s) == 1 for s in sides.values())


def test_folders_made_by_the_helper_differ(tmp_path: Path) -> None:
    clips, _ = find_clips(write_folder(tmp_path / "d", labels=2, clips=3))
    assert len({c.sha256 for c in clips}) == 6
