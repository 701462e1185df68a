"""What steps hand to one another: whole, with its digest, and without anything left on a disk in common."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp.dsl import ClassificationMetrics, Dataset

from components import artifacts
from twophase.audio.clips import Clip
from twophase.audio.dataset import Dataset as Clips
from twophase.training.answers import Answers


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "made" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "a").write_bytes(b"1")
    (tmp_path / "made" / "deep" / "b").write_bytes(b"2")
    return tmp_path / "made"


def test_a_folder_is_handed_on_whole_and_outlives_where_it_was_made(made: Path, tmp_path: Path) -> None:
    artifact, before = Dataset(uri=str(tmp_path / "run" / "artifact")), tree(made)
    artifacts.hand_on(made, artifact, images=2)
    assert artifact.metadata == {"digest": artifacts.digest_of_tree(made), "images": 2}
    shutil.rmtree(made)
    assert tree(Path(artifact.path)) == before


def test_a_step_that_is_tried_again_hands_on_what_it_made_last(made: Path, tmp_path: Path) -> None:
    artifact = Dataset(uri=str(tmp_path / "artifact"))
    artifacts.hand_on(made, artifact)
    first = artifact.metadata["digest"]
    (made / "a").unlink()
    (made / "a").write_bytes(b"other")
    artifacts.hand_on(made, artifact)
    assert artifact.metadata["digest"] != first
    assert tree(Path(artifact.path)) == tree(made)


def test_a_file_is_handed_on_where_files_cannot_be_linked(made: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links in a bucket")

    monkeypatch.setattr(artifacts.os, "link", refuse)
    artifact = Dataset(uri=str(tmp_path / "folder" / "artifact"))
    artifacts.hand_on(made / "a", artifact)
    assert Path(artifact.path).read_bytes() == b"1"


def test_rendered_clips_travel_with_the_list_that_names_them(made: Path, tmp_path: Path) -> None:
    clips = tuple(Clip(f"{i}" * 64, str(made / name), name, "l", "g", "test") for i, name in enumerate(("a", "deep/b")))
    carried = artifacts.carry_clips(Clips(clips, ("l",)), tmp_path / "there")
    shutil.rmtree(made)
    assert [Path(c.path).read_bytes() for c in carried.clips] == [b"1", b"2"]
    assert [(c.name, c.sha256) for c in carried.clips] == [(c.name, c.sha256) for c in clips]


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=300))
def test_the_gate_s_curve_rises_from_few_to_all(scored: list[tuple[bool, int]]) -> None:
    clips = tuple(
        Clip(f"{i:064d}", "", "", "wanted" if wanted else "other", "", "test") for i, (wanted, _) in enumerate(scored)
    )
    scores = np.array([score for _, score in scored], np.float32)
    answers = Answers(
        clips,
        ("wanted", "none of these"),
        scores,
        np.zeros((len(clips), 2), np.float32),
        np.zeros(len(clips), np.int64),
    )
    metrics = ClassificationMetrics()
    artifacts.log_gate(answers, metrics)
    points = metrics.metadata["confidenceMetrics"]
    assert 1 <= len(points) <= artifacts.CURVE_POINTS
    for name in ("recall", "falsePositiveRate"):
        values = [point[name] for point in points]
        assert values == sorted(values)
    assert points[-1]["recall"] == float(any(wanted for wanted, _ in scored))
    thresholds = [point["confidenceThreshold"] for point in points]
    assert thresholds == sorted(thresholds, reverse=True)
