"""Places of clips: folders, byte ranges, buckets behind real emulators on loopback; and what cannot be reached."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audio.buckets import Front, upload
from tests.audio.clips import write_folder
from twophase.audio import sources
from twophase.audio.dataset import find_clips, read_source
from twophase.errors import TwoPhaseError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the emulators and the packages for buckets, none of ours


def test_a_bucket_is_read_like_a_folder(bucket: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", labels=2, clips=3)
    upload(folder, f"{bucket}/some/data")
    here, there = read_source(folder), read_source(f"{bucket}/some/data", workdir=tmp_path / "w")
    assert [(c.sha256, c.name, c.label, c.split) for c in there.clips] == [
        (c.sha256, c.name, c.label, c.split) for c in here.clips
    ]
    assert there.wanted == here.wanted
    assert all(c.path.startswith(f"{bucket}/some/data/label-") for c in there.clips)
    data = Path(here.clips[0].path).read_bytes()
    assert sources.read(there.clips[0].path) == data
    assert sources.read(f"{there.clips[0].path}#10+20") == data[10:30]
    assert all(f.stamp for f in sources.listing(f"{bucket}/some/data"))


def test_tables_and_tars_in_a_bucket(google: str, tmp_path: Path) -> None:
    import tarfile

    folder = write_folder(tmp_path / "data", labels=2, clips=2)
    (folder / "labels.csv").write_text("fname,label\nlabel-0/00.wav,A\nlabel-1/01.wav,B\n")
    upload(folder, f"{google}/table")
    assert [c.label for c in find_clips(f"{google}/table/labels.csv")[0]] != []
    assert {c.label for c in find_clips(f"{google}/table")[0]} == {"A", "B"}
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "shard-000.tar", "w") as archive:
        archive.add(folder / "label-0", "label-0")
    upload(tmp_path / "tars", f"{google}/tars")
    clips, _ = find_clips(f"{google}/tars")
    assert sorted(sources.read(c.path) for c in clips) == sorted(p.read_bytes() for p in folder.glob("label-0/*.wav"))


def test_an_object_that_is_not_there(bucket: str) -> None:
    with pytest.raises(sources.Unreachable, match="is not there"):
        sources.read(f"{bucket}/nothing.wav")
    with pytest.raises(TwoPhaseError, match="has no clips"):
        find_clips(f"{bucket}/nothing")


@pytest.mark.parametrize(("status", "words"), [(403, "gs://clips/data.*"), (503, "gs://clips/data.*try again")])
def test_a_bucket_that_refuses_is_named(front: Front, status: int, words: str) -> None:
    front.refuse = lambda asked: status
    with pytest.raises(sources.Unreachable, match=words):
        list(sources.listing("gs://clips/data"))
    with pytest.raises(sources.Unreachable, match=words) as caught:
        sources.read("gs://clips/data/a.wav")
    assert not caught.value.gone
    with pytest.raises(sources.Unreachable, match=words):
        sources.write("gs://clips/data/a.wav", b"x")


def test_an_unknown_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"nfs4://: cannot be read here .* gs://"):
        list(sources.listing("nfs4://server/clips"))


def test_an_account_that_is_not_named_is_a_usage_error(fresh: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adlfs")
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        fresh.delenv(name, raising=False)
    with pytest.raises(
        UsageError, match=r"az://: cannot be read here .*; log in; az:// also needs AZURE_STORAGE_ACCOUNT_NAME"
    ):
        sources.read("az://clips/a.wav")


def test_ranges_of_files(tmp_path: Path) -> None:
    (tmp_path / "a#1.bin").write_bytes(bytes(range(100)))
    assert sources.read(str(tmp_path / "a#1.bin")) == bytes(range(100))
    assert sources.read(f"{tmp_path}/a#1.bin#10+5") == bytes(range(10, 15))
    with pytest.raises(sources.Unreachable, match="is not there"):
        sources.read(str(tmp_path / "b.bin"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "a.wav").chmod(0)
    with pytest.raises(sources.Unreachable, match="may not be read"):
        sources.read(str(tmp_path / "a.wav"))


def test_a_listing_leaves_out_hidden_files_and_dangling_links(tmp_path: Path) -> None:
    for name in ("b/2.wav", "a/1.wav", ".git/x.wav", "a/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "dangling.wav").symlink_to("nowhere")
    assert [f.name for f in sources.listing(str(tmp_path))] == ["a/1.wav", "b/2.wav"]


COMMAND = """
import sys
from twophase.audio import sources
try:
    list(sources.listing("gs://clips/data"))
except sources.Unreachable as error:
    sys.exit(f"twophase: {error}")
"""


def test_a_bucket_that_refuses_is_one_line(front: Front) -> None:
    front.refuse = lambda asked: 403
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("twophase: gs://clips/data: ")
