"""Azurite, Microsoft's emulator of blob storage, in a process of its own, where it is installed."""

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas

_KEY = base64.b64encode(b"loopback").decode()


class Blobs:
    """The container of a workspace's store."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sas = generate_container_sas(
            "account",
            "store",
            account_key=_KEY,
            permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        self._client = ContainerClient(
            f"https://account.blob.localhost:{port}",
            "store",
            credential={"account_name": "account", "account_key": _KEY},
        )
        self._client.create_container()

    def pull(self, prefix: str, folder: Path) -> None:
        """Copy blobs below a prefix into a folder, by their whole names."""
        for name in self._client.list_blob_names(name_starts_with=prefix):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self._client.download_blob(name).readall())

    def push(self, prefix: str, folder: Path) -> None:
        """Copy what a folder has below a prefix into blobs."""
        for path in filter(Path.is_file, (folder / prefix).rglob("*")):
            self._client.upload_blob(path.relative_to(folder).as_posix(), path.read_bytes(), overwrite=True)

    def close(self) -> None:
        self._client.close()


@contextmanager
def azurite(certificate: Path) -> Iterator[Blobs]:
    """Blobs at `https://account.blob.localhost:PORT/store`; skips the test where Azurite is not installed."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install --global azurite")
    process = subprocess.Popen(
        [
            *(program, "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck"),
            *("--blobPort", "0", "--cert", str(certificate), "--key", str(certificate)),
        ],
        env={**os.environ, "AZURITE_ACCOUNTS": f"account:{_KEY}"},
        cwd=certificate.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        listening = next(line for line in process.stdout if "successfully listens" in line)
        blobs = Blobs(int(listening.rpartition(":")[2]))
        yield blobs
        blobs.close()
    finally:
        process.terminate()
        process.communicate()
