"""Decoding: every kind of file comes out the same sound; every lie and every mess is named."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.clips import tone, write_clip
from twophase.audio import decode as decoding
from twophase.audio.decode import BadClip, decode


def encoded(pcm: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_mono_at_16_khz(rate: int, channels: int) -> None:
    pcm = decode(encoded(np.repeat(tone(440, 1.0, rate)[:, None], channels, axis=1), rate, "FLAC"))
    assert pcm.dtype == np.float32
    assert pcm.flags.c_contiguous
    assert abs(len(pcm) - 16_000) <= 1
    assert np.abs(pcm[1000:-1000] - tone(440, 1.0)[1000 : len(pcm) - 1000]).max() < 0.15  # noise of other samples
    spectrum = np.abs(np.fft.rfft(pcm[:16_000], 16_000))
    assert abs(int(spectrum.argmax()) - 440) <= 1


@pytest.mark.parametrize(
    ("kind", "subtype", "near"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 1e-6),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.1),
        ("MP3", None, 0.1),
    ],
)
def test_every_kind_of_file(kind: str, subtype: str | None, near: float) -> None:
    sound = tone(440, 0.5)
    pcm = decode(encoded(sound, 16_000, kind, subtype))
    n = min(len(pcm), len(sound)) - 1200  # MP3 pads its frames
    lag = int(np.correlate(pcm[: n + 1200], sound[:2000], "valid").argmax()) if kind == "MP3" else 0
    assert np.abs(pcm[lag : lag + n // 2] - sound[: n // 2]).max() < near


def test_channels_are_averaged() -> None:
    both = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    np.testing.assert_allclose(decode(encoded(both, 16_000, "WAV", "FLOAT")), 0.2, atol=1e-6)


def test_a_file_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.flac")
    assert np.array_equal(decode(path), decode(path.read_bytes()))


def lying_wav(size: int) -> bytes:
    honest = encoded(tone(440), 16_000)
    at = honest.index(b"data") + 4
    return honest[:at] + struct.pack("<I", size) + honest[at + 4 :]


def wav_with_rate(rate: int) -> bytes:
    honest = bytearray(encoded(tone(440), 16_000))
    struct.pack_into("<I", honest, honest.index(b"fmt ") + 12, rate)
    return bytes(honest)


BAD = {
    "nothing": (b"", "is empty", "WAV, FLAC, Ogg or MP3"),
    "text": (b"this is not a sound at all\n" * 40, "can be decoded", "WAV, FLAC, Ogg or MP3"),
    "zero samples": (encoded(np.empty(0), 16_000), "zero samples", "at least one"),
    "promises too much": (lying_wav(10_000_000), "promises 10000000 bytes", "copy it again"),
    "flac cut short": (encoded(tone(440, 2.0), 16_000, "FLAC")[:9000], "can be decoded", "lost sync"),
    "NaN": (encoded(np.array([0, np.nan, 0]), 16_000, "WAV", "FLOAT"), "NaN", "finite"),
    "infinite": (encoded(np.array([0, np.inf, 0]), 16_000, "WAV", "FLOAT"), "infinite", "finite"),
    "one hertz": (wav_with_rate(1), "claims 1 samples a second", "1000 to 768000"),
    "two gigahertz": (wav_with_rate(2_000_000_000), "claims 2000000000", "1000 to 768000"),
    "header alone": (encoded(tone(440), 16_000)[:44], "promises 16000 bytes", "holds 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_clip_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    data, wrong, accepted = BAD[name]
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    with pytest.raises(BadClip) as caught:
        decode(path)
    assert str(caught.value).startswith(str(path))
    assert wrong in caught.value.reason
    assert accepted in caught.value.reason
    with pytest.raises(BadClip, match=r"^uploaded clip: "):
        decode(data, "uploaded clip")


def test_an_hour_is_refused_after_the_longest_accepted_length(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    soundfile.write(path, np.zeros(3600 * 1000, np.int16), 1000)
    with pytest.raises(BadClip, match="longer than 600 s; cut it"):
        decode(path)


def test_many_channels_are_read_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_BLOCK", 1 << 12)
    wide = np.random.default_rng(0).uniform(-1, 1, (2000, 64)).astype(np.float32)
    np.testing.assert_allclose(decode(encoded(wide, 16_000, "WAV", "FLOAT")), wide.mean(axis=1), atol=1e-6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match=r"gone\.wav: cannot be read"):
        decode(tmp_path / "gone.wav")


def test_a_folder_named_like_a_clip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(BadClip, match=r"a\.wav: cannot be read"):
        decode(tmp_path / "a.wav")


@given(st.integers(0, 3999), st.integers(0, 255), st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]))
@settings(max_examples=150, deadline=None)
def test_one_flipped_byte_is_decoded_or_named_but_never_a_crash(at: int, value: int, kind: str) -> None:
    data = bytearray(encoded(tone(440, 0.3), 16_000, kind))
    data[at % len(data)] = value
    try:
        pcm = decode(bytes(data))
    except BadClip:
        return
    assert np.isfinite(pcm).all()
    assert 1 <= len(pcm) <= decoding.MAX_CLIP_S * 16_000 + 16


def test_every_recording_decodes(recordings: Path) -> None:
    files = sorted((recordings / "clips").iterdir())[::10]
    assert {path.suffix for path in files} >= {".mp3", ".ogg", ".wav"}
    for path in files:
        pcm = decode(path)
        assert 0.1 < len(pcm) / 16_000 < 31
        assert np.abs(pcm).max() < 1.5
