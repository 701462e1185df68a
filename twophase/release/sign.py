"""A release's gate for devices: signed into a repository of The Update Framework, and published from there.

    REPOSITORY/metadata/N.root.json, N.targets.json, N.snapshot.json, timestamp.json
    REPOSITORY/targets/HASH.gates.json                              which gates there are, and for what share of devices
    REPOSITORY/targets/r-.../assets.extra/[golden/]HASH.NAME        the release's own files
    KEYS/ROLE-<8 hex of the key's id>.pem                           private keys, Ed25519 in PKCS#8, mode 600

Every file but `timestamp.json` is written under a name that is never used again, and `timestamp.json` last: a reader
sees the state before or the state after, and a crash between leaves files that nothing refers to. Keys belong to the
person who signs: a folder inside the repository or inside a version-controlled tree is refused. The root key is needed
only to begin and to rotate, so it can be kept away from the machine that signs releases.
"""

import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.repository import Repository

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import digest, replacing, sync
from twophase.release import golden, manifest
from twophase.release.runtime import Pair

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
INDEX = "gates.json"
SHIPPED = (f"{manifest.EXTRA}/release.json", f"{manifest.EXTRA}/gate.tflite", golden.GOLDEN)
"""What a device needs of a release."""

_DAYS = {Root.type: 730, Targets.type: 365, Snapshot.type: 30, Timestamp.type: 30}
"""How long signatures hold; `renew` has to run before the shortest is over."""


@dataclass(frozen=True)
class Offer:
    """One gate as `gates.json` offers it."""

    release: str
    serial: int
    """Counts up with every release that is signed; a device never goes back."""
    percent: int
    """The share of devices that it is for."""


def sign(release: Path, repository: Path, keys: Path, percent: int) -> Offer:
    """Offer a release's gate to `percent` of the devices, or, where it is offered already, change that share.

    Older gates stay on offer until a newer one is for all. Raises `TwoPhaseError` when the release is not whole or does
    not answer as it did, or a key is missing.
    """
    if not 0 <= percent <= 100:
        raise UsageError(f"--percent {percent}: is no share of devices; give 0 to 100")
    found = manifest.verify(release)
    golden.replay(Pair(release), release)
    place = _open(repository, keys)
    offers = place.offers()
    known = next((offer for offer in offers if offer.release == found.id), None)
    serial = known.serial if known else 1 + max((offer.serial for offer in offers), default=0)
    new = Offer(found.id, serial, percent)
    offers = sorted([new, *(o for o in offers if o != known)], key=lambda offer: -offer.serial)
    for_all = next((i for i, offer in enumerate(offers) if offer.percent == 100), len(offers))
    place.offer(offers[: for_all + 1], release if known is None else None, found.id)
    return new


def renew(repository: Path, keys: Path) -> None:
    """Sign the present state again, for another 30 days."""
    _existing(repository)
    _open(repository, keys).finish(again=True)


def rotate(repository: Path, keys: Path, role: str) -> None:
    """Put a new key in the place of a role's; the old one is not accepted any more. The root key has to be there."""
    if role not in ROLES:
        raise UsageError(f"--rotate {role}: is no role; {', '.join(ROLES)} are")
    _existing(repository)
    _open(repository, keys).rotate(role)


def publish(repository: Path, to: Path) -> int:
    """Copy a repository to where devices read it, `timestamp.json` last; how many files were new.

    Raises `TwoPhaseError` when what is there is newer.
    """
    _existing(repository)
    last = repository / "metadata" / "timestamp.json"
    there = to / "metadata" / "timestamp.json"
    if there.is_file() and _version(there) > _version(last):
        raise TwoPhaseError(f"{to}: holds a newer state than {repository}; sign in an up-to-date copy of it")
    files = [p for p in repository.rglob("*") if p.is_file() and p != last and not p.name.startswith(".tmp-")]
    files.sort(key=lambda path: path.name.endswith(".root.json"))  # a new root is looked for before the timestamp
    new = [path for path in files if not (to / path.relative_to(repository)).is_file()]
    for path in (*new, last):
        with path.open("rb") as source, replacing(to / path.relative_to(repository)) as target:
            shutil.copyfileobj(source, target)
    return len(new)


class _Place(Repository):
    """The repository's folder, through python-tuf's own editing."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self._metadata, self._targets, self._keys = folder / "metadata", folder / "targets", keys

    def begin(self) -> None:
        """Make the four keys and the first metadata of each role."""
        with self.edit_root() as root:
            for role in ROLES:
                root.add_key(self._new_key(role), role)
        with self.edit_targets():
            pass
        self.finish()

    def offers(self) -> list[Offer]:
        """What is offered, highest serial first."""
        target = self.targets().targets.get(INDEX)
        if target is None:
            return []
        path = self._targets / f"{target.hashes['sha256']}.{INDEX}"
        return [Offer(**item) for item in json.loads(path.read_text())["gates"]]

    def offer(self, offers: list[Offer], release: Path | None, id: str) -> None:
        """Offer exactly these; `release` is the folder of the one that is new, by its `id`."""
        text = json.dumps({"gates": [vars(offer) for offer in offers]}, indent=1)
        index = TargetFile.from_data(INDEX, text.encode(), ["sha256"])
        self._put(index, text.encode())
        names = tuple(f"{offer.release}/" for offer in offers)
        with self.edit_targets() as targets:
            kept = {path: target for path, target in targets.targets.items() if path.startswith(names)}
            for name in SHIPPED if release else ():
                data = (release / name).read_bytes() if release else b""
                kept[f"{id}/{name}"] = TargetFile.from_data(f"{id}/{name}", data, ["sha256"])
                self._put(kept[f"{id}/{name}"], data)
            targets.targets = {**kept, INDEX: index}
        self.finish()

    def finish(self, again: bool = False) -> None:
        """Let everything follow that the root or the targets changed; the timestamp last, which is what readers see."""
        targets = self.open(Targets.type)
        try:
            self.root().verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
        except UnsignedMetadataError:  # signed with a key that was replaced
            with self.edit_targets():
                pass
        self.do_snapshot(force=again)
        self.do_timestamp(force=again)

    def rotate(self, role: str) -> None:
        """Replace a role's key in a new root, and sign what it signs again."""
        before = self.root()
        with self.edit_root() as root:
            for keyid in list(before.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(self._new_key(role), role)
        self.finish(again=True)

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """See `Repository`."""
        return {"targets.json": MetaFile(self.targets().version)}

    @property
    def snapshot_info(self) -> MetaFile:
        """See `Repository`."""
        return MetaFile(self.snapshot().version)

    def open(self, role: str) -> "Metadata[Any]":
        """The newest metadata of a role; version 0 of it where there is none."""
        path = self._newest(role)
        if path is not None:
            try:
                return Metadata.from_file(str(path))
            except RepositoryError as error:
                raise TwoPhaseError(f"{path}: cannot be read ({error}); take an untouched copy of it") from None
        made = {Root.type: Root, Targets.type: Targets, Snapshot.type: Snapshot, Timestamp.type: Timestamp}[role]()
        made.version = 0
        return Metadata(made)

    def close(self, role: str, md: "Metadata[Any]") -> None:
        """Write the next version of a role's metadata, signed by all of its keys; the root by its former ones too."""
        md.signed.version += 1
        md.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=_DAYS[role])
        root = md.signed if role == Root.type else self.root()
        signing = {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}
        if role == Root.type and md.signed.version > 1:
            before = self.root()
            signing |= {keyid: before.keys[keyid] for keyid in before.roles[role].keyids}
        md.signatures.clear()
        for key in signing.values():
            md.sign(self._signer(role, key), append=True)
        name = "timestamp.json" if role == Timestamp.type else f"{md.signed.version}.{role}.json"
        with replacing(self._metadata / name) as file:
            file.write(md.to_bytes())

    def _newest(self, role: str) -> Path | None:
        if role == Timestamp.type:
            path = self._metadata / "timestamp.json"
            return path if path.is_file() else None
        found = self._metadata.glob(f"[0-9]*.{role}.json")
        return max(found, key=lambda path: int(path.name.split(".")[0]), default=None)

    def _put(self, target: TargetFile, data: bytes) -> None:
        path = self._targets / target.path
        path = path.with_name(f"{target.hashes['sha256']}.{path.name}")
        if not path.is_file() or digest(path) != target.hashes["sha256"]:
            with replacing(path) as file:
                file.write(data)

    def _new_key(self, role: str) -> Key:
        signer = CryptoSigner.generate_ed25519()
        path = self._path(role, signer.public_key.keyid)
        self._keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(signer.private_bytes)
            file.flush()
            os.fsync(file.fileno())
        sync(self._keys)  # what it signs is believed from then on, so it must not be lost
        return signer.public_key

    def _signer(self, role: str, key: Key) -> CryptoSigner:
        path = self._path(role, key.keyid)
        try:
            private = load_pem_private_key(path.read_bytes(), None)
            if not isinstance(key, SSlibKey):
                raise ValueError("it is of another kind")
            return CryptoSigner(private, key)
        except (OSError, ValueError, TypeError) as error:
            raise TwoPhaseError(
                f"{path}: the {role} key cannot be used ({error}); name the folder that holds it, or rotate it with "
                "the root key"
            ) from None

    def _path(self, role: str, keyid: str) -> Path:
        return self._keys / f"{role}-{keyid[:8]}.pem"


def _open(repository: Path, keys: Path) -> _Place:
    """The repository, begun where it is not there yet. Raises `UsageError` for keys that would lie in the open."""
    keys, repository = keys.resolve(), repository.resolve()
    inside = next((p for p in (keys, *keys.parents) if p == repository or (p / ".git").exists()), None)
    if inside is not None:
        raise UsageError(f"--keys {keys}: lies inside {inside}, which others get to see; name a folder outside of it")
    place = _Place(repository, keys)
    if not (repository / "metadata" / "timestamp.json").is_file():
        if any((repository / "metadata").glob("*.root.json")):
            raise TwoPhaseError(f"{repository}: its beginning was interrupted; remove the folder and sign again")
        place.begin()
    return place


def _existing(repository: Path) -> None:
    if not (repository / "metadata" / "timestamp.json").is_file():
        raise TwoPhaseError(f"{repository}: is no update repository; `twophase release sign RELEASE` makes one")


def _version(timestamp: Path) -> int:
    try:
        return int(Metadata[Timestamp].from_file(str(timestamp)).signed.version)
    except RepositoryError as error:
        raise TwoPhaseError(f"{timestamp}: cannot be read ({error}); take an untouched copy of it") from None
