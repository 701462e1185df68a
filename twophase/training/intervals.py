"""Intervals of shares and means: how far a figure may move with other clips of the same kind.

Clips of one note, speaker or recording are not independent, so what is resampled are groups. Resampling clips that all
agree would say that nothing can move; a share of 0 or 1 gets Wilson's interval over its groups instead (Wilson, JASA
1927), which answers what agreement of so few can and cannot show. Pure functions; the draws are the same every time.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from twophase.audio.dataset import Clip
from twophase.audio.frontend import Floats

Mask = NDArray[np.bool_]

ROUNDS = 1000
"""Resamplings."""

_Z = 1.959964  # of a two-sided 95 % interval


def groups_of(clips: Sequence[Clip]) -> NDArray[np.int64]:
    """A number for each clip's group, int64 [n]."""
    return np.unique([c.group for c in clips], return_inverse=True)[1].astype(np.int64)


def bootstrap(groups: NDArray[np.int64], figure: Callable[[Floats], NDArray[np.float64]]) -> NDArray[np.float64]:
    """`ROUNDS` values of a figure under resampling of groups; `figure` takes clip weights [rounds, n]."""
    rng = np.random.default_rng(0)
    count = int(groups.max()) + 1
    draws = rng.multinomial(count, np.full(count, 1.0 / count), ROUNDS).astype(np.float32)
    return figure(draws[:, groups])


def interval(of: Mask, among: Mask, groups: NDArray[np.int64]) -> list[float] | None:
    """The 95 % interval of the share of `among` that `of` is true for: [low, high], or None of no clips."""
    if not among.any():
        return None
    share = float(of[among].mean())
    if share in (0.0, 1.0):
        return wilson(share, len(np.unique(groups[among])))

    return _interval_of_ratio(of & among, among, groups)


def interval_of_mean(values: NDArray[np.float64], groups: NDArray[np.int64]) -> list[float] | None:
    """The 95 % interval of the mean of `values` [n]: [low, high], or None where they all agree and so show nothing."""
    if values.min() == values.max():
        return None
    return _interval_of_ratio(values, np.ones(len(values), bool), groups)


def wilson(share: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a share of `count` independent trials."""
    middle = share + _Z**2 / (2 * count)
    half = _Z * float(np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)))
    scale = 1 + _Z**2 / count
    return [max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)]


def _interval_of_ratio(above: "NDArray[np.float64] | Mask", below: Mask, groups: NDArray[np.int64]) -> list[float]:
    """Of sum(above) / sum(below), by the sums of each group."""
    parts, wholes = np.bincount(groups, above), np.bincount(groups, below)

    def figure(weights: Floats) -> NDArray[np.float64]:
        total = weights @ wholes
        return np.where(total > 0, weights @ parts / np.maximum(total, 1), np.nan)

    low, high = np.nanpercentile(bootstrap(np.arange(len(wholes)), figure), [2.5, 97.5])
    return [float(low), float(high)]
