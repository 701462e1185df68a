"""What a trained model is: where it starts, what it keeps, and that its answers are calibrated."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import TinyPair
from twophase.audio.dataset import SPLITS, Clip, read_source
from twophase.audio.images import ImageSet, make_all
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import digest
from twophase.release.manifest import NONE
from twophase.release.runtime import Classifier, Gate
from twophase.training import networks, pretrain, train
from twophase.training.answers import Answers
from twophase.training.evaluate import evaluate, evaluate_conditions
from twophase.training.fit import Recipe


@pytest.mark.parametrize("make", [networks.gate, networks.classifier, partial(networks.classifier, backbone="large")])
def test_the_networks_start_from_what_they_learned_of_rendered_sounds(make) -> None:
    first, second = (make(5).get_weights() for _ in range(2))
    for a, b in zip(first[:-2], second[:-2], strict=True):  # all but the last layer's
        np.testing.assert_array_equal(a, b)
    assert (make(5, weights="random").get_weights()[0] != first[0]).any()


def test_a_start_is_kept_and_taken_up_and_refused_for_another_front_end(tmp_path: Path) -> None:
    network, other = (networks.classifier(5, weights="random") for _ in range(2))
    networks.keep_start(network, tmp_path / "start.npz")
    networks.start(other, tmp_path / "start.npz")
    for a, b in zip(network.get_weights()[:-2], other.get_weights()[:-2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    with np.load(tmp_path / "start.npz") as kept:
        arrays = {**kept, "front_end": np.array("fe-000000000000")}
    np.savez(tmp_path / "start.npz", **arrays)
    with pytest.raises(TwoPhaseError, match="fe-000000000000"):
        networks.start(other, tmp_path / "start.npz")


@pytest.mark.parametrize(
    ("backbone", "weights"), [("gate", None), ("small", "imagenet"), ("mobilenetv2", "/no/such.h5")]
)
def test_backbones_and_weights_that_are_not_there_are_named(backbone: str, weights: str | None) -> None:
    with pytest.raises(UsageError, match=str(weights or backbone)):
        networks.classifier(5, backbone, weights)


def test_a_trained_model_is_taken_again_and_fits_on_a_device(tiny_pair: TinyPair) -> None:
    images = ImageSet(tiny_pair.workdir / "set")
    assert train.train_gate(images, tiny_pair.workdir, Recipe(steps=8)) == tiny_pair.gate
    assert (tiny_pair.gate / "gate.tflite").stat().st_size <= 64 * 1024
    assert (tiny_pair.classifier / "classifier.tflite").stat().st_size <= 1 << 20
    history = json.loads((tiny_pair.classifier / "history.json").read_text())
    assert history["labels"] == list(images.wanted)
    pcm = np.random.default_rng(0).standard_normal(40_000).astype(np.float32) * 0.1
    assert np.isfinite(Gate(tiny_pair.gate / "gate.tflite").clip_score(pcm))
    answer = Classifier(tiny_pair.classifier / "classifier.tflite").clip_probabilities(pcm)
    assert answer.shape == (len(images.wanted) + 1,)
    assert answer.sum() == pytest.approx(1, abs=1e-5)


def test_recipes_take_steps_not_epochs() -> None:
    assert Recipe(steps=100).epochs(10) == 10
    assert Recipe(steps=100).epochs(1000) == 1
    assert train.recipe("gate", True, 0).steps < train.recipe("gate", False, 0).steps


def test_the_headline_is_the_worst_of_the_conditions() -> None:
    names = ("Flute", NONE)
    clips = tuple(
        Clip(f"{i:064x}", "", "", label, str(i), "test") for i, label in enumerate(["Flute", "Flute", "Rain"])
    )
    sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]], np.float32)
    clean = Answers(clips, names, np.array([1, 1, -1], np.float32), sure, np.ones(3, np.int64))
    mixed = replace(clean, gate=np.array([1, -1, -1], np.float32))
    found = evaluate_conditions({"clean": clean, "mixed": mixed}, 0.0)
    assert found["gate"] == evaluate(clean, 0.0)["gate"]
    assert found["conditions"]["mixed"] == evaluate(mixed, 0.0)
    assert found["headline"]["gate recall"] == {"value": 0.5, "condition": "mixed"}
    assert found["headline"]["gate stopped"]["value"] == 1.0


def test_the_gate_keeps_the_odds_of_wanted_against_none() -> None:
    named = networks.gate(4, "random")
    images = np.random.default_rng(0).uniform(0, 255, (5, 61, 64, 1)).astype(np.float32)
    logits = np.asarray(named(images, training=False))
    expected = np.log(np.exp(logits[:, :-1]).sum(axis=1)) - logits[:, -1]
    odds = networks.wanted_or_not(named)(images, training=False)
    np.testing.assert_allclose(np.asarray(odds)[:, 0], expected, atol=1e-4)


def test_a_start_is_not_made_with_other_soundfonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in ("one", "two", "three")]
    for file in files:
        file.write_bytes(file.name.encode())
    monkeypatch.setattr(pretrain, "SOUNDFONTS", {file.name: digest(file) for file in files[:2]})
    assert pretrain.chosen(files[1::-1]) == files[:2]
    for others in ([], files[:1], files, files[1:], [*files[:1], tmp_path / "gone"]):
        with pytest.raises(UsageError, match=rf"sha256 {digest(files[0])}.*these files and no other"):
            pretrain.chosen(others)


def test_what_is_rendered_and_fitted_is_known_by_all_that_made_it(
    few_images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    font, weights = tmp_path / "font.sf2", tmp_path / "my weights.h5"
    font.write_bytes(b"1")
    clips = {pretrain.clips_key([font]), pretrain.clips_key([])}
    font.write_bytes(b"2")
    clips.add(pretrain.clips_key([font]))
    monkeypatch.setattr(pretrain, "CLIPS", 3)
    clips.add(pretrain.clips_key([font]))
    assert len(clips) == 4

    def key(what: str = "gate", recipe: Recipe = pretrain.RECIPE) -> str:
        return train.key_of(what, few_images, recipe, [weights])

    keys = {key(), key("start-gate"), key(recipe=Recipe(8))}
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        keys.add(key())
    assert len(keys) == 5
    assert key() in keys
    assert key("start-gate").startswith("start-gate-")


def images_of(folder: Path, labels: dict[str, str]) -> ImageSet:
    """An image set of clips `split/number`, each of the label that `labels` says; A and B are wanted."""
    rows = ["fname,label,split"]
    for i, (name, label) in enumerate(labels.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.wav", np.random.default_rng(i).normal(0, 0.1, 16_000), 16_000)
        rows.append(f"{name}.wav,{label},{name.split('/')[0]}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return make_all(folder / "w", read_source(folder, ["A", "B"]), "fail", lambda done, planned: None)


ALL = {f"{split}/{i}": label for split in SPLITS for i, label in enumerate("ABC")}


@pytest.fixture
def few_images(tmp_path: Path) -> ImageSet:
    return images_of(tmp_path / "few", ALL)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({**ALL, "validation/2": "A"}, "the validation split has no unwanted clip; both wanted and unwanted"),
        (
            {name: label for name, label in ALL.items() if "validation" not in name},
            "the validation split has no wanted",
        ),
    ],
)
def test_a_side_without_both_kinds_is_named(tmp_path: Path, labels: dict[str, str], words: str) -> None:
    images = images_of(tmp_path / "data", labels)
    with pytest.raises(TwoPhaseError, match=words):
        train.train_gate(images, tmp_path / "w", Recipe(8, augment=train.AUGMENT))


def test_calibration_asks_in_blocks_as_at_once(few_images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    network = networks.classifier(3)
    start = network.get_weights()
    temperature = train.calibrate(network, few_images)
    network.set_weights(start)
    monkeypatch.setattr(train, "_BLOCK", 1)
    assert train.calibrate(network, few_images) == pytest.approx(temperature)
