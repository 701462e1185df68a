"""What every place has to answer, and what a gateway asks of it."""

import secrets
import time
from pathlib import Path

import pytest

from twophase.audio.frontend import FRONT_END
from twophase.gateway.classifier import Away, NoneSent, TargetClassifier
from twophase.serving.instances import audio_images
from twophase.serving.predictor import Predictor
from twophase.targets.target import Target


def expected(release: Path, clips: list[Path]) -> list[dict]:
    """What the release says of the clips."""
    predictor = Predictor(release)
    return [predictor.predict_images(audio_images(clip.read_bytes(), "clip")) for clip in clips]


def asks(target: Target, release: Path, clips: list[Path], home: Path) -> None:
    """Ask a place that has nothing, deploy a release there, and ask about clips online and in bulk."""
    classifier = TargetClassifier(target)
    with pytest.raises(Away, match="no live version"):
        classifier.front_end()
    target.deploy(release)
    assert classifier.front_end() == FRONT_END.fingerprint
    right = [{"prediction": prediction} for prediction in expected(release, clips)]
    assert classifier.predict(clips[0]) == right[0]
    bad, long = home / "noise.wav", home / "long.wav"
    bad.write_bytes(b"no sound at all")
    long.write_bytes(b"no sound at all" * 1_000_000)
    for clip in (bad, long):
        error = classifier.predict(clip)["error"]
        assert error["code"] == 400
        assert str(home) not in error["message"]
        assert "127.0.0.1" not in error["message"], "a device is told about its clip, not about the cloud"
    if not classifier.runs_jobs:
        return
    job = f"gateway-{secrets.token_hex(6)}"
    assert classifier.find(job) is None
    classifier.submit(job, [*clips, bad, home / "gone.wav", long], home)
    name = classifier.find(job)
    assert name
    while (why := classifier.ended(name)) is None:
        time.sleep(0.05)
    assert why == ""
    *found, refused, too_long = classifier.answers(name)
    assert found == list(zip(clips, right, strict=True)), "and none for the clip that could not be read"
    assert [path for path, _ in (refused, too_long)] == [bad, long]
    for _, said in (refused, too_long):
        assert said["error"]["code"] == 400
        assert str(home) not in said["error"]["message"]
    classifier.clean(name)
    with pytest.raises(NoneSent):
        classifier.submit(f"gateway-{secrets.token_hex(6)}", [long], home)
