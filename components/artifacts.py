"""What steps hand to one another: whole files, in the artifact's own place, with their digest in its metadata.

No two steps need a disk in common. A step reads what its inputs' paths hold, works in `workdir`, which may be empty and
may be gone afterwards (where it is kept, as on one machine, it saves work), and copies what it made to its outputs'
paths. Where those are (a folder, a bucket mounted or copied by the engine) is the engine's business.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twophase.audio.clips import Clip, Clips
from twophase.audio.dataset import Dataset
from twophase.files import digest, digest_of

if TYPE_CHECKING:
    from kfp.dsl import Artifact, ClassificationMetrics

    from twophase.training.answers import Answers

CURVE_POINTS = 100
"""Most points of a curve in an artifact's metadata: what Vertex AI's console draws."""


def hand_on(made: Path, artifact: "Artifact", **facts: Any) -> None:
    """Give a file or folder to the steps that take `artifact`, with its digest and these facts as metadata."""
    place = Path(artifact.path)
    if made.is_dir():
        shutil.copytree(made, place, copy_function=link_or_copy, dirs_exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(made, place)
    artifact.metadata.update(digest=digest_of_tree(made), **facts)


def digest_of_tree(path: Path) -> str:
    """`sha256` of a file, or of the names and digests of all files of a folder."""
    if path.is_file():
        return digest(path)
    return digest_of([[p.relative_to(path).as_posix(), digest(p)] for p in sorted(path.rglob("*")) if p.is_file()])


def carry_clips(dataset: Dataset, folder: Path) -> Dataset:
    """The same dataset with its clips copied below `folder`: rendered clips travel with the list that names them."""

    def carried(clip: Clip) -> Clip:
        place = folder / clip.name
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(clip.path, place)
        return replace(clip, path=str(place))

    return replace(dataset, clips=Clips.of(map(carried, dataset.clips)))


def log_gate(answers: "Answers", metrics: "ClassificationMetrics") -> None:
    """The gate's ROC curve: wanted clips let through against unwanted ones, over its thresholds (logits)."""
    order = np.argsort(-answers.gate, kind="stable")
    wanted = answers.wanted[order]
    last = np.flatnonzero(np.append(np.diff(answers.gate[order]) != 0, True))  # clips of one score pass together
    last = last[np.unique(np.linspace(0, len(last) - 1, CURVE_POINTS).astype(np.int64))]
    tpr = np.cumsum(wanted)[last] / max(int(wanted.sum()), 1)
    fpr = np.cumsum(~wanted)[last] / max(int((~wanted).sum()), 1)
    metrics.log_roc_curve(fpr.tolist(), tpr.tolist(), answers.gate[order][last].astype(float).tolist())


def link_or_copy(source: Any, target: Any) -> None:
    """Link where that can be done: nothing that is handed on is ever changed in place. Buckets cannot."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
