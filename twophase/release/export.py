"""A trained pair becomes a release, or does not come into being.

`export` writes into a temporary directory beside the destination: the SavedModel, the two LiteRT files, golden windows,
the list of what was learned from, the model card. Then it asks Keras, the SavedModel and LiteRT the golden questions;
only if all agree is `release.json` written and the directory renamed. A crash leaves a `.tmp-*` directory that nothing
reads.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twophase import __version__
from twophase.audio import sources
from twophase.audio.dataset import Clip
from twophase.audio.decode import BadClip, decode
from twophase.audio.frontend import FRONT_END, SAMPLE_RATE, Floats
from twophase.audio.windows import audible, cut
from twophase.files import digest, new_directory, read_json
from twophase.release import card, heard
from twophase.release.golden import GOLDEN, PROBABILITY_TOLERANCE
from twophase.release.manifest import (
    EXTRA,
    NONE,
    Manifest,
    OperatingPoint,
    ReleaseError,
    files_of,
    front_end_json,
    release_id,
    verify,
    write,
)
from twophase.release.runtime import Classifier, Gate

if TYPE_CHECKING:
    import keras

GATE_TOLERANCE = 0.5
"""Between the float gate and its int8 weights on golden windows, in logits."""

DECISIONS_TOLERANCE = 0.02
"""Share of the validation windows on which the exported gate may decide otherwise than the Keras gate.

Activations that LiteRT rounds to int8 move a score by .05 on average, and .1 to .9 % of windows across a threshold;
what breaks an export (a quantised front end) moves a tenth of them.
"""

_DECISION_CLIPS, _DECISION_WINDOWS = 200, 16
"""Most validation clips that are asked about, and windows of each: however long they are, memory holds few of them."""


def export(
    gate: Path,
    classifier: Path,
    point: OperatingPoint,
    metrics: dict[str, Any],
    lineage: dict[str, Any],
    clips: Sequence[Clip],
    releases: Path,
) -> Path:
    """Export the trained models at `gate` and `classifier` to `releases/<id>` and return that folder.

    `clips` are all clips of the dataset: which of them were heard is noted, and on the validation clips the exported
    gate must decide as the Keras gate does. A release that is there already is verified and returned: the same pair has
    the same id. Raises `ReleaseError` when the exports disagree.
    """
    trained = read_json(classifier / "history.json", "trained classifier")
    labels = tuple(trained["labels"])
    computes = {
        "gate": digest(gate / "gate.tflite"),
        "classifier": digest(classifier / "classifier.tflite"),
        "weights": trained["weights"],
    }
    name = release_id(labels, computes, point.threshold, point.rejection)
    if (releases / name).is_dir():
        verify(releases / name)
        return releases / name
    import keras  # only now: a release that is there already needs no TensorFlow

    from twophase.release import saved_model

    gate_network = keras.models.load_model(gate / "network.keras", compile=False)
    network = keras.models.load_model(classifier / "network.keras", compile=False)
    with new_directory(releases / name) as folder:
        saved_model.save(network, (*labels, NONE), folder)
        (folder / GOLDEN).parent.mkdir(parents=True)
        for model, file in ((gate, "gate.tflite"), (classifier, "classifier.tflite")):
            (folder / EXTRA / file).write_bytes((model / file).read_bytes())
        _write_golden(folder)
        _check_parity(folder, gate_network, network, name)
        parity = _check_decisions(folder, gate_network, point.threshold, clips, name)
        heard.write(folder, heard.lines_of(clips))
        card.write(folder, name, labels, point, metrics, lineage)
        manifest = Manifest(
            id=name,
            labels=labels,
            front_end=front_end_json(),
            operating_point=point,
            computes=computes,
            digests=files_of(folder),
            metrics={**metrics, "parity": parity},
            lineage=lineage,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            twophase=__version__,
        )
        write(folder, manifest)
    return releases / name


def golden_windows() -> Floats:
    """Windows of known sounds: tones, a chord, a sweep, noises, clicks, a decay and silence; float32 [8, samples]."""
    rng = np.random.default_rng(20_260_101)
    t = np.arange(FRONT_END.samples) / SAMPLE_RATE
    harmonics = [np.sin(2 * np.pi * 220 * k * t) / k for k in range(1, 12)]
    noise = rng.standard_normal(len(t))
    clicks = np.where(np.arange(len(t)) % 1600 < 8, 1.0, 0.0)
    sounds: Sequence[Any] = (
        np.sin(2 * np.pi * 440 * t),
        sum(harmonics),
        sum(np.sin(2 * np.pi * f * t) for f in (261.6, 329.6, 392.0)),
        np.sin(2 * np.pi * (100 * t + 1500 * t**2)),
        noise,
        np.cumsum(noise) - np.convolve(np.cumsum(noise), np.full(512, 1 / 512), "same"),
        clicks + 0.01 * noise,
        sum(harmonics) * np.exp(-4 * t) + 0.001 * noise,
    )
    scaled = np.stack([0.5 * s / np.abs(s).max() for s in sounds])
    return np.asarray(np.round(scaled * 32767) / 32768, np.float32)  # exact as 16-bit WAV


def _check_decisions(
    folder: Path, gate_network: "keras.Model", threshold: float, clips: Sequence[Clip], name: str
) -> dict[str, Any]:
    """Exported against Keras gate on real windows, at the operating point: the share that differs."""
    gate = _exported(folder)[0]
    scores, images = [np.empty(0, np.float32)], [np.empty((0, *FRONT_END.shape), np.uint8)]
    for clip in [c for c in clips if c.split == "validation"][:_DECISION_CLIPS]:
        try:
            windows = cut(decode(sources.read(clip.path), clip.name))
        except (BadClip, sources.Unreachable):
            continue
        chosen = np.flatnonzero(audible(windows))
        if len(chosen) > _DECISION_WINDOWS:
            chosen = chosen[np.linspace(0, len(chosen) - 1, _DECISION_WINDOWS).astype(np.int64)]
        scores.append(gate.scores(windows[chosen]))
        images.append(FRONT_END.images(windows[chosen]))
    answered, count = np.concatenate(scores) >= threshold, sum(map(len, scores))
    if not count:
        return {"windows": 0, "decisions_differ": None}
    every = np.concatenate(images)[..., None].astype(np.float32)
    expected = gate_network.predict(every, batch_size=256, verbose=0)[:, 0] >= threshold
    differ = float((answered != expected).mean())
    if differ > DECISIONS_TOLERANCE:
        raise ReleaseError(
            f"{name}: the exported gate decides otherwise than the Keras gate on {differ:.2%} of {count} "
            f"validation windows, at most {DECISIONS_TOLERANCE:.1%} is accepted; the release was not made"
        )
    return {"windows": count, "decisions_differ": differ}


def _write_golden(folder: Path) -> None:
    windows = golden_windows()
    gate, classifier = _exported(folder)
    images = FRONT_END.images(windows)
    answers = np.stack([classifier.image_probabilities(i[None]) for i in images])
    np.savez_compressed(folder / GOLDEN, windows=windows, gate=gate.scores(windows), classifier=answers)


def _exported(folder: Path) -> tuple[Gate, Classifier]:
    return Gate(folder / EXTRA / "gate.tflite"), Classifier(folder / EXTRA / "classifier.tflite")


def _check_parity(folder: Path, gate_network: "keras.Model", network: "keras.Model", name: str) -> None:
    """Keras = SavedModel = LiteRT on the golden windows and on a longer clip of them, or a `ReleaseError`."""
    import tensorflow as tf

    from twophase.audio.frontend_graph import image_graph

    windows = golden_windows()
    clip = np.concatenate(windows[:4])
    gate, classifier = _exported(folder)
    images = tf.convert_to_tensor(FRONT_END.images(windows), tf.float32)[..., None]
    keras_probabilities = tf.nn.softmax(network(images, training=False)).numpy()
    lite = np.stack([classifier.image_probabilities(i[None]) for i in FRONT_END.images(windows)])
    served = tf.saved_model.load(str(folder)).signatures

    def answer(signature: str, **inputs: Any) -> Floats:
        return np.asarray(served[signature](**inputs)["probabilities"].numpy(), np.float32)

    wavs = tf.stack([tf.audio.encode_wav(w[:, None], SAMPLE_RATE) for w in windows])
    gate_logits = gate_network(image_graph(tf.constant(windows))[..., None], training=False).numpy()[:, 0]
    for what, one, other, tolerance in (
        ("classifier: LiteRT and Keras", lite, keras_probabilities, PROBABILITY_TOLERANCE),
        (
            "classifier: SavedModel (images) and Keras",
            answer("images", images=FRONT_END.images(windows)[:, None]),
            lite,
            PROBABILITY_TOLERANCE,
        ),
        ("classifier: SavedModel (pcm) and LiteRT", answer("pcm", pcm=windows), lite, PROBABILITY_TOLERANCE),
        (
            "classifier: SavedModel (audio_bytes) and LiteRT",
            answer("serving_default", audio_bytes=wavs),
            lite,
            PROBABILITY_TOLERANCE,
        ),
        (
            "classifier: SavedModel and LiteRT on a longer clip",
            answer("pcm", pcm=clip[None])[0],
            classifier.clip_probabilities(clip),
            PROBABILITY_TOLERANCE,
        ),
        ("gate: LiteRT and Keras", gate.scores(windows), gate_logits, GATE_TOLERANCE),
    ):
        off = float(np.abs(one - other).max())
        if not off <= tolerance:
            raise ReleaseError(
                f"{name}: {what} differ by {off:.4g} on the golden windows, at most {tolerance:g} is accepted; "
                "the release was not made"
            )
