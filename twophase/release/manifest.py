"""`release.json`: what a release is, what it computes, and the digests that prove that it is whole.

    RELEASE/
      saved_model.pb, variables/          phase 2 for TensorFlow; serving_default takes WAV bytes
      assets.extra/release.json           this manifest, written last: a folder without it is no release
      assets.extra/model-card.md          what it is for and what it does, for people (card.py)
      assets.extra/gate.tflite            phase 1: PCM window in, one logit out
      assets.extra/classifier.tflite      phase 2: image in, logits out (one a label, and one for none of these)
      assets.extra/golden/golden.npz      synthesised windows, and what both models answered when they were exported

The id hashes what the pair computes: weights, gate, classifier, labels, front end, operating point. Times, metrics and
lineage are not in it, nor are the SavedModel's protobufs, of which two exports of one model differ. Integrity is
another matter: `digests` covers every file, and `verify` compares them all.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twophase.audio.frontend import FRONT_END
from twophase.errors import TwoPhaseError
from twophase.files import JSON, digest, digest_of, read_json, write_json

SCHEMA = "twophase.release/1"
EXTRA = "assets.extra"
NONE = "none of these"
"""What the classifier's last output stands for."""


class ReleaseError(TwoPhaseError):
    """A folder that is no release, or no longer the one that was exported."""


@dataclass(frozen=True)
class OperatingPoint:
    """Gate threshold and classifier rejection, and what they did on validation data, on which they were chosen."""

    threshold: float
    """A clip is escalated when the mean logit of its audible windows is at least this."""
    chosen_by: str
    """The rule in words: a recall target, or costs."""
    recall: float
    """Share of wanted validation clips that are let through."""
    stopped: float
    """Share of unwanted validation clips that are stopped."""
    escalation_rate: float
    """Share of all validation clips that are let through."""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """The 95 % interval, [low, high], of each of the three shares, and of `cost`, for other clips of this kind, the
    point being what it is; releases before this field have none."""
    rejection: float = 0.0
    """The answer is `NONE` when the probability of the best label is below this; releases before this field have 0."""
    cost: float | None = None
    """Mean cost of a validation clip where costs chose the point, in the unit in which they were given."""


@dataclass(frozen=True)
class Manifest:
    """The content of `release.json`; `json-schema` in `release.schema.json`."""

    id: str
    labels: tuple[str, ...]
    """What the gate lets through and the classifier names, in the order of the classifier's outputs; `NONE` follows."""
    front_end: dict[str, Any]
    operating_point: OperatingPoint
    computes: dict[str, str]
    """Digests of what the id hashes: `gate`, `classifier`, `weights`."""
    digests: dict[str, str]
    """sha256 of every other file of the release, by relative path."""
    metrics: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    twophase: str = ""
    schema: str = SCHEMA

    @property
    def fingerprint(self) -> str:
        """The front end's fingerprint."""
        return str(self.front_end["fingerprint"])

    def to_json(self) -> JSON:
        """As it stands in `release.json`."""
        return {**asdict(self), "labels": list(self.labels)}


def front_end_json() -> dict[str, Any]:
    """This version's front end, as a manifest names it."""
    return {**asdict(FRONT_END), "fingerprint": FRONT_END.fingerprint}


def release_id(labels: tuple[str, ...], computes: dict[str, str], threshold: float, rejection: float = 0.0) -> str:
    """`r-<12 hex>` of what a pair computes; without a rejection the same as before there was one."""
    what = {"labels": list(labels), "front_end": front_end_json(), "computes": computes, "threshold": repr(threshold)}
    if rejection:
        what["rejection"] = repr(rejection)
    return "r-" + digest_of(what)[:12]


def files_of(release: Path) -> dict[str, str]:
    """sha256 of every file below `release` but the manifest itself, by relative path."""
    paths = sorted(p for p in release.rglob("*") if p.is_file())
    names = {p.relative_to(release).as_posix(): p for p in paths}
    return {name: digest(path) for name, path in names.items() if name != f"{EXTRA}/release.json"}


def write(release: Path, manifest: Manifest) -> None:
    """Write the manifest: the last file of an export."""
    write_json(release / EXTRA / "release.json", manifest.to_json())


def read(release: Path) -> Manifest:
    """The manifest of a release folder. Raises `ReleaseError` when it is none, or of another schema."""
    path = release / EXTRA / "release.json"
    if not path.is_file():
        raise ReleaseError(
            f"{release}: is no release: it has no {EXTRA}/release.json; give a folder that `twophase` exported"
        )
    value = read_json(path, "release manifest")
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise ReleaseError(f"{path}: has schema {found!r}; this version of twophase reads {SCHEMA!r}")
    try:
        point = OperatingPoint(**value.pop("operating_point"))
        return Manifest(**{**value, "labels": tuple(value["labels"]), "operating_point": point})
    except (KeyError, TypeError) as error:
        raise ReleaseError(f"{path}: is not a whole release manifest ({error}); export the release again") from None


def verify(release: Path) -> Manifest:
    """Read the manifest and compare every file with its digest. Raises `ReleaseError` naming the first that differs."""
    manifest = read(release)
    found = files_of(release)
    for name in sorted(manifest.digests.keys() | found.keys()):
        if found.get(name) != manifest.digests.get(name):
            state = (
                "is missing" if name not in found else "was added" if name not in manifest.digests else "was changed"
            )
            raise ReleaseError(
                f"{release}: {name} {state} since the export; "
                f"remove the folder and export it again, or take an untouched copy of {manifest.id}"
            )
    return manifest


def require_front_end(manifest: Manifest) -> None:
    """Raise `ReleaseError` when a release looks at other images than this program makes."""
    if manifest.fingerprint != FRONT_END.fingerprint:
        raise ReleaseError(
            f"{manifest.id}: was made for front end {manifest.fingerprint}, this program has {FRONT_END.fingerprint}; "
            "use the twophase version that exported it"
        )
