"""The update repository, read by python-tuf's own client, and what attackers and accidents do to it."""

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tuf.api.exceptions import BadVersionNumberError, DownloadError, RepositoryError
from tuf.ngclient import Updater

from twophase.errors import TwoPhaseError, UsageError
from twophase.release import sign
from twophase.release.manifest import EXTRA, read


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
    from standin import make

    folder = tmp_path_factory.mktemp("releases")
    return [make(folder / str(seed), seed=seed) for seed in (1, 2)]


class Site:
    """A static host, and a client of it that remembers what it trusts."""

    def __init__(self, folder: Path, url: str) -> None:
        self.repository, self.keys, self.public = folder / "repository", folder / "keys", folder / "public"
        self._client, self._url = folder / "client", url

    def sign(self, release: Path, percent: int = 100) -> sign.Offer:
        offer = sign.sign(release, self.repository, self.keys, percent)
        sign.publish(self.repository, self.public)
        return offer

    def fetch(self, *names: str) -> list[bytes]:
        """What a device gets of these targets now; it trusts the first root that there ever was."""
        (self._client / "targets").mkdir(parents=True, exist_ok=True)
        updater = Updater(
            str(self._client),
            f"{self._url}/metadata/",
            str(self._client / "targets"),
            f"{self._url}/targets/",
            bootstrap=(self.repository / "metadata" / "1.root.json").read_bytes(),
        )
        found = []
        for name in names:
            target = updater.get_targetinfo(name)
            assert target is not None, name
            found.append(Path(updater.download_target(target)).read_bytes())
        return found

    def gates(self) -> list[dict]:
        return json.loads(self.fetch(sign.INDEX)[0])["gates"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "public").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "public")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Site(tmp_path, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


def test_cohorts_widen_and_the_older_gate_stays_until_all_have_the_newer(site: Site, releases: list[Path]) -> None:
    old, new = (read(release).id for release in releases)
    site.sign(releases[0])
    assert site.gates() == [{"release": old, "serial": 1, "percent": 100}]
    site.sign(releases[1], 1)
    site.sign(releases[1], 10)
    assert site.gates() == [
        {"release": new, "serial": 2, "percent": 10},
        {"release": old, "serial": 1, "percent": 100},
    ]
    for release, id in ((releases[0], old), (releases[1], new)):
        assert site.fetch(*(f"{id}/{name}" for name in sign.SHIPPED)) == [
            (release / n).read_bytes() for n in sign.SHIPPED
        ]
    site.sign(releases[1], 100)
    assert site.gates() == [{"release": new, "serial": 2, "percent": 100}]
    with pytest.raises(AssertionError):
        site.fetch(f"{old}/{EXTRA}/gate.tflite")


@pytest.mark.parametrize("role", sign.ROLES)
def test_keys_are_rotated_and_the_old_ones_refused(role: str, site: Site, releases: list[Path]) -> None:
    site.sign(releases[0])
    site.gates()
    (old,) = site.keys.glob(f"{role}-*.pem")
    sign.rotate(site.repository, site.keys, role)
    sign.publish(site.repository, site.public)
    site.gates()
    old.unlink()
    site.sign(releases[1])
    assert len(site.gates()) == 1
    for key in site.keys.glob(f"{role}-*.pem"):
        assert key.stat().st_mode & 0o77 == 0
        key.unlink()
    if role != "root":  # which signing a release does not need
        with pytest.raises(TwoPhaseError, match=f"the {role} key cannot be used"):
            site.sign(releases[0])


def test_an_older_state_is_refused(site: Site, releases: list[Path]) -> None:
    site.sign(releases[0])
    shutil.copytree(site.public, site.public.parent / "before")
    site.sign(releases[1])
    site.gates()
    shutil.copy(site.public.parent / "before" / "metadata" / "timestamp.json", site.public / "metadata")
    with pytest.raises(BadVersionNumberError):
        site.gates()
    sign.publish(site.repository, site.public)
    shutil.rmtree(site.repository)
    shutil.copytree(site.public.parent / "before", site.repository)
    with pytest.raises(TwoPhaseError, match="newer state"):
        sign.publish(site.repository, site.public)


def test_what_is_signed_by_others_is_refused(site: Site, releases: list[Path], tmp_path: Path) -> None:
    site.sign(releases[0])
    site.gates()
    thief = Site(tmp_path / "thief", "")
    thief.sign(releases[0])
    for _ in range(3):  # a higher version of everything, but of the root
        thief.sign(releases[1])
    for path in (thief.public / "metadata").glob("*.json"):
        if "root" not in path.name:
            shutil.copy(path, site.public / "metadata")
    shutil.copytree(thief.public / "targets", site.public / "targets", dirs_exist_ok=True)
    with pytest.raises(RepositoryError):
        site.gates()


@pytest.mark.parametrize("harm", ["truncated", "changed", "longer", "missing"])
@pytest.mark.parametrize("what", ["timestamp.json", "*.targets.json", "*.gate.tflite"])
def test_harmed_files_are_refused(harm: str, what: str, site: Site, releases: list[Path]) -> None:
    site.sign(releases[0])
    path = max(site.public.rglob(what))
    data = path.read_bytes()
    middle = len(data) // 2
    if harm == "missing":
        path.unlink()
    else:
        harmed = {
            "truncated": data[:middle],
            "changed": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "longer": data + b"x" * 6_000_000,
        }
        path.write_bytes(harmed[harm])
    with pytest.raises((RepositoryError, DownloadError)):
        site.fetch(f"{read(releases[0]).id}/{EXTRA}/gate.tflite")
    path.write_bytes(data)
    assert site.gates()


def test_keys_do_not_lie_where_others_see_them(site: Site, releases: list[Path], tmp_path: Path) -> None:
    (tmp_path / "tree" / ".git").mkdir(parents=True)
    for keys in (site.repository / "keys", tmp_path / "tree" / "keys"):
        with pytest.raises(UsageError, match="lies inside"):
            sign.sign(releases[0], site.repository, keys, 1)
    with pytest.raises(UsageError, match="0 to 100"):
        sign.sign(releases[0], site.repository, site.keys, 101)
    with pytest.raises(TwoPhaseError, match="is no update repository"):
        sign.publish(tmp_path / "nothing", site.public)
    with pytest.raises(UsageError, match="is no role"):
        sign.rotate(site.repository, site.keys, "boss")
    broken = tmp_path / "broken"
    shutil.copytree(releases[0], broken)
    (broken / EXTRA / "gate.tflite").write_bytes(b"x")
    with pytest.raises(TwoPhaseError, match=r"gate\.tflite was changed"):
        sign.sign(broken, site.repository, site.keys, 1)
