"""What tests of several rooms share: the real recordings where they are, and a tiny pair trained once a session."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WANTED = ("Flute", "Snare_drum")
SPLITS = ("train",) * 5 + ("validation",) * 3 + ("test",) * 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules come first, or one worker would wait at the end for the other."""
    longest = ("pipelines/test_run.py", "/training/", "/release/")
    items.sort(key=lambda item: [part not in item.nodeid for part in longest])


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings that `TWOPHASE_RECORDINGS` names."""
    named = os.environ.get("TWOPHASE_RECORDINGS", "")
    if not named or not (Path(named) / "labels.csv").is_file():
        pytest.skip("needs real recordings: set TWOPHASE_RECORDINGS to a folder with labels.csv and wanted.txt")
    return Path(named)


@dataclass(frozen=True)
class TinyPair:
    """A data folder of 44 rendered clips, its image set, and a gate and a classifier trained on it for one epoch."""

    data: Path
    workdir: Path
    gate: Path
    classifier: Path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips of two wanted and two other labels, with a `split` column so that every split has all of them."""
    from twophase.audio import synth

    folder = tmp_path_factory.mktemp("data") / "tiny"
    synth.write_clips(folder, len(SPLITS), seed=7, labels=(*WANTED, *synth.OTHER_LABELS[:2]))
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fname", "label", "manually_verified", "split"])
        for i, row in enumerate(rows):
            writer.writerow([row["fname"], row["label"], "1", SPLITS[i % len(SPLITS)]])
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    from twophase.audio import dataset, images
    from twophase.training import train
    from twophase.training.fit import Recipe

    workdir = tmp_path_factory.mktemp("pair")
    made = images.make_all(workdir, dataset.read_source(tiny_data, WANTED), "fail", lambda done, total: None)
    recipe = Recipe(steps=8)
    gate = train.train_gate(made, workdir, recipe)
    return TinyPair(tiny_data, workdir, gate, train.train_classifier(made, workdir, recipe))


@pytest.fixture(scope="session")
def tiny_release(tiny_pair: TinyPair) -> Path:
    """A real release of the tiny pair."""
    from twophase.audio.images import ImageSet
    from twophase.release.export import export
    from twophase.training.judge import judge
    from twophase.training.operating_point import DEFAULT_RULE

    images = ImageSet(tiny_pair.workdir / "set")
    judged = judge(
        images, tiny_pair.gate, tiny_pair.classifier, DEFAULT_RULE, tiny_pair.workdir, lambda by, total: None
    )
    releases = tiny_pair.workdir / "releases"
    return export(
        tiny_pair.gate, tiny_pair.classifier, judged.point, judged.metrics, judged.lineage, images.clips, releases
    )
