"""The little of Cloud Storage, by the official client, by gcsfs, and by those who mean no good."""

import os
from pathlib import Path

import httpx
import pytest
from gcsfs.core import GCSFileSystem
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from twophase.local.process import Address


def test_objects(platform: Address) -> None:
    client = storage.Client(project="p", credentials=AnonymousCredentials())
    bucket = client.create_bucket("some-bucket")
    blob = bucket.blob("a b/ü.txt")
    blob.upload_from_string("hello", if_generation_match=0)
    with pytest.raises(Exception, match="412"):
        blob.upload_from_string("again", if_generation_match=0)
    blob.upload_from_string("again", if_generation_match=blob.generation)
    assert blob.download_as_bytes() == b"again"
    assert blob.download_as_bytes(start=1, end=2) == b"ga"
    large = bucket.blob("large", chunk_size=1 << 18)
    large.upload_from_string(bytes(range(256)) * 4096, content_type="application/octet-stream")
    assert large.download_as_bytes() == bytes(range(256)) * 4096
    bucket.copy_blob(blob, bucket, "c")
    assert [b.name for b in client.list_blobs(bucket)] == ["a b/ü.txt", "c", "large"]
    listed = client.list_blobs(bucket, delimiter="/", page_size=1)
    assert [b.name for b in listed] == ["c", "large"]
    assert listed.prefixes == {"a b/"}
    for b in client.list_blobs(bucket):
        b.delete()
    bucket.delete()
    assert not bucket.exists()


@pytest.mark.filterwarnings("ignore")
def test_gcsfs(platform: Address, tmp_path: Path) -> None:
    """What fsspec's package for `gs://` sends: bare LFs between the parts of an upload, POSTs of its pieces."""
    gs = GCSFileSystem(endpoint_url=platform.url, token="anon", skip_instance_cache=True)
    tricky = b"one\n--==0==\ntwo\r\n\r\n"
    gs.pipe_file("twophase/a/tricky", tricky)
    assert gs.cat_file("twophase/a/tricky") == tricky
    assert gs.cat_file("twophase/a/tricky", start=1, end=3) == b"ne"
    large = tmp_path / "large"
    large.write_bytes(os.urandom(6 << 20))
    gs.put_file(str(large), "twophase/a/b/large")
    gs.get_file("twophase/a/b/large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert sorted(gs.find("twophase/a")) == ["twophase/a/b/large", "twophase/a/tricky"]
    never = gs.open("twophase/never", "wb", block_size=1 << 19)
    never.write(bytes(1 << 20))
    never.discard()
    gs.rm("twophase/a", recursive=True)
    assert gs.find("twophase") == []


@pytest.mark.parametrize(
    ("verb", "path", "code"),
    [
        ("GET", "b/twophase/o?prefix=/etc/", 200),
        ("GET", "b/twophase/o?prefix=../", 200),
        ("GET", "b/twophase/o?prefix=" + "x" * 300 + "/", 200),
        ("GET", "b/../o", 404),
        ("GET", "b/twophase/o/..%2F..%2Fplatform.sqlite?alt=media", 400),
        ("GET", "b/twophase/o/%2Fetc%2Fpasswd?alt=media", 400),
        ("GET", "b/twophase/o/" + "x" * 300, 400),
        ("POST", "b/twophase/o?uploadType=media&name=../x", 400),
        ("POST", "b/twophase/o?uploadType=media&name=" + "x" * 200, 400),
        ("POST", "b/twophase/o?uploadType=resumable&upload_id=none", 404),
        ("DELETE", "b/twophase/o?upload_id=none", 404),
    ],
)
def test_names_that_lead_out_or_nowhere(shared: httpx.Client, verb: str, path: str, code: int) -> None:
    answer = shared.request(verb, f"/{'storage' if verb == 'GET' else 'upload/storage'}/v1/{path}")
    assert answer.status_code == code, answer.text
    assert code >= 400 or not answer.json()["items"]
