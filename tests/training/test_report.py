"""The report: one file that needs nothing else, shows every figure, and survives hostile and missing data."""

import base64
import csv
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from twophase.audio.dataset import SPLITS, Clip, read_source
from twophase.audio.frontend import SAMPLE_RATE
from twophase.audio.images import ImageSet, make_all
from twophase.errors import TwoPhaseError
from twophase.release import manifest
from twophase.release.manifest import EXTRA, NONE, Manifest
from twophase.training import answers
from twophase.training.answers import Answers
from twophase.training.evaluate import evaluate_conditions, robustness
from twophase.training.judge import Judgement
from twophase.training.operating_point import choose, sweep
from twophase.training.report import excerpt, percent, write

HOSTILE = "<script>alert('x')</script>"
LABELS = (HOSTILE, "flute", "oboe", 'noise "&" hiss')
WANTED = tuple(sorted(LABELS[:3]))

Change = Callable[[Answers], Answers]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a report is written from, but for the judgement."""

    home: Path
    images: ImageSet

    def judged(self, folder: Path, change: Change = lambda a: a) -> Judgement:
        """A judgement on made-up answers; `change` alters those to the test clips."""
        names = (*self.images.wanted, NONE)
        rng = np.random.default_rng(1)
        clips = [c for c in self.images.clips if c.split != "train"]
        truth = np.array([names.index(c.label) if c.label in names else len(names) - 1 for c in clips])
        probabilities = rng.dirichlet(np.ones(len(names)), len(clips)) * 0.6
        probabilities[np.arange(len(clips)), truth] += 0.4
        gate = rng.normal(np.where(truth < len(names) - 1, 1.5, -1.5), 1.5)
        sizes = np.array([Path(c.path).stat().st_size for c in clips], np.int64)
        given = Answers(
            tuple(clips),
            names,
            gate.astype(np.float32),
            probabilities.astype(np.float32),
            sizes,
            (("b.wav", "is empty"),),
        )
        validation, test = given.of("validation"), change(given.of("test"))
        answers.write(folder / "validation.jsonl", validation)
        answers.write(folder / "test.jsonl", test)
        point = choose(validation)
        lineage = {"images": self.images.digest, "clips": {"train": 1}}
        metrics = {
            **evaluate_conditions({"clean": test, "mixed": test.at(np.arange(0))}, point.threshold),
            "costs": {"miss": 2.0, "wrong": 0.5, "call": 1.0, "byte": 0.0},
            "robustness": robustness({"clean": test, "snr 0": test}, point.threshold),
            "sweep": sweep(validation, point.threshold),
        }
        value = {"point": dataclasses.asdict(point), "metrics": metrics, "lineage": lineage}
        (folder / "judgement.json").write_text(json.dumps(value))
        return Judgement.read(folder)

    def write(self, path: Path, judged: Judgement) -> str:
        """Write a report at `path` and return it."""
        release = self.home / "r-0123456789ab"
        if not release.is_dir():
            (release / EXTRA).mkdir(parents=True)
            (release / EXTRA / "gate.tflite").write_bytes(b"g" * 4096)
            found = Manifest(
                id=release.name,
                labels=WANTED,
                front_end=manifest.front_end_json(),
                operating_point=judged.point,
                computes={},
                digests=manifest.files_of(release),
                created="2026-01-02T03:04:05+00:00",
                twophase="9.9",
            )
            manifest.write(release, found)
        write(path, self.images, self.home / "gate", self.home / "classifier", judged, release)
        return path.read_text("utf-8")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    home = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = []
    for number, label in enumerate(LABELS):
        for i in range(9):
            rows.append((f"{number}<i>{i}.wav", label, SPLITS[i % 3]))
            t = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            sound = np.sin(2 * np.pi * 200 * (number + 1) * t) + rng.standard_normal(len(t)) / 50
            soundfile.write(home / rows[-1][0], 0.3 * sound, SAMPLE_RATE)
    with (home / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("fname", "label", "split"), *rows, ("<b>bad.wav", "flute", "test")])
    (home / "<b>bad.wav").write_text("no sound")
    dataset = read_source(home, WANTED)
    images = make_all(home, dataset, "skip", lambda done, total: None)
    for name in ("gate", "classifier"):
        curves = {
            "loss": [1.0, 0.5],
            "val_loss": [1.1, float("nan")],
            "accuracy": [0.5, 0.8],
            "val_accuracy": [0.4, 0.6],
        }
        recipe = {"epochs": 2, "learning_rate": 0.002, "seed": 7}
        (home / name).mkdir()
        (home / name / "history.json").write_text(json.dumps({"history": curves, "recipe": recipe, "labels": []}))
    return Inputs(home, images)


@pytest.fixture(scope="module")
def page(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judged")
    return inputs.write(folder / "r.html", inputs.judged(folder))


class Page(HTMLParser):
    """The tags, attributes and words of a page; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


def test_the_page_refers_to_nothing_outside_and_runs_nothing(page: str) -> None:
    found = Page(page)
    assert "://" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert all(value.startswith(("data:", "#")) for value in found.values("src") + found.values("href"))
    assert "script" not in {tag for tag, _ in found.tags}
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    (policy,) = (a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert len(page) < 3e6


def test_what_comes_from_data_is_escaped(page: str) -> None:
    found = Page(page)
    assert HOSTILE not in page
    assert HOSTILE in found.words
    assert LABELS[3] in found.words
    assert "<b>bad.wav" in found.words
    assert "<i>" in found.words


def test_every_figure_is_there(inputs: Inputs, tmp_path: Path) -> None:
    judged = inputs.judged(tmp_path)
    found = Page(inputs.write(tmp_path / "r.html", judged))
    words = re.sub(r"\s+", " ", found.words)
    for part in ("gate", "classifier", "pair"):
        figures = judged.metrics[part]
        for name, bounds in figures["intervals"].items():
            if name != "top3" and bounds[0] < bounds[1]:
                assert f"{percent(bounds[0])[:-1]} to {percent(bounds[1])}" in words, (part, name)
            assert percent(figures[name]) in words, (part, name)
    assert "100 to 100%" not in words
    point = judged.point
    for figure in (point.recall, point.stopped, point.escalation_rate):
        assert percent(figure) in words
    for wanted in ("r-0123456789ab", f"{abs(point.threshold):.2f}", point.chosen_by, inputs.images.digest, "--seed 7"):
        assert wanted in words
    assert "2 clips were named in the data and could not be used" in words
    drawn = {a["aria-label"] for t, a in found.tags if t == "svg"}
    assert drawn == {
        "Recall against escalation rate",
        "Distribution of the gate's scores",
        "Reliability diagram",
        "Cost against escalation rate and rejection",
        *(f"{model}: {what} over the epochs" for model in ("gate", "classifier") for what in ("loss", "accuracy")),
    }
    assert "At worst, as devices hear them (clean)" in words
    assert "through one 8 kHz channel" not in words
    assert "so, and over a background at 0, 10 or 20 dB00-----" in words
    assert "A miss 2, a wrong label 0.5, a call 1:" in words
    assert not re.search(r"\bnan\b", " ".join(found.values("d") + found.values("y") + found.values("cy")))


def test_each_test_clip_is_counted_once_in_what_became_of_it(inputs: Inputs, tmp_path: Path) -> None:
    judged = inputs.judged(tmp_path)
    found = Page(inputs.write(tmp_path / "r.html", judged))
    stacks = [a["aria-label"] for t, a in found.tags if a.get("class") == "stack"]
    counts = [[int(n) for n in re.findall(r"(\d+) ", stack)] for stack in stacks]
    wanted = int(judged.test.wanted.sum())
    assert [sum(c) for c in counts] == [wanted, len(judged.test.clips) - wanted]
    right = counts[0][0] + counts[1][0] + counts[1][1]
    assert right / len(judged.test.clips) == pytest.approx(judged.metrics["pair"]["accuracy"])


def test_sounds_can_be_played_and_are_short(page: str) -> None:
    sounds = [a["src"] for t, a in Page(page).tags if t == "audio"]
    assert sounds
    for sound in sounds:
        pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(sound.removeprefix("data:audio/mpeg;base64,"))))
        assert rate == SAMPLE_RATE
        assert 0.3 < len(pcm) / rate < 3.2
        assert 0.5 < np.abs(pcm).max() <= 1.0


def test_clips_that_have_gone_or_changed_stay_without_their_sound(inputs: Inputs, tmp_path: Path) -> None:
    def elsewhere(given: Answers) -> Answers:
        (tmp_path / "changed.wav").write_bytes(b"something else")
        paths = (tmp_path / "gone.wav", tmp_path / "changed.wav")
        moved = tuple(dataclasses.replace(c, path=str(paths[i % 2])) for i, c in enumerate(given.clips))
        return dataclasses.replace(given, clips=moved)

    text = inputs.write(tmp_path / "r.html", inputs.judged(tmp_path, elsewhere))
    assert "<audio" not in text
    assert text.count("The file has gone or changed") == text.count('class="card"') > 0


def _only(keep: Callable[[Clip], bool]) -> Change:
    return lambda given: given.at(np.array([i for i, c in enumerate(given.clips) if keep(c)], np.int64))


def _certain(given: Answers) -> Answers:
    perfect = np.eye(len(given.names), dtype=np.float32)[given.truth]
    return dataclasses.replace(given, gate=np.where(given.wanted, 9, -9).astype(np.float32), probabilities=perfect)


def _odd_name(given: Answers) -> Answers:
    clips = tuple(dataclasses.replace(c, name="b\udcff.wav") for c in given.clips)  # a file name that is no UTF-8
    return dataclasses.replace(given, clips=clips)


@pytest.mark.parametrize(
    "change",
    [
        _only(lambda clip: clip.label in WANTED),
        _only(lambda clip: clip.label not in WANTED),
        lambda given: given.at(np.array([0])),
        lambda given: dataclasses.replace(given, gate=np.zeros_like(given.gate)),
        _certain,
        _odd_name,
    ],
    ids=["all wanted", "none wanted", "one clip", "equal scores", "no mistakes", "odd name"],
)
def test_unusual_answers_still_make_a_page(inputs: Inputs, tmp_path: Path, change: Change) -> None:
    found = Page(inputs.write(tmp_path / "r.html", inputs.judged(tmp_path, change)))
    assert not re.search(r"\bnan\b|None|inf\b", " ".join(found.values("d") + found.values("style")))


def test_many_labels_stay_readable_and_small(inputs: Inputs, tmp_path: Path) -> None:
    def many(given: Answers) -> Answers:
        names = (*(f"label {i:03d}" for i in range(200)), NONE)
        index = np.arange(400) % len(given.clips)
        clips = tuple(dataclasses.replace(given.clips[k], label=names[i % 201]) for i, k in enumerate(index))
        probabilities = np.random.default_rng(0).dirichlet(np.ones(201), 400).astype(np.float32)
        return Answers(clips, names, given.gate[index], probabilities, given.bytes[index])

    text = inputs.write(tmp_path / "r.html", inputs.judged(tmp_path, many))
    found = Page(text)
    assert "161 more are left out" not in found.words
    assert "160 more are left out" in found.words
    assert len(text) < 3e6


def test_a_folder_that_is_no_model_is_named(inputs: Inputs, tmp_path: Path) -> None:
    judged = inputs.judged(tmp_path)
    inputs.write(tmp_path / "r.html", judged)
    release = inputs.home / "r-0123456789ab"
    with pytest.raises(TwoPhaseError, match="nowhere"):
        write(tmp_path / "x.html", inputs.images, tmp_path / "nowhere", inputs.home / "classifier", judged, release)
    assert not (tmp_path / "x.html").exists()


def test_it_needs_no_tensorflow() -> None:
    import subprocess

    code = "import sys, twophase.training.report; sys.exit('tensorflow' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.integers(1, 80_000), st.integers(0, 1 << 30), st.sampled_from([0.1, 3.0]))
def test_an_excerpt_holds_the_loudest_part(length: int, at: int, seconds: float) -> None:
    pcm = np.full(length, 1e-4, np.float32)
    loudest = at % length
    pcm[loudest] = 0.5
    cut = excerpt(pcm, seconds)
    assert cut.dtype == np.float32
    assert len(cut) == min(length, int(seconds * SAMPLE_RATE))
    assert np.abs(cut).max() <= 0.9 + 1e-6


@given(st.floats(0, 1))
def test_a_percentage_says_all_or_none_only_when_it_is(share: float) -> None:
    assert (percent(share) == "100%") == (share == 1)
    assert (percent(share) == "0%") == (share == 0)
