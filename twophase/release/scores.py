"""How a gate's scores are spread: one histogram for training, devices and the gateway.

A window's score counts relative to the gate's threshold, in bins half a logit wide, half of them on each side; the
outer ones hold all beyond. A release may carry the spread of its validation clips, which tells a gateway what the gate
was chosen on:

    metrics.gate_scores = {"wanted": [34 counts], "unwanted": [34 counts]}    windows of wanted and of other clips
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 34
_WIDTH = 0.5


def bin_of(margin: float) -> int:
    """The bin of a window whose logit is `margin` above the threshold."""
    return min(max(int(margin // _WIDTH) + BINS // 2, 0), BINS - 1)


def spread(margins: "NDArray[np.floating[Any]]") -> list[int]:
    """The histogram of margins, [n] -> `BINS` counts: what `metrics.gate_scores` holds two of."""
    bins = np.clip(np.floor(margins / _WIDTH).astype(int) + BINS // 2, 0, BINS - 1)
    return [int(n) for n in np.bincount(bins, minlength=BINS)]


def of_release(metrics: dict[str, Any]) -> "NDArray[np.float64] | None":
    """The spread that a release's metrics hold, float64 [2, BINS]: wanted, unwanted; None where there is none."""
    try:
        found = np.array([metrics["gate_scores"][kind] for kind in ("wanted", "unwanted")], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    usable = found.shape == (2, BINS) and np.isfinite(found).all() and (found >= 0).all() and found.sum(axis=1).all()
    return found if usable else None


def instability(found: "NDArray[np.float64]", expected: "NDArray[np.float64]") -> float:
    """The population stability index of one histogram against another, [BINS] each: 0 where they are alike."""
    p, q = (expected + 0.5) / (expected + 0.5).sum(), (found + 0.5) / (found + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def likeliest_mixture(found: "NDArray[np.float64]", parts: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The mixture of two histograms that explains a third best: [BINS], [2, BINS] -> [BINS], as many as `found`.

    No field has wanted and other sound in the shares of validation clips; what no share explains is drift. The share is
    the most likely one, by expectation maximisation.
    """
    p = (parts + 0.5) / (parts + 0.5).sum(axis=1, keepdims=True)
    q, share = found / max(found.sum(), 1.0), 0.5
    for _ in range(200):
        wanted = share * p[0]
        share = float((q * wanted / (wanted + (1 - share) * p[1])).sum())
    return np.asarray((share * p[0] + (1 - share) * p[1]) * found.sum())
