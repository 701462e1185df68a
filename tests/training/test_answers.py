"""What is asked of a pair: what may pass is no figure, what is gone is named, and every window is counted."""

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from twophase.audio import sources
from twophase.audio.clips import Clip
from twophase.files import digest
from twophase.release import scores
from twophase.release.manifest import NONE
from twophase.training import answers
from twophase.training.answers import Answers
from twophase.training.evaluate import evaluate, evaluate_conditions, gate_scores


class Gate:
    """A gate that lets through what is loud."""

    def __init__(self, _: object) -> None:
        pass

    def scores(self, windows: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(np.square(windows).mean(axis=1) + 1e-9), np.float32)


class Classifier:
    """A classifier that is sure of its first label."""

    def __init__(self, _: object) -> None:
        pass

    def image_probabilities(self, images: np.ndarray) -> np.ndarray:
        return np.array([1.0, 0.0], np.float32)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the asking: networks would only take time."""
    monkeypatch.setattr(answers, "Gate", Gate)
    monkeypatch.setattr(answers, "Classifier", Classifier)


def clips(folder: Path, *labels: str, seconds: float = 0.5) -> list[Clip]:
    rng, found = np.random.default_rng(0), []
    for i, label in enumerate(labels):
        path = folder / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, int(16_000 * seconds)), 16_000)
        found.append(Clip(digest(path), str(path), path.name, label, path.name, "test"))
    return found


def ask(found: list[Clip], condition: str = "clean", **options: object) -> Answers:
    return answers.ask(b"", b"", ("Flute", NONE), found, condition=condition, **options)


def test_what_is_gone_is_named_and_the_others_are_answered(tmp_path: Path) -> None:
    found = clips(tmp_path, "Flute", "Rain", "Rain")
    Path(found[1].path).unlink()
    Path(found[2].path).write_bytes(b"no sound")
    given = ask(found)
    assert [c.name for c in given.clips] == ["0.wav"]
    assert [name for name, _ in given.bad] == ["1.wav", "2.wav"]


@pytest.mark.parametrize("condition", ["clean", "mixed"])
def test_what_cannot_be_read_now_ends_the_asking(tmp_path: Path, monkeypatch, condition: str) -> None:
    found = clips(tmp_path, "Flute", "Rain")
    read = sources.read

    def failing(location: str) -> bytes:
        if location == found[1].path:
            raise sources.Unreachable(location, "cannot be read (503)") from OSError(errno.EIO, "I/O error")
        return read(location)

    monkeypatch.setattr(sources, "read", failing)
    with pytest.raises(sources.Unreachable, match="503"):
        ask(found, condition)


def test_a_clip_s_score_is_the_mean_of_its_windows_and_each_of_them_is_counted(tmp_path: Path) -> None:
    given = ask(clips(tmp_path, "Flute", "Rain", "Rain", seconds=3.0))
    np.testing.assert_allclose(given.gate, [w.mean() for w in given.windows], rtol=1e-6)
    assert [len(w) for w in given.at(np.array([1])).windows] == [len(given.windows[1])]
    threshold = float(np.median(given.windows[0]))
    found = gate_scores(given, threshold)
    parts = scores.of_release({"gate_scores": found})
    assert parts is not None
    assert [int(p.sum()) for p in parts] == [len(given.windows[0]), len(given.windows[1]) + len(given.windows[2])]
    assert sum(found["wanted"][: scores.BINS // 2]) == int((given.windows[0] < threshold).sum())


def test_without_backgrounds_there_are_no_figures_of_mixed_clips(tmp_path: Path) -> None:
    found = clips(tmp_path, "Flute", "Flute")
    mixed = ask(found, "mixed")
    assert mixed.clips == ()
    assert mixed.bad == ()
    figures = evaluate_conditions({"clean": ask(found), "mixed": mixed}, 0.0)
    assert figures["conditions"]["mixed"]["classifier"]["clips"] == 0
    assert figures["conditions"]["mixed"]["pair"]["accuracy"] is None
    assert figures["headline"]["pair accuracy"]["condition"] == "clean"


def test_backgrounds_may_be_others_than_what_is_asked_about(tmp_path: Path) -> None:
    found = clips(tmp_path, "Flute", "Rain")
    assert ask(found[:1], "mixed").clips == ()
    assert ask(found[:1], "mixed", backgrounds=found).clips == (found[0],)


def test_an_answer_that_is_less_sure_than_the_rejection_counts_as_none_of_these(tmp_path: Path) -> None:
    given = ask(clips(tmp_path, "Flute", "Flute", "Flute", "Rain"))
    assert evaluate(given, -100.0)["pair"]["accuracy"] == 0.75
    rejecting = evaluate(given, -100.0, rejection=1.1)
    assert rejecting["pair"]["accuracy"] == 0.25
    assert rejecting["classifier"] == evaluate(given, -100.0)["classifier"]
