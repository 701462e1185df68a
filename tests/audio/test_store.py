"""The image store in a bucket: what one machine made no other makes again, whatever happens in between."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.audio.buckets import Front, upload
from tests.audio.clips import write_clip
from twophase.audio import forget, images, packs, sources
from twophase.audio.dataset import find_clips, read_source
from twophase.audio.frontend import FRONT_END
from twophase.audio.images import ImageSet
from twophase.audio.packs import make
from twophase.audio.store import Store
from twophase.errors import TwoPhaseError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the emulators and the packages for buckets, none of ours


def run(source: Path | str, workdir: Path, store: str) -> ImageSet:
    dataset = read_source(source, ["label-0"], workdir)
    return images.make_all(workdir, dataset, "fail", lambda done, total: None, store)


def content(store: str) -> dict[str, bytes]:
    """The objects of a store, by name."""
    return {f.name: sources.read(f.location) for f in sources.listing(store)}


def another_machine(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "another" / "cache"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips that are decoded."""
    names: list[str] = []
    real = packs.decode_native
    monkeypatch.setattr(packs, "decode_native", lambda data, name: (names.append(name), real(data, name))[1])
    return names


def test_what_one_machine_made_another_only_reads(
    bucket: str, folder: Path, tmp_path: Path, fresh: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    here = run(folder, tmp_path / "one", f"{bucket}/store")
    assert len(decoded) == 36
    assert here.digest == images.make_all(tmp_path / "alone", read_source(folder), "fail", lambda i, n: None).digest
    before = content(f"{bucket}/store")
    decoded.clear()

    another_machine(fresh, tmp_path)
    write_clip(folder / "label-1" / "new.wav", hz=1234, seed=99)
    there = run(folder, tmp_path / "two", f"{bucket}/store")
    assert decoded == ["label-1/new.wav"]
    assert before.items() < content(f"{bucket}/store").items()
    rows = np.flatnonzero(np.isin(there.clip_of_row, [i for i, c in enumerate(there.clips) if "new" not in c.name]))
    assert np.array_equal(there.take(rows), here.take(np.arange(len(here))))


def test_clips_and_images_in_buckets_are_read_once(front: Front, folder: Path, tmp_path: Path) -> None:
    upload(folder, "gs://clips/data")
    run("gs://clips/data", tmp_path / "w", "gs://clips/store")
    assert [front.reads(f"label-{i}%2F{j:02d}.wav") for i in range(3) for j in range(12)] == [1] * 36
    assert not (tmp_path / "w" / "fetched").exists()
    front.seen.clear()
    found = run("gs://clips/data", tmp_path / "w", "gs://clips/store")
    found.take(np.arange(len(found)))
    assert front.reads(".wav") == front.reads(".npy") == 0  # the images that this machine made are in its cache


def test_a_disk_without_room_reads_clips_twice(
    front: Front, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twophase.audio.fetched.MAX_BYTES", 100_000)
    upload(folder, "gs://clips/data")
    found = run("gs://clips/data", tmp_path / "w", "")
    assert len(found.clips) == 36
    assert 36 < front.reads(".wav") < 72


def test_a_bucket_out_of_order_for_a_while_is_survived(front: Front, folder: Path, tmp_path: Path) -> None:
    upload(folder, "gs://clips/data")
    refused: list[str] = []

    def now_and_then(asked: str) -> int:
        once = asked not in refused
        refused.append(asked)
        return 503 if once else 0

    front.refuse = now_and_then
    found = run("gs://clips/data", tmp_path / "w", "gs://clips/store")
    front.refuse = lambda asked: 0
    assert len(found.clips) == 36
    assert content("gs://clips/store").keys() == content(str(store_alone(folder, tmp_path))).keys()


def test_a_listing_that_a_bucket_ends_keeps_what_it_learned(
    front: Front, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twophase.audio.dataset._BATCH", 8)
    upload(folder, "gs://clips/data")
    front.refuse = lambda asked: 503 if "label-2%2F05.wav?alt" in asked else 0
    with pytest.raises(TwoPhaseError, match=r"gs://clips/data/label-2/05\.wav: cannot be read"):
        find_clips("gs://clips/data", tmp_path / "w")
    front.refuse = lambda asked: 0
    front.seen.clear()
    assert len(find_clips("gs://clips/data", tmp_path / "w")[0]) == 36
    assert front.reads(".wav") == 36 - 3 * 8 - 7


def store_alone(folder: Path, tmp_path: Path) -> Path:
    make(Store(tmp_path / "alone"), list(find_clips(folder)[0]))
    return tmp_path / "alone"


@pytest.mark.parametrize(("what", "status"), [("label-1%2F07.wav", 503), (".npy", 403), (".jsonl", 503)])
def test_a_bucket_that_stays_out_of_order_is_named_and_what_was_done_is_kept(
    front: Front, folder: Path, tmp_path: Path, what: str, status: int, decoded: list[str]
) -> None:
    """Refused are a clip after it was listed, a pack's images and its list, when they are read and when written."""
    upload(folder, "gs://clips/data")
    dataset = read_source("gs://clips/data", ["label-0"])
    front.refuse = lambda asked: status if what in asked else 0
    with pytest.raises(TwoPhaseError, match=r"gs://clips/\S+: (cannot be|may not be) (read|written)"):
        images.make_all(tmp_path / "w", dataset, "skip", lambda i, n: None, "gs://clips/store")
    front.refuse = lambda asked: 0
    lists = [name for name in content("gs://clips/store") if name.endswith(".jsonl")]
    assert len(lists) == (what == "label-1%2F07.wav")  # no pack is there that is not whole
    decoded.clear()
    images.make_all(tmp_path / "w", dataset, "fail", lambda i, n: None, "gs://clips/store")
    assert decoded == ["label-1/07.wav"] if lists else len(decoded) == 36
    shas = {c.sha256 for c in dataset.clips}
    assert Store("gs://clips/store").lookup(shas).keys() == shas


def test_writers_at_once_lose_nothing_and_double_nothing(google: str, folder: Path, tmp_path: Path) -> None:
    """The same clips from four writers, and two halves that overlap: as machines without a common disk would."""
    clips = list(find_clips(folder)[0])
    work = [clips, clips, clips[:24], clips[12:]]
    writers = [threading.Thread(target=make, args=(Store("gs://clips/store"), some)) for some in work]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    store = Store("gs://clips/store")
    assert store.lookup(c.sha256 for c in clips).keys() == {c.sha256 for c in clips}
    copied = [images.tobytes() for images, _ in store.copies(store.lookup(c.sha256 for c in clips))]  # each is checked
    alone = Store(store_alone(folder, tmp_path))
    assert copied == [images.tobytes() for images, _ in alone.copies(alone.lookup(c.sha256 for c in clips))]


def test_two_runs_on_one_store_leave_each_other_their_packs(google: str, folder: Path, tmp_path: Path) -> None:
    first = run(folder, tmp_path / "one", "gs://clips/store")
    for path in (folder / "label-2").glob("0*.wav"):
        path.unlink()
    run(folder, tmp_path / "two", "gs://clips/store")
    shutil.rmtree(tmp_path / "cache")
    assert len(ImageSet(tmp_path / "one" / "set").take(np.arange(len(first)))) == len(first)


@pytest.mark.parametrize("damage", ["flipped", "short", "none", "list"])
def test_a_damaged_pack_in_a_bucket_is_named_or_made_again(
    google: str, folder: Path, tmp_path: Path, damage: str, fresh: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "one", "gs://clips/store")
    whole = content("gs://clips/store")
    (images_name,), (list_name,) = ([n for n in whole if n.endswith(kind)] for kind in (".npy", ".jsonl"))
    data = bytearray(whole[images_name])
    data[5000] ^= 1
    at = f"gs://clips/store/{images_name}"
    if damage == "none":
        sources.remove(at)
    elif damage == "list":
        sources.write(f"gs://clips/store/{list_name}", whole[list_name][:-40])
    else:
        sources.write(at, bytes(data) if damage == "flipped" else whole[images_name][:-5000])
    another_machine(fresh, tmp_path)
    found = run(folder, tmp_path / "two", "gs://clips/store")
    if damage == "flipped":
        with pytest.raises(TwoPhaseError, match=rf"{images_name}: the images of clip .* are not those that were"):
            found.take(np.arange(3))
    else:
        assert len(found.take(np.arange(len(found)))) == len(found)
        assert content("gs://clips/store") == whole


def test_another_front_ends_images_in_a_bucket_are_left_alone(google: str, folder: Path, tmp_path: Path) -> None:
    sources.write("gs://clips/store/fe-000000000000/00000000-ffffffff-0123456789abcdef.jsonl", b"theirs")
    run(folder, tmp_path / "w", "gs://clips/store")
    assert content("gs://clips/store")["fe-000000000000/00000000-ffffffff-0123456789abcdef.jsonl"] == b"theirs"


def test_forgetting_reaches_into_the_bucket(google: str, folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "w", "gs://clips/store")
    sources.write("gs://clips/store/fe-000000000000/00000000-ffffffff-0123456789abcdef.npy", b"may hold them")
    found = forget.forget(tmp_path / "w", "label-2")
    assert found.with_images == 12
    (left,) = [n for n in content("gs://clips/store") if n.endswith(".jsonl")]
    pack = left.removeprefix(f"{FRONT_END.fingerprint}/").removesuffix(".jsonl")
    held = {e.sha256 for e in Store("gs://clips/store").entries(pack)}
    assert held == {c.sha256 for c in find_clips(folder)[0] if c.label != "label-2"}
    assert len(content("gs://clips/store")) == 2
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_clip_that_vanishes_from_a_bucket_after_planning(google: str, folder: Path, tmp_path: Path) -> None:
    upload(folder, "gs://clips/data")
    dataset = read_source("gs://clips/data", ["label-0"])
    sources.remove("gs://clips/data/label-0/03.wav")
    sources.write("gs://clips/data/label-0/04.wav", b"another sound")
    found = images.make_all(tmp_path / "w", dataset, "skip", lambda done, total: None)
    assert sorted(found.bad) == [
        ("label-0/03.wav", "is not there; give a place that exists"),
        ("label-0/04.wav", "has changed since the clips were listed; run again"),
    ]


def test_a_machine_that_may_not_write_its_cache_is_told_so(
    google: str, folder: Path, fresh: pytest.MonkeyPatch
) -> None:
    fresh.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(TwoPhaseError, match=r"/dev/null/twophase/images/.*: .*give a folder"):
        make(Store("gs://clips/store"), list(find_clips(folder)[0])[:2])


KILLED = """
import os, sys
from pathlib import Path
from twophase.audio import sources
from twophase.audio.dataset import find_clips
from twophase.audio.packs import make
from twophase.audio.store import Store
real = sources.upload
def dying(file, url):
    if url.endswith(sys.argv[2]):
        os.kill(os.getpid(), 9)
    real(file, url)
sources.upload = dying
make(Store("gs://clips/store"), list(find_clips(sys.argv[1])[0]))
"""


@pytest.mark.parametrize("before", [".npy", ".jsonl"])
def test_a_machine_that_dies_while_uploading_leaves_no_half_pack(
    google: str, folder: Path, tmp_path: Path, before: str
) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED, str(folder), before], check=False)
    assert died.returncode == -9
    assert Store("gs://clips/store").lookup(c.sha256 for c in find_clips(folder)[0]) == {}
    make(Store("gs://clips/store"), list(find_clips(folder)[0]))
    assert content("gs://clips/store") == content(str(store_alone(folder, tmp_path)))
