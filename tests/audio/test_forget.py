"""Forgetting: clips leave images, lists and every later run; releases that learned from them are named."""

import shutil
from pathlib import Path

import pytest

from tests.audio.clips import write_clip
from twophase.audio import images
from twophase.audio.dataset import Dataset
from twophase.audio.forget import forget
from twophase.audio.generate import generate
from twophase.audio.store import Store
from twophase.errors import TwoPhaseError


@pytest.fixture
def table(folder: Path) -> Path:
    rows = [f"label-{i}/{j:02d}.wav,label-{i},person-{j % 4}" for i in range(3) for j in range(12)]
    (folder / "labels.csv").write_text("fname,label,group\n" + "\n".join(rows) + "\n")
    return folder


def run(folder: Path, workdir: Path) -> Dataset:
    dataset = generate(str(folder), ["label-0"], workdir, 0, 0, lambda done, total: None)
    images.make_all(workdir, dataset, "fail", lambda done, total: None)
    return dataset


def everything_kept(workdir: Path) -> str:
    return "\n".join(p.read_text("utf-8", "replace") for p in workdir.rglob("*.json*") if p.is_file())


def test_a_persons_clips_are_gone_and_stay_gone(table: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    clips = run(table, workdir).clips
    theirs = {c.sha256 for c in clips if c.group == "person-1"}
    heard = workdir / "releases" / "r-0123456789ab" / "assets.extra" / "heard.csv"
    heard.parent.mkdir(parents=True)
    heard.write_text(f"clip,group\n{min(theirs)[:16]},x\n")
    (workdir / "releases" / "r-other0000000" / "assets.extra").mkdir(parents=True)
    (workdir / "releases" / "r-other0000000" / "assets.extra" / "heard.csv").write_text("clip,group\nffff,x\n")
    (workdir / "reports").mkdir()
    (workdir / "reports" / "r-other0000000.html").write_text("person-1 is heard in the test clips")

    found = forget(workdir, "person-1")
    assert {c.sha256 for c in found.clips} == theirs
    assert found.with_images == 9
    assert found.releases == ("r-0123456789ab",)
    assert all(Path(f).is_file() for f in found.files)  # the user's own files are the user's
    kept = everything_kept(workdir)
    assert "person-1" not in kept
    assert not (workdir / "set").exists()
    assert not (workdir / "reports").exists()  # a report plays test clips, which no list of what was heard names

    write_clip(table / "label-2" / "later.wav", hz=1777)
    with (table / "labels.csv").open("a") as file:
        file.write("label-2/later.wav,label-2,person-1\n")
    after = run(table, workdir)
    assert len(after.clips) == 27
    assert not theirs & {c.sha256 for c in after.clips}
    assert sum("is to be forgotten" in reason for _, reason in after.skipped) == 10
    store = Store(workdir / "images")
    entries = {e.sha256 for p in (workdir / "images").rglob("*.jsonl") for e in store.entries(p.stem)}
    assert entries == {c.sha256 for c in after.clips}


@pytest.mark.parametrize("by", ["name", "digest", "label"])
def test_by_name_by_digest_and_by_label(table: Path, tmp_path: Path, by: str) -> None:
    clip = run(table, tmp_path / "w").clips[0]
    wish = {"name": clip.name, "digest": clip.sha256[:10], "label": "label-2"}[by]
    assert len(forget(tmp_path / "w", wish).clips) == (12 if by == "label" else 1)


def test_a_group_named_like_the_start_of_a_digest_is_still_a_group(folder: Path, tmp_path: Path) -> None:
    groups = "0123456789abcdef"  # any digest starts like one of them
    rows = [f"label-{i}/{j:02d}.wav,label-{i},{groups[(12 * i + j) % 16]}" for i in range(3) for j in range(12)]
    (folder / "labels.csv").write_text("fname,label,group\n" + "\n".join(rows) + "\n")
    clips = run(folder, tmp_path / "w").clips
    group = clips[0].sha256[0]
    assert {c.group for c in forget(tmp_path / "w", group).clips} == {group}
    write_clip(folder / "label-2" / "later.wav", hz=1777)
    with (folder / "labels.csv").open("a") as file:
        file.write(f"label-2/later.wav,label-2,{group}\n")
    assert group not in {c.group for c in run(folder, tmp_path / "w").clips}


@pytest.mark.parametrize("finished", range(4))
def test_forgetting_again_does_what_a_crash_left(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    workdir = tmp_path / "w"
    theirs = [c for c in run(table, workdir).clips if c.group == "person-1"]
    for name in ("reports", "evaluations"):
        (workdir / name).mkdir()
        (workdir / name / "file").write_text("person-1")
    left, real = iter(range(finished)), shutil.rmtree

    def killed(path: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(workdir, "person-1")
    assert set(forget(workdir, "person-1").clips) == set(theirs)
    assert not any((workdir / name).exists() for name in ("reports", "evaluations", "set", "shards"))


def test_what_is_not_known_is_said(table: Path, tmp_path: Path) -> None:
    run(table, tmp_path / "w")
    with pytest.raises(TwoPhaseError, match="nobody: is no clip, group or label of the last run"):
        forget(tmp_path / "w", "nobody")
