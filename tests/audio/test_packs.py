"""Packs: decoded once, whole or absent, the same bytes whoever writes them."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.audio.clips import write_clip, write_folder
from twophase.audio import frontend_compiled, packs
from twophase.audio.dataset import Clip, find_clips
from twophase.audio.decode import decode
from twophase.audio.frontend import FRONT_END
from twophase.audio.packs import make
from twophase.audio.store import Store
from twophase.errors import TwoPhaseError
from twophase.files import digest


def clips_of(folder: Path) -> list[Clip]:
    return list(find_clips(folder)[0])


def files_of(store: Path, pack: str) -> tuple[Path, Path]:
    """The images and the list of a pack."""
    return store / FRONT_END.fingerprint / f"{pack}.npy", store / FRONT_END.fingerprint / f"{pack}.jsonl"


def content(store: Path) -> dict[str, str]:
    return {p.relative_to(store).as_posix(): digest(p) for p in sorted(store.rglob("*")) if p.is_file()}


class Decoded:
    """Counts the clips that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        real = packs.decode_native

        def counting(data: bytes, name: str):
            self.names.append(name)
            return real(data, name)

        monkeypatch.setattr(packs, "decode_native", counting)


def test_a_pack_holds_the_front_ends_images(folder: Path, tmp_path: Path) -> None:
    clips = clips_of(folder)
    (pack,) = make(Store(tmp_path / "store"), clips).packs
    images = Store(tmp_path / "store").images(pack)
    by_sha = {c.sha256: c for c in clips}
    entries = Store(tmp_path / "store").entries(pack)
    assert [e.sha256 for e in entries] == sorted(by_sha)
    assert len(images) == sum(e.rows for e in entries)
    for entry in entries:
        pcm = decode(Path(by_sha[entry.sha256].path))
        expected = frontend_compiled.images(packs.windows_of(pcm))
        assert np.array_equal(images[entry.start : entry.start + entry.rows], expected)
        assert (entry.rate, entry.seconds) == (16_000, 0.5)
        assert entry.peak == pytest.approx(np.abs(pcm).max(), abs=1e-4)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bytes_whoever_writes(folder: Path, tmp_path: Path, workers: int) -> None:
    clips = clips_of(folder)
    make(Store(tmp_path / "a"), clips, workers=2)
    make(Store(tmp_path / "b"), clips[::-1], workers=workers)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_second_time_decodes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Decoded(monkeypatch)
    first = make(Store(tmp_path / "store"), clips_of(folder))
    assert len(decoded.names) == 36
    reported: list[int] = []
    assert make(Store(tmp_path / "store"), clips_of(folder), reported.append) == first
    assert len(decoded.names) == 36
    assert sum(reported) == 36


def test_new_clips_are_decoded_alone_and_renamed_ones_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(Store(tmp_path / "store"), clips_of(folder))
    (folder / "label-0" / "00.wav").rename(folder / "label-0" / "renamed.wav")
    write_clip(folder / "label-1" / "new.wav", hz=1234, seed=99)
    decoded = Decoded(monkeypatch)
    second = make(Store(tmp_path / "store"), clips_of(folder))
    assert decoded.names == ["label-1/new.wav"]
    assert set(first.packs) < set(second.packs)


def test_many_packs_are_copied_into_one_without_decoding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "MERGE", 3)
    clips = clips_of(folder)
    for n in range(6, 37, 10):
        made = make(Store(tmp_path / "store"), clips[:n])
    decoded = Decoded(monkeypatch)
    made = make(Store(tmp_path / "store"), clips)
    assert decoded.names == []
    (pack,) = made.packs
    make(Store(tmp_path / "undisturbed"), clips)
    assert Store(tmp_path / "store").prune({pack}) == 4
    assert content(tmp_path / "store") == content(tmp_path / "undisturbed")


def test_a_clip_that_cannot_be_used_is_an_entry_with_the_reason(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", labels=1, clips=2)
    (folder / "label-0" / "bad.wav").write_text("no sound")
    (pack,) = make(Store(tmp_path / "store"), clips_of(folder)).packs
    bad = [e for e in Store(tmp_path / "store").entries(pack) if e.error]
    assert len(bad) == 1
    assert bad[0].rows == 0
    assert "WAV, FLAC, Ogg or MP3" in bad[0].error


def test_silence_is_left_out_and_named(tmp_path: Path) -> None:
    import soundfile

    folder = write_folder(tmp_path / "data", labels=1, clips=1)
    soundfile.write(folder / "label-0" / "silent.wav", np.zeros(8000), 16_000)
    (pack,) = make(Store(tmp_path / "store"), clips_of(folder)).packs
    assert sorted(e.error for e in Store(tmp_path / "store").entries(pack)) == [
        "",
        "is silent; a clip with sound in it is needed",
    ]


def test_what_vanishes_after_planning_is_reported_and_asked_for_again(folder: Path, tmp_path: Path) -> None:
    clips = clips_of(folder)
    gone = next(c for c in clips if c.name == "label-0/03.wav")
    kept = Path(gone.path).read_bytes()
    Path(gone.path).unlink()
    made = make(Store(tmp_path / "store"), clips)
    assert made.gone == ((gone.sha256, "is not there; give a place that exists"),)
    Path(gone.path).write_bytes(kept[:-2] + b"!!")
    assert "has changed since" in make(Store(tmp_path / "store"), clips).gone[0][1]
    Path(gone.path).write_bytes(kept)
    again = make(Store(tmp_path / "store"), clips)
    assert again.gone == ()
    assert sum(1 for p in again.packs for _ in Store(tmp_path / "store").entries(p)) == 36


def test_a_place_that_refuses_fails_the_shard_and_keeps_what_was_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = clips_of(folder)
    refusing = Path(next(c for c in clips if c.name == "label-1/07.wav").path)
    kept = refusing.read_bytes()
    refusing.unlink()
    refusing.mkdir()
    with pytest.raises(TwoPhaseError, match=r"1 clips cannot be read now; what was read is kept.*07\.wav"):
        make(Store(tmp_path / "store"), clips)
    refusing.rmdir()
    refusing.write_bytes(kept)
    decoded = Decoded(monkeypatch)
    assert make(Store(tmp_path / "store"), clips).gone == ()
    assert decoded.names == ["label-1/07.wav"]


@pytest.mark.parametrize("damage", ["list", "no images", "short images", "no array"])
def test_a_damaged_pack_is_made_again(folder: Path, tmp_path: Path, damage: str) -> None:
    clips = clips_of(folder)
    (pack,) = make(Store(tmp_path / "store"), clips).packs
    whole = content(tmp_path / "store")
    images, entries = files_of(tmp_path / "store", pack)
    if damage == "list":
        entries.write_text(entries.read_text()[:-40])
    elif damage == "no images":
        images.unlink()
    elif damage == "short images":
        images.write_bytes(images.read_bytes()[:-5000])
    else:
        images.write_bytes(b"not an array")
    make(Store(tmp_path / "store"), clips)
    assert content(tmp_path / "store") == whole


def test_flipped_bits_are_found_when_images_are_copied(folder: Path, tmp_path: Path) -> None:
    clips = clips_of(folder)
    (pack,) = make(Store(tmp_path / "store"), clips).packs
    images, _ = files_of(tmp_path / "store", pack)
    data = bytearray(images.read_bytes())
    data[5000] ^= 1
    images.write_bytes(data)
    with pytest.raises(TwoPhaseError, match="are not those that were written"):
        Store(tmp_path / "store").forget({clips[0].sha256})


def test_two_writers_of_one_store_do_not_harm_each_other(folder: Path, tmp_path: Path) -> None:
    clips = clips_of(folder)
    threads = [threading.Thread(target=make, args=(Store(tmp_path / "store"), clips)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    make(Store(tmp_path / "alone"), clips)
    assert content(tmp_path / "store") == content(tmp_path / "alone")


def test_another_front_ends_images_are_not_touched(folder: Path, tmp_path: Path) -> None:
    make(Store(tmp_path / "store"), clips_of(folder))
    shutil.move(tmp_path / "store" / FRONT_END.fingerprint, tmp_path / "store" / "fe-000000000000")
    before = content(tmp_path / "store" / "fe-000000000000")
    (pack,) = make(Store(tmp_path / "store"), clips_of(folder)).packs
    Store(tmp_path / "store").prune({pack})
    assert content(tmp_path / "store" / "fe-000000000000") == before


def test_forgetting_leaves_no_row_behind(folder: Path, tmp_path: Path) -> None:
    clips = clips_of(folder)
    make(Store(tmp_path / "store"), clips)
    doomed = {c.sha256 for c in clips[::3]}
    assert Store(tmp_path / "store").forget(doomed) == 12
    make(Store(tmp_path / "without"), [c for c in clips if c.sha256 not in doomed])
    assert content(tmp_path / "store") == content(tmp_path / "without")


def test_a_list_from_elsewhere_is_named(tmp_path: Path) -> None:
    _, path = files_of(tmp_path, "x")
    path.parent.mkdir()
    path.write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(TwoPhaseError, match=r"x\.jsonl: this list of a pack cannot be read"):
        Store(tmp_path).entries("x")
