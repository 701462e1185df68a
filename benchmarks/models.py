"""How good, how small and how fast the pair is: grouped 5-fold cross-validation on recordings, beside larger networks.

    TWOPHASE_RECORDINGS=DIR python benchmarks/models.py        # an hour on two cores; resumable

Each fold's test clips share no group with its training or validation clips, and decide nothing: neither weights nor
epochs nor thresholds nor temperature. Every figure is of the exported files. Figures are means over the folds; those
with a goal have the 95 % interval of the folds' clips together, drawn again by group. What carries over from one source
to another is asked of a pair that has learned from rendered sounds alone. Networks of the reference notebook's shape
(MobileNetV2 and VGG19 on images of 224 x 224 RGB) are compared by size and LiteRT time, which do not depend on what
they have learned.
Trained models stay in `twophase-work/benchmark-models`.
"""

import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from _report import at_least, at_most, emit, machine, row

from twophase.audio import synth
from twophase.audio.dataset import Dataset, read_source
from twophase.audio.images import ImageSet, make_all
from twophase.errors import TwoPhaseError
from twophase.files import read_json
from twophase.release.manifest import NONE
from twophase.training import train
from twophase.training.answers import Answers, ask
from twophase.training.conditions import CONDITIONS
from twophase.training.evaluate import calibration_error, evaluate
from twophase.training.intervals import groups_of, interval
from twophase.training.operating_point import DEFAULT_RULE, Rule, choose

FOLDS = 5
WORKDIR = Path("twophase-work/benchmark-models")
SIDE = 224
LATENCY_RUNS = 50
RENDERED = 120  # clips of each label


def run(recordings: Path | None = None, workdir: Path = WORKDIR) -> dict[str, Any]:
    """All figures; `recordings` is a data folder with groups, by default what TWOPHASE_RECORDINGS names."""
    named = recordings or os.environ.get("TWOPHASE_RECORDINGS")
    if not named:
        raise TwoPhaseError(
            "TWOPHASE_RECORDINGS: is not set; name a folder of recordings with labels.csv and wanted.txt"
        )
    found = read_source(Path(named))
    folds = [_fold(found, k, workdir) for k in range(FOLDS)]
    rows, mean = [], {}
    for name in folds[0]["figures"]:
        values = np.array([f["figures"][name] for f in folds], float)
        mean[name] = float(values.mean())
        rows += [row(name, mean[name], "share")]
        rows += [row(f"{name}, fold {k}", float(value), "share") for k, value in enumerate(values)]
    for condition in CONDITIONS:
        given = [f["answers"][condition] for f in folds]
        for name, (low, high) in _intervals(given).items():
            rows += [row(f"{condition}: {name}, 95 % from", low, "share")]
            rows += [row(f"{condition}: {name}, 95 % to", high, "share")]
        error, low, high = _calibration(given)
        mean[f"{condition}: calibration error"] = error
        rows += [row(f"{condition}: calibration error, debiased", error, "share")]
        rows += [
            row(f"{condition}: calibration error, {side} end", v, "share") for side, v in (("low", low), ("high", high))
        ]
    across = _across_sources(found, workdir)
    rows += [row(f"learned from rendered sounds alone: {name}", value, "share") for name, value in across.items()]
    seconds = {k: median(f["seconds"][k] for f in folds) for k in folds[0]["seconds"]}
    rows += [row(f"training the {k}, median of folds", v, "s") for k, v in seconds.items()]
    quick = _quick(found, workdir)
    rows += [row("training both, --quick", quick, "s")]
    sizes, times = _files(folds[0])
    rows += [row(f"{name}: file", size, "bytes") for name, size in sizes.items()]
    rows += [row(f"{name}: LiteRT, 1 thread, {what}", v, "ms") for name, t in times.items() for what, v in t.items()]
    goals = [
        at_least("gate, clean: stopped at 99 % recall", mean["clean: gate stopped at 99 % recall"], 0.95),
        at_least("gate, channel: stopped at 99 % recall", mean["channel: gate stopped at 99 % recall"], 0.95),
        at_least("gate, mixed: stopped at 95 % recall", mean["mixed: gate stopped at 95 % recall"], 0.80),
        at_most("gate file / 64 KB", sizes["gate"] / 65536, 1.0),
        at_most("gate time / MobileNetV2's", times["gate"]["min"] / times["MobileNetV2, dynamic range"]["min"], 0.1),
        at_most(
            "gate: decisions that the export changes", mean["gate windows that the export decides otherwise"], 0.005
        ),
        at_least("classifier, clean", mean["clean: classifier accuracy"], 0.95),
        at_least("classifier, channel", mean["channel: classifier accuracy"], 0.92),
        at_least("classifier, mixed", mean["mixed: classifier accuracy"], 0.85),
        *(at_most(f"classifier: calibration error, {c}", mean[f"{c}: calibration error"], 0.03) for c in CONDITIONS),
        at_least("pair, clean: accuracy", mean["clean: pair accuracy"], 0.95),
        at_most("pair, clean: escalated clips / a perfect gate's", mean["clean: escalated / wanted clips"], 1.1),
        at_most("training both, minutes", (seconds["gate"] + seconds["classifier"]) / 60, 10.0),
        at_most("training both, --quick, seconds", quick, 90.0),
        at_most("large classifier file / 5 MB", sizes["large classifier"] / 5e6, 1.0),
        at_most("large classifier time / 10 ms", times["large classifier"]["min"] / 10, 1.0),
    ]
    return {"benchmark": "models", "machine": machine(), "rows": rows, "goals": goals}


def _fold(found: Dataset, k: int, workdir: Path) -> dict[str, Any]:
    """Train on what is not of fold k, and ask the exported pair about fold k."""
    images = _images(found, k, workdir)
    seconds: dict[str, float] = {}
    models: dict[str, Path] = {}
    large = partial(train.train_classifier, backbone="large")
    for kind, fit in (("gate", train.train_gate), ("classifier", train.train_classifier), ("large classifier", large)):
        recipe = train.recipe(kind.split(" ")[-1], False, 0)
        models[kind] = fit(images, workdir, recipe, progress=_say(f"fold {k} {kind}"))
        history = read_json(models[kind] / "history.json", "trained model")["history"]
        seconds[kind] = sum(history["seconds"])
    asked = [c for c in images.clips if c.split != "train"]
    names = (*images.wanted, NONE)
    gate = models["gate"] / "gate.tflite"
    answers = {c: ask(gate, models["classifier"] / "classifier.tflite", names, asked, condition=c) for c in CONDITIONS}
    tested = [c for c in asked if c.split == "test"]
    by_large = {
        c: ask(gate, models["large classifier"] / "classifier.tflite", names, tested, condition=c) for c in CONDITIONS
    }
    point = choose(answers["clean"].of("validation"), DEFAULT_RULE)
    figures: dict[str, float] = {}
    for condition, given in answers.items():
        test = given.of("test")
        found_here = evaluate(test, point.threshold, point.rejection)
        careful = evaluate(test, choose(given.of("validation"), Rule(recall=0.99)).threshold)["gate"]
        larger = evaluate(by_large[condition], point.threshold, point.rejection)
        named = test.probabilities[:, :-1].argmax(axis=1) == test.truth
        figures |= {
            f"{condition}: {name}": float(value)
            for name, value in {
                "gate accuracy": found_here["gate"]["accuracy"],
                "gate stopped at 95 % recall": found_here["gate"]["at_recall"]["0.95"]["stopped"],
                "gate stopped at 99 % recall": found_here["gate"]["at_recall"]["0.99"]["stopped"],
                "gate recall, threshold for 99 % of validation": careful["recall"],
                "gate stopped, threshold for 99 % of validation": careful["stopped"],
                "classifier accuracy": found_here["classifier"]["accuracy"],
                "classifier accuracy among the wanted labels": named[test.wanted].mean(),
                "classifier top 3": found_here["classifier"]["top3"],
                "pair accuracy": found_here["pair"]["accuracy"],
                "large classifier accuracy": larger["classifier"]["accuracy"],
                "pair accuracy with the large classifier": larger["pair"]["accuracy"],
                "escalated / wanted clips": found_here["pair"]["calls_ratio"] / test.wanted.mean(),
            }.items()
        }
    figures["gate windows that the export decides otherwise"] = _changed(models["gate"], images, point.threshold)
    tests = {c: given.of("test") for c, given in answers.items()}
    return {"figures": figures, "answers": tests, "seconds": seconds, "models": models}


def _images(found: Dataset, k: int, workdir: Path) -> ImageSet:
    clips = tuple(replace(c, split=s) for c, s in zip(found.clips, _splits(found, k), strict=True))
    return make_all(workdir, replace(found, clips=clips), "skip", lambda done, planned: None)


def _quick(found: Dataset, workdir: Path) -> float:
    """Seconds that both trainings of `--quick` take on fold 0, one after the other, export included."""
    images = _images(found, 0, workdir)
    begun = perf_counter()
    with TemporaryDirectory() as fresh:
        train.train_gate(images, Path(fresh), train.recipe("gate", True, 0), _say("quick gate"))
        train.train_classifier(
            images, Path(fresh), train.recipe("classifier", True, 0), progress=_say("quick classifier")
        )
    return perf_counter() - begun


def _across_sources(found: Dataset, workdir: Path) -> dict[str, float]:
    """Train on rendered sounds of the labels that can be rendered, and ask about the recordings."""
    shared = [label for label in found.wanted if label in synth.ALL_LABELS]
    if not (workdir / "rendered").is_dir():
        synth.write_clips(workdir / "rendered", RENDERED, 0, (*shared, *synth.OTHER_LABELS))
    images = make_all(workdir / "across", read_source(workdir / "rendered"), "skip", lambda done, planned: None)
    gate = train.train_gate(images, workdir, train.recipe("gate", False, 0), progress=_say("rendered gate"))
    classifier = train.train_classifier(
        images, workdir, train.recipe("classifier", False, 0), progress=_say("rendered classifier")
    )
    files, names = (gate / "gate.tflite", classifier / "classifier.tflite"), (*images.wanted, NONE)
    rendered = ask(*files, names, [c for c in images.clips if c.split == "validation"])
    clips = [c for c in found.clips if c.label in shared or c.label not in found.wanted]
    figures = evaluate(ask(*files, names, clips), choose(rendered, DEFAULT_RULE).threshold)
    return {
        "gate accuracy": figures["gate"]["accuracy"],
        "gate stopped at 95 % recall": figures["gate"]["at_recall"]["0.95"]["stopped"],
        "classifier accuracy": figures["classifier"]["accuracy"],
        "classifier top 3": figures["classifier"]["top3"],
        "pair accuracy": figures["pair"]["accuracy"],
    }


def _splits(found: Dataset, k: int) -> list[str]:
    """Fold k for testing, an eighth of the rest for validation, groups kept together and labels spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([c.label for c in found.clips])
    groups = np.array([c.group for c in found.clips])

    def cut(rows: np.ndarray, parts: int) -> list[np.ndarray]:
        folds = StratifiedGroupKFold(parts, shuffle=True, random_state=0).split(rows, labels[rows], groups[rows])
        return [rows[chosen] for _, chosen in folds]

    everything = np.arange(len(labels))
    test = cut(everything, FOLDS)[k]
    validation = cut(np.setdiff1d(everything, test), 8)[0]
    split = np.full(len(labels), "train", dtype="<U10")
    split[test], split[validation] = "test", "validation"
    return [str(s) for s in split]


def _changed(gate: Path, images: ImageSet, threshold: float) -> float:
    """The share of test windows on which the float network and the exported file stand on different sides."""
    import keras
    import tensorflow as tf

    from twophase.audio.decode import decode
    from twophase.audio.frontend_graph import image_graph
    from twophase.audio.windows import audible, cut
    from twophase.release.runtime import Gate

    network, exported = keras.models.load_model(gate / "network.keras", compile=False), Gate(gate / "gate.tflite")
    different = total = 0
    for clip in [c for c in images.clips if c.split == "test"]:
        windows = cut(decode(Path(clip.path)))
        windows = windows[audible(windows)][:16]
        kept = np.asarray(network(image_graph(tf.constant(windows))[..., None], training=False))[:, 0]
        different += int(((kept >= threshold) != (exported.scores(windows) >= threshold)).sum())
        total += len(windows)
    return different / total


def _intervals(folds: list[Answers]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the classifier's accuracy and of what the gate stops, all folds' clips together, by group.

    Each fold's gate has the threshold that its own recall asks for, as in the figures.
    """
    groups = groups_of([c for a in folds for c in a.clips])
    wanted = np.concatenate([a.wanted for a in folds])
    right = np.concatenate([a.probabilities.argmax(axis=1) == a.truth for a in folds])
    found = {"classifier accuracy": interval(right, wanted, groups)}
    for recall in (0.95, 0.99):
        stopped = [a.gate < np.sort(a.gate[a.wanted])[int((1 - recall) * a.wanted.sum() + 1e-9)] for a in folds]
        found[f"gate stopped at {recall:.0%} recall".replace("%", " %")] = interval(
            np.concatenate(stopped), ~wanted, groups
        )
    return found


def _calibration(folds: list[Answers]) -> tuple[float, float, float]:
    """Calibration error of wanted clips pooled over the folds, less what perfectly calibrated answers would show."""
    probabilities = np.concatenate([a.probabilities[a.wanted] for a in folds])
    truth = np.concatenate([a.truth[a.wanted] for a in folds])
    groups = np.unique([c.group for a in folds for c in a.at(np.flatnonzero(a.wanted)).clips], return_inverse=True)[1]
    rng = np.random.default_rng(0)

    def debiased(rows: np.ndarray) -> float:
        p, right = probabilities[rows], truth[rows]
        top, confidence = p.argmax(axis=1), p.max(axis=1)
        chance = np.mean(
            [calibration_error(p, np.where(rng.random(len(p)) < confidence, top, -1)) or 0.0 for _ in range(50)]
        )
        return float(max(0.0, (calibration_error(p, right) or 0.0) - chance))

    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    draws = [
        debiased(np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))]))
        for _ in range(200)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return debiased(np.arange(len(truth))), float(low), float(high)


def _files(fold: dict[str, Any]) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """Bytes and LiteRT milliseconds of our two files and of the notebook's networks."""
    contents = {k: (path / f"{k.split(' ')[-1]}.tflite").read_bytes() for k, path in fold["models"].items()}
    contents["MobileNetV2, dynamic range"] = _notebook("MobileNetV2", True)
    contents["MobileNetV2, float"] = _notebook("MobileNetV2", False)
    contents["VGG19, float"] = _notebook("VGG19", False)
    return {k: len(v) for k, v in contents.items()}, {
        k: _latency(v, 5 if "VGG" in k else LATENCY_RUNS) for k, v in contents.items()
    }


def _notebook(name: str, quantised: bool) -> bytes:
    import keras
    import tensorflow as tf

    base = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(SIDE, SIDE, 3), pooling="avg"
    )
    network = keras.Sequential([base, keras.layers.Dense(1 if quantised else 18)])
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantised else []
    with redirect_stdout(sys.stderr):  # Keras lists every variable
        return bytes(converter.convert())


def _latency(content: bytes, runs: int) -> dict[str, float]:
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(model_content=content, num_threads=1)
    model.allocate_tensors()
    entry = model.get_input_details()[0]
    rng = np.random.default_rng(0)
    value = (
        rng.integers(0, 256, entry["shape"], dtype=np.uint8)
        if entry["dtype"] == np.uint8
        else rng.standard_normal(entry["shape"], dtype=np.float32) * np.float32(0.1)
    )
    times = []
    for _ in range(runs + 3):
        model.set_tensor(entry["index"], value)
        begun = perf_counter()
        model.invoke()
        times.append((perf_counter() - begun) * 1e3)
    return {"min": min(times[3:]), "median": median(times[3:])}


def _say(what: str) -> Any:
    def report(done: int, planned: int, logs: dict[str, float]) -> None:
        print(f"{what}: epoch {done}/{planned}, validation loss {logs['val_loss']:.3f}", file=sys.stderr)

    return report


if __name__ == "__main__":
    emit(run())
