"""Where a release comes from: folders, buckets and web servers, and what is refused."""

import http.server
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import read, verify
from twophase.serving import source
from twophase.serving.fetch import fetch
from twophase.serving.source import release_of


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP; what lies below `closed` needs credentials that nobody has."""

    def do_GET(self) -> None:
        if self.path.startswith("/closed"):
            self.send_error(403)
        else:
            super().do_GET()

    def end_headers(self) -> None:
        self.send_header("ETag", '"1"')  # Google's storage sends one with everything
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(release: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder with a copy of the release as `r`, and its address."""
    shutil.copytree(release, tmp_path / "web" / "r")
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "web", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_first_that_is_named_is_served(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MOUNTED", tmp_path / "models")
    monkeypatch.setattr(source, "SAGEMAKER", tmp_path / "sagemaker")
    with pytest.raises(UsageError, match="no release is in"):
        release_of({})
    shutil.copytree(release, tmp_path / "sagemaker")
    assert release_of({"AIP_STORAGE_URI": ""}) == tmp_path / "sagemaker"
    shutil.copytree(release, tmp_path / "models" / "name")
    assert release_of({"STORAGE_URI": "gs://not-read"}) == tmp_path / "models" / "name", "KServe has fetched it already"
    assert release_of({"AIP_STORAGE_URI": str(release)}) == release
    with pytest.raises(UsageError, match="holds no release"):
        release_of({"TWOPHASE_MODEL": str(tmp_path / "none"), "AZUREML_MODEL_DIR": str(release)})


def test_from_a_web_server(web: tuple[Path, str], release: Path, tmp_path: Path) -> None:
    folder, address = web
    found = fetch(f"{address}/r", tmp_path / "here")
    assert verify(found).id == read(release).id
    (found / "saved_model.pb").write_bytes(b"damaged")
    assert verify(fetch(f"{address}/r", tmp_path / "here")).id == read(release).id
    (folder / "r" / "saved_model.pb").unlink()
    assert fetch(f"{address}/r/", tmp_path / "here") == found, "what is whole here is not fetched again"


def test_from_google_cloud_storage(
    web: tuple[Path, str], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"gcs_base_url": web[1], "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    (web[0] / "bucket").mkdir()
    (web[0] / "r").rename(web[0] / "bucket" / "r")
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    assert verify(fetch("gs://bucket/r", tmp_path / "here")).id == read(release).id


def test_from_s3(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3", endpoint_url=endpoint)
        s3.create_bucket(Bucket="models")
        for path in release.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), "models", f"a/{path.relative_to(release).as_posix()}")
        assert verify(fetch("s3://models/a", tmp_path / "here")).id == read(release).id
        with pytest.raises(TwoPhaseError, match="is not there"):
            fetch("s3://models/b", tmp_path / "here")
    finally:
        server.stop()


def test_from_an_archive(web: tuple[Path, str], release: Path, tmp_path: Path) -> None:
    folder, address = web
    packed = folder / "r.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(release, "name")
    found = fetch(f"{address}/r.tar.gz", tmp_path / "here")
    assert verify(found).id == read(release).id
    packed.write_bytes(packed.read_bytes()[:2000])
    with pytest.raises(TwoPhaseError, match="no whole archive"):
        fetch(f"{address}/r.tar.gz", tmp_path / "there")
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(release / "saved_model.pb", "../escaped")
    with pytest.raises(TwoPhaseError, match="no whole archive"):
        fetch(f"{address}/r.tar.gz", tmp_path / "there")
    assert not (tmp_path / "there" / "escaped").exists()


def test_what_was_tampered_with_is_refused(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = web
    (folder / "r" / "assets.extra" / "gate.tflite").write_bytes(b"another gate")
    with pytest.raises(TwoPhaseError, match=r"gate\.tflite was changed"):
        fetch(f"{address}/r", tmp_path / "here")
    manifest = folder / "r" / "assets.extra" / "release.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"digests": {"../../escaped": "0" * 64}}))
    with pytest.raises(TwoPhaseError, match="outside its folder"):
        fetch(f"{address}/r", tmp_path / "here")
    manifest.write_text("{")
    with pytest.raises(TwoPhaseError, match="cannot be read"):
        fetch(f"{address}/r", tmp_path / "here")
    assert not any((tmp_path / "here").iterdir()), "nothing that was refused stays"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("{web}/closed/r", "may not be read"),
        ("{web}/nothing", "is not there"),
        ("http://127.0.0.1:1/r", "cannot be read"),
        ("ftp://x/r", "are accepted"),
    ],
)
def test_what_cannot_be_had_is_named(web: tuple[Path, str], tmp_path: Path, uri: str, words: str) -> None:
    with pytest.raises(TwoPhaseError, match=words):
        fetch(uri.format(web=web[1]), tmp_path / "here")


def test_the_program_names_what_it_was_told(web: tuple[Path, str]) -> None:
    with pytest.raises(TwoPhaseError, match=r"^AIP_STORAGE_URI: .*nothing.*is not there"):
        release_of({"AIP_STORAGE_URI": f"{web[1]}/nothing"})


def test_the_server_does_not_import_the_store() -> None:
    code = "import sys, twophase.serving.__main__; print('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
