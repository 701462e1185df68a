"""The platform's file: schemas only grow, released ones are brought up to date, and a full disk is said to be one."""

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from twophase.errors import TwoPhaseError
from twophase.files import digest
from twophase.local.store import MIGRATIONS, Store

RELEASED = {
    "0001 models, versions, aliases, resources": "d0a36cf5cb2f56edbf5d54b53c71e3931d05c428672a9d6877b18375d9d8bd7c"
}
"""Every migration that was ever released, and the start of its script's digest: they are appended, never edited."""
ROWS = """
INSERT INTO model VALUES ('projects/p/locations/l/models/1', 'projects/p/locations/l', 2, '2026-01-01T00:00:00Z');
INSERT INTO version VALUES ('projects/p/locations/l/models/1', 1, 'r-1', CAST('{"displayName": "m"}' AS BLOB));
INSERT INTO alias VALUES ('projects/p/locations/l/models/1', 'default', 1);
INSERT INTO resource VALUES
    ('projects/p/locations/l/endpoints/1', 'endpoint', 'projects/p/locations/l', '2026-01-01', '{"name": "e"}');
INSERT INTO deployed VALUES ('projects/p/locations/l/endpoints/1', '7', 'projects/p/locations/l/models/1', 1);
"""
"""What schema 0001 may hold, a row of each table."""


def test_released_migrations_stay_as_they_are() -> None:
    assert (
        dict(list({name: digest(script.encode()) for name, script in MIGRATIONS}.items())[: len(RELEASED)]) == RELEASED
    )


@pytest.mark.parametrize("released", range(1, len(RELEASED) + 1))
def test_a_file_of_every_released_schema_is_brought_up_to_date(tmp_path: Path, released: int) -> None:
    path = tmp_path / "platform.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE migration (name TEXT PRIMARY KEY)")
        for name, script in MIGRATIONS[:released]:
            db.executescript(script)
            db.execute("INSERT INTO migration VALUES (?)", (name,))
        db.executescript(ROWS)
    db.close()
    for _ in range(2):  # the second time there is nothing to do
        store = Store(path)
        assert [row["name"] for row in store.all("SELECT name FROM migration ORDER BY name")] == [
            name for name, _ in MIGRATIONS
        ]
        assert store.get("endpoint", "projects/p/locations/l/endpoints/1") == {"name": "e"}
        for table in ("model", "version", "alias", "deployed"):
            assert len(store.all(f"SELECT * FROM {table}")) == 1
        store.close()


def test_newer_and_broken_files_are_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    Store(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("INSERT INTO migration VALUES ('9999 of the future')")
    db.close()
    with pytest.raises(TwoPhaseError, match="newer twophase"):
        Store(newer)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 100)
    with pytest.raises(TwoPhaseError, match="cannot be used"):
        Store(broken)


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # no file grows past this: a disk that fills
from twophase.local.__main__ import main
sys.exit(main())
"""


def test_a_full_disk_refuses_changes_and_keeps_what_was_committed(tmp_path: Path, releases: tuple[Path, Path]) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "saved_model.pb").write_bytes(bytes(700_000))
    process = subprocess.Popen([sys.executable, "-c", FULL, "--home", str(tmp_path / "home")])
    try:
        url = ""
        while not url:
            assert process.poll() is None
            time.sleep(0.05)
            record = tmp_path / "home" / "server.json"
            url = json.loads(record.read_text())["url"] if record.is_file() else ""
        with httpx.Client(base_url=f"{url}/v1/projects/p/locations/l/", timeout=30) as http:
            made = 1
            endpoint = http.post("endpoints", json={"displayName": "e"}).json()["response"]["name"]
            upload = {"model": {"displayName": "m", "artifactUri": str(releases[0])}}
            model = http.post("./models:upload", json=upload).raise_for_status().json()["response"]["model"]
            deploy = {"deployedModel": {"model": model}, "trafficSplit": {"0": 100}}
            http.post(f"{url}/v1/{endpoint}:deployModel", json=deploy).raise_for_status()
            while (
                answer := http.post("endpoints", json={"displayName": "e" * 100, "description": "d" * 10_000})
            ).is_success:
                made += 1
            assert answer.json()["error"]["code"] == 507
            assert "free some room" in answer.text
            assert made > 1
            upload = {"model": {"displayName": "m", "artifactUri": str(large)}}
            assert http.post("./models:upload", json=upload).status_code == 507
            put = f"{url}/upload/storage/v1/b/twophase/o?uploadType=media&name=o"
            assert http.post(put, content=bytes(700_000)).status_code == 507
            image = {"instances": [[[0] * 64] * 61]}
            assert http.post(f"{url}/v1/{endpoint}:predict", json=image).status_code == 200, "predictions go on"
            assert len(http.get("endpoints").json()["endpoints"]) == made, "it lives, and has all it said it has"
    finally:
        process.terminate()
        assert process.wait(30) == 0
