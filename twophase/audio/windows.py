"""Clips into windows: the one rule by which training, serving and evaluation cut.

Windows start every half window; what is shorter than a window, and a tail longer than a quarter of one, is padded with
zeros at its end. A window counts as audible when its loudness is within `AUDIBLE_DB` of the clip's loudest window:
only audible windows are trained on, asked about or pooled, so that silence after a note has no label.
"""

import numpy as np

from twophase.audio.frontend import FRONT_END, Floats, FrontEnd

AUDIBLE_DB = 40.0
"""How far below its clip's loudest window a window may lie and still count."""


def cut(pcm: Floats, front_end: FrontEnd = FRONT_END) -> Floats:
    """The windows of a clip: float32 [n_samples] -> float32 [n >= 1, samples]."""
    size, hop = front_end.samples, front_end.samples // 2
    tail = size // 4
    count = 1 + max(0, -(-(len(pcm) - size - tail) // hop)) if len(pcm) > size else 1
    padded = np.zeros((count - 1) * hop + size, np.float32)
    kept = min(len(pcm), len(padded))
    padded[:kept] = pcm[:kept]
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, size)[::hop])


def audible(windows: Floats) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which windows of one clip count: float32 [n, samples] -> bool [n], at least one of them true."""
    power = np.mean(np.square(windows, dtype=np.float32), axis=1)
    return np.asarray(power >= power.max() * np.float32(10.0 ** (-AUDIBLE_DB / 10.0)))
