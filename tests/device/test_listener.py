"""The listener: what is one clip, what goes before and after it, what of the rejected is sampled."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device.sounds import noise
from twophase.device.clip import PCM
from twophase.device.gates import FILES, LoadedGate
from twophase.device.listener import HOP, Detection, Listener, Listening
from twophase.device.sources import stream
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import digest
from twophase.release.manifest import ReleaseError

QUIET = Listening(audit_share=0.0)


@dataclass
class LoudIsWanted:
    """A gate whose logit is 2 for loud windows and -2 for soft ones, threshold 0."""

    id: str = "r-loud"
    threshold: float = 0.0

    @property
    def gate(self) -> "LoudIsWanted":
        return self

    def scores(self, windows: Any) -> Any:
        return np.where(np.abs(windows).max(axis=1) > 0.1, 2.0, -2.0).astype(np.float32)


def hops(pattern: str) -> PCM:
    """A hop for each letter: `#` loud, `.` soft, `_` silent. Every sample tells its hop."""
    level = {"#": 8000, ".": 100, "_": 0}
    return np.concatenate([np.full(HOP, level[c] and level[c] + i % 1000, np.int16) for i, c in enumerate(pattern)])


def listen(pattern: str, listening: Listening = QUIET, block: int = 3000) -> list[Detection]:
    heard: list[Detection] = []
    listener = Listener(cast(LoadedGate, LoudIsWanted()), heard.append, listening, random.Random(0))
    pcm = hops(pattern)
    for at in range(0, len(pcm), block):
        listener.feed(pcm[at : at + block])
    listener.finish()
    return heard


def extent(detection: Detection) -> list[int]:
    """Which hops a clip holds."""
    levels = detection.pcm.reshape(-1, HOP)[:, 0]
    return [int(level - (8000 if level >= 8000 else 100)) for level in levels]


def test_a_clip_has_a_little_before_and_after() -> None:
    (clip,) = listen("......##........")
    # windows 5..8 hold a loud hop; two hops (0.5 s, rounded up) go before the first and after the last
    assert extent(clip) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert clip.windows == 3
    assert clip.score == 2.0


def test_what_overlaps_is_one_clip_and_what_does_not_is_two() -> None:
    assert len(listen("......#...#.........")) == 1
    assert len(listen("......#.........#.........")) == 2


def test_a_long_sound_is_cut_and_goes_on() -> None:
    clips = listen("...." + "#" * 100 + "....", Listening(max_clip_s=10, audit_share=0.0))
    assert max(len(c.pcm) for c in clips) <= 21 * HOP
    assert [hop for c in clips for hop in extent(c)] == list(range(1, 106))  # 21 hops are 10 s, rounded up


def test_silence_is_neither_scored_nor_counted() -> None:
    heard: list[Detection] = []
    listener = Listener(cast(LoadedGate, LoudIsWanted()), heard.append, Listening(audit_share=1.0))
    listener.feed(hops("_" * 20))
    assert listener.tallies[0].windows == 0
    assert not heard
    listener.feed(hops("." * 20))
    assert listener.tallies[0].windows == listener.tallies[0].audited == len(heard) == 20


def test_the_audit_sample_is_a_random_share_of_what_was_rejected() -> None:
    clips = listen("." * 4000, Listening(audit_share=0.05), block=1 << 20)
    assert {c.kind for c in clips} == {"audit"}
    assert 140 < len(clips) < 260
    assert all(len(c.pcm) == 2 * HOP for c in clips)


def test_another_gate_decides_from_the_next_window_on() -> None:
    heard: list[Detection] = []
    listener = Listener(cast(LoadedGate, LoudIsWanted("r-old")), heard.append, QUIET)
    listener.feed(hops("...###"))
    listener.use(cast(LoadedGate, LoudIsWanted("r-new")))
    listener.feed(hops("###......"))
    assert [d.gate.id for d in heard] == ["r-old", "r-new"]
    assert [t.gate for t in listener.tallies] == ["r-old", "r-new"]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="#._", min_size=1, max_size=60), st.integers(1, 3 * HOP))
def test_no_sound_is_in_two_clips_and_none_wanted_is_lost(pattern: str, block: int) -> None:
    clips = listen(pattern, block=block)
    assert [(d.pcm.tobytes(), d.score) for d in listen(pattern)] == [(d.pcm.tobytes(), d.score) for d in clips]
    loud = [level for c in clips for level in c.pcm.reshape(-1, HOP)[:, 0] if level >= 8000]
    assert loud == sorted(set(loud))
    assert len(loud) == pattern.count("#")


def test_a_real_gate_on_clips_as_if_live(release: Path, tmp_path: Path) -> None:
    gate = LoadedGate.load(release)
    soundfile.write(tmp_path / "soft.wav", noise(1, 5) // 500, 16_000)
    soundfile.write(tmp_path / "loud.flac", noise(2, 5), 16_000)
    heard: list[Detection] = []
    listener = Listener(gate, heard.append, Listening(audit_share=1.0))
    for block in stream(str(tmp_path)):
        listener.finish() if block is None else listener.feed(block)
    loud = [d for d in heard if d.kind == "escalation"]
    assert len(loud) == 1
    assert np.array_equal(loud[0].pcm[: 5 * 16_000], noise(2, 5)[: len(loud[0].pcm)])
    assert listener.tallies[0].escalated == loud[0].windows == 9
    for detection in heard:
        if detection.kind == "audit":
            assert detection.score == gate.gate.scores(detection.pcm[None] / np.float32(32768))[0]


def test_a_gate_that_was_changed_or_decides_otherwise_is_refused(release: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gate"
    for name in FILES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release / name, copy / name)
    assert LoadedGate.load(copy).threshold == 0.0
    data = bytearray((copy / FILES[1]).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / FILES[1]).write_bytes(data)
    with pytest.raises(ReleaseError, match=r"gate\.tflite was changed"):
        LoadedGate.load(copy)
    shutil.copy(release / FILES[1], copy / FILES[1])
    with np.load(release / FILES[2]) as golden:
        np.savez(copy / FILES[2], windows=golden["windows"], gate=golden["gate"] + 0.5)
    said = json.loads((copy / FILES[0]).read_text())
    said["digests"][FILES[2]] = digest(copy / FILES[2])
    (copy / FILES[0]).write_text(json.dumps(said))
    with pytest.raises(ReleaseError, match="does not decide here as it did"):
        LoadedGate.load(copy)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        next(stream(str(tmp_path / "nowhere")))
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(TwoPhaseError, match=r"bad\.wav"):
        next(stream(str(tmp_path / "bad.wav")))
