"""What the manifests of published gates say that the field can be compared with.

home/updates/targets/GATE/assets.extra/HASH.release.json    as `twophase release publish` puts it there
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twophase.errors import TwoPhaseError
from twophase.files import read_json
from twophase.release import scores
from twophase.release.manifest import EXTRA


@dataclass(frozen=True)
class Published:
    """One gate's promises; None where its manifest does not make them, or is not here."""

    recall: float | None = None
    """What its threshold was chosen for."""
    spread: "NDArray[np.float64] | None" = None
    """The histograms of its validation clips, [2, BINS] (scores.py)."""


def published(home: Path, gate: str) -> Published:
    """What is promised of a gate, by a gateway's home folder."""
    for path in (home / "updates" / "targets" / gate / EXTRA).glob("*.release.json"):
        return _read(path)
    return Published()


@lru_cache(maxsize=100)
def _read(path: Path) -> Published:
    """A manifest's promises; its name is its digest, so that it never changes."""
    try:
        manifest: dict[str, Any] = read_json(path, "release manifest")
        return Published(float(manifest["operating_point"]["recall"]), scores.of_release(manifest.get("metrics", {})))
    except (TwoPhaseError, KeyError, TypeError, ValueError, AttributeError):
        return Published()  # not a manifest that says so
