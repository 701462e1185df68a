"""Golden windows: what both models answered when they were exported, asked again before a copy may take traffic.

    assets.extra/golden/golden.npz
      windows      float32 [n, samples]    synthesised, so that no training clip travels
      gate         float32 [n]             the exported gate's logit of each window
      classifier   float32 [n, labels + 1] the exported classifier's probabilities of each window

A release that is whole by its digests can still answer differently, on another processor or with another LiteRT. The
tolerances leave room for the order of floating-point sums and for nothing else.
"""

from pathlib import Path

import numpy as np

from twophase.audio.frontend import FRONT_END, Floats
from twophase.release.manifest import EXTRA, ReleaseError
from twophase.release.runtime import Pair

GOLDEN = f"{EXTRA}/golden/golden.npz"
LOGIT_TOLERANCE = 1e-2
PROBABILITY_TOLERANCE = 1e-3


def replay(pair: Pair, release: Path) -> None:
    """Ask a loaded pair the golden questions of its folder.

    Raises `ReleaseError` naming the model and the window that differs most, or the file when it cannot be read.
    """
    path = release / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as golden:
            windows, gate, classifier = (golden[name] for name in ("windows", "gate", "classifier"))
        FRONT_END.check(windows)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ReleaseError(f"{path}: the golden windows cannot be read ({error}); export the release again") from None
    images = FRONT_END.images(windows)
    probabilities = np.stack([pair.classifier.image_probabilities(image[None]) for image in images])
    _compare(pair, "gate", "logit", gate, pair.gate.scores(windows), LOGIT_TOLERANCE)
    _compare(pair, "classifier", "probability", classifier, probabilities, PROBABILITY_TOLERANCE)


def _compare(pair: Pair, model: str, what: str, expected: Floats, answered: Floats, tolerance: float) -> None:
    if expected.shape != answered.shape:
        raise ReleaseError(
            f"{pair.manifest.id}: the {model} answers {list(answered.shape)} to its golden windows, "
            f"not {list(expected.shape)}; export the release again"
        )
    off = np.abs(expected - answered)
    worst = float(off.max(initial=0.0))
    if not worst <= tolerance:  # so that NaN is refused too
        window = int(np.unravel_index(int(np.argmax(off)), off.shape)[0])
        raise ReleaseError(
            f"{pair.manifest.id}: the {model} does not answer here as it did when it was exported: golden window "
            f"{window}, {what} off by {worst:.4g}, at most {tolerance:g} is accepted; do not serve it on this machine"
        )
