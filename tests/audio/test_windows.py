"""Cutting: every sample that matters lies in a window, and silence after a note has no window that counts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.clips import tone
from twophase.audio.decode import decode
from twophase.audio.frontend import FRONT_END
from twophase.audio.windows import audible, cut

SIZE, HOP = FRONT_END.samples, FRONT_END.samples // 2


@given(st.integers(1, 6 * SIZE))
@settings(max_examples=200, deadline=None)
def test_windows_cover_the_clip_but_for_a_short_tail(length: int) -> None:
    pcm = np.arange(1, length + 1, dtype=np.float32)
    windows = cut(pcm)
    assert windows.shape[1] == SIZE
    assert windows.flags.c_contiguous
    for i, window in enumerate(windows):  # window i starts at i hops; past the end there are zeros
        expected = pcm[i * HOP : i * HOP + SIZE]
        assert np.array_equal(window[: len(expected)], expected)
        assert not window[len(expected) :].any()
    covered = (len(windows) - 1) * HOP + SIZE
    assert covered >= min(length, SIZE)
    assert length - covered <= SIZE // 4


@given(st.integers(1, SIZE))
@settings(max_examples=30, deadline=None)
def test_a_short_clip_is_one_padded_window(length: int) -> None:
    assert cut(np.ones(length, np.float32)).sum() == length


def test_what_lies_40_db_below_the_loudest_window_does_not_count() -> None:
    loud = tone(440, SIZE / 16_000)[:SIZE]
    clip = np.concatenate([loud, np.zeros(SIZE, np.float32), loud * 0.1, loud * 0.001])
    counts = audible(cut(clip))
    assert counts.any()
    assert counts[0]
    assert not counts[-1]


def test_of_silence_every_window_counts() -> None:
    assert audible(cut(np.zeros(3 * SIZE, np.float32))).all()


def test_real_clips_have_audible_windows(recordings) -> None:
    for path in sorted((recordings / "clips").iterdir())[::40]:
        windows = cut(decode(path))
        assert 1 <= audible(windows).sum() <= len(windows)
