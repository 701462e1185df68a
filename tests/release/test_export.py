"""A release is what it says: whole, reproducible, and made only if all its forms agree."""

import importlib.resources
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TinyPair
from twophase.audio.dataset import Clip
from twophase.audio.frontend import FRONT_END, SAMPLE_RATE
from twophase.release import golden, manifest
from twophase.release.export import DECISIONS_TOLERANCE, export
from twophase.release.manifest import ReleaseError
from twophase.release.runtime import Pair


@pytest.fixture(scope="module")
def signatures(tiny_release: Path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(tiny_release))
    yield loaded.signatures
    del loaded


def test_the_manifest_keeps_its_schema(tiny_release: Path) -> None:
    schema = json.loads((importlib.resources.files("twophase.release") / "release.schema.json").read_text())
    value = json.loads((tiny_release / "assets.extra/release.json").read_text())
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    assert tiny_release.name == value["id"]


def test_a_whole_release_verifies_and_answers_its_golden_windows(tiny_release: Path) -> None:
    found = manifest.verify(tiny_release)
    golden.replay(Pair(tiny_release), tiny_release)
    assert found.labels == ("Flute", "Snare_drum")
    assert (tiny_release / "assets.extra/gate.tflite").stat().st_size <= 64 * 1024


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda r: (r / "saved_model.pb").write_bytes(b"x"), "saved_model.pb was changed"),
        (lambda r: (r / "assets.extra/gate.tflite").unlink(), "gate.tflite is missing"),
        (lambda r: (r / "notes.txt").write_text("hello"), "notes.txt was added"),
        (lambda r: (r / "assets.extra/release.json").unlink(), "is no release"),
        (lambda r: (r / "assets.extra/release.json").write_text("{}"), "has schema None"),
    ],
)
def test_a_harmed_release_is_refused_by_name(tiny_release: Path, tmp_path: Path, harm, words: str) -> None:
    copy = Path(shutil.copytree(tiny_release, tmp_path / tiny_release.name))
    harm(copy)
    with pytest.raises(ReleaseError, match=words):
        manifest.verify(copy)


def test_a_release_of_another_front_end_does_not_load(tiny_release: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_release, tmp_path / tiny_release.name))
    path = copy / "assets.extra/release.json"
    path.write_text(path.read_text().replace(FRONT_END.fingerprint, "fe-000000000000"))
    with pytest.raises(ReleaseError, match="made for front end fe-000000000000"):
        Pair(copy)


def test_the_same_pair_has_the_same_id_and_is_exported_once(tiny_pair: TinyPair, tiny_release: Path) -> None:
    found = manifest.read(tiny_release)
    before = (tiny_release / "saved_model.pb").stat().st_mtime_ns
    again = export(
        tiny_pair.gate, tiny_pair.classifier, found.operating_point, {}, {"other": "lineage"}, [], tiny_release.parent
    )
    assert again == tiny_release
    assert (tiny_release / "saved_model.pb").stat().st_mtime_ns == before


def test_another_threshold_is_another_release(tiny_release: Path) -> None:
    found = manifest.read(tiny_release)
    assert manifest.release_id(found.labels, found.computes, found.operating_point.threshold) == found.id
    assert manifest.release_id(found.labels, found.computes, found.operating_point.threshold + 1) != found.id


def test_a_pair_that_does_not_reproduce_itself_is_not_released(
    tiny_pair: TinyPair, tiny_release: Path, tmp_path: Path
) -> None:
    """The exported classifier is swapped for one of other weights: nothing comes into being, nothing is left."""
    import keras

    from twophase.release.convert import classifier_tflite

    wrong = Path(shutil.copytree(tiny_pair.classifier, tmp_path / "classifier"))
    network = keras.models.load_model(wrong / "network.keras", compile=False)
    network.set_weights([w + 0.3 for w in network.get_weights()])
    (wrong / "classifier.tflite").write_bytes(classifier_tflite(network))
    point = manifest.read(tiny_release).operating_point
    with pytest.raises(ReleaseError, match="LiteRT and Keras differ"):
        export(tiny_pair.gate, wrong, point, {}, {}, [], tmp_path / "releases")
    assert list((tmp_path / "releases").iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 5 * SAMPLE_RATE), quiet_from=st.floats(0.1, 1.0), seed=st.integers(0, 9))
def test_the_saved_model_cuts_and_pools_as_the_server_does(
    tiny_release: Path, signatures, length: int, quiet_from: float, seed: int
) -> None:
    import tensorflow as tf

    pcm = np.random.default_rng(seed).uniform(-0.5, 0.5, length).astype(np.float32)
    pcm[int(length * quiet_from) :] *= 1e-4
    answer = signatures["pcm"](pcm=tf.constant(pcm[None]))["probabilities"].numpy()[0]
    np.testing.assert_allclose(answer, Pair(tiny_release).classifier.clip_probabilities(pcm), atol=1e-4)


def test_the_saved_model_names_the_label(tiny_release: Path, signatures) -> None:
    import tensorflow as tf

    clips = [golden_window[: 4000 * (i + 1)] for i, golden_window in enumerate(_golden(tiny_release)[:3])]
    wavs = tf.stack([tf.audio.encode_wav(c[:, None], SAMPLE_RATE) for c in clips])
    answer = signatures["serving_default"](audio_bytes=wavs)
    names = (*manifest.read(tiny_release).labels, manifest.NONE)
    for i, probabilities in enumerate(answer["probabilities"].numpy()):
        assert answer["label"].numpy()[i].decode() == names[int(probabilities.argmax())]
        assert answer["confidence"].numpy()[i] == pytest.approx(probabilities.max())


def test_the_saved_model_refuses_another_rate(tiny_release: Path, signatures) -> None:
    import tensorflow as tf

    wav = tf.audio.encode_wav(np.zeros((800, 1), np.float32), 8000)
    with pytest.raises(tf.errors.InvalidArgumentError, match="16 kHz"):
        signatures["serving_default"](audio_bytes=wav[None])


def test_the_exported_gate_decides_as_the_keras_gate(tiny_pair: TinyPair, tiny_release: Path, recordings: Path) -> None:
    import keras

    from twophase.audio.decode import decode
    from twophase.audio.windows import cut

    clips = sorted((recordings / "clips").iterdir())[::12]
    windows = np.concatenate([cut(decode(path)) for path in clips])
    network = keras.models.load_model(tiny_pair.gate / "network.keras", compile=False)
    expected = network.predict(FRONT_END.images(windows)[..., None].astype(np.float32), verbose=0)[:, 0]
    threshold = manifest.read(tiny_release).operating_point.threshold
    got = Pair(tiny_release).gate.scores(windows)
    assert len(windows) > 400
    assert ((got >= threshold) != (expected >= threshold)).mean() <= DECISIONS_TOLERANCE


def test_of_a_long_clip_only_some_windows_are_asked_about(
    tiny_pair: TinyPair, tiny_release: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 60 * SAMPLE_RATE), SAMPLE_RATE)
    clips = [Clip("0" * 64, str(tmp_path / "long.wav"), "long.wav", "Flute", "g", "validation")]
    point = manifest.read(tiny_release).operating_point
    made = export(tiny_pair.gate, tiny_pair.classifier, point, {}, {}, clips, tmp_path / "releases")
    assert manifest.read(made).metrics["parity"]["windows"] == 16


def _golden(release: Path):
    with np.load(release / golden.GOLDEN) as file:
        return file["windows"]
