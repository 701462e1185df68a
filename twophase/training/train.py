"""Training the pair on one image set: which rows, which targets, which weights; and what a trained model is.

    WORKDIR/fits/KEY/                     where an interrupted fit stands (see fit.py)
    WORKDIR/models/KEY/                   a trained model, `MODEL` below; KEY is a digest of images and recipe
      network.keras                       the float network, image in, logits out
      gate.tflite | classifier.tflite     the same, as exported
      history.json                        curves, labels, recipe; written last: a folder without it is no model

Both networks learn the wanted labels and, as their last output, none of these. So the classifier can still say no when
the gate was wrong; and the gate, of which the log odds of wanted against none are all that is kept, learns what its
labels have in common by telling them apart (it stops .16 more of what is mixed than if it learned wanted or not).
Windows are weighted so that neither a long clip nor a common label outweighs the rest.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twophase.audio.dataset import SPLITS
from twophase.audio.frontend import Floats
from twophase.audio.images import ImageSet
from twophase.errors import TwoPhaseError
from twophase.files import code_digest, digest, digest_of, new_directory, write_json
from twophase.release.runtime import pool
from twophase.training import networks
from twophase.training.augment import Augment
from twophase.training.distributed import share, worker
from twophase.training.fit import Progress, Recipe, fit, prepare

if TYPE_CHECKING:
    import keras

    from twophase.training.image_generator import ImageSequence

BATCH = 64

_BLOCK = 4096  # rows that are asked about at once: 64 MB of images

AUGMENT = Augment(
    warp_semitones=2.5,
    shift_frames=6,
    background_probability=0.5,
    background_snr_db=(-5.0, 25.0),
    band_limit_probability=0.5,
    quiet_probability=0.25,
    time_masks=2,
    time_mask_frames=4,
    freq_masks=2,
    freq_mask_mels=4,
)
"""What both networks' images go through; docs/models.md says what each part gives."""


def recipe(kind: str, quick: bool, seed: int) -> Recipe:
    """The default recipe of `gate` or `classifier`; a quick one shows that all works, not what is possible."""
    decay = {"gate": 1e-3, "classifier": 0.05}[kind]
    return Recipe(400 if quick else 2000, learning_rate=2e-3, weight_decay=decay, seed=seed, augment=AUGMENT)


def train_gate(images: ImageSet, workdir: Path, recipe: Recipe, progress: Progress = lambda *_: None) -> Path:
    """Train the gate and return its MODEL folder; the same images and recipe are trained once per `workdir`."""
    key = key_of("gate", images, recipe, [networks.STARTS["gate"]])
    model = workdir / "models" / key
    if model.is_dir():
        return model
    from twophase.release.convert import gate_tflite

    prepare(recipe.seed)
    network = networks.gate(len(images.wanted) + 1)
    history = fit_rows(network, images, _targets(images), recipe, workdir / "fits" / key, progress)
    network = networks.wanted_or_not(network)
    _write(model, network, {"gate.tflite": gate_tflite(network)}, ["wanted"], recipe, history)
    return model


def train_classifier(
    images: ImageSet,
    workdir: Path,
    recipe: Recipe,
    backbone: str = "small",
    weights: str | None = None,
    progress: Progress = lambda *_: None,
) -> Path:
    """Train the classifier and return its MODEL folder; like `train_gate`."""
    starts = [*(path for name, path in networks.STARTS.items() if name == backbone), Path(weights or "")]
    key = key_of(f"classifier {backbone} {weights}", images, recipe, starts)
    model = workdir / "models" / key
    if model.is_dir():
        return model
    from twophase.release.convert import classifier_tflite

    prepare(recipe.seed)
    network = networks.classifier(len(images.wanted) + 1, backbone, weights)
    history = fit_rows(network, images, _targets(images), recipe, workdir / "fits" / key, progress)
    calibrate(network, images)
    _write(model, network, {"classifier.tflite": classifier_tflite(network)}, images.wanted, recipe, history)
    return model


def _targets(images: ImageSet) -> NDArray[np.int32]:
    """For each row the index of its label among the wanted ones, or their number for none of these, int32 [n]."""
    target_of_label = np.full(len(images.labels), len(images.wanted), np.int32)
    for i, label in enumerate(images.wanted):
        target_of_label[images.labels.index(label)] = i
    return target_of_label[images.label_of_row]


def fit_rows(
    network: "keras.Model",
    images: ImageSet,
    targets: NDArray[np.int32],
    recipe: Recipe,
    state: Path,
    progress: Progress,
) -> dict[str, list[float]]:
    """Fit a network to the train rows of an image set; what it does on validation rows, as much augmented, is noted.

    `targets` says for each row of the set which output is right.
    """
    import keras

    from twophase.training.image_generator import ImageGenerator

    wanted = [images.labels.index(w) for w in images.wanted]
    one_hot = np.eye(network.output_shape[-1], dtype=np.float32)

    def batches(split: str) -> "ImageSequence":
        rows = images.rows(split)
        is_wanted = np.isin(images.label_of_row[rows], wanted)
        for kind, there in (("wanted", is_wanted.any()), ("unwanted", not is_wanted.all())):
            if not there:
                raise TwoPhaseError(
                    f"the {split} split has no {kind} clip; both wanted and unwanted clips are needed there: add clips "
                    "of other recordings, or give a split column"
                )
        weights = _weights(images.clip_of_row[rows], targets[rows])
        times = np.ceil(weights).astype(np.int64)  # what weighs much comes often: one loud image would shake a batch
        rows, weights = np.repeat(rows, times), np.repeat(weights / times, times).astype(np.float32)
        mixes = recipe.augment.background_probability > 0
        behind = images.subset(rows[~np.isin(images.label_of_row[rows], wanted)]) if mixes else None
        generator = ImageGenerator(augment=recipe.augment, background=behind)
        labels = one_hot[targets[rows]]
        learning = split == SPLITS[0]
        index, count = worker() if learning else (0, 1)  # validation is every worker's own
        size, subset = share(BATCH, count), images.subset(rows)
        return generator.flow(subset, labels, size, learning, weights, recipe.seed, shard=(index, count))

    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05)
    return fit(network, loss, batches(SPLITS[0]), batches(SPLITS[1]), recipe, state, progress)


def calibrate(network: "keras.Model", images: ImageSet) -> float:
    """Divide the last layer by the temperature that fits the validation clips best, and return it.

    Guo et al., ICML 2017 (arXiv:1706.04599), of clips, not windows: what is calibrated is what is answered.
    """
    rows = images.rows(SPLITS[1])
    blocks = np.split(rows, range(_BLOCK, len(rows), _BLOCK))  # memory holds the images of one
    logits = np.concatenate(
        [network.predict(images.take(b).astype(np.float32)[..., None], batch_size=256, verbose=0) for b in blocks]
    )
    first = np.unique(images.clip_of_row[rows], return_index=True)[1]
    clips: list[Floats] = np.split(logits, first[1:])
    right = _targets(images)[rows][first]

    def loss(temperature: float) -> float:
        given = [pool(w / np.float32(temperature))[truth] for w, truth in zip(clips, right, strict=True)]
        return float(-np.log(np.maximum(given, 1e-12)).mean())

    temperature = float(min(np.geomspace(0.2, 5.0, 129), key=loss))
    layer = network.get_layer("logits")
    layer.set_weights([weight / np.float32(temperature) for weight in layer.get_weights()])
    return temperature


def _weights(clip: NDArray[np.int32], target: NDArray[np.int32]) -> NDArray[np.float32]:
    """Weights of mean 1 a row: a clip counts by the root of its windows, a target by the fourth root of its clips."""
    weight = 1.0 / np.sqrt(np.bincount(clip)[clip])
    share = np.bincount(target, weight) / weight.sum()
    weight = weight / share[target] ** 0.75
    return np.asarray(weight / weight.mean(), np.float32)


def key_of(what: str, images: ImageSet, recipe: Recipe, starts: Iterable[Path]) -> str:
    """Names a fit by all that it depends on: images, recipe, code, and files of weights, where they are, to start from.

    `what` is its kind, and after a space what else sets it apart.
    """
    code = code_digest(
        *(
            f"twophase.training.{name}"
            for name in ("augment", "distributed", "fit", "image_generator", "networks", "train")
        ),
        "twophase.audio.frontend_graph",
        "twophase.release.convert",
        "twophase.release.runtime",
    )
    weights = [digest(path) for path in starts if path.is_file()]
    return f"{what.split(' ')[0]}-{digest_of([what, images.digest, asdict(recipe), code, weights])[:16]}"


def _write(
    model: Path,
    network: "keras.Model",
    files: dict[str, bytes],
    labels: Sequence[str],
    recipe: Recipe,
    history: dict[str, list[float]],
) -> None:
    with new_directory(model) as folder:
        network.save(folder / "network.keras")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        weights = digest(b"".join(np.ascontiguousarray(w).tobytes() for w in network.get_weights()))
        write_json(
            folder / "history.json",
            {"labels": list(labels), "recipe": asdict(recipe), "history": history, "weights": weights},
        )


def report(at: Callable[[int, int, str], object]) -> Progress:
    """A `Progress` that says `done`, `total` and the losses to a step's `at`."""
    return lambda done, total, logs: at(done, total, f"loss {logs['loss']:.3f}, validation {logs['val_loss']:.3f}")
