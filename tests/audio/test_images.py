"""From clips to an image set: planned, made and collected; again, with new clips, with fewer, and with bad ones."""

import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.clips import write_clip, write_folder
from twophase.audio import frontend_compiled, images, packs
from twophase.audio.dataset import Clip, read_clips, read_source
from twophase.audio.images import ImageSet, make_all, plan
from twophase.errors import TwoPhaseError
from twophase.files import digest


def made(folder: Path, workdir: Path, on_bad_clip: str = "fail") -> ImageSet:
    return make_all(workdir, read_source(folder), on_bad_clip, lambda done, total: None)


def content(workdir: Path) -> dict[str, str]:
    """Everything that is kept of a run, but for locks."""
    files = [p for p in sorted(workdir.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {p.relative_to(workdir).as_posix(): digest(p) for p in files if "shards" not in p.parts}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips that are decoded."""
    names: list[str] = []
    real = packs.decode_native
    monkeypatch.setattr(packs, "decode_native", lambda data, name: (names.append(name), real(data, name))[1])
    return names


def fake_clips(count: int) -> list[Clip]:
    shas = (digest(f"{i}".encode()) for i in range(count))
    return [Clip(sha, f"/data/{i}.wav", f"{i}.wav", f"label-{i % 3}", sha, "train") for i, sha in enumerate(shas)]


@given(st.integers(1, 60), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_a_plan_loses_no_clip_and_new_ones_leave_the_others_where_they_are(count: int, per_shard: int) -> None:
    import tempfile

    clips = fake_clips(count)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "CLIPS_PER_SHARD", per_shard)
        shards = plan(clips, Path(folder), count)
        held = [list(read_clips(shard)) for shard in shards]
        assert sorted((c for cs in held for c in cs), key=lambda c: c.name) == sorted(clips, key=lambda c: c.name)
        bounds = [(min(c.sha256 for c in cs), max(c.sha256 for c in cs)) for cs in held]
        assert bounds == sorted(bounds)  # shards are ranges of digests, in order
        assert all(a[1] < b[0] for a, b in itertools.pairwise(bounds))
        where = {c.sha256: shard.name for shard, cs in zip(shards, held, strict=True) for c in cs}
        again = plan(clips[: count // 2 + 1], Path(folder), count)
        assert all(where[c.sha256] == shard.name for shard in again for c in read_clips(shard))


def test_a_plan_has_at_most_256_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CLIPS_PER_SHARD", 1)
    assert len(plan(fake_clips(3000), tmp_path, 3000)) == 256


def test_a_set_knows_every_row(folder: Path, tmp_path: Path) -> None:
    found = made(folder, tmp_path / "w")
    assert len(found.clips) == 36
    assert len(found) == len(found.clip_of_row) == len(found.label_of_row) == len(found.split_of_row)
    assert found.labels == ("label-0", "label-1", "label-2")
    assert found.wanted == ("label-0",)
    from twophase.audio.decode import decode

    for i in (0, 17, len(found) - 1):
        clip = found.clips[found.clip_of_row[i]]
        rows = np.flatnonzero(found.clip_of_row == found.clip_of_row[i])
        assert np.array_equal(found.take(rows), frontend_compiled.images(packs.windows_of(decode(Path(clip.path)))))
        assert found.labels[found.label_of_row[i]] == clip.label
    assert sum(len(found.rows(split)) for split in ("train", "validation", "test")) == len(found)
    only = found.rows("train", ["label-1"])
    assert np.array_equal(found.subset(only).take(np.arange(len(only))), found.take(only))


def test_several_shards_make_the_same_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(folder, tmp_path / "one")
    monkeypatch.setattr(images, "CLIPS_PER_SHARD", 5)
    many = made(folder, tmp_path / "many")
    assert len(list((tmp_path / "many" / "shards").glob("*.made.json"))) == 8
    assert many.digest == one.digest
    assert np.array_equal(many.take(np.arange(len(many))), one.take(np.arange(len(one))))


def test_shards_come_from_folders_of_their_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an engine hands them over: each step's output has a place of its own, in no order."""
    one = made(folder, tmp_path / "one")
    monkeypatch.setattr(images, "CLIPS_PER_SHARD", 5)
    clips = read_source(folder).clips
    shards = []
    for i, shard in enumerate(plan(clips, tmp_path / "plan", len(clips))):
        (tmp_path / f"step-{9 - i}").mkdir()
        shards.append(shard.rename(tmp_path / f"step-{9 - i}" / shard.name))
    results = [images.make_shard(tmp_path / "w" / "images", shard) for shard in shards]
    found = images.collect(results[::-1], shards[::-1], ["label-0"], tmp_path / "w" / "set", "fail", planned=36)
    assert found.digest == one.digest
    assert found.clips == one.clips


def test_again_with_new_with_fewer_and_with_other_clips(folder: Path, tmp_path: Path, counted: list[str]) -> None:
    first = made(folder, tmp_path / "w")
    before = content(tmp_path / "w")
    assert len(counted) == 36

    again = made(folder, tmp_path / "w")
    assert len(counted) == 36
    assert content(tmp_path / "w") == before
    assert again.digest == first.digest

    write_clip(folder / "label-1" / "new.wav", hz=1234, seed=99)
    more = made(folder, tmp_path / "w")
    assert counted[36:] == ["label-1/new.wav"]
    assert len(more.clips) == 37
    assert more.digest != first.digest

    (folder / "label-1" / "new.wav").unlink()
    fewer = made(folder, tmp_path / "w")
    assert len(counted) == 37
    assert fewer.digest == first.digest
    assert content(tmp_path / "w") == before  # the superseded pack is gone with what it held


def test_bad_clips_are_named_and_counted_or_fail_the_run(folder: Path, tmp_path: Path, counted: list[str]) -> None:
    for i in range(25):
        (folder / "label-1" / f"bad-{i:02d}.wav").write_text(f"no sound {i}")
    found = made(folder, tmp_path / "w", "skip")
    assert len(found.clips) == 36
    assert sorted(name for name, _ in found.bad) == [f"label-1/bad-{i:02d}.wav" for i in range(25)]
    assert all("WAV, FLAC, Ogg or MP3" in reason for _, reason in found.bad)
    with pytest.raises(TwoPhaseError) as caught:
        made(folder, tmp_path / "w", "fail")
    assert str(caught.value).startswith("25 clips cannot be used (--on-bad-clip skip leaves them out):")
    assert all(f"label-1/bad-{i:02d}.wav" in str(caught.value) for i in range(25))
    assert len(counted) == 61  # and nothing was decoded twice
    assert ImageSet(tmp_path / "w" / "set").digest == found.digest  # the set of the run that ended well is still there


def test_a_clip_that_vanishes_after_planning(folder: Path, tmp_path: Path) -> None:
    dataset = read_source(folder)
    (folder / "label-0" / "03.wav").unlink()
    found = make_all(tmp_path / "w", dataset, "skip", lambda done, total: None)
    assert found.bad == [("label-0/03.wav", "is not there; give a place that exists")]
    with pytest.raises(TwoPhaseError, match=r"1 clip cannot be used .*\n  label-0/03\.wav: is not there"):
        make_all(tmp_path / "w", dataset, "fail", lambda done, total: None)


@pytest.mark.parametrize(
    ("clips", "words"), [(0, "no clip of the data can be used"), (1, "label 'label-0' has 1 usable clip;")]
)
def test_a_label_that_cannot_be_learned_is_named(tmp_path: Path, clips: int, words: str) -> None:
    folder = write_folder(tmp_path / "data", labels=2, clips=4)
    if clips:
        for path in sorted((folder / "label-0").iterdir())[clips:]:
            path.unlink()
    else:
        for path in folder.rglob("*.wav"):
            path.write_text(f"no sound: {path}")
    with pytest.raises(TwoPhaseError, match=words):
        made(folder, tmp_path / "w", "skip")


def test_a_store_of_another_front_end_is_refused_and_made_anew(folder: Path, tmp_path: Path) -> None:
    made(folder, tmp_path / "w")
    header = json.loads((tmp_path / "w" / "set" / "set.json").read_text())
    (tmp_path / "w" / "set" / "set.json").write_text(json.dumps({**header, "front_end": "fe-000000000000"}))
    with pytest.raises(TwoPhaseError, match="holds images of front end fe-000000000000, this program has fe-"):
        ImageSet(tmp_path / "w" / "set")


def test_a_set_that_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    made(folder, tmp_path / "w")
    with (tmp_path / "w" / "set" / "clips.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(TwoPhaseError, match=r"clips\.jsonl is not the one"):
        ImageSet(tmp_path / "w" / "set")
    with pytest.raises(TwoPhaseError, match="there is no such image set"):
        ImageSet(tmp_path / "nowhere")


def test_a_damaged_list_of_a_shard_is_named_and_a_short_one_found_out(folder: Path, tmp_path: Path) -> None:
    clips = read_source(folder).clips
    (shard,) = plan(clips, tmp_path / "shards", len(clips))
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(lines[:-1]) + lines[-1][:50])
    with pytest.raises(TwoPhaseError, match=r"shard-000\.jsonl: line 36 is no clip, the file is damaged"):
        images.make_shard(tmp_path / "images", shard)
    shard.write_text("".join(lines[:-1]))
    made = images.make_shard(tmp_path / "images", shard)
    with pytest.raises(TwoPhaseError, match="36 clips were planned and 35 came back"):
        images.collect([made], [shard], ["label-0"], tmp_path / "set", "skip", planned=36)


RUN = """
import sys
from pathlib import Path
from twophase.audio import images
from twophase.audio.dataset import read_source
from twophase.errors import TwoPhaseError
try:
    images.make_all(Path(sys.argv[2]), read_source(sys.argv[1]), "fail", lambda done, total: None)
except TwoPhaseError as error:
    sys.exit(f"twophase: {error}")
"""


def test_a_full_disk_is_one_message_and_the_next_run_ends_well(folder: Path, tmp_path: Path) -> None:
    """No file may grow past 64 kB, as on a disk with no more room."""
    command = [sys.executable, "-c", RUN, str(folder), str(tmp_path / "w")]

    def limited() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"twophase: {tmp_path / 'w'}")
    assert not list((tmp_path / "w" / "images").rglob("*.jsonl"))
    assert not (tmp_path / "w" / "set" / "set.json").exists()
    subprocess.run(command, check=True)
    made(folder, tmp_path / "undisturbed")
    for name, sha in content(tmp_path / "undisturbed").items():
        if name != "set/set.json":  # it names its store's place
            assert content(tmp_path / "w")[name] == sha


def test_two_runs_in_one_workdir(folder: Path, tmp_path: Path) -> None:
    from twophase.files import locked

    with locked(tmp_path / "w", "this workdir"), pytest.raises(TwoPhaseError, match=f"in use by process {os.getpid()}"):
        made(folder, tmp_path / "w")
