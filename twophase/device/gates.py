"""The gate of a release on this device: checked, loaded beside the old one, and asked its golden questions here.

    GATES/r-0123456789ab/assets.extra/release.json, gate.tflite, golden/golden.npz    a release's own files, unchanged

A gate is used only when its files have the manifest's digests, its front end is this program's, and it decides its
golden windows on this very processor as it did when it was exported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from twophase.audio.frontend import FRONT_END
from twophase.device.clip import PCM
from twophase.files import digest
from twophase.release.golden import GOLDEN, LOGIT_TOLERANCE
from twophase.release.manifest import EXTRA, Manifest, ReleaseError, read, require_front_end
from twophase.release.runtime import Gate

FILES = (f"{EXTRA}/release.json", f"{EXTRA}/gate.tflite", GOLDEN)
"""What a device needs of a release."""


@dataclass(frozen=True)
class LoadedGate:
    """A gate that decides on this device as it did when it was exported."""

    manifest: Manifest
    gate: Gate

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The gate of a release folder, or of a folder with `FILES` of one. Raises `ReleaseError`."""
        manifest = read(folder)
        require_front_end(manifest)
        for name in FILES[1:]:
            path = folder / name
            if not path.is_file() or digest(path) != manifest.digests.get(name):
                state = "was changed" if path.is_file() else "is missing"
                raise ReleaseError(f"{folder}: {name} {state}; fetch {manifest.id} again")
        try:
            loaded = cls(manifest, Gate(folder / FILES[1]))
        except (ValueError, RuntimeError) as error:
            raise ReleaseError(f"{folder}: {FILES[1]} cannot be loaded ({error}); fetch {manifest.id} again") from None
        loaded._decide_golden(folder / GOLDEN)
        return loaded

    @property
    def id(self) -> str:
        """The release's id."""
        return self.manifest.id

    @property
    def threshold(self) -> float:
        """What a logit is compared with."""
        return self.manifest.operating_point.threshold

    def margin(self, pcm: PCM) -> float:
        """How far above the threshold a clip is: int16 [n] at 16 kHz."""
        return self.gate.clip_score(pcm * np.float32(1 / 32768)) - self.threshold

    def _decide_golden(self, path: Path) -> None:
        """Raise `ReleaseError` unless every golden window is decided as when it was exported.

        Decided: its logit is within the release's tolerance, which is wide enough for other processors' order of sums.
        """
        try:
            with np.load(path, allow_pickle=False) as golden:
                windows, expected = golden["windows"], golden["gate"]
            FRONT_END.check(windows)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ReleaseError(f"{path}: the golden windows cannot be read ({error}); fetch the gate again") from None
        answered: Any = self.gate.scores(windows)
        off = np.abs(answered - expected) if answered.shape == expected.shape else np.array([np.inf])
        if not (len(off) and off.max() <= LOGIT_TOLERANCE):
            raise ReleaseError(
                f"{self.id}: the gate does not decide here as it did when it was exported: golden window "
                f"{int(np.argmax(off))}, logit off by {float(off.max(initial=0.0)):.4g}, at most {LOGIT_TOLERANCE:g} "
                "is accepted; the gate in use stays"
            )
