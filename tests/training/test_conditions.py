"""The same clips as devices hear them: repeatable, of the same length, and at the ratio that is promised."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.audio.dataset import Clip
from twophase.files import digest
from twophase.training.conditions import CONDITIONS, SNRS_DB, SWEEP, Field, channel, mix, quieter


def tone(hz: float, n: int = 16_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(n) / 16_000)).astype(np.float32)


def clip(path: Path, label: str, split: str, pcm: np.ndarray) -> Clip:
    soundfile.write(path, pcm, 16_000, subtype="FLOAT")
    return Clip(digest(path.name.encode()), str(path), path.name, label, path.name, split)


def test_the_channel_keeps_what_is_low_and_loses_what_is_high() -> None:
    assert np.abs(channel(tone(1000))[500:-500] - tone(1000)[500:-500]).max() < 1e-3
    assert np.abs(channel(tone(6000))[500:-500]).max() < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40_000), st.sampled_from(SNRS_DB))
def test_lengths_stay_and_ratios_hold(n: int, snr_db: int) -> None:
    rng = np.random.default_rng(n)
    pcm, background = (rng.standard_normal((2, n)) * 0.1).astype(np.float32)
    assert channel(pcm).shape == pcm.shape
    mixed = mix(pcm, background, snr_db)
    if n >= 20_000:  # long enough for the audible windows to be all of it
        ratio = np.mean(pcm**2) / np.mean((mixed - pcm) ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=1.0)


def test_a_silent_background_changes_nothing() -> None:
    np.testing.assert_array_equal(mix(tone(440), np.zeros(16_000, np.float32), 0), tone(440))


def test_backgrounds_come_from_the_clip_s_own_split(tmp_path: Path) -> None:
    flute = clip(tmp_path / "flute.wav", "Flute", "test", tone(440))
    rain = clip(tmp_path / "rain.wav", "Rain", "train", tone(1000))
    wind = clip(tmp_path / "wind.wav", "Wind", "test", tone(2000))
    heard = Field("mixed", [flute, rain, wind], ["Flute"])(flute, tone(440))
    assert heard is not None
    power = np.abs(np.fft.rfft(heard))
    assert power[2000] > 100 * power[1000]


@pytest.mark.parametrize("condition", ["mixed", "snr 10"])
def test_what_has_no_background_is_not_heard_and_what_is_not_wanted_needs_none(tmp_path: Path, condition: str) -> None:
    flute = clip(tmp_path / "flute.wav", "Flute", "test", tone(440))
    rain = clip(tmp_path / "rain.wav", "Rain", "train", tone(1000))
    silence = clip(tmp_path / "silence.wav", "Silence", "test", np.zeros(16_000, np.float32))
    for clips in ([flute], [flute, rain], [flute, silence]):
        assert Field(condition, clips, ["Flute"])(flute, tone(440)) is None
        assert Field(condition, clips, ["Flute"])(rain, tone(1000)) is not None


def test_quieter_is_quieter_and_at_last_nothing() -> None:
    assert np.abs(quieter(tone(440), 20.0)).max() == pytest.approx(0.03, rel=0.01)
    assert not quieter(tone(440), 120.0).any()


@pytest.mark.parametrize("condition", [*CONDITIONS, *SWEEP])
def test_a_clip_is_heard_the_same_way_every_time(tmp_path: Path, condition: str) -> None:
    clips = [clip(tmp_path / f"{i}.wav", label, "test", tone(300 + 100 * i)) for i, label in enumerate(["A", "B", "B"])]
    first, again = (Field(condition, order, ["A"])(clips[0], tone(300)) for order in (clips, clips[::-1]))
    np.testing.assert_array_equal(first, again)
    if condition == "clean":
        np.testing.assert_array_equal(first, tone(300))
