"""Clips within a place's limits: grouped, made smaller, or refused with the limit's name."""

from pathlib import Path

import numpy as np
import orjson
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twophase.errors import TwoPhaseError
from twophase.targets.requests import ClipRefused, Limits, body, refusal, requests, sent
from twophase.targets.sagemaker import SageMaker
from twophase.targets.vertex import VertexAI

SMALL = Limits("a small place", 60_000, 60)


def noise(path: Path, seconds: float, rate: int = 16_000) -> Path:
    soundfile.write(path, np.random.default_rng(1).uniform(-1, 1, int(seconds * rate)), rate, format="WAV")
    return path


@given(lengths=st.lists(st.sampled_from([0.1, 0.4, 0.9, 1.2]), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_clip_once_in_order_within_the_limit(tmp_path: Path, lengths: list[float]) -> None:
    clips = [noise(tmp_path / f"{length}.wav", length) for length in lengths]
    groups = list(requests(clips, SMALL))
    assert [clip for group in groups for clip in group] == [sent(clip, SMALL) for clip in clips]
    for group, following in zip(groups, [*groups[1:], []], strict=True):
        assert len(orjson.dumps(body(group))) <= SMALL.request_bytes
        if following:
            assert len(orjson.dumps(body([*group, following[0]]))) > SMALL.request_bytes - 200, "no request too many"


def test_long_sound_is_split_though_its_file_is_small(tmp_path: Path) -> None:
    """The server takes 5,000 windows a request: a silent hour is a small file, but not a small request."""
    soundfile.write(tmp_path / "quiet.flac", np.zeros(16_000 * 590, np.float32), 16_000)
    clips = [tmp_path / "quiet.flac"] * 9
    assert [len(group) for group in requests(clips, VertexAI.limits)] == [4, 4, 1]


def test_a_large_file_goes_as_what_the_models_hear(tmp_path: Path) -> None:
    clip = noise(tmp_path / "wide.wav", 0.9, rate=96_000)
    assert len(clip.read_bytes()) > SMALL.request_bytes
    data = sent(clip, SMALL)
    assert data.startswith(b"fLaC")
    assert len(orjson.dumps(body([data]))) <= SMALL.request_bytes


def test_what_does_not_fit_is_refused_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(TwoPhaseError, match="a small place takes 60000 a request; cut it"):
        list(requests([noise(tmp_path / "long.wav", 10)], SMALL))
    with pytest.raises(TwoPhaseError, match="cannot be read"):
        list(requests([tmp_path / "missing.wav"], SMALL))


def test_the_limits_are_the_clouds() -> None:
    assert VertexAI.limits.request_bytes == 1_500_000
    assert SageMaker.limits.request_bytes == 6 * 2**20


@pytest.mark.parametrize(
    ("code", "status", "blamed"),
    [(400, "", True), (413, "", True), (400, "FAILED_PRECONDITION", False), (424, "", False), (429, "", False)],
)
def test_only_what_is_wrong_with_a_clip_is_final(code: int, status: str, blamed: bool) -> None:
    found = refusal(code, "too long", "https://place", status)
    assert isinstance(found, ClipRefused) == blamed
    assert str(found) == f"https://place: refused with {code}: too long"
