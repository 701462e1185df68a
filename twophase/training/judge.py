"""The judgement on a trained pair: what it answered, its operating point, its figures, and where it came from.

WORKDIR/evaluations/KEY/   KEY is a digest of images, models and rule: the same question is asked once
  validation.jsonl, test.jsonl   the answers (see answers.py)
  judgement.json                 operating point, figures on the test clips, lineage; written last
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twophase.audio.dataset import Clip
from twophase.audio.images import ImageSet
from twophase.errors import TwoPhaseError
from twophase.files import code_digest, digest, digest_of, read_json, write_json
from twophase.release.manifest import NONE, OperatingPoint
from twophase.training import answers
from twophase.training.answers import Answers, Report
from twophase.training.conditions import CONDITIONS, SWEEP
from twophase.training.evaluate import evaluate_conditions, gate_scores, robustness
from twophase.training.operating_point import COSTS, DEFAULT_RULE, Rule, choose, sweep

SWEPT_CLIPS = 100
"""Of how many test clips is asked how much noise and how low a level the pair bears: seconds, not minutes."""


@dataclass(frozen=True)
class Judgement:
    """What `judge` found, and the folder that keeps it."""

    folder: Path
    point: OperatingPoint
    metrics: dict[str, Any]
    """`twophase.training.evaluate.evaluate_conditions` on the test clips, `robustness` on some of them, and, on the
    validation clips, `operating_point.sweep` and `gate_scores`; `costs`, which the rule gives or the default."""
    lineage: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Judgement":
        """The judgement kept in `folder`."""
        value = read_json(folder / "judgement.json", "evaluation")
        return cls(folder, OperatingPoint(**value["point"]), value["metrics"], value["lineage"])

    @cached_property
    def validation(self) -> Answers:
        """Answers to the clips on which the threshold was chosen."""
        return answers.read(self.folder / "validation.jsonl")

    @cached_property
    def test(self) -> Answers:
        """Answers to the clips on which everything else was measured."""
        return answers.read(self.folder / "test.jsonl")

    def headline(self) -> dict[str, float]:
        """The figures that people ask for first: of clips as they are, and each one's worst under all conditions."""
        gate, classifier, pair = (self.metrics[k] for k in ("gate", "classifier", "pair"))
        figures = {
            "gate accuracy": gate["accuracy"],
            "gate recall": gate["recall"],
            "stopped": gate["stopped"],
            "classifier accuracy": classifier["accuracy"],
            "pair accuracy": pair["accuracy"],
            **{f"worst {name}": worst["value"] for name, worst in self.metrics["headline"].items()},
        }
        return {name: float(value) for name, value in figures.items() if value is not None}


def judge(images: ImageSet, gate: Path, classifier: Path, rule: Rule, workdir: Path, progress: Any) -> Judgement:
    """Ask the trained pair about validation and test clips and keep what came of it below `workdir`.

    `progress` is called with (newly finished, planned) clips. Raises `TwoPhaseError` without test clips.
    """
    models = {"gate": digest(gate / "gate.tflite"), "classifier": digest(classifier / "classifier.tflite")}
    code = code_digest(
        "twophase.audio.decode",
        "twophase.audio.windows",
        "twophase.audio.frontend",
        "twophase.release.runtime",
        "twophase.release.scores",
        "twophase.training",
    )
    folder = workdir / "evaluations" / digest_of([images.digest, models, asdict(rule), code])[:16]
    if (folder / "judgement.json").is_file():
        return _found_again(Judgement.read(folder), images)
    clips = [c for c in images.clips if c.split != "train"]
    tests = [c for c in clips if c.split == "test"]
    if not tests:
        raise TwoPhaseError(
            "the test split has no clips, so nothing can be said of the pair; add clips of other recordings"
        )
    some = sorted(tests, key=lambda c: c.sha256)[:SWEPT_CLIPS]
    harder = [c for c in CONDITIONS if c != "clean"]
    planned = len(clips) + len(harder) * len(tests) + len(SWEEP) * len(some)
    names = (*images.wanted, NONE)

    def asked(about: Sequence[Clip], condition: str = "clean") -> Answers:
        report: Report = lambda n: progress(n, planned)  # noqa: E731 - one expression, named for its type
        files = gate / "gate.tflite", classifier / "classifier.tflite"
        return answers.ask(*files, names, about, report, condition, backgrounds=tests)

    given = asked(clips)
    test, validation = given.of("test"), given.of("validation")
    point = choose(validation, rule)
    answers.write(folder / "validation.jsonl", validation)
    answers.write(folder / "test.jsonl", test)
    lineage = {
        "images": images.digest,
        "clips": {split: sum(c.split == split for c in images.clips) for split in ("train", "validation", "test")},
        **models,
    }
    easy = test.at(np.flatnonzero(np.isin([c.sha256 for c in test.clips], [c.sha256 for c in some])))
    heard = {"clean": test, **{condition: asked(tests, condition) for condition in harder}}
    difficult = {"clean": easy, **{condition: asked(some, condition) for condition in SWEEP}}
    metrics = {
        **evaluate_conditions(heard, point.threshold, point.rejection),
        "robustness": robustness(difficult, point.threshold, point.rejection),
        "sweep": sweep(validation, point.threshold, point.rejection),
        "gate_scores": gate_scores(validation, point.threshold),
        "costs": {name: getattr(rule if rule.recall is None else DEFAULT_RULE, name) for name in COSTS},
    }
    write_json(folder / "judgement.json", {"point": asdict(point), "metrics": metrics, "lineage": lineage})
    return Judgement(folder, point, metrics, lineage)


def _found_again(judged: Judgement, images: ImageSet) -> Judgement:
    """An earlier judgement with its clips where they are today: folders are moved, content is not."""
    today = {c.sha256: c for c in images.clips}
    for split in ("validation", "test"):
        kept = answers.read(judged.folder / f"{split}.jsonl")
        clips = tuple(today[c.sha256] for c in kept.clips)
        if clips != kept.clips:
            answers.write(judged.folder / f"{split}.jsonl", replace(kept, clips=clips))
    return judged
