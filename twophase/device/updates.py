"""Gate updates by The Update Framework: signed, fresh, never back; tried beside the gate in use before they replace it.

    STATE/root.json                     the first root of trust, from the last enrolment, or as soon as there is one
    STATE/updates/                      tuf's own metadata, the newest that was believed
    STATE/gates/r-0123456789ab/         gates as they were fetched, whole (gates.py)
    STATE/gates/current.json            which one is in use, and its serial, which only ever grows
    STATE/gates/failed.json             gates that did not pass on this device, and why: not tried again
    STATE/gates/halted.json             gates that the gateway halted, since they failed on others

`update` changes what is in use by renaming one file, after the new gate was loaded and decided its golden windows here.
A crash, a cut, a wrong signature, an older gate or a failing one leaves the gate in use as it is.

tuf and its parts take 25 MB that a device has no use for between updates, and a server that sends a byte a second would
hold it for ever: the agent runs this module as a program of its own, with an end to its time.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twophase.device.clock import Clock
from twophase.device.durable import write_new
from twophase.device.gates import FILES, LoadedGate
from twophase.device.identity import SCHEME, Identity
from twophase.errors import TwoPhaseError
from twophase.files import digest, disk_error, read_json, sync, sync_tree, write_json

if TYPE_CHECKING:
    from tuf.ngclient import Updater

ROOT = "root.json"


@dataclass(frozen=True)
class Outcome:
    """What came of looking for an update."""

    state: Literal["installed", "failed", "current", "waiting", "error"]
    """`failed`: the gate, on this device; `waiting`: for a plausible time, or a repository; `error`: may pass."""
    release: str = ""
    """The gate that was installed or failed."""
    reason: str = ""


def current(state: Path) -> tuple[Path, int]:
    """The folder of the gate in use, and its serial. Raises `TwoPhaseError` when there is none."""
    path = state / "gates" / "current.json"
    if not path.is_file():
        raise TwoPhaseError(f"{state}: has no gate; `twophase device update` fetches one, or enrol with --gate RELEASE")
    found = read_json(path, "choice of a gate")
    return state / "gates" / str(found["release"]), int(found["serial"])


def believe(state: Path, root: str) -> None:
    """Trust the repository that begins with this root, as an enrolment says.

    What was remembered of another repository ends with it, and so do its serials: they count anew.
    """
    path = state / ROOT
    if path.is_file() and path.read_text() != root:
        shutil.rmtree(state / "updates", ignore_errors=True)
        if (state / "gates" / "current.json").is_file():
            write_json(state / "gates" / "current.json", {"release": current(state)[0].name, "serial": 0})
    write_new(path, root.encode(), path.with_name(f".{ROOT}"))


def hindered(state: Path) -> str:
    """Why this device can believe no update now; empty when nothing hinders it."""
    if Identity.read(state).gateway.startswith(SCHEME):
        return "none without a gateway"
    if not (state / ROOT).is_file():
        return "none until the gateway has published"
    return "" if Clock(state).trusted else "none until the clock is plausible: signatures expire by it"


def _ask_for_root(state: Path, identity: Identity) -> None:
    """Believe the root that the gateway has by now: the same key and the same TLS as at the enrolment vouch for it."""
    from twophase.device.client import Client

    try:
        gate = current(state)[0].name
    except TwoPhaseError:  # none before the first update
        gate = None
    root = Client(identity, Clock(state).told).report({"gate": gate, "root": False}).get("root")
    if root and not (state / ROOT).is_file():  # an enrolment may have come first
        believe(state, str(root))


def install(state: Path, release: Path, serial: int = 0) -> str:
    """Put a release's gate in use on this device; its id. Raises `ReleaseError` when it does not decide as it did."""
    loaded = LoadedGate.load(release)
    folder = state / "gates" / loaded.id
    if folder.resolve() != release.resolve():
        aside = folder.with_name(f".new-{loaded.id}")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            for name in FILES:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(release / name, aside / name)
            _put(aside, folder)
        except OSError as error:
            raise disk_error(folder, error) from None
    write_json(state / "gates" / "current.json", {"release": loaded.id, "serial": serial})
    return loaded.id


def update(state: Path, url: str = "") -> Outcome:
    """Look for a newer gate for this device and put it in use.

    `url` is a static host of the repository; the gateway's by default. Raises `TwoPhaseError` when it cannot be asked,
    or what it says is not to be believed; the gate in use stays.
    """
    identity = Identity.read(state)
    if not (state / ROOT).is_file() and not identity.gateway.startswith(SCHEME):
        _ask_for_root(state, identity)
    if why := hindered(state):
        return Outcome("waiting", reason=why)
    url = url or identity.gateway.rstrip("/") + "/updates"
    with _believed(url):
        updater = _updater(state, url)
        offers = json.loads(_fetch(updater, "gates.json", state / "updates" / "gates.json").read_text())["gates"]
        for offer in offers:
            release, serial, percent = str(offer["release"]), int(offer["serial"]), int(offer["percent"])
            if serial <= _serial(state):
                break
            if release not in {**failed(state), **_kept(state, "halted")} and in_cohort(
                identity.device, release, percent
            ):
                return _try(state, updater, release, serial)
    return Outcome("current")


def in_cohort(device: str, release: str, percent: int) -> bool:
    """Whether a release that is for a share of devices is for this one; each release draws its own."""
    return int(hashlib.sha256(f"{device}/{release}".encode()).hexdigest()[:8], 16) % 100 < percent


def failed(state: Path) -> dict[str, str]:
    """Gates that did not pass on this device, and why."""
    return _kept(state, "failed")


def halt(state: Path, releases: list[str]) -> None:
    """Note which gates the gateway has halted."""
    if set(releases) != set(_kept(state, "halted")):
        write_json(state / "gates" / "halted.json", dict.fromkeys(releases, "halted by the gateway"))


def _try(state: Path, updater: "Updater", release: str, serial: int) -> Outcome:
    """Fetch a gate beside the one in use, ask it its golden questions, and put it in use."""
    if not re.fullmatch(r"r-[0-9a-f]{12}", release):
        raise ValueError(f"{release!r} is no release")
    gates = state / "gates"
    aside = gates / f".new-{release}"
    for left in gates.glob(".new-*"):  # by a crash
        shutil.rmtree(left, ignore_errors=True)
    try:
        for name in FILES:
            _fetch(updater, f"{release}/{name}", aside / name)
        try:
            found = LoadedGate.load(aside).id
            if found != release:
                raise TwoPhaseError(f"{release}: holds the gate of {found}")
        except TwoPhaseError as error:
            write_json(gates / "failed.json", {**failed(state), release: str(error)})
            return Outcome("failed", release, str(error))
        _put(aside, gates / release)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    before = current(state)[0].name if serial and (gates / "current.json").is_file() else ""
    write_json(gates / "current.json", {"release": release, "serial": serial})
    for old in gates.glob("r-*"):
        if old.name not in (release, before):
            shutil.rmtree(old, ignore_errors=True)
    return Outcome("installed", release)


def _put(aside: Path, folder: Path) -> None:
    """Put a gate in its place. One that is there, whole and the same, stays: it may be the one in use."""
    if all((folder / name).is_file() and digest(folder / name) == digest(aside / name) for name in FILES):
        shutil.rmtree(aside, ignore_errors=True)
        return
    sync_tree(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    sync(folder.parent)


def _serial(state: Path) -> int:
    return current(state)[1] if (state / "gates" / "current.json").is_file() else -1


def _kept(state: Path, what: str) -> dict[str, str]:
    try:
        return dict(read_json(state / "gates" / f"{what}.json", f"list of {what} gates"))
    except (TwoPhaseError, ValueError, TypeError):
        return {}


def _updater(state: Path, url: str) -> "Updater":
    from tuf.ngclient import Updater

    metadata = state / "updates" / "metadata"
    metadata.mkdir(parents=True, exist_ok=True)
    bootstrap = (state / ROOT).read_bytes()
    updater = Updater(str(metadata), f"{url}/metadata/", None, f"{url}/targets/", bootstrap=bootstrap)
    updater.refresh()
    sync_tree(metadata)
    return updater


def _fetch(updater: "Updater", target: str, to: Path) -> Path:
    info = updater.get_targetinfo(target)
    if info is None:
        raise ValueError(f"it has no {target}")
    to.parent.mkdir(parents=True, exist_ok=True)
    updater.download_target(info, str(to))
    return to


@contextmanager
def _believed(url: str) -> Iterator[None]:
    """What can go wrong with a repository, as one kind of error that says which."""
    import urllib3
    from tuf.api.exceptions import DownloadError, RepositoryError

    try:
        yield
    except RepositoryError as error:
        raise TwoPhaseError(f"{url}: is not believed ({error!r}); the gate in use stays") from None
    except (DownloadError, urllib3.exceptions.HTTPError) as error:
        raise TwoPhaseError(f"{url}: cannot be fetched ({error!r}); the gate in use stays") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TwoPhaseError(f"{url}: has no list of gates ({error}); the gate in use stays") from None
    except OSError as error:
        raise disk_error(Path(error.filename or url), error) from None


def main() -> None:
    """`python -m twophase.device.updates STATE [URL]`: one look for an update, its `Outcome` as one line of JSON."""
    try:
        outcome = update(Path(sys.argv[1]), *sys.argv[2:3])
    except TwoPhaseError as error:
        outcome = Outcome("error", reason=str(error))
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main()
