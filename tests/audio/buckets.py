"""Buckets for tests: emulators of three clouds on loopback, and a server before one of them that refuses at will."""

import http.client
import http.server
import itertools
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from twophase.audio import sources

# The emulator's own well-known account: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
AZURITE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint={}/devstoreaccount1;"
)
_numbers = itertools.count()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Clients of buckets that have not met another test's emulator, and a cache of this test's own."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which gcsfs reads when it is imported
    fsspec = pytest.importorskip("fsspec")
    sources._filesystem.cache_clear()
    for scheme in ("gs", "s3", "az"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield monkeypatch
    sources._filesystem.cache_clear()


@pytest.fixture
def google(fresh: pytest.MonkeyPatch) -> Iterator[str]:
    """A Cloud Storage emulator with the bucket `clips`."""
    server = pytest.importorskip("gcp_storage_emulator.server").create_server(
        "127.0.0.1", 0, in_memory=True, default_bucket="clips"
    )
    server.start()
    fresh.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")
    yield "gs://clips"
    server.stop()


@pytest.fixture
def amazon(fresh: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 emulator with the bucket `clips`."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        fresh.setenv(name, value)
    import fsspec

    fsspec.filesystem("s3").makedirs("clips", exist_ok=True)
    yield "s3://clips"
    server.stop()


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """The address of Azurite, Microsoft's emulator of Blob Storage, which npm has."""
    program = shutil.which("azurite-blob") or shutil.which("azurite-blob", path="node_modules/.bin")
    if program is None:
        pytest.skip("needs Azurite: npm install azurite, here or with azurite-blob on PATH")
    command = [program, "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--blobPort", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(filter(None, (re.search(r"listens on (http\S+)", line) for line in process.stdout)), None)
        if address is None:
            pytest.skip(f"needs Azurite, and {program} did not start")
        yield address[1]
        process.terminate()


@pytest.fixture
def microsoft(azurite: str, fresh: pytest.MonkeyPatch) -> str:
    """A container of an emulator of Azure's Blob Storage."""
    fresh.setenv("AZURE_STORAGE_CONNECTION_STRING", AZURITE.format(azurite))
    import fsspec

    container = f"clips{next(_numbers)}"
    fsspec.filesystem("az").mkdir(container)
    return f"az://{container}"


@pytest.fixture(params=["google", "amazon", "microsoft"])
def bucket(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


class Front(http.server.ThreadingHTTPServer):
    """A server before an emulator: it notes what is asked, and answers some of it itself."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.port = port
        self.seen: list[str] = []
        """`METHOD path body` of every request, the body's beginning only."""
        self.refuse: Callable[[str], int] = lambda asked: 0
        """The status to refuse a request with, or 0."""

    def reads(self, name: str) -> int:
        """How often the content of objects whose names hold this was asked for."""
        return sum(name in asked and "alt=media" in asked for asked in self.seen)


class _Forwarding(http.server.BaseHTTPRequestHandler):
    server: Front

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {self.path} {body[:400].decode('latin-1')}"  # an upload's name is in its body
        self.server.seen.append(asked)
        if status := self.server.refuse(asked):
            self._answer(status, b"refused")
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port)
        try:
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            self._answer(answer.status, answer.read(), answer.getheader("Content-Type") or "text/plain")
        finally:
            behind.close()

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _forward  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def front(google: str, fresh: pytest.MonkeyPatch) -> Iterator[Front]:
    """A server before the bucket `gs://clips`, whose client tries six times as ever, but without a pause."""
    import gcsfs.retry

    async def at_once(_: float) -> None:
        pass

    fresh.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=at_once))
    server = Front(int(os.environ["STORAGE_EMULATOR_HOST"].rpartition(":")[2]))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    fresh.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def upload(folder: Path, url: str) -> None:
    """Put the files of a folder into a bucket."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            sources.write(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())
