"""What every place has to answer, and what a gateway asks of it."""

import secrets
import shutil
import time
from pathlib import Path

import pytest

from twophase.audio.frontend import FRONT_END
from twophase.gateway.classifier import Away, TargetClassifier
from twophase.serving.instances import audio_images
from twophase.serving.predictor import Predictor
from twophase.targets.target import Target


def expected(release: Path, clips: list[Path]) -> list[dict]:
    """What the release says of the clips."""
    predictor = Predictor(release)
    return [predictor.predict_images(audio_images(clip.read_bytes(), "clip")) for clip in clips]


def asks(target: Target, release: Path, clips: list[Path], home: Path) -> None:
    """Ask a place that has nothing, deploy a release there, and ask about clips online and in bulk."""
    classifier = TargetClassifier(target, home)
    with pytest.raises(Away, match="no live version"):
        classifier.front_end()
    target.deploy(release)
    assert classifier.front_end() == FRONT_END.fingerprint
    right = [{"prediction": prediction} for prediction in expected(release, clips)]
    assert classifier.predict(clips[0]) == right[0]
    bad = home / "noise.wav"
    bad.write_bytes(b"no sound at all")
    assert classifier.predict(bad)["error"]["code"] == 400
    long = home / "long.wav"
    long.write_bytes(b"no sound at all" * 1_000_000)
    assert classifier.predict(long)["error"]["code"] in (400, 413)

    job = f"gateway-{secrets.token_hex(6)}"
    assert classifier.find(job) is None
    name = classifier.submit(job, [*clips, bad, long])
    assert classifier.find(job) == name
    while (why := classifier.ended(name)) is None:
        time.sleep(0.05)
    assert why == ""
    *found, refused, too_long = classifier.answers(name)
    assert found == list(zip(clips, right, strict=True))
    assert [path for path, _ in (refused, too_long)] == [bad, long]
    assert all(said["error"]["code"] in (400, 413) for _, said in (refused, too_long))
    classifier.clean(name)

    none = f"gateway-{secrets.token_hex(6)}"
    name = classifier.submit(none, [long])
    assert [said["error"]["code"] for _, said in classifier.answers(classifier.find(none) or "")] == [400]
    classifier.clean(name)
    assert not any((home / "answers").iterdir())
    shutil.rmtree(home / "answers")
